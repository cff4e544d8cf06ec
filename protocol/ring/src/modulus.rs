//! Prime moduli below 2^62.
//!
//! Residues are canonical, in `0..q`. Everything but [`Modulus::pow`] and [`Modulus::inv`] is
//! constant time in the residues; moduli are public.

/// A prime modulus with the constants of its reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modulus {
    q: u64,
    bits: u32,
    /// `floor(2^(2 bits) / q)`, Barrett's constant.
    barrett: u64,
}

impl Modulus {
    /// The modulus `q`, which must be an odd prime below 2^62 (primality is the caller's promise).
    ///
    /// # Panics
    /// If `q` is even, below 3 or not below 2^62.
    pub const fn new(q: u64) -> Self {
        assert!(
            q >= 3 && q % 2 == 1 && q < 1 << 62,
            "moduli are odd and below 2^62"
        );
        let bits = 64 - q.leading_zeros();
        Self {
            q,
            bits,
            barrett: ((1u128 << (2 * bits)) / q as u128) as u64,
        }
    }

    /// The modulus as an integer.
    #[inline(always)]
    pub const fn value(&self) -> u64 {
        self.q
    }

    /// `x mod q` for `x < 2 q`.
    #[inline(always)]
    pub fn subtract_once(&self, x: u64) -> u64 {
        let reduced = x.wrapping_sub(self.q);
        reduced.wrapping_add(self.q & ((reduced as i64 >> 63) as u64))
    }

    /// The sum of two residues.
    #[inline(always)]
    pub fn add(&self, a: u64, b: u64) -> u64 {
        self.subtract_once(a + b)
    }

    /// The difference of two residues.
    #[inline(always)]
    pub fn sub(&self, a: u64, b: u64) -> u64 {
        let d = a.wrapping_sub(b);
        d.wrapping_add(self.q & ((d as i64 >> 63) as u64))
    }

    /// The negation of a residue.
    #[inline(always)]
    pub fn neg(&self, a: u64) -> u64 {
        self.sub(0, a)
    }

    /// The product of two residues.
    #[inline(always)]
    pub fn mul(&self, a: u64, b: u64) -> u64 {
        self.reduce(a as u128 * b as u128)
    }

    /// `x mod q` for `x < 2^(2 bits)`.
    #[inline(always)]
    pub fn reduce(&self, x: u128) -> u64 {
        // Barrett, with both shifts of the Handbook of Applied Cryptography, algorithm 14.42: the
        // estimate is at most two below the quotient, so that two subtractions finish.
        let estimate = (((x >> (self.bits - 1)) as u64 as u128 * self.barrett as u128)
            >> (self.bits + 1)) as u64;
        let r = (x as u64).wrapping_sub(estimate.wrapping_mul(self.q));
        self.subtract_once(self.subtract_once_wide(r))
    }

    /// `x` or `x - q`, for `x < 3 q`, leaving a value below `2 q`.
    #[inline(always)]
    fn subtract_once_wide(&self, x: u64) -> u64 {
        // 3 q may exceed 2^63, so the sign bit does not tell: compare instead. The comparison
        // compiles to a carry.
        let mask = u64::from(x >= 2 * self.q).wrapping_neg();
        x - ((2 * self.q) & mask)
    }

    /// `x mod q` for any 64-bit integer.
    #[inline(always)]
    pub fn reduce_u64(&self, x: u64) -> u64 {
        if self.bits >= 32 {
            // 2^(2 bits) covers every 64-bit integer.
            self.reduce(x as u128)
        } else {
            x % self.q
        }
    }

    /// The residue of a signed integer with `|x| < q`.
    #[inline(always)]
    pub fn from_small(&self, x: i64) -> u64 {
        debug_assert!(x.unsigned_abs() < self.q);
        (x as u64).wrapping_add(self.q & ((x >> 63) as u64))
    }

    /// The residue of any signed 64-bit integer.
    #[inline(always)]
    pub fn from_i64(&self, x: i64) -> u64 {
        let magnitude = self.reduce_u64(x.unsigned_abs());
        let negated = self.neg(magnitude);
        let negative = (x >> 63) as u64;
        (negated & negative) | (magnitude & !negative)
    }

    /// `floor(2^64 w / q)`, the companion of `w` for [`Modulus::mul_shoup`].
    pub const fn shoup(&self, w: u64) -> u64 {
        (((w as u128) << 64) / self.q as u128) as u64
    }

    /// `x w mod q` for a constant `w` with its [`Modulus::shoup`] companion; `x` may be any 64-bit
    /// integer.
    #[inline(always)]
    pub fn mul_shoup(&self, x: u64, w: u64, w_shoup: u64) -> u64 {
        let estimate = ((x as u128 * w_shoup as u128) >> 64) as u64;
        self.subtract_once(
            x.wrapping_mul(w)
                .wrapping_sub(estimate.wrapping_mul(self.q)),
        )
    }

    /// `base` to the power `exponent`; variable time in the exponent.
    pub fn pow(&self, mut base: u64, mut exponent: u64) -> u64 {
        let mut result = 1;
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = self.mul(result, base);
            }
            base = self.mul(base, base);
            exponent >>= 1;
        }
        result
    }

    /// The inverse of a residue; 0 for 0.
    pub fn inv(&self, a: u64) -> u64 {
        self.pow(a, self.q - 2)
    }

    /// `x *= w`, element by element.
    pub fn scale_assign(&self, x: &mut [u64], w: u64) {
        let w_shoup = self.shoup(w);
        for x in x {
            *x = self.mul_shoup(*x, w, w_shoup);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_core::fp;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    #[test]
    fn ring_laws_and_agreement_with_wide_integers() {
        let mut rng = ChaCha20Rng::seed_from_u64(5);
        for q in [97, 12289, 0x3fff_fff8_4001, fp::P, (1 << 62) - 57] {
            let m = Modulus::new(q);
            let mut v = vec![0, 1, q / 2, q - 2, q - 1];
            v.extend((0..60).map(|_| rng.next_u64() % q));
            for &a in &v {
                let w = m.shoup(a);
                assert_eq!(m.from_i64(-(a as i64)), m.neg(a));
                assert_eq!(m.from_small(a as i64 - (q - 1) as i64), (a + 1) % q);
                for &b in &v {
                    assert_eq!(
                        m.mul(a, b) as u128,
                        a as u128 * b as u128 % q as u128,
                        "{q}"
                    );
                    assert_eq!(m.mul_shoup(b, a, w), m.mul(a, b));
                    assert_eq!(m.add(a, b), (a + b) % q);
                    assert_eq!(m.sub(a, b), (a + q - b) % q);
                    assert_eq!(m.mul(a, m.add(b, 1)), m.add(m.mul(a, b), a));
                }
            }
            assert_eq!(
                m.from_i64(i64::MIN) as i128,
                (i64::MIN as i128).rem_euclid(q as i128)
            );
        }
    }
}
