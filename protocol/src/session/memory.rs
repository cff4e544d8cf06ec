//! Memory that an exchange takes at the server, by formula: whoever serves strangers takes it from
//! a budget before the first reply.
//!
//! The formulas are sums of what is held at the same time, in the phase that holds most, and lean
//! to the high side. `tests/memory.rs` measures exchanges against them.

use super::bundle::ServerBundle;
use super::model::ServerModel;
use super::prepare::{client_head_bytes, server_head_bytes};
use super::{TREE_DEPTH, layer_traffic};
use crate::Error;
use crate::indexed_circuit::Planned;
use crate::linear::{answers_bytes, uploads_bytes};
use crate::nonlinear::{choice_bytes, garbled_bytes, quadratic};
use pi_core::BLOCK_BYTES;
use pi_core::fp::ELEMENT_BYTES;
use pi_rlwe::N;

/// A residue of a polynomial.
const RESIDUE_BYTES: usize = 8 * N;
/// A ciphertext of the linear layers, expanded: two polynomials of three residues.
const CIPHERTEXT_BYTES: usize = 6 * RESIDUE_BYTES;
/// A ciphertext of an OLE, expanded: two polynomials of four residues.
const OLE_BYTES: usize = 8 * RESIDUE_BYTES;
/// Eight Galois keys with three digits of two polynomials of four residues, transformed and with
/// their precomputed quotients; the public key; masters.
const KEYS_BYTES: usize = 8 * 3 * 2 * 4 * 2 * RESIDUE_BYTES + (2 << 20);
/// What one thread works in.
const THREAD_BYTES: usize = 12 << 20;

impl ServerModel {
    /// Bytes that a setup takes at the server, whatever the model: a message, keys, and their
    /// stored form.
    pub const SETUP_MEMORY: u64 = (KEYS_BYTES + (16 << 20)) as u64;

    /// Bytes that the exchange of a batch takes at the server, from its first message to the last
    /// bundle, with the messages that it sends.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] without a plan for so many bundles.
    pub fn offline_memory(&self, bundles: usize) -> Result<u64, Error> {
        Ok(self.exchange_bytes(self.indexed().planned(bundles)?))
    }

    /// The most bytes that any batch takes.
    pub fn most_offline_memory(&self) -> u64 {
        let batches = self.indexed().sizes();
        batches
            .filter_map(|bundles| self.offline_memory(bundles).ok())
            .max()
            .unwrap_or(0)
    }

    /// Bytes that an inference takes at the server: the bundle, stored and decoded, the tensors,
    /// and the messages of the largest layer.
    pub fn online_memory(&self) -> u64 {
        let indexed = self.indexed();
        let tensors: usize = indexed.tensors().iter().map(|shape| shape.len()).sum();
        let messages = indexed.layers_with_index().map(|(layer, index)| {
            let traffic = layer_traffic(indexed, layer, index);
            traffic.bytes_up + traffic.bytes_down
        });
        let held = 2 * ServerBundle::encoded_len(self) + 2 * ELEMENT_BYTES * tensors;
        held as u64 + 2 * messages.max().unwrap_or(0)
    }

    fn exchange_bytes(&self, planned: &Planned) -> u64 {
        let (indexed, packing) = (self.indexed(), &planned.packing);
        let bundles = planned.bundles();
        let answers = packing.answers();
        let shares: usize = answers
            .iter()
            .map(|answer| ELEMENT_BYTES * answer.len())
            .sum();
        let messages: Vec<usize> = answers.iter().map(answers_bytes).collect();
        let uploads = packing.uploads().iter();
        let upload =
            uploads.map(|map| uploads_bytes(map) + 2 * CIPHERTEXT_BYTES * map.ciphertexts());
        // While an answer is put together its parts are there too, with the places of its elements.
        let making = answers.iter().zip(&messages);
        let making = making.map(|(answer, message)| message + 4 * ELEMENT_BYTES * answer.len());
        let linear = upload.max().unwrap_or(0) + making.max().unwrap_or(0);

        let relus: usize = indexed.layers.iter().map(|layer| layer.relu.len()).sum();
        let transfers = bundles * ((BLOCK_BYTES + 1) * relus + BLOCK_BYTES * (64 << 10));
        let heads = client_head_bytes(indexed, bundles) + server_head_bytes(indexed, bundles);

        let layers = indexed.layers.iter();
        let garbled: usize = layers
            .map(|layer| choice_bytes(TREE_DEPTH, layer) + garbled_bytes(layer))
            .sum();
        let ciphertexts = quadratic::ciphertexts(indexed.slots);
        let oles = quadratic::offline_upload_bytes(indexed.slots)
            + quadratic::offline_answer_bytes(indexed.slots)
            + 2 * OLE_BYTES * ciphertexts;
        let bundle = garbled + oles + 3 * ServerBundle::encoded_len(self);

        let threads = rayon::current_num_threads() * THREAD_BYTES;
        let first = linear.max(transfers + heads) + messages.iter().sum::<usize>();
        let second = transfers + bundle;
        (KEYS_BYTES + threads + shares + first.max(second)) as u64
    }
}
