//! TLS of the two listeners for browsers: 1.3, X25519MLKEM768, and no certificate of the client.

use super::session::ALPN;
use crate::identity::Identity;
use crate::transport::{EndpointError, SERVER, STREAMS, provider, tls_error, transport_config};
use quinn::VarInt;
use quinn::crypto::rustls::QuicServerConfig;
use std::sync::Arc;

/// Streams of the browser in one direction: its control stream, two of QPACK, and some that mean
/// nothing and are there to keep servers tolerant.
const ONE_WAY: u32 = 8;
/// Bytes of datagrams that wait. Nothing reads them, but WebTransport is not offered without.
const DATAGRAMS: usize = 64 << 10;

/// What the endpoint for WebTransport needs to accept connections.
///
/// # Errors
/// [`EndpointError::Tls`] if the certificate or key cannot be used.
pub(crate) fn quic(identity: &Identity) -> Result<quinn::ServerConfig, EndpointError> {
    let tls = settings(identity, ALPN)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(tls_error)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = transport_config(&SERVER);
    transport
        // One more than others have: the request for the session stays open.
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS as u32 + 1))
        .max_concurrent_uni_streams(VarInt::from_u32(ONE_WAY))
        .datagram_receive_buffer_size(Some(DATAGRAMS));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// What the listener for HTTPS needs.
///
/// # Errors
/// [`EndpointError::Tls`] if the certificate or key cannot be used.
pub(crate) fn https(identity: &Identity) -> Result<Arc<rustls::ServerConfig>, EndpointError> {
    settings(identity, b"http/1.1").map(Arc::new)
}

fn settings(identity: &Identity, alpn: &[u8]) -> Result<rustls::ServerConfig, EndpointError> {
    let (chain, key) = identity.to_tls();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(tls_error)?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.send_tls13_tickets = 0;
    Ok(tls)
}
