//! The experiment file: TOML in which every key is checked and any key can be overridden on the
//! command line.
//!
//! An experiment is a list of stages on one network. Keys of the table `[default]` hold for every
//! stage that does not set them itself. [`stage`](StageConfig) lists the keys of a stage; those of
//! its method stand with the method, in [`method`](crate::method).

mod distil;
mod overrides;
mod range;
mod stage;
mod sweep;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use distil::{Distil, Teacher};
pub use range::RangePenalty;
pub(crate) use stage::MAX_EPOCHS;
pub use stage::StageConfig;

use crate::data::{DataConfig, Flip, Kind};
use crate::network::{NetworkConfig, Replacement, Substitute};

/// One experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the model, as users see it.
    pub name: String,
    /// Seed of the weights, the order of the images and their augmentation.
    #[serde(default = "one")]
    pub seed: u64,
    /// Source of the weights, if they do not come from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_start: Option<WarmStart>,
    /// The images.
    pub data: DataConfig,
    /// The network.
    pub network: NetworkConfig,
    /// The stages that the network goes through, in order.
    #[serde(rename = "stage")]
    pub stages: Vec<StageConfig>,
}

fn one() -> u64 {
    1
}

/// Weights of another run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmStart {
    /// Checkpoint of that run, or the folder that holds it.
    pub checkpoint: PathBuf,
    /// Takes over its activations too; otherwise those of `network.activations` stand.
    #[serde(default = "yes")]
    pub activations: bool,
}

fn yes() -> bool {
    true
}

impl Config {
    /// Reads `path`, then applies `overrides` of the form `section.key=value`; `stage.0.key=value`
    /// names the first stage, `stage.*.key=value` all of them.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown or missing key, a value of the wrong type or out of
    /// range.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, overrides).with_context(|| format!("in {}", path.display()))
    }

    /// Does the same as [`Self::load`], from text.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        let root: toml::Table = text.parse()?;
        ensure!(
            !root.contains_key("sweep"),
            "it is a sweep of several runs: use run-all"
        );
        Self::from_table(root, overrides)
    }

    fn from_table(mut root: toml::Table, overrides: &[String]) -> Result<Self> {
        overrides::spread_defaults(&mut root)?;
        let mut root = toml::Value::Table(root);
        overrides::apply(&mut root, overrides)?;
        let config: Self = root.try_into()?;
        config.check()?;
        Ok(config)
    }

    /// Checks that every number is in range and that the keys go together.
    ///
    /// # Errors
    /// The first number out of range or pair of keys that do not go together, by stage and key.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !self.stages.is_empty(),
            "an experiment needs at least one [[stage]]"
        );
        self.data.check()?;
        check_replacements(&self.network.activations).context("network.activations")?;
        let polynomial_kernels = !self.network.kernels.is_empty();
        for (number, stage) in self.stages.iter().enumerate() {
            stage
                .check(polynomial_kernels)
                .with_context(|| format!("stage {number}"))?;
            ensure!(
                self.data.kind != Kind::Mnist || stage.augmentation.flip == Flip::Never,
                "stage {number}: a mirrored digit is none, but augmentation.flip is not false (it \
                 is true if absent): set it to false"
            );
        }
        Ok(())
    }

    /// Names of what made the network's activations, in order: polynomial kernels and activations
    /// that it began with, then the method of each stage, or the replacements of a stage that only
    /// trained.
    pub fn methods(&self) -> Vec<&'static str> {
        let mut methods: Vec<&'static str> = Vec::new();
        let kernels = self.network.kernels.iter().map(|rule| rule.by.name());
        let start = self.network.activations.iter().map(|r| r.by.name());
        let start = start.filter(|name| !["relu", "identity"].contains(name));
        methods.extend(kernels.chain(start));
        for stage in &self.stages {
            if stage.method.only_trains() && !stage.replace.is_empty() {
                methods.extend(stage.replace.iter().map(|r| r.by.name()));
            } else {
                methods.push(stage.method.name());
            }
        }
        methods.dedup();
        methods
    }

    /// Checks that all stages can augment images of `[c, h, w]`.
    ///
    /// # Errors
    /// A shift that is not below the side of the images, naming the stage.
    pub fn check_augmentation(&self, shape: [usize; 3]) -> Result<()> {
        for (number, stage) in self.stages.iter().enumerate() {
            let checked = stage.augmentation.check(shape);
            checked.with_context(|| format!("stage {number}"))?;
        }
        Ok(())
    }
}

/// # Errors
/// A drop-in of another degree than 2 or 4, or with a radius out of range; a quadratic whose
/// coefficients are not finite; ReLUs that stay beside what takes a whole site.
fn check_replacements(replacements: &[Replacement]) -> Result<()> {
    for replacement in replacements {
        match replacement.by {
            Substitute::DropIn(drop_in) => {
                drop_in.coefficients()?;
            }
            Substitute::Quadratic(coefficients) => ensure!(
                coefficients.iter().all(|c| c.is_finite()),
                "the coefficients of a quadratic are {coefficients:?}, must be finite"
            ),
            _ => {}
        }
        ensure!(
            replacement.keep.is_none()
                || replacement.by == Substitute::Identity
                || replacement.by.quadratic()?.is_some(),
            "keep: \"{}\" takes whole sites, ReLUs stay only beside the identity or quadratics",
            replacement.by.name()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An experiment of one plain stage.
    pub(super) const PLAIN: &str = r#"
name = "ablation"
[data]
path = "nowhere"
[network]
kind = "resnet20"
[[stage]]
epochs = 1
optimiser = {}
schedule = { rate = 0.1 }
"#;

    #[test]
    fn methods_say_what_made_the_activations() {
        let methods = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
            Config::parse(PLAIN, &overrides)
                .unwrap()
                .methods()
                .join(", ")
        };
        assert_eq!(methods(&[]), "plain");
        let react = "[{ sites = \"*\", by = \"react-pkn\" }]";
        let cases = [
            (format!("network.activations={react}"), "react-pkn, plain"),
            (format!("stage.0.replace={react}"), "react-pkn"),
            (
                "network.kernels=[{ convolutions = \"*\", by = \"r-pkn\" }]".to_owned(),
                "r-pkn, plain",
            ),
            ("stage.0.method={ snl = { relus = 5 } }".to_owned(), "snl"),
        ];
        for (item, expected) in cases {
            assert_eq!(methods(&[&item]), expected);
        }
    }
}
