//! One answer from one bundle: `L + 1` round trips for `L` layers with a ReLU, square or polynomial
//! element.
//!
//! | | message | content |
//! | --- | --- | --- |
//! | first | client to server | identity of the bundle, which is the digest of its header; `x - r_0` |
//! | per such layer | server to client | labels and rows of the ReLUs; openings of squares and polynomials |
//! | | client to server | `y_c - r` of the ReLUs, then of squares and polynomials |
//! | last | server to client | its share of the logits |
//!
//! Everything else is local: the server computes `W (x - r)` in the clear, both parties add
//! residuals and pool on their shares, and identity elements were settled offline. The client knew
//! its shares of all sums offline, so it computes nothing linear now.

use super::bundle::{ClientBundle, ClientLayer, ServerBundle, ServerLayer};
use super::convolve::Convolution;
use super::material::{label_stream, polynomial, tweaks};
use super::model::{ClientModel, ServerModel};
use crate::channel::{Channel, receive_exactly};
use crate::cost::Traffic;
use crate::header::BundleId;
use crate::indexed_circuit::{IndexedCircuit, LayerIndex, activation, add_scaled, sum_windows};
use crate::nonlinear::relu::{self, ReluLayer};
use crate::nonlinear::{gather, quadratic};
use crate::wire::Reader;
use crate::{Error, share};
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_core::{Delta, TweakRange};
use pi_ir::{Activation, Kind, Layer, LayerTrace, PostTruncation, Term, Trace};
use pi_ring::conv::ConvScratch;
use rayon::prelude::*;
use zeroize::Zeroizing;

/// The client's result.
#[derive(Debug)]
pub struct Inference {
    /// The output layer's sums, at its scale.
    pub logits: Vec<i64>,
    /// The client's shares before each truncation, if they were asked for.
    pub trace: Option<Trace>,
}

/// The client's first message: which bundle, and the masked input.
pub struct OnlineRequest {
    id: BundleId,
    input: Vec<u64>,
}

const ID_BYTES: usize = 32;

/// Bytes of a layer's messages online, server to client and back; none for a layer without ReLUs,
/// squares and polynomials.
fn online_bytes(index: &LayerIndex) -> (usize, usize) {
    let relu = index
        .width
        .map_or(0, |width| relu::online_down_bytes(width, index.relu.len()));
    (
        relu + ELEMENT_BYTES * index.quadratic.len(),
        ELEMENT_BYTES * index.online(),
    )
}

/// Bytes of the first message and of the last.
pub(crate) fn infer_bytes(indexed: &IndexedCircuit) -> (usize, usize) {
    (
        ID_BYTES + ELEMENT_BYTES * indexed.circuit.input.len(),
        ELEMENT_BYTES * indexed.logits(),
    )
}

/// Online traffic of a layer.
pub(crate) fn layer_traffic(
    indexed: &IndexedCircuit,
    layer: &Layer,
    index: &LayerIndex,
) -> Traffic {
    let (down, up) = match activation(layer) {
        Some(_) => online_bytes(index),
        None => (infer_bytes(indexed).1, 0),
    };
    Traffic {
        bytes_up: up as u64,
        bytes_down: down as u64,
        messages: u32::from(down > 0) + u32::from(up > 0),
    }
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
    bundle: ClientBundle,
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
    // All that depends on nothing to come, before the first byte: the caller may be marking the
    // bundle spent meanwhile.
    let tweaks = tweaks(indexed, &id);
    let parts = indexed.layers_with_index().zip(&bundle.layers);
    let known: Vec<Known> = parts
        .map(|((layer, index), own)| Known::new(layer, index, &own.c))
        .collect();
    channel.send(message).await?;

    let mut traced = Vec::new();
    let mut logits = Vec::new();
    let parts = bundle.layers.into_iter().zip(known).zip(&tweaks);
    for ((layer, index), ((own, known), tweaks)) in indexed.layers_with_index().zip(parts) {
        let mut shares = LayerTrace {
            before_truncation: if trace { own.c.to_vec() } else { Vec::new() },
            before_post_truncation: Vec::new(),
        };
        match activation(layer) {
            Some(_) if index.online() == 0 => {}
            Some(activation) => {
                let message =
                    receive_exactly(channel, "online message", online_bytes(index).0).await?;
                let (reply, before_post) =
                    evaluate(activation, index, own, &known, tweaks.as_ref(), &message)?;
                channel.send(reply).await?;
                if trace {
                    shares.before_post_truncation = before_post.to_vec();
                }
            }
            None => {
                let what = "share of the output";
                let message = receive_exactly(channel, what, infer_bytes(indexed).1).await?;
                let d = fp::decode(what, &message, indexed.logits())?;
                let sum = own
                    .c
                    .iter()
                    .zip(&d)
                    .map(|(&c, &d)| fp::centre(fp::add(c, d)));
                logits = sum.collect();
            }
        }
        traced.push(shares);
    }
    Ok(Inference {
        logits,
        trace: trace.then_some(Trace { layers: traced }),
    })
}

/// The client's truncated shares of a layer's elements, in the order of the layer's index.
struct Known {
    relu: Elements,
    quadratic: Elements,
}

impl Known {
    fn new(layer: &Layer, index: &LayerIndex, c: &[u64]) -> Self {
        let (f, bound) = (layer.truncate(), layer.bound_bits);
        let truncated = |elements: &[u32]| {
            let mut c = gather(c, elements);
            for c in c.iter_mut() {
                *c = share::truncate_client(*c, f, bound);
            }
            c
        };
        Known {
            relu: truncated(&index.relu),
            quadratic: truncated(&index.quadratic),
        }
    }
}

/// The client's half of one layer: its reply, and its shares of squares and polynomials before
/// their second truncation.
fn evaluate(
    activation: &Activation,
    index: &LayerIndex,
    own: ClientLayer,
    known: &Known,
    tweaks: Option<&TweakRange>,
    message: &[u8],
) -> Result<(Vec<u8>, Elements), Error> {
    let mut reader = Reader::message("online message", message);
    let mut results = Zeroizing::new(Vec::with_capacity(index.online()));
    if let (Some(width), Some(tweaks), Some(relu)) = (index.width, tweaks, own.relu) {
        let layer = ReluLayer { width, tweaks };
        results.extend_from_slice(&relu.evaluate(layer, &known.relu, &mut reader)?);
    }
    let count = index.quadratic.len();
    let opened = fp::decode("openings", reader.take(ELEMENT_BYTES * count)?, count)?;
    reader.end()?;
    let mut before_post = Zeroizing::new(Vec::with_capacity(count));
    let shares = known.quadratic.iter().zip(own.u.iter()).zip(&opened);
    for (&element, ((&c, &u), &opened)) in index.quadratic.iter().zip(shares) {
        let kind = activation.kinds[element as usize];
        let share = quadratic::client_share(kind, c, u, opened);
        let post = post(activation, kind);
        results.push(share::truncate_client(
            share,
            post.truncate,
            post.bound_bits,
        ));
        before_post.push(share);
    }
    for (result, &mask) in results.iter_mut().zip(own.next.iter()) {
        *result = fp::sub(*result, mask);
    }
    Ok((fp::encode(&results).to_vec(), before_post))
}

/// The second truncation of a square or polynomial.
fn post(activation: &Activation, kind: Kind) -> &PostTruncation {
    let post = activation.post(kind);
    post.expect("a verified circuit has one for each quadratic kind that occurs")
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
        let mut tensor = sum(model, l, layer, &tensors, offset, &mut scratch);
        let Some(activation) = activation(layer) else {
            channel.send(fp::encode(&tensor).to_vec()).await?;
            continue;
        };
        let identity = std::mem::take(&mut own.identity);
        if index.online() > 0 {
            let opening = Opening {
                model,
                layer: l,
                activation,
                index,
                label_seed: &bundle.label_seed,
                delta: &bundle.delta,
            };
            let (message, shares) = opening.open(own, layer, &tensor)?;
            channel.send(message).await?;
            // While the client evaluates.
            renew(&mut tensor, layer, &index.identity, &identity);
            let (what, length) = ("masked results", online_bytes(index).1);
            let message = receive_exactly(channel, what, length).await?;
            let results = fp::decode(what, &message, index.online())?;
            let elements = index.relu.iter().chain(&index.quadratic);
            for (&element, (&y, &d)) in elements.zip(results.iter().zip(shares.iter())) {
                tensor[element as usize] = fp::add(y, d);
            }
        } else {
            renew(&mut tensor, layer, &index.identity, &identity);
        }
        tensors.push(tensor);
    }
    Ok(())
}

/// Elements that a task renews.
const ELEMENTS: usize = 8192;

/// Replaces the layer's sum at identity elements by the share of the next tensor: the truncated
/// share and its correction.
fn renew(tensor: &mut [u64], layer: &Layer, identity: &[u32], corrections: &[u64]) {
    let (f, bound) = (layer.truncate(), layer.bound_bits);
    let chunks = tensor.par_chunks_mut(ELEMENTS).enumerate();
    chunks.for_each(|(chunk, tensor)| {
        let first = chunk * ELEMENTS;
        let before = |end: usize| identity.partition_point(|&element| (element as usize) < end);
        let own = before(first)..before(first + tensor.len());
        for (&element, &correction) in identity[own.clone()].iter().zip(&corrections[own]) {
            let d = &mut tensor[element as usize - first];
            *d = fp::add(
                share::to_field(share::truncate_server(*d, f, bound)),
                correction,
            );
        }
    });
}

/// The server's means to open a layer.
struct Opening<'a> {
    model: &'a ServerModel,
    layer: usize,
    activation: &'a Activation,
    index: &'a LayerIndex,
    label_seed: &'a [u8; 32],
    delta: &'a Delta,
}

/// Squares and polynomials that a task opens.
const QUADRATICS: usize = 4096;

impl Opening<'_> {
    /// The server's message of a layer, and its shares of the results: ReLUs, then squares and
    /// polynomials.
    ///
    /// `sum` is its share of the layer's sum.
    fn open(
        &self,
        own: ServerLayer,
        layer: &Layer,
        sum: &[u64],
    ) -> Result<(Vec<u8>, Elements), Error> {
        let index = self.index;
        let (f, bound) = (layer.truncate(), layer.bound_bits);
        let truncated = |&element: &u32| share::truncate_server(sum[element as usize], f, bound);
        let mut message = Vec::with_capacity(online_bytes(index).0);
        let mut shares = Zeroizing::new(Vec::with_capacity(index.online()));
        if let (Some(width), Some(gadget)) = (index.width, own.gadget) {
            let zeros = label_stream(self.label_seed, self.layer);
            // Integers in two's complement.
            let d: Elements =
                Zeroizing::new(index.relu.iter().map(|e| truncated(e) as u64).collect());
            let y = relu::open(width, self.delta, &zeros, gadget, &d, &mut message)?;
            shares.extend_from_slice(&y);
        }
        let (count, relus) = (index.quadratic.len(), index.relu.len());
        let mut opened = vec![0; count];
        shares.resize(relus + count, 0);
        let results = shares[relus..].par_chunks_mut(QUADRATICS);
        let inputs = own
            .d0
            .par_chunks(QUADRATICS)
            .zip(own.v.par_chunks(QUADRATICS));
        index
            .quadratic
            .par_chunks(QUADRATICS)
            .zip(inputs)
            .zip(opened.par_chunks_mut(QUADRATICS).zip(results))
            .for_each(|((elements, (d0, v)), (opened, shares))| {
                let pairs = d0.iter().zip(v).zip(opened.iter_mut().zip(shares));
                for (element, ((&d0, &v), (opened, result))) in elements.iter().zip(pairs) {
                    let d = share::to_field(truncated(element));
                    let polynomial = polynomial(self.model, self.layer, *element);
                    let (opening, y) = quadratic::server_open(polynomial, d, d0, v);
                    let post = post(self.activation, self.activation.kinds[*element as usize]);
                    let y = share::truncate_server(y, post.truncate, post.bound_bits);
                    *opened = opening;
                    *result = share::to_field(y);
                }
            });
        message.extend_from_slice(fp::encode(&opened));
        Ok((message, shares))
    }
}

/// The sum of a layer on the server's shares, with the offset (bias and `s`), which it is computed
/// in where no pool follows.
fn sum(
    model: &ServerModel,
    l: usize,
    layer: &Layer,
    tensors: &[Elements],
    offset: Elements,
    scratch: &mut ConvScratch,
) -> Elements {
    let indexed = model.indexed();
    let shape = indexed.sum_shape(layer);
    let (mut sum, offset) = match &layer.pool {
        None => (offset, None),
        Some(_) => (Zeroizing::new(vec![0; shape.len()]), Some(offset)),
    };
    let mut convolutions = model.convolutions(l).iter();
    for term in &layer.terms {
        match term {
            Term::Conv(conv) => {
                let convolution: &Convolution = convolutions
                    .next()
                    .expect("the model prepared every convolution");
                convolution.add_to(&tensors[conv.input.0 as usize], scratch, &mut sum);
            }
            Term::Residual { input, pool, shift } => {
                let x = &tensors[input.0 as usize];
                match pool {
                    Some(pool) => {
                        let from = indexed.circuit.tensor_shape(*input);
                        add_scaled(&mut sum, &sum_windows(x, from, pool, shape), *shift);
                    }
                    None => add_scaled(&mut sum, x, *shift),
                }
            }
        }
    }
    match offset {
        None => sum,
        Some(offset) => {
            let sum = std::mem::take(&mut *sum);
            let mut pooled = Zeroizing::new(indexed.pool(layer, sum));
            add_scaled(&mut pooled, &offset, 0);
            pooled
        }
    }
}
