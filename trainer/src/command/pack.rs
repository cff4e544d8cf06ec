//! `pi-train pack`: an experiment's data set as one file.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::source::ExperimentArguments;
use crate::data;

/// Arguments of `pi-train pack`.
#[derive(Args, Clone, Debug)]
pub struct PackArguments {
    #[command(flatten)]
    experiment: ExperimentArguments,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
    /// Store images as JPEG files of this quality (1 to 100), except those that are JPEG files of
    /// their size already. This changes the images.
    #[arg(long)]
    quality: Option<u8>,
}

/// Writes the packed file.
///
/// # Errors
/// An experiment or images that cannot be read; the file system's.
pub fn pack(arguments: &PackArguments) -> Result<()> {
    let config = arguments.experiment.first_run()?.data;
    let packed = data::pack::pack(&config, arguments.quality, &arguments.out)?;
    eprintln!(
        "{}: {}, {} training and {} test images, {:.1} MB",
        arguments.out.display(),
        packed.description(),
        packed.train,
        packed.test,
        packed.bytes as f64 / 1e6
    );
    Ok(())
}
