//! The client as a module for a web page: the client's half of `pi-protocol`, the verifier of
//! `pi-ir` and the decoders of `pi-image`, as the native client has them, behind a plain interface
//! that a worker in JavaScript drives.
//!
//! - [`client`] has a client's operations on a server: greeting, keys, bundles, answers.
//! - [`mod@line`] carries the messages of one operation between the session that computes and the
//!   worker that has the stream; [`operation`] runs a session in steps, between which the worker
//!   carries.
//! - [`picture`] is about image files, and what the server saw of them.
//! - [`advice`] says what a refusal means and what to do, in sentences for the page.
//! - [`shares`] is the byte form of the client's shares of one run, for checks against the exact
//!   interpreter.
//!
//! Storage, clock, network and signatures are the worker's: nothing here outlives the page. The one
//! thing that it asks of its surroundings is randomness, which the page takes from
//! `crypto.getRandomValues`. Nothing secret is written to a log. What leaves the module is the
//! stored form of keys and bundles, for the browser's store, and the messages to the server.
//!
//! # Who marks a bundle as spent
//! The worker, durably, between [`client::Client::load_bundle`] and [`client::Client::infer`]; the
//! operation sends nothing before it is started.
#![deny(unsafe_code)]

#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
mod abi;
pub mod advice;
pub mod client;
pub mod failure;
pub mod line;
pub mod operation;
pub mod picture;
pub mod shares;
