//! Sixteen single-precision lanes, and the instructions that compute on them.
//!
//! Every kernel of this crate is written once, over [`Simd`], and compiled for each [`Backend`]. A
//! lane sees the same operations in the same order on all of them, fused multiplications included,
//! so results are the same to the bit on every processor; the tests demand it.

use pi_core::Backend;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

/// Number of lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A vector in memory.
pub(crate) type Lane = [f32; LANES];

/// Operations on vectors of sixteen lanes. A value of an implementing type proves that this
/// processor has the instructions.
pub(crate) trait Simd: Copy {
    /// A vector in registers.
    type V: Copy;

    /// Returns a vector with `x` in each lane.
    fn splat(self, x: f32) -> Self::V;
    /// Reads a vector.
    fn load(self, x: &Lane) -> Self::V;
    /// Writes a vector.
    fn store(self, x: &mut Lane, v: Self::V);
    /// Returns `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns `a * b + c`, rounded once.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Returns `c - a * b`, rounded once.
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Returns `a` where `a < b`, else `b`: that is `b` if either is not a number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns `a` where `a > b`, else `b`: that is `b` if either is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns `a` where `z > 0`, else zero.
    fn where_positive(self, z: Self::V, a: Self::V) -> Self::V;

    /// Computes a product by tiles that fill these registers.
    fn product(self, product: super::matrix::Product<'_>);
    /// Computes or adds a product whose left factor is transposed.
    fn transposed_product(self, product: super::matrix::TransposedProduct<'_>);

    /// Returns the zero vector.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// Reads the first lanes of a vector; the others are zero.
    #[inline(always)]
    fn load_first(self, x: &[f32]) -> Self::V {
        match x.first_chunk::<LANES>() {
            Some(x) => self.load(x),
            None => {
                let mut lane = [0.0; LANES];
                lane[..x.len()].copy_from_slice(x);
                self.load(&lane)
            }
        }
    }

    /// Writes the first lanes of a vector, as many as fit.
    #[inline(always)]
    fn store_first(self, x: &mut [f32], v: Self::V) {
        match x.first_chunk_mut::<LANES>() {
            Some(x) => self.store(x, v),
            None => {
                let mut lane = [0.0; LANES];
                self.store(&mut lane, v);
                let count = x.len();
                x.copy_from_slice(&lane[..count]);
            }
        }
    }
}

/// Work that is compiled for each back end.
pub(crate) trait Kernel {
    /// Does the work with these instructions. Implementations are `#[inline(always)]`, as is all
    /// that they call on the hot path: what is not inlined into the function of the back end is
    /// compiled without its instructions.
    fn run<S: Simd>(self, s: S);
}

/// Runs a kernel with the instructions of `backend`.
///
/// # Panics
/// If this processor lacks them.
pub(crate) fn run(backend: Backend, kernel: impl Kernel) {
    assert!(
        backend.is_supported(),
        "this processor does not run the {} back end",
        backend.name()
    );
    match backend {
        #[cfg(target_arch = "x86_64")]
        Backend::Avx2 => avx2::run(kernel),
        #[cfg(target_arch = "x86_64")]
        Backend::Avx512 => avx512::run(kernel),
        _ => kernel.run(scalar::Scalar),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on these operands, one after the other.
    struct All<'a> {
        operands: &'a [Lane; 3],
        out: &'a mut Vec<Lane>,
    }

    impl Kernel for All<'_> {
        fn run<S: Simd>(self, s: S) {
            let [a, b, c] = self.operands.each_ref().map(|x| s.load(x));
            let results = [
                s.add(a, b),
                s.sub(a, b),
                s.mul(a, b),
                s.mul_add(a, b, c),
                s.neg_mul_add(a, b, c),
                s.min(a, b),
                s.max(a, b),
                s.where_positive(a, b),
                s.load_first(&self.operands[0][..5]),
                s.splat(self.operands[1][3]),
            ];
            for v in results {
                let mut lane = [0.0; LANES];
                s.store(&mut lane, v);
                self.out.push(lane);
            }
            let mut part = [7.0; 5];
            s.store_first(&mut part, c);
            let mut lane = [0.0; LANES];
            lane[..5].copy_from_slice(&part);
            self.out.push(lane);
        }
    }

    #[test]
    fn every_back_end_computes_what_the_scalar_one_does() {
        let special = [
            0.0,
            -0.0,
            1.0,
            -1.5,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1e-40,
            3e38,
            0.1,
            -7.25,
        ];
        let at = |i: usize, step: usize| special[(i * step + step) % special.len()];
        for (first, second) in [(1, 2), (3, 7), (5, 1), (4, 9)] {
            let operands = [first, second, 6].map(|step| std::array::from_fn(|i| at(i, step)));
            let of = |backend| {
                let mut out = Vec::new();
                let operands = &operands;
                run(
                    backend,
                    All {
                        operands,
                        out: &mut out,
                    },
                );
                // Which of several NaNs comes out is the processor's choice.
                let bits = |x: &f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
                out.iter().flatten().map(bits).collect::<Vec<u32>>()
            };
            let expected = of(Backend::Scalar);
            assert_eq!(expected.len(), 11 * LANES);
            for backend in Backend::all().into_iter().filter(|b| b.is_supported()) {
                assert_eq!(of(backend), expected, "{}", backend.name());
            }
        }
    }
}
