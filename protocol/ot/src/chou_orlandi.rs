//! Base OT: 128 one-out-of-two OTs of random seeds, from two OTs under different assumptions.
//!
//! One is the protocol of Chou and Orlandi ("The simplest protocol for oblivious transfer",
//! LATINCRYPT 2015) on the Ristretto group, where it needs two messages. The other comes from
//! outside, as *pads*: keys that the caller has transferred by an OT of its own, with the same
//! choice bits. The sender ends with 128 pairs of seeds, the receiver with one of each pair. The
//! hash that makes seeds binds session, direction, every message of this OT, the index, the point
//! and the pad.
//!
//! # Security
//! Semi-honest parties. Whoever would know a seed that it was not to know must know both the point
//! and the pad that belong to it, in the random-oracle model: **the sender's other seeds are safe
//! if the computational Diffie-Hellman assumption holds in Ristretto, or the assumption behind the
//! pads**. The receiver's choices are hidden unconditionally here, so they are as safe as the pads'
//! OT keeps them. (No black-box combination of two OTs keeps both parties safe if only one of the
//! two does: Harnik, Kilian, Naor, Reingold and Rosen, EUROCRYPT 2005.)

use curve25519_dalek::constants::RISTRETTO_BASEPOINT_TABLE as BASEPOINT;
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::{Identity, IsIdentity};
use pi_core::{Block, Error, SEED_BYTES};
use rand_core::CryptoRng;
use subtle::{Choice, ConditionallySelectable};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::BASE_OTS;
use crate::iknp::{Direction, SessionId};

/// Size of the sender's message: one point.
pub const OPENING_BYTES: usize = POINT_BYTES;

/// Size of the receiver's message: one point per OT.
pub const RESPONSE_BYTES: usize = BASE_OTS * POINT_BYTES;

const POINT_BYTES: usize = 32;

/// A key of the other OT: field elements or other uniform words, 128 bits of entropy at least.
pub type Pad = [u64; 3];

/// The receiver's seeds, one per OT.
pub(crate) type Seeds = Zeroizing<Vec<[u8; SEED_BYTES]>>;

/// The sender's pairs of seeds.
pub(crate) type SeedPairs = Zeroizing<Vec<[[u8; SEED_BYTES]; 2]>>;

/// The sender between its message and the receiver's.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct BaseSender {
    secret: Scalar,
    #[zeroize(skip)]
    public: CompressedRistretto,
    #[zeroize(skip)]
    context: Context,
}

impl BaseSender {
    /// Returns the sender and its message, [`OPENING_BYTES`] long.
    pub(crate) fn start(context: Context, rng: &mut (impl CryptoRng + ?Sized)) -> (Self, Vec<u8>) {
        let secret = random_scalar(rng);
        let public = (&secret * BASEPOINT).compress();
        (
            BaseSender {
                secret,
                public,
                context,
            },
            public.as_bytes().to_vec(),
        )
    }

    /// Returns the pairs of seeds, from the receiver's message and the other OT's pairs of keys.
    pub(crate) fn finish(self, response: &[u8], pads: &[[Pad; 2]]) -> Result<SeedPairs, Error> {
        Error::check_message("base OT response", RESPONSE_BYTES, response.len())?;
        assert_eq!(pads.len(), BASE_OTS, "a pair of pads for each base OT");
        let transcript = self.context.transcript(&self.public, response);
        // With the secret a, A = a G and the response B, the two keys are a B and a (B - A), which
        // is a B - a^2 G: one multiplication per OT and a subtraction.
        let square = self.secret * (&self.secret * BASEPOINT);
        let mut pairs = Zeroizing::new(Vec::with_capacity(BASE_OTS));
        for (i, bytes) in response.chunks_exact(POINT_BYTES).enumerate() {
            let product = self.secret * decode_point("base OT response", i, bytes)?;
            pairs.push([
                seed(&transcript, i, &product, &pads[i][0]),
                seed(&transcript, i, &(product - square), &pads[i][1]),
            ]);
        }
        Ok(pairs)
    }
}

/// Returns the seeds chosen by the bits of `choices`, by which the `pads` were chosen too, and the
/// message to the sender, [`RESPONSE_BYTES`] long.
pub(crate) fn receive(
    context: Context,
    (choices, pads): (Block, &[Pad]),
    opening: &[u8],
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<(Seeds, Vec<u8>), Error> {
    Error::check_message("base OT opening", OPENING_BYTES, opening.len())?;
    assert_eq!(pads.len(), BASE_OTS, "a pad for each base OT");
    let public = decode_point("base OT opening", 0, opening)?;
    let exponents: Zeroizing<Vec<Scalar>> =
        Zeroizing::new((0..BASE_OTS).map(|_| random_scalar(rng)).collect());
    let mut response = Vec::with_capacity(RESPONSE_BYTES);
    for (i, exponent) in exponents.iter().enumerate() {
        let choice = Choice::from(choices.bit(i));
        let shift =
            RistrettoPoint::conditional_select(&RistrettoPoint::identity(), &public, choice);
        response.extend_from_slice((exponent * BASEPOINT + shift).compress().as_bytes());
    }
    let transcript = context.transcript(&public.compress(), &response);
    let seeds = exponents
        .iter()
        .enumerate()
        .map(|(i, exponent)| seed(&transcript, i, &(exponent * public), &pads[i]));
    Ok((Zeroizing::new(seeds.collect()), response))
}

/// The session and direction that a run of the base OT belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Context {
    pub(crate) session: SessionId,
    pub(crate) direction: Direction,
}

impl Context {
    /// Hashes everything both parties have seen.
    fn transcript(&self, opening: &CompressedRistretto, response: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("pianissimo v2 base OT transcript");
        hasher
            .update(&self.session.0)
            .update(&[self.direction as u8])
            .update(opening.as_bytes())
            .update(response);
        hasher.finalize().into()
    }
}

fn seed(
    transcript: &[u8; 32],
    index: usize,
    point: &RistrettoPoint,
    pad: &Pad,
) -> [u8; SEED_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("pianissimo v2 base OT seed");
    hasher
        .update(transcript)
        .update(&(index as u32).to_le_bytes())
        .update(point.compress().as_bytes());
    for word in pad {
        hasher.update(&word.to_le_bytes());
    }
    let seed = hasher.finalize().into();
    hasher.zeroize();
    seed
}

/// Decodes a point; only canonical encodings of points other than the identity are taken.
fn decode_point(what: &'static str, index: usize, bytes: &[u8]) -> Result<RistrettoPoint, Error> {
    let point = CompressedRistretto::from_slice(bytes)
        .ok()
        .and_then(|point| point.decompress());
    point
        .filter(|point| !point.is_identity())
        .ok_or(Error::PeerValue { what, index })
}

/// Returns a uniform scalar: 512 bits reduced modulo the group order of 253 bits.
fn random_scalar(rng: &mut (impl CryptoRng + ?Sized)) -> Scalar {
    let mut wide = Zeroizing::new([0; 64]);
    rng.fill_bytes(&mut *wide);
    Scalar::from_bytes_mod_order_wide(&wide)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ideal::ideal_pads;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    const CONTEXT: Context = Context {
        session: SessionId([5; 32]),
        direction: Direction::Forward,
    };

    #[test]
    fn receiver_gets_the_chosen_seed_of_every_pair() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let choices = Block::random(&mut rng);
        let (sender, opening) = BaseSender::start(CONTEXT, &mut rng);
        assert_eq!(opening.len(), OPENING_BYTES);
        let (all, chosen) = ideal_pads(choices, &mut rng);
        let (seeds, response) = receive(CONTEXT, (choices, &chosen), &opening, &mut rng).unwrap();
        assert_eq!(response.len(), RESPONSE_BYTES);
        let pairs = sender.finish(&response, &all).unwrap();
        assert_eq!((pairs.len(), seeds.len()), (BASE_OTS, BASE_OTS));
        for i in 0..BASE_OTS {
            let chosen = choices.bit(i) as usize;
            assert_eq!(seeds[i], pairs[i][chosen]);
            assert_ne!(seeds[i], pairs[i][1 - chosen]);
        }
    }

    #[test]
    fn seeds_are_bound_to_session_and_direction() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let others = [
            Context {
                session: SessionId([6; 32]),
                ..CONTEXT
            },
            Context {
                direction: Direction::Reverse,
                ..CONTEXT
            },
        ];
        for other in others {
            let (sender, opening) = BaseSender::start(CONTEXT, &mut rng);
            let (all, chosen) = ideal_pads(Block::ZERO, &mut rng);
            let receiver = (Block::ZERO, &chosen[..]);
            let (seeds, response) = receive(other, receiver, &opening, &mut rng).unwrap();
            let pairs = sender.finish(&response, &all).unwrap();
            assert!((0..BASE_OTS).all(|i| !pairs[i].contains(&seeds[i])));
        }
    }

    #[test]
    fn every_word_of_a_pad_is_in_the_seed() {
        let mut rng = ChaCha20Rng::seed_from_u64(4);
        let (sender, opening) = BaseSender::start(CONTEXT, &mut rng);
        let (mut all, chosen) = ideal_pads(Block::ZERO, &mut rng);
        let receiver = (Block::ZERO, &chosen[..]);
        let (seeds, response) = receive(CONTEXT, receiver, &opening, &mut rng).unwrap();
        // One who can compute discrete logarithms, and so has the points, lacks a bit of each pad.
        for (i, pair) in all.iter_mut().enumerate() {
            pair[0][i % 3] ^= 1 << (i % 60);
        }
        let pairs = sender.finish(&response, &all).unwrap();
        assert!((0..BASE_OTS).all(|i| pairs[i][0] != seeds[i]));
    }

    #[test]
    fn malformed_points_are_refused() {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        let (_, opening) = BaseSender::start(CONTEXT, &mut rng);
        let (all, chosen) = ideal_pads(Block::ZERO, &mut rng);
        let receiver = (Block::ZERO, &chosen[..]);
        let (_, response) = receive(CONTEXT, receiver, &opening, &mut rng).unwrap();
        let identity = [0; 32];
        let no_point = [0xff; 32];
        for wrong in [&opening[..31], &[], &identity, &no_point, &response] {
            assert!(
                receive(CONTEXT, receiver, wrong, &mut rng)
                    .err()
                    .unwrap()
                    .blames_peer()
            );
        }
        for point in [identity, no_point] {
            let (sender, _) = BaseSender::start(CONTEXT, &mut rng);
            let mut wrong = response.clone();
            wrong[77 * 32..78 * 32].copy_from_slice(&point);
            let error = sender.finish(&wrong, &all).err().unwrap();
            assert_eq!(
                error,
                Error::PeerValue {
                    what: "base OT response",
                    index: 77
                }
            );
        }
        let (sender, _) = BaseSender::start(CONTEXT, &mut rng);
        let error = sender.finish(&response[1..], &all).err().unwrap();
        assert!(error.blames_peer());
        assert_eq!(
            error.to_string(),
            "base OT response: expected 4096 bytes, got 4095"
        );
    }
}
