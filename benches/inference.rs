//! Private inference between two processes over QUIC, measured: see `benches/README.md`.
//!
//!     cargo bench --bench inference -- --network resnet18 --relus 15000 --rest identity \
//!         --json figures.json

mod support;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use std::process::ExitCode;
use support::machine::Machine;
use support::measure::{Figures, Phase, Plan, measure};
use support::network::Budget;
use support::options::Options;

/// Prepares and spends bundles between a client and a server on this machine, checks the answers
/// and reports the cost.
#[derive(Parser)]
#[command(name = "cargo bench --bench inference --")]
struct Arguments {
    /// Number of positions that keep their ReLU, or "all".
    #[arg(long, value_name = "N|all")]
    relus: Budget,
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

fn run(arguments: &Arguments) -> Result<()> {
    pi_core::Backend::chosen()?;
    let plan = arguments.options.plan(arguments.relus);
    let machine = Machine::here();
    let profile = arguments.options.machine()?;
    let figures = measure(&plan, &profile)?;
    print(&plan, &figures);
    if let Some(path) = &arguments.options.json {
        let all = json!({
            "command": support::command("inference"),
            "machine": machine,
            "profile": profile,
            "figures": figures,
        });
        std::fs::write(path, format!("{all:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn print(plan: &Plan, figures: &Figures) {
    let circuit = &figures.circuit;
    println!(
        "{}: {} ReLUs, {} polynomials, {} identities, {:.0} M multiply-adds",
        plan.subject,
        circuit.relus,
        circuit.polynomials,
        circuit.identities,
        circuit.multiply_adds as f64 / 1e6
    );
    if let Some(shaped) = &figures.link {
        println!(
            "line {} by {}: {:.0} Mbit/s, {} ms round trip; idle {:.1} Mbit/s, {:.3} ms (95 %: \
             {:.3} ms); in use at most {:.2} ms late, {} of {} datagrams dropped, \
             relay {:.2} CPU s",
            shaped.link.name,
            shaped.shaper,
            shaped.link.bits_per_second / 1e6,
            shaped.link.round_trip_s * 1e3,
            shaped.idle.bits_per_second / 1e6,
            shaped.idle.round_trip_s * 1e3,
            shaped.idle.round_trip_p95_s * 1e3,
            shaped.up.most_late_s.max(shaped.down.most_late_s) * 1e3,
            shaped.up.dropped + shaped.down.dropped,
            shaped.up.datagrams + shaped.down.datagrams,
            shaped.relay_cpu_s
        );
    }
    let line = |name: &str, phase: &Phase| {
        println!(
            "{name:22} {:9.4} s wall  {:8.3} CPU s (client {:.3}, server {:.3})  {:9.3} MB up  \
             {:9.3} MB down  {:.0} messages",
            phase.wall_s,
            phase.cpu_s,
            phase.client_cpu_s,
            phase.server_cpu_s,
            phase.bytes_up / 1e6,
            phase.bytes_down / 1e6,
            phase.messages
        );
    };
    line("keys, once", &figures.setup);
    let name = format!("offline, a bundle of {}", figures.offline.bundles_at_once);
    line(&name, &figures.offline.per_bundle);
    line("online", &figures.online.median);
    if let Some(beside) = &figures.online.beside {
        println!(
            "online, beside {:2}      {:9.4} s wall, {:.2} times as long; {} bundles for others \
             in {:.1} s",
            beside.preparing, beside.wall_s, beside.times_idle, beside.bundles, beside.seconds
        );
    }
    let memory = &figures.memory;
    println!(
        "memory at most: server {:.0} MB ({:.0} MB loaded), client {:.0} MB; weights file {:.0} MB",
        memory.server_peak as f64 / 1e6,
        memory.server_loaded as f64 / 1e6,
        memory.client_peak as f64 / 1e6,
        memory.weights_file as f64 / 1e6
    );
    println!(
        "predicted: offline {:.3} s (linear layers {:.3} CPU s of the server), online {:.4} s",
        figures.predicted.offline_s, figures.predicted_linear_server_s, figures.predicted.online_s
    );
    println!(
        "private and exact logits equal: {}",
        figures.check.exact_match
    );
}
