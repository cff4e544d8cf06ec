//! Replacing the function of an activation site.

use anyhow::{Result, ensure};
use pi_ir::graph::ActivationKind;

use super::{State, constant_rows};
use crate::checkpoint::Array;
use crate::network::{Buffer, Network, Parameter, Replacement, SiteFunction, Substitute};
use crate::pattern::fits;

impl State {
    /// Puts another function at the sites that fit; [`Substitute::Fitted`] gets the quadratics of
    /// the identity, to be set afterwards.
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
            if let Some(coefficients) = replacement.by.quadratic()? {
                self.set_function(&site, channels, SiteFunction::Masked);
                let kinds = vec![ActivationKind::Polynomial; shape.iter().product()];
                self.set_mask(&site, shape, kinds);
                let rows = constant_rows(channels, &coefficients);
                self.put_parameter(&Parameter::Poly.of(&site), rows);
                continue;
            }
            match replacement.by {
                Substitute::Relu | Substitute::Identity => {
                    self.set_function(&site, channels, SiteFunction::Masked);
                    let kind = match replacement.by {
                        Substitute::Relu => ActivationKind::Relu,
                        _ => ActivationKind::Identity,
                    };
                    self.set_mask(&site, shape, vec![kind; shape.iter().product()]);
                }
                Substitute::SquareAmm => {
                    self.set_function(&site, channels, SiteFunction::MinMax { running: true });
                }
                Substitute::SquareMm => {
                    self.set_function(&site, channels, SiteFunction::MinMax { running: false });
                }
                Substitute::HerPn => self.set_function(&site, channels, SiteFunction::HerPn),
                Substitute::DropIn(drop_in) => {
                    let [e, d, c, b, a] = drop_in.coefficients()?.map(|v| v as f32);
                    // a z^4 + b z^3 + c z^2 as a (z^2 + p z)^2 + (c - a p^2) z^2, p = b / 2a.
                    self.set_function(&site, channels, SiteFunction::Quartic);
                    let p = b / (2.0 * a);
                    let rows = constant_rows(channels, &[a, p, c - a * p * p, d, e]);
                    self.put_parameter(&Parameter::Quartic.of(&site), rows);
                }
                Substitute::ReactPkn
                | Substitute::Square
                | Substitute::Quadratic(_)
                | Substitute::Fitted { .. } => unreachable!("quadratics are put in above"),
            }
        }
        Ok(())
    }

    /// Makes the site's tensors those of `function`, at their starting values; keeps them if the
    /// site has that function already.
    pub(super) fn set_function(&mut self, site: &str, channels: usize, function: SiteFunction) {
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
                // A start near the identity; `replace` puts the drop-in's own coefficients here.
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
}
