//! The parts that client and server have in common: running a session over a stream, the headers
//! of a connection's bundles, and reading a bundle half from the store.

use crate::error::Error;
use crate::fingerprint::{Fingerprint, short};
use crate::store::{BundleContent, BundleWriting, StoreError};
use crate::stream::MessageStream;
use pi_protocol::header::{BundleId, HeaderInputs};
use pi_protocol::session::{BundleSource, READ_AT_ONCE};
use rand_core::{OsRng, RngCore, TryRngCore};
use std::future::Future;
use std::path::Path;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tracing::Instrument;

/// Runs a session. It computes for milliseconds to seconds between two messages, so this thread is
/// given up to it and the reactor goes on elsewhere.
pub(crate) fn compute<F: Future>(session: F) -> F::Output {
    let session = session.instrument(tracing::debug_span!("compute"));
    block_in_place(|| Handle::current().block_on(session))
}

/// The error of a session with this peer, as the process reports it.
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

/// The error of a bundle half that could not be written.
pub(crate) fn not_written(writer: &mut dyn BundleWriting, error: pi_protocol::Error) -> Error {
    match writer.take_failure() {
        Some(failure) => failure.into(),
        None => Error::Internal(error.to_string()),
    }
}

/// 32 bytes from the system's generator.
pub(crate) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    OsRng.unwrap_err().fill_bytes(&mut bytes);
    bytes
}

/// The two parties of a connection and the nonces that they exchanged at its start.
#[derive(Clone, Copy)]
pub(crate) struct Greeting {
    pub(crate) server: Fingerprint,
    pub(crate) client: Fingerprint,
    pub(crate) server_nonce: [u8; 32],
    pub(crate) client_nonce: [u8; 32],
}

impl Greeting {
    /// Inputs to the header of the connection's bundle with this index, or of its setup.
    pub(crate) fn header_inputs(&self, index: u64) -> HeaderInputs {
        HeaderInputs {
            server_peer: self.server.0,
            client_peer: self.client.0,
            server_nonce: self.server_nonce,
            client_nonce: self.client_nonce,
            index,
        }
    }
}

/// Reads a bundle half and checks that it has the name under which it was stored; `decode` returns
/// the half with its name, from all of its bytes or from where it is stored. `place` names the
/// store.
pub(crate) fn read_bundle<B>(
    place: &Path,
    id: &BundleId,
    reading: Box<dyn BundleContent>,
    decode: impl FnOnce(Stored<'_>) -> Result<(BundleId, B), pi_protocol::Error>,
) -> Result<B, Error> {
    let _span = tracing::debug_span!("read bundle").entered();
    let damaged = |reason: String| damaged(place, format!("bundle {}: {reason}", short(&id.0)));
    let decoded = match reading.length() <= READ_AT_ONCE {
        true => decode(Stored::Whole(&reading.run()?)),
        false => decode(Stored::Source(reading.open()?)),
    };
    let (name, bundle) = decoded.map_err(|e| damaged(e.to_string()))?;
    match name == *id {
        true => Ok(bundle),
        false => Err(damaged("it has another name".into())),
    }
}

/// The content of a bundle half.
pub(crate) enum Stored<'a> {
    /// In memory, verified.
    Whole(&'a [u8]),
    /// To be read.
    Source(Box<dyn BundleSource>),
}

/// The error of the store at this place, whose content is not what was written.
pub(crate) fn damaged(place: impl AsRef<Path>, reason: String) -> Error {
    let path = place.as_ref().to_owned();
    StoreError::Damaged { path, reason }.into()
}
