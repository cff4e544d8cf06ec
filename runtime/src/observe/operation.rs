//! One operation of a client at the server: its span and its counts.

use super::metrics::Metrics;
use super::request::RequestId;
use crate::control::Request;
use crate::error::Error;
use crate::fingerprint::{Fingerprint, short};
use crate::party::Greeting;
use crate::stream::{Refusal, StreamTraffic};
use std::time::{Duration, Instant};
use tracing::Span;
use tracing::field::Empty;

/// The model of an operation on a connection that has chosen none.
const NO_MODEL: &str = "none";

/// An operation under way. It is counted as ended when this value is dropped, as one that panicked
/// if nothing else was said.
pub(crate) struct Operation<'a> {
    metrics: &'a Metrics,
    model: String,
    phase: &'static str,
    started: Instant,
    ended: Option<(&'static str, StreamTraffic)>,
    span: Span,
}

impl<'a> Operation<'a> {
    /// Begins an operation with its request, on this stream of a connection with this greeting.
    pub(crate) fn begin(
        metrics: &'a Metrics,
        client: Fingerprint,
        greeting: Option<&Greeting>,
        (request, stream): (&Request, u64),
    ) -> Operation<'a> {
        let phase = phase(request);
        let id = match (request, greeting) {
            (Request::Hello(hello), _) => RequestId::of_hello(&hello.nonce, stream).to_string(),
            (_, Some(greeting)) => RequestId::after(greeting, stream).to_string(),
            (_, None) => "none".into(),
        };
        metrics.begun(phase);
        Operation {
            metrics,
            model: NO_MODEL.into(),
            phase,
            started: Instant::now(),
            ended: None,
            // Of the highest level, so that whatever is logged at all names its request.
            span: tracing::error_span!(
                "operation",
                request = %id,
                client = %short(&client.0),
                operation = %phase,
                model = Empty,
            ),
        }
    }

    /// The span around the operation.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The model of its connection, once that has chosen one.
    pub(crate) fn of_model(&mut self, model: String) {
        self.span.record("model", tracing::field::display(&model));
        self.model = model;
    }

    /// Time since its begin.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends the operation with its result and what its stream has carried.
    pub(crate) fn end(mut self, result: &Result<(), Error>, traffic: StreamTraffic) {
        if let Err(error) = result {
            self.metrics.failed(error);
        }
        self.ended = Some((outcome(result), traffic));
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let (outcome, traffic) = self.ended.unwrap_or(("panic", StreamTraffic::default()));
        let took = self.started.elapsed();
        self.metrics
            .ended(self.phase, &self.model, outcome, took, traffic);
    }
}

fn phase(request: &Request) -> &'static str {
    match request {
        Request::Hello(_) => "hello",
        Request::Catalogue => "catalogue",
        Request::Artifact => "artifact",
        Request::Setup => "setup",
        Request::Prepare(_) => "prepare",
        Request::Infer => "infer",
        Request::Probe(_) => "probe",
    }
}

/// The outcome of an operation in one of a few words: `ok`, or the refusal that the client is told,
/// or what the client did.
fn outcome(result: &Result<(), Error>) -> &'static str {
    let refusal = match result {
        Ok(()) => return "ok",
        Err(Error::Refused { peer: "client", .. }) => return "client_gave_up",
        Err(Error::Lost(_)) => return "lost",
        Err(error) => error.refusal(),
    };
    match refusal {
        Refusal::Internal => "internal",
        Refusal::Busy => "busy",
        Refusal::Misbehaved => "misbehaved",
        Refusal::Incompatible => "incompatible",
        Refusal::NoSetup => "no_setup",
        Refusal::ModelChanged => "model_changed",
        Refusal::UnknownBundle => "unknown_bundle",
        Refusal::SpentBundle => "spent_bundle",
        Refusal::Storage => "storage",
        Refusal::ShuttingDown => "shutting_down",
        Refusal::Silent => "silent",
        Refusal::TooManyBundles => "too_many_bundles",
        Refusal::NotAllowed => "not_allowed",
        Refusal::AnswersUsed => "answers_used",
        Refusal::UnknownModel => "unknown_model",
        Refusal::WhichModel => "which_model",
        Refusal::ModelNotAllowed => "model_not_allowed",
        Refusal::AnswersToday(_) => "answers_today",
        Refusal::BytesToday(_) => "bytes_today",
        Refusal::ComeBack(_) => "come_back",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::MemoryLevels;

    #[test]
    fn outcomes_tell_the_client_s_doing_from_the_server_s() {
        let of = |peer, refusal| outcome(&Err(Error::Refused { peer, refusal }));
        assert_eq!(of("client", Refusal::Internal), "client_gave_up");
        assert_eq!(of("server", Refusal::ComeBack(7)), "come_back");
        assert_eq!(outcome(&Err(Error::Lost("it broke".into()))), "lost");
        assert_eq!(outcome(&Err(Error::Internal("a fault".into()))), "internal");
        assert_eq!(outcome(&Ok(())), "ok");
    }

    #[test]
    fn an_operation_that_never_ends_is_counted_as_a_panic() {
        let metrics = Metrics::new(&["m"]);
        let request = (&Request::Infer, 3);
        let client = Fingerprint([1; 32]);
        let mut operation = Operation::begin(&metrics, client, None, request);
        operation.of_model("m".into());
        drop(operation);
        let text = metrics.exposition(&MemoryLevels::default(), None);
        let labels = "phase=\"infer\",model=\"m\",outcome=\"panic\"";
        let count = format!("operation_duration_seconds_count{{{labels}}} 1");
        assert!(text.contains(&count), "{text}");
    }
}
