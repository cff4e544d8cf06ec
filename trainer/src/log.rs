//! The log of a run: one JSON object per line, in `log.jsonl` beside the checkpoint.
//!
//! A line is written whole, and a run that goes on from a checkpoint first cuts off what an
//! interrupted run wrote after it, a torn last line included, so the log describes a single run,
//! whatever interruptions there were.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic;

/// Name of the log in a run's folder.
pub const LOG_NAME: &str = "log.jsonl";

/// A log that is being written.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: fs::File,
}

impl Log {
    /// Opens the log with those of its lines that `keep` accepts; lines that are no JSON, and a
    /// line without an end, are cut off.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn open(path: &Path, keep: impl Fn(&Value) -> bool) -> Result<Self> {
        let old = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(why) if why.kind() == ErrorKind::NotFound => Vec::new(),
            Err(why) => {
                return Err(why).with_context(|| format!("cannot read the log {}", path.display()));
            }
        };
        let whole = |line: &&[u8]| {
            line.ends_with(b"\n") && serde_json::from_slice(line).is_ok_and(|value| keep(&value))
        };
        let kept: Vec<u8> = old
            .split_inclusive(|byte| *byte == b'\n')
            .filter(whole)
            .flatten()
            .copied()
            .collect();
        if kept != old {
            atomic::write(path, &kept)?;
        }
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot write the log {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).context("a line of the log has no JSON form")?;
        text.push(b'\n');
        self.file
            .write_all(&text)
            .with_context(|| format!("cannot write the log {}", self.path.display()))
    }
}

/// The part of an epoch's line that plots read. What a log lacks is absent or empty.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Epoch {
    /// Finished epochs.
    pub epoch: usize,
    /// Mean training loss.
    pub loss: Option<f64>,
    /// Loss on held-out images.
    pub holdout_loss: Option<f64>,
    /// Accuracy on held-out images, 0 to 1.
    pub holdout_accuracy: Option<f64>,
    /// Rate of the last step.
    pub learning_rate: Option<f64>,
    /// Mean and largest norm of the gradient.
    pub gradient_norm: Option<[Option<f64>; 2]>,
    /// Positions that are ReLUs.
    pub relus: Option<usize>,
    /// Range of the values that reached each activation site.
    pub sites: BTreeMap<String, Site>,
    /// Largest input of each site, in logs that have no more.
    largest: BTreeMap<String, Option<f64>>,
}

/// Range of the values that reached a site on the held-out images. JSON has no infinity: a value
/// beyond all numbers is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Site {
    /// Largest magnitude.
    pub largest: Option<f64>,
    /// Share outside the range that training images reached.
    pub outside: Option<f64>,
}

/// The epochs of a log, in order.
///
/// # Errors
/// A log that cannot be read, or has no epoch; a line that is no JSON, by number. A last line
/// without an end is left out: the run may be writing it.
pub fn read(path: &Path) -> Result<Vec<Epoch>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the log {}", path.display()))?;
    let mut epochs = Vec::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if !line.ends_with('\n') {
            break;
        }
        let value: Value = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}", path.display(), number + 1))?;
        if value.get("epoch").is_none() {
            continue;
        }
        let mut epoch: Epoch = serde_json::from_value(value)
            .with_context(|| format!("{}, line {}", path.display(), number + 1))?;
        for (site, largest) in std::mem::take(&mut epoch.largest) {
            epoch.sites.entry(site).or_default().largest = largest;
        }
        epochs.push(epoch);
    }
    anyhow::ensure!(
        !epochs.is_empty(),
        "{} has no finished epoch yet",
        path.display()
    );
    Ok(epochs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resumed_log_has_each_epoch_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOG_NAME);
        // As a run goes on from a checkpoint: without later epochs, and without the last line of a
        // run that was finished.
        let resume = |epoch: u64| {
            let seen = |line: &Value| line["epoch"].as_u64().is_some_and(|own| own <= epoch);
            Log::open(&path, seen).unwrap()
        };
        let mut log = resume(0);
        for epoch in 1..=3 {
            log.append(&json!({ "epoch": epoch, "loss": 1.0 / f64::from(epoch), "try": 1 }))
                .unwrap();
        }
        log.append(&json!({ "finished": 3 })).unwrap();
        drop(log);
        // Killed in the middle of a line.
        let mut torn = fs::OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"epoch\": 2, \"lo").unwrap();
        assert_eq!(read(&path).unwrap().len(), 3, "a torn line is not read");
        let mut log = resume(2);
        log.append(&json!({ "epoch": 3, "loss": 0.3, "try": 2 }))
            .unwrap();
        drop(log);
        let lines: Vec<Value> = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let tries: Vec<(u64, u64)> = lines
            .iter()
            .map(|l| (l["epoch"].as_u64().unwrap(), l["try"].as_u64().unwrap()))
            .collect();
        assert_eq!(tries, [(1, 1), (2, 1), (3, 2)]);
        assert_eq!(read(&path).unwrap()[2].loss, Some(0.3));
    }

    #[test]
    fn both_forms_of_a_sites_diagnostics_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOG_NAME);
        fs::write(
            &path,
            "{\"epoch\": 1, \"loss\": null, \"largest\": {\"stem.act\": 4.5}}\n\
             {\"epoch\": 2, \"sites\": {\"stem.act\": \
             {\"largest\": null, \"outside\": 0.25}}, \"new\": []}\n\
             {\"finished\": 2}\n",
        )
        .unwrap();
        let epochs = read(&path).unwrap();
        assert_eq!(epochs.len(), 2);
        assert_eq!(
            (epochs[0].loss, epochs[0].sites["stem.act"].largest),
            (None, Some(4.5))
        );
        let site = epochs[1].sites["stem.act"];
        assert_eq!((site.largest, site.outside), (None, Some(0.25)));
    }

    #[test]
    fn what_is_wrong_with_a_log_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOG_NAME);
        let says = |text: &str| {
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains(text), "{error}");
        };
        says("cannot read the log");
        fs::write(&path, "{\"finished\": 0}\n").unwrap();
        says("no finished epoch");
        fs::write(&path, "{\"epoch\": 1}\nloss 2\n{\"epoch\": 2}\n").unwrap();
        says("line 2");
    }
}
