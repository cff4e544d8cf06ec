//! Hostile bytes for what a server reads from a client and what both parties read from their
//! stores.

use pi_ir::artifact::{Artifact, WeightsFile};
use pi_ir::random;
use pi_protocol::flooding::flooding;
use pi_protocol::layout::default_plan;
use pi_protocol::session::{
    ClientBundle, ClientModel, ClientSetup, OnlineRequest, ServerBundle, ServerModel, ServerSetup,
};

/// A small random network of legal shape.
fn model() -> (Artifact, WeightsFile) {
    let (circuit, weights) = random::circuit(7, &random::Options::default());
    let weights = random::weights_file(7, weights);
    let plan = default_plan(&circuit, 1).expect("a small circuit fits");
    let distance = flooding(&circuit, [&plan]).expect("its plan").total;
    (
        Artifact::new(circuit, plan, weights.digest(), distance),
        weights,
    )
}

#[test]
fn online_request_decoder_survives_any_bytes() {
    let (artifact, weights) = model();
    let server = ServerModel::new(artifact, weights).expect("a legal model");
    let length = OnlineRequest::encoded_len(&server);
    bolero::check!().for_each(|bytes: &[u8]| {
        // Bytes of another length are refused; of the right length they are a request unless a
        // value leaves the field.
        assert!(bytes.len() == length || OnlineRequest::decode(bytes, &server).is_err());
        let padded: Vec<u8> = bytes.iter().copied().cycle().take(length).collect();
        if padded.len() == length {
            let _ = OnlineRequest::decode(&padded, &server);
        }
    });
}

#[test]
fn stored_halves_of_bundles_survive_any_bytes() {
    let (artifact, weights) = model();
    let client = ClientModel::new(artifact.clone()).expect("a legal model");
    let server = ServerModel::new(artifact, weights).expect("a legal model");
    bolero::check!().for_each(|bytes: &[u8]| {
        assert!(ClientBundle::decode(bytes, &client).is_err());
        assert!(ServerBundle::decode(bytes, &server).is_err());
        let padded = |length| -> Vec<u8> { bytes.iter().copied().cycle().take(length).collect() };
        assert!(
            ClientBundle::decode(&padded(ClientBundle::encoded_len(&client)), &client).is_err()
        );
        assert!(
            ServerBundle::decode(&padded(ServerBundle::encoded_len(&server)), &server).is_err()
        );
    });
}

#[test]
fn stored_setups_survive_any_bytes() {
    bolero::check!().for_each(|bytes: &[u8]| {
        assert!(ClientSetup::decode(bytes).is_err());
        assert!(ServerSetup::decode(bytes).is_err());
    });
}
