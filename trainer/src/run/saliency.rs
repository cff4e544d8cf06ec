//! Cuts by first-order saliency.
//!
//! Replacing position `e` by another function changes the loss by about `sum over images of g *
//! (new(z) - old(z))`, `g` the gradient at the activation's output. The saliency is the mean square
//! of that sum over small batches; it costs one backward pass a batch, as the sums are the
//! gradients of the position's coefficients. ReLUs are cut to quadratics (at chosen sites), each
//! the best fit to ReLU under its channel's distribution, or to identities; quadratics to the
//! identity.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use pi_ir::graph::ActivationKind;

use super::{Run, cross_entropy};
use crate::config::{Cut, Saliency, StageConfig};
use crate::data::{self, Data};
use crate::network::state::Removed;
use crate::network::{Mode, Parameter, Request};
use crate::pattern::fits;
use crate::random::EpochStream;
use crate::tensors::download;

impl Run {
    pub(super) fn cut(
        &mut self,
        saliency: &Saliency,
        stage: &StageConfig,
        data: &Data,
    ) -> Result<()> {
        let sites: Vec<String> = self.state.masks.keys().cloned().collect();
        let polynomial = |site: &str| saliency.polynomial_sites.iter().any(|p| fits(p, site));
        for pattern in &saliency.polynomial_sites {
            ensure!(
                sites.iter().any(|site| fits(pattern, site)),
                "saliency.polynomial_sites: no masked site fits \"{pattern}\"; there are {}",
                sites.join(", ")
            );
        }
        let from = match saliency.from {
            Cut::Relu => ActivationKind::Relu,
            Cut::Polynomial => ActivationKind::Polynomial,
        };
        if saliency.from == Cut::Relu {
            let mut new = self.without_quadratics();
            new.retain(|site| polynomial(site));
            self.fit_quadratics(&new, false, &data.train);
        }
        let order = data::permutation(data.train.len(), &mut self.rng(EpochStream::SALIENCY));
        let count = order.len().min(stage.batch * saliency.batches);
        let removed = |site: &str| match saliency.from == Cut::Relu && polynomial(site) {
            true => Removed::Polynomial,
            false => Removed::Identity,
        };
        let squares = self.saliencies(
            &order[..count],
            stage.batch,
            stage.label_smoothing,
            from,
            removed,
            data,
        );
        let dropped = least(&squares, &self.state.masks, from, saliency.keep);
        let (to_polynomial, to_identity): (Vec<_>, Vec<_>) = dropped
            .into_iter()
            .partition(|(site, _)| removed(site) == Removed::Polynomial);
        self.state
            .change(&self.network, &to_polynomial, ActivationKind::Polynomial);
        self.state
            .change(&self.network, &to_identity, ActivationKind::Identity);
        self.state.drop_unused_quadratics();
        // The activations changed under the running statistics: measure them anew.
        self.renew_statistics(&data.train, stage.batch);
        Ok(())
    }

    /// Of each position, the mean square over batches of what removing it changes of the loss,
    /// times the number of batches.
    pub(super) fn saliencies(
        &self,
        images: &[usize],
        batch: usize,
        smoothing: f32,
        from: ActivationKind,
        removed: impl Fn(&str) -> Removed,
        data: &Data,
    ) -> BTreeMap<String, Vec<f64>> {
        let masks = self.state.masks.iter();
        let mut squares: BTreeMap<String, Vec<f64>> = masks
            .map(|(site, kinds)| (site.clone(), vec![0.0; kinds.len()]))
            .collect();
        for indices in images.chunks(batch) {
            self.score(indices, smoothing, from, &removed, data, &mut squares);
        }
        squares
    }

    /// Adds one batch's squared first-order changes.
    fn score(
        &self,
        indices: &[usize],
        smoothing: f32,
        from: ActivationKind,
        removed: &impl Fn(&str) -> Removed,
        data: &Data,
        squares: &mut BTreeMap<String, Vec<f64>>,
    ) {
        let request = Request::of(Mode::Score);
        let pixels = data.train.plain(indices);
        let labels = data.train.labels(indices);
        let pass = self
            .network
            .forward(&self.state, pixels, request, |_, _, _| {});
        let mut grads = cross_entropy(pass.logits(), &labels, smoothing).backward();
        for (site, coefficients) in pass.coefficients {
            let Some(gradient) = coefficients.grad_remove(&mut grads) else {
                continue;
            };
            let gradient = download(gradient);
            let squares = squares.get_mut(&site).expect("every masked site is ranked");
            let positions = squares.len();
            // The quadratic that is there, or that would take the place.
            let poly = match (from, removed(&site)) {
                (ActivationKind::Relu, Removed::Identity) => None,
                _ => self.state.parameter(&Parameter::Poly.of(&site)),
            };
            let channels = poly.as_ref().map_or(1, |poly| poly.len() / 3);
            let plane = positions / channels;
            let by = |what: usize, e: usize| f64::from(gradient[what * positions + e]);
            for (e, total) in squares.iter_mut().enumerate() {
                let q = |i: usize| match &poly {
                    Some(poly) => f64::from(poly[i * channels + e / plane]),
                    None => f64::from(u8::from(i == 1)),
                };
                let polynomial = q(0) * by(1, e) + q(1) * by(2, e) + q(2) * by(3, e);
                let change = match from {
                    ActivationKind::Relu => polynomial - by(0, e),
                    _ => by(2, e) - polynomial,
                };
                *total += change * change;
            }
        }
    }
}

/// All positions of kind `from` but the `keep` most salient.
fn least(
    squares: &BTreeMap<String, Vec<f64>>,
    masks: &crate::network::Masks,
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
    use crate::network::Masks;

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
