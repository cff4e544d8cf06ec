//! The header of a bundle: everything that both parties must agree on before any online byte.
//!
//! The hash of the header is the bundle's identity. Every key derivation of the bundle starts from
//! that identity, so two bundles share no stream, and a bundle cannot be used with another model,
//! client, server or protocol version.

pub use pi_ot::BundleId;

/// Version of the messages and of all key derivations.
pub const PROTOCOL_VERSION: u32 = 5;

/// Name of the parameter set, in every header.
pub const PARAMETER_SET: &str = "p60-n8192-q46x4";

/// The part of a header that the two parties know before a bundle is prepared: who they are, and
/// which exchange this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderInputs {
    /// Authenticated identity of the server (fingerprint of its certificate).
    pub server_peer: [u8; 32],
    /// Authenticated identity of the client.
    pub client_peer: [u8; 32],
    /// The server's random half of the session's nonce.
    pub server_nonce: [u8; 32],
    /// The client's random half of it.
    pub client_nonce: [u8; 32],
    /// Number of the bundle in the session; never repeats in one session.
    pub index: u64,
}

/// The header of one bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleHeader {
    /// Digest of the public artifact, which binds the weights.
    pub model: [u8; 32],
    /// Digest of the packing plan.
    pub plan: [u8; 32],
    /// Identity of the client's keys at this server.
    pub client_key: [u8; 32],
    /// Peers, nonces and index of the exchange.
    pub inputs: HeaderInputs,
}

impl HeaderInputs {
    /// Hash of the session (not of the index): what setups derive from.
    pub(crate) fn session(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 session");
        for part in [
            &self.server_peer,
            &self.client_peer,
            &self.server_nonce,
            &self.client_nonce,
        ] {
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HeaderInputs::BYTES);
        for part in [
            &self.server_peer,
            &self.client_peer,
            &self.server_nonce,
            &self.client_nonce,
        ] {
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(&self.index.to_le_bytes());
        bytes
    }

    const BYTES: usize = 4 * 32 + 8;
}

impl BundleHeader {
    /// Bytes of the stored form.
    pub(crate) const BYTES: usize = 3 * 32 + HeaderInputs::BYTES;

    /// The bundle's identity.
    pub fn id(&self) -> BundleId {
        let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 bundle header");
        hash.update(&PROTOCOL_VERSION.to_le_bytes());
        hash.update(&(PARAMETER_SET.len() as u32).to_le_bytes());
        hash.update(PARAMETER_SET.as_bytes());
        hash.update(&self.to_bytes());
        BundleId(hash.finalize().into())
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BundleHeader::BYTES);
        for part in [&self.model, &self.plan, &self.client_key] {
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(&self.inputs.to_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; BundleHeader::BYTES]) -> Self {
        let part =
            |i: usize| -> [u8; 32] { bytes[32 * i..32 * (i + 1)].try_into().expect("32 bytes") };
        let index = bytes[7 * 32..].try_into().expect("8 bytes are left");
        BundleHeader {
            model: part(0),
            plan: part(1),
            client_key: part(2),
            inputs: HeaderInputs {
                server_peer: part(3),
                client_peer: part(4),
                server_nonce: part(5),
                client_nonce: part(6),
                index: u64::from_le_bytes(index),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BundleHeader {
        BundleHeader {
            model: [1; 32],
            plan: [2; 32],
            client_key: [3; 32],
            inputs: HeaderInputs {
                server_peer: [4; 32],
                client_peer: [5; 32],
                server_nonce: [6; 32],
                client_nonce: [7; 32],
                index: 8,
            },
        }
    }

    #[test]
    fn every_field_changes_the_identity() {
        let base = header();
        let mut others = vec![base; 8];
        others[0].model[31] ^= 1;
        others[1].plan[31] ^= 1;
        others[2].client_key[31] ^= 1;
        others[3].inputs.server_peer[31] ^= 1;
        others[4].inputs.client_peer[31] ^= 1;
        others[5].inputs.server_nonce[31] ^= 1;
        others[6].inputs.client_nonce[31] ^= 1;
        others[7].inputs.index ^= 1;
        let mut ids: Vec<[u8; 32]> = others.iter().map(|h| h.id().0).collect();
        ids.push(base.id().0);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 9);
    }

    #[test]
    fn stored_form_round_trips() {
        let bytes = header().to_bytes();
        assert_eq!(
            BundleHeader::from_bytes(&bytes.try_into().unwrap()),
            header()
        );
    }
}
