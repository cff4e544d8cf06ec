//! The kernels that multiply, in double precision, for AVX2 with FMA and for NEON. What does not
//! fill a vector at the end is left to the scalar bodies. The kernels that only add are the scalar
//! bodies compiled again.

use super::scalar;
use crate::Modulus46;
use crate::doubles::{Doubles, Factor, Field, LANES};

/// Defines the table of one kind of vector.
macro_rules! table {
    ($module:ident, $vector:ident, $features:literal,
        generic: $(fn $generic:ident($($g:ident: $g_type:ty),*);)*
        scalar: $(fn $scalar:ident($($s:ident: $s_type:ty),*);)*
    ) => {
        pub(super) mod $module {
            use super::super::{Kernels, scalar};
            use crate::Modulus46;
            use crate::doubles::$vector;

            pub(in super::super) static KERNELS: Kernels = Kernels {
                // SAFETY, here and below: the table is used where the machine supports the back
                // end; its features are all that a function of this module enables.
                $($generic: |$($g),*| unsafe { $generic($($g),*) },)*
                $($scalar: |$($s),*| unsafe { $scalar($($s),*) },)*
            };

            $(
                /// # Safety
                /// The instructions are present.
                #[target_feature(enable = $features)]
                unsafe fn $generic($($g: $g_type),*) {
                    // SAFETY: the caller's promise.
                    unsafe { super::$generic::<$vector>($($g),*) }
                }
            )*

            $(
                #[target_feature(enable = $features)]
                unsafe fn $scalar($($s: $s_type),*) {
                    scalar::$scalar($($s),*)
                }
            )*
        }
    };
}

/// The table of one kind of vector, which needs these features.
macro_rules! kernels {
    ($module:ident, $vector:ident, $features:literal) => {
        table! {
            $module, $vector, $features,
            generic:
            fn mul_assign(m: &Modulus46, x: &mut [u64], y: &[u64]);
            fn scale_assign(m: &Modulus46, x: &mut [u64], w: u64);
            fn scale_small(m: &Modulus46, x: &[i32], w: u64, out: &mut [u64]);
            fn add_divided(m: &Modulus46, s: &Modulus46, inverse: u64, x: &[u64], r: &[u64],
                out: &mut [u64]);
            scalar:
            fn add_assign(m: &Modulus46, x: &mut [u64], y: &[u64]);
            fn sub_assign(m: &Modulus46, x: &mut [u64], y: &[u64]);
            fn butterfly(m: &Modulus46, t: usize, x: &mut [u64], y: &[u64],
                difference: &mut [u64]);
            fn lift_centred(from: &Modulus46, to: &Modulus46, x: &[u64], out: &mut [u64]);
            fn add_small_assign(m: &Modulus46, x: &mut [u64], e: &[i64]);
            fn sum_adjacent(m: &Modulus46, x: &[u64], out: &mut [u64]);
            fn gather_signed(m: &Modulus46, sources: &[u32], x: &[u64], out: &mut [u64]);
            fn gather(sources: &[u32], x: &[u64], out: &mut [u64]);
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(avx2, Avx2, "avx2,fma");
#[cfg(target_arch = "aarch64")]
kernels!(neon, Neon, "neon");

/// The numbers of a slice that fill whole vectors.
fn whole(length: usize) -> usize {
    length / LANES * LANES
}

/// See [`super::mul_assign`].
///
/// # Safety
/// The instructions of `V` are present, as for all functions here.
#[inline(always)]
unsafe fn mul_assign<V: Doubles>(m: &Modulus46, x: &mut [u64], y: &[u64]) {
    // SAFETY: the caller's promise; the chunks have four words.
    unsafe {
        let field = Field::<V>::new(m);
        for (x, y) in x.chunks_exact_mut(LANES).zip(y.chunks_exact(LANES)) {
            let product = field.mul(V::from_words(x.as_ptr()), V::from_words(y.as_ptr()));
            field.store_reduced(product, x.as_mut_ptr());
        }
    }
    let done = whole(x.len());
    scalar::mul_assign(m, &mut x[done..], &y[done..]);
}

/// See [`super::scale_assign`].
///
/// # Safety
/// As for [`mul_assign`].
#[inline(always)]
unsafe fn scale_assign<V: Doubles>(m: &Modulus46, x: &mut [u64], w: u64) {
    let factor = Factor::new(m, w);
    // SAFETY: as for `mul_assign`.
    unsafe {
        let field = Field::<V>::new(m);
        let (value, quotient) = (V::splat(factor.value), V::splat(factor.quotient));
        for x in x.chunks_exact_mut(LANES) {
            let product = field.scale(V::from_words(x.as_ptr()), value, quotient);
            field.store_reduced(product, x.as_mut_ptr());
        }
    }
    let done = whole(x.len());
    scalar::scale_assign(m, &mut x[done..], w);
}

/// See [`super::scale_small`].
///
/// # Safety
/// As for [`mul_assign`].
#[inline(always)]
unsafe fn scale_small<V: Doubles>(m: &Modulus46, x: &[i32], w: u64, out: &mut [u64]) {
    let factor = Factor::new(m, w);
    // SAFETY: as for `mul_assign`.
    unsafe {
        let field = Field::<V>::new(m);
        let (value, quotient) = (V::splat(factor.value), V::splat(factor.quotient));
        for (x, out) in x.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
            let product = field.scale(V::from_small(x.as_ptr()), value, quotient);
            field.store_reduced(product, out.as_mut_ptr());
        }
    }
    let done = whole(x.len());
    scalar::scale_small(m, &x[done..], w, &mut out[done..]);
}

/// See [`super::add_divided`].
///
/// # Safety
/// As for [`mul_assign`].
#[inline(always)]
unsafe fn add_divided<V: Doubles>(
    m: &Modulus46,
    s: &Modulus46,
    inverse: u64,
    x: &[u64],
    r: &[u64],
    out: &mut [u64],
) {
    let factor = Factor::new(m, inverse);
    // SAFETY: as for `mul_assign`.
    unsafe {
        let (field, special) = (Field::<V>::new(m), Field::<V>::new(s));
        let (value, quotient) = (V::splat(factor.value), V::splat(factor.quotient));
        let words = (x.chunks_exact(LANES))
            .zip(r.chunks_exact(LANES))
            .zip(out.chunks_exact_mut(LANES));
        for ((x, r), out) in words {
            // r is below 2^46, so that it is centred exactly.
            let centred = special.reduce(V::from_words(r.as_ptr()));
            let difference = V::from_words(x.as_ptr()).sub(centred);
            let divided = field.scale(difference, value, quotient);
            let sum = V::from_words(out.as_ptr()).add(divided);
            field.store(sum, out.as_mut_ptr());
        }
    }
    let done = whole(x.len());
    scalar::add_divided(m, s, inverse, &x[done..], &r[done..], &mut out[done..]);
}
