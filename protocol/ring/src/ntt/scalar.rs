//! The scalar transform, radix 2 with Shoup's multiplication: the definition that every other back
//! end equals bit for bit, and the fallback on machines without vector units.

use super::{Ntt, NttPrime, reverse_bits};
use crate::Modulus;

/// The scalar transform of one length over one prime.
pub(crate) struct ScalarNtt {
    modulus: Modulus,
    /// `psi^rev(i)` and its Shoup companion.
    forward: Vec<(u64, u64)>,
    /// `psi^-rev(i)` and its Shoup companion.
    inverse: Vec<(u64, u64)>,
}

impl ScalarNtt {
    /// The transform of length `n`.
    ///
    /// # Panics
    /// If `n` is not a power of two in `1..=8192`.
    pub(crate) fn new(prime: &NttPrime, n: usize) -> Self {
        let m = prime.modulus;
        let table = |root: u64| {
            let mut table = vec![(0, 0); n];
            let mut power = 1;
            for k in 0..n {
                table[reverse_bits(k, n)] = (power, m.shoup(power));
                power = m.mul(power, root);
            }
            table
        };
        let root = prime.root(n);
        Self {
            modulus: m,
            forward: table(root),
            inverse: table(m.inv(root)),
        }
    }
}

impl Ntt for ScalarNtt {
    fn length(&self) -> usize {
        self.forward.len()
    }

    fn modulus(&self) -> Modulus {
        self.modulus
    }

    fn forward(&self, x: &mut [u64]) {
        assert_eq!(x.len(), self.length());
        let m = &self.modulus;
        let mut half = self.length() / 2;
        let mut groups = 1;
        while half >= 1 {
            for (group, block) in x.chunks_exact_mut(2 * half).enumerate() {
                let (w, w_shoup) = self.forward[groups + group];
                let (low, high) = block.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    let t = m.mul_shoup(*b, w, w_shoup);
                    (*a, *b) = (m.add(*a, t), m.sub(*a, t));
                }
            }
            half /= 2;
            groups *= 2;
        }
    }

    fn inverse_unscaled(&self, x: &mut [u64]) {
        assert_eq!(x.len(), self.length());
        let m = &self.modulus;
        let mut half = 1;
        let mut groups = self.length() / 2;
        while groups >= 1 {
            for (group, block) in x.chunks_exact_mut(2 * half).enumerate() {
                let (w, w_shoup) = self.inverse[groups + group];
                let (low, high) = block.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    let difference = m.sub(*a, *b);
                    *a = m.add(*a, *b);
                    *b = m.mul_shoup(difference, w, w_shoup);
                }
            }
            half *= 2;
            groups /= 2;
        }
    }
}
