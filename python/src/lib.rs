//! `pianissimo._native`: compiler, client, server and interpreters for the Python package.
//!
//! The Python half of the package (`python/pianissimo`) is what users see; this half is as thin as
//! it can be, and private to it. Whatever takes time runs on threads of its own as a `Job`,
//! for which Python waits without holding its lock and without missing an interrupt.
//!
//! Arrays come as the bytes of `numpy.save` and go as little-endian bytes: the one reader of NumPy
//! files (`pi_ir::value_file`) then decides what every program makes of them, and the copy is
//! nothing beside the computation. Structured results go as JSON.
#![deny(unsafe_code)]

mod client;
mod compile;
mod failure;
mod inputs;
mod job;
mod model;
mod server;
mod simulate;

use pyo3::prelude::*;

/// The extension module.
#[pymodule(name = "_native")]
mod native {
    #[pymodule_export]
    use super::client::Client;
    #[pymodule_export]
    use super::compile::compile;
    #[pymodule_export]
    use super::inputs::Input;
    #[pymodule_export]
    use super::job::Job;
    #[pymodule_export]
    use super::model::{Model, open_model};
    #[pymodule_export]
    use super::server::{Server, start_server};
    #[pymodule_export]
    use super::simulate::simulate;
    #[pymodule_export]
    use super::version;
}

/// Version of the package.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
