//! What a compiled network costs: accuracy, bytes, messages, and predicted seconds.
//!
//! - [`evaluate`]: the accuracy that fixed point loses.
//! - [`report`]: the table of all layers that `pi-compile` prints.
//! - [`activations`]: the price of every activation, for a trainer that chooses which ReLUs stay.
//! - [`latency`]: the model behind the seconds, fitted to measurements.
//! - [`processor`]: the processor seconds of each party, fitted likewise.

pub mod activations;
pub mod evaluate;
pub mod latency;
mod per_layer;
pub mod processor;
pub mod report;
