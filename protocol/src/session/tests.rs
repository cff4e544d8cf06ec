//! Two honest parties against the interpreter, and one honest party whose channel tampers with
//! messages; here, what all of these tests share.

mod batches;
mod circuits;
mod labels;
mod liars;
mod models;
mod parts;
mod ranges;
mod setups;
mod streams;

use super::*;
use crate::channel::tampered::{Tamper, TamperedChannel, line};
use crate::cost::Traffic;
use crate::flooding::flooding;
use crate::layout::default_plan;
use crate::{Channel, Error};
use futures_executor::block_on;
use futures_util::future::join;
use pi_core::SecretBytes;
use pi_ir::{
    Activation, Artifact, Circuit, Conv, Kind, Layer, LayerWeights, Padding, Polynomial,
    PostTruncation, Preprocessing, Range, Reveal, Shape, Step, SumPool, TensorId, Term, Verified,
    Weights, WeightsFile, interpret, random, verify,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn inputs(index: u64) -> HeaderInputs {
    HeaderInputs {
        server_peer: [1; 32],
        client_peer: [2; 32],
        server_nonce: [3; 32],
        client_nonce: [4; 32],
        index,
    }
}

/// The end of an exchange for both parties, and the traffic that crossed the line.
struct Outcome<A, B> {
    client: A,
    server: B,
    traffic: Traffic,
}

/// Runs both halves of an exchange to their ends. Each owns its end of the line, so that who gives
/// up closes it.
fn both<A, B>(
    ends: (TamperedChannel, TamperedChannel),
    client: impl AsyncFnOnce(&mut TamperedChannel) -> A,
    server: impl AsyncFnOnce(&mut TamperedChannel) -> B,
) -> Outcome<A, B> {
    let (mut left, mut right) = ends;
    let ((client, up), (server, down)) = block_on(join(
        async move { (client(&mut left).await, left.sent()) },
        async move { (server(&mut right).await, right.sent()) },
    ));
    Outcome {
        client,
        server,
        traffic: Traffic {
            bytes_up: up.bytes,
            bytes_down: down.bytes,
            messages: (up.messages + down.messages) as u32,
        },
    }
}

/// Stored bytes that are read as from a file, and how many of them were.
struct Source {
    bytes: Vec<u8>,
    read: Arc<AtomicUsize>,
}

impl Source {
    fn new(bytes: &[u8]) -> Self {
        Source {
            bytes: bytes.to_vec(),
            read: Arc::default(),
        }
    }
}

impl BundleSource for Source {
    fn read(&mut self, count: usize) -> Result<&[u8], Error> {
        let from = self.read.fetch_add(count, Ordering::Relaxed);
        let bytes = self.bytes.get(from..from + count);
        bytes.ok_or_else(|| Error::stored("the bytes end early"))
    }

    fn end(&mut self) -> Result<(), Error> {
        match self.read.load(Ordering::Relaxed) == self.bytes.len() {
            true => Ok(()),
            false => Err(Error::stored("bytes are left")),
        }
    }
}

type Setups<C = ClientSetup, S = ServerSetup> = Outcome<Result<C, Error>, Result<S, Error>>;

fn exchange_setup(ends: (TamperedChannel, TamperedChannel), seed: u64) -> Setups {
    both(
        ends,
        async |ch| client_setup(ch, &inputs(0), &mut rng(seed)).await,
        async |ch| server_setup(ch, &inputs(0), &mut rng(!seed)).await,
    )
}

/// One setup for all tests, in its stored form and back.
fn setups() -> &'static (ClientSetup, ServerSetup) {
    static SETUPS: OnceLock<(ClientSetup, ServerSetup)> = OnceLock::new();
    SETUPS.get_or_init(|| {
        let setups = exchange_setup(line(), 1);
        let (client, server) = (setups.client.unwrap(), setups.server.unwrap());
        let (client, server) = (client.encode(), server.encode());
        (
            ClientSetup::decode(&client).unwrap(),
            ServerSetup::decode(&server).unwrap(),
        )
    })
}

/// Room for the client's half of a bundle.
fn room(model: &ClientModel) -> SecretBytes {
    SecretBytes::with_capacity(ClientBundle::encoded_len(model))
}

/// The stored form of a server's half.
fn stored(model: &ServerModel, bundle: &ServerBundle) -> SecretBytes {
    let mut bytes = SecretBytes::with_capacity(ServerBundle::encoded_len(model));
    bundle.write(&mut bytes).unwrap();
    bytes
}

/// A batch of one at the client: its bundle, as it is stored.
async fn client_prepare(
    channel: &mut impl Channel,
    model: &ClientModel,
    setup: &ClientSetup,
    inputs: &HeaderInputs,
    rng: &mut ChaCha20Rng,
) -> Result<SecretBytes, Error> {
    let batch = ClientBatch::start(channel, model, setup, inputs, 1, rng).await?;
    let (mut bytes, next) = (room(model), batch.next_id());
    let made = batch.next_bundle(channel, &mut bytes).await?;
    let (id, rest) = made.expect("a batch of one");
    assert_eq!(Some(id), next);
    assert!(rest.next_id().is_none());
    let nothing = &mut SecretBytes::with_capacity(0);
    assert!(rest.next_bundle(channel, nothing).await?.is_none());
    Ok(bytes)
}

/// A batch of one at the server.
async fn server_prepare(
    channel: &mut impl Channel,
    model: &ServerModel,
    setup: &ServerSetup,
    inputs: &HeaderInputs,
    rng: &mut ChaCha20Rng,
) -> Result<ServerBundle, Error> {
    let batch = ServerBatch::start(channel, model, setup, inputs, 1, rng).await?;
    let (bundle, rest) = batch.next_bundle(channel).await?.expect("a batch of one");
    assert!(rest.next_bundle(channel).await?.is_none());
    Ok(bundle)
}

/// The bundles of a batch that were complete, and the error that ended it.
type Batch<B> = (Vec<B>, Option<Error>);

struct Models {
    client: ClientModel,
    server: ServerModel,
    weights: Weights,
}

impl Models {
    fn new(circuit: Verified<Circuit>, weights: Weights) -> Self {
        Models::with_batches(circuit, weights, &[])
    }

    fn with_batches(circuit: Verified<Circuit>, weights: Weights, batches: &[u32]) -> Self {
        let plan = default_plan(&circuit, 1).unwrap();
        let batches = batches.iter().map(|&n| default_plan(&circuit, n).unwrap());
        let batches: Vec<_> = batches.collect();
        let plans = [&plan].into_iter().chain(&batches);
        let distance = flooding(&circuit, plans).unwrap().total;
        let file = WeightsFile {
            salt: [9; 32],
            weights: weights.clone(),
        };
        let mut artifact = Artifact::new(circuit, plan, file.digest(), distance);
        artifact.batches = batches;
        Models {
            client: ClientModel::new(artifact.clone()).unwrap(),
            server: ServerModel::new(artifact, file).unwrap(),
            weights,
        }
    }

    /// The same models, exchanged in parts of other sizes.
    fn in_parts_of(self, bytes: usize) -> Self {
        Models {
            client: self.client.in_parts_of(bytes),
            server: self.server.in_parts_of(bytes),
            weights: self.weights,
        }
    }

    fn circuit(&self) -> &Circuit {
        &self.client.artifact().circuit
    }

    fn prepare(
        &self,
        ends: (TamperedChannel, TamperedChannel),
        seed: u64,
    ) -> Outcome<Result<SecretBytes, Error>, Result<ServerBundle, Error>> {
        let (client, server) = setups();
        let header = inputs(seed);
        both(
            ends,
            async |ch| client_prepare(ch, &self.client, client, &header, &mut rng(seed)).await,
            async |ch| server_prepare(ch, &self.server, server, &header, &mut rng(!seed)).await,
        )
    }

    /// A batch, as far as it comes: bundles that were complete before an error are kept.
    fn prepare_batch(
        &self,
        ends: (TamperedChannel, TamperedChannel),
        seed: u64,
        count: usize,
    ) -> Outcome<Batch<SecretBytes>, Batch<ServerBundle>> {
        let (client, server) = setups();
        let header = inputs(seed);
        both(
            ends,
            async |ch| {
                let rng = &mut rng(seed);
                let mut done = Vec::new();
                let batch = ClientBatch::start(ch, &self.client, client, &header, count, rng).await;
                let mut batch = match batch {
                    Ok(batch) => batch,
                    Err(error) => return (done, Some(error)),
                };
                loop {
                    let mut bytes = room(&self.client);
                    match batch.next_bundle(ch, &mut bytes).await {
                        Ok(Some((_, rest))) => {
                            done.push(bytes);
                            batch = rest;
                        }
                        Ok(None) => return (done, None),
                        Err(error) => return (done, Some(error)),
                    }
                }
            },
            async |ch| {
                let rng = &mut rng(!seed);
                let mut done = Vec::new();
                let batch = ServerBatch::start(ch, &self.server, server, &header, count, rng).await;
                let mut batch = match batch {
                    Ok(batch) => batch,
                    Err(error) => return (done, Some(error)),
                };
                loop {
                    match batch.next_bundle(ch).await {
                        Ok(Some((bundle, rest))) => {
                            done.push(bundle);
                            batch = rest;
                        }
                        Ok(None) => return (done, None),
                        Err(error) => return (done, Some(error)),
                    }
                }
            },
        )
    }

    /// An honest pair of bundles.
    fn bundles(&self, seed: u64) -> (ClientBundle, ServerBundle) {
        let outcome = self.prepare(line(), seed);
        (
            self.decode(&outcome.client.unwrap()),
            outcome.server.unwrap(),
        )
    }

    /// The client's half of a bundle.
    fn decode(&self, bytes: &[u8]) -> ClientBundle {
        ClientBundle::decode(bytes, &self.client).unwrap()
    }

    fn infer(
        &self,
        ends: (TamperedChannel, TamperedChannel),
        client: ClientBundle,
        server: ServerBundle,
        input: &[i64],
    ) -> Outcome<Result<Inference, Error>, Result<(), Error>> {
        both(
            ends,
            async |ch| client_infer(ch, &self.client, client, input, true).await,
            async |ch| {
                let limit = OnlineRequest::encoded_len(&self.server);
                let request = OnlineRequest::decode(&ch.receive(limit).await?, &self.server)?;
                assert_eq!(request.bundle_id(), server.id());
                server_infer(ch, &self.server, server, request).await
            },
        )
    }

    /// Prepares a bundle, stores and restores it, spends it, and compares with the interpreter and
    /// with the formulas.
    fn check(&self, input: &[i64], seed: u64) -> interpret::Run {
        let cost = self.client.cost().unwrap();
        let prepared = self.prepare(line(), seed);
        assert_eq!(prepared.traffic, cost.offline, "seed {seed}");
        let (bytes, server) = (prepared.client.unwrap(), prepared.server.unwrap());
        assert_eq!(bytes.len(), ClientBundle::encoded_len(&self.client));
        assert_eq!(bytes.len() as u64, cost.stored.client);
        // Read piece by piece or ahead, it is the same bundle.
        let client = match seed % 2 {
            0 => self.decode(&bytes),
            _ => ClientBundle::open(Box::new(Source::new(&bytes)), &self.client).unwrap(),
        };
        assert_eq!(client.id(), server.id());
        assert_eq!(client.header(), server.header());
        let bytes = stored(&self.server, &server);
        assert_eq!(bytes.len(), ServerBundle::encoded_len(&self.server));
        assert_eq!(bytes.len() as u64, cost.stored.server);
        let server = ServerBundle::read(&bytes[..], &self.server).unwrap();

        self.spend(client, server, input, seed)
    }

    /// Spends a bundle, and compares with the interpreter and with the formulas.
    fn spend(
        &self,
        client: ClientBundle,
        server: ServerBundle,
        input: &[i64],
        seed: u64,
    ) -> interpret::Run {
        let answered = self.infer(line(), client, server, input);
        assert_eq!(
            answered.traffic,
            self.client.cost().unwrap().online,
            "seed {seed}"
        );
        answered.server.unwrap();
        let inference = answered.client.unwrap();
        let trace = inference.trace.unwrap();
        let run = interpret::exact(self.circuit(), &self.weights, input, &trace)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let expected = Answer::of_run(&run, self.circuit().output().1);
        assert_eq!(inference.answer, expected, "seed {seed}");
        run
    }
}

fn identity_conv(input: u32, channels: u32) -> Term {
    Term::Conv(Conv {
        input: TensorId(input),
        out_channels: channels,
        groups: 1,
        kernel: (1, 1),
        stride: (1, 1),
        padding: Padding::default(),
        weight_bits: 7,
    })
}

/// `channels` identity kernels, and no bias.
fn identity_weights(channels: usize, polynomials: Vec<Polynomial>) -> LayerWeights {
    let kernel = (0..channels * channels).map(|i| i16::from(i / channels == i % channels));
    LayerWeights {
        kernels: vec![kernel.collect()],
        bias: vec![0; channels],
        element_bias: Vec::new(),
        polynomials,
    }
}

const EDGE_SHAPE: Shape = Shape::new(4, 3, 4);
const TRUNCATE: u8 = 4;
const BOUND_BITS: u8 = 12;

/// One layer with a channel of each kind, on the numbers themselves.
fn edge_circuit() -> (Verified<Circuit>, Weights) {
    let calibrated = Range::Calibrated { max_seen: 1 };
    let of_channel = [Kind::Relu, Kind::Identity, Kind::Square, Kind::Polynomial];
    let area = EDGE_SHAPE.len() / 4;
    let post = PostTruncation {
        truncate: 3,
        bound_bits: 25,
        range: calibrated,
    };
    let layer = |name: &str, input, step| Layer {
        name: name.into(),
        terms: vec![identity_conv(input, 4)],
        pool: None,
        shape: EDGE_SHAPE,
        bound_bits: if input == 0 { BOUND_BITS } else { 24 },
        range: calibrated,
        guard_bits: 0,
        step,
    };
    let activation = Activation {
        truncate: TRUNCATE,
        frac_bits: 3,
        kinds: (0..EDGE_SHAPE.len())
            .map(|i| of_channel[i / area])
            .collect(),
        square: Some(post),
        polynomial: Some(post),
    };
    let circuit = Circuit {
        name: "edges".into(),
        input: EDGE_SHAPE,
        input_frac_bits: 7,
        preprocessing: Preprocessing::unit(EDGE_SHAPE.c),
        classes: Vec::new(),
        prefix: None,
        layers: vec![
            layer("hidden", 0, Step::Activate(activation)),
            layer(
                "output",
                1,
                Step::Output {
                    frac_bits: 3,
                    reveal: Reveal::Logits,
                },
            ),
        ],
    };
    let polynomial = Polynomial {
        a: -37,
        b: 1201,
        k: -4444,
    };
    let weights = Weights {
        layers: vec![
            identity_weights(4, vec![polynomial; 4]),
            identity_weights(4, Vec::new()),
        ],
    };
    (verify::circuit(circuit).unwrap(), weights)
}

/// Zero, single units, the last value of a step, and the largest magnitudes that the bound allows,
/// in every channel.
fn edge_input() -> Vec<i64> {
    let (unit, bound) = (1i64 << TRUNCATE, 1i64 << BOUND_BITS);
    let edges = [
        0,
        -1,
        1,
        -unit,
        unit,
        -unit - 1,
        unit - 1,
        1 - unit,
        bound - unit,
        unit - bound,
        bound - 2 * unit + 1,
        2 * unit - bound - 1,
    ];
    edges.repeat(4)
}

/// The models of the edge circuit, made once.
fn edge_models() -> &'static Models {
    static MODELS: OnceLock<Models> = OnceLock::new();
    MODELS.get_or_init(|| {
        let (circuit, weights) = edge_circuit();
        Models::new(circuit, weights)
    })
}

/// Messages of an honest run, client's and server's.
fn recorded(run: impl FnOnce((TamperedChannel, TamperedChannel))) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut left, mut right) = line();
    let (up, down) = (left.record(), right.record());
    run((left, right));
    (up.lock().unwrap().clone(), down.lock().unwrap().clone())
}
