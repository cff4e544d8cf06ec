//! BFV over residue number systems: the basis of the homomorphic linear layers and the oblivious
//! linear evaluations.
//!
//! The protocol crate uses it for seeded encryptions of random masks, products with secret kernels,
//! packing, and masked ciphertexts that reveal their plaintext and nothing else. All functions are
//! synchronous, take and return messages as bytes, and take randomness as an argument. Items are
//! independent of each other: callers spread them over rayon; only [`pack_rows`] does so itself.
//!
//! # The flow
//! Once per client: [`SecretKey::generate`], [`PublicKey`] and [`GaloisKeys`] go to the server
//! (`encode`, `decode`). For each ciphertext of a bundle:
//! 1. client: [`encrypt_seeded`] gives the mask `r` and the bytes of `Enc(r)`, the *upload*;
//!    server: [`expand_seeded`] gives a [`Ciphertext`];
//! 2. server: [`Product::new`] multiplies ciphertexts by [`PlainPoly`] kernels and sums;
//!    [`pack_rows`] merges `2^levels` products;
//! 3. server: [`mask_and_flood`] re-randomises, masks, floods and switches down: a
//!    [`MaskedCiphertext`], whose bytes go to the client, the *answer*;
//! 4. client: [`decrypt`] gives `W r + s` at the useful coefficients.
//!
//! For OLEs: [`encrypt_seeded`] at [`CiphertextModulus::Ole`], [`ole_slots`], [`ole_respond`],
//! [`ole_receive`].
//!
//! # What is assumed, and what each party learns
//! Both parties are semi-honest; the client's keys and errors are honestly made. The server learns
//! nothing of `r` ([`seeded`] has the argument), the client nothing but `W r + s` modulo `p`
//! ([`masked`] has the argument, [`noise`] the distances). Whatever the bytes of a peer are,
//! decoding gives an error or a well-formed object; it does not panic.
//!
//! # Timing
//! Everything that touches keys, errors, masks, kernels or plaintexts is constant time: no branch,
//! index or skipped work depends on them. Rejection happens on public streams, and in the flood
//! with probability below 2^-24, independently of the value that is returned.
#![forbid(unsafe_code)]

mod bits;
mod error;
pub mod keys;
pub mod masked;
pub mod noise;
pub mod ole;
pub mod pack;
pub mod params;
pub mod plain;
pub mod product;
mod sample;
pub mod seeded;
pub mod xof;

pub use error::Error;
pub use keys::{GaloisKeys, PublicKey, SecretKey};
#[cfg(feature = "attack")]
pub use masked::attack;
pub use masked::{MaskedCiphertext, decrypt, mask_and_flood};
pub use ole::{OLE_SLOTS, ole_receive, ole_respond, ole_slots};
pub use pack::{Packed, pack_rows};
pub use params::{CiphertextModulus, N, Params};
pub use plain::PlainPoly;
pub use product::{CiphertextRow, KernelMatrix, Product, Workspace};
pub use seeded::{
    Ciphertext, CoefficientClass, Seeded, SeededEncryption, SeededLayout, encrypt_seeded,
    expand_seeded,
};
pub use xof::Seed;
