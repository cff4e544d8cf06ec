//! `pi-train`: trains, evaluates and exports networks.
#![deny(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use pi_trainer::atomic;
use pi_trainer::checkpoint::Checkpoint;
use pi_trainer::command;
use pi_trainer::command::plot::PlotArguments;
use pi_trainer::command::report::ReportArguments;
use pi_trainer::compare;
use pi_trainer::config::Config;
use pi_trainer::data::{self, Data, DataConfig, DeviceSet, Summary};
use pi_trainer::experiment::{self, Outcome};
use pi_trainer::export;
use pi_trainer::result::RunResult;
use pi_trainer::run::{Diverged, Images, Run, checkpoint_path};

/// Trains networks whose activations a two-party computation can afford.
#[derive(Parser)]
#[command(name = "pi-train", version)]
struct Arguments {
    /// What computes.
    #[arg(long, global = true, value_enum, default_value_t = Processor::Cpu)]
    device: Processor,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum Processor {
    /// All cores, or RAYON_NUM_THREADS of them.
    Cpu,
    /// The first CUDA device; needs a build with `--features cuda`.
    Cuda,
}

impl Processor {
    /// As results say it.
    fn name(self) -> &'static str {
        match self {
            Processor::Cpu => "CPU, burn flex",
            Processor::Cuda => "CUDA, burn cubecl",
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Train the network of an experiment file.
    Train(TrainArguments),
    /// Train every experiment of a folder in the order of the file names: those that are finished
    /// are skipped, those that were interrupted go on.
    RunAll(RunAllArguments),
    /// Compare one batch on --device with the CPU: logits, gradients, time.
    Compare {
        /// Experiment file (TOML).
        #[arg(long)]
        config: PathBuf,
        /// Override a key of the file; may be given several times.
        #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
        overrides: Vec<String>,
        /// Images of the batch; their pixels are random.
        #[arg(long, default_value_t = 64)]
        batch: usize,
        /// Side of the images.
        #[arg(long, default_value_t = 32)]
        side: usize,
    },
    /// Write a checkpoint as the compiler's float graph, once the graph's logits are seen to equal
    /// the model's.
    Export {
        #[command(flatten)]
        source: Source,
        /// File to write, model.graph by custom.
        #[arg(long)]
        out: PathBuf,
        /// Test images that the check runs on.
        #[arg(long, default_value_t = 64)]
        images: usize,
    },
    /// Print results as a table, with the compiler's predicted costs where they lie beside them.
    Report(ReportArguments),
    /// Draw the charts of runs and results.
    Plot(PlotArguments),
    /// Count the images of an experiment's data set and print their statistics.
    Data {
        #[command(flatten)]
        experiment: Experiment,
        /// PNG file to write: images of each class and what the first stage's augmentation makes of
        /// them.
        #[arg(long)]
        sheet: Option<PathBuf>,
    },
    /// Write an experiment's data set as one compressed file, which data.path may name in place of
    /// its folder.
    ///
    /// With data.limit only the first so many training images, the held-out and the test images are
    /// kept.
    Pack {
        #[command(flatten)]
        experiment: Experiment,
        /// File to write.
        #[arg(long)]
        out: PathBuf,
        /// Make JPEG files of this quality (1 to 100) of images that are none of their size yet.
        /// This changes them.
        #[arg(long)]
        quality: Option<u8>,
    },
    /// Measure a checkpoint on the test batch and print the result as JSON.
    Eval {
        #[command(flatten)]
        source: Source,
    },
}

#[derive(Args)]
struct TrainArguments {
    /// Experiment file (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Override a key of the file; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder for checkpoint.pit and log.jsonl.
    #[arg(long)]
    out: PathBuf,
    /// Go on from the checkpoint in the folder, if there is one.
    #[arg(long)]
    resume: bool,
    /// Stop after so many seconds, between two steps; the same command with --resume goes on from
    /// there.
    #[arg(long)]
    seconds: Option<u64>,
    /// Folder for decoded archives, in place of data.cache.
    #[arg(long)]
    cache: Option<PathBuf>,
}

#[derive(Args)]
struct RunAllArguments {
    /// Folder of experiment files.
    folder: PathBuf,
    /// Override a key of every file; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder that holds one folder a run, named as its file.
    #[arg(long, default_value = "runs")]
    out: PathBuf,
    /// Folder for the results, one NAME.json each; none is written if absent.
    #[arg(long)]
    results: Option<PathBuf>,
    /// Stop after so many seconds, between two steps; the same command goes on from there.
    #[arg(long)]
    seconds: Option<u64>,
}

#[derive(Args)]
struct Experiment {
    /// Experiment file (TOML); of a sweep, the first run.
    #[arg(long)]
    config: PathBuf,
    /// Override a key of the file; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Args)]
struct Source {
    /// Checkpoint of a run, or the folder it is in.
    #[arg(long)]
    checkpoint: PathBuf,
    /// Folder or packed file of the data set, in place of the run's own.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder for decoded archives, in place of the run's own.
    #[arg(long)]
    cache: Option<PathBuf>,
}

/// Keeps freed memory for the next tensor.
///
/// Every operation makes tensors of megabytes and drops them. The system's allocator would give
/// their pages back each time, and a fifth of an epoch would be spent on getting zeroed ones again
/// (measured: 400 to 500 images/s).
#[allow(unsafe_code)]
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: both are plain settings of the allocator; there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

fn main() -> Result<()> {
    keep_memory();
    let arguments = Arguments::parse();
    let device = open_device(arguments.device)?;
    match arguments.command {
        Command::Train(train) => run_training(&train, &device, arguments.device),
        Command::RunAll(all) => run_all(&all, &device, arguments.device),
        Command::Compare {
            config,
            overrides,
            batch,
            side,
        } => {
            for (name, config) in Config::variants(&config, &overrides)? {
                let found = compare::compare(&config, &compare::images(side), batch, &device)?;
                let (worst, off) = found.gradients.first().context("nothing trains")?;
                println!(
                    "{name}: logits differ by {:.1e}, gradients by at most {off:.1e} ({worst}); {:.1} ms a step, {:.1} ms on the CPU",
                    found.logits,
                    1e3 * found.seconds,
                    1e3 * found.cpu_seconds
                );
                found.check()?;
            }
            Ok(())
        }
        Command::Export {
            source,
            out,
            images,
        } => {
            let (run, test, _) = open(&source, device)?;
            let (bytes, worst) = export::export(&run, &test, images, &out)?;
            eprintln!(
                "{}: {bytes} bytes; logits of {} images differ by at most {worst:.1e}",
                out.display(),
                images.min(test.len())
            );
            Ok(())
        }
        Command::Report(arguments) => {
            print!("{}", command::report::report(&arguments)?);
            Ok(())
        }
        Command::Plot(arguments) => {
            for path in command::plot::plot(&arguments)? {
                println!("{}", path.display());
            }
            Ok(())
        }
        Command::Data { experiment, sheet } => {
            let config = experiment.first_run()?;
            let summary = Summary::of(&config.data)?;
            writeln!(std::io::stdout(), "{summary}")?;
            if let Some(path) = sheet {
                summary.sheet(&config.stages[0].augmentation, config.seed, &path)?;
                eprintln!("{}: images and their augmentations", path.display());
            }
            Ok(())
        }
        Command::Pack {
            experiment,
            out,
            quality,
        } => {
            let packed = data::pack::pack(&experiment.first_run()?.data, quality, &out)?;
            eprintln!(
                "{}: {}, {} training and {} test images, {:.1} MB",
                out.display(),
                packed.description(),
                packed.train,
                packed.test,
                packed.bytes as f64 / 1e6
            );
            Ok(())
        }
        Command::Eval { source } => {
            let (run, test, description) = open(&source, device)?;
            let result = RunResult::of(&run, &test, &description, arguments.device.name());
            println!("{result}");
            Ok(())
        }
    }
}

impl Experiment {
    fn first_run(&self) -> Result<Config> {
        let runs = Config::variants(&self.config, &self.overrides)?;
        let (_, config) = runs.into_iter().next().context("a sweep without runs")?;
        Ok(config)
    }
}

/// None if so many seconds are beyond what the clock counts.
fn deadline(seconds: Option<u64>) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_secs(seconds?))
}

/// # Errors
/// A name of a file, where a folder is asked for: [`checkpoint_path`] takes it for the checkpoint
/// itself.
fn check_out(out: &Path) -> Result<()> {
    ensure!(
        out.extension().is_none_or(|extension| extension != "pit"),
        "{} is named as a checkpoint is: give a folder to write one into",
        out.display()
    );
    Ok(())
}

fn run_training(arguments: &TrainArguments, device: &Device, processor: Processor) -> Result<()> {
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
    let loaded = load(&config.data, device)?;
    train_in(config, &loaded, &arguments.out, deadline, device, processor).map(|_| ())
}

/// Trains in a folder, from its checkpoint if there is one.
fn train_in(
    config: Config,
    (images, data): &(Images, Data),
    out: &Path,
    deadline: Option<Instant>,
    device: &Device,
    processor: Processor,
) -> Result<(Run, Outcome)> {
    let path = checkpoint_path(out);
    let mut run = if path.exists() {
        let mut run = Run::from_checkpoint(Checkpoint::load(&path)?, device.clone())?;
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
        Run::new(config, images.clone(), device.clone())?
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
        run.meta.devices.insert(processor.name().to_owned());
    }
    let outcome = experiment::train(&mut run, data, out, deadline, &ProgressBar::new(0))?;
    Ok((run, outcome))
}

fn run_all(arguments: &RunAllArguments, device: &Device, processor: Processor) -> Result<()> {
    let deadline = deadline(arguments.seconds);
    let entries = std::fs::read_dir(&arguments.folder)
        .with_context(|| format!("cannot read {}", arguments.folder.display()))?;
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
        arguments.folder.display()
    );
    let runs = named_runs(&files, &arguments.overrides)?;
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
            match one.make_up(device, processor) {
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
        match one.train(&mut loaded, deadline, device, processor) {
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

/// The runs of experiment files. Each has a name, and a folder, of its own.
fn named_runs(files: &[PathBuf], overrides: &[String]) -> Result<Vec<(String, Config)>> {
    let mut runs = Vec::new();
    let mut file_of = BTreeMap::new();
    for file in files {
        for (name, config) in Config::variants(file, overrides)? {
            if let Some(other) = file_of.insert(name.clone(), file) {
                anyhow::bail!(
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
    /// Trains it, with the images at hand if they are its own, and writes its result once it is
    /// finished.
    fn train(
        self,
        loaded: &mut Option<(DataConfig, (Images, Data))>,
        deadline: Option<Instant>,
        device: &Device,
        processor: Processor,
    ) -> Result<Outcome> {
        let own = self.config.data.clone();
        let result_path = self.result_path();
        let (_, images) = match loaded.take().filter(|(of, _)| *of == own) {
            Some(same) => loaded.insert(same),
            None => loaded.insert((own.clone(), load(&own, device)?)),
        };
        let (run, outcome) = train_in(self.config, images, self.out, deadline, device, processor)?;
        if let (Outcome::Finished, Some(path)) = (outcome, result_path) {
            write_result(&path, &run, &own, device, processor)?;
        }
        Ok(outcome)
    }

    /// Writes the result of a finished run from its checkpoint, if it is asked for and not there
    /// yet.
    fn make_up(self, device: &Device, processor: Processor) -> Result<()> {
        let Some(path) = self.result_path().filter(|path| !path.exists()) else {
            return Ok(());
        };
        let checkpoint = Checkpoint::load(&checkpoint_path(self.out))?;
        let run = Run::from_checkpoint(checkpoint, device.clone())?;
        ensure!(
            run.finished(),
            "its checkpoint is of stage {} of {}: delete {} to train on",
            run.meta.stage + 1,
            run.meta.config.stages.len(),
            self.out.join("finished").display()
        );
        write_result(&path, &run, &self.config.data, device, processor)
    }

    fn result_path(&self) -> Option<PathBuf> {
        let results = self.results?;
        Some(results.join(format!("{}.json", self.name)))
    }
}

/// Measures a finished run on the test batch and writes its result.
fn write_result(
    path: &Path,
    run: &Run,
    data: &DataConfig,
    device: &Device,
    processor: Processor,
) -> Result<()> {
    let (test, description) = load_test(data, run, device)?;
    let result = RunResult::of(run, &test, &description, processor.name());
    atomic::write(path, format!("{result}\n").as_bytes())
}

/// The images of a configuration.
fn load(config: &DataConfig, device: &Device) -> Result<(Images, Data)> {
    let sets = data::Source::open(config)?.sets()?;
    let images = Images {
        dataset: sets.description,
        shape: sets.train.shape,
        classes: sets.classes,
        normalisation: sets.normalisation.clone(),
    };
    let data = Data {
        train: DeviceSet::new(sets.train, sets.normalisation.clone(), device),
        holdout: DeviceSet::new(sets.holdout, sets.normalisation, device),
    };
    Ok((images, data))
}

/// The run of a checkpoint, the test batch, and the description of its set.
fn open(source: &Source, device: Device) -> Result<(Run, DeviceSet, String)> {
    let path = checkpoint_path(&source.checkpoint);
    let run = Run::from_checkpoint(Checkpoint::load(&path)?, device.clone())?;
    let mut config = run.meta.config.data.clone();
    if let Some(path) = &source.data {
        config.path.clone_from(path);
        // The file's own words are of the run's set.
        config.description = None;
    }
    config.cache = source.cache.clone().or(config.cache);
    let (test, description) = load_test(&config, &run, &device)
        .context("the test batch is needed; name its folder with --data")?;
    Ok((run, test, description))
}

/// The test batch, normalised as the run's images, and the description of its set.
fn load_test(config: &DataConfig, run: &Run, device: &Device) -> Result<(DeviceSet, String)> {
    let source = data::Source::open(config)?;
    let images = &run.meta.images;
    let test = source.test()?;
    ensure!(
        test.shape == images.shape && source.classes() == images.classes,
        "the model is of {}, images of {:?}; the test images are of {}, {:?}",
        images.dataset,
        images.shape,
        source.description(),
        test.shape
    );
    let normalisation = images.normalisation.clone();
    let test = DeviceSet::new(test, normalisation, device);
    Ok((test, source.description().to_owned()))
}

fn open_device(processor: Processor) -> Result<Device> {
    match processor {
        Processor::Cpu => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        Processor::Cuda => open_cuda(),
        #[cfg(not(feature = "cuda"))]
        Processor::Cuda => {
            anyhow::bail!(
                "this pi-train was built without CUDA: build it with trainer/cuda/build.sh"
            )
        }
    }
}

/// The first CUDA device, once it has computed something: what is missing panics where it is
/// loaded, in the midst of a run otherwise.
#[cfg(feature = "cuda")]
fn open_cuda() -> Result<Device> {
    use burn::tensor::{DeviceType, Tensor};
    ensure!(
        !Device::enumerate(DeviceType::Cuda).is_empty(),
        "there is no CUDA device, or no driver for it: libcuda.so.1 must be found (name its folder in LD_LIBRARY_PATH) and \
         nvidia-smi must list a device; or train with --device cpu"
    );
    let toolkit = cubecl_cuda::install::cuda_path();
    let header = toolkit.map(|path| path.join("include/cuda_fp16.h"));
    ensure!(
        header.as_ref().is_some_and(|path| path.exists()),
        "CUDA's headers, which kernels are compiled with, are not there{}: name the toolkit's folder in CUDA_PATH",
        header.map_or_else(String::new, |path| format!(" ({})", path.display()))
    );
    let device = Device::cuda(0);
    let sum = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let one = Tensor::<1>::ones([1], &device);
        (one.clone() + one).into_data().try_into_vec::<f32>()
    }));
    let computed = matches!(&sum, Ok(Ok(sum)) if sum[..] == [2.0]);
    ensure!(
        computed,
        "the CUDA device does not compute, for the reason above: LD_LIBRARY_PATH must name the folder of libnvrtc.so, which \
         compiles the kernels, and the driver must be that of CUDA 13.0 or newer"
    );
    Ok(device)
}
