//! The forward pass: one walk over the nodes, for training, evaluation and the ranking of
//! activations.

mod activation;

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use burn::tensor::module::avg_pool2d;
use burn::tensor::ops::AvgPoolOptions;

use super::{Buffer, Network, Node, Op, Parameter, SiteFunction, State};
use crate::kernels::{self, Limits, Penalty, Window};
use crate::tensors::Tensors;

/// Guards the division by a channel's extent.
pub const EXTENT_EPSILON: f32 = 1e-5;

/// Weight of a batch in the min-max norms' smoothed extents.
pub const EXTENT_RATE: f32 = 0.1;

/// Kind of a forward pass: statistics that normalise, and leaves that collect gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics; gradients of the parameters.
    Train,
    /// Running statistics; no gradient.
    Evaluate,
    /// Batch statistics; gradients of the activation coefficients of each position.
    Score,
}

/// Task of a forward pass.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Statistics and gradients.
    pub mode: Mode,
    /// Penalty on the inputs of activations and guard of their polynomials, when training.
    pub limits: Limits,
    /// Share of ReLU in every position that is none, when training: `m relu(z) + (1 - m) f(z)`.
    pub relu_share: f32,
    /// True if the penalty's value is wanted too.
    pub measure_penalty: bool,
    /// Nodes before this one are frozen: running statistics, no gradient.
    pub train_from: usize,
    /// Parameters that collect gradients, by name; all if none.
    pub trains: Option<&'a dyn Fn(&str) -> bool>,
    /// Last node to compute; the logits if none.
    pub until: Option<usize>,
    /// Weight of this batch in the min-max norms' smoothed extents.
    pub smoothing: f32,
}

impl Request<'_> {
    /// A pass of this mode over the whole network.
    pub fn of(mode: Mode) -> Self {
        Self {
            mode,
            limits: Limits::NONE,
            relu_share: 0.0,
            measure_penalty: false,
            train_from: 0,
            trains: None,
            until: None,
            smoothing: EXTENT_RATE,
        }
    }
}

/// Results of a forward pass.
pub struct Pass {
    /// `[n, c, h, w]` of the last node computed: `[n, classes, 1, 1]` if that gives the logits.
    pub output: Tensor<4>,
    /// Leaf of each parameter that collects a gradient, by name.
    pub leaves: Tensors,
    /// The batch's own statistics, by the name of their buffer (unless evaluating).
    pub statistics: Tensors,
    /// Factors of the selection's positions, by the name of their buffer, to replace the old ones.
    pub kept: Tensors,
    /// `[4, c, h, w]` coefficients of each masked site (when scoring).
    pub coefficients: BTreeMap<String, Tensor<4>>,
    /// The penalty's value at each site that has it (on request), without autodiff.
    pub penalties: Vec<Tensor<1>>,
}

impl Pass {
    /// `[n, classes]`.
    pub fn logits(&self) -> Tensor<2> {
        let [n, c, h, w] = self.output.dims();
        self.output.clone().reshape([n, c * h * w])
    }
}

/// Nodes that an observer is shown. The fewer, the more are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// None.
    Nothing,
    /// Those that a polynomial or an activation computes, with their inputs.
    Sites,
    /// All.
    Everything,
}

impl Network {
    /// Runs the network on normalised pixels `[n, c, h, w]` (without autodiff).
    pub fn forward(&self, state: &State, pixels: Tensor<4>, request: Request<'_>) -> Pass {
        self.observe(state, pixels, request, (Shown::Nothing, |_, _, _| {}))
    }

    /// Runs the network as [`Self::forward`] does, and shows nodes with their inputs and their
    /// output to `observe`.
    pub fn observe(
        &self,
        state: &State,
        pixels: Tensor<4>,
        request: Request<'_>,
        (shown, mut observe): (Shown, impl FnMut(&Node, &[Tensor<4>], &Tensor<4>)),
    ) -> Pass {
        let last = request.until.unwrap_or(self.nodes.len() - 1);
        let mut uses = vec![0usize; last + 1];
        for node in &self.nodes[..=last] {
            node.inputs.iter().for_each(|i| uses[*i] += 1);
        }
        // The result is read once more, by the caller.
        uses[last] += 1;
        let mut walk = Walk {
            state,
            request,
            frozen: true,
            leaves: Tensors::new(),
            statistics: Tensors::new(),
            kept: Tensors::new(),
            coefficients: BTreeMap::new(),
            penalties: Vec::new(),
        };
        // Nodes whose only reader, the next one, computes them with itself in one pass.
        let joined = |index: usize| {
            index < last
                && uses[index] == 1
                && self.nodes[index + 1].inputs == [index]
                && request.train_from != index + 1
                && walk.joins(&self.nodes[index], &self.nodes[index + 1], shown)
        };
        let joined: Vec<bool> = (0..=last).map(joined).collect();
        let mut values: Vec<Option<Tensor<4>>> = Vec::with_capacity(last + 1);
        for (index, node) in self.nodes[..=last].iter().enumerate() {
            walk.frozen = request.mode == Mode::Evaluate || index < request.train_from;
            let mut inputs: Vec<Tensor<4>> = Vec::with_capacity(2);
            for i in &node.inputs {
                uses[*i] -= 1;
                // A map is dropped after its last reader, so that a wide network does not keep all
                // of them.
                let value = if uses[*i] == 0 {
                    values[*i].take()
                } else {
                    values[*i].clone()
                };
                let value = value.expect("a node's inputs are computed and kept until read");
                // The frozen nodes compute without autodiff: where they end, their values enter the
                // graph as constants.
                let plain = request.mode == Mode::Evaluate || *i < request.train_from;
                inputs.push(if plain && !walk.frozen {
                    Tensor::from_inner(value)
                } else {
                    value
                });
            }
            if joined[index] {
                values.push(inputs.pop());
                continue;
            }
            let value = match node.op {
                Op::Input => walk.lift(pixels.clone()),
                _ if joined[index - 1] => {
                    walk.compute_both(&self.nodes[index - 1], node, inputs[0].clone())
                }
                _ => walk.compute(node, &inputs),
            };
            let site = matches!(node.op, Op::Kernel { .. } | Op::Activation);
            if shown == Shown::Everything || shown == Shown::Sites && site {
                observe(node, &inputs, &value);
            }
            values.push(Some(value));
        }
        let output = values.pop().flatten().expect("the last node is kept");
        Pass {
            output,
            leaves: walk.leaves,
            statistics: walk.statistics,
            kept: walk.kept,
            coefficients: walk.coefficients,
            penalties: walk.penalties,
        }
    }
}

/// A pass under way.
struct Walk<'a> {
    state: &'a State,
    request: Request<'a>,
    /// True if the node at hand uses running statistics and takes no gradient.
    frozen: bool,
    leaves: Tensors,
    statistics: Tensors,
    kept: Tensors,
    coefficients: BTreeMap<String, Tensor<4>>,
    penalties: Vec<Tensor<1>>,
}

impl Walk<'_> {
    fn compute(&mut self, node: &Node, inputs: &[Tensor<4>]) -> Tensor<4> {
        let x = inputs[0].clone();
        let n = x.dims()[0];
        let [c, _, _] = node.shape;
        match node.op {
            Op::Input => unreachable!("the image has no inputs and is not computed"),
            Op::Conv { .. } => self.conv(node, x, false),
            Op::Kernel { scaled } => {
                let shift = self.leaf(node, Parameter::Shift).reshape([1, c, 1, 1]);
                let scale = if scaled {
                    self.leaf(node, Parameter::LogScale).exp()
                } else {
                    Tensor::ones_like(&shift.clone().reshape([c]))
                };
                let scale = scale.reshape([1, c, 1, 1]);
                // a (z + s)^2 = a z^2 + 2 a s z + a s^2
                let linear = (scale.clone() * shift.clone()).mul_scalar(2.0);
                let constant = scale.clone() * shift.clone() * shift;
                self.quadratic(x, scale, linear, constant)
            }
            Op::Norm => {
                let (moments, [gamma, beta]) = self.norm(node, &x);
                kernels::normalise(x, moments, gamma, beta)
            }
            Op::Activation => self.activation(node, x),
            Op::Add => kernels::add(x, inputs[1].clone()),
            Op::AvgPool { window } => {
                let [_, _, h, w] = x.dims();
                if h == window && w == window {
                    x.reshape([n, c, h * w]).mean_dim(2).reshape([n, c, 1, 1])
                } else {
                    avg_pool2d(x, AvgPoolOptions::new([window; 2]))
                }
            }
            Op::Dense { inputs, .. } => {
                let weight = self.leaf(node, Parameter::Weight).reshape([c, inputs]);
                let y = x.reshape([n, inputs]).matmul(weight.transpose());
                let y = y.mul_scalar(node.op.logit_factor());
                (y + self.leaf(node, Parameter::Bias).reshape([1, c])).reshape([n, c, 1, 1])
            }
        }
    }

    /// True if a node and the next, its only reader, are computed in one pass.
    fn joins(&self, node: &Node, next: &Node, shown: Shown) -> bool {
        match (node.op, next.op) {
            (Op::Conv { bias, .. }, Op::AvgPool { window: 2 }) => {
                let [h, w] = [node.shape[1], node.shape[2]];
                shown != Shown::Everything && !bias && pools(node.op, [h, w])
            }
            (Op::Norm, Op::Activation) => {
                shown == Shown::Nothing
                    && !self.request.measure_penalty
                    && self.state.functions[&next.name] == SiteFunction::Masked
            }
            _ => false,
        }
    }

    /// Two nodes that [`Self::joins`] is true of.
    fn compute_both(&mut self, node: &Node, next: &Node, x: Tensor<4>) -> Tensor<4> {
        match node.op {
            Op::Norm => {
                let (moments, pair) = self.norm(node, &x);
                let coefficients = self.coefficients(next);
                let limits = self.limits();
                kernels::normalise_masked(x, moments, pair, coefficients, limits)
            }
            _ => self.conv(node, x, true),
        }
    }

    fn conv(&mut self, node: &Node, x: Tensor<4>, pooled: bool) -> Tensor<4> {
        let Op::Conv {
            c_in,
            kernel,
            stride,
            padding,
            bias,
        } = node.op
        else {
            unreachable!("asked of convolutions alone")
        };
        let c = node.shape[0];
        let weight = self.leaf(node, Parameter::Weight);
        let weight = weight.reshape([c, c_in, kernel, kernel]);
        let window = Window {
            stride,
            padding,
            pooled,
        };
        let y = kernels::conv2d(x, weight, window);
        if bias {
            y + self.leaf(node, Parameter::Bias).reshape([1, c, 1, 1])
        } else {
            y
        }
    }

    /// Moments, scale and shift of a norm.
    fn norm(&mut self, node: &Node, x: &Tensor<4>) -> (Tensor<2>, [Tensor<1>; 2]) {
        let moments = self.moments(Buffer::Moments.of(&node.name), node.shape[0], || {
            kernels::moments(x.clone())
        });
        let pair = [Parameter::Gamma, Parameter::Beta].map(|what| self.leaf(node, what));
        (moments, pair)
    }

    /// `a z^2 + b z + c` with `[1, c, 1, 1]` coefficients, and the penalty on `z`.
    fn quadratic(&mut self, z: Tensor<4>, a: Tensor<4>, b: Tensor<4>, c: Tensor<4>) -> Tensor<4> {
        let limits = self.measured_limits(&z);
        quadratic(z, [a, b, c], limits)
    }

    /// The limits of an activation's input.
    fn limits(&self) -> Limits {
        let limits = self.request.limits;
        match self.request.mode {
            Mode::Evaluate | Mode::Score => Limits::NONE,
            Mode::Train if self.frozen => {
                let penalty = Penalty::None;
                Limits { penalty, ..limits }
            }
            Mode::Train => limits,
        }
    }

    /// [`Self::limits`]; the penalty's value is noted if it is wanted.
    fn measured_limits(&mut self, z: &Tensor<4>) -> Limits {
        let limits = self.limits();
        if self.request.measure_penalty {
            self.penalties
                .extend(limits.penalty.value(z.clone().inner()));
        }
        limits
    }

    /// `[2, channels]` moments: the running ones of a frozen node, else the batch's, which are
    /// noted.
    fn moments(
        &mut self,
        buffer: String,
        channels: usize,
        batch: impl FnOnce() -> Tensor<2>,
    ) -> Tensor<2> {
        if self.frozen {
            return self.state.buffers[&buffer].clone().reshape([2, channels]);
        }
        let moments = batch();
        let own = moments.clone().inner().reshape([2 * channels]);
        self.statistics.insert(buffer, own);
        moments
    }

    /// A parameter of the node, as a leaf if it collects a gradient.
    fn leaf(&mut self, node: &Node, what: Parameter) -> Tensor<1> {
        let name = what.of(&node.name);
        let value = self.state.parameters[&name].clone();
        if self.frozen {
            return value;
        }
        let value = Tensor::from_inner(value);
        if self.request.mode != Mode::Train || self.request.trains.is_some_and(|f| !f(&name)) {
            return value;
        }
        let leaf = value.require_grad();
        self.leaves.insert(name, leaf.clone());
        leaf
    }

    /// A constant, on the autodiff device where the node takes gradients.
    fn lift<const D: usize>(&self, tensor: Tensor<D>) -> Tensor<D> {
        if self.frozen {
            tensor
        } else {
            Tensor::from_inner(tensor)
        }
    }
}

/// `a z^2 + b z + c` with `[1, c, 1, 1]` coefficients.
fn quadratic(z: Tensor<4>, [a, b, c]: [Tensor<4>; 3], limits: Limits) -> Tensor<4> {
    let relu = a.clone().mul_scalar(0.0);
    kernels::masked(z, Tensor::cat(vec![relu, a, b, c], 0), limits)
}

/// True if a 2x2 average pool behind this convolution, with outputs of this height and width, can
/// become part of it.
fn pools(op: Op, [h, w]: [usize; 2]) -> bool {
    match op {
        Op::Conv {
            kernel,
            stride: 1,
            padding,
            ..
        } => kernel % 2 == 1 && padding == kernel / 2 && h >= 2 && w >= 2,
        _ => false,
    }
}
