//! A run's description, which its checkpoint holds as JSON.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Begun;
use crate::config::{Config, Teacher};
use crate::data::Normalisation;
use crate::method::Pressure;
use crate::network::{NetworkConfig, Selection, SiteFunction};

/// Description of a run, as its checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The configuration.
    pub config: Config,
    /// The images.
    pub images: Images,
    /// Stage that is under way, or the number of stages once all are done.
    pub stage: usize,
    /// Finished epochs of that stage.
    pub stage_epoch: usize,
    /// Finished part of the epoch under way, if the run stopped within it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
    /// Epochs of the stage in all, known once it has begun.
    pub stage_length: usize,
    /// Finished epochs of all stages.
    pub epoch: usize,
    /// Seconds spent so far.
    pub wall_s: f64,
    /// Names of the processors that trained the network; unknown in checkpoints that were written
    /// before they were kept.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub devices: BTreeSet<String>,
    /// Images of an epoch; unknown in checkpoints that were written before the number was kept.
    #[serde(default)]
    pub training_images: Option<usize>,
    /// Accuracy on the held-out images after the last epoch.
    pub holdout_accuracy: Option<f64>,
    /// Function of each activation site.
    #[serde(rename = "slots")]
    pub functions: BTreeMap<String, SiteFunction>,
    /// The selection under way.
    pub selection: Option<Selection>,
    /// Penalty and last count of that selection.
    pub pressure: Option<Pressure>,
    /// Stage and parameters of the optimiser.
    pub(super) optimiser: Option<OptimiserMeta>,
    /// The teacher.
    pub(super) teacher: Option<TeacherMeta>,
    /// Parameters that the run trained which this one began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) trained_before: Option<BTreeSet<String>>,
    /// Fingerprint of the soft labels of the stage under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) soft_labels: Option<u32>,
}

impl Meta {
    /// Description of a run that has not begun.
    pub(super) fn new(
        config: Config,
        images: Images,
        functions: BTreeMap<String, SiteFunction>,
    ) -> Self {
        Self {
            config,
            images,
            stage: 0,
            stage_epoch: 0,
            begun: None,
            stage_length: 0,
            epoch: 0,
            wall_s: 0.0,
            devices: BTreeSet::new(),
            training_images: None,
            holdout_accuracy: None,
            functions,
            selection: None,
            pressure: None,
            optimiser: None,
            teacher: None,
            trained_before: None,
            soft_labels: None,
        }
    }

    /// Returns true once the stage under way has begun its first epoch.
    pub(super) fn has_begun(&self) -> bool {
        self.stage_epoch > 0 || self.begun.is_some()
    }
}

/// Description of a run's images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Images {
    /// Name of the data set, as results give it.
    pub dataset: String,
    /// Channels, rows and columns.
    pub shape: [usize; 3],
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Normalisation of the pixels.
    pub normalisation: Normalisation,
}

impl Images {
    /// # Errors
    /// As [`Normalisation::check`].
    pub(super) fn check(&self) -> Result<()> {
        self.normalisation.check(self.shape[0])
    }
}

/// Description of the optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OptimiserMeta {
    pub(super) stage: usize,
    pub(super) parameters: Vec<String>,
}

/// Description of the teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct TeacherMeta {
    pub(super) who: Teacher,
    pub(super) network: NetworkConfig,
    #[serde(rename = "slots")]
    pub(super) functions: BTreeMap<String, SiteFunction>,
    /// Stage of the teacher's optimiser, if it is trained beside the student.
    pub(super) stage: Option<usize>,
}
