//! Transposition of a matrix of 128 columns of bits into blocks.
//!
//! The OT extension produces 128 long columns, one per base OT, and needs the rows: one block per
//! OT.

use crate::block::Block;
use crate::vector::Code;

#[cfg(target_arch = "x86_64")]
mod avx512;
mod vector;

/// Rows transposed at a time; row counts are padded to a multiple.
pub const ROWS_PER_TILE: usize = 128;

/// Transposes 128 columns, each of `rows.len() / 8` bytes, into rows: bit `i` of row `j` becomes
/// bit `j` of column `i`.
///
/// Column `i` is `columns[i * stride..]`; bits are counted from the lowest of the first byte.
///
/// # Panics
/// If `rows.len()` is not a multiple of 128, or a column is too short.
pub fn transpose(columns: &[u8], stride: usize, rows: &mut [Block]) {
    assert_eq!(rows.len() % ROWS_PER_TILE, 0, "whole tiles");
    assert!(
        rows.len() <= 8 * stride && columns.len() >= 128 * stride,
        "128 columns of {} bits",
        rows.len()
    );
    transpose_by(Code::get(), columns, stride, rows);
}

/// Does the same as [`transpose`], whose shapes must hold, by a version that must be supported.
#[inline]
fn transpose_by(code: Code, columns: &[u8], stride: usize, rows: &mut [Block]) {
    match code {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a back end in use is supported, so the features of its level are present.
        Code::Avx512 => unsafe { avx512::transpose(columns, stride, rows) },
        Code::Vector(instructions) => instructions.run(vector::Transpose {
            columns,
            stride,
            rows,
        }),
        Code::Portable => transpose_tiles(columns, stride, rows),
    }
}

#[inline(always)]
fn transpose_tiles(columns: &[u8], stride: usize, rows: &mut [Block]) {
    for (tile, rows) in rows.chunks_exact_mut(ROWS_PER_TILE).enumerate() {
        let mut matrix = [[0u64; 2]; ROWS_PER_TILE];
        for (i, words) in matrix.iter_mut().enumerate() {
            let column = &columns[i * stride + tile * (ROWS_PER_TILE / 8)..][..ROWS_PER_TILE / 8];
            for (word, bytes) in words.iter_mut().zip(column.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into().expect("chunks have 8 bytes"));
            }
        }
        transpose_tile(&mut matrix);
        for (row, words) in rows.iter_mut().zip(&matrix) {
            *row = Block::new((words[1] as u128) << 64 | words[0] as u128);
        }
    }
}

/// Transposes a 128 by 128 matrix by exchanging blocks of halving size (Warren, "Hacker's Delight",
/// section 7-3).
#[inline(always)]
fn transpose_tile(matrix: &mut [[u64; 2]; ROWS_PER_TILE]) {
    for i in 0..64 {
        let (low, high) = (matrix[i][1], matrix[i + 64][0]);
        matrix[i][1] = high;
        matrix[i + 64][0] = low;
    }
    const MASKS: [u64; 6] = [
        0x0000_0000_ffff_ffff,
        0x0000_ffff_0000_ffff,
        0x00ff_00ff_00ff_00ff,
        0x0f0f_0f0f_0f0f_0f0f,
        0x3333_3333_3333_3333,
        0x5555_5555_5555_5555,
    ];
    for (level, mask) in MASKS.into_iter().enumerate() {
        let size = 32 >> level;
        for block in matrix.chunks_exact_mut(2 * size) {
            let (upper, lower) = block.split_at_mut(size);
            for (a, b) in upper.iter_mut().zip(lower) {
                for (a, b) in a.iter_mut().zip(b) {
                    let exchanged = (*a >> size ^ *b) & mask;
                    *b ^= exchanged;
                    *a ^= exchanged << size;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    #[test]
    #[cfg_attr(miri, ignore = "minutes for one tile, and safe code")]
    fn rows_hold_the_bits_of_the_columns() {
        let mut rng = ChaCha20Rng::seed_from_u64(21);
        for (count, stride) in [
            (0, 0),
            (128, 16),
            (128, 40),
            (384, 48),
            (512, 64),
            (640, 80),
            (1920, 300),
        ] {
            let mut columns = vec![0; 128 * stride];
            rng.fill_bytes(&mut columns);
            let mut plain = vec![Block::ZERO; count];
            transpose_tiles(&columns, stride, &mut plain);
            for code in Code::supported() {
                let mut rows = vec![Block::ZERO; count];
                transpose_by(code, &columns, stride, &mut rows);
                assert_eq!(
                    Block::encode(&rows),
                    Block::encode(&plain),
                    "{code:?}, {count}"
                );
            }
            for j in 0..count {
                for i in 0..128 {
                    assert_eq!(
                        plain[j].bit(i),
                        columns[i * stride + j / 8] >> (j % 8) & 1,
                        "row {j}, column {i}"
                    );
                }
            }
        }
    }
}
