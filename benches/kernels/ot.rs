//! The extension of correlated OTs.

use super::Criterion;
use super::fixtures::{extension, masters, on_threads};
use criterion::{BenchmarkId, Throughput};
use pi_core::Bits;
use pi_ot::{CotReceiver, CotSender, Direction, TreeDepth};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::time::Instant;

/// Measures both parties together. The directions differ in who holds the choices; the work is the
/// same.
pub(crate) fn measure(criterion: &mut Criterion) {
    const COUNT: usize = 1 << 18;
    let mut group = criterion.benchmark_group("correlated OT, both parties");
    group.throughput(Throughput::Elements(COUNT as u64));
    for (direction, name) in [
        (Direction::Forward, "forward"),
        (Direction::Reverse, "reverse"),
    ] {
        for depth in [1, 4] {
            group.bench_function(BenchmarkId::new(name, format!("depth {depth}")), |b| {
                let rng = &mut ChaCha20Rng::seed_from_u64(13);
                let depth = TreeDepth::new(depth).expect("a legal depth");
                let (mut sender, mut receiver) = extension(&masters(direction, rng), depth, rng);
                let choices = Bits::random(COUNT, rng);
                b.iter(|| {
                    let (blocks, message) = receiver.extend(&choices);
                    let sent = sender.extend(COUNT, &message).expect("honest bytes");
                    (blocks, sent)
                });
            });
        }
    }
    group.finish();
}

/// OTs of one run of the table.
const TABLE_COUNT: usize = 1 << 17;
/// Runs of which the fastest counts.
const RUNS: usize = 30;

/// Prints rates by depth and number of threads.
pub(crate) fn table() {
    for threads in [1, 2] {
        println!("{threads} thread(s):");
        on_threads(threads, || {
            let start = Instant::now();
            masters(Direction::Forward, &mut ChaCha20Rng::seed_from_u64(1));
            let milliseconds = start.elapsed().as_secs_f64() * 1e3;
            println!("  base OTs, both parties: {milliseconds:.1} ms");
            [1, 2, 4, 8].into_iter().for_each(rates);
        });
    }
}

fn rates(depth: u32) {
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let masters = masters(Direction::Forward, rng);
    let depth = TreeDepth::new(depth).expect("a legal depth");
    let start = Instant::now();
    let (mut sender, mut receiver) = extension(&masters, depth, rng);
    let begin = start.elapsed().as_secs_f64();
    let choices = Bits::random(TABLE_COUNT, rng);
    let [mut received, mut sent] = [f64::INFINITY; 2];
    for _ in 0..RUNS {
        let start = Instant::now();
        let (_labels, message) = receiver.extend(&choices);
        received = received.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let _labels = sender.extend(TABLE_COUNT, &message).expect("honest bytes");
        sent = sent.min(start.elapsed().as_secs_f64());
    }
    let rate = |seconds: f64| TABLE_COUNT as f64 / 1e6 / seconds;
    println!(
        "  depth {}: receiver {:.1} M/s, sender {:.1} M/s, both {:.1} M/s; {} B each; \
         bundle {:.2} ms",
        depth.get(),
        rate(received),
        rate(sent),
        rate(received + sent),
        depth.correction_bytes(8) as f64 / 8.0,
        begin * 1e3,
    );
}
