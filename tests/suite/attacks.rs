//! What an honest-but-curious client could read off the server's answers if a protection were
//! missing.
//!
//! Each test mounts the attack twice: on an answer that leaves the protection out, where it must
//! succeed (else the test proves nothing), and on the real one, where it must fail. Attacks on the
//! second half and on the width of the flood are in `protocol/rlwe/tests/attacks.rs`; on the
//! correction of unused coefficients, on bundles used twice, and on the bundle store beside the
//! code they concern.

use pi_core::fp;
use pi_rlwe::attack::phase;
use pi_rlwe::noise::{flood_log2, measure, noise_bits};
use pi_rlwe::{
    Ciphertext, CiphertextModulus, MaskedCiphertext, N, Packed, Params, PlainPoly, Product,
    PublicKey, SecretKey, Seeded, SeededLayout, decrypt, encrypt_seeded, expand_seeded,
    mask_and_flood,
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
        let layout = SeededLayout::all_free();
        let conv = CiphertextModulus::Conv;
        let sent = encrypt_seeded(
            &self.params,
            &self.secret,
            &Seeded::new(conv, seed, &layout),
            &[],
            &mut self.rng,
        );
        let ciphertext =
            expand_seeded(&self.params, &Seeded::new(conv, seed, &layout), &sent.bytes).unwrap();
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

    fn finish(&mut self, packed: Packed, mask: &[u64]) -> MaskedCiphertext {
        mask_and_flood(
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

#[test]
fn noise_shows_the_size_of_the_weights_before_the_flood() {
    let mut p = Parties::new(14);
    let (r, ciphertext) = p.uploaded();
    let small: Vec<(usize, i64)> = vec![(0, 1)];
    let large: Vec<(usize, i64)> = (0..512).map(|i| (3 * i, 127)).collect();
    let useful: Vec<u32> = (4096..4160).collect();
    let noise = |p: &Parties, kernel: &[(usize, i64)]| {
        let expected: Vec<u64> = useful
            .iter()
            .map(|&j| {
                let terms = kernel
                    .iter()
                    .map(|&(t, w)| fp::mul(r[j as usize - t], fp::from_i64(w)));
                terms.fold(0, fp::add)
            })
            .collect();
        let packed = p.product(&ciphertext, kernel);
        noise_bits(&measure(&p.params, &p.secret, &packed, &useful, &expected))
    };
    // Without a flood the phase holds this noise, and two networks are told apart by it.
    let (of_small, of_large) = (noise(&p, &small), noise(&p, &large));
    assert!(
        of_small <= 6 && of_large >= 11,
        "{of_small} and {of_large} bits"
    );
    // The flood has 76 bits whatever the kernel: pi-rlwe's tests hold its width. Here: nothing of
    // the noise is left to see.
    let bound = flood_log2(&p.params, CiphertextModulus::Conv);
    assert!(
        bound - f64::from(of_large) > 60.0,
        "flood {bound:.1} bits over {of_large}"
    );
    let mask = p.masks();
    let widths = [&small, &large].map(|kernel| {
        let product = p.product(&ciphertext, kernel);
        let answer = p.finish(product, &mask);
        width(&p, &answer)
    });
    // The deviation of an estimate from 8,192 samples is 0.8 %.
    assert!((widths[1] / widths[0] - 1.0).abs() < 0.04, "{widths:?}");
    // Equal widths would also hold with no flood at all: rounding alone has deviation 28, flood and
    // rounding 79.
    assert!(
        widths.iter().all(|w| (72.0..86.0).contains(w)),
        "{widths:?}"
    );
}

/// Standard deviation of what the client sees below the plaintext, in units of the answer's
/// modulus.
fn width(p: &Parties, answer: &MaskedCiphertext) -> f64 {
    let plaintexts = decrypt(&p.params, &p.secret, answer, &all());
    let phases = phase(&p.params, &p.secret, answer, &all());
    let squares: f64 = phases
        .iter()
        .zip(plaintexts.iter())
        .map(|(&phase, &m)| {
            // m 2^70 / p, rounded, in two steps that fit 128 bits.
            let (wide, p) = ((m as u128) << 64, fp::P as u128);
            let exact = ((wide / p) << 6) + (((wide % p) << 6) + p / 2) / p;
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
