//! The client: prepares bundles with a server and spends them.

use crate::control::{
    Hello, MOST_BUNDLES, MOST_PROBES, Prepare, REPLY_LIMIT, Request, Stored, Welcome, software,
};
use crate::error::Error;
use crate::failpoint;
use crate::fingerprint::{Fingerprint, short};
use crate::identity::{self, Identity};
use crate::party::{compute, protocol_error, random};
use crate::spending::{Mark, Spending};
use crate::store::{
    BundleEntry, BundleId, BundleState, ModelDigest, PeerRecord, Reading, Store, StoreError,
    unix_milliseconds,
};
use crate::stream::{MessageStream, Refusal, StreamError, Traffic, describe};
use crate::pinned_pool::PinnedPools;
use crate::transport::{self, ClientEndpoint, Trust};
use pi_ir::{Artifact, Circuit, Step, Trace, Verified, limits};
use pi_protocol::header::{HeaderInputs, PROTOCOL_VERSION};
use pi_protocol::session::{self, ClientBatch, ClientBundle, ClientModel, ClientSetup};
use rand_core::{OsRng, TryRngCore};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, block_in_place, spawn_blocking};

/// A client's state on this machine, and how patient it is.
pub struct Client {
    store: Arc<Store>,
    identity: Identity,
    patience: Patience,
    pools: PinnedPools,
}

/// How long to wait for a server.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the connection to stand.
    pub connect: Duration,
    /// For the next bytes in the middle of an operation, in which the server may be computing.
    pub silence: Duration,
}

/// What the user says about whom to trust.
#[derive(Clone, Debug, Default)]
pub struct TrustOptions {
    /// The server's fingerprint.
    pub fingerprint: Option<Fingerprint>,
    /// A PEM file of certificate authorities.
    pub authorities: Option<PathBuf>,
    /// Believe whoever answers, if nothing is known of the server yet.
    pub first_use: bool,
}

/// What an operation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time on the clock.
    pub wall: Duration,
    /// Messages and their bytes, as this side counts them.
    pub traffic: Traffic,
}

/// The outcome of one inference.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Logits as integers at scale `2^output_frac_bits`.
    pub logits: Vec<i64>,
    /// Binary digits of a logit behind the point.
    pub output_frac_bits: u8,
    /// The client's shares, if they were asked for.
    pub trace: Option<Trace>,
    /// The bundle spent.
    pub bundle: BundleId,
    /// What the online phase took.
    pub online: Spent,
}

impl Prediction {
    /// Index of the largest logit.
    pub fn class(&self) -> usize {
        let mut best = 0;
        for (index, logit) in self.logits.iter().enumerate() {
            if *logit > self.logits[best] {
                best = index;
            }
        }
        best
    }
}

/// Name of a class of a model, or its number.
pub fn class_name(circuit: &Circuit, class: usize) -> String {
    match circuit.classes.get(class) {
        Some(name) => name.clone(),
        None => format!("class {class}"),
    }
}

impl Client {
    /// Opens the state of a client, or makes one with a new key pair.
    ///
    /// # Errors
    /// Those of the store and of the identity.
    pub fn open(state: &Path, patience: Patience) -> Result<Client, Error> {
        let store = Arc::new(Store::open(state)?);
        let identity = Identity::load_or_create(state, &["pi-client"])?;
        Ok(Client {
            store,
            identity,
            patience,
            pools: PinnedPools::new(true),
        })
    }

    /// Lets the system move computing threads between processors, which others keep busy too.
    pub fn unbound(mut self) -> Client {
        self.pools = PinnedPools::new(false);
        self
    }

    /// The fingerprint that servers know this client by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    /// The servers that bundles were prepared with, the latest first.
    ///
    /// A server that was replaced by another at all its addresses is left out.
    ///
    /// # Errors
    /// Those of the store.
    pub fn servers(&self) -> Result<Vec<(Fingerprint, PeerRecord)>, Error> {
        let mut peers = self.store.peers()?;
        peers.sort_by_key(|(_, record)| std::cmp::Reverse(record.prepared_at));
        let mut taken = HashSet::new();
        peers.retain_mut(|(_, record)| {
            let addresses = &mut record.addresses;
            addresses.retain(|address| taken.insert(address.clone()));
            !addresses.is_empty()
        });
        Ok(peers)
    }

    /// The one server meant: the one named, or the only one known.
    ///
    /// # Errors
    /// [`Error::NoServer`] or [`Error::WhichServer`] when none or several are known,
    /// [`Error::NotPrepared`] when the one named is not.
    pub fn server(&self, address: Option<&str>) -> Result<(Fingerprint, PeerRecord), Error> {
        let mut known = self.servers()?;
        if let Some(address) = address {
            known.retain(|(_, record)| record.addresses.iter().any(|a| a == address));
            return known
                .pop()
                .ok_or_else(|| Error::NotPrepared(address.into()));
        }
        match known.len() {
            0 => Err(Error::NoServer),
            1 => Ok(known.remove(0)),
            _ => {
                let addresses: Vec<&str> = known.iter().map(|(_, r)| r.address()).collect();
                Err(Error::WhichServer(addresses.join(", ")))
            }
        }
    }

    /// All bundles with a server, spent ones included, oldest first.
    ///
    /// # Errors
    /// Those of the store.
    pub fn bundles(&self, server: Fingerprint) -> Result<Vec<BundleEntry>, Error> {
        let mut bundles = self.store.bundles()?;
        bundles.retain(|entry| entry.peer == server);
        bundles.sort_by_key(|entry| (entry.stored_at, entry.id));
        Ok(bundles)
    }

    /// The circuit of a model that was prepared for.
    ///
    /// # Errors
    /// Those of the store; [`Error::Artifact`] when it is not kept.
    pub fn circuit(&self, model: &ModelDigest) -> Result<Verified<Circuit>, Error> {
        Ok(self.kept_artifact(model)?.circuit)
    }

    /// Connects and greets.
    ///
    /// The server is the pinned one: by `trust.fingerprint`, by a certificate authority, or by what
    /// is remembered of this address; only for an unknown address and if the user asked for it,
    /// whoever answers.
    ///
    /// # Errors
    /// [`Error`] says whether nobody answered, or the wrong one, or one that speaks another
    /// version.
    pub async fn connect(
        &self,
        address: &str,
        trust: &TrustOptions,
    ) -> Result<Connection<'_>, Error> {
        let trust = self.decide_trust(address, trust)?;
        let host = host_of(address)?;
        let addresses = tokio::net::lookup_host(address)
            .await
            .map_err(|error| Error::Address {
                address: address.into(),
                reason: error.to_string(),
            })?;
        let mut result = Err(Error::Address {
            address: address.into(),
            reason: "the name has no address".into(),
        });
        for to in addresses {
            result = self.connect_to(to, &host, trust.clone()).await;
            // Another address of the same name is worth a try only if this one is dead.
            let dead = matches!(
                result,
                Err(Error::Unreachable { .. } | Error::NobodyListens(_))
            );
            if !dead {
                break;
            }
        }
        let (endpoint, quic) = result?;
        let server = transport::peer_fingerprint(&quic)
            .ok_or_else(|| Error::Internal("a connection without a server certificate".into()))?;
        self.greet(address, endpoint, quic, server).await
    }

    fn decide_trust(&self, address: &str, options: &TrustOptions) -> Result<Trust, Error> {
        if let Some(fingerprint) = options.fingerprint {
            return Ok(Trust::Pinned(fingerprint));
        }
        if let Some(path) = &options.authorities {
            return Ok(Trust::Authorities(identity::read_certificates(path)?));
        }
        match self.server(Some(address)) {
            Ok((fingerprint, _)) => Ok(Trust::Pinned(fingerprint)),
            Err(Error::NotPrepared(_)) if options.first_use => Ok(Trust::FirstUse),
            Err(Error::NotPrepared(_)) => Err(Error::NoTrust(address.into())),
            Err(error) => Err(error),
        }
    }

    async fn connect_to(
        &self,
        server: SocketAddr,
        host: &str,
        trust: Trust,
    ) -> Result<(ClientEndpoint, quinn::Connection), Error> {
        let pinned = match &trust {
            Trust::Pinned(fingerprint) => Some(*fingerprint),
            _ => None,
        };
        let client = transport::client_endpoint(&self.identity, trust, server)?;
        let connecting = client
            .endpoint
            .connect(server, host)
            .map_err(|e| Error::Address {
                address: server.to_string(),
                reason: e.to_string(),
            })?;
        let waited = self.patience.connect;
        let connected = tokio::select! {
            result = tokio::time::timeout(waited, connecting) => result,
            () = refused(server) => return Err(Error::NobodyListens(server)),
        };
        match connected {
            Ok(Ok(quic)) => Ok((client, quic)),
            Ok(Err(error)) => Err(connect_error(server, waited, error, pinned, &client)),
            Err(_) => Err(Error::Unreachable { server, waited }),
        }
    }

    async fn greet(
        &self,
        address: &str,
        endpoint: ClientEndpoint,
        quic: quinn::Connection,
        server: Fingerprint,
    ) -> Result<Connection<'_>, Error> {
        let mut ready = self.bundles(server)?;
        ready.retain(|entry| entry.state == BundleState::Ready);
        let probes: Vec<BundleEntry> = ready.iter().take(MOST_PROBES).copied().collect();
        let nonce = random();
        let mut connection = Connection {
            client: self,
            address: address.into(),
            _endpoint: endpoint,
            quic,
            server,
            nonce,
            next_index: 0,
            welcome: Welcome {
                protocol: PROTOCOL_VERSION,
                software: software(),
                nonce: [0; 32],
                model: [0; 32],
                artifact_bytes: 0,
                setup: None,
                held: Vec::new(),
            },
            probes,
            loaded: None,
            erasing: None,
        };
        let hello = Request::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            software: software(),
            nonce,
            probes: connection.probes.iter().map(|entry| entry.id).collect(),
        });
        let mut stream = connection.open(&hello).await?;
        let welcome: Welcome = stream
            .receive_control(REPLY_LIMIT)
            .await
            .map_err(|e| match e {
                StreamError::Refused(Refusal::Incompatible) => {
                    Error::Version("the server speaks another protocol version".into())
                }
                e => from_server(e),
            })?;
        if welcome.protocol != PROTOCOL_VERSION {
            return Err(Error::Version(format!(
                "the server speaks protocol {}, this client {}",
                welcome.protocol, PROTOCOL_VERSION
            )));
        }
        if welcome.held.len() != connection.probes.len() {
            return Err(Error::PeerMisbehaved {
                peer: "server",
                what: format!(
                    "{} answers to {} probes",
                    welcome.held.len(),
                    connection.probes.len()
                ),
            });
        }
        connection.welcome = welcome;
        Ok(connection)
    }

    fn kept_artifact(&self, model: &ModelDigest) -> Result<Artifact, Error> {
        let Some(bytes) = self.store.artifact(model)? else {
            let name = short(model);
            return Err(Error::Artifact(format!("model {name} is not kept here")));
        };
        Artifact::decode(&bytes).map_err(|e| Error::Artifact(e.to_string()))
    }

    fn damaged(&self, reason: String) -> Error {
        let path = self.store.directory().to_owned();
        StoreError::Damaged { path, reason }.into()
    }
}

/// A greeted server.
pub struct Connection<'a> {
    client: &'a Client,
    address: String,
    /// Keeps the socket open.
    _endpoint: ClientEndpoint,
    quic: quinn::Connection,
    server: Fingerprint,
    nonce: [u8; 32],
    next_index: u64,
    welcome: Welcome,
    probes: Vec<BundleEntry>,
    /// A bundle that was read ahead; nothing of it is sent before it is marked spent.
    loaded: Option<ClientBundle>,
    /// Erases what is left of the bundle spent last.
    erasing: Option<JoinHandle<()>>,
}

impl Connection<'_> {
    /// The server's fingerprint.
    pub fn server(&self) -> Fingerprint {
        self.server
    }

    /// The model it serves.
    pub fn model_digest(&self) -> ModelDigest {
        self.welcome.model
    }

    /// The server's program.
    pub fn software(&self) -> &str {
        &self.welcome.software
    }

    /// The model served, from the store, or fetched, verified and kept; and what fetching took.
    ///
    /// # Errors
    /// [`Error::Artifact`] when the file is not what its digest says or not a sound circuit.
    pub async fn model(&mut self) -> Result<(ClientModel, Option<Spent>), Error> {
        let digest = self.welcome.model;
        if self.client.store.artifact(&digest)?.is_some() {
            let artifact = self.client.kept_artifact(&digest)?;
            let model = block_in_place(|| ClientModel::new(artifact));
            return Ok((model.map_err(|e| Error::Artifact(e.to_string()))?, None));
        }
        let started = Instant::now();
        let mut stream = self.open(&Request::Artifact).await?;
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
        let spent = Spent {
            wall: started.elapsed(),
            traffic: stream.traffic(),
        };
        Ok((model, Some(spent)))
    }

    /// The keys shared with this server, from the store, or exchanged now; and what that took.
    ///
    /// # Errors
    /// Those of the exchange and of the store.
    pub async fn setup(&mut self) -> Result<(ClientSetup, Option<Spent>), Error> {
        if let Some(bytes) = self.client.store.setup(self.server)? {
            let setup = ClientSetup::decode(&bytes).map_err(|e| {
                self.client
                    .damaged(format!("setup with {}: {e}", self.server))
            })?;
            if self.welcome.setup == Some(setup.id()) {
                return Ok((setup, None));
            }
        }
        let started = Instant::now();
        let mut stream = self.open(&Request::Setup).await?;
        let inputs = self.header_inputs(0);
        let rng = &mut OsRng.unwrap_err();
        let setup = compute(session::client_setup(&mut stream, &inputs, rng));
        let setup = setup.map_err(|e| protocol_error("server", &mut stream, e))?;
        // Either half alone is useless; the server's is durable when it says so.
        self.await_stored(&mut stream, setup.id()).await?;
        let encoded = setup.encode();
        block_in_place(|| self.client.store.put_setup(self.server, &encoded))?;
        self.welcome.setup = Some(setup.id());
        let spent = Spent {
            wall: started.elapsed(),
            traffic: stream.traffic(),
        };
        Ok((setup, Some(spent)))
    }

    /// Runs the offline phase for `count` bundles, in batches as large as the model has plans for,
    /// and keeps the bundles; `progress` hears of each one kept, the first of a batch with what the
    /// batch's linear layers took.
    ///
    /// # Errors
    /// The bundles kept before an error stay.
    pub async fn prepare(
        &mut self,
        model: &ClientModel,
        setup: &ClientSetup,
        count: u32,
        mut progress: impl FnMut(&Spent),
    ) -> Result<Spent, Error> {
        let started = Instant::now();
        let useless = self.give_up_unheld()?;
        if useless > 0 {
            tracing::warn!("the server lost its halves of {useless} bundles; they were given up");
        }
        let mut held = self.client.bundles(self.server)?;
        held.retain(|entry| entry.state == BundleState::Ready);
        if held.len() + count as usize > MOST_BUNDLES {
            return Err(Error::TooManyBundles {
                most: MOST_BUNDLES,
                held: held.len(),
                asked: count as usize,
            });
        }
        // Known from here on, so that a broken exchange does not lose the pin.
        block_in_place(|| self.remember_server())?;
        let request = Request::Prepare(Prepare {
            count,
            first_index: self.next_index,
            held: held.iter().map(|entry| entry.id).collect(),
        });
        let mut stream = self.open(&request).await?;
        let mut before = Spent::default();
        for size in model.batches(count as usize) {
            let inputs = self.header_inputs(self.next_index);
            self.next_index += size as u64;
            let rng = &mut OsRng.unwrap_err();
            let batch = compute(ClientBatch::start(
                &mut stream,
                model,
                setup,
                &inputs,
                size,
                rng,
            ));
            let mut batch = batch.map_err(|e| protocol_error("server", &mut stream, e))?;
            loop {
                let bundle = compute(batch.next_bundle(&mut stream));
                let bundle = bundle.map_err(|e| protocol_error("server", &mut stream, e))?;
                let Some(bundle) = bundle else { break };
                self.keep(&mut stream, bundle).await?;
                let now = Spent {
                    wall: started.elapsed(),
                    traffic: stream.traffic(),
                };
                progress(&Spent {
                    wall: now.wall - before.wall,
                    traffic: now.traffic - before.traffic,
                });
                before = now;
            }
        }
        Ok(before)
    }

    /// Stores a bundle once the server has stored its half: a bundle kept here always has its other
    /// half.
    async fn keep(
        &mut self,
        stream: &mut MessageStream,
        bundle: ClientBundle,
    ) -> Result<(), Error> {
        let id = bundle.id().0;
        failpoint::reach("client-prepare-before-stored");
        self.await_stored(stream, id).await?;
        failpoint::reach("client-prepare-before-store");
        block_in_place(|| {
            let (store, model) = (&self.client.store, &self.welcome.model);
            store.put_bundle(self.server, model, &id, &bundle.encode())
        })?;
        failpoint::reach("client-prepare-after-store");
        self.probes.push(BundleEntry {
            peer: self.server,
            id,
            model: self.welcome.model,
            state: BundleState::Ready,
            stored_at: unix_milliseconds(),
        });
        self.welcome.held.push(true);
        Ok(())
    }

    fn remember_server(&self) -> Result<(), Error> {
        /// Addresses remembered of one server.
        const MOST_ADDRESSES: usize = 8;
        let store = &self.client.store;
        let mut peers = store.peers()?;
        peers.retain(|(server, _)| *server == self.server);
        let mut addresses = peers.pop().map_or_else(Vec::new, |(_, old)| old.addresses);
        addresses.retain(|address| *address != self.address);
        addresses.insert(0, self.address.clone());
        addresses.truncate(MOST_ADDRESSES);
        let record = PeerRecord {
            addresses,
            model: self.welcome.model,
            prepared_at: unix_milliseconds(),
        };
        Ok(store.put_peer(self.server, &record)?)
    }

    /// The bundle to use next, one that both parties hold for the model served; and how many had to
    /// be given up.
    ///
    /// # Errors
    /// [`Error::NotPrepared`], [`Error::NoBundle`], [`Error::ModelChanged`] or [`Error::NotHeld`].
    pub fn next_bundle(&mut self) -> Result<(BundleId, usize), Error> {
        let useless = self.give_up_unheld()?;
        let served = self.welcome.model;
        let next = self.probes.iter().find(|entry| entry.model == served);
        match (next, useless, self.probes.first()) {
            (Some(entry), _, _) => Ok((entry.id, useless)),
            (None, 1.., _) => Err(Error::NotHeld(useless)),
            (None, 0, Some(other)) => Err(Error::ModelChanged {
                stale: self.probes.len(),
                prepared: other.model,
                served,
            }),
            (None, 0, None) => Err(self.client.no_bundle(&self.address, self.server)?),
        }
    }

    /// Gives up bundles for this model whose other halves the server does not hold: nobody can use
    /// them any more.
    fn give_up_unheld(&mut self) -> Result<usize, Error> {
        let mut useless = 0;
        for index in (0..self.probes.len()).rev() {
            let entry = self.probes[index];
            if entry.model == self.welcome.model && !self.welcome.held[index] {
                block_in_place(|| self.client.store.discard(self.server, &entry.id))?;
                self.probes.remove(index);
                self.welcome.held.remove(index);
                useless += 1;
            }
        }
        Ok(useless)
    }

    /// Reads a bundle ahead, so that [`Connection::infer`] with it starts at once; it is not spent
    /// by that.
    ///
    /// # Errors
    /// Those of the store; the bundle stays as it is.
    pub async fn load(&mut self, model: &ClientModel, id: &BundleId) -> Result<(), Error> {
        // Erasing keeps the disk busy, and the next mark would wait for it.
        self.erased().await;
        // What was read before goes first: two bundles at once may be more than there is memory
        // for.
        self.loaded = None;
        self.loaded = Some(block_in_place(|| {
            self.client.pools.ready();
            self.read_bundle(model, id, None)
        })?);
        Ok(())
    }

    fn read_bundle(
        &self,
        model: &ClientModel,
        id: &BundleId,
        reading: Option<Reading>,
    ) -> Result<ClientBundle, Error> {
        let client = self.client;
        let reading = match reading {
            Some(reading) => reading,
            None => client.store.content(self.server, id)?,
        };
        let damaged = |reason: String| client.damaged(format!("bundle {}: {reason}", short(id)));
        let bundle = ClientBundle::decode(&reading.run()?, model);
        let bundle = bundle.map_err(|e| damaged(e.to_string()))?;
        match bundle.id().0 == *id {
            true => Ok(bundle),
            false => Err(damaged("it has another name".into())),
        }
    }

    /// Spends a bundle on one input: the quantised pixels, in the order of the model's input.
    ///
    /// What is left of it is erased in the background, at the latest when the connection is closed,
    /// or the store opened again.
    ///
    /// # Errors
    /// The bundle is spent in any case once this was called.
    pub async fn infer(
        &mut self,
        model: &ClientModel,
        id: &BundleId,
        input: &[i64],
        trace: bool,
    ) -> Result<Prediction, Error> {
        let started = Instant::now();
        if let Some(probe) = self.probes.iter().position(|entry| entry.id == *id) {
            self.probes.remove(probe);
            self.welcome.held.remove(probe);
        }
        let loaded = self.loaded.take().filter(|bundle| bundle.id().0 == *id);
        let reading = match loaded {
            Some(_) => None,
            None => Some(self.client.store.content(self.server, id)?),
        };
        let faults = ["client-infer-before-spend", "client-infer-after-spend"];
        let mark = Mark::start(&self.client.store, self.server, id, faults);
        let bundle = match loaded {
            Some(bundle) => Ok(bundle),
            None => block_in_place(|| self.read_bundle(model, id, reading)),
        };
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(error) => {
                mark.done().await?;
                self.erase(id).await;
                return Err(error);
            }
        };
        let stream = self.quic.open_bi().await;
        let (outgoing, incoming) = match stream {
            Ok(halves) => halves,
            Err(error) => {
                mark.done().await?;
                self.erase(id).await;
                return Err(connection_lost(&error));
            }
        };
        let mut stream = MessageStream::new(outgoing, incoming, self.client.patience.silence);
        let mut spending = Spending::new(&mut stream, mark, Some(Request::Infer));
        let session = session::client_infer(&mut spending, model, bundle, input, trace);
        let inference = self.client.pools.compute(session);
        let online = Spent {
            wall: started.elapsed(),
            traffic: spending.traffic(),
        };
        spending.end().await?;
        self.erase(id).await;
        let inference = inference.map_err(|e| protocol_error("server", &mut stream, e))?;
        Ok(Prediction {
            logits: inference.logits,
            output_frac_bits: output_frac_bits(&model.artifact().circuit),
            trace: inference.trace,
            bundle: *id,
            online,
        })
    }

    /// Erases a spent bundle in the background.
    async fn erase(&mut self, id: &BundleId) {
        self.erased().await;
        let complain = |error| tracing::warn!(%error, "a spent bundle is not erased yet");
        match self.client.store.erasure(self.server, id) {
            Ok(erasure) => {
                self.erasing = Some(spawn_blocking(move || {
                    erasure.run().unwrap_or_else(complain);
                }));
            }
            Err(error) => complain(error),
        }
    }

    /// Waits until no erasure is under way.
    async fn erased(&mut self) {
        if let Some(erasing) = self.erasing.take()
            && let Err(error) = erasing.await
        {
            tracing::warn!(%error, "a spent bundle is not erased yet");
        }
    }

    /// Says goodbye, so that the server frees the slot at once.
    pub async fn close(mut self) {
        self.erased().await;
        self.quic.close(quinn::VarInt::from_u32(0), b"");
        let idle = self._endpoint.endpoint.wait_idle();
        let _ = tokio::time::timeout(Duration::from_secs(1), idle).await;
    }

    async fn open(&self, request: &Request) -> Result<MessageStream, Error> {
        let (outgoing, incoming) = self.quic.open_bi().await.map_err(|e| connection_lost(&e))?;
        let mut stream = MessageStream::new(outgoing, incoming, self.client.patience.silence);
        stream.send_control(request).await.map_err(from_server)?;
        Ok(stream)
    }

    async fn await_stored(&self, stream: &mut MessageStream, id: [u8; 32]) -> Result<(), Error> {
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

    fn header_inputs(&self, index: u64) -> HeaderInputs {
        HeaderInputs {
            server_peer: self.server.0,
            client_peer: self.client.fingerprint().0,
            server_nonce: self.welcome.nonce,
            client_nonce: self.nonce,
            index,
        }
    }
}

impl Client {
    /// Whether bundles were used up or never made.
    fn no_bundle(&self, address: &str, server: Fingerprint) -> Result<Error, Error> {
        Ok(match self.bundles(server)?.is_empty() {
            true => Error::NotPrepared(address.into()),
            false => Error::NoBundle(address.into()),
        })
    }

    /// Ensures, without a connection, that some bundle is there to use with a server.
    ///
    /// # Errors
    /// [`Error::NotPrepared`] or [`Error::NoBundle`].
    pub fn check_ready(&self, server: Fingerprint, address: &str) -> Result<(), Error> {
        let bundles = self.bundles(server)?;
        match bundles.iter().any(|b| b.state == BundleState::Ready) {
            true => Ok(()),
            false => Err(self.no_bundle(address, server)?),
        }
    }
}

/// Scale of a circuit's logits.
pub fn output_frac_bits(circuit: &Circuit) -> u8 {
    match circuit.layers.last().map(|layer| &layer.step) {
        Some(Step::Output { frac_bits }) => *frac_bits,
        _ => 0,
    }
}

fn from_server(error: StreamError) -> Error {
    Error::from_stream("server", error)
}

fn connection_lost(error: &quinn::ConnectionError) -> Error {
    if let quinn::ConnectionError::ApplicationClosed(close) = error
        && let Ok(code) = quinn::VarInt::try_from(close.error_code.into_inner())
    {
        return Error::Refused {
            peer: "server",
            refusal: Refusal::from_code(code),
        };
    }
    Error::Lost(describe(error))
}

/// Ends when the other machine reports that its port is closed, else never.
///
/// QUIC ignores such reports because anyone can forge them; before a connection stands, they only
/// spare the user the wait.
async fn refused(server: SocketAddr) {
    let probe = async {
        let socket = tokio::net::UdpSocket::bind(transport::unspecified(server)).await?;
        socket.connect(server).await?;
        // No QUIC packet is empty: a server drops it.
        socket.send(&[]).await?;
        socket.recv(&mut [0; 1]).await
    };
    match probe.await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
        _ => std::future::pending().await,
    }
}

/// The host of `HOST:PORT`, without the brackets of an IPv6 address.
fn host_of(address: &str) -> Result<String, Error> {
    let bad = |reason: &str| Error::Address {
        address: address.into(),
        reason: reason.into(),
    };
    let (host, port) = address
        .rsplit_once(':')
        .ok_or_else(|| bad("the port is missing"))?;
    port.parse::<u16>()
        .map_err(|_| bad("the port is no number from 0 to 65535"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(bad("the host is missing"));
    }
    Ok(host.into())
}

/// What a failed handshake means to the user.
fn connect_error(
    server: SocketAddr,
    waited: Duration,
    error: quinn::ConnectionError,
    pinned: Option<Fingerprint>,
    client: &ClientEndpoint,
) -> Error {
    use quinn::ConnectionError;
    // Alerts of RFC 8446: 120 is no_application_protocol, 70 protocol_version.
    const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
    match (&error, pinned, client.presented()) {
        (_, Some(expected), Some(presented)) if expected != presented => Error::WrongFingerprint {
            server,
            expected,
            presented,
        },
        (ConnectionError::TimedOut, _, _) => Error::Unreachable { server, waited },
        (ConnectionError::VersionMismatch, _, _) => Error::Version("other QUIC versions".into()),
        (ConnectionError::ConnectionClosed(close), _, _) => match u64::from(close.error_code) {
            // CONNECTION_REFUSED of RFC 9000.
            2 => Error::ServerFull(server),
            NO_APPLICATION_PROTOCOL => {
                Error::Version("the server offers no protocol that this client speaks".into())
            }
            _ => Error::Lost(describe(&error)),
        },
        (ConnectionError::TransportError(reason), _, Some(_)) => Error::Certificate {
            server,
            reason: reason.reason.clone(),
        },
        (ConnectionError::TransportError(reason), _, None)
            if u64::from(reason.code) == NO_APPLICATION_PROTOCOL =>
        {
            Error::Version("the server offers no protocol that this client speaks".into())
        }
        _ => connection_lost(&error),
    }
}
