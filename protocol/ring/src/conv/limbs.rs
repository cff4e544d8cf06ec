//! Convolution with weights in the order of the model, computed in `f64`.
//!
//! Each input is split into two limbs of 30 bits (three of 20 where weights are large), which makes
//! the product of limbs and weights an integer below 2^53, hence exact in `f64`, fused or not; then
//! it is a matrix product of `f64`, weights times gathered inputs.
//!
//! # Back ends
//! The matrix product has three:
//! - portable, in this file;
//! - `avx2`: needs AVX2 and FMA;
//! - `avx512`: needs AVX-512F.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::{ConvShape, conv2d_fp_scalar};
use pi_core::{Backend, fp};
use rayon::prelude::*;

/// The convolution of `input` (`C H W`) with `weights` (`O C kh kw`) modulo `p`, as `O H' W'`, with
/// a public bound on the sum of absolute weights of each output channel.
///
/// # Preconditions
/// Lengths match the shape, and the bound holds; otherwise the result is wrong.
/// # Cost
/// `output_len * taps` products of each of two limbs, about 15 to 20 of them a nanosecond and core
/// with AVX-512; work is shared among the threads of the current rayon pool.
pub(super) fn conv2d(
    input: &[u64],
    weights: &[i16],
    shape: &ConvShape,
    row_sum_bound: u64,
    multiply: Multiply,
) -> Vec<u64> {
    // limb + log2 sum |w| <= 53, so that every partial sum is an integer that f64 represents.
    if row_sum_bound <= 1 << (53 - 30) {
        conv2d_limbs::<2, 30>(input, weights, shape, multiply)
    } else if row_sum_bound <= 1 << (53 - 20) {
        conv2d_limbs::<3, 20>(input, weights, shape, multiply)
    } else {
        conv2d_fp_scalar(input, weights, shape)
    }
}

/// Columns of one tile: four vectors of eight.
const COLUMNS: usize = 32;
/// Output channels of one tile: with four vectors each, 24 sums stay in registers.
const ROWS: usize = 6;
/// Output channels handed to one task.
const ROWS_PER_TASK: usize = 8 * ROWS;
/// Taps multiplied at a time: their inputs, 32 KiB, stay in the first cache while all rows of a
/// task read them.
const DEPTH: usize = 128;

/// One row of a tile.
type Columns = [f64; COLUMNS];

/// The matrix product: `L` limbs of `B` bits a value. Columns are (limb, output position), rows
/// output channels.
fn conv2d_limbs<const L: usize, const B: u32>(
    input: &[u64],
    weights: &[i16],
    shape: &ConvShape,
    multiply: Multiply,
) -> Vec<u64> {
    let positions = shape.out_height() * shape.out_width();
    let taps = shape.taps();
    let inputs = Inputs::new::<L, B>(input, shape);
    let tiles = (positions * L).div_ceil(COLUMNS);
    // Tile-major sums: tile, channel, column. Values are exact integers.
    let mut sums = vec![[0f64; COLUMNS]; tiles * shape.channels_out];
    sums.par_chunks_mut(shape.channels_out)
        .enumerate()
        .for_each(|(tile, sums)| {
            let gathered = inputs.gather(tile);
            sums.par_chunks_mut(ROWS_PER_TASK)
                .zip(weights.par_chunks(ROWS_PER_TASK * taps))
                .for_each(|(sums, weights)| multiply(weights, &gathered, sums));
        });
    let mut out = vec![0; shape.output_len()];
    out.par_chunks_mut(positions)
        .enumerate()
        .for_each(|(o, plane)| {
            for (position, out) in plane.iter_mut().enumerate() {
                let mut sum = 0i128;
                for limb in 0..L {
                    let column = limb * positions + position;
                    let limb_sum =
                        sums[column / COLUMNS * shape.channels_out + o][column % COLUMNS];
                    sum += (limb_sum as i64 as i128) << (limb as u32 * B);
                }
                *out = fp::from_i128(sum);
            }
        });
    out
}

/// The limbs of an input, laid out for gathering.
struct Inputs {
    /// Limb by limb, channel by channel, each plane followed by a zero.
    planes: Vec<f64>,
    plane_len: usize,
    channels: usize,
    /// For each place of the kernel and each column, the index into `planes` for channel 0; the
    /// zero for padding and for columns beyond the last.
    sources: Vec<u32>,
    columns: usize,
}

impl Inputs {
    fn new<const L: usize, const B: u32>(input: &[u64], shape: &ConvShape) -> Self {
        let area = shape.height * shape.width;
        let plane_len = area + 1;
        let channels = shape.channels_in;
        assert!(
            L * channels * plane_len < u32::MAX as usize,
            "input is too large"
        );
        let mut planes = vec![0f64; L * channels * plane_len];
        for (limb, planes) in planes.chunks_exact_mut(channels * plane_len).enumerate() {
            for (plane, input) in planes
                .chunks_exact_mut(plane_len)
                .zip(input.chunks_exact(area))
            {
                for (out, &x) in plane.iter_mut().zip(input) {
                    *out = ((x >> (limb as u32 * B)) & ((1 << B) - 1)) as f64;
                }
            }
        }
        let (height, width) = (shape.out_height(), shape.out_width());
        let columns = (L * height * width).next_multiple_of(COLUMNS);
        let mut sources = vec![area as u32; shape.kernel_height * shape.kernel_width * columns];
        for (place, sources) in sources.chunks_exact_mut(columns).enumerate() {
            let (k, l) = (place / shape.kernel_width, place % shape.kernel_width);
            for (column, source) in sources[..L * height * width].iter_mut().enumerate() {
                let (limb, position) = (column / (height * width), column % (height * width));
                if let Some(at) = shape.source(0, k, l, position / width, position % width) {
                    *source = (limb * channels * plane_len + at) as u32;
                }
            }
        }
        Self {
            planes,
            plane_len,
            channels,
            sources,
            columns,
        }
    }

    /// The inputs that the columns of a tile read, tap by tap.
    fn gather(&self, tile: usize) -> Vec<Columns> {
        let mut gathered = Vec::with_capacity(self.channels * self.sources.len() / self.columns);
        for channel in 0..self.channels {
            let planes = &self.planes[channel * self.plane_len..];
            for sources in self.sources.chunks_exact(self.columns) {
                let sources = &sources[tile * COLUMNS..][..COLUMNS];
                gathered.push(std::array::from_fn(|c| planes[sources[c] as usize]));
            }
        }
        gathered
    }
}

/// A back end: adds to `sums` the product of `weights`, row by row, and `gathered`.
pub(super) type Multiply = fn(weights: &[i16], gathered: &[Columns], sums: &mut [Columns]);

/// The product on a back end that the machine supports.
pub(super) fn multiply_on(backend: Backend) -> Multiply {
    match backend {
        #[cfg(target_arch = "x86_64")]
        Backend::Avx512 => avx512::MULTIPLY,
        #[cfg(target_arch = "x86_64")]
        Backend::Avx2 => avx2::MULTIPLY,
        _ => multiply_portable,
    }
}

/// The product for any target; the same as with fused multiplication, as all values are exact.
fn multiply_portable(weights: &[i16], gathered: &[Columns], sums: &mut [Columns]) {
    multiply_blocks(weights, gathered, sums, multiply_tile::<false>);
}

/// The loops around a tile: blocks of taps outside, blocks of rows inside.
#[inline(always)]
fn multiply_blocks(
    weights: &[i16],
    gathered: &[Columns],
    sums: &mut [Columns],
    tile: impl Fn(&[[f64; DEPTH]; ROWS], &[Columns], &mut [Columns; ROWS]),
) {
    let taps = gathered.len();
    let mut block = [[0f64; DEPTH]; ROWS];
    for (from, gathered) in (0..).step_by(DEPTH).zip(gathered.chunks(DEPTH)) {
        for (weights, sums) in weights.chunks(ROWS * taps).zip(sums.chunks_mut(ROWS)) {
            // Rows beyond the last keep older weights; their sums are dropped.
            for (row, block) in weights.chunks_exact(taps).zip(&mut block) {
                for (out, &w) in block.iter_mut().zip(&row[from..][..gathered.len()]) {
                    *out = w as f64;
                }
            }
            let mut total = [[0f64; COLUMNS]; ROWS];
            total[..sums.len()].copy_from_slice(sums);
            tile(&block, gathered, &mut total);
            sums.copy_from_slice(&total[..sums.len()]);
        }
    }
}

/// Adds `ROWS` rows by `COLUMNS` columns of the product; `FUSED` where the target has fused
/// multiplication, else the same result, as products and sums are exact.
#[inline(always)]
fn multiply_tile<const FUSED: bool>(
    block: &[[f64; DEPTH]; ROWS],
    gathered: &[Columns],
    total: &mut [Columns; ROWS],
) {
    const WIDTH: usize = 8;
    for from in (0..COLUMNS).step_by(WIDTH) {
        let mut sums: [[f64; WIDTH]; ROWS] =
            std::array::from_fn(|r| std::array::from_fn(|c| total[r][from + c]));
        for (t, inputs) in gathered.iter().enumerate() {
            for r in 0..ROWS {
                for c in 0..WIDTH {
                    let (w, x) = (block[r][t], inputs[from + c]);
                    sums[r][c] = if FUSED {
                        w.mul_add(x, sums[r][c])
                    } else {
                        sums[r][c] + w * x
                    };
                }
            }
        }
        for r in 0..ROWS {
            total[r][from..][..WIDTH].copy_from_slice(&sums[r]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::Padding;
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

    /// [`conv2d`] with the least bound that holds.
    fn conv2d_bounded(
        input: &[u64],
        weights: &[i16],
        shape: &ConvShape,
        multiply: Multiply,
    ) -> Vec<u64> {
        let row_sum = |row: &[i16]| row.iter().map(|w| w.unsigned_abs() as u64).sum::<u64>();
        let bound = weights.chunks(shape.taps()).map(row_sum).max();
        conv2d(input, weights, shape, bound.unwrap_or(0), multiply)
    }

    /// The products of all back ends that this machine can run.
    fn backends() -> impl Iterator<Item = Multiply> {
        crate::supported_backends().map(multiply_on)
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
            for multiply in backends() {
                let found = conv2d_bounded(&input, &weights, &shape, multiply);
                assert_eq!(found, expected, "{shape:?}");
                let found = conv2d_limbs::<3, 20>(&input, &weights, &shape, multiply);
                assert_eq!(found, expected, "{shape:?}");
            }
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
        for multiply in backends() {
            let found = conv2d_bounded(&input, &weights, &shape, multiply);
            assert_eq!(found, vec![1 << 25; 2]);
            let found = conv2d(&input, &weights, &shape, u64::MAX, multiply);
            assert_eq!(found, vec![1 << 25; 2]);
        }
    }

    #[test]
    fn products_of_all_back_ends_agree() {
        let (rows, taps) = (2 * ROWS + 5, DEPTH + 3);
        let weights: Vec<i16> = (0..rows * taps)
            .map(|i| (i * 37 % 255) as i16 - 127)
            .collect();
        let gathered: Vec<Columns> = (0..taps)
            .map(|t| std::array::from_fn(|c| ((t * 7919 + c * 104_729) % (1 << 30)) as f64))
            .collect();
        let mut expected = vec![[1f64; COLUMNS]; rows];
        for r in 0..rows {
            for t in 0..taps {
                for c in 0..COLUMNS {
                    expected[r][c] += weights[r * taps + t] as f64 * gathered[t][c];
                }
            }
        }
        for multiply in backends() {
            let mut sums = vec![[1f64; COLUMNS]; rows];
            multiply(&weights, &gathered, &mut sums);
            assert_eq!(sums, expected);
        }
    }

    #[test]
    fn one_by_one_on_one_pixel_is_a_dot_product() {
        let shape = ConvShape {
            channels_in: 3,
            channels_out: 1,
            ..shapes()[3]
        };
        for multiply in backends() {
            let found = conv2d_bounded(&[5, 7, fp::P - 1], &[2, -3, 4], &shape, multiply);
            assert_eq!(found, vec![fp::P - 15]);
        }
    }
}
