//! The operations as compositions of burn's own: what any other back end than the CPU's runs, and
//! the oracle of the CPU's versions.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Slice;
use burn::tensor::ops::ConvOptions;

use super::{Limits, NORM_EPSILON, NormaliseMasked, NormaliseMaskedBy, Penalty, Window};

pub(super) fn conv<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    window: Window,
) -> FloatTensor<B> {
    let y = B::conv2d(x, weight, None, options(window));
    if window.pooled {
        B::avg_pool2d(y, [2; 2], [2; 2], [0; 2], true, false)
    } else {
        y
    }
}

pub(super) fn conv_adjoint<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    window: Window,
    wanted: [bool; 2],
) -> [Option<FloatTensor<B>>; 2] {
    let grad = if window.pooled {
        // The pool's gradient asks for its input's shape alone.
        let y = B::conv2d(x.clone(), weight.clone(), None, options(window));
        B::avg_pool2d_backward(y, grad, [2; 2], [2; 2], [0; 2], true, false)
    } else {
        grad
    };
    let [by_input, by_weight] = wanted;
    let options = || options(window);
    [
        by_input.then(|| B::conv2d_x_backward(x.clone(), weight.clone(), grad.clone(), options())),
        by_weight
            .then(|| B::conv2d_weight_backward(x.clone(), weight.clone(), grad.clone(), options())),
    ]
}

pub(super) fn moments<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [n, c, h, w] = x.shape().dims();
    let x = B::float_reshape(B::float_permute(x, &[1, 0, 2, 3]), [c, n * h * w].into());
    let mean = B::float_mean_dim(x.clone(), 1);
    let centred = B::float_sub(x, mean.clone());
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred), 1);
    B::float_swap_dims(B::float_cat(vec![mean, variance], 1), 0, 1)
}

pub(super) fn normalise<B: Backend>(
    x: FloatTensor<B>,
    moments: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
) -> FloatTensor<B> {
    let (standard, _) = standardise::<B>(x, moments);
    B::float_add(
        B::float_mul(standard, per_channel::<B>(gamma)),
        per_channel::<B>(beta),
    )
}

pub(super) fn normalise_adjoint<B: Backend>(
    x: FloatTensor<B>,
    moments: FloatTensor<B>,
    gamma: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 3] {
    let [n, c, h, w] = x.shape().dims();
    let count = (n * h * w) as f32;
    let (standard, inverse) = standardise::<B>(x, moments);
    let by_beta = over_batch_and_map::<B>(grad.clone());
    let by_gamma = over_batch_and_map::<B>(B::float_mul(grad.clone(), standard.clone()));
    let mean = |sum: FloatTensor<B>| B::float_div_scalar(sum, count.into());
    let centred = B::float_sub(grad, mean(by_beta.clone()));
    let centred = B::float_sub(centred, B::float_mul(standard, mean(by_gamma.clone())));
    let by_x = B::float_mul(centred, B::float_mul(per_channel::<B>(gamma), inverse));
    [
        by_x,
        B::float_reshape(by_gamma, [c].into()),
        B::float_reshape(by_beta, [c].into()),
    ]
}

pub(super) fn masked<B: Backend>(
    z: FloatTensor<B>,
    coefficients: FloatTensor<B>,
    limits: Limits,
) -> FloatTensor<B> {
    let [relu, square, linear, constant] = quarters::<B>(coefficients);
    let rectified = B::float_mul(B::relu(z.clone()), relu);
    let curve = B::float_mul(guarded_square::<B>(z.clone(), limits), square);
    let line = B::float_add(B::float_mul(z, linear), constant);
    B::float_add(B::float_add(rectified, curve), line)
}

/// `z^2`, beyond the guard its tangent there.
fn guarded_square<B: Backend>(z: FloatTensor<B>, limits: Limits) -> FloatTensor<B> {
    let square = B::float_mul(z.clone(), z.clone());
    if limits.guard.is_infinite() {
        return square;
    }
    let beyond = B::float_sub(z.clone(), guarded::<B>(z, limits));
    B::float_sub(square, B::float_mul(beyond.clone(), beyond))
}

/// `z` within the guard.
fn guarded<B: Backend>(z: FloatTensor<B>, limits: Limits) -> FloatTensor<B> {
    if limits.guard.is_infinite() {
        return z;
    }
    B::float_clamp(z, (-limits.guard).into(), limits.guard.into())
}

pub(super) fn masked_adjoint<B: Backend>(
    z: FloatTensor<B>,
    coefficients: FloatTensor<B>,
    grad: FloatTensor<B>,
    limits: Limits,
    by_coefficients: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let by = by_coefficients.then(|| {
        let [_, _, h, w] = coefficients.shape().dims::<4>();
        masked_by_coefficients::<B>(z.clone(), grad.clone(), limits, [h, w] == [1, 1])
    });
    let [n, c, h, w] = z.shape().dims::<4>();
    let [relu, square, linear, _] = quarters::<B>(coefficients);
    // 1 where z > 0, 0 elsewhere: the sign of the rectified value.
    let positive = B::float_sign(B::relu(z.clone()));
    let inside = guarded::<B>(z.clone(), limits);
    let curve = B::float_mul_scalar(B::float_mul(inside, square), 2.0f32.into());
    let slope = B::float_add(B::float_add(B::float_mul(positive, relu), curve), linear);
    let grad = B::float_mul(grad, slope);
    let grad = match limits.penalty {
        Penalty::None => grad,
        Penalty::Excess { radius, weight } => {
            let inside = B::float_clamp(z.clone(), (-radius).into(), radius.into());
            let factor = 2.0 * weight / n as f32;
            let pull = B::float_mul_scalar(B::float_sub(z, inside), factor.into());
            B::float_add(grad, pull)
        }
        Penalty::Power {
            radius,
            weight,
            exponent,
        } => {
            let factor = weight * exponent as f32 / (radius * (n * c * h * w) as f32);
            let scaled = B::float_mul_scalar(z, (1.0 / radius).into());
            let steep = B::float_powi_scalar(scaled, (exponent - 1).into());
            B::float_add(grad, B::float_mul_scalar(steep, factor.into()))
        }
    };
    (grad, by)
}

/// Summed over the batch, and over the map too if channels have the coefficients.
fn masked_by_coefficients<B: Backend>(
    z: FloatTensor<B>,
    grad: FloatTensor<B>,
    limits: Limits,
    of_channels: bool,
) -> FloatTensor<B> {
    let linear = B::float_mul(grad.clone(), z.clone());
    let square = B::float_mul(grad.clone(), guarded_square::<B>(z.clone(), limits));
    let relu = B::float_mul(grad.clone(), B::relu(z));
    let parts = [relu, square, linear, grad].map(|part| {
        if of_channels {
            over_batch_and_map::<B>(part)
        } else {
            B::float_sum_dim(part, 0)
        }
    });
    B::float_cat(parts.into(), 0)
}

pub(super) fn normalise_masked_adjoint<B: Backend>(
    of: NormaliseMasked<FloatTensor<B>>,
    grad: FloatTensor<B>,
    by_coefficients: bool,
) -> NormaliseMaskedBy<FloatTensor<B>> {
    let NormaliseMasked {
        x,
        moments,
        gamma,
        beta,
        coefficients,
        limits,
    } = of;
    let z = normalise::<B>(x.clone(), moments.clone(), gamma.clone(), beta);
    let (by_z, coefficients) = masked_adjoint::<B>(z, coefficients, grad, limits, by_coefficients);
    let [x, gamma, beta] = normalise_adjoint::<B>(x, moments, gamma, by_z);
    NormaliseMaskedBy {
        x,
        gamma,
        beta,
        coefficients,
    }
}

fn options(window: Window) -> ConvOptions<2> {
    ConvOptions::new([window.stride; 2], [window.padding; 2], [1; 2], 1)
}

/// `(x - mean) / deviation` and `1 / deviation`.
fn standardise<B: Backend>(
    x: FloatTensor<B>,
    moments: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let mean = per_channel::<B>(part::<B>(moments.clone(), 0));
    let variance =
        B::float_add_scalar(per_channel::<B>(part::<B>(moments, 1)), NORM_EPSILON.into());
    let inverse = B::float_recip(B::float_sqrt(variance));
    (
        B::float_mul(B::float_sub(x, mean), inverse.clone()),
        inverse,
    )
}

fn over_batch_and_map<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sum_dims(x, &[0, 2, 3])
}

fn per_channel<B: Backend>(values: FloatTensor<B>) -> FloatTensor<B> {
    let channels = values.shape().num_elements();
    B::float_reshape(values, [1, channels, 1, 1].into())
}

fn quarters<B: Backend>(coefficients: FloatTensor<B>) -> [FloatTensor<B>; 4] {
    std::array::from_fn(|i| part::<B>(coefficients.clone(), i))
}

/// Entry `index` of the first dimension, which keeps its place with length one.
fn part<B: Backend>(tensor: FloatTensor<B>, index: usize) -> FloatTensor<B> {
    B::float_slice(tensor, &[Slice::from(index..index + 1)])
}
