//! How a browser says who it is.
//!
//! A browser has no certificate of its own, so a WebTransport session authenticates the server
//! alone. The client's name is that of a P-256 key, whose private half never leaves the browser's
//! key store. Its first bidirectional stream proves that it has it:
//!
//! | who | message |
//! | --- | --- |
//! | client | [`Introduction`] |
//! | server | [`Challenge`] |
//! | client | [`Proof`] |
//! | server | [`Known`] |
//!
//! From then on each bidirectional stream is one operation, as natively ([`crate::control`]). The
//! signature covers a nonce, the service and the authority that the browser connected to, so that a
//! server cannot pass it on to another one.

use serde::{Deserialize, Serialize};

/// Version of this exchange.
pub const VERSION: u32 = 1;

/// Path of the WebTransport session on its origin.
pub const SESSION_PATH: &str = "/pianissimo/2";

/// Largest message of the exchange.
pub const MESSAGE_LIMIT: usize = 1024;

/// Length of a P-256 key in the uncompressed form of SEC 1.
pub const KEY_BYTES: usize = 65;

/// Length of a signature, `r` and `s` in 32 bytes each, big endian.
pub const SIGNATURE_BYTES: usize = 64;

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// [`VERSION`].
    pub version: u32,
    /// The client's public key, [`KEY_BYTES`] long.
    pub key: Vec<u8>,
}

/// The server's question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Random bytes, used once.
    pub nonce: [u8; 32],
    /// The name under which bundles with this server are kept, as in
    /// [`crate::control::Welcome::service`].
    pub service: [u8; 32],
}

/// The client's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// ECDSA with SHA-256 over [`signed_bytes`], [`SIGNATURE_BYTES`] long.
    pub signature: Vec<u8>,
}

/// The server's word that the client is known now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The name under which the server knows the client: SHA-256 of [`named_bytes`].
    pub client: [u8; 32],
}

/// What a [`Proof`] signs; `authority` is host and port of the session's URL, as in
/// `localhost:4433`.
pub fn signed_bytes(challenge: &Challenge, authority: &str) -> Vec<u8> {
    [
        &b"pianissimo web client 1\0"[..],
        &challenge.nonce,
        &challenge.service,
        authority.as_bytes(),
    ]
    .concat()
}

/// The bytes whose SHA-256 is the name of the client with this public key.
///
/// No certificate has that name for its fingerprint: this prefix starts no DER.
pub fn named_bytes(key: &[u8]) -> Vec<u8> {
    [&b"pianissimo web key\0"[..], key].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_fits_the_limit() {
        let introduction = Introduction {
            version: u32::MAX,
            key: vec![4; KEY_BYTES],
        };
        let challenge = Challenge {
            nonce: [1; 32],
            service: [2; 32],
        };
        let proof = Proof {
            signature: vec![255; SIGNATURE_BYTES],
        };
        let known = Known { client: [3; 32] };
        for bytes in [
            postcard::to_stdvec(&introduction).unwrap(),
            postcard::to_stdvec(&challenge).unwrap(),
            postcard::to_stdvec(&proof).unwrap(),
            postcard::to_stdvec(&known).unwrap(),
        ] {
            assert!(bytes.len() <= MESSAGE_LIMIT, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn a_proof_for_one_server_is_none_for_another() {
        let challenge = |nonce, service| Challenge { nonce, service };
        let signed = signed_bytes(&challenge([1; 32], [2; 32]), "a.example:443");
        for other in [
            signed_bytes(&challenge([3; 32], [2; 32]), "a.example:443"),
            signed_bytes(&challenge([1; 32], [3; 32]), "a.example:443"),
            signed_bytes(&challenge([1; 32], [2; 32]), "b.example:443"),
        ] {
            assert_ne!(signed, other);
        }
    }
}
