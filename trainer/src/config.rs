//! The experiment file: TOML, every key checked, any key overridable on the command line.
//!
//! An experiment is a list of stages on one network. Keys of the table `[default]` hold for every
//! stage that does not set them itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::data::{Augmentation, DataConfig, Kind};
use crate::kernels::Penalty;
use crate::network::state::Removed;
use crate::network::{NetworkConfig, Replacement, Substitute};
use crate::optimise::OptimiserConfig;
use crate::schedule::Schedule;

/// One experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the model, as users see it.
    pub name: String,
    /// Seed of weights, order and augmentation.
    #[serde(default = "one")]
    pub seed: u64,
    /// Where the weights come from, if not from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_start: Option<WarmStart>,
    /// Where the images are.
    pub data: DataConfig,
    /// The network.
    pub network: NetworkConfig,
    /// What happens to it, in order.
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
    /// Its checkpoint, or the folder that holds it.
    pub checkpoint: PathBuf,
    /// Whether its activations come along; if not, those of `network.activations` stand.
    #[serde(default = "yes")]
    pub activations: bool,
}

fn yes() -> bool {
    true
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// What it does beside training.
    #[serde(default)]
    pub method: Method,
    /// Passes over the training images; at most so many where the method ends by itself. QuaIL and
    /// BCD count their own.
    #[serde(default)]
    pub epochs: usize,
    /// Images per step.
    #[serde(default = "batch")]
    pub batch: usize,
    /// The optimiser.
    pub optimiser: OptimiserConfig,
    /// The learning rate.
    pub schedule: Schedule,
    /// Share of the target spread over all classes.
    #[serde(default)]
    pub label_smoothing: f32,
    /// What happens to training images.
    #[serde(default)]
    pub augmentation: Augmentation,
    /// Penalty on large inputs of activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<RangePenalty>,
    /// A teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distil: Option<Distil>,
    /// What stands at activation sites from this stage on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replace: Vec<Replacement>,
    /// Parameters that do not train, by name, `*` for any characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Goes on with the optimiser's state of the stage before.
    #[serde(default)]
    pub carry: bool,
}

fn batch() -> usize {
    128
}

/// What a stage does beside training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Nothing.
    #[default]
    Plain,
    /// Layer-wise imitation of a ReLU network, then unfreezing from the last layer back.
    Quail(Quail),
    /// Selective network linearisation: a real factor per ReLU under an L1 penalty.
    Snl(Select),
    /// AutoReP: a factor per ReLU with hysteresis and straight-through gradient; removed positions
    /// become quadratics.
    Autorep(Select),
    /// Block coordinate descent on the ReLUs that are left.
    Bcd(Bcd),
    /// A cut by first-order saliency before the first epoch.
    Saliency(Saliency),
}

/// QuaIL (Sisyphus, arXiv 2107.12342): the student is the network with squares for ReLUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quail {
    /// What stands before each square.
    pub norm: QuailNorm,
    /// Epochs that each layer imitates the teacher's.
    pub layer_epochs: usize,
    /// Epochs after each further layer is unfrozen.
    pub unfreeze_epochs: usize,
}

/// What stands before a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuailNorm {
    /// Nothing.
    None,
    /// The approximate min-max norm.
    Amm,
    /// The min-max norm of the batch at hand: a yardstick.
    Mm,
}

/// SNL (ICML 2022) and AutoReP (ICCV 2023).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// ReLUs that stay.
    pub relus: usize,
    /// Weight of the L1 penalty at first.
    #[serde(default = "lambda")]
    pub lambda: f32,
    /// Factor of that weight after each epoch in which the count did not fall.
    #[serde(default = "growth")]
    pub growth: f32,
    /// A ReLU counts while its factor is above this.
    #[serde(default = "threshold")]
    pub threshold: f32,
    /// Half the band of the hysteresis; AutoReP only.
    #[serde(default = "hysteresis")]
    pub hysteresis: f32,
    /// What a removed position computes; SNL's own is the identity, AutoReP's a quadratic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Removed>,
}

fn lambda() -> f32 {
    1e-5
}
fn growth() -> f32 {
    1.1
}
fn threshold() -> f32 {
    1e-2
}
fn hysteresis() -> f32 {
    3e-3
}

/// Block coordinate descent (arXiv 2511.11781).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bcd {
    /// ReLUs that stay.
    pub relus: usize,
    /// ReLUs removed in a step (the paper's DRC).
    pub block: usize,
    /// Random blocks tried in a step (RT).
    pub trials: usize,
    /// The first block that costs fewer points of accuracy than this is taken (ADT).
    pub tolerance: f64,
    /// Training images, the same ones in every step and not augmented, that blocks are ranked on.
    #[serde(default = "ranking_images")]
    pub images: usize,
    /// Epochs of fine-tuning after each step.
    pub step_epochs: usize,
    /// How blocks are drawn.
    #[serde(default)]
    pub draw: Draw,
    /// What a removed position computes.
    #[serde(default)]
    pub removed: Removed,
    /// Ranks by latency saved per point lost instead of by accuracy alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// How BCD draws a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Draw {
    /// Every remaining ReLU alike (the paper).
    #[default]
    Uniform,
    /// Ours: by first-order saliency, measured anew in each step. The first block tried is the
    /// least salient, later ones are drawn with weights `saliency^(-1/t)`, `t` growing from 0
    /// towards 1.
    Saliency,
}

fn ranking_images() -> usize {
    5000
}

/// Costs that the compiler predicts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// File that `pi-compile` wrote of this network.
    pub costs: PathBuf,
    /// Network profile in that file.
    pub profile: String,
}

/// Two kinds of cut by first-order saliency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saliency {
    /// What is cut.
    pub from: Cut,
    /// Positions of that kind that stay.
    pub keep: usize,
    /// Sites whose dropped ReLUs become quadratics; elsewhere they become identities. `*` for any
    /// characters.
    #[serde(default)]
    pub polynomial_sites: Vec<String>,
    /// Batches the cut is ranked on.
    #[serde(default = "ranking_batches")]
    pub batches: usize,
}

fn ranking_batches() -> usize {
    64
}

/// What a cut ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// ReLUs against the quadratics or identities that would replace them.
    Relu,
    /// Quadratics against the identity.
    Polynomial,
}

/// Penalty on the inputs of activations, at every element: of ReLUs too, whose sign circuits are as
/// wide as their inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RangePenalty {
    /// `weight` times the squared excess of `|z|` over `radius`.
    Excess {
        /// Where it begins.
        radius: f32,
        /// Its strength.
        weight: f32,
    },
    /// `weight mean((z / radius)^exponent)` a site (PILLAR, USENIX Security 2024, has it for
    /// polynomials alone).
    Power {
        /// Where it becomes steep.
        radius: f32,
        /// Its strength once warm; in the epoch of the `i`-th of `k` exponents it is `i / k` of
        /// that.
        weight: f32,
        /// One exponent an epoch; the last one stays.
        #[serde(default = "exponents")]
        exponents: Vec<i32>,
    },
}

fn exponents() -> Vec<i32> {
    vec![4, 6, 8, 10]
}

impl RangePenalty {
    fn check(&self) -> Result<()> {
        let (RangePenalty::Excess { radius, weight } | RangePenalty::Power { radius, weight, .. }) =
            self;
        ensure!(
            *radius > 0.0 && radius.is_finite() && *weight >= 0.0 && weight.is_finite(),
            "range: radius must be above 0 and weight not negative, both finite"
        );
        if let RangePenalty::Power { exponents, .. } = self {
            ensure!(
                !exponents.is_empty()
                    && exponents
                        .iter()
                        .all(|e| (2..=100).contains(e) && e % 2 == 0),
                "range.exponents must be even numbers from 2 to 100"
            );
        }
        Ok(())
    }

    /// The penalty in a stage's epoch, counted from 0.
    pub fn at(&self, epoch: usize) -> Penalty {
        match self {
            RangePenalty::Excess { radius, weight } => Penalty::Excess {
                radius: *radius,
                weight: *weight,
            },
            RangePenalty::Power {
                radius,
                weight,
                exponents,
            } => {
                let index = epoch.min(exponents.len() - 1);
                Penalty::Power {
                    radius: *radius,
                    weight: weight * (index + 1) as f32 / exponents.len() as f32,
                    exponent: exponents[index],
                }
            }
        }
    }
}

/// Knowledge distillation: `cross_entropy CE + weight KL(softmax(teacher / T), softmax(student /
/// S))`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distil {
    /// Who teaches.
    pub teacher: Teacher,
    /// `T`.
    #[serde(default = "four")]
    pub temperature: f32,
    /// `S`, the same if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_temperature: Option<f32>,
    /// Weight of the divergence.
    #[serde(default = "sixteen")]
    pub weight: f32,
    /// Weight of the cross-entropy with the labels.
    #[serde(default = "whole")]
    pub cross_entropy: f32,
}

fn four() -> f32 {
    4.0
}
fn sixteen() -> f32 {
    16.0
}
fn whole() -> f32 {
    1.0
}

/// Who teaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Teacher {
    /// The network as it was when the stage began, before it changed anything; a following stage
    /// with the same teacher keeps it.
    Start,
    /// The network of another run.
    Checkpoint(PathBuf),
    /// A network trained beside the student on the same batches, with cross-entropy alone; a
    /// following stage with the same teacher goes on with it.
    Beside(Box<NetworkConfig>),
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

    /// As [`Self::load`], from text.
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

    /// Every run of an experiment file with its name: that of the file, and one choice of each axis
    /// of its `[sweep]`.
    ///
    /// ```toml
    /// [sweep.clip]
    /// clip = ["stage.*.optimiser.clip=1.0"]
    /// free = []
    /// [sweep.seed]
    /// 1 = ["seed=1"]
    /// 2 = ["seed=2"]
    /// ```
    /// makes four runs, `NAME-clip-1` and so on. A choice is a list of overrides.
    ///
    /// # Errors
    /// As [`Self::load`], and a sweep of another form or with two runs of one name.
    pub fn variants(path: &Path, overrides: &[String]) -> Result<Vec<(String, Self)>> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let stem = path.file_stem().unwrap_or(path.as_os_str());
        Self::sweep(&text, &stem.to_string_lossy(), overrides)
            .with_context(|| format!("in {}", path.display()))
    }

    fn sweep(text: &str, name: &str, overrides: &[String]) -> Result<Vec<(String, Self)>> {
        let mut root: toml::Table = text.parse()?;
        let sweep: BTreeMap<String, BTreeMap<String, Vec<String>>> = match root.remove("sweep") {
            None => BTreeMap::new(),
            Some(sweep) => sweep
                .try_into()
                .context("[sweep] must hold axes, each of named lists of overrides")?,
        };
        let mut runs = vec![(name.to_owned(), Vec::new())];
        for (axis, choices) in &sweep {
            ensure!(!choices.is_empty(), "[sweep.{axis}] has no choice");
            let with = |(name, own): &(String, Vec<String>)| {
                let choices = choices.iter();
                let extended = choices
                    .map(|(choice, more)| (format!("{name}-{choice}"), [&own[..], more].concat()));
                extended.collect::<Vec<_>>()
            };
            runs = runs.iter().flat_map(with).collect();
            let mut seen: BTreeMap<&str, &[String]> = BTreeMap::new();
            for (name, own) in &runs {
                if let Some(other) = seen.insert(name, own) {
                    bail!(
                        "[sweep.{axis}]: two runs would be named {name}, that of {other:?} and that of {own:?}: rename a choice"
                    );
                }
            }
        }
        runs.into_iter()
            .map(|(name, mut own)| {
                own.extend_from_slice(overrides);
                let mut config = Self::from_table(root.clone(), &own)
                    .with_context(|| format!("in the run {name}"))?;
                if !sweep.is_empty() {
                    config.name.clone_from(&name);
                }
                Ok((name, config))
            })
            .collect()
    }

    fn from_table(mut root: toml::Table, overrides: &[String]) -> Result<Self> {
        spread_defaults(&mut root)?;
        let mut root = toml::Value::Table(root);
        for item in overrides {
            let (key, value) = item.split_once('=').with_context(|| {
                format!("override `{item}` is not of the form section.key=value")
            })?;
            let path: Vec<&str> = key.trim().split('.').collect();
            set(&mut root, &path, &parse_value(value.trim()))
                .with_context(|| format!("override of {key}"))?;
        }
        let config: Self = root.try_into()?;
        config.check()?;
        Ok(config)
    }

    /// # Errors
    /// A number out of range or keys that do not go together, by stage and key.
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
                self.data.kind != Kind::Mnist || !stage.augmentation.flip,
                "stage {number}: a mirrored digit is none, but augmentation.flip is true (so it is if absent): set it to false"
            );
        }
        Ok(())
    }

    /// What made the network's activations, in order: polynomial kernels and activations that it
    /// began with, then each stage's method, or what it put in place if it only trained.
    pub fn methods(&self) -> Vec<&'static str> {
        let mut methods: Vec<&'static str> = Vec::new();
        let kernels = self.network.kernels.iter().map(|rule| rule.by.name());
        let start = self.network.activations.iter().map(|r| r.by.name());
        let start = start.filter(|name| !["relu", "identity"].contains(name));
        methods.extend(kernels.chain(start));
        for stage in &self.stages {
            match (&stage.method, stage.replace.as_slice()) {
                (Method::Plain, [_, ..]) => {
                    methods.extend(stage.replace.iter().map(|r| r.by.name()))
                }
                (method, _) => methods.push(method.name()),
            }
        }
        methods.dedup();
        methods
    }

    /// Whether all stages can augment images of `[c, h, w]`.
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

/// Far more than any of the papers trains; beyond it counts of epochs could overflow.
const MAX_EPOCHS: usize = 1_000_000;

impl StageConfig {
    fn check(&self, polynomial_kernels: bool) -> Result<()> {
        ensure!(self.batch > 0, "batch must be at least 1");
        ensure!(
            self.epochs <= MAX_EPOCHS,
            "epochs is {}, must be at most {MAX_EPOCHS}",
            self.epochs
        );
        ensure!(
            (0.0..1.0).contains(&self.label_smoothing),
            "label_smoothing must be in 0..1"
        );
        self.optimiser.check()?;
        self.schedule.check()?;
        match &self.method {
            Method::Quail(quail) => {
                ensure!(
                    !polynomial_kernels,
                    "QuaIL puts polynomials at activations; network.kernels has them at convolutions already"
                );
                ensure!(
                    self.epochs == 0,
                    "QuaIL counts its own epochs: give layer_epochs and unfreeze_epochs, not epochs"
                );
                let epochs = quail.layer_epochs.saturating_add(quail.unfreeze_epochs);
                ensure!(
                    (1..=MAX_EPOCHS).contains(&epochs),
                    "QuaIL needs layer_epochs or unfreeze_epochs, at most {MAX_EPOCHS}"
                );
                ensure!(!self.carry, "QuaIL begins anew at every layer: no carry");
            }
            Method::Snl(select) | Method::Autorep(select) => {
                ensure!(self.epochs > 0, "epochs, the most it may take, is missing");
                ensure!(
                    select.lambda > 0.0
                        && select.lambda.is_finite()
                        && select.growth >= 1.0
                        && select.growth.is_finite(),
                    "lambda must be above 0 and growth at least 1, both finite"
                );
                ensure!(
                    (0.0..1.0).contains(&select.hysteresis)
                        && (0.0..1.0).contains(&select.threshold),
                    "hysteresis and threshold must be in 0..1"
                );
            }
            Method::Bcd(bcd) => {
                ensure!(
                    bcd.block > 0
                        && bcd.trials > 0
                        && bcd.images > 0
                        && (1..=MAX_EPOCHS).contains(&bcd.step_epochs),
                    "bcd: block, trials, images and step_epochs must be at least 1"
                );
                ensure!(
                    bcd.tolerance >= 0.0 && bcd.tolerance.is_finite(),
                    "bcd.tolerance is {}, must be points of accuracy, not negative and finite (100 takes the first block always)",
                    bcd.tolerance
                );
                ensure!(
                    self.epochs == 0,
                    "BCD counts its own epochs: give step_epochs, not epochs"
                );
            }
            Method::Saliency(saliency) => {
                ensure!(saliency.batches > 0, "saliency.batches must be at least 1");
            }
            Method::Plain => {}
        }
        if let Some(range) = &self.range {
            range.check()?;
        }
        check_replacements(&self.replace).context("replace")?;
        if let Some(distil) = &self.distil {
            let own = distil.student_temperature.unwrap_or(distil.temperature);
            ensure!(
                distil.temperature > 0.0
                    && distil.temperature.is_finite()
                    && own > 0.0
                    && own.is_finite(),
                "distil: temperature and student_temperature must be above 0 and finite"
            );
            ensure!(
                [distil.weight, distil.cross_entropy]
                    .into_iter()
                    .all(|weight| weight >= 0.0 && weight.is_finite()),
                "distil: weight and cross_entropy must be finite and not negative"
            );
            ensure!(
                distil.weight + distil.cross_entropy > 0.0,
                "distil: weight and cross_entropy are both 0, so there is nothing to learn"
            );
            if let Teacher::Beside(network) = &distil.teacher {
                ensure!(
                    network.width.is_finite(),
                    "distil.teacher.beside.width is {}, must be finite",
                    network.width
                );
                check_replacements(&network.activations)
                    .context("distil.teacher.beside.activations")?;
            }
        }
        Ok(())
    }
}

/// # Errors
/// A drop-in of another degree than 2 or 4, or with a radius out of range.
fn check_replacements(replacements: &[Replacement]) -> Result<()> {
    for replacement in replacements {
        if let Substitute::DropIn(drop_in) = replacement.by {
            drop_in.coefficients()?;
        }
    }
    Ok(())
}

/// Copies the keys of `[default]` into every stage that lacks them.
fn spread_defaults(root: &mut toml::Table) -> Result<()> {
    let Some(default) = root.remove("default") else {
        return Ok(());
    };
    let toml::Value::Table(default) = default else {
        bail!("[default] must be a table of stage keys");
    };
    let Some(toml::Value::Array(stages)) = root.get_mut("stage") else {
        bail!("[default] stands for keys of [[stage]], and there is no stage");
    };
    for stage in stages {
        let stage = stage.as_table_mut().context("a stage must be a table")?;
        for (key, value) in &default {
            stage.entry(key).or_insert_with(|| value.clone());
        }
    }
    Ok(())
}

fn parse_value(text: &str) -> toml::Value {
    format!("v = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

fn set(at: &mut toml::Value, path: &[&str], value: &toml::Value) -> Result<()> {
    let [key, rest @ ..] = path else {
        *at = value.clone();
        return Ok(());
    };
    match at {
        toml::Value::Table(table) => {
            let next = table
                .entry(*key)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            set(next, rest, value)
        }
        toml::Value::Array(items) if *key == "*" => {
            items.iter_mut().try_for_each(|item| set(item, rest, value))
        }
        toml::Value::Array(items) => {
            let count = items.len();
            let item = key
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get_mut(index))
                .with_context(|| format!("{key} is none of its {count} entries"))?;
            set(item, rest, value)
        }
        _ => bail!("{key} would be a key of something that is no section"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWEPT: &str = r#"
name = "ablation"
[data]
path = "nowhere"
[network]
kind = "resnet20"
[[stage]]
epochs = 1
optimiser = {}
schedule = { rate = 0.1 }
[sweep.clip]
clip = ["stage.*.optimiser.clip=1.0"]
free = []
[sweep.seed]
1 = ["seed=1"]
2 = ["seed=2", "stage.0.epochs=3"]
"#;

    #[test]
    fn a_sweep_makes_every_combination() {
        let runs = Config::sweep(SWEPT, "a", &["stage.0.batch=16".to_owned()]).unwrap();
        let seen: Vec<(&str, Option<f32>, u64, usize)> = runs
            .iter()
            .map(|(name, config)| {
                let stage = &config.stages[0];
                assert_eq!((config.name.as_str(), stage.batch), (name.as_str(), 16));
                (
                    name.as_str(),
                    stage.optimiser.clip,
                    config.seed,
                    stage.epochs,
                )
            })
            .collect();
        let expected = [
            ("a-clip-1", Some(1.0), 1, 1),
            ("a-clip-2", Some(1.0), 2, 3),
            ("a-free-1", None, 1, 1),
            ("a-free-2", None, 2, 3),
        ];
        assert_eq!(seen, expected);
        let why = Config::parse(SWEPT, &[]).unwrap_err().to_string();
        assert!(why.contains("run-all"), "{why}");
        // The choices clip and 1-1, and the choices clip-1 and 1.
        let ambiguous = SWEPT
            .replace("free = []", "clip-1 = []")
            .replace("2 = [\"seed=2\", ", "1-1 = [\"seed=2\", ");
        let why = Config::sweep(&ambiguous, "a", &[]).unwrap_err().to_string();
        assert!(
            why.contains("named a-clip-1-1") && why.contains("seed=1") && why.contains("seed=2"),
            "{why}"
        );
    }

    #[test]
    fn methods_say_what_made_the_activations() {
        let methods = |overrides: &[&str]| {
            let text = SWEPT.split("[sweep.clip]").next().unwrap();
            let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
            Config::parse(text, &overrides)
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

    #[test]
    fn a_power_penalty_warms_up_to_its_last_exponent() {
        let penalty = RangePenalty::Power {
            radius: 4.8,
            weight: 8.0,
            exponents: exponents(),
        };
        let seen: Vec<Penalty> = [0, 2, 3, 9].map(|epoch| penalty.at(epoch)).into();
        let expected = [(2.0, 4), (6.0, 8), (8.0, 10), (8.0, 10)];
        for (seen, (weight, exponent)) in seen.into_iter().zip(expected) {
            let radius = 4.8;
            assert_eq!(
                seen,
                Penalty::Power {
                    radius,
                    weight,
                    exponent
                }
            );
        }
    }
}
