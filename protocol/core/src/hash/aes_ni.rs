//! The hash with 128-bit AES instructions, four keys side by side.

use super::LANES;
use crate::Block;
use std::arch::x86_64::*;

/// Keys side by side: enough chains to hide the latency of the AES instruction, few enough that
/// keys and data stay in registers.
const N: usize = 4;

const ROUND_CONSTANTS: [i32; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 0x1b, 0x36];

/// Replaces `x[i]` and `y[i]` by their hashes under `keys[i]`.
#[target_feature(enable = "aes,ssse3")]
pub(super) fn hash_pairs(keys: &[Block; LANES], x: &mut [Block; LANES], y: &mut [Block; LANES]) {
    for first in (0..LANES).step_by(N) {
        let mut data = [load_sigma(x, first), load_sigma(y, first)];
        encrypt(load(keys, first), &mut data);
        store(x, first, data[0]);
        store(y, first, data[1]);
    }
}

/// Replaces `x[i]` by its hash under `keys[i]`.
#[target_feature(enable = "aes,ssse3")]
pub(super) fn hash_lanes(keys: &[Block; LANES], x: &mut [Block; LANES]) {
    for first in (0..LANES).step_by(N) {
        let mut data = [load_sigma(x, first)];
        encrypt(load(keys, first), &mut data);
        store(x, first, data[0]);
    }
}

/// Replaces every `s` in `data` by `AES(s) xor s` under the key of its lane.
#[allow(
    clippy::needless_range_loop,
    reason = "data and keys share their indices"
)]
#[target_feature(enable = "aes,ssse3")]
#[inline]
fn encrypt<const D: usize>(mut keys: [__m128i; N], data: &mut [[__m128i; N]; D]) {
    // Rotates the last word of a round key and copies it to all four columns.
    let rotate_last = _mm_set1_epi32(0x0c0f0e0d);
    let plain = *data;
    for d in 0..D {
        for i in 0..N {
            data[d][i] = _mm_xor_si128(data[d][i], keys[i]);
        }
    }
    for round in 0..10 {
        let constant = _mm_set1_epi32(ROUND_CONSTANTS[round]);
        for i in 0..N {
            // All columns are equal, so the row shift of the last-round instruction does nothing:
            // what is left is the byte substitution and the round constant.
            let word = _mm_aesenclast_si128(_mm_shuffle_epi8(keys[i], rotate_last), constant);
            let prefix = _mm_xor_si128(keys[i], _mm_bslli_si128::<4>(keys[i]));
            let prefix = _mm_xor_si128(prefix, _mm_bslli_si128::<8>(prefix));
            keys[i] = _mm_xor_si128(prefix, word);
        }
        for d in 0..D {
            for i in 0..N {
                data[d][i] = match round {
                    9 => _mm_aesenclast_si128(data[d][i], keys[i]),
                    _ => _mm_aesenc_si128(data[d][i], keys[i]),
                };
            }
        }
    }
    for d in 0..D {
        for i in 0..N {
            data[d][i] = _mm_xor_si128(data[d][i], plain[d][i]);
        }
    }
}

#[target_feature(enable = "aes,ssse3")]
#[inline]
fn load_sigma(x: &[Block; LANES], first: usize) -> [__m128i; N] {
    let high = _mm_set_epi64x(-1, 0);
    // 0x4e exchanges the 64-bit halves of a block.
    load(x, first).map(|x| _mm_xor_si128(_mm_shuffle_epi32::<0x4e>(x), _mm_and_si128(x, high)))
}

#[target_feature(enable = "aes,ssse3")]
#[inline]
fn load(x: &[Block; LANES], first: usize) -> [__m128i; N] {
    let x = &x[first..first + N];
    let mut data = [_mm_setzero_si128(); N];
    for (data, x) in data.iter_mut().zip(x) {
        // SAFETY: a block is 16 initialised bytes; the load has no alignment requirement.
        *data = unsafe { _mm_loadu_si128(std::ptr::from_ref(x).cast()) };
    }
    data
}

#[target_feature(enable = "aes,ssse3")]
#[inline]
fn store(x: &mut [Block; LANES], first: usize, data: [__m128i; N]) {
    let x = &mut x[first..first + N];
    for (x, data) in x.iter_mut().zip(data) {
        // SAFETY: a block is 16 bytes, borrowed mutably, for which any bits are valid; the store
        // has no alignment requirement.
        unsafe { _mm_storeu_si128(std::ptr::from_mut(x).cast(), data) }
    }
}
