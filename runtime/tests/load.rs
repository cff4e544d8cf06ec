//! Strangers who want the server's memory: as many as it lets in, each with keys of its own, each
//! asking for as many bundles as an exchange has and reading nothing. The server stays within its
//! budget, and an honest client is answered.

mod common;

use common::{Model, server_command};
use pi_ir::interpret::label;
use pi_protocol::Channel;
use pi_protocol::header::PROTOCOL_VERSION;
use pi_protocol::session::{
    Answer, ClientBatch, ClientModel, ClientSetup, HeaderInputs, ServerModel, client_setup,
};
use pi_runtime::client::{Client, Patience, TrustOptions};
use pi_runtime::command::child::ServerProcess;
use pi_runtime::control::{Hello, Prepare, Request, Stored, Welcome};
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::identity::Identity;
use pi_runtime::stream::{MessageStream, Refusal, StreamError};
use pi_runtime::transport::{ClientEndpoint, Trust, client_endpoint};
use rand_core::{OsRng, TryRngCore};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const STRANGERS: usize = 32;
const SILENCE: Duration = Duration::from_secs(120);
const NONCE: [u8; 32] = [7; 32];
/// How long a stranger holds up an exchange that was let in: longer than the server bears it.
const HELD_UP: Duration = Duration::from_secs(30);

/// How the strangers fare.
#[derive(Default)]
struct Tally {
    /// Those that have keys at the server.
    known: AtomicUsize,
    /// Times that one of them was told to come back.
    sent_away: AtomicUsize,
}

struct Stranger {
    _endpoint: ClientEndpoint,
    connection: quinn::Connection,
    inputs: HeaderInputs,
    setup: Option<ClientSetup>,
}

/// A line whose owner sends what the protocol asks for and reads nothing.
struct Deaf<'a> {
    stream: &'a mut MessageStream,
    ended: Option<StreamError>,
}

impl Channel for Deaf<'_> {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), pi_protocol::Error> {
        let sent = self.stream.send_message(message).await;
        sent.map_err(|error| self.end(error))
    }

    async fn receive(&mut self, _limit: usize) -> Result<Vec<u8>, pi_protocol::Error> {
        // The length of the server's message tells that the exchange was let in: it is held up now.
        let error = self.stream.receive_message(0).await.unwrap_err();
        if matches!(error, StreamError::TooLong { .. }) {
            tokio::time::sleep(HELD_UP).await;
        }
        Err(self.end(error))
    }
}

impl Deaf<'_> {
    fn end(&mut self, error: StreamError) -> pi_protocol::Error {
        let what = error.to_string();
        self.ended = Some(error);
        pi_protocol::Error::Channel { what }
    }
}

impl Stranger {
    async fn arrive(server: Fingerprint, address: SocketAddr, state: &std::path::Path) -> Stranger {
        std::fs::create_dir_all(state).unwrap();
        let identity = Identity::load_or_create(state, &["stranger"]).unwrap();
        let endpoint = client_endpoint(&identity, Trust::Pinned(server), address).unwrap();
        let connecting = endpoint.endpoint.connect(address, "localhost").unwrap();
        let connection = connecting.await.unwrap();
        let hello = Request::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            software: "stranger".into(),
            nonce: NONCE,
            model: None,
            prefer: Vec::new(),
            probes: Vec::new(),
        });
        let mut stream = open(&connection, &hello).await;
        let welcome: Welcome = stream.receive_control(1 << 14).await.unwrap();
        Stranger {
            _endpoint: endpoint,
            connection,
            inputs: HeaderInputs {
                server_peer: server.0,
                client_peer: identity.fingerprint().0,
                server_nonce: welcome.nonce,
                client_nonce: NONCE,
                index: 0,
            },
            setup: None,
        }
    }

    /// One more try to make the server work for nothing; waits as long as the server does.
    async fn attack(&mut self, model: &ClientModel, tally: &Tally) {
        let rng = &mut OsRng.unwrap_err();
        let Some(setup) = &self.setup else {
            let mut stream = open(&self.connection, &Request::Setup).await;
            if let Ok(setup) = client_setup(&mut stream, &self.inputs, rng).await {
                let stored: Result<Stored, StreamError> = stream.receive_control(1 << 14).await;
                if stored.is_ok() {
                    self.setup = Some(setup);
                    tally.known.fetch_add(1, Ordering::SeqCst);
                }
            }
            return;
        };
        let size = model.batches(common::BATCH as usize)[0];
        let request = Request::Prepare(Prepare {
            count: size as u32,
            first_index: self.inputs.index,
            held: Vec::new(),
        });
        let mut stream = open(&self.connection, &request).await;
        let inputs = self.inputs;
        self.inputs.index += size as u64;
        let mut line = Deaf {
            stream: &mut stream,
            ended: None,
        };
        let batch = ClientBatch::start(&mut line, model, setup, &inputs, size, rng).await;
        assert!(batch.is_err(), "it read nothing");
        if let Some(StreamError::Refused(Refusal::ComeBack(_))) = line.ended {
            tally.sent_away.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn open(connection: &quinn::Connection, request: &Request) -> MessageStream {
    let (outgoing, incoming) = connection.open_bi().await.unwrap();
    let mut stream = MessageStream::new(outgoing, incoming, SILENCE);
    stream.send_control(request).await.unwrap();
    stream
}

/// The largest resident memory of a process so far, in bytes.
fn peak_resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kibibytes = line.unwrap().split_whitespace().nth(1).unwrap();
    kibibytes.parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_spend_the_servers_memory() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let public = Arc::new(ClientModel::new(model.artifact.clone()).unwrap());
    let served = ServerModel::new(model.artifact.clone(), model.weights.clone()).unwrap();
    // Room for half as many exchanges as there are strangers, beyond the least, which the server
    // names when it has less.
    let state = states.path().join("server");
    let start = |budget: u64| {
        let mut command = server_command(model.path(), &state);
        let limits = ["--max-clients", "40", "--memory"];
        command.program.args(limits).arg(budget.to_string());
        command.log = Some(states.path().join("log"));
        ServerProcess::start(command)
    };
    let refused = start(1 << 20)
        .err()
        .expect("1 MiB is too little")
        .to_string();
    let least = refused
        .split("at least ")
        .nth(1)
        .expect("it names the least");
    let least: u64 = least.split(' ').next().unwrap().parse().unwrap();
    let budget = least * 1_000_000 + STRANGERS as u64 / 2 * served.most_offline_memory();
    let server = start(budget).unwrap();
    let process = server.process.child.id();
    let before = peak_resident(process);

    let address: SocketAddr = server.address.parse().unwrap();
    let tally = Arc::new(Tally::default());
    let mut strangers = tokio::task::JoinSet::new();
    for number in 0..STRANGERS {
        let (public, tally) = (public.clone(), tally.clone());
        let (fingerprint, state) = (server.fingerprint, states.path().join(number.to_string()));
        strangers.spawn(async move {
            let mut stranger = Stranger::arrive(fingerprint, address, &state).await;
            loop {
                stranger.attack(&public, &tally).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
    // Most of them have keys, and many had to wait, before the honest client comes.
    let ready = async {
        while tally.known.load(Ordering::SeqCst) < STRANGERS * 3 / 4
            || tally.sent_away.load(Ordering::SeqCst) < STRANGERS
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(strangers.try_join_next().is_none(), "a stranger gave up");
        }
    };
    tokio::time::timeout(SILENCE, ready)
        .await
        .expect("the attack stands");

    let patience = Patience {
        connect: Duration::from_secs(20),
        silence: SILENCE,
    };
    let client = Client::open(&states.path().join("honest"), patience).unwrap();
    let trust = TrustOptions {
        fingerprint: Some(server.fingerprint),
        ..TrustOptions::default()
    };
    let mut connection = client.connect(&server.address, &trust).await.unwrap();
    let (fetched, _) = connection.model().await.unwrap();
    let (setup, _) = connection.setup().await.unwrap();
    connection
        .prepare(&fetched, &setup, 1, |_| {})
        .await
        .unwrap();
    let (id, _) = connection.next_bundle().await.unwrap();
    let input = model.input();
    let answer = connection.infer(&fetched, &id, &input, true).await.unwrap();
    let exact = model
        .interpreter()
        .exact(&input, &answer.trace.unwrap())
        .unwrap();
    match answer.answer {
        Answer::Label(found) => assert_eq!(found, label(&exact.logits)),
        Answer::Logits(found) => assert_eq!(found, exact.logits),
        Answer::OutOfRange => panic!("out of range"),
    }
    connection.close().await;

    let grown = peak_resident(process) - before;
    eprintln!(
        "{STRANGERS} strangers: {} MB of {} MB, {} times sent away",
        grown / 1_000_000,
        budget / 1_000_000,
        tally.sent_away.load(Ordering::SeqCst)
    );
    assert!(grown < budget, "{grown} bytes of {budget}");
}
