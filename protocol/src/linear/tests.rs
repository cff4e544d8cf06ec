//! The real scheme at its real size against the plain convolution, and what its protections are
//! for.

use super::*;
use crate::layout::oracle::{circuit_of, conv, plain_conv};
use crate::layout::{CoefficientRole, Packing, TensorUse, default_plan};
use pi_core::fp;
use pi_ir::{Circuit, Conv, LayerWeights, Padding, Plan, Shape, Term, Weights};
use pi_rlwe::answer::attack;
use pi_rlwe::{
    CiphertextModulus, CoefficientClass, GaloisKeys, N, Packed, Params, PlainPoly, Product,
    PublicKey, SecretKey, UploadLayout, expand_upload, finish, upload,
};
use rand_core::RngCore;
use std::sync::OnceLock;

const CONV: CiphertextModulus = CiphertextModulus::Conv;

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
                let inputs = circuit.tensor_shape(conv.input).c;
                let count = conv.out_channels * inputs * conv.kernel.0 * conv.kernel.1;
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
            polynomials: Vec::new(),
        }
    });
    Weights {
        layers: layers.collect(),
    }
}

/// Runs both parties and checks every output, the lengths and the costs.
fn check(circuit: &Circuit, plan: &Plan, cache_bytes: usize, seed: u64) {
    let keys = keys();
    let packing = Packing::new(circuit, plan).unwrap_or_else(|faults| panic!("{faults:?}"));
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let weights = random_weights(circuit, &mut rng);
    assert!(max_gap(&packing) <= keys.galois.max_gap());

    let public_seed = [seed as u8; 32];
    let sent = client_upload(&keys.params, &packing, &keys.secret, &public_seed, &mut rng);
    let uploaded = server_receive(&keys.params, &packing, &public_seed, &sent.message).unwrap();
    let kernels = Kernels::prepare(&keys.params, &packing, &weights, cache_bytes).unwrap();
    let (message, server) = server_answer(
        &keys.params,
        &packing,
        &kernels,
        uploaded,
        &keys.public,
        &keys.galois,
        &mut rng,
    );
    let client = client_finish(&keys.params, &packing, &keys.secret, &message).unwrap();

    let cost = cost(&packing);
    assert_eq!(cost.upload_bytes.iter().sum::<usize>(), sent.message.len());
    assert_eq!(cost.answer_bytes.iter().sum::<usize>(), message.len());

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
    let keys = keys();
    let rng = &mut ChaCha20Rng::seed_from_u64(6);
    let sent = client_upload(&keys.params, &packing, &keys.secret, &[6; 32], rng);
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
    let rng = &mut ChaCha20Rng::seed_from_u64(11);
    let sent = client_upload(&keys.params, &packing, &keys.secret, &[11; 32], rng);
    let receive =
        |message: &[u8]| server_receive(&keys.params, &packing, &[11; 32], message).map(|_| ());
    assert!(receive(&sent.message).is_ok());
    assert!(receive(&sent.message[1..]).is_err());
    assert!(receive(&[]).is_err());
    assert!(receive(&vec![0xff; sent.message.len()]).is_err());
    assert!(client_finish(&keys.params, &packing, &keys.secret, &[0; 7]).is_err());
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
    let sent = client_upload(&keys.params, &packing, &keys.secret, &[13; 32], rng);
    let answer = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let uploaded =
                server_receive(&keys.params, &packing, &[13; 32], &sent.message).unwrap();
            let rng = &mut ChaCha20Rng::seed_from_u64(seed);
            server_answer(
                &keys.params,
                &packing,
                &kernels,
                uploaded,
                &keys.public,
                &keys.galois,
                rng,
            )
        })
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
    let size = pi_rlwe::Answer::bytes(useful);
    assert!(packing.answers()[0].ciphertexts() > 1);
    assert_ne!(
        message[8 * useful..size],
        message[size + 8 * useful..2 * size]
    );
}

/// The phase of every coefficient of an encryption, against the mask: in units of the answer's
/// modulus a plaintext step is `2^10`, and the flood is left out.
#[test]
fn corrections_cover_every_coefficient() {
    let keys = keys();
    let circuit = single(
        Shape::new(3, 5, 5),
        conv(0, 4, (3, 3), (1, 1), Padding::same(1)),
    );
    let packing = Packing::new(&circuit, &default_plan(&circuit, 1).unwrap()).unwrap();
    let map = &packing.uploads()[0];
    assert!(map.counts(0).unused > 0 && map.counts(0).forced > 0 && map.counts(0).free > 0);
    let rng = &mut ChaCha20Rng::seed_from_u64(16);
    let sent = client_upload(&keys.params, &packing, &keys.secret, &[16; 32], rng);
    let uploaded = server_receive(&keys.params, &packing, &[16; 32], &sent.message).unwrap();
    let one = PlainPoly::new(&keys.params, CONV, 0, [(0, 1)]);
    let product = Product::new(&keys.params, &[(&uploaded.ciphertexts[0][0], &one)]);
    let all: Vec<u32> = (0..N as u32).collect();
    let answer = attack::finish_without_flood(
        &keys.params,
        Packed::single(&keys.params, 1, product),
        &keys.public,
        &all,
        &vec![0; N],
        rng,
    );
    for (at, phase) in attack::phase(&keys.params, &keys.secret, &answer, &all)
        .iter()
        .enumerate()
    {
        // Distance to the nearest plaintext: rounding of the answer only (32 and ten deviations of
        // 21.3).
        let rest = phase_fraction(*phase);
        assert!(rest.abs() < 0.26, "coefficient {at}: {rest}");
    }
}

/// Distance of a phase modulo `2^70` from the nearest plaintext, in plaintext steps `2^70 / p`.
fn phase_fraction(phase: u128) -> f64 {
    // phase p mod 2^70, in two halves to stay within 128 bits.
    let modulus = 1u128 << 70;
    let p = u128::from(fp::P);
    let product =
        ((phase >> 35) * p % modulus * (1 << 35) + (phase & ((1 << 35) - 1)) * p) % modulus;
    let fraction = product as f64 / modulus as f64;
    if fraction > 0.5 {
        fraction - 1.0
    } else {
        fraction
    }
}

/// An uncorrected coefficient gives a weight away after sixty answers that send a first half which
/// reads it; the protocol corrects the coefficient, and sends no such first half either.
#[test]
fn uncorrected_unused_coefficient_would_give_a_weight_away() {
    let keys = keys();
    let (params, secret) = (&keys.params, &keys.secret);
    let circuit = single(
        Shape::new(1, 6, 6),
        conv(0, 1, (3, 3), (1, 1), Padding::same(1)),
    );
    let plan = explicit(&circuit, 1, 1, (6, 6), 0, 1);
    let packing = Packing::new(&circuit, &plan).unwrap();
    let (map, answer) = (&packing.uploads()[0], &packing.answers()[0]);
    let roles = map.roles(0);
    let rng = &mut ChaCha20Rng::seed_from_u64(17);
    let mut weights: Vec<i64> = (0..9)
        .map(|_| i64::from(rng.next_u32() % 255) - 127)
        .collect();
    let taps = answer.taps(map, 0);
    // The first unused coefficient, and a coefficient of the product that reads it by the kernel's
    // last tap.
    let unused = roles
        .iter()
        .position(|role| *role == CoefficientRole::Unused)
        .unwrap();
    let tap = taps
        .iter()
        .rfind(|tap| tap.shift as usize <= unused)
        .unwrap();
    let reader = unused - tap.shift as usize;
    weights[tap.weight as usize] = -83;
    assert!(
        answer
            .useful(map, 0)
            .iter()
            .all(|useful| useful.coefficient as usize != reader)
    );

    let terms = answer.kernel(map, &taps, 0, 0).map(|p| {
        (
            p.coefficient as usize + if p.negative { N } else { 0 },
            weights[p.weight as usize],
        )
    });
    let kernel = PlainPoly::new(params, CONV, 0, terms);
    let layout = UploadLayout::new(
        roles
            .iter()
            .map(|role| match role {
                CoefficientRole::Unused => CoefficientClass::Unused,
                CoefficientRole::Free(_) => CoefficientClass::Free,
                _ => CoefficientClass::Forced,
            })
            .collect(),
    );
    // Where the correction of the unused coefficient is in the message.
    let bit: usize = roles[..unused]
        .iter()
        .map(|role| if role.is_forced() { 138 } else { 78 })
        .sum();

    let candidates = |corrected: bool, rng: &mut ChaCha20Rng| {
        let mut left: Vec<i64> = (-127..=127).collect();
        for round in 0..60u8 {
            let seed = [round; 32];
            let zeros = vec![0; layout.forced_count()];
            let mut sent = upload(params, CONV, secret, &seed, &layout, &zeros, rng);
            // The client knows how far the seed's phase is from a plaintext: minus the correction.
            let correction = read_bits(&sent.bytes, bit, 78) as i128 - (1 << 77);
            let distance = -(correction as f64) * (fp::P as f64 / 2f64.powi(138));
            if !corrected {
                write_bits(&mut sent.bytes, bit, 78, 1 << 77);
            }
            let ciphertext = expand_upload(params, CONV, &seed, &layout, &sent.bytes).unwrap();
            let packed = Packed::single(params, 1, Product::new(params, &[(&ciphertext, &kernel)]));
            let mask = fp::uniform(rng);
            let useful = [reader as u32];
            let answered = finish(params, packed, &keys.public, &useful, &[mask], rng);
            let rest = phase_fraction(attack::phase(params, secret, &answered, &useful)[0]);
            // Mask and plaintext fall away modulo a step; what is left is the flood, within a
            // quarter.
            left.retain(|w| within_flood(rest - *w as f64 * distance));
        }
        left
    };
    assert_eq!(candidates(false, rng), [-83], "the attack finds the weight");
    assert_eq!(
        candidates(true, rng),
        [0],
        "corrected, the phase shows the flood alone"
    );
}

/// The flood is within a quarter of a step; rounding adds 0.03 and a deviation of 0.02. A wrong
/// weight passes three times in four, sixty times in a row with probability 2^-26.
fn within_flood(steps: f64) -> bool {
    (steps - steps.round()).abs() < 0.25 + 0.12
}

fn read_bits(bytes: &[u8], at: usize, bits: usize) -> u128 {
    (0..bits).fold(0, |x, i| {
        x | u128::from(bytes[(at + i) / 8] >> ((at + i) % 8) & 1) << i
    })
}

fn write_bits(bytes: &mut [u8], at: usize, bits: usize, value: u128) {
    for i in 0..bits {
        let byte = &mut bytes[(at + i) / 8];
        let mask = 1 << ((at + i) % 8);
        *byte = if value >> i & 1 == 1 {
            *byte | mask
        } else {
            *byte & !mask
        };
    }
}
