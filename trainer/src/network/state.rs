//! Parameters, running statistics and masks of a network, as tensors that stay on the device.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use pi_ir::graph::ActivationKind;
use rand_core::RngCore;
use serde::{Deserialize, Serialize};

use super::{Buffer, Masks, Network, Parameter, Replacement, SiteFunction, Substitute};
use crate::checkpoint::{Array, Arrays};
use crate::kernels::NORM_EPSILON;
use crate::pattern::fits;
use crate::tensors::{Tensors, download, download_all, upload};

/// How many times the running variance a batch's counts at most.
pub const VARIANCE_LIMIT: f32 = 4.0;

/// A selection under way: each ReLU position has a trained weight `keep` that says whether it
/// stays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// How `keep` becomes a factor.
    pub indicator: Indicator,
    /// What a position without ReLU computes.
    pub removed: Removed,
}

/// How a position's weight becomes the factor `m` of `m relu(z) + (1 - m) q(z)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Indicator {
    /// It is the factor (SNL, ICML 2022).
    Real,
    /// One above `width`, zero below `-width`, unchanged between; its gradient goes straight
    /// through (AutoReP, ICCV 2023). Buffer `kept`: `[c, h, w]`, the factor of the last step.
    Hysteresis {
        /// Half the width of the band in which nothing changes.
        width: f32,
    },
}

/// What a position computes that lost its ReLU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removed {
    /// Nothing: linearisation.
    #[default]
    Identity,
    /// Its channel's quadratic.
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

/// Everything the forward pass reads besides the image.
#[derive(Clone, Debug)]
pub struct State {
    /// What stands at each activation site.
    pub functions: BTreeMap<String, SiteFunction>,
    /// Kind of each position of the sites with [`SiteFunction::Masked`].
    pub masks: Masks,
    /// Trained parameters.
    pub parameters: Tensors,
    /// Running statistics.
    pub buffers: Tensors,
    /// The selection under way.
    pub selection: Option<Selection>,
    shapes: BTreeMap<String, Vec<usize>>,
    planes: BTreeMap<String, Planes>,
    device: Device,
}

/// The mask of a site on the device: `[1, c, h, w]`, one where a position is of the kind.
#[derive(Clone, Debug)]
pub(super) struct Planes {
    pub(super) relu: Tensor<4>,
    pub(super) identity: Tensor<4>,
    /// None where there is none.
    pub(super) polynomial: Option<Tensor<4>>,
    /// `[4, c, h, w]`: the coefficients of a site without quadratics.
    pub(super) fixed: Tensor<4>,
}

impl State {
    /// Random parameters on `device`, a ReLU at every position, then the network's own activations.
    ///
    /// # Errors
    /// A replacement that fits no site.
    pub fn new(
        network: &Network,
        activations: &[Replacement],
        rng: &mut impl RngCore,
        device: &Device,
    ) -> Result<Self> {
        let (parameters, buffers) = network.initialise(rng);
        let mut state = State {
            functions: BTreeMap::new(),
            masks: Masks::new(),
            parameters: Tensors::new(),
            buffers: Tensors::new(),
            selection: None,
            shapes: BTreeMap::new(),
            planes: BTreeMap::new(),
            device: device.clone(),
        };
        for (name, array) in parameters {
            state.put_parameter(&name, array);
        }
        for (name, array) in buffers {
            state.put_buffer(&name, array);
        }
        for (site, shape) in network.sites() {
            state
                .functions
                .insert(site.to_owned(), SiteFunction::Masked);
            let count = shape.iter().product();
            state.set_mask(site, shape, vec![ActivationKind::Relu; count]);
        }
        for replacement in activations {
            ensure!(
                !matches!(replacement.by, Substitute::Fitted { .. }),
                "network.activations: \"fitted\" needs a trained network; use it in a stage's replace"
            );
            state.replace(network, replacement)?;
        }
        Ok(state)
    }

    /// The device that holds the tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Sets a parameter of any name.
    pub fn put_parameter(&mut self, name: &str, array: Array) {
        self.shapes.insert(name.to_owned(), array.shape);
        let tensor = upload(array.values, &self.device);
        self.parameters.insert(name.to_owned(), tensor);
    }

    /// Sets a running statistic of any name.
    pub fn put_buffer(&mut self, name: &str, array: Array) {
        self.shapes.insert(name.to_owned(), array.shape);
        let tensor = upload(array.values, &self.device);
        self.buffers.insert(name.to_owned(), tensor);
    }

    /// Values of a parameter on the host.
    pub fn parameter(&self, name: &str) -> Option<Vec<f32>> {
        self.parameters.get(name).cloned().map(download)
    }

    /// Values of a running statistic on the host.
    pub fn buffer(&self, name: &str) -> Option<Vec<f32>> {
        self.buffers.get(name).cloned().map(download)
    }

    /// Parameters as arrays, in one transfer.
    pub fn parameter_arrays(&self) -> Arrays {
        self.arrays(&self.parameters)
    }

    /// Running statistics as arrays, in one transfer.
    pub fn buffer_arrays(&self) -> Arrays {
        self.arrays(&self.buffers)
    }

    fn arrays(&self, tensors: &Tensors) -> Arrays {
        download_all(tensors)
            .into_iter()
            .map(|(name, values)| {
                let shape = self.shapes[&name].clone();
                (name, Array { shape, values })
            })
            .collect()
    }

    /// Takes over the tensors, site functions and masks of a file, which must be those of this network.
    ///
    /// # Errors
    /// An array, a function or a mask that is missing, superfluous or of another shape, by name.
    pub fn restore(
        &mut self,
        network: &Network,
        functions: BTreeMap<String, SiteFunction>,
        selection: Option<Selection>,
        parameters: Arrays,
        buffers: Arrays,
        masks: &BTreeMap<String, Vec<u8>>,
    ) -> Result<()> {
        self.selection = selection;
        for (site, shape) in network.sites() {
            let function = functions
                .get(site)
                .with_context(|| format!("the checkpoint says nothing of the activation {site}"))?;
            self.set_function(site, shape[0], *function);
            if *function != SiteFunction::Masked {
                continue;
            }
            let codes = masks
                .get(site)
                .filter(|codes| codes.len() == shape.iter().product::<usize>())
                .with_context(|| format!("the checkpoint has no whole mask for {site}"))?;
            let kinds = codes
                .iter()
                .map(|code| {
                    decode_kind(*code)
                        .with_context(|| format!("the mask of {site} has an unknown kind {code}"))
                })
                .collect::<Result<_>>()?;
            self.set_mask(site, shape, kinds);
            if parameters.contains_key(&Parameter::Poly.of(site)) {
                // Coefficients may stand ready for positions that lose their ReLU later.
                self.ensure_quadratic(site, shape[0]);
            }
            if let Some(selection) = selection {
                self.add_selection(site, shape, selection);
            }
        }
        let own = [self.parameters.keys(), self.buffers.keys()];
        for (own, theirs) in own.into_iter().zip([&parameters, &buffers]) {
            for name in own {
                let array = theirs.get(name).with_context(|| {
                    format!(
                        "the checkpoint's arrays are not those of its network: {name} is missing"
                    )
                })?;
                ensure!(
                    array.shape == self.shapes[name],
                    "the checkpoint's arrays are not those of its network: {name} is {:?}, expected {:?}",
                    array.shape,
                    self.shapes[name]
                );
            }
        }
        for name in parameters.keys().chain(buffers.keys()) {
            ensure!(
                self.parameters.contains_key(name) || self.buffers.contains_key(name),
                "the checkpoint's arrays are not those of its network: it has no {name}"
            );
        }
        for (name, array) in parameters {
            self.put_parameter(&name, array);
        }
        for (name, array) in buffers {
            self.put_buffer(&name, array);
        }
        Ok(())
    }

    /// Masks as bytes for a file.
    pub fn mask_codes(&self) -> BTreeMap<String, Vec<u8>> {
        self.masks
            .iter()
            .map(|(site, kinds)| {
                (
                    site.clone(),
                    kinds.iter().copied().map(encode_kind).collect(),
                )
            })
            .collect()
    }

    /// Moves the running statistics towards a batch's by `rate`.
    ///
    /// Behind polynomials a single image can have values of hundreds. The batch's variance is then
    /// a thousand times the usual one, and would stay in the running one for fifty steps, in which
    /// nothing is recognised (measured: 35 in place of 85 % after an epoch that ended so). Where a
    /// batch's variance is above [`VARIANCE_LIMIT`] times the running one, it counts as that limit,
    /// and its mean as at most the limit's square root away from the running one.
    pub fn track(&mut self, batch: Tensors, rate: f32) {
        for (name, batch) in batch {
            let running = self.buffers.get_mut(&name).expect("one buffer a statistic");
            let old = running.clone();
            let batch = match norms(&name) {
                None => batch,
                Some(norms) => typical(batch, old.clone(), norms),
            };
            *running = old.clone() + (batch - old).mul_scalar(rate);
        }
    }

    /// Rewrites the mask of a masked site. Quadratics begin as the identity where the site had
    /// none; coefficients that no position uses any more vanish.
    ///
    /// # Panics
    /// If `kinds` is not one per element of `shape`.
    pub fn set_mask(&mut self, site: &str, shape: [usize; 3], kinds: Vec<ActivationKind>) {
        let [c, h, w] = shape;
        assert_eq!(kinds.len(), c * h * w, "one kind a position of {site}");
        let plane = |kind| -> Vec<f32> {
            kinds
                .iter()
                .map(|k| f32::from(u8::from(*k == kind)))
                .collect()
        };
        let upload = |values: Vec<f32>, depth| {
            Tensor::<4>::from_data(TensorData::new(values, [depth, c, h, w]), &self.device)
        };
        let (relu, identity) = (plane(ActivationKind::Relu), plane(ActivationKind::Identity));
        let zeros = vec![0.0f32; kinds.len()];
        let fixed = [&relu[..], &zeros, &identity, &zeros].concat();
        let polynomial = plane(ActivationKind::Polynomial);
        let uses = polynomial.contains(&1.0);
        let planes = Planes {
            relu: upload(relu, 1),
            identity: upload(identity, 1),
            polynomial: uses.then(|| upload(polynomial, 1)),
            fixed: upload(fixed, 4),
        };
        self.planes.insert(site.to_owned(), planes);
        self.masks.insert(site.to_owned(), kinds);
        if uses {
            self.ensure_quadratic(site, c);
        } else if self.selection.is_none() {
            self.remove(&Parameter::Poly.of(site));
        }
    }

    /// Gives a site coefficients, those of the identity, if it has none.
    pub fn ensure_quadratic(&mut self, site: &str, channels: usize) {
        let name = Parameter::Poly.of(site);
        if !self.parameters.contains_key(&name) {
            self.put_parameter(&name, constant_rows(channels, &[0.0, 1.0, 0.0]));
        }
    }

    pub(super) fn planes(&self, site: &str) -> &Planes {
        &self.planes[site]
    }

    /// One where a site's position is a ReLU in its mask, zero elsewhere, flat.
    pub(crate) fn relu_plane(&self, site: &str) -> Tensor<1> {
        let plane = self.planes[site].relu.clone();
        let count = self.masks[site].len();
        plane.reshape([count])
    }

    /// Puts something else at the sites that fit; [`Substitute::Fitted`] gets the quadratics of the
    /// identity, to be set afterwards.
    ///
    /// # Errors
    /// A pattern that fits no site, or a drop-in that does not exist.
    pub fn replace(&mut self, network: &Network, replacement: &Replacement) -> Result<()> {
        let sites: Vec<(String, [usize; 3])> = network
            .sites()
            .filter(|(site, _)| fits(&replacement.sites, site))
            .map(|(site, shape)| (site.to_owned(), shape))
            .collect();
        ensure!(
            !sites.is_empty(),
            "no activation site fits \"{}\"; the sites are {}",
            replacement.sites,
            network
                .sites()
                .map(|(site, _)| site)
                .collect::<Vec<_>>()
                .join(", ")
        );
        for (site, shape) in sites {
            let channels = shape[0];
            let quadratic = |state: &mut Self, [a, b, c]: [f32; 3]| {
                state.set_function(&site, channels, SiteFunction::Masked);
                let kinds = vec![ActivationKind::Polynomial; shape.iter().product()];
                state.set_mask(&site, shape, kinds);
                let rows = constant_rows(channels, &[a, b, c]);
                state.put_parameter(&Parameter::Poly.of(&site), rows);
            };
            match replacement.by {
                Substitute::Relu | Substitute::Identity => {
                    self.set_function(&site, channels, SiteFunction::Masked);
                    let kind = match replacement.by {
                        Substitute::Relu => ActivationKind::Relu,
                        _ => ActivationKind::Identity,
                    };
                    self.set_mask(&site, shape, vec![kind; shape.iter().product()]);
                }
                Substitute::ReactPkn => quadratic(self, [0.009, 0.5, 0.47]),
                Substitute::Square => quadratic(self, [1.0, 0.0, 0.0]),
                Substitute::Fitted { .. } => quadratic(self, [0.0, 1.0, 0.0]),
                Substitute::SquareAmm => {
                    self.set_function(&site, channels, SiteFunction::MinMax { running: true });
                }
                Substitute::SquareMm => {
                    self.set_function(&site, channels, SiteFunction::MinMax { running: false });
                }
                Substitute::HerPn => self.set_function(&site, channels, SiteFunction::HerPn),
                Substitute::DropIn(drop_in) => {
                    let [e, d, c, b, a] = drop_in.coefficients()?.map(|v| v as f32);
                    if drop_in.degree == 2 {
                        quadratic(self, [c, d, e]);
                    } else {
                        // a z^4 + b z^3 + c z^2 as a (z^2 + p z)^2 + (c - a p^2) z^2, p = b / 2a.
                        self.set_function(&site, channels, SiteFunction::Quartic);
                        let p = b / (2.0 * a);
                        let rows = constant_rows(channels, &[a, p, c - a * p * p, d, e]);
                        self.put_parameter(&Parameter::Quartic.of(&site), rows);
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the site's tensors those of `function`, at their starting values; keeps them if the site
    /// has that function already.
    fn set_function(&mut self, site: &str, channels: usize, function: SiteFunction) {
        if self.functions.insert(site.to_owned(), function) == Some(function) {
            return;
        }
        for parameter in Parameter::ALL {
            self.remove(&parameter.of(site));
        }
        for buffer in Buffer::ALL {
            self.remove(&buffer.of(site));
        }
        self.masks.remove(site);
        self.planes.remove(site);
        let row = |value| Array::filled(&[channels], value);
        match function {
            SiteFunction::Masked => {}
            SiteFunction::Quartic => {
                // Overwritten by whoever puts it in.
                let rows = constant_rows(channels, &[-1e-4, 0.0, 0.0, 1.0, 0.0]);
                self.put_parameter(&Parameter::Quartic.of(site), rows);
            }
            SiteFunction::HerPn => {
                self.put_parameter(&Parameter::Gamma.of(site), row(1.0));
                self.put_parameter(&Parameter::Beta.of(site), row(0.0));
                let rows = constant_rows(channels, &[0.0, 1.0, 0.0, 1.0]);
                self.put_buffer(&Buffer::HerPn.of(site), rows);
            }
            SiteFunction::MinMax { .. } => {
                let rows = constant_rows(channels, &[-1.0, 1.0]);
                self.put_buffer(&Buffer::Extent.of(site), rows);
            }
        }
    }

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

    fn add_selection(&mut self, site: &str, shape: [usize; 3], selection: Selection) {
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

    /// Removes the coefficients of masked sites that stood ready for positions, and got none.
    pub fn drop_unused_quadratics(&mut self) {
        let polynomial = |kinds: &[ActivationKind]| kinds.contains(&ActivationKind::Polynomial);
        let unused = self.masks.iter().filter(|(_, kinds)| !polynomial(kinds));
        let names: Vec<String> = unused.map(|(site, _)| Parameter::Poly.of(site)).collect();
        names.iter().for_each(|name| self.remove(name));
    }

    /// Whether a site has coefficients of quadratics.
    pub fn has_quadratic(&self, site: &str) -> bool {
        self.parameters.contains_key(&Parameter::Poly.of(site))
    }

    /// Whether something at a site is a polynomial, or stands ready to become one.
    pub fn has_polynomial(&self, site: &str) -> bool {
        self.functions
            .get(site)
            .is_some_and(|function| *function != SiteFunction::Masked)
            || self.has_quadratic(site)
    }

    /// Turns single positions into `kind`.
    pub fn change(
        &mut self,
        network: &Network,
        positions: &[(String, usize)],
        kind: ActivationKind,
    ) {
        let mut by_site: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (site, e) in positions {
            by_site.entry(site).or_default().push(*e);
        }
        for (site, shape) in network.sites() {
            let Some(elements) = by_site.get(site) else {
                continue;
            };
            let mut kinds = self.masks[site].clone();
            for e in elements {
                kinds[*e] = kind;
            }
            self.set_mask(site, shape, kinds);
        }
    }

    fn remove(&mut self, name: &str) {
        self.parameters.remove(name);
        self.buffers.remove(name);
        self.shapes.remove(name);
    }

    /// Shape of a parameter or running statistic.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    /// Trained numbers.
    pub fn parameter_count(&self) -> usize {
        self.parameters
            .keys()
            .map(|name| self.shapes[name].iter().product::<usize>())
            .sum()
    }
}

/// How many pairs of means and variances a statistic holds, if it holds such.
fn norms(name: &str) -> Option<usize> {
    match Buffer::parse(name)?.1 {
        Buffer::Moments => Some(1),
        Buffer::HerPn => Some(2),
        Buffer::Extent | Buffer::Kept => None,
    }
}

/// A batch's `[norms, 2, c]` moments, flat, those of wild channels limited by the running ones.
fn typical(batch: Tensor<1>, running: Tensor<1>, norms: usize) -> Tensor<1> {
    let [count] = batch.dims();
    let channels = count / (2 * norms);
    let row = |moments: &Tensor<1>, i: usize| {
        let moments = moments.clone().reshape([norms, 2, channels]);
        moments.narrow(1, i, 1)
    };
    let limit = row(&running, 1)
        .add_scalar(NORM_EPSILON)
        .mul_scalar(VARIANCE_LIMIT);
    let (mean, variance) = (row(&batch, 0), row(&batch, 1));
    let wild = variance.clone().greater(limit.clone());
    let (usual, most) = (row(&running, 0), limit.clone().sqrt());
    let near = mean
        .clone()
        .min_pair(usual.clone() + most.clone())
        .max_pair(usual - most);
    let mean = mean.mask_where(wild, near);
    Tensor::cat(vec![mean, variance.min_pair(limit)], 1).reshape([count])
}

/// `[rows.len(), channels]`, each row of one value.
fn constant_rows(channels: usize, rows: &[f32]) -> Array {
    Array {
        shape: vec![rows.len(), channels],
        values: rows.iter().flat_map(|v| vec![*v; channels]).collect(),
    }
}

fn encode_kind(kind: ActivationKind) -> u8 {
    match kind {
        ActivationKind::Relu => 0,
        ActivationKind::Identity => 1,
        ActivationKind::Polynomial => 2,
    }
}

fn decode_kind(code: u8) -> Option<ActivationKind> {
    match code {
        0 => Some(ActivationKind::Relu),
        1 => Some(ActivationKind::Identity),
        2 => Some(ActivationKind::Polynomial),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::network::NetworkConfig;

    fn state(activations: &[Replacement]) -> State {
        let config: NetworkConfig = toml::from_str("kind = \"resnet20\"\nwidth = 0.1").unwrap();
        let network = Network::new(&config, [3, 8, 8], 10).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        State::new(&network, activations, &mut rng, &Device::flex()).unwrap()
    }

    fn track(state: &mut State, name: &str, batch: &[f32]) -> Vec<f32> {
        let data = TensorData::new(batch.to_vec(), [batch.len()]);
        let batch = Tensor::<1>::from_data(data, &state.device);
        state.track(Tensors::from([(name.to_owned(), batch)]), 0.1);
        download(state.buffers[name].clone())
    }

    #[test]
    fn one_wild_batch_moves_running_moments_by_a_share_of_the_deviation() {
        let mut state = state(&[]);
        let mut batch = |means: [f32; 2], variances: [f32; 2]| {
            let values = [means, variances].concat();
            track(&mut state, "stem.norm.moments", &values)
        };
        // From means of 0 and variances of 1: a usual channel beside a wild one.
        let seen = batch([5.0, -20.0], [2.0, 1e6]);
        let expected = [0.5, -0.2, 1.1, 1.3];
        for (seen, expected) in seen.iter().zip(expected) {
            assert!((seen - expected).abs() < 1e-4, "{seen} for {expected}");
        }
        // Growth that lasts is followed, from nothing as well, and any fall at once.
        for _ in 0..100 {
            batch([0.0; 2], [0.0, 50.0]);
        }
        let seen = batch([0.0; 2], [3.0, 50.0]);
        assert!(seen[2] < 0.001 && (seen[3] - 50.0).abs() < 0.5, "{seen:?}");
        for _ in 0..100 {
            batch([0.0; 2], [3.0, 50.0]);
        }
        let seen = batch([0.0; 2], [3.0, 50.0]);
        assert!((seen[2] - 3.0).abs() < 0.1, "{seen:?}");
    }

    #[test]
    fn both_norms_of_a_hermite_activation_are_limited() {
        let herpn = Replacement {
            sites: "*".to_owned(),
            by: Substitute::HerPn,
        };
        let mut state = state(&[herpn]);
        let name = "stem.act.herpn";
        let channels = state.buffers[name].dims()[0] / 4;
        let before = download(state.buffers[name].clone());
        let rows = |values: [f32; 4]| -> Vec<f32> {
            values.iter().flat_map(|v| vec![*v; channels]).collect()
        };
        // Values of a thousand in one image of a hundred: the mean and variance of z, then of its
        // square.
        let seen = track(&mut state, name, &rows([10.0, 1e4, 7e3, 5e9]));
        let expected = [0.2, 1.3, 0.2, 1.3];
        for (row, expected) in expected.into_iter().enumerate() {
            let (was, is) = (before[row * channels], seen[row * channels]);
            assert!(
                (is - expected).abs() < 1e-4,
                "row {row}: {was} to {is}, not {expected}"
            );
        }
    }

    #[test]
    fn within_a_hysteresis_the_kept_positions_stay() {
        let config: NetworkConfig = toml::from_str("kind = \"resnet20\"\nwidth = 0.1").unwrap();
        let network = Network::new(&config, [3, 8, 8], 10).unwrap();
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
