//! Convolution, normalisation and masked activation as differentiable burn operations.
//!
//! burn's CPU back end would run a batch norm as a dozen passes over memory and a convolution's
//! weight gradient as a convolution with a kernel as large as the image. Here each is one operation
//! with its own backward step. `flex` has them for the CPU: convolutions gather patches of a few
//! images at a time (`im2col`) and call the back end's matrix product; the others make one pass
//! forward and one or two backward. All other back ends run compositions (`composed`) of burn's
//! own operations, which are also the oracle of the CPU's tests. `autodiff` ties the forward
//! halves to the backward ones, and the [`Limits`] of training ride on the activations.

mod autodiff;
mod composed;
mod flex;
mod im2col;
mod limits;
mod penalty;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

pub use limits::Limits;
pub use penalty::Penalty;

/// Guards the division by a channel's standard deviation.
pub const NORM_EPSILON: f32 = 1e-5;

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

/// Returns `k0 relu(z) + k1 z^2 + k2 z + k3` with coefficients per position, the polynomial part
/// continued by its tangents beyond the guard of `limits`.
///
/// The backward step adds the gradient of the penalty of `limits`, so that the penalty costs no
/// separate pass; the value returned does not contain it.
///
/// # Shapes
/// `z`: `[n, c, h, w]`; `coefficients`: `[4, c, h, w]`.
pub fn masked(z: Tensor<4>, coefficients: Tensor<4>, limits: Limits) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::pi_masked(
        z.into_dispatch(),
        coefficients.into_dispatch(),
        limits,
    ))
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
        limits: Limits,
    ) -> FloatTensor<Self> {
        composed::masked::<Self>(z, coefficients, limits.guard)
    }
}

/// The backward halves, which autodiff calls. There are no second derivatives.
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

    /// Gradient of [`masked`] by its input, with that of the penalty.
    fn masked_by_input(
        z: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        limits: Limits,
    ) -> FloatTensor<Self> {
        composed::masked_by_input::<Self>(z, coefficients, grad, limits)
    }

    /// Gradient of [`masked`] by its coefficients, summed over the batch.
    fn masked_by_coefficients(
        z: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        guard: f32,
    ) -> FloatTensor<Self> {
        composed::masked_by_coefficients::<Self>(z, grad, guard)
    }
}

#[cfg(feature = "cuda")]
impl Operations for burn::backend::Cube {}
#[cfg(feature = "cuda")]
impl Adjoints for burn::backend::Cube {}
