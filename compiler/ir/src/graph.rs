//! The float network as a trainer leaves it: a list of nodes in topological order.

use crate::shape::{Padding, Shape};
use serde::{Deserialize, Serialize};

/// Index of a node in [`Graph::nodes`]; a node reads only nodes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// A float network. Node 0 is the input; the last node is the output (logits, `[classes, 1, 1]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// Name of the network, as users see it.
    pub name: String,
    /// Per-channel mean subtracted from pixels scaled to `[0, 1]`.
    pub mean: Vec<f32>,
    /// Per-channel deviation that divides them afterwards.
    pub std: Vec<f32>,
    /// Class names, in the order of the logits (may be empty).
    pub classes: Vec<String>,
    /// The nodes, in topological order.
    pub nodes: Vec<Node>,
}

/// One operation with its inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Name used in messages; unique in the graph.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// The nodes it reads: none for the input, two for [`Op::Add`], one for everything else.
    pub inputs: Vec<NodeId>,
}

/// An operation on tensors of [`Shape`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// The image, normalised.
    Input {
        /// Shape of the image.
        shape: Shape,
    },
    /// Cross-correlation, as deep-learning frameworks define `conv2d`.
    Conv2d {
        /// `[out][in][kernel_h][kernel_w]`, row-major.
        weight: Vec<f32>,
        /// One per output channel, or empty.
        bias: Vec<f32>,
        /// Output channels.
        out_channels: u32,
        /// Rows and columns of the kernel.
        kernel: (u32, u32),
        /// Vertical and horizontal stride.
        stride: (u32, u32),
        /// Zeros around the input.
        padding: Padding,
    },
    /// `y = W x + b` on a flattened tensor `[n, 1, 1]`.
    Dense {
        /// `[out][in]`, row-major.
        weight: Vec<f32>,
        /// One per output, or empty.
        bias: Vec<f32>,
        /// Outputs.
        out: u32,
    },
    /// `gamma (x - mean) / sqrt(var + eps) + beta`, per channel, with running statistics.
    BatchNorm {
        /// Scale.
        gamma: Vec<f32>,
        /// Shift.
        beta: Vec<f32>,
        /// Running mean.
        mean: Vec<f32>,
        /// Running variance.
        var: Vec<f32>,
        /// Added to the variance.
        eps: f32,
    },
    /// Element-wise sum of two tensors of equal shape.
    Add,
    /// Mean over windows; output rows and columns are rounded down, nothing is padded.
    AvgPool {
        /// Rows and columns of the window.
        kernel: (u32, u32),
        /// Vertical and horizontal stride.
        stride: (u32, u32),
    },
    /// `[c, h, w] -> [c h w, 1, 1]`, channel-major.
    Flatten,
    /// A kind per element; polynomial elements use their channel's coefficients.
    Activation {
        /// One kind per element `[c][h][w]`.
        kinds: Vec<ActivationKind>,
        /// Per channel `(a, b, c)` of `a x^2 + b x + c`; empty when no element is polynomial.
        coefficients: Vec<[f32; 3]>,
    },
}

/// What one element of an activation computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ActivationKind {
    /// `max(x, 0)`.
    Relu,
    /// `x`: a linearised ReLU.
    Identity,
    /// `a x^2 + b x + c` with its channel's coefficients.
    Polynomial,
}
