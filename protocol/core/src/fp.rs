//! The field of shares, `F_p` with `p = 2^60 - 2^18 + 1`: arithmetic, sampling and encoding.
//!
//! Elements are `u64` in `0..P`. Everything here is constant time, because values are shares and
//! masks; what is not says so. Reduction uses the special form, `2^60 = 2^18 - 1 (mod p)`. As
//! `p = 1 (mod 2^18)`, the field has the roots of unity of negacyclic transforms up to length
//! 2^17, hence SIMD slots.

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::Error;

/// The field's characteristic, `2^60 - 2^18 + 1`.
pub const P: u64 = (1 << 60) - (1 << 18) + 1;

/// Size of a field element on the wire.
pub const ELEMENT_BYTES: usize = 8;

/// A primitive 16384-th root of unity modulo [`P`], the one that fixes the order of slots for
/// `n = 8192`.
pub const ROOT_16384: u64 = 0xb97_cdb9_7187_a80d;

/// `2^60 mod p`.
const FOLD: u64 = (1 << 18) - 1;
const LOW: u64 = (1 << 60) - 1;

/// Secret elements, erased when dropped.
pub type Elements = Zeroizing<Vec<u64>>;

/// Returns `a + b`.
#[inline(always)]
pub fn add(a: u64, b: u64) -> u64 {
    debug_assert!(a < P && b < P);
    subtract_once(a + b)
}

/// Returns `a - b`.
#[inline(always)]
pub fn sub(a: u64, b: u64) -> u64 {
    debug_assert!(a < P && b < P);
    let d = a.wrapping_sub(b);
    d.wrapping_add(P & ((d as i64 >> 63) as u64))
}

/// Returns `-a`.
#[inline(always)]
pub fn neg(a: u64) -> u64 {
    sub(0, a)
}

/// Returns `a` times `b`.
#[inline(always)]
pub fn mul(a: u64, b: u64) -> u64 {
    reduce_u128(a as u128 * b as u128)
}

/// Returns `a` if `bit` is 1 and 0 if it is 0, without branching on it.
#[inline(always)]
pub fn masked_by(a: u64, bit: u8) -> u64 {
    a & 0u64.wrapping_sub((bit & 1) as u64)
}

/// Returns `a` if `bit` is 0 and `-a` if it is 1, without branching on it.
#[inline(always)]
pub fn negated_by(a: u64, bit: u8) -> u64 {
    a ^ masked_by(a ^ neg(a), bit)
}

/// Returns `x mod p` for any 128-bit integer.
///
/// For a uniform `x` the result is within statistical distance `2^-68` of uniform.
#[inline(always)]
pub fn reduce_u128(x: u128) -> u64 {
    // x < 2^128: the upper part is below 2^68, its multiple of 2^18 - 1 below 2^86, so the first
    // fold is below 2^87; the second leaves below 2^60 + 2^45 < 2 P.
    let x = (x as u64 & LOW) as u128 + (x >> 60) * FOLD as u128;
    let x = (x as u64 & LOW) + (x >> 60) as u64 * FOLD;
    subtract_once(x)
}

/// Returns `x mod p` for any 64-bit integer.
#[inline(always)]
pub fn reduce_u64(x: u64) -> u64 {
    subtract_once((x & LOW) + (x >> 60) * FOLD)
}

/// Returns `x` minus `P` if that is not negative, for `x < 2 P`.
#[inline(always)]
fn subtract_once(x: u64) -> u64 {
    let reduced = x.wrapping_sub(P);
    // The borrow, spread over the word, adds P back without a branch.
    reduced.wrapping_add(P & ((reduced as i64 >> 63) as u64))
}

/// Returns the field element of a signed 64-bit integer.
#[inline(always)]
pub fn from_i64(x: i64) -> u64 {
    // 16 P exceeds 2^63, so the shifted value is not negative; it is below 2^63 + 2^64 and needs
    // 128 bits.
    reduce_u128((x as i128 + 16 * P as i128) as u128)
}

/// Returns the field element of a signed integer with `|x| < 2^126`.
#[inline(always)]
pub fn from_i128(x: i128) -> u64 {
    // A multiple of P just below 2^127, so that the sum is neither negative nor 2^128.
    const OFFSET: u128 = (1 << 67) * P as u128;
    debug_assert!(x.unsigned_abs() < 1 << 126);
    reduce_u128(OFFSET.wrapping_add(x as u128))
}

/// Returns the representative of a field element in `-(P-1)/2 ..= (P-1)/2`.
#[inline(always)]
pub fn centre(x: u64) -> i64 {
    debug_assert!(x < P);
    let above_half = ((P / 2).wrapping_sub(x) as i64 >> 63) as u64;
    x.wrapping_sub(P & above_half) as i64
}

/// Returns `base` to the power `exponent`; variable time in the exponent, which is public.
pub fn pow(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = mul(result, base);
        }
        base = mul(base, base);
        exponent >>= 1;
    }
    result
}

/// Returns the inverse of a field element, and 0 for 0.
pub fn inv(a: u64) -> u64 {
    pow(a, P - 2)
}

/// Returns a uniform field element: the low 60 bits of 64-bit draws, until they are below `P`.
///
/// A draw is rejected with probability 2^-42, independently of the value returned, so that the time
/// reveals nothing of it.
pub fn uniform(rng: &mut (impl CryptoRng + ?Sized)) -> u64 {
    loop {
        let x = rng.next_u64() & LOW;
        if x < P {
            return x;
        }
    }
}

/// Returns `count` uniform field elements, distributed as those of [`uniform`].
///
/// All first draws are read from the generator at once and rejected ones are replaced after them,
/// so the values need not be those of `count` calls of [`uniform`].
pub fn uniform_vec(count: usize, rng: &mut (impl CryptoRng + ?Sized)) -> Vec<u64> {
    let mut values = vec![0u64; count];
    rng.fill_bytes(bytemuck::cast_slice_mut(&mut values));
    for value in &mut values {
        let x = u64::from_le(*value) & LOW;
        *value = if x < P { x } else { uniform(rng) };
    }
    values
}

/// Returns the bytes of a slice of elements as they travel: 8 bytes each, little-endian.
#[inline]
pub fn encode(elements: &[u64]) -> &[u8] {
    bytemuck::cast_slice(elements)
}

/// Reads exactly `count` elements from a peer's message.
///
/// # Errors
/// [`Error::PeerLength`] unless the message has `8 count` bytes, [`Error::PeerValue`] for a value
/// that is not below `p`.
pub fn decode(what: &'static str, bytes: &[u8], count: usize) -> Result<Vec<u64>, Error> {
    Error::check_message(what, count.saturating_mul(ELEMENT_BYTES), bytes.len())?;
    let elements: Vec<u64> = bytes
        .chunks_exact(ELEMENT_BYTES)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("chunks have 8 bytes")))
        .collect();
    match elements.iter().position(|&element| element >= P) {
        Some(index) => Err(Error::PeerValue { what, index }),
        None => Ok(elements),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    /// Random values beside the edges. All pairs are tried, which is too much for Miri.
    const RANDOM: usize = if cfg!(miri) { 4 } else { 200 };

    fn edges_and_random() -> Vec<u64> {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut v = vec![0, 1, 2, FOLD, P / 2, P / 2 + 1, P - 2, P - 1];
        v.extend((0..RANDOM).map(|_| uniform(&mut rng)));
        v
    }

    #[test]
    fn operations_agree_with_wide_integers() {
        let v = edges_and_random();
        for &a in &v {
            for &b in &v {
                assert_eq!(add(a, b) as u128, (a as u128 + b as u128) % P as u128);
                assert_eq!(
                    sub(a, b) as u128,
                    (a as u128 + P as u128 - b as u128) % P as u128
                );
                assert_eq!(mul(a, b) as u128, a as u128 * b as u128 % P as u128);
            }
        }
    }

    #[test]
    fn inverses_and_centre() {
        for a in edges_and_random() {
            assert_eq!(mul(a, inv(a)), u64::from(a != 0));
            let c = centre(a);
            assert!(c.unsigned_abs() <= P / 2);
            assert_eq!(from_i64(c), a);
            assert_eq!(add(a, neg(a)), 0);
        }
    }

    #[test]
    fn reduction_covers_the_whole_range() {
        for x in [
            0u128,
            1,
            P as u128,
            u128::MAX,
            u128::MAX - 1,
            1 << 127,
            (P as u128) * (P as u128),
            (1 << 120) - 1,
        ] {
            assert_eq!(reduce_u128(x) as u128, x % P as u128, "{x}");
        }
        for x in [0, P - 1, P, P + 1, u64::MAX, u64::MAX - 5, 1 << 63] {
            assert_eq!(reduce_u64(x), x % P, "{x}");
        }
        for x in [i64::MIN, i64::MAX, -1, 0, 1, -(P as i64), P as i64] {
            assert_eq!(
                from_i64(x) as i128,
                (x as i128).rem_euclid(P as i128),
                "{x}"
            );
        }
        for x in [
            -(1i128 << 126) + 1,
            (1 << 126) - 1,
            -1,
            0,
            5,
            -(P as i128) - 1,
        ] {
            assert_eq!(from_i128(x) as i128, x.rem_euclid(P as i128), "{x}");
        }
    }

    #[test]
    fn p_is_prime_and_the_root_is_primitive() {
        // Pocklington: the factored part 2^18 of P - 1 is below sqrt(P), so use a strong test to
        // twelve bases instead, which decides primality below 2^64.
        let (odd, twos) = ((P - 1) >> 18, 18);
        for base in [2u64, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37] {
            let mut x = pow(base, odd);
            let mut witness = x == 1 || x == P - 1;
            for _ in 1..twos {
                x = mul(x, x);
                witness |= x == P - 1;
            }
            assert!(witness, "base {base}");
        }
        assert_eq!(pow(ROOT_16384, 8192), P - 1);
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics")]
    fn uniform_vec_is_in_range_and_spread() {
        let v = uniform_vec(4096, &mut ChaCha20Rng::seed_from_u64(3));
        assert!(v.iter().all(|&x| x < P));
        let high = v.iter().filter(|&&x| x >= P / 2).count();
        // Binomial(4096, 1/2): eight standard deviations are 256.
        assert!((1792..=2304).contains(&high), "{high}");
    }

    #[test]
    fn selections_and_sums_agree_with_remainders() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let edges = [0, 1, 2, P / 2, P - 2, P - 1];
        let random: Vec<u64> = (0..RANDOM / 4).map(|_| uniform(&mut rng)).collect();
        let all: Vec<u64> = edges.into_iter().chain(random).collect();
        let p = P as u128;
        for &a in &all {
            assert_eq!(neg(a) as u128, (p - a as u128) % p);
            assert_eq!((masked_by(a, 0), masked_by(a, 1)), (0, a));
            assert_eq!((negated_by(a, 0), negated_by(a, 1)), (a, neg(a)));
            for &b in &all {
                assert_eq!(add(a, b) as u128, (a as u128 + b as u128) % p);
                assert_eq!(sub(a, b) as u128, (p + a as u128 - b as u128) % p);
            }
        }
    }

    #[test]
    fn reduction_of_powers_of_two_and_random_values() {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        let p = P as u128;
        let mut all = vec![
            0,
            1,
            p - 1,
            p,
            p + 1,
            2 * p - 1,
            2 * p,
            u128::MAX,
            u128::MAX - 1,
            p * p,
            p * p - 1,
        ];
        for shift in (0..128).step_by(if cfg!(miri) { 13 } else { 1 }) {
            all.extend([1 << shift, (1 << shift) - 1, u128::MAX << shift]);
        }
        all.extend(
            (0..5 * RANDOM).map(|_| (rng.next_u64() as u128) << 64 | rng.next_u64() as u128),
        );
        for x in all {
            assert_eq!(reduce_u128(x) as u128, x % p, "{x}");
        }
    }

    #[test]
    fn decode_refuses_lengths_and_values() {
        let bytes = encode(&[5, P - 1]);
        assert_eq!(decode("rows", bytes, 2).unwrap(), [5, P - 1]);
        assert!(matches!(
            decode("rows", &bytes[1..], 2),
            Err(Error::PeerLength {
                what: "rows",
                expected: 16,
                got: 15
            })
        ));
        assert_eq!(
            decode("rows", encode(&[5, P]), 2).unwrap_err(),
            Error::PeerValue {
                what: "rows",
                index: 1
            }
        );
    }
}
