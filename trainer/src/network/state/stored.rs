//! A state from a file and to one.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use pi_ir::graph::ActivationKind;

use super::{Selection, State};
use crate::checkpoint::Arrays;
use crate::network::{Network, Parameter, SiteFunction};

/// A state as a checkpoint holds it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Function of each activation site.
    pub functions: BTreeMap<String, SiteFunction>,
    /// The selection under way.
    pub selection: Option<Selection>,
    /// Trained parameters.
    pub parameters: Arrays,
    /// Running statistics, and the factors of a selection with hysteresis.
    pub buffers: Arrays,
    /// Kinds of the positions of each masked site, as [`State::mask_codes`] gives them.
    pub masks: BTreeMap<String, Vec<u8>>,
}

impl State {
    /// Takes over what a file holds, which must be of this network.
    ///
    /// # Errors
    /// An array, a function or a mask that is missing, superfluous or of another shape, by name.
    pub fn restore(&mut self, network: &Network, stored: Stored) -> Result<()> {
        let Stored {
            functions,
            selection,
            parameters,
            buffers,
            masks,
        } = stored;
        self.selection = selection;
        for (site, shape) in network.sites() {
            let function = functions
                .get(site)
                .with_context(|| format!("the checkpoint does not say what stands at {site}"))?;
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
        // By now the state has the tensors that its functions, masks and selection ask for: the
        // file must have these and no others.
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
                    "the checkpoint's arrays are not those of its network: {name} is {:?}, \
                     expected {:?}",
                    array.shape,
                    self.shapes[name]
                );
            }
        }
        for name in parameters.keys().chain(buffers.keys()) {
            ensure!(
                self.parameters.contains_key(name) || self.buffers.contains_key(name),
                "the checkpoint's arrays are not those of its network, which has no {name}"
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
