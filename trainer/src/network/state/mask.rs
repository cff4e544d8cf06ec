//! Masks: which kind each position of a site is, on the host and as planes on the device.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use pi_ir::graph::ActivationKind;

use super::{State, constant_rows};
use crate::network::{Network, Parameter, SiteFunction};

/// The mask of a site on the device: `[1, c, h, w]`, one where a position is of the kind.
#[derive(Clone, Debug)]
pub(in crate::network) struct Planes {
    pub(in crate::network) relu: Tensor<4>,
    pub(in crate::network) identity: Tensor<4>,
    /// Absent if no position is a quadratic.
    pub(in crate::network) polynomial: Option<Tensor<4>>,
    /// `[4, c, h, w]`: the coefficients of a site without quadratics.
    pub(in crate::network) fixed: Tensor<4>,
}

impl State {
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
            // In a selection they stand ready for the positions that will lose their ReLU.
            self.remove(&Parameter::Poly.of(site));
        }
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

    /// Gives a site coefficients, those of the identity, if it has none.
    pub fn ensure_quadratic(&mut self, site: &str, channels: usize) {
        let name = Parameter::Poly.of(site);
        if !self.parameters.contains_key(&name) {
            self.put_parameter(&name, constant_rows(channels, &[0.0, 1.0, 0.0]));
        }
    }

    /// Removes the coefficients of masked sites that stood ready for positions, and got none.
    pub fn drop_unused_quadratics(&mut self) {
        let polynomial = |kinds: &[ActivationKind]| kinds.contains(&ActivationKind::Polynomial);
        let unused = self.masks.iter().filter(|(_, kinds)| !polynomial(kinds));
        let names: Vec<String> = unused.map(|(site, _)| Parameter::Poly.of(site)).collect();
        names.iter().for_each(|name| self.remove(name));
    }

    /// True if a site has coefficients of quadratics.
    pub fn has_quadratic(&self, site: &str) -> bool {
        self.parameters.contains_key(&Parameter::Poly.of(site))
    }

    /// True if something at a site is a polynomial, or stands ready to become one.
    pub fn has_polynomial(&self, site: &str) -> bool {
        self.functions
            .get(site)
            .is_some_and(|function| *function != SiteFunction::Masked)
            || self.has_quadratic(site)
    }

    pub(in crate::network) fn planes(&self, site: &str) -> &Planes {
        &self.planes[site]
    }

    /// Flat tensor that is one where a site's position is a ReLU in its mask, zero elsewhere.
    pub(crate) fn relu_plane(&self, site: &str) -> Tensor<1> {
        let plane = self.planes[site].relu.clone();
        let count = self.masks[site].len();
        plane.reshape([count])
    }
}
