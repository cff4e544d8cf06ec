//! What is measured on examples held back, on networks that are faithful and on such that were
//! spoiled on purpose, and what is said of them.

use super::support::plain;
use pi_compiler::accuracy::verdict::{Disagreement, Outputs, Shortfall, Tolerance};
use pi_compiler::accuracy::{Measured, measure};
use pi_compiler::cost::evaluate::compare;
use pi_compiler::examples::Examples;
use pi_compiler::pass::quantise::{Precision, WeightBits};
use pi_compiler::{Compiled, Options, PublicPrefix, compile};
use pi_ir::builders::Builder;
use pi_ir::verify::{self, Verified};
use pi_ir::{Circuit, Graph, Input, NodeId, Op, Reveal, Shape};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

const SHAPE: Shape = Shape::new(3, 8, 8);

fn network(outputs: u32) -> Graph {
    plain(Builder::new("spoiled", SHAPE, 5), 3, outputs)
}

/// Pictures of noise around a colour of their own, so that answers differ.
fn pictures(count: usize, seed: u64) -> Examples {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut image = || -> Vec<u8> {
        let colour = rng.next_u32().to_le_bytes();
        let pixel = |index: usize| (rng.next_u32() >> 25) as u8 + colour[index / 64] / 2;
        (0..SHAPE.len()).map(pixel).collect()
    };
    Examples {
        source: "noise".into(),
        inputs: (0..count).map(|_| image().into()).collect(),
        labels: Vec::new(),
    }
}

fn options() -> Options {
    Options {
        batches: Vec::new(),
        reveal: Reveal::Logits,
        ..Options::default()
    }
}

fn compiled(graph: &Graph) -> Compiled {
    compile(graph, &pictures(32, 1), &options()).unwrap_or_else(|why| panic!("{why}"))
}

/// The circuit with a change; it must stay a circuit.
fn change(compiled: &mut Compiled, change: impl Fn(&mut Circuit)) {
    let mut circuit: Circuit = (*compiled.circuit).clone();
    change(&mut circuit);
    let verified: Verified<Circuit> = verify::circuit(circuit).unwrap();
    compiled.circuit = verified;
}

/// What is said of a network on held-back pictures; `None` if it is faithful.
fn said(graph: &Graph, compiled: &Compiled) -> Option<Disagreement> {
    let held_back = pictures(40, 2);
    let measured = Measured::new(graph, compiled, &held_back).unwrap();
    let outputs = measured.comparison.outputs;
    let shortfall = Tolerance::of(outputs).shortfall(&measured.comparison)?;
    let found = (&measured.comparison, shortfall);
    Some(Disagreement::explain(compiled, found, &held_back).unwrap())
}

#[test]
fn a_faithful_network_is_measured_as_one() {
    let graph = network(10);
    let compiled = compiled(&graph);
    let held_back = pictures(40, 2);
    let measured = Measured::new(&graph, &compiled, &held_back).unwrap();
    assert!(said(&graph, &compiled).is_none());
    let found = &measured.comparison;
    assert_eq!((found.images, found.outputs), (40, 10));
    assert!(found.agree >= 38 && found.out_of_bound == 0, "{found}");
    assert!(found.interval[0] < 0.95 && found.interval[1] > 0.95);
    let names: Vec<&str> = measured.layers.iter().map(|l| &l.name[..]).collect();
    assert_eq!(names, ["conv1", "conv2", "conv3", "logits"]);
    for layer in &measured.layers {
        let (all, own) = (layer.snr_db.unwrap(), layer.own_db.unwrap());
        assert!(all > 20.0 && own > all - 1.0, "{layer:?}");
        assert_eq!((layer.beyond, layer.examples_beyond), (0, 0));
        assert_eq!((layer.lost_channels, layer.vanished), (0, false));
        assert!(layer.room_bits > 1.0 && layer.examples == 20, "{layer:?}");
    }
    // The table and the sentences have all of it.
    let text = measured.to_string();
    for says in [
        "conv2",
        "dB",
        "same answer as the float network",
        "95 % confidence",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    assert!(
        measured
            .in_words(Outputs::Classes)
            .contains("of 40 examples held back")
    );
}

/// Photographs of anything may calibrate, but a network is evaluated on its own classes.
#[test]
fn labels_of_other_classes_are_not_used_or_refused() {
    let graph = network(10);
    let compiled = compiled(&graph);
    let labelled = |labels: [u32; 2]| Examples {
        labels: labels.repeat(12),
        ..pictures(24, 2)
    };
    let measured = |labels| Measured::new(&graph, &compiled, &labelled(labels)).unwrap();
    let own = measured([3, 9]).comparison;
    assert!(own.labelled, "{own}");
    let other = measured([3, 10]).comparison;
    assert!(!other.labelled && other.float_correct == 0, "{other}");
    assert_eq!((own.agree, own.noise), (other.agree, other.noise));
    // Refused before anything is evaluated: these are no inputs of the network.
    let mut wrong = labelled([3, 10]);
    wrong.inputs[0] = Input::Values(Vec::new());
    let refused = compare(&graph, &compiled.circuit, &compiled.weights, &wrong);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("the label 10 is no class"), "{refused}");
}

/// The logits' noise by layers is that of the comparison, which goes by the graph itself.
#[test]
fn the_last_layer_has_the_noise_of_the_answers() {
    let graph = network(10);
    let compiled = compiled(&graph);
    let measured = Measured::new(&graph, &compiled, &pictures(24, 2)).unwrap();
    let last = measured.layers.last().unwrap().snr_db.unwrap();
    let whole = -20.0 * measured.comparison.noise.log10();
    assert!((last - whole).abs() < 0.1, "{last} {whole}");
}

#[test]
fn finer_weights_and_activations_are_measured_as_less_noise() {
    let graph = network(10);
    let own = |weight_bits: u8, activation_bits: u8| {
        let mut options = options();
        options.precision = Precision {
            activation_bits,
            ..precision(weight_bits)
        };
        let compiled = compile(&graph, &pictures(32, 1), &options).unwrap();
        let layers = measure(&compiled, &pictures(16, 2)).unwrap();
        (layers[1].own_db.unwrap(), layers[1].rounding_share)
    };
    let (coarse, weights) = own(5, 12);
    let (fine, _) = own(8, 12);
    // 6 dB a bit.
    assert!((fine - coarse - 18.0).abs() < 4.0, "{coarse} {fine}");
    assert!(weights < 0.1, "{weights}");
    let (_, rounding) = own(9, 4);
    assert!(rounding > 0.5, "{rounding}");
}

fn precision(weight_bits: u8) -> Precision {
    Precision {
        weight_bits: WeightBits::Of(weight_bits),
        ..Precision::default()
    }
}

#[test]
fn a_layer_with_spoiled_weights_is_named() {
    let graph = network(10);
    for spoiled in 0..4 {
        let mut compiled = compiled(&graph);
        for weight in &mut compiled.weights.layers[spoiled].kernels[0] {
            // Every other weight is lost, as all but the largest are in a kernel of unequal rows.
            *weight = if *weight % 2 == 0 { 0 } else { *weight };
        }
        let found = said(&graph, &compiled).expect("the answers are others");
        let name = ["conv1", "conv2", "conv3", "logits"][spoiled];
        let text = found.to_string();
        assert_eq!(found.culprit().map(|c| &c.name[..]), Some(name), "{text}");
        assert!(text.contains(&format!("goes wrong is {name}: ")), "{text}");
        assert!(text.contains("--weight-bits"), "{text}");
        assert!(text.contains("at least 95 % are needed"), "{text}");
        let layers = measure(&compiled, &pictures(40, 2)).unwrap();
        for (index, layer) in layers.iter().enumerate() {
            let own = layer.own_db.unwrap();
            assert_eq!(own < 15.0, index == spoiled, "{layer:?}");
            let inherits = layer.snr_db.unwrap() < 15.0;
            assert_eq!(inherits, index >= spoiled, "{layer:?}");
        }
    }
}

#[test]
fn lost_channels_are_counted() {
    let graph = network(10);
    let mut compiled = compiled(&graph);
    let weights = &mut compiled.weights.layers[1];
    // Three of eight output channels lose what tells examples apart.
    weights.kernels[0][..3 * 8 * 9].fill(0);
    let layers = measure(&compiled, &pictures(16, 2)).unwrap();
    assert_eq!((layers[1].lost_channels, layers[1].channels), (3, 8));
    assert_eq!(layers[0].lost_channels, 0);
    let text = said(&graph, &compiled).map(|found| found.to_string());
    let text = text.expect("three of eight channels are missing");
    assert!(
        text.contains("conv2: 3 of its 8 channels are lost"),
        "{text}"
    );
}

#[test]
fn a_bound_that_held_back_values_leave_is_named() {
    let graph = network(10);
    for clipped in 0..3 {
        let mut compiled = compiled(&graph);
        let layers = measure(&compiled, &pictures(16, 2)).unwrap();
        // The largest value is at least twice the bound then.
        let cut = layers[clipped].room_bits as u8 + 2;
        change(&mut compiled, |circuit| {
            let layer = &mut circuit.layers[clipped];
            layer.range = pi_ir::Range::Calibrated { max_seen: 0 };
            layer.bound_bits -= cut;
        });
        let found = said(&graph, &compiled).expect("values leave the bound");
        let name = ["conv1", "conv2", "conv3"][clipped];
        let text = found.to_string();
        assert!(
            text.contains(&format!("goes wrong is {name}: its values left")),
            "{text}"
        );
        assert!(
            text.contains("--head-room") && text.contains("--calibration"),
            "{text}"
        );
        let layers = measure(&compiled, &pictures(16, 2)).unwrap();
        assert!(layers[clipped].room_bits < 0.0 && layers[clipped].beyond > 0);
        assert!(layers[clipped].examples_beyond > 0 && layers[clipped].examples == 16);
        assert!(
            layers
                .iter()
                .enumerate()
                .all(|(i, l)| (l.beyond > 0) == (i == clipped))
        );
    }
}

#[test]
fn a_tensor_that_becomes_zero_is_named() {
    let graph = network(10);
    let mut compiled = compiled(&graph);
    compiled.weights.layers[1].kernels[0].fill(0);
    compiled.weights.layers[1].bias.fill(0);
    let layers = measure(&compiled, &pictures(16, 2)).unwrap();
    assert!(layers[1].vanished && !layers[0].vanished);
    let text = said(&graph, &compiled)
        .expect("the answers are constant")
        .to_string();
    assert!(
        text.contains("conv2: its values are so small that all of them become 0"),
        "{text}"
    );
}

/// Finding 5: one output has but one label, and a constant used to agree with everything.
#[test]
fn a_single_output_is_judged_by_its_error() {
    let graph = network(1);
    let mut right = compiled(&graph);
    assert!(said(&graph, &right).is_none());
    let last = right.weights.layers.last_mut().unwrap();
    last.kernels[0].fill(0);
    let found = said(&graph, &right).expect("a constant is no regression");
    let text = found.to_string();
    assert!(
        text.contains("of what they vary") && text.contains("--max-error"),
        "{text}"
    );
    assert_eq!(
        found.culprit().map(|c| &c.name[..]),
        Some("logits"),
        "{text}"
    );
    // Several values are judged by the worst of them.
    let graph = network(3);
    let compiled = compiled(&graph);
    let measured = Measured::new(&graph, &compiled, &pictures(24, 2)).unwrap();
    let mut tolerance = Tolerance {
        outputs: Outputs::Values,
        max_error: measured.comparison.relative_error,
    };
    assert!(measured.comparison.noise < measured.comparison.relative_error);
    assert_eq!(tolerance.shortfall(&measured.comparison), None);
    tolerance.max_error *= 0.99;
    let most = tolerance.max_error;
    let expected = Some(Shortfall::Error { most });
    assert_eq!(tolerance.shortfall(&measured.comparison), expected);
}

/// If all examples are of one class, a constant network agrees with the float network on all.
#[test]
fn a_constant_network_is_not_right_because_all_examples_are_alike() {
    let mut graph = network(2);
    let last = graph.nodes.last_mut().unwrap();
    let Op::Dense { bias, .. } = &mut last.op else {
        panic!("the last node is a dense layer");
    };
    *bias = vec![0.0, 1000.0];
    let mut compiled = compiled(&graph);
    assert!(said(&graph, &compiled).is_none());
    let last = compiled.weights.layers.last_mut().unwrap();
    last.kernels[0].fill(0);
    let found = said(&graph, &compiled).expect("a constant is no classifier");
    let text = found.to_string();
    assert!(text.contains("although 40 labels are the same"), "{text}");
    assert!(text.contains("goes wrong is logits"), "{text}");
}

/// The same function, with values of all sizes inside: either fixed point is faithful to it, or it
/// is refused with the layer's name; never silently wrong.
#[test]
fn rescaled_networks_are_right_or_refused() {
    let scaled = |factor: &dyn Fn(usize) -> f32| {
        let mut graph = network(10);
        let mut convs = graph
            .nodes
            .iter_mut()
            .filter_map(|node| match &mut node.op {
                Op::Conv2d { weight, bias, .. } => Some((weight, bias)),
                _ => None,
            });
        let (_, second, third) = (convs.next(), convs.next().unwrap(), convs.next().unwrap());
        for (index, weight) in second.0.iter_mut().enumerate() {
            *weight *= factor(index / 72);
        }
        for (channel, bias) in second.1.iter_mut().enumerate() {
            *bias *= factor(channel);
        }
        for (index, weight) in third.0.iter_mut().enumerate() {
            *weight /= factor(index / 9 % 8);
        }
        graph
    };
    let cases: [(&str, &dyn Fn(usize) -> f32); 4] = [
        ("unequal channels", &|channel| {
            16f32.powi(channel as i32 % 4)
        }),
        ("one huge channel", &|channel| {
            if channel == 3 { 4096.0 } else { 1.0 }
        }),
        ("tiny activations", &|_| 1e-12),
        ("tiny activations of half", &|channel| {
            [1.0, 1e-10][channel % 2]
        }),
    ];
    for (name, factor) in cases {
        let graph = scaled(factor);
        let compiled = match compile(&graph, &pictures(32, 1), &options()) {
            Ok(compiled) => compiled,
            Err(why) => {
                assert!(why.to_string().contains("conv"), "{name}: {why}");
                continue;
            }
        };
        let measured = Measured::new(&graph, &compiled, &pictures(40, 2)).unwrap();
        match said(&graph, &compiled) {
            None => assert!(measured.comparison.agree >= 38, "{name}: {measured}"),
            Some(found) => {
                let text = found.to_string();
                assert!(text.contains("goes wrong is conv"), "{name}: {text}");
            }
        }
    }
}

#[test]
fn a_public_prefix_is_not_measured_but_run() {
    let graph = network(10);
    let mut options = options();
    options.public_prefix = Some(PublicPrefix {
        node: "relu1".into(),
        reveal_learned: true,
    });
    let compiled = compile(&graph, &pictures(32, 1), &options).unwrap();
    let measured = Measured::new(&graph, &compiled, &pictures(24, 2)).unwrap();
    let names: Vec<&str> = measured.layers.iter().map(|l| &l.name[..]).collect();
    assert_eq!(names, ["conv2", "conv3", "logits"]);
    assert!(
        measured.layers.iter().all(|l| l.snr_db.unwrap() > 20.0),
        "{measured}"
    );
    assert!(said(&graph, &compiled).is_none());
    let mut spoiled = compiled;
    spoiled.weights.layers[0].kernels[0].fill(0);
    let found = said(&graph, &spoiled).unwrap();
    assert_eq!(found.culprit().map(|c| &c.name[..]), Some("conv2"));
}

/// Values that are no pictures, some of them beyond the bound of the input.
#[test]
fn inputs_beyond_the_bound_count_as_wrong() {
    let mut builder = Builder::new("rows", Shape::new(3, 1, 1), 4);
    builder.preprocessing(pi_ir::Preprocessing::unit_values(3));
    let hidden = builder.dense("hidden", NodeId(0), 8);
    let relu = builder.relu("relu", hidden);
    let logits = builder.dense("logits", relu, 2);
    let graph = builder.finish(logits);
    let rows = |size: f64| Examples {
        source: "rows".into(),
        inputs: (0..20)
            .map(|i| {
                let value = |k: i32| f64::from(i * k % 7 - 3) * size;
                Input::Values(vec![value(2), value(3), value(5)])
            })
            .collect(),
        labels: Vec::new(),
    };
    let compiled = compile(&graph, &rows(1.0), &options()).unwrap();
    let held_back = rows(100.0);
    let measured = Measured::new(&graph, &compiled, &held_back).unwrap();
    let found = &measured.comparison;
    assert!(found.out_of_bound > 10, "{found}");
    let shortfall = Tolerance::of(2).shortfall(found).unwrap();
    let explained = (found, shortfall);
    let why = Disagreement::explain(&compiled, explained, &held_back).unwrap();
    assert!(
        why.to_string().contains("the input goes wrong already"),
        "{why}"
    );
}
