//! Reference interpreters: the oracles against which compiler and protocol are tested.
//!
//! - [`float`] evaluates a [`Graph`](crate::Graph) as its trainer would.
//! - [`plain`] evaluates a [`Circuit`](crate::Circuit), each truncation rounding to nearest, ties
//!   up, and refuses values that leave their bounds. [`Interpreter::unlimited`] takes them as they
//!   are.
//! - [`exact`] evaluates it with the client's shares of one run and reproduces each carry of the
//!   two-party truncation, each sign that wraps, and each check of a range: its outcome equals the
//!   private one bit for bit, on any input.
//!
//! Written for clarity, independent of the protocol's code, and fast enough for whole test sets:
//! the callers parallelise over images.

pub(crate) mod convolve;
pub(crate) mod fixed;
mod float_graph;

pub use fixed::{
    Error, Interpreter, PostMagnitudes, Run, Stage, exact, plain, quantise, quantise_image,
};
pub use float_graph::{float, float_batch, float_values};

/// The label of logits: the index of the largest, the smallest index of several equal ones. 0 for
/// none.
pub fn label(logits: &[i64]) -> usize {
    let order = |&index: &usize| (logits[index], std::cmp::Reverse(index));
    (0..logits.len()).max_by_key(order).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn the_first_of_the_largest_logits_is_the_label() {
        assert_eq!(label(&[]), 0);
        assert_eq!(label(&[-3]), 0);
        assert_eq!(label(&[-3, -2, -2, -7]), 1);
        assert_eq!(label(&[5, i64::MIN, 5]), 0);
        assert_eq!(label(&[i64::MIN, i64::MAX]), 1);
    }
}
