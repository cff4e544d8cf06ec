//! Hostile bytes for the file decoders: whatever they contain, decoding returns a value or an
//! error.
//!
//! Arbitrary bytes seldom pass the digest, so each target also frames them as the body of a file
//! with the right magic, length and digest: then the body's own decoder is what is tested.

use pi_ir::artifact::{Artifact, GraphFile, WeightsFile};

/// `body` as a file of one kind, with a digest that fits.
fn framed(magic: &[u8; 8], body: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(body);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

#[test]
fn artifact_decoder_survives_any_bytes() {
    bolero::check!().for_each(|bytes: &[u8]| {
        assert!(Artifact::decode(bytes).is_err());
        if let Ok(artifact) = Artifact::decode(&framed(b"PI-ARTIF", bytes)) {
            assert_eq!(Artifact::decode(&artifact.encode()).as_ref(), Ok(&artifact));
        }
    });
}

#[test]
fn weights_decoder_survives_any_bytes() {
    bolero::check!().for_each(|bytes: &[u8]| {
        assert!(WeightsFile::decode(bytes).is_err());
        if let Ok(weights) = WeightsFile::decode(&framed(b"PI-WEIGH", bytes)) {
            assert_eq!(
                WeightsFile::decode(&weights.encode()).as_ref(),
                Ok(&weights)
            );
        }
    });
}

#[test]
fn graph_decoder_survives_any_bytes() {
    bolero::check!().for_each(|bytes: &[u8]| {
        assert!(GraphFile::decode(bytes).is_err());
        if let Ok(graph) = GraphFile::decode(&framed(b"PI-GRAPH", bytes)) {
            assert_eq!(
                GraphFile::decode(&graph.encode()).map(|g| g.encode()),
                Ok(graph.encode())
            );
        }
    });
}
