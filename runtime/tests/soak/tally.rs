//! What was done, what came of it, and what must never come of it.

use pi_protocol::session::BundleId;
use pi_runtime::error::Error;
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::store::StoreError;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Time after which an operation counts as hanging: each of its messages has the clients' patience.
pub const HANGS: Duration = Duration::from_secs(100);

/// The record of all clients.
pub struct Tally {
    started: Instant,
    operations: Mutex<BTreeMap<&'static str, Operation>>,
    under_way: Vec<Mutex<Option<(&'static str, Instant)>>>,
    answered: Mutex<HashSet<(Fingerprint, BundleId)>>,
    last_answer: Mutex<Instant>,
    answers: AtomicU64,
    pestered: AtomicU64,
    violations: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Operation {
    seconds: Vec<f32>,
    failures: BTreeMap<String, u64>,
}

/// One kind of operation, for the report.
#[derive(Serialize)]
pub struct Summary {
    pub operation: &'static str,
    pub done: usize,
    pub failed: u64,
    pub failures: BTreeMap<String, u64>,
    /// Milliseconds of those that were done.
    pub median: f32,
    pub p90: f32,
    pub p99: f32,
    pub longest: f32,
}

impl Tally {
    pub fn new(clients: usize) -> Tally {
        Tally {
            started: Instant::now(),
            operations: Mutex::default(),
            under_way: (0..clients).map(|_| Mutex::default()).collect(),
            answered: Mutex::default(),
            last_answer: Mutex::new(Instant::now()),
            answers: AtomicU64::new(0),
            pestered: AtomicU64::new(0),
            violations: Mutex::default(),
        }
    }

    /// Runs an operation of a client and records its time and its error.
    pub async fn time<T>(
        &self,
        client: usize,
        name: &'static str,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let started = Instant::now();
        *held(&self.under_way[client]) = Some((name, started));
        let result = operation.await;
        *held(&self.under_way[client]) = None;
        let mut operations = held(&self.operations);
        let record = operations.entry(name).or_default();
        match &result {
            Ok(_) => record.seconds.push(started.elapsed().as_secs_f32()),
            Err(error) => *record.failures.entry(kind_of(error)).or_default() += 1,
        }
        result
    }

    /// Records an answer; a bundle that had one before is a violation, and so is a wrong answer.
    pub fn answered(&self, client: Fingerprint, bundle: BundleId, right: bool) {
        self.answers.fetch_add(1, Ordering::SeqCst);
        *held(&self.last_answer) = Instant::now();
        let first = held(&self.answered).insert((client, bundle));
        self.require(first, || "a bundle was answered twice".into());
        self.require(right, || "a wrong answer".into());
    }

    /// The bundles that were answered.
    pub fn answered_bundles(&self) -> HashSet<(Fingerprint, BundleId)> {
        held(&self.answered).clone()
    }

    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::SeqCst)
    }

    pub fn pestered(&self, connected: bool) {
        let _ = self
            .pestered
            .fetch_add(u64::from(connected), Ordering::SeqCst);
    }

    pub fn strangers(&self) -> u64 {
        self.pestered.load(Ordering::SeqCst)
    }

    /// Records a violation unless the claim holds.
    pub fn require(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let what = format!("{:.1?}: {}", self.started.elapsed(), what());
            eprintln!("VIOLATION {what}");
            held(&self.violations).push(what);
        }
    }

    /// A fault may fail an operation, but only so.
    pub fn check_failure(&self, error: &Error) {
        let fault = matches!(
            error,
            Error::Unreachable { .. }
                | Error::NobodyListens(_)
                | Error::Lost(_)
                | Error::Silent { .. }
                | Error::ServerFull(_)
                | Error::Refused { .. }
        );
        // These refusals blame the client, or tell of bundles that are not what they should be.
        let kind = kind_of(error);
        let blame = ["Misbehaved", "Incompatible", "NoSetup", "Spent", "Unknown"];
        let blamed = blame.iter().any(|name| kind.contains(name));
        self.require(fault && !blamed, || format!("{kind}: {error}"));
    }

    /// Looks for operations that hang.
    pub fn watch(&self) {
        for (client, under_way) in self.under_way.iter().enumerate() {
            let mut under_way = held(under_way);
            if let Some((name, started)) = *under_way
                && started.elapsed() > HANGS
            {
                *under_way = None;
                self.require(false, || format!("{name} of client {client} hangs"));
            }
        }
    }

    /// Time since any client had an answer.
    pub fn without_answer(&self) -> Duration {
        held(&self.last_answer).elapsed()
    }

    pub fn violations(&self) -> Vec<String> {
        held(&self.violations).clone()
    }

    pub fn summaries(&self) -> Vec<Summary> {
        let operations = held(&self.operations);
        operations
            .iter()
            .map(|(name, of)| summary(name, of))
            .collect()
    }
}

fn summary(operation: &'static str, record: &Operation) -> Summary {
    let mut seconds = record.seconds.clone();
    seconds.sort_by(f32::total_cmp);
    let at = |quantile: f32| {
        let last = seconds.len().saturating_sub(1);
        let index = (last as f32 * quantile).round() as usize;
        seconds.get(index).map_or(0.0, |seconds| seconds * 1000.0)
    };
    Summary {
        operation,
        done: seconds.len(),
        failed: record.failures.values().sum(),
        failures: record.failures.clone(),
        median: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        longest: at(1.0),
    }
}

/// Name of an error's variant.
pub fn kind_of(error: &Error) -> String {
    match error {
        Error::Refused { refusal, .. } => format!("Refused({refusal:?})"),
        Error::Store(StoreError::File { .. }) => "Store(File)".into(),
        Error::Store(error) => format!("Store({error:?})"),
        error => {
            let name = format!("{error:?}");
            let end = name.find(|c: char| !c.is_alphanumeric());
            name[..end.unwrap_or(name.len())].into()
        }
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}
