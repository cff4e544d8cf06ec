//! The tables of the database and the encoding of their rows.

use super::{BundleEntry, BundleState, ModelDigest, PeerRecord};
use crate::fingerprint::Fingerprint;
use pi_protocol::session::BundleId;
use redb::TableDefinition;
use serde::{Deserialize, Serialize};

/// Format of the rows and files; a store with another number is refused.
pub(super) const FORMAT: u64 = 4;
/// The format whose rows are those of [`FORMAT`], of which some tables are absent: accounts, and
/// the service. Its number of answers of a client counts as one of each account of that client.
pub(super) const UPGRADED: u64 = 3;

/// From `"format"` to [`FORMAT`].
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// From peer to [`SetupRow`].
pub(super) const SETUPS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("setups");
/// From model digest to artifact.
pub(super) const ARTIFACTS: TableDefinition<'_, &[u8; 32], &[u8]> =
    TableDefinition::new("artifacts");
/// From peer to [`PeerRecord`](super::PeerRecord).
pub(super) const PEERS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("peers");
/// From peer and bundle id to [`BundleRow`].
pub(super) const BUNDLES: TableDefinition<'_, &[u8; 64], &[u8]> = TableDefinition::new("bundles");

/// At a server, from client and account to [`Account`](super::account::Account).
pub(super) const ACCOUNTS: TableDefinition<'_, (&[u8; 32], &str), &[u8]> =
    TableDefinition::new("accounts");
/// At a server, from `"fingerprint"` to the identity that the store belongs to.
pub(super) const SERVICE: TableDefinition<'_, &str, &[u8; 32]> = TableDefinition::new("service");
/// At a server, from client to the number of answers that it was given before there were accounts
/// ([`UPGRADED`]); never written.
pub(super) const ANSWERS: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("answers");
/// At a client, from server to the number of answers that it will still give, as it said last;
/// none without a limit.
pub(super) const ANSWERS_LEFT: TableDefinition<'_, &[u8; 32], u64> =
    TableDefinition::new("answers left");

#[derive(Serialize, Deserialize)]
pub(super) struct SetupRow {
    pub(super) content: Content,
    /// Identity of the keys, so that whoever asks for no more need not read them.
    pub(super) id: [u8; 32],
    /// The first byte of the content, which tells whether it is current.
    pub(super) version: u8,
}

#[derive(Serialize, Deserialize)]
pub(super) struct BundleRow {
    pub(super) model: ModelDigest,
    pub(super) stored_at: u64,
    pub(super) content: Option<Content>,
}

/// Length and digest of the content of a setup, or of a bundle that is not spent; the row of a
/// spent one has none.
#[derive(Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) length: u64,
    pub(super) digest: [u8; 32],
}

impl Content {
    pub(super) fn of(bytes: &[u8]) -> Content {
        Content {
            length: bytes.len() as u64,
            digest: *blake3::hash(bytes).as_bytes(),
        }
    }
}

pub(super) fn bundle_key(peer: Fingerprint, id: &BundleId) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(&peer.0);
    key[32..].copy_from_slice(&id.0);
    key
}

pub(super) fn entry(key: &[u8; 64], row: &BundleRow) -> BundleEntry {
    let (peer, id) = key.split_at(32);
    BundleEntry {
        peer: Fingerprint(peer.try_into().expect("the first half of 64 bytes")),
        id: BundleId(id.try_into().expect("the second half of 64 bytes")),
        model: row.model,
        state: match row.content {
            Some(_) => BundleState::Ready,
            None => BundleState::Spent,
        },
        stored_at: row.stored_at,
    }
}

pub(super) fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_stdvec(row).expect("rows hold nothing that postcard cannot write")
}

pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, postcard::Error> {
    postcard::from_bytes(bytes)
}

/// Reads the record of a peer, as it is written now or was before servers had certificates apart
/// from their names.
pub(super) fn decode_peer(peer: Fingerprint, bytes: &[u8]) -> Result<PeerRecord, postcard::Error> {
    #[derive(Deserialize)]
    struct Former {
        addresses: Vec<String>,
        model: ModelDigest,
        prepared_at: u64,
    }
    decode(bytes).or_else(|error| {
        let (former, rest) = postcard::take_from_bytes::<Former>(bytes)?;
        match rest {
            [] => Ok(PeerRecord {
                addresses: former.addresses,
                model: former.model,
                prepared_at: former.prepared_at,
                certificates: vec![peer],
                models: Vec::new(),
            }),
            _ => Err(error),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::account::Account;
    use super::*;
    use serde::de::DeserializeOwned;

    fn check<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
        if let Ok(row) = decode::<T>(bytes) {
            let bytes = encode(&row);
            assert_eq!(encode(&decode::<T>(&bytes).unwrap()), bytes);
        }
    }

    #[test]
    fn a_record_of_a_former_release_is_read() {
        let peer = Fingerprint([7; 32]);
        let former = encode(&(vec!["localhost:4433".to_string()], [1u8; 32], 5u64));
        let record = decode_peer(peer, &former).unwrap();
        assert!(record.has_shown(peer));
        assert_eq!(
            (record.address(), record.prepared_at),
            ("localhost:4433", 5)
        );
        assert_eq!(decode_peer(peer, &encode(&record)).unwrap(), record);
        assert!(decode_peer(peer, &former[1..]).is_err());
    }

    #[test]
    fn any_bytes_are_a_row_or_an_error() {
        bolero::check!().for_each(|input: &[u8]| {
            check::<SetupRow>(input);
            check::<BundleRow>(input);
            check::<PeerRecord>(input);
            check::<Account>(input);
        });
    }
}
