//! Polynomials modulo `X^n + 1` in residue form, and their automorphisms.

mod automorphism;
mod pool;

pub use automorphism::Automorphism;

use crate::{Modulus46, Ntt, kernels};
use std::sync::Arc;
use zeroize::ZeroizeOnDrop;

/// Representation of a polynomial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Coefficients, in order of degree.
    Coefficients,
    /// Values at the points of [`crate::ntt`], in its order.
    Values,
}

/// A polynomial modulo `X^n + 1` and several primes: one limb of `n` residues for each prime.
///
/// Memory comes from a pool and returns to it: touching fresh pages costs as much as the
/// arithmetic. It is erased when the polynomial is dropped, because most polynomials of a protocol
/// are secret or show a secret together with a public one (`a s` beside `a`). So what the pool
/// hands out is zero, and a new polynomial costs nothing more.
#[derive(Debug, PartialEq, Eq)]
pub struct RnsPoly {
    n: usize,
    domain: Domain,
    data: Vec<u64>,
}

impl RnsPoly {
    /// The zero polynomial.
    pub fn zero(n: usize, limbs: usize, domain: Domain) -> Self {
        Self {
            n,
            domain,
            data: pool::take(n * limbs),
        }
    }

    /// The polynomial with these small coefficients; constant time in them.
    ///
    /// # Preconditions
    /// `|x| < q` for every modulus.
    pub fn from_small(coefficients: &[i64], moduli: &[Modulus46]) -> Self {
        let mut poly = Self::zero(coefficients.len(), moduli.len(), Domain::Coefficients);
        for (limb, m) in poly.limbs_mut().zip(moduli) {
            for (x, &small) in limb.iter_mut().zip(coefficients) {
                *x = m.from_small(small);
            }
        }
        poly
    }

    /// The number of coefficients.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The number of primes.
    pub fn limb_count(&self) -> usize {
        self.data.len() / self.n
    }

    /// The residues modulo one prime.
    pub fn limb(&self, i: usize) -> &[u64] {
        &self.data[i * self.n..][..self.n]
    }

    /// The residues modulo one prime, to be changed.
    pub fn limb_mut(&mut self, i: usize) -> &mut [u64] {
        &mut self.data[i * self.n..][..self.n]
    }

    /// The first `L` limbs.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn limb_array<const L: usize>(&self) -> [&[u64]; L] {
        std::array::from_fn(|i| self.limb(i))
    }

    /// All limbs in order.
    pub fn limbs(&self) -> impl Iterator<Item = &[u64]> {
        self.data.chunks_exact(self.n)
    }

    /// All limbs in order, to be changed.
    pub fn limbs_mut(&mut self) -> impl Iterator<Item = &mut [u64]> {
        self.data.chunks_exact_mut(self.n)
    }

    /// Changes to values; `ntts` has a transform for each limb.
    ///
    /// # Panics
    /// If the polynomial is in values already.
    pub fn forward(&mut self, ntts: &[Arc<dyn Ntt>]) {
        assert_eq!(
            self.domain,
            Domain::Coefficients,
            "forward transform of values"
        );
        self.domain = Domain::Values;
        for (limb, ntt) in self.limbs_mut().zip(ntts) {
            ntt.forward(limb);
        }
    }

    /// Changes to coefficients.
    ///
    /// # Panics
    /// If the polynomial is in coefficients already.
    pub fn inverse(&mut self, ntts: &[Arc<dyn Ntt>]) {
        assert_eq!(
            self.domain,
            Domain::Values,
            "inverse transform of coefficients"
        );
        self.domain = Domain::Coefficients;
        for (limb, ntt) in self.limbs_mut().zip(ntts) {
            ntt.inverse(limb);
        }
    }

    /// Changes to `n` times the coefficients, for callers that folded `n^-1` into a factor.
    pub fn inverse_unscaled(&mut self, ntts: &[Arc<dyn Ntt>]) {
        assert_eq!(
            self.domain,
            Domain::Values,
            "inverse transform of coefficients"
        );
        self.domain = Domain::Coefficients;
        for (limb, ntt) in self.limbs_mut().zip(ntts) {
            ntt.inverse_unscaled(limb);
        }
    }

    /// Adds a polynomial of the same shape.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn add_assign(&mut self, other: &Self, moduli: &[Modulus46]) {
        self.same_shape(other);
        for ((x, y), m) in self
            .data
            .chunks_exact_mut(self.n)
            .zip(other.limbs())
            .zip(moduli)
        {
            kernels::add_assign(m, x, y);
        }
    }

    /// Subtracts a polynomial of the same shape.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn sub_assign(&mut self, other: &Self, moduli: &[Modulus46]) {
        self.same_shape(other);
        for ((x, y), m) in self
            .data
            .chunks_exact_mut(self.n)
            .zip(other.limbs())
            .zip(moduli)
        {
            kernels::sub_assign(m, x, y);
        }
    }

    /// Multiplies by a polynomial of the same shape, both in values.
    ///
    /// # Panics
    /// If the shapes differ or the entries are coefficients.
    pub fn mul_assign(&mut self, other: &Self, moduli: &[Modulus46]) {
        self.same_shape(other);
        assert_eq!(
            self.domain,
            Domain::Values,
            "element-wise product of coefficients"
        );
        for ((x, y), m) in self
            .data
            .chunks_exact_mut(self.n)
            .zip(other.limbs())
            .zip(moduli)
        {
            kernels::mul_assign(m, x, y);
        }
    }

    fn same_shape(&self, other: &Self) {
        assert_eq!(
            (self.n, self.domain, self.data.len()),
            (other.n, other.domain, other.data.len())
        );
    }

    /// The polynomial over the first `limbs` primes only.
    fn truncated(&self, limbs: usize) -> Self {
        let mut poly = Self::zero(self.n, limbs, self.domain);
        poly.data.copy_from_slice(&self.data[..limbs * self.n]);
        poly
    }
}

impl Clone for RnsPoly {
    fn clone(&self) -> Self {
        self.truncated(self.limb_count())
    }
}

impl Drop for RnsPoly {
    fn drop(&mut self) {
        pi_core::memory::erase(&mut self.data);
        pool::give(std::mem::take(&mut self.data));
    }
}

impl ZeroizeOnDrop for RnsPoly {}

/// The product modulo `X^n + 1` by schoolbook multiplication: the oracle of the transforms.
#[cfg(test)]
pub(crate) fn negacyclic_product(a: &[u64], b: &[u64], m: &crate::Modulus) -> Vec<u64> {
    let n = a.len();
    let mut out = vec![0; n];
    for (j, &y) in b.iter().enumerate().filter(|(_, y)| **y != 0) {
        for (i, &x) in a.iter().enumerate() {
            let product = m.mul(x, y);
            let k = (i + j) % n;
            out[k] = if i + j < n {
                m.add(out[k], product)
            } else {
                m.sub(out[k], product)
            };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::{RLWE_MODULI, RLWE_PRIMES};
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    pub(super) fn random(m: &Modulus46, n: usize, seed: u64) -> Vec<u64> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        (0..n).map(|_| m.reduce_u64(rng.next_u64())).collect()
    }

    #[test]
    fn butterflies_multiply_by_monomials() {
        let (n, m) = (32, RLWE_MODULI[0]);
        let a = random(&m, n, 7);
        for t in 0..=n {
            let (mut times, mut minus) = (vec![0; n], vec![0; n]);
            kernels::butterfly(&m, t, &mut times, &a, &mut minus);
            // X^t and -X^t = X^(t + n).
            for (t, product) in [(t, times), (t + n, minus)] {
                let mut monomial = vec![0; n];
                monomial[t % n] = if t / n % 2 == 0 { 1 } else { m.value() - 1 };
                assert_eq!(product, negacyclic_product(&a, &monomial, &m), "{t}");
            }
        }
    }

    /// Whatever was in a polynomial, the next one in its memory starts from zero.
    #[test]
    fn memory_that_returns_to_the_pool_is_erased() {
        // No other test has polynomials of this length.
        let (n, limbs) = (1 << 12, 7);
        let mut secret = RnsPoly::zero(n, limbs, Domain::Values);
        secret.limbs_mut().for_each(|limb| limb.fill(0x5ec2e7));
        let address = secret.limb(0).as_ptr();
        let copy = secret.clone();
        drop(secret);
        let next = RnsPoly::zero(n, limbs, Domain::Coefficients);
        assert_eq!(next.limb(0).as_ptr(), address, "the pool keeps memory");
        assert!(next.limbs().flatten().all(|&x| x == 0));
        drop(copy);
        let kept = [(); 2].map(|()| pool::take(n * limbs));
        assert!(kept.iter().flatten().all(|&x| x == 0));
    }

    #[test]
    fn rns_polynomials_form_a_ring() {
        let n = 32;
        let moduli = RLWE_MODULI;
        let ntts: Vec<_> = RLWE_PRIMES.iter().map(|p| p.transform(n)).collect();
        let small: Vec<i64> = (0..n as i64).map(|i| i * i - 300).collect();
        let mut a = RnsPoly::from_small(&small, &moduli);
        let mut b = RnsPoly::zero(n, 4, Domain::Coefficients);
        b.limbs_mut().for_each(|l| l[1] = 1);
        a.forward(&ntts);
        b.forward(&ntts);
        let mut product = a.clone();
        product.mul_assign(&b, &moduli);
        let mut sum = product.clone();
        sum.add_assign(&a, &moduli);
        sum.sub_assign(&a, &moduli);
        assert_eq!(sum, product);
        product.inverse(&ntts);
        let mut shifted: Vec<i64> = small.clone();
        shifted.rotate_right(1);
        shifted[0] = -shifted[0];
        assert_eq!(product, RnsPoly::from_small(&shifted, &moduli));
        assert_eq!(product.truncated(2).limb_count(), 2);
    }
}
