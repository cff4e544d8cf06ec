//! First-order saliency of activations: an estimate of what removing each position would cost.
//!
//! Replacing position `e` by another function changes the loss by about `sum over images of g *
//! (new(z) - old(z))`, where `g` is the gradient at the activation's output. The saliency is the
//! mean square of that sum over small batches. It costs one backward pass per batch, because the
//! sums are the gradients of the position's coefficients. (First-order pruning criteria go back to
//! Molchanov et al., ICLR 2017; here the change is that to another activation.)

use std::collections::BTreeMap;

use pi_ir::graph::ActivationKind;

use super::Context;
use crate::loss::cross_entropy;
use crate::network::{Mode, Request};
use crate::tensors::download;

/// Batches that positions are ranked on, of the stage's size, where nothing else is said.
pub(super) const RANKING_BATCHES: usize = 64;

/// A ranking of positions on training images.
pub(super) struct Ranking<'a> {
    /// Indices of the images.
    pub(super) images: &'a [usize],
    /// Images per batch.
    pub(super) batch: usize,
    /// Label smoothing of the loss.
    pub(super) label_smoothing: f32,
    /// Kind of the positions that would be removed.
    pub(super) from: ActivationKind,
}

impl Ranking<'_> {
    /// Mean square over batches of what removing each position changes of the loss, times the
    /// number of batches. `quadratic` gives the `[3, c]` quadratics of a site that are there or
    /// would take the place of its ReLUs; none if the identity would.
    pub(super) fn saliencies(
        &self,
        context: &Context<'_>,
        quadratic: impl Fn(&str) -> Option<Vec<f32>>,
    ) -> BTreeMap<String, Vec<f64>> {
        let masks = context.state.masks.iter();
        let mut squares: BTreeMap<String, Vec<f64>> = masks
            .map(|(site, kinds)| (site.clone(), vec![0.0; kinds.len()]))
            .collect();
        for indices in self.images.chunks(self.batch) {
            self.score(context, indices, &quadratic, &mut squares);
        }
        squares
    }

    /// Adds the squared first-order changes of one batch.
    fn score(
        &self,
        context: &Context<'_>,
        indices: &[usize],
        quadratic: &impl Fn(&str) -> Option<Vec<f32>>,
        squares: &mut BTreeMap<String, Vec<f64>>,
    ) {
        let state = &*context.state;
        let request = Request::of(Mode::Score);
        let pixels = context.data.train.plain(indices);
        let labels = context.data.train.labels(indices);
        let pass = context.network.forward(state, pixels, request);
        let loss = cross_entropy(pass.logits(), &labels, self.label_smoothing);
        let mut grads = loss.backward();
        for (site, coefficients) in pass.coefficients {
            let Some(gradient) = coefficients.grad_remove(&mut grads) else {
                continue;
            };
            let gradient = download(gradient);
            let squares = squares.get_mut(&site).expect("every masked site is ranked");
            let positions = squares.len();
            let poly = quadratic(&site);
            let channels = poly.as_ref().map_or(1, |poly| poly.len() / 3);
            let plane = positions / channels;
            // Rows of the gradient are those of the coefficients: of relu(z), z^2, z and 1.
            let by = |what: usize, e: usize| f64::from(gradient[what * positions + e]);
            for (e, total) in squares.iter_mut().enumerate() {
                // The identity is the quadratic 0 z^2 + 1 z + 0.
                let q = |i: usize| match &poly {
                    Some(poly) => f64::from(poly[i * channels + e / plane]),
                    None => f64::from(u8::from(i == 1)),
                };
                let polynomial = q(0) * by(1, e) + q(1) * by(2, e) + q(2) * by(3, e);
                let change = match self.from {
                    ActivationKind::Relu => polynomial - by(0, e),
                    _ => by(2, e) - polynomial,
                };
                *total += change * change;
            }
        }
    }
}
