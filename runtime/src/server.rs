//! The server: answers several clients at once, each operation on its own stream and thread.
//!
//! The reactor only moves bytes. Whatever computes, or waits for the disk, runs on blocking
//! threads; the offline phase additionally takes one of a few permits, so that preparing bundles
//! does not starve an inference. An operation that fails (or panics) ends with its stream: other
//! operations and clients do not notice.
//!
//! - `models`: the models that it has, and their versions.
//! - `clients`: who is served, and what each may have.
//! - `limits`: limits, and the days by which some are counted.
//! - `upkeep`: files that change while it runs.
//! - `link`: a connection, of `pi-client` or of a browser.
//! - `web`: the page for browsers, and their sessions.
//! - `connection`: a client's connection and the operations on it.
//! - `memory`: the memory that clients can make it use.
//! - `observed`: what the operator sees of it.
//! - `prepare`: the offline phase.
//! - `infer`: the online phase.

mod clients;
mod connection;
mod infer;
mod limits;
mod link;
mod memory;
mod models;
mod observed;
mod prepare;
mod upkeep;
#[cfg(feature = "web")]
mod web;
#[cfg(not(feature = "web"))]
#[path = "server/no_web.rs"]
mod web;
mod web_options;

pub use self::clients::{ClientEntry, ClientFile, ClientList, read_clients};
pub use self::limits::{Limits, Most, bytes};
pub use self::memory::default_budget;
pub use self::models::{Found, ModelSources, check_name};
pub use self::web_options::{Clock, WebOptions};

pub(crate) use self::limits::rest_of_today;

use self::clients::{Allowance, Clients};
use self::link::Link;
use self::memory::{AHEAD_BYTES, Memory};
use self::models::{Models, Served};
use self::web::Web;
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::observe::{Health, Metrics, Observable, State, Turned};
use crate::pinned_pool::PinnedPools;
use crate::store::{AnswerLimits, ModelDigest, ServerStore, Store, today};
use crate::stream::{Refusal, code};
use pi_ir::Reveal;
use pi_protocol::session::ServerSetup;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where the models are.
    pub models: ModelSources,
    /// Name of the model for clients that ask for none; without it, the only one.
    pub default_model: Option<String>,
    /// Address to listen at; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Directory of identity and store.
    pub state: PathBuf,
    /// Certificate chain and key of an operator, instead of the self-signed certificate. They are
    /// read again when they change.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Certificates of authorities: every client must prove a certificate that one of them signed.
    /// Read again when it changes; without it any certificate is a client's name.
    pub client_authorities: Option<PathBuf>,
    /// Limit on the clients connected at once.
    pub max_clients: usize,
    /// Limits of a client for a model, where the list of clients sets none.
    pub limits: Limits,
    /// Bytes of memory that clients can make the server use, all together; the models are not
    /// counted.
    pub memory: u64,
    /// The clients to serve, and what each may have; all are served if `None`.
    pub clients: Option<ClientList>,
    /// Longest silence of a client in the middle of an operation.
    pub patience: Duration,
    /// Binds computing threads to processors.
    pub bound: bool,
    /// The part for browsers, if they are served. Builds without the feature `web` have none.
    pub web: Option<WebOptions>,
}

impl ServerOptions {
    /// Limit on the clients connected at once, unless another is given.
    pub const CLIENTS: usize = 32;
    /// Limit on the bundles that a client has at rest for a model, unless another is given.
    pub const BUNDLES: u64 = 1000;
    /// Patience with a silent client, unless another is given.
    pub const PATIENCE: Duration = Duration::from_secs(300);

    /// A server of one model on a free port of this machine alone, for all clients.
    pub fn new(model: impl Into<PathBuf>, state: impl Into<PathBuf>) -> ServerOptions {
        ServerOptions {
            models: ModelSources::one(model),
            default_model: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            state: state.into(),
            certificate: None,
            client_authorities: None,
            max_clients: ServerOptions::CLIENTS,
            limits: Limits {
                bundles: Some(Most::At(ServerOptions::BUNDLES)),
                ..Limits::default()
            },
            memory: default_budget(),
            clients: None,
            patience: ServerOptions::PATIENCE,
            bound: true,
            web: None,
        }
    }
}

/// A version of a model that a server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedModel {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its digest.
    pub digest: ModelDigest,
    /// What a client learns of an answer.
    pub reveals: Reveal,
    /// Whether bundles are made for it.
    pub current: bool,
    /// Answers that a client of which nothing else is said ever gets; `None` without a limit.
    pub most_answers: Option<u64>,
}

fn describe(clients: &Clients, served: &Served) -> ServedModel {
    // Nobody has this fingerprint.
    let anyone = Fingerprint([0; 32]);
    ServedModel {
        name: served.name.clone(),
        version: served.version.clone(),
        digest: served.digest,
        reveals: served.reveals,
        current: served.is_current(),
        most_answers: clients
            .allowance(anyone, &served.name, served.reveals)
            .answers,
    }
}

/// A server that listens.
pub struct Server {
    endpoint: quinn::Endpoint,
    shared: Arc<Shared>,
    credentials: upkeep::Credentials,
    reload: Arc<Notify>,
    fingerprint: Fingerprint,
    max_clients: usize,
    web: Option<Arc<Web>>,
}

/// The state that all operations of a server share.
struct Shared {
    models: Models,
    store: Arc<dyn ServerStore>,
    /// The name under which bundles are made: see [`ServerStore::service`].
    service: Fingerprint,
    /// Whether clients are known by the names in their certificates.
    by_name: bool,
    patience: Duration,
    clients: Clients,
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
    connections: Mutex<HashMap<Fingerprint, Link>>,
    metrics: Metrics,
    health: Health,
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
    /// Looks at all that the options name, without a store and without listening, and returns the
    /// models that would be served.
    ///
    /// # Errors
    /// All faults found.
    pub fn check(options: &ServerOptions) -> Result<Vec<ServedModel>, Vec<Error>> {
        let mut faults = Vec::new();
        let mut note = |error: Error| match error {
            Error::Models(errors) => faults.extend(errors),
            error => faults.push(error),
        };
        let clients = Clients::open(options.clients.as_ref(), options.limits);
        let clients = clients.map_err(&mut note).ok();
        let models = Models::load(options.models.clone(), options.default_model.clone());
        let models = models.map_err(&mut note).ok();
        upkeep::Credentials::new(options)
            .check()
            .into_iter()
            .for_each(&mut note);
        web::check(options).into_iter().for_each(&mut note);
        let all = models.map(|models| models.all()).unwrap_or_default();
        let memory = Memory::new(
            all.iter().map(|served| &served.model),
            options.max_clients.max(1),
            options.memory,
        );
        memory.map(drop).unwrap_or_else(&mut note);
        if let (Some(clients), Some(list), false) = (&clients, &options.clients, all.is_empty()) {
            let known: HashSet<&str> = all.iter().map(|served| served.name.as_str()).collect();
            let unknown = clients.models_named().into_iter();
            for name in unknown.filter(|name| !known.contains(name.as_str())) {
                note(Error::ClientList {
                    path: list.path().to_owned(),
                    reason: format!("there is no model named {name}"),
                });
            }
        }
        match (faults.is_empty(), clients) {
            (true, Some(clients)) => Ok(all.iter().map(|s| describe(&clients, s)).collect()),
            _ => Err(faults),
        }
    }

    /// Loads models, identity and store and starts to listen. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`Error`] says what stands in the way; nothing listens then.
    pub fn start(options: &ServerOptions) -> Result<Server, Error> {
        Server::start_with(options, |state| Ok(Arc::new(Store::open(state)?)))
    }

    /// As [`Server::start`], with a store that `open` opens, given the state directory.
    ///
    /// # Errors
    /// As [`Server::start`], and those of `open`.
    pub fn start_with(
        options: &ServerOptions,
        open: impl FnOnce(&Path) -> Result<Arc<dyn ServerStore>, Error>,
    ) -> Result<Server, Error> {
        let clients = Clients::open(options.clients.as_ref(), options.limits)?;
        tracing::info!("loading the models");
        let models = Models::load(options.models.clone(), options.default_model.clone())?;
        let max_clients = options.max_clients.max(1);
        let all = models.all();
        let memory = Memory::new(all.iter().map(|s| &s.model), max_clients, options.memory)?;
        let store = open(&options.state)?;
        let credentials = upkeep::Credentials::new(options);
        let (identity, endpoint) = credentials.listen(options.listen)?;
        let web = web::listen(options)?;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let labels: Vec<String> = all.iter().map(|served| served.label()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let shared = Shared {
            metrics: Metrics::new(&labels),
            health: Health::default(),
            models,
            service: store.service(identity.fingerprint())?,
            store,
            by_name: options.client_authorities.is_some(),
            patience: options.patience,
            clients,
            sessions: Semaphore::new(SESSIONS),
            turns: Semaphore::new(cores.div_ceil(2)),
            memory,
            exchanging: Mutex::default(),
            setups: Mutex::default(),
            pools: PinnedPools::new(options.bound),
            ahead: Arc::new(Semaphore::new(AHEAD_BYTES / 1024)),
            connections: Mutex::default(),
        };
        shared.give_up_revoked()?;
        let web = web.map(|listening| listening.start(&shared).map(Arc::new));
        Ok(Server {
            web: web.transpose()?,
            endpoint,
            credentials,
            reload: Arc::default(),
            fingerprint: identity.fingerprint(),
            max_clients,
            shared: Arc::new(shared),
        })
    }

    /// The address at which it listens.
    ///
    /// # Errors
    /// An error of the system if it does not know the address.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The address of the page for browsers (HTTPS), and of their sessions (UDP).
    pub fn web_address(&self) -> Option<SocketAddr> {
        self.web.as_ref().map(|web| web.address())
    }

    /// The address of the page without TLS.
    pub fn web_http_address(&self) -> Option<SocketAddr> {
        self.web.as_ref().and_then(|web| web.plain_address())
    }

    /// The fingerprint that clients pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The name under which clients keep their bundles with this server.
    pub fn service(&self) -> Fingerprint {
        self.shared.service
    }

    /// What an operator may see of this server, for as long as it is held.
    pub fn observable(&self) -> Arc<dyn Observable> {
        self.shared.clone()
    }

    /// The versions of models that it has.
    pub fn models(&self) -> Vec<ServedModel> {
        let shared = &self.shared;
        shared
            .models
            .all()
            .iter()
            .map(|served| describe(&shared.clients, served))
            .collect()
    }

    /// Number of bundles in the store that are ready for its models, and for other models.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn bundles(&self) -> Result<(u64, u64), Error> {
        let at_rest = self.shared.store.at_rest()?;
        let all: u64 = at_rest.values().sum();
        let models = self.shared.models.all();
        let mine = models
            .iter()
            .filter_map(|served| at_rest.get(&served.digest));
        let mine: u64 = mine.sum();
        Ok((mine, all - mine))
    }

    /// Number of clients that the list names; `None` if all that come are served.
    pub fn listed_clients(&self) -> Option<usize> {
        self.shared.clients.listed()
    }

    /// Whoever notifies it has files that changed read again at once.
    pub fn reload(&self) -> Arc<Notify> {
        self.reload.clone()
    }

    /// Serves until `stop` becomes true or its sender is gone, then lets operations under way end.
    /// Meanwhile files that change are read again.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let upkeep = upkeep::keep_up(
            self.shared.clone(),
            self.credentials.clone(),
            (self.endpoint.clone(), self.web.clone()),
            self.reload.clone(),
            stop.clone(),
        );
        let upkeep = tokio::spawn(upkeep);
        let slots = Arc::new(Semaphore::new(self.max_clients));
        let mut connections = JoinSet::new();
        let stopping = stop.clone();
        let page = self.web.clone().map(|web| tokio::spawn(web.serve_page()));
        self.shared.health.enter(State::Accepting);
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
                incoming = accept_web(self.web.as_deref()) => {
                    let Some((incoming, slot)) = self.admit(incoming, &slots) else { continue };
                    let Some(web) = self.web.clone() else { continue };
                    let (shared, stop) = (self.shared.clone(), stopping.clone());
                    connections.spawn(async move {
                        web.serve(shared, incoming, stop).await;
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
        self.shared.health.enter(State::ShuttingDown);
        // First, since it may let the endpoint accept connections anew.
        if let Err(error) = upkeep.await {
            tracing::error!(%error, "files that change were no longer looked at");
        }
        self.endpoint.set_server_config(None);
        if let Some(page) = page {
            page.abort();
        }
        if let Some(web) = &self.web {
            web.refuse_more();
        }
        let all_ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all_ended).await.is_err() {
            tracing::warn!("operations were cut off");
        }
        self.endpoint
            .close(code(Refusal::ShuttingDown), b"shutting down");
        let _ = tokio::time::timeout(Duration::from_secs(2), self.endpoint.wait_idle()).await;
        if let Some(web) = &self.web {
            web.close().await;
        }
    }

    /// Takes a slot for a connection, or turns it away.
    fn admit(
        &self,
        incoming: quinn::Incoming,
        slots: &Arc<Semaphore>,
    ) -> Option<(quinn::Incoming, OwnedSemaphorePermit)> {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!(from = %incoming.remote_address(), "refused: all slots taken");
            self.shared.metrics.turned(Turned::Full);
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

/// The next connection of a browser; waits for ever where none are served.
async fn accept_web(web: Option<&Web>) -> quinn::Incoming {
    let next = match web {
        Some(web) => web.accept().await,
        None => None,
    };
    match next {
        Some(incoming) => incoming,
        None => std::future::pending().await,
    }
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

    /// What a client may have of a model, as the list says now.
    fn allowance(&self, client: Fingerprint, served: &Served) -> Allowance {
        self.clients.allowance(client, &served.name, served.reveals)
    }

    /// Answers of a model that a client can still get, ever and today; `None` without a limit.
    fn answers_left(
        &self,
        client: Fingerprint,
        served: &Served,
    ) -> Result<(Option<u64>, Option<u64>), Error> {
        let allowance = self.allowance(client, served);
        if allowance.answers.is_none() && allowance.answers_per_day.is_none() {
            return Ok((None, None));
        }
        let usage = self.store.usage(client, &served.name, today())?;
        let left = |limit: Option<u64>, used| limit.map(|limit| limit.saturating_sub(used));
        Ok((
            left(allowance.answers, usage.answers),
            left(allowance.answers_per_day, usage.answers_today),
        ))
    }

    /// The limits by which an answer is counted.
    fn answer_limits(&self, client: Fingerprint, served: &Served) -> AnswerLimits {
        let allowance = self.allowance(client, served);
        AnswerLimits {
            ever: allowance.answers,
            per_day: allowance.answers_per_day,
        }
    }

    /// Ensures that a client has bytes left today, for an operation that moves many.
    fn check_bytes(&self, client: Fingerprint, served: &Served) -> Result<(), Error> {
        let Some(limit) = self.allowance(client, served).bytes_per_day else {
            return Ok(());
        };
        let usage = self.store.usage(client, &served.name, today())?;
        match usage.bytes_today < limit {
            true => Ok(()),
            false => {
                let refusal = Refusal::BytesToday(rest_of_today());
                Err(connection::refused(refusal))
            }
        }
    }

    /// Counts the bytes of an operation, if there is a limit that asks for it.
    fn count_bytes(&self, client: Fingerprint, served: &Served, bytes: u64) -> Result<(), Error> {
        match self.allowance(client, served).bytes_per_day {
            Some(_) => Ok(self.store.add_bytes(client, &served.name, today(), bytes)?),
            None => Ok(()),
        }
    }

    /// Ensures that a client is to be served over this connection.
    ///
    /// Where the operator's authority says who the clients are, a browser is served only if the
    /// list names it: it has no certificate.
    fn admit(&self, client: Fingerprint, link: &Link) -> Result<(), Refusal> {
        self.clients.admit(client)?;
        match link.is_web() && self.by_name && !self.clients.names(client) {
            true => Err(Refusal::NotAllowed),
            false => Ok(()),
        }
    }

    /// Gives up what belongs to clients that the list revokes, and ends their connections.
    fn give_up_revoked(&self) -> Result<(), Error> {
        let revoked: HashSet<Fingerprint> = self.clients.revoked().into_iter().collect();
        if revoked.is_empty() {
            return Ok(());
        }
        for client in &revoked {
            if let Some(link) = lock(&self.connections).get(client) {
                link.close(Refusal::NotAllowed, "revoked");
            }
        }
        let known = self.store.clients()?.into_iter();
        for client in known.filter(|client| revoked.contains(client)) {
            let bundles = self.store.forget_client(client)?;
            tracing::info!(client = %client, bundles, "revoked: keys and bundles are erased");
        }
        Ok(())
    }

    /// Closes an earlier connection of the same client: its state belongs to one process at a time,
    /// so that process is gone, and what was under way with it can end now instead of after a
    /// silence.
    fn supersede(&self, client: Fingerprint, link: &Link) {
        let mut connections = self.connections.lock().expect("no holder panics");
        if let Some(earlier) = connections.insert(client, link.clone()) {
            earlier.close(Refusal::Silent, "superseded");
        }
    }

    /// Whether a client's connection is the latest one.
    fn is_current(&self, client: Fingerprint, link: &Link) -> bool {
        let connections = self.connections.lock().expect("no holder panics");
        let current = connections.get(&client).map(Link::stable_id);
        current == Some(link.stable_id())
    }

    fn forget(&self, client: Fingerprint, link: &Link) {
        let mut connections = self.connections.lock().expect("no holder panics");
        let current = connections.get(&client).map(Link::stable_id);
        if current == Some(link.stable_id()) {
            connections.remove(&client);
        }
    }
}
