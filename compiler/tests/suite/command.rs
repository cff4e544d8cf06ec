//! The program itself: a model directory out of a graph file, the table, accuracy, and mistakes
//! that users make.

use super::support::plain;
use pi_ir::builders::{Builder, Policy, Rest, resnet20};
use pi_ir::value_file::Array;
use pi_ir::{Artifact, GraphFile, NodeId, Preprocessing, Shape, WeightsFile};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// For a machine of the compiler's: this one's rates would be those of a test build.
fn pi_compile(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pi-compile"))
        .args(arguments)
        .args(["--machine", "zen4-avx512"])
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

#[test]
fn completions_and_the_manual_page_are_printed() {
    let print = |arguments: &[&str]| {
        let program = env!("CARGO_BIN_EXE_pi-compile");
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    for shell in ["bash", "zsh", "fish"] {
        let printed = print(&["completions", shell]);
        assert!(printed.contains("pi-compile") && printed.contains("calibration"));
    }
    let page = print(&["man"]);
    assert!(page.contains(".TH") && page.contains("calibration"));
    // The program's own arguments are asked for as before.
    let output = Command::new(env!("CARGO_BIN_EXE_pi-compile")).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("<GRAPH"), "{}", text(&output));
}

/// Records of 20 labelled images of 8x8 with values in `least..least + span`: noise on a ground
/// that becomes brighter from image to image.
fn records(least: u8, span: u32) -> Vec<u8> {
    let mut records = Vec::new();
    for label in 0..20u8 {
        records.push(label % 10);
        let ground = u32::from(label) * (span / 2) / 20;
        let noise = |i: u32| i * 37 * u32::from(label + 1) % (span / 2);
        records.extend((0..192).map(|i| least + (ground + noise(i)) as u8));
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
        "ends in none of .bin, .npy",
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

/// Writes a graph whose answers depend on the images alone.
fn write_plain_graph(path: &Path, outputs: u32) {
    let mut builder = Builder::new("plain", Shape::new(3, 8, 8), 6);
    builder.preprocessing(Preprocessing::Channels {
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
    });
    let graph = plain(builder, 2, outputs);
    fs::write(path, GraphFile { graph }.encode()).unwrap();
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

/// Photographs of anything may calibrate; their labels need not be the network's.
#[test]
fn labels_of_other_classes_calibrate_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    write_plain_graph(Path::new(&at("model.graph")), 2);
    fs::write(at("data.bin"), records(0, 256)).unwrap();
    let (graph, data, out) = (at("model.graph"), at("data.bin"), at("model"));
    let arguments = [graph.as_str(), "--calibration", &data, "--out", &out];
    let compiled = pi_compile(&[&arguments[..], &["--allow-disagreement"]].concat());
    let says = "labels go up to 9, and the network has 2 outputs";
    assert!(compiled.status.success(), "{}", text(&compiled));
    assert!(text(&compiled).contains(says), "{}", text(&compiled));
    refused(
        &[&arguments[..], &["--evaluate", &data]].concat(),
        "no class",
    );
}

/// Calibrated on grey images, the network leaves its bounds on others.
#[test]
fn a_network_that_disagrees_with_its_graph_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (graph, grey, bright) = (at("model.graph"), at("grey.bin"), at("bright.bin"));
    write_plain_graph(Path::new(&graph), 10);
    fs::write(&grey, records(116, 24)).unwrap();
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
        "of 20 examples of bright.bin",
        "at least 95 % are needed",
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
    for says in [
        "same answer as the float network",
        "at least 95 % are needed",
    ] {
        refused(&[&out, "--evaluate", &bright], says);
    }
}

#[test]
fn drawn_calibration_is_announced_wherever_it_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (graph, out, page) = (at("model.graph"), at("model"), at("page.html"));
    write_graph(Path::new(&graph));
    let arguments = [
        &graph,
        "--calibration",
        "synthetic",
        "--calibration-images",
        "32",
        "--out",
        &out,
        "--report",
        &page,
        "--batches",
        "4",
        "--allow-disagreement",
    ];
    let compiled = pi_compile(&arguments);
    let said = text(&compiled);
    assert!(compiled.status.success(), "{said}");
    let drawn = "drawn examples, not on real ones: costs and times hold, but ranges";
    let note = Artifact::decode(&fs::read(at("model/model.pia")).unwrap())
        .unwrap()
        .note;
    let inspected = text(&pi_compile(&[&out, "--inspect"]));
    let page = fs::read_to_string(&page).unwrap();
    for (place, words) in [
        ("output", &said),
        ("note", &note),
        ("page", &page),
        ("--inspect", &inspected),
    ] {
        assert!(words.contains(drawn), "{place}: {words}");
    }
    assert!(
        said.contains("32 examples of synthetic, 48 images, seed 0 calibrate, 16 others"),
        "{said}"
    );
    assert!(page.contains("Signal to noise of each layer"));
}

#[test]
fn a_disagreement_is_written_only_if_it_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (graph, grey, bright, out) = (at("g.graph"), at("grey.bin"), at("bright.bin"), at("model"));
    write_plain_graph(Path::new(&graph), 10);
    fs::write(&grey, records(116, 24)).unwrap();
    fs::write(&bright, records(0, 256)).unwrap();
    let mut arguments = vec![&graph[..], "--calibration", &grey, "--evaluate", &bright];
    arguments.extend(["--proved-sign-bits", "0", "--out", &out, "--batches", "4"]);
    let output = pi_compile(&arguments);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    // The layer, what ails it, what to try; and the table of all layers.
    for says in [
        "the first layer that goes wrong is ",
        "--head-room",
        "--allow-disagreement",
        "snr",
    ] {
        assert!(said.contains(says), "{says}: {said}");
    }
    assert!(!Path::new(&out).exists());
    arguments.push("--allow-disagreement");
    let output = pi_compile(&arguments);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("warning: written all the same"));
    let artifact = Artifact::decode(&fs::read(at("model/model.pia")).unwrap()).unwrap();
    assert!(
        artifact.note.contains("Not faithful to the float network"),
        "{}",
        artifact.note
    );
}

#[test]
fn a_network_of_one_output_is_no_classifier() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let mut builder = Builder::new("one", Shape::new(3, 1, 1), 4);
    builder.preprocessing(Preprocessing::unit_values(3));
    let hidden = builder.dense("hidden", NodeId(0), 16);
    let relu = builder.relu("relu", hidden);
    let value = builder.dense("value", relu, 1);
    let graph = builder.finish(value);
    fs::write(at("one.graph"), GraphFile { graph }.encode()).unwrap();
    let row = |i: u32| format!("{},{},{}\n", i * 7 % 41, i * 11 % 23, i * 17 % 31);
    fs::write(at("rows.csv"), (0..60).map(row).collect::<String>()).unwrap();
    let (graph, rows, out) = (at("one.graph"), at("rows.csv"), at("model"));
    let arguments = [&graph, "--calibration", &rows, "--out", &out];
    refused(&arguments, "give --reveal logits");
    let arguments = [&arguments[..], &["--reveal", "logits"]].concat();
    refused(
        &[&arguments[..], &["--outputs", "classes"]].concat(),
        "one output",
    );
    let compiled = pi_compile(&arguments);
    assert!(compiled.status.success(), "{}", text(&compiled));
    let artifact = Artifact::decode(&fs::read(at("model/model.pia")).unwrap()).unwrap();
    assert!(
        artifact
            .note
            .contains("of what outputs vary, on 16 examples held back"),
        "{}",
        artifact.note
    );
    let strict = [&arguments[..], &["--max-error", "0.00001"]].concat();
    refused(
        &strict,
        "the outputs differ from the float network's by up to",
    );
    refused(
        &[&arguments[..], &["--mean", "1"]].concat(),
        "--mean: for ONNX models only",
    );
    let order = ["--channel-order", "bgr", "--white", "255"];
    refused(
        &[&arguments[..], &order].concat(),
        "--white, --channel-order: for ONNX",
    );
}

/// A graph of a hidden layer over rows of three values.
fn write_rows_graph(path: &Path) {
    let mut builder = Builder::new("rows", Shape::new(3, 1, 1), 4);
    builder.preprocessing(Preprocessing::unit_values(3));
    let hidden = builder.dense("hidden", NodeId(0), 8);
    let relu = builder.relu("relu", hidden);
    let logits = builder.dense("logits", relu, 2);
    let mut graph = builder.finish(logits);
    graph.classes = vec!["no".into(), "yes".into()];
    fs::write(path, GraphFile { graph }.encode()).unwrap();
}

#[test]
fn tables_and_arrays_calibrate_and_evaluate() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    fs::create_dir(at("model")).unwrap();
    let (graph, out) = (at("model/model.graph"), at("model"));
    write_rows_graph(Path::new(&graph));
    let row = |i: u32| {
        let value = |k: u32| f64::from(i * k % 41) / 20.0 - 1.0;
        [value(7), value(11), value(17)]
    };
    let mut table = String::from("a,b,answer,c\n");
    let (mut labels, mut array) = (String::from("answer\n"), Vec::new());
    for i in 0..40 {
        let [a, b, c] = row(i);
        let answer = ["no", "yes"][i as usize % 2];
        table.push_str(&format!("{a},{b},{answer},{c}\n"));
        labels.push_str(&format!("{}\n", i % 2));
        array.extend(row(i).into_iter().flat_map(f64::to_le_bytes));
    }
    fs::write(at("table.csv"), &table).unwrap();
    fs::write(at("labels.txt"), &labels).unwrap();
    fs::write(at("array.npy"), Array::file("<f8", &[40, 3], &array)).unwrap();

    let (table, array, labels) = (at("table.csv"), at("array.npy"), at("labels.txt"));
    let of_table = ["--calibration", &table, "--label-column"];
    let all = [&[&graph, "--out", &out][..], &of_table, &["answer"]].concat();
    let compiled = pi_compile(&[&all[..], &["--evaluate", &table]].concat());
    assert!(compiled.status.success(), "{}", text(&compiled));
    let artifact = Artifact::decode(&fs::read(at("model/model.pia")).unwrap()).unwrap();
    // The values reach 1, with two bits of head room.
    let expected = Preprocessing::Values {
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
        bound: Some(4.0),
    };
    assert_eq!(artifact.circuit.preprocessing, expected);
    let accuracy = artifact.accuracy.unwrap();
    assert_eq!(accuracy.images, 40);

    // The same data as an array, with the labels beside it.
    let evaluated = pi_compile(&[&out, "--evaluate", &array, "--labels", &labels, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&evaluated.stdout).unwrap();
    assert_eq!(json["float_correct"], accuracy.float_correct);
    assert_eq!(json["labelled"], true);
    assert_eq!(json["images"], 40);

    let cases = |data: &str, more: &[&str], says: &str| {
        refused(
            &[&[&graph, "--out", &out, "--calibration", data][..], more].concat(),
            says,
        );
    };
    cases(&table, &[], "column 2 is \"no\"");
    cases(
        &table,
        &["--label-column", "0"],
        "line 2: column 2 is \"no\"",
    );
    cases(
        &table,
        &["--label-column", "answers"],
        "no column \"answers\"",
    );
    cases(&labels, &[], "ends in none of .npy, .csv");
    fs::write(at("short.csv"), "1,2\n").unwrap();
    cases(
        &at("short.csv"),
        &[],
        "a row of the table has 2 values, and the network reads 3x1x1",
    );
    fs::write(at("bad.csv"), "a,b,answer,c\n1,2,maybe,3\n").unwrap();
    cases(
        &at("bad.csv"),
        &["--label-column", "answer"],
        "\"maybe\" is no label: it is no whole number from 0, and the network's classes are no, \
         yes",
    );
    fs::write(at("few.txt"), "1\n0\n").unwrap();
    let few = ["--evaluate", &array, "--labels", &at("few.txt")];
    cases(&array, &few, "2 labels for 40 examples of array.npy");
    let column = ["--evaluate", &array, "--label-column", "0"];
    cases(&array, &column, "for arrays, give --labels FILE");
    fs::write(at("seven.txt"), "7\n".repeat(40)).unwrap();
    let seven = ["--evaluate", &array, "--labels", &at("seven.txt")];
    cases(
        &array,
        &seven,
        "the label 7 is no class: the network has 2 outputs",
    );
}

/// The program where its cache and its back end are the test's.
fn on_machine(home: &Path, machine: &[&str], arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pi-compile"))
        .args(arguments)
        .args(machine)
        .env("XDG_CACHE_HOME", home)
        .output()
        .unwrap()
}

#[test]
fn plan_and_costs_are_for_the_machine_that_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    write_graph(Path::new(&at("model.graph")));
    let (graph, out, profile) = (at("model.graph"), at("model"), at("server.json"));
    let zen3 = pi_machine::shipped("zen3-avx2").unwrap();
    let mut server = zen3.clone();
    server.processor = "our server".into();
    fs::write(&profile, server.encode()).unwrap();
    let compile = [
        "--calibration",
        "synthetic",
        "--batches",
        "4",
        "--out",
        &out,
    ];
    let arguments = [&[graph.as_str()], &compile[..]].concat();
    let made = on_machine(directory.path(), &["--machine", &profile], &arguments);
    let shown = text(&made);
    assert!(made.status.success(), "{shown}");
    for says in [
        "machine: plan and costs are for our server, avx2 (",
        "times are estimates for this machine: our server, avx2, both parties on two cores",
        "; on zen4-avx512 (AMD EPYC (Zen 4), avx512), processor time would be about ",
        "; on zen3-avx2 (",
    ] {
        assert!(shown.contains(says), "{says} is missing in {shown}");
    }
    let report = |machine: &str| {
        let arguments = [out.as_str(), "--inspect", "--json"];
        let shown = on_machine(directory.path(), &["--machine", machine], &arguments);
        assert!(shown.status.success(), "{}", text(&shown));
        serde_json::from_slice::<serde_json::Value>(&shown.stdout).unwrap()["report"].clone()
    };
    let (own, avx512) = (report("zen3-avx2"), report("zen4-avx512"));
    assert_eq!(own["machine"], zen3.in_words());
    // What one report says of elsewhere is what the other says of itself.
    assert_eq!(own["elsewhere"].as_array().unwrap().len(), 1);
    assert_eq!(own["elsewhere"][0]["profile"], "zen4-avx512");
    assert_eq!(own["elsewhere"][0]["machine"], avx512["machine"]);
    for phase in ["offline_cpu", "online_cpu"] {
        assert_eq!(own["elsewhere"][0][phase], avx512[phase]);
        assert_eq!(avx512["elsewhere"][0][phase], own[phase]);
    }
    fs::write(&profile, server.encode().replace("garbled", "garbler")).unwrap();
    for (machine, says) in [
        (profile.as_str(), "garbled is missing; garbler is unknown"),
        ("mars", "mars: there is no such file"),
    ] {
        let refused = on_machine(directory.path(), &["--machine", machine], &arguments);
        assert!(!refused.status.success() && text(&refused).contains(says));
    }
}

#[test]
fn this_machine_is_measured_for_a_file() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("here.json");
    let measure = ["--measure-machine", "--out", file.to_str().unwrap()];
    let measured = on_machine(home.path(), &[], &measure);
    let shown = text(&measured);
    assert!(measured.status.success(), "{shown}");
    let profile = pi_machine::Profile::read(&file).unwrap();
    assert_eq!(profile.processor, pi_machine::processor_name());
    assert!(shown.contains(&profile.in_words()), "{shown}");
    // An unoptimised build says so, and keeps nothing.
    let kept = home.path().join("pianissimo").exists();
    assert_eq!(kept, !cfg!(debug_assertions) && cfg!(target_os = "linux"));
    assert_eq!(shown.contains("not optimised"), cfg!(debug_assertions));
    refused(&["--measure-machine", "model.graph"], "cannot be used with");
    refused(&[], "required arguments were not provided");
}
