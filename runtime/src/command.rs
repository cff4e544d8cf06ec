//! The three programs as functions, so that one program can run another's entry point.

pub mod child;
pub mod client;
pub mod demo;
pub mod exit;
mod interrupts;
mod log_flags;
pub mod server;

use crate::client::Client;
use crate::error::Error;
use crate::observe::RequestId;
use pi_manuals as manuals;
use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Prints an error, its causes and what to do about it.
fn report(error: &anyhow::Error) -> ExitCode {
    let request = error.downcast_ref::<InRequest>();
    let mut chain = error.chain().skip(usize::from(request.is_some()));
    let mut text = String::new();
    if let Some(error) = chain.next() {
        text.push_str(&format!("error: {error}\n"));
    }
    for cause in chain {
        text.push_str(&format!("  because: {cause}\n"));
    }
    if let Some(InRequest(request)) = request {
        text.push_str(&format!("  in the server's log: request {request}\n"));
    }
    if let Some(remedy) = error.downcast_ref::<Error>().and_then(Error::remedy) {
        text.push_str(&format!("  what to do: {remedy}\n"));
    }
    // A closed standard error leaves the exit code to speak.
    let _ = std::io::stderr().write_all(text.as_bytes());
    let code = error.downcast_ref::<Error>().map(Error::exit_code);
    ExitCode::from(code.unwrap_or(exit::FAILURE))
}

/// The operation in which an error came up, as context of the error: whoever runs the server finds
/// its lines by it.
#[derive(Debug)]
struct InRequest(RequestId);

impl std::fmt::Display for InRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "in request {}", self.0)
    }
}

impl InRequest {
    /// The error with the operation of this client that has just failed, if one has.
    fn of(client: &Client, error: impl Into<anyhow::Error>) -> anyhow::Error {
        let error = error.into();
        // Of a store that fails here, the server knows nothing.
        let local = matches!(error.downcast_ref(), Some(Error::Store(_)));
        match client.failed_request().filter(|_| !local) {
            Some(request) => error.context(InRequest(request)),
            None => error,
        }
    }
}

/// Tells the user something on standard error. Nobody may be there to read it, which is no reason
/// to end.
fn note(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The state directory: an argument, an environment variable, or the user's data directory, in
/// which each program has a directory of its own `name`.
///
/// # Errors
/// [`Error::NoStateDirectory`] if the account has no data directory, and nothing else is named.
pub fn state_directory(
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
