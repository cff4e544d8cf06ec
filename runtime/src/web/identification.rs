//! How a browser proves who it is, on the first stream of its session: the messages of
//! [`pi_wire::web`], both ends.
//!
//! Why nobody else can pass such a proof on. It signs the nonce of the server that checks it, so
//! one that was seen before is of no use. It signs the authority by which the browser called the
//! server, and a server refuses sessions under names that are not its own (`names`), so a server
//! that is called by its own name gets no proof that another would take. And it signs the service,
//! which tells servers apart that share an address, one after the other.

use crate::fingerprint::{Fingerprint, of_web_key};
use crate::party::random;
use crate::stream::{MessageStream, Refusal, StreamError};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    ParsedPublicKey,
};
use pi_wire::web::{
    Challenge, Introduction, KEY_BYTES, Known, MESSAGE_LIMIT, Proof, SIGNATURE_BYTES, VERSION,
    signed_bytes,
};

/// The reason for which a browser is not identified.
#[derive(Debug, thiserror::Error)]
pub enum IdentificationError {
    /// The stream ended.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The client speaks another version.
    #[error("it identifies itself by version {0}, not {VERSION}")]
    Version(u32),
    /// The key is none.
    #[error("its key is no point of P-256 in {KEY_BYTES} bytes")]
    Key,
    /// The signature is none of this key, or for another server.
    #[error(
        "its signature is wrong: of another key, for another server, or for another address than \
         {0:?}"
    )]
    Signature(String),
}

impl IdentificationError {
    /// What the client is told.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            IdentificationError::Version(_) => Refusal::Incompatible,
            IdentificationError::Stream(StreamError::Refused(refusal)) => *refusal,
            IdentificationError::Stream(StreamError::Silent(_)) => Refusal::Silent,
            _ => Refusal::Misbehaved,
        }
    }
}

/// The server's end: returns the name of the client, who knows then that it is known.
///
/// `authority` is the address by which the client called, and one of the server's own.
///
/// # Errors
/// [`IdentificationError`]; the stream is then to be refused.
pub(crate) async fn identify(
    stream: &mut MessageStream,
    service: Fingerprint,
    authority: &str,
) -> Result<Fingerprint, IdentificationError> {
    let introduction: Introduction = stream.receive_control(MESSAGE_LIMIT).await?;
    if introduction.version != VERSION {
        return Err(IdentificationError::Version(introduction.version));
    }
    let key = parse_key(&introduction.key)?;
    let challenge = Challenge {
        nonce: random(),
        service: service.0,
    };
    stream.send_control(&challenge).await?;
    let proof: Proof = stream.receive_control(MESSAGE_LIMIT).await?;
    let signed = signed_bytes(&challenge, authority);
    let right = proof.signature.len() == SIGNATURE_BYTES
        && key.verify_sig(&signed, &proof.signature).is_ok();
    if !right {
        return Err(IdentificationError::Signature(authority.into()));
    }
    let client = of_web_key(&introduction.key);
    stream.send_control(&Known { client: client.0 }).await?;
    Ok(client)
}

fn parse_key(key: &[u8]) -> Result<ParsedPublicKey, IdentificationError> {
    const UNCOMPRESSED: u8 = 4;
    match key {
        // The other forms of a point would give one client several names.
        [UNCOMPRESSED, ..] if key.len() == KEY_BYTES => {
            let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key);
            parsed.map_err(|_| IdentificationError::Key)
        }
        _ => Err(IdentificationError::Key),
    }
}

/// The key of a client that is no browser.
pub struct WebKey(EcdsaKeyPair);

impl WebKey {
    /// A new key.
    ///
    /// # Panics
    /// If the system has no random bytes.
    pub fn generate() -> WebKey {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        WebKey(key.expect("the system has random bytes"))
    }

    /// The public key in the uncompressed form of SEC 1.
    pub fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// The name under which servers know the client.
    pub fn name(&self) -> Fingerprint {
        of_web_key(self.public())
    }

    /// The answer to a challenge of the server called by this address.
    ///
    /// # Panics
    /// If the system has no random bytes.
    pub fn prove(&self, challenge: &Challenge, authority: &str) -> Proof {
        let signed = signed_bytes(challenge, authority);
        let signature = self.0.sign(&SystemRandom::new(), &signed);
        Proof {
            signature: signature
                .expect("a key that was made signs")
                .as_ref()
                .to_vec(),
        }
    }

    /// The client's end: proves this key on the first stream of a session.
    ///
    /// # Errors
    /// [`StreamError`]; [`StreamError::Malformed`] also if the server is another service than the
    /// one expected, or knows the client by another name.
    pub async fn identify(
        &self,
        stream: &mut MessageStream,
        service: Fingerprint,
        authority: &str,
    ) -> Result<(), StreamError> {
        let introduction = Introduction {
            version: VERSION,
            key: self.public().to_vec(),
        };
        stream.send_control(&introduction).await?;
        let challenge: Challenge = stream.receive_control(MESSAGE_LIMIT).await?;
        if challenge.service != service.0 {
            return Err(StreamError::Malformed("it is another service".into()));
        }
        let proof = self.prove(&challenge, authority);
        stream.send_control(&proof).await?;
        let known: Known = stream.receive_control(MESSAGE_LIMIT).await?;
        match known.client == self.name().0 {
            true => Ok(()),
            false => Err(StreamError::Malformed("it knows another client".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_other_forms_and_no_points_are_refused() {
        let key = WebKey::generate().public().to_vec();
        assert!(parse_key(&key).is_ok());
        let mut compressed = key[..33].to_vec();
        compressed[0] = 2 + (key[64] & 1);
        let mut off_the_curve = key.clone();
        off_the_curve[64] ^= 1;
        let long = [&key[..], &[0]].concat();
        for wrong in [
            &compressed,
            &off_the_curve,
            &long,
            &key[1..].to_vec(),
            &vec![],
        ] {
            assert!(parse_key(wrong).is_err(), "{} bytes", wrong.len());
        }
    }
}
