//! Files that are missing, short or wrong: every error says which file and what is the matter.

mod common;

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use common::{experiment, pictures, run};
use pi_trainer::checkpoint::{Array, Arrays, Checkpoint};
use pi_trainer::config::Config;
use pi_trainer::data::{self, BATCH_RECORDS, Cifar10, IMAGE, SIDE};
use pi_trainer::run::Run;

const PLAIN: &str = "[[stage]]\nepochs = 1";

fn error<T>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

#[test]
fn records_are_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.bin");
    let set = pictures(12, 1);
    let mut bytes = Vec::new();
    for index in 0..set.len() {
        bytes.push(set.labels[index] as u8);
        bytes.extend_from_slice(set.image(index));
    }
    fs::write(&path, bytes).unwrap();
    assert_eq!(data::load_records(&path).unwrap(), set);
}

#[test]
fn broken_record_files_are_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data_batch_1.bin");
    let missing = error(data::load_records(&path));
    assert!(
        missing.contains("cannot read") && missing.contains("data_batch_1.bin"),
        "{missing}"
    );
    fs::write(&path, vec![0; IMAGE]).unwrap();
    let short = error(data::load_records(&path));
    assert!(
        short.contains("3072 bytes") && short.contains("cut short"),
        "{short}"
    );
    fs::write(&path, vec![10; 1 + IMAGE]).unwrap();
    let label = error(data::load_records(&path));
    assert!(label.contains("label 10"), "{label}");
    fs::write(&path, vec![1; 1 + IMAGE]).unwrap();
    let few = error(Cifar10::load(folder.path(), None));
    assert!(
        few.contains("1 images") && few.contains(&BATCH_RECORDS.to_string()),
        "{few}"
    );
}

#[test]
fn a_folder_without_batches_says_what_it_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let message = error(Cifar10::load(folder.path(), None));
    assert!(
        message.contains("data_batch_1.bin")
            && message.contains("cifar10_jpeg_data_batch_1.tar.xz"),
        "{message}"
    );
}

/// An archive of `(name, bytes)`.
fn archive(path: &Path, members: &[(&str, Vec<u8>)]) {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice())
            .unwrap();
    }
    let mut packed = Vec::new();
    lzma_rs::xz_compress(&mut tar.into_inner().unwrap().as_slice(), &mut packed).unwrap();
    fs::write(path, packed).unwrap();
}

fn jpeg(side: u32, colour: [u8; 3]) -> Vec<u8> {
    let image = image::RgbImage::from_pixel(side, side, image::Rgb(colour));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, image::ImageFormat::Jpeg)
        .unwrap();
    bytes.into_inner()
}

#[test]
fn archives_give_planar_images_in_record_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar.xz");
    let (red, blue) = (
        jpeg(SIDE as u32, [200, 10, 10]),
        jpeg(SIDE as u32, [10, 10, 200]),
    );
    archive(&path, &[("b/00001_7.jpg", blue), ("b/00000_3.jpg", red)]);
    let set = data::load_archive(&path, "b").unwrap();
    assert_eq!(set.labels, [3, 7]);
    // JPEG keeps a flat colour to a few units.
    let near = |byte: u8, value: u8| byte.abs_diff(value) <= 6;
    let plane = SIDE * SIDE;
    assert!(near(set.image(0)[0], 200) && near(set.image(0)[2 * plane], 10));
    assert!(near(set.image(1)[0], 10) && near(set.image(1)[3 * plane - 1], 200));
}

#[test]
fn broken_archives_are_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar.xz");
    let good = jpeg(SIDE as u32, [1, 2, 3]);
    let cases: [(&[(&str, Vec<u8>)], &str); 5] = [
        (
            &[
                ("b/00000_3.jpg", good.clone()),
                ("b/00002_3.jpg", good.clone()),
            ],
            "record 1 is missing",
        ),
        (
            &[
                ("b/00000_3.jpg", good.clone()),
                ("b/00000_4.jpg", good.clone()),
            ],
            "record 1 is missing or there twice",
        ),
        (
            &[("c/00000_3.jpg", good.clone())],
            "unexpected member c/00000_3.jpg",
        ),
        (&[("b/00000_3.jpg", jpeg(16, [0; 3]))], "16x16"),
        (
            &[("b/00000_3.jpg", good[..good.len() / 3].to_vec())],
            "member b/00000_3.jpg",
        ),
    ];
    for (members, expected) in cases {
        archive(&path, members);
        let message = error(data::load_archive(&path, "b"));
        assert!(message.contains(expected), "{message}");
    }
    archive(&path, &[("b/00000_3.jpg", good)]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let message = error(data::load_archive(&path, "b"));
    assert!(
        message.contains("a.tar.xz is cut short or corrupt"),
        "{message}"
    );
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

#[test]
fn real_batches_decode_where_they_are_at_hand() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/cifar10");
    if !folder.exists() {
        eprintln!("skipped: {} is not there", folder.display());
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let test = data::load_test(&folder, Some(cache.path())).unwrap();
    assert_eq!(test.len(), BATCH_RECORDS);
    for class in 0..10u16 {
        assert_eq!(
            test.labels.iter().filter(|label| **label == class).count(),
            1000,
            "class {class}"
        );
    }
    assert_eq!(
        data::load_test(&folder, Some(cache.path())).unwrap(),
        test,
        "the cache gives the same images"
    );
}
