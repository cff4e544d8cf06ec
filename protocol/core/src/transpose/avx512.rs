//! The transposition with 512-bit registers, up to 512 rows at a time.
//!
//! Bytes move by unpacking: `x[2 j], x[2 j + 1] = low, high half of the interleaved bytes of x[j]
//! and x[j + n / 2]` rotates the address of every byte (register, then byte of a 128-bit lane) left
//! by one bit. Among the 8 columns that make one byte of a row, three rounds put the bytes of the
//! same 8 rows side by side, where one Galois-field instruction transposes them as an 8 by 8 matrix
//! of bits. Among the 16 registers so made, one for each byte of a row, four rounds put the bytes
//! of a row side by side.

use super::ROWS_PER_TILE;
use crate::block::Block;
use std::arch::x86_64::*;

/// Tiles at a time: one for each 128-bit lane.
const LANES: usize = 4;

const COLUMNS: usize = 128;

/// Bytes of a column in one tile.
const TILE_BYTES: usize = ROWS_PER_TILE / 8;

/// See [`super::transpose`].
#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub(super) fn transpose(columns: &[u8], stride: usize, rows: &mut [Block]) {
    for (i, rows) in rows.chunks_mut(LANES * ROWS_PER_TILE).enumerate() {
        let start = i * LANES * TILE_BYTES;
        let len = rows.len() / ROWS_PER_TILE * TILE_BYTES;
        // parts[k][i]: byte `i` of rows `16 k..16 k + 16` of each tile.
        let mut parts = [[_mm512_setzero_si512(); 16]; 8];
        for i in 0..16 {
            // The last column first: the instruction takes the rows of its matrix in this order.
            let columns = std::array::from_fn(|c| {
                let column = 8 * i + 7 - c;
                load(&columns[column * stride + start..][..len])
            });
            for (parts, bits) in parts.iter_mut().zip(rotate3(columns)) {
                // Every byte holds one bit: the product is the transposed matrix.
                let unit = _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64);
                parts[i] = _mm512_gf2p8affine_epi64_epi8::<0>(unit, bits);
            }
        }
        for (k, parts) in parts.into_iter().enumerate() {
            let done = rotate(rotate(rotate(rotate(parts))));
            let (quarters, _) = done.as_chunks::<LANES>();
            for (q, quarter) in quarters.iter().enumerate() {
                let tiles = rows.chunks_exact_mut(ROWS_PER_TILE);
                for (rows, four) in tiles.zip(transpose_lanes(*quarter)) {
                    let first = 16 * k + LANES * q;
                    store(&mut rows[first..first + LANES], four);
                }
            }
        }
    }
}

/// Three rotations of the address among eight registers.
#[target_feature(enable = "avx512bw")]
#[inline]
fn rotate3(x: [__m512i; 8]) -> [__m512i; 8] {
    rotate(rotate(rotate(x)))
}

/// One rotation of the address.
#[target_feature(enable = "avx512bw")]
#[inline]
fn rotate<const N: usize>(x: [__m512i; N]) -> [__m512i; N] {
    std::array::from_fn(|i| match i % 2 {
        0 => _mm512_unpacklo_epi8(x[i / 2], x[(i + N) / 2]),
        _ => _mm512_unpackhi_epi8(x[i / 2], x[(i + N) / 2]),
    })
}

/// Transposes a 4 by 4 matrix of 128-bit lanes.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_lanes([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (
        _mm512_shuffle_i32x4::<0x44>(a, b),
        _mm512_shuffle_i32x4::<0x44>(c, d),
    );
    let (ab_high, cd_high) = (
        _mm512_shuffle_i32x4::<0xee>(a, b),
        _mm512_shuffle_i32x4::<0xee>(c, d),
    );
    [
        _mm512_shuffle_i32x4::<0x88>(ab, cd),
        _mm512_shuffle_i32x4::<0xdd>(ab, cd),
        _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high),
        _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high),
    ]
}

/// Reads up to 64 bytes, zeros behind them.
#[target_feature(enable = "avx512bw")]
#[inline]
fn load(bytes: &[u8]) -> __m512i {
    debug_assert!((1..=64).contains(&bytes.len()));
    let mask = u64::MAX >> (64 - bytes.len());
    // SAFETY: the mask selects the bytes of the slice; bytes that it does not select are not read.
    unsafe { _mm512_maskz_loadu_epi8(mask, bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(rows: &mut [Block], four: __m512i) {
    let rows: &mut [Block; LANES] = rows.try_into().expect("four rows");
    // SAFETY: 64 bytes borrowed mutably, any bits are valid blocks; the store has no alignment
    // requirement.
    unsafe { _mm512_storeu_si512(rows.as_mut_ptr().cast(), four) }
}

const _: () = assert!(COLUMNS == 8 * 16 && LANES * TILE_BYTES == 64);
