//! The experiment file: TOML, every key checked, any key overridable on the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::network::{Network, NetworkConfig, RangePenalty};

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the model, as users see it.
    pub name: String,
    /// Where the images are.
    pub data: DataConfig,
    /// The network.
    pub network: NetworkConfig,
    /// Schedule and optimiser.
    pub train: TrainConfig,
    /// Which activations stay.
    pub budget: BudgetConfig,
}

/// Where the images are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder of CIFAR-10: record files or JPEG archives.
    pub path: PathBuf,
    /// Folder for decoded archives.
    pub cache: Option<PathBuf>,
    /// Training images held out for every choice; the last ones.
    pub holdout: usize,
    /// Training images used (all if absent).
    pub limit: Option<usize>,
}

/// Schedule and optimiser: SGD with Nesterov momentum, linear warm-up, a constant rate, linear decay to zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// Highest learning rate.
    pub learning_rate: f32,
    /// Epochs of warm-up, may be a fraction.
    pub warmup: f32,
    /// Epochs of decay at the end, may be a fraction.
    pub decay: f32,
    /// Nesterov momentum.
    pub momentum: f32,
    /// L2 decay of weights (not of norms and biases).
    pub weight_decay: f32,
    /// Bound of the global gradient norm.
    pub clip: f32,
    /// Share of the target spread over all classes.
    pub label_smoothing: f32,
    /// Largest shift of the random crop in pixels.
    pub shift: usize,
    /// Penalty on large inputs of activations.
    pub range: RangePenalty,
}

/// Two cuts of the activations, by first-order saliency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetConfig {
    /// ReLUs that stay.
    pub relus: usize,
    /// Epoch after which the other ReLUs become polynomials or identities.
    pub relu_epoch: usize,
    /// Sites whose dropped ReLUs become polynomials; elsewhere they become identities.
    pub polynomial_sites: Vec<String>,
    /// Polynomials that stay.
    pub polynomials: usize,
    /// Epoch after which the other polynomials become identities.
    pub polynomial_epoch: usize,
    /// Batches each cut is ranked on.
    pub batches: usize,
}

impl Config {
    /// Reads `path`, then applies `overrides` of the form `section.key=value`.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown or missing key, a value of the wrong type or out of range.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, overrides).with_context(|| format!("in {}", path.display()))
    }

    /// As [`Self::load`], from text.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        let mut table: toml::Table = text.parse()?;
        for item in overrides {
            let (key, value) = item.split_once('=').with_context(|| {
                format!("override `{item}` is not of the form section.key=value")
            })?;
            set(&mut table, key.trim(), value.trim())?;
        }
        let config: Self = table.try_into()?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let (train, budget) = (&self.train, &self.budget);
        let network = Network::new(&self.network)?;
        for name in &budget.polynomial_sites {
            ensure!(
                network.sites().any(|(site, _)| site == name),
                "budget.polynomial_sites: there is no {name}; the sites are {}",
                network
                    .sites()
                    .map(|(site, _)| site)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        ensure!(
            train.batch > 0 && train.epochs > 0,
            "train.batch and train.epochs must be at least 1"
        );
        ensure!(
            train.learning_rate > 0.0,
            "train.learning_rate must be above 0"
        );
        ensure!(
            (0.0..1.0).contains(&train.momentum),
            "train.momentum must be in 0..1"
        );
        ensure!(
            (0.0..1.0).contains(&train.label_smoothing),
            "train.label_smoothing must be in 0..1"
        );
        ensure!(train.clip > 0.0, "train.clip must be above 0");
        ensure!(
            train.warmup >= 0.0 && train.decay >= 0.0,
            "train.warmup and train.decay must not be negative"
        );
        ensure!(
            train.shift < crate::data::SIDE,
            "train.shift must be below the image's side"
        );
        ensure!(budget.batches > 0, "budget.batches must be at least 1");
        ensure!(
            budget.relu_epoch <= budget.polynomial_epoch,
            "budget.relu_epoch must not come after budget.polynomial_epoch"
        );
        Ok(())
    }
}

fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<()> {
    let value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut path: Vec<&str> = key.split('.').collect();
    let Some(last) = path.pop() else {
        bail!("an override needs a key")
    };
    let mut table = table;
    for part in path {
        let next = table
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = next
            .as_table_mut()
            .with_context(|| format!("override of {key}: {part} is not a section"))?;
    }
    table.insert(last.to_owned(), value);
    Ok(())
}
