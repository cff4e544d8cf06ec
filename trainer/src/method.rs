//! Methods, which say what a stage does beside training: one file each, with the method's
//! configuration, its checks and its part in the course of a stage.
//!
//! | method | file | source |
//! | --- | --- | --- |
//! | plain training | [`plain`](Method::Plain) | |
//! | QuaIL | [`quail`](Quail) | Sisyphus, arXiv 2107.12342 |
//! | SNL | [`snl`](Snl) | Cho et al., ICML 2022 |
//! | AutoReP | [`autorep`](Autorep) | Peng et al., ICCV 2023 |
//! | BCD | [`bcd`](Bcd) | arXiv 2511.11781 |
//! | cut by saliency | [`saliency`](Saliency) | ours |
//!
//! A run hands over to the method of its stage at fixed points, which are the functions of
//! `Hooks`. SNL and AutoReP train a weight per ReLU in the same way; what they share stands in
//! `selection`. BCD and the cut rank positions by the same estimate, in `first_order`.

mod autorep;
mod bcd;
mod context;
mod first_order;
mod keep;
mod plain;
mod quadratics;
mod quail;
mod saliency;
mod selection;
mod snl;

use anyhow::Result;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

pub use autorep::Autorep;
pub use bcd::{Bcd, Draw, Latency};
pub(crate) use context::{Context, EVALUATION_BATCH, STATISTICS_RATE};
pub(crate) use quadratics::quadratics;
pub use quail::{Quail, QuailNorm};
pub use saliency::{Cut, Saliency};
pub use selection::{Pressure, SelectionConfig};
pub use snl::Snl;

use crate::config::{StageConfig, Teacher};
use crate::network::{Counts, Network, Pass, Replacement, State};

/// Method of a stage: its work beside training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Nothing.
    #[default]
    Plain,
    /// Layer-wise imitation of a ReLU network, then unfreezing from the last layer back.
    Quail(Quail),
    /// Selective network linearisation: a real factor per ReLU under an L1 penalty.
    Snl(Snl),
    /// AutoReP: a factor per ReLU with hysteresis and straight-through gradient; removed positions
    /// become quadratics.
    Autorep(Autorep),
    /// Block coordinate descent on the ReLUs that are left.
    Bcd(Bcd),
    /// A cut by first-order saliency before the first epoch.
    Saliency(Saliency),
}

impl Method {
    /// Name of the method in logs and results.
    pub fn name(&self) -> &'static str {
        self.hooks().name()
    }

    /// Returns true for plain training, which leaves the activations as they are.
    pub(crate) fn only_trains(&self) -> bool {
        *self == Method::Plain
    }

    /// The method as a run sees it.
    pub(crate) fn hooks(&self) -> &dyn Hooks {
        match self {
            Method::Plain => &plain::Plain,
            Method::Quail(quail) => quail,
            Method::Snl(snl) => snl,
            Method::Autorep(autorep) => autorep,
            Method::Bcd(bcd) => bcd,
            Method::Saliency(saliency) => saliency,
        }
    }
}

/// The points at which a run hands over to its stage's method, in the order in which a stage comes
/// to them. The defaults are those of a stage that only trains.
pub(crate) trait Hooks {
    /// Name of the method in logs and results.
    fn name(&self) -> &'static str;

    /// Checks the method's own keys, and those of the stage that it has a say in.
    /// `polynomial_kernels` is true if the network has polynomials at convolutions.
    ///
    /// # Errors
    /// A number out of range, or keys that do not go together.
    fn check(&self, _stage: &StageConfig, _polynomial_kernels: bool) -> Result<()> {
        Ok(())
    }

    /// Returns true if the number of epochs follows from the method's own keys.
    fn counts_own_epochs(&self) -> bool {
        false
    }

    /// Returns true if the method trains a weight per ReLU while the stage is under way.
    fn selects(&self) -> bool {
        false
    }

    /// The teacher that the method needs where the stage names none.
    fn teacher(&self) -> Option<Teacher> {
        None
    }

    /// Checks that a network can teach the student in this method.
    ///
    /// # Errors
    /// A teacher that the method cannot learn from.
    fn check_teacher(&self, _who: &Teacher, _student: &Network, _teacher: &Network) -> Result<()> {
        Ok(())
    }

    /// Activations that the method puts in place when the stage begins, after those of the stage.
    fn replacement(&self) -> Option<Replacement> {
        None
    }

    /// Begins the stage; returns the number of its epochs.
    ///
    /// # Errors
    /// A network that the method cannot work on.
    fn begin(&self, context: &mut Context<'_>) -> Result<usize> {
        Ok(context.stage.epochs)
    }

    /// Checks that a stage of this many epochs, read from a checkpoint, is one of this method.
    ///
    /// # Errors
    /// Another number of epochs, or another teacher, than the method would have.
    fn check_resumed(
        &self,
        _epochs: usize,
        _student: &Network,
        _teacher: Option<&Network>,
    ) -> Result<()> {
        Ok(())
    }

    /// Phase of the epoch under way.
    fn phase(&self, at: &Position<'_>) -> Phase {
        Phase::whole(at.done, at.epochs)
    }

    /// Called before the first step of an epoch; returns what it did, for the log.
    ///
    /// # Errors
    /// Costs that cannot be read, or are not of this network.
    fn before_epoch(
        &self,
        _phase: Phase,
        _context: &mut Context<'_>,
    ) -> Result<Option<serde_json::Value>> {
        Ok(None)
    }

    /// Returns false for a parameter that the method holds fixed.
    fn trains(&self, _parameter: &str) -> bool {
        true
    }

    /// Penalty that the method adds to the loss of a step.
    fn penalty(
        &self,
        _state: &State,
        _pressure: Option<Pressure>,
        _pass: &Pass,
    ) -> Option<Tensor<1>> {
        None
    }

    /// Called after the last step of an epoch.
    fn after_epoch(&self, _context: &mut Context<'_>) -> AfterEpoch {
        AfterEpoch::default()
    }

    /// Ends the stage.
    fn end(&self, _context: &mut Context<'_>) {}

    /// Positions by kind as the log reports them, from those of the masks.
    fn counts(&self, masks: Counts, _state: &State, _pressure: Option<Pressure>) -> Counts {
        masks
    }
}

/// Place of an epoch within its stage.
pub(crate) struct Position<'a> {
    /// The network that is trained.
    pub(crate) network: &'a Network,
    /// The stage.
    pub(crate) stage: &'a StageConfig,
    /// Finished epochs.
    pub(crate) done: usize,
    /// Epochs in all.
    pub(crate) epochs: usize,
}

/// The part of the network that an epoch trains, and the epoch's place in the learning-rate
/// schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Phase {
    /// First node that trains.
    pub(crate) train_from: usize,
    /// Node whose output imitates the teacher's; if none, the labels are the target.
    pub(crate) imitate: Option<usize>,
    /// Finished epochs of the phase.
    pub(crate) epoch: usize,
    /// Epochs of the phase.
    pub(crate) epochs: usize,
}

impl Phase {
    /// A phase that trains the whole network towards the labels.
    fn whole(epoch: usize, epochs: usize) -> Self {
        Self {
            train_from: 0,
            imitate: None,
            epoch,
            epochs,
        }
    }
}

/// Outcome of a method's work after an epoch.
#[derive(Default)]
pub(crate) struct AfterEpoch {
    /// For the log.
    pub(crate) log: Option<serde_json::Value>,
    /// The stage has reached its goal and ends here.
    pub(crate) done: bool,
}
