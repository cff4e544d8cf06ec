//! Memory of exchanges and inferences at both parties, as the allocator counts it, against the
//! formulas that `pi-server --memory`, `pi-client` and `pi-compile` rely on: with the bundled
//! model, and with a network whose bundles are exchanged in parts.

use futures_executor::block_on;
use peak_alloc::PeakAlloc;
use pi_core::SecretBytes;
use pi_ir::artifact::{Artifact, WeightsFile};
use pi_ir::random;
use pi_protocol::channel::{MemoryChannel, memory};
use pi_protocol::flooding::flooding;
use pi_protocol::layout::default_plan;
use pi_protocol::session::{
    BundleSink, BundleSource, ClientBatch, ClientBundle, ClientModel, ClientSetup, HeaderInputs,
    OnlineRequest, READ_AHEAD, READ_AT_ONCE, ServerBatch, ServerBundle, ServerModel, ServerSetup,
    client_infer, client_setup, server_infer, server_setup,
};
use pi_protocol::{Channel, Error};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The allocator counts for the whole process: while one test measures, the other must not even
/// build its network.
static MEASURING: Mutex<()> = Mutex::new(());

/// Held by a test from its first line to its last. That the other test failed is no reason to fail
/// as well.
fn alone() -> MutexGuard<'static, ()> {
    MEASURING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that keeps a copy of what is sent.
struct Recorder {
    line: MemoryChannel,
    sent: Vec<Vec<u8>>,
}

impl Channel for Recorder {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), Error> {
        self.sent.push(message.clone());
        self.line.send(message).await
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        self.line.receive(limit).await
    }
}

/// A line on which recorded messages come again, each in memory of its own, and whatever is sent is
/// gone at once.
struct Replay<'a>(std::slice::Iter<'a, Vec<u8>>);

impl Channel for Replay<'_> {
    async fn send(&mut self, _message: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    async fn receive(&mut self, _limit: usize) -> Result<Vec<u8>, Error> {
        Ok(self.0.next().expect("as many as were recorded").clone())
    }
}

/// A file, as far as memory is concerned.
struct Gone;

impl BundleSink for Gone {
    fn write(&mut self, _bytes: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}

/// A stored half that is read from its beginning to its end.
struct Stored {
    bytes: &'static [u8],
    read: SecretBytes,
}

impl BundleSource for Stored {
    fn read(&mut self, count: usize) -> Result<&[u8], Error> {
        let bytes = self
            .bytes
            .split_off(..count)
            .expect("as many as were stored");
        self.read = SecretBytes::with_capacity(0);
        self.read = SecretBytes::with_capacity(count);
        self.read.extend_from_slice(bytes);
        Ok(&self.read)
    }

    fn end(&mut self) -> Result<(), Error> {
        self.bytes.end()
    }
}

/// The stored half as a runtime reads it: as a whole if it is short, else piece by piece, some of
/// them ahead.
fn opened(bytes: &'static [u8], model: &ClientModel) -> ClientBundle {
    if bytes.len() as u64 <= READ_AT_ONCE {
        let whole = SecretBytes::read(bytes, bytes.len()).unwrap();
        return ClientBundle::decode(&whole, model).unwrap();
    }
    let mut bundle = streamed(bytes, model);
    if bytes.len() as u64 <= READ_AHEAD {
        bundle.read_ahead(model).unwrap();
    }
    bundle
}

/// The stored half as one that is longer is read.
fn streamed(bytes: &'static [u8], model: &ClientModel) -> ClientBundle {
    let read = SecretBytes::with_capacity(0);
    ClientBundle::open(Box::new(Stored { bytes, read }), model).unwrap()
}

/// The same of a server's half.
fn opened_by_server(bytes: &'static [u8], model: &ServerModel) -> ServerBundle {
    if bytes.len() as u64 <= READ_AT_ONCE {
        let whole = SecretBytes::read(bytes, bytes.len()).unwrap();
        return ServerBundle::read(&whole[..], model).unwrap();
    }
    let read = SecretBytes::with_capacity(0);
    ServerBundle::read(Stored { bytes, read }, model).unwrap()
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

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// What a party made and said.
struct Said<T> {
    made: T,
    sent: Vec<Vec<u8>>,
}

impl<T> Said<T> {
    /// The line to the other party, as it was.
    fn replay(&self) -> Replay<'_> {
        Replay(self.sent.iter())
    }
}

/// Runs both parties.
fn both<A: Send, B: Send>(
    client: impl AsyncFnOnce(&mut Recorder) -> A + Send,
    server: impl AsyncFnOnce(&mut Recorder) -> B + Send,
) -> (Said<A>, Said<B>) {
    let (near, far) = memory();
    let recorder = |line| Recorder {
        line,
        sent: Vec::new(),
    };
    let (mut near, mut far) = (recorder(near), recorder(far));
    thread::scope(|scope| {
        let client = scope.spawn(move || {
            let made = block_on(client(&mut near));
            let sent = near.sent;
            Said { made, sent }
        });
        let made = block_on(server(&mut far));
        let sent = far.sent;
        let client = client.join().expect("the client's side panicked");
        (client, Said { made, sent })
    })
}

/// Bytes by which memory grows at most while this runs.
fn growth<T>(run: impl FnOnce() -> T) -> (T, u64) {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let result = run();
    (result, (ALLOCATOR.peak_usage() - before) as u64)
}

/// Memory of polynomials that is kept for the next ones: what is taken from there is not measured.
const POOL: u64 = 64 << 20;

/// Checks a formula: never below what is measured, and not so far above that it means nothing.
fn check(what: &str, measured: u64, formula: u64) {
    eprintln!(
        "{what}: {:.1} MB measured, {:.1} MB by formula",
        measured as f64 / 1e6,
        formula as f64 / 1e6
    );
    assert!(measured <= formula, "{what}: {measured} above {formula}");
    assert!(
        formula <= 4 * measured + POOL,
        "{what}: {measured} far below {formula}"
    );
}

/// Takes every bundle of a batch: the first goes to `first`, the others to a file.
async fn keep_first<B>(
    batch: B,
    first: &mut dyn BundleSink,
    mut next: impl AsyncFnMut(B, &mut dyn BundleSink) -> Option<B>,
) {
    let mut left = next(batch, first).await;
    assert!(left.is_some(), "a batch without bundles");
    while let Some(batch) = left {
        left = next(batch, &mut Gone).await;
    }
}

/// The client's half of a batch.
async fn prepare(
    line: &mut impl Channel,
    model: &ClientModel,
    setup: &ClientSetup,
    bundles: usize,
    first: &mut dyn BundleSink,
) {
    let index = inputs(100 * bundles as u64);
    let rng = &mut rng(1);
    let start = ClientBatch::start(line, model, setup, &index, bundles, rng);
    let batch = start.await.unwrap();
    keep_first(batch, first, async |batch, sink| {
        let (_, rest) = batch.next_bundle(line, sink).await.unwrap()?;
        Some(rest)
    })
    .await;
}

/// The server's half, likewise.
async fn serve(
    line: &mut impl Channel,
    model: &ServerModel,
    setup: &ServerSetup,
    bundles: usize,
    first: &mut dyn BundleSink,
) {
    let index = inputs(100 * bundles as u64);
    let rng = &mut rng(2);
    let start = ServerBatch::start(line, model, setup, &index, bundles, rng);
    let batch = start.await.unwrap();
    keep_first(batch, first, async |batch, sink| {
        let (bundle, rest) = batch.next_bundle(line).await.unwrap()?;
        bundle.write(sink).unwrap();
        Some(rest)
    })
    .await;
}

async fn answer(line: &mut impl Channel, model: &ServerModel, half: ServerBundle) {
    let limit = OnlineRequest::encoded_len(model);
    let message = line.receive(limit).await.unwrap();
    let request = OnlineRequest::decode(&message, model).unwrap();
    drop(message);
    server_infer(line, model, half, request).await.unwrap();
}

/// Measures setup, batches of these sizes, and an inference of each, at both parties.
fn measure(name: &str, artifact: Artifact, weights: WeightsFile, sizes: &[usize]) {
    let client = ClientModel::new(artifact.clone()).unwrap();
    let server = ServerModel::new(artifact, weights).unwrap();
    let (own, other) = both(
        async |line| client_setup(line, &inputs(0), &mut rng(1)).await.unwrap(),
        async |line| server_setup(line, &inputs(0), &mut rng(2)).await.unwrap(),
    );
    let (keys, measured) = growth(|| {
        let (line, rng) = (&mut own.replay(), &mut rng(2));
        let keys = block_on(server_setup(line, &inputs(0), rng)).unwrap();
        ServerSetup::decode(&keys.encode()).unwrap()
    });
    check("setup", measured, ServerModel::SETUP_MEMORY);
    drop(keys);
    let (own, other) = (own.made, other.made);
    let keys = (own.encode(), other.encode());

    for &bundles in sizes {
        let room = || SecretBytes::with_capacity(ClientBundle::encoded_len(&client));
        let of_server = || SecretBytes::with_capacity(ServerBundle::encoded_len(&server));
        let (up, down) = both(
            async |line| {
                let mut half = room();
                prepare(line, &client, &own, bundles, &mut half).await;
                half
            },
            async |line| {
                let mut half = of_server();
                serve(line, &server, &other, bundles, &mut half).await;
                half
            },
        );
        // Each reads its keys from the store.
        let ((), measured) = growth(|| {
            let keys = ServerSetup::decode(&keys.1).unwrap();
            block_on(serve(&mut up.replay(), &server, &keys, bundles, &mut Gone));
        });
        let formula = server.offline_memory(bundles).unwrap();
        check(
            &format!("{name}, {bundles} bundles, server"),
            measured,
            formula,
        );
        assert!(formula <= server.most_offline_memory());
        let ((), measured) = growth(|| {
            let keys = ClientSetup::decode(&keys.0).unwrap();
            block_on(prepare(
                &mut down.replay(),
                &client,
                &keys,
                bundles,
                &mut Gone,
            ));
        });
        let formula = client.offline_memory(bundles).unwrap();
        check(
            &format!("{name}, {bundles} bundles, client"),
            measured,
            formula,
        );

        // As if they lay in files.
        let halves = [up.made.to_vec(), down.made.to_vec()];
        let halves = halves.map(|half| &*Vec::leak(half));
        let input = vec![0; client.artifact().circuit.input.len()];
        let (up, down) = both(
            async |line| {
                let half = opened(halves[0], &client);
                drop(
                    client_infer(line, &client, half, &input, false)
                        .await
                        .unwrap(),
                );
            },
            async |line| answer(line, &server, opened_by_server(halves[1], &server)).await,
        );
        let ((), measured) = growth(|| {
            let half = opened_by_server(halves[1], &server);
            block_on(answer(&mut up.replay(), &server, half));
        });
        check(
            &format!("{name}, an inference, server"),
            measured,
            server.online_memory(),
        );
        let infer = |half: ClientBundle| {
            let line = &mut down.replay();
            drop(block_on(client_infer(line, &client, half, &input, false)).unwrap());
        };
        let ((), measured) = growth(|| infer(opened(halves[0], &client)));
        check(
            &format!("{name}, an inference, client"),
            measured,
            client.online_memory(),
        );
        let ((), measured) = growth(|| infer(streamed(halves[0], &client)));
        eprintln!("{measured} bytes where pieces are read while they are used");
        let stored = halves[0].len() as u64;
        assert!(stored <= READ_AT_ONCE || measured < stored / 2);
    }
}

#[test]
fn exchanges_of_the_bundled_model_stay_within_the_formulas() {
    let _alone = alone();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cifar10-small");
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let artifact = Artifact::decode(&read("model.pia")).unwrap();
    let weights = WeightsFile::decode(&read("model.piw")).unwrap();
    measure("bundled", artifact, weights, &[1, 4, 16]);
}

/// 204,800 ReLUs in two layers, 154 MB stored at the client: of the tables, neither party ever has
/// more than a few parts of 16 MiB.
#[test]
fn exchanges_in_parts_stay_within_the_formulas() {
    let _alone = alone();
    let (circuit, weights) = random::wide(&[(1, 0), (1, 0)]);
    let weights = WeightsFile {
        salt: [9; 32],
        weights,
    };
    let plan = default_plan(&circuit, 1).unwrap();
    let distance = flooding(&circuit, [&plan]).unwrap().total;
    let artifact = Artifact::new(circuit, plan, weights.digest(), distance);
    let client = ClientModel::new(artifact.clone()).unwrap();
    assert!(client.cost().unwrap().parts > 5);
    let stored = ClientBundle::encoded_len(&client) as u64;
    assert!(
        client.offline_memory(1).unwrap() < stored,
        "it has all of it"
    );
    drop(client);
    measure("wide", artifact, weights, &[1]);
}
