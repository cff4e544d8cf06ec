//! The two-party computation: shares, linear layers, activations and sessions over a channel.
//!
//! No sockets, no clock, no global source of randomness. The message flow is in `docs/protocol.md`.
#![forbid(unsafe_code)]

pub mod channel;
mod error;
pub mod header;
pub mod layout;
pub mod linear;
pub mod share;

pub use channel::Channel;
pub use error::Error;
