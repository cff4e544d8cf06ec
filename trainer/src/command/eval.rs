//! `pi-train eval`: the result of a checkpoint on the test batch.

use anyhow::Result;
use clap::Args;

use super::device::NamedDevice;
use super::source::SourceArguments;
use crate::result::RunResult;

/// Arguments of `pi-train eval`.
#[derive(Args, Clone, Debug)]
pub struct EvalArguments {
    #[command(flatten)]
    source: SourceArguments,
}

/// Measures the checkpoint.
///
/// # Errors
/// A checkpoint or test images that cannot be read.
pub fn eval(arguments: &EvalArguments, device: &NamedDevice) -> Result<RunResult> {
    let (run, test, description) = arguments.source.open(&device.device)?;
    Ok(RunResult::of(&run, &test, &description, device.name))
}
