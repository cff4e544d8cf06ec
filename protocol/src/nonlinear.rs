//! Activations on shares: ReLU by a garbled sign, squares and private polynomials by oblivious
//! linear evaluation; and the label of the logits by a garbled arg max.
//!
//! Elements of one layer and one kind are computed together. The two halves of a gadget, and the
//! formulas of their bytes, stand side by side in the code. An identity element needs no gadget:
//! the client sends `c' - r` offline, and nothing happens online.
//!
//! All of it starts from *truncated* shares: `c'`, known to the client offline, and `d'`. These are
//! not uniform in `F_p` (the top bits of a truncated share are zero), and nothing here relies on
//! uniformity: a truncated share leaves its party only under a next mask `r`, a random `d0` or `a`,
//! or the pad of an oblivious transfer, or as the labels of a bool circuit's input.

pub(crate) mod label;
pub(crate) mod quadratic;
pub(crate) mod relu;
#[cfg(test)]
mod vectors;

use crate::indexed_circuit::LayerIndex;
use pi_garble::ArgMax;
use pi_ot::TreeDepth;

/// Bytes of a layer's garbled circuits in offline message 3: its ReLUs', or the label's.
pub(crate) fn choice_bytes(depth: TreeDepth, index: &LayerIndex) -> usize {
    let relu = |width| relu::choice_bytes(depth, width, index.relu.len());
    let label = |shape| label::choice_bytes(depth, shape);
    index.width.map_or(0, relu) + index.label.map_or(0, label)
}

/// Bytes of a layer's garbled circuits in offline message 4.
pub(crate) fn garbled_bytes(index: &LayerIndex) -> usize {
    let relu = |width| relu::garbled_bytes(width, index.relu.len());
    index.width.map_or(0, relu) + index.label.map_or(0, ArgMax::table_bytes)
}

/// The values at these indices.
pub(crate) fn gather<'a>(
    values: &[u64],
    indices: impl IntoIterator<Item = &'a u32>,
) -> pi_core::fp::Elements {
    // Slices and chains of slices know their length, so the vector does not grow: that would leave
    // copies of secrets behind.
    zeroize::Zeroizing::new(indices.into_iter().map(|&i| values[i as usize]).collect())
}
