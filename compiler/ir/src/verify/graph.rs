//! Faults of a float graph.

use super::{Fault, Faults, within_limits};
use crate::graph::{ActivationKind, Graph, Node, Op};
use crate::limits;
use crate::shape::Shape;

/// Every fault of a graph; empty if it can be evaluated and compiled.
pub fn graph(graph: &Graph) -> Vec<Fault> {
    let mut faults = Faults::default();
    faults.name("graph", &graph.name);
    faults.require(!graph.nodes.is_empty(), "graph", || "has no nodes".into());
    faults.require(graph.nodes.len() <= limits::NODES, "graph", || {
        format!(
            "{} nodes, the limit is {}",
            graph.nodes.len(),
            limits::NODES
        )
    });
    let names = graph.nodes.iter().enumerate();
    faults.unique(names.map(|(i, node)| (place(i, node), node.name.as_str())));

    let mut shapes: Vec<Option<Shape>> = Vec::with_capacity(graph.nodes.len());
    let mut read = vec![false; graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        let shape = check_node(&mut faults, index, node, &shapes, &mut read);
        shapes.push(shape);
    }
    let total: usize = shapes.iter().flatten().map(Shape::len).sum();
    faults.require(total <= limits::GRAPH_ELEMENTS, "graph", || {
        format!(
            "{total} elements in all nodes, the limit is {}",
            limits::GRAPH_ELEMENTS
        )
    });
    let last = graph.nodes.len().saturating_sub(1);
    for (index, node) in graph.nodes.iter().enumerate() {
        faults.require(read[index] || index == last, &place(index, node), || {
            "no node reads it".into()
        });
    }
    if let (Some(node), Some(Some(shape))) = (graph.nodes.last(), shapes.last()) {
        faults.require(shape.h == 1 && shape.w == 1, &place(last, node), || {
            format!("is the output, which is [classes, 1, 1], not {shape}")
        });
    }
    if let Some(Node {
        op: Op::Input { shape },
        ..
    }) = graph.nodes.first()
    {
        faults.preprocessing(&graph.preprocessing, shape.c);
    }
    faults.classes(&graph.classes, shapes.last().copied().flatten());
    faults.0
}

/// The node's shape, if it has one.
fn check_node(
    faults: &mut Faults,
    index: usize,
    node: &Node,
    shapes: &[Option<Shape>],
    read: &mut [bool],
) -> Option<Shape> {
    let place = &place(index, node);
    let is_input = matches!(node.op, Op::Input { .. });
    faults.require(is_input == (index == 0), place, || {
        "node 0, and only it, is the input".into()
    });
    let mut inputs = Some(Vec::with_capacity(2));
    for id in &node.inputs {
        let id = id.0 as usize;
        if id >= index {
            faults.add(
                place,
                format!("reads node {id}, which does not come before"),
            );
            inputs = None;
            continue;
        }
        read[id] = true;
        inputs = inputs.zip(shapes[id]).map(|(mut list, shape)| {
            list.push(shape);
            list
        });
    }
    // Unknown shapes were reported at the nodes they come from.
    let inputs = inputs?;
    let shape = match node.op.output(&inputs) {
        Ok(shape) => shape,
        Err(why) => {
            faults.add(place, why);
            return None;
        }
    };
    faults.shape(place, shape);
    check_parameters(faults, place, &node.op, &inputs, shape);
    Some(shape).filter(|s| within_limits(*s) && !s.is_empty())
}

fn check_parameters(faults: &mut Faults, place: &str, op: &Op, inputs: &[Shape], shape: Shape) {
    let channels = shape.c as usize;
    match op {
        Op::Input { .. } | Op::Add | Op::Sub | Op::AvgPool { .. } | Op::Flatten => {}
        Op::WindowSum(window) => faults.window(place, inputs[0], window),
        Op::Conv2d {
            weight,
            bias,
            groups,
            kernel,
            ..
        } => {
            let count = [inputs[0].c / groups, kernel.0, kernel.1]
                .iter()
                .fold(channels, |n, &side| n.saturating_mul(side as usize));
            check_linear(faults, place, weight, bias, count, channels);
        }
        Op::Dense { weight, bias, .. } => {
            let count = channels.saturating_mul(inputs[0].c as usize);
            check_linear(faults, place, weight, bias, count, channels);
        }
        Op::BatchNorm(norm) => {
            let lists = [
                ("scales", &norm.gamma),
                ("shifts", &norm.beta),
                ("means", &norm.mean),
                ("variances", &norm.var),
            ];
            for (what, list) in lists {
                faults.length(place, what, channels, list.len());
                finite(faults, place, what, list);
            }
            let usable = norm.var.iter().all(|v| *v >= 0.0 && v + norm.eps > 0.0);
            faults.require(usable && norm.eps.is_finite(), place, || {
                "a variance is negative, or zero without an epsilon".into()
            });
        }
        Op::Activation {
            kinds,
            coefficients,
        } => {
            faults.length(place, "kinds", shape.len(), kinds.len());
            let expected = match kinds.contains(&ActivationKind::Polynomial) {
                true => channels,
                false => 0,
            };
            faults.length(place, "coefficient triples", expected, coefficients.len());
            finite(faults, place, "coefficients", coefficients.as_flattened());
        }
    }
}

fn check_linear(
    faults: &mut Faults,
    place: &str,
    weight: &[f32],
    bias: &[f32],
    count: usize,
    channels: usize,
) {
    faults.require(count <= limits::KERNEL, place, || {
        format!("{count} weights, the limit is {}", limits::KERNEL)
    });
    faults.length(place, "weights", count, weight.len());
    if !bias.is_empty() {
        faults.length(place, "biases", channels, bias.len());
    }
    finite(faults, place, "weights", weight);
    finite(faults, place, "biases", bias);
}

fn finite(faults: &mut Faults, place: &str, what: &str, values: &[f32]) {
    faults.require(values.iter().all(|v| v.is_finite()), place, || {
        format!("{what} that are not finite")
    });
}

fn place(index: usize, node: &Node) -> String {
    format!("node {index} ({})", node.name.escape_debug())
}
