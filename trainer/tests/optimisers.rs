//! Optimisers against the formulas of their papers: steps computed by hand, steps computed in
//! double precision, and for MoMo the minimum that a step is defined as.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use pi_trainer::optimise::{Average, NotFinite, Optimiser, OptimiserConfig, Place};
use pi_trainer::tensors::Tensors;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

type Numbers = BTreeMap<String, Vec<f64>>;

fn device() -> Device {
    Device::flex()
}

fn tensor(values: &[f64]) -> Tensor<1> {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), &device())
}

fn tensors(values: &Numbers) -> Tensors {
    values
        .iter()
        .map(|(name, v)| (name.clone(), tensor(v)))
        .collect()
}

fn bits(tensors: &Tensors) -> BTreeMap<String, Vec<u32>> {
    let all = |tensor: &Tensor<1>| -> Vec<u32> {
        let values: Vec<f32> = tensor.to_data().try_into_vec().unwrap();
        values.iter().map(|v| v.to_bits()).collect()
    };
    tensors
        .iter()
        .map(|(name, t)| (name.clone(), all(t)))
        .collect()
}

fn values(tensors: &Tensors) -> Vec<f64> {
    let bits = bits(tensors);
    bits.values()
        .flatten()
        .map(|b| f64::from(f32::from_bits(*b)))
        .collect()
}

fn config(text: &str) -> OptimiserConfig {
    let config: OptimiserConfig = toml::from_str(text).unwrap();
    config.check().unwrap();
    config
}

/// `b.weight` is a matrix of one row.
fn place(name: &str) -> Place {
    Place {
        rows: (name == "b.weight").then_some(1),
        ..Place::default()
    }
}

fn optimiser(text: &str, parameters: &Tensors) -> Optimiser {
    Optimiser::new(&config(text), parameters, place, &device())
}

fn numbers(parts: &[(&str, &[f64])]) -> Numbers {
    parts
        .iter()
        .map(|(name, v)| ((*name).to_owned(), v.to_vec()))
        .collect()
}

/// Single precision on numbers around one, a few operations.
const TOLERANCE: f64 = 5e-6;

fn close(got: &[f64], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (g, e) in got.iter().zip(expected) {
        assert!(
            (g - e).abs() <= TOLERANCE * e.abs().max(1.0),
            "{what}: {got:?}, expected {expected:?}"
        );
    }
}

#[test]
fn nesterov_steps_are_those_computed_by_hand() {
    let mut x = tensors(&numbers(&[("a.weight", &[1.0, -2.0]), ("b.bias", &[0.5])]));
    let g = tensors(&numbers(&[("a.weight", &[0.5, 0.25]), ("b.bias", &[1.0])]));
    let text = "rule.sgd = { momentum = 0.9 }\nweight_decay = 0.01";
    let mut optimiser = optimiser(text, &x);
    let report = optimiser.step(&mut x, &g, &tensor(&[3.0]), 0.1, 0).unwrap();
    // g + decay x = (0.51, 0.23), 1; m the same; x - 0.1 (1.9 m).
    close(&values(&x), &[0.9031, -2.0437, 0.31], "first step");
    assert!((f64::from(report.norm) - 1.3125f64.sqrt()).abs() < 1e-6);
    assert_eq!(report.loss, 3.0);
    optimiser.step(&mut x, &g, &tensor(&[3.0]), 0.1, 0).unwrap();
    // g + decay x = (0.509031, 0.229563), 1; m = 0.9 m + g = (0.968031, 0.436563), 1.9; x - 0.1
    // (g + 0.9 m).
    close(
        &values(&x),
        &[0.765_074_11, -2.105_946_97, 0.039],
        "second step",
    );
}

#[test]
fn momo_adam_steps_are_those_computed_by_hand() {
    // d = 0.2, f = 0.1, inner = 0.2, weight 0.1; D = 2; (0.1 + 0.2 - 0.2) / (0.04 / 2) = 5.
    let first = |rate: f64, bound: &str| {
        let mut x = tensors(&numbers(&[("a.weight", &[1.0])]));
        let g = tensors(&numbers(&[("a.weight", &[2.0])]));
        let mut optimiser = optimiser(&format!("rule.momo-adam = {{ bound = {bound} }}"), &x);
        optimiser
            .step(&mut x, &g, &tensor(&[1.0]), rate as f32, 0)
            .unwrap();
        values(&x)
    };
    // The bound alpha / weight = 0.1 holds: x - 0.1 0.2 / 2.
    close(&first(0.01, "0.0"), &[0.99], "truncated by the rate");
    // The model decides: x - 5 0.2 / 2, where it is zero: 1 + 2 (0.5 - 1) = 0.
    close(&first(100.0, "0.0"), &[0.5], "up to the lower bound");
    // Half of the way to the lower bound 0.5.
    close(&first(100.0, "0.5"), &[0.75], "up to f* = 0.5");
    // Already below f* = 2: no step.
    close(&first(100.0, "2.0"), &[1.0], "no step");
}

#[test]
fn clipping_does_not_lengthen_a_step_of_momo() {
    // f = 2.3 and |g| = 10: the model is zero after a step of 2.3 / 10, clipped or not; the bound
    // alpha |g| falls with it.
    let length = |rule: &str, rate: f32| {
        let mut x = tensors(&numbers(&[("a.weight", &[0.0, 0.0])]));
        let g = tensors(&numbers(&[("a.weight", &[6.0, -8.0])]));
        optimiser(rule, &x)
            .step(&mut x, &g, &tensor(&[2.3]), rate, 0)
            .unwrap();
        values(&x).iter().map(|v| v * v).sum::<f64>().sqrt()
    };
    close(&[length("rule.momo = {}", 1.0)], &[0.23], "free");
    close(
        &[length("rule.momo = {}\nclip = 1.0", 1.0)],
        &[0.23],
        "clipped",
    );
    close(
        &[length("rule.momo = {}\nclip = 1.0", 0.1)],
        &[0.1],
        "bounded by the rate",
    );
}

/// `0.5 h (x - c)^2 + floor` summed: loss and gradient.
fn quadratic(x: &[f64], floor: f64) -> (f64, Vec<f64>) {
    let (h, c) = ([4.0, 0.5, 1.0, 0.1], [0.3, -1.0, 0.0, 2.0]);
    let loss = (0..4)
        .map(|i| 0.5 * h[i] * (x[i] - c[i]).powi(2))
        .sum::<f64>()
        + floor;
    (loss, (0..4).map(|i| h[i] * (x[i] - c[i])).collect())
}

const START: [f64; 4] = [1.0, 1.0, -1.5, 0.7];

fn split(x: &[f64]) -> Numbers {
    numbers(&[("a.bias", &x[..1]), ("b.weight", &x[1..4])])
}

/// The step of a rule in double precision, with the averages it needs, as the specification writes
/// it: one decay for all.
struct Reference {
    rule: &'static str,
    decay: f64,
    bound: f64,
    k: i32,
    m: Vec<f64>,
    v: Vec<f64>,
    f: f64,
    least: f64,
    inner: f64,
    branches: [usize; 3],
}

impl Reference {
    fn new(rule: &'static str, decay: f64, bound: f64) -> Self {
        let zeros = vec![0.0; 4];
        Self {
            rule,
            decay,
            bound,
            k: 0,
            m: zeros.clone(),
            v: zeros,
            f: 0.0,
            least: 0.0,
            inner: 0.0,
            branches: [0; 3],
        }
    }

    /// A gradient longer than `clip` is that of a loss, and of a lower bound of it, scaled down to
    /// its length.
    fn step(&mut self, x: &mut [f64], g: &[f64], loss: f64, alpha: f64, clip: f64) {
        self.k += 1;
        let (b1, b2) = (0.9, 0.999);
        let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
        let share = (clip / norm).min(1.0);
        let g: &[f64] = &g.iter().map(|g| share * g).collect::<Vec<f64>>();
        let (loss, least) = (share * loss, share * self.bound);
        let l2: Vec<f64> = g.iter().zip(&*x).map(|(g, x)| g + self.decay * x).collect();
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let blend = |old: &mut f64, new: f64, beta: f64| *old = beta * *old + (1.0 - beta) * new;
        match self.rule {
            "sgd" | "heavy-ball" => {
                for i in 0..4 {
                    self.m[i] = b1 * self.m[i] + l2[i];
                    let ahead = if self.rule == "sgd" {
                        l2[i] + b1 * self.m[i]
                    } else {
                        self.m[i]
                    };
                    x[i] -= alpha * ahead;
                }
            }
            "adam" | "adamw" => {
                let g = if self.rule == "adam" { &l2 } else { g };
                for i in 0..4 {
                    if self.rule == "adamw" {
                        x[i] *= 1.0 - alpha * self.decay;
                    }
                    blend(&mut self.m[i], g[i], b1);
                    blend(&mut self.v[i], g[i] * g[i], b2);
                    let (m, v) = (
                        self.m[i] / (1.0 - b1.powi(self.k)),
                        self.v[i] / (1.0 - b2.powi(self.k)),
                    );
                    x[i] -= alpha * m / (v.sqrt() + 1e-8);
                }
            }
            "momo" | "momo-adam" => {
                let adam = self.rule == "momo-adam";
                let inner = dot(g, x);
                if !adam && self.k == 1 {
                    (self.m, self.f, self.inner) = (g.to_vec(), loss, inner);
                    self.least = least;
                } else {
                    blend(&mut self.least, least, b1);
                    (0..4).for_each(|i| blend(&mut self.m[i], g[i], b1));
                    blend(&mut self.f, loss, b1);
                    blend(&mut self.inner, inner, b1);
                }
                let rho = if adam { 1.0 - b1.powi(self.k) } else { 1.0 };
                let metric: Vec<f64> = (0..4)
                    .map(|i| {
                        blend(&mut self.v[i], g[i] * g[i], b2);
                        if adam {
                            (self.v[i] / (1.0 - b2.powi(self.k))).sqrt() + 1e-8
                        } else {
                            1.0
                        }
                    })
                    .collect();
                let q = 1.0 + alpha * self.decay;
                let direction: Vec<f64> = self.m.iter().zip(&metric).map(|(d, m)| d / m).collect();
                let gap = q * (self.f - self.least) + dot(&self.m, x) - q * self.inner;
                let free = gap / dot(&self.m, &direction);
                let tau = (alpha / rho).min(free.max(0.0));
                self.branches[if free <= 0.0 {
                    0
                } else if free < alpha / rho {
                    1
                } else {
                    2
                }] += 1;
                (0..4).for_each(|i| x[i] = (x[i] - tau * direction[i]) / q);
            }
            other => panic!("no rule {other}"),
        }
    }
}

#[test]
fn steps_equal_the_formulas_in_double_precision() {
    let mut branches = BTreeMap::<&str, [usize; 3]>::new();
    for (rule, text) in [
        ("sgd", "rule.sgd = {}"),
        ("heavy-ball", "rule.sgd = { nesterov = false }"),
        ("adam", "rule.adam = {}"),
        ("adamw", "rule.adam = { decoupled = true }"),
        ("momo", "rule.momo = { bound = BOUND }"),
        ("momo-adam", "rule.momo-adam = { bound = BOUND }"),
    ] {
        for (alpha, decay, floor, bound, clip) in [
            (0.05, 0.0, 0.0, 0.0, f64::INFINITY),
            (0.05, 0.3, 0.2, 0.0, f64::INFINITY),
            (1.0, 0.1, 0.7, 0.7, f64::INFINITY),
            (5.0, 0.0, 0.7, 0.7, f64::INFINITY),
            (1.0, 0.0, 0.0, 9.0, f64::INFINITY),
            (0.05, 0.3, 0.2, 0.1, 0.5),
            (5.0, 0.1, 0.7, 0.7, 0.5),
        ] {
            if alpha > 0.1 && !rule.starts_with("momo") {
                continue; // Without a model of the loss such a rate diverges.
            }
            let text = text.replace("BOUND", &format!("{bound:?}"));
            let mut text = format!("{text}\nweight_decay = {decay:?}\ndecayed = [\"*\"]");
            if clip.is_finite() {
                text += &format!("\nclip = {clip:?}");
            }
            let mut exact = START.to_vec();
            let mut x = tensors(&split(&exact));
            let mut optimiser = optimiser(&text, &x);
            let mut reference = Reference::new(rule, decay, bound);
            for step in 0..12 {
                let (loss, g) = quadratic(&exact, floor);
                let rate = alpha / (1.0 + 0.1 * f64::from(step));
                optimiser
                    .step(
                        &mut x,
                        &tensors(&split(&g)),
                        &tensor(&[loss]),
                        rate as f32,
                        0,
                    )
                    .unwrap();
                reference.step(&mut exact, &g, loss, rate, clip);
                close(&values(&x), &exact, &format!("{rule}, step {step}, {text}"));
            }
            let sums = branches.entry(rule).or_default();
            (0..3).for_each(|i| sums[i] += reference.branches[i]);
        }
    }
    for rule in ["momo", "momo-adam"] {
        assert!(
            branches[rule].iter().all(|count| *count > 0),
            "{rule}: no step, free steps, truncated steps: {:?}",
            branches[rule]
        );
    }
}

#[test]
fn momo_with_rates_and_decays_of_their_own_minimises_its_model() {
    // The first step's model is f + <g, y - x>, cut off at f*; the step minimises it with
    // sum(D (y - x)^2 / (2 alpha s) + l D y^2 / 2).
    let (s, l) = ([0.5, 2.0, 2.0, 2.0], [0.0, 0.3, 0.3, 0.3]);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random = move || f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5;
    for adam in [false, true] {
        for (alpha, bound) in [(0.05, 0.0), (3.0, 0.0), (3.0, 2.0), (3.0, 9.0)] {
            let rule = if adam { "momo-adam" } else { "momo" };
            let text = format!(
                "rule.{rule} = {{ bound = {bound:?} }}\nweight_decay = 0.3\n\
                 rates = [{{ parameters = \"*\", factor = 2.0 }}, \
                 {{ parameters = \"*.bias\", factor = 0.5 }}]"
            );
            let mut x = tensors(&split(&START));
            let (loss, g) = quadratic(&START, 0.0);
            let mut optimiser = optimiser(&text, &x);
            optimiser
                .step(
                    &mut x,
                    &tensors(&split(&g)),
                    &tensor(&[loss]),
                    alpha as f32,
                    0,
                )
                .unwrap();
            let found = values(&x);
            let objective = |y: &[f64]| {
                let model = loss + (0..4).map(|i| g[i] * (y[i] - START[i])).sum::<f64>();
                let metric = |i: usize| if adam { g[i].abs() + 1e-8 } else { 1.0 };
                let near = |i: usize| metric(i) * (y[i] - START[i]).powi(2) / (2.0 * alpha * s[i]);
                let small = |i: usize| l[i] * metric(i) * y[i] * y[i] / 2.0;
                model.max(bound) + (0..4).map(|i| near(i) + small(i)).sum::<f64>()
            };
            let least = objective(&found);
            for scale in [1e-3, 1e-2, 0.1, 1.0] {
                for _ in 0..500 {
                    let y: Vec<f64> = found.iter().map(|v| v + scale * random()).collect();
                    assert!(
                        objective(&y) > least - 1e-6,
                        "{text}, alpha {alpha}: {y:?} is better than {found:?} by {}",
                        least - objective(&y)
                    );
                }
            }
        }
    }
}

/// A matrix of rows, in double precision.
type Matrix = Vec<Vec<f64>>;

fn transposed(a: &Matrix) -> Matrix {
    (0..a[0].len())
        .map(|j| a.iter().map(|row| row[j]).collect())
        .collect()
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let b = transposed(b);
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    a.iter()
        .map(|row| b.iter().map(|column| dot(row, column)).collect())
        .collect()
}

fn sum(terms: &[(f64, &Matrix)]) -> Matrix {
    let (rows, columns) = (terms[0].1.len(), terms[0].1[0].len());
    let at = |i: usize, j: usize| terms.iter().map(|(f, m)| f * m[i][j]).sum();
    (0..rows)
        .map(|i| (0..columns).map(|j| at(i, j)).collect())
        .collect()
}

fn norm(a: &Matrix) -> f64 {
    a.iter().flatten().map(|v| v * v).sum::<f64>().sqrt()
}

fn newton_schulz(a: &Matrix, steps: usize) -> Matrix {
    let mut x = sum(&[(1.0 / (norm(a) + 1e-7), a)]);
    for _ in 0..steps {
        let square = product(&x, &transposed(&x));
        let fourth = product(&square, &square);
        let odd = sum(&[(-4.7750, &square), (2.0315, &fourth)]);
        x = sum(&[(3.4445, &x), (1.0, &product(&odd, &x))]);
    }
    x
}

#[test]
fn muon_makes_orthogonal_steps_of_matrices_and_sgd_steps_of_the_rest() {
    // Matrices of 3 x 5, 5 x 3 and 1 x 4, a matrix that is none to the network, and a bias.
    let shapes = [
        ("a.weight", Some(3), 15),
        ("b.weight", Some(5), 15),
        ("c.weight", Some(1), 4),
        ("d.weight", None, 4),
        ("e.bias", None, 2),
    ];
    let place = |name: &str| Place {
        depth: 0,
        rows: shapes.iter().find(|s| s.0 == name).unwrap().1,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut random = || -> Numbers {
        let mut draw = || f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5;
        let some = |(name, _, count): &(&str, _, usize)| {
            let values: Vec<f64> = (0..*count).map(|_| draw()).collect();
            ((*name).to_owned(), values)
        };
        shapes.iter().map(some).collect()
    };
    let text = "rule.muon = { momentum = 0.6, steps = 4, sgd_momentum = 0.85 }\n\
        weight_decay = 0.01\ndecayed = [\"*\"]\n\
        rates = [{ parameters = \"*\", factor = 0.1 }, \
        { parameters = \"d.*\", factor = 0.7 }, { parameters = \"e.*\", factor = 0.0 }]";
    let mut exact = random();
    let mut x = tensors(&exact);
    let mut optimiser = Optimiser::new(&config(text), &x, place, &device());
    let mut momenta: Numbers = exact
        .iter()
        .map(|(name, v)| (name.clone(), vec![0.0; v.len()]))
        .collect();
    for step in 0..6 {
        let (g, rate) = (random(), 0.5 / f64::from(step + 1));
        optimiser
            .step(&mut x, &tensors(&g), &tensor(&[1.0]), rate as f32, 0)
            .unwrap();
        for (name, rows, count) in &shapes {
            let (x, m) = (
                exact.get_mut(*name).unwrap(),
                momenta.get_mut(*name).unwrap(),
            );
            let factor = match *name {
                "d.weight" => 0.7,
                "e.bias" => 0.0,
                _ => 0.1,
            };
            let (mu, decay) = match rows {
                Some(_) => (0.6, 0.0),
                None if factor == 0.0 => (0.85, 0.0),
                None => (0.85, 0.01 / factor),
            };
            let g: Vec<f64> = (0..*count).map(|i| g[*name][i] + decay * x[i]).collect();
            (0..*count).for_each(|i| m[i] = mu * m[i] + g[i]);
            let ahead: Vec<f64> = (0..*count).map(|i| g[i] + mu * m[i]).collect();
            let Some(rows) = *rows else {
                (0..*count).for_each(|i| x[i] -= rate * factor * ahead[i]);
                continue;
            };
            let matrix =
                |v: &[f64]| -> Matrix { v.chunks(count / rows).map(<[f64]>::to_vec).collect() };
            let direction = newton_schulz(&matrix(&ahead), 4);
            let weight = matrix(x);
            let scale = (rows as f64).sqrt() / norm(&weight);
            *x = sum(&[(scale, &weight), (-rate * factor, &direction)]).concat();
            // The rows (or the columns) of the direction are near to orthonormal.
            let wide = if rows > count / rows {
                transposed(&direction)
            } else {
                direction
            };
            for (i, row) in product(&wide, &transposed(&wide)).iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let unit = f64::from(u8::from(i == j));
                    assert!((value - unit).abs() < 0.6, "{name}: {i}, {j}: {value}");
                }
            }
        }
        let expected: Vec<f64> = exact.values().flatten().copied().collect();
        close(&values(&x), &expected, &format!("step {step}"));
    }
}

#[test]
fn one_norm_over_all_tensors_is_clipped() {
    let g = numbers(&[("a.weight", &[3.0, 0.0]), ("b.bias", &[-4.0])]);
    let step = |clip: &str| {
        let mut x = tensors(&numbers(&[("a.weight", &[0.0, 0.0]), ("b.bias", &[0.0])]));
        let mut optimiser = optimiser(&format!("rule.sgd = {{ momentum = 0.0 }}\n{clip}"), &x);
        let report = optimiser
            .step(&mut x, &tensors(&g), &tensor(&[1.0]), 1.0, 0)
            .unwrap();
        assert_eq!(report.norm, 5.0, "the norm is that before clipping");
        values(&x)
    };
    close(&step("clip = 1.0"), &[-0.6, 0.0, 0.8], "clipped to 1");
    close(&step("clip = 5.5"), &[-3.0, 0.0, 4.0], "below the bound");
    close(&step(""), &[-3.0, 0.0, 4.0], "no bound");
}

#[test]
fn what_is_not_finite_is_named_and_changes_nothing() {
    for rule in ["sgd", "adam", "momo", "momo-adam", "muon"] {
        let text = format!("rule.{rule} = {{}}\naverage.ema.decay = 0.9");
        let good = tensors(&numbers(&[
            ("a.weight", &[1.0, 2.0]),
            ("b.weight", &[0.5]),
            ("c.bias", &[0.5]),
        ]));
        let mut x = tensors(&numbers(&[
            ("a.weight", &[1.0, 1.0]),
            ("b.weight", &[0.5]),
            ("c.bias", &[2.0]),
        ]));
        let mut untouched = x.clone();
        let mut optimiser = optimiser(&text, &x);
        let mut other = self::optimiser(&text, &x);
        let before = bits(&x);
        let mut fails = |g: &Tensors, loss: f64| {
            let why = optimiser
                .step(&mut x, g, &tensor(&[loss]), 0.1, 0)
                .unwrap_err();
            assert_eq!(bits(&x), before, "the parameters moved");
            why
        };
        let mut bad = good.clone();
        bad.insert("a.weight".to_owned(), tensor(&[0.0, f64::NAN]));
        bad.insert("c.bias".to_owned(), tensor(&[f64::INFINITY]));
        assert_eq!(
            fails(&bad, 1.0),
            NotFinite::Gradient("a.weight, c.bias".to_owned())
        );
        bad = good.clone();
        bad.insert("b.weight".to_owned(), tensor(&[1e30]));
        let NotFinite::Gradient(text) = fails(&bad, 1.0) else {
            panic!("the loss is fine")
        };
        assert!(text.contains("norm"), "{text}");
        assert!(matches!(fails(&good, f64::NAN), NotFinite::Loss(loss) if loss.is_nan()));
        optimiser
            .step(&mut x, &good, &tensor(&[1.0]), 0.1, 0)
            .unwrap();
        other
            .step(&mut untouched, &good, &tensor(&[1.0]), 0.1, 0)
            .unwrap();
        assert_eq!(
            bits(&x),
            bits(&untouched),
            "{rule}: the state remembers a step that was refused"
        );
    }
}

#[test]
fn exported_state_goes_on_bit_for_bit() {
    for rule in ["sgd", "adam", "momo", "momo-adam", "muon"] {
        for average in ["average.ema.decay = 0.9", "average.swa.from = 2"] {
            let text = format!("rule.{rule} = {{}}\nweight_decay = 0.01\nclip = 2.0\n{average}");
            let mut x = tensors(&split(&START));
            let run =
                |optimiser: &mut Optimiser, x: &mut Tensors, steps: std::ops::Range<usize>| {
                    for step in steps {
                        let (loss, g) = quadratic(&values(x), 0.1);
                        optimiser
                            .step(x, &tensors(&split(&g)), &tensor(&[loss]), 0.05, step)
                            .unwrap();
                    }
                };
            let mut whole = optimiser(&text, &x);
            let mut resumed = optimiser(&text, &x);
            let mut y = x.clone();
            run(&mut whole, &mut x, 0..9);
            run(&mut resumed, &mut y, 0..4);
            let saved = resumed.export();
            let mut resumed = optimiser(&text, &y);
            resumed.import(saved).unwrap();
            run(&mut resumed, &mut y, 4..9);
            assert_eq!(bits(&x), bits(&y), "{text}");
            assert!(whole.apply_average(&mut x) && resumed.apply_average(&mut y));
            assert_eq!(bits(&x), bits(&y), "{text}");
        }
    }
}

#[test]
fn state_of_another_optimiser_is_refused_by_name() {
    let mut x = tensors(&split(&START));
    let g = x.clone();
    let mut sgd = optimiser("rule.sgd = {}", &x);
    sgd.step(&mut x, &g, &tensor(&[1.0]), 0.1, 0).unwrap();
    let refuses = |mut into: Optimiser, arrays, says: &str| {
        let error = format!("{:#}", into.import(arrays).expect_err(says));
        assert!(error.contains(says), "{error}");
    };
    refuses(
        optimiser("rule.adam = {}", &x),
        sgd.export(),
        "another rule",
    );
    let mut adam = optimiser("rule.adam = {}", &x);
    adam.step(&mut x, &g, &tensor(&[1.0]), 0.1, 0).unwrap();
    refuses(optimiser("rule.sgd = {}", &x), adam.export(), "square/");
    let mut others = x.clone();
    others.insert("c.bias".to_owned(), tensor(&[1.0]));
    refuses(optimiser("rule.sgd = {}", &others), sgd.export(), "c.bias");
    others.remove("c.bias");
    others.insert("a.bias".to_owned(), tensor(&[1.0, 2.0]));
    refuses(
        optimiser("rule.sgd = {}", &others),
        sgd.export(),
        "a.bias has 1 numbers",
    );
    let mut arrays = sgd.export();
    arrays.remove("steps");
    refuses(optimiser("rule.sgd = {}", &x), arrays, "count of steps");
}

#[test]
fn averages_are_those_of_the_weights_after_each_step() {
    // Steps of -1: the weights are -1, -2, -3, -4.
    let averaged = |text: &str| {
        let mut x = tensors(&numbers(&[("a.weight", &[0.0])]));
        let g = tensors(&numbers(&[("a.weight", &[1.0])]));
        let mut optimiser = optimiser(&format!("rule.sgd = {{ momentum = 0.0 }}\n{text}"), &x);
        for epoch in 0..4 {
            optimiser
                .step(&mut x, &g, &tensor(&[1.0]), 1.0, epoch)
                .unwrap();
        }
        close(&values(&x), &[-4.0], "the weights themselves");
        let shadow = optimiser.averaged().map(|shadow| values(&shadow));
        let applied = optimiser.apply_average(&mut x);
        assert_eq!(applied, shadow.is_some());
        assert!(!applied || Some(values(&x)) == shadow);
        shadow
    };
    close(
        &averaged("average.swa.from = 1").unwrap(),
        &[-3.0],
        "mean of the last three",
    );
    // -1, -1.5, -2.25, -3.125.
    close(
        &averaged("average.ema.decay = 0.5").unwrap(),
        &[-3.125],
        "moving average",
    );
    assert_eq!(averaged("average.swa.from = 9"), None);
    assert_eq!(averaged(""), None);
}

#[test]
fn rates_fall_by_layer_and_by_name() {
    let names = ["c1.weight", "c2.weight", "dense.bias", "dense.weight"];
    let mut x: Tensors = names
        .iter()
        .map(|n| ((*n).to_owned(), tensor(&[1.0])))
        .collect();
    let g = x.clone();
    let text = "rule.sgd = { momentum = 0.0 }\nlayer_decay = 0.5\n\
        rates = [{ parameters = \"dense.*\", factor = 0.1 }, \
        { parameters = \"*.bias\", factor = 0.0 }]";
    let depth = |name: &str| Place {
        depth: match name {
            "c1.weight" => 2,
            "c2.weight" => 1,
            _ => 0,
        },
        rows: None,
    };
    let mut optimiser = Optimiser::new(&config(text), &x, depth, &device());
    optimiser.step(&mut x, &g, &tensor(&[1.0]), 0.4, 0).unwrap();
    close(
        &values(&x),
        &[0.9, 0.8, 1.0, 0.96],
        "0.4 / 4, 0.4 / 2, none, 0.4 / 10",
    );
}

#[test]
fn a_later_stage_carries_what_it_shares() {
    let (first, both) = (
        tensors(&numbers(&[("a.weight", &[1.0])])),
        tensors(&numbers(&[("a.weight", &[1.0]), ("b.weight", &[1.0])])),
    );
    let text = "rule.sgd = { momentum = 0.5, nesterov = false }";
    let mut old = optimiser(text, &first);
    old.step(&mut first.clone(), &first, &tensor(&[1.0]), 0.1, 0)
        .unwrap();
    let mut new = optimiser(text, &both);
    new.carry(&old);
    let mut x = both.clone();
    new.step(&mut x, &both, &tensor(&[1.0]), 0.1, 0).unwrap();
    // Momentum 0.5 + 1 where it was carried, 1 where it begins.
    close(&values(&x), &[0.85, 0.9], "carried, new");
    let mut other = optimiser("rule.sgd = { momentum = 0.9, nesterov = false }", &both);
    other.carry(&old);
    let mut x = both.clone();
    other.step(&mut x, &both, &tensor(&[1.0]), 0.1, 0).unwrap();
    close(&values(&x), &[0.9, 0.9], "another rule begins anew");
}

#[test]
fn parameters_without_a_gradient_count_as_zero_and_none_at_all_is_no_step() {
    let mut x = tensors(&numbers(&[("a.weight", &[1.0]), ("b.weight", &[1.0])]));
    let g = tensors(&numbers(&[("b.weight", &[1.0])]));
    let mut two = optimiser("rule.sgd = { momentum = 0.0 }", &x);
    two.step(&mut x, &g, &tensor(&[1.0]), 0.5, 0).unwrap();
    close(&values(&x), &[1.0, 0.5], "only b moves");
    let mut none = optimiser("rule.sgd = {}", &Tensors::new());
    let report = none.step(&mut x, &g, &tensor(&[1.5]), 0.5, 0).unwrap();
    assert_eq!((report.loss, report.norm), (1.5, 0.0));
    close(&values(&x), &[1.0, 0.5], "nothing is trained");
}

#[test]
fn settings_out_of_range_are_named() {
    let defaults: OptimiserConfig = toml::from_str("").unwrap();
    assert_eq!(
        toml::from_str::<OptimiserConfig>(&toml::to_string(&defaults).unwrap()).unwrap(),
        defaults
    );
    assert_eq!(defaults.average, None::<Average>);
    for (text, says) in [
        ("rule.sgd.momentum = 1.0", "momentum"),
        ("rule.adam.betas = [0.9, 1.5]", "betas"),
        ("weight_decay = -1.0", "weight_decay"),
        ("clip = 0.0", "clip"),
        ("layer_decay = 1.5", "layer_decay"),
        ("average.ema.decay = 1.0", "average"),
        ("rates = [{ parameters = \"*\", factor = -1.0 }]", "rates"),
        ("rule.momo.bound = nan", "bound"),
        ("rule.muon.momentum = 1.0", "momentum is 1"),
        ("rule.muon.sgd_momentum = nan", "sgd_momentum NaN"),
        ("rule.muon.steps = 0", "muon's steps are 0"),
    ] {
        let config: OptimiserConfig = toml::from_str(text).unwrap();
        let error = config.check().expect_err(text).to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(toml::from_str::<OptimiserConfig>("rule.lion = {}").is_err());
    assert!(toml::from_str::<OptimiserConfig>("momentum = 0.9").is_err());
}
