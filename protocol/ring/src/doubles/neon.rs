//! Two vectors of NEON, which is part of every 64-bit ARM processor.

use super::{Doubles, LANES};
use std::arch::aarch64::*;

/// Two registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon(float64x2_t, float64x2_t);

/// Delegates to an intrinsic, half by half.
macro_rules! halves {
    ($(fn $name:ident($($arg:ident),*) = |$($x:ident),*| $call:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($arg: Self),*) -> Self {
            // SAFETY: the caller's promise.
            let half = |$($x: float64x2_t),*| unsafe { $call };
            Neon(half(self.0, $($arg.0),*), half(self.1, $($arg.1),*))
        }
    )*};
}

impl Doubles for Neon {
    #[inline(always)]
    unsafe fn splat(x: f64) -> Self {
        // SAFETY: the caller's promise, here and in all functions of this block.
        let x = unsafe { vdupq_n_f64(x) };
        Neon(x, x)
    }

    #[inline(always)]
    unsafe fn load(x: *const f64) -> Self {
        // SAFETY: as above.
        unsafe { Neon(vld1q_f64(x), vld1q_f64(x.add(2))) }
    }

    #[inline(always)]
    unsafe fn store(self, x: *mut f64) {
        // SAFETY: as above.
        unsafe {
            vst1q_f64(x, self.0);
            vst1q_f64(x.add(2), self.1);
        }
    }

    #[inline(always)]
    unsafe fn from_words(x: *const u64) -> Self {
        // SAFETY: as above.
        unsafe {
            Neon(
                vcvtq_f64_u64(vld1q_u64(x)),
                vcvtq_f64_u64(vld1q_u64(x.add(2))),
            )
        }
    }

    #[inline(always)]
    unsafe fn from_small(x: *const i32) -> Self {
        // SAFETY: as above.
        unsafe {
            let x = vld1q_s32(x);
            Neon(
                vcvtq_f64_s64(vmovl_s32(vget_low_s32(x))),
                vcvtq_f64_s64(vmovl_high_s32(x)),
            )
        }
    }

    #[inline(always)]
    unsafe fn to_words(self, x: *mut u64) {
        // SAFETY: as above.
        unsafe {
            vst1q_u64(x, vcvtq_u64_f64(self.0));
            vst1q_u64(x.add(2), vcvtq_u64_f64(self.1));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_x: *const u64) {
        // The instruction has no stable intrinsic.
    }

    halves! {
        fn add(y) = |x, y| vaddq_f64(x, y);
        fn sub(y) = |x, y| vsubq_f64(x, y);
        fn mul(y) = |x, y| vmulq_f64(x, y);
        fn mul_add(y, z) = |x, y, z| vfmaq_f64(z, x, y);
        fn mul_sub(y, z) = |x, y, z| vfmaq_f64(vnegq_f64(z), x, y);
        fn neg_mul_add(y, z) = |x, y, z| vfmsq_f64(z, x, y);
        fn add_where_negative(y) = |x, y| {
            let negative = vandq_u64(vcltzq_f64(x), vreinterpretq_u64_f64(y));
            vaddq_f64(x, vreinterpretq_f64_u64(negative))
        };
    }

    #[inline(always)]
    unsafe fn transpose(x: &mut [Self; LANES]) {
        let [a, b, c, d] = *x;
        // SAFETY: as above.
        unsafe {
            let (even, odd) = (vtrn1q_f64, vtrn2q_f64);
            *x = [
                Neon(even(a.0, b.0), even(c.0, d.0)),
                Neon(odd(a.0, b.0), odd(c.0, d.0)),
                Neon(even(a.1, b.1), even(c.1, d.1)),
                Neon(odd(a.1, b.1), odd(c.1, d.1)),
            ];
        }
    }
}
