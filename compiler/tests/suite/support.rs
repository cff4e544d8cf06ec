//! Networks that several tests use.

use pi_ir::builders::{Builder, ConvShape};
use pi_ir::{Graph, NodeId};

/// Convolutions of eight channels with ReLUs, and a dense layer: without biases and norms, answers
/// depend on the images alone, however little these vary.
pub(crate) fn plain(mut builder: Builder, convolutions: u32, outputs: u32) -> Graph {
    let mut last = NodeId(0);
    for index in 1..=convolutions {
        let conv = builder.conv(&format!("conv{index}"), last, ConvShape::same(8, 3, 1));
        last = builder.relu(&format!("relu{index}"), conv);
    }
    let flat = builder.flatten("flat", last);
    let logits = builder.dense("logits", flat, outputs);
    builder.finish(logits)
}
