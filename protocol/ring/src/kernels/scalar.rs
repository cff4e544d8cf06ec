//! The definition of each kernel. `inline(always)`, so that other back ends can compile the same
//! bodies for their instructions.

use super::{Kernels, NEGATED};
use crate::Modulus46;

pub(super) static KERNELS: Kernels = Kernels {
    add_assign,
    sub_assign,
    butterfly,
    lift_centred,
    add_small_assign,
    sum_adjacent,
    mul_assign,
    scale_assign,
    scale_small,
    add_divided,
    gather_signed,
    gather,
};

/// See [`super::add_assign`].
#[inline(always)]
pub(super) fn add_assign(m: &Modulus46, x: &mut [u64], y: &[u64]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x = m.add(*x, y);
    }
}

/// See [`super::sub_assign`].
#[inline(always)]
pub(super) fn sub_assign(m: &Modulus46, x: &mut [u64], y: &[u64]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x = m.sub(*x, y);
    }
}

/// See [`super::butterfly`].
#[inline(always)]
pub(super) fn butterfly(m: &Modulus46, t: usize, x: &mut [u64], y: &[u64], difference: &mut [u64]) {
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

/// See [`super::lift_centred`].
#[inline(always)]
pub(super) fn lift_centred(from: &Modulus46, to: &Modulus46, x: &[u64], out: &mut [u64]) {
    let (half, shift) = (from.value() / 2, to.value().wrapping_sub(from.value()));
    for (out, &x) in out.iter_mut().zip(x) {
        let above_half = (half.wrapping_sub(x) as i64 >> 63) as u64;
        *out = x.wrapping_add(shift & above_half);
    }
}

/// See [`super::add_small_assign`].
#[inline(always)]
pub(super) fn add_small_assign(m: &Modulus46, x: &mut [u64], e: &[i64]) {
    for (x, &e) in x.iter_mut().zip(e) {
        *x = m.add(*x, m.from_small(e));
    }
}

/// See [`super::sum_adjacent`].
#[inline(always)]
pub(super) fn sum_adjacent(m: &Modulus46, x: &[u64], out: &mut [u64]) {
    const LOW: u64 = (1 << 46) - 1;
    let c = m.fold();
    let gap = x.len() / out.len();
    for (out, x) in out.iter_mut().zip(x.chunks_exact(gap)) {
        *out = x.iter().sum();
    }
    for out in out {
        // Below 2^62, of which the upper part times c is below 2^36.
        *out = m.subtract_once((*out & LOW) + (*out >> 46) * c);
    }
}

/// See [`super::mul_assign`].
#[inline(always)]
pub(super) fn mul_assign(m: &Modulus46, x: &mut [u64], y: &[u64]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x = m.mul(*x, y);
    }
}

/// See [`super::scale_assign`].
#[inline(always)]
pub(super) fn scale_assign(m: &Modulus46, x: &mut [u64], w: u64) {
    m.scale_assign(x, w);
}

/// See [`super::scale_small`].
#[inline(always)]
pub(super) fn scale_small(m: &Modulus46, x: &[i32], w: u64, out: &mut [u64]) {
    let w_shoup = m.shoup(w);
    for (out, &x) in out.iter_mut().zip(x) {
        *out = m.mul_shoup(m.from_small(i64::from(x)), w, w_shoup);
    }
}

/// See [`super::add_divided`].
#[inline(always)]
pub(super) fn add_divided(
    m: &Modulus46,
    s: &Modulus46,
    inverse: u64,
    x: &[u64],
    r: &[u64],
    out: &mut [u64],
) {
    let inverse_shoup = m.shoup(inverse);
    for ((out, &x), &r) in out.iter_mut().zip(x).zip(r) {
        // x - r, plus s where r stands for r - s, plus 2 q to stay positive.
        let above_half = ((s.value() / 2).wrapping_sub(r) as i64 >> 63) as u64;
        let difference = x + 2 * m.value() - r + (s.value() & above_half);
        *out = m.add(*out, m.mul_shoup(difference, inverse, inverse_shoup));
    }
}

/// See [`super::gather_signed`].
#[inline(always)]
pub(super) fn gather_signed(m: &Modulus46, sources: &[u32], x: &[u64], out: &mut [u64]) {
    for (out, &source) in out.iter_mut().zip(sources) {
        let v = x[(source & !NEGATED) as usize];
        // The branch depends on the public permutation only.
        *out = if source & NEGATED != 0 { m.neg(v) } else { v };
    }
}

/// See [`super::gather`].
#[inline(always)]
pub(super) fn gather(sources: &[u32], x: &[u64], out: &mut [u64]) {
    for (out, &source) in out.iter_mut().zip(sources) {
        *out = x[source as usize];
    }
}
