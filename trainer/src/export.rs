//! From a trained run to the compiler's float graph, with a check that both compute the same.
//!
//! Every activation becomes ReLUs, identities and quadratics per channel: norms before a square and
//! Hermite norms fold into coefficients, a quartic becomes three quadratics, and the kernel of a
//! convolution becomes a quadratic after it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use pi_ir::count::node_parameters;
use pi_ir::graph::{ActivationKind, BatchNorm, Graph, Node, NodeId, Op as GraphOp, Origin};
use pi_ir::{GraphFile, Padding, Preprocessing, Shape};

use crate::atomic;
use crate::checkpoint::Arrays;
use crate::data::{DeviceSet, Normalisation};
use crate::kernels::NORM_EPSILON;
use crate::network::forward::EXTENT_EPSILON;
use crate::network::{self, Buffer, Op, Parameter, SiteFunction};
use crate::run::Run;
use crate::tensors::download;

/// Largest difference of a logit that [`check`] accepts, relative to the largest logit of its image
/// (at least 1).
///
/// Both sides compute in single precision and differ only in the order of at most 5,000 terms a sum
/// over up to fifty layers; random rounding makes that about `sqrt(5000) * 50 * 2^-24`, 2e-4. A
/// wrong weight, kind or shape shows at 1e-2 or more.
pub const TOLERANCE: f32 = 1e-3;

/// The run's network as a float graph. Activation sites that are all identity vanish.
///
/// # Errors
/// A site whose function no polynomial replaces (the min-max norm of the batch at hand), a
/// selection that has not ended, or a graph that `pi-ir` does not accept.
pub fn graph(run: &Run) -> Result<Graph> {
    ensure!(
        run.state.selection.is_none(),
        "a selection is under way: its factors are neither ReLUs nor polynomials yet; train the \
         stage to its end"
    );
    let mut emit = Emit {
        run,
        parameters: run.state.parameter_arrays(),
        statistics: run.state.buffer_arrays(),
        trained: run.trained(),
        nodes: Vec::new(),
    };
    // Node of the graph that holds each node of the network.
    let mut ids: Vec<NodeId> = Vec::new();
    for (index, node) in run.network.nodes.iter().enumerate() {
        let inputs: Vec<NodeId> = node.inputs.iter().map(|i| ids[*i]).collect();
        let id = match node.op {
            Op::Norm => emit.norm(node, &ids)?,
            // They come with the norms that read them.
            Op::Kernel { .. } | Op::AvgPool { .. } if emit.only_norms_read(index) => inputs[0],
            _ => emit.node(node, inputs)?,
        };
        ids.push(id);
    }
    let images = &run.meta.images;
    let preprocessing = match images.normalisation.clone() {
        Normalisation::Channels { mean, std } => Preprocessing::Channels { mean, std },
        Normalisation::Image { floor } => Preprocessing::Image { floor },
    };
    let graph = Graph {
        name: run.meta.config.name.clone(),
        preprocessing,
        classes: images.classes.clone(),
        nodes: emit.nodes,
    };
    let faults = pi_ir::verify::graph(&graph);
    if let Some(fault) = faults.first() {
        bail!(
            "the exported graph has {} faults, the first is: {fault}",
            faults.len()
        );
    }
    Ok(graph)
}

struct Emit<'a> {
    run: &'a Run,
    parameters: Arrays,
    statistics: Arrays,
    /// Names of the parameters that training may have changed.
    trained: BTreeSet<String>,
    nodes: Vec<Node>,
}

impl<'a> Emit<'a> {
    fn push(&mut self, name: String, op: GraphOp, inputs: Vec<NodeId>) -> NodeId {
        let origin = self.origin(&name, &op);
        self.nodes.push(Node {
            name,
            op,
            inputs,
            origin,
        });
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// The origin of the numbers of a node, by which the compiler knows what it may publish.
    ///
    /// A convolution, a dense layer or quadratics that no stage trains are what they were set to:
    /// whitening filters are statistics. Everything else with numbers counts as learned.
    fn origin(&self, name: &str, op: &GraphOp) -> Origin {
        if node_parameters(op) == 0 {
            return Origin::Unmarked;
        }
        let own = match op {
            GraphOp::Conv2d { .. } | GraphOp::Dense { .. } => {
                &[Parameter::Weight, Parameter::Bias][..]
            }
            GraphOp::Activation { .. } => &[Parameter::Poly][..],
            _ => &[][..],
        };
        let own = own.iter().map(|what| what.of(name));
        let mut own = own
            .filter(|name| self.parameters.contains_key(name))
            .peekable();
        match own.peek().is_some() && own.all(|name| !self.trained.contains(&name)) {
            true => Origin::Statistics,
            false => Origin::Learned,
        }
    }

    fn parameter(&self, node: &network::Node, what: Parameter) -> Vec<f32> {
        self.parameters[&what.of(&node.name)].values.clone()
    }

    fn statistic(&self, node: &network::Node, what: Buffer) -> Vec<f32> {
        self.statistics[&what.of(&node.name)].values.clone()
    }

    /// A norm, behind a linear node: the compiler takes it nowhere else.
    ///
    /// Behind a polynomial kernel it is part of its quadratic. Before an average pool, whose means
    /// commute with a scale and a shift, it is the same as behind it.
    fn norm(&mut self, norm: &network::Node, ids: &[NodeId]) -> Result<NodeId> {
        let nodes = &self.run.network.nodes;
        let mut source = norm.inputs[0];
        let pool = matches!(nodes[source].op, Op::AvgPool { .. }) && self.only_norms_read(source);
        let pool = pool.then(|| &nodes[source]);
        if let Some(pool) = pool {
            source = pool.inputs[0];
        }
        let before = &nodes[source];
        let id = match before.op {
            Op::Kernel { .. } => {
                let op = self.normalised_kernel(before, norm);
                self.push(norm.name.clone(), op, vec![ids[before.inputs[0]]])
            }
            _ => self.node(norm, vec![ids[source]])?,
        };
        match pool {
            Some(pool) => self.node(pool, vec![id]),
            None => Ok(id),
        }
    }

    /// True if all that reads a node is norms, and one norm if it is a pool.
    fn only_norms_read(&self, index: usize) -> bool {
        let nodes = &self.run.network.nodes;
        let mut readers = (0..nodes.len()).filter(|reader| nodes[*reader].inputs.contains(&index));
        let norm = |reader: usize| match nodes[reader].op {
            Op::Norm => true,
            Op::AvgPool { .. } => self.only_norms_read(reader),
            _ => false,
        };
        match nodes[index].op {
            Op::AvgPool { .. } => {
                let only = (readers.next(), readers.next());
                matches!(only, (Some(reader), None) if nodes[reader].op == Op::Norm)
            }
            _ => readers.all(norm),
        }
    }

    /// `(a, b, c)` of a polynomial kernel per channel.
    fn kernel(&self, node: &network::Node, scaled: bool) -> Vec<[f32; 3]> {
        let shift = self.parameter(node, Parameter::Shift);
        let scale: Vec<f32> = if scaled {
            let logs = self.parameter(node, Parameter::LogScale);
            logs.iter().map(|a| a.exp()).collect()
        } else {
            vec![1.0; shift.len()]
        };
        let square = |(a, s): (&f32, &f32)| [*a, 2.0 * a * s, a * s * s];
        scale.iter().zip(&shift).map(square).collect()
    }

    /// A kernel and the norm behind it as one quadratic.
    fn normalised_kernel(&self, kernel: &network::Node, norm: &network::Node) -> GraphOp {
        let scaled = kernel.op == Op::Kernel { scaled: true };
        let (gamma, beta) = (
            self.parameter(norm, Parameter::Gamma),
            self.parameter(norm, Parameter::Beta),
        );
        let moments = self.statistic(norm, Buffer::Moments);
        let (mean, variance) = moments.split_at(gamma.len());
        let fold = |(i, [a, b, c]): (usize, [f32; 3])| {
            let deviation = (f64::from(variance[i]) + f64::from(NORM_EPSILON)).sqrt();
            let scale = f64::from(gamma[i]) / deviation;
            let constant = (f64::from(c) - f64::from(mean[i])) * scale + f64::from(beta[i]);
            let by_scale = |v: f32| (f64::from(v) * scale) as f32;
            [by_scale(a), by_scale(b), constant as f32]
        };
        let coefficients = self.kernel(kernel, scaled).into_iter().enumerate();
        everywhere(kernel, coefficients.map(fold).collect())
    }

    fn node(&mut self, node: &network::Node, inputs: Vec<NodeId>) -> Result<NodeId> {
        let [c, h, w] = node.shape.map(|d| d as u32);
        let op = match node.op {
            Op::Input => GraphOp::Input {
                shape: Shape::new(c, h, w),
            },
            Op::Conv {
                kernel,
                stride,
                padding,
                bias,
                ..
            } => GraphOp::Conv2d {
                weight: self.parameter(node, Parameter::Weight),
                bias: if bias {
                    self.parameter(node, Parameter::Bias)
                } else {
                    Vec::new()
                },
                out_channels: c,
                groups: 1,
                kernel: (kernel as u32, kernel as u32),
                stride: (stride as u32, stride as u32),
                padding: Padding::same(padding as u32),
            },
            Op::Kernel { scaled } => everywhere(node, self.kernel(node, scaled)),
            Op::Norm => {
                let moments = self.statistic(node, Buffer::Moments);
                let (mean, var) = moments.split_at(moments.len() / 2);
                GraphOp::BatchNorm(BatchNorm {
                    gamma: self.parameter(node, Parameter::Gamma),
                    beta: self.parameter(node, Parameter::Beta),
                    mean: mean.to_vec(),
                    var: var.to_vec(),
                    eps: NORM_EPSILON,
                })
            }
            Op::Activation => return self.activation(node, inputs),
            Op::Add => GraphOp::Add,
            Op::AvgPool { window } => {
                let window = window as u32;
                GraphOp::AvgPool {
                    kernel: (window, window),
                    stride: (window, window),
                }
            }
            Op::Dense { .. } => {
                let flat = self.push(format!("{}.flatten", node.name), GraphOp::Flatten, inputs);
                let factor = node.op.logit_factor();
                let weight = self.parameter(node, Parameter::Weight);
                let op = GraphOp::Dense {
                    weight: weight.into_iter().map(|w| w * factor).collect(),
                    bias: self.parameter(node, Parameter::Bias),
                    out: c,
                };
                return Ok(self.push(node.name.clone(), op, vec![flat]));
            }
        };
        Ok(self.push(node.name.clone(), op, inputs))
    }

    fn activation(&mut self, node: &network::Node, inputs: Vec<NodeId>) -> Result<NodeId> {
        let channels = node.shape[0];
        let op = match self.run.state.functions[&node.name] {
            SiteFunction::Masked => {
                let kinds = self.run.state.masks[&node.name].clone();
                if kinds.iter().all(|kind| *kind == ActivationKind::Identity) {
                    return Ok(inputs[0]);
                }
                let coefficients = if kinds.contains(&ActivationKind::Polynomial) {
                    let poly = self.parameter(node, Parameter::Poly);
                    let row = |i| [poly[i], poly[channels + i], poly[2 * channels + i]];
                    (0..channels).map(row).collect()
                } else {
                    Vec::new()
                };
                GraphOp::Activation {
                    kinds,
                    coefficients,
                }
            }
            SiteFunction::Quartic => {
                let rows = self.parameter(node, Parameter::Quartic);
                let at = |row: usize, i: usize| rows[row * channels + i];
                let all = |f: &dyn Fn(usize) -> [f32; 3]| (0..channels).map(f).collect();
                let inner = everywhere(node, all(&|i| [1.0, at(1, i), 0.0]));
                let outer = everywhere(node, all(&|i| [at(0, i), 0.0, 0.0]));
                let low = everywhere(node, all(&|i| [at(2, i), at(3, i), at(4, i)]));
                let name = |part: &str| format!("{}.{part}", node.name);
                let inner = self.push(name("inner"), inner, inputs.clone());
                let outer = self.push(name("outer"), outer, vec![inner]);
                let low = self.push(name("low"), low, inputs);
                return Ok(self.push(node.name.clone(), GraphOp::Add, vec![outer, low]));
            }
            SiteFunction::HerPn => {
                let (gamma, beta) = (
                    self.parameter(node, Parameter::Gamma),
                    self.parameter(node, Parameter::Beta),
                );
                let moments = self.statistic(node, Buffer::HerPn);
                let fold = |i: usize| -> [f32; 3] {
                    let moment = |row: usize| f64::from(moments[row * channels + i]);
                    let inverse = |variance: f64| 1.0 / (variance + f64::from(NORM_EPSILON)).sqrt();
                    let (g, tau) = (f64::from(gamma[i]), std::f64::consts::TAU);
                    let first = 0.5 * g * inverse(moment(1));
                    let second = g / (2.0 * tau).sqrt() * inverse(moment(3));
                    let half = std::f64::consts::FRAC_1_SQRT_2;
                    let constant = g / tau.sqrt() + f64::from(beta[i])
                        - first * moment(0)
                        - second * (half + moment(2));
                    [(second * half) as f32, first as f32, constant as f32]
                };
                everywhere(node, (0..channels).map(fold).collect())
            }
            SiteFunction::MinMax { running: false } => bail!(
                "{} is normalised by the extremes of the batch at hand (MM), which no graph can \
                 know beforehand: it is a yardstick; train with the approximate norm (AMM) to \
                 export",
                node.name
            ),
            SiteFunction::MinMax { running: true } => {
                let extent = self.statistic(node, Buffer::Extent);
                let fold = |i: usize| -> [f32; 3] {
                    let (low, high) = (f64::from(extent[i]), f64::from(extent[channels + i]));
                    let s = 2.0 / (high - low + f64::from(EXTENT_EPSILON));
                    let t = -low * s - 1.0;
                    [(s * s) as f32, (2.0 * s * t) as f32, (t * t) as f32]
                };
                everywhere(node, (0..channels).map(fold).collect())
            }
        };
        Ok(self.push(node.name.clone(), op, inputs))
    }
}

/// A quadratic at every position.
fn everywhere(node: &network::Node, coefficients: Vec<[f32; 3]>) -> GraphOp {
    GraphOp::Activation {
        kinds: vec![ActivationKind::Polynomial; node.elements()],
        coefficients,
    }
}

/// Runs `pi-ir`'s interpreter and the run on the first `count` images of `set`; returns the largest
/// difference of a logit.
///
/// # Errors
/// A difference above [`TOLERANCE`], naming the image.
pub fn check(run: &Run, graph: &Graph, set: &DeviceSet, count: usize) -> Result<f32> {
    let indices: Vec<usize> = (0..count.min(set.len())).collect();
    ensure!(
        !indices.is_empty(),
        "the export is checked on images, and there are none"
    );
    let pixels = set.plain(&indices);
    let trained = download(run.logits(pixels.clone()));
    let pixels = download(pixels);
    let got = pi_ir::interpret::float_batch(graph, &pixels, indices.len())
        .map_err(|why| anyhow::anyhow!("the exported graph: {why}"))?;
    compare(&got, &trained)
}

/// Largest difference of a logit of the graph, image by image, from those of the trained model.
fn compare(got: &[Vec<f32>], trained: &[f32]) -> Result<f32> {
    let classes = trained.len() / got.len();
    let mut worst = 0.0f32;
    for (index, (got, expected)) in got.iter().zip(trained.chunks(classes)).enumerate() {
        ensure!(
            got.len() == expected.len(),
            "the exported graph gives {} logits, not {}",
            got.len(),
            expected.len()
        );
        // By the image itself: where one has escaped, the others still tell a wrong graph.
        let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
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

/// Writes the graph file, after [`check`] on `count` images of `set`; returns its size and the
/// largest difference.
///
/// # Errors
/// As [`graph`] and [`check`], and the file system's.
pub fn export(run: &Run, set: &DeviceSet, count: usize, path: &Path) -> Result<(usize, f32)> {
    let graph = graph(run)?;
    let worst = check(run, &graph, set, count)?;
    let bytes = GraphFile { graph }.encode();
    atomic::write(path, &bytes)?;
    Ok((bytes.len(), worst))
}

/// Writes the run's graph as an ONNX model; returns in words what the model's input is.
///
/// # Errors
/// As [`graph`], and the file system's; a network whose weights exceed 2 GiB.
pub fn export_onnx(run: &Run, path: &Path) -> Result<String> {
    let graph = graph(run)?;
    atomic::write(path, &pi_onnx::write(&graph)?)?;
    Ok(pi_onnx::input_in_words(&graph.preprocessing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logit_is_compared_by_the_scale_of_its_image() {
        let trained = [1e6, -3.0, 2.0, 0.5];
        let escaped = [1e6 + 100.0, -3.0];
        let worst = compare(&[escaped.to_vec(), vec![2.0, 0.501]], &trained).unwrap();
        assert_eq!(worst, 100.0);
        let why = compare(&[escaped.to_vec(), vec![2.0, 0.6]], &trained).unwrap_err();
        assert!(why.to_string().contains("image 1, class 1"), "{why}");
        assert!(compare(&[vec![f32::NAN, -3.0], vec![2.0, 0.5]], &trained).is_err());
    }
}
