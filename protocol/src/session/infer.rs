//! One answer from one bundle: `L + 1` round trips for `L` layers with a ReLU, square or polynomial
//! element.
//!
//! | | message | content |
//! | --- | --- | --- |
//! | first | client to server | identity of the bundle, which is the digest of its header; `x - r_0` |
//! | per such layer | server to client | per piece of its ReLUs, labels and rows; behind the last, openings of squares and polynomials |
//! | | client to server | `y_c - r` of the ReLUs, then of squares and polynomials, 16 MiB at a time |
//! | last | server to client | its share of the logits; or, for a label, its labels and the decoding bits of the index; share and bits sealed (`seal.rs`) if anything is guarded |
//!
//! Everything else is local: the server computes `W (x - r)` in the clear, both parties add
//! residuals and pool on their shares, and identity elements were settled offline. The client knew
//! its shares of all sums offline, so it computes nothing linear now.
//!
//! # Who waits for whom
//! The server sends all pieces of a layer before it reads ([`crate::parts`]), and the client reads
//! them all, evaluating meanwhile, before it replies. So at any time one of the two reads, and no
//! line, however small its buffers, can block both. Of a large circuit neither has more in memory
//! than one piece, and 8 to 24 bytes for each element.

mod layer;

pub(super) use self::layer::opening_bytes;
use self::layer::{Known, Opening, evaluate_quadratics, renew, replies};
use super::bundle::{ClientBundle, ClientLayer, ClientPieces, ServerBundle};
use super::material::{label_stream, tweaks};
use super::model::{ClientModel, ServerModel};
use crate::Error;
use crate::channel::{Channel, receive_exactly};
use crate::cost::Traffic;
use crate::header::BundleId;
use crate::indexed_circuit::{IndexedCircuit, activation};
use crate::nonlinear::label;
use crate::nonlinear::relu::ReluPiece;
use crate::seal;
use crate::wire::Reader;
use pi_core::TweakRange;
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_garble::GuardKey;
use pi_ir::{Activation, Layer, LayerTrace, Reveal, Trace, interpret};
use pi_ring::conv::ConvScratch;
use zeroize::Zeroizing;

/// What the client learns: as much as the circuit reveals, or that it has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The index of the largest logit, the smallest index of several equal ones.
    Label(usize),
    /// The output layer's sums, at its scale.
    Logits(Vec<i64>),
    /// The input is out of the network's range: a value that is checked left its bound.
    OutOfRange,
}

impl Answer {
    /// The index of the largest logit, the smallest index of several equal ones; `None` out of
    /// range.
    pub fn label(&self) -> Option<usize> {
        match self {
            Answer::Label(label) => Some(*label),
            Answer::Logits(logits) => Some(interpret::label(logits)),
            Answer::OutOfRange => None,
        }
    }

    /// The logits, if they are revealed and in range.
    pub fn logits(&self) -> Option<&[i64]> {
        match self {
            Answer::Logits(logits) => Some(logits),
            Answer::Label(_) | Answer::OutOfRange => None,
        }
    }

    /// The answer of an exact evaluation, which the private one must equal.
    pub fn of_run(run: &interpret::Run, reveal: Reveal) -> Self {
        match reveal {
            _ if !run.in_range => Answer::OutOfRange,
            Reveal::Label => Answer::Label(run.label),
            Reveal::Logits => Answer::Logits(run.logits.clone()),
        }
    }
}

/// The client's result.
#[derive(Debug)]
pub struct Inference {
    /// The answer.
    pub answer: Answer,
    /// The client's shares before each truncation, if they were asked for.
    pub trace: Option<Trace>,
}

/// The client's first message: the bundle to be spent, and the masked input.
pub struct OnlineRequest {
    id: BundleId,
    input: Vec<u64>,
}

impl OnlineRequest {
    /// The length of the message for this model.
    pub fn encoded_len(model: &ServerModel) -> usize {
        infer_bytes(model.indexed()).0
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`Error::PeerMisbehaved`] if it has another length, or a value is no field element.
    pub fn decode(bytes: &[u8], model: &ServerModel) -> Result<Self, Error> {
        let what = "online request";
        Error::check_length(what, OnlineRequest::encoded_len(model), bytes.len())?;
        let mut reader = Reader::message(what, bytes);
        Ok(OnlineRequest {
            id: BundleId(reader.array()?),
            input: fp::decode(what, reader.rest(), model.indexed().circuit.input.len())?,
        })
    }

    /// The bundle to be spent.
    pub fn bundle_id(&self) -> BundleId {
        self.id
    }
}

impl std::fmt::Debug for OnlineRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OnlineRequest({})", self.id)
    }
}

/// Spends a bundle on an input: the client's half.
///
/// The caller has marked the bundle spent, durably. `input` is the quantised image, in the order of
/// the circuit's input. With `trace` the client's own shares are returned too, with which
/// `pi_ir::interpret::exact` reproduces the run.
///
/// # Errors
/// [`Error::ApiMisuse`] if the input has another size or the bundle is of another model,
/// [`Error::PeerMisbehaved`] for malformed messages, [`Error::Channel`]. The bundle is gone in any
/// case.
pub async fn client_infer(
    channel: &mut impl Channel,
    model: &ClientModel,
    mut bundle: ClientBundle,
    input: &[i64],
    trace: bool,
) -> Result<Inference, Error> {
    let indexed = model.indexed();
    let header = *bundle.header();
    model.public().check_header(&header)?;
    let expected = indexed.circuit.input.len();
    if input.len() != expected {
        let got = input.len();
        return Err(Error::misuse(format!(
            "input: expected {expected} values, got {got}"
        )));
    }
    let id = header.id();
    let mut message = Vec::with_capacity(infer_bytes(indexed).0);
    message.extend_from_slice(&id.0);
    let masked = input.iter().zip(bundle.input_mask.iter());
    let masked: Vec<u64> = masked.map(|(&x, &r)| fp::sub(fp::from_i64(x), r)).collect();
    message.extend_from_slice(fp::encode(&masked));
    // Whatever depends on nothing that is still to come is computed before the first byte: the
    // caller may be marking the bundle spent meanwhile.
    let tweaks = tweaks(indexed, &id);
    let layers = indexed.layers_with_index().zip(&mut bundle.layers);
    let known = layers.map(|((layer, index), own)| {
        let known = Known::new(layer, index, &own.c);
        if !trace && activation(layer).is_some() {
            // It has served, and is as large as what follows from it.
            own.c = Elements::default();
        }
        known
    });
    let known: Vec<Known> = known.collect();
    channel.send(message).await?;

    let mut traced = Vec::new();
    let mut key = GuardKey::empty();
    let mut answer = Answer::OutOfRange;
    let mut pieces = bundle.pieces;
    let layers = bundle.layers.into_iter().zip(known).zip(&tweaks);
    for (l, ((own, known), tweaks)) in layers.enumerate() {
        let (layer, index) = (&indexed.circuit.layers[l], &indexed.layers[l]);
        let mut shares = LayerTrace {
            before_truncation: if trace { own.c.to_vec() } else { Vec::new() },
            before_post_truncation: Vec::new(),
        };
        match activation(layer) {
            Some(_) if index.online() == 0 => {}
            Some(activation) => {
                let evaluation = Evaluation {
                    indexed,
                    layer: l,
                    activation,
                    tweaks: tweaks.as_ref(),
                };
                let (before_post, guard) =
                    evaluation.run(channel, own, &known, &mut pieces).await?;
                key.add(&guard);
                if trace {
                    shares.before_post_truncation = before_post.to_vec();
                }
            }
            None => {
                let what = "last message";
                let message = receive_exactly(channel, what, infer_bytes(indexed).1).await?;
                let mut reader = Reader::message(what, &message);
                let label = match (index.label, own.label, tweaks) {
                    (Some(shape), Some(label), Some(tweaks)) => {
                        let labels = reader.take(shape.label_bytes())?;
                        let (colours, guard) = label.evaluate(shape, tweaks, labels)?;
                        key.add(&guard);
                        Some((shape, colours))
                    }
                    _ => None,
                };
                let content = match indexed.guarded {
                    true => seal::open(&key, &id, reader.rest()),
                    false => Some(Zeroizing::new(reader.rest().to_vec())),
                };
                answer = match (content, label) {
                    (None, _) => Answer::OutOfRange,
                    (Some(bits), Some((shape, colours))) => {
                        Answer::Label(label::decode(shape, &colours, &bits)?)
                    }
                    (Some(share), None) => {
                        logits(layer, &own.c, &fp::decode(what, &share, own.c.len())?)
                    }
                };
            }
        }
        traced.push(shares);
    }
    Ok(Inference {
        answer,
        trace: trace.then_some(Trace { layers: traced }),
    })
}

/// The client's means to evaluate a layer.
struct Evaluation<'a> {
    indexed: &'a IndexedCircuit,
    layer: usize,
    activation: &'a Activation,
    tweaks: Option<&'a TweakRange>,
}

impl Evaluation<'_> {
    /// The client's half of a layer, message by message: returns its shares of squares and
    /// polynomials before their second truncation, and the key of the guards.
    async fn run(
        &self,
        channel: &mut impl Channel,
        own: ClientLayer,
        known: &Known,
        stored: &mut ClientPieces,
    ) -> Result<(Elements, GuardKey), Error> {
        let mut key = GuardKey::empty();
        let indexed = self.indexed;
        let index = &indexed.layers[self.layer];
        let mut pieces = indexed.parts.of_layer(self.layer).iter();
        let mut results = Zeroizing::new(Vec::with_capacity(index.online()));
        let mut before_post = Elements::default();
        let messages = opening_bytes(indexed, self.layer);
        let last = messages.len() - 1;
        for (i, expected) in messages.into_iter().enumerate() {
            let what = "online message";
            let message = receive_exactly(channel, what, expected).await?;
            let mut reader = Reader::message(what, &message);
            if let (Some(piece), Some(tweaks)) = (pieces.next(), self.tweaks) {
                let relus = ReluPiece::new(piece, tweaks);
                let prepared = stored.next(indexed.parts.all())?;
                let c = &known.relu[piece.range()];
                let (shares, guard) = prepared.evaluate(&relus, c, &mut reader)?;
                results.extend_from_slice(&shares);
                key.add(&guard);
            }
            if i == last {
                let (activation, shares) = (self.activation, (&known.quadratic[..], &own.u[..]));
                let reader = &mut reader;
                let evaluated =
                    evaluate_quadratics(activation, index, shares, reader, &mut results);
                before_post = evaluated?;
            }
            reader.end()?;
        }
        for (result, &mask) in results.iter_mut().zip(own.next.iter()) {
            *result = fp::sub(*result, mask);
        }
        for elements in replies(index) {
            let reply = fp::encode(&results[elements]).to_vec();
            channel.send(reply).await?;
        }
        Ok((before_post, key))
    }
}

/// The logits from both parties' shares, if they are within the public bound on them.
fn logits(layer: &Layer, c: &[u64], d: &[u64]) -> Answer {
    let sums = c.iter().zip(d);
    let sums: Vec<i64> = sums.map(|(&c, &d)| fp::centre(fp::add(c, d))).collect();
    let bound = (1u64 << layer.bound_bits) - 1;
    match sums.iter().all(|sum| sum.unsigned_abs() <= bound) {
        true => Answer::Logits(sums),
        false => Answer::OutOfRange,
    }
}

/// Spends a bundle on a client's request: the server's half.
///
/// The caller has looked the bundle up by [`OnlineRequest::bundle_id`] and marked it spent,
/// durably.
///
/// # Errors
/// Before anything is sent: [`Error::PeerIncompatible`] if request and bundle are not of one
/// header, [`Error::ApiMisuse`] if the bundle is of another model. [`Error::PeerMisbehaved`] for
/// malformed messages; [`Error::Channel`]. The bundle is gone in any case.
pub async fn server_infer(
    channel: &mut impl Channel,
    model: &ServerModel,
    bundle: ServerBundle,
    request: OnlineRequest,
) -> Result<(), Error> {
    let indexed = model.indexed();
    let header = *bundle.header();
    if request.id != header.id() {
        return Err(Error::PeerIncompatible {
            what: "the request names another bundle".into(),
        });
    }
    model.public().check_header(&header)?;
    // x - r of every tensor so far.
    let mut tensors: Vec<Elements> = Vec::with_capacity(indexed.layers.len());
    tensors.push(Zeroizing::new(request.input));
    let mut scratch = ConvScratch::default();
    for (l, ((layer, index), mut own)) in indexed.layers_with_index().zip(bundle.layers).enumerate()
    {
        let offset = std::mem::take(&mut own.offset);
        let mut tensor = model.layer_sum(l, &tensors, offset, &mut scratch);
        let Some(activation) = activation(layer) else {
            let (mut message, labels) = match index.label.zip(own.label) {
                Some((shape, label)) => {
                    let zeros = label_stream(&bundle.label_seed, l);
                    let message = label.open(shape, &bundle.delta, &zeros, layer, &tensor)?;
                    (message, shape.label_bytes())
                }
                None => (fp::encode(&tensor).to_vec(), 0),
            };
            if let Some(key) = &bundle.range_key {
                seal::seal(key, &request.id, &mut message, labels);
            }
            channel.send(message).await?;
            continue;
        };
        let identity = std::mem::take(&mut own.identity);
        if index.online() > 0 {
            let opening = Opening {
                model,
                layer: l,
                activation,
                label_seed: &bundle.label_seed,
                delta: &bundle.delta,
                sum: &tensor,
            };
            let mut shares = Zeroizing::new(Vec::with_capacity(index.online()));
            let mut pieces = indexed.parts.of_layer(l).iter().zip(own.gadgets);
            let messages = opening_bytes(indexed, l);
            let last = messages.len() - 1;
            for (i, bytes) in messages.into_iter().enumerate() {
                let mut message = Vec::with_capacity(bytes);
                if let Some((piece, gadget)) = pieces.next() {
                    opening.open_piece(piece, gadget, &mut shares, &mut message)?;
                }
                if i == last {
                    opening.open_quadratics((&own.d0, &own.v), &mut shares, &mut message);
                }
                channel.send(message).await?;
            }
            // While the client evaluates.
            renew(&mut tensor, layer, &index.identity, &identity);
            let elements: Vec<u32> = (index.relu.iter().chain(&index.quadratic).copied()).collect();
            for places in replies(index) {
                let what = "masked results";
                let length = ELEMENT_BYTES * places.len();
                let message = receive_exactly(channel, what, length).await?;
                let results = fp::decode(what, &message, places.len())?;
                let sums = results.iter().zip(&shares[places.clone()]);
                for (&element, (&y, &d)) in elements[places].iter().zip(sums) {
                    tensor[element as usize] = fp::add(y, d);
                }
            }
        } else {
            renew(&mut tensor, layer, &index.identity, &identity);
        }
        tensors.push(tensor);
    }
    Ok(())
}

const ID_BYTES: usize = 32;

/// Bytes of the first message and of the last.
pub(crate) fn infer_bytes(indexed: &IndexedCircuit) -> (usize, usize) {
    let label = indexed.layers.last().and_then(|layer| layer.label);
    let check = if indexed.guarded {
        seal::CHECK_BYTES
    } else {
        0
    };
    (
        ID_BYTES + ELEMENT_BYTES * indexed.circuit.input.len(),
        label.map_or(ELEMENT_BYTES * indexed.logits(), label::online_bytes) + check,
    )
}

/// Online traffic of a layer.
pub(crate) fn layer_traffic(indexed: &IndexedCircuit, l: usize) -> Traffic {
    let index = &indexed.layers[l];
    if activation(&indexed.circuit.layers[l]).is_none() {
        return Traffic {
            bytes_up: 0,
            bytes_down: infer_bytes(indexed).1 as u64,
            messages: 1,
        };
    }
    let down = opening_bytes(indexed, l);
    Traffic {
        bytes_up: (ELEMENT_BYTES * index.online()) as u64,
        bytes_down: down.iter().sum::<usize>() as u64,
        messages: (down.len() + replies(index).count()) as u32,
    }
}
