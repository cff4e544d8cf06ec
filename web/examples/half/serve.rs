//! The server's half of every operation, without sockets and store: for tests of the module where
//! there is no server.

use pi_ir::interpret::Interpreter;
use pi_ir::{Artifact, Trace, WeightsFile};
use pi_protocol::header::{HeaderInputs, PROTOCOL_VERSION};
use pi_protocol::session::{
    Answer, OnlineRequest, ServerBatch, ServerBundle, ServerModel, ServerSetup, server_infer,
    server_setup,
};
use pi_protocol::{Channel, Error};
use pi_wire::control::{REQUEST_LIMIT, Request, Stored, Welcome, decode, software};
use pi_wire::fingerprint::Fingerprint;
use rand_core::{OsRng, TryRngCore};
use serde::Serialize;

/// A server with one model and one client.
pub(crate) struct Half {
    model: ServerModel,
    artifact: Artifact,
    inputs: HeaderInputs,
    setup: Option<ServerSetup>,
    bundles: Vec<ServerBundle>,
}

impl Half {
    pub(crate) fn new(artifact: Artifact, weights: WeightsFile) -> Self {
        Half {
            model: ServerModel::new(artifact.clone(), weights).expect("they fit"),
            artifact,
            inputs: HeaderInputs {
                server_peer: [1; 32],
                client_peer: [2; 32],
                server_nonce: [3; 32],
                client_nonce: [0; 32],
                index: 0,
            },
            setup: None,
            bundles: Vec::new(),
        }
    }

    /// Serves one operation.
    pub(crate) async fn serve(&mut self, line: &mut impl Channel) -> Result<(), Error> {
        let request = line.receive(REQUEST_LIMIT).await?;
        let rng = &mut OsRng.unwrap_err();
        match decode(&request).expect("a request") {
            Request::Hello(hello) => {
                self.inputs.client_nonce = hello.nonce;
                send(line, &self.welcome(&hello.probes)).await
            }
            Request::Artifact => line.send(self.artifact.encode()).await,
            Request::Setup => {
                let setup = server_setup(line, &self.inputs, rng).await?;
                let id = setup.id();
                self.setup = Some(setup);
                send(line, &Stored { id }).await
            }
            Request::Prepare(prepare) => {
                let mut inputs = self.inputs;
                inputs.index = prepare.first_index;
                let setup = self.setup.as_ref().expect("keys");
                for size in self.model.batches(prepare.count as usize) {
                    let mut batch =
                        ServerBatch::start(line, &self.model, setup, &inputs, size, rng).await?;
                    inputs.index += size as u64;
                    while let Some((bundle, rest)) = batch.next_bundle(line).await? {
                        batch = rest;
                        let id = bundle.id().0;
                        self.bundles.push(bundle);
                        send(line, &Stored { id }).await?;
                    }
                }
                Ok(())
            }
            Request::Infer => {
                let message = line
                    .receive(OnlineRequest::encoded_len(&self.model))
                    .await?;
                let request = OnlineRequest::decode(&message, &self.model)?;
                let id = request.bundle_id();
                let at = self.bundles.iter().position(|bundle| bundle.id() == id);
                let bundle = self.bundles.remove(at.expect("the bundle is there"));
                server_infer(line, &self.model, bundle, request).await
            }
            other => panic!("{other:?} is no part of the tests"),
        }
    }

    fn welcome(&self, probes: &[[u8; 32]]) -> Welcome {
        let held = |id: &[u8; 32]| self.bundles.iter().any(|bundle| bundle.id().0 == *id);
        Welcome {
            protocol: PROTOCOL_VERSION,
            software: software(),
            nonce: self.inputs.server_nonce,
            service: Fingerprint(self.inputs.server_peer),
            client: Fingerprint(self.inputs.client_peer),
            model: self.model.digest(),
            name: "test".into(),
            version: "1".into(),
            current: true,
            artifact_bytes: self.artifact.encode().len() as u64,
            setup: self.setup.as_ref().map(ServerSetup::id),
            held: probes.iter().map(held).collect(),
            answers_left: None,
            answers_left_today: None,
        }
    }
}

async fn send(line: &mut impl Channel, message: &(impl Serialize + Sync)) -> Result<(), Error> {
    line.send(postcard::to_stdvec(message).expect("it encodes"))
        .await
}

/// What the exact interpreter answers, given pixels `[c][h][w]` and the client's shares.
pub(crate) fn exact(
    artifact: &Artifact,
    weights: &WeightsFile,
    pixels: &[u8],
    trace: &Trace,
) -> Answer {
    let circuit = &artifact.circuit;
    let input = pi_ir::interpret::quantise_image(circuit, pixels).expect("pixels of the model");
    let interpreter = Interpreter::new(circuit, &weights.weights).expect("weights of the model");
    let run = interpreter
        .exact(&input, trace)
        .expect("shares of the model");
    Answer::of_run(&run, circuit.output().1)
}
