//! The seal of the last online message: it opens only if every guarded value kept to its range.
//!
//! The server's [`GuardKey`] is the client's exactly then. The last message's content, the server's
//! share of the logits or the decoding bits of their label, is hidden under a stream of that key,
//! and a check value of the same stream tells the client whether its own key is the right one:
//!
//! | bytes | content |
//! | --- | --- |
//! | `n` | content xor stream |
//! | 16 | check value |
//!
//! # What each party learns
//! The client gets the content, or *one bit*: that some value was out of range, not which, nor in
//! which layer. Without the key, which has at least one summand that is a uniform block to it,
//! stream and check are pseudorandom (BLAKE3 keyed by 128 bits), so that a simulator that is told
//! "out of range" sends random bytes; told the content, it seals it under the key that the client
//! computes from the simulated labels. Both happen online, after tables and labels: nothing that
//! was sent before depends on the bit. The server gets nothing: no message follows.
//!
//! A server that deviates can make the client say "out of range" by any other check value, which is
//! one more way of giving a wrong answer. A client that deviates and does not hold the key gets
//! nothing.

use crate::header::BundleId;
use blake3::OutputReader;
use pi_garble::GuardKey;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of the check value: a wrong key passes with probability `2^-128`.
pub(crate) const CHECK_BYTES: usize = 16;

/// Seals the end of a message, from byte `start` on, and appends the check value.
pub(crate) fn seal(key: &GuardKey, id: &BundleId, message: &mut Vec<u8>, start: usize) {
    let (check, mut stream) = stream(key, id);
    mask(&mut stream, &mut message[start..]);
    message.extend_from_slice(&*check);
}

/// The content of a sealed message; `None` if the key is another one.
///
/// # Panics
/// If there are fewer than [`CHECK_BYTES`]; the caller knows how long the message must be.
pub(crate) fn open(key: &GuardKey, id: &BundleId, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let content = sealed.len() - CHECK_BYTES;
    let (content, found) = sealed.split_at(content);
    let (check, mut stream) = stream(key, id);
    // The bit is the client's to know; which byte differs is nobody's.
    if !bool::from(check[..].ct_eq(found)) {
        return None;
    }
    let mut content = Zeroizing::new(content.to_vec());
    mask(&mut stream, &mut content);
    Some(content)
}

/// The check value, and the stream behind it. A key seals once, because a bundle is used once.
fn stream(key: &GuardKey, id: &BundleId) -> (Zeroizing<[u8; CHECK_BYTES]>, OutputReader) {
    let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 range check");
    hash.update(&*key.to_bytes()).update(&id.0);
    let mut stream = hash.finalize_xof();
    hash.zeroize();
    let mut check = Zeroizing::new([0; CHECK_BYTES]);
    stream.fill(&mut *check);
    (check, stream)
}

fn mask(stream: &mut OutputReader, bytes: &mut [u8]) {
    let mut pad = Zeroizing::new(vec![0; bytes.len()]);
    stream.fill(&mut pad);
    for (byte, pad) in bytes.iter_mut().zip(pad.iter()) {
        *byte ^= pad;
    }
    stream.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_opens_with_its_key_and_for_its_bundle_alone() {
        let (key, id) = (GuardKey::from_bytes([7; 16]), BundleId([9; 32]));
        for length in [0, 1, 80, 5000] {
            let content: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let mut message = [&b"labels"[..], &content].concat();
            seal(&key, &id, &mut message, 6);
            assert_eq!(message.len(), 6 + length + CHECK_BYTES);
            assert_eq!(&message[..6], b"labels");
            let sealed = &message[6..];
            assert_eq!(open(&key, &id, sealed).unwrap()[..], content);
            if length >= 80 {
                assert!(
                    sealed
                        .windows(8)
                        .all(|w| !content.windows(8).any(|c| c == w))
                );
            }
            let mut other = [7; 16];
            for bit in [0, 64, 127] {
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(open(&GuardKey::from_bytes(other), &id, sealed).is_none());
            }
            assert!(open(&key, &BundleId([8; 32]), sealed).is_none());
            let mut wrong = sealed.to_vec();
            *wrong.last_mut().unwrap() ^= 1;
            assert!(open(&key, &id, &wrong).is_none());
        }
    }
}
