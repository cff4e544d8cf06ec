//! Polynomials modulo `X^n + 1` in residue form, automorphisms and monomials.

use crate::{Modulus46, Ntt, kernels};
use std::sync::Arc;
use zeroize::Zeroize;

/// What the entries of a polynomial are.
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
/// arithmetic. The pool does not erase; owners of secret polynomials call [`Zeroize::zeroize`]
/// before they drop them.
#[derive(Debug, PartialEq, Eq)]
pub struct RnsPoly {
    n: usize,
    domain: Domain,
    data: Vec<u64>,
}

impl RnsPoly {
    /// The zero polynomial.
    pub fn zero(n: usize, limbs: usize, domain: Domain) -> Self {
        let mut poly = Self::unspecified(n, limbs, domain);
        poly.data.fill(0);
        poly
    }

    /// A polynomial whose entries are left over from earlier ones: for callers that overwrite them
    /// all.
    pub fn unspecified(n: usize, limbs: usize, domain: Domain) -> Self {
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
        let mut poly = Self::unspecified(coefficients.len(), moduli.len(), Domain::Coefficients);
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

    /// What the entries are.
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// The residues modulo one prime.
    pub fn limb(&self, i: usize) -> &[u64] {
        &self.data[i * self.n..][..self.n]
    }

    /// The residues modulo one prime.
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

    /// All limbs in order.
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
    pub fn truncated(&self, limbs: usize) -> Self {
        let mut poly = Self::unspecified(self.n, limbs, self.domain);
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
        pool::give(std::mem::take(&mut self.data));
    }
}

impl Zeroize for RnsPoly {
    fn zeroize(&mut self) {
        self.data.zeroize();
    }
}

/// Buffers of polynomials, kept for the next ones of the same size.
mod pool {
    use std::collections::HashMap;
    use std::sync::{Mutex, PoisonError};

    /// Buffers below this many words are left to the allocator.
    const SMALLEST: usize = 1 << 12;
    /// Words kept at most: 64 MiB.
    const KEPT: usize = 1 << 23;

    #[derive(Default)]
    struct Pool {
        buffers: HashMap<usize, Vec<Vec<u64>>>,
        words: usize,
    }

    static POOL: Mutex<Option<Pool>> = Mutex::new(None);

    /// A buffer of so many words, whatever they are.
    pub(super) fn take(len: usize) -> Vec<u64> {
        if len >= SMALLEST
            && let Some(pool) = POOL.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
            && let Some(buffer) = pool.buffers.get_mut(&len).and_then(Vec::pop)
        {
            pool.words -= len;
            return buffer;
        }
        vec![0; len]
    }

    /// Keeps a buffer, unless enough are kept.
    pub(super) fn give(buffer: Vec<u64>) {
        let len = buffer.len();
        if len < SMALLEST {
            return;
        }
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = pool.get_or_insert_default();
        if pool.words + len <= KEPT {
            pool.words += len;
            pool.buffers.entry(len).or_default().push(buffer);
        }
    }
}

/// The automorphism `X -> X^d`, `d` odd, prepared for coefficients and for values.
#[derive(Clone, Debug)]
pub struct Automorphism {
    /// Entry `i`: the source of coefficient `i`; the top bit says that its sign changes.
    coefficients: Vec<u32>,
    /// Entry `i`: the source of value `i`.
    values: Vec<u32>,
}

const NEGATED: u32 = 1 << 31;

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
        let reverse = |i| crate::ntt::reverse_bits(i, n);
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
    use crate::ntt::{RLWE_MODULI, RLWE_PRIMES, ScalarNtt};
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn random(m: &Modulus46, n: usize, seed: u64) -> Vec<u64> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        (0..n).map(|_| m.reduce_u64(rng.next_u64())).collect()
    }

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
