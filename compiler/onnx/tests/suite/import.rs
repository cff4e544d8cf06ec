//! Imported models compute what ONNX's definitions say, and what cannot be imported is refused with
//! all its faults.

use super::support::Attr::{Float, Int, Ints, Text};
use super::support::{Array, Attributes, Builder};
use pi_ir::{ActivationKind, Graph, Op, Preprocessing};
use pi_onnx::proto::{EXTERNAL, StringStringEntryProto, ValueInfoProto};
use pi_onnx::{InputKind, Options, parse, read};

fn kinds(graph: &Graph) -> Vec<&[ActivationKind]> {
    let nodes = graph.nodes.iter();
    nodes
        .filter_map(|node| match &node.op {
            Op::Activation { kinds, .. } => Some(&kinds[..]),
            _ => None,
        })
        .collect()
}

#[test]
fn a_residual_network_with_norms_equals_its_definition() {
    let mut b = Builder::new(&[1, 3, 8, 8]);
    b.weights("w1", &[4, 3, 3, 3]).weights("b1", &[4]);
    b.weights("w2", &[4, 4, 3, 3]).weights("w3", &[4, 4, 1, 1]);
    for name in ["g", "h", "m"] {
        b.weights(name, &[4]);
    }
    b.constant("v", Array::new(&[4], vec![0.5, 1.0, 2.0, 0.1]));
    b.weights("d", &[5, 4]).weights("e", &[5]);
    b.node("Conv", "x w1 b1 > c1", &[("pads", Ints(vec![1; 4]))])
        .node(
            "BatchNormalization",
            "c1 g h m v > n1",
            &[("epsilon", Float(1e-3))],
        )
        .node("Relu", "n1 > r1", &[])
        .node(
            "Conv",
            "r1 w2 > c2",
            &[("pads", Ints(vec![1; 4])), ("strides", Ints(vec![2, 2]))],
        )
        .node("Conv", "r1 w3 > c3", &[("strides", Ints(vec![2, 2]))])
        .node("Add", "c2 c3 > s", &[])
        .node("Relu", "s > r2", &[])
        .node("GlobalAveragePool", "r2 > p", &[])
        .node("Flatten", "p > f", &[])
        .node("Gemm", "f d e > y", &[("transB", Int(1))]);
    let import = b.check();
    // A Relu that two nodes read is one activation, and the norm is nobody's convolution.
    assert_eq!(kinds(&import.graph).len(), 2);
    let norms = import.graph.nodes.iter();
    assert_eq!(
        norms.filter(|n| matches!(n.op, Op::BatchNorm(_))).count(),
        1
    );
}

#[test]
fn windows_of_all_kinds_equal_their_definition() {
    for (input, weight, attributes) in [
        (
            [1, 3, 7, 5],
            [4, 3, 3, 3],
            vec![
                ("auto_pad", Text("SAME_UPPER")),
                ("strides", Ints(vec![2, 2])),
            ],
        ),
        (
            [1, 3, 7, 6],
            [4, 3, 2, 4],
            vec![
                ("auto_pad", Text("SAME_LOWER")),
                ("strides", Ints(vec![1, 2])),
            ],
        ),
        (
            [1, 3, 6, 6],
            [4, 3, 3, 3],
            vec![
                ("pads", Ints(vec![0, 0, 1, 1])),
                ("strides", Ints(vec![2, 2])),
            ],
        ),
        (
            [1, 3, 9, 9],
            [2, 3, 3, 2],
            vec![("dilations", Ints(vec![2, 3]))],
        ),
        (
            [1, 4, 6, 6],
            [6, 2, 3, 3],
            vec![("group", Int(2)), ("pads", Ints(vec![1, 0, 2, 1]))],
        ),
        ([1, 4, 6, 6], [4, 1, 3, 3], vec![("group", Int(4))]),
        ([1, 3, 10, 10], [4, 3, 3, 3], vec![]),
    ] {
        let mut b = Builder::new(&input);
        b.weights("w", &weight).weights("b", &weight[..1]);
        b.node("Conv", "x w b > y", &attributes);
        let import = b.check();
        let group = attributes.iter().find_map(|(name, value)| match value {
            Int(group) if *name == "group" => Some(*group as u32),
            _ => None,
        });
        let convolution = import.graph.nodes.iter().find_map(|node| match &node.op {
            Op::Conv2d { groups, .. } => Some(*groups),
            _ => None,
        });
        assert_eq!(convolution, Some(group.unwrap_or(1)));
    }
}

#[test]
fn signals_and_vectors_are_maps_of_one_row() {
    let mut b = Builder::new(&[1, 2, 12]);
    b.weights("w", &[4, 2, 5])
        .weights("d", &[8, 3])
        .weights("k", &[4, 4, 2]);
    b.node(
        "Conv",
        "x w > c",
        &[("pads", Ints(vec![2, 2])), ("strides", Ints(vec![2]))],
    )
    .node("Relu", "c > r", &[])
    .node(
        "AveragePool",
        "r > a",
        &[("kernel_shape", Ints(vec![2])), ("strides", Ints(vec![2]))],
    )
    .node("Conv", "a k > e", &[])
    .node("Flatten", "e > f", &[])
    .node("MatMul", "f d > y", &[]);
    b.check();
    let mut b = Builder::new(&[1, 7]);
    b.weights("w", &[7, 5])
        .weights("b", &[5])
        .weights("v", &[5, 2]);
    b.node("MatMul", "x w > m", &[])
        .node("Add", "b m > s", &[])
        .node("Identity", "s > i", &[])
        .node("Relu", "i > r", &[])
        .node("MatMul", "r v > y", &[]);
    b.check();
}

#[test]
fn masks_and_quadratics_are_read_as_exporters_write_them() {
    use ActivationKind::{Identity, Polynomial, Relu};
    let mask: Vec<bool> = (0..2 * 3 * 3).map(|i| i % 3 == 0).collect();
    let expected: Vec<ActivationKind> = mask
        .iter()
        .map(|&m| if m { Relu } else { Identity })
        .collect();
    let start = || {
        let mut b = Builder::new(&[1, 1, 3, 3]);
        b.weights("w", &[2, 1, 1, 1]).weights("d", &[2, 2, 3, 3]);
        b.node("Conv", "x w > c", &[]);
        b
    };
    let end = |b: &mut Builder| {
        b.node("Conv", "a d > z", &[]).node("Flatten", "z > y", &[]);
    };
    let mut where_ = start();
    where_
        .mask("m", &[1, 2, 3, 3], &mask)
        .node("Relu", "c > r", &[])
        .node("Where", "m r c > a", &[]);
    end(&mut where_);
    let found = where_.check();
    assert_eq!(kinds(&found.graph), [&expected[..]]);
    assert!(found.graph.nodes.iter().any(|node| node.name == "a.node"));

    let mut sums = start();
    let flags: Vec<f64> = mask.iter().map(|&m| f64::from(u8::from(m))).collect();
    let rest = flags.iter().map(|m| 1.0 - m).collect();
    sums.constant("m", Array::new(&[2, 3, 3], flags))
        .constant("n", Array::new(&[2, 3, 3], rest));
    sums.node("Relu", "c > r", &[])
        .node("Mul", "m r > p", &[])
        .node("Mul", "c n > q", &[])
        .node("Add", "p q > a", &[]);
    end(&mut sums);
    assert_eq!(kinds(&sums.check().graph), [&expected[..]]);

    let mut squares = start();
    squares
        .constant("a2", Array::new(&[2, 1, 1], vec![0.2, 0.3]))
        .constant("a1", Array::new(&[1], vec![0.5]))
        .constant("a0", Array::new(&[2, 1, 1], vec![0.1, -0.1]));
    squares
        .node("Mul", "c c > s", &[])
        .node("Mul", "s a2 > p", &[])
        .node("Mul", "c a1 > q", &[])
        .node("Add", "p q > t", &[])
        .node("Add", "t a0 > a", &[]);
    end(&mut squares);
    assert_eq!(kinds(&squares.check().graph), [[Polynomial; 18]]);

    let mut power = start();
    power
        .constant("two", Array::new(&[], vec![2.0]))
        .mask("m", &[2, 1, 1], &[true, false])
        .node("Pow", "c two > p", &[])
        .node("Relu", "c > r", &[])
        .node("Where", "m p r > a", &[]);
    end(&mut power);
    assert_eq!(
        kinds(&power.check().graph),
        [[[Polynomial; 9], [Relu; 9]].concat()]
    );
}

/// The usual place of a mask: behind a norm, whose result the ReLU and the mask both read.
#[test]
fn masks_and_quadratics_behind_norms_are_read_too() {
    let mask: Vec<bool> = (0..2 * 3 * 3).map(|i| i % 4 == 0).collect();
    let flags: Vec<f64> = mask.iter().map(|&m| f64::from(u8::from(m))).collect();
    let rest = flags.iter().map(|m| 1.0 - m).collect();
    let cases: [&[(&str, &str)]; 4] = [
        &[("Relu", "n > r"), ("Where", "m r n > a")],
        &[
            ("Relu", "n > r"),
            ("Mul", "f r > p"),
            ("Mul", "g n > q"),
            ("Add", "q p > a"),
        ],
        &[
            ("Relu", "n > r"),
            ("Mul", "n n > s"),
            ("Where", "m r s > a"),
        ],
        &[
            ("Mul", "n n > s"),
            ("Relu", "n > r"),
            ("Where", "m s r > a"),
        ],
    ];
    for nodes in cases {
        let mut b = Builder::new(&[1, 1, 3, 3]);
        b.weights("w", &[2, 1, 1, 1]).weights("d", &[2, 2, 3, 3]);
        b.weights("h", &[2])
            .constant("v", Array::new(&[2], vec![0.5, 2.0]));
        b.mask("m", &[1, 2, 3, 3], &mask);
        b.constant("f", Array::new(&[2, 3, 3], flags.clone()));
        b.constant("g", Array::new(&[2, 3, 3], Vec::clone(&rest)));
        b.node("Conv", "x w > c", &[])
            .node("BatchNormalization", "c v h h v > n", &[]);
        for (operator, line) in nodes {
            b.node(operator, line, &[]);
        }
        b.node("Conv", "a d > z", &[]).node("Flatten", "z > y", &[]);
        let import = b.check();
        assert_eq!(kinds(&import.graph).len(), 1, "{nodes:?}");
    }
}

/// The input's normalisation leaves the network; what reads its result does not read the input.
#[test]
fn functions_of_a_normalised_input_are_not_those_of_the_input() {
    let functions: [&[(&str, &str)]; 3] = [
        &[("Relu", "n > a")],
        &[("Mul", "n n > a")],
        &[("Relu", "n > r"), ("Add", "r n > a")],
    ];
    for nodes in functions {
        let mut b = Builder::new(&[1, 3, 4, 4]);
        b.constant("m", Array::new(&[3, 1, 1], vec![0.5, 0.4, 0.6]))
            .constant("s", Array::new(&[3, 1, 1], vec![4.0, 5.0, 3.0]))
            .weights("w", &[2, 3, 3, 3]);
        b.node("Sub", "x m > d", &[]).node("Mul", "d s > n", &[]);
        for (operator, line) in nodes {
            b.node(operator, line, &[]);
        }
        b.node("Conv", "a w > c", &[]).node("Flatten", "c > y", &[]);
        b.check();
    }
}

/// Training often leaves channels without any weight; their norm gives out a constant.
#[test]
fn masks_and_quadratics_may_follow_norms_with_dead_channels() {
    let mut b = Builder::new(&[1, 1, 3, 3]);
    b.weights("w", &[2, 1, 1, 1]).weights("d", &[2, 2, 3, 3]);
    b.constant("g", Array::new(&[2], vec![0.0, 1.5]))
        .constant("h", Array::new(&[2], vec![0.6, -0.2]))
        .constant("v", Array::new(&[2], vec![0.5, 2.0]))
        .constant("b1", Array::new(&[2, 1, 1], vec![0.3, 0.4]));
    b.mask("m", &[2, 3, 3], &[true, false, true].repeat(6));
    b.node("Conv", "x w > c", &[])
        .node("BatchNormalization", "c g h h v > n", &[])
        .node("Mul", "n n > s", &[])
        .node("Mul", "n b1 > l", &[])
        .node("Add", "s l > q", &[])
        .node("Relu", "n > r", &[])
        .node("Where", "m q r > a", &[])
        .node("Conv", "a d > z", &[])
        .node("Flatten", "z > y", &[]);
    let import = b.check();
    assert_eq!(kinds(&import.graph).len(), 1);
}

#[test]
fn functions_that_are_sums_of_relus_equal_their_definition() {
    let functions: [(&str, &str, Attributes); 8] = [
        ("LeakyRelu", "c > a", vec![("alpha", Float(0.2))]),
        ("PRelu", "c slope > a", vec![]),
        ("Clip", "c low high > a", vec![]),
        ("Clip", "c - high > a", vec![]),
        ("Abs", "c > a", vec![]),
        ("Max", "c o > a", vec![]),
        ("Min", "c low > a", vec![]),
        ("Sub", "c o > a", vec![]),
    ];
    for (operator, line, attributes) in functions {
        let mut b = Builder::new(&[1, 2, 4, 4]);
        b.weights("w", &[3, 2, 3, 3])
            .weights("u", &[3, 2, 3, 3])
            .weights("d", &[2, 3, 2, 2]);
        b.constant("slope", Array::new(&[3, 1, 1], vec![0.1, 0.5, -0.5]));
        b.constant("low", Array::new(&[], vec![-0.25]));
        b.constant("high", Array::new(&[], vec![0.5]));
        b.node("Conv", "x w > c", &[("pads", Ints(vec![1; 4]))])
            .node("Conv", "x u > o", &[("pads", Ints(vec![1; 4]))])
            .node(operator, line, &attributes)
            .node("Conv", "a d > z", &[])
            .node("Flatten", "z > y", &[]);
        b.check();
    }
}

#[test]
fn pools_equal_their_definition() {
    let cases: [(&str, Attributes); 9] = [
        (
            "MaxPool",
            vec![
                ("kernel_shape", Ints(vec![2, 2])),
                ("strides", Ints(vec![2, 2])),
            ],
        ),
        (
            "MaxPool",
            vec![
                ("kernel_shape", Ints(vec![5, 5])),
                ("pads", Ints(vec![2; 4])),
            ],
        ),
        (
            "MaxPool",
            vec![
                ("kernel_shape", Ints(vec![3, 2])),
                ("dilations", Ints(vec![2, 3])),
                ("strides", Ints(vec![2, 1])),
                ("pads", Ints(vec![2, 0, 1, 3])),
            ],
        ),
        (
            "MaxPool",
            vec![
                ("kernel_shape", Ints(vec![3, 2])),
                ("strides", Ints(vec![1, 2])),
            ],
        ),
        (
            "MaxPool",
            vec![
                ("kernel_shape", Ints(vec![3, 3])),
                ("strides", Ints(vec![2, 2])),
                ("pads", Ints(vec![1; 4])),
            ],
        ),
        (
            "MaxPool",
            vec![
                ("kernel_shape", Ints(vec![3, 3])),
                ("strides", Ints(vec![2, 2])),
                ("ceil_mode", Int(1)),
            ],
        ),
        (
            "AveragePool",
            vec![
                ("kernel_shape", Ints(vec![3, 2])),
                ("strides", Ints(vec![2, 1])),
            ],
        ),
        (
            "AveragePool",
            vec![
                ("kernel_shape", Ints(vec![3, 3])),
                ("pads", Ints(vec![1; 4])),
                ("count_include_pad", Int(1)),
            ],
        ),
        ("GlobalAveragePool", vec![]),
    ];
    for (operator, attributes) in cases {
        for relu in [false, true] {
            let unpadded = !attributes
                .iter()
                .any(|(name, _)| ["pads", "ceil_mode"].contains(name));
            if !relu && !unpadded && operator == "MaxPool" {
                continue;
            }
            let mut b = Builder::new(&[1, 2, 8, 8]);
            b.weights("w", &[3, 2, 1, 1]);
            b.node("Conv", "x w > c", &[]);
            let from = if relu { "r" } else { "c" };
            if relu {
                b.node("Relu", "c > r", &[]);
            }
            b.node(operator, &format!("{from} > p"), &attributes)
                .node("Flatten", "p > y", &[]);
            b.check();
        }
    }
    // A Relu behind the maximum is the same as one before it, once for each window.
    let mut b = Builder::new(&[1, 1, 4, 4]);
    b.weights("w", &[2, 1, 1, 1]);
    b.node("Conv", "x w > c", &[])
        .node("Relu", "c > r", &[])
        .node(
            "MaxPool",
            "r > p",
            &[
                ("kernel_shape", Ints(vec![2, 2])),
                ("strides", Ints(vec![2, 2])),
            ],
        )
        .node("Flatten", "p > y", &[]);
    let import = b.check();
    let sizes: Vec<usize> = kinds(&import.graph)
        .iter()
        .map(|kinds| kinds.len())
        .collect();
    assert_eq!(sizes, [16, 8, 8]);
    assert!(
        import
            .notes
            .iter()
            .any(|note| note.contains("takes 24 ReLUs")),
        "{:?}",
        import.notes
    );
}

#[test]
fn concatenations_stay_apart() {
    let mut b = Builder::new(&[1, 2, 4, 4]);
    b.weights("w", &[3, 2, 3, 3]).weights("u", &[2, 2, 1, 1]);
    b.weights("k", &[4, 5, 3, 3]).weights("l", &[6, 9, 1, 1]);
    for name in ["g", "h", "m"] {
        b.weights(name, &[5]);
    }
    b.constant("v", Array::new(&[5], vec![0.5, 1.0, 2.0, 0.1, 0.3]));
    b.weights("d", &[96, 3]);
    b.node("Conv", "x w > a", &[("pads", Ints(vec![1; 4]))])
        .node("Conv", "x u > b", &[])
        .node("Concat", "a b > c", &[("axis", Int(1))])
        .node("BatchNormalization", "c g h m v > n", &[])
        .node("Relu", "n > r", &[])
        .node("Conv", "r k > e", &[("pads", Ints(vec![1; 4]))])
        .node("Concat", "c e > f", &[("axis", Int(1))])
        .node("Conv", "f l > o", &[])
        .node("Relu", "o > q", &[])
        .node("Flatten", "q > t", &[])
        .node("MatMul", "t d > y", &[]);
    b.check();
    // Flattened maps of different sizes, one behind the other.
    let mut b = Builder::new(&[1, 2, 4, 4]);
    b.weights("w", &[3, 2, 3, 3]).weights("d", &[12 + 32, 2]);
    b.node("Conv", "x w > a", &[])
        .node("Flatten", "a > p", &[])
        .node("Flatten", "x > q", &[])
        .node("Concat", "p q > f", &[("axis", Int(1))])
        .node("MatMul", "f d > y", &[]);
    b.check();
}

/// With channels last, a flattened concatenation has its parts side by side at every position.
#[test]
fn concatenations_are_put_together_where_they_must_be() {
    let mut b = Builder::new(&[1, 2, 3, 4]);
    b.weights("w", &[3, 2, 1, 1])
        .weights("d", &[60, 4])
        .ints("flat", &[1, -1]);
    b.node("Conv", "x w > a", &[])
        .node("Concat", "a x > c", &[("axis", Int(1))])
        .node("Transpose", "c > t", &[("perm", Ints(vec![0, 2, 3, 1]))])
        .node("Reshape", "t flat > f", &[])
        .node("MatMul", "f d > y", &[]);
    b.check();
}

#[test]
fn exports_with_channels_last_are_followed() {
    let mut b = Builder::new(&[1, 6, 6, 3]);
    b.constant("mean", Array::new(&[3], vec![0.4, 0.5, 0.6]));
    b.constant("std", Array::new(&[1, 1, 1, 3], vec![0.2, 0.25, 0.3]));
    b.weights("w", &[4, 3, 3, 3])
        .weights("b", &[4])
        .weights("d", &[64, 5]);
    b.ints("flat", &[1, -1]);
    b.node("Sub", "x mean > c", &[])
        .node("Div", "c std > s", &[])
        .node("Transpose", "s > t", &[("perm", Ints(vec![0, 3, 1, 2]))])
        .node("Conv", "t w b > k", &[])
        .node("Transpose", "k > l", &[("perm", Ints(vec![0, 2, 3, 1]))])
        .node("Relu", "l > r", &[])
        .node("Reshape", "r flat > f", &[])
        .node("MatMul", "f d > y", &[]);
    let import = b.check();
    // The normalisation is done to pixels, and no layer of the network.
    let pi_ir::Preprocessing::Channels { mean, std } = &import.graph.preprocessing else {
        panic!("statistics by channel");
    };
    assert!(
        (mean[1] - 0.5).abs() < 1e-6 && (std[2] - 0.3).abs() < 1e-6,
        "{mean:?} {std:?}"
    );
    assert!(
        !import
            .graph
            .nodes
            .iter()
            .any(|n| matches!(n.op, Op::BatchNorm(_)))
    );
}

/// The classic mistake: the exported model normalises, and the user says how once more.
#[test]
fn statistics_that_are_given_twice_are_refused_or_noted() {
    let mut b = Builder::new(&[1, 3, 6, 6]);
    b.constant("mean", Array::new(&[1, 3, 1, 1], vec![0.485, 0.456, 0.406]));
    b.constant("std", Array::new(&[1, 3, 1, 1], vec![0.229, 0.224, 0.225]));
    b.weights("w", &[4, 3, 3, 3]);
    b.node("Sub", "x mean > c", &[])
        .node("Div", "c std > s", &[])
        .node("Conv", "s w > k", &[])
        .node("Flatten", "k > y", &[]);
    let import = |mean: [f32; 3], deviation: [f32; 3]| {
        let options = Options {
            mean: Some(mean.to_vec()),
            deviation: Some(deviation.to_vec()),
            ..Options::default()
        };
        parse(&b.bytes(), "twice", &options)
    };
    // Rounded, as people write them.
    let error = import([0.48, 0.46, 0.41], [0.229, 0.224, 0.225]).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("normalises its input itself"), "{error}");
    assert!(error.contains("leave them out"), "{error}");
    let noted = import([0.5; 3], [0.5; 3]).unwrap().notes;
    let noted = noted
        .iter()
        .any(|note| note.contains("after the mean [0.5"));
    assert!(noted);
    let plain = import([0.0; 3], [1.0; 3]).unwrap().notes;
    assert!(
        !plain.iter().any(|note| note.contains("itself")),
        "{plain:?}"
    );
    assert!(parse(&b.bytes(), "once", &Options::default()).is_ok());
}

/// Signals of 22 channels as a map of one column: channels come first, whatever the sizes suggest.
#[test]
fn a_last_axis_of_one_is_no_channel_where_a_convolution_says_so() {
    let mut b = Builder::new(&[1, 22, 4, 1]);
    b.weights("w", &[2, 22, 3, 1]);
    b.node("Conv", "x w > c", &[]).node("Flatten", "c > y", &[]);
    let import = b.import().unwrap();
    assert_eq!(
        import.graph.shapes().unwrap()[0],
        pi_ir::Shape::new(22, 4, 1)
    );
}

#[test]
fn padding_nodes_reductions_and_squeezes_are_followed() {
    let mut b = Builder::new(&[1, 1, 5, 6]);
    b.ints("pads", &[0, 0, 1, 0, 0, 0, 2, 1])
        .ints("axes", &[2, 3]);
    b.weights("w", &[4, 1, 3, 3]).weights("d", &[4, 3]);
    b.node("Pad", "x pads > p", &[])
        .node("Conv", "p w > c", &[])
        .node("Relu", "c > r", &[])
        .node("ReduceMean", "r axes > m", &[("keepdims", Int(0))])
        .node("MatMul", "m d > y", &[]);
    b.check();
    let mut b = Builder::new(&[1, 1, 5, 6]);
    b.ints("axes", &[2, 3])
        .weights("w", &[4, 1, 5, 6])
        .weights("d", &[4, 3]);
    b.node("Conv", "x w > c", &[])
        .node("Squeeze", "c axes > s", &[])
        .node("Relu", "s > r", &[])
        .node("Gemm", "r d > y", &[("alpha", Float(0.5))]);
    b.check();
}

/// As exporters of channels-last networks write it; padding stays with the convolution.
#[test]
fn padding_before_a_transposition_belongs_to_the_convolution_behind_it() {
    let mut b = Builder::new(&[1, 5, 6, 3]);
    b.ints("pads", &[0, 1, 0, 0, 0, 2, 1, 0])
        .weights("w", &[4, 3, 3, 3]);
    b.node("Pad", "x pads > p", &[])
        .node("Transpose", "p > t", &[("perm", Ints(vec![0, 3, 1, 2]))])
        .node("Conv", "t w > c", &[])
        .node("Flatten", "c > y", &[]);
    let import = b.check();
    assert_eq!(
        import.graph.nodes.len(),
        3,
        "input, convolution, flattening"
    );
}

/// Files that are short and ask for much, or for what does not exist.
#[test]
fn what_would_take_forever_or_does_not_exist_is_refused() {
    // Sums of sums: 2^40 paths, and a maximum that asks whether any can be negative.
    let mut b = Builder::new(&[1, 1, 4, 4]);
    b.weights("w", &[1, 1, 1, 1]).weights("v", &[1, 1, 1, 1]);
    b.node("Conv", "x w > s0", &[])
        .node("Conv", "x v > s1", &[]);
    for i in 2..60 {
        b.node("Add", &format!("s{} s{} > s{i}", i - 1, i - 2), &[]);
    }
    let pool = [
        ("kernel_shape", Ints(vec![2, 2])),
        ("pads", Ints(vec![1; 4])),
    ];
    b.node("MaxPool", "s59 > m", &pool)
        .node("Flatten", "m > y", &[]);
    assert!(b.refusal().contains("put a Relu before"), "{}", b.refusal());

    let mut b = Builder::new(&[1, 4]);
    b.ints("huge", &[1 << 26, 4]);
    b.node("ConstantOfShape", "huge > c", &[])
        .node("Add", "x c > y", &[]);
    assert!(b.refusal().contains("is too large"), "{}", b.refusal());

    let mut b = Builder::new(&[1, 4]);
    b.ints("twice", &[1, 1])
        .ints("zero", &[0, 0])
        .weights("w", &[4, 4]);
    b.node("Slice", "w twice zero zero > v", &[])
        .node("MatMul", "x v > y", &[]);
    assert!(b.refusal().contains("name one twice"), "{}", b.refusal());
    let mut b = Builder::new(&[1, 4]);
    b.ints("flat", &[4]).weights("e", &[0]);
    b.node("Reshape", "x flat > f", &[])
        .node("BatchNormalization", "f e e e e > y", &[]);
    assert!(b.refusal().contains("without channels"), "{}", b.refusal());
    let mut b = Builder::new(&[1, 1, 3, 3]);
    b.weights("w", &[0, 1, 1, 1]);
    b.node("Conv", "x w > c", &[]).node("Flatten", "c > y", &[]);
    assert!(b.refusal().contains("is empty"), "{}", b.refusal());
}

#[test]
fn every_fault_is_listed_with_node_operator_and_remedy() {
    let mut b = Builder::new(&[1, 3, 8, 8]);
    b.weights("w", &[4, 3, 3, 3]).weights("v", &[4, 5, 1, 1]);
    b.node("Conv", "x w > c", &[])
        .node("HardSwish", "c > h", &[])
        .node("Conv", "c v > k", &[])
        .node("InstanceNormalization", "h > n", &[])
        .node("Mystery", "n k > q", &[])
        .node("Flatten", "q > y", &[]);
    let refusal = b.refusal();
    for part in [
        "4 faults:",
        "h.node (HardSwish): not supported: it has no private form",
        "k.node (Conv): weights of [4, 5, 1, 1] in 1 groups do not fit 4 channels",
        "n.node (InstanceNormalization): not supported: it divides by statistics",
        "q.node (Mystery): not supported",
    ] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
}

#[test]
fn products_of_different_tensors_and_padded_maxima_are_refused() {
    let mut b = Builder::new(&[1, 2, 4, 4]);
    b.weights("w", &[2, 2, 1, 1]).weights("u", &[2, 2, 1, 1]);
    b.node("Conv", "x w > a", &[])
        .node("Conv", "x u > c", &[])
        .node("Mul", "a c > m", &[])
        .node("Flatten", "m > y", &[]);
    assert!(
        b.refusal()
            .contains("m.node (Mul): it multiplies two different"),
        "{}",
        b.refusal()
    );
    let mut b = Builder::new(&[1, 2, 4, 4]);
    b.weights("w", &[2, 2, 1, 1]);
    let pool = [
        ("kernel_shape", Ints(vec![3, 3])),
        ("pads", Ints(vec![1; 4])),
    ];
    b.node("Conv", "x w > a", &[])
        .node("MaxPool", "a > m", &pool)
        .node("Flatten", "m > y", &[]);
    assert!(b.refusal().contains("put a Relu before"), "{}", b.refusal());
}

#[test]
fn cycles_missing_tensors_and_versions_are_named() {
    let mut b = Builder::new(&[1, 4]);
    b.weights("w", &[4, 4]);
    b.node("Add", "x z > a", &[]).node("MatMul", "a w > z", &[]);
    assert!(
        b.refusal().contains("computed from its own result"),
        "{}",
        b.refusal()
    );
    let mut b = Builder::new(&[1, 4]);
    b.node("MatMul", "x lost > y", &[]);
    assert!(
        b.refusal().contains("it reads lost, which nothing makes"),
        "{}",
        b.refusal()
    );
    let mut b = Builder::new(&[1, 4]);
    b.weights("w", &[4, 4]).node("MatMul", "x w > y", &[]);
    b.opset = 5;
    assert!(b.refusal().contains("version 5"), "{}", b.refusal());
    b.opset = 18;
    b.graph.node.push(b.graph.node[0].clone());
    assert!(
        b.refusal().contains("two nodes make the tensor y"),
        "{}",
        b.refusal()
    );
}

#[test]
fn what_a_file_leaves_open_is_asked_for() {
    let mut b = Builder::new(&[1, 3, 8, 8]);
    b.weights("w", &[4, 3, 3, 3]);
    b.node("Conv", "x w > c", &[]).node("Flatten", "c > y", &[]);
    b.graph.input[0] = ValueInfoProto::of("x", &[None, Some(3), None, None]);
    assert!(b.refusal().contains("--input CxHxW"), "{}", b.refusal());
    let options = Options {
        input: Some(pi_ir::Shape::new(3, 6, 5)),
        mean: Some(vec![0.5]),
        deviation: Some(vec![0.1, 0.2, 0.4]),
        ..Options::default()
    };
    let import = parse(&b.bytes(), "open", &options).unwrap();
    assert_eq!(import.graph.shapes().unwrap().last().unwrap().c, 4 * 4 * 3);
    let expected = pi_ir::Preprocessing::Channels {
        mean: vec![0.5; 3],
        std: vec![0.1, 0.2, 0.4],
    };
    assert_eq!(import.graph.preprocessing, expected);
    b.graph.output = vec![ValueInfoProto::of("c", &[]), ValueInfoProto::of("y", &[])];
    assert!(b.refusal().contains("--output"), "{}", b.refusal());
    let wrong = Options {
        input: Some(pi_ir::Shape::new(1, 6, 5)),
        ..Options::default()
    };
    assert!(parse(&b.bytes(), "open", &wrong).is_err());
}

#[test]
fn a_softmax_at_the_end_is_left_out_and_said_and_none_is_allowed_inside() {
    let mut b = Builder::new(&[1, 4]);
    b.weights("w", &[4, 3]).weights("v", &[3, 2]);
    b.node("MatMul", "x w > m", &[])
        .node("Softmax", "m > y", &[]);
    let import = b.import().unwrap();
    assert!(matches!(
        import.graph.nodes.last().unwrap().op,
        Op::Dense { .. }
    ));
    assert!(
        import.notes.iter().any(|note| note.starts_with("Softmax")),
        "{:?}",
        import.notes
    );
    b.node("MatMul", "y v > z", &[]);
    assert!(
        b.refusal().contains("Softmax may only come last"),
        "{}",
        b.refusal()
    );
}

#[test]
fn a_filter_of_zeros_gives_its_bias_and_weights_that_are_no_numbers_are_refused() {
    let mut b = Builder::new(&[1, 1, 3, 3]);
    b.constant("w", Array::new(&[2, 1, 1, 1], vec![0.0, 1.0]))
        .weights("b", &[2]);
    b.node("Conv", "x w b > c", &[])
        .node("Flatten", "c > y", &[]);
    b.check();
    b.graph.initializer[0].float_data[1] = f32::NAN;
    assert!(
        b.refusal().contains("c.node (Conv): value 1"),
        "{}",
        b.refusal()
    );
}

#[test]
fn external_data_is_read_from_the_folder_and_from_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut b = Builder::new(&[1, 2]);
    b.weights("w", &[2, 2]).node("MatMul", "x w > y", &[]);
    let weights = std::mem::take(&mut b.graph.initializer[0].float_data);
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let entry = |key: &str, value: &str| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
    };
    let tensor = &mut b.graph.initializer[0];
    tensor.data_location = Some(EXTERNAL);
    tensor.external_data = vec![entry("location", "weights.bin"), entry("offset", "4")];
    let model = folder.path().join("model.onnx");
    std::fs::write(&model, b.bytes()).unwrap();
    let data = folder.path().join("weights.bin");
    let refusal = || read(&model, &Options::default()).unwrap_err().to_string();
    assert!(refusal().contains("weights.bin"), "{}", refusal());
    std::fs::write(&data, [&[0; 4][..], &bytes[..15]].concat()).unwrap();
    assert!(
        refusal().contains("needs 16 bytes from 4 of"),
        "{}",
        refusal()
    );
    std::fs::write(&data, [&[0; 4][..], &bytes[..]].concat()).unwrap();
    let import = read(&model, &Options::default()).unwrap();
    let Op::Dense { weight, .. } = &import.graph.nodes[1].op else {
        panic!("a dense node");
    };
    assert_eq!(weight[..], [weights[0], weights[2], weights[1], weights[3]]);
    for outside in ["../weights.bin", "/etc/passwd"] {
        b.graph.initializer[0].external_data[0] = entry("location", outside);
        std::fs::write(&model, b.bytes()).unwrap();
        assert!(
            refusal().contains("outside the model's folder"),
            "{}",
            refusal()
        );
    }
    assert!(
        b.refusal().contains("outside the model's folder"),
        "{}",
        b.refusal()
    );
}

/// Files that end early, or have any byte changed: an error or another model, and no panic.
#[test]
fn damaged_files_end_in_errors() {
    let mut b = Builder::new(&[1, 2, 4, 4]);
    b.weights("w", &[3, 2, 3, 3])
        .weights("d", &[12, 2])
        .ints("flat", &[1, -1]);
    b.node("Conv", "x w > c", &[("pads", Ints(vec![0; 4]))])
        .node("Relu", "c > r", &[])
        .node("Reshape", "r flat > f", &[])
        .node("MatMul", "f d > y", &[]);
    let bytes = b.bytes();
    for end in 0..bytes.len() {
        assert!(
            parse(&bytes[..end], "cut", &Options::default()).is_err(),
            "{end}"
        );
    }
    for index in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[index] ^= flip;
            let _ = parse(&damaged, "damaged", &Options::default());
        }
    }
}

/// Rows, signals and maps of other channels than pictures have are real values, as they are.
#[test]
fn what_is_no_picture_is_read_as_real_values() {
    let read = |input: &[usize], options: &Options| {
        let mut b = Builder::new(input);
        let weight = [vec![2, input[1]], vec![1; input.len() - 2]].concat();
        if input.len() == 2 {
            b.weights("w", &[input[1], 2])
                .node("MatMul", "x w > y", &[]);
        } else {
            b.weights("w", &weight).node("Conv", "x w > y", &[]);
        }
        parse(&b.bytes(), "kind", options).map(|import| import.graph.preprocessing)
    };
    let values = |channels, mean: f32, std: f32, bound| Preprocessing::Values {
        mean: vec![mean; channels],
        std: vec![std; channels],
        bound,
    };
    let plain = Options::default();
    for (input, channels) in [
        (&[1, 5][..], 5),
        (&[1, 1], 1),
        (&[1, 3, 20], 3),
        (&[1, 12, 20], 12),
        (&[1, 4, 8, 8], 4),
    ] {
        let expected = values(channels, 0.0, 1.0, None);
        assert_eq!(read(input, &plain).unwrap(), expected, "{input:?}");
    }
    for channels in [1, 3] {
        let picture = read(&[1, channels, 8, 8], &plain).unwrap();
        assert_eq!(picture, Preprocessing::unit(channels as u32));
    }
    // Either way if it is asked for, with statistics and a bound that are stated.
    let options = Options {
        kind: Some(InputKind::Values),
        bound: Some(6.0),
        mean: Some(vec![-2.0]),
        deviation: Some(vec![40.0]),
        ..Options::default()
    };
    let forced = read(&[1, 3, 8, 8], &options).unwrap();
    assert_eq!(forced, values(3, -2.0, 40.0, Some(6.0)));
    let options = Options {
        kind: Some(InputKind::Image),
        ..Options::default()
    };
    assert_eq!(read(&[1, 5], &options).unwrap(), Preprocessing::unit(5));
    let options = Options {
        bound: Some(6.0),
        ..options
    };
    let error = read(&[1, 5], &options).unwrap_err().to_string();
    assert!(error.contains("leave --input-bound out"), "{error}");
}

/// A table's columns in units of their own.
#[test]
fn a_leading_normalisation_of_values_becomes_mean_and_deviation() {
    let mut b = Builder::new(&[1, 3]);
    b.constant("m", Array::new(&[3], vec![20.0, 10.0, -5.0]));
    b.constant("s", Array::new(&[3], vec![4.0, 0.5, 8.0]));
    b.weights("w", &[3, 2]);
    b.node("Sub", "x m > c", &[])
        .node("Div", "c s > n", &[])
        .node("MatMul", "n w > y", &[]);
    let import = b.check();
    let expected = Preprocessing::Values {
        mean: vec![20.0, 10.0, -5.0],
        std: vec![4.0, 0.5, 8.0],
        bound: None,
    };
    assert_eq!(import.graph.preprocessing, expected);
    assert_eq!(import.graph.nodes.len(), 2);
    let note = "the input of 3x1x1 is read as real values";
    assert!(
        import.notes.iter().any(|n| n.contains(note)),
        "{:?}",
        import.notes
    );
}
