//! The homomorphic linear layers offline: circuits of convolutions, and the exchange of both
//! parties.

use super::Criterion;
use super::fixtures::{Client, galois_keys, small_weights};
use criterion::{BenchmarkId, Throughput};
use pi_compiler::pass::select::{Link, select};
use pi_ir::{
    Circuit, Conv, Layer, LayerWeights, Padding, Plan, Preprocessing, Range, Shape, Step, TensorId,
    Term, Weights,
};
use pi_protocol::layout::{Packing, conv_output};
use pi_protocol::linear::{
    Answers, Kernels, Rates, Uploads, cost, finish_answer, max_gap, receive_upload, rows_of,
};
use pi_rlwe::{Ciphertext, GaloisKeys};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::cell::LazyCell;

/// Layers of the table in which peers are compared: channels, side, output channels, side of the
/// kernel.
pub(crate) const LAYERS: [(u32, u32, u32, u32); 6] = [
    (3, 32, 64, 3),
    (64, 32, 64, 3),
    (128, 16, 128, 3),
    (256, 8, 256, 3),
    (512, 4, 512, 3),
    (512, 1, 10, 1),
];

/// Name of a layer of [`LAYERS`].
pub(crate) fn name((channels, side, out, kernel): (u32, u32, u32, u32)) -> String {
    match side {
        1 => format!("dense {channels}->{out}"),
        _ => format!("conv {channels}x{side}x{side}->{out} {kernel}x{kernel}"),
    }
}

/// Measures a layer for all its bundles together. "server answer" contains receiving the uploads
/// and finishing the answers; `ciphertext/finish` times the ciphertexts down is the part that
/// finishing takes.
pub(crate) fn measure(criterion: &mut Criterion) {
    for bundles in [1, 16] {
        let mut group = criterion.benchmark_group(format!("linear, {bundles} bundles"));
        group.throughput(Throughput::Elements(u64::from(bundles)));
        for layer in LAYERS {
            let exchange = LazyCell::new(|| planned(layer, bundles));
            let rng = &mut ChaCha20Rng::seed_from_u64(11);
            group.bench_function(BenchmarkId::new("client upload", name(layer)), |b| {
                b.iter(|| exchange.upload(rng));
            });
            group.bench_function(BenchmarkId::new("server answer", name(layer)), |b| {
                let (uploads, _) = exchange.upload(rng);
                b.iter(|| exchange.answer(exchange.receive(&uploads), rng));
            });
            group.bench_function(BenchmarkId::new("client finish", name(layer)), |b| {
                let (uploads, _) = exchange.upload(rng);
                let (answers, _) = exchange.answer(exchange.receive(&uploads), rng);
                b.iter(|| exchange.finish(&answers));
            });
        }
        group.finish();
    }
}

/// A layer with the plan that the compiler chooses; its bytes and counts are printed.
fn planned((channels, side, out, kernel): (u32, u32, u32, u32), bundles: u32) -> Exchange {
    let conv = convolution(out, kernel, 1);
    let circuit = circuit_of("layer", Shape::new(channels, side, side), [conv]);
    let plan = select(&circuit, bundles, &Link::default()).expect("a plan exists");
    let rng = &mut ChaCha20Rng::seed_from_u64(10);
    let exchange = Exchange::new(&circuit, &plan, &random_weights(&circuit, rng), 0);
    let cost = cost(&exchange.packing);
    let operations = cost.operations();
    eprintln!(
        "{} bytes up, {} bytes down; {} ciphertexts up, {} down, {} products, {} key switches; \
         server predicted {:.1} ms",
        cost.bytes_up(),
        cost.bytes_down(),
        operations.inputs,
        operations.outputs,
        operations.products,
        operations.key_switches,
        operations.server_micros(&Rates::MEASURED) / 1e3
    );
    exchange
}

/// A convolution of a circuit's input, padded so that stride 1 keeps its height and width.
pub(crate) fn convolution(out_channels: u32, kernel: u32, stride: u32) -> Conv {
    Conv {
        input: TensorId(0),
        out_channels,
        groups: 1,
        kernel: (kernel, kernel),
        stride: (stride, stride),
        padding: Padding::same(kernel / 2),
        weight_bits: 7,
    }
}

/// A circuit of one layer for each of these convolutions, all of the circuit's input.
pub(crate) fn circuit_of(
    name: &str,
    input: Shape,
    convolutions: impl IntoIterator<Item = Conv>,
) -> Circuit {
    let layer = |(index, conv): (usize, Conv)| Layer {
        name: format!("conv{index}"),
        shape: conv_output(input, &conv).expect("the kernel fits the tensor"),
        terms: vec![Term::Conv(conv)],
        pool: None,
        bound_bits: 30,
        range: Range::Proved,
        guard_bits: 0,
        step: Step::Output {
            frac_bits: 8,
            reveal: pi_ir::Reveal::Logits,
        },
    };
    Circuit {
        name: name.into(),
        input,
        input_frac_bits: 8,
        preprocessing: Preprocessing::unit(input.c),
        classes: Vec::new(),
        prefix: None,
        layers: convolutions.into_iter().enumerate().map(layer).collect(),
    }
}

/// The convolutions of a circuit.
pub(crate) fn convolutions(circuit: &Circuit) -> impl Iterator<Item = &Conv> {
    let terms = circuit.layers.iter().flat_map(|layer| &layer.terms);
    terms.filter_map(|term| match term {
        Term::Conv(conv) => Some(conv),
        Term::Residual { .. } => None,
    })
}

/// Weights for a circuit of [`circuit_of`].
pub(crate) fn random_weights(circuit: &Circuit, rng: &mut ChaCha20Rng) -> Weights {
    let layer = |conv: &Conv| {
        let count = conv.out_channels * circuit.input.c * conv.kernel.0 * conv.kernel.1;
        LayerWeights {
            kernels: vec![small_weights(count as usize, rng)],
            bias: vec![0; conv.out_channels as usize],
            element_bias: Vec::new(),
            polynomials: Vec::new(),
        }
    };
    Weights {
        layers: convolutions(circuit).map(layer).collect(),
    }
}

/// The linear layers of a circuit between a client and a server, by the calls of a session.
pub(crate) struct Exchange {
    pub(crate) client: Client,
    pub(crate) galois: GaloisKeys,
    pub(crate) packing: Packing,
    pub(crate) kernels: Kernels,
}

/// A value per element of a tensor, by bundle.
type Elements = zeroize::Zeroizing<Vec<u64>>;

/// Seed of the public halves of all uploads.
const SEED: [u8; 32] = [13; 32];

impl Exchange {
    /// Keys for both parties, and the server's kernels, with this many bytes to cache them.
    pub(crate) fn new(
        circuit: &Circuit,
        plan: &Plan,
        weights: &Weights,
        cache_bytes: usize,
    ) -> Exchange {
        let client = Client::new();
        let packing = Packing::new(circuit, plan)
            .unwrap_or_else(|faults| panic!("{}: {faults:?}", circuit.name));
        let kernels = Kernels::prepare(&client.params, &packing, weights, cache_bytes);
        Exchange {
            galois: galois_keys(&client, max_gap(&packing).max(2)),
            kernels: kernels.expect("the weights fit the circuit"),
            packing,
            client,
        }
    }

    /// The client's messages, one for each upload, and its masks by tensor.
    pub(crate) fn upload(&self, rng: &mut ChaCha20Rng) -> (Vec<Vec<u8>>, Vec<Option<Elements>>) {
        let (params, secret) = (&self.client.params, &self.client.secret);
        let mut uploads = Uploads::new(params, &self.packing, secret, &SEED, rng);
        let messages = std::iter::from_fn(|| uploads.next_message()).collect();
        (messages, uploads.into_masks())
    }

    /// The server's ciphertexts of each upload.
    pub(crate) fn receive(&self, messages: &[Vec<u8>]) -> Vec<Vec<Ciphertext>> {
        let receive = |(upload, message): (usize, &Vec<u8>)| {
            receive_upload(&self.client.params, &self.packing, &SEED, upload, message)
                .expect("honest bytes")
        };
        messages.iter().enumerate().map(receive).collect()
    }

    /// The server's messages, one for each answer, and its shares.
    pub(crate) fn answer(
        &self,
        uploads: Vec<Vec<Ciphertext>>,
        rng: &mut ChaCha20Rng,
    ) -> (Vec<Vec<u8>>, Vec<Elements>) {
        let Client { params, public, .. } = &self.client;
        let (packing, kernels) = (&self.packing, &self.kernels);
        let mut answers = Answers::new(params, packing, kernels, public, &self.galois, rng);
        let uploads = packing.uploads().iter().zip(uploads);
        let rows: Vec<_> = uploads
            .map(|(upload, ciphertexts)| rows_of(upload, ciphertexts))
            .collect();
        let maps = packing.answers().iter().enumerate();
        maps.map(|(index, answer)| answers.make(index, &rows[answer.upload()]))
            .unzip()
    }

    /// The client's shares, by answer.
    pub(crate) fn finish(&self, messages: &[Vec<u8>]) -> Vec<Elements> {
        let (params, secret) = (&self.client.params, &self.client.secret);
        let finish = |(answer, message): (usize, &Vec<u8>)| {
            finish_answer(params, &self.packing, secret, answer, message).expect("honest bytes")
        };
        messages.iter().enumerate().map(finish).collect()
    }
}
