//! Common networks, as float graphs with seeded random weights (He et al., 2015).
//!
//! ResNets in the form common for small images: a 3x3 stem at stride 1, no max pool, the same for
//! 32 and 64 pixels; shortcuts that change the shape are 1x1 convolutions with a norm. Two networks
//! are for photographs of 224 pixels: [`resnet50_large`] and [`mobilenet_v2`].

use crate::graph::{ActivationKind, BatchNorm, Graph, Node, NodeId, Op, Origin};
use crate::preprocessing::Preprocessing;
use crate::random::Draw;
use crate::shape::{Padding, Shape, Window};

/// Choice of a network's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// ReLU everywhere.
    Relu,
    /// ReLU at this many random positions (drawn from the seed), something cheaper at the others.
    Budget {
        /// Positions that keep their ReLU; at most all.
        relus: usize,
        /// Kind of all others.
        rest: Rest,
    },
}

/// Function of a position without ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    Identity,
    /// `0.009 x^2 + 0.5 x + 0.47`, where R-PKN training starts (arXiv 2312.15229).
    Polynomial,
}

/// ResNet-10 (one basic block per stage, widths 64 to 512).
pub fn resnet10(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let stages = BasicStages {
        widths: &[64, 128, 256, 512],
        blocks: &[1, 1, 1, 1],
    };
    stages.graph("resnet10", size, classes, policy, seed)
}

/// ResNet-18 (two basic blocks per stage); 557,056 activations at 32 pixels.
pub fn resnet18(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let stages = BasicStages {
        widths: &[64, 128, 256, 512],
        blocks: &[2, 2, 2, 2],
    };
    stages.graph("resnet18", size, classes, policy, seed)
}

/// ResNet-34.
pub fn resnet34(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let stages = BasicStages {
        widths: &[64, 128, 256, 512],
        blocks: &[3, 4, 6, 3],
    };
    stages.graph("resnet34", size, classes, policy, seed)
}

/// ResNet-20 for CIFAR (three stages of widths 16, 32, 64).
pub fn resnet20(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let stages = BasicStages {
        widths: &[16, 32, 64],
        blocks: &[3, 3, 3],
    };
    stages.graph("resnet20", size, classes, policy, seed)
}

/// ResNet-32 for CIFAR; 303,104 activations at 32 pixels.
pub fn resnet32(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let stages = BasicStages {
        widths: &[16, 32, 64],
        blocks: &[5, 5, 5],
    };
    stages.graph("resnet32", size, classes, policy, seed)
}

/// Stages of a residual network of basic blocks: two 3x3 convolutions each.
struct BasicStages {
    widths: &'static [u32],
    blocks: &'static [u32],
}

impl BasicStages {
    fn graph(&self, name: &str, size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
        let mut net = Builder::new(name, Shape::new(3, size, size), seed);
        let mut x = net.conv_norm("stem", NodeId(0), self.widths[0], 3, 1);
        x = net.relu("stem.act", x);
        for (stage, (&width, &count)) in self.widths.iter().zip(self.blocks).enumerate() {
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let at = format!("stage{}.{block}", stage + 1);
                let mut y = net.conv_norm(&format!("{at}.a"), x, width, 3, stride);
                y = net.relu(&format!("{at}.a.act"), y);
                y = net.conv_norm(&format!("{at}.b"), y, width, 3, 1);
                x = net.shortcut(&at, x, y, stride);
                x = net.relu(&format!("{at}.act"), x);
            }
        }
        net.classifier(x, classes, policy)
    }
}

/// ResNet-50 (bottleneck blocks; the stride is at the 3x3 convolution).
pub fn resnet50(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let mut net = Builder::new("resnet50", Shape::new(3, size, size), seed);
    let mut x = net.conv_norm("stem", NodeId(0), 64, 3, 1);
    x = net.relu("stem.act", x);
    net.bottlenecks(x, classes, policy)
}

/// ResNet-50 for large images: a 7x7 stem of stride 2 and a pool before the blocks of
/// [`resnet50`]; 9,608,704 activations and 4.1 G multiply-adds at 224 pixels.
///
/// The pool is the mean of 2x2 windows instead of the maximum of 3x3 (He et al.): by ReLUs, that
/// maximum alone would take 1.2 million of them.
pub fn resnet50_large(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let mut net = Builder::new("resnet50-large", Shape::new(3, size, size), seed);
    let mut x = net.conv_norm("stem", NodeId(0), 64, 7, 2);
    x = net.relu("stem.act", x);
    x = net.pool("stem.pool", x, (2, 2), (2, 2));
    net.bottlenecks(x, classes, policy)
}

/// MobileNetV2 of width 1 (Sandler et al., CVPR 2018): inverted residuals, whose 3x3 convolutions
/// are depthwise; 6,105,792 activations and 0.30 G multiply-adds at 224 pixels.
///
/// ReLUs are not cut off at 6: a cut is a second ReLU, and no other layer.
pub fn mobilenet_v2(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let mut net = Builder::new("mobilenetv2", Shape::new(3, size, size), seed);
    let mut x = net.conv_norm("stem", NodeId(0), 32, 3, 2);
    x = net.relu("stem.act", x);
    // Expansion, channels, blocks, and stride of the first: the paper's table 2.
    let stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    for (stage, (expansion, width, count, first)) in stages.into_iter().enumerate() {
        for block in 0..count {
            let stride = if block == 0 { first } else { 1 };
            let at = format!("stage{}.{block}", stage + 1);
            let wide = net.shape(x).c * expansion;
            let mut y = x;
            if expansion > 1 {
                y = net.conv_norm(&format!("{at}.expand"), y, wide, 1, 1);
                y = net.relu(&format!("{at}.expand.act"), y);
            }
            let depthwise = ConvShape {
                groups: wide,
                ..ConvShape::same(wide, 3, stride)
            };
            y = net.conv(&format!("{at}.depthwise"), y, depthwise);
            y = net.norm(&format!("{at}.depthwise.norm"), y);
            y = net.relu(&format!("{at}.depthwise.act"), y);
            y = net.conv_norm(&format!("{at}.project"), y, width, 1, 1);
            x = match net.shape(x) == net.shape(y) {
                true => net.add(&format!("{at}.add"), y, x),
                false => y,
            };
        }
    }
    x = net.conv_norm("last", x, 1280, 1, 1);
    x = net.relu("last.act", x);
    net.classifier(x, classes, policy)
}

/// Wide ResNet of depth 22 and width 8 (pre-activation: norm, ReLU, convolution); 1,359,872
/// activations at 32 pixels, and 32,768 in the layer before its pool.
pub fn wrn22_8(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let mut net = Builder::new("wrn22-8", Shape::new(3, size, size), seed);
    let mut x = net.conv("stem", NodeId(0), ConvShape::same(16, 3, 1));
    for (stage, width) in [128, 256, 512].into_iter().enumerate() {
        for block in 0..3 {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let at = format!("stage{}.{block}", stage + 1);
            let mut y = net.norm(&format!("{at}.a.norm"), x);
            y = net.relu(&format!("{at}.a.act"), y);
            // A block that changes the shape takes its shortcut after the first activation.
            let shortcut = match block {
                0 => net.conv(
                    &format!("{at}.shortcut"),
                    y,
                    ConvShape::same(width, 1, stride),
                ),
                _ => x,
            };
            y = net.conv(&format!("{at}.a"), y, ConvShape::same(width, 3, stride));
            y = net.norm(&format!("{at}.b.norm"), y);
            y = net.relu(&format!("{at}.b.act"), y);
            y = net.conv(&format!("{at}.b"), y, ConvShape::same(width, 3, 1));
            x = net.add(&format!("{at}.add"), y, shortcut);
        }
    }
    x = net.norm("last.norm", x);
    x = net.relu("last.act", x);
    net.classifier(x, classes, policy)
}

/// Nine layers without residuals, after the airbench networks: an unpadded 2x2 convolution (24),
/// three groups of two 3x3 convolutions (64, 256, 256) with an average pool after each group's
/// first, a pool over what is left, dense. 81,560 activations at 32 pixels.
///
/// The first filters stand for statistics of patches, as a training run that freezes them has them.
/// A norm stands before the pool, which is the same: averages commute with a scale and a shift.
pub fn lean9(size: u32, classes: u32, policy: Policy, seed: u64) -> Graph {
    let mut net = Builder::new("lean9", Shape::new(3, size, size), seed);
    let whiten = ConvShape {
        out_channels: 24,
        groups: 1,
        kernel: (2, 2),
        stride: (1, 1),
        padding: Padding::default(),
        bias: true,
    };
    let mut x = net.conv("whiten", NodeId(0), whiten);
    net.mark(x, Origin::Statistics);
    x = net.relu("whiten.act", x);
    for (group, width) in [64, 256, 256].into_iter().enumerate() {
        let at = format!("group{}", group + 1);
        x = net.conv_norm(&format!("{at}.a"), x, width, 3, 1);
        x = net.pool(&format!("{at}.pool"), x, (2, 2), (2, 2));
        x = net.relu(&format!("{at}.a.act"), x);
        x = net.conv_norm(&format!("{at}.b"), x, width, 3, 1);
        x = net.relu(&format!("{at}.b.act"), x);
    }
    net.classifier(x, classes, policy)
}

/// Shape of a convolution that a [`Builder`] adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels of the result.
    pub out_channels: u32,
    /// Groups of channels, as in [`Conv`](crate::Conv).
    pub groups: u32,
    /// Rows and columns of the kernel.
    pub kernel: (u32, u32),
    /// Vertical and horizontal stride.
    pub stride: (u32, u32),
    /// Zeros around the input.
    pub padding: Padding,
    /// True if the layer has biases.
    pub bias: bool,
}

impl ConvShape {
    /// A square kernel without biases, padded so that the size is kept (divided by the stride).
    pub fn same(out_channels: u32, kernel: u32, stride: u32) -> Self {
        ConvShape {
            out_channels,
            groups: 1,
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding: Padding::same(kernel / 2),
            bias: false,
        }
    }
}

/// Builds a graph node by node; knows each node's shape.
///
/// # Panics
/// Its methods panic on inputs that do not fit the operation: the caller's architecture is wrong.
pub struct Builder {
    graph: Graph,
    shapes: Vec<Shape>,
    draw: Draw,
}

impl Builder {
    /// A graph with its input as node 0; weights are drawn from the seed.
    pub fn new(name: &str, input: Shape, seed: u64) -> Self {
        let channels = input.c as usize;
        let node = Node {
            name: "input".into(),
            op: Op::Input { shape: input },
            inputs: vec![],
            origin: Origin::Unmarked,
        };
        Builder {
            graph: Graph {
                name: name.into(),
                preprocessing: Preprocessing::Channels {
                    mean: vec![0.5; channels],
                    std: vec![0.25; channels],
                },
                classes: vec![],
                nodes: vec![node],
            },
            shapes: vec![input],
            draw: Draw::new(seed),
        }
    }

    /// Sets the image's preprocessing; at first, every channel has mean 0.5 and deviation 0.25.
    pub fn preprocessing(&mut self, preprocessing: Preprocessing) {
        self.graph.preprocessing = preprocessing;
    }

    /// Marks the numbers of a node; [`Builder::push`] takes them for learned.
    pub fn mark(&mut self, id: NodeId, origin: Origin) {
        self.graph.nodes[id.0 as usize].origin = origin;
    }

    /// Shape of a node's result.
    pub fn shape(&self, id: NodeId) -> Shape {
        self.shapes[id.0 as usize]
    }

    /// Adds any operation.
    pub fn push(&mut self, name: &str, op: Op, inputs: &[NodeId]) -> NodeId {
        let shapes: Vec<Shape> = inputs.iter().map(|&id| self.shape(id)).collect();
        let shape = op
            .output(&shapes)
            .unwrap_or_else(|why| panic!("node {name}: {why}"));
        self.shapes.push(shape);
        self.graph.nodes.push(Node {
            name: name.into(),
            op,
            inputs: inputs.to_vec(),
            origin: Origin::Learned,
        });
        NodeId(self.shapes.len() as u32 - 1)
    }

    /// A convolution with normal weights of variance `2 / (in * kernel_h * kernel_w)`, with `in`
    /// channels a group, and biases zero.
    pub fn conv(&mut self, name: &str, from: NodeId, shape: ConvShape) -> NodeId {
        let ConvShape {
            out_channels,
            groups,
            kernel,
            stride,
            padding,
            bias,
        } = shape;
        let taps = self.shape(from).c / groups * kernel.0 * kernel.1;
        let op = Op::Conv2d {
            weight: self.he_normal(out_channels, taps),
            bias: vec![0.0; if bias { out_channels as usize } else { 0 }],
            out_channels,
            groups,
            kernel,
            stride,
            padding,
        };
        self.push(name, op, &[from])
    }

    /// A square convolution that keeps the size (divided by the stride), with its norm.
    pub fn conv_norm(
        &mut self,
        name: &str,
        from: NodeId,
        out_channels: u32,
        kernel: u32,
        stride: u32,
    ) -> NodeId {
        let conv = self.conv(name, from, ConvShape::same(out_channels, kernel, stride));
        self.norm(&format!("{name}.norm"), conv)
    }

    /// A norm that changes nothing yet but a factor near one.
    pub fn norm(&mut self, name: &str, from: NodeId) -> NodeId {
        let channels = self.shape(from).c as usize;
        let norm = BatchNorm::new(channels, 1e-5);
        self.push(name, Op::BatchNorm(norm), &[from])
    }

    /// The sum of two nodes.
    pub fn add(&mut self, name: &str, a: NodeId, b: NodeId) -> NodeId {
        self.push(name, Op::Add, &[a, b])
    }

    /// Means over windows.
    pub fn pool(
        &mut self,
        name: &str,
        from: NodeId,
        kernel: (u32, u32),
        stride: (u32, u32),
    ) -> NodeId {
        self.push(name, Op::AvgPool { kernel, stride }, &[from])
    }

    /// The difference of two nodes, the first less the second.
    pub fn sub(&mut self, name: &str, a: NodeId, b: NodeId) -> NodeId {
        self.push(name, Op::Sub, &[a, b])
    }

    /// The largest of every two columns, by ReLUs: `max(a, b) = a + relu(b - a)`. Of an odd number
    /// of columns, the last is left out.
    pub fn max_of_pairs(&mut self, name: &str, from: NodeId) -> NodeId {
        let Shape { h, w, .. } = self.shape(from);
        let mut columns = |part: &str, first: i32| {
            let window = Window {
                kernel: (1, 1),
                stride: (1, 2),
                origin: (0, first),
                count: (h, w / 2),
            };
            self.push(&format!("{name}.{part}"), Op::WindowSum(window), &[from])
        };
        let (even, odd) = (columns("even", 0), columns("odd", 1));
        let rise = self.sub(&format!("{name}.rise"), odd, even);
        let rise = self.relu(&format!("{name}.relu"), rise);
        self.add(name, even, rise)
    }

    /// ReLU at every position, for now: [`Builder::finish_with`] applies a policy.
    pub fn relu(&mut self, name: &str, from: NodeId) -> NodeId {
        let kinds = vec![ActivationKind::Relu; self.shape(from).len()];
        self.activation(name, from, kinds)
    }

    /// An activation with these kinds; polynomials start as [`Rest::Polynomial`] says.
    pub fn activation(&mut self, name: &str, from: NodeId, kinds: Vec<ActivationKind>) -> NodeId {
        let channels = self.shape(from).c as usize;
        let coefficients = initial_coefficients(&kinds, channels);
        let op = Op::Activation {
            kinds,
            coefficients,
        };
        self.push(name, op, &[from])
    }

    /// All elements as channels.
    pub fn flatten(&mut self, name: &str, from: NodeId) -> NodeId {
        self.push(name, Op::Flatten, &[from])
    }

    /// A dense layer with weights as in [`Builder::conv`], biases zero.
    pub fn dense(&mut self, name: &str, from: NodeId, out: u32) -> NodeId {
        let op = Op::Dense {
            weight: self.he_normal(out, self.shape(from).c),
            bias: vec![0.0; out as usize],
            out,
        };
        self.push(name, op, &[from])
    }

    /// The graph, if `last` is its last node.
    pub fn finish(self, last: NodeId) -> Graph {
        assert_eq!(
            last.0 as usize + 1,
            self.shapes.len(),
            "the output is the node made last"
        );
        self.graph
    }

    /// The graph with a policy applied to all its activations.
    pub fn finish_with(mut self, last: NodeId, policy: Policy) -> Graph {
        let seed = self.draw.u64();
        let mut graph = self.finish(last);
        apply(policy, &mut graph, seed);
        graph
    }

    /// `y` plus `x`, through a 1x1 convolution with norm where the shapes differ.
    fn shortcut(&mut self, at: &str, x: NodeId, y: NodeId, stride: u32) -> NodeId {
        let channels = self.shape(y).c;
        let x = match self.shape(x) == self.shape(y) {
            true => x,
            false => self.conv_norm(&format!("{at}.shortcut"), x, channels, 1, stride),
        };
        self.add(&format!("{at}.add"), y, x)
    }

    /// The four stages of a ResNet-50 and its classifier.
    fn bottlenecks(mut self, mut x: NodeId, classes: u32, policy: Policy) -> Graph {
        let net = &mut self;
        for (stage, (width, count)) in [(64, 3), (128, 4), (256, 6), (512, 3)]
            .into_iter()
            .enumerate()
        {
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let at = format!("stage{}.{block}", stage + 1);
                let mut y = net.conv_norm(&format!("{at}.a"), x, width, 1, 1);
                y = net.relu(&format!("{at}.a.act"), y);
                y = net.conv_norm(&format!("{at}.b"), y, width, 3, stride);
                y = net.relu(&format!("{at}.b.act"), y);
                y = net.conv_norm(&format!("{at}.c"), y, 4 * width, 1, 1);
                x = net.shortcut(&at, x, y, stride);
                x = net.relu(&format!("{at}.act"), x);
            }
        }
        self.classifier(x, classes, policy)
    }

    /// The mean of each channel, then a dense layer.
    fn classifier(mut self, from: NodeId, classes: u32, policy: Policy) -> Graph {
        let Shape { h, w, .. } = self.shape(from);
        let mean = self.pool("pool", from, (h, w), (h, w));
        let flat = self.flatten("flatten", mean);
        let last = self.dense("classifier", flat, classes);
        self.finish_with(last, policy)
    }

    fn he_normal(&mut self, out: u32, taps: u32) -> Vec<f32> {
        let deviation = (2.0 / f64::from(taps)).sqrt();
        let count = out as usize * taps as usize;
        let mut weights = Vec::with_capacity(count + 1);
        while weights.len() < count {
            weights.extend(self.draw.normals().map(|v| (v * deviation) as f32));
        }
        weights.truncate(count);
        weights
    }
}

fn initial_coefficients(kinds: &[ActivationKind], channels: usize) -> Vec<[f32; 3]> {
    match kinds.contains(&ActivationKind::Polynomial) {
        true => vec![[0.009, 0.5, 0.47]; channels],
        false => Vec::new(),
    }
}

/// Replaces the kinds of all activations of a graph as the policy says.
pub fn apply(policy: Policy, graph: &mut Graph, seed: u64) {
    let Policy::Budget { relus, rest } = policy else {
        return;
    };
    let rest = match rest {
        Rest::Identity => ActivationKind::Identity,
        Rest::Polynomial => ActivationKind::Polynomial,
    };
    let mut draw = Draw::new(seed);
    let mut left = crate::count::graph_activations(graph).total() as u64;
    let mut wanted = (relus as u64).min(left);
    let shapes = graph.shapes().expect("the builder checked every shape");
    for (node, shape) in graph.nodes.iter_mut().zip(shapes) {
        let Op::Activation {
            kinds,
            coefficients,
        } = &mut node.op
        else {
            continue;
        };
        for kind in kinds.iter_mut() {
            // Selection sampling: each subset of the wanted size is equally likely (Knuth, 3.4.2
            // S).
            let stays = draw.below(left) < wanted;
            *kind = if stays { ActivationKind::Relu } else { rest };
            wanted -= u64::from(stays);
            left -= 1;
        }
        *coefficients = initial_coefficients(kinds, shape.c as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::{graph_activations, graph_multiply_adds, graph_parameters};
    use crate::{interpret, verify};

    type Make = fn(u32, u32, Policy, u64) -> Graph;

    /// Counts from the literature (SNL, ICML 2022, among others), others from the same formula.
    #[test]
    fn networks_have_the_activations_of_the_papers() {
        let cases: [(Make, u32, usize); 10] = [
            (resnet18, 32, 557_056),
            (resnet10, 64, 4 * 311_296),
            (wrn22_8, 32, 1_392_640),
            (resnet32, 32, 303_104),
            (resnet20, 32, 188_416),
            (lean9, 32, 81_560),
            (resnet10, 32, 311_296),
            (resnet34, 32, 966_656),
            (resnet50_large, 224, 9_608_704),
            (mobilenet_v2, 224, 6_105_792),
        ];
        for (make, size, expected) in cases {
            let graph = make(size, 10, Policy::Relu, 1);
            let counts = graph_activations(&graph);
            assert_eq!(counts.relu, expected, "{} at {size}", graph.name);
            assert_eq!(counts.total(), expected);
            assert_eq!(verify::graph(&graph), []);
            if graph.name == "wrn22-8" {
                // Papers leave out the activation before the last pool.
                let last = graph.nodes.iter().find(|n| n.name == "last.act").unwrap();
                let Op::Activation { kinds, .. } = &last.op else {
                    panic!("last.act is an activation");
                };
                assert_eq!(counts.relu - kinds.len(), 1_359_872);
            }
        }
    }

    #[test]
    fn sizes_are_those_of_the_literature() {
        let graph = resnet18(32, 10, Policy::Relu, 1);
        // 0.56 G multiply-adds and 11.17 M parameters at 10 classes.
        assert_eq!(graph_multiply_adds(&graph), 555_422_720);
        assert_eq!(graph_parameters(&graph), 11_173_962);
        let graph = resnet50(32, 10, Policy::Relu, 1);
        assert_eq!(graph_parameters(&graph), 23_520_842);
        assert_eq!(verify::graph(&graph), []);
        assert_eq!(verify::graph(&lean9(64, 200, Policy::Relu, 1)), []);
        // 4.09 G and 25.6 M; 0.30 G and 3.5 M (Sandler et al., table 4).
        let graph = resnet50_large(224, 1000, Policy::Relu, 1);
        assert_eq!(graph_multiply_adds(&graph), 4_089_184_256);
        assert_eq!(graph_parameters(&graph), 25_557_032);
        let graph = mobilenet_v2(224, 1000, Policy::Relu, 1);
        assert_eq!(graph_multiply_adds(&graph), 300_774_272);
        assert_eq!(graph_parameters(&graph), 3_504_872);
    }

    #[test]
    fn a_budget_is_kept_exactly() {
        for rest in [Rest::Identity, Rest::Polynomial] {
            for relus in [0, 1, 4_000, 81_560, 100_000] {
                let graph = lean9(32, 10, Policy::Budget { relus, rest }, 3);
                let counts = graph_activations(&graph);
                assert_eq!(counts.relu, relus.min(81_560));
                assert_eq!(counts.total(), 81_560);
                assert_eq!(verify::graph(&graph), []);
            }
        }
    }

    #[test]
    fn evaluates_and_depends_on_the_seed_only() {
        let image = vec![0.25; 3 * 32 * 32];
        let logits =
            |seed| interpret::float(&resnet20(32, 10, Policy::Relu, seed), &image).unwrap();
        assert!(logits(1).iter().all(|v| v.is_finite()));
        assert_eq!(logits(1), logits(1));
        assert_ne!(logits(1), logits(2));
    }
}
