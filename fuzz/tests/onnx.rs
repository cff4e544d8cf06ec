//! Hostile bytes for the importer of ONNX models, and for the masks beside them: an error, or a
//! graph without faults.

use pi_fuzz::edited;
use pi_ir::verify;
use pi_onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use pi_onnx::{Masks, Options, parse};
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
        ..GraphProto::default()
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

/// Masks of the model's activation, in safetensors: the length of a header, the header, the data.
fn masks() -> Vec<u8> {
    let header = r#"{"r.coefficients":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "r.kinds":{"dtype":"U8","shape":[2,4,4],"data_offsets":[24,56]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(
        [0.5f32, -1.0, 0.25, 0.0, 1.0, 2.0]
            .iter()
            .flat_map(|v| v.to_le_bytes()),
    );
    bytes.extend((0..32).map(|i| i % 3));
    bytes
}

#[test]
fn onnx_masks_survive_any_bytes() {
    let (model, valid) = (model(), masks());
    let masked = |bytes: &[u8]| {
        let masks = Masks::parse(bytes).ok()?;
        let options = Options {
            masks: Some(masks),
            ..Options::default()
        };
        parse(&model, "masked", &options).ok()
    };
    masked(&valid).expect("masks without faults");
    bolero::check!().for_each(|input: &[u8]| {
        let _ = Masks::parse(input);
        if let Some(import) = masked(&edited(&valid, input)) {
            assert_eq!(verify::graph(&import.graph), []);
        }
    });
}
