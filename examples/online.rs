//! What one online phase of a ResNet-18 costs, over QUIC on this machine: server and client are processes of their own.
//!
//!     cargo run --release --example online -- [--relus N|all] [--poly] [--bundles K]
//!
//! Weights are random. Prints the wall time of each inference, from the call on a warm connection to the logits, the processor
//! time and peak memory of both processes. The directory is kept in `PI_ONLINE_DIR` if that is set, and used again.

use pi_compiler::images::Images;
use pi_compiler::{Options, compile};
use pi_ir::builders::{Policy, Rest, resnet18};
use pi_ir::interpret::{Interpreter, quantise_image};
use pi_ir::{Artifact, Op, Shape, WeightsFile, artifact};
use pi_runtime::client::{Client, Patience, TrustOptions};
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::server::{Server, ServerOptions};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == "serve") {
        serve(Path::new(&arguments[1]));
    } else {
        measure(&arguments);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn serve(directory: &Path) {
    runtime().block_on(async {
        let server = Server::start(&ServerOptions {
            model: directory.to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            state: directory.join("server"),
            certificate: None,
            max_clients: 4,
            max_bundles: 64,
            patience: Duration::from_secs(60),
        })
        .unwrap();
        println!("{} {}", server.address().unwrap(), server.fingerprint());
        let (_keep, stop) = tokio::sync::watch::channel(false);
        server.run(stop).await;
    });
}

fn value<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|a| a == name)?;
    arguments.get(at + 1).map(String::as_str)
}

fn measure(arguments: &[String]) {
    let bundles: u32 = value(arguments, "--bundles").map_or(8, |n| n.parse().unwrap());
    let rest = match arguments.iter().any(|a| a == "--poly") {
        true => Rest::Polynomial,
        false => Rest::Identity,
    };
    let policy = match value(arguments, "--relus").unwrap_or("15000") {
        "all" => Policy::Relu,
        count => Policy::Budget {
            relus: count.parse().unwrap(),
            rest,
        },
    };
    let temporary = tempfile::tempdir().unwrap();
    let directory = std::env::var_os("PI_ONLINE_DIR");
    let directory = directory.map_or(temporary.path().to_owned(), Into::into);
    if !directory.join(artifact::ARTIFACT_NAME).exists() {
        write_model(&directory, policy);
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("serve")
        .arg(&directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    let (address, fingerprint) = line.trim().split_once(' ').unwrap();
    let fingerprint: Fingerprint = fingerprint.parse().unwrap();
    runtime().block_on(client(
        &directory,
        address,
        fingerprint,
        bundles,
        child.id(),
    ));
    child.kill().unwrap();
    child.wait().unwrap();
}

fn write_model(directory: &Path, policy: Policy) {
    std::fs::create_dir_all(directory).unwrap();
    let started = Instant::now();
    let mut graph = resnet18(32, 10, policy, 1);
    // Random weights are drawn for ReLUs; identities and polynomials would make the values grow from block to block.
    for node in &mut graph.nodes {
        if let Op::BatchNorm { gamma, .. } = &mut node.op {
            gamma.fill(0.5);
        }
    }
    let pictures = Images::synthetic(Shape::new(3, 32, 32), 8, 1);
    let options = Options {
        // Random weights prove nothing about ranges: only time counts here.
        failure_limit: 100.0,
        ..Options::default()
    };
    let compiled = compile(&graph, &pictures, &options).unwrap_or_else(|e| panic!("{e}"));
    let weights = WeightsFile {
        weights: compiled.weights,
        salt: [7; 32],
    };
    let artifact = Artifact {
        failure_log2: compiled.failure_log2,
        circuit: compiled.circuit,
        plan: compiled.plan,
        weights_digest: weights.digest(),
        accuracy: None,
        note: String::new(),
    };
    std::fs::write(directory.join(artifact::ARTIFACT_NAME), artifact.encode()).unwrap();
    std::fs::write(directory.join(artifact::WEIGHTS_NAME), weights.encode()).unwrap();
    println!("compiled in {:.1?}", started.elapsed());
}

async fn client(
    directory: &Path,
    address: &str,
    fingerprint: Fingerprint,
    bundles: u32,
    server: u32,
) {
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let artifact = Artifact::decode(&read(artifact::ARTIFACT_NAME)).unwrap();
    let weights = WeightsFile::decode(&read(artifact::WEIGHTS_NAME)).unwrap();
    let picture = Images::synthetic(artifact.circuit.input, 1, 2)
        .pixels
        .remove(0);
    let input = quantise_image(&artifact.circuit, &picture).unwrap();
    let patience = Patience {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(120),
    };
    let client = Client::open(&directory.join("client"), patience).unwrap();
    let trust = TrustOptions {
        fingerprint: Some(fingerprint),
        ..TrustOptions::default()
    };
    let mut connection = client.connect(address, &trust).await.unwrap();
    let (model, _) = connection.model().await.unwrap();
    let (setup, _) = connection.setup().await.unwrap();
    let ready = client.bundles(connection.server()).unwrap();
    let ready = ready
        .iter()
        .filter(|b| b.state == pi_runtime::store::BundleState::Ready);
    let missing = bundles.saturating_sub(ready.count() as u32);
    if missing > 0 {
        let spent = connection
            .prepare(&model, &setup, missing, |_| {})
            .await
            .unwrap();
        println!(
            "prepared {missing} bundles: {:.2?}, {:?}",
            spent.wall, spent.traffic
        );
    }
    let uses = std::env::args().skip_while(|a| a != "--uses").nth(1);
    let uses: u32 = uses.map_or(bundles, |n| n.parse().unwrap());
    let cold = std::env::args().any(|a| a == "--cold");
    let mut walls = Vec::new();
    for _ in 0..uses {
        let (id, _) = connection.next_bundle().unwrap();
        if !cold {
            connection.load(&model, &id).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = [ticks(std::process::id()), ticks(server)];
        let answer = connection.infer(&model, &id, &input, false).await.unwrap();
        let after = [ticks(std::process::id()), ticks(server)];
        let wall = answer.online.wall.as_secs_f64() * 1e3;
        let cpu = [after[0] - before[0], after[1] - before[1]];
        println!(
            "online {wall:.1} ms; cpu client {} ms, server {} ms",
            cpu[0] * 10,
            cpu[1] * 10
        );
        walls.push(wall);
        if walls.len() == 1 {
            println!("{:?}", answer.online.traffic);
        }
    }
    if bundles > 1 {
        let (id, _) = connection.next_bundle().map_or(([0; 32], 0), |b| b);
        let _ = id;
    }
    if walls.is_empty() {
        return;
    }
    walls.sort_by(f64::total_cmp);
    println!(
        "online median {:.1} ms, min {:.1} ms",
        walls[walls.len() / 2],
        walls[0]
    );
    println!(
        "peak memory: client {} MB, server {} MB",
        peak(std::process::id()),
        peak(server)
    );
    let interpreter = Interpreter::new(&artifact.circuit, &weights.weights).unwrap();
    let _ = interpreter;
    connection.close().await;
}

/// Processor time of a process, in hundredths of a second.
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Peak resident memory of a process in megabytes.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        / 1024
}
