//! Message 4: what the server garbles and answers for one bundle, and what the client keeps of it.
//!
//! | part | content |
//! | --- | --- |
//! | per layer with ReLUs | tables, then `e = colour xor b` |
//! | label | tables, if the output reveals one |
//! | OLE answers | `u`, masked by `v` and flooded |

use super::choices::{Choices, Chosen};
use super::{ClientBatch, ServerBatch, ServerExchange, part};
use crate::Error;
use crate::header::BundleHeader;
use crate::indexed_circuit::{IndexedCircuit, activation};
use crate::nonlinear::garbled_bytes;
use crate::nonlinear::label::{ClientLabel, ServerLabel};
use crate::nonlinear::quadratic::{self, ServerOle};
use crate::nonlinear::relu::{self, ClientRelu, ReluLayer, ServerChoices};
use crate::session::bundle::{ClientBundle, ClientLayer, ServerBundle, ServerLayer};
use crate::session::material::{label_stream, polynomial};
use crate::wire::Reader;
use pi_core::fp::{self, Elements};
use pi_core::{Block, Delta, memory};
use pi_garble::ServerGadget;
use pi_ir::Layer;
use pi_ot::CotSender;
use zeroize::Zeroizing;

/// Bytes of the message.
pub(super) fn message_bytes(indexed: &IndexedCircuit) -> usize {
    all_garbled_bytes(indexed) + quadratic::offline_answer_bytes(indexed.slots)
}

/// Bytes of its tables and `e`.
fn all_garbled_bytes(indexed: &IndexedCircuit) -> usize {
    indexed.layers.iter().map(garbled_bytes).sum()
}

impl ServerBatch<'_> {
    /// The server makes message 4 of a bundle from message 3.
    pub(super) fn garble(
        &self,
        bundle: usize,
        mut exchange: ServerExchange,
        choices: &Choices<'_>,
    ) -> Result<(ServerBundle, Vec<u8>), Error> {
        let indexed = self.batch.indexed;
        let offsets = self.offsets(bundle);
        let mut reply = memory::zeroed(message_bytes(indexed));
        // The OLE answers are appended.
        reply.truncate(all_garbled_bytes(indexed));
        let label_seed = exchange.secrets.seed("server labels", 0);
        let (delta, garbled) = exchange.garble(indexed, &label_seed, choices, &mut reply)?;
        let (d0, ole) = self.answer_ole(&exchange, choices, &mut reply)?;
        let mut v = ole.iter();
        let mut layers = Vec::with_capacity(indexed.layers.len());
        let parts = offsets.into_iter().zip(d0).zip(garbled);
        let parts = parts.zip(&choices.identity);
        for ((layer, index), (((offset, d0), garbled), identity)) in
            indexed.layers_with_index().zip(parts)
        {
            let identity = fp::decode("identity elements", identity, index.identity.len())?;
            layers.push(ServerLayer {
                offset,
                gadget: garbled.gadget,
                label: garbled.label,
                d0,
                v: sums_of_slots(layer, &index.quadratic, &mut v),
                identity: Zeroizing::new(identity),
            });
        }
        let bundle = ServerBundle {
            header: exchange.header,
            label_seed,
            delta,
            layers,
        };
        Ok((bundle, reply))
    }

    /// Biases less `s`, by layer, after the layer's pool. Biases are the server's own numbers and
    /// enter its share without a message, so the client learns neither them nor their form.
    fn offsets(&self, bundle: usize) -> Vec<Elements> {
        let (indexed, count) = (self.batch.indexed, self.batch.planned.bundles());
        let mut sums: Vec<Elements> = (indexed.circuit.layers.iter())
            .zip(&self.model.weights().layers)
            .map(|(layer, weights)| {
                let shape = indexed.sum_shape(layer);
                let area = shape.h as usize * shape.w as usize;
                let bias = weights.bias.iter().map(|&bias| fp::from_i64(bias));
                Zeroizing::new(bias.flat_map(|b| std::iter::repeat_n(b, area)).collect())
            })
            .collect();
        for (answer, s) in indexed.single().answers().iter().zip(&self.shares) {
            let sum = &mut sums[answer.layer() as usize];
            for (sum, &s) in sum.iter_mut().zip(part(s, bundle, count)) {
                *sum = fp::sub(*sum, s);
            }
        }
        let layers = indexed.circuit.layers.iter().zip(sums);
        let weights = &self.model.weights().layers;
        let pooled = layers.zip(weights).map(|((layer, sum), weights)| {
            let mut pooled = indexed.pool(layer, sum);
            for (sum, &bias) in pooled.iter_mut().zip(&weights.element_bias) {
                *sum = fp::add(*sum, fp::from_i64(bias));
            }
            pooled
        });
        pooled.collect()
    }

    /// Reads the OLE part of message 3 and appends the answers; returns `d0` by layer, and `v` slot
    /// by slot.
    fn answer_ole(
        &self,
        exchange: &ServerExchange,
        choices: &Choices<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(Vec<Elements>, Elements), Error> {
        let indexed = self.batch.indexed;
        let mut factors = Zeroizing::new(Vec::with_capacity(indexed.slots));
        let mut d0 = Vec::with_capacity(indexed.layers.len());
        for (l, index) in indexed.layers.iter().enumerate() {
            let rng = &mut exchange.secrets.rng("openings", l as u64);
            let layer = Zeroizing::new(fp::uniform_vec(index.quadratic.len(), rng));
            for (&element, &d0) in index.quadratic.iter().zip(layer.iter()) {
                let polynomial = polynomial(self.model, l, element);
                quadratic::server_factors(polynomial, d0, &mut factors);
            }
            d0.push(layer);
        }
        let id = exchange.header.id().0;
        let (params, key) = (&self.batch.params, self.setup.public_key());
        let uploads = quadratic::receive_uploads(params, &id, indexed.slots, choices.ole_uploads)?;
        let mut ole = ServerOle::answer(params, uploads, key, factors, &exchange.secrets, reply);
        ole.correct(choices.ole_corrections)?;
        Ok((d0, ole.v))
    }
}

/// What the server keeps of a layer's garbled circuits.
#[derive(Default)]
struct Garbled {
    gadget: Option<ServerGadget>,
    label: Option<ServerLabel>,
}

impl ServerExchange {
    /// Garbles all layers into `reply`, of [`all_garbled_bytes`]; returns the forward offset, and
    /// what is kept by layer. Uses the bundle's transfers up.
    fn garble(
        &mut self,
        indexed: &IndexedCircuit,
        label_seed: &[u8; 32],
        choices: &Choices<'_>,
        reply: &mut [u8],
    ) -> Result<(Delta, Vec<Garbled>), Error> {
        let mut all = Vec::with_capacity(indexed.layers.len());
        let Some(transfers) = self.transfers.take() else {
            // Nothing is garbled, and the offset serves nowhere.
            all.resize_with(indexed.layers.len(), Garbled::default);
            return Ok((Delta::from_block(Block::ZERO), all));
        };
        let mut forward = transfers.forward.finish(choices.forward_setup)?;
        let delta = forward.delta().clone();
        let mut parts = reply;
        for (l, (index, (t, b))) in indexed.layers.iter().zip(&transfers.reverse).enumerate() {
            let mut garbled = Garbled::default();
            let zeros = label_stream(label_seed, l);
            let received = choices.garbled[l];
            let part = parts
                .split_off_mut(..garbled_bytes(index))
                .expect("the message has a part for each layer");
            match (index.width, index.label, &self.tweaks[l]) {
                (Some(width), _, Some(tweaks)) => {
                    let layer = ReluLayer { width, tweaks };
                    let own = ServerChoices { t, b };
                    let gadget = relu::garble(layer, &mut forward, &zeros, own, received, part)?;
                    garbled.gadget = Some(gadget);
                }
                (None, Some(shape), Some(tweaks)) => {
                    let forward = &mut forward;
                    let label = ServerLabel::garble(shape, tweaks, forward, &zeros, received, part);
                    garbled.label = Some(label?);
                }
                _ => {}
            }
            all.push(garbled);
        }
        Ok((delta, all))
    }
}

impl ClientBatch<'_> {
    /// The client reads message 4 of a bundle.
    pub(super) fn finish(
        &self,
        bundle: usize,
        header: BundleHeader,
        chosen: Chosen,
        message: &[u8],
    ) -> Result<ClientBundle, Error> {
        let indexed = self.batch.indexed;
        let mut reader = Reader::message("garbled circuits", message);
        let mut layers = Vec::with_capacity(chosen.layers.len());
        for (layer, index) in chosen.layers.into_iter().zip(&indexed.layers) {
            let relu: Option<ClientRelu> = match (layer.offered, index.width) {
                (Some((c, offered)), Some(width)) => {
                    Some(offered.settle(width, &c, &mut reader)?)
                }
                _ => None,
            };
            let label = match (layer.label, index.label) {
                (Some(labels), Some(shape)) => {
                    Some(ClientLabel::settle(shape, labels, &mut reader)?)
                }
                _ => None,
            };
            layers.push(ClientLayer {
                c: layer.c,
                relu,
                label,
                u: Elements::default(),
                next: layer.next,
            });
        }
        let u = quadratic::client_receive(
            &self.batch.params,
            self.setup.secret(),
            indexed.slots,
            reader.take(quadratic::offline_answer_bytes(indexed.slots))?,
        )?;
        reader.end()?;
        let mut u = u.iter();
        for ((layer, index), own) in indexed.layers_with_index().zip(&mut layers) {
            own.u = sums_of_slots(layer, &index.quadratic, &mut u);
        }
        let input_mask = part(&self.masks[0], bundle, self.batch.planned.bundles());
        Ok(ClientBundle {
            header,
            input_mask: Zeroizing::new(input_mask.to_vec()),
            layers,
        })
    }
}

/// Per square or polynomial, the sum of the values of its slots, which are the next of `slots`.
fn sums_of_slots<'s>(
    layer: &Layer,
    elements: &[u32],
    slots: &mut impl Iterator<Item = &'s u64>,
) -> Elements {
    let Some(activation) = activation(layer) else {
        return Elements::default();
    };
    let sums = elements.iter().map(|&element| {
        let count = quadratic::slots(activation.kinds[element as usize]);
        slots.take(count).fold(0, |sum, &slot| fp::add(sum, slot))
    });
    Zeroizing::new(sums.collect())
}
