//! What answers tell of the weights: the figures of `docs/parameters.md`, and the refusal of
//! networks that would tell too much.

use pi_compiler::examples::Examples;
use pi_compiler::pass::fold::fold;
use pi_compiler::pass::lower::{Pools, lower_and_measure};
use pi_compiler::pass::quantise::{Identity, Precision, WeightBits, quantise, scales};
use pi_compiler::pass::select::{Link, select};
use pi_compiler::{Compiled, Options, compile, emit};
use pi_ir::artifact::{ARTIFACT_NAME, Artifact};
use pi_ir::builders::{Policy, Rest, lean9, resnet18, resnet20, resnet50, wrn22_8};
use pi_ir::{Circuit, Graph, Op, Plan, Term};
use pi_protocol::flooding::{LIMIT_LOG2, flooding};
use std::fs;
use std::path::{Path, PathBuf};

fn compiled(graph: &Graph, weight_bits: u8) -> Result<Compiled, String> {
    let Op::Input { shape } = graph.nodes[0].op else {
        unreachable!("builders begin with the input");
    };
    let mut options = Options {
        batches: Vec::new(),
        ..Options::default()
    };
    options.precision.weight_bits = WeightBits::Of(weight_bits);
    let images = Examples::synthetic(shape, 1, 0);
    compile(graph, &images, &options).map_err(|refused| refused.to_string())
}

/// A circuit and its plan as [`compile`] makes them. What answers tell depends on shapes, packing
/// and declared widths alone, so the passes behind quantisation, which run the network on examples
/// again and again, are left out.
fn packed(graph: &Graph) -> (Circuit, Plan) {
    let Op::Input { shape } = graph.nodes[0].op else {
        unreachable!("builders begin with the input");
    };
    let images = Examples::synthetic(shape, 1, 0);
    let images = images.reals(&graph.preprocessing).unwrap();
    let folded = fold(graph).unwrap();
    let (real, seen) = lower_and_measure(&folded, Pools::Cheapest, None, &images).unwrap();
    let scales = scales(&real, &seen, &Precision::default()).unwrap();
    let identity = Identity {
        name: &graph.name,
        preprocessing: &graph.preprocessing,
        classes: &graph.classes,
    };
    let (circuit, _) = quantise(&real, &scales, &seen, &identity).unwrap();
    let plan = select(&circuit, 1, &Link::default()).unwrap();
    (circuit, plan)
}

#[test]
fn compilation_states_the_figure_of_circuit_and_packing() {
    let graph = resnet20(8, 10, policy(), 1);
    let (circuit, plan) = packed(&graph);
    let compiled = compiled(&graph, 8).unwrap();
    assert_eq!(plan, compiled.plan);
    let (total, _) = figure(&circuit, 8, [&plan]);
    assert_eq!(total, compiled.flooding_log2);
}

fn policy() -> Policy {
    Policy::Budget {
        relus: 15_000,
        rest: Rest::Polynomial,
    }
}

fn from_root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The figure of a circuit whose weights are all declared this wide, sign included.
fn figure<'p>(
    circuit: &Circuit,
    bits: u8,
    plans: impl IntoIterator<Item = &'p Plan>,
) -> (f64, &'static str) {
    let mut circuit = circuit.clone();
    for term in circuit.layers.iter_mut().flat_map(|layer| &mut layer.terms) {
        if let Term::Conv(conv) = term {
            conv.weight_bits = bits - 1;
        }
    }
    let total = flooding(&circuit, plans).unwrap().total;
    let refused = if total > LIMIT_LOG2 { " (refused)" } else { "" };
    (total, refused)
}

/// Batches tell less than bundles alone in each of these, so that the plan for one bundle decides.
#[test]
fn figures_of_networks_are_as_documented() {
    let document = fs::read_to_string(from_root("docs/parameters.md")).unwrap();
    let mut lacking = String::new();
    let mut check = |name: &str, circuit: &Circuit, plans: &[&Plan]| {
        let cells = [8, 10, 12, 15].map(|bits| {
            let (total, refused) = figure(circuit, bits, plans.iter().copied());
            format!(" {total:.1}{refused} |")
        });
        let row = format!("| {name} |{}\n", cells.concat());
        if !document.contains(&row) {
            lacking += &row;
        }
    };
    let bundled = from_root("models/cifar10-small").join(ARTIFACT_NAME);
    let bundled = Artifact::decode(&fs::read(bundled).unwrap()).unwrap();
    let plans: Vec<&Plan> = bundled.plans().collect();
    check("the bundled model", &bundled.circuit, &plans);
    for (name, graph) in [
        ("lean9", lean9(32, 10, policy(), 1)),
        ("ResNet-18", resnet18(32, 10, policy(), 1)),
        ("WideResNet-22-8", wrn22_8(32, 10, policy(), 1)),
        ("ResNet-50", resnet50(32, 10, policy(), 1)),
    ] {
        let (circuit, plan) = packed(&graph);
        check(name, &circuit, &[&plan]);
    }
    assert!(lacking.is_empty(), "docs/parameters.md lacks\n{lacking}");
}

#[test]
fn weights_that_are_too_wide_are_refused_with_a_width_that_is_not() {
    let graph = resnet20(16, 10, policy(), 1);
    let refused = compiled(&graph, 15).unwrap_err();
    assert!(refused.contains("above 2^-39"), "{refused}");
    let (_, bits) = refused.rsplit_once("use --weight-bits ").expect("a remedy");
    let bits: u8 = bits.trim().parse().unwrap();
    let accepted = compiled(&graph, bits).unwrap();
    let stated = accepted.flooding_log2;
    // A bit more is up to a bit of distance more.
    assert!(
        (LIMIT_LOG2 - 1.1..=LIMIT_LOG2).contains(&stated),
        "{stated}"
    );
    assert!(compiled(&graph, bits + 1).is_err());
}

#[test]
fn an_artifact_with_another_figure_is_refused() {
    let compiled = compiled(&resnet20(8, 10, policy(), 1), 8).unwrap();
    let (mut artifact, _) = emit::files(&compiled, [0; 32], None, "");
    let link = Options::default().link;
    let report = pi_compiler::cost::report::Report::new(&artifact, &link).unwrap();
    assert_eq!(report.flooding_log2, artifact.flooding_log2);
    let part = |part: &f64| part.exp2().powi(2);
    let parts: Vec<f64> = report.packing.iter().map(|row| row.flooding_log2).collect();
    let sum = parts.iter().map(part).sum::<f64>().log2() / 2.0;
    assert!((sum - report.flooding_log2).abs() < 1e-6, "{sum}");
    assert!(
        report
            .to_string()
            .contains("tell of the weights with a distance of 2^-4")
    );
    artifact.flooding_log2 -= 1.0;
    let refused = pi_compiler::cost::report::Report::new(&artifact, &link).unwrap_err();
    assert!(
        refused.to_string().contains("states a flooding distance"),
        "{refused}"
    );
}
