//! Random float graphs that a compiler can lower.

use super::Draw;
use crate::builders::{Builder, ConvShape};
use crate::graph::{ActivationKind, Graph, NodeId, Op};
use crate::preprocessing::Preprocessing;
use crate::shape::{Padding, Shape};

/// Limits and features of random graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphOptions {
    /// Activated layers, at most; at least one.
    pub layers: u32,
    /// Rows and columns of the image, at most; at least 4.
    pub side: u32,
    /// Channels, at most.
    pub channels: u32,
    /// Polynomial elements occur.
    pub polynomial: bool,
}

impl Default for GraphOptions {
    /// Small: milliseconds in an interpreter.
    fn default() -> Self {
        GraphOptions {
            layers: 5,
            side: 11,
            channels: 6,
            polynomial: true,
        }
    }
}

/// A legal graph with random weights; the same for the same seed and options.
///
/// Every batch norm follows a convolution that nothing else reads; activations follow a
/// convolution, a norm, a sum or a pool; pools occur before and after activations.
pub fn graph(seed: u64, options: &GraphOptions) -> Graph {
    let mut draw = Draw::new(seed);
    // A second stream, for what random graphs learned later: what else a seed draws stays.
    let mut later = Draw::new(seed ^ 0x6c61_7465_7200_0002);
    let input = Shape::new(
        draw.size(1, options.channels.min(3)),
        draw.size(4, options.side),
        draw.size(4, options.side),
    );
    let mut builder = Builder::new(&format!("random {seed}"), input, draw.u64());
    let channels = 0..input.c;
    let mean = channels.clone().map(|_| draw.float(0.2, 0.7)).collect();
    let std = channels.map(|_| draw.float(0.2, 0.6)).collect();
    builder.preprocessing(Preprocessing::Channels { mean, std });
    let mut current = NodeId(0);
    let mut activated = vec![current];
    for layer in 0..draw.size(1, options.layers) {
        current = block(&mut draw, &mut builder, options, layer, current, &activated);
        if builder.shape(current).w >= 4 && later.one_in(4) {
            current = builder.max_of_pairs(&format!("max{layer}"), current);
        }
        if later.one_in(4) {
            current = depthwise(&mut builder, layer, current);
        }
        activated.push(current);
    }
    let shape = builder.shape(current);
    if draw.one_in(2) && shape.h == shape.w && shape.h > 1 {
        current = builder.pool("pool", current, (shape.h, shape.w), (shape.h, shape.w));
    }
    let flat = builder.flatten("flatten", current);
    let classes = draw.size(2, options.channels.max(2));
    let last = builder.dense("classifier", flat, classes);
    let mut graph = builder.finish(last);
    vary_norms(&mut draw, &mut graph);
    graph
}

/// Convolution, perhaps a norm, a residual and a pool, then an activation and perhaps a pool.
fn block(
    draw: &mut Draw,
    builder: &mut Builder,
    options: &GraphOptions,
    layer: u32,
    from: NodeId,
    activated: &[NodeId],
) -> NodeId {
    let name = |part: &str| format!("{part}{layer}");
    let shape = builder.shape(from);
    let side = shape.h.min(shape.w);
    let kernel = (draw.size(1, side.min(4)), draw.size(1, side.min(3)));
    let stride = match draw.one_in(3) && side >= 4 {
        true => (2, 2),
        false => (1, 1),
    };
    let padding = Padding {
        top: draw.size(0, kernel.0 - 1),
        left: draw.size(0, kernel.1 - 1),
        bottom: draw.size(0, kernel.0 - 1),
        right: draw.size(0, kernel.1 - 1),
    };
    let out = draw.size(1, options.channels);
    let conv = ConvShape {
        out_channels: out,
        groups: 1,
        kernel,
        stride,
        padding,
        bias: draw.one_in(2),
    };
    let mut x = builder.conv(&name("conv"), from, conv);
    if draw.one_in(2) {
        x = builder.norm(&name("norm"), x);
    }
    let same: Vec<NodeId> = activated
        .iter()
        .copied()
        .filter(|&id| id != NodeId(0) && builder.shape(id) == builder.shape(x))
        .collect();
    if !same.is_empty() && draw.one_in(2) {
        let other = *draw.pick(&same);
        x = builder.add(&name("add"), x, other);
    } else if builder.shape(x) == shape_after(shape, stride, out) && draw.one_in(2) {
        let conv = ConvShape {
            stride,
            ..ConvShape::same(out, 1, 1)
        };
        let shortcut = builder.conv(&name("shortcut"), from, conv);
        x = builder.add(&name("add"), shortcut, x);
    }
    let side = builder.shape(x).h.min(builder.shape(x).w);
    if side >= 4 && draw.one_in(4) {
        x = builder.pool(&name("before"), x, (2, 2), (2, 2));
    }
    let choices: &[ActivationKind] = match draw.below(4) {
        0 => &[ActivationKind::Relu],
        1 if options.polynomial => &[
            ActivationKind::Relu,
            ActivationKind::Identity,
            ActivationKind::Polynomial,
        ],
        2 if options.polynomial => &[ActivationKind::Polynomial],
        _ => &[ActivationKind::Relu, ActivationKind::Identity],
    };
    let count = builder.shape(x).len();
    let kinds = (0..count).map(|_| *draw.pick(choices)).collect();
    x = builder.activation(&name("act"), x, kinds);
    let side = builder.shape(x).h.min(builder.shape(x).w);
    if side >= 4 && draw.one_in(4) {
        x = builder.pool(&name("after"), x, (2, 2), (2, 2));
    }
    x
}

/// A convolution of each channel by itself, and its activation.
fn depthwise(builder: &mut Builder, layer: u32, from: NodeId) -> NodeId {
    let channels = builder.shape(from).c;
    let conv = ConvShape {
        groups: channels,
        ..ConvShape::same(channels, 3, 1)
    };
    let x = builder.conv(&format!("depthwise{layer}"), from, conv);
    builder.relu(&format!("depthwise{layer}.act"), x)
}

fn shape_after(shape: Shape, stride: (u32, u32), channels: u32) -> Shape {
    Shape {
        c: channels,
        h: shape.h.div_ceil(stride.0),
        w: shape.w.div_ceil(stride.1),
    }
}

/// Norms as after training: no statistic at its initial value.
fn vary_norms(draw: &mut Draw, graph: &mut Graph) {
    for node in &mut graph.nodes {
        match &mut node.op {
            Op::BatchNorm(norm) => {
                let mut vary = |list: &mut [f32], low, high| {
                    list.iter_mut().for_each(|v| *v = draw.float(low, high));
                };
                vary(&mut norm.gamma, 0.5, 1.5);
                vary(&mut norm.beta, -0.5, 0.5);
                vary(&mut norm.mean, -0.5, 0.5);
                vary(&mut norm.var, 0.25, 2.0);
            }
            Op::Activation { coefficients, .. } => {
                for [a, b, c] in coefficients {
                    *a = draw.float(-0.1, 0.1);
                    *b = draw.float(0.2, 0.8);
                    *c = draw.float(-0.3, 0.5);
                }
            }
            Op::Conv2d { bias, .. } | Op::Dense { bias, .. } => {
                bias.iter_mut().for_each(|v| *v = draw.float(-0.3, 0.3));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::GraphFile;
    use crate::{count, interpret, text, verify};

    #[test]
    fn random_graphs_are_legal_and_round_trip() {
        for seed in 0..50 {
            let deep = GraphOptions {
                layers: 12,
                side: 24,
                channels: 9,
                polynomial: false,
            };
            let graph = graph(seed, &deep);
            assert_eq!(verify::graph(&graph), [], "seed {seed}");
            assert_eq!(count::graph_activations(&graph).polynomial, 0);
        }
        let mut polynomials = 0;
        let (mut adds, mut windows, mut grouped) = (0, 0, 0);
        for seed in 0..300 {
            let graph = graph(seed, &GraphOptions::default());
            assert_eq!(verify::graph(&graph), [], "seed {seed}");
            let structure = text::print_graph(&graph);
            let parsed = text::parse_graph(&structure).unwrap();
            assert_eq!(text::print_graph(&parsed), structure, "seed {seed}");
            polynomials += count::graph_activations(&graph).polynomial;
            for node in &graph.nodes {
                match &node.op {
                    Op::Add => adds += 1,
                    Op::WindowSum(_) => windows += 1,
                    Op::Conv2d { groups, .. } if *groups > 1 => grouped += 1,
                    _ => {}
                }
            }
            let Op::Input { shape } = graph.nodes[0].op else {
                panic!("node 0 is the input");
            };
            let image = vec![0.5; shape.len()];
            let logits = interpret::float(&graph, &image).unwrap();
            assert!(logits.iter().all(|v| v.is_finite()), "seed {seed}");
            let file = GraphFile { graph };
            assert_eq!(GraphFile::decode(&file.encode()).as_ref(), Ok(&file));
        }
        assert!(polynomials > 1000 && adds > 50, "{polynomials} {adds}");
        assert!(windows > 50 && grouped > 50, "{windows} {grouped}");
    }
}
