//! A run: a network on its way through the stages of an experiment, exact to the bit on the CPU for
//! a given seed, whether interrupted or not.
//!
//! [`Run::epoch`] does what is due next: it begins a stage (teacher, replacements, cuts), trains
//! one epoch, ends a stage, and measures the held-out images. [`Run::epoch_while`] does the same,
//! and may stop between two steps. Everything they depend on is in the [`Checkpoint`].
//!
//! A run keeps the progress and does what all stages have in common. What a stage does beside
//! training is its [`method`](crate::method), to which the run lends what it needs as a
//! `Context`.

mod checkpoint;
mod diverged;
mod epoch;
mod evaluate;
mod meta;
mod optimiser;
mod reconfigure;
mod stage;
mod step;
mod teacher;
mod warm_start;
mod whiten;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use burn::tensor::Device;
use rand_chacha::ChaCha8Rng;

pub use diverged::Diverged;
pub use epoch::{Begun, EpochReport};
pub use evaluate::{Evaluation, Site};
pub use meta::{Images, Meta};

use crate::checkpoint::Checkpoint;
use crate::config::{Config, StageConfig};
use crate::data::Data;
use crate::method::Context;
use crate::network::{Network, State};
use crate::optimise::Optimiser;
use crate::random::{EpochStream, RunStream};
use crate::soft_labels::SoftLabels;
use crate::tensors::Tensors;
use teacher::TeacherRun;

/// A run: network, tensors and progress.
pub struct Run {
    /// The run's description, which is saved with it.
    pub meta: Meta,
    /// The network.
    pub network: Network,
    /// Parameters, statistics, masks.
    pub state: State,
    optimiser: Option<Optimiser>,
    teacher: Option<TeacherRun>,
    /// Read when the first step of a stage needs them, and again when a run goes on.
    soft_labels: Option<SoftLabels>,
    /// `[2, c]` smallest and largest input of each site's channels on training images.
    ranges: Tensors,
    device: Device,
}

impl Run {
    /// A new run with random weights, or those of its warm start.
    ///
    /// # Errors
    /// A network that cannot be built, a replacement that fits nothing, a warm start from another
    /// network or from a run that is not finished.
    pub fn new(config: Config, images: Images, device: Device) -> Result<Self> {
        config.check()?;
        images.check()?;
        config.check_augmentation(images.shape)?;
        let network = Network::new(&config.network, images.shape, images.classes.len())?;
        let state = State::new(
            &network,
            &config.network.activations,
            &mut RunStream::Parameters.rng(config.seed),
            &device,
        )?;
        let meta = Meta::new(config, images, state.functions.clone());
        let mut run = Self {
            meta,
            network,
            state,
            optimiser: None,
            teacher: None,
            soft_labels: None,
            ranges: Tensors::new(),
            device,
        };
        run.check_polynomial_kernels()?;
        if let Some(warm) = run.meta.config.warm_start.clone() {
            let path = checkpoint_path(&warm.checkpoint);
            let source = Run::from_checkpoint(Checkpoint::load(&path)?, run.device.clone())?;
            run.warm_start(&source, &warm)
                .with_context(|| format!("warm start from {}", path.display()))?;
            run.meta.trained_before = Some(source.trained());
            // What came along is not new: its statistics stay.
            run.meta.functions = run.state.functions.clone();
        }
        Ok(run)
    }

    /// Returns true once all stages are done.
    pub fn finished(&self) -> bool {
        self.meta.stage >= self.meta.config.stages.len()
    }

    /// The stage under way.
    pub fn stage(&self) -> Option<&StageConfig> {
        self.meta.config.stages.get(self.meta.stage)
    }

    /// The run as its stage's method sees it.
    fn context<'a>(&'a mut self, stage: &'a StageConfig, data: &'a Data) -> Context<'a> {
        Context {
            network: &self.network,
            state: &mut self.state,
            pressure: &mut self.meta.pressure,
            stage,
            data,
            seed: self.meta.config.seed,
            epoch: self.meta.epoch,
        }
    }

    /// Randomness of the epoch under way: a run that is resumed draws what an uninterrupted one
    /// draws.
    fn rng(&self, stream: EpochStream) -> ChaCha8Rng {
        stream.rng(self.meta.config.seed, self.meta.epoch)
    }
}

/// The checkpoint in a run's folder, or the file itself.
pub fn checkpoint_path(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|extension| extension == "pit") {
        path.to_owned()
    } else {
        path.join("checkpoint.pit")
    }
}
