//! Hostile bytes for the importer of ONNX models: an error, or a graph without faults.

use pi_fuzz::edited;
use pi_ir::verify;
use pi_onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use pi_onnx::{Options, parse};
use prost::Message;

fn tensor(name: &str, dims: &[i64]) -> TensorProto {
    let values = (0..dims.iter().product()).map(|i: i64| i as f32 / 8.0 - 1.0);
    TensorProto::floats(name, dims, values)
}

/// A small network with operators of all kinds.
fn model() -> Vec<u8> {
    encoded(
        vec![
            NodeProto::of("Conv", "x w c", &[("pads", &[1, 1, 1, 1])]),
            NodeProto::of("BatchNormalization", "c s s s s n", &[]),
            NodeProto::of("Relu", "n r", &[]),
            NodeProto::of("Where", "m r n a", &[]),
            NodeProto::of(
                "MaxPool",
                "r p",
                &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])],
            ),
            NodeProto::of(
                "AveragePool",
                "a q",
                &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])],
            ),
            NodeProto::of("Concat", "p q k", &[]),
            NodeProto::of("Mul", "k k t", &[]),
            NodeProto::of("Transpose", "t l", &[("perm", &[0, 2, 3, 1])]),
            NodeProto::of("Reshape", "l f v", &[]),
            NodeProto::of("Gemm", "v d b g", &[]),
            NodeProto::of("Softmax", "g y", &[]),
        ],
        vec![
            tensor("w", &[2, 1, 3, 3]),
            TensorProto::floats("s", &[2], [0.5, 1.5]),
            TensorProto::flags("m", &[1, 2, 4, 4], (0..32).map(|i| i % 2 == 1)),
            TensorProto::ints("f", &[1, -1]),
            tensor("d", &[16, 3]),
            tensor("b", &[3]),
        ],
    )
}

/// Channels that are split, cut and shuffled, and windows at borders.
fn rearranging_model() -> Vec<u8> {
    let split = NodeProto {
        output: vec!["a".into(), "e".into()],
        ..NodeProto::of("Split", "s a", &[])
    };
    encoded(
        vec![
            NodeProto::of("Conv", "x w c", &[]),
            NodeProto::of("Reshape", "c apart p", &[]),
            NodeProto::of("Transpose", "p q", &[("perm", &[0, 2, 1, 3, 4])]),
            NodeProto::of("Reshape", "q whole r", &[]),
            NodeProto::of("Slice", "r one four one u", &[]),
            NodeProto::of("Transpose", "u s", &[("perm", &[1, 0, 2, 3])]),
            split,
            NodeProto::of("Relu", "e g", &[]),
            NodeProto::of("Transpose", "g g1", &[("perm", &[1, 0, 2, 3])]),
            NodeProto::of("Transpose", "a a1", &[("perm", &[1, 0, 2, 3])]),
            NodeProto::of("Concat", "g1 a1 j", &[]),
            NodeProto::of("Gather", "j pick k", &[]),
            NodeProto::of(
                "AveragePool",
                "k m",
                &[("kernel_shape", &[3, 3]), ("pads", &[1, 1, 1, 1])],
            ),
            NodeProto::of("ReduceSum", "m axes n", &[]),
            NodeProto::of("Flatten", "n o", &[]),
            NodeProto::of("MatMul", "o d y", &[]),
        ],
        vec![
            tensor("w", &[4, 1, 1, 1]),
            TensorProto::ints("apart", &[1, 2, 2, 4, 4]),
            TensorProto::ints("whole", &[1, 4, 4, 4]),
            TensorProto::ints("one", &[1]),
            TensorProto::ints("four", &[4]),
            TensorProto::ints("pick", &[0]),
            TensorProto::ints("axes", &[2, -1]),
            tensor("d", &[3, 3]),
        ],
    )
}

fn encoded(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> Vec<u8> {
    let graph = GraphProto {
        node,
        initializer,
        input: vec![ValueInfoProto::of("x", &[1, 1, 4, 4].map(Some))],
        output: vec![ValueInfoProto::of("y", &[1, 3].map(Some))],
    };
    ModelProto::of(graph, 18).encode_to_vec()
}

#[test]
fn onnx_importer_survives_any_bytes() {
    let valid = [model(), rearranging_model()];
    let options = Options::default();
    for model in &valid {
        parse(model, "valid", &options).expect("a model without faults");
    }
    bolero::check!().for_each(|input: &[u8]| {
        let _ = parse(input, "input", &options);
        for model in &valid {
            if let Ok(import) = parse(&edited(model, input), "edited", &options) {
                // What the verifier refuses (numbers that are not finite, say) it names.
                let _ = verify::graph(&import.graph);
            }
        }
    });
}
