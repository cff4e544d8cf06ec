//! Penalties on the inputs of activations, whose gradients the activations' backward step adds.

use burn::tensor::Tensor;

/// A penalty on the inputs of activations, which [`masked`](super::masked) adds to the gradient.
///
/// Polynomials need it to stay stable, and the compiled network's fixed point to stay precise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Penalty {
    /// No penalty.
    None,
    /// `weight` times the squared excess of `|z|` over `radius`, summed over positions, mean over
    /// the batch.
    Excess {
        /// Magnitude at which the penalty begins.
        radius: f32,
        /// Strength of the penalty.
        weight: f32,
    },
    /// `weight` times the mean of `(z / radius)^exponent` over batch and positions (PILLAR, USENIX
    /// Security 2024).
    Power {
        /// Magnitude at which the penalty becomes steep.
        radius: f32,
        /// Strength of the penalty.
        weight: f32,
        /// An even exponent of at least 2.
        exponent: i32,
    },
}

impl Penalty {
    /// Value of the penalty on the inputs of one site; none if there is no penalty.
    ///
    /// [`masked`](super::masked) adds the gradient of this value.
    ///
    /// # Cost
    /// Passes over `z` of its own, so it is for those who need the loss as it is.
    pub fn value(self, z: Tensor<4>) -> Option<Tensor<1>> {
        let [n, ..] = z.dims();
        match self {
            Penalty::None => None,
            Penalty::Excess { radius, weight } => {
                let excess = z.clone() - z.clamp(-radius, radius);
                Some(
                    (excess.clone() * excess)
                        .sum()
                        .mul_scalar(weight / n as f32),
                )
            }
            Penalty::Power {
                radius,
                weight,
                exponent,
            } => {
                let scaled = z.mul_scalar(1.0 / radius);
                Some(scaled.powi_scalar(exponent).mean().mul_scalar(weight))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::kernels::Adjoints;
    use crate::kernels::flex::tests::values;
    use crate::kernels::flex::{dense, floats};
    use crate::tensors::download;

    #[test]
    fn range_penalty_pulls_large_inputs_only() {
        let z = vec![-7.0, 0.5, 4.0, 9.0];
        let whole =
            Tensor::<4>::from_data(TensorData::new(z.clone(), [1, 1, 2, 2]), &Device::flex());
        let z = dense(z, &[1, 1, 2, 2]);
        let zero = dense(vec![0.0; 16], &[4, 1, 2, 2]);
        let grad = dense(vec![1.0; 4], &[1, 1, 2, 2]);
        let penalty = Penalty::Excess {
            radius: 5.0,
            weight: 0.25,
        };
        let pulled = Flex::masked_adjoint(z, zero, grad, penalty.into(), false).0;
        assert_eq!(floats(&pulled.to_contiguous()), [-1.0, 0.0, 0.0, 2.0]);
        // 0.25 (2^2 + 4^2), over one image.
        assert_eq!(download(penalty.value(whole).unwrap()), [5.0]);
    }

    #[test]
    fn the_power_penalty_is_the_slope_of_its_mean() {
        let (radius, weight, exponent) = (1.5f32, 0.3f32, 6);
        let z = values(24, 18);
        let value = |z: &[f32]| -> f64 {
            let terms = z.iter().map(|z| f64::from(z / radius).powi(exponent));
            f64::from(weight) * terms.sum::<f64>() / z.len() as f64
        };
        let zero = dense(vec![0.0; 4 * 12], &[4, 3, 2, 2]);
        let grad = dense(vec![0.0; 24], &[2, 3, 2, 2]);
        let penalty = Penalty::Power {
            radius,
            weight,
            exponent,
        };
        let of = dense(z.clone(), &[2, 3, 2, 2]);
        let (got, _) = Flex::masked_adjoint(of, zero, grad, penalty.into(), false);
        let got = got.to_contiguous();
        let whole =
            Tensor::<4>::from_data(TensorData::new(z.clone(), [2, 3, 2, 2]), &Device::flex());
        let whole = download(penalty.value(whole).unwrap())[0];
        assert!((f64::from(whole) - value(&z)).abs() < 1e-6, "{whole}");
        for (i, got) in floats(&got).iter().enumerate() {
            let at = |offset: f32| {
                let mut moved = z.clone();
                moved[i] += offset;
                value(&moved)
            };
            // Central difference in double precision: its error is the third derivative, below 1e-3
            // here.
            let expected = (at(5e-3) - at(-5e-3)) / 1e-2;
            assert!(
                (f64::from(*got) - expected).abs() < 1e-3 + 1e-2 * expected.abs(),
                "element {i}: {got}, expected {expected}"
            );
        }
    }
}
