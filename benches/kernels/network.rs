//! The homomorphic linear layers of a whole network, answer by answer: processor time of both
//! parties beside what the cost model predicts.
//!
//! Weights are random, and some outputs of every answer are compared with the plain convolution of
//! the mask. Times are processor times of the whole process, of a single run.

use super::clock::processor_time;
use super::fixtures::{on_threads, small_weights};
use super::linear::{Exchange, convolutions};
use super::plans::Subject;
use clap::ValueEnum;
use pi_compiler::pass::select::{Link, select};
use pi_core::fp;
use pi_ir::{Circuit, Conv, LayerWeights, Shape, Term, Weights, group_reads};
use pi_machine::named;
use pi_protocol::layout::AnswerMap;
use pi_protocol::linear::{
    Answers, Operations, Rates, Uploads, cost, finish_answer, receive_upload, rows_of,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use serde_json::json;
use std::path::PathBuf;

/// Choice of a network.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The network.
    #[arg(value_enum)]
    network: Subject,
    /// Bundles that share ciphertexts.
    #[arg(long, value_name = "K", default_value_t = 1)]
    bundles: u32,
    /// Threads of the process.
    #[arg(long, value_name = "T", default_value_t = 1)]
    threads: usize,
    /// Machine that the plan and the prediction are for, as pi-compile takes it.
    #[arg(long, value_name = "MACHINE", default_value = pi_machine::HERE)]
    machine: String,
    /// File for all figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Outputs of each answer that are compared.
const COMPARED: usize = 32;

/// Measured and predicted processor milliseconds of one step for some ciphertexts.
#[derive(Clone, Copy, Default)]
struct Measured {
    /// Server: expansion of uploads, or products, merges and finish.
    server: f64,
    /// Client: encryption of uploads, or decryption.
    client: f64,
    operations: Operations,
}

impl std::ops::AddAssign for Measured {
    fn add_assign(&mut self, other: Measured) {
        self.server += other.server;
        self.client += other.client;
        self.operations += other.operations;
    }
}

/// Prints a line for each answer and for each kind of convolution.
pub(crate) fn table(options: &Options) {
    let rows = on_threads(options.threads, || run(options));
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&rows).expect("numbers and strings");
        std::fs::write(file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

fn run(options: &Options) -> serde_json::Value {
    let circuit = options.network.circuit();
    let bundles = options.bundles;
    let machine = named(&options.machine).unwrap_or_else(|error| panic!("{error}"));
    println!("for {}", machine.in_words());
    let link = Link {
        machine: machine.profile,
        ..Link::default()
    };
    let plan = select(&circuit, bundles, &link).expect("a plan exists");
    let rng = &mut ChaCha20Rng::seed_from_u64(7);
    let weights = random_weights(&circuit, rng);
    let exchange = Exchange::new(&circuit, &plan, &weights, 0);
    let (packing, client) = (&exchange.packing, &exchange.client);
    let costs = cost(packing);

    let mut of_uploads = Measured::default();
    let mut sent = Uploads::new(&client.params, packing, &client.secret, &SEED, rng);
    let messages: Vec<Vec<u8>> = timed(&mut of_uploads.client, || {
        std::iter::from_fn(|| sent.next_message()).collect()
    });
    let masks = sent.into_masks();
    let kernels = &exchange.kernels;
    let galois = &exchange.galois;
    let mut answers = Answers::new(
        &client.params,
        packing,
        kernels,
        &client.public,
        galois,
        rng,
    );
    let mut rows = vec![Measured::default(); packing.answers().len()];
    let terms: Vec<(usize, &Conv)> = terms(&circuit).collect();
    for (index, upload) in packing.uploads().iter().enumerate() {
        let received = timed(&mut of_uploads.server, || {
            let message = &messages[index];
            let ciphertexts = receive_upload(&client.params, packing, &SEED, index, message);
            rows_of(upload, ciphertexts.expect("honest bytes"))
        });
        let readers = packing.answers().iter().enumerate();
        for (at, answer) in readers.filter(|(_, answer)| answer.upload() == index) {
            let row = &mut rows[at];
            row.operations = costs.answers[at];
            let (message, server) = timed(&mut row.server, || answers.make(at, &received));
            let share = timed(&mut row.client, || {
                finish_answer(&client.params, packing, &client.secret, at, &message)
                    .expect("honest bytes")
            });
            let (term, conv) = terms[at];
            let kernel = &weights.layers[answer.layer() as usize].kernels[term];
            let mask = masks[conv.input.0 as usize].as_ref();
            compare(
                answer,
                upload.shape(),
                kernel,
                mask.expect("it is read"),
                |i| fp::sub(share[i], server[i]),
            );
        }
    }
    of_uploads.operations = costs.uploads.iter().copied().sum();
    let rates = &link.machine.linear;
    let of = (&circuit, rates);
    report(options, of, packing.answers(), of_uploads, &rows)
}

/// Seed of the public halves of all uploads.
const SEED: [u8; 32] = [13; 32];

/// Adds the processor milliseconds of `step`.
fn timed<T>(milliseconds: &mut f64, step: impl FnOnce() -> T) -> T {
    let start = processor_time();
    let result = step();
    *milliseconds += 1e3 * (processor_time() - start).as_secs_f64();
    result
}

/// The convolutions of a circuit, each with its number among those of its layer.
fn terms(circuit: &Circuit) -> impl Iterator<Item = (usize, &Conv)> {
    circuit.layers.iter().flat_map(|layer| {
        let convs = layer.terms.iter().filter_map(|term| match term {
            Term::Conv(conv) => Some(conv),
            Term::Residual { .. } => None,
        });
        convs.enumerate()
    })
}

fn random_weights(circuit: &Circuit, rng: &mut ChaCha20Rng) -> Weights {
    let layers = circuit.layers.iter().map(|layer| {
        let convs = layer.terms.iter().filter_map(|term| match term {
            Term::Conv(conv) => Some(conv),
            Term::Residual { .. } => None,
        });
        let kernel =
            |conv: &Conv| small_weights(conv.weight_count(circuit.tensor_shape(conv.input)), rng);
        LayerWeights {
            kernels: convs.map(kernel).collect(),
            bias: vec![0; layer.shape.c as usize],
            element_bias: Vec::new(),
            polynomials: Vec::new(),
        }
    });
    Weights {
        layers: layers.collect(),
    }
}

/// Compares some outputs with the convolution of the mask by its definition.
///
/// # Panics
/// If one differs.
fn compare(
    answer: &AnswerMap,
    input: Shape,
    kernel: &[i16],
    mask: &[u64],
    output: impl Fn(usize) -> u64,
) {
    let (conv, out) = (answer.conv(), answer.output());
    let mut rng = ChaCha20Rng::seed_from_u64(answer.len() as u64);
    for _ in 0..COMPARED {
        let element = (rng.next_u64() % answer.len() as u64) as usize;
        let (bundle, at) = (element / out.len(), (element % out.len()) as u32);
        let (channel, y, x) = (at / (out.h * out.w), at / out.w % out.h, at % out.w);
        let read = group_reads(conv.groups, (input.c, out.c), channel);
        let of_group = read.len() as u32;
        let mut expected = 0;
        for (c, from) in read.enumerate() {
            for k in 0..conv.kernel.0 {
                for l in 0..conv.kernel.1 {
                    let row = (y * conv.stride.0 + k).wrapping_sub(conv.padding.top);
                    let column = (x * conv.stride.1 + l).wrapping_sub(conv.padding.left);
                    if row >= input.h || column >= input.w {
                        continue;
                    }
                    let value = ((from * input.h + row) * input.w + column) as usize;
                    let value = mask[bundle * input.len() + value];
                    let weight =
                        ((channel * of_group + c as u32) * conv.kernel.0 + k) * conv.kernel.1 + l;
                    let weight = fp::from_i64(i64::from(kernel[weight as usize]));
                    expected = fp::add(expected, fp::mul(value, weight));
                }
            }
        }
        let name = answer.layer();
        assert_eq!(output(element), expected, "layer {name}, output {element}");
    }
}

/// Prints the table, and gives the same as JSON.
fn report(
    options: &Options,
    (circuit, rates): (&Circuit, &Rates),
    answers: &[AnswerMap],
    of_uploads: Measured,
    rows: &[Measured],
) -> serde_json::Value {
    println!("processor milliseconds of one run, all bundles; predicted ones behind the slash");
    let figures = |name: &str, count: usize, row: &Measured| {
        let o = &row.operations;
        let (server, client) = (1e-3 * o.server_micros(rates), 1e-3 * o.client_micros(rates));
        println!(
            "{name:24} x{count:<3} in {:5} kernels {:6} products {:6} sums {:6} ks {:6} out {:5} | \
             server {:8.1} / {server:8.1}  client {:7.1} / {client:7.1}",
            o.inputs,
            o.kernels,
            o.products,
            o.sums,
            o.key_switches,
            o.outputs,
            row.server,
            row.client
        );
        json!({
            "name": name,
            "answers": count,
            "inputs": o.inputs,
            "kernels": o.kernels,
            "products": o.products,
            "sums": o.sums,
            "key_switches": o.key_switches,
            "outputs": o.outputs,
            "server_ms": row.server,
            "client_ms": row.client,
            "predicted_server_ms": server,
            "predicted_client_ms": client,
        })
    };
    let mut all = vec![figures("uploads", 1, &of_uploads)];
    let mut kinds = [(0, Measured::default()); 4];
    let mut total = of_uploads;
    for (answer, row) in answers.iter().zip(rows) {
        let name = &circuit.layers[answer.layer() as usize].name;
        all.push(figures(name, 1, row));
        let conv = answer.conv();
        let kind = match (conv.groups > 1, conv.kernel == (1, 1), answer.output().h) {
            (true, _, _) => 0,
            (false, true, 2..) => 1,
            (false, true, _) => 3,
            (false, false, _) => 2,
        };
        kinds[kind].0 += 1;
        kinds[kind].1 += *row;
        total += *row;
    }
    let names = ["grouped", "pointwise", "other convolutions", "dense"];
    for (name, (count, sum)) in names.into_iter().zip(&kinds) {
        all.push(figures(name, *count, sum));
    }
    all.push(figures("all", rows.len(), &total));
    json!({
        "network": options.network.to_possible_value().expect("not hidden").get_name(),
        "bundles": options.bundles,
        "threads": options.threads,
        "convolutions": convolutions(circuit).count(),
        "rows": all,
    })
}
