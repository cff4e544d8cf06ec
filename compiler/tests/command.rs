//! The program itself: a model directory out of a graph file, the table, accuracy, and mistakes
//! that users make.

use pi_ir::builders::{Policy, Rest, resnet20};
use pi_ir::{Artifact, GraphFile, WeightsFile};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn pi_compile(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pi-compile"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn refused(arguments: &[&str], says: &str) {
    let output = pi_compile(arguments);
    let text = text(&output);
    assert!(
        !output.status.success() && text.contains(says),
        "{arguments:?}: {text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

/// Records of 20 labelled images of 8x8 with values in `least..least + span`.
fn records(least: u8, span: u32) -> Vec<u8> {
    let mut records = Vec::new();
    for label in 0..20u8 {
        records.push(label % 10);
        records.extend((0..192u32).map(|i| least + (i * 37 * u32::from(label + 1) % span) as u8));
    }
    records
}

fn write_graph(path: &Path) {
    let policy = Policy::Budget {
        relus: 300,
        rest: Rest::Polynomial,
    };
    let graph = resnet20(8, 10, policy, 1);
    fs::write(path, GraphFile { graph }.encode()).unwrap();
}

#[test]
fn a_graph_file_becomes_a_model_directory() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    write_graph(Path::new(&at("model.graph")));
    // As calibration and as test data.
    fs::write(at("data.bin"), records(0, 256)).unwrap();

    let (graph, data, out) = (at("model.graph"), at("data.bin"), at("model"));
    let compiled = pi_compile(&[
        &graph,
        "--calibration",
        &data,
        "--out",
        &out,
        "--evaluate",
        &data,
        "--report",
        &at("made.html"),
    ]);
    assert!(compiled.status.success(), "{}", text(&compiled));
    assert!(
        fs::read_to_string(at("made.html"))
            .unwrap()
            .contains("of 20 test images right")
    );
    for says in [
        "stem",
        "probability 2^-",
        "accuracy on 20 images",
        "300 ReLU",
    ] {
        assert!(
            text(&compiled).contains(says),
            "{says} is missing in {}",
            text(&compiled)
        );
    }
    let artifact = Artifact::decode(&fs::read(at("model/model.pia")).unwrap()).unwrap();
    let weights = WeightsFile::decode(&fs::read(at("model/model.piw")).unwrap()).unwrap();
    artifact.check_weights(&weights).unwrap();
    assert_eq!(artifact.accuracy.unwrap().images, 20);
    assert!(artifact.note.contains("data.bin"));

    let inspected = pi_compile(&[&out, "--inspect"]);
    assert!(
        inspected.status.success() && text(&inspected).contains("300 ReLU"),
        "{}",
        text(&inspected)
    );
    let json = pi_compile(&[&out, "--inspect", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["report"]["kinds"]["relu"], 300);
    pages_on_it(&at("model"), &at("copy"), &at("page.html"));
    refused(
        &[
            &graph,
            "--calibration",
            &data,
            "--costs",
            &at("c.json"),
            "--report",
            &at("page.html"),
        ],
        "--report works with --out or with --inspect",
    );
    refused(
        &[&graph, &out, "--calibration", &data, "--out", &out],
        "--inspect",
    );

    fs::copy(&graph, at("model/model.graph")).unwrap();
    let evaluated = pi_compile(&[&out, "--evaluate", &data]);
    assert!(
        text(&evaluated).contains("same answer"),
        "{}",
        text(&evaluated)
    );

    let drawn = ["--calibration", "synthetic", "--out"];
    let with_drawn = |graph: &str, out: &str, says: &str| {
        refused(&[&[graph], &drawn[..], &[out]].concat(), says);
    };
    with_drawn(&at("absent.graph"), &out, "does not exist");
    with_drawn(&data, &out, "graph file");
    refused(
        &[&graph, "--out", &out, "--calibration", &at("nowhere")],
        "cannot read",
    );
    refused(
        &[&graph, "--out", &out, "--calibration", &graph],
        "is not a .bin",
    );
    with_drawn(&graph, &data, "cannot make");
    refused(
        &[&graph, "--out", &out, "--weight-bits", "1"],
        "weight-bits",
    );
    refused(&[&graph], "--out");
    let mut damaged = fs::read(at("model/model.pia")).unwrap();
    damaged[40] ^= 1;
    fs::write(at("model/model.pia"), damaged).unwrap();
    refused(&[&out, "--inspect"], "digest");
}

/// The page on a model, and on it beside a copy.
fn pages_on_it(model: &str, copy: &str, file: &str) {
    fs::create_dir(copy).unwrap();
    fs::copy(format!("{model}/model.pia"), format!("{copy}/model.pia")).unwrap();
    let one = pi_compile(&[model, "--inspect", "--report", file]);
    assert!(one.status.success(), "{}", text(&one));
    let page = fs::read_to_string(file).unwrap();
    assert!(page.contains("<title>model: private inference") && !page.contains("Side by side"));
    let both = pi_compile(&["--inspect", model, copy, "--report", file, "--json"]);
    assert!(both.status.success(), "{}", text(&both));
    let page = fs::read_to_string(file).unwrap();
    assert!(page.contains("<title>2 models: private") && page.contains("Side by side"));
    let json: serde_json::Value = serde_json::from_slice(&both.stdout).unwrap();
    assert_eq!(json["models"][1]["name"], "copy");
    assert_eq!(json["models"][0]["report"], json["models"][1]["report"]);
    refused(&[model, "--inspect", "--report", copy], "cannot write");
    refused(&["--inspect", model, "nowhere"], "nowhere does not exist");
}

#[test]
fn calibration_images_are_never_chosen_silently() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    write_graph(Path::new(&at("model.graph")));
    for target in ["--out", "--costs"] {
        let target = [at("model.graph"), target.into(), at("made")];
        let target = target.each_ref().map(String::as_str);
        refused(&target, "--calibration <DATA>");
        assert!(!Path::new(&at("made")).exists());
    }
}

/// Calibrated on grey images, the network leaves its bounds on others.
#[test]
fn a_network_that_disagrees_with_its_graph_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (graph, grey, bright) = (at("model.graph"), at("grey.bin"), at("bright.bin"));
    write_graph(Path::new(&graph));
    fs::write(&grey, records(118, 8)).unwrap();
    fs::write(&bright, records(0, 256)).unwrap();
    let out = at("model");
    let arguments = [
        &graph,
        "--calibration",
        &grey,
        "--proved-sign-bits",
        "0",
        "--out",
        &out,
    ];
    let measured = [&arguments[..], &["--evaluate", &bright]].concat();
    for says in [
        "of 20 images of bright.bin",
        "at least 90 % are needed",
        "--calibration",
        "nothing is written",
    ] {
        refused(&measured, says);
    }
    assert!(!Path::new(&out).exists());

    // A directory that was made all the same is measured, reported and refused, too.
    let made = pi_compile(&arguments);
    assert!(made.status.success(), "{}", text(&made));
    fs::copy(&graph, at("model/model.graph")).unwrap();
    for says in ["same answer as the float graph", "at least 90 % are needed"] {
        refused(&[&out, "--evaluate", &bright], says);
    }
}
