//! The training loop: deterministic on the CPU for a given seed, whether interrupted or not.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor, TensorData, activation::log_softmax};
use indicatif::{ProgressBar, ProgressStyle};
use pi_ir::graph::ActivationKind;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::checkpoint::{Array, Arrays, Checkpoint};
use crate::config::Config;
use crate::data::{self, CLASSES, Dataset, Normalisation};
use crate::mask::{Ranking, fit_polynomials};
use crate::network::{Mode, Network, Op, State};

/// Weight of a new batch in the running statistics.
const STATISTICS_RATE: f32 = 0.1;
/// Batches that renew the running statistics after a cut: what is left of the old ones is 0.9^50 < 1 %.
const STATISTICS_BATCHES: usize = 50;
/// Images per evaluation pass.
const EVALUATION_BATCH: usize = 500;

/// What a checkpoint says about its run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The configuration.
    pub config: Config,
    /// Finished epochs.
    pub epoch: usize,
    /// Seconds spent so far.
    pub wall_s: f64,
    /// Accuracy on the held-out images after the last epoch.
    pub holdout_accuracy: Option<f64>,
    /// Normalisation of the pixels.
    pub normalisation: Normalisation,
}

/// A run: network, weights, momenta and progress.
pub struct Run {
    /// What is saved with it.
    pub meta: Meta,
    /// The network.
    pub network: Network,
    /// Weights, statistics, masks.
    pub state: State,
    momenta: Arrays,
    device: Device,
}

impl Run {
    /// A new run with random weights.
    ///
    /// # Errors
    /// A network that cannot be built.
    pub fn new(config: Config, device: Device) -> Result<Self> {
        let network = Network::new(&config.network)?;
        let state = network.initialise(
            config.train.range,
            &mut ChaCha8Rng::seed_from_u64(config.train.seed),
        );
        let momenta = state
            .parameters
            .iter()
            .map(|(n, a)| (n.clone(), Array::filled(&a.shape, 0.0)))
            .collect();
        let meta = Meta {
            config,
            epoch: 0,
            wall_s: 0.0,
            holdout_accuracy: None,
            normalisation: Normalisation::CIFAR10,
        };
        Ok(Self {
            meta,
            network,
            state,
            momenta,
            device,
        })
    }

    /// The run a checkpoint was made of.
    ///
    /// # Errors
    /// A checkpoint whose arrays are not those of its network.
    pub fn from_checkpoint(checkpoint: Checkpoint, device: Device) -> Result<Self> {
        let meta: Meta = serde_json::from_value(checkpoint.meta)
            .context("the checkpoint's description is not ours")?;
        let mut run = Self::new(meta.config.clone(), device)?;
        run.meta = meta;
        let same = |ours: &Arrays, theirs: &Arrays| {
            ours.len() == theirs.len()
                && ours
                    .iter()
                    .zip(theirs)
                    .all(|((n, a), (m, b))| n == m && a.shape == b.shape)
        };
        if !same(&run.state.parameters, &checkpoint.parameters)
            || !same(&run.momenta, &checkpoint.momenta)
            || !same(&run.state.buffers, &checkpoint.buffers)
        {
            bail!("the checkpoint's arrays are not those of its network");
        }
        for (site, kinds) in &mut run.state.masks {
            let codes = checkpoint
                .masks
                .get(site)
                .filter(|codes| codes.len() == kinds.len());
            let codes =
                codes.with_context(|| format!("the checkpoint has no whole mask for {site}"))?;
            for (kind, code) in kinds.iter_mut().zip(codes) {
                *kind = decode_kind(*code)
                    .with_context(|| format!("the mask of {site} has an unknown kind {code}"))?;
            }
        }
        run.state.parameters = checkpoint.parameters;
        run.state.buffers = checkpoint.buffers;
        run.momenta = checkpoint.momenta;
        Ok(run)
    }

    /// Goes on under another configuration of the same network.
    ///
    /// # Errors
    /// Another network.
    pub fn reconfigure(&mut self, config: Config) -> Result<()> {
        if self.meta.config.network != config.network {
            bail!("the checkpoint is of another network than the configuration");
        }
        self.state.range = config.train.range;
        self.meta.config = config;
        Ok(())
    }

    /// The run's state for a file.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            meta: serde_json::to_value(&self.meta).expect("plain data has a JSON form"),
            parameters: self.state.parameters.clone(),
            momenta: self.momenta.clone(),
            buffers: self.state.buffers.clone(),
            masks: self
                .state
                .masks
                .iter()
                .map(|(site, kinds)| {
                    (
                        site.clone(),
                        kinds.iter().map(|kind| encode_kind(*kind)).collect(),
                    )
                })
                .collect(),
        }
    }

    /// Trains one epoch, then makes the cut that is due, then measures the held-out images.
    ///
    /// # Errors
    /// A loss or a gradient that is not a number, naming the first layer where it shows.
    pub fn epoch(
        &mut self,
        train: &Dataset,
        holdout: &Dataset,
        progress: &ProgressBar,
    ) -> Result<EpochReport> {
        let start = Instant::now();
        let config = self.meta.config.clone();
        let epoch = self.meta.epoch;
        let mut rng = epoch_rng(&config, epoch, 0);
        let order = data::permutation(train.len(), &mut rng);
        let steps = order
            .chunks(config.train.batch)
            .filter(|chunk| chunk.len() == config.train.batch.min(train.len()));
        let count = steps.clone().count();
        progress.set_length(count as u64);
        progress.set_position(0);
        let (mut loss_sum, mut rate) = (0.0f64, 0.0);
        for (step, indices) in steps.enumerate() {
            rate = learning_rate(&config, (epoch as f32) + step as f32 / count as f32);
            let pixels = data::augmented_batch(
                train,
                indices,
                &self.meta.normalisation,
                config.train.shift,
                rng.next_u64(),
            );
            let loss = self.step(pixels, &labels(train, indices), rate)?;
            loss_sum += f64::from(loss);
            progress.set_message(format!("loss {:.3}", loss_sum / (step + 1) as f64));
            progress.inc(1);
        }
        self.meta.epoch += 1;
        self.cut_if_due(train)?;
        let evaluation = self.evaluate(holdout);
        let seconds = start.elapsed().as_secs_f64();
        self.meta.wall_s += seconds;
        self.meta.holdout_accuracy = (!holdout.is_empty()).then_some(evaluation.accuracy);
        let (relus, polynomials, identities) = Network::counts(&self.state.masks);
        Ok(EpochReport {
            epoch: self.meta.epoch,
            loss: loss_sum / count as f64,
            holdout_accuracy: evaluation.accuracy,
            holdout_loss: evaluation.loss,
            learning_rate: rate,
            seconds,
            images_per_second: (count * config.train.batch) as f64 / seconds,
            relus,
            polynomials,
            identities,
            largest: evaluation.largest,
        })
    }

    /// One optimiser step; returns the loss before it.
    ///
    /// # Errors
    /// As [`Self::epoch`].
    pub fn step(&mut self, pixels: Vec<f32>, labels: &[u8], rate: f32) -> Result<f32> {
        let config = self.meta.config.train.clone();
        let again = pixels.clone();
        let pass = self
            .network
            .forward(&self.state, pixels, Mode::Train, &self.device, |_, _| {});
        let loss = cross_entropy(pass.logits, labels, config.label_smoothing);
        let value: f32 = loss.clone().into_scalar();
        if !value.is_finite() {
            bail!(
                "epoch {}: the loss is {value}; {}",
                self.meta.epoch,
                self.blame(again)
            );
        }
        let mut grads = loss.backward();
        let mut gradients: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (name, leaf) in pass.leaves {
            if let Some(gradient) = leaf.grad_remove(&mut grads) {
                gradients.insert(
                    name,
                    gradient
                        .into_data()
                        .try_into_vec()
                        .expect("gradients are f32"),
                );
            }
        }
        let mut square = 0.0f64;
        for (name, gradient) in &gradients {
            let part: f64 = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
            if !part.is_finite() {
                bail!(
                    "epoch {}: the gradient of {name} is not finite; a lower train.learning_rate may help",
                    self.meta.epoch
                );
            }
            square += part;
        }
        let scale = (f64::from(config.clip) / square.sqrt()).min(1.0) as f32;
        for (name, gradient) in gradients {
            let parameter = self
                .state
                .parameters
                .get_mut(&name)
                .expect("leaves are made of the parameters");
            let momentum = self
                .momenta
                .get_mut(&name)
                .expect("one momentum a parameter");
            let decay = if name.ends_with(".weight") {
                config.weight_decay
            } else {
                0.0
            };
            let update = parameter
                .values
                .iter_mut()
                .zip(&mut momentum.values)
                .zip(gradient);
            for ((p, m), g) in update {
                let g = g * scale + decay * *p;
                *m = config.momentum * *m + g;
                *p -= rate * (g + config.momentum * *m);
            }
        }
        self.state.track(pass.moments, STATISTICS_RATE);
        Ok(value)
    }

    /// Names the first layer whose output is not finite.
    fn blame(&self, pixels: Vec<f32>) -> String {
        let mut first = None;
        self.network.forward(
            &self.state,
            pixels,
            Mode::Train,
            &self.device,
            |node, value| {
                if first.is_none() && !value.clone().inner().sum().into_scalar::<f32>().is_finite()
                {
                    first = Some(node.name.clone());
                }
            },
        );
        match first {
            Some(name) => format!("the output of layer {name} is the first that is not finite"),
            None => "every layer's output is finite, so it arose in the loss".to_owned(),
        }
    }

    fn cut_if_due(&mut self, train: &Dataset) -> Result<()> {
        let budget = self.meta.config.budget.clone();
        if self.meta.epoch == budget.relu_epoch {
            let mut rng = epoch_rng(&self.meta.config, self.meta.epoch, 1);
            let sample = data::permutation(train.len(), &mut rng);
            let sample = &sample[..sample.len().min(EVALUATION_BATCH)];
            let pixels = data::plain_batch(train, sample, &self.meta.normalisation);
            fit_polynomials(
                &self.network,
                &mut self.state,
                &budget.polynomial_sites,
                pixels,
                &self.device,
            );
            self.cut(train, ActivationKind::Relu, budget.relus, |site| {
                if budget.polynomial_sites.iter().any(|name| name == site) {
                    ActivationKind::Polynomial
                } else {
                    ActivationKind::Identity
                }
            });
        }
        if self.meta.epoch == budget.polynomial_epoch {
            self.cut(
                train,
                ActivationKind::Polynomial,
                budget.polynomials,
                |_| ActivationKind::Identity,
            );
        }
        Ok(())
    }

    fn cut(
        &mut self,
        train: &Dataset,
        from: ActivationKind,
        budget: usize,
        to: impl Fn(&str) -> ActivationKind,
    ) {
        let config = &self.meta.config;
        let mut rng = epoch_rng(config, self.meta.epoch, 2);
        let order = data::permutation(train.len(), &mut rng);
        let mut ranking = Ranking::new(from, &self.state.masks);
        for indices in order.chunks(config.train.batch).take(config.budget.batches) {
            let pixels = data::plain_batch(train, indices, &self.meta.normalisation);
            let labels = labels(train, indices);
            ranking.add(&self.network, &self.state, pixels, &self.device, |logits| {
                cross_entropy(logits, &labels, config.train.label_smoothing)
            });
        }
        ranking.cut(budget, to, &mut self.state.masks);
        // The activations changed under the running statistics: measure them anew.
        for indices in order.chunks(config.train.batch).take(STATISTICS_BATCHES) {
            let pixels = data::plain_batch(train, indices, &self.meta.normalisation);
            let pass =
                self.network
                    .forward(&self.state, pixels, Mode::Score, &self.device, |_, _| {});
            self.state.track(pass.moments, STATISTICS_RATE);
        }
    }

    /// Accuracy, loss, and the largest input of each activation site.
    pub fn evaluate(&self, set: &Dataset) -> Evaluation {
        let mut evaluation = Evaluation::default();
        let order: Vec<usize> = (0..set.len()).collect();
        for indices in order.chunks(EVALUATION_BATCH) {
            let pixels = data::plain_batch(set, indices, &self.meta.normalisation);
            let mut outputs: Vec<f32> = Vec::new();
            let pass = self.network.forward(
                &self.state,
                pixels,
                Mode::Evaluate,
                &self.device,
                |node, value| {
                    outputs.push(match node.op {
                        Op::Norm | Op::Add => value.clone().abs().max().into_scalar(),
                        _ => 0.0,
                    });
                    if node.op == Op::Activation {
                        let largest = evaluation.largest.entry(node.name.clone()).or_insert(0.0);
                        *largest = largest.max(outputs[node.inputs[0]]);
                    }
                },
            );
            let labels = labels(set, indices);
            let loss: f32 = cross_entropy(pass.logits.clone(), &labels, 0.0).into_scalar();
            evaluation.loss += f64::from(loss) * indices.len() as f64;
            let logits: Vec<f32> = pass
                .logits
                .into_data()
                .try_into_vec()
                .expect("logits are f32");
            let right = logits
                .chunks(CLASSES.len())
                .zip(&labels)
                .filter(|(row, label)| argmax(row) == usize::from(**label));
            evaluation.accuracy += right.count() as f64;
        }
        let count = set.len().max(1) as f64;
        evaluation.loss /= count;
        evaluation.accuracy /= count;
        evaluation
    }

    /// Logits of normalised pixels, with running statistics: `[n][classes]`.
    pub fn logits(&self, pixels: Vec<f32>) -> Vec<Vec<f32>> {
        let pass =
            self.network
                .forward(&self.state, pixels, Mode::Evaluate, &self.device, |_, _| {});
        let logits: Vec<f32> = pass
            .logits
            .into_data()
            .try_into_vec()
            .expect("logits are f32");
        logits.chunks(CLASSES.len()).map(<[f32]>::to_vec).collect()
    }
}

/// One line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct EpochReport {
    /// Finished epochs.
    pub epoch: usize,
    /// Mean training loss.
    pub loss: f64,
    /// Accuracy on held-out images.
    pub holdout_accuracy: f64,
    /// Loss on held-out images, without label smoothing.
    pub holdout_loss: f64,
    /// Rate of the last step.
    pub learning_rate: f32,
    /// Wall time.
    pub seconds: f64,
    /// Training speed, evaluation included.
    pub images_per_second: f64,
    /// Positions that are ReLUs.
    pub relus: usize,
    /// Positions that are polynomials.
    pub polynomials: usize,
    /// Positions that are identities.
    pub identities: usize,
    /// Largest input of each activation site on the held-out images.
    pub largest: BTreeMap<String, f32>,
}

/// Result of an evaluation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Evaluation {
    /// Share of right answers.
    pub accuracy: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Largest input of each activation site.
    pub largest: BTreeMap<String, f32>,
}

/// Trains until the last epoch, with a checkpoint and a log line after each.
///
/// `out` receives `checkpoint.pit` (the latest) and `log.jsonl`.
///
/// # Errors
/// Of the run, or of the file system.
pub fn train(
    run: &mut Run,
    train: &Dataset,
    holdout: &Dataset,
    out: &Path,
    bar: &ProgressBar,
) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(out.join("log.jsonl"))
        .with_context(|| format!("cannot write the log in {}", out.display()))?;
    let epochs = run.meta.config.train.epochs;
    bar.set_style(
        ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg} {eta}")
            .expect("a constant template"),
    );
    while run.meta.epoch < epochs {
        bar.set_prefix(format!("epoch {}/{epochs}", run.meta.epoch + 1));
        let report = run.epoch(train, holdout, bar)?;
        run.checkpoint().save(&checkpoint_path(out))?;
        writeln!(log, "{}", serde_json::to_string(&report)?)?;
        bar.println(format!(
            "epoch {:3}  loss {:.4}  held-out {:.2} %  {:.0} images/s  {} ReLU, {} polynomial, {} identity",
            report.epoch,
            report.loss,
            100.0 * report.holdout_accuracy,
            report.images_per_second,
            report.relus,
            report.polynomials,
            report.identities
        ));
    }
    bar.finish_and_clear();
    writeln!(
        log,
        "{}",
        json!({ "finished": run.meta.epoch, "wall_s": run.meta.wall_s })
    )?;
    Ok(())
}

/// The latest checkpoint of a run in `out`.
pub fn checkpoint_path(out: &Path) -> PathBuf {
    out.join("checkpoint.pit")
}

/// Mean cross-entropy of `logits` against smoothed labels.
pub fn cross_entropy(logits: Tensor<2>, labels: &[u8], smoothing: f32) -> Tensor<1> {
    let [n, classes] = logits.dims();
    let mut targets = vec![smoothing / classes as f32; n * classes];
    for (row, label) in labels.iter().enumerate() {
        targets[row * classes + usize::from(*label)] += 1.0 - smoothing;
    }
    let targets = Tensor::<2>::from_data(TensorData::new(targets, [n, classes]), &logits.device());
    (log_softmax(logits, 1) * targets).sum().neg() / n as f32
}

/// Rate after `epoch` epochs: linear warm-up, constant, then linear to zero over the last `decay` epochs.
///
/// Until the decay begins it does not depend on the number of epochs: that may be settled while a run is under way.
fn learning_rate(config: &Config, epoch: f32) -> f32 {
    let train = &config.train;
    let rise = if train.warmup > 0.0 {
        (epoch / train.warmup).clamp(0.01, 1.0)
    } else {
        1.0
    };
    let fall = if train.decay > 0.0 {
        ((train.epochs as f32 - epoch) / train.decay).clamp(0.0, 1.0)
    } else {
        1.0
    };
    train.learning_rate * rise.min(fall)
}

/// Randomness of one epoch: a run that is resumed draws what an uninterrupted one draws.
fn epoch_rng(config: &Config, epoch: usize, purpose: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(config.train.seed);
    rng.set_stream(1 + 4 * epoch as u64 + purpose);
    rng
}

fn labels(set: &Dataset, indices: &[usize]) -> Vec<u8> {
    indices.iter().map(|index| set.labels[*index]).collect()
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len())
        .max_by(|a, b| row[*a].total_cmp(&row[*b]))
        .unwrap_or(0)
}

fn encode_kind(kind: ActivationKind) -> u8 {
    match kind {
        ActivationKind::Relu => 0,
        ActivationKind::Identity => 1,
        ActivationKind::Polynomial => 2,
    }
}

fn decode_kind(code: u8) -> Option<ActivationKind> {
    match code {
        0 => Some(ActivationKind::Relu),
        1 => Some(ActivationKind::Identity),
        2 => Some(ActivationKind::Polynomial),
        _ => None,
    }
}
