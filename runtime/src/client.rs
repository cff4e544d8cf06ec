//! The client: prepares bundles with a server and spends them.
//!
//! - `connect`: from an address to a greeted server.
//! - `connection`: the model and the keys.
//! - `prepare`: the offline phase.
//! - `infer`: the online phase.
//! - `tracked`: operations in the log.
//! - `wait`: patience with a server that is not there, or has no room.

mod connect;
mod connection;
mod infer;
mod prepare;
mod tracked;
mod wait;

pub use connect::Choice;
pub use connection::Connection;
pub use infer::Prediction;
pub use wait::{Backoff, Wait};

use crate::error::Error;
use crate::fingerprint::{Fingerprint, short};
use crate::identity::Identity;
use crate::pinned_pool::PinnedPools;
use crate::store::{BundleEntry, BundleState, ModelDigest, PeerRecord, Store};
use crate::stream::{Refusal, StreamError, StreamTraffic};
use pi_ir::{Artifact, Circuit, Verified};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A client's state on this machine, and its patience with servers.
pub struct Client {
    store: Arc<Store>,
    identity: Identity,
    patience: Patience,
    pools: PinnedPools,
    busy: Box<dyn Fn(Duration) + Send + Sync>,
    failed: tracked::LastFailed,
}

/// Limits on waiting for a server.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for the next bytes in the middle of an operation. The server may be computing
    /// meanwhile.
    pub silence: Duration,
}

/// The user's choice of which server to trust.
#[derive(Clone, Debug, Default)]
pub struct TrustOptions {
    /// The server's fingerprint.
    pub fingerprint: Option<Fingerprint>,
    /// A PEM file of certificate authorities.
    pub authorities: Option<PathBuf>,
    /// Trusts whoever answers, if nothing is known of the server yet.
    pub first_use: bool,
}

/// Cost of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time on the clock.
    pub wall: Duration,
    /// Messages and their bytes, as this side counts them.
    pub traffic: StreamTraffic,
}

impl Client {
    /// Opens a client's state, or makes a new one with a new key pair.
    ///
    /// # Errors
    /// Errors of the store and of the identity.
    pub fn open(state: &Path, patience: Patience) -> Result<Client, Error> {
        let store = Arc::new(Store::open(state)?);
        let identity = Identity::load_or_create(state, &["pi-client"])?;
        Ok(Client {
            store,
            identity,
            patience,
            pools: PinnedPools::new(true),
            busy: Box::new(|wait| tracing::info!(?wait, "the server has no room now")),
            failed: tracked::LastFailed::default(),
        })
    }

    /// Proves an operator's certificate to servers, instead of the self-signed one.
    pub fn with_identity(mut self, identity: Identity) -> Client {
        self.identity = identity;
        self
    }

    /// Calls a function with the time until the next try whenever a server has no room for an
    /// operation.
    pub fn on_busy(mut self, busy: impl Fn(Duration) + Send + Sync + 'static) -> Client {
        self.busy = Box::new(busy);
        self
    }

    /// Tries an operation until the server has room for it, for as long as the patience with a
    /// silent server.
    async fn patiently<T>(
        &self,
        mut attempt: impl AsyncFnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let started = Instant::now();
        loop {
            match attempt().await {
                Err(Error::Refused {
                    refusal: Refusal::ComeBack(seconds),
                    ..
                }) if started.elapsed() < self.patience.silence => {
                    let wait = Duration::from_secs(u64::from(seconds.clamp(1, 60)));
                    (self.busy)(wait);
                    tokio::time::sleep(wait).await;
                }
                result => return result,
            }
        }
    }

    /// Lets the system move computing threads between processors, for a machine on which other
    /// programs are busy too.
    pub fn unbound(mut self) -> Client {
        self.pools = PinnedPools::new(false);
        self
    }

    /// The fingerprint by which servers know this client.
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    /// The servers with which bundles were prepared, the latest first.
    ///
    /// A server that was replaced by another at all its addresses is left out.
    ///
    /// # Errors
    /// Errors of the store.
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

    /// The server that has shown this fingerprint; without one, the server at this address, or at
    /// one of these, with commas between them; without either, the only one known.
    ///
    /// Bundles belong to a fingerprint, so a server that is named by it is found under any address.
    ///
    /// # Errors
    /// [`Error::NoServer`] if none is known, [`Error::WhichServer`] if several are;
    /// [`Error::NotPrepared`] if no bundles were made with the server named.
    pub fn server(
        &self,
        address: Option<&str>,
        fingerprint: Option<Fingerprint>,
    ) -> Result<(Fingerprint, PeerRecord), Error> {
        if let Some(fingerprint) = fingerprint {
            let mut peers = self.store.peers()?.into_iter();
            let named =
                peers.find(|(peer, record)| *peer == fingerprint || record.has_shown(fingerprint));
            return named.ok_or_else(|| match address {
                Some(address) => Error::NotPrepared(address.into()),
                None => Error::NotPrepared(fingerprint.to_string()),
            });
        }
        let mut known = self.servers()?;
        if let Some(address) = address {
            let asked = |known: &String| address.split(',').any(|address| address == known);
            known.retain(|(_, record)| record.addresses.iter().any(asked));
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

    /// The address, or addresses, to ask for answers, once it is sure that bundles are ready.
    ///
    /// A server that is named by an address alone, and not known under it, may be any of those that
    /// are known: its fingerprint will say.
    ///
    /// # Errors
    /// [`Error::NotPrepared`] or [`Error::NoBundle`]; else as [`Client::server`].
    pub fn prepared_server(
        &self,
        address: Option<&str>,
        trust: &TrustOptions,
    ) -> Result<String, Error> {
        match (self.server(address, trust.fingerprint), address) {
            (Ok((fingerprint, record)), _) => {
                let address = address.map_or_else(|| record.all_addresses(), str::to_owned);
                self.check_ready(fingerprint, &address)?;
                Ok(address)
            }
            (Err(Error::NotPrepared(_)), Some(address)) if trust.fingerprint.is_none() => {
                let bundles = self.store.bundles()?;
                match bundles.iter().any(|b| b.state == BundleState::Ready) {
                    true => Ok(address.into()),
                    false => Err(Error::NotPrepared(address.into())),
                }
            }
            (Err(error), _) => Err(error),
        }
    }

    /// All bundles with a server, spent ones included, oldest first.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn bundles(&self, server: Fingerprint) -> Result<Vec<BundleEntry>, Error> {
        let mut bundles = self.store.bundles()?;
        bundles.retain(|entry| entry.peer == server);
        bundles.sort_by_key(|entry| (entry.stored_at, entry.id.0));
        Ok(bundles)
    }

    /// Number of bundles with a server that are ready for a model.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn ready_for(&self, server: Fingerprint, model: &ModelDigest) -> Result<usize, Error> {
        Ok(self.store.ready(server, model)?.len())
    }

    /// Number of answers that this client can still get from a server, as that said last; `None` if
    /// it sets no limit.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn answers_left(&self, server: Fingerprint) -> Result<Option<u64>, Error> {
        Ok(self.store.answers_left(server)?)
    }

    /// The circuit of a model for which bundles were prepared.
    ///
    /// # Errors
    /// Errors of the store; [`Error::Artifact`] if the circuit is not kept.
    pub fn circuit(&self, model: &ModelDigest) -> Result<Verified<Circuit>, Error> {
        Ok(self.kept_artifact(model)?.circuit)
    }

    /// Ensures, without a connection, that some bundle with a server is ready.
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

    /// Tells apart bundles that were used up and bundles that were never made.
    fn no_bundle(&self, address: &str, server: Fingerprint) -> Result<Error, Error> {
        Ok(match self.bundles(server)?.is_empty() {
            true => Error::NotPrepared(address.into()),
            false => Error::NoBundle(address.into()),
        })
    }

    fn kept_artifact(&self, model: &ModelDigest) -> Result<Artifact, Error> {
        let Some(bytes) = self.store.artifact(model)? else {
            let name = short(model);
            return Err(Error::Artifact(format!("model {name} is not kept here")));
        };
        Artifact::decode(&bytes).map_err(|e| Error::Artifact(e.to_string()))
    }
}

/// Name of a class of a model, or its number if it has no name.
pub fn class_name(circuit: &Circuit, class: usize) -> String {
    match circuit.classes.get(class) {
        Some(name) => name.clone(),
        None => format!("class {class}"),
    }
}

fn from_server(error: StreamError) -> Error {
    Error::from_stream("server", error)
}
