//! Knowledge distillation: the teacher of a stage and the weights of its loss.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::check_replacements;
use crate::network::NetworkConfig;

/// Knowledge distillation: `cross_entropy CE + weight KL(softmax(teacher / T), softmax(student /
/// S))`. A share `s` of `T^2 KL` has a weight of `s T^2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distil {
    /// The network that teaches.
    pub teacher: Teacher,
    /// `T`, the temperature of the teacher's logits.
    #[serde(default = "temperature")]
    pub temperature: f32,
    /// `S`, the temperature of the student's logits; `T` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_temperature: Option<f32>,
    /// Weight of the divergence.
    #[serde(default = "weight")]
    pub weight: f32,
    /// Weight of the cross-entropy with the labels.
    #[serde(default = "cross_entropy")]
    pub cross_entropy: f32,
}

fn temperature() -> f32 {
    4.0
}
// The gradient of the divergence shrinks with the square of the temperature; this makes up for it.
fn weight() -> f32 {
    16.0
}
fn cross_entropy() -> f32 {
    1.0
}

/// The network that teaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Teacher {
    /// The network as it was when the stage began, before the stage changed anything. A following
    /// stage with the same teacher keeps it.
    Start,
    /// The network of another run.
    Checkpoint(PathBuf),
    /// The file of soft labels that `pi-train labels` made of another run, on the images of this
    /// one: no network teaches while the student trains.
    Logits(PathBuf),
    /// A network trained beside the student on the same batches, with cross-entropy alone. A
    /// following stage with the same teacher goes on training it.
    Beside(Box<NetworkConfig>),
}

impl Distil {
    /// The file of soft labels, if they teach.
    pub(crate) fn soft_labels(&self) -> Option<&Path> {
        match &self.teacher {
            Teacher::Logits(path) => Some(path),
            Teacher::Start | Teacher::Checkpoint(_) | Teacher::Beside(_) => None,
        }
    }

    /// Temperature of the student's logits.
    pub(crate) fn own_temperature(&self) -> f32 {
        self.student_temperature.unwrap_or(self.temperature)
    }

    pub(super) fn check(&self) -> Result<()> {
        let own = self.own_temperature();
        ensure!(
            self.temperature > 0.0 && self.temperature.is_finite() && own > 0.0 && own.is_finite(),
            "distil: temperature and student_temperature must be above 0 and finite"
        );
        ensure!(
            [self.weight, self.cross_entropy]
                .into_iter()
                .all(|weight| weight >= 0.0 && weight.is_finite()),
            "distil: weight and cross_entropy must be finite and not negative"
        );
        ensure!(
            self.weight + self.cross_entropy > 0.0,
            "distil: weight and cross_entropy are both 0, so there is nothing to learn"
        );
        if let Teacher::Beside(network) = &self.teacher {
            ensure!(
                network.width.is_finite(),
                "distil.teacher.beside.width is {}, must be finite",
                network.width
            );
            check_replacements(&network.activations)
                .context("distil.teacher.beside.activations")?;
        }
        Ok(())
    }
}
