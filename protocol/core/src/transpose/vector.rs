//! The transposition over [`Vector`]: as many tiles at a time as a register has blocks.
//!
//! Bits move first: among the 8 columns that make one byte of a row, bits are exchanged between
//! registers until register `r` has, as byte `j`, that byte of row `8 j + r`. Then bytes do, by
//! unpacking: `x[2 j], x[2 j + 1] = low, high half of the interleaved bytes of x[j] and x[j + 8]`
//! rotates the address of every byte (register, then byte of a block) left by one bit, so that four
//! rounds exchange registers and bytes. What was byte `i` of the rows is then spread over them.

use super::ROWS_PER_TILE;
use crate::block::{BLOCK_BYTES, Block};
use crate::vector::{Kernel, Vector};

/// See [`super::transpose`]; the shapes hold.
pub(super) struct Transpose<'a> {
    pub(super) columns: &'a [u8],
    pub(super) stride: usize,
    pub(super) rows: &'a mut [Block],
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector>(self, s: S) {
        let Transpose {
            columns,
            stride,
            rows,
        } = self;
        for (i, rows) in rows.chunks_mut(S::BLOCKS * ROWS_PER_TILE).enumerate() {
            let start = i * S::BLOCKS * BLOCK_BYTES;
            let tiles = rows.len() / ROWS_PER_TILE;
            // parts[r][i]: byte `i` of rows `r`, `8 + r`, `16 + r`, ... of each tile.
            let mut parts = [[s.splat(0); BLOCK_BYTES]; 8];
            for i in 0..BLOCK_BYTES {
                let mut bits = [s.splat(0); 8];
                for (c, bits) in bits.iter_mut().enumerate() {
                    let column = &columns[(8 * i + c) * stride + start..][..tiles * BLOCK_BYTES];
                    // Block `h` is that of the last tile if there are fewer.
                    let at = |h: usize| column[h.min(tiles - 1) * BLOCK_BYTES..].as_ptr();
                    // SAFETY: the column has 16 bytes for each tile.
                    *bits = unsafe { s.load_at(at) };
                }
                let rows = exchange(s, bits);
                for r in 0..8 {
                    parts[r][i] = rows[r];
                }
            }
            for (r, parts) in parts.into_iter().enumerate() {
                let done = rotate(s, rotate(s, rotate(s, rotate(s, parts))));
                for (j, row) in done.into_iter().enumerate() {
                    let mut both = [Block::ZERO; 2];
                    // SAFETY: two blocks borrowed mutably, of which `BLOCKS` are written; any bits
                    // are a valid block.
                    unsafe { s.store(Block::bytes_mut(&mut both).as_mut_ptr(), row) }
                    for (rows, row) in rows.chunks_exact_mut(ROWS_PER_TILE).zip(both) {
                        rows[8 * j + r] = row;
                    }
                }
            }
        }
    }
}

/// Transposes 8 by 8 matrices of bits, one for each byte of the registers: bit `r` of register `c`
/// becomes bit `c` of register `r`.
#[inline(always)]
fn exchange<S: Vector>(s: S, mut x: [S::V; 8]) -> [S::V; 8] {
    let masks = [
        s.splat(0x0f0f_0f0f),
        s.splat(0x3333_3333),
        s.splat(0x5555_5555),
    ];
    for c in [0, 1, 2, 3] {
        let (a, b) = (x[c], x[c + 4]);
        let moved = s.and(s.xor(s.shift_right::<4>(a), b), masks[0]);
        x[c] = s.xor(a, s.shift_left::<4>(moved));
        x[c + 4] = s.xor(b, moved);
    }
    for c in [0, 1, 4, 5] {
        let (a, b) = (x[c], x[c + 2]);
        let moved = s.and(s.xor(s.shift_right::<2>(a), b), masks[1]);
        x[c] = s.xor(a, s.shift_left::<2>(moved));
        x[c + 2] = s.xor(b, moved);
    }
    for c in [0, 2, 4, 6] {
        let (a, b) = (x[c], x[c + 1]);
        let moved = s.and(s.xor(s.shift_right::<1>(a), b), masks[2]);
        x[c] = s.xor(a, s.shift_left::<1>(moved));
        x[c + 1] = s.xor(b, moved);
    }
    x
}

/// One rotation of the address.
#[inline(always)]
fn rotate<S: Vector>(s: S, x: [S::V; BLOCK_BYTES]) -> [S::V; BLOCK_BYTES] {
    let mut rotated = x;
    for j in 0..BLOCK_BYTES / 2 {
        let [low, high] = s.unpack8(x[j], x[j + BLOCK_BYTES / 2]);
        rotated[2 * j] = low;
        rotated[2 * j + 1] = high;
    }
    rotated
}
