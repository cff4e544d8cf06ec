//! Rates of the correlated OT extension, both parties apart, by depth, and of all steps of a layer
//! of ReLUs; by thread count, the best of several runs.
//!
//!     cargo run --release -p pi-ot --example ot_rates
//!
//! With a number of ReLUs and of runs it does only the latter, for a profiler or a clock of CPU
//! time.

use pi_core::{Bits, Block, Prg, TweakCounter, fp, memory};
use pi_garble::{
    ServerGadget, SignWidth, active_labels_of_stream, client_output, evaluate_sign_message,
    garble_sign_into,
};
use pi_ot::{
    BundleId, CotReceiver, CotSender, Direction, MasterReceiver, MasterSetup, SessionId, TreeDepth,
    reverse,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::time::Instant;

const COUNT: usize = 1 << 17;

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
    for _ in 0..30 {
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

/// Every step of a layer of ReLUs, both parties: nanoseconds per ReLU.
fn relus(count: usize, runs: usize) {
    const WIDTH: u32 = 16;
    const PART: usize = 512;
    let rng = &mut ChaCha20Rng::seed_from_u64(3);
    let width = SignWidth::new(WIDTH).expect("a legal width");
    let bits = count * WIDTH as usize;
    let pair = |direction, rng: &mut ChaCha20Rng| {
        let session = SessionId([1; 32]);
        let (setup, opening) = MasterSetup::start(session, direction, rng);
        let (far, response) =
            MasterReceiver::respond(session, direction, &opening, rng).expect("honest bytes");
        let near = setup.finish(&response).expect("honest bytes");
        let bundle = BundleId([7; 32]);
        let (pending, correction) = near.begin(&bundle, TreeDepth::default(), rng);
        let (receiver, setup) = far
            .accept(&bundle, TreeDepth::default(), &correction)
            .expect("honest bytes");
        (pending.finish(&setup).expect("honest bytes"), receiver)
    };
    let (mut forward_sender, mut forward_receiver) = pair(Direction::Forward, rng);
    let (mut reverse_sender, mut reverse_receiver) = pair(Direction::Reverse, rng);
    let mut counter = TweakCounter::new(Block::random(rng));
    let c: Vec<u64> = (0..count).map(|_| fp::uniform(rng)).collect();
    let d: Vec<u64> = (0..count).map(|_| fp::uniform(rng)).collect();
    let mut steps: Vec<(&str, f64)> = Vec::new();
    for run in 0..runs {
        let mut done = 0;
        let mut start = Instant::now();
        let mut lap = |name: &'static str| {
            let seconds = start.elapsed().as_secs_f64();
            match run {
                0 => steps.push((name, seconds)),
                _ => steps[done].1 = steps[done].1.min(seconds),
            }
            done += 1;
            start = Instant::now();
        };
        let tweaks = counter.take(count, WIDTH);
        let b = Bits::random(count, rng);
        lap("random bits");
        let (t, message) = reverse_receiver.extend(&b);
        lap("reverse receiver");
        let q = reverse_sender
            .extend(count, &message)
            .expect("honest bytes");
        lap("reverse sender");
        let choices = Bits::of_values(&c, WIDTH);
        lap("choices");
        let (labels, correction) = forward_receiver.extend(&choices);
        lap("forward receiver");
        let (tau, mut u) =
            reverse::sender_message(&tweaks, reverse_sender.delta(), &q, &c).expect("shapes fit");
        lap("sender message");
        let mut tables = memory::zeroed(width.table_bytes(count));
        let mut keep_zero = vec![Block::ZERO; count];
        let delta = &forward_sender.delta().clone();
        let server_zero = Prg::new(&[3; 32]);
        let parts = tables.chunks_mut(width.table_bytes(PART));
        let parts = parts.zip(keep_zero.chunks_mut(PART)).collect();
        let room = || vec![Block::ZERO; PART * WIDTH as usize];
        let garble = |zeros: &mut Vec<Block>,
                      i: usize,
                      (tables, keep): (&mut [u8], &mut [Block]),
                      client_zero: &[Block]| {
            let (tweaks, first) = (tweaks.part(i * PART, keep.len()), i * PART * WIDTH as usize);
            let zeros = &mut zeros[..client_zero.len()];
            server_zero.fill_at(first as u128, Block::bytes_mut(zeros));
            garble_sign_into(width, &tweaks, delta, client_zero, zeros, tables, keep)
                .expect("shapes fit");
        };
        forward_sender
            .extend_parts(
                bits,
                PART * WIDTH as usize,
                &correction,
                parts,
                room,
                garble,
            )
            .expect("honest bytes");
        lap("sender, garble");
        let mut v = reverse::receiver_share(&tweaks, &t, &b, &tau).expect("shapes fit");
        let colours = ServerGadget::colours(&keep_zero);
        let e = reverse::derandomize(&mut v, &b, &colours).expect("shapes fit");
        lap("receiver share");
        let gadget = ServerGadget::new(&tweaks, delta, &keep_zero, &v).expect("shapes fit");
        lap("gadget");
        reverse::apply_derandomization(&mut u, &c, &e).expect("shapes fit");
        lap("derandomization");
        let mut server_labels = memory::zeroed(width.label_bytes(count));
        active_labels_of_stream(width, delta, &server_zero, &d, &mut server_labels)
            .expect("shapes fit");
        lap("active labels");
        let (rows, _shares) = gadget.open(&d).expect("shapes fit");
        lap("open");
        let keep = evaluate_sign_message(width, &tweaks, &labels, &server_labels, &tables)
            .expect("shapes fit");
        lap("evaluate");
        client_output(&tweaks, &keep, &rows, &c, &u).expect("shapes fit");
        lap("output");
        drop((labels, server_labels, tables));
        lap("erase");
    }
    let per_relu = |seconds: f64| seconds * 1e9 / count as f64;
    let all: f64 = steps.iter().map(|step| step.1).sum();
    println!(
        "  {count} ReLUs, both parties: {:.0} ns each",
        per_relu(all)
    );
    for (name, seconds) in steps {
        println!("    {name:18} {:7.1} ns", per_relu(seconds));
    }
}

fn main() {
    let arguments: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|a| a.parse().ok())
        .collect();
    if let [count, runs] = arguments[..] {
        relus(count, runs);
        return;
    }
    for threads in [1, 2] {
        println!("{threads} thread(s):");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool of threads").install(|| {
            [1, 4, 8].into_iter().for_each(rates);
            relus(1 << 12, 30);
            relus(1 << 16, 10);
        });
    }
}
