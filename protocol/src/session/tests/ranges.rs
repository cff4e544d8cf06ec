//! Values that leave their ranges: what the client is told equals what the interpreter says, and
//! nothing else reaches it.

use super::labels::classifier;
use super::*;
use pi_core::fp;
use pi_garble::GuardKey;

const CLASSES: u32 = 5;
const BOUND: i64 = 1 << BOUND_BITS;

/// A classifier of its input, whose ReLUs and logits are guarded by these bits.
fn guarded(reveal: Reveal, relu: u8, label: u8) -> Models {
    let models = classifier(CLASSES, Some(Kind::Relu), reveal);
    let mut circuit = models.circuit().clone();
    circuit.layers[0].guard_bits = relu;
    circuit.layers[1].guard_bits = label;
    Models::new(verify::circuit(circuit).unwrap(), models.weights)
}

#[test]
fn values_just_outside_their_range_are_announced() {
    for (first, reveal) in [(2000, Reveal::Label), (2100, Reveal::Logits)] {
        let models = guarded(reveal, 1, 4);
        let mut seed = first;
        // Truncated by no bits, `BOUND` has one bit more than the range.
        for (value, in_range) in [
            (BOUND - 1, true),
            (-BOUND, true),
            (BOUND, false),
            (-BOUND - 1, false),
            (2 * BOUND, false),
            (3 * BOUND - 1, false),
            // Wide enough to be taken for another value: here for -BOUND.
            (3 * BOUND, true),
        ] {
            for place in [0, 4] {
                let mut input = [3, -7, 11, 0, 5];
                input[place] = value;
                let run = models.check(&input, seed);
                assert_eq!(run.in_range, in_range, "{value} at {place}, {reveal}");
                seed += 1;
            }
        }
    }
}

/// A layer without ReLUs makes the logits: only their own guard sees them.
#[test]
fn logits_outside_their_range_are_announced() {
    for (first, reveal, guard) in [
        (2200, Reveal::Label, 4),
        (2220, Reveal::Label, 0),
        (2240, Reveal::Logits, 0),
    ] {
        let plain = classifier(CLASSES, None, reveal);
        let mut circuit = plain.circuit().clone();
        circuit.layers[0].guard_bits = guard;
        let models = Models::new(verify::circuit(circuit).unwrap(), plain.weights);
        let announces = guard > 0 || reveal == Reveal::Logits;
        for (seed, value) in (first..).zip([BOUND, -BOUND - 1, 17 * BOUND, BOUND - 1]) {
            let run = models.check(&[0, 1, value, 3, 4], seed);
            assert_eq!(
                run.in_range,
                !announces || value < BOUND && value > -BOUND,
                "{value}"
            );
        }
    }
}

/// Random circuits with narrower bounds than their values need, on legal inputs and on any.
#[test]
fn random_circuits_out_of_range_equal_the_interpreter() {
    let options = random::Options {
        layers: 3,
        side: 5,
        channels: 3,
        elements: 60,
        ..random::Options::default()
    };
    let (mut announced, mut answered) = (0, 0);
    for seed in 0..24 {
        let (circuit, weights) = random::circuit(seed, &options);
        let circuit = random::tightened(&circuit, seed);
        let input = interpret::quantise(&circuit, &random::input(&circuit, seed)).unwrap();
        let models = Models::new(circuit, weights);
        let run = models.check(&input, 2300 + seed);
        let count = if run.in_range {
            &mut answered
        } else {
            &mut announced
        };
        *count += 1;
    }
    assert!(announced > 0 && answered > 0, "{announced} {answered}");
}

/// An answer of guarded models where the server's `message`-th message is bent.
fn bent(models: &Models, seed: u64, message: u64, tamper: Tamper) -> Result<Answer, Error> {
    let (client, server) = models.bundles(seed);
    let (left, mut right) = line();
    right.tamper(message, tamper);
    let outcome = models.infer((left, right), client, server, &[1, 2, 30, 4, 5]);
    outcome.client.map(|inference| inference.answer)
}

#[test]
fn a_lying_server_gets_no_more_than_out_of_range_said() {
    for (first, reveal, honest) in [
        (2400, Reveal::Label, Answer::Label(2)),
        (2420, Reveal::Logits, Answer::Logits(vec![1, 2, 30, 4, 5])),
    ] {
        let models = guarded(reveal, 1, 4);
        let out = |seed, message, tamper| {
            let answer = bent(&models, seed, message, tamper).unwrap();
            assert_eq!(answer, Answer::OutOfRange, "{message} {tamper:?} {reveal}");
        };
        let length = models.client.cost().unwrap().per_layer[1].online.bytes_down as usize;
        // Either end of the check value.
        out(first, 1, Tamper::Flip(length - 1));
        out(first + 1, 1, Tamper::Flip(length - 16));
        // The label of the top bit of the last ReLU, and of its lowest: every guard wire depends on
        // them by the carries.
        let m = usize::from(BOUND_BITS) + 2;
        out(first + 2, 0, Tamper::Flip(16 * m * CLASSES as usize - 9));
        out(
            first + 3,
            0,
            Tamper::Flip(16 * m * (CLASSES as usize - 1) + 5),
        );
        if reveal == Reveal::Label {
            // A label of an input of the arg max.
            out(first + 4, 1, Tamper::Flip(16 * (m + 3) - 9));
        }
        // The content is not authenticated, because it is the server's own: it may lie in it.
        let changed = bent(&models, first + 5, 1, Tamper::Flip(length - 17));
        assert!(!changed.is_ok_and(|answer| answer == honest));
        for tamper in [Tamper::Truncate, Tamper::Extend] {
            let error = bent(&models, first + 6, 1, tamper).unwrap_err();
            assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
        }
        assert_eq!(bent(&models, first + 7, 9, Tamper::Drop).unwrap(), honest);
    }
}

/// The server's last message in a run on this input, the client's result, and what the client sent.
fn last_message(models: &Models, seed: u64, input: &[i64]) -> (Vec<u8>, Inference, Vec<usize>) {
    let (client, server) = models.bundles(seed);
    let mut result = None;
    let (up, down) = recorded(|ends| {
        let outcome = models.infer(ends, client, server, input);
        outcome.server.unwrap();
        result = Some(outcome.client.unwrap());
    });
    let lengths = up.iter().map(Vec::len).collect();
    (down.last().unwrap().clone(), result.unwrap(), lengths)
}

/// Without a seal the last message has the logits of an input that is out of range; with one it has
/// not, and the client sends the same bytes' worth as ever.
#[test]
fn logits_out_of_range_stay_hidden() {
    let input = [1, 2, BOUND + 77, 4, 5];
    let logits_in = |models: &Models, seed| {
        let (message, inference, sent) = last_message(models, seed, &input);
        let trace = inference.trace.unwrap();
        let run = interpret::exact(models.circuit(), &models.weights, &input, &trace).unwrap();
        let own = &trace.layers.last().unwrap().before_truncation;
        let shares = message.chunks_exact(8).zip(own).zip(&run.logits);
        let found = shares.filter(|&((share, &c), &logit)| {
            let share = u64::from_le_bytes(share.try_into().unwrap());
            fp::add(fp::reduce_u64(share), c) == fp::from_i64(logit)
        });
        (found.count(), inference.answer, sent)
    };
    let (found, ..) = logits_in(&guarded(Reveal::Logits, 0, 0), 2500);
    assert_eq!(found, 5);
    let models = guarded(Reveal::Logits, 1, 0);
    let (found, answer, sent) = logits_in(&models, 2501);
    assert_eq!((found, answer), (0, Answer::OutOfRange));
    let (_, inference, in_range) = last_message(&models, 2502, &[1, 2, 3, 4, 5]);
    assert_eq!(inference.answer, Answer::Logits(vec![1, 2, 3, 4, 5]));
    assert_eq!(sent, in_range);
}

/// A client whose key is not the server's, by as little as one bit, gets nothing, in range or out.
#[test]
fn another_key_opens_nothing() {
    let models = guarded(Reveal::Logits, 1, 4);
    for bit in [0, 127] {
        let (client, mut server) = models.bundles(2600 + bit);
        let mut wrong = *server.range_key.as_ref().unwrap().to_bytes();
        wrong[bit as usize / 8] ^= 1 << (bit % 8);
        server.range_key = Some(GuardKey::from_bytes(wrong));
        let outcome = models.infer(line(), client, server, &[1, 2, 3, 4, 5]);
        assert_eq!(outcome.client.unwrap().answer, Answer::OutOfRange);
    }
}

/// From the formulas of `garble` and `seal.rs`: a guard bit of a ReLU is a gate, an OT and two
/// labels; the seal is 16 bytes, and so is its key.
#[test]
fn costs_of_a_guard_are_those_of_the_specification() {
    let cost = |relu, label| guarded(Reveal::Label, relu, label).client.cost().unwrap();
    let (without, with) = (cost(0, 0), cost(1, 4));
    let (n, k) = (u64::from(CLASSES), 1 + 4);
    assert_eq!(
        with.offline.bytes_down,
        without.offline.bytes_down + n * k * 32
    );
    let choices = |bits: u64| 32 * (n * bits).div_ceil(8);
    let w = u64::from(BOUND_BITS) + 1;
    let more = choices(w + 1) + choices(w + 4) - 2 * choices(w);
    assert_eq!(with.offline.bytes_up, without.offline.bytes_up + more);
    assert_eq!(
        with.online.bytes_down,
        without.online.bytes_down + n * k * 16 + 16
    );
    assert_eq!(with.online.bytes_up, without.online.bytes_up);
    assert_eq!(with.online.messages, without.online.messages);
    assert_eq!(with.stored.server, without.stored.server + 16);
    assert_eq!(with.stored.client, without.stored.client + n * k * 48);
}
