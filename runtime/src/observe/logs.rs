//! Logs to standard error, as text or as JSON.

use super::traces;
use std::io::IsTerminal;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A log that was started; what traces are still to be sent are sent when this value is dropped.
pub struct Logs {
    _traces: Option<traces::Traces>,
}

/// Starts logging to standard error. `PI_LOG` selects what is logged, in the syntax of
/// `tracing_subscriber::EnvFilter`; what it says has no effect on traces.
pub fn start(default: &str, format: LogFormat, traces: Option<traces::Traces>) -> Logs {
    let filter = EnvFilter::try_from_env("PI_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let lines = match format {
        LogFormat::Text => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .with_filter(filter)
            .boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines);
    // A second subscriber, in a test that calls two programs, is refused: the first goes on.
    let _ = match &traces {
        Some(traces) => registry.with(traces.layer()).try_init(),
        None => registry.try_init(),
    };
    Logs { _traces: traces }
}
