//! The automorphisms of `Z_q[X] / (X^n + 1)`, as permutations of coefficients and of values.

use crate::Modulus46;
use crate::kernels::{self, NEGATED};
use crate::ntt::reverse_bits;

/// The automorphism `X -> X^d`, `d` odd, prepared for coefficients and for values.
#[derive(Clone, Debug)]
pub struct Automorphism {
    /// Entry `i`: the source of coefficient `i`; the top bit says that its sign changes.
    coefficients: Vec<u32>,
    /// Entry `i`: the source of value `i`.
    values: Vec<u32>,
}

impl Automorphism {
    /// The automorphism `X -> X^d` of length `n`.
    ///
    /// # Panics
    /// If `d` is even or `n` no power of two below 2^30.
    pub fn new(d: usize, n: usize) -> Self {
        assert!(
            d % 2 == 1 && n.is_power_of_two() && n < 1 << 30,
            "automorphism {d} of length {n}"
        );
        let mut coefficients = vec![0; n];
        for i in 0..n {
            let target = i * d % (2 * n);
            coefficients[target % n] = i as u32 | if target >= n { NEGATED } else { 0 };
        }
        let reverse = |i| reverse_bits(i, n);
        // Value i of a(X^d) is a at psi^(d e), e = 2 rev(i) + 1.
        let values = (0..n)
            .map(|i| reverse(((2 * reverse(i) + 1) * d % (2 * n) - 1) / 2) as u32)
            .collect();
        Self {
            coefficients,
            values,
        }
    }

    /// Writes `X -> X^d` of the coefficients `x` to `out`.
    pub fn apply_coefficients(&self, x: &[u64], out: &mut [u64], m: &Modulus46) {
        assert_eq!(x.len(), self.coefficients.len());
        kernels::gather_signed(m, &self.coefficients, x, out);
    }

    /// Writes `X -> X^d` of the values `x` to `out`.
    pub fn apply_values(&self, x: &[u64], out: &mut [u64]) {
        assert_eq!(x.len(), self.values.len());
        kernels::gather(&self.values, x, out);
    }

    /// The image of small signed coefficients.
    pub fn apply_small(&self, x: &[i64]) -> Vec<i64> {
        self.coefficients
            .iter()
            .map(|&source| {
                let v = x[(source & !NEGATED) as usize];
                if source & NEGATED != 0 { -v } else { v }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ntt;
    use crate::ntt::{RLWE_MODULI, RLWE_PRIMES, ScalarNtt};
    use crate::poly::negacyclic_product;
    use crate::poly::tests::random;

    #[test]
    fn automorphisms_agree_in_both_domains_and_are_multiplicative() {
        let (n, m) = (64, RLWE_MODULI[1]);
        let ntt = ScalarNtt::new(&RLWE_PRIMES[1], n);
        let (a, b) = (random(&m, n, 1), random(&m, n, 2));
        for d in [1, 3, 5, n + 1, n / 2 + 1, n / 4 + 1, 2 * n - 1] {
            let tau = Automorphism::new(d, n);
            let image = |x: &[u64]| {
                let mut out = vec![0; n];
                tau.apply_coefficients(x, &mut out, &m);
                out
            };
            assert_eq!(
                image(&negacyclic_product(&a, &b, &m)),
                negacyclic_product(&image(&a), &image(&b), &m)
            );
            let mut by_coefficients = image(&a);
            ntt.forward(&mut by_coefficients);
            let (mut values, mut by_values) = (a.clone(), vec![0; n]);
            ntt.forward(&mut values);
            tau.apply_values(&values, &mut by_values);
            assert_eq!(by_values, by_coefficients, "{d}");
        }
    }
}
