//! Loops over residues that the packing of ciphertexts spends its time in, modulo primes just below
//! 2^46.
//!
//! Each has a portable body, which is the definition. On AVX-512 the same body is compiled again
//! for those instructions, or, where the compiler does not find them (52-bit multiplication,
//! gathers), written with them.

use crate::Modulus;

/// Whether the AVX-512 versions run: detected once.
#[cfg(target_arch = "x86_64")]
fn avx512() -> bool {
    use std::sync::LazyLock;
    static PRESENT: LazyLock<bool> = LazyLock::new(|| {
        !crate::force_scalar()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512ifma")
    });
    *PRESENT
}

/// Defines `$name`, which runs `$body` compiled for AVX-512 where that is present and for the
/// target otherwise.
macro_rules! compiled_twice {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        pub fn $name($($arg: $type),*) {
            #[inline(always)]
            fn portable($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
                fn vector($($arg: $type),*) {
                    portable($($arg),*)
                }
                if avx512() {
                    // SAFETY: the features are present.
                    return unsafe { vector($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    };
}

compiled_twice! {
    /// `x += y`, element by element.
    pub fn add_assign(m: &Modulus, x: &mut [u64], y: &[u64]) {
        for (x, &y) in x.iter_mut().zip(y) {
            *x = m.add(*x, y);
        }
    }
}

compiled_twice! {
    /// `x -= y`, element by element.
    pub fn sub_assign(m: &Modulus, x: &mut [u64], y: &[u64]) {
        for (x, &y) in x.iter_mut().zip(y) {
            *x = m.sub(*x, y);
        }
    }
}

compiled_twice! {
    /// Sets `x` to `x + X^t y` and `difference` to `x - X^t y`, all coefficients modulo `X^n + 1`,
    /// `t <= n`.
    pub fn butterfly(m: &Modulus, t: usize, x: &mut [u64], y: &[u64], difference: &mut [u64]) {
        let (head, tail) = y.split_at(y.len() - t);
        let (x_head, x_tail) = x.split_at_mut(t);
        let (d_head, d_tail) = difference.split_at_mut(t);
        for ((x, d), &y) in x_head.iter_mut().zip(d_head).zip(tail) {
            (*x, *d) = (m.sub(*x, y), m.add(*x, y));
        }
        for ((x, d), &y) in x_tail.iter_mut().zip(d_tail).zip(head) {
            (*x, *d) = (m.add(*x, y), m.sub(*x, y));
        }
    }
}

compiled_twice! {
    /// Writes to `out` the residues modulo `to` of the centred representatives of `x` modulo
    /// `from`; both just below 2^46.
    pub fn lift_centred(from: &Modulus, to: &Modulus, x: &[u64], out: &mut [u64]) {
        let (half, shift) = (from.value() / 2, to.value().wrapping_sub(from.value()));
        for (out, &x) in out.iter_mut().zip(x) {
            let above_half = (half.wrapping_sub(x) as i64 >> 63) as u64;
            *out = x.wrapping_add(shift & above_half);
        }
    }
}

compiled_twice! {
    /// Adds small signed integers, `|e| < q`, to residues.
    pub fn add_small_assign(m: &Modulus, x: &mut [u64], e: &[i64]) {
        for (x, &e) in x.iter_mut().zip(e) {
            *x = m.add(*x, m.from_small(e));
        }
    }
}

compiled_twice! {
    /// Writes to each entry of `out` the sum of `x.len() / out.len()` adjacent residues.
    ///
    /// # Preconditions
    /// `q` within 2^20 below 2^46, at most 2^16 residues a sum.
    pub fn sum_adjacent(m: &Modulus, x: &[u64], out: &mut [u64]) {
        const LOW: u64 = (1 << 46) - 1;
        let c = (1 << 46) - m.value();
        let gap = x.len() / out.len();
        for (out, x) in out.iter_mut().zip(x.chunks_exact(gap)) {
            *out = x.iter().sum();
        }
        for out in out {
            // Below 2^62, of which the upper part times c is below 2^36.
            *out = m.subtract_once((*out & LOW) + (*out >> 46) * c);
        }
    }
}

/// Writes `x y` to `x`, element by element.
///
/// # Preconditions
/// `q` within 2^20 below 2^46.
pub fn mul_assign(m: &Modulus, x: &mut [u64], y: &[u64]) {
    assert_eq!(x.len(), y.len());
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if avx512() {
        done = x.len() / 8 * 8;
        // SAFETY: the features are present, and the slices have the same length.
        unsafe { vector::mul_assign(m, &mut x[..done], &y[..done]) };
    }
    m.mul_assign(&mut x[done..], &y[done..]);
}

/// Writes `x w` to `x` for a constant `w`.
///
/// # Preconditions
/// `q < 2^50`, entries and `w` in `0..q`.
pub fn scale_assign(m: &Modulus, x: &mut [u64], w: u64) {
    #[cfg(target_arch = "x86_64")]
    if avx512() {
        let done = x.len() / 8 * 8;
        // SAFETY: the features are present.
        unsafe { vector::scale_assign(m, &mut x[..done], w) };
        return m.scale_assign(&mut x[done..], w);
    }
    m.scale_assign(x, w);
}

/// Writes `x w` to `out` for small signed `x` and a constant `w`.
///
/// # Preconditions
/// `2^32 < q < 2^50`, `w` in `0..q`, `|x| < 2^31`.
pub fn scale_small(m: &Modulus, x: &[i32], w: u64, out: &mut [u64]) {
    assert_eq!(x.len(), out.len());
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if avx512() {
        done = out.len() / 8 * 8;
        // SAFETY: the features are present, and the slices have the same length.
        unsafe { vector::scale_small(m, &x[..done], w, &mut out[..done]) };
    }
    let w_shoup = m.shoup(w);
    for (out, &x) in out[done..].iter_mut().zip(&x[done..]) {
        *out = m.mul_shoup(m.from_small(i64::from(x)), w, w_shoup);
    }
}

/// Adds `(x - [r]_s) / s` modulo `q` to `out`: `x` has residues modulo `q`, `r` the same integer's
/// modulo `s`, and `[r]_s` is centred, so that this is the rounded quotient. `inverse` is `s^-1 mod
/// q`.
///
/// # Preconditions
/// `q` and `s` within 2^20 below 2^46.
pub fn add_divided(m: &Modulus, s: &Modulus, inverse: u64, x: &[u64], r: &[u64], out: &mut [u64]) {
    assert!(x.len() == out.len() && r.len() == out.len());
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if avx512() {
        done = out.len() / 8 * 8;
        // SAFETY: the features are present, and the three slices have the same length.
        unsafe { vector::add_divided(m, s, inverse, &x[..done], &r[..done], &mut out[..done]) };
    }
    let inverse_shoup = m.shoup(inverse);
    for ((out, &x), &r) in out[done..].iter_mut().zip(&x[done..]).zip(&r[done..]) {
        // x - r, plus s where r stands for r - s, plus 2 q to stay positive.
        let above_half = ((s.value() / 2).wrapping_sub(r) as i64 >> 63) as u64;
        let difference = x + 2 * m.value() - r + (s.value() & above_half);
        *out = m.add(*out, m.mul_shoup(difference, inverse, inverse_shoup));
    }
}

/// Writes `±x[source]` to each entry of `out`: the low 31 bits of an entry of `sources` are the
/// index, the top bit is the sign.
///
/// # Panics
/// If an index is out of range or `sources` and `out` differ in length.
pub fn gather_signed(m: &Modulus, sources: &[u32], x: &[u64], out: &mut [u64]) {
    const NEGATED: u32 = 1 << 31;
    assert_eq!(sources.len(), out.len());
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if avx512() && x.len() <= 1 << 20 {
        done = out.len() / 8 * 8;
        // SAFETY: the features are present, and the two slices have the same length.
        unsafe { vector::gather_signed(m, &sources[..done], x, &mut out[..done]) };
    }
    for (out, &source) in out[done..].iter_mut().zip(&sources[done..]) {
        let v = x[(source & !NEGATED) as usize];
        // The branch depends on the public permutation only.
        *out = if source & NEGATED != 0 { m.neg(v) } else { v };
    }
}

/// Writes `x[source]` to each entry of `out`.
///
/// # Panics
/// If an index is out of range or `sources` and `out` differ in length.
pub fn gather(sources: &[u32], x: &[u64], out: &mut [u64]) {
    assert_eq!(sources.len(), out.len());
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if avx512() && x.len() <= 1 << 20 {
        done = out.len() / 8 * 8;
        // SAFETY: the features are present, and the two slices have the same length.
        unsafe { vector::gather(&sources[..done], x, &mut out[..done]) };
    }
    for (out, &source) in out[done..].iter_mut().zip(&sources[done..]) {
        *out = x[source as usize];
    }
}

#[cfg(target_arch = "x86_64")]
mod vector {
    use crate::Modulus;
    use std::arch::x86_64::*;

    /// `floor(2^52 w / q)`, the companion of `w` for 52-bit multiplication.
    fn companion(m: &Modulus, w: u64) -> i64 {
        (((w as u128) << 52) / m.value() as u128) as i64
    }

    /// `x w mod q` or that plus `q`, for `x < 2^52`: Shoup's multiplication with 52-bit words.
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn mul_shoup(x: __m512i, w: __m512i, companion: __m512i, negated_q: __m512i) -> __m512i {
        let zero = _mm512_setzero_si512();
        let quotient = _mm512_madd52hi_epu64(zero, x, companion);
        // Both products modulo 2^52; the difference is below 2 q < 2^51.
        let product = _mm512_madd52lo_epu64(zero, x, w);
        let sum = _mm512_madd52lo_epu64(product, quotient, negated_q);
        _mm512_and_si512(sum, _mm512_set1_epi64((1 << 52) - 1))
    }

    /// `x` or `x - q`, for `x < 2 q`.
    #[target_feature(enable = "avx512f")]
    fn subtract_once(x: __m512i, q: __m512i) -> __m512i {
        _mm512_min_epu64(x, _mm512_sub_epi64(x, q))
    }

    /// The constants of a modulus: `q` and `2^52 - q`.
    #[target_feature(enable = "avx512f")]
    fn constants(m: &Modulus) -> (__m512i, __m512i) {
        (
            _mm512_set1_epi64(m.value() as i64),
            _mm512_set1_epi64((1 << 52) - m.value() as i64),
        )
    }

    /// See [`super::mul_assign`].
    ///
    /// # Safety
    /// AVX-512F and IFMA are present; the slices have the same length.
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) unsafe fn mul_assign(m: &Modulus, x: &mut [u64], y: &[u64]) {
        let (q, _) = constants(m);
        let c = (1 << 46) - m.value();
        let (fold_52, fold_46) = (
            _mm512_set1_epi64(64 * c as i64),
            _mm512_set1_epi64(c as i64),
        );
        let low_46 = _mm512_set1_epi64((1 << 46) - 1);
        let zero = _mm512_setzero_si512();
        for (x, y) in x.chunks_exact_mut(8).zip(y.chunks_exact(8)) {
            // SAFETY: the chunks have eight words.
            let (a, b) = unsafe {
                (
                    _mm512_loadu_si512(x.as_ptr().cast()),
                    _mm512_loadu_si512(y.as_ptr().cast()),
                )
            };
            // 2^52 = 64 c < 2^26 and the upper part is below 2^40: its product has an upper part
            // below 2^14.
            let high = _mm512_madd52hi_epu64(zero, a, b);
            let mut t = _mm512_madd52lo_epu64(zero, a, b);
            t = _mm512_madd52lo_epu64(t, high, fold_52);
            t = _mm512_madd52lo_epu64(t, _mm512_madd52hi_epu64(zero, high, fold_52), fold_52);
            // t < 2^53 + 2^40; folding at 2^46 leaves below 2^46 + 2^28 < 2 q.
            t = _mm512_madd52lo_epu64(
                _mm512_and_si512(t, low_46),
                _mm512_srli_epi64::<46>(t),
                fold_46,
            );
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), subtract_once(t, q)) };
        }
    }

    /// See [`super::scale_assign`].
    ///
    /// # Safety
    /// AVX-512F and IFMA are present.
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) unsafe fn scale_assign(m: &Modulus, x: &mut [u64], w: u64) {
        let (q, negated_q) = constants(m);
        let (factor, shoup) = (
            _mm512_set1_epi64(w as i64),
            _mm512_set1_epi64(companion(m, w)),
        );
        for x in x.chunks_exact_mut(8) {
            // SAFETY: the chunk has eight words.
            unsafe {
                let v = _mm512_loadu_si512(x.as_ptr().cast());
                let v = subtract_once(mul_shoup(v, factor, shoup, negated_q), q);
                _mm512_storeu_si512(x.as_mut_ptr().cast(), v);
            }
        }
    }

    /// See [`super::scale_small`].
    ///
    /// # Safety
    /// AVX-512F and IFMA are present; the slices have the same length.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vl")]
    pub(super) unsafe fn scale_small(m: &Modulus, x: &[i32], w: u64, out: &mut [u64]) {
        let (q, negated_q) = constants(m);
        let (factor, shoup) = (
            _mm512_set1_epi64(w as i64),
            _mm512_set1_epi64(companion(m, w)),
        );
        for (x, out) in x.chunks_exact(8).zip(out.chunks_exact_mut(8)) {
            // SAFETY: the chunks have eight numbers.
            unsafe {
                let x = _mm512_cvtepi32_epi64(_mm256_loadu_si256(x.as_ptr().cast()));
                // Not negative, and below 2^51.
                let x = _mm512_add_epi64(x, q);
                let v = subtract_once(mul_shoup(x, factor, shoup, negated_q), q);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), v);
            }
        }
    }

    /// See [`super::add_divided`].
    ///
    /// # Safety
    /// AVX-512F and IFMA are present; the slices have the same length.
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) unsafe fn add_divided(
        m: &Modulus,
        s: &Modulus,
        inverse: u64,
        x: &[u64],
        r: &[u64],
        out: &mut [u64],
    ) {
        let (q, negated_q) = constants(m);
        let (factor, shoup) = (
            _mm512_set1_epi64(inverse as i64),
            _mm512_set1_epi64(companion(m, inverse)),
        );
        let two_q = _mm512_set1_epi64(2 * m.value() as i64);
        let special = _mm512_set1_epi64(s.value() as i64);
        let half = _mm512_set1_epi64((s.value() / 2) as i64);
        for ((x, r), out) in x
            .chunks_exact(8)
            .zip(r.chunks_exact(8))
            .zip(out.chunks_exact_mut(8))
        {
            // SAFETY: the chunks have eight words.
            unsafe {
                let x = _mm512_loadu_si512(x.as_ptr().cast());
                let r = _mm512_loadu_si512(r.as_ptr().cast());
                let old = _mm512_loadu_si512(out.as_ptr().cast());
                let above_half = _mm512_cmpgt_epu64_mask(r, half);
                let mut difference = _mm512_sub_epi64(_mm512_add_epi64(x, two_q), r);
                difference = _mm512_mask_add_epi64(difference, above_half, difference, special);
                let quotient = subtract_once(mul_shoup(difference, factor, shoup, negated_q), q);
                let sum = subtract_once(_mm512_add_epi64(old, quotient), q);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), sum);
            }
        }
    }

    /// See [`super::gather_signed`].
    ///
    /// # Safety
    /// AVX-512F and VL are present; `sources` and `out` have the same length.
    ///
    /// # Panics
    /// If an index is out of range.
    #[target_feature(enable = "avx512f,avx512vl")]
    pub(super) unsafe fn gather_signed(m: &Modulus, sources: &[u32], x: &[u64], out: &mut [u64]) {
        let q = _mm512_set1_epi64(m.value() as i64);
        let zero = _mm512_setzero_si512();
        let low_31 = _mm256_set1_epi32(i32::MAX);
        let length = _mm256_set1_epi32(x.len() as i32);
        for (sources, out) in sources.chunks_exact(8).zip(out.chunks_exact_mut(8)) {
            // SAFETY: the chunk has eight indices.
            let sources = unsafe { _mm256_loadu_si256(sources.as_ptr().cast()) };
            let indices = _mm256_and_si256(sources, low_31);
            assert_eq!(
                _mm256_cmplt_epu32_mask(indices, length),
                0xff,
                "gather index out of range"
            );
            // SAFETY: the indices were just found to be below the length of x.
            let v = unsafe { _mm512_i32gather_epi64::<8>(indices, x.as_ptr().cast()) };
            let negated = sign_bits(sources);
            let minus = _mm512_sub_epi64(q, v);
            // The negation of zero is zero, not q.
            let nonzero = _mm512_cmpneq_epu64_mask(v, zero);
            let v = _mm512_mask_mov_epi64(v, negated & nonzero, minus);
            // SAFETY: the chunk has eight words.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) };
        }
    }

    /// See [`super::gather`].
    ///
    /// # Safety
    /// AVX-512F and VL are present; `sources` and `out` have the same length.
    ///
    /// # Panics
    /// If an index is out of range.
    #[target_feature(enable = "avx512f,avx512vl")]
    pub(super) unsafe fn gather(sources: &[u32], x: &[u64], out: &mut [u64]) {
        let length = _mm256_set1_epi32(x.len() as i32);
        for (sources, out) in sources.chunks_exact(8).zip(out.chunks_exact_mut(8)) {
            // SAFETY: the chunk has eight indices.
            let indices = unsafe { _mm256_loadu_si256(sources.as_ptr().cast()) };
            assert_eq!(
                _mm256_cmplt_epu32_mask(indices, length),
                0xff,
                "gather index out of range"
            );
            // SAFETY: the indices were just found to be below the length of x, and the chunk has
            // eight words.
            unsafe {
                let v = _mm512_i32gather_epi64::<8>(indices, x.as_ptr().cast());
                _mm512_storeu_si512(out.as_mut_ptr().cast(), v);
            }
        }
    }

    /// The top bits of eight 32-bit words.
    #[target_feature(enable = "avx512f,avx512vl")]
    fn sign_bits(x: __m256i) -> __mmask8 {
        _mm256_cmplt_epi32_mask(x, _mm256_setzero_si256())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::RLWE_PRIMES;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn residues(m: &Modulus, n: usize, seed: u64) -> Vec<u64> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let q = m.value();
        let mut v: Vec<u64> = (0..n).map(|_| m.reduce_u64(rng.next_u64())).collect();
        for (x, edge) in v.iter_mut().zip([0, q - 1, q / 2, q / 2 + 1]) {
            *x = edge;
        }
        v
    }

    #[test]
    fn every_kernel_does_what_it_says() {
        let n = 37;
        for (prime, other) in RLWE_PRIMES.into_iter().zip(RLWE_PRIMES.into_iter().rev()) {
            let (m, s) = (prime.modulus, other.modulus);
            let (x, y) = (residues(&m, n, 1), residues(&m, n, 2));
            let (mut sum, mut difference) = (x.clone(), x.clone());
            add_assign(&m, &mut sum, &y);
            sub_assign(&m, &mut difference, &y);
            for i in 0..n {
                assert_eq!(sum[i], m.add(x[i], y[i]));
                assert_eq!(difference[i], m.sub(x[i], y[i]));
            }
            let mut scaled = x.clone();
            scale_assign(&m, &mut scaled, y[9]);
            for i in 0..n {
                assert_eq!(scaled[i], m.mul(x[i], y[9]));
            }
            let mut product = x.clone();
            mul_assign(&m, &mut product, &y);
            for i in 0..n {
                assert_eq!(product[i], m.mul(x[i], y[i]));
            }
            for gap in [1, 4, 32] {
                let mut sums = vec![0; 32 / gap];
                sum_adjacent(&m, &x[..32], &mut sums);
                for (i, &sum) in sums.iter().enumerate() {
                    assert_eq!(
                        sum,
                        x[i * gap..][..gap].iter().fold(0, |s, &x| m.add(s, x)),
                        "{gap}"
                    );
                }
            }
            let small: Vec<i64> = (0..n as i64).map(|i| i - 18).collect();
            let mut noisy = x.clone();
            add_small_assign(&m, &mut noisy, &small);
            for i in 0..n {
                assert_eq!(noisy[i], m.add(x[i], m.from_i64(small[i])));
            }
            for t in [0, 1, 8, 36, 37] {
                let mut shifted = vec![0; n];
                for i in 0..n {
                    shifted[(i + t) % n] = if i + t >= n { m.neg(y[i]) } else { y[i] };
                }
                let (mut plus, mut minus) = (x.clone(), vec![0; n]);
                butterfly(&m, t, &mut plus, &y, &mut minus);
                for i in 0..n {
                    assert_eq!(
                        (plus[i], minus[i]),
                        (m.add(x[i], shifted[i]), m.sub(x[i], shifted[i])),
                        "{t}"
                    );
                }
            }
            let centred = |x: u64, m: &Modulus| {
                if x > m.value() / 2 {
                    x as i64 - m.value() as i64
                } else {
                    x as i64
                }
            };
            let mut lifted = vec![0; n];
            lift_centred(&m, &s, &x, &mut lifted);
            for i in 0..n {
                assert_eq!(lifted[i], s.from_i64(centred(x[i], &m)));
            }
            if m != s {
                let r = residues(&s, n, 3);
                let inverse = m.inv(m.reduce_u64(s.value()));
                let mut out = y.clone();
                add_divided(&m, &s, inverse, &x, &r, &mut out);
                for i in 0..n {
                    let quotient = m.mul(m.sub(x[i], m.from_i64(centred(r[i], &s))), inverse);
                    assert_eq!(out[i], m.add(y[i], quotient));
                }
            }
            let signed: Vec<i32> = (0..n as i32)
                .map(|i| i.wrapping_mul(119_304_647).wrapping_sub(i32::MAX))
                .collect();
            let mut out = vec![0; n];
            scale_small(&m, &signed, y[5], &mut out);
            for i in 0..n {
                assert_eq!(out[i], m.mul(m.from_i64(i64::from(signed[i])), y[5]));
            }
            let sources: Vec<u32> = (0..n as u32).map(|i| i * 7 % n as u32).collect();
            gather(&sources, &x, &mut out);
            for (i, &source) in sources.iter().enumerate() {
                assert_eq!(out[i], x[source as usize]);
            }
            let sources: Vec<u32> = (0..n as u32)
                .map(|i| (i * 5 % n as u32) | ((i % 3) & 1) << 31)
                .collect();
            let mut out = vec![0; n];
            gather_signed(&m, &sources, &x, &mut out);
            for (i, &source) in sources.iter().enumerate() {
                let v = x[(source << 1 >> 1) as usize];
                assert_eq!(out[i], if source >> 31 == 1 { m.neg(v) } else { v });
            }
        }
    }

    #[test]
    #[should_panic]
    fn gathering_beyond_the_end_panics() {
        let mut out = [0; 8];
        gather_signed(
            &RLWE_PRIMES[0].modulus,
            &[0, 0, 0, 0, 0, 0, 0, 8],
            &[1; 8],
            &mut out,
        );
    }
}
