//! Whole compilations: random graphs and the common networks, against the float interpreter.

use pi_compiler::cost::evaluate::compare;
use pi_compiler::examples::Examples;
use pi_compiler::pass::calibrate::FloatWeights;
use pi_compiler::pass::fold::fold;
use pi_compiler::pass::lower::{Pools, lower_and_measure};
use pi_compiler::pass::quantise::{Precision, WeightBits};
use pi_compiler::{Compiled, Options, Refused, compile, emit};
use pi_ir::builders::{Builder, ConvShape, Policy, Rest, lean9, resnet20, resnet50, wrn22_8};
use pi_ir::random::{GraphOptions, graph};
use pi_ir::{
    ActivationKind, Artifact, Graph, Kind, NodeId, Op, Range, Shape, Step, WeightsFile, interpret,
    verify,
};
use pi_protocol::layout;

const POOLS: [Pools; 3] = [Pools::Cheapest, Pools::Absorb, Pools::Separate];

fn input(graph: &Graph) -> Shape {
    match graph.nodes[0].op {
        Op::Input { shape } => shape,
        _ => panic!("node 0 is the input"),
    }
}

fn images(graph: &Graph, count: usize, seed: u64) -> Examples {
    Examples::synthetic(input(graph), count, seed)
}

/// Folding and lowering change no value beyond the rounding of single precision.
fn assert_same_function(graph: &Graph, seed: u64) {
    let folded = fold(graph).unwrap();
    let images = images(graph, 2, seed).reals(&graph.preprocessing).unwrap();
    for pools in POOLS {
        let (network, _) = lower_and_measure(&folded, pools, None, &images).unwrap();
        let weights = FloatWeights::new(&network);
        for image in &images {
            let expected = interpret::float(graph, image).unwrap();
            let logits = weights.evaluate(&network, image).sums.pop().unwrap();
            let size = expected.iter().fold(1e-3f32, |max, v| max.max(v.abs()));
            assert_eq!(logits.len(), expected.len());
            for (a, b) in logits.iter().zip(&expected) {
                assert!(
                    (a - b).abs() <= 2e-3 * size,
                    "seed {seed}, {pools:?}: {a} instead of {b}"
                );
            }
        }
    }
}

#[test]
fn lowered_random_graphs_compute_the_same_function() {
    for seed in 0..200 {
        assert_same_function(&graph(seed, &GraphOptions::default()), seed);
    }
}

#[test]
fn lowered_common_networks_compute_the_same_function() {
    let mixed = |relus, rest| Policy::Budget { relus, rest };
    assert_same_function(&resnet20(16, 10, mixed(900, Rest::Polynomial), 1), 1);
    assert_same_function(&resnet50(8, 10, mixed(900, Rest::Identity), 2), 2);
    assert_same_function(&lean9(32, 10, mixed(900, Rest::Polynomial), 3), 3);
    assert_same_function(&wrn22_8(8, 10, mixed(900, Rest::Polynomial), 4), 4);
}

fn fine() -> Options {
    Options {
        precision: Precision {
            weight_bits: WeightBits::Of(12),
            activation_bits: 14,
            ..Precision::default()
        },
        ..alone()
    }
}

/// No packing for batches, the search for which takes longer than all else of a small network.
fn alone() -> Options {
    Options {
        batches: Vec::new(),
        ..Options::default()
    }
}

/// Root mean square difference of the logits, over the root mean square of the float logits'
/// spread.
fn relative_error(graph: &Graph, compiled: &Compiled, images: &Examples) -> f64 {
    let found = compare(graph, &compiled.circuit, &compiled.weights, images).unwrap();
    assert_eq!(
        found.out_of_bound, 0,
        "calibration images stay within the bounds"
    );
    let logits = images.inputs.iter().flat_map(|input| {
        let image = graph.preprocessing.reals_of(input).unwrap();
        interpret::float(graph, &image).unwrap()
    });
    let logits: Vec<f64> = logits.map(f64::from).collect();
    let square = logits.iter().map(|v| v * v).sum::<f64>() / logits.len() as f64;
    found.rms_difference / square.sqrt().max(1e-9)
}

/// Errors at 8-bit weights with 10-bit activations, and at 12 with 14; `None` if a layer cannot be
/// scaled.
fn errors(seed: u64, options: &GraphOptions) -> Option<(f64, f64)> {
    let graph = graph(seed, options);
    let images = images(&graph, 12, seed);
    // Batches of some: those of all would take most of the time.
    let batches = match seed % 10 {
        0 => Options::default().batches,
        _ => Vec::new(),
    };
    let coarse = Options {
        batches,
        ..Options::default()
    };
    let coarse = match compile(&graph, &images, &coarse) {
        Ok(compiled) => compiled,
        // Random polynomials may run away from any scale; then a layer must be named.
        Err(Refused(faults)) => {
            let named = faults.iter().all(|f| !f.node.is_empty());
            assert!(named, "seed {seed}: {faults:?}");
            return None;
        }
    };
    let faults = verify::weights(&coarse.circuit, &coarse.weights);
    assert_eq!(faults, [], "seed {seed}");
    for plan in [&coarse.plan].into_iter().chain(&coarse.batches) {
        let faults = layout::verify_plan(&coarse.circuit, plan);
        assert_eq!(faults, Vec::<String>::new(), "seed {seed}");
    }
    let fine = compile(&graph, &images, &fine()).unwrap();
    Some((
        relative_error(&graph, &coarse, &images),
        relative_error(&graph, &fine, &images),
    ))
}

/// Eight-bit weights are off by up to 1/256 of the largest, ten bits of activation by 1/2000, in
/// each of up to two dozen layers: a tenth of the logits at worst.
const COARSE: f64 = 0.12;

#[test]
fn quantised_random_graphs_track_the_float_graph() {
    let options = GraphOptions {
        polynomial: false,
        ..GraphOptions::default()
    };
    for seed in 0..60 {
        let (coarse, fine) = errors(seed, &options).expect("without polynomials all compile");
        assert!(
            coarse < COARSE,
            "seed {seed}: 8-bit weights are off by {coarse}"
        );
        // Twelve and fourteen bits are off by a sixteenth of that; by a sixth at worst, since
        // scales are rounded.
        assert!(
            fine < coarse / 6.0 + 1e-3,
            "seed {seed}: {fine} with 12-bit weights, {coarse} with 8"
        );
    }
}

#[test]
fn quantised_polynomials_track_the_float_graph() {
    // Their second truncation holds 28 bits, however many bits activations get: finer weights help
    // less.
    let found: Vec<_> = (0..60)
        .filter_map(|seed| errors(seed, &GraphOptions::default()))
        .collect();
    assert!(found.len() > 50, "only {} of 60 compiled", found.len());
    for (coarse, fine) in found {
        assert!(
            coarse < COARSE && fine < COARSE / 2.0,
            "off by {coarse}, {fine} with 12-bit weights"
        );
    }
}

#[test]
fn resnet20_with_mixed_activations_compiles_and_tracks_the_float_graph() {
    let policy = Policy::Budget {
        relus: 3_000,
        rest: Rest::Polynomial,
    };
    let graph = resnet20(32, 10, policy, 7);
    let images = images(&graph, 6, 7);
    let compiled = compile(&graph, &images, &alone()).unwrap();
    assert_eq!(verify::weights(&compiled.circuit, &compiled.weights), []);
    let kinds = |wanted: Kind| {
        let layers = compiled.circuit.layers.iter();
        let kinds = layers.flat_map(|layer| match &layer.step {
            Step::Activate(activation) => &activation.kinds[..],
            Step::Output { .. } => &[],
        });
        kinds.filter(|kind| **kind == wanted).count()
    };
    assert_eq!(kinds(Kind::Relu), 3_000);
    assert!(kinds(Kind::Polynomial) > 100_000);
    assert!(compiled.failure_log2 < -10.0);
    let error = relative_error(&graph, &compiled, &images);
    assert!(error < 0.10, "logits are off by {error} of their size");
}

#[test]
fn bounds_leave_head_room_and_sign_circuits_stay_narrow() {
    let graph = resnet20(16, 10, Policy::Relu, 5);
    let compiled = compile(&graph, &images(&graph, 6, 5), &alone()).unwrap();
    let mut calibrated = 0;
    for layer in &compiled.circuit.layers {
        let m = layer.sign_bits().map_or(0, |m| m - layer.guard_bits);
        assert!(m <= 17, "{}: sign circuits of {m} bits", layer.name);
        if let Range::Calibrated { max_seen } = layer.range {
            calibrated += 1;
            let bound = (1u64 << layer.bound_bits) - (1 << layer.truncate());
            assert!(
                max_seen * 4 <= bound,
                "{}: {max_seen} seen, bound {bound}",
                layer.name
            );
        }
    }
    assert!(
        calibrated > 5,
        "interval analysis cannot bound a network this deep"
    );
}

#[test]
fn compilation_is_deterministic() {
    let policy = Policy::Budget {
        relus: 500,
        rest: Rest::Polynomial,
    };
    let graph = resnet20(8, 10, policy, 3);
    let images = images(&graph, 4, 3);
    let bytes = || {
        let compiled = compile(&graph, &images, &Options::default()).unwrap();
        let (artifact, weights) = emit::files(&compiled, [7; 32], None, "note");
        (artifact.encode(), weights.encode())
    };
    let (artifact, weights) = bytes();
    assert_eq!(bytes(), (artifact.clone(), weights.clone()));
    let artifact = Artifact::decode(&artifact).unwrap();
    artifact
        .check_weights(&WeightsFile::decode(&weights).unwrap())
        .unwrap();
    assert!(
        artifact
            .check_weights(&WeightsFile {
                salt: [8; 32],
                ..WeightsFile::decode(&weights).unwrap()
            })
            .is_err()
    );
}

#[test]
fn a_failure_probability_above_the_limit_names_the_worst_layer() {
    let graph = resnet20(8, 10, Policy::Relu, 3);
    let options = Options {
        failure_limit: -40.0,
        ..alone()
    };
    let Err(Refused(faults)) = compile(&graph, &images(&graph, 4, 3), &options) else {
        panic!("a limit of 2^-40 must refuse");
    };
    let compiled = compile(&graph, &images(&graph, 4, 3), &alone()).unwrap();
    let shares = pi_ir::failure::failure_log2(&compiled.circuit).layers;
    let worst = (0..shares.len())
        .max_by(|&a, &b| shares[a].total_cmp(&shares[b]))
        .unwrap();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].node, compiled.circuit.layers[worst].name);
    assert!(faults[0].message.contains("above 2^-40"), "{}", faults[0]);
}

#[test]
fn unsound_graphs_and_options_are_refused_whole() {
    let mut graph = resnet20(8, 10, Policy::Relu, 3);
    let images = images(&graph, 2, 3);
    let options = Options {
        precision: Precision {
            head_room: 1,
            weight_bits: WeightBits::Of(16),
            ..Precision::default()
        },
        ..Options::default()
    };
    let refused = compile(&graph, &images, &options).unwrap_err();
    assert_eq!(refused.0.len(), 2, "{refused}");
    for name in ["stem.norm", "classifier"] {
        let index = graph.nodes.iter().position(|n| n.name == name);
        let index = index.unwrap_or_else(|| panic!("no node {name}: {:?}", names(&graph)));
        match &mut graph.nodes[index].op {
            Op::BatchNorm(norm) => norm.gamma[0] = f32::NAN,
            Op::Dense { bias, .. } => bias.resize(3, 0.0),
            _ => panic!("{name} is something else"),
        }
    }
    let refused = compile(&graph, &images, &Options::default())
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("stem.norm") && refused.contains("classifier"),
        "{refused}"
    );
}

fn names(graph: &Graph) -> Vec<&str> {
    graph.nodes.iter().map(|node| node.name.as_str()).collect()
}

/// Three maps of a million elements: alone they fit, and 64 of them do not.
#[test]
fn a_batch_that_is_too_large_is_left_out_and_named() {
    let mut net = Builder::new("wide", Shape::new(1, 180, 180), 1);
    let mut x = NodeId(0);
    for name in ["a", "b", "c"] {
        let from = x;
        x = net.conv(name, from, ConvShape::same(32, 1, 1));
        let kinds = vec![ActivationKind::Identity; net.shape(x).len()];
        x = net.activation(&format!("{name}.act"), x, kinds);
    }
    x = net.pool("pool", x, (180, 180), (180, 180));
    x = net.flatten("flat", x);
    let last = net.dense("dense", x, 2);
    let graph = net.finish(last);
    let options = Options {
        batches: vec![2, 64],
        ..Options::default()
    };
    let compiled = compile(&graph, &images(&graph, 1, 1), &options).unwrap();
    let planned: Vec<u32> = compiled.batches.iter().map(|plan| plan.bundles).collect();
    assert_eq!(planned, [2]);
    let [(64, why)] = &compiled.unplanned[..] else {
        panic!("{:?}", compiled.unplanned);
    };
    assert!(why.to_string().contains("ciphertexts"), "{why}");
}
