//! A client's connection: its handshake, the requests on its streams, greeting and keys.

use super::infer::Loaded;
use super::link::{Link, Opened};
use super::models::Served;
use super::prepare::Yielding;
use super::{IDLE, Shared, rest_of_today};
use crate::control::{
    Catalogue, Held, Hello, LONGEST_NAME, MOST_PREFERRED, MOST_PROBES, REQUEST_LIMIT, Request,
    Stored, Welcome, software,
};
use crate::error::Error;
use crate::fingerprint::{Fingerprint, short};
use crate::observe::{Operation, Turned};
use crate::party::{Greeting, damaged, random};
use crate::quiet_pool;
use crate::store::BundleState;
use crate::stream::{MessageStream, Refusal, StreamError, code, describe};
use crate::transport;
use pi_protocol::header::PROTOCOL_VERSION;
use pi_protocol::session::{self, BundleId, ServerModel, ServerSetup, is_current_setup};
use rand_core::{OsRng, TryRngCore};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use tokio::sync::{OnceCell, watch};
use tokio::task::{JoinSet, block_in_place};
use tracing::Instrument;

/// The connection of one client.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Fingerprint,
    link: Link,
    greeting: OnceCell<Greeting>,
    /// The model that the greeting chose.
    served: OnceCell<Arc<Served>>,
    /// The bundles of the client that were ready when it greeted.
    pub(super) ready_at_greeting: OnceCell<HashSet<BundleId>>,
    /// Index of the next bundle in the headers of this connection.
    pub(super) next_index: AtomicU64,
    /// The bundle that will be asked for next, if it was read ahead. Reading it holds the lock, so
    /// that an inference that needs it waits.
    pub(super) loaded: Mutex<Option<Loaded>>,
    /// One inference at a time, for which memory is set aside.
    pub(super) inferring: tokio::sync::Mutex<()>,
}

/// Accepts a connection and serves its requests until either party ends it.
pub(super) async fn serve(
    shared: Arc<Shared>,
    incoming: quinn::Incoming,
    stop: watch::Receiver<bool>,
) {
    let from = incoming.remote_address();
    let Some(quic) = shake_hands(&shared, incoming).await else {
        return;
    };
    let client = match shared.by_name {
        true => transport::peer_certificate_name(&quic),
        false => transport::peer_fingerprint(&quic),
    };
    let Some(client) = client else {
        tracing::warn!(%from, "refused: a client without a certificate, or one for no name");
        quic.close(code(Refusal::Misbehaved), b"no certificate with a name");
        shared.metrics.turned(Turned::NoCertificate);
        return;
    };
    serve_client(shared, Link::Native(quic), client, from, stop).await;
}

/// The connection once its handshake has succeeded.
pub(super) async fn shake_hands(
    shared: &Shared,
    incoming: quinn::Incoming,
) -> Option<quinn::Connection> {
    let from = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => {
            tracing::info!(%from, error = describe(&error), "no connection");
            shared.metrics.turned(Turned::Handshake);
            return None;
        }
    };
    match tokio::time::timeout(IDLE, connecting).await {
        Ok(Ok(quic)) => return Some(quic),
        Ok(Err(error)) if transport::no_common_key_exchange(&error) => {
            tracing::info!(%from, "no connection: the client offers no X25519MLKEM768");
        }
        Ok(Err(error)) => {
            tracing::info!(%from, error = describe(&error), "no connection");
        }
        Err(_) => tracing::info!(%from, "the handshake took too long"),
    }
    shared.metrics.turned(Turned::Handshake);
    None
}

/// Serves the requests of a client over its connection until either party ends it.
pub(super) async fn serve_client(
    shared: Arc<Shared>,
    link: Link,
    client: Fingerprint,
    from: SocketAddr,
    mut stop: watch::Receiver<bool>,
) {
    let name = short(&client.0);
    if let Err(refusal) = block_in_place(|| shared.admit(client, &link)) {
        tracing::warn!(client = %client, %from, "refused: not on the list of clients");
        link.close(refusal, "not on the list");
        shared.metrics.turned(Turned::NotAllowed);
        return;
    }
    let over = link.kind();
    tracing::info!(client = name, %from, over, "connected");
    shared.supersede(client, &link);
    let connection = Arc::new(Connection {
        shared,
        client,
        link: link.clone(),
        greeting: OnceCell::new(),
        served: OnceCell::new(),
        ready_at_greeting: OnceCell::new(),
        next_index: AtomicU64::new(0),
        loaded: Mutex::default(),
        inferring: tokio::sync::Mutex::default(),
    });
    let shared = connection.shared.clone();
    let _connected = shared.metrics.connected(link.is_web());
    let mut operations = JoinSet::new();
    let closing = loop {
        tokio::select! {
            opened = link.accept() => match opened {
                Some(opened) => {
                    operations.spawn(serve_operation(connection.clone(), opened));
                }
                None => break None,
            },
            Some(ended) = operations.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(client = name, %error, "an operation's task failed");
                }
            }
            _ = tokio::time::sleep(IDLE), if operations.is_empty() => break Some(Refusal::Silent),
            _ = stop.wait_for(|stop| *stop) => break Some(Refusal::ShuttingDown),
        }
    };
    while operations.join_next().await.is_some() {}
    connection.shared.forget(client, &link);
    if let Some(refusal) = closing {
        link.close(refusal, "");
    }
    tracing::info!(client = name, over, "disconnected");
}

async fn serve_operation(connection: Arc<Connection>, opened: Opened) {
    let patience = connection.shared.patience;
    let mut stream = match connection.link.messages(opened, patience).await {
        Ok(stream) => stream,
        Err(error) => {
            let client = short(&connection.client.0);
            tracing::warn!(client, %error, "no request");
            return;
        }
    };
    let request = match stream.receive_control::<Request>(REQUEST_LIMIT).await {
        Ok(request) => request,
        Err(error) => {
            let client = short(&connection.client.0);
            tracing::warn!(client, %error, "no request");
            stream.refuse(Error::from_stream("client", error).refusal());
            return;
        }
    };
    let shared = connection.shared.clone();
    let operation = Operation::begin(
        &shared.metrics,
        connection.client,
        connection.greeting.get(),
        (&request, stream.index()),
    );
    let span = operation.span();
    let answered = answer_operation(&connection, request, stream, operation);
    answered.instrument(span).await;
}

async fn answer_operation(
    connection: &Arc<Connection>,
    request: Request,
    mut stream: MessageStream,
    mut operation: Operation<'_>,
) {
    let read_ahead = matches!(
        request,
        Request::Hello(_) | Request::Prepare(_) | Request::Infer
    );
    let moves_many = matches!(
        request,
        Request::Artifact | Request::Setup | Request::Prepare(_)
    );
    let result = connection.answer(request, &mut stream).await;
    let (took, traffic) = (operation.elapsed(), stream.traffic());
    if let Some(served) = connection.served.get() {
        operation.of_model(served.label());
    }
    if moves_many {
        connection.count_bytes(traffic.bytes_received + traffic.bytes_sent);
    }
    operation.end(&result, traffic);
    match result {
        Ok(()) => {
            if read_ahead {
                connection.clone().read_ahead();
            }
            // A client that has what it wants may be gone before it says so.
            let _ = stream.finish().await;
            tracing::info!(
                bytes_in = traffic.bytes_received,
                bytes_out = traffic.bytes_sent,
                messages = traffic.messages_received + traffic.messages_sent,
                milliseconds = took.as_millis() as u64,
                "done"
            );
        }
        Err(error) => {
            tracing::warn!(%error, "failed");
            stream.refuse(error.refusal());
        }
    }
}

impl Connection {
    /// Ensures that the client has not come back over another connection: what it asked for over
    /// this one may be about a state that is no more.
    pub(super) fn check_current(&self) -> Result<(), Error> {
        match self.shared.is_current(self.client, &self.link) {
            true => Ok(()),
            false => Err(refused(Refusal::Silent)),
        }
    }

    async fn answer(&self, request: Request, stream: &mut MessageStream) -> Result<(), Error> {
        // The list may have changed since the client connected.
        block_in_place(|| self.shared.admit(self.client, &self.link)).map_err(refused)?;
        if let Request::Hello(hello) = request {
            return self.hello(hello, stream).await;
        }
        if request == Request::Catalogue {
            let models = block_in_place(|| self.shared.catalogue(self.client))?;
            let catalogue = Catalogue { models };
            return stream.send_control(&catalogue).await.map_err(from_client);
        }
        let Some(greeting) = self.greeting.get().copied() else {
            return Err(misbehaved("a request before the greeting"));
        };
        let served = self.served()?;
        if request == Request::Artifact {
            block_in_place(|| self.shared.check_bytes(self.client, &served))?;
            // No copy: however many ask for it, there is one.
            let artifact = served.artifact.clone();
            return stream.send_message(artifact).await.map_err(from_client);
        }
        if let Request::Probe(probes) = request {
            let held = block_in_place(|| self.held(&served, &probes))?;
            return stream
                .send_control(&Held { held })
                .await
                .map_err(from_client);
        }
        let session = self.shared.sessions.acquire().await;
        let _session = session.map_err(|e| Error::Internal(e.to_string()))?;
        match request {
            Request::Hello(_) | Request::Catalogue | Request::Artifact | Request::Probe(_) => {
                unreachable!("answered above")
            }
            Request::Setup => self.setup(greeting, &served, stream).await,
            Request::Prepare(prepare) => self.prepare(greeting, &served, prepare, stream).await,
            Request::Infer => self.infer(&served, stream).await,
        }
    }

    async fn hello(&self, hello: Hello, stream: &mut MessageStream) -> Result<(), Error> {
        if hello.protocol != PROTOCOL_VERSION {
            return Err(Error::Version(format!(
                "the client speaks protocol {}, this server {}",
                hello.protocol, PROTOCOL_VERSION
            )));
        }
        let served = block_in_place(|| self.choose(&hello))?;
        let greeting = Greeting {
            server: self.shared.service,
            client: self.client,
            server_nonce: random(),
            client_nonce: hello.nonce,
        };
        if self.greeting.set(greeting).is_err() || self.served.set(served.clone()).is_err() {
            return Err(misbehaved("a second greeting"));
        }
        let welcome = block_in_place(|| {
            let ready = self.shared.store.ready_of(self.client)?;
            // Set once: a second greeting has ended above.
            let _ = self.ready_at_greeting.set(ready);
            let (left, left_today) = self.shared.answers_left(self.client, &served)?;
            Ok::<_, Error>(Welcome {
                protocol: PROTOCOL_VERSION,
                software: software(),
                nonce: greeting.server_nonce,
                service: self.shared.service,
                client: self.client,
                model: served.digest,
                name: served.name.clone(),
                version: served.version.clone(),
                current: served.is_current(),
                artifact_bytes: served.artifact.len() as u64,
                setup: self.shared.store.setup_id(self.client)?,
                held: self.held(&served, &hello.probes)?,
                answers_left: left,
                answers_left_today: left_today.map(|left| (left, rest_of_today())),
            })
        })?;
        stream.send_control(&welcome).await.map_err(from_client)
    }

    /// The model for a greeting.
    fn choose(&self, hello: &Hello) -> Result<Arc<Served>, Error> {
        let wanted = hello.model.as_ref();
        let long = |text: &String| text.len() > LONGEST_NAME;
        if hello.prefer.len() > MOST_PREFERRED
            || wanted.is_some_and(|w| long(&w.name) || w.version.as_ref().is_some_and(long))
        {
            return Err(misbehaved(
                "a model that is described at too great a length",
            ));
        }
        let may_use = |model: &str| self.shared.clients.may_use(self.client, model);
        let models = &self.shared.models;
        models
            .choose(wanted, &hello.prefer, may_use)
            .map_err(refused)
    }

    /// The model of this connection, if the client may still use it.
    pub(super) fn served(&self) -> Result<Arc<Served>, Error> {
        let served = self.served.get();
        let served = served.ok_or_else(|| misbehaved("a request before the greeting"))?;
        if served.is_retired() {
            return Err(refused(Refusal::ModelChanged));
        }
        match block_in_place(|| self.shared.clients.may_use(self.client, &served.name)) {
            true => Ok(served.clone()),
            false => Err(refused(Refusal::ModelNotAllowed)),
        }
    }

    /// Counts the bytes of an operation that moves many.
    fn count_bytes(&self, bytes: u64) {
        let Some(served) = self.served.get() else {
            return;
        };
        let counted = block_in_place(|| self.shared.count_bytes(self.client, served, bytes));
        if let Err(error) = counted {
            tracing::error!(client = short(&self.client.0), %error, "bytes are not counted");
        }
    }

    async fn setup(
        &self,
        greeting: Greeting,
        served: &Served,
        stream: &mut MessageStream,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        block_in_place(|| shared.check_bytes(self.client, served))?;
        let _exchanging = shared.exchange(self.client).map_err(refused)?;
        let memory = shared.memory.take(self.client, ServerModel::SETUP_MEMORY);
        let _memory = memory.map_err(refused)?;
        let inputs = greeting.header_inputs(0);
        let rng = &mut OsRng.unwrap_err();
        let mut channel = Yielding::new(stream, &shared.memory);
        let setup = quiet_pool::compute(session::server_setup(&mut channel, &inputs, rng));
        let setup = channel.finish(setup)?;
        let id = setup.id();
        block_in_place(|| {
            let stored = setup.encode();
            shared.store.put_setup(self.client, &id, &stored)
        })?;
        shared.share_setup(self.client, &Arc::new(setup));
        stream
            .send_control(&Stored { id })
            .await
            .map_err(from_client)
    }

    /// The server's half of the setup with this client, if there is one.
    pub(super) fn setup_of_client(&self) -> Result<Option<Arc<ServerSetup>>, Error> {
        let shared = &self.shared;
        // Through another server of the same store, the client may have made a new one.
        if let Some(setup) = shared.setup_in_use(self.client)
            && shared.store.setup_id(self.client)? == Some(setup.id())
        {
            return Ok(Some(setup));
        }
        let bytes = shared.store.setup(self.client)?;
        let Some(bytes) = bytes.filter(|bytes| is_current_setup(bytes)) else {
            return Ok(None);
        };
        let setup = ServerSetup::decode(&bytes).map_err(|e| {
            let reason = format!("setup of client {}: {e}", self.client);
            damaged(shared.store.directory_name(), reason)
        })?;
        let setup = Arc::new(setup);
        shared.share_setup(self.client, &setup);
        Ok(Some(setup))
    }

    /// Tells for each of these bundles whether it is ready for a model.
    fn held(&self, served: &Served, probes: &[[u8; 32]]) -> Result<Vec<bool>, Error> {
        if probes.len() > MOST_PROBES {
            return Err(misbehaved("too many probes"));
        }
        let mut held = Vec::with_capacity(probes.len());
        for &id in probes {
            let entry = self.shared.store.bundle(self.client, &BundleId(id))?;
            held.push(entry.is_some_and(|entry| {
                entry.state == BundleState::Ready && entry.model == served.digest
            }));
        }
        Ok(held)
    }
}

pub(super) fn from_client(error: StreamError) -> Error {
    Error::from_stream("client", error)
}

pub(super) fn refused(refusal: Refusal) -> Error {
    Error::Refused {
        peer: "server",
        refusal,
    }
}

pub(super) fn misbehaved(what: &str) -> Error {
    Error::PeerMisbehaved {
        peer: "client",
        what: what.into(),
    }
}
