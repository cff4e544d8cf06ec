//! Message 4: what the server garbles and answers for one bundle, and what the client keeps of it.
//!
//! | in | content |
//! | --- | --- |
//! | the head, in front of part 0 | tables of the label, if the output reveals one |
//! | | OLE answers: `u`, masked by `v` and flooded |
//! | every part | per piece, tables, then `e = colour xor b` |
//! | every part but the last | choices of the reverse extension for the next part |

use super::choices::{self, Head, OfferedPiece};
use super::transfers::{self, ReverseChoices};
use super::{ClientBatch, Making, ServerBatch, ServerExchange, part};
use crate::Error;
use crate::indexed_circuit::{IndexedCircuit, activation};
use crate::nonlinear::label::{ClientLabel, ServerLabel};
use crate::nonlinear::quadratic::{self, ServerOle};
use crate::nonlinear::relu::{self, ReluPiece, ServerChoices};
use crate::parts::Piece;
use crate::session::bundle::{ClientWriter, ServerBundle, ServerLayer};
use crate::session::material::{label_stream, polynomial};
use crate::wire::Reader;
use pi_core::fp::{self, Elements};
use pi_core::{Block, Delta, Labels, memory};
use pi_garble::{ArgMax, GuardKey};
use pi_ir::Layer;
use pi_ot::{CotSender, ExtensionSender};
use zeroize::Zeroizing;

/// Bytes of a part's message, with the head in front of part 0.
pub(super) fn message_bytes(indexed: &IndexedCircuit, part: usize) -> usize {
    let head = if part == 0 { head_bytes(indexed) } else { 0 };
    head + garbled_bytes(indexed, part) + transfers::reverse_bytes(indexed, part + 1)
}

fn head_bytes(indexed: &IndexedCircuit) -> usize {
    label_bytes(indexed) + quadratic::offline_answer_bytes(indexed.slots)
}

fn label_bytes(indexed: &IndexedCircuit) -> usize {
    let label = indexed.layers.iter().find_map(|layer| layer.label);
    label.map_or(0, ArgMax::table_bytes)
}

/// Bytes of a part's tables and `e`.
fn garbled_bytes(indexed: &IndexedCircuit, part: usize) -> usize {
    let pieces = indexed.parts.of_part(part).iter();
    pieces.map(Piece::garbled_bytes).sum()
}

/// The server's state of a bundle between the parts of its exchange.
pub(super) struct Garbling {
    exchange: ServerExchange,
    transfers: Option<GarblingTransfers>,
    label_seed: Zeroizing<[u8; 32]>,
    /// Of all guards so far.
    range_key: GuardKey,
    layers: Vec<ServerLayer>,
}

/// The oblivious transfers of a bundle that garbles, once both directions are set up.
struct GarblingTransfers {
    forward: ExtensionSender,
    reverse: ReverseChoices,
}

impl ServerBatch<'_> {
    /// The server reads the head of message 3 of a bundle, and makes that of message 4.
    pub(super) fn begin(
        &self,
        bundle: usize,
        mut exchange: ServerExchange,
        choices: &mut Reader<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<Garbling, Error> {
        let indexed = self.batch.indexed;
        let head = Head::read(indexed, choices)?;
        let label_seed = exchange.secrets.seed("server labels", 0);
        let mut range_key = GuardKey::empty();
        let mut layers: Vec<ServerLayer> = Vec::with_capacity(indexed.layers.len());
        for ((offset, identity), index) in (self.offsets(bundle).into_iter())
            .zip(&head.identity)
            .zip(&indexed.layers)
        {
            let identity = fp::decode("identity elements", identity, index.identity.len())?;
            layers.push(ServerLayer {
                offset,
                identity: Zeroizing::new(identity),
                ..ServerLayer::default()
            });
        }
        let transfers = exchange.transfers.take().map(|transfers| {
            Ok::<_, Error>(GarblingTransfers {
                forward: transfers.forward.finish(head.forward_setup)?,
                reverse: transfers.reverse,
            })
        });
        let mut transfers = transfers.transpose()?;
        let output = indexed.layers.iter().enumerate().next_back();
        if let Some((l, index)) = output
            && let (Some(shape), Some(tweaks)) = (index.label, &exchange.tweaks[l])
            && let Some(GarblingTransfers { forward, .. }) = &mut transfers
        {
            let start = reply.len();
            reply.resize(start + shape.table_bytes(), 0);
            let (zeros, tables) = (label_stream(&label_seed, l), &mut reply[start..]);
            let (label, guard) =
                ServerLabel::garble(shape, tweaks, forward, &zeros, head.label, tables)?;
            range_key.add(&guard);
            layers[l].label = Some(label);
        }
        let (d0, ole) = self.answer_ole(&exchange, &head, reply)?;
        let mut v = ole.iter();
        let own = layers.iter_mut().zip(d0);
        for ((layer, index), (own, d0)) in indexed.layers_with_index().zip(own) {
            own.d0 = d0;
            own.v = sums_of_slots(layer, &index.quadratic, &mut v);
        }
        Ok(Garbling {
            exchange,
            transfers,
            label_seed,
            range_key,
            layers,
        })
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
        head: &Head<'_>,
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
        let uploads = quadratic::receive_uploads(params, &id, indexed.slots, head.ole_uploads)?;
        let mut ole = ServerOle::answer(params, uploads, key, factors, &exchange.secrets, reply);
        ole.correct(head.ole_corrections)?;
        Ok((d0, ole.v))
    }
}

impl Garbling {
    /// The server garbles the pieces of a part, and chooses for the next; appends them to its
    /// message.
    pub(super) fn garble(
        &mut self,
        indexed: &IndexedCircuit,
        part: usize,
        choices: &mut Reader<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let Some(GarblingTransfers { forward, reverse }) = &mut self.transfers else {
            return Ok(());
        };
        let start = reply.len();
        reply.resize(start + garbled_bytes(indexed, part), 0);
        let mut rest = &mut reply[start..];
        for (piece, (t, b)) in indexed.parts.of_part(part).iter().zip(reverse.take()) {
            let Some(tweaks) = &self.exchange.tweaks[piece.layer] else {
                continue;
            };
            let garbled = rest
                .split_off_mut(..piece.garbled_bytes())
                .expect("the message has room for each piece");
            let received = choices::read_piece(piece, choices)?;
            let zeros = label_stream(&self.label_seed, piece.layer);
            let zeros = zeros.from_block(piece.first as u128 * u128::from(piece.width.bits()));
            let own = ServerChoices { t: &t, b: &b };
            let relus = ReluPiece::new(piece, tweaks);
            let (gadget, guard) = relu::garble(&relus, forward, &zeros, own, received, garbled)?;
            self.range_key.add(&guard);
            self.layers[piece.layer].gadgets.push(gadget);
        }
        reverse.choose(indexed, part + 1, &self.exchange.secrets, reply);
        Ok(())
    }

    /// The server's half of the bundle, once all parts are garbled.
    pub(super) fn finish(self, indexed: &IndexedCircuit) -> ServerBundle {
        let delta = match &self.transfers {
            Some(transfers) => transfers.forward.delta().clone(),
            // Nothing is garbled, and the offset serves nowhere.
            None => Delta::from_block(Block::ZERO),
        };
        ServerBundle {
            header: self.exchange.header,
            label_seed: self.label_seed,
            delta,
            range_key: indexed.guarded.then_some(self.range_key),
            layers: self.layers,
        }
    }
}

/// A reply of the server, empty, with room for a part's message.
pub(super) fn reply(indexed: &IndexedCircuit, part: usize) -> Vec<u8> {
    let mut reply = memory::zeroed(message_bytes(indexed, part));
    reply.clear();
    reply
}

impl ClientBatch<'_> {
    /// The client reads the head of message 4 of a bundle, which completes all but the pieces.
    pub(super) fn settle_head(
        &self,
        making: &mut Making,
        label: Option<Labels>,
        reader: &mut Reader<'_>,
    ) -> Result<(), Error> {
        let indexed = self.batch.indexed;
        if let Some((own, index)) = making.layers.iter_mut().zip(&indexed.layers).next_back()
            && let (Some(labels), Some(shape)) = (label, index.label)
        {
            own.label = Some(ClientLabel::settle(shape, labels, reader)?);
        }
        let u = quadratic::client_receive(
            &self.batch.params,
            self.setup.secret(),
            indexed.slots,
            reader.take(quadratic::offline_answer_bytes(indexed.slots))?,
        )?;
        let mut u = u.iter();
        for ((layer, index), own) in indexed.layers_with_index().zip(&mut making.layers) {
            own.u = sums_of_slots(layer, &index.quadratic, &mut u);
        }
        Ok(())
    }
}

impl Making {
    /// The client reads the pieces of a part, and writes them; and the choices for the next part.
    pub(super) fn settle(
        &mut self,
        indexed: &IndexedCircuit,
        part: usize,
        offered: Vec<OfferedPiece>,
        reader: &mut Reader<'_>,
        writer: &mut ClientWriter<'_>,
    ) -> Result<(), Error> {
        for (piece, (c, offered)) in indexed.parts.of_part(part).iter().zip(offered) {
            writer.piece(&offered.settle(piece.width, &c, reader)?)?;
        }
        match &mut self.transfers {
            Some(transfers) => transfers.read_choices(indexed, part + 1, reader),
            None => Ok(()),
        }
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
