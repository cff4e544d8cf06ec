//! The page: what is sent, with which headers, and what is refused.

use crate::client::{HttpAnswer, Pins, Running, exchange};
use crate::common::{Model, complaint, server_options};
use pi_runtime::error::Error;
use pi_runtime::server::{Clock, Server, ServerOptions, WebOptions};
use pi_runtime::web::session::Session;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DAY: u64 = 86_400;

/// The headers of every answer; `sessions` is where sessions are, if not at the page's origin.
fn check_headers(answer: &HttpAnswer, sessions: Option<&str>) {
    let sessions = sessions.map(|origin| format!(" {origin}"));
    let policy = format!(
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
         img-src 'self' blob: data:; connect-src 'self'{}; worker-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        sessions.unwrap_or_default()
    );
    for (name, value) in [
        ("content-security-policy", policy.as_str()),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-embedder-policy", "require-corp"),
        ("cross-origin-resource-policy", "same-origin"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    let permissions = answer.header("permissions-policy").unwrap();
    for entry in permissions.split(", ") {
        let (feature, allowed) = entry.split_once('=').unwrap();
        let expected = if feature == "camera" { "(self)" } else { "()" };
        assert_eq!(allowed, expected, "{feature}");
    }
    assert!(permissions.contains("camera=") && permissions.contains("microphone="));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_keeps_the_page_to_itself() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::with(server_options(&model, states.path()), |web| {
        web.origins = vec!["https://pages.example".into()];
    });
    let index = server.get("/", &[]).await;
    assert_eq!(index.status, 200);
    assert_eq!(
        index.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert!(index.body.starts_with(b"<!doctype html>"));
    check_headers(&index, None);

    let accepts = [("accept-encoding", "gzip, br")];
    let module = server.get("/pi.wasm", &accepts).await;
    assert_eq!(module.header("content-type"), Some("application/wasm"));
    assert_eq!(module.header("content-encoding"), Some("br"));
    assert_eq!(module.body, b"the module in brotli");
    let tag = module.header("etag").unwrap();
    let again = [accepts[0], ("if-none-match", tag)];
    let again = server.get("/pi.wasm", &again).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    check_headers(&again, None);
    let head = server.ask("HEAD", "/pi.wasm", &[]).await;
    assert_eq!(
        (head.header("content-length"), head.body.len()),
        (Some("10"), 0)
    );

    let note = server
        .get("/server.json", &[("origin", "https://other.example")])
        .await;
    assert_eq!(note.header("cache-control"), Some("no-store"));
    assert_eq!(note.header("access-control-allow-origin"), None);
    check_headers(&note, None);
    let listed = [("origin", "https://pages.example")];
    let note = server.get("/server.json", &listed).await;
    assert_eq!(
        note.header("access-control-allow-origin"),
        Some(listed[0].1)
    );

    let refused = server.ask("POST", "/", &[]).await;
    assert_eq!(
        (refused.status, refused.header("allow")),
        (405, Some("GET, HEAD"))
    );
    check_headers(&refused, None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_leads_out_of_the_page() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    for path in [
        "/../Cargo.toml",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/./index.html",
        "/pi.wasm/../index.html",
        "/nothing",
    ] {
        let answer = server.get(path, &[]).await;
        assert_eq!(answer.status, 404, "{path}");
        check_headers(&answer, None);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_told_where_its_server_is() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    let note = server.note().await;
    assert_eq!(note["session"], "/pianissimo/2");
    assert_eq!(note["service"], server.service.to_string());
    assert_eq!(note["protocol"], pi_protocol::header::PROTOCOL_VERSION);
    assert!(note["default_model"].is_string(), "{note}");
    let hashes = server.hashes().await;
    assert_eq!(hashes.len(), 2, "one in use, and the next");
    assert!(server.https(Pins::OneOf(vec![hashes[0]])).await.is_ok());
    assert!(server.https(Pins::OneOf(vec![hashes[1]])).await.is_err());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_long_end_and_the_page_goes_on() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    let mut stream = server.https(Pins::Any).await.unwrap();
    let long = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    // It may be closed before it is read to its end.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    let many = "x: y\r\n".repeat(100);
    let mut stream = server.https(Pins::Any).await.unwrap();
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n");
    let _ = stream.write_all(many.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(server.get("/", &[]).await.status, 200);
    server.stop().await;
}

/// Those who say nothing take up only their own share of the connections.
#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_connections() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::start(&model, states.path());
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(server.web).await.unwrap());
    }
    // The 33rd and those behind it are closed.
    for stream in &mut silent[32..] {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte)).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    }
    let first = silent[0].try_read(&mut [0]);
    assert!(first.is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    drop(silent);
    let answered = async {
        while server.https(Pins::Any).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answered)
        .await
        .unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_the_page_is_for_this_machine_alone() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = Running::with(server_options(&model, states.path()), |web| {
        web.plain = Some(([127, 0, 0, 1], 0).into());
    });
    let http = server.http.unwrap();
    let stream = TcpStream::connect(http).await.unwrap();
    let answer = exchange(stream, "GET", "/", &http.to_string(), &[]).await;
    assert_eq!(answer.status, 200);
    check_headers(&answer, Some(&server.origin()));
    let stream = TcpStream::connect(http).await.unwrap();
    let answer = exchange(stream, "GET", "/server.json", &http.to_string(), &[]).await;
    let note: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(note["session"], format!("{}/pianissimo/2", server.origin()));
    // Its page may open sessions.
    let authority = server.web.to_string();
    for origin in [
        format!("http://{http}"),
        format!("http://localhost:{}", http.port()),
    ] {
        let session = server.session((&authority, "/pianissimo/2"), &origin).await;
        assert!(session.is_ok(), "{origin}");
    }
    server.stop().await;

    let page = crate::client::page();
    let mut web = WebOptions::new(page.path());
    web.plain = Some(([0, 0, 0, 0], 0).into());
    let options = ServerOptions {
        web: Some(web),
        ..server_options(&model, states.path())
    };
    for error in [
        Server::start(&options).err().unwrap(),
        Server::check(&options).unwrap_err().remove(0),
    ] {
        assert!(error.to_string().contains("--web-http"), "{error}");
    }
}

/// A page that was opened at any time goes on for nine days, and a restart changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_and_announced_before() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let time = Arc::new(AtomicU64::new(20_000 * DAY));
    let clock = || {
        let time = time.clone();
        Clock::new(move || time.load(Ordering::Relaxed))
    };
    let options = || server_options(&model, states.path());
    let server = Running::with(options(), |web| web.clock = clock());
    let first = server.hashes().await;
    server.stop().await;
    let server = Running::with(options(), |web| web.clock = clock());
    assert_eq!(server.hashes().await, first, "a restart keeps them");

    time.fetch_add(9 * DAY, Ordering::Relaxed);
    server.reload.notify_one();
    let renewed = async {
        while server.hashes().await == first {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed)
        .await
        .unwrap();
    let second = server.hashes().await;
    assert_eq!(second[0], first[1], "the one that was announced is in use");
    assert!(!first.contains(&second[1]));
    for pins in [&first[1..], &second[..1]] {
        let pins = Pins::OneOf(pins.to_vec());
        assert!(server.quic(pins.clone()).await.is_ok());
        assert!(server.https(pins).await.is_ok());
    }
    assert!(server.quic(Pins::OneOf(first[..1].to_vec())).await.is_err());
    server.stop().await;
}

#[test]
fn a_server_without_a_page_says_how_to_make_one() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let options = ServerOptions {
        web: Some(WebOptions::new(states.path().join("dist"))),
        ..server_options(&model, &states.path().join("server"))
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    for error in [
        Server::start(&options).err().unwrap(),
        Server::check(&options).unwrap_err().remove(0),
    ] {
        assert!(matches!(error, Error::Page(_)), "{error}");
        assert!(error.remedy().unwrap().contains("web/build.sh"));
    }
}

/// Settings come from a file, a variable or an option, and a check tells all that is wrong.
#[test]
fn settings_for_browsers_are_like_all_others() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let page = crate::client::page();
    let config = states.path().join("server.toml");
    let write = |web: &str| {
        let model = model.path().display();
        let files = page.path().display();
        let state = states.path().display();
        let text = format!(
            "model = [\"{model}\"]\nstate = \"{state}/server\"\nlisten = \"127.0.0.1:0\"\n\
             web-files = \"{files}\"\n{web}"
        );
        std::fs::write(&config, text).unwrap();
    };
    let check = || {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_pi-server"));
        command.arg("check").arg(&config);
        command
    };
    write("web = \"127.0.0.1:0\"\nweb-names = [\"pi.example\"]\n");
    check().assert().success();
    write(
        "web = \"127.0.0.1:0\"\nweb-http = \"192.0.2.7:80\"\nweb-names = [\"a/b\"]\n\
         web-cert = \"absent.pem\"\nweb-key = \"absent.key\"\nclient-ca = \"absent-ca.pem\"\n",
    );
    let text = complaint(&mut check());
    for fault in [
        "--web-http",
        "a/b",
        "absent.key",
        "absent-ca.pem",
        "--client-ca",
    ] {
        assert!(text.contains(fault), "{fault} is not in\n{text}");
    }
    write("web = \"127.0.0.1:0\"\nweb-files = 3\n");
    complaint(&mut check());

    // A variable comes before the file.
    write("web = \"192.0.2.7:1\"\n");
    let mut server = std::process::Command::new(env!("CARGO_BIN_EXE_pi-server"));
    server.arg("--config").arg(&config);
    server.env("PI_SERVER_WEB", "127.0.0.1:0");
    server.stdout(std::process::Stdio::piped());
    let mut server = server.spawn().unwrap();
    let output = std::io::BufReader::new(server.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(output).map_while(Result::ok);
    let page = lines.find(|line| line.starts_with("page https://127.0.0.1:"));
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(page.is_some());
}

/// A certificate that browsers trust is told no hashes, and is read again when it changes.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_s_certificate_is_read_again_and_names_the_server() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let (pem, key) = (states.path().join("web.pem"), states.path().join("web.key"));
    let write = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_string()]).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&pem, made.cert.pem()).unwrap();
        pi_runtime::fingerprint::of_certificate(made.cert.der())
    };
    let first = write("first.example");
    let server = Running::with(server_options(&model, states.path()), |web| {
        web.certificate = Some((pem.clone(), key.clone()));
    });
    assert_eq!(server.note().await["certificates"], serde_json::json!([]));
    assert!(server.https(Pins::OneOf(vec![first])).await.is_ok());
    let second = write("second.example");
    server.reload.notify_one();
    let renewed = async {
        while server.https(Pins::OneOf(vec![second])).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed)
        .await
        .unwrap();
    let quic = server.quic(Pins::OneOf(vec![second])).await.unwrap();
    // It is called by the name in the new certificate, and no more by that in the old one.
    let authority = format!("second.example:{}", server.web.port());
    let url = |authority: &str| format!("https://{authority}/pianissimo/2").parse().unwrap();
    let origin = format!("https://{authority}");
    let session = Session::connect(quic, url(&authority), &origin).await;
    assert!(session.is_ok());
    let quic = server.quic(Pins::OneOf(vec![second])).await.unwrap();
    let authority = format!("first.example:{}", server.web.port());
    let origin = format!("https://{authority}");
    assert!(
        Session::connect(quic, url(&authority), &origin)
            .await
            .is_err()
    );
    server.stop().await;
}
