//! Message 3: what the client chooses and offers for one bundle, once the linear answers are final.
//!
//! | in | content |
//! | --- | --- |
//! | the head, in front of part 0 | forward set-up, once, if anything is garbled |
//! | | choices by the bits of `c'`, if the output reveals a label |
//! | | OLE uploads: ciphertexts of random `a` for all squares and polynomials |
//! | | OLE corrections: `x - a`, one per slot |
//! | | per layer, `c' - r` of identity elements |
//! | every part | per piece, choices by the bits of `c'`, then `tau` |

use super::{ClientBatch, ClientExchange, Making, part};
use crate::indexed_circuit::{IndexedCircuit, activation};
use crate::nonlinear::relu::{self, Offered, ReluPiece, ReverseOffer};
use crate::nonlinear::{gather, label, quadratic};
use crate::parts::Piece;
use crate::session::bundle::ClientLayer;
use crate::session::material::TREE_DEPTH;
use crate::wire::Reader;
use crate::{Error, share};
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_core::{Labels, memory};
use pi_ir::Layer;
use zeroize::Zeroizing;

/// Bytes of a part's message, with the head in front of part 0.
pub(super) fn message_bytes(indexed: &IndexedCircuit, part: usize) -> usize {
    let head = if part == 0 { head_bytes(indexed) } else { 0 };
    let pieces = indexed.parts.of_part(part).iter();
    head + pieces.map(piece_bytes).sum::<usize>()
}

fn head_bytes(indexed: &IndexedCircuit) -> usize {
    let identity: usize = indexed.layers.iter().map(|l| l.identity.len()).sum();
    forward_setup_bytes(indexed)
        + label_bytes(indexed)
        + quadratic::offline_upload_bytes(indexed.slots)
        + quadratic::correction_bytes(indexed.slots)
        + ELEMENT_BYTES * identity
}

fn forward_setup_bytes(indexed: &IndexedCircuit) -> usize {
    match indexed.garbles {
        false => 0,
        true => TREE_DEPTH.setup_bytes(),
    }
}

fn label_bytes(indexed: &IndexedCircuit) -> usize {
    let label = indexed.layers.iter().find_map(|layer| layer.label);
    label.map_or(0, |shape| label::choice_bytes(TREE_DEPTH, shape))
}

fn piece_bytes(piece: &Piece) -> usize {
    relu::choice_bytes(TREE_DEPTH, piece.width, piece.len)
}

/// A piece between messages 3 and 4: truncated shares, and what message 4 completes.
pub(super) type OfferedPiece = (Elements, Offered);

impl ClientBatch<'_> {
    /// The client computes its shares of a bundle, and makes the head of message 3: returns them,
    /// and what message 4 is to complete in the label.
    pub(super) fn begin(
        &self,
        bundle: usize,
        exchange: ClientExchange,
    ) -> Result<(Making, Option<Labels>, Vec<u8>), Error> {
        let (indexed, count) = (self.batch.indexed, self.batch.planned.bundles());
        let masks: Vec<&[u64]> = (self.masks.iter())
            .map(|mask| part(mask, bundle, count))
            .collect();
        let mut answers = self.answers.iter().map(|all| part(all, bundle, count));
        let mut transfers = exchange.transfers;
        let mut message = memory::with_capacity(message_bytes(indexed, 0));
        if let Some(transfers) = &transfers {
            message.extend_from_slice(&transfers.forward_setup);
        }
        let mut ole_inputs = Zeroizing::new(Vec::with_capacity(indexed.slots));
        let mut identity = Vec::new();
        let mut layers = Vec::with_capacity(indexed.layers.len());
        let mut label = None;
        for (l, (layer, index)) in indexed.layers_with_index().enumerate() {
            let c = indexed.sum(layer, &masks, &mut answers);
            let Some(activation) = activation(layer) else {
                let garbled = index.label.zip(transfers.as_mut());
                label = garbled.map(|(shape, transfers)| {
                    let c = truncated(layer, &c);
                    label::choose(shape, &c, &mut transfers.forward, &mut message)
                });
                let next = Elements::default();
                layers.push(ClientLayer {
                    c,
                    next,
                    ..ClientLayer::default()
                });
                continue;
            };
            let of = truncation(layer);
            for &element in &index.quadratic {
                let element = element as usize;
                let kind = activation.kinds[element];
                quadratic::client_inputs(kind, of(c[element]), &mut ole_inputs);
            }
            // Tensor 0 is the input, so the layer's result is tensor `l + 1`.
            let mask = masks[l + 1];
            for &element in &index.identity {
                let element = element as usize;
                identity.push(fp::sub(of(c[element]), mask[element]));
            }
            let next = gather(mask, index.relu.iter().chain(&index.quadratic));
            layers.push(ClientLayer {
                c,
                next,
                ..ClientLayer::default()
            });
        }
        quadratic::client_offer(
            &self.batch.params,
            self.setup.secret(),
            &exchange.header.id().0,
            &ole_inputs,
            &exchange.secrets,
            &mut message,
        );
        message.extend_from_slice(fp::encode(&identity));
        let making = Making {
            header: exchange.header,
            tweaks: exchange.tweaks,
            transfers,
            layers,
        };
        Ok((making, label, message))
    }
}

impl Making {
    /// The client chooses and offers the pieces of a part; appends them to its message.
    pub(super) fn choose(
        &mut self,
        indexed: &IndexedCircuit,
        part: usize,
        message: &mut Vec<u8>,
    ) -> Result<Vec<OfferedPiece>, Error> {
        let Some(transfers) = &mut self.transfers else {
            return Ok(Vec::new());
        };
        let pieces = indexed.parts.of_part(part);
        let mut offered = Vec::with_capacity(pieces.len());
        for (piece, q) in pieces.iter().zip(std::mem::take(&mut transfers.q)) {
            let Some(tweaks) = &self.tweaks[piece.layer] else {
                continue;
            };
            let index = &indexed.layers[piece.layer];
            let of = truncation(&indexed.circuit.layers[piece.layer]);
            let mut c = gather(&self.layers[piece.layer].c, &index.relu[piece.range()]);
            c.iter_mut().for_each(|c| *c = of(*c));
            let reverse = ReverseOffer {
                delta: &transfers.reverse_delta,
                q: &q,
            };
            let piece = ReluPiece::new(piece, tweaks);
            let forward = &mut transfers.forward;
            let made = Offered::new(&piece, &c, forward, reverse, message)?;
            offered.push((c, made));
        }
        Ok(offered)
    }
}

/// The truncation of the client's shares of a layer.
fn truncation(layer: &Layer) -> impl Fn(u64) -> u64 {
    let (f, bound) = (layer.truncate(), layer.bound_bits);
    move |c| share::truncate_client(c, f, bound)
}

/// The client's truncated shares of a layer.
fn truncated(layer: &Layer, c: &[u64]) -> Elements {
    let of = truncation(layer);
    Zeroizing::new(c.iter().map(|&c| of(c)).collect())
}

/// The head of message 3 as the server reads it.
pub(super) struct Head<'m> {
    pub(super) forward_setup: &'m [u8],
    /// Choices of the label; empty without one.
    pub(super) label: &'m [u8],
    pub(super) ole_uploads: &'m [u8],
    pub(super) ole_corrections: &'m [u8],
    /// Elements `c' - r` by layer; empty without identity elements.
    pub(super) identity: Vec<&'m [u8]>,
}

impl<'m> Head<'m> {
    /// The server's half: the head of a message of [`message_bytes`].
    pub(super) fn read(indexed: &IndexedCircuit, reader: &mut Reader<'m>) -> Result<Self, Error> {
        let forward_setup = reader.take(forward_setup_bytes(indexed))?;
        let label = reader.take(label_bytes(indexed))?;
        let ole_uploads = reader.take(quadratic::offline_upload_bytes(indexed.slots))?;
        let ole_corrections = reader.take(quadratic::correction_bytes(indexed.slots))?;
        let identity = indexed.layers.iter();
        let identity = identity.map(|layer| reader.take(ELEMENT_BYTES * layer.identity.len()));
        Ok(Head {
            forward_setup,
            label,
            ole_uploads,
            ole_corrections,
            identity: identity.collect::<Result<_, Error>>()?,
        })
    }
}

/// The server's half: the choices and `tau` of a piece.
pub(super) fn read_piece<'m>(piece: &Piece, reader: &mut Reader<'m>) -> Result<&'m [u8], Error> {
    reader.take(piece_bytes(piece))
}
