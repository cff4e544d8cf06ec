use super::*;
use crate::convolution::tests::values;

const GUARDS: [f32; 2] = [f32::INFINITY, 0.7];

const PULLS: [Pull; 3] = [
    Pull::None,
    Pull::Excess {
        radius: 0.6,
        pull: 0.3,
    },
    Pull::Power {
        radius: 0.8,
        pull: 0.2,
        power: 5,
    },
];

/// Images, height and width together, channels, positions with coefficients of their own.
const SHAPES: [(usize, usize, usize, usize); 5] = [
    (3, 20, 5, 1),
    (2, 9, 16, 9),
    (9, 49, 40, 49),
    (10, 6, 33, 1),
    (1, 70, 3, 70),
];

struct Case {
    channels: usize,
    x: Vec<f32>,
    grad: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    coefficients: Vec<f32>,
}

impl Case {
    fn new((images, plane, channels, positions): (usize, usize, usize, usize)) -> Self {
        let count = images * plane * channels;
        Self {
            channels,
            x: values(count, 1).iter().map(|v| 1.5 * v + 0.25).collect(),
            grad: values(count, 2),
            gamma: values(channels, 3).iter().map(|v| v + 1.5).collect(),
            beta: values(channels, 4),
            coefficients: values(4 * channels * positions, 5),
        }
    }

    fn activation(&self, guard: f32, pull: Pull) -> Activation<'_> {
        Activation {
            coefficients: &self.coefficients,
            guard,
            pull,
        }
    }

    fn norm<'a>(&'a self, moments: &'a [f32]) -> Norm<'a> {
        Norm {
            moments,
            gamma: &self.gamma,
            beta: &self.beta,
        }
    }
}

/// Value of an activation, its slopes by `z` and by each coefficient, and a penalty's pull.
fn reference(z: f64, k: [f64; 4], guard: f32, pull: Pull) -> (f64, f64, [f64; 4], f64) {
    let guard = f64::from(guard);
    let c = z.clamp(-guard, guard);
    // The tangent at `c`.
    let square = c * c + 2.0 * c * (z - c);
    let (relu, step) = (z.max(0.0), if z > 0.0 { 1.0 } else { 0.0 });
    let terms = [relu, square, z, 1.0];
    let value = terms.iter().zip(k).map(|(t, k)| t * k).sum();
    let slope = k[0] * step + 2.0 * k[1] * c + k[2];
    let pulled = match pull {
        Pull::None => 0.0,
        Pull::Excess { radius, pull } => {
            let radius = f64::from(radius);
            f64::from(pull) * (z - z.clamp(-radius, radius))
        }
        Pull::Power {
            radius,
            pull,
            power,
        } => f64::from(pull) * (z / f64::from(radius)).powi(power as i32),
    };
    (value, slope, terms, pulled)
}

fn assert_close(got: &[f32], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3, |a: f64, b| a.max(b.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*got) - expected).abs() <= 2e-6 * largest,
            "{what}: element {i} is {got}, expected {expected}, largest {largest}"
        );
    }
}

fn supported() -> impl Iterator<Item = Backend> {
    Backend::all().into_iter().filter(|b| b.is_supported())
}

#[test]
fn moments_are_those_of_the_definition() {
    for shape in SHAPES {
        let case = Case::new(shape);
        let c = case.channels;
        let mut expected = vec![0.0; 2 * c];
        let pixels = (case.x.len() / c) as f64;
        for (i, x) in case.x.iter().enumerate() {
            expected[i % c] += f64::from(*x) / pixels;
        }
        for (i, x) in case.x.iter().enumerate() {
            expected[c + i % c] += (f64::from(*x) - expected[i % c]).powi(2) / pixels;
        }
        for backend in supported() {
            let got = moments(backend, &case.x, c);
            assert_close(&got, &expected, backend.name());
        }
    }
}

#[test]
fn a_norm_with_its_activation_is_that_of_the_definition() {
    for (shape, guard, pull) in SHAPES
        .into_iter()
        .flat_map(|s| GUARDS.map(|g| (s, g)))
        .flat_map(|(s, g)| PULLS.map(|p| (s, g, p)))
    {
        let case = Case::new(shape);
        let (c, count) = (case.channels, case.x.len() as f64 / case.channels as f64);
        let stats = moments(Backend::Scalar, &case.x, c);
        let std: Vec<f64> = stats[c..]
            .iter()
            .map(|v| (f64::from(*v) + f64::from(EPSILON)).sqrt())
            .collect();
        let at = |i: usize| {
            let hat = (f64::from(case.x[i]) - f64::from(stats[i % c])) / std[i % c];
            let z = f64::from(case.gamma[i % c]) * hat + f64::from(case.beta[i % c]);
            let size = case.coefficients.len() / 4;
            let k = [0, 1, 2, 3].map(|part| f64::from(case.coefficients[part * size + i % size]));
            (hat, reference(z, k, guard, pull))
        };
        let (mut out, mut gamma, mut beta) = (Vec::new(), vec![0.0; c], vec![0.0; c]);
        let mut coefficients = vec![0.0; case.coefficients.len()];
        let by_z = |i: usize| {
            let (_, (_, slope, _, pulled)) = at(i);
            f64::from(case.grad[i]) * slope + pulled
        };
        for i in 0..case.x.len() {
            let (hat, (value, _, terms, _)) = at(i);
            out.push(value);
            gamma[i % c] += by_z(i) * hat;
            beta[i % c] += by_z(i);
            let size = coefficients.len() / 4;
            for (part, term) in terms.iter().enumerate() {
                coefficients[part * size + i % size] += f64::from(case.grad[i]) * term;
            }
        }
        let by_x: Vec<f64> = (0..case.x.len())
            .map(|i| {
                let mean = beta[i % c] + at(i).0 * gamma[i % c];
                f64::from(case.gamma[i % c]) / std[i % c] * (by_z(i) - mean / count)
            })
            .collect();
        let activation = case.activation(guard, pull);
        let norm = case.norm(&stats);
        for backend in supported() {
            let what = |which| format!("{which}, {}, {shape:?} {guard} {pull:?}", backend.name());
            let mut got = vec![0.0; out.len()];
            normalise_activate(backend, &case.x, &norm, &activation, &mut got);
            assert_close(&got, &out, &what("forward"));
            let mut grad = case.grad.clone();
            let pair = (&activation, true);
            let by = normalise_activate_adjoint(backend, &case.x, &norm, pair, &mut grad);
            assert_close(&grad, &by_x, &what("by x"));
            assert_close(&by.gamma, &gamma, &what("by gamma"));
            assert_close(&by.beta, &beta, &what("by beta"));
            assert_close(&by.coefficients, &coefficients, &what("by coefficients"));
            let mut again = case.grad.clone();
            let pair = (&activation, false);
            let by = normalise_activate_adjoint(backend, &case.x, &norm, pair, &mut again);
            assert_eq!((again, by.coefficients.len()), (grad, 0));
        }
    }
}

#[test]
fn an_activation_alone_is_that_of_the_definition() {
    for (shape, guard, pull) in SHAPES.map(|s| (s, GUARDS[1], PULLS[1])) {
        let case = Case::new(shape);
        let size = case.coefficients.len() / 4;
        let (mut out, mut by_z) = (Vec::new(), Vec::new());
        let mut coefficients = vec![0.0; case.coefficients.len()];
        for (i, z) in case.x.iter().enumerate() {
            let k = [0, 1, 2, 3].map(|part| f64::from(case.coefficients[part * size + i % size]));
            let (value, slope, terms, pulled) = reference(f64::from(*z), k, guard, pull);
            let grad = f64::from(case.grad[i]);
            out.push(value);
            by_z.push(grad * slope + pulled);
            for (part, term) in terms.iter().enumerate() {
                coefficients[part * size + i % size] += grad * term;
            }
        }
        let activation = case.activation(guard, pull);
        for backend in supported() {
            let what = |which| format!("{which}, {}, {shape:?}", backend.name());
            let mut got = vec![0.0; out.len()];
            activate(backend, &case.x, case.channels, &activation, &mut got);
            assert_close(&got, &out, &what("forward"));
            let mut grad = case.grad.clone();
            let pair = (&activation, true);
            let by = activate_adjoint(backend, &case.x, case.channels, pair, &mut grad);
            assert_close(&grad, &by_z, &what("by z"));
            assert_close(&by, &coefficients, &what("by coefficients"));
        }
    }
}

#[test]
fn results_are_the_same_to_the_bit_for_all_back_ends_and_numbers_of_threads() {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for shape in SHAPES {
        let case = Case::new(shape);
        let all = |backend| {
            let stats = moments(backend, &case.x, case.channels);
            let (norm, activation) = (case.norm(&stats), case.activation(0.7, PULLS[2]));
            let mut out = vec![0.0; case.x.len()];
            normalise_activate(backend, &case.x, &norm, &activation, &mut out);
            let mut grad = case.grad.clone();
            let pair = (&activation, true);
            let by = normalise_activate_adjoint(backend, &case.x, &norm, pair, &mut grad);
            [stats, out, grad, by.gamma, by.beta, by.coefficients].map(|values| bits(&values))
        };
        let expected = all(Backend::Scalar);
        for backend in supported() {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                assert_eq!(
                    pool.unwrap().install(|| all(backend)),
                    expected,
                    "{}",
                    backend.name()
                );
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_visible() {
    let coefficients = [1.0, 0.0, 0.0, 0.0];
    let activation = Activation {
        coefficients: &coefficients,
        guard: 4.0,
        pull: Pull::None,
    };
    let mut out = [0.0; 2];
    activate(Backend::get(), &[f32::NAN, -1.0], 1, &activation, &mut out);
    assert!(out[0].is_nan());
    assert_eq!(out[1], 0.0);
}
