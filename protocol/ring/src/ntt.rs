//! The negacyclic number theoretic transform.
//!
//! For a prime `q = 1 (mod 2n)` and `psi`, a primitive `2n`-th root of unity, [`Ntt::forward`] maps
//! the coefficients of `a` modulo `X^n + 1` to the values `a(psi^(2 rev(i) + 1))`, `i = 0..n`,
//! where `rev` reverses `log2 n` bits. This order is part of the wire format, as public randomness
//! is sampled as values: [`NttPrime`] therefore names the root of order 16384, and a transform of
//! length `n` uses its power `16384 / 2n`, which makes transforms of different lengths nest: the
//! `m` values whose points share `psi^(m (2 rev(i) + 1))` are adjacent, and their mean is value `i
//! / m` of the polynomial in `X^m` made of every `m`-th coefficient.
//!
//! The inverse leaves out the factor `n^-1`, which callers fold into constants.
//!
//! # Back ends
//! [`NttPrime::transform`] chooses once, when the transform is made:
//! - `scalar`: the definition;
//! - `tfhe`: the `tfhe-ntt` crate, any of our primes, from AVX2 on; it detects its instructions
//!   itself, so that `PI_BACKEND=avx2` does not keep it from AVX-512;
//! - `doubles`: our own for primes just below 2^46, in double precision; needs AVX2 and FMA, or
//!   NEON. Lengths below 16 fall back to `scalar`;
//! - `ifma`: our own for the same primes; needs AVX-512F and IFMA. Other primes and lengths below
//!   64 fall back to `tfhe`, and lengths below 32 to `scalar`.

mod doubles;
#[cfg(target_arch = "x86_64")]
mod ifma;
mod scalar;
mod tfhe;

use doubles::DoublesNtt;
#[cfg(target_arch = "x86_64")]
use ifma::IfmaNtt;
pub(crate) use scalar::ScalarNtt;
use tfhe::TfheNtt;

use crate::{Modulus, Modulus46, kernels};
use pi_core::{Backend, fp};
use std::sync::Arc;

/// The longest transform whose points are fixed, `n = 8192`.
const MAX_LENGTH: usize = 8192;

/// A transform of one length over one prime.
pub trait Ntt: Send + Sync {
    /// The number of coefficients, a power of two.
    fn length(&self) -> usize;
    /// The prime.
    fn modulus(&self) -> Modulus;
    /// Coefficients to values, in place.
    ///
    /// # Preconditions
    /// `x.len() == length()`, entries in `0..q`.
    /// # Postconditions
    /// Entries in `0..q`.
    fn forward(&self, x: &mut [u64]);
    /// Values to `n` times the coefficients, in place; conditions as for [`Ntt::forward`].
    fn inverse_unscaled(&self, x: &mut [u64]);

    /// The values of `a(X^-1)`: `out[i] = a(psi^-(2 rev(i) + 1))`, for the polynomial that has
    /// these first coefficients and zeros after them.
    ///
    /// Kernels of convolutions are polynomials in `X^-1`, of degrees far below `n`: layers that
    /// would combine coefficients with zeros are left out.
    ///
    /// # Preconditions
    /// `coefficients.len()` is a power of two up to `n`, `out.len() == n`, entries in `0..q`.
    /// # Postconditions
    /// Entries in `0..q`.
    fn forward_reciprocal(&self, coefficients: &[u64], out: &mut [u64]) {
        forward_reciprocal_by_definition(self, coefficients, out);
    }

    /// The values of the centred representatives of `x`, residues modulo the first prime; the
    /// second is this transform's.
    ///
    /// # Preconditions
    /// `x.len() == out.len() == length()`, entries of `x` are residues.
    /// # Postconditions
    /// Entries of `out` in `0..q`.
    /// # Panics
    /// If the lengths differ.
    fn forward_lifted(&self, [from, to]: [&Modulus46; 2], x: &[u64], out: &mut [u64]) {
        debug_assert_eq!(to.modulus(), self.modulus());
        kernels::lift_centred(from, to, x, out);
        self.forward(out);
    }

    /// Values to coefficients, in place.
    fn inverse(&self, x: &mut [u64]) {
        self.inverse_unscaled(x);
        let m = self.modulus();
        m.scale_assign(x, m.inv(x.len() as u64));
    }
}

/// The definition of [`Ntt::forward_reciprocal`]: the inverse of the point of value `i` is the
/// point of value `n - 1 - i`.
fn forward_reciprocal_by_definition(
    ntt: &(impl Ntt + ?Sized),
    coefficients: &[u64],
    out: &mut [u64],
) {
    let (first, rest) = out.split_at_mut(coefficients.len());
    first.copy_from_slice(coefficients);
    rest.fill(0);
    ntt.forward(out);
    out.reverse();
}

/// A prime with its chosen root of unity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NttPrime {
    /// The prime.
    pub modulus: Modulus,
    /// A primitive root of order 16384.
    pub root_16384: u64,
}

/// The four largest primes below 2^46 that are 1 modulo 16384.
pub const RLWE_MODULI: [Modulus46; 4] = [
    Modulus46::new(0x3fff_fff8_4001).expect("prime"),
    Modulus46::new(0x3fff_fff7_0001).expect("prime"),
    Modulus46::new(0x3fff_fff5_8001).expect("prime"),
    Modulus46::new(0x3fff_fff3_c001).expect("prime"),
];

/// [`RLWE_MODULI`] with the roots of the wire format: what repeated Tonelli-Shanks square roots of
/// -1 give with the least non-residue.
pub const RLWE_PRIMES: [NttPrime; 4] = [
    NttPrime {
        modulus: RLWE_MODULI[0].modulus(),
        root_16384: 0x3f64_2604_e95d,
    },
    NttPrime {
        modulus: RLWE_MODULI[1].modulus(),
        root_16384: 0x10ff_e7b5_055d,
    },
    NttPrime {
        modulus: RLWE_MODULI[2].modulus(),
        root_16384: 0xcd_6f78_758a,
    },
    NttPrime {
        modulus: RLWE_MODULI[3].modulus(),
        root_16384: 0x1d29_2f28_82c7,
    },
];

/// The plaintext prime with the root that orders its slots.
pub(crate) const PLAINTEXT_PRIME: NttPrime = NttPrime {
    modulus: Modulus::new(fp::P),
    root_16384: fp::ROOT_16384,
};

impl NttPrime {
    /// The transform of length `n` over this prime, on the back end of the process.
    ///
    /// # Panics
    /// If `n` is not a power of two in `1..=8192`.
    pub fn transform(&self, n: usize) -> Arc<dyn Ntt> {
        self.transform_on(Backend::get(), n)
    }

    /// [`NttPrime::transform`] on a back end that the machine supports.
    fn transform_on(&self, backend: Backend, n: usize) -> Arc<dyn Ntt> {
        let scalar = || -> Arc<dyn Ntt> { Arc::new(ScalarNtt::new(self, n)) };
        let tfhe = || -> Option<Arc<dyn Ntt>> { Some(Arc::new(TfheNtt::new(self, n)?)) };
        #[cfg(target_arch = "x86_64")]
        // SAFETY: only asked for where the back end is AVX-512, which the machine supports.
        let ifma = || -> Option<Arc<dyn Ntt>> { Some(Arc::new(unsafe { IfmaNtt::new(self, n) }?)) };
        let doubles = || -> Option<Arc<dyn Ntt>> {
            // SAFETY: the machine supports the back end.
            Some(Arc::new(unsafe { DoublesNtt::new(backend, self, n) }?))
        };
        match backend {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => ifma().or_else(tfhe).unwrap_or_else(scalar),
            Backend::Avx2 | Backend::Neon => doubles().or_else(tfhe).unwrap_or_else(scalar),
            _ => scalar(),
        }
    }

    /// The root of order `2 n`.
    fn root(&self, n: usize) -> u64 {
        assert!(
            n.is_power_of_two() && n <= MAX_LENGTH,
            "transform length {n}"
        );
        self.modulus.pow(self.root_16384, (MAX_LENGTH / n) as u64)
    }
}

/// The lowest `log2 n` bits of `i` in reverse order.
pub(crate) fn reverse_bits(i: usize, n: usize) -> usize {
    if n == 1 {
        0
    } else {
        i.reverse_bits() >> (usize::BITS - n.trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poly::negacyclic_product;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn primes() -> Vec<NttPrime> {
        let mut primes = RLWE_PRIMES.to_vec();
        primes.push(PLAINTEXT_PRIME);
        primes
    }

    fn backends(prime: &NttPrime, n: usize) -> Vec<Arc<dyn Ntt>> {
        let supported = crate::supported_backends();
        supported.map(|b| prime.transform_on(b, n)).collect()
    }

    fn random(m: Modulus, n: usize, seed: u64) -> Vec<u64> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        (0..n).map(|_| m.reduce_u64(rng.next_u64())).collect()
    }

    #[test]
    fn primes_are_the_largest_four_below_2_46() {
        let is_prime = |n: u64| {
            let m = Modulus::new(n);
            [2u64, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]
                .into_iter()
                .all(|base| {
                    let twos = (n - 1).trailing_zeros();
                    let mut x = m.pow(base, (n - 1) >> twos);
                    let mut passes = x == 1 || x == n - 1;
                    for _ in 1..twos {
                        x = m.mul(x, x);
                        passes |= x == n - 1;
                    }
                    passes
                })
        };
        let found: Vec<u64> = (1..)
            .map(|k| (1u64 << 46) + 1 - k * 16384)
            .filter(|&n| is_prime(n))
            .take(4)
            .collect();
        assert_eq!(found, RLWE_PRIMES.map(|p| p.modulus.value()));
        assert!(found.iter().all(|&q| (q as f64).log2() > 45.99));
    }

    #[test]
    fn tfhe_backend_is_available_for_every_prime() {
        for prime in primes() {
            for n in [32, 64, 512, 8192] {
                assert!(TfheNtt::new(&prime, n).is_some(), "{prime:?} {n}");
            }
        }
    }

    #[test]
    fn values_are_evaluations_in_bit_reversed_order() {
        for prime in primes() {
            let (n, m) = (64, prime.modulus);
            let a = random(m, n, 1);
            let psi = prime.root(n);
            for ntt in backends(&prime, n) {
                let mut values = a.clone();
                ntt.forward(&mut values);
                for (i, &value) in values.iter().enumerate() {
                    let point = m.pow(psi, 2 * reverse_bits(i, n) as u64 + 1);
                    let expected = a
                        .iter()
                        .rev()
                        .fold(0, |acc, &c| m.add(m.mul(acc, point), c));
                    assert_eq!(value, expected, "{i}");
                }
            }
        }
    }

    #[test]
    fn backends_agree_and_inverse_undoes_forward() {
        for prime in primes() {
            for n in [1, 2, 16, 32, 64, 128, 256, 1024, 2048, 4096, 8192] {
                let m = prime.modulus;
                let mut a = random(m, n, n as u64);
                a[0] = m.value() - 1;
                let mut expected = a.clone();
                ScalarNtt::new(&prime, n).forward(&mut expected);
                for ntt in backends(&prime, n) {
                    let mut values = a.clone();
                    ntt.forward(&mut values);
                    assert_eq!(values, expected);
                    ntt.inverse(&mut values);
                    assert_eq!(values, a);
                    let mut all_largest = vec![m.value() - 1; n];
                    ntt.forward(&mut all_largest);
                    assert!(all_largest.iter().all(|&x| x < m.value()));
                    ntt.inverse(&mut all_largest);
                    assert_eq!(all_largest, vec![m.value() - 1; n]);
                    // Read as values, they have the largest intermediate sums of the inverse.
                    ntt.inverse(&mut all_largest);
                    assert!(all_largest.iter().all(|&x| x < m.value()));
                    ntt.forward(&mut all_largest);
                    assert_eq!(all_largest, vec![m.value() - 1; n]);
                }
            }
        }
    }

    #[test]
    fn reciprocal_transform_evaluates_at_inverse_points() {
        for prime in primes() {
            let (n, m) = (256, prime.modulus);
            let psi = prime.root(n);
            for support in [1, 32, 64, 128, 256] {
                let a = random(m, support, support as u64);
                let mut out = vec![0; n];
                ScalarNtt::new(&prime, n).forward_reciprocal(&a, &mut out);
                for i in [0, 1, 5, n - 1] {
                    let point = m.inv(m.pow(psi, 2 * reverse_bits(i, n) as u64 + 1));
                    let value = a
                        .iter()
                        .rev()
                        .fold(0, |acc, &c| m.add(m.mul(acc, point), c));
                    assert_eq!(out[i], value, "{support} {i}");
                }
            }
            for n in [64usize, 4096, 8192] {
                for support in (0..=n.ilog2()).map(|k| 1usize << k) {
                    let a = random(m, support, support as u64);
                    let mut expected = vec![0; n];
                    ScalarNtt::new(&prime, n).forward_reciprocal(&a, &mut expected);
                    for ntt in backends(&prime, n) {
                        let mut out = vec![1; n];
                        ntt.forward_reciprocal(&a, &mut out);
                        assert_eq!(out, expected, "{n} {support}");
                    }
                }
            }
        }
    }

    #[test]
    fn lifted_transform_is_that_of_centred_representatives() {
        let [from, to] = [&RLWE_MODULI[3], &RLWE_MODULI[1]];
        for n in [16, 64, 2048, 4096, 8192] {
            let mut x = random(from.modulus(), n, n as u64);
            let half = from.value() / 2;
            x[..4].copy_from_slice(&[0, half, half + 1, from.value() - 1]);
            let mut expected = vec![0; n];
            for (out, &x) in expected.iter_mut().zip(&x) {
                let centred = x as i64 - if x > half { from.value() as i64 } else { 0 };
                *out = to.from_i64(centred);
            }
            ScalarNtt::new(&RLWE_PRIMES[1], n).forward(&mut expected);
            for ntt in backends(&RLWE_PRIMES[1], n) {
                let mut out = vec![1; n];
                ntt.forward_lifted([from, to], &x, &mut out);
                assert_eq!(out, expected, "{n}");
            }
        }
    }

    #[test]
    fn products_of_values_are_negacyclic_products() {
        for prime in primes() {
            for n in [16, 32, 8192] {
                let m = prime.modulus;
                let a = random(m, n, 11);
                // Sparse at full length, as schoolbook multiplication is quadratic.
                let mut b = random(m, n, 12);
                if n == 8192 {
                    for (i, x) in b.iter_mut().enumerate() {
                        if i % 97 != 5 {
                            *x = 0;
                        }
                    }
                }
                let expected = negacyclic_product(&a, &b, &m);
                for ntt in backends(&prime, n) {
                    let (mut x, mut y) = (a.clone(), b.clone());
                    ntt.forward(&mut x);
                    ntt.forward(&mut y);
                    x.iter_mut().zip(&y).for_each(|(x, &y)| *x = m.mul(*x, y));
                    ntt.inverse(&mut x);
                    assert_eq!(x, expected);
                }
            }
        }
    }

    #[test]
    fn means_of_adjacent_values_transform_every_mth_coefficient() {
        for prime in primes() {
            let (n, gap, m) = (256, 4, prime.modulus);
            let a = random(m, n, 21);
            let mut values = a.clone();
            ScalarNtt::new(&prime, n).forward(&mut values);
            let mut folded: Vec<u64> = values
                .chunks(gap)
                .map(|c| c.iter().fold(0, |acc, &x| m.add(acc, x)))
                .collect();
            prime.transform(n / gap).inverse(&mut folded);
            m.scale_assign(&mut folded, m.inv(gap as u64));
            let expected: Vec<u64> = a.iter().step_by(gap).copied().collect();
            assert_eq!(folded, expected);
        }
    }
}
