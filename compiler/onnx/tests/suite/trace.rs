//! Every tensor of a model has the value that ONNX's definitions give it.

use super::support::Attr::{Float, Int, Ints};
use super::support::{Array, Builder};
use pi_onnx::{Import, Options, parse};

fn traced(b: &Builder) -> Import {
    let options = Options {
        trace: true,
        ..Options::default()
    };
    parse(&b.bytes(), "test", &options).unwrap()
}

/// Compares every tensor that the graph has, and returns their names.
fn compare(b: &Builder, dims: &[usize]) -> Vec<String> {
    let import = traced(b);
    let count = dims.iter().product::<usize>();
    let x: Vec<f64> = (0..count).map(|i| (i * 5 % 17) as f64 / 16.0).collect();
    let single: Vec<f32> = x.iter().map(|&v| v as f32).collect();
    let expected = b.references(Array::new(dims, x));
    let tensors = import.tensors(&single).unwrap();
    for tensor in &tensors {
        let expected = &expected[&tensor.name];
        assert_eq!(tensor.dims, expected.dims, "{}", tensor.name);
        assert_eq!(tensor.values.len(), expected.data.len(), "{}", tensor.name);
        for (index, (&own, &right)) in tensor.values.iter().zip(&expected.data).enumerate() {
            let difference = (f64::from(own) - right).abs();
            let near = difference <= 1e-4 * right.abs().max(1.0);
            assert!(near, "{} {index}: {own}, expected {right}", tensor.name);
        }
    }
    let logits = pi_ir::interpret::float(&import.graph, &import.image(&single).unwrap());
    assert_eq!(tensors.last().unwrap().values, logits.unwrap());
    tensors.into_iter().map(|tensor| tensor.name).collect()
}

#[test]
fn tensors_that_no_node_computes_have_their_values() {
    let dims = [1, 2, 6, 5];
    let mut b = Builder::new(&dims);
    b.constant("m", Array::new(&[2, 1, 1], vec![0.5, 0.25]))
        .constant("s", Array::new(&[2, 1, 1], vec![2.0, 4.0]))
        .constant("g", Array::new(&[3], vec![0.0, 1.5, -0.5]))
        .constant("h", Array::new(&[3], vec![0.1, -0.2, 0.3]))
        .constant("v", Array::new(&[3], vec![0.5, 2.0, 1.0]))
        .weights("w", &[3, 2, 3, 3])
        .weights("d", &[4, 108]);
    let mask: Vec<bool> = (0..54).map(|i| i % 3 != 0).collect();
    b.mask("k", &[3, 6, 3], &mask)
        .node("Sub", "x m > a", &[])
        .node("Div", "a s > n", &[])
        .node("Conv", "n w > c", &[("pads", Ints(vec![1, 0, 1, 0]))])
        .node(
            "BatchNormalization",
            "c g h h v > norm",
            &[("epsilon", Float(1e-3))],
        )
        .node("Relu", "norm > r", &[])
        .node("Mul", "norm norm > q", &[])
        .node("Where", "k r q > act", &[])
        .node("Add", "act norm > sum", &[])
        .node("Concat", "sum act > both", &[("axis", Int(1))])
        .node(
            "Transpose",
            "both > last",
            &[("perm", Ints(vec![0, 2, 3, 1]))],
        )
        .node("Flatten", "last > flat", &[])
        .node("Gemm", "flat d > y", &[("transB", Int(1))]);
    let names = compare(&b, &dims);
    let all = "a n c norm r q act sum both last flat y";
    assert_eq!(names, all.split(' ').collect::<Vec<_>>());
}

#[test]
fn inputs_with_channels_last_are_taken_in_their_own_order() {
    let dims = [1, 4, 5, 3];
    let mut b = Builder::new(&dims);
    b.weights("w", &[2, 3, 3, 3]).weights("d", &[3, 12]);
    b.node("Transpose", "x > t", &[("perm", Ints(vec![0, 3, 1, 2]))])
        .node("Conv", "t w > c", &[])
        .node("Relu", "c > r", &[])
        .node("Flatten", "r > f", &[])
        .node("Gemm", "f d > y", &[("transB", Int(1))]);
    assert_eq!(compare(&b, &dims), ["t", "c", "r", "f", "y"]);
    let import = traced(&b);
    let why = import.tensors(&[0.0; 59]).unwrap_err();
    assert!(
        why.contains("59 elements; the model reads [1, 4, 5, 3]"),
        "{why}"
    );
    assert!(b.import().unwrap().tensors(&[0.0; 60]).is_err());
}
