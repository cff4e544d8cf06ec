//! How stages begin and end: teachers, replacements, selections, and the phases of QuaIL.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::evaluate::EVALUATION_BATCH;
use super::train::Phase;
use super::{Pressure, Run, TeacherMeta, TeacherRun, checkpoint_path};
use crate::checkpoint::{Array, Checkpoint};
use crate::config::{Method, Quail, QuailNorm, Select, StageConfig, Teacher};
use crate::data::{self, Data, DeviceSet};
use crate::kernels;
use crate::network::site_function::relu_fit;
use crate::network::state::{Indicator, Removed};
use crate::network::{
    Buffer, Mode, Network, Op, Parameter, Replacement, Request, Selection, SiteFunction, State,
    Substitute,
};
use crate::pattern::fits;
use crate::random::{EpochStream, RunStream};
use crate::tensors::{Tensors, download_all};

/// A selection's penalty grows no further: it decides every step by then, and its squares are still
/// finite.
const MAX_LAMBDA: f32 = 1e6;

impl Method {
    /// Its name in logs and results.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Plain => "plain",
            Method::Quail(quail) => match quail.norm {
                QuailNorm::None => "quail",
                QuailNorm::Amm => "quail with amm",
                QuailNorm::Mm => "quail with mm",
            },
            Method::Snl(_) => "snl",
            Method::Autorep(_) => "autorep",
            Method::Bcd(_) => "bcd",
            Method::Saliency(_) => "saliency",
        }
    }
}

impl Run {
    pub(super) fn begin_stage(&mut self, stage: &StageConfig, data: &Data) -> Result<()> {
        if self.meta.stage == 0 && self.meta.config.warm_start.is_none() {
            self.whiten(data);
        }
        self.find_teacher(stage)?;
        self.replace_activations(stage, &data.train)?;
        self.calibrate(&data.train);
        self.begin_method(stage, data)?;
        self.check_polynomial_kernels()?;
        self.check_patterns(stage)
    }

    /// Puts in what the stage replaces; of several replacements that fit a site, the last one
    /// stands.
    fn replace_activations(&mut self, stage: &StageConfig, set: &DeviceSet) -> Result<()> {
        let own = stage.replace.iter().cloned();
        let replacements: Vec<Replacement> = own.chain(quail_replacement(&stage.method)).collect();
        let fitted = |by: &Substitute| matches!(by, Substitute::Fitted { .. });
        // Quadratics are fitted to what reaches them in the network as it was trained, so none may
        // be in place yet.
        let moments = match replacements.iter().any(|r| fitted(&r.by)) {
            true => self.input_moments(set),
            false => BTreeMap::new(),
        };
        for replacement in &replacements {
            self.state.replace(&self.network, replacement)?;
        }
        for (site, moments) in moments {
            let standing = replacements.iter().rev().find(|r| fits(&r.sites, &site));
            if let Some(Substitute::Fitted { damped }) = standing.map(|r| r.by) {
                let fit = quadratics(&moments, damped);
                self.state.put_parameter(&Parameter::Poly.of(&site), fit);
            }
        }
        Ok(())
    }

    fn begin_method(&mut self, stage: &StageConfig, data: &Data) -> Result<()> {
        self.meta.stage_length = match &stage.method {
            Method::Quail(quail) => quail.epochs(&self.network),
            _ => stage.epochs,
        };
        match &stage.method {
            Method::Plain | Method::Quail(_) => {}
            Method::Snl(select) => {
                let selection = Selection {
                    indicator: Indicator::Real,
                    removed: select.removed.unwrap_or(Removed::Identity),
                };
                self.begin_selection(select, selection, 1.0, data);
            }
            Method::Autorep(select) => {
                let selection = Selection {
                    indicator: Indicator::Hysteresis {
                        width: select.hysteresis,
                    },
                    removed: select.removed.unwrap_or(Removed::Polynomial),
                };
                // Just above the band: a position falls after a few steps of pressure.
                self.begin_selection(select, selection, 2.0 * select.hysteresis + 1e-3, data);
            }
            Method::Bcd(bcd) => {
                let relus = self.network.counts(&self.state).relus;
                ensure!(
                    relus >= bcd.relus,
                    "BCD shall leave {} ReLUs, and there are {relus}",
                    bcd.relus
                );
                let steps = (relus - bcd.relus).div_ceil(bcd.block);
                self.meta.stage_length = steps * bcd.step_epochs;
                if bcd.removed == Removed::Polynomial {
                    let sites = self.without_quadratics();
                    self.fit_quadratics(&sites, false, &data.train);
                }
            }
            Method::Saliency(saliency) => self.cut(saliency, stage, data)?,
        }
        Ok(())
    }

    /// A pattern that fits no parameter is a slip of the pen, and would train what shall stay.
    fn check_patterns(&self, stage: &StageConfig) -> Result<()> {
        let rates = stage.optimiser.rates.iter().map(|rule| &rule.parameters);
        for pattern in stage.freeze.iter().chain(rates) {
            let names = self.state.parameters.keys();
            ensure!(
                names.clone().any(|name| fits(pattern, name)),
                "no parameter fits \"{pattern}\" of freeze or optimiser.rates; the parameters are {}",
                names.map(String::as_str).collect::<Vec<_>>().join(", ")
            );
        }
        Ok(())
    }

    fn begin_selection(&mut self, select: &Select, selection: Selection, start: f32, data: &Data) {
        let count = self.network.counts(&self.state).relus;
        let new = self.without_quadratics();
        self.state.begin_selection(&self.network, selection, start);
        if selection.removed == Removed::Polynomial {
            self.fit_quadratics(&new, true, &data.train);
        }
        self.meta.pressure = Some(Pressure {
            lambda: select.lambda,
            count,
        });
    }

    /// After an epoch of a selection: counts, raises the penalty if the count did not fall, ends at
    /// the budget.
    pub(super) fn press(&mut self, select: &Select) -> serde_json::Value {
        let threshold = match self.state.selection.map(|s| s.indicator) {
            Some(Indicator::Hysteresis { .. }) => 0.5,
            _ => select.threshold,
        };
        let count = self.state.selected(threshold);
        let pressure = self.meta.pressure.get_or_insert(Pressure {
            lambda: select.lambda,
            count,
        });
        if count >= pressure.count {
            pressure.lambda = (pressure.lambda * select.growth).min(MAX_LAMBDA);
        }
        pressure.count = count;
        let lambda = pressure.lambda;
        if count <= select.relus {
            self.meta.stage_length = self.meta.stage_epoch;
        }
        json!({ "left": count, "lambda": lambda })
    }

    /// At the end of a phase, puts the average of the weights in their place, if one was kept.
    pub(super) fn take_average(&mut self, stage: &StageConfig, data: &Data) {
        let averaged = self
            .optimiser
            .as_mut()
            .is_some_and(|optimiser| optimiser.apply_average(&mut self.state.parameters));
        if averaged {
            self.renew_statistics(&data.train, stage.batch);
        }
    }

    pub(super) fn end_stage(&mut self, stage: &StageConfig, data: &Data) {
        let selection = match &stage.method {
            Method::Snl(select) | Method::Autorep(select) => Some(select),
            _ => None,
        };
        if let Some(select) = selection {
            self.state.end_selection(&self.network, select.relus);
            self.meta.pressure = None;
            self.renew_statistics(&data.train, stage.batch);
        }
        if let Method::Bcd(_) = stage.method {
            self.state.drop_unused_quadratics();
        }
        self.meta.stage += 1;
        self.meta.stage_epoch = 0;
        self.meta.stage_length = 0;
        // The optimiser of a selection has state for weights that are gone.
        let carries = selection.is_none() && self.stage().is_some_and(|next| next.carry);
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

    /// What the epoch under way trains.
    pub(super) fn phase(&self, stage: &StageConfig) -> Phase {
        let done = self.meta.stage_epoch;
        let whole = Phase {
            train_from: 0,
            imitate: None,
            epoch: done,
            epochs: self.meta.stage_length,
        };
        match &stage.method {
            Method::Quail(quail) => quail_phase(quail, &self.network.layers(), done),
            Method::Bcd(bcd) => Phase {
                epoch: done % bcd.step_epochs,
                epochs: bcd.step_epochs,
                ..whole
            },
            // The schedule spans the most that a selection may take.
            Method::Snl(_) | Method::Autorep(_) => Phase {
                epochs: stage.epochs,
                ..whole
            },
            Method::Plain | Method::Saliency(_) => whole,
        }
    }

    fn find_teacher(&mut self, stage: &StageConfig) -> Result<()> {
        let who = match (&stage.distil, &stage.method) {
            (Some(distil), _) => distil.teacher.clone(),
            (None, Method::Quail(_)) => Teacher::Start,
            (None, _) => {
                self.teacher = None;
                return Ok(());
            }
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
                    .with_context(|| format!("the teacher in {}", path.display()))?;
                let (own, theirs) = (&self.meta.images, &other.meta.images);
                ensure!(
                    own.shape == theirs.shape && own.classes.len() == theirs.classes.len(),
                    "the teacher in {} sees images of shape {:?} in {} classes, the student {:?} in {}",
                    path.display(),
                    theirs.shape,
                    theirs.classes.len(),
                    own.shape,
                    own.classes.len()
                );
                if own.normalisation != theirs.normalisation {
                    anyhow::bail!(
                        "the teacher in {} normalises pixels otherwise than the student",
                        path.display()
                    );
                }
                ensure!(
                    other.finished(),
                    "the teacher in {} is not finished: train it to its end first",
                    path.display()
                );
                ensure!(
                    other.state.selection.is_none(),
                    "the teacher in {} is in the middle of a selection: train it to the end of its stage",
                    path.display()
                );
                (other.meta.config.network, other.network, other.state)
            }
            Teacher::Beside(config) => {
                let images = &self.meta.images;
                let network = Network::new(config, images.shape, images.classes.len())?;
                let mut rng = RunStream::TeacherBeside.rng(self.meta.config.seed);
                let state = State::new(&network, &config.activations, &mut rng, &self.device)?;
                (config.as_ref().clone(), network, state)
            }
        };
        if let Method::Quail(_) = stage.method {
            ensure!(
                self.network == network,
                "QuaIL compares layers: its teacher must be the same network but for its activations"
            );
            ensure!(
                !matches!(who, Teacher::Beside(_)),
                "QuaIL's teacher must be trained already"
            );
        }
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

    /// Masked sites that have no quadratic yet.
    pub(super) fn without_quadratics(&self) -> Vec<String> {
        let masked = self.state.masks.keys();
        masked
            .filter(|site| !self.state.has_quadratic(site))
            .cloned()
            .collect()
    }

    /// Gives sites the quadratics nearest to ReLU under the distribution of their inputs on some
    /// training images.
    pub(super) fn fit_quadratics(&mut self, sites: &[String], damped: bool, set: &DeviceSet) {
        if sites.is_empty() {
            return;
        }
        let moments = self.input_moments(set);
        for site in sites {
            let fit = quadratics(&moments[site], damped);
            self.state.put_parameter(&Parameter::Poly.of(site), fit);
        }
    }

    /// Means, then variances, of the channels that reach each activation site on some training
    /// images.
    fn input_moments(&self, set: &DeviceSet) -> BTreeMap<String, Vec<f32>> {
        let order = data::permutation(set.len(), &mut self.rng(EpochStream::Fits));
        let indices = &order[..order.len().min(EVALUATION_BATCH)];
        let mut moments = Tensors::new();
        let (pixels, request) = (set.plain(indices), Request::of(Mode::Evaluate));
        self.network
            .forward(&self.state, pixels, request, |node, inputs, _| {
                if node.op == Op::Activation {
                    let both = kernels::moments(inputs[0].clone());
                    moments.insert(node.name.clone(), both.reshape([2 * node.shape[0]]));
                }
            });
        download_all(&moments)
    }

    /// Gives min-max norms and Hermite norms that are new the statistics of a batch of training
    /// images, and every norm of a network that is new.
    ///
    /// Behind polynomial kernels that begin nearly linear the true variance is 1e-4; from a
    /// variance of 1 the running one would take a hundred steps to get there.
    fn calibrate(&mut self, set: &DeviceSet) {
        let new = self.state.functions.iter().any(|(site, function)| {
            matches!(function, SiteFunction::MinMax { .. } | SiteFunction::HerPn)
                && self.meta.functions.get(site) != Some(function)
        });
        // A warm start with its activations brings their statistics along.
        let warm = self.meta.config.warm_start.as_ref();
        let first = self.meta.epoch == 0 && !warm.is_some_and(|warm| warm.activations);
        if new || (self.meta.stage == 0 && first) {
            let order = data::permutation(set.len(), &mut self.rng(EpochStream::FirstStatistics));
            let indices = &order[..order.len().min(EVALUATION_BATCH)];
            let mut pass = self.batch_statistics(set.plain(indices), 1.0);
            if warm.is_some() || !first || self.meta.stage > 0 {
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
}

/// `[3, c]` coefficients of the quadratics nearest to ReLU; `damped` divides square and constant by
/// 10 and 5.
fn quadratics(moments: &[f32], damped: bool) -> Array {
    let channels = moments.len() / 2;
    let (means, variances) = moments.split_at(channels);
    let mut values = vec![0.0f32; 3 * channels];
    for (channel, (u, variance)) in means.iter().zip(variances).enumerate() {
        let [a, b, c] = relu_fit(f64::from(*u), f64::from(*variance).sqrt());
        let fit = match damped {
            true => [a / 10.0, b, c / 5.0],
            false => [a, b, c],
        };
        for (i, value) in fit.into_iter().enumerate() {
            values[i * channels + channel] = value as f32;
        }
    }
    Array {
        shape: vec![3, channels],
        values,
    }
}

impl Quail {
    /// Epochs of both its stages.
    pub(super) fn epochs(&self, network: &Network) -> usize {
        network.layers().len() * (self.layer_epochs + self.unfreeze_epochs)
    }
}

fn quail_replacement(method: &Method) -> Option<Replacement> {
    let Method::Quail(quail) = method else {
        return None;
    };
    Some(Replacement {
        sites: "*".to_owned(),
        by: match quail.norm {
            QuailNorm::None => Substitute::Square,
            QuailNorm::Amm => Substitute::SquareAmm,
            QuailNorm::Mm => Substitute::SquareMm,
        },
    })
}

/// First every layer in turn imitates the teacher's, from the image on; then the layers are
/// unfrozen, from the classifier back.
fn quail_phase(quail: &Quail, layers: &[std::ops::Range<usize>], done: usize) -> Phase {
    let imitation = layers.len() * quail.layer_epochs;
    if done < imitation {
        let layer = &layers[done / quail.layer_epochs];
        return Phase {
            train_from: layer.start,
            imitate: Some(layer.end - 1),
            epoch: done % quail.layer_epochs,
            epochs: quail.layer_epochs,
        };
    }
    let done = done - imitation;
    let unfrozen = done / quail.unfreeze_epochs;
    Phase {
        train_from: layers[layers.len() - 1 - unfrozen].start,
        imitate: None,
        epoch: done % quail.unfreeze_epochs,
        epochs: quail.unfreeze_epochs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quail_walks_forth_layer_by_layer_and_back_unfreezing() {
        let quail = Quail {
            norm: QuailNorm::Amm,
            layer_epochs: 2,
            unfreeze_epochs: 1,
        };
        let layers = [0..3, 3..5, 5..8];
        let phases: Vec<(usize, Option<usize>, usize)> = (0..9)
            .map(|done| quail_phase(&quail, &layers, done))
            .map(|phase| (phase.train_from, phase.imitate, phase.epoch))
            .collect();
        assert_eq!(
            phases,
            [
                (0, Some(2), 0),
                (0, Some(2), 1),
                (3, Some(4), 0),
                (3, Some(4), 1),
                (5, Some(7), 0),
                (5, Some(7), 1),
                (5, None, 0),
                (3, None, 0),
                (0, None, 0),
            ]
        );
    }
}
