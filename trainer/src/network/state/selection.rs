//! A selection: training decides which ReLUs stay.

use pi_ir::graph::ActivationKind;
use serde::{Deserialize, Serialize};

use super::State;
use crate::checkpoint::Array;
use crate::network::{Buffer, Network, Parameter, SiteFunction};
use crate::tensors::{Tensors, download_all};

/// A selection under way: each ReLU position has a trained weight `keep` that says whether it
/// stays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// Way from `keep` to a factor.
    pub indicator: Indicator,
    /// Function of a position without ReLU.
    pub removed: Removed,
}

/// Way from a position's weight to the factor `m` of `m relu(z) + (1 - m) q(z)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Indicator {
    /// The weight is the factor (SNL, ICML 2022).
    Real,
    /// The factor is one above `width`, zero below `-width`, unchanged between; its gradient goes
    /// straight through (AutoReP, ICCV 2023). Buffer `kept`: `[c, h, w]`, the factor of the last
    /// step.
    Hysteresis {
        /// Half the width of the band in which nothing changes.
        width: f32,
    },
}

/// Function of a position that lost its ReLU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removed {
    /// The identity: linearisation.
    #[default]
    Identity,
    /// The channel's quadratic.
    Polynomial,
}

impl Removed {
    /// The kind of such a position.
    pub fn kind(self) -> ActivationKind {
        match self {
            Removed::Identity => ActivationKind::Identity,
            Removed::Polynomial => ActivationKind::Polynomial,
        }
    }
}

impl State {
    /// Begins a selection over the ReLUs: every position gets a weight, `start` at first.
    pub fn begin_selection(&mut self, network: &Network, selection: Selection, start: f32) {
        self.selection = Some(selection);
        for (site, shape) in network.sites() {
            if self.functions[site] == SiteFunction::Masked {
                self.add_selection(site, shape, selection);
                let keep = Array::filled(&shape, start);
                self.put_parameter(&Parameter::Keep.of(site), keep);
            }
        }
    }

    pub(super) fn add_selection(&mut self, site: &str, shape: [usize; 3], selection: Selection) {
        self.put_parameter(&Parameter::Keep.of(site), Array::filled(&shape, 1.0));
        if matches!(selection.indicator, Indicator::Hysteresis { .. }) {
            self.put_buffer(&Buffer::Kept.of(site), Array::filled(&shape, 1.0));
        }
        if selection.removed == Removed::Polynomial {
            self.ensure_quadratic(site, shape[0]);
        }
    }

    /// ReLUs that the selection keeps at the moment: factors above `threshold`.
    pub fn selected(&self, threshold: f32) -> usize {
        let factors: Tensors = self
            .masks
            .keys()
            .filter_map(|site| {
                let kept = self.buffers.get(&Buffer::Kept.of(site));
                let factor = kept.or_else(|| self.parameters.get(&Parameter::Keep.of(site)))?;
                Some((site.clone(), factor.clone()))
            })
            .collect();
        download_all(&factors)
            .iter()
            .map(|(site, factors)| {
                let kinds = self.masks[site].iter().zip(factors);
                kinds
                    .filter(|(kind, f)| **kind == ActivationKind::Relu && **f > threshold)
                    .count()
            })
            .sum()
    }

    /// Ends the selection: the `budget` ReLUs of the largest weights stay, the others become what
    /// the selection says.
    ///
    /// Within a hysteresis' band the weight does not say whether a position is kept: those that are
    /// kept come before those that are not.
    pub fn end_selection(&mut self, network: &Network, budget: usize) {
        let Some(selection) = self.selection.take() else {
            return;
        };
        // One transfer for all sites.
        let by_site = |tensors: &Tensors, name: &dyn Fn(&str) -> String| {
            let sites = self.masks.keys();
            let own =
                sites.filter_map(|site| Some((site.clone(), tensors.get(&name(site))?.clone())));
            download_all(&own.collect())
        };
        let keeps = by_site(&self.parameters, &|site| Parameter::Keep.of(site));
        let indicators = by_site(&self.buffers, &|site| Buffer::Kept.of(site));
        let mut ranked: Vec<(f32, f32, &str, usize)> = Vec::new();
        for (site, kinds) in &self.masks {
            let Some(keep) = keeps.get(site) else {
                continue;
            };
            let kept = indicators.get(site);
            for (e, (kind, keep)) in kinds.iter().zip(keep).enumerate() {
                if *kind == ActivationKind::Relu {
                    let kept = kept.map_or(1.0, |kept| kept[e]);
                    ranked.push((kept, *keep, site, e));
                }
            }
        }
        // Ties are broken by place, so that a run is the same wherever it runs.
        ranked.sort_by(|a, b| {
            (b.0.total_cmp(&a.0))
                .then_with(|| b.1.total_cmp(&a.1))
                .then_with(|| (a.2, a.3).cmp(&(b.2, b.3)))
        });
        let dropped: Vec<(String, usize)> = ranked
            .into_iter()
            .skip(budget)
            .map(|(_, _, site, e)| (site.to_owned(), e))
            .collect();
        self.change(network, &dropped, selection.removed.kind());
        for (site, _) in network.sites() {
            self.remove(&Parameter::Keep.of(site));
            self.remove(&Buffer::Kept.of(site));
        }
        self.drop_unused_quadratics();
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::network::state::tests::{network, state};
    use crate::tensors::upload;

    #[test]
    fn within_a_hysteresis_the_kept_positions_stay() {
        let network = network();
        let mut state = state(&[]);
        let selection = Selection {
            indicator: Indicator::Hysteresis { width: 0.003 },
            removed: Removed::Identity,
        };
        state.begin_selection(&network, selection, 0.01);
        // Of the first site four positions are left: 0 fell and rose again within the band, 2 has
        // not fallen yet.
        let site = "stem.act";
        for name in state.masks.keys().cloned().collect::<Vec<_>>() {
            for what in ["keep", "kept"] {
                let name = format!("{name}.{what}");
                let tensors = match what {
                    "keep" => &mut state.parameters,
                    _ => &mut state.buffers,
                };
                let count = tensors[&name].dims()[0];
                let mut values = vec![if what == "keep" { -1.0 } else { 0.0 }; count];
                if name.starts_with(site) {
                    values[..4].copy_from_slice(match what {
                        "keep" => &[0.002, 0.5, -0.002, -0.5],
                        _ => &[0.0, 1.0, 1.0, 0.0],
                    });
                }
                tensors.insert(name, upload(values, &Device::flex()));
            }
        }
        state.end_selection(&network, 2);
        let relus: Vec<usize> = state.masks[site]
            .iter()
            .enumerate()
            .filter(|(_, kind)| **kind == ActivationKind::Relu)
            .map(|(e, _)| e)
            .collect();
        assert_eq!(relus, [1, 2]);
        assert_eq!(network.counts(&state).relus, 2);
    }
}
