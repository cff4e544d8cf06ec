//! Pianissimo: private neural-network inference between two parties.
//!
//! This package has no code of its own; the crates beside it do. It owns what spans them: the tests
//! in `tests/`, the benchmarks in `benches/` and the example in `examples/`, which is the place to
//! start reading.
#![forbid(unsafe_code)]
