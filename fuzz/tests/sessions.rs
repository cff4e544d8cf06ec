//! Hostile bytes for what a client takes from a server as a model, what a server reads from a
//! client first, and what both parties read from their stores.

use pi_fuzz::session::{LABEL, LOGITS, PREFIX, Session, model};
use pi_fuzz::{changed, edited, repeated};
use pi_ir::artifact::Artifact;
use pi_protocol::session::{
    ClientBundle, ClientModel, ClientSetup, OnlineRequest, ServerBundle, ServerSetup,
};

const CHECKSUM: usize = 32;

/// `content` as a stored bundle, with a checksum that fits.
fn sealed(content: &[u8]) -> Vec<u8> {
    let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 stored bundle");
    hash.update(content);
    let mut bytes = content.to_vec();
    bytes.extend_from_slice(hash.finalize().as_bytes());
    bytes
}

/// The content of a stored bundle.
fn content(stored: &[u8]) -> &[u8] {
    &stored[..stored.len() - CHECKSUM]
}

#[test]
fn client_survives_any_artifact() {
    const HEADER: usize = 8 + 4 + 8;
    let valid = [LABEL, LOGITS, PREFIX].map(|seed| model(seed).0.encode());
    bolero::check!().for_each(|input: &[u8]| {
        let (first, changes) = input.split_first().unwrap_or((&0, &[]));
        let valid = &valid[usize::from(*first) % valid.len()];
        let body = edited(&valid[HEADER..valid.len() - 32], changes);
        let mut bytes = valid[..8 + 4].to_vec();
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        if let Ok(artifact) = Artifact::decode(&bytes)
            && let Ok(model) = ClientModel::new(artifact)
        {
            let _ = (model.cost(), ClientBundle::encoded_len(&model));
        }
    });
}

#[test]
fn online_request_decoder_survives_any_bytes() {
    let session = Session::new(LABEL);
    let (server, valid) = (&session.server, &session.infer.up[0]);
    let length = OnlineRequest::encoded_len(server);
    assert!(OnlineRequest::decode(valid, server).is_ok());
    bolero::check!().for_each(|input: &[u8]| {
        // Bytes of another length are refused; of the right length they are a request unless a
        // value leaves the field.
        assert!(input.len() == length || OnlineRequest::decode(input, server).is_err());
        let _ = OnlineRequest::decode(&repeated(input, length), server);
        let _ = OnlineRequest::decode(&changed(valid, input), server);
    });
}

#[test]
fn stored_bundles_of_a_client_survive_any_bytes() {
    let sessions = [LABEL, LOGITS].map(Session::new);
    for session in &sessions {
        assert_eq!(sealed(content(&session.bundles.0)), session.bundles.0);
    }
    bolero::check!().for_each(|input: &[u8]| {
        let (first, changes) = input.split_first().unwrap_or((&0, &[]));
        let Session {
            client, bundles, ..
        } = &sessions[usize::from(first % 2)];
        let length = ClientBundle::encoded_len(client);
        assert!(ClientBundle::decode(input, client).is_err());
        assert!(ClientBundle::decode(&repeated(input, length), client).is_err());
        let bytes = sealed(&edited(content(&bundles.0), changes));
        if let Ok(bundle) = ClientBundle::decode(&bytes, client) {
            assert_eq!(*bundle.encode(), *bytes);
        }
    });
}

#[test]
fn stored_bundles_of_a_server_survive_any_bytes() {
    let sessions = [LABEL, LOGITS].map(Session::new);
    for session in &sessions {
        assert_eq!(sealed(content(&session.bundles.1)), session.bundles.1);
    }
    bolero::check!().for_each(|input: &[u8]| {
        let (first, changes) = input.split_first().unwrap_or((&0, &[]));
        let Session {
            server, bundles, ..
        } = &sessions[usize::from(first % 2)];
        let length = ServerBundle::encoded_len(server);
        assert!(ServerBundle::decode(input, server).is_err());
        assert!(ServerBundle::decode(&repeated(input, length), server).is_err());
        let bytes = sealed(&edited(content(&bundles.1), changes));
        // An offset has its lowest bit set, whatever is stored: not every bundle that is read comes
        // back as it was.
        if let Ok(bundle) = ServerBundle::decode(&bytes, server) {
            assert_eq!(bundle.encode().len(), bytes.len());
        }
    });
}

#[test]
fn stored_setups_of_a_client_survive_any_bytes() {
    let stored = Session::new(LABEL).setups.0;
    bolero::check!().for_each(|input: &[u8]| {
        assert!(ClientSetup::decode(input).is_err());
        let bytes = edited(&stored, input);
        if let Ok(setup) = ClientSetup::decode(&bytes) {
            assert_eq!(*setup.encode(), bytes);
        }
    });
}

#[test]
fn stored_setups_of_a_server_survive_any_bytes() {
    let stored = Session::new(LABEL).setups.1;
    bolero::check!().for_each(|input: &[u8]| {
        assert!(ServerSetup::decode(input).is_err());
        let bytes = edited(&stored, input);
        if let Ok(setup) = ServerSetup::decode(&bytes) {
            assert_eq!(*setup.encode(), bytes);
        }
    });
}
