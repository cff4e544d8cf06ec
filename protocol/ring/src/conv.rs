//! Convolutions over `F_p` in the clear: what the server computes online for each linear layer.
//!
//! The result is exact modulo `p`. [`conv2d_fp_scalar`] is the definition. [`conv2d_fp`] splits
//! each input into two limbs of 30 bits (three of 20 where weights are large), which makes the
//! product of limbs and weights an integer below 2^53, hence exact in `f64`, fused or not; then it
//! is a matrix product of `f64`, weights times gathered inputs. Weights are secret: no branch and
//! no skipped work depends on them, except the choice of limbs, which depends on the largest
//! absolute row sum; a caller that wants even that to be public passes a bound to
//! [`conv2d_fp_bounded`].

pub use crate::conv_prepared::{ConvScratch, PreparedConv};

use pi_core::fp;
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

/// The shape of a convolution: `(channels_in, height, width)` to `(channels_out, out_height(),
/// out_width())`.
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
        self.check_weights(weights);
        assert_eq!(input.len(), self.input_len(), "input length");
    }

    pub(crate) fn check_weights(&self, weights: &[i16]) {
        assert!(self.stride > 0, "stride 0");
        assert!(
            self.kernel_height > 0
                && self.kernel_height <= self.height + self.padding.top + self.padding.bottom
        );
        assert!(
            self.kernel_width > 0
                && self.kernel_width <= self.width + self.padding.left + self.padding.right
        );
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
/// `output_len * taps` products of each of two limbs, about 15 to 20 of them a nanosecond and core
/// with AVX-512; work is shared among the threads of the current rayon pool.
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

/// Adds to `sums` the product of `weights`, row by row, and `gathered`.
fn multiply(weights: &[i16], gathered: &[Columns], sums: &mut [Columns]) {
    #[cfg(target_arch = "x86_64")]
    if !crate::force_scalar() {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512F is present.
            return unsafe { multiply_avx512(weights, gathered, sums) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: AVX2 and FMA are present.
            return unsafe { multiply_avx2(weights, gathered, sums) };
        }
    }
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

/// [`multiply`] with twelve sums of four lanes at a time.
///
/// # Safety
/// AVX2 and FMA are present.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_avx2(weights: &[i16], gathered: &[Columns], sums: &mut [Columns]) {
    multiply_blocks(weights, gathered, sums, multiply_tile::<true>);
}

/// [`multiply`] with 24 sums of eight lanes.
///
/// # Safety
/// AVX-512F is present.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_avx512(weights: &[i16], gathered: &[Columns], sums: &mut [Columns]) {
    use std::arch::x86_64::*;
    const VECTORS: usize = COLUMNS / 8;
    multiply_blocks(weights, gathered, sums, |block, gathered, total| {
        // SAFETY: eight columns from 8 v on lie inside the 32 of a row.
        let load = |row: &Columns, v: usize| unsafe { _mm512_loadu_pd(row.as_ptr().add(8 * v)) };
        let mut sums: [[__m512d; VECTORS]; ROWS] =
            std::array::from_fn(|r| std::array::from_fn(|v| load(&total[r], v)));
        for (t, inputs) in gathered.iter().enumerate() {
            let inputs: [_; VECTORS] = std::array::from_fn(|v| load(inputs, v));
            for r in 0..ROWS {
                let w = _mm512_set1_pd(block[r][t]);
                for v in 0..VECTORS {
                    sums[r][v] = _mm512_fmadd_pd(w, inputs[v], sums[r][v]);
                }
            }
        }
        for r in 0..ROWS {
            for v in 0..VECTORS {
                // SAFETY: as for the loads.
                unsafe { _mm512_storeu_pd(total[r].as_mut_ptr().add(8 * v), sums[r][v]) };
            }
        }
    });
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
    fn portable_and_vector_products_agree() {
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
        let product = |f: &dyn Fn(&[i16], &[Columns], &mut [Columns])| {
            let mut sums = vec![[1f64; COLUMNS]; rows];
            f(&weights, &gathered, &mut sums);
            sums
        };
        assert_eq!(product(&multiply), expected);
        assert_eq!(
            product(&|w, g, s| multiply_blocks(w, g, s, multiply_tile::<false>)),
            expected
        );
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: both features are present.
            assert_eq!(
                product(&|w, g, s| unsafe { multiply_avx2(w, g, s) }),
                expected
            );
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
