//! Private inference in one process: a client and a server over a channel in memory.
//!
//!     cargo run --release --example private_inference
//!
//! The server has the bundled model; the client has an image of a ship. The client learns the
//! label and the public circuit but not the weights, and the server learns nothing of the image.

use anyhow::{Context, Result};
use pi_core::SecretBytes;
use pi_ir::interpret::{Interpreter, quantise_image};
use pi_protocol::Channel;
use pi_protocol::session::*;
use pi_runtime::draw;
use pi_runtime::model_files::{read_artifact, read_weights};
use rand_core::{OsRng, TryRngCore};
use std::path::Path;

async fn client(
    channel: &mut impl Channel,
    model: &ClientModel,
    input: &[i64],
) -> Result<Inference> {
    let rng = &mut OsRng.unwrap_err();
    // Once per client and server: homomorphic keys and base oblivious transfers.
    let setup = client_setup(channel, &header(0), rng).await?;
    // Offline, before the image exists: bundles in batches, here one bundle in a batch of one.
    let batch = ClientBatch::start(channel, model, &setup, &header(1), 1, rng).await?;
    // What is to be stored of a bundle goes where the caller says: to a file, or here to memory.
    let mut stored = SecretBytes::with_capacity(ClientBundle::encoded_len(model));
    batch
        .next_bundle(channel, &mut stored)
        .await?
        .context("no bundle")?;
    let bundle = ClientBundle::decode(&stored, model)?;
    // Online: the bundle is spent on the image. The trace keeps the client's shares for the check.
    let trace = true;
    Ok(client_infer(channel, model, bundle, input, trace).await?)
}

async fn server(channel: &mut impl Channel, model: &ServerModel) -> Result<()> {
    let rng = &mut OsRng.unwrap_err();
    let setup = server_setup(channel, &header(0), rng).await?;
    let batch = ServerBatch::start(channel, model, &setup, &header(1), 1, rng).await?;
    let (bundle, _) = batch.next_bundle(channel).await?.context("no bundle")?;
    // The first message of the online phase names the bundle to be spent.
    let message = channel.receive(OnlineRequest::encoded_len(model)).await?;
    let request = OnlineRequest::decode(&message, model)?;
    Ok(server_infer(channel, model, bundle, request).await?)
}

/// The names of both parties and their nonces, as two processes would agree on them; each index
/// serves once.
fn header(index: u64) -> HeaderInputs {
    HeaderInputs {
        server_peer: [1; 32],
        client_peer: [2; 32],
        server_nonce: [3; 32],
        client_nonce: [4; 32],
        index,
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cifar10-small");
    let (artifact, _) = read_artifact(&model)?;
    let weights = read_weights(&model)?;
    let circuit = artifact.circuit.clone();
    let image = pi_image::to_shape(draw::freighter(256).into(), circuit.image())?;
    let input = quantise_image(&circuit, &image.pixels)?;

    let public = ClientModel::new(artifact.clone())?;
    let private = ServerModel::new(artifact, weights.clone())?;
    let (mut near, mut far) = pi_protocol::channel::memory();
    let (inference, ()) = tokio::try_join!(
        client(&mut near, &public, &input),
        server(&mut far, &private)
    )?;

    // In the clear, with the weights and the client's shares, the same label comes out.
    let trace = inference.trace.context("no trace")?;
    let exact = Interpreter::new(&circuit, &weights.weights)?.exact(&input, &trace)?;
    assert_eq!(inference.answer, Answer::Label(exact.label));
    let label = inference.answer.label().context("out of range")?;
    let class = &circuit.classes[label];
    println!("The private answer is {class:?}, which is that of the exact interpreter.");
    Ok(())
}

#[test]
fn the_private_answer_is_the_exact_interpreters() -> Result<()> {
    main()
}
