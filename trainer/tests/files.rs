//! Files that are missing, short or wrong: every error says which file and what is the matter.

mod common;

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use common::{experiment, run};
use pi_trainer::checkpoint::{Array, Arrays, Checkpoint};
use pi_trainer::config::Config;
use pi_trainer::run::Run;

const PLAIN: &str = "[[stage]]\nepochs = 1";

fn error<T>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

#[test]
fn a_checkpoint_cut_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.pit");
    let run = run(PLAIN);
    run.checkpoint().save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    assert!(
        Checkpoint::load(&path).unwrap() == run.checkpoint(),
        "read is not what was written"
    );
    for length in [0, 5, 12, 40, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let message = error(Checkpoint::load(&path));
        assert!(
            message.contains("run.pit is not a whole checkpoint"),
            "{length} bytes: {message}"
        );
    }
    let mut longer = whole;
    longer.push(0);
    fs::write(&path, longer).unwrap();
    assert!(error(Checkpoint::load(&path)).contains("too many"));
}

#[test]
fn a_checkpoint_of_another_network_is_refused() {
    let refused = |alter: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = run(PLAIN).checkpoint();
        alter(&mut checkpoint);
        error(Run::from_checkpoint(checkpoint, Device::flex()))
    };
    let parameters = |checkpoint: &mut Checkpoint, alter: &dyn Fn(&mut Arrays)| {
        alter(checkpoint.arrays.get_mut("parameters").unwrap());
    };
    let missing = refused(&|checkpoint| {
        parameters(checkpoint, &|arrays| {
            arrays.remove("dense.bias");
        });
    });
    assert!(missing.contains("dense.bias is missing"), "{missing}");
    let shape = refused(&|checkpoint| {
        parameters(checkpoint, &|arrays| {
            arrays.get_mut("dense.bias").unwrap().shape = vec![1, 10];
        });
    });
    assert!(
        shape.contains("dense.bias is [1, 10], expected [10]"),
        "{shape}"
    );
    let extra = refused(&|checkpoint| {
        parameters(checkpoint, &|arrays| {
            arrays.insert("other.bias".to_owned(), Array::filled(&[2], 0.0));
        });
    });
    assert!(extra.contains("has no other.bias"), "{extra}");
    let kind = refused(&|checkpoint| {
        let masks = checkpoint.masks.get_mut("student").unwrap();
        masks.get_mut("stem.act").unwrap()[5] = 9;
    });
    assert!(kind.contains("unknown kind 9"), "{kind}");
}

#[test]
fn a_checkpoint_of_version_1_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.pit");
    fs::write(&path, b"PITRAIN1 and more").unwrap();
    assert!(error(Checkpoint::load(&path)).contains("version 1"));
}

#[test]
fn overrides_replace_keys_and_wrong_ones_are_refused() {
    let two = format!("{PLAIN}\n{PLAIN}");
    let config = experiment(
        &two,
        &[
            "stage.0.epochs=9",
            "stage.*.batch=16",
            "name=other",
            "data.path=some where",
        ],
    );
    let epochs: Vec<usize> = config.stages.iter().map(|stage| stage.epochs).collect();
    assert_eq!(epochs, [9, 1]);
    assert!(config.stages.iter().all(|stage| stage.batch == 16));
    assert_eq!(config.name, "other");
    assert_eq!(config.data.path, Path::new("some where"));
    let text = toml::to_string(&config).unwrap();
    assert_eq!(Config::parse(&text, &[]).unwrap(), config, "{text}");
    let refused = |item: &str| error(Config::parse(&text, &[item.to_owned()]));
    assert!(refused("stage.0.epoch=9").contains("epoch"));
    assert!(refused("stage.0.epochs").contains("section.key=value"));
    assert!(refused("stage.2.epochs=1").contains("2 is none of its 2 entries"));
    assert!(refused("stage.0.batch=0").contains("stage 0: batch must be at least 1"));
    assert!(refused("stage.1.method={ bcd = { relus = 1, block = 0, trials = 1, tolerance = 0.3, step_epochs = 1 } }").contains("block"));
    assert!(refused("stage.1.schedule.rate=0.0").contains("schedule.rate"));
    assert!(
        refused("stage.1.optimiser={ rule = { sgd = { momentum = 1.5 } } }")
            .contains("momentum is 1.5")
    );
    let even = experiment(&two, &["network.stem.kernel=4"]);
    assert!(error(Run::new(even, common::images(), Device::flex())).contains("odd"));
    let site = experiment(
        &two,
        &["network.activations=[{ sites = \"stem\", by = \"square\" }]"],
    );
    assert!(error(Run::new(site, common::images(), Device::flex())).contains("stem.act"));
}

#[test]
fn the_experiments_of_the_repository_are_legal() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments");
    let mut folders = vec![root];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "toml") {
                let runs = Config::variants(&path, &[]).unwrap_or_else(|why| panic!("{why:#}"));
                for (name, mut config) in runs {
                    // What needs another run's weights is checked as far as its network and its slots, on narrow
                    // networks: names do not depend on the width.
                    config.warm_start = None;
                    config.network.width *= 0.125;
                    let run = Run::new(config, common::images(), Device::flex());
                    assert!(run.is_ok(), "{name}: {:#}", run.err().unwrap());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 0);
}
