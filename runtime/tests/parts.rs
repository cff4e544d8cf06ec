//! A network with so many ReLUs that a bundle is exchanged in parts, and read while it is used:
//! from the model to the private answer, and when a process dies or a disk fails between two parts.

mod common;

use common::{Model, bundles, client, count, kill, prepare, server_command};
use pi_ir::random;
use pi_protocol::session::{Answer, ClientBundle, ClientModel, READ_AT_ONCE};
use pi_runtime::client::{Client, Connection, Patience, TrustOptions};
use pi_runtime::command::child::ServerProcess;
use pi_runtime::error::Error;
use pi_runtime::fingerprint::hex;
use pi_runtime::store::BundleState::{Ready, Spent};
use pi_runtime::store::StoreError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One layer of ReLUs, 82 MB stored at the client: the pictures' negative less a little, so that
/// both signs occur.
fn wide() -> Model {
    let (circuit, weights) = random::wide(&[(-3, 400)]);
    Model::of(1, circuit, weights)
}

fn open(state: &Path) -> Client {
    let patience = Patience {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(120),
    };
    Client::open(state, patience).unwrap()
}

async fn connect<'a>(client: &'a Client, server: &ServerProcess) -> (Connection<'a>, ClientModel) {
    let trust = TrustOptions {
        fingerprint: Some(server.fingerprint),
        ..TrustOptions::default()
    };
    let connecting = client.connect(&server.address, &trust).await;
    let mut connection = connecting.unwrap();
    let (model, _) = connection.model().await.unwrap();
    (connection, model)
}

async fn prepare_one(connection: &mut Connection<'_>, model: &ClientModel) {
    let (setup, _) = connection.setup().await.unwrap();
    let spent = connection.prepare(model, &setup, 1, |_| {}).await.unwrap();
    let cost = model.cost().unwrap();
    assert_eq!(cost.parts, 4);
    // A greeting or a confirmation is no part of the exchange that is counted.
    assert!(spent.traffic.bytes_received >= cost.offline.bytes_down);
    assert!(ClientBundle::encoded_len(model) as u64 > READ_AT_ONCE);
}

/// The contents of bundles at a party, all of them kept.
fn contents(state: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(state.join("bundles")).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_in_parts_are_prepared_kept_and_spent() {
    let (model, states) = (wide(), tempfile::tempdir().unwrap());
    let [at_server, at_client] = ["server", "client"].map(|party| states.path().join(party));
    let server = ServerProcess::start(server_command(model.path(), &at_server)).unwrap();
    let client = open(&at_client);
    let (mut connection, public) = connect(&client, &server).await;
    prepare_one(&mut connection, &public).await;
    let stored = contents(&at_client);
    let length = std::fs::metadata(&stored[0]).unwrap().len();
    assert_eq!(length, ClientBundle::encoded_len(&public) as u64);

    let (id, _) = connection.next_bundle().await.unwrap();
    let input = model.input();
    let answer = connection.infer(&public, &id, &input, true).await.unwrap();
    let trace = answer.trace.as_ref().unwrap();
    let exact = model.interpreter().exact(&input, trace).unwrap();
    assert_eq!(answer.answer, Answer::Logits(exact.logits.clone()));
    assert!(exact.logits.iter().any(|&logit| logit > 0));
    assert!(exact.logits.contains(&0));

    // Read ahead, it is the same.
    prepare_one(&mut connection, &public).await;
    let (id, _) = connection.next_bundle().await.unwrap();
    connection.load(&public, &id).await.unwrap();
    let answer = connection.infer(&public, &id, &input, true).await.unwrap();
    let trace = answer.trace.as_ref().unwrap();
    let exact = model.interpreter().exact(&input, trace).unwrap();
    assert_eq!(answer.answer, Answer::Logits(exact.logits));

    // A piece that is damaged is found when it is read, ahead or while the answer is made, and then
    // the bundle is spent.
    prepare_one(&mut connection, &public).await;
    let (id, _) = connection.next_bundle().await.unwrap();
    let mut contents_now = contents(&at_client).into_iter();
    let of_bundle = |path: &PathBuf| path.to_str().unwrap().ends_with(&hex(&id.0));
    let path = contents_now.find(of_bundle).unwrap();
    let mut content = std::fs::read(&path).unwrap();
    let last = content.len() - 100;
    content[last] ^= 1;
    std::fs::write(&path, content).unwrap();
    let error = connection.load(&public, &id).await.unwrap_err();
    assert!(matches!(error, Error::Store(StoreError::Damaged { .. })));
    let error = connection
        .infer(&public, &id, &input, false)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Store(StoreError::Damaged { .. })),
        "{error}"
    );
    connection.close().await;
    drop(client);
    kill(server);
    for state in [&at_client, &at_server] {
        let bundles = bundles(state);
        assert_eq!((count(&bundles, Ready), count(&bundles, Spent)), (0, 3));
        assert!(contents(state).is_empty());
    }
}

/// Thirteen writes before the first piece (header, input, two layers), then four for each: this one
/// is in the second part.
const SECOND_PART: &str = "bundle-write:19";

#[test]
fn a_client_that_dies_between_two_parts_leaves_nothing() {
    let (model, states) = (wide(), tempfile::tempdir().unwrap());
    let [at_server, at_client] = ["server", "client"].map(|party| states.path().join(party));
    let mut command = server_command(model.path(), &at_server);
    command.program.args(["--timeout", "5"]);
    let server = ServerProcess::start(command).unwrap();
    let mut dying = prepare(&at_client, &server, 1);
    let dying = dying.env("PI_FAULT", SECOND_PART).output().unwrap();
    assert!(!dying.status.success());
    // Shares and the first part are on the disk, under no name that means anything.
    let left = contents(&at_client);
    assert_eq!(left.len(), 1);
    assert!(left[0].to_str().unwrap().ends_with(".new"), "{left:?}");
    assert!(std::fs::metadata(&left[0]).unwrap().len() > 20_000_000);
    assert!(bundles(&at_client).is_empty());
    assert!(contents(&at_client).is_empty(), "erased on opening");

    assert!(
        prepare(&at_client, &server, 1)
            .output()
            .unwrap()
            .status
            .success()
    );
    let mut answer = client(&at_client);
    let answer = answer.arg("infer").arg(&model.file).output().unwrap();
    assert!(answer.status.success(), "{answer:?}");
    kill(server);
    for state in [&at_client, &at_server] {
        let bundles = bundles(state);
        assert_eq!((count(&bundles, Ready), count(&bundles, Spent)), (0, 1));
        assert!(contents(state).is_empty());
    }
}
