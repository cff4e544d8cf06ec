//! Registers of one block in WebAssembly, which has no AES instructions but permutes bytes.
//!
//! AES by table look-ups of 16 bytes each in a register, hence in constant time: Hamburg,
//! "Accelerating AES with Vector Permute Instructions" (CHES 2009), whose formula for the inverse
//! is derived below with the tables. WebAssembly's `swizzle` gives zero for indices from 16 on,
//! which stand for infinity here.
//!
//! # The inverse in GF(2^8)
//! Let `z` be an element with `z + z' = 1`, where `z' = z^16`, so that an element `x = i z + j z'`
//! has coordinates `i`, `j` in GF(2^4), and let `k = i + j`. With `n = z z'` and `a = 1 / n`, the
//! norm is `N = x x' = n k^2 + i j`, and `1 / x = x' / N = (j z + i z') / N`. From look-ups of one
//! nibble each,
//!
//!     r = 1 / (1 / i + a / k) + j = (k^2 + a i j) / (k + a i) = a N / ((1 + a) i + j)
//!     s = 1 / (1 / j + a / k) + i = (k^2 + a i j) / (k + a j) = a N / (i + (1 + a) j)
//!
//! so that `1 / x = (1 / r) (z + (1 + a) z') / a + (1 / s) ((1 + a) z + z') / a`: two more
//! look-ups, whose tables apply the affine map of the S-box too. The equations hold where a
//! denominator is zero if infinity is what it should be: `1 / 0`, and a sum with one infinite term.
//! Where both terms are, that is for `x = 0`, the sum of both is an index of zero, whose look-up is
//! infinite again, and both results are zero.

use super::{Kernel, Sealed, Vector};
use crate::block::Block;
use std::arch::wasm32::*;

/// Runs a kernel.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Wasm(()))
}

/// Proof that the module was compiled for the instructions.
#[derive(Clone, Copy)]
struct Wasm(());

impl Sealed for Wasm {}

/// Multiplies in the field of AES.
const fn mul(a: u8, b: u8) -> u8 {
    let (mut a, mut product, mut bit) = (a, 0, 0);
    while bit < 8 {
        if b >> bit & 1 == 1 {
            product ^= a;
        }
        a = a << 1 ^ if a >> 7 == 1 { 0x1b } else { 0 };
        bit += 1;
    }
    product
}

/// Returns `a^16`, the conjugate over GF(2^4).
const fn conjugate(a: u8) -> u8 {
    let (mut a, mut squarings) = (a, 0);
    while squarings < 4 {
        a = mul(a, a);
        squarings += 1;
    }
    a
}

/// Returns `1 / a`, which is `a^254`; 0 for 0.
const fn inverse(a: u8) -> u8 {
    let (mut result, mut power, mut factors) = (1, a, 0);
    while factors < 7 {
        power = mul(power, power);
        result = mul(result, power);
        factors += 1;
    }
    result
}

/// The element of GF(2^4) with these coordinates over the basis `1, g, g^2, g^3`; `g = 3^17` is of
/// order 15.
const fn element(nibble: u8) -> u8 {
    let mut g = 3;
    let mut factors = 0;
    while factors < 16 {
        g = mul(g, 3);
        factors += 1;
    }
    let (mut sum, mut power, mut bit) = (0, 1, 0);
    while bit < 4 {
        if nibble >> bit & 1 == 1 {
            sum ^= power;
        }
        power = mul(power, g);
        bit += 1;
    }
    sum
}

/// The coordinates of an element of GF(2^4).
const fn nibble(of: u8) -> u8 {
    let mut nibble = 0;
    while element(nibble) != of {
        nibble += 1;
    }
    nibble
}

/// An element with `z + z^16 = 1`.
const Z: u8 = {
    let mut z = 2;
    while z ^ conjugate(z) != 1 {
        z += 1;
    }
    z
};
/// `1 / (z z')`.
const A: u8 = inverse(mul(Z, conjugate(Z)));
/// An index that stands for infinity.
const INFINITE: u8 = 0x80;

/// The linear part of the affine map of the S-box.
const fn affine(x: u8) -> u8 {
    x ^ x.rotate_left(1) ^ x.rotate_left(2) ^ x.rotate_left(3) ^ x.rotate_left(4)
}

/// The constant part, in each byte of a word.
const AFFINE: u32 = 0x6363_6363;

/// The tables, each with one byte for a nibble.
struct Tables {
    /// Coordinates `i` (high nibble) and `k` (low nibble) of the low and the high nibble of a byte.
    low: [u8; 16],
    high: [u8; 16],
    /// Coordinates of `1 / x` and `a / x`.
    inverse: [u8; 16],
    quotient: [u8; 16],
    /// The S-box less its constant, of `r` and of `s`; the same times two.
    of_r: [u8; 16],
    of_s: [u8; 16],
    double_of_r: [u8; 16],
    double_of_s: [u8; 16],
}

const TABLES: Tables = {
    let mut t = Tables {
        low: [0; 16],
        high: [0; 16],
        inverse: [INFINITE; 16],
        quotient: [INFINITE; 16],
        of_r: [0; 16],
        of_s: [0; 16],
        double_of_r: [0; 16],
        double_of_s: [0; 16],
    };
    let one = 1 ^ A;
    let factor_r = mul(Z ^ mul(one, conjugate(Z)), inverse(A));
    let factor_s = mul(mul(one, Z) ^ conjugate(Z), inverse(A));
    let mut n = 0;
    while n < 16 {
        t.low[n] = coordinates(n as u8);
        t.high[n] = coordinates((n as u8) << 4);
        if n > 0 {
            let inverted = inverse(element(n as u8));
            t.inverse[n] = nibble(inverted);
            t.quotient[n] = nibble(mul(A, inverted));
            t.of_r[n] = affine(mul(factor_r, inverted));
            t.of_s[n] = affine(mul(factor_s, inverted));
            t.double_of_r[n] = mul(2, t.of_r[n]);
            t.double_of_s[n] = mul(2, t.of_s[n]);
        }
        n += 1;
    }
    t
};

/// `i` and `k` of a byte: `i = x z + x' z'`, `k = x + x'`.
const fn coordinates(x: u8) -> u8 {
    let i = mul(x, Z) ^ mul(conjugate(x), conjugate(Z));
    nibble(i) << 4 | nibble(x ^ conjugate(x))
}

#[inline(always)]
fn table(bytes: &[u8; 16]) -> v128 {
    let (halves, _) = bytes.as_chunks::<8>();
    u64x2(u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1]))
}

/// Returns `r` and `s` of each byte.
#[inline(always)]
fn invert(x: v128) -> [v128; 2] {
    let nibbles = u8x16_splat(15);
    let low = u8x16_swizzle(table(&TABLES.low), v128_and(x, nibbles));
    let high = u8x16_swizzle(table(&TABLES.high), u8x16_shr(x, 4));
    let x = v128_xor(low, high);
    let (i, k) = (u8x16_shr(x, 4), v128_and(x, nibbles));
    let j = v128_xor(i, k);
    let inverse = table(&TABLES.inverse);
    let of_k = u8x16_swizzle(table(&TABLES.quotient), k);
    let of_i = v128_xor(u8x16_swizzle(inverse, i), of_k);
    let of_j = v128_xor(u8x16_swizzle(inverse, j), of_k);
    [
        v128_xor(u8x16_swizzle(inverse, of_i), j),
        v128_xor(u8x16_swizzle(inverse, of_j), i),
    ]
}

/// Applies the S-box less its constant.
#[inline(always)]
fn substitute([r, s]: [v128; 2]) -> v128 {
    let of_r = u8x16_swizzle(table(&TABLES.of_r), r);
    v128_xor(of_r, u8x16_swizzle(table(&TABLES.of_s), s))
}

/// The same, times two.
#[inline(always)]
fn substitute_doubled([r, s]: [v128; 2]) -> v128 {
    let of_r = u8x16_swizzle(table(&TABLES.double_of_r), r);
    v128_xor(of_r, u8x16_swizzle(table(&TABLES.double_of_s), s))
}

/// Shifts rows.
#[inline(always)]
fn shift_rows(x: v128) -> v128 {
    u8x16_shuffle::<0, 5, 10, 15, 4, 9, 14, 3, 8, 13, 2, 7, 12, 1, 6, 11>(x, x)
}

impl Vector for Wasm {
    type V = v128;

    const BLOCKS: usize = 1;

    #[inline(always)]
    fn splat(self, x: u32) -> v128 {
        u32x4_splat(x)
    }

    #[inline(always)]
    fn broadcast(self, x: Block) -> v128 {
        let x = x.value();
        u64x2(x as u64, (x >> 64) as u64)
    }

    #[inline(always)]
    unsafe fn load_at(self, at: impl Fn(usize) -> *const u8) -> v128 {
        // SAFETY: the caller's; the load asks for no alignment.
        unsafe { v128_load(at(0).cast()) }
    }

    #[inline(always)]
    unsafe fn store_at(self, at: impl Fn(usize) -> *mut u8, x: v128) {
        // SAFETY: the caller's; the store asks for no alignment.
        unsafe { v128_store(at(0).cast(), x) }
    }

    #[inline(always)]
    unsafe fn load_pairs_at(self, at: impl Fn(usize) -> *const u8) -> [v128; 2] {
        let at = at(0);
        // SAFETY: the caller's, for two blocks; as in `load_at`.
        unsafe { [v128_load(at.cast()), v128_load(at.add(16).cast())] }
    }

    #[inline(always)]
    unsafe fn store_pairs_at(self, at: impl Fn(usize) -> *mut u8, x: [v128; 2]) {
        let at = at(0);
        // SAFETY: the caller's, for two blocks; as in `store_at`.
        unsafe {
            v128_store(at.cast(), x[0]);
            v128_store(at.add(16).cast(), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn load(self, at: *const u8) -> v128 {
        // SAFETY: the caller's; as in `load_at`.
        unsafe { v128_load(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8, x: v128) {
        // SAFETY: the caller's; as in `store_at`.
        unsafe { v128_store(at.cast(), x) }
    }

    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}

    #[inline(always)]
    fn xor(self, a: v128, b: v128) -> v128 {
        v128_xor(a, b)
    }

    #[inline(always)]
    fn and(self, a: v128, b: v128) -> v128 {
        v128_and(a, b)
    }

    #[inline(always)]
    fn add32(self, a: v128, b: v128) -> v128 {
        u32x4_add(a, b)
    }

    #[inline(always)]
    fn sub32(self, a: v128, b: v128) -> v128 {
        u32x4_sub(a, b)
    }

    #[inline(always)]
    fn equal32(self, a: v128, b: v128) -> v128 {
        u32x4_eq(a, b)
    }

    #[inline(always)]
    fn greater32(self, a: v128, b: v128) -> v128 {
        i32x4_gt(a, b)
    }

    #[inline(always)]
    fn add64(self, a: v128, b: v128) -> v128 {
        u64x2_add(a, b)
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self, a: v128) -> v128 {
        u64x2_shl(a, N as u32)
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self, a: v128) -> v128 {
        u64x2_shr(a, N as u32)
    }

    #[inline(always)]
    fn unpack8(self, a: v128, b: v128) -> [v128; 2] {
        [
            u8x16_shuffle::<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a, b),
            u8x16_shuffle::<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a, b),
        ]
    }

    #[inline(always)]
    fn unpack32(self, a: v128, b: v128) -> [v128; 2] {
        [
            u32x4_shuffle::<0, 4, 1, 5>(a, b),
            u32x4_shuffle::<2, 6, 3, 7>(a, b),
        ]
    }

    #[inline(always)]
    fn unpack64(self, a: v128, b: v128) -> [v128; 2] {
        [u64x2_shuffle::<0, 2>(a, b), u64x2_shuffle::<1, 3>(a, b)]
    }

    #[inline(always)]
    fn colours(self, a: v128) -> v128 {
        // The lowest byte of the block is copied to the others; its lowest bit becomes the sign.
        let lowest = u8x16_shuffle::<0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>(a, a);
        i8x16_shr(i8x16_shl(lowest, 7), 7)
    }

    #[inline(always)]
    fn sigma(self, a: v128) -> v128 {
        v128_xor(u64x2_shuffle::<1, 0>(a, a), v128_and(a, u64x2(0, u64::MAX)))
    }

    #[inline(always)]
    fn schedule(self, word: v128, constant: v128) -> v128 {
        let rotated =
            u8x16_shuffle::<1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12>(word, word);
        let substituted = substitute(invert(rotated));
        v128_xor(v128_xor(substituted, u32x4_splat(AFFINE)), constant)
    }

    #[inline(always)]
    fn first_key(self, x: v128, key: v128) -> v128 {
        v128_xor(x, key)
    }

    /// Each byte of a mixed column is `2 s0 + 3 s1 + s2 + s3`, of its own and of the next rows: of
    /// `s` and `2 s`, which are looked up, four permutations that shift the rows as well. The
    /// affine constant is the same before and after, because `2 + 3 + 1 + 1 = 1`.
    #[inline(always)]
    fn round(self, x: v128, _before: v128, key: v128) -> v128 {
        let inverted = invert(x);
        let (s, doubled) = (substitute(inverted), substitute_doubled(inverted));
        let tripled = v128_xor(s, doubled);
        let own = shift_rows(doubled);
        let next =
            u8x16_shuffle::<5, 10, 15, 0, 9, 14, 3, 4, 13, 2, 7, 8, 1, 6, 11, 12>(tripled, tripled);
        let third = u8x16_shuffle::<10, 15, 0, 5, 14, 3, 4, 9, 2, 7, 8, 13, 6, 11, 12, 1>(s, s);
        let fourth = u8x16_shuffle::<15, 0, 5, 10, 3, 4, 9, 14, 7, 8, 13, 2, 11, 12, 1, 6>(s, s);
        let mixed = v128_xor(v128_xor(own, next), v128_xor(third, fourth));
        v128_xor(mixed, v128_xor(key, u32x4_splat(AFFINE)))
    }

    #[inline(always)]
    fn last_round(self, x: v128, _before: v128, key: v128) -> v128 {
        let shifted = shift_rows(substitute(invert(x)));
        v128_xor(shifted, v128_xor(key, u32x4_splat(AFFINE)))
    }
}
