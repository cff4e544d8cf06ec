//! Networks that read no pictures, from an ONNX file and files of values to private answers: a
//! row of a table, whose columns have units of their own, and a signal of several channels. Client
//! and server are the real ones, over the loopback device; the oracles are the float network and
//! the exact interpreter.

use pi_compiler::cost::evaluate::compare;
use pi_compiler::examples::{Data, Examples, Reads};
use pi_compiler::{Compiled, Options, compile, emit};
use pi_ir::artifact::{ARTIFACT_NAME, WEIGHTS_NAME};
use pi_ir::interpret::{Interpreter, float, quantise};
use pi_ir::value_file::{Array, Column};
use pi_ir::{Graph, Input, Preprocessing, Reveal};
use pi_onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use pi_runtime::client::{Client, Patience, TrustOptions};
use pi_runtime::input_file::InputFile;
use pi_runtime::server::{Server, ServerOptions};
use prost::Message;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// A number from -1 to 1.
fn unit(rng: &mut ChaCha20Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0
}

fn weights(name: &str, dims: &[i64], rng: &mut ChaCha20Rng) -> TensorProto {
    let inputs: i64 = dims[1..].iter().product::<i64>().max(1);
    let scale = (3.0 / inputs as f64).sqrt();
    let values: Vec<f32> = (0..dims.iter().product::<i64>())
        .map(|_| (unit(rng) * scale) as f32)
        .collect();
    TensorProto::floats(name, dims, values)
}

/// The reach of each column, and its centre: a fraction, an income, a year, a temperature.
const COLUMNS: [(f64, f64); 4] = [
    (0.0, 0.3),
    (60_000.0, 55_000.0),
    (1990.0, 30.0),
    (5.0, 25.0),
];

/// A network of one hidden layer that normalises its columns itself.
fn table() -> ModelProto {
    let rng = &mut ChaCha20Rng::seed_from_u64(3);
    let column = |name, of: fn(&(f64, f64)) -> f64| {
        TensorProto::floats(name, &[4], COLUMNS.iter().map(|c| of(c) as f32))
    };
    let graph = GraphProto {
        name: None,
        node: vec![
            NodeProto::of("Sub", "row mean c", &[]),
            NodeProto::of("Div", "c std n", &[]),
            NodeProto::of("MatMul", "n w1 h", &[]),
            NodeProto::of("Add", "h b1 s", &[]),
            NodeProto::of("Relu", "s r", &[]),
            NodeProto::of("MatMul", "r w2 logits", &[]),
        ],
        initializer: vec![
            column("mean", |c| c.0),
            column("std", |c| c.1),
            weights("w1", &[4, 16], rng),
            weights("b1", &[16], rng),
            weights("w2", &[16, 3], rng),
        ],
        input: vec![ValueInfoProto::of("row", &[None, Some(4)])],
        output: vec![ValueInfoProto::of("logits", &[None, Some(3)])],
    };
    ModelProto::of(graph, 17)
}

/// The same network without its normalisation: what it reads has the units of the table.
fn raw_table() -> ModelProto {
    let mut model = table();
    let graph = model.graph.as_mut().expect("it has one");
    graph.node.drain(..2);
    graph.node[0].input[0] = "row".into();
    // The first layer takes the normalisation in: w / std, and b - mean w / std.
    let mut bias = graph.initializer[3].float_data.clone();
    let weight = &mut graph.initializer[2].float_data;
    for (row, &(mean, std)) in weight.chunks_exact_mut(16).zip(&COLUMNS) {
        for (weight, bias) in row.iter_mut().zip(&mut bias) {
            *weight /= std as f32;
            *bias -= *weight * mean as f32;
        }
    }
    graph.initializer[3].float_data = bias;
    graph.initializer.drain(..2);
    model
}

/// Two convolutions over a signal of 12 channels, in millivolts.
fn signal() -> ModelProto {
    let rng = &mut ChaCha20Rng::seed_from_u64(4);
    let graph = GraphProto {
        name: None,
        node: vec![
            NodeProto::of("Conv", "ecg w1 c1", &[("pads", &[2, 2]), ("strides", &[2])]),
            NodeProto::of("Relu", "c1 r1", &[]),
            NodeProto::of("Conv", "r1 w2 c2", &[("strides", &[2])]),
            NodeProto::of("Relu", "c2 r2", &[]),
            NodeProto::of("GlobalAveragePool", "r2 p", &[]),
            NodeProto::of("Flatten", "p f", &[]),
            NodeProto::of("MatMul", "f d logits", &[]),
        ],
        initializer: vec![
            weights("w1", &[8, 12, 5], rng),
            weights("w2", &[8, 8, 3], rng),
            weights("d", &[8, 5], rng),
        ],
        input: vec![ValueInfoProto::of("ecg", &[None, Some(12), Some(40)])],
        output: vec![ValueInfoProto::of("logits", &[None, Some(5)])],
    };
    ModelProto::of(graph, 17)
}

fn import(model: &ModelProto, directory: &Path) -> Graph {
    let path = directory.join("mine.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    let import = pi_onnx::read(&path, &pi_onnx::Options::default()).unwrap();
    assert!(import.graph.preprocessing.is_values());
    import.graph
}

/// Compiles on examples from a file. Fixed point gives the float network's answers.
fn compiled(graph: &Graph, data: &Data<'_>) -> (Compiled, Examples) {
    let examples = Examples::read(data, &Reads::of(graph).unwrap(), 512).unwrap();
    let options = Options {
        batches: Vec::new(),
        reveal: Reveal::Logits,
        ..Options::default()
    };
    let compiled = compile(graph, &examples, &options).unwrap();
    let found = compare(graph, &compiled.circuit, &compiled.weights, &examples).unwrap();
    assert!(
        found.agree == found.images && found.max_difference < 0.1,
        "{found:?}"
    );
    (compiled, examples)
}

/// Serves the model, and asks it about an example of a file: the answer is the exact
/// interpreter's, and near the float network's.
async fn ask(graph: &Graph, compiled: &Compiled, file: &Path, row: Option<usize>) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (artifact, weights) = emit::files(compiled, [7; 32], None, "");
    fs::write(at(ARTIFACT_NAME), artifact.encode()).unwrap();
    fs::write(at(WEIGHTS_NAME), weights.encode()).unwrap();
    let server = Server::start(&ServerOptions {
        memory: 4 << 30,
        bound: false,
        ..ServerOptions::new(directory.path(), at("server"))
    })
    .unwrap();
    let address = server.address().unwrap().to_string();
    let trust = TrustOptions {
        fingerprint: Some(server.fingerprint()),
        ..TrustOptions::default()
    };
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(server.run(stopped));

    let patience = Patience {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(120),
    };
    let client = Client::open(&at("client"), patience).unwrap().unbound();
    let mut connection = client.connect(&address, &trust).await.unwrap();
    let (model, _) = connection.model().await.unwrap();
    let (setup, _) = connection.setup().await.unwrap();
    let prepared = connection.prepare(&model, &setup, 1, |_| {}).await;
    prepared.unwrap();
    let circuit = &model.artifact().circuit;
    let file = InputFile::open(file, None).unwrap();
    let asked = file.for_model(circuit, row).unwrap().input;
    let input = quantise(circuit, &asked).unwrap();
    let (id, _) = connection.next_bundle().await.unwrap();
    let answer = connection.infer(&model, &id, &input, true).await.unwrap();
    let trace = answer.trace.as_ref().unwrap();
    let interpreter = Interpreter::new(circuit, &weights.weights).unwrap();
    let exact = interpreter.exact(&input, trace).unwrap();
    let logits = answer.answer.logits().unwrap();
    assert_eq!(logits, exact.logits);
    let reals = graph.preprocessing.reals_of(&asked).unwrap();
    let scale = f64::from(answer.output_frac_bits).exp2();
    for (&private, real) in logits.iter().zip(float(graph, &reals).unwrap()) {
        let private = private as f64 / scale;
        assert!((private - f64::from(real)).abs() < 0.1, "{private} {real}");
    }
    connection.close().await;
    stop.send_replace(true);
    serving.await.unwrap();
}

/// A table of people with a column of labels, and the label's column named.
fn write_table(path: &Path, rows: usize) {
    let rng = &mut ChaCha20Rng::seed_from_u64(5);
    let mut text = String::from("share,income,year,class,temperature\n");
    for row in 0..rows {
        let [a, b, c, d] = COLUMNS.map(|(centre, reach)| centre + reach * unit(rng));
        text.push_str(&format!("{a:.4},{b:.0},{c:.0},{},{d:.1}\n", row % 3));
    }
    fs::write(path, text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_table_gets_a_private_answer() {
    let directory = tempfile::tempdir().unwrap();
    let table_file = directory.path().join("train.csv");
    write_table(&table_file, 300);
    let label_column = Column::Name("class".into());
    let data = Data {
        path: &table_file,
        labels: None,
        label_column: Some(&label_column),
    };
    let row = directory.path().join("row.csv");
    fs::write(&row, "0.12,31000,2004,-3.5\n").unwrap();
    // Normalised by the network or not, columns of all sizes keep their bits.
    let (own, raw) = (
        import(&table(), directory.path()),
        import(&raw_table(), directory.path()),
    );
    for graph in [&own, &raw] {
        let (compiled, examples) = compiled(graph, &data);
        assert_eq!(examples.labels[..4], [0, 1, 2, 0]);
        ask(graph, &compiled, &row, None).await;
    }
    let Preprocessing::Values { std, .. } = &raw.preprocessing else {
        panic!("a row has real values");
    };
    assert_eq!(std, &[1.0; 4]);

    // An income ten times as large as any is refused by name, and so is what is no number.
    let (compiled, _) = compiled(&own, &data);
    for (index, value) in [(1, 1.1e6), (2, 20.0), (0, f64::NAN)] {
        let mut values = vec![0.1, 31_000.0, 2004.0, 20.0];
        values[index] = value;
        let error = quantise(&compiled.circuit, &Input::Values(values)).unwrap_err();
        let error = error.to_string();
        let says = format!("value {index} is {value}");
        assert!(error.contains(&says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_of_twelve_channels_gets_a_private_answer() {
    let directory = tempfile::tempdir().unwrap();
    let rng = &mut ChaCha20Rng::seed_from_u64(6);
    let waves: Vec<u8> = (0..60 * 12 * 40)
        .map(|i| {
            let phase = f64::from(i % 40) / 40.0 * std::f64::consts::TAU;
            let channel = f64::from(i / 40 % 12);
            1.5 * (phase * (1.0 + channel / 3.0)).sin() + 0.3 * unit(rng)
        })
        .flat_map(|value| (value as f32).to_le_bytes())
        .collect();
    let path = directory.path().join("train.npy");
    fs::write(&path, Array::file("<f4", &[60, 12, 40], &waves)).unwrap();
    let labels = directory.path().join("labels.npy");
    let classes: Vec<u8> = (0..60).map(|i| i % 5).collect();
    fs::write(&labels, Array::file("|u1", &[60], &classes)).unwrap();
    let graph = import(&signal(), directory.path());
    let data = Data {
        path: &path,
        labels: Some(&labels),
        label_column: None,
    };
    let (compiled, examples) = compiled(&graph, &data);
    assert_eq!(examples.labels[..6], [0, 1, 2, 3, 4, 0]);
    ask(&graph, &compiled, &path, Some(7)).await;
}
