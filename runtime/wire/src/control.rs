//! Control messages: everything that the two processes say to each other besides the messages of
//! the protocol.
//!
//! The client opens one stream per operation and sends a [`Request`] as its first message. The
//! first operation of a connection is [`Request::Hello`]; no other is accepted before. A party that
//! gives up resets the stream with a [`crate::refusal::Refusal`]. `Catalogue` alone needs no
//! greeting.
//!
//! A greeting chooses one of the models that the server has, for the whole connection.
//!
//! | request | then, on the same stream |
//! | --- | --- |
//! | `Hello` | server: [`Welcome`] |
//! | `Catalogue` | server: [`Catalogue`] |
//! | `Probe` | server: [`Held`] |
//! | `Artifact` | server: the artifact file, one message |
//! | `Setup` | the protocol's setup messages; server: [`Stored`] with the client key id, once its half is durable |
//! | `Prepare` | in batches as large as the model has plans for, `count` bundles in all: the linear layers of the batch; then per bundle its own offline messages, and the server's [`Stored`] with the bundle's id, once its half is durable. The client keeps its half only after that |
//! | `Infer` | the protocol's online messages, the client's first |
//!
//! A server that has no room for `Setup` or `Prepare` says in its refusal when to come back.
//!
//! Encoding: postcard; every message has a limit that is checked before it is read.

use crate::fingerprint::Fingerprint;
use pi_ir::Reveal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Content hash of a compiled network, to which bundles are bound.
pub type ModelDigest = [u8; 32];

/// Largest [`Request`], with room for [`MOST_BUNDLES`] ids.
pub const REQUEST_LIMIT: usize = 1 << 20;

/// Largest [`Welcome`], [`Held`] or [`Stored`].
pub const REPLY_LIMIT: usize = 16 * 1024;

/// Limit on the bundles that a client may hold with one server, and prepare at once.
pub const MOST_BUNDLES: usize = 30_000;

/// Limit on the bundle ids that a client may ask for at once, so that the answer fits
/// [`REPLY_LIMIT`].
pub const MOST_PROBES: usize = 8192;

/// Largest [`Catalogue`].
pub const CATALOGUE_LIMIT: usize = 1 << 20;

/// Limit on the models in a [`Catalogue`], so that it fits [`CATALOGUE_LIMIT`].
pub const MOST_MODELS: usize = 1024;

/// Limit on the characters of a model's name, and of its version.
pub const LONGEST_NAME: usize = 64;

/// Limit on [`Hello::prefer`].
pub const MOST_PREFERRED: usize = 64;

/// The first message of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Greets the server, first on every connection.
    Hello(Hello),
    /// Asks which models the client may use.
    Catalogue,
    /// Asks for the artifact of the model chosen.
    Artifact,
    /// Starts the exchange of keys and base OTs.
    Setup,
    /// Starts the offline phase.
    Prepare(Prepare),
    /// Starts the online phase of one bundle.
    Infer,
    /// Asks for more bundles than the greeting did: ids, at most [`MOST_PROBES`].
    Probe(Vec<[u8; 32]>),
}

/// The client's side of the greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the two-party protocol.
    pub protocol: u32,
    /// Name and version of the program, for the other side's log.
    pub software: String,
    /// Random bytes that go into every bundle header of this connection.
    pub nonce: [u8; 32],
    /// The model asked for; the server's default if `None`.
    pub model: Option<Wanted>,
    /// Versions of that model, or of any without a name, that the client prefers to the current
    /// one, because it holds bundles for them: the first that the server still has is chosen. At
    /// most [`MOST_PREFERRED`].
    pub prefer: Vec<ModelDigest>,
    /// Ids of bundles that the client would like to use, at most [`MOST_PROBES`].
    pub probes: Vec<[u8; 32]>,
}

/// A model by the name under which its server has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// One of its versions; the current one if `None`.
    pub version: Option<String>,
}

/// The server's side of the greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version of the two-party protocol.
    pub protocol: u32,
    /// Name and version of the program.
    pub software: String,
    /// Random bytes that go into every bundle header of this connection.
    pub nonce: [u8; 32],
    /// The name under which bundles with this server are kept and made: the fingerprint of its
    /// certificate when its state was new. Servers that share a state have one.
    pub service: Fingerprint,
    /// The name under which the server knows this client: the fingerprint of its certificate, or
    /// one that follows from the name in a certificate that the server's authority signed.
    pub client: Fingerprint,
    /// The model chosen for this connection.
    pub model: ModelDigest,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whether that is the current version; for an older one no bundles are made.
    pub current: bool,
    /// Length of its artifact file.
    pub artifact_bytes: u64,
    /// Client key id of the setup that the server holds for this client.
    pub setup: Option<[u8; 32]>,
    /// One entry for each probe: true if the server holds that bundle of this client, unspent.
    pub held: Vec<bool>,
    /// Answers of this model that this client can still get, ever; `None` without a limit.
    pub answers_left: Option<u64>,
    /// Answers of this model that this client can still get today, and the seconds until the day
    /// ends; `None` without a limit.
    pub answers_left_today: Option<(u64, u32)>,
}

/// The models that a client may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    /// At most [`MOST_MODELS`], by name, and of one name the current version first.
    pub models: Vec<Listing>,
}

/// A model that a server has: what a client may know before it decides for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Name by which the operator calls it.
    pub name: String,
    /// Version of it.
    pub version: String,
    /// Digest of this version.
    pub model: ModelDigest,
    /// Whether this is the current version, for which bundles are made.
    pub current: bool,
    /// Whether a client that names no model gets it.
    pub default: bool,
    /// The part of an answer that the client learns.
    pub reveals: Reveal,
    /// Classes.
    pub classes: u32,
    /// Length of its artifact, which is fetched once.
    pub artifact_bytes: u64,
    /// Cost of a bundle that is prepared alone, from the client to the server.
    pub offline_bytes_up: u64,
    /// The same, from the server to the client.
    pub offline_bytes_down: u64,
    /// Cost of an answer, from the client to the server.
    pub online_bytes_up: u64,
    /// The same, from the server to the client.
    pub online_bytes_down: u64,
    /// Round trips of an answer.
    pub online_round_trips: u32,
    /// Bytes that a bundle takes at the client.
    pub bundle_bytes: u64,
    /// Memory that the client needs to prepare a bundle alone.
    pub client_memory: u64,
    /// Bundles that this client may have at rest.
    pub most_bundles: u64,
    /// Answers that this client can still get, ever; `None` without a limit.
    pub answers_left: Option<u64>,
    /// Answers that it can still get today; `None` without a limit.
    pub answers_left_today: Option<u64>,
}

/// The server's answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// As [`Welcome::held`].
    pub held: Vec<bool>,
}

/// A client's request for the offline phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Number of bundles to make.
    pub count: u32,
    /// Index of the first bundle in the headers, above those of all earlier requests: no index is
    /// used twice on a connection.
    pub first_index: u64,
    /// Ids of all bundles that the client holds with this server. Halves of others are orphans of
    /// broken exchanges, and the server gives them up.
    pub held: Vec<[u8; 32]>,
}

/// The server's word that its half is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Name of what was stored.
    pub id: [u8; 32],
}

/// This program's name and version.
pub fn software() -> String {
    concat!("pianissimo ", env!("CARGO_PKG_VERSION")).into()
}

/// Reads a control message, which must be all of `bytes`.
///
/// # Errors
/// What is wrong with it, for the error of the stream.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(format!("{} bytes behind its end", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
        if let Ok(message) = decode::<T>(bytes) {
            let again = postcard::to_stdvec(&message).unwrap();
            assert_eq!(decode(&again), Ok(message));
        }
    }

    /// The bytes of a request for bundles, from which some inputs start.
    fn request() -> Vec<u8> {
        let request = Request::Hello(Hello {
            protocol: 4,
            software: software(),
            nonce: [1; 32],
            model: Some(Wanted {
                name: "digits".into(),
                version: Some("2".into()),
            }),
            prefer: vec![[3; 32]; 2],
            probes: vec![[2; 32]; 3],
        });
        postcard::to_stdvec(&request).unwrap()
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error() {
        let valid = request();
        assert!(decode::<Request>(&valid).is_ok());
        assert!(decode::<Request>(&[&valid[..], &[0]].concat()).is_err());
        bolero::check!().for_each(|input: &[u8]| {
            check::<Request>(input);
            check::<Welcome>(input);
            check::<Held>(input);
            check::<Stored>(input);
            check::<Catalogue>(input);
            let mut changed = valid.clone();
            for change in input.chunks_exact(2) {
                changed[usize::from(change[0]) % valid.len()] = change[1];
            }
            check::<Request>(&changed);
            check::<Welcome>(&changed[1..]);
        });
    }

    #[test]
    fn a_request_with_the_most_bundles_fits_its_limit() {
        let request = Request::Prepare(Prepare {
            count: u32::MAX,
            first_index: u64::MAX,
            held: vec![[0xff; 32]; MOST_BUNDLES],
        });
        let bytes = postcard::to_stdvec(&request).unwrap();
        assert!(bytes.len() <= REQUEST_LIMIT, "{} bytes", bytes.len());
        assert_eq!(postcard::from_bytes::<Request>(&bytes).unwrap(), request);
    }
}
