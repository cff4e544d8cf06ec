//! One step of each rule.

use burn::tensor::Tensor;

use super::flat::{PerNumber, Vector};
use super::{Optimiser, Rule};

impl Optimiser {
    /// The parameters after the step numbered `self.steps`, from those before it and the gradient,
    /// clipped to `share` of it.
    pub(super) fn update(
        &mut self,
        x: Vector,
        g: Vector,
        loss: &Tensor<1>,
        share: f32,
        rate: f32,
    ) -> Vector {
        match self.config.rule {
            Rule::Sgd { momentum, nesterov } => self.sgd(x, g, rate, momentum, nesterov),
            Rule::Muon { steps, .. } => self.muon(x, g, rate, steps),
            Rule::Adam {
                betas,
                epsilon,
                decoupled,
            } => {
                let (x, g) = match decoupled {
                    true => (self.decayed(x, rate), g),
                    false => {
                        let g = self.decay.add_times(g, &x);
                        (x, g)
                    }
                };
                self.adam(x, g, rate, betas, epsilon)
            }
            Rule::Momo { momentum, bound } => {
                // The averages begin at their first values, so their weights sum to one.
                let model = Model::of(g, &x, loss, bound, share);
                let model = match self.steps {
                    1 => self.begin(model),
                    _ => self.blend_model(model, momentum),
                };
                self.model_step(x, model, None, 1.0, rate)
            }
            Rule::MomoAdam {
                betas,
                epsilon,
                bound,
            } => {
                let metric = self.metric(g.clone(), betas[1], epsilon);
                let model = Model::of(g, &x, loss, bound, share);
                let model = self.blend_model(model, betas[0]);
                let weight = self.weight(betas[0]) as f32;
                self.model_step(x, model, Some(metric), weight, rate)
            }
        }
    }

    fn sgd(&mut self, x: Vector, g: Vector, rate: f32, momentum: f32, nesterov: bool) -> Vector {
        let g = self.decay.add_times(g, &x);
        let m = match self.vectors.remove("momentum") {
            Some(old) => old.scaled(momentum).plus(g.clone()),
            None => g.clone(),
        };
        self.vectors.insert("momentum".to_owned(), m.clone());
        let direction = match nesterov {
            true => g.plus(m.scaled(momentum)),
            false => m,
        };
        x.minus(self.rates.times(direction, rate))
    }

    /// The parameters after a decay that is no part of the gradient (AdamW).
    fn decayed(&self, x: Vector, rate: f32) -> Vector {
        if self.decay.is_zero() {
            return x;
        }
        let shrink = self.rates.times(self.decay.times(x.clone(), 1.0), rate);
        x.minus(shrink)
    }

    fn adam(&mut self, x: Vector, g: Vector, rate: f32, betas: [f32; 2], epsilon: f32) -> Vector {
        let d = self.metric(g.clone(), betas[1], epsilon);
        let m = self.blend("momentum", g, betas[0]);
        let corrected = rate / self.weight(betas[0]) as f32;
        x.minus(self.rates.times(m.over(d), corrected))
    }

    /// MoMo's step: the proximal step of the model `max(rho f*, f - inner + <d, y>) / rho`, with
    /// `alpha` the rate.
    ///
    /// What is averaged is the loss above its bound `f*`, so that `f - rho f*` is one number. A
    /// clipped gradient is that of a loss scaled down, and so is what is averaged: the model stays
    /// one of a loss, and clipping makes a step shorter or leaves it as it is. (With the loss as it
    /// was, a gradient clipped to a tenth made the step ten times longer, up to the bound `alpha /
    /// rho`.)
    ///
    /// Rates `s` and decays `l` may differ between parameters; with `q = 1 + alpha s l` the step in
    /// the metric `D` is `tau = min(alpha / rho, max(0, f - rho f* - inner + <d, x / q>) / sum(s
    /// d^2 / (D q)))`, `x <- (x - tau s d / D) / q`. Where all are equal this is the paper's:
    /// numerator and denominator of `tau` are both divided by `q` here.
    fn model_step(
        &self,
        x: Vector,
        model: Model,
        metric: Option<Vector>,
        weight: f32,
        rate: f32,
    ) -> Vector {
        let Model {
            gradient: d,
            excess,
            inner,
        } = model;
        let mut direction = self.rates.times(d.clone(), 1.0);
        if let Some(metric) = metric {
            direction = direction.over(metric);
        }
        let shrink = |v: Vector| PerNumber::shrink(&self.rates, &self.decay, v, rate);
        let (x, direction) = (shrink(x), shrink(direction));
        let gap = excess - inner + d.dot(&x);
        // A gradient of zero must not divide by zero; its direction is zero whatever tau is.
        let square = d.dot(&direction).clamp_min(f32::MIN_POSITIVE);
        let tau = (gap.clamp_min(0.0) / square).clamp_max(rate / weight);
        x.minus(direction.scaled_by(&tau))
    }

    fn begin(&mut self, model: Model) -> Model {
        self.vectors
            .insert("momentum".to_owned(), model.gradient.clone());
        self.scalars.insert("loss".to_owned(), model.excess.clone());
        self.scalars.insert("inner".to_owned(), model.inner.clone());
        model
    }

    fn blend_model(&mut self, model: Model, beta: f32) -> Model {
        Model {
            gradient: self.blend("momentum", model.gradient, beta),
            excess: self.blend_scalar("loss", model.excess, beta),
            inner: self.blend_scalar("inner", model.inner, beta),
        }
    }

    /// Moves the named average towards `value` and returns it; it begins at zero.
    fn blend(&mut self, name: &str, value: Vector, beta: f32) -> Vector {
        let new = value.scaled(1.0 - beta);
        let new = match self.vectors.remove(name) {
            Some(old) => old.scaled(beta).plus(new),
            None => new,
        };
        self.vectors.insert(name.to_owned(), new.clone());
        new
    }

    fn blend_scalar(&mut self, name: &str, value: Tensor<1>, beta: f32) -> Tensor<1> {
        let new = value.mul_scalar(1.0 - beta);
        let new = match self.scalars.remove(name) {
            Some(old) => old.mul_scalar(beta) + new,
            None => new,
        };
        self.scalars.insert(name.to_owned(), new.clone());
        new
    }

    /// Adam's `sqrt(v / (1 - beta^k)) + epsilon`.
    fn metric(&mut self, g: Vector, beta: f32, epsilon: f32) -> Vector {
        let v = self.blend("square", g.squared(), beta);
        let correction = (1.0 / self.weight(beta)) as f32;
        v.map(|v| v.mul_scalar(correction).sqrt().add_scalar(epsilon))
    }

    /// Sum of the weights of an average that began at zero: `1 - beta^k`. In double precision, as
    /// `1 - 0.999` loses four digits in single.
    fn weight(&self, beta: f32) -> f64 {
        1.0 - f64::from(beta).powi(self.steps.min(i32::MAX as u64) as i32)
    }
}

/// Averages of gradient, loss above its bound, and inner product of gradient and parameters: a
/// linear model of the loss.
struct Model {
    gradient: Vector,
    excess: Tensor<1>,
    inner: Tensor<1>,
}

impl Model {
    /// The model of one batch, scaled by `share` as its gradient is already.
    fn of(gradient: Vector, x: &Vector, loss: &Tensor<1>, bound: f32, share: f32) -> Self {
        Self {
            inner: gradient.dot(x),
            excess: loss.clone().sub_scalar(bound).mul_scalar(share),
            gradient,
        }
    }
}
