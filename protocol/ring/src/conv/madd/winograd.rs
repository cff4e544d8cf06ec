//! Convolution by 3x3 kernels with 16 multiplications for four outputs instead of 36.
//!
//! This is `F(2x2, 3x3)` of Lavin and Gray (Fast Algorithms for Convolutional Neural Networks,
//! CVPR 2016, section 4.1), after Winograd: outputs are computed in squares of two by two, each
//! from a patch of four by four inputs. Kernels, patches and products are transformed by
//!
//! ```text
//! B^T = 1  0 -1  0    G = 1  0  0    A^T = 2  1  1  0
//!       0  1  1  0        1  1  1          0  1 -1 -2
//!       0 -1  1  0        1 -1  1
//!       0  1  0 -1        0  0  1
//! ```
//!
//! where `G` has twice the paper's middle rows and `A^T` twice its other columns, so that all are
//! integers and the result is four times the convolution: it is divided by four modulo `p`. Like
//! what it is made of, the result is exact.
//!
//! # Exactness
//! A transformed weight is a sum of at most nine weights, so that sums have to make room after a
//! ninth of the groups. Of sums, outputs are combinations with coefficients of absolute sum 16 at
//! most. Transformed inputs are reduced modulo `p` before they are split into limbs.
//!
//! # Layout
//! To the tiles this is a convolution by 4x4 kernels with stride 2, whose positions are the
//! squares. A group has the 16 taps of two channels. Of a block's weights and a tile's inputs,
//! though, those of all groups lie together for each of the 16 *points* of transformed patches, for
//! the loops multiply point by point.

use super::{
    BIAS, KEPT_BITS, LANES, LIMB, Madd4, NO_INPUTS, NO_SUMS, NO_WEIGHTS, POSITIONS, ROWS, TAPS,
    exact_depth, signed_digits,
};
use crate::conv::tiles::{Depth, Kernel, Output, Packed};
use crate::conv::{ConvShape, Padding};
use pi_core::fp::{self, P};
use std::marker::PhantomData;
use std::ops::Range;
use zeroize::Zeroizing;

/// Elements of a patch, and of its transform.
const POINTS: usize = 16;
/// Bits of the largest weights whose transformed ones fit into a word.
const WEIGHT_BITS: u8 = 11;

/// The largest transformed weight.
const fn transformed(weight_bits: u8) -> u64 {
    9 * ((1 << weight_bits) - 1)
}

const _: () = assert!(transformed(WEIGHT_BITS) < 1 << 15);

type Weights = [super::Weights; POINTS];
pub(in crate::conv) type Inputs = [super::Inputs; POINTS];
pub(in crate::conv) type Sums = [super::Sums; POINTS];

/// The number of groups to multiply at a time, if the kernel is of this kind and sums with weights
/// of this many bits are exact.
fn depth(shape: &ConvShape, weight_bits: u8) -> Option<Depth> {
    // |sum| <= channels * limb * weight, and an output's is 16 times that: below 2^45, as the last
    // reduction needs.
    let fits = weight_bits <= WEIGHT_BITS
        && (shape.channels_in as u64) < (1 << (45 - 4)) / (LIMB * transformed(weight_bits))
        && (shape.kernel_height, shape.kernel_width, shape.stride) == (3, 3, 1);
    fits.then(|| Depth {
        gathered: shape.channels_in.div_ceil(TAPS),
        exact: exact_depth(transformed(weight_bits)),
    })
}

/// Transforms and packs weights of at most this many bits, if the kernel is of this kind and
/// exact.
///
/// # Safety
/// The instructions of the kernel are present.
/// # Preconditions
/// The weights have the shape.
pub(in crate::conv) unsafe fn pack<K: Madd4>(
    weights: &[i16],
    shape: &ConvShape,
    weight_bits: u8,
) -> Option<Packed<Winograd<K>>> {
    let depth = depth(shape, weight_bits)?;
    let transformed: Zeroizing<Vec<i16>> = Zeroizing::new(
        weights
            .chunks_exact(9)
            .flat_map(transformed_weights)
            .collect(),
    );
    let (height, width) = (shape.out_height(), shape.out_width());
    let Padding { top, left, .. } = shape.padding;
    let squares = ConvShape {
        kernel_height: 4,
        kernel_width: 4,
        stride: 2,
        // To whole squares.
        padding: Padding {
            bottom: 2 * height.div_ceil(2) + 2 - shape.height - top,
            right: 2 * width.div_ceil(2) + 2 - shape.width - left,
            ..shape.padding
        },
        ..*shape
    };
    // SAFETY: as promised by the caller.
    Some(unsafe { Packed::new(&transformed, &squares, (height, width), depth) })
}

/// `G g G^T`.
fn transformed_weights(g: &[i16]) -> [i16; POINTS] {
    let transform = |[a, b, c]: [i16; 3]| [a, a + b + c, a - b + c, c];
    let columns = [0, 1, 2].map(|j| transform([g[j], g[3 + j], g[6 + j]]));
    let rows = [0, 1, 2, 3].map(|i| transform(columns.map(|column| column[i])));
    std::array::from_fn(|i| rows[i / 4][i % 4])
}

/// The inner loops, on those of another kernel.
pub(in crate::conv) struct Winograd<K>(PhantomData<K>);

impl<K: Madd4> Kernel for Winograd<K> {
    const POSITIONS: usize = POSITIONS;
    const ROWS: usize = ROWS;
    const TAPS: usize = TAPS * POINTS;
    /// Inputs of more tiles would not fit into the second cache.
    const TILES: usize = 1;
    const VECTORS: usize = POINTS * K::VECTORS;
    const NO_WEIGHTS: Weights = [NO_WEIGHTS; POINTS];
    const NO_INPUTS: Inputs = [NO_INPUTS; POINTS];
    const NO_SUMS: Sums = [NO_SUMS; POINTS];

    type Weights = Weights;
    type Inputs = Inputs;
    type Sums = Sums;

    fn set(block: &mut [Weights], group: usize, row: usize, tap: usize, weight: i16) {
        let groups = block.len();
        let (channel, point) = (tap / POINTS, tap % POINTS);
        block.as_flattened_mut()[point * groups + group][row][channel] = weight;
    }

    /// The element, as it is transformed before it is split.
    #[inline(always)]
    fn limbs(x: u64) -> u64 {
        x
    }

    unsafe fn gather(copied: &[u64], taps: &[u32], positions: &[u32], out: &mut [Inputs]) {
        // SAFETY: as promised by the caller.
        unsafe { K::gather_patches(copied, taps, positions, out) }
    }

    unsafe fn multiply(
        weights: &[Weights],
        inputs: &[Inputs],
        exact: usize,
        sums: &mut Sums,
        fresh: bool,
    ) {
        let groups = weights.len();
        let weights = weights.as_flattened().chunks_exact(groups);
        let inputs = inputs.as_flattened().chunks_exact(groups);
        for (sums, (weights, inputs)) in sums.iter_mut().zip(weights.zip(inputs)) {
            // SAFETY: as promised by the caller.
            unsafe { K::multiply(weights, inputs, exact, sums, fresh) };
        }
    }

    unsafe fn add_sums(sums: &Sums, output: &Output, rows: Range<usize>, at: usize, count: usize) {
        // SAFETY: as promised by the caller.
        unsafe { K::add_squares(sums, output, rows, at, count) }
    }
}

/// `x / 4` modulo `p`.
#[inline(always)]
fn quarter(x: u64) -> u64 {
    // p = 1 mod 4, so that adding it 4 - x mod 4 times makes a multiple of 4 below 2^62.
    const _: () = assert!(P % 4 == 1);
    (x + (x.wrapping_neg() & 3) * P) >> 2
}

// What follows is inlined into functions with the instructions of a back end. Loops instead of
// `array::map` and `array::from_fn`: these are not always, and then have no such instructions.

/// Loads and transforms the patches at four positions: `B^T d B`, modulo `p`.
///
/// # Safety
/// As for [`Kernel::gather`].
#[inline(always)]
pub(super) unsafe fn gather_patches<K: Madd4>(
    copied: &[u64],
    taps: &[u32],
    positions: &[u32],
    out: &mut [Inputs],
) {
    let groups = out.len();
    let out = out.as_flattened_mut();
    let positions = [positions[0], positions[1], positions[2], positions[3]];
    for (group, taps) in taps.chunks_exact(TAPS * POINTS).enumerate() {
        let mut limbs = [[[0; POSITIONS]; POINTS]; TAPS];
        for channel in 0..TAPS {
            // SAFETY: as promised by the caller.
            unsafe {
                let taps = &taps[channel * POINTS..][..POINTS];
                patches(copied, taps, &positions, &mut limbs[channel]);
            }
        }
        for point in 0..POINTS {
            // SAFETY: as promised by the caller.
            let inputs = unsafe { K::interleave(&limbs[0][point], &limbs[1][point]) };
            out[point * groups + group] = inputs;
        }
    }
}

/// One number for each of four positions.
type Four = [i64; POSITIONS];

/// The limbs of a channel's transformed patches.
///
/// # Safety
/// As for [`Kernel::gather`].
#[inline(always)]
unsafe fn patches(
    copied: &[u64],
    taps: &[u32],
    positions: &[u32; POSITIONS],
    out: &mut [[u64; POSITIONS]; POINTS],
) {
    let mut d = [[0i64; POSITIONS]; POINTS];
    let [a, b, c, e] = positions.map(|position| position as usize);
    let at = |tap: u32, position: usize| {
        debug_assert!(tap as usize + position < copied.len());
        // SAFETY: the caller promises that it is an index of `copied`.
        unsafe { copied.as_ptr().add(tap as usize + position).cast::<i64>() }
    };
    if (b, c, e) == (a + 1, a + 2, a + 3) {
        for (d, &tap) in d.iter_mut().zip(taps) {
            // SAFETY: four neighbours, of which the last is an index too.
            *d = unsafe { at(tap, a).cast::<Four>().read() };
        }
    } else {
        for (d, &tap) in d.iter_mut().zip(taps) {
            // SAFETY: four indices.
            *d = unsafe { [*at(tap, a), *at(tap, b), *at(tap, c), *at(tap, e)] };
        }
    }
    for column in 0..4 {
        transform_line(&mut d, [column, 4 + column, 8 + column, 12 + column]);
    }
    for row in 0..4 {
        transform_line(&mut d, [4 * row, 4 * row + 1, 4 * row + 2, 4 * row + 3]);
    }
    for (out, d) in out.iter_mut().zip(&d) {
        for (out, &d) in out.iter_mut().zip(d) {
            // Sums of four elements, of which at most two are subtracted.
            let x = (d + 2 * P as i64) as u64;
            *out = signed_digits(fp::reduce_u64(x + BIAS));
        }
    }
}

/// `B^T` times the four numbers at these indices.
#[allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays"
)]
#[inline(always)]
fn transform_line(d: &mut [Four; POINTS], [i, j, k, l]: [usize; 4]) {
    for p in 0..POSITIONS {
        let [a, b, c, e] = [d[i][p], d[j][p], d[k][p], d[l][p]];
        d[i][p] = a - c;
        d[j][p] = b + c;
        d[k][p] = c - b;
        d[l][p] = b - e;
    }
}

/// Transforms sums, and adds them to the outputs of the squares from `at` on.
///
/// # Safety
/// As for [`Kernel::add_sums`], whose positions are squares.
#[inline(always)]
pub(super) unsafe fn add_squares<K: Madd4>(
    sums: &Sums,
    output: &Output,
    rows: Range<usize>,
    at: usize,
    count: usize,
) {
    let squares = output.width.div_ceil(2);
    let (i, j) = (at / squares, at % squares);
    let neighbours = count == POSITIONS && 2 * (j + POSITIONS) <= output.width;
    let (mut low, mut high) = ([[0; LANES]; 4], [[0; LANES]; 4]);
    for (r, row) in rows.enumerate() {
        transform_sums(sums, r, &mut low, &mut high);
        for k in 0..2 {
            // SAFETY: as promised by the caller.
            let [left, right] = unsafe {
                [
                    K::values(&low[2 * k], &high[2 * k]),
                    K::values(&low[2 * k + 1], &high[2 * k + 1]),
                ]
            };
            if neighbours {
                if 2 * i + k == output.height {
                    continue;
                }
                let first = (2 * i + k) * output.width + 2 * j;
                // SAFETY: of positions that the caller promises.
                let elements = unsafe { output.elements(row, first, 2 * POSITIONS) };
                for p in 0..POSITIONS {
                    elements[2 * p] = fp::add(elements[2 * p], quarter(left[p]));
                    elements[2 * p + 1] = fp::add(elements[2 * p + 1], quarter(right[p]));
                }
                continue;
            }
            for p in 0..count {
                let (y, x) = ((at + p) / squares * 2 + k, (at + p) % squares * 2);
                for (x, value) in [(x, left[p]), (x + 1, right[p])] {
                    if y < output.height && x < output.width {
                        // SAFETY: of a position that the caller promises.
                        let element = unsafe { output.elements(row, y * output.width + x, 1) };
                        element[0] = fp::add(element[0], quarter(value));
                    }
                }
            }
        }
    }
}

/// Transforms a row of sums into those of the four outputs of squares: `A^T m A`.
#[inline(always)]
fn transform_sums(
    sums: &Sums,
    row: usize,
    low_out: &mut [[i32; LANES]; 4],
    high_out: &mut [[i32; LANES]; 4],
) {
    for lane in (0..LANES).step_by(8) {
        // Low words stay below 2^20 and, as |sum| < 2^41 by `depth`, high ones below 2^30.
        let (mut low, mut high) = ([[0; 8]; POINTS], [[0; 8]; POINTS]);
        for i in 0..POINTS {
            low[i].copy_from_slice(&sums[i].low[row][lane..][..8]);
            high[i].copy_from_slice(&sums[i].high[row][lane..][..8]);
        }
        let (low, high) = (outputs_of(&low), outputs_of(&high));
        for i in 0..4 {
            for l in 0..8 {
                low_out[i][lane + l] = low[i][l] & ((1 << KEPT_BITS) - 1);
                high_out[i][lane + l] = high[i][l] + (low[i][l] >> KEPT_BITS);
            }
        }
    }
}

/// `A^T m A`, lane by lane.
#[inline(always)]
fn outputs_of(m: &[[i32; 8]; POINTS]) -> [[i32; 8]; 4] {
    let (mut columns, mut out) = ([[[0; 8]; 4]; 2], [[0; 8]; 4]);
    for j in 0..4 {
        for l in 0..8 {
            let [a, b, c, d] = [m[j][l], m[4 + j][l], m[8 + j][l], m[12 + j][l]];
            columns[0][j][l] = 2 * a + b + c;
            columns[1][j][l] = b - c - 2 * d;
        }
    }
    for i in 0..2 {
        for l in 0..8 {
            let row = &columns[i];
            let [a, b, c, d] = [row[0][l], row[1][l], row[2][l], row[3][l]];
            out[2 * i][l] = 2 * a + b + c;
            out[2 * i + 1][l] = b - c - 2 * d;
        }
    }
    out
}
