//! Sums of element-wise products modulo primes just below 2^46: the inner loop of plaintext-by-ciphertext products and of
//! key switches.
//!
//! A term is a pair of vectors (the two halves of a ciphertext, or of a key) times one vector (a weight, or a digit). The
//! sum is kept unreduced, low 52 and high bits of the products apart, and reduced once per output: on AVX-512 IFMA that
//! is four instructions a term and eight coefficients.

use crate::Modulus;

/// Two vectors that are multiplied by the same third.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// The two vectors, summed into the two outputs.
    pub halves: [&'a [u64]; 2],
    /// Their common factor.
    pub factor: &'a [u64],
}

/// The most terms of one sum: the unreduced halves of the sum stay below 2^63.
pub const MAX_TERMS: usize = 1024;

/// Sets `out[h]` to the sum over terms of `halves[h] * factor`, plus the old `out[h]` if `accumulate`.
///
/// # Preconditions
/// `2^46 - 2^20 < q < 2^46`; all vectors have the length of the outputs, a multiple of 32 or any length on the scalar path;
/// entries are in `0..q`; at most [`MAX_TERMS`] terms.
/// # Postconditions
/// Entries in `0..q`.
/// # Panics
/// If the lengths, the modulus or the number of terms break the preconditions.
pub fn dot_pair(m: &Modulus, terms: &[Term<'_>], accumulate: bool, out: [&mut [u64]; 2]) {
    let n = out[0].len();
    assert!(
        m.value() < 1 << 46 && (1 << 46) - m.value() < 1 << 20,
        "modulus {} is not just below 2^46",
        m.value()
    );
    assert!(terms.len() <= MAX_TERMS, "{} terms", terms.len());
    assert!(out[1].len() == n);
    assert!(
        terms
            .iter()
            .all(|t| t.halves[0].len() == n && t.halves[1].len() == n && t.factor.len() == n)
    );
    #[cfg(target_arch = "x86_64")]
    if n.is_multiple_of(32)
        && !crate::force_scalar()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512ifma")
    {
        // SAFETY: the features are present, and every vector has length n, a multiple of 32.
        unsafe { ifma::dot_pair(m.value(), terms, accumulate, out) };
        return;
    }
    scalar_dot_pair(m, terms, accumulate, out);
}

/// The definition of [`dot_pair`].
fn scalar_dot_pair(m: &Modulus, terms: &[Term<'_>], accumulate: bool, out: [&mut [u64]; 2]) {
    for (h, out) in out.into_iter().enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            let start = if accumulate { *out as u128 } else { 0 };
            // Each product is below 2^92, so that 1024 of them and the start stay below 2^103.
            let sum = terms.iter().fold(start, |sum, t| {
                sum + t.halves[h][i] as u128 * t.factor[i] as u128
            });
            *out = m.reduce_near_2_46(sum);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod ifma {
    use super::Term;
    use std::arch::x86_64::*;

    /// Vectors of eight coefficients that are summed side by side: enough to hide the latency of the multiplier, few
    /// enough for the sixteen sums to stay in registers.
    const LANES: usize = 4;

    /// See [`super::dot_pair`].
    ///
    /// # Safety
    /// AVX-512F and IFMA are present; every vector of `terms` has the length of both outputs, a multiple of 32.
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) unsafe fn dot_pair(
        q: u64,
        terms: &[Term<'_>],
        accumulate: bool,
        out: [&mut [u64]; 2],
    ) {
        let zero = _mm512_setzero_si512();
        let modulus = _mm512_set1_epi64(q as i64);
        let c = (1u64 << 46) - q;
        // 2^52 = 64 c and 2^46 = c modulo q.
        let fold_52 = _mm512_set1_epi64((64 * c) as i64);
        let fold_46 = _mm512_set1_epi64(c as i64);
        let low_52 = _mm512_set1_epi64((1 << 52) - 1);
        let low_46 = _mm512_set1_epi64((1 << 46) - 1);
        let [out0, out1] = out;
        let outs = [out0.as_mut_ptr(), out1.as_mut_ptr()];
        for at in (0..out0.len()).step_by(8 * LANES) {
            let mut low = [[zero; LANES]; 2];
            let mut high = [[zero; LANES]; 2];
            if accumulate {
                for h in 0..2 {
                    for l in 0..LANES {
                        // SAFETY: at + 8 l + 8 <= n, the length of the output.
                        low[h][l] = unsafe { _mm512_loadu_si512(outs[h].add(at + 8 * l).cast()) };
                    }
                }
            }
            for term in terms {
                for l in 0..LANES {
                    let i = at + 8 * l;
                    // SAFETY: i + 8 <= n, the length of all three vectors.
                    let (factor, a, b) = unsafe {
                        (
                            _mm512_loadu_si512(term.factor.as_ptr().add(i).cast()),
                            _mm512_loadu_si512(term.halves[0].as_ptr().add(i).cast()),
                            _mm512_loadu_si512(term.halves[1].as_ptr().add(i).cast()),
                        )
                    };
                    // Each addition is below 2^52 and below 2^40: after 1024 terms the sums are below 2^63 and 2^50.
                    low[0][l] = _mm512_madd52lo_epu64(low[0][l], a, factor);
                    high[0][l] = _mm512_madd52hi_epu64(high[0][l], a, factor);
                    low[1][l] = _mm512_madd52lo_epu64(low[1][l], b, factor);
                    high[1][l] = _mm512_madd52hi_epu64(high[1][l], b, factor);
                }
            }
            for h in 0..2 {
                for l in 0..LANES {
                    // high < 2^50 + 2^11 after the carry, so that its product with 64 c < 2^26 has an upper part below
                    // 2^25, whose own product with 64 c is below 2^51.
                    let carried = _mm512_add_epi64(high[h][l], _mm512_srli_epi64::<52>(low[h][l]));
                    let mut t = _mm512_and_si512(low[h][l], low_52);
                    t = _mm512_madd52lo_epu64(t, carried, fold_52);
                    let upper = _mm512_madd52hi_epu64(zero, carried, fold_52);
                    t = _mm512_madd52lo_epu64(t, upper, fold_52);
                    // t < 2^52 + 2^52 + 2^51 < 2^54; folding at 2^46 leaves below 2^46 + 2^28 < 2 q.
                    let over = _mm512_srli_epi64::<46>(t);
                    t = _mm512_madd52lo_epu64(_mm512_and_si512(t, low_46), over, fold_46);
                    t = _mm512_min_epu64(t, _mm512_sub_epi64(t, modulus));
                    // SAFETY: as for the load above.
                    unsafe { _mm512_storeu_si512(outs[h].add(at + 8 * l).cast(), t) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::RLWE_PRIMES;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    #[test]
    fn vector_and_scalar_sums_equal_wide_integer_sums() {
        let mut rng = ChaCha20Rng::seed_from_u64(9);
        for prime in RLWE_PRIMES {
            let m = prime.modulus;
            let q = m.value();
            for (count, largest) in [
                (0, false),
                (1, false),
                (3, true),
                (17, false),
                (MAX_TERMS, true),
            ] {
                let n = 64;
                let mut vector = || -> Vec<u64> {
                    (0..n)
                        .map(|_| {
                            if largest {
                                q - 1
                            } else {
                                m.reduce_u64(rng.next_u64())
                            }
                        })
                        .collect()
                };
                let data: Vec<_> = (0..count).map(|_| [vector(), vector(), vector()]).collect();
                let terms: Vec<_> = data
                    .iter()
                    .map(|[a, b, w]| Term {
                        halves: [a, b],
                        factor: w,
                    })
                    .collect();
                for accumulate in [false, true] {
                    let start = [vector(), vector()];
                    let expected: Vec<Vec<u64>> = (0..2)
                        .map(|h| {
                            (0..n)
                                .map(|i| {
                                    let start = if accumulate { start[h][i] as u128 } else { 0 };
                                    let sum = data
                                        .iter()
                                        .fold(start, |s, d| s + d[h][i] as u128 * d[2][i] as u128);
                                    (sum % q as u128) as u64
                                })
                                .collect()
                        })
                        .collect();
                    for scalar in [true, false] {
                        let [mut x, mut y] = start.clone();
                        if scalar {
                            scalar_dot_pair(&m, &terms, accumulate, [&mut x, &mut y]);
                        } else {
                            dot_pair(&m, &terms, accumulate, [&mut x, &mut y]);
                        }
                        assert_eq!(
                            [x, y],
                            [expected[0].clone(), expected[1].clone()],
                            "{count} terms, scalar {scalar}"
                        );
                    }
                }
            }
        }
    }
}
