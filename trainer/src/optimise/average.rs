//! Averages of the weights over the steps.

use serde::{Deserialize, Serialize};

use super::flat::Vector;
use super::{AVERAGE, Optimiser};
use crate::tensors::Tensors;

/// An average of the weights over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Average {
    /// Exponential moving average, from the first step's weights on.
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

impl Optimiser {
    /// Takes the weights `x` after a step into the average.
    pub(super) fn average(&mut self, x: &Vector, epoch: usize) {
        let weight = match self.config.average {
            None => return,
            Some(Average::Swa { from }) if epoch < from => return,
            Some(Average::Swa { .. }) => 1.0 / (self.averaged + 1) as f32,
            Some(Average::Ema { decay }) => 1.0 - decay,
        };
        self.averaged += 1;
        let new = match self.vectors.remove(AVERAGE) {
            None => x.clone(),
            Some(old) => old.clone().plus(x.clone().minus(old).scaled(weight)),
        };
        self.vectors.insert(AVERAGE.to_owned(), new);
    }

    /// Puts the averaged weights in the place of the parameters; returns whether there is an
    /// average. Running statistics of norms are those of the weights before: measure them anew.
    pub fn apply_average(&mut self, parameters: &mut Tensors) -> bool {
        let Some(average) = self.vectors.remove(AVERAGE) else {
            return false;
        };
        self.averaged = 0;
        self.layout.scatter(&average, parameters);
        true
    }

    /// The averaged weights, to be evaluated while the training goes on; none before the average
    /// has begun.
    pub fn averaged(&self) -> Option<Tensors> {
        let mut parameters = Tensors::new();
        self.layout
            .scatter(self.vectors.get(AVERAGE)?, &mut parameters);
        Some(parameters)
    }
}
