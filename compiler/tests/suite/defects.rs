//! Defects that were found in use, each on the network that showed it. (Those of accuracy are in
//! `accuracy.rs`, those of the program in `command.rs`.)

use pi_compiler::examples::Examples;
use pi_compiler::pass::quantise::{Precision, WeightBits};
use pi_compiler::{Options, compile};
use pi_ir::builders::Builder;
use pi_ir::interpret::{float, plain, quantise};
use pi_ir::{Graph, Input, NodeId, Op, Preprocessing, Reveal, Shape};

/// A row of values to a hidden layer and two outputs.
fn rows(inputs: u32, hidden: u32) -> Graph {
    let mut builder = Builder::new("rows", Shape::new(inputs, 1, 1), 4);
    builder.preprocessing(Preprocessing::unit_values(inputs));
    let hidden = builder.dense("hidden", NodeId(0), hidden);
    let relu = builder.relu("relu", hidden);
    let logits = builder.dense("logits", relu, 2);
    builder.finish(logits)
}

fn examples(length: usize) -> Examples {
    let value = |row: usize, i: usize| ((row * 31 + i * 17) % 41) as f64 / 20.0 - 1.0;
    let row = |row: usize| (0..length).map(|i| value(row, i)).collect::<Vec<f64>>();
    Examples {
        source: "rows".into(),
        inputs: (0..8).map(|i| Input::Values(row(i))).collect(),
        labels: Vec::new(),
    }
}

fn options(weight_bits: u8) -> Options {
    Options {
        precision: Precision {
            weight_bits: WeightBits::Of(weight_bits),
            ..Precision::default()
        },
        batches: Vec::new(),
        reveal: Reveal::Logits,
        failure_limit: 0.0,
        ..Options::default()
    }
}

fn weights_of<'g>(graph: &'g mut Graph, name: &str) -> &'g mut Vec<f32> {
    let node = graph.nodes.iter_mut().find(|node| node.name == name);
    match &mut node.expect("a node of this name").op {
        Op::Dense { weight, .. } => weight,
        other => panic!("{other:?} is no dense layer"),
    }
}

/// The server's products are exact up to sums of 2^33 and beyond, but a layer of wide weights whose
/// sum passed 2^23 was refused as inexact.
#[test]
fn wide_layers_may_have_fine_weights() {
    let mut graph = rows(4096, 2);
    // All as large as they can be: 4096 times 2^12 is 2^24.
    for (index, weight) in weights_of(&mut graph, "hidden").iter_mut().enumerate() {
        *weight = if index % 3 == 0 { -0.01 } else { 0.01 };
    }
    let compiled = compile(&graph, &examples(4096), &options(14));
    let compiled = compiled.unwrap_or_else(|why| panic!("{why}"));
    let row = &compiled.weights.layers[0].kernels[0][..4096];
    let sum: u64 = row.iter().map(|w| u64::from(w.unsigned_abs())).sum();
    assert!(sum > 1 << 23, "{sum}");
}

/// The label does not depend on the size of output weights, nothing panics or is said twice.
#[test]
fn outputs_of_any_size_compile_or_are_refused_once() {
    for exponent in [-60, -40, -30, -20, -12, 6, 12, 20, 30] {
        let mut graph = rows(8, 8);
        let factor = 10f64.powi(exponent);
        for weight in weights_of(&mut graph, "logits") {
            *weight = (f64::from(*weight) * factor) as f32;
        }
        let examples = examples(8);
        let compiled = match compile(&graph, &examples, &options(8)) {
            Ok(compiled) => compiled,
            Err(why) => {
                assert_eq!(why.0.len(), 1, "10^{exponent}: {why}");
                let why = why.to_string();
                assert!(why.starts_with("logits: "), "10^{exponent}: {why}");
                assert!(why.contains("changes no label"), "10^{exponent}: {why}");
                continue;
            }
        };
        for input in &examples.inputs {
            let reals = graph.preprocessing.reals_of(input).unwrap();
            let expected = float(&graph, &reals).unwrap();
            let input = quantise(&compiled.circuit, input).unwrap();
            let run = plain(&compiled.circuit, &compiled.weights, &input).unwrap();
            let gap = (expected[0] - expected[1]).abs();
            if gap > 0.05 * expected[0].abs().max(expected[1].abs()) {
                let greater = (run.logits[0] > run.logits[1], expected[0] > expected[1]);
                assert_eq!(greater.0, greater.1, "10^{exponent}");
            }
        }
    }
}
