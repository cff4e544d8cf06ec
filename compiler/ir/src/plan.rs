//! The packing of tensors into ciphertexts: public data that the compiler chooses and both parties
//! read. The protocol derives every coefficient's class and every index from it.
//!
//! *Virtual map.* A stride is removed by space-to-depth: with factors `(sh, sw)` and `padding`,
//! element `(c, y, x)` of the tensor sits in the padded map at row `y + top`, column `x + left`;
//! virtual channel `((c * sh + (y + top) % sh) * sw + (x + left) % sw)`, virtual row `(y + top) /
//! sh`, virtual column `(x + left) / sw`. A convolution of stride `(sh, sw)` on the tensor is one
//! of stride 1 on the virtual map. A convolution with less padding than the layout has its kernel
//! placed at an offset (a strided 1x1 shortcut is the middle tap of the 3x3 kernel beside it), so
//! one upload serves all consumers of a tensor.
//!
//! *Flat position* of virtual `(i, j)` inside a tile: `i * row_stride + j`. `row_stride` may be
//! smaller than the padded width where the columns that then coincide are zero in both rows (shared
//! padding).
//!
//! *Interleaving.* `group` channels share a ciphertext: channel in the low index bits, position
//! above. Coefficient of channel `g` of a group at flat position `u` of block `b`: `(b * block +
//! u) * group + g`.

use crate::circuit::TensorId;
use crate::shape::Padding;
use crate::{limits, wire};
use serde::{Deserialize, Serialize};

/// The packing of a whole circuit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Plan {
    /// Ring degree; 8192 in the standard parameter set.
    pub ring_degree: u32,
    /// Bundles prepared together whose tiles may share ciphertexts.
    pub bundles: u32,
    /// Uploads of the client: at least one entry per tensor that a convolution reads. The first
    /// entry of a tensor defines its mask; later ones repeat it in another layout (forced
    /// coefficients).
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::PLAN }>")]
    pub uploads: Vec<Upload>,
    /// One entry per convolution term, in circuit order.
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::PLAN }>")]
    pub answers: Vec<OutputPacking>,
}

/// One tensor in one layout.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Upload {
    /// The tensor whose mask is encrypted.
    pub tensor: TensorId,
    /// Layout of the tensor.
    pub layout: Layout,
}

/// A tensor's layout in ciphertexts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layout {
    /// Channels per ciphertext, `G`: a power of two, at most the ring degree.
    pub group: u32,
    /// Space-to-depth factors, vertical and horizontal.
    pub stride: (u32, u32),
    /// Zeros around the tensor before space-to-depth.
    pub padding: Padding,
    /// Virtual window that fits every consumer's kernel.
    pub window: (u32, u32),
    /// Virtual rows and columns of *outputs* that one tile computes. More rows than the outputs
    /// have: the maps of all bundles are stacked, and tiles cut the stack.
    pub tile: (u32, u32),
    /// Flat positions from one virtual row of a tile to the next.
    pub row_stride: u32,
    /// Flat positions reserved per block; a block is one tile of one bundle.
    pub block: u32,
    /// Blocks per ciphertext: tiles in row-major order, bundles innermost (a stack's tiles are of
    /// all bundles).
    pub blocks: u32,
}

/// Packing of the answer to one convolution term.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OutputPacking {
    /// Layer of the circuit.
    pub layer: u32,
    /// Term of the layer.
    pub term: u32,
    /// Entry of [`Plan::uploads`] it reads.
    pub upload: u32,
    /// `2^merge` output channels are merged into one ciphertext by automorphisms; `2^merge <=
    /// group`.
    pub merge: u32,
    /// Groups of `2^merge` output channels whose results lie behind each other in one ciphertext,
    /// at distance `block` (1 unless `blocks` is 1: the positions outside the input's block must
    /// then be exact zeros).
    pub output_blocks: u32,
}
