//! From a trained run to the compiler's float graph, with proof that both compute the same.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pi_ir::graph::{ActivationKind, Graph, Node, NodeId, Op as GraphOp};
use pi_ir::{GraphFile, Padding, Shape};

use crate::checkpoint::write_atomically;
use crate::data::{CLASSES, Dataset, IMAGE, plain_batch};
use crate::kernels::NORM_EPSILON;
use crate::network::Op;
use crate::train::Run;

/// Largest difference of a logit that [`check`] accepts, relative to the largest logit of the batch (at least 1).
///
/// Both sides compute in single precision and differ only in the order of at most 1,000 terms a sum over about ten
/// layers; random rounding makes that about `sqrt(1000) * 10 * 2^-24`, 2e-5. A wrong weight, kind or shape shows at
/// 1e-2 or more.
pub const TOLERANCE: f32 = 1e-3;

/// The run's network as a float graph. Activation sites that are all identity vanish.
///
/// # Errors
/// A graph that `pi-ir` does not accept.
pub fn graph(run: &Run) -> Result<Graph> {
    let state = &run.state;
    let mut nodes: Vec<Node> = Vec::new();
    // Node of the graph that holds each node of the network.
    let mut ids: Vec<NodeId> = Vec::new();
    for node in &run.network.nodes {
        let values = |what: &str| {
            state.parameters[&format!("{}.{what}", node.name)]
                .values
                .clone()
        };
        let mut inputs: Vec<NodeId> = node.inputs.iter().map(|i| ids[*i]).collect();
        let mut push = |name: String, op: GraphOp, inputs: Vec<NodeId>| {
            nodes.push(Node { name, op, inputs });
            NodeId(nodes.len() as u32 - 1)
        };
        let [c, h, w] = node.shape.map(|d| d as u32);
        let op = match node.op {
            Op::Input => GraphOp::Input {
                shape: Shape::new(c, h, w),
            },
            Op::Conv { kernel, stride, .. } => GraphOp::Conv2d {
                weight: values("weight"),
                bias: Vec::new(),
                out_channels: c,
                kernel: (kernel as u32, kernel as u32),
                stride: (stride as u32, stride as u32),
                padding: Padding::same(kernel as u32 / 2),
            },
            Op::Norm => {
                let moments = &state.buffers[&format!("{}.moments", node.name)].values;
                let (mean, var) = moments.split_at(moments.len() / 2);
                GraphOp::BatchNorm {
                    gamma: values("gamma"),
                    beta: values("beta"),
                    mean: mean.to_vec(),
                    var: var.to_vec(),
                    eps: NORM_EPSILON,
                }
            }
            Op::Activation => {
                let kinds = state.masks[&node.name].clone();
                if kinds.iter().all(|kind| *kind == ActivationKind::Identity) {
                    ids.push(inputs[0]);
                    continue;
                }
                let poly = values("poly");
                let coefficients = if kinds.contains(&ActivationKind::Polynomial) {
                    let channels = node.shape[0];
                    (0..channels)
                        .map(|i| [poly[i], poly[channels + i], poly[2 * channels + i]])
                        .collect()
                } else {
                    Vec::new()
                };
                GraphOp::Activation {
                    kinds,
                    coefficients,
                }
            }
            Op::Add => GraphOp::Add,
            Op::GlobalPool => {
                let [_, h, w] = run.network.nodes[node.inputs[0]].shape.map(|d| d as u32);
                GraphOp::AvgPool {
                    kernel: (h, w),
                    stride: (h, w),
                }
            }
            Op::Dense { .. } => {
                inputs = vec![push(
                    format!("{}.flatten", node.name),
                    GraphOp::Flatten,
                    inputs,
                )];
                GraphOp::Dense {
                    weight: values("weight"),
                    bias: values("bias"),
                    out: c,
                }
            }
        };
        ids.push(push(node.name.clone(), op, inputs));
    }
    let graph = Graph {
        name: run.meta.config.name.clone(),
        mean: run.meta.normalisation.mean.to_vec(),
        std: run.meta.normalisation.std.to_vec(),
        classes: CLASSES.iter().map(|name| (*name).to_owned()).collect(),
        nodes,
    };
    graph
        .shapes()
        .map_err(|why| anyhow::anyhow!("the exported graph is malformed: {why}"))?;
    Ok(graph)
}

/// Runs `pi-ir`'s interpreter and the run on the first `count` images of `set`; returns the largest difference of a
/// logit.
///
/// # Errors
/// A difference above [`TOLERANCE`], naming the image.
pub fn check(run: &Run, graph: &Graph, set: &Dataset, count: usize) -> Result<f32> {
    let indices: Vec<usize> = (0..count.min(set.len())).collect();
    ensure!(
        !indices.is_empty(),
        "the export is checked on images, and there are none"
    );
    let pixels = plain_batch(set, &indices, &run.meta.normalisation);
    let trained = run.logits(pixels.clone());
    let scale = trained.iter().flatten().fold(1.0f32, |m, v| m.max(v.abs()));
    let mut worst = 0.0f32;
    for (index, (image, expected)) in pixels.chunks(IMAGE).zip(&trained).enumerate() {
        let got = pi_ir::interpret::float(graph, image)
            .map_err(|why| anyhow::anyhow!("the exported graph: {why}"))?;
        ensure!(
            got.len() == expected.len(),
            "the exported graph gives {} logits, not {}",
            got.len(),
            expected.len()
        );
        for (class, (g, e)) in got.iter().zip(expected).enumerate() {
            let difference = (g - e).abs();
            ensure!(
                difference <= TOLERANCE * scale,
                "image {index}, class {class}: the exported graph says {g}, the trained model {e}"
            );
            worst = worst.max(difference);
        }
    }
    Ok(worst)
}

/// Writes the graph file, after [`check`] on `count` images of `set`; returns its size and the largest difference.
///
/// # Errors
/// As [`graph`] and [`check`], and the file system's.
pub fn export(run: &Run, set: &Dataset, count: usize, path: &Path) -> Result<(usize, f32)> {
    let graph = graph(run)?;
    let worst = check(run, &graph, set, count)?;
    let bytes = GraphFile { graph }.encode();
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    write_atomically(path, &bytes)?;
    Ok((bytes.len(), worst))
}
