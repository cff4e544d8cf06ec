//! `pi-client keep`: bundles are made ready in the background, so that an answer never waits for
//! them.
//!
//! A state belongs to one process at a time. This one holds it only while it looks or prepares, one
//! batch at a time, so that `pi-client infer` comes in between. Killing it is safe at any moment: a
//! bundle counts once both parties have stored it, and what is left of a batch is made anew.

use super::{ServerArguments, Setting, Waiting, address_to_call};
use crate::client::{Backoff, Client, Wait};
use crate::command::interrupts::Interrupts;
use crate::command::seconds;
use crate::control::MOST_BUNDLES;
use crate::error::Error;
use clap::Args;
use indicatif::ProgressBar;
use std::io::Write;
use std::time::Duration;

#[derive(Args)]
pub(super) struct KeepArguments {
    /// Number of bundles to keep ready.
    #[arg(
        short = 'n',
        long = "count",
        value_name = "K",
        value_parser = clap::value_parser!(u32).range(1..=MOST_BUNDLES as i64)
    )]
    count: u32,
    /// Most bundles to prepare in a minute.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    per_minute: u32,
    /// Seconds between two looks at how many are ready.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    every: Duration,
    #[command(flatten)]
    server: ServerArguments,
}

/// Time that a batch under way has to end after an interrupt.
const GRACE: Duration = Duration::from_secs(20);

/// Keeps bundles ready until interrupted, or until an error that does not pass by itself.
pub(super) async fn keep(setting: Setting, arguments: KeepArguments) -> Result<(), Error> {
    let listening = Interrupts::listen();
    let mut interrupts = listening.map_err(|error| Error::Internal(error.to_string()))?;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        interrupts.next().await;
        stop.send_replace(true);
        // A batch computes between two messages, and cannot be asked to end meanwhile.
        tokio::select! {
            () = interrupts.next() => {}
            () = tokio::time::sleep(GRACE) => {}
        }
        std::process::exit(0);
    });
    tokio::select! {
        ended = refill(setting, arguments) => ended,
        _ = stopped.wait_for(|stop| *stop) => {
            tell("stopped");
            Ok(())
        }
    }
}

async fn refill(setting: Setting, arguments: KeepArguments) -> Result<(), Error> {
    let forever = Wait::new(None);
    let mut backoff = Backoff::default();
    let mut waiting = Waiting::beside(&ProgressBar::hidden());
    let mut first = true;
    loop {
        let pause = match step(&setting, &arguments, first).await {
            Ok(0) if first => {
                tell(format_args!("{} are ready", arguments.count));
                arguments.every
            }
            Ok(0) => arguments.every,
            Ok(made) => {
                tell(format_args!("{made} prepared"));
                Duration::from_secs(60) * made / arguments.per_minute
            }
            Err(error) => {
                let (error, pause) = forever.pause(&mut backoff, error)?;
                waiting.say(&error, pause);
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        first = false;
        backoff.reset();
        waiting = Waiting::beside(&ProgressBar::hidden());
        tokio::time::sleep(pause).await;
    }
}

/// Prepares one batch if bundles are missing, and returns its size. The first time the server is
/// asked in any case, so that what is wrong with it is said at once.
async fn step(setting: &Setting, arguments: &KeepArguments, first: bool) -> Result<u32, Error> {
    let client = setting.open(None)?;
    let server = &arguments.server;
    let known = client.server(server.address().as_deref(), server.trust.fingerprint);
    if let (false, Ok((fingerprint, record))) = (first, &known)
        && let Some(model) = record.model_named(server.model_name())
        && client.ready_for(*fingerprint, &model)? >= arguments.count as usize
    {
        return Ok(0);
    }
    let address = address_to_call(&client, server)?;
    prepare_batch(&client, &address, arguments).await
}

async fn prepare_batch(
    client: &Client,
    address: &str,
    arguments: &KeepArguments,
) -> Result<u32, Error> {
    let (trust, choice) = (arguments.server.trust(), arguments.server.choice());
    let mut connection = client.connect_to(address, &trust, &choice).await?;
    let ready = connection.usable().await?;
    let missing = (arguments.count as usize).saturating_sub(ready);
    let mut made = 0;
    if missing > 0 {
        let (model, _) = connection.model().await?;
        let (setup, _) = connection.setup().await?;
        // The first batch is the largest that the model has a plan for.
        let size = model.batches(missing)[0] as u32;
        let prepared = connection.prepare(&model, &setup, size, |_| made += 1);
        let prepared = prepared.await;
        if let Err(error) = prepared {
            connection.close().await;
            return match made {
                0 => Err(error),
                // The rest is made next time, which may fail for the same reason.
                made => Ok(made),
            };
        }
    }
    connection.close().await;
    Ok(made)
}

/// Tells on standard output what was done. Nobody may be there to read it, which is no reason to
/// end.
fn tell(text: impl std::fmt::Display) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
