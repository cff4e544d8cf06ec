//! Peers that lie: an honest party whose peer sends the messages of an honest one with changes ends
//! with a result or with an error that blames the peer or the line.
//!
//! Each party's own coins are those of the recorded session, so that the replayed messages fit.

use futures_executor::block_on;
use pi_fuzz::session::{
    LABEL, LOGITS, Replayed, Session, infer_client, infer_server, prepare_client, prepare_server,
    setup_client, setup_server,
};
use pi_protocol::Error;
use pi_protocol::session::{ClientBundle, ClientSetup, ServerBundle, ServerSetup};

fn assert_orderly<T>(result: Result<T, Error>, input: &[u8]) {
    match result {
        Ok(_)
        | Err(
            Error::PeerMisbehaved { .. } | Error::PeerIncompatible { .. } | Error::Channel { .. },
        ) => {}
        Err(error) => panic!("{input:?}: {error}"),
    }
}

/// Checks that the recorded messages are taken: the changes start from what works.
fn assert_taken<T>(result: Result<T, Error>) {
    result.map(drop).expect("the recorded messages fit");
}

#[test]
fn client_survives_any_setup_answer() {
    let session = Session::new(LABEL);
    let run = |input: &[u8]| {
        block_on(setup_client(&mut Replayed::changed(
            &session.setup.down,
            input,
        )))
    };
    assert_taken(run(&[]));
    bolero::check!().for_each(|input: &[u8]| assert_orderly(run(input), input));
}

#[test]
fn server_survives_any_setup_messages() {
    let session = Session::new(LABEL);
    let run = |input: &[u8]| {
        block_on(setup_server(&mut Replayed::changed(
            &session.setup.up,
            input,
        )))
    };
    assert_taken(run(&[]));
    bolero::check!().for_each(|input: &[u8]| assert_orderly(run(input), input));
}

#[test]
fn client_survives_any_offline_messages() {
    let sessions = [LABEL, LOGITS].map(|seed| {
        let session = Session::new(seed);
        let setup = ClientSetup::decode(&session.setups.0).expect("stored by us");
        (session, setup)
    });
    let run = |input: &[u8]| {
        let ((session, setup), input) = choose(&sessions, input);
        let mut line = Replayed::changed(&session.prepare.down, input);
        block_on(prepare_client(&mut line, &session.client, setup))
    };
    assert_taken(run(&[0]));
    assert_taken(run(&[1]));
    bolero::check!().for_each(|input: &[u8]| assert_orderly(run(input), input));
}

#[test]
fn server_survives_any_offline_messages() {
    let sessions = [LABEL, LOGITS].map(|seed| {
        let session = Session::new(seed);
        let setup = ServerSetup::decode(&session.setups.1).expect("stored by us");
        (session, setup)
    });
    let run = |input: &[u8]| {
        let ((session, setup), input) = choose(&sessions, input);
        let mut line = Replayed::changed(&session.prepare.up, input);
        block_on(prepare_server(&mut line, &session.server, setup))
    };
    assert_taken(run(&[0]));
    assert_taken(run(&[1]));
    bolero::check!().for_each(|input: &[u8]| assert_orderly(run(input), input));
}

#[test]
fn client_survives_any_online_messages() {
    let sessions = [LABEL, LOGITS].map(Session::new);
    let run = |input: &[u8]| {
        let (session, input) = choose(&sessions, input);
        let bundle = ClientBundle::decode(&session.bundles.0, &session.client);
        let mut line = Replayed::changed(&session.infer.down, input);
        let bundle = bundle.expect("stored by us");
        block_on(infer_client(&mut line, &session.client, bundle))
    };
    assert_taken(run(&[0]));
    assert_taken(run(&[1]));
    bolero::check!().for_each(|input: &[u8]| assert_orderly(run(input), input));
}

#[test]
fn server_survives_any_online_messages() {
    let sessions = [LABEL, LOGITS].map(Session::new);
    let run = |input: &[u8]| {
        let (session, input) = choose(&sessions, input);
        let bundle = ServerBundle::read(&session.bundles.1[..], &session.server);
        let mut line = Replayed::changed(&session.infer.up, input);
        let bundle = bundle.expect("stored by us");
        block_on(infer_server(&mut line, &session.server, bundle))
    };
    assert_taken(run(&[0]));
    assert_taken(run(&[1]));
    bolero::check!().for_each(|input: &[u8]| assert_orderly(run(input), input));
}

/// The session that the first byte names, and the rest.
fn choose<'a, T>(sessions: &'a [T; 2], input: &'a [u8]) -> (&'a T, &'a [u8]) {
    match input.split_first() {
        Some((first, rest)) => (&sessions[usize::from(first % 2)], rest),
        None => (&sessions[0], input),
    }
}
