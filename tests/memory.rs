//! Memory of the server's exchanges and inferences with the bundled model, as the allocator counts
//! it, against the formulas that `pi-server --memory` relies on.

use futures_executor::block_on;
use peak_alloc::PeakAlloc;
use pi_core::SecretBytes;
use pi_ir::artifact::{Artifact, WeightsFile};
use pi_protocol::channel::memory;
use pi_protocol::session::{
    ClientBatch, ClientBundle, ClientModel, HeaderInputs, OnlineRequest, ServerBatch, ServerBundle,
    ServerModel, ServerSetup, client_infer, client_setup, server_infer, server_setup,
};
use pi_protocol::{Channel, Error};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::collections::VecDeque;
use std::path::Path;
use std::thread;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// A line that keeps a copy of what is sent.
struct Recorder<C> {
    line: C,
    sent: VecDeque<Vec<u8>>,
}

impl<C: Channel> Channel for Recorder<C> {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), Error> {
        self.sent.push_back(message.clone());
        self.line.send(message).await
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        self.line.receive(limit).await
    }
}

/// A line on which recorded messages come again, and whatever is sent is gone at once.
struct Replay(VecDeque<Vec<u8>>);

impl Channel for Replay {
    async fn send(&mut self, _message: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    async fn receive(&mut self, _limit: usize) -> Result<Vec<u8>, Error> {
        Ok(self.0.pop_front().expect("as many as were recorded"))
    }
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

/// Runs both parties, and returns what the client made and said.
fn both<T: Send>(
    client: impl AsyncFnOnce(&mut Recorder<pi_protocol::channel::MemoryChannel>) -> T + Send,
    server: impl AsyncFnOnce(&mut pi_protocol::channel::MemoryChannel) + Send,
) -> (T, VecDeque<Vec<u8>>) {
    let (near, mut far) = memory();
    let mut near = Recorder {
        line: near,
        sent: VecDeque::new(),
    };
    thread::scope(|scope| {
        let client = scope.spawn(move || {
            let made = block_on(client(&mut near));
            (made, near.sent)
        });
        block_on(server(&mut far));
        client.join().expect("the client's side panicked")
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

fn stored(model: &ServerModel, bundle: &ServerBundle) -> SecretBytes {
    let mut bytes = SecretBytes::with_capacity(ServerBundle::encoded_len(model));
    bundle.write(&mut bytes).unwrap();
    bytes
}

async fn serve(
    line: &mut impl Channel,
    model: &ServerModel,
    setup: &ServerSetup,
    bundles: usize,
) -> Vec<ServerBundle> {
    let mut made = Vec::new();
    let first = inputs(100 * bundles as u64);
    let rng = &mut rng(2);
    let start = ServerBatch::start(line, model, setup, &first, bundles, rng);
    let mut batch = start.await.unwrap();
    while let Some((bundle, rest)) = batch.next_bundle(line).await.unwrap() {
        // As a server does: stored, and no longer in memory.
        made.push(ServerBundle::read(&stored(model, &bundle)[..], model).unwrap());
        made.truncate(1);
        batch = rest;
    }
    made
}

#[test]
fn exchanges_stay_within_the_formulas() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cifar10-small");
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let artifact = Artifact::decode(&read("model.pia")).unwrap();
    let weights = WeightsFile::decode(&read("model.piw")).unwrap();
    let client = ClientModel::new(artifact.clone()).unwrap();
    let server = ServerModel::new(artifact, weights).unwrap();

    let (client_keys, said) = both(
        async |line| client_setup(line, &inputs(0), &mut rng(1)).await.unwrap(),
        async |line| drop(server_setup(line, &inputs(0), &mut rng(2)).await.unwrap()),
    );
    let (keys, measured) = growth(|| {
        let mut line = Replay(said);
        let keys = block_on(server_setup(&mut line, &inputs(0), &mut rng(2))).unwrap();
        ServerSetup::decode(&keys.encode()).unwrap()
    });
    check("setup", measured, ServerModel::SETUP_MEMORY);
    let stored = keys.encode();

    for bundles in [1, 4, 16] {
        let (mut made, said) = both(
            async |line| {
                let first = inputs(100 * bundles as u64);
                let (keys, rng) = (&client_keys, &mut rng(1));
                let start = ClientBatch::start(line, &client, keys, &first, bundles, rng);
                let mut batch = start.await.unwrap();
                let mut made = Vec::new();
                while batch.next_id().is_some() {
                    let length = ClientBundle::encoded_len(&client);
                    let mut bytes = SecretBytes::with_capacity(length);
                    let next = batch.next_bundle(line, &mut bytes).await.unwrap();
                    made.push(bytes);
                    made.truncate(1);
                    batch = next.unwrap().1;
                }
                made
            },
            async |line| drop(serve(line, &server, &keys, bundles).await),
        );
        // The exchange reads its keys from the store.
        let (halves, measured) = growth(|| {
            let keys = ServerSetup::decode(&stored).unwrap();
            block_on(serve(&mut Replay(said), &server, &keys, bundles))
        });
        let formula = server.offline_memory(bundles).unwrap();
        check(&format!("{bundles} bundles"), measured, formula);
        assert!(formula <= server.most_offline_memory());

        let half = halves.into_iter().next().unwrap();
        let bundle = ClientBundle::decode(&made.pop().unwrap(), &client).unwrap();
        let input = vec![0; client.artifact().circuit.input.len()];
        let stored = self::stored(&server, &half);
        let (_, said) = both(
            async |line| drop(client_infer(line, &client, bundle, &input, false).await),
            async |line| {
                let limit = OnlineRequest::encoded_len(&server);
                let message = line.receive(limit).await.unwrap();
                let request = OnlineRequest::decode(&message, &server).unwrap();
                server_infer(line, &server, half, request).await.unwrap();
            },
        );
        let ((), measured) = growth(|| {
            let mut line = Replay(said);
            let half = ServerBundle::read(&stored[..], &server).unwrap();
            let message = block_on(line.receive(0)).unwrap();
            let request = OnlineRequest::decode(&message, &server).unwrap();
            block_on(server_infer(&mut line, &server, half, request)).unwrap();
        });
        check("an inference", measured, server.online_memory());
    }
}
