//! The server's linear layers online, in the clear: convolutions, whose weights are packed once
//! when the model is loaded, and the sums of layers.

use super::model::ServerModel;
use crate::indexed_circuit::{add_scaled, scale};
use pi_core::fp::{self, Elements};
use pi_ir::{Circuit, Conv, Layer, Shape, Term, Weights};
use pi_ring::conv::{ConvScratch, ConvShape, Padding, PreparedConv};
use rayon::prelude::*;
use zeroize::Zeroizing;

/// A convolution of the circuit.
pub(crate) struct Convolution {
    /// One for each group of channels, all of the same shape.
    groups: Vec<PreparedConv>,
    /// Stride of the rows and columns that are kept of what is computed.
    kept: (usize, usize),
}

/// The convolutions of a circuit, layer by layer.
pub(crate) fn prepare(circuit: &Circuit, weights: &Weights) -> Vec<Vec<Convolution>> {
    let layers = circuit.layers.iter().zip(&weights.layers);
    let of_layer = |(layer, weights): (&Layer, &pi_ir::LayerWeights)| {
        let convs = layer.terms.iter().filter_map(|term| match term {
            Term::Conv(conv) => Some(conv),
            Term::Residual { .. } => None,
        });
        convs
            .zip(&weights.kernels)
            .map(|(conv, kernel)| Convolution::new(circuit.tensor_shape(conv.input), conv, kernel))
            .collect()
    };
    layers.map(of_layer).collect()
}

impl Convolution {
    /// Strides that differ between the directions are computed at their common divisor, and what is
    /// too many is left out.
    fn new(input: Shape, conv: &Conv, kernel: &[i16]) -> Self {
        let (rows, columns) = (conv.stride.0 as usize, conv.stride.1 as usize);
        let stride = common_divisor(rows, columns);
        let padding = &conv.padding;
        let shape = ConvShape {
            channels_in: conv.channels_read(input) as usize,
            height: input.h as usize,
            width: input.w as usize,
            channels_out: (conv.out_channels / conv.groups) as usize,
            kernel_height: conv.kernel.0 as usize,
            kernel_width: conv.kernel.1 as usize,
            stride,
            padding: Padding {
                top: padding.top as usize,
                left: padding.left as usize,
                bottom: padding.bottom as usize,
                right: padding.right as usize,
            },
        };
        // Public: what the circuit says of its weights, so that the time does not depend on them.
        let prepare = |kernel| PreparedConv::new(kernel, shape, conv.weight_bits);
        Convolution {
            groups: kernel
                .chunks_exact(shape.weights_len())
                .map(prepare)
                .collect(),
            kept: (rows / stride, columns / stride),
        }
    }

    /// Adds the convolution of `x` to `sum`.
    pub(crate) fn add_to(&self, x: &[u64], scratch: &mut ConvScratch, sum: &mut [u64]) {
        if let [only] = &self.groups[..] {
            return self.add_group_to(only, x, scratch, sum);
        }
        let groups = self.groups.par_iter();
        let inputs = x.par_chunks_exact(x.len() / self.groups.len());
        let sums = sum.par_chunks_exact_mut(sum.len() / self.groups.len());
        groups
            .zip(inputs)
            .zip(sums)
            .for_each_init(ConvScratch::default, |scratch, ((group, x), sum)| {
                self.add_group_to(group, x, scratch, sum)
            });
    }

    /// Adds the convolution of one group's channels `x` to theirs of the sum.
    fn add_group_to(
        &self,
        group: &PreparedConv,
        x: &[u64],
        scratch: &mut ConvScratch,
        sum: &mut [u64],
    ) {
        if self.kept == (1, 1) {
            return group.add_to(x, scratch, sum);
        }
        let shape = group.shape();
        let (height, width) = (shape.out_height(), shape.out_width());
        let mut dense = Zeroizing::new(vec![0; shape.output_len()]);
        group.add_to(x, scratch, &mut dense);
        let planes = dense.chunks_exact(height * width);
        let rows = planes.flat_map(|plane| plane.chunks_exact(width).step_by(self.kept.0));
        let kept = rows.flat_map(|row| row.iter().step_by(self.kept.1));
        for (sum, &value) in sum.iter_mut().zip(kept) {
            *sum = fp::add(*sum, value);
        }
    }
}

impl ServerModel {
    /// The sum of layer `l` on the server's shares of the tensors, with the offset (bias and `s`).
    pub(super) fn layer_sum(
        &self,
        l: usize,
        tensors: &[Elements],
        offset: Elements,
        scratch: &mut ConvScratch,
    ) -> Elements {
        let indexed = self.indexed();
        let layer = &indexed.circuit.layers[l];
        let shape = indexed.sum_shape(layer);
        // Where no pool follows, the sum is computed in the offset itself.
        let (mut sum, offset) = match &layer.pool {
            None => (offset, None),
            Some(_) => (Zeroizing::new(vec![0; shape.len()]), Some(offset)),
        };
        let mut convolutions = self.convolutions(l).iter();
        for term in &layer.terms {
            match term {
                Term::Conv(conv) => {
                    let convolution = convolutions
                        .next()
                        .expect("the model prepared every convolution");
                    convolution.add_to(&tensors[conv.input.0 as usize], scratch, &mut sum);
                }
                Term::Residual {
                    input,
                    window,
                    shift,
                    negative,
                } => {
                    let x = (*input, tensors[input.0 as usize].as_slice());
                    indexed.add_residual(&mut sum, x, window.as_ref(), scale(*shift, *negative));
                }
            }
        }
        match offset {
            None => sum,
            Some(offset) => {
                let mut pooled = indexed.pool(layer, sum);
                add_scaled(&mut pooled, &offset, 1);
                pooled
            }
        }
    }
}

fn common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => common_divisor(b, a % b),
    }
}
