//! `pi-server`: serves a model.

mod observe_flags;

use self::observe_flags::ObserveArguments;
use super::interrupts::Interrupts;
use super::manuals::{self, Manual};
use super::{report, runtime, seconds, state_directory};
use crate::error::Error;
use crate::fingerprint::short;
use crate::model_files::read_artifact;
use crate::server::{Server, ServerOptions, default_budget};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use pi_ir::Reveal;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;

/// Serves a compiled model: clients classify images without showing them and without seeing the
/// weights.
///
/// This is secure if both parties follow the protocol (semi-honest security); see
/// docs/threat-model.md.
#[derive(Parser)]
#[command(name = "pi-server", version)]
struct Arguments {
    /// Directory with model.pia and model.piw, as pi-compile writes it.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Address to listen at (UDP); port 0 chooses a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4433")]
    listen: String,
    /// Directory for keys and bundles [default: PI_SERVER_STATE, or the user's data directory].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Limit on the clients connected at once; further ones are refused.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    max_clients: u16,
    /// Limit on the unused bundles kept for one client; each takes disk space on both sides.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    max_bundles: u16,
    /// Limit on the answers that one client ever gets, or `none` [default: 1000 if the model
    /// reveals logits, none if it reveals labels]. A client learns a little of the weights with
    /// every answer.
    #[arg(long, value_name = "N")]
    max_answers: Option<MostAnswers>,
    /// Limit on the memory that clients can make the server use, beside the model's own: a number
    /// of bytes, or one with K, M or G [default: half of the machine's memory].
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// File with the fingerprints of the clients to serve, one a line; # starts a comment. It is
    /// read again when it changes. Without this option every client is served.
    #[arg(long, value_name = "FILE")]
    allow: Option<PathBuf>,
    /// Seconds to wait for a client that falls silent in the middle of an operation.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    timeout: Duration,
    /// Let the system move computing threads between processors. Use this on a machine where other
    /// programs are busy too.
    #[arg(long)]
    unbound: bool,
    /// PEM file with a certificate chain to use instead of the self-signed certificate.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// PEM file with the private key of --cert.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    #[command(flatten)]
    observe: ObserveArguments,
}

/// The limit of `--max-answers`.
#[derive(Clone, Copy)]
struct MostAnswers(Option<u64>);

impl std::str::FromStr for MostAnswers {
    type Err = String;

    fn from_str(text: &str) -> Result<MostAnswers, String> {
        match text.parse() {
            Ok(limit @ 1..) => Ok(MostAnswers(Some(limit))),
            _ if text == "none" => Ok(MostAnswers(None)),
            _ => Err("a positive number, or the word none".into()),
        }
    }
}

/// Answers that a client gets unless the operator says otherwise, of a model that reveals logits.
const MOST_LOGITS: u64 = 1000;

/// Runs `pi-server` with this process's arguments.
pub fn main() -> ExitCode {
    let command = Manual::augment_subcommands(Arguments::command())
        .subcommand_required(false)
        .arg_required_else_help(false)
        .subcommand_negates_reqs(true)
        .args_conflicts_with_subcommands(true);
    let matches = command.clone().get_matches();
    let done = match Manual::from_arg_matches(&matches) {
        Ok(manual) => manuals::print(&manual, command),
        Err(_) => match Arguments::from_arg_matches(&matches) {
            Ok(arguments) => serve(arguments, false),
            Err(error) => error.exit(),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Runs `pi-server` with these arguments as the child of another program.
///
/// It answers the line `usage` on standard input with its user CPU seconds, and `memory` with its
/// largest resident memory in bytes (0 where the system does not report it). It ends when standard
/// input does, so that it never outlives its parent.
pub fn serve_child(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match serve(Arguments::parse_from(arguments), true) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn serve(arguments: Arguments, child: bool) -> anyhow::Result<()> {
    let _logs = arguments.observe.start_logging("pi_runtime=info,warn")?;
    pi_core::Backend::chosen()?;
    let listen = listen_address(&arguments.listen)?;
    let reveal = read_artifact(&arguments.model)?.0.circuit.output().1;
    let max_answers = match (arguments.max_answers, reveal) {
        (Some(MostAnswers(limit)), _) => limit,
        (None, Reveal::Logits) => Some(MOST_LOGITS),
        (None, Reveal::Label) => None,
    };
    let options = ServerOptions {
        model: arguments.model,
        listen,
        state: state_directory(arguments.state, "PI_SERVER_STATE", "server")?,
        certificate: arguments.cert.zip(arguments.key),
        max_clients: arguments.max_clients.into(),
        max_bundles: arguments.max_bundles.into(),
        max_answers,
        memory: arguments.memory.unwrap_or_else(default_budget),
        allow: arguments.allow,
        patience: arguments.timeout,
        bound: !arguments.unbound,
    };
    let runtime = runtime()?;
    runtime.block_on(async {
        // Before the line that tells others that they may interrupt.
        let interrupts = Interrupts::listen()?;
        let server = Server::start(&options)?;
        let (ready, other) = server.bundles()?;
        let mut out = std::io::stdout();
        writeln!(out, "model {}", short(&server.model()))?;
        writeln!(out, "bundles {ready} ready, {other} for other models")?;
        match (options.max_answers, reveal) {
            (Some(limit), _) => writeln!(
                out,
                "answers {limit} at most for each client, ever; the model reveals {reveal}"
            )?,
            (None, Reveal::Logits) => {
                writeln!(out, "answers without limit: logits tell about the weights")?;
            }
            (None, Reveal::Label) => writeln!(out, "answers without limit; labels alone")?,
        }
        match server.allowed_clients() {
            Some(count) => writeln!(out, "clients {count} on the list")?,
            None => writeln!(out, "clients all that come")?,
        }
        writeln!(
            out,
            "memory {} MB at most for clients",
            options.memory / 1_000_000
        )?;
        writeln!(out, "fingerprint {}", server.fingerprint())?;
        let metrics = arguments.observe.serve(&server).await?;
        writeln!(out, "listening on {}", server.address()?)?;
        if let Some(address) = metrics {
            writeln!(out, "metrics on http://{address}")?;
        }
        out.flush()?;
        let (stop, stopped) = watch::channel(false);
        if child {
            let stop = stop.clone();
            std::thread::spawn(move || obey_parent(&stop));
        }
        tokio::spawn(stop_on_signal(interrupts, stop));
        server.run(stopped).await;
        anyhow::Ok(())
    })?;
    // A computation for a client that was cut off is not worth waiting for.
    runtime.shutdown_background();
    Ok(())
}

/// A number of bytes, as the user writes it.
fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) if text.ends_with('K') => (number, 10),
        Some(number) if text.ends_with('M') => (number, 20),
        Some(number) => (number, 30),
        None => (text, 0),
    };
    let number = number.parse::<u64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << unit));
    bytes.ok_or_else(|| "a number of bytes, such as 4G, 512M or 800000000".into())
}

fn listen_address(text: &str) -> Result<SocketAddr, Error> {
    let bad = |reason: String| Error::Address {
        address: text.into(),
        reason,
    };
    text.to_socket_addrs()
        .map_err(|e| bad(e.to_string()))?
        .next()
        .ok_or_else(|| bad("the name has no address".into()))
}

/// The first interrupt lets operations under way end, the second ends the process.
async fn stop_on_signal(mut interrupts: Interrupts, stop: watch::Sender<bool>) {
    interrupts.next().await;
    eprintln!("ending once the operations under way are done; interrupt again to end at once");
    stop.send_replace(true);
    interrupts.next().await;
    std::process::exit(130);
}

fn obey_parent(stop: &watch::Sender<bool>) {
    for line in std::io::stdin().lock().lines() {
        match line.as_deref() {
            Ok("usage") => {
                let seconds = crate::usage::user_seconds();
                println!("usage {seconds:.6}");
                // A parent that is gone closes standard input too.
                let _ = std::io::stdout().flush();
            }
            Ok("memory") => {
                let bytes = crate::usage::peak_resident_bytes().unwrap_or(0);
                println!("memory {bytes}");
                let _ = std::io::stdout().flush();
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    stop.send_replace(true);
}
