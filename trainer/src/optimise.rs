//! Optimisers whose state stays on the device, over one flat vector of all trained parameters.
//!
//! SGD with Nesterov momentum, Adam and AdamW (Loshchilov and Hutter, ICLR 2019), MoMo and MoMo-Adam (Schaipp et al.,
//! ICML 2024), with rates and decay per parameter, a bound of the global gradient norm, and averages of the weights. One
//! flat vector makes a step a dozen operations whatever the number of layers; the host reads two numbers a step, the
//! loss and the gradient's norm, and stops there if either is no number.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Array, Arrays};
use crate::network::fits;
use crate::network::state::{Tensors, download, upload};

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
    /// Factors of the rate of parameters by name; the last fitting entry wins, and multiplies the layer's.
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
    /// The factor.
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
        /// Looks ahead.
        #[serde(default = "yes")]
        nesterov: bool,
    },
    /// Adam; the decay is L2, or decoupled (AdamW).
    Adam {
        /// Of the gradient and of its square.
        #[serde(default = "betas")]
        betas: [f32; 2],
        /// Added to the root.
        #[serde(default = "epsilon")]
        epsilon: f32,
        /// AdamW.
        #[serde(default)]
        decoupled: bool,
    },
    /// MoMo: momentum with a step from the model of the loss; the schedule's rate bounds it.
    Momo {
        /// Of the averages.
        #[serde(default = "momentum")]
        momentum: f32,
        /// Lower bound `f*` of the loss.
        #[serde(default)]
        bound: f32,
    },
    /// MoMo in Adam's metric.
    MomoAdam {
        /// Of the averages and of the gradient's square.
        #[serde(default = "betas")]
        betas: [f32; 2],
        /// Added to the root.
        #[serde(default = "epsilon")]
        epsilon: f32,
        /// Lower bound `f*` of the loss.
        #[serde(default)]
        bound: f32,
    },
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

/// An average of the weights over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Average {
    /// Exponential moving average.
    Ema {
        /// Weight of the old average.
        decay: f32,
    },
    /// Equal weights from an epoch of the stage on (SWA).
    Swa {
        /// First epoch, counted from 0.
        from: usize,
    },
}

impl OptimiserConfig {
    /// # Errors
    /// A number out of range, by key.
    pub(crate) fn check(&self) -> Result<()> {
        let in_unit = |value: f32| (0.0..1.0).contains(&value);
        match self.rule {
            Rule::Sgd { momentum, .. } | Rule::Momo { momentum, .. } => ensure!(
                in_unit(momentum),
                "optimiser: momentum is {momentum}, must be in 0..1"
            ),
            Rule::Adam { betas, epsilon, .. } | Rule::MomoAdam { betas, epsilon, .. } => ensure!(
                betas.into_iter().all(in_unit) && epsilon > 0.0,
                "optimiser: betas must be in 0..1 and epsilon above 0"
            ),
        }
        ensure!(
            self.weight_decay >= 0.0,
            "optimiser.weight_decay must not be negative"
        );
        ensure!(
            self.clip.is_none_or(|clip| clip > 0.0),
            "optimiser.clip must be above 0"
        );
        ensure!(
            self.layer_decay > 0.0 && self.layer_decay <= 1.0,
            "optimiser.layer_decay must be above 0 and at most 1"
        );
        if let Some(Average::Ema { decay }) = self.average {
            ensure!(
                in_unit(decay),
                "optimiser: the average's decay must be in 0..1"
            );
        }
        Ok(())
    }
}

/// What a step saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The loss before it.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub norm: f32,
}

/// An optimiser of named parameters.
pub struct Optimiser {
    config: OptimiserConfig,
    /// Names and lengths, in the order of the flat vectors.
    parts: Vec<(String, usize)>,
    /// Factor of the rate of each number.
    rates: Tensor<1>,
    /// Decay of each number.
    decay: Tensor<1>,
    /// Named vectors: momenta, squares, averages. Those of one element are scalars.
    state: Tensors,
    steps: u64,
    averaged: u64,
    device: Device,
}

impl Optimiser {
    /// A fresh optimiser for these parameters; `depth` is a parameter's layer counted from the classifier back.
    pub fn new(
        config: &OptimiserConfig,
        parameters: &Tensors,
        depth: impl Fn(&str) -> usize,
        device: &Device,
    ) -> Self {
        let parts: Vec<(String, usize)> = parameters
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.dims()[0]))
            .collect();
        let (mut rates, mut decay) = (Vec::new(), Vec::new());
        for (name, length) in &parts {
            let own = config
                .rates
                .iter()
                .rev()
                .find(|rule| fits(&rule.parameters, name));
            let factor =
                config.layer_decay.powi(depth(name) as i32) * own.map_or(1.0, |r| r.factor);
            rates.extend(std::iter::repeat_n(factor, *length));
            let decayed = config.decayed.iter().any(|pattern| fits(pattern, name));
            let value = if decayed { config.weight_decay } else { 0.0 };
            decay.extend(std::iter::repeat_n(value, *length));
        }
        Self {
            config: config.clone(),
            rates: upload(rates, device),
            decay: upload(decay, device),
            parts,
            state: Tensors::new(),
            steps: 0,
            averaged: 0,
            device: device.clone(),
        }
    }

    /// One step: `parameters` move against `gradients` (absent ones are zero) at `rate`; `epoch` says whether the
    /// average has begun.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite, by name; the parameters are then as before.
    pub fn step(
        &mut self,
        parameters: &mut Tensors,
        gradients: &Tensors,
        loss: &Tensor<1>,
        rate: f32,
        epoch: usize,
    ) -> Result<StepReport, NotFinite> {
        if self.parts.is_empty() {
            let loss = download(loss.clone())[0];
            return Ok(StepReport { loss, norm: 0.0 });
        }
        let gather = |tensors: &Tensors| {
            let parts = self.parts.iter().map(|(name, length)| {
                let part = tensors.get(name).cloned();
                part.unwrap_or_else(|| Tensor::zeros([*length], &self.device))
            });
            Tensor::cat(parts.collect(), 0)
        };
        let (x, g) = (gather(parameters), gather(gradients));
        let square = (g.clone() * g.clone()).sum();
        let seen = download(Tensor::cat(vec![loss.clone(), square], 0));
        let report = StepReport {
            loss: seen[0],
            norm: seen[1].sqrt(),
        };
        if !report.loss.is_finite() {
            return Err(NotFinite::Loss(report.loss));
        }
        if !report.norm.is_finite() {
            return Err(NotFinite::Gradient(blame(gradients)));
        }
        let g = match self.config.clip {
            Some(clip) if report.norm > clip => g.mul_scalar(clip / report.norm),
            _ => g,
        };
        self.steps += 1;
        let x = self.update(x, g, loss, rate);
        self.average(&x, epoch);
        self.scatter(&x, parameters);
        Ok(report)
    }

    fn update(&mut self, x: Tensor<1>, g: Tensor<1>, loss: &Tensor<1>, rate: f32) -> Tensor<1> {
        let k = self.steps as i32;
        match self.config.rule {
            Rule::Sgd { momentum, nesterov } => {
                let g = g + x.clone() * self.decay.clone();
                let m = self.take("momentum").mul_scalar(momentum) + g.clone();
                self.state.insert("momentum".to_owned(), m.clone());
                let direction = if nesterov {
                    g + m.mul_scalar(momentum)
                } else {
                    m
                };
                x - (direction * self.rates.clone()).mul_scalar(rate)
            }
            Rule::Adam {
                betas,
                epsilon,
                decoupled,
            } => {
                let (x, g) = if decoupled {
                    let shrink = (self.decay.clone() * self.rates.clone()).mul_scalar(rate);
                    (x.clone() - x * shrink, g)
                } else {
                    (x.clone(), g + x * self.decay.clone())
                };
                let m = self.blend("momentum", g.clone(), betas[0]);
                let d = self.metric(g, betas[1], epsilon);
                let m = m.mul_scalar(1.0 / (1.0 - betas[0].powi(k)));
                x - (m / d * self.rates.clone()).mul_scalar(rate)
            }
            Rule::Momo { momentum, bound } => {
                // The averages begin at their first values, so their weights sum to one.
                let inner = (g.clone() * x.clone()).sum();
                if k == 1 {
                    let first = [("momentum", &g), ("loss", loss), ("inner", &inner)];
                    for (name, value) in first {
                        self.state.insert(name.to_owned(), value.clone());
                    }
                }
                let d = self.blend("momentum", g, momentum);
                let f = self.blend("loss", loss.clone(), momentum);
                let inner = self.blend("inner", inner, momentum);
                let inverse = self.rates.clone();
                self.model_step(x, d, f, inner, inverse, 1.0, rate, bound)
            }
            Rule::MomoAdam {
                betas,
                epsilon,
                bound,
            } => {
                let inner = (g.clone() * x.clone()).sum();
                let d = self.blend("momentum", g.clone(), betas[0]);
                let f = self.blend("loss", loss.clone(), betas[0]);
                let inner = self.blend("inner", inner, betas[0]);
                let inverse = self.rates.clone() / self.metric(g, betas[1], epsilon);
                let weight = 1.0 - betas[0].powi(k);
                self.model_step(x, d, f, inner, inverse, weight, rate, bound)
            }
        }
    }

    /// MoMo's step. With decays `l` that differ between parameters, the proximal step of the model
    /// `max(rho f*, f - g + <d, y>)` in the metric `D` gives
    /// `tau = min(alpha / rho, max(0, f - rho f* - g + <d, x / (1 + alpha l)>) / sum(d^2 / (D (1 + alpha l))))`,
    /// which is the paper's where all are equal.
    fn model_step(
        &self,
        x: Tensor<1>,
        d: Tensor<1>,
        f: Tensor<1>,
        inner: Tensor<1>,
        inverse: Tensor<1>,
        weight: f32,
        rate: f32,
        bound: f32,
    ) -> Tensor<1> {
        let shrink = self.decay.clone().mul_scalar(rate).add_scalar(1.0).recip();
        let x = x * shrink.clone();
        let direction = d.clone() * inverse * shrink;
        let gap = f.sub_scalar(weight * bound) - inner + (d.clone() * x.clone()).sum();
        let square = (d * direction.clone()).sum().clamp_min(1e-30);
        let tau = (gap.clamp_min(0.0) / square).clamp_max(rate / weight);
        x - direction * tau
    }

    fn take(&mut self, name: &str) -> Tensor<1> {
        let length = self.rates.dims()[0];
        let zeros = || Tensor::zeros([length], &self.device);
        self.state.remove(name).unwrap_or_else(zeros)
    }

    /// Moves the named average towards `value` and returns it; it begins at zero.
    fn blend(&mut self, name: &str, value: Tensor<1>, beta: f32) -> Tensor<1> {
        let new = value.mul_scalar(1.0 - beta);
        let new = match self.state.remove(name) {
            Some(old) => old.mul_scalar(beta) + new,
            None => new,
        };
        self.state.insert(name.to_owned(), new.clone());
        new
    }

    /// Adam's `sqrt(v / (1 - beta^k)) + epsilon`.
    fn metric(&mut self, g: Tensor<1>, beta: f32, epsilon: f32) -> Tensor<1> {
        let v = self.blend("square", g.clone() * g, beta);
        let correction = 1.0 / (1.0 - beta.powi(self.steps as i32));
        v.mul_scalar(correction).sqrt().add_scalar(epsilon)
    }

    fn average(&mut self, x: &Tensor<1>, epoch: usize) {
        let weight = match self.config.average {
            None => return,
            Some(Average::Swa { from }) if epoch < from => return,
            Some(Average::Swa { .. }) => 1.0 / (self.averaged + 1) as f32,
            Some(Average::Ema { .. }) if self.averaged == 0 => 1.0,
            Some(Average::Ema { decay }) => 1.0 - decay,
        };
        self.averaged += 1;
        let old = self.state.remove("average").unwrap_or_else(|| x.clone());
        let new = old.clone() + (x.clone() - old).mul_scalar(weight);
        self.state.insert("average".to_owned(), new);
    }

    /// Puts the averaged weights in the place of the parameters; returns whether there is an average.
    pub fn apply_average(&mut self, parameters: &mut Tensors) -> bool {
        let Some(average) = self.state.remove("average") else {
            return false;
        };
        self.scatter(&average, parameters);
        true
    }

    fn scatter(&self, x: &Tensor<1>, parameters: &mut Tensors) {
        let mut start = 0;
        for (name, length) in &self.parts {
            let part = x.clone().narrow(0, start, *length);
            parameters.insert(name.clone(), part);
            start += *length;
        }
    }

    /// All state, for a file.
    pub fn export(&self) -> Arrays {
        let mut arrays: Arrays = self
            .state
            .iter()
            .map(|(name, tensor)| {
                let values = download(tensor.clone());
                let shape = vec![values.len()];
                (name.clone(), Array { shape, values })
            })
            .collect();
        // Counts beyond 2^24 do not fit a float: two halves of 20 bits do.
        for (name, count) in [("steps", self.steps), ("averaged", self.averaged)] {
            let values = vec![(count >> 20) as f32, (count & 0xf_ffff) as f32];
            arrays.insert(
                name.to_owned(),
                Array {
                    shape: vec![2],
                    values,
                },
            );
        }
        arrays
    }

    /// Takes over exported state.
    ///
    /// # Errors
    /// State of other parameters.
    pub fn import(&mut self, arrays: Arrays) -> Result<()> {
        let total = self.rates.dims()[0];
        for (name, array) in arrays {
            let length = array.values.len();
            match (name.as_str(), array.values.as_slice()) {
                ("steps", [high, low]) => self.steps = ((*high as u64) << 20) + *low as u64,
                ("averaged", [high, low]) => self.averaged = ((*high as u64) << 20) + *low as u64,
                _ if length == 1 || length == total => {
                    self.state.insert(name, upload(array.values, &self.device));
                }
                _ => bail!("the optimiser's {name} has {length} numbers, not {total}"),
            }
        }
        Ok(())
    }

    /// Takes over the state of an optimiser of the same rule, parameter by parameter; what is new begins at zero, and
    /// averages of the weights begin anew.
    pub fn carry(&mut self, old: &Optimiser) {
        if self.config.rule != old.config.rule {
            return;
        }
        self.steps = old.steps;
        for (name, tensor) in old.state.iter().filter(|(name, _)| *name != "average") {
            if tensor.dims()[0] == 1 {
                self.state.insert(name.clone(), tensor.clone());
                continue;
            }
            let mut named = BTreeMap::new();
            old.scatter(tensor, &mut named);
            let parts = self.parts.iter().map(|(part, length)| {
                let old = named.remove(part).filter(|old| old.dims()[0] == *length);
                old.unwrap_or_else(|| Tensor::zeros([*length], &self.device))
            });
            let flat = Tensor::cat(parts.collect(), 0);
            self.state.insert(name.clone(), flat);
        }
    }
}

/// Why a step could not be made.
#[derive(Clone, Debug, PartialEq)]
pub enum NotFinite {
    /// The loss.
    Loss(f32),
    /// The gradient of this parameter.
    Gradient(String),
}

fn blame(gradients: &Tensors) -> String {
    gradients
        .iter()
        .find(|(_, gradient)| !download((*gradient).clone().abs().sum())[0].is_finite())
        .map_or_else(
            || "all parameters together".to_owned(),
            |(name, _)| name.clone(),
        )
}
