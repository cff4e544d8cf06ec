//! Batch norm over `[n, h, w, c]`, alone and fused with the activation behind it.
//!
//! The activation is `k0 relu(z) + k1 z^2 + k2 z + k3`, its coefficients per channel or per
//! position. Fused, nothing is kept for the backward step but the norm's input: forward reads it
//! once for the moments and once for the outputs; backward reads it and the gradient twice.

use std::ops::Range;

use rayon::prelude::*;

use crate::shares::{cut, shares};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::{Backend, matrix};

/// Guards the division by a channel's standard deviation.
pub const EPSILON: f32 = 1e-5;

/// Pixels whose sums are kept in single precision: they keep their digits there, while those of a
/// batch, of 10^5 values and more, do not.
const PIXELS: usize = 64;

/// Elements that a thread takes at a time.
const PARALLEL: usize = 1 << 14;

/// Pull of a penalty on an activation's inputs: what it adds to the gradient of each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pull {
    /// None.
    None,
    /// `pull` times what `z` exceeds `radius` by, in magnitude.
    Excess {
        /// Magnitude at which it begins.
        radius: f32,
        /// Strength.
        pull: f32,
    },
    /// `pull (z / radius)^power`.
    Power {
        /// Magnitude at which it becomes steep.
        radius: f32,
        /// Strength.
        pull: f32,
        /// An odd power.
        power: u32,
    },
}

/// An activation behind a norm.
#[derive(Clone, Copy, Debug)]
pub struct Activation<'a> {
    /// Coefficients of `relu(z)`, `z^2`, `z` and 1: `[4, c]` of each channel, or `[4, h, w, c]` of
    /// each position.
    pub coefficients: &'a [f32],
    /// Magnitude outside of which the polynomial goes on as a straight line; infinite for none.
    pub guard: f32,
    /// Penalty on its inputs, in the backward step.
    pub pull: Pull,
}

/// A norm with what it needs of a batch: `z = scale x + shift`.
#[derive(Clone, Debug)]
pub struct Norm<'a> {
    /// Mean and variance of each channel, `[2, c]`.
    pub moments: &'a [f32],
    /// Scale behind the norm, `[c]`.
    pub gamma: &'a [f32],
    /// Shift behind the norm, `[c]`.
    pub beta: &'a [f32],
}

/// Gradients of a norm and of the activation behind it.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    /// By `gamma`, `[c]`.
    pub gamma: Vec<f32>,
    /// By `beta`, `[c]`.
    pub beta: Vec<f32>,
    /// By the activation's coefficients, in their shape; empty if not asked for.
    pub coefficients: Vec<f32>,
}

impl Norm<'_> {
    fn channels(&self) -> usize {
        self.gamma.len()
    }

    fn inverse(&self) -> Vec<f32> {
        let variances = &self.moments[self.channels()..];
        variances
            .iter()
            .map(|v| 1.0 / (v + EPSILON).sqrt())
            .collect()
    }

    /// `scale` and `shift` of each channel, padded to whole vectors.
    fn affine(&self) -> Affine {
        let count = matrix::blocks(self.channels()) * LANES;
        let (mut scale, mut shift) = (vec![0.0; count], vec![0.0; count]);
        for (c, inverse) in self.inverse().into_iter().enumerate() {
            scale[c] = self.gamma[c] * inverse;
            shift[c] = self.beta[c] - self.moments[c] * scale[c];
        }
        Affine { scale, shift }
    }
}

struct Affine {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Affine {
    fn identity(channels: usize) -> Self {
        let count = matrix::blocks(channels) * LANES;
        Self {
            scale: vec![1.0; count],
            shift: vec![0.0; count],
        }
    }
}

/// Returns mean and (biased) variance of each channel, `[2, c]`.
///
/// # Panics
/// If `x` is no whole number of pixels, or empty.
pub fn moments(backend: Backend, x: &[f32], channels: usize) -> Vec<f32> {
    let pixels = x.len() / channels;
    assert!(
        pixels > 0 && x.len() == pixels * channels,
        "whole pixels have moments"
    );
    let parts: Vec<Vec<f64>> = shares(pixels, 1)
        .into_par_iter()
        .map(|share| {
            let mut sums = vec![0.0; 2 * channels];
            let x = &x[share.start * channels..share.end * channels];
            simd::run(
                backend,
                Sums {
                    x,
                    y: x,
                    channels,
                    sums: &mut sums,
                },
            );
            sums
        })
        .collect();
    let mut out = vec![0.0; 2 * channels];
    for c in 0..channels {
        let sum = |c: usize| parts.iter().map(|part| part[c]).sum::<f64>() / pixels as f64;
        let (mean, square) = (sum(c), sum(channels + c));
        out[c] = mean as f32;
        out[channels + c] = (square - mean * mean).max(0.0) as f32;
    }
    out
}

/// Sums of `x` and of `x y` over the pixels, added to `[2, c]`.
struct Sums<'a> {
    x: &'a [f32],
    y: &'a [f32],
    channels: usize,
    sums: &'a mut [f64],
}

impl Kernel for Sums<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.channels;
        for (x, y) in self.x.chunks(PIXELS * c).zip(self.y.chunks(PIXELS * c)) {
            for first in (0..c).step_by(LANES) {
                let lanes = LANES.min(c - first);
                let (mut sum, mut products) = (s.zero(), s.zero());
                for (x, y) in x.chunks_exact(c).zip(y.chunks_exact(c)) {
                    let a = s.load_first(&x[first..first + lanes]);
                    let b = s.load_first(&y[first..first + lanes]);
                    sum = s.add(sum, a);
                    products = s.mul_add(a, b, products);
                }
                let (one, other) = self.sums.split_at_mut(c);
                flush(s, sum, &mut one[first..first + lanes]);
                flush(s, products, &mut other[first..first + lanes]);
            }
        }
    }
}

/// Adds a vector to sums in double precision.
#[inline(always)]
fn flush<S: Simd>(s: S, v: S::V, sums: &mut [f64]) {
    let mut lane = [0.0; LANES];
    s.store(&mut lane, v);
    for (sum, value) in sums.iter_mut().zip(lane) {
        *sum += f64::from(value);
    }
}

/// Normalises each channel: `gamma (x - mean) / std + beta`.
///
/// # Panics
/// If `x` is no whole number of pixels.
pub fn normalise(backend: Backend, x: &[f32], norm: &Norm<'_>, out: &mut [f32]) {
    let identity = identity(norm.channels());
    normalise_activate(backend, x, norm, &identity_of(&identity), out);
}

/// Gradients of [`normalise`]: `grad` by the outputs becomes that by the inputs.
///
/// # Panics
/// As [`normalise`].
pub fn normalise_adjoint(
    backend: Backend,
    x: &[f32],
    norm: &Norm<'_>,
    grad: &mut [f32],
) -> Gradients {
    let identity = identity(norm.channels());
    normalise_activate_adjoint(backend, x, norm, (&identity_of(&identity), false), grad)
}

/// Coefficients of the identity.
fn identity(channels: usize) -> Vec<f32> {
    let mut k = vec![0.0; 4 * channels];
    k[2 * channels..3 * channels].fill(1.0);
    k
}

fn identity_of(coefficients: &[f32]) -> Activation<'_> {
    Activation {
        coefficients,
        guard: f32::INFINITY,
        pull: Pull::None,
    }
}

/// Computes an activation of `z` without a norm before it.
///
/// # Panics
/// If `z` is no whole number of images of the coefficients' shape.
pub fn activate(
    backend: Backend,
    z: &[f32],
    channels: usize,
    activation: &Activation<'_>,
    out: &mut [f32],
) {
    forward(
        backend,
        z,
        &Affine::identity(channels),
        (channels, activation),
        out,
    );
}

/// Gradients of [`activate`]: `grad` by the outputs becomes that by the inputs; returned is that by
/// the coefficients, empty unless asked for.
///
/// # Panics
/// As [`activate`].
pub fn activate_adjoint(
    backend: Backend,
    z: &[f32],
    channels: usize,
    (activation, by_coefficients): (&Activation<'_>, bool),
    grad: &mut [f32],
) -> Vec<f32> {
    let step = Step::new(channels, z.len(), activation);
    let shares = shares(z.len() / (step.positions * channels), step.positions);
    let affine = Affine::identity(channels);
    let parts = sums(backend, &step, &affine, (z, grad), by_coefficients, &shares);
    let zero = vec![0.0; matrix::blocks(channels) * LANES];
    let terms = [&affine.scale[..], &zero, &zero];
    backward(backend, (&step, &affine), terms, (z, grad), &shares);
    total_coefficients(&parts, activation.coefficients.len())
}

/// Computes an activation of the normalised inputs.
///
/// # Panics
/// If `x` is no whole number of images of the coefficients' shape, or `out` has another size.
///
/// # Cost
/// Reads and writes each element once.
pub fn normalise_activate(
    backend: Backend,
    x: &[f32],
    norm: &Norm<'_>,
    activation: &Activation<'_>,
    out: &mut [f32],
) {
    forward(
        backend,
        x,
        &norm.affine(),
        (norm.channels(), activation),
        out,
    );
}

fn forward(
    backend: Backend,
    x: &[f32],
    affine: &Affine,
    (channels, activation): (usize, &Activation<'_>),
    out: &mut [f32],
) {
    assert_eq!(x.len(), out.len(), "an activation keeps the size");
    let step = Step::new(channels, x.len(), activation);
    let image = step.positions * channels;
    let size = image * PARALLEL.div_ceil(image);
    out.par_chunks_mut(size)
        .zip(x.par_chunks(size))
        .for_each(|(out, x)| {
            simd::run(
                backend,
                Forward {
                    step: &step,
                    affine,
                    x,
                    out,
                },
            );
        });
}

/// Gradients of [`normalise_activate`] where the moments are those of `x`: `grad` by the outputs
/// becomes that by the inputs. Those by the coefficients only if asked for.
///
/// # Panics
/// As [`normalise_activate`].
///
/// # Cost
/// Reads each element of `x` and `grad` twice and writes it once.
pub fn normalise_activate_adjoint(
    backend: Backend,
    x: &[f32],
    norm: &Norm<'_>,
    (activation, by_coefficients): (&Activation<'_>, bool),
    grad: &mut [f32],
) -> Gradients {
    assert_eq!(x.len(), grad.len(), "an activation keeps the size");
    let c = norm.channels();
    let step = Step::new(c, x.len(), activation);
    let shares = shares(x.len() / (step.positions * c), step.positions);
    let (affine, inverse) = (norm.affine(), norm.inverse());
    let parts = sums(backend, &step, &affine, (x, grad), by_coefficients, &shares);
    let total = |i: usize| parts.iter().map(|part| part.sums[i]).sum::<f64>();
    let count = (x.len() / c) as f64;
    let mut out = Gradients {
        coefficients: total_coefficients(&parts, activation.coefficients.len()),
        ..Gradients::default()
    };
    // gamma / std * (d - mean(d) - xhat * mean(d * xhat)) with d the gradient by z, as
    // k0 d + k1 x + k2.
    let (mut k1, mut k2) = (vec![0.0; affine.scale.len()], vec![0.0; affine.scale.len()]);
    for channel in 0..c {
        let mean = f64::from(norm.moments[channel]);
        let by_beta = total(channel);
        let by_gamma = (total(c + channel) - mean * by_beta) * f64::from(inverse[channel]);
        out.gamma.push(by_gamma as f32);
        out.beta.push(by_beta as f32);
        let k0 = f64::from(affine.scale[channel]);
        let slope = -k0 * f64::from(inverse[channel]) * by_gamma / count;
        k1[channel] = slope as f32;
        k2[channel] = (-k0 * by_beta / count - slope * mean) as f32;
    }
    let terms = [&affine.scale[..], &k1, &k2];
    backward(backend, (&step, &affine), terms, (x, grad), &shares);
    out
}

/// Sizes and coefficients of a pass.
struct Step {
    channels: usize,
    /// Positions of an image with coefficients of their own: 1 if channels have them.
    positions: usize,
    /// `[4][positions][c]`, each pixel padded to whole vectors.
    coefficients: [Vec<f32>; 4],
    guard: f32,
    pull: Pull,
}

impl Step {
    fn new(channels: usize, elements: usize, activation: &Activation<'_>) -> Self {
        let k = activation.coefficients;
        let positions = k.len() / (4 * channels);
        assert!(
            positions > 0 && k.len() == 4 * channels * positions,
            "an activation has four coefficients a channel or position"
        );
        assert!(
            elements.is_multiple_of(channels * positions),
            "an activation's coefficients fit its inputs"
        );
        let width = matrix::blocks(channels) * LANES;
        let coefficients = std::array::from_fn(|part| {
            let mut padded = vec![0.0; positions * width];
            let rows = k[part * positions * channels..].chunks_exact(channels);
            for (to, from) in padded.chunks_exact_mut(width).zip(rows) {
                to[..channels].copy_from_slice(from);
            }
            padded
        });
        Self {
            channels,
            positions,
            coefficients,
            guard: activation.guard,
            pull: activation.pull,
        }
    }

    fn width(&self) -> usize {
        matrix::blocks(self.channels) * LANES
    }

    /// Coefficients of a vector of channels at a position.
    #[inline(always)]
    fn at<S: Simd>(&self, s: S, position: usize, first: usize) -> [S::V; 4] {
        let start = position * self.width() + first;
        let mut k = [s.zero(); 4];
        for part in 0..4 {
            k[part] = s.load_first(&self.coefficients[part][start..start + LANES]);
        }
        k
    }

    /// `z` within the guard.
    #[inline(always)]
    fn clamp<S: Simd>(&self, s: S, z: S::V) -> S::V {
        // Written so that what is not a number stays so.
        let guard = s.splat(self.guard);
        s.max(s.splat(-self.guard), s.min(guard, z))
    }

    #[inline(always)]
    fn value<S: Simd>(&self, s: S, z: S::V, k: [S::V; 4]) -> S::V {
        let relu = s.max(s.zero(), z);
        let linear = s.mul_add(k[2], z, k[3]);
        let linear = s.mul_add(k[0], relu, linear);
        s.mul_add(k[1], self.square(s, z), linear)
    }

    /// `z^2`, beyond the guard its tangent there.
    #[inline(always)]
    fn square<S: Simd>(&self, s: S, z: S::V) -> S::V {
        let beyond = s.sub(z, self.clamp(s, z));
        s.neg_mul_add(beyond, beyond, s.mul(z, z))
    }

    /// Gradient by `z` of an output with gradient `grad`, with the penalty's.
    #[inline(always)]
    fn slope<S: Simd>(&self, s: S, z: S::V, k: [S::V; 4], grad: S::V) -> S::V {
        let straight = s.add(s.where_positive(z, k[0]), k[2]);
        let twice = s.add(k[1], k[1]);
        let slope = s.mul_add(twice, self.clamp(s, z), straight);
        match self.pull {
            Pull::None => s.mul(grad, slope),
            Pull::Excess { radius, pull } => {
                let inside = s.max(s.splat(-radius), s.min(s.splat(radius), z));
                s.mul_add(s.splat(pull), s.sub(z, inside), s.mul(grad, slope))
            }
            Pull::Power {
                radius,
                pull,
                power,
            } => {
                let base = s.mul(z, s.splat(1.0 / radius));
                let mut steep = base;
                for _ in 1..power {
                    steep = s.mul(steep, base);
                }
                s.mul_add(s.splat(pull), steep, s.mul(grad, slope))
            }
        }
    }
}

struct Forward<'a> {
    step: &'a Step,
    affine: &'a Affine,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Forward {
            step,
            affine,
            x,
            out,
        } = self;
        let c = step.channels;
        let positions = (0..step.positions).cycle();
        for ((x, out), position) in x
            .chunks_exact(c)
            .zip(out.chunks_exact_mut(c))
            .zip(positions)
        {
            for first in (0..c).step_by(LANES) {
                let end = c.min(first + LANES);
                let scale = s.load_first(&affine.scale[first..first + LANES]);
                let shift = s.load_first(&affine.shift[first..first + LANES]);
                let z = s.mul_add(scale, s.load_first(&x[first..end]), shift);
                let y = step.value(s, z, step.at(s, position, first));
                s.store_first(&mut out[first..end], y);
            }
        }
    }
}

/// Sums of a share of the images.
struct Part {
    /// Sums of the gradient by `z`, and of its product with `x`: `[2, c]`.
    sums: Vec<f64>,
    /// Gradients by the coefficients, `[4, positions, c]`.
    coefficients: Vec<f64>,
}

fn total_coefficients(parts: &[Part], count: usize) -> Vec<f32> {
    let wanted = parts
        .first()
        .is_some_and(|part| !part.coefficients.is_empty());
    let count = if wanted { count } else { 0 };
    let total = |i| parts.iter().map(|part| part.coefficients[i]).sum::<f64>() as f32;
    (0..count).map(total).collect()
}

fn sums(
    backend: Backend,
    step: &Step,
    affine: &Affine,
    (x, grad): (&[f32], &[f32]),
    by_coefficients: bool,
    shares: &[Range<usize>],
) -> Vec<Part> {
    let (c, size) = (step.channels, step.positions * step.channels);
    shares
        .par_iter()
        .map(|share| {
            let range = share.start * size..share.end * size;
            let wanted = if by_coefficients { 4 * size } else { 0 };
            let mut part = Part {
                sums: vec![0.0; 2 * c],
                coefficients: vec![0.0; wanted],
            };
            let (x, grad) = (&x[range.clone()], &grad[range]);
            simd::run(
                backend,
                PartSums {
                    step,
                    affine,
                    x,
                    grad,
                    part: &mut part,
                },
            );
            part
        })
        .collect()
}

struct PartSums<'a> {
    step: &'a Step,
    affine: &'a Affine,
    x: &'a [f32],
    grad: &'a [f32],
    part: &'a mut Part,
}

impl Kernel for PartSums<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PartSums {
            step,
            affine,
            x,
            grad,
            part,
        } = self;
        let c = step.channels;
        let (by_beta, by_product) = part.sums.split_at_mut(c);
        for start in (0..x.len() / c).step_by(PIXELS) {
            let pixels = start..(x.len() / c).min(start + PIXELS);
            for first in (0..c).step_by(LANES) {
                let end = c.min(first + LANES);
                let scale = s.load_first(&affine.scale[first..first + LANES]);
                let shift = s.load_first(&affine.shift[first..first + LANES]);
                let (mut sum, mut products) = (s.zero(), s.zero());
                let mut by_channel = [s.zero(); 4];
                let mut position = pixels.start % step.positions;
                for pixel in pixels.clone() {
                    let v = s.load_first(&x[pixel * c + first..pixel * c + end]);
                    let g = s.load_first(&grad[pixel * c + first..pixel * c + end]);
                    let z = s.mul_add(scale, v, shift);
                    let d = step.slope(s, z, step.at(s, position, first), g);
                    sum = s.add(sum, d);
                    products = s.mul_add(d, v, products);
                    if !part.coefficients.is_empty() {
                        let terms = [s.max(s.zero(), z), step.square(s, z), z, s.splat(1.0)];
                        for i in 0..4 {
                            if step.positions == 1 {
                                by_channel[i] = s.mul_add(g, terms[i], by_channel[i]);
                            } else {
                                let start = (i * step.positions + position) * c + first;
                                let sums = &mut part.coefficients[start..start + end - first];
                                flush(s, s.mul(g, terms[i]), sums);
                            }
                        }
                    }
                    position += 1;
                    if position == step.positions {
                        position = 0;
                    }
                }
                flush(s, sum, &mut by_beta[first..end]);
                flush(s, products, &mut by_product[first..end]);
                if !part.coefficients.is_empty() && step.positions == 1 {
                    for i in 0..4 {
                        let sums = &mut part.coefficients[i * c + first..i * c + end];
                        flush(s, by_channel[i], sums);
                    }
                }
            }
        }
    }
}

/// Overwrites the gradient by the outputs with that by the inputs, `k0 d + k1 x + k2` with `d` the
/// gradient by `z`; `terms` are `k0`, `k1` and `k2` of each channel.
fn backward(
    backend: Backend,
    (step, affine): (&Step, &Affine),
    terms: [&[f32]; 3],
    (x, grad): (&[f32], &mut [f32]),
    shares: &[Range<usize>],
) {
    let size = step.positions * step.channels;
    let work: Vec<_> = shares.iter().zip(cut(grad, shares, size)).collect();
    work.into_par_iter().for_each(|(share, grad)| {
        let x = &x[share.start * size..share.end * size];
        simd::run(
            backend,
            Backward {
                step,
                affine,
                terms,
                x,
                grad,
            },
        );
    });
}

/// The work of [`backward`] on a share of the images.
struct Backward<'a> {
    step: &'a Step,
    affine: &'a Affine,
    /// `k0`, `k1` and `k2` of each channel.
    terms: [&'a [f32]; 3],
    x: &'a [f32],
    grad: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Backward {
            step,
            affine,
            terms,
            x,
            grad,
        } = self;
        let c = step.channels;
        let positions = (0..step.positions).cycle();
        for ((x, grad), position) in x
            .chunks_exact(c)
            .zip(grad.chunks_exact_mut(c))
            .zip(positions)
        {
            for first in (0..c).step_by(LANES) {
                let end = c.min(first + LANES);
                let scale = s.load_first(&affine.scale[first..first + LANES]);
                let shift = s.load_first(&affine.shift[first..first + LANES]);
                let k0 = s.load_first(&terms[0][first..first + LANES]);
                let k1 = s.load_first(&terms[1][first..first + LANES]);
                let k2 = s.load_first(&terms[2][first..first + LANES]);
                let v = s.load_first(&x[first..end]);
                let z = s.mul_add(scale, v, shift);
                let g = s.load_first(&grad[first..end]);
                let d = step.slope(s, z, step.at(s, position, first), g);
                let out = s.mul_add(k0, d, s.mul_add(k1, v, k2));
                s.store_first(&mut grad[first..end], out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
