//! The two parties as processes of their own: this program, executed again, obeying lines on
//! standard input.

use super::line::Line;
use super::netem::{self, AS_ECHO, AS_PROBE};
use super::network::read_model;
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use pi_compiler::images::draw;
use pi_ir::interpret::{Interpreter, quantise_image};
use pi_runtime::client::{Client, Patience, Spent, TrustOptions};
use pi_runtime::command::server::serve_child;
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::usage;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// First arguments of the processes that play the parties.
const AS_SERVER: &str = "--as-server";
const AS_CLIENT: &str = "--as-client";

/// Plays a party, or one end of a line that is measured, if this process was started as one; to be
/// called first in `main`.
pub(crate) fn play_if_child() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    let role = arguments.next()?;
    let words = || std::env::args().skip(2).collect::<Vec<String>>();
    let result = match role.to_str()? {
        AS_SERVER => return Some(serve_child(program.into_iter().chain(arguments))),
        AS_CLIENT => {
            let words = program.into_iter().chain(arguments);
            play_client(ClientArguments::parse_from(words))
        }
        AS_ECHO => match &words()[..] {
            [address] => netem::play_echo(address),
            _ => return None,
        },
        AS_PROBE => match &words()[..] {
            [echo, burst] => netem::play_probe(echo, burst),
            _ => return None,
        },
        _ => return None,
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", role.to_string_lossy());
            ExitCode::FAILURE
        }
    })
}

/// What an operation took, as the client counts it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Operation {
    /// Seconds on the clock.
    pub(crate) wall_s: f64,
    /// User CPU seconds of the client.
    pub(crate) client_cpu_s: f64,
    /// Client to server.
    pub(crate) bytes_up: u64,
    /// Server to client.
    pub(crate) bytes_down: u64,
    /// One-way messages, both directions.
    pub(crate) messages: u64,
}

/// How the inferences compare with the interpreter.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Check {
    /// Whether the private logits are the exact interpreter's, bit for bit, given the client's
    /// shares.
    pub(crate) exact: bool,
    /// Largest distance of a logit of any run from the plain interpreter's, in units of the last
    /// binary digit.
    pub(crate) off_by: u64,
}

#[derive(Parser)]
struct ClientArguments {
    #[arg(long)]
    server: String,
    #[arg(long)]
    fingerprint: Fingerprint,
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    model: PathBuf,
}

fn play_client(arguments: ClientArguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(obey(arguments))
}

/// Obeys `model`, `setup`, `prepare K`, `infer SEED`, `trace SEED`, `memory` and `check`, each with
/// one line of JSON.
async fn obey(arguments: ClientArguments) -> Result<()> {
    let patience = Patience {
        connect: Duration::from_secs(30),
        silence: Duration::from_secs(600),
    };
    let client = Client::open(&arguments.state, patience)?;
    let trust = TrustOptions {
        fingerprint: Some(arguments.fingerprint),
        ..TrustOptions::default()
    };
    let mut connection = client.connect(&arguments.server, &trust).await?;
    let (mut model, mut setup) = (None, None);
    // Kept until the end: interpreting needs the weights, which a client does not have and which
    // would count as its memory.
    let mut answers = Vec::new();
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (verb, argument) = line.split_once(' ').unwrap_or((&line, "0"));
        let number: u64 = argument.parse()?;
        let cpu = usage::user_seconds();
        let operation = |spent: Spent| Operation {
            wall_s: spent.wall.as_secs_f64(),
            client_cpu_s: usage::user_seconds() - cpu,
            bytes_up: spent.traffic.bytes_sent,
            bytes_down: spent.traffic.bytes_received,
            messages: spent.traffic.messages_sent + spent.traffic.messages_received,
        };
        let reply = match verb {
            "model" => {
                let (fetched, spent) = connection.model().await?;
                model = Some(fetched);
                serde_json::to_string(&operation(spent.unwrap_or_default()))?
            }
            "setup" => {
                let (made, spent) = connection.setup().await?;
                setup = Some(made);
                serde_json::to_string(&operation(spent.unwrap_or_default()))?
            }
            "prepare" => {
                let (model, setup) = model.as_ref().zip(setup.as_ref()).context("no setup yet")?;
                let spent = connection
                    .prepare(model, setup, number as u32, |_| {})
                    .await?;
                serde_json::to_string(&operation(spent))?
            }
            "infer" | "trace" => {
                let model = model.as_ref().context("no model yet")?;
                let circuit = &model.artifact().circuit;
                let input = quantise_image(circuit, &draw::image(circuit.input, number))?;
                let (bundle, _) = connection.next_bundle()?;
                // A warm client has read its next bundle: outside the wall time, inside the CPU
                // time.
                let cpu = usage::user_seconds();
                connection.load(model, &bundle).await?;
                let answer = connection
                    .infer(model, &bundle, &input, verb == "trace")
                    .await?;
                let mut operation = operation(answer.online);
                operation.client_cpu_s = usage::user_seconds() - cpu;
                answers.push((input, answer));
                serde_json::to_string(&operation)?
            }
            "memory" => usage::peak_resident_bytes().unwrap_or(0).to_string(),
            "check" => {
                let (public, weights) = read_model(&arguments.model)?;
                let interpreter = Interpreter::new(&public.circuit, &weights.weights)?;
                let (input, answer) = answers.last().context("no inference yet")?;
                let trace = answer
                    .trace
                    .as_ref()
                    .context("the last run left no trace")?;
                let exact = interpreter.exact(input, trace)?.logits == answer.logits;
                let mut off_by = 0;
                for (input, answer) in &answers {
                    let plain = interpreter.plain(input)?.logits;
                    let pairs = plain.iter().zip(&answer.logits);
                    off_by = off_by.max(pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0));
                }
                serde_json::to_string(&Check { exact, off_by })?
            }
            other => bail!("unknown request {other:?}"),
        };
        writeln!(out, "reply {reply}")?;
        out.flush()?;
    }
    connection.close().await;
    Ok(())
}

/// A party's process; it ends when this value is dropped.
struct Process {
    name: &'static str,
    child: Child,
    requests: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    log: PathBuf,
}

/// Longest wait for one line: a batch of bundles of a large network takes minutes on a slow line.
const SILENCE: Duration = Duration::from_secs(1800);

impl Process {
    fn start(
        name: &'static str,
        role: &str,
        arguments: &[OsString],
        at: &[OsString],
        threads: Option<usize>,
        log: PathBuf,
    ) -> Result<Process> {
        let errors = File::create(&log).context("cannot write a party's log")?;
        // Where it runs, if not here, is said by a command that goes before.
        let this = [std::env::current_exe()?.into()];
        let mut words = at.iter().chain(&this);
        let mut command = Command::new(words.next().context("no program")?);
        command.args(words);
        if let Some(threads) = threads {
            command
                .env("RAYON_NUM_THREADS", threads.to_string())
                .env("TOKIO_WORKER_THREADS", threads.to_string());
        }
        let mut child = command
            .arg(role)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let requests = child.stdin.take();
        let output = child.stdout.take().context("a party has no output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Process {
            name,
            child,
            requests,
            lines,
            log,
        })
    }

    /// The rest of the next line that starts like this.
    fn line(&mut self, start: &str) -> Result<String> {
        loop {
            match self.lines.recv_timeout(SILENCE) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(start) {
                        return Ok(rest.to_owned());
                    }
                }
                Err(_) => {
                    let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                    bail!(
                        "the {} ended or hangs; its log:\n{}",
                        self.name,
                        log.trim_end()
                    );
                }
            }
        }
    }

    fn request(&mut self, request: &str, start: &str) -> Result<String> {
        let requests = self.requests.as_mut().context("the party was stopped")?;
        // A party that is gone says why in its log, which `line` shows.
        let _ = writeln!(requests, "{request}");
        self.line(start)
    }

    /// Closes its standard input, its sign to end, and waits for it.
    fn stop(mut self) -> Result<()> {
        self.requests = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "the {} ended with {status}", self.name);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // After `stop` there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's process.
pub(crate) struct ServerProcess {
    process: Process,
    /// Where it listens.
    pub(crate) address: String,
    /// Its fingerprint.
    pub(crate) fingerprint: String,
}

impl ServerProcess {
    /// Starts a server for a model, on a free port, with its state in a directory.
    ///
    /// # Errors
    /// If it does not come up; its log is in the error.
    pub(crate) fn start(
        model: &Path,
        states: &Path,
        line: &Line,
        threads: Option<usize>,
    ) -> Result<ServerProcess> {
        let arguments = [
            "--model".into(),
            model.into(),
            "--listen".into(),
            line.listen().into(),
            "--state".into(),
            states.join("server").into(),
        ];
        let log = states.join("server.log");
        let mut process = Process::start(
            "server",
            AS_SERVER,
            &arguments,
            &line.at_server(),
            threads,
            log,
        )?;
        let fingerprint = process.line("fingerprint ")?;
        let address = process.line("listening on ")?;
        Ok(ServerProcess {
            process,
            address,
            fingerprint,
        })
    }

    /// User CPU seconds until now.
    ///
    /// # Errors
    /// If the process is gone.
    pub(crate) fn user_seconds(&mut self) -> Result<f64> {
        Ok(self.process.request("usage", "usage ")?.parse()?)
    }

    /// Largest resident memory until now, bytes.
    ///
    /// # Errors
    /// If the process is gone.
    pub(crate) fn peak_bytes(&mut self) -> Result<u64> {
        Ok(self.process.request("memory", "memory ")?.parse()?)
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it did not end well.
    pub(crate) fn stop(self) -> Result<()> {
        self.process.stop()
    }
}

/// The client's process.
pub(crate) struct ClientProcess(Process);

impl ClientProcess {
    /// Starts a client that connects to an address.
    ///
    /// # Errors
    /// If it cannot be started; that it cannot connect shows with the first request.
    pub(crate) fn start(
        server: &ServerProcess,
        address: &str,
        model: &Path,
        states: &Path,
        line: &Line,
        threads: Option<usize>,
    ) -> Result<ClientProcess> {
        let arguments = [
            "--server".into(),
            address.into(),
            "--fingerprint".into(),
            (&server.fingerprint).into(),
            "--state".into(),
            states.join("client").into(),
            "--model".into(),
            model.into(),
        ];
        let log = states.join("client.log");
        Process::start(
            "client",
            AS_CLIENT,
            &arguments,
            &line.at_client(),
            threads,
            log,
        )
        .map(ClientProcess)
    }

    /// An operation: `model`, `setup`, `prepare K`, `infer SEED`, or `trace SEED`, which keeps the
    /// shares for `check`.
    ///
    /// # Errors
    /// If it fails; the client's log is in the error.
    pub(crate) fn operate(&mut self, request: &str) -> Result<Operation> {
        Ok(serde_json::from_str(&self.0.request(request, "reply ")?)?)
    }

    /// Largest resident memory until now, bytes.
    ///
    /// # Errors
    /// If the process is gone.
    pub(crate) fn peak_bytes(&mut self) -> Result<u64> {
        Ok(self.0.request("memory", "reply ")?.parse()?)
    }

    /// Compares all inferences with the interpreter; needs one with shares as the last.
    ///
    /// # Errors
    /// If the process is gone or there is nothing to compare.
    pub(crate) fn check(&mut self) -> Result<Check> {
        Ok(serde_json::from_str(&self.0.request("check", "reply ")?)?)
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it did not end well.
    pub(crate) fn stop(self) -> Result<()> {
        self.0.stop()
    }
}
