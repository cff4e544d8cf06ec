//! Sums of products of ciphertexts and plaintext kernels: one at a time, or a matrix of them.

use crate::params::{CiphertextModulus, N, Params};
use crate::plain::PlainPoly;
use crate::seeded::Ciphertext;
use pi_core::memory::erase_all;
use pi_ring::dot::{InterleavedRow, MAX_TERMS, Term, dot_matrix, dot_pair};
use pi_ring::{Domain, RnsPoly, kernels};
use std::ops::Range;

/// A sum of products of ciphertexts and kernels, ready to be packed.
#[derive(Clone)]
pub struct Product {
    pub(crate) modulus: CiphertextModulus,
    pub(crate) levels: u32,
    /// In values, times `N^-1`.
    pub(crate) halves: [RnsPoly; 2],
}

impl Product {
    /// The sum of ciphertext times kernel over the terms.
    ///
    /// # Cost
    /// 17 to 25 us a term (three primes, one core with AVX-512 IFMA).
    /// # Panics
    /// If there is no term, or moduli or levels differ.
    pub fn new(params: &Params, terms: &[(&Ciphertext, &PlainPoly)]) -> Self {
        let (_, first) = terms.first().expect("a product has a term");
        let half = || RnsPoly::zero(N, first.modulus.limbs(), Domain::Values);
        let mut product = Self {
            modulus: first.modulus,
            levels: first.levels,
            halves: [half(), half()],
        };
        product.set(params, terms);
        product
    }

    fn set(&mut self, params: &Params, terms: &[(&Ciphertext, &PlainPoly)]) {
        for (ciphertext, kernel) in terms {
            assert_eq!(
                (ciphertext.modulus, kernel.modulus),
                (self.modulus, self.modulus),
                "moduli of a product"
            );
            assert_eq!(kernel.levels, self.levels, "levels of a product");
        }
        for (chunk, terms) in terms.chunks(MAX_TERMS).enumerate() {
            let accumulate = chunk > 0;
            for (i, m) in params.moduli(self.modulus).iter().enumerate() {
                let terms: Vec<_> = terms
                    .iter()
                    .map(|(ciphertext, kernel)| Term {
                        halves: [ciphertext.halves[0].limb(i), ciphertext.halves[1].limb(i)],
                        factor: kernel.values.limb(i),
                    })
                    .collect();
                let [c0, c1] = &mut self.halves;
                dot_pair(m, &terms, accumulate, [c0.limb_mut(i), c1.limb_mut(i)]);
            }
        }
    }
}

impl std::fmt::Debug for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Product({:?}, {} levels)", self.modulus, self.levels)
    }
}

/// Kernels that are multiplied as soon as they are made, and their memory, which later ones reuse:
/// first touch of memory costs as much as the arithmetic. Erased on drop.
#[derive(Default)]
pub struct Workspace {
    /// Coefficients of all kernels.
    small: Vec<i32>,
    /// Coefficients of one kernel modulo one prime.
    coefficients: Vec<u64>,
    /// Values of all kernels modulo one prime.
    values: Vec<u64>,
}

impl Drop for Workspace {
    fn drop(&mut self) {
        erase_all(&mut self.small);
        erase_all(&mut self.coefficients);
        erase_all(&mut self.values);
    }
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workspace(..)")
    }
}

/// Words from one kernel's values to the next ones': nine cache lines more than they are, so that
/// what is read together does not share a set of the caches.
const STRIDE: usize = N + 72;

/// Ciphertexts of one sum that are multiplied before their kernels' memory is used again.
const TERMS_AT_ONCE: usize = 128;

/// A matrix of kernels that are made when they are multiplied.
pub struct KernelMatrix<F> {
    /// The ciphertexts of each row that are multiplied; kernels of the others are zero.
    pub ciphertexts: Range<usize>,
    /// Kernels of each ciphertext: products of each row.
    pub outputs: usize,
    /// Levels of the packing that follows, of all kernels.
    pub levels: u32,
    /// If given, every exponent stands for some `X^-e`, `e < reach`: short kernels have shorter
    /// transforms.
    pub reach: Option<usize>,
    /// `terms(output, i)` are the terms of the kernel between ciphertext `i` of every row and the
    /// output, see [`PlainPoly::new`]; weights, and sums of those of the same exponent, are below
    /// 2^31 in magnitude here.
    pub terms: F,
}

impl Product {
    /// The sums of ciphertext times kernel, for each output and each row of ciphertexts:
    /// `[output][row]`.
    ///
    /// Equal to [`Product::new`] for each. One prime is done after another and every vector read
    /// once, see [`dot_matrix`].
    ///
    /// # Cost
    /// A transform for each kernel and prime, about 5 us a product, 64 KB of workspace a kernel (at
    /// most 128 ciphertexts' kernels at once).
    /// # Panics
    /// If there is no row, rows differ in length or are shorter than the matrix says, or an
    /// exponent is not below `2 N` or beyond the reach.
    pub fn matrix<T, F>(
        params: &Params,
        rows: &[&CiphertextRow],
        matrix: &KernelMatrix<F>,
        workspace: &mut Workspace,
    ) -> Vec<Vec<Self>>
    where
        T: IntoIterator<Item = (usize, i32)>,
        F: Fn(usize, usize) -> T,
    {
        let KernelMatrix {
            ref ciphertexts,
            outputs,
            levels,
            reach,
            ref terms,
        } = *matrix;
        // A transform of the whole ring in X^-1 is one in X with its values reversed, and saves
        // nothing.
        let short = reach.map(usize::next_power_of_two).filter(|&s| s < N);
        let support = short.unwrap_or(N);
        let size = (outputs, levels);
        sums_in_parts(params, rows, ciphertexts.clone(), size, |part, sums| {
            let polynomials = outputs * part.len();
            let small = sized(&mut workspace.small, polynomials * support);
            small.fill(0);
            for (i, small) in small.chunks_exact_mut(support).enumerate() {
                for (exponent, weight) in terms(i / part.len(), part.start + i % part.len()) {
                    assert!(exponent < 2 * N, "exponent {exponent}");
                    let (at, weight) = if short.is_some() {
                        ((2 * N - exponent) % (2 * N), weight)
                    } else if exponent >= N {
                        (exponent - N, -weight)
                    } else {
                        (exponent, weight)
                    };
                    small[at] += weight;
                }
            }
            let coefficients = sized(&mut workspace.coefficients, support);
            let values = sized(&mut workspace.values, polynomials * STRIDE);
            for (limb, m) in params.moduli[..CONV_LIMBS].iter().enumerate() {
                let factor = m.mul(params.degree_inverse[limb], m.inv(m.pow(2, levels as u64)));
                let ntt = &params.ntts()[limb];
                let polynomials = small.chunks_exact(support);
                for (small, values) in polynomials.zip(values.chunks_exact_mut(STRIDE)) {
                    let values = &mut values[..N];
                    if short.is_some() {
                        kernels::scale_small(m, small, factor, coefficients);
                        ntt.forward_reciprocal(coefficients, values);
                    } else {
                        kernels::scale_small(m, small, factor, values);
                        ntt.forward(values);
                    }
                }
                let factors: Vec<&[u64]> = values.chunks_exact(STRIDE).map(|x| &x[..N]).collect();
                multiply_limb(params, limb, part.clone(), rows, &factors, sums);
            }
        })
    }

    /// [`Product::matrix`] with kernels that were made before, all of the same levels:
    /// `[output][i]`, for the same ciphertexts of each row.
    ///
    /// # Panics
    /// If there is no row, rows differ in length or are shorter than that, outputs have not a
    /// kernel a ciphertext, levels differ, or a modulus is not [`CiphertextModulus::Conv`].
    pub fn matrix_of(
        params: &Params,
        rows: &[&CiphertextRow],
        ciphertexts: Range<usize>,
        polynomials: &[&[PlainPoly]],
    ) -> Vec<Vec<Self>> {
        let count = ciphertexts.len();
        assert!(
            polynomials.iter().all(|kernels| kernels.len() == count),
            "kernels of an output"
        );
        let levels = polynomials.first().map_or(0, |kernels| kernels[0].levels);
        let modulus = CiphertextModulus::Conv;
        assert!(
            polynomials
                .iter()
                .flat_map(|kernels| kernels.iter())
                .all(|kernel| (kernel.levels, kernel.modulus) == (levels, modulus)),
            "levels or moduli of kernels"
        );
        let (first, size) = (ciphertexts.start, (polynomials.len(), levels));
        sums_in_parts(params, rows, ciphertexts, size, |part, sums| {
            let kernels_of = part.start - first..part.end - first;
            for limb in 0..CONV_LIMBS {
                let factors: Vec<&[u64]> = polynomials
                    .iter()
                    .flat_map(|kernels| &kernels[kernels_of.clone()])
                    .map(|kernel| kernel.values.limb(limb))
                    .collect();
                multiply_limb(params, limb, part.clone(), rows, &factors, sums);
            }
        })
    }
}

/// Sums over some ciphertexts of the rows, of which `set` sets the sums over fewer; of so many
/// outputs, and with so many levels.
fn sums_in_parts(
    params: &Params,
    rows: &[&CiphertextRow],
    ciphertexts: Range<usize>,
    (outputs, levels): (usize, u32),
    mut set: impl FnMut(Range<usize>, &mut [Vec<Product>]),
) -> Vec<Vec<Product>> {
    assert!(ciphertexts.end <= check_rows(rows), "ciphertexts of a row");
    let mut sums = zero_sums(rows.len(), outputs, levels);
    for first in ciphertexts.clone().step_by(TERMS_AT_ONCE) {
        let part = first..ciphertexts.end.min(first + TERMS_AT_ONCE);
        if first == ciphertexts.start {
            set(part, &mut sums);
        } else {
            let mut more = zero_sums(rows.len(), outputs, levels);
            set(part, &mut more);
            add_sums(params, &mut sums, &more);
        }
    }
    sums
}

const CONV_LIMBS: usize = CiphertextModulus::Conv.limbs();

/// Ciphertexts that are multiplied by kernels and summed, in the order in which that reads them.
pub struct CiphertextRow {
    limbs: [InterleavedRow; CONV_LIMBS],
}

impl CiphertextRow {
    /// The row of these ciphertexts.
    ///
    /// # Cost
    /// A copy: 0.4 MB a ciphertext.
    /// # Panics
    /// If there is none, or a modulus is not [`CiphertextModulus::Conv`].
    pub fn new(ciphertexts: &[Ciphertext]) -> Self {
        assert!(
            ciphertexts
                .iter()
                .all(|x| x.modulus == CiphertextModulus::Conv),
            "moduli of a product"
        );
        let limb = |limb| {
            let pairs: Vec<[&[u64]; 2]> = ciphertexts
                .iter()
                .map(|x| [x.halves[0].limb(limb), x.halves[1].limb(limb)])
                .collect();
            InterleavedRow::new(&pairs)
        };
        Self {
            limbs: std::array::from_fn(limb),
        }
    }

    /// The number of ciphertexts.
    pub fn count(&self) -> usize {
        self.limbs[0].terms()
    }
}

impl std::fmt::Debug for CiphertextRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CiphertextRow({})", self.count())
    }
}

/// The length of the rows.
fn check_rows(rows: &[&CiphertextRow]) -> usize {
    let count = rows.first().expect("a matrix has a row").count();
    assert!(
        rows.iter().all(|row| row.count() == count),
        "rows have the same number of ciphertexts"
    );
    count
}

/// The first `length` words of a buffer, left over from whatever had it before.
fn sized<T: Copy + Default>(buffer: &mut Vec<T>, length: usize) -> &mut [T] {
    if buffer.len() < length {
        buffer.resize(length, T::default());
    }
    &mut buffer[..length]
}

fn zero_sums(rows: usize, outputs: usize, levels: u32) -> Vec<Vec<Product>> {
    let product = |_| Product {
        modulus: CiphertextModulus::Conv,
        levels,
        halves: [(); 2].map(|()| RnsPoly::zero(N, CONV_LIMBS, Domain::Values)),
    };
    (0..outputs)
        .map(|_| (0..rows).map(product).collect())
        .collect()
}

/// Sets one limb of `sums`, `[output][row]`, to those over some ciphertexts of each row.
fn multiply_limb(
    params: &Params,
    limb: usize,
    terms: Range<usize>,
    rows: &[&CiphertextRow],
    factors: &[&[u64]],
    sums: &mut [Vec<Product>],
) {
    // By row, as dot_matrix wants them.
    let mut columns: Vec<_> = sums.iter_mut().map(|sums| sums.iter_mut()).collect();
    let mut out = Vec::with_capacity(rows.len() * columns.len());
    for _ in rows {
        for column in &mut columns {
            let sum = column.next().expect("a sum for each row");
            let [c0, c1] = &mut sum.halves;
            out.push([c0.limb_mut(limb), c1.limb_mut(limb)]);
        }
    }
    let rows: Vec<_> = rows.iter().map(|row| &row.limbs[limb]).collect();
    let m = &params.moduli[limb];
    dot_matrix(m, terms, &rows, factors, &mut out);
}

fn add_sums(params: &Params, sums: &mut [Vec<Product>], more: &[Vec<Product>]) {
    let pairs = sums.iter_mut().flatten().zip(more.iter().flatten());
    for (sum, more) in pairs {
        for (half, more) in sum.halves.iter_mut().zip(&more.halves) {
            half.add_assign(more, &params.moduli);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn ciphertexts(params: &Params, count: usize, rng: &mut impl RngCore) -> Vec<Ciphertext> {
        let modulus = CiphertextModulus::Conv;
        let mut half = || {
            let mut half = RnsPoly::zero(N, CONV_LIMBS, Domain::Values);
            for (limb, m) in half.limbs_mut().zip(params.moduli(modulus)) {
                limb.iter_mut()
                    .for_each(|x| *x = rng.next_u64() % m.value());
            }
            half
        };
        let ciphertext = |_| Ciphertext {
            modulus,
            halves: [half(), half()],
        };
        (0..count).map(ciphertext).collect()
    }

    #[test]
    fn a_matrix_of_products_equals_each_product_bit_for_bit() {
        let params = Params::standard();
        let rng = &mut ChaCha20Rng::seed_from_u64(21);
        // The last two sum more ciphertexts than are multiplied at once.
        for (rows, count, outputs, levels, reach) in [
            (1, 1, 1, 0, None),
            (3, 5, 4, 3, None),
            (2, 7, 3, 8, Some(40)),
            (9, 3, 2, 1, Some(1)),
            (1, 4, 5, 2, Some(N)),
            (2, TERMS_AT_ONCE + 2, 2, 5, None),
            (1, TERMS_AT_ONCE + 1, 1, 4, Some(700)),
        ] {
            let inputs: Vec<Vec<Ciphertext>> = (0..rows)
                .map(|_| ciphertexts(&params, count, rng))
                .collect();
            let packed: Vec<CiphertextRow> = inputs.iter().map(|x| CiphertextRow::new(x)).collect();
            let mut term = || {
                let exponent = match reach {
                    Some(reach) => (2 * N - rng.next_u64() as usize % reach) % (2 * N),
                    None => rng.next_u64() as usize % (2 * N),
                };
                (exponent, rng.next_u32() as i32 >> 4)
            };
            let kernels: Vec<Vec<Vec<(usize, i32)>>> = (0..outputs)
                .map(|_| {
                    (0..count)
                        .map(|i| (0..1 + i % 9).map(|_| term()).collect())
                        .collect()
                })
                .collect();
            let polynomials: Vec<Vec<PlainPoly>> = kernels
                .iter()
                .map(|kernels| {
                    let wide = |&(exponent, weight): &(usize, i32)| (exponent, i64::from(weight));
                    let polynomial = |terms: &Vec<(usize, i32)>| {
                        let terms = terms.iter().map(wide);
                        PlainPoly::new(&params, CiphertextModulus::Conv, levels, terms)
                    };
                    kernels.iter().map(polynomial).collect()
                })
                .collect();
            let packed: Vec<&CiphertextRow> = packed.iter().collect();
            let terms = |output: usize, i: usize| kernels[output][i].iter().copied();
            let workspace = &mut Workspace::default();
            let mut matrix = KernelMatrix {
                ciphertexts: 0..count,
                outputs,
                levels,
                reach,
                terms,
            };
            // All ciphertexts of a row, and those that a grouped convolution may read.
            for some in [0..count, count / 3..count.div_ceil(2)] {
                matrix.ciphertexts = some.clone();
                let fresh = Product::matrix(&params, &packed, &matrix, workspace);
                let borrowed = polynomials.iter().map(|p| &p[some.clone()]);
                let borrowed: Vec<&[PlainPoly]> = borrowed.collect();
                let kept = Product::matrix_of(&params, &packed, some.clone(), &borrowed);
                let places =
                    (0..outputs).flat_map(|output| (0..rows).map(move |row| (output, row)));
                for (output, row) in places {
                    let own = inputs[row].iter().zip(&polynomials[output]);
                    let pairs: Vec<_> = own.skip(some.start).take(some.len()).collect();
                    let expected = Product::new(&params, &pairs);
                    for found in [&fresh[output][row], &kept[output][row]] {
                        assert_eq!(found.levels, expected.levels);
                        for (found, expected) in found.halves.iter().zip(&expected.halves) {
                            assert!(
                                found.limbs().eq(expected.limbs()),
                                "{rows} rows of {count}, {outputs} outputs, {levels} levels, \
                                 reach {reach:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}
