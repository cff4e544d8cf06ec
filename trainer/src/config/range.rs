//! Penalty on the inputs of activations.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::kernels::Penalty;

/// Penalty on the inputs of activations, at every element: at ReLUs too, because a sign circuit is
/// as wide as its input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RangePenalty {
    /// `weight` times the squared excess of `|z|` over `radius`.
    Excess {
        /// Magnitude at which the penalty begins.
        radius: f32,
        /// Strength of the penalty.
        weight: f32,
    },
    /// `weight mean((z / radius)^exponent)` per site. PILLAR (USENIX Security 2024) penalises the
    /// inputs of polynomials only.
    Power {
        /// Magnitude at which the penalty becomes steep.
        radius: f32,
        /// Strength once the exponents have been gone through. In the epoch of the `i`-th of `k`
        /// exponents it is `i / k` of that.
        weight: f32,
        /// One exponent per epoch; the last one stays.
        #[serde(default = "exponents")]
        exponents: Vec<i32>,
    },
}

fn exponents() -> Vec<i32> {
    vec![4, 6, 8, 10]
}

impl RangePenalty {
    pub(super) fn check(&self) -> Result<()> {
        let (RangePenalty::Excess { radius, weight } | RangePenalty::Power { radius, weight, .. }) =
            self;
        ensure!(
            *radius > 0.0 && radius.is_finite() && *weight >= 0.0 && weight.is_finite(),
            "range: radius must be above 0 and weight not negative, both finite"
        );
        if let RangePenalty::Power { exponents, .. } = self {
            ensure!(
                !exponents.is_empty()
                    && exponents
                        .iter()
                        .all(|e| (2..=100).contains(e) && e % 2 == 0),
                "range.exponents must be even numbers from 2 to 100"
            );
        }
        Ok(())
    }

    /// The penalty in an epoch of the stage, counted from 0.
    pub fn at(&self, epoch: usize) -> Penalty {
        match self {
            RangePenalty::Excess { radius, weight } => Penalty::Excess {
                radius: *radius,
                weight: *weight,
            },
            RangePenalty::Power {
                radius,
                weight,
                exponents,
            } => {
                let index = epoch.min(exponents.len() - 1);
                Penalty::Power {
                    radius: *radius,
                    weight: weight * (index + 1) as f32 / exponents.len() as f32,
                    exponent: exponents[index],
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_penalty_warms_up_to_its_last_exponent() {
        let penalty = RangePenalty::Power {
            radius: 4.8,
            weight: 8.0,
            exponents: exponents(),
        };
        let seen: Vec<Penalty> = [0, 2, 3, 9].map(|epoch| penalty.at(epoch)).into();
        let expected = [(2.0, 4), (6.0, 8), (8.0, 10), (8.0, 10)];
        for (seen, (weight, exponent)) in seen.into_iter().zip(expected) {
            let radius = 4.8;
            assert_eq!(
                seen,
                Penalty::Power {
                    radius,
                    weight,
                    exponent
                }
            );
        }
    }
}
