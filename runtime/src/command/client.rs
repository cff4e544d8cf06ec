//! `pi-client`: prepares bundles with a server and classifies images, signals and rows of tables.

use super::{megabytes, report, runtime, seconds, start_logging, state_directory};
use crate::client::{Client, Connection, Patience, Prediction, Spent, TrustOptions, class_name};
use crate::control::MOST_BUNDLES;
use crate::error::Error;
use crate::fingerprint::{Fingerprint, hex, short};
use crate::input_file::InputFile;
use crate::machine;
use crate::store::BundleState;
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use pi_ir::Circuit;
use pi_ir::interpret::quantise;
use pi_ir::value_file::Column;
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
#[command(name = "pi-client", version)]
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
}

#[derive(Subcommand)]
enum Command {
    /// Prepare bundles for future inputs. This is the slow part, done in advance.
    Prepare {
        /// Address of the server; may be left out while only one is known.
        #[arg(long, value_name = "HOST:PORT")]
        server: Option<String>,
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
        trust: TrustArguments,
    },
    /// Classify an image, a signal or a row of a table. This spends one bundle.
    Infer {
        /// The image, a PNG, JPEG or WebP file; or, as the model reads it, a .npy file of an array,
        /// or a .csv file with one example a row.
        file: PathBuf,
        /// The example to classify, from 0, if the file has several.
        #[arg(long, value_name = "N")]
        row: Option<usize>,
        /// The column of a .csv file that has labels, which are left out: its name in the first
        /// line, or its place, from 0 or, negative, from the end.
        #[arg(long, value_name = "COLUMN", allow_hyphen_values = true)]
        label_column: Option<Column>,
        /// Address of the server; may be left out while only one is known.
        #[arg(long, value_name = "HOST:PORT")]
        server: Option<String>,
        /// Print the answer as one JSON object.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        trust: TrustArguments,
    },
    /// Show the bundles stored for each server, without connecting to any.
    Status {
        /// Print the status as one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
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
    start_logging("warn");
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

/// Exit code of an inference without an answer, because the input is out of the network's range.
pub const OUT_OF_RANGE: u8 = 3;

/// What to tell who asked about an input that is out of range.
pub(super) const OUT_OF_RANGE_ADVICE: &str = "\
out of the network's range: no answer
  A value inside the network left the bounds that its maker calibrated, so an answer would mean
  nothing. This input is unlike those that the network was made for; the bundle is spent. Ask about
  another input, or have the model compiled with data like this one, or with more --head-room.
";

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    pi_core::Backend::chosen()?;
    let state = state_directory(arguments.state, "PI_CLIENT_STATE", "client")?;
    let patience = Patience {
        connect: arguments.connect_timeout,
        silence: arguments.timeout,
    };
    let client = Client::open(&state, patience)?;
    let mut client = client.on_busy(|wait| {
        let seconds = wait.as_secs();
        eprintln!("the server has no room for this now; trying again in {seconds} s");
    });
    if arguments.unbound {
        client = client.unbound();
    }
    let runtime = runtime()?;
    match arguments.command {
        Command::Prepare {
            server,
            count,
            trust,
        } => {
            let server = server.as_deref();
            runtime.block_on(prepare(&client, server, count, &trust.into()))?;
        }
        Command::Infer {
            file,
            row,
            label_column,
            server,
            json,
            trust,
        } => {
            // Whatever can fail without the server is tried before the server is called.
            let file = InputFile::open(&file, label_column.as_ref()).map_err(Error::from)?;
            let server = server.as_deref();
            let trust = trust.into();
            let answered = infer(&client, &file, row, server, json, &trust);
            if !runtime.block_on(answered)? {
                return Ok(ExitCode::from(OUT_OF_RANGE));
            }
        }
        Command::Status { json } => status(&client, &state, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn prepare(
    client: &Client,
    server: Option<&str>,
    count: u32,
    trust: &TrustOptions,
) -> anyhow::Result<()> {
    let address = match server {
        Some(address) => address.to_owned(),
        None => client.server(None)?.1.address().to_owned(),
    };
    let mut connection = client.connect(&address, trust).await?;
    if trust.first_use {
        eprintln!(
            "trusting {address} with fingerprint {}",
            connection.server()
        );
    }
    let result = prepare_with(&mut connection, count).await;
    connection.close().await;
    result
}

async fn prepare_with(connection: &mut Connection<'_>, count: u32) -> anyhow::Result<()> {
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
        eprintln!(
            "preparing needs about {} of memory at once, and {} are free: close other programs, or \
             prepare fewer bundles at a time",
            megabytes(needed),
            megabytes(available)
        );
    }
    let bar = ProgressBar::new(count.into()).with_style(bar_style());
    bar.enable_steady_tick(Duration::from_millis(200));
    let spent = connection
        .prepare(&model, &setup, count, |_| bar.inc(1))
        .await;
    bar.finish_and_clear();
    println!("bundles   {}", line(&spent?));
    println!(
        "{count} prepared for model {}",
        short(&connection.model_digest())
    );
    Ok(())
}

/// Bytes that the largest batch of these takes.
fn most_memory(model: &ClientModel, count: u32) -> u64 {
    let sizes = model.batches(count as usize).into_iter();
    // What is wrong with a plan is reported when it is used.
    let bytes = sizes.filter_map(|size| model.offline_memory(size).ok());
    bytes.max().unwrap_or(0)
}

/// Returns whether there is an answer.
async fn infer(
    client: &Client,
    file: &InputFile,
    row: Option<usize>,
    server: Option<&str>,
    json: bool,
    trust: &TrustOptions,
) -> anyhow::Result<bool> {
    let (fingerprint, record) = client.server(server)?;
    let address = server.unwrap_or(record.address());
    client.check_ready(fingerprint, address)?;
    let mut connection = client.connect(address, trust).await?;
    let (id, useless) = connection.next_bundle().await?;
    if useless > 0 {
        eprintln!("note: the server lost its halves of {useless} bundles; they were given up");
    }
    let (model, _) = connection.model().await?;
    let circuit = &model.artifact().circuit;
    let prepared = file.for_model(circuit, row).map_err(Error::from)?;
    for notice in &prepared.notices {
        eprintln!("note: {notice}");
    }
    let input = quantise(circuit, &prepared.input).map_err(Error::from)?;
    let waiting = spinner("classifying");
    let answer = connection.infer(&model, &id, &input, false).await;
    waiting.finish_and_clear();
    let answer = answer?;
    let mut out = std::io::stdout();
    match json {
        true => writeln!(out, "{}", answer_json(circuit, &answer))?,
        false => write!(out, "{}", answer_text(circuit, &answer))?,
    }
    connection.close().await;
    Ok(answer.class().is_some())
}

fn answer_json(circuit: &Circuit, answer: &Prediction) -> serde_json::Value {
    let mut json = json!({
        "class": answer.class().map(|class| class_name(circuit, class)),
        "class_index": answer.class(),
        "out_of_range": answer.class().is_none(),
        "bundle": hex(&answer.bundle.0),
        "online": {
            "wall_s": answer.online.wall.as_secs_f64(),
            "bytes_up": answer.online.traffic.bytes_sent,
            "bytes_down": answer.online.traffic.bytes_received,
            "messages": messages(&answer.online),
        },
    });
    if let Some(logits) = answer.answer.logits() {
        json["logits"] = json!(logits);
        json["output_scale"] = json!(f64::from(answer.output_frac_bits).exp2());
    }
    json
}

/// The answer as text: the class, the three largest logits if they are revealed, and the cost; or
/// that there is none.
fn answer_text(circuit: &Circuit, answer: &Prediction) -> String {
    let logits = answer.answer.logits().unwrap_or(&[]);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by_key(|&class| std::cmp::Reverse(logits[class]));
    let mut text = match answer.class() {
        Some(class) => format!("{}\n", class_name(circuit, class)),
        None => OUT_OF_RANGE_ADVICE.to_owned(),
    };
    for &class in order.iter().take(3) {
        let logit = logits[class] as f64 / f64::from(answer.output_frac_bits).exp2();
        text.push_str(&format!("  {logit:9.3}  {}\n", class_name(circuit, class)));
    }
    text.push_str(&format!("  online {}\n", line(&answer.online)));
    text
}

fn status(client: &Client, state: &Path, json: bool) -> anyhow::Result<()> {
    let mut servers = Vec::new();
    let mut text = format!(
        "state      {}\nidentity   {}\n",
        state.display(),
        client.fingerprint()
    );
    for (server, record) in client.servers()? {
        let bundles = client.bundles(server)?;
        let count = |wanted: BundleState, current: bool| {
            let matching = bundles
                .iter()
                .filter(|b| b.state == wanted && (b.model == record.model) == current);
            matching.count()
        };
        let (ready, stale) = (
            count(BundleState::Ready, true),
            count(BundleState::Ready, false),
        );
        let spent = count(BundleState::Spent, true) + count(BundleState::Spent, false);
        let name = client
            .circuit(&record.model)
            .map_or_else(|_| "not fetched".into(), |circuit| circuit.name.clone());
        text.push_str(&format!(
            "server     {}\n  \
             fingerprint {server}\n  \
             model       {name} ({})\n  \
             bundles     {ready} ready, {spent} spent",
            record.addresses.join(", "),
            short(&record.model)
        ));
        if stale > 0 {
            text.push_str(&format!(", {stale} for other models"));
        }
        text.push('\n');
        let left = client.answers_left(server)?;
        if let Some(left) = left {
            text.push_str(&format!(
                "  answers     {left} left, when the server last said\n"
            ));
        }
        servers.push(json!({
            "addresses": record.addresses,
            "fingerprint": server.to_string(),
            "model": hex(&record.model),
            "model_name": name,
            "ready": ready,
            "ready_for_other_models": stale,
            "spent": spent,
            "answers_left": left,
        }));
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
    ProgressStyle::with_template("preparing {bar:30} {pos}/{len}, {elapsed} gone, {eta} left")
        .expect("the template is well formed")
}
