//! What an activation site computes in a pass.

use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use pi_ir::graph::ActivationKind;

use super::{EXTENT_EPSILON, Mode, Walk, quadratic};
use crate::kernels::{self, Limits};
use crate::network::state::{Indicator, Removed};
use crate::network::{Buffer, Node, Parameter, SiteFunction};

impl Walk<'_> {
    pub(super) fn activation(&mut self, node: &Node, z: Tensor<4>) -> Tensor<4> {
        let function = self.state.functions[&node.name];
        let share = self.relu_share();
        // A mask mixes position by position, in its coefficients.
        if function == SiteFunction::Masked || share == 0.0 {
            return self.function(node, function, z);
        }
        let own = self.function(node, function, z.clone());
        relu(z).mul_scalar(share) + own.mul_scalar(1.0 - share)
    }

    /// Share of ReLU in what is none.
    fn relu_share(&self) -> f32 {
        match self.request.mode {
            Mode::Train => self.request.relu_share,
            Mode::Evaluate | Mode::Score => 0.0,
        }
    }

    fn function(&mut self, node: &Node, function: SiteFunction, z: Tensor<4>) -> Tensor<4> {
        let [c, _, _] = node.shape;
        match function {
            SiteFunction::Masked => {
                let coefficients = self.coefficients(node);
                let limits = self.measured_limits(&z);
                kernels::masked(z, coefficients, limits)
            }
            SiteFunction::Quartic => {
                let rows = self.leaf(node, Parameter::Quartic).reshape([5, c, 1, 1]);
                let row = |i: usize| rows.clone().narrow(0, i, 1);
                let (one, zero) = (Tensor::ones_like(&row(0)), Tensor::zeros_like(&row(0)));
                let limits = self.measured_limits(&z);
                let low = quadratic(z.clone(), [row(2), row(3), row(4)], limits);
                // The quartic's part in z is held within the guard; beyond it goes on as the
                // tangent, like `low`.
                let held = match limits.guard.is_infinite() {
                    true => z.clone(),
                    false => z.clone().clamp(-limits.guard, limits.guard),
                };
                let inner = quadratic(held.clone(), [one, row(1), zero.clone()], Limits::NONE);
                let high = quadratic(inner.clone(), [row(0), zero.clone(), zero], Limits::NONE);
                if limits.guard.is_infinite() {
                    return high + low;
                }
                let slope = (held.clone().mul_scalar(2.0) + row(1)) * inner * row(0);
                high + low + slope.mul_scalar(2.0) * (z - held)
            }
            SiteFunction::HerPn => {
                let half = std::f32::consts::FRAC_1_SQRT_2;
                let (gamma, beta) = (
                    self.leaf(node, Parameter::Gamma),
                    self.leaf(node, Parameter::Beta),
                );
                let ones = Tensor::<4>::ones_like(&gamma.clone().reshape([1, c, 1, 1]));
                let basis = self.quadratic(
                    z.clone(),
                    ones.clone().mul_scalar(half),
                    ones.clone().mul_scalar(0.0),
                    ones.mul_scalar(-half),
                );
                let both = self.moments(Buffer::HerPn.of(&node.name), 2 * c, || {
                    let parts = vec![kernels::moments(z.clone()), kernels::moments(basis.clone())];
                    Tensor::cat(parts, 0).reshape([2, 2 * c])
                });
                let both = both.reshape([4, c]);
                let (first, second) = (both.clone().narrow(0, 0, 2), both.narrow(0, 2, 2));
                let tau = std::f32::consts::TAU;
                let scale = gamma.clone().mul_scalar(0.5);
                let shift = gamma.clone().mul_scalar(1.0 / tau.sqrt()) + beta.clone();
                let none = beta.mul_scalar(0.0);
                let curve = gamma.mul_scalar(1.0 / (2.0 * tau).sqrt());
                kernels::normalise(z, first, scale, shift)
                    + kernels::normalise(basis, second, curve, none)
            }
            SiteFunction::MinMax { running } => {
                let extent = self.extent(node, &z, running);
                let row = |i: usize| extent.clone().narrow(0, i, 1).reshape([1, c, 1, 1]);
                let (low, high) = (row(0), row(1));
                // (z - low) * 2 / (high - low) - 1 = s z + t, squared.
                let s = (high - low.clone())
                    .add_scalar(EXTENT_EPSILON)
                    .recip()
                    .mul_scalar(2.0);
                let t = (low * s.clone()).add_scalar(1.0).neg();
                let linear = (s.clone() * t.clone()).mul_scalar(2.0);
                self.quadratic(z, s.clone() * s, linear, t.clone() * t)
            }
        }
    }

    /// `[4, c, h, w]` coefficients of a masked site, which collect a gradient when scoring.
    pub(super) fn coefficients(&mut self, node: &Node) -> Tensor<4> {
        let k = self.masked_coefficients(node);
        if self.request.mode != Mode::Score || self.frozen {
            return k;
        }
        let k = k.detach().require_grad();
        self.coefficients.insert(node.name.clone(), k.clone());
        k
    }

    /// `[2, c]` minimum and maximum of each channel that a min-max norm divides by.
    fn extent(&mut self, node: &Node, z: &Tensor<4>, running: bool) -> Tensor<2> {
        let c = node.shape[0];
        let name = Buffer::Extent.of(&node.name);
        let smoothed = self.lift(self.state.buffers[&name].clone()).reshape([2, c]);
        if running && self.frozen {
            return smoothed;
        }
        let [n, _, h, w] = z.dims();
        let flat = z.clone().reshape([n, c, h * w]);
        let low = flat.clone().min_dim(2).min_dim(0).reshape([1, c]);
        let high = flat.max_dim(2).max_dim(0).reshape([1, c]);
        let batch = Tensor::cat(vec![low, high], 0);
        if !self.frozen {
            let own = batch.clone().inner().reshape([2 * c]);
            self.statistics.insert(name, own);
        }
        if running {
            // Gradients flow through the batch's share of both extremes.
            let rate = self.request.smoothing;
            smoothed.mul_scalar(1.0 - rate) + batch.mul_scalar(rate)
        } else {
            batch
        }
    }

    /// `[4, c, h, w]` coefficients of `relu(z)`, `z^2`, `z` and 1 of a masked site.
    fn masked_coefficients(&mut self, node: &Node) -> Tensor<4> {
        let planes = self.state.planes(&node.name);
        let selection = self.state.selection;
        let relu = |kind: &ActivationKind| *kind == ActivationKind::Relu;
        let share = match self.state.masks[&node.name].iter().all(relu) {
            true => 0.0,
            false => self.relu_share(),
        };
        if planes.polynomial.is_none() && selection.is_none() && share == 0.0 {
            return self.lift(planes.fixed.clone());
        }
        let [c, h, w] = node.shape;
        let mut relu = self.lift(planes.relu.clone());
        let mut identity = self.lift(planes.identity.clone());
        let mut polynomial = planes.polynomial.clone().map(|plane| self.lift(plane));
        let mut mixed = None;
        if share > 0.0 {
            // What is no ReLU in the mask; a selection has its own say about those that are.
            mixed = Some((Tensor::ones_like(&relu) - relu.clone()).mul_scalar(share));
            identity = identity.mul_scalar(1.0 - share);
            polynomial = polynomial.map(|plane| plane.mul_scalar(1.0 - share));
        }
        if let Some(selection) = selection {
            let factor = self.factor(node, selection.indicator).reshape([1, c, h, w]);
            let stays = relu.clone() * factor;
            let goes = relu - stays.clone();
            relu = stays;
            match selection.removed {
                Removed::Identity => identity = identity + goes,
                Removed::Polynomial => {
                    polynomial = Some(match polynomial {
                        Some(plane) => plane + goes,
                        None => goes,
                    });
                }
            }
        }
        if let Some(mixed) = mixed {
            relu = relu + mixed;
        }
        let Some(polynomial) = polynomial else {
            let zeros = identity.clone().mul_scalar(0.0);
            return Tensor::cat(vec![relu, zeros.clone(), identity, zeros], 0);
        };
        let rows = self.leaf(node, Parameter::Poly).reshape([3, c, 1, 1]);
        let row = |i: usize| rows.clone().narrow(0, i, 1) * polynomial.clone();
        Tensor::cat(vec![relu, row(0), identity + row(1), row(2)], 0)
    }

    /// The factor `m` of each position of a selection, flat.
    fn factor(&mut self, node: &Node, indicator: Indicator) -> Tensor<1> {
        let keep = self.leaf(node, Parameter::Keep);
        let Indicator::Hysteresis { width } = indicator else {
            return keep;
        };
        let name = Buffer::Kept.of(&node.name);
        let old = self.state.buffers[&name].clone();
        let plain = if self.frozen {
            keep.clone()
        } else {
            keep.clone().inner()
        };
        let above = plain.clone().greater_elem(width).float();
        let inside = plain.abs().lower_equal_elem(width).float();
        let kept = above + inside * old;
        if self.frozen {
            return kept;
        }
        self.kept.insert(name, kept.clone());
        // The value is the hard factor, the gradient that of `keep`.
        Tensor::from_inner(kept) + keep.clone() - keep.detach()
    }
}
