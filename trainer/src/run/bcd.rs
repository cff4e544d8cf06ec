//! Block coordinate descent on the ReLUs that are left (arXiv 2511.11781).
//!
//! A step draws random blocks of ReLUs over all layers and removes the first one that costs less
//! accuracy than the tolerance, or the cheapest of all drawn, on a fixed subset of the training
//! images without augmentation and without any change of weights; then the network is fine-tuned.
//! The accuracy to compare with is measured anew in each step.
//!
//! A block of a hundred ReLUs drawn uniformly costs much the same as any other: its cost is a mean
//! over many positions. Blocks drawn by saliency ([`Draw::Saliency`], ours) differ, and what the
//! first-order estimate gets wrong the trial shows.

use std::collections::BTreeMap;

use anyhow::Result;
use pi_ir::costs::Costs;
use pi_ir::graph::ActivationKind;
use rand_core::RngCore;
use serde_json::json;

use super::Run;
use crate::config::{Bcd, Draw};
use crate::costs::{self, InPlace, Removal};
use crate::data::{self, Data};
use crate::network::state::Removed;
use crate::random::{EpochStream, RunStream};

/// Points below which a loss of accuracy is noise of the subset: 5,000 images resolve 0.02.
const LEAST_POINTS: f64 = 0.02;

/// Images a pass when saliency is measured: its mean square over batches needs some batches.
const SALIENCY_BATCH: usize = 128;

type Block = Vec<(String, usize)>;

impl Run {
    /// One step without its fine-tuning; returns what it did, for the log.
    pub(super) fn descend(&mut self, bcd: &Bcd, data: &Data) -> Result<serde_json::Value> {
        let relus = self.network.counts(&self.state).relus;
        let size = bcd.block.min(relus.saturating_sub(bcd.relus));
        if size == 0 {
            return Ok(json!({ "left": relus }));
        }
        let costs = match &bcd.latency {
            None => None,
            Some(latency) => {
                let costs = costs::load(&latency.costs)?;
                costs::profile(&costs, &latency.profile)?;
                Some((costs, latency.profile.as_str()))
            }
        };
        // The same images in every step of every run of this seed.
        let mut rng = RunStream::TRIAL_IMAGES.rng(self.meta.config.seed);
        let mut images = data::permutation(data.train.len(), &mut rng);
        images.truncate(bcd.images);
        let before = self.accuracy(&data.train, &images);
        let mut rng = self.rng(EpochStream::Trials);
        let kind = bcd.removed.kind();
        let saliency = match bcd.draw {
            Draw::Uniform => None,
            Draw::Saliency => Some(self.saliencies(
                &images,
                SALIENCY_BATCH,
                0.0,
                ActivationKind::Relu,
                |_| bcd.removed,
                data,
            )),
        };
        let kept = self.state.clone();
        let mut best: Option<(f64, f64, Block)> = None;
        let mut tried = 0;
        while tried < bcd.trials {
            let first = (costs.is_some() && tried % 2 == 1).then(|| rng.next_u64());
            let block = match &saliency {
                None => self.draw(size, first, |pool, size| sample(pool, size, &mut rng)),
                Some(saliency) => {
                    let t = tried as f64 / bcd.trials as f64;
                    let least = |pool, size| least_salient(pool, size, saliency, t, &mut rng);
                    self.draw(size, first, least)
                }
            };
            tried += 1;
            self.state.change(&self.network, &block, kind);
            let points = 100.0 * (before - self.accuracy(&data.train, &images));
            self.state = kept.clone();
            // What is minimised: points lost, or points lost per millisecond saved.
            let score = match &costs {
                None => points,
                Some((costs, profile)) => {
                    points.max(LEAST_POINTS)
                        / self.saved(&block, bcd.removed, costs, profile)?.max(1e-9)
                }
            };
            if best.as_ref().is_none_or(|(least, ..)| score < *least) {
                best = Some((score, points, block));
            }
            if costs.is_none() && points < bcd.tolerance {
                break;
            }
        }
        let (_, points, block) = best.expect("at least one block is tried");
        self.state.change(&self.network, &block, kind);
        Ok(json!({
            "left": relus - size,
            "tried": tried,
            "points_lost": points,
            "accuracy_before": before,
        }))
    }

    /// A block of remaining ReLUs, from all layers, or from one layer first, which a random number
    /// says.
    fn draw(
        &self,
        size: usize,
        first: Option<u64>,
        mut pick: impl FnMut(Block, usize) -> Block,
    ) -> Block {
        let of_site = |site: &String| -> Block {
            let kinds = self.state.masks[site].iter().enumerate();
            kinds
                .filter(|(_, kind)| **kind == ActivationKind::Relu)
                .map(|(e, _)| (site.clone(), e))
                .collect()
        };
        let sites: Vec<&String> = self.state.masks.keys().collect();
        let mut pools: Vec<Block> = sites
            .into_iter()
            .map(of_site)
            .filter(|p| !p.is_empty())
            .collect();
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

    /// Predicted milliseconds that removing a block saves: its ReLUs, and the messages of layers
    /// that it empties.
    fn saved(&self, block: &Block, removed: Removed, costs: &Costs, profile: &str) -> Result<f64> {
        let in_place = match removed {
            Removed::Identity => InPlace::Identity,
            Removed::Polynomial => InPlace::Polynomial,
        };
        let mut by_site: BTreeMap<&str, usize> = BTreeMap::new();
        for (site, _) in block {
            *by_site.entry(site).or_default() += 1;
        }
        let mut saved = 0.0;
        for (site, count) in by_site {
            let kinds = &self.state.masks[site];
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
