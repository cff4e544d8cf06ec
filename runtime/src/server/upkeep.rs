//! Files that change while a server runs: models, certificates, and the list of clients.
//!
//! They are looked at every two seconds, and at once on `SIGHUP`. Looking at names, sizes and dates
//! works everywhere; notices of the system do not come from network file systems, nor always into
//! containers. What has changed is read once it has stopped changing, so that a file is not read
//! while it is copied.

use super::models::Changes;
use super::web::Web;
use super::{ServerOptions, Shared};
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::identity::{Identity, read_certificates};
use crate::transport;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// Looks between two questions to the store, which may go through all bundles for them: whether the
/// last one of a version that was replaced is spent, and what there is of revoked clients.
const LOOKS: u32 = 5;

/// Where the server's own certificate and the clients' authorities are.
#[derive(Clone)]
pub(super) struct Credentials {
    state: PathBuf,
    certificate: Option<(PathBuf, PathBuf)>,
    authorities: Option<PathBuf>,
}

impl Credentials {
    pub(super) fn new(options: &ServerOptions) -> Credentials {
        Credentials {
            state: options.state.clone(),
            certificate: options.certificate.clone(),
            authorities: options.client_authorities.clone(),
        }
    }

    /// Starts to listen with what the files say now.
    pub(super) fn listen(&self, address: SocketAddr) -> Result<(Identity, quinn::Endpoint), Error> {
        let identity = self.identity()?;
        let clients = self.clients()?;
        let endpoint = transport::server_endpoint(&identity, clients, address)?;
        Ok((identity, endpoint))
    }

    /// What is wrong with the files; an identity that is to be made when the server starts is not
    /// looked at.
    pub(super) fn check(&self) -> Vec<Error> {
        let certificate = self.certificate.as_ref().map(|_| self.identity().map(drop));
        let clients = self.clients().map(drop);
        let results = certificate.into_iter().chain([clients]);
        results.filter_map(Result::err).collect()
    }

    fn identity(&self) -> Result<Identity, Error> {
        Ok(match &self.certificate {
            Some((chain, key)) => Identity::from_files(chain, key)?,
            None => Identity::load_or_create(&self.state, &["localhost", "pi-server"])?,
        })
    }

    fn clients(&self) -> Result<transport::Clients, Error> {
        Ok(match &self.authorities {
            Some(path) => transport::Clients::Authorities(read_certificates(path)?),
            None => transport::Clients::Any,
        })
    }

    /// New connections are accepted by what the files say now; those that stand go on.
    fn renew(&self, endpoint: &quinn::Endpoint) -> Result<(), Error> {
        let config = transport::server_config(&self.identity()?, self.clients()?)?;
        endpoint.set_server_config(Some(config));
        Ok(())
    }

    fn files(&self) -> Vec<Mark> {
        let pair = self
            .certificate
            .iter()
            .flat_map(|(chain, key)| [chain, key]);
        pair.chain(&self.authorities).map(mark).collect()
    }
}

/// A file, its length and its date.
pub(super) type Mark = (PathBuf, u64, Option<SystemTime>);

pub(super) fn mark(path: &PathBuf) -> Mark {
    let data = std::fs::metadata(path).ok();
    let length = data.as_ref().map_or(0, std::fs::Metadata::len);
    (
        path.clone(),
        length,
        data.and_then(|data| data.modified().ok()),
    )
}

/// Files that are read again once they have changed and then stayed the same.
pub(super) struct Watched {
    read: Vec<Mark>,
    last: Vec<Mark>,
}

impl Watched {
    pub(super) fn new(now: Vec<Mark>) -> Watched {
        Watched {
            read: now.clone(),
            last: now,
        }
    }

    /// Whether to read them, as they are now; `asked` if somebody says so.
    pub(super) fn changed(&mut self, now: Vec<Mark>, asked: bool) -> bool {
        let settled = now == self.last;
        self.last = now;
        if asked || settled && self.last != self.read {
            self.read = self.last.clone();
            return true;
        }
        false
    }
}

/// Keeps a server up to date, until it is stopped.
pub(super) async fn keep_up(
    shared: Arc<Shared>,
    credentials: Credentials,
    (endpoint, web): (quinn::Endpoint, Option<Arc<Web>>),
    reload: Arc<Notify>,
    mut stop: watch::Receiver<bool>,
) {
    let mut upkeep = Upkeep {
        models: Watched::new(shared.models.files()),
        certificates: Watched::new(credentials.files()),
        revoked: shared.clients.revoked(),
        looks: 0,
        shared,
        credentials,
        endpoint,
        web,
    };
    loop {
        let asked = tokio::select! {
            () = reload.notified() => true,
            () = tokio::time::sleep(EVERY) => false,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let looking = spawn_blocking(move || {
            upkeep.look(asked);
            upkeep
        });
        match looking.await {
            Ok(after) => upkeep = after,
            Err(error) => {
                tracing::error!(%error, "files that change are no longer looked at");
                return;
            }
        }
    }
}

/// What is looked at, and how it was when it was last.
struct Upkeep {
    shared: Arc<Shared>,
    credentials: Credentials,
    endpoint: quinn::Endpoint,
    web: Option<Arc<Web>>,
    models: Watched,
    certificates: Watched,
    revoked: Vec<Fingerprint>,
    looks: u32,
}

impl Upkeep {
    /// Looks at everything; `asked` if somebody says that something has changed.
    fn look(&mut self, asked: bool) {
        self.looks = self.looks.wrapping_add(1);
        let shared = &self.shared;
        let searching = asked || self.looks.is_multiple_of(LOOKS);
        let changed = self.models.changed(shared.models.files(), asked);
        if changed || searching && shared.has_leaving() {
            shared.reload_models().log();
        }
        if self.certificates.changed(self.credentials.files(), asked) {
            match self.credentials.renew(&self.endpoint) {
                Ok(()) => tracing::info!("certificates were read again"),
                Err(error) => {
                    tracing::error!(%error, "certificates cannot be used; the last ones stay");
                }
            }
        }
        if let Some(web) = &self.web {
            web.look(shared, asked);
        }
        // Also where nothing has changed: an operation that was under way may have kept a bundle.
        let revoked = shared.clients.revoked();
        if searching || revoked != self.revoked {
            self.revoked = revoked;
            if let Err(error) = shared.give_up_revoked() {
                tracing::error!(%error, "what belongs to revoked clients is not erased yet");
            }
        }
    }
}

impl Shared {
    /// Looks at the files of the models again.
    fn reload_models(&self) -> Changes {
        match self.held_models() {
            Ok(held) => self
                .models
                .reload(|model| self.memory.make_room(model), &held),
            Err(error) => Changes {
                faults: vec![error.to_string()],
                ..Changes::default()
            },
        }
    }

    /// Whether a version is kept for the sake of bundles that may be spent by now.
    fn has_leaving(&self) -> bool {
        let leaving: Vec<_> = self.models.leaving();
        match leaving.is_empty() {
            true => false,
            false => self.held_models().is_ok_and(|held| {
                let mut spent = leaving.iter().filter(|digest| !held.contains(*digest));
                spent.next().is_some()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_once_they_have_stopped_changing() {
        let marks = |length| vec![(PathBuf::from("model.piw"), length, None)];
        let mut watched = Watched::new(marks(1));
        assert!(!watched.changed(marks(1), false));
        assert!(!watched.changed(marks(2), false), "it may still be growing");
        assert!(!watched.changed(marks(3), false), "it was");
        assert!(watched.changed(marks(3), false));
        assert!(!watched.changed(marks(3), false), "once is enough");
        assert!(watched.changed(marks(3), true), "unless somebody asks");
    }
}
