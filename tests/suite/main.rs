//! Tests across crates, in one program: linking one more takes as long as many tests. (Those of
//! memory are apart, because their allocator counts for a whole process.)

mod attacks;
mod common;
mod compiled;
mod dither;
mod oracles;
mod pixels;
mod ranges;
mod registry;
mod values;
