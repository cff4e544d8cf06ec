//! One stage of an experiment.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Distil, RangePenalty, Teacher, check_replacements};
use crate::data::Augmentation;
use crate::method::{Method, STATISTICS_RATE};
use crate::network::Replacement;
use crate::optimise::OptimiserConfig;
use crate::schedule::Schedule;

/// Upper bound of every number of epochs: far more than any of the papers trains, and small enough
/// that sums and products of such numbers do not overflow.
pub(crate) const MAX_EPOCHS: usize = 1_000_000;

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Work beside training.
    #[serde(default)]
    pub method: Method,
    /// Passes over the training images, or the most of them where the method ends by itself. QuaIL
    /// and BCD count their own.
    #[serde(default)]
    pub epochs: usize,
    /// Images per step.
    #[serde(default = "batch")]
    pub batch: usize,
    /// The optimiser.
    pub optimiser: OptimiserConfig,
    /// The learning rate.
    pub schedule: Schedule,
    /// Share of the target that is spread over all classes.
    #[serde(default)]
    pub label_smoothing: f32,
    /// Random changes of the training images.
    #[serde(default)]
    pub augmentation: Augmentation,
    /// Penalty on large inputs of activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<RangePenalty>,
    /// Magnitude of an activation's input beyond which a polynomial goes on as its tangent while it
    /// trains: one wild image then has no squares, and moves neither the batch's variance nor the
    /// gradient. What is evaluated and exported is the polynomial itself. No guard if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<f32>,
    /// Share of the stage's steps in which activations that are no ReLUs pass from ReLU to what
    /// they are: `m relu(z) + (1 - m) f(z)` with `m` falling linearly from 1 to 0. Evaluation has
    /// no ReLU in them at any time, so accuracies before the end of the ramp are low.
    #[serde(default)]
    pub ramp: f32,
    /// Weight of a new batch in the running statistics of the norms.
    #[serde(default = "statistics_rate")]
    pub statistics_rate: f32,
    /// Distillation from a teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distil: Option<Distil>,
    /// Activations that are replaced when the stage begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replace: Vec<Replacement>,
    /// Parameters that do not train, by name; `*` stands for any characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Goes on with the state of the previous stage's optimiser.
    #[serde(default)]
    pub carry: bool,
}

fn statistics_rate() -> f32 {
    STATISTICS_RATE
}
fn batch() -> usize {
    128
}

impl StageConfig {
    /// The network that teaches in this stage: that of `distil`, or the one its method needs; none
    /// where soft labels do.
    pub(crate) fn teacher(&self) -> Option<Teacher> {
        match &self.distil {
            Some(distil) if distil.soft_labels().is_some() => None,
            Some(distil) => Some(distil.teacher.clone()),
            None => self.method.hooks().teacher(),
        }
    }

    /// The file of soft labels that this stage learns from.
    pub(crate) fn soft_labels(&self) -> Option<&Path> {
        self.distil.as_ref()?.soft_labels()
    }

    /// Share of ReLU in activations that are none, after `epoch` of the stage's `epochs`.
    pub(crate) fn relu_share(&self, epoch: f32, epochs: usize) -> f32 {
        if self.ramp == 0.0 {
            return 0.0;
        }
        (1.0 - epoch / (self.ramp * epochs.max(1) as f32)).clamp(0.0, 1.0)
    }

    pub(super) fn check(&self, polynomial_kernels: bool) -> Result<()> {
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
        self.method.hooks().check(self, polynomial_kernels)?;
        if let Some(range) = &self.range {
            range.check()?;
        }
        ensure!(
            self.guard
                .is_none_or(|guard| guard > 0.0 && guard.is_finite()),
            "guard must be above 0 and finite; without the key there is none"
        );
        ensure!(
            self.statistics_rate > 0.0 && self.statistics_rate <= 1.0,
            "statistics_rate is {}, must be above 0 and at most 1",
            self.statistics_rate
        );
        ensure!(
            (0.0..=1.0).contains(&self.ramp),
            "ramp is {}, must be a share of the stage from 0 to 1",
            self.ramp
        );
        check_replacements(&self.replace).context("replace")?;
        if let Some(distil) = &self.distil {
            distil.check()?;
        }
        ensure!(
            self.soft_labels().is_none() || self.method.hooks().teacher().is_none(),
            "distil.teacher: {} imitates the layers of a network, and soft labels have none",
            self.method.name()
        );
        Ok(())
    }
}
