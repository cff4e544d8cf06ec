//! Hostile bytes for the file decoders and the parsers of text: whatever they contain, decoding
//! returns a value or an error, and a value survives its own encoding.
//!
//! Arbitrary bytes seldom pass the digest, so each target also frames them as the body of a file
//! with the right magic, version, length and digest: then the body's own decoder is what is tested.
//! It gets the bodies of valid files with changes, too.

use pi_fuzz::edited;
use pi_fuzz::session::{LABEL, LOGITS, PREFIX, model};
use pi_ir::artifact::{Artifact, GraphFile, WeightsFile};
use pi_ir::random::{self, GraphOptions};
use pi_ir::text::{parse_circuit, parse_graph, print_circuit, print_graph};

const HEADER: usize = 8 + 4 + 8;
const DIGEST: usize = 32;

/// `body` in the frame of a valid file, with a length and a digest that fit.
fn framed(valid: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = valid[..8 + 4].to_vec();
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(body);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

/// Runs `check` on an input as it is, framed, and as changes to the body of one of the valid files.
fn check_files(valid: &[Vec<u8>], input: &[u8], mut check: impl FnMut(&[u8])) {
    check(input);
    check(&framed(&valid[0], input));
    if let Some((first, changes)) = input.split_first() {
        let valid = &valid[usize::from(*first) % valid.len()];
        let body = &valid[HEADER..valid.len() - DIGEST];
        check(&framed(valid, &edited(body, changes)));
    }
}

/// Checks that [`framed`] makes valid files, without which no target would reach a body's decoder.
fn assert_frame(valid: &[Vec<u8>]) {
    for file in valid {
        assert_eq!(framed(file, &file[HEADER..file.len() - DIGEST]), *file);
    }
}

#[test]
fn artifact_decoder_survives_any_bytes() {
    let valid = [LABEL, LOGITS, PREFIX].map(|seed| model(seed).0.encode());
    assert_frame(&valid);
    bolero::check!().for_each(|input: &[u8]| {
        check_files(&valid, input, |bytes| {
            if let Ok(artifact) = Artifact::decode(bytes) {
                assert_eq!(artifact.encode(), bytes);
            }
        });
    });
}

#[test]
fn weights_decoder_survives_any_bytes() {
    let valid = [LABEL, LOGITS, PREFIX].map(|seed| model(seed).1.encode());
    assert_frame(&valid);
    bolero::check!().for_each(|input: &[u8]| {
        check_files(&valid, input, |bytes| {
            if let Ok(weights) = WeightsFile::decode(bytes) {
                assert_eq!(weights.encode(), bytes);
            }
        });
    });
}

#[test]
fn graph_decoder_survives_any_bytes() {
    let valid = [0, 1, 2].map(|seed| graph_file(seed).encode());
    assert_frame(&valid);
    bolero::check!().for_each(|input: &[u8]| {
        check_files(&valid, input, |bytes| {
            if let Ok(graph) = GraphFile::decode(bytes) {
                assert_eq!(graph.encode(), bytes);
            }
        });
    });
}

#[test]
fn weights_that_belong_to_no_artifact_are_refused() {
    let (artifact, weights) = model(PREFIX);
    let valid = weights.encode();
    bolero::check!().for_each(|input: &[u8]| {
        let body = edited(&valid[HEADER..valid.len() - DIGEST], input);
        if let Ok(other) = WeightsFile::decode(&framed(&valid, &body)) {
            assert_eq!(artifact.check_weights(&other).is_ok(), other == weights);
        }
    });
}

#[test]
fn circuit_parser_survives_any_text() {
    let valid = [LABEL, LOGITS, PREFIX].map(|seed| print_circuit(&model(seed).0.circuit));
    bolero::check!().for_each(|input: &[u8]| {
        for text in texts(&valid, input) {
            if let Ok(circuit) = parse_circuit(&text) {
                let printed = print_circuit(&circuit);
                assert_eq!(parse_circuit(&printed).as_ref(), Ok(&circuit), "{text}");
            }
        }
    });
}

#[test]
fn graph_parser_survives_any_text() {
    let valid = [0, 1, 2].map(|seed| print_graph(&graph_file(seed).graph));
    bolero::check!().for_each(|input: &[u8]| {
        for text in texts(&valid, input) {
            if let Ok(graph) = parse_graph(&text) {
                let printed = print_graph(&graph);
                let again = parse_graph(&printed).expect("we printed it");
                assert_eq!(print_graph(&again), printed, "{text}");
            }
        }
    });
}

fn graph_file(seed: u64) -> GraphFile {
    GraphFile {
        graph: random::graph(seed, &GraphOptions::default()),
    }
}

/// An input as text, and as changes to a valid text.
fn texts(valid: &[String], input: &[u8]) -> [String; 2] {
    let (first, changes) = input.split_first().unwrap_or((&0, &[]));
    let valid = &valid[usize::from(*first) % valid.len()];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    [text(input), text(&edited(valid.as_bytes(), changes))]
}
