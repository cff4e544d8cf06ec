//! Transforms of length 8192 over the first prime, on the back end that `PI_BACKEND` chooses, and
//! automorphisms.

use super::Criterion;
use pi_ring::ntt::{RLWE_MODULI, RLWE_PRIMES};
use pi_ring::poly::Automorphism;
use pi_rlwe::N;
use std::cell::LazyCell;
use std::hint::black_box;

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    let ntt = RLWE_PRIMES[0].transform(N);
    let modulus = RLWE_MODULI[0];
    let mut x: Vec<u64> = (0..N as u64).collect();
    group.bench_function("forward NTT", |b| b.iter(|| ntt.forward(black_box(&mut x))));
    group.bench_function("inverse NTT", |b| {
        b.iter(|| ntt.inverse_unscaled(black_box(&mut x)));
    });
    let mut out = vec![0; N];
    let automorphism = LazyCell::new(|| Automorphism::new(5, N));
    x.iter_mut().for_each(|x| *x %= modulus.value());
    group.bench_function("automorphism of coefficients", |b| {
        b.iter(|| automorphism.apply_coefficients(black_box(&x), &mut out, &modulus));
    });
    group.bench_function("automorphism of values", |b| {
        b.iter(|| automorphism.apply_values(black_box(&x), &mut out));
    });
    group.finish();
}
