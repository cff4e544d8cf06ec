//! Inputs on which kernels are measured, declared once: for the benchmarks of kernels, and for the
//! rates of this machine on which plans and predictions rest.
//!
//! Everything is drawn from seeds, and every call is one that the protocol makes.

use pi_core::{Block, Delta, Labels, Prg, TweakCounter, TweakRange, fp};
use pi_garble::{InputLabels, SignWidth, active_labels, evaluate_sign, garble_sign};
use pi_ot::ideal::ideal_pads;
use pi_ot::{
    BundleId, Direction, ExtensionReceiver, ExtensionSender, MasterReceiver, MasterSender,
    MasterSetup, SessionId, TreeDepth,
};
use pi_ring::conv::{ConvScratch, ConvShape, Padding, PreparedConv};
use pi_rlwe::{
    Ciphertext, CiphertextModulus, GaloisKeys, MaskedCiphertext, N, Packed, Params, PublicKey,
    SecretKey, Seeded, SeededEncryption, SeededLayout, encrypt_seeded, expand_seeded,
    mask_and_flood,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::time::Instant;

/// Runs some work on a pool of this many threads.
pub fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("a pool of threads").install(work)
}

/// The least seconds of several runs: the time that the work takes when nothing disturbs it.
pub fn least(runs: usize, mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(once).fold(f64::INFINITY, f64::min)
}

/// A client's keys, and what both parties do with a ciphertext under them.
pub struct Client {
    /// The standard ring.
    pub params: Params,
    /// The client's secret key.
    pub secret: SecretKey,
    /// Its public key, with which the server re-randomises.
    pub public: PublicKey,
}

/// Seed of the public half of every upload.
const UPLOAD_SEED: [u8; 32] = [2; 32];

impl Default for Client {
    fn default() -> Self {
        Client::new()
    }
}

impl Client {
    /// A client with keys of its own.
    pub fn new() -> Client {
        let params = Params::standard();
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let secret = SecretKey::generate(&params, rng);
        let public = PublicKey::generate(&params, &secret, &[1; 32], rng);
        Client {
            params,
            secret,
            public,
        }
    }

    /// Encrypts a mask, all of whose coefficients are free.
    pub fn upload(&self, modulus: CiphertextModulus, rng: &mut ChaCha20Rng) -> SeededEncryption {
        let layout = SeededLayout::all_free();
        let (params, secret) = (&self.params, &self.secret);
        encrypt_seeded(
            params,
            secret,
            &Seeded::new(modulus, UPLOAD_SEED, &layout),
            &[],
            rng,
        )
    }

    /// Expands an upload, as the server does.
    pub fn expand(&self, modulus: CiphertextModulus, sent: &SeededEncryption) -> Ciphertext {
        let layout = SeededLayout::all_free();
        expand_seeded(
            &self.params,
            &Seeded::new(modulus, UPLOAD_SEED, &layout),
            &sent.bytes,
        )
        .expect("honest bytes")
    }

    /// Masks and floods a product, as the server does, at all coefficients.
    pub fn finish(&self, packed: Packed, mask: &[u64], rng: &mut ChaCha20Rng) -> MaskedCiphertext {
        let all = all_coefficients();
        mask_and_flood(&self.params, packed, &self.public, &all, mask, rng)
    }
}

/// Galois keys of a client up to a gap.
pub fn galois_keys(client: &Client, gap: usize) -> GaloisKeys {
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    GaloisKeys::generate(&client.params, &client.secret, &[1; 32], gap, rng)
}

/// Every coefficient of a ciphertext.
pub fn all_coefficients() -> Vec<u32> {
    (0..N as u32).collect()
}

/// Sign circuits of 16 bits, with tables and labels to evaluate them.
pub struct SignCircuits {
    instances: usize,
    width: SignWidth,
    tweaks: TweakRange,
    delta: Delta,
    client_zero: Vec<Block>,
    server_zero: Vec<Block>,
    client_labels: Labels,
    server_labels: Vec<u8>,
    tables: Vec<u8>,
    keep_zero: Vec<Block>,
}

/// Width of the sign circuits, in bits.
pub const SIGN_BITS: u32 = 16;

impl SignCircuits {
    /// Circuits that were garbled once.
    pub fn new(instances: usize) -> SignCircuits {
        let rng = &mut ChaCha20Rng::seed_from_u64(2);
        let width = SignWidth::new(SIGN_BITS).expect("a legal width");
        let delta = Delta::random(rng);
        let count = instances * SIGN_BITS as usize;
        let mut wires = |seed: u8| {
            let stream = Prg::new(&[seed; 32]);
            let mut zero = vec![Block::ZERO; count];
            stream.fill_at(0, Block::bytes_mut(&mut zero));
            let values: Vec<u64> = (0..instances).map(|_| rng.next_u64()).collect();
            let mut labels = vec![0; width.label_bytes(instances)];
            active_labels(width, &delta, &stream, &values, &mut labels).expect("shapes fit");
            (zero, labels)
        };
        let (client_zero, client_labels) = wires(3);
        let (server_zero, server_labels) = wires(4);
        let mut circuits = SignCircuits {
            instances,
            width,
            tweaks: TweakCounter::new(Block::random(rng)).take(instances, SIGN_BITS),
            client_labels: Block::decode("labels", &client_labels, count).expect("shapes fit"),
            client_zero,
            server_zero,
            server_labels,
            tables: vec![0; width.table_bytes(instances)],
            keep_zero: vec![Block::ZERO; instances],
            delta,
        };
        circuits.garble();
        circuits
    }

    /// AND gates of all circuits together.
    pub fn gates(&self) -> usize {
        self.instances * self.width.and_gates()
    }

    /// Garbles all of them.
    pub fn garble(&mut self) {
        let zeros = InputLabels {
            client: &self.client_zero,
            server: &self.server_zero,
        };
        garble_sign(
            self.width,
            &self.tweaks,
            &self.delta,
            zeros,
            &mut self.tables,
            &mut self.keep_zero,
        )
        .expect("shapes fit");
    }

    /// Evaluates all of them, and returns the labels of their outputs.
    pub fn evaluate(&self) -> Labels {
        let (client, server) = (&self.client_labels, &self.server_labels);
        let evaluated = evaluate_sign(self.width, &self.tweaks, client, server, &self.tables);
        evaluated.expect("shapes fit").0
    }
}

/// Master extensions in one direction, from base OTs.
pub fn masters(direction: Direction, rng: &mut ChaCha20Rng) -> (MasterSender, MasterReceiver) {
    let session = SessionId([1; 32]);
    let (setup, opening) = MasterSetup::start(session, direction, rng);
    let offset = Block::random(rng);
    let (all, chosen) = ideal_pads(offset, rng);
    let own = (offset, &chosen[..]);
    let (receiver, response) =
        MasterReceiver::respond(session, direction, own, &opening, rng).expect("honest bytes");
    (
        setup.finish(&response, &all).expect("honest bytes"),
        receiver,
    )
}

/// The extension of a bundle, one for each depth.
pub fn extension(
    masters: &(MasterSender, MasterReceiver),
    depth: TreeDepth,
    rng: &mut ChaCha20Rng,
) -> (ExtensionSender, ExtensionReceiver) {
    let bundle = BundleId([depth.get() as u8; 32]);
    let (pending, correction) = masters.0.begin(&bundle, depth, rng);
    let accepted = masters.1.accept(&bundle, depth, &correction);
    let (receiver, setup) = accepted.expect("honest bytes");
    (pending.finish(&setup).expect("honest bytes"), receiver)
}

/// A convolution as the server computes it online, on one input.
pub struct Convolution {
    shape: ConvShape,
    prepared: PreparedConv,
    input: Vec<u64>,
    scratch: ConvScratch,
    sum: Vec<u64>,
}

impl Convolution {
    /// A convolution that keeps the height and width of its square input.
    pub fn new(channels: u32, side: u32, out: u32, kernel: u32) -> Convolution {
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
        let rng = &mut ChaCha20Rng::seed_from_u64(5);
        Convolution {
            prepared: PreparedConv::new(&small_weights(shape.weights_len(), rng), shape, 7),
            input: fp::uniform_vec(shape.input_len(), rng),
            scratch: ConvScratch::default(),
            sum: vec![0; shape.output_len()],
            shape,
        }
    }

    /// Multiply-adds of one run.
    pub fn multiply_adds(&self) -> usize {
        self.shape.output_len() * self.shape.taps()
    }

    /// Adds the convolution of the input to what earlier runs summed up.
    pub fn run(&mut self) {
        self.prepared
            .add_to(&self.input, &mut self.scratch, &mut self.sum);
    }
}

/// Weights of 8 bits.
pub fn small_weights(count: usize, rng: &mut ChaCha20Rng) -> Vec<i16> {
    (0..count)
        .map(|_| (rng.next_u32() % 255) as i16 - 127)
        .collect()
}
