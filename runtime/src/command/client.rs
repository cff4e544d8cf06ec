//! `pi-client`: prepares bundles with a server and classifies images, signals and rows of tables.

mod answers;
mod infer;
mod inputs;
mod keep;
mod models;

use self::infer::InferArguments;
use self::keep::KeepArguments;
use super::exit;
use super::log_flags::LogArguments;
use super::manuals::{self, Manual};
use super::{InRequest, megabytes, note, report, runtime, seconds, state_directory};
use crate::client::{Backoff, Choice, Client, Connection, Patience, Spent, TrustOptions, Wait};
use crate::control::MOST_BUNDLES;
use crate::error::Error;
use crate::fingerprint::{Fingerprint, hex, short};
use crate::identity::Identity;
use crate::machine;
use crate::observe::logs;
use crate::store::{BundleState, ModelDigest, PeerRecord, StoreError};
use clap::{Args, CommandFactory, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use pi_protocol::session::ClientModel;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Classifies images, signals and rows of tables with a server's model without showing them to the
/// server.
///
/// This is secure if both parties follow the protocol (semi-honest security); see
/// docs/threat-model.md.
#[derive(Parser)]
#[command(name = "pi-client", version, after_long_help = exit::TABLE)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Directory for keys and bundles [default: PI_CLIENT_STATE, or the user's data directory].
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Seconds to wait for a server that falls silent in the middle of an operation.
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value = "300",
        value_parser = seconds
    )]
    timeout: Duration,
    /// Seconds to wait for a connection.
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value = "10",
        value_parser = seconds
    )]
    connect_timeout: Duration,
    /// Let the system move computing threads between processors. Use this on a machine where other
    /// programs are busy too.
    #[arg(long, global = true)]
    unbound: bool,
    /// PEM file with a certificate chain to prove to servers that demand one of their operator's,
    /// instead of the self-signed certificate.
    #[arg(long, global = true, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// PEM file with the private key of --cert.
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    #[command(flatten)]
    log: LogArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Prepare bundles for future inputs. This is the slow part, done in advance.
    Prepare {
        /// Number of bundles; each classifies one input.
        #[arg(
            short = 'n',
            long = "count",
            value_name = "K",
            default_value_t = 1,
            value_parser = clap::value_parser!(u32).range(1..=MOST_BUNDLES as i64)
        )]
        count: u32,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Classify images, signals and rows of tables. Each answer spends one bundle.
    #[command(after_long_help = exit::TABLE)]
    Infer(InferArguments),
    /// Keep a number of bundles ready: prepare in the background whatever is used, until
    /// interrupted. A server that is away is waited for in any case.
    Keep(KeepArguments),
    /// List the models that a server lets this client use, with what they cost and reveal.
    Models {
        /// Print each model as one JSON object on a line of its own.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Show the bundles stored for each server, without connecting to any.
    Status {
        /// Print the status as one JSON object.
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Manual(Manual),
}

#[derive(Args)]
struct ServerArguments {
    /// Address of the server; may be left out while only one is known. A server is known by its
    /// fingerprint, so any of its names will do. Of servers that share their state, several
    /// addresses can be given, with commas between them or by several options.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    server: Vec<String>,
    /// Model to use, by the name that the server gives it, and with a colon its version; may be
    /// left out while the server has one, or a default.
    #[arg(long, value_name = "NAME[:VERSION]")]
    model: Option<String>,
    /// Wait for a server that is not up or full, for as many seconds or, without a number, for as
    /// long as it takes; also for another pi-client that uses the same state.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = WaitLimit::NONE
    )]
    wait: Option<WaitLimit>,
    #[command(flatten)]
    trust: TrustArguments,
}

impl ServerArguments {
    fn wait(&self) -> Option<Wait> {
        self.wait.map(|WaitLimit(limit)| Wait::new(limit))
    }

    fn trust(&self) -> TrustOptions {
        self.trust.clone().into()
    }

    /// The address, or addresses with commas between them.
    fn address(&self) -> Option<String> {
        (!self.server.is_empty()).then(|| self.server.join(","))
    }

    /// The model asked for.
    fn choice(&self) -> Choice {
        self.model
            .as_deref()
            .map_or_else(Choice::default, Choice::of_name)
    }

    /// Its name alone.
    fn model_name(&self) -> Option<&str> {
        let model = self.model.as_deref()?;
        model.split(':').next()
    }
}

/// The limit of `--wait`.
#[derive(Clone, Copy)]
struct WaitLimit(Option<Duration>);

impl WaitLimit {
    const NONE: &str = "forever";
}

impl std::str::FromStr for WaitLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<WaitLimit, String> {
        match text {
            WaitLimit::NONE => Ok(WaitLimit(None)),
            text => Ok(WaitLimit(Some(seconds(text)?))),
        }
    }
}

#[derive(Args, Clone)]
struct TrustArguments {
    /// The server's fingerprint, which it prints when it starts.
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<Fingerprint>,
    /// PEM file of certificate authorities to check the server's certificate against.
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    ca: Option<PathBuf>,
    /// Trust whoever answers if this address is not known yet, and remember the fingerprint.
    #[arg(long, conflicts_with_all = ["fingerprint", "ca"])]
    trust_first_use: bool,
}

impl From<TrustArguments> for TrustOptions {
    fn from(arguments: TrustArguments) -> TrustOptions {
        TrustOptions {
            fingerprint: arguments.fingerprint,
            authorities: arguments.ca,
            first_use: arguments.trust_first_use,
        }
    }
}

/// Runs `pi-client` with this process's arguments.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let _logs = logs::start("warn", arguments.log.log_format, None);
    match run(arguments) {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

/// What to tell who asked about an input that is out of range.
pub(super) const OUT_OF_RANGE_ADVICE: &str = "\
out of the network's range: no answer
  A value inside the network left the bounds that its maker calibrated, so an answer would mean
  nothing. This input is unlike those that the network was made for; the bundle is spent. Ask about
  another input, or have the model compiled with data like this one, or with more --head-room.
";

/// Where a client's state is, and how it is used.
struct Setting {
    state: PathBuf,
    patience: Patience,
    unbound: bool,
    certificate: Option<(PathBuf, PathBuf)>,
}

impl Setting {
    /// Opens the state. Another program may hold it for a moment, and with `--wait` for longer.
    fn open(&self, wait: Option<Wait>) -> Result<Client, Error> {
        /// Time that `pi-client keep` takes to look whether there is something to do, and more.
        const MOMENT: Duration = Duration::from_secs(2);
        let wait = wait.unwrap_or_else(|| Wait::new(Some(MOMENT)));
        let mut backoff = Backoff::default();
        let mut waiting = Waiting::beside(&ProgressBar::hidden());
        let client = loop {
            match Client::open(&self.state, self.patience) {
                Err(error @ Error::Store(StoreError::Locked(_))) => {
                    let (error, pause) = wait.pause(&mut backoff, error)?;
                    let pause = pause.min(MOMENT);
                    if pause >= MOMENT / 2 {
                        waiting.say(&error, pause);
                    }
                    std::thread::sleep(pause);
                }
                opened => break opened?,
            }
        };
        let client = match &self.certificate {
            Some((chain, key)) => client.with_identity(Identity::from_files(chain, key)?),
            None => client,
        };
        let client = client.on_busy(|wait| {
            let seconds = wait.as_secs();
            note(format_args!(
                "the server has no room for this now; trying again in {seconds} s"
            ));
        });
        Ok(match self.unbound {
            true => client.unbound(),
            false => client,
        })
    }
}

/// Tells what is waited for, once for each reason.
struct Waiting {
    last: String,
    progress: ProgressBar,
}

impl Waiting {
    /// Tells it without damage to a bar on the same terminal.
    fn beside(progress: &ProgressBar) -> Waiting {
        Waiting {
            last: String::new(),
            progress: progress.clone(),
        }
    }

    fn say(&mut self, error: &Error, pause: Duration) {
        let reason = error.to_string();
        if reason == self.last {
            return;
        }
        let seconds = pause.as_secs_f64();
        let text =
            format!("waiting: {reason}; trying again in {seconds:.1} s, and then less often");
        self.progress.suspend(|| note(text));
        self.last = reason;
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Command::Manual(manual) = &arguments.command {
        manuals::print(manual, Arguments::command())?;
        return Ok(ExitCode::SUCCESS);
    }
    pi_core::Backend::chosen()?;
    let setting = Setting {
        state: state_directory(arguments.state, "PI_CLIENT_STATE", "client")?,
        patience: Patience {
            connect: arguments.connect_timeout,
            silence: arguments.timeout,
        },
        unbound: arguments.unbound,
        certificate: arguments.cert.zip(arguments.key),
    };
    match arguments.command {
        Command::Prepare { count, server } => {
            let client = setting.open(server.wait())?;
            let prepared = runtime()?.block_on(prepare(&client, count, &server));
            prepared.map_err(|error| InRequest::of(&client, error))?;
        }
        Command::Infer(arguments) => {
            let client = setting.open(arguments.wait())?;
            let runtime = runtime()?;
            let ended = runtime.block_on(infer::infer(&client, arguments));
            // A file that is being read for nobody is not worth waiting for, and may be a pipe.
            runtime.shutdown_timeout(Duration::from_millis(100));
            return ended;
        }
        Command::Keep(arguments) => {
            let runtime = runtime()?;
            runtime.block_on(keep::keep(setting, arguments))?;
            // A computation that was interrupted is not worth waiting for.
            runtime.shutdown_background();
        }
        Command::Models { json, server } => {
            let client = setting.open(server.wait())?;
            runtime()?.block_on(models::list(&client, &server, json))?;
        }
        Command::Status { json } => status(&setting.open(None)?, &setting.state, json)?,
        Command::Manual(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The address to call a server at, or addresses with commas between them.
fn address_to_call(client: &Client, server: &ServerArguments) -> Result<String, Error> {
    match server.address() {
        Some(address) => Ok(address),
        None => {
            let (_, record) = client.server(None, server.trust.fingerprint)?;
            Ok(record.all_addresses())
        }
    }
}

async fn prepare(client: &Client, count: u32, server: &ServerArguments) -> Result<(), Error> {
    let address = address_to_call(client, server)?;
    let (trust, choice) = (server.trust(), server.choice());
    let mut waiting = Waiting::beside(&ProgressBar::hidden());
    let mut backoff = Backoff::default();
    let mut left = count;
    loop {
        // Each time anew: what was prepared since has used up no patience.
        let wait = server.wait();
        let waiting = &mut waiting;
        let say = |error: &Error, pause| waiting.say(error, pause);
        let connecting = client.connect_patiently(&address, &trust, &choice, wait, say);
        let mut connection = connecting.await?;
        if trust.first_use {
            let fingerprint = connection.certificate();
            note(format_args!(
                "trusting {address} with fingerprint {fingerprint}"
            ));
        }
        let mut made = 0;
        let result = prepare_with(&mut connection, left, &mut made).await;
        let (name, version) = connection.model_name();
        let model = format!("{name}:{version} ({})", short(&connection.model_digest()));
        connection.close().await;
        left -= made;
        match (result, wait) {
            (Err(error), Some(wait)) if left > 0 => {
                if made > 0 {
                    backoff.reset();
                }
                let (error, pause) = wait.pause(&mut backoff, error)?;
                waiting.say(&error, pause);
                tokio::time::sleep(pause).await;
            }
            (result, _) => {
                result?;
                println!("{count} prepared for model {model}");
                return Ok(());
            }
        }
    }
}

/// Prepares bundles over one connection, and counts those that are kept.
async fn prepare_with(
    connection: &mut Connection<'_>,
    count: u32,
    made: &mut u32,
) -> Result<(), Error> {
    let waiting = spinner("fetching the model");
    let (model, fetched) = connection.model().await?;
    waiting.set_message("exchanging keys");
    let (setup, exchanged) = connection.setup().await?;
    waiting.finish_and_clear();
    if let Some(spent) = fetched {
        println!("model     {}", line(&spent));
    }
    if let Some(spent) = exchanged {
        println!("keys      {}", line(&spent));
    }
    let needed = most_memory(&model, count);
    if let Some(available) = machine::available_memory()
        && needed > available
    {
        note(format_args!(
            "preparing needs about {} of memory at once, and {} are free: close other programs, or \
             prepare fewer bundles at a time",
            megabytes(needed),
            megabytes(available)
        ));
    }
    let bar = ProgressBar::new(count.into()).with_style(bar_style());
    bar.set_message("preparing");
    bar.enable_steady_tick(Duration::from_millis(200));
    let progress = |_: &Spent| {
        *made += 1;
        bar.inc(1);
    };
    let spent = connection.prepare(&model, &setup, count, progress).await;
    bar.finish_and_clear();
    println!("bundles   {}", line(&spent?));
    Ok(())
}

/// Bytes that the largest batch of these takes.
fn most_memory(model: &ClientModel, count: u32) -> u64 {
    let sizes = model.batches(count as usize).into_iter();
    // What is wrong with a plan is reported when it is used.
    let bytes = sizes.filter_map(|size| model.offline_memory(size).ok());
    bytes.max().unwrap_or(0)
}

fn status(client: &Client, state: &Path, json: bool) -> anyhow::Result<()> {
    let mut servers = Vec::new();
    let mut text = format!(
        "state      {}\nidentity   {}\n",
        state.display(),
        client.fingerprint()
    );
    for (server, record) in client.servers()? {
        let (lines, object) = server_status(client, server, &record)?;
        text.push_str(&lines);
        servers.push(object);
    }
    if servers.is_empty() {
        text.push_str(
            "no server is known yet: pi-client prepare --server HOST:PORT --fingerprint HEX\n",
        );
    }
    let mut out = std::io::stdout();
    match json {
        true => writeln!(
            out,
            "{}",
            json!({"identity": client.fingerprint().to_string(), "servers": servers})
        )?,
        false => out.write_all(text.as_bytes())?,
    }
    Ok(())
}

/// What is stored for one server, as text and as JSON.
fn server_status(
    client: &Client,
    server: Fingerprint,
    record: &PeerRecord,
) -> anyhow::Result<(String, serde_json::Value)> {
    let bundles = client.bundles(server)?;
    let ready_for = |model: &ModelDigest| {
        let of_model = bundles.iter().filter(|bundle| bundle.model == *model);
        of_model.filter(|b| b.state == BundleState::Ready).count()
    };
    let all = bundles
        .iter()
        .filter(|b| b.state == BundleState::Ready)
        .count();
    let ready = ready_for(&record.model);
    let (stale, spent) = (all - ready, bundles.len() - all);
    let name_of = |model: &ModelDigest| {
        let circuit = client.circuit(model);
        circuit.map_or_else(|_| "not fetched".into(), |circuit| circuit.name.clone())
    };
    let name = name_of(&record.model);
    let mut text = format!(
        "server     {}\n  \
         fingerprint {server}\n  \
         model       {name} ({})\n  \
         bundles     {ready} ready, {spent} spent",
        record.addresses.join(", "),
        short(&record.model)
    );
    if stale > 0 {
        text.push_str(&format!(", {stale} for other models"));
    }
    text.push('\n');
    let mut models = Vec::new();
    for model in &record.models {
        let ready = ready_for(&model.model);
        let (name, version) = (&model.name, &model.version);
        if record.models.len() > 1 {
            text.push_str(&format!("  prepared    {name}:{version}, {ready} ready\n"));
        }
        models.push(json!({
            "name": name,
            "version": version,
            "model": hex(&model.model),
            "ready": ready,
        }));
    }
    let left = client.answers_left(server)?;
    if let Some(left) = left {
        text.push_str(&format!(
            "  answers     {left} left, when the server last said\n"
        ));
    }
    let certificates: Vec<String> = record
        .certificates
        .iter()
        .map(ToString::to_string)
        .collect();
    let object = json!({
        "addresses": record.addresses,
        "fingerprint": server.to_string(),
        "certificates": certificates,
        "model": hex(&record.model),
        "model_name": name,
        "models": models,
        "ready": ready,
        "ready_for_other_models": stale,
        "spent": spent,
        "answers_left": left,
    });
    Ok((text, object))
}

/// Time, bytes and messages in one line.
pub(super) fn line(spent: &Spent) -> String {
    format!(
        "{:.3} s, {} up, {} down, {} messages",
        spent.wall.as_secs_f64(),
        megabytes(spent.traffic.bytes_sent),
        megabytes(spent.traffic.bytes_received),
        messages(spent)
    )
}

/// Messages in both directions.
pub(super) fn messages(spent: &Spent) -> u64 {
    spent.traffic.messages_sent + spent.traffic.messages_received
}

/// A spinner on a terminal; nothing elsewhere.
pub(super) fn spinner(message: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {elapsed} gone, {eta} left")
        .expect("the template is well formed")
}
