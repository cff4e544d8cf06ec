//! Masks from a file beside a model.

use pi_ir::interpret::float;
use pi_ir::{ActivationKind, Graph, Op};
use pi_onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use pi_onnx::{Error, Masks, Options, parse};
use prost::Message;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A tensor of a file: name, type, shape, bytes.
type Entry = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn file(entries: &[Entry]) -> Vec<u8> {
    let views = entries.iter().map(|(name, kind, shape, bytes)| {
        (*name, TensorView::new(*kind, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn kinds(name: &'static str, shape: &[usize], values: &[u8]) -> Entry {
    (name, Dtype::U8, shape.to_vec(), values.to_vec())
}

fn coefficients(name: &'static str, rows: &[[f32; 3]]) -> Entry {
    let bytes = rows.as_flattened().iter().flat_map(|v| v.to_le_bytes());
    (name, Dtype::F32, vec![rows.len(), 3], bytes.collect())
}

fn numbers(name: &str, dims: &[i64]) -> TensorProto {
    let count = dims.iter().product::<i64>();
    let values = (0..count).map(|i| (i * 7 % 11) as f32 / 6.0 - 0.8);
    TensorProto::floats(name, dims, values)
}

/// Two convolutions, each with a Relu, and a dense layer with a third.
fn model() -> Vec<u8> {
    let mut nodes = vec![
        NodeProto::of("Conv", "x w c1", &[]),
        NodeProto::of("Relu", "c1 /one/Relu_output_0", &[]),
        NodeProto::of("Conv", "/one/Relu_output_0 v c2", &[]),
        NodeProto::of("Clip", "c2 c3", &[]),
        NodeProto::of("Relu", "c3 /two/Relu_output_0", &[]),
        NodeProto::of("Flatten", "/two/Relu_output_0 f", &[]),
        NodeProto::of("Gemm", "f d g", &[]),
        NodeProto::of("Relu", "g y", &[]),
        NodeProto::of("Relu", "g unused", &[]),
    ];
    nodes[1].name = Some("/one/Relu".into());
    let graph = GraphProto {
        node: nodes,
        initializer: vec![
            numbers("w", &[2, 1, 2, 2]),
            numbers("v", &[3, 2, 1, 2]),
            numbers("d", &[6, 4]),
        ],
        input: vec![ValueInfoProto::of("x", &[1, 1, 3, 3].map(Some))],
        output: vec![ValueInfoProto::of("y", &[1, 4].map(Some))],
        ..GraphProto::default()
    };
    ModelProto::of(graph, 13).encode_to_vec()
}

fn import(entries: &[Entry]) -> Result<Graph, Error> {
    let options = Options {
        masks: Some(Masks::parse(&file(entries))?),
        ..Options::default()
    };
    Ok(parse(&model(), "test", &options)?.graph)
}

fn refusal(entries: &[Entry]) -> String {
    match import(entries) {
        Ok(_) => panic!("imported"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn elements_are_of_the_kinds_that_the_file_says() {
    let one = [0, 1, 2, 1, 2, 2, 0, 1];
    let abc = [[0.5, -0.25, 0.1], [-0.3, 0.8, 0.2]];
    let graph = import(&[
        kinds("/one/Relu_output_0.kinds", &[2, 2, 2], &one),
        coefficients("/one/Relu_output_0.coefficients", &abc),
        kinds("y.kinds", &[4], &[0, 1, 1, 2]),
        coefficients("y.coefficients", &[[1.0, 2.0, 3.0]; 4]),
    ]);
    let graph = graph.unwrap();
    let sites: Vec<&[ActivationKind]> = graph
        .nodes
        .iter()
        .filter_map(|node| match &node.op {
            Op::Activation { kinds, .. } => Some(&kinds[..]),
            _ => None,
        })
        .collect();
    use ActivationKind::{Identity, Polynomial, Relu};
    let kind = |&kind: &u8| [Identity, Relu, Polynomial][usize::from(kind)];
    let one: Vec<ActivationKind> = one.iter().map(kind).collect();
    assert_eq!(sites[0], one);
    // Relus that the file does not name stay.
    assert_eq!(sites[1], [Relu; 6]);
    assert_eq!(sites[2], [Identity, Relu, Relu, Polynomial]);
    // Against a network without any mask, whose first Relu is taken by hand.
    let plain = parse(&model(), "test", &Options::default()).unwrap().graph;
    let x: Vec<f32> = (0..9).map(|i| i as f32 / 9.0 - 0.4).collect();
    let values = pi_ir::interpret::float_values(&plain, &x).unwrap();
    let masked = pi_ir::interpret::float_values(&graph, &x).unwrap();
    for (index, kind) in one.iter().enumerate() {
        let (x, [a, b, c]) = (values[1][index], abc[index / 4]);
        let expected = match kind {
            Identity => x,
            Relu => x.max(0.0),
            Polynomial => a * x * x + b * x + c,
        };
        assert!(
            (masked[2][index] - expected).abs() < 1e-6,
            "element {index}"
        );
    }
    assert!(float(&graph, &x).unwrap() != float(&plain, &x).unwrap());
}

#[test]
fn a_file_that_names_nothing_changes_nothing() {
    let plain = parse(&model(), "test", &Options::default()).unwrap();
    assert_eq!(import(&[]).unwrap(), plain.graph);
    let ones = kinds("/two/Relu_output_0.kinds", &[3, 1, 2], &[1; 6]);
    assert_eq!(import(&[ones]).unwrap(), plain.graph);
}

#[test]
fn all_faults_of_a_file_are_told_at_once() {
    let faults = refusal(&[
        kinds("/one/relu.kinds", &[1], &[1]),
        kinds("/one/Relu.kinds", &[2, 2, 2], &[1; 8]),
        kinds("/one/Relu_output_0.kinds", &[2, 2], &[1; 4]),
        kinds("/two/Relu_output_0.kinds", &[3, 1, 2], &[1, 1, 1, 2, 0, 1]),
        kinds("y.kinds", &[4], &[0, 1, 3, 0]),
        ("c3.kinds", Dtype::F32, vec![1], vec![0; 4]),
        coefficients("g.coefficients", &[[0.0; 3]]),
        kinds("unused.kinds", &[4], &[1; 4]),
        coefficients("c1.coefficients", &[[0.0, f32::NAN, 0.0]]),
        ("c2.coefficients", Dtype::F32, vec![3], vec![0; 12]),
        kinds("mask", &[1], &[1]),
    ]);
    for part in [
        "/one/relu (masks): the model has no such tensor; outputs of Relus with similar names: \
         /one/Relu_output_0, ",
        "/one/Relu (masks): this is the name of a node: the file names its output, \
         /one/Relu_output_0",
        "/one/Relu (Relu): its tensor of kinds has [2, 2] elements; [2, 2, 2] are expected",
        "/two/Relu_output_0.kinds (masks): /two/Relu_output_0.coefficients is missing",
        "y.kinds (masks): element 2 is 3: a kind is 0 (left as it is), 1 (ReLU) or 2",
        "c3.kinds (masks): its type is F32; U8 is expected",
        "c3 (masks): Clip makes this tensor: only the output of a Relu takes a mask",
        "g.coefficients (masks): g.kinds is missing",
        "unused (masks): the result does not need this Relu",
        "c1.coefficients (masks): coefficient b of channel 0 is NaN",
        "c2.coefficients (masks): its shape is [3]; [channels, 3] is expected",
        "mask (masks): tensors are called NAME.kinds and NAME.coefficients",
    ] {
        assert!(faults.contains(part), "{part}\n{faults}");
    }
}

#[test]
fn coefficients_are_those_of_the_channels() {
    let faults = refusal(&[
        kinds("/one/Relu_output_0.kinds", &[2, 2, 2], &[2; 8]),
        coefficients("/one/Relu_output_0.coefficients", &[[1.0; 3]; 4]),
    ]);
    assert!(
        faults.contains("those of 4 channels; 2 are expected"),
        "{faults}"
    );
}

#[test]
fn what_is_no_file_of_masks_is_refused() {
    let valid = file(&[kinds("y.kinds", &[4], &[1; 4])]);
    let mut long = valid.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for bytes in [
        &[][..],
        &valid[..valid.len() - 1],
        &valid[..20],
        &long,
        b"PK\x03\x04 and so on",
    ] {
        let why = Masks::parse(bytes).unwrap_err().to_string();
        assert!(
            why.starts_with("these are no masks in safetensors: "),
            "{why}"
        );
    }
    let absent = Masks::read(std::path::Path::new("absent.safetensors"));
    assert!(
        absent
            .unwrap_err()
            .to_string()
            .contains("cannot read absent.safetensors")
    );
}
