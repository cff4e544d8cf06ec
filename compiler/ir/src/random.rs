//! Random legal graphs and circuits, from a seed, for property tests.
//!
//! Everything a verifier admits can occur: several convolutions per layer, even kernels, kernels
//! larger than the map, uneven padding and strides, odd sizes, 1x1 and dense layers, residuals with
//! and without windows, pools before the activation, every kind of element, layers without a ReLU.
//! A circuit's bounds come from interval analysis with its weights, so that no input breaks them.

mod circuit;
mod graph;
mod wide;

pub use circuit::{Options, circuit, input, pixels, tightened, trace, weights_file};
pub use graph::{GraphOptions, graph};
pub use wide::wide;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Draws from a seeded stream; the same seed gives the same draws on every platform.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Draw(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `0..n`, up to a bias of `n / 2^64`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in `low..=high`.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below(high.abs_diff(low) + 1) as i64
    }

    /// Uniform in `low..=high`.
    pub(crate) fn size(&mut self, low: u32, high: u32) -> u32 {
        self.between(low.into(), high.max(low).into()) as u32
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `low..high`.
    pub(crate) fn float(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit() as f32
    }

    /// Two independent normals of mean 0 and deviation 1 (Box and Muller, 1958).
    pub(crate) fn normals(&mut self) -> [f64; 2] {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
        [radius * cos, radius * sin]
    }
}
