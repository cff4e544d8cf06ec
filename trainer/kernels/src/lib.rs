//! Kernels that train convolutional networks on a CPU.
//!
//! | module | what |
//! | --- | --- |
//! | [`Convolution`] | forward, by input and by weight; 3x3 by Winograd, a 2x2 average pool for free |
//! | [`norm`] | moments of channels, batch norm, and an activation fused with it |
//! | [`layout`] | between `[n, c, h, w]` and `[n, h, w, c]` |
//!
//! Maps are `[n, h, w, c]` ("NHWC") slices of `f32`: a pixel's channels lie together, so that a
//! vector holds channels of one pixel whatever the size of the map. Weights are `[c_out, c_in, k,
//! k]`. All is written once for vectors of sixteen lanes and compiled for each [`Backend`]; every
//! sum has one order, whatever the back end and the number of threads, so results are the same to
//! the bit on every machine.

#![expect(
    clippy::needless_range_loop,
    reason = "indices of unrolled loops run over several arrays at once"
)]

mod convolution;
pub mod layout;
mod matrix;
pub mod norm;
mod patches;
mod shares;
mod simd;
mod winograd;

pub use convolution::{Adjoint, Convolution};
pub use pi_core::Backend;
