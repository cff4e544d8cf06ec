//! Sessions of browsers: who may open one, how a browser proves who it is, and what it may do then.

use crate::client::{Browser, Pins, Running, SOON, hello, open, refusal};
use crate::common::{Model, limits, server_options};
use pi_ir::interpret::label;
use pi_protocol::session::Answer;
use pi_runtime::client::{Client, Patience, TrustOptions};
use pi_runtime::control::Request;
use pi_runtime::error::Error;
use pi_runtime::server::{ClientList, Server, ServerOptions, WebOptions};
use pi_runtime::stream::{Refusal, StreamError};
use pi_runtime::web::identification::WebKey;
use pi_runtime::web::session::Session;
use pi_wire::web::{Challenge, Introduction, Known, Proof};
use std::time::Duration;

/// The code with which the server has closed a session.
async fn closed(session: &Session) -> Option<Refusal> {
    let code = tokio::time::timeout(SOON, session.closed()).await;
    code.expect("the session ends").map(Refusal::from_web_code)
}

async fn introduce(session: &Session, key: &[u8]) -> pi_runtime::stream::MessageStream {
    let mut stream = open(session).await;
    let introduction = Introduction {
        version: 1,
        key: key.to_vec(),
    };
    stream.send_control(&introduction).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_browsers_are_the_exact_interpreters() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    let key = WebKey::generate();
    let mut browser = server.browser(&key).await;
    let welcome = browser.greet().await;
    assert_eq!(welcome.client, key.name());
    assert_eq!(welcome.service, server.service);
    let public = browser.model().await;
    let setup = browser.setup().await;
    let half = browser.prepare(&public, &setup).await;
    let input = model.input();
    let answer = browser.infer(&public, &half, &input).await.unwrap();
    let trace = answer.trace.as_ref().unwrap();
    let exact = model.interpreter().exact(&input, trace).unwrap();
    match &answer.answer {
        Answer::Label(found) => assert_eq!(*found, label(&exact.logits)),
        Answer::Logits(found) => assert_eq!(*found, exact.logits),
        Answer::OutOfRange => panic!("the input is in range"),
    }
    // A second use of the bundle is refused, whatever is asked with it.
    let again = browser.infer(&public, &half, &input).await;
    let error = again.err().unwrap();
    assert!(
        matches!(error, Some(StreamError::Refused(Refusal::SpentBundle))),
        "{error:?}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_and_a_native_client_are_served_at_once() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, &states.path().join("server"));
    let patience = Patience {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(60),
    };
    let client = Client::open(&states.path().join("client"), patience).unwrap();
    let native = async {
        let trust = TrustOptions {
            fingerprint: Some(server.fingerprint),
            ..TrustOptions::default()
        };
        let connecting = client.connect(&server.address.to_string(), &trust).await;
        let mut connection = connecting.unwrap();
        let (public, _) = connection.model().await.unwrap();
        let (setup, _) = connection.setup().await.unwrap();
        let prepared = connection.prepare(&public, &setup, 1, |_| {}).await;
        prepared.unwrap();
        let (id, _) = connection.next_bundle().await.unwrap();
        let answer = connection.infer(&public, &id, &model.input(), true).await;
        connection.close().await;
        let answer = answer.unwrap();
        (answer.answer, answer.trace.unwrap())
    };
    let web = async {
        let mut browser = server.browser(&WebKey::generate()).await;
        browser.greet().await;
        let public = browser.model().await;
        let setup = browser.setup().await;
        let half = browser.prepare(&public, &setup).await;
        let answer = browser.infer(&public, &half, &model.input()).await.unwrap();
        (answer.answer, answer.trace.unwrap())
    };
    let (native, web) = tokio::join!(native, web);
    for (answer, trace) in [native, web] {
        let exact = model.interpreter().exact(&model.input(), &trace).unwrap();
        let right = match &answer {
            Answer::Label(found) => *found == label(&exact.logits),
            Answer::Logits(found) => *found == exact.logits,
            Answer::OutOfRange => false,
        };
        assert!(right, "{answer:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_client_are_those_of_its_key() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let options = ServerOptions {
        limits: limits(Some(1)),
        ..server_options(&model, states.path())
    };
    let server = Running::with(options, |_| {});
    let key = WebKey::generate();
    let mut browser = server.browser(&key).await;
    assert_eq!(browser.greet().await.answers_left, Some(1));
    let public = browser.model().await;
    let setup = browser.setup().await;
    let half = browser.prepare(&public, &setup).await;
    browser.infer(&public, &half, &model.input()).await.unwrap();
    let more = browser.try_prepare(&public, &setup).await;
    let error = more.err().unwrap();
    assert!(
        matches!(error, Some(StreamError::Refused(Refusal::AnswersUsed))),
        "{error:?}"
    );
    // Over another connection too, but not for another key.
    let mut again = server.browser(&key).await;
    assert_eq!(again.greet().await.answers_left, Some(0));
    let mut other = server.browser(&WebKey::generate()).await;
    assert_eq!(other.greet().await.answers_left, Some(1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_before_a_browser_is_known() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    for request in [hello(), Request::Catalogue, Request::Artifact] {
        let session = server.plain_session().await;
        let mut stream = open(&session).await;
        stream.send_control(&request).await.unwrap();
        let told = refusal(stream).await;
        assert!(
            matches!(told, Refusal::Misbehaved | Refusal::Incompatible),
            "{told}"
        );
        assert_eq!(closed(&session).await, Some(told));
    }
    // Beside an identification that is under way neither.
    let session = server.plain_session().await;
    let key = WebKey::generate();
    let mut first = introduce(&session, key.public()).await;
    let challenge: Challenge = first.receive_control(1024).await.unwrap();
    let mut early = open(&session).await;
    early.send_control(&Request::Catalogue).await.unwrap();
    let answer = early.receive_message(1 << 20);
    let silent = tokio::time::timeout(Duration::from_millis(300), answer).await;
    assert!(
        silent.is_err(),
        "a stream is served before its client is known"
    );
    let wrong = key.prove(&challenge, "elsewhere.example");
    first.send_control(&wrong).await.unwrap();
    assert_eq!(refusal(first).await, Refusal::Misbehaved);
    assert_eq!(closed(&session).await, Some(Refusal::Misbehaved));
    assert!(early.receive_message(1 << 20).await.is_err());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_of_this_key_for_this_server_and_this_time() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    let (key, other) = (WebKey::generate(), WebKey::generate());
    let authority = server.web.to_string();
    let mut earlier: Option<Proof> = None;
    // Tells what comes of an answer to a challenge.
    let mut attempt = async |answer: &dyn Fn(&Challenge) -> Proof| {
        let session = server.plain_session().await;
        let mut stream = introduce(&session, key.public()).await;
        let challenge: Challenge = stream.receive_control(1024).await.unwrap();
        assert_eq!(challenge.service, server.service.0);
        let proof = answer(&challenge);
        stream.send_control(&proof).await.unwrap();
        match stream.receive_control::<Known>(1024).await {
            Ok(known) => {
                assert_eq!(known.client, key.name().0);
                earlier = Some(proof);
                true
            }
            Err(StreamError::Refused(Refusal::Misbehaved)) => {
                assert_eq!(closed(&session).await, Some(Refusal::Misbehaved));
                false
            }
            Err(error) => panic!("another end: {error}"),
        }
    };
    assert!(attempt(&|challenge| key.prove(challenge, &authority)).await);
    assert!(!attempt(&|challenge| other.prove(challenge, &authority)).await);
    assert!(!attempt(&|challenge| key.prove(challenge, "elsewhere.example")).await);
    let elsewhere = |challenge: &Challenge| Challenge {
        service: [1; 32],
        ..challenge.clone()
    };
    assert!(!attempt(&|challenge| key.prove(&elsewhere(challenge), &authority)).await);
    let longer = |challenge: &Challenge| {
        let mut proof = key.prove(challenge, &authority);
        proof.signature.push(0);
        proof
    };
    assert!(!attempt(&longer).await);
    let none = |_: &Challenge| Proof {
        signature: vec![0; 64],
    };
    assert!(!attempt(&none).await);
    // One that was right for an earlier challenge.
    let replayed = earlier.take().unwrap();
    let session = server.plain_session().await;
    let mut stream = introduce(&session, key.public()).await;
    let _: Challenge = stream.receive_control(1024).await.unwrap();
    stream.send_control(&replayed).await.unwrap();
    assert_eq!(refusal(stream).await, Refusal::Misbehaved);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_another_form_are_refused() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    let key = WebKey::generate().public().to_vec();
    let mut infinite = key.clone();
    infinite.truncate(1);
    infinite[0] = 0;
    for wrong in [&key[..64], &[&key[..], &[0]].concat(), &infinite, &[]] {
        let session = server.plain_session().await;
        let stream = introduce(&session, wrong).await;
        assert_eq!(refusal(stream).await, Refusal::Misbehaved);
        assert_eq!(closed(&session).await, Some(Refusal::Misbehaved));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_for_own_pages_names_and_the_one_path() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::with(server_options(&model, states.path()), |web| {
        web.names = vec!["ward.example:443".into()];
        web.origins = vec!["https://pages.example".into()];
    });
    let port = server.web.port();
    let (here, localhost) = (server.web.to_string(), format!("localhost:{port}"));
    let try_session = async |authority: &str, path: &str, origin: &str| {
        let session = server.session((authority, path), origin).await;
        session.map(drop).map_err(|error| error.to_string())
    };
    let path = "/pianissimo/2";
    for (authority, origin) in [
        (here.as_str(), server.origin()),
        (&localhost, format!("https://{localhost}")),
        (&here, "https://pages.example".into()),
        ("ward.example", "https://ward.example".into()),
    ] {
        let session = try_session(authority, path, &origin).await;
        assert_eq!(session, Ok(()), "{authority} from {origin}");
    }
    for (authority, path, origin, status) in [
        (here.as_str(), path, "https://evil.example", "403"),
        (&here, path, "https://127.0.0.1", "403"),
        (&here, path, "null", "403"),
        // A page of somebody's name that leads here.
        ("evil.example", path, "https://evil.example", "421"),
        (
            &format!("evil.example:{port}"),
            path,
            "https://pages.example",
            "421",
        ),
        (
            &format!("127.0.0.1:{}", port ^ 1),
            path,
            "https://pages.example",
            "421",
        ),
        (&here, "/pianissimo/1", "https://pages.example", "404"),
        (&here, "/", "https://pages.example", "404"),
    ] {
        let error = try_session(authority, path, origin).await.unwrap_err();
        assert!(
            error.contains(status),
            "{authority}{path} from {origin}: {error}"
        );
    }
    server.stop().await;
}

/// What is no request for a session, and streams that are of none, harm nobody.
#[tokio::test(flavor = "multi_thread")]
async fn other_streams_of_http_are_refused() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    let mut browser = server.browser(&WebKey::generate()).await;
    let quic = browser.session.quic().clone();
    // HEADERS of a second request; a session with another number; a frame of nobody.
    for bytes in [&[0x01, 0x00][..], &[0x40, 0x41, 0x08], &[0x21, 0x00]] {
        let (mut outgoing, mut incoming) = quic.open_bi().await.unwrap();
        outgoing.write_all(bytes).await.unwrap();
        let ended = tokio::time::timeout(SOON, incoming.read_to_end(1 << 10)).await;
        assert!(ended.unwrap().is_err());
    }
    // A stream in one direction.
    let mut one_way = quic.open_uni().await.unwrap();
    one_way.write_all(&[0x40, 0x54, 0x00]).await.unwrap();
    let stopped = tokio::time::timeout(SOON, one_way.stopped()).await;
    assert!(stopped.unwrap().unwrap().is_some());
    browser.greet().await;

    // A connection that asks for nothing of the kind.
    let quic = server.quic(Pins::Any).await.unwrap();
    let (mut outgoing, _) = quic.open_bi().await.unwrap();
    outgoing.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut other = server.browser(&WebKey::generate()).await;
    other.greet().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_of_a_key_ends_the_first_and_a_stop_says_so() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    let key = WebKey::generate();
    let first = server.browser(&key).await;
    let mut second = server.browser(&key).await;
    assert_eq!(closed(&first.session).await, Some(Refusal::Silent));
    second.greet().await;
    server.stop().await;
    assert_eq!(closed(&second.session).await, Some(Refusal::ShuttingDown));
}

/// The list names browsers as it names others, by their fingerprints.
#[tokio::test(flavor = "multi_thread")]
async fn only_browsers_on_the_list_are_served() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let list = states.path().join("clients");
    let (key, other) = (WebKey::generate(), WebKey::generate());
    std::fs::write(&list, key.name().to_string()).unwrap();
    let options = |authorities| ServerOptions {
        clients: Some(ClientList::Plain(list.clone())),
        client_authorities: authorities,
        ..server_options(&model, &states.path().join("server"))
    };
    let server = Running::with(options(None), |_| {});
    let mut browser = server.browser(&key).await;
    browser.greet().await;
    let stranger = server.browser(&other).await;
    assert_eq!(closed(&stranger.session).await, Some(Refusal::NotAllowed));
    // Struck from the list, it is served no more.
    std::fs::write(&list, other.name().to_string()).unwrap();
    let stream = browser.say(&Request::Catalogue).await;
    assert_eq!(refusal(stream).await, Refusal::NotAllowed);
    server.stop().await;
}

/// Where an authority says who the clients are, browsers must be named one by one.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_clients_lets_no_other_browser_in() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let authority = rcgen::generate_simple_self_signed(["ca".to_string()]).unwrap();
    let (pem, list) = (
        states.path().join("ca.pem"),
        states.path().join("clients.toml"),
    );
    std::fs::write(&pem, authority.cert.pem()).unwrap();
    let key = WebKey::generate();
    let text = format!(
        "serve-others = true\n[[client]]\nfingerprint = \"{}\"\n",
        key.name()
    );
    std::fs::write(&list, text).unwrap();
    let options = |clients| ServerOptions {
        clients,
        client_authorities: Some(pem.clone()),
        ..server_options(&model, &states.path().join("server"))
    };
    let server = Running::with(options(Some(ClientList::Toml(list.clone()))), |_| {});
    let mut named: Browser = server.browser(&key).await;
    named.greet().await;
    let other = server.browser(&WebKey::generate()).await;
    assert_eq!(closed(&other.session).await, Some(Refusal::NotAllowed));
    server.stop().await;

    let page = crate::client::page();
    let error = Server::start(&ServerOptions {
        web: Some(WebOptions::new(page.path())),
        ..options(None)
    });
    let error = error.err().unwrap();
    assert!(matches!(error, Error::Web(_)), "{error}");
    assert!(error.to_string().contains("--client-ca"), "{error}");
}
