//! One stage of an experiment.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Distil, RangePenalty, Teacher, check_replacements};
use crate::data::Augmentation;
use crate::method::Method;
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

fn batch() -> usize {
    128
}

impl StageConfig {
    /// The network that teaches in this stage: that of `distil`, or the one its method needs.
    pub(crate) fn teacher(&self) -> Option<Teacher> {
        match &self.distil {
            Some(distil) => Some(distil.teacher.clone()),
            None => self.method.hooks().teacher(),
        }
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
        check_replacements(&self.replace).context("replace")?;
        if let Some(distil) = &self.distil {
            distil.check()?;
        }
        Ok(())
    }
}
