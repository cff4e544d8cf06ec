//! Cases that users of such software reported in public, as far as the compiler has a part in them:
//! small models from ONNX to fixed point, against the float network. (Those of the import alone are
//! in `compiler/onnx/tests/suite/cases.rs`.)

use pi_compiler::examples::Examples;
use pi_compiler::pass::quantise::{Precision, WeightBits};
use pi_compiler::{Compiled, Options, Refused, compile};
use pi_ir::interpret::{float, plain, quantise};
use pi_ir::{Graph, Input, Op, Reveal, Shape};
use pi_onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use prost::Message;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

type Lists<'a> = &'a [(&'a str, &'a [i64])];

/// Uniform numbers from `-size` to `size`.
fn drawn(name: &str, dims: &[i64], size: f32, seed: u64) -> TensorProto {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let count = dims.iter().product::<i64>();
    let mut uniform = || ((rng.next_u32() % 2001) as f32 / 1000.0 - 1.0) * size;
    TensorProto::floats(name, dims, (0..count).map(|_| uniform()))
}

/// A model of `x`: operators with their inputs and output, `"x w y"`.
fn model(input: [i64; 4], nodes: &[(&str, &str, Lists<'_>)], tensors: Vec<TensorProto>) -> Graph {
    let nodes = nodes
        .iter()
        .map(|(operator, line, lists)| NodeProto::of(operator, line, lists));
    let node: Vec<NodeProto> = nodes.collect();
    let last = node.last().map_or("x", |node| &node.output[0]).to_owned();
    let graph = GraphProto {
        name: None,
        input: vec![ValueInfoProto::of("x", &input.map(Some))],
        output: vec![ValueInfoProto::of(&last, &[])],
        node,
        initializer: tensors,
    };
    let bytes = ModelProto::of(graph, 17).encode_to_vec();
    let import = pi_onnx::parse(&bytes, "case", &pi_onnx::Options::default());
    import.unwrap_or_else(|error| panic!("{error}")).graph
}

fn shape(graph: &Graph) -> Shape {
    match graph.nodes[0].op {
        Op::Input { shape } => shape,
        _ => panic!("node 0 is the input"),
    }
}

/// Pictures of noise, of one value each, and drawn ones.
fn pictures(shape: Shape) -> Examples {
    let mut images = Examples::synthetic(shape, 6, 3);
    let mut rng = ChaCha20Rng::seed_from_u64(4);
    for value in [0, 255] {
        images.inputs.push(Input::Bytes(vec![value; shape.len()]));
        let noise = (0..shape.len()).map(|_| (rng.next_u32() >> 24) as u8);
        images.inputs.push(Input::Bytes(noise.collect()));
    }
    images
}

fn small(graph: &Graph) -> Result<Compiled, Refused> {
    let options = Options {
        batches: Vec::new(),
        reveal: Reveal::Logits,
        precision: Precision {
            weight_bits: WeightBits::Of(12),
            activation_bits: 14,
            ..Precision::default()
        },
        ..Options::default()
    };
    compile(graph, &pictures(shape(graph)), &options)
}

/// Logits of the float network and in fixed point, for every picture.
fn both(graph: &Graph, compiled: &Compiled) -> Vec<(Vec<f32>, Vec<f64>)> {
    let scale = f64::from(compiled.circuit.output().0).exp2();
    let images = pictures(shape(graph));
    let answers = images.inputs.iter().map(|pixels| {
        let real = float(graph, &graph.preprocessing.reals_of(pixels).unwrap()).unwrap();
        let input = quantise(&compiled.circuit, pixels).unwrap();
        let fixed = plain(&compiled.circuit, &compiled.weights, &input).unwrap();
        let fixed = fixed.logits.iter().map(|&logit| logit as f64 / scale);
        (real, fixed.collect())
    });
    answers.collect()
}

/// Twelve bits of weights and fourteen of activations are off by less than a percent of the largest
/// logit.
fn assert_near(graph: &Graph, compiled: &Compiled) {
    let answers = both(graph, compiled);
    let largest = answers
        .iter()
        .flat_map(|(real, _)| real)
        .fold(0.0f32, |m, v| m.max(v.abs()));
    for (real, fixed) in &answers {
        for (real, fixed) in real.iter().zip(fixed) {
            let difference = (f64::from(*real) - fixed).abs();
            assert!(
                difference <= 0.01 * f64::from(largest),
                "{real}, in fixed point {fixed}"
            );
        }
    }
}

#[test]
fn convolutions_without_padding_give_what_they_should() {
    for (input, weight) in [
        ([1, 1, 28, 28], [16, 1, 5, 5]),
        ([1, 3, 10, 10], [4, 3, 3, 3]),
        ([1, 1, 9, 9], [2, 1, 9, 9]),
    ] {
        let side = input[2] - weight[2] + 1;
        let graph = model(
            input,
            &[("Conv", "x w b c", &[]), ("Flatten", "c y", &[])],
            vec![
                drawn("w", &weight, 1.0, 1),
                drawn("b", &[weight[0]], 1.0, 2),
            ],
        );
        let compiled = small(&graph).unwrap();
        assert_eq!(
            compiled.circuit.layers.last().unwrap().shape.len() as i64,
            weight[0] * side * side
        );
        assert_near(&graph, &compiled);
    }
}

#[test]
fn filters_of_zeros_give_their_biases() {
    let mut zeros = drawn("w", &[4, 1, 3, 3], 1.0, 1);
    zeros.float_data[9..18].fill(0.0);
    let mut rows = drawn("d", &[3, 144], 0.1, 2);
    rows.float_data[144..288].fill(0.0);
    let bias = TensorProto::floats("e", &[3], [0.5, 0.75, -0.25]);
    let nodes: [(&str, &str, Lists<'_>); 6] = [
        ("Conv", "x w b c", &[]),
        ("Relu", "c r", &[]),
        ("Flatten", "r f", &[]),
        ("Transpose", "d t", &[("perm", &[1, 0])]),
        ("MatMul", "f t m", &[]),
        ("Add", "m e y", &[]),
    ];
    let graph = model(
        [1, 1, 8, 8],
        &nodes,
        vec![zeros, drawn("b", &[4], 0.5, 3), rows, bias],
    );
    let compiled = small(&graph).unwrap();
    assert_near(&graph, &compiled);
    for (_, fixed) in both(&graph, &compiled) {
        assert!((fixed[1] - 0.75).abs() < 0.01, "{fixed:?}");
    }
}

/// Long sums of large factors: 512 and 4097 products, and weights of any size.
#[test]
fn dense_layers_are_right_at_any_length_and_size() {
    for (inputs, outputs) in [(512, 10), (4097, 1), (4096, 2)] {
        for size in [1.0, 1e6, 1e-6, 1e20, 1e-20] {
            let graph = model(
                [1, inputs, 1, 1],
                &[("Flatten", "x f", &[]), ("MatMul", "f w y", &[])],
                vec![drawn("w", &[inputs, outputs], size, 7)],
            );
            match small(&graph) {
                Ok(compiled) => assert_near(&graph, &compiled),
                Err(Refused(faults)) => {
                    assert!(size != 1.0, "{faults:?}");
                    let named = faults.iter().all(|fault| !fault.node.is_empty());
                    assert!(named, "{inputs} to {outputs}, size {size}: {faults:?}");
                }
            }
        }
    }
}

#[test]
fn different_pictures_have_different_answers_and_one_of_zeros_is_finite() {
    let list = |name: &str, values: [f32; 4]| TensorProto::floats(name, &[4], values);
    let pool: Lists<'_> = &[
        ("kernel_shape", &[3, 3]),
        ("strides", &[2, 2]),
        ("pads", &[1, 1, 1, 1]),
    ];
    let graph = model(
        [1, 2, 12, 12],
        &[
            ("Conv", "x w c", &[("pads", &[1, 1, 1, 1])]),
            ("BatchNormalization", "c g h m v n", &[]),
            ("PRelu", "n s p", &[]),
            ("AveragePool", "p a", pool),
            ("Conv", "a k l", &[]),
            ("GlobalAveragePool", "l q", &[]),
            ("Flatten", "q y", &[]),
        ],
        vec![
            drawn("w", &[4, 2, 3, 3], 0.5, 1),
            drawn("k", &[5, 4, 3, 3], 0.5, 2),
            list("g", [1.5, -0.5, 2.0, 0.75]),
            list("h", [0.1, 0.2, -0.3, 0.0]),
            list("m", [0.5, -1.0, 0.25, 2.0]),
            list("v", [4.0, 0.25, 1.5, 0.01]),
            TensorProto::floats("s", &[4, 1, 1], [0.25, 0.1, -0.5, 0.0]),
        ],
    );
    let compiled = small(&graph).unwrap();
    assert_near(&graph, &compiled);
    let answers = both(&graph, &compiled);
    for (index, (_, fixed)) in answers.iter().enumerate() {
        assert!(
            answers[..index].iter().all(|(_, other)| other != fixed),
            "picture {index}"
        );
    }
}

/// A padded mean behind a shuffle of channels: what the
/// import makes of it is what the compiler takes.
#[test]
fn shuffled_channels_and_padded_means_reach_fixed_point() {
    let same: Lists<'_> = &[("kernel_shape", &[3, 3]), ("pads", &[1, 1, 1, 1])];
    let graph = model(
        [1, 1, 8, 8],
        &[
            ("Conv", "x w c", &[("pads", &[1, 1, 1, 1])]),
            ("Relu", "c r", &[]),
            ("Reshape", "r apart s1", &[]),
            ("Transpose", "s1 s2", &[("perm", &[0, 2, 1, 3, 4])]),
            ("Reshape", "s2 whole s", &[]),
            ("AveragePool", "s a", same),
            ("Conv", "a k l", &[]),
            ("Relu", "l q", &[]),
            ("Flatten", "q f", &[]),
            ("MatMul", "f d y", &[]),
        ],
        vec![
            drawn("w", &[6, 1, 3, 3], 0.5, 1),
            drawn("k", &[4, 6, 3, 3], 0.3, 2),
            drawn("d", &[144, 3], 0.1, 3),
            TensorProto::ints("apart", &[1, 2, 3, 8, 8]),
            TensorProto::ints("whole", &[1, 6, 8, 8]),
        ],
    );
    let compiled = small(&graph).unwrap();
    assert_near(&graph, &compiled);
}

/// Windows that lie in padding with one element or with more, and dilated ones: in the circuit, no
/// element reads nothing.
#[test]
fn maxima_at_borders_compile() {
    let pools: [&[(&str, &[i64])]; 4] = [
        &[
            ("kernel_shape", &[3, 3]),
            ("strides", &[2, 2]),
            ("pads", &[1, 1, 1, 1]),
        ],
        &[
            ("kernel_shape", &[5, 5]),
            ("strides", &[1, 1]),
            ("pads", &[2, 2, 2, 2]),
        ],
        &[
            ("kernel_shape", &[3, 2]),
            ("dilations", &[2, 3]),
            ("pads", &[2, 0, 2, 3]),
        ],
        &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])],
    ];
    for pool in pools {
        let graph = model(
            [1, 2, 9, 8],
            &[
                ("Conv", "x w b c", &[("pads", &[1, 1, 1, 1])]),
                ("Relu", "c r", &[]),
                ("MaxPool", "r m", pool),
                ("Conv", "m v d z", &[]),
                ("GlobalAveragePool", "z g", &[]),
                ("Flatten", "g y", &[]),
            ],
            vec![
                drawn("w", &[4, 2, 3, 3], 1.0, 1),
                drawn("b", &[4], 1.0, 2),
                drawn("v", &[3, 4, 1, 1], 1.0, 3),
                drawn("d", &[3], 1.0, 4),
            ],
        );
        let compiled = small(&graph).unwrap();
        assert_near(&graph, &compiled);
    }
}
