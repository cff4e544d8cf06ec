//! Exact arithmetic modulo primes just below 2^46 in double precision: what processors without
//! 52-bit integer multiplication do instead.
//!
//! A residue is an integer held by an `f64`, of either sign and often larger than the modulus. The
//! product of two of them has up to 100 bits: `h = a b` keeps the upper 53, and a fused
//! multiplication returns the rest, `l = a b - h`, exactly. With `k = round(a b / q)` the integer
//! `a b - k q` is small, so that `(h - k q) + l` is exact as well, whatever the roundings before
//! (Dekker 1971; van der Hoeven, Lecerf, Quintin, "Modular SIMD arithmetic in Mathemagix", ACM TOMS
//! 43, 2016). A product by a constant takes six instructions for four residues.
//!
//! Integers are rounded by adding and subtracting [`ROUND`], under the default rounding to nearest.
//! No branch depends on a value, and no operand is subnormal, so the time depends on lengths only.
//!
//! # Back ends
//! [`Doubles`] is four numbers: one register of AVX2 with FMA, two of NEON. Whoever is generic over
//! it is `inline(always)`, and is compiled for the instructions of the function that calls it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

use crate::Modulus46;

/// The numbers in a vector.
pub(crate) const LANES: usize = 4;

/// Adding `1.5 * 2^52` to a number below `2^51` in size leaves no bit for fractions.
pub(crate) const ROUND: f64 = 6_755_399_441_055_744.0;

/// Four double-precision numbers.
///
/// # Safety
/// Of all functions: the instructions of the type are present, and pointers are valid for
/// [`LANES`] numbers, of any alignment.
pub(crate) trait Doubles: Copy {
    /// `x` four times.
    unsafe fn splat(x: f64) -> Self;
    /// The numbers at `x`.
    unsafe fn load(x: *const f64) -> Self;
    /// Writes the numbers to `x`.
    unsafe fn store(self, x: *mut f64);
    /// The integers at `x`, below 2^52.
    unsafe fn from_words(x: *const u64) -> Self;
    /// The integers at `x`.
    unsafe fn from_small(x: *const i32) -> Self;
    /// Writes integers from 0 to below 2^52.
    unsafe fn to_words(self, x: *mut u64);
    /// Asks for the cache line of `x`, which may lie anywhere.
    unsafe fn prefetch(x: *const u64);
    /// `self + y`.
    unsafe fn add(self, y: Self) -> Self;
    /// `self - y`.
    unsafe fn sub(self, y: Self) -> Self;
    /// `self y`, rounded.
    unsafe fn mul(self, y: Self) -> Self;
    /// `self y + z`, rounded once.
    unsafe fn mul_add(self, y: Self, z: Self) -> Self;
    /// `self y - z`, rounded once.
    unsafe fn mul_sub(self, y: Self, z: Self) -> Self;
    /// `z - self y`, rounded once.
    unsafe fn neg_mul_add(self, y: Self, z: Self) -> Self;
    /// `self`, and `y` more where it is negative.
    unsafe fn add_where_negative(self, y: Self) -> Self;
    /// Transposes four vectors.
    unsafe fn transpose(x: &mut [Self; LANES]);
}

/// A constant factor, and how often the modulus goes into it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Factor {
    /// The centred residue, at most `q / 2` in size.
    pub(crate) value: f64,
    /// That over the modulus, rounded.
    pub(crate) quotient: f64,
}

impl Factor {
    /// The factor `w`, in `0..q`.
    pub(crate) fn new(m: &Modulus46, w: u64) -> Self {
        let q = m.value() as i64;
        let centred = w as i64 - if w as i64 > q / 2 { q } else { 0 };
        Self {
            value: centred as f64,
            quotient: centred as f64 / q as f64,
        }
    }
}

/// The constants of a prime in all lanes.
#[derive(Clone, Copy)]
pub(crate) struct Field<V> {
    q: V,
    /// `1 / q`, rounded.
    inverse: V,
    round: V,
}

impl<V: Doubles> Field<V> {
    /// The constants of `m`.
    ///
    /// # Safety
    /// The instructions of `V` are present, as for all functions here.
    #[inline(always)]
    pub(crate) unsafe fn new(m: &Modulus46) -> Self {
        // SAFETY: the caller's promise, here and in all functions of this block.
        unsafe {
            Self {
                q: V::splat(m.value() as f64),
                inverse: V::splat(1.0 / m.value() as f64),
                round: V::splat(ROUND),
            }
        }
    }

    /// `x w`, at most `(1/2 + |x| / 2^54) q` in size, for integers `|x| <= 2^52`, and at most
    /// `2^50` unless `w` is small: `|x w| <= 2^96`.
    ///
    /// `k` is off by `1/2` for the rounding to an integer and by `|x| / 2^54` for that of `w / q`,
    /// which is at most 1/2 itself. Both of `h - k q` and the sum with `l` are integers below 2^47.
    #[inline(always)]
    pub(crate) unsafe fn scale(&self, x: V, w: V, quotient: V) -> V {
        // SAFETY: as for `new`.
        unsafe {
            let k = x.mul_add(quotient, self.round).sub(self.round);
            let h = x.mul(w);
            let l = x.mul_sub(w, h);
            k.neg_mul_add(self.q, h).add(l)
        }
    }

    /// `x y`, at most `(1/2 + 2^-5) q` in size, for integers with `|x y| < 2^93`.
    ///
    /// `x y / q` is below 2^47, and the relative error of the upper part times `1 / q` below 2^-52.
    #[inline(always)]
    pub(crate) unsafe fn mul(&self, x: V, y: V) -> V {
        // SAFETY: as for `new`.
        unsafe {
            let h = x.mul(y);
            let l = x.mul_sub(y, h);
            let k = h.mul_add(self.inverse, self.round).sub(self.round);
            k.neg_mul_add(self.q, h).add(l)
        }
    }

    /// `x` modulo `q`, for integers `|x| <= 2^53`: at most `(q + 1) / 2` in size, and the centred
    /// representative if `|x| < 2^46`.
    ///
    /// `q` is odd, so that `x / q` is at least `2^-47` away from the middle of two integers. The
    /// error of `x (1 / q)` is below `2^-46`, and below `2^-53` for the smaller `x`.
    #[inline(always)]
    pub(crate) unsafe fn reduce(&self, x: V) -> V {
        // SAFETY: as for `new`.
        unsafe {
            let k = x.mul_add(self.inverse, self.round).sub(self.round);
            k.neg_mul_add(self.q, x)
        }
    }

    /// Writes `x` modulo `q` in `0..q`, for integers `|x| <= 2^53`.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, x: V, out: *mut u64) {
        // SAFETY: as for `new`; `out` is valid.
        unsafe { self.reduce(x).add_where_negative(self.q).to_words(out) }
    }

    /// Writes `x` in `0..q`, for integers `-q <= x < q`.
    #[inline(always)]
    pub(crate) unsafe fn store_reduced(&self, x: V, out: *mut u64) {
        // SAFETY: as for `new`; `out` is valid.
        unsafe { x.add_where_negative(self.q).to_words(out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::RLWE_MODULI;
    use pi_core::Backend;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    /// Integers up to `2^bits` in size, the extremes among them.
    fn integers(bits: u32, seed: u64) -> Vec<i64> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let edge = 1i64 << bits;
        let random = std::iter::repeat_with(|| (rng.next_u64() >> (63 - bits)) as i64 - edge);
        let edges = [0, 1, -1, edge, -edge, edge - 1, 1 - edge, edge / 2];
        edges.into_iter().chain(random.take(56)).collect()
    }

    #[inline(always)]
    unsafe fn check<V: Doubles>() {
        for m in RLWE_MODULI {
            let q = i128::from(m.value());
            let half = (m.value() / 2) as i64;
            // SAFETY: the caller promises the instructions, and all arrays have four numbers.
            unsafe {
                let field = Field::<V>::new(&m);
                let store = |x: V| {
                    let mut out = [0.0; LANES];
                    x.store(out.as_mut_ptr());
                    out.map(|x| x as i128)
                };
                let load = |x: &[i64]| V::load([x[0], x[1], x[2], x[3]].map(|x| x as f64).as_ptr());
                let congruent = |result: V, expected: [i128; LANES], most: i128| {
                    for (result, expected) in store(result).into_iter().zip(expected) {
                        assert_eq!(result.rem_euclid(q), expected.rem_euclid(q));
                        assert!(result.abs() <= most, "{result} for {expected}");
                    }
                    let mut words = [0; LANES];
                    field.store(result, words.as_mut_ptr());
                    for (word, expected) in words.into_iter().zip(expected) {
                        assert_eq!(i128::from(word), expected.rem_euclid(q));
                    }
                };
                for w in [0, 1, half, half + 1, 2 * half, 1 << 45, 0x1234_5678_9abc] {
                    let factor = Factor::new(&m, w as u64);
                    let (value, quotient) = (V::splat(factor.value), V::splat(factor.quotient));
                    for x in integers(50, 1).chunks_exact(LANES) {
                        let expected = std::array::from_fn(|i| i128::from(x[i]) * i128::from(w));
                        let most = q / 2 + q / 16 + 1;
                        congruent(field.scale(load(x), value, quotient), expected, most);
                    }
                    // Small factors take larger numbers.
                    if w == 1 {
                        for x in integers(52, 2).chunks_exact(LANES) {
                            let expected = std::array::from_fn(|i| i128::from(x[i]));
                            congruent(field.scale(load(x), value, quotient), expected, q);
                        }
                    }
                }
                let (xs, ys) = (integers(46, 3), integers(46, 4));
                let mut others = ys.clone();
                others.reverse();
                for ys in [ys, others] {
                    for (x, y) in xs.chunks_exact(LANES).zip(ys.chunks_exact(LANES)) {
                        let expected = std::array::from_fn(|i| i128::from(x[i]) * i128::from(y[i]));
                        let most = q / 2 + q / 32 + 1;
                        congruent(field.mul(load(x), load(y)), expected, most);
                    }
                }
                let near = |k: i64| {
                    let middle = k * m.value() as i64;
                    [
                        middle + half,
                        middle + half + 1,
                        middle - half,
                        middle - half - 1,
                    ]
                };
                let ties: Vec<i64> = [0, 1, -1, 63, -63, 120, -120]
                    .into_iter()
                    .flat_map(near)
                    .collect();
                for x in integers(53, 5)
                    .chunks_exact(LANES)
                    .chain(ties.chunks_exact(LANES))
                {
                    let expected = std::array::from_fn(|i| i128::from(x[i]));
                    congruent(field.reduce(load(x)), expected, q / 2 + 1);
                }
                let words = [0, half as u64, half as u64 + 1, m.value() - 1];
                let centred = store(field.reduce(V::from_words(words.as_ptr())));
                assert_eq!(centred, [0, i128::from(half), -i128::from(half), -1]);
                let small = V::from_small([i32::MIN, -1, 0, i32::MAX].as_ptr());
                assert_eq!(store(small), [i32::MIN, -1, 0, i32::MAX].map(i128::from));
                let mut square = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
                    .map(|row| load(&row));
                V::transpose(&mut square);
                let rows = square.map(store);
                for (i, row) in rows.into_iter().enumerate() {
                    assert_eq!(row, std::array::from_fn(|j| (4 * j + i) as i128));
                }
            }
        }
    }

    #[test]
    fn arithmetic_is_exact_at_its_bounds() {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            unsafe fn on_avx2() {
                // SAFETY: this function has the instructions.
                unsafe { check::<Avx2>() }
            }
            if Backend::Avx2.is_supported() {
                // SAFETY: just asked for.
                unsafe { on_avx2() }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if Backend::Neon.is_supported() {
            // SAFETY: just asked for.
            unsafe { check::<Neon>() }
        }
    }
}
