//! One step of each rule, on flat vectors.

use burn::tensor::Tensor;

use super::{Optimiser, Rule};
use crate::optimise::flat::PerNumber;

impl Optimiser {
    /// The parameters after the step numbered `self.steps`, from those before it and the clipped gradient.
    pub(super) fn update(
        &mut self,
        x: Tensor<1>,
        g: Tensor<1>,
        loss: &Tensor<1>,
        rate: f32,
    ) -> Tensor<1> {
        match self.config.rule {
            Rule::Sgd { momentum, nesterov } => self.sgd(x, g, rate, momentum, nesterov),
            Rule::Adam {
                betas,
                epsilon,
                decoupled,
            } => self.adam(x, g, rate, betas, epsilon, decoupled),
            Rule::Momo { momentum, bound } => {
                // The averages begin at their first values, so their weights sum to one.
                let model = Model {
                    inner: (g.clone() * x.clone()).sum(),
                    loss: loss.clone(),
                    gradient: g,
                };
                let model = match self.steps {
                    1 => self.begin(model),
                    _ => self.blend_model(model, momentum),
                };
                self.model_step(x, model, None, 1.0, rate, bound)
            }
            Rule::MomoAdam {
                betas,
                epsilon,
                bound,
            } => {
                let metric = self.metric(g.clone(), betas[1], epsilon);
                let model = Model {
                    inner: (g.clone() * x.clone()).sum(),
                    loss: loss.clone(),
                    gradient: g,
                };
                let model = self.blend_model(model, betas[0]);
                let weight = self.weight(betas[0]) as f32;
                self.model_step(x, model, Some(metric), weight, rate, bound)
            }
        }
    }

    fn sgd(
        &mut self,
        x: Tensor<1>,
        g: Tensor<1>,
        rate: f32,
        momentum: f32,
        nesterov: bool,
    ) -> Tensor<1> {
        let g = self.with_l2(g, &x);
        let m = match self.state.remove("momentum") {
            Some(old) => old.mul_scalar(momentum) + g.clone(),
            None => g.clone(),
        };
        self.state.insert("momentum".to_owned(), m.clone());
        let direction = match nesterov {
            true => g + m.mul_scalar(momentum),
            false => m,
        };
        x - self.rates.times(direction, rate)
    }

    fn adam(
        &mut self,
        x: Tensor<1>,
        g: Tensor<1>,
        rate: f32,
        betas: [f32; 2],
        epsilon: f32,
        decoupled: bool,
    ) -> Tensor<1> {
        let (x, g) = match decoupled {
            false => (x.clone(), self.with_l2(g, &x)),
            true if self.decay.is_zero() => (x, g),
            true => {
                let shrink = self.rates.times(self.decay.times(x.clone(), 1.0), rate);
                (x - shrink, g)
            }
        };
        let d = self.metric(g.clone(), betas[1], epsilon);
        let m = self.blend("momentum", g, betas[0]);
        let corrected = rate / self.weight(betas[0]) as f32;
        x - self.rates.times(m / d, corrected)
    }

    fn with_l2(&self, g: Tensor<1>, x: &Tensor<1>) -> Tensor<1> {
        match self.decay.is_zero() {
            true => g,
            false => g + self.decay.times(x.clone(), 1.0),
        }
    }

    /// MoMo's step: the proximal step of the model `max(rho f*, f - inner + <d, y>) / rho`, with `alpha` the rate.
    ///
    /// Rates `s` and decays `l` may differ between parameters; with `q = 1 + alpha s l` the step in the metric `D` is
    /// `tau = min(alpha / rho, max(0, f - rho f* - inner + <d, x / q>) / sum(s d^2 / (D q)))`, `x <- (x - tau s d / D) / q`.
    /// Where all are equal this is the paper's: numerator and denominator of `tau` are both divided by `q` here.
    fn model_step(
        &self,
        x: Tensor<1>,
        model: Model,
        metric: Option<Tensor<1>>,
        weight: f32,
        rate: f32,
        bound: f32,
    ) -> Tensor<1> {
        let Model {
            gradient: d,
            loss: f,
            inner,
        } = model;
        let mut direction = self.rates.times(d.clone(), 1.0);
        if let Some(metric) = metric {
            direction = direction / metric;
        }
        let (x, direction) = self.shrunk(x, direction, rate);
        let gap = f.sub_scalar(weight * bound) - inner + (d.clone() * x.clone()).sum();
        // A gradient of zero must not divide by zero; its direction is zero whatever tau is.
        let square = (d * direction.clone()).sum().clamp_min(f32::MIN_POSITIVE);
        let tau = (gap.clamp_min(0.0) / square).clamp_max(rate / weight);
        x - direction * tau
    }

    /// Both vectors divided by `1 + rate s l`.
    fn shrunk(&self, x: Tensor<1>, direction: Tensor<1>, rate: f32) -> (Tensor<1>, Tensor<1>) {
        let each = match (&self.rates, &self.decay) {
            (_, decay) if decay.is_zero() => return (x, direction),
            (PerNumber::Uniform(s), PerNumber::Uniform(l)) => {
                let factor = 1.0 / (1.0 + rate * s * l);
                return (x.mul_scalar(factor), direction.mul_scalar(factor));
            }
            (PerNumber::Each(s), decay) => decay.times(s.clone(), rate),
            (rates, PerNumber::Each(l)) => rates.times(l.clone(), rate),
        };
        let factor = each.add_scalar(1.0).recip();
        (x * factor.clone(), direction * factor)
    }

    fn begin(&mut self, model: Model) -> Model {
        for (name, value) in model.parts() {
            self.state.insert(name.to_owned(), value.clone());
        }
        model
    }

    fn blend_model(&mut self, model: Model, beta: f32) -> Model {
        Model {
            gradient: self.blend("momentum", model.gradient, beta),
            loss: self.blend("loss", model.loss, beta),
            inner: self.blend("inner", model.inner, beta),
        }
    }

    /// Moves the named average towards `value` and returns it; it begins at zero.
    fn blend(&mut self, name: &str, value: Tensor<1>, beta: f32) -> Tensor<1> {
        let new = value.mul_scalar(1.0 - beta);
        let new = match self.state.remove(name) {
            Some(old) => old.mul_scalar(beta) + new,
            None => new,
        };
        self.state.insert(name.to_owned(), new.clone());
        new
    }

    /// Adam's `sqrt(v / (1 - beta^k)) + epsilon`.
    fn metric(&mut self, g: Tensor<1>, beta: f32, epsilon: f32) -> Tensor<1> {
        let v = self.blend("square", g.clone() * g, beta);
        let correction = (1.0 / self.weight(beta)) as f32;
        v.mul_scalar(correction).sqrt().add_scalar(epsilon)
    }

    /// Sum of the weights of an average that began at zero: `1 - beta^k`. In double precision, as `1 - 0.999` loses four
    /// digits in single.
    fn weight(&self, beta: f32) -> f64 {
        1.0 - f64::from(beta).powi(self.steps.min(i32::MAX as u64) as i32)
    }
}

/// Averages of gradient, loss, and inner product of gradient and parameters: a linear model of the loss.
struct Model {
    gradient: Tensor<1>,
    loss: Tensor<1>,
    inner: Tensor<1>,
}

impl Model {
    fn parts(&self) -> [(&'static str, &Tensor<1>); 3] {
        [
            ("momentum", &self.gradient),
            ("loss", &self.loss),
            ("inner", &self.inner),
        ]
    }
}
