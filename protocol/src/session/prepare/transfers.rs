//! The heads of messages 1 and 2: the oblivious transfers of a bundle, in both directions.
//!
//! In the reverse direction the client sends: it offers its truncated shares under the gadget's
//! correlation, and the server chooses by random bits, so its choices are in message 2 already. In
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
use pi_ot::{BASE_CORRECTION_BYTES, CotReceiver, CotSender, ExtensionReceiver, PendingSender};

/// Bytes of a bundle's part of the first message of 1.
pub(super) fn client_bytes(indexed: &IndexedCircuit) -> usize {
    match indexed.garbles {
        false => 0,
        true => BASE_CORRECTION_BYTES,
    }
}

/// Bytes of a bundle's part of the first message of 2.
pub(super) fn server_bytes(indexed: &IndexedCircuit) -> usize {
    if !indexed.garbles {
        return 0;
    }
    let layers = indexed.layers.iter().filter(|layer| layer.width.is_some());
    let choices = layers.map(|layer| TREE_DEPTH.correction_bytes(layer.relu.len()));
    BASE_CORRECTION_BYTES + TREE_DEPTH.setup_bytes() + choices.sum::<usize>()
}

/// The client's oblivious transfers, both directions.
pub(super) struct ClientTransfers {
    pub(super) forward: ExtensionReceiver,
    /// Set-up of the forward extension, for message 3.
    pub(super) forward_setup: Vec<u8>,
    pub(super) reverse_delta: Delta,
    /// Blocks of the reverse direction by layer.
    pub(super) q: Vec<Labels>,
}

/// The server's oblivious transfers, both directions.
pub(super) struct ServerTransfers {
    pub(super) forward: PendingSender,
    /// Blocks and choices of the reverse direction by layer.
    pub(super) reverse: Vec<(Labels, Bits)>,
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
    /// The server reads a bundle's part of message 1, draws `delta` and its choices, and appends
    /// the bundle's part of message 2.
    pub(super) fn accept(
        indexed: &IndexedCircuit,
        setup: &ServerSetup,
        id: &BundleId,
        secrets: &Secrets,
        reader: &mut Reader<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<Self, Error> {
        let correction = reader.take(BASE_CORRECTION_BYTES)?;
        let (mut receiver, receiver_setup) = setup.reverse().accept(id, TREE_DEPTH, correction)?;
        let rng = &mut secrets.rng("delta", 0);
        let (forward, correction) = setup.forward().begin(id, TREE_DEPTH, rng);
        reply.extend_from_slice(&correction);
        reply.extend_from_slice(&receiver_setup);
        let layers = indexed.layers.iter().enumerate();
        let reverse = layers.map(|(l, layer)| {
            let rng = &mut secrets.rng("reverse choices", l as u64);
            let b = Bits::random(layer.relu.len(), rng);
            let (t, correction) = receiver.extend(&b);
            reply.extend_from_slice(&correction);
            (t, b)
        });
        let reverse = reverse.collect();
        Ok(ServerTransfers { forward, reverse })
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
        let mut reverse = pending.finish(reader.take(TREE_DEPTH.setup_bytes())?)?;
        let q = indexed.layers.iter().map(|layer| {
            let n = layer.relu.len();
            let correction = reader.take(reverse.correction_bytes(n))?;
            Ok(reverse.extend(n, correction)?)
        });
        let q = q.collect::<Result<_, Error>>()?;
        Ok(ClientTransfers {
            forward,
            forward_setup,
            reverse_delta: reverse.delta().clone(),
            q,
        })
    }
}
