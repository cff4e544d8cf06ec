use super::*;
use crate::artifact::Artifact;
use crate::interpret::{self, Interpreter};
use crate::plan::Plan;
use crate::text;
use std::collections::BTreeSet;

const CASES: u64 = 400;

#[test]
fn random_circuits_are_legal_and_keep_their_bounds() {
    for seed in 0..CASES {
        let (circuit, weights) = circuit(seed, &Options::default());
        assert_eq!(verify::weights(&circuit, &weights), [], "seed {seed}");
        let failure = crate::failure::failure_log2(&circuit).total;
        assert!(failure < -16.0, "seed {seed}: 2^{failure}");
        let ranges = range::analyse(&circuit, &weights).unwrap();
        let interpreter = Interpreter::new(&circuit, &weights).unwrap();
        for image in 0..4 {
            let input = input(&circuit, seed * 4 + image);
            let input = interpret::quantise(&circuit, &input).unwrap();
            let run = interpreter.plain(&input);
            let run = run.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            for (layer, range) in ranges.iter().enumerate() {
                assert!(run.max_abs_before_truncation[layer] <= range.sum);
                assert!(run.max_abs_before_post[layer].square <= range.square);
                assert!(run.max_abs_before_post[layer].polynomial <= range.polynomial);
            }
        }
    }
}

/// The whole circuit of one with a public prefix.
fn joined(circuit: &Circuit, weights: &Weights) -> Option<(Circuit, Weights)> {
    let prefix = circuit.prefix.clone()?;
    let count = prefix.layers.len() as u32;
    let mut whole = Circuit {
        input: prefix.image,
        input_frac_bits: prefix.image_frac_bits,
        prefix: None,
        ..circuit.clone()
    };
    for term in whole.layers.iter_mut().flat_map(|layer| &mut layer.terms) {
        term.input_mut().0 += count;
    }
    whole.layers.splice(0..0, prefix.layers);
    let layers = [&prefix.weights.layers[..], &weights.layers].concat();
    Some((whole, Weights { layers }))
}

#[test]
fn a_public_prefix_and_the_rest_make_the_whole_circuit() {
    let mut prefixes = 0;
    for seed in 0..CASES {
        let (circuit, weights) = circuit(seed, &Options::default());
        let Some((whole, all)) = joined(&circuit, &weights) else {
            continue;
        };
        prefixes += 1;
        let (split, private) = prefix::publish(
            whole.clone(),
            all.clone(),
            circuit.prefix.as_ref().unwrap().layers.len(),
        )
        .unwrap();
        assert_eq!((&split, &private), (&*circuit, &weights), "seed {seed}");
        for image in 0..3 {
            let image = input(&circuit, seed * 3 + image);
            let input = interpret::quantise(&circuit, &image).unwrap();
            let parts = interpret::plain(&circuit, &weights, &input).unwrap();
            let input = interpret::quantise(&whole, &image).unwrap();
            let run = interpret::plain(&whole, &all, &input).unwrap();
            assert_eq!(parts.logits, run.logits, "seed {seed}");
        }
    }
    assert!(prefixes > 40, "{prefixes} prefixes");
}

/// Preprocessing and prefix give the same bits everywhere: written down once.
#[test]
fn golden_bits_of_what_the_client_computes() {
    let mut hash = blake3::Hasher::new();
    for seed in 0..100 {
        let (circuit, _) = circuit(seed, &Options::default());
        let input = interpret::quantise(&circuit, &input(&circuit, seed)).unwrap();
        for value in input {
            hash.update(&value.to_le_bytes());
        }
    }
    assert_eq!(
        hash.finalize().to_hex().as_str(),
        "896bc3a27e756bebe26ac82c2eb4107f2d7a16177e451a50bcef1df61703241f"
    );
}

#[test]
fn what_is_no_cut_is_not_published() {
    let of = |count| {
        let (circuit, weights) = (0..CASES)
            .map(|seed| circuit(seed, &Options::default()))
            .find(|(c, _)| c.prefix.is_none() && c.layers.len() > 2)
            .unwrap();
        prefix::publish(circuit.into_inner(), weights, count).unwrap_err()
    };
    assert!(of(0).contains("at least one must be public"));
    assert!(of(100).contains("at least one must be public"));
}

#[test]
fn other_options_are_legal_too() {
    let deep = Options {
        layers: 12,
        side: 16,
        channels: 10,
        kernel: 5,
        elements: 1500,
        quadratic: true,
    };
    let smallest = Options {
        layers: 1,
        side: 1,
        channels: 1,
        kernel: 1,
        elements: 1,
        quadratic: false,
    };
    for (options, cases) in [(deep, 60), (smallest, 300)] {
        for seed in 0..cases {
            let (circuit, weights) = circuit(seed, &options);
            assert_eq!(verify::weights(&circuit, &weights), [], "seed {seed}");
            let quadratic = circuit.layers.iter().any(|layer| match &layer.step {
                Step::Activate(a) => a.kinds.iter().any(|k| k.is_quadratic()),
                Step::Output { .. } => false,
            });
            assert!(!quadratic || options.quadratic, "seed {seed}");
            // Tests with random shares must not fail for the reason real runs may.
            let failure = crate::failure::failure_log2(&circuit).total;
            assert!(failure < -12.0, "seed {seed}: 2^{failure}");
            let largest = circuit.layers.iter().map(|layer| layer.shape.len()).max();
            assert!(largest <= Some(options.elements.max(2)), "seed {seed}");
            let input = interpret::quantise(&circuit, &input(&circuit, seed));
            let run = interpret::plain(&circuit, &weights, &input.unwrap());
            assert!(run.is_ok(), "seed {seed}: {run:?}");
        }
    }
}

/// Everything the option list promises does occur within the seeds that tests use.
#[test]
fn all_shapes_and_kinds_occur() {
    let mut seen = BTreeSet::new();
    for seed in 0..CASES {
        let (circuit, _) = circuit(seed, &Options::default());
        for layer in &circuit.layers {
            let convs = layer.terms.iter().filter(|t| matches!(t, Term::Conv(_)));
            if convs.count() > 1 {
                seen.insert("two convolutions");
            }
            if layer.terms.len() > 2 {
                seen.insert("three terms");
            }
            if layer.pool.is_some() {
                seen.insert("layer pool");
            }
            if let Step::Activate(a) = &layer.step {
                for kind in &a.kinds {
                    seen.insert(match kind {
                        Kind::Relu => "relu",
                        Kind::Identity => "identity",
                        Kind::Square => "square",
                        Kind::Polynomial => "polynomial",
                    });
                }
                if a.kinds.iter().all(|k| *k == Kind::Identity) {
                    seen.insert("all identity");
                }
                if a.truncate == 0 {
                    seen.insert("nothing cut");
                }
            }
            for term in &layer.terms {
                let name = match term {
                    Term::Residual { negative: true, .. } => "subtracted residual",
                    Term::Residual { window: None, .. } => "residual",
                    Term::Residual {
                        input,
                        window: Some(window),
                        ..
                    } => match window.inside(circuit.tensor_shape(*input)) {
                        true => "pooled residual",
                        false => "residual of windows beyond the map",
                    },
                    Term::Conv(conv) => {
                        let input = circuit.tensor_shape(conv.input);
                        if conv.groups > 1 {
                            seen.insert("groups");
                        }
                        let p = conv.padding;
                        if p.top != p.bottom || p.left != p.right {
                            seen.insert("uneven padding");
                        }
                        if p.top >= conv.kernel.0 {
                            seen.insert("padding beyond the kernel");
                        }
                        if conv.stride.0 > 1 && conv.stride.0 != conv.stride.1 {
                            seen.insert("uneven stride");
                        }
                        if conv.kernel.0 > input.h {
                            seen.insert("kernel larger than the map");
                        }
                        if input.h > 1 && conv.kernel == (input.h, input.w) {
                            seen.insert("dense");
                        }
                        match conv.kernel {
                            (1, 1) => "1x1",
                            (h, _) if h % 2 == 0 => "even kernel",
                            _ => "odd kernel",
                        }
                    }
                };
                seen.insert(name);
            }
        }
    }
    let expected = [
        "1x1",
        "all identity",
        "dense",
        "even kernel",
        "groups",
        "identity",
        "kernel larger than the map",
        "layer pool",
        "nothing cut",
        "odd kernel",
        "padding beyond the kernel",
        "polynomial",
        "pooled residual",
        "relu",
        "residual",
        "residual of windows beyond the map",
        "square",
        "subtracted residual",
        "three terms",
        "two convolutions",
        "uneven padding",
        "uneven stride",
    ];
    assert_eq!(seen, BTreeSet::from(expected));
}

#[test]
fn text_and_file_round_trip() {
    for seed in 0..CASES {
        let (circuit, weights) = circuit(seed, &Options::default());
        let parsed = text::parse_circuit(&text::print_circuit(&circuit));
        assert_eq!(parsed.as_ref(), Ok(&*circuit), "seed {seed}");
        let file = weights_file(seed, weights);
        assert_eq!(
            crate::WeightsFile::decode(&file.encode()).as_ref(),
            Ok(&file)
        );
        let plan = Plan {
            ring_degree: 8192,
            bundles: 1,
            uploads: vec![],
            answers: vec![],
        };
        let artifact = Artifact::new(circuit, plan, file.digest(), -50.25);
        let decoded = Artifact::decode(&artifact.encode()).unwrap();
        assert_eq!(decoded, artifact, "seed {seed}");
        decoded.check_weights(&file).unwrap();
    }
}

/// Files made of changed bytes with a right digest: an error, or a circuit that can be used.
#[test]
fn changed_artifacts_are_refused_or_usable() {
    let plan = Plan {
        ring_degree: 8192,
        bundles: 1,
        uploads: vec![],
        answers: vec![],
    };
    let (mut refused, mut accepted) = (0, 0);
    for seed in 0..CASES {
        let mut draw = Draw::new(seed);
        let (circuit, weights) = circuit(seed, &Options::default());
        let good = Artifact::new(circuit, plan.clone(), [0; 32], -50.25).encode();
        for _ in 0..30 {
            let mut bytes = good.clone();
            let end = bytes.len() - 32;
            for _ in 0..draw.size(1, 3) {
                let at = 20 + draw.below(end as u64 - 20) as usize;
                bytes[at] ^= 1 << draw.below(8);
            }
            let digest = blake3::hash(&bytes[..end]);
            bytes[end..].copy_from_slice(digest.as_bytes());
            let Ok(artifact) = Artifact::decode(&bytes) else {
                refused += 1;
                continue;
            };
            accepted += 1;
            let circuit = &artifact.circuit;
            let text = text::print_circuit(circuit);
            assert_eq!(text::parse_circuit(&text).as_ref(), Ok(&**circuit));
            let sound = verify::weights(circuit, &weights).is_empty();
            let interpreter = Interpreter::new(circuit, &weights);
            let refused = interpreter.as_ref().err();
            assert!(
                !sound || refused.is_none(),
                "seed {seed}: {refused:?}\n{text}"
            );
            let input = interpret::quantise(circuit, &input(circuit, seed));
            // A bound may be too small now, which is an error and no panic.
            if let (Ok(interpreter), Ok(input)) = (interpreter, input) {
                let _ = interpreter.plain(&input);
                let _ = interpreter.exact(&input, &trace(circuit, seed));
            }
        }
    }
    assert!(refused > 1000 && accepted > 1000, "{refused} {accepted}");
}

#[test]
fn the_same_seed_gives_the_same_circuit() {
    let small = Options::default();
    assert!(circuit(5, &small) == circuit(5, &small));
    assert!(circuit(5, &small) != circuit(6, &small));
}

/// The interpreters against an evaluation written as the definition reads: one sum per element,
/// in i128, no shared code.
#[test]
fn interpreters_equal_the_definition() {
    for seed in 0..CASES {
        let (circuit, weights) = circuit(seed, &Options::default());
        let input = interpret::quantise(&circuit, &input(&circuit, seed)).unwrap();
        let plain = interpret::plain(&circuit, &weights, &input).unwrap();
        let defined = definition(&circuit, &weights, &input, None);
        assert_eq!(plain.logits, defined.logits, "seed {seed}");
        assert_eq!(plain.tensors, defined.tensors, "seed {seed}");
        assert!(plain.in_range);
        let interpreter = Interpreter::new(&circuit, &weights).unwrap();
        assert_eq!(interpreter.unlimited(&input).as_ref(), Ok(&plain));
        let trace = trace(&circuit, seed);
        equals_the_definition(&circuit, &weights, &input, &trace);
        let exact = interpreter.exact(&input, &trace).unwrap();
        assert!(exact.in_range, "seed {seed}");
        assert_eq!(exact.label, interpret::label(&exact.logits), "seed {seed}");
    }
}

/// Values beyond their bounds, which wrap in signs and arg max: what comes out is defined to the
/// bit, and so is whether it is announced.
#[test]
fn the_exact_interpreter_equals_the_definition_out_of_range() {
    let (mut announced, mut wrong) = (0, 0);
    for seed in 0..CASES {
        let (circuit, weights) = circuit(seed, &Options::default());
        let tight = tightened(&circuit, seed);
        let input = interpret::quantise(&tight, &input(&tight, seed)).unwrap();
        let trace = trace(&tight, seed);
        let run = equals_the_definition(&tight, &weights, &input, &trace);
        announced += u32::from(!run.in_range);
        // Any vector over the field is an input of the protocol.
        let mut draw = Draw::new(seed);
        let noise: Vec<i64> = (input.iter())
            .map(|_| draw.between(-(P as i64 / 2), P as i64 / 2))
            .collect();
        let run = equals_the_definition(&tight, &weights, &noise, &trace);
        let unlimited = Interpreter::new(&tight, &weights)
            .unwrap()
            .unlimited(&input);
        assert!(unlimited.is_ok(), "seed {seed}");
        wrong += u32::from(run.in_range);
    }
    assert!(announced > 20, "{announced}");
    // Without guards, or by chance.
    assert!(wrong > 0 && wrong < 300, "{wrong}");
}

fn equals_the_definition(
    circuit: &Circuit,
    weights: &Weights,
    input: &[i64],
    trace: &Trace,
) -> interpret::Run {
    let exact = interpret::exact(circuit, weights, input, trace).unwrap();
    let defined = definition(circuit, weights, input, Some(trace));
    let text = || text::print_circuit(circuit);
    assert_eq!(exact.logits, defined.logits, "{}", text());
    assert_eq!(exact.tensors, defined.tensors, "{}", text());
    assert_eq!(exact.in_range, defined.in_range, "{}", text());
    assert_eq!(exact.label, defined.label, "{}", text());
    exact
}

struct Defined {
    logits: Vec<i64>,
    tensors: Vec<Vec<i64>>,
    label: usize,
    in_range: bool,
}

fn definition(
    circuit: &Circuit,
    weights: &Weights,
    input: &[i64],
    trace: Option<&Trace>,
) -> Defined {
    let mut tensors = vec![input.to_vec()];
    let mut in_range = true;
    let mut compared = Vec::new();
    for (index, layer) in circuit.layers.iter().enumerate() {
        let sum_shape = layer.sum_shape(circuit.as_layers()).unwrap();
        let pool = layer.pool.unwrap_or(SumPool {
            kernel: (1, 1),
            stride: (1, 1),
        });
        let w = &weights.layers[index];
        let mut result = Vec::new();
        let mut quadratic = 0;
        for element in 0..layer.shape.len() {
            let (c, i, j) = place(layer.shape, element);
            let mut z = w.element_bias.get(element).map_or(0, |&b| i128::from(b));
            for di in 0..pool.kernel.0 {
                for dj in 0..pool.kernel.1 {
                    let at = (c, i * pool.stride.0 + di, j * pool.stride.1 + dj);
                    assert!(at.1 < sum_shape.h && at.2 < sum_shape.w);
                    z += sum_at(circuit, layer, w, &tensors, at);
                }
            }
            let shares = trace.map(|t| &t.layers[index]);
            if trace.is_some() {
                z = residue(z);
            }
            let a = match &layer.step {
                Step::Activate(a) => a,
                Step::Output { reveal, .. } => {
                    result.push(z as i64);
                    let mut value = z;
                    if let Some(shares) = shares {
                        in_range &= match reveal {
                            Reveal::Logits => z.abs() < 1 << layer.bound_bits,
                            Reveal::Label => {
                                let c = shares.before_truncation[element];
                                let bits = bits(z, c, 0, layer.bound_bits);
                                let (w, k) = (layer.bound_bits + 1, layer.guard_bits);
                                value = i128::from(signed(bits, w));
                                agree(bits, w + k, k)
                            }
                        };
                    }
                    compared.push(value);
                    continue;
                }
            };
            let cut = |x: i128, f: u8, bound_bits: u8, share: Option<u64>| match share {
                None => (x as f64 / f64::from(f).exp2() + 0.5).floor() as i128,
                Some(c) => two_parties(x, c, f, bound_bits),
            };
            let share = shares.map(|s| s.before_truncation[element]);
            let y = cut(z, a.truncate, layer.bound_bits, share);
            let value = match a.kinds[element] {
                Kind::Relu => match share {
                    None => y.max(0),
                    Some(c) => {
                        let bits = bits(z, c, a.truncate, layer.bound_bits);
                        let k = layer.guard_bits;
                        let m = layer.bound_bits - a.truncate + 1 + k;
                        in_range &= agree(bits, m, k);
                        if signed(bits, m) < 0 { 0 } else { y }
                    }
                },
                Kind::Identity => y,
                kind => {
                    let p = match kind {
                        Kind::Square => Polynomial { a: 1, b: 0, k: 0 },
                        _ => w.polynomials[c as usize],
                    };
                    let v = match share {
                        None => i128::from(p.a) * y * y + i128::from(p.b) * y + i128::from(p.k),
                        Some(_) => {
                            let square = i128::from(p.a) * residue(y * y);
                            residue(square + i128::from(p.b) * y + i128::from(p.k))
                        }
                    };
                    let post = a.post(kind).unwrap();
                    let share = shares.map(|s| s.before_post_truncation[quadratic]);
                    quadratic += 1;
                    cut(v, post.truncate, post.bound_bits, share)
                }
            };
            result.push(value as i64);
        }
        tensors.push(result);
    }
    let largest = compared.iter().max().unwrap();
    Defined {
        logits: tensors.pop().unwrap(),
        tensors,
        label: compared.iter().position(|v| v == largest).unwrap(),
        in_range,
    }
}

/// The residue of smallest magnitude.
fn residue(x: i128) -> i128 {
    let r = x.rem_euclid(P.into());
    if r > i128::from(P / 2) {
        r - i128::from(P)
    } else {
        r
    }
}

/// The sum of both parties' truncated integers, modulo `2^64`.
fn bits(x: i128, c: u64, f: u8, bound_bits: u8) -> u64 {
    let b = 1u64 << bound_bits;
    let d = (x - i128::from(c)).rem_euclid(P.into()) as u64;
    let client = ((c + b) % P) >> f;
    let server = (((P - d) % P) >> f).wrapping_neg().wrapping_sub(b >> f);
    client.wrapping_add(server)
}

/// The lowest `m` bits in two's complement.
fn signed(bits: u64, m: u8) -> i64 {
    (bits << (64 - m)) as i64 >> (64 - m)
}

/// Whether the upper `k + 1` of the lowest `m` bits are equal.
fn agree(bits: u64, m: u8, k: u8) -> bool {
    let bit = |i: u8| bits >> i & 1;
    (m - 1 - k..m).all(|i| bit(i) == bit(m - 1))
}

/// Each party shifts its own term; the sum as a field element of smallest magnitude.
fn two_parties(x: i128, c: u64, f: u8, bound_bits: u8) -> i128 {
    let (p, b) = (P, 1u64 << bound_bits);
    let d = (x - i128::from(c)).rem_euclid(p.into()) as u64;
    let client = ((c + b) % p) >> f;
    let server = (p - (((p - d) % p) >> f) + p - (b >> f)) % p;
    let t = (client + server) % p;
    if t > p / 2 {
        i128::from(t) - i128::from(p)
    } else {
        t.into()
    }
}

fn place(shape: Shape, element: usize) -> (u32, u32, u32) {
    let e = element as u32;
    (e / (shape.h * shape.w), e / shape.w % shape.h, e % shape.w)
}

fn sum_at(
    circuit: &Circuit,
    layer: &Layer,
    weights: &LayerWeights,
    tensors: &[Vec<i64>],
    (c, i, j): (u32, u32, u32),
) -> i128 {
    let mut z = i128::from(weights.bias[c as usize]);
    let mut kernels = weights.kernels.iter();
    for term in &layer.terms {
        let shape = circuit.tensor_shape(term.input());
        let x = |c: u32, i: i64, j: i64| {
            if i < 0 || j < 0 || i >= shape.h.into() || j >= shape.w.into() {
                return 0;
            }
            let at = (c * shape.h + i as u32) * shape.w + j as u32;
            i128::from(tensors[term.input().0 as usize][at as usize])
        };
        match term {
            Term::Residual {
                window,
                shift,
                negative,
                ..
            } => {
                let (kernel, stride, origin) = match window {
                    Some(window) => (window.kernel, window.stride, window.origin),
                    None => ((1, 1), (1, 1), (0, 0)),
                };
                for di in 0..kernel.0 {
                    for dj in 0..kernel.1 {
                        let row = i64::from(origin.0) + i64::from(i * stride.0 + di);
                        let column = i64::from(origin.1) + i64::from(j * stride.1 + dj);
                        let value = x(c, row, column) << shift;
                        z += if *negative { -value } else { value };
                    }
                }
            }
            Term::Conv(conv) => {
                let kernel = kernels.next().unwrap();
                let (kh, kw) = conv.kernel;
                let of_group = shape.c / conv.groups;
                let first = c / (conv.out_channels / conv.groups) * of_group;
                for g in 0..of_group {
                    for k in 0..kh {
                        for l in 0..kw {
                            let w = kernel[(((c * of_group + g) * kh + k) * kw + l) as usize];
                            let row =
                                i64::from(i * conv.stride.0 + k) - i64::from(conv.padding.top);
                            let column =
                                i64::from(j * conv.stride.1 + l) - i64::from(conv.padding.left);
                            z += i128::from(w) * x(first + g, row, column);
                        }
                    }
                }
            }
        }
    }
    z
}
