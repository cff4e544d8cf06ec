//! Expansion of seeds: the public randomness of uploads and keys, and fast streams for secrets.
//!
//! # The stream (part of the wire format)
//! `h = BLAKE3-derive-key("pianissimo rlwe xof 1", seed || le64(len(label)) || label)`, 32 bytes.
//! The stream is AES-128 in counter mode: the key is `h[0..16]`, block `i` is the encryption of
//! `le128(le128(h[16..32]) + i mod 2^128)`. The stream is read as little-endian 64-bit words.
//!
//! # Uniform residues
//! A residue modulo a 46-bit prime takes the low 46 bits of the next word, and skips words until
//! that is below the prime. A polynomial takes its limbs one after the other, each in index order.
//!
//! The key of a public stream is known to everybody, so its use as a source of uniform ring
//! elements is argued in the ideal-cipher model, as for the matrices of FrodoKEM. For secret
//! streams AES-128 is a pseudorandom permutation; at most 2^16 blocks are read of each, which
//! distinguishes it from random with 2^-97; the random start of the counter keeps attacks on many
//! streams at once from gaining anything.

use aes::cipher::{BlockCipherEncrypt, KeyInit};
use pi_ring::{Domain, Modulus46, RnsPoly};
use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A seed of public randomness.
pub type Seed = [u8; 32];

/// Blocks encrypted at once: enough for the widest vector code.
const BLOCKS: usize = 128;

/// A stream of pseudorandom words.
pub(crate) struct Stream {
    cipher: aes::Aes128,
    counter: u128,
    words: [u64; 2 * BLOCKS],
    used: usize,
}

impl Stream {
    /// The public stream of a seed for one purpose.
    pub(crate) fn public(seed: &Seed, label: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("pianissimo rlwe xof 1");
        hasher
            .update(seed)
            .update(&(label.len() as u64).to_le_bytes())
            .update(label.as_bytes());
        Self::new(hasher.finalize().as_bytes())
    }

    /// A secret stream, keyed by 32 bytes of `rng`.
    pub(crate) fn secret(rng: &mut impl CryptoRng) -> Self {
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        let stream = Self::new(&key);
        key.zeroize();
        stream
    }

    fn new(key: &[u8; 32]) -> Self {
        let (key, counter) = key.split_first_chunk::<16>().expect("32 bytes hold 16");
        let counter = u128::from_le_bytes(*counter.first_chunk().expect("16 bytes are left"));
        Self {
            cipher: aes::Aes128::new(&(*key).into()),
            counter,
            words: [0; 2 * BLOCKS],
            used: 2 * BLOCKS,
        }
    }

    fn refill(&mut self) {
        let mut blocks = [aes::Block::default(); BLOCKS];
        for (i, block) in blocks.iter_mut().enumerate() {
            *block = self.counter.wrapping_add(i as u128).to_le_bytes().into();
        }
        self.counter = self.counter.wrapping_add(BLOCKS as u128);
        self.cipher.encrypt_blocks(&mut blocks);
        for (pair, block) in self.words.chunks_exact_mut(2).zip(&blocks) {
            let value = u128::from_le_bytes((*block).into());
            (pair[0], pair[1]) = (value as u64, (value >> 64) as u64);
        }
        self.used = 0;
    }

    /// The next word.
    #[inline(always)]
    pub(crate) fn word(&mut self) -> u64 {
        if self.used == self.words.len() {
            self.refill();
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// A uniform residue; variable time, for public streams.
    #[inline(always)]
    pub(crate) fn residue(&mut self, m: &Modulus46) -> u64 {
        let mask = (1 << 46) - 1;
        loop {
            let x = self.word() & mask;
            if x < m.value() {
                return x;
            }
        }
    }

    /// A uniform polynomial; variable time, for public streams.
    pub(crate) fn polynomial(&mut self, n: usize, moduli: &[Modulus46], domain: Domain) -> RnsPoly {
        let mut poly = RnsPoly::zero(n, moduli.len(), domain);
        for (limb, m) in poly.limbs_mut().zip(moduli) {
            for x in limb {
                *x = self.residue(m);
            }
        }
        poly
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.words.zeroize();
        self.counter.zeroize();
    }
}

// The cipher erases its own key schedule.
impl ZeroizeOnDrop for Stream {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_counter_mode_over_the_hashed_seed() {
        let (seed, label) = ([7u8; 32], "label");
        let mut input = seed.to_vec();
        input.extend(5u64.to_le_bytes());
        input.extend(label.as_bytes());
        let h = blake3::derive_key("pianissimo rlwe xof 1", &input);
        let key: [u8; 16] = h[..16].try_into().unwrap();
        let cipher = aes::Aes128::new(&key.into());
        let start = u128::from_le_bytes(h[16..].try_into().unwrap());
        let mut stream = Stream::public(&seed, label);
        for i in 0..2 * BLOCKS as u128 + 3 {
            let mut block: aes::Block = start.wrapping_add(i).to_le_bytes().into();
            cipher.encrypt_block(&mut block);
            let expected = u128::from_le_bytes(block.into());
            assert_eq!(
                (stream.word(), stream.word()),
                (expected as u64, (expected >> 64) as u64),
                "block {i}"
            );
        }
    }

    #[test]
    fn labels_and_seeds_separate_streams() {
        let first = |seed: u8, label| Stream::public(&[seed; 32], label).word();
        assert_ne!(first(0, "a"), first(0, "b"));
        assert_ne!(first(0, "a"), first(1, "a"));
        assert_eq!(first(0, "a"), first(0, "a"));
    }

    /// Fixes the wire format: another implementation must find these numbers.
    #[test]
    fn test_vector() {
        let mut stream = Stream::public(&[0; 32], "test vector");
        assert_eq!([stream.word(), stream.word(), stream.word()], VECTOR_WORDS);
        let m = pi_ring::ntt::RLWE_MODULI[0];
        let mut stream = Stream::public(&[0; 32], "test vector");
        let poly = stream.polynomial(4, &[m, m], Domain::Values);
        let low = |x: u64| x & ((1 << 46) - 1);
        assert_eq!(poly.limb(0)[..3], VECTOR_WORDS.map(low));
    }

    const VECTOR_WORDS: [u64; 3] = [
        9825508378239635958,
        8888619798927326274,
        1826437569657677836,
    ];
}
