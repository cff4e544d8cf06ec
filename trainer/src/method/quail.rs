//! QuaIL: quadratic imitation learning (Sisyphus, arXiv 2107.12342).
//!
//! The student is the teacher's network with squares instead of ReLUs. Trained on the labels from
//! the start, a deep network of squares diverges; so first every layer in turn imitates the
//! teacher's output of that layer (mean squared difference), from the image on, with everything
//! before it frozen. Then the network learns the labels, and the layers are unfrozen one after the
//! other, from the classifier back. A layer is what ends with an activation, see
//! [`Network::layers`].
//!
//! Before each square stands a min-max norm, whose extent is that of the batch at hand (MM: not
//! private, a yardstick), or a running one (AMM).
//!
//! Ours: a layer's extent is measured anew with the first batch of its turn to imitate, because by
//! then its inputs differ from those of the start.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Context, Hooks, Phase, Position};
use crate::config::{MAX_EPOCHS, StageConfig, Teacher};
use crate::network::{Network, Parameter, Replacement, Substitute};

/// Configuration of QuaIL: the student is the network with squares for ReLUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quail {
    /// Norm before each square.
    pub norm: QuailNorm,
    /// Epochs that each layer imitates the teacher's.
    pub layer_epochs: usize,
    /// Epochs after each further layer is unfrozen.
    pub unfreeze_epochs: usize,
}

/// Norm before a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuailNorm {
    /// None.
    None,
    /// The approximate min-max norm.
    Amm,
    /// The min-max norm of the batch at hand: a yardstick.
    Mm,
}

impl Hooks for Quail {
    fn name(&self) -> &'static str {
        match self.norm {
            QuailNorm::None => "quail",
            QuailNorm::Amm => "quail with amm",
            QuailNorm::Mm => "quail with mm",
        }
    }

    fn check(&self, stage: &StageConfig, polynomial_kernels: bool) -> Result<()> {
        ensure!(
            !polynomial_kernels,
            "QuaIL puts polynomials at activations; network.kernels has them at convolutions \
             already"
        );
        ensure!(
            stage.epochs == 0,
            "QuaIL counts its own epochs: give layer_epochs and unfreeze_epochs, not epochs"
        );
        let epochs = self.layer_epochs.saturating_add(self.unfreeze_epochs);
        ensure!(
            (1..=MAX_EPOCHS).contains(&epochs),
            "QuaIL needs layer_epochs or unfreeze_epochs, at most {MAX_EPOCHS}"
        );
        ensure!(!stage.carry, "QuaIL begins anew at every layer: no carry");
        Ok(())
    }

    fn counts_own_epochs(&self) -> bool {
        true
    }

    fn teacher(&self) -> Option<Teacher> {
        Some(Teacher::Start)
    }

    fn check_teacher(&self, who: &Teacher, student: &Network, teacher: &Network) -> Result<()> {
        ensure!(
            student == teacher,
            "QuaIL compares layers: its teacher must be the same network but for its activations"
        );
        ensure!(
            !matches!(who, Teacher::Beside(_)),
            "QuaIL's teacher must be trained already"
        );
        Ok(())
    }

    fn replacement(&self) -> Option<Replacement> {
        Some(Replacement {
            sites: "*".to_owned(),
            by: match self.norm {
                QuailNorm::None => Substitute::Square,
                QuailNorm::Amm => Substitute::SquareAmm,
                QuailNorm::Mm => Substitute::SquareMm,
            },
            keep: None,
        })
    }

    fn begin(&self, context: &mut Context<'_>) -> Result<usize> {
        Ok(self.epochs(context.network))
    }

    fn check_resumed(
        &self,
        epochs: usize,
        student: &Network,
        teacher: Option<&Network>,
    ) -> Result<()> {
        ensure!(
            epochs == self.epochs(student) && teacher == Some(student),
            "the checkpoint's phases of QuaIL are not those of its network"
        );
        Ok(())
    }

    fn phase(&self, at: &Position<'_>) -> Phase {
        self.phase_of(&at.network.layers(), at.done)
    }

    fn trains(&self, parameter: &str) -> bool {
        // The square is a square: its coefficients are no parameters.
        !matches!(Parameter::parse(parameter), Some((_, Parameter::Poly)))
    }
}

impl Quail {
    /// Epochs of imitation and of unfreezing together.
    fn epochs(&self, network: &Network) -> usize {
        network.layers().len() * (self.layer_epochs + self.unfreeze_epochs)
    }

    fn phase_of(&self, layers: &[std::ops::Range<usize>], done: usize) -> Phase {
        let imitation = layers.len() * self.layer_epochs;
        if done < imitation {
            let layer = &layers[done / self.layer_epochs];
            return Phase {
                train_from: layer.start,
                imitate: Some(layer.end - 1),
                epoch: done % self.layer_epochs,
                epochs: self.layer_epochs,
            };
        }
        let done = done - imitation;
        let unfrozen = done / self.unfreeze_epochs;
        Phase {
            train_from: layers[layers.len() - 1 - unfrozen].start,
            imitate: None,
            epoch: done % self.unfreeze_epochs,
            epochs: self.unfreeze_epochs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quail_walks_forth_layer_by_layer_and_back_unfreezing() {
        let quail = Quail {
            norm: QuailNorm::Amm,
            layer_epochs: 2,
            unfreeze_epochs: 1,
        };
        let layers = [0..3, 3..5, 5..8];
        let phases: Vec<(usize, Option<usize>, usize)> = (0..9)
            .map(|done| quail.phase_of(&layers, done))
            .map(|phase| (phase.train_from, phase.imitate, phase.epoch))
            .collect();
        assert_eq!(
            phases,
            [
                (0, Some(2), 0),
                (0, Some(2), 1),
                (3, Some(4), 0),
                (3, Some(4), 1),
                (5, Some(7), 0),
                (5, Some(7), 1),
                (5, None, 0),
                (3, None, 0),
                (0, None, 0),
            ]
        );
    }
}
