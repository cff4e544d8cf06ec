//! Oblivious linear evaluation on SIMD slots: `u + v = x y` for the client's `x` and the server's
//! `y`, [`OLE_SLOTS`] at a time.
//!
//! The client uploads a seeded mask at [`CiphertextModulus::Ole`]; its slots are the random `x`.
//! The server multiplies by the polynomial whose slots are `y` and answers with the mask whose
//! slots are `-v`. Every coefficient of the product depends on every slot, so all [`N`] first
//! halves are sent, masked and flooded.
//!
//! Slot `i` is value `i` of [`pi_ring::slots`]; both parties use the same order, which is all that
//! matters.
//!
//! # The slot that nobody uses
//! The product's noise is `y` (as a polynomial, centred) times the client's errors, 60 bits longer
//! than them: behind one flood it hides, but the distance of `2^-48` for each answer adds up, for
//! what the client may learn of `y` lasts: a polynomial's coefficients are the same in all bundles,
//! and what is fresh is opened later, plus values that the client may know.
//!
//! So the server draws `y` of the last slot (and of others left over) anew for each answer, and
//! never uses it. A slot's polynomial has no coefficient that is zero (they are roots of unity
//! divided by `N`). Hence each coefficient of the factor is uniform, whatever the other slots hold;
//! centred, its mean is zero; and so is that of the noise, given everything that the client will
//! ever see. Known noise gives away as much as its ratio to the flood, noise of mean zero the
//! square of that: `2^-95` an answer ([`crate::noise::ole_distance_log2`]). The price is one slot
//! in 8192.
//!
//! # Cost
//! 124 bits per slot up, 134 bits per slot down.

use crate::params::{CiphertextModulus, N, Params};
use crate::{
    Ciphertext, MaskedCiphertext, Packed, PlainPoly, Product, PublicKey, SecretKey, decrypt,
    mask_and_flood,
};
use pi_core::fp;
use rand_core::CryptoRng;
use zeroize::{Zeroize, Zeroizing};

/// Slots of an OLE ciphertext that hold something: the last one hides the others.
pub const OLE_SLOTS: usize = N - 1;

/// The client's [`OLE_SLOTS`] values `x`: the slots of the mask of an upload in which every
/// coefficient is free.
///
/// # Panics
/// If the mask has not [`N`] values.
pub fn ole_slots(params: &Params, mask: &[u64]) -> Zeroizing<Vec<u64>> {
    let mut slots = Zeroizing::new(mask.to_vec());
    params.slots.decode(&mut slots);
    slots.truncate(OLE_SLOTS);
    slots
}

/// The server's half: an answer from which the client learns `u = x y - v`, in the slots that `y`
/// and `v` fill.
///
/// `v` must be fresh uniform field elements; what else the answer holds is drawn from `rng`.
///
/// # Panics
/// If the upload is not at [`CiphertextModulus::Ole`], or `y` and `v` are not equally many, at most
/// [`OLE_SLOTS`] field elements.
pub fn ole_respond(
    params: &Params,
    upload: &Ciphertext,
    y: &[u64],
    v: &[u64],
    public_key: &PublicKey,
    rng: &mut impl CryptoRng,
) -> MaskedCiphertext {
    assert_eq!(
        upload.modulus(),
        CiphertextModulus::Ole,
        "modulus of an OLE"
    );
    assert!(
        y.len() == v.len() && y.len() <= OLE_SLOTS,
        "{} and {} slots",
        y.len(),
        v.len()
    );
    assert!(
        y.iter().chain(v).all(|&x| x < fp::P),
        "slot is no field element"
    );
    let factor = polynomial(params, y.iter().copied(), rng);
    let mask = polynomial(params, v.iter().map(|&v| fp::neg(v)), rng);
    let all: Vec<u32> = (0..N as u32).collect();
    mask_and_flood(
        params,
        product(params, upload, &factor),
        public_key,
        &all,
        &mask,
        rng,
    )
}

/// The coefficients of the polynomial with these slots, and fresh uniform ones behind them.
fn polynomial(
    params: &Params,
    slots: impl Iterator<Item = u64>,
    rng: &mut impl CryptoRng,
) -> Zeroizing<Vec<u64>> {
    let mut all = Zeroizing::new(Vec::with_capacity(N));
    all.extend(slots);
    let rest = Zeroizing::new(fp::uniform_vec(N - all.len(), rng));
    all.extend_from_slice(&rest);
    params.slots.encode(&mut all);
    all
}

/// The product of an upload and a factor, before anything hides it.
fn product(params: &Params, upload: &Ciphertext, factor: &[u64]) -> Packed {
    let kernel = PlainPoly::from_field(params, CiphertextModulus::Ole, factor);
    Packed::single(params, 1, Product::new(params, &[(upload, &kernel)]))
}

/// The client's `u`, [`OLE_SLOTS`] values.
///
/// # Panics
/// If the answer has not [`N`] useful coefficients.
pub fn ole_receive(
    params: &Params,
    secret: &SecretKey,
    answer: &MaskedCiphertext,
) -> Zeroizing<Vec<u64>> {
    let all: Vec<u32> = (0..N as u32).collect();
    let mut coefficients = decrypt(params, secret, answer, &all);
    let slots = ole_slots(params, &coefficients);
    coefficients.zeroize();
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{measure, ole_noise, rms_log2};
    use crate::{Seeded, SeededLayout, encrypt_seeded, expand_seeded};
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    /// Centred coefficients of factors with the same slots, in units of `p / 2`.
    fn factors(y: &[u64], count: usize) -> Vec<Vec<f64>> {
        let params = Params::standard();
        let rng = &mut ChaCha20Rng::seed_from_u64(21);
        let centred = |x: &u64| fp::centre(*x) as f64 / (fp::P as f64 / 2.0);
        (0..count)
            .map(|_| {
                polynomial(&params, y.iter().copied(), rng)
                    .iter()
                    .map(centred)
                    .collect()
            })
            .collect()
    }

    #[test]
    fn every_coefficient_of_a_factor_has_mean_zero_whatever_its_slots() {
        let rng = &mut ChaCha20Rng::seed_from_u64(20);
        let mut uniform = fp::uniform_vec(N, rng);
        let count = 200;
        // Means have deviation 1 / sqrt(3 count) = 0.041: six of them.
        let far = |y: &[u64]| {
            let factors = factors(y, count);
            let mean = |i: usize| factors.iter().map(|f| f[i]).sum::<f64>() / count as f64;
            (0..N).filter(|&i| mean(i).abs() > 0.245).count()
        };
        for y in [
            &uniform[..OLE_SLOTS],
            &[1; OLE_SLOTS][..],
            &[fp::P - 5; 700],
        ] {
            assert_eq!(far(y), 0);
        }
        // If all slots are in use, each factor is the same, three coefficients of four far from 0.
        uniform[OLE_SLOTS] = 7;
        assert!(far(&uniform) > N / 2);
    }

    #[test]
    fn noise_of_an_ole_is_as_large_as_its_bound_for_every_kind_of_slot() {
        let params = Params::standard();
        let rng = &mut ChaCha20Rng::seed_from_u64(22);
        let secret = SecretKey::generate(&params, rng);
        let layout = SeededLayout::all_free();
        let seeded = Seeded::new(CiphertextModulus::Ole, [5; 32], &layout);
        let sent = encrypt_seeded(&params, &secret, &seeded, &[], rng);
        let upload = expand_seeded(&params, &seeded, &sent.bytes).unwrap();
        let mut x = sent.mask.to_vec();
        params.slots.decode(&mut x);
        let squares = fp::uniform_vec(OLE_SLOTS, rng);
        // By turns a polynomial's small coefficient and a random number.
        let mut polynomials = squares.clone();
        polynomials.iter_mut().step_by(2).for_each(|a| *a = 3);
        let all: Vec<u32> = (0..N as u32).collect();
        for y in [&squares[..], &polynomials, &polynomials[..2], &[]] {
            let factor = polynomial(&params, y.iter().copied(), rng);
            let mut slots = factor.to_vec();
            params.slots.decode(&mut slots);
            let products = slots.iter().zip(x.iter()).map(|(&y, &x)| fp::mul(x, y));
            let mut expected: Vec<u64> = products.collect();
            params.slots.encode(&mut expected);
            let packed = product(&params, &upload, &factor);
            let found = rms_log2(&measure(&params, &secret, &packed, &all, &expected));
            // Each of 8192 errors occurs in each coefficient: the mean square is off by a factor
            // with deviation sqrt(2 / 8192) for the errors, and again for the factor.
            let bound = ole_noise().rms_log2;
            assert!((found - bound).abs() < 0.1, "{found} {bound}");
        }
    }
}
