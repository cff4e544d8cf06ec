//! Exact passages between residues and integers, for up to four primes just below 2^46.
//!
//! With `Q` the product of the primes, `x` in `0..Q` is known by its residues `x_i`. Three ways lead back:
//! - [`Basis::fraction`]: `x / Q` as a 128-bit binary fraction, for rounding `x` to a smaller modulus;
//! - [`Basis::compose`]: `x` itself, 192 bits, by Garner's mixed radix;
//! - [`Basis::centred`]: `x` in `-Q/2..Q/2` when it is known to be small.
//!
//! All are constant time in the residues.

use crate::{Modulus, fp};

/// An integer below 2^192, least significant word first.
pub type U192 = [u64; 3];

/// The primes of one modulus with the constants of its reconstructions.
#[derive(Clone, Debug)]
pub struct Basis {
    moduli: Vec<Modulus>,
    /// `(Q / q_i)^-1 mod q_i`, with companion.
    hat_inverse: Vec<(u64, u64)>,
    /// `floor(2^192 / q_i)`, upper 128 bits and lower 64 bits.
    reciprocal: Vec<(u128, u64)>,
    /// Entry `[i][j]`, `j < i`: `q_j^-1 mod q_i`, with companion.
    garner: Vec<Vec<(u64, u64)>>,
    product: U192,
    product_mod_p: u64,
    /// `p^-1 mod q_i`, with companion.
    p_inverse: Vec<(u64, u64)>,
}

impl Basis {
    /// The basis of these primes.
    ///
    /// # Panics
    /// If there are none or more than four, or one is not within 2^20 below 2^46.
    pub fn new(moduli: &[Modulus]) -> Self {
        assert!((1..=4).contains(&moduli.len()), "{} primes", moduli.len());
        assert!(
            moduli
                .iter()
                .all(|m| m.value() < 1 << 46 && (1 << 46) - m.value() < 1 << 20)
        );
        let with_companion = |m: &Modulus, w: u64| (w, m.shoup(w));
        let inverse = |m: &Modulus, of: u64| with_companion(m, m.inv(m.reduce_u64(of)));
        let hat_inverse = moduli
            .iter()
            .map(|m| {
                let hat = moduli
                    .iter()
                    .filter(|o| *o != m)
                    .fold(1, |acc, o| m.mul(acc, m.reduce_u64(o.value())));
                inverse(m, hat)
            })
            .collect();
        let reciprocal = moduli
            .iter()
            .map(|m| {
                let q = m.value() as u128;
                // Long division of 2^192 by q in two steps.
                let (high, rest) = (u128::MAX / q, u128::MAX % q + 1);
                (high + rest / q, (((rest % q) << 64) / q) as u64)
            })
            .collect();
        let garner = (0..moduli.len())
            .map(|i| {
                (0..i)
                    .map(|j| inverse(&moduli[i], moduli[j].value()))
                    .collect()
            })
            .collect();
        let product = moduli
            .iter()
            .fold([1, 0, 0], |acc, m| mul_add(acc, m.value(), 0));
        Self {
            hat_inverse,
            reciprocal,
            garner,
            product,
            product_mod_p: moduli.iter().fold(1, |acc, m| fp::mul(acc, m.value())),
            p_inverse: moduli.iter().map(|m| inverse(m, fp::P)).collect(),
            moduli: moduli.to_vec(),
        }
    }

    /// The primes.
    pub fn moduli(&self) -> &[Modulus] {
        &self.moduli
    }

    /// `Q`, the product of the primes.
    pub fn product(&self) -> U192 {
        self.product
    }

    /// The number of bits of `Q`.
    pub fn bits(&self) -> u32 {
        192 - match self.product {
            [low, 0, 0] => 128 + low.leading_zeros(),
            [_, middle, 0] => 64 + middle.leading_zeros(),
            [_, _, high] => high.leading_zeros(),
        }
    }

    /// `x / Q` as a fraction of 2^128, at most 8 units too small (modulo 1).
    #[inline(always)]
    pub fn fraction(&self, residue: impl Fn(usize) -> u64) -> u128 {
        // x / Q = sum over i of (x_i hat_i^-1 mod q_i) / q_i, modulo 1.
        let mut sum = 0u128;
        for (i, m) in self.moduli.iter().enumerate() {
            let (w, w_shoup) = self.hat_inverse[i];
            let v = m.mul_shoup(residue(i), w, w_shoup);
            let (high, low) = self.reciprocal[i];
            // v < q_i and v high <= 2^128 v / q_i < 2^128.
            sum = sum.wrapping_add((v as u128 * high) + ((v as u128 * low as u128) >> 64));
        }
        sum
    }

    /// `round(p x / Q) mod p`: the plaintext of the phase `x`.
    #[inline(always)]
    pub fn decode(&self, residue: impl Fn(usize) -> u64) -> u64 {
        round_to_field(self.fraction(residue))
    }

    /// `round(Q m / p) mod q_i` for every `i`, handed to `set` with its index.
    #[inline(always)]
    pub fn encode(&self, m: u64, mut set: impl FnMut(usize, u64)) {
        // round(Q m / p) = (Q m - t) / p with t the centred remainder of Q m modulo p, and Q m = 0 modulo q_i.
        let t = fp::centre(fp::mul(self.product_mod_p, m));
        for (i, modulus) in self.moduli.iter().enumerate() {
            let (w, w_shoup) = self.p_inverse[i];
            // -t offset by a multiple of q_i that makes it positive: |t| < 2^59 and 2^14 q_i > 2^59.
            let shifted = (modulus.value() << 14).wrapping_sub(t as u64);
            set(i, modulus.mul_shoup(shifted, w, w_shoup));
        }
    }

    /// The mixed radix digits of `x`: `x = d_0 + q_0 (d_1 + q_1 (d_2 + q_2 d_3))`.
    #[inline(always)]
    fn digits(&self, residue: impl Fn(usize) -> u64, count: usize) -> [u64; 4] {
        let mut digits = [0; 4];
        for i in 0..count {
            let m = &self.moduli[i];
            let mut v = residue(i);
            for j in 0..i {
                // Digits are below 2^46 < 2 q_i.
                let difference = m.sub(v, m.subtract_once(digits[j]));
                let (w, w_shoup) = self.garner[i][j];
                v = m.mul_shoup(difference, w, w_shoup);
            }
            digits[i] = v;
        }
        digits
    }

    /// `x`, from its residues.
    pub fn compose(&self, residue: impl Fn(usize) -> u64) -> U192 {
        let digits = self.digits(residue, self.moduli.len());
        let mut x = [0; 3];
        for i in (0..self.moduli.len()).rev() {
            x = mul_add(x, self.moduli[i].value(), digits[i]);
        }
        x
    }

    /// `x` in `-2^(46 k - 2) .. 2^(46 k - 2)`, from its first `k <= 3` residues alone.
    ///
    /// # Preconditions
    /// `x` is in that range, and `|x| < 2^126`.
    #[inline(always)]
    pub fn centred(&self, residue: impl Fn(usize) -> u64, k: usize) -> i128 {
        debug_assert!((1..=3).contains(&k) && k <= self.moduli.len());
        let digits = self.digits(residue, k);
        // The top digit is read as signed. Terms may exceed 128 bits where the sum does not: arithmetic wraps.
        let top = self.moduli[k - 1];
        let negative = ((top.value() / 2).wrapping_sub(digits[k - 1]) as i64 >> 63) as u64;
        let mut x = digits[k - 1].wrapping_sub(top.value() & negative) as i64 as i128;
        for i in (0..k - 1).rev() {
            x = x
                .wrapping_mul(self.moduli[i].value() as i128)
                .wrapping_add(digits[i] as i128);
        }
        x
    }

    /// Whether `x < Q`; variable time, for bytes of a peer.
    pub fn contains(&self, x: &U192) -> bool {
        x.iter().rev().lt(self.product.iter().rev())
    }

    /// `x mod q_i`.
    #[inline(always)]
    pub fn reduce_wide(&self, x: &U192, i: usize) -> u64 {
        let m = &self.moduli[i];
        let high = m.reduce_near_2_46((x[2] as u128) << 64 | x[1] as u128);
        m.reduce_near_2_46((high as u128) << 64 | x[0] as u128)
    }
}

/// `round(p f) mod p` for the binary fraction `f / 2^128`.
#[inline(always)]
pub fn round_to_field(f: u128) -> u64 {
    let low = (f as u64) as u128 * fp::P as u128;
    let high = (f >> 64) * fp::P as u128 + (low >> 64);
    // Rounding to nearest; p itself is 0.
    let rounded = ((high + (1 << 63)) >> 64) as u64;
    rounded.wrapping_sub(fp::P & u64::from(rounded == fp::P).wrapping_neg())
}

/// `x y + z`, modulo 2^192.
#[inline(always)]
fn mul_add(x: U192, y: u64, z: u64) -> U192 {
    let mut carry = z as u128;
    x.map(|word| {
        carry += word as u128 * y as u128;
        let low = carry as u64;
        carry >>= 64;
        low
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::RLWE_PRIMES;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn bases() -> Vec<Basis> {
        let moduli = RLWE_PRIMES.map(|p| p.modulus);
        vec![
            Basis::new(&moduli[..2]),
            Basis::new(&moduli[..3]),
            Basis::new(&moduli),
        ]
    }

    #[test]
    fn compose_undoes_reduction() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        for basis in bases() {
            let k = basis.moduli().len();
            assert_eq!(basis.bits() as usize, 46 * k);
            for _ in 0..100 {
                let residues: Vec<u64> = basis
                    .moduli()
                    .iter()
                    .map(|m| m.reduce_u64(rng.next_u64()))
                    .collect();
                let x = basis.compose(|i| residues[i]);
                assert!(basis.contains(&x));
                for i in 0..k {
                    assert_eq!(basis.reduce_wide(&x, i), residues[i]);
                }
            }
            assert!(!basis.contains(&basis.product()));
            for i in 0..k {
                assert_eq!(basis.reduce_wide(&basis.product(), i), 0);
            }
        }
    }

    #[test]
    fn centred_finds_small_integers() {
        for basis in bases().into_iter().skip(1) {
            for (k, bound) in [(1, 44), (2, 90), (3, 125)] {
                for magnitude in [0i128, 1, 12345, (1 << bound) - 1, (1 << (bound - 1)) + 77] {
                    for x in [magnitude, -magnitude] {
                        let residue =
                            |i: usize| x.rem_euclid(basis.moduli()[i].value() as i128) as u64;
                        assert_eq!(basis.centred(residue, k), x, "{k} {x}");
                    }
                }
            }
        }
    }

    #[test]
    fn encode_is_the_rounded_quotient_and_decode_undoes_it() {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        for basis in bases() {
            let k = basis.moduli().len();
            let mut values = fp::uniform_vec(50, &mut rng);
            values.extend([0, 1, fp::P - 1, fp::P / 2, fp::P / 2 + 1]);
            for m in values {
                let mut residues = vec![0; k];
                basis.encode(m, |i, r| residues[i] = r);
                // |p x - Q m| <= p / 2 pins x = round(Q m / p) down; both sides modulo 2^192 and mod p suffice.
                let x = basis.compose(|i| residues[i]);
                let px = mul_add(x, fp::P, 0);
                let qm = mul_add(basis.product(), m, 0);
                let (low, borrow) = px[0].overflowing_sub(qm[0]);
                let middle = px[1].wrapping_sub(qm[1]).wrapping_sub(u64::from(borrow));
                assert!(
                    (low as i64).unsigned_abs() <= fp::P / 2
                        && middle == ((low as i64) >> 63) as u64,
                    "{m}"
                );
                assert_eq!(basis.decode(|i| residues[i]), m);
            }
        }
    }

    #[test]
    fn fraction_of_half_rounds_to_half() {
        assert_eq!(round_to_field(0), 0);
        assert_eq!(round_to_field(1 << 127), fp::P.div_ceil(2));
        assert_eq!(round_to_field(u128::MAX), 0);
        for basis in bases() {
            // x = Q - 1 has the largest fraction below one.
            let f = basis.fraction(|i| basis.moduli()[i].value() - 1);
            assert!(f > u128::MAX - (1u128 << 127 >> (basis.bits() - 2).min(100)));
        }
    }
}
