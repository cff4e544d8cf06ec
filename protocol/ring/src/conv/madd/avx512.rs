//! The inner loops with AVX-512: inputs and sums lie as for `avx2`, two of whose vectors are one
//! here.

use super::{
    Inputs, LANES, NO_INPUTS, NO_SUMS, NO_WEIGHTS, POSITIONS, ROWS, Sums, TAPS, TILES, Weights,
};
use super::{Madd, Madd4, winograd};
use crate::conv::tiles::{Kernel, Output};
use std::arch::x86_64::*;
use std::ops::Range;

/// Groups whose products go to registers of their own: a row's sum would wait for itself.
const LANES_OF_GROUPS: usize = 2;

/// The inner loops.
pub(in crate::conv) struct Avx512;

impl Kernel for Avx512 {
    const POSITIONS: usize = POSITIONS;
    const ROWS: usize = ROWS;
    const TAPS: usize = TAPS;
    const TILES: usize = TILES;
    const VECTORS: usize = 1;
    const NO_WEIGHTS: Weights = NO_WEIGHTS;
    const NO_INPUTS: Inputs = NO_INPUTS;
    const NO_SUMS: Sums = NO_SUMS;

    type Weights = Weights;
    type Inputs = Inputs;
    type Sums = Sums;

    fn set(block: &mut [Weights], group: usize, row: usize, tap: usize, weight: i16) {
        Madd::set(block, group, row, tap, weight);
    }

    #[inline(always)]
    fn limbs(x: u64) -> u64 {
        Madd::limbs(x)
    }

    unsafe fn gather(copied: &[u64], taps: &[u32], positions: &[u32], out: &mut [Inputs]) {
        // SAFETY: as promised by the caller; where AVX-512 is, there is AVX2.
        unsafe { Madd::gather(copied, taps, positions, out) }
    }

    #[allow(
        clippy::needless_range_loop,
        reason = "one index runs over several arrays of registers"
    )]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn multiply(
        weights: &[Weights],
        inputs: &[Inputs],
        exact: usize,
        sums: &mut Sums,
        fresh: bool,
    ) {
        let zero = _mm512_setzero_si512();
        let kept = _mm512_set1_epi32(0xffff);
        let (mut low, mut high) = ([zero; ROWS], [zero; ROWS]);
        if !fresh {
            for r in 0..ROWS {
                (low[r], high[r]) = (load(&sums.low[r]), load(&sums.high[r]));
            }
        }
        for (weights, inputs) in weights.chunks(exact).zip(inputs.chunks(exact)) {
            let mut other = [zero; ROWS];
            let mut pairs = weights.chunks_exact(LANES_OF_GROUPS);
            let mut of_pairs = inputs.chunks_exact(LANES_OF_GROUPS);
            for (weights, inputs) in (&mut pairs).zip(&mut of_pairs) {
                let (x, y) = (load_inputs(&inputs[0]), load_inputs(&inputs[1]));
                for r in 0..ROWS {
                    low[r] = _mm512_dpwssd_epi32(low[r], x, taps(weights[0][r]));
                    other[r] = _mm512_dpwssd_epi32(other[r], y, taps(weights[1][r]));
                }
            }
            if let ([weights], [inputs]) = (pairs.remainder(), of_pairs.remainder()) {
                let x = load_inputs(inputs);
                for r in 0..ROWS {
                    low[r] = _mm512_dpwssd_epi32(low[r], x, taps(weights[r]));
                }
            }
            for r in 0..ROWS {
                let sum = _mm512_add_epi32(low[r], other[r]);
                high[r] = _mm512_add_epi32(high[r], _mm512_srai_epi32::<16>(sum));
                low[r] = _mm512_and_si512(sum, kept);
            }
        }
        for r in 0..ROWS {
            store(&mut sums.low[r], low[r]);
            store(&mut sums.high[r], high[r]);
        }
    }

    unsafe fn add_sums(sums: &Sums, output: &Output, rows: Range<usize>, at: usize, count: usize) {
        // SAFETY: as promised by the caller; where AVX-512 is, there is AVX2.
        unsafe { Madd::add_sums(sums, output, rows, at, count) }
    }
}

impl Madd4 for Avx512 {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
        // SAFETY: as promised by the caller; where AVX-512 is, there is AVX2.
        unsafe { Madd::interleave(a, b) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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

    #[inline(always)]
    unsafe fn values(low: &[i32; LANES], high: &[i32; LANES]) -> [u64; POSITIONS] {
        // SAFETY: as promised by the caller; where AVX-512 is, there is AVX2.
        unsafe { Madd::values(low, high) }
    }
}

/// A row of sums.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &[i32; LANES]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
}

/// Sets a row of sums.
#[inline]
#[target_feature(enable = "avx512f")]
fn store(row: &mut [i32; LANES], sums: __m512i) {
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), sums) }
}

/// The limbs of a group and tile.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_inputs(inputs: &Inputs) -> __m512i {
    // SAFETY: 64 bytes, aligned as such.
    unsafe { _mm512_load_si512(inputs.0.as_ptr().cast()) }
}

/// The weights of both taps in all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn taps([a, b]: [i16; TAPS]) -> __m512i {
    _mm512_set1_epi32(a as u16 as i32 | (b as i32) << 16)
}
