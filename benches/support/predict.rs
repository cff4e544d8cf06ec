//! The time that an inference should take by the compiler's model ([`pi_compiler::cost::latency`]),
//! at the rates of this machine. The rates of ciphertexts, gates, OTs, multiply-adds and the disk
//! are measured for two seconds before the benchmark.

use super::circuit::{circuit_figures, operations, packed};
use super::fixtures::{
    self, Client, Convolution, SignCircuits, all_coefficients, least, on_threads,
};
use super::link::Link;
use anyhow::{Context, Result};
use pi_compiler::cost::latency::{Line, MARKS_S, Machine, Work};
use pi_core::{Bits, fp};
use pi_ir::Artifact;
use pi_ot::{CotReceiver, CotSender, Direction, TreeDepth};
use pi_protocol::cost::{self, Traffic};
use pi_protocol::linear;
use pi_rlwe::{CiphertextModulus, N, Packed, PlainPoly, Product, decrypt};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
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
    /// Bytes a second at which files are written durably.
    stored: f64,
}

/// Bytes written to measure the rate of the disk.
const DISK_PROBE_BYTES: usize = 64 << 20;
/// Runs of which the fastest gives a rate.
const RUNS: usize = 5;

/// Predictions of the model.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Predicted {
    /// Seconds to prepare one bundle.
    pub(crate) offline_s: f64,
    /// Seconds of one inference.
    pub(crate) online_s: f64,
}

/// Applies the model to a circuit on a line.
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
    let trips = f64::from(cost.offline_round_trips(plan.bundles)) / bundles;
    let online_trips = f64::from(cost.online_round_trips());
    Ok(Predicted {
        offline_s: work.offline_s(bytes(&offline) / bundles, trips, &line, &machine),
        online_s: MARKS_S + work.online_s(bytes(&cost.online), online_trips, &line, &machine),
    })
}

impl Rates {
    /// A machine with this many cores of these rates.
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

    /// Measures this machine, which takes about two seconds.
    ///
    /// # Errors
    /// If no file can be written.
    pub(crate) fn here() -> Result<Rates> {
        let stored = disk().context("the disk's rate cannot be measured")?;
        Ok(on_threads(1, || {
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

/// Bytes a second that can be written durably to the file system of the parties' stores.
fn disk() -> std::io::Result<f64> {
    let content = vec![1; DISK_PROBE_BYTES];
    let mut file = tempfile::tempfile()?;
    let start = Instant::now();
    file.write_all(&content)?;
    file.sync_all()?;
    Ok(content.len() as f64 / start.elapsed().as_secs_f64())
}

/// AND gates a second, garbled and evaluated.
fn sign_circuits() -> (f64, f64) {
    let mut circuits = SignCircuits::new(1 << 13);
    let gates = circuits.gates() as f64;
    let garble = least(RUNS, || circuits.garble());
    let evaluate = least(RUNS, || drop(circuits.evaluate()));
    (gates / garble, gates / evaluate)
}

/// Correlated OTs a second.
fn extension() -> f64 {
    const COUNT: usize = 1 << 16;
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let masters = fixtures::masters(Direction::Forward, rng);
    let (mut sender, mut receiver) = fixtures::extension(&masters, TreeDepth::default(), rng);
    let choices = Bits::random(COUNT, rng);
    let seconds = least(RUNS, || {
        let (_, message) = receiver.extend(&choices);
        sender.extend(COUNT, &message).expect("honest bytes");
    });
    COUNT as f64 / seconds
}

/// Multiply-adds a second.
fn convolution() -> f64 {
    let mut convolution = Convolution::new(128, 16, 128, 3);
    let seconds = least(RUNS, || convolution.run());
    convolution.multiply_adds() as f64 / seconds
}

/// Seconds to encrypt an upload and to decrypt an answer.
fn ciphertexts() -> (f64, f64) {
    let client = Client::new();
    let params = &client.params;
    let rng = &mut ChaCha20Rng::seed_from_u64(4);
    let modulus = CiphertextModulus::Conv;
    let sent = client.upload(modulus, rng);
    let upload_s = least(RUNS, || drop(client.upload(modulus, rng)));
    let input = client.expand(modulus, &sent);
    let kernel = PlainPoly::new(params, modulus, 0, vec![(0, 1)]);
    let product = Product::new(params, &[(&input, &kernel)]);
    let packed = Packed::single(params, 1, product);
    let answer = client.finish(packed, &fp::uniform_vec(N, rng), rng);
    let useful = all_coefficients();
    let decrypt_s = least(RUNS, || {
        decrypt(params, &client.secret, &answer, &useful);
    });
    (upload_s, decrypt_s)
}
