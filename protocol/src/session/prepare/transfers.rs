//! The oblivious transfers of a bundle, in both directions: the heads of messages 1 and 2, and the
//! server's choices by random bits.
//!
//! In the reverse direction the client sends: it offers its truncated shares under the gadget's
//! correlation, and the server chooses by random bits, so its choices come before the offer: those
//! of part 0 are in message 2, those of every other part behind the part before, in message 4. In
//! the forward direction the server sends: the labels that the client chooses in message 3. Each
//! sender's offset is fresh for the bundle, and enters by a correction of the master's base OTs.
//!
//! If nothing is garbled, neither ReLUs nor the label, there are no transfers, and nothing of this
//! is sent.

use crate::Error;
use crate::header::BundleId;
use crate::indexed_circuit::IndexedCircuit;
use crate::secrets::Secrets;
use crate::session::material::TREE_DEPTH;
use crate::session::setup::{ClientSetup, ServerSetup};
use crate::wire::Reader;
use pi_core::{Bits, Delta, Labels};
use pi_ot::{
    BASE_CORRECTION_BYTES, CotReceiver, CotSender, ExtensionReceiver, ExtensionSender,
    PendingSender,
};

/// Bytes of a bundle's part of the first message of 1.
pub(super) fn client_bytes(indexed: &IndexedCircuit) -> usize {
    match indexed.garbles {
        false => 0,
        true => BASE_CORRECTION_BYTES,
    }
}

/// Bytes of a bundle's part of the first message of 2.
pub(super) fn server_bytes(indexed: &IndexedCircuit) -> usize {
    match indexed.garbles {
        false => 0,
        true => BASE_CORRECTION_BYTES + TREE_DEPTH.setup_bytes() + reverse_bytes(indexed, 0),
    }
}

/// Bytes of the server's choices for the pieces of a part; none behind the last part.
pub(super) fn reverse_bytes(indexed: &IndexedCircuit, part: usize) -> usize {
    let pieces = indexed.parts.of_part(part).iter();
    pieces
        .map(|piece| TREE_DEPTH.correction_bytes(piece.len))
        .sum()
}

/// The client's oblivious transfers, both directions.
pub(super) struct ClientTransfers {
    pub(super) forward: ExtensionReceiver,
    /// Set-up of the forward extension, for message 3.
    pub(super) forward_setup: Vec<u8>,
    pub(super) reverse_delta: Delta,
    reverse: ExtensionSender,
    /// Blocks of the reverse direction, for each piece of the part that is offered next.
    pub(super) q: Vec<Labels>,
}

/// The server's oblivious transfers, both directions, before it knows the set-up of the forward
/// direction.
pub(super) struct ServerTransfers {
    pub(super) forward: PendingSender,
    pub(super) reverse: ReverseChoices,
}

/// The server's random choices in the reverse direction, part by part.
pub(super) struct ReverseChoices {
    receiver: ExtensionReceiver,
    /// Pieces chosen for so far.
    pieces: u64,
    /// Blocks and choices, for each piece of the part that is garbled next.
    chosen: Vec<(Labels, Bits)>,
}

/// The client draws its offset, and appends a bundle's part of message 1.
pub(super) fn begin(
    setup: &ClientSetup,
    id: &BundleId,
    secrets: &Secrets,
    message: &mut Vec<u8>,
) -> PendingSender {
    let rng = &mut secrets.rng("reverse offset", 0);
    let (begun, correction) = setup.reverse().begin(id, TREE_DEPTH, rng);
    message.extend_from_slice(&correction);
    begun
}

impl ServerTransfers {
    /// The server reads a bundle's part of message 1, draws `delta` and its choices for part 0, and
    /// appends the bundle's part of message 2.
    pub(super) fn accept(
        indexed: &IndexedCircuit,
        setup: &ServerSetup,
        id: &BundleId,
        secrets: &Secrets,
        reader: &mut Reader<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<Self, Error> {
        let correction = reader.take(BASE_CORRECTION_BYTES)?;
        let (receiver, receiver_setup) = setup.reverse().accept(id, TREE_DEPTH, correction)?;
        let rng = &mut secrets.rng("delta", 0);
        let (forward, correction) = setup.forward().begin(id, TREE_DEPTH, rng);
        reply.extend_from_slice(&correction);
        reply.extend_from_slice(&receiver_setup);
        let mut reverse = ReverseChoices {
            receiver,
            pieces: 0,
            chosen: Vec::new(),
        };
        reverse.choose(indexed, 0, secrets, reply);
        Ok(ServerTransfers { forward, reverse })
    }
}

impl ReverseChoices {
    /// The server chooses for the pieces of a part, and appends its message.
    pub(super) fn choose(
        &mut self,
        indexed: &IndexedCircuit,
        part: usize,
        secrets: &Secrets,
        reply: &mut Vec<u8>,
    ) {
        for piece in indexed.parts.of_part(part) {
            let rng = &mut secrets.rng("reverse choices", self.pieces);
            self.pieces += 1;
            let b = Bits::random(piece.len, rng);
            let (t, correction) = self.receiver.extend(&b);
            reply.extend_from_slice(&correction);
            self.chosen.push((t, b));
        }
    }

    /// Takes the blocks and choices of the part that was chosen for last, piece by piece.
    pub(super) fn take(&mut self) -> Vec<(Labels, Bits)> {
        std::mem::take(&mut self.chosen)
    }
}

impl ClientTransfers {
    /// The client reads a bundle's part of message 2.
    pub(super) fn finish(
        indexed: &IndexedCircuit,
        setup: &ClientSetup,
        id: &BundleId,
        pending: PendingSender,
        reader: &mut Reader<'_>,
    ) -> Result<Self, Error> {
        let correction = reader.take(BASE_CORRECTION_BYTES)?;
        let (forward, forward_setup) = setup.forward().accept(id, TREE_DEPTH, correction)?;
        let reverse = pending.finish(reader.take(TREE_DEPTH.setup_bytes())?)?;
        let mut transfers = ClientTransfers {
            forward,
            forward_setup,
            reverse_delta: reverse.delta().clone(),
            reverse,
            q: Vec::new(),
        };
        transfers.read_choices(indexed, 0, reader)?;
        Ok(transfers)
    }

    /// The client reads the server's choices for the pieces of a part.
    pub(super) fn read_choices(
        &mut self,
        indexed: &IndexedCircuit,
        part: usize,
        reader: &mut Reader<'_>,
    ) -> Result<(), Error> {
        for piece in indexed.parts.of_part(part) {
            let correction = reader.take(self.reverse.correction_bytes(piece.len))?;
            self.q.push(self.reverse.extend(piece.len, correction)?);
        }
        Ok(())
    }
}
