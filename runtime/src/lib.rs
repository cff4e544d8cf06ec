//! Processes, sockets, files and time: pi-server, pi-client and pi-demo over QUIC.
//!
//! - [`server`] and [`client`] are the two parties; [`command`] holds the programs around them.
//! - [`transport`] and [`stream`] are QUIC endpoints that authenticate both parties, and messages
//!   on their streams. These are the channels over which the sessions of `pi_protocol` run.
//! - [`control`] has the messages that the processes exchange around a session; they are in a crate
//!   of their own, `pi_wire`, so that a client in a browser has them too.
//! - [`store`] keeps what outlives a process: above all bundles, each of which is used once.
//! - [`identity`] and [`fingerprint`] say who a party is.
//! - [`observe`] shows the server to whoever runs it: metrics, health, logs and traces.
//! - [`model_files`] reads models; [`input_file`] reads what is asked about, pictures as
//!   [`pi_image`] brings them to a model; [`draw`] draws one.
//!
//! Nothing in the state directory of a party is encrypted: whoever reads it reads the secrets.
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod draw;
pub mod error;
mod failpoint;
mod files;
pub mod fingerprint;
pub mod identity;
pub mod input_file;
mod machine;
pub mod model_files;
pub mod observe;
mod party;
mod pinned_pool;
mod quiet_pool;
pub mod server;
mod spending;
pub mod store;
pub mod stream;
pub mod transport;
pub mod usage;
#[cfg(feature = "web")]
pub mod web;

pub use pi_wire::control;
