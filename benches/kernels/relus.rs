//! Every step of a layer of ReLUs, both parties, in the order of the protocol.

use super::fixtures::{SIGN_BITS, extension, masters, on_threads};
use pi_core::{Bits, Block, Prg, TweakCounter, fp, memory};
use pi_garble::{
    InputLabels, ServerGadget, SignWidth, active_labels, client_output, evaluate_sign, garble_sign,
};
use pi_ot::{CotReceiver, CotSender, Direction, Parts, TreeDepth, reverse};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::time::Instant;

/// Size of a layer; without one, two sizes are measured, on one thread and on two.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Number of ReLUs, on all threads of the machine; for a profiler or a clock of CPU time.
    #[arg(requires = "runs")]
    count: Option<usize>,
    /// Runs of which the fastest counts, step by step.
    runs: Option<usize>,
}

/// Prints nanoseconds per ReLU, step by step.
pub(crate) fn table(options: &Options) {
    if let (Some(count), Some(runs)) = (options.count, options.runs) {
        return layer(count, runs);
    }
    for threads in [1, 2] {
        println!("{threads} thread(s):");
        on_threads(threads, || {
            layer(1 << 12, 30);
            layer(1 << 16, 10);
        });
    }
}

/// ReLUs that are garbled while their labels are in the cache.
const PART: usize = 512;

fn layer(count: usize, runs: usize) {
    let rng = &mut ChaCha20Rng::seed_from_u64(3);
    let width = SignWidth::new(SIGN_BITS).expect("a legal width");
    let bits = count * SIGN_BITS as usize;
    let mut pair = |direction| {
        let masters = masters(direction, rng);
        extension(&masters, TreeDepth::default(), rng)
    };
    let (mut forward_sender, mut forward_receiver) = pair(Direction::Forward);
    let (mut reverse_sender, mut reverse_receiver) = pair(Direction::Reverse);
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
        let tweaks = counter.take(count, SIGN_BITS);
        let b = Bits::random(count, rng);
        lap("random bits");
        let (t, message) = reverse_receiver.extend(&b);
        lap("reverse receiver");
        let q = reverse_sender
            .extend(count, &message)
            .expect("honest bytes");
        lap("reverse sender");
        let choices = Bits::of_values(&c, SIGN_BITS);
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
        let table_parts = tables.chunks_mut(width.table_bytes(PART));
        let parts = Parts {
            size: PART * SIGN_BITS as usize,
            items: table_parts.zip(keep_zero.chunks_mut(PART)).collect(),
        };
        let room = || vec![Block::ZERO; PART * SIGN_BITS as usize];
        let garble = |room: &mut Vec<Block>,
                      i: usize,
                      (tables, keep): (&mut [u8], &mut [Block]),
                      client: &[Block]| {
            let (tweaks, first) = (
                tweaks.part(i * PART, keep.len()),
                i * PART * SIGN_BITS as usize,
            );
            let server = &mut room[..client.len()];
            server_zero.fill_at(first as u128, Block::bytes_mut(server));
            let zeros = InputLabels { client, server };
            garble_sign(width, &tweaks, delta, zeros, tables, keep).expect("shapes fit");
        };
        forward_sender
            .extend_parts(bits, &correction, parts, room, garble)
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
        active_labels(width, delta, &server_zero, &d, &mut server_labels).expect("shapes fit");
        lap("active labels");
        let (rows, _shares) = gadget.open(&d).expect("shapes fit");
        lap("open");
        let (keep, _) =
            evaluate_sign(width, &tweaks, &labels, &server_labels, &tables).expect("shapes fit");
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
