//! Squares and private polynomials: one or two oblivious linear evaluations, one field element each
//! way online.
//!
//! An OLE gives `u + v = x y` for the client's `x` and the server's `y`. With `x = c + d`:
//!
//! - a square is `x^2 = c^2 + 2 c d + d^2`: one OLE of `c` with a random `d0`, and the server opens
//!   `d - d0`;
//! - a polynomial is `a x^2 + b x + k = a c^2 + c (2 a d + b) + (a d^2 + b d + k)`: one OLE of
//!   `c^2` with the server's `a`, one of `c` with a random `d0`, and the server opens
//!   `2 a d + b - d0`. All coefficients stay with the server.
//!
//! # Slots
//! The OLEs of a whole bundle travel in its messages 3 and 4, as the SIMD slots of as few RLWE
//! ciphertexts as hold them, [`OLE_SLOTS`] each. Slots follow layer by layer, element by element:
//! one for a square, two for a polynomial (`c^2` first). A ciphertext's slots are random `a`,
//! chosen by a public seed as masks are. The client moves them onto its inputs by sending `x - a`
//! once it knows them, and the server adds `(x - a) y` to its `v`. In unused slots, at least one,
//! `y` is random, and masked like all others.
//!
//! # What each party sees
//! The server sees encryptions of uniform `a`, and `x - a`. The client sees `u`, masked by the
//! server's uniform `v` (and a flood in every coefficient, see `pi_rlwe::masked`), and openings
//! masked by `d0`. What answers tell of the factors statistically adds up over bundles: a
//! polynomial's `a` is the same in all, and the opening ties `d0` to `d`, which repeats as images
//! do. The random `y` of an unused slot keeps it at `2^-95` an answer (`pi_rlwe::ole`).
//!
//! # Cost
//! 124 bits per slot up, 134 down, 8 bytes per slot up for `x - a`; online 8 bytes per element each
//! way.

use crate::Error;
use crate::secrets::{Secrets, public_seed};
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_ir::{Kind, Polynomial};
use pi_rlwe::seeded::seeded_bytes;
use pi_rlwe::{
    Ciphertext, CiphertextModulus, MaskedCiphertext, N, OLE_SLOTS, Params, PublicKey, SecretKey,
    Seeded, SeededLayout, encrypt_seeded, expand_seeded, ole_receive, ole_respond, ole_slots,
};
use rayon::prelude::*;
use zeroize::Zeroizing;

/// Bytes of an OLE ciphertext, client to server.
const UPLOAD_BYTES: usize = seeded_bytes(CiphertextModulus::Ole, 0);

/// Bytes of an OLE answer, server to client.
const ANSWER_BYTES: usize = MaskedCiphertext::bytes(N);

/// Slots that an element of this kind takes.
pub(crate) const fn slots(kind: Kind) -> usize {
    match kind {
        Kind::Relu | Kind::Identity => 0,
        Kind::Square => 1,
        Kind::Polynomial => 2,
    }
}

/// Number of ciphertexts that hold this many slots.
pub(crate) const fn ciphertexts(slots: usize) -> usize {
    slots.div_ceil(OLE_SLOTS)
}

/// Bytes of the ciphertexts of offline message 3 for this many slots.
pub(crate) const fn offline_upload_bytes(slots: usize) -> usize {
    ciphertexts(slots) * UPLOAD_BYTES
}

/// Bytes of offline message 4.
pub(crate) const fn offline_answer_bytes(slots: usize) -> usize {
    ciphertexts(slots) * ANSWER_BYTES
}

/// Bytes of `x - a` in offline message 3.
pub(crate) const fn correction_bytes(slots: usize) -> usize {
    ELEMENT_BYTES * slots
}

/// The client's part of message 3: ciphertexts of random `a`, and `x - a` for the inputs `x`, one a
/// slot.
pub(crate) fn client_offer(
    params: &Params,
    secret: &SecretKey,
    bundle: &[u8; 32],
    x: &[u64],
    secrets: &Secrets,
    message: &mut Vec<u8>,
) {
    let layout = SeededLayout::all_free();
    let parts: Vec<_> = x
        .par_chunks(OLE_SLOTS)
        .enumerate()
        .map(|(i, x)| {
            let rng = &mut secrets.rng("OLE errors", i as u64);
            let seed = public_seed("OLE", bundle, i as u64);
            let ole = CiphertextModulus::Ole;
            let done = encrypt_seeded(params, secret, &Seeded::new(ole, seed, &layout), &[], rng);
            let a = ole_slots(params, &done.mask);
            let difference = x.iter().zip(a.iter()).map(|(&x, &a)| fp::sub(x, a));
            (done.bytes, difference.collect::<Vec<u64>>())
        })
        .collect();
    for (bytes, _) in &parts {
        message.extend_from_slice(bytes);
    }
    for (_, difference) in &parts {
        message.extend_from_slice(fp::encode(difference));
    }
}

/// The client's `u`, slot by slot, from its part of message 4.
pub(crate) fn client_receive(
    params: &Params,
    secret: &SecretKey,
    slots: usize,
    answers: &[u8],
) -> Result<Elements, Error> {
    Error::check_length("OLE answers", offline_answer_bytes(slots), answers.len())?;
    let parts: Vec<Elements> = answers
        .par_chunks_exact(ANSWER_BYTES)
        .map(|bytes| {
            Ok(ole_receive(
                params,
                secret,
                &MaskedCiphertext::decode(N, bytes)?,
            ))
        })
        .collect::<Result<_, Error>>()?;
    let mut u = Zeroizing::new(Vec::with_capacity(parts.len() * OLE_SLOTS));
    parts.iter().for_each(|part| u.extend_from_slice(part));
    u.truncate(slots);
    Ok(u)
}

/// The ciphertexts that the server reads from message 3.
pub(crate) fn receive_uploads(
    params: &Params,
    bundle: &[u8; 32],
    slots: usize,
    bytes: &[u8],
) -> Result<Vec<Ciphertext>, Error> {
    Error::check_length("OLE uploads", offline_upload_bytes(slots), bytes.len())?;
    let layout = SeededLayout::all_free();
    bytes
        .par_chunks_exact(UPLOAD_BYTES)
        .enumerate()
        .map(|(i, bytes)| {
            let seed = public_seed("OLE", bundle, i as u64);
            let ole = CiphertextModulus::Ole;
            Ok(expand_seeded(
                params,
                &Seeded::new(ole, seed, &layout),
                bytes,
            )?)
        })
        .collect()
}

/// The server's OLEs of a bundle: its factors `y` and its shares `v`, slot by slot.
pub(crate) struct ServerOle {
    pub(crate) y: Elements,
    pub(crate) v: Elements,
}

impl ServerOle {
    /// Draws shares `v`, and appends the answers to message 4.
    pub(crate) fn answer(
        params: &Params,
        uploads: Vec<Ciphertext>,
        public_key: &PublicKey,
        y: Elements,
        secrets: &Secrets,
        message: &mut Vec<u8>,
    ) -> Self {
        let answers: Vec<(Vec<u8>, Elements)> = uploads
            .into_par_iter()
            .zip(y.par_chunks(OLE_SLOTS))
            .enumerate()
            .map(|(i, (ciphertext, y))| {
                let mut rng = secrets.rng("OLE shares", i as u64);
                let v = Zeroizing::new(fp::uniform_vec(y.len(), &mut rng));
                let rng = &mut secrets.rng("OLE answer", i as u64);
                let answer = ole_respond(params, &ciphertext, y, &v, public_key, rng);
                (answer.encode(), v)
            })
            .collect();
        let mut v = Zeroizing::new(Vec::with_capacity(y.len()));
        for (bytes, values) in &answers {
            message.extend_from_slice(bytes);
            v.extend_from_slice(values);
        }
        ServerOle { y, v }
    }

    /// Moves the products from `a y` to `x y`, by `x - a` from message 3.
    pub(crate) fn correct(&mut self, corrections: &[u8]) -> Result<(), Error> {
        let differences = fp::decode("OLE corrections", corrections, self.y.len())?;
        for ((v, &y), &difference) in self.v.iter_mut().zip(self.y.iter()).zip(&differences) {
            *v = fp::add(*v, fp::mul(difference, y));
        }
        Ok(())
    }
}

/// The client's OLE inputs of one element with share `c`.
pub(crate) fn client_inputs(kind: Kind, c: u64, out: &mut Vec<u64>) {
    match kind {
        Kind::Relu | Kind::Identity => {}
        Kind::Square => out.push(c),
        Kind::Polynomial => out.extend([fp::mul(c, c), c]),
    }
}

/// The server's OLE factors of one element with random `d0`; `polynomial` where it is one.
pub(crate) fn server_factors(polynomial: Option<&Polynomial>, d0: u64, out: &mut Vec<u64>) {
    if let Some(polynomial) = polynomial {
        out.push(fp::from_i64(polynomial.a));
    }
    out.push(d0);
}

/// The client's share of `x^2`, or of the polynomial, from the opening and the sum of its OLE
/// shares.
pub(crate) fn client_share(kind: Kind, c: u64, u: u64, opened: u64) -> u64 {
    let cross = fp::add(fp::mul(c, opened), u);
    match kind {
        Kind::Square => fp::add(fp::mul(c, c), fp::add(cross, cross)),
        _ => cross,
    }
}

/// The server's opening and share for its share `d`, from `d0` and the sum `v` of its OLE shares;
/// `polynomial` where it is one.
pub(crate) fn server_open(polynomial: Option<&Polynomial>, d: u64, d0: u64, v: u64) -> (u64, u64) {
    match polynomial {
        None => (fp::sub(d, d0), fp::add(fp::mul(d, d), fp::add(v, v))),
        Some(polynomial) => {
            let [a, b, k] = [polynomial.a, polynomial.b, polynomial.k].map(fp::from_i64);
            let ad = fp::mul(a, d);
            let opened = fp::sub(fp::add(fp::add(ad, ad), b), d0);
            let value = fp::add(fp::mul(fp::add(ad, b), d), k);
            (opened, fp::add(v, value))
        }
    }
}
