//! Registers that hold one or two blocks, and the instructions that compute on them.
//!
//! Kernels on labels and columns of bits are written once, over [`Vector`], and compiled for each
//! set of [`Instructions`]: AES instructions on 128 bits, the same on 256 bits where an x86-64
//! processor has them, those of AArch64, and in WebAssembly permutations of bytes. The `avx512`
//! back end has code of its own, which uses masks and permutations that the others lack; [`Code`]
//! says which version of a kernel runs.
//!
//! Every operation works on each 128-bit block of a register by itself, so that a kernel does not
//! see how many there are, but for [`Vector::BLOCKS`].

use crate::backend::Backend;
use crate::block::Block;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Operations on registers of blocks. A value of an implementing type proves that this processor
/// has the instructions. All implementations are in this module: kernels rely on what it says.
pub trait Vector: Copy + Sealed {
    /// A register.
    type V: Copy;

    /// Blocks in a register: 1 or 2.
    const BLOCKS: usize;

    /// Returns a register with `x` in each 32-bit word.
    fn splat(self, x: u32) -> Self::V;
    /// Returns a register with `x` in each block.
    fn broadcast(self, x: Block) -> Self::V;

    /// Reads block `h` of the register from `at(h)`.
    ///
    /// # Safety
    /// For each `h` below [`Vector::BLOCKS`], 16 initialised bytes can be read at `at(h)`.
    unsafe fn load_at(self, at: impl Fn(usize) -> *const u8) -> Self::V;
    /// Writes block `h` of the register to `at(h)`.
    ///
    /// # Safety
    /// For each `h` below [`Vector::BLOCKS`], 16 bytes can be written at `at(h)`.
    unsafe fn store_at(self, at: impl Fn(usize) -> *mut u8, x: Self::V);
    /// Reads block `h` of two registers from the 32 bytes at `at(h)`.
    ///
    /// # Safety
    /// For each `h` below [`Vector::BLOCKS`], 32 initialised bytes can be read at `at(h)`.
    unsafe fn load_pairs_at(self, at: impl Fn(usize) -> *const u8) -> [Self::V; 2];
    /// Writes block `h` of two registers to the 32 bytes at `at(h)`.
    ///
    /// # Safety
    /// For each `h` below [`Vector::BLOCKS`], 32 bytes can be written at `at(h)`.
    unsafe fn store_pairs_at(self, at: impl Fn(usize) -> *mut u8, x: [Self::V; 2]);
    /// Reads a register from bytes that follow each other.
    ///
    /// # Safety
    /// `16 BLOCKS` initialised bytes can be read at `at`.
    unsafe fn load(self, at: *const u8) -> Self::V;
    /// Writes a register to bytes that follow each other.
    ///
    /// # Safety
    /// `16 BLOCKS` bytes can be written at `at`.
    unsafe fn store(self, at: *mut u8, x: Self::V);
    /// Asks for the cache line of this address, which need not be one of the program's.
    fn prefetch(self, at: *const u8);

    /// Returns `a xor b`.
    fn xor(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns `a and b`.
    fn and(self, a: Self::V, b: Self::V) -> Self::V;
    /// Adds 32-bit words.
    fn add32(self, a: Self::V, b: Self::V) -> Self::V;
    /// Subtracts 32-bit words.
    fn sub32(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns all ones in those 32-bit words that are equal, zeros in the others.
    fn equal32(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns all ones in those 32-bit words where `a > b`, zeros in the others; both are below
    /// `2^31`.
    fn greater32(self, a: Self::V, b: Self::V) -> Self::V;
    /// Adds 64-bit words.
    fn add64(self, a: Self::V, b: Self::V) -> Self::V;
    /// Shifts 64-bit words to the left by `N` bits.
    fn shift_left<const N: i32>(self, a: Self::V) -> Self::V;
    /// Shifts 64-bit words to the right by `N` bits.
    fn shift_right<const N: i32>(self, a: Self::V) -> Self::V;
    /// Interleaves the bytes of the low halves of blocks, and of the high halves.
    fn unpack8(self, a: Self::V, b: Self::V) -> [Self::V; 2];
    /// Interleaves the 32-bit words of the low halves of blocks, and of the high halves.
    fn unpack32(self, a: Self::V, b: Self::V) -> [Self::V; 2];
    /// Returns the low halves of `a` and `b`, and the high ones.
    fn unpack64(self, a: Self::V, b: Self::V) -> [Self::V; 2];

    /// Returns all ones in those blocks whose lowest bit is 1, zeros in the others.
    fn colours(self, a: Self::V) -> Self::V;
    /// Applies the orthomorphism of the hash to every block: `a || b` to `(a xor b) || a`.
    fn sigma(self, a: Self::V) -> Self::V;

    /// Rotates each 32-bit word by a byte, substitutes its bytes, adds `constant`: the step from
    /// the last word of an AES round key to the first of the next one.
    fn schedule(self, word: Self::V, constant: Self::V) -> Self::V;
    /// Prepares blocks for the rounds of AES, of which this is the first key.
    fn first_key(self, x: Self::V, key: Self::V) -> Self::V;
    /// Does a round of AES but the last. The keys are those before and behind it: an instruction
    /// set adds the one or the other.
    fn round(self, x: Self::V, before: Self::V, key: Self::V) -> Self::V;
    /// Does the last round of AES.
    fn last_round(self, x: Self::V, before: Self::V, key: Self::V) -> Self::V;
}

use sealed::Sealed;

mod sealed {
    /// Keeps [`super::Vector`] from being implemented elsewhere.
    pub trait Sealed {}
}

/// Work that is compiled for each set of instructions.
pub trait Kernel {
    /// What it returns.
    type Output;

    /// Does the work with these instructions. Implementations are `#[inline(always)]`, as is all
    /// that they call on the hot path: what is not inlined into the function of the instruction set
    /// is compiled without its instructions.
    fn run<S: Vector>(self, s: S) -> Self::Output;
}

/// A set of instructions that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instructions(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// AVX2 and AES instructions, one block in a register.
    #[cfg(target_arch = "x86_64")]
    Aes,
    /// AVX2 and VAES, two blocks in a register.
    #[cfg(target_arch = "x86_64")]
    WideAes,
    /// NEON and AES instructions, one block in a register.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// WebAssembly, one block in a register.
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Wasm,
}

impl Instructions {
    /// Runs a kernel with these instructions.
    #[inline(always)]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: the value was made by `Code::of`, for a back end that is supported: the
            // processor has AVX2 and AES instructions.
            #[cfg(target_arch = "x86_64")]
            Set::Aes => unsafe { x86::run_aes(kernel) },
            // SAFETY: as above, and `Code::of` has found VAES.
            #[cfg(target_arch = "x86_64")]
            Set::WideAes => unsafe { x86::run_wide_aes(kernel) },
            // SAFETY: as for `Aes`: the processor has NEON and AES instructions.
            #[cfg(target_arch = "aarch64")]
            Set::Neon => unsafe { neon::run(kernel) },
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Set::Wasm => wasm::run(kernel),
        }
    }
}

/// The version of a kernel that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The definition.
    Portable,
    /// The one over [`Vector`], with these instructions.
    Vector(Instructions),
    /// The one of the back end `avx512`.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Code {
    /// Returns the version for the back end of this process.
    ///
    /// # Panics
    /// As [`Backend::get`].
    #[inline]
    pub fn get() -> Code {
        Code::of(Backend::get())
    }

    /// Returns the version for a back end that must be supported.
    #[inline]
    fn of(backend: Backend) -> Code {
        match backend {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => Code::Avx512,
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 if Backend::has_wide_aes() => Code::Vector(Instructions(Set::WideAes)),
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => Code::Vector(Instructions(Set::Aes)),
            #[cfg(target_arch = "aarch64")]
            Backend::Neon => Code::Vector(Instructions(Set::Neon)),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Backend::Simd128 => Code::Vector(Instructions(Set::Wasm)),
            _ => Code::Portable,
        }
    }

    /// Returns every version that this machine can run, the definition first: for tests.
    pub fn supported() -> Vec<Code> {
        let backends = Backend::all().into_iter().filter(|b| b.is_supported());
        let all: Vec<Code> = backends.map(Code::of).collect();
        #[cfg(target_arch = "x86_64")]
        let mut all = all;
        #[cfg(target_arch = "x86_64")]
        if all.contains(&Code::Vector(Instructions(Set::WideAes))) {
            all.push(Code::Vector(Instructions(Set::Aes)));
        }
        all
    }
}
