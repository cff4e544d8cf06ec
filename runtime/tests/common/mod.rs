//! Model directories of small random circuits, and server processes around them.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test file compiles this module and uses a part of it"
)]

use assert_cmd::Command;
use image::{DynamicImage, GrayImage, RgbImage};
use pi_ir::interpret::{Interpreter, label, quantise};
use pi_ir::{
    Artifact, Circuit, Input, Kind, Reveal, Step, Verified, Weights, WeightsFile, artifact, random,
};
use pi_protocol::flooding::flooding;
use pi_protocol::layout::default_plan;
use pi_runtime::command::child::{ServerCommand, ServerProcess};
use pi_runtime::server::{Limits, Most, ServerOptions};
use pi_runtime::store::{BundleState, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bundles of the models' one batch.
pub const BATCH: u32 = 3;

/// A small model that was compiled for the test, with an input of its size, and that as a file.
pub struct Model {
    pub directory: tempfile::TempDir,
    pub artifact: Artifact,
    pub weights: WeightsFile,
    pub example: Input,
    pub file: PathBuf,
}

impl Model {
    /// The first random circuit from this seed on that reads images and has a ReLU.
    pub fn random(seed: u64) -> Model {
        Model::random_with(seed, |_| true)
    }

    /// The first of those that reveals this.
    pub fn revealing(seed: u64, reveal: Reveal) -> Model {
        Model::random_with(seed, |circuit| circuit.output().1 == reveal)
    }

    /// The first of those whose client computes a public prefix.
    pub fn with_public_prefix(seed: u64) -> Model {
        Model::random_with(seed, |circuit| circuit.prefix.is_some())
    }

    /// The first random circuit from this seed on that reads real values and has a ReLU.
    pub fn of_values(seed: u64) -> Model {
        Model::first(seed, |circuit| circuit.preprocessing.is_values())
    }

    fn random_with(seed: u64, wanted: impl Fn(&Circuit) -> bool) -> Model {
        Model::first(seed, |circuit| {
            let pictures = !circuit.preprocessing.is_values();
            pictures && matches!(circuit.image().c, 1 | 3) && wanted(circuit)
        })
    }

    fn first(seed: u64, wanted: impl Fn(&Circuit) -> bool) -> Model {
        let options = random::Options {
            layers: 3,
            side: 8,
            channels: 3,
            kernel: 3,
            elements: 192,
            ..random::Options::default()
        };
        let (seed, (circuit, weights)) = (seed..)
            .map(|seed| (seed, random::circuit(seed, &options)))
            .find(|(_, (circuit, _))| {
                let relu = circuit.layers.iter().any(|layer| match &layer.step {
                    Step::Activate(activation) => activation.kinds.contains(&Kind::Relu),
                    Step::Output { .. } => false,
                });
                relu && wanted(circuit)
            })
            .expect("some circuit is like that");
        println!("random circuit of seed {seed}");
        Model::of(seed, circuit, weights)
    }

    /// A circuit with its weights, an input drawn by this seed, and the one plan for batches.
    pub fn of(seed: u64, circuit: Verified<Circuit>, weights: Weights) -> Model {
        let plan = default_plan(&circuit, 1).unwrap();
        let batch = default_plan(&circuit, BATCH).unwrap();
        let weights = random::weights_file(seed, weights);
        let example = random::input(&circuit, seed);
        let distance = flooding(&circuit, [&plan, &batch]).unwrap().total;
        let mut artifact = Artifact::new(circuit, plan, weights.digest(), distance);
        artifact.batches.push(batch);
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let file = match &example {
            Input::Bytes(pixels) => {
                let image = image_of(&artifact, pixels);
                image.save(at("image.png")).unwrap();
                at("image.png")
            }
            Input::Values(values) => {
                let row: Vec<String> = values.iter().map(f64::to_string).collect();
                std::fs::write(at("row.csv"), row.join(",") + "\n").unwrap();
                at("row.csv")
            }
        };
        let model = Model {
            artifact,
            weights,
            example,
            file,
            directory,
        };
        model.write();
        model
    }

    /// Writes the two files of the model.
    pub fn write(&self) {
        let at = |name: &str| self.path().join(name);
        std::fs::write(at(artifact::ARTIFACT_NAME), self.artifact.encode()).unwrap();
        std::fs::write(at(artifact::WEIGHTS_NAME), self.weights.encode()).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn input(&self) -> Vec<i64> {
        quantise(&self.artifact.circuit, &self.example).unwrap()
    }

    pub fn interpreter(&self) -> Interpreter<'_> {
        Interpreter::new(&self.artifact.circuit, &self.weights.weights).unwrap()
    }
}

fn image_of(artifact: &Artifact, pixels: &[u8]) -> DynamicImage {
    let shape = artifact.circuit.image();
    let plane = (shape.h * shape.w) as usize;
    match shape.c {
        1 => GrayImage::from_raw(shape.w, shape.h, pixels.to_vec())
            .unwrap()
            .into(),
        _ => {
            let interleaved = (0..plane)
                .flat_map(|i| [pixels[i], pixels[plane + i], pixels[2 * plane + i]])
                .collect();
            RgbImage::from_raw(shape.w, shape.h, interleaved)
                .unwrap()
                .into()
        }
    }
}

/// Whether no carry of a private run changes the label of the model's example, as far as is seen in
/// so many runs that one more will hardly be another.
pub fn has_one_label(model: &Model) -> bool {
    let (interpreter, input) = (model.interpreter(), model.input());
    let expected = label(&interpreter.plain(&input).unwrap().logits);
    (0..3000).all(|seed| {
        let trace = random::trace(&model.artifact.circuit, seed);
        label(&interpreter.exact(&input, &trace).unwrap().logits) == expected
    })
}

/// A `pi-server` process on a free port, to be started.
pub fn server_command<'a>(model: &'a Path, state: &'a Path) -> ServerCommand<'a> {
    ServerCommand {
        program: std::process::Command::new(env!("CARGO_BIN_EXE_pi-server")),
        model,
        listen: "127.0.0.1:0",
        state,
        log: None,
        patience: Duration::from_secs(120),
    }
}

pub fn start_server(model: &Path, state: &Path) -> ServerProcess {
    ServerProcess::start(server_command(model, state)).unwrap()
}

/// Does the same as [`start_server`], at a given address.
pub fn start_server_at(model: &Path, state: &Path, listen: &str) -> ServerProcess {
    let mut command = server_command(model, state);
    command.listen = listen;
    ServerProcess::start(command).unwrap()
}

/// Kills a server, as `kill -9` would.
pub fn kill(mut server: ServerProcess) {
    server.process.child.kill().unwrap();
    server.process.child.wait().unwrap();
}

/// Options of a server in this process.
pub fn server_options(model: &Model, state: &Path) -> ServerOptions {
    ServerOptions {
        max_clients: 8,
        limits: limits(None),
        memory: 4 << 30,
        patience: Duration::from_secs(20),
        ..ServerOptions::new(model.path(), state)
    }
}

/// A hundred bundles, and as many answers.
pub fn limits(answers: Option<u64>) -> Limits {
    Limits {
        bundles: Some(Most::At(100)),
        answers: Some(answers.map_or(Most::Unlimited, Most::At)),
        ..Limits::default()
    }
}

/// `pi-client` with a state directory.
pub fn client(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pi-client"));
    command.arg("--state").arg(state);
    command.timeout(Duration::from_secs(120));
    command
}

/// `pi-client prepare`.
pub fn prepare(state: &Path, server: &ServerProcess, count: u32) -> Command {
    let mut command = client(state);
    command
        .args(["prepare", "--server", &server.address, "--fingerprint"])
        .args([
            server.fingerprint.to_string(),
            "-n".into(),
            count.to_string(),
        ]);
    command
}

/// Standard error of a command that fails.
pub fn complaint(command: &mut Command) -> String {
    let output = command.assert().failure().get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

/// The bundles of a closed store, by id.
pub fn bundles(state: &Path) -> BTreeMap<[u8; 32], BundleState> {
    let store = Store::open(state).unwrap();
    let all = store.bundles().unwrap();
    all.iter().map(|entry| (entry.id.0, entry.state)).collect()
}

pub fn count(bundles: &BTreeMap<[u8; 32], BundleState>, state: BundleState) -> usize {
    bundles.values().filter(|&&s| s == state).count()
}
