//! First contact of a client key with a server: the keys of the linear layers, and the master OTs
//! of both directions.
//!
//! | message | content |
//! | --- | --- |
//! | client to server | public key, Galois keys, OLE upload of both directions' pads, base-OT opening of the reverse direction |
//! | server to client | OLE answer, base-OT answer of the reverse direction, opening of the forward direction |
//! | client to server | base-OT answer of the forward direction |
//!
//! # Base OTs
//! Those of Ristretto alone would open a recorded session to whoever computes discrete logarithms
//! later. So each direction's 128 base OTs hash in *pads* that were transferred by OLE
//! ([`crate::nonlinear::quadratic`]), with the same choice bits: an OLE whose one input is a bit
//! *is* an OT. Both parties get shares `u + v = x y` of the products of the client's `x` and the
//! server's `y`, three slots of 60 bits for each base OT:
//!
//! - Forward, the client chooses by a bit `b`: `x = b` and `y` is uniform. The server's two pads
//!   are `-v` and `y - v`; the client's `u` is the one of bit `b`.
//! - In reverse the server chooses: `x` is uniform and `y = b`. The client's two pads are `-u` and
//!   `x - u`; the server's `v` is the one of bit `b`.
//!
//! In both, the other pad differs by a uniform value of 180 bits that OLE hides from the chooser:
//! from the client by the mask and the flood of the answer, as everywhere; from the server by RLWE.
//! The chooser's bits are hidden as any OLE input of that party. A sender's other seeds are
//! therefore safe if RLWE or the Diffie-Hellman problem is hard, and a chooser's bits if RLWE is,
//! on which the whole protocol rests. The pads of a setup depend on nothing else, and a setup is
//! never made twice under one session.
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
use crate::nonlinear::quadratic::{self, ServerOle};
use crate::secrets::{Role, Secrets, public_seed};
use crate::wire::Reader;
use pi_core::Block;
use pi_core::fp::{self, Elements};
use pi_ot::chou_orlandi::{self, Pad};
use pi_ot::{BASE_OTS, Direction, MasterReceiver, MasterSender, MasterSetup, SessionId};
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

/// Slots of a pad.
const PAD_SLOTS: usize = 3;

/// Slots of the pads of one direction.
const DIRECTION_SLOTS: usize = BASE_OTS * PAD_SLOTS;

/// Slots of the pads of both directions, forward first.
const SLOTS: usize = 2 * DIRECTION_SLOTS;

/// Bytes of the client's part of the OLEs: a ciphertext, and a difference for each slot.
fn upload_bytes() -> usize {
    quadratic::offline_upload_bytes(SLOTS) + quadratic::correction_bytes(SLOTS)
}

/// Bytes of the three messages.
fn message_bytes() -> [usize; 3] {
    [
        key_bytes() + upload_bytes() + chou_orlandi::OPENING_BYTES,
        quadratic::offline_answer_bytes(SLOTS)
            + chou_orlandi::RESPONSE_BYTES
            + chou_orlandi::OPENING_BYTES,
        chou_orlandi::RESPONSE_BYTES,
    ]
}

/// The bits of an offset as slots, the same bit in all of a pad.
fn choice_slots(offset: Block) -> impl Iterator<Item = u64> {
    (0..DIRECTION_SLOTS).map(move |i| u64::from(offset.bit(i / PAD_SLOTS)))
}

/// Uniform slots of one direction.
fn uniform_slots(rng: &mut impl CryptoRng) -> Elements {
    Zeroizing::new(fp::uniform_vec(DIRECTION_SLOTS, rng))
}

/// The chooser's pads, from its share of the products.
fn chosen_pads(share: &[u64]) -> Zeroizing<Vec<Pad>> {
    Zeroizing::new(share.as_chunks::<PAD_SLOTS>().0.to_vec())
}

/// The other party's pairs of pads, from its share of the products and its uniform factors.
fn pad_pairs(share: &[u64], factors: &[u64]) -> Zeroizing<Vec<[Pad; 2]>> {
    let (shares, _) = share.as_chunks::<PAD_SLOTS>();
    let (factors, _) = factors.as_chunks::<PAD_SLOTS>();
    let pairs = shares.iter().zip(factors);
    let pair = |(share, factor): (&Pad, &Pad)| {
        let zero = share.map(fp::neg);
        [zero, std::array::from_fn(|i| fp::add(zero[i], factor[i]))]
    };
    Zeroizing::new(pairs.map(pair).collect())
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
    let offset = Block::random(rng);
    let mut x = Zeroizing::new(Vec::with_capacity(SLOTS));
    x.extend(choice_slots(offset));
    x.extend_from_slice(&uniform_slots(rng));
    let secrets = Secrets::draw(Role::Client, &session, rng);
    let (reverse, opening) = MasterSetup::start(SessionId(session), Direction::Reverse, rng);
    let mut message = public_key.encode(&params);
    message.extend_from_slice(&galois_keys.encode(&params));
    quadratic::client_offer(&params, &secret, &session, &x, &secrets, &mut message);
    message.extend_from_slice(&opening);
    transcript.add(&message);
    channel.send(message).await?;

    let what = "setup answer";
    let message = receive_exactly(channel, what, message_bytes()[1]).await?;
    transcript.add(&message);
    let mut reader = Reader::message(what, &message);
    let answer = reader.take(quadratic::offline_answer_bytes(SLOTS))?;
    let u = quadratic::client_receive(&params, &secret, SLOTS, answer)?;
    let (of_forward, of_reverse) = u.split_at(DIRECTION_SLOTS);
    let pairs = pad_pairs(of_reverse, &x[DIRECTION_SLOTS..]);
    let reverse = reverse.finish(reader.take(chou_orlandi::RESPONSE_BYTES)?, &pairs)?;
    let opening = reader.take(chou_orlandi::OPENING_BYTES)?;
    let (forward, response) = MasterReceiver::respond(
        SessionId(session),
        Direction::Forward,
        (offset, &chosen_pads(of_forward)),
        opening,
        rng,
    )?;
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
    let uploads = reader.take(quadratic::offline_upload_bytes(SLOTS))?;
    let uploads = quadratic::receive_uploads(&params, &session, SLOTS, uploads)?;
    let corrections = reader.take(quadratic::correction_bytes(SLOTS))?;
    let opening = reader.take(chou_orlandi::OPENING_BYTES)?;
    let offset = Block::random(rng);
    let mut y = Zeroizing::new(Vec::with_capacity(SLOTS));
    y.extend_from_slice(&uniform_slots(rng));
    y.extend(choice_slots(offset));
    let secrets = Secrets::draw(Role::Server, &session, rng);
    let mut message = Vec::with_capacity(message_bytes()[1]);
    let mut ole = ServerOle::answer(&params, uploads, &public_key, y, &secrets, &mut message);
    ole.correct(corrections)?;
    let (of_forward, of_reverse) = ole.v.split_at(DIRECTION_SLOTS);
    let (reverse, response) = MasterReceiver::respond(
        SessionId(session),
        Direction::Reverse,
        (offset, &chosen_pads(of_reverse)),
        opening,
        rng,
    )?;
    message.extend_from_slice(&response);
    let (forward, opening) = MasterSetup::start(SessionId(session), Direction::Forward, rng);
    message.extend_from_slice(&opening);
    transcript.add(&message);
    channel.send(message).await?;

    let message = receive_exactly(channel, "setup OT answer", message_bytes()[2]).await?;
    transcript.add(&message);
    let pairs = pad_pairs(of_forward, &ole.y[..DIRECTION_SLOTS]);
    let forward = forward.finish(&message, &pairs)?;
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

/// Version 1 had base OTs on Ristretto alone.
const STORED_VERSION: u8 = 2;
const CLIENT_TAG: u8 = b'c';
const SERVER_TAG: u8 = b's';

/// Returns false of a stored setup that an older version made: it is no longer used, and the
/// parties make another.
pub fn is_current_setup(bytes: &[u8]) -> bool {
    bytes
        .first()
        .is_none_or(|version| *version >= STORED_VERSION)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chooser_gets_the_pad_of_its_bit_and_not_the_other() {
        let mut rng = ChaCha20Rng::seed_from_u64(5);
        let offset = Block::random(&mut rng);
        let factors = uniform_slots(&mut rng);
        // Shares u + v of the products, as OLE gives them.
        let u = uniform_slots(&mut rng);
        let products = choice_slots(offset).zip(factors.iter());
        let v: Vec<u64> = products
            .zip(u.iter())
            .map(|((bit, &factor), &u)| fp::sub(fp::mul(bit, factor), u))
            .collect();
        let (pairs, chosen) = (pad_pairs(&u, &factors), chosen_pads(&v));
        assert_eq!((pairs.len(), chosen.len()), (BASE_OTS, BASE_OTS));
        for i in 0..BASE_OTS {
            let bit = usize::from(offset.bit(i));
            assert_eq!(chosen[i], pairs[i][bit]);
            assert_ne!(chosen[i], pairs[i][1 - bit]);
        }
    }

    #[test]
    fn setups_of_older_versions_are_made_anew() {
        assert!(!is_current_setup(&[1, CLIENT_TAG]));
        assert!(is_current_setup(&[STORED_VERSION, CLIENT_TAG]));
        // What is damaged is for decoding to refuse.
        assert!(is_current_setup(&[]));
    }
}
