//! A vector of AVX2 with FMA.

use super::{Doubles, LANES};
use std::arch::x86_64::*;

/// One register.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256d);

/// 2^52: as bits, the exponent of numbers whose last bit counts ones.
const TWO_52: f64 = 4_503_599_627_370_496.0;

/// Delegates to an intrinsic.
macro_rules! intrinsic {
    ($(fn $name:ident($($arg:ident),*) -> $output:ident = $call:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($arg: Self),*) -> $output {
            let ($($arg,)*) = ($($arg.0,)*);
            // SAFETY: the caller's promise.
            Avx2(unsafe { $call(self.0, $($arg),*) })
        }
    )*};
}

impl Doubles for Avx2 {
    #[inline(always)]
    unsafe fn splat(x: f64) -> Self {
        // SAFETY: the caller's promise, here and in all functions of this block.
        Avx2(unsafe { _mm256_set1_pd(x) })
    }

    #[inline(always)]
    unsafe fn load(x: *const f64) -> Self {
        // SAFETY: as above.
        Avx2(unsafe { _mm256_loadu_pd(x) })
    }

    #[inline(always)]
    unsafe fn store(self, x: *mut f64) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_pd(x, self.0) }
    }

    #[inline(always)]
    unsafe fn from_words(x: *const u64) -> Self {
        // SAFETY: as above.
        unsafe {
            let two_52 = _mm256_set1_pd(TWO_52);
            let x = _mm256_loadu_pd(x.cast());
            Avx2(_mm256_sub_pd(_mm256_or_pd(x, two_52), two_52))
        }
    }

    #[inline(always)]
    unsafe fn from_small(x: *const i32) -> Self {
        // SAFETY: as above.
        Avx2(unsafe { _mm256_cvtepi32_pd(_mm_loadu_si128(x.cast())) })
    }

    #[inline(always)]
    unsafe fn to_words(self, x: *mut u64) {
        // SAFETY: as above.
        unsafe {
            let two_52 = _mm256_set1_pd(TWO_52);
            let words = _mm256_xor_pd(_mm256_add_pd(self.0, two_52), two_52);
            _mm256_storeu_pd(x.cast(), words);
        }
    }

    #[inline(always)]
    unsafe fn prefetch(x: *const u64) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.cast()) }
    }

    intrinsic! {
        fn add(y) -> Self = _mm256_add_pd;
        fn sub(y) -> Self = _mm256_sub_pd;
        fn mul(y) -> Self = _mm256_mul_pd;
        fn mul_add(y, z) -> Self = _mm256_fmadd_pd;
        fn mul_sub(y, z) -> Self = _mm256_fmsub_pd;
        fn neg_mul_add(y, z) -> Self = _mm256_fnmadd_pd;
    }

    #[inline(always)]
    unsafe fn add_where_negative(self, y: Self) -> Self {
        // SAFETY: as above.
        unsafe {
            let negative = _mm256_cmp_pd::<_CMP_LT_OQ>(self.0, _mm256_setzero_pd());
            Avx2(_mm256_add_pd(self.0, _mm256_and_pd(negative, y.0)))
        }
    }

    #[inline(always)]
    unsafe fn transpose(x: &mut [Self; LANES]) {
        // SAFETY: as above.
        unsafe {
            let [Avx2(a), Avx2(b), Avx2(c), Avx2(d)] = *x;
            let (ab, cd) = (_mm256_unpacklo_pd(a, b), _mm256_unpacklo_pd(c, d));
            let (ab_odd, cd_odd) = (_mm256_unpackhi_pd(a, b), _mm256_unpackhi_pd(c, d));
            *x = [
                Avx2(_mm256_permute2f128_pd::<0x20>(ab, cd)),
                Avx2(_mm256_permute2f128_pd::<0x20>(ab_odd, cd_odd)),
                Avx2(_mm256_permute2f128_pd::<0x31>(ab, cd)),
                Avx2(_mm256_permute2f128_pd::<0x31>(ab_odd, cd_odd)),
            ];
        }
    }
}
