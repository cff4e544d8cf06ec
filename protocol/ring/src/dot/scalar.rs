//! The definition of both sums: products are added as 128-bit integers and reduced once.

use super::{InterleavedRow, Term};
use crate::Modulus46;
use std::ops::Range;

/// See [`super::dot_pair`].
pub(super) fn dot_pair(m: &Modulus46, terms: &[Term<'_>], accumulate: bool, out: [&mut [u64]; 2]) {
    for (h, out) in out.into_iter().enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            let start = if accumulate { *out as u128 } else { 0 };
            // Each product is below 2^92, so that 1024 of them and the start stay below 2^103.
            let sum = terms.iter().fold(start, |sum, t| {
                sum + t.halves[h][i] as u128 * t.factor[i] as u128
            });
            *out = m.reduce_u128(sum);
        }
    }
}

/// See [`super::dot_matrix`].
pub(super) fn dot_matrix(
    m: &Modulus46,
    terms: Range<usize>,
    rows: &[&InterleavedRow],
    factors: &[&[u64]],
    out: &mut [[&mut [u64]; 2]],
) {
    let outputs = factors.len() / terms.len();
    for (at, out) in out.iter_mut().enumerate() {
        let (row, factors) = (
            rows[at / outputs],
            &factors[at % outputs * terms.len()..][..terms.len()],
        );
        for (h, out) in out.iter_mut().enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let words = &row.words[16 * (i / 8 * row.terms + terms.start) + 8 * h + i % 8..];
                // Bounds as in `dot_pair`.
                let sum = factors.iter().enumerate().fold(0, |sum, (t, factor)| {
                    sum + words[16 * t] as u128 * factor[i] as u128
                });
                *out = m.reduce_u128(sum);
            }
        }
    }
}
