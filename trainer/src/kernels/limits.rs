//! What keeps the inputs of activations in range while a network trains.

use super::Penalty;

/// The penalty on the inputs of activations, and the guard of their polynomials.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The penalty, at every position; its gradient alone.
    pub penalty: Penalty,
    /// Magnitude of the input beyond which a polynomial goes on as its tangent; infinite for none.
    ///
    /// With `c = clamp(z, -guard, guard)`, `a z^2 + b z + k` becomes `a c^2 + b c + k + (2 a c + b)
    /// (z - c)`, which is `a (z^2 - (z - c)^2) + b z + k`. ReLUs stay as they are.
    pub guard: f32,
}

impl Limits {
    /// No penalty and no guard.
    pub const NONE: Self = Self {
        penalty: Penalty::None,
        guard: f32::INFINITY,
    };
}

impl From<Penalty> for Limits {
    /// A penalty without a guard.
    fn from(penalty: Penalty) -> Self {
        Self {
            penalty,
            ..Self::NONE
        }
    }
}
