//! BCD: block coordinate descent on the ReLUs that are left (arXiv 2511.11781).
//!
//! Published: a step draws random blocks of ReLUs over all layers and removes the first one that
//! costs less accuracy than the tolerance, or the cheapest of all drawn. The cost is measured on a
//! fixed subset of the training images, without augmentation and without any change of weights;
//! then the network is fine-tuned. The accuracy to compare with is measured anew in each step.
//!
//! Ours:
//! - Blocks drawn by saliency ([`Draw::Saliency`]). A block of a hundred ReLUs drawn uniformly
//!   costs much the same as any other, because its cost is a mean over many positions. Blocks drawn
//!   by saliency differ, and the trial corrects what the first-order estimate gets wrong.
//! - Ranking by the latency that the compiler predicts ([`Bcd::latency`]): points of accuracy lost
//!   per millisecond saved, with every other block drawn from one layer first, as a layer without
//!   any ReLU saves its messages too.
//! - A removed position may become a quadratic.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use pi_ir::costs::Costs;
use pi_ir::graph::ActivationKind;
use rand_core::RngCore;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::first_order::Ranking;
use super::{Context, Hooks, Phase, Position};
use crate::config::{MAX_EPOCHS, StageConfig};
use crate::costs::{self, InPlace, Removal};
use crate::data;
use crate::network::state::Removed;
use crate::network::{Masks, Parameter, State};
use crate::pattern::fits;
use crate::random::{EpochStream, RunStream};

/// Configuration of block coordinate descent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bcd {
    /// ReLUs that stay, of those at `sites`.
    pub relus: usize,
    /// Sites that ReLUs are removed from, `*` for any characters. Those elsewhere stay, and are
    /// not counted.
    #[serde(default = "all_sites")]
    pub sites: String,
    /// ReLUs removed in a step (the paper's DRC).
    pub block: usize,
    /// Random blocks tried in a step (RT).
    pub trials: usize,
    /// The first block that costs fewer points of accuracy than this is taken (ADT).
    pub tolerance: f64,
    /// Training images that blocks are ranked on: the same ones in every step, not augmented.
    #[serde(default = "ranking_images")]
    pub images: usize,
    /// Epochs of fine-tuning after each step.
    pub step_epochs: usize,
    /// Distribution that blocks are drawn from.
    #[serde(default)]
    pub draw: Draw,
    /// Function of a removed position.
    #[serde(default)]
    pub removed: Removed,
    /// Ranks by latency saved per point lost instead of by accuracy alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

fn all_sites() -> String {
    "*".to_owned()
}

fn ranking_images() -> usize {
    5000
}

/// Distribution that BCD draws a block from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Draw {
    /// Every remaining ReLU alike (the paper).
    #[default]
    Uniform,
    /// Ours: by first-order saliency, measured anew in each step. The first block tried is the
    /// least salient; later ones are drawn with weights `saliency^(-1/t)`, `t` growing from 0
    /// towards 1.
    Saliency,
}

/// Costs that the compiler predicts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// File that `pi-compile` wrote for this network.
    pub costs: PathBuf,
    /// Network profile in that file.
    pub profile: String,
}

/// Points below which a loss of accuracy is noise of the subset: 5,000 images resolve 0.02.
const LEAST_POINTS: f64 = 0.02;

/// Images per pass when saliency is measured: a mean square over batches needs several of them.
const SALIENCY_BATCH: usize = 128;

type Block = Vec<(String, usize)>;

impl Hooks for Bcd {
    fn name(&self) -> &'static str {
        "bcd"
    }

    fn check(&self, stage: &StageConfig, _polynomial_kernels: bool) -> Result<()> {
        ensure!(
            self.block > 0
                && self.trials > 0
                && self.images > 0
                && (1..=MAX_EPOCHS).contains(&self.step_epochs),
            "bcd: block, trials, images and step_epochs must be at least 1"
        );
        ensure!(
            self.tolerance >= 0.0 && self.tolerance.is_finite(),
            "bcd.tolerance is {}, must be points of accuracy, not negative and finite (100 always \
             takes the first block)",
            self.tolerance
        );
        ensure!(
            stage.epochs == 0,
            "BCD counts its own epochs: give step_epochs, not epochs"
        );
        Ok(())
    }

    fn counts_own_epochs(&self) -> bool {
        true
    }

    fn begin(&self, context: &mut Context<'_>) -> Result<usize> {
        let relus = self.left(context.state);
        ensure!(
            relus >= self.relus,
            "BCD is to leave {} ReLUs at the sites \"{}\", and there are only {relus}",
            self.relus,
            self.sites
        );
        if self.removed == Removed::Polynomial {
            let mut sites = context.without_quadratics();
            sites.retain(|site| fits(&self.sites, site));
            context.fit_quadratics(&sites, false);
        }
        let steps = (relus - self.relus).div_ceil(self.block);
        Ok(steps * self.step_epochs)
    }

    fn phase(&self, at: &Position<'_>) -> Phase {
        Phase::whole(at.done % self.step_epochs, self.step_epochs)
    }

    fn before_epoch(
        &self,
        phase: Phase,
        context: &mut Context<'_>,
    ) -> Result<Option<serde_json::Value>> {
        match phase.epoch {
            0 => self.descend(context).map(Some),
            _ => Ok(None),
        }
    }

    fn end(&self, context: &mut Context<'_>) {
        context.state.drop_unused_quadratics();
    }
}

impl Bcd {
    /// ReLUs at the sites of the method.
    fn left(&self, state: &State) -> usize {
        let masks = state.masks.iter();
        let own = masks.filter(|(site, _)| fits(&self.sites, site));
        own.flat_map(|(_, kinds)| kinds)
            .filter(|kind| **kind == ActivationKind::Relu)
            .count()
    }

    /// One step without its fine-tuning; returns what it did, for the log.
    fn descend(&self, context: &mut Context<'_>) -> Result<serde_json::Value> {
        let relus = self.left(context.state);
        let size = self.block.min(relus.saturating_sub(self.relus));
        if size == 0 {
            return Ok(json!({ "left": relus }));
        }
        let costs = match &self.latency {
            None => None,
            Some(latency) => {
                let costs = costs::load(&latency.costs)?;
                costs::profile(&costs, &latency.profile)?;
                Some((costs, latency.profile.as_str()))
            }
        };
        // The same images in every step of every run of this seed.
        let train = &context.data.train;
        let mut images =
            data::permutation(train.len(), &mut RunStream::TRIAL_IMAGES.rng(context.seed));
        images.truncate(self.images);
        let before = context.accuracy(&images);
        let mut rng = context.rng(EpochStream::Trials);
        let kind = self.removed.kind();
        let saliency = match self.draw {
            Draw::Uniform => None,
            Draw::Saliency => {
                let ranking = Ranking {
                    images: &images,
                    batch: SALIENCY_BATCH,
                    label_smoothing: 0.0,
                    from: ActivationKind::Relu,
                };
                let state = &*context.state;
                Some(ranking.saliencies(context, |site| match self.removed {
                    Removed::Identity => None,
                    Removed::Polynomial => state.parameter(&Parameter::Poly.of(site)),
                }))
            }
        };
        let kept = context.state.clone();
        let mut best: Option<(f64, f64, Block)> = None;
        let mut tried = 0;
        while tried < self.trials {
            let first = (costs.is_some() && tried % 2 == 1).then(|| rng.next_u64());
            let own = |site: &str| fits(&self.sites, site);
            let pools = pools(&context.state.masks, own);
            let block = match &saliency {
                None => draw(pools, size, first, |pool, size| {
                    sample(pool, size, &mut rng)
                }),
                Some(saliency) => {
                    let t = tried as f64 / self.trials as f64;
                    let least = |pool, size| least_salient(pool, size, saliency, t, &mut rng);
                    draw(pools, size, first, least)
                }
            };
            tried += 1;
            context.state.change(context.network, &block, kind);
            let points = 100.0 * (before - context.accuracy(&images));
            *context.state = kept.clone();
            // Minimised are the points lost, or the points lost per millisecond saved.
            let score = match &costs {
                None => points,
                Some((costs, profile)) => {
                    let saved = self.saved(context.state, &block, costs, profile)?;
                    points.max(LEAST_POINTS) / saved.max(1e-9)
                }
            };
            if best.as_ref().is_none_or(|(least, ..)| score < *least) {
                best = Some((score, points, block));
            }
            if costs.is_none() && points < self.tolerance {
                break;
            }
        }
        let (_, points, block) = best.expect("at least one block is tried");
        context.state.change(context.network, &block, kind);
        Ok(json!({
            "left": relus - size,
            "tried": tried,
            "points_lost": points,
            "accuracy_before": before,
        }))
    }

    /// Predicted milliseconds that removing a block saves: its ReLUs, and the messages of layers
    /// that it empties.
    fn saved(&self, state: &State, block: &Block, costs: &Costs, profile: &str) -> Result<f64> {
        let in_place = match self.removed {
            Removed::Identity => InPlace::Identity,
            Removed::Polynomial => InPlace::Polynomial,
        };
        let mut by_site: BTreeMap<&str, usize> = BTreeMap::new();
        for (site, _) in block {
            *by_site.entry(site).or_default() += 1;
        }
        let mut saved = 0.0;
        for (site, count) in by_site {
            let kinds = &state.masks[site];
            let left = kinds.iter().filter(|k| **k == ActivationKind::Relu).count();
            let others = kinds.contains(&ActivationKind::Polynomial);
            let removal = Removal {
                relus: count,
                in_place,
                empties: left == count && !others,
            };
            saved += costs::saved(costs, site, profile, removal)?;
        }
        Ok(saved)
    }
}

/// The remaining ReLUs of each site that is `own` and has any.
fn pools(masks: &Masks, own: impl Fn(&str) -> bool) -> Vec<Block> {
    let of_site = |(site, kinds): (&String, &Vec<ActivationKind>)| -> Block {
        let kinds = kinds.iter().enumerate();
        kinds
            .filter(|(_, kind)| **kind == ActivationKind::Relu)
            .map(|(e, _)| (site.clone(), e))
            .collect()
    };
    let sites = masks.iter().filter(|(site, _)| own(site));
    sites.map(of_site).filter(|pool| !pool.is_empty()).collect()
}

/// A block of remaining ReLUs, drawn from all layers; or, given a random number, first from the one
/// layer that the number names and then from all others.
fn draw(
    mut pools: Vec<Block>,
    size: usize,
    first: Option<u64>,
    mut pick: impl FnMut(Block, usize) -> Block,
) -> Block {
    let mut block = Block::new();
    if let Some(random) = first {
        let pool = pools.swap_remove(random as usize % pools.len());
        block.extend(pick(pool, size));
    }
    let rest: Block = pools.into_iter().flatten().collect();
    let missing = size - block.len();
    block.extend(pick(rest, missing));
    block
}

/// `size` different elements of a pool (all of it if it is smaller).
fn sample(mut pool: Block, size: usize, rng: &mut impl RngCore) -> Block {
    let size = size.min(pool.len());
    for i in 0..size {
        let j = i + (rng.next_u64() % (pool.len() - i) as u64) as usize;
        pool.swap(i, j);
    }
    pool.truncate(size);
    pool
}

/// `size` different elements of a pool (all of it if it is smaller), drawn one after the other with
/// weights `saliency^(-1/t)`, which are the least salient ones if `t` is zero.
fn least_salient(
    pool: Block,
    size: usize,
    saliency: &BTreeMap<String, Vec<f64>>,
    t: f64,
    rng: &mut impl RngCore,
) -> Block {
    let mut ranked: Vec<(f64, (String, usize))> = pool
        .into_iter()
        .map(|(site, e)| {
            // The greatest of log-weights plus Gumbel noise is such a draw; here everything is
            // times -t.
            let uniform = (rng.next_u64() >> 11) as f64 + 0.5;
            let gumbel = -(-(uniform / (1u64 << 53) as f64).ln()).ln();
            let log = saliency[&site][e].max(f64::MIN_POSITIVE).ln();
            (log - t * gumbel, (site, e))
        })
        .collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    ranked.truncate(size);
    ranked.into_iter().map(|(_, position)| position).collect()
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn the_least_salient_come_first_and_noise_lets_others_in_by_their_weight() {
        let saliency = BTreeMap::from([
            ("a".to_owned(), vec![4.0, 0.0, 2.0]),
            ("b".to_owned(), vec![1.0]),
        ]);
        let pool = |names: [(&str, usize); 3]| -> Block {
            names.map(|(site, e)| (site.to_owned(), e)).to_vec()
        };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let all = pool([("a", 0), ("a", 2), ("b", 0)]);
        let two = least_salient(all.clone(), 2, &saliency, 0.0, &mut rng);
        assert_eq!(two, [("b".to_owned(), 0), ("a".to_owned(), 2)]);
        // A saliency of zero is the first whatever the noise.
        for _ in 0..100 {
            let pool = pool([("a", 0), ("a", 1), ("b", 0)]);
            let one = least_salient(pool, 1, &saliency, 1.0, &mut rng);
            assert_eq!(one, [("a".to_owned(), 1)]);
        }
        // Saliencies of 4, 2 and 1 at t = 1: first with probability 1/7, 2/7 and 4/7.
        let mut counts = [0; 3];
        for _ in 0..7000 {
            let first = least_salient(all.clone(), 1, &saliency, 1.0, &mut rng);
            counts[all.iter().position(|p| *p == first[0]).unwrap()] += 1;
        }
        for (count, expected) in counts.into_iter().zip([1000, 2000, 4000]) {
            assert!(i32::abs(count - expected) < 150, "{counts:?}");
        }
    }
}
