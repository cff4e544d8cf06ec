//! The definition of the convolution.

use super::ConvShape;
use pi_core::fp;
use rayon::prelude::*;

/// The convolution of `input` (`C H W`) with `weights` (`O C kh kw`) modulo `p`, as `O H' W'`, tap
/// by tap: the definition of [`super::PreparedConv`], public as the oracle of the layers above.
///
/// # Panics
/// If lengths do not match the shape, the kernel exceeds the padded input, or the stride is 0.
pub fn conv2d_fp_scalar(input: &[u64], weights: &[i16], shape: &ConvShape) -> Vec<u64> {
    shape.check(input, weights);
    let (height, width) = (shape.out_height(), shape.out_width());
    let mut out = vec![0; shape.output_len()];
    out.par_chunks_mut(height * width)
        .zip(weights.par_chunks(shape.taps()))
        .for_each(|(plane, kernel)| {
            for i in 0..height {
                for j in 0..width {
                    // Terms are below 2^75 in magnitude: 2^50 of them fit.
                    let mut sum = 0i128;
                    for (t, &w) in kernel.iter().enumerate() {
                        let (c, k, l) = tap(shape, t);
                        if let Some(at) = shape.source(c, k, l, i, j) {
                            sum += w as i128 * input[at] as i128;
                        }
                    }
                    plane[i * width + j] = fp::from_i128(sum);
                }
            }
        });
    out
}

/// Channel, row and column of a kernel's tap.
#[inline(always)]
fn tap(shape: &ConvShape, t: usize) -> (usize, usize, usize) {
    let (area, width) = (shape.kernel_height * shape.kernel_width, shape.kernel_width);
    (t / area, t % area / width, t % width)
}
