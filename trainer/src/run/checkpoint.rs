//! A run as a checkpoint, and back.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use burn::tensor::Device;

use super::Run;
use super::meta::Meta;
use super::optimiser::{optimiser, subset};
use super::teacher::TeacherRun;
use crate::checkpoint::{Array, Arrays, Checkpoint};
use crate::network::state::Stored;
use crate::tensors::{Tensors, download_all, upload};

impl Run {
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

    /// The run that a checkpoint was made of.
    ///
    /// # Errors
    /// A checkpoint whose arrays are not those of its network.
    pub fn from_checkpoint(mut checkpoint: Checkpoint, device: Device) -> Result<Self> {
        let mut meta: Meta = serde_json::from_value(std::mem::take(&mut checkpoint.meta))
            .context("the checkpoint's description is not ours")?;
        // The weights come from the file: the warm start's may be gone.
        let warm_start = meta.config.warm_start.take();
        let mut run = Self::new(meta.config.clone(), meta.images.clone(), device.clone())?;
        meta.config.warm_start = warm_start;
        let (parameters, statistics) =
            (checkpoint.take("parameters"), checkpoint.take("statistics"));
        let masks = checkpoint.masks.remove("student").unwrap_or_default();
        run.state.restore(
            &run.network,
            Stored {
                functions: meta.functions.clone(),
                selection: meta.selection,
                parameters,
                buffers: statistics,
                masks,
            },
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
        if let Some(of) = &meta.optimiser {
            let stage = meta
                .config
                .stages
                .get(of.stage)
                .context("the checkpoint's optimiser belongs to no stage")?;
            let trained = subset(&run.state.parameters, &of.parameters)?;
            let mut own = optimiser(&stage.optimiser, &trained, &run.network, &device);
            own.import(checkpoint.take("optimiser"))?;
            run.optimiser = Some(own);
        }
        if let Some(teacher) = meta.teacher.clone() {
            let teacher = TeacherRun::load(teacher, &meta, &mut checkpoint, &device)?;
            run.teacher = Some(teacher);
        }
        run.meta = meta;
        run.check_progress()?;
        Ok(run)
    }

    /// Checks that what the stage under way needs is there.
    fn check_progress(&self) -> Result<()> {
        let Some(stage) = self.stage().filter(|_| self.meta.has_begun()) else {
            return Ok(());
        };
        // An epoch makes its optimiser before it asks for the first time whether to go on.
        ensure!(
            self.meta.begun.is_none() || self.optimiser.is_some(),
            "the checkpoint was made within an epoch, and lacks its optimiser"
        );
        ensure!(
            stage.teacher().is_none() || self.teacher.is_some(),
            "the checkpoint lacks the teacher of its stage"
        );
        let method = stage.method.hooks();
        let selects = method.selects();
        ensure!(
            selects == self.state.selection.is_some() && selects == self.meta.pressure.is_some(),
            "the checkpoint's selection is not that of its stage"
        );
        let teacher = self.teacher.as_ref().map(|teacher| &teacher.network);
        method.check_resumed(self.meta.stage_length, &self.network, teacher)
    }
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
