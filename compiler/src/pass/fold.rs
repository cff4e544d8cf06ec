//! Folds batch norms away: after this pass no node scales a tensor.
//!
//! - After a convolution or dense node (average pools in between commute) that nothing else reads,
//!   the norm becomes part of weights and bias.
//! - After an addition, or a linear node that others read too (the residual stream of a
//!   pre-activation network), `ReLU(g z + b) = g ReLU(z + b / g)` with `g > 0`: the shift stays, as
//!   a norm of scale 1, and `g` moves through activations (all kinds scale along; polynomial
//!   coefficients change), pools and flattening into the weights that follow.
//! - Anything else is refused, with the node's name.

use crate::fault::{Fault, Refused};
use pi_ir::{ActivationKind, BatchNorm, Graph, Node, NodeId, Op, Shape, group_reads};

/// Returns a graph of the same function whose batch norms are pure shifts (scale exactly 1).
///
/// # Errors
/// One fault for each norm that has no place to go.
pub fn fold(graph: &Graph) -> Result<Graph, Refused> {
    Ok(fold_behind(graph, None)?.0)
}

/// Does the same as [`fold`], but moves nothing from behind the node `public` into it or what lies
/// before it; returns where that node went.
///
/// # Errors
/// As [`fold`]; and one fault for each norm behind `public` that belongs to a node before it.
pub fn fold_behind(
    graph: &Graph,
    public: Option<NodeId>,
) -> Result<(Graph, Option<NodeId>), Refused> {
    let shapes = graph.shapes().map_err(|why| Refused::one("", why))?;
    let mut pass = Fold {
        public: public.map_or(0, |id| id.0 as usize),
        nodes: graph.nodes.clone(),
        consumers: consumers(graph),
        shapes,
    };
    let mut faults = Vec::new();
    let mut replaced: Vec<Option<NodeId>> = Vec::with_capacity(graph.nodes.len());
    for (index, node) in graph.nodes.iter().enumerate() {
        let folded = pass.fold_node(index).unwrap_or_else(|message| {
            faults.push(Fault::new(&node.name, message));
            false
        });
        replaced.push(folded.then(|| pass.nodes[index].inputs[0]));
    }
    let (nodes, new_id) = without(pass.nodes, &replaced);
    let graph = Graph {
        nodes,
        ..graph.clone()
    };
    let public = public.map(|id| new_id[id.0 as usize]);
    Refused::unless_empty(faults, (graph, public))
}

/// The shift of a node that [`fold`] left behind, if it is one.
pub(crate) fn pure_shift(op: &Op) -> Option<&[f32]> {
    match op {
        Op::BatchNorm(BatchNorm {
            gamma,
            beta,
            mean,
            var,
            eps,
        }) => {
            let ones = |list: &[f32]| list.iter().all(|&v| v == 1.0);
            let unit = ones(gamma) && ones(var) && *eps == 0.0 && mean.iter().all(|&v| v == 0.0);
            unit.then_some(beta)
        }
        _ => None,
    }
}

/// The nodes that read each node.
pub(crate) fn consumers(graph: &Graph) -> Vec<Vec<usize>> {
    let mut readers = vec![Vec::new(); graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            readers[input.0 as usize].push(index);
        }
    }
    readers
}

struct Fold {
    /// The last node of the public prefix; 0, the input, if there is none.
    public: usize,
    nodes: Vec<Node>,
    consumers: Vec<Vec<usize>>,
    shapes: Vec<Shape>,
}

impl Fold {
    /// Folds one node if it is a batch norm; returns whether the node is gone.
    fn fold_node(&mut self, index: usize) -> Result<bool, String> {
        let Op::BatchNorm(norm) = &self.nodes[index].op else {
            return Ok(false);
        };
        let scale: Vec<f64> = (norm.gamma.iter().zip(&norm.var))
            .map(|(&g, &v)| f64::from(g) / (f64::from(v) + f64::from(norm.eps)).sqrt())
            .collect();
        let shift: Vec<f64> = (norm.beta.iter().zip(&norm.mean).zip(&scale))
            .map(|((&b, &m), g)| f64::from(b) - f64::from(m) * g)
            .collect();
        if scale.iter().chain(&shift).any(|v| !v.is_finite()) {
            return Err("its statistics are not finite; train it again".into());
        }
        if let Some(linear) = self.linear_before(index) {
            if linear <= self.public && self.public < index {
                return Err(format!(
                    "this batch norm becomes part of {}, which lies in the public prefix: end the \
                     prefix at {} or behind it, or before {}",
                    self.nodes[linear].name, self.nodes[index].name, self.nodes[linear].name
                ));
            }
            scale_outputs(&mut self.nodes[linear].op, &scale, &shift);
            return Ok(true);
        }
        let before = self.nodes[index].inputs[0].0 as usize;
        match &self.nodes[before].op {
            Op::Add | Op::Sub | Op::Conv2d { .. } | Op::Dense { .. } => {
                self.fold_stream(index, &scale, &shift)?
            }
            other => {
                return Err(format!(
                    "batch norm after {} ({}): it must follow a convolution or dense node that \
                     nothing else reads, or an addition; move it there, or train without it",
                    self.nodes[before].name,
                    describe(other)
                ));
            }
        }
        Ok(false)
    }

    /// The linear node whose only reader, possibly through average pools, is this norm.
    fn linear_before(&self, index: usize) -> Option<usize> {
        let mut node = self.nodes[index].inputs[0].0 as usize;
        loop {
            if self.consumers[node].len() != 1 {
                return None;
            }
            match &self.nodes[node].op {
                Op::Conv2d { .. } | Op::Dense { .. } => return Some(node),
                Op::AvgPool { .. } => node = self.nodes[node].inputs[0].0 as usize,
                _ => return None,
            }
        }
    }

    fn fold_stream(&mut self, index: usize, scale: &[f64], shift: &[f64]) -> Result<(), String> {
        // A scale this small makes the shift `b / g` dominate the range of the whole layer.
        if let Some(channel) = scale.iter().position(|&g| g < 1e-6) {
            return Err(format!(
                "batch norm after an addition (or a node with several readers) has scale {} in \
                 channel {channel}, which is not above 0: it cannot move behind the \
                 activation; train its gamma as an exponential",
                scale[channel]
            ));
        }
        self.check_gain(index)?;
        self.push_gain(index, scale);
        let channels = scale.len();
        let beta = shift.iter().zip(scale).map(|(b, g)| (b / g) as f32);
        self.nodes[index].op = Op::BatchNorm(BatchNorm {
            beta: beta.collect(),
            ..BatchNorm::new(channels, 0.0)
        });
        Ok(())
    }

    /// Checks that everything behind a node can take a gain per channel.
    fn check_gain(&self, index: usize) -> Result<(), String> {
        if self.consumers[index].is_empty() {
            return Err("batch norm at the output after an addition: \
                 nothing behind it can take its scale; put a dense node last"
                .into());
        }
        for &reader in &self.consumers[index] {
            match &self.nodes[reader].op {
                Op::Conv2d { .. } | Op::Dense { .. } => {}
                Op::Activation { .. } | Op::AvgPool { .. } | Op::WindowSum(_) | Op::Flatten => {
                    self.check_gain(reader)?
                }
                other => {
                    return Err(format!(
                        "its scale moves behind the activation, but {} ({}) reads that tensor \
                         and has no weights; only convolutions and dense nodes may read it",
                        self.nodes[reader].name,
                        describe(other)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Multiplies what every reader of `index` sees by `gain`, one number per channel.
    fn push_gain(&mut self, index: usize, gain: &[f64]) {
        for reader in self.consumers[index].clone() {
            let positions = self.shapes[index].h as usize * self.shapes[index].w as usize;
            match &mut self.nodes[reader].op {
                Op::Conv2d {
                    weight,
                    kernel,
                    groups,
                    out_channels,
                    ..
                } => {
                    let taps = kernel.0 as usize * kernel.1 as usize;
                    let sizes = (gain.len() as u32, *out_channels);
                    let row = weight.len() / *out_channels as usize;
                    for (channel, row) in weight.chunks_exact_mut(row).enumerate() {
                        let read = group_reads(*groups, sizes, channel as u32);
                        scale_inputs(row, taps, &gain[read.start as usize..read.end as usize]);
                    }
                }
                Op::Dense { weight, .. } => scale_inputs(weight, 1, gain),
                Op::Activation { coefficients, .. } => {
                    // a (g z)^2 + b g z + c = g (a g z^2 + b z + c / g)
                    for ([a, _, c], g) in coefficients.iter_mut().zip(gain) {
                        *a = (f64::from(*a) * g) as f32;
                        *c = (f64::from(*c) / g) as f32;
                    }
                    self.push_gain(reader, gain);
                }
                Op::AvgPool { .. } | Op::WindowSum(_) => self.push_gain(reader, gain),
                Op::Flatten => {
                    let spread: Vec<f64> = gain
                        .iter()
                        .flat_map(|&g| std::iter::repeat_n(g, positions))
                        .collect();
                    self.push_gain(reader, &spread);
                }
                Op::Add | Op::Sub | Op::BatchNorm(_) | Op::Input { .. } => {
                    unreachable!("check_gain refused it")
                }
            }
        }
    }
}

/// Scales output channels and shifts them.
fn scale_outputs(op: &mut Op, scale: &[f64], shift: &[f64]) {
    let (Op::Conv2d { weight, bias, .. } | Op::Dense { weight, bias, .. }) = op else {
        unreachable!("linear_before returns linear nodes");
    };
    let row = weight.len() / scale.len();
    for (row, g) in weight.chunks_exact_mut(row).zip(scale) {
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * g) as f32);
    }
    bias.resize(scale.len(), 0.0);
    for ((b, g), h) in bias.iter_mut().zip(scale).zip(shift) {
        *b = (f64::from(*b) * g + h) as f32;
    }
}

/// Scales the weights that read each input channel.
fn scale_inputs(weight: &mut [f32], taps: usize, gain: &[f64]) {
    for (index, tap) in weight.chunks_exact_mut(taps).enumerate() {
        let g = gain[index % gain.len()];
        tap.iter_mut().for_each(|w| *w = (f64::from(*w) * g) as f32);
    }
}

/// The nodes that were not replaced, with readers pointed at what replaced the others; and the new
/// place of every node, or of what replaced it.
fn without(nodes: Vec<Node>, replaced: &[Option<NodeId>]) -> (Vec<Node>, Vec<NodeId>) {
    let mut new_id: Vec<NodeId> = Vec::with_capacity(nodes.len());
    let mut kept: Vec<Node> = Vec::with_capacity(nodes.len());
    for (mut node, replaced) in nodes.into_iter().zip(replaced) {
        if let Some(by) = replaced {
            new_id.push(new_id[by.0 as usize]);
            continue;
        }
        for input in &mut node.inputs {
            *input = new_id[input.0 as usize];
        }
        new_id.push(NodeId(kept.len() as u32));
        kept.push(node);
    }
    (kept, new_id)
}

/// Name of a node's kind, for messages.
pub(crate) fn describe(op: &Op) -> &'static str {
    match op {
        Op::Input { .. } => "the input",
        Op::Conv2d { .. } => "a convolution",
        Op::Dense { .. } => "a dense node",
        Op::BatchNorm(_) => "a batch norm",
        Op::Add => "an addition",
        Op::Sub => "a subtraction",
        Op::WindowSum(_) => "sums over windows",
        Op::AvgPool { .. } => "an average pool",
        Op::Flatten => "a flatten",
        Op::Activation { kinds, .. } => {
            if kinds.iter().all(|k| *k == ActivationKind::Identity) {
                "an activation of identities"
            } else {
                "an activation"
            }
        }
    }
}
