//! The real scheme at its real size against the plain convolution.

mod corrections;

use super::*;
use crate::layout::oracle::{circuit_of, conv, plain_conv};
use crate::layout::{CoefficientRole, Packing, TensorUse, default_plan};
use pi_core::fp;
use pi_ir::{Circuit, Conv, LayerWeights, Padding, Plan, Shape, Term, Weights};
use pi_rlwe::{GaloisKeys, N, Params, PublicKey, SecretKey};
use rand_core::RngCore;
use std::sync::OnceLock;

struct Keys {
    params: Params,
    secret: SecretKey,
    public: PublicKey,
    galois: GaloisKeys,
}

/// One client for all tests.
fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let params = Params::standard();
        let mut rng = ChaCha20Rng::seed_from_u64(100);
        let secret = SecretKey::generate(&params, &mut rng);
        let public = PublicKey::generate(&params, &secret, &[1; 32], &mut rng);
        let galois = GaloisKeys::generate(&params, &secret, &[2; 32], 256, &mut rng);
        Keys {
            params,
            secret,
            public,
            galois,
        }
    })
}

/// Random 8-bit weights, one in eight of them zero.
fn random_weights(circuit: &Circuit, rng: &mut impl RngCore) -> Weights {
    let layers = circuit.layers.iter().map(|layer| {
        let kernels = layer.terms.iter().filter_map(|term| match term {
            Term::Conv(conv) => {
                let count = conv.weight_count(circuit.tensor_shape(conv.input));
                let weight = |_| {
                    let x = rng.next_u32();
                    if x & 7 == 0 {
                        0
                    } else {
                        (x >> 8) as i16 % 128 - 64
                    }
                };
                Some((0..count).map(weight).collect())
            }
            Term::Residual { .. } => None,
        });
        LayerWeights {
            kernels: kernels.collect(),
            bias: vec![0; layer.shape.c as usize],
            element_bias: Vec::new(),
            polynomials: Vec::new(),
        }
    });
    Weights {
        layers: layers.collect(),
    }
}

/// The client's uploads of a packing.
struct ClientUpload {
    /// `r` by tensor; `None` where no convolution reads the tensor.
    masks: Vec<Option<Zeroizing<Vec<u64>>>>,
    messages: Vec<Vec<u8>>,
}

fn client_upload(packing: &Packing, public_seed: &[u8; 32], rng: &mut ChaCha20Rng) -> ClientUpload {
    let keys = keys();
    let mut uploads = Uploads::new(&keys.params, packing, &keys.secret, public_seed, rng);
    let messages = std::iter::from_fn(|| uploads.next_message()).collect();
    ClientUpload {
        masks: uploads.into_masks(),
        messages,
    }
}

/// Reads and answers upload by upload: the messages and `s`, by answer.
fn server_answer(
    packing: &Packing,
    kernels: &Kernels,
    public_seed: &[u8; 32],
    messages: &[Vec<u8>],
    rng: &mut ChaCha20Rng,
) -> (Vec<Vec<u8>>, Vec<Zeroizing<Vec<u64>>>) {
    let keys = keys();
    let rows = messages.iter().enumerate().map(|(upload, message)| {
        let ciphertexts = receive_upload(&keys.params, packing, public_seed, upload, message);
        rows_of(&packing.uploads()[upload], ciphertexts.unwrap())
    });
    let rows: Vec<_> = rows.collect();
    let (public, galois) = (&keys.public, &keys.galois);
    let mut answers = Answers::new(&keys.params, packing, kernels, public, galois, rng);
    let maps = packing.answers().iter().enumerate();
    maps.map(|(index, map)| answers.make(index, &rows[map.upload()]))
        .unzip()
}

/// `W r + s` by answer.
fn client_finish(packing: &Packing, messages: &[Vec<u8>]) -> Vec<Zeroizing<Vec<u64>>> {
    let Keys { params, secret, .. } = keys();
    let each = messages.iter().enumerate();
    each.map(|(answer, message)| finish_answer(params, packing, secret, answer, message).unwrap())
        .collect()
}

/// Runs both parties and checks every output, the lengths and the costs.
fn check(circuit: &Circuit, plan: &Plan, cache_bytes: usize, seed: u64) {
    let keys = keys();
    let packing = Packing::new(circuit, plan).unwrap_or_else(|faults| panic!("{faults:?}"));
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let weights = random_weights(circuit, &mut rng);
    assert!(max_gap(&packing) <= keys.galois.max_gap());

    let public_seed = [seed as u8; 32];
    let sent = client_upload(&packing, &public_seed, &mut rng);
    let kernels = Kernels::prepare(&keys.params, &packing, &weights, cache_bytes).unwrap();
    let (messages, server) =
        server_answer(&packing, &kernels, &public_seed, &sent.messages, &mut rng);
    let client = client_finish(&packing, &messages);

    let cost = cost(&packing);
    let lengths = |messages: &[Vec<u8>]| messages.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(cost.upload_bytes, lengths(&sent.messages));
    assert_eq!(cost.answer_bytes, lengths(&messages));

    let mut kernel = 0;
    for (a, answer) in packing.answers().iter().enumerate() {
        kernel = if a > 0 && packing.answers()[a - 1].layer() == answer.layer() {
            kernel + 1
        } else {
            0
        };
        let conv = answer.conv();
        let shape = packing.tensors()[conv.input.0 as usize];
        let w: Vec<i64> = weights.layers[answer.layer() as usize].kernels[kernel]
            .iter()
            .map(|&w| i64::from(w))
            .collect();
        let mask = sent.masks[conv.input.0 as usize].as_ref().unwrap();
        let product: Vec<u64> = mask
            .chunks_exact(shape.len())
            .flat_map(|r| plain_conv(r, shape, conv, &w))
            .collect();
        assert_eq!(product.len(), server[a].len());
        for (e, ((c, s), wr)) in client[a]
            .iter()
            .zip(server[a].iter())
            .zip(&product)
            .enumerate()
        {
            assert_eq!(
                *c,
                fp::add(*wr, *s),
                "output {e} of answer {a}, seed {seed}"
            );
        }
    }
    for (tensor, mask) in sent.masks.iter().enumerate() {
        assert_eq!(
            mask.is_some(),
            packing.is_uploaded(pi_ir::TensorId(tensor as u32))
        );
    }
}

fn single(shape: Shape, conv: Conv) -> Circuit {
    circuit_of(shape, &[vec![conv]])
}

#[test]
fn padded_3x3_convolution() {
    let circuit = single(
        Shape::new(8, 10, 10),
        conv(0, 8, (3, 3), (1, 1), Padding::same(1)),
    );
    check(&circuit, &default_plan(&circuit, 1).unwrap(), 0, 1);
}

#[test]
fn strided_3x3_and_its_1x1_shortcut_share_an_upload() {
    let main = conv(0, 12, (3, 3), (2, 2), Padding::same(1));
    let shortcut = conv(0, 12, (1, 1), (2, 2), Padding::same(0));
    let circuit = circuit_of(Shape::new(6, 12, 12), &[vec![main, shortcut]]);
    let plan = default_plan(&circuit, 1).unwrap();
    assert_eq!(plan.uploads.len(), 1);
    check(&circuit, &plan, 0, 2);
}

/// Depthwise, in groups of three with two outputs each, and strided; kernels cached or not.
#[test]
fn grouped_convolutions_multiply_what_they_read_alone() {
    let grouped = |channels, groups, stride| Conv {
        groups,
        ..conv(0, channels, (3, 3), (stride, stride), Padding::same(1))
    };
    let of = |shape, conv: Conv| {
        let circuit = single(shape, conv);
        let plan = default_plan(&circuit, 1).unwrap();
        check(&circuit, &plan, 0, 5);
        check(&circuit, &plan, 1 << 30, 5);
        let packing = Packing::new(&circuit, &plan).unwrap();
        let upload = &packing.uploads()[0];
        (
            crate::linear::cost(&packing).operations(),
            upload.layout().group,
            upload.groups(),
        )
    };
    // As many kernels as channels: a fifth of what a convolution of all channels would take.
    let (depthwise, group, groups) = of(Shape::new(40, 24, 24), grouped(40, 40, 1));
    assert!(groups >= 5, "{groups} groups of {group}");
    assert_eq!((depthwise.kernels, depthwise.kernel_terms), (40, 360));
    let (pairs, _, _) = of(Shape::new(24, 16, 16), grouped(16, 8, 1));
    assert_eq!(pairs.kernel_terms, 16 * 3 * 9);
    of(Shape::new(12, 15, 9), grouped(12, 12, 2));
}

#[test]
fn dense_layer_is_a_kernel_of_the_maps_size() {
    let circuit = single(
        Shape::new(48, 4, 4),
        conv(0, 10, (4, 4), (1, 1), Padding::same(0)),
    );
    check(&circuit, &default_plan(&circuit, 1).unwrap(), 0, 3);
}

#[test]
fn odd_sizes_and_even_kernels() {
    let asymmetric = Padding {
        top: 1,
        left: 0,
        bottom: 2,
        right: 1,
    };
    let circuit = circuit_of(
        Shape::new(3, 13, 9),
        &[
            vec![conv(0, 5, (5, 5), (1, 1), Padding::same(2))],
            vec![conv(1, 6, (2, 4), (1, 1), asymmetric)],
            vec![conv(2, 7, (3, 2), (3, 2), Padding::same(1))],
        ],
    );
    check(&circuit, &default_plan(&circuit, 1).unwrap(), 0, 4);
}

#[test]
fn random_networks_layer_by_layer() {
    for seed in 20..24 {
        let (circuit, _) = pi_ir::random::circuit(seed, &Default::default());
        check(&circuit, &default_plan(&circuit, 1).unwrap(), 0, seed);
    }
}

#[test]
fn tensor_with_consumers_of_two_strides_is_uploaded_twice_with_one_mask() {
    let same = conv(0, 4, (3, 3), (1, 1), Padding::same(1));
    let strided = conv(0, 4, (1, 1), (2, 2), Padding::same(0));
    let circuit = circuit_of(Shape::new(4, 9, 9), &[vec![same], vec![strided]]);
    let plan = default_plan(&circuit, 1).unwrap();
    assert_eq!(plan.uploads.len(), 2);
    check(&circuit, &plan, 0, 5);
}

#[test]
fn element_that_nothing_reads_has_a_mask_all_the_same() {
    let circuit = single(
        Shape::new(2, 5, 5),
        conv(0, 2, (1, 1), (2, 2), Padding::same(0)),
    );
    let packing = Packing::new(&circuit, &default_plan(&circuit, 1).unwrap()).unwrap();
    assert_eq!(packing.uploads()[0].total_counts().free, 18);
    let rng = &mut ChaCha20Rng::seed_from_u64(6);
    let sent = client_upload(&packing, &[6; 32], rng);
    let mask = sent.masks[0].as_ref().unwrap();
    assert_eq!(mask.len(), 50);
    // All different, none zero: 50 draws of 60 bits.
    let mut sorted = mask.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert!(sorted.len() == 50 && sorted[0] != 0);
}

/// A plan with one explicit layout for a circuit of one convolution.
fn explicit(
    circuit: &Circuit,
    bundles: u32,
    group: u32,
    tile: (u32, u32),
    merge: u32,
    output_blocks: u32,
) -> Plan {
    let Term::Conv(conv) = &circuit.layers[0].terms[0] else {
        panic!("the circuit has one convolution")
    };
    let consumers = [conv];
    let tensor_use = TensorUse::new(bundles, circuit.input, &consumers);
    let sketch = tensor_use.tightest(group, tile).unwrap();
    let mut plan = default_plan(circuit, bundles).unwrap();
    plan.uploads[0].layout = sketch.upload().layout().clone();
    plan.answers[0].merge = merge;
    plan.answers[0].output_blocks = output_blocks;
    plan
}

#[test]
fn tiles_with_halos_within_and_across_ciphertexts() {
    let circuit = single(
        Shape::new(20, 11, 11),
        conv(0, 9, (3, 3), (1, 1), Padding::same(1)),
    );
    // Groups of 32 leave 256 positions: five tiles of 6 x 8 positions, of six.
    let plan = explicit(&circuit, 1, 32, (4, 6), 2, 1);
    let packing = Packing::new(&circuit, &plan).unwrap();
    let upload = &packing.uploads()[0];
    assert_eq!(
        (upload.tiles(), upload.layout().blocks, upload.rows()),
        ((3, 2), 5, 2)
    );
    assert!(
        upload
            .roles(0)
            .iter()
            .any(|role| matches!(role, CoefficientRole::Repeat(_)))
    );
    check(&circuit, &plan, 0, 7);
}

#[test]
fn several_rows_share_transformed_kernels_cached_or_not() {
    let circuit = single(
        Shape::new(16, 20, 20),
        conv(0, 6, (3, 3), (1, 1), Padding::same(1)),
    );
    let plan = explicit(&circuit, 1, 16, (12, 20), 3, 1);
    let packing = Packing::new(&circuit, &plan).unwrap();
    assert_eq!(packing.uploads()[0].rows(), 2);
    check(&circuit, &plan, 0, 8);
    check(&circuit, &plan, usize::MAX, 8);
}

#[test]
fn output_blocks_lie_behind_each_other() {
    let circuit = single(
        Shape::new(24, 4, 4),
        conv(0, 40, (3, 3), (1, 1), Padding::same(1)),
    );
    for output_blocks in [2, 3, 4] {
        check(
            &circuit,
            &explicit(&circuit, 1, 64, (4, 4), 3, output_blocks),
            0,
            9,
        );
    }
}

/// The measured noise of the only answer of a plan, rms, over what is computed from the public
/// bound of the weights, which all of them reach.
fn noise_over_bound(circuit: &Circuit, plan: &Plan, seed: u64) -> f64 {
    let Keys { params, secret, .. } = keys();
    let packing = Packing::new(circuit, plan).unwrap();
    let rng = &mut ChaCha20Rng::seed_from_u64(seed);
    let mut weights = random_weights(circuit, rng);
    for weight in &mut weights.layers[0].kernels[0] {
        *weight = if *weight < 0 { -127 } else { 127 };
    }
    let public_seed = [seed as u8; 32];
    let sent = client_upload(&packing, &public_seed, rng);
    let kernels = Kernels::prepare(params, &packing, &weights, 0).unwrap();
    let (map, upload) = (&packing.answers()[0], &packing.uploads()[0]);
    let received = receive_upload(params, &packing, &public_seed, 0, &sent.messages[0]);
    let inputs = rows_of(upload, received.unwrap());
    let (shape, conv) = (packing.tensors()[0], map.conv());
    let w: Vec<i64> = weights.layers[0].kernels[0]
        .iter()
        .map(|&w| i64::from(w))
        .collect();
    let mask = sent.masks[0].as_ref().unwrap();
    let masks = mask.chunks_exact(shape.len());
    let products: Vec<u64> = masks.flat_map(|r| plain_conv(r, shape, conv, &w)).collect();
    let mut noise = Vec::new();
    for (chunks, rows) in job::jobs(map, upload) {
        let job = job::Job {
            params,
            answer: map,
            upload,
            kernels: &kernels.answers[0],
            inputs: &inputs,
            galois_keys: &keys().galois,
            scratch: &job::Scratch::default(),
            chunks,
            rows,
        };
        let parts = job.run(|index, packed| {
            let useful = map.useful(upload, index);
            let coefficients: Vec<u32> = useful.iter().map(|u| u.coefficient).collect();
            let expected = useful.iter().map(|u| products[u.element as usize]);
            let expected: Vec<u64> = expected.collect();
            pi_rlwe::noise::measure(params, secret, &packed, &coefficients, &expected)
        });
        noise.extend(parts.into_iter().flatten());
    }
    assert_eq!(noise.len(), map.len());
    // The encryption of zero is added later, and is part of the bound.
    let answer = &plan.answers[0];
    let squares = crate::flooding::squares(circuit, answer).unwrap() * plan.bundles as f64;
    let bound = (squares / noise.len() as f64).log2() / 2.0;
    (pi_rlwe::noise::rms_log2(&noise) - bound).exp2()
}

#[test]
fn noise_is_as_large_as_the_bound_that_the_flooding_distance_rests_on() {
    let small = single(
        Shape::new(64, 4, 4),
        conv(0, 64, (3, 3), (1, 1), Padding::same(1)),
    );
    let large = single(
        Shape::new(16, 20, 20),
        conv(0, 6, (3, 3), (1, 1), Padding::same(1)),
    );
    for (circuit, plan, what) in [
        (
            &small,
            explicit(&small, 1, 64, (4, 4), 2, 1),
            "one output block",
        ),
        (
            &small,
            explicit(&small, 1, 64, (4, 4), 2, 4),
            "four output blocks",
        ),
        (
            &small,
            explicit(&small, 1, 16, (4, 4), 2, 16),
            "sixteen output blocks",
        ),
        (
            &small,
            explicit(&small, 1, 64, (4, 4), 6, 1),
            "six levels of merging",
        ),
        (&small, explicit(&small, 2, 64, (4, 4), 2, 1), "two bundles"),
        (&large, explicit(&large, 1, 16, (12, 20), 3, 1), "two tiles"),
    ] {
        let ratio = noise_over_bound(circuit, &plan, 30);
        // A thousand coefficients or more, which share errors: a tenth of scatter. Each doubling
        // of the output blocks makes a factor of 1.4.
        assert!((0.8..1.2).contains(&ratio), "{what}: {ratio:.2}");
    }
}

#[test]
fn two_bundles_share_ciphertexts() {
    let circuit = single(
        Shape::new(24, 4, 4),
        conv(0, 12, (3, 3), (1, 1), Padding::same(1)),
    );
    check(&circuit, &explicit(&circuit, 2, 32, (4, 4), 4, 1), 0, 10);
}

#[test]
fn stacked_bundles_share_ciphertexts_and_zeros() {
    let circuit = single(
        Shape::new(24, 4, 4),
        conv(0, 12, (3, 3), (1, 1), Padding::same(1)),
    );
    // Groups of 128 leave 64 positions: five maps of four rows, in tiles of ten rows across the
    // maps.
    let plan = explicit(&circuit, 5, 128, (10, 4), 4, 1);
    assert_eq!(
        Packing::new(&circuit, &plan).unwrap().uploads()[0].rows(),
        3
    );
    check(&circuit, &plan, 0, 11);
}

#[test]
fn wrong_messages_are_refused_without_panic() {
    let keys = keys();
    let circuit = single(
        Shape::new(2, 4, 4),
        conv(0, 2, (3, 3), (1, 1), Padding::same(1)),
    );
    let packing = Packing::new(&circuit, &default_plan(&circuit, 1).unwrap()).unwrap();
    assert_eq!((packing.uploads().len(), packing.answers().len()), (1, 1));
    let rng = &mut ChaCha20Rng::seed_from_u64(11);
    let message = client_upload(&packing, &[11; 32], rng).messages.concat();
    let receive = |message: &[u8]| receive_upload(&keys.params, &packing, &[11; 32], 0, message);
    assert!(receive(&message).is_ok());
    assert!(receive(&message[1..]).is_err());
    assert!(receive(&[]).is_err());
    assert!(receive(&vec![0xff; message.len()]).is_err());
    assert!(finish_answer(&keys.params, &packing, &keys.secret, 0, &[0; 7]).is_err());
}

#[test]
fn kernels_of_another_size_are_refused() {
    let circuit = single(
        Shape::new(2, 4, 4),
        conv(0, 2, (3, 3), (1, 1), Padding::same(1)),
    );
    let packing = Packing::new(&circuit, &default_plan(&circuit, 1).unwrap()).unwrap();
    let mut weights = random_weights(&circuit, &mut ChaCha20Rng::seed_from_u64(12));
    weights.layers[0].kernels[0].pop();
    let prepare =
        |weights: &Weights| Kernels::prepare(&keys().params, &packing, weights, 0).map(|_| ());
    assert!(
        prepare(&weights)
            .unwrap_err()
            .contains("35 weights, expected 36")
    );
    weights.layers[0].kernels.clear();
    assert!(prepare(&weights).unwrap_err().contains("missing"));
}

#[test]
fn server_randomness_alone_decides_the_answer_whatever_the_threads() {
    let keys = keys();
    let circuit = single(
        Shape::new(8, 6, 6),
        conv(0, 8, (3, 3), (1, 1), Padding::same(1)),
    );
    let plan = explicit(&circuit, 1, 8, (6, 6), 1, 1);
    let packing = Packing::new(&circuit, &plan).unwrap();
    let rng = &mut ChaCha20Rng::seed_from_u64(13);
    let weights = random_weights(&circuit, rng);
    let kernels = Kernels::prepare(&keys.params, &packing, &weights, 0).unwrap();
    let sent = client_upload(&packing, &[13; 32], rng);
    let answer = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let rng = &mut ChaCha20Rng::seed_from_u64(seed);
        let (mut messages, shares) =
            pool.install(|| server_answer(&packing, &kernels, &[13; 32], &sent.messages, rng));
        (messages.remove(0), shares)
    };
    let (message, shares) = answer(1, 14);
    assert_eq!((&message, &shares), (&answer(3, 14).0, &answer(2, 14).1));
    let (other, other_shares) = answer(1, 15);
    assert_ne!(message, other);
    assert!(
        shares[0]
            .iter()
            .zip(other_shares[0].iter())
            .all(|(a, b)| a != b)
    );
    // Output ciphertexts have second halves of their own: equal bytes would be one re-randomisation
    // used twice.
    let useful = packing.answers()[0].useful_count(0);
    let size = pi_rlwe::MaskedCiphertext::bytes(useful);
    assert!(packing.answers()[0].ciphertexts() > 1);
    assert_ne!(
        message[8 * useful..size],
        message[size + 8 * useful..2 * size]
    );
}
