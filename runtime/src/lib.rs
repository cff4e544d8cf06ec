//! Processes, sockets, files and time: pi-server, pi-client and pi-demo over QUIC.
//!
//! - [`server`] and [`client`]: the two parties; [`command`]: the programs around them.
//! - [`transport`] and [`stream`]: QUIC endpoints that authenticate both parties, and messages on
//!   their streams, which are the channels that `pi_protocol` sessions run over.
//! - [`control`]: what the processes say to each other around a session.
//! - [`store`]: what outlives a process, bundles above all, each used once.
//! - [`identity`], [`fingerprint`]: who a party is.
//! - [`image_file`], [`draw`]: images as pixels.
//!
//! Whoever reads the state directory of a party reads its secrets; nothing is encrypted there.
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod control;
pub mod draw;
pub mod error;
mod failpoint;
mod files;
pub mod fingerprint;
pub mod identity;
pub mod image_file;
mod party;
mod pinned_pool;
pub mod server;
mod spending;
pub mod store;
pub mod stream;
pub mod transport;
pub mod usage;
