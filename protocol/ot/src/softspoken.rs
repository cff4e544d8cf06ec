//! Correlated OT extension: SoftSpokenOT (Roy, CRYPTO 2022), semi-honest, with IKNP as its smallest
//! case.
//!
//! The trees are those of [`crate::ggm`]. Of a tree of depth `k` the receiver knows `2^k` streams
//! of bits `r_x`, and the sender all of them but the one at `alpha`, which is `k` bits of `delta`.
//! For each index bit `l`:
//!
//! - receiver: `u = sum of all r_x`, column `v_l = sum of the r_x with bit l of x set`;
//! - sender: column `w_l = sum of the r_x with bit l of x xor alpha set` = `v_l + alpha_l u`, for
//!   which `r_alpha` is not needed;
//! - the receiver sends `u + b` for its choice bits `b`, and the sender adds it to `w_l` where
//!   `alpha_l = 1`, which leaves `v_l + alpha_l b`.
//!
//! The 128 columns of all trees, transposed, are the rows `t` and `q = t xor b delta`. The sender
//! sees the choice bits masked by the stream `r_alpha` of each tree, which it does not know, and so
//! learns nothing. The receiver receives no message.
//!
//! # Layout
//! The correction goes chunk by chunk, [`CHUNK`] OTs each, and within a chunk tree by tree.

use std::fmt;

use pi_core::{
    BLOCK_BYTES, Bits, Block, Delta, Error, Labels, Prg, ROWS_PER_TILE, columns, memory, transpose,
};
use rayon::prelude::*;
use zeroize::Zeroizing;

use crate::chou_orlandi::{SeedPairs, Seeds};
use crate::ggm::{self, TreeDepth};
use crate::{BASE_OTS, CotReceiver, CotSender, Parts};

/// OTs per parallel task: 64 blocks of each stream, what the widest AES back end takes at a time,
/// and columns of 128 KiB.
const CHUNK: usize = 64 * ROWS_PER_TILE;

const COLUMN_BYTES: usize = CHUNK / 8;

/// A bundle's COT sender before it knows the receiver's setup message.
pub struct PendingSender {
    depth: TreeDepth,
    delta: Delta,
    seeds: Seeds,
}

impl PendingSender {
    pub(crate) fn new(depth: TreeDepth, delta: Delta, seeds: Seeds) -> Self {
        PendingSender {
            depth,
            delta,
            seeds,
        }
    }

    /// Returns the offset of the bundle.
    pub fn delta(&self) -> &Delta {
        &self.delta
    }

    /// Returns the sender, from the receiver's setup message.
    ///
    /// # Errors
    /// [`Error::PeerLength`] unless the message is [`TreeDepth::setup_bytes`] long.
    pub fn finish(self, setup: &[u8]) -> Result<ExtensionSender, Error> {
        Error::check_message("OT extension setup", self.depth.setup_bytes(), setup.len())?;
        let alpha: Zeroizing<Vec<u8>> =
            Zeroizing::new((0..BASE_OTS).map(|i| self.delta.block().bit(i)).collect());
        let mut rest = setup;
        let trees = self.depth.ranges().map(|range| {
            let (corrections, behind) = rest.split_at(TreeDepth::tree_setup_bytes(range.len()));
            rest = behind;
            Tree::new(
                &ggm::puncture(&self.seeds[range.clone()], &alpha[range], corrections),
                1,
            )
        });
        let streams = Streams {
            depth: self.depth,
            trees: trees.collect(),
            position: 0,
        };
        Ok(ExtensionSender {
            delta: self.delta,
            streams,
        })
    }
}

/// The COT sender of one bundle.
pub struct ExtensionSender {
    delta: Delta,
    streams: Streams,
}

impl CotSender for ExtensionSender {
    fn delta(&self) -> &Delta {
        &self.delta
    }

    fn correction_bytes(&self, count: usize) -> usize {
        self.streams.depth.correction_bytes(count)
    }

    fn extend(&mut self, count: usize, correction: &[u8]) -> Result<Labels, Error> {
        self.check_correction(count, correction)?;
        let mut rows = padded_rows(count);
        rows.par_chunks_mut(CHUNK).enumerate().for_each_init(
            || self.streams.scratch(),
            |scratch, (chunk, rows)| {
                self.rows(chunk * CHUNK, count, correction, scratch, rows);
            },
        );
        self.streams.advance(count);
        rows.truncate(count);
        Ok(rows)
    }

    fn extend_parts<T: Send, S>(
        &mut self,
        count: usize,
        correction: &[u8],
        parts: Parts<T>,
        state: impl Fn() -> S + Send + Sync,
        work: impl Fn(&mut S, usize, T, &[Block]) + Send + Sync,
    ) -> Result<(), Error> {
        self.check_correction(count, correction)?;
        parts.check(count)?;
        let Parts { size, items } = parts;
        items.into_par_iter().enumerate().for_each_init(
            || {
                (
                    self.streams.scratch(),
                    padded_rows(size.min(count)),
                    state(),
                )
            },
            |(scratch, rows, state), (i, item)| {
                let used = size.min(count - i * size);
                let padded = &mut rows[..used.next_multiple_of(ROWS_PER_TILE)];
                self.rows(i * size, count, correction, scratch, padded);
                work(state, i, item, &rows[..used]);
            },
        );
        self.streams.advance(count);
        Ok(())
    }
}

impl ExtensionSender {
    fn check_correction(&self, count: usize, correction: &[u8]) -> Result<(), Error> {
        let expected = self.correction_bytes(count);
        Error::check_message("OT extension correction", expected, correction.len())
    }

    /// Computes the blocks of OTs `first..`, filled up to whole tiles, of an extension of `count`;
    /// `first` is a multiple of a tile.
    fn rows(
        &self,
        mut first: usize,
        count: usize,
        correction: &[u8],
        scratch: &mut Scratch,
        mut rows: &mut [Block],
    ) {
        let (streams, delta) = (&self.streams, self.delta.block());
        while !rows.is_empty() {
            // What lies in one chunk of the correction.
            let (chunk, offset) = (first / CHUNK, first % CHUNK);
            let (here, behind) = rows.split_at_mut(rows.len().min(CHUNK - offset));
            let chunk_bits = CHUNK.min(count - chunk * CHUNK);
            let bytes = offset / 8..chunk_bits.min(offset + here.len()).div_ceil(8);
            let correction = &correction[chunk * streams.depth.correction_bytes(CHUNK)..];
            let mut corrections = correction.chunks_exact(chunk_bits.div_ceil(8));
            streams.columns(first, here, scratch, |range, columns, _| {
                let correction = corrections.next().expect("one part per tree");
                let correction = &correction[bytes.clone()];
                for (i, column) in range.zip(columns.chunks_exact_mut(COLUMN_BYTES)) {
                    let column = &mut column[..correction.len()];
                    columns::add_masked(column, correction, delta.bit(i));
                }
            });
            first += here.len();
            rows = behind;
        }
    }
}

/// The COT receiver of one bundle.
pub struct ExtensionReceiver {
    streams: Streams,
}

impl ExtensionReceiver {
    /// Returns the receiver and its setup message.
    pub(crate) fn new(depth: TreeDepth, pairs: &SeedPairs) -> (Self, Vec<u8>) {
        let mut setup = Vec::with_capacity(depth.setup_bytes());
        let trees = depth
            .ranges()
            .map(|range| Tree::new(&ggm::grow(&pairs[range], &mut setup), 0))
            .collect();
        (
            ExtensionReceiver {
                streams: Streams {
                    depth,
                    trees,
                    position: 0,
                },
            },
            setup,
        )
    }
}

impl CotReceiver for ExtensionReceiver {
    fn correction_bytes(&self, count: usize) -> usize {
        self.streams.depth.correction_bytes(count)
    }

    fn extend(&mut self, choices: &Bits) -> (Labels, Vec<u8>) {
        let count = choices.len();
        let streams = &self.streams;
        let mut rows = padded_rows(count);
        let mut message = memory::filled(0, self.correction_bytes(count));
        rows.par_chunks_mut(CHUNK)
            .zip(message.par_chunks_mut(streams.depth.correction_bytes(CHUNK)))
            .zip(choices.as_bytes().par_chunks(COLUMN_BYTES))
            .enumerate()
            .for_each_init(
                || streams.scratch(),
                |scratch, (chunk, ((rows, message), choices))| {
                    let mut corrections = message.chunks_exact_mut(choices.len());
                    streams.columns(chunk * CHUNK, rows, scratch, |_, _, sum| {
                        let correction = corrections.next().expect("one part per tree");
                        for ((byte, sum), choice) in correction.iter_mut().zip(sum).zip(choices) {
                            *byte = sum ^ choice;
                        }
                    });
                },
            );
        self.streams.advance(count);
        rows.truncate(count);
        (rows, message)
    }
}

/// The streams of all trees and how much of each is used.
struct Streams {
    depth: TreeDepth,
    trees: Vec<Tree>,
    position: u128,
}

/// Working memory of a parallel task, chunk after chunk; blocks are erased sixteen bytes at a time.
struct Scratch {
    columns: Labels,
    streams: Labels,
}

impl Streams {
    fn scratch(&self) -> Scratch {
        let blocks = |columns: usize| vec![Block::ZERO; columns * COLUMN_BYTES / BLOCK_BYTES];
        Scratch {
            columns: Zeroizing::new(blocks(BASE_OTS)),
            streams: Zeroizing::new(blocks(1 << self.depth.get())),
        }
    }

    /// Computes the columns of up to a chunk of OTs from `first` on, lets `correct` see those of
    /// each tree and the sum of its streams, and transposes them into `rows`.
    fn columns(
        &self,
        first: usize,
        rows: &mut [Block],
        scratch: &mut Scratch,
        mut correct: impl FnMut(std::ops::Range<usize>, &mut [u8], &[u8]),
    ) {
        let position = self.position + (first / BLOCK_BITS) as u128;
        let used = rows.len() / 8;
        let Scratch { columns, streams } = scratch;
        let columns = Block::bytes_mut(columns);
        let streams = Block::bytes_mut(streams);
        for (range, tree) in self.depth.ranges().zip(&self.trees) {
            let columns = &mut columns[range.start * COLUMN_BYTES..range.end * COLUMN_BYTES];
            tree.fold(position, used, columns, streams);
            correct(range, columns, &streams[..used]);
        }
        transpose(columns, COLUMN_BYTES, rows);
    }

    /// Leaves what `count` OTs have used behind: whole blocks, so that nothing is used twice.
    fn advance(&mut self, count: usize) {
        self.position += count.div_ceil(BLOCK_BITS) as u128;
    }
}

const BLOCK_BITS: usize = 128;

/// The streams of one tree; the sender lacks the first.
struct Tree {
    missing: usize,
    leaves: Vec<Prg>,
}

impl Tree {
    fn new(leaves: &Seeds, missing: usize) -> Self {
        Tree {
            missing,
            leaves: leaves.iter().map(Prg::new).collect(),
        }
    }

    /// Sets column `l` to the sum of the streams whose index has bit `l` set, and the beginning of
    /// `scratch` to the sum of all; a missing stream counts as zero.
    fn fold(&self, position: u128, used: usize, columns: &mut [u8], scratch: &mut [u8]) {
        let count = self.missing + self.leaves.len();
        let streams = &mut scratch[..count * COLUMN_BYTES];
        streams[..self.missing * COLUMN_BYTES].fill(0);
        let known = streams.chunks_exact_mut(COLUMN_BYTES).skip(self.missing);
        for (leaf, stream) in self.leaves.iter().zip(known) {
            leaf.fill_at(position, &mut stream[..used]);
        }
        columns::fold(streams, columns, COLUMN_BYTES, used);
    }
}

/// Returns room for `count` rows, filled up to whole tiles of the transposition.
fn padded_rows(count: usize) -> Labels {
    let padded = count.next_multiple_of(ROWS_PER_TILE);
    Zeroizing::new(memory::filled(Block::ZERO, padded))
}

impl fmt::Debug for PendingSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingSender({:?})", self.depth)
    }
}

impl fmt::Debug for ExtensionSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExtensionSender({:?})", self.streams.depth)
    }
}

impl fmt::Debug for ExtensionReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExtensionReceiver({:?})", self.streams.depth)
    }
}

#[cfg(test)]
mod tests;
