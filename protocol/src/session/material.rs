//! Public and secret streams of a bundle that preparation begins and the answer continues: tweaks,
//! labels, and the coefficients that an element is computed with.

use super::model::ServerModel;
use crate::header::BundleId;
use crate::indexed_circuit::{IndexedCircuit, activation};
use crate::secrets::{derive, public_seed};
use pi_core::{Block, Prg, TweakCounter, TweakRange};
use pi_garble::SignWidth;
use pi_ir::{Kind, Polynomial};
use pi_ot::TreeDepth;

/// Depth of the trees of all OT extensions; part of the protocol.
pub(crate) const TREE_DEPTH: TreeDepth = match TreeDepth::new(4) {
    Ok(depth) => depth,
    Err(_) => unreachable!(),
};

/// The tweaks of every layer with ReLUs, and of the label; the nonce is public, made of both
/// parties' nonces.
pub(super) fn tweaks(indexed: &IndexedCircuit, id: &BundleId) -> Vec<Option<TweakRange>> {
    let seed = public_seed("garbling nonce", &id.0, 0);
    let nonce = seed.first_chunk().expect("32 bytes hold 16");
    let mut counter = TweakCounter::new(Block::from_bytes(*nonce));
    let ranges = indexed.layers.iter().map(|layer| {
        let mut relu = |width: SignWidth| counter.take(layer.relu.len(), width.bits());
        match (layer.width, layer.label) {
            (Some(width), _) => Some(relu(width)),
            (None, Some(shape)) => {
                let gates = u32::try_from(shape.and_gates());
                Some(counter.take(1, gates.expect("2^16 values of 60 bits have fewer gates")))
            }
            (None, None) => None,
        }
    });
    ranges.collect()
}

/// The stream whose blocks are the zero labels of the server's inputs in one layer.
pub(super) fn label_stream(label_seed: &[u8; 32], layer: usize) -> Prg {
    Prg::new(&derive(label_seed, "server labels", layer as u64))
}

/// The coefficients of an element, if it is a polynomial.
pub(super) fn polynomial(model: &ServerModel, layer: usize, element: u32) -> Option<&Polynomial> {
    let circuit = &model.indexed().circuit;
    let shape = circuit.layers[layer].shape;
    let kinds = &activation(&circuit.layers[layer])?.kinds;
    let channel = element as usize / (shape.h as usize * shape.w as usize);
    (kinds[element as usize] == Kind::Polynomial)
        .then(|| &model.weights().layers[layer].polynomials[channel])
}
