//! `pi-train compare`: one batch on another device against the CPU.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::device::NamedDevice;
use crate::compare;
use crate::config::Config;

/// Arguments of `pi-train compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArguments {
    /// Experiment file (TOML). If it has a sweep, every run of it is compared.
    #[arg(long)]
    config: PathBuf,
    /// Override a key of the file; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Images of the batch, with random pixels.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Side of the images in pixels.
    #[arg(long, default_value_t = 32)]
    side: usize,
}

/// Prints the largest differences of logits and gradients, and the time of a step on both.
///
/// # Errors
/// An experiment that cannot be read; a difference beyond [`compare::TOLERANCE`].
pub fn compare(arguments: &CompareArguments, device: &NamedDevice) -> Result<()> {
    let images = compare::images(arguments.side);
    for (name, config) in Config::variants(&arguments.config, &arguments.overrides)? {
        let found = compare::compare(&config, &images, arguments.batch, &device.device)?;
        let (worst, off) = found.gradients.first().context("nothing trains")?;
        println!(
            "{name}: logits differ by {:.1e}, gradients by at most {off:.1e} ({worst}); {:.1} ms \
             a step, {:.1} ms on the CPU",
            found.logits,
            1e3 * found.seconds,
            1e3 * found.cpu_seconds
        );
        found.check()?;
    }
    Ok(())
}
