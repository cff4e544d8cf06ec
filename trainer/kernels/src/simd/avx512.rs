//! Sixteen lanes as one register of AVX-512.

use std::arch::x86_64::*;

use super::{Kernel, Lane, Simd};
use crate::matrix::{self, Product, TransposedProduct};

/// Proof that this processor has AVX-512F.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Runs a kernel with AVX-512. The caller has checked that this processor has it.
pub(super) fn run(kernel: impl Kernel) {
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn inner(kernel: impl Kernel) {
        kernel.run(Avx512(()));
    }
    // SAFETY: `simd::run` asserts that the processor has the features of `Backend::Avx512`, which
    // are these and more.
    unsafe { inner(kernel) }
}

/// Defines operations by an intrinsic.
macro_rules! intrinsics {
    ($($name:ident($($x:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($x: Self::V),+) -> Self::V {
            // SAFETY: `self` proves that the processor has AVX-512F.
            unsafe { $intrinsic($($x),+) }
        }
    )+};
}

impl Simd for Avx512 {
    type V = __m512;

    intrinsics! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        mul_add(a, b, c) = _mm512_fmadd_ps;
        neg_mul_add(a, b, c) = _mm512_fnmadd_ps;
        min(a, b) = _mm512_min_ps;
        max(a, b) = _mm512_max_ps;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` proves that the processor has AVX-512F.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &Lane) -> Self::V {
        // SAFETY: `self` proves that the processor has AVX-512F; the load is of sixteen values.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: &mut Lane, v: Self::V) {
        // SAFETY: `self` proves that the processor has AVX-512F; the store is of sixteen values.
        unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn where_positive(self, z: Self::V, a: Self::V) -> Self::V {
        // SAFETY: `self` proves that the processor has AVX-512F.
        unsafe {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(z, _mm512_setzero_ps());
            _mm512_maskz_mov_ps(positive, a)
        }
    }

    // 32 registers: 24 sums, two vectors of a row, a factor.
    #[inline(always)]
    fn product(self, product: Product<'_>) {
        matrix::product::<Self, 12, 2>(self, product);
    }
    #[inline(always)]
    fn transposed_product(self, product: TransposedProduct<'_>) {
        matrix::transposed_product::<Self, 8, 2>(self, product);
    }
}
