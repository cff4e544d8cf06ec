//! Client and server in one process, over QUIC: the private answer is the exact interpreter's, a
//! bundle serves one image of one client, and clients do not disturb each other.

mod common;

use common::{Model, limits, server_options};
use pi_ir::interpret::{label, quantise};
use pi_ir::{PublicWeights, Reveal, verify};
use pi_protocol::header::PROTOCOL_VERSION;
use pi_protocol::session::{Answer, BundleId, ClientModel};
use pi_runtime::client::{Client, Connection, Patience, Prediction, TrustOptions};
use pi_runtime::control::{Hello, Request, Welcome};
use pi_runtime::error::Error;
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::identity::Identity;
use pi_runtime::server::{ClientList, Server, ServerOptions};
use pi_runtime::store::{BundleState, ModelDigest, Store, StoreError};
use pi_runtime::stream::{MessageStream, Refusal, StreamError};
use pi_runtime::transport::{Trust, client_endpoint};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

struct Running {
    address: String,
    fingerprint: Fingerprint,
    model: ModelDigest,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(model: &Model, state: &Path, max_clients: usize) -> Running {
        Running::with(&ServerOptions {
            max_clients,
            ..server_options(model, state)
        })
    }

    fn with(options: &ServerOptions) -> Running {
        let server = Server::start(options).unwrap();
        let (stop, stopped) = watch::channel(false);
        Running {
            address: server.address().unwrap().to_string(),
            fingerprint: server.fingerprint(),
            model: server.models()[0].digest,
            stop,
            task: tokio::spawn(server.run(stopped)),
        }
    }

    fn trust(&self) -> TrustOptions {
        TrustOptions {
            fingerprint: Some(self.fingerprint),
            ..TrustOptions::default()
        }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

fn open(state: &Path) -> Client {
    let patience = Patience {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(60),
    };
    Client::open(state, patience).unwrap()
}

async fn prepared<'a>(
    client: &'a Client,
    server: &Running,
    count: u32,
) -> (Connection<'a>, ClientModel) {
    let connecting = client.connect(&server.address, &server.trust()).await;
    let mut connection = connecting.unwrap();
    let (model, _) = connection.model().await.unwrap();
    let (setup, _) = connection.setup().await.unwrap();
    let prepared = connection.prepare(&model, &setup, count, |_| {}).await;
    prepared.unwrap();
    (connection, model)
}

/// Whether the answer is as much of these logits as the model reveals.
fn is_answer(prediction: &Prediction, logits: &[i64]) -> bool {
    match &prediction.answer {
        Answer::Label(found) => *found == label(logits),
        Answer::Logits(found) => found == logits,
        Answer::OutOfRange => false,
    }
}

fn refused(error: Error) -> Refusal {
    match error {
        Error::Refused { refusal, .. } => refusal,
        error => panic!("another error: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn private_answers_are_the_exact_interpreters() {
    let states = tempfile::tempdir().unwrap();
    for (seed, reveal) in [(1, Reveal::Label), (100, Reveal::Logits)] {
        let model = Model::revealing(seed, reveal);
        let server = Running::start(&model, &states.path().join(format!("server{seed}")), 8);
        let client = open(&states.path().join("client"));
        let (mut connection, public) = prepared(&client, &server, 2).await;
        let input = model.input();
        for _ in 0..2 {
            let (id, _) = connection.next_bundle().await.unwrap();
            let answer = connection.infer(&public, &id, &input, true).await.unwrap();
            let trace = answer.trace.as_ref().unwrap();
            let exact = model.interpreter().exact(&input, trace).unwrap();
            assert!(is_answer(&answer, &exact.logits));
        }
        let error = connection.next_bundle().await.unwrap_err();
        assert!(matches!(error, Error::NoBundle(_)), "{error}");
        connection.close().await;
        server.stop().await;
    }
}

/// The prefix is fetched with the circuit and computed in the clear; what follows is private and
/// equals the whole network. A server that changes a weight of it serves another model, for which
/// no bundle was prepared.
#[tokio::test(flavor = "multi_thread")]
async fn a_public_prefix_is_computed_by_the_client_and_bound_to_the_model() {
    let states = tempfile::tempdir().unwrap();
    let mut model = Model::with_public_prefix(1);
    let at_server = states.path().join("server");
    let server = Running::start(&model, &at_server, 8);
    let client = open(&states.path().join("client"));
    let (mut connection, public) = prepared(&client, &server, 2).await;
    // What the client fetched is all that it needs for its part.
    let fetched = &public.artifact().circuit;
    let input = quantise(fetched, &model.example).unwrap();
    assert_eq!(input.len(), fetched.input.len());
    let (id, _) = connection.next_bundle().await.unwrap();
    let answer = connection.infer(&public, &id, &input, true).await.unwrap();
    let trace = answer.trace.as_ref().unwrap();
    let exact = model.interpreter().exact(&input, trace).unwrap();
    assert!(is_answer(&answer, &exact.logits));
    // The input goes up as 8 bytes for each value of the prefix's result, not of the image.
    let cost = public.cost().unwrap();
    assert_eq!(answer.online.traffic.bytes_sent - cost.online.bytes_up, 1);
    connection.close().await;
    server.stop().await;

    let mut circuit = (*model.artifact.circuit).clone();
    let prefix = circuit.prefix.as_mut().unwrap();
    let mut weights = (*prefix.weights).clone();
    weights.layers[0].bias[0] ^= 1;
    prefix.weights = PublicWeights::publish(weights);
    model.artifact.circuit = verify::circuit(circuit).unwrap();
    model.write();
    let server = Running::start(&model, &at_server, 8);
    let connecting = client.connect(&server.address, &server.trust()).await;
    let mut connection = connecting.unwrap();
    let error = connection.next_bundle().await.unwrap_err();
    assert!(matches!(error, Error::ModelChanged { .. }), "{error}");
    connection.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_messages_are_those_of_the_cost_formulas() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let server = Running::start(&model, &states.path().join("server"), 8);
    let client = open(&states.path().join("client"));
    let (mut connection, public) = prepared(&client, &server, 0).await;
    let (setup, _) = connection.setup().await.unwrap();
    let offline = connection
        .prepare(&public, &setup, 1, |_| {})
        .await
        .unwrap();
    let (id, _) = connection.next_bundle().await.unwrap();
    let answer = connection.infer(&public, &id, &model.input(), false).await;
    let online = answer.unwrap().online;
    let cost = public.cost().unwrap();
    // Beside the protocol's messages: the request, and offline the server's confirmation of 32
    // bytes.
    assert_eq!(online.traffic.bytes_sent - cost.online.bytes_up, 1);
    assert_eq!(online.traffic.bytes_received, cost.online.bytes_down);
    let messages = online.traffic.messages_sent + online.traffic.messages_received;
    assert_eq!(messages, u64::from(cost.online.messages) + 1);
    assert!(offline.traffic.bytes_sent - cost.offline.bytes_up <= 8);
    assert_eq!(offline.traffic.bytes_received, cost.offline.bytes_down + 32);
    let messages = offline.traffic.messages_sent + offline.traffic.messages_received;
    assert_eq!(messages, u64::from(cost.offline.messages) + 2);
    connection.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_restored_from_a_copy_is_refused_by_the_server() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let server = Running::start(&model, &states.path().join("server"), 8);
    let state = states.path().join("client");
    let client = open(&state);
    let (mut connection, _) = prepared(&client, &server, 1).await;
    let (id, _) = connection.next_bundle().await.unwrap();
    connection.close().await;
    drop(client);
    // What a backup of the state would hold.
    let copy = states.path().join("copy");
    copy_directory(&state, &copy);
    for (state, used_before) in [(&state, false), (&copy, true)] {
        let client = open(state);
        let connecting = client.connect(&server.address, &server.trust()).await;
        let mut connection = connecting.unwrap();
        let (public, _) = connection.model().await.unwrap();
        connection.load(&public, &id).await.unwrap();
        let answer = connection.infer(&public, &id, &model.input(), false).await;
        match used_before {
            false => assert!(answer.is_ok()),
            true => assert_eq!(refused(answer.unwrap_err()), Refusal::SpentBundle),
        }
        connection.close().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_read_ahead_is_used_once() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let server = Running::start(&model, &states.path().join("server"), 8);
    let client = open(&states.path().join("client"));
    let (mut connection, public) = prepared(&client, &server, 3).await;
    let input = model.input();
    let ids: Vec<_> = client.bundles(connection.server()).unwrap();
    let ids: Vec<_> = ids.iter().map(|entry| entry.id).collect();
    let spent = |error| matches!(error, Error::Store(StoreError::Spent(_)));
    // Another bundle than the one that is used.
    connection.load(&public, &ids[1]).await.unwrap();
    for id in [ids[0], ids[1], ids[2]] {
        if id == ids[2] {
            connection.load(&public, &id).await.unwrap();
            connection.load(&public, &id).await.unwrap();
        }
        let answer = connection.infer(&public, &id, &input, true).await.unwrap();
        let exact = model
            .interpreter()
            .exact(&input, answer.trace.as_ref().unwrap());
        assert!(is_answer(&answer, &exact.unwrap().logits));
        let again = connection.infer(&public, &id, &input, false).await;
        assert!(spent(again.unwrap_err()));
        assert!(spent(connection.load(&public, &id).await.unwrap_err()));
    }
    connection.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_when_a_bundle_is_read_ahead_and_when_it_is_used() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let [at_server, at_client] = ["server", "client"].map(|party| states.path().join(party));
    for (damaged, by_client) in [(&at_client, true), (&at_server, false)] {
        let server = Running::start(&model, &at_server, 8);
        let client = open(&at_client);
        let (connection, _) = prepared(&client, &server, 1).await;
        connection.close().await;
        server.stop().await;
        drop(client);
        for file in std::fs::read_dir(damaged.join("bundles")).unwrap() {
            let path = file.unwrap().path();
            let mut content = std::fs::read(&path).unwrap();
            let middle = content.len() / 2;
            content[middle] ^= 0x10;
            std::fs::write(&path, content).unwrap();
        }
        let server = Running::start(&model, &at_server, 8);
        let client = open(&at_client);
        let connecting = client.connect(&server.address, &server.trust()).await;
        let mut connection = connecting.unwrap();
        let (public, _) = connection.model().await.unwrap();
        let (id, _) = connection.next_bundle().await.unwrap();
        let loaded = connection.load(&public, &id).await;
        let answer = connection.infer(&public, &id, &model.input(), false).await;
        let found = |error| matches!(error, Error::Store(StoreError::Damaged { .. }));
        match by_client {
            true => {
                assert!(found(loaded.unwrap_err()));
                assert!(found(answer.unwrap_err()));
            }
            false => {
                loaded.unwrap();
                assert_eq!(refused(answer.unwrap_err()), Refusal::Storage);
            }
        }
        let entries = client.bundles(connection.server()).unwrap();
        let entry = entries.iter().find(|entry| entry.id == id).unwrap();
        assert_eq!(entry.state, BundleState::Spent);
        connection.close().await;
        server.stop().await;
        drop(client);
    }
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_directory(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_of_another_client_is_refused_and_stays_good() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let server = Running::start(&model, &states.path().join("server"), 8);
    let (victim_state, thief_state) = (states.path().join("victim"), states.path().join("thief"));
    let victim = open(&victim_state);
    let (mut connection, _) = prepared(&victim, &server, 1).await;
    let (id, _) = connection.next_bundle().await.unwrap();
    let digest = connection.model_digest();
    connection.close().await;
    drop(victim);

    // The thief has read the victim's half.
    let contents = victim_state.join("bundles");
    let file = std::fs::read_dir(contents)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let stolen = std::fs::read(file.path()).unwrap();
    drop(open(&thief_state));
    let store = Store::open(&thief_state).unwrap();
    store
        .put_bundle(server.fingerprint, &digest, &id, &stolen)
        .unwrap();
    drop(store);
    let thief = open(&thief_state);
    let connecting = thief.connect(&server.address, &server.trust()).await;
    let mut connection = connecting.unwrap();
    let (public, _) = connection.model().await.unwrap();
    let answer = connection.infer(&public, &id, &model.input(), false).await;
    assert_eq!(refused(answer.unwrap_err()), Refusal::UnknownBundle);
    connection.close().await;

    let victim = open(&victim_state);
    let connecting = victim.connect(&server.address, &server.trust()).await;
    let mut connection = connecting.unwrap();
    let (public, _) = connection.model().await.unwrap();
    let (id, _) = connection.next_bundle().await.unwrap();
    let answer = connection.infer(&public, &id, &model.input(), false).await;
    answer.unwrap();
    connection.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_at_once_get_their_own_answers() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let server = Running::start(&model, &states.path().join("server"), 8);
    let one = async |name: &str| {
        let client = open(&states.path().join(name));
        let (mut connection, public) = prepared(&client, &server, 2).await;
        let input = model.input();
        for _ in 0..2 {
            let (id, _) = connection.next_bundle().await.unwrap();
            let answer = connection.infer(&public, &id, &input, true).await.unwrap();
            let trace = answer.trace.as_ref().unwrap();
            let exact = model.interpreter().exact(&input, trace).unwrap();
            assert!(is_answer(&answer, &exact.logits));
        }
        connection.close().await;
    };
    // One more that vanishes in the middle of its offline phase, again and again.
    let vanishing = async {
        let client = open(&states.path().join("vanishing"));
        for _ in 0..3 {
            let connecting = client.connect(&server.address, &server.trust()).await;
            let mut connection = connecting.unwrap();
            let (public, _) = connection.model().await.unwrap();
            let (setup, _) = connection.setup().await.unwrap();
            let exchange = connection.prepare(&public, &setup, 50, |_| {});
            let _ = tokio::time::timeout(Duration::from_millis(150), exchange).await;
        }
    };
    tokio::join!(one("a"), one("b"), one("c"), vanishing);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_too_many_is_told_so_and_the_others_go_on() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let server = Running::start(&model, &states.path().join("server"), 1);
    let first = open(&states.path().join("first"));
    let (mut connection, public) = prepared(&first, &server, 1).await;
    let second = open(&states.path().join("second"));
    let error = second.connect(&server.address, &server.trust()).await;
    let error = error.err().expect("one too many");
    assert!(matches!(error, Error::ServerFull(_)), "{error}");
    let (id, _) = connection.next_bundle().await.unwrap();
    let answer = connection.infer(&public, &id, &model.input(), false).await;
    answer.unwrap();
    connection.close().await;
    // Soon the slot is free again.
    let mut tries = 0;
    let connection = loop {
        match second.connect(&server.address, &server.trust()).await {
            Ok(connection) => break connection,
            Err(Error::ServerFull(_)) if tries < 100 => tries += 1,
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    connection.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_no_more_bundles_than_the_server_keeps() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let server = Running::start(&model, &states.path().join("server"), 8);
    let client = open(&states.path().join("client"));
    let (mut connection, public) = prepared(&client, &server, 2).await;
    let (setup, _) = connection.setup().await.unwrap();
    let prepared = connection.prepare(&public, &setup, 99, |_| {}).await;
    assert_eq!(refused(prepared.unwrap_err()), Refusal::TooManyBundles);
    assert_eq!(client.bundles(server.fingerprint).unwrap().len(), 2);
    // The connection goes on, with indices above those that were asked for in vain.
    let prepared = connection.prepare(&public, &setup, 1, |_| {}).await;
    prepared.unwrap();
    assert_eq!(client.bundles(server.fingerprint).unwrap().len(), 3);
    connection.close().await;
    server.stop().await;
}

/// A digest that no model served here has.
const OTHER_MODEL: ModelDigest = [0xee; 32];

/// Bundles that were made before all others, by the thousandth of a second.
fn put_bundles(store: &Store, server: Fingerprint, model: &ModelDigest, count: u8) {
    for n in 0..count {
        let id = BundleId([n; 32]);
        store.put_bundle(server, model, &id, b"old").unwrap();
    }
}

/// More bundles of an old model than a greeting asks about, and the server's model known or taken
/// for the old one.
#[tokio::test(flavor = "multi_thread")]
async fn bundles_of_an_old_model_do_not_hide_a_new_one() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let state = states.path().join("client");
    let server = Running::start(&model, &states.path().join("server"), 8);
    let store = Store::open(&state).unwrap();
    put_bundles(&store, server.fingerprint, &OTHER_MODEL, 65);
    drop(store);
    let client = open(&state);
    let (connection, public) = prepared(&client, &server, 2).await;
    connection.close().await;
    drop(client);
    for believed in [public.digest(), OTHER_MODEL] {
        let store = Store::open(&state).unwrap();
        let (_, mut record) = store.peers().unwrap().remove(0);
        record.model = believed;
        store.put_peer(server.fingerprint, &record).unwrap();
        drop(store);
        let client = open(&state);
        let connecting = client.connect(&server.address, &server.trust()).await;
        let mut connection = connecting.unwrap();
        let (id, useless) = connection.next_bundle().await.unwrap();
        assert_eq!(useless, 0);
        let answer = connection.infer(&public, &id, &model.input(), false).await;
        answer.unwrap();
        connection.close().await;
    }
    // The new ones are used up; the old ones are kept, in case their model returns.
    let client = open(&state);
    let connecting = client.connect(&server.address, &server.trust()).await;
    let mut connection = connecting.unwrap();
    match connection.next_bundle().await.unwrap_err() {
        Error::ModelChanged {
            stale, prepared, ..
        } => assert_eq!((stale, prepared), (65, OTHER_MODEL)),
        error => panic!("another error: {error}"),
    }
    connection.close().await;
    server.stop().await;
}

/// All bundles that the server lost are found, however many there are.
#[tokio::test(flavor = "multi_thread")]
async fn more_lost_bundles_than_a_greeting_asks_about_are_given_up() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let server = Running::start(&model, &states.path().join("server"), 8);
    for how in ["prepare", "infer"] {
        let state = states.path().join(how);
        let store = Store::open(&state).unwrap();
        put_bundles(&store, server.fingerprint, &server.model, 70);
        drop(store);
        let client = open(&state);
        match how {
            "prepare" => {
                let (connection, _) = prepared(&client, &server, 1).await;
                connection.close().await;
            }
            _ => {
                let connecting = client.connect(&server.address, &server.trust()).await;
                let mut connection = connecting.unwrap();
                let error = connection.next_bundle().await.unwrap_err();
                assert!(matches!(error, Error::NotHeld(70)), "{error}");
                connection.close().await;
            }
        }
        let bundles = client.bundles(server.fingerprint).unwrap();
        let spent = bundles.iter().filter(|b| b.state == BundleState::Spent);
        assert_eq!(spent.count(), 70, "{how}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_that_the_server_lost_are_given_up() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let state = states.path().join("client");
    let server_state = states.path().join("server");
    let server = Running::start(&model, &server_state, 8);
    let client = open(&state);
    let (connection, _) = prepared(&client, &server, 3).await;
    let bundles = client.bundles(server.fingerprint).unwrap();
    connection.close().await;
    server.stop().await;
    let store = Store::open(&server_state).unwrap();
    store.discard(client.fingerprint(), &bundles[0].id).unwrap();
    drop(store);

    let server = Running::start(&model, &server_state, 8);
    let connecting = client.connect(&server.address, &server.trust()).await;
    let mut connection = connecting.unwrap();
    let (public, _) = connection.model().await.unwrap();
    let (id, useless) = connection.next_bundle().await.unwrap();
    assert_eq!((id, useless), (bundles[1].id, 1));
    let answer = connection.infer(&public, &id, &model.input(), false).await;
    answer.unwrap();
    let states: Vec<BundleState> = client
        .bundles(server.fingerprint)
        .unwrap()
        .iter()
        .map(|entry| entry.state)
        .collect();
    use BundleState::{Ready, Spent};
    assert_eq!(states, [Spent, Spent, Ready]);
    connection.close().await;
    server.stop().await;
}

/// The limit holds offline and online, across a restart, and for a client that ignores what it is
/// told; a refusal costs the server's half of no bundle.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_no_more_answers_than_the_server_gives() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let server_state = states.path().join("server");
    let options = |max_answers| ServerOptions {
        limits: limits(Some(max_answers)),
        ..server_options(&model, &server_state)
    };
    let client = open(&states.path().join("client"));
    let server = Running::with(&options(3));
    let (mut connection, public) = prepared(&client, &server, 2).await;
    assert_eq!(connection.answers_left(), Some(3));
    let (setup, _) = connection.setup().await.unwrap();
    // Two bundles and two more are more than three answers.
    let more = connection.prepare(&public, &setup, 2, |_| {}).await;
    assert_eq!(refused(more.unwrap_err()), Refusal::AnswersUsed);
    connection.close().await;
    let (mut connection, public) = prepared(&client, &server, 1).await;
    let (id, _) = connection.next_bundle().await.unwrap();
    let input = model.input();
    let answer = connection.infer(&public, &id, &input, false).await;
    answer.unwrap();
    connection.close().await;
    assert_eq!(client.answers_left(server.fingerprint).unwrap(), Some(2));
    server.stop().await;

    // The count outlives the server, whose limit is now reached.
    let server = Running::with(&options(1));
    let connecting = client.connect(&server.address, &server.trust()).await;
    let mut connection = connecting.unwrap();
    assert_eq!(connection.answers_left(), Some(0));
    assert_eq!(client.answers_left(server.fingerprint).unwrap(), Some(0));
    let error = connection.next_bundle().await.unwrap_err();
    assert_eq!(refused(error), Refusal::AnswersUsed);
    let bundles = client.bundles(server.fingerprint).unwrap();
    let ready: Vec<_> = bundles
        .iter()
        .filter(|b| b.state == BundleState::Ready)
        .collect();
    assert_eq!(ready.len(), 2);
    let answer = connection.infer(&public, &ready[0].id, &input, false).await;
    assert_eq!(refused(answer.unwrap_err()), Refusal::AnswersUsed);
    connection.close().await;
    server.stop().await;
    let store = Store::open(&server_state).unwrap();
    let kept = store.ready(client.fingerprint(), &public.digest()).unwrap();
    assert_eq!(kept.len(), 2);
    drop(store);

    // A larger limit lets it go on.
    let server = Running::with(&options(2));
    let connecting = client.connect(&server.address, &server.trust()).await;
    let mut connection = connecting.unwrap();
    let (id, _) = connection.next_bundle().await.unwrap();
    let answer = connection.infer(&public, &id, &input, false).await;
    answer.unwrap();
    connection.close().await;
    server.stop().await;
}

/// Streams of one connection that ask at the same time share one limit.
#[tokio::test(flavor = "multi_thread")]
async fn streams_at_once_get_no_more_answers_than_one() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let (state, server_state) = (states.path().join("client"), states.path().join("server"));
    let client = open(&state);
    let server = Running::start(&model, &server_state, 8);
    // As many as a connection has streams at once, less the one of the greeting.
    let (connection, public) = prepared(&client, &server, 3).await;
    let bundles = client.bundles(server.fingerprint).unwrap();
    connection.close().await;
    server.stop().await;
    let digest = public.digest();
    drop(client);

    let server = Running::with(&ServerOptions {
        limits: limits(Some(1)),
        patience: Duration::from_secs(2),
        ..server_options(&model, &server_state)
    });
    let identity = Identity::load_or_create(&state, &["pi-client"]).unwrap();
    let address = server.address.parse().unwrap();
    let calling = client_endpoint(&identity, Trust::Pinned(server.fingerprint), address).unwrap();
    let connecting = calling.endpoint.connect(address, "localhost").unwrap();
    let quic = connecting.await.unwrap();
    let open = async || {
        let (outgoing, incoming) = quic.open_bi().await.unwrap();
        MessageStream::new(outgoing, incoming, Duration::from_secs(20))
    };
    let hello = Request::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        software: "liar".into(),
        nonce: [1; 32],
        model: None,
        prefer: Vec::new(),
        probes: Vec::new(),
    });
    let mut stream = open().await;
    stream.send_control(&hello).await.unwrap();
    let welcome: Welcome = stream.receive_control(1 << 14).await.unwrap();
    assert_eq!((welcome.model, welcome.answers_left), (digest, Some(1)));

    let mut asked = Vec::new();
    for bundle in &bundles {
        let mut stream = open().await;
        stream.send_control(&Request::Infer).await.unwrap();
        // A masked input like any other.
        let input = vec![0; 8 * model.artifact.circuit.input.len()];
        let request = [bundle.id.0.to_vec(), input].concat();
        stream.send_message(request).await.unwrap();
        // All listen at once: the server may begin with any, and then gives that one up.
        asked.push(tokio::spawn(async move {
            stream.receive_message(1 << 24).await
        }));
    }
    let mut answered = 0;
    for reply in asked {
        match reply.await.unwrap() {
            Ok(_) => answered += 1,
            Err(StreamError::Refused(refusal)) => assert_eq!(refusal, Refusal::AnswersUsed),
            Err(error) => panic!("another error: {error}"),
        }
    }
    assert_eq!(answered, 1);
    quic.close(0u32.into(), b"");
    server.stop().await;
}

/// The list says who is served, also while the server runs and in the middle of a connection.
#[tokio::test(flavor = "multi_thread")]
async fn only_clients_on_the_list_are_served() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let list = states.path().join("clients");
    let (first, second) = (
        open(&states.path().join("first")),
        open(&states.path().join("second")),
    );
    std::fs::write(&list, format!("# ours\n{}\n", first.fingerprint())).unwrap();
    let server = Running::with(&ServerOptions {
        clients: Some(ClientList::Plain(list.clone())),
        ..server_options(&model, &states.path().join("server"))
    });
    let (mut connection, public) = prepared(&first, &server, 1).await;
    let refusal = second.connect(&server.address, &server.trust()).await;
    assert_eq!(refused(refusal.err().unwrap()), Refusal::NotAllowed);

    // A list that breaks changes nothing.
    std::fs::write(&list, "neither").unwrap();
    let refusal = second.connect(&server.address, &server.trust()).await;
    assert_eq!(refused(refusal.err().unwrap()), Refusal::NotAllowed);
    let (id, _) = connection.next_bundle().await.unwrap();
    let answer = connection.infer(&public, &id, &model.input(), false).await;
    answer.unwrap();

    // One that changes is followed.
    std::fs::write(&list, format!("{}", second.fingerprint())).unwrap();
    let (other, _) = prepared(&second, &server, 1).await;
    other.close().await;
    let (setup, _) = connection.setup().await.unwrap();
    let more = connection.prepare(&public, &setup, 1, |_| {}).await;
    assert_eq!(refused(more.unwrap_err()), Refusal::NotAllowed);
    connection.close().await;
    server.stop().await;
}
