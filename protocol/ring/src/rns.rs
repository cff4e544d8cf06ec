//! Exact conversions between residues and integers, for up to four primes just below 2^46.
//!
//! With `Q` the product of the primes, `x` in `0..Q` is known by its residues `x_i`. Three
//! functions lead from the residues back to `x`:
//! - [`Basis::coarse_fraction`]: `x / Q` as a 128-bit binary fraction, for rounding `x` to a
//!   smaller modulus;
//! - [`Basis::compose`]: `x` itself, 192 bits, by Garner's mixed radix;
//! - [`Basis::centred`]: `x` in `-Q/2..Q/2` when it is known to be small.
//!
//! All are constant time in the residues.

use crate::Modulus46;
use pi_core::fp;

/// An integer below 2^192, least significant word first.
pub type U192 = [u64; 3];

/// The primes of one modulus with the constants of its reconstructions.
///
/// Functions on residues take the number of primes `L` as a constant, so that their loops unroll.
#[derive(Clone, Debug)]
pub struct Basis {
    count: usize,
    /// Constants of each prime; entries from `count` on repeat the last.
    primes: [Constants; MAX_PRIMES],
    product: U192,
    product_mod_p: u64,
}

/// The most primes of a basis.
const MAX_PRIMES: usize = 4;

/// A residue with its companion for [`crate::Modulus::mul_shoup`].
type Factor = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Constants {
    modulus: Modulus46,
    /// `(Q / q_i)^-1 mod q_i`.
    hat_inverse: Factor,
    /// `floor(2^192 / q_i)`, upper 128 bits and lower 64 bits.
    reciprocal: (u128, u64),
    /// Entry `j < i`: `q_j^-1 mod q_i`.
    garner: [Factor; MAX_PRIMES],
    /// `p^-1 mod q_i`.
    p_inverse: Factor,
}

impl Basis {
    /// The basis of these primes.
    ///
    /// # Panics
    /// If there are none or more than four.
    pub fn new(moduli: &[Modulus46]) -> Self {
        assert!(
            (1..=MAX_PRIMES).contains(&moduli.len()),
            "{} primes",
            moduli.len()
        );
        let primes = std::array::from_fn(|i| {
            let m = moduli[i.min(moduli.len() - 1)];
            let inverse = |of: u64| {
                let w = m.inv(m.reduce_u64(of));
                (w, m.shoup(w))
            };
            let others = moduli.iter().filter(|o| **o != m);
            let q = m.value() as u128;
            // Long division of 2^192 by q in two steps.
            let (high, rest) = (u128::MAX / q, u128::MAX % q + 1);
            Constants {
                modulus: m,
                hat_inverse: inverse(others.fold(1, |hat, o| m.mul(hat, m.reduce_u64(o.value())))),
                reciprocal: (high + rest / q, (((rest % q) << 64) / q) as u64),
                garner: std::array::from_fn(|j| {
                    moduli.get(j).map_or((0, 0), |o| inverse(o.value()))
                }),
                p_inverse: inverse(fp::P),
            }
        });
        Self {
            count: moduli.len(),
            primes,
            product: moduli
                .iter()
                .fold([1, 0, 0], |acc, m| mul_add(acc, m.value(), 0)),
            product_mod_p: moduli.iter().fold(1, |acc, m| fp::mul(acc, m.value())),
        }
    }

    /// `Q`, the product of the primes.
    pub fn product(&self) -> U192 {
        self.product
    }

    /// The constants of the first `L` primes of a basis that has at least as many.
    #[inline(always)]
    fn first<const L: usize>(&self) -> &[Constants; L] {
        debug_assert!(L <= self.count);
        self.primes
            .first_chunk()
            .expect("a basis has room for four primes")
    }

    /// `x / Q` as a fraction of 2^128, at most 8 units too small (modulo 1).
    #[inline(always)]
    fn fraction<const L: usize>(&self, x: [u64; L]) -> u128 {
        self.fraction_with(x, |v, low| (v as u128 * low as u128) >> 64)
    }

    /// `x / Q` as a fraction of 2^128, at most 2^48 units too small (modulo 1): cheaper than
    /// the full one.
    #[inline(always)]
    pub fn coarse_fraction<const L: usize>(&self, x: [u64; L]) -> u128 {
        self.fraction_with(x, |_, _| 0)
    }

    #[inline(always)]
    fn fraction_with<const L: usize>(
        &self,
        x: [u64; L],
        correction: impl Fn(u64, u64) -> u128,
    ) -> u128 {
        debug_assert_eq!(L, self.count);
        // x / Q = sum over i of (x_i hat_i^-1 mod q_i) / q_i, modulo 1.
        let mut sum = 0u128;
        for (x, prime) in x.into_iter().zip(self.first::<L>()) {
            let (w, w_shoup) = prime.hat_inverse;
            let v = prime.modulus.mul_shoup(x, w, w_shoup);
            let (high, low) = prime.reciprocal;
            // v < q_i, so that v high <= 2^128 v / q_i < 2^128.
            sum = sum.wrapping_add((v as u128).wrapping_mul(high) + correction(v, low));
        }
        sum
    }

    /// `round(p x / Q) mod p`: the plaintext of the phase `x`.
    #[inline(always)]
    pub fn decode<const L: usize>(&self, x: [u64; L]) -> u64 {
        round_to_field(self.fraction(x))
    }

    /// `round(Q m / p)`.
    #[inline(always)]
    pub fn encode<const L: usize>(&self, m: u64) -> [u64; L] {
        debug_assert_eq!(L, self.count);
        // round(Q m / p) = (Q m - t) / p with t the centred remainder of Q m modulo p, and Q m = 0
        // modulo q_i.
        let t = fp::centre(fp::mul(self.product_mod_p, m));
        self.first::<L>().map(|prime| {
            let (w, w_shoup) = prime.p_inverse;
            // -t offset by a multiple of q_i that makes it positive: |t| < 2^59 and 2^14 q_i >
            // 2^59.
            let shifted = (prime.modulus.value() << 14).wrapping_sub(t as u64);
            prime.modulus.mul_shoup(shifted, w, w_shoup)
        })
    }

    /// The mixed radix digits of `x` modulo the first `L` primes: `d_0 + q_0 (d_1 + q_1 (d_2 + q_2
    /// d_3))`.
    #[inline(always)]
    fn digits<const L: usize>(&self, x: [u64; L]) -> [u64; L] {
        let mut digits = x;
        for (i, prime) in self.first::<L>().iter().enumerate() {
            let m = &prime.modulus;
            for j in 0..i {
                // Digits are below 2^46 < 2 q_i.
                let difference = m.sub(digits[i], m.subtract_once(digits[j]));
                let (w, w_shoup) = prime.garner[j];
                digits[i] = m.mul_shoup(difference, w, w_shoup);
            }
        }
        digits
    }

    /// `x`, from its residues.
    pub fn compose<const L: usize>(&self, x: [u64; L]) -> U192 {
        debug_assert_eq!(L, self.count);
        let digits = self.digits(x);
        let pairs = digits.iter().zip(self.first::<L>()).rev();
        pairs.fold([0; 3], |x, (&digit, prime)| {
            mul_add(x, prime.modulus.value(), digit)
        })
    }

    /// `x` in `-2^(46 k - 2) .. 2^(46 k - 2)`, from its first `K <= 3` residues alone.
    ///
    /// # Preconditions
    /// `x` is in that range, and `|x| < 2^126`.
    #[inline(always)]
    pub fn centred<const K: usize>(&self, x: [u64; K]) -> i128 {
        const { assert!(K >= 1 && K <= 3) };
        let primes = self.first::<K>();
        let digits = self.digits(x);
        // The top digit is read as signed. Terms may exceed 128 bits where the sum does not:
        // arithmetic wraps.
        let top = primes[K - 1].modulus;
        let negative = ((top.value() / 2).wrapping_sub(digits[K - 1]) as i64 >> 63) as u64;
        let mut x = digits[K - 1].wrapping_sub(top.value() & negative) as i64 as i128;
        for i in (0..K - 1).rev() {
            x = x
                .wrapping_mul(primes[i].modulus.value() as i128)
                .wrapping_add(digits[i] as i128);
        }
        x
    }

    /// Returns true if `x < Q`; variable time, for bytes of a peer.
    pub fn contains(&self, x: &U192) -> bool {
        x.iter().rev().lt(self.product.iter().rev())
    }

    /// The residues of `x`.
    #[inline(always)]
    pub fn reduce_wide<const L: usize>(&self, x: &U192) -> [u64; L] {
        debug_assert_eq!(L, self.count);
        self.first::<L>().map(|prime| {
            let m = prime.modulus;
            let high = m.reduce_u128(((x[2] as u128) << 64) | x[1] as u128);
            m.reduce_u128(((high as u128) << 64) | x[0] as u128)
        })
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
    use crate::ntt::RLWE_MODULI as MODULI;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn basis<const L: usize>() -> Basis {
        Basis::new(&MODULI[..L])
    }

    /// The number of bits of `Q`.
    fn bits(basis: &Basis) -> u32 {
        192 - match basis.product() {
            [low, 0, 0] => 128 + low.leading_zeros(),
            [_, middle, 0] => 64 + middle.leading_zeros(),
            [_, _, high] => high.leading_zeros(),
        }
    }

    fn compose_undoes_reduction_of<const L: usize>() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let basis = basis::<L>();
        assert_eq!(bits(&basis) as usize, 46 * L);
        for _ in 0..100 {
            let residues: [u64; L] = std::array::from_fn(|i| MODULI[i].reduce_u64(rng.next_u64()));
            let x = basis.compose(residues);
            assert!(basis.contains(&x));
            assert_eq!(basis.reduce_wide(&x), residues);
        }
        assert!(!basis.contains(&basis.product()));
        assert_eq!(basis.reduce_wide(&basis.product()), [0; L]);
    }

    #[test]
    fn compose_undoes_reduction() {
        compose_undoes_reduction_of::<2>();
        compose_undoes_reduction_of::<3>();
        compose_undoes_reduction_of::<4>();
    }

    fn centred_finds_integers_of<const K: usize>(bound: u32) {
        for magnitude in [0i128, 1, 12345, (1 << bound) - 1, (1 << (bound - 1)) + 77] {
            for x in [magnitude, -magnitude] {
                let residues: [u64; K] =
                    std::array::from_fn(|i| x.rem_euclid(MODULI[i].value() as i128) as u64);
                assert_eq!(basis::<3>().centred(residues), x, "{K} {x}");
                assert_eq!(basis::<4>().centred(residues), x, "{K} {x}");
            }
        }
    }

    #[test]
    fn centred_finds_small_integers() {
        centred_finds_integers_of::<1>(44);
        centred_finds_integers_of::<2>(90);
        centred_finds_integers_of::<3>(125);
    }

    fn encode_is_exact_over<const L: usize>() {
        let basis = basis::<L>();
        let mut values = fp::uniform_vec(50, &mut ChaCha20Rng::seed_from_u64(3));
        values.extend([0, 1, fp::P - 1, fp::P / 2, fp::P / 2 + 1]);
        for m in values {
            let residues: [u64; L] = basis.encode(m);
            // |p x - Q m| <= p / 2 pins x = round(Q m / p) down; 128 bits of both sides suffice.
            let x = basis.compose(residues);
            let px = mul_add(x, fp::P, 0);
            let qm = mul_add(basis.product(), m, 0);
            let (low, borrow) = px[0].overflowing_sub(qm[0]);
            let middle = px[1].wrapping_sub(qm[1]).wrapping_sub(u64::from(borrow));
            assert!(
                (low as i64).unsigned_abs() <= fp::P / 2 && middle == ((low as i64) >> 63) as u64,
                "{m}"
            );
            assert_eq!(basis.decode(residues), m);
            let fine = basis.fraction(residues);
            assert!(fine.wrapping_sub(basis.coarse_fraction(residues)) < 1 << 48);
        }
        // x = Q - 1 has the largest fraction below one.
        let f = basis.fraction::<L>(std::array::from_fn(|i| MODULI[i].value() - 1));
        assert!(f > u128::MAX - (1u128 << 127 >> (bits(&basis) - 2).min(100)));
    }

    #[test]
    fn encode_is_the_rounded_quotient_and_decode_undoes_it() {
        encode_is_exact_over::<2>();
        encode_is_exact_over::<3>();
        encode_is_exact_over::<4>();
    }

    #[test]
    fn halves_round_up_and_one_wraps_to_zero() {
        assert_eq!(round_to_field(0), 0);
        assert_eq!(round_to_field(1 << 127), fp::P.div_ceil(2));
        assert_eq!(round_to_field(u128::MAX), 0);
    }
}
