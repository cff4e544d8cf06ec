//! The trained network: a residual CIFAR network described by its nodes, and its forward pass in burn.
//!
//! Every convolution is followed by a batch norm, every activation is *masked*: each position (channel and pixel) is a
//! ReLU, the identity, or its channel's quadratic. Positions are constants of a step; the quadratics are trained.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use pi_ir::graph::ActivationKind;
use rand_core::RngCore;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Array, Arrays};
use crate::data::{CHANNELS, CLASSES, SIDE};
use crate::kernels;

/// Shape of the residual network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// First convolution.
    pub stem: Stem,
    /// Groups of basic blocks, in order.
    pub stages: Vec<Stage>,
}

/// First convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stem {
    /// Output channels.
    pub channels: usize,
    /// Side of the (odd) kernel.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
}

/// Group of basic blocks with one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Output channels.
    pub channels: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Number of blocks.
    pub blocks: usize,
}

/// One operation; shapes are `[c, h, w]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The normalised image.
    Input,
    /// Convolution without bias, padded by half the kernel.
    Conv {
        /// Input channels.
        c_in: usize,
        /// Side of the kernel.
        kernel: usize,
        /// Stride.
        stride: usize,
    },
    /// Batch norm.
    Norm,
    /// Masked activation.
    Activation,
    /// Sum of two tensors.
    Add,
    /// Mean over each whole map.
    GlobalPool,
    /// Classifier with bias.
    Dense {
        /// Inputs.
        inputs: usize,
    },
}

/// A named operation, the nodes it reads, and the shape of its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique name; parameters are called `<name>.<what>`.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Indices of earlier nodes.
    pub inputs: Vec<usize>,
    /// `[c, h, w]` of the result.
    pub shape: [usize; 3],
}

/// Nodes in topological order; the last gives the logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The nodes.
    pub nodes: Vec<Node>,
}

/// Kind of each position, by activation site.
pub type Masks = BTreeMap<String, Vec<ActivationKind>>;

/// Which statistics normalise, and which leaves collect gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics; gradients of the parameters.
    Train,
    /// Running statistics; no gradient.
    Evaluate,
    /// Batch statistics; gradients of the activation coefficients of each position.
    Score,
}

/// What a forward pass leaves behind.
pub struct Pass {
    /// `[n, classes]`.
    pub logits: Tensor<2>,
    /// Leaf of each parameter, by name.
    pub leaves: BTreeMap<String, Tensor<1>>,
    /// Batch moments of each norm, by node name (unless evaluating).
    pub moments: BTreeMap<String, Tensor<2>>,
    /// `[4, c, h, w]` coefficients of each site (when scoring).
    pub coefficients: BTreeMap<String, Tensor<4>>,
}

/// Everything the forward pass reads besides the image.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Trained parameters.
    pub parameters: Arrays,
    /// Running statistics: `<norm>.moments`, `[2, c]`.
    pub buffers: Arrays,
    /// Activation kinds.
    pub masks: Masks,
    /// Penalty on large inputs of activations.
    pub range: RangePenalty,
}

/// Penalty on the inputs of activations: `weight` times the squared excess of `|z|` over `radius`, summed over
/// positions. Polynomials need it to stay stable, and the compiled network's fixed point to stay precise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangePenalty {
    /// Where it begins.
    pub radius: f32,
    /// Its strength; 0 for none.
    pub weight: f32,
}

impl Network {
    /// Builds the nodes.
    ///
    /// # Errors
    /// A size of zero, an even kernel, or more strides than the image has room for.
    pub fn new(config: &NetworkConfig) -> Result<Self> {
        let mut nodes = Builder { nodes: Vec::new() };
        let stem = config.stem;
        ensure!(
            stem.kernel % 2 == 1,
            "network.stem.kernel is {}, must be odd",
            stem.kernel
        );
        let input = nodes.push("input", Op::Input, vec![], [CHANNELS, SIDE, SIDE]);
        let norm = nodes.conv_norm("stem", input, stem.channels, stem.kernel, stem.stride)?;
        let mut x = nodes.activation("stem.act", norm);
        for (s, stage) in config.stages.iter().enumerate() {
            for block in 0..stage.blocks {
                let name = format!("stage{}.block{}", s + 1, block + 1);
                let stride = if block == 0 { stage.stride } else { 1 };
                let a = nodes.conv_norm(&format!("{name}.a"), x, stage.channels, 3, stride)?;
                let a = nodes.activation(&format!("{name}.a.act"), a);
                let b = nodes.conv_norm(&format!("{name}.b"), a, stage.channels, 3, 1)?;
                let shortcut = if stride == 1 && nodes.nodes[x].shape[0] == stage.channels {
                    x
                } else {
                    nodes.conv_norm(&format!("{name}.shortcut"), x, stage.channels, 1, stride)?
                };
                let shape = nodes.nodes[b].shape;
                let sum = nodes.push(&format!("{name}.add"), Op::Add, vec![b, shortcut], shape);
                x = nodes.activation(&format!("{name}.act"), sum);
            }
        }
        let inputs = nodes.nodes[x].shape[0];
        let pooled = nodes.push("pool", Op::GlobalPool, vec![x], [inputs, 1, 1]);
        nodes.push(
            "dense",
            Op::Dense { inputs },
            vec![pooled],
            [CLASSES.len(), 1, 1],
        );
        Ok(Self { nodes: nodes.nodes })
    }

    /// Names and shapes of the activation sites, in order.
    pub fn sites(&self) -> impl Iterator<Item = (&str, [usize; 3])> {
        self.nodes
            .iter()
            .filter(|node| node.op == Op::Activation)
            .map(|node| (node.name.as_str(), node.shape))
    }

    /// Multiplications by weights for one image.
    pub fn multiply_adds(&self) -> usize {
        self.nodes
            .iter()
            .map(|node| match node.op {
                Op::Conv { c_in, kernel, .. } => {
                    node.shape.iter().product::<usize>() * c_in * kernel * kernel
                }
                Op::Dense { inputs } => inputs * node.shape[0],
                _ => 0,
            })
            .sum()
    }

    /// Random weights (He), unit norms, all positions ReLU.
    pub fn initialise(&self, range: RangePenalty, rng: &mut impl RngCore) -> State {
        let mut state = State {
            parameters: Arrays::new(),
            buffers: Arrays::new(),
            masks: Masks::new(),
            range,
        };
        for node in &self.nodes {
            let c = node.shape[0];
            let mut put = |what: &str, array| {
                state
                    .parameters
                    .insert(format!("{}.{what}", node.name), array)
            };
            match node.op {
                Op::Conv { c_in, kernel, .. } => {
                    let fan_in = c_in * kernel * kernel;
                    put(
                        "weight",
                        normal(
                            &[c, c_in, kernel, kernel],
                            (2.0 / fan_in as f32).sqrt(),
                            rng,
                        ),
                    );
                }
                Op::Norm => {
                    put("gamma", Array::filled(&[c], 1.0));
                    put("beta", Array::filled(&[c], 0.0));
                    let moments = [vec![0.0; c], vec![1.0; c]].concat();
                    state.buffers.insert(
                        format!("{}.moments", node.name),
                        Array {
                            shape: vec![2, c],
                            values: moments,
                        },
                    );
                }
                Op::Activation => {
                    put(
                        "poly",
                        Array {
                            shape: vec![3, c],
                            values: [vec![0.0; c], vec![1.0; c], vec![0.0; c]].concat(),
                        },
                    );
                    let count = node.shape.iter().product();
                    state
                        .masks
                        .insert(node.name.clone(), vec![ActivationKind::Relu; count]);
                }
                Op::Dense { inputs } => {
                    put(
                        "weight",
                        normal(&[c, inputs], (1.0 / inputs as f32).sqrt(), rng),
                    );
                    put("bias", Array::filled(&[c], 0.0));
                }
                Op::Input | Op::Add | Op::GlobalPool => {}
            }
        }
        state
    }

    /// Runs the network on `[n, 3, 32, 32]` normalised pixels, showing each node's output to `observe`.
    pub fn forward(
        &self,
        state: &State,
        pixels: Vec<f32>,
        mode: Mode,
        device: &Device,
        mut observe: impl FnMut(&Node, &Tensor<4>),
    ) -> Pass {
        let device = if mode == Mode::Evaluate {
            device.clone()
        } else {
            device.clone().autodiff()
        };
        let mut pass = Leaves {
            state,
            mode,
            device: &device,
            leaves: BTreeMap::new(),
        };
        let (mut moments, mut coefficients) = (BTreeMap::new(), BTreeMap::new());
        let n = pixels.len() / (CHANNELS * SIDE * SIDE);
        let mut pixels = Some(pixels);
        let mut values: Vec<Tensor<4>> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let input = |i: usize| values[node.inputs[i]].clone();
            let [c, h, w] = node.shape;
            let value = match node.op {
                Op::Input => {
                    let pixels = pixels.take().expect("a network has one input node");
                    Tensor::from_data(TensorData::new(pixels, [n, c, h, w]), &device)
                }
                Op::Conv {
                    c_in,
                    kernel,
                    stride,
                } => {
                    let weight = pass.leaf(node, "weight").reshape([c, c_in, kernel, kernel]);
                    kernels::conv2d(input(0), weight, stride, kernel / 2)
                }
                Op::Norm => {
                    let statistics = if mode != Mode::Evaluate {
                        let batch = kernels::moments(input(0));
                        moments.insert(node.name.clone(), batch.clone());
                        batch
                    } else {
                        let running = &state.buffers[&format!("{}.moments", node.name)].values;
                        Tensor::from_data(TensorData::new(running.clone(), [2, c]), &device)
                    };
                    kernels::normalise(
                        input(0),
                        statistics,
                        pass.leaf(node, "gamma"),
                        pass.leaf(node, "beta"),
                    )
                }
                Op::Activation => {
                    let mut k = pass.coefficients(node);
                    if mode == Mode::Score {
                        k = k.detach().require_grad();
                        coefficients.insert(node.name.clone(), k.clone());
                    }
                    let weight = if mode == Mode::Train {
                        state.range.weight
                    } else {
                        0.0
                    };
                    kernels::masked(input(0), k, state.range.radius, weight)
                }
                Op::Add => input(0) + input(1),
                Op::GlobalPool => {
                    let [_, c, h, w] = input(0).dims();
                    input(0)
                        .reshape([n, c, h * w])
                        .mean_dim(2)
                        .reshape([n, c, 1, 1])
                }
                Op::Dense { inputs } => {
                    let weight = pass.leaf(node, "weight").reshape([c, inputs]);
                    let y = input(0).reshape([n, inputs]).matmul(weight.transpose());
                    (y + pass.leaf(node, "bias").reshape([1, c])).reshape([n, c, 1, 1])
                }
            };
            observe(node, &value);
            values.push(value);
        }
        let logits = values
            .pop()
            .expect("a network has at least an input and an output");
        let classes = logits.dims()[1];
        Pass {
            logits: logits.reshape([n, classes]),
            leaves: pass.leaves,
            moments,
            coefficients,
        }
    }

    /// Position counts: `(relu, polynomial, identity)`.
    pub fn counts(masks: &Masks) -> (usize, usize, usize) {
        let count = |kind| masks.values().flatten().filter(|k| **k == kind).count();
        (
            count(ActivationKind::Relu),
            count(ActivationKind::Polynomial),
            count(ActivationKind::Identity),
        )
    }
}

impl State {
    /// Moves the running statistics towards a batch's `moments` by `rate`.
    pub fn track(&mut self, moments: BTreeMap<String, Tensor<2>>, rate: f32) {
        for (norm, moments) in moments {
            let batch: Vec<f32> = moments.into_data().try_into_vec().expect("moments are f32");
            let running = self
                .buffers
                .get_mut(&format!("{norm}.moments"))
                .expect("one buffer a norm");
            for (r, b) in running.values.iter_mut().zip(batch) {
                *r += rate * (b - *r);
            }
        }
    }
}

/// Parameters of one pass as tensors.
struct Leaves<'a> {
    state: &'a State,
    mode: Mode,
    device: &'a Device,
    leaves: BTreeMap<String, Tensor<1>>,
}

impl Leaves<'_> {
    fn leaf(&mut self, node: &Node, what: &str) -> Tensor<1> {
        let name = format!("{}.{what}", node.name);
        let values = self.state.parameters[&name].values.clone();
        let count = values.len();
        let leaf = Tensor::<1>::from_data(TensorData::new(values, [count]), self.device);
        if self.mode != Mode::Train {
            return leaf;
        }
        let leaf = leaf.require_grad();
        self.leaves.insert(name, leaf.clone());
        leaf
    }

    /// `[4, c, h, w]` coefficients of `relu(z)`, `z^2`, `z` and 1.
    fn coefficients(&mut self, node: &Node) -> Tensor<4> {
        let [c, h, w] = node.shape;
        let kinds = &self.state.masks[&node.name];
        let plane = |kind| {
            kinds
                .iter()
                .map(|k| f32::from(u8::from(*k == kind)))
                .collect::<Vec<f32>>()
        };
        let zeros = vec![0.0f32; kinds.len()];
        let fixed = [
            plane(ActivationKind::Relu),
            zeros.clone(),
            plane(ActivationKind::Identity),
            zeros,
        ]
        .concat();
        let fixed = Tensor::<4>::from_data(TensorData::new(fixed, [4, c, h, w]), self.device);
        if !kinds.contains(&ActivationKind::Polynomial) {
            return fixed;
        }
        let mask = TensorData::new(plane(ActivationKind::Polynomial), [1, c, h, w]);
        let mask = Tensor::<4>::from_data(mask, self.device);
        let poly = self.leaf(node, "poly").reshape([3, c, 1, 1]);
        let none = Tensor::<4>::zeros([1, c, 1, 1], self.device);
        fixed + Tensor::cat(vec![none, poly], 0) * mask
    }
}

struct Builder {
    nodes: Vec<Node>,
}

impl Builder {
    fn push(&mut self, name: &str, op: Op, inputs: Vec<usize>, shape: [usize; 3]) -> usize {
        self.nodes.push(Node {
            name: name.to_owned(),
            op,
            inputs,
            shape,
        });
        self.nodes.len() - 1
    }

    fn conv_norm(
        &mut self,
        name: &str,
        input: usize,
        channels: usize,
        kernel: usize,
        stride: usize,
    ) -> Result<usize> {
        let [c_in, h, w] = self.nodes[input].shape;
        ensure!(
            channels > 0 && stride > 0,
            "network: {name} needs at least one channel and a stride of at least 1"
        );
        ensure!(
            h > 1 || stride == 1,
            "network: {name} would stride over a map of one pixel"
        );
        let shape = [channels, (h - 1) / stride + 1, (w - 1) / stride + 1];
        let conv = self.push(
            &format!("{name}.conv"),
            Op::Conv {
                c_in,
                kernel,
                stride,
            },
            vec![input],
            shape,
        );
        Ok(self.push(&format!("{name}.norm"), Op::Norm, vec![conv], shape))
    }

    fn activation(&mut self, name: &str, input: usize) -> usize {
        let shape = self.nodes[input].shape;
        self.push(name, Op::Activation, vec![input], shape)
    }
}

fn normal(shape: &[usize], deviation: f32, rng: &mut impl RngCore) -> Array {
    let unit = |rng: &mut dyn RngCore| (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
    let count: usize = shape.iter().product();
    let values = (0..count)
        .map(|_| {
            // Box and Muller; the second of each pair is not used.
            let (radius, angle) = (unit(rng), unit(rng));
            let z = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
            z as f32 * deviation
        })
        .collect();
    Array {
        shape: shape.to_vec(),
        values,
    }
}
