//! How stages begin and end, whatever their method.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use pi_ir::graph::ActivationKind;

use super::Run;
use super::teacher::TeacherRun;
use crate::config::{StageConfig, Teacher};
use crate::data::{self, Data};
use crate::method::{EVALUATION_BATCH, quadratics};
use crate::network::{Buffer, Op, Parameter, Replacement, SiteFunction, Substitute};
use crate::pattern::fits;
use crate::random::EpochStream;

impl Run {
    /// Begins a stage: its teacher, its replacements, the statistics of what is new, and its
    /// method's part.
    ///
    /// # Errors
    /// A teacher that cannot teach, a replacement or a pattern that fits nothing, a network that
    /// the method cannot work on.
    pub(super) fn begin_stage(&mut self, stage: &StageConfig, data: &Data) -> Result<()> {
        if self.meta.stage == 0 && self.meta.config.warm_start.is_none() {
            self.whiten(data);
        }
        // The teacher may be the network as it is now, so nothing may change before.
        self.find_teacher(stage)?;
        (self.soft_labels, self.meta.soft_labels) = (None, None);
        self.find_soft_labels(stage, &data.train)?;
        self.replace_activations(stage, data)?;
        self.calibrate(stage, data);
        let method = stage.method.hooks();
        self.meta.stage_length = method.begin(&mut self.context(stage, data))?;
        self.check_polynomial_kernels()?;
        self.check_patterns(stage)
    }

    /// Puts in what the stage and its method replace; of several replacements that fit a site, the
    /// last one stands.
    fn replace_activations(&mut self, stage: &StageConfig, data: &Data) -> Result<()> {
        let own = stage.replace.iter().cloned();
        let replacements: Vec<Replacement> =
            own.chain(stage.method.hooks().replacement()).collect();
        let fitted = |by: &Substitute| matches!(by, Substitute::Fitted { .. });
        // Quadratics are fitted to what reaches them in the network as it was trained, so none may
        // be in place yet.
        let moments = match replacements.iter().any(|r| fitted(&r.by)) {
            true => self.context(stage, data).input_moments(),
            false => BTreeMap::new(),
        };
        // So are the ReLUs that stay: those of the network as it was.
        let context = self.context(stage, data);
        let kept = replacements.iter().map(|r| context.kept(r, &moments));
        let kept: Vec<Vec<(String, usize)>> = kept.collect::<Result<_>>()?;
        for (replacement, kept) in replacements.iter().zip(kept) {
            self.state.replace(&self.network, replacement)?;
            self.state
                .change(&self.network, &kept, ActivationKind::Relu);
        }
        for (site, moments) in moments {
            if !self.state.has_quadratic(&site) {
                continue;
            }
            let standing = replacements.iter().rev().find(|r| fits(&r.sites, &site));
            if let Some(Substitute::Fitted { damped }) = standing.map(|r| r.by) {
                let fit = quadratics(&moments, damped);
                self.state.put_parameter(&Parameter::Poly.of(&site), fit);
            }
        }
        Ok(())
    }

    /// Gives min-max norms and Hermite norms that are new the statistics of a batch of training
    /// images, and every norm of a network that is new.
    ///
    /// Behind polynomial kernels that begin nearly linear the true variance is 1e-4; from a
    /// variance of 1 the running one would take a hundred steps to get there.
    fn calibrate(&mut self, stage: &StageConfig, data: &Data) {
        let new = self.state.functions.iter().any(|(site, function)| {
            matches!(function, SiteFunction::MinMax { .. } | SiteFunction::HerPn)
                && self.meta.functions.get(site) != Some(function)
        });
        // A warm start with its activations brings their statistics along.
        let warm = self.meta.config.warm_start.as_ref();
        let first = self.meta.epoch == 0 && !warm.is_some_and(|warm| warm.activations);
        let all = warm.is_none() && first && self.meta.stage == 0;
        if new || (self.meta.stage == 0 && first) {
            let set = &data.train;
            let order = data::permutation(set.len(), &mut self.rng(EpochStream::FirstStatistics));
            let indices = &order[..order.len().min(EVALUATION_BATCH)];
            let context = self.context(stage, data);
            let mut pass = context.batch_statistics(set.plain(indices), 1.0);
            if !all {
                // A norm has statistics of its own already: only what is new needs its first.
                let new = |name: &str| {
                    let buffer = Buffer::parse(name).map(|(_, buffer)| buffer);
                    matches!(buffer, Some(Buffer::Extent | Buffer::HerPn))
                };
                pass.statistics.retain(|name, _| new(name));
            }
            self.state.buffers.extend(pass.statistics);
        }
        self.meta.functions = self.state.functions.clone();
    }

    /// Checks that no layer has both a polynomial kernel and a polynomial activation (R-PKN, arXiv
    /// 2312.15229).
    pub(super) fn check_polynomial_kernels(&self) -> Result<()> {
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
                "{} is a polynomial kernel and {} a polynomial activation of the same layer; make \
                 the activation \"identity\" or \"relu\"",
                kernel.name,
                last.name
            );
        }
        Ok(())
    }

    /// Checks that each pattern fits a parameter: one that fits none is a slip of the pen, and
    /// would train what was to stay.
    fn check_patterns(&self, stage: &StageConfig) -> Result<()> {
        let rates = stage.optimiser.rates.iter().map(|rule| &rule.parameters);
        for pattern in stage.freeze.iter().chain(rates) {
            let names = self.state.parameters.keys();
            ensure!(
                names.clone().any(|name| fits(pattern, name)),
                "no parameter fits \"{pattern}\" of freeze or optimiser.rates; the parameters are \
                 {}",
                names.map(String::as_str).collect::<Vec<_>>().join(", ")
            );
        }
        Ok(())
    }

    /// At the end of a phase, puts the average of the weights in their place, if one was kept.
    pub(super) fn take_average(&mut self, stage: &StageConfig, data: &Data) {
        let averaged = self
            .optimiser
            .as_mut()
            .is_some_and(|optimiser| optimiser.apply_average(&mut self.state.parameters));
        if averaged {
            self.context(stage, data).renew_statistics();
        }
    }

    /// Ends a stage: its method's part, then progress moves on to the next stage.
    pub(super) fn end_stage(&mut self, stage: &StageConfig, data: &Data) {
        let method = stage.method.hooks();
        method.end(&mut self.context(stage, data));
        self.meta.stage += 1;
        self.meta.stage_epoch = 0;
        self.meta.stage_length = 0;
        // The optimiser of a selection has state for weights that are gone.
        let carries = !method.selects() && self.stage().is_some_and(|next| next.carry);
        if !carries {
            self.optimiser = None;
            self.meta.optimiser = None;
        }
        // Checkpoints of finished runs are kept and carried about: what another file holds is left
        // out.
        let elsewhere = |teacher: &TeacherRun| matches!(teacher.meta.who, Teacher::Checkpoint(_));
        if self.finished() && self.teacher.as_ref().is_some_and(elsewhere) {
            self.teacher = None;
        }
    }
}
