//! Convolution in products of 16 bits, by weights that were packed once.
//!
//! An input of 60 bits is four limbs of 14 bits and a sign, and a weight of at most [`WEIGHT_BITS`]
//! bits and a sign is one word of 16: `vpmaddwd` multiplies 16 pairs of words and adds the products
//! of neighbours to sums of 32 bits. That is four products over `F_p` per instruction with AVX2,
//! two instructions a cycle; `f64` gives half as many.
//!
//! # Exactness
//! A sum has a low word of 32 bits that the products go to, and a high word. Before the low word
//! can overflow, all but its lowest 16 bits move to the high one: after as many groups as the
//! public bound on the weights allows, see [`depth`].
//!
//! # Layout
//! Tiles have four positions, groups two taps and blocks six rows. The copy of the inputs holds the
//! four limbs of an element in the four words of its 64 bits.
//!
//! # Back ends
//! - `avx2`: needs AVX2;
//! - `avx512`: needs AVX-512F, BW, DQ, VL and VNNI. A row of a block is one register, and
//!   `vpdpwssd` adds while it multiplies; the rest is that of `avx2`;
//! - `neon`: needs NEON.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod winograd;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2 as Madd;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512 as WideMadd;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon as Madd;
pub(super) use winograd::{Winograd, pack as pack_winograd};

use super::ConvShape;
use super::tiles::{Depth, Kernel, Output};
use pi_core::fp::{self, P};
use std::ops::Range;
use zeroize::Zeroize;

/// Bits of a limb.
const LIMB_BITS: u32 = 15;
/// The largest absolute value of a limb, `-2^14`; limbs are those of the representative that has
/// such limbs only.
const LIMB: u64 = 1 << (LIMB_BITS - 1);
/// What makes all limbs of that representative digits from 0 on: [`LIMB`] in each place.
const BIAS: u64 = LIMB * (1 | 1 << LIMB_BITS | 1 << (2 * LIMB_BITS) | 1 << (3 * LIMB_BITS));
/// Positions of a tile.
const POSITIONS: usize = 4;
/// Output channels of a block: twelve sums of eight lanes stay in the sixteen registers.
const ROWS: usize = 6;
/// Taps of a group.
const TAPS: usize = 2;
/// Lanes of a row of sums: four limbs at four positions.
const LANES: usize = 4 * POSITIONS;
/// Tiles of a task: sixteen positions, two cache lines of the result.
const TILES: usize = 4;
/// Groups multiplied at a time: their inputs, 16 KiB a tile, stay in the second cache while all
/// blocks read them, and a block's weights, 6 KiB, in the first.
const DEPTH: usize = 256;
/// Bits of a low word that stay there.
const KEPT_BITS: u32 = 16;
/// Bits of the largest weights that gain: with more, sums move so often that `f64` is as fast.
const WEIGHT_BITS: u8 = 13;

/// The weights of one block and group.
type Weights = [[i16; TAPS]; ROWS];

/// The inputs of one group and tile, in an order of the back end's.
#[derive(Clone, Copy, Zeroize)]
#[repr(align(64))]
pub(super) struct Inputs([i16; TAPS * LANES]);

/// The sums of one block and tile, with lanes in an order of the back end's: each is
/// `low + 2^16 high` with `0 <= low < 2^16`.
#[derive(Clone, Copy, Zeroize)]
#[repr(align(64))]
pub(super) struct Sums {
    low: [[i32; LANES]; ROWS],
    high: [[i32; LANES]; ROWS],
}

/// What [`Winograd`] needs of a back end beside its loops.
pub(super) trait Madd4: Kernel<Weights = Weights, Inputs = Inputs, Sums = Sums> {
    /// Transforms four patches of inputs; see `winograd`.
    ///
    /// # Safety
    /// As for [`Kernel::gather`], with 32 taps a group.
    unsafe fn gather_patches(
        copied: &[u64],
        taps: &[u32],
        positions: &[u32],
        out: &mut [winograd::Inputs],
    );

    /// Brings together the limbs of four positions for two taps.
    ///
    /// # Safety
    /// The instructions are present.
    unsafe fn interleave(a: &[u64; POSITIONS], b: &[u64; POSITIONS]) -> Inputs;

    /// Adds the outputs of transformed sums; see `winograd`.
    ///
    /// # Safety
    /// As for [`Kernel::add_sums`], whose positions are squares.
    unsafe fn add_squares(
        sums: &winograd::Sums,
        output: &Output,
        rows: Range<usize>,
        at: usize,
        count: usize,
    );

    /// The field elements of a row of sums, position by position.
    ///
    /// # Safety
    /// The instructions are present.
    unsafe fn values(low: &[i32; LANES], high: &[i32; LANES]) -> [u64; POSITIONS];
}

const NO_WEIGHTS: Weights = [[0; TAPS]; ROWS];
const NO_INPUTS: Inputs = Inputs([0; TAPS * LANES]);
const NO_SUMS: Sums = Sums {
    low: [[0; LANES]; ROWS],
    high: [[0; LANES]; ROWS],
};

/// The number of groups to multiply at a time, if sums of this shape with weights of this many bits
/// are exact.
pub(super) fn depth(shape: &ConvShape, weight_bits: u8) -> Option<Depth> {
    // |sum| <= taps * limb * weight < 2^45, as the last reduction needs.
    let bits = LIMB_BITS + weight_bits as u32;
    let fits = weight_bits <= WEIGHT_BITS && shape.taps() < 1 << (45 - bits);
    fits.then(|| Depth {
        gathered: DEPTH,
        exact: exact_depth((1 << weight_bits) - 1),
    })
}

/// The groups whose products with weights up to this one fit into the low word of a sum beside what
/// stays there.
const fn exact_depth(weight: u64) -> usize {
    let free = (1 << 31) - (1 << KEPT_BITS);
    (free / (TAPS as u64 * LIMB * weight)) as usize
}

const _: () = assert!(exact_depth(127) == 516 && exact_depth((1 << 15) - 1) == 2);

/// The four limbs of an element, one to a word.
#[inline(always)]
fn limbs(x: u64) -> u64 {
    signed_digits(fp::reduce_u64(x + BIAS))
}

/// The digits of `x` to the base `2^15`, each less [`LIMB`], one to a word: the limbs of `x` less
/// [`BIAS`].
#[inline(always)]
fn signed_digits(x: u64) -> u64 {
    const TOPS: u64 = LIMB * (1 | 1 << 16 | 1 << 32 | 1 << 48);
    let digit = |i: u32| (x & ((1 << LIMB_BITS) - 1) << (LIMB_BITS * i)) << ((16 - LIMB_BITS) * i);
    let digits = (digit(0) | digit(1) | digit(2) | digit(3)) ^ TOPS;
    // Now two's complement of 15 bits, of which the highest becomes that of 16 bits.
    digits | (digits & TOPS) << 1
}

/// The field element of a position's four sums, each with an absolute value below 2^45: the
/// definition of what back ends may compute in vectors.
#[inline(always)]
#[allow(dead_code, reason = "not every back end and test needs it")]
fn value(low: &[i32; 4], high: &[i32; 4]) -> u64 {
    let sum = |i: usize| low[i] as i64 + ((high[i] as i64) << KEPT_BITS);
    let pair = |i: usize| sum(i) + (sum(i + 1) << LIMB_BITS);
    // |a|, |b| < 2^60 + 2^46, and 2^30 b = 2^60 h + 2^30 l = (2^18 - 1) h + 2^30 l mod p with
    // |h| <= 2^30 + 2^16 and 0 <= l < 2^30. With 2 p the total lies above 0 and below 2^63.
    let (a, b) = (pair(0), pair(2));
    let (h, l) = (b >> 30, b & ((1 << 30) - 1));
    fp::reduce_u64((a + (h << 18) - h + (l << 30) + 2 * P as i64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limbs_are_small_and_have_the_value_of_the_element() {
        let p = fp::P;
        for x in [
            0,
            1,
            0xfed_cba9_8765_4321,
            BIAS,
            p - BIAS,
            p - 1,
            p / 2,
            LIMB,
            LIMB - 1,
            p - LIMB,
        ] {
            let words = limbs(x);
            let mut value = 0;
            for i in 0..4 {
                let limb = (words >> (16 * i)) as i16;
                assert!(limb.unsigned_abs() as u64 <= LIMB && limb < LIMB as i16);
                value += (limb as i128) << (LIMB_BITS * i);
            }
            assert_eq!(fp::from_i128(value), x);
        }
    }

    #[test]
    fn sums_at_their_bounds_have_their_value() {
        let most = (1i64 << 45) - 1;
        let sums = [0, 1, -1, 0xffff, -0x10000, most, -most, most / 3, -most / 7];
        let count = sums.len();
        for i in 0..count.pow(4) {
            let sums = [1, count, count.pow(2), count.pow(3)].map(|n| sums[i / n % count]);
            let low = sums.map(|sum| (sum & 0xffff) as i32);
            let high = sums.map(|sum| (sum >> KEPT_BITS) as i32);
            let terms = (0..).step_by(LIMB_BITS as usize).zip(sums);
            let expected = fp::from_i128(terms.map(|(by, sum)| (sum as i128) << by).sum());
            assert_eq!(value(&low, &high), expected, "{sums:?}");
        }
    }
}
