//! The ReLUs of a circuit in pieces, and the exchange of their garbled circuits in parts: what both
//! parties derive from the public circuit, so that neither ever holds all tables of a bundle.
//!
//! A *piece* is a range of consecutive ReLUs of one layer. It is what is garbled, stored, read and
//! evaluated at a time, and online it is a message. A *part* is a run of consecutive pieces, over
//! layers where they are small, whose tables travel in one message offline. A circuit of few ReLUs
//! has one piece a layer and one part, even if it has no ReLUs at all.
//!
//! Pieces begin at multiples of [`UNIT`] ReLUs, so that neither the oblivious transfers nor any of
//! the packed bits is filled up at a cut: the bytes of a bundle are those of one that is not cut.

use crate::indexed_circuit::LayerIndex;
use crate::nonlinear::relu::{self, UNIT};
use pi_garble::SignWidth;
use std::ops::Range;

/// Bytes of a part's tables and `e` at most, unless a single [`UNIT`] has more.
///
/// Of a part, the client holds at once the message, as much again as it copies from it, and labels
/// of half that size; of a piece online likewise. 16 MiB keep that far below what the shares of a
/// circuit take that has so many ReLUs, and a round trip for each 16 MiB is little: 40 ms, where
/// the bytes take more than a second at 100 Mbit/s. Networks of 32 by 32 pixels have one part.
pub(crate) const PART_BYTES: usize = 16 << 20;

/// Consecutive ReLUs of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Index of the layer.
    pub(crate) layer: usize,
    /// Width of the sign circuits.
    pub(crate) width: SignWidth,
    /// Place of the first in the layer's ReLUs.
    pub(crate) first: usize,
    /// Number of ReLUs.
    pub(crate) len: usize,
}

impl Piece {
    /// Places of the ReLUs among those of the layer.
    pub(crate) fn range(&self) -> Range<usize> {
        self.first..self.first + self.len
    }

    /// Bytes of its tables and `e`.
    pub(crate) fn garbled_bytes(&self) -> usize {
        relu::garbled_bytes(self.width, self.len)
    }
}

/// The pieces of a circuit, in the order of its layers, and its parts.
#[derive(Debug)]
pub(crate) struct Parts {
    pieces: Vec<Piece>,
    /// The pieces of each layer.
    layers: Vec<Range<usize>>,
    /// The pieces of each part; one part at least.
    parts: Vec<Range<usize>>,
}

impl Parts {
    /// Cuts layers and exchange so that no part has more than `limit` bytes of tables, where a unit
    /// has not more.
    pub(crate) fn new(layers: &[LayerIndex], limit: usize) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut of_layers = Vec::with_capacity(layers.len());
        for (layer, index) in layers.iter().enumerate() {
            let before = pieces.len();
            if let Some(width) = index.width {
                let count = index.relu.len();
                let units = limit / relu::garbled_bytes(width, UNIT);
                let most = UNIT * units.max(1);
                pieces.extend((0..count).step_by(most).map(|first| Piece {
                    layer,
                    width,
                    first,
                    len: most.min(count - first),
                }));
            }
            of_layers.push(before..pieces.len());
        }
        let mut parts = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (i, piece) in pieces.iter().enumerate() {
            if i > start && bytes + piece.garbled_bytes() > limit {
                parts.push(start..i);
                (start, bytes) = (i, 0);
            }
            bytes += piece.garbled_bytes();
        }
        parts.push(start..pieces.len());
        Parts {
            pieces,
            layers: of_layers,
            parts,
        }
    }

    /// Number of parts.
    pub(crate) fn count(&self) -> usize {
        self.parts.len()
    }

    /// All pieces.
    pub(crate) fn all(&self) -> &[Piece] {
        &self.pieces
    }

    /// The pieces of a layer.
    pub(crate) fn of_layer(&self, layer: usize) -> &[Piece] {
        &self.pieces[self.layers[layer].clone()]
    }

    /// The pieces of a part; none behind the last part.
    pub(crate) fn of_part(&self, part: usize) -> &[Piece] {
        let range = self.parts.get(part).cloned().unwrap_or_default();
        &self.pieces[range]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(relus: u32, bits: u32) -> LayerIndex {
        LayerIndex {
            relu: (0..relus).collect(),
            width: (relus > 0).then(|| SignWidth::new(bits).unwrap()),
            ..LayerIndex::default()
        }
    }

    #[test]
    fn parts_cover_every_relu_once_and_in_order() {
        let layers = [
            layer(5000, 4),
            layer(0, 0),
            layer(1, 16),
            layer(512, 16),
            layer(1500, 60),
        ];
        let garbled = |piece: &Piece| piece.garbled_bytes();
        let largest = layers[4].width.unwrap().table_bytes(UNIT) + UNIT / 8;
        for limit in [0, 1, 50_000, 100_000, 300_000, 1 << 20, PART_BYTES] {
            let parts = Parts::new(&layers, limit);
            let mut seen: Vec<(usize, usize)> = Vec::new();
            for part in 0..parts.count() {
                let pieces = parts.of_part(part);
                assert!(!pieces.is_empty());
                let bytes: usize = pieces.iter().map(garbled).sum();
                assert!(bytes <= limit || pieces.len() == 1 && pieces[0].len <= UNIT);
                seen.extend(pieces.iter().flat_map(|p| p.range().map(|r| (p.layer, r))));
            }
            assert!(parts.of_part(parts.count()).is_empty());
            let expected = layers.iter().enumerate();
            let expected =
                expected.flat_map(|(l, index)| (0..index.relu.len()).map(move |r| (l, r)));
            assert_eq!(seen, expected.collect::<Vec<_>>());
            for (l, index) in layers.iter().enumerate() {
                let pieces = parts.of_layer(l);
                assert!(pieces.iter().all(|p| p.layer == l && p.first % UNIT == 0));
                // Nothing is filled up at a cut.
                let bytes: usize = pieces.iter().map(garbled).sum();
                let whole = index
                    .width
                    .map_or(0, |w| relu::garbled_bytes(w, index.relu.len()));
                assert_eq!(bytes, whole);
            }
            if limit < largest {
                assert_eq!(parts.of_layer(4).len(), 3, "limit {limit}");
            }
        }
        assert_eq!(Parts::new(&layers, PART_BYTES).count(), 1);
    }

    #[test]
    fn a_circuit_without_relus_has_one_empty_part() {
        for layers in [&[][..], &[layer(0, 0)]] {
            let parts = Parts::new(layers, PART_BYTES);
            assert_eq!((parts.count(), parts.all().len()), (1, 0));
            assert!(parts.of_part(0).is_empty());
        }
    }
}
