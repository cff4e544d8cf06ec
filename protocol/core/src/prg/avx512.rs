//! AES-128 in counter mode with 512-bit registers.

use crate::block::{BLOCK_BYTES, Block};
use std::arch::x86_64::*;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The key schedule of one key, erased when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct RoundKeys([Block; 11]);

/// Registers at a time: enough to hide the latency of the AES instruction.
const N: usize = 8;

/// Bytes at a time.
const BATCH: usize = N * 64;

const ROUND_CONSTANTS: [i32; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 0x1b, 0x36];

impl RoundKeys {
    #[target_feature(enable = "aes,ssse3")]
    pub(super) fn new(key: Block) -> Self {
        let rotate_last = _mm_set1_epi32(0x0c0f0e0d);
        let mut keys = [key; 11];
        let mut x = load(&key);
        for (key, constant) in keys[1..].iter_mut().zip(ROUND_CONSTANTS) {
            // All columns are equal, so that the row shift of the last-round instruction does
            // nothing.
            let constant = _mm_set1_epi32(constant);
            let word = _mm_aesenclast_si128(_mm_shuffle_epi8(x, rotate_last), constant);
            let prefix = _mm_xor_si128(x, _mm_bslli_si128::<4>(x));
            let prefix = _mm_xor_si128(prefix, _mm_bslli_si128::<8>(prefix));
            x = _mm_xor_si128(prefix, word);
            // SAFETY: 16 bytes borrowed mutably, any bits are a valid block; the store has no
            // alignment requirement.
            unsafe { _mm_storeu_si128(std::ptr::from_mut(key).cast(), x) }
        }
        RoundKeys(keys)
    }

    /// Fills `out` with the encryptions of `counter`, `counter + 1`, ..., the last one cut off
    /// where `out` ends.
    #[target_feature(enable = "avx512f,avx512bw,vaes")]
    pub(super) fn fill(&self, mut counter: u128, out: &mut [u8]) {
        let mut keys = [_mm512_setzero_si512(); 11];
        for (wide, key) in keys.iter_mut().zip(&self.0) {
            *wide = _mm512_broadcast_i32x4(load(key));
        }
        let (batches, rest) = out.as_chunks_mut::<BATCH>();
        for batch in batches {
            store(batch, encrypt(&keys, counters(counter)));
            counter = counter.wrapping_add((BATCH / BLOCK_BYTES) as u128);
        }
        if !rest.is_empty() {
            let mut last = [0; BATCH];
            store(&mut last, encrypt(&keys, counters(counter)));
            rest.copy_from_slice(&last[..rest.len()]);
            last.zeroize();
        }
    }
}

/// The batch of counters from this one on.
#[target_feature(enable = "avx512f")]
#[inline]
fn counters(first: u128) -> [__m512i; N] {
    let base = _mm512_broadcast_i32x4(load(&Block::new(first)));
    let mut counters = [base; N];
    for (i, counter) in counters.iter_mut().enumerate() {
        let i = 4 * i as i64;
        let steps = _mm512_setr_epi64(i, 0, i + 1, 0, i + 2, 0, i + 3, 0);
        *counter = _mm512_add_epi64(base, steps);
        // The low half may overflow; the starting counter is secret, so there is no branch on it.
        let overflow = _mm512_cmplt_epu64_mask(*counter, base) & 0x55;
        let one = _mm512_set1_epi64(1);
        *counter = _mm512_mask_add_epi64(*counter, overflow << 1, *counter, one);
    }
    counters
}

#[target_feature(enable = "avx512f,vaes")]
#[inline]
fn encrypt(keys: &[__m512i; 11], mut data: [__m512i; N]) -> [__m512i; N] {
    for data in &mut data {
        *data = _mm512_xor_si512(*data, keys[0]);
    }
    for key in &keys[1..10] {
        for data in &mut data {
            *data = _mm512_aesenc_epi128(*data, *key);
        }
    }
    for data in &mut data {
        *data = _mm512_aesenclast_epi128(*data, keys[10]);
    }
    data
}

#[target_feature(enable = "sse2")]
#[inline]
fn load(block: &Block) -> __m128i {
    // SAFETY: a block is 16 initialised bytes; the load has no alignment requirement.
    unsafe { _mm_loadu_si128(std::ptr::from_ref(block).cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(out: &mut [u8; BATCH], data: [__m512i; N]) {
    let (registers, _) = out.as_chunks_mut::<64>();
    for (out, data) in registers.iter_mut().zip(data) {
        // SAFETY: 64 bytes borrowed mutably; the store has no alignment requirement.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), data) }
    }
}
