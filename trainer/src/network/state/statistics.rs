//! Running statistics, which follow those of the batches.

use burn::tensor::Tensor;

use super::State;
use crate::kernels::NORM_EPSILON;
use crate::network::Buffer;
use crate::tensors::Tensors;

/// Bound of a batch's variance, in multiples of the running one.
pub const VARIANCE_LIMIT: f32 = 4.0;

impl State {
    /// Moves the running statistics towards a batch's by `rate`.
    ///
    /// Behind polynomials a single image can have values of hundreds. The batch's variance is then
    /// a thousand times the usual one, and would stay in the running one for fifty steps, in which
    /// nothing is recognised (measured: 35 instead of 85 % after an epoch that ended so). Where a
    /// batch's variance is above [`VARIANCE_LIMIT`] times the running one, it counts as that limit,
    /// and its mean as at most the limit's square root away from the running one.
    pub fn track(&mut self, batch: Tensors, rate: f32) {
        for (name, batch) in batch {
            let running = self.buffers.get_mut(&name).expect("one buffer a statistic");
            let old = running.clone();
            let batch = match norms(&name) {
                None => batch,
                Some(norms) => typical(batch, old.clone(), norms),
            };
            *running = old.clone() + (batch - old).mul_scalar(rate);
        }
    }
}

/// Number of pairs of means and variances that a statistic holds; none if it holds no such.
fn norms(name: &str) -> Option<usize> {
    match Buffer::parse(name)?.1 {
        Buffer::Moments => Some(1),
        Buffer::HerPn => Some(2),
        Buffer::Extent | Buffer::Kept => None,
    }
}

/// A batch's `[norms, 2, c]` moments, flat, those of wild channels limited by the running ones.
fn typical(batch: Tensor<1>, running: Tensor<1>, norms: usize) -> Tensor<1> {
    let [count] = batch.dims();
    let channels = count / (2 * norms);
    let row = |moments: &Tensor<1>, i: usize| {
        let moments = moments.clone().reshape([norms, 2, channels]);
        moments.narrow(1, i, 1)
    };
    let limit = row(&running, 1)
        .add_scalar(NORM_EPSILON)
        .mul_scalar(VARIANCE_LIMIT);
    let (mean, variance) = (row(&batch, 0), row(&batch, 1));
    let wild = variance.clone().greater(limit.clone());
    let (usual, most) = (row(&running, 0), limit.clone().sqrt());
    let near = mean
        .clone()
        .min_pair(usual.clone() + most.clone())
        .max_pair(usual - most);
    let mean = mean.mask_where(wild, near);
    Tensor::cat(vec![mean, variance.min_pair(limit)], 1).reshape([count])
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::network::state::tests::state;
    use crate::network::{Replacement, Substitute};
    use crate::tensors::download;

    fn track(state: &mut State, name: &str, batch: &[f32]) -> Vec<f32> {
        let data = TensorData::new(batch.to_vec(), [batch.len()]);
        let batch = Tensor::<1>::from_data(data, &state.device);
        state.track(Tensors::from([(name.to_owned(), batch)]), 0.1);
        download(state.buffers[name].clone())
    }

    #[test]
    fn one_wild_batch_moves_running_moments_by_a_share_of_the_deviation() {
        let mut state = state(&[]);
        let mut batch = |means: [f32; 2], variances: [f32; 2]| {
            let values = [means, variances].concat();
            track(&mut state, "stem.norm.moments", &values)
        };
        // From means of 0 and variances of 1: a usual channel beside a wild one.
        let seen = batch([5.0, -20.0], [2.0, 1e6]);
        let expected = [0.5, -0.2, 1.1, 1.3];
        for (seen, expected) in seen.iter().zip(expected) {
            assert!((seen - expected).abs() < 1e-4, "{seen} for {expected}");
        }
        // Growth that lasts is followed, from nothing as well, and any fall at once.
        for _ in 0..100 {
            batch([0.0; 2], [0.0, 50.0]);
        }
        let seen = batch([0.0; 2], [3.0, 50.0]);
        assert!(seen[2] < 0.001 && (seen[3] - 50.0).abs() < 0.5, "{seen:?}");
        for _ in 0..100 {
            batch([0.0; 2], [3.0, 50.0]);
        }
        let seen = batch([0.0; 2], [3.0, 50.0]);
        assert!((seen[2] - 3.0).abs() < 0.1, "{seen:?}");
    }

    #[test]
    fn both_norms_of_a_hermite_activation_are_limited() {
        let herpn = Replacement {
            sites: "*".to_owned(),
            by: Substitute::HerPn,
            keep: None,
        };
        let mut state = state(&[herpn]);
        let name = "stem.act.herpn";
        let channels = state.buffers[name].dims()[0] / 4;
        let before = download(state.buffers[name].clone());
        let rows = |values: [f32; 4]| -> Vec<f32> {
            values.iter().flat_map(|v| vec![*v; channels]).collect()
        };
        // Values of a thousand in one image of a hundred: the mean and variance of z, then of its
        // square.
        let seen = track(&mut state, name, &rows([10.0, 1e4, 7e3, 5e9]));
        let expected = [0.2, 1.3, 0.2, 1.3];
        for (row, expected) in expected.into_iter().enumerate() {
            let (was, is) = (before[row * channels], seen[row * channels]);
            assert!(
                (is - expected).abs() < 1e-4,
                "row {row}: {was} to {is}, not {expected}"
            );
        }
    }
}
