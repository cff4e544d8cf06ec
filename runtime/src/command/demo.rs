//! `pi-demo`: the whole path on one machine, checked against both interpreters.
//!
//! The server is a separate process: this program, executed again into the entry point of
//! `pi-server`. The client runs here. After the measured part, this process also reads the weights,
//! which a real client never has, to compute the answer in the clear and compare.

use super::child::{AS_SERVER, ServerCommand, ServerProcess};
use super::client::{OUT_OF_RANGE_ADVICE, line, messages, spinner};
use super::{megabytes, report, runtime};
use crate::client::{Client, Patience, Prediction, Spent, TrustOptions, class_name};
use crate::error::Error;
use crate::fingerprint::{Fingerprint, short};
use crate::input_file::InputFile;
use crate::model_files::{read_artifact, read_weights};
use crate::observe::logs::{self, LogFormat};
use crate::{draw, usage};
use anyhow::{Context, bail};
use clap::Parser;
use image::DynamicImage;
use pi_ir::interpret::{Interpreter, Run, quantise};
use pi_ir::{Circuit, Kind, Reveal, Step, artifact};
use pi_protocol::session::Answer;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Classifies an image privately, with server and client on this machine, and compares the answer
/// with the computation in the clear.
#[derive(Parser)]
#[command(name = "pi-demo", version)]
struct Arguments {
    /// Directory with model.pia and model.piw [default: the bundled model].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Serve the label alone, as a model does unless it was compiled with --reveal logits. Without
    /// this option the demo has the logits revealed, because it compares them, to the last bit,
    /// with what the network computes in the clear.
    #[arg(long)]
    label: bool,
    /// An image [default: a ship that the demo draws]; or, as the model reads it,
    /// a .npy file of an array, or a .csv file with one row.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// File for the figures, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// File for the drawing [default: pi-demo.png beside this program].
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    drawing: Option<PathBuf>,
}

/// Runs `pi-demo` with this process's arguments.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    if arguments.next().is_some_and(|first| first == AS_SERVER) {
        return super::server::serve_child(program.into_iter().chain(arguments));
    }
    let _logs = logs::start("warn", LogFormat::Text, None);
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: the private answer is not the exact interpreter's");
            ExitCode::FAILURE
        }
        Err(error) => report(&error),
    }
}

/// Returns whether private and exact answers are equal.
fn run(arguments: Arguments) -> anyhow::Result<bool> {
    pi_core::Backend::chosen()?;
    let model = match arguments.model {
        Some(directory) => directory,
        None => bundled_model()?,
    };
    let reveal = match arguments.label {
        true => Reveal::Label,
        false => Reveal::Logits,
    };
    let variant = tempfile::tempdir().context("cannot make a temporary directory")?;
    let (model, circuit) = (
        variant.path(),
        compiled_to_reveal(&model, reveal, variant.path())?,
    );
    let (source, file) = match &arguments.image {
        Some(path) => {
            let file = InputFile::open(path, None).map_err(Error::from)?;
            (format!("{}", path.display()), file)
        }
        None => {
            let (source, drawing) = draw_image(arguments.drawing)?;
            (source, InputFile::image("the drawing", drawing))
        }
    };
    let prepared = file.for_model(&circuit, None).map_err(Error::from)?;
    let input = quantise(&circuit, &prepared.input).map_err(Error::from)?;

    println!("Private inference between two processes, over QUIC on loopback.");
    println!(
        "Threat model: both parties follow the protocol and try to learn what they can \
         (semi-honest). The server\n\
         learns nothing of the image; the client learns the {} and the public circuit, \
         but not the weights.",
        learned(reveal)
    );
    println!();
    println!("image      {source}");
    for notice in &prepared.notices {
        println!("           note: {notice}");
    }
    println!("model      {}: {}", circuit.name, activations(&circuit));
    if let Some(prefix) = &circuit.prefix {
        println!(
            "           before them, {} public layers that the client computes in the clear",
            prefix.layers.len()
        );
    }

    let run = runtime()?.block_on(play(model, &input))?;
    let (plain, exact) = in_the_clear(model, &input, &run.answer)?;

    print_answer(&circuit, &run.answer, &plain, &exact);
    print_costs(&run);
    print_views(&run, reveal);
    let is_exact = is_exact(&run.answer.answer, &exact, reveal);
    if let Some(path) = arguments.json {
        let figures = figures(&circuit, &run, &plain, &exact);
        std::fs::write(&path, format!("{figures:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(is_exact)
}

/// Cost of one phase, of both parties together.
#[derive(Clone, Copy)]
struct Phase {
    spent: Spent,
    client_cpu: f64,
    server_cpu: f64,
}

/// Record of the run between the two processes.
struct Played {
    client: Fingerprint,
    server: Fingerprint,
    model: Phase,
    keys: Phase,
    offline: Phase,
    online: Phase,
    answer: Prediction,
}

async fn play(model: &Path, input: &[i64]) -> anyhow::Result<Played> {
    let states = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut server = start_server(model, states.path())?;
    let patience = Patience {
        connect: Duration::from_secs(20),
        silence: Duration::from_secs(300),
    };
    let client = Client::open(&states.path().join("client"), patience)?;
    let trust = TrustOptions {
        fingerprint: Some(server.fingerprint),
        ..TrustOptions::default()
    };
    let mut connection = client.connect(&server.address.clone(), &trust).await?;

    let waiting = spinner("fetching the model and exchanging keys");
    let mut clock = Clock::start(&mut server)?;
    let (public, fetched) = connection.model().await?;
    let model = clock.phase(&mut server, fetched.unwrap_or_default())?;
    let (setup, exchanged) = connection.setup().await?;
    let keys = clock.phase(&mut server, exchanged.unwrap_or_default())?;
    waiting.set_message("preparing a bundle (offline)");
    let spent = connection.prepare(&public, &setup, 1, |_| {}).await?;
    let offline = clock.phase(&mut server, spent)?;
    waiting.set_message("classifying (online)");
    let (id, _) = connection.next_bundle().await?;
    let answer = connection.infer(&public, &id, input, true).await?;
    let online = clock.phase(&mut server, answer.online)?;
    waiting.finish_and_clear();

    let played = Played {
        client: client.fingerprint(),
        server: connection.server(),
        model,
        keys,
        offline,
        online,
        answer,
    };
    connection.close().await;
    server.stop()?;
    Ok(played)
}

/// User CPU time of both processes, phase by phase.
struct Clock {
    client: f64,
    server: f64,
}

impl Clock {
    fn start(server: &mut ServerProcess) -> anyhow::Result<Clock> {
        Ok(Clock {
            client: usage::user_seconds(),
            server: server.user_seconds()?,
        })
    }

    fn phase(&mut self, server: &mut ServerProcess, spent: Spent) -> anyhow::Result<Phase> {
        let before = std::mem::replace(self, Clock::start(server)?);
        Ok(Phase {
            spent,
            client_cpu: self.client - before.client,
            server_cpu: self.server - before.server,
        })
    }
}

/// Longest wait for a line of the server process: loading a large model takes seconds.
const SERVER_PATIENCE: Duration = Duration::from_secs(120);

/// Starts this program again as a server.
fn start_server(model: &Path, states: &Path) -> anyhow::Result<ServerProcess> {
    let mut program = Command::new(std::env::current_exe()?);
    program.arg(AS_SERVER);
    ServerProcess::start(ServerCommand {
        program,
        model,
        listen: "127.0.0.1:0",
        state: &states.join("server"),
        log: Some(states.join("server.log")),
        patience: SERVER_PATIENCE,
    })
}

/// The logits if nothing wraps, and the run of the exact interpreter, given the client's shares.
fn in_the_clear(
    model: &Path,
    input: &[i64],
    answer: &Prediction,
) -> anyhow::Result<(Vec<i64>, Run)> {
    let (artifact, _) = read_artifact(model)?;
    let weights = read_weights(model)?;
    let interpreter = Interpreter::new(&artifact.circuit, &weights.weights)?;
    let trace = answer.trace.as_ref().context("the run left no trace")?;
    let plain = interpreter.unlimited(input)?.logits;
    let exact = interpreter.exact(input, trace)?;
    Ok((plain, exact))
}

/// Whether the private answer is the exact interpreter's, bit for bit.
fn is_exact(private: &Answer, exact: &Run, reveal: Reveal) -> bool {
    *private == Answer::of_run(exact, reveal)
}

/// What the client learns, in words.
fn learned(reveal: Reveal) -> &'static str {
    match reveal {
        Reveal::Label => "label alone",
        Reveal::Logits => "logits",
    }
}

/// Writes the two files of a model that reveals this into another directory, and returns its
/// circuit.
fn compiled_to_reveal(model: &Path, reveal: Reveal, to: &Path) -> anyhow::Result<Circuit> {
    let artifact = read_artifact(model)?.0.with_reveal(reveal)?;
    let weights = read_weights(model)?;
    std::fs::write(to.join(artifact::ARTIFACT_NAME), artifact.encode())?;
    std::fs::write(to.join(artifact::WEIGHTS_NAME), weights.encode())?;
    Ok(artifact.circuit.into_inner())
}

fn bundled_model() -> anyhow::Result<PathBuf> {
    let beside_the_source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/cifar10-small");
    let here = PathBuf::from("models/cifar10-small");
    let mut places = [beside_the_source, here].into_iter();
    places
        .find(|place| place.join(artifact::ARTIFACT_NAME).exists())
        .context("the bundled model models/cifar10-small is not here; give --model DIR")
}

fn draw_image(path: Option<PathBuf>) -> anyhow::Result<(String, DynamicImage)> {
    let drawing = draw::freighter(256);
    let asked = path.is_some();
    let path = match path {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("pi-demo.png"),
    };
    let source = match drawing.save(&path) {
        Ok(()) => format!("a ship, drawn into {}", path.display()),
        Err(error) if asked => bail!("cannot write {}: {error}", path.display()),
        // An installed program may stand where its user cannot write; the drawing is a nicety.
        Err(_) => "a ship, drawn".into(),
    };
    Ok((source, drawing.into()))
}

/// Counts of a circuit's layers and of its elements of each kind, as text.
fn activations(circuit: &Circuit) -> String {
    let mut counts = [0usize; 4];
    for layer in &circuit.layers {
        if let Step::Activate(activation) = &layer.step {
            for kind in &activation.kinds {
                counts[*kind as usize] += 1;
            }
        }
    }
    let kinds = [
        (Kind::Relu, "ReLU"),
        (Kind::Identity, "identity"),
        (Kind::Square, "square"),
        (Kind::Polynomial, "polynomial"),
    ];
    let parts: Vec<String> = kinds
        .iter()
        .filter(|(kind, _)| counts[*kind as usize] > 0)
        .map(|(kind, name)| format!("{} {name}", counts[*kind as usize]))
        .collect();
    format!("{} layers, {}", circuit.layers.len(), parts.join(", "))
}

fn print_answer(circuit: &Circuit, answer: &Prediction, plain: &[i64], run: &Run) {
    let unit = f64::from(answer.output_frac_bits).exp2();
    let (exact, reveal) = (&run.logits, circuit.output().1);
    println!();
    let Some(class) = answer.class() else {
        print!("answer     {OUT_OF_RANGE_ADVICE}");
        let verdict = match is_exact(&answer.answer, run, reveal) {
            true => "it is out of range there too",
            false => "it is NOT out of range there",
        };
        println!("check      the exact interpreter on the client's shares: {verdict}");
        return;
    };
    println!("answer     {}", class_name(circuit, class));
    let Some(logits) = answer.answer.logits() else {
        let verdict = match is_exact(&answer.answer, run, reveal) {
            true => "it is theirs",
            false => "it is NOT theirs",
        };
        println!(
            "check      the label of the exact interpreter's logits, which the client did not \
             get: {verdict}"
        );
        return;
    };
    println!("           class           private      exact      plain");
    for (class, logit) in logits.iter().enumerate() {
        println!(
            "           {:14} {:8.4}   {:8.4}   {:8.4}",
            class_name(circuit, class),
            *logit as f64 / unit,
            exact[class] as f64 / unit,
            plain[class] as f64 / unit
        );
    }
    let verdict = match exact[..] == *logits {
        true => "equal bit for bit",
        false => "DIFFERENT",
    };
    println!(
        "           exact: the interpreter with the client's shares; \
         plain: the interpreter, rounding to nearest"
    );
    println!("check      private and exact are {verdict}");
    println!(
        "           private and plain are at most {} units of 2^{} apart",
        largest_difference(logits, plain),
        -i32::from(answer.output_frac_bits)
    );
    println!(
        "           the logits are revealed for this comparison alone; --label reveals the label"
    );
}

fn largest_difference(a: &[i64], b: &[i64]) -> u64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

fn print_costs(run: &Played) {
    println!();
    for (name, phase, note) in [
        ("model", run.model, "once per model: the public circuit"),
        ("keys", run.keys, "once per client and server"),
        ("offline", run.offline, "once per image, before it exists"),
        ("online", run.online, "from image to answer"),
    ] {
        println!(
            "{name:10} {}; CPU client {:.3} s, server {:.3} s ({note})",
            line(&phase.spent),
            phase.client_cpu,
            phase.server_cpu
        );
    }
}

fn print_views(run: &Played, reveal: Reveal) {
    let online = run.online.spent.traffic;
    println!();
    println!(
        "the server saw: a client named {}, its encrypted random masks, and online {} of",
        short(&run.client.0),
        megabytes(online.bytes_sent)
    );
    println!(
        "                masked values, uniform in F_p; neither pixels nor logits in any form \
         that it can open"
    );
    println!(
        "the client saw: the server {}, the public circuit, {} of masked answers, garbled",
        short(&run.server.0),
        megabytes(run.offline.spent.traffic.bytes_received + online.bytes_received)
    );
    println!(
        "                tables and labels, and the {}; no weight in any form that it can open",
        learned(reveal)
    );
}

fn figures(circuit: &Circuit, run: &Played, plain: &[i64], exact: &Run) -> serde_json::Value {
    let phase = |phase: &Phase| {
        json!({
            "cpu_s": phase.client_cpu + phase.server_cpu,
            "client_cpu_s": phase.client_cpu,
            "server_cpu_s": phase.server_cpu,
            "wall_s": phase.spent.wall.as_secs_f64(),
            "bytes_up": phase.spent.traffic.bytes_sent,
            "bytes_down": phase.spent.traffic.bytes_received,
            "messages": messages(&phase.spent),
        })
    };
    let private = run.answer.answer.logits();
    json!({
        "model": circuit.name,
        "answer": run.answer.class().map(|class| class_name(circuit, class)),
        "out_of_range": run.answer.class().is_none(),
        "reveals": circuit.output().1.to_string(),
        "private_label": run.answer.class(),
        "private_logits": private,
        "interpreter_logits": plain,
        "exact_interpreter_logits": exact.logits,
        "exact_match": is_exact(&run.answer.answer, exact, circuit.output().1),
        "output_scale": f64::from(run.answer.output_frac_bits).exp2(),
        "max_diff_units": private.map(|private| largest_difference(private, plain)),
        "fetch_model": phase(&run.model),
        "setup": phase(&run.keys),
        "offline": phase(&run.offline),
        "online": phase(&run.online),
    })
}
