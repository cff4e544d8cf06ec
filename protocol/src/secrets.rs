//! The source of a bundle's randomness.
//!
//! Each party draws one 32-byte seed per bundle, and one more per batch for the linear layers,
//! whose ciphertexts the bundles share. Everything secret is derived from these. No stream is
//! shared with another bundle or batch, even if a generator should repeat, because the identity of
//! the bundle or batch enters every derivation; and no stream depends on what the peer sends,
//! because that identity is fixed before the first message. The labels of a derivation name
//! protocol, bundle or batch, role, purpose and index (of layer, tensor or ciphertext).
//!
//! Public seeds, from which both parties expand ciphertexts and keys, come from the identity of a
//! bundle, batch or session alone. The errors of an encryption never come from a public seed.

use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, SeedableRng};
use zeroize::{Zeroize, Zeroizing};

/// The party whose secrets they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client = 0,
    Server = 1,
}

/// The seed of one party's secrets in one bundle or batch.
pub(crate) struct Secrets(Zeroizing<[u8; 32]>);

impl Secrets {
    /// Draws the seed of a new bundle or batch.
    pub(crate) fn draw(role: Role, bundle: &[u8; 32], rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 bundle secrets");
        hash.update(bundle).update(&[role as u8]).update(&*seed);
        Secrets(finish(hash))
    }

    /// The seed for one purpose.
    pub(crate) fn seed(&self, purpose: &str, index: u64) -> Zeroizing<[u8; 32]> {
        derive(&self.0, purpose, index)
    }

    /// The generator for one purpose.
    pub(crate) fn rng(&self, purpose: &str, index: u64) -> ChaCha20Rng {
        ChaCha20Rng::from_seed(*self.seed(purpose, index))
    }
}

/// A seed derived from a secret one.
pub(crate) fn derive(seed: &[u8; 32], purpose: &str, index: u64) -> Zeroizing<[u8; 32]> {
    let mut hash = blake3::Hasher::new_keyed(seed);
    update(&mut hash, purpose, index);
    finish(hash)
}

/// A seed that both parties know: of a bundle, a batch, or a session.
pub(crate) fn public_seed(purpose: &str, id: &[u8; 32], index: u64) -> [u8; 32] {
    let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 public seed");
    hash.update(id);
    update(&mut hash, purpose, index);
    hash.finalize().into()
}

fn update(hash: &mut blake3::Hasher, purpose: &str, index: u64) {
    hash.update(&(purpose.len() as u64).to_le_bytes())
        .update(purpose.as_bytes())
        .update(&index.to_le_bytes());
}

fn finish(mut hash: blake3::Hasher) -> Zeroizing<[u8; 32]> {
    let seed = Zeroizing::new(hash.finalize().into());
    hash.zeroize();
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_changes_the_stream() {
        let rng = || ChaCha20Rng::seed_from_u64(1);
        let client = Secrets::draw(Role::Client, &[1; 32], &mut rng());
        let others = [
            Secrets::draw(Role::Server, &[1; 32], &mut rng()).seed("a", 0),
            Secrets::draw(Role::Client, &[2; 32], &mut rng()).seed("a", 0),
            client.seed("b", 0),
            client.seed("a", 1),
        ];
        let seed = client.seed("a", 0);
        assert!(others.iter().all(|other| **other != *seed));
        assert_eq!(*seed, *client.seed("a", 0));
    }

    #[test]
    fn public_seeds_are_bound_to_bundle_purpose_and_index() {
        let seed = public_seed("OLE", &[1; 32], 0);
        assert_ne!(seed, public_seed("OLE", &[2; 32], 0));
        assert_ne!(seed, public_seed("linear", &[1; 32], 0));
        assert_ne!(seed, public_seed("OLE", &[1; 32], 1));
    }
}
