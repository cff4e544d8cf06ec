//! Compiles a trained graph to a fixed-point circuit, and packs it for the least cost.
//!
//! [`compile()`] takes these steps, in this order. Each is a function from one form of the network
//! to the next, and refuses what it cannot handle, naming the node:
//!
//! 1. [`import`] verifies the graph. A fault of any node ends the compilation, a node that nothing
//!    reads included.
//! 2. [`pass::fold`] moves batch norms into weights.
//! 3. [`pass::lower`] makes layers as the circuit has them, with real numbers ([`real_circuit`]).
//! 4. [`pass::calibrate`] measures how large values get on sample images.
//! 5. [`pass::quantise`] chooses scales, integers and truncations.
//! 6. [`pass::range`] sets the bounds of all values, and with them the widths of sign circuits.
//! 7. [`emit::check`] verifies the circuit and its weights, and refuses a network that would lose
//!    values too often.
//! 8. [`pass::select`] chooses the packing plan by cost, once for a bundle alone and once for each
//!    size of batch. It verifies every plan it returns.
//!
//! [`emit::files`] then makes the two files of the result. [`cost`] computes what the network
//! costs, [`images`] reads or draws the images that calibration and evaluation need.
#![forbid(unsafe_code)]

pub mod compile;
pub mod cost;
pub mod emit;
pub mod fault;
pub mod file;
pub mod images;
pub mod import;
pub mod pass;
pub mod real_circuit;

pub use compile::{Compiled, Options, compile};
pub use fault::{Fault, Refused};
