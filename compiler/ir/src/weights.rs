//! Weights, biases and coefficients, which only the server holds. A client never receives a value
//! of these types, except the [`PublicWeights`] of a [`crate::Prefix`].

use crate::{limits, wire};
use serde::{Deserialize, Serialize};

/// The server's integers, one entry per layer of the circuit.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// In the order of [`crate::Circuit::layers`].
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::LAYERS }>")]
    pub layers: Vec<LayerWeights>,
}

/// Weights that are no secret: those of a public prefix, the only ones in an artifact.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicWeights(Weights);

impl PublicWeights {
    /// Makes weights public. Whoever calls this gives them to every client, for good.
    pub fn publish(weights: Weights) -> Self {
        PublicWeights(weights)
    }
}

impl std::ops::Deref for PublicWeights {
    type Target = Weights;

    fn deref(&self) -> &Weights {
        &self.0
    }
}

impl std::fmt::Debug for PublicWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicWeights {{ {} layers }}", self.0.layers.len())
    }
}

/// The server's integers of one layer.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerWeights {
    /// One kernel per [`crate::Term::Conv`] of the layer, in order:
    /// `[out][in][kernel_h][kernel_w]`.
    #[serde(with = "wire::kernels")]
    pub kernels: Vec<Vec<i16>>,
    /// One integer per output channel, at the scale of the sum; added at every position, before
    /// the layer's [`crate::SumPool`].
    pub bias: Vec<i64>,
    /// One more integer per element of the layer's result, at the scale of the pooled sum and added
    /// after the pool; empty if every element's is zero.
    pub element_bias: Vec<i64>,
    /// Per channel; empty when no element of the layer is [`crate::Kind::Polynomial`].
    pub polynomials: Vec<Polynomial>,
}

impl LayerWeights {
    /// Number of integers.
    pub fn count(&self) -> usize {
        let kernels: usize = self.kernels.iter().map(Vec::len).sum();
        let biases = self.bias.len() + self.element_bias.len();
        kernels + biases + 3 * self.polynomials.len()
    }
}

/// `a y^2 + b y + k` in integers: with `y` at scale `2^s` and `a` at `2^u`, `b` is at `2^(s+u)`,
/// `k` at `2^(2s+u)`, and the result is cut by `s + u` bits (the layer's `polynomial.truncate`).
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Polynomial {
    /// Quadratic coefficient.
    pub a: i64,
    /// Linear coefficient.
    pub b: i64,
    /// Constant.
    pub k: i64,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Weights {{ {} layers, values withheld }}",
            self.layers.len()
        )
    }
}

impl std::fmt::Debug for LayerWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "LayerWeights {{ {} kernels, values withheld }}",
            self.kernels.len()
        )
    }
}

impl std::fmt::Debug for Polynomial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Polynomial { values withheld }")
    }
}
