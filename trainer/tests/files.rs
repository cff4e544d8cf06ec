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
fn a_flipped_bit_of_the_arrays_is_refused_and_files_without_a_checksum_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.pit");
    let checkpoint = run(PLAIN).checkpoint();
    checkpoint.save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
    let body = 16 + header;
    for position in [body, (body + whole.len()) / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[position] ^= 1;
        fs::write(&path, bytes).unwrap();
        let message = error(Checkpoint::load(&path));
        assert!(message.contains("damaged"), "byte {position}: {message}");
    }
    let mut old: serde_json::Value = serde_json::from_slice(&whole[16..body]).unwrap();
    assert!(old.as_object_mut().unwrap().remove("crc32").is_some());
    let old = serde_json::to_vec(&old).unwrap();
    let length = (old.len() as u64).to_le_bytes();
    fs::write(
        &path,
        [&whole[..8], &length[..], &old[..], &whole[body..]].concat(),
    )
    .unwrap();
    assert!(Checkpoint::load(&path).unwrap() == checkpoint);
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

/// Changing any byte of the description gives an error or a run that can be measured, never a
/// panic.
#[test]
fn a_checkpoint_with_any_byte_of_its_description_changed_is_refused_or_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.pit");
    let data = common::data(32, 10, 41);
    let mut run = run("[[stage]]\n\
         method = { quail = { norm = \"amm\", layer_epochs = 1, unfreeze_epochs = 1 } }\n\
         [[stage]]\nmethod = { snl = { relus = 9 } }\nepochs = 2\n\
         replace = [{ sites = \"*\", by = \"relu\" }]");
    for _ in 0..3 {
        run.epoch(&data, &indicatif::ProgressBar::hidden()).unwrap();
    }
    run.checkpoint().save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
    let (mut refused, mut runs) = (0, 0);
    for (position, to) in (16..16 + header).step_by(7).zip(b"09]-x\"".iter().cycle()) {
        let mut bytes = whole.clone();
        bytes[position] = *to;
        fs::write(&path, bytes).unwrap();
        let opened = Checkpoint::load(&path)
            .and_then(|checkpoint| Run::from_checkpoint(checkpoint, Device::flex()));
        match opened {
            Err(_) => refused += 1,
            Ok(mut run) => {
                runs += 1;
                if runs % 8 == 0 && run.meta.images.shape == common::images().shape {
                    drop(run.epoch(&data, &indicatif::ProgressBar::hidden()));
                }
            }
        }
    }
    assert!(refused > 100 && runs > 10, "{refused} refused, {runs} run");
}

#[test]
fn what_a_damaged_checkpoint_lacks_is_said() {
    let data = common::data(32, 10, 43);
    let trained = |stages: &str| {
        let mut run = run(stages);
        run.epoch(&data, &indicatif::ProgressBar::hidden()).unwrap();
        run.checkpoint()
    };
    let quail =
        "[[stage]]\nmethod = { quail = { norm = \"amm\", layer_epochs = 1, unfreeze_epochs = 1 } }";
    let snl = "[[stage]]\nmethod = { snl = { relus = 9 } }\nepochs = 5\n\
        optimiser = { rule = { adam = {} } }\nschedule = { rate = 1e-3 }";
    type Alter = fn(&mut Checkpoint);
    let cases: [(&str, Alter, &str); 8] = [
        (
            quail,
            |c| c.meta["teacher"] = ().into(),
            "lacks the teacher",
        ),
        (
            quail,
            |c| c.meta["stage_length"] = 99.into(),
            "phases of QuaIL",
        ),
        (
            quail,
            |c| c.meta["config"]["stage"][0]["batch"] = 0.into(),
            "batch must be",
        ),
        (
            snl,
            |c| c.meta["pressure"] = ().into(),
            "selection is not that of its stage",
        ),
        (
            snl,
            |c| c.meta["images"]["normalisation"]["std"][1] = 0.0.into(),
            "normalisation",
        ),
        (
            snl,
            |c| c.meta["images"]["shape"][1] = (1u64 << 40).into(),
            "at most 4096",
        ),
        (
            snl,
            |c| c.meta["config"]["network"]["stages"][0]["blocks"] = (1u64 << 40).into(),
            "fewer blocks",
        ),
        (
            snl,
            |c| {
                let ranges = c.arrays.get_mut("ranges").unwrap();
                ranges.insert("stem.act".to_owned(), Array::filled(&[2, 3], 0.0));
            },
            "range of stem.act",
        ),
    ];
    for (stages, alter, expected) in cases {
        let mut checkpoint = trained(stages);
        alter(&mut checkpoint);
        let message = error(Run::from_checkpoint(checkpoint, Device::flex()));
        assert!(message.contains(expected), "{message}");
    }
}

/// The same for checkpoints that were made within the first epoch of a stage.
#[test]
fn what_a_damaged_checkpoint_within_a_first_epoch_lacks_is_said() {
    let data = common::data(64, 10, 45);
    let stopped = |stages: &str| {
        let mut run = run(stages);
        let mut steps = 1..=1;
        let go_on = || steps.next().is_some();
        let report = run.epoch_while(&data, &indicatif::ProgressBar::hidden(), go_on);
        assert!(report.unwrap().is_none() && run.meta.stage_epoch == 0);
        run.checkpoint()
    };
    let quail =
        "[[stage]]\nmethod = { quail = { norm = \"amm\", layer_epochs = 1, unfreeze_epochs = 1 } }";
    let snl = "[[stage]]\nmethod = { snl = { relus = 9 } }\nepochs = 5\n\
        optimiser = { rule = { adam = {} } }\nschedule = { rate = 1e-3 }";
    let cases = [
        (quail, "teacher", "lacks the teacher"),
        (quail, "optimiser", "lacks its optimiser"),
        (snl, "optimiser", "lacks its optimiser"),
        (snl, "pressure", "selection is not that of its stage"),
        (PLAIN, "optimiser", "lacks its optimiser"),
    ];
    for (stages, key, expected) in cases {
        let mut checkpoint = stopped(stages);
        Run::from_checkpoint(checkpoint.clone(), Device::flex()).unwrap();
        checkpoint.meta[key] = ().into();
        let message = error(Run::from_checkpoint(checkpoint, Device::flex()));
        assert!(message.contains(expected), "{key}: {message}");
    }
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
    let block = "stage.1.method={ bcd = { relus = 1, block = 0, trials = 1, tolerance = 0.3, \
                 step_epochs = 1 } }";
    assert!(refused(block).contains("block"));
    assert!(refused("stage.1.schedule.rate=0.0").contains("schedule.rate"));
    for (item, expected) in [
        ("stage.0.schedule.rate=nan", "schedule.rate is NaN"),
        ("stage.0.schedule.rate=inf", "schedule.rate is inf"),
        ("stage.0.schedule.warmup=nan", "warmup"),
        (
            "stage.0.schedule.shape={ cosine = { floor = nan } }",
            "floor",
        ),
        (
            "stage.0.schedule.shape={ triangular = { peak = 0.2 } }",
            "no other",
        ),
        ("stage.0.optimiser.weight_decay=nan", "weight_decay"),
        ("stage.0.optimiser.clip=nan", "clip"),
        ("stage.0.optimiser.layer_decay=nan", "layer_decay"),
        (
            "stage.0.optimiser.average={ ema = { decay = nan } }",
            "decay",
        ),
        ("stage.0.label_smoothing=nan", "label_smoothing"),
        (
            "stage.0.range={ excess = { radius = nan, weight = 1.0 } }",
            "radius",
        ),
        (
            "stage.0.range={ power = { radius = 4.8, weight = inf } }",
            "weight",
        ),
        (
            "stage.0.range={ power = { radius = 4.8, weight = 1.0, exponents = [] } }",
            "exponents",
        ),
        (
            "stage.0.range={ power = { radius = 4.8, weight = 1.0, exponents = [3] } }",
            "even",
        ),
        (
            "stage.0.distil={ teacher = \"start\", temperature = nan }",
            "temperature and",
        ),
        (
            "stage.0.distil={ teacher = \"start\", weight = 0.0, cross_entropy = 0.0 }",
            "nothing to learn",
        ),
        (
            "stage.0.replace=[{ sites = \"*\", by = \"herpn\", keep = { relus = 5 } }]",
            "\"herpn\" takes whole sites",
        ),
        (
            "stage.0.method={ snl = { relus = 1, threshold = nan } }",
            "threshold",
        ),
        (
            "stage.0.method={ snl = { relus = 1, lambda = nan } }",
            "lambda",
        ),
        (
            "stage.0.method={ autorep = { relus = 1, hysteresis = nan } }",
            "hysteresis",
        ),
        // JSON has no infinity: a checkpoint would hold null, and could not be read.
        ("stage.0.schedule.warmup=inf", "warmup"),
        (
            "stage.0.schedule.shape={ linear = { epochs = inf } }",
            "linear epochs",
        ),
        (
            "stage.0.schedule.shape={ cosine = { floor = inf } }",
            "floor",
        ),
        (
            "stage.0.schedule.shape={ step = { every = 1, factor = inf } }",
            "factor",
        ),
        (
            "stage.0.optimiser.rule={ adam = { epsilon = inf } }",
            "epsilon",
        ),
        (
            "stage.0.optimiser.rule={ momo-adam = { epsilon = 1e39 } }",
            "epsilon",
        ),
        ("stage.0.optimiser.rule={ momo = { bound = inf } }", "bound"),
        ("stage.0.optimiser.clip=inf", "clip"),
        (
            "stage.0.optimiser.rates=[{ parameters = \"*\", factor = inf }]",
            "factor",
        ),
        (
            "stage.0.distil={ teacher = \"start\", weight = inf }",
            "distil: weight",
        ),
        (
            "stage.0.distil={ teacher = \"start\", cross_entropy = inf }",
            "cross_entropy",
        ),
        (
            "stage.0.distil={ teacher = \"start\", student_temperature = inf }",
            "student_temperature",
        ),
        (
            "stage.0.method={ snl = { relus = 1, growth = inf } }",
            "growth",
        ),
        (
            "stage.1.method={ bcd = { relus = 1, block = 1, trials = 1, tolerance = inf, \
             step_epochs = 1 } }",
            "bcd.tolerance is inf",
        ),
        (
            "stage.0.replace=[{ sites = \"*\", by = { drop-in = { by = \"least-squares\", \
             degree = 2, radius = inf } } }]",
            "radius is inf",
        ),
        (
            "network.activations=[{ sites = \"*\", by = { drop-in = { by = \"least-squares\", \
             degree = 2, radius = inf } } }]",
            "radius is inf",
        ),
        (
            "stage.0.distil={ teacher = { beside = { kind = \"resnet20\", width = inf } } }",
            "width is inf",
        ),
        (
            "stage.0.replace=[{ sites = \"*\", by = { quadratic = [0.2, inf, 0.0] } }]",
            "coefficients of a quadratic",
        ),
        ("stage.0.guard=0.0", "guard must be above 0"),
        ("stage.0.guard=inf", "guard must be above 0"),
        ("stage.0.ramp=1.5", "ramp is 1.5"),
        ("stage.0.ramp=nan", "ramp is NaN"),
        ("stage.0.statistics_rate=0.0", "statistics_rate is 0"),
        ("stage.0.statistics_rate=nan", "statistics_rate is NaN"),
        ("stage.0.epochs=18446744073709551615", "epochs"),
        ("stage.0.epochs=-1", "epochs"),
    ] {
        let message = refused(item);
        assert!(message.contains(expected), "{item}: {message}");
    }
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
                    // What needs another run's weights is checked as far as its network and its
                    // site functions, on narrow networks: names do not depend on the width.
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
