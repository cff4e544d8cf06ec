//! Correlated oblivious transfer, both directions, as message-in message-out state machines.
//!
//! A correlated OT gives its *sender*, who holds an offset `delta`, a block `q`, and its
//! *receiver*, who holds a bit `b`, the block `t = q xor b delta`. With the garbling offset as
//! `delta`, `q` is a wire's zero label and `t` the label of `b`. Forward, the server is the sender
//! and the client chooses by the bits of its shares; in reverse, the client is the sender and the
//! server chooses by the colours of its output labels ([`reverse`]).
//!
//! # Layers
//! 1. 128 base OTs per direction, once per client: those of Chou and Orlandi on Ristretto, combined
//!    with keys that the layer above transfers under RLWE ([`chou_orlandi`]).
//! 2. A session-long master extension, IKNP ([`MasterSender`], [`MasterReceiver`]), which can be
//!    stored. From it every bundle derives 128 OTs with a fresh offset, by one message of 2 KiB. It
//!    keeps no counter: the bundle's identifier keys everything, so two bundles never share a
//!    stream.
//! 3. A correlated OT extension per bundle ([`ExtensionSender`], [`ExtensionReceiver`]):
//!    SoftSpokenOT, of which IKNP is the smallest case.
//!
//! [`CotSender`] and [`CotReceiver`] are the functionality. [`ideal`] is the same by a trusted
//! dealer, for tests of the layers above.
//!
//! # Security
//! Semi-honest parties. 128 bits computational. A sender's secrets in the base OTs are safe if the
//! Diffie-Hellman problem is hard or the OT behind the pads is secure: whoever records a session
//! and later computes discrete logarithms learns nothing by that alone.
//!
//! # Costs
//! | message | from | bytes |
//! | --- | --- | --- |
//! | [`MasterSetup::start`] | COT sender | [`chou_orlandi::OPENING_BYTES`] = 32, once |
//! | [`MasterReceiver::respond`] | COT receiver | [`chou_orlandi::RESPONSE_BYTES`] = 4,096, once |
//! | [`MasterSender::begin`] | COT sender | [`BASE_CORRECTION_BYTES`] = 2,048 per bundle |
//! | [`MasterReceiver::accept`] | COT receiver | [`TreeDepth::setup_bytes`]: 6,144 per bundle at depth 4 |
//! | [`CotReceiver::extend`] | COT receiver | [`TreeDepth::correction_bytes`]: `16 / k` per OT at depth `k`, 4 at depth 4 |

#![forbid(unsafe_code)]

pub mod chou_orlandi;
mod ggm;
pub mod ideal;
mod iknp;
pub mod reverse;
mod softspoken;

pub use ggm::TreeDepth;
pub use iknp::{
    BASE_CORRECTION_BYTES, BundleId, Direction, MasterReceiver, MasterSender, MasterSetup,
    SessionId,
};
use pi_core::{Bits, Block, Delta, Error, Labels, ROWS_PER_TILE};
use rayon::prelude::*;
pub use softspoken::{ExtensionReceiver, ExtensionSender, PendingSender};

/// Number of base OTs: the bits of an offset.
pub const BASE_OTS: usize = 128;

/// The sender of correlated OTs.
///
/// Both parties call `extend` with the same counts in the same order.
pub trait CotSender {
    /// Returns the offset.
    fn delta(&self) -> &Delta;

    /// Returns the length of the receiver's message for `count` OTs.
    fn correction_bytes(&self, count: usize) -> usize;

    /// Returns the next `count` blocks `q`, from the receiver's message.
    ///
    /// # Errors
    /// [`Error::PeerLength`] unless the message is [`CotSender::correction_bytes`] long. A wrong
    /// message of the right length gives blocks that do not correlate with the receiver's.
    fn extend(&mut self, count: usize, correction: &[u8]) -> Result<Labels, Error>;

    /// Does the same as [`CotSender::extend`], without keeping the blocks: hands them to `work`
    /// while they are in the cache.
    ///
    /// Parts run in parallel; `state` makes what one task works in, part after part.
    ///
    /// # Errors
    /// As [`CotSender::extend`]; [`Error::CallerLength`] unless the size of a part is a multiple of
    /// [`ROWS_PER_TILE`] and there is one item for each part.
    fn extend_parts<T: Send, S>(
        &mut self,
        count: usize,
        correction: &[u8],
        parts: Parts<T>,
        state: impl Fn() -> S + Send + Sync,
        work: impl Fn(&mut S, usize, T, &[Block]) + Send + Sync,
    ) -> Result<(), Error> {
        parts.check(count)?;
        let blocks = self.extend(count, correction)?;
        let parts = (blocks.par_chunks(parts.size)).zip(parts.items).enumerate();
        parts.for_each_init(state, |state, (i, (blocks, item))| {
            work(state, i, item, blocks)
        });
        Ok(())
    }
}

/// Parts of an extension: part `i` has blocks `i * size..(i + 1) * size`, or fewer at the end, and
/// comes with `items[i]`.
#[derive(Debug)]
pub struct Parts<T> {
    /// Blocks of a part, a multiple of [`ROWS_PER_TILE`].
    pub size: usize,
    /// One item for each part.
    pub items: Vec<T>,
}

impl<T> Parts<T> {
    /// Checks that these are parts of `count` blocks.
    fn check(&self, count: usize) -> Result<(), Error> {
        let whole = self.size.next_multiple_of(ROWS_PER_TILE).max(ROWS_PER_TILE);
        Error::check_argument("blocks of a part", whole, self.size)?;
        Error::check_argument(
            "items of parts",
            count.div_ceil(self.size),
            self.items.len(),
        )
    }
}

/// The receiver of correlated OTs.
pub trait CotReceiver {
    /// Returns the length of the message for `count` OTs.
    fn correction_bytes(&self, count: usize) -> usize;

    /// Returns the next blocks `t = q xor b delta`, one per choice bit `b`, and the message to the
    /// sender.
    fn extend(&mut self, choices: &Bits) -> (Labels, Vec<u8>);
}
