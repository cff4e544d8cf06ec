//! Quadratics as plain squares: the same function as before, as exact in fixed point as with
//! private coefficients, and cheaper.

use pi_compiler::cost::evaluate::compare;
use pi_compiler::examples::Examples;
use pi_compiler::pass::calibrate::{FloatWeights, magnitudes};
use pi_compiler::pass::fold::fold;
use pi_compiler::pass::lower::{Kept, Lowered, Pools, lower, lower_and_measure};
use pi_compiler::pass::quantise::{Identity, Precision, quantise, scales};
use pi_compiler::pass::range;
use pi_compiler::pass::select::{Link, select};
use pi_compiler::real_circuit::{RealCircuit, Step};
use pi_compiler::{Options, compile, emit};
use pi_ir::builders::{Builder, ConvShape, Policy, Rest, lean9};
use pi_ir::count::{Activations, layer_activations};
use pi_ir::random::{GraphOptions, graph as random_graph};
use pi_ir::{
    ActivationKind, Circuit, Graph, Kind, NodeId, Op, Padding, Reveal, Shape, Verified, Weights,
    interpret,
};
use pi_protocol::cost;

/// The quadratic `a z^2 + z / 2 + a` with `a = 1 / (2 sqrt(2 pi))`.
const FIXED: [f32; 3] = [0.199_471_14, 0.5, 0.199_471_14];

use ActivationKind::{Identity as I, Polynomial as Q, Relu as R};

/// Images that norms and bounds are calibrated on: quadratics may run away on others.
const IMAGES: usize = 12;

/// Kinds for a channel and an element's number in it.
type Mask = fn(usize, usize) -> ActivationKind;

const ALL: Mask = |_, _| Q;
const BY_CHANNEL: Mask = |channel, _| [Q, R, I][channel % 3];
const INSIDE_CHANNELS: Mask = |channel, element| [Q, R, Q, I, Q][(channel + element) % 5];
const MASKS: [(&str, Mask); 3] = [
    ("all", ALL),
    ("by channel", BY_CHANNEL),
    ("inside channels", INSIDE_CHANNELS),
];

fn act(net: &mut Builder, name: &str, from: NodeId, mask: Mask) -> NodeId {
    let shape = net.shape(from);
    let positions = (shape.h * shape.w) as usize;
    let kinds = (0..shape.len()).map(|e| mask(e / positions, e % positions));
    net.activation(name, from, kinds.collect())
}

/// These coefficients for each channel, random biases, and norms with the statistics of some
/// images, as after training: values stay of one size, however deep the network.
fn trained(mut graph: Graph, coefficients: fn(usize) -> [f32; 3]) -> Graph {
    let mut state = 1u32;
    let mut draw = |low: f32, high: f32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        low + (high - low) * (state >> 8) as f32 / (1 << 24) as f32
    };
    for node in &mut graph.nodes {
        match &mut node.op {
            Op::BatchNorm(norm) => {
                norm.gamma.iter_mut().for_each(|v| *v = draw(0.5, 1.5));
                norm.beta.iter_mut().for_each(|v| *v = draw(-0.5, 0.5));
            }
            Op::Conv2d { bias, .. } | Op::Dense { bias, .. } => {
                bias.iter_mut().for_each(|v| *v = draw(-0.3, 0.3));
            }
            Op::Activation {
                coefficients: own, ..
            } => {
                for (channel, own) in own.iter_mut().enumerate() {
                    *own = coefficients(channel);
                }
            }
            _ => {}
        }
    }
    let images = normalised(&graph, IMAGES);
    for index in 0..graph.nodes.len() {
        if !matches!(graph.nodes[index].op, Op::BatchNorm(_)) {
            continue;
        }
        let input = graph.nodes[index].inputs[0].0 as usize;
        let values = images.iter().flat_map(|image| {
            let mut values = interpret::float_values(&graph, image).unwrap();
            values.swap_remove(input)
        });
        let values: Vec<f32> = values.collect();
        let Op::BatchNorm(norm) = &mut graph.nodes[index].op else {
            unreachable!("it was one above");
        };
        let (channels, plane) = (
            norm.mean.len(),
            values.len() / images.len() / norm.mean.len(),
        );
        for channel in 0..channels {
            let planes = values.chunks_exact(plane).skip(channel).step_by(channels);
            let own: Vec<f32> = planes.flatten().copied().collect();
            let mean = own.iter().sum::<f32>() / own.len() as f32;
            let square = own.iter().map(|v| (v - mean).powi(2)).sum::<f32>();
            (norm.mean[channel], norm.var[channel]) = (mean, square / own.len() as f32 + 1e-3);
        }
    }
    graph
}

/// Padding on all sides and on some, strides, a pool before a norm and after an activation, a
/// global pool, a dense head.
fn chain(mask: Mask, coefficients: fn(usize) -> [f32; 3]) -> Graph {
    let mut net = Builder::new("chain", Shape::new(3, 12, 12), 1);
    let mut x = net.conv("conv1", NodeId(0), ConvShape::same(7, 3, 1));
    x = net.pool("pool1", x, (2, 2), (2, 2));
    x = net.norm("norm1", x);
    x = act(&mut net, "act1", x, mask);
    let uneven = Padding {
        top: 1,
        left: 0,
        bottom: 2,
        right: 1,
    };
    let shape = ConvShape {
        out_channels: 6,
        groups: 1,
        kernel: (3, 2),
        stride: (1, 1),
        padding: uneven,
        bias: true,
    };
    x = net.conv("conv2", x, shape);
    x = act(&mut net, "act2", x, mask);
    x = net.pool("pool2", x, (2, 2), (1, 2));
    x = net.conv_norm("conv3", x, 8, 3, 2);
    x = act(&mut net, "act3", x, mask);
    let Shape { h, w, .. } = net.shape(x);
    x = net.pool("pool3", x, (h, w), (h, w));
    x = net.flatten("flatten", x);
    x = net.dense("hidden", x, 9);
    x = act(&mut net, "act4", x, mask);
    x = net.dense("classifier", x, 5);
    trained(net.finish(x), coefficients)
}

/// Additions read activations; one activation reads an addition with a residual, one a sum of
/// convolutions, and the last feeds the output as it is.
fn residual(mask: Mask, coefficients: fn(usize) -> [f32; 3]) -> Graph {
    let mut net = Builder::new("residual", Shape::new(2, 8, 8), 2);
    let x = net.conv_norm("stem", NodeId(0), 6, 3, 1);
    let x = act(&mut net, "stem.act", x, mask);
    let y = net.conv_norm("a", x, 6, 3, 1);
    let y = act(&mut net, "a.act", y, mask);
    let y = net.conv_norm("b", y, 6, 3, 1);
    let x = net.add("add", x, y);
    let x = act(&mut net, "add.act", x, mask);
    let left = net.conv_norm("left", x, 6, 3, 2);
    let right = net.conv_norm("right", x, 6, 1, 2);
    let x = net.add("join", left, right);
    let x = act(&mut net, "join.act", x, mask);
    let x = net.pool("pool", x, (4, 4), (4, 4));
    let x = net.flatten("flatten", x);
    let x = net.dense("classifier", x, 6);
    let x = act(&mut net, "last.act", x, mask);
    trained(net.finish(x), coefficients)
}

fn shape(graph: &Graph) -> Shape {
    match graph.nodes[0].op {
        Op::Input { shape } => shape,
        _ => panic!("node 0 is the input"),
    }
}

fn normalised(graph: &Graph, count: usize) -> Vec<Vec<f32>> {
    Examples::synthetic(shape(graph), count, 5)
        .reals(&graph.preprocessing)
        .unwrap()
}

/// Largest difference of logits between graph and layers, over the largest logit. Both compute in
/// single precision, whose rounding alone makes about 1e-6 a layer.
fn difference(graph: &Graph, real: &RealCircuit) -> f64 {
    let weights = FloatWeights::new(real);
    let (mut most, mut size) = (0.0f64, 0.0f64);
    for image in &normalised(graph, IMAGES) {
        let expected = interpret::float(graph, image).unwrap();
        let logits = weights.evaluate(real, image).sums.pop().unwrap();
        assert_eq!(logits.len(), expected.len());
        for (a, b) in logits.iter().zip(&expected) {
            most = most.max(f64::from((a - b).abs()));
            size = size.max(f64::from(b.abs()));
        }
    }
    most / size
}

fn kinds(real: &RealCircuit, kind: Kind) -> usize {
    let layers = real.layers.iter();
    let count = layers.map(|layer| match &layer.step {
        Step::Activate { kinds, .. } => kinds.iter().filter(|k| **k == kind).count(),
        Step::Output => 0,
    });
    count.sum()
}

fn squares_everywhere(graph: &Graph, pools: Pools) -> Lowered {
    lower(&fold(graph).unwrap(), pools, None, &Kept::new()).unwrap()
}

const POOLS: [Pools; 3] = [Pools::Cheapest, Pools::Absorb, Pools::Separate];

#[test]
fn one_quadratic_for_all_folds_completely_and_changes_nothing() {
    for (name, mask) in MASKS {
        let networks = [
            chain(mask, |_| FIXED),
            trained(lean9(16, 10, QUADRATIC, 3), |_| FIXED),
        ];
        for graph in networks {
            for pools in POOLS {
                let Lowered { real, squares } = squares_everywhere(&graph, pools);
                assert_eq!(kinds(&real, Kind::Polynomial), 0, "{name}");
                assert!(kinds(&real, Kind::Square) > 100 && !squares.is_empty());
                let error = difference(&graph, &real);
                assert!(error < 2e-5, "{name}, {pools:?}: off by {error}");
            }
        }
    }
}

const QUADRATIC: Policy = Policy::Budget {
    relus: 300,
    rest: Rest::Polynomial,
};

/// Constants meet fewer taps at borders, and shifts stop where kinds change.
#[test]
fn biases_are_by_element_only_where_a_channel_is_not_alike() {
    let by_element = |graph: &Graph| -> Vec<bool> {
        let real = squares_everywhere(graph, Pools::Absorb).real;
        let layers = real.layers.iter();
        layers.map(|layer| !layer.element_bias.is_empty()).collect()
    };
    // The second and the third convolution read a padded tensor with constants; the pool between
    // them, which is a layer of its own, and the dense layers do not.
    assert_eq!(
        by_element(&chain(ALL, |_| FIXED)),
        [false, true, false, true, false, false]
    );
    assert_eq!(
        by_element(&chain(INSIDE_CHANNELS, |_| FIXED)),
        [true, true, false, true, false, false]
    );
    // A perfect square has no constant.
    let perfect = |_| [0.25, 0.5, 0.25];
    assert_eq!(by_element(&chain(ALL, perfect)), [false; 6]);
}

#[test]
fn residuals_take_constants_and_refuse_factors() {
    let graph = residual(ALL, |_| FIXED);
    let real = squares_everywhere(&graph, Pools::Cheapest).real;
    let error = difference(&graph, &real);
    assert!(error < 1e-5, "off by {error}");
    assert_eq!(kinds(&real, Kind::Polynomial), 0);
    // Where gain and factor would both be needed, a channel of several kinds stays as it is.
    let graph = residual(INSIDE_CHANNELS, |_| FIXED);
    let real = squares_everywhere(&graph, Pools::Cheapest).real;
    let error = difference(&graph, &real);
    assert!(error < 1e-5, "off by {error}");
    let polynomials: Vec<&str> = (real.layers.iter())
        .filter(|layer| layer.has(Kind::Polynomial))
        .map(|layer| layer.name.as_str())
        .collect();
    assert_eq!(polynomials, ["stem", "add"]);
    // A negative `a` before an addition cannot fold either; elsewhere it can.
    let negative = |channel| [[0.2f32, -0.2][channel % 2], 0.5, 0.1];
    let graph = residual(ALL, negative);
    let real = squares_everywhere(&graph, Pools::Cheapest).real;
    assert!(difference(&graph, &real) < 1e-5);
    let squares = |name: &str| {
        let layer = real.layers.iter().find(|layer| layer.name == name).unwrap();
        let Step::Activate { kinds, .. } = &layer.step else {
            panic!("{name} has no activation");
        };
        let count = kinds.iter().filter(|k| **k == Kind::Square).count();
        count as f64 / kinds.len() as f64
    };
    let shares = ["stem", "a", "add", "join", "classifier"].map(squares);
    assert_eq!(shares, [0.5, 1.0, 1.0, 1.0, 0.5]);
}

#[test]
fn coefficients_of_their_own_fold_per_channel() {
    let own = |channel: usize| {
        let a = [0.1, 0.3, -0.2, 0.15][channel % 4];
        [a, 0.4 + 0.05 * channel as f32, 0.3 - 0.1 * channel as f32]
    };
    for (name, mask) in MASKS {
        let graph = chain(mask, own);
        let real = squares_everywhere(&graph, Pools::Cheapest).real;
        let error = difference(&graph, &real);
        assert!(error < 1e-5, "{name}: off by {error}");
        let (squares, polynomials) = (kinds(&real, Kind::Square), kinds(&real, Kind::Polynomial));
        // Only a channel with ReLUs refuses a negative coefficient.
        assert_eq!(polynomials > 0, name == "inside channels", "{name}");
        assert!(
            squares > 2 * polynomials,
            "{name}: {squares}, {polynomials}"
        );
    }
}

#[test]
fn random_graphs_with_quadratics_keep_their_function() {
    let (mut squares, mut polynomials, mut with_adds) = (0, 0, 0);
    for seed in 0..200 {
        let graph = trained(random_graph(seed, &GraphOptions::default()), |_| FIXED);
        for pools in POOLS {
            let real = squares_everywhere(&graph, pools).real;
            let error = difference(&graph, &real);
            assert!(error < 2e-5, "seed {seed}, {pools:?}: off by {error}");
            let own = kinds(&real, Kind::Square);
            squares += own;
            polynomials += kinds(&real, Kind::Polynomial);
            let adds = graph.nodes.iter().any(|node| node.op == Op::Add);
            with_adds += usize::from(adds && own > 0);
        }
    }
    assert!(squares > 3 * polynomials, "{squares} {polynomials}");
    assert!(with_adds > 20, "{with_adds}");
}

#[test]
fn a_shift_beyond_the_range_of_its_layer_stays_a_polynomial() {
    // In channel 2 of the first layer `b / 2a` is 30, and `z` a few units.
    let mut graph = chain(ALL, |_| FIXED);
    let first = graph.nodes.iter_mut().find(|node| node.name == "act1");
    let Op::Activation { coefficients, .. } = &mut first.unwrap().op else {
        panic!("act1 is an activation");
    };
    coefficients[2] = [FIXED[0], 60.0 * FIXED[0], 0.0];
    let images = normalised(&graph, IMAGES);
    let folded = fold(&graph).unwrap();
    let (real, seen) = lower_and_measure(&folded, Pools::Cheapest, None, &images).unwrap();
    let error = difference(&graph, &real);
    assert!(error < 2e-5, "off by {error}");
    let Step::Activate { kinds, .. } = &real.layers[0].step else {
        panic!("the first layer activates");
    };
    let positions = kinds.len() / 7;
    for (channel, kinds) in kinds.chunks_exact(positions).enumerate() {
        let expected = [Kind::Square, Kind::Polynomial][usize::from(channel == 2)];
        assert!(kinds.iter().all(|k| *k == expected), "channel {channel}");
    }
    let everywhere = squares_everywhere(&graph, Pools::Cheapest).real;
    assert!(magnitudes(&everywhere, &images).sums[0] > 4.0 * seen.sums[0]);
}

/// An `a` far from those of the other channels would cost their weights bits.
#[test]
fn coefficients_far_from_their_neighbours_stay_polynomials() {
    let far = |channel: usize| [if channel == 2 { 0.01 } else { 0.2 }, 0.1, 0.3];
    for (name, mask) in MASKS {
        let graph = chain(mask, far);
        let real = squares_everywhere(&graph, Pools::Cheapest).real;
        let error = difference(&graph, &real);
        assert!(error < 2e-5, "{name}: off by {error}");
        let quadratic = real.layers.iter().filter(|layer| layer.has(Kind::Square));
        let mut layers = 0;
        for layer in quadratic {
            let Step::Activate { kinds, .. } = &layer.step else {
                panic!("{} has squares", layer.name);
            };
            layers += 1;
            let positions = kinds.len() / layer.shape.c as usize;
            for (channel, kinds) in kinds.chunks_exact(positions).enumerate() {
                let other = [Kind::Polynomial, Kind::Square][usize::from(channel == 2)];
                assert!(!kinds.contains(&other), "{}, channel {channel}", layer.name);
            }
        }
        assert_eq!(layers, 4, "{name}");
    }
}

/// A network compiled with every quadratic as a polynomial.
fn polynomials_only(graph: &Graph, images: &Examples) -> (Verified<Circuit>, Weights) {
    let folded = fold(graph).unwrap();
    let all: Kept = (0..graph.nodes.len())
        .flat_map(|node| (0..512).map(move |channel| (node, channel)))
        .collect();
    let real = lower(&folded, Pools::default(), None, &all).unwrap().real;
    let normalised = images.reals(&graph.preprocessing).unwrap();
    let precision = Precision::default();
    let seen = magnitudes(&real, &normalised);
    let scales = scales(&real, &seen, &precision).unwrap();
    let identity = Identity {
        name: &graph.name,
        preprocessing: &graph.preprocessing,
        classes: &graph.classes,
    };
    let (mut circuit, weights) = quantise(&real, &scales, &seen, &identity).unwrap();
    range::bound(&mut circuit, &weights, &images.inputs, &precision).unwrap();
    let (circuit, _) = emit::check(circuit, &weights, emit::FAILURE_LIMIT).unwrap();
    (circuit, weights)
}

fn activations(circuit: &Circuit) -> Activations {
    circuit.layers.iter().map(layer_activations).sum()
}

#[test]
fn squares_are_as_exact_as_polynomials() {
    let networks = [
        chain(ALL, |_| FIXED),
        chain(BY_CHANNEL, |_| FIXED),
        chain(INSIDE_CHANNELS, |_| FIXED),
        residual(ALL, |_| FIXED),
        trained(lean9(16, 10, QUADRATIC, 3), |_| FIXED),
    ];
    let (mut ours, mut theirs) = (0.0, 0.0);
    for graph in networks {
        let images = Examples::synthetic(shape(&graph), IMAGES, 5);
        let compiled = compile(&graph, &images, &Options::default()).unwrap();
        assert!(activations(&compiled.circuit).square > 0, "{}", graph.name);
        let squares = compare(&graph, &compiled.circuit, &compiled.weights, &images).unwrap();
        let (circuit, weights) = polynomials_only(&graph, &images);
        assert_eq!(activations(&circuit).square, 0);
        let polynomials = compare(&graph, &circuit, &weights, &images).unwrap();
        assert_eq!((squares.out_of_bound, polynomials.out_of_bound), (0, 0));
        let logits = normalised(&graph, IMAGES).into_iter().flat_map(|image| {
            interpret::float(&graph, &image)
                .unwrap()
                .into_iter()
                .map(f64::from)
        });
        let logits: Vec<f64> = logits.collect();
        let size = (logits.iter().map(|v| v * v).sum::<f64>() / logits.len() as f64).sqrt();
        let own = squares.rms_difference / size;
        let other = polynomials.rms_difference / size;
        eprintln!(
            "{}: logits off by {own:.5} of their size with squares, {other:.5} with polynomials; \
             failure 2^{:.1}",
            graph.name, compiled.failure_log2
        );
        // Rounding errors are random: single networks differ either way.
        assert!(own < 2.0 * other, "{}: {own} {other}", graph.name);
        ours += own.ln();
        theirs += other.ln();
    }
    assert!(ours - theirs < 5.0 * 0.25, "a quarter more on average");
}

/// The cost of a quadratic is that of a square: measured by the protocol's formulas, which its own
/// tests hold equal to the bytes that a channel counts.
#[test]
fn squares_halve_the_offline_bytes_of_a_quadratic() {
    let all = Policy::Budget {
        relus: 0,
        rest: Rest::Polynomial,
    };
    let graph = trained(lean9(16, 10, all, 3), |_| FIXED);
    let images = Examples::synthetic(shape(&graph), IMAGES, 5);
    let options = Options {
        batches: Vec::new(),
        reveal: Reveal::Logits,
        ..Options::default()
    };
    let compiled = compile(&graph, &images, &options).unwrap();
    let (circuit, _) = polynomials_only(&graph, &images);
    let count = activations(&circuit).polynomial;
    assert_eq!(activations(&compiled.circuit).square, count);
    let measure = |circuit: &Verified<Circuit>| {
        let plan = select(circuit, 1, &Link::default()).unwrap();
        let cost = cost::circuit(circuit, [&plan]).unwrap();
        let bytes = |t: pi_ir::costs::Traffic| t.bytes_up + t.bytes_down;
        (bytes(cost.offline) as f64, bytes(cost.online))
    };
    let (squares, polynomials) = (measure(&compiled.circuit), measure(&circuit));
    let saved = (polynomials.0 - squares.0) / count as f64;
    eprintln!(
        "{count} quadratics: {} bytes offline as squares, {} as polynomials: {saved:.1} each",
        squares.0, polynomials.0
    );
    assert!((30.0..50.0).contains(&saved), "{saved}");
    assert_eq!(squares.1, polynomials.1);
}
