//! Seconds that an inference should take, by the compiler's model ([`pi_compiler::cost::latency`])
//! at the rates of this machine: those of ciphertexts, gates, OTs, multiply-adds and the disk are
//! measured for two seconds before the benchmark.

use super::line::Link;
use super::measure::{circuit_figures, operations, packed};
use anyhow::{Context, Result};
use pi_compiler::cost::latency::{Line, MARKS_S, Machine, Work};
use pi_core::fp;
use pi_core::{Bits, Block, Delta, TweakCounter};
use pi_garble::{SignWidth, active_labels, evaluate_sign, garble_sign};
use pi_ir::Artifact;
use pi_ot::ideal::ideal_cot;
use pi_ot::{BundleId, Direction, MasterReceiver, MasterSetup, SessionId, TreeDepth};
use pi_ot::{CotReceiver, CotSender};
use pi_protocol::cost::{self, Traffic};
use pi_protocol::linear;
use pi_ring::conv::{ConvScratch, ConvShape, Padding, PreparedConv};
use pi_rlwe::{
    CiphertextModulus, N, Packed, Params, PlainPoly, Product, PublicKey, SecretKey, SeededLayout,
    decrypt, encrypt_seeded, expand_seeded, mask_and_flood,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use serde::Serialize;
use std::io::Write;
use std::time::Instant;

/// Rates of one thread of this machine, and of its loopback.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rates {
    /// AND gates garbled a second.
    garbled: f64,
    /// AND gates evaluated a second.
    evaluated: f64,
    /// Correlated OTs extended a second, both parties' work.
    extended: f64,
    /// Multiply-adds of the online convolution a second.
    multiplied: f64,
    /// Seconds to encrypt an upload.
    upload_s: f64,
    /// Seconds to decrypt an answer.
    decrypt_s: f64,
    /// Bytes a second that files are written at, durably.
    stored: f64,
}

/// Bytes written to learn the rate of the disk.
const DISK_PROBE_BYTES: usize = 64 << 20;
/// What the model says.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Predicted {
    /// Seconds to prepare one bundle.
    pub(crate) offline_s: f64,
    /// Seconds of one inference.
    pub(crate) online_s: f64,
}

/// The model, for a circuit on a line.
///
/// # Errors
/// If the plan does not fit its circuit.
pub(crate) fn predict(
    artifact: &Artifact,
    rates: &Rates,
    link: Option<Link>,
    cores: f64,
    at_once: u32,
) -> Result<Predicted> {
    let cost = cost::circuit(&artifact.circuit, artifact.plans())?;
    let plan = packed(artifact, at_once);
    let operations = operations(artifact, plan)?;
    let bundles = f64::from(plan.bundles);
    let batch = cost
        .batches
        .iter()
        .find(|batch| batch.bundles == plan.bundles as usize);
    let offline = batch.map_or(cost.offline, |batch| batch.offline);
    let line = link.map_or(Line::LOOPBACK, |link| Line {
        bytes_per_second: link.bits_per_second / 8.0,
        round_trip_s: link.round_trip_s,
    });
    let machine = rates.machine(cores);
    let mut activations = Work::default();
    for layer in &cost.per_layer {
        activations += &Work::of_activation(layer);
    }
    let mut work = activations.with_linear(&operations, plan.answers.len(), bundles, &machine);
    work.multiply_adds = circuit_figures(artifact, &cost).multiply_adds as f64;
    let bytes = |traffic: &Traffic| (traffic.bytes_up + traffic.bytes_down) as f64;
    let trips = f64::from(cost::Cost::offline_round_trips(plan.bundles)) / bundles;
    let online_trips = f64::from(cost.online_round_trips());
    Ok(Predicted {
        offline_s: work.offline_s(bytes(&offline) / bundles, trips, &line, &machine),
        online_s: MARKS_S + work.online_s(bytes(&cost.online), online_trips, &line, &machine),
    })
}

impl Rates {
    /// A machine with so many cores of these rates.
    fn machine(&self, cores: f64) -> Machine {
        Machine {
            linear: linear::Rates {
                upload: 1e6 * self.upload_s,
                decrypt: 1e6 * self.decrypt_s,
                ..linear::Rates::MEASURED
            },
            garbled: self.garbled,
            evaluated: self.evaluated,
            extended: self.extended,
            multiplied: self.multiplied,
            stored: self.stored,
            cores,
        }
    }

    /// Measures this machine; about two seconds.
    ///
    /// # Errors
    /// If no file can be written.
    pub(crate) fn here() -> Result<Rates> {
        let stored = disk().context("the disk's rate cannot be measured")?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        Ok(pool.expect("a pool of one thread").install(|| {
            let (garbled, evaluated) = sign_circuits();
            let (upload_s, decrypt_s) = ciphertexts();
            Rates {
                garbled,
                evaluated,
                extended: extension(),
                multiplied: convolution(),
                upload_s,
                decrypt_s,
                stored,
            }
        }))
    }
}

/// Durable bytes a second of the file system that the parties' stores are on.
fn disk() -> std::io::Result<f64> {
    let content = vec![1; DISK_PROBE_BYTES];
    let mut file = tempfile::tempfile()?;
    let start = Instant::now();
    file.write_all(&content)?;
    file.sync_all()?;
    Ok(content.len() as f64 / start.elapsed().as_secs_f64())
}

/// The least of a few times: what the work takes when nothing disturbs it.
fn least(mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..5).map(once).fold(f64::INFINITY, f64::min)
}

fn sign_circuits() -> (f64, f64) {
    const INSTANCES: usize = 1 << 13;
    const WIDTH: u32 = 16;
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let width = SignWidth::new(WIDTH).expect("a legal width");
    let delta = Delta::random(rng);
    let (mut sender, mut receiver) = ideal_cot(rng);
    let values: Vec<u64> = (0..INSTANCES).map(|_| rng.next_u64()).collect();
    let choices = Bits::of_values(&values, WIDTH);
    let (labels, message) = receiver.extend(&choices);
    let zero = sender.extend(choices.len(), &message);
    let client_zero = zero.expect("the dealer's message");
    let server_zero: Vec<Block> = (0..choices.len()).map(|_| Block::random(rng)).collect();
    let tweaks = TweakCounter::new(Block::random(rng)).take(INSTANCES, WIDTH);
    let mut tables = vec![0; width.table_bytes(INSTANCES)];
    let mut active = vec![0; width.label_bytes(INSTANCES)];
    active_labels(width, &delta, &server_zero, &values, &mut active).expect("shapes fit");
    let active = Block::decode("labels", &active, choices.len()).expect("shapes fit");
    let gates = (INSTANCES * width.and_gates()) as f64;
    let garble = least(|| {
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
    let evaluate = least(|| {
        evaluate_sign(width, &tweaks, &labels, &active, &tables).expect("shapes fit");
    });
    (gates / garble, gates / evaluate)
}

fn extension() -> f64 {
    const COUNT: usize = 1 << 16;
    const DEPTH: u32 = 4;
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let session = SessionId([1; 32]);
    let (setup, opening) = MasterSetup::start(session, Direction::Forward, rng);
    let far = MasterReceiver::respond(session, Direction::Forward, &opening, rng);
    let (far, response) = far.expect("honest bytes");
    let near = setup.finish(&response).expect("honest bytes");
    let depth = TreeDepth::new(DEPTH).expect("a legal depth");
    let bundle = BundleId([1; 32]);
    let (pending, correction) = near.begin(&bundle, depth, rng);
    let accepted = far.accept(&bundle, depth, &correction);
    let (mut receiver, setup) = accepted.expect("honest bytes");
    let mut sender = pending.finish(&setup).expect("honest bytes");
    let choices = Bits::random(COUNT, rng);
    let seconds = least(|| {
        let (_, message) = receiver.extend(&choices);
        sender.extend(COUNT, &message).expect("honest bytes");
    });
    COUNT as f64 / seconds
}

fn convolution() -> f64 {
    let rng = &mut ChaCha20Rng::seed_from_u64(3);
    let shape = ConvShape {
        channels_in: 128,
        height: 16,
        width: 16,
        channels_out: 128,
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
        .map(|_| (rng.next_u32() % 255) as i16 - 127)
        .collect();
    let prepared = PreparedConv::new(&weights, shape, 7);
    let (mut scratch, mut sum) = (ConvScratch::default(), vec![0; shape.output_len()]);
    let seconds = least(|| prepared.add_to(&input, &mut scratch, &mut sum));
    (shape.output_len() * shape.taps()) as f64 / seconds
}

fn ciphertexts() -> (f64, f64) {
    let params = Params::standard();
    let rng = &mut ChaCha20Rng::seed_from_u64(4);
    let secret = SecretKey::generate(&params, rng);
    let public = PublicKey::generate(&params, &secret, &[1; 32], rng);
    let (modulus, layout, seed) = (CiphertextModulus::Conv, SeededLayout::all_free(), [2; 32]);
    let sent = encrypt_seeded(&params, modulus, &secret, &seed, &layout, &[], rng);
    let upload_s = least(|| {
        encrypt_seeded(&params, modulus, &secret, &seed, &layout, &[], rng);
    });
    let input = expand_seeded(&params, modulus, &seed, &layout, &sent.bytes).expect("honest bytes");
    let kernel = PlainPoly::new(&params, modulus, 0, vec![(0, 1)]);
    let product = Product::new(&params, &[(&input, &kernel)]);
    let useful: Vec<u32> = (0..N as u32).collect();
    let mask = fp::uniform_vec(N, rng);
    let packed = Packed::single(&params, 1, product);
    let answer = mask_and_flood(&params, packed, &public, &useful, &mask, rng);
    let decrypt_s = least(|| {
        decrypt(&params, &secret, &answer, &useful);
    });
    (upload_s, decrypt_s)
}
