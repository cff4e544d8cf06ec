//! Trained graph to fixed-point circuit, chosen for cost.
//!
//! The passes, in order; each is a function from one form to the next, and refuses by name what it
//! cannot carry:
//!
//! 1. [`import`]: the graph is verified, and nodes that nothing reads are dropped.
//! 2. [`fold`]: batch norms move into weights.
//! 3. [`lower`]: layers, as the circuit has them, with real numbers ([`network`]).
//! 4. [`calibrate`]: how large values get on sample images.
//! 5. [`quantise`]: scales, integers, truncations.
//! 6. [`range`]: bounds, sign widths.
//! 7. [`select`]: the packing plan, by cost.
//! 8. [`emit`]: everything verified once more, the two files.
//!
//! [`compile()`] runs them all; [`evaluate`] measures what was lost; [`report`] prints the table,
//! [`costs`] says what each activation costs, by the model of [`latency`].
#![forbid(unsafe_code)]

pub mod calibrate;
pub mod compile;
pub mod costs;
pub mod draw;
pub mod emit;
pub mod evaluate;
pub mod fault;
pub mod fold;
pub mod images;
pub mod import;
pub mod latency;
pub mod lower;
pub mod network;
pub mod pool;
pub mod quantise;
pub mod range;
pub mod report;
pub mod select;

pub use compile::{Compiled, Options, compile};
pub use fault::{Fault, Refused};
