//! Reference interpreters: the oracles against which compiler and protocol are tested.
//!
//! - [`float`] evaluates a [`Graph`](crate::Graph) as its trainer would.
//! - [`plain`] evaluates a [`Circuit`](crate::Circuit), each truncation rounding to nearest, ties
//!   up.
//! - [`exact`] evaluates it with the client's shares of one run and reproduces each carry of the
//!   two-party truncation: its logits equal the private ones bit for bit.
//!
//! Written for clarity, independent of the protocol's code, and fast enough for whole test sets:
//! the callers parallelise over images.

pub(crate) mod convolve;
pub(crate) mod fixed;
mod float_graph;

pub use fixed::{Error, Interpreter, PostMagnitudes, Run, Stage, exact, plain, quantise_image};
pub use float_graph::{float, float_batch, float_values};
