//! `pi-train run-all FOLDER`: every experiment of a folder, one after the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::device::NamedDevice;
use super::images::{load, load_test};
use super::train::{check_out, deadline, train_in};
use crate::atomic;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::data::{Data, DataConfig};
use crate::experiment::Outcome;
use crate::result::RunResult;
use crate::run::{Diverged, Images, Run, checkpoint_path};

/// Arguments of `pi-train run-all`.
#[derive(Args, Clone, Debug)]
pub struct RunAllArguments {
    /// Folder of experiment files.
    folder: PathBuf,
    /// Override a key of every file; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder that holds one folder per run, named after its file.
    #[arg(long, default_value = "runs")]
    out: PathBuf,
    /// Folder for the results, one NAME.json per run. Without this option none are written.
    #[arg(long)]
    results: Option<PathBuf>,
    /// Stop after this many seconds, between two steps; the same command continues from there.
    #[arg(long)]
    seconds: Option<u64>,
}

/// Trains the runs that are not finished, in the order of the file names, until time is up.
///
/// The file `finished` in a run's folder says that it is done, `failed` that it diverged. A run
/// that fails does not stop the others.
///
/// # Errors
/// A folder without experiments, an experiment that cannot be read, two runs of one name; once all
/// runs were tried, the names of those that failed.
pub fn run_all(arguments: &RunAllArguments, device: &NamedDevice) -> Result<()> {
    let deadline = deadline(arguments.seconds);
    let runs = named_runs(&experiment_files(&arguments.folder)?, &arguments.overrides)?;
    for (name, _) in &runs {
        check_out(&arguments.out.join(name))?;
    }
    let mut failed = Vec::new();
    // Runs that follow each other mostly share their images.
    let mut loaded = None;
    for (name, config) in runs {
        let out = arguments.out.join(&name);
        let one = One {
            name: &name,
            config,
            out: &out,
            results: arguments.results.as_deref(),
        };
        if out.join("finished").exists() {
            match one.make_up(device) {
                Ok(()) => eprintln!("{name}: finished"),
                Err(why) => {
                    eprintln!("{name}: finished, but its result cannot be written: {why:#}");
                    failed.push(name);
                }
            }
            continue;
        }
        let failed_before = out.join("failed");
        if let Ok(why) = std::fs::read_to_string(&failed_before) {
            let path = failed_before.display();
            eprintln!(
                "{name}: diverged before ({}); delete {path} to try again",
                why.trim()
            );
            failed.push(name);
            continue;
        }
        match one.train(&mut loaded, deadline, device) {
            Ok(Outcome::TimeIsUp) => {
                eprintln!("{name}: time is up; the same command goes on from here");
                return Ok(());
            }
            Ok(Outcome::Finished) => atomic::write(&out.join("finished"), b"")?,
            // One run that explodes, as some of them must, does not stop the others.
            Err(why) => {
                eprintln!("{name}: {why:#}");
                // The same seed diverges in the same way: it is noted, not tried again.
                if why.is::<Diverged>() {
                    atomic::write(&failed_before, format!("{why:#}\n").as_bytes())?;
                }
                failed.push(name);
            }
        }
    }
    ensure!(
        failed.is_empty(),
        "these runs failed: {}",
        failed.join(", ")
    );
    Ok(())
}

/// The experiment files of a folder, in the order of their names.
fn experiment_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    files.sort();
    ensure!(
        !files.is_empty(),
        "{} has no experiment file",
        folder.display()
    );
    Ok(files)
}

/// The runs of experiment files. Each has its own name and folder.
fn named_runs(files: &[PathBuf], overrides: &[String]) -> Result<Vec<(String, Config)>> {
    let mut runs = Vec::new();
    let mut file_of = BTreeMap::new();
    for file in files {
        for (name, config) in Config::variants(file, overrides)? {
            if let Some(other) = file_of.insert(name.clone(), file) {
                bail!(
                    "{} and {} both have a run {name}, which would share a folder: rename one",
                    other.display(),
                    file.display()
                );
            }
            runs.push((name, config));
        }
    }
    Ok(runs)
}

/// One run of many.
struct One<'a> {
    name: &'a str,
    config: Config,
    out: &'a Path,
    results: Option<&'a Path>,
}

impl One<'_> {
    /// Trains the run, with the images at hand if they are its own, and writes its result once it
    /// is finished.
    fn train(
        self,
        loaded: &mut Option<(DataConfig, (Images, Data))>,
        deadline: Option<Instant>,
        device: &NamedDevice,
    ) -> Result<Outcome> {
        let own = self.config.data.clone();
        let result_path = self.result_path();
        let (_, images) = match loaded.take().filter(|(of, _)| *of == own) {
            Some(same) => loaded.insert(same),
            None => loaded.insert((own.clone(), load(&own, &device.device)?)),
        };
        let (run, outcome) = train_in(self.config, images, self.out, deadline, device)?;
        if let (Outcome::Finished, Some(path)) = (outcome, result_path) {
            write_result(&path, &run, &own, device)?;
        }
        Ok(outcome)
    }

    /// Writes the result of a finished run from its checkpoint, if it is asked for and not there
    /// yet.
    fn make_up(self, device: &NamedDevice) -> Result<()> {
        let Some(path) = self.result_path().filter(|path| !path.exists()) else {
            return Ok(());
        };
        let checkpoint = Checkpoint::load(&checkpoint_path(self.out))?;
        let run = Run::from_checkpoint(checkpoint, device.device.clone())?;
        ensure!(
            run.finished(),
            "its checkpoint is of stage {} of {}: delete {} to train on",
            run.meta.stage + 1,
            run.meta.config.stages.len(),
            self.out.join("finished").display()
        );
        write_result(&path, &run, &self.config.data, device)
    }

    fn result_path(&self) -> Option<PathBuf> {
        let results = self.results?;
        Some(results.join(format!("{}.json", self.name)))
    }
}

/// Measures a finished run on the test batch and writes its result.
fn write_result(path: &Path, run: &Run, data: &DataConfig, device: &NamedDevice) -> Result<()> {
    let (test, description) = load_test(data, run, &device.device)?;
    let result = RunResult::of(run, &test, &description, device.name);
    atomic::write(path, format!("{result}\n").as_bytes())
}
