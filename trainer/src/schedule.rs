//! Learning rates over a stage.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// A learning rate as a function of the epoch: linear warm-up, then a shape.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Highest rate.
    pub rate: f32,
    /// Epochs of warm-up, may be a fraction.
    #[serde(default)]
    pub warmup: f32,
    /// Course of the rate after the warm-up.
    #[serde(default)]
    pub shape: Shape,
}

/// Course of a rate after its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Shape {
    /// The rate stays.
    #[default]
    Constant,
    /// The rate falls linearly to zero over the last epochs.
    Linear {
        /// Number of these epochs; may be a fraction.
        epochs: f32,
    },
    /// The rate follows half a cosine over the whole stage, from the highest rate to `floor`.
    Cosine {
        /// Rate at the end.
        #[serde(default)]
        floor: f32,
    },
    /// The rate rises linearly until `peak` of the stage, then falls linearly to zero; there is no
    /// other warm-up.
    Triangular {
        /// Share of the stage.
        peak: f32,
    },
    /// The rate is multiplied by `factor` after each `every` epochs.
    Step {
        /// Epochs between falls.
        every: usize,
        /// Factor of each.
        factor: f32,
    },
}

impl Schedule {
    /// Rate after `epoch` of `epochs` epochs. Until a linear decay begins it does not depend on
    /// `epochs`.
    pub fn at(&self, epoch: f32, epochs: usize) -> f32 {
        let rise = if self.warmup > 0.0 {
            (epoch / self.warmup).clamp(0.01, 1.0)
        } else {
            1.0
        };
        let total = epochs.max(1) as f32;
        let share = (epoch / total).clamp(0.0, 1.0);
        match self.shape {
            Shape::Constant => self.rate * rise,
            Shape::Linear { epochs: last } => {
                self.rate * rise.min(((total - epoch) / last).clamp(0.0, 1.0))
            }
            Shape::Cosine { floor } => {
                let fall = 0.5 * (1.0 + (std::f32::consts::PI * share).cos());
                (floor + (self.rate - floor) * fall) * rise
            }
            Shape::Triangular { peak } => {
                let slope = if share < peak {
                    (share / peak).max(0.01)
                } else {
                    (1.0 - share) / (1.0 - peak)
                };
                self.rate * slope
            }
            Shape::Step { every, factor } => {
                self.rate * rise * factor.powi((epoch as usize / every) as i32)
            }
        }
    }

    /// # Errors
    /// A rate, a share or a length out of range, by key.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.rate > 0.0 && self.rate.is_finite(),
            "schedule.rate is {}, must be above 0 and finite",
            self.rate
        );
        ensure!(
            self.warmup >= 0.0 && self.warmup.is_finite(),
            "schedule.warmup is {}, must be finite and not negative",
            self.warmup
        );
        match self.shape {
            Shape::Constant => {}
            Shape::Linear { epochs } => {
                ensure!(
                    epochs > 0.0 && epochs.is_finite(),
                    "schedule: linear epochs must be above 0 and finite"
                );
            }
            Shape::Cosine { floor } => ensure!(
                (0.0..=self.rate).contains(&floor),
                "schedule: the cosine's floor must be between 0 and the rate"
            ),
            Shape::Triangular { peak } => ensure!(
                peak > 0.0 && peak < 1.0 && self.warmup == 0.0,
                "schedule: the triangle's peak must lie between 0 and 1, and its rise is the \
                 warm-up: no other"
            ),
            Shape::Step { every, factor } => ensure!(
                every > 0 && factor > 0.0 && factor.is_finite(),
                "schedule: step needs every >= 1 and a finite factor > 0"
            ),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_pass_through_their_known_points() {
        let schedule = |warmup, shape| Schedule {
            rate: 0.4,
            warmup,
            shape,
        };
        let linear = Shape::Linear { epochs: 4.0 };
        let cases = [
            (schedule(2.0, Shape::Constant), 1.0, 0.2),
            (schedule(2.0, Shape::Constant), 9.0, 0.4),
            (schedule(0.0, linear), 5.0, 0.4),
            (schedule(0.0, linear), 8.0, 0.2),
            (schedule(0.0, linear), 10.0, 0.0),
            (schedule(0.0, Shape::Cosine { floor: 0.1 }), 5.0, 0.25),
            (schedule(0.0, Shape::Cosine { floor: 0.1 }), 10.0, 0.1),
            (schedule(0.0, Shape::Triangular { peak: 0.2 }), 1.0, 0.2),
            (schedule(0.0, Shape::Triangular { peak: 0.2 }), 6.0, 0.2),
            (
                schedule(
                    0.0,
                    Shape::Step {
                        every: 3,
                        factor: 0.5,
                    },
                ),
                6.5,
                0.1,
            ),
        ];
        for (schedule, epoch, expected) in cases {
            let got = schedule.at(epoch, 10);
            assert!(
                (got - expected).abs() < 1e-6,
                "{schedule:?} at {epoch}: {got}, expected {expected}"
            );
        }
    }
}
