//! `pi-train`: trains, evaluates and exports networks.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use pi_trainer::checkpoint::Checkpoint;
use pi_trainer::config::Config;
use pi_trainer::data::{self, Cifar10, Dataset};
use pi_trainer::export;
use pi_trainer::network::Network;
use pi_trainer::train::{self, Run};
use serde_json::json;

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

#[derive(Subcommand)]
enum Command {
    /// Train the network of an experiment file.
    Train(TrainArguments),
    /// Write a checkpoint as the compiler's float graph, once the graph's logits are seen to equal the model's.
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
    /// Go on from the checkpoint in the folder.
    #[arg(long)]
    resume: bool,
    /// Folder for decoded archives, in place of data.cache.
    #[arg(long)]
    cache: Option<PathBuf>,
}

#[derive(Args)]
struct Source {
    /// Checkpoint of a run, or the folder it is in.
    #[arg(long)]
    checkpoint: PathBuf,
    /// CIFAR-10 folder, in place of the run's own.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder for decoded archives, in place of the run's own.
    #[arg(long)]
    cache: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = open_device(arguments.device)?;
    match arguments.command {
        Command::Train(arguments) => run_training(arguments, device),
        Command::Export {
            source,
            out,
            images,
        } => {
            let (run, test) = open(source, device)?;
            let (bytes, worst) = export::export(&run, &test, images, &out)?;
            eprintln!(
                "{}: {bytes} bytes; logits of {} images differ by at most {worst:.1e}",
                out.display(),
                images.min(test.len())
            );
            Ok(())
        }
        Command::Eval { source } => {
            let (run, test) = open(source, device)?;
            println!(
                "{}",
                serde_json::to_string_pretty(&report(&run, &test, arguments.device))?
            );
            Ok(())
        }
    }
}

fn run_training(arguments: TrainArguments, device: Device) -> Result<()> {
    let mut config = Config::load(&arguments.config, &arguments.overrides)?;
    config.data.cache = arguments.cache.or(config.data.cache);
    let path = train::checkpoint_path(&arguments.out);
    let mut run = if arguments.resume {
        let mut run = Run::from_checkpoint(Checkpoint::load(&path)?, device)?;
        run.reconfigure(config)?;
        run
    } else if path.exists() {
        bail!(
            "{} exists: give --resume to go on from it, or another --out",
            path.display()
        );
    } else {
        Run::new(config, device)?
    };
    let data = &run.meta.config.data;
    let mut set = Cifar10::load(&data.path, data.cache.as_deref())?.train;
    ensure!(
        data.holdout < set.len(),
        "data.holdout leaves no image to train on"
    );
    let holdout = set.split_off(data.holdout);
    if let Some(limit) = data.limit {
        set.split_off(set.len().saturating_sub(limit));
    }
    eprintln!(
        "{}: {} multiply-adds an image, {} images",
        run.meta.config.name,
        run.network.multiply_adds(),
        set.len()
    );
    train::train(
        &mut run,
        &set,
        &holdout,
        &arguments.out,
        &ProgressBar::new(0),
    )
}

/// The run of a checkpoint and the test batch.
fn open(source: Source, device: Device) -> Result<(Run, Dataset)> {
    let path = if source.checkpoint.is_dir() {
        train::checkpoint_path(&source.checkpoint)
    } else {
        source.checkpoint
    };
    let run = Run::from_checkpoint(Checkpoint::load(&path)?, device)?;
    let own = &run.meta.config.data;
    let data: &Path = source.data.as_ref().unwrap_or(&own.path);
    let cache = source.cache.as_deref().or(own.cache.as_deref());
    let test = data::load_test(data, cache)
        .context("the test batch is needed; name its folder with --data")?;
    Ok((run, test))
}

/// What is reported of a run, with its accuracy on the test batch.
fn report(run: &Run, test: &Dataset, device: Processor) -> serde_json::Value {
    let config = &run.meta.config;
    let evaluation = run.evaluate(test);
    let (relus, polynomials, identities) = Network::counts(&run.state.masks);
    let device = match device {
        Processor::Cpu => "CPU, burn flex",
        Processor::Cuda => "CUDA, burn cubecl",
    };
    json!({
        "name": config.name,
        "dataset": "CIFAR-10, JPEG quality 75",
        "network": config.network,
        "method": "SGD; ReLUs cut by first-order saliency to quadratics or identities, then quadratics to identities",
        "relus": relus,
        "polynomial_positions": polynomials,
        "identity_positions": identities,
        "multiply_adds": run.network.multiply_adds(),
        "parameters": run.state.parameters.values().map(|a| a.values.len()).sum::<usize>(),
        "seed": config.train.seed,
        "test_accuracy": evaluation.accuracy,
        "test_images": test.len(),
        "holdout_accuracy": run.meta.holdout_accuracy,
        "largest_activation_inputs": evaluation.largest,
        "epochs": run.meta.epoch,
        "device": device,
        "wall_s": run.meta.wall_s.round(),
    })
}

fn open_device(processor: Processor) -> Result<Device> {
    match processor {
        Processor::Cpu => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        Processor::Cuda => Ok(Device::cuda(0)),
        #[cfg(not(feature = "cuda"))]
        Processor::Cuda => {
            bail!("this pi-train was built without CUDA: build it with --features cuda")
        }
    }
}
