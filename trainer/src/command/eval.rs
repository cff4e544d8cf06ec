//! `pi-train eval`: the result of a checkpoint on the test batch, and on request on the held-out
//! images with their original pixels.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::device::NamedDevice;
use super::source::SourceArguments;
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Teacher};
use crate::data::{self, DataConfig, Dataset, DeviceSet, Source};
use crate::result::RunResult;
use crate::run::{Run, checkpoint_path};

/// Arguments of `pi-train eval`.
#[derive(Args, Clone, Debug)]
pub struct EvalArguments {
    #[command(flatten)]
    source: SourceArguments,
    /// Folder with cifar10_lossless_first1017_data_batch_1.bin.xz and so on: measures the held-out
    /// images too, as the run's set has them and with these, their original pixels. Refused if the
    /// run trained on any of them.
    #[arg(long, value_name = "FOLDER")]
    originals: Option<PathBuf>,
}

/// Measures the checkpoint.
///
/// # Errors
/// A checkpoint or images that cannot be read; originals of images that the run trained on.
pub fn eval(arguments: &EvalArguments, device: &NamedDevice) -> Result<RunResult> {
    let (run, test, description) = arguments.source.open(&device.device)?;
    // Before the test batch: a run that is refused should not take minutes to be.
    let held_out = match &arguments.originals {
        Some(folder) => Some(held_out(&run, &arguments.source.data(&run), folder)?),
        None => None,
    };
    let mut result = RunResult::of(&run, &test, &description, device.name);
    if let Some(held_out) = held_out {
        result.more.insert("held_out".to_owned(), held_out);
    }
    Ok(result)
}

/// Accuracies on the held-out images as they are stored and on their originals.
fn held_out(run: &Run, config: &DataConfig, folder: &Path) -> Result<Value> {
    check_unseen(&run.meta.config).context("the run is not one to measure originals with")?;
    let originals = data::originals(folder)?;
    let source = Source::open(config)?;
    let stored = source.sets()?.holdout;
    ensure!(
        stored.shape == originals.shape && stored.labels == originals.labels,
        "the images held out of {} are not those whose originals are in {}",
        source.description(),
        folder.display()
    );
    let measured = |set: Dataset| {
        let normalisation = run.meta.images.normalisation.clone();
        let evaluation = run.evaluate(&DeviceSet::new(set, normalisation, run.state.device()));
        json!({
            "accuracy": evaluation.accuracy,
            "loss": evaluation.loss,
            "largest_activation_input": evaluation.largest(),
        })
    };
    Ok(json!({
        "images": stored.len(),
        "stored_as": source.description(),
        "stored": measured(stored),
        "original": measured(originals),
    }))
}

/// Checks that neither a run nor those that it took weights or answers from trained on the images
/// whose originals are known; what is not at hand any more, or taught by a file of soft labels,
/// cannot be asked.
fn check_unseen(config: &Config) -> Result<()> {
    data::check_originals(&config.data)?;
    let mut seen: BTreeSet<PathBuf> = BTreeSet::new();
    let mut paths = sources(config);
    while let Some(path) = paths.pop() {
        if !path.exists() || !seen.insert(path.clone()) {
            continue;
        }
        let meta = Checkpoint::load(&path)?.meta;
        let config: Config = serde_json::from_value(meta["config"].clone())
            .with_context(|| format!("the description in {} is not ours", path.display()))?;
        data::check_originals(&config.data)
            .with_context(|| format!("it learnt from {}", path.display()))?;
        paths.extend(sources(&config));
    }
    Ok(())
}

/// Checkpoints that a run takes weights or answers from.
fn sources(config: &Config) -> Vec<PathBuf> {
    let teachers = config.stages.iter().filter_map(|stage| stage.teacher());
    let others = teachers.filter_map(|teacher| match teacher {
        Teacher::Checkpoint(path) => Some(path),
        _ => None,
    });
    let start = config.warm_start.iter().map(|warm| warm.checkpoint.clone());
    start
        .chain(others)
        .map(|path| checkpoint_path(&path))
        .collect()
}
