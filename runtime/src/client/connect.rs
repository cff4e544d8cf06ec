//! Connecting: whom to trust, the handshake, and the greeting.

use super::connection::{Candidate, Connection, connection_lost, open_stream};
use super::{Client, TrustOptions, from_server};
use crate::control::{
    CATALOGUE_LIMIT, Catalogue, Hello, Listing, MOST_PREFERRED, REPLY_LIMIT, Request, Wanted,
    Welcome, software,
};
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::identity;
use crate::observe::RequestId;
use crate::party::{Greeting, random};
use crate::store::{BundleEntry, BundleState, ModelDigest, PeerRecord};
use crate::stream::{Refusal, StreamError, describe};
use crate::transport::{self, ClientEndpoint, Trust, no_common_key_exchange};
use pi_protocol::header::PROTOCOL_VERSION;
use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::task::{JoinSet, block_in_place};

/// Bundles that a greeting asks about: one that can be used is enough for the next answer, and
/// [`Request::Probe`] asks about the others.
const HELLO_PROBES: usize = 64;

/// Time after which the next address of a name is tried beside those that have not answered yet, as
/// RFC 8305 recommends (Happy Eyeballs, section 8).
const HEAD_START: Duration = Duration::from_millis(250);

/// A client's choice among the models of a server.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// The model by name; the server's default without one.
    pub model: Option<Wanted>,
    /// Whether an older version will do if bundles for it are ready here. None are made for it.
    pub held: bool,
}

impl Choice {
    /// A model as a user names it: `NAME`, or `NAME:VERSION`.
    pub fn of_name(text: &str) -> Choice {
        let (name, version) = match text.split_once(':') {
            Some((name, version)) => (name, Some(version.to_owned())),
            None => (text, None),
        };
        let name = name.to_owned();
        Choice {
            model: Some(Wanted { name, version }),
            held: false,
        }
    }

    /// The same, with an older version if bundles for it are ready here.
    pub fn held(mut self) -> Choice {
        self.held = true;
        self
    }
}

/// A socket address with the name for which it stands.
#[derive(Clone)]
struct Target {
    socket: SocketAddr,
    /// The address as the user wrote it, and the host in it.
    address: String,
    host: String,
}

/// A connection that stands, and what it was made to.
struct Connected {
    endpoint: ClientEndpoint,
    quic: quinn::Connection,
    target: Target,
}

impl Client {
    /// Connects to a server and greets it, for the current version of its default model.
    ///
    /// The server must be the one pinned by `trust.fingerprint`, by a certificate authority, or by
    /// what is remembered of this address; under an address that is not known, any server with
    /// which bundles were prepared is accepted. Whoever answers is trusted only if the address is
    /// unknown and the user asked for that.
    ///
    /// Several addresses, with commas between them, are those of servers that share their state.
    /// All addresses of all names are tried, of both families in turn (RFC 8305), and the first
    /// that answers is taken.
    ///
    /// # Errors
    /// [`Error`] says whether nobody answered, the wrong server did, or one that speaks another
    /// version.
    pub async fn connect(
        &self,
        address: &str,
        trust: &TrustOptions,
    ) -> Result<Connection<'_>, Error> {
        self.connect_to(address, trust, &Choice::default()).await
    }

    /// As [`Client::connect`], for the model of the user's choice.
    ///
    /// # Errors
    /// As [`Client::connect`], and [`Error::Refused`] if the server has no such model, or several
    /// and none was named.
    pub async fn connect_to(
        &self,
        address: &str,
        trust: &TrustOptions,
        choice: &Choice,
    ) -> Result<Connection<'_>, Error> {
        self.failed.forget();
        let rule = self.decide_trust(address, trust)?;
        // What may show that a server is another one's successor.
        let vouched = matches!(rule, Trust::Authorities(_)) || trust.fingerprint.is_some();
        let mut targets = targets_of(address).await?;
        loop {
            let several = targets.len() > 1;
            let connected = self.race(address, targets.clone(), &rule).await?;
            let target = connected.target.clone();
            match self.greet(address, connected, vouched, choice).await {
                // A server takes a client's latest connection for its only one. An attempt at
                // another of its addresses may have come in behind the one that was taken.
                Err(
                    Error::Lost(_)
                    | Error::Refused {
                        refusal: Refusal::Silent,
                        ..
                    },
                ) if several => targets = vec![target],
                Err(Error::Refused {
                    refusal: Refusal::ShuttingDown,
                    ..
                }) if several => targets.retain(|other| other.socket != target.socket),
                result => return result,
            }
        }
    }

    /// The models that a server lets this client use.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn models(&self, address: &str, trust: &TrustOptions) -> Result<Vec<Listing>, Error> {
        let rule = self.decide_trust(address, trust)?;
        let connected = self
            .race(address, targets_of(address).await?, &rule)
            .await?;
        let quic = &connected.quic;
        let mut stream = open_stream(quic, self.patience.silence, &Request::Catalogue).await?;
        let reply = stream.receive_control(CATALOGUE_LIMIT).await;
        let Catalogue { models } = reply.map_err(from_server)?;
        quic.close(quinn::VarInt::from_u32(0), b"");
        let idle = connected.endpoint.endpoint.wait_idle();
        let _ = tokio::time::timeout(Duration::from_secs(1), idle).await;
        Ok(models)
    }

    fn decide_trust(&self, address: &str, options: &TrustOptions) -> Result<Trust, Error> {
        if let Some(fingerprint) = options.fingerprint {
            return Ok(Trust::Pinned(fingerprint));
        }
        if let Some(path) = &options.authorities {
            return Ok(Trust::Authorities(identity::read_certificates(path)?));
        }
        match self.server(Some(address), None) {
            Ok((_, record)) => Ok(match record.certificates[..] {
                [only] => Trust::Pinned(only),
                _ => Trust::OneOf(record.certificates),
            }),
            Err(Error::NotPrepared(_)) if options.first_use => Ok(Trust::FirstUse),
            Err(Error::NotPrepared(_)) => {
                let known = self.servers()?.into_iter();
                let known: Vec<_> = known.flat_map(|(_, record)| record.certificates).collect();
                match known.is_empty() {
                    true => Err(Error::NoTrust(address.into())),
                    false => Ok(Trust::OneOf(known)),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Connects to the first of these targets that answers.
    async fn race(
        &self,
        address: &str,
        targets: Vec<Target>,
        trust: &Trust,
    ) -> Result<Connected, Error> {
        let mut attempts = JoinSet::new();
        let mut failures = Vec::new();
        let mut rest = targets.into_iter();
        loop {
            if let Some(to) = rest.next() {
                match self.attempt(to, trust.clone()) {
                    Ok(attempt) => drop(attempts.spawn(attempt)),
                    // A machine without this family of addresses has no socket for it.
                    Err(error) => {
                        failures.push(error);
                        continue;
                    }
                }
            } else if attempts.is_empty() {
                return Err(most_telling(address, failures));
            }
            let others = rest.len() > 0;
            tokio::select! {
                Some(ended) = attempts.join_next() => match ended {
                    Ok(Ok(connected)) => return Ok(connected),
                    Ok(Err(error)) => failures.push(error),
                    Err(error) => failures.push(Error::Internal(error.to_string())),
                },
                () = tokio::time::sleep(HEAD_START), if others => {}
                else => {}
            }
        }
    }

    /// Begins to connect to one address, from a socket of its own.
    fn attempt(
        &self,
        target: Target,
        trust: Trust,
    ) -> Result<impl Future<Output = Result<Connected, Error>> + 'static, Error> {
        let server = target.socket;
        let client = transport::client_endpoint(&self.identity, trust.clone(), server)?;
        let connecting =
            client
                .endpoint
                .connect(server, &target.host)
                .map_err(|e| Error::Address {
                    address: server.to_string(),
                    reason: e.to_string(),
                })?;
        let waited = self.patience.connect;
        Ok(async move {
            let connected = tokio::select! {
                result = tokio::time::timeout(waited, connecting) => result,
                () = refused(server) => return Err(Error::NobodyListens(server)),
            };
            match connected {
                Ok(Ok(quic)) => Ok(Connected {
                    endpoint: client,
                    quic,
                    target,
                }),
                Ok(Err(error)) => Err(connect_error(server, waited, error, &trust, &client)),
                Err(_) => Err(Error::Unreachable { server, waited }),
            }
        })
    }

    /// Greets a server, and finds out which one it is.
    async fn greet(
        &self,
        address: &str,
        connected: Connected,
        vouched: bool,
        choice: &Choice,
    ) -> Result<Connection<'_>, Error> {
        let quic = &connected.quic;
        let certificate = transport::peer_fingerprint(quic)
            .ok_or_else(|| Error::Internal("a connection without a server certificate".into()))?;
        let expected = self.expected(address, certificate)?;
        let ready = match &expected {
            Some((service, record)) => self.ready_bundles(*service, record.model)?,
            None => Vec::new(),
        };
        let nonce = random();
        let probes = &ready[..ready.len().min(HELLO_PROBES)];
        let prefer = match choice.held {
            true => models_of(&ready),
            false => Vec::new(),
        };
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            software: software(),
            nonce,
            model: choice.model.clone(),
            prefer,
            probes: probes.iter().map(|entry| entry.id.0).collect(),
        };
        let welcome = self.exchange_greetings(quic, hello).await?;
        let service = welcome.service;
        self.check_names(&welcome, certificate, vouched)?;
        let (ready, held) = match expected.is_some_and(|(expected, _)| expected == service) {
            true => (ready, welcome.held.clone()),
            // Known by another name than was expected: it was not asked about these.
            false => (self.ready_bundles(service, welcome.model)?, Vec::new()),
        };
        let held = held.into_iter().map(Some).chain(std::iter::repeat(None));
        let mut candidates = Vec::new();
        let mut stale = Vec::new();
        for (entry, held) in ready.into_iter().zip(held) {
            match entry.model == welcome.model {
                true => candidates.push(Candidate { id: entry.id, held }),
                false => stale.push(entry),
            }
        }
        let greeting = Greeting {
            server: service,
            client: welcome.client,
            server_nonce: welcome.nonce,
            client_nonce: nonce,
        };
        let connection = Connection {
            client: self,
            address: address.into(),
            at: connected.target.address,
            certificate,
            endpoint: connected.endpoint,
            quic: connected.quic,
            greeting,
            next_index: 0,
            welcome,
            candidates,
            stale,
            loaded: None,
            erasing: None,
        };
        block_in_place(|| connection.remember_answers_left())?;
        Ok(connection)
    }

    /// The server that has shown this certificate, or else was found at this address.
    fn expected(
        &self,
        address: &str,
        certificate: Fingerprint,
    ) -> Result<Option<(Fingerprint, PeerRecord)>, Error> {
        let by_certificate = self.server(None, Some(certificate));
        match by_certificate.or_else(|_| self.server(Some(address), None)) {
            Ok(known) => Ok(Some(known)),
            Err(Error::NotPrepared(_) | Error::NoServer | Error::WhichServer(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bundles with a server that are ready, those for the model that it is likely to have
    /// first, oldest first.
    fn ready_bundles(
        &self,
        service: Fingerprint,
        likely: ModelDigest,
    ) -> Result<Vec<BundleEntry>, Error> {
        let mut ready = self.bundles(service)?;
        ready.retain(|entry| entry.state == BundleState::Ready);
        ready.sort_by_key(|entry| entry.model != likely);
        Ok(ready)
    }

    /// Checks the names by which the server calls itself and this client.
    ///
    /// A server has the name of its first certificate. One that takes the name of a server that is
    /// known here must have shown its certificate before, or the user, or an authority, vouches for
    /// it: otherwise one server that this client trusts could have the bundles of another spent.
    fn check_names(
        &self,
        welcome: &Welcome,
        certificate: Fingerprint,
        vouched: bool,
    ) -> Result<(), Error> {
        let misbehaved = |what: &str| Error::PeerMisbehaved {
            peer: "server",
            what: what.into(),
        };
        let mut known = self.store.peers()?.into_iter();
        let known = known.find(|(peer, _)| *peer == welcome.service);
        let shown =
            known.is_none_or(|(peer, record)| peer == certificate || record.has_shown(certificate));
        if !shown && !vouched {
            return Err(misbehaved("it takes the name of another server"));
        }
        let own = [Some(self.fingerprint()), self.identity.certificate_name()];
        match own.contains(&Some(welcome.client)) {
            true => Ok(()),
            false => Err(misbehaved("it calls this client by another's name")),
        }
    }

    async fn exchange_greetings(
        &self,
        quic: &quinn::Connection,
        hello: Hello,
    ) -> Result<Welcome, Error> {
        let (probes, nonce) = (hello.probes.len(), hello.nonce);
        let hello = Request::Hello(hello);
        let mut stream = open_stream(quic, self.patience.silence, &hello).await?;
        let tracked = self.track(RequestId::of_hello(&nonce, stream.index()), "hello");
        let reply = stream.receive_control(REPLY_LIMIT).await;
        let welcome: Welcome = reply.map_err(|error| match error {
            StreamError::Refused(Refusal::Incompatible) => {
                Error::Version("the server speaks another protocol version".into())
            }
            error => from_server(error),
        })?;
        if welcome.protocol != PROTOCOL_VERSION {
            return Err(Error::Version(format!(
                "the server speaks protocol {}, this client {}",
                welcome.protocol, PROTOCOL_VERSION
            )));
        }
        check_answers(&welcome.held, probes)?;
        tracked.done(stream.traffic());
        Ok(welcome)
    }
}

/// The models of bundles, each once, in their order.
fn models_of(bundles: &[BundleEntry]) -> Vec<ModelDigest> {
    let mut seen = HashSet::new();
    let mut models: Vec<ModelDigest> = bundles.iter().map(|entry| entry.model).collect();
    models.retain(|model| seen.insert(*model));
    models.truncate(MOST_PREFERRED);
    models
}

/// Checks that the server answered for every bundle that it was asked about.
pub(super) fn check_answers(held: &[bool], probes: usize) -> Result<(), Error> {
    match held.len() == probes {
        true => Ok(()),
        false => Err(Error::PeerMisbehaved {
            peer: "server",
            what: format!("{} answers to {probes} probes", held.len()),
        }),
    }
}

/// Waits until the other machine reports that its port is closed; forever if it never does.
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

/// What there is to connect to under these addresses, with commas between them.
async fn targets_of(addresses: &str) -> Result<Vec<Target>, Error> {
    let mut targets = Vec::new();
    let mut failure = None;
    for address in addresses.split(',') {
        let host = host_of(address)?;
        match addresses_of(address, &host).await {
            Ok(sockets) => targets.extend(sockets.into_iter().map(|socket| Target {
                socket,
                address: address.to_owned(),
                host: host.clone(),
            })),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match (targets.is_empty(), failure) {
        (true, Some(error)) => Err(error),
        _ => Ok(targets),
    }
}

/// The addresses of a server, those of one family and of the other in turn, IPv6 first.
async fn addresses_of(address: &str, host: &str) -> Result<Vec<SocketAddr>, Error> {
    let unknown = |reason: String| Error::UnknownHost {
        address: address.into(),
        reason,
    };
    let looked_up = tokio::net::lookup_host(address).await;
    let mut addresses = match looked_up {
        Ok(found) => found.collect(),
        Err(_) if is_localhost(host) => Vec::new(),
        Err(error) => return Err(unknown(error.to_string())),
    };
    // RFC 6761, section 6.3: the name stands for both loopback addresses, whatever a resolver and
    // its files say.
    if is_localhost(host)
        && let Some(Ok(port)) = address.rsplit(':').next().map(str::parse)
    {
        addresses.push(SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let mut seen = HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    if addresses.is_empty() {
        return Err(unknown("the name has no address".into()));
    }
    Ok(in_turn(addresses))
}

fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// Addresses of the two families in turn, IPv6 first, each family in its order.
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut sorted = Vec::new();
    loop {
        let pair = [six.next(), four.next()];
        if pair == [None, None] {
            return sorted;
        }
        sorted.extend(pair.into_iter().flatten());
    }
}

/// Of the failures at all addresses of a server the one that says most: whoever answers says more
/// than silence.
fn most_telling(address: &str, mut failures: Vec<Error>) -> Error {
    let dead = |error: &Error| {
        matches!(
            error,
            Error::Unreachable { .. } | Error::NobodyListens(_) | Error::Endpoint(_)
        )
    };
    if let Some(telling) = failures.iter().position(|error| !dead(error)) {
        return failures.swap_remove(telling);
    }
    if failures.len() == 1 {
        return failures.swap_remove(0);
    }
    let tried: Vec<String> = failures.iter().map(ToString::to_string).collect();
    Error::NoneAnswers {
        address: address.into(),
        tried: tried.join("; "),
    }
}

/// The error of a failed handshake, as the user needs it.
fn connect_error(
    server: SocketAddr,
    waited: Duration,
    error: quinn::ConnectionError,
    trust: &Trust,
    client: &ClientEndpoint,
) -> Error {
    use quinn::ConnectionError;
    let pinned = match trust {
        Trust::Pinned(fingerprint) => Some(*fingerprint),
        _ => None,
    };
    if let (Trust::OneOf(known), Some(presented)) = (trust, client.presented())
        && !known.contains(&presented)
    {
        return Error::UnknownServer { server, presented };
    }
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
        _ if no_common_key_exchange(&error) => Error::Version(
            "the server does not offer the key exchange X25519MLKEM768, without which a recorded \
             session could be opened later"
                .into(),
        ),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome(service: Fingerprint, client: Fingerprint) -> Welcome {
        Welcome {
            protocol: PROTOCOL_VERSION,
            software: software(),
            nonce: [0; 32],
            service,
            client,
            model: [0; 32],
            name: "net".into(),
            version: "1".into(),
            current: true,
            artifact_bytes: 0,
            setup: None,
            held: Vec::new(),
            answers_left: None,
            answers_left_today: None,
        }
    }

    /// The name of a server decides which bundles are spent, and that of the client goes into every
    /// header.
    #[test]
    fn a_server_takes_no_name_that_is_not_its_own() {
        let state = tempfile::tempdir().unwrap();
        let patience = crate::client::Patience {
            connect: Duration::from_secs(1),
            silence: Duration::from_secs(1),
        };
        let client = Client::open(state.path(), patience).unwrap();
        let [service, second, stranger] = [1, 2, 3].map(|name| Fingerprint([name; 32]));
        let record = PeerRecord {
            addresses: vec!["localhost:1".into()],
            model: [0; 32],
            prepared_at: 1,
            certificates: vec![second, service],
            models: Vec::new(),
        };
        client.store.put_peer(service, &record).unwrap();
        let own = client.fingerprint();
        let check = |welcome: &Welcome, certificate, vouched| {
            client.check_names(welcome, certificate, vouched).is_ok()
        };
        for shown in [service, second] {
            assert!(check(&welcome(service, own), shown, false));
        }
        assert!(!check(&welcome(service, own), stranger, false));
        assert!(
            check(&welcome(service, own), stranger, true),
            "an authority says so"
        );
        assert!(
            check(&welcome(stranger, own), stranger, false),
            "a new server"
        );
        assert!(!check(&welcome(service, stranger), service, false));
    }

    #[test]
    fn families_come_in_turn() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let [a, b, c] = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"].map(parse);
        let [d, e] = ["[2001:db8::1]:1", "[2001:db8::2]:1"].map(parse);
        assert_eq!(in_turn(vec![a, b, c, d, e]), [d, a, e, b, c]);
        assert_eq!(in_turn(vec![a, b]), [a, b]);
        assert_eq!(in_turn(vec![d]), [d]);
    }

    #[tokio::test]
    async fn localhost_is_both_loopback_addresses() {
        for host in ["localhost", "LocalHost", "some.localhost"] {
            let found = addresses_of(&format!("{host}:7"), host).await.unwrap();
            for address in ["[::1]:7", "127.0.0.1:7"] {
                assert!(found.contains(&address.parse().unwrap()), "{found:?}");
            }
        }
        let found = addresses_of("127.0.0.1:7", "127.0.0.1").await.unwrap();
        assert_eq!(found, ["127.0.0.1:7".parse().unwrap()]);
    }

    /// Whoever answers says more than who does not, in whatever order they do.
    #[test]
    fn the_most_telling_failure_is_reported() {
        let [one, other] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let dead = || Error::NobodyListens(one);
        let full = || Error::ServerFull(other);
        for failures in [vec![dead(), full()], vec![full(), dead()]] {
            assert!(matches!(most_telling("it", failures), Error::ServerFull(_)));
        }
        assert!(matches!(
            most_telling("it", vec![dead()]),
            Error::NobodyListens(_)
        ));
        let both = most_telling("it:1", vec![dead(), Error::NobodyListens(other)]).to_string();
        assert!(
            both.contains("127.0.0.1:1; no program listens at 127.0.0.1:2"),
            "{both}"
        );
    }
}
