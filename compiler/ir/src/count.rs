//! Sizes of networks: multiply-adds, activations, weights.

use crate::circuit::{Circuit, Kind, Layer, Layers, Step, Term};
use crate::graph::{ActivationKind, Graph, Op};
use serde::{Deserialize, Serialize};
use std::iter::Sum;

/// Activations by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activations {
    /// ReLUs.
    pub relu: usize,
    /// Identities.
    pub identity: usize,
    /// Squares; a graph has none.
    pub square: usize,
    /// Polynomials, their coefficients private.
    pub polynomial: usize,
}

impl Activations {
    /// Activations of all kinds.
    pub fn total(&self) -> usize {
        self.relu + self.identity + self.square + self.polynomial
    }

    fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Relu => &mut self.relu,
            Kind::Identity => &mut self.identity,
            Kind::Square => &mut self.square,
            Kind::Polynomial => &mut self.polynomial,
        } += 1;
    }
}

impl Sum for Activations {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, more| Activations {
            relu: sum.relu + more.relu,
            identity: sum.identity + more.identity,
            square: sum.square + more.square,
            polynomial: sum.polynomial + more.polynomial,
        })
    }
}

/// Multiply-adds of one inference: every tap of every output of convolutions and dense layers,
/// those on padding included, as papers count them. 0 for a graph whose shapes are inconsistent.
pub fn graph_multiply_adds(graph: &Graph) -> u64 {
    let Ok(shapes) = graph.shapes() else {
        return 0;
    };
    let nodes = graph.nodes.iter().zip(&shapes);
    nodes
        .map(|(node, shape)| match &node.op {
            Op::Conv2d { weight, .. } | Op::Dense { weight, .. } => {
                weight.len() as u64 * u64::from(shape.h) * u64::from(shape.w)
            }
            _ => 0,
        })
        .sum()
}

/// Multiply-adds of one private inference of a circuit, counted as in [`graph_multiply_adds`];
/// those of its public prefix are not among them.
pub fn circuit_multiply_adds(circuit: &Circuit) -> u64 {
    multiply_adds(circuit.as_layers())
}

/// Multiply-adds of a list of layers, counted as in [`graph_multiply_adds`].
pub fn multiply_adds(layers: Layers<'_>) -> u64 {
    let each = layers.layers.iter();
    each.map(|layer| layer_multiply_adds(layers, layer))
        .fold(0, u64::saturating_add)
}

/// Multiply-adds of one of the layers, counted as in [`graph_multiply_adds`].
///
/// # Panics
/// If the layer reads a tensor that there is not; no layer of a verified circuit does.
pub fn layer_multiply_adds(layers: Layers<'_>, layer: &Layer) -> u64 {
    let terms = layer.terms.iter();
    terms
        .map(|term| match term {
            Term::Conv(conv) => {
                let input = layers.tensor_shape(conv.input);
                conv.output(input).map_or(0, |shape| {
                    conv.weight_count(input) as u64 * u64::from(shape.h) * u64::from(shape.w)
                })
            }
            Term::Residual { .. } => 0,
        })
        .sum()
}

/// Activations of a graph by kind.
pub fn graph_activations(graph: &Graph) -> Activations {
    let mut total = Activations::default();
    for node in &graph.nodes {
        if let Op::Activation { kinds, .. } = &node.op {
            for kind in kinds {
                total.count(match kind {
                    ActivationKind::Relu => Kind::Relu,
                    ActivationKind::Identity => Kind::Identity,
                    ActivationKind::Polynomial => Kind::Polynomial,
                });
            }
        }
    }
    total
}

/// Activations of one layer of a circuit by kind; none at the output.
pub fn layer_activations(layer: &Layer) -> Activations {
    let mut found = Activations::default();
    if let Step::Activate(activation) = &layer.step {
        activation.kinds.iter().for_each(|&kind| found.count(kind));
    }
    found
}

/// Trained numbers of a graph: weights, biases, norms' scales and shifts, coefficients.
pub fn graph_parameters(graph: &Graph) -> usize {
    let nodes = graph.nodes.iter();
    nodes.map(|node| node_parameters(&node.op)).sum()
}

/// Trained numbers of one node, counted as in [`graph_parameters`].
pub fn node_parameters(op: &Op) -> usize {
    match op {
        Op::Conv2d { weight, bias, .. } | Op::Dense { weight, bias, .. } => {
            weight.len() + bias.len()
        }
        Op::BatchNorm(norm) => norm.gamma.len() + norm.beta.len(),
        Op::Activation { coefficients, .. } => 3 * coefficients.len(),
        Op::Input { .. }
        | Op::Add
        | Op::Sub
        | Op::AvgPool { .. }
        | Op::WindowSum(_)
        | Op::Flatten => 0,
    }
}
