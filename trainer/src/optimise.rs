//! Optimisers whose state stays on the device, over vectors of all trained parameters.
//!
//! SGD with Nesterov momentum, Adam and AdamW (Loshchilov and Hutter, ICLR 2019), MoMo and
//! MoMo-Adam (Schaipp et al., ICML 2024), Muon (Jordan, 2024), with rates and decay per parameter,
//! a bound of the global gradient norm, and averages of the weights (exponential; SWA, Izmailov et
//! al., UAI 2018). On a GPU all parameters are one tensor, so that a step is a dozen operations
//! whatever the number of layers (Muon's matrices apart). The host reads two numbers per step, the
//! loss and the gradient's norm, and stops there if either is not finite.

mod average;
mod config;
mod flat;
mod muon;
mod rule;
mod stored;

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};

pub use average::Average;
pub use config::{OptimiserConfig, RateRule, Rule};
use flat::{Layout, PerNumber, Vector};
use muon::Matrices;

use crate::pattern::fits;
use crate::tensors::{Tensors, download};

/// The averaged weights among the vectors.
const AVERAGE: &str = "average";

/// Loss and gradient that a step saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The loss before it.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub norm: f32,
}

/// Reason why a step could not be made.
#[derive(Clone, Debug, PartialEq)]
pub enum NotFinite {
    /// The loss.
    Loss(f32),
    /// The gradients of these parameters, comma-separated; or, if each is finite, their norm.
    Gradient(String),
}

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotFinite::Loss(loss) => write!(f, "the loss is {loss}"),
            NotFinite::Gradient(names) => write!(f, "the gradient of {names} is not finite"),
        }
    }
}

/// What a network says of a parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Layer, counted from the classifier back.
    pub depth: usize,
    /// Output channels, if the parameter is the weight of a convolution: the rows of the matrix
    /// that [`Rule::Muon`] takes it for.
    pub rows: Option<usize>,
}

/// An optimiser of named parameters.
pub struct Optimiser {
    config: OptimiserConfig,
    layout: Layout,
    /// Factor of the rate.
    rates: PerNumber,
    /// Decay.
    decay: PerNumber,
    /// Of [`Rule::Muon`] only.
    matrices: Option<Matrices>,
    /// State over all parameters, by name. What is absent is zero.
    vectors: BTreeMap<String, Vector>,
    /// State of one number.
    scalars: Tensors,
    steps: u64,
    averaged: u64,
    device: Device,
}

impl Optimiser {
    /// A fresh optimiser for these parameters, of which `place` gives each one's place in the
    /// network.
    pub fn new(
        config: &OptimiserConfig,
        parameters: &Tensors,
        place: impl Fn(&str) -> Place,
        device: &Device,
    ) -> Self {
        Self::with_layout(config, Layout::of(parameters, device), place, device)
    }

    fn with_layout(
        config: &OptimiserConfig,
        layout: Layout,
        place: impl Fn(&str) -> Place,
        device: &Device,
    ) -> Self {
        let rate = |name: &str| {
            let last = config.rates.iter().rev();
            let own = last
                .filter(|rule| fits(&rule.parameters, name))
                .map(|rule| rule.factor)
                .next();
            config.layer_decay.powi(place(name).depth as i32) * own.unwrap_or(1.0)
        };
        let matrices = Matrices::of(config.rule, &layout, |name| place(name).rows);
        let decayed = |name: &str| match config.decayed.iter().any(|p| fits(p, name)) {
            true => config.weight_decay,
            false => 0.0,
        };
        let decay = |name: &str| match &matrices {
            None => decayed(name),
            // Muon's decay is by the schedule's rate, whatever the factor; matrices keep their
            // norm.
            Some(matrices) if matrices.has(name) || rate(name) == 0.0 => 0.0,
            Some(_) => decayed(name) / rate(name),
        };
        Self {
            config: config.clone(),
            rates: PerNumber::new(&layout, rate),
            decay: PerNumber::new(&layout, decay),
            matrices,
            layout,
            vectors: BTreeMap::new(),
            scalars: Tensors::new(),
            steps: 0,
            averaged: 0,
            device: device.clone(),
        }
    }

    /// Makes a step: `parameters` move against `gradients` (absent ones are zero) at `rate`;
    /// `epoch`, counted from 0, says whether an average has begun.
    ///
    /// # Cost
    /// One transfer of two numbers to the host; two concatenations over all parameters and a dozen
    /// operations on one tensor, or, on the CPU, a dozen on each parameter.
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
        let g = self.layout.gather(gradients);
        let square = g.dot(&g);
        // Both numbers in one transfer: on a GPU each one waits for all that is queued.
        let seen = download(Tensor::cat(vec![loss.clone(), square], 0));
        let report = StepReport {
            loss: seen[0],
            norm: seen[1].sqrt(),
        };
        // Nothing has moved yet: a caller that gets the error has the parameters before the step.
        if !report.loss.is_finite() {
            return Err(NotFinite::Loss(report.loss));
        }
        if !report.norm.is_finite() {
            return Err(NotFinite::Gradient(self.layout.blame(gradients)));
        }
        let (g, share) = match self.config.clip {
            Some(clip) if report.norm > clip => {
                let share = clip / report.norm;
                (g.scaled(share), share)
            }
            _ => (g, 1.0),
        };
        let x = self.layout.gather(parameters);
        self.steps = self.steps.saturating_add(1);
        let x = self.update(x, g, loss, share, rate);
        self.average(&x, epoch);
        self.layout.scatter(&x, parameters);
        Ok(report)
    }
}
