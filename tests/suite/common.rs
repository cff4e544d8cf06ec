//! Both parties of whole private inferences, on a channel in memory.

use futures_executor::block_on;
use pi_core::SecretBytes;
use pi_ir::artifact::{Artifact, WeightsFile};
use pi_protocol::Channel;
use pi_protocol::channel::memory;
use pi_protocol::session::{
    ClientBatch, ClientBundle, ClientModel, ClientSetup, HeaderInputs, Inference, OnlineRequest,
    ServerBatch, ServerModel, ServerSetup, client_infer, client_setup, server_infer, server_setup,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// A compiled network.
pub(crate) struct Model {
    pub(crate) artifact: Artifact,
    pub(crate) weights: WeightsFile,
}

/// Client and server on an in-memory line, set up once.
pub(crate) struct Pair {
    client: ClientModel,
    server: ServerModel,
    client_setup: ClientSetup,
    server_setup: ServerSetup,
    rng: [ChaCha20Rng; 2],
    index: u64,
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

/// Runs both parties on threads of their own, as they would run apart.
fn both<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    std::thread::scope(|scope| {
        let a = scope.spawn(a);
        let b = b();
        (a.join().expect("the client's side panicked"), b)
    })
}

impl Pair {
    pub(crate) fn new(model: &Model, seed: u64) -> Self {
        let client = ClientModel::new(model.artifact.clone()).unwrap();
        let server = ServerModel::new(model.artifact.clone(), model.weights.clone()).unwrap();
        let mut rng = [0, 1].map(|party| ChaCha20Rng::seed_from_u64(2 * seed + party));
        let (mut near, mut far) = memory();
        let [client_rng, server_rng] = &mut rng;
        let (client_setup, server_setup) = both(
            || block_on(client_setup(&mut near, &inputs(0), client_rng)).unwrap(),
            || block_on(server_setup(&mut far, &inputs(0), server_rng)).unwrap(),
        );
        Pair {
            client,
            server,
            client_setup,
            server_setup,
            rng,
            index: 0,
        }
    }

    /// The private answer for an input, with the client's trace.
    pub(crate) fn classify(&mut self, input: &[i64]) -> Inference {
        self.index += 1;
        let inputs = inputs(self.index);
        let (mut near, mut far) = memory();
        let [client_rng, server_rng] = &mut self.rng;
        let (inference, ()) = both(
            || {
                block_on(async {
                    let (channel, model, setup) = (&mut near, &self.client, &self.client_setup);
                    let start = ClientBatch::start(channel, model, setup, &inputs, 1, client_rng);
                    let batch = start.await.unwrap();
                    let mut stored = SecretBytes::with_capacity(ClientBundle::encoded_len(model));
                    let made = batch.next_bundle(channel, &mut stored).await.unwrap();
                    assert!(made.is_some());
                    let bundle = ClientBundle::decode(&stored, model).unwrap();
                    let infer = client_infer(channel, model, bundle, input, true);
                    infer.await.unwrap()
                })
            },
            || {
                block_on(async {
                    let (channel, model, setup) = (&mut far, &self.server, &self.server_setup);
                    let start = ServerBatch::start(channel, model, setup, &inputs, 1, server_rng);
                    let batch = start.await.unwrap();
                    let (bundle, _) = batch.next_bundle(channel).await.unwrap().unwrap();
                    let limit = OnlineRequest::encoded_len(model);
                    let message = channel.receive(limit).await.unwrap();
                    let request = OnlineRequest::decode(&message, model).unwrap();
                    let infer = server_infer(channel, model, bundle, request);
                    infer.await.unwrap();
                })
            },
        );
        inference
    }
}
