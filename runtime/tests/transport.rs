//! Peers that are silent, oversized, or someone else end in errors that say so, and nothing waits
//! for ever.

use pi_runtime::client::{Client, Patience, TrustOptions};
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::identity::{Identity, read_certificates};
use pi_runtime::stream::{MessageStream, Refusal, StreamError, StreamTraffic};
use pi_runtime::transport::{
    ClientEndpoint, Clients, Trust, client_endpoint, peer_fingerprint, server_endpoint,
};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_millis(300);
/// Far above what the tests wait for, far below a hang.
const SOON: Duration = Duration::from_secs(20);

fn identity() -> (tempfile::TempDir, Identity) {
    let state = tempfile::tempdir().unwrap();
    let identity = Identity::load_or_create(state.path(), &["localhost"]).unwrap();
    (state, identity)
}

/// A connected client and server with one stream between them.
struct Pair {
    server: quinn::Connection,
    client: quinn::Connection,
    server_stream: MessageStream,
    client_stream: (quinn::SendStream, quinn::RecvStream),
    _endpoints: (quinn::Endpoint, ClientEndpoint),
}

impl Pair {
    async fn connect() -> Pair {
        let (_, server_identity) = identity();
        let (_, client_identity) = identity();
        let listening = server_endpoint(&server_identity, Clients::Any, loopback()).unwrap();
        let to = listening.local_addr().unwrap();
        let trust = Trust::Pinned(server_identity.fingerprint());
        let calling = client_endpoint(&client_identity, trust, to).unwrap();
        let accepting = async { listening.accept().await.unwrap().await.unwrap() };
        let connecting = async { calling.endpoint.connect(to, "localhost").unwrap().await };
        let (server, client) = tokio::join!(accepting, connecting);
        let client = client.unwrap();
        assert_eq!(
            peer_fingerprint(&server),
            Some(client_identity.fingerprint())
        );
        assert_eq!(
            peer_fingerprint(&client),
            Some(server_identity.fingerprint())
        );
        let mut client_stream = client.open_bi().await.unwrap();
        // A stream exists for the peer once a byte was sent on it: an empty message.
        client_stream.0.write_all(&[0; 4]).await.unwrap();
        let (outgoing, incoming) = server.accept_bi().await.unwrap();
        let mut server_stream = MessageStream::new(outgoing, incoming, PATIENCE);
        assert!(server_stream.receive_message(0).await.unwrap().is_empty());
        Pair {
            server,
            client,
            server_stream,
            client_stream,
            _endpoints: (listening, calling),
        }
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .expect("this must not hang")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_announcement_is_refused_before_its_bytes() {
    let mut pair = Pair::connect().await;
    let announced = 1usize << 30;
    let header = (announced as u32).to_le_bytes();
    pair.client_stream.0.write_all(&header).await.unwrap();
    let error = soon(pair.server_stream.receive_message(1000)).await;
    let StreamError::TooLong {
        announced: got,
        limit,
    } = error.unwrap_err()
    else {
        panic!("another error");
    };
    assert_eq!((got, limit), (announced, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_exactly_the_limit_passes_and_one_more_does_not() {
    let mut pair = Pair::connect().await;
    let (outgoing, incoming) = pair.client_stream;
    let mut client = MessageStream::new(outgoing, incoming, SOON);
    client.send_message(vec![7; 1000]).await.unwrap();
    client.send_message(vec![7; 1001]).await.unwrap();
    let first = pair.server_stream.receive_message(1000).await.unwrap();
    assert_eq!(first, vec![7; 1000]);
    let second = pair.server_stream.receive_message(1000).await;
    assert!(matches!(second, Err(StreamError::TooLong { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_given_up() {
    let mut pair = Pair::connect().await;
    let started = Instant::now();
    let error = soon(pair.server_stream.receive_message(1000)).await;
    assert!(matches!(error, Err(StreamError::Silent(_))), "{error:?}");
    assert!(started.elapsed() >= PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stops_inside_a_message_is_given_up() {
    let mut pair = Pair::connect().await;
    let (outgoing, _incoming) = &mut pair.client_stream;
    outgoing.write_all(&1000u32.to_le_bytes()).await.unwrap();
    outgoing.write_all(&[1; 999]).await.unwrap();
    let error = soon(pair.server_stream.receive_message(1000)).await;
    assert!(matches!(error, Err(StreamError::Silent(_))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_trickles_is_given_up() {
    let mut pair = Pair::connect().await;
    let (mut outgoing, _incoming) = pair.client_stream;
    // Never silent for long, but a byte at a time.
    let trickle = tokio::spawn(async move {
        outgoing.write_all(&100u32.to_le_bytes()).await.unwrap();
        while outgoing.write_all(&[1]).await.is_ok() {
            tokio::time::sleep(PATIENCE / 6).await;
        }
    });
    let error = soon(pair.server_stream.receive_message(1000)).await;
    assert!(matches!(error, Err(StreamError::Silent(_))), "{error:?}");
    trickle.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_nothing_is_given_up() {
    let mut pair = Pair::connect().await;
    // More than the flow-control window of a stream that nobody reads, in one message that may take
    // its time.
    let error = soon(pair.server_stream.send_message(vec![0; 40 << 20])).await;
    assert!(matches!(error, Err(StreamError::Silent(_))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_inside_a_message_is_an_error() {
    let mut pair = Pair::connect().await;
    let (outgoing, _incoming) = &mut pair.client_stream;
    outgoing.write_all(&1000u32.to_le_bytes()).await.unwrap();
    outgoing.write_all(&[1; 10]).await.unwrap();
    outgoing.finish().unwrap();
    let error = soon(pair.server_stream.receive_message(1000)).await;
    assert!(matches!(error, Err(StreamError::Ended)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_connection_is_an_error() {
    let mut pair = Pair::connect().await;
    pair.client.close(0u32.into(), b"");
    let error = soon(pair.server_stream.receive_message(1000)).await;
    assert!(matches!(error, Err(StreamError::Lost(_))), "{error:?}");
    assert!(pair.server.close_reason().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_with_a_refusal_is_that_refusal_on_every_stream() {
    let mut pair = Pair::connect().await;
    let code = Refusal::Storage.code().try_into().unwrap();
    pair.client.close(code, b"");
    let error = soon(pair.server_stream.receive_message(1000)).await;
    assert!(
        matches!(error, Err(StreamError::Refused(Refusal::Storage))),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_the_peer_by_its_code_alone() {
    let pair = Pair::connect().await;
    let (outgoing, incoming) = pair.client_stream;
    let mut client = MessageStream::new(outgoing, incoming, SOON);
    pair.server_stream.refuse(Refusal::SpentBundle);
    let error = soon(client.receive_message(1000)).await;
    assert!(matches!(
        error,
        Err(StreamError::Refused(Refusal::SpentBundle))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_arrive_whole_and_are_counted() {
    let pair = Pair::connect().await;
    let (outgoing, incoming) = pair.client_stream;
    let mut client = MessageStream::new(outgoing, incoming, SOON);
    let mut server = pair.server_stream;
    // Longer than every flow-control window, with a pattern that shows misplaced pieces.
    let large: Vec<u8> = (0..70u32 << 20).map(|i| (i >> 7) as u8 ^ i as u8).collect();
    let (sent, received) = tokio::join!(
        client.send_message(large.clone()),
        server.receive_message(large.len())
    );
    sent.unwrap();
    assert!(received.unwrap() == large, "the message changed on its way");
    let (sent, received) = tokio::join!(
        server.send_message(vec![1; 5]),
        client.receive_message(usize::MAX)
    );
    sent.unwrap();
    assert_eq!(received.unwrap(), [1; 5]);
    assert_eq!(
        client.traffic(),
        StreamTraffic {
            bytes_sent: large.len() as u64,
            bytes_received: 5,
            messages_sent: 1,
            messages_received: 1
        }
    );
}

/// Tries a connection with this trust: the fingerprint connected to, and the one presented.
async fn try_connect(
    server: &Identity,
    trust: Trust,
    name: &str,
) -> (Option<Fingerprint>, Option<Fingerprint>) {
    let (_, client_identity) = identity();
    let listening = server_endpoint(server, Clients::Any, loopback()).unwrap();
    let to = listening.local_addr().unwrap();
    let calling = client_endpoint(&client_identity, trust, to).unwrap();
    let accepting = async {
        // Fails when the client turns away.
        let _ = listening.accept().await.unwrap().await;
    };
    let connecting = async { calling.endpoint.connect(to, name).unwrap().await };
    let (_, result) = soon(async { tokio::join!(accepting, connecting) }).await;
    let connected = result.ok().and_then(|c| peer_fingerprint(&c));
    (connected, calling.presented())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_pinned_server_is_accepted() {
    let (_state, right) = identity();
    let (_state2, wrong) = identity();
    let pinned = Trust::Pinned(right.fingerprint());
    let (connected, _) = try_connect(&right, pinned.clone(), "localhost").await;
    assert_eq!(connected, Some(right.fingerprint()));
    let (connected, presented) = try_connect(&wrong, pinned, "localhost").await;
    assert_eq!(connected, None);
    assert_eq!(presented, Some(wrong.fingerprint()));
    let (connected, _) = try_connect(&wrong, Trust::FirstUse, "localhost").await;
    assert_eq!(connected, Some(wrong.fingerprint()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_vouches_for_its_certificates_and_names_only() {
    let (state, server) = identity();
    let (_state2, stranger) = identity();
    let own = read_certificates(&state.path().join("identity.pem")).unwrap();
    let trust = Trust::Authorities(own);
    let (connected, _) = try_connect(&server, trust.clone(), "localhost").await;
    assert_eq!(connected, Some(server.fingerprint()));
    let (connected, _) = try_connect(&server, trust.clone(), "elsewhere.example").await;
    assert_eq!(connected, None);
    let (connected, _) = try_connect(&stranger, trust, "localhost").await;
    assert_eq!(connected, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_or_with_another_protocol_is_refused() {
    let (state, server) = identity();
    let roots = {
        let mut roots = rustls::RootCertStore::empty();
        let certificates = read_certificates(&state.path().join("identity.pem")).unwrap();
        roots.add(certificates[0].clone()).unwrap();
        roots
    };
    use rustls::crypto::aws_lc_rs::kx_group::{X25519, X25519MLKEM768};
    for (alpn, certificate, exchange, accepted) in [
        (&b"pianissimo/2"[..], true, X25519MLKEM768, true),
        (b"pianissimo/2", false, X25519MLKEM768, false),
        (b"pianissimo/1", true, X25519MLKEM768, false),
        (b"pianissimo/2", true, X25519, false),
    ] {
        let provider = std::sync::Arc::new(rustls::crypto::CryptoProvider {
            kx_groups: vec![exchange],
            ..rustls::crypto::aws_lc_rs::default_provider()
        });
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone());
        let mut tls = match certificate {
            true => {
                let made = rcgen::generate_simple_self_signed(vec!["client".into()]).unwrap();
                let key =
                    rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
                builder
                    .with_client_auth_cert(vec![made.cert.der().clone()], key.unwrap())
                    .unwrap()
            }
            false => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let config = quinn::ClientConfig::new(std::sync::Arc::new(crypto));

        let listening = server_endpoint(&server, Clients::Any, loopback()).unwrap();
        let to = listening.local_addr().unwrap();
        let calling = quinn::Endpoint::client(loopback()).unwrap();
        let accepting = async { listening.accept().await.unwrap().await.is_ok() };
        let connecting = async { calling.connect_with(config, to, "localhost").unwrap().await };
        let (got_through, _connection) = soon(async { tokio::join!(accepting, connecting) }).await;
        let what = format!("{}, {exchange:?}", String::from_utf8_lossy(alpn));
        assert_eq!(got_through, accepted, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_post_quantum_exchange_is_refused_and_the_reason_named() {
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group::X25519};
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
    let provider = std::sync::Arc::new(rustls::crypto::CryptoProvider {
        kx_groups: vec![X25519],
        ..default_provider()
    });
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
        .unwrap();
    tls.alpn_protocols = vec![b"pianissimo/2".to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(std::sync::Arc::new(crypto));
    let listening = quinn::Endpoint::server(config, loopback()).unwrap();
    let to = listening.local_addr().unwrap();
    let state = tempfile::tempdir().unwrap();
    let patience = Patience {
        connect: SOON,
        silence: SOON,
    };
    let client = Client::open(state.path(), patience).unwrap();
    let trust = TrustOptions {
        first_use: true,
        ..TrustOptions::default()
    };
    let address = to.to_string();
    let accepting = async { listening.accept().await.unwrap().await.is_ok() };
    let connecting = client.connect(&address, &trust);
    let (got_through, result) = soon(async { tokio::join!(accepting, connecting) }).await;
    assert!(!got_through);
    let error = result.err().expect("no common key exchange").to_string();
    assert!(error.contains("X25519MLKEM768"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let (_state, server) = identity();
    let first = server_endpoint(&server, Clients::Any, loopback()).unwrap();
    let address = first.local_addr().unwrap();
    let error = server_endpoint(&server, Clients::Any, address).unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(error.to_string().contains("taken"), "{error}");
}
