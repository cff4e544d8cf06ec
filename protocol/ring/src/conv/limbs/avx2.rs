//! The product with AVX2 and FMA: the portable tile, compiled for twelve sums of four lanes at a
//! time.

use super::{Columns, Multiply, multiply_blocks, multiply_tile};

pub(super) const MULTIPLY: Multiply = |weights, gathered, sums| {
    // SAFETY: used where the back end is AVX2 and the machine supports that, FMA included.
    unsafe { multiply(weights, gathered, sums) }
};

#[target_feature(enable = "avx2,fma")]
fn multiply(weights: &[i16], gathered: &[Columns], sums: &mut [Columns]) {
    multiply_blocks(weights, gathered, sums, multiply_tile::<true>);
}
