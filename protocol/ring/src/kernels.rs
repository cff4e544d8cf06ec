//! The hot loops of packing ciphertexts, over residues modulo primes just below 2^46.
//!
//! # Back ends
//! Each is a table of functions on slices:
//! - `scalar`: the definition;
//! - `doubles`: those that multiply in double precision, for AVX2 with FMA and for NEON, the others
//!   compiled again;
//! - `avx512`: the same bodies compiled again for AVX-512F, VL and DQ, or, where the compiler does
//!   not emit the right instructions (52-bit multiplication, gathers), written with intrinsics;
//!   needs IFMA too.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod doubles;
mod scalar;

use crate::Modulus46;
use pi_core::Backend;

/// The kernels of one back end. The functions of the module document each, and check its lengths.
struct Kernels {
    add_assign: fn(&Modulus46, &mut [u64], &[u64]),
    sub_assign: fn(&Modulus46, &mut [u64], &[u64]),
    butterfly: fn(&Modulus46, usize, &mut [u64], &[u64], &mut [u64]),
    lift_centred: fn(&Modulus46, &Modulus46, &[u64], &mut [u64]),
    add_small_assign: fn(&Modulus46, &mut [u64], &[i64]),
    sum_adjacent: fn(&Modulus46, &[u64], &mut [u64]),
    mul_assign: fn(&Modulus46, &mut [u64], &[u64]),
    scale_assign: fn(&Modulus46, &mut [u64], u64),
    scale_small: fn(&Modulus46, &[i32], u64, &mut [u64]),
    add_divided: AddDivided,
    gather_signed: fn(&Modulus46, &[u32], &[u64], &mut [u64]),
    gather: fn(&[u32], &[u64], &mut [u64]),
}

/// The parameters are those of [`add_divided`].
type AddDivided = fn(&Modulus46, &Modulus46, u64, &[u64], &[u64], &mut [u64]);

impl Kernels {
    /// The kernels of a back end that the machine supports.
    #[inline]
    fn on(backend: Backend) -> &'static Kernels {
        match backend {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => &avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => &doubles::avx2::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Backend::Neon => &doubles::neon::KERNELS,
            _ => &scalar::KERNELS,
        }
    }

    /// The kernels that this process runs.
    #[inline]
    fn get() -> &'static Kernels {
        Self::on(Backend::get())
    }
}

/// `x += y`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(m: &Modulus46, x: &mut [u64], y: &[u64]) {
    assert_eq!(x.len(), y.len());
    (Kernels::get().add_assign)(m, x, y);
}

/// `x -= y`, element by element.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn sub_assign(m: &Modulus46, x: &mut [u64], y: &[u64]) {
    assert_eq!(x.len(), y.len());
    (Kernels::get().sub_assign)(m, x, y);
}

/// Sets `x` to `x + X^t y` and `difference` to `x - X^t y`, all coefficients modulo `X^n + 1`,
/// `t <= n`.
///
/// # Panics
/// If the lengths differ or `t` exceeds them.
pub fn butterfly(m: &Modulus46, t: usize, x: &mut [u64], y: &[u64], difference: &mut [u64]) {
    assert!(x.len() == y.len() && difference.len() == y.len());
    (Kernels::get().butterfly)(m, t, x, y, difference);
}

/// Writes to `out` the residues modulo `to` of the centred representatives of `x` modulo `from`.
///
/// # Panics
/// If the lengths differ.
pub fn lift_centred(from: &Modulus46, to: &Modulus46, x: &[u64], out: &mut [u64]) {
    assert_eq!(x.len(), out.len());
    (Kernels::get().lift_centred)(from, to, x, out);
}

/// Adds small signed integers, `|e| < q`, to residues.
///
/// # Panics
/// If the lengths differ.
pub fn add_small_assign(m: &Modulus46, x: &mut [u64], e: &[i64]) {
    assert_eq!(x.len(), e.len());
    (Kernels::get().add_small_assign)(m, x, e);
}

/// Writes to each entry of `out` the sum of `x.len() / out.len()` adjacent residues.
///
/// # Preconditions
/// At most 2^16 residues a sum.
pub fn sum_adjacent(m: &Modulus46, x: &[u64], out: &mut [u64]) {
    (Kernels::get().sum_adjacent)(m, x, out);
}

/// Writes `x y` to `x`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn mul_assign(m: &Modulus46, x: &mut [u64], y: &[u64]) {
    assert_eq!(x.len(), y.len());
    (Kernels::get().mul_assign)(m, x, y);
}

/// Writes `x w` to `x` for a constant `w`.
///
/// # Preconditions
/// Entries and `w` in `0..q`.
pub fn scale_assign(m: &Modulus46, x: &mut [u64], w: u64) {
    (Kernels::get().scale_assign)(m, x, w);
}

/// Writes `x w` to `out` for small signed `x` and a constant `w`.
///
/// # Preconditions
/// `w` in `0..q`.
/// # Panics
/// If the lengths differ.
pub fn scale_small(m: &Modulus46, x: &[i32], w: u64, out: &mut [u64]) {
    assert_eq!(x.len(), out.len());
    (Kernels::get().scale_small)(m, x, w, out);
}

/// Adds `(x - [r]_s) / s` modulo `q` to `out`: `x` has residues modulo `q`, `r` the same integer's
/// modulo `s`, and `[r]_s` is centred, so that this is the rounded quotient. `inverse` is `s^-1 mod
/// q`.
///
/// # Panics
/// If the lengths differ.
pub fn add_divided(
    m: &Modulus46,
    s: &Modulus46,
    inverse: u64,
    x: &[u64],
    r: &[u64],
    out: &mut [u64],
) {
    assert!(x.len() == out.len() && r.len() == out.len());
    (Kernels::get().add_divided)(m, s, inverse, x, r, out);
}

/// Bit of an entry of `sources` that [`gather_signed`] takes as its sign.
pub(crate) const NEGATED: u32 = 1 << 31;

/// Writes `±x[source]` to each entry of `out`: the low 31 bits of an entry of `sources` are the
/// index, [`NEGATED`] is the sign.
///
/// # Panics
/// If an index is out of range or `sources` and `out` differ in length.
pub(crate) fn gather_signed(m: &Modulus46, sources: &[u32], x: &[u64], out: &mut [u64]) {
    assert_eq!(sources.len(), out.len());
    (Kernels::get().gather_signed)(m, sources, x, out);
}

/// Writes `x[source]` to each entry of `out`.
///
/// # Panics
/// If an index is out of range or `sources` and `out` differ in length.
pub(crate) fn gather(sources: &[u32], x: &[u64], out: &mut [u64]) {
    assert_eq!(sources.len(), out.len());
    (Kernels::get().gather)(sources, x, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::RLWE_MODULI;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn residues(m: &Modulus46, n: usize, seed: u64) -> Vec<u64> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let q = m.value();
        let mut v: Vec<u64> = (0..n).map(|_| m.reduce_u64(rng.next_u64())).collect();
        for (x, edge) in v.iter_mut().zip([0, q - 1, q / 2, q / 2 + 1]) {
            *x = edge;
        }
        v
    }

    #[test]
    fn every_kernel_does_what_it_says() {
        for backend in crate::supported_backends() {
            check(Kernels::on(backend));
        }
    }

    fn check(kernels: &Kernels) {
        let n = 37;
        for (m, s) in RLWE_MODULI.into_iter().zip(RLWE_MODULI.into_iter().rev()) {
            let (x, y) = (residues(&m, n, 1), residues(&m, n, 2));
            let (mut sum, mut difference) = (x.clone(), x.clone());
            (kernels.add_assign)(&m, &mut sum, &y);
            (kernels.sub_assign)(&m, &mut difference, &y);
            for i in 0..n {
                assert_eq!(sum[i], m.add(x[i], y[i]));
                assert_eq!(difference[i], m.sub(x[i], y[i]));
            }
            let mut scaled = x.clone();
            (kernels.scale_assign)(&m, &mut scaled, y[9]);
            for i in 0..n {
                assert_eq!(scaled[i], m.mul(x[i], y[9]));
            }
            let mut product = x.clone();
            (kernels.mul_assign)(&m, &mut product, &y);
            for i in 0..n {
                assert_eq!(product[i], m.mul(x[i], y[i]));
            }
            for gap in [1, 4, 32] {
                let mut sums = vec![0; 32 / gap];
                (kernels.sum_adjacent)(&m, &x[..32], &mut sums);
                for (i, &sum) in sums.iter().enumerate() {
                    assert_eq!(
                        sum,
                        x[i * gap..][..gap].iter().fold(0, |s, &x| m.add(s, x)),
                        "{gap}"
                    );
                }
            }
            let small: Vec<i64> = (0..n as i64).map(|i| i - 18).collect();
            let mut noisy = x.clone();
            (kernels.add_small_assign)(&m, &mut noisy, &small);
            for i in 0..n {
                assert_eq!(noisy[i], m.add(x[i], m.from_i64(small[i])));
            }
            for t in [0, 1, 8, 36, 37] {
                let mut shifted = vec![0; n];
                for i in 0..n {
                    shifted[(i + t) % n] = if i + t >= n { m.neg(y[i]) } else { y[i] };
                }
                let (mut plus, mut minus) = (x.clone(), vec![0; n]);
                (kernels.butterfly)(&m, t, &mut plus, &y, &mut minus);
                for i in 0..n {
                    assert_eq!(
                        (plus[i], minus[i]),
                        (m.add(x[i], shifted[i]), m.sub(x[i], shifted[i])),
                        "{t}"
                    );
                }
            }
            let centred = |x: u64, m: &Modulus46| {
                if x > m.value() / 2 {
                    x as i64 - m.value() as i64
                } else {
                    x as i64
                }
            };
            let mut lifted = vec![0; n];
            (kernels.lift_centred)(&m, &s, &x, &mut lifted);
            for i in 0..n {
                assert_eq!(lifted[i], s.from_i64(centred(x[i], &m)));
            }
            if m != s {
                let r = residues(&s, n, 3);
                let inverse = m.inv(m.reduce_u64(s.value()));
                let mut out = y.clone();
                (kernels.add_divided)(&m, &s, inverse, &x, &r, &mut out);
                for i in 0..n {
                    let quotient = m.mul(m.sub(x[i], m.from_i64(centred(r[i], &s))), inverse);
                    assert_eq!(out[i], m.add(y[i], quotient));
                }
            }
            let signed: Vec<i32> = (0..n as i32)
                .map(|i| i.wrapping_mul(119_304_647).wrapping_sub(i32::MAX))
                .collect();
            let mut out = vec![0; n];
            (kernels.scale_small)(&m, &signed, y[5], &mut out);
            for i in 0..n {
                assert_eq!(out[i], m.mul(m.from_i64(i64::from(signed[i])), y[5]));
            }
            let sources: Vec<u32> = (0..n as u32).map(|i| i * 7 % n as u32).collect();
            (kernels.gather)(&sources, &x, &mut out);
            for (i, &source) in sources.iter().enumerate() {
                assert_eq!(out[i], x[source as usize]);
            }
            let sources: Vec<u32> = (0..n as u32)
                .map(|i| (i * 5 % n as u32) | ((i % 3) & 1) << 31)
                .collect();
            let mut out = vec![0; n];
            (kernels.gather_signed)(&m, &sources, &x, &mut out);
            for (i, &source) in sources.iter().enumerate() {
                let v = x[(source << 1 >> 1) as usize];
                assert_eq!(out[i], if source >> 31 == 1 { m.neg(v) } else { v });
            }
        }
    }

    #[test]
    #[should_panic]
    fn gathering_beyond_the_end_panics() {
        let mut out = [0; 8];
        gather_signed(
            &RLWE_MODULI[0],
            &[0, 0, 0, 0, 0, 0, 0, 8],
            &[1; 8],
            &mut out,
        );
    }
}
