//! A public prefix against the same network without one: the same answers, less protocol, and
//! refusals of whatever would give more away than was said.

use pi_compiler::cost::activations::costs;
use pi_compiler::cost::evaluate::compare;
use pi_compiler::examples::Examples;
use pi_compiler::{Compiled, Options, PublicPrefix, Refused, compile};
use pi_ir::builders::{Builder, ConvShape, Policy, Rest, lean9};
use pi_ir::interpret::{Interpreter, quantise};
use pi_ir::{Graph, Input, NodeId, Origin, Preprocessing, Shape, Step};
use pi_machine::zen4_avx512;

fn network() -> Graph {
    let policy = Policy::Budget {
        relus: 500,
        rest: Rest::Polynomial,
    };
    let mut graph = lean9(16, 10, policy, 3);
    graph.preprocessing = Preprocessing::Image { floor: 20 };
    // The activation behind the filters that whiten is not learned either.
    graph.nodes[2].origin = Origin::Statistics;
    graph
}

fn with_prefix(graph: &Graph, node: &str, reveal_learned: bool) -> Result<Compiled, Refused> {
    let options = Options {
        public_prefix: Some(PublicPrefix {
            node: node.into(),
            reveal_learned,
        }),
        batches: Vec::new(),
        ..Options::default()
    };
    compile(graph, &images(), &options)
}

fn images() -> Examples {
    Examples::synthetic(Shape::new(3, 16, 16), 8, 1)
}

#[test]
fn a_prefix_changes_answers_by_rounding_only() {
    let graph = network();
    let options = Options {
        batches: Vec::new(),
        ..Options::default()
    };
    let whole = compile(&graph, &images(), &options).unwrap();
    let split = with_prefix(&graph, "whiten.act", false).unwrap();
    let prefix = split.circuit.prefix.as_ref().unwrap();
    assert_eq!(prefix.image, Shape::new(3, 16, 16));
    assert_eq!(split.circuit.input, Shape::new(24, 15, 15));
    assert_eq!(split.circuit.layers.len() + 1, whole.circuit.layers.len());
    let named: Vec<&str> = split.disclosed.iter().map(|d| d.node.as_str()).collect();
    assert_eq!(named, ["whiten", "whiten.act"]);
    assert_eq!(split.disclosed[0].numbers, 24 * 12 + 24);

    // Both circuits round, and the prefix only to finer weights: neither is further from the float
    // graph than fixed point makes it, and the prefix not further than the whole.
    let spread = |compiled: &Compiled| {
        let found = compare(&graph, &compiled.circuit, &compiled.weights, &images()).unwrap();
        assert_eq!(found.out_of_bound, 0);
        found.rms_difference
    };
    let (without, with) = (spread(&whole), spread(&split));
    assert!(with <= 1.25 * without, "{with} with, {without} without");
    let logits = |compiled: &Compiled, image: &Input| -> Vec<f64> {
        let (circuit, weights) = (&compiled.circuit, &compiled.weights);
        let Some(Step::Output { frac_bits, .. }) = circuit.layers.last().map(|l| &l.step) else {
            panic!("the last layer is the output");
        };
        let input = quantise(circuit, image).unwrap();
        let run = Interpreter::new(circuit, weights).unwrap().plain(&input);
        let scale = f64::from(-i32::from(*frac_bits)).exp2();
        run.unwrap()
            .logits
            .iter()
            .map(|&v| v as f64 * scale)
            .collect()
    };
    for image in &images().inputs {
        let pairs = logits(&whole, image).into_iter().zip(logits(&split, image));
        for (a, b) in pairs {
            assert!((a - b).abs() <= 6.0 * (with + without), "{a} and {b}");
        }
    }

    // What the client computes costs no protocol.
    let cost = |compiled: &Compiled| costs(&graph, compiled, "drawn", &zen4_avx512()).unwrap();
    let (whole, split) = (cost(&whole), cost(&split));
    assert_eq!(split.round_trips + 1, whole.round_trips);
    assert_eq!(whole.kinds.total() - split.kinds.total(), 24 * 15 * 15);
    assert!(split.online.bytes_down < whole.online.bytes_down);
    assert!(split.empty_sites.contains(&"whiten.act".to_owned()));
    assert!(
        split
            .layers
            .iter()
            .all(|l| l.site.as_deref() != Some("whiten.act"))
    );
}

#[test]
fn a_prefix_may_end_at_a_convolution_or_deep_in_the_network() {
    let graph = network();
    let conv = with_prefix(&graph, "whiten", false).unwrap();
    assert_eq!(conv.circuit.input, Shape::new(24, 15, 15));
    let unbounded = with_prefix(&graph, "group2.a.act", true).unwrap_err();
    assert!(
        unbounded.to_string().contains("earlier node"),
        "{unbounded}"
    );
    let relus = lean9(16, 10, Policy::Relu, 3);
    let deep = with_prefix(&relus, "group2.a.act", true).unwrap();
    assert_eq!(deep.circuit.prefix.as_ref().unwrap().layers.len(), 4);
    for (graph, compiled) in [(graph, conv), (relus, deep)] {
        let found = compare(&graph, &compiled.circuit, &compiled.weights, &images()).unwrap();
        assert_eq!(found.out_of_bound, 0);
        assert!(found.rms_difference < 0.2, "{}", found.rms_difference);
    }
}

fn refused(graph: &Graph, node: &str, says: &[&str]) {
    let message = with_prefix(graph, node, false).unwrap_err().to_string();
    for says in says {
        assert!(message.contains(says), "{says} is missing in: {message}");
    }
}

#[test]
fn what_gives_away_more_than_was_said_is_refused() {
    let mut graph = network();
    refused(
        &graph,
        "group1.a.act",
        &["group1.a: its", "were learned", "--reveal-learned-weights"],
    );
    refused(&graph, "absent", &["no node of that name", "whiten.act"]);
    refused(&graph, "input", &["the input alone"]);
    let last = graph.nodes.last().unwrap().name.clone();
    refused(&graph, &last, &["nothing would be left"]);
    graph.nodes[1].origin = Origin::Unmarked;
    refused(
        &graph,
        "whiten.act",
        &["whiten: its 312 numbers", "not marked"],
    );
    // A norm behind the prefix would put its numbers into the convolution before it.
    let before_norm = with_prefix(&graph, "group1.a", true)
        .unwrap_err()
        .to_string();
    assert!(
        before_norm.contains("lies in the public prefix"),
        "{before_norm}"
    );
}

#[test]
fn an_edge_past_the_end_is_named() {
    let mut net = Builder::new("residual", Shape::new(3, 8, 8), 1);
    let first = net.conv("first", NodeId(0), ConvShape::same(4, 3, 1));
    let act = net.relu("first.act", first);
    let second = net.conv("second", act, ConvShape::same(4, 3, 1));
    let sum = net.add("sum", second, act);
    let last = net.relu("sum.act", sum);
    let flat = net.flatten("flat", last);
    let dense = net.dense("dense", flat, 3);
    let graph = net.finish(dense);
    refused(
        &graph,
        "second",
        &["sum reads first.act", "can end at first.act, sum, sum.act"],
    );
}
