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

#[cfg(test)]
mod tests {
    use super::*;

    /// Three parameters of two numbers each: a weight, a norm's scale, and a weight of another layer.
    const NAMES: [&str; 3] = ["a.weight", "b.gamma", "c.weight"];

    fn tensors(values: &[f64]) -> Tensors {
        let parts = NAMES.iter().zip(values.chunks(2));
        parts
            .map(|(name, part)| {
                let part = part.iter().map(|v| *v as f32).collect();
                ((*name).to_owned(), upload(part, &Device::flex()))
            })
            .collect()
    }

    fn values(tensors: &Tensors) -> Vec<f64> {
        let parts = tensors.values().flat_map(|t| download(t.clone()));
        parts.map(f64::from).collect()
    }

    /// A convex loss with different curvatures, its gradient, and a start.
    fn loss(x: &[f64]) -> f64 {
        0.3 + x
            .iter()
            .enumerate()
            .map(|(i, v)| (0.2 + i as f64 * 0.3) * v * v)
            .sum::<f64>()
    }

    fn gradient(x: &[f64]) -> Vec<f64> {
        let terms = x.iter().enumerate();
        terms
            .map(|(i, v)| 2.0 * (0.2 + i as f64 * 0.3) * v)
            .collect()
    }

    const START: [f64; 6] = [1.0, -0.5, 0.8, 0.3, -1.2, 0.6];

    fn config(text: &str) -> OptimiserConfig {
        let config: OptimiserConfig = toml::from_str(text).unwrap();
        config.check().unwrap();
        config
    }

    fn depth(name: &str) -> usize {
        usize::from(name.starts_with('a'))
    }

    /// Holds `steps` steps of the optimiser against `reference(x, gradient, loss, step from 1)` in double precision.
    fn follows(text: &str, rate: f64, reference: &mut dyn FnMut(&mut [f64], Vec<f64>, f64, i32)) {
        let (config, device) = (config(text), Device::flex());
        let mut parameters = tensors(&START);
        let mut optimiser = Optimiser::new(&config, &parameters, depth, &device);
        let mut x = START.to_vec();
        for step in 1..=6 {
            let gradients = tensors(&gradient(&values(&parameters)));
            let value = upload(vec![loss(&values(&parameters)) as f32], &device);
            optimiser
                .step(&mut parameters, &gradients, &value, rate as f32, 0)
                .unwrap();
            let g = gradient(&x);
            let f = loss(&x);
            reference(&mut x, g, f, step);
            for (got, expected) in values(&parameters).iter().zip(&x) {
                assert!(
                    (got - expected).abs() < 2e-5,
                    "{text}, step {step}: {got}, expected {expected}"
                );
            }
        }
    }

    fn decay(i: usize, amount: f64) -> f64 {
        // Of the three, b.gamma does not decay.
        if (2..4).contains(&i) { 0.0 } else { amount }
    }

    #[test]
    fn sgd_follows_its_equations() {
        for nesterov in [true, false] {
            let text = format!(
                "rule = {{ sgd = {{ momentum = 0.9, nesterov = {nesterov} }} }}\nweight_decay = 0.1\nlayer_decay = 0.5\nrates = [{{ parameters = \"c*\", factor = 0.25 }}]"
            );
            let mut m = [0.0; 6];
            follows(&text, 0.05, &mut |x, g, _, _| {
                for i in 0..6 {
                    let factor = [0.5, 0.5, 1.0, 1.0, 0.25, 0.25][i];
                    let g = g[i] + decay(i, 0.1) * x[i];
                    m[i] = 0.9 * m[i] + g;
                    let direction = if nesterov { g + 0.9 * m[i] } else { m[i] };
                    x[i] -= 0.05 * factor * direction;
                }
            });
        }
    }

    #[test]
    fn adam_and_adamw_follow_their_equations() {
        for decoupled in [true, false] {
            let text = format!(
                "rule = {{ adam = {{ betas = [0.8, 0.95], epsilon = 1e-6, decoupled = {decoupled} }} }}\nweight_decay = 0.1"
            );
            let (mut m, mut v) = ([0.0; 6], [0.0; 6]);
            follows(&text, 0.05, &mut |x, g, _, k| {
                for i in 0..6 {
                    let mut g = g[i];
                    if decoupled {
                        x[i] -= 0.05 * decay(i, 0.1) * x[i];
                    } else {
                        g += decay(i, 0.1) * x[i];
                    }
                    m[i] = 0.8 * m[i] + 0.2 * g;
                    v[i] = 0.95 * v[i] + 0.05 * g * g;
                    let (m, v) = (
                        m[i] / (1.0 - 0.8f64.powi(k)),
                        v[i] / (1.0 - 0.95f64.powi(k)),
                    );
                    x[i] -= 0.05 * m / (v.sqrt() + 1e-6);
                }
            });
        }
    }

    /// MoMo as the paper writes it, with one decay for all: `tau = min(alpha / rho, max(0, (1 + alpha lambda)(f - rho f*)
    /// + <d, x> - (1 + alpha lambda) g) / |d|^2)`, `x <- (x - tau d) / (1 + alpha lambda)`.
    fn momo(
        x: &mut [f64],
        d: &[f64],
        f: f64,
        inner: f64,
        metric: &[f64],
        rho: f64,
        alpha: f64,
        lambda: f64,
        bound: f64,
    ) -> f64 {
        let shrink = 1.0 + alpha * lambda;
        let dot: f64 = d.iter().zip(x.iter()).map(|(d, x)| d * x).sum();
        let square: f64 = d.iter().zip(metric).map(|(d, m)| d * d / m).sum();
        let gap = shrink * (f - rho * bound) + dot - shrink * inner;
        let tau = (alpha / rho).min(gap.max(0.0) / square);
        for i in 0..x.len() {
            x[i] = (x[i] - tau * d[i] / metric[i]) / shrink;
        }
        tau
    }

    #[test]
    fn momo_follows_its_equations_in_every_branch() {
        // (rate, decay, bound): steps bounded by the rate, by the model, and none because the loss is at its bound.
        for (alpha, lambda, bound) in [
            (0.05, 0.1, 0.0),
            (5.0, 0.1, 0.0),
            (5.0, 0.0, 0.25),
            (5.0, 0.1, 9.0),
        ] {
            let text = format!(
                "rule = {{ momo = {{ momentum = 0.9, bound = {bound} }} }}\nweight_decay = {lambda}\ndecayed = [\"*\"]"
            );
            let (mut d, mut f, mut inner) = (vec![0.0; 6], 0.0, 0.0);
            let mut taus = Vec::new();
            follows(&text, alpha, &mut |x, g, value, k| {
                let dot: f64 = g.iter().zip(x.iter()).map(|(g, x)| g * x).sum();
                if k == 1 {
                    (d, f, inner) = (g, value, dot);
                } else {
                    for i in 0..6 {
                        d[i] = 0.9 * d[i] + 0.1 * g[i];
                    }
                    f = 0.9 * f + 0.1 * value;
                    inner = 0.9 * inner + 0.1 * dot;
                }
                taus.push(momo(x, &d, f, inner, &[1.0; 6], 1.0, alpha, lambda, bound));
            });
            let branch = |tau: f64| (tau == alpha, tau == 0.0);
            let expected = match (alpha, bound) {
                (a, _) if a < 1.0 => (true, false),
                (_, b) if b > 1.0 => (false, true),
                _ => (false, false),
            };
            assert_eq!(branch(taus[0]), expected, "{taus:?}");
        }
    }

    #[test]
    fn momo_adam_follows_its_equations() {
        for (alpha, bound) in [(0.01, 0.0), (5.0, 0.0), (5.0, 0.3)] {
            let text = format!(
                "rule = {{ momo-adam = {{ betas = [0.9, 0.99], epsilon = 1e-6, bound = {bound} }} }}\nweight_decay = 0.05\ndecayed = [\"*\"]"
            );
            let (mut d, mut v, mut f, mut inner) = ([0.0; 6], [0.0; 6], 0.0, 0.0);
            follows(&text, alpha, &mut |x, g, value, k| {
                let dot: f64 = g.iter().zip(x.iter()).map(|(g, x)| g * x).sum();
                let mut metric = [0.0; 6];
                for i in 0..6 {
                    d[i] = 0.9 * d[i] + 0.1 * g[i];
                    v[i] = 0.99 * v[i] + 0.01 * g[i] * g[i];
                    metric[i] = (v[i] / (1.0 - 0.99f64.powi(k))).sqrt() + 1e-6;
                }
                f = 0.9 * f + 0.1 * value;
                inner = 0.9 * inner + 0.1 * dot;
                let rho = 1.0 - 0.9f64.powi(k);
                momo(x, &d, f, inner, &metric, rho, alpha, 0.05, bound);
            });
        }
    }

    #[test]
    fn the_norm_is_that_of_all_gradients_together_and_is_bounded() {
        let config = config("rule = { sgd = { momentum = 0.0 } }\nclip = 1.0");
        let device = Device::flex();
        let mut parameters = tensors(&[0.0; 6]);
        let mut optimiser = Optimiser::new(&config, &parameters, depth, &device);
        let gradients = tensors(&[3.0, 0.0, 0.0, 4.0, 0.0, 12.0]);
        let one = upload(vec![1.0], &device);
        let report = optimiser
            .step(&mut parameters, &gradients, &one, 1.0, 0)
            .unwrap();
        assert_eq!(report.norm, 13.0);
        let moved: f64 = values(&parameters).iter().map(|v| v * v).sum();
        assert!((moved - 1.0).abs() < 1e-6, "moved by {moved}");
    }

    #[test]
    fn what_is_no_number_is_named_and_moves_nothing() {
        let device = Device::flex();
        let mut parameters = tensors(&START);
        let before = values(&parameters);
        let mut optimiser = Optimiser::new(&config(""), &parameters, depth, &device);
        let one = upload(vec![1.0], &device);
        let gradients = tensors(&[1.0, 0.0, f64::NAN, 1.0, 0.0, 0.0]);
        let why = optimiser.step(&mut parameters, &gradients, &one, 1.0, 0);
        assert_eq!(why, Err(NotFinite::Gradient("b.gamma".to_owned())));
        let infinite = upload(vec![f32::INFINITY], &device);
        let why = optimiser.step(&mut parameters, &tensors(&START), &infinite, 1.0, 0);
        assert_eq!(why, Err(NotFinite::Loss(f32::INFINITY)));
        assert_eq!(values(&parameters), before);
    }

    #[test]
    fn averages_are_those_of_the_steps() {
        let device = Device::flex();
        for (text, expected) in [
            // Weights 1, 2, 3 of one number that grows by one a step: from the second epoch (2 + 3) / 2.
            ("average = { swa = { from = 1 } }", 2.5),
            // 1, then 1/2 and 1/2 with 2, then with 3.
            ("average = { ema = { decay = 0.5 } }", 2.25),
        ] {
            let config = config(&format!("rule = {{ sgd = {{ momentum = 0.0 }} }}\n{text}"));
            let mut parameters = tensors(&[0.0; 6]);
            let mut optimiser = Optimiser::new(&config, &parameters, depth, &device);
            let one = upload(vec![1.0], &device);
            for epoch in 0..3 {
                let gradients = tensors(&[-1.0; 6]);
                optimiser
                    .step(&mut parameters, &gradients, &one, 1.0, epoch)
                    .unwrap();
            }
            assert_eq!(values(&parameters), [3.0; 6]);
            assert!(optimiser.apply_average(&mut parameters));
            assert_eq!(values(&parameters), [expected; 6], "{text}");
        }
    }

    #[test]
    fn state_carries_over_to_other_parameters_by_name() {
        let device = Device::flex();
        let config = config("");
        let mut parameters = tensors(&START);
        let mut old = Optimiser::new(&config, &parameters, depth, &device);
        let one = upload(vec![1.0], &device);
        old.step(&mut parameters, &tensors(&START), &one, 0.1, 0)
            .unwrap();
        parameters.remove("b.gamma");
        parameters.insert("aa.weight".to_owned(), upload(vec![5.0], &device));
        let mut new = Optimiser::new(&config, &parameters, depth, &device);
        new.carry(&old);
        let momentum = download(new.state["momentum"].clone());
        // a.weight, aa.weight, c.weight: the new one in the middle begins at rest.
        assert_eq!(momentum, [1.0, -0.5, 0.0, -1.2, 0.6]);
    }
}
