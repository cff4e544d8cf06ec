//! The definition of each operation, lane by lane.

use super::{LANES, Lane, Simd};
use crate::matrix::{self, Product, TransposedProduct};

/// Portable code.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

#[inline(always)]
fn zip(a: Lane, b: Lane, f: impl Fn(f32, f32) -> f32) -> Lane {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type V = Lane;

    #[inline(always)]
    fn splat(self, x: f32) -> Lane {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &Lane) -> Lane {
        *x
    }
    #[inline(always)]
    fn store(self, x: &mut Lane, v: Lane) {
        *x = v;
    }
    #[inline(always)]
    fn add(self, a: Lane, b: Lane) -> Lane {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Lane, b: Lane) -> Lane {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Lane, b: Lane) -> Lane {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn mul_add(self, a: Lane, b: Lane, c: Lane) -> Lane {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Lane, b: Lane, c: Lane) -> Lane {
        std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn min(self, a: Lane, b: Lane) -> Lane {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Lane, b: Lane) -> Lane {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn where_positive(self, z: Lane, a: Lane) -> Lane {
        zip(z, a, |z, a| if z > 0.0 { a } else { 0.0 })
    }

    #[inline(always)]
    fn product(self, product: Product<'_>) {
        matrix::product::<Self, 4, 1>(self, product);
    }
    #[inline(always)]
    fn transposed_product(self, product: TransposedProduct<'_>) {
        matrix::transposed_product::<Self, 4, 1>(self, product);
    }
}
