//! A run that goes on under another configuration.

use anyhow::{Result, ensure};

use super::Run;
use crate::config::{Config, StageConfig, Teacher};

impl Run {
    /// Goes on under another configuration of the same network.
    ///
    /// Batches, rates, penalties and augmentation of the stage under way change from here on. An
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
            "the checkpoint is of another network than the configuration: give another --out, or \
             the old network"
        );
        ensure!(
            self.meta.config.seed == config.seed,
            "the checkpoint was trained with seed {}, the configuration has {}: give another \
             --out, or the old seed",
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
                "stage {number} is finished, and the configuration changes it: give another \
                 --out, or the old stage"
            );
        }
        config.check_augmentation(self.meta.images.shape)?;
        let old = std::mem::replace(&mut self.meta.config, config);
        let number = self.meta.stage;
        let (Some(old), Some(new)) = (old.stages.get(number), self.stage().cloned()) else {
            return Ok(());
        };
        if !self.meta.has_begun() {
            return Ok(());
        }
        ensure!(
            old.method == new.method && old.replace == new.replace && same_teacher(old, &new),
            "stage {number} is under way: its method, replacements and teacher cannot change any \
             more; give another --out"
        );
        if !new.method.hooks().counts_own_epochs() {
            self.meta.stage_length = new.epochs;
        }
        if old.optimiser != new.optimiser {
            self.rebuild_optimisers(&new.optimiser)?;
        }
        Ok(())
    }
}

/// Returns true if two stages are one and the same, wherever the file of a teacher lies.
fn same_stage(one: &StageConfig, other: &StageConfig) -> bool {
    let mut moved = one.clone();
    if let (Some(moved), Some(other)) = (&mut moved.distil, &other.distil)
        && let (Teacher::Checkpoint(path), Teacher::Checkpoint(now))
        | (Teacher::Logits(path), Teacher::Logits(now)) = (&mut moved.teacher, &other.teacher)
    {
        path.clone_from(now);
    }
    moved == *other
}

/// Returns true if two stages have one teacher. A teacher's weights are in the run's own
/// checkpoint: the file they came from may lie elsewhere by now. Soft labels are known by their
/// fingerprint.
fn same_teacher(one: &StageConfig, other: &StageConfig) -> bool {
    let teacher = |stage: &StageConfig| stage.distil.as_ref().map(|d| d.teacher.clone());
    match (teacher(one), teacher(other)) {
        (Some(Teacher::Checkpoint(_)), Some(Teacher::Checkpoint(_)))
        | (Some(Teacher::Logits(_)), Some(Teacher::Logits(_))) => true,
        (one, other) => one == other,
    }
}
