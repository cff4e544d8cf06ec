//! Which activations stay: two cuts by first-order saliency.
//!
//! Replacing position `e` by another function changes the loss by about `sum over images of g * (new(z) - old(z))`,
//! `g` the gradient at the activation's output. The saliency is the mean square of that sum over small batches; it
//! costs one backward pass a batch, as the sums are the gradients of the position's coefficients. ReLUs are first cut
//! to quadratics (at chosen sites) or identities, each quadratic the best fit to ReLU under its channel's distribution (AutoReP, ICCV 2023, written here through
//! the normal density and distribution); later the least salient quadratics become the identity.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use pi_ir::graph::ActivationKind;

use crate::kernels;
use crate::network::{Masks, Mode, Network, Op, State};

/// Ranks positions over batches and rewrites the masks.
pub struct Ranking {
    from: ActivationKind,
    squares: BTreeMap<String, Vec<f64>>,
}

impl Ranking {
    /// Starts a ranking of all positions of one kind: ReLUs against their polynomials, polynomials against the identity.
    pub fn new(from: ActivationKind, masks: &Masks) -> Self {
        Self {
            from,
            squares: masks
                .iter()
                .map(|(site, kinds)| (site.clone(), vec![0.0; kinds.len()]))
                .collect(),
        }
    }

    /// Adds one batch; `loss` maps logits to the scalar that training minimises.
    pub fn add(
        &mut self,
        network: &Network,
        state: &State,
        pixels: Vec<f32>,
        device: &Device,
        loss: impl FnOnce(Tensor<2>) -> Tensor<1>,
    ) {
        let pass = network.forward(state, pixels, Mode::Score, device, |_, _| {});
        let mut grads = loss(pass.logits).backward();
        for (site, coefficients) in pass.coefficients {
            let Some(gradient) = coefficients.grad_remove(&mut grads) else {
                continue;
            };
            let gradient: Vec<f32> = gradient
                .into_data()
                .try_into_vec()
                .expect("gradients are f32");
            let squares = self
                .squares
                .get_mut(&site)
                .expect("made from the same masks");
            let poly = &state.parameters[&format!("{site}.poly")];
            let (positions, channels) = (squares.len(), poly.shape[1]);
            let plane = positions / channels;
            let by = |what: usize, e: usize| f64::from(gradient[what * positions + e]);
            for (e, total) in squares.iter_mut().enumerate() {
                let q = |i: usize| f64::from(poly.values[i * channels + e / plane]);
                let polynomial = q(0) * by(1, e) + q(1) * by(2, e) + q(2) * by(3, e);
                let change = match self.from {
                    ActivationKind::Relu => polynomial - by(0, e),
                    _ => by(2, e) - polynomial,
                };
                *total += change * change;
            }
        }
    }

    /// Keeps the `budget` most salient positions of the ranked kind and turns the others into what `to` says of their
    /// site.
    pub fn cut(self, budget: usize, to: impl Fn(&str) -> ActivationKind, masks: &mut Masks) {
        let mut ranked: Vec<(f64, &String, usize)> = self
            .squares
            .iter()
            .flat_map(|(site, squares)| squares.iter().enumerate().map(move |(e, s)| (*s, site, e)))
            .filter(|(_, site, e)| masks[*site][*e] == self.from)
            .collect();
        // Ties are broken by place, so that a run is the same wherever it runs.
        ranked.sort_by(|a, b| {
            b.0.total_cmp(&a.0)
                .then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
        });
        let dropped: Vec<(String, usize)> = ranked
            .into_iter()
            .skip(budget)
            .map(|(_, site, e)| (site.clone(), e))
            .collect();
        for (site, e) in dropped {
            masks.get_mut(&site).expect("ranked from these masks")[e] = to(&site);
        }
    }
}

/// Sets the quadratics of `sites` to the best fit of ReLU under the distribution of their inputs on these pixels.
/// Those of all other sites stay the identity they begin as.
pub fn fit_polynomials(
    network: &Network,
    state: &mut State,
    sites: &[String],
    pixels: Vec<f32>,
    device: &Device,
) {
    let mut sums: Vec<(String, Tensor<2>)> = Vec::new();
    let mut outputs: Vec<Tensor<4>> = Vec::new();
    network.forward(state, pixels, Mode::Evaluate, device, |node, value| {
        if node.op == Op::Activation && sites.contains(&node.name) {
            sums.push((
                node.name.clone(),
                kernels::moments(outputs[node.inputs[0]].clone()),
            ));
        }
        outputs.push(value.clone());
    });
    for (site, moments) in sums {
        let moments: Vec<f32> = moments.into_data().try_into_vec().expect("moments are f32");
        let (means, variances) = moments.split_at(moments.len() / 2);
        let poly = state
            .parameters
            .get_mut(&format!("{site}.poly"))
            .expect("each site has coefficients");
        for (channel, (u, variance)) in means.iter().zip(variances).enumerate() {
            let fitted = relu_fit(f64::from(*u), f64::from(*variance).sqrt());
            for (i, value) in fitted.into_iter().enumerate() {
                poly.values[i * means.len() + channel] = value as f32;
            }
        }
    }
}

/// The quadratic `(a, b, c)` nearest to ReLU in mean square under a normal law of mean `u` and deviation `v`.
fn relu_fit(u: f64, v: f64) -> [f64; 3] {
    let v = v.max(1e-3);
    let t = u / v;
    let density = (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let distribution = normal_distribution(t);
    [
        density / (2.0 * v),
        distribution - t * density,
        (u * t + v) * density / 2.0,
    ]
}

/// Distribution function of the normal law, by Simpson's rule over the density: 1e-9 is more than enough here.
fn normal_distribution(t: f64) -> f64 {
    const STEPS: usize = 400;
    let end = t.clamp(-8.0, 8.0);
    let h = end / STEPS as f64;
    let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let inner: f64 = (1..STEPS)
        .map(|i| density(h * i as f64) * if i % 2 == 1 { 4.0 } else { 2.0 })
        .sum();
    0.5 + h / 3.0 * (density(0.0) + inner + density(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fit_at_the_standard_normal_is_the_known_one() {
        // E[relu(z) (z^2 - 1)] / 2 = 1 / (2 sqrt(2 pi)); the slope is 1/2; the constant makes the means equal.
        let [a, b, c] = relu_fit(0.0, 1.0);
        let half_density = 0.5 / std::f64::consts::TAU.sqrt();
        for (got, expected) in [(a, half_density), (b, 0.5), (c, half_density)] {
            assert!((got - expected).abs() < 1e-9, "{got}, expected {expected}");
        }
    }

    #[test]
    fn the_fit_is_the_best_in_mean_square() {
        // Any small change of a coefficient must raise the error, integrated over the law on a fine grid.
        for (u, v) in [(0.7, 1.3), (-1.1, 0.6), (2.5, 0.8)] {
            let error = |[a, b, c]: [f64; 3]| -> f64 {
                (-4000..=4000)
                    .map(|i| {
                        let t = f64::from(i) * 2e-3;
                        let z = u + v * t;
                        let off = (a * z + b) * z + c - z.max(0.0);
                        off * off * (-t * t / 2.0).exp()
                    })
                    .sum()
            };
            let best = relu_fit(u, v);
            for i in 0..3 {
                for step in [-1e-3, 1e-3] {
                    let mut moved = best;
                    moved[i] += step;
                    assert!(
                        error(moved) > error(best),
                        "mean {u}, deviation {v}, coefficient {i}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_cut_keeps_the_most_salient_of_its_kind() {
        use ActivationKind::{Identity, Polynomial, Relu};
        let mut masks = Masks::from([
            ("a".to_owned(), vec![Relu, Relu, Identity, Relu]),
            ("b".to_owned(), vec![Relu, Relu]),
        ]);
        let mut ranking = Ranking::new(Relu, &masks);
        ranking
            .squares
            .insert("a".to_owned(), vec![3.0, 1.0, 9.0, 2.0]);
        ranking.squares.insert("b".to_owned(), vec![2.0, 5.0]);
        let to = |site: &str| if site == "a" { Polynomial } else { Identity };
        ranking.cut(3, to, &mut masks);
        // 5, 3, and the first of the two 2s stay; the position that is no ReLU is not counted.
        assert_eq!(masks["a"], [Relu, Polynomial, Identity, Relu]);
        assert_eq!(masks["b"], [Identity, Relu]);
    }
}
