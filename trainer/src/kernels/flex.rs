//! The operations on the CPU, by the kernels of `pi_kernels`.
//!
//! Tensors keep their shapes `[n, c, h, w]`; in memory their channels lie together, as burn's
//! strides allow. A map that comes in another order (the images do) is rearranged once.
//!
//! Sums have one order whatever the number of threads, and vectors of every kind compute the same,
//! so a run is the same to the bit on any machine.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::TensorData;
use pi_kernels::norm::{self, Activation, Norm, Pull};
use pi_kernels::{Adjoint, Backend, Convolution, layout};
use rayon::prelude::*;

use super::{Adjoints, Limits, NormaliseMasked, NormaliseMaskedBy, Operations, Penalty, Window};

pub(super) type Dense = FloatTensor<Flex>;

/// Elements that a thread adds at a time.
const PART: usize = 1 << 14;

impl Operations for Flex {
    fn pi_conv(x: Dense, weight: Dense, window: Window) -> Dense {
        let g = convolution(&x, &weight, window);
        let (x, weight) = (channels_last(x), weight.to_contiguous());
        let n = x.shape()[0];
        let mut out = vec![0.0; n * g.out_image()];
        g.forward(Backend::get(), floats(&x), floats(&weight), &mut out);
        let [h, w] = g.size_out();
        map(out, [n, h, w, g.c_out])
    }

    fn pi_moments(x: Dense) -> Dense {
        let c = x.shape()[1];
        let x = channels_last(x);
        dense(norm::moments(Backend::get(), floats(&x), c), &[2, c])
    }

    fn pi_normalise(x: Dense, moments: Dense, gamma: Dense, beta: Dense) -> Dense {
        let x = channels_last(x);
        let [moments, gamma, beta] = [moments, gamma, beta].map(|t| t.to_contiguous());
        let mut out = vec![0.0; floats(&x).len()];
        let norm = norm_of(&moments, &gamma, &beta);
        norm::normalise(Backend::get(), floats(&x), &norm, &mut out);
        map(out, x.shape().dims())
    }

    fn pi_masked(z: Dense, coefficients: Dense, limits: Limits) -> Dense {
        let c = z.shape()[1];
        let (z, coefficients) = (channels_last(z), channels_last(coefficients));
        let mut out = vec![0.0; floats(&z).len()];
        let activation = activation(&z, &coefficients, limits);
        norm::activate(Backend::get(), floats(&z), c, &activation, &mut out);
        map(out, z.shape().dims())
    }

    fn pi_normalise_masked(
        x: Dense,
        moments: Dense,
        gamma: Dense,
        beta: Dense,
        coefficients: Dense,
        limits: Limits,
    ) -> Dense {
        let (x, coefficients) = (channels_last(x), channels_last(coefficients));
        let [moments, gamma, beta] = [moments, gamma, beta].map(|t| t.to_contiguous());
        let mut out = vec![0.0; floats(&x).len()];
        let activation = activation(&x, &coefficients, limits);
        let norm = norm_of(&moments, &gamma, &beta);
        norm::normalise_activate(Backend::get(), floats(&x), &norm, &activation, &mut out);
        map(out, x.shape().dims())
    }

    fn pi_add(x: Dense, y: Dense) -> Dense {
        let (mut x, y) = (owned(x), channels_last(y));
        let parts = x.storage_mut::<f32>().par_chunks_mut(PART);
        parts.zip(floats(&y).par_chunks(PART)).for_each(|(x, y)| {
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
        });
        channels_first(x)
    }
}

impl Adjoints for Flex {
    fn conv_adjoint(
        x: Dense,
        weight: Dense,
        grad: Dense,
        window: Window,
        wanted: [bool; 2],
    ) -> [Option<Dense>; 2] {
        let g = convolution(&x, &weight, window);
        let (x, weight, grad) = (
            channels_last(x),
            weight.to_contiguous(),
            channels_last(grad),
        );
        let of = Adjoint {
            x: floats(&x),
            weight: floats(&weight),
            grad: floats(&grad),
        };
        let mut by_input = wanted[0].then(|| vec![0.0; of.x.len()]);
        let mut by_weight = wanted[1].then(|| vec![0.0; of.weight.len()]);
        g.adjoint(
            Backend::get(),
            of,
            by_input.as_deref_mut(),
            by_weight.as_deref_mut(),
        );
        let shape: Vec<usize> = weight.shape().iter().copied().collect();
        [
            by_input.map(|values| map(values, x.shape().dims())),
            by_weight.map(|values| dense(values, &shape)),
        ]
    }

    fn normalise_adjoint(x: Dense, moments: Dense, gamma: Dense, grad: Dense) -> [Dense; 3] {
        let c = x.shape()[1];
        let (x, mut grad) = (channels_last(x), owned(grad));
        let [moments, gamma] = [moments, gamma].map(|t| t.to_contiguous());
        // The shift has no part in the gradients.
        let beta = dense(vec![0.0; c], &[c]);
        let norm = norm_of(&moments, &gamma, &beta);
        let by = norm::normalise_adjoint(Backend::get(), floats(&x), &norm, grad.storage_mut());
        [
            channels_first(grad),
            dense(by.gamma, &[c]),
            dense(by.beta, &[c]),
        ]
    }

    fn masked_adjoint(
        z: Dense,
        coefficients: Dense,
        grad: Dense,
        limits: Limits,
        by_coefficients: bool,
    ) -> (Dense, Option<Dense>) {
        let c = z.shape()[1];
        let (z, coefficients, mut grad) =
            (channels_last(z), channels_last(coefficients), owned(grad));
        let activation = activation(&z, &coefficients, limits);
        let by = norm::activate_adjoint(
            Backend::get(),
            floats(&z),
            c,
            (&activation, by_coefficients),
            grad.storage_mut(),
        );
        let by = by_coefficients.then(|| map(by, coefficients.shape().dims()));
        (channels_first(grad), by)
    }

    fn normalise_masked_adjoint(
        of: NormaliseMasked<Dense>,
        grad: Dense,
        by_coefficients: bool,
    ) -> NormaliseMaskedBy<Dense> {
        let c = of.x.shape()[1];
        let (x, coefficients) = (channels_last(of.x), channels_last(of.coefficients));
        let mut grad = owned(grad);
        let [moments, gamma, beta] = [of.moments, of.gamma, of.beta].map(|t| t.to_contiguous());
        let activation = activation(&x, &coefficients, of.limits);
        let by = norm::normalise_activate_adjoint(
            Backend::get(),
            floats(&x),
            &norm_of(&moments, &gamma, &beta),
            (&activation, by_coefficients),
            grad.storage_mut(),
        );
        NormaliseMaskedBy {
            x: channels_first(grad),
            gamma: dense(by.gamma, &[c]),
            beta: dense(by.beta, &[c]),
            coefficients: by_coefficients
                .then(|| map(by.coefficients, coefficients.shape().dims())),
        }
    }
}

fn convolution(x: &Dense, weight: &Dense, window: Window) -> Convolution {
    let [_, c_in, h, w] = x.shape().dims();
    let [c_out, c_weight, k_h, k_w] = weight.shape().dims();
    assert_eq!(
        c_in, c_weight,
        "a convolution's weight must have its input's channels"
    );
    Convolution {
        c_in,
        h,
        w,
        c_out,
        kernel: [k_h, k_w],
        stride: window.stride,
        padding: window.padding,
        pooled: window.pooled,
    }
}

fn norm_of<'a>(moments: &'a Dense, gamma: &'a Dense, beta: &'a Dense) -> Norm<'a> {
    Norm {
        moments: floats(moments),
        gamma: floats(gamma),
        beta: floats(beta),
    }
}

/// An activation of `z`, whose channels are last.
fn activation<'a>(z: &Dense, coefficients: &'a Dense, limits: Limits) -> Activation<'a> {
    let [n, h, w, c] = z.shape().dims();
    let pull = match limits.penalty {
        Penalty::None => Pull::None,
        Penalty::Excess { radius, weight } => Pull::Excess {
            radius,
            pull: 2.0 * weight / n as f32,
        },
        Penalty::Power {
            radius,
            weight,
            exponent,
        } => Pull::Power {
            radius,
            pull: weight * exponent as f32 / (radius * (n * h * w * c) as f32),
            power: exponent.unsigned_abs() - 1,
        },
    };
    Activation {
        coefficients: floats(coefficients),
        guard: limits.guard,
        pull,
    }
}

/// `[n, c, h, w]` as `[n, h, w, c]` in row-major order.
fn channels_last(x: Dense) -> Dense {
    let last = x.permute(&[0, 2, 3, 1]);
    if last.is_contiguous() {
        return last;
    }
    let x = x.to_contiguous();
    let [n, c, h, w] = x.shape().dims();
    let mut out = vec![0.0; n * c * h * w];
    layout::channels_last(floats(&x), c, h * w, &mut out);
    dense(out, &[n, h, w, c])
}

/// `[n, h, w, c]` as `[n, c, h, w]`, where it lies.
fn channels_first(x: Dense) -> Dense {
    x.permute(&[0, 3, 1, 2])
}

/// Values in the order `[n, h, w, c]` as a map `[n, c, h, w]`.
fn map(values: Vec<f32>, shape: [usize; 4]) -> Dense {
    channels_first(dense(values, &shape))
}

/// [`channels_last`] from the start of its storage, to be overwritten (a copy if it is shared).
fn owned(x: Dense) -> Dense {
    let last = channels_last(x);
    if floats(&last).len() == last.storage::<f32>().len() {
        return last;
    }
    let shape: Vec<usize> = last.shape().iter().copied().collect();
    dense(floats(&last).to_vec(), &shape)
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

    use burn::backend::ops::FloatTensorOps;

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

    fn limits() -> [Limits; 4] {
        let excess = Penalty::Excess {
            radius: 1.0,
            weight: 0.5,
        };
        let power = Penalty::Power {
            radius: 1.2,
            weight: 0.5,
            exponent: 10,
        };
        let guarded = Limits {
            guard: 0.8,
            penalty: excess,
        };
        [Limits::NONE, excess.into(), power.into(), guarded]
    }

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
            let pools = stride == 1 && padding == kernel / 2 && kernel % 2 == 1;
            for pooled in [false, true].into_iter().filter(|pooled| pools || !pooled) {
                let window = Window {
                    stride,
                    padding,
                    pooled,
                };
                let x = random(&[n, c_in, h, w], 1);
                let weight = random(&[c_out, c_in, kernel, kernel], 2);
                let y = Flex::pi_conv(x.clone(), weight.clone(), window);
                let expected = composed::conv::<Flex>(x.clone(), weight.clone(), window);
                assert_close(&y, &expected, &format!("{case:?} {pooled}"));
                let shape: Vec<usize> = y.shape().iter().copied().collect();
                let grad = random(&shape, 3);
                let wanted = [true, true];
                let got =
                    Flex::conv_adjoint(x.clone(), weight.clone(), grad.clone(), window, wanted);
                let expected = composed::conv_adjoint::<Flex>(x, weight, grad, window, wanted);
                for ((got, expected), by) in got.iter().zip(&expected).zip(["input", "weight"]) {
                    let (got, expected) = (got.as_ref().unwrap(), expected.as_ref().unwrap());
                    assert_close(got, expected, &format!("{case:?} {pooled} by {by}"));
                }
            }
        }
    }

    #[test]
    fn a_map_in_any_order_is_the_same() {
        let window = Window {
            stride: 1,
            padding: 1,
            pooled: false,
        };
        let (x, weight) = (random(&[3, 16, 6, 5], 4), random(&[12, 16, 3, 3], 5));
        let first = Flex::pi_conv(x.clone(), weight.clone(), window);
        let last = channels_first(channels_last(x));
        let again = Flex::pi_conv(last, weight, window);
        assert_eq!(
            floats(&first.to_contiguous()),
            floats(&again.to_contiguous())
        );
        let sum = Flex::pi_add(first.clone(), again.to_contiguous());
        assert_close(&sum, &Flex::float_add(first, again), "sum");
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
        for (coefficients, limits) in [&coefficients, &random(&[4, 2, 1, 1], 13)]
            .into_iter()
            .flat_map(|k| limits().map(|l| (k, l)))
        {
            let what = |which| format!("{which}, {limits:?}");
            let got = Flex::pi_masked(z.clone(), coefficients.clone(), limits);
            let expected = composed::masked::<Flex>(z.clone(), coefficients.clone(), limits);
            assert_close(&got, &expected, &what("masked"));
            let k = coefficients.clone();
            let got = Flex::masked_adjoint(z.clone(), k.clone(), grad.clone(), limits, true);
            let expected =
                composed::masked_adjoint::<Flex>(z.clone(), k, grad.clone(), limits, true);
            assert_close(&got.0, &expected.0, &what("by input"));
            let (got, expected) = (got.1.unwrap(), expected.1.unwrap());
            assert_close(&got, &expected, &what("by coefficients"));
        }
    }

    #[test]
    fn a_norm_with_its_activation_equals_the_composition() {
        let shape = [3, 5, 4, 6];
        let (x, grad) = (random(&shape, 14), random(&shape, 15));
        let moments = Flex::pi_moments(x.clone());
        let (gamma, beta) = (random(&[5], 16), random(&[5], 17));
        for limits in limits() {
            let of = NormaliseMasked {
                x: x.clone(),
                moments: moments.clone(),
                gamma: gamma.clone(),
                beta: beta.clone(),
                coefficients: random(&[4, 5, 4, 6], 18),
                limits,
            };
            let what = |which| format!("{which}, {limits:?}");
            let (m, g, b) = (moments.clone(), gamma.clone(), beta.clone());
            let got =
                Flex::pi_normalise_masked(x.clone(), m, g, b, of.coefficients.clone(), limits);
            let z = composed::normalise::<Flex>(
                x.clone(),
                moments.clone(),
                gamma.clone(),
                beta.clone(),
            );
            let expected = composed::masked::<Flex>(z, of.coefficients.clone(), limits);
            assert_close(&got, &expected, &what("forward"));
            let got = Flex::normalise_masked_adjoint(of.clone(), grad.clone(), true);
            let expected = composed::normalise_masked_adjoint::<Flex>(of, grad.clone(), true);
            assert_close(&got.x, &expected.x, &what("by x"));
            assert_close(&got.gamma, &expected.gamma, &what("by gamma"));
            assert_close(&got.beta, &expected.beta, &what("by beta"));
            let (got, expected) = (got.coefficients.unwrap(), expected.coefficients.unwrap());
            assert_close(&got, &expected, &what("by coefficients"));
        }
    }
}
