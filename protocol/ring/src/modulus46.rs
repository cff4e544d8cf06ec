//! Prime moduli just below 2^46: those of ciphertexts.
//!
//! A modulus below 2^46 leaves the 52-bit multiplier of AVX-512 IFMA room for sums, and one with
//! `2^46 = c (mod q)` for a `c` below 2^20 is reduced by a few small multiplications ("folds"). The
//! kernels, the sums of products, the bases and our own transform rest on these two bounds, which
//! is why they are a type.

use crate::Modulus;
use std::ops::Deref;

/// A prime `q` with `2^46 - 2^20 < q < 2^46`; a [`Modulus`] with faster reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modulus46(Modulus);

/// The low 46 bits.
const LOW: u64 = (1 << 46) - 1;

impl Modulus46 {
    /// The modulus `q`, or `None` if it is out of range or not prime.
    pub const fn new(q: u64) -> Option<Self> {
        if q > (1 << 46) - (1 << 20) && q < 1 << 46 && is_prime(q) {
            Some(Self(Modulus::new(q)))
        } else {
            None
        }
    }

    /// The modulus without its bounds.
    #[inline(always)]
    pub const fn modulus(&self) -> Modulus {
        self.0
    }

    /// `c = 2^46 - q = 2^46 mod q`, below 2^20.
    #[inline(always)]
    pub const fn fold(&self) -> u64 {
        (1 << 46) - self.0.value()
    }

    /// `x mod q` for any 128-bit integer.
    #[inline(always)]
    pub fn reduce_u128(&self, x: u128) -> u64 {
        // The folds leave below 2^103, 2^78, 2^53 and 2^46 + 2^27 < 2 q.
        let c = self.fold();
        let x = (x as u64 & LOW) as u128 + (x >> 46) * c as u128;
        let x = (x as u64 & LOW) as u128 + (x >> 46) * c as u128;
        let x = (x as u64 & LOW) + (x >> 46) as u64 * c;
        let x = (x & LOW) + (x >> 46) * c;
        self.subtract_once(x)
    }

    /// `x mod q` for `x < 2^88`: two folds instead of four.
    #[inline(always)]
    pub fn reduce_u88(&self, x: u128) -> u64 {
        debug_assert!(x < 1 << 88);
        // The upper part is below 2^42, so the folds leave below 2^63, 2^46 + 2^37 < 2 q.
        let c = self.fold();
        let x = (x as u64 & LOW) + (x >> 46) as u64 * c;
        let x = (x & LOW) + (x >> 46) * c;
        self.subtract_once(x)
    }
}

impl Deref for Modulus46 {
    type Target = Modulus;

    #[inline(always)]
    fn deref(&self) -> &Modulus {
        &self.0
    }
}

/// True for odd primes below 2^48, by the strong test to the bases 2 to 17, which no composite
/// below 341,550,071,728,321 passes (Jaeschke 1993).
const fn is_prime(q: u64) -> bool {
    const BASES: [u64; 7] = [2, 3, 5, 7, 11, 13, 17];
    let twos = (q - 1).trailing_zeros();
    let mut i = 0;
    while i < BASES.len() {
        let mut x = pow(BASES[i], (q - 1) >> twos, q);
        let mut passes = x == 1 || x == q - 1;
        let mut k = 1;
        while k < twos {
            x = mul(x, x, q);
            passes |= x == q - 1;
            k += 1;
        }
        if !passes {
            return false;
        }
        i += 1;
    }
    true
}

const fn pow(mut base: u64, mut exponent: u64, q: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = mul(result, base, q);
        }
        base = mul(base, base, q);
        exponent >>= 1;
    }
    result
}

const fn mul(a: u64, b: u64, q: u64) -> u64 {
    (a as u128 * b as u128 % q as u128) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::RLWE_MODULI;

    #[test]
    fn reductions_agree_with_wide_integers() {
        for m in RLWE_MODULI {
            let q = m.value() as u128;
            for x in [
                0u128,
                1,
                u128::MAX,
                u128::MAX / 3,
                1 << 64,
                (1 << 88) - 1,
                (1 << 46) - 1,
                1 << 46,
            ] {
                assert_eq!(m.reduce_u128(x) as u128, x % q);
                let x = x & ((1 << 88) - 1);
                assert_eq!(m.reduce_u88(x) as u128, x % q);
            }
        }
    }

    #[test]
    fn what_is_out_of_range_or_composite_is_refused() {
        let (low, high) = ((1 << 46) - (1 << 20), 1 << 46);
        // Trial division up to the root of 2^46.
        let is_prime = |q: u64| (3..1 << 23).step_by(2).all(|d| !q.is_multiple_of(d));
        for q in (high - 399..high)
            .step_by(2)
            .chain((low + 1..low + 400).step_by(2))
        {
            assert_eq!(Modulus46::new(q).is_some(), is_prime(q), "{q}");
        }
        for q in [
            0,
            1,
            2,
            3,
            97,
            low - 3,
            low,
            high,
            high + 15,
            pi_core::fp::P,
            u64::MAX,
        ] {
            assert_eq!(Modulus46::new(q), None, "{q}");
        }
    }
}
