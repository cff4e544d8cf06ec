//! Peers that lie: the honest side ends with the error that blames them.

use super::*;

/// Bends the `message`-th message of one side.
pub(super) fn bent(
    client_lies: bool,
    message: u64,
    tamper: Tamper,
) -> (TamperedChannel, TamperedChannel) {
    let (mut left, mut right) = line();
    match client_lies {
        true => left.tamper(message, tamper),
        false => right.tamper(message, tamper),
    }
    (left, right)
}

/// Ways to bend a message's length: each is always found.
pub(super) const LENGTHS: [Tamper; 3] = [Tamper::Truncate, Tamper::Extend, Tamper::Oversize];

/// Checks that the honest side blames the liar, and the liar only sees the line go.
pub(super) fn assert_blamed<A, B>(
    client_lies: bool,
    outcome: Outcome<Result<A, Error>, Result<B, Error>>,
    context: &str,
) {
    let (client, server) = (outcome.client.err(), outcome.server.err());
    let (honest, liar) = if client_lies {
        (server, client)
    } else {
        (client, server)
    };
    assert!(
        matches!(
            honest,
            Some(Error::PeerMisbehaved { .. } | Error::PeerIncompatible { .. })
        ),
        "{context}: {honest:?}"
    );
    assert!(
        matches!(liar, None | Some(Error::Channel { .. })),
        "{context}: {liar:?}"
    );
}

/// Checks that nobody panics, hangs, or blames anything but the peer or the line.
pub(super) fn assert_orderly<A, B>(
    outcome: Outcome<Result<A, Error>, Result<B, Error>>,
    context: &str,
) {
    for error in [outcome.client.err(), outcome.server.err()]
        .into_iter()
        .flatten()
    {
        let orderly = matches!(
            error,
            Error::PeerMisbehaved { .. } | Error::PeerIncompatible { .. } | Error::Channel { .. }
        );
        assert!(orderly, "{context}: {error}");
    }
}

#[test]
fn lies_in_the_setup_are_blamed_on_the_peer() {
    for (client_lies, message) in [(true, 0), (false, 0), (true, 1)] {
        for tamper in LENGTHS {
            let outcome = exchange_setup(bent(client_lies, message, tamper), 1);
            assert_blamed(client_lies, outcome, &format!("{message} {tamper:?}"));
        }
        for tamper in [Tamper::Flip(17), Tamper::Repeat, Tamper::Drop] {
            let outcome = exchange_setup(bent(client_lies, message, tamper), 1);
            assert_orderly(outcome, &format!("{message} {tamper:?}"));
        }
    }
}

#[test]
fn lies_in_the_offline_phase_are_blamed_on_the_peer() {
    let models = edge_models();
    let mut seed = 400;
    // The first message, two uploads and the choices; the first message, two answers and the
    // garbled circuits.
    let ends = (0..4).flat_map(|message| [(true, message), (false, message)]);
    for (client_lies, message) in ends {
        let mut prepare = |tamper| {
            seed += 1;
            models.prepare(bent(client_lies, message, tamper), seed)
        };
        for tamper in LENGTHS {
            let context = format!("client {client_lies} {message} {tamper:?}");
            assert_blamed(client_lies, prepare(tamper), &context);
        }
        for tamper in [
            Tamper::Flip(3),
            Tamper::Flip(2500),
            Tamper::Repeat,
            Tamper::Drop,
        ] {
            let context = format!("client {client_lies} {message} {tamper:?}");
            assert_orderly(prepare(tamper), &context);
        }
    }
}

#[test]
fn lies_in_the_online_phase_are_blamed_on_the_peer() {
    let models = edge_models();
    let input = edge_input();
    let mut seed = 500;
    for (client_lies, message) in [(true, 0), (false, 0), (true, 1), (false, 1)] {
        let mut infer = |tamper| {
            seed += 1;
            let (client, server) = models.bundles(seed);
            models.infer(bent(client_lies, message, tamper), client, server, &input)
        };
        for tamper in LENGTHS {
            let context = format!("client {client_lies} {message} {tamper:?}");
            assert_blamed(client_lies, infer(tamper), &context);
        }
        // The top byte of a field element: no longer below p, hence found; lower bits are not.
        let found = [(true, 0, 32 + 7), (true, 1, 7), (false, 1, 7)];
        for at in found
            .into_iter()
            .filter(|f| (f.0, f.1) == (client_lies, message))
        {
            let outcome = infer(Tamper::FlipHigh(at.2));
            assert_blamed(client_lies, outcome, &format!("{at:?}"));
        }
        for tamper in [Tamper::Flip(200), Tamper::Repeat, Tamper::Drop] {
            let context = format!("client {client_lies} {message} {tamper:?}");
            assert_orderly(infer(tamper), &context);
        }
    }
}

/// A peer that sends these messages, whatever it receives, and goes.
pub(super) fn replayed(messages: &[&Vec<u8>]) -> TamperedChannel {
    let (mut liar, honest) = line();
    for message in messages {
        block_on(liar.send((*message).clone())).unwrap();
    }
    // What the honest party sends goes nowhere, which is not its error.
    std::mem::forget(liar);
    honest
}

#[test]
fn messages_out_of_order_are_blamed_on_the_peer() {
    let models = edge_models();
    let (client, server) = setups();
    let (up, down) = recorded(|ends| {
        let outcome = models.prepare(ends, 600);
        assert!(outcome.client.is_ok() && outcome.server.is_ok());
    });
    let header = inputs(600);
    let blamed = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        let blames = matches!(
            error,
            Error::PeerMisbehaved { .. } | Error::PeerIncompatible { .. }
        );
        assert!(blames, "{error}");
    };
    for order in [[1, 0], [1, 1], [0, 0]] {
        let mut channel = replayed(&order.map(|i| &up[i]));
        let result = block_on(server_prepare(
            &mut channel,
            &models.server,
            server,
            &header,
            &mut rng(!600),
        ));
        blamed(result.map(|_| ()));
        let mut channel = replayed(&order.map(|i| &down[i]));
        let result = block_on(client_prepare(
            &mut channel,
            &models.client,
            client,
            &header,
            &mut rng(600),
        ));
        blamed(result.map(|_| ()));
    }
}

#[test]
fn headers_that_differ_are_refused_before_anything_is_answered() {
    let models = edge_models();
    let (client, server) = setups();
    let outcome = both(
        line(),
        async |ch| client_prepare(ch, &models.client, client, &inputs(700), &mut rng(1)).await,
        async |ch| server_prepare(ch, &models.server, server, &inputs(701), &mut rng(2)).await,
    );
    assert!(matches!(
        outcome.server,
        Err(Error::PeerIncompatible { .. })
    ));
    assert!(matches!(outcome.client, Err(Error::Channel { .. })));
    assert_eq!(outcome.traffic.bytes_down, 0);
    // So is another key of the same client.
    let other = exchange_setup(line(), 2).server.unwrap();
    assert_ne!(other.id(), server.id());
    let outcome = both(
        line(),
        async |ch| client_prepare(ch, &models.client, client, &inputs(703), &mut rng(1)).await,
        async |ch| server_prepare(ch, &models.server, &other, &inputs(703), &mut rng(2)).await,
    );
    assert!(matches!(
        outcome.server,
        Err(Error::PeerIncompatible { .. })
    ));
    // The digest in the server's message is compared as well.
    let outcome = models.prepare(bent(false, 0, Tamper::Flip(31)), 702);
    assert!(matches!(
        outcome.client,
        Err(Error::PeerIncompatible { .. })
    ));
}
