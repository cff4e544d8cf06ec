//! One answer from one bundle: `L + 1` round trips for `L` layers with a ReLU, square or polynomial element.
//!
//! | | message | content |
//! | --- | --- | --- |
//! | first | client to server | identity of the bundle, which is the digest of its header; `x - r_0` |
//! | per such layer | server to client | labels and rows of the ReLUs; openings of squares and polynomials |
//! | | client to server | `y_c - r` of the ReLUs, then of squares and polynomials |
//! | last | server to client | its share of the logits |
//!
//! Everything else is local: the server computes `W (x - r)` in the clear, both add residuals and pool on their shares, and
//! identity elements were settled offline. The client's shares of all sums were known offline, so that it computes nothing linear.

use super::bundle::{ClientBundle, ClientLayer, ServerBundle, ServerLayer, check_header};
use super::model::{ClientModel, LayerIndex, Network, ServerModel, activation, add_scaled};
use super::prepare::{polynomial, server_labels, truncated, tweaks};
use crate::channel::{Channel, receive_exactly};
use crate::cost::Traffic;
use crate::header::BundleId;
use crate::nonlinear::{gather, quadratic, relu, scatter};
use crate::wire::Reader;
use crate::{Error, share};
use pi_garble::field::{self, ELEMENT_BYTES, Elements};
use pi_garble::{Delta, TweakRange};
use pi_ir::{Activation, Conv, Kind, Layer, LayerTrace, PostTruncation, Shape, Trace};
use pi_ring::conv::{ConvShape, Padding, conv2d_fp_bounded};
use pi_ring::fp;
use zeroize::Zeroizing;

/// What the client learns.
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

/// Bytes of a layer's messages online, server to client and back; none for a layer without ReLUs, squares and polynomials.
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
pub(crate) fn infer_bytes(network: &Network) -> (usize, usize) {
    (
        ID_BYTES + ELEMENT_BYTES * network.circuit.input.len(),
        ELEMENT_BYTES * network.logits(),
    )
}

/// What a layer sends online.
pub(crate) fn layer_traffic(network: &Network, layer: &Layer, index: &LayerIndex) -> Traffic {
    let (down, up) = match activation(layer) {
        Some(_) => online_bytes(index),
        None => (infer_bytes(network).1, 0),
    };
    Traffic {
        up: up as u64,
        down: down as u64,
        messages: u32::from(down > 0) + u32::from(up > 0),
    }
}

impl OnlineRequest {
    /// The length of the message for this model.
    pub fn encoded_len(model: &ServerModel) -> usize {
        infer_bytes(model.network()).0
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
            input: field::decode(what, reader.rest(), model.network().circuit.input.len())?,
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
/// The caller has marked the bundle spent, durably. `input` is the quantised image, in the order of the circuit's input.
/// With `trace` the client's own shares are returned too, with which `pi_ir::interpret::exact` reproduces the run.
///
/// # Errors
/// [`Error::ApiMisuse`] if the input has another size or the bundle is of another model, [`Error::PeerMisbehaved`] for
/// malformed messages, [`Error::Channel`]. The bundle is gone in any case.
pub async fn client_infer(
    channel: &mut impl Channel,
    model: &ClientModel,
    bundle: ClientBundle,
    input: &[i64],
    trace: bool,
) -> Result<Inference, Error> {
    let network = model.network();
    let header = *bundle.header();
    check_header(&header, &model.header(header.client_key, &header.inputs))?;
    let expected = network.circuit.input.len();
    if input.len() != expected {
        let got = input.len();
        return Err(Error::misuse(format!(
            "input: expected {expected} values, got {got}"
        )));
    }
    let id = header.id();
    let mut message = id.0.to_vec();
    let masked = input.iter().zip(bundle.input_mask.iter());
    let masked: Vec<u64> = masked.map(|(&x, &r)| fp::sub(fp::from_i64(x), r)).collect();
    message.extend_from_slice(field::encode(&masked));
    channel.send(message).await?;

    let tweaks = tweaks(network, &id);
    let mut traced = Vec::new();
    let mut logits = Vec::new();
    let layers = network.indexed().zip(bundle.layers).zip(&tweaks);
    for (((layer, index), own), tweaks) in layers {
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
                    evaluate(layer, activation, index, own, tweaks.as_ref(), &message)?;
                channel.send(reply).await?;
                if trace {
                    shares.before_post_truncation = before_post.to_vec();
                }
            }
            None => {
                let what = "share of the output";
                let message = receive_exactly(channel, what, infer_bytes(network).1).await?;
                let d = field::decode(what, &message, network.logits())?;
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

/// The client's half of one layer: its reply, and its shares of squares and polynomials before their second truncation.
fn evaluate(
    layer: &Layer,
    activation: &Activation,
    index: &LayerIndex,
    own: ClientLayer,
    tweaks: Option<&TweakRange>,
    message: &[u8],
) -> Result<(Vec<u8>, Elements), Error> {
    let mut reader = Reader::message("online message", message);
    let c = truncated(layer, &own.c);
    let mut results = Zeroizing::new(Vec::with_capacity(index.online()));
    if let (Some(width), Some(tweaks), Some(relu)) = (index.width, tweaks, own.relu) {
        let c = gather(&c, &index.relu);
        results.extend_from_slice(&relu.evaluate(width, tweaks, &c, &mut reader)?);
    }
    let count = index.quadratic.len();
    let opened = field::decode("openings", reader.take(ELEMENT_BYTES * count)?, count)?;
    reader.end()?;
    let mut before_post = Zeroizing::new(Vec::with_capacity(count));
    for ((&element, &u), &opened) in index.quadratic.iter().zip(own.u.iter()).zip(&opened) {
        let kind = activation.kinds[element as usize];
        let share = quadratic::client_share(kind, c[element as usize], u, opened);
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
    Ok((field::encode(&results).to_vec(), before_post))
}

/// The second truncation of a square or polynomial.
fn post(activation: &Activation, kind: Kind) -> &PostTruncation {
    let post = activation.post(kind);
    post.expect("a verified circuit has one for each quadratic kind that occurs")
}

/// Spends a bundle on a client's request: the server's half.
///
/// The caller has looked the bundle up by [`OnlineRequest::bundle_id`] and marked it spent, durably.
///
/// # Errors
/// Before anything is sent: [`Error::PeerIncompatible`] if request and bundle are not of one header, [`Error::ApiMisuse`]
/// if the bundle is of another model. [`Error::PeerMisbehaved`] for malformed messages; [`Error::Channel`]. The bundle is gone
/// in any case.
pub async fn server_infer(
    channel: &mut impl Channel,
    model: &ServerModel,
    bundle: ServerBundle,
    request: OnlineRequest,
) -> Result<(), Error> {
    let network = model.network();
    let header = *bundle.header();
    if request.id != header.id() {
        return Err(Error::PeerIncompatible {
            what: "the request names another bundle".into(),
        });
    }
    check_header(&header, &model.header(header.client_key, &header.inputs))?;
    // x - r of every tensor so far.
    let mut tensors: Vec<Elements> = Vec::with_capacity(network.layers.len());
    tensors.push(Zeroizing::new(request.input));
    for (l, ((layer, index), own)) in network.indexed().zip(bundle.layers).enumerate() {
        let mut d = Zeroizing::new(sum(model, l, layer, &tensors));
        add_scaled(&mut d, &own.offset, 0);
        let Some(activation) = activation(layer) else {
            channel.send(field::encode(&d).to_vec()).await?;
            continue;
        };
        let (f, bound) = (layer.truncate(), layer.bound_bits);
        let d_hat: Zeroizing<Vec<i64>> = Zeroizing::new(
            d.iter()
                .map(|&d| share::truncate_server(d, f, bound))
                .collect(),
        );
        let mut next = Zeroizing::new(vec![0; layer.shape.len()]);
        for (&element, &correction) in index.identity.iter().zip(own.identity.iter()) {
            let element = element as usize;
            next[element] = fp::add(share::to_field(d_hat[element]), correction);
        }
        if index.online() > 0 {
            let opening = Opening {
                model,
                layer: l,
                activation,
                index,
                label_seed: &bundle.label_seed,
                delta: &bundle.delta,
            };
            let (message, shares) = opening.open(own, &d_hat)?;
            channel.send(message).await?;
            let (what, length) = ("masked results", online_bytes(index).1);
            let message = receive_exactly(channel, what, length).await?;
            let results = field::decode(what, &message, index.online())?;
            let results = results.iter().zip(shares.iter());
            let results: Elements = Zeroizing::new(results.map(|(&y, &d)| fp::add(y, d)).collect());
            let (relus, quadratics) = results.split_at(index.relu.len());
            scatter(relus, &index.relu, &mut next);
            scatter(quadratics, &index.quadratic, &mut next);
        }
        tensors.push(next);
    }
    Ok(())
}

/// What the server opens a layer with.
struct Opening<'a> {
    model: &'a ServerModel,
    layer: usize,
    activation: &'a Activation,
    index: &'a LayerIndex,
    label_seed: &'a [u8; 32],
    delta: &'a Delta,
}

impl Opening<'_> {
    /// The server's message of a layer, and its shares of the results: ReLUs, then squares and polynomials.
    fn open(&self, own: ServerLayer, d_hat: &[i64]) -> Result<(Vec<u8>, Elements), Error> {
        let index = self.index;
        let mut message = Vec::with_capacity(online_bytes(index).0);
        let mut shares = Zeroizing::new(Vec::with_capacity(index.online()));
        if let (Some(width), Some(gadget)) = (index.width, own.gadget) {
            let zeros = server_labels(self.label_seed, self.layer);
            let relus = index.relu.iter().map(|&element| d_hat[element as usize]);
            let d: Zeroizing<Vec<i64>> = Zeroizing::new(relus.collect());
            let y = relu::open(width, self.delta, &zeros, gadget, &d, &mut message)?;
            shares.extend_from_slice(&y);
        }
        let mut opened = Vec::with_capacity(index.quadratic.len());
        let pairs = own.d0.iter().zip(own.v.iter());
        for (&element, (&d0, &v)) in index.quadratic.iter().zip(pairs) {
            let d = share::to_field(d_hat[element as usize]);
            let polynomial = polynomial(self.model, self.layer, element);
            let (opening, y) = quadratic::server_open(polynomial, d, d0, v);
            let post = post(self.activation, self.activation.kinds[element as usize]);
            let y = share::truncate_server(y, post.truncate, post.bound_bits);
            opened.push(opening);
            shares.push(share::to_field(y));
        }
        message.extend_from_slice(field::encode(&opened));
        Ok((message, shares))
    }
}

/// The sum of a layer on the server's shares, without bias and `s`.
fn sum(model: &ServerModel, l: usize, layer: &Layer, tensors: &[Elements]) -> Vec<u64> {
    let network = model.network();
    let kernels = &model.weights().layers[l].kernels;
    network.sum(layer, tensors, |k, conv| {
        let input = network.circuit.tensor_shape(conv.input);
        convolve(&tensors[conv.input.0 as usize], &kernels[k], input, conv)
    })
}

/// A convolution over `F_p`.
///
/// Strides that differ between the directions are computed at their common divisor, and what is too many is left out.
fn convolve(x: &[u64], kernel: &[i16], input: Shape, conv: &Conv) -> Vec<u64> {
    let (rows, columns) = (conv.stride.0 as usize, conv.stride.1 as usize);
    let stride = common_divisor(rows, columns);
    let padding = &conv.padding;
    let shape = ConvShape {
        channels_in: input.c as usize,
        height: input.h as usize,
        width: input.w as usize,
        channels_out: conv.out_channels as usize,
        kernel_height: conv.kernel.0 as usize,
        kernel_width: conv.kernel.1 as usize,
        stride,
        padding: Padding {
            top: padding.top as usize,
            left: padding.left as usize,
            bottom: padding.bottom as usize,
            right: padding.right as usize,
        },
    };
    // Public: what the circuit says of its weights, so that the time does not depend on them.
    let row_sum_bound = (shape.taps() as u64) << conv.weight_bits;
    let dense = conv2d_fp_bounded(x, kernel, &shape, row_sum_bound);
    if rows == columns {
        return dense;
    }
    let (height, width) = (shape.out_height(), shape.out_width());
    let planes = dense.chunks_exact(height * width);
    let kept = planes.flat_map(|plane| {
        plane
            .chunks_exact(width)
            .step_by(rows / stride)
            .flat_map(move |row| row.iter().copied().step_by(columns / stride))
    });
    kept.collect()
}

fn common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => common_divisor(b, a % b),
    }
}
