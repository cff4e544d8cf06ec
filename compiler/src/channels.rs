//! The order of a picture's channels.
//!
//! Clients read pictures as red, green, blue. Networks that were trained on blue, green, red, as
//! Caffe's and OpenCV's readers have it, give quietly worse answers then: nothing fails. Their
//! weights are therefore put in the other order, once and for all.

use crate::fault::{Fault, Refused};
use pi_ir::{Graph, NodeId, Op, Preprocessing, Shape};

/// Makes a graph that reads the channels of its input in the reverse order and computes the same
/// of it; means and deviations are reversed, too.
///
/// # Errors
/// Every node that reads the input and is neither a convolution of one group nor a dense layer.
pub fn reverse(graph: &mut Graph) -> Result<(), Refused> {
    let Some(Op::Input { shape }) = graph.nodes.first().map(|node| node.op.clone()) else {
        return Err(Refused::one("", "the graph does not begin with its input"));
    };
    let readers = readers(graph);
    let reversible = |op: &Op| match op {
        Op::Conv2d { groups, .. } => *groups == 1,
        Op::Dense { .. } => true,
        _ => false,
    };
    let others = readers.iter().map(|&index| &graph.nodes[index]);
    let others = others.filter(|node| !reversible(&node.op)).map(|node| {
        Fault::new(
            &node.name,
            "it reads the input channel by channel, which --channel-order bgr cannot put in \
             another order: put the channels of the model's input in order with a Gather node",
        )
    });
    let faults: Vec<Fault> = others.collect();
    Refused::unless_empty(faults, ())?;
    for index in readers {
        match &mut graph.nodes[index].op {
            Op::Conv2d { weight, kernel, .. } => {
                let taps = kernel.0 as usize * kernel.1 as usize;
                reverse_blocks(weight, shape.c as usize, taps);
            }
            Op::Dense { weight, .. } => reverse_blocks(weight, shape.c as usize, plane(shape)),
            _ => unreachable!("others were refused"),
        }
    }
    match &mut graph.preprocessing {
        Preprocessing::Channels { mean, std } | Preprocessing::Values { mean, std, .. } => {
            mean.reverse();
            std.reverse();
        }
        // One mean over all channels.
        Preprocessing::Image { .. } => {}
    }
    Ok(())
}

fn plane(shape: Shape) -> usize {
    shape.h as usize * shape.w as usize
}

/// Reverses the blocks of `size` numbers within every `count` of them.
fn reverse_blocks(weight: &mut [f32], count: usize, size: usize) {
    for row in weight.chunks_exact_mut(count * size) {
        // All numbers backwards, then each block forwards again.
        row.reverse();
        row.chunks_exact_mut(size).for_each(<[f32]>::reverse);
    }
}

/// The nodes that read the input, perhaps behind a flattening, which is not among them.
pub(crate) fn readers(graph: &Graph) -> Vec<usize> {
    let mut sources = vec![NodeId(0)];
    let mut readers = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        if node.inputs.iter().any(|input| sources.contains(input)) {
            match node.op {
                Op::Flatten => sources.push(NodeId(index as u32)),
                _ => readers.push(index),
            }
        }
    }
    readers
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_ir::builders::{Builder, ConvShape};
    use pi_ir::interpret::float;

    fn logits(graph: &Graph, image: &[u8]) -> Vec<f32> {
        float(graph, &graph.preprocessing.reals(image)).unwrap()
    }

    #[test]
    fn a_reversed_network_gives_the_answers_of_reversed_pictures() {
        let shape = Shape::new(3, 4, 4);
        let image: Vec<u8> = (0..48).map(|i| i * 5).collect();
        let swapped: Vec<u8> = image.rchunks(16).flatten().copied().collect();
        for convolution in [true, false] {
            let mut builder = Builder::new("channels", shape, 3);
            builder.preprocessing(Preprocessing::Channels {
                mean: vec![0.1, 0.2, 0.3],
                std: vec![0.5, 0.25, 2.0],
            });
            let hidden = match convolution {
                true => builder.conv("conv", NodeId(0), ConvShape::same(4, 3, 1)),
                false => {
                    let flat = builder.flatten("flat", NodeId(0));
                    builder.dense("dense", flat, 4)
                }
            };
            let relu = builder.relu("relu", hidden);
            let last = match convolution {
                true => builder.flatten("last", relu),
                false => relu,
            };
            let logit = builder.dense("logits", last, 2);
            let graph = builder.finish(logit);
            let mut reversed = graph.clone();
            reverse(&mut reversed).unwrap();
            assert_ne!(reversed, graph);
            let (found, expected) = (logits(&reversed, &image), logits(&graph, &swapped));
            for (f, e) in found.iter().zip(&expected) {
                assert!(
                    (f - e).abs() <= 1e-5 * (1.0 + e.abs()),
                    "{found:?} {expected:?}"
                );
            }
            reverse(&mut reversed).unwrap();
            assert_eq!(reversed, graph);
        }
    }

    #[test]
    fn what_reads_channel_by_channel_is_named() {
        let mut builder = Builder::new("channels", Shape::new(3, 4, 4), 3);
        let relu = builder.relu("first", NodeId(0));
        let flat = builder.flatten("flat", relu);
        let logits = builder.dense("logits", flat, 2);
        let mut graph = builder.finish(logits);
        let error = reverse(&mut graph).unwrap_err().to_string();
        assert!(
            error.contains("first") && error.contains("Gather"),
            "{error}"
        );
    }
}
