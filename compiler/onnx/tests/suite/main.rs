//! The tests of the importer from without, in one program: linking one more takes as long as many
//! tests.

mod cases;
mod export;
mod import;
mod masks;
mod support;
mod trace;
