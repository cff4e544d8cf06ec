//! The network that teaches: where it comes from, and what it answers to a batch.

use anyhow::{Context as _, Result, bail, ensure};
use burn::tensor::{Device, Tensor};

use super::diverged::{Diverged, first_not_finite};
use super::meta::{Meta, TeacherMeta};
use super::optimiser::optimiser;
use super::step::gradients;
use super::{Run, checkpoint_path};
use crate::checkpoint::Checkpoint;
use crate::config::{StageConfig, Teacher};
use crate::data::DeviceSet;
use crate::loss::cross_entropy;
use crate::method::STATISTICS_RATE;
use crate::network::state::Stored;
use crate::network::{Mode, Network, NetworkConfig, Request, State};
use crate::optimise::{Optimiser, OptimiserConfig};
use crate::random::RunStream;
use crate::soft_labels::SoftLabels;

/// A network that teaches.
pub(super) struct TeacherRun {
    pub(super) meta: TeacherMeta,
    pub(super) network: Network,
    pub(super) state: State,
    /// Optimiser of a teacher that is trained beside the student.
    pub(super) optimiser: Option<Optimiser>,
}

impl Run {
    /// Finds the teacher of a stage; the one at hand if it is the same.
    pub(super) fn find_teacher(&mut self, stage: &StageConfig) -> Result<()> {
        let Some(who) = stage.teacher() else {
            self.teacher = None;
            return Ok(());
        };
        if self.teacher.as_ref().is_some_and(|t| t.meta.who == who) {
            return Ok(());
        }
        let (config, network, state) = match &who {
            Teacher::Start => (
                self.meta.config.network.clone(),
                self.network.clone(),
                self.state.clone(),
            ),
            Teacher::Checkpoint(path) => {
                let path = checkpoint_path(path);
                let other = Run::from_checkpoint(Checkpoint::load(&path)?, self.device.clone())
                    .and_then(|other| self.check_teacher(&other).map(|()| other))
                    .with_context(|| format!("the teacher in {}", path.display()))?;
                (other.meta.config.network, other.network, other.state)
            }
            Teacher::Beside(config) => self.teacher_beside(config)?,
            Teacher::Logits(_) => unreachable!("a stage with soft labels has no teacher"),
        };
        stage
            .method
            .hooks()
            .check_teacher(&who, &self.network, &network)?;
        self.teacher = Some(TeacherRun {
            meta: TeacherMeta {
                who,
                network: config,
                functions: state.functions.clone(),
                stage: None,
            },
            network,
            state,
            optimiser: None,
        });
        Ok(())
    }

    /// Reads the soft labels of a stage, if it learns from such and they are not at hand.
    ///
    /// # Errors
    /// A file that cannot be read, is not of these images, or is another than the stage began with.
    pub(super) fn find_soft_labels(&mut self, stage: &StageConfig, set: &DeviceSet) -> Result<()> {
        let Some(path) = stage.soft_labels() else {
            (self.soft_labels, self.meta.soft_labels) = (None, None);
            return Ok(());
        };
        if self.soft_labels.is_some() {
            return Ok(());
        }
        let labels = SoftLabels::load(path)?;
        labels
            .check(set, self.meta.images.classes.len())
            .with_context(|| format!("the teacher in {}", path.display()))?;
        let now = labels.fingerprint();
        ensure!(
            self.meta.soft_labels.is_none_or(|before| before == now),
            "{} is not the file that the stage began with: put that one there, or begin anew",
            path.display()
        );
        self.meta.soft_labels = Some(now);
        self.soft_labels = Some(labels);
        Ok(())
    }

    /// # Errors
    /// A run that is not finished, or sees other images than this one.
    fn check_teacher(&self, other: &Run) -> Result<()> {
        let (own, theirs) = (&self.meta.images, &other.meta.images);
        ensure!(
            own.shape == theirs.shape && own.classes.len() == theirs.classes.len(),
            "it sees images of shape {:?} in {} classes, the student {:?} in {}",
            theirs.shape,
            theirs.classes.len(),
            own.shape,
            own.classes.len()
        );
        if own.normalisation != theirs.normalisation {
            bail!("it normalises pixels otherwise than the student");
        }
        ensure!(
            other.finished(),
            "it is not finished: train it to its end first"
        );
        ensure!(
            other.state.selection.is_none(),
            "it is in the middle of a selection: train it to the end of its stage"
        );
        Ok(())
    }

    /// A new network with random weights of its own.
    fn teacher_beside(&self, config: &NetworkConfig) -> Result<(NetworkConfig, Network, State)> {
        let images = &self.meta.images;
        let network = Network::new(config, images.shape, images.classes.len())?;
        let mut rng = RunStream::TeacherBeside.rng(self.meta.config.seed);
        let state = State::new(&network, &config.activations, &mut rng, &self.device)?;
        Ok((config.clone(), network, state))
    }
}

impl TeacherRun {
    /// The teacher that a run's checkpoint holds.
    ///
    /// # Errors
    /// Arrays that are not those of the teacher's network.
    pub(super) fn load(
        meta: TeacherMeta,
        run: &Meta,
        checkpoint: &mut Checkpoint,
        device: &Device,
    ) -> Result<Self> {
        let network = Network::new(&meta.network, run.images.shape, run.images.classes.len())?;
        // Every value is replaced by the checkpoint's.
        let mut rng = RunStream::Parameters.rng(0);
        let mut state = State::new(&network, &[], &mut rng, device)?;
        let masks = checkpoint.masks.remove("teacher").unwrap_or_default();
        state
            .restore(
                &network,
                Stored {
                    functions: meta.functions.clone(),
                    selection: None,
                    parameters: checkpoint.take("teacher.parameters"),
                    buffers: checkpoint.take("teacher.statistics"),
                    masks,
                },
            )
            .context("of the teacher")?;
        let stages = &run.config.stages;
        let optimiser = match meta.stage {
            None => None,
            Some(stage) => {
                let stage = stages
                    .get(stage)
                    .context("the teacher's optimiser belongs to no stage")?;
                let mut own = optimiser(&stage.optimiser, &state.parameters, &network, device);
                own.import(checkpoint.take("teacher.optimiser"))?;
                Some(own)
            }
        };
        Ok(Self {
            meta,
            network,
            state,
            optimiser,
        })
    }

    /// Makes an optimiser of all parameters, which goes on from the old one if there is one.
    pub(super) fn renew_optimiser(&mut self, config: &OptimiserConfig, device: &Device) {
        let mut new = optimiser(config, &self.state.parameters, &self.network, device);
        if let Some(old) = &self.optimiser {
            new.carry(old);
        }
        self.optimiser = Some(new);
    }

    /// The teacher's output on a batch: logits, or what the student imitates. A teacher beside the
    /// student takes a step of its own first, at this rate in this epoch of the phase.
    pub(super) fn teach(
        &mut self,
        pixels: Tensor<4>,
        labels: &[usize],
        until: Option<usize>,
        rate: f32,
        epoch: usize,
    ) -> Result<Tensor<4>> {
        let Some(optimiser) = &mut self.optimiser else {
            let request = Request {
                until,
                ..Request::of(Mode::Evaluate)
            };
            let pass = self.network.forward(&self.state, pixels, request);
            return Ok(pass.output);
        };
        let request = Request::of(Mode::Train);
        let pass = self.network.forward(&self.state, pixels.clone(), request);
        let loss = cross_entropy(pass.logits(), labels, 0.0);
        let gradients = gradients(&loss, pass.leaves);
        let parameters = &mut self.state.parameters;
        let step = optimiser.step(parameters, &gradients, &loss.inner(), rate, epoch);
        if let Err(why) = step {
            let request = Request {
                trains: Some(&|_| false),
                ..Request::of(Mode::Train)
            };
            let at = first_not_finite(&self.network, &self.state, pixels, request)
                .unwrap_or_else(|| "every layer's output is finite".to_owned());
            let why = format!("of the teacher beside the student, {why}; {at}");
            return Err(Diverged(why).into());
        }
        self.state.track(pass.statistics, STATISTICS_RATE);
        Ok(pass.output.inner())
    }
}
