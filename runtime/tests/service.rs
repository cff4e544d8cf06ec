//! A server as its operator runs it: several models that change while it runs, clients with limits,
//! an authority for certificates, and a configuration in a file.

mod common;

use assert_cmd::Command;
use common::{Model, bundles, client, complaint, count};
use pi_ir::interpret::label;
use pi_runtime::command::child::{ChildProcess, ServerProcess};
use pi_runtime::store::BundleState;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for a server to see that files have changed, which it looks at every two seconds.
const SEEN: Duration = Duration::from_secs(60);

fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
}

/// Directories of a server and its client.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        Place { directory }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.at(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Puts the files of a model under `models`, as one step.
    fn install(&self, model: &Model, name: &str) {
        let (hidden, path) = (self.at("models/.new"), self.at("models").join(name));
        std::fs::create_dir_all(&hidden).unwrap();
        for file in ["model.pia", "model.piw"] {
            std::fs::copy(model.path().join(file), hidden.join(file)).unwrap();
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::rename(hidden, path).unwrap();
    }

    /// A server with these options, its state, and a free port.
    fn serve(&self, options: &[&str]) -> ServerProcess {
        self.serve_at("127.0.0.1:0", "server", options)
    }

    /// A server with this address, its state in this directory, and these options.
    fn serve_at(&self, listen: &str, state: &str, options: &[&str]) -> ServerProcess {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pi-server"));
        command
            .args(["--listen", listen, "--state"])
            .arg(self.at(state));
        command.args(options);
        let patience = Duration::from_secs(120);
        let log = Some(self.at("log"));
        let mut process = ChildProcess::start("server", command, log, patience).unwrap();
        ServerProcess {
            fingerprint: process.line("fingerprint ").unwrap().parse().unwrap(),
            address: process.line("listening on ").unwrap(),
            process,
        }
    }

    /// A server of all that is in `models`.
    fn serve_models(&self, options: &[&str]) -> ServerProcess {
        let models = self.at("models");
        let all = [&["--models", models.to_str().unwrap()], options].concat();
        self.serve(&all)
    }

    fn client(&self) -> Command {
        client(&self.at("client"))
    }

    fn prepare(&self, server: &ServerProcess, number: u32, options: &[&str]) -> Command {
        let mut command = common::prepare(&self.at("client"), server, number);
        command.args(options);
        command
    }

    /// The class that the client gets for the model's example.
    fn infer(&self, model: &Model, options: &[&str]) -> usize {
        let mut command = self.client();
        command
            .args(["infer", "--json"])
            .args(options)
            .arg(&model.file);
        let output = command.assert().success();
        let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["class_index"].as_u64().unwrap() as usize
    }

    /// What `pi-client models --json` lists: name and version, and the object.
    fn models(&self, options: &[&str]) -> Vec<(String, serde_json::Value)> {
        let mut command = self.client();
        let output = command
            .args(["models", "--json"])
            .args(options)
            .assert()
            .success();
        let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        let objects = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let named = objects.map(|object: serde_json::Value| {
            let part = |key: &str| object[key].as_str().unwrap().to_owned();
            (format!("{}:{}", part("name"), part("version")), object)
        });
        named.collect()
    }

    /// Waits until the models are these, the current ones first of each name.
    fn until_models_are(&self, expected: &[(&str, bool)]) {
        let started = Instant::now();
        loop {
            let listed = self.models(&[]);
            let found: Vec<(&str, bool)> = listed
                .iter()
                .map(|(name, object)| (name.as_str(), object["current"].as_bool().unwrap()))
                .collect();
            if found == expected {
                return;
            }
            assert!(
                started.elapsed() < SEEN,
                "{found:?} instead of {expected:?}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.at("log")).unwrap()
    }

    fn identity(&self) -> String {
        let status = self.client().arg("status").assert().success();
        let text = String::from_utf8(status.get_output().stdout.clone()).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("identity   "));
        line.unwrap().to_owned()
    }
}

/// Models whose examples have another shape, or another label, so that one cannot pass for another.
fn models() -> [Model; 2] {
    let first = Model::random(1);
    let differs = |other: &Model| other.artifact.digest() != first.artifact.digest();
    let second = (2..).map(Model::random).find(differs).unwrap();
    [first, second]
}

fn expected(model: &Model) -> usize {
    label(&model.interpreter().plain(&model.input()).unwrap().logits)
}

#[test]
fn a_client_chooses_among_the_models_of_a_server() {
    let ([one, other], place) = (models(), Place::new());
    place.install(&one, "one");
    place.install(&other, "other");
    let server = place.serve_models(&[]);
    let trust = [
        "--server",
        &server.address,
        "--fingerprint",
        &server.fingerprint.to_string(),
    ];
    let listed = place.models(&trust);
    let names: Vec<&str> = listed
        .iter()
        .map(|(_, o)| o["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["one", "other"]);
    for (model, (_, object)) in [&one, &other].iter().zip(&listed) {
        let artifact = model.artifact.encode().len();
        assert_eq!(object["artifact_bytes"], artifact as u64);
        assert_eq!(
            object["reveals"],
            model.artifact.circuit.output().1.to_string()
        );
    }
    let text = complaint(&mut place.prepare(&server, 1, &[]));
    says(
        &text,
        &[
            "a choice among several models",
            "--model NAME",
            "pi-client models",
        ],
    );
    let text = complaint(&mut place.prepare(&server, 1, &["--model", "third"]));
    says(
        &text,
        &["a model that it does not have", "pi-client models"],
    );
    place
        .prepare(&server, 1, &["--model", "one"])
        .assert()
        .success();
    place
        .prepare(&server, 2, &["--model", "other"])
        .assert()
        .success();
    assert_eq!(place.infer(&one, &["--model", "one"]), expected(&one));
    // Without a name, the model with bundles.
    assert_eq!(place.infer(&other, &[]), expected(&other));
    let status = place.client().args(["status", "--json"]).assert().success();
    let status: serde_json::Value = serde_json::from_slice(&status.get_output().stdout).unwrap();
    let of_models = status["servers"][0]["models"].as_array().unwrap().clone();
    let ready: Vec<_> = of_models
        .iter()
        .map(|m| (&m["name"], &m["ready"]))
        .collect();
    assert_eq!(ready.len(), 2, "{ready:?}");
    assert_eq!((ready[0].0, ready[0].1), (&"other".into(), &1.into()));
    assert_eq!((ready[1].0, ready[1].1), (&"one".into(), &0.into()));
    // Bytes that a bundle takes, and that its exchange moves, are what the list says.
    let listed = place.models(&[]);
    assert_eq!(listed.len(), 2);
}

#[test]
fn a_default_model_is_for_clients_that_name_none() {
    let ([one, other], place) = (models(), Place::new());
    let (a, b) = (one.path().to_str().unwrap(), other.path().to_str().unwrap());
    let (a, b) = (format!("one={a}"), format!("other={b}"));
    let server = place.serve(&["--model", &a, "--model", &b, "--default-model", "other"]);
    let output = place.prepare(&server, 1, &[]).assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    says(&text, &["prepared for model other:"]);
    assert_eq!(place.infer(&other, &[]), expected(&other));
}

#[test]
fn a_new_version_is_served_beside_the_old_one_until_its_bundles_are_spent() {
    let ([old, new], place) = (models(), Place::new());
    place.install(&old, "net/9");
    let server = place.serve_models(&[]);
    place.prepare(&server, 2, &[]).assert().success();
    place.until_models_are(&[("net:9", true)]);
    place.install(&new, "net/10");
    place.until_models_are(&[("net:10", true), ("net:9", false)]);
    let text = complaint(&mut place.prepare(&server, 1, &["--model", "net:9"]));
    says(&text, &["another model"]);
    // The files of the old version may go.
    std::fs::remove_dir_all(place.at("models/net/9")).unwrap();
    place.prepare(&server, 1, &[]).assert().success();
    assert_eq!(place.infer(&old, &["--model", "net:9"]), expected(&old));
    place.until_models_are(&[("net:10", true), ("net:9", false)]);
    assert_eq!(place.infer(&old, &["--model", "net:9"]), expected(&old));
    place.until_models_are(&[("net:10", true)]);
    assert_eq!(place.infer(&new, &[]), expected(&new));
}

#[test]
fn a_model_that_is_taken_away_answers_no_more_and_a_broken_one_changes_nothing() {
    let ([one, other], place) = (models(), Place::new());
    place.install(&one, "one");
    place.install(&other, "other");
    let server = place.serve_models(&[]);
    place
        .prepare(&server, 2, &["--model", "one"])
        .assert()
        .success();
    // A version whose weights are cut short.
    let weights = place.at("models/other/model.piw");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(place.at("models/other/model.pia"), b"no artifact").unwrap();
    signal(&server, "-HUP");
    let started = Instant::now();
    while !place.log().contains("cannot be loaded") {
        assert!(started.elapsed() < SEEN, "{}", place.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let names: Vec<String> = place
        .models(&[])
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names.len(), 2, "what was served stays: {names:?}");
    assert_eq!(place.infer(&one, &[]), expected(&one));
    std::fs::remove_dir_all(place.at("models/one")).unwrap();
    let started = Instant::now();
    while place.models(&[]).len() != 1 {
        assert!(started.elapsed() < SEEN, "{}", place.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    let infer = ["infer", "--model", "one", one.file.to_str().unwrap()];
    let text = complaint(place.client().args(infer));
    says(&text, &["a model that it does not have"]);
}

fn signal(server: &ServerProcess, signal: &str) {
    let id = server.process.child.id().to_string();
    let status = std::process::Command::new("kill")
        .args([signal, &id])
        .status();
    assert!(status.unwrap().success());
}

/// The files of bundles that a server keeps.
fn server_halves(place: &Place) -> usize {
    std::fs::read_dir(place.at("server/bundles"))
        .unwrap()
        .count()
}

#[test]
fn limits_are_those_of_the_client_and_say_when_they_end() {
    let ([model, _], place) = (models(), Place::new());
    let clients = place.at("clients.toml");
    let add = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pi-server"));
        command
            .args(["clients", "--clients", clients.to_str().unwrap()])
            .args(more);
        command
    };
    let identity = place.identity();
    let limits = ["--max-answers-per-day", "1", "--max-bundles", "3"];
    let new = [&["add", &identity, "--name", "ward 3"], &limits[..]].concat();
    add(&new).assert().success();
    says(&complaint(&mut add(&new)), &["in the list already"]);
    let name = format!("net={}", model.path().display());
    let listed = ["--clients", clients.to_str().unwrap(), "--model", &name];
    let server = place.serve(&listed);
    let text = complaint(&mut place.prepare(&server, 4, &[]));
    says(&text, &["more bundles than it keeps for one client"]);
    place.prepare(&server, 3, &[]).assert().success();
    assert_eq!(place.infer(&model, &[]), expected(&model));
    let infer = ["infer", model.file.to_str().unwrap()];
    let text = complaint(place.client().args(infer));
    says(
        &text,
        &["in a day", "the next day begins in", " s", "in UTC"],
    );
    let (_, object) = &place.models(&[])[0];
    assert_eq!(object["answers_left_today"], 0);
    assert_eq!(object["most_bundles"], 3);
    let text = add(&["list"]).assert().success();
    let text = String::from_utf8(text.get_output().stdout.clone()).unwrap();
    says(
        &text,
        &[
            "ward 3",
            &identity,
            "bundles 3",
            "answers-per-day 1",
            "others: not served",
        ],
    );

    // Whoever is revoked is served no more, and nothing of it is kept.
    assert_eq!(server_halves(&place), 2, "a refusal costs no bundle");
    add(&["revoke", "ward 3"]).assert().success();
    let started = Instant::now();
    while server_halves(&place) > 0 {
        assert!(started.elapsed() < SEEN, "{}", place.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let text = complaint(place.client().args(infer));
    says(&text, &["not on its list"]);
    says(&complaint(&mut add(&new)), &["was revoked"]);
    let setups = std::fs::read_dir(place.at("server/setups"))
        .unwrap()
        .count();
    assert_eq!(setups, 0, "its keys are erased");
}

#[test]
fn bytes_of_a_day_are_counted_and_the_operation_that_passes_the_limit_ends() {
    let ([model, _], place) = (models(), Place::new());
    let path = model.path().to_str().unwrap();
    let server = place.serve(&["--model", path, "--max-bytes-per-day", "1M"]);
    // Keys alone are more than a megabyte.
    place.prepare(&server, 1, &[]).assert().failure();
    let text = complaint(&mut place.prepare(&server, 1, &[]));
    says(
        &text,
        &[
            "more bytes than it exchanges with one client in a day",
            "in UTC",
        ],
    );
}

#[test]
fn a_client_may_use_only_the_models_it_is_listed_for() {
    let ([one, other], place) = (models(), Place::new());
    place.install(&one, "one");
    place.install(&other, "other");
    let identity = place.identity();
    let clients = place.write(
        "clients.toml",
        format!("[[client]]\nfingerprint = \"{identity}\"\nmodels = [\"other\"]\n"),
    );
    let server = place.serve_models(&["--clients", clients.to_str().unwrap()]);
    let text = complaint(&mut place.prepare(&server, 1, &["--model", "one"]));
    says(&text, &["a model that this client may not use"]);
    place.prepare(&server, 1, &[]).assert().success();
    assert_eq!(place.infer(&other, &[]), expected(&other));
    let listed = place.models(&[]);
    assert_eq!(listed.len(), 1, "others are not shown: {listed:?}");
}

/// An authority as an operator has it.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Authority { issuer, pem }
    }

    /// Writes a certificate for a name with a new key, and returns the paths of both.
    fn issue(&self, directory: &Path, file: &str, name: SanType) -> [String; 2] {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![name];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = ["pem", "key"].map(|end| directory.join(format!("{file}.{end}")));
        std::fs::write(&paths[0], certificate.pem()).unwrap();
        std::fs::write(&paths[1], key.serialize_pem()).unwrap();
        paths.map(|path| path.to_str().unwrap().to_owned())
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

#[test]
fn certificates_of_an_authority_are_renewed_without_a_restart_and_without_loss() {
    let ([model, _], place) = (models(), Place::new());
    let authority = Authority::new();
    let ca = place.write("ca.pem", &authority.pem);
    let ca = ca.to_str().unwrap();
    let issue = |file: &str, name: SanType| authority.issue(place.directory.path(), file, name);
    let [cert, key] = issue("server", dns("localhost"));
    let path = model.path().to_str().unwrap();
    let clients = place.write(
        "clients.toml",
        "[[client]]\ncertificate-name = \"uri:spiffe://example/ward3\"\n",
    );
    let server = place.serve(&[
        "--model",
        path,
        "--cert",
        &cert,
        "--key",
        &key,
        "--client-ca",
        ca,
        "--clients",
        clients.to_str().unwrap(),
    ]);
    let port = server.address.rsplit(':').next().unwrap();
    let address = format!("localhost:{port}");
    let ward = || SanType::URI("spiffe://example/ward3".try_into().unwrap());
    let with = |[cert, key]: [String; 2], arguments: &[&str]| {
        let mut command = place.client();
        command
            .args(["--cert", &cert, "--key", &key])
            .args(arguments);
        command
    };
    let prepare = ["prepare", "-n", "3", "--server", &address, "--ca", ca];
    // Nobody without a certificate of the authority, nor with one for another name.
    let text = complaint(place.client().args(prepare));
    says(&text, &["error:"]);
    let text = complaint(&mut with(
        issue("stranger", dns("stranger.example")),
        &prepare,
    ));
    says(&text, &["not on its list"]);
    let first = issue("ward-1", ward());
    with(first, &prepare).assert().success();

    // Both certificates are renewed, with new keys: the bundles are as good as before.
    issue("server", dns("localhost"));
    let started = Instant::now();
    while !place.log().contains("certificates were read again") {
        assert!(started.elapsed() < SEEN, "{}", place.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let second = issue("ward-2", ward());
    let infer = ["infer", model.file.to_str().unwrap(), "--server", &address];
    let text = complaint(&mut with(second.clone(), &infer));
    says(&text, &["the wrong fingerprint"]);
    let vouched = [&infer[..], &["--ca", ca]].concat();
    with(second.clone(), &vouched).assert().success();
    let prepare_one = ["prepare", "-n", "1", "--server", &address, "--ca", ca];
    with(second.clone(), &prepare_one).assert().success();
    // The new certificate is remembered.
    with(second, &infer).assert().success();
    drop(server);
    let halves = bundles(&place.at("client"));
    assert_eq!(count(&halves, BundleState::Spent), 2);
    assert_eq!(count(&halves, BundleState::Ready), 2);
}

#[test]
fn a_server_that_moved_to_the_address_of_another_keeps_its_bundles() {
    let ([model, _], place) = (models(), Place::new());
    let authority = Authority::new();
    let ca = place.write("ca.pem", &authority.pem);
    let serve = |listen: &str, state: &str, certificate: &str| {
        let [cert, key] = authority.issue(place.directory.path(), certificate, dns("localhost"));
        let model = model.path().to_str().unwrap();
        let options = ["--model", model, "--cert", &cert, "--key", &key];
        place.serve_at(listen, state, &options)
    };
    let localhost = |server: &ServerProcess| server.address.replace("127.0.0.1", "localhost");
    let ask = |address: &str, arguments: &[&str]| {
        let mut command = place.client();
        command.args(arguments).args(["--server", address, "--ca"]);
        command.arg(&ca).assert().success();
    };
    let prepare = ["prepare", "-n", "2"];
    let staying = serve("127.0.0.1:0", "staying", "first");
    ask(&localhost(&staying), &prepare);
    let moving = serve("127.0.0.1:0", "moving", "second");
    ask(&localhost(&moving), &prepare);

    // The client meets it where the other was, under a certificate that it never saw.
    let listen = staying.address.clone();
    drop((staying, moving));
    let moved = serve(&listen, "moving", "third");
    ask(&localhost(&moved), &["infer", model.file.to_str().unwrap()]);
    drop(moved);
    let halves = bundles(&place.at("client"));
    assert_eq!(count(&halves, BundleState::Ready), 3);
    assert_eq!(count(&halves, BundleState::Spent), 1);
}

#[test]
fn a_configuration_in_a_file_gives_way_to_the_environment_and_to_options() {
    let ([model, _], place) = (models(), Place::new());
    let text = format!(
        "model = [\"net={}\"]\nstate = \"{}\"\nlisten = \"127.0.0.1:0\"\n\
         max-bundles = 7\nmax-answers = 5\nunbound = true\n",
        model.path().display(),
        place.at("server").display()
    );
    let config = place.write("server.toml", text);
    let answers = |environment: &[(&str, &str)], options: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pi-server"));
        command.arg("--config").arg(&config).args(options);
        command.envs(environment.iter().copied());
        let patience = Duration::from_secs(60);
        let mut process = ChildProcess::start("server", command, None, patience).unwrap();
        let line = process.line("answers ").unwrap();
        process.line("listening on ").unwrap();
        line.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(answers(&[], &[]), "5");
    let variable = [("PI_SERVER_MAX_ANSWERS", "6")];
    assert_eq!(answers(&variable, &[]), "6");
    assert_eq!(answers(&variable, &["--max-answers", "8"]), "8");
}

#[test]
fn all_faults_of_a_configuration_are_told_at_once() {
    let ([model, other], place) = (models(), Place::new());
    let check = |path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pi-server"));
        command.arg("check").arg(path);
        command.env("PI_SERVER_MAX_ANSWERS", "nonsense");
        command
    };
    place.install(&model, "good");
    place.install(&other, "broken");
    let weights = place.at("models/broken/model.piw");
    std::fs::write(weights, b"no weights").unwrap();
    place.write("clients.toml", "[[client]]\nfingerprint = \"abc\"\n");
    let models = place.at("models");
    let clients = place.at("clients.toml");
    let faulty = place.write(
        "faulty.toml",
        format!(
            "models = \"{}\"\nclients = \"{}\"\nmax-clients = 0\nport = 4433\n\
             cert = \"absent.pem\"\nkey = \"absent.key\"\nlisten = \"127.0.0.1:0\"\n",
            models.display(),
            clients.display()
        ),
    );
    let text = complaint(&mut check(&faulty));
    says(
        &text,
        &[
            "max-clients",
            "\"port\" is no key",
            "broken",
            "client 1",
            "absent.key",
            "faulty.toml",
        ],
    );
    std::fs::remove_dir_all(place.at("models/broken")).unwrap();
    place.write(
        "clients.toml",
        "serve-others = true\n[model.goood]\nanswers = 3\n",
    );
    let text = format!(
        "models = \"{}\"\nclients = \"{}\"\n",
        models.display(),
        clients.display()
    );
    let sound = place.write("sound.toml", text);
    says(&complaint(&mut check(&sound)), &["no model named goood"]);
    place.write(
        "clients.toml",
        "serve-others = true\n[model.good]\nanswers = 3\n",
    );
    let output = check(&sound).assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    says(&text, &["model good:", "nothing is wrong"]);
}
