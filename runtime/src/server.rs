//! The server: answers several clients at once, each operation on its own stream and thread.
//!
//! The reactor only moves bytes. What computes, or waits for the disk, runs on blocking threads;
//! the offline phase additionally takes one of a few permits, so that preparing bundles does not
//! starve an inference. An operation that fails (or panics) ends with its stream: other operations
//! and clients do not notice.

use crate::control::{
    Hello, MOST_BUNDLES, MOST_PROBES, Prepare, REQUEST_LIMIT, Request, Stored, Welcome, software,
};
use crate::error::Error;
use crate::failpoint;
use crate::fingerprint::{Fingerprint, short};
use crate::identity::Identity;
use crate::party::{compute, protocol_error, random};
use crate::spending::{Mark, Spending};
use crate::store::{BundleId, BundleState, ModelDigest, Reading, Store, StoreError};
use crate::stream::{MessageStream, Refusal, StreamError, describe};
use crate::pinned_pool::PinnedPools;
use crate::transport;
use pi_ir::{Artifact, WeightsFile, artifact};
use pi_protocol::Channel;
use pi_protocol::header::{HeaderInputs, PROTOCOL_VERSION};
use pi_protocol::session::{
    self, OnlineRequest, ServerBatch, ServerBundle, ServerModel, ServerSetup,
};
use rand_core::{OsRng, TryRngCore};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::task::{JoinSet, block_in_place, spawn_blocking};

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Directory with `model.pia` and `model.piw`.
    pub model: PathBuf,
    /// Address to listen at; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Directory of identity and store.
    pub state: PathBuf,
    /// Certificate chain and key of an operator, in place of the self-signed one.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Clients connected at once.
    pub max_clients: usize,
    /// Bundles kept for one client.
    pub max_bundles: usize,
    /// Longest silence of a client in the middle of an operation.
    pub patience: Duration,
    /// Whether computing threads are bound to processors.
    pub bound: bool,
}

/// A server that listens.
pub struct Server {
    endpoint: quinn::Endpoint,
    shared: Arc<Shared>,
    fingerprint: Fingerprint,
    max_clients: usize,
}

/// What all operations of a server use.
struct Shared {
    model: ServerModel,
    digest: ModelDigest,
    artifact: Vec<u8>,
    store: Arc<Store>,
    fingerprint: Fingerprint,
    patience: Duration,
    max_bundles: usize,
    /// Sessions under way; each holds a thread.
    sessions: Semaphore,
    /// Offline exchanges that compute; more wait their turn.
    turns: Semaphore,
    /// Threads of the inferences under way.
    pools: PinnedPools,
    /// Kibibytes that bundles read ahead may take, of all clients together.
    ahead: Arc<Semaphore>,
    /// The connection of each client that is connected.
    connections: Mutex<HashMap<Fingerprint, quinn::Connection>>,
}

/// Half of the threads that tokio allows itself: the other half is for the disk, and keeps the
/// reactor going.
const SESSIONS: usize = 256;
/// Memory for bundles that are read before they are asked for; others are read when they are.
const AHEAD_BYTES: usize = 128 << 20;
/// A client that connects, or is connected and does nothing, for this long makes room for others.
const IDLE: Duration = Duration::from_secs(60);
/// Time for operations under way once the server was asked to end.
const GRACE: Duration = Duration::from_secs(30);

impl Server {
    /// Loads model, identity and store and starts to listen.
    ///
    /// # Errors
    /// [`Error`] says what stands in the way; nothing listens then. Must be called inside a tokio
    /// runtime.
    pub fn start(options: &ServerOptions) -> Result<Server, Error> {
        tracing::info!("loading the model");
        let (model, artifact) = load_model(&options.model)?;
        let store = Arc::new(Store::open(&options.state)?);
        let identity = match &options.certificate {
            Some((chain, key)) => Identity::from_files(chain, key)?,
            None => Identity::load_or_create(&options.state, &["localhost", "pi-server"])?,
        };
        let endpoint = transport::server_endpoint(&identity, options.listen)?;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Ok(Server {
            endpoint,
            fingerprint: identity.fingerprint(),
            max_clients: options.max_clients.max(1),
            shared: Arc::new(Shared {
                digest: artifact.digest,
                artifact: artifact.bytes,
                model,
                store,
                fingerprint: identity.fingerprint(),
                patience: options.patience,
                max_bundles: options.max_bundles,
                sessions: Semaphore::new(SESSIONS),
                turns: Semaphore::new(cores.div_ceil(2)),
                pools: PinnedPools::new(options.bound),
                ahead: Arc::new(Semaphore::new(AHEAD_BYTES / 1024)),
                connections: Mutex::default(),
            }),
        })
    }

    /// The address it listens at.
    ///
    /// # Errors
    /// If the system does not know it.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The fingerprint that clients pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Digest of the model served.
    pub fn model(&self) -> ModelDigest {
        self.shared.digest
    }

    /// Bundles in the store that can be used with this model, and with others.
    ///
    /// # Errors
    /// Those of the store.
    pub fn bundles(&self) -> Result<(usize, usize), Error> {
        let mut all = self.shared.store.bundles()?;
        all.retain(|entry| entry.state == BundleState::Ready);
        let mine = all.iter().filter(|entry| entry.model == self.shared.digest);
        let mine = mine.count();
        Ok((mine, all.len() - mine))
    }

    /// Serves until `stop` becomes true (or its sender is gone), then lets operations under way
    /// end.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let slots = Arc::new(Semaphore::new(self.max_clients));
        let mut connections = JoinSet::new();
        let stopping = stop.clone();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    let Ok(slot) = slots.clone().try_acquire_owned() else {
                        tracing::warn!(from = %incoming.remote_address(), "refused: all slots taken");
                        incoming.refuse();
                        continue;
                    };
                    // When slots get scarce, an address must first show that it receives at all.
                    if 2 * slots.available_permits() < self.max_clients
                        && incoming.may_retry()
                        && !incoming.remote_address_validated()
                    {
                        if let Err(error) = incoming.retry() {
                            error.into_incoming().refuse();
                        }
                        continue;
                    }
                    let (shared, stop) = (self.shared.clone(), stopping.clone());
                    connections.spawn(async move {
                        serve_connection(shared, incoming, stop).await;
                        drop(slot);
                    });
                }
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection's task failed");
                    }
                }
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        self.endpoint.set_server_config(None);
        let all_ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all_ended).await.is_err() {
            tracing::warn!("operations were cut off");
        }
        self.endpoint
            .close(Refusal::ShuttingDown.code(), b"shutting down");
        let _ = tokio::time::timeout(Duration::from_secs(2), self.endpoint.wait_idle()).await;
    }
}

struct LoadedArtifact {
    bytes: Vec<u8>,
    digest: ModelDigest,
}

fn load_model(directory: &Path) -> Result<(ServerModel, LoadedArtifact), Error> {
    let unusable = |reason: String| Error::Model {
        directory: directory.into(),
        reason,
    };
    let read = |name: &str| {
        std::fs::read(directory.join(name)).map_err(|error| unusable(format!("{name}: {error}")))
    };
    let artifact_bytes = read(artifact::ARTIFACT_NAME)?;
    let weights_bytes = read(artifact::WEIGHTS_NAME)?;
    let artifact = Artifact::decode(&artifact_bytes).map_err(|e| unusable(e.to_string()))?;
    let weights = WeightsFile::decode(&weights_bytes).map_err(|e| unusable(e.to_string()))?;
    artifact
        .check_weights(&weights)
        .map_err(|e| unusable(e.to_string()))?;
    let digest = artifact.digest();
    let model = ServerModel::new(artifact, weights).map_err(|e| unusable(e.to_string()))?;
    let loaded = LoadedArtifact {
        bytes: artifact_bytes,
        digest,
    };
    Ok((model, loaded))
}

impl Shared {
    /// Closes an earlier connection of the same client: its state belongs to one process at a time,
    /// so that process is gone, and what was under way with it can end now instead of after a
    /// silence.
    fn supersede(&self, client: Fingerprint, quic: &quinn::Connection) {
        let mut connections = self.connections.lock().expect("no holder panics");
        if let Some(earlier) = connections.insert(client, quic.clone()) {
            earlier.close(Refusal::Silent.code(), b"superseded");
        }
    }

    fn forget(&self, client: Fingerprint, quic: &quinn::Connection) {
        let mut connections = self.connections.lock().expect("no holder panics");
        let current = connections.get(&client).map(quinn::Connection::stable_id);
        if current == Some(quic.stable_id()) {
            connections.remove(&client);
        }
    }
}

/// A stream whose session computes only while it holds one of a few permits; it waits for messages
/// without.
struct InTurn<'a> {
    stream: &'a mut MessageStream,
    turns: &'a Semaphore,
    permit: Option<SemaphorePermit<'a>>,
}

impl<'a> InTurn<'a> {
    fn new(stream: &'a mut MessageStream, turns: &'a Semaphore) -> Self {
        InTurn {
            stream,
            turns,
            permit: None,
        }
    }
}

impl Channel for InTurn<'_> {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), pi_protocol::Error> {
        self.permit = None;
        self.stream.send(message).await?;
        self.permit = self.turns.acquire().await.ok();
        Ok(())
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, pi_protocol::Error> {
        self.permit = None;
        let message = self.stream.receive(limit).await?;
        self.permit = self.turns.acquire().await.ok();
        Ok(message)
    }
}

/// One client's connection.
struct Connection {
    shared: Arc<Shared>,
    client: Fingerprint,
    greeting: OnceCell<Greeting>,
    next_index: AtomicU64,
    /// The bundle that will be asked for next, if it was read ahead. Reading it holds the lock, so
    /// that who needs it waits for it.
    loaded: Mutex<Option<Loaded>>,
}

/// A bundle in memory, not spent yet: nothing of it is sent before it is.
struct Loaded {
    bundle: ServerBundle,
    /// Its part of [`AHEAD_BYTES`].
    _memory: OwnedSemaphorePermit,
}

/// The nonces that both parties put into the headers of a connection's bundles.
#[derive(Clone, Copy)]
struct Greeting {
    client_nonce: [u8; 32],
    server_nonce: [u8; 32],
}

async fn serve_connection(
    shared: Arc<Shared>,
    incoming: quinn::Incoming,
    mut stop: watch::Receiver<bool>,
) {
    let from = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => {
            tracing::info!(%from, error = describe(&error), "no connection");
            return;
        }
    };
    let quic = match tokio::time::timeout(IDLE, connecting).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => {
            tracing::info!(%from, error = describe(&error), "no connection");
            return;
        }
        Err(_) => {
            tracing::info!(%from, "the handshake took too long");
            return;
        }
    };
    let Some(client) = transport::peer_fingerprint(&quic) else {
        quic.close(Refusal::Misbehaved.code(), b"no client certificate");
        return;
    };
    let name = short(&client.0);
    tracing::info!(client = name, %from, "connected");
    shared.supersede(client, &quic);
    let connection = Arc::new(Connection {
        shared,
        client,
        greeting: OnceCell::new(),
        next_index: AtomicU64::new(0),
        loaded: Mutex::default(),
    });
    let mut operations = JoinSet::new();
    let closing = loop {
        tokio::select! {
            stream = quic.accept_bi() => match stream {
                Ok((outgoing, incoming)) => {
                    let patience = connection.shared.patience;
                    let stream = MessageStream::new(outgoing, incoming, patience);
                    operations.spawn(serve_operation(connection.clone(), stream));
                }
                Err(_) => break None,
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
    connection.shared.forget(client, &quic);
    if let Some(refusal) = closing {
        quic.close(refusal.code(), b"");
    }
    tracing::info!(client = name, "disconnected");
}

async fn serve_operation(connection: Arc<Connection>, mut stream: MessageStream) {
    let client = short(&connection.client.0);
    let started = Instant::now();
    let request = match stream.receive_control::<Request>(REQUEST_LIMIT).await {
        Ok(request) => request,
        Err(error) => {
            tracing::warn!(client, %error, "no request");
            stream.refuse(Error::from_stream("client", error).refusal());
            return;
        }
    };
    let operation = match &request {
        Request::Hello(_) => "hello",
        Request::Artifact => "artifact",
        Request::Setup => "setup",
        Request::Prepare(_) => "prepare",
        Request::Infer => "infer",
    };
    let result = connection.serve(request, &mut stream).await;
    let traffic = stream.traffic();
    match result {
        Ok(()) => {
            if matches!(operation, "hello" | "prepare" | "infer") {
                connection.read_ahead();
            }
            // A client that has what it wants may be gone before it says so.
            let _ = stream.finish().await;
            tracing::info!(
                client,
                operation,
                bytes_in = traffic.bytes_received,
                bytes_out = traffic.bytes_sent,
                messages = traffic.messages_received + traffic.messages_sent,
                milliseconds = started.elapsed().as_millis() as u64,
                "done"
            );
        }
        Err(error) => {
            tracing::warn!(client, operation, %error, "failed");
            stream.refuse(error.refusal());
        }
    }
}

impl Connection {
    async fn serve(
        self: &Arc<Self>,
        request: Request,
        stream: &mut MessageStream,
    ) -> Result<(), Error> {
        if let Request::Hello(hello) = request {
            return self.hello(hello, stream).await;
        }
        let Some(greeting) = self.greeting.get().copied() else {
            return Err(misbehaved("a request before the greeting"));
        };
        if request == Request::Artifact {
            let artifact = self.shared.artifact.clone();
            return stream.send_message(artifact).await.map_err(from_client);
        }
        let session = self.shared.sessions.acquire().await;
        let _session = session.map_err(|e| Error::Internal(e.to_string()))?;
        match request {
            Request::Hello(_) | Request::Artifact => unreachable!("answered above"),
            Request::Setup => self.setup(greeting, stream).await,
            Request::Prepare(prepare) => self.prepare(greeting, prepare, stream).await,
            Request::Infer => self.infer(stream).await,
        }
    }

    async fn hello(&self, hello: Hello, stream: &mut MessageStream) -> Result<(), Error> {
        if hello.protocol != PROTOCOL_VERSION {
            return Err(Error::Version(format!(
                "the client speaks protocol {}, this server {}",
                hello.protocol, PROTOCOL_VERSION
            )));
        }
        if hello.probes.len() > MOST_PROBES {
            return Err(misbehaved("too many probes"));
        }
        let greeting = Greeting {
            client_nonce: hello.nonce,
            server_nonce: random(),
        };
        if self.greeting.set(greeting).is_err() {
            return Err(misbehaved("a second greeting"));
        }
        let welcome = block_in_place(|| {
            Ok::<_, Error>(Welcome {
                protocol: PROTOCOL_VERSION,
                software: software(),
                nonce: greeting.server_nonce,
                model: self.shared.digest,
                artifact_bytes: self.shared.artifact.len() as u64,
                setup: self.setup_of_client()?.map(|setup| setup.id()),
                held: self.held(&hello.probes)?,
            })
        })?;
        stream.send_control(&welcome).await.map_err(from_client)
    }

    async fn setup(&self, greeting: Greeting, stream: &mut MessageStream) -> Result<(), Error> {
        let inputs = self.header_inputs(greeting, 0);
        let rng = &mut OsRng.unwrap_err();
        let setup = compute(session::server_setup(stream, &inputs, rng));
        let setup = setup.map_err(|e| protocol_error("client", stream, e))?;
        let stored = Stored { id: setup.id() };
        block_in_place(|| self.shared.store.put_setup(self.client, &setup.encode()))?;
        stream.send_control(&stored).await.map_err(from_client)
    }

    async fn prepare(
        &self,
        greeting: Greeting,
        prepare: Prepare,
        stream: &mut MessageStream,
    ) -> Result<(), Error> {
        let count = u64::from(prepare.count);
        if prepare.held.len() as u64 + count > MOST_BUNDLES as u64 {
            return Err(misbehaved("more bundles than a client may hold"));
        }
        if prepare.held.len() as u64 + count > self.shared.max_bundles as u64 {
            return Err(Error::Refused {
                peer: "server",
                refusal: Refusal::TooManyBundles,
            });
        }
        // Indices of a connection only grow, so no two of its bundles have one header.
        let claimed = self.next_index.compare_exchange(
            prepare.first_index,
            prepare.first_index.saturating_add(count),
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        if claimed.is_err() {
            return Err(misbehaved("bundle indices that do not continue"));
        }
        let setup = block_in_place(|| {
            self.give_up_orphans(prepare.held)?;
            self.setup_of_client()
        })?;
        let setup = setup.ok_or(Error::Refused {
            peer: "server",
            refusal: Refusal::NoSetup,
        })?;
        let (shared, model) = (&self.shared, &self.shared.model);
        let mut index = prepare.first_index;
        for size in model.batches(count as usize) {
            let inputs = self.header_inputs(greeting, index);
            index += size as u64;
            let rng = &mut OsRng.unwrap_err();
            let mut channel = InTurn::new(stream, &shared.turns);
            let exchange = ServerBatch::start(&mut channel, model, &setup, &inputs, size, rng);
            let batch = compute(exchange);
            drop(channel);
            let mut batch = batch.map_err(|e| protocol_error("client", stream, e))?;
            loop {
                let mut channel = InTurn::new(stream, &shared.turns);
                let bundle = compute(batch.next_bundle(&mut channel));
                drop(channel);
                let bundle = bundle.map_err(|e| protocol_error("client", stream, e))?;
                let Some(bundle) = bundle else { break };
                let stored = Stored { id: bundle.id().0 };
                failpoint::reach("server-prepare-before-store");
                block_in_place(|| {
                    let (store, model) = (&shared.store, &shared.digest);
                    store.put_bundle(self.client, model, &stored.id, &bundle.encode())
                })?;
                failpoint::reach("server-prepare-after-store");
                stream.send_control(&stored).await.map_err(from_client)?;
            }
        }
        Ok(())
    }

    async fn infer(&self, stream: &mut MessageStream) -> Result<(), Error> {
        let model = &self.shared.model;
        let limit = OnlineRequest::encoded_len(model);
        let message = stream.receive_message(limit).await.map_err(from_client)?;
        let request = OnlineRequest::decode(&message, model)
            .map_err(|e| protocol_error("client", stream, e))?;
        let id = request.bundle_id().0;
        let (bundle, mark) = block_in_place(|| self.take_bundle(&id))?;
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(error) => {
                mark.done().await?;
                return Err(error);
            }
        };
        let mut spending = Spending::new(stream, mark, None);
        let session = session::server_infer(&mut spending, model, bundle, request);
        let answered = self.shared.pools.compute(session);
        spending.end().await?;
        // The answer is on its way, or never will be: what is left of the bundle goes in either
        // case.
        if let Err(error) = block_in_place(|| self.shared.store.erase(self.client, &id)) {
            tracing::warn!(bundle = short(&id), %error, "spent, but not erased yet");
        }
        answered.map_err(|e| protocol_error("client", stream, e))
    }

    /// A bundle of this client, and its mark as spent, which is under way.
    fn take_bundle(&self, id: &BundleId) -> Result<(Result<ServerBundle, Error>, Mark), Error> {
        let shared = &self.shared;
        let entry = shared.store.bundle(self.client, id)?;
        if let Some(entry) = entry
            && entry.model != shared.digest
        {
            return Err(Error::ModelChanged {
                stale: 1,
                prepared: entry.model,
                served: shared.digest,
            });
        }
        let reading = shared.store.content(self.client, id)?;
        let faults = ["server-infer-before-spend", "server-infer-after-spend"];
        let mark = Mark::start(&shared.store, self.client, id, faults);
        let loaded = self.loaded.lock().expect("no holder panics").take();
        let bundle = match loaded {
            Some(loaded) if loaded.bundle.id().0 == *id => Ok(loaded.bundle),
            _ => self.read_bundle(id, reading),
        };
        Ok((bundle, mark))
    }

    fn read_bundle(&self, id: &BundleId, reading: Reading) -> Result<ServerBundle, Error> {
        let damaged = |reason: String| self.damaged(format!("bundle {}: {reason}", short(id)));
        let bundle = ServerBundle::decode(&reading.run()?, &self.shared.model);
        let bundle = bundle.map_err(|e| damaged(e.to_string()))?;
        match bundle.id().0 == *id {
            true => Ok(bundle),
            false => Err(damaged("it has another name".into())),
        }
    }

    /// Reads the bundle ahead that a client uses next, its oldest, while nobody waits; see
    /// [`AHEAD_BYTES`].
    fn read_ahead(self: Arc<Self>) {
        spawn_blocking(move || {
            if let Err(error) = self.load_next() {
                // Whoever asks for the bundle gets the error.
                tracing::debug!(client = short(&self.client.0), %error, "nothing read ahead");
            }
        });
    }

    fn load_next(&self) -> Result<(), Error> {
        let mut loaded = self.loaded.lock().expect("no holder panics");
        let shared = &self.shared;
        let next = shared
            .store
            .ready(self.client, &shared.digest)?
            .into_iter()
            .next();
        let current = loaded.as_ref().map(|loaded| loaded.bundle.id().0);
        if next == current {
            return Ok(());
        }
        *loaded = None;
        let Some(id) = next else { return Ok(()) };
        let reading = shared.store.content(self.client, &id)?;
        let kibibytes = u32::try_from(reading.length().div_ceil(1024)).unwrap_or(u32::MAX);
        let Ok(memory) = shared.ahead.clone().try_acquire_many_owned(kibibytes) else {
            return Ok(());
        };
        *loaded = Some(Loaded {
            bundle: self.read_bundle(&id, reading)?,
            _memory: memory,
        });
        Ok(())
    }

    fn setup_of_client(&self) -> Result<Option<ServerSetup>, Error> {
        let Some(bytes) = self.shared.store.setup(self.client)? else {
            return Ok(None);
        };
        let setup = ServerSetup::decode(&bytes);
        setup
            .map(Some)
            .map_err(|e| self.damaged(format!("setup of client {}: {e}", self.client)))
    }

    fn held(&self, probes: &[BundleId]) -> Result<Vec<bool>, Error> {
        let mut held = Vec::with_capacity(probes.len());
        for id in probes {
            let entry = self.shared.store.bundle(self.client, id)?;
            held.push(entry.is_some_and(|entry| {
                entry.state == BundleState::Ready && entry.model == self.shared.digest
            }));
        }
        Ok(held)
    }

    /// Halves whose other half the client does not have are of no use to anyone.
    fn give_up_orphans(&self, held: Vec<BundleId>) -> Result<(), Error> {
        let keep: HashSet<BundleId> = held.into_iter().collect();
        let orphans = self.shared.store.discard_others(self.client, &keep)?;
        if orphans > 0 {
            tracing::info!(client = short(&self.client.0), orphans, "given up");
        }
        Ok(())
    }

    fn header_inputs(&self, greeting: Greeting, index: u64) -> HeaderInputs {
        HeaderInputs {
            server_peer: self.shared.fingerprint.0,
            client_peer: self.client.0,
            server_nonce: greeting.server_nonce,
            client_nonce: greeting.client_nonce,
            index,
        }
    }

    fn damaged(&self, reason: String) -> Error {
        let path = self.shared.store.directory().to_owned();
        StoreError::Damaged { path, reason }.into()
    }
}

fn from_client(error: StreamError) -> Error {
    Error::from_stream("client", error)
}

fn misbehaved(what: &str) -> Error {
    Error::PeerMisbehaved {
        peer: "client",
        what: what.into(),
    }
}
