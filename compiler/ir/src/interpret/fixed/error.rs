//! Reasons why a circuit has no result, and the truncations that some of them name.

use crate::input::InputError;

/// Reason why there is no result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The input is none of the circuit's.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A list has another length than the circuit says.
    #[error("{what}: expected {expected} values, got {got}")]
    Length {
        /// Name of the list.
        what: String,
        /// Length by the circuit.
        expected: usize,
        /// Length given.
        got: usize,
    },
    /// A window does not fit, or terms of a layer differ in shape.
    #[error("layer {layer}: {detail}; verify the circuit before it is interpreted")]
    Circuit {
        /// Name of the layer.
        layer: String,
        /// The problem.
        detail: String,
    },
    /// A value exceeds the bound that its layer declares.
    #[error(
        "layer {layer}, element {element}: |{value}| before the {stage} truncation exceeds the \
         bound {bound}: the circuit's range is too small for this input; \
         compile it with more head room"
    )]
    OutOfBound {
        /// Name of the layer.
        layer: String,
        /// Index in the layer's result.
        element: usize,
        /// The truncation.
        stage: Stage,
        /// The value.
        value: i128,
        /// The largest magnitude allowed.
        bound: i128,
    },
    /// A share is no residue.
    #[error(
        "layer {layer}: share {index} of the {stage} truncation is not below p: \
         the trace is damaged"
    )]
    Share {
        /// Name of the layer.
        layer: String,
        /// Index in the list of shares.
        index: usize,
        /// The truncation.
        stage: Stage,
    },
}

/// The first truncation of a layer, or the second of its squares and polynomials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Truncation of the sum.
    First,
    /// Truncation of a square or polynomial.
    Second,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::First => "first",
            Stage::Second => "second",
        })
    }
}
