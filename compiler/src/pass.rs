//! The passes between a verified graph and a packed circuit, one file each.
//!
//! Every pass is a function from one form of the network to the next. It refuses what it cannot
//! handle, with the names of all nodes or layers concerned. [`crate::compile()`] runs them in the
//! order of this list:
//!
//! | pass | from | to |
//! | --- | --- | --- |
//! | [`input`] | graph, examples | graph whose real values have scales and a bound |
//! | [`fold`] | graph | graph without batch norms |
//! | [`lower`] | graph | layers of real numbers, [`crate::real_circuit`] |
//! | [`calibrate`] | layers, examples | largest magnitudes |
//! | [`equalise`] | layers, magnitudes | gains of channels |
//! | [`quantise`] | layers, magnitudes | scales, then circuit and weights |
//! | [`correct`] | circuit, weights, examples | biases without mean errors |
//! | [`range`] | circuit, weights, examples | the circuit's bounds |
//! | [`guard`] | circuit, weights | the circuit's range checks |
//! | [`select`] | circuit | packing plan |
//!
//! [`choose`] runs the four from [`equalise`] to [`range`], several times, and takes what measures
//! best.
//!
//! The text files in `tests/passes` show each of them on networks of a few nodes.

pub mod calibrate;
pub mod choose;
pub mod correct;
pub mod equalise;
pub mod fold;
pub mod guard;
pub mod input;
pub mod lower;
pub mod quantise;
pub mod range;
pub mod select;
