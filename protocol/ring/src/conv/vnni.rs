//! Convolution with AVX-512 VNNI (and F, BW) by 8-bit weights that were packed once.
//!
//! An input of 60 bits is eight bytes and a weight of at most seven bits and a sign is one:
//! `vpdpbusd` multiplies 64 bytes by 64 weights and adds fours of the products to 32-bit sums. That
//! is eight products over `F_p` per instruction, twice what `f64` gives. Sums are exact integers as
//! long as `taps * 255 * 127 < 2^31`, which follows from the shape.
//!
//! # Layout
//! A *column* is one limb of one output position, a tile eight positions: 64 columns in four
//! vectors. Groups have four taps. Eight positions of four taps are 256 bytes, which byte and word
//! interleaving turns into the four vectors of a group:
//!
//! | vector | positions | limbs, one to a 32-bit lane |
//! | --- | --- | --- |
//! | 0, 1 | even | 0 to 3, 4 to 7 |
//! | 2, 3 | odd | 0 to 3, 4 to 7 |
//!
//! Blocks have six rows; their weights lie group by group, four taps together.

use super::ConvShape;
use super::tiles::{Depth, Kernel, Output};
use pi_core::fp::P;
use std::arch::x86_64::*;
use std::ops::Range;
use zeroize::Zeroize;

/// Positions of a tile.
const POSITIONS: usize = 8;
/// Vectors of a tile.
const VECTORS: usize = 4;
/// Output channels of a block: 24 sums stay in registers.
const ROWS: usize = 6;
/// Taps of a group.
const TAPS: usize = 4;
/// Inputs of so many groups, 18 KiB, stay in the first cache while all blocks read them; all sums
/// fit, see [`is_exact`].
pub(super) const DEPTH: Depth = Depth {
    gathered: 72,
    exact: usize::MAX,
};

/// The weights of one block and group.
type Weights = [[i8; TAPS]; ROWS];

/// The sums of one block and tile, vector by vector.
#[derive(Clone, Copy, Zeroize)]
#[repr(align(64))]
pub(super) struct Sums([[[i32; 16]; VECTORS]; ROWS]);

/// The inputs of one group and tile.
#[derive(Clone, Copy, Zeroize)]
#[repr(align(64))]
pub(super) struct Inputs([[u8; 64]; VECTORS]);

/// True if weights of this many bits fit and no sum can overflow.
pub(super) fn is_exact(shape: &ConvShape, weight_bits: u8) -> bool {
    // |sum| <= taps * 255 * 127 < 2^31.
    weight_bits <= 7 && shape.taps() <= (i32::MAX / (255 * 127)) as usize
}

/// The inner loops, where [`is_exact`] holds.
pub(super) struct Vnni;

impl Kernel for Vnni {
    const POSITIONS: usize = POSITIONS;
    const ROWS: usize = ROWS;
    const TAPS: usize = TAPS;
    const TILES: usize = 1;
    const VECTORS: usize = VECTORS;
    const NO_WEIGHTS: Weights = [[0; TAPS]; ROWS];
    const NO_INPUTS: Inputs = Inputs([[0; 64]; VECTORS]);
    const NO_SUMS: Sums = Sums([[[0; 16]; VECTORS]; ROWS]);

    type Weights = Weights;
    type Inputs = Inputs;
    type Sums = Sums;

    fn set(block: &mut [Weights], group: usize, row: usize, tap: usize, weight: i16) {
        block[group][row][tap] = i8::try_from(weight).expect("weights have at most seven bits");
    }

    /// Its bytes as they lie in memory.
    #[inline(always)]
    fn limbs(x: u64) -> u64 {
        x
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn gather(copied: &[u64], taps: &[u32], positions: &[u32], out: &mut [Inputs]) {
        // SAFETY: the caller promises the same.
        unsafe { gather(copied, taps, positions, out) }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn multiply(
        weights: &[Weights],
        inputs: &[Inputs],
        _exact: usize,
        sums: &mut Sums,
        fresh: bool,
    ) {
        if fresh {
            *sums = Self::NO_SUMS;
        }
        multiply(weights, inputs, sums)
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn add_sums(sums: &Sums, output: &Output, rows: Range<usize>, at: usize, count: usize) {
        let mask = (0xffu32 >> (POSITIONS - count)) as __mmask8;
        for (row, sums) in rows.zip(&sums.0) {
            let values = recombine(sums);
            // SAFETY: as promised by the caller, and the mask has `count` elements.
            unsafe {
                let to = output.elements(row, at, count).as_mut_ptr();
                let old = _mm512_maskz_loadu_epi64(mask, to.cast());
                let new = subtract_once(_mm512_add_epi64(old, values));
                _mm512_mask_storeu_epi64(to.cast(), mask, new);
            }
        }
    }
}

/// Interleaves the bytes of four taps at eight positions.
///
/// # Safety
/// The sums of each tap and each position are indices of `copied`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn gather(copied: &[u64], taps: &[u32], positions: &[u32], out: &mut [Inputs]) {
    let first = positions[0];
    let run = |p: &[u32]| p.iter().zip(p[0]..).all(|(&p, expected)| p == expected);
    let base = copied.as_ptr();
    let place = |tap: u32, position: u32| {
        debug_assert!(((tap + position) as usize) < copied.len());
        // SAFETY: an index of `copied`.
        unsafe { base.add(tap as usize + position as usize) }
    };
    if run(positions) {
        // SAFETY: eight neighbours, of which the last is an index too.
        interleave(taps, out, |tap| unsafe {
            _mm512_loadu_si512(place(tap, first).cast())
        });
    } else if run(&positions[..4]) && run(&positions[4..]) {
        let second = positions[4];
        // SAFETY: twice four neighbours.
        interleave(taps, out, |tap| unsafe {
            let low = _mm256_loadu_si256(place(tap, first).cast());
            let high = _mm256_loadu_si256(place(tap, second).cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        });
    } else {
        // SAFETY: eight indices of four bytes.
        let indices = unsafe { _mm256_loadu_si256(positions.as_ptr().cast()) };
        // SAFETY: eight indices of `copied`, of eight bytes each.
        interleave(taps, out, |tap| unsafe {
            _mm512_i32gather_epi64::<8>(indices, place(tap, 0).cast())
        });
    }
}

/// Interleaves what `load` returns for each tap.
#[allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of registers"
)]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(taps: &[u32], out: &mut [Inputs], load: impl Fn(u32) -> __m512i) {
    for (taps, out) in taps.chunks_exact(TAPS).zip(out) {
        let [a, b, c, d] = [load(taps[0]), load(taps[1]), load(taps[2]), load(taps[3])];
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let even = [_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd)];
        let (ab, cd) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        let odd = [_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd)];
        let vectors = [even[0], even[1], odd[0], odd[1]];
        for v in 0..VECTORS {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(out.0[v].as_mut_ptr().cast(), vectors[v]) };
        }
    }
}

/// Adds the products of a block's weights and the inputs.
#[allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of registers"
)]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply(weights: &[Weights], inputs: &[Inputs], sums: &mut Sums) {
    // Loops instead of `array::from_fn`: a closure is not inlined into a function without these
    // instructions.
    let mut total = [[_mm512_setzero_si512(); VECTORS]; ROWS];
    for r in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: 64 bytes.
            total[r][v] = unsafe { _mm512_loadu_si512(sums.0[r][v].as_ptr().cast()) };
        }
    }
    for (weights, inputs) in weights.iter().zip(inputs) {
        let mut vectors = [_mm512_setzero_si512(); VECTORS];
        for v in 0..VECTORS {
            // SAFETY: 64 bytes.
            vectors[v] = unsafe { _mm512_loadu_si512(inputs.0[v].as_ptr().cast()) };
        }
        for r in 0..ROWS {
            let [a, b, c, d] = weights[r];
            let taps = i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
            let taps = _mm512_set1_epi32(taps);
            for v in 0..VECTORS {
                total[r][v] = _mm512_dpbusd_epi32(total[r][v], vectors[v], taps);
            }
        }
    }
    for r in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(sums.0[r][v].as_mut_ptr().cast(), total[r][v]) };
        }
    }
}

/// The values of eight positions from the sums of their limbs.
#[inline]
#[target_feature(enable = "avx512f")]
fn recombine(sums: &[[i32; 16]; VECTORS]) -> __m512i {
    // Four limbs, each below 2^31: the value is below 2^55 + 2^47 + ... < 2^56.
    let scale = |low, high| _mm512_set_epi64(high, low, high, low, high, low, high, low);
    let (even_scale, odd_scale) = (scale(1, 1 << 16), scale(1 << 8, 1 << 24));
    let halves = |vector: &[i32; 16]| {
        // SAFETY: 64 bytes.
        let limbs = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
        let even = _mm512_mul_epi32(limbs, even_scale);
        let odd = _mm512_mul_epi32(_mm512_srli_epi64::<32>(limbs), odd_scale);
        _mm512_add_epi64(even, odd)
    };
    let join = |even: &[i32; 16], odd: &[i32; 16]| {
        let (even, odd) = (halves(even), halves(odd));
        _mm512_add_epi64(
            _mm512_unpacklo_epi64(even, odd),
            _mm512_unpackhi_epi64(even, odd),
        )
    };
    let (low, high) = (join(&sums[0], &sums[2]), join(&sums[1], &sums[3]));
    // 2^32 high = 2^60 h + 2^32 l = (2^18 - 1) h + 2^32 l mod p, with |h| < 2^28 and 0 <= l <
    // 2^28: the total lies above -2^57 and below 2^60 + 2^57.
    let h = _mm512_srai_epi64::<28>(high);
    let l = _mm512_and_si512(high, _mm512_set1_epi64((1 << 28) - 1));
    let folded = _mm512_sub_epi64(_mm512_slli_epi64::<18>(h), h);
    let total = _mm512_add_epi64(_mm512_add_epi64(low, folded), _mm512_slli_epi64::<32>(l));
    let negative = _mm512_srai_epi64::<63>(total);
    let modulus = _mm512_set1_epi64(P as i64);
    subtract_once(_mm512_add_epi64(total, _mm512_and_si512(negative, modulus)))
}

/// `x` modulo `p`, lane by lane, for `x < 2 p`.
#[inline]
#[target_feature(enable = "avx512f")]
fn subtract_once(x: __m512i) -> __m512i {
    // The difference wraps to a large number where it is negative.
    _mm512_min_epu64(x, _mm512_sub_epi64(x, _mm512_set1_epi64(P as i64)))
}
