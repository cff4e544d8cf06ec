//! The part of an experiment file that sets an optimiser.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::Average;

/// An optimiser with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimiserConfig {
    /// The rule.
    #[serde(default)]
    pub rule: Rule,
    /// Decay of the parameters that fit `decayed`.
    #[serde(default)]
    pub weight_decay: f32,
    /// Parameters that decay, `*` for any characters: weights, not norms, biases and coefficients.
    #[serde(default = "weights")]
    pub decayed: Vec<String>,
    /// Bound of the global gradient norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f32>,
    /// Factor of the rate per layer, counted from the classifier back: layer-wise learning rates.
    #[serde(default = "one")]
    pub layer_decay: f32,
    /// Factors of the rate of parameters by name; the last fitting entry wins, and multiplies the
    /// layer's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<RateRule>,
    /// An average of the weights that takes their place when the stage ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<Average>,
}

fn weights() -> Vec<String> {
    vec!["*.weight".to_owned()]
}
fn one() -> f32 {
    1.0
}

/// A factor of the rate of some parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateRule {
    /// Names, `*` for any characters.
    pub parameters: String,
    /// The factor; 0 keeps them as they are.
    pub factor: f32,
}

/// The rule of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rule {
    /// `m <- mu m + g`, `x <- x - rate (g + mu m)` (or `m` without Nesterov), `g` with L2 decay.
    Sgd {
        /// `mu`.
        #[serde(default = "momentum")]
        momentum: f32,
        /// The step looks ahead by the momentum.
        #[serde(default = "yes")]
        nesterov: bool,
    },
    /// Adam; the decay is L2, or decoupled (AdamW).
    Adam {
        /// Weights of the old averages of the gradient and of its square.
        #[serde(default = "betas")]
        betas: [f32; 2],
        /// Summand of the root, which keeps the step finite.
        #[serde(default = "epsilon")]
        epsilon: f32,
        /// True for AdamW.
        #[serde(default)]
        decoupled: bool,
    },
    /// MoMo: momentum with a step from the model of the loss; the schedule's rate bounds it.
    Momo {
        /// Weight of the old averages.
        #[serde(default = "momentum")]
        momentum: f32,
        /// Lower bound `f*` of the loss.
        #[serde(default)]
        bound: f32,
    },
    /// MoMo in Adam's metric.
    MomoAdam {
        /// Weights of the old averages, and of that of the gradient's square.
        #[serde(default = "betas")]
        betas: [f32; 2],
        /// Summand of the root, which keeps the step finite.
        #[serde(default = "epsilon")]
        epsilon: f32,
        /// Lower bound `f*` of the loss.
        #[serde(default)]
        bound: f32,
    },
    /// Muon for the weights of convolutions, SGD with Nesterov momentum for all else.
    ///
    /// `m <- mu m + g`, `x <- x sqrt(c_out) / |x| - rate NS(g + mu m)`, where `NS` takes singular
    /// values to about one. It is for convolutions that a norm follows. Each kind of parameter
    /// needs a rate of its own, which `rates` gives. `weight_decay` takes `rate weight_decay x` of
    /// what is no convolution, `rate` that of the schedule: the factors of `rates` do not count.
    Muon {
        /// `mu`.
        #[serde(default = "muon_momentum")]
        momentum: f32,
        /// Steps of Newton and Schulz.
        #[serde(default = "muon_steps")]
        steps: usize,
        /// Momentum of what makes steps of SGD.
        #[serde(default = "muon_sgd_momentum")]
        sgd_momentum: f32,
    },
}

fn muon_momentum() -> f32 {
    0.6
}
fn muon_steps() -> usize {
    3
}
fn muon_sgd_momentum() -> f32 {
    0.85
}
fn momentum() -> f32 {
    0.9
}
fn yes() -> bool {
    true
}
fn betas() -> [f32; 2] {
    [0.9, 0.999]
}
fn epsilon() -> f32 {
    1e-8
}

impl Default for Rule {
    fn default() -> Self {
        Rule::Sgd {
            momentum: momentum(),
            nesterov: true,
        }
    }
}

impl Rule {
    /// True if a step depends on the value of the loss.
    pub fn models_the_loss(&self) -> bool {
        matches!(self, Rule::Momo { .. } | Rule::MomoAdam { .. })
    }

    /// Names of the state that a step leaves.
    pub(super) fn state(&self) -> &'static [&'static str] {
        match self {
            Rule::Sgd { .. } | Rule::Muon { .. } => &["momentum"],
            Rule::Adam { .. } => &["momentum", "square"],
            Rule::Momo { .. } => &["momentum", "loss", "inner"],
            Rule::MomoAdam { .. } => &["momentum", "square", "loss", "inner"],
        }
    }
}

impl OptimiserConfig {
    /// # Errors
    /// A number out of range, by key.
    pub fn check(&self) -> Result<()> {
        let in_unit = |value: f32| (0.0..1.0).contains(&value);
        match self.rule {
            Rule::Sgd { momentum, .. } | Rule::Momo { momentum, .. } => ensure!(
                in_unit(momentum),
                "optimiser: momentum is {momentum}, must be in 0..1"
            ),
            Rule::Adam { betas, epsilon, .. } | Rule::MomoAdam { betas, epsilon, .. } => ensure!(
                betas.into_iter().all(in_unit) && epsilon > 0.0 && epsilon.is_finite(),
                "optimiser: betas must be in 0..1 and epsilon above 0 and finite"
            ),
            Rule::Muon {
                momentum,
                steps,
                sgd_momentum,
            } => {
                ensure!(
                    in_unit(momentum) && in_unit(sgd_momentum),
                    "optimiser: momentum is {momentum} and sgd_momentum {sgd_momentum}, must be in \
                     0..1"
                );
                ensure!(
                    (1..=20).contains(&steps),
                    "optimiser: muon's steps are {steps}, must be 1 to 20"
                );
            }
        }
        if let Rule::Momo { bound, .. } | Rule::MomoAdam { bound, .. } = self.rule {
            ensure!(bound.is_finite(), "optimiser: bound must be a number");
        }
        ensure!(
            self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
            "optimiser.weight_decay must be finite and not negative"
        );
        ensure!(
            self.clip.is_none_or(|clip| clip > 0.0 && clip.is_finite()),
            "optimiser.clip must be above 0 and finite; without clip there is no bound"
        );
        ensure!(
            self.layer_decay > 0.0 && self.layer_decay <= 1.0,
            "optimiser.layer_decay must be above 0 and at most 1"
        );
        for rule in &self.rates {
            ensure!(
                rule.factor >= 0.0 && rule.factor.is_finite(),
                "optimiser.rates: the factor of {} is {}, must be finite and not negative",
                rule.parameters,
                rule.factor
            );
        }
        if let Some(Average::Ema { decay }) = self.average {
            ensure!(
                in_unit(decay),
                "optimiser: the average's decay must be in 0..1"
            );
        }
        Ok(())
    }
}
