//! Parameters, running statistics and masks of a network, as tensors that stay on the device.
//!
//! A [`State`] is all that a forward pass reads besides the image. The kinds of its positions are
//! in `mask`, what changes a whole site in `replace`, the running statistics in `statistics`, the
//! trained choice of ReLUs in `selection`, and the way from and to a file in `stored`.

mod mask;
mod replace;
mod selection;
mod statistics;
mod stored;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use pi_ir::graph::ActivationKind;
use rand_core::RngCore;

use super::{Masks, Network, Replacement, SiteFunction, Substitute};
use crate::checkpoint::{Array, Arrays};
use crate::tensors::{Tensors, download, download_all, upload};
use mask::Planes;

pub use selection::{Indicator, Removed, Selection};
pub use statistics::VARIANCE_LIMIT;
pub use stored::Stored;

/// Everything the forward pass reads besides the image.
#[derive(Clone, Debug)]
pub struct State {
    /// Function of each activation site.
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
                !matches!(replacement.by, Substitute::Fitted { .. }) && replacement.keep.is_none(),
                "network.activations: \"fitted\" and keep need a trained network; use them in a \
                 stage's replace"
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

/// `[rows.len(), channels]`, each row of one value.
fn constant_rows(channels: usize, rows: &[f32]) -> Array {
    Array {
        shape: vec![rows.len(), channels],
        values: rows.iter().flat_map(|v| vec![*v; channels]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::network::NetworkConfig;

    pub(super) fn network() -> Network {
        let config: NetworkConfig = toml::from_str("kind = \"resnet20\"\nwidth = 0.1").unwrap();
        Network::new(&config, [3, 8, 8], 10).unwrap()
    }

    pub(super) fn state(activations: &[Replacement]) -> State {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        State::new(&network(), activations, &mut rng, &Device::flex()).unwrap()
    }
}
