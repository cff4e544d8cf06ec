//! The server's convolutions online, their weights packed once when the model is loaded.

use pi_core::fp;
use pi_ir::{Circuit, Conv, Layer, Shape, Term, Weights};
use pi_ring::conv::{ConvScratch, ConvShape, Padding, PreparedConv};

/// A convolution of the circuit.
pub(crate) struct Convolution {
    prepared: PreparedConv,
    /// Every so many rows and columns are kept of what is computed.
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
            channels_in: input.c as usize,
            height: input.h as usize,
            width: input.w as usize,
            channels_out: conv.out_channels as usize,
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
        Convolution {
            // Public: what the circuit says of its weights, so that the time does not depend on
            // them.
            prepared: PreparedConv::new(kernel, shape, conv.weight_bits),
            kept: (rows / stride, columns / stride),
        }
    }

    /// Adds the convolution of `x` to `sum`.
    pub(crate) fn add_to(&self, x: &[u64], scratch: &mut ConvScratch, sum: &mut [u64]) {
        if self.kept == (1, 1) {
            return self.prepared.add_to(x, scratch, sum);
        }
        let shape = self.prepared.shape();
        let (height, width) = (shape.out_height(), shape.out_width());
        let mut dense = vec![0; shape.output_len()];
        self.prepared.add_to(x, scratch, &mut dense);
        let planes = dense.chunks_exact(height * width);
        let rows = planes.flat_map(|plane| plane.chunks_exact(width).step_by(self.kept.0));
        let kept = rows.flat_map(|row| row.iter().step_by(self.kept.1));
        for (sum, &value) in sum.iter_mut().zip(kept) {
            *sum = fp::add(*sum, value);
        }
    }
}

fn common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => common_divisor(b, a % b),
    }
}
