use super::truncate::{centred, low_bits, round_to_nearest, truncate_shares};
use super::*;
use crate::circuit::{Activation, Range, Reveal, SumPool, TensorId};
use crate::shape::{Padding, Window};
use crate::weights::Polynomial;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

const F: u8 = 8;
const BOUND_BITS: u8 = 23;
/// A share far from both ends of the field, all low bits zero.
const SHARE: u64 = 1 << 40;

/// Floor, or one more, for every share that does not wrap; the edges of range and share.
#[test]
fn truncation_with_shares_is_floor_or_one_more() {
    let b = 1i128 << BOUND_BITS;
    let step = 1i128 << F;
    let values = [0, 1, -1, 255, -255, -256, -257, 256, b - step, step - b];
    let p = i128::from(P);
    // x + B = (c + B) - (p - d) holds unless c lies within B below p or within |x| above 0.
    let shares = [2 * b, 2 * b + 1, 2 * b + 255, p / 2, p / 3, p - 2 * b];
    for x in values {
        for c in shares {
            let t = truncate_shares(x, c as u64, F, BOUND_BITS);
            assert!(t == x >> F || t == (x >> F) + 1, "x {x}, share {c}: {t}");
            if x % step == 0 {
                assert_eq!(t, x >> F, "x {x}, share {c}: no fraction, no carry");
            }
        }
    }
    // -1 becomes -1 or 0, by the share's low bits.
    assert_eq!(truncate_shares(-1, SHARE, F, BOUND_BITS), 0);
    assert_eq!(truncate_shares(-1, SHARE + 255, F, BOUND_BITS), -1);
}

/// Ten million of the largest value, which is lost most often, with shares as the client draws
/// them: at an ordinary bound none is lost, and at one that is far too wide for the field as many
/// as are stated.
#[test]
fn values_are_lost_as_often_as_is_stated() {
    let count = 10_000_000;
    let lost = |bound_bits: u8| {
        let circuit = one_layer(vec![Kind::Identity], F, bound_bits);
        let stated = crate::failure::failure_log2(&circuit).layers[0].exp2();
        let largest = (1i128 << bound_bits) - (1 << F);
        let rng = &mut ChaCha20Rng::seed_from_u64(11);
        let lost = (0..count).filter(|_| {
            let t = truncate_shares(largest, rng.next_u64() % P, F, bound_bits);
            t != largest >> F
        });
        (lost.count() as f64, stated * f64::from(count))
    };
    let (found, stated) = lost(BOUND_BITS);
    assert!(
        stated < 1e-3 && found == 0.0,
        "{found} lost, {stated} stated"
    );
    let (found, stated) = lost(43);
    assert!(stated > 50.0, "{stated} are too few to tell");
    // Five deviations of a Poisson distribution.
    let slack = 5.0 * stated.sqrt();
    assert!(
        (found - stated).abs() < slack,
        "{found} lost, {stated} stated"
    );
}

#[test]
fn truncation_is_unbiased_over_the_low_bits_of_the_share() {
    for x in [-1000i128, -1, 0, 77, 128, 12_345] {
        let carries = (0..1u64 << F)
            .filter(|c| truncate_shares(x, SHARE + c, F, BOUND_BITS) != x >> F)
            .count() as i128;
        assert_eq!(carries, x.rem_euclid(1 << F), "x {x}");
    }
}

#[test]
fn a_wrapped_share_wraps_as_in_the_protocol() {
    let circuit = one_layer(vec![Kind::Relu], F, BOUND_BITS);
    let weights = weights(vec![vec![1]]);
    let mut trace = Trace {
        layers: vec![
            LayerTrace {
                before_truncation: vec![P - 1],
                before_post_truncation: vec![],
            },
            LayerTrace {
                before_truncation: vec![5],
                before_post_truncation: vec![],
            },
        ],
    };
    // c + B wraps, p - d does not: x + B is off by p.
    let wrapped = truncate_shares(300, P - 1, F, BOUND_BITS);
    assert_eq!(wrapped, (300 - i128::from(P)) >> F);
    let is_kept = low_bits(wrapped, BOUND_BITS - F + 1) >= 0;
    let kept = if is_kept { centred(wrapped) as i64 } else { 0 };
    let run = exact(&circuit, &weights, &[300], &trace).unwrap();
    assert_ne!(kept, 1);
    assert_eq!((&run.logits[..], run.in_range), (&[kept][..], false));
    // The client sees such a logit; where it sees the label only, it does not.
    let blind = circuit.clone().with_reveal(Reveal::Label);
    let blind = exact(&blind, &weights, &[300], &trace).unwrap();
    assert!(blind.in_range);
    trace.layers[0].before_truncation[0] = P;
    let error = exact(&circuit, &weights, &[300], &trace).unwrap_err();
    assert!(matches!(error, Error::Share { index: 0, .. }), "{error}");
    trace.layers[0].before_truncation[0] = SHARE + 255;
    assert_eq!(
        exact(&circuit, &weights, &[300], &trace).unwrap().logits,
        [1]
    );
    assert_eq!(plain(&circuit, &weights, &[300]).unwrap().logits, [1]);
    trace.layers.pop();
    assert!(matches!(
        exact(&circuit, &weights, &[300], &trace),
        Err(Error::Length { .. })
    ));
}

/// Sums beyond a bound of 2^23, whose 16 bits a guard of one bit makes 17.
#[test]
fn a_guard_announces_signs_that_would_wrap() {
    let edge = 1i64 << BOUND_BITS;
    let step = 1 << F;
    // The sum; whether its sign is right in 16 bits, and in 17; whether the guard agrees.
    let cases = [
        (edge - step, true, true, true),
        (-edge, true, true, true),
        (edge, false, true, false),
        (-edge - step, false, true, false),
        (2 * edge - step, false, true, false),
        (-2 * edge, false, true, false),
        // Beyond three times the bound, a value is taken for another one.
        (3 * edge, false, false, true),
        (4 * edge, true, true, true),
        (-3 * edge - step, false, false, true),
    ];
    let weights = weights(vec![vec![1]]);
    let trace = Trace {
        layers: vec![
            LayerTrace {
                before_truncation: vec![SHARE + 255],
                before_post_truncation: vec![],
            },
            LayerTrace {
                before_truncation: vec![SHARE],
                before_post_truncation: vec![],
            },
        ],
    };
    for (z, right, right_if_wider, agrees) in cases {
        for (guard_bits, right, in_range) in [(0, right, true), (1, right_if_wider, agrees)] {
            let mut circuit = one_layer(vec![Kind::Relu], F, BOUND_BITS);
            circuit.layers[0].guard_bits = guard_bits;
            let run = exact(&circuit, &weights, &[z], &trace).unwrap();
            let y = z >> F;
            let expected = if (y >= 0) == right { y } else { 0 };
            assert_eq!((run.logits[0], run.in_range), (expected, in_range), "{z}");
            let unlimited = Interpreter::new(&circuit, &weights).unwrap();
            let unlimited = unlimited.unlimited(&[z]).unwrap();
            assert_eq!(unlimited.logits, [y.max(0)]);
            assert_eq!(unlimited.in_range, z.abs() <= edge - step);
        }
    }
}

#[test]
fn rounding_to_nearest_takes_ties_up() {
    let cases = [
        (0, 0),
        (127, 0),
        (128, 1),
        (-128, 0),
        (-129, -1),
        (384, 2),
        (-384, -1),
    ];
    for (x, expected) in cases {
        assert_eq!(round_to_nearest(x, 8), expected, "{x}");
    }
    assert_eq!(round_to_nearest(-77, 0), -77);
}

#[test]
fn a_value_over_its_bound_names_layer_and_element() {
    let circuit = one_layer(vec![Kind::Identity; 2], F, BOUND_BITS);
    let weights = weights(vec![vec![1]]);
    let edge = (1i64 << BOUND_BITS) - (1 << F);
    let run = plain(&circuit, &weights, &[edge, -edge]).unwrap();
    assert_eq!(run.logits, [edge >> F, -(edge >> F)]);
    assert_eq!(run.max_abs_before_truncation[0], edge as u64);
    let error = plain(&circuit, &weights, &[edge, -edge - 1]).unwrap_err();
    assert_eq!(
        error,
        Error::OutOfBound {
            layer: "act".into(),
            element: 1,
            stage: Stage::First,
            value: i128::from(-edge - 1),
            bound: i128::from(edge),
        }
    );
    // Values whose products pass i64 are found, not wrapped.
    let huge = plain(&circuit, &weights, &[0, i64::MIN]).unwrap_err();
    let value = i128::from(i64::MIN);
    assert!(
        matches!(huge, Error::OutOfBound { element: 1, value: v, .. } if v == value),
        "{huge}"
    );
    let mut shifted = circuit;
    shifted.layers[0].terms.push(Term::Residual {
        input: TensorId(0),
        window: None,
        shift: 58,
        negative: false,
    });
    let huge = plain(&shifted, &weights, &[0, i64::MAX]).unwrap_err();
    assert!(
        matches!(huge, Error::OutOfBound { element: 1, value, .. } if value >> 120 == 1),
        "{huge}"
    );
}

#[test]
fn squares_and_polynomials_follow_their_formulas() {
    let mut circuit = one_layer(
        vec![Kind::Square, Kind::Polynomial, Kind::Relu, Kind::Identity],
        F,
        BOUND_BITS,
    );
    let Step::Activate(activation) = &mut circuit.layers[0].step else {
        panic!("the first layer activates");
    };
    let post = |truncate| PostTruncation {
        truncate,
        bound_bits: 30,
        range: Range::Proved,
    };
    activation.square = Some(post(4));
    activation.polynomial = Some(post(6));
    let mut weights = weights(vec![vec![1]]);
    weights.layers[0].polynomials = vec![Polynomial {
        a: 3,
        b: -50,
        k: 700,
    }];
    let y = |v: i64| (v + 128) >> 8;
    let input = [-25_700, 25_700, -25_700, -25_700];
    let run = plain(&circuit, &weights, &input).unwrap();
    let (n, p) = (y(-25_700), y(25_700));
    let quadratic = 3 * p * p - 50 * p + 700;
    assert_eq!(run.logits, [(n * n + 8) >> 4, (quadratic + 32) >> 6, 0, n]);
    assert_eq!(run.max_abs_before_post[0].square, (n * n) as u64);
    assert_eq!(run.max_abs_before_post[0].polynomial, quadratic as u64);

    let trace = Trace {
        layers: vec![
            LayerTrace {
                before_truncation: vec![SHARE + 255; 4],
                before_post_truncation: vec![SHARE + 15, SHARE],
            },
            LayerTrace {
                before_truncation: vec![0; 4],
                before_post_truncation: vec![],
            },
        ],
    };
    // All ones in a share's low bits give the floor; zeros carry every fraction.
    let run = exact(&circuit, &weights, &input, &trace).unwrap();
    let (n, p) = (-25_700i64 >> 8, 25_700i64 >> 8);
    let quadratic = 3 * p * p - 50 * p + 700;
    assert_ne!(quadratic % 64, 0);
    assert_eq!(run.logits, [(n * n) >> 4, (quadratic >> 6) + 1, 0, n]);
    activation_bound_is_checked(circuit, weights);
}

fn activation_bound_is_checked(mut circuit: Circuit, weights: Weights) {
    let Step::Activate(activation) = &mut circuit.layers[0].step else {
        panic!("the first layer activates");
    };
    activation.square.as_mut().unwrap().bound_bits = 10;
    let error = plain(&circuit, &weights, &[25_700, 0, 0, 0]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OutOfBound {
                stage: Stage::Second,
                element: 0,
                value: 10_000,
                bound: 1008,
                ..
            }
        ),
        "{error}"
    );
}

/// A strided, unevenly padded convolution, a shifted and pooled residual and a layer pool,
/// against loops written out.
#[test]
fn sums_match_a_direct_computation() {
    let (c, h, w) = (2usize, 5usize, 4usize);
    let input: Vec<i64> = (0..c * h * w).map(|i| (i as i64 * 37 % 101) - 50).collect();
    let weights: Vec<i16> = (0..2 * 2 * 2 * 3)
        .map(|i| (i * 29 % 61 - 30) as i16)
        .collect();
    let conv = Conv {
        input: TensorId(0),
        out_channels: 2,
        groups: 1,
        kernel: (2, 3),
        stride: (2, 1),
        padding: Padding {
            top: 1,
            left: 2,
            bottom: 0,
            right: 1,
        },
        weight_bits: 7,
    };
    // Rows: (5 + 1 - 2) / 2 + 1 = 3; columns: (4 + 3 - 3) / 1 + 1 = 5.
    // The three number types: sums below 2^24, below 2^53, and beyond.
    let scales = [1i64, 1 << 20, 1 << 44];
    for scale in scales {
        let x: Vec<i64> = input.iter().map(|v| v * scale).collect();
        let shape = conv.output(Shape::new(2, 5, 4)).unwrap();
        assert_eq!(shape, Shape::new(2, 3, 5));
        let kernel = Kernel {
            weights: weights.iter().map(|&w| w.into()).collect(),
            gain: 12 * 30,
        };
        let got = convolve_exactly(&x, &kernel, &windows(&conv, Shape::new(2, 5, 4), shape));
        for o in 0..2 {
            for i in 0..3 {
                for j in 0..5 {
                    let mut sum = 0i64;
                    for ch in 0..c {
                        for ki in 0..2 {
                            for kj in 0..3 {
                                let y = (2 * i + ki) as isize - 1;
                                let z = (j + kj) as isize - 2;
                                if (0..h as isize).contains(&y) && (0..w as isize).contains(&z) {
                                    sum += x[(ch * h + y as usize) * w + z as usize]
                                        * i64::from(weights[((o * c + ch) * 2 + ki) * 3 + kj]);
                                }
                            }
                        }
                    }
                    assert_eq!(
                        got[(o * 3 + i) * 5 + j],
                        sum.into(),
                        "scale {scale}, {o} {i} {j}"
                    );
                }
            }
        }
    }
    let pool = SumPool {
        kernel: (2, 3),
        stride: (2, 1),
    };
    let output = pool.output(Shape::new(2, 5, 4)).unwrap();
    assert_eq!(output, Shape::new(2, 2, 2));
    let window = pool.window(Shape::new(2, 5, 4)).unwrap();
    let sums = |window: &Window| window.sums(&input, Shape::new(2, 5, 4), 0, |a, b| a + b);
    let at = |places: &[usize]| places.iter().map(|&i| input[i]).sum::<i64>();
    let all = sums(&window);
    assert_eq!(all.len(), 8);
    let ends = (at(&[0, 1, 2, 4, 5, 6]), at(&[29, 30, 31, 33, 34, 35]));
    assert_eq!((all[0], all[7]), ends);
    // From the row above to the row below, and from the second column to one behind the last.
    let beside = Window {
        origin: (-1, 1),
        count: (3, 2),
        ..window
    };
    let all = sums(&beside);
    assert_eq!(all.len(), 12);
    assert_eq!((all[0], all[1]), (at(&[1, 2, 3]), at(&[2, 3])));
    assert_eq!(
        (all[4], all[11]),
        (at(&[13, 14, 15, 17, 18, 19]), at(&[34, 35, 38, 39]))
    );
    assert!(window.inside(Shape::new(2, 5, 4)));
    assert!(!beside.inside(Shape::new(2, 5, 4)));
}

/// Three groups of two channels in and one out, against each group by itself.
#[test]
fn groups_of_channels_are_convolutions_of_their_own() {
    let input = Shape::new(6, 4, 3);
    let x: Vec<i64> = (0..input.len())
        .map(|i| (i as i64 * 41 % 103) - 50)
        .collect();
    let weights: Vec<i16> = (0..3 * 2 * 4).map(|i| (i * 31 % 63 - 31) as i16).collect();
    let conv = |channels: u32, groups: u32| Conv {
        input: TensorId(0),
        out_channels: channels,
        groups,
        kernel: (2, 2),
        stride: (1, 2),
        padding: Padding::same(1),
        weight_bits: 7,
    };
    let run = |x: &[i64], weights: &[i16], conv: &Conv, input: Shape| {
        let kernel = Kernel {
            weights: weights.iter().map(|&w| w.into()).collect(),
            gain: 8 * 31,
        };
        let output = conv.output(input).unwrap();
        convolve_exactly(x, &kernel, &windows(conv, input, output))
    };
    let together = run(&x, &weights, &conv(3, 3), input);
    let apart = (x.chunks(2 * 12).zip(weights.chunks(2 * 4)))
        .flat_map(|(x, weights)| run(x, weights, &conv(1, 1), Shape::new(2, 4, 3)));
    assert_eq!(together, apart.collect::<Vec<i128>>());
    assert_eq!(conv(3, 3).weight_count(input), weights.len());
    assert_eq!(conv(3, 2).output(input), None);
    assert_eq!(conv(4, 3).output(input), None);
    assert_eq!(conv(3, 0).output(input), None);
}

#[test]
fn residuals_shift_and_bias_counts_once_per_position() {
    let mut circuit = one_layer(vec![Kind::Identity; 4], 0, BOUND_BITS);
    let layer = &mut circuit.layers[0];
    layer.terms.push(Term::Residual {
        input: TensorId(0),
        window: None,
        shift: 3,
        negative: false,
    });
    layer.pool = Some(SumPool {
        kernel: (1, 2),
        stride: (1, 2),
    });
    layer.shape = Shape::new(1, 1, 2);
    let Step::Activate(activation) = &mut layer.step else {
        panic!("the first layer activates");
    };
    activation.kinds.truncate(2);
    circuit.layers[1].shape = Shape::new(1, 1, 2);
    let mut weights = weights(vec![vec![-2]]);
    weights.layers[0].bias = vec![100];
    let run = plain(&circuit, &weights, &[1, 2, 3, -4]).unwrap();
    assert_eq!(run.logits, [200 + 6 * 3, 200 - 6]);
    if let Term::Residual { negative, .. } = &mut circuit.layers[0].terms[1] {
        *negative = true;
    }
    let run = plain(&circuit, &weights, &[1, 2, 3, -4]).unwrap();
    assert_eq!(run.logits, [200 - 10 * 3, 200 + 10]);
    if let Term::Residual { negative, .. } = &mut circuit.layers[0].terms[1] {
        *negative = false;
    }
    // A bias by element comes after the pool.
    weights.layers[0].element_bias = vec![1000, -1];
    let run = plain(&circuit, &weights, &[1, 2, 3, -4]).unwrap();
    assert_eq!(run.logits, [1200 + 6 * 3, 199 - 6]);
    weights.layers[0].element_bias = vec![1000];
    let refused = plain(&circuit, &weights, &[1, 2, 3, -4]).unwrap_err();
    let length = "biases by element of layer act";
    assert!(refused.to_string().contains(length), "{refused}");
}

#[test]
fn pixels_are_normalised_and_rounded() {
    let mut circuit = one_layer(vec![Kind::Relu; 2], F, BOUND_BITS);
    circuit.input = Shape::new(2, 1, 2);
    circuit.preprocessing = Preprocessing::Channels {
        mean: vec![0.5, 0.0],
        std: vec![0.25, 1.0],
    };
    circuit.input_frac_bits = 6;
    // (0 - 0.5) / 0.25 * 64 = -128; 255 -> 128; then 51 / 255 * 64 = 12.8.
    assert_eq!(
        quantise_image(&circuit, &[0, 255, 51, 255]).unwrap(),
        [-128, 128, 13, 64]
    );
    assert!(quantise_image(&circuit, &[0; 3]).is_err());
}

/// A 1x1 convolution of one channel with the given kinds, then an identity output.
fn one_layer(kinds: Vec<Kind>, truncate: u8, bound_bits: u8) -> Circuit {
    let shape = Shape::new(1, 1, kinds.len() as u32);
    let conv = |input| {
        Term::Conv(Conv {
            input: TensorId(input),
            out_channels: 1,
            groups: 1,
            kernel: (1, 1),
            stride: (1, 1),
            padding: Padding::default(),
            weight_bits: 7,
        })
    };
    Circuit {
        name: "one".into(),
        input: shape,
        input_frac_bits: 0,
        preprocessing: Preprocessing::unit(1),
        classes: vec![],
        prefix: None,
        layers: vec![
            Layer {
                name: "act".into(),
                terms: vec![conv(0)],
                pool: None,
                shape,
                bound_bits,
                range: Range::Proved,
                guard_bits: 0,
                step: Step::Activate(Activation {
                    truncate,
                    frac_bits: 0,
                    kinds,
                    square: None,
                    polynomial: None,
                }),
            },
            Layer {
                name: "out".into(),
                terms: vec![conv(1)],
                pool: None,
                shape,
                bound_bits: 40,
                range: Range::Proved,
                guard_bits: 0,
                step: Step::Output {
                    frac_bits: 0,
                    reveal: Reveal::Logits,
                },
            },
        ],
    }
}

fn weights(first: Vec<Vec<i16>>) -> Weights {
    let layer = |kernels| LayerWeights {
        kernels,
        bias: vec![0],
        element_bias: vec![],
        polynomials: vec![],
    };
    Weights {
        layers: vec![layer(first), layer(vec![vec![1]])],
    }
}
