//! The program `pi-train` itself, on drawn images: what its commands write, and what they refuse.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::tensor::Device;
use pi_trainer::result::RunResult;
use pi_trainer::run::Run;

const EXPERIMENT: &str = r#"
name = "small"
seed = 3
[data]
kind = "procedural"
size = 16
train_images = 48
test_images = 20
holdout = 8
[network]
stem = { channels = 4, kernel = 3, stride = 2 }
stages = [{ channels = 6, stride = 2, blocks = 1 }]
[[stage]]
epochs = 1
batch = 20
optimiser = { clip = 1.0 }
schedule = { rate = 0.05 }
augmentation = { shift = 1, flip = true }
"#;

/// A folder with experiments of these names, with something added to each file.
fn folder(experiments: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("experiments")).unwrap();
    for (name, more) in experiments {
        let path = folder.path().join(format!("experiments/{name}.toml"));
        fs::write(path, format!("{EXPERIMENT}{more}")).unwrap();
    }
    folder
}

/// Runs the program; returns true if it succeeded, and its text on stderr.
fn pi_train(folder: &Path, arguments: &str) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pi-train"));
    let output = command
        .current_dir(folder)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

#[test]
fn the_result_of_a_run_that_was_finished_before_is_made_up() {
    let folder = folder(&[("a", "")]);
    let result = folder.path().join("results/a.json");
    let (done, told) = pi_train(folder.path(), "run-all experiments");
    assert!(done && !result.exists(), "{told}");
    let (done, told) = pi_train(folder.path(), "run-all experiments --results results");
    assert!(done && told.contains("a: finished"), "{told}");
    let text = fs::read_to_string(&result).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["test_images"], 20);
    assert_eq!(value["device"], "CPU, burn flex");
    assert!(value.get("tested_on").is_none(), "{text}");
    let files = fs::read_dir(folder.path().join("results")).unwrap();
    assert_eq!(files.count(), 1, "a temporary file is left");
    // It is written once: another text stays.
    fs::write(&result, "kept").unwrap();
    let (done, told) = pi_train(folder.path(), "run-all experiments --results results");
    assert!(done, "{told}");
    assert_eq!(fs::read_to_string(&result).unwrap(), "kept");
    // Without the checkpoint there is nothing to make it of.
    fs::remove_file(&result).unwrap();
    fs::remove_file(folder.path().join("runs/a/checkpoint.pit")).unwrap();
    let (done, told) = pi_train(folder.path(), "run-all experiments --results results");
    assert!(!done && told.contains("checkpoint.pit"), "{told}");
}

#[test]
fn labels_of_a_run_teach_another_on_the_same_images_only() {
    let learns = "distil = { teacher = { logits = \"a.labels\" }, temperature = 2.0, weight = 2.8, \
                  cross_entropy = 0.3 }\n";
    let folder = folder(&[("a", ""), ("b", learns)]);
    let folder = folder.path();
    let student = |out: &str, more: &str| {
        pi_train(
            folder,
            &format!("train --config experiments/b.toml --out runs/{out} {more}"),
        )
    };
    let (done, told) = student("b", "");
    assert!(
        !done && told.contains("pi-train labels makes them"),
        "{told}"
    );
    let (done, told) = pi_train(folder, "train --config experiments/a.toml --out runs/a");
    assert!(done, "{told}");
    let labels = "labels --checkpoint runs/a --out a.labels";
    let (done, told) = pi_train(folder, &format!("{labels} --views 5"));
    assert!(!done && told.contains("--views is 5"), "{told}");
    let (done, told) = pi_train(folder, labels);
    assert!(done && told.contains("logits of 40 images"), "{told}");
    let (done, told) = student("b", "");
    assert!(done, "{told}");
    let (done, told) = student("fewer", "--set data.holdout=10");
    assert!(
        !done && told.contains("the training images are 38 in 10"),
        "{told}"
    );
    let (done, told) = student("others", "--set data.seed=9");
    assert!(
        !done && told.contains("are of other images than these"),
        "{told}"
    );
    let (done, told) = pi_train(
        folder,
        &format!("{labels} --config experiments/b.toml --set data.seed=9"),
    );
    assert!(done, "{told}");
    let (done, told) = student("others2", "--set data.seed=9");
    assert!(done, "{told}");
    let whole = fs::read(folder.join("a.labels")).unwrap();
    for (bytes, says) in [
        (&whole[..whole.len() - 4], "bytes of logits"),
        (
            &[&whole[..whole.len() - 1], &[9]].concat()[..],
            "logits are damaged",
        ),
        (&b"nothing of the kind"[..], "does not begin with PILABEL1"),
    ] {
        fs::write(folder.join("a.labels"), bytes).unwrap();
        let (done, told) = student("damaged", "--set data.seed=9");
        assert!(!done && told.contains(says), "{told}");
    }
}

#[test]
fn originals_are_measured_of_runs_on_cifar10_only() {
    let folder = folder(&[("a", "")]);
    let train = "train --config experiments/a.toml --out runs/a";
    let (done, told) = pi_train(folder.path(), train);
    assert!(done, "{told}");
    let eval = "eval --checkpoint runs/a";
    assert!(pi_train(folder.path(), eval).0);
    let (done, told) = pi_train(folder.path(), &format!("{eval} --originals somewhere"));
    assert!(!done && told.contains("are known of CIFAR-10"), "{told}");
}

#[test]
fn two_runs_of_one_name_are_refused() {
    let folder = folder(&[("a-b", ""), ("a", "[sweep.x]\nb = []\n")]);
    let (done, told) = pi_train(folder.path(), "run-all experiments");
    assert!(!done && !folder.path().join("runs").exists(), "{told}");
    for name in ["a.toml", "a-b.toml"] {
        assert!(told.contains(name), "{told}");
    }
}

#[test]
fn training_says_at_once_what_it_will_not_do() {
    let folder = folder(&[("a", "")]);
    let train = "train --config experiments/a.toml";
    let (done, told) = pi_train(folder.path(), &format!("{train} --out runs/x.pit"));
    assert!(!done && told.contains("x.pit is named as"), "{told}");
    assert!(!folder.path().join("runs").exists());
    // More seconds than any clock counts are no deadline.
    let forever = format!("{train} --out runs/x --resume --seconds {}", u64::MAX);
    let (done, told) = pi_train(folder.path(), &forever);
    assert!(done && told.contains("begins anew"), "{told}");
    let (done, told) = pi_train(folder.path(), &forever);
    assert!(done && !told.contains("begins anew"), "{told}");
    let (done, told) = pi_train(folder.path(), &format!("{train} --out runs/x"));
    assert!(!done && told.contains("give --resume"), "{told}");
}

#[test]
fn a_result_names_what_trained_and_what_it_was_tested_on_if_that_is_another_set() {
    let data = common::data(32, 10, 81);
    let mut run = common::run("[[stage]]\nepochs = 1");
    common::finish(&mut run, &data);
    let result = |run: &Run, set: &str| {
        let result = RunResult::of(run, &data.holdout, set, "here");
        result.check().unwrap();
        assert_eq!(result.dataset, "stripes");
        (result.device, result.more.get("tested_on").cloned())
    };
    assert_eq!(result(&run, "stripes"), ("here".to_owned(), None));
    let devices = ["there", "elsewhere"].map(str::to_owned);
    run.meta.devices.extend(devices);
    let run = Run::from_checkpoint(run.checkpoint(), Device::flex()).unwrap();
    let expected = ("elsewhere, there".to_owned(), Some("dots".into()));
    assert_eq!(result(&run, "dots"), expected);
}
