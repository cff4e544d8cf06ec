//! Sums of element-wise products modulo primes just below 2^46: the inner loop of
//! plaintext-by-ciphertext products and of key switches.
//!
//! A term is a pair of vectors (the two halves of a ciphertext, or of a key) times one vector (a
//! weight, or a digit). The sum is kept unreduced, low 52 and high bits of the products apart, and
//! reduced once per output: on AVX-512 IFMA that is four instructions a term and eight
//! coefficients.

use crate::Modulus;

/// Two vectors that are multiplied by the same third.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// The two vectors, summed into the two outputs.
    pub halves: [&'a [u64]; 2],
    /// Their common factor.
    pub factor: &'a [u64],
}

/// The most terms of one sum: the unreduced halves of the sum stay below 2^63.
pub const MAX_TERMS: usize = 1024;

/// Sets `out[h]` to the sum over terms of `halves[h] * factor`, plus the old `out[h]` if
/// `accumulate`.
///
/// # Preconditions
/// `2^46 - 2^20 < q < 2^46`; all vectors have the length of the outputs, a multiple of 32 or any
/// length on the scalar path; entries are in `0..q`; at most [`MAX_TERMS`] terms.
/// # Postconditions
/// Entries in `0..q`.
/// # Panics
/// If the lengths, the modulus or the number of terms break the preconditions.
pub fn dot_pair(m: &Modulus, terms: &[Term<'_>], accumulate: bool, out: [&mut [u64]; 2]) {
    let n = out[0].len();
    assert!(
        m.value() < 1 << 46 && (1 << 46) - m.value() < 1 << 20,
        "modulus {} is not just below 2^46",
        m.value()
    );
    assert!(terms.len() <= MAX_TERMS, "{} terms", terms.len());
    assert!(out[1].len() == n);
    assert!(
        terms
            .iter()
            .all(|t| t.halves[0].len() == n && t.halves[1].len() == n && t.factor.len() == n)
    );
    #[cfg(target_arch = "x86_64")]
    if n.is_multiple_of(32)
        && !crate::force_scalar()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512ifma")
    {
        // SAFETY: the features are present, and every vector has length n, a multiple of 32.
        unsafe { ifma::dot_pair(m.value(), terms, accumulate, out) };
        return;
    }
    scalar_dot_pair(m, terms, accumulate, out);
}

/// A row of pairs of vectors as [`dot_matrix`] reads them: word `(8 v + i) mod n` of half `h` of
/// pair `t` is word `16 (v terms + t) + 8 h + i`.
///
/// Whatever is multiplied at once is side by side. Vectors of 64 KB each would share a few sets of
/// the caches.
#[derive(Clone, Debug)]
pub struct InterleavedRow {
    terms: usize,
    words: Vec<u64>,
}

impl InterleavedRow {
    /// The row of these pairs.
    ///
    /// # Panics
    /// If there is no pair, or lengths differ or are no multiple of eight.
    pub fn new(pairs: &[[&[u64]; 2]]) -> Self {
        let terms = pairs.len();
        let n = pairs.first().expect("a row has a pair")[0].len();
        assert!(n.is_multiple_of(8) && pairs.iter().flatten().all(|x| x.len() == n));
        let mut words = vec![0; 2 * n * terms];
        // A few cache lines of each vector in turn, so that reading and writing both have some
        // locality.
        const VECTORS: usize = 8;
        for v in (0..n / 8).step_by(VECTORS) {
            for (t, pair) in pairs.iter().enumerate() {
                for (h, half) in pair.iter().enumerate() {
                    let vectors = half[8 * v..].chunks_exact(8).take(VECTORS);
                    for (i, vector) in vectors.enumerate() {
                        let at = 16 * ((v + i) * terms + t) + 8 * h;
                        words[at..at + 8].copy_from_slice(vector);
                    }
                }
            }
        }
        Self { terms, words }
    }

    /// The number of pairs.
    pub fn terms(&self) -> usize {
        self.terms
    }

    fn length(&self) -> usize {
        self.words.len() / (2 * self.terms)
    }
}

/// Sums of products for several rows and several outputs at once: `out[row][output][h]` becomes the
/// sum over `t` of half `h` of pair `first + t` of the row times `factors[output][t]`.
///
/// A matrix product for each coefficient: two or three rows by two outputs, or one by four, with
/// all sums in registers. Eight coefficients of a few rows fit the first-level cache, and serve all
/// outputs from there.
///
/// # Shapes
/// `factors`: `outputs * terms`, output after output; `out`: `rows * outputs`, row after row.
/// # Preconditions
/// As for [`dot_pair`]; lengths are multiples of eight.
/// # Postconditions
/// Entries in `0..q`.
/// # Panics
/// If the shapes, the modulus or the number of terms break the preconditions.
pub fn dot_matrix(
    m: &Modulus,
    first: usize,
    terms: usize,
    rows: &[&InterleavedRow],
    factors: &[&[u64]],
    out: &mut [[&mut [u64]; 2]],
) {
    assert!(
        m.value() < 1 << 46 && (1 << 46) - m.value() < 1 << 20,
        "modulus {} is not just below 2^46",
        m.value()
    );
    assert!((1..=MAX_TERMS).contains(&terms), "{terms} terms");
    let outputs = factors.len() / terms;
    assert!(factors.len() == outputs * terms && out.len() == rows.len() * outputs);
    let n = factors.first().map_or(0, |factor| factor.len());
    assert!(n.is_multiple_of(8) && factors.iter().all(|x| x.len() == n));
    assert!(
        rows.iter()
            .all(|row| row.length() == n && first + terms <= row.terms)
    );
    assert!(out.iter().flatten().all(|x| x.len() == n));
    #[cfg(target_arch = "x86_64")]
    if !crate::force_scalar()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512ifma")
    {
        // SAFETY: the features are present, and the shapes were just checked.
        unsafe { ifma::dot_matrix(m.value(), first, terms, n, rows, factors, out) };
        return;
    }
    scalar_dot_matrix(m, first, terms, rows, factors, out);
}

/// The definition of [`dot_matrix`].
fn scalar_dot_matrix(
    m: &Modulus,
    first: usize,
    terms: usize,
    rows: &[&InterleavedRow],
    factors: &[&[u64]],
    out: &mut [[&mut [u64]; 2]],
) {
    let outputs = factors.len() / terms;
    for (at, out) in out.iter_mut().enumerate() {
        let (row, factors) = (
            rows[at / outputs],
            &factors[at % outputs * terms..][..terms],
        );
        for (h, out) in out.iter_mut().enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let words = &row.words[16 * (i / 8 * row.terms + first) + 8 * h + i % 8..];
                // As in scalar_dot_pair.
                let sum = factors.iter().enumerate().fold(0, |sum, (t, factor)| {
                    sum + words[16 * t] as u128 * factor[i] as u128
                });
                *out = m.reduce_near_2_46(sum);
            }
        }
    }
}

/// The definition of [`dot_pair`].
fn scalar_dot_pair(m: &Modulus, terms: &[Term<'_>], accumulate: bool, out: [&mut [u64]; 2]) {
    for (h, out) in out.into_iter().enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            let start = if accumulate { *out as u128 } else { 0 };
            // Each product is below 2^92, so that 1024 of them and the start stay below 2^103.
            let sum = terms.iter().fold(start, |sum, t| {
                sum + t.halves[h][i] as u128 * t.factor[i] as u128
            });
            *out = m.reduce_near_2_46(sum);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod ifma {
    use super::{InterleavedRow, Term};
    use std::arch::x86_64::*;

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
        fn new(q: u64) -> Self {
            let c = (1u64 << 46) - q;
            Self {
                modulus: _mm512_set1_epi64(q as i64),
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
    /// AVX-512F and IFMA are present; the factors, outputs and rows have length `n`, a multiple of
    /// eight, the rows at least `first + terms` pairs, and the slices the shapes of
    /// [`super::dot_matrix`].
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) unsafe fn dot_matrix(
        q: u64,
        first: usize,
        terms: usize,
        n: usize,
        rows: &[&InterleavedRow],
        factors: &[&[u64]],
        out: &mut [[&mut [u64]; 2]],
    ) {
        let reduction = Reduction::new(q);
        let outputs = factors.len() / terms;
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
            let rows: [*const u64; R] = std::array::from_fn(|r| {
                let row = rows[self.row + r];
                row.words[16 * (at / 8 * row.terms + self.first)..][..16 * terms].as_ptr()
            });
            let columns: [&[&[u64]]; P] =
                std::array::from_fn(|p| &factors[(self.output + p) * terms..][..terms]);
            let mut low = [[[zero; 2]; P]; R];
            let mut high = [[[zero; 2]; P]; R];
            for t in 0..terms {
                // SAFETY: each column has `terms` factors, each at least at + 8 words; the rows
                // were found to have 16 words for each term.
                unsafe {
                    let factor: [__m512i; P] = std::array::from_fn(|p| {
                        let x = columns[p].get_unchecked(t).as_ptr().add(at);
                        _mm_prefetch::<_MM_HINT_T0>(x.add(self.ahead).cast());
                        _mm512_loadu_si512(x.cast())
                    });
                    for r in 0..R {
                        for h in 0..2 {
                            let x = _mm512_loadu_si512(rows[r].add(16 * t + 8 * h).cast());
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
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) unsafe fn dot_pair(
        q: u64,
        terms: &[Term<'_>],
        accumulate: bool,
        out: [&mut [u64]; 2],
    ) {
        let zero = _mm512_setzero_si512();
        let reduction = Reduction::new(q);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::RLWE_PRIMES;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    #[test]
    fn matrix_products_equal_sums_one_by_one() {
        let mut rng = ChaCha20Rng::seed_from_u64(10);
        let m = RLWE_PRIMES[2].modulus;
        let n = 320;
        let mut vectors = |count: usize| -> Vec<Vec<u64>> {
            let vector = |_| (0..n).map(|_| m.reduce_u64(rng.next_u64())).collect();
            (0..count).map(vector).collect()
        };
        for (rows, outputs, terms) in [
            (1, 1, 1),
            (1, 7, 3),
            (2, 3, 5),
            (3, 4, 2),
            (4, 2, 600),
            (5, 5, 9),
        ] {
            let (a, b) = (vectors(rows * terms), vectors(rows * terms));
            let w = vectors(outputs * terms);
            let halves: Vec<[&[u64]; 2]> =
                a.iter().zip(&b).map(|(a, b)| [&a[..], &b[..]]).collect();
            let factors: Vec<&[u64]> = w.iter().map(|w| &w[..]).collect();
            let (mut x, mut y) = (vectors(rows * outputs), vectors(rows * outputs));
            let mut out: Vec<[&mut [u64]; 2]> = x
                .iter_mut()
                .zip(&mut y)
                .map(|(x, y)| [&mut x[..], &mut y[..]])
                .collect();
            let interleaved: Vec<_> = halves.chunks(terms).map(InterleavedRow::new).collect();
            let interleaved: Vec<_> = interleaved.iter().collect();
            // All terms but the first, then all.
            for (first, scalar) in [(1, false), (1, true), (0, true), (0, false)] {
                let count = terms - first;
                if count == 0 {
                    continue;
                }
                let factors: Vec<_> = factors
                    .chunks(terms)
                    .flat_map(|f| &f[first..])
                    .copied()
                    .collect();
                if scalar {
                    scalar_dot_matrix(&m, first, count, &interleaved, &factors, &mut out);
                } else {
                    dot_matrix(&m, first, count, &interleaved, &factors, &mut out);
                }
                for (at, out) in out.iter().enumerate() {
                    let (row, output) = (at / outputs, at % outputs);
                    let sum: Vec<Term<'_>> = (0..count)
                        .map(|t| Term {
                            halves: halves[row * terms + first + t],
                            factor: factors[output * count + t],
                        })
                        .collect();
                    let mut expected = [vec![0; n], vec![0; n]];
                    let [c0, c1] = &mut expected;
                    scalar_dot_pair(&m, &sum, false, [c0, c1]);
                    assert!(
                        out[0] == expected[0] && out[1] == expected[1],
                        "{rows} {outputs} {first} {scalar}"
                    );
                }
            }
        }
    }

    #[test]
    fn vector_and_scalar_sums_equal_wide_integer_sums() {
        let mut rng = ChaCha20Rng::seed_from_u64(9);
        for prime in RLWE_PRIMES {
            let m = prime.modulus;
            let q = m.value();
            for (count, largest) in [
                (0, false),
                (1, false),
                (3, true),
                (17, false),
                (MAX_TERMS, true),
            ] {
                let n = 64;
                let mut vector = || -> Vec<u64> {
                    (0..n)
                        .map(|_| {
                            if largest {
                                q - 1
                            } else {
                                m.reduce_u64(rng.next_u64())
                            }
                        })
                        .collect()
                };
                let data: Vec<_> = (0..count).map(|_| [vector(), vector(), vector()]).collect();
                let terms: Vec<_> = data
                    .iter()
                    .map(|[a, b, w]| Term {
                        halves: [a, b],
                        factor: w,
                    })
                    .collect();
                for accumulate in [false, true] {
                    let start = [vector(), vector()];
                    let expected: Vec<Vec<u64>> = (0..2)
                        .map(|h| {
                            (0..n)
                                .map(|i| {
                                    let start = if accumulate { start[h][i] as u128 } else { 0 };
                                    let sum = data
                                        .iter()
                                        .fold(start, |s, d| s + d[h][i] as u128 * d[2][i] as u128);
                                    (sum % q as u128) as u64
                                })
                                .collect()
                        })
                        .collect();
                    for scalar in [true, false] {
                        let [mut x, mut y] = start.clone();
                        if scalar {
                            scalar_dot_pair(&m, &terms, accumulate, [&mut x, &mut y]);
                        } else {
                            dot_pair(&m, &terms, accumulate, [&mut x, &mut y]);
                        }
                        assert_eq!(
                            [x, y],
                            [expected[0].clone(), expected[1].clone()],
                            "{count} terms, scalar {scalar}"
                        );
                    }
                }
            }
        }
    }
}
