//! What makes `pi-client` pleasant to use and safe to script: many files at once, servers that are
//! late, full or called by another name, bundles kept ready, and the codes that it all ends with.

mod common;

use assert_cmd::Command;
use common::{
    Model, client, complaint, has_one_label, kill, prepare, server_command, start_server,
    start_server_at,
};
use pi_ir::Reveal;
use pi_ir::interpret::label;
use pi_runtime::client::{Client, Patience, TrustOptions};
use pi_runtime::command::child::ServerProcess;
use pi_runtime::command::exit;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Standard output and standard error of a command that ends with this code.
fn ends(command: &mut Command, code: u8) -> (String, String) {
    let output = command.assert().code(i32::from(code)).get_output().clone();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
}

fn objects(text: &str) -> Vec<Value> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

/// Bundles that are ready and spent, as `pi-client status` counts them.
fn ready_and_spent(state: &Path) -> (u64, u64) {
    let (text, _) = ends(client(state).args(["status", "--json"]), 0);
    let json: Value = serde_json::from_str(&text).unwrap();
    let count = |name: &str| json["servers"][0][name].as_u64().unwrap_or(0);
    (count("ready"), count("spent"))
}

fn port_of(server: &ServerProcess) -> &str {
    server.address.rsplit(':').next().unwrap()
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

fn terminate(process: &Child, signal: &str) {
    let id = process.id().to_string();
    let killed = std::process::Command::new("kill")
        .args([signal, &id])
        .status();
    assert!(killed.unwrap().success());
}

/// A folder of files that the model can take in formats that keep every pixel, of some that it
/// cannot, and of others.
fn folder_of(model: &Model, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let image = image::open(&model.file).unwrap();
    for name in ["a.png", "b.bmp", "c.tiff", "d.webp"] {
        // WebP has no grey.
        let image = match name {
            "d.webp" => image.to_rgb8().into(),
            _ => image.clone(),
        };
        image.save(folder.join(name)).unwrap();
    }
    let jpeg = folder.join("e cut.jpg");
    image.to_rgb8().save(&jpeg).unwrap();
    let bytes = std::fs::read(&jpeg).unwrap();
    std::fs::write(&jpeg, &bytes[..bytes.len() * 9 / 10]).unwrap();
    std::fs::write(folder.join("f.png"), "Dear reader").unwrap();
    std::fs::write(folder.join("notes.txt"), "no input").unwrap();
}

/// One connection, one bundle for each answer, none for a file without, and a line for each file in
/// its order.
#[test]
fn many_files_are_answered_on_one_connection() {
    let models = (0..).map(|index| Model::revealing(100 * index, Reveal::Label));
    let model = { models }.find(has_one_label).expect("most have");
    let states = tempfile::tempdir().unwrap();
    let at = |name: &str| states.path().join(name);
    let mut command = server_command(model.path(), states.path());
    command.log = Some(at("log"));
    let server = ServerProcess::start(command).unwrap();
    let state = at("client");
    prepare(&state, &server, 9).assert().success();
    folder_of(&model, &at("folder"));
    let expected = label(&model.interpreter().plain(&model.input()).unwrap().logits);

    let files = [
        at("folder/*.png"),
        at("folder"),
        at("absent.webp"),
        at("*.gif"),
    ];
    let (text, notes) = ends(
        client(&state).args(["infer", "--json"]).args(&files),
        exit::FILES,
    );
    let lines = objects(&text);
    let file = |line: &Value| {
        let path = line["file"].as_str().unwrap().to_owned();
        Path::new(&path)
            .strip_prefix(states.path())
            .unwrap()
            .display()
            .to_string()
    };
    let names: Vec<String> = lines.iter().map(file).collect();
    let order = [
        "*.gif",
        "folder/a.png",
        "folder/f.png",
        "folder/b.bmp",
        "folder/c.tiff",
        "folder/d.webp",
        "folder/e cut.jpg",
        "absent.webp",
    ];
    assert_eq!(names, order);
    let mut bundles = BTreeSet::new();
    for (line, name) in lines.iter().zip(&names) {
        let reason = match name.as_str() {
            "*.gif" => "no file matches",
            "folder/f.png" => "neither a PNG",
            "folder/e cut.jpg" => "cut short",
            "absent.webp" => "cannot read",
            _ => {
                assert_eq!(line["class_index"], expected, "{line}");
                assert!(line.get("error").is_none(), "{line}");
                assert!(bundles.insert(line["bundle"].as_str().unwrap().to_owned()));
                continue;
            }
        };
        says(line["error"].as_str().unwrap(), &[reason]);
        assert!(line["class_index"].is_null(), "{line}");
    }
    assert_eq!(bundles.len(), 4);
    assert_eq!(ready_and_spent(&state), (5, 4));
    says(
        &notes,
        &[
            "2 repeated names left out",
            "4 answered, 4 without an answer",
        ],
    );
    // One connection to prepare, and one for all answers.
    let log = std::fs::read_to_string(at("log")).unwrap();
    assert_eq!(log.matches(" connected").count(), 2, "{log}");

    // The same as a table, and as CSV in a file.
    let files = [
        at("folder/a.png"),
        at("folder/e cut.jpg"),
        at("folder/b.bmp"),
    ];
    let (text, _) = ends(client(&state).arg("infer").args(&files), exit::FILES);
    let rows: Vec<&str> = text.lines().collect();
    assert_eq!(rows.len(), 4, "{text}");
    let column = rows[0].find("answer").unwrap();
    assert!(
        rows.iter().all(|row| row[..column].ends_with("  ")),
        "{text}"
    );
    says(rows[2], &["e cut.jpg", "error: ", "cut short"]);
    let width = rows[0].len();
    assert!(rows[1].len() == width && rows[3].len() == width, "{text}");
    let out = at("answers.csv");
    let mut infer = client(&state);
    infer.arg("infer").args(&files).arg("--out").arg(&out);
    let (text, _) = ends(&mut infer, exit::FILES);
    assert_eq!(text, "");
    let text = std::fs::read_to_string(&out).unwrap();
    let rows: Vec<&str> = text.lines().collect();
    assert_eq!(
        rows[0],
        "file,answer,class_index,out_of_range,seconds,error"
    );
    assert_eq!(rows.len(), 4, "{text}");
    says(rows[1], &[&format!(",{expected},false,")]);
    says(rows[2], &["e cut.jpg,,,,,", "cut short"]);
    assert_eq!(ready_and_spent(&state), (1, 8));

    // A table has its header first, whatever comes first, and one without answers as well.
    let broken = [at("folder/f.png"), at("folder/e cut.jpg")];
    let (text, _) = ends(client(&state).arg("infer").args(&broken), exit::FILES);
    let rows: Vec<&str> = text.lines().collect();
    assert!(rows.len() == 3 && rows[0].starts_with("file "), "{text}");
    says(rows[1], &["f.png", "error: "]);

    // A place where nothing can be written costs nothing.
    let mut infer = client(&state);
    infer
        .arg("infer")
        .args(&files)
        .arg("--out")
        .arg(at("absent/answers.csv"));
    let (_, text) = ends(&mut infer, exit::FAILURE);
    says(&text, &["cannot be written to", "absent"]);
    // Nor does a reader that is gone cost more than the answer it does not read.
    let full = Path::new("/dev/full");
    if full.exists() {
        let mut infer = client(&state);
        infer
            .args(["infer", "--json"])
            .args(&files)
            .arg("--out")
            .arg(full);
        let (_, text) = ends(&mut infer, exit::FAILURE);
        says(&text, &["nothing more is asked"]);
        assert_eq!(ready_and_spent(&state), (0, 9));
    }
}

#[test]
fn too_few_bundles_are_said_before_the_first_is_spent() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = start_server(model.path(), &states.path().join("server"));
    let state = states.path().join("client");
    prepare(&state, &server, 1).assert().success();
    let folder = states.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for name in ["1.png", "2.png", "3.png"] {
        std::fs::copy(&model.file, folder.join(name)).unwrap();
    }
    let mut infer = client(&state);
    infer.args(["infer", "--json"]).arg(&folder);
    let (text, notes) = ends(&mut infer, exit::NOT_PREPARED);
    let lines = objects(&text);
    assert!(lines[0]["class_index"].is_u64(), "{text}");
    for line in &lines[1..] {
        says(
            line["error"].as_str().unwrap(),
            &["no answer", "no bundle left"],
        );
        says(line["remedy"].as_str().unwrap(), &["pi-client prepare"]);
    }
    assert_eq!(lines.len(), 3);
    says(
        &notes,
        &[
            "3 files, and 1 bundle ready: 2 will stay",
            "-n 2",
            "no bundle left",
        ],
    );
}

/// Nothing that a file lacks is found out at the price of a bundle.
#[test]
fn a_file_that_is_cut_short_is_refused_unless_parts_are_allowed() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = start_server(model.path(), &states.path().join("server"));
    let state = states.path().join("client");
    prepare(&state, &server, 1).assert().success();
    let path = states.path().join("half.jpg");
    let picture = image::RgbImage::from_fn(143, 97, |x, y| image::Rgb([x as u8, y as u8, 9]));
    picture.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let (_, text) = ends(client(&state).arg("infer").arg(&path), exit::FILES);
    says(&text, &["half.jpg", "cut short", "--allow-partial"]);
    assert_eq!(ready_and_spent(&state), (1, 0));
    let mut infer = client(&state);
    let (_, text) = ends(infer.args(["infer", "--allow-partial"]).arg(&path), 0);
    says(&text, &["note: the file is cut short"]);
}

#[test]
fn every_kind_of_end_has_a_code_of_its_own() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let state = states.path().join("client");
    let image = model.file.to_str().unwrap();
    ends(client(&state).args(["infer", image]), exit::NOT_PREPARED);
    ends(client(&state).args(["infer", "absent.png"]), exit::FILES);
    ends(client(&state).args(["infer", "--nonsense"]), 2);
    ends(client(&state).args(["infer", image, "--json", "--csv"]), 2);
    ends(
        client(&state).args(["prepare", "--server", "127.0.0.1:1"]),
        exit::NOT_TRUSTED,
    );
    let address = format!("127.0.0.1:{}", free_port());
    let none = ["prepare", "--trust-first-use", "--server", &address];
    ends(client(&state).args(none), exit::UNREACHABLE);
    let unknown = [
        "prepare",
        "--trust-first-use",
        "--server",
        "no-such-host.invalid:1",
    ];
    let (_, text) = ends(client(&state).args(unknown), exit::UNREACHABLE);
    says(&text, &["no address is found", "spelling"]);

    let allowed = states.path().join("allowed");
    std::fs::write(&allowed, "").unwrap();
    let server_state = states.path().join("server");
    let mut command = server_command(model.path(), &server_state);
    command.program.arg("--allow").arg(&allowed);
    let server = ServerProcess::start(command).unwrap();
    ends(&mut prepare(&state, &server, 1), exit::REFUSED);
    let wrong = [
        "prepare",
        "--server",
        &server.address,
        "--fingerprint",
        &"00".repeat(32),
    ];
    ends(client(&state).args(wrong), exit::NOT_TRUSTED);
    let (help, _) = ends(client(&state).args(["infer", "--help"]), 0);
    says(&help, &["Exit codes:", "--allow-partial", "--wait"]);
}

/// Bundles belong to a fingerprint, and `localhost` to both families of addresses.
#[test]
fn a_server_is_found_by_any_of_its_names() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let image = model.file.to_str().unwrap();
    for (listen, name) in [("127.0.0.1:0", "four"), ("[::1]:0", "six")] {
        if UdpSocket::bind(listen).is_err() {
            eprintln!("this machine has no address {listen}");
            continue;
        }
        let state = states.path().join(name);
        let server_state = states.path().join(format!("server {name}"));
        let server = start_server_at(model.path(), &server_state, listen);
        prepare(&state, &server, 3).assert().success();
        let local = format!("localhost:{}", port_of(&server));
        let fingerprint = server.fingerprint.to_string();
        let named = ["infer", image, "--server", &local];
        ends(
            client(&state)
                .args(named)
                .args(["--fingerprint", &fingerprint]),
            0,
        );
        ends(client(&state).args(named), 0);
        ends(
            client(&state).args(["infer", image, "--fingerprint", &fingerprint]),
            0,
        );
        assert_eq!(ready_and_spent(&state), (0, 3));
        prepare(&state, &server, 1).assert().success();

        // Another server at a new name is neither that one nor trusted.
        let other_state = states.path().join(format!("other {name}"));
        let other = start_server_at(model.path(), &other_state, listen);
        let local = format!("localhost:{}", port_of(&other));
        let (_, text) = ends(
            client(&state).args(["infer", image, "--server", &local]),
            exit::NOT_TRUSTED,
        );
        says(
            &text,
            &[
                "none of those",
                &other.fingerprint.to_string(),
                "--fingerprint",
            ],
        );
        let fingerprint = other.fingerprint.to_string();
        let (_, text) = ends(
            client(&state).args([
                "infer",
                image,
                "--server",
                &local,
                "--fingerprint",
                &fingerprint,
            ]),
            exit::NOT_PREPARED,
        );
        says(&text, &["nothing is prepared", &local]);
        assert_eq!(ready_and_spent(&state).0, 1);
        kill(other);
        let (_, text) = ends(
            client(&state)
                .args(["--connect-timeout", "2"])
                .args(["infer", image, "--server", &local]),
            exit::UNREACHABLE,
        );
        says(&text, &["[::1]", "127.0.0.1", "--wait"]);
    }
}

/// What answers at one address of a name is found although another one is silent.
#[test]
fn a_silent_address_does_not_hold_up_the_others() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = start_server(model.path(), &states.path().join("server"));
    let deaf = format!("[::1]:{}", port_of(&server));
    let Ok(_deaf) = UdpSocket::bind(&deaf) else {
        eprintln!("{deaf} is no address of this machine, or is taken");
        return;
    };
    let local = format!("localhost:{}", port_of(&server));
    let fingerprint = server.fingerprint.to_string();
    let mut command = client(&states.path().join("client"));
    command.args(["--connect-timeout", "60", "prepare", "--server", &local]);
    command.args(["--fingerprint", &fingerprint]);
    let started = Instant::now();
    ends(&mut command, 0);
    // Far less than the time that the silent address is given.
    assert!(started.elapsed() < Duration::from_secs(30));
}

/// An outage in the middle costs the batch under way; the rest is made when the server is back.
#[test]
fn preparing_goes_on_after_an_outage_if_asked_to_wait() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let (state, server_state) = (states.path().join("client"), states.path().join("server"));
    let server = start_server(model.path(), &server_state);
    let address = server.address.clone();
    prepare(&state, &server, 1).assert().success();
    let mut long = std::process::Command::new(env!("CARGO_BIN_EXE_pi-client"));
    long.arg("--state").arg(&state).args(["--timeout", "2"]);
    long.args(["prepare", "-n", "40", "--wait"]);
    let mut long = long.stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    kill(server);
    let _server = start_server_at(model.path(), &server_state, &address);
    assert!(long.wait().unwrap().success());
    assert_eq!(ready_and_spent(&state), (41, 0));
}

#[test]
fn a_server_that_is_late_is_waited_for() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let state = states.path().join("client");
    let address = format!("127.0.0.1:{}", free_port());
    let first = ["prepare", "--trust-first-use", "--server", &address];
    let started = Instant::now();
    let (_, text) = ends(
        client(&state).args(first).arg("--wait=1"),
        exit::UNREACHABLE,
    );
    assert!(started.elapsed() < Duration::from_secs(20));
    says(&text, &["waiting: no program listens", &address, "error:"]);
    let (_, text) = ends(client(&state).args(first).arg("--wait=soon"), 2);
    says(&text, &["not a number"]);

    let mut early = std::process::Command::new(env!("CARGO_BIN_EXE_pi-client"));
    early.arg("--state").arg(&state).args(first).arg("--wait");
    let mut early = early.stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(early.stderr.take().unwrap());
    let mut line = String::new();
    notes.read_line(&mut line).unwrap();
    says(&line, &["waiting: no program listens"]);
    let _server = start_server_at(model.path(), &states.path().join("server"), &address);
    assert!(early.wait().unwrap().success());
    // A mistake is no reason to wait.
    let wrong = ["infer", "absent.png", "--wait"];
    ends(client(&state).args(wrong), exit::FILES);
}

#[test]
fn a_full_server_is_queued_for() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server_state = states.path().join("server");
    let mut command = server_command(model.path(), &server_state);
    command.program.args(["--max-clients", "1"]);
    let server = ServerProcess::start(command).unwrap();
    let [first, second] = ["first", "second"].map(|name| states.path().join(name));
    for state in [&first, &second] {
        prepare(state, &server, 1).assert().success();
    }
    let patience = Patience {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(60),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let holder = Client::open(&first, patience).unwrap();
    let (inside, waiting) = std::sync::mpsc::channel();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let address = server.address.clone();
    let holding = runtime.spawn(async move {
        let connecting = holder.connect(&address, &TrustOptions::default()).await;
        let connection = connecting.unwrap();
        inside.send(()).unwrap();
        released.await.unwrap();
        connection.close().await;
    });
    waiting.recv().unwrap();
    let image = model.file.to_str().unwrap();
    let (_, text) = ends(client(&second).args(["infer", image]), exit::REFUSED);
    says(&text, &["as many clients", "--wait"]);
    let mut queued = std::process::Command::new(env!("CARGO_BIN_EXE_pi-client"));
    queued.arg("--state").arg(&second);
    queued
        .args(["infer", image, "--wait"])
        .stdout(Stdio::null());
    let mut queued = queued.stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(queued.stderr.take().unwrap());
    let mut line = String::new();
    notes.read_line(&mut line).unwrap();
    says(&line, &["waiting: ", "as many clients"]);
    release.send(()).unwrap();
    assert!(queued.wait().unwrap().success());
    runtime.block_on(holding).unwrap();
}

/// A server that restarts between two answers costs no bundle.
#[test]
fn a_connection_that_broke_between_two_answers_is_made_anew() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let (state, server_state) = (states.path().join("client"), states.path().join("server"));
    let mut server = start_server(model.path(), &server_state);
    let address = server.address.clone();
    prepare(&state, &server, 2).assert().success();
    let pipe = states.path().join("second.png");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let mut infer = std::process::Command::new(env!("CARGO_BIN_EXE_pi-client"));
    infer.arg("--state").arg(&state).args(["infer", "--json"]);
    infer.arg(&model.file).arg(&pipe);
    let mut infer = infer.stdout(Stdio::piped()).spawn().unwrap();
    let mut answers = BufReader::new(infer.stdout.take().unwrap());
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    assert!(objects(&line)[0]["class_index"].is_u64(), "{line}");
    terminate(&server.process.child, "-TERM");
    assert!(server.process.child.wait().unwrap().success());
    let _server = start_server_at(model.path(), &server_state, &address);
    let bytes = std::fs::read(&model.file).unwrap();
    std::fs::write(&pipe, bytes).unwrap();
    let mut rest = String::new();
    answers.read_to_string(&mut rest).unwrap();
    assert!(objects(&rest)[0]["class_index"].is_u64(), "{rest}");
    assert!(infer.wait().unwrap().success());
    assert_eq!(ready_and_spent(&state), (0, 2));
}

/// Only a model that reveals logits has something to take the softmax of.
#[test]
fn softmax_is_shown_when_asked_for() {
    for reveal in [Reveal::Logits, Reveal::Label] {
        let (model, states) = (Model::revealing(1, reveal), tempfile::tempdir().unwrap());
        let server = start_server(model.path(), &states.path().join("server"));
        let state = states.path().join("client");
        prepare(&state, &server, 2).assert().success();
        let infer = |arguments: &[&str]| {
            let mut command = client(&state);
            command.arg("infer").arg(&model.file).args(arguments);
            ends(&mut command, 0).0
        };
        let json = &objects(&infer(&["--json", "--softmax"]))[0];
        let shares = json["probabilities"].as_array();
        assert_eq!(shares.is_some(), reveal == Reveal::Logits, "{json}");
        if let Some(shares) = shares {
            let sum: f64 = shares.iter().filter_map(Value::as_f64).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{json}");
        }
        let text = infer(&["--softmax"]);
        assert_eq!(text.contains(" %  "), reveal == Reveal::Logits, "{text}");
    }
}

#[test]
fn completions_and_manual_pages_are_printed() {
    let [client, server] = [
        env!("CARGO_BIN_EXE_pi-client"),
        env!("CARGO_BIN_EXE_pi-server"),
    ];
    for (program, option, what) in [
        (client, "allow-partial", "Classifies images"),
        (server, "max-clients", "Serves compiled models"),
    ] {
        let print = |arguments: &[&str]| ends(Command::new(program).args(arguments), 0).0;
        says(&print(&["--help"]), &[what, "completions"]);
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            says(&print(&["completions", shell]), &[option, "completions"]);
        }
        says(&print(&["man"]), &[".TH", "completions"]);
    }
    let page = ends(Command::new(client).args(["man", "infer"]), 0).0;
    says(&page, &[".TH", "allow\\-partial", "Exit codes"]);
    let page = ends(Command::new(server).arg("man"), 0).0;
    says(&page, &["max\\-clients"]);
    let text = complaint(Command::new(client).args(["man", "nonsense"]));
    says(&text, &["no subcommand", "nonsense"]);
    // Without a subcommand a server still needs its model.
    let (_, text) = ends(&mut Command::new(server), 2);
    says(&text, &["--model"]);
}

/// A `pi-client keep` that is killed when this is dropped.
struct Keeper {
    process: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Keeper {
    fn start(state: &Path, arguments: &[&str]) -> Keeper {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pi-client"));
        command.arg("--state").arg(state);
        command
            .args(["keep", "--every", "0.3", "--per-minute", "600"])
            .args(arguments);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        Keeper {
            lines: BufReader::new(process.stdout.take().unwrap()),
            process,
        }
    }

    /// The next line with this text; others are skipped.
    fn line(&mut self, wanted: &str) -> String {
        loop {
            let mut line = String::new();
            let length = self.lines.read_line(&mut line).unwrap();
            assert!(length > 0, "it ended before it said {wanted:?}");
            if line.contains(wanted) {
                return line;
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until_ready(state: &Path, wanted: u64) {
    let started = Instant::now();
    while ready_and_spent(state).0 != wanted {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{wanted} are not ready"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn bundles_are_kept_ready_through_use_and_outages_until_terminated() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let (state, server_state) = (states.path().join("client"), states.path().join("server"));
    let server = start_server(model.path(), &server_state);
    let address = server.address.clone();
    let fingerprint = server.fingerprint.to_string();
    let trust = ["--server", &address, "--fingerprint", &fingerprint];
    let mut keeper = Keeper::start(&state, &[&["-n", "4"][..], &trust].concat());
    // A batch of three, and one.
    keeper.line("3 prepared");
    keeper.line("1 prepared");
    let infer = || {
        ends(
            client(&state)
                .arg("infer")
                .arg(&model.file)
                .arg("--wait=60"),
            0,
        )
    };
    infer();
    keeper.line("1 prepared");
    until_ready(&state, 4);
    kill(server);
    let server = start_server_at(model.path(), &server_state, &address);
    infer();
    keeper.line("1 prepared");
    terminate(&keeper.process, "-TERM");
    keeper.line("stopped");
    assert!(keeper.process.wait().unwrap().success());
    assert_eq!(ready_and_spent(&state), (4, 2));
    kill(server);

    // What does not pass by itself ends it.
    let _impostor = start_server_at(model.path(), &states.path().join("impostor"), &address);
    let mut keep = client(&state);
    let (_, text) = ends(keep.args(["keep", "-n", "5"]), exit::NOT_TRUSTED);
    says(&text, &["wrong fingerprint"]);
}
