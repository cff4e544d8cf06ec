//! The product with AVX-512F: 24 sums of eight lanes.

use super::{COLUMNS, Columns, Multiply, ROWS, multiply_blocks};
use std::arch::x86_64::*;

/// Vectors of a row of a tile.
const VECTORS: usize = COLUMNS / 8;

pub(super) const MULTIPLY: Multiply = |weights, gathered, sums| {
    // SAFETY: used where the back end is AVX-512 and the machine supports that.
    unsafe { multiply(weights, gathered, sums) }
};

#[allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of registers"
)]
#[target_feature(enable = "avx512f")]
fn multiply(weights: &[i16], gathered: &[Columns], sums: &mut [Columns]) {
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
