//! Graphs as ONNX models compute what they did, for the importer and for onnxruntime.

use pi_ir::builders::{Builder, ConvShape};
use pi_ir::interpret::float;
use pi_ir::random::{GraphOptions, graph};
use pi_ir::{ActivationKind, BatchNorm, Graph, Op, Padding, Preprocessing, Shape, Window, count};
use pi_onnx::proto::{ModelProto, data_type};
use pi_onnx::{Error, Options, parse, write};
use prost::Message;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::path::Path;
use std::process::Command;

fn input(graph: &Graph) -> Shape {
    match graph.nodes[0].op {
        Op::Input { shape } => shape,
        _ => panic!("node 0 is the input"),
    }
}

fn images(graph: &Graph, count: usize) -> Vec<Vec<u8>> {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut image = || {
        let mut pixels = vec![0; input(graph).len()];
        rng.fill_bytes(&mut pixels);
        pixels
    };
    (0..count).map(|_| image()).collect()
}

/// Both compute the same up to the order of sums: at most some hundreds of terms a node, over at
/// most some dozens of nodes.
fn assert_equal(graph: &Graph, other: &Graph, what: &str) {
    for pixels in images(graph, 3) {
        let of = |graph: &Graph| float(graph, &graph.preprocessing.reals(&pixels)).unwrap();
        close(&of(graph), &of(other), what);
    }
}

fn close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = a.iter().fold(1f32, |largest, v| largest.max(v.abs()));
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-4 * largest, "{what}: {a} {b}");
    }
}

fn imported(graph: &Graph) -> Graph {
    let bytes = write(graph).unwrap();
    let import = parse(&bytes, &graph.name, &Options::default());
    import
        .unwrap_or_else(|why| panic!("{}: {why}", graph.name))
        .graph
}

#[test]
fn random_graphs_come_back() {
    for seed in 0..150 {
        let graph = graph(seed, &GraphOptions::default());
        let back = imported(&graph);
        let what = format!("seed {seed}");
        assert_eq!(back.preprocessing, graph.preprocessing, "{what}");
        let relus = |graph: &Graph| count::graph_activations(graph).relu;
        assert_eq!(relus(&back), relus(&graph), "{what}");
        assert_equal(&graph, &back, &what);
    }
}

/// Every operation, with what a writer could get wrong: padding that differs from side to side,
/// windows that do not fit, all mixtures of kinds, norms with a dead channel before them, vectors
/// that are added to maps and read by windows, names with spaces.
fn all_of_it() -> Graph {
    let mut rng = ChaCha20Rng::seed_from_u64(11);
    let mut b = Builder::new("all of it", Shape::new(2, 9, 8), 3);
    b.preprocessing(Preprocessing::Channels {
        mean: vec![0.25, 0.1],
        std: vec![0.5, 0.3],
    });
    let conv = ConvShape {
        out_channels: 4,
        groups: 2,
        kernel: (3, 2),
        stride: (2, 1),
        padding: Padding {
            top: 2,
            left: 1,
            bottom: 0,
            right: 0,
        },
        bias: true,
    };
    let x = b.conv("first conv", pi_ir::NodeId(0), conv);
    let x = b.norm("norm", x);
    let mut kinds = |count: usize, choices: &[ActivationKind]| -> Vec<ActivationKind> {
        let pick = |word: u32| choices[word as usize % choices.len()];
        (0..count).map(|_| pick(rng.next_u32())).collect()
    };
    use ActivationKind::{Identity, Polynomial, Relu};
    let count = b.shape(x).len();
    let first = b.activation("act", x, kinds(count, &[Relu, Identity, Polynomial]));
    let next = b.conv("second", first, ConvShape::same(4, 3, 1));
    let sum = b.add("sum", next, first);
    let around = b.activation("around", sum, kinds(count, &[Relu, Identity, Polynomial]));
    let sum = b.add("round", around, sum);
    let second = b.activation("act.relu", sum, kinds(count, &[Relu, Polynomial]));
    let larger = b.max_of_pairs("larger", second);
    let beside = Window {
        kernel: (2, 1),
        stride: (1, 2),
        origin: (-1, 1),
        count: (b.shape(second).h, b.shape(second).w / 2),
    };
    let beside = b.push("beside", Op::WindowSum(beside), &[second]);
    let less = b.sub("less", larger, beside);
    let pool = b.pool("pool", less, (2, 3), (2, 2));
    let count = b.shape(pool).len();
    // A quartic, as the trainer writes it.
    let inner = b.activation("inner", pool, kinds(count, &[Polynomial]));
    let outer = b.activation("outer", inner, kinds(count, &[Polynomial]));
    let low = b.activation("low", pool, kinds(count, &[Polynomial]));
    let third = b.add("quartic", outer, low);
    let flat = b.flatten("flat", third);
    let dense = b.dense("dense", flat, 6);
    let vector = b.activation("vector", dense, kinds(6, &[Relu, Identity, Polynomial]));
    let window = b.conv("on a vector", vector, ConvShape::same(6, 1, 1));
    let both = b.add("both", vector, window);
    let plain = b.activation("plain", both, kinds(6, &[Relu]));
    let kept = b.activation("kept", plain, kinds(6, &[Identity]));
    let last = b.dense("last", kept, 3);
    let mut graph = b.finish(last);
    for node in &mut graph.nodes {
        match &mut node.op {
            Op::BatchNorm(norm) => {
                *norm = BatchNorm {
                    gamma: vec![0.7, 0.0, -1.2, 1.0],
                    beta: vec![0.1, 0.6, -0.2, 0.0],
                    mean: vec![0.2, 0.0, 0.1, 0.3],
                    var: vec![0.8, 1.5, 0.5, 2.0],
                    eps: 1e-3,
                };
            }
            Op::Activation { coefficients, .. } => {
                for (channel, abc) in coefficients.iter_mut().enumerate() {
                    *abc = [0.1 * channel as f32 - 0.2, 0.3, 0.4 - 0.1 * channel as f32];
                }
            }
            _ => {}
        }
    }
    graph.classes = ["one", "two, or \"three\"", "[vier]"]
        .map(str::to_owned)
        .to_vec();
    graph
}

#[test]
fn a_graph_of_everything_comes_back() {
    let graph = all_of_it();
    let back = imported(&graph);
    assert_equal(&graph, &back, "everything");
    assert_eq!(back.classes, graph.classes);
    assert_eq!(
        count::graph_activations(&back).relu,
        count::graph_activations(&graph).relu
    );
}

#[test]
fn images_standardised_by_themselves_come_back() {
    let mut b = Builder::new("by image", Shape::new(3, 6, 6), 5);
    b.preprocessing(Preprocessing::Image { floor: 20 });
    // A norm of the input must not become part of preprocessing that has no place for it.
    let norm = b.norm("norm", pi_ir::NodeId(0));
    let conv = b.conv("conv", norm, ConvShape::same(4, 3, 1));
    let relu = b.activation("relu", conv, vec![ActivationKind::Relu; 144]);
    let flat = b.flatten("flat", relu);
    let last = b.dense("last", flat, 4);
    let mut graph = b.finish(last);
    if let Op::BatchNorm(norm) = &mut graph.nodes[1].op {
        (norm.gamma, norm.beta) = (vec![0.5, 1.5, 2.0], vec![0.3, -0.2, 0.1]);
    }
    let back = imported(&graph);
    assert_eq!(back.preprocessing, graph.preprocessing);
    assert_equal(&graph, &back, "by image");
    let model = ModelProto::decode(&write(&graph).unwrap()[..]).unwrap();
    let text = model.doc_string.unwrap();
    assert!(text.contains("max(deviation, 20)"), "{text}");
}

#[test]
fn models_are_what_onnx_of_2020_reads() {
    let model = ModelProto::decode(&write(&all_of_it()).unwrap()[..]).unwrap();
    assert_eq!(model.ir_version, Some(7));
    assert_eq!(model.opset_import[0].version, Some(13));
    let graph = model.graph.unwrap();
    let mut names: Vec<&str> = graph.node.iter().map(|n| n.output[0].as_str()).collect();
    names.extend(graph.initializer.iter().filter_map(|t| t.name.as_deref()));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    let raw = graph.initializer.iter();
    assert!({ raw }.all(|t| t.raw_data.is_some() || t.data_type == Some(data_type::INT64)));
}

#[test]
fn faults_of_a_graph_are_all_named() {
    let mut graph = all_of_it();
    graph.nodes[1].name = String::new();
    if let Op::Activation { kinds, .. } = &mut graph.nodes[3].op {
        kinds.pop();
    }
    let Err(Error::Refused(faults)) = write(&graph) else {
        panic!("a graph with faults is written");
    };
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[1].to_string().contains("act"), "{}", faults[1]);
}

/// Runs a model on raw numbers of single precision, and writes the result in the same way.
const ONNXRUNTIME: &str = "
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
given = session.get_inputs()[0]
x = numpy.fromfile(sys.argv[2], numpy.float32).reshape([-1] + given.shape[1:])
session.run(None, {given.name: x})[0].astype(numpy.float32).tofile(sys.argv[3])
try:
    import onnx
    onnx.checker.check_model(onnx.load(sys.argv[1]), full_check=True)
except ImportError:
    pass
";

/// The Python that `PI_PYTHON` names, or that of the system, if it has onnxruntime.
fn python() -> Option<String> {
    let python = std::env::var("PI_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python)
        .args(["-c", "import onnxruntime, numpy"])
        .output();
    found
        .is_ok_and(|output| output.status.success())
        .then_some(python)
}

fn in_onnxruntime(python: &str, folder: &Path, graph: &Graph, images: &[f32]) -> Vec<f32> {
    let [model, x, y] = ["model.onnx", "x", "y"].map(|name| folder.join(name));
    std::fs::write(&model, write(graph).unwrap()).unwrap();
    let bytes: Vec<u8> = images.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(&x, bytes).unwrap();
    let run = Command::new(python)
        .args(["-c", ONNXRUNTIME])
        .args([&model, &x, &y])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{}: {text}", graph.name);
    let bytes = std::fs::read(&y).unwrap();
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[test]
fn onnxruntime_computes_what_graphs_do() {
    let Some(python) = python() else {
        eprintln!(
            "skipped: no onnxruntime here; `pip install onnxruntime onnx`, or name a Python that \
             has it with PI_PYTHON"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let random = (0..12).map(|seed| graph(seed, &GraphOptions::default()));
    for graph in random.chain([all_of_it()]) {
        // A batch of two, since models leave the batch open.
        let images = images(&graph, 2).into_iter();
        let images: Vec<Vec<f32>> = images.map(|i| graph.preprocessing.reals(&i)).collect();
        let theirs = in_onnxruntime(&python, folder.path(), &graph, &images.concat());
        let ours = images.iter().map(|image| float(&graph, image).unwrap());
        close(&ours.flatten().collect::<Vec<f32>>(), &theirs, &graph.name);
    }
}
