//! How fast a machine is at the protocol's kernels.
//!
//! A [`Profile`] holds every rate that the cost model, its predictions and the search for packing
//! plans use, of one processor and one back end. There are three sources:
//!
//! - [`shipped`]: profiles of two kinds of server, for builds that have to be reproducible;
//! - [`measure`]: this machine, in about two seconds, by running the kernels themselves;
//! - [`here`]: the same, kept in the user's cache directory from then on.
//!
//! [`named`] finds the one that a user means.
//!
//! [`fixtures`] has the inputs on which kernels are measured, for benchmarks as well.
#![forbid(unsafe_code)]

mod cache;
pub mod fixtures;
mod measure;
mod named;
mod processor;
mod profile;

pub use cache::{Found, anew, here, kept_or_measured};
pub use measure::{SECONDS, VERSION, measure};
pub use named::{HERE, Named, NamedError, named};
pub use processor::{Cpu, processor_name};
pub use profile::{Profile, ProfileError, SHIPPED, shipped, zen4_avx512};
