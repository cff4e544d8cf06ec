//! A small network with two honest parties, whose messages are recorded; and a line that replays
//! them.

use futures_executor::block_on;
use futures_util::future::join;
use pi_core::SecretBytes;
use pi_ir::artifact::{Artifact, WeightsFile};
use pi_ir::random::{self, Options};
use pi_protocol::channel::{MemoryChannel, memory};
use pi_protocol::flooding::flooding;
use pi_protocol::layout::default_plan;
use pi_protocol::session::{
    Answer, ClientBatch, ClientBundle, ClientModel, ClientSetup, HeaderInputs, OnlineRequest,
    ServerBatch, ServerBundle, ServerModel, ServerSetup, client_infer, client_setup, server_infer,
    server_setup,
};
use pi_protocol::{Channel, Error};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// Seed of a network with elements of every kind that reveals its label.
pub const LABEL: u64 = 23;
/// Seed of a network with elements of every kind that reveals its logits.
pub const LOGITS: u64 = 33;
/// Seed of a network with a public prefix.
pub const PREFIX: u64 = 14;

/// Returns the artifact and the weights of a small random network.
///
/// # Panics
/// Never: every random circuit is legal.
pub fn model(seed: u64) -> (Artifact, WeightsFile) {
    let options = Options {
        layers: 2,
        side: 4,
        channels: 3,
        kernel: 3,
        elements: 60,
        quadratic: true,
    };
    let (circuit, weights) = random::circuit(seed, &options);
    let weights = random::weights_file(seed, weights);
    let plan = default_plan(&circuit, 1).expect("a small circuit fits");
    let distance = flooding(&circuit, [&plan]).expect("its plan").total;
    let artifact = Artifact::new(circuit, plan, weights.digest(), distance);
    (artifact, weights)
}

/// The messages of one exchange in both directions.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    /// The client's.
    pub up: Vec<Vec<u8>>,
    /// The server's.
    pub down: Vec<Vec<u8>>,
}

/// What two honest parties have made, stored and said, up to one inference.
pub struct Session {
    /// The client's model.
    pub client: ClientModel,
    /// The server's model.
    pub server: ServerModel,
    /// Their setups, stored.
    pub setups: (Vec<u8>, Vec<u8>),
    /// Their bundles, stored.
    pub bundles: (Vec<u8>, Vec<u8>),
    /// The setup's messages.
    pub setup: Messages,
    /// The messages of a batch of one bundle.
    pub prepare: Messages,
    /// The messages of one inference.
    pub infer: Messages,
}

impl Session {
    /// Runs a whole session.
    ///
    /// # Panics
    /// If an honest party fails.
    pub fn new(seed: u64) -> Self {
        let (artifact, weights) = model(seed);
        let client = ClientModel::new(artifact.clone()).expect("a legal model");
        let server = ServerModel::new(artifact, weights).expect("a legal model");
        let (mut left, mut right) = line();
        let (own, other) = block_on(join(setup_client(&mut left), setup_server(&mut right)));
        let (own, other) = (own.expect("honest"), other.expect("honest"));
        let setups = (own.encode().to_vec(), other.encode().to_vec());
        let setup = messages(left, right);

        let (mut left, mut right) = line();
        let (client_bundle, server_bundle) = block_on(join(
            prepare_client(&mut left, &client, &own),
            prepare_server(&mut right, &server, &other),
        ));
        let client_bundle = client_bundle.expect("honest");
        let server_bundle = server_bundle.expect("honest");
        let mut stored = SecretBytes::with_capacity(ServerBundle::encoded_len(&server));
        server_bundle.write(&mut stored).expect("there is room");
        let bundles = (client_bundle.to_vec(), stored.to_vec());
        let client_bundle = ClientBundle::decode(&client_bundle, &client).expect("whole");
        let prepare = messages(left, right);

        let (mut left, mut right) = line();
        let (answer, served) = block_on(join(
            infer_client(&mut left, &client, client_bundle),
            infer_server(&mut right, &server, server_bundle),
        ));
        answer.expect("honest");
        served.expect("honest");
        let infer = messages(left, right);
        Session {
            client,
            server,
            setups,
            bundles,
            setup,
            prepare,
            infer,
        }
    }
}

/// The client's half of the setup.
///
/// # Errors
/// Those of [`client_setup`].
pub async fn setup_client(channel: &mut impl Channel) -> Result<ClientSetup, Error> {
    client_setup(channel, &INPUTS, &mut rng(1)).await
}

/// The server's half of the setup.
///
/// # Errors
/// Those of [`server_setup`].
pub async fn setup_server(channel: &mut impl Channel) -> Result<ServerSetup, Error> {
    server_setup(channel, &INPUTS, &mut rng(2)).await
}

/// The client's half of a batch of one bundle, as it is stored.
///
/// # Errors
/// Those of [`ClientBatch`].
pub async fn prepare_client(
    channel: &mut impl Channel,
    model: &ClientModel,
    setup: &ClientSetup,
) -> Result<SecretBytes, Error> {
    let batch = ClientBatch::start(channel, model, setup, &INPUTS, 1, &mut rng(3)).await?;
    let mut bytes = SecretBytes::with_capacity(ClientBundle::encoded_len(model));
    let next = batch.next_bundle(channel, &mut bytes).await?;
    assert!(next.is_some(), "a batch of one");
    Ok(bytes)
}

/// The server's half of a batch of one bundle.
///
/// # Errors
/// Those of [`ServerBatch`].
pub async fn prepare_server(
    channel: &mut impl Channel,
    model: &ServerModel,
    setup: &ServerSetup,
) -> Result<ServerBundle, Error> {
    let batch = ServerBatch::start(channel, model, setup, &INPUTS, 1, &mut rng(4)).await?;
    let next = batch.next_bundle(channel).await?;
    Ok(next.expect("a batch of one").0)
}

/// The client's half of an inference.
///
/// # Errors
/// Those of [`client_infer`].
pub async fn infer_client(
    channel: &mut impl Channel,
    model: &ClientModel,
    bundle: ClientBundle,
) -> Result<Answer, Error> {
    let input = vec![1; model.artifact().circuit.input.len()];
    let inference = client_infer(channel, model, bundle, &input, true).await?;
    Ok(inference.answer)
}

/// The server's half of an inference.
///
/// # Errors
/// Those of [`OnlineRequest::decode`] and [`server_infer`].
pub async fn infer_server(
    channel: &mut impl Channel,
    model: &ServerModel,
    bundle: ServerBundle,
) -> Result<(), Error> {
    let request = channel.receive(OnlineRequest::encoded_len(model)).await?;
    let request = OnlineRequest::decode(&request, model)?;
    server_infer(channel, model, bundle, request).await
}

const INPUTS: HeaderInputs = HeaderInputs {
    server_peer: [1; 32],
    client_peer: [2; 32],
    server_nonce: [3; 32],
    client_nonce: [4; 32],
    index: 0,
};

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// One end of a line that records what this end sends.
struct Recorded {
    line: MemoryChannel,
    sent: Vec<Vec<u8>>,
}

fn line() -> (Recorded, Recorded) {
    let (left, right) = memory();
    let end = |line| Recorded {
        line,
        sent: Vec::new(),
    };
    (end(left), end(right))
}

fn messages(client: Recorded, server: Recorded) -> Messages {
    Messages {
        up: client.sent,
        down: server.sent,
    }
}

impl Channel for Recorded {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), Error> {
        self.sent.push(message.clone());
        self.line.send(message).await
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        self.line.receive(limit).await
    }
}

/// A peer that says this, whatever it hears, and goes.
pub struct Replayed(std::vec::IntoIter<Vec<u8>>);

impl Replayed {
    /// A peer with these messages, one of which is changed as `input` says: its first byte names
    /// the message, and whether the length may change.
    pub fn changed(messages: &[Vec<u8>], input: &[u8]) -> Self {
        let mut messages = messages.to_vec();
        if let Some((&first, changes)) = input.split_first() {
            let number = usize::from(first / 8) % messages.len();
            let message = &mut messages[number];
            *message = match first % 8 {
                0 => crate::edited(message, changes),
                _ => crate::changed(message, changes),
            };
        }
        Replayed(messages.into_iter())
    }
}

impl Channel for Replayed {
    async fn send(&mut self, _: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let message = self.0.next().ok_or_else(|| Error::Channel {
            what: "the peer has gone".into(),
        })?;
        match message.len() > limit {
            true => Err(Error::PeerMisbehaved {
                what: format!("{} bytes where {limit} are allowed", message.len()),
            }),
            false => Ok(message),
        }
    }
}
