//! Convolution, normalisation and masked activation as differentiable burn operations.
//!
//! burn's CPU back end would run a batch norm as a dozen passes over memory and a convolution's
//! weight gradient as a convolution with a kernel as large as the image. Here each is one operation
//! with its own backward step. `flex` runs them on the CPU by the crate `pi_kernels`, on maps whose
//! channels lie together in memory (`[n, h, w, c]`, by strides alone: shapes are `[n, c, h, w]`
//! everywhere). All other back ends run compositions (`composed`) of burn's own operations, which
//! are also the oracle of the CPU's tests. `autodiff` ties the forward halves to the backward ones,
//! and [`Limits`] ride on the backward step of the activations.

mod autodiff;
mod composed;
mod flex;
mod limits;
mod penalty;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

pub use limits::Limits;
pub use penalty::Penalty;

/// Guards the division by a channel's standard deviation.
pub const NORM_EPSILON: f32 = pi_kernels::norm::EPSILON;

/// Steps of a convolution, and what follows it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Distance of one output's inputs from the next one's.
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
    /// True if a 2x2 average pool follows. Only with a convolution of stride 1 that keeps the size.
    pub pooled: bool,
}

/// Cross-correlates `x` with `weight`, zero padded, and pools if so told.
///
/// # Shapes
/// `x`: `[n, c_in, h, w]`; `weight`: `[c_out, c_in, k, k]`; result `[n, c_out, (h + 2p - k) / s +
/// 1, ..]`, halved by the pool.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, window: Window) -> Tensor<4> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::pi_conv(x, weight, window))
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

/// Returns `k0 relu(z) + k1 z^2 + k2 z + k3`, the square guarded by `limits`.
///
/// The backward step adds the gradient of the penalty, so that it costs no separate pass; the value
/// returned does not contain it.
///
/// # Shapes
/// `z`: `[n, c, h, w]`; `coefficients`: `[4, c, h, w]` of each position, or `[4, c, 1, 1]` of each
/// channel.
pub fn masked(z: Tensor<4>, coefficients: Tensor<4>, limits: Limits) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::pi_masked(
        z.into_dispatch(),
        coefficients.into_dispatch(),
        limits,
    ))
}

/// Returns [`masked`] of [`normalise`], which is not kept in between.
pub fn normalise_masked(
    x: Tensor<4>,
    moments: Tensor<2>,
    [gamma, beta]: [Tensor<1>; 2],
    coefficients: Tensor<4>,
    limits: Limits,
) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::pi_normalise_masked(
        x.into_dispatch(),
        moments.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        coefficients.into_dispatch(),
        limits,
    ))
}

/// Returns the sum of two maps.
pub fn add(x: Tensor<4>, y: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::pi_add(x.into_dispatch(), y.into_dispatch()))
}

/// The operations as burn dispatches them.
#[backend_extension(Flex, Cube: cfg(feature = "cuda"), Autodiff)]
pub trait Operations: Backend {
    /// See [`conv2d`].
    fn pi_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        composed::conv::<Self>(x, weight, window)
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
        composed::masked::<Self>(z, coefficients, limits)
    }
    /// See [`normalise_masked`].
    fn pi_normalise_masked(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        limits: Limits,
    ) -> FloatTensor<Self> {
        let z = composed::normalise::<Self>(x, moments, gamma, beta);
        composed::masked::<Self>(z, coefficients, limits)
    }
    /// See [`add`].
    fn pi_add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(x, y)
    }
}

/// What [`normalise_masked`] keeps for its backward step.
#[derive(Clone, Debug)]
struct NormaliseMasked<T> {
    x: T,
    moments: T,
    gamma: T,
    beta: T,
    coefficients: T,
    limits: Limits,
}

/// Gradients of [`normalise_masked`] but for that by its coefficients, which may be none.
struct NormaliseMaskedBy<T> {
    x: T,
    gamma: T,
    beta: T,
    coefficients: Option<T>,
}

/// The backward halves, which autodiff calls. There are no second derivatives.
trait Adjoints: Operations {
    /// Gradients of [`conv2d`] by its input and by its weight, as far as they are wanted.
    fn conv_adjoint(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        composed::conv_adjoint::<Self>(x, weight, grad, window, wanted)
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

    /// Gradient of [`masked`] by its input, with that of the range penalty, and by its
    /// coefficients, summed over the batch, if that is wanted.
    fn masked_adjoint(
        z: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        limits: Limits,
        by_coefficients: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        composed::masked_adjoint::<Self>(z, coefficients, grad, limits, by_coefficients)
    }

    /// Gradients of [`normalise_masked`].
    fn normalise_masked_adjoint(
        of: NormaliseMasked<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        by_coefficients: bool,
    ) -> NormaliseMaskedBy<FloatTensor<Self>> {
        composed::normalise_masked_adjoint::<Self>(of, grad, by_coefficients)
    }
}

#[cfg(feature = "cuda")]
impl Operations for burn::backend::Cube {}
#[cfg(feature = "cuda")]
impl Adjoints for burn::backend::Cube {}
