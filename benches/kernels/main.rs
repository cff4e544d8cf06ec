//! The kernels that decide offline and online time.
//!
//!     cargo bench --bench kernels                  # everything with criterion, some minutes
//!     cargo bench --bench kernels -- 'conv|garble' # whatever matches
//!     cargo bench --bench kernels -- table layers  # a table; `table --help` names them all
//!
//! Criterion's times are processor times of the process, with one thread unless
//! `RAYON_NUM_THREADS` says otherwise (the times of several add up). Throughput counts AND gates
//! where circuits are garbled and evaluated, OTs where they are extended, and multiply-adds in the
//! online convolution; transforms and operations on ciphertexts are reported as times.

mod ciphertexts;
mod clock;
mod convolutions;
mod garbling;
mod layers;
mod linear;
mod network;
mod ot;
mod plans;
mod relus;
mod transforms;

use clap::Parser;
use clock::CpuTime;
use pi_machine::fixtures;
use std::time::Duration;

type Criterion = criterion::Criterion<CpuTime>;

/// Tables that criterion does not print.
#[derive(Parser)]
#[command(name = "cargo bench --bench kernels -- table")]
enum Table {
    /// Garbling, evaluating and the steps around them, by number of threads.
    Garbling,
    /// The homomorphic linear layers of ResNet-18: processor time by stage, bytes and counts.
    Layers(layers::Options),
    /// The homomorphic linear layers of a whole network, answer by answer, and their prediction.
    Network(network::Options),
    /// The correlated OT extension, both parties apart, by depth and number of threads.
    Ot,
    /// Packing plans of networks: layouts, operations, bytes and predicted time.
    Plans(plans::Options),
    /// Every step of a layer of ReLUs, both parties.
    Relus(relus::Options),
}

fn main() {
    if let Err(error) = pi_core::Backend::chosen() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
    let mut arguments = std::env::args().filter(|argument| argument != "--bench");
    let program = arguments.next();
    let mut arguments = arguments.peekable();
    if arguments.next_if_eq("table").is_none() {
        return measure();
    }
    match Table::parse_from(program.into_iter().chain(arguments)) {
        Table::Garbling => garbling::table(),
        Table::Layers(options) => layers::table(&options),
        Table::Network(options) => network::table(&options),
        Table::Ot => ot::table(),
        Table::Plans(options) => plans::table(&options),
        Table::Relus(options) => relus::table(&options),
    }
}

/// Measures with criterion.
fn measure() {
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
        pool.build_global().expect("no pool was made before");
    }
    let mut criterion = criterion::Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    transforms::measure(&mut criterion);
    ciphertexts::measure(&mut criterion);
    linear::measure(&mut criterion);
    convolutions::measure(&mut criterion);
    ot::measure(&mut criterion);
    garbling::measure(&mut criterion);
    criterion.final_summary();
}
