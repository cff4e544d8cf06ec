//! Polynomials near ReLU, which start a site's training.
//!
//! A [`DropIn`] is near on an interval, [`relu_fit`] under the distribution of a channel's inputs.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// A polynomial that approximates ReLU everywhere in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropIn {
    /// Sense in which it is nearest to ReLU.
    pub by: Approximation,
    /// 2 or 4.
    pub degree: u8,
    /// The interval is `-radius..radius`; only least squares has one.
    #[serde(default = "five")]
    pub radius: f32,
}

fn five() -> f32 {
    5.0
}

/// Way in which a drop-in approximates ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approximation {
    /// Taylor expansion at 0 of `ln(1 + e^z)`, the smooth ReLU (ReLU itself has none there).
    Taylor,
    /// Least squares to ReLU under the uniform law on the interval.
    LeastSquares,
}

impl DropIn {
    /// Coefficients of `1, z, z^2, z^3, z^4`.
    ///
    /// # Errors
    /// Another degree than 2 or 4, or a radius that is not positive.
    pub fn coefficients(&self) -> Result<[f64; 5]> {
        ensure!(
            matches!(self.degree, 2 | 4),
            "a drop-in has degree 2 or 4, not {}",
            self.degree
        );
        ensure!(
            self.radius > 0.0 && self.radius.is_finite(),
            "a drop-in's radius is {}, must be above 0",
            self.radius
        );
        let r = f64::from(self.radius);
        // ReLU is z/2 + |z|/2. In Legendre polynomials on -1..1, |z| = P0/2 + 5/8 P2 - 3/16 P4 +
        // ...
        Ok(match (self.by, self.degree) {
            (Approximation::Taylor, 2) => [2f64.ln(), 0.5, 0.125, 0.0, 0.0],
            (Approximation::Taylor, _) => [2f64.ln(), 0.5, 0.125, 0.0, -1.0 / 192.0],
            (Approximation::LeastSquares, 2) => [3.0 * r / 32.0, 0.5, 15.0 / (32.0 * r), 0.0, 0.0],
            (Approximation::LeastSquares, _) => [
                15.0 * r / 256.0,
                0.5,
                105.0 / (128.0 * r),
                0.0,
                -105.0 / (256.0 * r.powi(3)),
            ],
        })
    }
}

/// The quadratic `(a, b, c)` nearest to ReLU in mean square under a normal law of mean `u` and
/// deviation `v` (AutoReP, ICCV 2023, written here through the normal density and distribution).
pub fn relu_fit(u: f64, v: f64) -> [f64; 3] {
    let v = v.max(1e-3);
    let t = u / v;
    let density = (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let distribution = normal_distribution(t);
    [
        density / (2.0 * v),
        distribution - t * density,
        (u * t + v) * density / 2.0,
    ]
}

/// Distribution function of the normal law, by Simpson's rule over the density: 1e-9 is more than
/// enough here.
fn normal_distribution(t: f64) -> f64 {
    const STEPS: usize = 400;
    let end = t.clamp(-8.0, 8.0);
    let h = end / STEPS as f64;
    let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let inner: f64 = (1..STEPS)
        .map(|i| density(h * i as f64) * if i % 2 == 1 { 4.0 } else { 2.0 })
        .sum();
    0.5 + h / 3.0 * (density(0.0) + inner + density(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fit_at_the_standard_normal_is_the_known_one() {
        // E[relu(z) (z^2 - 1)] / 2 = 1 / (2 sqrt(2 pi)); the slope is 1/2; the constant makes the
        // means equal.
        let [a, b, c] = relu_fit(0.0, 1.0);
        let half_density = 0.5 / std::f64::consts::TAU.sqrt();
        for (got, expected) in [(a, half_density), (b, 0.5), (c, half_density)] {
            assert!((got - expected).abs() < 1e-9, "{got}, expected {expected}");
        }
    }

    #[test]
    fn the_fit_is_the_best_in_mean_square() {
        // Any small change of a coefficient must raise the error, integrated over the law on a fine
        // grid.
        for (u, v) in [(0.7, 1.3), (-1.1, 0.6), (2.5, 0.8)] {
            let error = |[a, b, c]: [f64; 3]| -> f64 {
                (-4000..=4000)
                    .map(|i| {
                        let t = f64::from(i) * 2e-3;
                        let z = u + v * t;
                        let off = (a * z + b) * z + c - z.max(0.0);
                        off * off * (-t * t / 2.0).exp()
                    })
                    .sum()
            };
            let best = relu_fit(u, v);
            for i in 0..3 {
                for step in [-1e-3, 1e-3] {
                    let mut moved = best;
                    moved[i] += step;
                    assert!(
                        error(moved) > error(best),
                        "mean {u}, deviation {v}, coefficient {i}"
                    );
                }
            }
        }
    }

    fn value(c: &[f64; 5], z: f64) -> f64 {
        (((c[4] * z + c[3]) * z + c[2]) * z + c[1]) * z + c[0]
    }

    #[test]
    fn least_squares_residuals_are_orthogonal_to_every_power() {
        // The normal equations, integrated by the midpoint rule on 20,000 intervals: its error is
        // below 1e-7.
        for (degree, radius) in [(2, 1.0f32), (2, 4.0), (4, 1.0), (4, 5.0)] {
            let by = Approximation::LeastSquares;
            let drop_in = DropIn { by, degree, radius };
            let c = drop_in.coefficients().unwrap();
            for power in 0..=i32::from(degree) {
                let n = 20_000;
                let mean: f64 = (0..n)
                    .map(|i| (f64::from(i) + 0.5) / f64::from(n) * 2.0 - 1.0)
                    .map(|t| {
                        let z = t * f64::from(radius);
                        (value(&c, z) - z.max(0.0)) * t.powi(power)
                    })
                    .sum::<f64>()
                    / f64::from(n);
                assert!(
                    mean.abs() < 1e-6 * f64::from(radius),
                    "degree {degree}, radius {radius}, power {power}: {mean}"
                );
            }
        }
    }

    #[test]
    fn taylor_drop_ins_touch_softplus_to_their_degree() {
        for degree in [2u8, 4] {
            let by = Approximation::Taylor;
            let drop_in = DropIn {
                by,
                degree,
                radius: 1.0,
            };
            let c = drop_in.coefficients().unwrap();
            // What is left is the next even term: z^4 / 192 or z^6 / 2880.
            let z = 0.1f64;
            let off = (value(&c, z) - z.exp().ln_1p()).abs();
            let next = if degree == 2 {
                z.powi(4) / 192.0
            } else {
                z.powi(6) / 2880.0
            };
            assert!((off / next - 1.0).abs() < 0.05, "degree {degree}: {off}");
        }
    }

    #[test]
    fn drop_ins_of_other_degrees_are_refused() {
        let drop_in = DropIn {
            by: Approximation::Taylor,
            degree: 3,
            radius: 1.0,
        };
        assert!(
            drop_in
                .coefficients()
                .unwrap_err()
                .to_string()
                .contains("2 or 4")
        );
    }
}
