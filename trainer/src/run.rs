//! A run: a network on its way through the stages of an experiment, exact to the bit on the CPU for
//! a given seed, whether interrupted or not.
//!
//! [`Run::epoch`] does what is due next: it begins a stage (teacher, replacements, cuts), trains
//! one epoch, ends a stage, and measures the held-out images. [`Run::epoch_while`] does the same,
//! and may stop between two steps. Everything they depend on is in the [`Checkpoint`].

mod bcd;
mod evaluate;
mod saliency;
mod stage;
mod train;
mod whiten;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

pub use evaluate::{Evaluation, Site};
pub use train::{Begun, Diverged, EpochReport, cross_entropy};

use crate::checkpoint::{Array, Arrays, Checkpoint};
use crate::config::{Config, Method, StageConfig, Teacher, WarmStart};
use crate::data::Normalisation;
use crate::network::parameter::node_of;
use crate::network::{Network, NetworkConfig, Op, Parameter, Selection, SiteFunction, State};
use crate::optimise::{Optimiser, OptimiserConfig};
use crate::random::RunStream;
use crate::tensors::{Tensors, download_all, upload};

/// What a checkpoint says about its run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The configuration.
    pub config: Config,
    /// The images.
    pub images: Images,
    /// Stage that is under way, or the number of stages once all are done.
    pub stage: usize,
    /// Its finished epochs.
    pub stage_epoch: usize,
    /// What is done of the epoch under way, if the run stopped within it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
    /// Its epochs in all, known once it has begun.
    pub stage_length: usize,
    /// Finished epochs of all stages.
    pub epoch: usize,
    /// Seconds spent so far.
    pub wall_s: f64,
    /// Names of the processors that trained it; unknown in checkpoints that were written before
    /// they were kept.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub devices: BTreeSet<String>,
    /// Images of an epoch; unknown in checkpoints that were written before it was kept.
    #[serde(default)]
    pub training_images: Option<usize>,
    /// Accuracy on the held-out images after the last epoch.
    pub holdout_accuracy: Option<f64>,
    /// What stands at each activation site.
    #[serde(rename = "slots")]
    pub functions: BTreeMap<String, SiteFunction>,
    /// The selection under way.
    pub selection: Option<Selection>,
    /// Its penalty and its last count.
    pub pressure: Option<Pressure>,
    /// The optimiser's stage and parameters.
    optimiser: Option<OptimiserMeta>,
    /// The teacher.
    teacher: Option<TeacherMeta>,
}

/// What a run knows about its images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Images {
    /// Name of the data set, as results give it.
    pub dataset: String,
    /// Channels, rows and columns.
    pub shape: [usize; 3],
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Normalisation of the pixels.
    pub normalisation: Normalisation,
}

impl Images {
    /// # Errors
    /// A normalisation that is not of the images' channels, or divides by nothing.
    fn check(&self) -> Result<()> {
        let Normalisation { mean, std } = &self.normalisation;
        ensure!(
            mean.len() == self.shape[0]
                && std.len() == self.shape[0]
                && mean.iter().all(|mean| mean.is_finite())
                && std.iter().all(|std| std.is_finite() && *std > 0.0),
            "the images' normalisation is not of their {} channels",
            self.shape[0]
        );
        Ok(())
    }
}

/// State of a selection's penalty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Weight of the L1 penalty.
    pub lambda: f32,
    /// ReLUs that were left after the last epoch.
    pub count: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OptimiserMeta {
    stage: usize,
    parameters: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct TeacherMeta {
    who: Teacher,
    network: NetworkConfig,
    #[serde(rename = "slots")]
    functions: BTreeMap<String, SiteFunction>,
    /// Stage of its optimiser, if it is trained beside the student.
    stage: Option<usize>,
}

/// A network that teaches.
struct TeacherRun {
    meta: TeacherMeta,
    network: Network,
    state: State,
    optimiser: Option<Optimiser>,
}

/// A run: network, tensors and progress.
pub struct Run {
    /// What is saved with it.
    pub meta: Meta,
    /// The network.
    pub network: Network,
    /// Parameters, statistics, masks.
    pub state: State,
    optimiser: Option<Optimiser>,
    teacher: Option<TeacherRun>,
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
        let meta = Meta {
            images,
            stage: 0,
            stage_epoch: 0,
            begun: None,
            stage_length: 0,
            epoch: 0,
            wall_s: 0.0,
            devices: BTreeSet::new(),
            training_images: None,
            holdout_accuracy: None,
            functions: state.functions.clone(),
            selection: None,
            pressure: None,
            optimiser: None,
            teacher: None,
            config,
        };
        let mut run = Self {
            meta,
            network,
            state,
            optimiser: None,
            teacher: None,
            ranges: Tensors::new(),
            device,
        };
        run.check_polynomial_kernels()?;
        if let Some(warm) = run.meta.config.warm_start.clone() {
            let path = checkpoint_path(&warm.checkpoint);
            let source = Run::from_checkpoint(Checkpoint::load(&path)?, run.device.clone())?;
            run.warm_start(&source, &warm)
                .with_context(|| format!("warm start from {}", path.display()))?;
            // What came along is not new: its statistics stay.
            run.meta.functions = run.state.functions.clone();
        }
        Ok(run)
    }

    /// The run a checkpoint was made of.
    ///
    /// # Errors
    /// A checkpoint whose arrays are not those of its network.
    pub fn from_checkpoint(mut checkpoint: Checkpoint, device: Device) -> Result<Self> {
        let mut meta: Meta = serde_json::from_value(std::mem::take(&mut checkpoint.meta))
            .context("the checkpoint's description is not ours")?;
        // Its weights come from the file: the warm start's may be gone.
        let warm_start = meta.config.warm_start.take();
        let mut run = Self::new(meta.config.clone(), meta.images.clone(), device.clone())?;
        meta.config.warm_start = warm_start;
        let (parameters, statistics) =
            (checkpoint.take("parameters"), checkpoint.take("statistics"));
        let masks = checkpoint.masks.remove("student").unwrap_or_default();
        run.state.restore(
            &run.network,
            meta.functions.clone(),
            meta.selection,
            parameters,
            statistics,
            &masks,
        )?;
        for (name, array) in checkpoint.take("ranges") {
            let channels = run
                .network
                .index(&name)
                .map(|index| run.network.nodes[index].shape[0]);
            ensure!(
                Some(array.values.len()) == channels.map(|c| 2 * c),
                "the checkpoint's range of {name} is not of its channels"
            );
            run.ranges.insert(name, upload(array.values, &device));
        }
        if let Some(optimiser) = &meta.optimiser {
            let stage = meta
                .config
                .stages
                .get(optimiser.stage)
                .context("the checkpoint's optimiser belongs to no stage")?;
            let trained = subset(&run.state.parameters, &optimiser.parameters)?;
            let mut own = Optimiser::new(&stage.optimiser, &trained, depths(&run.network), &device);
            own.import(checkpoint.take("optimiser"))?;
            run.optimiser = Some(own);
        }
        if let Some(teacher) = meta.teacher.clone() {
            run.teacher = Some(load_teacher(teacher, &meta, &mut checkpoint, &device)?);
        }
        run.meta = meta;
        run.check_progress()?;
        Ok(run)
    }

    /// Whether what the stage under way needs is there.
    fn check_progress(&self) -> Result<()> {
        let has_begun = self.meta.stage_epoch > 0 || self.meta.begun.is_some();
        let Some(stage) = self.stage().filter(|_| has_begun) else {
            return Ok(());
        };
        // An epoch makes its optimiser before it asks for the first time whether to go on.
        ensure!(
            self.meta.begun.is_none() || self.optimiser.is_some(),
            "the checkpoint was made within an epoch, and lacks its optimiser"
        );
        let taught = stage.distil.is_some() || matches!(stage.method, Method::Quail(_));
        ensure!(
            !taught || self.teacher.is_some(),
            "the checkpoint lacks the teacher of its stage"
        );
        let selects = matches!(stage.method, Method::Snl(_) | Method::Autorep(_));
        ensure!(
            selects == self.state.selection.is_some() && selects == self.meta.pressure.is_some(),
            "the checkpoint's selection is not that of its stage"
        );
        if let Method::Quail(quail) = &stage.method {
            ensure!(
                self.meta.stage_length == quail.epochs(&self.network)
                    && self
                        .teacher
                        .as_ref()
                        .is_some_and(|t| t.network == self.network),
                "the checkpoint's phases of QuaIL are not those of its network"
            );
        }
        Ok(())
    }

    /// Goes on under another configuration of the same network.
    ///
    /// Batches, rates, penalties and augmentation of the stage under way change from here on; an
    /// optimiser with other settings goes on with the state of the old one where the rule is the
    /// same, and averages of the weights begin anew.
    ///
    /// # Errors
    /// A key out of range, another network or seed, fewer stages than are done, a change to one
    /// that is done, an augmentation that the images are too small for; in the stage under way
    /// another method, other replacements or another teacher.
    pub fn reconfigure(&mut self, config: Config) -> Result<()> {
        config.check()?;
        ensure!(
            self.meta.config.network == config.network,
            "the checkpoint is of another network than the configuration: give another --out, or the old network"
        );
        ensure!(
            self.meta.config.seed == config.seed,
            "the checkpoint was trained with seed {}, the configuration has {}: give another --out, or the old seed",
            self.meta.config.seed,
            config.seed
        );
        ensure!(
            config.stages.len() >= self.meta.stage,
            "the checkpoint has finished {} stages, the configuration has {}",
            self.meta.stage,
            config.stages.len()
        );
        let stages = self.meta.config.stages.iter().zip(&config.stages);
        for (number, (old, new)) in stages.take(self.meta.stage).enumerate() {
            ensure!(
                same_stage(old, new),
                "stage {number} is finished, and the configuration changes it: give another --out, or the old stage"
            );
        }
        config.check_augmentation(self.meta.images.shape)?;
        let old = std::mem::replace(&mut self.meta.config, config);
        let number = self.meta.stage;
        let (Some(old), Some(new)) = (old.stages.get(number), self.stage().cloned()) else {
            return Ok(());
        };
        if self.meta.stage_epoch == 0 && self.meta.begun.is_none() {
            return Ok(());
        }
        ensure!(
            old.method == new.method && old.replace == new.replace && same_teacher(old, &new),
            "stage {number} is under way: its method, replacements and teacher cannot change any more; give another --out"
        );
        if !matches!(new.method, Method::Quail(_) | Method::Bcd(_)) {
            self.meta.stage_length = new.epochs;
        }
        if old.optimiser != new.optimiser {
            self.rebuild_optimisers(&new.optimiser)?;
        }
        Ok(())
    }

    /// Optimisers of the same parameters with other settings.
    fn rebuild_optimisers(&mut self, config: &OptimiserConfig) -> Result<()> {
        if let (Some(old), Some(meta)) = (&self.optimiser, &self.meta.optimiser) {
            let trained = subset(&self.state.parameters, &meta.parameters)?;
            let mut new = Optimiser::new(config, &trained, depths(&self.network), &self.device);
            new.carry(old);
            self.optimiser = Some(new);
        }
        if let Some(teacher) = &mut self.teacher
            && let Some(old) = &teacher.optimiser
        {
            let (parameters, depths) = (&teacher.state.parameters, depths(&teacher.network));
            let mut new = Optimiser::new(config, parameters, depths, &self.device);
            new.carry(old);
            teacher.optimiser = Some(new);
        }
        Ok(())
    }

    /// The run's state for a file.
    pub fn checkpoint(&self) -> Checkpoint {
        let mut meta = self.meta.clone();
        meta.functions = self.state.functions.clone();
        meta.selection = self.state.selection;
        meta.teacher = self.teacher.as_ref().map(|t| t.meta.clone());
        let mut arrays = BTreeMap::from([
            ("parameters".to_owned(), self.state.parameter_arrays()),
            ("statistics".to_owned(), self.state.buffer_arrays()),
            ("ranges".to_owned(), rows(&self.ranges)),
        ]);
        let mut masks = BTreeMap::from([("student".to_owned(), self.state.mask_codes())]);
        if let Some(optimiser) = &self.optimiser {
            arrays.insert("optimiser".to_owned(), optimiser.export());
        }
        if let Some(teacher) = &self.teacher {
            arrays.insert(
                "teacher.parameters".to_owned(),
                teacher.state.parameter_arrays(),
            );
            arrays.insert(
                "teacher.statistics".to_owned(),
                teacher.state.buffer_arrays(),
            );
            if let Some(optimiser) = &teacher.optimiser {
                arrays.insert("teacher.optimiser".to_owned(), optimiser.export());
            }
            masks.insert("teacher".to_owned(), teacher.state.mask_codes());
        }
        Checkpoint {
            meta: serde_json::to_value(meta).expect("plain data has a JSON form"),
            arrays,
            masks,
        }
    }

    /// Whether all stages are done.
    pub fn finished(&self) -> bool {
        self.meta.stage >= self.meta.config.stages.len()
    }

    /// The stage under way.
    pub fn stage(&self) -> Option<&StageConfig> {
        self.meta.config.stages.get(self.meta.stage)
    }

    /// Copies what fits from another run: everything but the classifier, which may have other
    /// classes.
    fn warm_start(&mut self, source: &Run, warm: &WarmStart) -> Result<()> {
        ensure!(
            source.finished(),
            "its run is not finished: train it to its end first"
        );
        ensure!(
            source.state.selection.is_none(),
            "it is in the middle of a selection: train it to the end of its stage"
        );
        let (parameters, buffers) = (
            source.state.parameter_arrays(),
            source.state.buffer_arrays(),
        );
        if warm.activations {
            let same = self.network.sites().eq(source.network.sites());
            ensure!(
                same,
                "its activation sites are others; set warm_start.activations = false to take the weights alone"
            );
            let masks = source.state.mask_codes();
            let mut taken = parameters.clone();
            for (name, array) in self.state.parameter_arrays() {
                if name.starts_with("dense.")
                    && taken.get(&name).map(|a| &a.shape) != Some(&array.shape)
                {
                    taken.insert(name, array);
                }
            }
            return self.state.restore(
                &self.network,
                source.state.functions.clone(),
                None,
                taken,
                buffers,
                &masks,
            );
        }
        let sites: Vec<String> = self
            .network
            .sites()
            .map(|(site, _)| site.to_owned())
            .collect();
        // A classifier of other classes, and polynomial kernels that stand there alone, begin anew.
        let renewed = |name: &str| {
            matches!(
                Parameter::parse(name),
                Some(("dense", _) | (_, Parameter::Shift | Parameter::LogScale))
            )
        };
        let of_site = |name: &str| {
            let node = node_of(name);
            sites.iter().any(|site| site == node)
        };
        for (name, array) in self.state.parameter_arrays() {
            match parameters.get(&name) {
                Some(theirs) if theirs.shape == array.shape => {
                    self.state.put_parameter(&name, theirs.clone());
                }
                _ if renewed(&name) || of_site(&name) => {}
                other => anyhow::bail!(
                    "{name} is {:?} there, {:?} here",
                    other.map(|a| &a.shape),
                    array.shape
                ),
            }
        }
        for (name, array) in self.state.buffer_arrays() {
            if let Some(theirs) = buffers.get(&name).filter(|a| a.shape == array.shape) {
                self.state.put_buffer(&name, theirs.clone());
            }
        }
        Ok(())
    }

    /// Never both a polynomial kernel and a polynomial activation in one layer (R-PKN, arXiv
    /// 2312.15229).
    fn check_polynomial_kernels(&self) -> Result<()> {
        for layer in self.network.layers() {
            let nodes = &self.network.nodes[layer];
            let kernel = nodes
                .iter()
                .find(|node| matches!(node.op, Op::Kernel { .. }));
            let (Some(kernel), Some(last)) = (kernel, nodes.last()) else {
                continue;
            };
            ensure!(
                !self.state.has_polynomial(&last.name),
                "{} is a polynomial kernel and {} a polynomial activation of the same layer; make the activation \"identity\" or \"relu\"",
                kernel.name,
                last.name
            );
        }
        Ok(())
    }
}

fn load_teacher(
    meta: TeacherMeta,
    own: &Meta,
    checkpoint: &mut Checkpoint,
    device: &Device,
) -> Result<TeacherRun> {
    let network = Network::new(&meta.network, own.images.shape, own.images.classes.len())?;
    let mut rng = RunStream::Parameters.rng(0);
    let mut state = State::new(&network, &[], &mut rng, device)?;
    let masks = checkpoint.masks.remove("teacher").unwrap_or_default();
    state
        .restore(
            &network,
            meta.functions.clone(),
            None,
            checkpoint.take("teacher.parameters"),
            checkpoint.take("teacher.statistics"),
            &masks,
        )
        .context("of the teacher")?;
    let optimiser = match meta.stage {
        None => None,
        Some(stage) => {
            let config = &own
                .config
                .stages
                .get(stage)
                .context("the teacher's optimiser belongs to no stage")?
                .optimiser;
            let mut optimiser = Optimiser::new(config, &state.parameters, depths(&network), device);
            optimiser.import(checkpoint.take("teacher.optimiser"))?;
            Some(optimiser)
        }
    };
    Ok(TeacherRun {
        meta,
        network,
        state,
        optimiser,
    })
}

/// The named parameters.
fn subset(parameters: &Tensors, names: &[String]) -> Result<Tensors> {
    names
        .iter()
        .map(|name| {
            let tensor = parameters.get(name).with_context(|| {
                format!("the checkpoint's optimiser has {name}, the network has not")
            })?;
            Ok((name.clone(), tensor.clone()))
        })
        .collect()
}

/// Layer of a parameter, counted from the classifier back.
fn depths(network: &Network) -> impl Fn(&str) -> usize + use<> {
    let layers = network.layers();
    let mut depth = BTreeMap::new();
    for (back, layer) in layers.iter().rev().enumerate() {
        for node in &network.nodes[layer.clone()] {
            depth.insert(node.name.clone(), back);
        }
    }
    move |parameter| depth.get(node_of(parameter)).copied().unwrap_or(0)
}

fn rows(tensors: &Tensors) -> Arrays {
    download_all(tensors)
        .into_iter()
        .map(|(name, values)| {
            let shape = vec![2, values.len() / 2];
            (name, Array { shape, values })
        })
        .collect()
}

/// The checkpoint in a run's folder, or the file itself.
pub fn checkpoint_path(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|extension| extension == "pit") {
        path.to_owned()
    } else {
        path.join("checkpoint.pit")
    }
}

/// Whether two stages are one and the same, wherever the file of a teacher lies.
fn same_stage(one: &StageConfig, other: &StageConfig) -> bool {
    let mut moved = one.clone();
    if let (Some(moved), Some(other)) = (&mut moved.distil, &other.distil)
        && let (Teacher::Checkpoint(path), Teacher::Checkpoint(now)) =
            (&mut moved.teacher, &other.teacher)
    {
        path.clone_from(now);
    }
    moved == *other
}

/// Whether two stages have one teacher. A run's weights are in the checkpoint: their file may lie
/// elsewhere by now.
fn same_teacher(one: &StageConfig, other: &StageConfig) -> bool {
    let teacher = |stage: &StageConfig| stage.distil.as_ref().map(|d| d.teacher.clone());
    match (teacher(one), teacher(other)) {
        (Some(Teacher::Checkpoint(_)), Some(Teacher::Checkpoint(_))) => true,
        (one, other) => one == other,
    }
}
