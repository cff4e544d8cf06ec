//! The whole flow at full size, against schoolbook arithmetic in the plaintext field.

use pi_core::fp;
use pi_rlwe::noise::{budget_log2, conv_noise, measure, noise_bits, ole_noise};
use pi_rlwe::{
    Ciphertext, CiphertextModulus, CoefficientClass, Error, GaloisKeys, MaskedCiphertext, N,
    OLE_SLOTS, Packed, Params, PlainPoly, Product, PublicKey, SecretKey, Seeded, SeededLayout,
    decrypt, encrypt_seeded, expand_seeded, mask_and_flood, ole_receive, ole_respond, ole_slots,
    pack_rows,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

const MODULI: [CiphertextModulus; 2] = [CiphertextModulus::Conv, CiphertextModulus::Ole];

struct Parties {
    params: Params,
    rng: ChaCha20Rng,
    secret: SecretKey,
    public: PublicKey,
}

impl Parties {
    fn new(seed: u64) -> Self {
        let params = Params::standard();
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let secret = SecretKey::generate(&params, &mut rng);
        let public = PublicKey::generate(&params, &secret, &[1; 32], &mut rng);
        Self {
            params,
            rng,
            secret,
            public,
        }
    }

    /// A mask and its encryption, all free.
    fn uploaded(&mut self, modulus: CiphertextModulus) -> (Vec<u64>, Ciphertext) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let layout = SeededLayout::all_free();
        let sent = encrypt_seeded(
            &self.params,
            &self.secret,
            &Seeded::new(modulus, seed, &layout),
            &[],
            &mut self.rng,
        );
        (
            sent.mask.to_vec(),
            expand_seeded(
                &self.params,
                &Seeded::new(modulus, seed, &layout),
                &sent.bytes,
            )
            .unwrap(),
        )
    }

    fn kernel(&mut self, terms: usize) -> Vec<(usize, i64)> {
        (0..terms)
            .map(|_| {
                (
                    self.rng.next_u64() as usize % (2 * N),
                    (self.rng.next_u64() % 255) as i64 - 127,
                )
            })
            .collect()
    }
}

/// Coefficient `j` of `r` times the kernel, in the field.
fn coefficient(r: &[u64], kernel: &[(usize, i64)], j: usize) -> u64 {
    kernel.iter().fold(0, |sum, &(exponent, weight)| {
        let source = (j + 2 * N - exponent) % (2 * N);
        let product = fp::mul(r[source % N], fp::from_i64(weight));
        if source < N {
            fp::add(sum, product)
        } else {
            fp::sub(sum, product)
        }
    })
}

fn multiples(gap: usize) -> Vec<u32> {
    (0..N as u32).step_by(gap).collect()
}

#[test]
fn an_upload_encrypts_its_mask_whatever_the_classes() {
    let mut p = Parties::new(1);
    for modulus in MODULI {
        let classes: Vec<_> = (0..N)
            .map(|j| match j % 5 {
                0 => CoefficientClass::Forced,
                1 if j < N / 2 => CoefficientClass::Unused,
                _ => CoefficientClass::Free,
            })
            .collect();
        let layout = SeededLayout::new(classes.clone());
        let mut forced = fp::uniform_vec(layout.forced_count(), &mut p.rng);
        (forced[0], forced[1], forced[2]) = (0, fp::P - 1, 1);
        let seed = [9; 32];
        let sent = encrypt_seeded(
            &p.params,
            &p.secret,
            &Seeded::new(modulus, seed, &layout),
            &forced,
            &mut p.rng,
        );
        assert_eq!(sent.bytes.len(), layout.bytes(modulus));
        let bits = (N - forced.len()) * modulus.free_bits() as usize
            + forced.len() * modulus.forced_bits() as usize;
        assert_eq!(sent.bytes.len(), bits.div_ceil(8));
        for (j, class) in classes.iter().enumerate() {
            if *class == CoefficientClass::Forced {
                assert_eq!(sent.mask[j], forced[j.div_ceil(5)]);
            }
        }
        let ciphertext =
            expand_seeded(&p.params, &Seeded::new(modulus, seed, &layout), &sent.bytes).unwrap();
        let one = PlainPoly::new(&p.params, modulus, 0, [(0, 1)]);
        let packed = Packed::single(
            &p.params,
            1,
            Product::new(&p.params, &[(&ciphertext, &one)]),
        );
        let noise = measure(&p.params, &p.secret, &packed, &multiples(1), &sent.mask);
        let bits = noise_bits(&noise);
        // Errors are at most 21, and 1/2 of rounding.
        assert!((4..=5).contains(&bits), "{bits} bits of noise");
    }
}

#[test]
fn masks_chosen_by_seeds_are_spread_over_the_field() {
    let mut p = Parties::new(2);
    let (a, _) = p.uploaded(CiphertextModulus::Conv);
    let (b, _) = p.uploaded(CiphertextModulus::Conv);
    assert_ne!(a, b);
    let high = a.iter().filter(|&&x| x >= fp::P / 2).count();
    // Binomial(8192, 1/2): eight standard deviations are 362.
    assert!((3734..=4458).contains(&high), "{high}");
}

#[test]
fn malformed_uploads_are_refused() {
    let mut p = Parties::new(3);
    for modulus in MODULI {
        let mut classes = vec![CoefficientClass::Free; N];
        classes[0] = CoefficientClass::Forced;
        let layout = SeededLayout::new(classes);
        let seed = [2; 32];
        let sent = encrypt_seeded(
            &p.params,
            &p.secret,
            &Seeded::new(modulus, seed, &layout),
            &[0],
            &mut p.rng,
        );
        let expand =
            |bytes: &[u8]| expand_seeded(&p.params, &Seeded::new(modulus, seed, &layout), bytes);
        for length in [0, 1, sent.bytes.len() - 1] {
            assert!(matches!(
                expand(&sent.bytes[..length]),
                Err(Error::Length { .. })
            ));
        }
        let mut longer = sent.bytes.clone();
        longer.push(0);
        assert!(matches!(expand(&longer), Err(Error::Length { .. })));
        // A forced correction of all ones is not below Q, a free one of all ones is beyond Q / 2p +
        // 22.
        let forced_bytes = modulus.forced_bits() as usize / 8 + 1;
        let mut bytes = sent.bytes.clone();
        bytes[..forced_bytes].fill(0xff);
        assert_eq!(
            expand(&bytes).unwrap_err(),
            Error::OutOfRange { what: "upload" }
        );
        let mut bytes = sent.bytes.clone();
        bytes[forced_bytes + 32..][..40].fill(0xff);
        assert_eq!(
            expand(&bytes).unwrap_err(),
            Error::OutOfRange { what: "upload" }
        );
    }
}

#[test]
fn answers_decrypt_to_product_plus_mask_and_survive_the_wire() {
    let mut p = Parties::new(4);
    for modulus in MODULI {
        let (r, x) = p.uploaded(modulus);
        let (r2, x2) = p.uploaded(modulus);
        let (w, w2) = (p.kernel(40), p.kernel(3));
        let (k, k2) = (
            PlainPoly::new(&p.params, modulus, 0, w.clone()),
            PlainPoly::new(&p.params, modulus, 0, w2.clone()),
        );
        let product = Product::new(&p.params, &[(&x, &k), (&x2, &k2)]);
        // Not all multiples of the gap are useful.
        let useful: Vec<u32> = multiples(8).into_iter().filter(|j| j % 3 != 1).collect();
        let mask = fp::uniform_vec(useful.len(), &mut p.rng);
        let packed = Packed::single(&p.params, 8, product);
        let answer = mask_and_flood(&p.params, packed, &p.public, &useful, &mask, &mut p.rng);
        let bytes = answer.encode();
        assert_eq!(bytes.len(), MaskedCiphertext::bytes(useful.len()));
        let received = MaskedCiphertext::decode(useful.len(), &bytes).unwrap();
        assert_eq!(received, answer);
        let values = decrypt(&p.params, &p.secret, &received, &useful);
        for ((&j, &mask), &value) in useful.iter().zip(&mask).zip(values.iter()) {
            let expected = fp::add(
                coefficient(&r, &w, j as usize),
                coefficient(&r2, &w2, j as usize),
            );
            assert_eq!(value, fp::add(expected, mask), "{modulus:?} {j}");
        }
        assert!(matches!(
            MaskedCiphertext::decode(useful.len(), &bytes[1..]),
            Err(Error::Length { .. })
        ));
        assert!(matches!(
            MaskedCiphertext::decode(useful.len() + 1, &bytes),
            Err(Error::Length { .. })
        ));
    }
}

#[test]
fn packing_places_each_product_and_keeps_its_noise_bound() {
    let mut p = Parties::new(5);
    let keys = GaloisKeys::generate(&p.params, &p.secret, &[8; 32], 256, &mut p.rng);
    for (gap, levels) in [
        (1, 0),
        (2, 1),
        (4, 2),
        (8, 3),
        (16, 2),
        (16, 4),
        (64, 1),
        (256, 8),
        (256, 0),
    ] {
        let (r, x) = p.uploaded(CiphertextModulus::Conv);
        let kernels: Vec<_> = (0..1 << levels).map(|_| p.kernel(9)).collect();
        let product = |&o: &usize| {
            let terms = kernels[o].iter().copied();
            let kernel = PlainPoly::new(&p.params, CiphertextModulus::Conv, levels, terms);
            vec![Product::new(&p.params, &[(&x, &kernel)])]
        };
        let products = |places: &[usize]| places.iter().map(product).collect();
        let mut rows = pack_rows(&p.params, &keys, gap, levels, 1, products);
        let packed = rows
            .pop()
            .expect("one row of products gives one ciphertext");
        assert!(rows.is_empty());
        let unit = gap >> levels;
        assert_eq!(format!("{packed:?}"), format!("Packed(Conv, gap {unit})"));
        let useful = multiples(unit);
        let expected: Vec<u64> = useful
            .iter()
            .map(|&j| {
                let (block, o) = (j as usize / gap * gap, j as usize % gap / unit);
                coefficient(&r, &kernels[o], block)
            })
            .collect();
        let sum = |f: fn(i64) -> f64| {
            kernels
                .iter()
                .map(|k| k.iter().map(|&(_, w)| f(w)).sum::<f64>())
                .fold(0.0, f64::max)
        };
        let bound = conv_noise(sum(|w| w.abs() as f64), sum(|w| (w * w) as f64), levels);
        let noise = measure(&p.params, &p.secret, &packed, &useful, &expected);
        let bits = noise_bits(&noise);
        println!(
            "gap {gap}, {levels} levels: noise {bits} bits, bound {:.1}, rms {:.1}",
            bound.worst_log2, bound.rms_log2
        );
        assert!(
            (bits as f64) < bound.worst_log2 && bits as f64 - 3.5 < bound.rms_log2,
            "{bits} {bound:?}"
        );
        assert!(bound.worst_log2 + 20.0 < budget_log2(&p.params, CiphertextModulus::Conv));
        let mask = fp::uniform_vec(useful.len(), &mut p.rng);
        let answer = mask_and_flood(&p.params, packed, &p.public, &useful, &mask, &mut p.rng);
        let values = decrypt(&p.params, &p.secret, &answer, &useful);
        for i in 0..useful.len() {
            assert_eq!(
                values[i],
                fp::add(expected[i], mask[i]),
                "gap {gap}, {levels} levels, {}",
                useful[i]
            );
        }
    }
}

#[test]
fn shares_of_an_ole_add_up_to_the_product() {
    let mut p = Parties::new(6);
    let (r, ciphertext) = p.uploaded(CiphertextModulus::Ole);
    let x = ole_slots(&p.params, &r);
    // All slots that can be used, and some of them.
    for count in [OLE_SLOTS, 700] {
        let mut y = fp::uniform_vec(count, &mut p.rng);
        (y[0], y[1], y[2]) = (0, 1, fp::P - 1);
        let v = fp::uniform_vec(count, &mut p.rng);
        let answer = ole_respond(&p.params, &ciphertext, &y, &v, &p.public, &mut p.rng);
        assert_eq!(answer.encode().len(), MaskedCiphertext::bytes(N));
        let u = ole_receive(&p.params, &p.secret, &answer);
        assert_eq!((x.len(), u.len()), (OLE_SLOTS, OLE_SLOTS));
        for i in 0..count {
            assert_eq!(fp::add(u[i], v[i]), fp::mul(x[i], y[i]), "slot {i}");
        }
    }
    assert!(ole_noise().worst_log2 + 20.0 < budget_log2(&p.params, CiphertextModulus::Ole));
}

#[test]
fn one_upload_under_the_same_randomness_gives_the_recorded_bytes() {
    // Fixes the wire format of uploads: labels, order, rejection, transforms and packing of bits.
    let mut p = Parties::new(7);
    let mut classes = vec![CoefficientClass::Free; N];
    classes[5] = CoefficientClass::Forced;
    let layout = SeededLayout::new(classes);
    for (modulus, expected) in MODULI.into_iter().zip(UPLOAD_DIGESTS) {
        let sent = encrypt_seeded(
            &p.params,
            &p.secret,
            &Seeded::new(modulus, [6; 32], &layout),
            &[77],
            &mut p.rng,
        );
        assert_eq!(
            blake3::hash(&sent.bytes).to_hex().as_str(),
            expected,
            "{modulus:?}"
        );
    }
}

const UPLOAD_DIGESTS: [&str; 2] = [
    "b0007068b3f14056739a29c6e2aa2b6d989e8fc14fb65985bd4666ffedc3528d",
    "df0e65f4cc10eb95fa7a573d842bdfe67167aa4218b3a9802236b427d02717f5",
];
