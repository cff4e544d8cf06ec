//! Measures the homomorphic linear layers one by one: both parties' processor time by stage, bytes
//! and counts.
//!
//! `cargo run --release -p pi-protocol --example layers -- [--threads T] [--runs R] [--only PART]
//! [--cache MB] [--json FILE]`
//!
//! Weights are random and every result is compared with the plain convolution. Times are processor
//! time of the whole process, the least of the runs. `finish` is measured apart, on as many
//! ciphertexts with the same gaps and useful coefficients; `server` is the answer less that.

use nix::sys::resource::{UsageWho, getrusage};
use pi_core::fp;
use pi_ir::{
    Circuit, Conv, Layer, LayerWeights, OutputPacking, Padding, Plan, Range, Shape, Step, TensorId,
    Term, Upload, Weights,
};
use pi_protocol::layout::{Packing, RING_DEGREE, TensorUse, conv_output};
use pi_protocol::linear::{
    Answers, Kernels, Uploads, cost, finish_answer, receive_upload, rows_of,
};
use pi_ring::conv::{self, ConvShape, conv2d_fp_scalar};
use pi_rlwe::{
    CiphertextModulus, GaloisKeys, Packed, Params, PlainPoly, Product, PublicKey, SecretKey,
    SeededLayout, encrypt_seeded, expand_seeded, mask_and_flood,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use serde_json::json;

/// A square tensor, the convolutions that read it, and how they are packed.
struct Configuration {
    name: &'static str,
    bundles: u32,
    channels: u32,
    side: u32,
    stride: u32,
    /// Output channels, kernel side and levels of merging of each convolution.
    consumers: &'static [(u32, u32, u32)],
    group: u32,
    /// Rows and columns of outputs.
    tile: (u32, u32),
    output_blocks: u32,
}

/// Name, bundles, channels, side, stride, consumers, group, side of the tile, output blocks.
type Row = (
    &'static str,
    u32,
    u32,
    u32,
    u32,
    &'static [(u32, u32, u32)],
    u32,
    u32,
    u32,
);

/// The layers of a ResNet-18 on 32x32 images, one bundle and sixteen.
#[rustfmt::skip]
const CONFIGURATIONS: [Row; 16] = [
    ("512@4",         1, 512,  4, 1, &[(512, 3, 6)],              64,  4, 4),
    ("512@4 x16",    16, 512,  4, 1, &[(512, 3, 5)],              32,  4, 1),
    ("64@32",         1,  64, 32, 1, &[(64, 3, 2)],                4, 32, 1),
    ("64@32 x16",    16,  64, 32, 1, &[(64, 3, 0)],                1, 32, 1),
    ("3@32",          1,   3, 32, 1, &[(64, 3, 2)],                4, 32, 1),
    ("64@32/2",       1,  64, 32, 2, &[(128, 3, 4), (128, 1, 4)], 16, 16, 1),
    ("128@16",        1, 128, 16, 1, &[(128, 3, 4)],              16, 16, 1),
    ("128@16/2",      1, 128, 16, 2, &[(256, 3, 6), (256, 1, 6)], 64,  8, 1),
    ("256@8",         1, 256,  8, 1, &[(256, 3, 6)],              64,  8, 1),
    ("256@8/2",       1, 256,  8, 2, &[(512, 3, 6), (512, 1, 6)], 64,  4, 4),
    ("3@32 x16",     16,   3, 32, 1, &[(64, 3, 0)],                1, 32, 1),
    ("64@32/2 x16",  16,  64, 32, 2, &[(128, 3, 2), (128, 1, 2)],  4, 16, 1),
    ("128@16 x16",   16, 128, 16, 1, &[(128, 3, 2)],               4, 16, 1),
    ("128@16/2 x16", 16, 128, 16, 2, &[(256, 3, 3), (256, 1, 3)],  8,  8, 1),
    ("256@8 x16",    16, 256,  8, 1, &[(256, 3, 3)],               8,  8, 1),
    ("256@8/2 x16",  16, 256,  8, 2, &[(512, 3, 5), (512, 1, 5)], 32,  4, 1),
];

impl From<Row> for Configuration {
    fn from(row: Row) -> Self {
        let (name, bundles, channels, side, stride, consumers, group, tile, output_blocks) = row;
        Self {
            name,
            bundles,
            channels,
            side,
            stride,
            consumers,
            group,
            tile: (tile, tile),
            output_blocks,
        }
    }
}

impl Configuration {
    fn input(&self) -> Shape {
        Shape::new(self.channels, self.side, self.side)
    }

    fn circuit(&self) -> Circuit {
        let layer = |&(out_channels, kernel, merge): &(u32, u32, u32)| {
            let conv = Conv {
                input: TensorId(0),
                out_channels,
                kernel: (kernel, kernel),
                stride: (self.stride, self.stride),
                padding: Padding::same(kernel / 2),
                weight_bits: 8,
            };
            Layer {
                name: format!("{kernel}x{kernel}, {merge} levels"),
                shape: conv_output(self.input(), &conv).expect("the kernel fits the tensor"),
                terms: vec![Term::Conv(conv)],
                pool: None,
                bound_bits: 0,
                range: Range::Proved,
                step: Step::Output { frac_bits: 0 },
            }
        };
        Circuit {
            name: self.name.into(),
            input: self.input(),
            input_frac_bits: 0,
            mean: Vec::new(),
            std: Vec::new(),
            classes: Vec::new(),
            layers: self.consumers.iter().map(layer).collect(),
        }
    }

    fn plan(&self, circuit: &Circuit) -> Plan {
        let convs: Vec<&Conv> = convs(circuit).collect();
        let tightest = TensorUse::new(1, self.input(), &convs).tightest(self.group, self.tile);
        let tightest = tightest.expect("the tile fits a ciphertext");
        let mut layout = tightest.upload().layout().clone();
        let output = conv_output(self.input(), convs[0]).expect("the kernel fits the tensor");
        let tiles = output.h.div_ceil(layout.tile.0) * output.w.div_ceil(layout.tile.1);
        layout.blocks = match self.output_blocks {
            1 => (RING_DEGREE / (layout.block * layout.group)).min(tiles * self.bundles),
            _ => 1,
        };
        let answers = self.consumers.iter().enumerate();
        let answers = answers.map(|(layer, &(_, _, merge))| OutputPacking {
            layer: layer as u32,
            term: 0,
            upload: 0,
            merge,
            output_blocks: self.output_blocks,
        });
        Plan {
            ring_degree: RING_DEGREE,
            bundles: self.bundles,
            answers: answers.collect(),
            uploads: vec![Upload {
                tensor: TensorId(0),
                layout,
            }],
        }
    }

    fn weights(&self, circuit: &Circuit, rng: &mut impl RngCore) -> Weights {
        let layer = |conv: &Conv| {
            let count = conv.out_channels * self.channels * conv.kernel.0 * conv.kernel.1;
            let kernel = (0..count).map(|_| (rng.next_u32() % 255) as i16 - 127);
            LayerWeights {
                kernels: vec![kernel.collect()],
                bias: vec![0; conv.out_channels as usize],
                polynomials: Vec::new(),
            }
        };
        Weights {
            layers: convs(circuit).map(layer).collect(),
        }
    }

    /// Panics unless the shares add up to the convolution of the mask, bundle by bundle.
    fn check(&self, conv: &Conv, weights: &[i16], mask: &[u64], client: &[u64], server: &[u64]) {
        let pad = conv.padding.top as usize;
        let shape = ConvShape {
            channels_in: self.channels as usize,
            height: self.side as usize,
            width: self.side as usize,
            channels_out: conv.out_channels as usize,
            kernel_height: conv.kernel.0 as usize,
            kernel_width: conv.kernel.1 as usize,
            stride: self.stride as usize,
            padding: conv::Padding {
                top: pad,
                left: pad,
                bottom: pad,
                right: pad,
            },
        };
        let expected: Vec<u64> = mask
            .chunks_exact(self.input().len())
            .flat_map(|r| conv2d_fp_scalar(r, weights, &shape))
            .collect();
        assert_eq!(
            (expected.len(), expected.len()),
            (client.len(), server.len())
        );
        for (i, ((wr, c), s)) in expected.iter().zip(client).zip(server).enumerate() {
            assert_eq!(*c, fp::add(*wr, *s), "{}: output {i}", self.name);
        }
    }
}

fn convs(circuit: &Circuit) -> impl Iterator<Item = &Conv> {
    let terms = circuit.layers.iter().flat_map(|layer| &layer.terms);
    terms.filter_map(|term| match term {
        Term::Conv(conv) => Some(conv),
        Term::Residual { .. } => None,
    })
}

/// Processor time of the process in seconds, user and system.
fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the kernel counts time");
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6)
        .sum()
}

/// Runs `stage` and lowers `least` to its processor time.
fn timed<T>(least: &mut f64, stage: impl FnOnce() -> T) -> T {
    let start = cpu();
    let result = stage();
    *least = least.min(cpu() - start);
    result
}

struct Parties {
    params: Params,
    secret: SecretKey,
    public: PublicKey,
    keys: GaloisKeys,
}

/// Least processor seconds of each stage.
struct Stages {
    upload: f64,
    receive: f64,
    prepare: f64,
    answer: f64,
    finish: f64,
    client: f64,
}

/// Runs a configuration and checks its result.
fn measure(
    parties: &Parties,
    configuration: &Configuration,
    runs: u32,
    cache_bytes: usize,
) -> (Stages, Packing) {
    let params = &parties.params;
    let circuit = configuration.circuit();
    let packing = Packing::new(&circuit, &configuration.plan(&circuit))
        .unwrap_or_else(|faults| panic!("{}: {faults:?}", configuration.name));
    let rng = &mut ChaCha20Rng::seed_from_u64(7);
    let weights = configuration.weights(&circuit, rng);
    let mut least = Stages {
        upload: f64::INFINITY,
        receive: f64::INFINITY,
        prepare: f64::INFINITY,
        answer: f64::INFINITY,
        finish: f64::INFINITY,
        client: f64::INFINITY,
    };
    let kernels = timed(&mut least.prepare, || {
        Kernels::prepare(params, &packing, &weights, cache_bytes)
            .expect("the weights fit the circuit")
    });
    for run in 0..runs {
        let seed = [run as u8; 32];
        // One tensor, read with one stride: one upload, and an answer for each convolution.
        let (sent, masks) = timed(&mut least.upload, || {
            let mut uploads = Uploads::new(params, &packing, &parties.secret, &seed, rng);
            let sent = uploads.next_message().expect("there is an upload");
            (sent, uploads.into_masks())
        });
        let received = timed(&mut least.receive, || {
            receive_upload(params, &packing, &seed, 0, &sent).expect("honest bytes")
        });
        let (public, keys) = (&parties.public, &parties.keys);
        let (messages, server): (Vec<_>, Vec<_>) = timed(&mut least.answer, || {
            let rows = rows_of(&packing.uploads()[0], received);
            let mut answers = Answers::new(params, &packing, &kernels, public, keys, rng);
            let count = packing.answers().len();
            (0..count).map(|answer| answers.make(answer, &rows)).unzip()
        });
        let client: Vec<_> = timed(&mut least.client, || {
            let (secret, messages) = (&parties.secret, messages.iter().enumerate());
            messages
                .map(|(answer, message)| finish_answer(params, &packing, secret, answer, message))
                .collect::<Result<_, _>>()
                .expect("honest bytes")
        });
        finish_apart(parties, &packing, &mut least.finish);
        if run == 0 {
            let mask = masks[0].as_ref().expect("the tensor is uploaded");
            for (a, conv) in convs(&circuit).enumerate() {
                let kernel = &weights.layers[a].kernels[0];
                configuration.check(conv, kernel, mask, &client[a], &server[a]);
            }
        }
    }
    (least, packing)
}

/// Finishes as many ciphertexts as the packing answers, at the same gaps.
fn finish_apart(parties: &Parties, packing: &Packing, least: &mut f64) {
    /// Ciphertexts in memory at a time.
    const TOGETHER: usize = 16;
    let (params, modulus) = (&parties.params, CiphertextModulus::Conv);
    let (seed, layout) = ([9; 32], SeededLayout::all_free());
    let rng = &mut ChaCha20Rng::seed_from_u64(8);
    let sent = encrypt_seeded(params, modulus, &parties.secret, &seed, &layout, &[], rng);
    let ciphertext =
        expand_seeded(params, modulus, &seed, &layout, &sent.bytes).expect("honest bytes");
    let one = PlainPoly::new(params, modulus, 0, [(0, 1)]);
    let product = Product::new(params, &[(&ciphertext, &one)]);
    let mut jobs = Vec::new();
    for answer in packing.answers() {
        let map = &packing.uploads()[answer.upload()];
        let gap = map.layout().group as usize >> answer.merge();
        for index in 0..answer.ciphertexts() {
            let useful = answer.useful(map, index);
            let useful: Vec<u32> = useful.iter().map(|u| u.coefficient).collect();
            jobs.push((gap, useful, ChaCha20Rng::seed_from_u64(jobs.len() as u64)));
        }
    }
    let mut total = 0.0;
    for jobs in jobs.chunks_mut(TOGETHER) {
        let packed: Vec<Packed> = jobs
            .iter()
            .map(|(gap, _, _)| Packed::single(params, *gap, product.clone()))
            .collect();
        let mut seconds = f64::INFINITY;
        timed(&mut seconds, || {
            let pairs = packed.into_par_iter().zip(jobs);
            pairs
                .map(|(packed, (_, useful, rng))| {
                    let mask = fp::uniform_vec(useful.len(), rng);
                    mask_and_flood(params, packed, &parties.public, useful, &mask, rng).encode()
                })
                .collect::<Vec<_>>()
        });
        total += seconds;
    }
    *least = least.min(total);
}

fn run(runs: u32, cache_bytes: usize, only: &str) -> Vec<serde_json::Value> {
    let params = Params::standard();
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let secret = SecretKey::generate(&params, rng);
    let parties = Parties {
        public: PublicKey::generate(&params, &secret, &[1; 32], rng),
        keys: GaloisKeys::generate(&params, &secret, &[1; 32], 256, rng),
        params,
        secret,
    };
    println!("processor milliseconds and megabytes are per bundle");
    println!(
        "{:13} {:>3} {:>2} {:>4} {:>5} {:>6} {:>6} {:>5} {:>6} {:>6} {:>6} {:>7} {:>7} {:>8} {:>7} {:>7}",
        "layer",
        "G",
        "nb",
        "in",
        "kern",
        "mults",
        "sums",
        "keysw",
        "out",
        "MB up",
        "MB dn",
        "upload",
        "receive",
        "server",
        "finish",
        "client"
    );
    let configurations = CONFIGURATIONS.map(Configuration::from);
    let chosen = configurations.iter().filter(|c| c.name.contains(only));
    chosen
        .map(|configuration| {
            let (stages, packing) = measure(&parties, configuration, runs, cache_bytes);
            report(configuration, &stages, &packing)
        })
        .collect()
}

/// Prints a line, and gives the same in full.
fn report(configuration: &Configuration, stages: &Stages, packing: &Packing) -> serde_json::Value {
    let cost = cost(packing);
    let operations = cost.operations();
    let products = |answer: &pi_protocol::layout::AnswerMap| {
        (answer.rows().len() * answer.chunks()) << answer.merge()
    };
    let sums: usize = packing.answers().iter().map(products).sum();
    let bundles = f64::from(configuration.bundles);
    let up = cost.upload_bytes.iter().sum::<usize>();
    let down = cost.answer_bytes.iter().sum::<usize>();
    let map = &packing.uploads()[0];
    let layout = map.layout();
    let server = stages.answer - stages.finish;
    let ms = |seconds: f64| 1e3 * seconds / bundles;
    let mb = |bytes: usize| 1e-6 * bytes as f64 / bundles;
    println!(
        "{:13} {:3} {:2} {:4} {:5} {:6} {:6} {:5} {:6} {:6.3} {:6.3} {:7.2} {:7.2} {:8.2} {:7.2} {:7.2}",
        configuration.name,
        layout.group,
        configuration.output_blocks,
        operations.inputs,
        operations.kernels,
        operations.products,
        sums,
        operations.key_switches,
        operations.outputs,
        mb(up),
        mb(down),
        ms(stages.upload),
        ms(stages.receive),
        ms(server),
        ms(stages.finish),
        ms(stages.client),
    );
    let consumers = configuration.consumers.iter().map(
        |&(channels, kernel, merge)| json!({"channels": channels, "kernel": kernel, "merge": merge}),
    );
    let weights = packing.answers().iter().map(|answer| answer.weights(map));
    json!({
        "name": configuration.name,
        "bundles": configuration.bundles,
        "channels": configuration.channels,
        "side": configuration.side,
        "stride": configuration.stride,
        "consumers": consumers.collect::<Vec<_>>(),
        "group": layout.group,
        "blocks": layout.blocks,
        "block": layout.block,
        "output_blocks": configuration.output_blocks,
        "input_ciphertexts": operations.inputs,
        "repeated_coefficients": map.total_counts().forced,
        "kernel_polynomials": operations.kernels,
        "kernel_terms": weights.sum::<usize>(),
        "multiplications": operations.products,
        "products": sums,
        "key_switches": operations.key_switches,
        "output_ciphertexts": operations.outputs,
        "bytes_up": up,
        "bytes_down": down,
        "cpu_seconds": {
            "upload": stages.upload,
            "receive": stages.receive,
            "prepare": stages.prepare,
            "answer": stages.answer,
            "finish": stages.finish,
            "server": server,
            "client_finish": stages.client,
        },
    })
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut threads, mut runs, mut cache_bytes) = (1, 3, 0);
    let (mut only, mut file) = (String::new(), None);
    while let Some(argument) = arguments.next() {
        let value = arguments
            .next()
            .unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            "--threads" => threads = value.parse().expect("a number of threads"),
            "--runs" => runs = value.parse().expect("a number of runs"),
            "--cache" => cache_bytes = value.parse::<usize>().expect("megabytes") << 20,
            "--only" => only = value,
            "--json" => file = Some(value),
            _ => panic!("unknown option {argument}"),
        }
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a thread pool");
    let rows = pool.install(|| run(runs, cache_bytes, &only));
    if let Some(file) = file {
        let text = serde_json::to_string_pretty(&rows).expect("numbers and strings");
        std::fs::write(&file, text).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
}
