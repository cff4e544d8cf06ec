//! Fuzz targets: see `tests/`. They run as ordinary tests, and under a fuzzer with `cargo bolero`.
#![forbid(unsafe_code)]
