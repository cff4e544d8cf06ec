//! Hostile bytes for the importer of ONNX models: an error, or a graph without faults.

use pi_fuzz::edited;
use pi_ir::verify;
use pi_onnx::proto::{
    AttributeProto, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, TypeProtoTensor, ValueInfoProto, data_type,
};
use pi_onnx::{Options, parse};
use prost::Message;

fn tensor(name: &str, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(data_type::FLOAT),
        float_data: (0..dims.iter().product())
            .map(|i: i64| i as f32 / 8.0 - 1.0)
            .collect(),
        ..TensorProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        data_type: Some(data_type::INT64),
        int64_data: values.to_vec(),
        float_data: Vec::new(),
        ..tensor(name, &[values.len() as i64])
    }
}

fn node(operator: &str, line: &str, lists: &[(&str, &[i64])]) -> NodeProto {
    let mut words = line.split_whitespace().map(str::to_owned);
    let output = words.next_back().into_iter().collect();
    let attribute = lists.iter().map(|(name, list)| AttributeProto {
        name: Some((*name).into()),
        ints: list.to_vec(),
        ..AttributeProto::default()
    });
    NodeProto {
        op_type: Some(operator.into()),
        input: words.collect(),
        output,
        attribute: attribute.collect(),
        ..NodeProto::default()
    }
}

fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = dims.iter().map(|&dim| Dimension {
        dim_value: Some(dim),
        dim_param: None,
    });
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            tensor_type: Some(TypeProtoTensor {
                elem_type: Some(data_type::FLOAT),
                shape: Some(TensorShapeProto { dim: dim.collect() }),
            }),
        }),
    }
}

/// A small network with operators of all kinds.
fn model() -> Vec<u8> {
    let graph = GraphProto {
        node: vec![
            node("Conv", "x w c", &[("pads", &[1, 1, 1, 1])]),
            node("BatchNormalization", "c s s s s n", &[]),
            node("Relu", "n r", &[]),
            node("Where", "m r n a", &[]),
            node(
                "MaxPool",
                "r p",
                &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])],
            ),
            node(
                "AveragePool",
                "a q",
                &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])],
            ),
            node("Concat", "p q k", &[]),
            node("Mul", "k k t", &[]),
            node("Transpose", "t l", &[("perm", &[0, 2, 3, 1])]),
            node("Reshape", "l f v", &[]),
            node("Gemm", "v d b g", &[]),
            node("Softmax", "g y", &[]),
        ],
        initializer: vec![
            tensor("w", &[2, 1, 3, 3]),
            tensor("s", &[2]),
            TensorProto {
                data_type: Some(data_type::BOOL),
                raw_data: Some((0..32).map(|i| i % 2).collect()),
                float_data: Vec::new(),
                ..tensor("m", &[1, 2, 4, 4])
            },
            ints("f", &[1, -1]),
            tensor("d", &[16, 3]),
            tensor("b", &[3]),
        ],
        input: vec![value("x", &[1, 1, 4, 4])],
        output: vec![value("y", &[1, 3])],
    };
    let model = ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(18),
        }],
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

#[test]
fn onnx_importer_survives_any_bytes() {
    let valid = model();
    let options = Options::default();
    parse(&valid, "valid", &options).expect("a model without faults");
    bolero::check!().for_each(|input: &[u8]| {
        let _ = parse(input, "input", &options);
        if let Ok(import) = parse(&edited(&valid, input), "edited", &options) {
            // What the verifier refuses (numbers that are not finite, say) it names.
            let _ = verify::graph(&import.graph);
        }
    });
}
