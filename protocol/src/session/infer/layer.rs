//! The messages of one layer online: the server opens its shares, and the client evaluates, which
//! gives both a share of every result.

use crate::indexed_circuit::{IndexedCircuit, LayerIndex};
use crate::nonlinear::{gather, quadratic, relu};
use crate::parts::{PART_BYTES, Piece};
use crate::session::material::{label_stream, polynomial};
use crate::session::model::ServerModel;
use crate::wire::Reader;
use crate::{Error, share};
use pi_core::Delta;
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_garble::ServerGadget;
use pi_ir::{Activation, Kind, Layer, PostTruncation};
use rayon::prelude::*;
use std::ops::Range;
use zeroize::Zeroizing;

/// Bytes of a layer's messages online, server to client: one for each piece of its ReLUs, the last
/// with the openings of squares and polynomials behind it; none for a layer without either.
pub(in crate::session) fn opening_bytes(indexed: &IndexedCircuit, layer: usize) -> Vec<usize> {
    let pieces = indexed.parts.of_layer(layer).iter();
    let mut bytes: Vec<usize> = pieces
        .map(|piece| relu::online_down_bytes(piece.width, piece.len))
        .collect();
    let openings = ELEMENT_BYTES * indexed.layers[layer].quadratic.len();
    match bytes.last_mut() {
        Some(last) => *last += openings,
        None if openings > 0 => bytes.push(openings),
        None => {}
    }
    bytes
}

/// Elements of a layer in one message of the client's at most: 16 MiB, as of the tables of a piece.
const REPLY: usize = PART_BYTES / ELEMENT_BYTES;

/// The elements of each message of the client's for a layer.
pub(super) fn replies(index: &LayerIndex) -> impl Iterator<Item = Range<usize>> {
    let online = index.online();
    let firsts = (0..online).step_by(REPLY);
    firsts.map(move |first| first..online.min(first + REPLY))
}

/// The server's means to open a layer.
pub(super) struct Opening<'a> {
    pub(super) model: &'a ServerModel,
    pub(super) layer: usize,
    pub(super) activation: &'a Activation,
    pub(super) label_seed: &'a [u8; 32],
    pub(super) delta: &'a Delta,
    /// Its share of the layer's sum.
    pub(super) sum: &'a [u64],
}

/// Squares and polynomials that a task opens.
const QUADRATICS: usize = 4096;

impl Opening<'_> {
    /// Appends the message of a piece, and to `shares` the server's shares of its results.
    pub(super) fn open_piece(
        &self,
        piece: &Piece,
        gadget: ServerGadget,
        shares: &mut Elements,
        message: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let indexed = self.model.indexed();
        let layer = &indexed.circuit.layers[self.layer];
        let (f, bound) = (layer.truncate(), layer.bound_bits);
        // Negative integers in two's complement: their low bits are what the bool circuit gets.
        let d = indexed.layers[self.layer].relu[piece.range()].iter();
        let d = d.map(|&e| share::truncate_server(self.sum[e as usize], f, bound) as u64);
        let d: Elements = Zeroizing::new(d.collect());
        let zeros = label_stream(self.label_seed, self.layer);
        let zeros = zeros.from_block(piece.first as u128 * u128::from(piece.width.bits()));
        let y = relu::open(piece.width, self.delta, &zeros, gadget, &d, message)?;
        shares.extend_from_slice(&y);
        Ok(())
    }

    /// Appends the openings of squares and polynomials, and to `shares` the server's shares of the
    /// results.
    pub(super) fn open_quadratics(
        &self,
        (d0, v): (&[u64], &[u64]),
        shares: &mut Elements,
        message: &mut Vec<u8>,
    ) {
        let indexed = self.model.indexed();
        let layer = &indexed.circuit.layers[self.layer];
        let (f, bound) = (layer.truncate(), layer.bound_bits);
        let quadratic = &indexed.layers[self.layer].quadratic;
        let (count, before) = (quadratic.len(), shares.len());
        let mut opened = vec![0; count];
        shares.resize(before + count, 0);
        let results = shares[before..].par_chunks_mut(QUADRATICS);
        let inputs = d0.par_chunks(QUADRATICS).zip(v.par_chunks(QUADRATICS));
        quadratic
            .par_chunks(QUADRATICS)
            .zip(inputs)
            .zip(opened.par_chunks_mut(QUADRATICS).zip(results))
            .for_each(|((elements, (d0, v)), (opened, shares))| {
                let pairs = d0.iter().zip(v).zip(opened.iter_mut().zip(shares));
                for (&element, ((&d0, &v), (opened, result))) in elements.iter().zip(pairs) {
                    let d = share::truncate_server(self.sum[element as usize], f, bound);
                    let polynomial = polynomial(self.model, self.layer, element);
                    let d = share::to_field(d);
                    let (opening, y) = quadratic::server_open(polynomial, d, d0, v);
                    let post = post(self.activation, self.activation.kinds[element as usize]);
                    let y = share::truncate_server(y, post.truncate, post.bound_bits);
                    *opened = opening;
                    *result = share::to_field(y);
                }
            });
        message.extend_from_slice(fp::encode(&opened));
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
    pub(super) relu: Elements,
    pub(super) quadratic: Elements,
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

/// The client's half of a layer's squares and polynomials, from their openings: appends its results
/// to `results`, and returns its shares before the second truncation.
pub(super) fn evaluate_quadratics(
    activation: &Activation,
    index: &LayerIndex,
    (c, u): (&[u64], &[u64]),
    message: &mut Reader<'_>,
    results: &mut Elements,
) -> Result<Elements, Error> {
    let count = index.quadratic.len();
    let opened = fp::decode("openings", message.take(ELEMENT_BYTES * count)?, count)?;
    let mut before_post = Zeroizing::new(Vec::with_capacity(count));
    let shares = c.iter().zip(u).zip(&opened);
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
    Ok(before_post)
}

/// The second truncation of a square or polynomial.
fn post(activation: &Activation, kind: Kind) -> &PostTruncation {
    let post = activation.post(kind);
    post.expect("a verified circuit has one for each quadratic kind that occurs")
}
