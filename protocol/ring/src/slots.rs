//! SIMD slots: `F_p[X] / (X^n + 1)` is `n` copies of `F_p`.
//!
//! Slot `i` of a polynomial `a` is its value `a(psi^(2 rev(i) + 1))`, in the order of
//! [`crate::ntt`] with the root [`pi_core::fp::ROOT_16384`] (raised to `8192 / n`). Products of
//! polynomials are products of slots, which is all that the protocol uses.

use crate::Ntt;
use crate::ntt::PLAINTEXT_PRIME;
use std::sync::Arc;

/// Converts between slots and coefficients.
#[derive(Clone)]
pub struct SlotEncoder {
    ntt: Arc<dyn Ntt>,
}

impl SlotEncoder {
    /// An encoder of `n` slots.
    ///
    /// # Panics
    /// If `n` is not a power of two in `1..=8192`.
    pub fn new(n: usize) -> Self {
        Self {
            ntt: PLAINTEXT_PRIME.transform(n),
        }
    }

    /// Replaces slots by the coefficients of their polynomial.
    ///
    /// # Panics
    /// If the length is not the encoder's.
    pub fn encode(&self, slots: &mut [u64]) {
        self.ntt.inverse(slots);
    }

    /// Replaces the coefficients of a polynomial by its slots.
    ///
    /// # Panics
    /// If the length is not the encoder's.
    pub fn decode(&self, coefficients: &mut [u64]) {
        self.ntt.forward(coefficients);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poly::negacyclic_product;
    use pi_core::fp;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    #[test]
    fn product_of_polynomials_is_product_of_slots() {
        let n = 64;
        let mut rng = ChaCha20Rng::seed_from_u64(4);
        let (x, y) = (fp::uniform_vec(n, &mut rng), fp::uniform_vec(n, &mut rng));
        let encoder = SlotEncoder::new(n);
        let encoded = |v: &[u64]| {
            let mut v = v.to_vec();
            encoder.encode(&mut v);
            v
        };
        let mut product = negacyclic_product(&encoded(&x), &encoded(&y), &PLAINTEXT_PRIME.modulus);
        encoder.decode(&mut product);
        let expected: Vec<u64> = x.iter().zip(&y).map(|(&a, &b)| fp::mul(a, b)).collect();
        assert_eq!(product, expected);
    }
}
