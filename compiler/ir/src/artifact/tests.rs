use super::frame::DIGEST;
use super::*;
use crate::circuit::*;
use crate::graph::*;
use crate::plan::*;
use crate::prefix::Prefix;
use crate::preprocessing::Preprocessing;
use crate::shape::*;
use crate::weights::*;

fn artifact() -> Artifact {
    let circuit = Circuit {
        name: "tiny".into(),
        input: Shape::new(1, 3, 3),
        input_frac_bits: 6,
        preprocessing: Preprocessing::Channels {
            mean: vec![0.5],
            std: vec![0.25],
        },
        classes: vec!["no".into(), "yes".into()],
        prefix: None,
        layers: vec![
            Layer {
                name: "conv".into(),
                terms: vec![Term::Conv(Conv {
                    input: TensorId(0),
                    out_channels: 1,
                    groups: 1,
                    kernel: (2, 2),
                    stride: (1, 1),
                    padding: Padding {
                        top: 0,
                        left: 0,
                        bottom: 1,
                        right: 1,
                    },
                    weight_bits: 8,
                })],
                pool: None,
                shape: Shape::new(1, 3, 3),
                bound_bits: 20,
                range: Range::Proved,
                guard_bits: 0,
                step: Step::Activate(Activation {
                    truncate: 7,
                    frac_bits: 6,
                    kinds: [
                        Kind::Relu,
                        Kind::Identity,
                        Kind::Square,
                        Kind::Polynomial,
                        Kind::Relu,
                        Kind::Relu,
                        Kind::Identity,
                        Kind::Identity,
                        Kind::Square,
                    ]
                    .to_vec(),
                    square: Some(PostTruncation {
                        truncate: 6,
                        bound_bits: 28,
                        range: Range::Proved,
                    }),
                    polynomial: Some(PostTruncation {
                        truncate: 9,
                        bound_bits: 30,
                        range: Range::Calibrated { max_seen: 77_777 },
                    }),
                }),
            },
            Layer {
                name: "dense".into(),
                terms: vec![Term::Conv(Conv {
                    input: TensorId(1),
                    out_channels: 2,
                    groups: 1,
                    kernel: (3, 3),
                    stride: (1, 1),
                    padding: Padding::default(),
                    weight_bits: 9,
                })],
                pool: None,
                shape: Shape::new(2, 1, 1),
                bound_bits: 40,
                range: Range::Proved,
                guard_bits: 0,
                step: Step::Output {
                    frac_bits: 12,
                    reveal: Reveal::Logits,
                },
            },
        ],
    };
    let plan = Plan {
        ring_degree: 8192,
        bundles: 1,
        uploads: vec![Upload {
            tensor: TensorId(0),
            layout: Layout {
                group: 1,
                stride: (1, 1),
                padding: Padding::default(),
                window: (2, 2),
                tile: (3, 3),
                row_stride: 4,
                block: 16,
                blocks: 1,
            },
        }],
        answers: vec![OutputPacking {
            layer: 0,
            term: 0,
            upload: 0,
            merge: 0,
            output_blocks: 1,
        }],
    };
    Artifact {
        failure_log2: failure_log2(&circuit).total,
        flooding_log2: -50.25,
        circuit: verify::circuit(circuit).unwrap(),
        batches: vec![Plan {
            bundles: 4,
            ..plan.clone()
        }],
        plan,
        weights_digest: weights().digest(),
        accuracy: Some(Accuracy {
            images: 10_000,
            float_correct: 7_777,
            fixed_correct: 7_770,
        }),
        note: "for tests".into(),
    }
}

fn weights() -> WeightsFile {
    WeightsFile {
        salt: [7; 32],
        weights: Weights {
            layers: vec![
                LayerWeights {
                    kernels: vec![vec![1, -128, 127, 0]],
                    bias: vec![-300],
                    element_bias: vec![],
                    polynomials: vec![Polynomial { a: 1, b: -2, k: 3 }],
                },
                LayerWeights {
                    kernels: vec![(0..18).map(|i| 128 - 17 * i).collect()],
                    bias: vec![0, 1 << 40],
                    element_bias: vec![-1, 1 << 41],
                    polynomials: vec![],
                },
            ],
        },
    }
}

fn graph() -> GraphFile {
    let node = |name: &str, op, inputs: &[u32]| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|&i| NodeId(i)).collect(),
        origin: Origin::Statistics,
    };
    GraphFile {
        graph: Graph {
            name: "tiny".into(),
            preprocessing: Preprocessing::Channels {
                mean: vec![0.5],
                std: vec![0.25],
            },
            classes: vec![],
            nodes: vec![
                node(
                    "input",
                    Op::Input {
                        shape: Shape::new(1, 2, 1),
                    },
                    &[],
                ),
                node(
                    "act",
                    Op::Activation {
                        kinds: vec![ActivationKind::Polynomial, ActivationKind::Relu],
                        coefficients: vec![[0.25, -0.5, 1.5]],
                    },
                    &[0],
                ),
                node("flat", Op::Flatten, &[1]),
                node(
                    "fc",
                    Op::Dense {
                        weight: vec![1.0, -2.0],
                        bias: vec![f32::MIN_POSITIVE],
                        out: 1,
                    },
                    &[2],
                ),
            ],
        },
    }
}

/// Every prefix, and every byte changed, through the whole decoder: first as it is (the digest
/// catches it), then with the digest made right (the body's decoder must catch what is wrong).
fn damage<F>(value: &F, whole: fn(&[u8]) -> Result<F, Error>)
where
    F: File + PartialEq + std::fmt::Debug,
{
    let good = encode(value);
    assert_eq!(&whole(&good).unwrap(), value);
    for n in 0..good.len() {
        assert!(decode::<F>(&good[..n]).is_err(), "prefix of {n} bytes");
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(decode::<F>(&longer), Err(Error::Length { .. })));
    for at in 0..good.len() {
        for flip in [1, 2, 4, 16, 64, 128, 255] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            assert!(decode::<F>(&bytes).is_err(), "byte {at} xor {flip}");
            let end = bytes.len() - DIGEST;
            let digest = blake3::hash(&bytes[..end]);
            bytes[end..].copy_from_slice(digest.as_bytes());
            if let Ok(other) = decode::<F>(&bytes) {
                assert_eq!(frame::framed::<F>(&other), bytes, "byte {at} xor {flip}");
            }
        }
    }
}

#[test]
fn damaged_files_are_refused_without_panic() {
    damage(&artifact(), Artifact::decode);
    damage(&weights(), WeightsFile::decode);
    damage(&graph(), GraphFile::decode);
}

#[test]
fn a_declared_length_reserves_no_memory() {
    // A list of 2^60 classes, kernels or layers in a body of a few bytes.
    let mut body = vec![0; 8];
    body.splice(0..0, [0xff; 8]);
    let mut bytes = [
        &GraphFile::MAGIC[..],
        &GraphFile::VERSION.to_le_bytes(),
        &(body.len() as u64).to_le_bytes(),
        &body,
    ]
    .concat();
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    assert!(matches!(
        GraphFile::decode(&bytes),
        Err(Error::Malformed { .. })
    ));
}

#[test]
fn each_kind_of_file_refuses_the_others() {
    let error = Artifact::decode(&weights().encode()).unwrap_err();
    assert!(matches!(error, Error::Magic { .. }), "{error}");
    let error = WeightsFile::decode(&graph().encode()).unwrap_err();
    assert!(error.to_string().contains("PI-GRAPH"), "{error}");
    let mut newer = artifact().encode();
    newer[8] = 9;
    assert!(matches!(
        Artifact::decode(&newer),
        Err(Error::Version { found: 9, .. })
    ));
}

#[test]
fn decoding_verifies_the_circuit_and_its_failure_probability() {
    let good = artifact();
    assert_eq!(Artifact::decode(&good.encode()).unwrap(), good);
    assert_eq!(GraphFile::decode(&graph().encode()).unwrap(), graph());
    let mut claims = good.clone();
    claims.failure_log2 -= 1.0;
    let error = Artifact::decode(&claims.encode()).unwrap_err();
    assert!(error.to_string().contains("failure_log2"), "{error}");
    let mut faulty = good;
    let mut circuit = faulty.circuit.into_inner();
    circuit.layers[0].bound_bits = 60;
    faulty.circuit = Verified::unchecked(circuit);
    let error = Artifact::decode(&faulty.encode()).unwrap_err();
    assert!(error.to_string().contains("layer 0 (conv)"), "{error}");
    let mut faulty = artifact();
    faulty.plan.bundles = 2;
    let error = Artifact::decode(&faulty.encode()).unwrap_err();
    assert!(error.to_string().contains("for 2 bundles"), "{error}");
    let mut faulty = artifact();
    faulty.batches[0].bundles = 1;
    let error = Artifact::decode(&faulty.encode()).unwrap_err();
    assert!(error.to_string().contains("growing numbers"), "{error}");
    let error = Artifact::decode(&with_prefix(|prefix| {
        prefix.layers[0].range = Range::Calibrated { max_seen: 1 };
    }))
    .unwrap_err();
    assert!(
        error.to_string().contains("prefix layer 0 (stem)"),
        "{error}"
    );
    let mut faulty = graph();
    faulty.graph.preprocessing = Preprocessing::Image { floor: 0 };
    assert!(matches!(
        GraphFile::decode(&faulty.encode()),
        Err(Error::Faults { .. })
    ));
}

#[test]
fn digest_is_the_end_of_the_file_and_names_the_weights() {
    let (artifact, weights) = (artifact(), weights());
    assert!(artifact.encode().ends_with(&artifact.digest()));
    assert!(weights.encode().ends_with(&weights.digest()));
    artifact.check_weights(&weights).unwrap();
    let mut other = weights;
    other.salt[0] ^= 1;
    assert!(matches!(
        artifact.check_weights(&other),
        Err(Error::WeightsMismatch { .. })
    ));
}

#[test]
fn kinds_take_two_bits_and_small_weights_one_byte() {
    let mut large = artifact();
    let before = large.encode().len();
    let mut circuit = large.circuit.into_inner();
    let Step::Activate(activation) = &mut circuit.layers[0].step else {
        panic!("the first layer activates");
    };
    activation.kinds = vec![Kind::Square; 9 + 40_000];
    large.circuit = Verified::unchecked(circuit);
    // The circuit has a fault now, but its encoding is what it is.
    // The count grows from one byte to three, the packed length from one to two.
    assert_eq!(large.encode().len(), before + 10_000 + 2 + 1);

    let mut wide = weights();
    let before = wide.encode().len();
    wide.weights.layers[0].kernels[0][0] = 128;
    assert_eq!(wide.encode().len(), before + 4);
}

/// An artifact of the example whose image is first taken through a public layer, changed.
fn with_prefix(change: impl FnOnce(&mut Prefix)) -> Vec<u8> {
    let mut circuit = artifact().circuit.into_inner();
    let mut prefix = prefix();
    change(&mut prefix);
    circuit.preprocessing = Preprocessing::Image { floor: 20 };
    circuit.prefix = Some(prefix);
    let artifact = Artifact {
        circuit: Verified::unchecked(circuit),
        ..artifact()
    };
    artifact.encode()
}

fn prefix() -> Prefix {
    let conv = Conv {
        input: TensorId(0),
        out_channels: 1,
        groups: 1,
        kernel: (2, 2),
        stride: (1, 1),
        padding: Padding::default(),
        weight_bits: 7,
    };
    let weights = LayerWeights {
        kernels: vec![vec![1, -2, 3, 127]],
        bias: vec![-5],
        element_bias: vec![],
        polynomials: vec![],
    };
    Prefix {
        image: Shape::new(1, 4, 4),
        image_frac_bits: 6,
        layers: vec![Layer {
            name: "stem".into(),
            terms: vec![Term::Conv(conv)],
            pool: None,
            shape: Shape::new(1, 3, 3),
            bound_bits: 16,
            range: Range::Proved,
            guard_bits: 0,
            step: Step::Activate(Activation {
                truncate: 6,
                frac_bits: 6,
                kinds: vec![Kind::Relu; 9],
                square: None,
                polynomial: None,
            }),
        }],
        weights: PublicWeights::publish(Weights {
            layers: vec![weights],
        }),
    }
}

/// A broken or lying server's prefix is named, and computes nothing.
#[test]
fn a_public_prefix_is_checked_like_the_layers_behind_it() {
    let sound = Artifact::decode(&with_prefix(|_| {})).unwrap();
    assert_eq!(sound.circuit.prefix, Some(prefix()));
    let other = Artifact::decode(&with_prefix(|p| {
        let mut weights = (*p.weights).clone();
        weights.layers[0].bias[0] += 1;
        p.weights = PublicWeights::publish(weights);
    }));
    // Another weight is another model, to which no bundle of this one belongs.
    assert_ne!(other.unwrap().digest(), sound.digest());
    type Change = fn(&mut Prefix);
    let weights = |change: fn(&mut LayerWeights)| {
        with_prefix(|p| {
            let mut weights = (*p.weights).clone();
            change(&mut weights.layers[0]);
            p.weights = PublicWeights::publish(weights);
        })
    };
    let cases: [(Change, &str); 9] = [
        (|p| p.layers.clear(), "prefix: has no layers"),
        (|p| p.image = Shape::new(1, 0, 4), "image: the shape"),
        (
            |p| p.image = Shape::new(1, 5, 4),
            "declares 1x3x3, but its terms make 1x4x3",
        ),
        (|p| p.image_frac_bits = 60, "image: more than 48"),
        (
            |p| {
                p.layers[0].step = Step::Output {
                    frac_bits: 6,
                    reveal: Reveal::Logits,
                }
            },
            "not the last private layer",
        ),
        (|p| p.layers[0].name = "conv".into(), "a second \"conv\""),
        (|p| p.layers[0].bound_bits = 50, "begin with at most 2^30"),
        (|p| p.layers[0].bound_bits = 80, "the field has room for"),
        (
            |p| match &mut p.layers[0].step {
                Step::Activate(activation) => activation.frac_bits = 7,
                Step::Output { .. } => {}
            },
            "has scale 2^7",
        ),
    ];
    let mut found: Vec<(Vec<u8>, &str)> = cases
        .into_iter()
        .map(|(change, says)| (with_prefix(change), says))
        .collect();
    found.push((
        weights(|w| w.kernels[0].truncate(3)),
        "expected 4 weights, got 3",
    ));
    found.push((weights(|w| w.kernels.clear()), "expected 1 kernels, got 0"));
    found.push((weights(|w| w.kernels[0][0] = 128), "a weight reaches 2^7"));
    found.push((weights(|w| w.bias.clear()), "expected 1 biases, got 0"));
    found.push((weights(|w| w.bias[0] = i64::MIN), "a bias exceeds"));
    for (bytes, says) in found {
        let error = Artifact::decode(&bytes).expect_err(says);
        assert!(matches!(error, Error::Faults { .. }), "{error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

#[test]
fn a_prefix_that_would_compute_for_hours_is_refused() {
    let bytes = with_prefix(|prefix| {
        prefix.image = Shape::new(64, 512, 512);
        let Some(Term::Conv(conv)) = prefix.layers[0].terms.first_mut() else {
            panic!("the stem is a convolution");
        };
        (conv.out_channels, conv.kernel) = (64, (9, 9));
        conv.padding = Padding::same(4);
        prefix.layers[0].shape = prefix.image;
        if let Step::Activate(activation) = &mut prefix.layers[0].step {
            activation.kinds = vec![Kind::Relu; prefix.image.len()];
        }
        let mut end = self::prefix().layers.remove(0);
        end.name = "end".into();
        if let Some(Term::Conv(conv)) = end.terms.first_mut() {
            conv.input = TensorId(1);
            (conv.kernel, conv.stride) = ((1, 1), (255, 255));
        }
        prefix.layers.push(end);
        let zeros = |kernel: usize, biases: usize| LayerWeights {
            kernels: vec![vec![0; kernel]],
            bias: vec![0; biases],
            element_bias: vec![],
            polynomials: vec![],
        };
        prefix.weights = PublicWeights::publish(Weights {
            layers: vec![zeros(64 * 64 * 81, 64), zeros(64, 1)],
        });
    });
    let error = Artifact::decode(&bytes).unwrap_err();
    assert!(
        error.to_string().contains("multiply-adds, the limit"),
        "{error}"
    );
}

/// What is revealed is bound by the digest, and counts in the failure probability.
#[test]
fn an_artifact_reveals_something_else() {
    let logits = artifact();
    let label = logits.clone().with_reveal(Reveal::Label).unwrap();
    assert_eq!(label.circuit.output().1, Reveal::Label);
    assert_eq!(Artifact::decode(&label.encode()).unwrap(), label);
    assert_ne!(label.digest(), logits.digest());
    assert!(label.failure_log2 > logits.failure_log2);
    assert_eq!(label.clone().with_reveal(Reveal::Logits).unwrap(), logits);
    let mut circuit = logits.circuit.clone().into_inner();
    circuit.layers.last_mut().unwrap().shape = Shape::new(1, 2, 1);
    let wide = Artifact {
        circuit: Verified::unchecked(circuit),
        ..logits
    };
    let error = wide.with_reveal(Reveal::Label).unwrap_err();
    assert!(error.to_string().contains("no label"), "{error}");
}

/// Written down once: a change here is a change of the format and needs a new version.
#[test]
fn golden_bytes() {
    let weights = concat!(
        "50492d5745494748",
        "02000000",
        "6900000000000000",
        "0707070707070707070707070707070707070707070707070707070707070707",
        "02",
        "01010401807f0001d7040001020306",
        "01022480006f005e004d003c002b001a000900f8ffe7ffd6ffc5ff",
        "b4ffa3ff92ff81ff70ff5fff020080808080804002018080808080800100",
        "b20e46545adc92be0e02b77951662c00f8781979fab08642376630bbb1b78bbc",
    );
    assert_eq!(hex(&self::weights().encode()), weights);
    let digest = |bytes: &[u8]| hex(bytes.last_chunk::<32>().unwrap());
    // A number given here, because the last bits of a logarithm may differ between platforms.
    let artifact = Artifact {
        failure_log2: -31.5,
        ..artifact()
    };
    assert_eq!(
        digest(&artifact.encode()),
        "d37915990d2f5152d6c8621e2a3ca5a90d664394d6e343b2db4402e05fb13a86"
    );
    assert_eq!(
        digest(&graph().encode()),
        "5fcf2067eb356e0922cf0187161aef152c4681583e2e5f8e690316e78f37738d"
    );
}
