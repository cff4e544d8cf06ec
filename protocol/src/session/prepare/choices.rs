//! Message 3: what the client chooses and offers for one bundle, once the linear answers are final.
//!
//! | part | content |
//! | --- | --- |
//! | forward set-up | once, if anything is garbled |
//! | per layer with ReLUs | choices by the bits of `c'`, then `tau` |
//! | label | choices by the bits of `c'`, if the output reveals one |
//! | OLE uploads | ciphertexts of random `a` for all squares and polynomials |
//! | OLE corrections | `x - a`, one per slot |
//! | per layer | `c' - r` of identity elements |

use super::{ClientBatch, ClientExchange, part};
use crate::header::BundleHeader;
use crate::indexed_circuit::{IndexedCircuit, activation};
use crate::nonlinear::relu::{Offered, ReluLayer, ReverseOffer};
use crate::nonlinear::{choice_bytes, gather, label, quadratic};
use crate::session::material::TREE_DEPTH;
use crate::wire::Reader;
use crate::{Error, share};
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_core::{Labels, memory};
use pi_ir::Layer;
use zeroize::Zeroizing;

/// Bytes of the message.
pub(super) fn message_bytes(indexed: &IndexedCircuit) -> usize {
    let identity: usize = indexed.layers.iter().map(|l| l.identity.len()).sum();
    let layers = indexed.layers.iter();
    let garbled = layers.map(|layer| choice_bytes(TREE_DEPTH, layer));
    forward_setup_bytes(indexed)
        + garbled.sum::<usize>()
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

/// The client's state of a bundle between messages 3 and 4, by layer.
pub(super) struct Chosen {
    pub(super) layers: Vec<ChosenLayer>,
}

pub(super) struct ChosenLayer {
    pub(super) c: Elements,
    /// Truncated shares of the ReLUs, and what message 4 completes.
    pub(super) offered: Option<(Elements, Offered)>,
    /// The client's labels of the arg max.
    pub(super) label: Option<Labels>,
    pub(super) next: Elements,
}

impl ClientBatch<'_> {
    /// The client makes message 3 of a bundle.
    pub(super) fn choose(
        &self,
        bundle: usize,
        exchange: ClientExchange,
    ) -> Result<(BundleHeader, Chosen, Vec<u8>), Error> {
        let (indexed, count) = (self.batch.indexed, self.batch.planned.bundles());
        let masks: Vec<&[u64]> = (self.masks.iter())
            .map(|mask| part(mask, bundle, count))
            .collect();
        let mut answers = self.answers.iter().map(|all| part(all, bundle, count));
        let mut transfers = exchange.transfers;
        let mut message = memory::with_capacity(message_bytes(indexed));
        if let Some(transfers) = &transfers {
            message.extend_from_slice(&transfers.forward_setup);
        }
        let mut ole_inputs = Zeroizing::new(Vec::with_capacity(indexed.slots));
        let mut identity = Vec::new();
        let mut layers = Vec::with_capacity(indexed.layers.len());
        for (l, (layer, index)) in indexed.layers_with_index().enumerate() {
            let c = indexed.sum(layer, &masks, &mut answers);
            let truncated = truncated(layer, &c);
            let Some(activation) = activation(layer) else {
                let garbled = index.label.zip(transfers.as_mut());
                let label = garbled.map(|(shape, transfers)| {
                    label::choose(shape, &truncated, &mut transfers.forward, &mut message)
                });
                layers.push(ChosenLayer {
                    c,
                    offered: None,
                    label,
                    next: Elements::default(),
                });
                continue;
            };
            let offered = match (index.width, &exchange.tweaks[l], &mut transfers) {
                (Some(width), Some(tweaks), Some(transfers)) => {
                    let c = gather(&truncated, &index.relu);
                    let layer = ReluLayer { width, tweaks };
                    let reverse = ReverseOffer {
                        delta: &transfers.reverse_delta,
                        q: &transfers.q[l],
                    };
                    let forward = &mut transfers.forward;
                    let offered = Offered::new(layer, &c, forward, reverse, &mut message)?;
                    Some((c, offered))
                }
                _ => None,
            };
            for &element in &index.quadratic {
                let element = element as usize;
                let kind = activation.kinds[element];
                quadratic::client_inputs(kind, truncated[element], &mut ole_inputs);
            }
            // Tensor 0 is the input, so the layer's result is tensor `l + 1`.
            let mask = masks[l + 1];
            for &element in &index.identity {
                let element = element as usize;
                identity.push(fp::sub(truncated[element], mask[element]));
            }
            let next = gather(mask, index.relu.iter().chain(&index.quadratic));
            layers.push(ChosenLayer {
                c,
                offered,
                label: None,
                next,
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
        Ok((exchange.header, Chosen { layers }, message))
    }
}

/// The client's truncated shares of a layer.
fn truncated(layer: &Layer, c: &[u64]) -> Elements {
    let (f, bound) = (layer.truncate(), layer.bound_bits);
    Zeroizing::new(
        c.iter()
            .map(|&c| share::truncate_client(c, f, bound))
            .collect(),
    )
}

/// Message 3 as the server reads it, part by part.
pub(super) struct Choices<'m> {
    pub(super) forward_setup: &'m [u8],
    /// By layer: choices and `tau` of its ReLUs, or choices of the label; empty without either.
    pub(super) garbled: Vec<&'m [u8]>,
    pub(super) ole_uploads: &'m [u8],
    pub(super) ole_corrections: &'m [u8],
    /// Elements `c' - r` by layer; empty without identity elements.
    pub(super) identity: Vec<&'m [u8]>,
}

impl<'m> Choices<'m> {
    /// The server's half: the parts of a message of [`message_bytes`].
    pub(super) fn read(indexed: &IndexedCircuit, message: &'m [u8]) -> Result<Self, Error> {
        let mut reader = Reader::message("choices", message);
        let forward_setup = reader.take(forward_setup_bytes(indexed))?;
        let garbled = indexed.layers.iter();
        let garbled = garbled.map(|layer| reader.take(choice_bytes(TREE_DEPTH, layer)));
        let garbled = garbled.collect::<Result<_, Error>>()?;
        let ole_uploads = reader.take(quadratic::offline_upload_bytes(indexed.slots))?;
        let ole_corrections = reader.take(quadratic::correction_bytes(indexed.slots))?;
        let identity = indexed.layers.iter();
        let identity = identity.map(|layer| reader.take(ELEMENT_BYTES * layer.identity.len()));
        let identity = identity.collect::<Result<_, Error>>()?;
        reader.end()?;
        Ok(Choices {
            forward_setup,
            garbled,
            ole_uploads,
            ole_corrections,
            identity,
        })
    }
}
