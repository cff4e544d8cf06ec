//! The result of a soak, as a table and as JSON.

use crate::memory::Fit;
use crate::relay::Counts;
use crate::tally::Summary;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Growth of the server's memory that is borne after the warm-up, as a share of its median.
const GROWTH: f64 = 0.05;

#[derive(Serialize)]
pub struct Report {
    pub seed: u64,
    pub minutes: f64,
    pub clients: usize,
    pub answers: u64,
    /// Answers after the last fault, from what was left.
    pub answers_at_the_end: usize,
    pub operations: Vec<Summary>,
    pub faults: BTreeMap<String, u64>,
    pub datagrams: Datagrams,
    /// Connections of strangers that sent garbage.
    pub strangers: u64,
    /// What the server logged as warning or error, by kind.
    pub warnings: BTreeMap<String, u64>,
    /// Resident memory of the server, in mebibytes.
    pub memory: Option<Fit>,
    /// Seconds since the last start of the server, and mebibytes.
    pub memory_samples: Vec<(f64, f64)>,
    pub open_files: Option<usize>,
    pub census: Census,
    pub violations: Vec<String>,
}

/// Bundles by state in the stores of both parties.
#[derive(Serialize)]
pub struct Census {
    pub ready_at_server: usize,
    pub spent_at_server: usize,
    pub ready_at_clients: usize,
    pub spent_at_clients: usize,
    pub answered: usize,
}

#[derive(Serialize)]
pub struct Datagrams {
    passed: u64,
    lost: u64,
    doubled: u64,
    delayed: u64,
    swallowed: u64,
}

impl Datagrams {
    pub fn of(counts: &Counts) -> Datagrams {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Datagrams {
            passed: number(&counts.passed),
            lost: number(&counts.lost),
            doubled: number(&counts.doubled),
            delayed: number(&counts.delayed),
            swallowed: number(&counts.swallowed),
        }
    }
}

impl Report {
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap() + "\n"
    }

    /// Ensures that nothing came of it that must not.
    pub fn check(&self) {
        assert!(self.violations.is_empty(), "{:#?}", self.violations);
        let panicked = self.warnings.keys().any(|line| line.contains("panic"));
        assert!(!panicked, "{:#?}", self.warnings);
        assert!(self.answers > 0 && self.answers_at_the_end > 0);
        assert_eq!(self.census.answered as u64, self.answers);
    }

    /// Ensures that the server's memory did not grow.
    pub fn check_memory(&self) {
        if let Some(fit) = &self.memory {
            assert!(
                fit.growth < GROWTH,
                "memory grew by {:.1} %",
                fit.growth * 100.0
            );
        }
    }
}

/// The kinds of log lines, without what differs from one to the next, and how many there were.
pub fn warnings(lines: &[String]) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for line in lines {
        *kinds.entry(kind(line)).or_default() += 1;
    }
    kinds
}

fn kind(line: &str) -> String {
    // The time in front, then words with digits or slashes in them: names, numbers, paths.
    let words = line
        .split_whitespace()
        .skip_while(|word| word.starts_with(|c: char| c.is_numeric()));
    let words = words.map(
        |word| match word.contains(|c: char| c.is_numeric() || c == '/') {
            true => "_",
            false => word,
        },
    );
    words.collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:.1} minutes, {} clients, {} answers, {} of them after the last fault",
            self.minutes, self.clients, self.answers, self.answers_at_the_end
        )?;
        writeln!(
            f,
            "\n{:<12} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9}",
            "operation", "done", "failed", "median ms", "90 %", "99 %", "longest"
        )?;
        for of in &self.operations {
            writeln!(
                f,
                "{:<12} {:>7} {:>7} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
                of.operation, of.done, of.failed, of.median, of.p90, of.p99, of.longest
            )?;
        }
        writeln!(f, "\nfailures")?;
        for of in &self.operations {
            for (kind, count) in &of.failures {
                writeln!(f, "{count:>8}  {:<12} {kind}", of.operation)?;
            }
        }
        writeln!(f, "\nfaults")?;
        for (fault, count) in &self.faults {
            writeln!(f, "{count:>8}  {fault}")?;
        }
        let datagrams = &self.datagrams;
        writeln!(
            f,
            "\ndatagrams: {} passed, {} lost, {} doubled, {} delayed, {} swallowed; {} strangers",
            datagrams.passed,
            datagrams.lost,
            datagrams.doubled,
            datagrams.delayed,
            datagrams.swallowed,
            self.strangers
        )?;
        writeln!(f, "\nthe server's warnings")?;
        for (kind, count) in &self.warnings {
            writeln!(f, "{count:>8}  {kind}")?;
        }
        let census = &self.census;
        writeln!(
            f,
            "\nbundles: {} answered; at the server {} ready, {} spent; at the clients {} ready, {} \
             spent",
            census.answered,
            census.ready_at_server,
            census.spent_at_server,
            census.ready_at_clients,
            census.spent_at_clients
        )?;
        if let Some(fit) = &self.memory {
            writeln!(
                f,
                "memory over the last {:.0} s: first {:.1} MiB, median {:.1}, last {:.1}, most \
                 {:.1}; the fit grows by {:.2} %; {} files open",
                fit.seconds,
                fit.first,
                fit.median,
                fit.last,
                fit.most,
                100.0 * fit.growth,
                self.open_files.unwrap_or(0)
            )?;
        }
        for violation in &self.violations {
            writeln!(f, "VIOLATION {violation}")?;
        }
        Ok(())
    }
}
