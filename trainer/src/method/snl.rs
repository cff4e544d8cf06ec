//! SNL: selective network linearisation (Cho et al., ICML 2022).
//!
//! Published: each ReLU gets a real factor `m`, which is trained with the weights, and computes
//! `m relu(z) + (1 - m) z`. An L1 penalty presses the factors towards zero; a ReLU counts while its
//! factor is above a threshold, and the penalty grows by a factor whenever an epoch has not lowered
//! the count. The stage that follows fine-tunes the network with the ReLUs that are left.
//!
//! Ours: a removed position may become a quadratic (`removed = "polynomial"`), and the budget is
//! met exactly, see [`selection`](super::selection). There the configuration and the course of a
//! stage stand, which are those of AutoReP too; here is what is SNL's own.

use anyhow::Result;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{AfterEpoch, Context, Hooks, Phase, Position, Pressure, SelectionConfig, selection};
use crate::config::StageConfig;
use crate::network::state::{Indicator, Removed};
use crate::network::{Counts, Pass, Selection, State};

/// Configuration of SNL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Snl(pub SelectionConfig);

impl Hooks for Snl {
    fn name(&self) -> &'static str {
        "snl"
    }

    fn check(&self, stage: &StageConfig, _polynomial_kernels: bool) -> Result<()> {
        self.0.check(stage)
    }

    fn selects(&self) -> bool {
        true
    }

    fn begin(&self, context: &mut Context<'_>) -> Result<usize> {
        let selection = Selection {
            indicator: Indicator::Real,
            removed: self.0.removed.unwrap_or(Removed::Identity),
        };
        // A factor of one is the ReLU that was there.
        Ok(self.0.begin(context, selection, 1.0))
    }

    fn phase(&self, at: &Position<'_>) -> Phase {
        selection::phase(at)
    }

    fn penalty(&self, state: &State, pressure: Option<Pressure>, pass: &Pass) -> Option<Tensor<1>> {
        selection::penalty(state, pressure, pass, |_, keep, relu| {
            keep.abs() * Tensor::from_inner(relu)
        })
    }

    fn after_epoch(&self, context: &mut Context<'_>) -> AfterEpoch {
        self.0.press(context, self.0.threshold)
    }

    fn end(&self, context: &mut Context<'_>) {
        self.0.end(context);
    }

    fn counts(&self, masks: Counts, state: &State, pressure: Option<Pressure>) -> Counts {
        selection::counts(masks, state, pressure)
    }
}
