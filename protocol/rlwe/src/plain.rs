//! Plaintext kernels: the polynomials that ciphertexts are multiplied by.

use crate::params::{CiphertextModulus, KEY_LIMBS, N, Params};
use pi_core::fp;
use pi_ring::{Domain, RnsPoly};

/// A kernel polynomial in values, premultiplied by `2^-levels` for the packing that follows it.
///
/// Packing multiplies plaintext and noise by `2^levels`; the premultiplication, modulo `Q`, removes
/// that from both. It also holds the `N^-1` that inverse transforms leave out.
pub struct PlainPoly {
    pub(crate) modulus: CiphertextModulus,
    pub(crate) levels: u32,
    pub(crate) values: RnsPoly,
}

impl PlainPoly {
    /// The kernel of `(exponent, weight)` terms, to be packed over this many levels.
    ///
    /// Exponents are in `0..2 N`, and `X^N = -1`: `X^-k` is exponent `2 N - k`. Terms of the same
    /// exponent add up. Weights are below 2^62 in magnitude, and secret; exponents and the number
    /// of terms are public, so zero weights must be passed like any other.
    ///
    /// # Cost
    /// One transform for each prime, and a few nanoseconds per term.
    /// # Panics
    /// If an exponent is not below `2 N`.
    pub fn new(
        params: &Params,
        modulus: CiphertextModulus,
        levels: u32,
        terms: impl IntoIterator<Item = (usize, i64)>,
    ) -> Self {
        let limbs = modulus.limbs();
        let mut values = RnsPoly::zero(N, limbs, Domain::Coefficients);
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
                let x = &mut values.limb_mut(i)[at];
                let weight = offset.wrapping_add(weight as u64);
                *x = m.add(*x, m.mul_shoup(weight, *factor, *factor_shoup));
            }
        }
        values.forward(&params.ntts()[..limbs]);
        Self {
            modulus,
            levels,
            values,
        }
    }

    /// The polynomial with these field elements as coefficients, centred: a factor of an OLE.
    pub(crate) fn from_field(
        params: &Params,
        modulus: CiphertextModulus,
        coefficients: &[u64],
    ) -> Self {
        let mut values = RnsPoly::zero(N, modulus.limbs(), Domain::Coefficients);
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

impl std::fmt::Debug for PlainPoly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PlainPoly({:?}, {} levels)", self.modulus, self.levels)
    }
}
