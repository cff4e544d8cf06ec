//! The graph while it is built: nodes, and how functions and concatenations become nodes.

use crate::InputKind;
use crate::field::{Field, Function};
use crate::value::{Axis, Live, Part, View};
use pi_ir::{
    ActivationKind, BatchNorm, Graph, Node, NodeId, Op, Origin, Padding, Preprocessing, Shape,
    limits,
};
use std::collections::{HashMap, HashSet};

/// The model's input as it is, before what the network does to it first: the graph's node 0 gives
/// out the result of that.
pub(crate) const RAW: NodeId = NodeId(u32::MAX);

/// A graph in the making.
pub(crate) struct Net {
    nodes: Vec<Node>,
    shapes: Vec<Shape>,
    /// Whether no element of a node's result can be negative.
    never_negative: Vec<bool>,
    names: HashSet<String>,
    elements: usize,
    /// What the network does to its input before anything else reads it.
    input: Option<Function>,
    /// Functions that were computed, by the node that they are of.
    computed: HashMap<NodeId, Vec<(Function, NodeId)>>,
}

/// Weights of a window that treats every channel alike, and reads no other: one tap after the
/// other.
pub(crate) struct Window<'a> {
    pub(crate) taps: &'a [f64],
    pub(crate) kernel: (u32, u32),
    pub(crate) stride: (u32, u32),
    pub(crate) padding: Padding,
}

/// Windows along one axis: the taps of one after the other, and what lies around the axis.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    taps: Vec<f64>,
    stride: u32,
    padding: (u32, u32),
}

impl Reading {
    /// `count` windows of an axis of `size` elements: the first begins at element `first`, which
    /// may lie before the axis, as the last may reach behind it.
    pub(crate) fn new(size: u32, first: i64, taps: &[f64], stride: u32, count: u32) -> Self {
        let last = first + i64::from(count - 1) * i64::from(stride) + taps.len() as i64;
        let positive = |n: i64| u32::try_from(n).unwrap_or(0);
        // What is not read is skipped by taps of 0, unless the stride skips it.
        let behind = positive(i64::from(size) - last).saturating_sub(stride - 1);
        let zeros = |count: u32| std::iter::repeat_n(0.0, count as usize);
        let taps = zeros(positive(first)).chain(taps.iter().copied());
        Reading {
            taps: taps.chain(zeros(behind)).collect(),
            stride,
            padding: (positive(-first), positive(last - i64::from(size))),
        }
    }

    /// Every element times a factor, with zeros around.
    pub(crate) fn placed(factor: f64, padding: (u32, u32)) -> Self {
        Reading {
            taps: vec![factor],
            stride: 1,
            padding,
        }
    }

    /// Returns whether a window is the mean of what it reads.
    fn is_mean(&self) -> bool {
        let own = 1.0 / self.taps.len() as f64;
        self.padding == (0, 0) && self.taps.iter().all(|&tap| tap == own)
    }

    /// The element of each window that it is, if it is one, and zeros around play no part.
    fn choice(&self) -> Option<usize> {
        let chosen = self.taps.iter().position(|&tap| tap == 1.0)?;
        let others = self.taps.iter().filter(|&&tap| tap != 0.0).count();
        (self.padding == (0, 0) && others == 1).then_some(chosen)
    }

    fn changes_nothing(&self) -> bool {
        self.is_mean() && self.taps.len() == 1 && self.stride == 1
    }
}

impl Net {
    /// A graph of its input alone.
    pub(crate) fn new(name: &str, shape: Shape) -> Self {
        let mut net = Net {
            nodes: Vec::new(),
            shapes: Vec::new(),
            never_negative: Vec::new(),
            names: HashSet::new(),
            elements: 0,
            input: None,
            computed: HashMap::new(),
        };
        net.push(name, Op::Input { shape }, Vec::new(), shape);
        net
    }

    fn push(&mut self, name: &str, op: Op, inputs: Vec<NodeId>, shape: Shape) -> NodeId {
        let mut end = name.len().min(limits::NAME - 16);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let base = if end == 0 { "node" } else { &name[..end] };
        let unique = unique(&mut self.names, base);
        self.elements = self.elements.saturating_add(shape.len());
        self.never_negative.push(match &op {
            Op::Activation { kinds, .. } => kinds.iter().all(|k| *k == ActivationKind::Relu),
            Op::AvgPool { .. } | Op::WindowSum(_) | Op::Flatten | Op::Add => {
                inputs.iter().all(|&input| self.never_negative(input))
            }
            _ => false,
        });
        self.nodes.push(Node {
            name: unique,
            op,
            inputs,
            origin: Origin::Unmarked,
        });
        self.shapes.push(shape);
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Adds a node.
    ///
    /// # Errors
    /// If its inputs do not fit it, or the network becomes too large.
    pub(crate) fn emit(
        &mut self,
        name: &str,
        op: Op,
        inputs: Vec<NodeId>,
    ) -> Result<(NodeId, Shape), String> {
        let shapes: Vec<Shape> = inputs.iter().map(|id| self.shapes[id.0 as usize]).collect();
        let shape = op.output(&shapes)?;
        if self.nodes.len() >= limits::NODES {
            return Err(format!(
                "the network needs more than {} nodes",
                limits::NODES
            ));
        }
        let sides = [shape.c, shape.h, shape.w]
            .iter()
            .all(|&n| n <= limits::SIDE);
        let elements = u64::from(shape.c) * u64::from(shape.h) * u64::from(shape.w);
        if sides && elements == 0 {
            return Err(format!("its result of {shape} is empty"));
        }
        if !sides || elements > limits::ELEMENTS as u64 {
            return Err(format!(
                "its result of {shape} has more than {} elements: use a smaller input",
                limits::ELEMENTS
            ));
        }
        if self.elements + elements as usize > limits::GRAPH_ELEMENTS {
            return Err(format!(
                "the tensors of the network have more than {} elements: use a smaller input",
                limits::GRAPH_ELEMENTS
            ));
        }
        Ok((self.push(name, op, inputs, shape), shape))
    }

    /// A window over every channel by itself, as a convolution of as many groups.
    pub(crate) fn window(
        &mut self,
        name: &str,
        id: NodeId,
        window: &Window<'_>,
    ) -> Result<(NodeId, Shape), String> {
        let channels = self.shapes[id.0 as usize].c;
        let taps = window.taps;
        check_kernel(channels as usize, 1, taps.len())?;
        let own: Vec<f32> = taps.iter().map(|&tap| tap as f32).collect();
        let op = Op::Conv2d {
            weight: own.repeat(channels as usize),
            bias: Vec::new(),
            out_channels: channels,
            groups: channels,
            kernel: window.kernel,
            stride: window.stride,
            padding: window.padding,
        };
        let made = self.emit(name, op, vec![id])?;
        if self.never_negative(id) && taps.iter().all(|&tap| tap >= 0.0) {
            self.say_never_negative(made.0);
        }
        Ok(made)
    }

    /// Windows along rows and along columns, over every channel by itself. Plain means become
    /// pools, which are cheaper.
    pub(crate) fn read(
        &mut self,
        name: &str,
        id: NodeId,
        rows: &Reading,
        columns: &Reading,
    ) -> Result<(NodeId, Shape), String> {
        if rows.changes_nothing() && columns.changes_nothing() {
            return Ok((id, self.shapes[id.0 as usize]));
        }
        let side = |reading: &Reading| {
            let side = u32::try_from(reading.taps.len());
            side.map_err(|_| String::from("its windows are too large"))
        };
        let (kernel, stride) = ((side(rows)?, side(columns)?), (rows.stride, columns.stride));
        if let (Some(row), Some(column)) = (rows.choice(), columns.choice()) {
            let Shape { h, w, .. } = self.shapes[id.0 as usize];
            let chosen = pi_ir::Window {
                kernel: (1, 1),
                stride,
                origin: (row as i32, column as i32),
                count: ((h - kernel.0) / stride.0 + 1, (w - kernel.1) / stride.1 + 1),
            };
            return self.emit(name, Op::WindowSum(chosen), vec![id]);
        }
        if rows.is_mean() && columns.is_mean() {
            return self.emit(name, Op::AvgPool { kernel, stride }, vec![id]);
        }
        check_kernel(1, rows.taps.len(), columns.taps.len())?;
        let taps = rows.taps.iter();
        let taps: Vec<f64> = taps
            .flat_map(|&row| columns.taps.iter().map(move |&column| row * column))
            .collect();
        let window = Window {
            taps: &taps,
            kernel,
            stride,
            padding: Padding {
                top: rows.padding.0,
                bottom: rows.padding.1,
                left: columns.padding.0,
                right: columns.padding.1,
            },
        };
        self.window(name, id, &window)
    }

    /// `scale x + shift`, channel by channel.
    fn affine(
        &mut self,
        name: &str,
        id: NodeId,
        scale: &Field,
        shift: &Field,
    ) -> Result<NodeId, String> {
        if scale.is(1.0) && shift.is(0.0) {
            return Ok(id);
        }
        let shape = self.shapes[id.0 as usize];
        let (Some(gamma), Some(beta)) = (scale.channels(shape), shift.channels(shape)) else {
            return Err(format!(
                "{name} multiplies or adds numbers that differ from position to position: they may \
                 differ from channel to channel"
            ));
        };
        let single = |all: Vec<f64>| all.into_iter().map(|v| v as f32).collect::<Vec<f32>>();
        let norm = BatchNorm {
            gamma: single(gamma),
            beta: single(beta),
            ..BatchNorm::new(shape.c as usize, 0.0)
        };
        Ok(self.emit(name, Op::BatchNorm(norm), vec![id])?.0)
    }

    /// The function of a part, as a node; the part's padding is left to its reader.
    ///
    /// # Errors
    /// If no node computes it.
    pub(crate) fn compute(&mut self, part: &Part) -> Result<View, String> {
        let id = part.view.id;
        let known = self.computed.get(&id).into_iter().flatten();
        let known = { known }.find(|(function, _)| *function == part.function);
        let id = match known {
            Some((_, id)) => *id,
            None => {
                let computed = self.function(&part.name, id, &part.function)?;
                let own = (part.function.clone(), computed);
                self.computed.entry(id).or_default().push(own);
                computed
            }
        };
        Ok(View {
            id,
            ..part.view.clone()
        })
    }

    /// The part as a function of the node `onto`, if that computes a function of the same node and
    /// the one follows from the other: of a norm and its ReLU, only the second knows that the first
    /// has a node by now.
    pub(crate) fn rebased(&self, part: &Part, onto: NodeId) -> Part {
        let shape = part.view.shape;
        let known = self.computed.get(&part.view.id).into_iter().flatten();
        let known = { known }.find(|(_, id)| *id == onto && part.view.id != onto);
        let function = known.and_then(|(known, _)| {
            if *known == part.function {
                return Some(Function::identity());
            }
            part.function.of(known, shape)
        });
        match function {
            None => part.clone(),
            Some(function) => Part {
                function,
                view: View {
                    id: onto,
                    ..part.view.clone()
                },
                ..part.clone()
            },
        }
    }

    fn function(&mut self, name: &str, id: NodeId, f: &Function) -> Result<NodeId, String> {
        if id == RAW && f.is_affine() {
            return self.of_input(name, f);
        }
        if f.is_affine() {
            return self.affine(name, id, &f.linear, &f.constant);
        }
        let id = match id {
            RAW => self.of_input(name, &Function::identity())?,
            id => id,
        };
        let shape = self.shapes[id.0 as usize];
        if let Some((kinds, coefficients)) = f.activation(shape) {
            let op = Op::Activation {
                kinds,
                coefficients,
            };
            return Ok(self.emit(name, op, vec![id])?.0);
        }
        // What goes around an activation and is added behind it.
        let minus = Function::identity().times(&Field::One(-1.0), shape);
        if let Some((kinds, coefficients)) = f.plus(&minus, shape).activation(shape) {
            let op = Op::Activation {
                kinds,
                coefficients,
            };
            let (activated, _) = self.emit(name, op, vec![id])?;
            return Ok(self.emit(name, Op::Add, vec![activated, id])?.0);
        }
        if !f.square.is(0.0) {
            return Err(format!(
                "{name} has no private form: an element is a ReLU, itself, or a quadratic with \
                 coefficients of its channel"
            ));
        }
        // A weighted sum of x and its ReLU, which is taken where it has a weight.
        let kinds = f
            .relu
            .elements(shape)
            .into_iter()
            .map(|weight| match weight {
                0.0 => ActivationKind::Identity,
                _ => ActivationKind::Relu,
            });
        let relu = Op::Activation {
            kinds: kinds.collect(),
            coefficients: Vec::new(),
        };
        let (relu, _) = self.emit(name, relu, vec![id])?;
        let relu = self.affine(name, relu, &f.relu, &Field::ZERO)?;
        if f.linear.is(0.0) && f.constant.is(0.0) {
            return Ok(relu);
        }
        let rest = self.affine(name, id, &f.linear, &f.constant)?;
        Ok(self.emit(name, Op::Add, vec![relu, rest])?.0)
    }

    /// Leaves the input as it is: no function of it becomes part of what is done to pixels.
    pub(crate) fn keep_input(&mut self) {
        self.input = Some(Function::identity());
    }

    /// A function of the input. The first becomes what is done to pixels before node 0 gives them
    /// out, and others are computed from that.
    fn of_input(&mut self, name: &str, f: &Function) -> Result<NodeId, String> {
        let shape = self.shapes[0];
        let channels = |field: &Field| field.channels(shape);
        let positive = channels(&f.linear).filter(|all| all.iter().all(|&v| v > 0.0));
        if self.input.is_none() && positive.is_some() && channels(&f.constant).is_some() {
            self.input = Some(f.clone());
            return Ok(NodeId(0));
        }
        let first = self.input.get_or_insert_with(Function::identity).clone();
        if first == *f {
            return Ok(NodeId(0));
        }
        let f = f.of(&first, shape);
        let f = f.ok_or("its numbers are beyond single precision")?;
        self.affine(name, NodeId(0), &f.linear, &f.constant)
    }

    /// The part as a node, with its padding.
    ///
    /// # Errors
    /// As [`Net::compute`].
    pub(crate) fn settle(&mut self, part: &Part) -> Result<View, String> {
        let view = self.compute(part)?;
        if part.padding == Padding::default() {
            return Ok(view);
        }
        let window = Window {
            taps: &[1.0],
            kernel: (1, 1),
            stride: (1, 1),
            padding: part.padding,
        };
        let (id, shape) = self.window(&part.name, view.id, &window)?;
        Ok(View { id, shape, ..view })
    }

    /// The part, whose padding is in a node if it has any.
    ///
    /// # Errors
    /// As [`Net::compute`].
    pub(crate) fn settle_if_padded(&mut self, part: &Part) -> Result<Part, String> {
        match part.padding == Padding::default() {
            true => Ok(part.clone()),
            false => Ok(Part::of(&part.name, self.settle(part)?)),
        }
    }

    /// The tensor as one node: parts of a concatenation are copied to their channels.
    ///
    /// # Errors
    /// As [`Net::compute`]; and if parts lie along another axis than channels.
    pub(crate) fn joined(&mut self, name: &str, live: &Live) -> Result<View, String> {
        if live.is_one() {
            return self.settle(&live.parts[0]);
        }
        let views: Vec<View> = live
            .parts
            .iter()
            .map(|part| self.settle(part))
            .collect::<Result<_, String>>()?;
        let (h, w) = (views[0].shape.h, views[0].shape.w);
        let maps = views.iter().all(|view| {
            let flat = (view.shape.h, view.shape.w) == (1, 1);
            (view.shape.h, view.shape.w) == (h, w) && (flat || view.is_only(live.axis, Axis::C))
        });
        if !maps {
            return Err(
                "reads a concatenation along rows, columns or flattened maps: only along channels \
                 can it be put together"
                    .into(),
            );
        }
        let (places, total) = (live.places(live.axis), live.dims()[live.axis]);
        let (mut first, mut sum) = (0, None);
        for view in &views {
            let own = view.shape.c as usize;
            check_kernel(total, own, 1)?;
            let mut weight = vec![0.0; total * own];
            for (c, place) in places[first..first + own].iter().enumerate() {
                place.iter().for_each(|place| weight[place * own + c] = 1.0);
            }
            first += own;
            let total = u32::try_from(total).expect("channels of nodes that exist");
            let op = Op::Conv2d {
                weight,
                bias: Vec::new(),
                out_channels: total,
                groups: 1,
                kernel: (1, 1),
                stride: (1, 1),
                padding: Padding::default(),
            };
            let (id, _) = self.emit(name, op, vec![view.id])?;
            sum = Some(match sum {
                None => id,
                Some(sum) => self.emit(name, Op::Add, vec![sum, id])?.0,
            });
        }
        let id = sum.expect("a tensor has parts");
        // A single channel may have stood anywhere.
        let order = views[0].order.iter().enumerate().map(|(at, group)| {
            let rest = group.iter().copied().filter(|&axis| axis != Axis::C);
            let channels = (at == live.axis).then_some(Axis::C);
            channels.into_iter().chain(rest).collect()
        });
        Ok(View {
            id,
            shape: Shape::new(total as u32, h, w),
            order: order.collect(),
        })
    }

    /// Returns whether no element of a node's result can be negative.
    pub(crate) fn never_negative(&self, id: NodeId) -> bool {
        self.never_negative[id.0 as usize]
    }

    /// Notes that no element of a node's result can be negative.
    pub(crate) fn say_never_negative(&mut self, id: NodeId) {
        self.never_negative[id.0 as usize] = true;
    }

    /// The graph that ends with a node: what it does not read is left out. Where each node went,
    /// and what node 0 does to the input.
    pub(crate) fn finish(
        mut self,
        name: &str,
        output: NodeId,
        kind: InputKind,
    ) -> (Graph, Vec<Option<NodeId>>, Function) {
        let mut needed = vec![false; self.nodes.len()];
        needed[0] = true;
        needed[output.0 as usize] = true;
        for index in (0..self.nodes.len()).rev() {
            if needed[index] {
                let inputs = &self.nodes[index].inputs;
                inputs.iter().for_each(|id| needed[id.0 as usize] = true);
            }
        }
        let shape = self.shapes[0];
        let function = self.input.take().unwrap_or_else(Function::identity);
        let preprocessing = preprocessing(shape, &function, kind);
        let mut new_id = vec![None; self.nodes.len()];
        let mut nodes = Vec::new();
        for (index, mut node) in self.nodes.drain(..).enumerate() {
            if needed[index] {
                node.inputs
                    .iter_mut()
                    .for_each(|id| *id = new_id[id.0 as usize].expect("a needed node is kept"));
                new_id[index] = Some(NodeId(nodes.len() as u32));
                nodes.push(node);
            }
        }
        let mut graph = Graph {
            name: name.to_owned(),
            preprocessing,
            classes: Vec::new(),
            nodes,
        };
        spell_out_norms(&mut graph);
        (graph, new_id, function)
    }
}

/// The name, or with the first number behind it that makes it a new one; then it is none any more.
pub(crate) fn unique(names: &mut HashSet<String>, base: &str) -> String {
    let mut unique = base.to_owned();
    for number in 2.. {
        if names.insert(unique.clone()) {
            break;
        }
        unique = format!("{base}.{number}");
    }
    unique
}

/// Ensures that a kernel is not too large to be written out.
///
/// # Errors
/// If it is.
pub(crate) fn check_kernel(out: usize, input: usize, taps: usize) -> Result<(), String> {
    let weights = out.checked_mul(input).and_then(|n| n.checked_mul(taps));
    match weights {
        Some(weights) if weights <= limits::KERNEL => Ok(()),
        _ => Err(format!(
            "a kernel from {input} to {out} channels with {taps} taps has more than {} weights",
            limits::KERNEL
        )),
    }
}

/// Pixels are divided by 255, values are not, and then they become what the network does to its
/// input first.
fn preprocessing(shape: Shape, f: &Function, kind: InputKind) -> Preprocessing {
    let list = |field: &Field| field.channels(shape).expect("of_input saw to it");
    let (scale, shift) = (list(&f.linear), list(&f.constant));
    // a x + b = (x - mean) / std
    let mean = shift.iter().zip(&scale).map(|(b, a)| (-b / a) as f32 + 0.0);
    let mean = mean.collect();
    let std = scale.iter().map(|a| (1.0 / a) as f32).collect();
    match kind {
        InputKind::Image => Preprocessing::Channels { mean, std },
        InputKind::Values => Preprocessing::Values {
            mean,
            std,
            bound: None,
        },
    }
}

/// Turns norms into convolutions of one tap, where no convolution or dense node can take them in
/// and none behind them can take in their scale.
fn spell_out_norms(graph: &mut Graph) {
    let mut readers = vec![Vec::new(); graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            readers[input.0 as usize].push(index);
        }
    }
    for index in 0..graph.nodes.len() {
        let Op::BatchNorm(norm) = &graph.nodes[index].op else {
            continue;
        };
        let before = graph.nodes[index].inputs[0].0 as usize;
        let positive = norm.gamma.iter().all(|&g| g > 1e-6);
        if belongs_to_linear(graph, &readers, before)
            || (positive
                && is_linear(&graph.nodes[before].op)
                && takes_gain(graph, &readers, index))
        {
            continue;
        }
        let channels = norm.gamma.len() as u32;
        graph.nodes[index].op = Op::Conv2d {
            weight: norm.gamma.clone(),
            bias: norm.beta.clone(),
            out_channels: channels,
            groups: channels,
            kernel: (1, 1),
            stride: (1, 1),
            padding: Padding::default(),
        };
    }
}

fn is_linear(op: &Op) -> bool {
    matches!(op, Op::Conv2d { .. } | Op::Dense { .. } | Op::Add | Op::Sub)
}

/// A convolution or dense node that nothing else reads, perhaps behind average pools.
fn belongs_to_linear(graph: &Graph, readers: &[Vec<usize>], mut node: usize) -> bool {
    while readers[node].len() == 1 {
        match &graph.nodes[node].op {
            Op::Conv2d { .. } | Op::Dense { .. } => return true,
            Op::AvgPool { .. } => node = graph.nodes[node].inputs[0].0 as usize,
            _ => return false,
        }
    }
    false
}

/// Everything behind a node ends in weights.
fn takes_gain(graph: &Graph, readers: &[Vec<usize>], node: usize) -> bool {
    !readers[node].is_empty()
        && readers[node]
            .iter()
            .all(|&reader| match graph.nodes[reader].op {
                Op::Conv2d { .. } | Op::Dense { .. } => true,
                Op::Activation { .. } | Op::AvgPool { .. } | Op::Flatten => {
                    takes_gain(graph, readers, reader)
                }
                _ => false,
            })
}
