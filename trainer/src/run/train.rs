//! One epoch of training, whatever the stage's method.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Tensor, TensorData, activation::log_softmax};
use indicatif::ProgressBar;
use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use serde::{Deserialize, Serialize};

use super::{OptimiserMeta, Run, Site, TeacherRun, depths};
use crate::config::{Distil, Method, StageConfig, Teacher};
use crate::data::{self, Data, DeviceSet};
use crate::kernels::Penalty;
use crate::network::parameter::node_of;
use crate::network::state::{Indicator, Removed};
use crate::network::{Buffer, Counts, EXTENT_RATE, Mode, Network, Parameter, Pass, Request, State};
use crate::optimise::{NotFinite, Optimiser, StepReport};
use crate::pattern::fits;
use crate::random::EpochStream;
use crate::tensors::{self, Tensors, download};

/// Weight of a new batch in the running statistics.
const STATISTICS_RATE: f32 = 0.1;
/// Batches that renew the running statistics: what is left of the old ones is 0.9^50 < 1 %.
const STATISTICS_BATCHES: usize = 50;

/// One line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct EpochReport {
    /// Stage, counted from 0.
    pub stage: usize,
    /// What the stage does.
    pub method: String,
    /// Finished epochs of all stages.
    pub epoch: usize,
    /// Finished epochs of the stage, and how many it has.
    pub stage_epoch: [usize; 2],
    /// Mean training loss, if anything was trained; with the range penalty if the optimiser's rule
    /// goes by the loss.
    pub loss: Option<f64>,
    /// Accuracy on held-out images, if there are any.
    pub holdout_accuracy: Option<f64>,
    /// Loss on held-out images, without label smoothing.
    pub holdout_loss: Option<f64>,
    /// Rate of the last step.
    pub learning_rate: f32,
    /// Mean and largest norm of the gradient, before clipping.
    pub gradient_norm: [f32; 2],
    /// Wall time.
    pub seconds: f64,
    /// Training speed, evaluation not included.
    pub images_per_second: f64,
    /// Positions that are ReLUs (those a selection keeps at the moment).
    pub relus: usize,
    /// Positions that are polynomials.
    pub polynomials: usize,
    /// Positions that are identities.
    pub identities: usize,
    /// What a selection or a descent did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<serde_json::Value>,
    /// What reached each activation site on the held-out images.
    pub sites: BTreeMap<String, Site>,
}

/// What is done of an epoch that has begun.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// Finished steps.
    pub steps: usize,
    /// Steps of the whole epoch, known once it trains.
    pub of: usize,
    /// Images of the finished steps.
    images: usize,
    /// Sum of their losses.
    losses: f64,
    /// Sum of the norms of their gradients.
    norms: f64,
    /// Largest of these norms.
    largest_norm: f32,
    /// Rate of the last of them.
    rate: f32,
    /// Seconds they took.
    train_seconds: f64,
    /// Seconds in all.
    seconds: f64,
    /// What a selection or a descent removed, for the log.
    removal: Option<serde_json::Value>,
}

/// A loss or a gradient that is not a number: the same run ends there again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diverged(pub String);

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Diverged {}

/// The part of the network that an epoch trains, and its place in the schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Phase {
    /// First node that trains.
    pub(super) train_from: usize,
    /// Node whose output imitates the teacher's; the labels are the target if none.
    pub(super) imitate: Option<usize>,
    /// Finished epochs of the phase.
    pub(super) epoch: usize,
    /// Its epochs.
    pub(super) epochs: usize,
}

impl Run {
    /// Does what is due next: begins the stage, trains one epoch, ends the stage, measures the
    /// held-out images.
    ///
    /// # Errors
    /// A stage that cannot begin; a loss or a gradient that is not a number, naming the first layer
    /// where it shows; an epoch begun with other batches.
    pub fn epoch(&mut self, data: &Data, progress: &ProgressBar) -> Result<EpochReport> {
        let report = self.epoch_while(data, progress, || true)?;
        Ok(report.expect("nothing stops the epoch"))
    }

    /// As [`Self::epoch`], but asks before each step whether to go on. If not, it returns nothing,
    /// and the next call goes on with that step; the checkpoint may be saved in between.
    ///
    /// # Errors
    /// As [`Self::epoch`].
    pub fn epoch_while(
        &mut self,
        data: &Data,
        progress: &ProgressBar,
        go_on: impl FnMut() -> bool,
    ) -> Result<Option<EpochReport>> {
        let start = Instant::now();
        let (number, stage) = (
            self.meta.stage,
            self.stage().context("all stages are done")?.clone(),
        );
        let mut begun = match self.meta.begun.take() {
            Some(begun) => begun,
            None => self.begin_epoch(&stage, data)?,
        };
        if !self.advance(&stage, data, progress, &mut begun, go_on)? {
            let seconds = start.elapsed().as_secs_f64();
            self.meta.wall_s += seconds;
            begun.seconds += seconds;
            self.meta.begun = Some(begun);
            return Ok(None);
        }
        let stage_epoch = [self.meta.stage_epoch, self.meta.stage_length];
        if self.meta.stage_epoch >= self.meta.stage_length {
            self.end_stage(&stage, data);
        }
        self.measure_ranges(&data.train);
        let evaluation = self.evaluate(&data.holdout);
        let seen = |value: f64| (!data.holdout.is_empty()).then_some(value);
        let seconds = start.elapsed().as_secs_f64();
        self.meta.wall_s += seconds;
        self.meta.training_images = Some(data.train.len());
        self.meta.holdout_accuracy = seen(evaluation.accuracy);
        let counts = self.counts();
        let steps = begun.steps.max(1) as f64;
        Ok(Some(EpochReport {
            stage: number,
            method: stage.method.name().to_owned(),
            epoch: self.meta.epoch,
            stage_epoch,
            loss: (begun.of > 0).then_some(begun.losses / steps),
            holdout_accuracy: self.meta.holdout_accuracy,
            holdout_loss: seen(evaluation.loss),
            learning_rate: begun.rate,
            gradient_norm: [(begun.norms / steps) as f32, begun.largest_norm],
            seconds: begun.seconds + seconds,
            images_per_second: begun.images as f64 / begun.train_seconds.max(1e-9),
            relus: counts.relus,
            polynomials: counts.polynomials,
            identities: counts.identities,
            step: begun.removal,
            sites: evaluation.sites,
        }))
    }

    fn begin_epoch(&mut self, stage: &StageConfig, data: &Data) -> Result<Begun> {
        let mut begun = Begun::default();
        if self.meta.stage_epoch == 0 {
            let number = self.meta.stage;
            self.begin_stage(stage, data)
                .with_context(|| format!("stage {number} cannot begin"))?;
        }
        if self.meta.stage_epoch < self.meta.stage_length {
            let phase = self.phase(stage);
            if let Method::Bcd(bcd) = &stage.method
                && phase.epoch == 0
            {
                begun.removal = Some(self.descend(bcd, data)?);
            }
            self.ready_optimiser(stage, phase);
        }
        Ok(begun)
    }

    /// The rest of the epoch, with what its method does after it; returns whether it came to its
    /// end.
    fn advance(
        &mut self,
        stage: &StageConfig,
        data: &Data,
        progress: &ProgressBar,
        begun: &mut Begun,
        go_on: impl FnMut() -> bool,
    ) -> Result<bool> {
        // Nothing is left of a stage without epochs, or of one that was shortened after it began.
        if self.meta.stage_epoch >= self.meta.stage_length {
            self.take_average(stage, data);
            return Ok(true);
        }
        let phase = self.phase(stage);
        if !self.train_epoch(stage, phase, &data.train, progress, begun, go_on)? {
            return Ok(false);
        }
        self.meta.stage_epoch += 1;
        self.meta.epoch += 1;
        if let Method::Snl(select) | Method::Autorep(select) = &stage.method {
            begun.removal = Some(self.press(select));
        }
        if phase.epoch + 1 >= phase.epochs || self.meta.stage_epoch >= self.meta.stage_length {
            self.take_average(stage, data);
        }
        Ok(true)
    }

    /// Positions by kind; those that a selection has removed for the moment count as what they
    /// would become.
    fn counts(&self) -> Counts {
        let mut counts = self.network.counts(&self.state);
        if let (Some(selection), Some(pressure)) = (self.state.selection, self.meta.pressure) {
            let removed = counts.relus.saturating_sub(pressure.count);
            counts.relus -= removed;
            match selection.removed {
                Removed::Identity => counts.identities += removed,
                Removed::Polynomial => counts.polynomials += removed,
            }
        }
        counts
    }

    /// Trains the steps of an epoch that are not done yet; returns whether it came to its end.
    fn train_epoch(
        &mut self,
        stage: &StageConfig,
        phase: Phase,
        set: &DeviceSet,
        progress: &ProgressBar,
        begun: &mut Begun,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<bool> {
        let start = Instant::now();
        let mut rng = self.rng(EpochStream::Batches);
        let order = data::permutation(set.len(), &mut rng);
        let steps: Vec<&[usize]> = order
            .chunks(stage.batch)
            .filter(|chunk| chunk.len() == stage.batch.min(set.len()))
            .collect();
        ensure!(
            begun.steps == 0 || begun.of == steps.len(),
            "the checkpoint was made within an epoch of {} steps, which would now have {}: keep batch and data.limit until it ends",
            begun.of,
            steps.len()
        );
        begun.of = steps.len();
        progress.set_length(steps.len() as u64);
        progress.set_position(begun.steps as u64);
        for (index, indices) in steps.iter().enumerate() {
            let draw = rng.next_u64();
            if index < begun.steps {
                continue;
            }
            if !go_on() {
                begun.train_seconds += start.elapsed().as_secs_f64();
                return Ok(false);
            }
            let at = phase.epoch as f32 + index as f32 / steps.len() as f32;
            begun.rate = stage.schedule.at(at, phase.epochs);
            let pixels = set.batch(indices, &stage.augmentation, draw);
            let labels = set.labels(indices);
            let first = phase.epoch == 0 && index == 0;
            let report = self.step(stage, phase, first, pixels, &labels, begun.rate)?;
            begun.steps += 1;
            begun.images += indices.len();
            begun.losses += f64::from(report.loss);
            begun.norms += f64::from(report.norm);
            begun.largest_norm = begun.largest_norm.max(report.norm);
            let loss = begun.losses / begun.steps as f64;
            progress.set_message(format!("loss {loss:.3}"));
            progress.inc(1);
        }
        begun.train_seconds += start.elapsed().as_secs_f64();
        Ok(true)
    }

    /// One optimiser step on a batch, the `first` one of its phase or another.
    ///
    /// # Errors
    /// As [`Self::epoch`].
    fn step(
        &mut self,
        stage: &StageConfig,
        phase: Phase,
        first: bool,
        pixels: Tensor<4>,
        labels: &[usize],
        rate: f32,
    ) -> Result<StepReport> {
        let epoch = phase.epoch;
        let trains = |name: &str| trains(stage, name);
        let range = stage.range.as_ref();
        // When a layer's turn to imitate comes, its inputs are others than those that its min-max
        // norm was given at the start: its first batch gives the extent anew.
        let anew = first && phase.imitate.is_some();
        let request = Request {
            penalty: range.map_or(Penalty::None, |r| r.at(self.meta.stage_epoch)),
            measure_penalty: stage.optimiser.rule.models_the_loss(),
            train_from: phase.train_from,
            trains: Some(&trains),
            until: phase.imitate,
            smoothing: if anew { 1.0 } else { EXTENT_RATE },
            ..Request::of(Mode::Train)
        };
        let taught = match &mut self.teacher {
            None => None,
            Some(teacher) => {
                Some(teacher.teach(pixels.clone(), labels, phase.imitate, rate, epoch)?)
            }
        };
        let pass = self
            .network
            .forward(&self.state, pixels.clone(), request, |_, _, _| {});
        let loss = match phase.imitate {
            Some(_) => {
                let taught = taught.clone().expect("QuaIL has a teacher");
                let difference = pass.output.clone() - Tensor::from_inner(taught);
                mean_square(difference)
            }
            None => {
                let labels = Labels {
                    labels,
                    smoothing: stage.label_smoothing,
                };
                let loss = objective(&pass, &labels, stage.distil.as_ref(), taught.clone());
                self.sparsity(&pass).into_iter().fold(loss, |a, b| a + b)
            }
        };
        let gradients = gradients(&loss, pass.leaves);
        // With the range penalty, whose gradient is among these, where the rule goes by the loss.
        let loss = pass.penalties.into_iter().fold(loss.inner(), |a, b| a + b);
        let optimiser = self
            .optimiser
            .as_mut()
            .expect("made ready before the epoch");
        let parameters = &mut self.state.parameters;
        let report = optimiser
            .step(parameters, &gradients, &loss, rate, epoch)
            .map_err(|why| self.explain(&why, pixels, phase, taught))?;
        if anew {
            let statistics = pass.statistics.iter();
            let extents = statistics
                .filter(|(name, _)| matches!(Buffer::parse(name), Some((_, Buffer::Extent))));
            let extents = extents.map(|(name, extent)| (name.clone(), extent.clone()));
            self.state.buffers.extend(extents);
        }
        self.state.track(pass.statistics, STATISTICS_RATE);
        self.state.buffers.extend(pass.kept);
        Ok(report)
    }

    /// The selection's L1 penalty, if there is a selection.
    fn sparsity(&self, pass: &Pass) -> Option<Tensor<1>> {
        let selection = self.state.selection?;
        let lambda = self.meta.pressure?.lambda;
        let terms = pass.leaves.iter().filter_map(|(name, leaf)| {
            let Some((site, Parameter::Keep)) = Parameter::parse(name) else {
                return None;
            };
            let relu = self.state.relu_plane(site);
            let weighted = match selection.indicator {
                Indicator::Real => leaf.clone().abs() * Tensor::from_inner(relu),
                // Only what is kept is pushed down: what is removed may come back.
                Indicator::Hysteresis { .. } => {
                    let kept = pass.kept[&Buffer::Kept.of(site)].clone();
                    leaf.clone() * Tensor::from_inner(relu * kept)
                }
            };
            Some(weighted.sum())
        });
        Some(terms.reduce(|a, b| a + b)?.mul_scalar(lambda))
    }

    /// An optimiser for what trains now; the one at hand if it is for that.
    fn ready_optimiser(&mut self, stage: &StageConfig, phase: Phase) {
        let end = phase.imitate.unwrap_or(self.network.nodes.len() - 1);
        let trained: Tensors = self
            .state
            .parameters
            .iter()
            .filter(|(name, _)| {
                let index = self.network.index(node_of(name)).unwrap_or(0);
                (phase.train_from..=end).contains(&index) && trains(stage, name)
            })
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        let meta = OptimiserMeta {
            stage: self.meta.stage,
            parameters: trained.keys().cloned().collect(),
        };
        let fresh = phase.epoch == 0 && !(stage.carry && self.meta.stage_epoch == 0);
        if fresh || self.meta.optimiser.as_ref() != Some(&meta) || self.optimiser.is_none() {
            let mut optimiser = Optimiser::new(
                &stage.optimiser,
                &trained,
                depths(&self.network),
                &self.device,
            );
            if let Some(old) = self.optimiser.take().filter(|_| !fresh) {
                optimiser.carry(&old);
            }
            self.optimiser = Some(optimiser);
            self.meta.optimiser = Some(meta);
        }
        if let Some(teacher) = &mut self.teacher
            && matches!(teacher.meta.who, Teacher::Beside(_))
            && teacher.meta.stage != Some(self.meta.stage)
        {
            let config = &stage.optimiser;
            let parameters = &teacher.state.parameters;
            let mut optimiser =
                Optimiser::new(config, parameters, depths(&teacher.network), &self.device);
            if let Some(old) = &teacher.optimiser {
                optimiser.carry(old);
            }
            teacher.optimiser = Some(optimiser);
            teacher.meta.stage = Some(self.meta.stage);
        }
    }

    /// Says where a loss or a gradient stopped being a number.
    fn explain(
        &self,
        why: &NotFinite,
        pixels: Tensor<4>,
        phase: Phase,
        taught: Option<Tensor<4>>,
    ) -> anyhow::Error {
        let request = Request {
            train_from: phase.train_from,
            trains: Some(&|_| false),
            until: phase.imitate,
            ..Request::of(Mode::Train)
        };
        let own = first_not_finite(&self.network, &self.state, pixels, request);
        let strange = taught.is_some_and(|taught| !finite(taught));
        let at = match (own, phase.imitate) {
            (Some(layer), _) => layer,
            (None, _) if strange => {
                "every layer's output is finite, the teacher's output on this batch is not: it needs another teacher".to_owned()
            }
            (None, Some(node)) => format!(
                "the output of layer {} is finite, the square of its difference from the teacher's is not",
                self.network.nodes[node].name
            ),
            (None, None) => "every layer's output is finite".to_owned(),
        };
        let help = match why {
            NotFinite::Loss(_) => "",
            NotFinite::Gradient(_) => {
                "; a lower schedule.rate, optimiser.clip or a range penalty may help"
            }
        };
        let epoch = self.meta.epoch;
        anyhow::Error::new(Diverged(format!("epoch {epoch}: {why}; {at}{help}")))
    }

    /// Measures the running statistics anew, on plain training images.
    pub(super) fn renew_statistics(&mut self, set: &DeviceSet, batch: usize) {
        let order = data::permutation(set.len(), &mut self.rng(EpochStream::Statistics));
        for indices in order.chunks(batch).take(STATISTICS_BATCHES) {
            let pass = self.batch_statistics(set.plain(indices), EXTENT_RATE);
            self.state.track(pass.statistics, STATISTICS_RATE);
        }
    }

    /// A pass with batch statistics and no gradient.
    pub(super) fn batch_statistics(&self, pixels: Tensor<4>, smoothing: f32) -> Pass {
        let request = Request {
            trains: Some(&|_| false),
            smoothing,
            ..Request::of(Mode::Train)
        };
        self.network
            .forward(&self.state, pixels, request, |_, _, _| {})
    }

    /// Randomness of the epoch under way: a run that is resumed draws what an uninterrupted one
    /// draws.
    pub(super) fn rng(&self, stream: EpochStream) -> ChaCha8Rng {
        stream.rng(self.meta.config.seed, self.meta.epoch)
    }
}

impl TeacherRun {
    /// The teacher's output on a batch: logits, or what the student imitates. A teacher beside the
    /// student takes a step of its own first.
    fn teach(
        &mut self,
        pixels: Tensor<4>,
        labels: &[usize],
        until: Option<usize>,
        rate: f32,
        epoch: usize,
    ) -> Result<Tensor<4>> {
        let Some(optimiser) = &mut self.optimiser else {
            let request = Request {
                until,
                ..Request::of(Mode::Evaluate)
            };
            let pass = self
                .network
                .forward(&self.state, pixels, request, |_, _, _| {});
            return Ok(pass.output);
        };
        let request = Request::of(Mode::Train);
        let pass = self
            .network
            .forward(&self.state, pixels.clone(), request, |_, _, _| {});
        let loss = cross_entropy(pass.logits(), labels, 0.0);
        let gradients = gradients(&loss, pass.leaves);
        let parameters = &mut self.state.parameters;
        let step = optimiser.step(parameters, &gradients, &loss.inner(), rate, epoch);
        if let Err(why) = step {
            let request = Request {
                trains: Some(&|_| false),
                ..Request::of(Mode::Train)
            };
            let at = first_not_finite(&self.network, &self.state, pixels, request)
                .unwrap_or_else(|| "every layer's output is finite".to_owned());
            let why = format!("of the teacher beside the student, {why}; {at}");
            return Err(Diverged(why).into());
        }
        self.state.track(pass.statistics, STATISTICS_RATE);
        Ok(pass.output.inner())
    }
}

/// The first layer whose output on a batch is not finite, in a sentence.
fn first_not_finite(
    network: &Network,
    state: &State,
    pixels: Tensor<4>,
    request: Request<'_>,
) -> Option<String> {
    let mut first = None;
    network.forward(state, pixels, request, |node, _, value| {
        if first.is_none() && !finite(value.clone().inner()) {
            first = Some(node.name.clone());
        }
    });
    first.map(|name| format!("the output of layer {name} is the first that is not finite"))
}

fn finite(tensor: Tensor<4>) -> bool {
    download(tensors::largest(tensor))[0].is_finite()
}

/// Whether a stage trains a parameter.
fn trains(stage: &StageConfig, name: &str) -> bool {
    // The square of QuaIL is a square: its coefficients are no parameters.
    let square = matches!(stage.method, Method::Quail(_))
        && matches!(Parameter::parse(name), Some((_, Parameter::Poly)));
    !square && !stage.freeze.iter().any(|pattern| fits(pattern, name))
}

struct Labels<'a> {
    labels: &'a [usize],
    smoothing: f32,
}

/// Cross-entropy, and the divergence from the teacher if there is one.
fn objective(
    pass: &Pass,
    labels: &Labels<'_>,
    distil: Option<&Distil>,
    taught: Option<Tensor<4>>,
) -> Tensor<1> {
    let logits = pass.logits();
    let (Some(distil), Some(taught)) = (distil, taught) else {
        return cross_entropy(logits, labels.labels, labels.smoothing);
    };
    let taught = Tensor::from_inner(taught).reshape(logits.dims());
    let own = distil.student_temperature.unwrap_or(distil.temperature);
    let loss =
        divergence(logits.clone(), taught, distil.temperature, own).mul_scalar(distil.weight);
    if distil.cross_entropy == 0.0 {
        return loss;
    }
    loss + cross_entropy(logits, labels.labels, labels.smoothing).mul_scalar(distil.cross_entropy)
}

/// Mean of the squares, image by image first: one sum over millions of numbers would come in an
/// order that depends on which thread is free.
fn mean_square(x: Tensor<4>) -> Tensor<1> {
    let [n, c, h, w] = x.dims();
    let squares = (x.clone() * x).reshape([n, c * h * w]);
    squares.mean_dim(1).mean()
}

/// Gradients of the leaves, without autodiff.
fn gradients(loss: &Tensor<1>, leaves: Tensors) -> Tensors {
    let mut all = loss.clone().backward();
    leaves
        .into_iter()
        .filter_map(|(name, leaf)| Some((name, leaf.grad_remove(&mut all)?)))
        .collect()
}

/// Mean cross-entropy of `logits` (`[n, classes]`) against smoothed labels.
pub fn cross_entropy(logits: Tensor<2>, labels: &[usize], smoothing: f32) -> Tensor<1> {
    let [n, classes] = logits.dims();
    let mut targets = vec![smoothing / classes as f32; n * classes];
    for (row, label) in labels.iter().enumerate() {
        targets[row * classes + label] += 1.0 - smoothing;
    }
    let targets = Tensor::<2>::from_data(TensorData::new(targets, [n, classes]), &logits.device());
    (log_softmax(logits, 1) * targets).sum().neg() / n as f32
}

/// Mean `KL(softmax(teacher / t), softmax(student / s))`.
pub(super) fn divergence(student: Tensor<2>, teacher: Tensor<2>, t: f32, s: f32) -> Tensor<1> {
    let n = student.dims()[0] as f32;
    let teacher = log_softmax(teacher.div_scalar(t), 1);
    let student = log_softmax(student.div_scalar(s), 1);
    (teacher.clone().exp() * (teacher - student)).sum() / n
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn logits(values: [f32; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, 2]), &Device::flex())
    }

    fn value(tensor: Tensor<1>) -> f32 {
        download(tensor)[0]
    }

    #[test]
    fn divergences_are_those_of_the_tempered_laws() {
        // softmax(ln 3, 0) = (3/4, 1/4); at temperature 2 of (ln 9, 0) the same.
        let expected = 0.75 * (0.75f32 / 0.5).ln() + 0.25 * (0.25f32 / 0.5).ln();
        let flat = logits([0.3, 0.3]);
        for (teacher, t) in [([3f32.ln(), 0.0], 1.0), ([9f32.ln(), 0.0], 2.0)] {
            let got = value(divergence(flat.clone(), logits(teacher), t, 1.0));
            assert!((got - expected).abs() < 1e-6, "temperature {t}: {got}");
        }
        // KL(teacher, student), not the other way round.
        let other = 0.5 * (0.5f32 / 0.75).ln() + 0.5 * (0.5f32 / 0.25).ln();
        let got = value(divergence(logits([3f32.ln(), 0.0]), flat, 1.0, 1.0));
        assert!((got - other).abs() < 1e-6, "{got}");
        let same = value(divergence(
            logits([2.0, -1.0]),
            logits([4.0, -2.0]),
            2.0,
            1.0,
        ));
        assert!(same.abs() < 1e-6, "equal laws are {same} apart");
    }

    #[test]
    fn cross_entropy_spreads_what_smoothing_takes() {
        let x = logits([3f32.ln(), 0.0]);
        let plain = value(cross_entropy(x.clone(), &[1], 0.0));
        assert!((plain - 4f32.ln()).abs() < 1e-6, "{plain}");
        // 0.2 over two classes: 0.9 of the label, 0.1 of the other.
        let smoothed = value(cross_entropy(x, &[1], 0.2));
        let expected = 0.9 * 4f32.ln() + 0.1 * (4f32 / 3.0).ln();
        assert!((smoothed - expected).abs() < 1e-6, "{smoothed}");
    }
}
