//! What an honest-but-curious client could read off the server's answers if a protection were missing.
//!
//! Each test mounts the attack twice: on an answer that leaves the protection out, where it must succeed (else the test
//! proves nothing), and on the real one, where it must fail. Attacks on the correction of unused coefficients, on
//! bundles used twice, and on the bundle store are beside the code they concern.

use pi_ring::fp;
use pi_rlwe::attack::{
    finish_with_flood_bits, finish_without_rerandomisation, phase, second_half, second_half_of,
};
use pi_rlwe::{
    Answer, Ciphertext, CiphertextModulus, N, Packed, Params, PlainPoly, Product, PublicKey,
    SecretKey, UploadLayout, decrypt, expand_upload, finish, upload,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

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
        let public = PublicKey::generate(&params, &secret, &[9; 32], &mut rng);
        Parties {
            params,
            rng,
            secret,
            public,
        }
    }

    /// A mask that the client knows, and the server's encryption of it.
    fn uploaded(&mut self) -> (Vec<u64>, Ciphertext) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let layout = UploadLayout::all_free();
        let conv = CiphertextModulus::Conv;
        let sent = upload(
            &self.params,
            conv,
            &self.secret,
            &seed,
            &layout,
            &[],
            &mut self.rng,
        );
        let ciphertext = expand_upload(&self.params, conv, &seed, &layout, &sent.bytes).unwrap();
        (sent.mask.to_vec(), ciphertext)
    }

    /// The ciphertext times a kernel of `(exponent, weight)` terms.
    fn product(&self, ciphertext: &Ciphertext, kernel: &[(usize, i64)]) -> Packed {
        let poly = PlainPoly::new(
            &self.params,
            CiphertextModulus::Conv,
            0,
            kernel.iter().copied(),
        );
        Packed::single(
            &self.params,
            1,
            Product::new(&self.params, &[(ciphertext, &poly)]),
        )
    }

    fn masks(&mut self) -> Vec<u64> {
        fp::uniform_vec(N, &mut self.rng)
    }

    fn finish(&mut self, packed: Packed, mask: &[u64]) -> Answer {
        finish(
            &self.params,
            packed,
            &self.public,
            &all(),
            mask,
            &mut self.rng,
        )
    }
}

fn all() -> Vec<u32> {
    (0..N as u32).collect()
}

/// The eight-bit weights whose product with the client's own ciphertext has this second half.
fn weights_that_fit(p: &Parties, ciphertext: &Ciphertext, seen: &[u128]) -> Vec<i64> {
    (-127..=127)
        .filter(|&w| {
            let guess = second_half_of(&p.params, &p.product(ciphertext, &[(0, w)]));
            // Rounding at the switch of modulus may differ by a unit.
            let close = |(a, b): (&u128, &u128)| {
                let distance = a.wrapping_sub(*b) & ((1 << 70) - 1);
                distance <= 1 || distance >= (1 << 70) - 1
            };
            guess.iter().zip(seen).take(64).all(close)
        })
        .collect()
}

#[test]
fn second_half_shows_the_weight_unless_rerandomised() {
    let mut p = Parties::new(11);
    let (_, ciphertext) = p.uploaded();
    let secret_weight = -83;
    let mask = p.masks();

    let product = p.product(&ciphertext, &[(0, secret_weight)]);
    let bare = finish_without_rerandomisation(&p.params, product, &all(), &mask, &mut p.rng);
    assert_eq!(
        weights_that_fit(&p, &ciphertext, second_half(&bare)),
        [secret_weight]
    );

    let product = p.product(&ciphertext, &[(0, secret_weight)]);
    let real = p.finish(product, &mask);
    assert!(weights_that_fit(&p, &ciphertext, second_half(&real)).is_empty());
}

#[test]
fn two_answers_have_independent_second_halves() {
    let mut p = Parties::new(12);
    let (_, ciphertext) = p.uploaded();
    let mask = p.masks();
    let first = {
        let product = p.product(&ciphertext, &[(0, 5)]);
        p.finish(product, &mask)
    };
    let second = {
        let product = p.product(&ciphertext, &[(0, 5)]);
        p.finish(product, &mask)
    };
    // The difference of two fresh encryptions of zero is as wide as the modulus: about half of all coefficients differ by more
    // than a quarter of it, whereas two equal encryptions would differ by rounding.
    let far = second_half(&first)
        .iter()
        .zip(second_half(&second))
        .filter(|(a, b)| {
            let distance = a.wrapping_sub(**b) & ((1 << 70) - 1);
            (1 << 68..3 << 68).contains(&distance)
        })
        .count();
    assert!((N * 2 / 5..N * 3 / 5).contains(&far), "{far} of {N}");
}

#[test]
fn unmasked_positions_show_the_weight() {
    let mut p = Parties::new(13);
    let (r, ciphertext) = p.uploaded();
    let secret_weight = 101;
    // The client knows r and divides.
    let divide = |values: &[u64]| -> Vec<i64> {
        values
            .iter()
            .zip(&r)
            .map(|(v, r)| fp::centre(fp::mul(*v, fp::inv(*r))))
            .collect()
    };
    // Half of the positions are left without a mask, as if they were of no use to anybody.
    let mut mask = p.masks();
    mask[N / 2..].fill(0);
    let product = p.product(&ciphertext, &[(0, secret_weight)]);
    let careless = p.finish(product, &mask);
    let quotients = divide(&decrypt(&p.params, &p.secret, &careless, &all()));
    assert!(quotients[N / 2..].iter().all(|&w| w == secret_weight));
    assert!(quotients[..N / 2].iter().all(|&w| w.abs() > 127));

    let mask = p.masks();
    let product = p.product(&ciphertext, &[(0, secret_weight)]);
    let real = p.finish(product, &mask);
    let quotients = divide(&decrypt(&p.params, &p.secret, &real, &all()));
    // A uniform quotient is a legal weight with probability 2^-52.
    assert!(quotients.iter().all(|&w| w.abs() > 127));
}

/// Standard deviation of what the client sees below the plaintext, in units of the answer's modulus.
fn width(p: &Parties, answer: &Answer) -> f64 {
    let plaintexts = decrypt(&p.params, &p.secret, answer, &all());
    let phases = phase(&p.params, &p.secret, answer, &all());
    let squares: f64 = phases
        .iter()
        .zip(plaintexts.iter())
        .map(|(&phase, &m)| {
            // m 2^70 / p, rounded, in two steps that fit 128 bits.
            let (wide, p) = ((m as u128) << 64, fp::P as u128);
            let exact = (wide / p << 6) + ((wide % p << 6) + p / 2) / p;
            let distance = phase.wrapping_sub(exact) & ((1 << 70) - 1);
            let distance = if distance >> 69 == 1 {
                distance as i128 - (1 << 70)
            } else {
                distance as i128
            };
            (distance as f64).powi(2)
        })
        .sum();
    (squares / N as f64).sqrt()
}

#[test]
fn flood_width_says_nothing_about_the_weights() {
    let mut p = Parties::new(14);
    let small: Vec<(usize, i64)> = vec![(0, 1)];
    let large: Vec<(usize, i64)> = (0..512)
        .map(|i| (3 * i, if i % 2 == 0 { 127 } else { -127 }))
        .collect();
    let (_, ciphertext) = p.uploaded();
    let mask = p.masks();

    // A width taken from the norm of the kernel is visible: the client tells the two networks apart.
    let derived = |p: &mut Parties, kernel: &[(usize, i64)]| {
        let norm: i64 = kernel.iter().map(|(_, w)| w.abs()).sum();
        let bits = 58 + norm.ilog2();
        let product = p.product(&ciphertext, kernel);
        let (params, public) = (&p.params, &p.public);
        let answer =
            finish_with_flood_bits(params, product, public, &all(), &mask, bits, &mut p.rng);
        width(p, &answer)
    };
    let (of_small, of_large) = (derived(&mut p, &small), derived(&mut p, &large));
    assert!(
        of_large > 1.5 * of_small,
        "{of_small:.1} and {of_large:.1}: the test sees nothing"
    );

    // The real one is a public constant.
    let real = |p: &mut Parties, kernel: &[(usize, i64)]| {
        let product = p.product(&ciphertext, kernel);
        let answer = p.finish(product, &mask);
        width(p, &answer)
    };
    let (of_small, of_large) = (real(&mut p, &small), real(&mut p, &large));
    // Deviation of an estimate from 8,192 samples: 0.8 %.
    assert!(
        (of_large / of_small - 1.0).abs() < 0.04,
        "{of_small:.1} and {of_large:.1}"
    );
    // 2^8 units of support (2^76 at Q, switched to 2^70), four uniforms: deviation 73.9; rounding adds 21 and 18.5.
    let expected = (73.9f64.powi(2) + 21.3f64.powi(2) + 18.5f64.powi(2)).sqrt();
    assert!(
        (of_small / expected - 1.0).abs() < 0.06,
        "{of_small:.1}, expected {expected:.1}"
    );
}
