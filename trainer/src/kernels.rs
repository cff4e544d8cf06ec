//! Convolution, normalisation and masked activation as differentiable burn operations.
//!
//! burn's CPU back end would run a batch norm as a dozen passes over memory and a convolution's
//! weight gradient as a convolution with a kernel as large as the image. Here each is one operation
//! with its own backward step: convolutions gather patches of a few images at a time (so that they
//! stay in the second-level cache) and call the back end's matrix product; the others make one pass
//! forward and one or two backward. All other back ends run compositions (`composed.rs`) of burn's
//! own operations, which are also the oracle of the tests below.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::composed;

/// Guards the division by a channel's standard deviation.
pub const NORM_EPSILON: f32 = 1e-5;

/// Patches gathered at a time, in floats: 1 MiB, half of a server core's second-level cache.
const PATCH_FLOATS: usize = 1 << 18;

/// Cross-correlates `x` with `weight`, zero padded.
///
/// # Shapes
/// `x`: `[n, c_in, h, w]`; `weight`: `[c_out, c_in, k, k]`; result `[n, c_out, (h + 2p - k) / s +
/// 1, ..]`.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::pi_conv(
        x.into_dispatch(),
        weight.into_dispatch(),
        stride,
        padding,
    ))
}

/// Returns the mean and the (biased) variance of each channel: `[2, c]`, without a gradient.
pub fn moments(x: Tensor<4>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::pi_moments(x.inner().into_dispatch()))
}

/// Normalises each channel of `x` by its own `moments`, then scales and shifts it.
///
/// The gradient is that of batch normalisation: `moments` must be [`moments`]`(x)` wherever a
/// gradient is taken.
pub fn normalise(x: Tensor<4>, moments: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::pi_normalise(
        x.into_dispatch(),
        moments.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
    ))
}

/// A penalty on the inputs of activations, which [`masked`] adds to the gradient.
///
/// Polynomials need it to stay stable, and the compiled network's fixed point to stay precise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Penalty {
    /// None.
    None,
    /// `weight` times the squared excess of `|z|` over `radius`, summed over positions, mean over
    /// the batch.
    Excess {
        /// Where it begins.
        radius: f32,
        /// Its strength.
        weight: f32,
    },
    /// `weight` times the mean of `(z / radius)^exponent` over batch and positions (PILLAR, USENIX
    /// Security 2024).
    Power {
        /// Where it becomes steep.
        radius: f32,
        /// Its strength.
        weight: f32,
        /// An even exponent of at least 2.
        exponent: i32,
    },
}

/// Returns `k0 relu(z) + k1 z^2 + k2 z + k3` with coefficients per position.
///
/// The backward step adds the gradient of `penalty`, so that the penalty costs no pass of its own;
/// the value returned does not contain it.
///
/// # Shapes
/// `z`: `[n, c, h, w]`; `coefficients`: `[4, c, h, w]`.
pub fn masked(z: Tensor<4>, coefficients: Tensor<4>, penalty: Penalty) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::pi_masked(
        z.into_dispatch(),
        coefficients.into_dispatch(),
        penalty,
    ))
}

impl Penalty {
    /// Its value on the inputs of one site, whose gradient [`masked`] adds; zero if there is none.
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

/// The operations as burn dispatches them.
#[backend_extension(Flex, Cube: cfg(feature = "cuda"), Autodiff)]
pub trait Operations: Backend {
    /// See [`conv2d`].
    fn pi_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        composed::conv::<Self>(x, weight, stride, padding)
    }
    /// See [`moments`].
    fn pi_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::moments::<Self>(x)
    }
    /// See [`normalise`].
    fn pi_normalise(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::normalise::<Self>(x, moments, gamma, beta)
    }
    /// See [`masked`].
    fn pi_masked(
        z: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        _penalty: Penalty,
    ) -> FloatTensor<Self> {
        composed::masked::<Self>(z, coefficients)
    }
}

type Dense = FloatTensor<Flex>;

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

    fn pi_masked(z: Dense, coefficients: Dense, _penalty: Penalty) -> Dense {
        let [n, c, h, w] = z.shape().dims();
        let image = c * h * w;
        let (z, coefficients) = (z.to_contiguous(), coefficients.to_contiguous());
        let [relu, square, linear, constant] = quarters(floats(&coefficients));
        let mut out = vec![0.0f32; n * image];
        out.par_chunks_mut(image)
            .zip(floats(&z).par_chunks(image))
            .for_each(|(out, z)| {
                for i in 0..image {
                    let v = z[i];
                    out[i] = relu[i] * v.max(0.0) + (square[i] * v + linear[i]) * v + constant[i];
                }
            });
        dense(out, &[n, c, h, w])
    }
}

/// The backward halves, which autodiff calls and nobody differentiates again.
trait Adjoints: Operations {
    /// Gradient of [`conv2d`] by its input.
    fn conv_by_input(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        composed::conv_by_input::<Self>(x, weight, grad, stride, padding)
    }

    /// Gradient of [`conv2d`] by its weight.
    fn conv_by_weight(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        composed::conv_by_weight::<Self>(x, weight, grad, stride, padding)
    }

    /// Gradients of [`normalise`] by its input, `gamma` and `beta`.
    fn normalise_adjoint(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        composed::normalise_adjoint::<Self>(x, moments, gamma, grad)
    }

    /// Gradient of [`masked`] by its input, with that of the range penalty.
    fn masked_by_input(
        z: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        penalty: Penalty,
    ) -> FloatTensor<Self> {
        composed::masked_by_input::<Self>(z, coefficients, grad, penalty)
    }

    /// Gradient of [`masked`] by its coefficients, summed over the batch.
    fn masked_by_coefficients(z: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::masked_by_coefficients::<Self>(z, grad)
    }
}

#[cfg(feature = "cuda")]
impl Operations for burn::backend::Cube {}
#[cfg(feature = "cuda")]
impl Adjoints for burn::backend::Cube {}

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

    fn masked_by_input(z: Dense, coefficients: Dense, grad: Dense, penalty: Penalty) -> Dense {
        let [n, c, h, w] = z.shape().dims();
        let image = c * h * w;
        let (z, coefficients) = (z.to_contiguous(), coefficients.to_contiguous());
        let [relu, square, linear, _] = quarters(floats(&coefficients));
        let mut grad = owned(grad);
        let images = grad
            .storage_mut::<f32>()
            .par_chunks_mut(image)
            .zip(floats(&z).par_chunks(image));
        let slope = |i: usize, z: f32| {
            let relu = if z > 0.0 { relu[i] } else { 0.0 };
            relu + 2.0 * square[i] * z + linear[i]
        };
        // One loop a kind of penalty, so that each stays a straight line for the vectoriser.
        match penalty {
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

    fn masked_by_coefficients(z: Dense, grad: Dense) -> Dense {
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
                        square[i] += grad[i] * z[i] * z[i];
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

impl<B: Adjoints, C: CheckpointStrategy> Operations for Autodiff<B, C> {
    fn pi_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Conv;
        impl<B: Adjoints> Backward<B, 2> for Conv {
            type State = (FloatTensor<B>, FloatTensor<B>, usize, usize);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [node_x, node_weight] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (x, weight, stride, padding) = ops.state;
                if let Some(node) = node_weight {
                    grads.register::<B>(
                        node.id,
                        B::conv_by_weight(x.clone(), weight.clone(), grad.clone(), stride, padding),
                    );
                }
                if let Some(node) = node_x {
                    grads
                        .register::<B>(node.id, B::conv_by_input(x, weight, grad, stride, padding));
                }
            }
        }
        match Conv
            .prepare::<C>([x.node(), weight.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                let out = B::pi_conv(x.clone(), weight.clone(), stride, padding);
                prep.finish((x, weight, stride, padding), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::pi_conv(
                x.into_primitive(),
                weight.into_primitive(),
                stride,
                padding,
            )),
        }
    }

    fn pi_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Moments;
        impl<B: Backend> Backward<B, 1> for Moments {
            type State = ();
            fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                // Moments are statistics, not part of the graph: their gradient ends here.
                grads.consume::<B>(&ops.node);
            }
        }
        match Moments.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), B::pi_moments(x.into_primitive())),
            OpsKind::UnTracked(prep) => prep.finish(B::pi_moments(x.into_primitive())),
        }
    }

    fn pi_normalise(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Normalise;
        impl<B: Adjoints> Backward<B, 3> for Normalise {
            type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let (x, moments, gamma) = ops.state;
                let by = B::normalise_adjoint(x, moments, gamma, grad);
                for (node, by) in ops.parents.into_iter().zip(by) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, by);
                    }
                }
            }
        }
        match Normalise
            .prepare::<C>([x.node(), gamma.node(), beta.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (x, moments, gamma) = (
                    x.into_primitive(),
                    moments.into_primitive(),
                    gamma.into_primitive(),
                );
                let out = B::pi_normalise(
                    x.clone(),
                    moments.clone(),
                    gamma.clone(),
                    beta.into_primitive(),
                );
                prep.finish((x, moments, gamma), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::pi_normalise(
                x.into_primitive(),
                moments.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
            )),
        }
    }

    fn pi_masked(
        z: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        penalty: Penalty,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Masked;
        impl<B: Adjoints> Backward<B, 2> for Masked {
            type State = (FloatTensor<B>, FloatTensor<B>, Penalty);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [node_z, node_coefficients] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (z, coefficients, penalty) = ops.state;
                if let Some(node) = node_coefficients {
                    grads
                        .register::<B>(node.id, B::masked_by_coefficients(z.clone(), grad.clone()));
                }
                if let Some(node) = node_z {
                    grads
                        .register::<B>(node.id, B::masked_by_input(z, coefficients, grad, penalty));
                }
            }
        }
        match Masked
            .prepare::<C>([z.node(), coefficients.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (z, coefficients) = (z.into_primitive(), coefficients.into_primitive());
                let out = B::pi_masked(z.clone(), coefficients.clone(), penalty);
                prep.finish((z, coefficients, penalty), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::pi_masked(
                z.into_primitive(),
                coefficients.into_primitive(),
                penalty,
            )),
        }
    }
}

/// Sizes of one convolution and the moves between images and patch matrices.
#[derive(Clone, Copy)]
struct Geometry {
    n: usize,
    c_in: usize,
    h: usize,
    w: usize,
    c_out: usize,
    k_h: usize,
    k_w: usize,
    h_out: usize,
    w_out: usize,
    stride: usize,
    padding: usize,
}

impl Geometry {
    fn new(x: &Dense, weight: &Dense, stride: usize, padding: usize) -> Self {
        let [n, c_in, h, w] = x.shape().dims();
        let [c_out, c_weight, k_h, k_w] = weight.shape().dims();
        assert_eq!(
            c_in, c_weight,
            "a convolution's weight must have its input's channels"
        );
        let h_out = (h + 2 * padding - k_h) / stride + 1;
        let w_out = (w + 2 * padding - k_w) / stride + 1;
        Self {
            n,
            c_in,
            h,
            w,
            c_out,
            k_h,
            k_w,
            h_out,
            w_out,
            stride,
            padding,
        }
    }

    fn patch(&self) -> usize {
        self.c_in * self.k_h * self.k_w
    }

    fn out_plane(&self) -> usize {
        self.h_out * self.w_out
    }

    fn in_image(&self) -> usize {
        self.c_in * self.h * self.w
    }

    fn out_image(&self) -> usize {
        self.c_out * self.out_plane()
    }

    /// Images whose patches are gathered together.
    fn tile(&self) -> usize {
        (PATCH_FLOATS / (self.patch() * self.out_plane())).max(1)
    }

    /// Calls `visit` for each tap of the kernel in each image of a tile.
    fn taps(&self, images: usize, mut visit: impl FnMut(Tap)) {
        let columns = images * self.out_plane();
        // Outputs `first..end` of a row or column read inside the image.
        let range = |tap: usize, side: usize, out: usize| {
            let first = self
                .padding
                .saturating_sub(tap)
                .div_ceil(self.stride)
                .min(out);
            let end = (side + self.padding)
                .saturating_sub(tap)
                .div_ceil(self.stride)
                .min(out);
            (first, end.max(first))
        };
        for c in 0..self.c_in {
            for ky in 0..self.k_h {
                let rows = range(ky, self.h, self.h_out);
                for kx in 0..self.k_w {
                    let row = ((c * self.k_h + ky) * self.k_w + kx) * columns;
                    let outs = range(kx, self.w, self.w_out);
                    for image in 0..images {
                        visit(Tap {
                            patch: row + image * self.out_plane(),
                            plane: (image * self.c_in + c) * self.h * self.w,
                            shift: ky as isize * self.w as isize + kx as isize
                                - (self.padding * (self.w + 1)) as isize,
                            rows,
                            outs,
                        });
                    }
                }
            }
        }
    }

    /// Position in a tap's image plane that output `(y, x)` of its patch row reads.
    fn source(&self, tap: &Tap, y: usize, x: usize) -> usize {
        ((y * self.w + x) * self.stride)
            .checked_add_signed(tap.shift)
            .expect("rows and columns lie in the image")
    }

    /// Patch matrix of a tile: `[patch, images * out_plane]`, zero where the padding is.
    fn gather(&self, x: &[f32]) -> Vec<f32> {
        let images = x.len() / self.in_image();
        let size = self.patch() * images * self.out_plane();
        // Taps come in the order of the matrix: it is written once, from its start to its end.
        let mut patches = Vec::with_capacity(size);
        self.taps(images, |tap| {
            let plane = &x[tap.plane..][..self.h * self.w];
            let ((top, bottom), (left, right)) = (tap.rows, tap.outs);
            if top == bottom || left == right {
                return;
            }
            if self.same_size() {
                // One copy of all rows, shifted; then the columns that wrapped around are cleared.
                let (first, last) = (
                    self.source(&tap, top, left),
                    self.source(&tap, bottom - 1, right - 1),
                );
                patches.resize(tap.patch + top * self.w + left, 0.0);
                patches.extend_from_slice(&plane[first..=last]);
                patches.resize(tap.patch + self.out_plane(), 0.0);
                if right - left < self.w {
                    for row in patches[tap.patch..].chunks_exact_mut(self.w) {
                        row[..left].fill(0.0);
                        row[right..].fill(0.0);
                    }
                }
                return;
            }
            for y in top..bottom {
                let source = plane[self.source(&tap, y, left)..].iter();
                patches.resize(tap.patch + y * self.w_out + left, 0.0);
                patches.extend(source.step_by(self.stride).take(right - left));
            }
        });
        patches.resize(size, 0.0);
        patches
    }

    /// Adds a patch matrix back onto the images: the transpose of [`Self::gather`].
    fn scatter(&self, patches: &mut [f32], x: &mut [f32]) {
        let images = x.len() / self.in_image();
        self.taps(images, |tap| {
            let patch = &mut patches[tap.patch..][..self.out_plane()];
            let plane = &mut x[tap.plane..][..self.h * self.w];
            let ((top, bottom), (left, right)) = (tap.rows, tap.outs);
            if top == bottom || left == right {
                return;
            }
            if self.same_size() {
                if right - left < self.w {
                    for row in patch.chunks_exact_mut(self.w) {
                        row[..left].fill(0.0);
                        row[right..].fill(0.0);
                    }
                }
                let (first, last) = (
                    self.source(&tap, top, left),
                    self.source(&tap, bottom - 1, right - 1),
                );
                let start = top * self.w + left;
                for (v, p) in plane[first..=last].iter_mut().zip(&patch[start..]) {
                    *v += p;
                }
                return;
            }
            for y in top..bottom {
                let target = plane[self.source(&tap, y, left)..]
                    .iter_mut()
                    .step_by(self.stride);
                for (p, v) in patch[y * self.w_out + left..y * self.w_out + right]
                    .iter()
                    .zip(target)
                {
                    *v += p;
                }
            }
        });
    }

    /// Whether outputs and inputs lie one to one, so that a tap is a shift of the whole plane.
    fn same_size(&self) -> bool {
        self.stride == 1 && self.w_out == self.w && self.h_out == self.h
    }

    /// `[c_out, images, plane]` to `[images, c_out, plane]`.
    fn interleave(&self, y: &[f32], out: &mut [f32]) {
        let plane = self.out_plane();
        let images = out.len() / self.out_image();
        for (index, chunk) in out.chunks_exact_mut(plane).enumerate() {
            let (image, channel) = (index / self.c_out, index % self.c_out);
            chunk.copy_from_slice(&y[(channel * images + image) * plane..][..plane]);
        }
    }

    /// `[images, c_out, plane]` to `[c_out, images, plane]`.
    fn deinterleave(&self, y: &[f32]) -> Vec<f32> {
        let plane = self.out_plane();
        let images = y.len() / self.out_image();
        let mut out = Vec::with_capacity(y.len());
        for channel in 0..self.c_out {
            for image in 0..images {
                out.extend_from_slice(&y[(image * self.c_out + channel) * plane..][..plane]);
            }
        }
        out
    }
}

/// One tap of a kernel over one image plane.
struct Tap {
    /// Start of its row of patches for this image.
    patch: usize,
    /// Start of the image plane.
    plane: usize,
    /// Position read by output (0, 0), relative to the plane: negative in the padding.
    shift: isize,
    /// Output rows that read inside the image.
    rows: (usize, usize),
    /// Output columns that read inside the image.
    outs: (usize, usize),
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

fn dense(values: Vec<f32>, shape: &[usize]) -> Dense {
    Dense::from_data(TensorData::new(values, shape.to_vec()))
}

fn floats(tensor: &Dense) -> &[f32] {
    tensor
        .as_slice::<f32>()
        .expect("made contiguous before, and all tensors here are f32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::download;
    use burn::tensor::Device;
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    /// Values in -2..2.
    fn values(count: usize, seed: u64) -> Vec<f32> {
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
        assert_close(
            &Flex::pi_masked(z.clone(), coefficients.clone(), Penalty::None),
            &composed::masked::<Flex>(z.clone(), coefficients.clone()),
            "masked",
        );
        for penalty in PENALTIES {
            assert_close(
                &Flex::masked_by_input(z.clone(), coefficients.clone(), grad.clone(), penalty),
                &composed::masked_by_input::<Flex>(
                    z.clone(),
                    coefficients.clone(),
                    grad.clone(),
                    penalty,
                ),
                &format!("by input, {penalty:?}"),
            );
        }
        assert_close(
            &Flex::masked_by_coefficients(z.clone(), grad.clone()),
            &composed::masked_by_coefficients::<Flex>(z, grad),
            "by coefficients",
        );
    }

    /// Scalar of the four operations in a row, and its gradients by autodiff.
    fn chain(inputs: &[Vec<f32>; 5]) -> (f32, Vec<Vec<f32>>) {
        let device = Device::flex().autodiff();
        let leaf = |i: usize| {
            let count = inputs[i].len();
            Tensor::<1>::from_data(TensorData::new(inputs[i].clone(), [count]), &device)
                .require_grad()
        };
        let leaves: Vec<Tensor<1>> = (0..5).map(leaf).collect();
        let x = leaves[0].clone().reshape([2, 2, 4, 4]);
        let y = conv2d(x, leaves[1].clone().reshape([3, 2, 3, 3]), 1, 1);
        let y = normalise(y.clone(), moments(y), leaves[2].clone(), leaves[3].clone());
        let y = masked(y, leaves[4].clone().reshape([4, 3, 4, 4]), Penalty::None);
        // A weighted sum, so that no gradient vanishes by symmetry.
        let weights =
            Tensor::<4>::from_data(TensorData::new(values(96, 20), [2, 3, 4, 4]), &device);
        let loss = (y * weights).sum();
        let mut grads = loss.backward();
        let gradients = leaves
            .iter()
            .map(|leaf| {
                leaf.grad_remove(&mut grads)
                    .expect("a leaf of the loss")
                    .into_data()
                    .try_into_vec()
                    .unwrap()
            })
            .collect();
        (loss.into_scalar(), gradients)
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let inputs = [
            values(64, 13),
            values(54, 14),
            values(3, 15),
            values(3, 16),
            values(192, 17),
        ];
        let (_, gradients) = chain(&inputs);
        let step = 1e-2f32;
        for (input, gradient) in gradients.iter().enumerate() {
            for position in (0..gradient.len()).step_by(gradient.len() / 3) {
                let at = |offset: f32| {
                    let mut moved = inputs.clone();
                    moved[input][position] += offset;
                    chain(&moved).0
                };
                let difference = (at(step) - at(-step)) / (2.0 * step);
                // Second-order error of the difference, ReLU kinks within the step, and single
                // precision of a sum of about 100: 5 % and 0.1 cover them; a wrong factor or sign
                // does not pass.
                let (got, bound) = (gradient[position], 0.1 + 0.05 * difference.abs());
                assert!(
                    (got - difference).abs() <= bound,
                    "input {input}, position {position}: {got}, expected {difference}"
                );
            }
        }
    }

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
        let pulled = Flex::masked_by_input(z, zero, grad, penalty);
        assert_eq!(floats(&pulled), [-1.0, 0.0, 0.0, 2.0]);
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
        let got = Flex::masked_by_input(dense(z.clone(), &[2, 3, 2, 2]), zero, grad, penalty);
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
