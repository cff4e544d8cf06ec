//! Sixteen lanes as two registers of AVX2, with fused multiplication.

use std::arch::x86_64::*;

use super::{Kernel, Lane, Simd};
use crate::matrix::{self, Product, TransposedProduct};

/// Proof that this processor has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Runs a kernel with AVX2. The caller has checked that this processor has it.
pub(super) fn run(kernel: impl Kernel) {
    #[target_feature(enable = "avx2,fma")]
    fn inner(kernel: impl Kernel) {
        kernel.run(Avx2(()));
    }
    // SAFETY: `simd::run` asserts that the processor has the features of `Backend::Avx2`, which are
    // these and more.
    unsafe { inner(kernel) }
}

/// Defines operations by an intrinsic on each half.
macro_rules! halves {
    ($($name:ident($($x:ident),+) = $intrinsic:ident($($y:ident),+);)+) => {$(
        #[inline(always)]
        fn $name(self, $($x: Self::V),+) -> Self::V {
            // SAFETY: `self` proves that the processor has AVX2 and FMA.
            unsafe { [$intrinsic($($y[0]),+), $intrinsic($($y[1]),+)] }
        }
    )+};
}

impl Simd for Avx2 {
    type V = [__m256; 2];

    halves! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        mul_add(a, b, c) = _mm256_fmadd_ps(a, b, c);
        neg_mul_add(a, b, c) = _mm256_fnmadd_ps(a, b, c);
        min(a, b) = _mm256_min_ps(a, b);
        max(a, b) = _mm256_max_ps(a, b);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` proves that the processor has AVX2.
        [unsafe { _mm256_set1_ps(x) }; 2]
    }
    #[inline(always)]
    fn load(self, x: &Lane) -> Self::V {
        // SAFETY: `self` proves that the processor has AVX2; both loads lie in the sixteen values.
        unsafe {
            [
                _mm256_loadu_ps(x.as_ptr()),
                _mm256_loadu_ps(x.as_ptr().add(8)),
            ]
        }
    }
    #[inline(always)]
    fn store(self, x: &mut Lane, v: Self::V) {
        // SAFETY: `self` proves that the processor has AVX2; both stores lie in the sixteen values.
        unsafe {
            _mm256_storeu_ps(x.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(x.as_mut_ptr().add(8), v[1]);
        }
    }
    #[inline(always)]
    fn where_positive(self, z: Self::V, a: Self::V) -> Self::V {
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe {
            let zero = _mm256_setzero_ps();
            [
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(z[0], zero), a[0]),
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(z[1], zero), a[1]),
            ]
        }
    }

    // Sixteen registers: twelve sums, two halves of a row, a factor.
    #[inline(always)]
    fn product(self, product: Product<'_>) {
        matrix::product::<Self, 6, 1>(self, product);
    }
    #[inline(always)]
    fn transposed_product(self, product: TransposedProduct<'_>) {
        matrix::transposed_product::<Self, 4, 1>(self, product);
    }
}
