//! Options that the benchmarks of whole inferences share.

use super::link::{Net, Shaper};
use super::measure::Plan;
use super::network::{Budget, Network, RestKind, Subject};
use anyhow::{Context, Result};
use clap::Args;
use pi_machine::{HERE, Profile, named};
use std::path::PathBuf;

/// The choice of what is measured, except for the budget.
#[derive(Args)]
pub(crate) struct Options {
    /// Architecture; the weights are random.
    #[arg(long, value_enum, default_value_t = Network::ResNet18)]
    pub(crate) network: Network,
    /// Function of positions without ReLU.
    #[arg(long, value_enum, default_value_t = RestKind::Identity)]
    pub(crate) rest: RestKind,
    /// Line between the parties.
    #[arg(long, value_enum, default_value_t = Net::Loopback)]
    pub(crate) net: Net,
    /// Means of shaping the line.
    #[arg(long, value_enum, default_value_t = Shaper::Auto)]
    pub(crate) shaper: Shaper,
    /// Bundles prepared by one request.
    #[arg(
        long,
        value_name = "K",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=64)
    )]
    pub(crate) bundles: u32,
    /// Inferences timed; one more is made and checked.
    #[arg(
        long,
        value_name = "R",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pub(crate) runs: u32,
    /// Time as many inferences once more while K other clients prepare bundles all the time.
    #[arg(
        long,
        value_name = "K",
        default_value_t = 0,
        value_parser = clap::value_parser!(u16).range(..=16)
    )]
    pub(crate) preparing: u16,
    /// Compile without the range check, to measure what it costs.
    #[arg(long)]
    no_range_check: bool,
    /// Threads of each party [default: all cores].
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Machine that plans and predictions are for, as pi-compile takes it: here, zen4-avx512,
    /// zen3-avx2, or a file that `pi-compile --measure-machine` wrote.
    #[arg(long, value_name = "MACHINE", default_value = HERE)]
    machine: String,
    /// File for all figures, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Passed by cargo; without effect.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// The machine that plans and predictions are for; says which.
    ///
    /// # Errors
    /// If there is none of this name.
    pub(crate) fn machine(&self) -> Result<Profile> {
        let found = named(&self.machine).context("--machine")?;
        for note in &found.notes {
            eprintln!("note: machine: {note}");
        }
        eprintln!("plans and predictions are for {}", found.in_words());
        Ok(found.profile)
    }

    /// The plan for a budget.
    pub(crate) fn plan(&self, relus: Budget) -> Plan {
        Plan {
            subject: Subject {
                network: self.network,
                relus,
                rest: self.rest,
                range_check: !self.no_range_check,
            },
            link: self.net.link(),
            shaper: self.shaper,
            bundles: self.bundles,
            runs: self.runs,
            preparing: self.preparing,
            threads: self.threads.map(usize::from),
        }
    }
}
