//! The reverse correlated OT over `F_p`: shares `u + v = colour * c` of the server's bit times the
//! client's element.
//!
//! The client is COT sender with its offset `delta'` and blocks `q`, the server receiver with
//! random bits `b`, drawn before the colours exist. Blocks are hashed with the tweaks of the layer
//! in a class of their own:
//!
//! 1. client: `u = -H(q)`, and it sends `tau = H(q) - H(q xor delta') + c` ([`sender_message`]);
//! 2. server: `v = H(t) + b tau` ([`receiver_share`]), so that `u + v = b c`;
//! 3. server: once it knows its colours, it sends `e = colour xor b`, and `v` becomes `-v` where
//!    `e = 1` ([`derandomize`]);
//! 4. client: `u` becomes `c - u` where `e = 1` ([`apply_derandomization`]), so that
//!    `u + v = colour * c`.
//!
//! The last two steps turn the random choices of a precomputed OT into the wanted ones, as Beaver
//! does ("Precomputing oblivious transfer", CRYPTO 1995).
//!
//! Semi-honest. The server does not learn `c`: it knows only one of the two pads in `tau`. The
//! client does not learn `colour`: `b` is uniform and hidden by the OT.
//!
//! # Cost
//! Per ReLU one correlated OT; [`TAU_BYTES`] client to server, one bit server to client
//! ([`choice_bytes`]).

use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_core::hash::{hash_pairs_to_field, hash_to_field};
use pi_core::{Bits, Block, Delta, Error, TweakClass, TweakRange};
use zeroize::Zeroizing;

/// Bytes of `tau` per ReLU, client to server.
pub const TAU_BYTES: usize = ELEMENT_BYTES;

/// Returns the bytes of the corrected choices `e` of `count` ReLUs, server to client.
pub const fn choice_bytes(count: usize) -> usize {
    Bits::encoded_bytes(count)
}

/// Client: returns `(tau, u)` for its elements `c`; `tau` is the message.
///
/// # Errors
/// [`Error::CallerLength`] unless there is one block per element and instance.
pub fn sender_message(
    tweaks: &TweakRange,
    delta: &Delta,
    q: &[Block],
    c: &[u64],
) -> Result<(Vec<u64>, Elements), Error> {
    Error::check_argument("blocks of the reverse OT", c.len(), q.len())?;
    let [hash_of_zero, hash_of_one] =
        hash_pairs_to_field(tweaks, TweakClass::ReverseCot, q, delta)?;
    let pads = hash_of_zero.iter().zip(hash_of_one.iter());
    let tau = pads
        .zip(c)
        .map(|((&zero, &one), &c)| fp::add(fp::sub(zero, one), c))
        .collect();
    let u = hash_of_zero.iter().map(|&zero| fp::neg(zero)).collect();
    Ok((tau, Zeroizing::new(u)))
}

/// Server: returns `v` for its blocks `t`, its bits `b` and the client's `tau`, read by
/// [`fp::decode`].
///
/// # Errors
/// [`Error::CallerLength`] unless there is one block, one bit and one `tau` per ReLU.
pub fn receiver_share(
    tweaks: &TweakRange,
    t: &[Block],
    b: &Bits,
    tau: &[u64],
) -> Result<Elements, Error> {
    Error::check_argument("bits of the reverse OT", t.len(), b.len())?;
    Error::check_argument("corrections of the reverse OT", t.len(), tau.len())?;
    let mut v = hash_to_field(tweaks, TweakClass::ReverseCot, t)?;
    for ((v, b), &tau) in v.iter_mut().zip(b.iter()).zip(tau) {
        *v = fp::add(*v, fp::masked_by(tau, b));
    }
    Ok(v)
}

/// Server: turns `v` from its random bits `b` to its `colours` and returns `e`, the message.
///
/// # Errors
/// [`Error::CallerLength`] unless there is one `v`, one bit and one colour per ReLU.
pub fn derandomize(v: &mut [u64], b: &Bits, colours: &Bits) -> Result<Bits, Error> {
    Error::check_argument("halves of the reverse OT", colours.len(), v.len())?;
    let e = colours.xor(b)?;
    for (v, e) in v.iter_mut().zip(e.iter()) {
        *v = fp::negated_by(*v, e);
    }
    Ok(e)
}

/// Client: turns `u` to the server's colours, from `e`, read by [`Bits::decode`].
///
/// # Errors
/// [`Error::CallerLength`] unless there is one `u`, one `c` and one bit per ReLU.
pub fn apply_derandomization(u: &mut [u64], c: &[u64], e: &Bits) -> Result<(), Error> {
    Error::check_argument("elements", u.len(), c.len())?;
    Error::check_argument("corrected choices", u.len(), e.len())?;
    for ((u, &c), e) in u.iter_mut().zip(c).zip(e.iter()) {
        // e is public, the masks are for uniformity: c - u where e = 1, u where e = 0.
        *u = fp::add(fp::masked_by(c, e), fp::negated_by(*u, e));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ideal::ideal_cot;
    use crate::{CotReceiver, CotSender};
    use pi_core::TweakCounter;
    use pi_core::fp::P;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    #[test]
    fn halves_sum_to_colour_times_element() {
        let mut rng = ChaCha20Rng::seed_from_u64(41);
        let mut counter = TweakCounter::new(Block::random(&mut rng));
        let (mut sender, mut receiver) = ideal_cot(&mut rng);
        for count in [0, 1, 16, 500] {
            let tweaks = counter.take(count, 16);
            let c: Vec<u64> = (0..count).map(|j| [0, P - 1][j % 2]).take(8).collect();
            let c: Vec<u64> = c
                .into_iter()
                .chain((0..).map(|_| fp::uniform(&mut rng)))
                .take(count)
                .collect();
            let (b, colours) = (Bits::random(count, &mut rng), Bits::random(count, &mut rng));

            let (t, message) = receiver.extend(&b);
            let q = sender.extend(count, &message).unwrap();
            let (tau, mut u) = sender_message(&tweaks, sender.delta(), &q, &c).unwrap();
            let tau_message = fp::encode(&tau);
            assert_eq!(tau_message.len(), count * TAU_BYTES);
            let mut v = receiver_share(
                &tweaks,
                &t,
                &b,
                &fp::decode("tau", tau_message, count).unwrap(),
            )
            .unwrap();
            for j in 0..count {
                assert_eq!(fp::add(u[j], v[j]), c[j] * b.bit(j) as u64);
            }
            let e = derandomize(&mut v, &b, &colours).unwrap();
            assert_eq!(e.as_bytes().len(), choice_bytes(count));
            apply_derandomization(&mut u, &c, &Bits::decode("e", e.as_bytes(), count).unwrap())
                .unwrap();
            for j in 0..count {
                assert_eq!(
                    fp::add(u[j], v[j]),
                    c[j] * colours.bit(j) as u64,
                    "{j} of {count}"
                );
                assert!(u[j] < P && v[j] < P);
            }
        }
    }

    #[test]
    fn tau_hides_the_element_under_the_other_pad() {
        // The server computes its own pad from t; what is left of tau is c minus or plus the other
        // pad, which two runs with the same c but other tweaks must not share.
        let mut rng = ChaCha20Rng::seed_from_u64(42);
        let mut counter = TweakCounter::new(Block::random(&mut rng));
        let delta = Delta::random(&mut rng);
        let q = [Block::random(&mut rng)];
        let first = sender_message(&counter.take(1, 1), &delta, &q, &[7])
            .unwrap()
            .0;
        let second = sender_message(&counter.take(1, 1), &delta, &q, &[7])
            .unwrap()
            .0;
        assert_ne!(first, second);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let tweaks = TweakCounter::new(Block::ZERO).take(2, 1);
        let (delta, blocks, bits) = (
            Delta::from_block(Block::ZERO),
            [Block::ZERO; 2],
            Bits::of_values(&[1], 2),
        );
        let one = Bits::of_values(&[1], 1);
        assert!(sender_message(&tweaks, &delta, &blocks, &[1]).is_err());
        assert!(receiver_share(&tweaks, &blocks, &bits, &[1]).is_err());
        assert!(receiver_share(&tweaks, &blocks, &one, &[1, 2]).is_err());
        assert!(derandomize(&mut [1, 2], &bits, &one).is_err());
        assert!(derandomize(&mut [1], &bits, &bits).is_err());
        assert!(apply_derandomization(&mut [1, 2], &[1], &bits).is_err());
        assert!(apply_derandomization(&mut [1, 2], &[1, 2], &one).is_err());
    }
}
