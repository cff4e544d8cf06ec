//! Registers of one or two blocks on x86-64 with AVX2 and AES instructions.

use super::{Kernel, Sealed, Vector};
use crate::block::Block;
use std::arch::x86_64::*;

/// Runs a kernel with one block in a register.
#[target_feature(enable = "aes,ssse3,avx2")]
pub(super) fn run_aes<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Aes(()))
}

/// Runs a kernel with two blocks in a register.
#[target_feature(enable = "aes,ssse3,avx2,vaes")]
pub(super) fn run_wide_aes<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(WideAes(()))
}

/// Proof that this processor has AVX2 and AES instructions.
#[derive(Clone, Copy)]
struct Aes(());

/// Proof that this processor has AVX2 and VAES.
#[derive(Clone, Copy)]
struct WideAes(());

impl Sealed for Aes {}
impl Sealed for WideAes {}

/// Bytes of a round key's last word, rotated, each at the place from which the row shift of the
/// last-round instruction fetches it: the shift moves row `r` left by `r` columns.
const ROTATE: [i8; 16] = [1, 14, 11, 4, 5, 2, 15, 8, 9, 6, 3, 12, 13, 10, 7, 0];

/// Defines operations by an intrinsic each.
macro_rules! intrinsics {
    ($($name:ident($($x:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($x: Self::V),+) -> Self::V {
            // SAFETY: `self` proves that the processor has the instructions.
            unsafe { $intrinsic($($x),+) }
        }
    )+};
}

/// Defines interleaving by the intrinsics for low and high halves.
macro_rules! unpacks {
    ($($name:ident = $low:ident, $high:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, a: Self::V, b: Self::V) -> [Self::V; 2] {
            // SAFETY: `self` proves that the processor has the instructions.
            unsafe { [$low(a, b), $high(a, b)] }
        }
    )+};
}

impl Vector for Aes {
    type V = __m128i;

    const BLOCKS: usize = 1;

    intrinsics! {
        xor(a, b) = _mm_xor_si128;
        and(a, b) = _mm_and_si128;
        add32(a, b) = _mm_add_epi32;
        sub32(a, b) = _mm_sub_epi32;
        equal32(a, b) = _mm_cmpeq_epi32;
        greater32(a, b) = _mm_cmpgt_epi32;
        add64(a, b) = _mm_add_epi64;
        first_key(x, key) = _mm_xor_si128;
    }

    unpacks! {
        unpack8 = _mm_unpacklo_epi8, _mm_unpackhi_epi8;
        unpack32 = _mm_unpacklo_epi32, _mm_unpackhi_epi32;
        unpack64 = _mm_unpacklo_epi64, _mm_unpackhi_epi64;
    }

    #[inline(always)]
    fn splat(self, x: u32) -> __m128i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm_set1_epi32(x.cast_signed()) }
    }

    #[inline(always)]
    fn broadcast(self, x: Block) -> __m128i {
        // SAFETY: as above; a block is 16 initialised bytes, and the load has no alignment
        // requirement.
        unsafe { _mm_loadu_si128(std::ptr::from_ref(&x).cast()) }
    }

    #[inline(always)]
    unsafe fn load_at(self, at: impl Fn(usize) -> *const u8) -> __m128i {
        // SAFETY: the caller's; the load has no alignment requirement.
        unsafe { _mm_loadu_si128(at(0).cast()) }
    }

    #[inline(always)]
    unsafe fn store_at(self, at: impl Fn(usize) -> *mut u8, x: __m128i) {
        // SAFETY: the caller's; the store has no alignment requirement.
        unsafe { _mm_storeu_si128(at(0).cast(), x) }
    }

    #[inline(always)]
    unsafe fn load_pairs_at(self, at: impl Fn(usize) -> *const u8) -> [__m128i; 2] {
        let at: *const __m128i = at(0).cast();
        // SAFETY: the caller's, for two blocks; the loads have no alignment requirement.
        unsafe { [_mm_loadu_si128(at), _mm_loadu_si128(at.add(1))] }
    }

    #[inline(always)]
    unsafe fn store_pairs_at(self, at: impl Fn(usize) -> *mut u8, x: [__m128i; 2]) {
        let at: *mut __m128i = at(0).cast();
        // SAFETY: the caller's, for two blocks; the stores have no alignment requirement.
        unsafe {
            _mm_storeu_si128(at, x[0]);
            _mm_storeu_si128(at.add(1), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn load(self, at: *const u8) -> __m128i {
        // SAFETY: the caller's; the load has no alignment requirement.
        unsafe { _mm_loadu_si128(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8, x: __m128i) {
        // SAFETY: the caller's; the store has no alignment requirement.
        unsafe { _mm_storeu_si128(at.cast(), x) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch reads nothing that the program sees, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self, a: __m128i) -> __m128i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm_slli_epi64::<N>(a) }
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self, a: __m128i) -> __m128i {
        // SAFETY: as above.
        unsafe { _mm_srli_epi64::<N>(a) }
    }

    #[inline(always)]
    fn colours(self, a: __m128i) -> __m128i {
        // SAFETY: as above. The lowest word of a block is copied to the others, and its lowest bit
        // to all bits of it.
        unsafe { _mm_srai_epi32::<31>(_mm_slli_epi32::<31>(_mm_shuffle_epi32::<0>(a))) }
    }

    #[inline(always)]
    fn sigma(self, a: __m128i) -> __m128i {
        // SAFETY: as above. 0x4e exchanges the 64-bit halves.
        unsafe {
            let high = _mm_set_epi64x(-1, 0);
            _mm_xor_si128(_mm_shuffle_epi32::<0x4e>(a), _mm_and_si128(a, high))
        }
    }

    #[inline(always)]
    fn schedule(self, word: __m128i, constant: __m128i) -> __m128i {
        // SAFETY: as above; `ROTATE` is 16 initialised bytes.
        unsafe {
            let rotate = _mm_loadu_si128(ROTATE.as_ptr().cast());
            _mm_aesenclast_si128(_mm_shuffle_epi8(word, rotate), constant)
        }
    }

    #[inline(always)]
    fn round(self, x: __m128i, _before: __m128i, key: __m128i) -> __m128i {
        // SAFETY: as above.
        unsafe { _mm_aesenc_si128(x, key) }
    }

    #[inline(always)]
    fn last_round(self, x: __m128i, _before: __m128i, key: __m128i) -> __m128i {
        // SAFETY: as above.
        unsafe { _mm_aesenclast_si128(x, key) }
    }
}

impl Vector for WideAes {
    type V = __m256i;

    const BLOCKS: usize = 2;

    intrinsics! {
        xor(a, b) = _mm256_xor_si256;
        and(a, b) = _mm256_and_si256;
        add32(a, b) = _mm256_add_epi32;
        sub32(a, b) = _mm256_sub_epi32;
        equal32(a, b) = _mm256_cmpeq_epi32;
        greater32(a, b) = _mm256_cmpgt_epi32;
        add64(a, b) = _mm256_add_epi64;
        first_key(x, key) = _mm256_xor_si256;
    }

    unpacks! {
        unpack8 = _mm256_unpacklo_epi8, _mm256_unpackhi_epi8;
        unpack32 = _mm256_unpacklo_epi32, _mm256_unpackhi_epi32;
        unpack64 = _mm256_unpacklo_epi64, _mm256_unpackhi_epi64;
    }

    #[inline(always)]
    fn splat(self, x: u32) -> __m256i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm256_set1_epi32(x.cast_signed()) }
    }

    #[inline(always)]
    fn broadcast(self, x: Block) -> __m256i {
        // SAFETY: as above; a block is 16 initialised bytes, and the load has no alignment
        // requirement.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(std::ptr::from_ref(&x).cast())) }
    }

    #[inline(always)]
    unsafe fn load_at(self, at: impl Fn(usize) -> *const u8) -> __m256i {
        // SAFETY: the caller's; the loads have no alignment requirement.
        unsafe { _mm256_loadu2_m128i(at(1).cast(), at(0).cast()) }
    }

    #[inline(always)]
    unsafe fn store_at(self, at: impl Fn(usize) -> *mut u8, x: __m256i) {
        // SAFETY: the caller's; the stores have no alignment requirement.
        unsafe {
            _mm_storeu_si128(at(0).cast(), _mm256_castsi256_si128(x));
            _mm_storeu_si128(at(1).cast(), _mm256_extracti128_si256::<1>(x));
        }
    }

    #[inline(always)]
    unsafe fn load_pairs_at(self, at: impl Fn(usize) -> *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's; the loads have no alignment requirement.
        unsafe {
            let (x, y) = (
                _mm256_loadu_si256(at(0).cast()),
                _mm256_loadu_si256(at(1).cast()),
            );
            transpose_blocks(x, y)
        }
    }

    #[inline(always)]
    unsafe fn store_pairs_at(self, at: impl Fn(usize) -> *mut u8, [x, y]: [__m256i; 2]) {
        // SAFETY: the caller's; the stores have no alignment requirement.
        unsafe {
            let [x, y] = transpose_blocks(x, y);
            _mm256_storeu_si256(at(0).cast(), x);
            _mm256_storeu_si256(at(1).cast(), y);
        }
    }

    #[inline(always)]
    unsafe fn load(self, at: *const u8) -> __m256i {
        // SAFETY: the caller's; the load has no alignment requirement.
        unsafe { _mm256_loadu_si256(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8, x: __m256i) {
        // SAFETY: the caller's; the store has no alignment requirement.
        unsafe { _mm256_storeu_si256(at.cast(), x) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch reads nothing that the program sees, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm256_slli_epi64::<N>(a) }
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_srli_epi64::<N>(a) }
    }

    #[inline(always)]
    fn colours(self, a: __m256i) -> __m256i {
        // SAFETY: as above. The lowest word of a block is copied to the others, and its lowest bit
        // to all bits of it.
        unsafe { _mm256_srai_epi32::<31>(_mm256_slli_epi32::<31>(_mm256_shuffle_epi32::<0>(a))) }
    }

    #[inline(always)]
    fn sigma(self, a: __m256i) -> __m256i {
        // SAFETY: as above. 0x4e exchanges the 64-bit halves of every block.
        unsafe {
            let high = _mm256_set_epi64x(-1, 0, -1, 0);
            _mm256_xor_si256(_mm256_shuffle_epi32::<0x4e>(a), _mm256_and_si256(a, high))
        }
    }

    #[inline(always)]
    fn schedule(self, word: __m256i, constant: __m256i) -> __m256i {
        // SAFETY: as above; `ROTATE` is 16 initialised bytes.
        unsafe {
            let rotate = _mm_loadu_si128(ROTATE.as_ptr().cast());
            let rotate = _mm256_broadcastsi128_si256(rotate);
            _mm256_aesenclast_epi128(_mm256_shuffle_epi8(word, rotate), constant)
        }
    }

    #[inline(always)]
    fn round(self, x: __m256i, _before: __m256i, key: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_aesenc_epi128(x, key) }
    }

    #[inline(always)]
    fn last_round(self, x: __m256i, _before: __m256i, key: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_aesenclast_epi128(x, key) }
    }
}

/// Transposes a 2 by 2 matrix of blocks.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn transpose_blocks(x: __m256i, y: __m256i) -> [__m256i; 2] {
    // SAFETY: the caller's. 0x20 takes the low halves of both, 0x31 the high ones.
    unsafe {
        [
            _mm256_permute2x128_si256::<0x20>(x, y),
            _mm256_permute2x128_si256::<0x31>(x, y),
        ]
    }
}
