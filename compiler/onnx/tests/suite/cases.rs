//! Cases that users of such software reported in public, each with its kind: other shapes, other
//! attributes, other operators with the same trap. The right behaviour is what ONNX defines, or a
//! refusal that names node, attribute and remedy.

use super::support::Attr::{Float, Int, Ints, Text};
use super::support::{Array, Attributes, Builder};
use pi_ir::{ActivationKind, Op, Shape};
use pi_onnx::proto::{AttributeProto, ValueInfoProto};
use pi_onnx::{Import, Options, parse};

/// Logits for an input as the network reads it.
fn logits(import: &Import, input: &[f32]) -> Vec<f32> {
    pi_ir::interpret::float(&import.graph, input).unwrap()
}

fn output(import: &Import) -> Shape {
    *import.graph.shapes().unwrap().last().unwrap()
}

fn near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (f, e) in found.iter().zip(expected) {
        assert!(
            (f - e).abs() <= 1e-5 * (1.0 + e.abs()),
            "{found:?}, expected {expected:?}"
        );
    }
}

fn says(refusal: &str, parts: &[&str]) {
    for part in parts {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
}

#[test]
fn filters_of_zeros_give_their_biases() {
    // One filter of a convolution, of a depthwise one, a row of a dense layer, and whole layers.
    let mut b = Builder::new(&[1, 2, 5, 5]);
    let filters = { 0..36 }.map(|i| if i < 18 { 0.0 } else { f64::from(i) / 40.0 });
    b.constant("w", Array::new(&[2, 2, 3, 3], filters.collect()));
    b.constant("b", Array::new(&[2], vec![0.75, -0.5]));
    let taps = { 0..8 }.map(|i| if i < 4 { 1.0 } else { 0.0 });
    b.constant("k", Array::new(&[2, 1, 2, 2], taps.collect()));
    b.constant("c", Array::new(&[2], vec![0.0, 0.25]));
    let rows = { 0..24 }.map(|i| if i % 3 == 1 { 0.0 } else { f64::from(i) / 10.0 });
    b.constant("d", Array::new(&[8, 3], rows.collect()));
    b.constant("e", Array::new(&[3], vec![1.0, 2.0, 3.0]));
    b.node("Conv", "x w b > p", &[])
        .node("Conv", "p k c > q", &[("group", Int(2))])
        .node("Flatten", "q > f", &[])
        .node("Gemm", "f d e > y", &[]);
    let import = b.check();
    assert_eq!(logits(&import, &[0.3; 50])[1], 2.0);
    let mut b = Builder::new(&[1, 1, 2, 2]);
    b.constant("w", Array::new(&[3, 1, 2, 2], vec![0.0; 12]));
    b.constant("b", Array::new(&[3], vec![1.0, -2.0, 3.0]));
    b.node("Conv", "x w b > c", &[])
        .node("Flatten", "c > y", &[]);
    near(
        &logits(&b.check(), &[0.1, 0.2, 0.3, 0.4]),
        &[1.0, -2.0, 3.0],
    );
}

#[test]
fn operators_of_training_and_renaming_pass_through() {
    let mut b = Builder::new(&[1, 784]);
    b.weights("w", &[784, 16]).weights("b", &[16]);
    b.weights("v", &[16, 10]);
    b.node("Identity", "w > w2", &[])
        .node("Identity", "x > x2", &[])
        .node("Cast", "x2 > x3", &[("to", Int(1))])
        .node("MatMul", "x3 w2 > m", &[])
        .node("Identity", "b > b2", &[])
        .node("Add", "m b2 > a", &[])
        .node("Relu", "a > r", &[])
        .node("Dropout", "r > o", &[])
        .node("MatMul", "o v > l", &[])
        .node("Identity", "l > y", &[]);
    let import = b.check();
    assert_eq!(
        import.graph.nodes.len(),
        5,
        "input, dense, bias, Relu, dense"
    );
    // Casts to integers round, and Dropout of training draws.
    let mut b = Builder::new(&[1, 4]);
    b.node("Cast", "x > y", &[("to", Int(7))]);
    says(&b.refusal(), &["y.node (Cast)", "casts to integers"]);
    let mut b = Builder::new(&[1, 4]);
    b.constant("ratio", Array::new(&[], vec![0.5]))
        .mask("training", &[], &[true])
        .node("Dropout", "x ratio training > y", &[]);
    says(&b.refusal(), &["y.node (Dropout)", "export for inference"]);
}

/// AdaptiveAvgPool2d(3) on 8 x 8 as exporters spell it out: windows of 3, 4 and 3.
#[test]
fn adaptive_pools_are_exact_or_named() {
    let mut b = Builder::new(&[1, 2, 8, 8]);
    let pool = [
        ("kernel_shape", Ints(vec![4, 4])),
        ("strides", Ints(vec![4, 4])),
    ];
    b.weights("w", &[3, 2, 1, 1]);
    b.node("Conv", "x w > c", &[])
        .node("AveragePool", "c > p", &pool)
        .node("Flatten", "p > y", &[]);
    assert_eq!(output(&b.check()).c, 12);

    let mut b = Builder::new(&[1, 2, 8, 8]);
    b.weights("w", &[3, 2, 1, 1]).node("Conv", "x w > c", &[]);
    b.ints("axis", &[2]);
    for (i, (start, end)) in [(0, 3), (2, 6), (5, 8)].into_iter().enumerate() {
        b.ints(&format!("s{i}"), &[start])
            .ints(&format!("e{i}"), &[end]);
        b.node("Slice", &format!("c s{i} e{i} axis > p{i}"), &[])
            .node("ReduceMean", &format!("p{i} axis > m{i}"), &[]);
    }
    b.node("Concat", "m0 m1 m2 > j", &[("axis", Int(2))])
        .node("Flatten", "j > y", &[]);
    says(&b.refusal(), &["j.node (Concat)", "along rows or columns"]);

    b.graph.node.truncate(1);
    b.node("adaptive_avg_pool2d", "c > y", &[]);
    b.graph.node[1].domain = Some("org.pytorch.aten".into());
    says(
        &b.refusal(),
        &["y.node (adaptive_avg_pool2d)", "domain org.pytorch.aten"],
    );
}

#[test]
fn operators_without_a_private_form_are_refused_with_a_remedy() {
    let refused = |operator: &str, line: &str, parts: &[&str]| {
        let mut b = Builder::new(&[1, 3, 4, 4]);
        b.weights("w", &[2, 3, 1, 1]).weights("u", &[1, 1, 4, 4]);
        b.ints("i", &[0, 1]).ints("wide", &[2, 2, 4, 4]);
        b.ints("pads", &[0, 0, 1, 1, 0, 0, 1, 1]);
        b.node("Conv", "x w > c", &[]).node(operator, line, &[]);
        let name = format!("y.node ({operator})");
        says(&b.refusal(), &[&[&name[..]], parts].concat());
    };
    refused(
        "ScatterElements",
        "c i u > y",
        &["Split, Slice and Gather only"],
    );
    refused("ScatterND", "c i u > y", &["Split, Slice and Gather only"]);
    refused(
        "GatherElements",
        "c i > y",
        &["Split, Slice and Gather only"],
    );
    refused("Tile", "c i > y", &["Split, Slice and Gather only"]);
    refused(
        "ReduceL2",
        "c > y",
        &["ReduceMean, ReduceSum and ReduceMax"],
    );
    refused(
        "ReduceProd",
        "c > y",
        &["ReduceMean, ReduceSum and ReduceMax"],
    );
    refused("Range", "c c c > y", &["not supported"]);
    refused(
        "LRN",
        "c > y",
        &["statistics of each image", "BatchNormalization"],
    );
    refused("ConvTranspose", "c w > y", &["enlarging maps"]);
    refused("Resize", "c > y", &["enlarging maps"]);
    refused("DepthToSpace", "c > y", &["enlarging maps"]);
    refused("HardSwish", "c > y", &["train the network with Relu"]);
    refused(
        "Expand",
        "c wide > y",
        &["[1, 2, 4, 4]", "[2, 2, 4, 4]", "broadcast in an Add"],
    );
    refused("Div", "u c > y", &["divides by a tensor"]);
    // What is computed later names the node that asked for it.
    let mut b = Builder::new(&[1, 3, 4, 4]);
    b.weights("w", &[2, 3, 1, 1]).weights("u", &[1, 1, 4, 4]);
    b.node("Conv", "x w > c", &[])
        .node("Mul", "c u > m", &[])
        .node("Conv", "m w2 > y", &[]);
    b.weights("w2", &[1, 2, 1, 1]);
    says(
        &b.refusal(),
        &["m.node multiplies or adds", "from channel to channel"],
    );
    let pad = |mode| {
        let mut b = Builder::new(&[1, 3, 4, 4]);
        b.ints("pads", &[0, 0, 1, 1, 0, 0, 1, 1]);
        b.node("Pad", "x pads > y", &[("mode", Text(mode))]);
        says(
            &b.refusal(),
            &["y.node (Pad)", "mode is", mode, "pad with constant zeros"],
        );
    };
    pad("edge");
    pad("reflect");
    pad("wrap");
    let mut b = Builder::new(&[1, 3, 4, 4]);
    b.ints("pads", &[0, 0, -1, 0, 0, 0, 0, 0])
        .node("Pad", "x pads > y", &[]);
    says(&b.refusal(), &["y.node (Pad)", "cut by Slice"]);
}

#[test]
fn running_statistics_of_evaluation_are_used() {
    let mut b = Builder::new(&[1, 1, 6, 6]);
    b.weights("w", &[3, 1, 3, 3]);
    b.constant("g", Array::new(&[3], vec![2.0, -1.5, 0.25]));
    b.constant("h", Array::new(&[3], vec![0.5, 0.0, 4.0]));
    b.constant("m", Array::new(&[3], vec![0.3, -0.2, 0.1]));
    b.constant("v", Array::new(&[3], vec![9.0, 0.25, 40.0]));
    b.node("Conv", "x w > c", &[])
        .node(
            "BatchNormalization",
            "c g h m v > n",
            &[("epsilon", Float(0.01))],
        )
        .node("Relu", "n > r", &[])
        .node(
            "AveragePool",
            "r > p",
            &[
                ("kernel_shape", Ints(vec![2, 2])),
                ("strides", Ints(vec![2, 2])),
            ],
        )
        .node("Flatten", "p > y", &[]);
    let import = b.check();
    let pictures = [0.0f32, 0.9].map(|start| {
        let values: Vec<f32> = (0..36).map(|i| (start + i as f32 / 36.0) % 1.0).collect();
        logits(&import, &values)
    });
    assert_ne!(pictures[0], pictures[1]);
    let attributes = &mut b.graph.node[1].attribute;
    attributes.push(AttributeProto {
        name: Some("training_mode".into()),
        i: Some(1),
        ..AttributeProto::default()
    });
    says(
        &b.refusal(),
        &["n.node (BatchNormalization)", "training_mode", "inference"],
    );
}

#[test]
fn windows_have_the_places_that_attributes_say() {
    let sizes = |input: [usize; 4], weight: [usize; 4], attributes: Attributes| {
        let mut b = Builder::new(&input);
        b.weights("w", &weight).weights("b", &weight[..1]);
        b.node("Conv", "x w b > c", &attributes)
            .node("Flatten", "c > y", &[]);
        let import = b.check();
        let shape = import.graph.shapes().unwrap()[1];
        (shape.c, shape.h, shape.w)
    };
    let strides = || ("strides", Ints(vec![2, 2]));
    assert_eq!(sizes([1, 3, 10, 10], [4, 3, 3, 3], vec![]), (4, 8, 8));
    let pads = |pads: [i64; 4]| vec![("pads", Ints(pads.to_vec())), strides()];
    assert_eq!(
        sizes([1, 3, 8, 8], [4, 3, 3, 3], pads([0, 0, 1, 1])),
        (4, 4, 4)
    );
    assert_eq!(
        sizes([1, 3, 8, 8], [4, 3, 3, 3], pads([1, 1, 0, 0])),
        (4, 4, 4)
    );
    assert_eq!(
        sizes([1, 3, 7, 8], [4, 3, 3, 3], pads([2, 0, 0, 1])),
        (4, 4, 4)
    );
    for auto in ["SAME_UPPER", "SAME_LOWER"] {
        let same = |kernel| {
            let attributes = vec![("auto_pad", Text(auto)), strides()];
            sizes([1, 3, 7, 5], [4, 3, kernel, kernel], attributes)
        };
        assert_eq!([same(3), same(2), same(1)], [(4, 4, 3); 3], "{auto}");
    }
    let valid = vec![("auto_pad", Text("VALID")), strides()];
    assert_eq!(sizes([1, 3, 7, 5], [4, 3, 3, 3], valid), (4, 3, 2));
}

/// 1 to 16 as four rows; what PyTorch and onnxruntime give, at every version of the operator.
#[test]
fn windows_that_rounding_up_adds_have_the_divisors_of_the_definition() {
    let pool = |opset, kernel: i64, pads: [i64; 4], all: i64| {
        let mut b = Builder::new(&[1, 1, 4, 4]);
        b.opset = opset;
        let attributes = [
            ("kernel_shape", Ints(vec![kernel, kernel])),
            ("strides", Ints(vec![2, 2])),
            ("pads", Ints(pads.to_vec())),
            ("ceil_mode", Int(1)),
            ("count_include_pad", Int(all)),
        ];
        b.node("AveragePool", "x > p", &attributes)
            .node("Flatten", "p > y", &[]);
        let counted: Vec<f32> = (1u8..=16).map(f32::from).collect();
        logits(&b.check(), &counted)
    };
    for opset in [11, 19, 22] {
        let with = [
            14.0 / 9.0,
            10.0 / 3.0,
            2.0,
            19.0 / 3.0,
            11.0,
            6.0,
            4.5,
            7.5,
            4.0,
        ];
        near(&pool(opset, 3, [1; 4], 1), &with);
        let without = [3.5, 5.0, 6.0, 9.5, 11.0, 12.0, 13.5, 15.0, 16.0];
        near(&pool(opset, 3, [1; 4], 0), &without);
        near(&pool(opset, 3, [0; 4], 0), &[6.0, 7.5, 12.0, 13.5]);
        // Windows that would begin in the padding behind are left out, and give no NaN.
        for all in [0, 1] {
            near(&pool(opset, 2, [0, 0, 1, 1], all), &[3.5, 5.5, 11.5, 13.5]);
        }
    }
}

#[test]
fn means_of_padded_windows_are_exact() {
    let pool = |size: [usize; 2],
                kernel: [i64; 2],
                stride: [i64; 2],
                rest: &[(&'static str, super::support::Attr)]| {
        for relu in [false, true] {
            let mut b = Builder::new(&[1, 2, size[0], size[1]]);
            b.weights("w", &[3, 2, 1, 1]).node("Conv", "x w > c", &[]);
            let from = if relu { "r" } else { "c" };
            if relu {
                b.node("Relu", "c > r", &[]);
            }
            let mut attributes = vec![
                ("kernel_shape", Ints(kernel.to_vec())),
                ("strides", Ints(stride.to_vec())),
            ];
            attributes.extend(rest.iter().cloned());
            b.node("AveragePool", &format!("{from} > p"), &attributes)
                .node("Flatten", "p > y", &[]);
            b.check();
        }
    };
    let pads = |pads: [i64; 4]| ("pads", Ints(pads.to_vec()));
    pool([6, 6], [3, 3], [1, 1], &[pads([1; 4])]);
    pool([7, 6], [3, 3], [2, 2], &[pads([1; 4])]);
    pool([8, 8], [3, 3], [2, 2], &[pads([1; 4])]);
    pool([8, 7], [5, 5], [1, 1], &[pads([2; 4])]);
    pool([7, 7], [5, 3], [2, 1], &[pads([2, 1, 2, 1])]);
    pool([6, 5], [3, 2], [1, 2], &[pads([0, 1, 2, 0])]);
    pool([3, 3], [3, 3], [1, 1], &[pads([1; 4])]);
    pool([2, 5], [3, 3], [1, 1], &[pads([1; 4])]);
    pool([7, 5], [3, 3], [2, 2], &[("auto_pad", Text("SAME_UPPER"))]);
    pool([7, 6], [2, 2], [1, 1], &[("auto_pad", Text("SAME_LOWER"))]);
    pool([7, 8], [3, 3], [2, 2], &[("ceil_mode", Int(1))]);
    pool(
        [7, 8],
        [3, 3],
        [2, 3],
        &[("ceil_mode", Int(1)), pads([1; 4])],
    );
    let all = ("count_include_pad", Int(1));
    pool(
        [7, 8],
        [3, 3],
        [2, 3],
        &[("ceil_mode", Int(1)), pads([1; 4]), all.clone()],
    );
    pool([8, 8], [2, 2], [2, 2], &[pads([1; 4]), all]);
    pool(
        [9, 9],
        [3, 3],
        [1, 2],
        &[pads([1; 4]), ("dilations", Ints(vec![2, 1]))],
    );
    pool(
        [9, 8],
        [2, 3],
        [1, 1],
        &[pads([1, 2, 1, 2]), ("dilations", Ints(vec![2, 3]))],
    );

    // Zeros of a Pad count as elements; those of the pool do not.
    let mut b = Builder::new(&[1, 1, 5, 5]);
    b.ints("zeros", &[0, 0, 1, 0, 0, 0, 0, 2]);
    let same = [
        ("kernel_shape", Ints(vec![3, 3])),
        ("pads", Ints(vec![1; 4])),
    ];
    b.node("Pad", "x zeros > z", &[])
        .node("AveragePool", "z > p", &same)
        .node("Flatten", "p > y", &[]);
    b.check();
    // Signals.
    let mut b = Builder::new(&[1, 2, 9]);
    let same = [("kernel_shape", Ints(vec![3])), ("pads", Ints(vec![1, 1]))];
    b.node("AveragePool", "x > p", &same)
        .node("Flatten", "p > y", &[]);
    let import = b.check();
    assert!(
        import
            .notes
            .iter()
            .any(|note| note.contains("takes 2 layers")),
        "{:?}",
        import.notes
    );

    let refused = |kernel: i64, pad: i64, parts: &[&str]| {
        let mut b = Builder::new(&[1, 1, 12, 12]);
        let attributes = [
            ("kernel_shape", Ints(vec![kernel; 2])),
            ("pads", Ints(vec![pad; 4])),
        ];
        b.node("AveragePool", "x > p", &attributes)
            .node("Flatten", "p > y", &[]);
        says(&b.refusal(), &[&["p.node (AveragePool)"], parts].concat());
    };
    refused(2, 2, &["in padding as a whole", "pads must be smaller"]);
    refused(11, 5, &["count_include_pad 1"]);
}

#[test]
fn dense_layers_have_the_defaults_of_the_definition() {
    let gemm = |lines: &[(&str, &str)], attributes: Attributes| {
        let mut b = Builder::new(&[1, 6]);
        b.weights("w", &[6, 4]).weights("t", &[4, 6]);
        b.weights("b", &[4])
            .weights("row", &[1, 4])
            .weights("one", &[1]);
        for (operator, line) in lines {
            let attributes: &[_] = if *operator == "Gemm" {
                &attributes
            } else {
                &[]
            };
            b.node(operator, line, attributes);
        }
        b
    };
    let one = |line: &str, attributes| {
        gemm(&[("Gemm", line)], attributes).check();
    };
    one("x w b > y", vec![]);
    one("x w > y", vec![]);
    one("x w - > y", vec![]);
    one("x w row > y", vec![("beta", Float(0.5))]);
    one(
        "x w one > y",
        vec![("alpha", Float(-2.0)), ("beta", Float(0.0))],
    );
    one(
        "x t b > y",
        vec![("transB", Int(1)), ("alpha", Float(0.25))],
    );
    // A column instead of a row.
    let turned = [("Transpose", "x > c"), ("Gemm", "c w b > y")];
    gemm(&turned, vec![("transA", Int(1))]).check();
    let b = gemm(&[("Gemm", "x w b > y")], vec![("transA", Int(1))]);
    says(
        &b.refusal(),
        &["y.node (Gemm)", "[6, 1]", "one vector of 6 elements"],
    );
    says(
        &gemm(&[("Gemm", "w x b > y")], vec![]).refusal(),
        &["input 0 is a constant"],
    );
    says(
        &gemm(&[("MatMul", "w x > y")], vec![]).refusal(),
        &["input 0 is a constant"],
    );

    let flat = |axis: i64, rows: usize| {
        let mut b = Builder::new(&[1, 2, 3, 4]);
        b.weights("w", &[24 / rows, 5]);
        b.node("Flatten", "x > f", &[("axis", Int(axis))])
            .node("Gemm", "f w > y", &[]);
        b
    };
    flat(1, 1).check();
    flat(0, 1).check();
    says(
        &flat(2, 2).refusal(),
        &["y.node (Gemm)", "[2, 12]", "one vector"],
    );
    says(
        &flat(-1, 6).refusal(),
        &["y.node (Gemm)", "[6, 4]", "one vector"],
    );
    says(&flat(5, 1).refusal(), &["f.node (Flatten)", "axis 5"]);
}

#[test]
fn a_picture_of_zeros_gives_finite_numbers() {
    let mut b = Builder::new(&[1, 2, 6, 6]);
    b.weights("w", &[3, 2, 3, 3]).weights("slope", &[3, 1, 1]);
    b.constant("g", Array::new(&[3], vec![1.0, 0.0, -1.0]));
    b.constant("z", Array::new(&[3], vec![0.0; 3]));
    b.constant("v", Array::new(&[3], vec![0.0, 1e-12, 4.0]));
    let pool = [
        ("kernel_shape", Ints(vec![2, 2])),
        ("strides", Ints(vec![2, 2])),
        ("pads", Ints(vec![0, 0, 1, 1])),
        ("ceil_mode", Int(1)),
    ];
    b.node("Conv", "x w > c", &[])
        .node("BatchNormalization", "c g z z v > n", &[])
        .node("PRelu", "n slope > p", &[])
        .node("AveragePool", "p > a", &pool)
        .node("GlobalAveragePool", "a > m", &[])
        .node("Flatten", "m > y", &[]);
    let import = b.check();
    assert_eq!(logits(&import, &[0.0; 72]), [0.0; 3]);
    // A variance of 0 without epsilon would divide by 0.
    let mut b = Builder::new(&[1, 3]);
    b.constant("z", Array::new(&[3], vec![0.0; 3]));
    b.node(
        "BatchNormalization",
        "x z z z z > y",
        &[("epsilon", Float(0.0))],
    );
    says(&b.refusal(), &["y.node (BatchNormalization)", "variance"]);
}

/// Every operator with no inputs, with fewer than it needs, with inputs left out, and with inputs
/// of odd shapes: an error or an import, and no panic.
#[test]
fn nodes_without_their_operands_end_in_errors() {
    let operators = [
        "Abs",
        "Add",
        "ArgMax",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "DequantizeLinear",
        "Div",
        "Dropout",
        "Equal",
        "Expand",
        "Flatten",
        "Gather",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "LeakyRelu",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "Neg",
        "PRelu",
        "Pad",
        "Pow",
        "Range",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Size",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Sub",
        "Sum",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ];
    let lists: [&[(&str, super::support::Attr)]; 3] = [
        &[],
        &[
            ("axis", Int(-7)),
            ("perm", Ints(vec![3, 3])),
            ("axes", Ints(vec![9])),
        ],
        &[
            ("axis", Int(0)),
            ("kernel_shape", Ints(vec![0, 9])),
            ("pads", Ints(vec![-1, 1 << 40, 3])),
            ("split", Ints(vec![-1, 2])),
            ("group", Int(0)),
        ],
    ];
    let lines = [
        "> y",
        "x > y",
        "- > y",
        "x - > y",
        "- x > y",
        "x e > y",
        "x x > y",
        "x s > y",
        "s x > y",
        "e > y",
        "e e > y",
        "x e e e e > y",
        "x s s s s > y",
        "x h h h h > y",
        "h h > y",
    ];
    let mut refused = 0;
    for operator in operators {
        for attributes in lists {
            for line in lines {
                for input in [&[1, 2, 3, 3][..], &[1, 4]] {
                    let mut b = Builder::new(input);
                    b.weights("e", &[0]).ints("s", &[3, -2]);
                    b.ints("h", &[i64::MAX, i64::MIN, 1 << 40]);
                    b.node(operator, line, attributes)
                        .node("Add", "x y > z", &[]);
                    refused += usize::from(b.import().is_err());
                    if matches!(line, "> y" | "- > y") {
                        says(&b.refusal(), &[&format!("y.node ({operator})")]);
                    }
                }
            }
        }
    }
    assert!(refused > 3000, "{refused}");
}

#[test]
fn open_and_fixed_batches_are_one_image_and_said() {
    let network = |batch: Option<i64>, rows: i64| {
        let mut b = Builder::new(&[1, 2, 4, 4]);
        b.weights("w", &[2, 2, 3, 3]).weights("d", &[32, 3]);
        b.ints("flat", &[rows, -1]);
        let same = [("pads", Ints(vec![1; 4]))];
        b.node("Conv", "x w > c", &same)
            .node("Relu", "c > r", &[])
            .node("Add", "x r > s", &[])
            .node("Reshape", "s flat > f", &[])
            .node("MatMul", "f d > y", &[]);
        b.graph.input[0] = ValueInfoProto::of("x", &[batch, Some(2), Some(4), Some(4)]);
        b
    };
    let one = network(Some(1), 1).check();
    let input: Vec<f32> = (0..32).map(|i| i as f32 / 32.0).collect();
    let open = network(None, 1).import().unwrap();
    let said = |import: &Import, what: &str| import.notes.iter().any(|note| note.contains(what));
    assert!(said(&open, "leaves the batch open"), "{:?}", open.notes);
    let two = network(Some(2), 2).import().unwrap();
    assert!(
        said(&two, "a batch of 2 inputs; one at a time"),
        "{:?}",
        two.notes
    );
    let expected = logits(&one, &input);
    near(&logits(&open, &input), &expected);
    near(&logits(&two, &input), &expected);
    // Every other dimension must be known.
    let mut b = network(None, 1);
    b.graph.input[0] = ValueInfoProto::of("x", &[None, None, Some(4), Some(4)]);
    says(&b.refusal(), &["--input CxHxW"]);
    let options = Options {
        input: Some(Shape::new(2, 4, 4)),
        ..Options::default()
    };
    near(
        &logits(&parse(&b.bytes(), "open", &options).unwrap(), &input),
        &expected,
    );
}

#[test]
fn splits_slices_and_gathers_of_channels_are_taken_in_by_weights() {
    // Unequal pieces, one of which passes by a convolution; read in another order.
    for (line, attributes, opset) in [
        (
            "c > p q s",
            vec![("axis", Int(1)), ("split", Ints(vec![1, 2, 3]))],
            11,
        ),
        ("c sizes > p q s", vec![("axis", Int(-3))], 13),
        (
            "c > p q s",
            vec![("axis", Int(1)), ("num_outputs", Int(3))],
            18,
        ),
    ] {
        let mut b = Builder::new(&[1, 2, 5, 5]);
        b.opset = opset;
        b.weights("w", &[6, 2, 3, 3]).ints("sizes", &[1, 2, 3]);
        let sizes: [usize; 3] = if opset == 18 { [2; 3] } else { [1, 2, 3] };
        b.weights("k", &[4, sizes[1], 1, 1]);
        let total = sizes[0] + sizes[2] + 4;
        b.weights("l", &[3, total, 2, 2]);
        b.node("Conv", "x w > c", &[])
            .node("Split", line, &attributes)
            .node("Conv", "q k > r", &[])
            .node("Concat", "s r p > t", &[("axis", Int(1))])
            .node("Conv", "t l > z", &[])
            .node("Flatten", "z > y", &[]);
        let import = b.check();
        assert_eq!(kinds(&import), [[0; 2]; 0], "no layer only moves channels");
    }
    // A ReLU of a piece is one for each of its elements, and none for the others.
    let mut b = Builder::new(&[1, 2, 3, 3]);
    b.weights("w", &[4, 2, 1, 1]).weights("k", &[2, 4, 3, 3]);
    b.weights("slope", &[2, 1, 1]);
    b.node("Conv", "x w > c", &[])
        .node("Split", "c > p q", &[("axis", Int(1))])
        .node("Relu", "p > r", &[])
        .node("PRelu", "q slope > s", &[])
        .node("Concat", "s r > t", &[("axis", Int(1))])
        .node("Conv", "t k > z", &[])
        .node("Flatten", "z > y", &[]);
    let import = b.check();
    let relus: usize = kinds(&import).iter().map(|[relus, _]| relus).sum();
    assert_eq!(relus, 36, "{:?}", kinds(&import));

    // Every second channel from the last on, some of them by number, and elements of a vector.
    let mut b = Builder::new(&[1, 7, 2, 2]);
    b.weights("w", &[7, 7, 1, 1]).weights("k", &[3, 4, 2, 2]);
    for (name, value) in [("first", -1), ("end", i64::MIN), ("axis", 1), ("step", -2)] {
        b.ints(name, &[value]);
    }
    b.ints("some", &[3, -4, 0])
        .ints("one", &[1])
        .weights("m", &[3, 3, 1, 1]);
    b.node("Conv", "x w > c", &[])
        .node("Slice", "c first end axis step > e", &[])
        .node("Conv", "e k > f", &[])
        .node("Gather", "c some > g", &[("axis", Int(1))]);
    // Indices 3 and -4 are the same channel of seven.
    says(&b.refusal(), &["g.node (Gather)", "an element twice"]);
    b.graph
        .initializer
        .retain(|t| t.name.as_deref() != Some("some"));
    b.ints("some", &[3, -7, 6]);
    b.node("Conv", "g m > h", &[])
        .node("GlobalAveragePool", "h > i", &[])
        .node("Add", "i f > n", &[])
        .node("Flatten", "n > o", &[])
        .node("Gather", "o some2 > y", &[("axis", Int(1))]);
    b.ints("some2", &[2, 0]);
    b.check();
    let mut b = Builder::new(&[1, 12]);
    b.weights("d", &[5, 3])
        .ints("from", &[2])
        .ints("to", &[7])
        .ints("axis", &[-1]);
    b.node("Slice", "x from to axis > s", &[])
        .node("MatMul", "s d > y", &[]);
    b.check();
}

/// ReLUs and all elements of every activation.
fn kinds(import: &Import) -> Vec<[usize; 2]> {
    let nodes = import.graph.nodes.iter();
    let kinds = nodes.filter_map(|node| match &node.op {
        Op::Activation { kinds, .. } => {
            let relus = kinds.iter().filter(|kind| **kind == ActivationKind::Relu);
            Some([relus.count(), kinds.len()])
        }
        _ => None,
    });
    kinds.collect()
}

#[test]
fn slices_of_rows_and_columns_are_windows() {
    for (starts, ends, axes, steps) in [
        ([1, 0], [5, 6], [2, 3], [1, 1]),
        ([0, -4], [i64::MAX, -1], [-2, -1], [2, 1]),
        ([2, 1], [3, 6], [2, 3], [1, 3]),
        ([0, 0], [4, 3], [3, 2], [1, 1]),
    ] {
        let mut b = Builder::new(&[1, 2, 6, 7]);
        b.weights("w", &[3, 2, 1, 1]);
        b.ints("starts", &starts)
            .ints("ends", &ends)
            .ints("axes", &axes)
            .ints("steps", &steps);
        b.node("Conv", "x w > c", &[])
            .node("Relu", "c > r", &[])
            .node("Slice", "r starts ends axes steps > s", &[])
            .node("Flatten", "s > y", &[]);
        b.check();
    }
    let mut b = Builder::new(&[1, 2, 6, 7]);
    b.ints("row", &[4]);
    b.node("Gather", "x row > g", &[("axis", Int(2))])
        .node("Flatten", "g > y", &[]);
    b.check();
    for (name, values) in [("row", [4, 2, 0]), ("row", [0, 1, 3])] {
        let mut b = Builder::new(&[1, 2, 6, 7]);
        b.ints(name, &values)
            .node("Gather", "x row > y", &[("axis", Int(2))]);
        says(
            &b.refusal(),
            &["y.node (Gather)", "rows or columns in another order"],
        );
    }
    // Halves of rows, as of two pictures side by side.
    let mut b = Builder::new(&[1, 1, 4, 6]);
    b.weights("w", &[2, 1, 2, 2]);
    b.node("Split", "x > p q", &[("axis", Int(3))])
        .node("Conv", "p w > a", &[])
        .node("Conv", "q w > c", &[])
        .node("Sub", "a c > s", &[])
        .node("Flatten", "s > y", &[]);
    b.check();
}

/// ShuffleNet's shuffle: channels are taken apart, exchanged and put together again.
#[test]
fn shuffled_channels_are_taken_in_by_weights() {
    let shuffle = |b: &mut Builder, from: &str, to: &str| {
        b.node("Reshape", &format!("{from} apart > {to}1"), &[])
            .node(
                "Transpose",
                &format!("{to}1 > {to}2"),
                &[("perm", Ints(vec![0, 2, 1, 3, 4]))],
            )
            .node("Reshape", &format!("{to}2 whole > {to}"), &[]);
    };
    let mut b = Builder::new(&[1, 2, 4, 5]);
    b.weights("w", &[6, 2, 1, 1])
        .weights("k", &[6, 2, 3, 3])
        .weights("g", &[6])
        .weights("h", &[6]);
    b.constant("v", Array::new(&[6], vec![0.5, 1.0, 2.0, 0.1, 0.3, 0.7]));
    b.ints("apart", &[1, 3, 2, 4, 5])
        .ints("whole", &[1, -1, 4, 5]);
    b.node("Conv", "x w > c", &[]);
    shuffle(&mut b, "c", "d");
    b.node("BatchNormalization", "d g h g v > n", &[])
        .node("Relu", "n > r", &[]);
    shuffle(&mut b, "r", "s");
    b.node(
        "Conv",
        "s k > e",
        &[("group", Int(3)), ("pads", Ints(vec![1; 4]))],
    );
    shuffle(&mut b, "e", "f");
    b.node("Add", "f s > o", &[]).node("Flatten", "o > y", &[]);
    let import = b.check();
    assert_eq!(kinds(&import), [[120, 120]]);

    // ShuffleNetV2: halves, a concatenation, a shuffle, halves again.
    let mut b = Builder::new(&[1, 4, 3, 3]);
    b.weights("w", &[4, 4, 1, 1])
        .weights("k", &[2, 2, 3, 3])
        .weights("l", &[2, 2, 1, 1]);
    b.weights("d", &[36, 3]);
    b.ints("apart", &[1, 2, 2, 3, 3])
        .ints("whole", &[1, 4, 3, 3]);
    b.node("Conv", "x w > s", &[]).node("Relu", "s > c0", &[]);
    for block in 0..3 {
        let from = format!("c{block}");
        b.node(
            "Split",
            &format!("{from} > a{block} b{block}"),
            &[("axis", Int(1))],
        )
        .node(
            "Conv",
            &format!("b{block} k > e{block}"),
            &[("pads", Ints(vec![1; 4]))],
        )
        .node("Relu", &format!("e{block} > f{block}"), &[])
        .node(
            "Concat",
            &format!("a{block} f{block} > g{block}"),
            &[("axis", Int(1))],
        );
        shuffle(&mut b, &format!("g{block}"), &format!("c{}", block + 1));
    }
    b.node("Flatten", "c3 > t", &[])
        .node("MatMul", "t d > y", &[]);
    let import = b.check();
    assert_eq!(
        kinds(&import).len(),
        4,
        "one of the stem and one of each block"
    );

    // Rows and columns joined, and halves by Gather, as the authors' own code has it.
    let mut b = Builder::new(&[1, 6, 2, 3]);
    b.weights("w", &[6, 6, 1, 1]).weights("k", &[2, 3, 1, 1]);
    b.ints("apart", &[3, 2, 6])
        .ints("halves", &[2, -1, 3, 2, 3]);
    b.index("one", 1);
    b.node("Conv", "x w > c", &[])
        .node("Reshape", "c apart > p", &[])
        .node("Transpose", "p > q", &[("perm", Ints(vec![1, 0, 2]))])
        .node("Reshape", "q halves > h", &[])
        .node("Gather", "h one > s", &[("axis", Int(0))])
        .node("Conv", "s k > z", &[])
        .node("Flatten", "z > y", &[]);
    b.check();

    let mut b = Builder::new(&[1, 4, 3, 5]);
    b.ints("apart", &[1, 2, 2, 3, 5]);
    b.node("Reshape", "x apart > p", &[])
        .node("Relu", "p > y", &[]);
    says(
        &b.refusal(),
        &[
            "y.node (Relu)",
            "channels taken apart",
            "Transpose and Reshape",
        ],
    );
    let mut b = Builder::new(&[1, 4, 3, 5]);
    b.ints("apart", &[1, 2, 2, 3, 5])
        .ints("whole", &[1, 4, 3, 5]);
    b.node("Reshape", "x apart > p", &[])
        .node("Transpose", "p > q", &[("perm", Ints(vec![0, 1, 3, 2, 4]))])
        .node("Reshape", "q whole > y", &[]);
    says(&b.refusal(), &["y.node (Reshape)", "mixes them with rows"]);
}

#[test]
fn reductions_over_rows_and_columns_are_exact() {
    for operator in ["ReduceMean", "ReduceSum", "ReduceMax"] {
        for axes in [vec![2, 3], vec![-1, -2], vec![3], vec![2]] {
            for as_input in [false, true] {
                for keep in [0, 1] {
                    let mut b = Builder::new(&[1, 2, 3, 4]);
                    b.weights("w", &[3, 2, 1, 1]).ints("axes", &axes);
                    b.node("Conv", "x w > c", &[]);
                    let mut attributes = vec![("keepdims", Int(keep))];
                    let mut line = "c axes > m";
                    if !as_input {
                        attributes.push(("axes", Ints(axes.clone())));
                        line = "c > m";
                    }
                    b.node(operator, line, &attributes)
                        .node("Flatten", "m > y", &[]);
                    b.check();
                }
            }
        }
        let mut b = Builder::new(&[1, 2, 3, 4]);
        b.node(operator, "x > y", &[("axes", Ints(vec![1]))]);
        says(
            &b.refusal(),
            &[&format!("y.node ({operator})"), "only rows and columns"],
        );
    }
    for operator in ["GlobalAveragePool", "GlobalMaxPool"] {
        for input in [&[1, 2, 4, 5][..], &[1, 2, 5]] {
            let mut b = Builder::new(input);
            b.node(operator, "x > p", &[]).node("Flatten", "p > y", &[]);
            b.check();
        }
    }
    let mut b = Builder::new(&[1, 1, 17, 17]);
    b.node("GlobalMaxPool", "x > p", &[]);
    says(
        &b.refusal(),
        &["p.node (GlobalMaxPool)", "17x17", "AveragePool"],
    );
}

#[test]
fn padding_by_a_constant_is_exact() {
    let mut b = Builder::new(&[1, 2, 3, 4]);
    b.weights("w", &[3, 2, 1, 1]).weights("k", &[2, 3, 2, 2]);
    b.constant("value", Array::new(&[], vec![-1.5]));
    b.ints("pads", &[0, 0, 1, 0, 0, 0, 2, 1]);
    b.node("Conv", "x w > c", &[])
        .node("Relu", "c > r", &[])
        .node("Pad", "r pads value > p", &[])
        .node("Conv", "p k > z", &[])
        .node("Flatten", "z > y", &[]);
    b.check();
}

#[test]
fn constants_are_repeated_and_cut_before_the_network_runs() {
    let mut b = Builder::new(&[1, 6]);
    b.weights("w", &[4, 3])
        .ints("twice", &[2, 2])
        .ints("shape", &[1, 6]);
    for (name, value) in [
        ("zero", 0),
        ("last", -1),
        ("before", i64::MIN),
        ("back", -1),
    ] {
        b.ints(name, &[value]);
    }
    b.weights("e", &[1, 1]);
    b.node("Expand", "e shape > f", &[])
        .node("Add", "x f > a", &[])
        .node("Tile", "w twice > t", &[])
        .node("Slice", "t last before zero back > turned", &[])
        .node(
            "Split",
            "turned > top rest",
            &[("axis", Int(0)), ("split", Ints(vec![6, 2]))],
        )
        .node("MatMul", "a top > y", &[]);
    let import = b.import().unwrap();
    let Op::Dense { weight, .. } = &import.graph.nodes.last().unwrap().op else {
        panic!("a dense node");
    };
    // Row r of the repeated weights, from the last on; two columns of it side by side.
    let w = b.values("w");
    for (o, row) in weight.chunks_exact(6).enumerate() {
        for (i, &found) in row.iter().enumerate() {
            assert_eq!(f64::from(found), w[(7 - i) % 4 * 3 + o % 3], "{o}, {i}");
        }
    }
}

/// Forty Concats of a tensor with itself would have 2^40 parts; a hundred branches are joined.
#[test]
fn concatenations_of_many_tensors_are_joined_and_endless_ones_refused() {
    let mut b = Builder::new(&[1, 1, 2, 2]);
    b.weights("w", &[1, 1, 1, 1]).node("Conv", "x w > c0", &[]);
    for i in 0..40 {
        let line = format!("c{i} c{i} > c{}", i + 1);
        b.node("Concat", &line, &[("axis", Int(1))]);
    }
    b.node("Flatten", "c40 > y", &[]);
    says(&b.refusal(), &["(Concat)"]);
    let mut b = Builder::new(&[1, 1, 2, 2]);
    b.weights("d", &[400, 3]);
    let names: Vec<String> = (0..100).map(|i| format!("c{i}")).collect();
    for name in &names {
        b.weights(&format!("w{name}"), &[1, 1, 1, 1]);
        b.node("Conv", &format!("x w{name} > {name}"), &[]);
    }
    b.node(
        "Concat",
        &format!("{} > c", names.join(" ")),
        &[("axis", Int(1))],
    )
    .node("Flatten", "c > f", &[])
    .node("MatMul", "f d > y", &[]);
    b.check();
    let line = format!("{} > c", vec!["x"; 300].join(" "));
    let mut b = Builder::new(&[1, 1, 2, 2]);
    b.node("Concat", &line, &[("axis", Int(1))]);
    says(&b.refusal(), &["c.node (Concat)", "more than 256 tensors"]);
}
