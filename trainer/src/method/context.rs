//! What a run lends to the method of its stage, and what methods measure with it.

use burn::tensor::Tensor;
use rand_chacha::ChaCha8Rng;

use super::Pressure;
use crate::config::StageConfig;
use crate::data::{self, Data};
use crate::loss::hits;
use crate::network::{Counts, EXTENT_RATE, Mode, Network, Pass, Request, State};
use crate::random::EpochStream;
use crate::tensors::download;

/// Images per evaluation pass.
pub(crate) const EVALUATION_BATCH: usize = 500;
/// Weight of a new batch in the running statistics where a stage does not say.
pub(crate) const STATISTICS_RATE: f32 = 0.1;
/// Batches that renew the running statistics: what is left of the old ones is 0.9^50 < 1 %.
const STATISTICS_BATCHES: usize = 50;

/// A run's network, tensors, images and randomness, in the epoch under way.
pub(crate) struct Context<'a> {
    /// The network.
    pub(crate) network: &'a Network,
    /// Parameters, statistics and masks of the network.
    pub(crate) state: &'a mut State,
    /// Penalty and last count of the selection under way.
    pub(crate) pressure: &'a mut Option<Pressure>,
    /// The stage under way.
    pub(crate) stage: &'a StageConfig,
    /// The images.
    pub(crate) data: &'a Data,
    /// Seed of the run.
    pub(crate) seed: u64,
    /// Finished epochs of all stages.
    pub(crate) epoch: usize,
}

impl Context<'_> {
    /// Randomness of the epoch under way: a run that is resumed draws what an uninterrupted one
    /// draws.
    pub(crate) fn rng(&self, stream: EpochStream) -> ChaCha8Rng {
        stream.rng(self.seed, self.epoch)
    }

    /// Training images of this many batches, for a ranking of positions.
    pub(super) fn ranking_images(&self, batches: usize) -> Vec<usize> {
        let train = &self.data.train;
        let mut order = data::permutation(train.len(), &mut self.rng(EpochStream::SALIENCY));
        order.truncate(self.stage.batch.saturating_mul(batches));
        order
    }

    /// Positions by kind.
    pub(super) fn counts(&self) -> Counts {
        self.network.counts(self.state)
    }

    /// Share of right answers on some of the training images.
    pub(super) fn accuracy(&self, indices: &[usize]) -> f64 {
        let set = &self.data.train;
        let request = Request::of(Mode::Evaluate);
        let right: usize = indices
            .chunks(EVALUATION_BATCH)
            .map(|indices| {
                let pixels = set.plain(indices);
                let pass = self.network.forward(self.state, pixels, request);
                hits(&download(pass.logits()), &set.labels(indices))
            })
            .sum();
        right as f64 / indices.len().max(1) as f64
    }

    /// Measures the running statistics anew, on plain training images.
    pub(crate) fn renew_statistics(&mut self) {
        let set = &self.data.train;
        let order = data::permutation(set.len(), &mut self.rng(EpochStream::Statistics));
        for indices in order.chunks(self.stage.batch).take(STATISTICS_BATCHES) {
            let pass = self.batch_statistics(set.plain(indices), EXTENT_RATE);
            self.state.track(pass.statistics, STATISTICS_RATE);
        }
    }

    /// A pass with batch statistics and no gradient.
    pub(crate) fn batch_statistics(&self, pixels: Tensor<4>, smoothing: f32) -> Pass {
        let request = Request {
            trains: Some(&|_| false),
            smoothing,
            ..Request::of(Mode::Train)
        };
        self.network.forward(self.state, pixels, request)
    }
}
