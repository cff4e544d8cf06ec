//! What several commands take: an experiment, or the checkpoint of a run.

use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::tensor::Device;
use clap::Args;

use super::images::load_test;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::data::{DataConfig, DeviceSet};
use crate::run::{Run, checkpoint_path};

/// An experiment file with overrides.
#[derive(Args, Clone, Debug)]
pub struct ExperimentArguments {
    /// Experiment file (TOML). If it has a sweep, its first run is used.
    #[arg(long)]
    config: PathBuf,
    /// Override a key of the file; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
}

impl ExperimentArguments {
    /// The configuration of the experiment's first run.
    pub(super) fn first_run(&self) -> Result<Config> {
        let runs = Config::variants(&self.config, &self.overrides)?;
        let (_, config) = runs.into_iter().next().context("a sweep without runs")?;
        Ok(config)
    }
}

/// A checkpoint with the images to test it on.
#[derive(Args, Clone, Debug)]
pub struct SourceArguments {
    /// Checkpoint of a run, or the folder that holds it.
    #[arg(long)]
    checkpoint: PathBuf,
    /// Folder or packed file of the data set, instead of the run's own.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder for decoded archives, instead of the run's own.
    #[arg(long)]
    cache: Option<PathBuf>,
}

impl SourceArguments {
    /// The run of the checkpoint, the test batch, and the description of its set.
    pub(super) fn open(&self, device: &Device) -> Result<(Run, DeviceSet, String)> {
        let path = checkpoint_path(&self.checkpoint);
        let run = Run::from_checkpoint(Checkpoint::load(&path)?, device.clone())?;
        let config = self.data(&run);
        let (test, description) = load_test(&config, &run, device)
            .context("the test batch is needed; name its folder with --data")?;
        Ok((run, test, description))
    }

    /// The images of the run, where the arguments say that they lie.
    pub(super) fn data(&self, run: &Run) -> DataConfig {
        let mut config = run.meta.config.data.clone();
        if let Some(path) = &self.data {
            config.path.clone_from(path);
            // The configuration's description is that of the run's own set.
            config.description = None;
        }
        config.cache = self.cache.clone().or(config.cache);
        config
    }
}
