//! The two parties as separate processes: this program, executed again, which obeys lines on
//! standard input.

use super::line::Line;
use super::netem::{self, AS_ECHO, AS_PROBE};
use anyhow::{Context, Result, bail};
use clap::Parser;
use pi_compiler::examples::draw;
use pi_ir::interpret::{Interpreter, quantise_image};
use pi_protocol::session::Answer;
use pi_runtime::client::{Client, Patience, Spent, TrustOptions};
use pi_runtime::command::child::{AS_SERVER, ChildProcess, ServerCommand, ServerProcess};
use pi_runtime::command::server::serve_child;
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::model_files::{read_artifact, read_weights};
use pi_runtime::usage;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// First argument of the process that plays the client.
const AS_CLIENT: &str = "--as-client";

/// Plays a party, or one end of a line that is measured, if this process was started as one. `main`
/// calls this first.
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

/// Cost of an operation, as the client counts it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Operation {
    /// Seconds on the clock.
    pub(crate) wall_s: f64,
    /// User CPU seconds of the client.
    pub(crate) client_cpu_s: f64,
    /// Payload from client to server.
    pub(crate) bytes_up: u64,
    /// Payload from server to client.
    pub(crate) bytes_down: u64,
    /// One-way messages, both directions.
    pub(crate) messages: u64,
}

/// Comparison of the inferences with the interpreter.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Check {
    /// True if the private logits are those of the exact interpreter with the client's shares, bit
    /// for bit, or the private label is the one of those.
    pub(crate) exact: bool,
    /// Largest distance of a logit of any run from the plain interpreter's, in units of the last
    /// binary digit; 0 if labels are revealed.
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
                let input = quantise_image(circuit, &draw::image(circuit.image(), number))?;
                let (bundle, _) = connection.next_bundle().await?;
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
                let (public, _) = read_artifact(&arguments.model)?;
                let weights = read_weights(&arguments.model)?;
                let interpreter = Interpreter::new(&public.circuit, &weights.weights)?;
                let (input, answer) = answers.last().context("no inference yet")?;
                let trace = answer
                    .trace
                    .as_ref()
                    .context("the last run left no trace")?;
                let run = interpreter.exact(input, trace)?;
                let exact = answer.answer == Answer::of_run(&run, public.circuit.output().1);
                let mut off_by = 0;
                for (input, answer) in &answers {
                    let Some(logits) = answer.answer.logits() else {
                        continue;
                    };
                    let plain = interpreter.plain(input)?.logits;
                    let pairs = plain.iter().zip(logits);
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

/// Longest wait for one line: a batch of bundles of a large network takes minutes on a slow line.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Setting in which the processes of the parties run.
pub(crate) struct Site<'a> {
    /// Directory of the model.
    pub(crate) model: &'a Path,
    /// Directory for the states and logs of both parties.
    pub(crate) states: &'a Path,
    /// Threads of each party; none means all cores.
    pub(crate) threads: Option<usize>,
    /// Clients that prepare beside the one that is measured.
    pub(crate) preparing: u16,
}

impl Site<'_> {
    /// This program in a role; `at` is a command that goes before and says where it runs, if not
    /// here.
    fn program(&self, at: Vec<OsString>, role: &str) -> Result<Command> {
        let mut words = at.into_iter().chain([std::env::current_exe()?.into()]);
        let mut command = Command::new(words.next().context("no program")?);
        command.args(words).arg(role);
        if let Some(threads) = self.threads {
            command
                .env("RAYON_NUM_THREADS", threads.to_string())
                .env("TOKIO_WORKER_THREADS", threads.to_string());
        }
        Ok(command)
    }

    /// Starts a server for the model at its end of a line, on a free port.
    ///
    /// # Errors
    /// If it does not come up; its log is in the error.
    pub(crate) fn start_server(&self, line: &Line) -> Result<ServerProcess> {
        let mut program = self.program(line.at_server(), AS_SERVER)?;
        // A server reserves memory for every client that it admits: gigabytes for a large network.
        let clients = 2 + self.preparing;
        program.args(["--max-clients", &clients.to_string()]);
        ServerProcess::start(ServerCommand {
            program,
            model: self.model,
            listen: &line.listen(),
            state: &self.states.join("server"),
            log: Some(self.states.join("server.log")),
            patience: PATIENCE,
        })
    }

    /// Starts a client at its end of a line, which connects to a server at an address.
    ///
    /// # Errors
    /// If it cannot be started; that it cannot connect shows with the first request.
    pub(crate) fn start_client(
        &self,
        line: &Line,
        server: Fingerprint,
        address: &str,
    ) -> Result<ClientProcess> {
        self.start_named(line.at_client(), "client", server, address)
    }

    /// Starts another client, which gives way to all else (`chrt` of util-linux): it stands for one
    /// on another machine, which would take nothing from the two that are measured.
    ///
    /// # Errors
    /// As [`Site::start_client`].
    pub(crate) fn start_other(
        &self,
        number: u16,
        server: Fingerprint,
        address: &str,
    ) -> Result<ClientProcess> {
        let idle = ["chrt", "--idle", "0"].map(OsString::from).to_vec();
        self.start_named(idle, &format!("other-{number}"), server, address)
    }

    fn start_named(
        &self,
        at: Vec<OsString>,
        name: &str,
        server: Fingerprint,
        address: &str,
    ) -> Result<ClientProcess> {
        let mut program = self.program(at, AS_CLIENT)?;
        program
            .args(["--server", address, "--fingerprint", &server.to_string()])
            .arg("--state")
            .arg(self.states.join(name))
            .arg("--model")
            .arg(self.model);
        let log = Some(self.states.join(format!("{name}.log")));
        ChildProcess::start("client", program, log, PATIENCE).map(ClientProcess)
    }
}

/// Largest resident memory of a server until now, in bytes.
///
/// # Errors
/// If the process is gone.
pub(crate) fn server_peak_bytes(server: &mut ServerProcess) -> Result<u64> {
    Ok(server.process.request("memory", "memory ")?.parse()?)
}

/// The client's process.
pub(crate) struct ClientProcess(ChildProcess);

impl ClientProcess {
    /// An operation: `model`, `setup`, `prepare K`, `infer SEED`, or `trace SEED`, which keeps the
    /// shares for `check`.
    ///
    /// # Errors
    /// If it fails; the client's log is in the error.
    pub(crate) fn operate(&mut self, request: &str) -> Result<Operation> {
        Ok(serde_json::from_str(&self.0.request(request, "reply ")?)?)
    }

    /// Largest resident memory until now, in bytes.
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

    /// Ends the client.
    ///
    /// # Errors
    /// If it does not end well.
    pub(crate) fn stop(self) -> Result<()> {
        self.0.stop()
    }
}
