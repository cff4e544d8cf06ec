//! Sums of products in double precision, for AVX2 with FMA and for NEON: four instructions per term
//! and four coefficients.
//!
//! A product of residues below 2^46 has 92 bits. The upper part of a sum starts at `2^99` and stays
//! below `2^100`, where the last bit of a double counts `2^47`s: `high' = fma(a, w, high)` rounds
//! the product to a multiple of that, the difference to the old sum is what was added, exactly, and
//! `fma(a, w, -(high' - high))` is what was left out, at most `2^46` and exact as well. After
//! [`CHUNK`] terms the lower sum is at most `2^52` and both are reduced.

use super::{InterleavedRow, Term};
use crate::Modulus46;
use crate::doubles::{Doubles, Factor, Field, LANES};
use pi_core::Backend;
use std::ops::Range;

/// Terms that are summed before a reduction: their products add to less than `2^98`.
const CHUNK: usize = 64;

/// Where the upper part of a sum starts.
const START: f64 = (1u128 << 99) as f64;

/// The unit of the upper part.
const UNIT: f64 = (1u64 << 47) as f64;

/// The entry points of one back end; for shapes that [`super`] has checked.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// See [`super::dot_pair`]; lengths are multiples of eight.
    pub(super) pair: unsafe fn(&Modulus46, &[Term<'_>], bool, [&mut [u64]; 2]),
    /// See [`super::dot_matrix`]; the rows hold doubles.
    pub(super) matrix: Matrix,
}

type Matrix =
    unsafe fn(&Modulus46, Range<usize>, &[&InterleavedRow], &[&[u64]], &mut [[&mut [u64]; 2]]);

impl Run {
    /// The functions of a back end, if it computes in double precision.
    pub(super) fn on(backend: Backend) -> Option<Self> {
        match backend {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => Some(avx2::RUN),
            #[cfg(target_arch = "aarch64")]
            Backend::Neon => Some(neon::RUN),
            _ => None,
        }
    }
}

/// Compiles the sums for one kind of vector.
macro_rules! compiled {
    ($module:ident, $vector:ident, $features:literal) => {
        mod $module {
            use super::{InterleavedRow, Modulus46, Range, Run, Term};
            use crate::doubles::$vector;

            pub(super) const RUN: Run = Run {
                pair: dot_pair,
                matrix: dot_matrix,
            };

            /// # Safety
            /// As for [`super::dot_pair`].
            #[target_feature(enable = $features)]
            unsafe fn dot_pair(
                m: &Modulus46,
                terms: &[Term<'_>],
                accumulate: bool,
                out: [&mut [u64]; 2],
            ) {
                // SAFETY: the caller's promise.
                unsafe { super::dot_pair::<$vector>(m, terms, accumulate, out) }
            }

            /// # Safety
            /// As for [`super::dot_matrix`].
            #[target_feature(enable = $features)]
            unsafe fn dot_matrix(
                m: &Modulus46,
                terms: Range<usize>,
                rows: &[&InterleavedRow],
                factors: &[&[u64]],
                out: &mut [[&mut [u64]; 2]],
            ) {
                // SAFETY: the caller's promise.
                unsafe { super::dot_matrix::<$vector>(m, terms, rows, factors, out) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
compiled!(avx2, Avx2, "avx2,fma");
#[cfg(target_arch = "aarch64")]
compiled!(neon, Neon, "neon");

/// A sum of up to [`CHUNK`] products.
#[derive(Clone, Copy)]
struct Sum<V> {
    high: V,
    low: V,
}

impl<V: Doubles> Sum<V> {
    /// # Safety
    /// The instructions of `V` are present, as for all functions here.
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise, here and in all functions of this block.
        unsafe {
            Sum {
                high: V::splat(START),
                low: V::splat(0.0),
            }
        }
    }

    /// Adds `x w`, of integers from 0 to below 2^46.
    #[inline(always)]
    unsafe fn add(&mut self, x: V, w: V) {
        // SAFETY: as above.
        unsafe {
            let high = x.mul_add(w, self.high);
            let added = high.sub(self.high);
            self.low = self.low.add(x.mul_sub(w, added));
            self.high = high;
        }
    }
}

/// The constants that reduce a sum.
#[derive(Clone, Copy)]
struct Reduction<V> {
    field: Field<V>,
    start: V,
    per_unit: V,
    unit: V,
    unit_quotient: V,
}

impl<V: Doubles> Reduction<V> {
    /// # Safety
    /// The instructions of `V` are present, as for all functions here.
    #[inline(always)]
    unsafe fn new(m: &Modulus46) -> Self {
        let unit = Factor::new(m, m.reduce_u64(1 << 47));
        // SAFETY: the caller's promise, here and in all functions of this block.
        unsafe {
            Reduction {
                field: Field::new(m),
                start: V::splat(START),
                per_unit: V::splat(1.0 / UNIT),
                unit: V::splat(unit.value),
                unit_quotient: V::splat(unit.quotient),
            }
        }
    }

    /// A sum, at most `0.51 q` in size.
    #[inline(always)]
    unsafe fn reduce(&self, sum: Sum<V>) -> V {
        // SAFETY: as above.
        unsafe {
            // Below 2^51 units, and a unit is below 2^21 modulo q.
            let units = sum.high.sub(self.start).mul(self.per_unit);
            let high = self.field.scale(units, self.unit, self.unit_quotient);
            self.field.reduce(high.add(sum.low))
        }
    }
}

/// See [`super::dot_matrix`].
///
/// # Safety
/// The instructions of `V` are present; the rows hold doubles; the factors, outputs and rows have
/// one length, a multiple of eight, the rows at least `terms.end` pairs, and the slices the shapes
/// of [`super::dot_matrix`].
#[inline(always)]
unsafe fn dot_matrix<V: Doubles>(
    m: &Modulus46,
    terms: Range<usize>,
    rows: &[&InterleavedRow],
    factors: &[&[u64]],
    out: &mut [[&mut [u64]; 2]],
) {
    // SAFETY: the caller's promise; tiles are within the matrix, and `at + 8` within the length.
    unsafe {
        let reduction = Reduction::<V>::new(m);
        let outputs = factors.len() / terms.len();
        let n = factors[0].len();
        for at in (0..n).step_by(8) {
            let mut row = 0;
            while row < rows.len() {
                // Six sums, two registers each, are what sixteen registers hold.
                let (height, width) = match rows.len() - row {
                    1 => (1, 3),
                    2 | 4 => (2, 1),
                    _ => (3, 1),
                };
                let mut output = 0;
                while output < outputs {
                    let width = width.min(outputs - output);
                    let tile = Tile {
                        terms: terms.clone(),
                        outputs,
                        row,
                        output,
                        at,
                        // The next coefficients of these factors will be wanted soon.
                        ahead: if row == 0 && at + AHEAD < n { AHEAD } else { 0 },
                    };
                    for half in [0, LANES] {
                        match (height, width) {
                            (1, 1) => {
                                tile.multiply::<V, 1, 1>(&reduction, half, rows, factors, out)
                            }
                            (1, 2) => {
                                tile.multiply::<V, 1, 2>(&reduction, half, rows, factors, out)
                            }
                            (1, _) => {
                                tile.multiply::<V, 1, 3>(&reduction, half, rows, factors, out)
                            }
                            (2, _) => {
                                tile.multiply::<V, 2, 1>(&reduction, half, rows, factors, out)
                            }
                            _ => tile.multiply::<V, 3, 1>(&reduction, half, rows, factors, out),
                        }
                    }
                    output += width;
                }
                row += height;
            }
        }
    }
}

/// Coefficients that factors are fetched ahead.
const AHEAD: usize = 16;

/// A part of the matrix product: some rows, some outputs, eight coefficients.
struct Tile {
    terms: Range<usize>,
    outputs: usize,
    row: usize,
    output: usize,
    at: usize,
    ahead: usize,
}

impl Tile {
    /// Four coefficients of the tile, the first or the second `half`.
    ///
    /// # Safety
    /// As for [`dot_matrix`]; `row + R` and `output + P` are within the matrix, `at + 8` and `at +
    /// ahead` within the length, and `half` is 0 or 4.
    #[allow(
        clippy::needless_range_loop,
        reason = "one index runs over several arrays of registers"
    )]
    #[inline(always)]
    unsafe fn multiply<V: Doubles, const R: usize, const P: usize>(
        &self,
        reduction: &Reduction<V>,
        half: usize,
        rows: &[&InterleavedRow],
        factors: &[&[u64]],
        out: &mut [[&mut [u64]; 2]],
    ) {
        let (count, at) = (self.terms.len(), self.at);
        // SAFETY: each output has `count` factors of at least at + 8 words, and each row 16 words
        // for each term; the rest is the caller's promise.
        unsafe {
            let mut pairs = [std::ptr::null::<f64>(); R];
            for r in 0..R {
                let row = rows[self.row + r];
                let first = 16 * (at / 8 * row.terms + self.terms.start);
                pairs[r] = row.words[first..][..16 * count]
                    .as_ptr()
                    .cast::<f64>()
                    .add(half);
            }
            let mut columns = [&factors[..0]; P];
            for p in 0..P {
                columns[p] = &factors[(self.output + p) * count..][..count];
            }
            let mut totals = [[[V::splat(0.0); 2]; P]; R];
            let mut first = 0;
            while first < count {
                let end = count.min(first + CHUNK);
                let mut sums = [[[Sum::<V>::zero(); 2]; P]; R];
                for t in first..end {
                    let mut x = [[V::splat(0.0); 2]; R];
                    for r in 0..R {
                        for h in 0..2 {
                            x[r][h] = V::load(pairs[r].add(16 * t + 8 * h));
                        }
                    }
                    for p in 0..P {
                        let factor = columns[p].get_unchecked(t).as_ptr().add(at);
                        if half == 0 {
                            V::prefetch(factor.add(self.ahead));
                        }
                        let w = V::from_words(factor.add(half));
                        for r in 0..R {
                            for h in 0..2 {
                                sums[r][p][h].add(x[r][h], w);
                            }
                        }
                    }
                }
                for r in 0..R {
                    for p in 0..P {
                        for h in 0..2 {
                            // At most 16 chunks.
                            let sum = reduction.reduce(sums[r][p][h]);
                            totals[r][p][h] = totals[r][p][h].add(sum);
                        }
                    }
                }
                first = end;
            }
            for r in 0..R {
                for p in 0..P {
                    for h in 0..2 {
                        let at_out = (self.row + r) * self.outputs + self.output + p;
                        let to = out[at_out][h].as_mut_ptr().add(at + half);
                        if count <= CHUNK {
                            reduction.field.store_reduced(totals[r][p][h], to);
                        } else {
                            reduction.field.store(totals[r][p][h], to);
                        }
                    }
                }
            }
        }
    }
}

/// See [`super::dot_pair`].
///
/// # Safety
/// The instructions of `V` are present; every vector of `terms` has the length of both outputs, a
/// multiple of eight.
#[allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of registers"
)]
#[inline(always)]
unsafe fn dot_pair<V: Doubles>(
    m: &Modulus46,
    terms: &[Term<'_>],
    accumulate: bool,
    out: [&mut [u64]; 2],
) {
    let n = out[0].len();
    let outs = out.map(<[u64]>::as_mut_ptr);
    // SAFETY: at + 8 <= n, the length of every vector.
    unsafe {
        let reduction = Reduction::<V>::new(m);
        for at in (0..n).step_by(2 * LANES) {
            let mut totals = [[V::splat(0.0); 2]; 2];
            if accumulate {
                for h in 0..2 {
                    for l in 0..2 {
                        totals[h][l] = V::from_words(outs[h].add(at + LANES * l));
                    }
                }
            }
            for terms in terms.chunks(CHUNK) {
                let mut sums = [[Sum::<V>::zero(); 2]; 2];
                for term in terms {
                    let halves = [term.halves[0].as_ptr(), term.halves[1].as_ptr()];
                    for l in 0..2 {
                        let i = at + LANES * l;
                        let w = V::from_words(term.factor.as_ptr().add(i));
                        for h in 0..2 {
                            sums[h][l].add(V::from_words(halves[h].add(i)), w);
                        }
                    }
                }
                for h in 0..2 {
                    for l in 0..2 {
                        totals[h][l] = totals[h][l].add(reduction.reduce(sums[h][l]));
                    }
                }
            }
            for h in 0..2 {
                for l in 0..2 {
                    reduction
                        .field
                        .store(totals[h][l], outs[h].add(at + LANES * l));
                }
            }
        }
    }
}
