//! What SNL and AutoReP share: a trained weight per ReLU, an L1 penalty that presses the weights
//! down, and an end at a budget.
//!
//! Position `e` of a masked site computes `m relu(z) + (1 - m) q(z)`, where the factor `m` comes
//! from the weight `keep` as the method's [`Indicator`](crate::network::state::Indicator) says and
//! `q` is what the position becomes without its ReLU. After each epoch the ReLUs that count are
//! counted; where the count did not fall, the penalty's weight grows. Once the count is within the
//! budget the stage ends.
//!
//! Ours: the end meets the budget exactly, and whether the count came down to it or not. The ReLUs
//! of the largest weights stay, as many as the budget says, and all others are removed
//! ([`State::end_selection`]); then the running statistics are measured anew, as the activations
//! changed under them. Quadratics that a site has from an earlier stage stay as they are; only new
//! ones are fitted.

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{AfterEpoch, Context, Phase, Position};
use crate::config::StageConfig;
use crate::network::state::Removed;
use crate::network::{Counts, Parameter, Pass, Selection, State};

/// Upper bound of the penalty's weight. It decides every step long before, and its squares are
/// still finite.
const MAX_LAMBDA: f32 = 1e6;

/// Configuration of SNL and of AutoReP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectionConfig {
    /// ReLUs that stay.
    pub relus: usize,
    /// Weight of the L1 penalty in the first epoch.
    #[serde(default = "lambda")]
    pub lambda: f32,
    /// Factor of that weight after each epoch in which the count did not fall.
    #[serde(default = "growth")]
    pub growth: f32,
    /// A ReLU counts while its factor is above this; SNL only.
    #[serde(default = "threshold")]
    pub threshold: f32,
    /// Half the width of the hysteresis' band; AutoReP only.
    #[serde(default = "hysteresis")]
    pub hysteresis: f32,
    /// Function of a removed position; the identity in SNL's own version, a quadratic in
    /// AutoReP's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Removed>,
}

fn lambda() -> f32 {
    1e-5
}
fn growth() -> f32 {
    1.1
}
fn threshold() -> f32 {
    1e-2
}
fn hysteresis() -> f32 {
    3e-3
}

/// State of a selection's penalty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Weight of the L1 penalty.
    pub lambda: f32,
    /// ReLUs that were left after the last epoch.
    pub count: usize,
}

impl SelectionConfig {
    pub(super) fn check(&self, stage: &StageConfig) -> Result<()> {
        ensure!(stage.epochs > 0, "epochs, the most it may take, is missing");
        ensure!(
            self.lambda > 0.0
                && self.lambda.is_finite()
                && self.growth >= 1.0
                && self.growth.is_finite(),
            "lambda must be above 0 and growth at least 1, both finite"
        );
        ensure!(
            (0.0..1.0).contains(&self.hysteresis) && (0.0..1.0).contains(&self.threshold),
            "hysteresis and threshold must be in 0..1"
        );
        Ok(())
    }

    /// Begins the selection with weights of `start`; returns the most epochs it may take.
    pub(super) fn begin(
        &self,
        context: &mut Context<'_>,
        selection: Selection,
        start: f32,
    ) -> usize {
        let count = context.counts().relus;
        let new = context.without_quadratics();
        context
            .state
            .begin_selection(context.network, selection, start);
        if selection.removed == Removed::Polynomial {
            context.fit_quadratics(&new, true);
        }
        *context.pressure = Some(Pressure {
            lambda: self.lambda,
            count,
        });
        context.stage.epochs
    }

    /// After an epoch: counts the factors above `threshold`, raises the penalty if the count did
    /// not fall, and ends the stage within the budget.
    pub(super) fn press(&self, context: &mut Context<'_>, threshold: f32) -> AfterEpoch {
        let count = context.state.selected(threshold);
        let pressure = context.pressure.get_or_insert(Pressure {
            lambda: self.lambda,
            count,
        });
        if count >= pressure.count {
            pressure.lambda = (pressure.lambda * self.growth).min(MAX_LAMBDA);
        }
        pressure.count = count;
        AfterEpoch {
            log: Some(json!({ "left": count, "lambda": pressure.lambda })),
            done: count <= self.relus,
        }
    }

    pub(super) fn end(&self, context: &mut Context<'_>) {
        context.state.end_selection(context.network, self.relus);
        *context.pressure = None;
        context.renew_statistics();
    }
}

/// The whole network in every epoch. The schedule spans the most epochs that a selection may take,
/// as nobody knows beforehand when it meets its budget.
pub(super) fn phase(at: &Position<'_>) -> Phase {
    Phase::whole(at.done, at.stage.epochs)
}

/// Sum over all sites of what `of_site` makes of a site's weights and of the plane that is one at
/// its ReLUs, times the penalty's weight.
pub(super) fn penalty(
    state: &State,
    pressure: Option<Pressure>,
    pass: &Pass,
    of_site: impl Fn(&str, Tensor<1>, Tensor<1>) -> Tensor<1>,
) -> Option<Tensor<1>> {
    let lambda = pressure?.lambda;
    let terms = pass.leaves.iter().filter_map(|(name, leaf)| {
        let Some((site, Parameter::Keep)) = Parameter::parse(name) else {
            return None;
        };
        Some(of_site(site, leaf.clone(), state.relu_plane(site)).sum())
    });
    Some(terms.reduce(|a, b| a + b)?.mul_scalar(lambda))
}

/// Counts the positions that are removed for the moment as what they would become.
pub(super) fn counts(masks: Counts, state: &State, pressure: Option<Pressure>) -> Counts {
    let mut counts = masks;
    if let (Some(selection), Some(pressure)) = (state.selection, pressure) {
        let removed = counts.relus.saturating_sub(pressure.count);
        counts.relus -= removed;
        match selection.removed {
            Removed::Identity => counts.identities += removed,
            Removed::Polynomial => counts.polynomials += removed,
        }
    }
    counts
}
