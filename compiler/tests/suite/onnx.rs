//! An ONNX model from its file to a circuit, by the program as users run it.

use pi_ir::artifact::{ARTIFACT_NAME, Artifact, WEIGHTS_NAME, WeightsFile};
use pi_ir::interpret::{float, plain, quantise};
use pi_onnx::proto::{
    GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto,
};
use prost::Message;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::path::Path;
use std::process::{Command, Output};

fn tensor(name: &str, dims: &[i64], rng: &mut ChaCha20Rng) -> TensorProto {
    let count = dims.iter().product::<i64>();
    let inputs = dims[1..].iter().product::<i64>().max(1) as f32;
    let mut uniform = || (rng.next_u32() % 2001) as f32 / 1000.0 - 1.0;
    let values = (0..count).map(|_| uniform() * (3.0 / inputs).sqrt());
    TensorProto::floats(name, dims, values)
}

/// A node with a name as PyTorch gives it.
fn node(operator: &str, line: &str, lists: &[(&str, &[i64])]) -> NodeProto {
    let node = NodeProto::of(operator, line, lists);
    NodeProto {
        name: node.name.map(|name| format!("/features/{name}")),
        ..node
    }
}

/// LeNet with maxima, as a framework exports it: the batch is a symbol. Its second activation, from
/// `c2` to `r2`, is given.
fn lenet(activation: &[NodeProto]) -> Vec<u8> {
    let rng = &mut ChaCha20Rng::seed_from_u64(9);
    let pool: &[(&str, &[i64])] = &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])];
    let mut nodes = vec![
        node("Conv", "image w1 b1 c1", &[]),
        node("Relu", "c1 r1", &[]),
        node("MaxPool", "r1 p1", pool),
        node("Conv", "p1 w2 c2", &[("pads", &[1, 1, 1, 1])]),
        node("AveragePool", "r2 p2", pool),
        node("Flatten", "p2 f", &[]),
        node("MatMul", "f d m", &[]),
        node("Add", "m e logits", &[]),
    ];
    nodes.splice(4..4, activation.iter().cloned());
    let graph = GraphProto {
        node: nodes,
        initializer: vec![
            tensor("w1", &[4, 1, 3, 3], rng),
            tensor("b1", &[4], rng),
            tensor("w2", &[6, 4, 3, 3], rng),
            tensor("d", &[54, 3], rng),
            tensor("e", &[3], rng),
        ],
        input: vec![ValueInfoProto::of(
            "image",
            &[None, Some(1), Some(14), Some(14)],
        )],
        output: vec![ValueInfoProto::of("logits", &[None, Some(3)])],
        ..GraphProto::default()
    };
    let entry = |key: &str, value: &str| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
    };
    let model = ModelProto {
        metadata_props: vec![
            entry("classes", "[\"one\", \"two\", \"three\"]"),
            entry("mean", "0.5"),
            entry("deviation", "0.25"),
        ],
        ..ModelProto::of(graph, 17)
    };
    model.encode_to_vec()
}

fn pi_compile(model: &Path, out: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pi-compile"))
        .arg(model)
        .args(["--machine", "zen4-avx512"])
        .args(["--calibration", "synthetic", "--batches", "2", "--out"])
        .arg(out)
        .output()
        .unwrap()
}

#[test]
fn a_model_goes_in_and_computes_what_it_did() {
    let directory = tempfile::tempdir().unwrap();
    let (file, out) = (
        directory.path().join("lenet.onnx"),
        directory.path().join("out"),
    );
    std::fs::write(&file, lenet(&[node("Relu", "c2 r2", &[])])).unwrap();
    let made = pi_compile(&file, &out);
    let notes = String::from_utf8(made.stderr).unwrap();
    assert!(made.status.success(), "{notes}");
    assert!(
        notes.contains("note: /features/p1 (MaxPool): takes"),
        "{notes}"
    );
    assert!(!notes.contains("--mean"), "{notes}");

    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    let artifact = Artifact::decode(&read(ARTIFACT_NAME)).unwrap();
    let weights = WeightsFile::decode(&read(WEIGHTS_NAME)).unwrap().weights;
    assert_eq!(artifact.circuit.classes, ["one", "two", "three"]);
    let graph = pi_onnx::read(&file, &pi_onnx::Options::default())
        .unwrap()
        .graph;
    let images = pi_compiler::examples::Examples::synthetic(artifact.circuit.image(), 4, 7);
    for image in &images.inputs {
        let real = float(&graph, &graph.preprocessing.reals_of(image).unwrap()).unwrap();
        let input = quantise(&artifact.circuit, image).unwrap();
        let fixed = plain(&artifact.circuit, &weights, &input).unwrap();
        let scale = f64::from(artifact.circuit.output().0).exp2();
        for (&real, &fixed) in real.iter().zip(&fixed.logits) {
            let difference = (f64::from(real) - fixed as f64 / scale).abs();
            assert!(difference < 0.1, "{real} {}", fixed as f64 / scale);
        }
    }
}

#[test]
fn faults_name_nodes_and_operators() {
    let directory = tempfile::tempdir().unwrap();
    let (file, out) = (
        directory.path().join("bad.onnx"),
        directory.path().join("out"),
    );
    let activation = [node("Tanh", "c2 t", &[]), node("LSTM", "t r2", &[])];
    let mut bytes = lenet(&activation);
    std::fs::write(&file, &bytes).unwrap();
    let text = |output: Output| String::from_utf8(output.stderr).unwrap();
    let refused = text(pi_compile(&file, &out));
    for part in [
        "bad.onnx: 2 faults:",
        "/features/t (Tanh): not supported: it has no private form",
        "/features/r2 (LSTM): not supported: networks with control flow",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&file, &bytes).unwrap();
    let refused = text(pi_compile(&file, &out));
    assert!(refused.contains("this is no ONNX model"), "{refused}");
    let refused = text(pi_compile(&directory.path().join("absent.onnx"), &out));
    assert!(refused.contains("cannot read"), "{refused}");
    assert!(!out.exists());
}
