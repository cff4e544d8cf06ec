//! Gradients of whole networks by every kind of parameter, against finite differences.

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use pi_ir::graph::ActivationKind;
use pi_trainer::checkpoint::Array;
use pi_trainer::kernels::Limits;
use pi_trainer::network::approximation::Approximation;
use pi_trainer::network::state::{Indicator, Removed};
use pi_trainer::network::{
    DropIn, Mode, Network, NetworkConfig, Node, Replacement, Request, Selection, Shown, State,
    Stem, Substitute,
};
use pi_trainer::tensors::download;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

const INPUT: [usize; 3] = [2, 6, 6];
const IMAGES: usize = 4;

/// A stem and a block of three channels, with `r-pkn` kernels on request.
fn network(kernels: &str) -> (NetworkConfig, Network) {
    let text = format!(
        "stem = {{ channels = 3, kernel = 3, stride = 1 }}\n\
         stages = [{{ channels = 4, stride = 2, blocks = 1 }}]\n\
         kernels = {kernels}"
    );
    let config: NetworkConfig = toml::from_str(&text).unwrap();
    assert_eq!(
        config.stem,
        Some(Stem {
            channels: 3,
            kernel: 3,
            stride: 1
        })
    );
    let network = Network::new(&config, INPUT, 3).unwrap();
    (config, network)
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| rng.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0)
        .collect()
}

fn pixels() -> Tensor<4> {
    let [c, h, w] = INPUT;
    let values = random(IMAGES * c * h * w, 1);
    Tensor::from_data(TensorData::new(values, [IMAGES, c, h, w]), &Device::flex())
}

/// A weighted sum of the logits, so that no gradient vanishes by symmetry.
fn loss(logits: Tensor<2>) -> Tensor<1> {
    let weights = TensorData::new(random(IMAGES * 3, 2), [IMAGES, 3]);
    let weights = Tensor::<2>::from_data(weights, &logits.device());
    (logits * weights).sum()
}

/// Compares the gradient of a few numbers of every parameter with central differences.
fn check(what: &str, network: &Network, state: &State) {
    check_at(what, network, state, Request::of(Mode::Train));
}

/// As [`check`], of passes with a guard or a share of ReLU.
fn check_at(what: &str, network: &Network, state: &State, request: Request<'_>) {
    let value = |state: &State| {
        let pass = network.forward(state, pixels(), request);
        download(loss(pass.logits()))[0]
    };
    let pass = network.forward(state, pixels(), request);
    let mut grads = loss(pass.logits()).backward();
    let mut largest = 0.0f32;
    for (name, leaf) in pass.leaves {
        let gradient = leaf
            .grad_remove(&mut grads)
            .unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
        let gradient = download(gradient);
        let values = state.parameter(&name).unwrap();
        let shape = state.shape(&name).unwrap().to_vec();
        for position in (0..values.len()).step_by(values.len().div_ceil(4)) {
            let at = |offset: f32| {
                let (mut moved, mut values) = (state.clone(), values.clone());
                values[position] += offset;
                let shape = shape.clone();
                moved.put_parameter(&name, Array { shape, values });
                value(&moved)
            };
            let got = gradient[position];
            // Extremes and ReLUs have kinks, and rounding of the loss (about 1e-6) is divided by
            // the step: one of three steps must agree. A factor of two, a forgotten term or a sign
            // agrees with none.
            let agrees = |step: &f32| {
                let expected = (at(*step) - at(-step)) / (2.0 * step);
                let bound = 2e-3 + 1e-6 / step + 0.02 * expected.abs();
                ((got - expected).abs() <= bound, expected)
            };
            let seen: Vec<(bool, f32)> = [2e-3, 5e-4, 1e-4].iter().map(agrees).collect();
            assert!(
                seen.iter().any(|(agrees, _)| *agrees),
                "{what}: {name}[{position}] is {got}, differences are {seen:?}"
            );
            largest = largest.max(got.abs());
        }
    }
    assert!(largest > 0.1, "{what}: all gradients are tiny, {largest}");
}

fn state(config: &NetworkConfig, network: &Network) -> State {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut state = State::new(network, &config.activations, &mut rng, &Device::flex()).unwrap();
    // Norms away from their starting values, so that no term is hidden behind a zero.
    for (name, array) in state.parameter_arrays() {
        if name.ends_with("gamma") || name.ends_with("beta") {
            let moved = random(array.values.len(), 5).into_iter().zip(array.values);
            let values = moved.map(|(r, v)| v + 0.3 * r).collect();
            state.put_parameter(
                &name,
                Array {
                    shape: array.shape,
                    values,
                },
            );
        }
    }
    state
}

#[test]
fn gradients_of_every_slot_equal_finite_differences() {
    let (config, network) = network("[]");
    for text in [
        "\"relu\"",
        "\"identity\"",
        "\"react-pkn\"",
        "\"square\"",
        "{ quadratic = [0.2, 0.5, -0.1] }",
        "\"square-amm\"",
        "\"square-mm\"",
        "\"herpn\"",
        "{ drop-in = { by = \"least-squares\", degree = 4, radius = 2.0 } }",
        "{ drop-in = { by = \"taylor\", degree = 2 } }",
    ] {
        #[derive(serde::Deserialize)]
        struct Line {
            by: Substitute,
        }
        let line: Line = toml::from_str(&format!("by = {text}")).unwrap();
        let mut state = state(&config, &network);
        let replacement = Replacement {
            sites: "*".to_owned(),
            by: line.by,
            keep: None,
        };
        state.replace(&network, &replacement).unwrap();
        check(text, &network, &state);
        let request = Request {
            limits: GUARDED,
            relu_share: 0.3,
            ..Request::of(Mode::Train)
        };
        check_at(&format!("{text} guarded"), &network, &state, request);
    }
}

/// A guard that many inputs are beyond.
const GUARDED: Limits = Limits {
    guard: 0.5,
    ..Limits::NONE
};

/// Inputs and outputs of the first activation.
fn first_activation(network: &Network, state: &State, request: Request<'_>) -> [Vec<f64>; 2] {
    let mut seen = None;
    let note = |node: &Node, inputs: &[Tensor<4>], output: &Tensor<4>| {
        if node.name == "stem.act" {
            let host = |tensor: &Tensor<4>| -> Vec<f64> {
                let values = download(tensor.clone());
                values.into_iter().map(f64::from).collect()
            };
            seen = Some([host(&inputs[0]), host(output)]);
        }
    };
    network.observe(state, pixels(), request, (Shown::Sites, note));
    seen.expect("the network has a first activation")
}

#[test]
fn guard_and_ramp_give_tangents_and_mixtures_in_training_alone() {
    let (config, network) = network("[]");
    for degree in [2u8, 4] {
        let drop_in = DropIn {
            by: Approximation::LeastSquares,
            degree,
            radius: 2.0,
        };
        let mut state = state(&config, &network);
        let replacement = Replacement {
            sites: "*".to_owned(),
            by: Substitute::DropIn(drop_in),
            keep: None,
        };
        state.replace(&network, &replacement).unwrap();
        let c = drop_in.coefficients().unwrap();
        let power = |z: f64, i: usize| z.powi(i as i32);
        let value = |z: f64| (0..5).map(|i| c[i] * power(z, i)).sum::<f64>();
        let slope = |z: f64| {
            (1..5)
                .map(|i| i as f64 * c[i] * power(z, i - 1))
                .sum::<f64>()
        };
        for (mode, guard, share) in [
            (Mode::Train, 0.5, 0.0),
            (Mode::Train, 0.5, 0.3),
            (Mode::Train, f64::INFINITY, 1.0),
            (Mode::Evaluate, 0.5, 0.3),
            (Mode::Score, 0.5, 0.3),
        ] {
            let request = Request {
                limits: Limits {
                    guard: guard as f32,
                    ..Limits::NONE
                },
                relu_share: share as f32,
                ..Request::of(mode)
            };
            let [z, y] = first_activation(&network, &state, request);
            assert!(z.iter().any(|z| z.abs() > 1.0));
            let (guard, share) = match mode {
                Mode::Train => (guard, share),
                Mode::Evaluate | Mode::Score => (f64::INFINITY, 0.0),
            };
            for (z, y) in z.into_iter().zip(y) {
                let held = z.clamp(-guard, guard);
                let own = value(held) + slope(held) * (z - held);
                let expected = share * z.max(0.0) + (1.0 - share) * own;
                // Single precision on numbers below ten.
                assert!(
                    (y - expected).abs() < 1e-5 * expected.abs().max(1.0),
                    "degree {degree}, {mode:?}: {y} at {z}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn a_ramp_leaves_the_relus_of_a_mask_alone() {
    let (config, network) = network("[]");
    let mut state = state(&config, &network);
    let (site, shape) = network.sites().next().unwrap();
    let kinds: Vec<ActivationKind> = (0..shape.iter().product())
        .map(|i: usize| match i % 3 {
            0 => ActivationKind::Relu,
            1 => ActivationKind::Identity,
            _ => ActivationKind::Polynomial,
        })
        .collect();
    state.set_mask(site, shape, kinds.clone());
    let poly = [
        vec![0.2; shape[0]],
        vec![0.5; shape[0]],
        vec![0.1; shape[0]],
    ]
    .concat();
    let poly = Array {
        shape: vec![3, shape[0]],
        values: poly,
    };
    state.put_parameter(&format!("{site}.poly"), poly);
    let request = Request {
        relu_share: 0.25,
        ..Request::of(Mode::Train)
    };
    let [z, y] = first_activation(&network, &state, request);
    for (i, (z, y)) in z.into_iter().zip(y).enumerate() {
        let relu = z.max(0.0);
        let expected = match kinds[i % kinds.len()] {
            ActivationKind::Relu => relu,
            ActivationKind::Identity => 0.25 * relu + 0.75 * z,
            ActivationKind::Polynomial => 0.25 * relu + 0.75 * ((0.2 * z + 0.5) * z + 0.1),
        };
        assert!(
            (y - expected).abs() < 1e-5,
            "{i}: {y} at {z}, expected {expected}"
        );
    }
    check_at("mask on a ramp", &network, &state, request);
}

#[test]
fn gradients_of_polynomial_kernels_equal_finite_differences() {
    for by in ["pkn", "r-pkn"] {
        let kernels = format!("[{{ convolutions = \"*\", by = \"{by}\" }}]");
        let (config, network) = network(&kernels);
        let mut state = state(&config, &network);
        for (name, mut array) in state.parameter_arrays() {
            if name.ends_with("conv.weight") {
                // They begin small, so that the square is nearly linear: here it shall curve.
                array.values.iter_mut().for_each(|v| *v *= 10.0);
                state.put_parameter(&name, array);
            } else if name.ends_with("log_scale") {
                // The norm behind a kernel hides its scale but for epsilon; 0.009 would drown in
                // it.
                state.put_parameter(&name, Array::filled(&array.shape, -0.5));
            }
        }
        check(by, &network, &state);
    }
}

#[test]
fn gradients_of_a_soft_selection_equal_finite_differences() {
    let (config, network) = network("[]");
    for removed in [Removed::Identity, Removed::Polynomial] {
        let mut state = state(&config, &network);
        let selection = Selection {
            indicator: Indicator::Real,
            removed,
        };
        state.begin_selection(&network, selection, 0.7);
        for (name, array) in state.parameter_arrays() {
            if name.ends_with("poly") {
                let values = random(array.values.len(), 6);
                state.put_parameter(
                    &name,
                    Array {
                        shape: array.shape,
                        values,
                    },
                );
            }
        }
        check(&format!("{removed:?}"), &network, &state);
    }
}

#[test]
fn a_hard_selection_computes_with_its_hard_factor_and_learns_like_the_soft_one() {
    let (config, network) = network("[]");
    let soft = Selection {
        indicator: Indicator::Real,
        removed: Removed::Identity,
    };
    let hard = Selection {
        indicator: Indicator::Hysteresis { width: 0.003 },
        removed: Removed::Identity,
    };
    let mut a = state(&config, &network);
    a.begin_selection(&network, soft, 1.0);
    let mut b = state(&config, &network);
    // Above the band: every factor is one, as in the soft selection.
    b.begin_selection(&network, hard, 0.5);
    let pass = |state: &State| {
        let pass = network.forward(state, pixels(), Request::of(Mode::Train));
        let loss = loss(pass.logits());
        let mut grads = loss.backward();
        let leaf = &pass.leaves["stem.act.keep"];
        (
            download(loss)[0],
            download(leaf.grad_remove(&mut grads).unwrap()),
            pass.kept,
        )
    };
    let (a, b) = (pass(&a), pass(&b));
    assert_eq!(a.0, b.0);
    assert_eq!(a.1, b.1);
    assert!(
        download(b.2["stem.act.kept"].clone())
            .iter()
            .all(|k| *k == 1.0)
    );
    // Inside the band the old factor stays, below it falls to zero.
    for (start, expected) in [(0.002, 1.0), (-0.002, 1.0), (-0.004, 0.0)] {
        let mut state = state(&config, &network);
        state.begin_selection(&network, hard, start);
        let (_, _, kept) = pass(&state);
        let kept = download(kept["stem.act.kept"].clone());
        assert!(kept.iter().all(|k| *k == expected), "from {start}");
    }
}

#[test]
fn a_device_is_held_against_the_cpu() {
    use pi_trainer::compare::compare;
    let stage = "[[stage]]\nepochs = 1\nreplace = [{ sites = \"*.a.act\", by = \"herpn\" }]";
    let config = common::experiment(stage, &[]);
    let mut found = compare(&config, &common::images(), 8, &Device::flex()).unwrap();
    found.check().unwrap();
    assert!(
        found
            .gradients
            .iter()
            .any(|(name, _)| name == "stage1.block1.a.act.gamma")
    );
    assert!(
        found.gradients.iter().all(|(_, off)| *off == 0.0),
        "the CPU against itself"
    );
    for off in [0.1, f64::NAN] {
        found.gradients[3].1 = off;
        let why = found.check().unwrap_err().to_string();
        assert!(why.contains(&found.gradients[3].0), "{why}");
    }
}
