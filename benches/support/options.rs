//! Options that the benchmarks of whole inferences share.

use super::line::{Net, Shaper};
use super::measure::Plan;
use super::network::{Budget, Network, RestKind, Subject};
use clap::Args;
use std::path::PathBuf;

/// What is measured, except for the budget.
#[derive(Args)]
pub(crate) struct Options {
    /// The architecture, with random weights.
    #[arg(long, value_enum, default_value_t = Network::ResNet18)]
    pub(crate) network: Network,
    /// What positions without ReLU compute.
    #[arg(long, value_enum, default_value_t = RestKind::Identity)]
    pub(crate) rest: RestKind,
    /// The line between the parties.
    #[arg(long, value_enum, default_value_t = Net::Loopback)]
    pub(crate) net: Net,
    /// What shapes the line.
    #[arg(long, value_enum, default_value_t = Shaper::Auto)]
    pub(crate) shaper: Shaper,
    /// Bundles prepared by one request.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) bundles: u32,
    /// Inferences timed; one more is made to be checked.
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    /// Threads of each party [default: all cores].
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Where to write all figures.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// The plan for a budget.
    pub(crate) fn plan(&self, relus: Budget) -> Plan {
        Plan {
            subject: Subject {
                network: self.network,
                relus,
                rest: self.rest,
            },
            link: self.net.link(),
            shaper: self.shaper,
            bundles: self.bundles,
            runs: self.runs,
            threads: self.threads.map(usize::from),
        }
    }
}
