//! The pseudorandom generator: AES-128 in counter mode, starting at a secret counter.
//!
//! Both parties use it wherever a seed is stretched: for columns of the OT extension and for labels
//! of the server's inputs. A session knows millions of seeds at a time, and with a public starting
//! counter one guessed key could be tried against all of them at once. Here the key *and* the
//! starting counter come from the 32-byte seed, so a guess concerns one seed.
//!
//! # Back ends
//! The definition is the `aes` crate, which has vector code of its own. That of `avx512` and that
//! over [`crate::vector`] make the counters in registers as well, and keep the output there until
//! it is written: a block takes a fifth of the time on Zen 3.

use std::fmt;

use aes::Aes128Enc;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use rand_core::{CryptoRng, RngCore};
use zeroize::{Zeroize, Zeroizing};

use crate::block::{BLOCK_BYTES, Block, Labels};
use crate::memory;
use crate::vector::Code;

#[cfg(target_arch = "x86_64")]
mod avx512;
mod vector;

/// Size of a seed.
pub const SEED_BYTES: usize = 32;

/// A seed of the generator, erased when dropped.
pub type Seed = Zeroizing<[u8; SEED_BYTES]>;

/// The stream of one seed.
///
/// Every call that reads from the stream starts on a new block, so that both parties stay in step
/// as long as they make the same calls.
#[derive(Clone)]
pub struct Prg {
    cipher: Cipher,
    start: u128,
    next: u128,
}

/// The expanded key; either form erases its own schedule.
#[derive(Clone)]
enum Cipher {
    Portable(Aes128Enc),
    Vector(vector::RoundKeys),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::RoundKeys),
}

impl Cipher {
    fn new(key: [u8; BLOCK_BYTES], code: Code) -> Self {
        match code {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the back end is supported, and its features include those that the function
            // enables.
            Code::Avx512 => {
                Cipher::Avx512(unsafe { avx512::RoundKeys::new(Block::from_bytes(key)) })
            }
            Code::Vector(instructions) => {
                Cipher::Vector(vector::RoundKeys::new(Block::from_bytes(key), instructions))
            }
            Code::Portable => Cipher::Portable(Aes128Enc::new(&Array::from(key))),
        }
    }
}

impl Prg {
    /// Returns the stream of a seed, at its beginning.
    pub fn new(seed: &[u8; SEED_BYTES]) -> Self {
        Prg::with_code(seed, Code::get())
    }

    /// Does the same as [`Prg::new`], by a version that must be supported.
    fn with_code(seed: &[u8; SEED_BYTES], code: Code) -> Self {
        let (key, start) = seed.split_at(BLOCK_BYTES);
        let key: [u8; BLOCK_BYTES] = key.try_into().expect("half of 32 bytes");
        let start: [u8; BLOCK_BYTES] = start.try_into().expect("half of 32 bytes");
        Prg {
            cipher: Cipher::new(key, code),
            start: u128::from_le_bytes(start),
            next: 0,
        }
    }

    /// Fills `out` with the stream from block `position` on, without moving the stream.
    pub fn fill_at(&self, position: u128, out: &mut [u8]) {
        let counter = self.start.wrapping_add(position);
        match &self.cipher {
            Cipher::Portable(cipher) => fill_portable(cipher, counter, out),
            Cipher::Vector(keys) => keys.fill(counter, out),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this cipher was made because the features that the function enables were
            // found.
            Cipher::Avx512(keys) => unsafe { keys.fill(counter, out) },
        }
    }

    /// Returns the rest of the stream, from block `position` on: its first block is that one,
    /// however far this stream has moved.
    pub fn from_block(&self, position: u128) -> Prg {
        Prg {
            cipher: self.cipher.clone(),
            start: self.start.wrapping_add(position),
            next: 0,
        }
    }

    /// Returns the next `count` blocks of the stream.
    pub fn blocks(&mut self, count: usize) -> Labels {
        let mut blocks = Zeroizing::new(memory::filled(Block::ZERO, count));
        self.fill_bytes(bytemuck::cast_slice_mut(&mut blocks));
        blocks
    }
}

impl RngCore for Prg {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        self.fill_at(self.next, out);
        self.next += out.len().div_ceil(BLOCK_BYTES) as u128;
    }
}

impl CryptoRng for Prg {}

/// Fills `out` with the encryptions of `counter`, `counter + 1`, ...: the definition.
fn fill_portable(cipher: &Aes128Enc, mut counter: u128, out: &mut [u8]) {
    // 64 blocks are what the widest back end of `aes` takes at a time.
    const BATCH: usize = 64;
    for chunk in out.chunks_mut(BATCH * BLOCK_BYTES) {
        let mut blocks = [Array::from([0; BLOCK_BYTES]); BATCH];
        let used = &mut blocks[..chunk.len().div_ceil(BLOCK_BYTES)];
        for block in used.iter_mut() {
            *block = Array::from(counter.to_le_bytes());
            counter = counter.wrapping_add(1);
        }
        cipher.encrypt_blocks(used);
        for (bytes, block) in chunk.chunks_mut(BLOCK_BYTES).zip(used) {
            bytes.copy_from_slice(&block[..bytes.len()]);
        }
    }
}

// The cipher erases its own key schedule.
impl Drop for Prg {
    fn drop(&mut self) {
        self.start.zeroize();
    }
}

impl fmt::Debug for Prg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prg(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_block_is_the_encrypted_start() {
        // FIPS 197, appendix C.1.
        let mut seed = [0; SEED_BYTES];
        for i in 0..16 {
            seed[i] = i as u8;
            seed[16 + i] = (i * 0x11) as u8;
        }
        let expected = 0x69c4_e0d8_6a7b_0430_d8cd_b780_70b4_c55a_u128.to_be_bytes();
        let mut out = [0; 16];
        Prg::new(&seed).fill_bytes(&mut out);
        assert_eq!(out, expected);
    }

    /// Bytes of outputs. The longest are for the vector back ends, which Miri does not run.
    const LENGTHS: &[usize] = if cfg!(miri) {
        &[0, 1, 64, 129]
    } else {
        &[0, 1, 16, 63, 64, 511, 512, 513, 1024, 2000]
    };

    #[test]
    fn every_version_equals_the_definition() {
        let mut seed: [u8; SEED_BYTES] = std::array::from_fn(|i| (i * 7 + 3) as u8);
        let near_overflow = u128::MAX << 64 | (u64::MAX - 20) as u128;
        for start in [5, u64::MAX as u128 - 9, near_overflow, u128::MAX - 33] {
            seed[BLOCK_BYTES..].copy_from_slice(&start.to_le_bytes());
            let plain = Prg::with_code(&seed, Code::Portable);
            for code in Code::supported() {
                let prg = Prg::with_code(&seed, code);
                for &len in LENGTHS {
                    let (mut expected, mut found) = (vec![0; len], vec![1; len]);
                    plain.fill_at(3, &mut expected);
                    prg.fill_at(3, &mut found);
                    assert_eq!(found, expected, "{code:?}, {len} bytes from {start:#x}");
                }
            }
        }
    }

    #[test]
    fn pieces_equal_the_whole() {
        let prg = Prg::new(&[7; SEED_BYTES]);
        let pieces: &[(u128, usize)] = if cfg!(miri) {
            &[(0, 1), (3, 16), (10, 100)]
        } else {
            &[(0, 1), (3, 16), (10, 100), (64, 1024), (1, 4000)]
        };
        let mut whole = vec![0; if cfg!(miri) { 300 } else { 5000 }];
        prg.fill_at(0, &mut whole);
        for &(start, len) in pieces {
            let mut piece = vec![0; len];
            prg.fill_at(start, &mut piece);
            assert_eq!(piece, whole[start as usize * 16..][..len]);
        }
        let mut stream = prg.clone();
        stream.next_u64();
        assert_eq!(stream.next_u64().to_le_bytes(), whole[16..24]);
    }

    #[test]
    fn the_rest_of_a_stream_is_the_stream_from_there() {
        let mut seed = [3; SEED_BYTES];
        seed[BLOCK_BYTES..].fill(0xff);
        let mut stream = Prg::new(&seed);
        let whole = stream.blocks(9);
        for (first, rest) in [(0, 9), (4, 5), (8, 1)] {
            let blocks = stream.from_block(first).blocks(rest);
            assert_eq!(Block::encode(&blocks), Block::encode(&whole[9 - rest..]));
        }
        let moved = stream.from_block(2).from_block(3);
        let mut block = [0; BLOCK_BYTES];
        moved.fill_at(1, &mut block);
        assert_eq!(block, whole[6].to_bytes());
    }

    #[test]
    fn both_halves_of_the_seed_matter() {
        let mut streams = vec![Prg::new(&[0; SEED_BYTES]).next_u64()];
        for i in (0..SEED_BYTES).step_by(if cfg!(miri) { 15 } else { 1 }) {
            let mut seed = [0; SEED_BYTES];
            seed[i] = 1;
            streams.push(Prg::new(&seed).next_u64());
        }
        let made = streams.len();
        streams.sort_unstable();
        streams.dedup();
        assert_eq!(streams.len(), made);
    }
}
