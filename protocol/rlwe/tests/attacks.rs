//! Attacks that show what each protection of an answer prevents: without it, an honest-but-curious
//! client learns the server's secret.
//!
//! `cargo test -p pi-rlwe --features attack`

use pi_core::fp;
use pi_rlwe::attack::{
    mask_and_flood_with_bits, mask_and_flood_without_rerandomisation, mask_without_flood, phase,
    second_half, second_half_of,
};
use pi_rlwe::{
    Ciphertext, CiphertextModulus, MaskedCiphertext, N, Packed, Params, PlainPoly, Product,
    PublicKey, SecretKey, Seeded, SeededLayout, encrypt_seeded, expand_seeded, mask_and_flood,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

const CONV: CiphertextModulus = CiphertextModulus::Conv;

struct Setup {
    params: Params,
    rng: ChaCha20Rng,
    secret: SecretKey,
    public: PublicKey,
    useful: Vec<u32>,
}

impl Setup {
    fn new(seed: u64) -> Self {
        let params = Params::standard();
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let secret = SecretKey::generate(&params, &mut rng);
        let public = PublicKey::generate(&params, &secret, &[0; 32], &mut rng);
        Self {
            params,
            rng,
            secret,
            public,
            useful: (0..N as u32).collect(),
        }
    }

    fn uploaded(&mut self) -> Ciphertext {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let layout = SeededLayout::all_free();
        let sent = encrypt_seeded(
            &self.params,
            &self.secret,
            &Seeded::new(CONV, seed, &layout),
            &[],
            &mut self.rng,
        );
        expand_seeded(&self.params, &Seeded::new(CONV, seed, &layout), &sent.bytes).unwrap()
    }

    fn times(&self, ciphertext: &Ciphertext, weight: i64) -> Packed {
        let kernel = PlainPoly::new(&self.params, CONV, 0, [(0, weight)]);
        Packed::single(
            &self.params,
            1,
            Product::new(&self.params, &[(ciphertext, &kernel)]),
        )
    }

    fn mask(&mut self) -> Vec<u64> {
        fp::uniform_vec(N, &mut self.rng)
    }

    /// The weights in -127..=127 whose product with the client's own second half is the answer's.
    fn weights_that_explain(&self, ciphertext: &Ciphertext, answer: &MaskedCiphertext) -> Vec<i64> {
        let explains = |&w: &i64| {
            second_half_of(&self.params, &self.times(ciphertext, w))[..8]
                == second_half(answer)[..8]
        };
        (-127..=127).filter(explains).collect()
    }
}

#[test]
fn without_the_encryption_of_zero_the_second_half_shows_the_weight() {
    let mut s = Setup::new(1);
    let (ciphertext, weight) = (s.uploaded(), -93);
    let mask = s.mask();
    let bare = mask_and_flood_without_rerandomisation(
        &s.params,
        s.times(&ciphertext, weight),
        &s.useful,
        &mask,
        &mut s.rng,
    );
    assert_eq!(s.weights_that_explain(&ciphertext, &bare), [weight]);
    let proper = mask_and_flood(
        &s.params,
        s.times(&ciphertext, weight),
        &s.public,
        &s.useful,
        &mask,
        &mut s.rng,
    );
    assert_eq!(s.weights_that_explain(&ciphertext, &proper), [0i64; 0]);
}

#[test]
fn two_answers_never_share_a_second_half() {
    let mut s = Setup::new(2);
    let ciphertext = s.uploaded();
    let mask = s.mask();
    let mut answer = || {
        mask_and_flood(
            &s.params,
            s.times(&ciphertext, 5),
            &s.public,
            &s.useful,
            &mask,
            &mut s.rng,
        )
    };
    let (a, b) = (answer(), answer());
    let equal = second_half(&a)
        .iter()
        .zip(second_half(&b))
        .filter(|(x, y)| x == y)
        .count();
    assert_eq!(equal, 0);
}

/// The spread of the phase around the plaintexts, in units of the answer modulus: the client's view
/// of flood and noise.
fn spread(s: &Setup, answer: &MaskedCiphertext) -> f64 {
    let phases = phase(&s.params, &s.secret, answer, &s.useful);
    let step = (1u128 << 70) as f64 / fp::P as f64;
    let residual = phases.iter().map(|&x| {
        // x = step * m + e: the distance to the nearest multiple, through p x modulo 2^70.
        let scaled = (x % (1 << 70)).wrapping_mul(fp::P as u128) % (1 << 70);
        let centred = if scaled >> 69 == 1 {
            scaled as f64 - (1u128 << 70) as f64
        } else {
            scaled as f64
        };
        centred / (1u128 << 70) as f64 * step
    });
    (residual.map(|e| e * e).sum::<f64>() / N as f64).sqrt()
}

#[test]
fn the_flood_is_there_and_has_its_public_width() {
    let mut s = Setup::new(3);
    let ciphertext = s.uploaded();
    let mask = s.mask();
    let flooded = mask_and_flood(
        &s.params,
        s.times(&ciphertext, 1),
        &s.public,
        &s.useful,
        &mask,
        &mut s.rng,
    );
    // Four uniforms on +-64 have deviation 74; rounding adds 21 and 18.
    let deviation = spread(&s, &flooded);
    assert!((72.0..86.0).contains(&deviation), "{deviation}");
    let heavy = mask_and_flood(
        &s.params,
        s.times(&ciphertext, 127),
        &s.public,
        &s.useful,
        &mask,
        &mut s.rng,
    );
    assert!(
        (spread(&s, &heavy) - deviation).abs() < 3.0,
        "the width does not depend on the weight"
    );
    let bare = mask_without_flood(
        &s.params,
        s.times(&ciphertext, 1),
        &s.public,
        &s.useful,
        &mask,
        &mut s.rng,
    );
    assert!(
        spread(&s, &bare) < 32.0,
        "without a flood only rounding is left"
    );
    // A flood made to fit a noise bound shows the bound: each bit of it halves the width.
    let narrow = mask_and_flood_with_bits(
        &s.params,
        s.times(&ciphertext, 1),
        &s.public,
        &s.useful,
        &mask,
        73,
        &mut s.rng,
    );
    let narrower = mask_and_flood_with_bits(
        &s.params,
        s.times(&ciphertext, 1),
        &s.public,
        &s.useful,
        &mask,
        72,
        &mut s.rng,
    );
    assert!(spread(&s, &narrow) > spread(&s, &narrower) && deviation > spread(&s, &narrow) + 10.0);
}
