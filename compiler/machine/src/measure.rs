//! Measures this machine in about two seconds, on one thread.
//!
//! Every kernel is the one that the protocol calls, in the back end of this process, on shapes and
//! amounts of memory as a layer has them: products in the blocks of a job, sign circuits that fill
//! no cache. All kernels run in turn, again and again, and of each the run counts that took the
//! least processor time, so that what else the machine does matters little.
//!
//! # What is not measured
//! Much of what a byte, an element or a round trip costs is no kernel of ours: system calls,
//! copies, threads that wake up. It hardly depends on the back end, and is what was fitted to whole
//! inferences on the machine of [`zen4_avx512`] (`docs/costs.md`), less the kernels' own part
//! there.

use crate::fixtures::{
    self, Client, Convolution, SignCircuits, all_coefficients, galois_keys, on_threads,
};
use crate::processor::{Cpu, processor_name};
use crate::profile::{Profile, zen4_avx512};
use pi_core::{Backend, Bits, fp};
use pi_ot::{CotReceiver, CotSender, Direction, TreeDepth};
use pi_protocol::linear::Rates;
use pi_rlwe::{
    CiphertextModulus, CiphertextRow, KernelMatrix, MaskedCiphertext, N, OLE_SLOTS, Packed,
    PlainPoly, Product, Workspace, decrypt, ole_receive, ole_respond, ole_slots, pack_rows,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

/// Version of the measurement: it changes when rates of before are no longer right, because they
/// mean something else or because kernels became much faster.
pub const VERSION: u32 = 1;

/// Processor seconds that a measurement takes, its preparations aside.
pub const SECONDS: f64 = 1.5;

/// Runs that every kernel has at least.
const LEAST_RUNS: usize = 3;

/// Seconds for each OLE slot beside its ciphertexts: shares made, opened and stored. What was
/// fitted for `zen4-avx512` less the 70 and 110 ns that the ciphertexts of a slot take there.
const SLOT_REST: Cpu = Cpu::new(90e-9, 590e-9);

/// Seconds for each byte offline beside one hash and one copy of it: what was fitted for
/// `zen4-avx512` less the 0.2 ns that these take there.
const OFFLINE_BYTE_REST: f64 = 1.2e-9;

/// Bytes written to measure the rate of the disk.
const DISK_PROBE_BYTES: usize = 16 << 20;

/// Measures this machine with the back end of this process.
///
/// # Panics
/// If `PI_BACKEND` names a back end that this machine does not have.
pub fn measure() -> Profile {
    let fitted = zen4_avx512();
    let stored = disk().unwrap_or(fitted.stored);
    on_threads(1, || {
        let measured = Kernels::new().run(Duration::from_secs_f64(SECONDS));
        Profile {
            version: VERSION,
            processor: processor_name(),
            backend: Backend::get().name().into(),
            stored: rounded(stored),
            ..measured.profile(fitted)
        }
    })
}

/// Least seconds of each kernel.
#[derive(Clone, Copy, Debug)]
struct Least {
    upload: f64,
    expand: f64,
    matrix: f64,
    matrix_of_rows: f64,
    matrix_of_outputs: f64,
    clones: f64,
    single: f64,
    pack: f64,
    finish: f64,
    decrypt: f64,
    ole_client: f64,
    ole_server: f64,
    garble: f64,
    evaluate: f64,
    extend: f64,
    convolve: f64,
    bytes: f64,
}

/// Ciphertexts of a row, outputs of a matrix, and rows that share kernels: a job of a layer whose
/// ciphertexts fill no second-level cache.
const GROUPS: usize = 16;
const OUTPUTS: usize = 4;
const ROWS: usize = 4;
/// Levels of merging.
const LEVELS: u32 = 4;
/// Weights of a kernel polynomial.
const TERMS: usize = 36;
const SIGN_CIRCUITS: usize = 1 << 14;
const TRANSFERS: usize = 1 << 16;
/// Bytes that are hashed and copied.
const BYTES: usize = 1 << 20;

impl Least {
    /// The rates; what is not measured is that of `fitted`.
    fn profile(&self, fitted: Profile) -> Profile {
        // A matrix takes kernels, products, and memory for its sums.
        let kernels = (GROUPS * OUTPUTS) as f64;
        let (outputs, rows) = (OUTPUTS as f64, ROWS as f64);
        let memory = ((self.matrix_of_outputs - self.matrix) / (kernels - outputs)).max(0.0);
        let more = self.matrix_of_rows - self.matrix - memory * outputs * (rows - 1.0);
        let product = (more / (kernels * (rows - 1.0))).max(0.0);
        let kernel = ((self.matrix - memory * outputs) / kernels - product).max(0.0);
        let terms = 1e-6 * fitted.linear.kernel_term * TERMS as f64;
        let places = f64::from(1 << LEVELS);
        let switches = self.pack - self.clones - places * self.single;
        let micros = |seconds: f64| rounded(1e6 * seconds.max(0.0));
        let slots = OLE_SLOTS as f64;
        let byte = OFFLINE_BYTE_REST + self.bytes / BYTES as f64;
        let pair = |pair: Cpu| Cpu::new(rounded(pair.client_s), rounded(pair.server_s));
        Profile {
            linear: Rates {
                upload: micros(self.upload),
                expand: micros(self.expand),
                kernel: micros(kernel - terms),
                product: micros(product),
                sum: micros(memory + self.single),
                key_switch: micros(switches / (places - 1.0)),
                finish: micros(self.finish),
                decrypt: micros(self.decrypt),
                ..fitted.linear
            },
            garbled: rounded(1.0 / self.garble),
            evaluated: rounded(1.0 / self.evaluate),
            extended: rounded(TRANSFERS as f64 / self.extend),
            slot: pair(SLOT_REST + Cpu::new(self.ole_client, self.ole_server) * (1.0 / slots)),
            offline_byte: pair(Cpu::new(byte, byte)),
            multiplied: rounded(1.0 / self.convolve),
            ..fitted
        }
    }
}

/// The inputs of all kernels.
struct Kernels {
    client: Client,
    signs: SignCircuits,
    convolution: Convolution,
}

impl Kernels {
    fn new() -> Kernels {
        Kernels {
            client: Client::new(),
            signs: SignCircuits::new(SIGN_CIRCUITS),
            convolution: Convolution::new(128, 16, 128, 3),
        }
    }

    /// Runs every kernel in turn until the time is over.
    fn run(self, time: Duration) -> Least {
        let Kernels {
            client,
            mut signs,
            mut convolution,
        } = self;
        let params = &client.params;
        let (conv, ole) = (CiphertextModulus::Conv, CiphertextModulus::Ole);
        let rng = &mut ChaCha20Rng::seed_from_u64(4);
        let sent = client.upload(conv, rng);
        let input = client.expand(conv, &sent);
        let inputs = vec![input.clone(); GROUPS];
        let rows: Vec<CiphertextRow> = (0..ROWS).map(|_| CiphertextRow::new(&inputs)).collect();
        let mut workspace = Workspace::default();
        let mut matrix = |rows: &[&CiphertextRow], groups: usize, outputs: usize| {
            let terms = |output: usize, group: usize| {
                let at = move |i: usize| ((output * 997 + group * 101 + i * 57) % N, i as i32 - 8);
                (0..TERMS).map(at)
            };
            let matrix = KernelMatrix {
                ciphertexts: 0..groups,
                outputs,
                levels: LEVELS,
                reach: None,
                terms,
            };
            drop(black_box(Product::matrix(
                params,
                rows,
                &matrix,
                &mut workspace,
            )));
        };
        let one: Vec<&CiphertextRow> = rows.iter().take(1).collect();
        let rows: Vec<&CiphertextRow> = rows.iter().collect();
        let of_levels = |levels: u32| {
            let kernel = PlainPoly::new(params, conv, levels, [(0, 1), (7, -3)]);
            Product::new(params, &[(&input, &kernel)])
        };
        let (alone, merged) = (of_levels(0), of_levels(LEVELS));
        let gap = 1 << LEVELS;
        let keys = galois_keys(&client, gap);
        let useful = all_coefficients();
        let mask = fp::uniform_vec(N, rng);
        let answer = client.finish(Packed::single(params, 1, alone.clone()), &mask, rng);
        let answer = answer.encode();
        let ole_sent = client.upload(ole, rng);
        let ole_input = client.expand(ole, &ole_sent);
        let [y, v] = [(); 2].map(|()| fp::uniform_vec(OLE_SLOTS, rng));
        let ole_answer = ole_respond(params, &ole_input, &y, &v, &client.public, rng);
        let masters = fixtures::masters(Direction::Forward, rng);
        let (mut sender, mut receiver) = fixtures::extension(&masters, TreeDepth::default(), rng);
        let choices = Bits::random(TRANSFERS, rng);
        let gates = signs.gates() as f64;
        let multiply_adds = convolution.multiply_adds() as f64;
        let from = vec![1_u8; BYTES];
        let mut to = vec![0_u8; BYTES];

        let mut least = Least::NONE;
        let start = processor_time();
        let mut runs = 0;
        while runs < LEAST_RUNS || processor_time() - start < time {
            runs += 1;
            timed(&mut least.upload, 1.0, || client.upload(conv, rng));
            timed(&mut least.expand, 1.0, || {
                CiphertextRow::new(&[client.expand(conv, &sent)])
            });
            timed(&mut least.matrix, 1.0, || matrix(&one, GROUPS, OUTPUTS));
            timed(&mut least.matrix_of_rows, 1.0, || {
                matrix(&rows, GROUPS, OUTPUTS);
            });
            timed(&mut least.matrix_of_outputs, 1.0, || {
                matrix(&one, 1, GROUPS * OUTPUTS);
            });
            timed(&mut least.clones, 1.0, || vec![merged.clone(); gap]);
            timed(&mut least.pack, 1.0, || {
                let products = |places: &[usize]| vec![vec![merged.clone()]; places.len()];
                pack_rows(params, &keys, gap, LEVELS, LEVELS, products)
            });
            let product = alone.clone();
            timed(&mut least.single, 1.0, || {
                Packed::single(params, 1, product)
            });
            let packed = Packed::single(params, 1, alone.clone());
            timed(&mut least.finish, 1.0, || {
                let mask = fp::uniform_vec(N, rng);
                client.finish(packed, &mask, rng).encode()
            });
            timed(&mut least.decrypt, 1.0, || {
                let answer = MaskedCiphertext::decode(N, &answer).expect("honest bytes");
                decrypt(params, &client.secret, &answer, &useful)
            });
            timed(&mut least.ole_client, 1.0, || {
                let sent = client.upload(ole, rng);
                let slots = ole_slots(params, &mask);
                (
                    sent,
                    slots,
                    ole_receive(params, &client.secret, &ole_answer),
                )
            });
            timed(&mut least.ole_server, 1.0, || {
                let input = client.expand(ole, &ole_sent);
                let [y, v] = [(); 2].map(|()| fp::uniform_vec(OLE_SLOTS, rng));
                ole_respond(params, &input, &y, &v, &client.public, rng).encode()
            });
            timed(&mut least.garble, gates, || signs.garble());
            timed(&mut least.evaluate, gates, || signs.evaluate());
            timed(&mut least.extend, 1.0, || {
                let (own, message) = receiver.extend(&choices);
                (
                    own,
                    sender.extend(TRANSFERS, &message).expect("honest bytes"),
                )
            });
            timed(&mut least.convolve, multiply_adds, || convolution.run());
            timed(&mut least.bytes, 1.0, || {
                to.copy_from_slice(&from);
                blake3::hash(&to)
            });
        }
        least
    }
}

impl Least {
    const NONE: Least = Least {
        upload: f64::INFINITY,
        expand: f64::INFINITY,
        matrix: f64::INFINITY,
        matrix_of_rows: f64::INFINITY,
        matrix_of_outputs: f64::INFINITY,
        clones: f64::INFINITY,
        single: f64::INFINITY,
        pack: f64::INFINITY,
        finish: f64::INFINITY,
        decrypt: f64::INFINITY,
        ole_client: f64::INFINITY,
        ole_server: f64::INFINITY,
        garble: f64::INFINITY,
        evaluate: f64::INFINITY,
        extend: f64::INFINITY,
        convolve: f64::INFINITY,
        bytes: f64::INFINITY,
    };
}

/// Runs some work and lowers `least` to its seconds for each of `count`.
fn timed<T>(least: &mut f64, count: f64, work: impl FnOnce() -> T) {
    let start = processor_time();
    let result = black_box(work());
    *least = least.min((processor_time() - start).as_secs_f64() / count);
    drop(result);
}

/// Processor time of this thread until now: other programs on the machine do not count.
#[cfg(unix)]
fn processor_time() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.expect("a thread has a clock").into()
}

/// Time until now; not every system tells of a thread's own.
#[cfg(not(unix))]
fn processor_time() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Bytes a second that can be written durably to the file system of temporary files; `None` where
/// nothing can be written.
fn disk() -> Option<f64> {
    let content = vec![1; DISK_PROBE_BYTES];
    let mut file = tempfile::tempfile().ok()?;
    let start = Instant::now();
    file.write_all(&content).ok()?;
    file.sync_all().ok()?;
    Some(content.len() as f64 / start.elapsed().as_secs_f64())
}

/// Three significant digits: more is noise.
fn rounded(value: f64) -> f64 {
    let text = format!("{value:.2e}");
    text.parse().expect("a number's own text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_ir::{
        Circuit, Conv, Layer, LayerWeights, Padding, Plan, Preprocessing, Range, Reveal, Shape,
        Step, TensorId, Term, Weights,
    };
    use pi_protocol::layout::{Packing, default_plan};
    use pi_protocol::linear;

    /// By hand: every operation takes a number of microseconds of its own.
    #[test]
    fn rates_are_those_that_make_up_the_times() {
        const US: f64 = 1e-6;
        let fitted = zen4_avx512();
        let terms = fitted.linear.kernel_term * TERMS as f64;
        let (kernel, product, memory, single, switch) = (40.0, 20.0, 30.0, 50.0, 200.0);
        let of = |kernels: f64, products: f64, sums: f64| {
            US * (kernels * (kernel + terms) + products * product + sums * memory)
        };
        let least = Least {
            upload: 500.0 * US,
            expand: 300.0 * US,
            // 16 ciphertexts by 4 outputs, alone and for four rows; one by 64.
            matrix: of(64.0, 64.0, 4.0),
            matrix_of_rows: of(64.0, 256.0, 16.0),
            matrix_of_outputs: of(64.0, 64.0, 64.0),
            clones: 160.0 * US,
            single: single * US,
            pack: US * (160.0 + 16.0 * single + 15.0 * switch),
            finish: 530.0 * US,
            decrypt: 165.0 * US,
            ole_client: 8191.0 * 10e-9,
            ole_server: 8191.0 * 10e-9,
            garble: 1e-8,
            evaluate: 2e-8,
            extend: 65536.0 * 1e-8,
            convolve: 1e-10,
            bytes: 1048576.0 * 0.8e-9,
        };
        let profile = least.profile(fitted.clone());
        let expected = Profile {
            linear: Rates {
                upload: 500.0,
                expand: 300.0,
                kernel,
                product,
                sum: memory + single,
                key_switch: switch,
                finish: 530.0,
                decrypt: 165.0,
                ..fitted.linear
            },
            garbled: 1e8,
            evaluated: 5e7,
            extended: 1e8,
            slot: Cpu::new(100e-9, 600e-9),
            offline_byte: Cpu::new(2e-9, 2e-9),
            multiplied: 1e10,
            ..fitted
        };
        assert_eq!(profile, expected);
    }

    /// `cargo test --release -p pi-machine --lib -- --ignored --nocapture`
    #[test]
    #[ignore = "measures for some seconds, on a machine with nothing else to do"]
    fn two_measurements_agree_and_take_two_seconds() {
        let start = Instant::now();
        let measure = |_| on_threads(1, || Kernels::new().run(Duration::from_secs_f64(SECONDS)));
        let least: Vec<Least> = (0..2).map(measure).collect();
        let seconds = start.elapsed().as_secs_f64() / 2.0;
        println!("{seconds:.2} s each\n{:#?}", least[1]);
        let profile = |least: &Least| least.profile(zen4_avx512());
        let profiles: Vec<Profile> = least.iter().map(profile).collect();
        println!("{}", profiles[1].encode());
        let rates = |profile: &Profile| {
            let linear = profile.linear;
            [
                linear.upload,
                linear.expand,
                linear.kernel,
                linear.product,
                linear.sum,
                linear.key_switch,
                linear.finish,
                linear.decrypt,
                profile.garbled,
                profile.evaluated,
                profile.extended,
                profile.multiplied,
            ]
        };
        let [a, b] = [0, 1].map(|i| rates(&profiles[i]));
        for (a, b) in a.into_iter().zip(b) {
            println!("{a} {b}");
        }
        for (a, b) in a.into_iter().zip(b) {
            assert!((0.8..=1.25).contains(&(a / b)), "{a} and {b}");
        }
        assert!(seconds < SECONDS + 1.5, "{seconds} s");
    }

    /// A convolution of 3x3 from as many channels to as many.
    fn convolution(channels: u32, side: u32) -> Circuit {
        let input = Shape::new(channels, side, side);
        let conv = Conv {
            input: TensorId(0),
            out_channels: channels,
            groups: 1,
            kernel: (3, 3),
            stride: (1, 1),
            padding: Padding::same(1),
            weight_bits: 7,
        };
        Circuit {
            name: "layer".into(),
            input,
            input_frac_bits: 8,
            preprocessing: Preprocessing::unit(channels),
            classes: Vec::new(),
            prefix: None,
            layers: vec![Layer {
                name: "conv".into(),
                shape: input,
                terms: vec![Term::Conv(conv)],
                pool: None,
                bound_bits: 30,
                range: Range::Proved,
                guard_bits: 0,
                step: Step::Output {
                    frac_bits: 8,
                    reveal: Reveal::Logits,
                },
            }],
        }
    }

    /// Processor microseconds of client and server for a circuit's linear layer, and those that
    /// the rates predict.
    fn exchange(client: &Client, circuit: &Circuit, plan: &Plan, rates: &Rates) -> [[f64; 2]; 2] {
        let rng = &mut ChaCha20Rng::seed_from_u64(9);
        let packing = Packing::new(circuit, plan).unwrap();
        let count = circuit.input.c.pow(2) * 9;
        let weights = Weights {
            layers: vec![LayerWeights {
                kernels: vec![fixtures::small_weights(count as usize, rng)],
                bias: vec![0; circuit.input.c as usize],
                element_bias: Vec::new(),
                polynomials: Vec::new(),
            }],
        };
        let Client {
            params,
            secret,
            public,
        } = client;
        let kernels = linear::Kernels::prepare(params, &packing, &weights, 0).unwrap();
        let keys = galois_keys(client, linear::max_gap(&packing).max(2));
        let (mut own, mut server) = (0.0, 0.0);
        let mut sent = linear::Uploads::new(params, &packing, secret, &[3; 32], rng);
        let message = counted(&mut own, || sent.next_message().unwrap());
        let mut answers = linear::Answers::new(params, &packing, &kernels, public, &keys, rng);
        let (answer, _) = counted(&mut server, || {
            let upload = linear::receive_upload(params, &packing, &[3; 32], 0, &message).unwrap();
            answers.make(0, &linear::rows_of(&packing.uploads()[0], upload))
        });
        let opened = || linear::finish_answer(params, &packing, secret, 0, &answer).unwrap();
        counted(&mut own, opened);
        let operations = linear::cost(&packing).operations();
        println!("{operations:?}");
        [
            [own, operations.client_micros(rates)],
            [server, operations.server_micros(rates)],
        ]
    }

    /// Adds the microseconds of some work.
    fn counted<T>(micros: &mut f64, work: impl FnOnce() -> T) -> T {
        let mut seconds = f64::INFINITY;
        let mut result = None;
        timed(&mut seconds, 1.0, || result = Some(work()));
        *micros += 1e6 * seconds;
        result.unwrap()
    }

    /// Layers of ResNet-18, alone and in a batch.
    ///
    /// `cargo test --release -p pi-machine --lib -- --ignored --nocapture layers`
    #[test]
    #[ignore = "measures for some seconds, on a machine with nothing else to do"]
    fn layers_take_what_the_rates_predict() {
        let rates = measure().linear;
        println!("{rates:?}");
        let mut sums = [[0.0; 2]; 2];
        on_threads(1, || {
            let client = Client::new();
            for (channels, side, bundles) in [(64, 32, 1), (128, 16, 1), (256, 8, 1), (64, 32, 8)] {
                let circuit = convolution(channels, side);
                let plan = default_plan(&circuit, bundles).unwrap();
                let found = exchange(&client, &circuit, &plan, &rates);
                println!("{channels}@{side} x{bundles}: {found:.0?}");
                for (sum, found) in sums.iter_mut().flatten().zip(found.iter().flatten()) {
                    *sum += found;
                }
            }
        });
        for [measured, predicted] in sums {
            let ratio = predicted / measured;
            assert!((0.8..=1.2).contains(&ratio), "{predicted} for {measured}");
        }
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(rounded(123_456.0), 123_000.0);
        assert_eq!(rounded(1.2345e-9), 1.23e-9);
        assert_eq!(rounded(0.0), 0.0);
    }
}
