//! Hostile bytes for the decoders of the primitives: keys, ciphertexts, OT messages, garbled
//! circuits. A message is a valid one with changes, or any bytes of its length.

use pi_core::{Bits, Block, Delta, TweakCounter, fp};
use pi_fuzz::{message, repeated};
use pi_garble::{
    ArgMax, InputLabels, ServerGadget, SignWidth, decode_argmax, evaluate_argmax, evaluate_sign,
    garble_argmax, garble_sign,
};
use pi_ot::ideal::ideal_pads;
use pi_ot::{
    BundleId, CotReceiver, CotSender, Direction, MasterReceiver, MasterSender, MasterSetup,
    SessionId, TreeDepth,
};
use pi_rlwe::ole::{ole_receive, ole_slots};
use pi_rlwe::{
    CiphertextModulus, CoefficientClass, GaloisKeys, MaskedCiphertext, N, Params, PublicKey,
    SecretKey, Seeded, SeededLayout, encrypt_seeded, expand_seeded, ole_respond,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::panic::AssertUnwindSafe;

const SEED: [u8; 32] = [7; 32];

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

#[test]
fn public_key_decoder_survives_any_bytes() {
    let params = AssertUnwindSafe(Params::standard());
    let secret = SecretKey::generate(&params, &mut rng(1));
    let valid = PublicKey::generate(&params, &secret, &SEED, &mut rng(2)).encode(&params);
    bolero::check!().for_each(|input: &[u8]| {
        assert!(PublicKey::decode(&params, &SEED, input).is_err());
        let bytes = message(&valid, input);
        if let Ok(key) = PublicKey::decode(&params, &SEED, &bytes) {
            assert_eq!(key.encode(&params), bytes);
        }
    });
}

#[test]
fn galois_key_decoder_survives_any_bytes() {
    const GAP: usize = 2;
    let params = AssertUnwindSafe(Params::standard());
    let secret = SecretKey::generate(&params, &mut rng(1));
    let valid = GaloisKeys::generate(&params, &secret, &SEED, GAP, &mut rng(2)).encode(&params);
    bolero::check!().for_each(|input: &[u8]| {
        assert!(GaloisKeys::decode(&params, &SEED, GAP, input).is_err());
        let bytes = message(&valid, input);
        if let Ok(keys) = GaloisKeys::decode(&params, &SEED, GAP, &bytes) {
            assert_eq!(keys.encode(&params), bytes);
        }
    });
}

#[test]
fn upload_decoder_survives_any_bytes() {
    let params = AssertUnwindSafe(Params::standard());
    let secret = SecretKey::generate(&params, &mut rng(1));
    let classes = [
        CoefficientClass::Free,
        CoefficientClass::Forced,
        CoefficientClass::Unused,
    ];
    let layout = SeededLayout::new(classes.into_iter().cycle().take(N).collect());
    let forced = fp::uniform_vec(layout.forced_count(), &mut rng(2));
    let uploads = [CiphertextModulus::Conv, CiphertextModulus::Ole].map(|modulus| {
        let public = Seeded::new(modulus, SEED, &layout);
        let valid = encrypt_seeded(&params, &secret, &public, &forced, &mut rng(3)).bytes;
        assert!(expand_seeded(&params, &public, &valid).is_ok());
        (public, valid)
    });
    bolero::check!().for_each(|input: &[u8]| {
        let (first, input) = input.split_first().unwrap_or((&0, &[]));
        let (public, valid) = &uploads[usize::from(first % 2)];
        assert!(expand_seeded(&params, public, input).is_err());
        let _ = expand_seeded(&params, public, &message(valid, input));
    });
}

#[test]
fn answer_decoder_survives_any_bytes() {
    let params = AssertUnwindSafe(Params::standard());
    let secret = SecretKey::generate(&params, &mut rng(1));
    let public_key = PublicKey::generate(&params, &secret, &SEED, &mut rng(2));
    let layout = SeededLayout::all_free();
    let public = Seeded::new(CiphertextModulus::Ole, SEED, &layout);
    let upload = encrypt_seeded(&params, &secret, &public, &[], &mut rng(3));
    let x = ole_slots(&params, &upload.mask);
    let upload = expand_seeded(&params, &public, &upload.bytes).expect("an honest upload");
    let v = fp::uniform_vec(3, &mut rng(4));
    let answer = ole_respond(&params, &upload, &[1, 2, 3], &v, &public_key, &mut rng(5));
    let valid = answer.encode();
    let u = ole_receive(&params, &secret, &answer);
    assert_eq!(fp::add(u[2], v[2]), fp::mul(x[2], 3));
    bolero::check!().for_each(|input: &[u8]| {
        assert!(MaskedCiphertext::decode(N, input).is_err());
        let bytes = message(&valid, input);
        let answer = MaskedCiphertext::decode(N, &bytes).expect("every value has a meaning");
        assert_eq!(answer.encode(), bytes);
        let u = ole_receive(&params, &secret, &answer);
        assert!(u.iter().all(|&u| u < fp::P));
    });
}

/// Both masters of one direction, and the two messages that made them.
struct Masters {
    sender: MasterSender,
    receiver: MasterReceiver,
    opening: Vec<u8>,
    response: Vec<u8>,
}

const SESSION: SessionId = SessionId([3; 32]);
const DIRECTION: Direction = Direction::Forward;

fn masters() -> Masters {
    let (setup, opening) = MasterSetup::start(SESSION, DIRECTION, &mut rng(1));
    let offset = Block::random(&mut rng(2));
    let (pairs, chosen) = ideal_pads(offset, &mut rng(3));
    let own = (offset, &chosen[..]);
    let answer = MasterReceiver::respond(SESSION, DIRECTION, own, &opening, &mut rng(4));
    let (receiver, response) = answer.expect("an honest opening");
    let sender = setup.finish(&response, &pairs).expect("an honest response");
    Masters {
        sender,
        receiver,
        opening,
        response,
    }
}

#[test]
fn base_ot_opening_survives_any_bytes() {
    let valid = masters().opening;
    let offset = Block::random(&mut rng(2));
    let (_, chosen) = ideal_pads(offset, &mut rng(3));
    let respond = |bytes: &[u8]| {
        let own = (offset, &chosen[..]);
        MasterReceiver::respond(SESSION, DIRECTION, own, bytes, &mut rng(4))
    };
    bolero::check!().for_each(|input: &[u8]| {
        assert!(input.len() == valid.len() || respond(input).is_err());
        let _ = respond(&message(&valid, input));
    });
}

#[test]
fn base_ot_response_survives_any_bytes() {
    let valid = masters().response;
    let (pairs, _) = ideal_pads(Block::random(&mut rng(2)), &mut rng(3));
    bolero::check!().for_each(|input: &[u8]| {
        for bytes in [input, &message(&valid, input)] {
            let (setup, _) = MasterSetup::start(SESSION, DIRECTION, &mut rng(1));
            let master = setup.finish(bytes, &pairs);
            assert!(bytes.len() == valid.len() || master.is_err());
        }
    });
}

#[test]
fn stored_masters_survive_any_bytes() {
    let Masters {
        sender, receiver, ..
    } = masters();
    let (sent, received) = (sender.to_bytes(), receiver.to_bytes());
    bolero::check!().for_each(|input: &[u8]| {
        assert!(MasterSender::from_bytes(input).is_err());
        assert!(MasterReceiver::from_bytes(input).is_err());
        let bytes = message(&sent, input);
        if let Ok(master) = MasterSender::from_bytes(&bytes) {
            assert_eq!(*master.to_bytes(), bytes);
        }
        let bytes = message(&received, input);
        if let Ok(master) = MasterReceiver::from_bytes(&bytes) {
            assert_eq!(*master.to_bytes(), bytes);
        }
    });
}

#[test]
fn ot_extension_survives_any_messages() {
    const COUNT: usize = 300;
    let depth = TreeDepth::new(4).expect("a legal depth");
    let bundle = BundleId([5; 32]);
    let Masters {
        sender, receiver, ..
    } = masters();
    let begin = || sender.begin(&bundle, depth, &mut rng(5));
    let (_, correction) = begin();
    let accepted = receiver.accept(&bundle, depth, &correction);
    let (mut receiving, setup) = accepted.expect("an honest correction");
    let (_, choices) = receiving.extend(&Bits::random(COUNT, &mut rng(6)));
    bolero::check!().for_each(|input: &[u8]| {
        let (first, input) = input.split_first().unwrap_or((&0, &[]));
        match first % 3 {
            0 => {
                assert!(receiver.accept(&bundle, depth, input).is_err());
                let (mut receiving, setup) = receiver
                    .accept(&bundle, depth, &message(&correction, input))
                    .expect("every correction of this length has a meaning");
                assert_eq!(setup.len(), depth.setup_bytes());
                receiving.extend(&Bits::random(COUNT, &mut rng(6)));
            }
            1 => {
                assert!(begin().0.finish(input).is_err());
                let mut sending = begin().0.finish(&message(&setup, input)).expect("as above");
                assert_eq!(
                    sending.extend(COUNT, &choices).expect("as above").len(),
                    COUNT
                );
            }
            _ => {
                let mut sending = begin().0.finish(&setup).expect("an honest setup");
                assert!(sending.extend(COUNT, input).is_err());
                let rows = sending.extend(COUNT, &message(&choices, input));
                assert_eq!(rows.expect("as above").len(), COUNT);
            }
        }
    });
}

#[test]
fn vectors_survive_any_bytes() {
    bolero::check!().for_each(|input: &[u8]| {
        let (first, bytes) = input.split_first().unwrap_or((&0, &[]));
        let count = usize::from(*first);
        if let Ok(elements) = fp::decode("elements", bytes, bytes.len() / 8) {
            assert!(elements.iter().all(|&x| x < fp::P));
            assert_eq!(fp::encode(&elements), bytes);
        }
        if let Ok(labels) = Block::decode("labels", bytes, bytes.len() / 16) {
            assert_eq!(Block::encode(&labels), bytes);
        }
        if let Ok(bits) = Bits::decode("bits", bytes, count) {
            assert_eq!((bits.as_bytes(), bits.len()), (bytes, count));
        }
        let stored = repeated(bytes, ServerGadget::stored_bytes(count));
        if let Ok(gadget) = ServerGadget::from_bytes(&stored, count) {
            assert_eq!(*gadget.to_bytes(), stored);
        }
        for count in [0, 1, count, usize::MAX / 4, usize::MAX] {
            let _ = fp::decode("elements", bytes, count);
            let _ = Block::decode("labels", bytes, count);
            let _ = Bits::decode("bits", bytes, count);
        }
    });
}

fn labels(count: usize, seed: u64) -> Vec<Block> {
    let mut rng = rng(seed);
    (0..count).map(|_| Block::random(&mut rng)).collect()
}

#[test]
fn garbled_signs_survive_any_bytes() {
    const INSTANCES: usize = 11;
    let width = SignWidth::guarded(9, 2).expect("a legal width");
    let count = INSTANCES * width.bits() as usize;
    let (client, server) = (labels(count, 1), labels(count, 2));
    let delta = Delta::random(&mut rng(1));
    let tweaks = TweakCounter::new(Block::ZERO).take(INSTANCES, width.bits());
    let zeros = InputLabels {
        client: &client,
        server: &server,
    };
    let mut tables = vec![0; width.table_bytes(INSTANCES)];
    let mut keep = vec![Block::ZERO; INSTANCES];
    garble_sign(width, &tweaks, &delta, zeros, &mut tables, &mut keep).expect("shapes fit");
    let sent = Block::encode(&server).to_vec();
    bolero::check!().for_each(|input: &[u8]| {
        let evaluate =
            |server: &[u8], tables: &[u8]| evaluate_sign(width, &tweaks, &client, server, tables);
        assert!(evaluate(input, &tables).is_err() && evaluate(&sent, input).is_err());
        let (tables, sent) = (message(&tables, input), message(&sent, input));
        let (keep, _) = evaluate(&sent, &tables).expect("as above");
        assert_eq!(keep.len(), INSTANCES);
    });
}

#[test]
fn garbled_arg_max_survives_any_bytes() {
    let width = SignWidth::guarded(9, 2).expect("a legal width");
    let shape = ArgMax::new(5, width).expect("a legal shape");
    let (client, server) = (labels(shape.input_bits(), 1), labels(shape.input_bits(), 2));
    let delta = Delta::random(&mut rng(1));
    let tweaks = TweakCounter::new(Block::ZERO).take(1, shape.and_gates() as u32);
    let zeros = InputLabels {
        client: &client,
        server: &server,
    };
    let mut tables = vec![0; shape.table_bytes()];
    let decoding = garble_argmax(shape, &tweaks, &delta, zeros, &mut tables);
    let (decoding, _) = decoding.expect("shapes fit");
    let sent = Block::encode(&server).to_vec();
    bolero::check!().for_each(|input: &[u8]| {
        let evaluate = |server: &[u8], tables: &[u8], decoding: &[u8]| {
            let decoding = Bits::decode("decoding", decoding, shape.index_bits())?;
            let (colours, _) = evaluate_argmax(shape, &tweaks, &client, server, tables)?;
            decode_argmax(shape, &colours, &decoding)
        };
        let honest = decoding.as_bytes();
        assert!(evaluate(input, &tables, honest).is_err());
        assert!(evaluate(&sent, input, honest).is_err());
        let (first, input) = input.split_first().unwrap_or((&0, &[]));
        let (tables, sent) = (message(&tables, input), message(&sent, input));
        if let Ok(index) = evaluate(&sent, &tables, &[*first]) {
            assert!(index < shape.values());
        }
    });
}
