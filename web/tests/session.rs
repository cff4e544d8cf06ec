//! The client of the page against the server's half, both natively: the same answer as the exact
//! interpreter, bit for bit, and bundles that are used once.

#[path = "../examples/half/serve.rs"]
mod serve;

use pi_ir::artifact::{ARTIFACT_NAME, WEIGHTS_NAME};
use pi_ir::{Artifact, WeightsFile};
use pi_protocol::session::Answer;
use pi_web::client::{Client, State, Wishes};
use pi_web::failure::{Failure, Kind};
use pi_web::line::Line;
use pi_web::shares;
use serde_json::Value;
use serve::Half;
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Waker};

fn read(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/cifar10-small");
    std::fs::read(folder.join(name)).expect("the bundled model")
}

fn model() -> (Artifact, WeightsFile) {
    let artifact = Artifact::decode(&read(ARTIFACT_NAME)).unwrap();
    let weights = WeightsFile::decode(&read(WEIGHTS_NAME)).unwrap();
    (artifact, weights)
}

fn half() -> Half {
    let (artifact, weights) = model();
    Half::new(artifact, weights)
}

/// Runs the client's operation against the server; events are collected and answered by nothing.
fn run(client: &mut Client, server: &mut Half) -> Result<(Vec<u8>, Vec<Vec<u8>>), Failure> {
    let near = client.line().expect("an operation").clone();
    let far = Line::default();
    let mut end = far.clone();
    let mut serving = pin!(server.serve(&mut end));
    let mut served = false;
    let mut events = Vec::new();
    loop {
        let state = client.poll();
        far.put(&near.take_outgoing());
        match state? {
            State::Done(result) => return Ok((result, events)),
            State::Event(event) => {
                events.push(event);
                near.reply(Vec::new());
            }
            State::Computing => {}
            State::NeedsBytes if served => near.end(),
            State::NeedsBytes => {
                let polled = serving
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()));
                served = polled.is_ready();
                near.put(&far.take_outgoing());
            }
        }
    }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().as_chunks::<2>().0.iter();
    let pairs = pairs.map(|pair| std::str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// A client that is greeted, and has model and keys.
fn greeted(server: &mut Half) -> Client {
    let mut client = Client::default();
    client.hello(&Wishes::default()).unwrap();
    let welcome = json(&run(&mut client, server).unwrap().0);
    client.fetch_artifact();
    let (artifact, _) = run(&mut client, server).unwrap();
    let about = client.use_artifact(welcome["model"].as_str().unwrap(), &artifact);
    let about = json(about.unwrap().as_bytes());
    assert_eq!(about["classes"].as_array().unwrap().len(), 10);
    client.exchange_keys().unwrap();
    run(&mut client, server).unwrap();
    client
}

/// A picture that no network has seen, as a BMP file, and its pixels `[c][h][w]`.
fn picture() -> (Vec<u8>, Vec<u8>) {
    let size = 32usize;
    let mut file = b"BM".to_vec();
    for number in [54 + 3072u32, 0, 54, 40, 32, 32] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    file.extend_from_slice(&[1, 0, 24, 0]);
    file.extend_from_slice(&[0; 24]);
    let pixel = |c: usize, y: usize, x: usize| (x * (7 - c) + y * (c + 1) + x * y / 16) as u8;
    for y in (0..size).rev() {
        for x in 0..size {
            file.extend([2, 1, 0].map(|c| pixel(c, y, x)));
        }
    }
    let all = (0..3).flat_map(|c| (0..size).map(move |y| (c, y)));
    let pixels = all.flat_map(|(c, y)| (0..size).map(move |x| pixel(c, y, x)));
    (file, pixels.collect())
}

#[test]
fn a_private_answer_is_the_exact_interpreters() {
    let (artifact, weights) = model();
    let mut server = half();
    let mut client = greeted(&mut server);
    let (file, pixels) = picture();
    let shown = client.read_picture("a.bmp", file).unwrap();
    assert_eq!(shown[0], pixels[0]);
    assert_eq!(shown[1], pixels[1024]);
    assert_eq!(shown.len(), 4096, "nothing was done to the picture");

    client.prepare(4, &[]).unwrap();
    let (_, bundles) = run(&mut client, &mut server).unwrap();
    assert_eq!(bundles.len(), 4);
    let mut sent = Vec::new();
    for bundle in &bundles {
        let (id, content) = bundle.split_at(32);
        client
            .load_bundle(&pi_wire::fingerprint::hex(id), content)
            .unwrap();
        client.infer(true).unwrap();
        let answer = json(&run(&mut client, &mut server).unwrap().0);
        let trace = shares::decode(&bytes(answer["trace"].as_str().unwrap())).unwrap();
        let label = answer["label"].as_u64().map(|label| label as usize);
        let exact = serve::exact(&artifact, &weights, &pixels, &trace);
        assert_eq!(label.map_or(Answer::OutOfRange, Answer::Label), exact);
        sent.push(answer["sent"].as_str().unwrap().to_owned());
    }
    sent.sort();
    sent.dedup();
    assert_eq!(sent.len(), 4, "the same picture is masked anew each time");
}

#[test]
fn a_bundle_that_was_used_is_no_longer_there() {
    let mut server = half();
    let mut client = greeted(&mut server);
    client.read_picture("a.bmp", picture().0).unwrap();
    client.prepare(1, &[]).unwrap();
    let (_, bundles) = run(&mut client, &mut server).unwrap();
    let (id, content) = bundles[0].split_at(32);
    let id = pi_wire::fingerprint::hex(id);
    client.load_bundle(&id, content).unwrap();
    client.infer(false).unwrap();
    assert!(matches!(
        client.infer(false),
        Err(Failure {
            kind: Kind::Internal,
            ..
        })
    ));
    run(&mut client, &mut server).unwrap();
    let wishes = Wishes {
        probes: vec![id],
        ..Wishes::default()
    };
    client.hello(&wishes).unwrap();
    let welcome = json(&run(&mut client, &mut server).unwrap().0);
    assert_eq!(welcome["held"], serde_json::json!([false]));
}

#[test]
fn another_model_than_the_one_announced_is_not_used() {
    let artifact = read(ARTIFACT_NAME);
    let mut client = Client::default();
    let refused = client.use_artifact(&"0".repeat(64), &artifact);
    assert_eq!(refused.unwrap_err().kind, Kind::Model);
    let refused = client.use_artifact(&"0".repeat(64), &artifact[..100]);
    assert_eq!(refused.unwrap_err().kind, Kind::Model);
}

#[test]
fn a_damaged_bundle_is_not_loaded() {
    let mut server = half();
    let mut client = greeted(&mut server);
    client.prepare(1, &[]).unwrap();
    let (_, mut bundles) = run(&mut client, &mut server).unwrap();
    let (id, content) = bundles[0].split_at_mut(32);
    let id = pi_wire::fingerprint::hex(id);
    content[1000] ^= 1;
    assert_eq!(
        client.load_bundle(&id, content).unwrap_err().kind,
        Kind::Stored
    );
    content[1000] ^= 1;
    let other = "0".repeat(64);
    assert_eq!(
        client.load_bundle(&other, content).unwrap_err().kind,
        Kind::Stored
    );
    client.load_bundle(&id, content).unwrap();
}

#[test]
fn a_server_that_falls_silent_or_lies_ends_the_operation() {
    let mut server = half();
    let mut client = greeted(&mut server);
    client.exchange_keys().unwrap();
    let line = client.line().unwrap().clone();
    while !matches!(client.poll().unwrap(), State::NeedsBytes) {}
    line.put(&[1, 2, 3]);
    line.end();
    assert_eq!(client.poll().err().unwrap().kind, Kind::Lost);

    client.exchange_keys().unwrap();
    let line = client.line().unwrap().clone();
    while !matches!(client.poll().unwrap(), State::NeedsBytes) {}
    line.put(&u32::MAX.to_le_bytes());
    assert_eq!(client.poll().err().unwrap().kind, Kind::Misbehaved);
}

#[test]
fn a_file_that_is_no_picture_is_refused_by_its_name() {
    let mut server = half();
    let mut client = greeted(&mut server);
    let refused = client
        .read_picture("letter.txt", b"Dear all,".to_vec())
        .unwrap_err();
    assert_eq!(refused.kind, Kind::Input);
    assert!(refused.what.contains("letter.txt"), "{}", refused.what);
}
