//! Latency against the ReLU budget: see `benches/README.md`.
//!
//!     cargo bench --bench budget -- --network resnet18 --json budget.json --out charts

mod chart;
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Context, Result};
use chart::Point;
use clap::Parser;
use pi_ir::count::graph_activations;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use support::machine::Machine;
use support::measure::{Figures, measure};
use support::network::Budget;
use support::options::Options;
use support::predict::Predicted;

/// Measures one network at many ReLU budgets and compares with the predictions of the cost model,
/// in a table and a chart.
#[derive(Parser)]
#[command(name = "cargo bench --bench budget --")]
struct Arguments {
    /// Budgets, separated by commas: numbers of positions that keep their ReLU. Budgets above what
    /// the network has are left out.
    #[arg(
        long,
        value_name = "N,..",
        value_delimiter = ',',
        default_value = "0,1800,6000,12900,15000,25000,50000,100000,150000,all"
    )]
    budgets: Vec<Budget>,
    /// Directory for the charts (SVG and PNG) and the table (Markdown); created if it does not
    /// exist.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    if let Some(code) = support::party::play_if_child() {
        return code;
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Measured {
    budget: Budget,
    predicted: Predicted,
    figures: Figures,
}

fn run(arguments: &Arguments) -> Result<()> {
    pi_core::Backend::chosen()?;
    let options = &arguments.options;
    let machine = Machine::here();
    let profile = options.machine()?;
    let whole = options.plan(Budget::All).subject;
    let total = graph_activations(&whole.graph()?).total();
    let mut measured = Vec::new();
    for &budget in &arguments.budgets {
        if matches!(budget, Budget::Relus(relus) if relus > total) {
            eprintln!(
                "{} has {total} activations: {budget} is left out",
                options.network
            );
            continue;
        }
        let plan = options.plan(budget);
        let figures = measure(&plan, &profile)?;
        let predicted = figures.predicted;
        eprintln!(
            "{}: offline {:.3} s (predicted {:.3}), online {:.4} s (predicted {:.4})",
            plan.subject,
            figures.offline.per_bundle.wall_s,
            predicted.offline_s,
            figures.online.median.wall_s,
            predicted.online_s
        );
        measured.push(Measured {
            budget,
            predicted,
            figures,
        });
    }
    let table = table(&measured);
    print!("{table}");
    if let Some(path) = &options.json {
        let sweep: Vec<_> = measured
            .iter()
            .map(|m| {
                json!({
                    "relus": m.budget.to_string(),
                    "predicted": m.predicted,
                    "offline_per_bundle": m.figures.offline.per_bundle,
                    "online": m.figures.online.median,
                    "memory": m.figures.memory,
                    "link": m.figures.link,
                    "check": m.figures.check,
                })
            })
            .collect();
        let all = json!({
            "command": support::command("budget"),
            "machine": machine,
            "profile": profile,
            "sweep": sweep,
        });
        std::fs::write(path, format!("{all:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(directory) = &arguments.out {
        let net = options.net.link().map_or("loopback", |link| link.name);
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let name = format!("budget-{}-{}-{}", options.network, options.rest, net);
        std::fs::write(directory.join(format!("{name}.md")), &table)?;
        let title = format!(
            "Private inference, {} on a 32x32 image, {} elsewhere, {}",
            options.network, options.rest, net
        );
        chart::draw(directory, &name, &title, &points(&measured))?;
    }
    Ok(())
}

fn points(measured: &[Measured]) -> Vec<Point> {
    let milliseconds = |measured: f64, predicted: f64| (1e3 * measured, 1e3 * predicted);
    let point = |m: &Measured| Point {
        label: match m.budget {
            Budget::Relus(relus) if relus >= 1000 => format!("{} K", relus as f64 / 1e3),
            budget => budget.to_string(),
        },
        offline_ms: milliseconds(m.figures.offline.per_bundle.wall_s, m.predicted.offline_s),
        online_ms: milliseconds(m.figures.online.median.wall_s, m.predicted.online_s),
    };
    measured.iter().map(point).collect()
}

fn table(measured: &[Measured]) -> String {
    let mut table = String::from(
        "| ReLUs | offline s (predicted) | CPU s client + server | MB up / down \
         | online ms (predicted) | CPU s client + server | MB up / down | server, client MB |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for m in measured {
        let (offline, online) = (&m.figures.offline.per_bundle, &m.figures.online.median);
        writeln!(
            table,
            "| {} | {:.2} ({:.2}) | {:.2} + {:.2} | {:.1} / {:.1} \
             | {:.0} ({:.0}) | {:.3} + {:.3} | {:.2} / {:.2} | {:.0}, {:.0} |",
            m.budget,
            offline.wall_s,
            m.predicted.offline_s,
            offline.client_cpu_s,
            offline.server_cpu_s,
            offline.bytes_up / 1e6,
            offline.bytes_down / 1e6,
            1e3 * online.wall_s,
            1e3 * m.predicted.online_s,
            online.client_cpu_s,
            online.server_cpu_s,
            online.bytes_up / 1e6,
            online.bytes_down / 1e6,
            m.figures.memory.server_peak as f64 / 1e6,
            m.figures.memory.client_peak as f64 / 1e6
        )
        .expect("a string takes everything");
    }
    table
}
