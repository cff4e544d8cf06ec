//! A cut by first-order saliency before the first epoch of a stage (ours; the estimate is that of
//! [`first_order`](super::first_order)).
//!
//! ReLUs are cut to quadratics at the sites that the configuration names, each the best fit to ReLU
//! under its channel's distribution, and to identities elsewhere. Quadratics are cut to the
//! identity. The stage then trains what is left.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use pi_ir::graph::ActivationKind;
use serde::{Deserialize, Serialize};

use super::first_order::{RANKING_BATCHES, Ranking};
use super::{Context, Hooks};
use crate::config::StageConfig;
use crate::network::state::Removed;
use crate::network::{Masks, Parameter};
use crate::pattern::fits;

/// Configuration of a cut by first-order saliency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saliency {
    /// Kind of the positions that are cut.
    pub from: Cut,
    /// Positions of that kind that stay.
    pub keep: usize,
    /// Sites whose dropped ReLUs become quadratics; elsewhere they become identities. `*` stands
    /// for any characters.
    #[serde(default)]
    pub polynomial_sites: Vec<String>,
    /// Batches that the positions are ranked on.
    #[serde(default = "ranking_batches")]
    pub batches: usize,
}

fn ranking_batches() -> usize {
    RANKING_BATCHES
}

/// Kind of the positions that a cut ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// ReLUs, against the quadratics or identities that would replace them.
    Relu,
    /// Quadratics, against the identity.
    Polynomial,
}

impl Hooks for Saliency {
    fn name(&self) -> &'static str {
        "saliency"
    }

    fn check(&self, _stage: &StageConfig, _polynomial_kernels: bool) -> Result<()> {
        ensure!(self.batches > 0, "saliency.batches must be at least 1");
        Ok(())
    }

    fn begin(&self, context: &mut Context<'_>) -> Result<usize> {
        self.cut(context)?;
        Ok(context.stage.epochs)
    }
}

impl Saliency {
    fn cut(&self, context: &mut Context<'_>) -> Result<()> {
        let sites: Vec<String> = context.state.masks.keys().cloned().collect();
        for pattern in &self.polynomial_sites {
            ensure!(
                sites.iter().any(|site| fits(pattern, site)),
                "saliency.polynomial_sites: no masked site fits \"{pattern}\"; there are {}",
                sites.join(", ")
            );
        }
        let from = match self.from {
            Cut::Relu => ActivationKind::Relu,
            Cut::Polynomial => ActivationKind::Polynomial,
        };
        let removed = |site: &str| self.removed(site);
        // Ranked are the quadratics that would take the ReLUs' places, so they must be there first.
        let mut new = context.without_quadratics();
        new.retain(|site| removed(site) == Removed::Polynomial);
        context.fit_quadratics(&new, false);
        let (images, stage) = (context.ranking_images(self.batches), context.stage);
        let ranking = Ranking {
            images: &images,
            batch: stage.batch,
            label_smoothing: stage.label_smoothing,
            from,
        };
        let state = &*context.state;
        let squares = ranking.saliencies(context, |site| match (from, removed(site)) {
            (ActivationKind::Relu, Removed::Identity) => None,
            _ => state.parameter(&Parameter::Poly.of(site)),
        });
        let dropped = least(&squares, &context.state.masks, from, self.keep);
        let (to_polynomial, to_identity): (Vec<_>, Vec<_>) = dropped
            .into_iter()
            .partition(|(site, _)| removed(site) == Removed::Polynomial);
        for (positions, kind) in [
            (to_polynomial, ActivationKind::Polynomial),
            (to_identity, ActivationKind::Identity),
        ] {
            context.state.change(context.network, &positions, kind);
        }
        context.state.drop_unused_quadratics();
        // The activations changed under the running statistics: measure them anew.
        context.renew_statistics();
        Ok(())
    }

    /// Function that a dropped position of a site gets.
    fn removed(&self, site: &str) -> Removed {
        let named = self.polynomial_sites.iter().any(|p| fits(p, site));
        match self.from == Cut::Relu && named {
            true => Removed::Polynomial,
            false => Removed::Identity,
        }
    }
}

/// All positions of kind `from` but the `keep` most salient.
fn least(
    squares: &BTreeMap<String, Vec<f64>>,
    masks: &Masks,
    from: ActivationKind,
    keep: usize,
) -> Vec<(String, usize)> {
    let mut ranked: Vec<(f64, &String, usize)> = squares
        .iter()
        .flat_map(|(site, squares)| squares.iter().enumerate().map(move |(e, s)| (*s, site, e)))
        .filter(|(_, site, e)| masks[*site][*e] == from)
        .collect();
    // Ties are broken by place, so that a run is the same wherever it runs.
    ranked.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
    });
    ranked
        .into_iter()
        .skip(keep)
        .map(|(_, site, e)| (site.clone(), e))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cut_keeps_the_most_salient_of_its_kind() {
        use ActivationKind::{Identity, Relu};
        let masks = Masks::from([
            ("a".to_owned(), vec![Relu, Relu, Identity, Relu]),
            ("b".to_owned(), vec![Relu, Relu]),
        ]);
        let squares = BTreeMap::from([
            ("a".to_owned(), vec![3.0, 1.0, 9.0, 2.0]),
            ("b".to_owned(), vec![2.0, 5.0]),
        ]);
        // 5, 3, and the first of the two 2s stay; the position that is no ReLU is not counted.
        let dropped = least(&squares, &masks, Relu, 3);
        assert_eq!(dropped, [("b".to_owned(), 0), ("a".to_owned(), 1)]);
    }
}
