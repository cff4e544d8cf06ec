//! Costs of a circuit on the wire: exact payload bytes, summed from the formulas that stand beside
//! the gadgets.
//!
//! Tests hold these equal to what a channel counts. Processor time of the linear layers is
//! [`crate::linear::cost`].

use crate::Error;
use crate::indexed_circuit::{IndexedCircuit, Planned};
use crate::linear::{self, Operations};
use crate::nonlinear::{self, quadratic};
pub use crate::session::Memory;
use crate::session::{self, TREE_DEPTH, infer_bytes, offline_traffic, setup_traffic};
use pi_core::fp::ELEMENT_BYTES;
use pi_garble::ArgMax;
pub use pi_ir::costs::Traffic;
use pi_ir::{Circuit, Kind, Plan, Step, Verified};
use serde::Serialize;

/// One layer's elements and bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerCost {
    /// Name of the layer.
    pub name: String,
    /// ReLUs; the output layer has no elements of any kind.
    pub relus: usize,
    /// Squares.
    pub squares: usize,
    /// Polynomials.
    pub polynomials: usize,
    /// Identity elements.
    pub identities: usize,
    /// Width of the sign circuit, 0 without ReLUs.
    pub sign_bits: u32,
    /// AND gates of the layer: those of its sign circuits, or of the label's arg max.
    pub and_gates: usize,
    /// Bits that the client puts into them, each by an OT.
    pub choices: usize,
    /// Offline traffic of this layer alone, its answers included. Digests, set-up of OTs, OLE
    /// ciphertexts and uploads are shared by several layers and count with none.
    pub offline: Traffic,
    /// Online traffic, with the messages that the layer needs. The request counts with no layer.
    pub online: Traffic,
}

impl LayerCost {
    /// Round trips online: one where the client replies, however many messages that takes; the last
    /// message of all answers the request.
    pub fn online_round_trips(&self) -> u32 {
        u32::from(self.online.bytes_up > 0)
    }
}

/// Bytes and messages of a circuit, by phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Once per client key.
    pub setup: Traffic,
    /// A bundle at rest, from its preparation to the inference that spends it.
    pub stored: Stored,
    /// Parts that the garbled circuits of a bundle travel in, one after the other.
    pub parts: u32,
    /// Memory that the client needs, with two threads.
    pub client_memory: Memory,
    /// Memory that the server needs for one client, with two threads.
    pub server_memory: Memory,
    /// Once per bundle that is prepared alone.
    pub offline: Traffic,
    /// Once per batch, for batches of more than one bundle.
    pub batches: Vec<BatchCost>,
    /// Once per input.
    pub online: Traffic,
    /// Layer by layer, for a bundle that is prepared alone.
    pub per_layer: Vec<LayerCost>,
}

/// Bytes that each party stores of a bundle, headers and checksums included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// The client's half: shares, masks, labels and garbled tables.
    pub client: u64,
    /// The server's half: shares, and what its gadgets keep.
    pub server: u64,
}

/// Bytes and messages of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchCost {
    /// Bundles of the batch.
    pub bundles: usize,
    /// Traffic of the whole batch.
    pub offline: Traffic,
    /// Operations of the linear layers of the whole batch.
    pub operations: Operations,
    /// Convolutions, each once for all bundles of the batch.
    pub convolutions: usize,
}

impl Cost {
    /// Offline round trips of a batch: one, plus one for each part of each bundle.
    pub fn offline_round_trips(&self, bundles: u32) -> u32 {
        1 + bundles * self.parts
    }

    /// Round trips online: one more than layers with a ReLU, square or polynomial element.
    pub fn online_round_trips(&self) -> u32 {
        let layers = self.per_layer.iter();
        1 + layers.map(LayerCost::online_round_trips).sum::<u32>()
    }
}

/// The cost of a circuit with plans, the first of them for one bundle.
///
/// # Errors
/// [`Error::ApiMisuse`] with all faults if the plans are not sound.
pub fn circuit<'p>(
    circuit: &Verified<Circuit>,
    plans: impl IntoIterator<Item = &'p Plan>,
) -> Result<Cost, Error> {
    of(&IndexedCircuit::new(circuit, plans)?)
}

/// Derives all plans.
pub(crate) fn of(indexed: &IndexedCircuit) -> Result<Cost, Error> {
    let (request, output) = infer_bytes(indexed);
    let per_layer = layers(indexed);
    let mut online = Traffic {
        bytes_up: request as u64,
        bytes_down: output as u64,
        messages: 2,
    };
    // The output's own message is in the totals already.
    let output_layer = per_layer.len() - 1;
    for layer in &per_layer[..output_layer] {
        online += layer.online;
    }
    let [client_memory, server_memory] = session::of_parties(indexed);
    Ok(Cost {
        client_memory,
        server_memory,
        setup: setup_traffic(),
        stored: Stored {
            client: session::client_bytes(indexed) as u64,
            server: session::server_bytes(indexed) as u64,
        },
        parts: indexed.parts.count() as u32,
        offline: offline_traffic(indexed, &indexed.single),
        batches: (indexed.all_planned()?.into_iter().skip(1))
            .map(|planned| batch(indexed, planned))
            .collect(),
        online,
        per_layer,
    })
}

fn batch(indexed: &IndexedCircuit, planned: &Planned) -> BatchCost {
    BatchCost {
        bundles: planned.bundles(),
        offline: offline_traffic(indexed, planned),
        operations: linear::cost(&planned.packing).operations(),
        convolutions: planned.packing.answers().len(),
    }
}

fn layers(indexed: &IndexedCircuit) -> Vec<LayerCost> {
    let answers = linear::cost(indexed.single()).answer_bytes;
    let mut layers = Vec::with_capacity(indexed.layers.len());
    for (l, (layer, index)) in indexed.layers_with_index().enumerate() {
        let count = |wanted: Kind| match &layer.step {
            Step::Activate(activation) => activation.kinds.iter().filter(|&&k| k == wanted).count(),
            Step::Output { .. } => 0,
        };
        let maps = indexed.single().answers().iter().zip(&answers);
        let answers = maps.filter(|(map, _)| map.layer() as usize == l);
        let mut offline = Traffic {
            bytes_up: (nonlinear::choice_bytes(TREE_DEPTH, index)
                + quadratic::correction_bytes(index.slots)
                + ELEMENT_BYTES * index.identity.len()) as u64,
            bytes_down: answers.map(|(_, &bytes)| bytes as u64).sum(),
            messages: 0,
        };
        let n = index.relu.len();
        offline.bytes_down +=
            (TREE_DEPTH.correction_bytes(n) + nonlinear::garbled_bytes(index)) as u64;
        layers.push(LayerCost {
            name: layer.name.clone(),
            relus: n,
            squares: count(Kind::Square),
            polynomials: count(Kind::Polynomial),
            identities: index.identity.len(),
            sign_bits: index.width.map_or(0, |width| width.bits()),
            and_gates: index.width.map_or(0, |width| n * width.and_gates())
                + index.label.map_or(0, ArgMax::and_gates),
            choices: index.width.map_or(0, |width| n * width.bits() as usize)
                + index.label.map_or(0, ArgMax::input_bits),
            offline,
            online: crate::session::layer_traffic(indexed, l),
        });
    }
    layers
}
