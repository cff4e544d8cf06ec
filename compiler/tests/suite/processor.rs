//! The processor time that the model predicts, against what was measured; and bytes, which must be
//! those that were counted.

use pi_compiler::cost::processor::Cpu;
use pi_compiler::cost::report::Report;
use pi_compiler::examples::Examples;
use pi_compiler::pass::select::Link;
use pi_compiler::{Options, compile, emit};
use pi_ir::builders::{Policy, Rest, lean9, resnet18, resnet32, wrn22_8};
use pi_ir::count::graph_activations;
use pi_ir::{Artifact, Graph, Op, Reveal, Shape};
use pi_machine::shipped;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Bounds of prediction over measurement. Runs of one network differ by a fifth themselves, for a
/// machine's clock and memory are not always the same; see docs/costs.md.
const WITHIN: [f64; 2] = [0.8, 1.2];

/// The same for one party, whose share of a small sum is known less well.
const OF_PARTY: [f64; 2] = [1.0 / 1.6, 1.6];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn json(file: &str) -> Value {
    let path = root().join("docs/results").join(file);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn assert_near(what: &str, predicted: Cpu, measured: &Value) {
    let of = |name: &str| measured[name].as_f64().unwrap();
    let pairs = [
        ("both", predicted.total(), of("cpu_s"), WITHIN),
        ("client", predicted.client_s, of("client_cpu_s"), OF_PARTY),
        ("server", predicted.server_s, of("server_cpu_s"), OF_PARTY),
    ];
    for (who, predicted, measured, [least, most]) in pairs {
        println!("{what}, {who}: predicted {predicted:.4} s, measured {measured:.4} s");
        assert!(
            (least..=most).contains(&(predicted / measured)),
            "{what}, {who}: predicted {predicted} s, measured {measured} s"
        );
    }
}

#[test]
fn the_bundled_model_costs_what_the_demo_measured() {
    let file = std::fs::read(root().join("models/cifar10-small/model.pia")).unwrap();
    let artifact = Artifact::decode(&file).unwrap();
    let artifact = artifact.with_reveal(Reveal::Logits).unwrap();
    let report = Report::new(&artifact, &Link::default()).unwrap();
    let demo = json("demo.json");
    for (traffic, phase) in [
        (&report.setup, "setup"),
        (&report.offline, "offline"),
        (&report.online, "online"),
    ] {
        let counted = &demo[phase];
        // A request travels in a message of its own, of one byte or a few.
        let more = counted["bytes_up"].as_u64().unwrap() - traffic.bytes_up;
        assert!(more <= 64, "{phase}: {more}");
        assert!(
            counted["bytes_down"].as_u64().unwrap() - traffic.bytes_down <= 64,
            "{phase}"
        );
    }
    // Times are those of the machine that the rates are of.
    let demo = json("demo-of-rates.json");
    assert_near("bundled, offline", report.offline_cpu, &demo["offline"]);
    assert_near("bundled, online", report.online_cpu, &demo["online"]);
}

#[test]
fn a_public_prefix_is_counted_apart() {
    let file = std::fs::read(root().join("models/cifar10-small/model.pia")).unwrap();
    let report = Report::new(&Artifact::decode(&file).unwrap(), &Link::default()).unwrap();
    let prefix = report.prefix.as_ref().unwrap();
    // The stem: 24 filters of 3x2x2 at 31x31 places, each with a ReLU.
    assert_eq!(prefix.kinds.relu, 24 * 31 * 31);
    assert_eq!(prefix.multiply_adds, 24 * 31 * 31 * 3 * 2 * 2);
    assert_eq!(prefix.disclosed, 24 * 3 * 2 * 2 + 24);
    assert_eq!(prefix.layers.len(), 1);
    // lean9 has 81,560 activations and 118,147,360 multiply-adds in all.
    assert_eq!(prefix.kinds.total() + report.kinds.total() - 256, 81_560);
    assert_eq!(prefix.multiply_adds + report.multiply_adds, 118_147_360);
    assert!(
        report
            .layers
            .iter()
            .all(|row| row.name != prefix.layers[0].name)
    );
    let text = report.to_string();
    for says in [
        "276,768 multiply-adds",
        "discloses 312 integers",
        "stored until spent",
    ] {
        assert!(text.contains(says), "{says} is missing in {text}");
    }
}

/// A network as benches/README.md measures it: norms keep the second moment level.
fn network(make: fn(u32, u32, Policy, u64) -> Graph, policy: Policy, rest_moment: f64) -> Graph {
    let mut graph = make(32, 10, policy, 1);
    let kinds = graph_activations(&graph);
    let relus = kinds.relu as f64 / kinds.total() as f64;
    let moment = relus + 2.0 * rest_moment * (1.0 - relus);
    for node in &mut graph.nodes {
        if let Op::BatchNorm(norm) = &mut node.op {
            norm.gamma.fill((1.0 / moment).sqrt() as f32);
        }
    }
    graph
}

/// For the machine of a shipped profile, plan and times.
fn report_of(graph: &Graph, batches: Vec<u32>, machine: &str) -> Report {
    let link = Link {
        machine: shipped(machine).unwrap(),
        ..Link::default()
    };
    let options = Options {
        batches,
        link: link.clone(),
        reveal: Reveal::Logits,
        ..Options::default()
    };
    let images = Examples::synthetic(Shape::new(3, 32, 32), 2, 1);
    let compiled = compile(graph, &images, &options).unwrap();
    let (artifact, _) = emit::files(&compiled, [0; 32], None, "");
    Report::new(&artifact, &link).unwrap()
}

/// With AVX-512, and without where that was measured as well: in a file of the same name in the
/// folder `avx2`.
fn assert_predicted(graph: &Graph, file: &str) {
    assert_predicted_for("zen4-avx512", graph, file);
    let avx2 = format!("avx2/{file}");
    if root().join("docs/results").join(&avx2).exists() {
        assert_predicted_for("zen3-avx2", graph, &avx2);
    }
}

fn assert_predicted_for(machine: &str, graph: &Graph, file: &str) {
    let report = report_of(graph, Vec::new(), machine);
    let figures = &json(file)["figures"];
    let measured = &figures["offline"]["per_bundle"];
    assert_near(&format!("{file}, offline"), report.offline_cpu, measured);
    let measured = &figures["online"]["median"];
    assert_near(&format!("{file}, online"), report.online_cpu, measured);
}

const BUDGET: Policy = Policy::Budget {
    relus: 15_000,
    rest: Rest::Identity,
};

#[test]
fn resnet18_with_15_000_relus_costs_what_the_benchmark_measured() {
    let graph = network(resnet18, BUDGET, 1.0);
    assert_predicted(&graph, "resnet18-15000-identity.json");
}

/// The other networks of docs/results, which take a minute to compile.
#[test]
#[ignore = "compiles five networks; run after a change of the model, with --nocapture"]
fn other_networks_cost_what_the_benchmarks_measured() {
    let graph = network(resnet18, BUDGET, 1.0);
    let batch = report_of(&graph, vec![16], "zen4-avx512").batches[0];
    let file = "resnet18-15000-identity-16.json";
    let measured = &json(file)["figures"]["offline"]["per_bundle"];
    assert_near(file, batch.offline_cpu, measured);
    let all = (batch.offline.bytes_up + batch.offline.bytes_down) as f64 / 16.0;
    let counted = ["bytes_up", "bytes_down"].map(|way| measured[way].as_f64().unwrap());
    // Widths of sign circuits depend on the images that they are calibrated on.
    assert!(
        (all / (counted[0] + counted[1]) - 1.0).abs() < 0.03,
        "{all}"
    );
    assert_predicted(&network(lean9, BUDGET, 1.0), "lean9-15000-identity.json");
    assert_predicted(
        &network(resnet32, BUDGET, 1.0),
        "resnet32-15000-identity.json",
    );
    assert_predicted(&network(resnet18, Policy::Relu, 1.0), "resnet18-all.json");
    let polynomials = Policy::Budget {
        relus: 0,
        rest: Rest::Polynomial,
    };
    assert_predicted(
        &network(resnet18, polynomials, 0.479),
        "resnet18-0-poly.json",
    );
    assert_predicted(
        &network(wrn22_8, BUDGET, 1.0),
        "wrn22-8-15000-identity.json",
    );
}
