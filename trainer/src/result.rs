//! The result of a run as a file: one JSON object, `experiments/NAME.json`, as `pi-train eval`
//! prints it.
//!
//! The output of `pi-compile --costs` for the exported network may be stored beside it, as
//! `NAME.costs.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pi_ir::costs::Costs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::DeviceSet;
use crate::run::Run;

/// End of the name of a file of costs.
const COSTS_SUFFIX: &str = ".costs.json";

/// Report of a run. Keys beyond these are kept as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Name of the model; that of the file if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Data set, with what was done to it.
    pub dataset: String,
    /// The network: a name, or its part of the configuration.
    pub network: Value,
    /// Method that made its activations.
    pub method: String,
    /// Positions that are ReLUs.
    pub relus: usize,
    /// Positions that are polynomials.
    pub polynomial_positions: usize,
    /// Multiplications by weights for one image.
    pub multiply_adds: u64,
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// Share of the test images that is classified right, 0 to 1.
    pub test_accuracy: f64,
    /// Epochs of all stages.
    pub epochs: usize,
    /// Processors or GPUs that trained it, joined by commas; the one that evaluated it if that is
    /// not known.
    pub device: String,
    /// Seconds that the training took.
    pub wall_s: f64,
    /// Everything else that the file says.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

impl RunResult {
    /// The result of a run, measured on test images.
    ///
    /// `description` is that of the set they are from: where it is not the one the run was trained
    /// on, `tested_on` says it. `device` is what evaluates: it stands for what trained where the
    /// run does not know that.
    ///
    /// # Cost
    /// One pass over the test images.
    pub fn of(run: &Run, test: &DeviceSet, description: &str, device: &str) -> Self {
        let (meta, config) = (&run.meta, &run.meta.config);
        let evaluation = run.evaluate(test);
        let counts = run.network.counts(&run.state);
        let mut more = json!({
            "training_images": meta.training_images.or(config.data.limit),
            "stages": config.stages,
            "identity_positions": counts.identities,
            "parameters": run.state.parameter_count(),
            "test_loss": evaluation.loss,
            "test_images": test.len(),
            "holdout_accuracy": meta.holdout_accuracy,
            "largest_activation_input": evaluation.largest(),
            "activation_inputs": evaluation.sites,
        });
        if description != meta.images.dataset {
            more["tested_on"] = description.into();
        }
        let trained_on: Vec<&str> = meta.devices.iter().map(String::as_str).collect();
        let Value::Object(more) = more else {
            unreachable!("written as an object above")
        };
        Self {
            name: Some(config.name.clone()),
            dataset: meta.images.dataset.clone(),
            network: json!(config.network),
            method: config.methods().join(", "),
            relus: counts.relus,
            polynomial_positions: counts.polynomials,
            multiply_adds: run.network.multiply_adds() as u64,
            seed: config.seed,
            test_accuracy: evaluation.accuracy,
            epochs: meta.epoch,
            device: match trained_on.as_slice() {
                [] => device.to_owned(),
                devices => devices.join(", "),
            },
            wall_s: meta.wall_s.round(),
            more: more.into_iter().collect(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, lacks a key, or has a value out of range; the key is named.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the result {}", path.display()))?;
        let result: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not the result of a run", path.display()))?;
        result
            .check()
            .with_context(|| format!("in {}", path.display()))?;
        Ok(result)
    }

    /// # Errors
    /// A value out of range, by key.
    pub fn check(&self) -> Result<()> {
        for (key, text) in [
            ("dataset", &self.dataset),
            ("method", &self.method),
            ("device", &self.device),
        ] {
            ensure!(!text.trim().is_empty(), "{key} is empty");
        }
        ensure!(
            matches!(&self.network, Value::String(name) if !name.is_empty())
                || matches!(&self.network, Value::Object(_)),
            "network is neither a name nor a table"
        );
        ensure!(
            (0.0..=1.0).contains(&self.test_accuracy),
            "test_accuracy is {}, must be a share between 0 and 1, not per cent",
            self.test_accuracy
        );
        ensure!(
            self.wall_s.is_finite() && self.wall_s >= 0.0,
            "wall_s is {}, must be seconds",
            self.wall_s
        );
        ensure!(self.multiply_adds > 0, "multiply_adds is 0");
        Ok(())
    }

    /// The network in a word: its name, or the kind that its configuration says.
    pub fn network_name(&self) -> String {
        let text = |key: &str| self.network.get(key).and_then(Value::as_str);
        match &self.network {
            Value::String(name) => name.clone(),
            other => text("kind")
                .or_else(|| {
                    other
                        .as_object()
                        .filter(|map| map.len() == 1)?
                        .keys()
                        .next()
                        .map(String::as_str)
                })
                .unwrap_or("custom")
                .to_owned(),
        }
    }
}

impl fmt::Display for RunResult {
    /// The JSON object, keys in alphabetical order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", json!(self))
    }
}

/// A result with what lies beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    /// Name of the model, or of the file without its ending.
    pub name: String,
    /// The result.
    pub result: RunResult,
    /// Costs of its network in the protocol.
    pub costs: Option<Costs>,
}

/// All results of files and folders (not of folders in them), sorted by path.
///
/// # Errors
/// A file that is no result, by name; a folder without any; costs that are of another network.
pub fn collect(paths: &[PathBuf]) -> Result<Vec<Reported>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let before = files.len();
        let entries = std::fs::read_dir(path)
            .with_context(|| format!("cannot read the folder {}", path.display()))?;
        for entry in entries {
            let file = entry
                .with_context(|| format!("cannot read the folder {}", path.display()))?
                .path();
            if file.is_file() && has_end(&file, ".json") && !has_end(&file, COSTS_SUFFIX) {
                files.push(file);
            }
        }
        ensure!(
            files.len() > before,
            "there is no result (NAME.json) in {}",
            path.display()
        );
    }
    files.sort();
    files.dedup();
    files.iter().map(|file| reported(file)).collect()
}

fn reported(path: &Path) -> Result<Reported> {
    if has_end(path, COSTS_SUFFIX) {
        bail!(
            "{} holds costs: name the result, they are found beside it",
            path.display()
        );
    }
    let result = RunResult::load(path)?;
    let beside = path
        .with_extension("")
        .with_added_extension(&COSTS_SUFFIX[1..]);
    let costs = match beside.exists() {
        false => None,
        true => {
            let costs = crate::costs::load(&beside)?;
            // The compiler folds and removes positions, but it makes no ReLU and loses none.
            ensure!(
                costs.kinds.relu == result.relus,
                "{} is of a network with {} ReLUs, {} of one with {}: make the costs anew from its \
                 graph",
                beside.display(),
                costs.kinds.relu,
                path.display(),
                result.relus
            );
            // Both names are that of the configuration: an exported graph carries it.
            if let Some(name) = &result.name {
                ensure!(
                    costs.network == *name,
                    "{} is of the network {}, {} of {name}: make the costs anew from its graph",
                    beside.display(),
                    costs.network,
                    path.display()
                );
            }
            Some(costs)
        }
    };
    let stem = path.file_stem().unwrap_or(path.as_os_str());
    Ok(Reported {
        name: stem.to_string_lossy().into_owned(),
        result,
        costs,
    })
}

fn has_end(path: &Path, end: &str) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().ends_with(end))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Value {
        json!({
            "dataset": "CIFAR-10, JPEG quality 75", "network": { "kind": "resnet20", "width": 8 },
            "method": "snl",
            "relus": 600, "polynomial_positions": 20, "multiply_adds": 1000, "seed": 1,
            "test_accuracy": 0.9,
            "epochs": 3, "device": "CPU, burn flex", "wall_s": 5.0, "note": "kept"
        })
    }

    #[test]
    fn every_key_is_asked_for_and_every_range_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let load = |value: &Value| {
            std::fs::write(&path, value.to_string()).unwrap();
            RunResult::load(&path)
        };
        let whole = load(&example()).unwrap();
        assert_eq!(whole.network_name(), "resnet20");
        assert_eq!(
            serde_json::to_value(&whole).unwrap(),
            example(),
            "a key is lost"
        );
        for key in [
            "dataset",
            "network",
            "method",
            "relus",
            "polynomial_positions",
            "multiply_adds",
            "seed",
            "test_accuracy",
            "epochs",
            "device",
            "wall_s",
        ] {
            let mut without = example();
            without.as_object_mut().unwrap().remove(key);
            let error = format!("{:#}", load(&without).expect_err(key));
            assert!(error.contains(key), "{error}");
        }
        for (key, wrong) in [
            ("test_accuracy", json!(90.0)),
            ("wall_s", json!(-1)),
            ("relus", json!(1.5)),
            ("dataset", json!(" ")),
            ("network", json!(5)),
            ("multiply_adds", json!(0)),
        ] {
            let mut altered = example();
            altered[key] = wrong;
            let error = format!("{:#}", load(&altered).expect_err(key));
            assert!(key == "relus" || error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_folder_gives_its_results_and_their_costs() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let all = || collect(&[folder.path().to_owned()]);
        assert!(all().unwrap_err().to_string().contains("no result"));
        let costs = include_str!("../tests/files/costs.json");
        let relus = crate::costs::parse(costs).unwrap().kinds.relu;
        let mut result = example();
        result["relus"] = relus.into();
        std::fs::write(at("b.v2.json"), result.to_string()).unwrap();
        std::fs::write(at("b.v2.costs.json"), costs).unwrap();
        std::fs::write(at("a.json"), example().to_string()).unwrap();
        std::fs::write(at("a.toml"), "").unwrap();
        let found = all().unwrap();
        let names: Vec<&str> = found.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["a", "b.v2"]);
        assert!(found[0].costs.is_none() && found[1].costs.is_some());
        result["name"] = "resnet20".into();
        std::fs::write(at("b.v2.json"), result.to_string()).unwrap();
        assert!(all().unwrap()[1].costs.is_some());
        for (key, other, says) in [
            ("name", json!("lean9"), "of the network resnet20"),
            ("relus", json!(relus + 1), "ReLUs"),
        ] {
            let mut altered = result.clone();
            altered[key] = other;
            std::fs::write(at("b.v2.json"), altered.to_string()).unwrap();
            let error = format!("{:#}", all().unwrap_err());
            assert!(
                error.contains(says) && error.contains("make the costs anew"),
                "{error}"
            );
        }
    }
}
