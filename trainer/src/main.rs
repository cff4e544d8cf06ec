//! `pi-train`: trains, evaluates and exports networks.
#![deny(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};
use pi_trainer::command::compare::{CompareArguments, compare};
use pi_trainer::command::data::{DataArguments, data};
use pi_trainer::command::device::Processor;
use pi_trainer::command::eval::{EvalArguments, eval};
use pi_trainer::command::export::{ExportArguments, export};
use pi_trainer::command::labels::{LabelsArguments, labels};
use pi_trainer::command::pack::{PackArguments, pack};
use pi_trainer::command::plot::{PlotArguments, plot};
use pi_trainer::command::report::{ReportArguments, report};
use pi_trainer::command::run_all::{RunAllArguments, run_all};
use pi_trainer::command::train::{TrainArguments, train};

/// Trains networks whose activations a two-party computation can afford.
#[derive(Parser)]
#[command(name = "pi-train", version)]
struct Arguments {
    /// Processor that computes.
    #[arg(long, global = true, value_enum, default_value_t = Processor::Cpu)]
    device: Processor,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the network of an experiment file.
    Train(TrainArguments),
    /// Train every experiment of a folder, in the order of the file names.
    ///
    /// Finished runs are skipped, and interrupted ones continue.
    RunAll(RunAllArguments),
    /// Compare one batch on --device with the CPU: logits, gradients, time.
    Compare(CompareArguments),
    /// Write a checkpoint as the compiler's float graph, after checking that the graph's logits
    /// equal the model's.
    Export(ExportArguments),
    /// Print results as a table, with the compiler's predicted costs where a NAME.costs.json exists
    /// beside a result.
    Report(ReportArguments),
    /// Draw the charts of runs and results.
    Plot(PlotArguments),
    /// Count the images of an experiment's data set and print their statistics.
    Data(DataArguments),
    /// Write an experiment's data set as one compressed file, which data.path may name instead of
    /// the folder.
    ///
    /// With data.limit, only that many training images are kept, besides the held-out and the test
    /// images.
    Pack(PackArguments),
    /// Write a checkpoint's logits of the training images, for a stage that learns from them
    /// (distil.teacher = { logits = FILE }).
    Labels(LabelsArguments),
    /// Measure a checkpoint on the test batch and print the result as JSON.
    Eval(EvalArguments),
}

fn main() -> Result<()> {
    keep_memory();
    let arguments = Arguments::parse();
    let device = arguments.device.open()?;
    match &arguments.command {
        Command::Train(arguments) => train(arguments, &device),
        Command::RunAll(arguments) => run_all(arguments, &device),
        Command::Compare(arguments) => compare(arguments, &device),
        Command::Export(arguments) => export(arguments, &device),
        Command::Data(arguments) => data(arguments),
        Command::Pack(arguments) => pack(arguments),
        Command::Labels(arguments) => labels(arguments, &device),
        Command::Report(arguments) => {
            print!("{}", report(arguments)?);
            Ok(())
        }
        Command::Plot(arguments) => {
            for path in plot(arguments)? {
                println!("{}", path.display());
            }
            Ok(())
        }
        Command::Eval(arguments) => {
            println!("{}", eval(arguments, &device)?);
            Ok(())
        }
    }
}

/// Keeps freed memory for the next tensor.
///
/// Every operation makes tensors of megabytes and drops them. The system's allocator would give
/// their pages back each time, and a fifth of an epoch would be spent on getting zeroed ones again
/// (measured: 400 to 500 images/s).
#[allow(
    unsafe_code,
    reason = "the allocator takes its settings through a C function alone"
)]
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: both are plain settings of the allocator; there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
