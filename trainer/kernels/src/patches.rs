//! Convolutions of any kernel and stride: the patches of some outputs become the rows of a matrix.
//!
//! A mean over 2x2 windows behind a convolution is the convolution, at stride 2, of the inputs'
//! 2x2 means: `pool(conv(x))[o] = sum_u w[u] b[2 o + u]` with `b[p]` the mean of `x[p - 1]` and
//! `x[p]` in both directions, zeros around. That is a quarter of the products.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::matrix::{self, Product, ROWS, Shape, TransposedProduct};
use crate::simd::{self, Kernel, LANES, Lane, Simd};
use crate::{Backend, Convolution};

/// Most outputs computed at a time.
const OUTPUTS: usize = 192;

/// Sizes of the map that patches are cut from, and of the patches.
#[derive(Clone, Copy)]
struct Source {
    h: usize,
    w: usize,
    c: usize,
    kernel: [usize; 2],
    stride: usize,
    padding: usize,
    /// Outputs of a row, and of an image.
    w_out: usize,
    plane: usize,
    pooled: bool,
}

impl Source {
    fn new(g: &Convolution) -> Self {
        let [h_out, w_out] = g.size_out();
        let [h, w] = match g.pooled {
            true => [
                2 * h_out - 1 + g.kernel[0] - 1,
                2 * w_out - 1 + g.kernel[1] - 1,
            ],
            false => [g.h, g.w],
        };
        Self {
            h,
            w,
            c: g.c_in,
            kernel: g.kernel,
            stride: if g.pooled { 2 } else { g.stride },
            padding: if g.pooled { 0 } else { g.padding },
            w_out,
            plane: h_out * w_out,
            pooled: g.pooled,
        }
    }

    /// Values of a patch: rows of the weights' matrix.
    fn patch(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.c
    }

    fn image(&self) -> usize {
        self.h * self.w * self.c
    }

    /// Number of images whose outputs are computed together.
    fn group(&self) -> usize {
        (OUTPUTS / self.plane).max(1)
    }

    /// Calls `visit(place in the patch, place in the image, length)` for the parts of a patch that
    /// lie in the image.
    #[inline(always)]
    fn parts(&self, output: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let (y, x) = (
            output / self.w_out * self.stride,
            output % self.w_out * self.stride,
        );
        let [k_h, k_w] = self.kernel;
        // Columns of the kernel inside the image.
        let first = self.padding.saturating_sub(x).min(k_w);
        let end = (self.w + self.padding).saturating_sub(x).min(k_w);
        if first >= end {
            return;
        }
        for k in 0..k_h {
            let row = y + k;
            if row >= self.padding && row < self.h + self.padding {
                let place = (row - self.padding) * self.w + x + first - self.padding;
                let length = (end - first) * self.c;
                visit((k * k_w + first) * self.c, place * self.c, length);
            }
        }
    }

    /// Writes the patches of `outputs`, counted over the images, as rows of a matrix.
    #[inline(always)]
    fn gather(&self, source: &[f32], outputs: Range<usize>, rows: usize, out: &mut [Lane]) {
        let blocks = matrix::blocks(self.patch());
        let mut patch = vec![[0.0; LANES]; blocks];
        for (row, output) in outputs.clone().enumerate() {
            let image = &source[output / self.plane * self.image()..][..self.image()];
            let values = patch.as_flattened_mut();
            if self.padding > 0 {
                values.fill(0.0);
            }
            self.parts(output % self.plane, |to, from, length| {
                values[to..to + length].copy_from_slice(&image[from..from + length]);
            });
            for (block, lane) in patch.iter().enumerate() {
                out[block * rows + row] = *lane;
            }
        }
        clear_rows(out, rows, outputs.len());
    }

    /// Adds the rows of a matrix to the patches of `outputs`.
    #[inline(always)]
    fn scatter(&self, matrix: &[Lane], outputs: Range<usize>, rows: usize, source: &mut [f32]) {
        let blocks = matrix::blocks(self.patch());
        let mut patch = vec![[0.0; LANES]; blocks];
        for (row, output) in outputs.enumerate() {
            for (block, lane) in patch.iter_mut().enumerate() {
                *lane = matrix[block * rows + row];
            }
            let values = patch.as_flattened();
            let image = &mut source[output / self.plane * self.image()..][..self.image()];
            self.parts(output % self.plane, |from, to, length| {
                let values = &values[from..from + length];
                for (sum, value) in image[to..to + length].iter_mut().zip(values) {
                    *sum += value;
                }
            });
        }
    }

    /// Means over 2x2 windows of an image with zeros around, the first of them over its corner.
    #[inline(always)]
    fn blur(&self, g: &Convolution, x: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        self.windows(g, |window, pixel| {
            for (sum, value) in out[window..window + self.c].iter_mut().zip(&x[pixel..]) {
                *sum += value * 0.25;
            }
        });
    }

    /// The transpose of [`Self::blur`], added.
    #[inline(always)]
    fn unblur(&self, g: &Convolution, means: &[f32], x: &mut [f32]) {
        self.windows(g, |window, pixel| {
            for (sum, value) in x[pixel..pixel + self.c].iter_mut().zip(&means[window..]) {
                *sum += value * 0.25;
            }
        });
    }

    /// Calls `visit` with the places of a window and of a pixel that it reads, for all of them.
    #[inline(always)]
    fn windows(&self, g: &Convolution, mut visit: impl FnMut(usize, usize)) {
        // Window (p, q) reads rows p - r and p - r + 1, r = padding, of the image.
        for p in 0..self.h {
            for row in (p..p + 2).filter(|row| (g.padding..g.h + g.padding).contains(row)) {
                for q in 0..self.w {
                    for column in q..q + 2 {
                        if (g.padding..g.w + g.padding).contains(&column) {
                            let pixel = (row - g.padding) * g.w + column - g.padding;
                            visit((p * self.w + q) * self.c, pixel * self.c);
                        }
                    }
                }
            }
        }
    }
}

/// Clears the rows from `first` on of each block.
#[inline(always)]
fn clear_rows(matrix: &mut [Lane], rows: usize, first: usize) {
    for block in matrix.chunks_exact_mut(rows) {
        block[first..].fill([0.0; LANES]);
    }
}

/// Weights as `[c_out / 16][patch][16]`, the order of a patch's values.
fn packed(g: &Convolution, weight: &[f32]) -> Vec<Lane> {
    let depth = matrix::blocks(Source::new(g).patch()) * LANES;
    let taps = g.kernel[0] * g.kernel[1];
    let mut out = vec![[0.0; LANES]; matrix::blocks(g.c_out) * depth];
    for (o, weights) in weight.chunks_exact(g.c_in * taps).enumerate() {
        let block = &mut out[o / LANES * depth..][..depth];
        for (c, taps) in weights.chunks_exact(taps).enumerate() {
            for (tap, value) in taps.iter().enumerate() {
                block[tap * g.c_in + c][o % LANES] = *value;
            }
        }
    }
    out
}

/// Weights as `[patch / 16][c_out][16]`.
pub(crate) fn transposed(g: &Convolution, weight: &[f32]) -> Vec<Lane> {
    let depth = matrix::blocks(g.c_out) * LANES;
    let taps = g.kernel[0] * g.kernel[1];
    let mut out = vec![[0.0; LANES]; matrix::blocks(Source::new(g).patch()) * depth];
    for (o, weights) in weight.chunks_exact(g.c_in * taps).enumerate() {
        for (c, taps) in weights.chunks_exact(taps).enumerate() {
            for (tap, value) in taps.iter().enumerate() {
                let place = tap * g.c_in + c;
                out[place / LANES * depth + o][place % LANES] = *value;
            }
        }
    }
    out
}

/// Memory that a thread keeps from one layer to the next.
#[derive(Default)]
struct Scratch {
    /// Patches.
    patches: Vec<Lane>,
    /// Outputs or their gradients.
    outputs: Vec<Lane>,
    /// Gradient by the weights: `[c_out / 16][patch][16]`.
    u: Vec<Lane>,
    /// 2x2 means of some images, and the gradient by them.
    means: Vec<f32>,
    by_means: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

struct Forward<'a> {
    g: &'a Convolution,
    weights: &'a [Lane],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Forward { g, weights, x, out } = self;
        let mut scratch = SCRATCH.take();
        let source = Source::new(g);
        let shape = |outputs: usize| Shape {
            rows: outputs.next_multiple_of(ROWS),
            depth: matrix::blocks(source.patch()),
            columns: matrix::blocks(g.c_out),
        };
        let Scratch {
            patches,
            outputs,
            means,
            ..
        } = &mut scratch;
        let maps = blurred(&source, g, x, means);
        let all = x.len() / g.in_image() * source.plane;
        let step = matrix::step(all, OUTPUTS);
        for start in (0..all).step_by(step) {
            let range = start..all.min(start + step);
            let shape = shape(range.len());
            patches.resize(shape.depth * shape.rows, [0.0; LANES]);
            outputs.resize(shape.columns * shape.rows, [0.0; LANES]);
            source.gather(maps, range.clone(), shape.rows, patches);
            s.product(Product {
                shape,
                a: patches,
                b: weights,
                b_stride: shape.depth * LANES,
                c: outputs,
            });
            let out = &mut out[start * g.c_out..range.end * g.c_out];
            for (row, out) in out.chunks_exact_mut(g.c_out).enumerate() {
                for (block, out) in out.chunks_mut(LANES).enumerate() {
                    let v = s.load(&outputs[block * shape.rows + row]);
                    s.store_first(out, v);
                }
            }
        }
        SCRATCH.set(scratch);
    }
}

/// The maps that patches are cut from: the images, or their means.
#[inline(always)]
fn blurred<'a>(
    source: &Source,
    g: &Convolution,
    x: &'a [f32],
    means: &'a mut Vec<f32>,
) -> &'a [f32] {
    if !source.pooled {
        return x;
    }
    let images = x.len() / g.in_image();
    means.resize(images * source.image(), 0.0);
    for (means, x) in means
        .chunks_exact_mut(source.image())
        .zip(x.chunks_exact(g.in_image()))
    {
        source.blur(g, x, means);
    }
    means
}

/// Computes the outputs `[n, h_out, w_out, c_out]` of inputs `[n, h, w, c_in]`.
pub(crate) fn forward(
    backend: Backend,
    g: &Convolution,
    x: &[f32],
    weight: &[f32],
    out: &mut [f32],
) {
    let weights = packed(g, weight);
    let group = Source::new(g).group();
    out.par_chunks_mut(group * g.out_image())
        .zip(x.par_chunks(group * g.in_image()))
        .for_each(|(out, x)| {
            let weights = &weights;
            simd::run(backend, Forward { g, weights, x, out });
        });
}

/// Both gradients of a share of the images.
pub(crate) struct Share<'a> {
    pub(crate) g: &'a Convolution,
    pub(crate) x: &'a [f32],
    pub(crate) grad: &'a [f32],
    /// Transposed weights, and the gradient by the inputs, zero at first.
    pub(crate) by_input: Option<(&'a [Lane], &'a mut [f32])>,
    /// The gradient by the weights, overwritten.
    pub(crate) by_weight: Option<&'a mut [f32]>,
}

impl Kernel for Share<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Share {
            g,
            x,
            grad,
            mut by_input,
            by_weight,
        } = self;
        let source = Source::new(g);
        let (depth, columns) = (matrix::blocks(source.patch()), matrix::blocks(g.c_out));
        let group = source.group();
        let mut scratch = SCRATCH.take();
        let Scratch {
            patches,
            outputs,
            u,
            means,
            by_means,
        } = &mut scratch;
        if source.pooled {
            by_means.resize(group * source.image(), 0.0);
        }
        if by_weight.is_some() {
            u.resize(columns * depth * LANES, [0.0; LANES]);
        }
        let images = x.len() / g.in_image();
        for first in (0..images).step_by(group) {
            let end = images.min(first + group);
            let x = &x[first * g.in_image()..end * g.in_image()];
            let grad = &grad[first * g.out_image()..end * g.out_image()];
            let maps = blurred(&source, g, x, means);
            by_means.fill(0.0);
            let all = (end - first) * source.plane;
            let step = matrix::step(all, OUTPUTS);
            for start in (0..all).step_by(step) {
                let range = start..all.min(start + step);
                let rows = range.len().next_multiple_of(ROWS);
                patches.resize(depth * rows, [0.0; LANES]);
                outputs.resize(columns * rows, [0.0; LANES]);
                let grad = &grad[start * g.c_out..range.end * g.c_out];
                for (row, grad) in grad.chunks_exact(g.c_out).enumerate() {
                    for (block, grad) in grad.chunks(LANES).enumerate() {
                        let v = s.load_first(grad);
                        s.store(&mut outputs[block * rows + row], v);
                    }
                }
                clear_rows(outputs, rows, range.len());
                if by_weight.is_some() {
                    source.gather(maps, range.clone(), rows, patches);
                    s.transposed_product(TransposedProduct {
                        shape: Shape {
                            rows,
                            depth,
                            columns,
                        },
                        v: patches,
                        d: outputs,
                        u,
                        u_stride: depth * LANES,
                        adds: first + start > 0,
                    });
                }
                if let Some((weights, out)) = &mut by_input {
                    s.product(Product {
                        shape: Shape {
                            rows,
                            depth: columns,
                            columns: depth,
                        },
                        a: outputs,
                        b: weights,
                        b_stride: columns * LANES,
                        c: patches,
                    });
                    let out = match source.pooled {
                        true => &mut by_means[..],
                        false => &mut out[first * g.in_image()..end * g.in_image()],
                    };
                    source.scatter(patches, range, rows, out);
                }
            }
            if let Some((_, out)) = by_input.as_mut().filter(|_| source.pooled) {
                let out = &mut out[first * g.in_image()..end * g.in_image()];
                let means = by_means.chunks_exact(source.image());
                for (out, means) in out.chunks_exact_mut(g.in_image()).zip(means) {
                    source.unblur(g, means, out);
                }
            }
        }
        if let Some(out) = by_weight {
            unpack(g, u, out);
        }
        SCRATCH.set(scratch);
    }
}

/// Writes a matrix `[c_out / 16][patch][16]` as weights: the inverse of [`packed`].
#[inline(always)]
fn unpack(g: &Convolution, u: &[Lane], out: &mut [f32]) {
    let depth = matrix::blocks(Source::new(g).patch()) * LANES;
    let taps = g.kernel[0] * g.kernel[1];
    for (o, weights) in out.chunks_exact_mut(g.c_in * taps).enumerate() {
        let block = &u[o / LANES * depth..][..depth];
        for (c, taps) in weights.chunks_exact_mut(taps).enumerate() {
            for (tap, value) in taps.iter_mut().enumerate() {
                *value = block[tap * g.c_in + c][o % LANES];
            }
        }
    }
}
