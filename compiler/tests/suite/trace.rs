//! Models out and back again: graphs as ONNX, masks from a file, and every tensor by its name.

use pi_compiler::trace::read_input;
use pi_ir::builders::{Builder, Policy, Rest, apply};
use pi_ir::interpret::{float, float_values};
use pi_ir::value_file::Array;
use pi_ir::{ActivationKind, Graph, GraphFile, Op, Preprocessing, Shape};
use pi_onnx::{Options, read};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn pi_compile(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pi-compile"))
        .args(arguments)
        .args(["--machine", "zen4-avx512"])
        .output()
        .unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = pi_compile(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

/// A residual network with a norm that becomes weights, pools, and activations of all ReLUs.
fn plain() -> Graph {
    let mut b = Builder::new("plain", Shape::new(3, 8, 8), 4);
    b.preprocessing(Preprocessing::Channels {
        mean: vec![0.5, 0.4, 0.3],
        std: vec![0.25; 3],
    });
    let stem = b.conv_norm("stem", pi_ir::NodeId(0), 6, 3, 1);
    let stem = b.relu("stem.act", stem);
    let conv = b.conv_norm("conv", stem, 6, 3, 1);
    let sum = b.add("sum", conv, stem);
    let sum = b.relu("sum.act", sum);
    let pool = b.pool("pool", sum, (4, 4), (4, 4));
    let flat = b.flatten("flat", pool);
    let last = b.dense("last", flat, 4);
    b.finish(last)
}

/// The same with a mask and quadratics.
fn masked() -> Graph {
    let mut graph = plain();
    let policy = Policy::Budget {
        relus: 250,
        rest: Rest::Polynomial,
    };
    apply(policy, &mut graph, 3);
    graph
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn model(&self, graph: &Graph) -> String {
        let path = self.at("model.onnx");
        fs::write(&path, pi_onnx::write(graph).unwrap()).unwrap();
        path
    }
}

fn image() -> Vec<f32> {
    (0..192).map(|i| (i * 7 % 31) as f32 / 8.0 - 2.0).collect()
}

fn close(own: &[f32], right: &[f32], tolerance: f32, what: &str) {
    assert_eq!(own.len(), right.len(), "{what}");
    let largest = right.iter().fold(0f32, |largest, v| largest.max(v.abs()));
    for (own, right) in own.iter().zip(right) {
        let near = (own - right).abs() <= tolerance * largest;
        assert!(near, "{what}: {own}, expected {right}");
    }
}

#[test]
fn a_graph_file_goes_out_as_onnx() {
    let (folder, graph) = (Folder::new(), masked());
    let (file, model) = (folder.at("model.graph"), folder.at("model.onnx"));
    let encoded = GraphFile {
        graph: graph.clone(),
    };
    fs::write(&file, encoded.encode()).unwrap();
    let said = succeed(&[&file, "--export-onnx", &model]);
    assert!(said.contains("mean [0.5, 0.4, 0.3]"), "{said}");
    let back = read(Path::new(&model), &Options::default()).unwrap().graph;
    assert_eq!(back.preprocessing, graph.preprocessing);
    let x = image();
    let [back, graph] = [back, graph].map(|graph| float(&graph, &x).unwrap());
    close(&back, &graph, 1e-4, "logits");
}

#[test]
fn masks_come_from_a_file_beside_the_model() {
    let folder = Folder::new();
    let model = folder.model(&plain());
    let masks = |name: &str, kinds: &[u8]| {
        let shape = vec![6, 8, 8];
        let view = TensorView::new(Dtype::U8, shape, kinds).unwrap();
        let bytes = safetensors::serialize([(name, view)], None).unwrap();
        fs::write(folder.at("masks.safetensors"), bytes).unwrap();
    };
    let kinds: Vec<u8> = (0..384).map(|i| u8::from(i % 3 == 0)).collect();
    let (file, out) = (folder.at("masks.safetensors"), folder.at("masked.onnx"));
    masks("sum.act.kinds", &kinds);
    succeed(&[&model, "--masks", &file, "--export-onnx", &out]);
    let graph = read(Path::new(&out), &Options::default()).unwrap().graph;
    let found: Vec<usize> = graph
        .nodes
        .iter()
        .filter_map(|node| match &node.op {
            Op::Activation { kinds, .. } => Some(kinds),
            _ => None,
        })
        .map(|kinds| kinds.iter().filter(|k| **k == ActivationKind::Relu).count())
        .collect();
    assert_eq!(found, [384, 128]);
    masks("sum.akt.kinds", &kinds);
    let refused = pi_compile(&[&model, "--masks", &file, "--export-onnx", &out]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(text.contains("similar names: sum.act, stem.act"), "{text}");
}

fn file(dims: &[usize], values: &[f32]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Array::file("<f4", dims, &bytes)
}

/// The list of a trace, and an array of it.
fn traced(out: &str) -> Vec<Value> {
    let list = fs::read(Path::new(out).join("trace.json")).unwrap();
    serde_json::from_slice(&list).unwrap()
}

fn array(out: &str, entry: &Value, kind: &str) -> Option<Vec<f32>> {
    let path = Path::new(out).join(entry[kind].as_str()?);
    Some(read_input(&path).unwrap())
}

#[test]
fn a_trace_has_every_tensor_in_float_and_in_fixed_point() {
    let folder = Folder::new();
    let (input, out) = (folder.at("x.npy"), folder.at("trace"));
    let x = image();
    fs::write(&input, file(&[1, 3, 8, 8], &x)).unwrap();
    let cases: [(Graph, &[&str]); 2] = [
        (plain(), &["stem.act", "sum.act", "last"]),
        (masked(), &["last"]),
    ];
    for (graph, layers) in cases {
        let model = folder.model(&graph);
        let float_alone = [model.as_str(), "--trace", &input, "--trace-out", &out];
        succeed(&[&float_alone[..], &["--calibration", "synthetic"]].concat());
        let list = traced(&out);
        let expected = float_values(&graph, &x).unwrap();
        let mut fixed = Vec::new();
        for (node, right) in graph.nodes.iter().zip(&expected).skip(1) {
            let entry = list
                .iter()
                .find(|entry| entry["name"] == node.name.as_str());
            let entry = entry.unwrap_or_else(|| panic!("{} is missing", node.name));
            close(
                &array(&out, entry, "float").unwrap(),
                right,
                1e-4,
                &node.name,
            );
            if let Some(own) = array(&out, entry, "fixed") {
                // Eight bits a weight and ten an activation, through three layers.
                close(&own, right, 0.1, &node.name);
                assert!(own != *right, "{} is no fixed point", node.name);
                fixed.push(node.name.as_str());
            }
        }
        assert!(
            layers.iter().all(|layer| fixed.contains(layer)),
            "{fixed:?}"
        );
        succeed(&float_alone);
        assert!(traced(&out).iter().all(|entry| entry["fixed"].is_null()));
    }
}

#[test]
fn mistakes_with_traces_are_named() {
    let folder = Folder::new();
    let model = folder.model(&plain());
    let (input, out) = (folder.at("x.npy"), folder.at("trace"));
    let refused = |says: &str| {
        let output = pi_compile(&[&model, "--trace", &input, "--trace-out", &out]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(says), "{text}");
    };
    refused("x.npy");
    fs::write(&input, file(&[1, 3, 8, 7], &image()[..168])).unwrap();
    refused("168 elements; the model reads [1, 3, 8, 8]");
    fs::write(&input, b"no array").unwrap();
    refused("numpy.save");
    assert!(!Path::new(&out).exists());
}

/// The Python that `PI_PYTHON` names, or that of the system, if it has what the tool needs.
fn python() -> Option<String> {
    let python = std::env::var("PI_PYTHON").unwrap_or_else(|_| "python3".into());
    let modules = "import numpy, onnx, onnxruntime";
    let found = Command::new(&python).args(["-c", modules]).output();
    found
        .is_ok_and(|output| output.status.success())
        .then_some(python)
}

#[test]
fn onnx_check_compares_with_onnxruntime() {
    let Some(python) = python() else {
        eprintln!(
            "skipped: no onnxruntime here; `pip install onnx onnxruntime numpy`, or name a Python \
             that has them with PI_PYTHON"
        );
        return;
    };
    let (folder, graph) = (Folder::new(), masked());
    let model = folder.model(&graph);
    let check = |arguments: &[&str]| {
        let output = Command::new(&python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/onnx-check"))
            .args(["--pi-compile", env!("CARGO_BIN_EXE_pi-compile"), &model])
            .args(arguments)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), text.concat())
    };
    let (status, text) = check(&["--calibration", "synthetic"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(
        text.contains("stem.act") && text.contains("equal: "),
        "{text}"
    );
    // A tolerance that no arithmetic in another order keeps.
    let (status, text) = check(&["--tolerance", "0"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("first difference: "), "{text}");
    // A mask that onnxruntime knows nothing of: the first tensor behind it is found.
    let kinds = vec![0; 384];
    let view = TensorView::new(Dtype::U8, vec![6, 8, 8], &kinds).unwrap();
    let masks = folder.at("masks.safetensors");
    let bytes = safetensors::serialize([("stem.act.kinds", view)], None).unwrap();
    fs::write(&masks, bytes).unwrap();
    folder.model(&plain());
    let (status, text) = check(&["--", "--masks", &masks]);
    assert_eq!(status, Some(1), "{text}");
    assert!(
        text.contains("first difference: stem.act, made by stem.act (Relu)"),
        "{text}"
    );
    let (status, text) = check(&["--input", "absent.npy"]);
    assert_eq!(status, Some(2), "{text}");
}
