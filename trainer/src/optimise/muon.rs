//! Muon (Keller Jordan, 2024): steps along orthogonal matrices, for the weights of convolutions.
//!
//! The momentum of such a weight, as a matrix with a row for each output channel, is replaced by
//! nearly the orthogonal matrix nearest to it, by some Newton-Schulz steps; so every direction in
//! the space of weights moves as far as any other. Before the step the weight gets the norm
//! `sqrt(rows)`, which the norm behind the convolution does not notice, so that one rate fits all
//! layers and nothing decays. What is no convolution makes steps of SGD, with a momentum of its
//! own.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::flat::{Layout, PerNumber, Vector};
use super::{Optimiser, Rule};
use crate::tensors::Tensors;

/// Coefficients of a Newton-Schulz step, `X <- a X + (b A + c A^2) X` with `A = X X^T`, which take
/// singular values fast to about one (Jordan's choice).
const NEWTON_SCHULZ: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// What the norm of a gradient is at least when it is divided by.
const NORM_EPSILON: f32 = 1e-7;

/// The matrices among the parameters, and the momentum of each number.
pub(super) struct Matrices {
    /// Rows, by name.
    rows: BTreeMap<String, usize>,
    momenta: PerNumber,
}

impl Matrices {
    /// The matrices that [`Rule::Muon`] takes for such; none for another rule.
    pub(super) fn of(
        rule: Rule,
        layout: &Layout,
        rows: impl Fn(&str) -> Option<usize>,
    ) -> Option<Self> {
        let Rule::Muon {
            momentum,
            sgd_momentum,
            ..
        } = rule
        else {
            return None;
        };
        let own = layout
            .names()
            .filter_map(|name| Some((name.to_owned(), rows(name)?)));
        let rows: BTreeMap<String, usize> = own.collect();
        let of = |name: &str| match rows.contains_key(name) {
            true => momentum,
            false => sgd_momentum,
        };
        let momenta = PerNumber::new(layout, of);
        Some(Self { rows, momenta })
    }

    /// True if the parameter is one of them.
    pub(super) fn has(&self, name: &str) -> bool {
        self.rows.contains_key(name)
    }
}

impl Optimiser {
    /// A step of [`Rule::Muon`] with `steps` of Newton and Schulz.
    pub(super) fn muon(&mut self, x: Vector, g: Vector, rate: f32, steps: usize) -> Vector {
        let matrices = self.matrices.as_ref().expect("made for the rule");
        let g = self.decay.add_times(g, &x);
        let m = match self.vectors.remove("momentum") {
            Some(old) => matrices.momenta.times(old, 1.0).plus(g.clone()),
            None => g.clone(),
        };
        let direction = g.plus(matrices.momenta.times(m.clone(), 1.0));
        self.vectors.insert("momentum".to_owned(), m);
        let (mut weights, mut directions) = (Tensors::new(), Tensors::new());
        self.layout.scatter(&x, &mut weights);
        self.layout.scatter(&direction, &mut directions);
        for (name, rows) in &matrices.rows {
            let matrix = |tensors: &Tensors| {
                let flat = tensors[name].clone();
                let [count] = flat.dims();
                flat.reshape([*rows, count / rows])
            };
            let (weight, direction) = (matrix(&weights), matrix(&directions));
            let scale = norm(&weight).recip().mul_scalar((*rows as f32).sqrt());
            let count = weight.dims().iter().product::<usize>();
            // A weight of zeros has no norm to be given: it stays.
            let scale = scale.clone().mask_fill(scale.is_inf(), 1.0);
            weights.insert(name.clone(), (weight * scale).reshape([count]));
            let direction = orthogonal(direction, steps);
            directions.insert(name.clone(), direction.reshape([count]));
        }
        let (x, direction) = (
            self.layout.gather(&weights),
            self.layout.gather(&directions),
        );
        x.minus(self.rates.times(direction, rate))
    }
}

/// Nearly the orthogonal matrix nearest to `x`, by `steps` of Newton and Schulz.
fn orthogonal(x: Tensor<2>, steps: usize) -> Tensor<2> {
    let [a, b, c] = NEWTON_SCHULZ;
    let [rows, columns] = x.dims();
    let mut x = x.clone() / norm(&x).add_scalar(NORM_EPSILON);
    // The smaller of the two products.
    if rows > columns {
        x = x.transpose();
    }
    for _ in 0..steps {
        let square = x.clone().matmul(x.clone().transpose());
        let polynomial = square.clone().mul_scalar(b) + square.clone().matmul(square).mul_scalar(c);
        x = x.clone().mul_scalar(a) + polynomial.matmul(x);
    }
    if rows > columns {
        x = x.transpose();
    }
    x
}

/// The norm over all elements, `[1, 1]`; row by row first, as one sum over all numbers might come
/// in an order that depends on which thread is free.
fn norm(x: &Tensor<2>) -> Tensor<2> {
    let squares = x.clone() * x.clone();
    squares.sum_dim(1).sum_dim(0).sqrt()
}
