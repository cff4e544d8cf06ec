//! Sums of products with AVX-512F and IFMA: four instructions per term and eight coefficients.

use super::{InterleavedRow, Term};
use crate::Modulus46;
use std::arch::x86_64::*;
use std::ops::Range;

/// Vectors of eight coefficients that are summed side by side: enough to hide the latency of
/// the multiplier, few enough for the sixteen sums to stay in registers.
const LANES: usize = 4;

/// The constants that reduce a sum.
struct Reduction {
    modulus: __m512i,
    fold_52: __m512i,
    fold_46: __m512i,
    low_52: __m512i,
    low_46: __m512i,
}

impl Reduction {
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn new(m: &Modulus46) -> Self {
        let c = m.fold();
        Self {
            modulus: _mm512_set1_epi64(m.value() as i64),
            // 2^52 = 64 c and 2^46 = c modulo q.
            fold_52: _mm512_set1_epi64((64 * c) as i64),
            fold_46: _mm512_set1_epi64(c as i64),
            low_52: _mm512_set1_epi64((1 << 52) - 1),
            low_46: _mm512_set1_epi64((1 << 46) - 1),
        }
    }

    /// `low + 2^52 high` modulo q, for `low < 2^63` and `high < 2^50`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn reduce(&self, low: __m512i, high: __m512i) -> __m512i {
        // high < 2^50 + 2^11 after the carry, so that its product with 64 c < 2^26 has an upper
        // part below 2^25, whose own product with 64 c is below 2^51.
        let carried = _mm512_add_epi64(high, _mm512_srli_epi64::<52>(low));
        let mut t = _mm512_and_si512(low, self.low_52);
        t = _mm512_madd52lo_epu64(t, carried, self.fold_52);
        let upper = _mm512_madd52hi_epu64(_mm512_setzero_si512(), carried, self.fold_52);
        t = _mm512_madd52lo_epu64(t, upper, self.fold_52);
        // t < 2^52 + 2^52 + 2^51 < 2^54; folding at 2^46 leaves below 2^46 + 2^28 < 2 q.
        let over = _mm512_srli_epi64::<46>(t);
        t = _mm512_madd52lo_epu64(_mm512_and_si512(t, self.low_46), over, self.fold_46);
        _mm512_min_epu64(t, _mm512_sub_epi64(t, self.modulus))
    }
}

/// See [`super::dot_matrix`].
///
/// # Safety
/// AVX-512F and IFMA are present; the factors, outputs and rows have one length, a multiple of
/// eight, the rows at least `terms.end` pairs, and the slices the shapes of
/// [`super::dot_matrix`].
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) unsafe fn dot_matrix(
    m: &Modulus46,
    terms: Range<usize>,
    rows: &[&InterleavedRow],
    factors: &[&[u64]],
    out: &mut [[&mut [u64]; 2]],
) {
    let reduction = Reduction::new(m);
    let (first, terms) = (terms.start, terms.len());
    let outputs = factors.len() / terms;
    let n = factors.first().map_or(0, |factor| factor.len());
    for at in (0..n).step_by(8) {
        let mut row = 0;
        while row < rows.len() {
            let height = match rows.len() - row {
                1 => 1,
                3 => 3,
                _ => 2,
            };
            let mut output = 0;
            while output < outputs {
                let width = match (height, outputs - output) {
                    (_, 1) => 1,
                    (1, 4..) => 4,
                    _ => 2,
                };
                let tile = Tile {
                    first,
                    terms,
                    outputs,
                    row,
                    output,
                    at,
                    // The next coefficients of these factors will be wanted soon.
                    ahead: if row == 0 && at + 8 * AHEAD < n {
                        8 * AHEAD
                    } else {
                        0
                    },
                };
                // SAFETY: the tile is within the matrix, the rest is the caller's promise.
                unsafe {
                    match (height, width) {
                        (1, 1) => tile.multiply::<1, 1>(&reduction, rows, factors, out),
                        (1, 2) => tile.multiply::<1, 2>(&reduction, rows, factors, out),
                        (1, _) => tile.multiply::<1, 4>(&reduction, rows, factors, out),
                        (2, 1) => tile.multiply::<2, 1>(&reduction, rows, factors, out),
                        (2, _) => tile.multiply::<2, 2>(&reduction, rows, factors, out),
                        (_, 1) => tile.multiply::<3, 1>(&reduction, rows, factors, out),
                        (_, _) => tile.multiply::<3, 2>(&reduction, rows, factors, out),
                    }
                }
                output += width;
            }
            row += height;
        }
    }
}

/// Vectors that factors are fetched ahead.
const AHEAD: usize = 2;

/// A part of the matrix product: some rows, some outputs, eight coefficients.
struct Tile {
    first: usize,
    terms: usize,
    outputs: usize,
    row: usize,
    output: usize,
    at: usize,
    ahead: usize,
}

impl Tile {
    /// # Safety
    /// As for [`dot_matrix`]; `row + R` and `output + P` are within the matrix, and `at + 8`
    /// and `at + ahead` within the length.
    #[allow(
        clippy::needless_range_loop,
        reason = "one index runs over several arrays of registers"
    )]
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    unsafe fn multiply<const R: usize, const P: usize>(
        &self,
        reduction: &Reduction,
        rows: &[&InterleavedRow],
        factors: &[&[u64]],
        out: &mut [[&mut [u64]; 2]],
    ) {
        let zero = _mm512_setzero_si512();
        let (terms, at) = (self.terms, self.at);
        // Loops: `array::from_fn` is not inlined into a function with these instructions.
        let mut words = [std::ptr::null(); R];
        for r in 0..R {
            let row = rows[self.row + r];
            words[r] = row.words[16 * (at / 8 * row.terms + self.first)..][..16 * terms].as_ptr();
        }
        let mut columns: [&[&[u64]]; P] = [&[]; P];
        for p in 0..P {
            columns[p] = &factors[(self.output + p) * terms..][..terms];
        }
        let mut low = [[[zero; 2]; P]; R];
        let mut high = [[[zero; 2]; P]; R];
        for t in 0..terms {
            // SAFETY: each column has `terms` factors, each at least at + 8 words; the rows
            // were found to have 16 words for each term.
            unsafe {
                let mut factor = [zero; P];
                for p in 0..P {
                    let x = columns[p].get_unchecked(t).as_ptr().add(at);
                    _mm_prefetch::<_MM_HINT_T0>(x.add(self.ahead).cast());
                    factor[p] = _mm512_loadu_si512(x.cast());
                }
                for r in 0..R {
                    for h in 0..2 {
                        let x = _mm512_loadu_si512(words[r].add(16 * t + 8 * h).cast());
                        for p in 0..P {
                            // Bounds as in `dot_pair`.
                            low[r][p][h] = _mm512_madd52lo_epu64(low[r][p][h], x, factor[p]);
                            high[r][p][h] = _mm512_madd52hi_epu64(high[r][p][h], x, factor[p]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                for h in 0..2 {
                    let t = reduction.reduce(low[r][p][h], high[r][p][h]);
                    let out = &mut out[(self.row + r) * self.outputs + self.output + p][h];
                    // SAFETY: at + 8 <= n, the length of the output.
                    unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(at).cast(), t) };
                }
            }
        }
    }
}

/// See [`super::dot_pair`].
///
/// # Safety
/// AVX-512F and IFMA are present; every vector of `terms` has the length of both outputs, a
/// multiple of 32.
#[allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of registers"
)]
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) unsafe fn dot_pair(
    m: &Modulus46,
    terms: &[Term<'_>],
    accumulate: bool,
    out: [&mut [u64]; 2],
) {
    let zero = _mm512_setzero_si512();
    let reduction = Reduction::new(m);
    let [out0, out1] = out;
    let outs = [out0.as_mut_ptr(), out1.as_mut_ptr()];
    for at in (0..out0.len()).step_by(8 * LANES) {
        let mut low = [[zero; LANES]; 2];
        let mut high = [[zero; LANES]; 2];
        if accumulate {
            for h in 0..2 {
                for l in 0..LANES {
                    // SAFETY: at + 8 l + 8 <= n, the length of the output.
                    low[h][l] = unsafe { _mm512_loadu_si512(outs[h].add(at + 8 * l).cast()) };
                }
            }
        }
        for term in terms {
            for l in 0..LANES {
                let i = at + 8 * l;
                // SAFETY: i + 8 <= n, the length of all three vectors.
                let (factor, a, b) = unsafe {
                    (
                        _mm512_loadu_si512(term.factor.as_ptr().add(i).cast()),
                        _mm512_loadu_si512(term.halves[0].as_ptr().add(i).cast()),
                        _mm512_loadu_si512(term.halves[1].as_ptr().add(i).cast()),
                    )
                };
                // Each addition is below 2^52 and below 2^40: after 1024 terms the sums are
                // below 2^63 and 2^50.
                low[0][l] = _mm512_madd52lo_epu64(low[0][l], a, factor);
                high[0][l] = _mm512_madd52hi_epu64(high[0][l], a, factor);
                low[1][l] = _mm512_madd52lo_epu64(low[1][l], b, factor);
                high[1][l] = _mm512_madd52hi_epu64(high[1][l], b, factor);
            }
        }
        for h in 0..2 {
            for l in 0..LANES {
                let t = reduction.reduce(low[h][l], high[h][l]);
                // SAFETY: as for the load above.
                unsafe { _mm512_storeu_si512(outs[h].add(at + 8 * l).cast(), t) };
            }
        }
    }
}
