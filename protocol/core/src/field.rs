//! The little of `F_p`, `p = 2^60 - 2^18 + 1`, that the gadget needs; elements are `u64` below `p`.
//!
//! The full field lives in `pi-ring`, which stands beside this crate, not below it. Everything here
//! is constant time: shares and masks are secret.

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::Error;

/// The plaintext modulus `p = 2^60 - 2^18 + 1`.
pub const P: u64 = (1 << 60) - (1 << 18) + 1;

/// Size of a field element on the wire.
pub const ELEMENT_BYTES: usize = 8;

/// Secret elements, erased when dropped.
pub type Elements = Zeroizing<Vec<u64>>;

/// Returns `x mod p` for any 128-bit `x`.
///
/// For a uniform `x` the result is within statistical distance `2^-68` of uniform.
#[inline]
pub const fn reduce(x: u128) -> u64 {
    // 2^60 = 2^18 - 1 (mod p). x < 2^128 gives hi < 2^68 and a sum below 2^60 + 2^86 < 2^87; the
    // second step leaves hi < 2^27 and a sum below 2^60 + 2^45, the third hi <= 1 and a sum below
    // 2p.
    const LOW: u128 = (1 << 60) - 1;
    const FOLD: u128 = (1 << 18) - 1;
    let x = (x & LOW) + (x >> 60) * FOLD;
    let x = (x & LOW) + (x >> 60) * FOLD;
    let x = (x & LOW) + (x >> 60) * FOLD;
    subtract_once(x as u64)
}

/// Returns `a + b mod p`.
#[inline]
pub const fn add(a: u64, b: u64) -> u64 {
    subtract_once(a + b)
}

/// Returns `a - b mod p`.
#[inline]
pub const fn sub(a: u64, b: u64) -> u64 {
    subtract_once(a + P - b)
}

/// Returns `-a mod p`.
#[inline]
pub const fn neg(a: u64) -> u64 {
    subtract_once(P - a)
}

/// Returns `a` if `bit` is 1 and 0 if it is 0, without branching on it.
#[inline]
pub const fn masked_by(a: u64, bit: u8) -> u64 {
    a & 0u64.wrapping_sub((bit & 1) as u64)
}

/// Returns `a` if `bit` is 0 and `-a` if it is 1, without branching on it.
#[inline]
pub const fn negated_by(a: u64, bit: u8) -> u64 {
    a ^ masked_by(a ^ neg(a), bit)
}

/// Returns a uniform element.
pub fn random(rng: &mut (impl CryptoRng + ?Sized)) -> u64 {
    let (low, high) = (rng.next_u64(), rng.next_u64());
    reduce((high as u128) << 64 | low as u128)
}

/// Returns the bytes of a slice of elements as they travel: 8 bytes each, little-endian.
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

/// Maps `[0, 2p)` to `[0, p)`.
#[inline]
const fn subtract_once(x: u64) -> u64 {
    let reduced = x.wrapping_sub(P);
    // p < 2^60, so the top bit is set exactly if the difference is negative.
    reduced.wrapping_add(P & 0u64.wrapping_sub(reduced >> 63))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    #[test]
    fn operations_agree_with_remainders() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let edges = [0, 1, 2, P / 2, P - 2, P - 1];
        let random: Vec<u64> = (0..50).map(|_| random(&mut rng)).collect();
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
    fn reduction_of_edges_and_random_values() {
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
        for shift in 0..128 {
            all.extend([1 << shift, (1 << shift) - 1, u128::MAX << shift]);
        }
        all.extend((0..1000).map(|_| (rng.next_u64() as u128) << 64 | rng.next_u64() as u128));
        for x in all {
            assert_eq!(reduce(x) as u128, x % p, "{x}");
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
