//! Subcommands of `pi-train` that only read files.

pub mod plot;
pub mod report;
