//! Hostile bytes for what a client takes from a server as a model, what a server reads from a
//! client first, and what both parties read from their stores.

use pi_core::SecretBytes;
use pi_fuzz::session::{LABEL, LOGITS, PREFIX, Session, model};
use pi_fuzz::{changed, edited, repeated};
use pi_ir::artifact::Artifact;
use pi_protocol::session::{
    ClientBundle, ClientModel, ClientSetup, OnlineRequest, ServerBundle, ServerSetup,
};

const CHECKSUM: usize = 32;
const CONTEXT: &str = "pianissimo 1 stored bundle";

/// Lengths of the sections of a stored bundle, without their checksums: each ends where the hash of
/// all before it follows.
fn sections(stored: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut hash = blake3::Hasher::new_derive_key(CONTEXT);
    let (mut start, mut at) = (0, 0);
    while at < stored.len() {
        let checksum = hash.finalize();
        if stored[at..].starts_with(checksum.as_bytes()) {
            lengths.push(at - start);
            at += CHECKSUM;
            start = at;
            hash = blake3::Hasher::new_derive_key(CONTEXT);
            hash.update(checksum.as_bytes());
        } else {
            hash.update(&stored[at..=at]);
            at += 1;
        }
    }
    assert_eq!(start, stored.len(), "the last section has a checksum");
    lengths
}

/// The contents of the sections of a stored bundle.
fn content(stored: &[u8], sections: &[usize]) -> Vec<u8> {
    let mut rest = stored;
    let mut content = Vec::new();
    for &length in sections {
        content.extend_from_slice(&rest[..length]);
        rest = &rest[length + CHECKSUM..];
    }
    content
}

/// `content` as a stored bundle, with checksums that fit.
fn sealed(mut content: &[u8], sections: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut hash = blake3::Hasher::new_derive_key(CONTEXT);
    for &length in sections {
        let section = content
            .split_off(..length.min(content.len()))
            .expect("cut to fit");
        hash.update(section);
        bytes.extend_from_slice(section);
        let checksum = hash.finalize();
        bytes.extend_from_slice(checksum.as_bytes());
        hash = blake3::Hasher::new_derive_key(CONTEXT);
        hash.update(checksum.as_bytes());
    }
    bytes
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
    let sessions = [LABEL, LOGITS].map(|seed| {
        let session = Session::new(seed);
        let lengths = sections(&session.bundles.0);
        let content = content(&session.bundles.0, &lengths);
        assert_eq!(sealed(&content, &lengths), session.bundles.0);
        (session, lengths, content)
    });
    bolero::check!().for_each(|input: &[u8]| {
        let (first, changes) = input.split_first().unwrap_or((&0, &[]));
        let (Session { client, .. }, lengths, content) = &sessions[usize::from(first % 2)];
        let length = ClientBundle::encoded_len(client);
        assert!(ClientBundle::decode(input, client).is_err());
        assert!(ClientBundle::decode(&repeated(input, length), client).is_err());
        let bytes = sealed(&edited(content, changes), lengths);
        if let Ok(bundle) = ClientBundle::decode(&bytes, client) {
            assert_eq!(bytes.len(), length);
            assert_eq!(bundle.header().model, client.digest());
        }
    });
}

#[test]
fn stored_bundles_of_a_server_survive_any_bytes() {
    let sessions = [LABEL, LOGITS].map(|seed| {
        let session = Session::new(seed);
        let lengths = sections(&session.bundles.1);
        let content = content(&session.bundles.1, &lengths);
        assert_eq!(sealed(&content, &lengths), session.bundles.1);
        (session, lengths, content)
    });
    bolero::check!().for_each(|input: &[u8]| {
        let (first, changes) = input.split_first().unwrap_or((&0, &[]));
        let (Session { server, .. }, lengths, content) = &sessions[usize::from(first % 2)];
        let length = ServerBundle::encoded_len(server);
        let bytes = sealed(&edited(content, changes), lengths);
        // An offset has its lowest bit set, whatever is stored: not every bundle that is read comes
        // back as it was.
        if let Ok(bundle) = ServerBundle::read(&bytes[..], server) {
            let mut again = SecretBytes::with_capacity(length);
            bundle.write(&mut again).expect("as long as before");
            assert_eq!(again.len(), bytes.len());
        }
        assert!(ServerBundle::read(&repeated(input, length)[..], server).is_err());
        assert!(ServerBundle::read(input, server).is_err());
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
