//! Owner of the cross-crate tests (`tests/`) and benchmarks (`benches/`) of Pianissimo.
#![forbid(unsafe_code)]
