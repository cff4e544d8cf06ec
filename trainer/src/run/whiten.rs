//! The first layer of `lean9`: filters that whiten 2x2 patches (airbench; Page, 2024).
//!
//! Half of the filters are eigenvectors of the patches' covariance, each divided by its deviation,
//! the other half their negatives, so that nothing is lost after a ReLU. They are a start and may
//! be frozen (`freeze = ["whiten.conv.weight"]`). With their biases frozen too (`"whiten.conv.*"`),
//! they are statistics that a model may publish, and the exported graph says so.

use super::Run;
use crate::checkpoint::Array;
use crate::data::{self, Data};
use crate::network::{Op, Parameter};
use crate::random::EpochStream;
use crate::tensors::download;

/// Images whose patches are measured.
const IMAGES: usize = 500;
/// Added to the variances, so that directions without any do not blow up.
const EPSILON: f64 = 5e-4;

impl Run {
    /// Sets the filters of a whitening layer, if the network has one.
    pub(super) fn whiten(&mut self, data: &Data) {
        let Some(index) = self.network.index("whiten.conv") else {
            return;
        };
        let node = &self.network.nodes[index];
        let Op::Conv { c_in, kernel, .. } = node.op else {
            return;
        };
        let (channels, name) = (node.shape[0], Parameter::Weight.of(&node.name));
        let order = data::permutation(data.train.len(), &mut self.rng(EpochStream::Whitening));
        let indices = &order[..order.len().min(IMAGES)];
        let pixels = download(data.train.plain(indices));
        let [_, h, w] = self.meta.images.shape;
        let covariance = covariance(&pixels, [c_in, h, w], kernel);
        let size = c_in * kernel * kernel;
        let (variances, vectors) = eigen(covariance, size);
        let mut ranked: Vec<usize> = (0..size).collect();
        ranked.sort_by(|a, b| variances[*b].total_cmp(&variances[*a]));
        let half = (channels / 2).min(size);
        let mut values = self
            .state
            .parameter(&name)
            .expect("a convolution has weights");
        for (rank, &which) in ranked.iter().take(half).enumerate() {
            let scale = 1.0 / (variances[which].max(0.0) + EPSILON).sqrt();
            for i in 0..size {
                let value = (vectors[i * size + which] * scale) as f32;
                values[rank * size + i] = value;
                values[(half + rank) * size + i] = -value;
            }
        }
        let shape = vec![channels, c_in, kernel, kernel];
        self.state.put_parameter(&name, Array { shape, values });
    }
}

/// Second moments of all patches, `[size, size]`.
fn covariance(pixels: &[f32], [c, h, w]: [usize; 3], kernel: usize) -> Vec<f64> {
    let size = c * kernel * kernel;
    let mut sum = vec![0.0f64; size * size];
    let mut count = 0.0;
    let mut patch = vec![0.0f64; size];
    for image in pixels.chunks_exact(c * h * w) {
        for y in 0..=h - kernel {
            for x in 0..=w - kernel {
                for (i, value) in patch.iter_mut().enumerate() {
                    let (channel, dy, dx) =
                        (i / (kernel * kernel), i / kernel % kernel, i % kernel);
                    *value = f64::from(image[(channel * h + y + dy) * w + x + dx]);
                }
                for i in 0..size {
                    for j in 0..=i {
                        sum[i * size + j] += patch[i] * patch[j];
                    }
                }
                count += 1.0;
            }
        }
    }
    for i in 0..size {
        for j in 0..=i {
            let mean = sum[i * size + j] / count;
            (sum[i * size + j], sum[j * size + i]) = (mean, mean);
        }
    }
    sum
}

/// Eigenvalues and eigenvectors (columns) of a symmetric matrix, by Jacobi's rotations.
fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut v = vec![0.0; n * n];
    for i in 0..n {
        v[i * n + i] = 1.0;
    }
    // Convergence is quadratic: a matrix of a dozen rows needs five or six sweeps.
    for _ in 0..30 {
        let off: f64 = (0..n)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| a[i * n + j] * a[i * n + j])
            .sum();
        let diagonal: f64 = (0..n).map(|i| a[i * n + i] * a[i * n + i]).sum();
        if off <= 1e-24 * diagonal {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q] == 0.0 {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let t = if theta == 0.0 { 1.0 } else { t };
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
                    let (x, y) = (v[k * n + p], v[k * n + q]);
                    (v[k * n + p], v[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvectors_are_orthonormal_and_give_the_matrix_back() {
        let n = 12;
        // A Gram matrix of numbers without a pattern, of full rank.
        let x: Vec<f64> = (0..n * n)
            .map(|i| ((i * i * 37 + i * 11) % 101) as f64 / 50.0 - 1.0)
            .collect();
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                a[i * n + j] = (0..n).map(|k| x[k * n + i] * x[k * n + j]).sum();
            }
        }
        let (values, vectors) = eigen(a.clone(), n);
        for i in 0..n {
            for j in 0..n {
                let product: f64 = (0..n)
                    .map(|k| vectors[k * n + i] * vectors[k * n + j])
                    .sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-10);
                let back: f64 = (0..n)
                    .map(|k| vectors[i * n + k] * values[k] * vectors[j * n + k])
                    .sum();
                assert!((back - a[i * n + j]).abs() < 1e-9, "{i}, {j}");
            }
        }
    }
}
