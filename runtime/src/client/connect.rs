//! Connecting: whom to trust, the handshake, and the greeting.

use super::connection::{Candidate, Connection, connection_lost, open_stream};
use super::{Client, TrustOptions, from_server};
use crate::control::{Hello, REPLY_LIMIT, Request, Welcome, software};
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::identity;
use crate::party::{Greeting, random};
use crate::store::{BundleEntry, BundleState};
use crate::stream::{Refusal, StreamError, describe};
use crate::transport::{self, ClientEndpoint, Trust, no_common_key_exchange};
use pi_protocol::header::PROTOCOL_VERSION;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::block_in_place;

/// Bundles that a greeting asks about: one that can be used is enough for the next answer, and
/// [`Request::Probe`] asks about the others.
const HELLO_PROBES: usize = 64;

impl Client {
    /// Connects to a server and greets it.
    ///
    /// The server must be the one pinned by `trust.fingerprint`, by a certificate authority, or by
    /// what is remembered of this address. Whoever answers is trusted only if the address is
    /// unknown and the user asked for that.
    ///
    /// # Errors
    /// [`Error`] says whether nobody answered, the wrong server did, or one that speaks another
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
        // Those of the model that the server is likely to serve come first, oldest first.
        let known = self
            .store
            .peers()?
            .into_iter()
            .find(|(peer, _)| *peer == server);
        let expected = known.map(|(_, record)| record.model);
        ready.sort_by_key(|entry| Some(entry.model) != expected);
        let nonce = random();
        let probes = &ready[..ready.len().min(HELLO_PROBES)];
        let welcome = self.exchange_greetings(&quic, nonce, probes).await?;
        let held = welcome.held.iter().copied().map(Some);
        let mut candidates = Vec::new();
        let mut stale = Vec::new();
        for (entry, held) in ready.into_iter().zip(held.chain(std::iter::repeat(None))) {
            match entry.model == welcome.model {
                true => candidates.push(Candidate { id: entry.id, held }),
                false => stale.push(entry),
            }
        }
        let greeting = Greeting {
            server,
            client: self.fingerprint(),
            server_nonce: welcome.nonce,
            client_nonce: nonce,
        };
        let connection = Connection {
            client: self,
            address: address.into(),
            endpoint,
            quic,
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

    async fn exchange_greetings(
        &self,
        quic: &quinn::Connection,
        nonce: [u8; 32],
        probes: &[BundleEntry],
    ) -> Result<Welcome, Error> {
        let hello = Request::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            software: software(),
            nonce,
            probes: probes.iter().map(|entry| entry.id.0).collect(),
        });
        let mut stream = open_stream(quic, self.patience.silence, &hello).await?;
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
        check_answers(&welcome.held, probes.len())?;
        Ok(welcome)
    }
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

/// The error of a failed handshake, as the user needs it.
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
