//! The linear layers, offline: from encryptions of the client's masks to shares of `W r`.
//!
//! The session calls these. [`Uploads`] draws a mask `r` for every tensor that a convolution reads
//! and encrypts it in the layouts of the plan; [`receive_upload`] expands what arrives; [`Answers`]
//! multiplies by the kernels, merges, and returns `Enc(W r + s)` for fresh `s`; [`finish_answer`]
//! decrypts. Uploads and answers are messages of their own, so that neither party holds all of a
//! batch at a time. Online the server adds `W (x - r) - s` in the clear and nobody sends anything.
//!
//! Coefficient packing follows Cheetah (Huang et al., USENIX Security 2022), with channels
//! interleaved and results merged by automorphisms (Chen, Dai, Kim, Song 2021); [`crate::layout`]
//! has the indices, `pi_rlwe` the ciphertexts.
//!
//! # What is assumed, and what each party learns
//! Both parties follow the protocol; the packing is a function of public data.
//!
//! *The server* sees one upload for each ciphertext, from seeds used once. At free coefficients,
//! the correction of a seed-chosen encryption is independent of the `r` that decryption defines.
//! Forced coefficients are an ordinary encryption of 0 or of an `r` that the server does not know.
//! Unused coefficients are corrected like free ones and their `r` is forgotten. All of this is
//! simulated by uniform corrections in the widths of the public classes (`pi_rlwe::seeded` has the
//! argument), so the server learns nothing of `r`.
//!
//! *The client* sees, for each output ciphertext, the whole second half, and the first half at
//! useful coefficients only. The second half carries a fresh encryption of zero and is
//! pseudorandom; each first half sent decrypts to `W r + s` plus a flood of public width, and `s`
//! is uniform. A simulator that is given `W r + s` encrypts it, floods it, and is off by the
//! statistical distance that [`crate::flooding`] computes. That distance comes from the *noise*
//! of what a useful coefficient reads, which is why no coefficient may be left uncorrected: its
//! phase would be of the size of `Q / p`, neither mask nor flood hides a product with it, and some
//! sixty answers give the weight exactly (a test does it). First halves of other coefficients are
//! neither computed nor sent.
//!
//! *Weights:* no position, length, class or skipped step depends on a weight; a zero weight is
//! multiplied like any other. Against a client that makes its keys or uploads dishonestly, weights
//! are not protected.
//!
//! *Used once:* a `public_seed` serves one exchange, an upload is answered once by each
//! convolution that reads it, and the seed of a generator serves one call. A broken exchange
//! discards the bundle.

mod answer;
mod cost;
mod job;
mod kernels;
mod upload;

#[cfg(test)]
mod tests;

pub use answer::{Answers, answers_bytes, finish_answer, max_gap, rows_of};
pub use cost::{LinearCost, Operations, Rates, cost};
pub use kernels::Kernels;
pub use upload::{Uploads, receive_upload, uploads_bytes};

use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, SeedableRng};
use zeroize::Zeroizing;

/// Independent generators for tasks that run in any order: seeds hashed from one secret root and
/// the task's name.
struct Forks(Zeroizing<[u8; 32]>);

impl Forks {
    fn new(rng: &mut impl CryptoRng) -> Self {
        let mut root = Zeroizing::new([0; 32]);
        rng.fill_bytes(root.as_mut_slice());
        Forks(root)
    }

    /// The generator of one task. `purpose` and the two numbers must not repeat.
    fn task(&self, purpose: &str, outer: usize, inner: usize) -> ChaCha20Rng {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher
            .update(&(outer as u64).to_le_bytes())
            .update(&(inner as u64).to_le_bytes())
            .update(purpose.as_bytes());
        ChaCha20Rng::from_seed(*hasher.finalize().as_bytes())
    }
}
