//! ReLUs that a replacement leaves where they are ([`Keep`](crate::network::Keep)): those of the
//! last sites, then whole channels by first-order saliency.

use std::collections::BTreeMap;

use anyhow::Result;
use pi_ir::graph::ActivationKind;

use super::first_order::{RANKING_BATCHES, Ranking};
use super::{Context, quadratics};
use crate::network::{Replacement, Substitute};
use crate::pattern::fits;

impl Context<'_> {
    /// Positions that stay ReLUs under a replacement, of those that are ReLUs now. `moments` are
    /// [`Self::input_moments`] where the replacement is [`Substitute::Fitted`].
    ///
    /// # Errors
    /// A drop-in that does not exist.
    ///
    /// # Cost
    /// One backward pass over 64 batches if the budget runs out within a site.
    pub(crate) fn kept(
        &self,
        replacement: &Replacement,
        moments: &BTreeMap<String, Vec<f32>>,
    ) -> Result<Vec<(String, usize)>> {
        let mut kept = Vec::new();
        let mut left = replacement.keep.map_or(0, |keep| keep.relus);
        let sites: Vec<(&str, [usize; 3])> = self.network.sites().collect();
        for (site, [channels, height, width]) in sites.into_iter().rev() {
            let Some(kinds) = self.state.masks.get(site) else {
                continue;
            };
            if !fits(&replacement.sites, site) {
                continue;
            }
            let relus = |kinds: &[ActivationKind]| -> usize {
                kinds.iter().filter(|k| **k == ActivationKind::Relu).count()
            };
            let planes: Vec<&[ActivationKind]> = kinds.chunks(height * width).collect();
            let counts: Vec<usize> = planes.into_iter().map(relus).collect();
            let stay = if counts.iter().sum::<usize>() <= left {
                vec![true; channels]
            } else if counts.iter().any(|count| (1..=left).contains(count)) {
                let saliency = self.channel_saliency(replacement, site, channels, moments)?;
                salient(&saliency, &counts, left)
            } else {
                break;
            };
            let of_site = kinds
                .iter()
                .enumerate()
                .filter(|(e, kind)| **kind == ActivationKind::Relu && stay[e / (height * width)]);
            let before = kept.len();
            kept.extend(of_site.map(|(e, _)| (site.to_owned(), e)));
            left -= kept.len() - before;
            if stay.contains(&false) {
                break;
            }
        }
        Ok(kept)
    }

    /// Sums over the ReLUs of each channel of what replacing them costs by first order.
    fn channel_saliency(
        &self,
        replacement: &Replacement,
        site: &str,
        channels: usize,
        moments: &BTreeMap<String, Vec<f32>>,
    ) -> Result<Vec<f64>> {
        let coefficients = match replacement.by {
            Substitute::Fitted { damped } => Some(quadratics(&moments[site], damped).values),
            by => by.quadratic()?.map(|coefficients| {
                let rows = coefficients.into_iter();
                rows.flat_map(|v| vec![v; channels]).collect()
            }),
        };
        let images = self.ranking_images(RANKING_BATCHES);
        let ranking = Ranking {
            images: &images,
            batch: self.stage.batch,
            label_smoothing: self.stage.label_smoothing,
            from: ActivationKind::Relu,
        };
        // Only this site is asked about: elsewhere the identity will do.
        let quadratic = |other: &str| match other == site {
            true => coefficients.clone(),
            false => None,
        };
        let squares = ranking.saliencies(self, quadratic).remove(site);
        let squares = squares.expect("every masked site is ranked");
        let kinds = &self.state.masks[site];
        let plane = kinds.len() / channels;
        let mut sums = vec![0.0; channels];
        for (e, (square, kind)) in squares.into_iter().zip(kinds).enumerate() {
            if *kind == ActivationKind::Relu {
                sums[e / plane] += square;
            }
        }
        Ok(sums)
    }
}

/// The channels that stay: the most salient ones, as many as the budget has room for.
fn salient(saliency: &[f64], counts: &[usize], budget: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    // A stable sort: ties are broken by place, so that a run is the same wherever it runs.
    order.sort_by(|a, b| saliency[*b].total_cmp(&saliency[*a]));
    let mut left = budget;
    let mut stay = vec![false; counts.len()];
    for channel in order {
        if counts[channel] > left {
            break;
        }
        left -= counts[channel];
        stay[channel] = true;
    }
    stay
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_salient_channels_stay_within_the_budget() {
        let saliency = [1.0, 5.0, 3.0, 3.0];
        assert_eq!(salient(&saliency, &[4; 4], 11), [false, true, true, false]);
        assert_eq!(salient(&saliency, &[4; 4], 12), [false, true, true, true]);
        // The next in rank does not fit, and one of less rank does not take its place.
        let stay = salient(&saliency, &[1, 4, 6, 2], 7);
        assert_eq!(stay, [false, true, false, false]);
    }
}
