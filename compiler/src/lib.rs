//! Compiles a trained graph to a fixed-point circuit, and packs it for the least cost.
//!
//! [`compile()`] takes these steps, in this order. Each is a function from one form of the network
//! to the next, and refuses what it cannot handle, naming the node:
//!
//! 1. [`import`] verifies the graph. A fault of any node ends the compilation, a node that nothing
//!    reads included.
//! 2. [`prefix::cut`] finds the end of the public prefix, if one is wanted, and refuses to publish
//!    what was learned.
//! 3. [`pass::input`] scales inputs that are real values, and bounds them; [`pass::fold`] moves
//!    batch norms into weights.
//! 4. [`pass::lower`] makes layers as the circuit has them, with real numbers ([`real_circuit`]).
//! 5. [`pass::calibrate`] measures how large values get on examples.
//! 6. [`pass::quantise`] chooses scales, integers and truncations.
//! 7. [`pass::range`] sets the bounds of all values, and with them the widths of sign circuits.
//! 8. [`pass::guard`] sets the range checks of what no proof bounds.
//! 9. [`emit::check`] verifies the circuit and its weights, and refuses a network that would lose
//!    values too often.
//! 10. [`pass::select`] chooses the packing plan by cost, once for a bundle alone and once for each
//!     size of batch. It verifies every plan it returns.
//!
//! [`accuracy`] then measures the result on examples that calibration did not see, and says whether
//! it may be written; [`emit::files`] makes the two files. [`checked()`] does all of that.
//!
//! [`cost`] computes what the network costs, [`examples`] reads or draws the inputs that
//! calibration and evaluation need, and [`channels`] turns a network that reads blue first into one
//! that reads red first; [`export`] gives the scales to training, and [`trace`] tells what became
//! of the tensors of an ONNX model.
#![forbid(unsafe_code)]

pub mod accuracy;
pub mod channels;
pub mod checked;
pub mod compile;
pub mod cost;
pub mod emit;
pub mod examples;
pub mod export;
pub mod fault;
pub mod file;
pub mod import;
pub mod number;
pub mod page;
pub mod pass;
pub mod prefix;
pub mod real_circuit;
pub mod trace;

pub use checked::checked;
pub use compile::{Compiled, Options, compile};
pub use fault::{Fault, Refused};
pub use prefix::PublicPrefix;
