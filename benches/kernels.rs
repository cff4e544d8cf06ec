//! The kernels that decide offline and online time, with criterion.
//!
//!     cargo bench --bench kernels                  # everything, some minutes
//!     cargo bench --bench kernels -- 'conv|garble' # what matches
//!
//! Times are CPU times of the process, with one thread unless `RAYON_NUM_THREADS` says otherwise
//! (several add up). Garbling and evaluating count AND gates, OT extension instances, the online
//! convolution multiply-adds; transforms and ciphertext operations are told as times.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Throughput};
use nix::time::{ClockId, clock_gettime};
use pi_compiler::pass::select::{Link, select};
use pi_core::fp;
use pi_core::{Bits, Block, Delta, TweakCounter};
use pi_garble::{SignWidth, active_labels, evaluate_sign, garble_sign};
use pi_ir::{Circuit, Conv, Layer, LayerWeights, Range, Shape, Step, TensorId, Term, Weights};
use pi_ot::ideal::ideal_cot;
use pi_ot::{BundleId, Direction, MasterReceiver, MasterSetup, SessionId, TreeDepth};
use pi_ot::{CotReceiver, CotSender};
use pi_protocol::layout::{Packing, conv_output};
use pi_protocol::linear::{
    Answers, Kernels, Rates, Uploads, cost, finish_answer, max_gap, receive_upload, rows_of,
};
use pi_ring::conv::{ConvScratch, ConvShape, Padding, PreparedConv};
use pi_ring::ntt::{RLWE_MODULI, RLWE_PRIMES};
use pi_ring::poly::Automorphism;
use pi_rlwe::{
    CiphertextModulus, GaloisKeys, N, Packed, Params, PlainPoly, Product, PublicKey, SecretKey,
    SeededLayout, decrypt, encrypt_seeded, expand_seeded, mask_and_flood, ole_receive, ole_respond,
    pack,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

type Criterion = criterion::Criterion<CpuTime>;

/// CPU time of this process, so that other programs on the machine do not count.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
        now.expect("a process has a clock").into()
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn main() {
    if let Err(error) = pi_core::Backend::chosen() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
        pool.build_global().expect("no pool was made before");
    }
    let mut criterion = criterion::Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    transforms(&mut criterion);
    ciphertexts(&mut criterion);
    oles(&mut criterion);
    linear_layers(&mut criterion);
    online_convolutions(&mut criterion);
    extensions(&mut criterion);
    sign_circuits(&mut criterion);
    criterion.final_summary();
}

fn transforms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    let ntt = RLWE_PRIMES[0].transform(N);
    let modulus = RLWE_MODULI[0];
    let mut x: Vec<u64> = (0..N as u64).collect();
    group.bench_function("forward NTT", |b| b.iter(|| ntt.forward(black_box(&mut x))));
    group.bench_function("inverse NTT", |b| {
        b.iter(|| ntt.inverse_unscaled(black_box(&mut x)));
    });
    let mut out = vec![0; N];
    let automorphism = LazyCell::new(|| Automorphism::new(5, N));
    x.iter_mut().for_each(|x| *x %= modulus.value());
    group.bench_function("automorphism of coefficients", |b| {
        b.iter(|| automorphism.apply_coefficients(black_box(&x), &mut out, &modulus));
    });
    group.bench_function("automorphism of values", |b| {
        b.iter(|| automorphism.apply_values(black_box(&x), &mut out));
    });
    group.finish();
}

/// Keys of a client, with Galois keys up to a gap.
struct Keys {
    params: Params,
    secret: SecretKey,
    public: PublicKey,
    galois: GaloisKeys,
}

impl Keys {
    fn new(gap: usize) -> Keys {
        let params = Params::standard();
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let secret = SecretKey::generate(&params, rng);
        let public = PublicKey::generate(&params, &secret, &[1; 32], rng);
        let galois = GaloisKeys::generate(&params, &secret, &[1; 32], gap, rng);
        Keys {
            params,
            secret,
            public,
            galois,
        }
    }
}

fn ciphertexts(criterion: &mut Criterion) {
    const GAP: usize = 64;
    let mut group = criterion.benchmark_group("ciphertext");
    let modulus = CiphertextModulus::Conv;
    let layout = SeededLayout::all_free();
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let keys = LazyCell::new(|| Keys::new(GAP));
    let sent = LazyCell::new(|| {
        let rng = &mut ChaCha20Rng::seed_from_u64(3);
        encrypt_seeded(
            &keys.params,
            modulus,
            &keys.secret,
            &[2; 32],
            &layout,
            &[],
            rng,
        )
    });
    let inputs = LazyCell::new(|| {
        let one = expand_seeded(&keys.params, modulus, &[2; 32], &layout, &sent.bytes);
        vec![one.expect("honest bytes"); 16]
    });
    let terms: Vec<(usize, i64)> = (0..576)
        .map(|i| (i * 57 % (2 * N), i as i64 % 255 - 127))
        .collect();
    let kernel = LazyCell::new(|| PlainPoly::new(&keys.params, modulus, 6, terms.clone()));
    let useful: Vec<u32> = (0..N as u32).collect();
    let mask = fp::uniform_vec(N, rng);

    group.bench_function("upload", |b| {
        b.iter(|| {
            encrypt_seeded(
                &keys.params,
                modulus,
                &keys.secret,
                &[2; 32],
                &layout,
                &[],
                rng,
            )
        });
    });
    group.bench_function("expand upload", |b| {
        b.iter(|| expand_seeded(&keys.params, modulus, &[2; 32], &layout, &sent.bytes));
    });
    group.bench_function("kernel of 576 terms", |b| {
        let mut kernel = PlainPoly::new(&keys.params, modulus, 6, terms.clone());
        b.iter(|| kernel.set(&keys.params, 6, terms.iter().copied()));
    });
    group.throughput(Throughput::Elements(16));
    group.bench_function("multiply-accumulate 16 pairs", |b| {
        let pairs: Vec<_> = inputs.iter().map(|x| (x, &*kernel)).collect();
        b.iter(|| Product::new(&keys.params, &pairs));
    });
    group.throughput(Throughput::Elements(GAP as u64 - 1));
    group.bench_function("pack 64 products (63 key switches)", |b| {
        let product = Product::new(&keys.params, &[(&inputs[0], &*kernel)]);
        b.iter(|| pack(&keys.params, &keys.galois, GAP, 6, |_| product.clone()));
    });
    group.throughput(Throughput::Elements(1));
    let packed = || {
        let plain = PlainPoly::new(&keys.params, modulus, 0, terms.clone());
        let product = Product::new(&keys.params, &[(&inputs[0], &plain)]);
        Packed::single(&keys.params, 1, product)
    };
    group.bench_function("finish, all coefficients", |b| {
        let rng = &mut ChaCha20Rng::seed_from_u64(4);
        b.iter_batched(
            packed,
            |packed| mask_and_flood(&keys.params, packed, &keys.public, &useful, &mask, rng),
            criterion::BatchSize::SmallInput,
        );
    });
    group.bench_function("decrypt, all coefficients", |b| {
        let rng = &mut ChaCha20Rng::seed_from_u64(5);
        let answer = mask_and_flood(&keys.params, packed(), &keys.public, &useful, &mask, rng);
        b.iter(|| decrypt(&keys.params, &keys.secret, &answer, &useful));
    });
    group.finish();
}

fn oles(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("OLE of 8192 elements");
    group.throughput(Throughput::Elements(N as u64));
    let modulus = CiphertextModulus::Ole;
    let layout = SeededLayout::all_free();
    let keys = LazyCell::new(|| Keys::new(2));
    let rng = &mut ChaCha20Rng::seed_from_u64(6);
    let (y, v) = (fp::uniform_vec(N, rng), fp::uniform_vec(N, rng));
    let input = LazyCell::new(|| {
        let rng = &mut ChaCha20Rng::seed_from_u64(7);
        let sent = encrypt_seeded(
            &keys.params,
            modulus,
            &keys.secret,
            &[2; 32],
            &layout,
            &[],
            rng,
        );
        expand_seeded(&keys.params, modulus, &[2; 32], &layout, &sent.bytes).expect("honest bytes")
    });
    group.bench_function("upload", |b| {
        let rng = &mut ChaCha20Rng::seed_from_u64(8);
        b.iter(|| {
            encrypt_seeded(
                &keys.params,
                modulus,
                &keys.secret,
                &[2; 32],
                &layout,
                &[],
                rng,
            )
        });
    });
    group.bench_function("respond", |b| {
        b.iter(|| ole_respond(&keys.params, &input, &y, &v, &keys.public, rng));
    });
    group.bench_function("receive", |b| {
        let rng = &mut ChaCha20Rng::seed_from_u64(9);
        let answer = ole_respond(&keys.params, &input, &y, &v, &keys.public, rng);
        b.iter(|| ole_receive(&keys.params, &keys.secret, &answer));
    });
    group.finish();
}

/// A layer of the table that peers are compared in: channels, side, output channels, side of the
/// kernel.
const LAYERS: [(u32, u32, u32, u32); 6] = [
    (3, 32, 64, 3),
    (64, 32, 64, 3),
    (128, 16, 128, 3),
    (256, 8, 256, 3),
    (512, 4, 512, 3),
    (512, 1, 10, 1),
];

fn name((channels, side, out, kernel): (u32, u32, u32, u32)) -> String {
    match side {
        1 => format!("dense {channels}->{out}"),
        _ => format!("conv {channels}x{side}x{side}->{out} {kernel}x{kernel}"),
    }
}

/// One linear layer between a client and a server.
struct Linear {
    keys: Keys,
    packing: Packing,
    kernels: Kernels,
}

impl Linear {
    fn new((channels, side, out, kernel): (u32, u32, u32, u32), bundles: u32) -> Linear {
        let conv = Conv {
            input: TensorId(0),
            out_channels: out,
            kernel: (kernel, kernel),
            stride: (1, 1),
            padding: pi_ir::Padding::same(kernel / 2),
            weight_bits: 7,
        };
        let input = Shape::new(channels, side, side);
        let circuit = Circuit {
            name: "layer".into(),
            input,
            input_frac_bits: 8,
            mean: vec![0.0; channels as usize],
            std: vec![1.0; channels as usize],
            classes: Vec::new(),
            layers: vec![Layer {
                name: "conv".into(),
                shape: conv_output(input, &conv).expect("the kernel fits"),
                terms: vec![Term::Conv(conv)],
                pool: None,
                bound_bits: 30,
                range: Range::Proved,
                step: Step::Output { frac_bits: 8 },
            }],
        };
        let plan = select(&circuit, bundles, &Link::default()).expect("a plan exists");
        let packing = Packing::new(&circuit, &plan).expect("the plan fits");
        let rng = &mut ChaCha20Rng::seed_from_u64(10);
        let count = out * channels * kernel * kernel;
        let weights = Weights {
            layers: vec![LayerWeights {
                kernels: vec![(0..count).map(|_| small(rng)).collect()],
                bias: vec![0; out as usize],
                polynomials: Vec::new(),
            }],
        };
        let keys = Keys::new(max_gap(&packing).max(2));
        let kernels = Kernels::prepare(&keys.params, &packing, &weights, 0);
        let cost = cost(&packing);
        let operations = cost.operations();
        let linear = Linear {
            kernels: kernels.expect("the weights fit"),
            keys,
            packing,
        };
        eprintln!(
            "{} bytes up, {} bytes down; {} ciphertexts up, {} down, {} products, {} key switches; server predicted {:.1} ms",
            cost.bytes_up(),
            cost.bytes_down(),
            operations.inputs,
            operations.outputs,
            operations.products,
            operations.key_switches,
            operations.server_micros(&Rates::MEASURED) / 1e3
        );
        linear
    }

    fn upload(&self, rng: &mut ChaCha20Rng) -> Vec<u8> {
        let Keys { params, secret, .. } = &self.keys;
        let mut uploads = Uploads::new(params, &self.packing, secret, &SEED, rng);
        uploads
            .next_message()
            .expect("a convolution reads an upload")
    }

    fn answer(&self, message: &[u8], rng: &mut ChaCha20Rng) -> Vec<u8> {
        let keys = &self.keys;
        let received = receive_upload(&keys.params, &self.packing, &SEED, 0, message);
        let rows = rows_of(&self.packing.uploads()[0], received.expect("honest bytes"));
        let mut answers = Answers::new(
            &keys.params,
            &self.packing,
            &self.kernels,
            &keys.public,
            &keys.galois,
            rng,
        );
        answers.make(0, &rows).0
    }
}

const SEED: [u8; 32] = [13; 32];

/// An 8-bit weight.
fn small(rng: &mut impl RngCore) -> i16 {
    (rng.next_u32() % 255) as i16 - 127
}

/// The times of a layer for all its bundles together. The server's contains receiving and
/// finishing; `ciphertext/finish` times the ciphertexts down is the part that finishing takes.
fn linear_layers(criterion: &mut Criterion) {
    for bundles in [1, 16] {
        let mut group = criterion.benchmark_group(format!("linear, {bundles} bundles"));
        group.throughput(Throughput::Elements(u64::from(bundles)));
        for layer in LAYERS {
            let linear = LazyCell::new(|| Linear::new(layer, bundles));
            let rng = &mut ChaCha20Rng::seed_from_u64(11);
            group.bench_function(BenchmarkId::new("client upload", name(layer)), |b| {
                b.iter(|| linear.upload(rng));
            });
            group.bench_function(BenchmarkId::new("server answer", name(layer)), |b| {
                let message = linear.upload(rng);
                b.iter(|| linear.answer(&message, rng));
            });
            group.bench_function(BenchmarkId::new("client finish", name(layer)), |b| {
                let message = linear.upload(rng);
                let answer = linear.answer(&message, rng);
                let Keys { params, secret, .. } = &linear.keys;
                b.iter(|| finish_answer(params, &linear.packing, secret, 0, &answer));
            });
        }
        group.finish();
    }
}

fn online_convolutions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("online convolution");
    for layer in LAYERS {
        let (channels, side, out, kernel) = layer;
        let margin = kernel as usize / 2;
        let shape = ConvShape {
            channels_in: channels as usize,
            height: side as usize,
            width: side as usize,
            channels_out: out as usize,
            kernel_height: kernel as usize,
            kernel_width: kernel as usize,
            stride: 1,
            padding: Padding {
                top: margin,
                left: margin,
                bottom: margin,
                right: margin,
            },
        };
        let rng = &mut ChaCha20Rng::seed_from_u64(12);
        let input = fp::uniform_vec(shape.input_len(), rng);
        let weights: Vec<i16> = (0..shape.weights_len()).map(|_| small(rng)).collect();
        group.throughput(Throughput::Elements(
            (shape.output_len() * shape.taps()) as u64,
        ));
        let prepared = PreparedConv::new(&weights, shape, 7);
        let (mut scratch, mut sum) = (ConvScratch::default(), vec![0; shape.output_len()]);
        group.bench_function(name(layer), |b| {
            b.iter(|| prepared.add_to(&input, &mut scratch, &mut sum));
        });
    }
    group.finish();
}

/// Both parties' work; the directions differ in who holds the choices, the work is the same and is
/// measured once each.
fn extensions(criterion: &mut Criterion) {
    const COUNT: usize = 1 << 18;
    let mut group = criterion.benchmark_group("correlated OT, both parties");
    group.throughput(Throughput::Elements(COUNT as u64));
    for (direction, name) in [
        (Direction::Forward, "forward"),
        (Direction::Reverse, "reverse"),
    ] {
        for depth in [1, 4] {
            group.bench_function(BenchmarkId::new(name, format!("depth {depth}")), |b| {
                let rng = &mut ChaCha20Rng::seed_from_u64(13);
                let session = SessionId([1; 32]);
                let (setup, opening) = MasterSetup::start(session, direction, rng);
                let (far, response) =
                    MasterReceiver::respond(session, direction, &opening, rng).expect("honest");
                let near = setup.finish(&response).expect("honest bytes");
                let depth = TreeDepth::new(depth).expect("a legal depth");
                let bundle = BundleId([depth.get() as u8; 32]);
                let (pending, correction) = near.begin(&bundle, depth, rng);
                let (mut receiver, setup) = far
                    .accept(&bundle, depth, &correction)
                    .expect("honest bytes");
                let mut sender = pending.finish(&setup).expect("honest bytes");
                let choices = Bits::random(COUNT, rng);
                b.iter(|| {
                    let (blocks, message) = receiver.extend(&choices);
                    (
                        blocks,
                        sender.extend(COUNT, &message).expect("honest bytes"),
                    )
                });
            });
        }
    }
    group.finish();
}

fn sign_circuits(criterion: &mut Criterion) {
    const INSTANCES: usize = 1 << 14;
    const WIDTH: u32 = 16;
    let mut group = criterion.benchmark_group("sign circuits of 16 bits");
    let rng = &mut ChaCha20Rng::seed_from_u64(14);
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
    // Throughput in AND gates.
    group.throughput(Throughput::Elements((INSTANCES * width.and_gates()) as u64));
    group.bench_function("garble", |b| {
        b.iter(|| {
            garble_sign(
                width,
                &tweaks,
                &delta,
                &client_zero,
                &server_zero,
                &mut tables,
            )
            .expect("shapes fit")
        });
    });
    garble_sign(
        width,
        &tweaks,
        &delta,
        &client_zero,
        &server_zero,
        &mut tables,
    )
    .expect("shapes fit");
    group.bench_function("evaluate", |b| {
        b.iter(|| evaluate_sign(width, &tweaks, &labels, &server_labels, &tables));
    });
    group.finish();
}
