//! The optimisers of a run: what they train, and when one takes over from another.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use burn::tensor::Device;

use super::Run;
use super::meta::OptimiserMeta;
use crate::config::{StageConfig, Teacher};
use crate::method::Phase;
use crate::network::parameter::node_of;
use crate::network::{Network, Op, Parameter};
use crate::optimise::{Optimiser, OptimiserConfig, Place};
use crate::pattern::fits;
use crate::tensors::Tensors;

impl Run {
    /// Makes an optimiser for what trains now, unless the one at hand is for that.
    pub(super) fn ready_optimiser(&mut self, stage: &StageConfig, phase: Phase) {
        let end = phase.imitate.unwrap_or(self.network.nodes.len() - 1);
        let trained: Tensors = self
            .state
            .parameters
            .iter()
            .filter(|(name, _)| {
                let index = self.network.index(node_of(name)).unwrap_or(0);
                (phase.train_from..=end).contains(&index) && trains(stage, name)
            })
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        let meta = OptimiserMeta {
            stage: self.meta.stage,
            parameters: trained.keys().cloned().collect(),
        };
        let fresh = phase.epoch == 0 && !(stage.carry && self.meta.stage_epoch == 0);
        if fresh || self.meta.optimiser.as_ref() != Some(&meta) || self.optimiser.is_none() {
            let mut new = optimiser(&stage.optimiser, &trained, &self.network, &self.device);
            if let Some(old) = self.optimiser.take().filter(|_| !fresh) {
                new.carry(&old);
            }
            self.optimiser = Some(new);
            self.meta.optimiser = Some(meta);
        }
        if let Some(teacher) = &mut self.teacher
            && matches!(teacher.meta.who, Teacher::Beside(_))
            && teacher.meta.stage != Some(self.meta.stage)
        {
            teacher.renew_optimiser(&stage.optimiser, &self.device);
            teacher.meta.stage = Some(self.meta.stage);
        }
    }

    /// Replaces the optimisers by ones of the same parameters with other settings.
    pub(super) fn rebuild_optimisers(&mut self, config: &OptimiserConfig) -> Result<()> {
        if let (Some(old), Some(meta)) = (&self.optimiser, &self.meta.optimiser) {
            let trained = subset(&self.state.parameters, &meta.parameters)?;
            let mut new = optimiser(config, &trained, &self.network, &self.device);
            new.carry(old);
            self.optimiser = Some(new);
        }
        if let Some(teacher) = &mut self.teacher
            && teacher.optimiser.is_some()
        {
            teacher.renew_optimiser(config, &self.device);
        }
        Ok(())
    }
}

/// An optimiser of some of a network's parameters.
pub(super) fn optimiser(
    config: &OptimiserConfig,
    parameters: &Tensors,
    network: &Network,
    device: &Device,
) -> Optimiser {
    Optimiser::new(config, parameters, places(network), device)
}

impl Run {
    /// Names of the parameters that a stage of this run trains, or a stage of a run that it began
    /// with. All others are what they were set to at first: constants, or statistics of images.
    pub fn trained(&self) -> BTreeSet<String> {
        let stages = &self.meta.config.stages;
        let names = self.state.parameters.keys();
        let own = names.filter(|name| stages.iter().any(|stage| trains(stage, name)));
        let mut trained: BTreeSet<String> = own.cloned().collect();
        if self.meta.config.warm_start.is_some() {
            match &self.meta.trained_before {
                Some(before) => trained.extend(before.iter().cloned()),
                // Written before this was kept: what is not known was perhaps trained.
                None => trained.extend(self.state.parameters.keys().cloned()),
            }
        }
        trained
    }
}

/// Returns true for a parameter that a stage trains.
pub(super) fn trains(stage: &StageConfig, name: &str) -> bool {
    stage.method.hooks().trains(name) && !stage.freeze.iter().any(|pattern| fits(pattern, name))
}

/// The named parameters.
pub(super) fn subset(parameters: &Tensors, names: &[String]) -> Result<Tensors> {
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

/// Places of parameters in a network.
fn places(network: &Network) -> impl Fn(&str) -> Place + use<> {
    let mut places = BTreeMap::new();
    for (depth, layer) in network.layers().iter().rev().enumerate() {
        for node in &network.nodes[layer.clone()] {
            let rows = matches!(node.op, Op::Conv { .. }).then_some(node.shape[0]);
            places.insert(node.name.clone(), Place { depth, rows });
        }
    }
    move |parameter| {
        let place = places.get(node_of(parameter)).copied().unwrap_or_default();
        match Parameter::parse(parameter) {
            Some((_, Parameter::Weight)) => place,
            _ => Place {
                rows: None,
                ..place
            },
        }
    }
}
