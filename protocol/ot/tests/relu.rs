//! A layer of ReLUs from oblivious transfer to shares, message by message, with the bytes of each.
//!
//! The order is that of the protocol: (1) client to server, (2) back, (3) client to server, (4)
//! back, all offline; then one message online.

use pi_core::fp::{self, P};
use pi_core::{Bits, Block, Prg, TweakCounter};
use pi_garble::{
    InputLabels, ServerGadget, SignWidth, active_labels, client_output, evaluate_sign, garble_sign,
};
use pi_ot::ideal::ideal_pads;
use pi_ot::{
    BASE_CORRECTION_BYTES, BundleId, CotReceiver, CotSender, Direction, MasterReceiver,
    MasterSetup, SessionId, TreeDepth, chou_orlandi, reverse,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

#[test]
fn relu_of_shares_over_real_transfers() {
    for depth in [TreeDepth::IKNP, TreeDepth::default()] {
        for (m, count) in [(2, 1), (16, 1), (16, 129), (17, 1000)] {
            relu(depth, m, count);
        }
    }
}

fn relu(depth: TreeDepth, m: u32, count: usize) {
    let (mut client_rng, mut server_rng) =
        (ChaCha20Rng::seed_from_u64(1), ChaCha20Rng::seed_from_u64(2));
    let width = SignWidth::new(m).unwrap();
    let bits = count * m as usize;
    let mut sent = 0;

    // Once per client.
    let session = SessionId([1; 32]);
    let (client_setup, opening) = MasterSetup::start(session, Direction::Reverse, &mut client_rng);
    let offset = Block::random(&mut server_rng);
    let (all, chosen) = ideal_pads(offset, &mut server_rng);
    let own = (offset, &chosen[..]);
    let (server_reverse, response) =
        MasterReceiver::respond(session, Direction::Reverse, own, &opening, &mut server_rng)
            .unwrap();
    let client_reverse = client_setup.finish(&response, &all).unwrap();
    let (server_setup, opening) = MasterSetup::start(session, Direction::Forward, &mut server_rng);
    let offset = Block::random(&mut client_rng);
    let (all, chosen) = ideal_pads(offset, &mut client_rng);
    let own = (offset, &chosen[..]);
    let (client_forward, response) =
        MasterReceiver::respond(session, Direction::Forward, own, &opening, &mut client_rng)
            .unwrap();
    assert_eq!(
        (opening.len(), response.len()),
        (chou_orlandi::OPENING_BYTES, chou_orlandi::RESPONSE_BYTES)
    );
    let server_forward = server_setup.finish(&response, &all).unwrap();

    // The client's c is known offline, the server's negative integer d online; t = c + d.
    let half = 1i64 << (m - 1);
    let values: Vec<i64> = (0..count)
        .map(|j| match j {
            0 => -1,
            1 => half - 1,
            2 => -half,
            _ => client_rng.next_u64() as i64 % half,
        })
        .collect();
    let c: Vec<u64> = (0..count)
        .map(|_| (1 << 50) + (client_rng.next_u64() >> 15))
        .collect();
    let d: Vec<i64> = values.iter().zip(&c).map(|(t, c)| t - *c as i64).collect();

    let id = BundleId([7; 32]);
    let nonce = Block::new(0x1234_5678);
    let client_tweaks = TweakCounter::new(nonce).take(count, m);
    let server_tweaks = TweakCounter::new(nonce).take(count, m);

    // (1) client: base-OT correction of the reverse offset.
    let (pending, message) = client_reverse.begin(&id, depth, &mut client_rng);
    sent += message.len();

    // (2) server: base-OT correction of delta, reverse extension with random choices.
    let (mut reverse_receiver, reverse_message) =
        server_reverse.accept(&id, depth, &message).unwrap();
    let choices = Bits::random(count, &mut server_rng);
    let (reverse_blocks, reverse_correction) = reverse_receiver.extend(&choices);
    let (forward_pending, message) = server_forward.begin(&id, depth, &mut server_rng);
    sent += message.len() + reverse_message.len() + reverse_correction.len();

    // (3) client: forward extension with the bits of c, tau.
    let mut reverse_sender = pending.finish(&reverse_message).unwrap();
    let q = reverse_sender.extend(count, &reverse_correction).unwrap();
    let (tau, mut u) =
        reverse::sender_message(&client_tweaks, reverse_sender.delta(), &q, &c).unwrap();
    let (mut forward_receiver, forward_message) =
        client_forward.accept(&id, depth, &message).unwrap();
    let (client_labels, forward_correction) = forward_receiver.extend(&Bits::of_values(&c, m));
    let tau = fp::encode(&tau);
    sent += forward_message.len() + forward_correction.len() + tau.len();

    // (4) server: tables and corrected choices.
    let mut forward_sender = forward_pending.finish(&forward_message).unwrap();
    let client_zero = forward_sender.extend(bits, &forward_correction).unwrap();
    let server_stream = Prg::new(&[5; 32]);
    let delta = forward_sender.delta();
    let mut tables = vec![0; width.table_bytes(count)];
    let mut keep_zero = vec![Block::ZERO; count];
    let zeros = InputLabels {
        client: &client_zero,
        server: &server_stream.clone().blocks(bits),
    };
    garble_sign(
        width,
        &server_tweaks,
        delta,
        zeros,
        &mut tables,
        &mut keep_zero,
    )
    .unwrap();
    let tau = fp::decode("tau", tau, count).unwrap();
    let mut v = reverse::receiver_share(&server_tweaks, &reverse_blocks, &choices, &tau).unwrap();
    let e = reverse::derandomize(&mut v, &choices, &ServerGadget::colours(&keep_zero)).unwrap();
    let gadget = ServerGadget::new(&server_tweaks, delta, &keep_zero, &v).unwrap();
    sent += tables.len() + e.as_bytes().len();
    reverse::apply_derandomization(&mut u, &c, &Bits::decode("e", e.as_bytes(), count).unwrap())
        .unwrap();

    let offline = 2 * (BASE_CORRECTION_BYTES + depth.setup_bytes())
        + depth.correction_bytes(count)
        + depth.correction_bytes(bits)
        + count * reverse::TAU_BYTES
        + width.table_bytes(count)
        + reverse::choice_bytes(count);
    assert_eq!(sent, offline);

    // Online: labels and rows.
    let low: Vec<u64> = d.iter().map(|&d| d as u64).collect();
    let d: Vec<u64> = d.iter().map(|&d| P - d.unsigned_abs()).collect();
    let mut labels = vec![0; width.label_bytes(count)];
    active_labels(width, delta, &server_stream, &low, &mut labels).unwrap();
    let (rows, y_server) = gadget.open(&d).unwrap();
    let rows = fp::encode(&rows);
    assert_eq!(labels.len() + rows.len(), count * (16 * m as usize + 8));

    let (keep, _) = evaluate_sign(width, &client_tweaks, &client_labels, &labels, &tables).unwrap();
    let rows = fp::decode("rows", rows, count).unwrap();
    let y_client = client_output(&client_tweaks, &keep, &rows, &c, &u).unwrap();
    for (j, &value) in values.iter().enumerate() {
        assert_eq!(
            fp::add(y_client[j], y_server[j]),
            value.max(0) as u64,
            "t = {value}, m = {m}"
        );
    }
}
