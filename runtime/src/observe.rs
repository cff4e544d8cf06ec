//! The server as its operator sees it from outside: metrics, health, logs and traces.
//!
//! - [`Metrics`] counts what the server does; docs/observability.md names every metric.
//! - [`http`] answers `/metrics`, `/healthz` and `/readyz` on an address of its own.
//! - [`logs`] starts the log, as text or as JSON, and [`traces`] sends spans to a collector.
//! - [`RequestId`] names an operation in the logs of both parties.
//!
//! Only sizes, times, counts and identifiers are in any of them: nothing that follows from inputs,
//! weights or keys. Labels of metrics are of a bounded set: phases, outcomes, and the names of the
//! models served; a client's fingerprint is in logs and traces alone.

mod health;
pub mod http;
pub mod logs;
mod metrics;
mod operation;
mod process;
mod request;
pub mod traces;

pub use health::{Health, Observable, State};
pub use metrics::{AtRest, MemoryLevels, Metrics, OTHER, Part, Turned};
pub(crate) use operation::Operation;
pub use request::RequestId;
