//! `pi-train data`: the images of an experiment's data set.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::source::ExperimentArguments;
use crate::data::Summary;

/// Arguments of `pi-train data`.
#[derive(Args, Clone, Debug)]
pub struct DataArguments {
    #[command(flatten)]
    experiment: ExperimentArguments,
    /// PNG file to write, which shows images of each class and how the first stage augments them.
    #[arg(long)]
    sheet: Option<PathBuf>,
}

/// Prints the counts and statistics of the images, and draws the sheet if one is asked for.
///
/// # Errors
/// An experiment or images that cannot be read; the file system's.
pub fn data(arguments: &DataArguments) -> Result<()> {
    let config = arguments.experiment.first_run()?;
    let summary = Summary::of(&config.data)?;
    writeln!(std::io::stdout(), "{summary}")?;
    if let Some(path) = &arguments.sheet {
        summary.sheet(&config.stages[0].augmentation, config.seed, path)?;
        eprintln!("{}: images and their augmentations", path.display());
    }
    Ok(())
}
