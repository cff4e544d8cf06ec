//! The float network, node by node, in single precision.

use super::convolve::{Windows, convolve};
use crate::graph::{ActivationKind, BatchNorm, Graph, Op};
use crate::shape::{Padding, Shape, Window};

/// Logits of one normalised image `[c][h][w]`.
///
/// # Errors
/// In words, if the graph is malformed or the image has another size.
pub fn float(graph: &Graph, image: &[f32]) -> Result<Vec<f32>, String> {
    let mut values = float_values(graph, image)?;
    values.pop().ok_or_else(|| "the graph has no nodes".into())
}

/// Logits of `count` normalised images, one after the other in `images`.
///
/// # Errors
/// In words, if the graph is malformed or `images` has another size.
pub fn float_batch(graph: &Graph, images: &[f32], count: usize) -> Result<Vec<Vec<f32>>, String> {
    if count == 0 || !images.len().is_multiple_of(count) {
        return Err(format!(
            "{} values are not {count} images of one size",
            images.len()
        ));
    }
    if images.is_empty() {
        return Err("images without pixels".into());
    }
    images
        .chunks_exact(images.len() / count)
        .map(|image| float(graph, image))
        .collect()
}

/// The result of every node on one normalised image, in the order of the nodes.
///
/// # Errors
/// In words, if the graph is malformed or the image has another size.
pub fn float_values(graph: &Graph, image: &[f32]) -> Result<Vec<Vec<f32>>, String> {
    let shapes = graph.shapes()?;
    let mut values: Vec<Vec<f32>> = Vec::with_capacity(shapes.len());
    for (node, &shape) in graph.nodes.iter().zip(&shapes) {
        let inputs: Vec<(&[f32], Shape)> = node
            .inputs
            .iter()
            .map(|id| (&values[id.0 as usize][..], shapes[id.0 as usize]))
            .collect();
        let value = evaluate(&node.op, &inputs, shape, image);
        values.push(value.map_err(|why| format!("node {}: {why}", node.name))?);
    }
    Ok(values)
}

fn evaluate(
    op: &Op,
    inputs: &[(&[f32], Shape)],
    shape: Shape,
    image: &[f32],
) -> Result<Vec<f32>, String> {
    let channel = |i: usize| i / (shape.h as usize * shape.w as usize);
    Ok(match op {
        Op::Input { .. } => {
            expect("values of the image", image.len(), shape.len())?;
            image.to_vec()
        }
        Op::Conv2d {
            weight,
            bias,
            groups,
            kernel,
            stride,
            padding,
            ..
        } => {
            let windows = Windows {
                input: inputs[0].1,
                output: shape,
                groups: *groups,
                kernel: *kernel,
                stride: *stride,
                padding: *padding,
            };
            linear(inputs[0].0, weight, bias, &windows)?
        }
        Op::Dense { weight, bias, .. } => {
            let windows = Windows {
                input: inputs[0].1,
                output: shape,
                groups: 1,
                kernel: (1, 1),
                stride: (1, 1),
                padding: Padding::default(),
            };
            linear(inputs[0].0, weight, bias, &windows)?
        }
        Op::BatchNorm(BatchNorm {
            gamma,
            beta,
            mean,
            var,
            eps,
        }) => {
            for list in [gamma, beta, mean, var] {
                expect("statistics, one per channel", list.len(), shape.c as usize)?;
            }
            let scale: Vec<f32> = gamma
                .iter()
                .zip(var)
                .map(|(g, v)| g / (v + eps).sqrt())
                .collect();
            let normalise = |(i, x): (usize, &f32)| {
                let c = channel(i);
                (x - mean[c]) * scale[c] + beta[c]
            };
            inputs[0].0.iter().enumerate().map(normalise).collect()
        }
        Op::Add => (inputs[0].0.iter().zip(inputs[1].0))
            .map(|(a, b)| a + b)
            .collect(),
        Op::Sub => (inputs[0].0.iter().zip(inputs[1].0))
            .map(|(a, b)| a - b)
            .collect(),
        Op::AvgPool { kernel, stride } => {
            let window = Window {
                kernel: *kernel,
                stride: *stride,
                origin: (0, 0),
                count: (shape.h, shape.w),
            };
            let count = kernel.0 as f32 * kernel.1 as f32;
            let sums = window.sums(inputs[0].0, inputs[0].1, 0.0, |a, b| a + b);
            sums.into_iter().map(|sum| sum / count).collect()
        }
        Op::WindowSum(window) => window.sums(inputs[0].0, inputs[0].1, 0.0, |a, b| a + b),
        Op::Flatten => inputs[0].0.to_vec(),
        Op::Activation {
            kinds,
            coefficients,
        } => {
            expect("kinds", kinds.len(), shape.len())?;
            let activate = |(i, (&x, kind)): (usize, (&f32, &ActivationKind))| match kind {
                ActivationKind::Relu => Ok(x.max(0.0)),
                ActivationKind::Identity => Ok(x),
                ActivationKind::Polynomial => coefficients
                    .get(channel(i))
                    .map(|[a, b, c]| (a * x + b) * x + c)
                    .ok_or_else(|| format!("no coefficients for channel {}", channel(i))),
            };
            let pairs = inputs[0].0.iter().zip(kinds).enumerate();
            pairs.map(activate).collect::<Result<_, _>>()?
        }
    })
}

fn expect(what: &str, got: usize, expected: usize) -> Result<(), String> {
    if got != expected {
        return Err(format!("expected {expected} {what}, got {got}"));
    }
    Ok(())
}

fn linear(x: &[f32], weight: &[f32], bias: &[f32], windows: &Windows) -> Result<Vec<f32>, String> {
    expect("weights", weight.len(), windows.weight_count())?;
    let channels = windows.output.c as usize;
    let mut y = convolve(x, weight, windows);
    if !bias.is_empty() {
        expect("biases", bias.len(), channels)?;
        let positions = y.len() / channels;
        for (plane, b) in y.chunks_exact_mut(positions).zip(bias) {
            plane.iter_mut().for_each(|y| *y += b);
        }
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Node, NodeId, Origin};
    use crate::preprocessing::Preprocessing;

    /// Every operation once, against numbers worked out by hand.
    #[test]
    fn small_network_by_hand() {
        let node = |name: &str, op, inputs: &[u32]| Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|&i| NodeId(i)).collect(),
            origin: Origin::Unmarked,
        };
        let shape = Shape::new(1, 3, 3);
        let graph = Graph {
            name: "hand".into(),
            preprocessing: Preprocessing::unit(1),
            classes: vec![],
            nodes: vec![
                node("input", Op::Input { shape }, &[]),
                // Bottom and right padding of one zero: out = x(i, j) - 2 x(i + 1, j + 1) + 1.
                node(
                    "conv",
                    Op::Conv2d {
                        weight: vec![1.0, 0.0, 0.0, -2.0],
                        bias: vec![1.0],
                        out_channels: 1,
                        groups: 1,
                        kernel: (2, 2),
                        stride: (1, 1),
                        padding: Padding {
                            bottom: 1,
                            right: 1,
                            ..Padding::default()
                        },
                    },
                    &[0],
                ),
                // (x - 1) * 2 / sqrt(3 + 1) + 0.5
                node(
                    "norm",
                    Op::BatchNorm(BatchNorm {
                        gamma: vec![2.0],
                        beta: vec![0.5],
                        mean: vec![1.0],
                        var: vec![3.0],
                        eps: 1.0,
                    }),
                    &[1],
                ),
                node(
                    "act",
                    Op::Activation {
                        kinds: vec![
                            ActivationKind::Relu,
                            ActivationKind::Identity,
                            ActivationKind::Polynomial,
                            ActivationKind::Relu,
                            ActivationKind::Identity,
                            ActivationKind::Polynomial,
                            ActivationKind::Relu,
                            ActivationKind::Relu,
                            ActivationKind::Relu,
                        ],
                        coefficients: vec![[2.0, 1.0, -1.0]],
                    },
                    &[2],
                ),
                node("add", Op::Add, &[3, 0]),
                node(
                    "pool",
                    Op::AvgPool {
                        kernel: (2, 2),
                        stride: (1, 2),
                    },
                    &[4],
                ),
                node("flat", Op::Flatten, &[5]),
                node(
                    "fc",
                    Op::Dense {
                        weight: vec![1.0, 0.0, 0.0, 1.0],
                        bias: vec![],
                        out: 2,
                    },
                    &[6],
                ),
            ],
        };
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let values = float_values(&graph, &x).unwrap();
        assert_eq!(values[1], [-8., -9., 4., -11., -12., 7., 8., 9., 10.]);
        assert_eq!(
            values[2],
            [-8.5, -9.5, 3.5, -11.5, -12.5, 6.5, 7.5, 8.5, 9.5]
        );
        assert_eq!(values[3], [0., -9.5, 27., 0., -12.5, 90., 7.5, 8.5, 9.5]);
        assert_eq!(values[4], [1., -7.5, 30., 4., -7.5, 96., 14.5, 16.5, 18.5]);
        assert_eq!(values[5], [-2.5, 6.875]);
        assert_eq!(float(&graph, &x).unwrap(), [-2.5, 6.875]);
        let two = [x, x].concat();
        assert_eq!(float_batch(&graph, &two, 2).unwrap()[1], [-2.5, 6.875]);
        assert!(float(&graph, &x[1..]).is_err());
        assert!(float_batch(&graph, &[], 0).is_err());
    }
}
