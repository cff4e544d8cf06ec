//! The operations on the CPU: one pass over memory forward, one or two backward.
//!
//! Sums have one order whatever the number of threads, so a run is the same to the bit on any
//! machine that computes with the same instructions.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::im2col::Geometry;
use super::{Adjoints, Limits, NORM_EPSILON, Operations, Penalty};

pub(super) type Dense = FloatTensor<Flex>;

impl Operations for Flex {
    fn pi_conv(x: Dense, weight: Dense, stride: usize, padding: usize) -> Dense {
        let g = Geometry::new(&x, &weight, stride, padding);
        let x = x.to_contiguous();
        let weight = matrix(weight, g.c_out, g.patch());
        let mut out = vec![0.0f32; g.n * g.out_image()];
        let tile = g.tile();
        out.par_chunks_mut(tile * g.out_image())
            .zip(floats(&x).par_chunks(tile * g.in_image()))
            .for_each(|(out, x)| {
                let images = x.len() / g.in_image();
                let patches = dense(g.gather(x), &[g.patch(), images * g.out_plane()]);
                let y = Flex::float_matmul(weight.clone(), patches).to_contiguous();
                g.interleave(floats(&y), out);
            });
        dense(out, &[g.n, g.c_out, g.h_out, g.w_out])
    }

    fn pi_moments(x: Dense) -> Dense {
        let [n, c, h, w] = x.shape().dims();
        let plane = h * w;
        let x = x.to_contiguous();
        let x = floats(&x);
        let (means, variances): (Vec<f32>, Vec<f32>) = (0..c)
            .into_par_iter()
            .map(|channel| {
                // A plane's sums keep their digits in single precision. Those of a batch, of 10^5
                // values and more, do not, and the variance is a difference of two of them.
                let (mut sum, mut squares) = (0.0f64, 0.0f64);
                for image in 0..n {
                    let values = &x[(image * c + channel) * plane..][..plane];
                    let (s, q) = lanes(values, values);
                    sum += f64::from(s);
                    squares += f64::from(q);
                }
                let count = (n * plane) as f64;
                let mean = sum / count;
                (mean as f32, (squares / count - mean * mean).max(0.0) as f32)
            })
            .unzip();
        dense([means, variances].concat(), &[2, c])
    }

    fn pi_normalise(x: Dense, moments: Dense, gamma: Dense, beta: Dense) -> Dense {
        let [n, c, h, w] = x.shape().dims();
        let (x, moments, gamma, beta) = (
            x.to_contiguous(),
            moments.to_contiguous(),
            gamma.to_contiguous(),
            beta.to_contiguous(),
        );
        let (mean, inverse) = mean_and_inverse(floats(&moments));
        let (gamma, beta) = (floats(&gamma), floats(&beta));
        let plane = h * w;
        let mut out = vec![0.0f32; n * c * plane];
        out.par_chunks_mut(c * plane)
            .zip(floats(&x).par_chunks(c * plane))
            .for_each(|(out, x)| {
                for channel in 0..c {
                    let scale = gamma[channel] * inverse[channel];
                    let shift = beta[channel] - mean[channel] * scale;
                    let range = channel * plane..(channel + 1) * plane;
                    for (o, v) in out[range.clone()].iter_mut().zip(&x[range]) {
                        *o = v * scale + shift;
                    }
                }
            });
        dense(out, &[n, c, h, w])
    }

    fn pi_masked(z: Dense, coefficients: Dense, limits: Limits) -> Dense {
        let [n, c, h, w] = z.shape().dims();
        let image = c * h * w;
        let (z, coefficients) = (z.to_contiguous(), coefficients.to_contiguous());
        let [relu, square, linear, constant] = quarters(floats(&coefficients));
        let mut out = vec![0.0f32; n * image];
        let images = out.par_chunks_mut(image).zip(floats(&z).par_chunks(image));
        let guard = limits.guard;
        // Without a guard nothing is subtracted, as the difference of two infinities is no number.
        if guard.is_infinite() {
            images.for_each(|(out, z)| {
                for i in 0..image {
                    let v = z[i];
                    out[i] = relu[i] * v.max(0.0) + (square[i] * v + linear[i]) * v + constant[i];
                }
            });
        } else {
            images.for_each(|(out, z)| {
                for i in 0..image {
                    let v = z[i];
                    let inner = square[i] * v.clamp(-guard, guard);
                    let outer = v - v.clamp(-guard, guard);
                    let polynomial = (inner + linear[i]) * v + inner * outer + constant[i];
                    out[i] = relu[i] * v.max(0.0) + polynomial;
                }
            });
        }
        dense(out, &[n, c, h, w])
    }
}

impl Adjoints for Flex {
    fn conv_by_input(x: Dense, weight: Dense, grad: Dense, stride: usize, padding: usize) -> Dense {
        let g = Geometry::new(&x, &weight, stride, padding);
        let transposed = Flex::float_swap_dims(matrix(weight, g.c_out, g.patch()), 0, 1);
        let grad = grad.to_contiguous();
        let mut out = vec![0.0f32; g.n * g.in_image()];
        let tile = g.tile();
        out.par_chunks_mut(tile * g.in_image())
            .zip(floats(&grad).par_chunks(tile * g.out_image()))
            .for_each(|(out, grad)| {
                let images = grad.len() / g.out_image();
                let grad = dense(g.deinterleave(grad), &[g.c_out, images * g.out_plane()]);
                let mut patches = Flex::float_matmul(transposed.clone(), grad).to_contiguous();
                g.scatter(patches.storage_mut(), out);
            });
        dense(out, &[g.n, g.c_in, g.h, g.w])
    }

    fn conv_by_weight(
        x: Dense,
        weight: Dense,
        grad: Dense,
        stride: usize,
        padding: usize,
    ) -> Dense {
        let g = Geometry::new(&x, &weight, stride, padding);
        let (x, grad) = (x.to_contiguous(), grad.to_contiguous());
        let tile = g.tile();
        // Partial sums are added in the order of the tiles: the result does not depend on the
        // number of threads.
        let parts: Vec<Dense> = floats(&x)
            .par_chunks(tile * g.in_image())
            .zip(floats(&grad).par_chunks(tile * g.out_image()))
            .map(|(x, grad)| {
                let columns = x.len() / g.in_image() * g.out_plane();
                let patches = dense(g.gather(x), &[g.patch(), columns]);
                let grad = dense(g.deinterleave(grad), &[g.c_out, columns]);
                Flex::float_matmul(grad, Flex::float_swap_dims(patches, 0, 1)).to_contiguous()
            })
            .collect();
        let mut sum = vec![0.0f32; g.c_out * g.patch()];
        for part in &parts {
            for (s, p) in sum.iter_mut().zip(floats(part)) {
                *s += p;
            }
        }
        dense(sum, &[g.c_out, g.c_in, g.k_h, g.k_w])
    }

    fn normalise_adjoint(x: Dense, moments: Dense, gamma: Dense, grad: Dense) -> [Dense; 3] {
        let [n, c, h, w] = x.shape().dims();
        let plane = h * w;
        let (x, moments, gamma) = (
            x.to_contiguous(),
            moments.to_contiguous(),
            gamma.to_contiguous(),
        );
        let (mean, inverse) = mean_and_inverse(floats(&moments));
        let (x, gamma) = (floats(&x), floats(&gamma));
        // The gradient is read for the sums and then overwritten: one buffer less.
        let mut out = owned(grad);
        let grad = floats(&out);
        // By gamma: sum of grad * (x - mean) / std; by beta: sum of grad.
        let (by_gamma, by_beta): (Vec<f32>, Vec<f32>) = (0..c)
            .into_par_iter()
            .map(|channel| {
                let (mut sum, mut products) = (0.0f64, 0.0f64);
                for image in 0..n {
                    let start = (image * c + channel) * plane;
                    let (s, q) = lanes(&grad[start..][..plane], &x[start..][..plane]);
                    sum += f64::from(s);
                    products += f64::from(q);
                }
                let centred =
                    (products - f64::from(mean[channel]) * sum) * f64::from(inverse[channel]);
                (centred as f32, sum as f32)
            })
            .unzip();
        let count = (n * plane) as f32;
        out.storage_mut::<f32>()
            .par_chunks_mut(c * plane)
            .zip(x.par_chunks(c * plane))
            .for_each(|(out, x)| {
                for channel in 0..c {
                    // gamma / std * (grad - mean(grad) - xhat * mean(grad * xhat)), as k0 grad + k1
                    // x + k2.
                    let k0 = gamma[channel] * inverse[channel];
                    let k1 = -k0 * inverse[channel] * by_gamma[channel] / count;
                    let k2 = -k0 * by_beta[channel] / count - k1 * mean[channel];
                    let range = channel * plane..(channel + 1) * plane;
                    for (d, v) in out[range.clone()].iter_mut().zip(&x[range]) {
                        *d = k0 * *d + k1 * v + k2;
                    }
                }
            });
        [out, dense(by_gamma, &[c]), dense(by_beta, &[c])]
    }

    fn masked_by_input(z: Dense, coefficients: Dense, grad: Dense, limits: Limits) -> Dense {
        let [n, c, h, w] = z.shape().dims();
        let image = c * h * w;
        let (z, coefficients) = (z.to_contiguous(), coefficients.to_contiguous());
        let [relu, square, linear, _] = quarters(floats(&coefficients));
        let mut grad = owned(grad);
        let images = grad
            .storage_mut::<f32>()
            .par_chunks_mut(image)
            .zip(floats(&z).par_chunks(image));
        let guard = limits.guard;
        let slope = |i: usize, z: f32| {
            let relu = if z > 0.0 { relu[i] } else { 0.0 };
            relu + 2.0 * square[i] * z.clamp(-guard, guard) + linear[i]
        };
        // One loop a kind of penalty, so that each stays a straight line for the vectoriser.
        match limits.penalty {
            Penalty::None => images.for_each(|(grad, z)| {
                for i in 0..image {
                    grad[i] *= slope(i, z[i]);
                }
            }),
            Penalty::Excess { radius, weight } => {
                let pull = 2.0 * weight / n as f32;
                images.for_each(|(grad, z)| {
                    for i in 0..image {
                        let excess = z[i] - z[i].clamp(-radius, radius);
                        grad[i] = grad[i] * slope(i, z[i]) + pull * excess;
                    }
                });
            }
            Penalty::Power {
                radius,
                weight,
                exponent,
            } => {
                let pull = weight * exponent as f32 / (radius * (n * image) as f32);
                images.for_each(|(grad, z)| {
                    for i in 0..image {
                        let steep = (z[i] / radius).powi(exponent - 1);
                        grad[i] = grad[i] * slope(i, z[i]) + pull * steep;
                    }
                });
            }
        }
        grad
    }

    fn masked_by_coefficients(z: Dense, grad: Dense, guard: f32) -> Dense {
        let [n, c, h, w] = z.shape().dims();
        let plane = h * w;
        let (z, grad) = (z.to_contiguous(), grad.to_contiguous());
        let (z, grad) = (floats(&z), floats(&grad));
        let channels: Vec<[Vec<f32>; 4]> = (0..c)
            .into_par_iter()
            .map(|channel| {
                let [mut relu, mut square, mut linear, mut constant] =
                    [(); 4].map(|()| vec![0.0f32; plane]);
                for image in 0..n {
                    let start = (image * c + channel) * plane;
                    let (z, grad) = (&z[start..][..plane], &grad[start..][..plane]);
                    for i in 0..plane {
                        relu[i] += grad[i] * z[i].max(0.0);
                        let inner = z[i].clamp(-guard, guard);
                        square[i] += grad[i] * inner * (z[i] + (z[i] - inner));
                        linear[i] += grad[i] * z[i];
                        constant[i] += grad[i];
                    }
                }
                [relu, square, linear, constant]
            })
            .collect();
        let mut out = Vec::with_capacity(4 * c * plane);
        for part in 0..4 {
            for channel in &channels {
                out.extend_from_slice(&channel[part]);
            }
        }
        dense(out, &[4, c, h, w])
    }
}

/// Sum of `a` and of `a * b`, in sixteen lanes so that the compiler may use vectors.
fn lanes(a: &[f32], b: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut sums, mut products) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            sums[i] += a[i];
            products[i] += a[i] * b[i];
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[i] += a;
        products[i] += a * b;
    }
    (sums.iter().sum(), products.iter().sum())
}

fn mean_and_inverse(moments: &[f32]) -> (&[f32], Vec<f32>) {
    let (mean, variance) = moments.split_at(moments.len() / 2);
    (
        mean,
        variance
            .iter()
            .map(|v| 1.0 / (v + NORM_EPSILON).sqrt())
            .collect(),
    )
}

fn quarters(values: &[f32]) -> [&[f32]; 4] {
    let quarter = values.len() / 4;
    std::array::from_fn(|i| &values[i * quarter..(i + 1) * quarter])
}

fn matrix(tensor: Dense, rows: usize, columns: usize) -> Dense {
    tensor.to_contiguous().reshape([rows, columns].into())
}

/// The tensor in row-major order from the start of its storage, to be overwritten (a copy if it is
/// shared).
fn owned(tensor: Dense) -> Dense {
    let tensor = tensor.to_contiguous();
    if floats(&tensor).len() == tensor.storage::<f32>().len() {
        return tensor;
    }
    let shape: Vec<usize> = tensor.shape().iter().copied().collect();
    dense(floats(&tensor).to_vec(), &shape)
}

pub(super) fn dense(values: Vec<f32>, shape: &[usize]) -> Dense {
    Dense::from_data(TensorData::new(values, shape.to_vec()))
}

pub(super) fn floats(tensor: &Dense) -> &[f32] {
    tensor
        .as_slice::<f32>()
        .expect("made contiguous before, and all tensors here are f32")
}

#[cfg(test)]
pub(super) mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    use super::*;
    use crate::kernels::composed;

    /// Values in -2..2.
    pub(in crate::kernels) fn values(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count)
            .map(|_| rng.next_u32() as f32 / u32::MAX as f32 * 4.0 - 2.0)
            .collect()
    }

    fn random(shape: &[usize], seed: u64) -> Dense {
        dense(values(shape.iter().product(), seed), shape)
    }

    /// Sums of up to 10^4 products of size 4 in another order: 1e-4 of the largest value is ample,
    /// an error of one term is 1e-2.
    fn assert_close(got: &Dense, expected: &Dense, what: &str) {
        assert_eq!(got.shape(), expected.shape(), "{what}");
        let (got, expected) = (got.to_contiguous(), expected.to_contiguous());
        let largest = floats(&expected).iter().fold(1.0f32, |m, v| m.max(v.abs()));
        for (i, (g, e)) in floats(&got).iter().zip(floats(&expected)).enumerate() {
            assert!(
                (g - e).abs() <= 1e-4 * largest,
                "{what}: element {i} is {g}, expected {e}"
            );
        }
    }

    const PENALTIES: [Penalty; 3] = [
        Penalty::None,
        Penalty::Excess {
            radius: 1.0,
            weight: 0.5,
        },
        Penalty::Power {
            radius: 1.2,
            weight: 0.5,
            exponent: 10,
        },
    ];

    /// None, one that many inputs are beyond, and one that no input is.
    const GUARDS: [f32; 3] = [f32::INFINITY, 0.75, 2.5];

    #[test]
    fn convolution_and_its_gradients_equal_burns_own() {
        // (n, c_in, h, w, c_out, kernel, stride, padding): odd sizes, all strides, 1x1, padding
        // wider than needed.
        let cases = [
            (2, 3, 8, 8, 4, 3, 1, 1),
            (3, 2, 7, 5, 3, 3, 2, 1),
            (1, 3, 9, 9, 2, 5, 2, 2),
            (2, 4, 6, 6, 5, 1, 2, 0),
            (2, 2, 5, 6, 2, 3, 1, 0),
            (1, 1, 4, 4, 1, 3, 3, 2),
            (2, 1, 2, 2, 2, 5, 1, 2),
        ];
        for case in cases {
            let (n, c_in, h, w, c_out, kernel, stride, padding) = case;
            let x = random(&[n, c_in, h, w], 1);
            let weight = random(&[c_out, c_in, kernel, kernel], 2);
            let y = Flex::pi_conv(x.clone(), weight.clone(), stride, padding);
            assert_close(
                &y,
                &composed::conv::<Flex>(x.clone(), weight.clone(), stride, padding),
                &format!("{case:?}"),
            );
            let shape: Vec<usize> = y.shape().iter().copied().collect();
            let grad = random(&shape, 3);
            assert_close(
                &Flex::conv_by_input(x.clone(), weight.clone(), grad.clone(), stride, padding),
                &composed::conv_by_input::<Flex>(
                    x.clone(),
                    weight.clone(),
                    grad.clone(),
                    stride,
                    padding,
                ),
                &format!("{case:?} by input"),
            );
            assert_close(
                &Flex::conv_by_weight(x.clone(), weight.clone(), grad.clone(), stride, padding),
                &composed::conv_by_weight::<Flex>(x, weight, grad, stride, padding),
                &format!("{case:?} by weight"),
            );
        }
    }

    #[test]
    fn a_batch_of_several_tiles_equals_its_images() {
        // 288 x 256 patches an image: four images a tile, so nine images are three tiles, the last
        // one short.
        let (x, weight) = (random(&[9, 32, 16, 16], 4), random(&[8, 32, 3, 3], 5));
        let whole = Flex::pi_conv(x.clone(), weight.clone(), 1, 1);
        assert_close(
            &whole,
            &composed::conv::<Flex>(x, weight, 1, 1),
            "nine images",
        );
    }

    #[test]
    fn normalisation_and_its_gradients_equal_the_composition() {
        let shape = [4, 3, 5, 7];
        let x = random(&shape, 6);
        let (gamma, beta, grad) = (random(&[3], 7), random(&[3], 8), random(&shape, 9));
        let moments = Flex::pi_moments(x.clone());
        assert_close(&moments, &composed::moments::<Flex>(x.clone()), "moments");
        assert_close(
            &Flex::pi_normalise(x.clone(), moments.clone(), gamma.clone(), beta.clone()),
            &composed::normalise::<Flex>(x.clone(), moments.clone(), gamma.clone(), beta),
            "normalise",
        );
        let got = Flex::normalise_adjoint(x.clone(), moments.clone(), gamma.clone(), grad.clone());
        let expected = composed::normalise_adjoint::<Flex>(x, moments, gamma, grad);
        for ((got, expected), what) in got
            .iter()
            .zip(&expected)
            .zip(["by x", "by gamma", "by beta"])
        {
            assert_close(got, expected, what);
        }
    }

    #[test]
    fn masked_activation_and_its_gradients_equal_the_composition() {
        let shape = [3, 2, 4, 5];
        let (z, grad) = (random(&shape, 10), random(&shape, 11));
        let coefficients = random(&[4, 2, 4, 5], 12);
        let limits = GUARDS.map(|guard| PENALTIES.map(|penalty| Limits { penalty, guard }));
        for limits in limits.into_iter().flatten() {
            assert_close(
                &Flex::pi_masked(z.clone(), coefficients.clone(), limits),
                &composed::masked::<Flex>(z.clone(), coefficients.clone(), limits.guard),
                &format!("masked, {limits:?}"),
            );
            assert_close(
                &Flex::masked_by_input(z.clone(), coefficients.clone(), grad.clone(), limits),
                &composed::masked_by_input::<Flex>(
                    z.clone(),
                    coefficients.clone(),
                    grad.clone(),
                    limits,
                ),
                &format!("by input, {limits:?}"),
            );
            assert_close(
                &Flex::masked_by_coefficients(z.clone(), grad.clone(), limits.guard),
                &composed::masked_by_coefficients::<Flex>(z.clone(), grad.clone(), limits.guard),
                &format!("by coefficients, {limits:?}"),
            );
        }
    }

    #[test]
    fn beyond_the_guard_a_polynomial_is_its_tangent() {
        // 2 z^2 + 3 z + 5 at a guard of 4: within, at both ends, and beyond, where the slopes are
        // 2 * 2 * 4 + 3 and 2 * 2 * -4 + 3. The last position is a ReLU, which has no guard.
        let row = |values: [f32; 4]| values.to_vec();
        let constants = [row([0.0, 0.0, 0.0, 1.0]), row([2.0, 2.0, 2.0, 0.0])];
        let others = [row([3.0, 3.0, 3.0, 0.0]), row([5.0, 5.0, 5.0, 0.0])];
        let coefficients = dense([constants, others].concat().concat(), &[4, 1, 2, 2]);
        let z = dense(vec![1.0, 6.0, -7.0, 9.0], &[1, 1, 2, 2]);
        let limits = Limits {
            guard: 4.0,
            ..Limits::NONE
        };
        let y = Flex::pi_masked(z.clone(), coefficients.clone(), limits);
        assert_eq!(
            floats(&y),
            [10.0, 49.0 + 2.0 * 19.0, 25.0 + 3.0 * 13.0, 9.0]
        );
        let one = dense(vec![1.0; 4], &[1, 1, 2, 2]);
        let slopes = Flex::masked_by_input(z.clone(), coefficients.clone(), one.clone(), limits);
        assert_eq!(floats(&slopes), [7.0, 19.0, -13.0, 1.0]);
        // Without a guard, or at one that nothing is beyond, it is the polynomial itself.
        let plain = Flex::pi_masked(z.clone(), coefficients.clone(), Limits::NONE);
        assert_eq!(floats(&plain), [10.0, 95.0, 82.0, 9.0]);
        let far = Limits {
            guard: 9.0,
            ..Limits::NONE
        };
        let far = Flex::pi_masked(z.clone(), coefficients, far);
        assert_eq!(floats(&far), floats(&plain));
        let by = Flex::masked_by_coefficients(z, one, 4.0);
        // z^2 - (z - c)^2
        assert_eq!(
            floats(&by)[4..8],
            [1.0, 36.0 - 4.0, 49.0 - 9.0, 81.0 - 25.0]
        );
    }
}
