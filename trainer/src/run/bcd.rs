//! Block coordinate descent on the ReLUs that are left (arXiv 2511.11781).
//!
//! A step draws random blocks of ReLUs over all layers and removes the first one that costs less accuracy than the
//! tolerance, or the cheapest of all drawn, on a fixed subset of the training images without augmentation and without any
//! change of weights; then the network is fine-tuned. The accuracy to compare with is measured anew in each step.

use std::collections::BTreeMap;

use anyhow::Result;
use pi_ir::graph::ActivationKind;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use serde_json::json;

use super::Run;
use crate::config::Bcd;
use crate::costs::{Costs, InPlace};
use crate::data::{self, Data};
use crate::network::state::Removed;

/// Points below which a loss of accuracy is noise of the subset: 5,000 images resolve 0.02.
const LEAST_POINTS: f64 = 0.02;

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
                let costs = Costs::load(&latency.costs)?;
                costs.check_profile(&latency.profile)?;
                Some((costs, latency.profile.as_str()))
            }
        };
        // The same images in every step of every run of this seed.
        let mut rng = ChaCha8Rng::seed_from_u64(self.meta.config.seed);
        rng.set_stream(0);
        let mut images = data::permutation(data.train.len(), &mut rng);
        images.truncate(bcd.images);
        let before = self.accuracy(&data.train, &images);
        let mut rng = self.rng(4);
        let kind = bcd.removed.kind();
        let kept = self.state.clone();
        let mut best: Option<(f64, f64, Block)> = None;
        let mut tried = 0;
        while tried < bcd.trials {
            let block = self.draw(size, costs.is_some() && tried % 2 == 1, &mut rng);
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

    /// A random block of remaining ReLUs, from all layers, or from one layer first.
    fn draw(&self, size: usize, one_layer: bool, rng: &mut impl RngCore) -> Block {
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
        if one_layer {
            let pool = pools.swap_remove(rng.next_u64() as usize % pools.len());
            block.extend(sample(pool, size, rng));
        }
        let rest: Block = pools.into_iter().flatten().collect();
        let missing = size - block.len();
        block.extend(sample(rest, missing, rng));
        block
    }

    /// Predicted milliseconds that removing a block saves: its ReLUs, and the messages of layers that it empties.
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
            saved += costs.saved_by(site, profile, count, in_place, left == count && !others)?;
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
