//! Convolutions over `F_p` in the clear: what the server computes online for each linear layer.
//!
//! The result is exact modulo `p`. [`conv2d_fp_scalar`] is the definition. [`conv2d_fp`] splits each input into two limbs of
//! 30 bits (three of 20 where weights are large), which makes the product of limbs and weights an integer below 2^53, hence
//! exact in `f64`, fused or not; then it is a matrix product of `f64`, weights times gathered inputs. Weights are secret:
//! no branch and no skipped work depends on them, except the choice of limbs, which depends on the largest absolute row
//! sum; a caller that wants even that to be public passes a bound to [`conv2d_fp_bounded`].

use crate::fp;
use rayon::prelude::*;

/// Zeros around an input plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

/// The shape of a convolution: `(channels_in, height, width)` to `(channels_out, out_height(), out_width())`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Input channels.
    pub channels_in: usize,
    /// Input rows.
    pub height: usize,
    /// Input columns.
    pub width: usize,
    /// Output channels.
    pub channels_out: usize,
    /// Kernel rows.
    pub kernel_height: usize,
    /// Kernel columns.
    pub kernel_width: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: Padding,
}

impl ConvShape {
    /// Output rows.
    pub fn out_height(&self) -> usize {
        (self.height + self.padding.top + self.padding.bottom - self.kernel_height) / self.stride
            + 1
    }

    /// Output columns.
    pub fn out_width(&self) -> usize {
        (self.width + self.padding.left + self.padding.right - self.kernel_width) / self.stride + 1
    }

    /// Input values.
    pub fn input_len(&self) -> usize {
        self.channels_in * self.height * self.width
    }

    /// Weights of one output channel.
    pub fn taps(&self) -> usize {
        self.channels_in * self.kernel_height * self.kernel_width
    }

    /// Weights.
    pub fn weights_len(&self) -> usize {
        self.channels_out * self.taps()
    }

    /// Output values.
    pub fn output_len(&self) -> usize {
        self.channels_out * self.out_height() * self.out_width()
    }

    fn check(&self, input: &[u64], weights: &[i16]) {
        assert!(self.stride > 0, "stride 0");
        assert!(
            self.kernel_height > 0
                && self.kernel_height <= self.height + self.padding.top + self.padding.bottom
        );
        assert!(
            self.kernel_width > 0
                && self.kernel_width <= self.width + self.padding.left + self.padding.right
        );
        assert_eq!(input.len(), self.input_len(), "input length");
        assert_eq!(weights.len(), self.weights_len(), "weights length");
    }

    /// The input index of tap `(c, k, l)` at output position `(i, j)`, unless it is padding.
    #[inline(always)]
    fn source(&self, c: usize, k: usize, l: usize, i: usize, j: usize) -> Option<usize> {
        let row = (i * self.stride + k).checked_sub(self.padding.top)?;
        let column = (j * self.stride + l).checked_sub(self.padding.left)?;
        (row < self.height && column < self.width)
            .then(|| (c * self.height + row) * self.width + column)
    }
}

/// The convolution of `input` (`C H W`) with `weights` (`O C kh kw`) modulo `p`, as `O H' W'`.
///
/// # Cost
/// `output_len * taps` products of each of two limbs; work is shared among the threads of the current rayon pool.
/// # Panics
/// If lengths do not match the shape, the kernel exceeds the padded input, or the stride is 0.
pub fn conv2d_fp(input: &[u64], weights: &[i16], shape: &ConvShape) -> Vec<u64> {
    shape.check(input, weights);
    let bound = weights
        .par_chunks(shape.taps())
        .map(|row| row.iter().map(|w| w.unsigned_abs() as u64).sum::<u64>())
        .max()
        .unwrap_or(0);
    conv2d_fp_bounded(input, weights, shape, bound)
}

/// As [`conv2d_fp`], with a public bound on the sum of absolute weights of each output channel.
///
/// # Preconditions
/// The bound holds; otherwise the result is wrong.
/// # Panics
/// As [`conv2d_fp`].
pub fn conv2d_fp_bounded(
    input: &[u64],
    weights: &[i16],
    shape: &ConvShape,
    row_sum_bound: u64,
) -> Vec<u64> {
    shape.check(input, weights);
    // limb + log2 sum |w| <= 53, so that every partial sum is an integer that f64 represents.
    if row_sum_bound <= 1 << (53 - 30) {
        conv2d_limbs::<2, 30>(input, weights, shape)
    } else if row_sum_bound <= 1 << (53 - 20) {
        conv2d_limbs::<3, 20>(input, weights, shape)
    } else {
        conv2d_fp_scalar(input, weights, shape)
    }
}

/// The definition of [`conv2d_fp`].
///
/// # Panics
/// As [`conv2d_fp`].
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

/// Columns of one tile: four vectors of eight.
const COLUMNS: usize = 32;
/// Output channels of one tile: with four vectors each, sixteen sums stay in registers.
const ROWS: usize = 4;
/// Output channels handed to one task.
const ROWS_PER_TASK: usize = 32;

/// The matrix product: `L` limbs of `B` bits a value. Columns are (limb, output position), rows output channels.
fn conv2d_limbs<const L: usize, const B: u32>(
    input: &[u64],
    weights: &[i16],
    shape: &ConvShape,
) -> Vec<u64> {
    let positions = shape.out_height() * shape.out_width();
    let taps = shape.taps();
    let limbs: Vec<f64> = (0..L as u32)
        .flat_map(|limb| {
            input
                .iter()
                .map(move |&x| ((x >> (limb * B)) & ((1 << B) - 1)) as f64)
        })
        .collect();
    let tiles = (positions * L).div_ceil(COLUMNS);
    // Tile-major sums: tile, channel, column. Values are exact integers.
    let mut sums = vec![0f64; tiles * shape.channels_out * COLUMNS];
    sums.par_chunks_mut(shape.channels_out * COLUMNS)
        .enumerate()
        .for_each(|(tile, sums)| {
            let gathered = gather(&limbs, shape, tile, positions);
            sums.par_chunks_mut(ROWS_PER_TASK * COLUMNS)
                .zip(weights.par_chunks(ROWS_PER_TASK * taps))
                .for_each(|(sums, weights)| {
                    let mut block = vec![0f64; ROWS * taps];
                    for (sums, weights) in sums
                        .chunks_mut(ROWS * COLUMNS)
                        .zip(weights.chunks(ROWS * taps))
                    {
                        // Weights tap by tap, the channels of a block adjacent; missing channels stay zero.
                        block.fill(0.0);
                        for (r, row) in weights.chunks_exact(taps).enumerate() {
                            for (t, &w) in row.iter().enumerate() {
                                block[t * ROWS + r] = w as f64;
                            }
                        }
                        let product = multiply_tile(&block, &gathered);
                        sums.copy_from_slice(&product.as_flattened()[..sums.len()]);
                    }
                });
        });
    let mut out = vec![0; shape.output_len()];
    out.par_chunks_mut(positions)
        .enumerate()
        .for_each(|(o, plane)| {
            for (position, out) in plane.iter_mut().enumerate() {
                let mut sum = 0i128;
                for limb in 0..L {
                    let column = limb * positions + position;
                    let at =
                        (column / COLUMNS * shape.channels_out + o) * COLUMNS + column % COLUMNS;
                    sum += (sums[at] as i64 as i128) << (limb as u32 * B);
                }
                *out = fp::from_i128(sum);
            }
        });
    out
}

/// The inputs that the columns of a tile read, tap by tap.
fn gather(limbs: &[f64], shape: &ConvShape, tile: usize, positions: usize) -> Vec<[f64; COLUMNS]> {
    let mut gathered = vec![[0f64; COLUMNS]; shape.taps()];
    let width = shape.out_width();
    let input_len = shape.input_len();
    for column in 0..COLUMNS {
        let flat = tile * COLUMNS + column;
        let (limb, position) = (flat / positions, flat % positions);
        if (limb + 1) * input_len > limbs.len() {
            break;
        }
        let plane = &limbs[limb * input_len..][..input_len];
        let (i, j) = (position / width, position % width);
        let mut t = 0;
        for c in 0..shape.channels_in {
            for k in 0..shape.kernel_height {
                for l in 0..shape.kernel_width {
                    if let Some(at) = shape.source(c, k, l, i, j) {
                        gathered[t][column] = plane[at];
                    }
                    t += 1;
                }
            }
        }
    }
    gathered
}

/// `ROWS` channels by `COLUMNS` columns of the product.
fn multiply_tile(block: &[f64], gathered: &[[f64; COLUMNS]]) -> [[f64; COLUMNS]; ROWS] {
    #[cfg(target_arch = "x86_64")]
    if !crate::force_scalar() {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512F is present.
            return unsafe { multiply_tile_avx512(block, gathered) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: AVX2 and FMA are present.
            return unsafe { multiply_tile_avx2(block, gathered) };
        }
    }
    let mut sums = [[0f64; COLUMNS]; ROWS];
    for (weights, inputs) in block.chunks_exact(ROWS).zip(gathered) {
        for r in 0..ROWS {
            for c in 0..COLUMNS {
                sums[r][c] += weights[r] * inputs[c];
            }
        }
    }
    sums
}

/// The tile with sixteen sums of eight lanes.
///
/// # Safety
/// AVX-512F is present.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_tile_avx512(
    block: &[f64],
    gathered: &[[f64; COLUMNS]],
) -> [[f64; COLUMNS]; ROWS] {
    use std::arch::x86_64::*;
    const VECTORS: usize = COLUMNS / 8;
    let mut sums = [[_mm512_setzero_pd(); VECTORS]; ROWS];
    for (weights, inputs) in block.chunks_exact(ROWS).zip(gathered) {
        // SAFETY: eight columns from 8 v on lie inside the 32 of `inputs`.
        let inputs: [_; VECTORS] =
            std::array::from_fn(|v| unsafe { _mm512_loadu_pd(inputs.as_ptr().add(8 * v)) });
        for r in 0..ROWS {
            let w = _mm512_set1_pd(weights[r]);
            for v in 0..VECTORS {
                sums[r][v] = _mm512_fmadd_pd(w, inputs[v], sums[r][v]);
            }
        }
    }
    let mut out = [[0f64; COLUMNS]; ROWS];
    for r in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: eight columns from 8 v on lie inside the 32 of the row.
            unsafe { _mm512_storeu_pd(out[r].as_mut_ptr().add(8 * v), sums[r][v]) };
        }
    }
    out
}

/// The tile in two halves of sixteen columns, whose sixteen sums of four lanes fill the registers.
///
/// # Safety
/// AVX2 and FMA are present.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_tile_avx2(block: &[f64], gathered: &[[f64; COLUMNS]]) -> [[f64; COLUMNS]; ROWS] {
    let mut out = [[0f64; COLUMNS]; ROWS];
    for half in 0..4 {
        let mut sums = [[0f64; COLUMNS / 4]; ROWS];
        for (weights, inputs) in block.chunks_exact(ROWS).zip(gathered) {
            for r in 0..ROWS {
                for c in 0..COLUMNS / 4 {
                    sums[r][c] = weights[r].mul_add(inputs[half * (COLUMNS / 4) + c], sums[r][c]);
                }
            }
        }
        for r in 0..ROWS {
            out[r][half * (COLUMNS / 4)..][..COLUMNS / 4].copy_from_slice(&sums[r]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn shapes() -> Vec<ConvShape> {
        let shape = |channels_in, height, width, channels_out, kernel, stride, padding| ConvShape {
            channels_in,
            height,
            width,
            channels_out,
            kernel_height: kernel,
            kernel_width: kernel,
            stride,
            padding,
        };
        let around = Padding {
            top: 1,
            left: 1,
            bottom: 1,
            right: 1,
        };
        let uneven = Padding {
            top: 0,
            left: 2,
            bottom: 1,
            right: 0,
        };
        vec![
            shape(3, 8, 8, 5, 3, 1, around),
            shape(4, 7, 5, 9, 3, 2, around),
            shape(2, 6, 9, 33, 2, 2, uneven),
            shape(16, 1, 1, 10, 1, 1, Padding::default()),
            shape(7, 4, 4, 36, 1, 2, Padding::default()),
            ConvShape {
                kernel_width: 1,
                ..shape(2, 5, 5, 3, 3, 1, around)
            },
        ]
    }

    fn check(weight: impl Fn(u64) -> i16, seed: u64) {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        for shape in shapes() {
            let mut input = fp::uniform_vec(shape.input_len(), &mut rng);
            input[0] = fp::P - 1;
            let weights: Vec<i16> = (0..shape.weights_len())
                .map(|_| weight(rng.next_u64()))
                .collect();
            let expected = conv2d_fp_scalar(&input, &weights, &shape);
            assert_eq!(expected.len(), shape.output_len());
            assert_eq!(conv2d_fp(&input, &weights, &shape), expected, "{shape:?}");
            assert_eq!(
                conv2d_limbs::<3, 20>(&input, &weights, &shape),
                expected,
                "{shape:?}"
            );
        }
    }

    #[test]
    fn fast_convolution_equals_the_definition() {
        check(|r| (r % 255) as i16 - 127, 1);
        check(|r| if r & 1 == 1 { 127 } else { -127 }, 2);
    }

    #[test]
    fn extreme_weights_fall_back_and_stay_exact() {
        check(|_| i16::MIN, 3);
        check(|r| if r & 1 == 1 { i16::MAX } else { i16::MIN }, 4);
        let shape = ConvShape {
            channels_in: 1024,
            channels_out: 2,
            ..shapes()[3]
        };
        let weights = vec![i16::MIN; shape.weights_len()];
        let input = vec![fp::P - 1; shape.input_len()];
        // -(-2^15) * 1024 = 2^25 > 2^23, so that two limbs would overflow.
        assert_eq!(conv2d_fp(&input, &weights, &shape), vec![1 << 25; 2]);
        assert_eq!(
            conv2d_fp_bounded(&input, &weights, &shape, u64::MAX),
            vec![1 << 25; 2]
        );
    }

    #[test]
    fn portable_and_vector_tiles_agree() {
        let block: Vec<f64> = (0..ROWS * 11)
            .map(|i| (i * 37 % 255) as f64 - 127.0)
            .collect();
        let gathered: Vec<[f64; COLUMNS]> = (0..11)
            .map(|t| std::array::from_fn(|c| ((t * 7919 + c * 104_729) % (1 << 30)) as f64))
            .collect();
        let mut expected = [[0f64; COLUMNS]; ROWS];
        for t in 0..11 {
            for r in 0..ROWS {
                for c in 0..COLUMNS {
                    expected[r][c] += block[t * ROWS + r] * gathered[t][c];
                }
            }
        }
        assert_eq!(multiply_tile(&block, &gathered), expected);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: both features are present.
            assert_eq!(unsafe { multiply_tile_avx2(&block, &gathered) }, expected);
        }
    }

    #[test]
    fn one_by_one_on_one_pixel_is_a_dot_product() {
        let shape = ConvShape {
            channels_in: 3,
            channels_out: 1,
            ..shapes()[3]
        };
        assert_eq!(
            conv2d_fp(&[5, 7, fp::P - 1], &[2, -3, 4], &shape),
            vec![fp::P - 15]
        );
    }
}
