//! Plaintext kernels and their products with ciphertexts.

use crate::params::{CiphertextModulus, KEY_LIMBS, N, Params};
use crate::upload::Ciphertext;
use pi_ring::dot::{MAX_TERMS, Term, dot_pair};
use pi_ring::{Domain, RnsPoly, fp};
use zeroize::Zeroize;

/// A kernel polynomial in values, premultiplied by `2^-levels` for the packing that follows it.
///
/// Packing multiplies plaintext and noise by `2^levels`; the premultiplication, modulo `Q`, removes that from both. It also
/// holds the `N^-1` that inverse transforms leave out.
pub struct PlainPoly {
    modulus: CiphertextModulus,
    levels: u32,
    values: RnsPoly,
}

impl PlainPoly {
    /// The kernel of `(exponent, weight)` terms, to be packed over so many levels.
    ///
    /// Exponents are in `0..2 N`, and `X^N = -1`: `X^-k` is exponent `2 N - k`. Terms of the same exponent add up. Weights are
    /// below 2^62 in magnitude, and secret; exponents and the number of terms are public, so zero weights must be passed like any other.
    ///
    /// # Cost
    /// One transform for each prime, and a few nanoseconds a term.
    /// # Panics
    /// If an exponent is not below `2 N`.
    pub fn new(
        params: &Params,
        modulus: CiphertextModulus,
        levels: u32,
        terms: impl IntoIterator<Item = (usize, i64)>,
    ) -> Self {
        let values = RnsPoly::zero(N, modulus.limbs(), Domain::Coefficients);
        let mut kernel = Self {
            modulus,
            levels,
            values,
        };
        kernel.set(params, levels, terms);
        kernel
    }

    /// Replaces the kernel, reusing its memory; see [`PlainPoly::new`].
    ///
    /// # Panics
    /// If an exponent is not below `2 N`.
    pub fn set(
        &mut self,
        params: &Params,
        levels: u32,
        terms: impl IntoIterator<Item = (usize, i64)>,
    ) {
        let limbs = self.modulus.limbs();
        self.levels = levels;
        self.values.reset(Domain::Coefficients);
        let factors: [_; KEY_LIMBS] = std::array::from_fn(|i| {
            let m = &params.moduli[i];
            let factor = m.mul(params.degree_inverse[i], m.inv(m.pow(2, levels as u64)));
            // A multiple of q above 2^62, so that the sum with a weight is not negative.
            (m, factor, m.shoup(factor), m.value() << 17)
        });
        for (exponent, weight) in terms {
            assert!(exponent < 2 * N, "exponent {exponent}");
            debug_assert!(weight.unsigned_abs() < 1 << 62);
            let at = exponent % N;
            let weight = if exponent >= N { -weight } else { weight };
            for (i, (m, factor, factor_shoup, offset)) in factors[..limbs].iter().enumerate() {
                let x = &mut self.values.limb_mut(i)[at];
                let weight = offset.wrapping_add(weight as u64);
                *x = m.add(*x, m.mul_shoup(weight, *factor, *factor_shoup));
            }
        }
        self.values.forward(&params.ntts()[..limbs]);
    }

    /// The polynomial with these field elements as coefficients, centred: a factor of an OLE.
    pub(crate) fn from_field(
        params: &Params,
        modulus: CiphertextModulus,
        coefficients: &[u64],
    ) -> Self {
        let mut values = RnsPoly::unspecified(N, modulus.limbs(), Domain::Coefficients);
        for (i, limb) in values.limbs_mut().enumerate() {
            let m = &params.moduli[i];
            let factor = params.degree_inverse[i];
            let factor_shoup = m.shoup(factor);
            // Centred elements are below 2^59 in magnitude, less than 2^14 q.
            let offset = m.value() << 14;
            for (x, &c) in limb.iter_mut().zip(coefficients) {
                *x = m.mul_shoup(
                    offset.wrapping_add(fp::centre(c) as u64),
                    factor,
                    factor_shoup,
                );
            }
        }
        values.forward(&params.ntts()[..modulus.limbs()]);
        Self {
            modulus,
            levels: 0,
            values,
        }
    }
}

impl Drop for PlainPoly {
    fn drop(&mut self) {
        self.values.zeroize();
    }
}

impl std::fmt::Debug for PlainPoly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PlainPoly({:?}, {} levels)", self.modulus, self.levels)
    }
}

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
        let half = || RnsPoly::unspecified(N, first.modulus.limbs(), Domain::Values);
        let mut product = Self {
            modulus: first.modulus,
            levels: first.levels,
            halves: [half(), half()],
        };
        product.add(params, terms, false);
        product
    }

    /// Adds ciphertext times kernel for each term.
    ///
    /// # Panics
    /// If moduli or levels differ.
    pub fn accumulate(&mut self, params: &Params, terms: &[(&Ciphertext, &PlainPoly)]) {
        self.add(params, terms, true);
    }

    fn add(&mut self, params: &Params, terms: &[(&Ciphertext, &PlainPoly)], mut accumulate: bool) {
        for (ciphertext, kernel) in terms {
            assert_eq!(
                (ciphertext.modulus, kernel.modulus),
                (self.modulus, self.modulus),
                "moduli of a product"
            );
            assert_eq!(kernel.levels, self.levels, "levels of a product");
        }
        for terms in terms.chunks(MAX_TERMS) {
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
            accumulate = true;
        }
    }
}

impl std::fmt::Debug for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Product({:?}, {} levels)", self.modulus, self.levels)
    }
}
