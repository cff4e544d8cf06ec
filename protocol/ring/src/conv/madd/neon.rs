//! The inner loops with NEON, whose `smlal` multiplies four words by one and adds the products to
//! sums of 32 bits: one product over `F_p` per instruction.
//!
//! The lanes of a row are the limbs of position after position; a group's inputs are those of its
//! first tap, then of its second. All 24 sums of a block stay in registers.

use super::{
    Inputs, LANES, NO_INPUTS, NO_SUMS, NO_WEIGHTS, POSITIONS, ROWS, Sums, TAPS, TILES, Weights,
    limbs, value,
};
use super::{Madd4, winograd};
use crate::conv::tiles::{Kernel, Output};
use pi_core::fp;
use std::arch::aarch64::*;
use std::ops::Range;

/// Sums of a row.
const VECTORS: usize = LANES / 4;

/// The inner loops.
pub(in crate::conv) struct Neon;

impl Kernel for Neon {
    const POSITIONS: usize = POSITIONS;
    const ROWS: usize = ROWS;
    const TAPS: usize = TAPS;
    const TILES: usize = TILES;
    const VECTORS: usize = VECTORS * TAPS;
    const NO_WEIGHTS: Weights = NO_WEIGHTS;
    const NO_INPUTS: Inputs = NO_INPUTS;
    const NO_SUMS: Sums = NO_SUMS;

    type Weights = Weights;
    type Inputs = Inputs;
    type Sums = Sums;

    fn set(block: &mut [Weights], group: usize, row: usize, tap: usize, weight: i16) {
        block[group][row][tap] = weight;
    }

    #[inline(always)]
    fn limbs(x: u64) -> u64 {
        limbs(x)
    }

    #[target_feature(enable = "neon")]
    unsafe fn gather(copied: &[u64], taps: &[u32], positions: &[u32], out: &mut [Inputs]) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|p| positions[p]);
        let place = |tap: u32, position: u32| {
            debug_assert!(((tap + position) as usize) < copied.len());
            // SAFETY: the caller promises that it is an index of `copied`.
            unsafe { copied.as_ptr().add(tap as usize + position as usize) }
        };
        let pairs = (b, d) == (a + 1, c + 1);
        for (taps, out) in taps.chunks_exact(TAPS).zip(out) {
            for (&tap, out) in taps.iter().zip(out.0.chunks_exact_mut(LANES)) {
                let out: *mut u64 = out.as_mut_ptr().cast();
                // SAFETY: four elements, which are twice two neighbours or four indices; `out` has
                // 32 bytes, aligned for words of 64 bits as inputs and halves of them are.
                unsafe {
                    if pairs {
                        vst1q_u64(out, vld1q_u64(place(tap, a)));
                        vst1q_u64(out.add(2), vld1q_u64(place(tap, c)));
                    } else {
                        for (i, position) in [a, b, c, d].into_iter().enumerate() {
                            *out.add(i) = *place(tap, position);
                        }
                    }
                }
            }
        }
    }

    #[target_feature(enable = "neon")]
    unsafe fn multiply(
        weights: &[Weights],
        inputs: &[Inputs],
        exact: usize,
        sums: &mut Sums,
        fresh: bool,
    ) {
        if fresh {
            *sums = NO_SUMS;
        }
        let mut total = [[vdupq_n_s32(0); VECTORS]; ROWS];
        for (total, low) in total.iter_mut().zip(&sums.low) {
            for (v, total) in total.iter_mut().enumerate() {
                // SAFETY: four of the row's lanes.
                *total = unsafe { vld1q_s32(low[4 * v..][..4].as_ptr()) };
            }
        }
        let kept = vdupq_n_s32(0xffff);
        for (weights, inputs) in weights.chunks(exact).zip(inputs.chunks(exact)) {
            for (weights, inputs) in weights.iter().zip(inputs) {
                let words = weights.as_flattened();
                // SAFETY: eight words of twelve, then four.
                let (w, last) = unsafe {
                    (
                        vld1q_s16(words[..8].as_ptr()),
                        vld1_s16(words[8..].as_ptr()),
                    )
                };
                let load = |i: usize| {
                    // SAFETY: eight words.
                    unsafe { vld1q_s16(inputs.0[8 * i..][..8].as_ptr()) }
                };
                // Rows by number, for lanes are part of the instruction.
                macro_rules! add {
                    ($x:ident, $y:ident, $row:literal,
                     $low:ident, $high:ident, $w:ident, $lane:literal) => {
                        let [a, b, c, d] = &mut total[$row];
                        *a = $low::<$lane>(*a, vget_low_s16($x), $w);
                        *b = $high::<$lane>(*b, $x, $w);
                        *c = $low::<$lane>(*c, vget_low_s16($y), $w);
                        *d = $high::<$lane>(*d, $y, $w);
                    };
                }
                let [x, y] = [load(0), load(1)];
                add!(x, y, 0, vmlal_laneq_s16, vmlal_high_laneq_s16, w, 0);
                add!(x, y, 1, vmlal_laneq_s16, vmlal_high_laneq_s16, w, 2);
                add!(x, y, 2, vmlal_laneq_s16, vmlal_high_laneq_s16, w, 4);
                add!(x, y, 3, vmlal_laneq_s16, vmlal_high_laneq_s16, w, 6);
                add!(x, y, 4, vmlal_lane_s16, vmlal_high_lane_s16, last, 0);
                add!(x, y, 5, vmlal_lane_s16, vmlal_high_lane_s16, last, 2);
                let [x, y] = [load(2), load(3)];
                add!(x, y, 0, vmlal_laneq_s16, vmlal_high_laneq_s16, w, 1);
                add!(x, y, 1, vmlal_laneq_s16, vmlal_high_laneq_s16, w, 3);
                add!(x, y, 2, vmlal_laneq_s16, vmlal_high_laneq_s16, w, 5);
                add!(x, y, 3, vmlal_laneq_s16, vmlal_high_laneq_s16, w, 7);
                add!(x, y, 4, vmlal_lane_s16, vmlal_high_lane_s16, last, 1);
                add!(x, y, 5, vmlal_lane_s16, vmlal_high_lane_s16, last, 3);
            }
            for (total, high) in total.iter_mut().zip(&mut sums.high) {
                for (v, total) in total.iter_mut().enumerate() {
                    let high = &mut high[4 * v..][..4];
                    // SAFETY: four lanes.
                    unsafe {
                        let moved = vsraq_n_s32::<16>(vld1q_s32(high.as_ptr()), *total);
                        vst1q_s32(high.as_mut_ptr(), moved);
                    }
                    *total = vandq_s32(*total, kept);
                }
            }
        }
        for (total, low) in total.iter().zip(&mut sums.low) {
            for (v, &total) in total.iter().enumerate() {
                // SAFETY: four of the row's lanes.
                unsafe { vst1q_s32(low[4 * v..][..4].as_mut_ptr(), total) };
            }
        }
    }

    unsafe fn add_sums(sums: &Sums, output: &Output, rows: Range<usize>, at: usize, count: usize) {
        for (r, row) in rows.enumerate() {
            // SAFETY: as promised by the caller.
            let elements = unsafe { output.elements(row, at, count) };
            for (sum, value) in elements.iter_mut().zip(values(&sums.low[r], &sums.high[r])) {
                *sum = fp::add(*sum, value);
            }
        }
    }
}

impl Madd4 for Neon {
    unsafe fn gather_patches(
        copied: &[u64],
        taps: &[u32],
        positions: &[u32],
        out: &mut [winograd::Inputs],
    ) {
        // SAFETY: as promised by the caller.
        unsafe { winograd::gather_patches::<Self>(copied, taps, positions, out) }
    }

    #[inline(always)]
    unsafe fn interleave(a: &[u64; POSITIONS], b: &[u64; POSITIONS]) -> Inputs {
        let mut inputs = NO_INPUTS;
        for (out, x) in inputs.0.chunks_exact_mut(4).zip(a.iter().chain(b)) {
            for (out, by) in out.iter_mut().zip([0, 16, 32, 48]) {
                *out = (x >> by) as i16;
            }
        }
        inputs
    }

    unsafe fn add_squares(
        sums: &winograd::Sums,
        output: &Output,
        rows: Range<usize>,
        at: usize,
        count: usize,
    ) {
        // SAFETY: as promised by the caller.
        unsafe { winograd::add_squares::<Self>(sums, output, rows, at, count) }
    }

    unsafe fn values(low: &[i32; LANES], high: &[i32; LANES]) -> [u64; POSITIONS] {
        values(low, high)
    }
}

/// The field elements of a row of sums.
#[inline]
fn values(low: &[i32; LANES], high: &[i32; LANES]) -> [u64; POSITIONS] {
    let (low, high) = (low.as_chunks().0, high.as_chunks().0);
    std::array::from_fn(|p| value(&low[p], &high[p]))
}
