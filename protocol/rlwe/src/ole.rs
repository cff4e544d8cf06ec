//! Oblivious linear evaluation on SIMD slots: `u + v = x y` for the client's `x` and the server's
//! `y`, [`N`] at a time.
//!
//! The client uploads a seeded mask at [`CiphertextModulus::Ole`]; its slots are the random `x`.
//! The server multiplies by the polynomial whose slots are `y` and answers with the mask whose
//! slots are `-v`. Every coefficient of the product depends on every slot, so all [`N`] first
//! halves are sent, masked and flooded.
//!
//! Slot `i` is value `i` of [`pi_ring::slots`]; both parties use the same order, which is all that
//! matters.
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

/// The client's `x`: the slots of the mask of an upload in which every coefficient is free.
///
/// # Panics
/// If the mask has not [`N`] values.
pub fn ole_slots(params: &Params, mask: &[u64]) -> Zeroizing<Vec<u64>> {
    let mut slots = Zeroizing::new(mask.to_vec());
    params.slots.decode(&mut slots);
    slots
}

/// The server's half: an answer from which the client learns `u = x y - v`.
///
/// `v` must be fresh uniform field elements.
///
/// # Panics
/// If the upload is not at [`CiphertextModulus::Ole`], or `y` or `v` are not [`N`] field elements.
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
        y.len() == N && v.len() == N,
        "{} and {} slots",
        y.len(),
        v.len()
    );
    assert!(
        y.iter().chain(v).all(|&x| x < fp::P),
        "slot is no field element"
    );
    let mut factor = Zeroizing::new(y.to_vec());
    params.slots.encode(&mut factor);
    let kernel = PlainPoly::from_field(params, CiphertextModulus::Ole, &factor);
    let product = Product::new(params, &[(upload, &kernel)]);
    let mut mask = Zeroizing::new(v.iter().map(|&v| fp::neg(v)).collect::<Vec<_>>());
    params.slots.encode(&mut mask);
    let all: Vec<u32> = (0..N as u32).collect();
    mask_and_flood(
        params,
        Packed::single(params, 1, product),
        public_key,
        &all,
        &mask,
        rng,
    )
}

/// The client's `u`.
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
