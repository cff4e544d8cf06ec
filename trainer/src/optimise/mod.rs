//! Optimisers whose state stays on the device, over one flat vector of all trained parameters.
//!
//! SGD with Nesterov momentum, Adam and AdamW (Loshchilov and Hutter, ICLR 2019), MoMo and MoMo-Adam (Schaipp et al.,
//! ICML 2024), with rates and decay per parameter, a bound of the global gradient norm, and averages of the weights
//! (exponential; SWA, Izmailov et al., UAI 2018). One flat vector makes a step a dozen operations whatever the number of
//! layers; the host reads two numbers a step, the loss and the gradient's norm, and stops there if either is no number.

mod average;
mod config;
mod flat;
mod rule;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};

pub use average::Average;
pub use config::{OptimiserConfig, RateRule, Rule};
use flat::{Layout, PerNumber, download, fits};

use crate::checkpoint::{Array, Arrays};

/// Flat tensors by name, without gradients: parameters, gradients, state.
pub type Tensors = std::collections::BTreeMap<String, Tensor<1>>;

/// State that is one number, not a vector over the parameters.
const SCALARS: [&str; 2] = ["loss", "inner"];
/// The averaged weights among the state.
const AVERAGE: &str = "average";

/// What a step saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The loss before it.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub norm: f32,
}

/// Why a step could not be made.
#[derive(Clone, Debug, PartialEq)]
pub enum NotFinite {
    /// The loss.
    Loss(f32),
    /// The gradients of these parameters, comma-separated; or, if each is finite, their norm.
    Gradient(String),
}

/// An optimiser of named parameters.
pub struct Optimiser {
    config: OptimiserConfig,
    layout: Layout,
    /// Factor of the rate.
    rates: PerNumber,
    /// Decay.
    decay: PerNumber,
    /// By name: vectors over all parameters, and [`SCALARS`]. What is absent is zero.
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
        let layout = Layout::of(parameters);
        let rate = |name: &str| {
            let last = config.rates.iter().rev();
            let own = last
                .filter(|rule| fits(&rule.parameters, name))
                .map(|rule| rule.factor)
                .next();
            config.layer_decay.powi(depth(name) as i32) * own.unwrap_or(1.0)
        };
        let decay = |name: &str| match config.decayed.iter().any(|p| fits(p, name)) {
            true => config.weight_decay,
            false => 0.0,
        };
        Self {
            config: config.clone(),
            rates: PerNumber::new(&layout, rate, device),
            decay: PerNumber::new(&layout, decay, device),
            layout,
            state: Tensors::new(),
            steps: 0,
            averaged: 0,
            device: device.clone(),
        }
    }

    /// One step: `parameters` move against `gradients` (absent ones are zero) at `rate`; `epoch`, counted from 0, says
    /// whether an average has begun.
    ///
    /// # Cost
    /// One transfer of two numbers to the host; two concatenations over all parameters and a dozen operations on the
    /// flat vector.
    /// # Errors
    /// A loss or a gradient that is not finite, by name; parameters and state are then as before.
    pub fn step(
        &mut self,
        parameters: &mut Tensors,
        gradients: &Tensors,
        loss: &Tensor<1>,
        rate: f32,
        epoch: usize,
    ) -> Result<StepReport, NotFinite> {
        if self.layout.is_empty() {
            let loss = download(loss.clone())[0];
            return match loss.is_finite() {
                true => Ok(StepReport { loss, norm: 0.0 }),
                false => Err(NotFinite::Loss(loss)),
            };
        }
        let g = self.layout.gather(gradients, &self.device);
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
            return Err(NotFinite::Gradient(self.layout.blame(gradients)));
        }
        let g = match self.config.clip {
            Some(clip) if report.norm > clip => g.mul_scalar(clip / report.norm),
            _ => g,
        };
        let x = self.layout.gather(parameters, &self.device);
        self.steps += 1;
        let x = self.update(x, g, loss, rate);
        self.average(&x, epoch);
        self.layout.scatter(&x, parameters);
        Ok(report)
    }

    /// Puts the averaged weights in the place of the parameters; returns whether there is an average. Running
    /// statistics of norms are those of the weights before: measure them anew.
    pub fn apply_average(&mut self, parameters: &mut Tensors) -> bool {
        let Some(average) = self.state.remove(AVERAGE) else {
            return false;
        };
        self.averaged = 0;
        self.layout.scatter(&average, parameters);
        true
    }

    /// The averaged weights, to be evaluated while the training goes on; none before the average has begun.
    pub fn averaged(&self) -> Option<Tensors> {
        let mut parameters = Tensors::new();
        self.layout
            .scatter(self.state.get(AVERAGE)?, &mut parameters);
        Some(parameters)
    }

    /// All state, for a file: `<what>/<parameter>`, and scalars.
    pub fn export(&self) -> Arrays {
        let mut arrays = Arrays::new();
        for (name, tensor) in &self.state {
            let values = download(tensor.clone());
            if SCALARS.contains(&name.as_str()) {
                let shape = vec![1];
                arrays.insert(name.clone(), Array { shape, values });
                continue;
            }
            for (part, range) in self.layout.ranges() {
                let values = values[range].to_vec();
                let shape = vec![values.len()];
                arrays.insert(format!("{name}/{part}"), Array { shape, values });
            }
        }
        // Counts beyond 2^24 do not fit a float: two halves of 20 bits do.
        for (name, count) in [("steps", self.steps), ("averaged", self.averaged)] {
            let values = vec![(count >> 20) as f32, (count & 0xf_ffff) as f32];
            let shape = vec![2];
            arrays.insert(name.to_owned(), Array { shape, values });
        }
        arrays
    }

    /// Takes over exported state, bit for bit.
    ///
    /// # Errors
    /// State of other parameters or of another rule, by name.
    pub fn import(&mut self, arrays: Arrays) -> Result<()> {
        let mut vectors = std::collections::BTreeMap::<String, Arrays>::new();
        let (mut state, mut steps, mut averaged) = (Tensors::new(), None, None);
        for (name, array) in arrays {
            let known = |what: &str| what == AVERAGE || self.config.rule.state().contains(&what);
            match (name.as_str(), array.values.as_slice()) {
                ("steps", [high, low]) => steps = Some(((*high as u64) << 20) + *low as u64),
                ("averaged", [high, low]) => averaged = Some(((*high as u64) << 20) + *low as u64),
                (scalar, [value]) if SCALARS.contains(&scalar) && known(scalar) => {
                    let value = Tensor::from_data(TensorData::from([*value]), &self.device);
                    state.insert(name, value);
                }
                _ => match name.split_once('/') {
                    Some((what, part)) if known(what) => {
                        let parts = vectors.entry(what.to_owned()).or_default();
                        parts.insert(part.to_owned(), array);
                    }
                    _ => bail!("the optimiser's state has {name}, which this optimiser has not"),
                },
            }
        }
        for (what, parts) in vectors {
            let vector = self
                .layout
                .join(&parts, &self.device)
                .with_context(|| format!("the optimiser's {what}"))?;
            state.insert(what, vector);
        }
        self.steps = steps.context("the optimiser's state has no count of steps")?;
        self.averaged = averaged.context("the optimiser's state has no count of averages")?;
        ensure!(
            self.steps == 0
                || self.layout.is_empty()
                || self
                    .config
                    .rule
                    .state()
                    .iter()
                    .all(|what| state.contains_key(*what)),
            "the optimiser's state is of another rule: it lacks one of {}",
            self.config.rule.state().join(", ")
        );
        self.state = state;
        Ok(())
    }

    /// Takes over the state of an optimiser of the same rule, parameter by parameter; what is new begins at zero, and
    /// averages of the weights begin anew. Does nothing if the rules differ.
    pub fn carry(&mut self, old: &Optimiser) {
        if self.config.rule != old.config.rule {
            return;
        }
        self.steps = old.steps;
        for (name, tensor) in old.state.iter().filter(|(name, _)| *name != AVERAGE) {
            if SCALARS.contains(&name.as_str()) {
                self.state.insert(name.clone(), tensor.clone());
                continue;
            }
            let mut named = Tensors::new();
            old.layout.scatter(tensor, &mut named);
            let ours = self.layout.lengths();
            named.retain(|part, old| ours.get(part.as_str()) == Some(&old.dims()[0]));
            self.state
                .insert(name.clone(), self.layout.gather(&named, &self.device));
        }
    }
}
