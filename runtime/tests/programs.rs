//! Every mistake that a user can make ends with what happened and what to do, and a failure's exit
//! code.

mod common;

use assert_cmd::Command;
use common::{
    Model, client, complaint, has_one_label, kill, prepare, server_command, start_server,
    start_server_at,
};
use pi_ir::interpret::label;
use pi_ir::{Artifact, Reveal, random};
use pi_runtime::command::child::{ChildProcess, ServerProcess};
use pi_runtime::store::Store;
use std::net::UdpSocket;
use std::time::Duration;

fn server(model: &std::path::Path, state: &std::path::Path, listen: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pi-server"));
    command
        .arg("--model")
        .arg(model)
        .args(["--listen", listen, "--state"])
        .arg(state);
    command.timeout(std::time::Duration::from_secs(60));
    command
}

fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
}

#[test]
fn a_client_without_a_server_is_told_so() {
    let state = tempfile::tempdir().unwrap();
    // A port that was free a moment ago: nobody answers there.
    let port = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let text = complaint(client(state.path()).args([
        "prepare",
        "--trust-first-use",
        "--connect-timeout",
        "3",
        "--server",
        &port.to_string(),
    ]));
    says(&text, &["error:", &port.to_string(), "what to do:"]);
    // A port where somebody listens who never answers.
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = deaf.local_addr().unwrap().to_string();
    let text = complaint(client(state.path()).args([
        "prepare",
        "--trust-first-use",
        "--connect-timeout",
        "0.5",
        "--server",
        &address,
    ]));
    says(&text, &["no answer", &address, "firewall"]);
}

#[test]
fn an_address_that_is_none_is_explained() {
    let state = tempfile::tempdir().unwrap();
    for address in ["nonsense", "localhost:notaport", ":4433", "localhost:99999"] {
        let text = complaint(client(state.path()).args([
            "prepare",
            "--trust-first-use",
            "--server",
            address,
        ]));
        says(&text, &["error:", address, "HOST:PORT"]);
    }
}

#[test]
fn a_server_is_not_trusted_without_a_reason() {
    let state = tempfile::tempdir().unwrap();
    let text = complaint(client(state.path()).args(["prepare", "--server", "127.0.0.1:4433"]));
    says(&text, &["--fingerprint", "--trust-first-use"]);
    let text = complaint(client(state.path()).args([
        "prepare",
        "--server",
        "127.0.0.1:4433",
        "--fingerprint",
        "abcd",
    ]));
    says(&text, &["64 hexadecimal digits"]);
}

#[test]
fn images_that_cannot_be_used_are_explained() {
    let state = tempfile::tempdir().unwrap();
    let text = complaint(client(state.path()).args(["infer", "absent.png"]));
    says(&text, &["absent.png", "check the path"]);
    let broken = state.path().join("broken.png");
    std::fs::write(
        &broken,
        b"\x89PNG\r\n\x1a\nand then nothing that belongs there",
    )
    .unwrap();
    let text = complaint(client(state.path()).arg("infer").arg(&broken));
    says(&text, &["broken.png", "damaged"]);
    let text_file = state.path().join("letter.png");
    std::fs::write(&text_file, "Dear reader").unwrap();
    let text = complaint(client(state.path()).arg("infer").arg(&text_file));
    says(&text, &["letter.png", "neither a PNG nor a JPEG"]);
}

#[test]
fn inference_without_preparation_is_explained() {
    let state = tempfile::tempdir().unwrap();
    let image = state.path().join("image.png");
    image::RgbImage::new(8, 8).save(&image).unwrap();
    let text = complaint(client(state.path()).arg("infer").arg(&image));
    says(&text, &["no server is known yet", "pi-client prepare"]);
    let text = complaint(
        client(state.path())
            .arg("infer")
            .arg(&image)
            .args(["--server", "127.0.0.1:4433"]),
    );
    says(&text, &["nothing is prepared", "pi-client prepare"]);
}

#[test]
fn status_of_a_new_state_names_the_next_step() {
    let state = tempfile::tempdir().unwrap();
    let output = client(state.path()).arg("status").assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    says(&text, &["identity", "no server is known yet"]);
    let output = client(state.path()).args(["status", "--json"]).assert();
    let json: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(json["servers"], serde_json::json!([]));
}

#[test]
fn a_state_in_use_is_explained() {
    let state = tempfile::tempdir().unwrap();
    let _store = Store::open(state.path()).unwrap();
    let text = complaint(client(state.path()).arg("status"));
    says(&text, &["in use by another process", "--state"]);
    let model = Model::random(1);
    let text = complaint(&mut server(model.path(), state.path(), "127.0.0.1:0"));
    says(&text, &["in use by another process", "--state"]);
}

#[test]
fn a_model_that_cannot_be_served_is_explained() {
    let state = tempfile::tempdir().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let text = complaint(&mut server(empty.path(), state.path(), "127.0.0.1:0"));
    says(&text, &["no usable model", "model.pia", "pi-compile"]);

    let (model, other) = (Model::random(1), Model::random(100));
    let weights = other.path().join("model.piw");
    std::fs::copy(weights, model.path().join("model.piw")).unwrap();
    let text = complaint(&mut server(model.path(), state.path(), "127.0.0.1:0"));
    says(&text, &["different compilations"]);

    let artifact = std::fs::read(model.path().join("model.pia")).unwrap();
    let half = &artifact[..artifact.len() / 2];
    std::fs::write(model.path().join("model.pia"), half).unwrap();
    let text = complaint(&mut server(model.path(), state.path(), "127.0.0.1:0"));
    says(&text, &["artifact file", "cut off"]);
}

#[test]
fn a_taken_port_is_explained() {
    let state = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = complaint(&mut server(model.path(), state.path(), &address));
    says(&text, &[&address, "taken", "--listen"]);
}

#[test]
fn a_wrong_fingerprint_is_shown_beside_the_right_one() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = start_server(model.path(), &states.path().join("server"));
    let wrong = "00".repeat(32);
    let text = complaint(client(&states.path().join("client")).args([
        "prepare",
        "--server",
        &server.address,
        "--fingerprint",
        &wrong,
    ]));
    let right = server.fingerprint.to_string();
    says(&text, &["wrong fingerprint", &wrong, &right]);
}

#[test]
fn a_full_disk_is_explained_and_costs_nothing_that_was_stored() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = start_server(model.path(), &states.path().join("server"));
    let state = states.path().join("client");
    prepare(&state, &server, 1).assert().success();
    // A limit on the size of files stands in for a full disk: writing fails in the same place.
    let text = complaint(
        Command::new("sh")
            .arg("-c")
            .arg("trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"")
            .arg(env!("CARGO_BIN_EXE_pi-client"))
            .arg("--state")
            .arg(&state)
            .args(["prepare", "--server", &server.address, "-n", "1"]),
    );
    says(&text, &["full", "make room"]);
    let output = client(&state).args(["status", "--json"]).assert().success();
    let json: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(json["servers"][0]["ready"], 1);
    client(&state)
        .arg("infer")
        .arg(&model.file)
        .assert()
        .success();
}

/// A model whose bounds its example leaves, whatever the client's shares are.
fn out_of_range() -> Model {
    let narrow = |index: u64| {
        let mut model = Model::random(100 * index);
        let Artifact { plan, batches, .. } = model.artifact.clone();
        let circuit = random::tightened(&model.artifact.circuit, index);
        let distance = model.artifact.flooding_log2;
        model.artifact = Artifact::new(circuit, plan, model.weights.digest(), distance);
        model.artifact.batches = batches;
        model.write();
        model
    };
    let is_out = |model: &Model| {
        let (interpreter, input) = (model.interpreter(), model.input());
        (0..50).all(|seed| {
            let trace = random::trace(&model.artifact.circuit, seed);
            !interpreter.exact(&input, &trace).unwrap().in_range
        })
    };
    (0..).map(narrow).find(is_out).expect("some are")
}

#[test]
fn an_input_out_of_range_gets_no_answer_and_an_exit_code_of_its_own() {
    let (model, states) = (out_of_range(), tempfile::tempdir().unwrap());
    let server = start_server(model.path(), &states.path().join("server"));
    let state = states.path().join("client");
    prepare(&state, &server, 2).assert().success();
    let infer = |json: &[&str]| {
        let output = client(&state)
            .arg("infer")
            .args(json)
            .arg(&model.file)
            .assert();
        String::from_utf8(output.code(3).get_output().stdout.clone()).unwrap()
    };
    says(
        &infer(&[]),
        &["out of the network's range: no answer", "another input"],
    );
    let json: serde_json::Value = serde_json::from_str(&infer(&["--json"])).unwrap();
    assert_eq!(json["out_of_range"], true);
    assert!(json["class"].is_null() && json["class_index"].is_null());
    assert!(json.get("logits").is_none());
}

/// A row of a table through the program: only what the model can take costs a bundle.
#[test]
fn a_row_of_values_is_classified_and_others_are_explained() {
    let models = (0..).map(|index| Model::of_values(100 * index));
    let model = { models }.find(has_one_label).expect("most have");
    let states = tempfile::tempdir().unwrap();
    let server = start_server(model.path(), &states.path().join("server"));
    let state = states.path().join("client");
    prepare(&state, &server, 2).assert().success();
    let infer = |file: &std::path::Path, row: Option<&str>| {
        let mut command = client(&state);
        command.args(["infer", "--json"]).arg(file);
        command.args(row.map(|row| format!("--row={row}")));
        command
    };
    let at = |name: &str| states.path().join(name);
    let row = std::fs::read_to_string(&model.file).unwrap();
    let write = |name: &str, text: &str| std::fs::write(at(name), text).unwrap();
    write("two.csv", &format!("{row}{row}"));
    write("short.csv", "1.5,2\n");
    write("words.csv", &row.replacen(',', ",?", 1));
    let (_, rest) = row.split_once(',').unwrap();
    write("large.csv", &format!("1e30,{rest}"));
    image::RgbImage::new(4, 4).save(at("image.png")).unwrap();
    std::fs::write(at("data.npy"), "hello").unwrap();
    let refused = |name: &str, row: Option<&str>, words: &[&str]| {
        says(
            &complaint(&mut infer(&at(name), row)),
            &[words, &[name][..]].concat(),
        );
    };
    refused("two.csv", None, &["has 2 rows", "--row N"]);
    refused("two.csv", Some("2"), &["has no row 2", "0 to 1"]);
    refused("short.csv", None, &["a row of the table has 2 values"]);
    refused(
        "words.csv",
        None,
        &["column 1 is \"?", "numbers with a point"],
    );
    refused("image.png", None, &["reads real values", ".csv file"]);
    refused("data.npy", None, &["no NumPy array", "numpy.save"]);
    refused("absent.csv", None, &["cannot read it", "check the path"]);
    let text = complaint(&mut infer(&at("large.csv"), None));
    says(
        &text,
        &[
            "value 0 is 1000000000000000000000000000000",
            "compiled for values from",
        ],
    );
    says(&text, &["units", "--input-bound"]);

    // Nothing of that spent a bundle.
    let plain = model.interpreter().plain(&model.input()).unwrap();
    for (file, row) in [(&model.file, None), (&at("two.csv"), Some("1"))] {
        let output = infer(file, row).assert().success();
        let json: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        assert_eq!(json["class_index"], label(&plain.logits));
    }
    let text = complaint(&mut infer(&model.file, None));
    says(&text, &["no bundle left"]);
}

#[test]
fn bundles_run_out_with_an_explanation() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let server = start_server(model.path(), &states.path().join("server"));
    let state = states.path().join("client");
    prepare(&state, &server, 1).assert().success();
    client(&state)
        .arg("infer")
        .arg(&model.file)
        .assert()
        .success();
    let text = complaint(client(&state).arg("infer").arg(&model.file));
    says(&text, &["no bundle left", "pi-client prepare"]);
}

#[test]
fn a_changed_model_is_explained_and_the_old_bundles_kept() {
    let (model, other) = (Model::random(1), Model::random(100));
    let states = tempfile::tempdir().unwrap();
    let server_state = states.path().join("server");
    let state = states.path().join("client");
    let server = start_server(model.path(), &server_state);
    let address = server.address.clone();
    prepare(&state, &server, 1).assert().success();
    kill(server);

    let again = |model: &Model| start_server_at(model.path(), &server_state, &address);
    let server = again(&other);
    let text = complaint(client(&state).arg("infer").arg(&model.file));
    says(&text, &["model changed", "pi-client prepare"]);
    kill(server);
    let _server = again(&model);
    client(&state)
        .arg("infer")
        .arg(&model.file)
        .assert()
        .success();
}

#[test]
fn a_server_that_was_set_up_anew_is_not_taken_for_the_old_one() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let state = states.path().join("client");
    let server = start_server(model.path(), &states.path().join("server"));
    let address = server.address.clone();
    client(&state)
        .args(["prepare", "--trust-first-use", "--server", &address])
        .assert()
        .success();
    kill(server);
    let _impostor = start_server_at(model.path(), &states.path().join("impostor"), &address);
    // Remembered from the first use, so asking to trust again changes nothing.
    let text =
        complaint(client(&state).args(["prepare", "--trust-first-use", "--server", &address]));
    says(&text, &["wrong fingerprint"]);
    let text = complaint(client(&state).arg("infer").arg(&model.file));
    says(&text, &["wrong fingerprint"]);
}

#[test]
fn a_server_that_lost_its_state_is_prepared_with_anew() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let (state, server_state) = (states.path().join("client"), states.path().join("server"));
    let server = start_server(model.path(), &server_state);
    let address = server.address.clone();
    prepare(&state, &server, 2).assert().success();
    kill(server);
    // Its identity was backed up, its store was not.
    std::fs::remove_file(server_state.join("store.redb")).unwrap();
    std::fs::remove_dir_all(server_state.join("bundles")).unwrap();
    let server = start_server_at(model.path(), &server_state, &address);
    let text = complaint(client(&state).arg("infer").arg(&model.file));
    says(&text, &["holds none of the 2 bundles", "pi-client prepare"]);
    prepare(&state, &server, 1).assert().success();
    client(&state)
        .arg("infer")
        .arg(&model.file)
        .assert()
        .success();
}

#[test]
fn a_server_that_is_gone_costs_no_bundle() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let state = states.path().join("client");
    let server = start_server(model.path(), &states.path().join("server"));
    prepare(&state, &server, 1).assert().success();
    kill(server);
    let text = complaint(
        client(&state)
            .args(["--connect-timeout", "2", "infer"])
            .arg(&model.file),
    );
    says(&text, &["error:", "check that the server runs"]);
    let output = client(&state).args(["status", "--json"]).assert().success();
    let json: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(json["servers"][0]["ready"], 1);
}

#[test]
fn images_of_other_sizes_are_resized_and_said_so() {
    let model = Model::revealing(1, Reveal::Logits);
    let states = tempfile::tempdir().unwrap();
    let state = states.path().join("client");
    let server = start_server(model.path(), &states.path().join("server"));
    prepare(&state, &server, 1).assert().success();
    let large = states.path().join("large.png");
    image::RgbImage::from_fn(90, 60, |x, y| image::Rgb([x as u8, y as u8, 9]))
        .save(&large)
        .unwrap();
    let output = client(&state)
        .args(["infer", "--json"])
        .arg(&large)
        .assert()
        .success();
    let notice = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    says(&notice, &["90x60", "resized"]);
    let json: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert!(json["logits"].as_array().is_some_and(|l| !l.is_empty()));
}

/// The server says what the model reveals and how many answers that allows, and a client of a model
/// that reveals labels gets the class and no number beside it.
#[test]
fn programs_say_what_is_revealed() {
    let states = tempfile::tempdir().unwrap();
    let model = Model::revealing(1, Reveal::Label);
    for (reveal, limit) in [
        (Reveal::Label, "without limit; labels alone"),
        (
            Reveal::Logits,
            "1000 at most for each client, ever; the model reveals logits",
        ),
    ] {
        let artifact = model.artifact.clone().with_reveal(reveal).unwrap();
        std::fs::write(model.path().join("model.pia"), artifact.encode()).unwrap();
        let state = states.path().join(format!("client {reveal}"));
        let server_state = states.path().join(format!("server {reveal}"));
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pi-server"));
        command
            .args(["--listen", "127.0.0.1:0", "--model"])
            .arg(model.path());
        command.arg("--state").arg(&server_state);
        let started = ChildProcess::start("server", command, None, Duration::from_secs(30));
        assert_eq!(started.unwrap().line("answers ").unwrap(), limit);
        let server = start_server(model.path(), &server_state);
        prepare(&state, &server, 2).assert().success();
        let infer = |arguments: &[&str]| {
            let output = client(&state)
                .arg("infer")
                .args(arguments)
                .arg(&model.file)
                .assert();
            String::from_utf8(output.success().get_output().stdout.clone()).unwrap()
        };
        let json: serde_json::Value = serde_json::from_str(&infer(&["--json"])).unwrap();
        assert!(json["class_index"].is_u64(), "{json}");
        let has_logits = reveal == Reveal::Logits;
        assert_eq!(json["logits"].is_array(), has_logits, "{json}");
        assert_eq!(json["output_scale"].is_f64(), has_logits, "{json}");
        // The class, the largest logits if there are any, and the cost.
        let lines = infer(&[]).lines().count();
        assert_eq!(lines > 2, has_logits, "{lines} lines");
    }
}

#[test]
fn an_interrupt_ends_a_server_in_order() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let mut server = start_server(model.path(), &states.path().join("server"));
    let id = server.process.child.id().to_string();
    let killed = std::process::Command::new("kill")
        .args(["-INT", &id])
        .status();
    assert!(killed.unwrap().success());
    assert!(server.process.child.wait().unwrap().success());
}

#[test]
fn a_back_end_that_cannot_run_is_explained() {
    let state = tempfile::tempdir().unwrap();
    let cases = [
        ("nonsense", "no back end has this name"),
        #[cfg(target_arch = "x86_64")]
        ("neon", "this processor has no neon"),
    ];
    for (value, reason) in cases {
        let mut served = server(state.path(), state.path(), "127.0.0.1:0");
        let mut asked = client(state.path());
        asked.args(["infer", "absent.png"]);
        let mut shown = Command::new(env!("CARGO_BIN_EXE_pi-demo"));
        for program in [&mut served, &mut asked, &mut shown] {
            let text = complaint(program.env("PI_BACKEND", value));
            says(&text, &["error:", "PI_BACKEND", value, reason, "scalar"]);
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}

/// The two programs contain no training framework and no ONNX parser.
#[test]
fn the_programs_link_neither_burn_nor_onnx() {
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal", "--prefix", "none"])
        .args(["--format", "{p}", "--package", "pi-runtime"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let text = String::from_utf8(tree.stdout).unwrap();
    let names: std::collections::BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(
        names.contains("quinn"),
        "this is no dependency tree:\n{text}"
    );
    println!("pi-runtime depends on {} crates", names.len() - 1);
    for name in names {
        let forbidden = [
            "burn",
            "cubecl",
            "onnx",
            "prost",
            "pi-compiler",
            "pi-trainer",
        ];
        assert!(
            !forbidden.iter().any(|word| name.starts_with(word)),
            "pi-runtime depends on {name}"
        );
    }
}

#[test]
fn limits_of_a_server_are_said_and_explained() {
    let (model, states) = (Model::random(1), tempfile::tempdir().unwrap());
    let at = |name: &str| states.path().join(name);
    let (list, server_state) = (at("clients"), at("server"));
    let limited = |arguments: &[&str]| {
        let mut command = server(model.path(), &at("server"), "127.0.0.1:0");
        command.args(arguments);
        command
    };
    std::fs::write(&list, "# ours\nnobody\n").unwrap();
    let allow = ["--allow", list.to_str().unwrap()];
    let text = complaint(&mut limited(&allow));
    says(&text, &["clients", "line 2", "one fingerprint a line"]);
    let text = complaint(&mut limited(&["--max-answers", "0"]));
    says(&text, &["positive number", "none"]);

    // The client's identity is what the list needs.
    let status = client(&at("client")).arg("status").assert().success();
    let status = String::from_utf8(status.get_output().stdout.clone()).unwrap();
    let identity = status
        .lines()
        .find_map(|line| line.strip_prefix("identity   "));
    let start = |list_of: &str| {
        std::fs::write(&list, list_of).unwrap();
        let mut command = server_command(model.path(), &server_state);
        command.program.args(allow).args(["--max-answers", "2"]);
        ServerProcess::start(command).unwrap()
    };
    let refusing = start("");
    let text = complaint(&mut prepare(&at("client"), &refusing, 1));
    says(&text, &["not on its list", "pi-server --allow"]);
    kill(refusing);
    let serving = start(identity.unwrap());
    prepare(&at("client"), &serving, 1).assert().success();
    let text = complaint(&mut prepare(&at("client"), &serving, 2));
    says(
        &text,
        &["more answers than", "--max-answers", "pi-client status"],
    );
    let infer = ["infer", model.file.to_str().unwrap()];
    client(&at("client")).args(infer).assert().success();
    let status = client(&at("client")).arg("status").assert().success();
    let status = String::from_utf8(status.get_output().stdout.clone()).unwrap();
    says(&status, &["1 left"]);
}
