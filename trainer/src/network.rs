//! The trained networks: nodes in topological order ([`Network`]), the usual architectures by
//! their configuration ([`NetworkConfig`]), the tensors on the device ([`state`]) and their names
//! ([`parameter`]), the functions of activation sites ([`site_function`]) and the polynomials that
//! start near ReLU ([`approximation`]), and the forward pass ([`forward`]).

use std::collections::BTreeMap;

use pi_ir::graph::ActivationKind;

pub mod approximation;
mod build;
mod config;
pub mod forward;
mod initialise;
pub mod parameter;
pub mod site_function;
pub mod state;

pub use approximation::DropIn;
pub use config::{Initial, KernelRule, Kind, NetworkConfig, PolynomialKernel, Stage, Stem};
pub use forward::{EXTENT_RATE, Mode, Pass, Request, Shown};
pub use parameter::{Buffer, Parameter};
pub use site_function::{Keep, Replacement, SiteFunction, Substitute};
pub use state::{Selection, State};

/// An operation; shapes are `[c, h, w]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// The normalised image.
    Input,
    /// Convolution with zeros around.
    Conv {
        /// Input channels.
        c_in: usize,
        /// Side of the kernel.
        kernel: usize,
        /// Stride.
        stride: usize,
        /// Zeros on each side.
        padding: usize,
        /// True if it has a bias (only where no norm follows).
        bias: bool,
    },
    /// The polynomial kernel of the convolution before it: `a (z + c)^2`, or the convolution
    /// itself.
    Kernel {
        /// True if `a` is a positive parameter (R-PKN), false if it is one (PKN).
        scaled: bool,
    },
    /// Batch norm.
    Norm,
    /// An activation; what it computes is the state's, see [`SiteFunction`].
    Activation,
    /// Sum of two tensors.
    Add,
    /// Mean over windows as far apart as they are wide; rows and columns that fill no window are
    /// dropped.
    AvgPool {
        /// Side of the window.
        window: usize,
    },
    /// Classifier with bias, on a flattened tensor.
    Dense {
        /// Inputs.
        inputs: usize,
        /// Factor of the product with the weights, over the number of inputs; 1 if none.
        scale: Option<f32>,
    },
}

/// A named operation, the nodes it reads, and the shape of its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique name; tensors are called `<name>.<what>`, see [`parameter`].
    pub name: String,
    /// The operation.
    pub op: Op,
    /// Indices of earlier nodes.
    pub inputs: Vec<usize>,
    /// `[c, h, w]` of the result.
    pub shape: [usize; 3],
}

impl Op {
    /// What the classifier's product with its weights is multiplied by; 1 for other operations.
    pub fn logit_factor(&self) -> f32 {
        match self {
            Op::Dense {
                inputs,
                scale: Some(scale),
            } => scale / *inputs as f32,
            _ => 1.0,
        }
    }
}

impl Node {
    /// Elements of the result for one image.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Nodes in topological order; the first is the image, the last gives the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Starting weights of the convolutions.
    pub initial: Initial,
}

/// Kind of each position, by activation site.
pub type Masks = BTreeMap<String, Vec<ActivationKind>>;

/// Positions of a network by what they compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// ReLUs.
    pub relus: usize,
    /// Polynomials, as the exported graph has them (a quartic is three quadratics).
    pub polynomials: usize,
    /// Identities.
    pub identities: usize,
}

impl Network {
    /// Names and shapes of the activation sites, in order.
    pub fn sites(&self) -> impl Iterator<Item = (&str, [usize; 3])> {
        self.nodes
            .iter()
            .filter(|node| node.op == Op::Activation)
            .map(|node| (node.name.as_str(), node.shape))
    }

    /// Activations of one image, whatever stands at their sites.
    pub fn positions(&self) -> usize {
        self.sites()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// Index of the named node.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Multiplications by weights for one image, those on padding included, as papers count them.
    pub fn multiply_adds(&self) -> usize {
        self.nodes
            .iter()
            .map(|node| match node.op {
                Op::Conv { c_in, kernel, .. } => node.elements() * c_in * kernel * kernel,
                Op::Dense { inputs, .. } => inputs * node.shape[0],
                _ => 0,
            })
            .sum()
    }

    /// Layers in the sense of QuaIL (arXiv 2107.12342): ranges of nodes that end with an activation
    /// site, the last one with the logits.
    pub fn layers(&self) -> Vec<std::ops::Range<usize>> {
        let mut start = 0;
        let mut layers = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if node.op == Op::Activation || index + 1 == self.nodes.len() {
                layers.push(start..index + 1);
                start = index + 1;
            }
        }
        layers
    }

    /// Positions by kind.
    pub fn counts(&self, state: &State) -> Counts {
        let mut counts = Counts::default();
        for node in &self.nodes {
            match node.op {
                Op::Kernel { .. } => counts.polynomials += node.elements(),
                Op::Activation => match state.functions[&node.name] {
                    SiteFunction::Masked => {
                        for kind in &state.masks[&node.name] {
                            *match kind {
                                ActivationKind::Relu => &mut counts.relus,
                                ActivationKind::Polynomial => &mut counts.polynomials,
                                ActivationKind::Identity => &mut counts.identities,
                            } += 1;
                        }
                    }
                    SiteFunction::Quartic => counts.polynomials += 3 * node.elements(),
                    SiteFunction::HerPn | SiteFunction::MinMax { .. } => {
                        counts.polynomials += node.elements()
                    }
                },
                _ => {}
            }
        }
        counts
    }
}
