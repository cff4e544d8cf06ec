//! The two-party computation: shares, linear layers, activations and sessions over a channel.
#![forbid(unsafe_code)]

pub mod layout;
