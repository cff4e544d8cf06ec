//! One epoch of a run: what comes before its first step, its steps, and what comes after the last.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use indicatif::ProgressBar;
use rand_core::RngCore;
use serde::{Deserialize, Serialize};

use super::step::Batch;
use super::{Run, Site};
use crate::config::StageConfig;
use crate::data::{self, BatchSeed, Data, DeviceSet};
use crate::method::{Phase, Position};
use crate::random::{EpochStream, RunStream};

/// One line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct EpochReport {
    /// Stage, counted from 0.
    pub stage: usize,
    /// Method of the stage.
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
    /// Report of the method: what a selection or a descent did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<serde_json::Value>,
    /// Inputs of each activation site on the held-out images.
    pub sites: BTreeMap<String, Site>,
}

/// The finished part of an epoch that has begun.
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
    /// Report of the method, for the log.
    removal: Option<serde_json::Value>,
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

    /// Does the same as [`Self::epoch`], but asks before each step whether to go on. If not, it
    /// returns nothing, and the next call goes on with that step; the checkpoint may be saved in
    /// between.
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
        let counts = stage.method.hooks().counts(
            self.network.counts(&self.state),
            &self.state,
            self.meta.pressure,
        );
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
            let method = stage.method.hooks();
            begun.removal = method.before_epoch(phase, &mut self.context(stage, data))?;
            self.ready_optimiser(stage, phase);
        }
        Ok(begun)
    }

    /// Does the rest of the epoch, with what its method does after it; returns false if it was
    /// stopped before its end.
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
        if !self.train_epoch(stage, &data.train, progress, begun, go_on)? {
            return Ok(false);
        }
        self.meta.stage_epoch += 1;
        self.meta.epoch += 1;
        let after = stage
            .method
            .hooks()
            .after_epoch(&mut self.context(stage, data));
        begun.removal = after.log.or(begun.removal.take());
        if after.done {
            self.meta.stage_length = self.meta.stage_epoch;
        }
        if phase.epoch + 1 >= phase.epochs || self.meta.stage_epoch >= self.meta.stage_length {
            self.take_average(stage, data);
        }
        Ok(true)
    }

    /// Phase of the epoch under way.
    fn phase(&self, stage: &StageConfig) -> Phase {
        stage.method.hooks().phase(&Position {
            network: &self.network,
            stage,
            done: self.meta.stage_epoch,
            epochs: self.meta.stage_length,
        })
    }

    /// Trains the steps of an epoch that are not done yet; returns false if it was stopped before
    /// its end.
    fn train_epoch(
        &mut self,
        stage: &StageConfig,
        set: &DeviceSet,
        progress: &ProgressBar,
        begun: &mut Begun,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<bool> {
        let start = Instant::now();
        self.find_soft_labels(stage, set)?;
        let phase = self.phase(stage);
        let mut rng = self.rng(EpochStream::Batches);
        let flips = RunStream::Flips.rng(self.meta.config.seed).next_u64();
        let order = data::permutation(set.len(), &mut rng);
        // A last batch that is not full is left out, as its statistics would be noisier than all
        // others; a set smaller than one batch is one batch.
        let steps: Vec<&[usize]> = order
            .chunks(stage.batch)
            .filter(|chunk| chunk.len() == stage.batch.min(set.len()))
            .collect();
        ensure!(
            begun.steps == 0 || begun.of == steps.len(),
            "the checkpoint was made within an epoch of {} steps, which would now have {}: keep \
             batch and data.limit until it ends",
            begun.of,
            steps.len()
        );
        begun.of = steps.len();
        progress.set_length(steps.len() as u64);
        progress.set_position(begun.steps as u64);
        for (index, indices) in steps.iter().enumerate() {
            // Drawn for finished steps too, so that a resumed epoch draws as an unbroken one does.
            let draw = rng.next_u64();
            if index < begun.steps {
                continue;
            }
            if !go_on() {
                begun.train_seconds += start.elapsed().as_secs_f64();
                return Ok(false);
            }
            let share = index as f32 / steps.len() as f32;
            let rate = stage.schedule.at(phase.epoch as f32 + share, phase.epochs);
            begun.rate = rate;
            let done = self.meta.stage_epoch as f32 + share;
            let seed = BatchSeed {
                batch: draw,
                flips,
                epoch: self.meta.epoch,
            };
            let batch = Batch {
                pixels: set.batch(indices, &stage.augmentation, seed),
                indices,
                labels: &set.labels(indices),
                rate: begun.rate,
                relu_share: stage.relu_share(done, self.meta.stage_length),
                first: phase.epoch == 0 && index == 0,
            };
            let report = self.step(stage, phase, batch)?;
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
}
