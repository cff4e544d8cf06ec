//! The hash with 512-bit registers, sixteen keys side by side.
//!
//! Each label has a separate key, so key schedules are most of the work. They are computed in *word
//! form*: register `j` holds word `j` of sixteen keys. There one round of sixteen schedules is a
//! byte shuffle, one AES instruction and four additions, instead of six instructions for every four
//! keys; a transposition of 4 by 4 words, eight instructions, gives the *block form* that the
//! rounds of the cipher need.
//!
//! In block form register `e` holds lanes `4 e .. 4 e + 4`; in word form lane `4 e + g` stands at
//! element `4 g + e`.

use super::LANES;
use crate::block::Block;
use std::arch::x86_64::*;

/// Registers that hold one block for each lane.
pub const N: usize = LANES / WIDTH;

/// Blocks in a register.
pub const WIDTH: usize = 4;

/// One block for each lane.
pub type Lanes = [__m512i; N];

const ROUND_CONSTANTS: [i32; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 0x1b, 0x36];

/// Replaces `x[i]` and `y[i]` by their hashes under `keys[i]`.
#[target_feature(enable = "avx512f,avx512bw,vaes")]
pub(super) fn hash_pairs(keys: &[Block; LANES], x: &mut [Block; LANES], y: &mut [Block; LANES]) {
    let s = [load(x).map(|x| sigma(x)), load(y).map(|y| sigma(y))];
    let [hashes] = encrypt([transpose(load(keys))], [s]);
    store(x, xor(hashes[0], s[0]));
    store(y, xor(hashes[1], s[1]));
}

/// Replaces `x[i]` by its hash under `keys[i]`.
#[target_feature(enable = "avx512f,avx512bw,vaes")]
pub(super) fn hash_lanes(keys: &[Block; LANES], x: &mut [Block; LANES]) {
    let s = load(x).map(|x| sigma(x));
    let [[hash]] = encrypt([transpose(load(keys))], [[s]]);
    store(x, xor(hash, s));
}

/// Encrypts `data[k][d]` under the keys `words[k]`, in word form: `K` times `D` times sixteen
/// blocks.
///
/// # Safety
/// The processor has AVX-512F, AVX-512BW and VAES.
#[allow(
    clippy::needless_range_loop,
    reason = "data, keys and words share their indices"
)]
#[target_feature(enable = "avx512f,avx512bw,vaes")]
#[inline]
pub fn encrypt<const K: usize, const D: usize>(
    mut words: [[__m512i; 4]; K],
    mut data: [[Lanes; D]; K],
) -> [[Lanes; D]; K] {
    // The last-round instruction shifts row `r` of every 128-bit lane left by `r` columns. This
    // shuffle undoes it and rotates every word by a byte: byte `r` of word `j` takes its place
    // where the shift will fetch it.
    let rotate = _mm512_broadcast_i32x4(_mm_set_epi8(
        0, 7, 10, 13, 12, 3, 6, 9, 8, 15, 2, 5, 4, 11, 14, 1,
    ));
    for k in 0..K {
        let keys = transpose(words[k]);
        for d in 0..D {
            data[k][d] = xor(data[k][d], keys);
        }
    }
    for round in 0..10 {
        let constant = _mm512_set1_epi32(ROUND_CONSTANTS[round]);
        for k in 0..K {
            let w = words[k];
            let s = _mm512_aesenclast_epi128(_mm512_shuffle_epi8(w[3], rotate), constant);
            let w0 = _mm512_xor_si512(w[0], s);
            let w1 = _mm512_xor_si512(w[1], w0);
            // Not from its left neighbour, which would make the chain from round to round longer.
            let w2 = xor3(w[2], w[1], w0);
            let w3 = xor3(w[3], w[2], w1);
            words[k] = [w0, w1, w2, w3];
            let keys = transpose(words[k]);
            for d in 0..D {
                for e in 0..N {
                    data[k][d][e] = match round {
                        9 => _mm512_aesenclast_epi128(data[k][d][e], keys[e]),
                        _ => _mm512_aesenc_epi128(data[k][d][e], keys[e]),
                    };
                }
            }
        }
    }
    data
}

/// Transposes word form to block form, and back.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(x: [__m512i; 4]) -> [__m512i; 4] {
    let low = [
        _mm512_unpacklo_epi32(x[0], x[1]),
        _mm512_unpacklo_epi32(x[2], x[3]),
    ];
    let high = [
        _mm512_unpackhi_epi32(x[0], x[1]),
        _mm512_unpackhi_epi32(x[2], x[3]),
    ];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// Applies the orthomorphism to every block.
///
/// # Safety
/// The processor has AVX-512F.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn sigma(x: __m512i) -> __m512i {
    let high = _mm512_broadcast_i32x4(_mm_set_epi64x(-1, 0));
    // 0x4e exchanges the 64-bit halves of every block; 0x78 is a xor (b and c).
    _mm512_ternarylogic_epi64::<0x78>(_mm512_shuffle_epi32::<0x4e>(x), x, high)
}

/// Adds, modulo 2, two blocks for each lane.
///
/// # Safety
/// The processor has AVX-512F.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn xor(x: Lanes, y: Lanes) -> Lanes {
    std::array::from_fn(|e| _mm512_xor_si512(x[e], y[e]))
}

/// Adds three registers modulo 2.
///
/// # Safety
/// The processor has AVX-512F.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn xor3(x: __m512i, y: __m512i, z: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(x, y, z)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(x: &[Block; LANES]) -> Lanes {
    std::array::from_fn(|e| {
        // SAFETY: register `e` reads blocks `4 e..4 e + 4` of sixteen, all initialised; the load
        // has no alignment requirement.
        unsafe { _mm512_loadu_si512(x.as_ptr().add(e * WIDTH).cast()) }
    })
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(x: &mut [Block; LANES], data: Lanes) {
    for (e, data) in data.into_iter().enumerate() {
        // SAFETY: register `e` writes blocks `4 e..4 e + 4` of sixteen borrowed mutably; any bits
        // are a valid block; the store has no alignment requirement.
        unsafe { _mm512_storeu_si512(x.as_mut_ptr().add(e * WIDTH).cast(), data) }
    }
}
