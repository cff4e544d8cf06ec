//! QUIC endpoints: TLS 1.3 with both parties authenticated, and the settings that bulk traffic
//! needs.
//!
//! The server proves a certificate that the client pins by fingerprint, or checks against a CA. The
//! client proves a self-signed certificate: any is accepted, its fingerprint is the client's name,
//! and the handshake signature shows that it holds the key. Or the server demands certificates of
//! its operator's CA: then the name in the certificate is the client's, however often the
//! certificate is renewed. Keys are agreed by X25519 and ML-KEM at
//! once (X25519MLKEM768), and by nothing else. Nothing is resumed and nothing is sent before the
//! handshake ends (no 0-RTT).

use crate::fingerprint::{Fingerprint, of_certificate, of_certificate_name};
use crate::identity::Identity;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use quinn_proto::RandomConnectionIdGenerator;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, RootCertStore,
    SignatureScheme,
};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Application protocol of the handshake; the number is the version of the control protocol.
pub const ALPN: &[u8] = b"pianissimo/2";

/// A client's rule for deciding whether a server is the right one.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The server must prove the certificate with this fingerprint.
    Pinned(Fingerprint),
    /// The server must prove a certificate with one of these fingerprints.
    OneOf(Vec<Fingerprint>),
    /// Any server that proves its certificate; the caller remembers the fingerprint and pins it
    /// from then on.
    FirstUse,
    /// The server must prove a certificate that one of these authorities signed for the name it is
    /// reached by.
    Authorities(Vec<CertificateDer<'static>>),
}

/// Error of an endpoint that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The certificate, key or authorities cannot be used.
    #[error("unusable certificate or key: {0}")]
    Tls(String),
    /// The address is taken.
    #[error("{0} is taken by another program")]
    AddressTaken(SocketAddr),
    /// The socket cannot be opened.
    #[error("cannot open a UDP socket at {address}: {error}")]
    Socket {
        /// The address asked for.
        address: SocketAddr,
        /// The error of the system.
        error: io::Error,
    },
}

/// A server's rule for the certificates of clients.
#[derive(Clone, Debug)]
pub enum Clients {
    /// Any certificate will do: it is a name.
    Any,
    /// The certificate must be signed by one of these authorities, and be for some name.
    Authorities(Vec<CertificateDer<'static>>),
}

/// A listening endpoint.
///
/// # Errors
/// [`EndpointError`]; must be called inside a tokio runtime.
pub fn server_endpoint(
    identity: &Identity,
    clients: Clients,
    address: SocketAddr,
) -> Result<quinn::Endpoint, EndpointError> {
    let config = server_config(identity, clients)?;
    let socket = bind(address)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new(Default::default(), Some(config), socket, runtime)
        .map_err(|error| EndpointError::Socket { address, error })
}

/// What a listening endpoint needs to accept connections.
///
/// # Errors
/// [`EndpointError::Tls`] if a certificate or key cannot be used.
pub fn server_config(
    identity: &Identity,
    clients: Clients,
) -> Result<quinn::ServerConfig, EndpointError> {
    let provider = provider();
    let (chain, key) = identity.to_tls();
    let verifier: Arc<dyn ClientCertVerifier> = match clients {
        Clients::Any => Arc::new(AnyClient(provider.clone())),
        Clients::Authorities(certificates) => {
            let roots = Arc::new(roots(certificates)?);
            let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
            builder.build().map_err(tls_error)?
        }
    };
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(tls_error)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(tls_error)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(&SERVER)));
    Ok(config)
}

fn roots(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, EndpointError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(tls_error)?;
    }
    Ok(roots)
}

/// An endpoint for one connection, and what its handshake shows. Packets to it carry no connection
/// name, so a second connection to the same server would cut off the first.
///
/// # Errors
/// [`EndpointError`]; must be called inside a tokio runtime.
pub fn client_endpoint(
    identity: &Identity,
    trust: Trust,
    towards: SocketAddr,
) -> Result<ClientEndpoint, EndpointError> {
    let provider = provider();
    let seen = Arc::new(Mutex::new(None));
    let verifier = ServerCheck {
        provider: provider.clone(),
        seen: seen.clone(),
        rule: match trust {
            Trust::Pinned(fingerprint) => Rule::OneOf(vec![fingerprint]),
            Trust::OneOf(fingerprints) => Rule::OneOf(fingerprints),
            Trust::FirstUse => Rule::FirstUse,
            Trust::Authorities(certificates) => {
                let roots = Arc::new(roots(certificates)?);
                let builder = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
                Rule::Authorities(builder.build().map_err(tls_error)?)
            }
        },
    };
    let (chain, key) = identity.to_tls();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)
        .map_err(tls_error)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(tls_error)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(&CLIENT)));

    // One connection to a socket needs no names in the packets to it: eight bytes less in each.
    let mut endpoint_config = quinn::EndpointConfig::default();
    endpoint_config.cid_generator(|| Box::new(RandomConnectionIdGenerator::new(0)));
    let address = unspecified(towards);
    let runtime = Arc::new(quinn::TokioRuntime);
    let mut endpoint = quinn::Endpoint::new(endpoint_config, None, bind(address)?, runtime)
        .map_err(|error| EndpointError::Socket { address, error })?;
    endpoint.set_default_client_config(config);
    Ok(ClientEndpoint { endpoint, seen })
}

/// Any local address and port from which another address can be reached.
pub(crate) fn unspecified(towards: SocketAddr) -> SocketAddr {
    match towards {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
    }
}

/// An endpoint to connect from.
pub struct ClientEndpoint {
    /// The endpoint; it holds one connection at a time to a server.
    pub endpoint: quinn::Endpoint,
    seen: Arc<Mutex<Option<Fingerprint>>>,
}

impl ClientEndpoint {
    /// The fingerprint of the certificate that the last server presented, accepted or not.
    pub fn presented(&self) -> Option<Fingerprint> {
        *self.seen.lock().expect("no holder of this lock panics")
    }
}

/// The fingerprint of the certificate that the other end of a connection proved.
pub fn peer_fingerprint(connection: &quinn::Connection) -> Option<Fingerprint> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().map(|c| of_certificate(c))
}

/// The name in the certificate that the other end of a connection proved: its first URI, or its
/// first DNS name if it has none, as [`of_certificate_name`] makes it a name here.
pub fn peer_certificate_name(connection: &quinn::Connection) -> Option<Fingerprint> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    certificate_name(chain.first()?)
}

/// As [`peer_certificate_name`], of a certificate.
pub(crate) fn certificate_name(certificate: &CertificateDer<'_>) -> Option<Fingerprint> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let uri = parsed
        .valid_uri_names()
        .next()
        .map(|name| format!("uri:{name}"));
    let name = uri.or_else(|| {
        parsed
            .valid_dns_names()
            .next()
            .map(|name| format!("dns:{name}"))
    });
    name.map(|name| of_certificate_name(&name))
}

const MIB: u32 = 1 << 20;

/// Bytes that a connection may have under way: received and not read, by stream and in all, and
/// sent and not acknowledged.
pub(crate) struct Windows {
    stream: u32,
    receive: u32,
    send: u32,
}

/// A client has one connection.
const CLIENT: Windows = Windows {
    stream: 16 * MIB,
    receive: 64 * MIB,
    send: 32 * MIB,
};

/// A server has many, and those who fill them may be strangers: 8 MiB are the bytes of 67 ms at 1
/// Gbit/s, or of 670 ms at 100 Mbit/s.
pub(crate) const SERVER: Windows = Windows {
    stream: 8 * MIB,
    receive: 8 * MIB,
    send: 8 * MIB,
};

/// Streams of a connection at once.
pub(crate) const STREAMS: u64 = 4;

/// Bytes that the windows of a connection can take up at a server.
pub(crate) const SERVER_WINDOWS: u64 = (SERVER.receive + SERVER.send) as u64;

/// Settings for megabytes in a burst between two quiet phases.
///
/// Measured over loopback, 500 MB, with the client's windows on both sides: Cubic 1,373 MB/s, BBR
/// 729 MB/s (it drops half), segmentation offload off 424 MB/s.
pub(crate) fn transport_config(windows: &Windows) -> TransportConfig {
    let mut cubic = CubicConfig::default();
    // A layer's labels are up to half a megabyte (of 15,000 ReLUs) and should cross in one flight:
    // from the usual 14 KB slow start would take about seven round trips. This is far above what
    // RFC 9002 recommends. On a link that others share the first burst may queue, at 100 Mbit/s for
    // 80 ms, or overflow a short queue; then Cubic retransmits and backs off as on any loss.
    cubic.initial_window(1 << 20);
    let mut config = TransportConfig::default();
    config
        .congestion_controller_factory(Arc::new(cubic))
        .stream_receive_window(VarInt::from_u32(windows.stream))
        .receive_window(VarInt::from_u32(windows.receive))
        .send_window(u64::from(windows.send))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS as u32))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(75_000))))
        // A party may compute for a long time without a byte to send; four lost in a row end the
        // connection.
        .keep_alive_interval(Some(Duration::from_secs(15)));
    config
}

/// A UDP socket with buffers of 4 MiB, or as much of that as the system allows.
pub(crate) fn bind(address: SocketAddr) -> Result<std::net::UdpSocket, EndpointError> {
    use socket2::{Domain, Protocol, Socket, Type};
    const BUFFER_BYTES: usize = 4 << 20;
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let socket = open().map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => EndpointError::AddressTaken(address),
        _ => EndpointError::Socket { address, error },
    })?;
    for result in [
        socket.set_recv_buffer_size(BUFFER_BYTES),
        socket.set_send_buffer_size(BUFFER_BYTES),
    ] {
        if let Err(error) = result {
            // Slower, not wrong.
            tracing::debug!(%error, "the system keeps its socket buffer size");
        }
    }
    Ok(socket.into())
}

/// The cryptography of the handshake, with X25519MLKEM768 as the only key exchange.
///
/// It is a hybrid: session keys are safe if either the elliptic curve or ML-KEM is, so a recorded
/// session does not fall to a later quantum computer. Both programs of this project speak it, so
/// nothing is gained by offering another, and nobody can talk them down to one. Certificates stay
/// ECDSA: a signature is no use to forge once the handshake is over.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![X25519MLKEM768],
        ..aws_lc_rs::default_provider()
    })
}

/// True if a handshake failed because the parties share no key exchange, which is that of
/// [`provider`] alone (alert `handshake_failure` of RFC 8446, number 40, on either side).
pub(crate) fn no_common_key_exchange(error: &quinn::ConnectionError) -> bool {
    const HANDSHAKE_FAILURE: u64 = 0x100 + 40;
    match error {
        quinn::ConnectionError::ConnectionClosed(close) => {
            u64::from(close.error_code) == HANDSHAKE_FAILURE
        }
        quinn::ConnectionError::TransportError(error) => u64::from(error.code) == HANDSHAKE_FAILURE,
        _ => false,
    }
}

pub(crate) fn tls_error(error: impl std::fmt::Display) -> EndpointError {
    EndpointError::Tls(error.to_string())
}

/// The client's side of the handshake.
#[derive(Debug)]
struct ServerCheck {
    provider: Arc<CryptoProvider>,
    seen: Arc<Mutex<Option<Fingerprint>>>,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    OneOf(Vec<Fingerprint>),
    FirstUse,
    Authorities(Arc<WebPkiServerVerifier>),
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = of_certificate(end_entity);
        *self.seen.lock().expect("no holder of this lock panics") = Some(presented);
        match &self.rule {
            Rule::OneOf(expected) if expected.contains(&presented) => {
                Ok(ServerCertVerified::assertion())
            }
            Rule::OneOf(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Rule::FirstUse => Ok(ServerCertVerified::assertion()),
            Rule::Authorities(verifier) => verifier.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    /// The server holds the key of the certificate it presents.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The server's side of the handshake without an authority: every client must prove some
/// certificate.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    /// Any certificate will do: it is a name, what counts is the signature below.
    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    /// The client holds the key of the certificate it presents.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
