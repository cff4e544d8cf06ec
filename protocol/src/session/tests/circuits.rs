//! Circuits of all kinds against the interpreter, bit for bit, and costs against the channel's
//! count.

use super::*;
use pi_ir::Window;

#[test]
fn random_circuits_equal_the_interpreter_bit_for_bit() {
    let mut kinds = [0; 4];
    let mut labels = 0;
    for seed in 0..40 {
        let (circuit, weights) = random::circuit(seed, &random::Options::default());
        let input = random::input(&circuit, seed);
        let input = interpret::quantise(&circuit, &input).unwrap();
        for layer in &circuit.layers {
            if let Step::Activate(activation) = &layer.step {
                activation
                    .kinds
                    .iter()
                    .for_each(|&k| kinds[k as usize] += 1);
            }
        }
        labels += usize::from(circuit.output().1 == Reveal::Label);
        Models::new(circuit, weights).check(&input, seed);
    }
    assert!(labels > 5 && labels < 35, "{labels} labels");
    assert!(kinds.iter().all(|&count| count > 100), "{kinds:?}");
}

#[test]
fn circuits_without_squares_equal_the_interpreter() {
    let options = random::Options {
        quadratic: false,
        layers: 3,
        ..random::Options::default()
    };
    for seed in 100..104 {
        let (circuit, weights) = random::circuit(seed, &options);
        let input = random::input(&circuit, seed);
        let input = interpret::quantise(&circuit, &input).unwrap();
        Models::new(circuit, weights).check(&input, seed);
    }
}

#[test]
fn values_at_the_edges_come_out_right() {
    let (circuit, weights) = edge_circuit();
    let models = Models::new(circuit, weights);
    let input = edge_input();
    for seed in 200..203 {
        let run = models.check(&input, seed);
        let area = EDGE_SHAPE.len() / 4;
        for (&x, &y) in input[..area].iter().zip(&run.logits) {
            let floor = x >> TRUNCATE;
            let carried = [floor, floor + 1].map(|t| t.max(0));
            assert!(carried.contains(&y), "x = {x}: {y}");
        }
        for (&x, &y) in input[..area].iter().zip(&run.logits[area..]) {
            let carry = y - (x >> TRUNCATE);
            assert!(carry == 0 || carry == 1, "x = {x}: {y}");
        }
    }
}

/// By hand, from the table of costs: 12 ReLUs of 9 bits, 12 squares, 12 polynomials and 12 identity
/// elements.
#[test]
fn costs_are_those_of_the_specification() {
    let (circuit, _) = edge_circuit();
    let plan = default_plan(&circuit, 1).unwrap();
    let cost = crate::cost::circuit(&circuit, [&plan]).unwrap();
    let packing = crate::layout::Packing::new(&circuit, &plan).unwrap();
    let linear = crate::linear::cost(&packing);
    let sum = |bytes: &[usize]| bytes.iter().sum::<usize>() as u64;
    let (digest, base_correction, trees) = (32, 2048, 6144);
    let ole = (8192 * 124 / 8, 8192 * 8 + 8192 * 70 / 8);
    // An OT takes 4 bytes, in whole bytes for each of 32 trees.
    let (reverse, forward, tau) = (32 * 2, 32 * (12u64 * 9).div_ceil(8), 8 * 12);
    let (opened_slots, identity) = (8 * (12 + 24), 8 * 12);
    let garbled = 12 * 32 * 8 + 2;
    let offline = Traffic {
        bytes_up: digest
            + base_correction
            + sum(&linear.upload_bytes)
            + ole.0
            + trees
            + forward
            + tau
            + opened_slots
            + identity,
        bytes_down: digest
            + base_correction
            + trees
            + reverse
            + sum(&linear.answer_bytes)
            + ole.1
            + garbled,
        // Two first ones, two uploads and two answers, choices and garbled circuits.
        messages: 8,
    };
    assert_eq!(cost.offline, offline);
    let hidden = Traffic {
        bytes_up: 8 * 36,
        bytes_down: 12 * (16 * 9 + 8) + 8 * 24,
        messages: 2,
    };
    assert_eq!(cost.per_layer[0].online, hidden);
    let mut online = hidden;
    online += Traffic {
        bytes_up: 32 + 8 * 48,
        bytes_down: 8 * 48,
        messages: 2,
    };
    assert_eq!(cost.online, online);
    assert_eq!(cost.online_round_trips(), 2);
    let layer = &cost.per_layer[0];
    assert_eq!(
        layer.offline.bytes_up,
        forward + tau + opened_slots + identity
    );
    let answers = linear.answer_bytes[0] as u64;
    assert_eq!(layer.offline.bytes_down, answers + reverse + garbled);
    assert_eq!((layer.relus, layer.squares, layer.sign_bits), (12, 12, 9));
    assert_eq!((layer.polynomials, layer.identities), (12, 12));
}

/// More elements than a ciphertext has slots, and than a task of the garbler has instances.
#[test]
fn elements_beyond_one_ciphertext_and_one_task_come_out_right() {
    let (circuit, mut weights) = edge_circuit();
    let mut circuit = circuit.into_inner();
    let shape = Shape::new(4, 40, 70);
    circuit.input = shape;
    let area = shape.len() / 4;
    let of_channel = [Kind::Relu, Kind::Polynomial, Kind::Square, Kind::Polynomial];
    for layer in &mut circuit.layers {
        layer.shape = shape;
        if let Step::Activate(activation) = &mut layer.step {
            activation.kinds = (0..shape.len()).map(|i| of_channel[i / area]).collect();
        }
    }
    for (channel, polynomial) in weights.layers[0].polynomials.iter_mut().enumerate() {
        polynomial.a += channel as i64;
    }
    let models = Models::new(verify::circuit(circuit).unwrap(), weights);
    assert!(models.client.indexed().slots > 8192);
    let input: Vec<i64> = (0..shape.len() as i64)
        .map(|i| i * 7919 % 8161 - 4080)
        .collect();
    models.check(&input, 301);
}

/// A residual stream without activation, pools on both sides, a difference of windows that reach
/// beyond the map, and a tensor that no convolution reads.
#[test]
fn residuals_pools_and_identity_layers_cost_no_message() {
    let calibrated = Range::Calibrated { max_seen: 1 };
    let shape = Shape::new(2, 4, 6);
    let pool = SumPool {
        kernel: (2, 3),
        stride: (2, 3),
    };
    let identity = |shape: Shape, truncate| {
        Step::Activate(Activation {
            truncate,
            frac_bits: 4,
            kinds: vec![Kind::Identity; shape.len()],
            square: None,
            polynomial: None,
        })
    };
    let residual = |input, window, shift| Term::Residual {
        input: TensorId(input),
        window,
        shift,
        negative: false,
    };
    let layer = |name: &str, terms, pool, shape, step| Layer {
        name: name.into(),
        terms,
        pool,
        shape,
        bound_bits: 24,
        range: calibrated,
        guard_bits: 0,
        step,
    };
    let pooled = Shape::new(2, 2, 2);
    let circuit = Circuit {
        name: "residuals".into(),
        input: shape,
        input_frac_bits: 4,
        preprocessing: Preprocessing::unit(shape.c),
        classes: Vec::new(),
        prefix: None,
        layers: vec![
            layer(
                "stream",
                vec![identity_conv(0, 2), residual(0, None, 2)],
                None,
                shape,
                identity(shape, 2),
            ),
            layer(
                "pooled",
                vec![residual(1, None, 1)],
                Some(pool),
                pooled,
                identity(pooled, 1),
            ),
            layer(
                "output",
                vec![
                    residual(2, None, 0),
                    residual(0, pool.window(shape), 3),
                    Term::Residual {
                        input: TensorId(1),
                        window: Some(Window {
                            kernel: (2, 1),
                            stride: (3, 4),
                            origin: (-1, 1),
                            count: (2, 2),
                        }),
                        shift: 2,
                        negative: true,
                    },
                ],
                None,
                pooled,
                Step::Output {
                    frac_bits: 4,
                    reveal: Reveal::Logits,
                },
            ),
        ],
    };
    let none = || LayerWeights {
        kernels: Vec::new(),
        bias: vec![5, -6],
        element_bias: Vec::new(),
        polynomials: Vec::new(),
    };
    let weights = Weights {
        layers: vec![identity_weights(2, Vec::new()), none(), none()],
    };
    let models = Models::new(verify::circuit(circuit).unwrap(), weights);
    let input: Vec<i64> = (0..shape.len() as i64).map(|x| 37 * x - 800).collect();
    models.check(&input, 300);
    assert_eq!(models.client.cost().unwrap().online_round_trips(), 1);
}
