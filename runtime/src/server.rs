//! The server: answers several clients at once, each operation on its own stream and thread.
//!
//! The reactor only moves bytes. Whatever computes, or waits for the disk, runs on blocking
//! threads; the offline phase additionally takes one of a few permits, so that preparing bundles
//! does not starve an inference. An operation that fails (or panics) ends with its stream: other
//! operations and clients do not notice.
//!
//! - `allow`: the list of clients that are served.
//! - `connection`: a client's connection and the operations on it.
//! - `memory`: the memory that clients can make it use.
//! - `prepare`: the offline phase.
//! - `infer`: the online phase.

mod allow;
mod connection;
mod infer;
mod memory;
mod prepare;

pub use self::memory::default_budget;

use self::allow::AllowList;
use self::memory::{AHEAD_BYTES, Memory};
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::identity::Identity;
use crate::model_files;
use crate::pinned_pool::PinnedPools;
use crate::store::{BundleState, ModelDigest, Store};
use crate::stream::Refusal;
use crate::transport;
use bytes::Bytes;
use pi_protocol::session::{ServerModel, ServerSetup};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Directory with `model.pia` and `model.piw`.
    pub model: PathBuf,
    /// Address to listen at; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Directory of identity and store.
    pub state: PathBuf,
    /// Certificate chain and key of an operator, instead of the self-signed certificate.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Limit on the clients connected at once.
    pub max_clients: usize,
    /// Limit on the bundles kept for one client.
    pub max_bundles: usize,
    /// Limit on the answers that one client ever gets from this state; no limit if `None`.
    pub max_answers: Option<u64>,
    /// Bytes of memory that clients can make the server use, all together; the model is not
    /// counted.
    pub memory: u64,
    /// File with the fingerprints of the clients to serve; all are served if `None`.
    pub allow: Option<PathBuf>,
    /// Longest silence of a client in the middle of an operation.
    pub patience: Duration,
    /// Binds computing threads to processors.
    pub bound: bool,
}

/// A server that listens.
pub struct Server {
    endpoint: quinn::Endpoint,
    shared: Arc<Shared>,
    fingerprint: Fingerprint,
    max_clients: usize,
}

/// The state that all operations of a server share.
struct Shared {
    model: ServerModel,
    digest: ModelDigest,
    artifact: Bytes,
    store: Arc<Store>,
    fingerprint: Fingerprint,
    patience: Duration,
    max_bundles: usize,
    max_answers: Option<u64>,
    allow: Option<AllowList>,
    /// Permits for sessions under way; each holds a thread.
    sessions: Semaphore,
    /// Permits for offline exchanges that compute; others wait their turn.
    turns: Semaphore,
    /// Memory for offline exchanges.
    memory: Memory,
    /// The clients with an offline exchange or a setup under way: one at a time each.
    exchanging: Mutex<HashSet<Fingerprint>>,
    /// The setups in use, so that operations of one client share what was decoded once.
    setups: Mutex<HashMap<Fingerprint, Weak<ServerSetup>>>,
    /// Threads of the inferences under way.
    pools: PinnedPools,
    /// Kibibytes left for bundles that are read ahead, for all clients together.
    ahead: Arc<Semaphore>,
    /// The connection of each client that is connected.
    connections: Mutex<HashMap<Fingerprint, quinn::Connection>>,
}

/// Limit on the sessions at once: half of the threads that tokio allows itself. The other half is
/// for the disk, and keeps the reactor going.
const SESSIONS: usize = 256;
/// Time after which a client that connects, or is connected and does nothing, makes room for
/// others.
const IDLE: Duration = Duration::from_secs(60);
/// Time that operations under way have to end once the server was asked to stop.
const GRACE: Duration = Duration::from_secs(30);

impl Server {
    /// Loads model, identity and store and starts to listen. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error`] says what stands in the way; nothing listens then.
    pub fn start(options: &ServerOptions) -> Result<Server, Error> {
        let allow = options.allow.as_deref().map(AllowList::open).transpose()?;
        tracing::info!("loading the model");
        let (model, artifact) = load_model(&options.model)?;
        let max_clients = options.max_clients.max(1);
        let memory = Memory::new(&model, max_clients, options.memory);
        let memory = memory.map_err(|least| Error::Memory {
            budget: options.memory,
            least,
            max_clients,
        })?;
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
            max_clients,
            shared: Arc::new(Shared {
                digest: model.digest(),
                artifact: artifact.into(),
                model,
                store,
                fingerprint: identity.fingerprint(),
                patience: options.patience,
                max_bundles: options.max_bundles,
                max_answers: options.max_answers,
                allow,
                sessions: Semaphore::new(SESSIONS),
                turns: Semaphore::new(cores.div_ceil(2)),
                memory,
                exchanging: Mutex::default(),
                setups: Mutex::default(),
                pools: PinnedPools::new(options.bound),
                ahead: Arc::new(Semaphore::new(AHEAD_BYTES / 1024)),
                connections: Mutex::default(),
            }),
        })
    }

    /// The address at which it listens.
    ///
    /// # Errors
    /// An error of the system if it does not know the address.
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

    /// Number of bundles in the store that are ready for this model, and for other models.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn bundles(&self) -> Result<(usize, usize), Error> {
        let mut all = self.shared.store.bundles()?;
        all.retain(|entry| entry.state == BundleState::Ready);
        let mine = all.iter().filter(|entry| entry.model == self.shared.digest);
        let mine = mine.count();
        Ok((mine, all.len() - mine))
    }

    /// Number of clients on the list of those that are served; `None` if all are.
    pub fn allowed_clients(&self) -> Option<usize> {
        self.shared.allow.as_ref().map(AllowList::len)
    }

    /// Serves until `stop` becomes true or its sender is gone, then lets operations under way end.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let slots = Arc::new(Semaphore::new(self.max_clients));
        let mut connections = JoinSet::new();
        let stopping = stop.clone();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    let Some((incoming, slot)) = self.admit(incoming, &slots) else { continue };
                    let (shared, stop) = (self.shared.clone(), stopping.clone());
                    connections.spawn(async move {
                        connection::serve(shared, incoming, stop).await;
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

    /// Takes a slot for a connection, or turns it away.
    fn admit(
        &self,
        incoming: quinn::Incoming,
        slots: &Arc<Semaphore>,
    ) -> Option<(quinn::Incoming, OwnedSemaphorePermit)> {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!(from = %incoming.remote_address(), "refused: all slots taken");
            incoming.refuse();
            return None;
        };
        // When slots get scarce, an address must first show that it receives at all.
        if 2 * slots.available_permits() < self.max_clients
            && incoming.may_retry()
            && !incoming.remote_address_validated()
        {
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return None;
        }
        Some((incoming, slot))
    }
}

/// The model in a directory, and the bytes of its artifact.
fn load_model(directory: &Path) -> Result<(ServerModel, Vec<u8>), Error> {
    let (artifact, bytes) = model_files::read_artifact(directory)?;
    let weights = model_files::read_weights(directory)?;
    let unusable = |error: &dyn ToString| model_files::unusable(directory, error.to_string());
    artifact.check_weights(&weights).map_err(|e| unusable(&e))?;
    let model = ServerModel::new(artifact, weights).map_err(|e| unusable(&e))?;
    Ok((model, bytes))
}

/// The right of a client to an offline exchange, until it is dropped.
struct Exchanging<'a> {
    exchanging: &'a Mutex<HashSet<Fingerprint>>,
    client: Fingerprint,
}

impl Drop for Exchanging<'_> {
    fn drop(&mut self) {
        lock(self.exchanging).remove(&self.client);
    }
}

/// Every change under these locks is one step, so a panic of a holder spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Lets a client begin an exchange, unless it has one under way.
    fn exchange(&self, client: Fingerprint) -> Result<Exchanging<'_>, Refusal> {
        match lock(&self.exchanging).insert(client) {
            true => Ok(Exchanging {
                exchanging: &self.exchanging,
                client,
            }),
            false => Err(memory::come_back()),
        }
    }

    /// The setup of a client as another operation has decoded it, if one uses it now.
    fn setup_in_use(&self, client: Fingerprint) -> Option<Arc<ServerSetup>> {
        lock(&self.setups).get(&client)?.upgrade()
    }

    /// Lets other operations of a client use a setup.
    fn share_setup(&self, client: Fingerprint, setup: &Arc<ServerSetup>) {
        let mut setups = lock(&self.setups);
        setups.retain(|_, setup| setup.strong_count() > 0);
        setups.insert(client, Arc::downgrade(setup));
    }

    /// Ensures that a client is to be served; reads the list anew.
    fn admit(&self, client: Fingerprint) -> Result<(), Refusal> {
        match &self.allow {
            Some(list) if !list.allows(client) => Err(Refusal::NotAllowed),
            _ => Ok(()),
        }
    }

    /// Answers that a client can still get; `None` without a limit.
    fn answers_left(&self, client: Fingerprint) -> Result<Option<u64>, Error> {
        let Some(limit) = self.max_answers else {
            return Ok(None);
        };
        Ok(Some(limit.saturating_sub(self.store.answers(client)?)))
    }

    /// Closes an earlier connection of the same client: its state belongs to one process at a time,
    /// so that process is gone, and what was under way with it can end now instead of after a
    /// silence.
    fn supersede(&self, client: Fingerprint, quic: &quinn::Connection) {
        let mut connections = self.connections.lock().expect("no holder panics");
        if let Some(earlier) = connections.insert(client, quic.clone()) {
            earlier.close(Refusal::Silent.code(), b"superseded");
        }
    }

    /// Whether a client's connection is the latest one.
    fn is_current(&self, client: Fingerprint, stable_id: usize) -> bool {
        let connections = self.connections.lock().expect("no holder panics");
        let current = connections.get(&client).map(quinn::Connection::stable_id);
        current == Some(stable_id)
    }

    fn forget(&self, client: Fingerprint, quic: &quinn::Connection) {
        let mut connections = self.connections.lock().expect("no holder panics");
        let current = connections.get(&client).map(quinn::Connection::stable_id);
        if current == Some(quic.stable_id()) {
            connections.remove(&client);
        }
    }
}
