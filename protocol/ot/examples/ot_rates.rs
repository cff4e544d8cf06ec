//! Rates of the correlated OT extension, both parties apart, by depth and thread count: the best of several runs.
//!
//!     cargo run --release -p pi-ot --example ot_rates

use pi_ot::{
    Bits, BundleId, CotReceiver, CotSender, Direction, MasterReceiver, MasterSetup, SessionId,
    TreeDepth,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::time::Instant;

const COUNT: usize = 1 << 18;

fn rates(depth: u32) {
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let session = SessionId([1; 32]);
    let (setup, opening) = MasterSetup::start(session, Direction::Forward, rng);
    let (far, response) =
        MasterReceiver::respond(session, Direction::Forward, &opening, rng).expect("honest bytes");
    let near = setup.finish(&response).expect("honest bytes");
    let depth = TreeDepth::new(depth).expect("a legal depth");
    let bundle = BundleId([depth.get() as u8; 32]);
    let start = Instant::now();
    let (pending, correction) = near.begin(&bundle, depth, rng);
    let (mut receiver, setup) = far
        .accept(&bundle, depth, &correction)
        .expect("honest bytes");
    let mut sender = pending.finish(&setup).expect("honest bytes");
    let begin = start.elapsed().as_secs_f64();
    let choices = Bits::random(COUNT, rng);
    let [mut received, mut sent] = [f64::INFINITY; 2];
    for _ in 0..15 {
        let start = Instant::now();
        let (_labels, message) = receiver.extend(&choices);
        received = received.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let _labels = sender.extend(COUNT, &message).expect("honest bytes");
        sent = sent.min(start.elapsed().as_secs_f64());
    }
    let rate = |seconds: f64| COUNT as f64 / 1e6 / seconds;
    println!(
        "  depth {}: receiver {:.1} M/s, sender {:.1} M/s, both {:.1} M/s; {} B each; bundle {:.2} ms",
        depth.get(),
        rate(received),
        rate(sent),
        rate(received + sent),
        depth.correction_bytes(8) as f64 / 8.0,
        begin * 1e3,
    );
}

fn main() {
    for threads in [1, 2] {
        println!("{threads} thread(s):");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool of threads")
            .install(|| [1, 4, 8].map(rates));
    }
}
