//! A convolution's shape, and its three directions.

use rayon::prelude::*;

use crate::shares::{cut, shares};
use crate::{Backend, patches, simd, winograd};

/// Channels from which on 3x3 convolutions go by Winograd's transforms: below, the transforms cost
/// more than the products that they save.
const WINOGRAD_CHANNELS: usize = 12;

/// Shape of a convolution with zeros around, and of the maps that it reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Channels of the inputs.
    pub c_in: usize,
    /// Height of the inputs.
    pub h: usize,
    /// Width of the inputs.
    pub w: usize,
    /// Channels of the outputs.
    pub c_out: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
    /// True if the outputs are means over windows of 2x2, two apart; rows and columns that fill no
    /// window are dropped. Only with [`Self::pools`].
    pub pooled: bool,
}

/// What the gradients of a convolution are computed from.
#[derive(Clone, Copy)]
pub struct Adjoint<'a> {
    /// Inputs, `[n, h, w, c_in]`.
    pub x: &'a [f32],
    /// Weights, `[c_out, c_in, k, k]`.
    pub weight: &'a [f32],
    /// Gradient by the outputs.
    pub grad: &'a [f32],
}

impl Convolution {
    /// Returns true if a 2x2 average pool behind this convolution can become part of it: stride 1
    /// and outputs of the inputs' size, two rows and columns at least.
    pub fn pools(&self) -> bool {
        let same = |k: usize| k % 2 == 1 && self.padding == k / 2;
        self.stride == 1 && self.kernel.iter().all(|k| same(*k)) && self.h >= 2 && self.w >= 2
    }

    /// Returns height and width of the outputs.
    pub fn size_out(&self) -> [usize; 2] {
        if self.pooled {
            return [self.h / 2, self.w / 2];
        }
        let side = |size: usize, k: usize| (size + 2 * self.padding - k) / self.stride + 1;
        [side(self.h, self.kernel[0]), side(self.w, self.kernel[1])]
    }

    /// Returns the values of one image's inputs.
    pub fn in_image(&self) -> usize {
        self.h * self.w * self.c_in
    }

    /// Returns the values of one image's outputs.
    pub fn out_image(&self) -> usize {
        self.size_out().iter().product::<usize>() * self.c_out
    }

    /// Returns the number of weights.
    pub fn weights(&self) -> usize {
        self.c_out * self.c_in * self.kernel[0] * self.kernel[1]
    }

    fn winograd(&self) -> bool {
        self.kernel == [3, 3]
            && self.stride == 1
            && self.padding == 1
            && !self.pooled
            && self.c_in >= WINOGRAD_CHANNELS
            && self.c_out >= WINOGRAD_CHANNELS
    }

    /// Computes outputs `[n, h_out, w_out, c_out]` of inputs `[n, h, w, c_in]`.
    ///
    /// # Panics
    /// If a slice does not have the size of its shape, or this processor lacks the back end.
    ///
    /// # Cost
    /// `c_in c_out k^2` multiplications an output; a quarter of it behind a pool, four outputs' 36
    /// for 144 by Winograd.
    pub fn forward(&self, backend: Backend, x: &[f32], weight: &[f32], out: &mut [f32]) {
        self.check(x.len(), weight.len(), out.len());
        if self.winograd() {
            winograd::forward(backend, self, x, weight, out);
        } else {
            patches::forward(backend, self, x, weight, out);
        }
    }

    /// Computes the gradients by the inputs and by the weights, as far as they are asked for, and
    /// overwrites the slices given for them.
    ///
    /// # Panics
    /// As [`Self::forward`].
    ///
    /// # Cost
    /// That of [`Self::forward`] for each of the two.
    pub fn adjoint(
        &self,
        backend: Backend,
        of: Adjoint<'_>,
        by_input: Option<&mut [f32]>,
        by_weight: Option<&mut [f32]>,
    ) {
        let Adjoint { x, weight, grad } = of;
        self.check(x.len(), weight.len(), grad.len());
        let winograd = self.winograd();
        let rows = match winograd {
            true => winograd::tiles(self),
            false => self.size_out().iter().product(),
        };
        let shares = shares(x.len() / self.in_image(), rows);
        let inputs: Vec<Option<&mut [f32]>> = match by_input {
            Some(out) => {
                assert_eq!(out.len(), x.len(), "the gradient has the inputs' size");
                out.fill(0.0);
                let parts = cut(out, &shares, self.in_image());
                parts.into_iter().map(Some).collect()
            }
            None => shares.iter().map(|_| None).collect(),
        };
        let needs_input = inputs.iter().any(Option::is_some);
        let needs_weight = by_weight.is_some();
        let transformed =
            (needs_input && winograd).then(|| winograd::Weights::transposed(backend, self, weight));
        let packed = (needs_input && !winograd).then(|| patches::transposed(self, weight));
        let parts: Vec<Vec<f32>> = shares
            .par_iter()
            .zip(inputs)
            .map(|(share, by_input)| {
                let mut sum = vec![0.0; if needs_weight { self.weights() } else { 0 }];
                let by_weight = needs_weight.then_some(sum.as_mut_slice());
                let x = &x[share.start * self.in_image()..share.end * self.in_image()];
                let grad = &grad[share.start * self.out_image()..share.end * self.out_image()];
                let g = self;
                if winograd {
                    let by_input = transformed.as_ref().zip(by_input);
                    simd::run(
                        backend,
                        winograd::Share {
                            g,
                            x,
                            grad,
                            by_input,
                            by_weight,
                        },
                    );
                } else {
                    let by_input = packed.as_deref().zip(by_input);
                    simd::run(
                        backend,
                        patches::Share {
                            g,
                            x,
                            grad,
                            by_input,
                            by_weight,
                        },
                    );
                }
                sum
            })
            .collect();
        if let Some(out) = by_weight {
            assert_eq!(
                out.len(),
                weight.len(),
                "the gradient has the weights' size"
            );
            const PART: usize = 1 << 14;
            out.par_chunks_mut(PART)
                .enumerate()
                .for_each(|(index, out)| {
                    out.fill(0.0);
                    for part in &parts {
                        for (sum, value) in out.iter_mut().zip(&part[index * PART..]) {
                            *sum += value;
                        }
                    }
                });
        }
    }

    fn check(&self, x: usize, weight: usize, out: usize) {
        assert!(
            !self.pooled || self.pools(),
            "this convolution cannot pool: {self:?}"
        );
        assert_eq!(weight, self.weights(), "weights of {self:?}");
        assert!(x.is_multiple_of(self.in_image()), "inputs of {self:?}");
        let images = x / self.in_image();
        assert_eq!(out, images * self.out_image(), "outputs of {self:?}");
    }
}

#[cfg(test)]
pub(crate) mod tests;
