//! First contact of a client key with a server: the keys of the linear layers, and the master OTs
//! of both directions.
//!
//! | message | content |
//! | --- | --- |
//! | client to server | public key, Galois keys, base-OT opening of the reverse direction |
//! | server to client | base-OT answer of the reverse direction, opening of the forward direction |
//! | client to server | base-OT answer of the forward direction |
//!
//! The second halves of all keys come from a seed that contains both parties' nonces, so that
//! re-randomisation rests on an `a` that the client did not choose alone. A key serves any number
//! of bundles, of any model of the server.
//!
//! The server learns encryptions of the client's secret under itself (circular security is assumed,
//! see `pi_rlwe::params`), the client nothing.

use crate::Error;
use crate::channel::{Channel, receive_exactly};
use crate::cost::Traffic;
use crate::header::HeaderInputs;
use crate::layout::MAX_MERGED_GROUP;
use crate::secrets::public_seed;
use crate::wire::Reader;
use pi_ot::{Direction, MasterReceiver, MasterSender, MasterSetup, SessionId, chou_orlandi};
use pi_rlwe::{GaloisKeys, Params, PublicKey, SecretKey};
use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, SeedableRng};
use zeroize::Zeroizing;

/// The largest gap that a client's Galois keys reach: all that a plan may ask for, so that one
/// setup serves every model.
const MAX_GAP: usize = MAX_MERGED_GROUP as usize;

/// A client's setup with one server.
pub struct ClientSetup {
    id: [u8; 32],
    key_seed: Zeroizing<[u8; 32]>,
    secret: SecretKey,
    forward: MasterReceiver,
    reverse: MasterSender,
}

/// A server's setup with one client.
pub struct ServerSetup {
    id: [u8; 32],
    a_seed: [u8; 32],
    public_key: PublicKey,
    galois_keys: GaloisKeys,
    forward: MasterSender,
    reverse: MasterReceiver,
}

fn key_bytes() -> usize {
    PublicKey::BYTES + GaloisKeys::bytes(MAX_GAP)
}

/// Bytes of the three messages.
fn message_bytes() -> [usize; 3] {
    [
        key_bytes() + chou_orlandi::OPENING_BYTES,
        chou_orlandi::RESPONSE_BYTES + chou_orlandi::OPENING_BYTES,
        chou_orlandi::RESPONSE_BYTES,
    ]
}

/// Traffic of a setup.
pub(crate) fn setup_traffic() -> Traffic {
    let [first, second, third] = message_bytes().map(|bytes| bytes as u64);
    Traffic {
        bytes_up: first + third,
        bytes_down: second,
        messages: 3,
    }
}

/// The client's half.
///
/// `inputs` says whose session this is; its index does not matter. Both nonces must be fresh.
///
/// # Errors
/// [`Error::PeerMisbehaved`] for malformed messages, [`Error::Channel`].
pub async fn client_setup(
    channel: &mut impl Channel,
    inputs: &HeaderInputs,
    rng: &mut impl CryptoRng,
) -> Result<ClientSetup, Error> {
    let params = Params::standard();
    let session = inputs.session();
    let mut transcript = Transcript::new(&session);
    let a_seed = public_seed("keys", &session, 0);
    let mut key_seed = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut *key_seed);
    let secret = secret_key(&params, &key_seed);
    let public_key = PublicKey::generate(&params, &secret, &a_seed, rng);
    let galois_keys = GaloisKeys::generate(&params, &secret, &a_seed, MAX_GAP, rng);
    let (reverse, opening) = MasterSetup::start(SessionId(session), Direction::Reverse, rng);
    let mut message = public_key.encode(&params);
    message.extend_from_slice(&galois_keys.encode(&params));
    message.extend_from_slice(&opening);
    transcript.add(&message);
    channel.send(message).await?;

    let what = "setup answer";
    let message = receive_exactly(channel, what, message_bytes()[1]).await?;
    transcript.add(&message);
    let mut reader = Reader::message(what, &message);
    let reverse = reverse.finish(reader.take(chou_orlandi::RESPONSE_BYTES)?)?;
    let opening = reader.take(chou_orlandi::OPENING_BYTES)?;
    let forward = MasterReceiver::respond(SessionId(session), Direction::Forward, opening, rng);
    let (forward, response) = forward?;
    transcript.add(&response);
    channel.send(response).await?;
    Ok(ClientSetup {
        id: transcript.finish(),
        key_seed,
        secret,
        forward,
        reverse,
    })
}

/// The server's half.
///
/// # Errors
/// As [`client_setup`].
pub async fn server_setup(
    channel: &mut impl Channel,
    inputs: &HeaderInputs,
    rng: &mut impl CryptoRng,
) -> Result<ServerSetup, Error> {
    let params = Params::standard();
    let session = inputs.session();
    let mut transcript = Transcript::new(&session);
    let what = "setup keys";
    let message = receive_exactly(channel, what, message_bytes()[0]).await?;
    transcript.add(&message);
    let mut reader = Reader::message(what, &message);
    let a_seed = public_seed("keys", &session, 0);
    let (public_key, galois_keys) = decode_keys(&params, &a_seed, reader.take(key_bytes())?)?;
    let opening = reader.take(chou_orlandi::OPENING_BYTES)?;
    let reverse = MasterReceiver::respond(SessionId(session), Direction::Reverse, opening, rng);
    let (reverse, mut message) = reverse?;
    let (forward, opening) = MasterSetup::start(SessionId(session), Direction::Forward, rng);
    message.extend_from_slice(&opening);
    transcript.add(&message);
    channel.send(message).await?;

    let message = receive_exactly(channel, "setup OT answer", message_bytes()[2]).await?;
    transcript.add(&message);
    let forward = forward.finish(&message)?;
    Ok(ServerSetup {
        id: transcript.finish(),
        a_seed,
        public_key,
        galois_keys,
        forward,
        reverse,
    })
}

fn secret_key(params: &Params, seed: &[u8; 32]) -> SecretKey {
    SecretKey::generate(params, &mut ChaCha20Rng::from_seed(*seed))
}

fn decode_keys(
    params: &Params,
    a_seed: &[u8; 32],
    bytes: &[u8],
) -> Result<(PublicKey, GaloisKeys), Error> {
    let (public, galois) = bytes.split_at(PublicKey::BYTES);
    Ok((
        PublicKey::decode(params, a_seed, public)?,
        GaloisKeys::decode(params, a_seed, MAX_GAP, galois)?,
    ))
}

/// Hashes the session and its three messages to the identity of the client's key.
struct Transcript(blake3::Hasher);

impl Transcript {
    fn new(session: &[u8; 32]) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 client key");
        hash.update(session);
        Transcript(hash)
    }

    fn add(&mut self, message: &[u8]) {
        self.0.update(&(message.len() as u64).to_le_bytes());
        self.0.update(message);
    }

    fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

const STORED_VERSION: u8 = 1;
const CLIENT_TAG: u8 = b'c';
const SERVER_TAG: u8 = b's';

/// Reads the first bytes of a stored setup.
fn stored(bytes: &[u8], tag: u8) -> Result<Reader<'_>, Error> {
    let mut reader = Reader::stored("setup", bytes);
    match reader.array()? == [STORED_VERSION, tag] {
        true => Ok(reader),
        false => Err(Error::stored("setup: another kind or version")),
    }
}

fn append_masters(bytes: &mut Vec<u8>, forward: &[u8], reverse: &[u8]) {
    bytes.extend_from_slice(&(forward.len() as u32).to_le_bytes());
    bytes.extend_from_slice(forward);
    bytes.extend_from_slice(reverse);
}

fn read_masters<'a>(reader: &mut Reader<'a>) -> Result<(&'a [u8], &'a [u8]), Error> {
    let forward = u32::from_le_bytes(reader.array()?) as usize;
    Ok((reader.take(forward)?, reader.rest()))
}

impl ClientSetup {
    /// Identity of the client's key at this server; the same at both.
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    pub(crate) fn secret(&self) -> &SecretKey {
        &self.secret
    }

    /// The client receives in this direction: its labels.
    pub(crate) fn forward(&self) -> &MasterReceiver {
        &self.forward
    }

    /// The client sends in this direction: the gadget's correlation.
    pub(crate) fn reverse(&self) -> &MasterSender {
        &self.reverse
    }

    /// The form to be stored: secret.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let (forward, reverse) = (self.forward.to_bytes(), self.reverse.to_bytes());
        // Reserved at once, so that no copy of a secret is left behind.
        let length = 2 + 64 + 4 + forward.len() + reverse.len();
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        bytes.extend_from_slice(&[STORED_VERSION, CLIENT_TAG]);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&*self.key_seed);
        append_masters(&mut bytes, &forward, &reverse);
        bytes
    }

    /// Reads a setup from its stored form.
    ///
    /// # Errors
    /// [`Error::Stored`] if the bytes are not those of a client's setup.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = stored(bytes, CLIENT_TAG)?;
        let id = reader.array()?;
        let key_seed = Zeroizing::new(reader.array()?);
        let (forward, reverse) = read_masters(&mut reader)?;
        Ok(ClientSetup {
            id,
            secret: secret_key(&Params::standard(), &key_seed),
            key_seed,
            forward: MasterReceiver::from_bytes(forward)?,
            reverse: MasterSender::from_bytes(reverse)?,
        })
    }
}

impl ServerSetup {
    /// Identity of the client's key; the same at both.
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    pub(crate) fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    pub(crate) fn galois_keys(&self) -> &GaloisKeys {
        &self.galois_keys
    }

    /// The server sends in this direction: the client's labels.
    pub(crate) fn forward(&self) -> &MasterSender {
        &self.forward
    }

    /// The server receives in this direction.
    pub(crate) fn reverse(&self) -> &MasterReceiver {
        &self.reverse
    }

    /// The form to be stored: secret, for the sake of the master OTs.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let params = Params::standard();
        let (forward, reverse) = (self.forward.to_bytes(), self.reverse.to_bytes());
        let length = 2 + 64 + key_bytes() + 4 + forward.len() + reverse.len();
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        bytes.extend_from_slice(&[STORED_VERSION, SERVER_TAG]);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.a_seed);
        bytes.extend_from_slice(&self.public_key.encode(&params));
        bytes.extend_from_slice(&self.galois_keys.encode(&params));
        append_masters(&mut bytes, &forward, &reverse);
        bytes
    }

    /// Reads a setup from its stored form.
    ///
    /// # Errors
    /// [`Error::Stored`] if the bytes are not those of a server's setup.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = stored(bytes, SERVER_TAG)?;
        let id = reader.array()?;
        let a_seed = reader.array()?;
        let (public_key, galois_keys) =
            decode_keys(&Params::standard(), &a_seed, reader.take(key_bytes())?)
                .map_err(|error| Error::stored(format!("setup: {error}")))?;
        let (forward, reverse) = read_masters(&mut reader)?;
        Ok(ServerSetup {
            id,
            a_seed,
            public_key,
            galois_keys,
            forward: MasterSender::from_bytes(forward)?,
            reverse: MasterReceiver::from_bytes(reverse)?,
        })
    }
}

impl std::fmt::Debug for ClientSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientSetup(..)")
    }
}

impl std::fmt::Debug for ServerSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerSetup(..)")
    }
}
