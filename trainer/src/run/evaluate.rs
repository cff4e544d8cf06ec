//! Measuring a run: accuracy, loss, and how far the inputs of activations stray from what they were
//! trained on.

use std::collections::BTreeMap;

use burn::tensor::{Bool, Tensor};
use serde::Serialize;

use super::Run;
use crate::data::DeviceSet;
use crate::loss::{cross_entropy, hits};
use crate::method::EVALUATION_BATCH;
use crate::network::{Buffer, Mode, Node, Op, Request, Shown, SiteFunction};
use crate::tensors::{self, Tensors, download, download_all};

/// Training images on which the ranges of activations are measured.
const RANGE_IMAGES: usize = 1000;

/// Result of an evaluation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Evaluation {
    /// Share of right answers.
    pub accuracy: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Inputs of each activation site and polynomial kernel.
    pub sites: BTreeMap<String, Site>,
}

/// Inputs of a site, in two numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Site {
    /// Largest magnitude of an input; infinite (`null` in JSON) if one is beyond single precision
    /// or no number.
    pub largest: f32,
    /// Share of inputs outside the range of their channel on training images (a min-max norm's own
    /// extent); inputs that are no numbers are outside, and widen no range.
    pub outside: f64,
}

impl Evaluation {
    /// Largest input of any site.
    pub fn largest(&self) -> f32 {
        self.sites.values().fold(0.0, |m, site| m.max(site.largest))
    }
}

impl Run {
    /// Measures accuracy and loss on a set, and what reaches each activation.
    pub fn evaluate(&self, set: &DeviceSet) -> Evaluation {
        let mut loss = 0.0;
        let mut right = 0;
        let (mut largest, mut outside) = (Tensors::new(), Tensors::new());
        let order: Vec<usize> = (0..set.len()).collect();
        for indices in order.chunks(EVALUATION_BATCH) {
            let request = Request::of(Mode::Evaluate);
            let pixels = set.plain(indices);
            let pass = self.network.observe(
                &self.state,
                pixels,
                request,
                (Shown::Sites, |node, inputs, _| {
                    if !is_site(node) {
                        return;
                    }
                    let z = &inputs[0];
                    let name = node.name.clone();
                    let most = tensors::largest(z.clone());
                    let so_far = largest.remove(&name);
                    largest.insert(
                        name.clone(),
                        so_far.map_or(most.clone(), |old| old.max_pair(most)),
                    );
                    if let Some(range) = self.range(node) {
                        let count = strays(z, range, node.shape[0]).float().sum();
                        let so_far = outside.remove(&name);
                        outside.insert(name, so_far.map_or(count.clone(), |old| old + count));
                    }
                }),
            );
            let labels = set.labels(indices);
            loss += f64::from(download(cross_entropy(pass.logits(), &labels, 0.0))[0])
                * indices.len() as f64;
            right += hits(&download(pass.logits()), &labels);
        }
        let count = set.len().max(1) as f64;
        let (largest, outside) = (download_all(&largest), download_all(&outside));
        let site = |(name, values): (String, Vec<f32>)| {
            let elements = self
                .network
                .index(&name)
                .map_or(1, |index| self.network.nodes[index].elements());
            let strays = outside.get(&name).map_or(0.0, |count| f64::from(count[0]));
            let site = Site {
                largest: values[0],
                outside: strays / (elements as f64 * count),
            };
            (name, site)
        };
        Evaluation {
            accuracy: right as f64 / count,
            loss: loss / count,
            sites: largest.into_iter().map(site).collect(),
        }
    }

    /// Logits of normalised pixels, with running statistics: `[n, classes]`.
    pub fn logits(&self, pixels: Tensor<4>) -> Tensor<2> {
        let request = Request::of(Mode::Evaluate);
        self.network.forward(&self.state, pixels, request).logits()
    }

    /// Measures the range of each site's channels on training images, with running statistics.
    pub(super) fn measure_ranges(&mut self, set: &DeviceSet) {
        let mut ranges = Tensors::new();
        let order: Vec<usize> = (0..set.len().min(RANGE_IMAGES)).collect();
        for indices in order.chunks(EVALUATION_BATCH) {
            let request = Request::of(Mode::Evaluate);
            self.network.observe(
                &self.state,
                set.plain(indices),
                request,
                (Shown::Sites, |node, inputs, _| {
                    if !is_site(node) {
                        return;
                    }
                    let z = inputs[0].clone();
                    let [n, c, h, w] = z.dims();
                    let z = z.reshape([n, c, h * w]);
                    // What is no number is neither the smallest nor the largest.
                    let none = z.clone().is_nan();
                    let known = |other: f32| z.clone().mask_fill(none.clone(), other);
                    let low = known(f32::INFINITY).min_dim(2).min_dim(0).reshape([c]);
                    let high = known(f32::NEG_INFINITY).max_dim(2).max_dim(0).reshape([c]);
                    let new = match ranges.remove(&node.name) {
                        None => Tensor::cat(vec![low, high], 0),
                        Some(old) => {
                            let half = |start: usize| old.clone().narrow(0, start, c);
                            let low = half(0).min_pair(low);
                            Tensor::cat(vec![low, half(c).max_pair(high)], 0)
                        }
                    };
                    ranges.insert(node.name.clone(), new);
                }),
            );
        }
        self.ranges = ranges;
    }

    fn range(&self, node: &Node) -> Option<Tensor<1>> {
        let function = self.state.functions.get(&node.name);
        if let Some(SiteFunction::MinMax { running: true }) = function {
            return self
                .state
                .buffers
                .get(&Buffer::Extent.of(&node.name))
                .cloned();
        }
        self.ranges.get(&node.name).cloned()
    }
}

fn is_site(node: &Node) -> bool {
    matches!(node.op, Op::Activation | Op::Kernel { .. })
}

fn strays(z: &Tensor<4>, range: Tensor<1>, channels: usize) -> Tensor<4, Bool> {
    let rows = range.reshape([2, channels, 1, 1]);
    let row = |i: usize| rows.clone().narrow(0, i, 1).expand(z.dims());
    let inside = z.clone().greater_equal(row(0));
    // What is no number is inside no range.
    inside.bool_and(z.clone().lower_equal(row(1))).bool_not()
}
