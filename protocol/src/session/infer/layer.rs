//! The two messages of one layer online: the server opens its shares, and the client evaluates,
//! which gives both a share of every result.

use crate::indexed_circuit::LayerIndex;
use crate::nonlinear::relu::{self, ReluLayer};
use crate::nonlinear::{gather, quadratic};
use crate::session::bundle::{ClientLayer, ServerLayer};
use crate::session::material::{label_stream, polynomial};
use crate::session::model::ServerModel;
use crate::wire::Reader;
use crate::{Error, share};
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_core::{Delta, TweakRange};
use pi_ir::{Activation, Kind, Layer, PostTruncation};
use rayon::prelude::*;
use zeroize::Zeroizing;

/// Bytes of a layer's messages online, server to client and back; none for a layer without ReLUs,
/// squares and polynomials.
pub(super) fn message_bytes(index: &LayerIndex) -> (usize, usize) {
    let relu = index
        .width
        .map_or(0, |width| relu::online_down_bytes(width, index.relu.len()));
    (
        relu + ELEMENT_BYTES * index.quadratic.len(),
        ELEMENT_BYTES * index.online(),
    )
}

/// The server's means to open a layer.
pub(super) struct Opening<'a> {
    pub(super) model: &'a ServerModel,
    pub(super) layer: usize,
    pub(super) activation: &'a Activation,
    pub(super) index: &'a LayerIndex,
    pub(super) label_seed: &'a [u8; 32],
    pub(super) delta: &'a Delta,
}

/// Squares and polynomials that a task opens.
const QUADRATICS: usize = 4096;

impl Opening<'_> {
    /// The server's message of a layer, and its shares of the results: ReLUs, then squares and
    /// polynomials.
    ///
    /// `sum` is its share of the layer's sum.
    pub(super) fn open(
        &self,
        own: ServerLayer,
        layer: &Layer,
        sum: &[u64],
    ) -> Result<(Vec<u8>, Elements), Error> {
        let index = self.index;
        let (f, bound) = (layer.truncate(), layer.bound_bits);
        let truncated = |&element: &u32| share::truncate_server(sum[element as usize], f, bound);
        let mut message = Vec::with_capacity(message_bytes(index).0);
        let mut shares = Zeroizing::new(Vec::with_capacity(index.online()));
        if let (Some(width), Some(gadget)) = (index.width, own.gadget) {
            let zeros = label_stream(self.label_seed, self.layer);
            // Negative integers in two's complement: their low bits are what the bool circuit gets.
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

/// Elements that a task renews.
const ELEMENTS: usize = 8192;

/// Replaces the layer's sum at identity elements by the share of the next tensor: the truncated
/// share and its correction.
pub(super) fn renew(tensor: &mut [u64], layer: &Layer, identity: &[u32], corrections: &[u64]) {
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

/// The client's truncated shares of a layer's elements, in the order of the layer's index.
pub(super) struct Known {
    relu: Elements,
    quadratic: Elements,
}

impl Known {
    pub(super) fn new(layer: &Layer, index: &LayerIndex, c: &[u64]) -> Self {
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
pub(super) fn evaluate(
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
