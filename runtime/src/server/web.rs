//! Browsers at the server: the page, and the sessions that it opens.
//!
//! A session is a client's connection like any other once the browser has proved who it is. Until
//! then it holds one of the slots of clients, for `IDLE` at most.

use super::connection::{serve_client, shake_hands};
use super::link::Link;
use super::upkeep::{Mark, Watched, mark};
use super::{IDLE, ServerOptions, Shared, WebOptions, lock};
use crate::error::Error;
use crate::fingerprint::{Fingerprint, hex};
use crate::identity::Identity;
use crate::observe::Turned;
use crate::stream::{MessageStream, Refusal};
use crate::transport;
use crate::web::certificates::Certificates;
use crate::web::files::Files;
use crate::web::identification::identify;
use crate::web::names::{Authority, Names, parse_origin};
use crate::web::page::{Page, ServerNote, listen as listen_tcp};
use crate::web::session::{PATH, Session, SessionRequest};
use crate::web::tls;
use hyper::StatusCode;
use pi_protocol::header::PROTOCOL_VERSION;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Longest wait for browsers to take leave.
const FAREWELL: Duration = Duration::from_secs(1);
/// H3_NO_ERROR of RFC 9114.
const NO_ERROR: quinn::VarInt = quinn::VarInt::from_u32(0x100);

/// The part of a server that browsers see.
pub(super) struct Web {
    endpoint: quinn::Endpoint,
    page: Arc<Page>,
    names: Names,
    credentials: Credentials,
    address: SocketAddr,
    plain_address: Option<SocketAddr>,
    /// The sockets of the page, until it is served.
    listeners: Mutex<Vec<(TcpListener, bool)>>,
    in_use: Mutex<InUse>,
}

/// What changes while the server runs.
struct InUse {
    proof: Proof,
    watched: Watched,
    note: ServerNote,
}

/// Where certificates come from.
struct Credentials {
    options: WebOptions,
    /// Directory of self-signed certificates.
    directory: PathBuf,
    /// Names in self-signed certificates.
    hosts: Vec<String>,
}

/// The certificate in use.
struct Proof {
    identity: Arc<Identity>,
    /// Hashes that browsers are told: none if they trust the certificate anyway.
    hashes: Vec<Fingerprint>,
    /// Seconds since 1970 at which another comes into use.
    change: Option<u64>,
}

impl Credentials {
    fn proof(&self) -> Result<Proof, Error> {
        if let Some((chain, key)) = &self.options.certificate {
            return Ok(Proof {
                identity: Arc::new(Identity::from_files(chain, key)?),
                hashes: Vec::new(),
                change: None,
            });
        }
        let now = self.options.clock.now();
        let certificates = Certificates::at(&self.directory, &self.hosts, now)?;
        let both = [&certificates.current, &certificates.next];
        Ok(Proof {
            hashes: both.map(Identity::fingerprint).to_vec(),
            change: Some(certificates.change),
            identity: Arc::new(certificates.current),
        })
    }

    fn files(&self) -> Vec<Mark> {
        let files = self.options.certificate.iter();
        files
            .flat_map(|(chain, key)| [chain, key])
            .map(mark)
            .collect()
    }
}

/// All that is wrong with the options, without listening.
pub(super) fn check(options: &ServerOptions) -> Vec<Error> {
    let Some(web) = &options.web else {
        return Vec::new();
    };
    let mut faults = Vec::new();
    let mut note = |result: Result<(), Error>| faults.extend(result.err());
    note(check_clients(options));
    note(check_plain(web));
    note(names(web, web.listen, web.plain).map(drop));
    note(read_files(web).map(drop));
    if let Some((chain, key)) = &web.certificate {
        let identity = Identity::from_files(chain, key).map_err(Error::from);
        note(identity.and_then(|identity| Ok(tls::https(&identity).map(drop)?)));
    }
    faults
}

/// Browsers have no certificates, so where the operator demands them there must be another way to
/// say which browsers are meant.
fn check_clients(options: &ServerOptions) -> Result<(), Error> {
    match options.client_authorities.is_some() && options.clients.is_none() {
        true => Err(Error::Web(
            "with --client-ca every client proves a certificate, and browsers have none: name \
             those to serve by their fingerprints, in the file of --clients or --allow"
                .into(),
        )),
        false => Ok(()),
    }
}

fn check_plain(web: &WebOptions) -> Result<(), Error> {
    match web.plain {
        Some(address) if !address.ip().is_loopback() => Err(Error::Web(format!(
            "{address} of --web-http is no address of this machine alone, and browsers give a page \
             without TLS from anywhere else no keys and no threads: serve it by --web"
        ))),
        _ => Ok(()),
    }
}

fn read_files(web: &WebOptions) -> Result<Files, Error> {
    Files::read(&web.files).map_err(|error| Error::Page(error.to_string()))
}

fn names(web: &WebOptions, address: SocketAddr, plain: Option<SocketAddr>) -> Result<Names, Error> {
    let port = address.port();
    let listed = web.names.iter().map(|name| Authority::parse(name, port));
    let origins = web.origins.iter().map(|origin| parse_origin(origin));
    Ok(Names {
        port,
        address: address.ip(),
        listed: listed.collect::<Result<_, _>>().map_err(Error::Web)?,
        plain,
        origins: origins.collect::<Result<_, _>>().map_err(Error::Web)?,
    })
}

/// The sockets of a server's part for browsers.
pub(super) struct Listening {
    options: WebOptions,
    state: PathBuf,
    files: Files,
    https: TcpListener,
    udp: UdpSocket,
    http: Option<TcpListener>,
}

/// Opens the sockets, if browsers are to be served. Must be called inside a tokio runtime.
///
/// # Errors
/// [`Error::Web`] and [`Error::Page`].
pub(super) fn listen(options: &ServerOptions) -> Result<Option<Listening>, Error> {
    let Some(web) = &options.web else {
        return Ok(None);
    };
    check_clients(options)?;
    check_plain(web)?;
    let files = read_files(web)?;
    let (https, udp) = open(web.listen)?;
    let http = web.plain.map(|address| {
        let socket = listen_tcp(address);
        socket.map_err(|error| unusable(address, "web-http", &error))
    });
    Ok(Some(Listening {
        options: web.clone(),
        state: options.state.clone(),
        files,
        https,
        udp,
        http: http.transpose()?,
    }))
}

fn unusable(address: SocketAddr, flag: &str, error: &dyn std::error::Error) -> Error {
    Error::Web(format!("cannot listen at {address} of --{flag}: {error}"))
}

/// Sockets of TCP and UDP with one port.
fn open(address: SocketAddr) -> Result<(TcpListener, UdpSocket), Error> {
    /// A port that is free for one may be taken for the other.
    const TRIES: usize = 16;
    let mut tries = 0;
    loop {
        tries += 1;
        let opened = || -> io::Result<_> {
            let https = listen_tcp(address)?;
            Ok((https.local_addr()?, https))
        };
        let (found, https) = opened().map_err(|error| unusable(address, "web", &error))?;
        match transport::bind(found) {
            Ok(udp) => return Ok((https, udp)),
            Err(_) if address.port() == 0 && tries < TRIES => {}
            Err(error) => return Err(unusable(found, "web", &error)),
        }
    }
}

impl Listening {
    /// Makes the certificates and the endpoint.
    ///
    /// # Errors
    /// Those of certificates, and [`Error::Web`].
    pub(super) fn start(self, shared: &Shared) -> Result<Web, Error> {
        let local = |socket: &TcpListener| socket.local_addr();
        let failed = |error: io::Error| Error::Web(error.to_string());
        let address = local(&self.https).map_err(failed)?;
        let plain = self.http.as_ref().map(local).transpose();
        let plain_address = plain.map_err(failed)?;
        let names = names(&self.options, address, plain_address)?;
        let credentials = Credentials {
            hosts: hosts(address, &names),
            directory: self.state.join("web"),
            options: self.options,
        };
        let proof = credentials.proof()?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let config = tls::quic(&proof.identity)?;
        let endpoint = quinn::Endpoint::new(Default::default(), Some(config), self.udp, runtime);
        let endpoint = endpoint.map_err(|error| unusable(address, "web", &error))?;
        let note = note(shared, &proof);
        let tls = tls::https(&proof.identity)?;
        let page = Page::new(self.files, names.clone(), &note, tls);
        let mut listeners = vec![(self.https, true)];
        listeners.extend(self.http.map(|socket| (socket, false)));
        Ok(Web {
            endpoint,
            page: Arc::new(page),
            names,
            address,
            plain_address,
            listeners: Mutex::new(listeners),
            in_use: Mutex::new(InUse {
                watched: Watched::new(credentials.files()),
                proof,
                note,
            }),
            credentials,
        })
    }
}

/// The names in self-signed certificates.
fn hosts(address: SocketAddr, names: &Names) -> Vec<String> {
    let mut hosts = vec!["localhost".into()];
    match address.ip() {
        ip if ip.is_unspecified() => hosts.push(IpAddr::from([127, 0, 0, 1]).to_string()),
        ip => hosts.push(ip.to_string()),
    }
    for name in names.listed.iter().map(Authority::host) {
        if !hosts.contains(&name) {
            hosts.push(name);
        }
    }
    hosts
}

fn note(shared: &Shared, proof: &Proof) -> ServerNote {
    ServerNote {
        session: PATH.into(),
        service: shared.service.to_string(),
        certificates: proof.hashes.iter().map(|hash| hex(&hash.0)).collect(),
        protocol: PROTOCOL_VERSION,
        default_model: shared.models.default_name(),
    }
}

impl Web {
    /// The address of the page, and of sessions.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the page without TLS.
    pub(super) fn plain_address(&self) -> Option<SocketAddr> {
        self.plain_address
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> Option<quinn::Incoming> {
        self.endpoint.accept().await
    }

    /// Answers requests for the page until the future is dropped.
    pub(super) async fn serve_page(self: Arc<Web>) {
        let listeners = std::mem::take(&mut *lock(&self.listeners));
        let mut serving = tokio::task::JoinSet::new();
        for (listener, secure) in listeners {
            serving.spawn(self.page.clone().serve(listener, secure));
        }
        while serving.join_next().await.is_some() {}
    }

    /// Takes over certificates that have changed, or whose time has come.
    pub(super) fn look(&self, shared: &Shared, asked: bool) {
        let mut in_use = lock(&self.in_use);
        let changed = in_use.watched.changed(self.credentials.files(), asked);
        let due = |change| self.credentials.options.clock.now() >= change;
        let renewed = match changed || in_use.proof.change.is_some_and(due) {
            true => self.credentials.proof().and_then(|proof| {
                let (quic, https) = (tls::quic(&proof.identity)?, tls::https(&proof.identity)?);
                Ok(Some((proof, quic, https)))
            }),
            false => Ok(None),
        };
        match renewed {
            Ok(Some((proof, quic, https))) => {
                let note = note(shared, &proof);
                self.endpoint.set_server_config(Some(quic));
                self.page.renew(&note, Some(https));
                (in_use.proof, in_use.note) = (proof, note);
                tracing::info!("certificates for browsers were taken over");
            }
            Ok(None) => {
                let note = note(shared, &in_use.proof);
                if note != in_use.note {
                    self.page.renew(&note, None);
                    in_use.note = note;
                }
            }
            Err(error) => {
                tracing::error!(%error, "certificates for browsers cannot be used; the last stay");
            }
        }
    }

    /// Accepts no more connections.
    pub(super) fn refuse_more(&self) {
        self.endpoint.set_server_config(None);
    }

    /// Closes the endpoint once browsers have taken leave, or a moment later.
    pub(super) async fn close(&self) {
        let _ = tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await;
        self.endpoint.close(NO_ERROR, b"");
        let _ = tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }

    /// Accepts a browser's session and serves its requests until either party ends it.
    pub(super) async fn serve(
        self: Arc<Web>,
        shared: Arc<Shared>,
        incoming: quinn::Incoming,
        mut stop: watch::Receiver<bool>,
    ) {
        let from = incoming.remote_address();
        let Some(quic) = shake_hands(&shared, incoming).await else {
            return;
        };
        let opening = tokio::time::timeout(IDLE, self.open(&shared, quic.clone(), from));
        let opened = tokio::select! {
            opened = opening => opened,
            // Nothing is under way that is worth waiting for.
            _ = stop.wait_for(|stop| *stop) => return quic.close(NO_ERROR, b""),
        };
        let Ok(opened) = opened else {
            tracing::info!(%from, "a browser took too long to say who it is");
            shared.metrics.turned(Turned::Handshake);
            return quic.close(NO_ERROR, b"");
        };
        let Some((session, client)) = opened else {
            return;
        };
        let link = Link::Web(session, Arc::new(AtomicU64::new(0)));
        serve_client(shared, link, client, from, stop).await;
    }

    /// Grants the session and finds out who the browser is.
    async fn open(
        &self,
        shared: &Shared,
        quic: quinn::Connection,
        from: SocketAddr,
    ) -> Option<(Arc<Session>, Fingerprint)> {
        let request = match SessionRequest::receive(quic).await {
            Ok(request) => request,
            Err(error) => {
                tracing::info!(%from, %error, "no session");
                shared.metrics.turned(Turned::Handshake);
                return None;
            }
        };
        if let Err((status, reason)) = self.check(&request) {
            let (authority, origin) = (request.authority(), request.origin());
            tracing::warn!(%from, authority, origin, "refused: {reason}");
            shared.metrics.turned(Turned::Origin);
            request.reject(status).await;
            return None;
        }
        let authority = request.authority().to_owned();
        let session = match request.accept().await {
            Ok(session) => Arc::new(session),
            Err(error) => {
                tracing::info!(%from, %error, "no session");
                shared.metrics.turned(Turned::Handshake);
                return None;
            }
        };
        let one_way = session.clone();
        tokio::spawn(async move { one_way.refuse_one_way().await });
        match identified(&session, shared.service, &authority).await {
            Ok(client) => Some((session, client)),
            Err((refusal, error)) => {
                tracing::warn!(%from, error, "refused: a browser that does not say who it is");
                shared.metrics.turned(Turned::Identification);
                session.close(refusal.web_code(), "not identified");
                None
            }
        }
    }

    /// Whether a session may be opened so, or what is wrong.
    fn check(&self, request: &SessionRequest) -> Result<(), (StatusCode, &'static str)> {
        if request.path() != PATH {
            return Err((StatusCode::NOT_FOUND, "there is no session at this path"));
        }
        let authority = request.authority();
        // Not every system tells it.
        let listening = Some(self.address.ip()).filter(|ip| !ip.is_unspecified());
        let local = request.quic().local_ip().or(listening);
        let identity = lock(&self.in_use).proof.identity.clone();
        if !self.names.is_own(authority, local, &identity) {
            let reason = "this is no name of the server; --web-names lists such";
            return Err((StatusCode::MISDIRECTED_REQUEST, reason));
        }
        match request.origin() {
            Some(origin) if self.names.allows(origin, authority) => Ok(()),
            Some(_) => Err((
                StatusCode::FORBIDDEN,
                "a page from elsewhere; --web-origins lists those that may",
            )),
            None => Err((StatusCode::FORBIDDEN, "no page asks, and no browser")),
        }
    }
}

/// The name of the client, which its first stream proves.
async fn identified(
    session: &Session,
    service: Fingerprint,
    authority: &str,
) -> Result<Fingerprint, (Refusal, String)> {
    let Some((mut outgoing, mut incoming)) = session.accept().await else {
        return Err((Refusal::Silent, "the session ended before".into()));
    };
    let named = session.read_name(&mut outgoing, &mut incoming).await;
    named.map_err(|error| (Refusal::Misbehaved, error.to_string()))?;
    let mut stream = MessageStream::of_session(outgoing, incoming, 0, IDLE);
    match identify(&mut stream, service, authority).await {
        Ok(client) => {
            // Nobody waits for the last acknowledgement.
            tokio::spawn(stream.finish());
            Ok(client)
        }
        Err(error) => {
            stream.refuse(error.refusal());
            Err((error.refusal(), error.to_string()))
        }
    }
}
