//! The transforms of F(4x4, 3x3), in one dimension, and their adjoints.
//!
//! With the interpolation points 0, 1, -1, 2, -2 and infinity (Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks", CVPR 2016): `y = A^T [(G g) * (B^T d)]` for six inputs `d`,
//! three weights `g` and four outputs `y`.

use crate::simd::Simd;

/// A linear map of `N` values to `M`.
///
/// Not a function that is passed: what is passed may be compiled by itself, without the back end's
/// instructions.
pub(super) trait Transform<const N: usize, const M: usize> {
    /// Applies the map in each lane.
    fn apply<S: Simd>(s: S, x: [S::V; N]) -> [S::V; M];
}

/// The map `B^T d`.
pub(super) struct Input;

impl Transform<6, 6> for Input {
    #[inline(always)]
    fn apply<S: Simd>(s: S, d: [S::V; 6]) -> [S::V; 6] {
        let (two, four, five) = (s.splat(2.0), s.splat(4.0), s.splat(5.0));
        let even = s.neg_mul_add(four, d[2], d[4]);
        let odd = s.neg_mul_add(four, d[1], d[3]);
        let outer = s.sub(d[4], d[2]);
        let inner = s.mul(two, s.sub(d[3], d[1]));
        [
            s.add(s.neg_mul_add(five, d[2], s.mul(four, d[0])), d[4]),
            s.add(even, odd),
            s.sub(even, odd),
            s.add(outer, inner),
            s.sub(outer, inner),
            s.add(s.neg_mul_add(five, d[3], s.mul(four, d[1])), d[5]),
        ]
    }
}

/// The map `B v`.
pub(super) struct InputAdjoint;

impl Transform<6, 6> for InputAdjoint {
    #[inline(always)]
    fn apply<S: Simd>(s: S, v: [S::V; 6]) -> [S::V; 6] {
        let (two, four, five) = (s.splat(2.0), s.splat(4.0), s.splat(5.0));
        let (sum12, difference12) = (s.add(v[1], v[2]), s.sub(v[1], v[2]));
        let (sum34, difference34) = (s.add(v[3], v[4]), s.sub(v[3], v[4]));
        let ends = s.sub(v[5], difference12);
        let middle = s.neg_mul_add(five, v[0], s.zero());
        [
            s.mul(four, v[0]),
            s.neg_mul_add(two, difference34, s.mul(four, ends)),
            s.sub(s.neg_mul_add(four, sum12, middle), sum34),
            s.neg_mul_add(five, v[5], s.mul_add(two, difference34, difference12)),
            s.add(v[0], s.add(sum12, sum34)),
            v[5],
        ]
    }
}

/// The map `A^T m`.
pub(super) struct Output;

impl Transform<6, 4> for Output {
    #[inline(always)]
    fn apply<S: Simd>(s: S, m: [S::V; 6]) -> [S::V; 4] {
        let (two, four, eight) = (s.splat(2.0), s.splat(4.0), s.splat(8.0));
        let (sum12, difference12) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
        let (sum34, difference34) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
        [
            s.add(m[0], s.add(sum12, sum34)),
            s.mul_add(two, difference34, difference12),
            s.mul_add(four, sum34, sum12),
            s.add(s.mul_add(eight, difference34, difference12), m[5]),
        ]
    }
}

/// The map `A y`.
pub(super) struct OutputAdjoint;

impl Transform<4, 6> for OutputAdjoint {
    #[inline(always)]
    fn apply<S: Simd>(s: S, y: [S::V; 4]) -> [S::V; 6] {
        let (two, four, eight) = (s.splat(2.0), s.splat(4.0), s.splat(8.0));
        let (even, odd) = (s.add(y[0], y[2]), s.add(y[1], y[3]));
        let far_even = s.mul_add(four, y[2], y[0]);
        let far_odd = s.mul_add(eight, y[3], s.mul(two, y[1]));
        [
            y[0],
            s.add(even, odd),
            s.sub(even, odd),
            s.add(far_even, far_odd),
            s.sub(far_even, far_odd),
            y[3],
        ]
    }
}

/// The map `G g`.
pub(super) struct Weight;

impl Transform<3, 6> for Weight {
    #[inline(always)]
    fn apply<S: Simd>(s: S, g: [S::V; 3]) -> [S::V; 6] {
        let (quarter, sixth) = (s.splat(0.25), s.splat(1.0 / 6.0));
        let (twelfth, twenty_fourth) = (s.splat(1.0 / 12.0), s.splat(1.0 / 24.0));
        let ends = s.mul(sixth, s.add(g[0], g[2]));
        let far = s.mul_add(twenty_fourth, g[0], s.mul(sixth, g[2]));
        [
            s.mul(quarter, g[0]),
            s.neg_mul_add(sixth, g[1], s.sub(s.zero(), ends)),
            s.sub(s.mul(sixth, g[1]), ends),
            s.mul_add(twelfth, g[1], far),
            s.neg_mul_add(twelfth, g[1], far),
            g[2],
        ]
    }
}

/// The map `G^T u`.
pub(super) struct WeightAdjoint;

impl Transform<6, 3> for WeightAdjoint {
    #[inline(always)]
    fn apply<S: Simd>(s: S, u: [S::V; 6]) -> [S::V; 3] {
        let (quarter, sixth) = (s.splat(0.25), s.splat(1.0 / 6.0));
        let (twelfth, twenty_fourth) = (s.splat(1.0 / 12.0), s.splat(1.0 / 24.0));
        let (sum12, difference12) = (s.add(u[1], u[2]), s.sub(u[2], u[1]));
        let (sum34, difference34) = (s.add(u[3], u[4]), s.sub(u[3], u[4]));
        [
            s.mul_add(
                twenty_fourth,
                sum34,
                s.neg_mul_add(sixth, sum12, s.mul(quarter, u[0])),
            ),
            s.mul_add(twelfth, difference34, s.mul(sixth, difference12)),
            s.mul_add(sixth, s.sub(sum34, sum12), u[5]),
        ]
    }
}
