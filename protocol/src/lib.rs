//! The two-party computation: shares, linear layers, activations and sessions over a channel.
//!
//! No sockets, no clock, no global source of randomness. The message flow is in `docs/protocol.md`.
#![forbid(unsafe_code)]

pub mod channel;
pub mod cost;
mod error;
pub mod header;
pub mod layout;
pub mod linear;
mod nonlinear;
mod secrets;
pub mod session;
pub mod share;
mod wire;

pub use channel::Channel;
pub use error::Error;
