//! Outputs that reveal the label: the interpreter's, whatever the ties, and nothing else.

use super::*;
use pi_core::fp;
use pi_garble::{ArgMax, SignWidth};

const CLASSES: u32 = 5;
const BOUND: i64 = 1 << BOUND_BITS;

/// The logits are the image, of `CLASSES` pixels: one dense layer of identity kernels, and before
/// it, if there is `activation`, one more.
pub(super) fn classifier(classes: u32, activation: Option<Kind>, reveal: Reveal) -> Models {
    let shape = Shape::new(classes, 1, 1);
    let layer = |name: &str, input, bound_bits, step| Layer {
        name: name.into(),
        terms: vec![identity_conv(input, classes)],
        pool: None,
        shape,
        bound_bits,
        range: Range::Calibrated { max_seen: 1 },
        guard_bits: 0,
        step,
    };
    let mut layers = Vec::new();
    if let Some(kind) = activation {
        let activation = Activation {
            truncate: 0,
            frac_bits: 3,
            kinds: vec![kind; shape.len()],
            square: None,
            polynomial: None,
        };
        layers.push(layer("hidden", 0, BOUND_BITS, Step::Activate(activation)));
    }
    let frac_bits = 3;
    let step = Step::Output { frac_bits, reveal };
    layers.push(layer("output", layers.len() as u32, BOUND_BITS, step));
    let weights = layers.iter();
    let weights = weights.map(|_| identity_weights(classes as usize, Vec::new()));
    let weights = Weights {
        layers: weights.collect(),
    };
    let circuit = Circuit {
        name: "classifier".into(),
        input: shape,
        input_frac_bits: 3,
        preprocessing: Preprocessing::unit(classes),
        classes: Vec::new(),
        prefix: None,
        layers,
    };
    Models::new(verify::circuit(circuit).unwrap(), weights)
}

#[test]
fn labels_are_those_of_the_exact_logits_with_ties_and_at_the_bounds() {
    let models = classifier(CLASSES, None, Reveal::Label);
    let most = BOUND - 1;
    let cases: [([i64; 5], usize); 9] = [
        ([0, 0, 0, 0, 0], 0),
        ([-1, 0, 0, 0, -1], 1),
        ([7, 7, 8, 8, 7], 2),
        ([-most, -most, -most, -most, -most], 0),
        ([most, -most, most, -most, most], 0),
        ([-most, -most, -most, -most, 1 - most], 4),
        ([most - 1, most - 1, most - 1, most, most - 1], 3),
        ([-5, -4, -3, -2, -1], 4),
        ([-1, -2, -3, -4, -5], 0),
    ];
    for (seed, (logits, label)) in (1500..).zip(cases) {
        let run = models.check(&logits, seed);
        assert_eq!(run.logits, logits);
        assert_eq!(interpret::label(&run.logits), label, "{logits:?}");
    }
}

/// From the tables of `nonlinear::label` and `garble::argmax`, for five logits of 13 bits: five
/// adders, and nodes on three levels.
#[test]
fn costs_of_a_label_are_those_of_the_specification() {
    let with = classifier(CLASSES, Some(Kind::Relu), Reveal::Label);
    let without = classifier(CLASSES, Some(Kind::Relu), Reveal::Logits);
    let (label, logits) = (with.client.cost().unwrap(), without.client.cost().unwrap());
    let w = u64::from(BOUND_BITS) + 1;
    let gates = 5 * (w - 1) + 2 * (2 * w) + (2 * w + 1) + (w + 2);
    let (up, down) = (32 * (5 * w).div_ceil(8), 32 * gates);
    assert_eq!(label.offline.bytes_up, logits.offline.bytes_up + up);
    assert_eq!(label.offline.bytes_down, logits.offline.bytes_down + down);
    assert_eq!(label.online.bytes_up, logits.online.bytes_up);
    assert_eq!(
        label.online.bytes_down,
        logits.online.bytes_down - 8 * 5 + 16 * 5 * w + 1
    );
    assert_eq!(label.online.messages, logits.online.messages);
    assert_eq!(label.offline.messages, logits.offline.messages);
    let (output, other) = (&label.per_layer[1], &logits.per_layer[1]);
    assert_eq!(output.and_gates as u64, gates);
    assert_eq!(output.offline.bytes_up, up);
    assert_eq!(output.offline.bytes_down, other.offline.bytes_down + down);
    assert_eq!(output.online.bytes_down, 16 * 5 * w + 1);
}

/// Bundles of one artifact are not those of the other.
#[test]
fn a_bundle_for_logits_gives_no_label() {
    let label = classifier(CLASSES, None, Reveal::Label);
    let logits = classifier(CLASSES, None, Reveal::Logits);
    let (client, server) = logits.bundles(1520);
    let outcome = label.infer(line(), client, server, &[0; 5]);
    assert!(matches!(outcome.client, Err(Error::ApiMisuse { .. })));
    let outcome = logits.prepare(line(), 1521);
    let server = stored(&logits.server, &outcome.server.unwrap());
    assert!(ClientBundle::decode(&outcome.client.unwrap(), &label.client).is_err());
    assert!(ServerBundle::read(&server[..], &label.server).is_err());
}

/// The server's share of a logit is the logit less the client's. With logits revealed, the last
/// message has all of them; with the label, no message of either phase has one.
#[test]
fn no_message_has_the_servers_share() {
    let input = [11, -20, 4000, 33, 0];
    for reveal in [Reveal::Logits, Reveal::Label] {
        let models = classifier(CLASSES, Some(Kind::Relu), reveal);
        let mut bundles = None;
        let (_, mut sent) = recorded(|ends| bundles = Some(models.prepare(ends, 1530)));
        let bundles = bundles.unwrap();
        let mut answered = None;
        let (client, server) = (bundles.client.unwrap(), bundles.server.unwrap());
        let client = models.decode(&client);
        let (_, online) = recorded(|ends| {
            answered = Some(models.infer(ends, client, server, &input));
        });
        sent.extend(online);
        let trace = answered.unwrap().client.unwrap().trace.unwrap();
        let own = &trace.layers.last().unwrap().before_truncation;
        let run = interpret::exact(models.circuit(), &models.weights, &input, &trace).unwrap();
        let found = run.logits.iter().zip(own).filter(|&(&logit, &c)| {
            let share = fp::sub(fp::from_i64(logit), c);
            let forms = [share, fp::neg(share)].map(u64::to_le_bytes);
            let mut windows = sent.iter().flat_map(|message| message.windows(8));
            windows.any(|window| forms.iter().any(|form| window == form))
        });
        let expected = match reveal {
            Reveal::Logits => 5,
            Reveal::Label => 0,
        };
        assert_eq!(found.count(), expected, "{reveal}");
    }
}

/// The decoding bits are the last byte of the last message: with five classes, indices 5 to 7 are
/// none, and the five bits above are zero.
#[test]
fn labels_that_are_none_are_blamed_on_the_server() {
    let models = classifier(CLASSES, None, Reveal::Label);
    let shape = ArgMax::new(5, SignWidth::new(u32::from(BOUND_BITS) + 1).unwrap()).unwrap();
    let last = shape.label_bytes();
    // Label 4 is 100: flipping the lowest bit makes it 5.
    for (input, tamper) in [
        ([0, 0, 0, 0, 1], Tamper::Flip(last)),
        ([1, 0, 0, 0, 0], Tamper::FlipHigh(last)),
        ([1, 0, 0, 0, 0], Tamper::Truncate),
        ([1, 0, 0, 0, 0], Tamper::Extend),
    ] {
        let (client, server) = models.bundles(1540);
        let (left, mut right) = line();
        right.tamper(0, tamper);
        let outcome = models.infer((left, right), client, server, &input);
        let error = outcome.client.unwrap_err();
        assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    }
    // Label 0 is 000: flipping a bit makes it another, which the client cannot see.
    let (client, server) = models.bundles(1541);
    let (left, mut right) = line();
    right.tamper(0, Tamper::Flip(last));
    let outcome = models.infer((left, right), client, server, &[1, 0, 0, 0, 0]);
    assert_eq!(outcome.client.unwrap().answer, Answer::Label(1));
}

#[test]
fn a_label_needs_two_classes_in_one_place() {
    for shape in [
        Shape::new(1, 1, 1),
        Shape::new(3, 1, 2),
        Shape::new(3, 2, 1),
    ] {
        let models = classifier(CLASSES, None, Reveal::Logits);
        let mut circuit = models.circuit().clone().with_reveal(Reveal::Label);
        circuit.input = shape;
        circuit.preprocessing = Preprocessing::unit(shape.c);
        circuit.layers[0].shape = shape;
        circuit.layers[0].terms = vec![identity_conv(0, shape.c)];
        let faults = verify::circuit(circuit.clone()).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].problem.contains("no label"), "{faults:?}");
        assert!(verify::circuit(circuit.with_reveal(Reveal::Logits)).is_ok());
    }
}
