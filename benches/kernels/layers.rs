//! The homomorphic linear layers of ResNet-18 one by one: both parties' processor time by stage,
//! bytes and counts.
//!
//! Weights are random and every result is compared with the plain convolution. Times are processor
//! times of the whole process, the least of the runs. `finish` is measured apart, on as many
//! ciphertexts with the same gaps and useful coefficients; `server` is the answer less that.

use super::clock::processor_time;
use super::fixtures::{Client, on_threads};
use super::linear::{Exchange, circuit_of, convolution, convolutions, random_weights};
use pi_core::fp;
use pi_ir::{Circuit, Conv, OutputPacking, Plan, Shape, TensorId, Upload};
use pi_protocol::layout::{AnswerMap, Packing, RING_DEGREE, TensorUse, conv_output};
use pi_protocol::linear::cost;
use pi_ring::conv::{ConvShape, Padding, conv2d_fp_scalar};
use pi_rlwe::{CiphertextModulus, Packed, PlainPoly, Product, mask_and_flood};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use rayon::prelude::*;
use serde_json::json;
use std::path::PathBuf;

/// Choice of layers, and number of runs.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Threads of the process.
    #[arg(long, value_name = "T", default_value_t = 1)]
    threads: usize,
    /// Runs of which the fastest counts, stage by stage.
    #[arg(long, value_name = "R", default_value_t = 3)]
    runs: u32,
    /// Measures only layers whose names contain this.
    #[arg(long, value_name = "PART", default_value = "")]
    only: String,
    /// Megabytes in which the server may keep transformed kernels.
    #[arg(long, value_name = "MB", default_value_t = 0)]
    cache: usize,
    /// File for all figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Prints a line for each layer.
pub(crate) fn table(options: &Options) {
    let rows = on_threads(options.threads, || run(options));
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&rows).expect("numbers and strings");
        std::fs::write(file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

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
        let consumers = self.consumers.iter();
        let convs = consumers.map(|&(out, kernel, _)| convolution(out, kernel, self.stride));
        circuit_of(self.name, self.input(), convs)
    }

    fn plan(&self, circuit: &Circuit) -> Plan {
        let convs: Vec<&Conv> = convolutions(circuit).collect();
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

    /// Checks that the shares add up to the convolution of the mask, bundle by bundle.
    ///
    /// # Panics
    /// If they do not.
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
            padding: Padding {
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

/// Runs `stage` and lowers `least` to its processor time.
fn timed<T>(least: &mut f64, stage: impl FnOnce() -> T) -> T {
    let start = processor_time();
    let result = stage();
    *least = least.min((processor_time() - start).as_secs_f64());
    result
}

/// Least processor seconds of each stage.
struct Stages {
    upload: f64,
    receive: f64,
    answer: f64,
    finish: f64,
    client: f64,
}

/// Runs a configuration and checks its result.
fn measure(configuration: &Configuration, options: &Options) -> (Stages, Packing) {
    let circuit = configuration.circuit();
    let plan = configuration.plan(&circuit);
    let rng = &mut ChaCha20Rng::seed_from_u64(7);
    let weights = random_weights(&circuit, rng);
    let exchange = Exchange::new(&circuit, &plan, &weights, options.cache << 20);
    let mut least = Stages {
        upload: f64::INFINITY,
        receive: f64::INFINITY,
        answer: f64::INFINITY,
        finish: f64::INFINITY,
        client: f64::INFINITY,
    };
    for run in 0..options.runs {
        let (uploads, masks) = timed(&mut least.upload, || exchange.upload(rng));
        let received = timed(&mut least.receive, || exchange.receive(&uploads));
        let (answers, server) = timed(&mut least.answer, || exchange.answer(received, rng));
        let client = timed(&mut least.client, || exchange.finish(&answers));
        finish_apart(&exchange.client, &exchange.packing, &mut least.finish);
        if run == 0 {
            let mask = masks[0].as_ref().expect("the tensor is uploaded");
            for (a, conv) in convolutions(&circuit).enumerate() {
                let kernel = &weights.layers[a].kernels[0];
                configuration.check(conv, kernel, mask, &client[a], &server[a]);
            }
        }
    }
    (least, exchange.packing)
}

/// Finishes as many ciphertexts as the packing answers, at the same gaps.
fn finish_apart(client: &Client, packing: &Packing, least: &mut f64) {
    /// Ciphertexts in memory at a time.
    const TOGETHER: usize = 16;
    let (params, modulus) = (&client.params, CiphertextModulus::Conv);
    let rng = &mut ChaCha20Rng::seed_from_u64(8);
    let ciphertext = client.expand(modulus, &client.upload(modulus, rng));
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
                    mask_and_flood(params, packed, &client.public, useful, &mask, rng).encode()
                })
                .collect::<Vec<_>>()
        });
        total += seconds;
    }
    *least = least.min(total);
}

fn run(options: &Options) -> Vec<serde_json::Value> {
    println!("processor milliseconds and megabytes are per bundle");
    println!(
        "{:13} {:>3} {:>2} {:>4} {:>5} {:>6} {:>6} {:>5} {:>6} {:>6} {:>6} {:>7} {:>7} {:>8} \
         {:>7} {:>7}",
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
    let chosen = configurations
        .iter()
        .filter(|c| c.name.contains(&options.only));
    chosen
        .map(|configuration| {
            let (stages, packing) = measure(configuration, options);
            report(configuration, &stages, &packing)
        })
        .collect()
}

/// Prints a line, and gives the same in full.
fn report(configuration: &Configuration, stages: &Stages, packing: &Packing) -> serde_json::Value {
    let cost = cost(packing);
    let operations = cost.operations();
    let products = |answer: &AnswerMap| (answer.rows().len() * answer.chunks()) << answer.merge();
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
        "{:13} {:3} {:2} {:4} {:5} {:6} {:6} {:5} {:6} {:6.3} {:6.3} {:7.2} {:7.2} {:8.2} \
         {:7.2} {:7.2}",
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
            "answer": stages.answer,
            "finish": stages.finish,
            "server": server,
            "client_finish": stages.client,
        },
    })
}
