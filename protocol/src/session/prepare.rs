//! A batch of bundles.
//!
//! | | messages | content |
//! | --- | --- | --- |
//! | 1 | client to server | digest of the headers; per bundle the base-OT correction of the reverse offset |
//! | | then per upload | encrypted masks of all bundles |
//! | 2 | server to client | digest of the headers; per bundle the base-OT correction of `delta`, set-up and random choices of the reverse extension |
//! | | then per answer | encrypted `W r + s` of all bundles |
//! | 3 | per bundle, client to server | set-up of the forward extension; per layer with ReLUs: choices by the bits of `c'`, `tau`; OLE uploads and `x - a`; `c' - r` of identity elements |
//! | 4 | then server to client | per layer with ReLUs: tables and `e`; OLE answers |
//!
//! Bundles of a batch share the ciphertexts of 1 and 2, and nothing else: headers, offsets, nonces
//! and seeds are each bundle's own, and 3 and 4 are one exchange a bundle. Parts that a circuit
//! does not need are left out, messages never: message 4 of a circuit without ReLUs, squares and
//! polynomials is empty. The digests are compared before anything else is computed. Why each
//! message can be simulated is said in [`super`], in [`crate::linear`], and beside the gadgets.
//!
//! # A batch that breaks
//! Uploads and answers are over before the first message 3, and no message of a batch is ever made
//! twice: an exchange that breaks is followed by one with other indices, hence other seeds and
//! masks. So the bundles that were complete before stay usable; the others are discarded on both
//! sides, and nothing of them was used.
//!
//! # Who waits for whom
//! The client sends all uploads before it reads; the server reads all of them, computing meanwhile,
//! before it sends. After that the two take turns. So no line, however small its buffers, can block
//! both.

use super::bundle::{ClientBundle, ClientLayer, ServerBundle, ServerLayer};
use super::material::{TREE_DEPTH, label_stream, polynomial, tweaks};
use super::model::{ClientModel, ServerModel};
use super::setup::{ClientSetup, ServerSetup};
use crate::channel::{Channel, receive_exactly};
use crate::cost::Traffic;
use crate::header::{BundleHeader, BundleId, HeaderInputs};
use crate::indexed_circuit::{IndexedCircuit, Planned, activation};
use crate::linear::{self, Answers, Kernels, Uploads, answers_bytes, uploads_bytes};
use crate::nonlinear::gather;
use crate::nonlinear::quadratic::{self, ServerOle};
use crate::nonlinear::relu::{self, ClientRelu, Offered, ServerChoices};
use crate::secrets::{Role, Secrets, public_seed};
use crate::wire::Reader;
use crate::{Error, share};
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_core::{Bits, Block, Delta, Labels, TweakRange, memory};
use pi_ir::Layer;
use pi_ot::{BASE_CORRECTION_BYTES, CotReceiver, CotSender, ExtensionReceiver, PendingSender};
use pi_rlwe::Params;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

const DIGEST_BYTES: usize = 32;

/// Bytes of the first messages of 1 and 2, and of a bundle's messages 3 and 4.
struct Lengths {
    client_head: usize,
    server_head: usize,
    choices: usize,
    garbled: usize,
}

impl Lengths {
    fn new(indexed: &IndexedCircuit, bundles: usize) -> Self {
        let with_relus = |bytes: usize| if indexed.relus > 0 { bytes } else { 0 };
        let relu_layers = || {
            let layers = indexed.layers.iter();
            layers.filter_map(|layer| Some((layer.width?, layer.relu.len())))
        };
        let identity: usize = indexed.layers.iter().map(|l| l.identity.len()).sum();
        let extension = TREE_DEPTH.setup_bytes();
        Lengths {
            client_head: DIGEST_BYTES + bundles * with_relus(BASE_CORRECTION_BYTES),
            server_head: DIGEST_BYTES
                + bundles
                    * (with_relus(BASE_CORRECTION_BYTES + extension)
                        + relu_layers()
                            .map(|(_, n)| TREE_DEPTH.correction_bytes(n))
                            .sum::<usize>()),
            choices: with_relus(extension)
                + relu_layers()
                    .map(|(width, n)| relu::choice_bytes(TREE_DEPTH, width, n))
                    .sum::<usize>()
                + quadratic::offline_upload_bytes(indexed.slots)
                + quadratic::correction_bytes(indexed.slots)
                + ELEMENT_BYTES * identity,
            garbled: garbled_bytes(indexed) + quadratic::offline_answer_bytes(indexed.slots),
        }
    }
}

/// Bytes of tables and `e` of a bundle.
fn garbled_bytes(indexed: &IndexedCircuit) -> usize {
    let layers = indexed.layers.iter();
    layers
        .filter_map(|layer| Some(relu::garbled_bytes(layer.width?, layer.relu.len())))
        .sum()
}

/// What a batch sends.
pub(crate) fn offline_traffic(indexed: &IndexedCircuit, planned: &Planned) -> Traffic {
    let bundles = planned.bundles();
    let lengths = Lengths::new(indexed, bundles);
    let packing = &planned.packing;
    let uploads: usize = packing.uploads().iter().map(uploads_bytes).sum();
    let answers: usize = packing.answers().iter().map(answers_bytes).sum();
    Traffic {
        up: (lengths.client_head + uploads + bundles * lengths.choices) as u64,
        down: (lengths.server_head + answers + bundles * lengths.garbled) as u64,
        messages: (2 + packing.uploads().len() + packing.answers().len() + 2 * bundles) as u32,
    }
}

/// Prepares one bundle with the server: the client's half.
///
/// `inputs` must not have served any exchange before, broken ones included: the runtime counts
/// `index` up.
///
/// # Errors
/// [`Error::PeerIncompatible`] if the headers' digests differ, [`Error::PeerMisbehaved`] for
/// malformed messages, [`Error::Channel`]. The exchange is over then, and the bundle discarded.
pub async fn client_prepare(
    channel: &mut impl Channel,
    model: &ClientModel,
    setup: &ClientSetup,
    inputs: &HeaderInputs,
    rng: &mut impl CryptoRng,
) -> Result<ClientBundle, Error> {
    let mut batch = ClientBatch::start(channel, model, setup, inputs, 1, rng).await?;
    let bundle = batch.next_bundle(channel).await?;
    Ok(bundle.expect("a batch of one has one bundle"))
}

/// Prepares one bundle with a client: the server's half.
///
/// `inputs` must not have served any exchange before, broken ones included.
///
/// # Errors
/// As [`client_prepare`].
pub async fn server_prepare(
    channel: &mut impl Channel,
    model: &ServerModel,
    setup: &ServerSetup,
    inputs: &HeaderInputs,
    rng: &mut impl CryptoRng,
) -> Result<ServerBundle, Error> {
    let mut batch = ServerBatch::start(channel, model, setup, inputs, 1, rng).await?;
    let bundle = batch.next_bundle(channel).await?;
    Ok(bundle.expect("a batch of one has one bundle"))
}

/// Receives the message that begins with the digest of the headers, and compares that first.
async fn receive_head(
    channel: &mut impl Channel,
    what: &'static str,
    expected: usize,
    id: &[u8; 32],
) -> Result<Vec<u8>, Error> {
    let message = channel.receive(expected).await?;
    match message.first_chunk::<DIGEST_BYTES>() {
        Some(digest) if digest != id => Err(Error::PeerIncompatible {
            what: format!("{what}: the headers of the bundles differ from ours"),
        }),
        _ => {
            Error::check_length(what, expected, message.len())?;
            Ok(message)
        }
    }
}

/// The headers of a batch: indices count up from that of `first`.
fn headers(first: &HeaderInputs, bundles: usize) -> impl Iterator<Item = HeaderInputs> {
    let first = *first;
    (0..bundles as u64).map(move |i| HeaderInputs {
        index: first.index + i,
        ..first
    })
}

/// The hash of the identities of a batch's bundles, in order: what its linear layers derive their
/// seeds from.
fn batch_id(bundles: impl IntoIterator<Item = BundleId>) -> [u8; 32] {
    let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 batch");
    for id in bundles {
        hash.update(&id.0);
    }
    hash.finalize().into()
}

/// Bundle `bundle` of a tensor or an answer, `[bundle][..]`.
fn part(all: &[u64], bundle: usize, bundles: usize) -> &[u64] {
    let length = all.len() / bundles;
    &all[bundle * length..][..length]
}

/// A batch at the client, after its linear layers: bundles come out of it one by one.
pub struct ClientBatch<'a> {
    indexed: &'a IndexedCircuit,
    setup: &'a ClientSetup,
    lengths: Lengths,
    params: Params,
    bundles: Vec<ClientExchange>,
    /// Bundles handed out.
    done: usize,
    /// `r` of every tensor, `[bundle][..]`.
    masks: Vec<Elements>,
    /// `W r + s` of every convolution, `[bundle][..]`.
    answers: Vec<Elements>,
}

/// What the client keeps for one bundle of a batch.
struct ClientExchange {
    header: BundleHeader,
    tweaks: Vec<Option<TweakRange>>,
    secrets: Secrets,
    transfers: Option<ClientTransfers>,
}

/// The client's oblivious transfers, both directions.
struct ClientTransfers {
    forward: ExtensionReceiver,
    /// Set-up of the forward extension, for message 3.
    forward_setup: Vec<u8>,
    reverse_delta: Delta,
    /// Blocks of the reverse direction by layer.
    q: Vec<Labels>,
}

/// A bundle between messages 3 and 4.
struct Chosen {
    layers: Vec<ChosenLayer>,
}

struct ChosenLayer {
    c: Elements,
    /// Truncated shares of the ReLUs, and what message 4 completes.
    offered: Option<(Elements, Offered)>,
    next: Elements,
}

impl<'a> ClientBatch<'a> {
    /// Runs the linear layers of `bundles` bundles, for which the model must have a plan
    /// ([`ClientModel::batches`]).
    ///
    /// `inputs` are those of the first; the others count `index` up. None of them may have served
    /// any exchange before.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] without such a plan, else as [`client_prepare`].
    pub async fn start(
        channel: &mut impl Channel,
        model: &'a ClientModel,
        setup: &'a ClientSetup,
        inputs: &HeaderInputs,
        bundles: usize,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Error> {
        let indexed = model.indexed();
        let planned = indexed.planned(bundles)?;
        let lengths = Lengths::new(indexed, bundles);
        let params = Params::standard();
        let headers: Vec<BundleHeader> = headers(inputs, bundles)
            .map(|inputs| model.public().header(planned, setup.id(), &inputs))
            .collect();
        let id = batch_id(headers.iter().map(BundleHeader::id));

        let mut message = id.to_vec();
        let mut exchanges = Vec::with_capacity(bundles);
        let mut pending = Vec::with_capacity(bundles);
        for header in headers {
            let bundle = header.id();
            let secrets = Secrets::draw(Role::Client, &bundle.0, rng);
            if indexed.relus > 0 {
                let rng = &mut secrets.rng("reverse offset", 0);
                let master = setup.reverse();
                let (begun, correction) = master.begin(&pi_ot::BundleId(bundle.0), TREE_DEPTH, rng);
                message.extend_from_slice(&correction);
                pending.push(begun);
            }
            exchanges.push(ClientExchange {
                tweaks: tweaks(indexed, &bundle),
                header,
                secrets,
                transfers: None,
            });
        }
        channel.send(message).await?;
        let masks = {
            let secrets = Secrets::draw(Role::Client, &id, rng);
            let (packing, seed) = (&planned.packing, public_seed("linear", &id, 0));
            let rng = &mut secrets.rng("linear", 0);
            let mut uploads = Uploads::new(&params, packing, setup.secret(), &seed, rng);
            while let Some(message) = uploads.next_message() {
                channel.send(message).await?;
            }
            // A tensor that no convolution reads has a mask all the same, drawn here.
            let masks = uploads.into_masks().into_iter().take(indexed.layers.len());
            let shapes = indexed.tensors().iter().enumerate();
            let masks = masks.zip(shapes).map(|(mask, (tensor, shape))| {
                mask.unwrap_or_else(|| {
                    let rng = &mut secrets.rng("mask", tensor as u64);
                    Zeroizing::new(fp::uniform_vec(shape.len() * bundles, rng))
                })
            });
            masks.collect()
        };

        let what = "first message of the server";
        let message = receive_head(channel, what, lengths.server_head, &id).await?;
        let mut reader = Reader::message(what, &message);
        reader.take(DIGEST_BYTES)?;
        for (exchange, pending) in exchanges.iter_mut().zip(pending) {
            let transfers = ClientTransfers::new(indexed, setup, exchange, pending, &mut reader)?;
            exchange.transfers = Some(transfers);
        }
        reader.end()?;
        let mut answers: Vec<Elements> = Vec::new();
        answers.resize_with(planned.packing.answers().len(), Elements::default);
        for index in planned.order() {
            let expected = answers_bytes(&planned.packing.answers()[index]);
            let message = receive_exactly(channel, "answer", expected).await?;
            let (packing, secret) = (&planned.packing, setup.secret());
            answers[index] = linear::finish_answer(&params, packing, secret, index, &message)?;
        }
        Ok(ClientBatch {
            indexed,
            setup,
            lengths,
            params,
            bundles: exchanges,
            done: 0,
            masks,
            answers,
        })
    }

    /// The next bundle of the batch; `None` after the last.
    ///
    /// # Errors
    /// As [`client_prepare`]; the rest of the batch is lost then.
    pub async fn next_bundle(
        &mut self,
        channel: &mut impl Channel,
    ) -> Result<Option<ClientBundle>, Error> {
        if self.done == self.bundles.len() {
            return Ok(None);
        }
        let bundle = self.done;
        let (chosen, message) = self.choose(bundle)?;
        channel.send(message).await?;
        let expected = self.lengths.garbled;
        let message = receive_exactly(channel, "garbled circuits", expected).await?;
        self.done += 1;
        self.finish(bundle, chosen, &message).map(Some)
    }

    /// Message 3 of a bundle.
    fn choose(&mut self, bundle: usize) -> Result<(Chosen, Vec<u8>), Error> {
        let (indexed, count) = (self.indexed, self.bundles.len());
        let masks: Vec<&[u64]> = (self.masks.iter())
            .map(|mask| part(mask, bundle, count))
            .collect();
        let mut answers = self.answers.iter();
        let mut convolution = |_, _: &_| {
            let answer = answers.next().expect("one answer for each convolution");
            part(answer, bundle, count).to_vec()
        };
        let exchange = &mut self.bundles[bundle];
        let mut transfers = exchange.transfers.take();
        let mut message = memory::with_capacity(self.lengths.choices);
        if let Some(transfers) = &transfers {
            message.extend_from_slice(&transfers.forward_setup);
        }
        let mut ole_inputs = Zeroizing::new(Vec::with_capacity(indexed.slots));
        let mut identity = Vec::new();
        let mut layers = Vec::with_capacity(indexed.layers.len());
        for (l, (layer, index)) in indexed.layers_with_index().enumerate() {
            let c = Zeroizing::new(indexed.sum(layer, &masks, &mut convolution));
            let Some(activation) = activation(layer) else {
                layers.push(ChosenLayer {
                    c,
                    offered: None,
                    next: Elements::default(),
                });
                continue;
            };
            let truncated = truncated(layer, &c);
            let offered = match (index.width, &exchange.tweaks[l], &mut transfers) {
                (Some(width), Some(tweaks), Some(transfers)) => {
                    let c = gather(&truncated, &index.relu);
                    let q = &transfers.q[l];
                    let (forward, delta) = (&mut transfers.forward, &transfers.reverse_delta);
                    let offered = Offered::new(width, tweaks, &c, forward, delta, q, &mut message)?;
                    Some((c, offered))
                }
                _ => None,
            };
            for &element in &index.quadratic {
                let element = element as usize;
                let kind = activation.kinds[element];
                quadratic::client_inputs(kind, truncated[element], &mut ole_inputs);
            }
            let mask = masks[l + 1];
            for &element in &index.identity {
                let element = element as usize;
                identity.push(fp::sub(truncated[element], mask[element]));
            }
            let mut next = gather(mask, &index.relu);
            next.extend_from_slice(&gather(mask, &index.quadratic));
            layers.push(ChosenLayer { c, offered, next });
        }
        quadratic::client_offer(
            &self.params,
            self.setup.secret(),
            &exchange.header.id().0,
            &ole_inputs,
            &exchange.secrets,
            &mut message,
        );
        message.extend_from_slice(fp::encode(&identity));
        Ok((Chosen { layers }, message))
    }

    /// Reads message 4 of a bundle.
    fn finish(&self, bundle: usize, chosen: Chosen, message: &[u8]) -> Result<ClientBundle, Error> {
        let mut reader = Reader::message("garbled circuits", message);
        let mut layers = Vec::with_capacity(chosen.layers.len());
        for (layer, index) in chosen.layers.into_iter().zip(&self.indexed.layers) {
            let relu: Option<ClientRelu> = match (layer.offered, index.width) {
                (Some((c, offered)), Some(width)) => {
                    Some(offered.settle(width, &c, &mut reader)?)
                }
                _ => None,
            };
            layers.push(ClientLayer {
                c: layer.c,
                relu,
                u: Elements::default(),
                next: layer.next,
            });
        }
        let u = quadratic::client_receive(
            &self.params,
            self.setup.secret(),
            self.indexed.slots,
            reader.take(quadratic::offline_answer_bytes(self.indexed.slots))?,
        )?;
        reader.end()?;
        let mut u = u.iter();
        for ((layer, index), own) in self.indexed.layers_with_index().zip(&mut layers) {
            own.u = sums_of_slots(layer, &index.quadratic, &mut u);
        }
        let input_mask = part(&self.masks[0], bundle, self.bundles.len());
        Ok(ClientBundle {
            header: self.bundles[bundle].header,
            input_mask: Zeroizing::new(input_mask.to_vec()),
            layers,
        })
    }
}

impl std::fmt::Debug for ClientBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientBatch({} of {})", self.done, self.bundles.len())
    }
}

impl ClientTransfers {
    /// Reads a bundle's part of the server's first message.
    fn new(
        indexed: &IndexedCircuit,
        setup: &ClientSetup,
        exchange: &ClientExchange,
        pending: PendingSender,
        reader: &mut Reader<'_>,
    ) -> Result<Self, Error> {
        let bundle = pi_ot::BundleId(exchange.header.id().0);
        let correction = reader.take(BASE_CORRECTION_BYTES)?;
        let (forward, forward_setup) = setup.forward().accept(&bundle, TREE_DEPTH, correction)?;
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

/// The client's truncated shares of a layer.
fn truncated(layer: &Layer, c: &[u64]) -> Elements {
    let (f, bound) = (layer.truncate(), layer.bound_bits);
    Zeroizing::new(
        c.iter()
            .map(|&c| share::truncate_client(c, f, bound))
            .collect(),
    )
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

/// A batch at the server, after its linear layers: bundles come out of it one by one.
pub struct ServerBatch<'a> {
    model: &'a ServerModel,
    setup: &'a ServerSetup,
    lengths: Lengths,
    params: Params,
    bundles: Vec<ServerExchange>,
    /// Bundles handed out.
    done: usize,
    /// `s` of every convolution, `[bundle][..]`.
    shares: Vec<Elements>,
}

/// What the server keeps for one bundle of a batch.
struct ServerExchange {
    header: BundleHeader,
    tweaks: Vec<Option<TweakRange>>,
    secrets: Secrets,
    transfers: Option<ServerTransfers>,
}

/// The server's oblivious transfers, both directions.
struct ServerTransfers {
    forward: PendingSender,
    /// Blocks and choices of the reverse direction by layer.
    reverse: Vec<(Labels, Bits)>,
}

impl<'a> ServerBatch<'a> {
    /// Runs the linear layers of `bundles` bundles, for which the model must have a plan
    /// ([`ServerModel::batches`]).
    ///
    /// `inputs` are those of the first; the others count `index` up. None of them may have served
    /// any exchange before.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] without such a plan, else as [`client_prepare`].
    pub async fn start(
        channel: &mut impl Channel,
        model: &'a ServerModel,
        setup: &'a ServerSetup,
        inputs: &HeaderInputs,
        bundles: usize,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Error> {
        let indexed = model.indexed();
        let (planned, kernels) = (indexed.planned(bundles)?, model.kernels(bundles)?);
        let lengths = Lengths::new(indexed, bundles);
        let params = Params::standard();
        let headers: Vec<BundleHeader> = headers(inputs, bundles)
            .map(|inputs| model.public().header(planned, setup.id(), &inputs))
            .collect();
        let id = batch_id(headers.iter().map(BundleHeader::id));

        let what = "first message of the client";
        let message = receive_head(channel, what, lengths.client_head, &id).await?;
        let mut reader = Reader::message(what, &message);
        reader.take(DIGEST_BYTES)?;
        let mut head = Vec::with_capacity(lengths.server_head);
        head.extend_from_slice(&id);
        let mut exchanges = Vec::with_capacity(bundles);
        for header in headers {
            let secrets = Secrets::draw(Role::Server, &header.id().0, rng);
            exchanges.push(ServerExchange {
                transfers: match indexed.relus {
                    0 => None,
                    _ => Some(ServerTransfers::new(
                        indexed,
                        setup,
                        &header.id(),
                        &secrets,
                        &mut reader,
                        &mut head,
                    )?),
                },
                tweaks: tweaks(indexed, &header.id()),
                header,
                secrets,
            });
        }
        reader.end()?;

        let secrets = Secrets::draw(Role::Server, &id, rng);
        let (messages, shares) =
            answer_uploads(channel, &params, planned, kernels, setup, &id, &secrets).await?;
        channel.send(head).await?;
        for message in messages {
            channel.send(message).await?;
        }
        Ok(ServerBatch {
            model,
            setup,
            lengths,
            params,
            bundles: exchanges,
            done: 0,
            shares,
        })
    }

    /// The next bundle of the batch; `None` after the last.
    ///
    /// # Errors
    /// As [`client_prepare`]; the rest of the batch is lost then.
    pub async fn next_bundle(
        &mut self,
        channel: &mut impl Channel,
    ) -> Result<Option<ServerBundle>, Error> {
        if self.done == self.bundles.len() {
            return Ok(None);
        }
        let bundle = self.done;
        let expected = self.lengths.choices;
        let message = receive_exactly(channel, "choices", expected).await?;
        let (finished, reply) = self.garble(bundle, &message)?;
        channel.send(reply).await?;
        self.done += 1;
        Ok(Some(finished))
    }

    /// Bias less `s`, by layer, after the layer's pool.
    fn offsets(&self, bundle: usize) -> Vec<Elements> {
        let (indexed, count) = (self.model.indexed(), self.bundles.len());
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
        let pooled = layers
            .map(|(layer, mut sum)| Zeroizing::new(indexed.pool(layer, std::mem::take(&mut *sum))));
        pooled.collect()
    }

    /// Reads message 3 of a bundle, and makes message 4.
    fn garble(&mut self, bundle: usize, message: &[u8]) -> Result<(ServerBundle, Vec<u8>), Error> {
        let indexed = self.model.indexed();
        let offsets = self.offsets(bundle);
        let exchange = &mut self.bundles[bundle];
        let mut reader = Reader::message("choices", message);
        let mut reply = memory::zeroed(self.lengths.garbled);
        // The OLE answers are appended.
        reply.truncate(garbled_bytes(indexed));
        let mut parts = &mut reply[..];
        let label_seed = exchange.secrets.seed("server labels", 0);
        let mut gadgets = Vec::with_capacity(indexed.layers.len());
        // Without ReLUs nothing is garbled, and the offset serves nowhere.
        let mut delta = Delta::from_block(Block::ZERO);
        if let Some(transfers) = exchange.transfers.take() {
            let mut forward = transfers
                .forward
                .finish(reader.take(TREE_DEPTH.setup_bytes())?)?;
            delta = forward.delta().clone();
            for (l, (index, (t, b))) in indexed.layers.iter().zip(&transfers.reverse).enumerate() {
                let (Some(width), Some(tweaks)) = (index.width, &exchange.tweaks[l]) else {
                    gadgets.push(None);
                    continue;
                };
                let zeros = label_stream(&label_seed, l);
                let length = relu::garbled_bytes(width, index.relu.len());
                let part = parts
                    .split_off_mut(..length)
                    .expect("the message has a part for each layer");
                let choices = ServerChoices { t, b };
                let (forward, reader) = (&mut forward, &mut reader);
                let gadget = relu::garble(width, tweaks, forward, &zeros, choices, reader, part)?;
                gadgets.push(Some(gadget));
            }
        }
        gadgets.resize_with(indexed.layers.len(), || None);
        let exchange = &self.bundles[bundle];
        let (d0, ole) = self.answer_ole(exchange, &mut reader, &mut reply)?;
        let mut v = ole.iter();
        let mut layers = Vec::with_capacity(indexed.layers.len());
        let parts = offsets.into_iter().zip(d0).zip(gadgets);
        for ((layer, index), ((offset, d0), gadget)) in indexed.layers_with_index().zip(parts) {
            let count = index.identity.len();
            let identity = reader.take(ELEMENT_BYTES * count)?;
            layers.push(ServerLayer {
                offset,
                gadget,
                d0,
                v: sums_of_slots(layer, &index.quadratic, &mut v),
                identity: Zeroizing::new(fp::decode("identity elements", identity, count)?),
            });
        }
        reader.end()?;
        let bundle = ServerBundle {
            header: exchange.header,
            label_seed,
            delta,
            layers,
        };
        Ok((bundle, reply))
    }

    /// Reads the OLE part of message 3 and appends the answers; returns `d0` by layer, and `v` slot
    /// by slot.
    fn answer_ole(
        &self,
        exchange: &ServerExchange,
        reader: &mut Reader<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(Vec<Elements>, Elements), Error> {
        let indexed = self.model.indexed();
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
        let uploads = reader.take(quadratic::offline_upload_bytes(indexed.slots))?;
        let uploads = quadratic::receive_uploads(&self.params, &id, indexed.slots, uploads)?;
        let corrections = reader.take(quadratic::correction_bytes(indexed.slots))?;
        let (params, key) = (&self.params, self.setup.public_key());
        let mut ole = ServerOle::answer(params, uploads, key, factors, &exchange.secrets, reply);
        ole.correct(corrections)?;
        Ok((d0, ole.v))
    }
}

/// Reads all uploads, answering each as it comes: the answers' messages in the order of
/// [`Planned::order`], and `s` by answer.
async fn answer_uploads(
    channel: &mut impl Channel,
    params: &Params,
    planned: &Planned,
    kernels: &Kernels,
    setup: &ServerSetup,
    id: &[u8; 32],
    secrets: &Secrets,
) -> Result<(Vec<Vec<u8>>, Vec<Elements>), Error> {
    let packing = &planned.packing;
    let seed = public_seed("linear", id, 0);
    let (public_key, galois_keys) = (setup.public_key(), setup.galois_keys());
    let rng = &mut secrets.rng("linear", 0);
    let mut answers = Answers::new(params, packing, kernels, public_key, galois_keys, rng);
    let mut messages = Vec::with_capacity(packing.answers().len());
    let mut shares: Vec<Elements> = Vec::new();
    shares.resize_with(packing.answers().len(), Elements::default);
    for (upload, map) in packing.uploads().iter().enumerate() {
        let message = receive_exactly(channel, "upload", uploads_bytes(map)).await?;
        let ciphertexts = linear::receive_upload(params, packing, &seed, upload, &message)?;
        drop(message);
        let rows = linear::rows_of(map, ciphertexts);
        for answer in planned.readers(upload) {
            let (message, share) = answers.make(answer, &rows);
            messages.push(message);
            shares[answer] = share;
        }
    }
    Ok((messages, shares))
}

impl ServerTransfers {
    /// Reads a bundle's part of the client's first message, and appends that of the server's.
    fn new(
        indexed: &IndexedCircuit,
        setup: &ServerSetup,
        id: &BundleId,
        secrets: &Secrets,
        reader: &mut Reader<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<Self, Error> {
        let bundle = pi_ot::BundleId(id.0);
        let correction = reader.take(BASE_CORRECTION_BYTES)?;
        let (mut receiver, receiver_setup) =
            setup.reverse().accept(&bundle, TREE_DEPTH, correction)?;
        let rng = &mut secrets.rng("delta", 0);
        let (forward, correction) = setup.forward().begin(&bundle, TREE_DEPTH, rng);
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

impl std::fmt::Debug for ServerBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerBatch({} of {})", self.done, self.bundles.len())
    }
}
