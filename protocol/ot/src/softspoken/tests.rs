use super::*;
use crate::ideal::ideal_cot;
use crate::iknp::tests::masters;
use crate::{BundleId, Direction, MasterReceiver, MasterSender};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

fn bundle(
    masters: &(MasterSender, MasterReceiver),
    id: u8,
    depth: TreeDepth,
    rng: &mut ChaCha20Rng,
) -> (ExtensionSender, ExtensionReceiver) {
    let id = BundleId([id; 32]);
    let (pending, correction) = masters.0.begin(&id, depth, rng);
    assert_eq!(correction.len(), crate::BASE_CORRECTION_BYTES);
    let (receiver, setup) = masters.1.accept(&id, depth, &correction).unwrap();
    assert_eq!(setup.len(), depth.setup_bytes());
    (pending.finish(&setup).unwrap(), receiver)
}

/// The law of correlated OT, for any implementation.
fn check_correlation(
    sender: &mut impl CotSender,
    receiver: &mut impl CotReceiver,
    rng: &mut ChaCha20Rng,
) {
    let mut seen = Vec::new();
    for count in [
        0,
        1,
        127,
        128,
        129,
        1000,
        7,
        CHUNK,
        CHUNK + 1,
        2 * CHUNK + 137,
    ] {
        let choices = Bits::random(count, rng);
        let (t, message) = receiver.extend(&choices);
        assert_eq!(message.len(), receiver.correction_bytes(count));
        assert_eq!(message.len(), sender.correction_bytes(count));
        let q = sender.extend(count, &message).unwrap();
        assert_eq!((q.len(), t.len()), (count, count));
        let delta = sender.delta().block();
        for j in 0..count {
            assert_eq!(
                t[j].value(),
                (q[j] ^ delta.masked_by(choices.bit(j))).value(),
                "{j} of {count}"
            );
        }
        seen.extend(q.iter().map(|q| q.value()));
        let longer = [&message[..], &[0]].concat();
        assert!(sender.extend(count, &longer).unwrap_err().blames_peer());
        if count > 0 && !message.is_empty() {
            assert!(
                sender
                    .extend(count, &message[1..])
                    .unwrap_err()
                    .blames_peer()
            );
        }
    }
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all, "no block occurs twice");
}

#[test]
fn blocks_correlate_at_every_depth() {
    let mut rng = ChaCha20Rng::seed_from_u64(31);
    let masters = masters(Direction::Forward, &mut rng);
    for depth in 1..=8 {
        let depth = TreeDepth::new(depth).unwrap();
        let (mut sender, mut receiver) = bundle(&masters, depth.get() as u8, depth, &mut rng);
        check_correlation(&mut sender, &mut receiver, &mut rng);
    }
}

#[test]
fn parts_equal_the_whole() {
    let mut rng = ChaCha20Rng::seed_from_u64(39);
    let masters = masters(Direction::Forward, &mut rng);
    for depth in [1, 3, 4] {
        let depth = TreeDepth::new(depth).unwrap();
        let (mut whole, mut receiver) = bundle(&masters, 1, depth, &mut rng);
        for (count, part) in [
            (0, 128),
            (1, 128),
            (1000, 256),
            (CHUNK + 77, CHUNK),
            (2 * CHUNK + 300, 17 * 512),
            (2 * CHUNK, 3 * CHUNK),
        ] {
            let (_, message) = receiver.extend(&Bits::random(count, &mut rng));
            let position = whole.streams.position;
            let expected = whole.extend(count, &message).unwrap();
            whole.streams.position = position;
            let mut found = vec![Block::ZERO; count];
            let items: Vec<_> = found.chunks_mut(part).collect();
            let copy = |(): &mut (), _, item: &mut [Block], rows: &[Block]| {
                item.copy_from_slice(rows);
            };
            whole
                .extend_parts(count, &message, Parts { size: part, items }, || (), copy)
                .unwrap();
            assert_eq!(
                Block::encode(&found),
                Block::encode(&expected),
                "{count} in parts of {part}"
            );
        }
        let nothing = |(): &mut (), _, (), _: &[Block]| {};
        let (_, message) = receiver.extend(&Bits::random(256, &mut rng));
        for (part, items, message, blames_peer) in [
            (100, 3, &message[..], false),
            (128, 1, &message, false),
            (128, 2, &message[1..], true),
        ] {
            let items = vec![(); items];
            let error = whole
                .extend_parts(256, message, Parts { size: part, items }, || (), nothing)
                .unwrap_err();
            assert_eq!(error.blames_peer(), blames_peer);
        }
    }
}

#[test]
fn ideal_blocks_correlate() {
    let mut rng = ChaCha20Rng::seed_from_u64(32);
    let (mut sender, mut receiver) = ideal_cot(&mut rng);
    check_correlation(&mut sender, &mut receiver, &mut rng);
}

#[test]
fn costs_are_as_documented() {
    assert_eq!(TreeDepth::IKNP.setup_bytes(), 0);
    assert_eq!(TreeDepth::IKNP.correction_bytes(8), 8 * 16);
    assert_eq!(TreeDepth::default().setup_bytes(), 6144);
    assert_eq!(TreeDepth::default().correction_bytes(8), 8 * 4);
    assert_eq!(TreeDepth::new(8).unwrap().correction_bytes(8), 8 * 2);
}

#[test]
fn bundles_share_neither_offset_nor_stream() {
    let mut rng = ChaCha20Rng::seed_from_u64(33);
    let masters = masters(Direction::Reverse, &mut rng);
    let choices = Bits::random(100, &mut rng);
    let mut deltas = Vec::new();
    let mut rows = Vec::new();
    for id in 0..4 {
        // The same generator for every offset: what differs is the bundle alone.
        let mut same = ChaCha20Rng::seed_from_u64(if id < 2 { 5 } else { id.into() });
        let (sender, mut receiver) = bundle(&masters, id, TreeDepth::default(), &mut same);
        assert_eq!(sender.delta().block().colour(), 1);
        deltas.push(sender.delta().block().value());
        rows.extend(receiver.extend(&choices).0.iter().map(|t| t.value()));
    }
    assert_eq!(deltas[0], deltas[1]);
    assert!(deltas[1] != deltas[2] && deltas[2] != deltas[3]);
    let all = rows.len();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), all);
}

#[test]
fn stored_masters_make_the_same_bundle() {
    let mut rng = ChaCha20Rng::seed_from_u64(34);
    let masters = masters(Direction::Forward, &mut rng);
    let sender = MasterSender::from_bytes(&masters.0.to_bytes()).unwrap();
    let receiver = MasterReceiver::from_bytes(&masters.1.to_bytes()).unwrap();
    let (mut sender, mut receiver) = bundle(&(sender, receiver), 9, TreeDepth::IKNP, &mut rng);
    check_correlation(&mut sender, &mut receiver, &mut rng);
}

#[test]
fn a_changed_message_breaks_the_correlation_and_nothing_else() {
    let mut rng = ChaCha20Rng::seed_from_u64(35);
    let masters = masters(Direction::Forward, &mut rng);
    let (id, depth) = (BundleId([1; 32]), TreeDepth::default());
    let choices = Bits::random(64, &mut rng);
    for message in 0..3 {
        // Changed bits matter where the offset (delta or the master's) has a one: some of 40
        // flips do.
        let mut broken = 0;
        for flip in 0..40 {
            let flip = |bytes: &mut Vec<u8>, this| {
                if message == this {
                    let position = flip * 37 % bytes.len();
                    bytes[position] ^= 0x55;
                }
            };
            let (pending, mut correction) = masters.0.begin(&id, depth, &mut rng);
            flip(&mut correction, 0);
            let (mut receiver, mut setup) = masters.1.accept(&id, depth, &correction).unwrap();
            flip(&mut setup, 1);
            let mut sender = pending.finish(&setup).unwrap();
            let (t, mut correction) = receiver.extend(&choices);
            flip(&mut correction, 2);
            let q = sender.extend(64, &correction).unwrap();
            let delta = sender.delta().block();
            broken += (0..64)
                .any(|j| t[j].value() != (q[j] ^ delta.masked_by(choices.bit(j))).value())
                as u32;
        }
        assert!(
            broken >= 10,
            "message {message}: {broken} of 40 changes noticed"
        );
    }
}

#[test]
fn messages_of_another_length_are_refused() {
    let mut rng = ChaCha20Rng::seed_from_u64(36);
    let masters = masters(Direction::Forward, &mut rng);
    let (id, depth) = (BundleId([1; 32]), TreeDepth::default());
    let (pending, correction) = masters.0.begin(&id, depth, &mut rng);
    for wrong in [&correction[1..], &[], &[&correction[..], &[0]].concat()] {
        assert!(
            masters
                .1
                .accept(&id, depth, wrong)
                .unwrap_err()
                .blames_peer()
        );
    }
    let (_, setup) = masters.1.accept(&id, depth, &correction).unwrap();
    let error = pending.finish(&setup[1..]).unwrap_err();
    assert!(error.blames_peer());
    assert_eq!(
        error.to_string(),
        "OT extension setup: expected 6144 bytes, got 6143"
    );
}

#[test]
fn debug_shows_no_secret() {
    let mut rng = ChaCha20Rng::seed_from_u64(37);
    let masters = masters(Direction::Forward, &mut rng);
    let (sender, receiver) = bundle(&masters, 1, TreeDepth::IKNP, &mut rng);
    assert_eq!(
        format!("{sender:?} {receiver:?}"),
        "ExtensionSender(TreeDepth(1)) ExtensionReceiver(TreeDepth(1))"
    );
    assert_eq!(
        format!("{:?} {:?}", masters.0, masters.1),
        "MasterSender(Forward) MasterReceiver(Forward)"
    );
}
