//! The limit on the length of a message, which a circuit and its plans keep or are refused for when
//! they are compiled and when they are loaded.
//!
//! What is made of ReLUs is cut ([`crate::parts`]). What grows with a circuit otherwise goes in one
//! message each: an upload, an answer, the openings of a layer's squares and polynomials, and in
//! front of part 0 the OLEs and identity elements of a bundle.

use super::infer::{infer_bytes, opening_bytes};
use super::prepare::{client_head_bytes, part_bytes, server_head_bytes};
use crate::Error;
use crate::indexed_circuit::{IndexedCircuit, Planned};
use crate::linear::{answers_bytes, uploads_bytes};

/// Bytes of a message at most: streams carry its length in four bytes.
const LIMIT: usize = u32::MAX as usize;

/// Checks the messages that do not depend on a plan.
///
/// # Errors
/// [`Error::ApiMisuse`] with all that are too long.
pub(crate) fn check_circuit(indexed: &IndexedCircuit) -> Result<(), Error> {
    within(LIMIT, of_circuit(indexed))
}

/// Checks the messages of a batch.
///
/// # Errors
/// As [`check_circuit`].
pub(crate) fn check_batch(indexed: &IndexedCircuit, planned: &Planned) -> Result<(), Error> {
    within(LIMIT, of_batch(indexed, planned))
}

type Message = (String, usize);

fn of_circuit(indexed: &IndexedCircuit) -> impl Iterator<Item = Message> + '_ {
    let parts = (0..indexed.parts.count()).flat_map(move |part| {
        let (up, down) = part_bytes(indexed, part);
        [("choices", up), ("garbled circuits", down)]
            .map(|(what, bytes)| (format!("the {what} of part {part}"), bytes))
    });
    let (request, last) = infer_bytes(indexed);
    let ends = [("the masked input", request), ("the last message", last)];
    let ends = ends.map(|(what, bytes)| (what.to_owned(), bytes));
    let layers = indexed.circuit.layers.iter().enumerate();
    let layers = layers.flat_map(move |(l, layer)| {
        let messages = opening_bytes(indexed, l).into_iter();
        messages.map(move |bytes| (format!("an online message of layer {}", layer.name), bytes))
    });
    parts.chain(ends).chain(layers)
}

fn of_batch<'a>(
    indexed: &'a IndexedCircuit,
    planned: &'a Planned,
) -> impl Iterator<Item = Message> + 'a {
    let (bundles, packing) = (planned.bundles(), &planned.packing);
    let of_batch = move |what: &str| format!("{what} of a batch of {bundles}");
    let heads = [
        ("the client's head", client_head_bytes(indexed, bundles)),
        ("the server's head", server_head_bytes(indexed, bundles)),
    ];
    let uploads = packing.uploads().iter().enumerate();
    let uploads = uploads.map(|(i, map)| (format!("upload {i}"), uploads_bytes(map)));
    let answers = packing.answers().iter().enumerate();
    let answers = answers.map(|(i, map)| (format!("answer {i}"), answers_bytes(map)));
    let heads = heads.map(|(what, bytes)| (what.to_owned(), bytes));
    let all = heads.into_iter().chain(uploads).chain(answers);
    all.map(move |(what, bytes)| (of_batch(&what), bytes))
}

fn within(limit: usize, messages: impl Iterator<Item = Message>) -> Result<(), Error> {
    let long = messages.filter(|(_, bytes)| *bytes > limit);
    let faults: Vec<String> = long
        .map(|(what, bytes)| format!("{what} would have {bytes} bytes"))
        .collect();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Error::misuse(format!(
            "a message may have {limit} bytes: {}; a smaller input, fewer squares and polynomials \
             or smaller batches make it shorter",
            faults.join("; ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::default_plan;
    use pi_ir::random;

    #[test]
    fn messages_beyond_a_limit_are_refused_by_name() {
        let (circuit, _) = random::circuit(3, &random::Options::default());
        let plan = default_plan(&circuit, 1).unwrap();
        let indexed = IndexedCircuit::new(&circuit, [&plan]).unwrap();
        check_circuit(&indexed).unwrap();
        check_batch(&indexed, &indexed.single).unwrap();
        let mut all: Vec<Message> = of_circuit(&indexed).collect();
        all.extend(of_batch(&indexed, &indexed.single));
        let longest = all.iter().map(|(_, bytes)| *bytes).max().unwrap();
        within(longest, all.iter().cloned()).unwrap();
        let error = within(longest - 1, all.iter().cloned()).unwrap_err();
        assert!(matches!(error, Error::ApiMisuse { .. }));
        assert!(error.to_string().contains(&format!("{longest} bytes")));
        // All are listed, each with its name.
        let error = within(0, all.iter().cloned()).unwrap_err().to_string();
        for (what, bytes) in all.iter().filter(|(_, bytes)| *bytes > 0) {
            assert!(error.contains(&format!("{what} would have {bytes} bytes")));
        }
    }
}
