//! What client and server do alike to run a protocol session over a stream.

use crate::error::Error;
use crate::stream::MessageStream;
use rand_core::{OsRng, RngCore, TryRngCore};
use std::future::Future;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

/// Runs a session: between two messages it computes for milliseconds to seconds, so the thread is
/// given up to it and the reactor goes on elsewhere.
pub(crate) fn compute<F: Future>(session: F) -> F::Output {
    block_in_place(|| Handle::current().block_on(session))
}

/// Why a session with this peer ended.
pub(crate) fn protocol_error(
    peer: &'static str,
    stream: &mut MessageStream,
    error: pi_protocol::Error,
) -> Error {
    if let Some(failure) = stream.take_failure() {
        return Error::from_stream(peer, failure);
    }
    let what = error.to_string();
    match error {
        pi_protocol::Error::PeerMisbehaved { .. } => Error::PeerMisbehaved { peer, what },
        pi_protocol::Error::PeerIncompatible { .. } => Error::PeerIncompatible(what),
        pi_protocol::Error::Channel { .. } => Error::Lost(what),
        _ => Error::Internal(what),
    }
}

/// 32 bytes from the system's generator.
pub(crate) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    OsRng.unwrap_err().fill_bytes(&mut bytes);
    bytes
}
