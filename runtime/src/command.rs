//! The three programs as functions, so that one program can run another's entry point.

pub mod child;
pub mod client;
pub mod demo;
pub mod exit;
mod interrupts;
pub mod server;

use crate::error::Error;
use pi_manuals as manuals;
use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Prints an error, its causes and what to do about it.
fn report(error: &anyhow::Error) -> ExitCode {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  because: {cause}\n"));
    }
    if let Some(remedy) = error.downcast_ref::<Error>().and_then(Error::remedy) {
        text.push_str(&format!("  what to do: {remedy}\n"));
    }
    // A closed standard error leaves the exit code to speak.
    let _ = std::io::stderr().write_all(text.as_bytes());
    let code = error.downcast_ref::<Error>().map(Error::exit_code);
    ExitCode::from(code.unwrap_or(exit::FAILURE))
}

/// Tells the user something on standard error. Nobody may be there to read it, which is no reason
/// to end.
fn note(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Starts logging to standard error. `PI_LOG` selects what is logged, in the syntax of
/// `tracing_subscriber::EnvFilter`.
fn start_logging(default: &str) {
    let filter = EnvFilter::try_from_env("PI_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // A second subscriber, in a test that calls two programs, is refused: the first goes on.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// The state directory: an argument, an environment variable, or the user's data directory.
fn state_directory(
    argument: Option<PathBuf>,
    variable: &str,
    name: &str,
) -> Result<PathBuf, Error> {
    let from_environment = || {
        std::env::var_os(variable)
            .filter(|value| value.as_os_str() != OsStr::new(""))
            .map(PathBuf::from)
    };
    let from_account = || {
        directories::ProjectDirs::from("", "", "pianissimo")
            .map(|account| account.data_local_dir().join(name))
    };
    argument
        .or_else(from_environment)
        .or_else(from_account)
        .ok_or(Error::NoStateDirectory)
}

/// A positive number of seconds, as a command-line argument.
fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number"))?;
    if !(0.001..=1e6).contains(&number) {
        return Err("must be between 0.001 and 1000000 seconds".into());
    }
    Ok(Duration::from_secs_f64(number))
}

/// Bytes, in a unit that people read easily.
fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.2} MB", bytes as f64 / 1e6),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}
