//! One optimiser step on a batch.

use anyhow::Result;
use burn::tensor::Tensor;

use super::Run;
use super::optimiser::trains;
use crate::config::StageConfig;
use crate::kernels::{Limits, Penalty};
use crate::loss::{Labels, mean_square, objective};
use crate::method::Phase;
use crate::network::{Buffer, EXTENT_RATE, Mode, Request};
use crate::optimise::StepReport;
use crate::tensors::{Tensors, upload};

/// A batch of training images, and what its step needs to know.
pub(super) struct Batch<'a> {
    /// Augmented and normalised.
    pub(super) pixels: Tensor<4>,
    /// Numbers of the images in the set.
    pub(super) indices: &'a [usize],
    /// One class per image.
    pub(super) labels: &'a [usize],
    /// Learning rate of the step.
    pub(super) rate: f32,
    /// Share of ReLU in every activation that is none.
    pub(super) relu_share: f32,
    /// The batch is the first of its phase.
    pub(super) first: bool,
}

impl Run {
    /// One optimiser step on a batch.
    ///
    /// # Errors
    /// As [`Self::epoch`].
    pub(super) fn step(
        &mut self,
        stage: &StageConfig,
        phase: Phase,
        batch: Batch<'_>,
    ) -> Result<StepReport> {
        let Batch {
            pixels,
            indices,
            labels,
            rate,
            relu_share,
            first,
        } = batch;
        let epoch = phase.epoch;
        let trains = |name: &str| trains(stage, name);
        let range = stage.range.as_ref();
        // When a layer's turn to imitate comes, its inputs are others than those that its min-max
        // norm was given at the start: its first batch gives the extent anew.
        let anew = first && phase.imitate.is_some();
        let request = Request {
            limits: Limits {
                penalty: range.map_or(Penalty::None, |r| r.at(self.meta.stage_epoch)),
                guard: stage.guard.unwrap_or(f32::INFINITY),
            },
            relu_share,
            measure_penalty: stage.optimiser.rule.models_the_loss(),
            train_from: phase.train_from,
            trains: Some(&trains),
            until: phase.imitate,
            smoothing: if anew { 1.0 } else { EXTENT_RATE },
            ..Request::of(Mode::Train)
        };
        let taught = match &mut self.teacher {
            None => self.soft_labels.as_ref().map(|soft| {
                let logits = upload(soft.rows(indices), &self.device);
                let classes = logits.dims()[0] / indices.len();
                logits.reshape([indices.len(), classes, 1, 1])
            }),
            Some(teacher) => {
                Some(teacher.teach(pixels.clone(), labels, phase.imitate, rate, epoch)?)
            }
        };
        let pass = self.network.forward(&self.state, pixels.clone(), request);
        let loss = match phase.imitate {
            Some(_) => {
                let taught = taught.clone().expect("who imitates has a teacher");
                let difference = pass.output.clone() - Tensor::from_inner(taught);
                mean_square(difference)
            }
            None => {
                let labels = Labels {
                    labels,
                    smoothing: stage.label_smoothing,
                };
                let distil = stage.distil.as_ref();
                let loss = objective(pass.logits(), &labels, distil, taught.clone());
                let method = stage.method.hooks();
                let penalty = method.penalty(&self.state, self.meta.pressure, &pass);
                penalty.into_iter().fold(loss, |a, b| a + b)
            }
        };
        let gradients = gradients(&loss, pass.leaves);
        // The gradient of the range penalty is among these already; its value counts only where the
        // optimiser's rule goes by the loss.
        let loss = pass.penalties.into_iter().fold(loss.inner(), |a, b| a + b);
        let optimiser = self
            .optimiser
            .as_mut()
            .expect("made ready before the epoch");
        let parameters = &mut self.state.parameters;
        let report = optimiser
            .step(parameters, &gradients, &loss, rate, epoch)
            .map_err(|why| self.explain(&why, pixels, request, taught))?;
        if anew {
            let statistics = pass.statistics.iter();
            let extents = statistics
                .filter(|(name, _)| matches!(Buffer::parse(name), Some((_, Buffer::Extent))));
            let extents = extents.map(|(name, extent)| (name.clone(), extent.clone()));
            self.state.buffers.extend(extents);
        }
        self.state.track(pass.statistics, stage.statistics_rate);
        self.state.buffers.extend(pass.kept);
        Ok(report)
    }
}

/// Gradients of the leaves, without autodiff; none where all that could train is frozen.
pub(super) fn gradients(loss: &Tensor<1>, leaves: Tensors) -> Tensors {
    if leaves.is_empty() {
        return Tensors::new();
    }
    let mut all = loss.clone().backward();
    leaves
        .into_iter()
        .filter_map(|(name, leaf)| Some((name, leaf.grad_remove(&mut all)?)))
        .collect()
}
