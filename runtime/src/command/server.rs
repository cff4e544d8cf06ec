//! `pi-server`: serves a model.

mod check;
mod clients;
mod config;
mod observe_flags;
mod store_flags;
mod web_flags;

use self::clients::ClientsArguments;
use self::observe_flags::ObserveArguments;
use self::store_flags::StoreArguments;
use self::web_flags::WebArguments;
use super::interrupts::{Hangups, Interrupts};
use super::manuals::{self, Manual};
use super::{report, runtime, seconds, state_directory};
use crate::error::Error;
use crate::fingerprint::short;
use crate::quiet_pool;
use crate::server::{
    ClientList, Limits, ModelSources, Most, ServedModel, Server, ServerOptions, bytes, check_name,
    default_budget,
};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use pi_ir::Reveal;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Serves compiled models: clients classify images without showing them and without seeing the
/// weights.
///
/// This is secure if both parties follow the protocol (semi-honest security); see
/// docs/threat-model.md.
///
/// Every option has a key of its name in the file of --config, and a variable of the environment:
/// PI_SERVER_MAX_CLIENTS is that of --max-clients.
#[derive(Parser)]
#[command(name = "pi-server", version)]
struct Arguments {
    /// TOML file with settings; options and variables of the environment come before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory with model.pia and model.piw, as pi-compile writes it, and the name for clients to
    /// ask for it [default: that of the directory]. May be given several times.
    #[arg(long, value_name = "[NAME=]DIR", required_unless_present = "models")]
    model: Vec<NamedDirectory>,
    /// Directory with a directory for each model, which has either the two files or a directory for
    /// each version, the last of them the current one. What changes there is taken over while the
    /// server runs.
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Name of the model for clients that ask for none [default: the only one].
    #[arg(long, value_name = "NAME")]
    default_model: Option<String>,
    /// Address to listen at (UDP); port 0 chooses a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4433")]
    listen: String,
    /// Directory for keys and bundles [default: the user's data directory].
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
    /// Limit on the unused bundles kept for one client and model; each takes disk space on both
    /// sides.
    #[arg(long, value_name = "N", default_value_t = Most::At(ServerOptions::BUNDLES))]
    max_bundles: Most,
    /// Limit on the answers of a model that one client ever gets, or `none` [default: 1000 if the
    /// model reveals logits, none if it reveals labels]. A client learns a little of the weights
    /// with every answer.
    #[arg(long, value_name = "N")]
    max_answers: Option<Most>,
    /// Limit on the answers of a model that one client gets in a day of UTC, or `none`.
    #[arg(long, value_name = "N", default_value_t = Most::Unlimited)]
    max_answers_per_day: Most,
    /// Limit on the bytes that one client exchanges in a day of UTC to fetch a model, keys and
    /// bundles, or `none`. The operation that passes it still ends.
    #[arg(long, value_name = "BYTES", default_value_t = Most::Unlimited)]
    max_bytes_per_day: Most,
    /// Limit on the memory that clients can make the server use, beside the models' own: a number
    /// of bytes, or one with K, M or G [default: half of the machine's memory].
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// File with the fingerprints of the clients to serve, one a line; # starts a comment. It is
    /// read again when it changes. Without this option or --clients every client is served.
    #[arg(long, value_name = "FILE", conflicts_with = "clients")]
    allow: Option<PathBuf>,
    /// TOML file with the clients to serve, their models and limits, as pi-server clients writes
    /// it; see docs/operations.md. It is read again when it changes.
    #[arg(long, value_name = "FILE")]
    clients: Option<PathBuf>,
    /// PEM file of certificate authorities: every client must prove a certificate that one of them
    /// signed, and is known by the name in it. It is read again when it changes.
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Seconds to wait for a client that falls silent in the middle of an operation.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    timeout: Duration,
    /// Let the system move computing threads between processors. Use this on a machine where other
    /// programs are busy too.
    #[arg(long)]
    unbound: bool,
    /// PEM file with a certificate chain to use instead of the self-signed certificate. It is read
    /// again when it changes.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// PEM file with the private key of --cert.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    web: WebArguments,
    #[command(flatten)]
    observe: ObserveArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Check a configuration and all that it names, without serving: tells all faults at once.
    Check {
        /// The file of --config.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// List, add and revoke the clients of --clients.
    Clients(ClientsArguments),
    #[command(flatten)]
    Manual(Manual),
}

/// The value of `--model`.
#[derive(Clone)]
struct NamedDirectory(Option<String>, PathBuf);

impl std::str::FromStr for NamedDirectory {
    type Err = String;

    fn from_str(text: &str) -> Result<NamedDirectory, String> {
        match text.split_once('=') {
            Some((name, directory)) if check_name(name).is_ok() => {
                Ok(NamedDirectory(Some(name.into()), directory.into()))
            }
            _ => Ok(NamedDirectory(None, text.into())),
        }
    }
}

impl Arguments {
    fn options(&self) -> Result<ServerOptions, Error> {
        let single = self
            .model
            .iter()
            .map(|NamedDirectory(name, at)| (name.clone(), at.clone()));
        let plain = self.allow.clone().map(ClientList::Plain);
        Ok(ServerOptions {
            models: ModelSources {
                single: single.collect(),
                directory: self.models.clone(),
            },
            default_model: self.default_model.clone(),
            listen: listen_address(&self.listen)?,
            state: state_directory(self.state.clone(), "PI_SERVER_STATE", "server")?,
            certificate: self.cert.clone().zip(self.key.clone()),
            client_authorities: self.client_ca.clone(),
            max_clients: self.max_clients.into(),
            limits: Limits {
                bundles: Some(self.max_bundles),
                answers: self.max_answers,
                answers_per_day: Some(self.max_answers_per_day),
                bytes_per_day: Some(self.max_bytes_per_day),
            },
            memory: self.memory.unwrap_or_else(default_budget),
            clients: plain.or_else(|| self.clients.clone().map(ClientList::Toml)),
            patience: self.timeout,
            bound: !self.unbound,
            web: self.web.options()?,
        })
    }
}

/// The command with its subcommands.
fn command() -> clap::Command {
    Command::augment_subcommands(Arguments::command())
        .subcommand_required(false)
        .arg_required_else_help(false)
        .subcommand_negates_reqs(true)
        .args_conflicts_with_subcommands(true)
}

/// Runs `pi-server` with this process's arguments.
pub fn main() -> ExitCode {
    match run(std::env::args_os().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(given: Vec<OsString>) -> anyhow::Result<()> {
    let command = command();
    // A subcommand has no settings.
    if let Ok(matches) = command.clone().try_get_matches_from(&given)
        && let Ok(subcommand) = Command::from_arg_matches(&matches)
    {
        return match subcommand {
            Command::Check { file } => check::check(&Arguments::command(), &file),
            Command::Clients(arguments) => clients::run(arguments),
            Command::Manual(manual) => manuals::print(&manual, command),
        };
    }
    let arguments = config::layered(&Arguments::command(), given)?;
    let matches = command.get_matches_from(arguments);
    match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => serve(arguments, false),
        Err(error) => error.exit(),
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
    let options = arguments.options()?;
    let store = arguments.store;
    quiet_pool::start();
    let runtime = runtime()?;
    runtime.block_on(async {
        // Before the line that tells others that they may interrupt.
        let interrupts = Interrupts::listen()?;
        let hangups = Hangups::listen()?;
        let server = Server::start_with(&options, |state| store.open(state))?;
        let mut text = announcement(&server, &options)?;
        if let Some(address) = arguments.observe.serve(&server).await? {
            text.push_str(&format!("metrics on http://{address}\n"));
        }
        std::io::stdout().write_all(text.as_bytes())?;
        std::io::stdout().flush()?;
        let (stop, stopped) = watch::channel(false);
        if child {
            let stop = stop.clone();
            std::thread::spawn(move || obey_parent(&stop));
        }
        tokio::spawn(stop_on_signal(interrupts, stop));
        tokio::spawn(reload_on_signal(hangups, server.reload()));
        server.run(stopped).await;
        anyhow::Ok(())
    })?;
    // A computation for a client that was cut off is not worth waiting for.
    runtime.shutdown_background();
    Ok(())
}

/// A model in one line.
fn describe(model: &ServedModel) -> String {
    let ServedModel { name, version, .. } = model;
    let older = if model.current {
        ""
    } else {
        ", an older version"
    };
    let (digest, reveals) = (short(&model.digest), model.reveals);
    format!("model {name}:{version} ({digest}), reveals {reveals}{older}")
}

/// What a server says of itself before it listens.
fn announcement(server: &Server, options: &ServerOptions) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    for model in server.models() {
        lines.push(describe(&model));
        lines.push(match (model.most_answers, model.reveals) {
            (Some(limit), reveals) => format!(
                "answers {limit} at most for each client, ever; the model reveals {reveals}"
            ),
            (None, Reveal::Logits) => "answers without limit: logits tell about the weights".into(),
            (None, Reveal::Label) => "answers without limit; labels alone".into(),
        });
    }
    let (ready, other) = server.bundles()?;
    lines.push(format!("bundles {ready} ready, {other} for other models"));
    lines.push(match server.listed_clients() {
        Some(count) => format!("clients {count} on the list"),
        None => "clients all that come".into(),
    });
    lines.push(format!(
        "memory {} MB at most for clients",
        options.memory / 1_000_000
    ));
    if server.service() != server.fingerprint() {
        lines.push(format!("service {}", server.service()));
    }
    lines.extend(web_flags::announcement(server));
    lines.push(format!("fingerprint {}", server.fingerprint()));
    lines.push(format!("listening on {}\n", server.address()?));
    Ok(lines.join("\n"))
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

/// Files are read again whenever the process is told to.
async fn reload_on_signal(mut hangups: Hangups, reload: Arc<Notify>) {
    loop {
        hangups.next().await;
        tracing::info!("asked to read files again");
        reload.notify_one();
    }
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
