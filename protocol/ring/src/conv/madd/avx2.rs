//! The inner loops with AVX2.
//!
//! The lanes of a row are, vector by vector, the limbs of positions 0, 2, 1 and 3: what
//! interleaving the words of two taps gives.

use super::{
    Inputs, LANES, NO_INPUTS, NO_SUMS, NO_WEIGHTS, POSITIONS, ROWS, Sums, TAPS, TILES, Weights,
    limbs,
};
use super::{Madd4, winograd};
use crate::conv::tiles::{Kernel, Output};
use pi_core::fp::P;
use std::arch::x86_64::*;
use std::ops::Range;

/// Sums of a row.
const VECTORS: usize = LANES / 8;

/// The inner loops.
pub(in crate::conv) struct Avx2;

impl Kernel for Avx2 {
    const POSITIONS: usize = POSITIONS;
    const ROWS: usize = ROWS;
    const TAPS: usize = TAPS;
    const TILES: usize = TILES;
    const VECTORS: usize = VECTORS;
    const NO_WEIGHTS: Weights = NO_WEIGHTS;
    const NO_INPUTS: Inputs = NO_INPUTS;
    const NO_SUMS: Sums = NO_SUMS;

    type Weights = Weights;
    type Inputs = Inputs;
    type Sums = Sums;

    fn set(block: &mut [Weights], group: usize, row: usize, tap: usize, weight: i16) {
        block[group][row][tap] = weight;
    }

    #[inline(always)]
    fn limbs(x: u64) -> u64 {
        limbs(x)
    }

    #[target_feature(enable = "avx2")]
    unsafe fn gather(copied: &[u64], taps: &[u32], positions: &[u32], out: &mut [Inputs]) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|p| positions[p]);
        let place = |tap: u32, position: u32| {
            debug_assert!(((tap + position) as usize) < copied.len());
            // SAFETY: the caller promises that it is an index of `copied`.
            unsafe { copied.as_ptr().add(tap as usize + position as usize) }
        };
        if (b, c, d) == (a + 1, a + 2, a + 3) {
            // SAFETY: four neighbours, of which the last is an index too.
            interleave(taps, out, |tap| unsafe {
                _mm256_loadu_si256(place(tap, a).cast())
            });
        } else if (b, d) == (a + 1, c + 1) {
            // SAFETY: twice two neighbours.
            interleave(taps, out, |tap| unsafe {
                _mm256_loadu2_m128i(place(tap, c).cast(), place(tap, a).cast())
            });
        } else {
            // SAFETY: four indices.
            interleave(taps, out, |tap| unsafe {
                let element = |position| *place(tap, position) as i64;
                _mm256_set_epi64x(element(d), element(c), element(b), element(a))
            });
        }
    }

    #[allow(
        clippy::needless_range_loop,
        reason = "one index runs over several arrays of registers"
    )]
    #[target_feature(enable = "avx2")]
    unsafe fn multiply(
        weights: &[Weights],
        inputs: &[Inputs],
        exact: usize,
        sums: &mut Sums,
        mut fresh: bool,
    ) {
        let kept = _mm256_set1_epi32(0xffff);
        let mut total = [[_mm256_setzero_si256(); VECTORS]; ROWS];
        if !fresh {
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    total[r][v] = load(&sums.low[r], v);
                }
            }
        }
        for (weights, inputs) in weights.chunks(exact).zip(inputs.chunks(exact)) {
            for (weights, inputs) in weights.iter().zip(inputs) {
                let [x, y] = [load(&inputs.0, 0), load(&inputs.0, 1)];
                for r in 0..ROWS {
                    let [a, b] = weights[r];
                    let taps = _mm256_set1_epi32(a as u16 as i32 | (b as i32) << 16);
                    total[r][0] = _mm256_add_epi32(total[r][0], _mm256_madd_epi16(x, taps));
                    total[r][1] = _mm256_add_epi32(total[r][1], _mm256_madd_epi16(y, taps));
                }
            }
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    let mut high = _mm256_srai_epi32::<16>(total[r][v]);
                    if !fresh {
                        high = _mm256_add_epi32(load(&sums.high[r], v), high);
                    }
                    store(&mut sums.high[r], v, high);
                    total[r][v] = _mm256_and_si256(total[r][v], kept);
                }
            }
            fresh = false;
        }
        for r in 0..ROWS {
            for v in 0..VECTORS {
                store(&mut sums.low[r], v, total[r][v]);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn add_sums(sums: &Sums, output: &Output, rows: Range<usize>, at: usize, count: usize) {
        for (row, (low, high)) in rows.zip(sums.low.iter().zip(&sums.high)) {
            let values = recombine(low, high);
            // SAFETY: as promised by the caller.
            let elements = unsafe { output.elements(row, at, count) };
            let mut some = [0u64; POSITIONS];
            let whole = count == POSITIONS;
            // SAFETY: four elements each.
            unsafe {
                let from = if whole {
                    elements.as_ptr()
                } else {
                    some[..count].copy_from_slice(elements);
                    some.as_ptr()
                };
                let sum = _mm256_add_epi64(_mm256_loadu_si256(from.cast()), values);
                let new = subtract_once(sum);
                if whole {
                    _mm256_storeu_si256(elements.as_mut_ptr().cast(), new);
                } else {
                    _mm256_storeu_si256(some.as_mut_ptr().cast(), new);
                    elements.copy_from_slice(&some[..count]);
                }
            }
        }
    }
}

impl Madd4 for Avx2 {
    #[target_feature(enable = "avx2")]
    unsafe fn gather_patches(
        copied: &[u64],
        taps: &[u32],
        positions: &[u32],
        out: &mut [winograd::Inputs],
    ) {
        // SAFETY: as promised by the caller.
        unsafe { winograd::gather_patches::<Self>(copied, taps, positions, out) }
    }

    #[inline(always)]
    unsafe fn interleave(a: &[u64; POSITIONS], b: &[u64; POSITIONS]) -> Inputs {
        let mut inputs = NO_INPUTS;
        let (a, b) = (load(a, 0), load(b, 0));
        // SAFETY: twice 32 bytes; the caller promises AVX2.
        unsafe {
            let out: *mut __m256i = inputs.0.as_mut_ptr().cast();
            _mm256_store_si256(out, _mm256_unpacklo_epi16(a, b));
            _mm256_store_si256(out.add(1), _mm256_unpackhi_epi16(a, b));
        }
        inputs
    }

    #[target_feature(enable = "avx2")]
    unsafe fn add_squares(
        sums: &winograd::Sums,
        output: &Output,
        rows: Range<usize>,
        at: usize,
        count: usize,
    ) {
        // SAFETY: as promised by the caller.
        unsafe { winograd::add_squares::<Self>(sums, output, rows, at, count) }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn values(low: &[i32; LANES], high: &[i32; LANES]) -> [u64; POSITIONS] {
        let mut values = [0; POSITIONS];
        let vector = recombine(low, high);
        // SAFETY: four elements.
        unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), vector) };
        values
    }
}

/// Vector `v` of a row.
#[inline(always)]
fn load<T>(row: &[T], v: usize) -> __m256i {
    let row: &[T] = &row[v * 32 / size_of::<T>()..][..32 / size_of::<T>()];
    // SAFETY: 32 bytes.
    unsafe { _mm256_loadu_si256(row.as_ptr().cast()) }
}

/// Sets vector `v` of a row.
#[inline(always)]
fn store(row: &mut [i32; LANES], v: usize, vector: __m256i) {
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(row[8 * v..][..8].as_mut_ptr().cast(), vector) }
}

/// Interleaves the words of what `load` returns for the two taps of each group.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave(taps: &[u32], out: &mut [Inputs], load: impl Fn(u32) -> __m256i) {
    for (taps, out) in taps.chunks_exact(TAPS).zip(out) {
        let [a, b] = [load(taps[0]), load(taps[1])];
        // SAFETY: twice 32 bytes.
        unsafe {
            let out: *mut __m256i = out.0.as_mut_ptr().cast();
            _mm256_store_si256(out, _mm256_unpacklo_epi16(a, b));
            _mm256_store_si256(out.add(1), _mm256_unpackhi_epi16(a, b));
        }
    }
}

/// The values of four positions from the sums of their limbs.
#[inline]
#[target_feature(enable = "avx2")]
fn recombine(low: &[i32; LANES], high: &[i32; LANES]) -> __m256i {
    let pairs = |v: usize| {
        // Limbs 0 + 2^15 * 1 and 2 + 2^15 * 3.
        let (low, high) = (load(low, v), load(high, v));
        let signed = _mm256_add_epi64(
            _mm256_mul_epi32(high, _mm256_set1_epi64x(1)),
            _mm256_mul_epi32(_mm256_srli_epi64::<32>(high), _mm256_set1_epi64x(1 << 15)),
        );
        let even = _mm256_and_si256(low, _mm256_set1_epi64x(0xffff_ffff));
        let odd = _mm256_slli_epi64::<15>(_mm256_srli_epi64::<32>(low));
        _mm256_add_epi64(_mm256_add_epi64(even, odd), _mm256_slli_epi64::<16>(signed))
    };
    let (first, second) = (pairs(0), pairs(1));
    let a = _mm256_unpacklo_epi64(first, second);
    let b = _mm256_unpackhi_epi64(first, second);
    // As in `value`, |a|, |b| < 2^60 + 2^46; adding 2^62 to b lets the shift be unsigned. It
    // leaves 2^30 b = 2^60 (h - 2^32) + 2^30 l = (2^18 - 1) (h - 2^32) + 2^30 l mod p, with
    // |h - 2^32| < 2^31 and 0 <= l < 2^30. With 2 p the total lies above 0 and below 2^62 + 2^51.
    const OFFSET: i64 = 2 * P as i64 - (((1 << 18) - 1) << 32);
    let b = _mm256_add_epi64(b, _mm256_set1_epi64x(1 << 62));
    let l = _mm256_and_si256(b, _mm256_set1_epi64x((1 << 30) - 1));
    let folded = fold(_mm256_srli_epi64::<30>(b));
    let total = _mm256_add_epi64(
        _mm256_add_epi64(a, _mm256_set1_epi64x(OFFSET)),
        _mm256_add_epi64(folded, _mm256_slli_epi64::<30>(l)),
    );
    let rest = _mm256_and_si256(total, _mm256_set1_epi64x((1 << 60) - 1));
    subtract_once(_mm256_add_epi64(rest, fold(_mm256_srli_epi64::<60>(total))))
}

/// `(2^18 - 1) x`, what `2^60 x` is modulo `p`.
#[inline]
#[target_feature(enable = "avx2")]
fn fold(x: __m256i) -> __m256i {
    _mm256_sub_epi64(_mm256_slli_epi64::<18>(x), x)
}

/// `x` modulo `p`, lane by lane, for `x < 2 p`.
#[inline]
#[target_feature(enable = "avx2")]
fn subtract_once(x: __m256i) -> __m256i {
    let reduced = _mm256_sub_epi64(x, _mm256_set1_epi64x(P as i64));
    // The sign of the difference, as a double's, chooses.
    let [x, reduced] = [_mm256_castsi256_pd(x), _mm256_castsi256_pd(reduced)];
    _mm256_castpd_si256(_mm256_blendv_pd(reduced, x, reduced))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::madd::value;
    use pi_core::{Backend, fp};

    #[test]
    fn sums_at_their_bounds_have_their_value_in_vectors() {
        if !Backend::Avx2.is_supported() {
            return;
        }
        let most = (1i64 << 45) - 1;
        let sums = [0, 1, -1, 0xffff, -0x10000, most, -most, most / 3, -most / 7];
        let count = sums.len();
        for i in 0..count.pow(4) {
            let sums = [1, count, count.pow(2), count.pow(3)].map(|n| sums[i / n % count]);
            let mut all = NO_SUMS;
            // Position p has the sums of position 0, rotated by p, in the vectors' order.
            let place = |p: usize, limb: usize| [0, 8, 4, 12][p] + (limb + p) % 4;
            for (p, limb) in (0..POSITIONS).flat_map(|p| [0, 1, 2, 3].map(|limb| (p, limb))) {
                all.low[0][place(p, limb)] = (sums[limb] & 0xffff) as i32;
                all.high[0][place(p, limb)] = (sums[limb] >> 16) as i32;
            }
            let start = [0, 1, fp::P - 1, fp::P / 2];
            for count in 1..=POSITIONS {
                let mut found = start;
                let output = Output::of_row(&mut found);
                // SAFETY: the machine has AVX2, and there are `count` elements.
                unsafe { Avx2::add_sums(&all, &output, 0..1, 0, count) };
                for (p, (&found, &start)) in found.iter().zip(&start).enumerate() {
                    let lanes =
                        |row: &[i32; LANES]| [0, 1, 2, 3].map(|i| row[[0, 8, 4, 12][p] + i]);
                    let added = value(&lanes(&all.low[0]), &lanes(&all.high[0]));
                    let expected = if p < count {
                        fp::add(start, added)
                    } else {
                        start
                    };
                    assert_eq!(found, expected, "position {p} of {count}, {sums:?}");
                }
            }
        }
    }
}
