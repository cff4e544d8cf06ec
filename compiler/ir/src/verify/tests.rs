use crate::preprocessing::Preprocessing;
use crate::random;
use crate::text::{parse_circuit, parse_graph};
use crate::weights::{LayerWeights, Polynomial, Weights};

const CIRCUIT: &str = r#"circuit "tiny"
input 1x4x4 frac 6
mean 0.5
std 0.25
classes "no" "yes"
layer "first" 2x4x4 bound 20 proved
  conv t0 out 2 kernel 3x3 stride 1x1 pad 1,1,1,1 bits 7
  activate truncate 7 frac 6
  square truncate 6 bound 28 proved
  polynomial truncate 9 bound 30 calibrated 77777
  kinds relu*16 identity*8 square*4 polynomial*4
layer "second" 2x2x2 bound 22 calibrated 1000
  conv t1 out 2 kernel 1x1 stride 1x1 pad 0,0,0,0 bits 7
  residual t1 shift 7
  pool 2x2 stride 2x2
  activate truncate 9 frac 6
  kinds relu*8
layer "third" 2x2x2 bound 22 proved
  residual t2 shift 4
  residual t1 shift 0 window 2x2 stride 2x2 from 0,0 count 2x2
  activate truncate 4 frac 6
  kinds identity*8
layer "dense" 2x1x1 bound 40 proved
  conv t3 out 2 kernel 2x2 stride 1x1 pad 0,0,0,0 bits 9
  output frac 12 reveal label
"#;

fn weights() -> Weights {
    let layer = |kernels: &[usize], polynomials| LayerWeights {
        kernels: kernels.iter().map(|&n| vec![1; n]).collect(),
        bias: vec![0; 2],
        element_bias: vec![],
        polynomials: vec![Polynomial { a: 1, b: 2, k: 3 }; polynomials],
    };
    Weights {
        layers: vec![
            layer(&[18], 2),
            layer(&[4], 0),
            layer(&[], 0),
            layer(&[16], 0),
        ],
    }
}

#[test]
fn sound_examples_have_no_fault() {
    let circuit = parse_circuit(CIRCUIT).unwrap();
    let circuit = super::circuit(circuit).unwrap();
    assert_eq!(super::weights(&circuit, &weights()), []);
}

/// Nobody garbles a sign there, so no sign circuit can be too wide.
#[test]
fn layers_without_relus_may_have_any_bound_of_the_field() {
    let third = "layer \"third\" 2x2x2 bound 22";
    assert!(CIRCUIT.contains(third));
    let wide = CIRCUIT.replace(third, "layer \"third\" 2x2x2 bound 50");
    assert!(super::circuit(parse_circuit(&wide).unwrap()).is_ok());
    let with_one = wide.replace("kinds identity*8", "kinds relu*1 identity*7");
    let faults = super::circuit(parse_circuit(&with_one).unwrap()).unwrap_err();
    let faults = super::list(&faults);
    assert!(
        faults.contains("layer 2 (third): a sign circuit of 47 bits"),
        "{faults}"
    );
}

#[test]
fn each_fault_of_a_circuit_is_found_and_named() {
    // Text changed, its replacement, part of the place, part of the problem.
    let cases = [
        (
            "circuit \"tiny\"",
            "circuit \"\"",
            "circuit",
            "1 to 256 bytes",
        ),
        ("\"no\"", "\"n\\no\"", "class 0", "control"),
        (
            "bound 20 proved",
            "bound 20 proved guard 9",
            "layer 0 (first)",
            "a guard of 9 bits, the limit is 8",
        ),
        (
            "bound 20 proved",
            "bound 34 proved guard 5",
            "layer 0 (first)",
            "a sign circuit of 33 bits",
        ),
        (
            "bound 22 proved",
            "bound 22 proved guard 1",
            "layer 2 (third)",
            "no garbled circuit",
        ),
        (
            "bound 40 proved",
            "bound 56 proved guard 4",
            "layer 3 (dense)",
            "an arg max of 61 bits",
        ),
        ("\"no\" ", "", "classes", "1 names"),
        ("input 1x4x4", "input 0x4x4", "input", "empty"),
        ("input 1x4x4", "input 1x9999999x4", "input", "limits"),
        ("frac 6\nmean", "frac 60\nmean", "input", "fractional"),
        ("frac 6\nmean", "frac 40\nmean", "input", "beyond 2^30"),
        (
            "mean 0.5",
            "mean 0.5 0.5",
            "input",
            "expected 1 means, got 2",
        ),
        ("mean 0.5", "mean inf", "input", "not finite"),
        ("std 0.25", "std 0", "input", "not positive"),
        (
            "mean 0.5\nstd 0.25",
            "standardise floor 0",
            "input",
            "floor of the deviation is 0",
        ),
        (
            "frac 6\nmean 0.5\nstd 0.25",
            "frac 30\nstandardise floor 20",
            "input",
            "beyond 2^30",
        ),
        (
            "layer \"second\"",
            "layer \"first\"",
            "layer 1 (first)",
            "unique",
        ),
        ("bound 20", "bound 59", "layer 0 (first)", "2^58"),
        (
            "truncate 7 frac",
            "truncate 21 frac",
            "layer 0",
            "cuts 21 bits",
        ),
        ("bound 20", "bound 39", "layer 0", "sign circuit of 33 bits"),
        (
            "calibrated 1000",
            "calibrated 9000000",
            "layer 1",
            "9000000 was seen",
        ),
        (
            "calibrated 77777",
            "calibrated 1073741825",
            "polynomials",
            "seen",
        ),
        (
            "  square truncate 6 bound 28 proved\n",
            "",
            "layer 0",
            "has squares, but no second",
        ),
        (
            "square truncate 6 bound 28",
            "square truncate 6 bound 5",
            "layer 0 (first), squares",
            "cuts 6",
        ),
        ("relu*16", "relu*15", "layer 0", "expected 32 kinds, got 31"),
        (
            "t0 out 2",
            "t1 out 2",
            "term 0",
            "reads tensor 1; only 0 to 0",
        ),
        ("t0 out 2", "t1 out 2", "input", "no layer reads it"),
        ("kernel 3x3", "kernel 7x3", "term 0", "no window"),
        (
            "kernel 3x3 stride 1x1",
            "kernel 3x3 stride 0x1",
            "term 0",
            "no window",
        ),
        ("pad 1,1,1,1", "pad 4000000000,1,1,1", "term 0", "exceeds"),
        (
            "kernel 3x3",
            "kernel 2x3",
            "layer 0",
            "declares 2x4x4, but its terms make 2x5x4",
        ),
        ("bits 7", "bits 16", "term 0", "weights of 16 bits"),
        (
            "t1 out 2",
            "t1 out 3",
            "term 1",
            "makes 2x4x4, the terms before it 3x4x4",
        ),
        ("t0 out 2", "t0 out 0", "term 0", "no output channels"),
        (
            "pad 1,1,1,1",
            "pad 100,1000000,1,1",
            "term 0",
            "exceeds the limits",
        ),
        (
            "out 2 kernel 3x3",
            "out 2 groups 2 kernel 3x3",
            "term 0",
            "2 groups do not divide",
        ),
        (
            "out 2 kernel 3x3",
            "out 2 groups 0 kernel 3x3",
            "term 0",
            "0 groups",
        ),
        ("from 0,0 count", "from 0,9999999 count", "term 1", "origin"),
        (
            "residual t2 shift 4\n  residual t1 shift 0 window 2x2 stride 2x2 from 0,0",
            "residual t2 shift 4 window 1x1 stride 1x1 from 0,1 count 2x2\n  residual t2 shift 4 \
             minus window 1x1 stride 1x1 from 0,1",
            "layer 2 (third)",
            "element 0 of its sum reads nothing",
        ),
        (
            "residual t2 shift 4\n  residual t1 shift 0 window 2x2 stride 2x2 from 0,0",
            "residual t2 shift 4 window 1x1 stride 1x1 from 0,1 count 2x2\n  residual t1 shift 0 \
             window 1x1 stride 2x2 from 0,3",
            "layer 2 (third)",
            "element 1 of its sum reads nothing",
        ),
        ("count 2x2", "count 2x3", "term 1", "makes 2x2x3"),
        ("window 2x2", "window 0x2", "term 1", "without rows"),
        (
            "window 2x2 stride 2x2 from 0,0",
            "window 1000000x1000000 stride 2x2 from 0,0",
            "term 1",
            "windows that read",
        ),
        (
            "residual t1 shift 7",
            "residual t1 shift 59",
            "layer 1 (second), term 1",
            "59 bits",
        ),
        (
            "residual t2 shift 4",
            "residual t2 shift 5",
            "layer 2 (third), term 0",
            "2^11",
        ),
        (
            "pool 2x2 stride 2x2\n  activate",
            "pool 5x2 stride 2x2\n  activate",
            "layer 1",
            "pooling",
        ),
        (
            "  residual t2 shift 4\n",
            "",
            "layer 1 (second)",
            "no layer reads its tensor",
        ),
        (
            "  activate truncate 9 frac 6\n  kinds relu*8",
            "  output frac 6 reveal logits",
            "layer 1",
            "not the last",
        ),
        (
            "  output frac 12 reveal label",
            "  activate truncate 0 frac 6\n  kinds relu*2",
            "layer 3",
            "not an output",
        ),
        (
            "truncate 9 frac 6",
            "truncate 9 frac 49",
            "layer 1",
            "fractional",
        ),
        ("frac 12", "frac 121", "layer 3", "multiples of 2^-121"),
        ("frac 12", "frac -121", "layer 3", "multiples of 2^121"),
    ];
    for (from, to, place, problem) in cases {
        assert!(CIRCUIT.contains(from), "{from}");
        let circuit = parse_circuit(&CIRCUIT.replacen(from, to, 1)).unwrap();
        let faults = super::circuit(circuit).unwrap_err();
        assert!(
            faults
                .iter()
                .any(|f| f.place.contains(place) && f.problem.contains(problem)),
            "{from} -> {to}: {faults:?}"
        );
    }
}

#[test]
fn all_faults_are_listed_not_only_the_first() {
    let text = CIRCUIT
        .replace("mean 0.5", "mean nan")
        .replace("relu*16", "relu*15")
        .replace("bits 9", "bits 0");
    let faults = super::circuit(parse_circuit(&text).unwrap()).unwrap_err();
    assert_eq!(faults.len(), 3, "{faults:?}");
    let mut empty = parse_circuit(CIRCUIT).unwrap();
    empty.layers.clear();
    assert_eq!(super::circuit(empty).unwrap_err().len(), 2);
}

#[test]
fn each_fault_of_weights_is_found_and_hides_the_values() {
    let circuit = super::circuit(parse_circuit(CIRCUIT).unwrap()).unwrap();
    let faults = |change: fn(&mut Weights)| {
        let mut weights = weights();
        change(&mut weights);
        let faults = super::weights(&circuit, &weights);
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].to_string()
    };
    assert!(faults(|w| drop(w.layers.pop())).contains("expected 4 layers, got 3"));
    assert!(faults(|w| w.layers[2].kernels.push(vec![])).contains("kernels"));
    assert!(faults(|w| w.layers[1].kernels[0].push(0)).contains("expected 4 weights"));
    let large = faults(|w| w.layers[1].kernels[0][0] = -128);
    assert!(large.contains("2^7") && !large.contains("128"), "{large}");
    assert!(faults(|w| w.layers[1].bias[0] = -1 << 59).contains("a bias exceeds 2^58"));
    assert!(faults(|w| w.layers[1].bias.clear()).contains("expected 2 biases"));
    let short = faults(|w| w.layers[2].element_bias = vec![0; 7]);
    assert!(
        short.contains("expected 8 biases by element, got 7"),
        "{short}"
    );
    let large = faults(|w| w.layers[2].element_bias = vec![i64::MIN; 8]);
    assert!(large.contains("a bias exceeds 2^58"), "{large}");
    let mut legal = weights();
    legal.layers[2].element_bias = vec![-5; 8];
    assert_eq!(super::weights(&circuit, &legal), []);
    assert!(faults(|w| w.layers[0].polynomials.truncate(1)).contains("polynomials"));
    assert!(faults(|w| w.layers[0].polynomials[0].a = i64::MIN).contains("2^58"));
}

const GRAPH: &str = r#"graph "tiny"
mean 0.5
std 0.25
node "input" input 1x4x4
node "conv" conv %0 out 2 kernel 3x3 stride 1x1 pad 1,1,1,1 bias
node "norm" norm %1 eps 0.00001
node "act" act %2 kinds relu*16 identity*8 polynomial*8
node "add" add %3 %1
node "pool" pool %4 kernel 2x2 stride 2x2
node "flat" flatten %5
node "fc" dense %6 out 2 bias
"#;

#[test]
fn each_fault_of_a_graph_is_found_and_named() {
    use crate::graph::{Node, NodeId, Op};
    let sound = parse_graph(GRAPH).unwrap();
    assert_eq!(super::graph(&sound), []);
    let found = |change: fn(&mut Vec<Node>), place: &str, problem: &str| {
        let mut graph = sound.clone();
        change(&mut graph.nodes);
        let faults = super::graph(&graph);
        assert!(
            faults
                .iter()
                .any(|f| f.place.contains(place) && f.problem.contains(problem)),
            "{place}, {problem}: {faults:?}"
        );
    };
    found(|n| n.clear(), "graph", "no nodes");
    found(|n| n[2].name = "conv".into(), "node 2 (conv)", "unique");
    found(
        |n| n[1].inputs[0] = NodeId(5),
        "node 1",
        "does not come before",
    );
    found(
        |n| n[4].inputs.truncate(1),
        "node 4 (add)",
        "reads 2 nodes, not 1",
    );
    found(|n| n[4].inputs[1] = NodeId(0), "node 4 (add)", "adds");
    found(
        |n| n[7].inputs[0] = NodeId(5),
        "node 6 (flat)",
        "no node reads it",
    );
    found(|n| n[7].inputs[0] = NodeId(5), "node 7 (fc)", "flattened");
    found(|n| n.truncate(6), "node 5 (pool)", "is the output");
    found(|n| n.swap(0, 1), "node 1", "only it, is the input");
    fn edit(nodes: &mut [Node], at: usize, value: f32, length: usize) {
        let list = match &mut nodes[at].op {
            Op::Conv2d { weight, .. } | Op::Dense { weight, .. } => weight,
            Op::BatchNorm(norm) => &mut norm.var,
            other => panic!("no list in {other:?}"),
        };
        list[0] = value;
        list.truncate(length);
    }
    found(|n| edit(n, 1, f32::NAN, 18), "node 1 (conv)", "not finite");
    found(
        |n| edit(n, 1, 0.0, 17),
        "node 1 (conv)",
        "expected 18 weights, got 17",
    );
    found(
        |n| edit(n, 7, 0.0, 15),
        "node 7 (fc)",
        "expected 16 weights, got 15",
    );
    found(|n| edit(n, 2, -1.0, 2), "node 2 (norm)", "variance");
    found(
        |n| edit(n, 2, 1.0, 1),
        "node 2 (norm)",
        "expected 2 variances, got 1",
    );
    fn activation(nodes: &mut [Node], kinds: usize, triples: usize) {
        let Op::Activation {
            kinds: k,
            coefficients,
        } = &mut nodes[3].op
        else {
            panic!("node 3 is the activation");
        };
        k.truncate(kinds);
        coefficients.truncate(triples);
    }
    found(
        |n| activation(n, 31, 2),
        "node 3 (act)",
        "expected 32 kinds, got 31",
    );
    found(
        |n| activation(n, 32, 1),
        "node 3 (act)",
        "coefficient triples",
    );

    let mut graph = sound.clone();
    graph.preprocessing = Preprocessing::Channels {
        mean: Vec::new(),
        std: vec![-1.0],
    };
    graph.classes = vec!["one".into()];
    assert_eq!(super::graph(&graph).len(), 3);

    let channels = graph.shapes().unwrap()[0].c as usize;
    graph.classes.clear();
    for (bound, faults) in [
        (None, 0),
        (Some(3.5), 0),
        (Some(-1.0), 1),
        (Some(f32::NAN), 1),
    ] {
        graph.preprocessing = Preprocessing::Values {
            mean: vec![0.0; channels],
            std: vec![1.0; channels],
            bound,
        };
        assert_eq!(super::graph(&graph).len(), faults, "{bound:?}");
    }
}

#[test]
fn a_circuit_states_how_large_its_values_are() {
    let (circuit, _) = (0..)
        .map(|seed| random::circuit(seed, &random::Options::default()))
        .find(|(circuit, _)| circuit.preprocessing.is_values())
        .unwrap();
    let found = |own: Option<f32>| {
        let mut circuit = circuit.clone().into_inner();
        let Preprocessing::Values { bound, .. } = &mut circuit.preprocessing else {
            panic!("it reads values");
        };
        *bound = own;
        super::circuit(circuit).map_err(|faults| super::list(&faults))
    };
    assert!(found(Some(1.0)).is_ok());
    for (bound, says) in [
        (None, "input: its values have no bound"),
        (
            Some(f32::INFINITY),
            "input: the bound is not positive and finite",
        ),
        (Some(1e9), "beyond 2^30"),
    ] {
        let faults = found(bound).unwrap_err();
        assert!(faults.contains(says), "{faults}");
    }
}
