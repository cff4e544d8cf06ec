//! Clients that break the control protocol are refused with a code, and the server goes on serving
//! others.

mod common;

use common::{Model, server_options};
use pi_protocol::header::PROTOCOL_VERSION;
use pi_runtime::control::{Hello, MOST_BUNDLES, MOST_PROBES, Prepare, Request, Welcome};
use pi_runtime::identity::Identity;
use pi_runtime::server::{Server, ServerOptions};
use pi_runtime::stream::{MessageStream, Refusal, StreamError};
use pi_runtime::transport::{Trust, client_endpoint};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(20);

/// A server, and a client that can say anything to it.
struct Liar {
    stop: watch::Sender<bool>,
    identity: Identity,
    trust: Trust,
    address: SocketAddr,
    _model: Model,
    _states: tempfile::TempDir,
}

impl Liar {
    fn start() -> Liar {
        let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
        let server = Server::start(&ServerOptions {
            max_clients: 4,
            patience: Duration::from_secs(2),
            ..server_options(&model, &states.path().join("server"))
        })
        .unwrap();
        let address = server.address().unwrap();
        let state = states.path().join("client");
        std::fs::create_dir(&state).unwrap();
        let identity = Identity::load_or_create(&state, &["liar"]).unwrap();
        let trust = Trust::Pinned(server.fingerprint());
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(server.run(stopped));
        Liar {
            stop,
            identity,
            trust,
            address,
            _model: model,
            _states: states,
        }
    }

    /// A connection as another process makes it: from a socket of its own.
    async fn connect(&self) -> quinn::Connection {
        let calling = client_endpoint(&self.identity, self.trust.clone(), self.address).unwrap();
        let connecting = calling.endpoint.connect(self.address, "localhost");
        connecting.unwrap().await.unwrap()
    }

    /// A connection after an honest greeting.
    async fn greeted(&self) -> quinn::Connection {
        let connection = self.connect().await;
        let mut stream = say(&connection, &hello()).await;
        let welcome: Welcome = stream.receive_control(1 << 14).await.unwrap();
        assert!(welcome.held.is_empty());
        connection
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn hello() -> Request {
    Request::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        software: "liar".into(),
        nonce: [1; 32],
        model: None,
        prefer: Vec::new(),
        probes: Vec::new(),
    })
}

async fn open(connection: &quinn::Connection) -> MessageStream {
    let (outgoing, incoming) = connection.open_bi().await.unwrap();
    MessageStream::new(outgoing, incoming, SOON)
}

async fn say(connection: &quinn::Connection, request: &Request) -> MessageStream {
    let mut stream = open(connection).await;
    stream.send_control(request).await.unwrap();
    stream
}

/// The code that ends a stream.
async fn refusal(mut stream: MessageStream) -> Refusal {
    let ended = tokio::time::timeout(SOON, stream.receive_message(1 << 20)).await;
    match ended.expect("the server answers") {
        Err(StreamError::Refused(refusal)) => refusal,
        other => panic!("another end: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_before_the_greeting_or_a_second_greeting_are_refused() {
    let liar = Liar::start();
    let connection = liar.connect().await;
    for request in [Request::Artifact, Request::Setup, Request::Infer] {
        let stream = say(&connection, &request).await;
        assert_eq!(refusal(stream).await, Refusal::Misbehaved);
    }
    let connection = liar.greeted().await;
    let stream = say(&connection, &hello()).await;
    assert_eq!(refusal(stream).await, Refusal::Misbehaved);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_versions_are_told_so() {
    let liar = Liar::start();
    let Request::Hello(mut newer) = hello() else {
        unreachable!("a greeting")
    };
    newer.protocol += 1;
    let stream = say(&liar.connect().await, &Request::Hello(newer)).await;
    assert_eq!(refusal(stream).await, Refusal::Incompatible);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused() {
    let liar = Liar::start();
    let connection = liar.greeted().await;
    let mut trailing = postcard::to_stdvec(&Request::Artifact).unwrap();
    trailing.push(0);
    // A list of 2^60 bundle ids in a few bytes.
    let endless = [&[3, 1, 0][..], &[0xff; 8], &[0x0f]].concat();
    for bytes in [vec![], vec![99], vec![0xff; 100], trailing, endless] {
        let mut stream = open(&connection).await;
        stream.send_message(bytes.clone()).await.unwrap();
        assert_eq!(refusal(stream).await, Refusal::Misbehaved, "{bytes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_counts_are_refused() {
    let liar = Liar::start();
    let Request::Hello(mut curious) = hello() else {
        unreachable!("a greeting")
    };
    curious.probes = vec![[0; 32]; MOST_PROBES + 1];
    let stream = say(&liar.connect().await, &Request::Hello(curious)).await;
    assert_eq!(refusal(stream).await, Refusal::Misbehaved);

    let connection = liar.greeted().await;
    let probe = Request::Probe(vec![[0; 32]; MOST_PROBES + 1]);
    assert_eq!(
        refusal(say(&connection, &probe).await).await,
        Refusal::Misbehaved
    );
    // In order some are, but there are no keys; and no index comes twice, whatever became of it.
    for (count, first_index, expected) in [
        (MOST_BUNDLES as u32 + 1, 0, Refusal::Misbehaved),
        (2, 0, Refusal::NoSetup),
        (1, 1, Refusal::Misbehaved),
        (1, 7, Refusal::NoSetup),
        (1, 7, Refusal::Misbehaved),
        (1, 0, Refusal::Misbehaved),
        (1, u64::MAX, Refusal::NoSetup),
    ] {
        let request = Request::Prepare(Prepare {
            count,
            first_index,
            held: Vec::new(),
        });
        let stream = say(&connection, &request).await;
        let found = refusal(stream).await;
        assert_eq!(found, expected, "{count} {first_index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_fed_with_garbage_are_refused() {
    let liar = Liar::start();
    let connection = liar.greeted().await;
    for request in [Request::Setup, Request::Infer] {
        for length in [0, 1, 31, 1000, 1 << 20] {
            let mut stream = say(&connection, &request).await;
            // The server may refuse while this is on its way.
            let _ = stream.send_message(vec![0xa5; length]).await;
            let refusal = refusal(stream).await;
            assert_eq!(refusal, Refusal::Misbehaved, "{request:?} {length}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_given_up_and_others_are_served() {
    let liar = Liar::start();
    let connection = liar.greeted().await;
    let silent = say(&connection, &Request::Setup).await;
    assert_eq!(refusal(silent).await, Refusal::Silent);
    let mut stream = say(&connection, &Request::Artifact).await;
    let artifact = stream.receive_message(1 << 24).await.unwrap();
    pi_ir::Artifact::decode(&artifact).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_of_a_client_replaces_the_older() {
    let liar = Liar::start();
    let first = liar.greeted().await;
    let second = liar.greeted().await;
    let closed = tokio::time::timeout(SOON, first.closed()).await;
    let reason = closed.expect("the older connection is closed");
    let quinn::ConnectionError::ApplicationClosed(close) = reason else {
        panic!("not closed by the server: {reason}");
    };
    assert_eq!(close.reason.as_ref(), b"superseded");
    let mut stream = say(&second, &Request::Artifact).await;
    stream.receive_message(1 << 24).await.unwrap();
}
