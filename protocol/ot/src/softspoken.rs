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
//! sees the choice bits under the stream `r_alpha` of each tree, and so learns nothing; the
//! receiver gets no message.
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
mod tests {
    use super::*;
    use crate::ideal::ideal_cot;
    use crate::iknp::tests::masters;
    use crate::{BundleId, Direction, MasterReceiver, MasterSender};
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn bundle(
        masters: &(MasterSender, MasterReceiver),
        id: u8,
        depth: TreeDepth,
        rng: &mut ChaCha20Rng,
    ) -> (ExtensionSender, ExtensionReceiver) {
        let id = BundleId([id; 32]);
        let (pending, correction) = masters.0.begin(&id, depth, rng);
        assert_eq!(correction.len(), crate::BASE_CORRECTION_BYTES);
        let (receiver, setup) = masters.1.accept(&id, depth, &correction).unwrap();
        assert_eq!(setup.len(), depth.setup_bytes());
        (pending.finish(&setup).unwrap(), receiver)
    }

    /// The law of correlated OT, for any implementation.
    fn check_correlation(
        sender: &mut impl CotSender,
        receiver: &mut impl CotReceiver,
        rng: &mut ChaCha20Rng,
    ) {
        let mut seen = Vec::new();
        for count in [
            0,
            1,
            127,
            128,
            129,
            1000,
            7,
            CHUNK,
            CHUNK + 1,
            2 * CHUNK + 137,
        ] {
            let choices = Bits::random(count, rng);
            let (t, message) = receiver.extend(&choices);
            assert_eq!(message.len(), receiver.correction_bytes(count));
            assert_eq!(message.len(), sender.correction_bytes(count));
            let q = sender.extend(count, &message).unwrap();
            assert_eq!((q.len(), t.len()), (count, count));
            let delta = sender.delta().block();
            for j in 0..count {
                assert_eq!(
                    t[j].value(),
                    (q[j] ^ delta.masked_by(choices.bit(j))).value(),
                    "{j} of {count}"
                );
            }
            seen.extend(q.iter().map(|q| q.value()));
            let longer = [&message[..], &[0]].concat();
            assert!(sender.extend(count, &longer).unwrap_err().blames_peer());
            if count > 0 && !message.is_empty() {
                assert!(
                    sender
                        .extend(count, &message[1..])
                        .unwrap_err()
                        .blames_peer()
                );
            }
        }
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all, "no block occurs twice");
    }

    #[test]
    fn blocks_correlate_at_every_depth() {
        let mut rng = ChaCha20Rng::seed_from_u64(31);
        let masters = masters(Direction::Forward, &mut rng);
        for depth in 1..=8 {
            let depth = TreeDepth::new(depth).unwrap();
            let (mut sender, mut receiver) = bundle(&masters, depth.get() as u8, depth, &mut rng);
            check_correlation(&mut sender, &mut receiver, &mut rng);
        }
    }

    #[test]
    fn parts_equal_the_whole() {
        let mut rng = ChaCha20Rng::seed_from_u64(39);
        let masters = masters(Direction::Forward, &mut rng);
        for depth in [1, 3, 4] {
            let depth = TreeDepth::new(depth).unwrap();
            let (mut whole, mut receiver) = bundle(&masters, 1, depth, &mut rng);
            for (count, part) in [
                (0, 128),
                (1, 128),
                (1000, 256),
                (CHUNK + 77, CHUNK),
                (2 * CHUNK + 300, 17 * 512),
                (2 * CHUNK, 3 * CHUNK),
            ] {
                let (_, message) = receiver.extend(&Bits::random(count, &mut rng));
                let position = whole.streams.position;
                let expected = whole.extend(count, &message).unwrap();
                whole.streams.position = position;
                let mut found = vec![Block::ZERO; count];
                let items: Vec<_> = found.chunks_mut(part).collect();
                let copy = |(): &mut (), _, item: &mut [Block], rows: &[Block]| {
                    item.copy_from_slice(rows);
                };
                whole
                    .extend_parts(count, &message, Parts { size: part, items }, || (), copy)
                    .unwrap();
                assert_eq!(
                    Block::encode(&found),
                    Block::encode(&expected),
                    "{count} in parts of {part}"
                );
            }
            let nothing = |(): &mut (), _, (), _: &[Block]| {};
            let (_, message) = receiver.extend(&Bits::random(256, &mut rng));
            for (part, items, message, blames_peer) in [
                (100, 3, &message[..], false),
                (128, 1, &message, false),
                (128, 2, &message[1..], true),
            ] {
                let items = vec![(); items];
                let error = whole
                    .extend_parts(256, message, Parts { size: part, items }, || (), nothing)
                    .unwrap_err();
                assert_eq!(error.blames_peer(), blames_peer);
            }
        }
    }

    #[test]
    fn ideal_blocks_correlate() {
        let mut rng = ChaCha20Rng::seed_from_u64(32);
        let (mut sender, mut receiver) = ideal_cot(&mut rng);
        check_correlation(&mut sender, &mut receiver, &mut rng);
    }

    #[test]
    fn costs_are_as_documented() {
        assert_eq!(TreeDepth::IKNP.setup_bytes(), 0);
        assert_eq!(TreeDepth::IKNP.correction_bytes(8), 8 * 16);
        assert_eq!(TreeDepth::default().setup_bytes(), 6144);
        assert_eq!(TreeDepth::default().correction_bytes(8), 8 * 4);
        assert_eq!(TreeDepth::new(8).unwrap().correction_bytes(8), 8 * 2);
    }

    #[test]
    fn bundles_share_neither_offset_nor_stream() {
        let mut rng = ChaCha20Rng::seed_from_u64(33);
        let masters = masters(Direction::Reverse, &mut rng);
        let choices = Bits::random(100, &mut rng);
        let mut deltas = Vec::new();
        let mut rows = Vec::new();
        for id in 0..4 {
            // The same generator for every offset: what differs is the bundle alone.
            let mut same = ChaCha20Rng::seed_from_u64(if id < 2 { 5 } else { id.into() });
            let (sender, mut receiver) = bundle(&masters, id, TreeDepth::default(), &mut same);
            assert_eq!(sender.delta().block().colour(), 1);
            deltas.push(sender.delta().block().value());
            rows.extend(receiver.extend(&choices).0.iter().map(|t| t.value()));
        }
        assert_eq!(deltas[0], deltas[1]);
        assert!(deltas[1] != deltas[2] && deltas[2] != deltas[3]);
        let all = rows.len();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), all);
    }

    #[test]
    fn stored_masters_make_the_same_bundle() {
        let mut rng = ChaCha20Rng::seed_from_u64(34);
        let masters = masters(Direction::Forward, &mut rng);
        let sender = MasterSender::from_bytes(&masters.0.to_bytes()).unwrap();
        let receiver = MasterReceiver::from_bytes(&masters.1.to_bytes()).unwrap();
        let (mut sender, mut receiver) = bundle(&(sender, receiver), 9, TreeDepth::IKNP, &mut rng);
        check_correlation(&mut sender, &mut receiver, &mut rng);
    }

    #[test]
    fn a_changed_message_breaks_the_correlation_and_nothing_else() {
        let mut rng = ChaCha20Rng::seed_from_u64(35);
        let masters = masters(Direction::Forward, &mut rng);
        let (id, depth) = (BundleId([1; 32]), TreeDepth::default());
        let choices = Bits::random(64, &mut rng);
        for message in 0..3 {
            // Changed bits matter where the offset (delta or the master's) has a one: some of 40
            // flips do.
            let mut broken = 0;
            for flip in 0..40 {
                let flip = |bytes: &mut Vec<u8>, this| {
                    if message == this {
                        let position = flip * 37 % bytes.len();
                        bytes[position] ^= 0x55;
                    }
                };
                let (pending, mut correction) = masters.0.begin(&id, depth, &mut rng);
                flip(&mut correction, 0);
                let (mut receiver, mut setup) = masters.1.accept(&id, depth, &correction).unwrap();
                flip(&mut setup, 1);
                let mut sender = pending.finish(&setup).unwrap();
                let (t, mut correction) = receiver.extend(&choices);
                flip(&mut correction, 2);
                let q = sender.extend(64, &correction).unwrap();
                let delta = sender.delta().block();
                broken += (0..64)
                    .any(|j| t[j].value() != (q[j] ^ delta.masked_by(choices.bit(j))).value())
                    as u32;
            }
            assert!(
                broken >= 10,
                "message {message}: {broken} of 40 changes noticed"
            );
        }
    }

    #[test]
    fn messages_of_another_length_are_refused() {
        let mut rng = ChaCha20Rng::seed_from_u64(36);
        let masters = masters(Direction::Forward, &mut rng);
        let (id, depth) = (BundleId([1; 32]), TreeDepth::default());
        let (pending, correction) = masters.0.begin(&id, depth, &mut rng);
        for wrong in [&correction[1..], &[], &[&correction[..], &[0]].concat()] {
            assert!(
                masters
                    .1
                    .accept(&id, depth, wrong)
                    .unwrap_err()
                    .blames_peer()
            );
        }
        let (_, setup) = masters.1.accept(&id, depth, &correction).unwrap();
        let error = pending.finish(&setup[1..]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "peer misbehaved: OT extension setup: expected 6144 bytes, got 6143"
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut rng = ChaCha20Rng::seed_from_u64(37);
        let masters = masters(Direction::Forward, &mut rng);
        let (sender, receiver) = bundle(&masters, 1, TreeDepth::IKNP, &mut rng);
        assert_eq!(
            format!("{sender:?} {receiver:?}"),
            "ExtensionSender(TreeDepth(1)) ExtensionReceiver(TreeDepth(1))"
        );
        assert_eq!(
            format!("{:?} {:?}", masters.0, masters.1),
            "MasterSender(Forward) MasterReceiver(Forward)"
        );
    }
}
