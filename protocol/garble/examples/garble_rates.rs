//! Rates of garbling, evaluating and what surrounds them, by thread count: the best of several
//! runs.
//!
//!     cargo run --release -p pi-garble --example garble_rates

use pi_core::hash::{hash_pairs_to_field, hash_to_field};
use pi_core::{Block, Delta, Prg, TweakClass, TweakCounter, transpose};
use pi_garble::{SignWidth, active_labels, evaluate_sign, garble_sign};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::hint::black_box;
use std::time::Instant;

const WIDTH: u32 = 16;

fn best(mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..40).map(once).fold(f64::INFINITY, f64::min)
}

fn sign(instances: usize) {
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let width = SignWidth::new(WIDTH).expect("a legal width");
    let delta = Delta::random(rng);
    let tweaks = TweakCounter::new(Block::random(rng)).take(instances, WIDTH);
    let mut prg = Prg::new(&[1; 32]);
    let count = instances * WIDTH as usize;
    let (client, server) = (prg.blocks(count), prg.blocks(count));
    let mut tables = vec![1; width.table_bytes(instances)];
    let gates = (instances * width.and_gates()) as f64 / 1e6;
    let garble = best(|| {
        garble_sign(width, &tweaks, &delta, &client, &server, &mut tables).expect("shapes fit");
    });
    let evaluate = best(|| {
        evaluate_sign(width, &tweaks, &client, &server, &tables).expect("shapes fit");
    });
    println!(
        "  {instances} instances: garble {:.1} M AND/s ({:.2} ms), evaluate {:.1} M AND/s ({:.2} ms)",
        gates / garble,
        garble * 1e3,
        gates / evaluate,
        evaluate * 1e3,
    );
}

fn around(instances: usize) {
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let width = SignWidth::new(WIDTH).expect("a legal width");
    let delta = Delta::random(rng);
    let tweaks = TweakCounter::new(Block::random(rng)).take(instances, WIDTH);
    let count = instances * WIDTH as usize;
    let mut prg = Prg::new(&[1; 32]);
    let per_instance = |seconds: f64| seconds * 1e9 / instances as f64;
    let labels = prg.blocks(count);
    let blocks = best(|| {
        black_box(Prg::new(&[2; 32]).blocks(count));
    });
    let values: Vec<u64> = (0..instances).map(|_| rng.next_u64()).collect();
    let mut out = vec![1; width.label_bytes(instances)];
    let active = best(|| {
        active_labels(width, &delta, &labels, &values, &mut out).expect("shapes fit");
    });
    let keep = &labels[..instances];
    let single = best(|| {
        black_box(hash_to_field(&tweaks, TweakClass::Output, keep).expect("shapes fit"));
    });
    let pairs = best(|| {
        black_box(
            hash_pairs_to_field(&tweaks, TweakClass::Output, keep, &delta).expect("shapes fit"),
        );
    });
    let columns = vec![3; 16 * count];
    let mut rows = vec![Block::ZERO; count];
    let transposed = best(|| transpose(&columns, count / 8, &mut rows));
    println!(
        "  per ReLU: server labels {:.1} ns, active labels {:.1} ns, hash {:.1} ns, pair {:.1} ns, transposing {:.1} ns",
        per_instance(blocks),
        per_instance(active),
        per_instance(single),
        per_instance(pairs),
        per_instance(transposed),
    );
}

fn main() {
    for threads in [1, 2] {
        println!("{threads} thread(s), {WIDTH} bits:");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool of threads").install(|| {
            for instances in [1 << 10, 15_000, 1 << 16] {
                sign(instances);
            }
            around(1 << 14);
        });
    }
}
