//! Rates of the kernels that decide offline and online time, each the best of several runs.
//!
//!     cargo bench --bench kernels
//!
//! Garbling and evaluating run on one thread and on all; the homomorphic steps have a listing of their own, one thread:
//! `cargo run --release -p pi-rlwe --example costs`.

use pi_garble::{
    Bits, Block, Delta, SignWidth, TweakCounter, active_labels, evaluate_sign, garble_sign,
};
use pi_ot::ideal::ideal_cot;
use pi_ot::{
    BundleId, CotReceiver, CotSender, Direction, MasterReceiver, MasterSetup, SessionId, TreeDepth,
};
use pi_ring::conv::{ConvScratch, ConvShape, Padding, PreparedConv};
use pi_ring::fp;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::time::Instant;

fn best(mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..7).map(once).fold(f64::INFINITY, f64::min)
}

fn sign_circuits() {
    const INSTANCES: usize = 1 << 14;
    const WIDTH: u32 = 16;
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let width = SignWidth::new(WIDTH).expect("a legal width");
    let delta = Delta::random(rng);
    let (mut sender, mut receiver) = ideal_cot(rng);
    let values: Vec<u64> = (0..INSTANCES).map(|_| rng.next_u64()).collect();
    let choices = Bits::of_values(&values, WIDTH);
    let (labels, message) = receiver.extend(&choices);
    let client_zero = sender
        .extend(choices.len(), &message)
        .expect("the dealer's message");
    let server_zero: Vec<Block> = (0..choices.len()).map(|_| Block::random(rng)).collect();
    let tweaks = TweakCounter::new(Block::random(rng)).take(INSTANCES, WIDTH);
    let mut tables = vec![0; width.table_bytes(INSTANCES)];
    let mut server_labels = vec![0; width.label_bytes(INSTANCES)];
    active_labels(width, &delta, &server_zero, &values, &mut server_labels).expect("shapes fit");
    let server_labels = Block::decode("labels", &server_labels, choices.len()).expect("shapes fit");
    let gates = (INSTANCES * width.and_gates()) as f64 / 1e6;
    let garble = best(|| {
        garble_sign(
            width,
            &tweaks,
            &delta,
            &client_zero,
            &server_zero,
            &mut tables,
        )
        .expect("shapes fit");
    });
    let evaluate = best(|| {
        evaluate_sign(width, &tweaks, &labels, &server_labels, &tables).expect("shapes fit");
    });
    println!(
        "  garble {:.1} M AND/s, evaluate {:.1} M AND/s",
        gates / garble,
        gates / evaluate
    );
}

fn extensions() {
    const COUNT: usize = 1 << 18;
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let session = SessionId([1; 32]);
    let (setup, opening) = MasterSetup::start(session, Direction::Forward, rng);
    let (far, response) =
        MasterReceiver::respond(session, Direction::Forward, &opening, rng).expect("honest bytes");
    let near = setup.finish(&response).expect("honest bytes");
    for depth in [1, 4] {
        let depth = TreeDepth::new(depth).expect("a legal depth");
        let bundle = BundleId([depth.get() as u8; 32]);
        let (pending, correction) = near.begin(&bundle, depth, rng);
        let (mut receiver, setup) = far
            .accept(&bundle, depth, &correction)
            .expect("honest bytes");
        let mut sender = pending.finish(&setup).expect("honest bytes");
        let choices = Bits::random(COUNT, rng);
        let seconds = best(|| {
            let (_, message) = receiver.extend(&choices);
            sender.extend(COUNT, &message).expect("honest bytes");
        });
        let rate = COUNT as f64 / 1e6 / seconds;
        let bytes = depth.correction_bytes(COUNT) as f64 / COUNT as f64;
        println!(
            "  correlated OT, depth {}: {rate:.1} M/s for both parties, {bytes} B each",
            depth.get()
        );
    }
}

fn convolution() {
    let rng = &mut ChaCha20Rng::seed_from_u64(3);
    let shape = ConvShape {
        channels_in: 64,
        height: 16,
        width: 16,
        channels_out: 64,
        kernel_height: 3,
        kernel_width: 3,
        stride: 1,
        padding: Padding {
            top: 1,
            left: 1,
            bottom: 1,
            right: 1,
        },
    };
    let input = fp::uniform_vec(shape.input_len(), rng);
    let weights: Vec<i16> = (0..shape.weights_len())
        .map(|_| (rng.next_u64() % 255) as i16 - 127)
        .collect();
    let products = (shape.output_len() * shape.taps()) as f64 / 1e9;
    let prepared = PreparedConv::new(&weights, shape, 7);
    let (mut scratch, mut sum) = (ConvScratch::default(), vec![0; shape.output_len()]);
    let seconds = best(|| prepared.add_to(&input, &mut scratch, &mut sum));
    println!(
        "  online convolution 64 x 16 x 16 -> 64: {:.2} G multiply-adds/s",
        products / seconds
    );
}

fn main() {
    for threads in [1, rayon::current_num_threads()] {
        println!("{threads} thread(s):");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool of threads").install(|| {
            sign_circuits();
            extensions();
            convolution();
        });
    }
}
