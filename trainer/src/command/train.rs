//! `pi-train train`: the network of one experiment file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use indicatif::ProgressBar;

use super::device::NamedDevice;
use super::images::load;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::data::Data;
use crate::experiment::{self, Outcome};
use crate::run::{Images, Run, checkpoint_path};

/// Arguments of `pi-train train`.
#[derive(Args, Clone, Debug)]
pub struct TrainArguments {
    /// Experiment file (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Override a key of the file; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder for checkpoint.pit and log.jsonl.
    #[arg(long)]
    out: PathBuf,
    /// Continue from the checkpoint in the folder, if there is one.
    #[arg(long)]
    resume: bool,
    /// Stop after this many seconds, between two steps; the same command with --resume continues
    /// from there.
    #[arg(long)]
    seconds: Option<u64>,
    /// Folder for decoded archives, instead of data.cache.
    #[arg(long)]
    cache: Option<PathBuf>,
}

/// Trains the network until all stages are done or time is up.
///
/// # Errors
/// A folder that is named as a checkpoint, or holds one although `--resume` is not given; a
/// configuration, images or a checkpoint that cannot be used; the errors of the run.
pub fn train(arguments: &TrainArguments, device: &NamedDevice) -> Result<()> {
    let deadline = deadline(arguments.seconds);
    check_out(&arguments.out)?;
    let mut config = Config::load(&arguments.config, &arguments.overrides)?;
    config.data.cache = arguments.cache.clone().or(config.data.cache);
    let path = checkpoint_path(&arguments.out);
    ensure!(
        arguments.resume || !path.exists(),
        "{} exists: give --resume to go on from it, or another --out",
        path.display()
    );
    if arguments.resume && !path.exists() {
        eprintln!("there is no {}: the run begins anew", path.display());
    }
    let loaded = load(&config.data, &device.device)?;
    train_in(config, &loaded, &arguments.out, deadline, device).map(|_| ())
}

/// The time by which to stop; none if that is later than the clock can count.
pub(super) fn deadline(seconds: Option<u64>) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_secs(seconds?))
}

/// Checks that a folder is not named like a checkpoint, which [`checkpoint_path`] would take it
/// for.
pub(super) fn check_out(out: &Path) -> Result<()> {
    ensure!(
        out.extension().is_none_or(|extension| extension != "pit"),
        "{} is named as a checkpoint is: give a folder to write one into",
        out.display()
    );
    Ok(())
}

/// Trains in a folder, from its checkpoint if there is one.
pub(super) fn train_in(
    config: Config,
    (images, data): &(Images, Data),
    out: &Path,
    deadline: Option<Instant>,
    device: &NamedDevice,
) -> Result<(Run, Outcome)> {
    let path = checkpoint_path(out);
    let mut run = if path.exists() {
        let mut run = Run::from_checkpoint(Checkpoint::load(&path)?, device.device.clone())?;
        run.reconfigure(config)?;
        ensure!(
            run.meta.images == *images,
            "{} was trained on {}, this is {}: the run goes on with the same images only",
            path.display(),
            run.meta.images.dataset,
            images.dataset
        );
        run
    } else {
        Run::new(config, images.clone(), device.device.clone())?
    };
    eprintln!(
        "{}: {} multiply-adds an image, {} activations, {} parameters, {} images",
        run.meta.config.name,
        run.network.multiply_adds(),
        run.network.positions(),
        run.state.parameter_count(),
        data.train.len()
    );
    if !run.finished() {
        run.meta.devices.insert(device.name.to_owned());
    }
    let outcome = experiment::train(&mut run, data, out, deadline, &ProgressBar::new(0))?;
    Ok((run, outcome))
}
