//! The choice of a public prefix: everything up to one node, which the client then computes itself.
//!
//! What a prefix gives away is decided here, so this module refuses unless it was told so: weights
//! that a training step changed, or of which the graph does not say, are published only with
//! [`PublicPrefix::reveal_learned`]. No weight from behind the prefix may end up in it either:
//! [`crate::pass::fold`] refuses a batch norm behind the prefix that would become part of a
//! convolution in it, and [`crate::pass::lower`] ends a layer where the prefix ends.

use crate::fault::{Fault, Refused};
use pi_ir::count::node_parameters;
use pi_ir::{Graph, Node, NodeId, Op, Origin};
use std::fmt;

/// The end of a public prefix, and consent to what it gives away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicPrefix {
    /// The last node of the prefix, by name.
    pub node: String,
    /// Publishes numbers that were learned, or of which the graph does not say.
    pub reveal_learned: bool,
}

/// The numbers of one node that a prefix publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disclosed {
    /// Name of the node.
    pub node: String,
    /// Weights, biases, norms' scales and shifts, and coefficients.
    pub numbers: usize,
    /// Source of the numbers.
    pub origin: Origin,
}

impl fmt::Display for Disclosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.origin {
            Origin::Learned => "learned",
            Origin::Statistics => "statistics",
            Origin::Unmarked => "of unknown origin",
        };
        write!(f, "{} numbers of {}, {origin}", self.numbers, self.node)
    }
}

/// The last node of a prefix, and what the prefix publishes, node by node.
///
/// # Errors
/// If no node has that name, the prefix would be nothing or everything, an edge leads past its last
/// node, or it holds numbers that may not be published: one fault per edge or node.
pub fn cut(graph: &Graph, prefix: &PublicPrefix) -> Result<(NodeId, Vec<Disclosed>), Refused> {
    let refuse = |why: String| {
        let ends: Vec<&str> = ends(graph).map(|node| node.name.as_str()).collect();
        let ends = match ends.is_empty() {
            true => "no node of this graph can end one".into(),
            false => format!("a public prefix can end at {}", ends.join(", ")),
        };
        Refused::one(&prefix.node, format!("{why}; {ends}"))
    };
    let index = graph.nodes.iter().position(|n| n.name == prefix.node);
    let index = index.ok_or_else(|| refuse("the graph has no node of that name".into()))?;
    if index == 0 {
        return Err(refuse("the input alone is no prefix".into()));
    }
    if index + 1 == graph.nodes.len() {
        return Err(refuse(
            "it is the output: nothing would be left to compute privately".into(),
        ));
    }
    if let Some((reader, read)) = crossing(graph, index).next() {
        return Err(refuse(format!(
            "{} reads {}, which lies before it: the prefix would have a second result",
            reader.name, read.name
        )));
    }
    let disclosed: Vec<Disclosed> = graph.nodes[..=index]
        .iter()
        .map(|node| Disclosed {
            node: node.name.clone(),
            numbers: node_parameters(&node.op),
            origin: node.origin,
        })
        .filter(|disclosed| disclosed.numbers > 0)
        .collect();
    let secret = |d: &&Disclosed| d.origin != Origin::Statistics && !prefix.reveal_learned;
    let faults = disclosed.iter().filter(secret).map(|disclosed| {
        let what = match disclosed.origin {
            Origin::Learned => "were learned",
            _ => "are not marked as statistics, so they may have been learned",
        };
        Fault::new(
            &disclosed.node,
            format!(
                "its {} numbers {what}, and a public prefix would give them to every client for \
                 good: end the prefix before it, or add --reveal-learned-weights",
                disclosed.numbers
            ),
        )
    });
    let faults: Vec<Fault> = faults.collect();
    Refused::unless_empty(faults, (NodeId(index as u32), disclosed))
}

/// Nodes behind `end` that read one before it, with what they read.
fn crossing(graph: &Graph, end: usize) -> impl Iterator<Item = (&Node, &Node)> {
    graph.nodes[end + 1..].iter().flat_map(move |reader| {
        let before = reader.inputs.iter().filter(move |id| (id.0 as usize) < end);
        before.map(move |id| (reader, &graph.nodes[id.0 as usize]))
    })
}

/// The activations and additions at which a prefix can end. (It may end elsewhere, but these are
/// where a tensor is anyway.)
fn ends(graph: &Graph) -> impl Iterator<Item = &Node> {
    let last = graph.nodes.len().saturating_sub(1);
    (1..last)
        .filter(|&index| crossing(graph, index).next().is_none())
        .map(|index| &graph.nodes[index])
        .filter(|node| matches!(node.op, Op::Activation { .. } | Op::Add))
}
