//! AutoReP: automatic ReLU replacement (Peng et al., ICCV 2023).
//!
//! Published: each ReLU gets a weight and an indicator that is one or zero. The indicator becomes
//! one where the weight rises above a small width and zero where it falls below the negative
//! width; in between it stays what it was (hysteresis), so that positions do not flicker. Gradients
//! go straight through it, and the penalty presses on the weights. A removed position computes the
//! quadratic that is nearest to ReLU under the distribution of its channel's inputs, trained from
//! there with its square and constant damped at the start.
//!
//! Ours: a removed position may become the identity (`removed = "identity"`), and the budget is met
//! exactly, see [`selection`](super::selection). There the configuration and the course of a stage
//! stand, which are those of SNL too; here is what is AutoReP's own.

use anyhow::Result;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{AfterEpoch, Context, Hooks, Phase, Position, Pressure, SelectionConfig, selection};
use crate::config::StageConfig;
use crate::network::state::{Indicator, Removed};
use crate::network::{Buffer, Counts, Pass, Selection, State};

/// Configuration of AutoReP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Autorep(pub SelectionConfig);

impl Hooks for Autorep {
    fn name(&self) -> &'static str {
        "autorep"
    }

    fn check(&self, stage: &StageConfig, _polynomial_kernels: bool) -> Result<()> {
        self.0.check(stage)
    }

    fn selects(&self) -> bool {
        true
    }

    fn begin(&self, context: &mut Context<'_>) -> Result<usize> {
        let width = self.0.hysteresis;
        let selection = Selection {
            indicator: Indicator::Hysteresis { width },
            removed: self.0.removed.unwrap_or(Removed::Polynomial),
        };
        // Just above the band: a position falls after a few steps of pressure.
        Ok(self.0.begin(context, selection, 2.0 * width + 1e-3))
    }

    fn phase(&self, at: &Position<'_>) -> Phase {
        selection::phase(at)
    }

    fn penalty(&self, state: &State, pressure: Option<Pressure>, pass: &Pass) -> Option<Tensor<1>> {
        selection::penalty(state, pressure, pass, |site, keep, relu| {
            // Only what is kept is pushed down: what is removed may come back.
            let kept = pass.kept[&Buffer::Kept.of(site)].clone();
            keep * Tensor::from_inner(relu * kept)
        })
    }

    fn after_epoch(&self, context: &mut Context<'_>) -> AfterEpoch {
        // The factors are zero and one.
        self.0.press(context, 0.5)
    }

    fn end(&self, context: &mut Context<'_>) {
        self.0.end(context);
    }

    fn counts(&self, masks: Counts, state: &State, pressure: Option<Pressure>) -> Counts {
        selection::counts(masks, state, pressure)
    }
}
