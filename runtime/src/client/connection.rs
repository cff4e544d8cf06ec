//! A greeted server: its model, the keys shared with it, and the streams to it.

use super::{Client, Spent, from_server};
use crate::control::{REPLY_LIMIT, Request, Stored, Welcome};
use crate::error::Error;
use crate::fingerprint::{Fingerprint, short};
use crate::party::{Greeting, compute, damaged, protocol_error};
use crate::store::{BundleEntry, ModelDigest};
use crate::stream::{self, MessageStream};
use crate::transport::ClientEndpoint;
use pi_ir::{Artifact, limits};
use pi_protocol::session::{
    self, BundleId, ClientBundle, ClientModel, ClientSetup, is_current_setup,
};
use rand_core::{OsRng, TryRngCore};
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, block_in_place};

/// A connection to a server that was greeted.
pub struct Connection<'a> {
    pub(super) client: &'a Client,
    /// The server's address, or addresses, as the user wrote them.
    pub(super) address: String,
    /// The one of them that answered.
    pub(super) at: String,
    /// Fingerprint of the certificate that the server showed.
    pub(super) certificate: Fingerprint,
    /// Keeps the socket open.
    pub(super) endpoint: ClientEndpoint,
    pub(super) quic: quinn::Connection,
    pub(super) greeting: Greeting,
    /// Index of the next bundle in the headers of this connection.
    pub(super) next_index: u64,
    pub(super) welcome: Welcome,
    /// The bundles for the model served that are ready here, oldest first.
    pub(super) candidates: Vec<Candidate>,
    /// The bundles for other models.
    pub(super) stale: Vec<BundleEntry>,
    /// A bundle that was read ahead. Nothing that follows from it is sent before it is marked as
    /// spent.
    pub(super) loaded: Option<ClientBundle>,
    /// The task that erases the bundle spent last.
    pub(super) erasing: Option<JoinHandle<()>>,
}

/// A bundle that is ready here, and may be at the server.
pub(super) struct Candidate {
    pub(super) id: BundleId,
    /// Whether the server holds the other half, if it was asked.
    pub(super) held: Option<bool>,
}

impl Connection<'_> {
    /// The name under which bundles with the server are kept: the fingerprint of its first
    /// certificate.
    pub fn server(&self) -> Fingerprint {
        self.greeting.server
    }

    /// The fingerprint of the certificate that the server showed.
    pub fn certificate(&self) -> Fingerprint {
        self.certificate
    }

    /// Name and version that the server gives its model.
    pub fn model_name(&self) -> (&str, &str) {
        (&self.welcome.name, &self.welcome.version)
    }

    /// Whether several addresses are known, so that another server may carry on.
    pub fn has_others(&self) -> bool {
        self.address.contains(',')
    }

    /// Digest of the model that the server serves.
    pub fn model_digest(&self) -> ModelDigest {
        self.welcome.model
    }

    /// Name and version of the server's program.
    pub fn software(&self) -> &str {
        &self.welcome.software
    }

    /// The model served, and the cost of fetching it; no cost if it came from the store.
    ///
    /// A model that is fetched is verified and kept.
    ///
    /// # Errors
    /// [`Error::Artifact`] if the file does not match its digest or holds no sound circuit.
    pub async fn model(&mut self) -> Result<(ClientModel, Option<Spent>), Error> {
        let digest = self.welcome.model;
        if self.client.store.artifact(&digest)?.is_some() {
            let artifact = self.client.kept_artifact(&digest)?;
            let model = block_in_place(|| ClientModel::new(artifact));
            return Ok((model.map_err(|e| Error::Artifact(e.to_string()))?, None));
        }
        let started = Instant::now();
        let mut stream = self.open(&Request::Artifact).await?;
        let tracked = self.track(&stream, "artifact");
        let bytes = stream
            .receive_message(limits::ARTIFACT_BYTES)
            .await
            .map_err(from_server)?;
        let artifact = Artifact::decode(&bytes).map_err(|e| Error::Artifact(e.to_string()))?;
        if artifact.digest() != digest {
            return Err(Error::Artifact(format!(
                "it has digest {}, the server announced {}",
                short(&artifact.digest()),
                short(&digest)
            )));
        }
        let model = block_in_place(|| ClientModel::new(artifact));
        let model = model.map_err(|e| Error::Artifact(e.to_string()))?;
        block_in_place(|| self.client.store.put_artifact(&digest, &bytes))?;
        tracked.done(stream.traffic());
        let spent = Spent {
            wall: started.elapsed(),
            traffic: stream.traffic(),
        };
        Ok((model, Some(spent)))
    }

    /// The keys shared with this server, and the cost of exchanging them; no cost if they came from
    /// the store. Waits while the server has no room for the exchange.
    ///
    /// # Errors
    /// Errors of the exchange and of the store.
    pub async fn setup(&mut self) -> Result<(ClientSetup, Option<Spent>), Error> {
        let client = self.client;
        client.patiently(async || self.try_setup().await).await
    }

    async fn try_setup(&mut self) -> Result<(ClientSetup, Option<Spent>), Error> {
        let store = &self.client.store;
        if let Some(bytes) = store.setup(self.server())?
            && is_current_setup(&bytes)
        {
            let setup = ClientSetup::decode(&bytes).map_err(|e| {
                damaged(
                    store.directory(),
                    format!("setup with {}: {e}", self.server()),
                )
            })?;
            if self.welcome.setup == Some(setup.id()) {
                return Ok((setup, None));
            }
        }
        let started = Instant::now();
        let mut stream = self.open(&Request::Setup).await?;
        let tracked = self.track(&stream, "setup");
        let inputs = self.greeting.header_inputs(0);
        let rng = &mut OsRng.unwrap_err();
        let setup = compute(session::client_setup(&mut stream, &inputs, rng));
        let setup = setup.map_err(|e| protocol_error("server", &mut stream, e))?;
        // One half alone is useless, so this one is kept only once the server says that its own is
        // durable.
        await_stored(&mut stream, setup.id()).await?;
        let encoded = setup.encode();
        block_in_place(|| store.put_setup(self.greeting.server, &setup.id(), &encoded))?;
        self.welcome.setup = Some(setup.id());
        tracked.done(stream.traffic());
        let spent = Spent {
            wall: started.elapsed(),
            traffic: stream.traffic(),
        };
        Ok((setup, Some(spent)))
    }

    /// Whether the connection still stands, as far as is known here. A bundle for one that does not
    /// would be lost.
    pub fn is_open(&self) -> bool {
        self.quic.close_reason().is_none()
    }

    /// Ends the connection at once, after an error on it.
    pub fn abandon(&self) {
        self.quic.close(quinn::VarInt::from_u32(0), b"");
    }

    /// Says goodbye, so that the server frees the slot at once.
    pub async fn close(mut self) {
        self.erased().await;
        if let Err(error) = block_in_place(|| self.remember_answers_left()) {
            tracing::warn!(%error, "the number of answers left is not kept");
        }
        self.quic.close(quinn::VarInt::from_u32(0), b"");
        let idle = self.endpoint.endpoint.wait_idle();
        let _ = tokio::time::timeout(Duration::from_secs(1), idle).await;
    }

    /// Answers that this client can still get from the server; `None` without a limit.
    pub fn answers_left(&self) -> Option<u64> {
        self.welcome.answers_left
    }

    /// Keeps the number of answers left, where it changed.
    pub(super) fn remember_answers_left(&self) -> Result<(), Error> {
        let (store, left) = (&self.client.store, self.welcome.answers_left);
        if store.answers_left(self.server())? != left {
            store.put_answers_left(self.server(), left)?;
        }
        Ok(())
    }

    pub(super) async fn open(&self, request: &Request) -> Result<MessageStream, Error> {
        open_stream(&self.quic, self.client.patience.silence, request).await
    }
}

/// Opens a stream with its request.
pub(super) async fn open_stream(
    quic: &quinn::Connection,
    silence: Duration,
    request: &Request,
) -> Result<MessageStream, Error> {
    let (outgoing, incoming) = quic.open_bi().await.map_err(|e| connection_lost(&e))?;
    let mut stream = MessageStream::new(outgoing, incoming, silence);
    stream.send_control(request).await.map_err(from_server)?;
    Ok(stream)
}

pub(super) fn connection_lost(error: &quinn::ConnectionError) -> Error {
    from_server(stream::connection_lost(error))
}

/// Waits until the server says that its half of a setup or bundle is durable.
pub(super) async fn await_stored(stream: &mut MessageStream, id: [u8; 32]) -> Result<(), Error> {
    let stored: Stored = stream
        .receive_control(REPLY_LIMIT)
        .await
        .map_err(from_server)?;
    if stored.id != id {
        return Err(Error::PeerMisbehaved {
            peer: "server",
            what: format!("it stored {}, not {}", short(&stored.id), short(&id)),
        });
    }
    Ok(())
}
