//! Quadratics fitted to ReLU: each channel's own, nearest under the distribution of its inputs on
//! some training images (AutoReP, ICCV 2023; the fit itself is [`relu_fit`]).

use std::collections::BTreeMap;

use super::{Context, EVALUATION_BATCH};
use crate::checkpoint::Array;
use crate::data;
use crate::kernels;
use crate::network::approximation::relu_fit;
use crate::network::{Mode, Op, Parameter, Request, Shown};
use crate::random::EpochStream;
use crate::tensors::{Tensors, download_all};

impl Context<'_> {
    /// Masked sites that have no quadratic yet.
    pub(super) fn without_quadratics(&self) -> Vec<String> {
        let masked = self.state.masks.keys();
        masked
            .filter(|site| !self.state.has_quadratic(site))
            .cloned()
            .collect()
    }

    /// Gives sites the quadratics nearest to ReLU.
    pub(super) fn fit_quadratics(&mut self, sites: &[String], damped: bool) {
        if sites.is_empty() {
            return;
        }
        let moments = self.input_moments();
        for site in sites {
            let fit = quadratics(&moments[site], damped);
            self.state.put_parameter(&Parameter::Poly.of(site), fit);
        }
    }

    /// Means, then variances, of the channels that reach each activation site.
    pub(crate) fn input_moments(&self) -> BTreeMap<String, Vec<f32>> {
        let set = &self.data.train;
        let order = data::permutation(set.len(), &mut self.rng(EpochStream::Fits));
        let indices = &order[..order.len().min(EVALUATION_BATCH)];
        let mut moments = Tensors::new();
        let (pixels, request) = (set.plain(indices), Request::of(Mode::Evaluate));
        self.network.observe(
            self.state,
            pixels,
            request,
            (Shown::Sites, |node, inputs, _| {
                if node.op == Op::Activation {
                    let both = kernels::moments(inputs[0].clone());
                    moments.insert(node.name.clone(), both.reshape([2 * node.shape[0]]));
                }
            }),
        );
        download_all(&moments)
    }
}

/// `[3, c]` coefficients of the quadratics nearest to ReLU; `damped` divides square and constant by
/// 10 and 5.
pub(crate) fn quadratics(moments: &[f32], damped: bool) -> Array {
    let channels = moments.len() / 2;
    let (means, variances) = moments.split_at(channels);
    let mut values = vec![0.0f32; 3 * channels];
    for (channel, (u, variance)) in means.iter().zip(variances).enumerate() {
        let [a, b, c] = relu_fit(f64::from(*u), f64::from(*variance).sqrt());
        let fit = match damped {
            true => [a / 10.0, b, c / 5.0],
            false => [a, b, c],
        };
        for (i, value) in fit.into_iter().enumerate() {
            values[i * channels + channel] = value as f32;
        }
    }
    Array {
        shape: vec![3, channels],
        values,
    }
}
