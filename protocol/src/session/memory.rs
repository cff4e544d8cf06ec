//! Memory that an exchange takes at either party, by formula: a server that serves strangers takes
//! it from a budget before the first reply, and a client is told before it prepares.
//!
//! The formulas are sums of what is held at the same time, in the phase that holds most, and lean
//! to the high side. `tests/memory.rs` measures exchanges against them. Of ReLUs they hold one part
//! or one piece ([`crate::parts`]), and of everything else 8 bytes a value.

use super::bundle::{client_bytes, client_piece_bytes, server_bytes};
use super::infer::{infer_bytes, opening_bytes};
use super::model::{ClientModel, ServerModel};
use super::prepare::{client_head_bytes, part_bytes, server_head_bytes};
use crate::Error;
use crate::indexed_circuit::{IndexedCircuit, Planned};
use crate::linear::{answers_bytes, uploads_bytes};
use crate::nonlinear::quadratic;
use crate::parts::PART_BYTES;
use pi_core::BLOCK_BYTES;
use pi_core::fp::ELEMENT_BYTES;
use pi_rlwe::N;
use serde::Serialize;

/// A residue of a polynomial.
const RESIDUE_BYTES: usize = 8 * N;
/// A ciphertext of the linear layers, expanded: two polynomials of three residues.
const CIPHERTEXT_BYTES: usize = 6 * RESIDUE_BYTES;
/// A ciphertext of an OLE, expanded: two polynomials of four residues.
const OLE_BYTES: usize = 8 * RESIDUE_BYTES;
/// Eight Galois keys with three digits of two polynomials of four residues, transformed and with
/// their precomputed quotients; the public key; masters.
const KEYS_BYTES: usize = 8 * 3 * 2 * 4 * 2 * RESIDUE_BYTES + (2 << 20);
/// The client's keys: the secret key in its forms; masters.
const CLIENT_KEYS_BYTES: usize = 16 * RESIDUE_BYTES + (2 << 20);
/// What one thread works in.
const THREAD_BYTES: usize = 12 << 20;
/// The trees of a bundle's oblivious transfers, both directions, and their streams' keys.
const TRANSFER_BYTES: usize = BLOCK_BYTES * (64 << 10);
/// Of a ciphertext that the client makes: roles of coefficients, mask, errors, and the polynomials
/// of its encryption.
const DRAFT_BYTES: usize = 24 * N + CIPHERTEXT_BYTES;

/// Length of a stored half up to which whoever spends it reads all of it before it is used, so that
/// nothing is read while a peer waits. Those of networks of 32 by 32 pixels are no longer.
pub const READ_AT_ONCE: u64 = 64 << 20;

/// Length of the client's stored half up to which a client that has time before it asks reads all
/// pieces ahead: those of ResNet-18 with every ReLU, or of ResNet-50 at 224 pixels with 150,000 of
/// them, are no longer. Beyond it they are read while the answer is made.
pub const READ_AHEAD: u64 = 384 << 20;

/// Bytes of memory that a party needs at most, beside the model, to prepare bundles and to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// For a bundle that is prepared alone.
    pub offline: u64,
    /// For one inference.
    pub online: u64,
}

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
        let indexed = self.indexed();
        let threads = rayon::current_num_threads();
        Ok(server_offline(indexed, indexed.planned(bundles)?, threads))
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
    /// and the messages of the largest piece.
    pub fn online_memory(&self) -> u64 {
        server_online(self.indexed())
    }
}

impl ClientModel {
    /// Bytes that the exchange of a batch takes at the client, keys and messages included; bundles
    /// that are written to a file take none.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] without a plan for so many bundles.
    pub fn offline_memory(&self, bundles: usize) -> Result<u64, Error> {
        let indexed = self.indexed();
        let threads = rayon::current_num_threads();
        Ok(client_offline(indexed, indexed.planned(bundles)?, threads))
    }

    /// Bytes that an inference takes at the client: its shares, and the largest piece, or all of a
    /// bundle that is read ahead.
    pub fn online_memory(&self) -> u64 {
        client_online(self.indexed())
    }
}

/// The memory of client and server, with two threads each.
pub(crate) fn of_parties(indexed: &IndexedCircuit) -> [Memory; 2] {
    const THREADS: usize = 2;
    [
        Memory {
            offline: client_offline(indexed, &indexed.single, THREADS),
            online: client_online(indexed),
        },
        Memory {
            offline: server_offline(indexed, &indexed.single, THREADS),
            online: server_online(indexed),
        },
    ]
}

fn server_offline(indexed: &IndexedCircuit, planned: &Planned, threads: usize) -> u64 {
    let (bundles, packing) = (planned.bundles(), &planned.packing);
    let answers = packing.answers();
    let shares: usize = answers
        .iter()
        .map(|answer| ELEMENT_BYTES * answer.len())
        .sum();
    let messages: Vec<usize> = answers.iter().map(answers_bytes).collect();
    let uploads = packing.uploads().iter();
    let upload = uploads.map(|map| uploads_bytes(map) + 2 * CIPHERTEXT_BYTES * map.ciphertexts());
    // While an answer is put together its parts are there too, with the places of its elements.
    let making = answers.iter().zip(&messages);
    let making = making.map(|(answer, message)| message + 4 * ELEMENT_BYTES * answer.len());
    let linear = upload.max().unwrap_or(0) + making.max().unwrap_or(0);

    // Blocks and choices of a part: of the first for all bundles, and of the one under way.
    let first = BLOCK_BYTES + 1;
    let transfers = bundles * (first * relus(indexed, 0) + TRANSFER_BYTES);
    let heads = client_head_bytes(indexed, bundles) + server_head_bytes(indexed, bundles);
    let ciphertexts = quadratic::ciphertexts(indexed.slots);
    let oles = 2 * OLE_BYTES * ciphertexts;
    let bundle = largest_part(indexed) + oles + server_bytes(indexed) + largest_layer(indexed);

    let threads = threads * THREAD_BYTES;
    let first = linear.max(transfers + heads) + messages.iter().sum::<usize>();
    let second = transfers + bundle;
    (KEYS_BYTES + threads + shares + first.max(second)) as u64
}

fn server_online(indexed: &IndexedCircuit) -> u64 {
    let tensors: usize = indexed.tensors().iter().map(|shape| shape.len()).sum();
    let bundle = server_bytes(indexed);
    let stored = bundle
        .min(READ_AT_ONCE as usize)
        .max(largest_layer(indexed));
    (bundle + stored + 2 * ELEMENT_BYTES * tensors + 2 * largest_online(indexed)) as u64
}

fn client_offline(indexed: &IndexedCircuit, planned: &Planned, threads: usize) -> u64 {
    let (bundles, packing) = (planned.bundles(), &planned.packing);
    let elements: usize = indexed.tensors().iter().map(|shape| shape.len()).sum();
    let masks = ELEMENT_BYTES * bundles * elements;
    let answers = packing.answers().iter();
    let shares: usize = answers.map(|answer| ELEMENT_BYTES * answer.len()).sum();
    let uploads = packing.uploads().iter();
    let upload = uploads.map(|map| 3 * uploads_bytes(map) + DRAFT_BYTES * map.ciphertexts());
    // While an answer is read: the message, its ciphertexts, and places and values of its elements.
    let answers = packing.answers().iter();
    let reading = answers.map(|answer| 4 * answers_bytes(answer) + ELEMENT_BYTES * answer.len());
    let linear = upload.max().unwrap_or(0).max(reading.max().unwrap_or(0));

    let transfers = bundles * (BLOCK_BYTES * relus(indexed, 0) + TRANSFER_BYTES);
    let heads = client_head_bytes(indexed, bundles) + server_head_bytes(indexed, bundles);
    let oles = 2 * OLE_BYTES * quadratic::ciphertexts(indexed.slots);
    let bundle = client_shares(indexed) + 2 * largest_part(indexed) + oles;

    let threads = threads * THREAD_BYTES;
    let phase = linear.max(heads).max(bundle);
    (CLIENT_KEYS_BYTES + threads + masks + shares + transfers + phase) as u64
}

fn client_online(indexed: &IndexedCircuit) -> u64 {
    let pieces = indexed.parts.all().iter().map(client_piece_bytes);
    let stored = client_bytes(indexed);
    // A piece as it is stored and as it is used, and all that are read before.
    let piece = 2 * pieces.max().unwrap_or(0);
    let pieces = if stored as u64 <= READ_AT_ONCE {
        2 * stored
    } else if stored as u64 <= READ_AHEAD {
        stored + piece
    } else {
        piece
    };
    // Shares as they are stored, and those that are truncated.
    let shares = 2 * client_shares(indexed);
    (shares + pieces + 2 * largest_online(indexed)) as u64
}

/// Bytes of the client's shares and masks of a bundle, which are in memory as a whole.
fn client_shares(indexed: &IndexedCircuit) -> usize {
    let layers = indexed.layers_with_index().map(|(layer, index)| {
        let label = index
            .label
            .map_or(0, |shape| shape.label_bytes() + shape.table_bytes());
        label + ELEMENT_BYTES * (layer.shape.len() + 2 * index.online())
    });
    ELEMENT_BYTES * indexed.circuit.input.len() + layers.sum::<usize>()
}

/// ReLUs of a part.
fn relus(indexed: &IndexedCircuit, part: usize) -> usize {
    let pieces = indexed.parts.of_part(part).iter();
    pieces.map(|piece| piece.len).sum()
}

/// Bytes of both messages of a part, and what is made of them beside.
fn largest_part(indexed: &IndexedCircuit) -> usize {
    let parts = (0..indexed.parts.count()).map(|part| {
        let (up, down) = part_bytes(indexed, part);
        up + down + 4 * BLOCK_BYTES * relus(indexed, part)
    });
    parts.max().unwrap_or(0)
}

/// Bytes of the server's largest layer, as it is stored.
fn largest_layer(indexed: &IndexedCircuit) -> usize {
    let layers = indexed.layers_with_index().map(|(layer, index)| {
        ELEMENT_BYTES * (layer.shape.len() + 3 * index.online() + index.identity.len())
    });
    layers.max().unwrap_or(0)
}

/// Bytes of the largest message online, and of a layer's results.
fn largest_online(indexed: &IndexedCircuit) -> usize {
    let layers = indexed.layers.iter().enumerate().map(|(l, index)| {
        let messages = opening_bytes(indexed, l).into_iter();
        let results = ELEMENT_BYTES * index.online();
        messages.max().unwrap_or(0) + 2 * results + results.min(PART_BYTES)
    });
    let (request, last) = infer_bytes(indexed);
    layers.max().unwrap_or(0).max(request).max(last)
}
