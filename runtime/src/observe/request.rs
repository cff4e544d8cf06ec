//! The name of an operation in the logs of both parties.

use crate::party::Greeting;
use std::fmt;

/// Name of an operation, by which a client's user and a server's operator find the same lines, such
/// as `3fa81c02-7`.
///
/// No byte is sent for it: the first part is the beginning of the BLAKE3 hash of the two nonces of
/// the connection's greeting, the client's first, and the second the index of the QUIC stream. The
/// greeting itself is named by the client's nonce alone. The nonces are known to both parties and
/// to nobody else, and no secret: they stand in the headers of bundles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    connection: [u8; 4],
    stream: u64,
}

impl RequestId {
    /// The name of the greeting itself, on this stream.
    pub fn of_hello(client_nonce: &[u8; 32], stream: u64) -> RequestId {
        RequestId::hashed(client_nonce, stream)
    }

    /// The name of a later operation on the connection with these nonces.
    pub fn new(client_nonce: &[u8; 32], server_nonce: &[u8; 32], stream: u64) -> RequestId {
        RequestId::hashed(&[*client_nonce, *server_nonce].concat(), stream)
    }

    pub(crate) fn after(greeting: &Greeting, stream: u64) -> RequestId {
        RequestId::new(&greeting.client_nonce, &greeting.server_nonce, stream)
    }

    fn hashed(nonces: &[u8], stream: u64) -> RequestId {
        let hash = blake3::hash(nonces);
        RequestId {
            connection: *hash.as_bytes().first_chunk().expect("a hash has 32 bytes"),
            stream,
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connection = u32::from_be_bytes(self.connection);
        write!(f, "{connection:08x}-{}", self.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_by_both_nonces_and_the_stream() {
        let (client, server) = ([1; 32], [2; 32]);
        let hash = blake3::hash(&[client, server].concat()).to_hex();
        let expected = format!("{}-7", &hash[..8]);
        assert_eq!(RequestId::new(&client, &server, 7).to_string(), expected);
        assert_ne!(RequestId::new(&server, &client, 7).to_string(), expected);
        let hello = format!("{}-0", &blake3::hash(&client).to_hex()[..8]);
        assert_eq!(RequestId::of_hello(&client, 0).to_string(), hello);
    }
}
