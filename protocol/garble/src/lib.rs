//! Half-gates, the garbled sign circuit with its output gadget, and the garbled arg max.
//!
//! This crate has what a private ReLU needs besides oblivious transfer. The server garbles the sign
//! of `c' + d` modulo `2^m` ([`garble_sign`]), the client evaluates it ([`evaluate_sign`]), and a
//! gadget over `F_p` turns the one label it is left with into a share of `max(x, 0)`
//! ([`ServerGadget`], [`client_output`]). Labels, the hash and the generator are those of
//! [`pi_core`].
//!
//! A second bool circuit, the arg max of shared values ([`garble_argmax`], [`evaluate_argmax`]),
//! ends in an index that the client decodes, and in nothing else. Either can have a *guard*, which
//! tells the client whether all values kept to their ranges ([`GuardKey`]).
//!
//! # Security
//! Semi-honest garbler and evaluator. The hash is MITCCR (Guo, Katz, Wang, Weng, Yu, "Better
//! concrete security for half-gates garbling", CRYPTO 2020): AES re-keyed at every use, see
//! [`pi_core::hash`]. Tables are sent before the garbler's input exists, so the
//! statement is about *adaptive* garbling, and its proof takes AES as an *ideal cipher*. The
//! standard-model tweakable correlation robustness does not suffice.
//!
//! # Cost
//! For `m` bits and one ReLU: `32 (m - 1)` bytes of tables and `m` correlated OTs offline, `16 m`
//! bytes of labels and one field element online. The formulas are methods of [`SignWidth`]; those
//! of the arg max are methods of [`ArgMax`].

mod argmax;
pub mod gadget;
mod guard;
mod half_gates;
mod sign;

pub use argmax::{ArgMax, decode_argmax, evaluate_argmax, garble_argmax};
pub use gadget::{ServerGadget, client_output};
pub use guard::{GuardKey, MAX_GUARD_BITS};
pub use sign::{InputLabels, SignWidth, active_labels, evaluate_sign, garble_sign};
