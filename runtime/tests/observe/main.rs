//! The server as its operator sees it: what it counts is exact, what it logs is found by both
//! parties under one name, and none of it holds a secret or a value.

#[cfg(feature = "otel")]
mod collector;
#[path = "../common/mod.rs"]
mod common;
mod dashboard;
mod leaks;
mod view;

use common::{Model, client, complaint, prepare, server_command};
use leaks::{Secrets, planted};
use pi_ir::{Reveal, verify};
use pi_protocol::header::PROTOCOL_VERSION;
use pi_runtime::command::child::ServerProcess;
use pi_runtime::control::{Hello, Prepare, Request, Welcome};
use pi_runtime::fingerprint::short;
use pi_runtime::identity::Identity;
use pi_runtime::stream::MessageStream;
use pi_runtime::transport::{ClientEndpoint, Trust, client_endpoint};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use view::{Scrape, get, respond, scrape};

/// All of our crates, as verbose as can be.
const MOST: &str = "pi_runtime=trace,pi_protocol=trace,pi_core=trace,pi_ring=trace,pi_rlwe=trace,\
    pi_ot=trace,pi_garble=trace,pi_ir=trace,pi_image=trace,info";

/// A server with everything that can be seen of it.
struct Watched {
    server: ServerProcess,
    /// Where it answers HTTP requests.
    http: String,
    model: Model,
    states: tempfile::TempDir,
}

impl Watched {
    fn start(arguments: &[&str]) -> Watched {
        let (model, states) = (with_names(), tempfile::tempdir().unwrap());
        let (state, log) = (states.path().join("server"), states.path().join("log"));
        let mut command = server_command(model.path(), &state);
        command.log = Some(log);
        let program = &mut command.program;
        program.args(["--metrics", "127.0.0.1:0", "--log-format", "json"]);
        program.args(arguments).env("PI_LOG", MOST);
        let mut server = ServerProcess::start(command).unwrap();
        let http = server.process.line("metrics on http://").unwrap();
        view::wait_for(|| match respond(&http, "GET", "/readyz") {
            (200, _) => Ok(()),
            _ => Err("it listens, and is not ready"),
        });
        Watched {
            server,
            http,
            model,
            states,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.states.path().join(name)
    }

    /// The name of its model in metrics and logs.
    fn model_name(&self) -> String {
        let name = self.model.path().file_name().unwrap().to_str().unwrap();
        let version = short(&self.model.artifact.digest());
        format!("{name}:{version}")
    }

    /// What it has counted, once that is so: a client may be gone before its operation ends here.
    fn scrape_until(&self, so: impl Fn(&Scrape) -> bool) -> Scrape {
        view::wait_for(|| {
            let scrape = scrape(&self.http);
            so(&scrape).then_some(scrape).ok_or("other counts")
        })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.at("log")).unwrap()
    }
}

/// A model that reveals logits, with names of classes that are nowhere else.
fn with_names() -> Model {
    let named = |index: u64| {
        let model = Model::revealing(100 * index, Reveal::Logits);
        let mut circuit = (*model.artifact.circuit).clone();
        let logits = model.interpreter().plain(&model.input()).unwrap().logits;
        circuit.classes = (0..logits.len()).map(|c| format!("quokka-{c}")).collect();
        // Where the output is no list of classes, they have no names.
        let circuit = verify::circuit(circuit).ok()?;
        Some(Model::of(index, circuit, model.weights.weights))
    };
    (0..).find_map(named).expect("most have")
}

/// A client's command whose log is JSON.
fn logging(mut command: assert_cmd::Command) -> assert_cmd::Command {
    command.args(["--log-format", "json"]).env("PI_LOG", MOST);
    command
}

/// Standard error of a command that succeeds.
fn log_of(command: assert_cmd::Command) -> String {
    let output = logging(command).assert().success().get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

/// The JSON objects of a log with this message.
fn events(log: &str, message: &str) -> Vec<Value> {
    let objects = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    objects
        .filter(|event: &Value| event["message"] == message)
        .collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("{field} in {value}"))
}

/// Bytes received and sent in each phase, as the client's log has it.
fn traffic(logs: &[String]) -> BTreeMap<String, (u64, u64)> {
    let mut traffic = BTreeMap::new();
    for event in logs.iter().flat_map(|log| events(log, "done")) {
        let entry = traffic.entry(text(&event, "operation").to_owned());
        let (received, sent) = entry.or_insert((0, 0));
        *received += event["bytes_in"].as_u64().unwrap();
        *sent += event["bytes_out"].as_u64().unwrap();
    }
    traffic
}

/// A client that says what it likes.
struct Stranger {
    _endpoint: ClientEndpoint,
    quic: quinn::Connection,
}

impl Stranger {
    async fn greet(watched: &Watched, name: &str) -> Stranger {
        let state = watched.at(name);
        std::fs::create_dir_all(&state).unwrap();
        let identity = Identity::load_or_create(&state, &[name]).unwrap();
        let address = watched.server.address.parse().unwrap();
        let trust = Trust::Pinned(watched.server.fingerprint);
        let endpoint = client_endpoint(&identity, trust, address).unwrap();
        let connecting = endpoint.endpoint.connect(address, "localhost").unwrap();
        let stranger = Stranger {
            quic: connecting.await.unwrap(),
            _endpoint: endpoint,
        };
        let hello = Request::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            software: "stranger".into(),
            nonce: [1; 32],
            model: None,
            prefer: Vec::new(),
            probes: Vec::new(),
        });
        let _: Welcome = stranger
            .say(&hello)
            .await
            .receive_control(1 << 14)
            .await
            .unwrap();
        stranger
    }

    async fn say(&self, request: &Request) -> MessageStream {
        let (outgoing, incoming) = self.quic.open_bi().await.unwrap();
        let mut stream = MessageStream::new(outgoing, incoming, Duration::from_secs(60));
        stream.send_control(request).await.unwrap();
        stream
    }

    async fn is_refused(&self, request: &Request, rest: &[u8]) {
        let mut stream = self.say(request).await;
        if !rest.is_empty() {
            stream.send_message(rest.to_vec()).await.unwrap();
        }
        stream.receive_message(1 << 20).await.unwrap_err();
    }
}

/// What every file in a party's state holds, its database aside, which has names and digests alone.
fn contents(state: &Path) -> Vec<Vec<u8>> {
    let mut contents = Vec::new();
    for folder in ["bundles", "setups"] {
        let files = std::fs::read_dir(state.join(folder)).unwrap();
        contents.extend(files.map(|file| std::fs::read(file.unwrap().path()).unwrap()));
    }
    contents
}

/// The bytes of the private key in a state.
fn key_lines(state: &Path) -> Vec<String> {
    let pem = std::fs::read_to_string(state.join("identity.pem")).unwrap();
    let key = pem.split("-----BEGIN PRIVATE KEY-----").nth(1).unwrap();
    let key = key.split("-----END").next().unwrap();
    key.split_whitespace().map(str::to_owned).collect()
}

/// All that must be in no log and in no metric: weights, the input, the states of both parties.
fn secrets(watched: &Watched) -> Secrets {
    let mut secrets = Secrets::default();
    let weights = std::fs::read(watched.model.path().join("model.piw")).unwrap();
    secrets.bytes(&weights);
    secrets.values(&watched.model.input());
    for state in ["server", "client"] {
        for content in contents(&watched.at(state)) {
            secrets.bytes(&content);
        }
        for line in key_lines(&watched.at(state)) {
            secrets.word(line);
        }
    }
    // Headers name the parties and the model.
    secrets.public(&watched.server.fingerprint.0);
    secrets.public(&watched.model.artifact.digest());
    // The name of any class would be an answer.
    secrets.word("quokka".into());
    secrets
}

/// Adds an answer to what must not be seen: its logits, alone and in their order.
fn add_answer(secrets: &mut Secrets, model: &Model, answer: &str) {
    let answer: Value = serde_json::from_str(answer).unwrap();
    let logits = answer["logits"].as_array().unwrap().iter();
    let logits: Vec<i64> = logits.map(|logit| logit.as_i64().unwrap()).collect();
    let scale = f64::from(model.artifact.circuit.output().0).exp2();
    secrets.values(&logits);
    for logit in &logits {
        let words = [logit.to_string(), (*logit as f64 / scale).to_string()];
        for word in words.into_iter().filter(|word| word.len() >= 6) {
            secrets.word(word);
        }
    }
}

/// Everything in one run, from which two things follow: the counts, and that nothing is told.
#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_and_nothing_secret_is_told() {
    #[cfg(feature = "otel")]
    let (collector, url) = collector::Collector::start().await;
    #[cfg(feature = "otel")]
    let arguments = ["--max-bundles", "3", "--otlp", &url];
    #[cfg(not(feature = "otel"))]
    let arguments = ["--max-bundles", "3"];
    let watched = Watched::start(&arguments);
    let model = watched.model_name();
    let state = watched.at("client");
    let of = |labels: &str| labels.replace('$', &model);
    assert_eq!(
        respond(&watched.http, "GET", "/healthz"),
        (200, "alive\n".into())
    );
    assert_eq!(
        respond(&watched.http, "GET", "/readyz"),
        (200, "ready\n".into())
    );

    let mut logs = vec![log_of(prepare(&state, &watched.server, 3))];
    let mut secrets = secrets(&watched);
    let mut infer = client(&state);
    infer.args(["infer", "--json"]).arg(&watched.model.file);
    let output = logging(infer).assert().success().get_output().clone();
    logs.push(String::from_utf8(output.stderr).unwrap());
    add_answer(
        &mut secrets,
        &watched.model,
        &String::from_utf8(output.stdout).unwrap(),
    );

    // What the client counts is what the server counts.
    let gone = |scrape: &Scrape| scrape.get("pianissimo_connections") == 0.0;
    let at_rest = of("pianissimo_bundles_at_rest{model=\"$\"}");
    let honest = watched.scrape_until(|scrape| gone(scrape) && scrape.find(&at_rest) == Some(2.0));
    let counted = traffic(&logs);
    let phases: BTreeSet<&str> = counted.keys().map(String::as_str).collect();
    assert_eq!(
        phases,
        BTreeSet::from(["artifact", "hello", "infer", "prepare", "setup"])
    );
    for (phase, (received, sent)) in &counted {
        let labels = of(&format!("{{phase=\"{phase}\",model=\"$\"}}"));
        let bytes = |what: &str| honest.get(&format!("pianissimo_{what}_bytes_total{labels}"));
        assert_eq!(bytes("received"), *sent as f64, "{phase}");
        assert_eq!(bytes("sent"), *received as f64, "{phase}");
    }
    for (series, count) in [
        ("pianissimo_bundles_made_total{model=\"$\"}", 3.0),
        ("pianissimo_bundles_spent_total{model=\"$\"}", 1.0),
        ("pianissimo_bundles_at_rest{model=\"$\"}", 2.0),
        ("pianissimo_bundles_at_rest{model=\"other\"}", 0.0),
        ("pianissimo_connections_accepted_total", 2.0),
    ] {
        assert_eq!(honest.get(&of(series)), count, "{series}");
    }

    // Refusals, strangers, and a client that breaks off.
    let refused = complaint(&mut logging(prepare(&state, &watched.server, 2)));
    logs.push(refused.clone());
    let stranger = Stranger::greet(&watched, "stranger").await;
    stranger.is_refused(&Request::Infer, b"too short").await;
    let held = Vec::new();
    let (count, first_index) = (1, 0);
    let without_keys = Request::Prepare(Prepare {
        count,
        first_index,
        held,
    });
    stranger.is_refused(&without_keys, b"").await;
    let breaking = Stranger::greet(&watched, "breaking").await;
    let _unanswered = breaking.say(&Request::Setup).await;
    let begun = "pianissimo_operations_under_way{phase=\"setup\"}";
    watched.scrape_until(|scrape| scrape.find(begun) == Some(1.0));
    breaking.quic.close(0_u32.into(), b"");
    drop(stranger.quic);

    let all = watched.scrape_until(gone);
    let duration = |labels: &str| {
        let labels = of(labels);
        all.get(&format!(
            "pianissimo_operation_duration_seconds_count{{{labels}}}"
        ))
    };
    for (labels, count) in [
        ("phase=\"hello\",model=\"$\",outcome=\"ok\"", 5.0),
        ("phase=\"artifact\",model=\"$\",outcome=\"ok\"", 1.0),
        ("phase=\"setup\",model=\"$\",outcome=\"ok\"", 1.0),
        ("phase=\"setup\",model=\"$\",outcome=\"lost\"", 1.0),
        ("phase=\"prepare\",model=\"$\",outcome=\"ok\"", 1.0),
        (
            "phase=\"prepare\",model=\"$\",outcome=\"too_many_bundles\"",
            1.0,
        ),
        ("phase=\"prepare\",model=\"$\",outcome=\"no_setup\"", 1.0),
        ("phase=\"infer\",model=\"$\",outcome=\"ok\"", 1.0),
        ("phase=\"infer\",model=\"$\",outcome=\"misbehaved\"", 1.0),
    ] {
        assert_eq!(duration(labels), count, "{labels}");
    }
    for part in ["mark", "compute", "wait"] {
        let labels = of(&format!("{{part=\"{part}\",model=\"$\"}}"));
        let series = format!("pianissimo_infer_part_duration_seconds_count{labels}");
        assert_eq!(all.get(&series), 1.0, "{part}");
    }
    assert_eq!(all.get("pianissimo_connections_accepted_total"), 5.0);
    assert_eq!(all.get("pianissimo_bundles_given_up_total"), 0.0);
    let memory = |what: &str| all.get(&format!("pianissimo_memory_{what}_bytes"));
    assert_eq!(memory("left"), memory("exchanges"));
    assert!(memory("exchanges") < memory("budget"));
    assert!(all.get("process_cpu_seconds_total") > 0.0);

    // Both logs have an operation under one name, and the user is told that of the one that failed.
    let log = watched.log();
    let at_server: BTreeSet<(String, String)> = [events(&log, "done"), events(&log, "failed")]
        .concat()
        .iter()
        .map(|event| &event["span"])
        .map(|span| (text(span, "request").into(), text(span, "operation").into()))
        .collect();
    let mut at_client = 0;
    for log in &logs {
        for event in [events(log, "done"), events(log, "failed")].concat() {
            let name = (
                text(&event, "request").into(),
                text(&event, "operation").into(),
            );
            assert!(
                at_server.contains(&name),
                "{name:?} is not in {at_server:?}"
            );
            at_client += 1;
        }
    }
    assert_eq!(
        at_client, 8,
        "three greetings, and artifact, setup, two prepare, infer"
    );
    let (_, named) = refused.split_once("request ").expect("the error names it");
    let named = named.split_whitespace().next().unwrap();
    let failed = events(&log, "failed");
    let failed = failed
        .iter()
        .find(|event| text(&event["span"], "request") == named);
    let failed = failed.expect("the server's log has it");
    assert_eq!(text(&failed["span"], "operation"), "prepare");
    assert_eq!(text(&failed["span"], "model"), model);

    // Nothing secret is in any of it; what is planted there is found.
    for content in contents(&watched.at("server")) {
        secrets.bytes(&content);
    }
    assert!(secrets.len() > 1_000_000, "{}", secrets.len());
    let mut told = vec![honest.text.clone(), all.text.clone(), log];
    told.append(&mut logs);
    #[cfg(feature = "otel")]
    told.push(view::wait_for(|| {
        let text = collector.text();
        let complete = text.contains("read bundle") && text.contains("breaks the protocol");
        complete.then_some(text).ok_or("traces are missing")
    }));
    let stored = contents(&watched.at("client")).pop().unwrap();
    let secret: &[u8; 8] = stored.last_chunk().unwrap();
    for text in told {
        assert_eq!(secrets.found_in(&text), Vec::<String>::new());
        for plant in planted(secret) {
            let end = text.len() / 2;
            let end = (end..).find(|&end| text.is_char_boundary(end)).unwrap();
            let planted = format!("{}\n{plant}\n{}", &text[..end], &text[end..]);
            assert!(!secrets.found_in(&planted).is_empty(), "{plant}");
        }
        assert!(!secrets.found_in(&format!("{text} quokka-1")).is_empty());
    }
}

/// A server is ready while its store can be used and it takes connections, and alive all the time.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_store_and_ends_with_the_server() {
    let mut watched = Watched::start(&[]);
    let http = watched.http.clone();
    let ready = || respond(&http, "GET", "/readyz");
    assert_eq!(ready(), (200, "ready\n".into()));
    let (state, away) = (watched.at("server"), watched.at("away"));
    std::fs::rename(&state, &away).unwrap();
    let (status, reason) = ready();
    assert_eq!(status, 503);
    assert!(reason.contains("store.redb"), "{reason}");
    assert_eq!(respond(&http, "GET", "/healthz").0, 200);
    let failed = scrape(&http);
    assert_eq!(failed.get("pianissimo_store_up"), 0.0);
    let errors = failed.get("pianissimo_store_errors_total{kind=\"file\"}");
    assert_eq!(errors, 2.0, "one for each question");
    std::fs::rename(&away, &state).unwrap();
    assert_eq!(ready(), (200, "ready\n".into()));

    // An operation under way keeps it from ending at once.
    let stranger = Stranger::greet(&watched, "stranger").await;
    let _unanswered = stranger.say(&Request::Setup).await;
    let begun = "pianissimo_operations_under_way{phase=\"setup\"}";
    watched.scrape_until(|scrape| scrape.find(begun) == Some(1.0));
    let id = watched.server.process.child.id().to_string();
    let kill = std::process::Command::new("kill").arg(&id).status();
    assert!(kill.unwrap().success());
    view::wait_for(|| match ready() {
        (503, reason) if reason == "shutting down\n" => Ok(()),
        _ => Err("not shutting down"),
    });
    assert_eq!(respond(&http, "GET", "/healthz").0, 200);
    stranger.quic.close(0_u32.into(), b"");
    let status = watched.server.process.child.wait().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_requests_are_refused_and_slow_clients_cut_off() {
    let watched = Watched::start(&[]);
    let http = &watched.http;
    assert_eq!(respond(http, "GET", "/").0, 404);
    assert_eq!(respond(http, "GET", "/metrics/").0, 404);
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(respond(http, "POST", path).0, 405);
        assert_eq!(respond(http, "HEAD", path).0, 405);
    }
    let answer = get(http, "GET /metrics?name=x HTTP/1.1\r\nHost: x\r\n\r\n");
    let head = answer
        .split("\r\n\r\n")
        .next()
        .unwrap()
        .to_ascii_lowercase();
    let format = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(
        head.starts_with("http/1.1 200") && head.contains(format),
        "{head}"
    );
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(get(http, &long).starts_with("HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(100));
    assert!(get(http, &many).starts_with("HTTP/1.1 431"));
    assert!(get(http, "\0\0 nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    // A request that never ends is ended, and so are all beyond the limit at once.
    let address: std::net::SocketAddr = http.parse().unwrap();
    let slow: Vec<_> = (0..16)
        .map(|_| std::net::TcpStream::connect(address).unwrap())
        .collect();
    view::wait_for(
        || match get(http, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") {
            answer if answer.is_empty() => Ok(()),
            _ => Err("more than the limit are served"),
        },
    );
    for mut stream in slow {
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    }
    assert_eq!(respond(http, "GET", "/healthz").0, 200);
}

#[cfg(not(feature = "otel"))]
#[test]
fn a_build_without_traces_says_so() {
    let (model, state) = (Model::random(1), tempfile::tempdir().unwrap());
    let mut server = assert_cmd::Command::new(env!("CARGO_BIN_EXE_pi-server"));
    server.arg("--model").arg(model.path());
    server.arg("--state").arg(state.path());
    let text = complaint(server.args(["--otlp", "http://127.0.0.1:4318"]));
    let advice = "this build has no OpenTelemetry; build with --features otel";
    assert!(text.contains(advice), "{text}");
}
