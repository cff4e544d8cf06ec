//! Processes, sockets, files and time: pi-server, pi-client and pi-demo over QUIC.
//!
//! - [`transport`] and [`stream`]: QUIC endpoints that authenticate both parties, and messages on their streams,
//!   which are the channels that `pi_protocol` sessions run over.
//! - [`control`]: what the processes say to each other around a session.
//! - [`store`]: what outlives a process, bundles above all, each used once.
//! - [`identity`], [`fingerprint`]: who a party is.
//! - [`picture`]: pictures as pixels.
//!
//! Whoever reads the state directory of a party reads its secrets; nothing is encrypted there.
#![forbid(unsafe_code)]

pub mod control;
mod files;
pub mod fingerprint;
pub mod identity;
pub mod picture;
pub mod store;
pub mod stream;
pub mod transport;
