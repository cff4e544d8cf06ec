//! Garbling and evaluating sign circuits, and the steps around them.

use super::Criterion;
use super::fixtures::{SIGN_BITS, SignCircuits, least, on_threads};
use criterion::Throughput;
use pi_core::hash::{hash_pairs_to_field, hash_to_field};
use pi_core::{Block, Delta, Prg, TweakClass, TweakCounter, transpose};
use pi_garble::{SignWidth, active_labels};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::hint::black_box;

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sign circuits of 16 bits");
    let mut circuits = SignCircuits::new(1 << 14);
    group.throughput(Throughput::Elements(circuits.gates() as u64));
    group.bench_function("garble", |b| b.iter(|| circuits.garble()));
    group.bench_function("evaluate", |b| b.iter(|| circuits.evaluate()));
    group.finish();
}

/// Runs of which the fastest counts.
const RUNS: usize = 40;

/// Prints rates by number of threads.
pub(crate) fn table() {
    for threads in [1, 2] {
        println!("{threads} thread(s), {SIGN_BITS} bits:");
        on_threads(threads, || {
            for instances in [1 << 10, 15_000, 1 << 16] {
                sign(instances);
            }
            around(1 << 14);
        });
    }
}

fn sign(instances: usize) {
    let mut circuits = SignCircuits::new(instances);
    let gates = circuits.gates() as f64 / 1e6;
    let garble = least(RUNS, || circuits.garble());
    let evaluate = least(RUNS, || drop(circuits.evaluate()));
    println!(
        "  {instances} instances: garble {:.1} M AND/s ({:.2} ms), evaluate {:.1} M AND/s \
         ({:.2} ms)",
        gates / garble,
        garble * 1e3,
        gates / evaluate,
        evaluate * 1e3,
    );
}

fn around(instances: usize) {
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let width = SignWidth::new(SIGN_BITS).expect("a legal width");
    let delta = Delta::random(rng);
    let tweaks = TweakCounter::new(Block::random(rng)).take(instances, SIGN_BITS);
    let count = instances * SIGN_BITS as usize;
    let mut stream = Prg::new(&[1; 32]);
    let per_instance = |seconds: f64| seconds * 1e9 / instances as f64;
    let labels = stream.blocks(count);
    let blocks = least(RUNS, || {
        black_box(Prg::new(&[2; 32]).blocks(count));
    });
    let values: Vec<u64> = (0..instances).map(|_| rng.next_u64()).collect();
    let mut out = vec![1; width.label_bytes(instances)];
    let active = least(RUNS, || {
        active_labels(width, &delta, &stream, &values, &mut out).expect("shapes fit");
    });
    let keep = &labels[..instances];
    let single = least(RUNS, || {
        black_box(hash_to_field(&tweaks, TweakClass::Output, keep).expect("shapes fit"));
    });
    let pairs = least(RUNS, || {
        black_box(
            hash_pairs_to_field(&tweaks, TweakClass::Output, keep, &delta).expect("shapes fit"),
        );
    });
    let columns = vec![3; 16 * count];
    let mut rows = vec![Block::ZERO; count];
    let transposed = least(RUNS, || transpose(&columns, count / 8, &mut rows));
    println!(
        "  per ReLU: server labels {:.1} ns, active labels {:.1} ns, hash {:.1} ns, pair {:.1} ns, \
         transposing {:.1} ns",
        per_instance(blocks),
        per_instance(active),
        per_instance(single),
        per_instance(pairs),
        per_instance(transposed),
    );
}
