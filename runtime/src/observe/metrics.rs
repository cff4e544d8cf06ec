//! Counters, gauges and histograms, in the text format of OpenMetrics 1.0.
//!
//! Every metric here has its row in docs/observability.md, and a test compares the two.

use super::process;
use crate::error::Error;
use crate::store::StoreError;
use crate::stream::StreamTraffic;
use pi_protocol::header::PROTOCOL_VERSION;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The counters of a server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    made: Family<OfModel, Counter>,
    spent: Family<OfModel, Counter>,
    given_up: Counter,
    at_rest: Family<OfModel, Gauge>,
    durations: Family<OfOutcome, Histogram, fn() -> Histogram>,
    parts: Family<OfPart, Histogram, fn() -> Histogram>,
    under_way: Family<OfPhase, Gauge>,
    received: Family<OfTraffic, Counter>,
    sent: Family<OfTraffic, Counter>,
    connections: Gauge,
    accepted: Counter,
    web_connections: Gauge,
    web_accepted: Counter,
    turned_away: Family<OfReason, Counter>,
    sent_away: Counter,
    waiting: Gauge,
    memory_budget: Gauge,
    memory_exchanges: Gauge,
    memory_left: Gauge,
    store_up: Gauge,
    store_errors: Family<OfKind, Counter>,
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTraffic {
    phase: &'static str,
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    phase: &'static str,
    model: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPart {
    part: &'static str,
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

/// A part of an inference at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reading the bundle, unless it was read ahead.
    Read,
    /// Marking the bundle as spent, durably, which goes on beside reading and computing.
    Mark,
    /// The session's own work.
    Compute,
    /// Waiting for the client's messages, for the line, and for the mark.
    Wait,
}

impl Part {
    const ALL: [Part; 4] = [Part::Read, Part::Mark, Part::Compute, Part::Wait];

    fn label(self) -> &'static str {
        match self {
            Part::Read => "read",
            Part::Mark => "mark",
            Part::Compute => "compute",
            Part::Wait => "wait",
        }
    }
}

/// A reason for which a connection came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// As many clients are connected as may be.
    Full,
    /// The handshake failed, or took too long.
    Handshake,
    /// The client showed no certificate.
    NoCertificate,
    /// The client is not on the list.
    NotAllowed,
    /// A browser opened no session that may be, or a page from elsewhere asked for it.
    Origin,
    /// A browser did not prove who it is.
    Identification,
}

impl Turned {
    const ALL: [Turned; 6] = [
        Turned::Full,
        Turned::Handshake,
        Turned::NoCertificate,
        Turned::NotAllowed,
        Turned::Origin,
        Turned::Identification,
    ];

    fn label(self) -> &'static str {
        match self {
            Turned::Full => "full",
            Turned::Handshake => "handshake",
            Turned::NoCertificate => "no_certificate",
            Turned::NotAllowed => "not_allowed",
            Turned::Origin => "origin",
            Turned::Identification => "identification",
        }
    }
}

/// Bundles at rest by the name of their model; those that no model served can use are under
/// [`OTHER`].
pub type AtRest = std::collections::BTreeMap<String, u64>;

/// The name of all models that are not served.
pub const OTHER: &str = "other";

/// What is taken of the memory that clients can make a server use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryLevels {
    /// Bytes in all.
    pub budget: u64,
    /// Bytes of them for exchanges; the rest is set aside.
    pub exchanges: u64,
    /// Bytes for exchanges that are left.
    pub left: u64,
    /// Clients that were sent away and are expected back.
    pub waiting: usize,
    /// Exchanges that were sent away for want of memory.
    pub sent_away: u64,
}

/// The kinds of errors of a store that are counted: those that an operator must know of.
const STORE_KINDS: [&str; 8] = [
    "damaged",
    "database",
    "disk_full",
    "file",
    "format",
    "key",
    "locked",
    "objects",
];

/// 1 ms to nine minutes.
fn operation_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 20))
}

/// 50 us to seven seconds.
fn part_buckets() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 2.0, 18))
}

impl Metrics {
    /// All counters at zero, with the series of these models.
    pub fn new(models: &[&str]) -> Metrics {
        let metrics = Metrics::registered();
        for &model in models {
            let of_model = OfModel {
                model: model.into(),
            };
            drop(metrics.made.get_or_create(&of_model));
            drop(metrics.spent.get_or_create(&of_model));
            for part in Part::ALL {
                drop(metrics.parts.get_or_create(&of_part(part, model)));
            }
        }
        for reason in Turned::ALL.map(Turned::label) {
            drop(metrics.turned_away.get_or_create(&OfReason { reason }));
        }
        for kind in STORE_KINDS {
            drop(metrics.store_errors.get_or_create(&OfKind { kind }));
        }
        metrics
    }

    fn registered() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::default(),
            made: Family::default(),
            spent: Family::default(),
            given_up: Counter::default(),
            at_rest: Family::default(),
            durations: Family::new_with_constructor(operation_buckets),
            parts: Family::new_with_constructor(part_buckets),
            under_way: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            connections: Gauge::default(),
            accepted: Counter::default(),
            web_connections: Gauge::default(),
            web_accepted: Counter::default(),
            turned_away: Family::default(),
            sent_away: Counter::default(),
            waiting: Gauge::default(),
            memory_budget: Gauge::default(),
            memory_exchanges: Gauge::default(),
            memory_left: Gauge::default(),
            store_up: Gauge::default(),
            store_errors: Family::default(),
            cpu: Counter::default(),
            resident: Gauge::default(),
        };
        let mut all = Registry::default();
        let ours = all.sub_registry_with_prefix("pianissimo");
        metrics.register_bundles(ours);
        metrics.register_operations(ours);
        metrics.register_connections(ours);
        metrics.register_resources(ours);
        let backend = pi_core::Backend::chosen().map_or("none".into(), |b| format!("{b:?}"));
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("protocol", PROTOCOL_VERSION.to_string()),
            ("backend", backend.to_lowercase()),
        ]);
        ours.register(
            "build",
            "The program, and the version of its protocol",
            build,
        );
        // Under the names that they have in every program's metrics.
        metrics.register_process(all.sub_registry_with_prefix("process"));
        metrics.registry = all;
        metrics
    }

    fn register_bundles(&self, registry: &mut Registry) {
        registry.register("bundles_made", "Bundles made and stored", self.made.clone());
        registry.register(
            "bundles_spent",
            "Bundles marked as spent on an answer",
            self.spent.clone(),
        );
        registry.register(
            "bundles_given_up",
            "Bundles given up because their other halves are gone",
            self.given_up.clone(),
        );
        registry.register(
            "bundles_at_rest",
            "Bundles stored and not spent, counted when asked",
            self.at_rest.clone(),
        );
    }

    fn register_operations(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "operation_duration",
            "Time from a request to its answer or refusal",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register_with_unit(
            "infer_part_duration",
            "Time of the parts of an inference",
            Unit::Seconds,
            self.parts.clone(),
        );
        registry.register(
            "operations_under_way",
            "Operations that have begun and not ended",
            self.under_way.clone(),
        );
        registry.register_with_unit(
            "received",
            "Messages from clients",
            Unit::Bytes,
            self.received.clone(),
        );
        registry.register_with_unit(
            "sent",
            "Messages to clients",
            Unit::Bytes,
            self.sent.clone(),
        );
    }

    fn register_connections(&self, registry: &mut Registry) {
        registry.register("connections", "Clients connected", self.connections.clone());
        registry.register(
            "connections_accepted",
            "Connections of clients that are served",
            self.accepted.clone(),
        );
        registry.register(
            "web_connections",
            "Browsers connected, of all clients",
            self.web_connections.clone(),
        );
        registry.register(
            "web_connections_accepted",
            "Connections of browsers that are served, of all",
            self.web_accepted.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections that came to nothing",
            self.turned_away.clone(),
        );
        registry.register(
            "exchanges_sent_away",
            "Exchanges told to come back for want of memory",
            self.sent_away.clone(),
        );
        registry.register(
            "exchanges_waiting",
            "Clients that were sent away and are expected back",
            self.waiting.clone(),
        );
    }

    fn register_resources(&self, registry: &mut Registry) {
        for (name, help, gauge) in [
            (
                "memory_budget",
                "Memory that clients can make the server use",
                &self.memory_budget,
            ),
            (
                "memory_exchanges",
                "Part of the budget for offline exchanges",
                &self.memory_exchanges,
            ),
            (
                "memory_left",
                "What offline exchanges have left",
                &self.memory_left,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
        registry.register(
            "store_up",
            "1 if the store can be read and written, else 0",
            self.store_up.clone(),
        );
        registry.register(
            "store_errors",
            "Errors of the store",
            self.store_errors.clone(),
        );
    }

    fn register_process(&self, registry: &mut Registry) {
        let started = Gauge::<f64, AtomicU64>::default();
        started.set(process::unix_seconds());
        registry.register_with_unit(
            "cpu",
            "User and system CPU time",
            Unit::Seconds,
            self.cpu.clone(),
        );
        registry.register_with_unit(
            "resident_memory",
            "Resident memory",
            Unit::Bytes,
            self.resident.clone(),
        );
        registry.register_with_unit(
            "start_time",
            "Start of the server since 1970",
            Unit::Seconds,
            started,
        );
    }

    /// A bundle was made and stored.
    pub fn bundle_made(&self, model: &str) {
        self.made.get_or_create(&of_model(model)).inc();
    }

    /// A bundle was marked as spent on an answer.
    pub fn bundle_spent(&self, model: &str) {
        self.spent.get_or_create(&of_model(model)).inc();
    }

    /// Bundles were given up, of whatever models.
    pub fn bundles_given_up(&self, count: u64) {
        self.given_up.inc_by(count);
    }

    /// Times a part of an inference; see also [`Metrics::part_took`].
    pub fn time<T>(&self, part: Part, model: &str, run: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = run();
        self.part_took(part, model, started.elapsed());
        result
    }

    /// A part of an inference took this long.
    pub fn part_took(&self, part: Part, model: &str, took: Duration) {
        let histogram = self.parts.get_or_create(&of_part(part, model));
        histogram.observe(took.as_secs_f64());
    }

    /// An operation has begun.
    pub fn begun(&self, phase: &'static str) {
        self.under_way.get_or_create(&OfPhase { phase }).inc();
    }

    /// An operation has ended; `outcome` is one of a few words.
    pub fn ended(
        &self,
        phase: &'static str,
        model: &str,
        outcome: &'static str,
        took: Duration,
        traffic: StreamTraffic,
    ) {
        self.under_way.get_or_create(&OfPhase { phase }).dec();
        let labels = OfOutcome {
            phase,
            model: model.into(),
            outcome,
        };
        let histogram = self.durations.get_or_create(&labels);
        histogram.observe(took.as_secs_f64());
        let labels = OfTraffic {
            phase,
            model: model.into(),
        };
        let received = self.received.get_or_create(&labels);
        received.inc_by(traffic.bytes_received);
        self.sent.get_or_create(&labels).inc_by(traffic.bytes_sent);
    }

    /// A client is connected, until the value is dropped; `web` if it is a browser.
    pub fn connected(&self, web: bool) -> Connected<'_> {
        self.accepted.inc();
        self.connections.inc();
        if web {
            self.web_accepted.inc();
            self.web_connections.inc();
        }
        Connected {
            all: &self.connections,
            web: web.then_some(&self.web_connections),
        }
    }

    /// A connection came to nothing.
    pub fn turned(&self, reason: Turned) {
        let reason = reason.label();
        self.turned_away.get_or_create(&OfReason { reason }).inc();
    }

    /// An operation or a request for the state ended with this error: counts those of the store.
    pub fn failed(&self, error: &Error) {
        if let Error::Store(error) = error {
            self.store_failed(error);
        }
    }

    /// The store gave this error. A refusal to use a bundle is none.
    pub fn store_failed(&self, error: &StoreError) {
        let kind = match error {
            StoreError::Damaged { .. } => "damaged",
            StoreError::DiskFull { .. } => "disk_full",
            StoreError::File { .. } => "file",
            StoreError::Format { .. } => "format",
            StoreError::Locked(_) => "locked",
            StoreError::Database { .. } => "database",
            StoreError::Objects { .. } => "objects",
            StoreError::Key { .. } => "key",
            StoreError::Spent(_)
            | StoreError::Unknown(_)
            | StoreError::AnswersUsed(_)
            | StoreError::AnswersUsedToday(_)
            | StoreError::Exists(_) => return,
        };
        self.store_errors.get_or_create(&OfKind { kind }).inc();
    }

    /// The store can be used, or not.
    pub fn store_is(&self, up: bool) {
        self.store_up.set(i64::from(up));
    }

    /// All metrics as text, with what is known only when it is asked for: the memory, and the
    /// bundles at rest, `None` if they cannot be counted.
    pub fn exposition(&self, memory: &MemoryLevels, at_rest: Option<&AtRest>) -> String {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.memory_budget.set(gauge(memory.budget));
        self.memory_exchanges.set(gauge(memory.exchanges));
        self.memory_left.set(gauge(memory.left));
        self.waiting.set(gauge(memory.waiting as u64));
        self.sent_away
            .inner()
            .store(memory.sent_away, Ordering::Relaxed);
        // No number rather than an old one.
        self.at_rest.clear();
        for (model, count) in at_rest.into_iter().flatten() {
            self.at_rest
                .get_or_create(&of_model(model))
                .set(gauge(*count));
        }
        let cpu = process::cpu_seconds().to_bits();
        self.cpu.inner().store(cpu, Ordering::Relaxed);
        self.resident
            .set(gauge(process::resident_bytes().unwrap_or(0)));
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
}

/// A connection that is counted.
pub struct Connected<'a> {
    all: &'a Gauge,
    web: Option<&'a Gauge>,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.all.dec();
        if let Some(web) = self.web {
            web.dec();
        }
    }
}

fn of_model(model: &str) -> OfModel {
    OfModel {
        model: model.into(),
    }
}

fn of_part(part: Part, model: &str) -> OfPart {
    OfPart {
        part: part.label(),
        model: model.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Names and types of all metrics, as the text announces them.
    fn names(text: &str) -> BTreeSet<(&str, &str)> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        lines.filter_map(|line| line.split_once(' ')).collect()
    }

    /// The rows of the page's tables that begin with the name of a metric and its type.
    fn documented(page: &str) -> BTreeSet<(&str, &str)> {
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows = rows.filter_map(|row| {
            let (name, rest) = row.split_once("` | ")?;
            let (kind, _) = rest.split_once(" |")?;
            let kinds = ["counter", "gauge", "histogram", "info"];
            let name = match kind {
                "counter" => name.strip_suffix("_total")?,
                "info" => name.strip_suffix("_info")?,
                _ => name,
            };
            kinds.contains(&kind).then_some((name, kind))
        });
        rows.collect()
    }

    #[test]
    fn the_page_names_the_metrics_that_there_are() {
        let page = include_str!("../../../docs/observability.md");
        let metrics = Metrics::new(&["m"]);
        // A family without a series is not shown.
        metrics.begun("infer");
        metrics.ended("infer", "m", "ok", Duration::ZERO, StreamTraffic::default());
        let at_rest = AtRest::from([("m".into(), 1)]);
        let text = metrics.exposition(&MemoryLevels::default(), Some(&at_rest));
        assert_eq!(names(&text), documented(page));
    }

    #[test]
    fn what_is_counted_is_shown_and_the_text_ends() {
        let metrics = Metrics::new(&["m"]);
        metrics.bundle_made("m");
        metrics.bundles_given_up(2);
        metrics.begun("infer");
        let traffic = StreamTraffic {
            bytes_sent: 7,
            bytes_received: 8,
            ..StreamTraffic::default()
        };
        let took = Duration::from_millis(3);
        metrics.ended("infer", "m", "ok", took, traffic);
        let connected = metrics.connected(true);
        metrics.store_is(true);
        let at_rest = AtRest::from([("m".into(), 4), (OTHER.into(), 5)]);
        let text = metrics.exposition(&MemoryLevels::default(), Some(&at_rest));
        for line in [
            "pianissimo_bundles_made_total{model=\"m\"} 1",
            "pianissimo_bundles_spent_total{model=\"m\"} 0",
            "pianissimo_bundles_given_up_total 2",
            "pianissimo_bundles_at_rest{model=\"m\"} 4",
            "pianissimo_bundles_at_rest{model=\"other\"} 5",
            "pianissimo_received_bytes_total{phase=\"infer\",model=\"m\"} 8",
            "pianissimo_sent_bytes_total{phase=\"infer\",model=\"m\"} 7",
            "pianissimo_operations_under_way{phase=\"infer\"} 0",
            "pianissimo_connections 1",
            "pianissimo_web_connections 1",
            "pianissimo_web_connections_accepted_total 1",
            "pianissimo_store_up 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let labels = "phase=\"infer\",model=\"m\",outcome=\"ok\"";
        let bucket = format!("operation_duration_seconds_bucket{{le=\"0.004\",{labels}}} 1");
        assert!(text.contains(&bucket), "{text}");
        assert!(text.ends_with("# EOF\n"));
        drop(connected);
        let text = metrics.exposition(&MemoryLevels::default(), None);
        assert!(text.contains("\npianissimo_connections 0\n"), "{text}");
        assert!(text.contains("\npianissimo_web_connections 0\n"), "{text}");
        assert!(!text.contains("bundles_at_rest{"), "{text}");
    }
}
