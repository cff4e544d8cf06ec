//! Why every coefficient is corrected: the phases that corrections leave, and the weight that an
//! uncorrected coefficient would give away.

use super::*;
use crate::linear::upload::upload_layout;
use pi_rlwe::masked::attack;
use pi_rlwe::{
    CiphertextModulus, Packed, PlainPoly, Product, Seeded, encrypt_seeded, expand_seeded,
    mask_and_flood,
};

const CONV: CiphertextModulus = CiphertextModulus::Conv;

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
    let sent = client_upload(&packing, &[16; 32], rng);
    let message = &sent.messages[0];
    let uploaded = receive_upload(&keys.params, &packing, &[16; 32], 0, message).unwrap();
    let one = PlainPoly::new(&keys.params, CONV, 0, [(0, 1)]);
    let product = Product::new(&keys.params, &[(&uploaded[0], &one)]);
    let all: Vec<u32> = (0..N as u32).collect();
    let answer = attack::mask_without_flood(
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
    let layout = upload_layout(&roles);
    // Where the correction of the unused coefficient is in the message.
    let bit: usize = roles[..unused]
        .iter()
        .map(|role| match role {
            CoefficientRole::Zero | CoefficientRole::Repeat(_) => 138,
            CoefficientRole::Free(_) | CoefficientRole::Unused => 78,
        })
        .sum();

    let candidates = |corrected: bool, rng: &mut ChaCha20Rng| {
        let mut left: Vec<i64> = (-127..=127).collect();
        for round in 0..60u8 {
            let seed = [round; 32];
            let zeros = vec![0; layout.forced_count()];
            let mut sent = encrypt_seeded(
                params,
                secret,
                &Seeded::new(CONV, seed, &layout),
                &zeros,
                rng,
            );
            // The client knows how far the seed's phase is from a plaintext: minus the correction.
            let correction = read_bits(&sent.bytes, bit, 78) as i128 - (1 << 77);
            let distance = -(correction as f64) * (fp::P as f64 / 2f64.powi(138));
            if !corrected {
                write_bits(&mut sent.bytes, bit, 78, 1 << 77);
            }
            let ciphertext =
                expand_seeded(params, &Seeded::new(CONV, seed, &layout), &sent.bytes).unwrap();
            let packed = Packed::single(params, 1, Product::new(params, &[(&ciphertext, &kernel)]));
            let mask = fp::uniform(rng);
            let useful = [reader as u32];
            let answered = mask_and_flood(params, packed, &keys.public, &useful, &[mask], rng);
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
