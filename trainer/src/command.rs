//! The subcommands of `pi-train`, one file each: their arguments and what they do.

pub mod compare;
pub mod data;
pub mod device;
pub mod eval;
pub mod export;
mod images;
pub mod labels;
pub mod pack;
pub mod plot;
pub mod report;
pub mod run_all;
pub mod source;
pub mod train;
