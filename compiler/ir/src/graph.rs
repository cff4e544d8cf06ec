//! The float network as a trainer leaves it: a list of nodes in topological order.

use crate::circuit::divides;
use crate::preprocessing::Preprocessing;
use crate::shape::{Padding, Shape, Window, windows};
use crate::{limits, wire};
use serde::{Deserialize, Serialize};

/// Index of a node in [`Graph::nodes`]; a node reads only nodes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// A float network. Node 0 is the input; the last node is the output (logits, `[classes, 1, 1]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// Name of the network, as users see it.
    pub name: String,
    /// What is done to the bytes of an image before node 0 gives them out.
    pub preprocessing: Preprocessing,
    /// Class names, in the order of the logits (may be empty).
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::CLASSES }>")]
    pub classes: Vec<String>,
    /// The nodes, in topological order.
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::NODES }>")]
    pub nodes: Vec<Node>,
}

/// One operation with its inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Name used in messages; unique in the graph.
    pub name: String,
    /// Operation of the node.
    pub op: Op,
    /// The nodes it reads: none for the input, two for [`Op::Add`] and [`Op::Sub`], one for
    /// everything else.
    pub inputs: Vec<NodeId>,
    /// Source of its numbers, if it has any.
    pub origin: Origin,
}

/// Source of a node's numbers (weights, biases, norms, coefficients), which tells what publishing
/// them would give away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// Not known: the exporter did not say.
    #[default]
    Unmarked,
    /// A training step changed at least one of them.
    Learned,
    /// Constants, or statistics of training images; no training step changed any of them.
    Statistics,
}

/// An operation on tensors of [`Shape`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// The image, preprocessed.
    Input {
        /// Shape of the image.
        shape: Shape,
    },
    /// Cross-correlation, as deep-learning frameworks define `conv2d`.
    Conv2d {
        /// `[out][in / groups][kernel_h][kernel_w]`, row-major.
        #[serde(with = "wire::f32s")]
        weight: Vec<f32>,
        /// One per output channel, or empty.
        #[serde(with = "wire::f32s")]
        bias: Vec<f32>,
        /// Output channels.
        out_channels: u32,
        /// Groups of channels, as in [`Conv`](crate::Conv).
        groups: u32,
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
        #[serde(with = "wire::f32s")]
        weight: Vec<f32>,
        /// One per output, or empty.
        #[serde(with = "wire::f32s")]
        bias: Vec<f32>,
        /// Outputs.
        out: u32,
    },
    /// `gamma (x - mean) / sqrt(var + eps) + beta`, per channel, with running statistics.
    BatchNorm(BatchNorm),
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
        #[serde(with = "wire::kinds")]
        kinds: Vec<ActivationKind>,
        /// Per channel `(a, b, c)` of `a x^2 + b x + c`; empty when no element is polynomial.
        coefficients: Vec<[f32; 3]>,
    },
    /// Element-wise difference of two tensors of equal shape, the first less the second.
    Sub,
    /// Sums over windows: no more than a choice of rows and columns where windows have one element.
    WindowSum(Window),
}

/// Parameters and running statistics of a batch norm, one number per channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNorm {
    /// Scale.
    #[serde(with = "wire::f32s")]
    pub gamma: Vec<f32>,
    /// Shift.
    #[serde(with = "wire::f32s")]
    pub beta: Vec<f32>,
    /// Running mean.
    #[serde(with = "wire::f32s")]
    pub mean: Vec<f32>,
    /// Running variance.
    #[serde(with = "wire::f32s")]
    pub var: Vec<f32>,
    /// Added to the variance.
    pub eps: f32,
}

impl BatchNorm {
    /// A norm that has seen nothing yet: scale and variance 1, shift and mean 0.
    pub fn new(channels: usize, eps: f32) -> Self {
        BatchNorm {
            gamma: vec![1.0; channels],
            beta: vec![0.0; channels],
            mean: vec![0.0; channels],
            var: vec![1.0; channels],
            eps,
        }
    }
}

/// Function of one element of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ActivationKind {
    /// `max(x, 0)`.
    Relu,
    /// `x`: a linearised ReLU.
    Identity,
    /// `a x^2 + b x + c` with its channel's coefficients.
    Polynomial,
}

impl wire::TwoBits for ActivationKind {
    fn code(self) -> u8 {
        match self {
            ActivationKind::Relu => 0,
            ActivationKind::Identity => 1,
            ActivationKind::Polynomial => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [
            ActivationKind::Relu,
            ActivationKind::Identity,
            ActivationKind::Polynomial,
        ]
        .get(usize::from(code))
        .copied()
    }
}

impl Op {
    /// Number of nodes it reads.
    pub fn arity(&self) -> usize {
        match self {
            Op::Input { .. } => 0,
            Op::Add | Op::Sub => 2,
            _ => 1,
        }
    }

    /// Shape of the result on inputs of these shapes.
    ///
    /// # Errors
    /// In words, if the inputs do not fit the operation.
    pub fn output(&self, inputs: &[Shape]) -> Result<Shape, String> {
        if inputs.len() != self.arity() {
            return Err(format!(
                "reads {} nodes, not {}",
                self.arity(),
                inputs.len()
            ));
        }
        let map = |size: u32, padding, kernel, stride| {
            windows(size, padding, kernel, stride).ok_or_else(|| {
                format!(
                    "a window of {kernel} at stride {stride} does not fit {size} rows or columns \
                     padded by {} and {}",
                    padding.0, padding.1
                )
            })
        };
        match self {
            Op::Input { shape } => Ok(*shape),
            Op::Conv2d {
                out_channels,
                groups,
                ..
            } if !divides(*groups, inputs[0].c) || !divides(*groups, *out_channels) => {
                Err(format!(
                    "{groups} groups do not divide {} channels in and {out_channels} out",
                    inputs[0].c
                ))
            }
            Op::Conv2d {
                out_channels,
                kernel,
                stride,
                padding: p,
                ..
            } => Ok(Shape {
                c: *out_channels,
                h: map(inputs[0].h, (p.top, p.bottom), kernel.0, stride.0)?,
                w: map(inputs[0].w, (p.left, p.right), kernel.1, stride.1)?,
            }),
            Op::Dense { out, .. } if inputs[0].h == 1 && inputs[0].w == 1 => {
                Ok(Shape::new(*out, 1, 1))
            }
            Op::Dense { .. } => Err(format!(
                "reads {}, which must be flattened first",
                inputs[0]
            )),
            Op::Add | Op::Sub if inputs[0] != inputs[1] => {
                Err(format!("adds {} and {}", inputs[0], inputs[1]))
            }
            Op::WindowSum(window) => {
                let sides = [
                    window.kernel.0,
                    window.kernel.1,
                    window.stride.0,
                    window.stride.1,
                ];
                match sides.contains(&0) {
                    true => Err("windows without rows or columns".into()),
                    false => Ok(window.output(inputs[0])),
                }
            }
            Op::AvgPool { kernel, stride } => Ok(Shape {
                c: inputs[0].c,
                h: map(inputs[0].h, (0, 0), kernel.0, stride.0)?,
                w: map(inputs[0].w, (0, 0), kernel.1, stride.1)?,
            }),
            Op::Flatten => {
                let count = u64::from(inputs[0].c) * u64::from(inputs[0].h);
                let count = count.checked_mul(u64::from(inputs[0].w));
                let count = count.and_then(|n| u32::try_from(n).ok());
                let c = count.ok_or_else(|| format!("flattens {}, too large", inputs[0]))?;
                Ok(Shape::new(c, 1, 1))
            }
            Op::Add | Op::Sub | Op::BatchNorm(_) | Op::Activation { .. } => Ok(inputs[0]),
        }
    }
}

impl Graph {
    /// Shape of every node's result.
    ///
    /// # Errors
    /// In words, with the name of the first node whose inputs do not fit it.
    pub fn shapes(&self) -> Result<Vec<Shape>, String> {
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let inputs: Option<Vec<Shape>> = node
                .inputs
                .iter()
                .map(|id| shapes.get(id.0 as usize).copied())
                .collect();
            let inputs = inputs.ok_or_else(|| format!("node {}: reads a later node", node.name))?;
            let shape = node.op.output(&inputs);
            shapes.push(shape.map_err(|why| format!("node {}: {why}", node.name))?);
        }
        Ok(shapes)
    }
}
