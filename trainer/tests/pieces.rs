//! A folder of experiments, run piece by piece on machines that share nothing but the files carried
//! between them.

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::tensor::Device;
use image::{Rgb, RgbImage};
use indicatif::ProgressBar;
use pi_trainer::checkpoint::Checkpoint;
use pi_trainer::config::Config;
use pi_trainer::data::{Data, DeviceSet, Source};
use pi_trainer::run::{Images, Run, checkpoint_path};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

const HEAD: &str = r#"
seed = 3
[data]
kind = "folder"
path = "where/the/set/was/packed"
size = 16
holdout = 8
[network]
stem = { channels = 4, kernel = 3, stride = 2 }
stages = [{ channels = 6, stride = 2, blocks = 1 }]
[default]
batch = 8
optimiser = { clip = 1.0 }
schedule = { rate = 0.05, shape = { cosine = {} } }
augmentation = { shift = 1, flip = true }
"#;
const TEACHER: &str = "[[stage]]\nepochs = 2";
const STUDENT: &str = r#"
[[stage]]
method = { autorep = { relus = 40, lambda = 1e-3 } }
epochs = 2
distil = { teacher = { checkpoint = "runs/00-teacher" } }
[[stage]]
epochs = 2
distil = { teacher = { checkpoint = "runs/00-teacher" } }
[warm_start]
checkpoint = "runs/00-teacher"
"#;
const RUNS: [&str; 2] = ["00-teacher", "10-student"];

/// The set, packed, and the experiments, on a machine of their own.
fn machine(packed: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let experiments = folder.path().join("experiments");
    fs::create_dir(&experiments).unwrap();
    for (name, stages) in RUNS.into_iter().zip([TEACHER, STUDENT]) {
        let text = format!("name = \"{name}\"\n{HEAD}{stages}");
        fs::write(experiments.join(format!("{name}.toml")), text).unwrap();
    }
    fs::copy(packed, folder.path().join("set.pack")).unwrap();
    folder
}

fn pi_train(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pi-train"));
    let output = command
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

const RUN_ALL: [&str; 6] = [
    "run-all",
    "experiments",
    "--results",
    "results",
    "--set",
    "data.path=set.pack",
];

/// Images of three classes: noise with a bar across, along, or none.
fn draw(folder: &Path) {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for (number, class) in ["across", "along", "none"].into_iter().enumerate() {
        fs::create_dir(folder.join(class)).unwrap();
        for index in 0..20 {
            let image = RgbImage::from_fn(16, 16, |x, y| {
                let bar = [y, x, 0][number] == 7 + index % 3;
                let noise = (rng.next_u32() % 90) as u8;
                Rgb([noise + 120 * u8::from(bar), noise, 90 - noise])
            });
            let path = folder.join(class).join(format!("{index:02}.png"));
            image.save(path).unwrap();
        }
    }
}

/// Trains a run of the folder for some steps, as a piece whose time is up does, and leaves its
/// checkpoint there.
fn piece(folder: &Path, name: &str, mut steps: usize) {
    let at = |path: &str| folder.join(path).display().to_string();
    let mut overrides = vec![format!("data.path={}", at("set.pack"))];
    if name == RUNS[1] {
        let teacher = at("runs/00-teacher");
        overrides.push(format!("warm_start.checkpoint={teacher}"));
        overrides.push(format!("stage.*.distil.teacher.checkpoint={teacher}"));
    }
    let file = folder.join("experiments").join(format!("{name}.toml"));
    let config = Config::load(&file, &overrides).unwrap();
    let sets = Source::open(&config.data).unwrap().sets().unwrap();
    let images = Images {
        dataset: sets.description,
        shape: sets.train.shape,
        classes: sets.classes,
        normalisation: sets.normalisation.clone(),
    };
    let device = Device::flex();
    let upload = |set| DeviceSet::new(set, sets.normalisation.clone(), &device);
    let data = Data {
        train: upload(sets.train),
        holdout: upload(sets.holdout),
    };
    let mut run = Run::new(config, images, device.clone()).unwrap();
    let mut reports = Vec::new();
    loop {
        let go_on = || {
            let more = steps > 0;
            steps = steps.saturating_sub(1);
            more
        };
        let report = run.epoch_while(&data, &ProgressBar::hidden(), go_on);
        match report.unwrap() {
            Some(report) => reports.push(report),
            None => break,
        }
    }
    assert!(
        run.meta.begun.is_some(),
        "{name} was to stop within an epoch"
    );
    let out = folder.join("runs").join(name);
    fs::create_dir_all(&out).unwrap();
    run.checkpoint().save(&checkpoint_path(&out)).unwrap();
    // A line for each epoch that is finished, as the program writes them.
    let lines: String = reports
        .iter()
        .map(|report| serde_json::to_string(report).unwrap() + "\n")
        .collect();
    fs::write(out.join("log.jsonl"), lines).unwrap();
}

/// Takes what a piece wrote, and nothing else, to another machine.
fn carry(from: &Path, to: &Path) {
    for name in RUNS {
        let (source, target) = (from.join("runs").join(name), to.join("runs").join(name));
        let Ok(entries) = fs::read_dir(source) else {
            continue;
        };
        fs::create_dir_all(&target).unwrap();
        for entry in entries {
            let entry = entry.unwrap();
            fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
        }
    }
}

fn last_state(folder: &Path, name: &str) -> Checkpoint {
    let path = checkpoint_path(&folder.join("runs").join(name));
    let mut checkpoint = Checkpoint::load(&path).unwrap();
    checkpoint.meta["wall_s"] = 0.into();
    checkpoint
}

/// The run's log without times.
fn log(folder: &Path, name: &str) -> Vec<serde_json::Value> {
    let path = folder.join("runs").join(name).join("log.jsonl");
    let timeless = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        for time in ["seconds", "images_per_second", "wall_s"] {
            line.as_object_mut().unwrap().remove(time);
        }
        line
    };
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(timeless)
        .collect()
}

fn result(folder: &Path, name: &str) -> serde_json::Value {
    let path = folder.join("results").join(format!("{name}.json"));
    let mut result: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    result["wall_s"] = 0.into();
    result
}

#[test]
fn pieces_on_several_machines_end_as_one_run_does_bit_for_bit() {
    let images = tempfile::tempdir().unwrap();
    draw(images.path());
    let kit = tempfile::tempdir().unwrap();
    let config = kit.path().join("set.toml");
    fs::write(&config, format!("name = \"set\"\n{HEAD}{TEACHER}")).unwrap();
    let path = format!("data.path={}", images.path().display());
    let pack = ["pack", "--config", "set.toml", "--out", "set.pack", "--set"];
    pi_train(kit.path(), &[&pack[..], &[path.as_str()]].concat());
    let packed = kit.path().join("set.pack");

    let whole = machine(&packed);
    pi_train(whole.path(), &RUN_ALL);
    let [first, second, third] = [(); 3].map(|()| machine(&packed));
    // 46 images to train on are 5 steps an epoch: the first piece ends in the second epoch of the
    // teacher.
    piece(first.path(), RUNS[0], 7);
    carry(first.path(), second.path());
    let only_teacher = second.path().join("experiments/10-student.toml");
    fs::remove_file(only_teacher).unwrap();
    pi_train(second.path(), &RUN_ALL);
    carry(second.path(), third.path());
    // The next one in the second epoch of the student's selection.
    piece(third.path(), RUNS[1], 8);
    let last = machine(&packed);
    carry(third.path(), last.path());
    let told = pi_train(last.path(), &RUN_ALL);
    assert!(told.contains("00-teacher: finished"), "{told}");
    for name in RUNS {
        let (ours, theirs) = (
            last_state(last.path(), name),
            last_state(whole.path(), name),
        );
        assert_eq!(ours.meta, theirs.meta, "{name}");
        assert!(ours.masks == theirs.masks, "{name}: masks differ");
        assert!(ours.arrays == theirs.arrays, "{name}: arrays differ");
        assert_eq!(log(last.path(), name), log(whole.path(), name), "{name}");
        assert!(!ours.arrays.contains_key("teacher.parameters"), "{name}");
    }
    assert_eq!(result(last.path(), RUNS[1]), result(whole.path(), RUNS[1]));
    assert_eq!(
        result(second.path(), RUNS[0]),
        result(whole.path(), RUNS[0])
    );
    // Other batches than those of the epoch that has begun.
    let other = machine(&packed);
    carry(first.path(), other.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_pi-train"));
    let refused = command
        .current_dir(other.path())
        .args(RUN_ALL)
        .args(["--set", "stage.*.batch=4"])
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{why}");
    assert!(why.contains("keep batch and data.limit"), "{why}");
}
