//! One bundle, in four messages.
//!
//! | | message | content |
//! | --- | --- | --- |
//! | 1 | client to server | digest of the header; base-OT correction of the reverse offset; uploads of masks; OLE uploads |
//! | 2 | server to client | digest of the header; base-OT correction of `delta`; set-up and random choices of the reverse extension; answers; OLE answers |
//! | 3 | client to server | set-up of the forward extension; per layer with ReLUs: choices by the bits of `c'`, `tau`; `x - a` of the OLEs; `c' - r` of identity elements |
//! | 4 | server to client | per layer with ReLUs: tables and `e` |
//!
//! Parts that a circuit does not need are left out, messages never: message 4 of a circuit without ReLUs is empty. The digests are
//! compared before anything else is computed. Why each message can be simulated is said in [`super`], in
//! [`crate::linear`], and beside the gadgets.

use super::bundle::{ClientBundle, ClientLayer, ServerBundle, ServerLayer};
use super::model::{ClientModel, Network, ServerModel, TREE_DEPTH, activation};
use super::setup::{ClientSetup, ServerSetup};
use crate::channel::{Channel, receive_exactly};
use crate::header::{BundleHeader, BundleId, HeaderInputs};
use crate::linear::{self, Uploaded};
use crate::nonlinear::gather;
use crate::nonlinear::quadratic::{self, ClientOle, ServerOle};
use crate::nonlinear::relu::{self, ClientRelu, Offered, ServerChoices};
use crate::secrets::{Role, Secrets, derive, public_seed};
use crate::wire::Reader;
use crate::{Error, share};
use pi_garble::field::{self, ELEMENT_BYTES, Elements};
use pi_garble::{Bits, Block, Labels, Prg, TweakCounter, TweakRange, memory};
use pi_ir::{Kind, Layer, Polynomial};
use pi_ot::{
    BASE_CORRECTION_BYTES, CotReceiver, CotSender, Delta, ExtensionReceiver, PendingSender,
};
use pi_ring::fp;
use pi_rlwe::{Ciphertext, Params};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

const DIGEST_BYTES: usize = 32;

/// Bytes of the four messages.
pub(crate) fn offline_bytes(network: &Network) -> [usize; 4] {
    let linear = linear::cost(&network.packing);
    let with_relus = |bytes: usize| if network.relus > 0 { bytes } else { 0 };
    let relu_layers = || {
        let layers = network.layers.iter();
        layers.filter_map(|layer| Some((layer.width?, layer.relu.len())))
    };
    let identity: usize = network.layers.iter().map(|l| l.identity.len()).sum();
    let extension = TREE_DEPTH.setup_bytes();
    [
        DIGEST_BYTES
            + with_relus(BASE_CORRECTION_BYTES)
            + linear.upload_bytes.iter().sum::<usize>()
            + quadratic::offline_upload_bytes(network.slots),
        DIGEST_BYTES
            + with_relus(BASE_CORRECTION_BYTES + extension)
            + relu_layers()
                .map(|(_, n)| TREE_DEPTH.correction_bytes(n))
                .sum::<usize>()
            + linear.answer_bytes.iter().sum::<usize>()
            + quadratic::offline_answer_bytes(network.slots),
        with_relus(extension)
            + relu_layers()
                .map(|(width, n)| relu::choice_bytes(TREE_DEPTH, width, n))
                .sum::<usize>()
            + quadratic::correction_bytes(network.slots)
            + ELEMENT_BYTES * identity,
        relu_layers()
            .map(|(width, n)| relu::garbled_bytes(width, n))
            .sum(),
    ]
}

/// Prepares a bundle with the server: the client's half.
///
/// `inputs` must not have served any exchange before, broken ones included: the runtime counts `index` up.
///
/// # Errors
/// [`Error::PeerIncompatible`] if the header's digests differ, [`Error::PeerMisbehaved`] for malformed messages,
/// [`Error::Channel`]. The exchange is over then, and the bundle discarded.
pub async fn client_prepare(
    channel: &mut impl Channel,
    model: &ClientModel,
    setup: &ClientSetup,
    inputs: &HeaderInputs,
    rng: &mut impl CryptoRng,
) -> Result<ClientBundle, Error> {
    let network = model.network();
    let lengths = offline_bytes(network);
    let header = model.header(setup.id(), inputs);
    let client = Client::new(network, setup, &header, rng);

    let (uploaded, message) = client.upload();
    channel.send(message).await?;
    let what = "offline message 2";
    let message = receive_with_digest(channel, what, lengths[1], &header.id()).await?;
    let (chosen, message) = client.choose(uploaded, &message)?;
    channel.send(message).await?;
    let message = receive_exactly(channel, "offline message 4", lengths[3]).await?;
    client.finish(header, chosen, &message)
}

/// Prepares a bundle with a client: the server's half.
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
    let lengths = offline_bytes(model.network());
    let header = model.header(setup.id(), inputs);
    let server = Server::new(model, setup, &header, rng);

    let what = "offline message 1";
    let message = receive_with_digest(channel, what, lengths[0], &header.id()).await?;
    let (answered, message) = server.answer(&message)?;
    channel.send(message).await?;
    let message = receive_exactly(channel, "offline message 3", lengths[2]).await?;
    let (bundle, message) = server.garble(header, answered, &message)?;
    channel.send(message).await?;
    Ok(bundle)
}

/// Receives a message that begins with the digest of the header, and compares that first.
async fn receive_with_digest(
    channel: &mut impl Channel,
    what: &'static str,
    expected: usize,
    id: &BundleId,
) -> Result<Vec<u8>, Error> {
    let message = channel.receive(expected).await?;
    match message.first_chunk::<DIGEST_BYTES>() {
        Some(digest) if *digest != id.0 => Err(Error::PeerIncompatible {
            what: format!("{what}: the header of the bundle differs from ours"),
        }),
        _ => {
            Error::check_length(what, expected, message.len())?;
            Ok(message)
        }
    }
}

/// The tweaks of every layer with ReLUs; the nonce is public, made of both parties' nonces.
pub(crate) fn tweaks(network: &Network, id: &BundleId) -> Vec<Option<TweakRange>> {
    let seed = public_seed("garbling nonce", &id.0, 0);
    let nonce = seed.first_chunk().expect("32 bytes hold 16");
    let mut counter = TweakCounter::new(Block::from_bytes(*nonce));
    let ranges = network.layers.iter().map(|layer| {
        let width = layer.width?;
        Some(counter.take(layer.relu.len(), width.bits()))
    });
    ranges.collect()
}

/// The stream that begins with the zero labels of the server's inputs in one layer.
pub(crate) fn server_labels(label_seed: &[u8; 32], layer: usize) -> Prg {
    Prg::new(&derive(label_seed, "server labels", layer as u64))
}

/// What the client needs throughout an exchange.
struct Client<'a> {
    network: &'a Network,
    setup: &'a ClientSetup,
    params: Params,
    id: BundleId,
    tweaks: Vec<Option<TweakRange>>,
    secrets: Secrets,
}

/// The client after message 1.
struct ClientUploaded {
    /// `r` of every tensor.
    masks: Vec<Elements>,
    ole: ClientOle,
    reverse: Option<PendingSender>,
}

/// The client after message 3.
struct ClientChosen {
    input_mask: Elements,
    layers: Vec<ChosenLayer>,
}

struct ChosenLayer {
    c: Elements,
    /// Truncated shares of the ReLUs, and what message 4 completes.
    offered: Option<(Elements, Offered)>,
    u: Elements,
    next: Elements,
}

impl<'a> Client<'a> {
    fn new(
        network: &'a Network,
        setup: &'a ClientSetup,
        header: &BundleHeader,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let id = header.id();
        Client {
            network,
            setup,
            params: Params::standard(),
            tweaks: tweaks(network, &id),
            secrets: Secrets::draw(Role::Client, &id.0, rng),
            id,
        }
    }

    /// Message 1.
    fn upload(&self) -> (ClientUploaded, Vec<u8>) {
        let mut message = self.id.0.to_vec();
        let reverse = (self.network.relus > 0).then(|| {
            let bundle = pi_ot::BundleId(self.id.0);
            let rng = &mut self.secrets.rng("reverse offset", 0);
            let (pending, correction) = self.setup.reverse().begin(&bundle, TREE_DEPTH, rng);
            message.extend_from_slice(&correction);
            pending
        });
        let linear = linear::client_upload(
            &self.params,
            &self.network.packing,
            self.setup.secret(),
            &public_seed("linear", &self.id.0, 0),
            &mut self.secrets.rng("linear", 0),
        );
        message.extend_from_slice(&linear.message);
        // A tensor that no convolution reads has a mask all the same, drawn here.
        let mut masks = linear.masks.into_iter();
        let masks = self.network.tensors().iter().enumerate().map(|(t, shape)| {
            masks.next().flatten().unwrap_or_else(|| {
                let mut rng = self.secrets.rng("mask", t as u64);
                Zeroizing::new(fp::uniform_vec(shape.len(), &mut rng))
            })
        });
        let masks = masks.collect();
        let ole = ClientOle::start(
            &self.params,
            self.setup.secret(),
            &self.id.0,
            self.network.slots,
            &self.secrets,
            &mut message,
        );
        (
            ClientUploaded {
                masks,
                ole,
                reverse,
            },
            message,
        )
    }

    /// Reads message 2, and makes message 3.
    fn choose(
        &self,
        uploaded: ClientUploaded,
        message: &[u8],
    ) -> Result<(ClientChosen, Vec<u8>), Error> {
        let network = self.network;
        let ClientUploaded {
            masks,
            ole,
            reverse,
        } = uploaded;
        let mut reader = Reader::message("offline message 2", message);
        reader.take(DIGEST_BYTES)?;
        let mut reply = Vec::with_capacity(offline_bytes(network)[2]);
        let mut transfers = match reverse {
            Some(pending) => Some(ClientTransfers::new(
                self,
                pending,
                &mut reader,
                &mut reply,
            )?),
            None => None,
        };
        let linear = linear::cost(&network.packing);
        let answers = reader.take(linear.answer_bytes.iter().sum())?;
        let (params, secret) = (&self.params, self.setup.secret());
        let answers = linear::client_finish(params, &network.packing, secret, answers)?;
        let mut answers = answers.into_iter();
        let mut convolution = |_, _: &_| {
            let mut answer = answers.next().expect("one answer for each convolution");
            std::mem::take(&mut *answer)
        };

        let mut ole_inputs = Zeroizing::new(Vec::with_capacity(network.slots));
        let mut identity = Vec::new();
        let mut layers = Vec::with_capacity(network.layers.len());
        for (l, (layer, index)) in network.indexed().enumerate() {
            let c = Zeroizing::new(network.sum(layer, &masks, &mut convolution));
            let Some(activation) = activation(layer) else {
                layers.push(ChosenLayer {
                    c,
                    offered: None,
                    u: Elements::default(),
                    next: Elements::default(),
                });
                continue;
            };
            let truncated = truncated(layer, &c);
            let offered = match (index.width, &self.tweaks[l], &mut transfers) {
                (Some(width), Some(tweaks), Some(transfers)) => {
                    let c = gather(&truncated, &index.relu);
                    let q = &transfers.q[l];
                    let (forward, delta) = (&mut transfers.forward, &transfers.reverse_delta);
                    let offered = Offered::new(width, tweaks, &c, forward, delta, q, &mut reply)?;
                    Some((c, offered))
                }
                _ => None,
            };
            for &element in &index.quadratic {
                let element = element as usize;
                let kind = activation.kinds[element];
                quadratic::client_inputs(kind, truncated[element], &mut ole_inputs);
            }
            let mask = &masks[l + 1];
            for &element in &index.identity {
                let element = element as usize;
                identity.push(fp::sub(truncated[element], mask[element]));
            }
            let mut next = gather(mask, &index.relu);
            next.extend_from_slice(&gather(mask, &index.quadratic));
            layers.push(ChosenLayer {
                c,
                offered,
                u: Elements::default(),
                next,
            });
        }
        let answers = reader.take(quadratic::offline_answer_bytes(network.slots))?;
        reader.end()?;
        let u = ole.finish(params, secret, answers, &ole_inputs, &mut reply)?;
        let mut u = u.iter();
        for ((layer, index), chosen) in network.indexed().zip(&mut layers) {
            chosen.u = sums_of_slots(layer, &index.quadratic, &mut u);
        }
        reply.extend_from_slice(field::encode(&identity));
        let input_mask = masks.into_iter().next().expect("a circuit has an input");
        Ok((ClientChosen { input_mask, layers }, reply))
    }

    /// Reads message 4.
    fn finish(
        &self,
        header: BundleHeader,
        chosen: ClientChosen,
        message: &[u8],
    ) -> Result<ClientBundle, Error> {
        let mut reader = Reader::message("offline message 4", message);
        let layers = chosen.layers.into_iter().zip(&self.network.layers);
        let layers = layers.map(|(layer, index)| {
            let relu: Option<ClientRelu> = match (layer.offered, index.width) {
                (Some((c, offered)), Some(width)) => {
                    Some(offered.settle(width, &c, &mut reader)?)
                }
                _ => None,
            };
            Ok(ClientLayer {
                c: layer.c,
                relu,
                u: layer.u,
                next: layer.next,
            })
        });
        let layers = layers.collect::<Result<_, Error>>()?;
        reader.end()?;
        Ok(ClientBundle {
            header,
            input_mask: chosen.input_mask,
            layers,
        })
    }
}

/// The client's oblivious transfers, both directions.
struct ClientTransfers {
    forward: ExtensionReceiver,
    reverse_delta: Delta,
    /// Blocks of the reverse direction by layer.
    q: Vec<Labels>,
}

impl ClientTransfers {
    /// Reads the OT part of message 2; appends the set-up of the forward extension to message 3.
    fn new(
        client: &Client<'_>,
        pending: PendingSender,
        reader: &mut Reader<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<Self, Error> {
        let bundle = pi_ot::BundleId(client.id.0);
        let correction = reader.take(BASE_CORRECTION_BYTES)?;
        let master = client.setup.forward();
        let (forward, setup) = master.accept(&bundle, TREE_DEPTH, correction)?;
        reply.extend_from_slice(&setup);
        let mut reverse = pending.finish(reader.take(TREE_DEPTH.setup_bytes())?)?;
        let q = client.network.layers.iter().map(|layer| {
            let n = layer.relu.len();
            let correction = reader.take(reverse.correction_bytes(n))?;
            Ok(reverse.extend(n, correction)?)
        });
        let q = q.collect::<Result<_, Error>>()?;
        Ok(ClientTransfers {
            forward,
            reverse_delta: reverse.delta().clone(),
            q,
        })
    }
}

/// The client's truncated shares of a layer.
pub(crate) fn truncated(layer: &Layer, c: &[u64]) -> Elements {
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

/// The coefficients of an element, if it is a polynomial.
pub(crate) fn polynomial(model: &ServerModel, layer: usize, element: u32) -> Option<&Polynomial> {
    let circuit = &model.network().circuit;
    let shape = circuit.layers[layer].shape;
    let kinds = &activation(&circuit.layers[layer])?.kinds;
    let channel = element as usize / (shape.h as usize * shape.w as usize);
    (kinds[element as usize] == Kind::Polynomial)
        .then(|| &model.weights().layers[layer].polynomials[channel])
}

/// What the server needs throughout an exchange.
struct Server<'a> {
    model: &'a ServerModel,
    network: &'a Network,
    setup: &'a ServerSetup,
    params: Params,
    id: BundleId,
    tweaks: Vec<Option<TweakRange>>,
    secrets: Secrets,
}

/// The server after message 2.
struct ServerAnswered {
    /// Bias less `s`, by layer, after the layer's pool.
    offsets: Vec<Elements>,
    /// `d0` of squares and polynomials by layer.
    d0: Vec<Elements>,
    ole: ServerOle,
    transfers: Option<ServerTransfers>,
}

/// The server's oblivious transfers, both directions.
struct ServerTransfers {
    forward: PendingSender,
    /// Blocks and choices of the reverse direction by layer.
    reverse: Vec<(Labels, Bits)>,
}

impl<'a> Server<'a> {
    fn new(
        model: &'a ServerModel,
        setup: &'a ServerSetup,
        header: &BundleHeader,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let (network, id) = (model.network(), header.id());
        Server {
            model,
            network,
            setup,
            params: Params::standard(),
            tweaks: tweaks(network, &id),
            secrets: Secrets::draw(Role::Server, &id.0, rng),
            id,
        }
    }

    /// Reads message 1, and makes message 2.
    fn answer(&self, message: &[u8]) -> Result<(ServerAnswered, Vec<u8>), Error> {
        let (network, params) = (self.network, &self.params);
        let mut reader = Reader::message("offline message 1", message);
        reader.take(DIGEST_BYTES)?;
        let mut reply = Vec::with_capacity(offline_bytes(network)[1]);
        reply.extend_from_slice(&self.id.0);
        let transfers = match network.relus {
            0 => None,
            _ => Some(self.transfer(&mut reader, &mut reply)?),
        };
        let linear = linear::cost(&network.packing);
        let uploads = reader.take(linear.upload_bytes.iter().sum())?;
        let seed = public_seed("linear", &self.id.0, 0);
        let uploaded = linear::server_receive(params, &network.packing, &seed, uploads)?;
        let uploads = reader.take(quadratic::offline_upload_bytes(network.slots))?;
        reader.end()?;
        let ole_uploads = quadratic::receive_uploads(params, &self.id.0, network.slots, uploads)?;

        // Everything of the peer's is decoded; from here on nothing fails.
        let offsets = self.answer_linear(uploaded, &mut reply);
        let (d0, ole) = self.answer_ole(ole_uploads, &mut reply);
        Ok((
            ServerAnswered {
                offsets,
                d0,
                ole,
                transfers,
            },
            reply,
        ))
    }

    fn transfer(
        &self,
        reader: &mut Reader<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<ServerTransfers, Error> {
        let bundle = pi_ot::BundleId(self.id.0);
        let correction = reader.take(BASE_CORRECTION_BYTES)?;
        let master = self.setup.reverse();
        let (mut receiver, setup) = master.accept(&bundle, TREE_DEPTH, correction)?;
        let rng = &mut self.secrets.rng("delta", 0);
        let (forward, correction) = self.setup.forward().begin(&bundle, TREE_DEPTH, rng);
        reply.extend_from_slice(&correction);
        reply.extend_from_slice(&setup);
        let layers = self.network.layers.iter().enumerate();
        let reverse = layers.map(|(l, layer)| {
            let rng = &mut self.secrets.rng("reverse choices", l as u64);
            let b = Bits::random(layer.relu.len(), rng);
            let (t, correction) = receiver.extend(&b);
            reply.extend_from_slice(&correction);
            (t, b)
        });
        let reverse = reverse.collect();
        Ok(ServerTransfers { forward, reverse })
    }

    /// Appends the answers; returns bias less `s` by layer.
    fn answer_linear(&self, uploaded: Uploaded, reply: &mut Vec<u8>) -> Vec<Elements> {
        let network = self.network;
        let (answers, shares) = linear::server_answer(
            &self.params,
            &network.packing,
            self.model.kernels(),
            uploaded,
            self.setup.public_key(),
            self.setup.galois_keys(),
            &mut self.secrets.rng("linear", 0),
        );
        reply.extend_from_slice(&answers);
        let mut sums: Vec<Elements> = (network.circuit.layers.iter())
            .zip(&self.model.weights().layers)
            .map(|(layer, weights)| {
                let shape = network.sum_shape(layer);
                let area = shape.h as usize * shape.w as usize;
                let bias = weights.bias.iter().map(|&bias| fp::from_i64(bias));
                Zeroizing::new(bias.flat_map(|b| std::iter::repeat_n(b, area)).collect())
            })
            .collect();
        for (answer, s) in network.packing.answers().iter().zip(&shares) {
            let sum = &mut sums[answer.layer() as usize];
            for (sum, &s) in sum.iter_mut().zip(s.iter()) {
                *sum = fp::sub(*sum, s);
            }
        }
        let layers = network.circuit.layers.iter().zip(sums);
        let pooled = layers
            .map(|(layer, mut sum)| Zeroizing::new(network.pool(layer, std::mem::take(&mut *sum))));
        pooled.collect()
    }

    /// Appends the OLE answers; returns `d0` by layer.
    fn answer_ole(
        &self,
        uploads: Vec<Ciphertext>,
        reply: &mut Vec<u8>,
    ) -> (Vec<Elements>, ServerOle) {
        let mut factors = Zeroizing::new(Vec::with_capacity(self.network.slots));
        let mut d0 = Vec::with_capacity(self.network.layers.len());
        for (l, index) in self.network.layers.iter().enumerate() {
            let rng = &mut self.secrets.rng("openings", l as u64);
            let layer = Zeroizing::new(fp::uniform_vec(index.quadratic.len(), rng));
            for (&element, &d0) in index.quadratic.iter().zip(layer.iter()) {
                let polynomial = polynomial(self.model, l, element);
                quadratic::server_factors(polynomial, d0, &mut factors);
            }
            d0.push(layer);
        }
        let (params, public_key) = (&self.params, self.setup.public_key());
        let ole = ServerOle::answer(params, uploads, public_key, factors, &self.secrets, reply);
        (d0, ole)
    }

    /// Reads message 3, and makes message 4.
    fn garble(
        &self,
        header: BundleHeader,
        answered: ServerAnswered,
        message: &[u8],
    ) -> Result<(ServerBundle, Vec<u8>), Error> {
        let network = self.network;
        let mut reader = Reader::message("offline message 3", message);
        let mut reply = memory::zeroed(offline_bytes(network)[3]);
        let mut parts = &mut reply[..];
        let label_seed = self.secrets.seed("server labels", 0);
        let mut gadgets = Vec::with_capacity(network.layers.len());
        // Without ReLUs nothing is garbled, and the offset serves nowhere.
        let mut delta = Delta::from_block(Block::ZERO);
        if let Some(transfers) = answered.transfers {
            let mut forward = transfers
                .forward
                .finish(reader.take(TREE_DEPTH.setup_bytes())?)?;
            delta = forward.delta().clone();
            for (l, (index, (t, b))) in network.layers.iter().zip(&transfers.reverse).enumerate() {
                let (Some(width), Some(tweaks)) = (index.width, &self.tweaks[l]) else {
                    gadgets.push(None);
                    continue;
                };
                let zeros = server_labels(&label_seed, l);
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
        gadgets.resize_with(network.layers.len(), || None);
        let mut ole = answered.ole;
        ole.correct(&mut reader)?;
        let mut v = ole.v.iter();
        let mut layers = Vec::with_capacity(network.layers.len());
        let parts = answered.offsets.into_iter().zip(answered.d0).zip(gadgets);
        for ((layer, index), ((offset, d0), gadget)) in network.indexed().zip(parts) {
            let count = index.identity.len();
            let identity = reader.take(ELEMENT_BYTES * count)?;
            layers.push(ServerLayer {
                offset,
                gadget,
                d0,
                v: sums_of_slots(layer, &index.quadratic, &mut v),
                identity: Zeroizing::new(field::decode("identity elements", identity, count)?),
            });
        }
        reader.end()?;
        let bundle = ServerBundle {
            header,
            label_seed,
            delta,
            layers,
        };
        Ok((bundle, reply))
    }
}
