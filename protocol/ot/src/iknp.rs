//! The master extension: from base OTs made once, 128 OTs with a fresh offset for every bundle.
//!
//! The correlation of an OT extension *is* the choice vector of its sender's base OTs, so a bundle
//! with a fresh offset needs 128 fresh base OTs. They come from an IKNP extension (Ishai, Kilian,
//! Nissim, Petrank, CRYPTO 2003) over the session's base OTs, whose outputs are hashed to seeds. In
//! it the roles turn round: the bundle's COT sender *chooses*, by the bits of `delta`, and sends
//! its matrix, the base-OT correction; the bundle's COT receiver holds the master's offset, which
//! is never a garbling offset.
//!
//! The master has no state that advances. Its columns for a bundle are keyed by the bundle's
//! identifier, so **an identifier must never be used for two exchanges**: the peer would learn the
//! sum of both offsets. An identifier is the hash of a bundle header that contains fresh nonces of
//! both parties.

use std::fmt;

use pi_core::{Block, Delta, Error, SEED_BYTES, transpose};
use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::BASE_OTS;
use crate::chou_orlandi::{self, BaseSender, Context, Pad, SeedPairs, Seeds};
use crate::ggm::TreeDepth;
use crate::softspoken::{ExtensionReceiver, PendingSender};

/// Size of the base-OT correction, COT sender to COT receiver: 128 columns of 128 bits.
pub const BASE_CORRECTION_BYTES: usize = BASE_OTS * COLUMN_BYTES;

const COLUMN_BYTES: usize = BASE_OTS / 8;

/// Identifies a session: a hash of its hello messages, both nonces among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId(pub [u8; 32]);

/// Identifies a bundle: the hash of its header, both nonces in it. Never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BundleId(pub [u8; 32]);

impl fmt::Debug for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleId({self})")
    }
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The party that sends the correlated OTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The server sends, with the garbling offset; the client chooses by its shares.
    Forward = 0,
    /// The client sends; the server chooses by the colours of its labels.
    Reverse = 1,
}

/// The future COT sender between its first message and the receiver's answer.
pub struct MasterSetup {
    base: BaseSender,
    direction: Direction,
}

impl MasterSetup {
    /// Starts the base OTs; returns the message to the COT receiver,
    /// [`chou_orlandi::OPENING_BYTES`] long.
    pub fn start(
        session: SessionId,
        direction: Direction,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> (MasterSetup, Vec<u8>) {
        let (base, opening) = BaseSender::start(Context { session, direction }, rng);
        (MasterSetup { base, direction }, opening)
    }

    /// Returns the COT sender's master, from the receiver's answer and the pairs of pads that the
    /// receiver chose from ([`chou_orlandi`]).
    ///
    /// # Errors
    /// [`Error::PeerLength`] unless the answer is [`chou_orlandi::RESPONSE_BYTES`] long,
    /// [`Error::PeerValue`] if it holds an invalid point.
    ///
    /// # Panics
    /// Unless there are [`BASE_OTS`] pairs of pads.
    pub fn finish(self, response: &[u8], pads: &[[Pad; 2]]) -> Result<MasterSender, Error> {
        Ok(MasterSender {
            direction: self.direction,
            pairs: self.base.finish(response, pads)?,
        })
    }
}

/// The master of the party that is COT sender in every bundle.
pub struct MasterSender {
    direction: Direction,
    pairs: SeedPairs,
}

/// The master of the party that is COT receiver in every bundle.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct MasterReceiver {
    #[zeroize(skip)]
    direction: Direction,
    offset: Block,
    seeds: Seeds,
}

impl MasterSender {
    /// Draws the offset of a bundle; returns the sender and the base-OT correction,
    /// [`BASE_CORRECTION_BYTES`] long.
    pub fn begin(
        &self,
        bundle: &BundleId,
        depth: TreeDepth,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> (PendingSender, Vec<u8>) {
        let delta = Delta::random(rng);
        let mut columns = Zeroizing::new(Vec::with_capacity(BASE_CORRECTION_BYTES));
        let mut correction = Vec::with_capacity(BASE_CORRECTION_BYTES);
        for [zero, one] in self.pairs.iter() {
            let (zero, one) = (self.column(bundle, zero), self.column(bundle, one));
            columns.extend_from_slice(&zero.to_bytes());
            correction.extend_from_slice(&(zero ^ one ^ delta.block()).to_bytes());
        }
        // Row j is t_j = q_j xor delta_j offset, the hash of which is the chosen seed of bundle OT
        // j.
        let rows = rows_of(&columns);
        let seeds = rows
            .iter()
            .enumerate()
            .map(|(j, row)| bundle_seed(self.direction, bundle, j, *row))
            .collect();
        (
            PendingSender::new(depth, delta, Zeroizing::new(seeds)),
            correction,
        )
    }

    /// Returns the form to be stored.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = header(SENDER_TAG, self.direction);
        bytes.extend_from_slice(self.pairs.as_flattened().as_flattened());
        bytes
    }

    /// Reads a master from its stored form.
    ///
    /// # Errors
    /// [`Error::Stored`] if the bytes are not those of a [`MasterSender`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let (direction, body) = parse_header(SENDER_TAG, bytes, BASE_OTS * 2 * SEED_BYTES)?;
        let (seeds, _) = body.as_chunks::<SEED_BYTES>();
        let (pairs, _) = seeds.as_chunks::<2>();
        Ok(MasterSender {
            direction,
            pairs: Zeroizing::new(pairs.to_vec()),
        })
    }

    fn column(&self, bundle: &BundleId, seed: &[u8; SEED_BYTES]) -> Block {
        column(self.direction, bundle, seed)
    }
}

impl MasterReceiver {
    /// Returns the COT receiver's master and the answer, [`chou_orlandi::RESPONSE_BYTES`] long.
    ///
    /// `offset` is the master's, fresh and uniform; `pads` are those that its bits chose from the
    /// sender's ([`chou_orlandi`]).
    ///
    /// # Errors
    /// [`Error::PeerLength`] or [`Error::PeerValue`] unless `opening` is one valid point.
    ///
    /// # Panics
    /// Unless there are [`BASE_OTS`] pads.
    pub fn respond(
        session: SessionId,
        direction: Direction,
        (offset, pads): (Block, &[Pad]),
        opening: &[u8],
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<(MasterReceiver, Vec<u8>), Error> {
        let context = Context { session, direction };
        let (seeds, response) = chou_orlandi::receive(context, (offset, pads), opening, rng)?;
        Ok((
            MasterReceiver {
                direction,
                offset,
                seeds,
            },
            response,
        ))
    }

    /// Takes the base-OT correction of a bundle; returns the receiver and the setup message,
    /// [`TreeDepth::setup_bytes`] long.
    ///
    /// # Errors
    /// [`Error::PeerLength`] unless the correction is [`BASE_CORRECTION_BYTES`] long.
    pub fn accept(
        &self,
        bundle: &BundleId,
        depth: TreeDepth,
        correction: &[u8],
    ) -> Result<(ExtensionReceiver, Vec<u8>), Error> {
        let correction = Block::decode("base-OT correction", correction, BASE_OTS)?;
        let mut columns = Zeroizing::new(Vec::with_capacity(BASE_CORRECTION_BYTES));
        for (i, (seed, correction)) in self.seeds.iter().zip(correction.iter()).enumerate() {
            // Whichever seed was chosen, this is the column of the zero seed, plus delta where the
            // offset has a one: row j is q_j, and the COT sender's t_j = q_j xor delta_j offset.
            let known = column(self.direction, bundle, seed);
            columns
                .extend_from_slice(&(known ^ correction.masked_by(self.offset.bit(i))).to_bytes());
        }
        let rows = rows_of(&columns);
        let pairs = rows.iter().enumerate().map(|(j, row)| {
            [*row, *row ^ self.offset].map(|row| bundle_seed(self.direction, bundle, j, row))
        });
        Ok(ExtensionReceiver::new(
            depth,
            &Zeroizing::new(pairs.collect()),
        ))
    }

    /// Returns the form to be stored.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = header(RECEIVER_TAG, self.direction);
        bytes.extend_from_slice(&self.offset.to_bytes());
        bytes.extend_from_slice(self.seeds.as_flattened());
        bytes
    }

    /// Reads a master from its stored form.
    ///
    /// # Errors
    /// [`Error::Stored`] if the bytes are not those of a [`MasterReceiver`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let (direction, body) =
            parse_header(RECEIVER_TAG, bytes, COLUMN_BYTES + BASE_OTS * SEED_BYTES)?;
        let (offset, body) = body.split_first_chunk().expect("the length was checked");
        let (seeds, _) = body.as_chunks::<SEED_BYTES>();
        Ok(MasterReceiver {
            direction,
            offset: Block::from_bytes(*offset),
            seeds: Zeroizing::new(seeds.to_vec()),
        })
    }
}

impl fmt::Debug for MasterSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterSetup({:?})", self.direction)
    }
}

impl fmt::Debug for MasterSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterSender({:?})", self.direction)
    }
}

impl fmt::Debug for MasterReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterReceiver({:?})", self.direction)
    }
}

/// Returns what one of the session's seeds contributes to a bundle's matrix: 128 bits.
fn column(direction: Direction, bundle: &BundleId, seed: &[u8; SEED_BYTES]) -> Block {
    let mut hasher = blake3::Hasher::new_keyed(seed);
    hasher
        .update(b"pianissimo v1 master column")
        .update(&[direction as u8])
        .update(&bundle.0);
    let mut bytes = [0; COLUMN_BYTES];
    hasher.finalize_xof().fill(&mut bytes);
    hasher.zeroize();
    Block::from_bytes(bytes)
}

/// Breaks the correlation of the master's rows: a random oracle over row, index, bundle and
/// direction.
fn bundle_seed(
    direction: Direction,
    bundle: &BundleId,
    index: usize,
    row: Block,
) -> [u8; SEED_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("pianissimo v1 bundle base OT seed");
    hasher
        .update(&[direction as u8])
        .update(&bundle.0)
        .update(&(index as u32).to_le_bytes());
    hasher.update(&row.to_bytes());
    let seed = hasher.finalize().into();
    hasher.zeroize();
    seed
}

fn rows_of(columns: &[u8]) -> Zeroizing<[Block; BASE_OTS]> {
    let mut rows = Zeroizing::new([Block::ZERO; BASE_OTS]);
    transpose(columns, COLUMN_BYTES, &mut *rows);
    rows
}

const STORED_VERSION: u8 = 1;
const SENDER_TAG: u8 = 0;
const RECEIVER_TAG: u8 = 1;

fn header(tag: u8, direction: Direction) -> Zeroizing<Vec<u8>> {
    // Reserved at once for the longer of the two, so that no copy of the seeds is left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(3 + BASE_OTS * 2 * SEED_BYTES));
    bytes.extend_from_slice(&[STORED_VERSION, tag, direction as u8]);
    bytes
}

fn parse_header(tag: u8, bytes: &[u8], body_bytes: usize) -> Result<(Direction, &[u8]), Error> {
    match bytes {
        [STORED_VERSION, found, direction @ 0..=1, body @ ..]
            if *found == tag && body.len() == body_bytes =>
        {
            Ok((
                if *direction == 0 {
                    Direction::Forward
                } else {
                    Direction::Reverse
                },
                body,
            ))
        }
        _ => Err(Error::Stored {
            what: "master OT extension",
        }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ideal::ideal_pads;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    pub(crate) fn masters(
        direction: Direction,
        rng: &mut ChaCha20Rng,
    ) -> (MasterSender, MasterReceiver) {
        let session = SessionId([3; 32]);
        let (setup, opening) = MasterSetup::start(session, direction, rng);
        let offset = Block::random(rng);
        let (all, chosen) = ideal_pads(offset, rng);
        let own = (offset, &chosen[..]);
        let (receiver, response) =
            MasterReceiver::respond(session, direction, own, &opening, rng).unwrap();
        (setup.finish(&response, &all).unwrap(), receiver)
    }

    #[test]
    fn master_rows_correlate() {
        let mut rng = ChaCha20Rng::seed_from_u64(21);
        let (sender, receiver) = masters(Direction::Forward, &mut rng);
        for i in 0..BASE_OTS {
            assert_eq!(
                receiver.seeds[i],
                sender.pairs[i][receiver.offset.bit(i) as usize]
            );
        }
    }

    #[test]
    fn stored_masters_come_back() {
        let mut rng = ChaCha20Rng::seed_from_u64(22);
        let (sender, receiver) = masters(Direction::Reverse, &mut rng);
        let (sent, received) = (sender.to_bytes(), receiver.to_bytes());
        let again = MasterSender::from_bytes(&sent).unwrap();
        assert_eq!(
            (again.direction, &*again.pairs),
            (Direction::Reverse, &*sender.pairs)
        );
        assert_eq!(*again.to_bytes(), *sent);
        let again = MasterReceiver::from_bytes(&received).unwrap();
        assert_eq!(*again.to_bytes(), *received);
        assert_eq!((sent.len(), received.len()), (8195, 4115));

        let damaged = Error::Stored {
            what: "master OT extension",
        };
        assert_eq!(MasterSender::from_bytes(&received).unwrap_err(), damaged);
        assert_eq!(MasterReceiver::from_bytes(&sent).unwrap_err(), damaged);
        for position in 0..3 {
            let mut wrong = received.clone();
            wrong[position] = 7;
            assert_eq!(MasterReceiver::from_bytes(&wrong).unwrap_err(), damaged);
        }
        for length in [0, 1, 3, 4114] {
            assert_eq!(
                MasterReceiver::from_bytes(&received[..length]).unwrap_err(),
                damaged
            );
        }
    }
}
