//! The costs that a trainer reads: exact where they count, additive, and in the form that the
//! trainer's own test holds.

use pi_compiler::cost::activations::costs;
use pi_compiler::cost::report::Report;
use pi_compiler::examples::Examples;
use pi_compiler::pass::select::Link;
use pi_compiler::{Compiled, Options, compile, emit};
use pi_ir::builders::{Policy, Rest, resnet20};
use pi_ir::costs::VERSION;
use pi_ir::{ActivationKind, Graph, Op};
use pi_machine::zen4_avx512;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Half of the positions are ReLUs, the others quadratics; the second block's end is the identity
/// everywhere.
fn graph() -> Graph {
    let policy = Policy::Budget {
        relus: 600,
        rest: Rest::Polynomial,
    };
    let mut graph = resnet20(8, 10, policy, 1);
    let emptied = empty_site(&graph);
    for node in &mut graph.nodes {
        if let Op::Activation {
            kinds,
            coefficients,
        } = &mut node.op
            && node.name == emptied
        {
            kinds.fill(ActivationKind::Identity);
            coefficients.clear();
        }
    }
    graph
}

fn empty_site(graph: &Graph) -> String {
    let sites = graph
        .nodes
        .iter()
        .filter(|node| matches!(node.op, Op::Activation { .. }));
    sites.map(|node| node.name.clone()).nth(4).unwrap()
}

fn compiled(graph: &Graph) -> Compiled {
    let shape = match graph.nodes[0].op {
        Op::Input { shape } => shape,
        _ => unreachable!("builders begin with the input"),
    };
    let options = Options {
        batches: Vec::new(),
        ..Options::default()
    };
    compile(graph, &Examples::synthetic(shape, 4, 0), &options).unwrap()
}

#[test]
fn totals_are_those_of_the_report_and_elements_sum_to_layers() {
    let graph = graph();
    let compiled = compiled(&graph);
    let costs = costs(&graph, &compiled, "4 images", &zen4_avx512()).unwrap();
    let (artifact, _) = emit::files(&compiled, [0; 32], None, "");
    let report = Report::new(&artifact, &Link::default()).unwrap();
    assert_eq!(
        (
            costs.kinds,
            costs.setup,
            costs.offline,
            costs.online,
            costs.round_trips
        ),
        (
            report.kinds,
            report.setup,
            report.offline,
            report.online,
            report.round_trips
        )
    );
    assert_eq!(
        costs.multiply_adds,
        pi_ir::count::circuit_multiply_adds(&compiled.circuit)
    );
    let mut trips = 1;
    for (layer, row) in costs.layers.iter().zip(&report.layers) {
        assert_eq!(
            (&layer.name, layer.offline, layer.online),
            (&row.name, row.offline, row.online)
        );
        trips += layer.round_trips;
        let Some(relu) = layer.element.get("relu") else {
            continue;
        };
        let kinds = [
            ("relu", layer.kinds.relu),
            ("identity", layer.kinds.identity),
            ("square", layer.kinds.square),
            ("polynomial", layer.kinds.polynomial),
        ];
        // Labels and opened values are whole bytes an element; only sign bits may be packed, into
        // one byte more at most.
        let down: f64 = kinds
            .iter()
            .map(|(kind, count)| *count as f64 * layer.element[*kind].online_bytes_down)
            .sum();
        let counted = layer.online.bytes_down as f64;
        assert!(
            (down - counted).abs() <= 1.0,
            "{}: {down}, {counted}",
            layer.name
        );
        assert!(relu.offline_bytes_down > 100.0 && relu.online_bytes_down > 8.0);
        assert_eq!(layer.element["identity"].online_bytes_down, 0.0);
        let (polynomial, identity) = (&layer.element["polynomial"], &layer.element["identity"]);
        assert!(
            polynomial.offline_bytes_up + polynomial.offline_bytes_down
                > identity.offline_bytes_up + identity.offline_bytes_down + 8.0,
            "an OLE has ciphertexts"
        );
        let seconds = |kind: &str| layer.element[kind].predicted["wan"];
        assert!(seconds("relu").online_s > seconds("polynomial").online_s);
        assert!(seconds("polynomial").online_s > seconds("identity").online_s);
    }
    assert_eq!(trips, costs.round_trips);
}

#[test]
fn predictions_follow_the_line() {
    let graph = graph();
    let costs = costs(&graph, &compiled(&graph), "", &zen4_avx512()).unwrap();
    let (lan, wan) = (costs.predicted["lan"], costs.predicted["wan"]);
    let bytes = (costs.online.bytes_up + costs.online.bytes_down) as f64;
    let trips = f64::from(costs.round_trips);
    // Between two lines only bytes and round trips differ.
    let slower = 8.0 * bytes * (1.0 / 100e6 - 1.0 / 1e9) + trips * 39.5e-3;
    assert!((wan.online_s - lan.online_s - slower).abs() < 1e-9);
    let shares: f64 = costs
        .layers
        .iter()
        .map(|l| l.predicted["wan"].online_s)
        .sum();
    let rest = wan.online_s - shares;
    // The request, the last answer's round trip, and the marks are no layer's.
    assert!((0.04..0.06).contains(&rest), "{rest} s belong to no layer");
}

#[test]
fn layers_carry_the_names_of_the_graphs_activations() {
    let graph = graph();
    let costs = costs(&graph, &compiled(&graph), "", &zen4_avx512()).unwrap();
    let sites: Vec<&String> = costs
        .layers
        .iter()
        .filter_map(|l| l.site.as_ref())
        .collect();
    let nodes: Vec<&String> = graph
        .nodes
        .iter()
        .filter(|n| matches!(n.op, Op::Activation { .. }))
        .map(|n| &n.name)
        .filter(|name| **name != empty_site(&graph))
        .collect();
    assert_eq!(sites, nodes);
    assert_eq!(costs.empty_sites, [empty_site(&graph)]);
    for layer in &costs.layers {
        let Some(site) = &layer.site else { continue };
        let shapes = graph.shapes().unwrap();
        let index = graph.nodes.iter().position(|n| n.name == *site).unwrap();
        assert_eq!(
            layer.shape,
            [shapes[index].c, shapes[index].h, shapes[index].w]
        );
        let Op::Activation { kinds, .. } = &graph.nodes[index].op else {
            unreachable!()
        };
        let relus = kinds.iter().filter(|k| **k == ActivationKind::Relu).count();
        assert_eq!(layer.kinds.relu, relus, "{site}");
    }
}

/// The trainer's test reads this file. To make it anew after a change of the form, raise
/// [`VERSION`] and run this test with `PI_WRITE_COSTS=1`.
#[test]
fn the_trainers_fixture_has_the_form_that_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (source, file) = (
        directory.path().join("a.graph"),
        directory.path().join("a.json"),
    );
    std::fs::write(&source, pi_ir::GraphFile { graph: graph() }.encode()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pi-compile"))
        .arg(&source)
        .args(["--machine", "zen4-avx512"])
        .args(["--calibration", "synthetic", "--costs"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let written = std::fs::read_to_string(&file).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/tests/files/costs.json");
    if std::env::var_os("PI_WRITE_COSTS").is_some() {
        std::fs::write(&fixture, &written).unwrap();
    }
    let written: Value = serde_json::from_str(&written).unwrap();
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(&fixture).unwrap()).unwrap();
    assert_eq!(written["version"], VERSION);
    assert_eq!(form(&written), form(&kept));
}

/// Names and types, all elements of a list alike.
fn form(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), form(value)))
            .collect(),
        Value::Array(list) => list.iter().map(form).collect(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "text".into(),
        Value::Bool(_) => "bool".into(),
        Value::Null => Value::Null,
    }
}
