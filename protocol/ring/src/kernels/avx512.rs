//! The kernels on AVX-512: additions are the scalar bodies compiled again, multiplications use the
//! 52-bit multiplier of IFMA, gathers the gather instructions. What does not fill a vector at the
//! end is left to the scalar bodies.

use super::{Kernels, scalar};
use crate::Modulus46;
use std::arch::x86_64::*;

/// An entry of the table.
macro_rules! entry {
    ($name:ident($($arg:ident),*)) => {
        // SAFETY: the table is used where the back end is AVX-512 and the machine supports that;
        // its features are all that a function of this file enables.
        |$($arg),*| unsafe { $name($($arg),*) }
    };
}

pub(super) static KERNELS: Kernels = Kernels {
    add_assign: entry!(add_assign(m, x, y)),
    sub_assign: entry!(sub_assign(m, x, y)),
    butterfly: entry!(butterfly(m, t, x, y, difference)),
    lift_centred: entry!(lift_centred(from, to, x, out)),
    add_small_assign: entry!(add_small_assign(m, x, e)),
    sum_adjacent: entry!(sum_adjacent(m, x, out)),
    mul_assign: entry!(mul_assign(m, x, y)),
    scale_assign: entry!(scale_assign(m, x, w)),
    scale_small: entry!(scale_small(m, x, w, out)),
    add_divided: entry!(add_divided(m, s, inverse, x, r, out)),
    gather_signed: entry!(gather_signed(m, sources, x, out)),
    gather: entry!(gather(sources, x, out)),
};

/// Compiles scalar bodies again for AVX-512, whose instructions the compiler finds by itself.
macro_rules! compiled_again {
    ($(fn $name:ident($($arg:ident: $type:ty),*);)*) => {$(
        #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
        fn $name($($arg: $type),*) {
            scalar::$name($($arg),*)
        }
    )*};
}

compiled_again! {
    fn add_assign(m: &Modulus46, x: &mut [u64], y: &[u64]);
    fn sub_assign(m: &Modulus46, x: &mut [u64], y: &[u64]);
    fn butterfly(m: &Modulus46, t: usize, x: &mut [u64], y: &[u64], difference: &mut [u64]);
    fn lift_centred(from: &Modulus46, to: &Modulus46, x: &[u64], out: &mut [u64]);
    fn add_small_assign(m: &Modulus46, x: &mut [u64], e: &[i64]);
    fn sum_adjacent(m: &Modulus46, x: &[u64], out: &mut [u64]);
}

/// The numbers of a slice that fill whole vectors of eight.
fn whole(length: usize) -> usize {
    length / 8 * 8
}

/// `floor(2^52 w / q)`, the companion of `w` for 52-bit multiplication.
fn companion(m: &Modulus46, w: u64) -> i64 {
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
fn constants(m: &Modulus46) -> (__m512i, __m512i) {
    (
        _mm512_set1_epi64(m.value() as i64),
        _mm512_set1_epi64((1 << 52) - m.value() as i64),
    )
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn mul_assign(m: &Modulus46, x: &mut [u64], y: &[u64]) {
    let (q, _) = constants(m);
    let c = m.fold();
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
    let done = whole(x.len());
    scalar::mul_assign(m, &mut x[done..], &y[done..]);
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn scale_assign(m: &Modulus46, x: &mut [u64], w: u64) {
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
    let done = whole(x.len());
    scalar::scale_assign(m, &mut x[done..], w);
}

#[target_feature(enable = "avx512f,avx512ifma,avx512vl")]
fn scale_small(m: &Modulus46, x: &[i32], w: u64, out: &mut [u64]) {
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
    let done = whole(x.len());
    scalar::scale_small(m, &x[done..], w, &mut out[done..]);
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn add_divided(m: &Modulus46, s: &Modulus46, inverse: u64, x: &[u64], r: &[u64], out: &mut [u64]) {
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
    let done = whole(x.len());
    scalar::add_divided(m, s, inverse, &x[done..], &r[done..], &mut out[done..]);
}

/// Longest slice that is gathered from: the instruction takes indices as signed.
const LONGEST_GATHER: usize = 1 << 20;

#[target_feature(enable = "avx512f,avx512vl")]
fn gather_signed(m: &Modulus46, sources: &[u32], x: &[u64], out: &mut [u64]) {
    if x.len() > LONGEST_GATHER {
        return scalar::gather_signed(m, sources, x, out);
    }
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
    let done = whole(out.len());
    scalar::gather_signed(m, &sources[done..], x, &mut out[done..]);
}

#[target_feature(enable = "avx512f,avx512vl")]
fn gather(sources: &[u32], x: &[u64], out: &mut [u64]) {
    if x.len() > LONGEST_GATHER {
        return scalar::gather(sources, x, out);
    }
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
    let done = whole(out.len());
    scalar::gather(&sources[done..], x, &mut out[done..]);
}

/// The top bits of eight 32-bit words.
#[target_feature(enable = "avx512f,avx512vl")]
fn sign_bits(x: __m256i) -> __mmask8 {
    _mm256_cmplt_epi32_mask(x, _mm256_setzero_si256())
}
