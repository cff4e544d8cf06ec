//! Sums of element-wise products: the inner loop of plaintext-by-ciphertext products and of key
//! switches.
//!
//! A term is a pair of vectors (the two halves of a ciphertext, or of a key) times one vector (a
//! weight, or a digit). Sums stay unreduced until the last term is added: one reduction per output.
//!
//! # Back ends
//! - `scalar`: the definition;
//! - `doubles`: needs AVX2 and FMA, or NEON, and lengths that are multiples of 8;
//! - `ifma`: needs AVX-512F and IFMA, and lengths that are multiples of 32 (`dot_pair`).

mod doubles;
#[cfg(target_arch = "x86_64")]
mod ifma;
mod scalar;

use crate::Modulus46;
use pi_core::Backend;
use std::ops::Range;

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
/// All vectors have the length of the outputs; entries are in `0..q`; at most [`MAX_TERMS`] terms.
/// # Postconditions
/// Entries in `0..q`.
/// # Panics
/// If the lengths or the number of terms break the preconditions.
pub fn dot_pair(m: &Modulus46, terms: &[Term<'_>], accumulate: bool, out: [&mut [u64]; 2]) {
    dot_pair_on(Backend::get(), m, terms, accumulate, out);
}

/// [`dot_pair`] on a back end that the machine supports.
fn dot_pair_on(
    backend: Backend,
    m: &Modulus46,
    terms: &[Term<'_>],
    accumulate: bool,
    out: [&mut [u64]; 2],
) {
    let n = out[0].len();
    assert!(terms.len() <= MAX_TERMS, "{} terms", terms.len());
    assert!(out[1].len() == n);
    assert!(
        terms
            .iter()
            .all(|t| t.halves[0].len() == n && t.halves[1].len() == n && t.factor.len() == n)
    );
    match backend {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine supports AVX-512, and every vector has length n, a multiple of 32.
        Backend::Avx512 if n.is_multiple_of(32) => unsafe {
            ifma::dot_pair(m, terms, accumulate, out)
        },
        _ => match doubles::Run::on(backend).filter(|_| n.is_multiple_of(8)) {
            // SAFETY: the machine supports the back end, and every vector has length n, a multiple
            // of 8.
            Some(run) => unsafe { (run.pair)(m, terms, accumulate, out) },
            None => scalar::dot_pair(m, terms, accumulate, out),
        },
    }
}

/// A row of pairs of vectors as [`dot_matrix`] reads them: word `(8 v + i) mod n` of half `h` of
/// pair `t` is word `16 (v terms + t) + 8 h + i`.
///
/// Whatever is multiplied at once is side by side. Vectors of 64 KB each would share a few sets of
/// the caches. The words are integers or doubles, as the back end wants them.
#[derive(Clone, Debug)]
pub struct InterleavedRow {
    form: Form,
    terms: usize,
    words: Vec<u64>,
}

/// What words are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Integers,
    Doubles,
}

impl Form {
    /// What the matrix product of a back end reads.
    fn of(backend: Backend) -> Self {
        match doubles::Run::on(backend) {
            Some(_) => Form::Doubles,
            None => Form::Integers,
        }
    }
}

impl InterleavedRow {
    /// The row of these pairs.
    ///
    /// # Panics
    /// If there is no pair, or lengths differ or are no multiple of eight.
    pub fn new(pairs: &[[&[u64]; 2]]) -> Self {
        Self::on(Backend::get(), pairs)
    }

    /// [`InterleavedRow::new`] for a back end.
    fn on(backend: Backend, pairs: &[[&[u64]; 2]]) -> Self {
        let form = Form::of(backend);
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
                        let out = &mut words[at..at + 8];
                        match form {
                            Form::Integers => out.copy_from_slice(vector),
                            Form::Doubles => to_doubles(vector, out),
                        }
                    }
                }
            }
        }
        Self { form, terms, words }
    }

    /// The number of pairs.
    pub fn terms(&self) -> usize {
        self.terms
    }

    fn length(&self) -> usize {
        self.words.len() / (2 * self.terms)
    }
}

/// Writes integers below 2^52 as doubles.
fn to_doubles(words: &[u64], out: &mut [u64]) {
    // With the exponent of 2^52, the last bit counts ones; so compiled to two vector instructions.
    const TWO_52: f64 = (1u64 << 52) as f64;
    for (out, word) in out.iter_mut().zip(words) {
        *out = (f64::from_bits(word | TWO_52.to_bits()) - TWO_52).to_bits();
    }
}

/// Sums of products for several rows and several outputs at once: `out[row][output][h]` becomes the
/// sum over `t` of half `h` of pair `terms.start + t` of the row times `factors[output][t]`.
///
/// A matrix product for each coefficient: two or three rows by two outputs, or one by four, with
/// all sums in registers. Eight coefficients of a few rows fit the first-level cache, and serve all
/// outputs from there.
///
/// # Shapes
/// `factors`: `outputs * terms.len()`, output after output; `out`: `rows * outputs`, row after row.
/// # Preconditions
/// As for [`dot_pair`]; lengths are multiples of eight.
/// # Postconditions
/// Entries in `0..q`.
/// # Panics
/// If the shapes or the number of terms break the preconditions.
pub fn dot_matrix(
    m: &Modulus46,
    terms: Range<usize>,
    rows: &[&InterleavedRow],
    factors: &[&[u64]],
    out: &mut [[&mut [u64]; 2]],
) {
    dot_matrix_on(Backend::get(), m, terms, rows, factors, out);
}

/// [`dot_matrix`] on a back end that the machine supports.
fn dot_matrix_on(
    backend: Backend,
    m: &Modulus46,
    terms: Range<usize>,
    rows: &[&InterleavedRow],
    factors: &[&[u64]],
    out: &mut [[&mut [u64]; 2]],
) {
    let count = terms.len();
    assert!((1..=MAX_TERMS).contains(&count), "{count} terms");
    let outputs = factors.len() / count;
    assert!(factors.len() == outputs * count && out.len() == rows.len() * outputs);
    let n = factors.first().map_or(0, |factor| factor.len());
    assert!(n.is_multiple_of(8) && factors.iter().all(|x| x.len() == n));
    assert!(
        rows.iter()
            .all(|row| row.length() == n && terms.end <= row.terms)
    );
    assert!(out.iter().flatten().all(|x| x.len() == n));
    assert!(rows.iter().all(|row| row.form == Form::of(backend)));
    match backend {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine supports AVX-512, and the shapes were just checked.
        Backend::Avx512 => unsafe { ifma::dot_matrix(m, terms, rows, factors, out) },
        _ => match doubles::Run::on(backend) {
            // SAFETY: the machine supports the back end, the shapes were just checked, and there is
            // a factor.
            Some(run) if outputs > 0 => unsafe { (run.matrix)(m, terms, rows, factors, out) },
            Some(_) => {}
            None => scalar::dot_matrix(m, terms, rows, factors, out),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::RLWE_MODULI;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    #[test]
    fn matrix_products_equal_sums_one_by_one() {
        let mut rng = ChaCha20Rng::seed_from_u64(10);
        let m = RLWE_MODULI[2];
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
            // All terms but the first, then all.
            let backends = crate::supported_backends();
            for (first, backend) in backends.flat_map(|backend| [(1, backend), (0, backend)]) {
                let count = terms - first;
                if count == 0 {
                    continue;
                }
                let factors: Vec<_> = factors
                    .chunks(terms)
                    .flat_map(|f| &f[first..])
                    .copied()
                    .collect();
                let rows_of_pairs = halves.chunks(terms);
                let interleaved: Vec<_> = rows_of_pairs
                    .map(|pairs| InterleavedRow::on(backend, pairs))
                    .collect();
                let interleaved: Vec<_> = interleaved.iter().collect();
                dot_matrix_on(backend, &m, first..terms, &interleaved, &factors, &mut out);
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
                    scalar::dot_pair(&m, &sum, false, [c0, c1]);
                    assert!(
                        out[0] == expected[0] && out[1] == expected[1],
                        "{rows} {outputs} {first} {backend:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn vector_and_scalar_sums_equal_wide_integer_sums() {
        let mut rng = ChaCha20Rng::seed_from_u64(9);
        for m in RLWE_MODULI {
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
                    for backend in crate::supported_backends() {
                        let [mut x, mut y] = start.clone();
                        dot_pair_on(backend, &m, &terms, accumulate, [&mut x, &mut y]);
                        assert_eq!(
                            [x, y],
                            [expected[0].clone(), expected[1].clone()],
                            "{count} terms, {backend:?}"
                        );
                    }
                }
            }
        }
    }
}
