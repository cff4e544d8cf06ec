//! The two-party computation: shares, linear layers, activations and sessions over a channel.
//!
//! - [`session`]: the entry points of a runtime: setup, preparation of bundles, inference;
//! - [`channel`]: the line it runs over, and an in-memory one; [`header`]: a bundle's identity;
//! - [`linear`] on [`layout`]: the homomorphic linear layers, offline;
//! - `nonlinear` on `share`: ReLU, squares and polynomials on additive shares;
//! - [`cost`]: the exact number of bytes of each exchange; [`flooding`]: what answers tell of the
//!   weights.
//!
//! No sockets, no clock, no global source of randomness. The message flow is in `docs/protocol.md`.
#![forbid(unsafe_code)]

pub mod channel;
pub mod cost;
mod error;
pub mod flooding;
pub mod header;
mod indexed_circuit;
pub mod layout;
pub mod linear;
mod nonlinear;
mod parts;
mod seal;
mod secrets;
pub mod session;
mod share;
mod wire;

pub use channel::Channel;
pub use error::Error;
