//! The product with AVX2 and FMA: the portable tile, compiled for twelve sums of four lanes at a
//! time.

use super::{Columns, Multiply, multiply_blocks, multiply_tile};

/// The product, if the machine has the instructions.
pub(super) fn multiply() -> Option<Multiply> {
    let present = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    // SAFETY: AVX2 and FMA are present wherever this is handed out.
    present.then_some(|weights, gathered, sums| unsafe { product(weights, gathered, sums) })
}

#[target_feature(enable = "avx2,fma")]
fn product(weights: &[i16], gathered: &[Columns], sums: &mut [Columns]) {
    multiply_blocks(weights, gathered, sums, multiply_tile::<true>);
}
