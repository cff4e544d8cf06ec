//! A tiny experiment on images drawn by code.
#![allow(
    dead_code,
    reason = "each test file includes this module and uses a part of it"
)]

use burn::tensor::Device;
use indicatif::ProgressBar;
use pi_trainer::config::Config;
use pi_trainer::data::{CIFAR10_CLASSES, Data, Dataset, DeviceSet, Normalisation};
use pi_trainer::run::{EpochReport, Images, Run};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Side of the images.
pub(crate) const SIDE: usize = 32;
/// Their colours.
pub(crate) const CHANNELS: usize = 3;

const HEAD: &str = r#"
name = "tiny"
seed = 7
[data]
path = "nowhere"
holdout = 0
[network]
stem = { channels = 8, kernel = 3, stride = 4 }
stages = [{ channels = 8, stride = 1, blocks = 1 }, { channels = 12, stride = 2, blocks = 1 }]
[default]
batch = 32
optimiser = { clip = 1.0, weight_decay = 5e-4 }
schedule = { rate = 0.1, warmup = 0.5 }
augmentation = { shift = 2, flip = true }
"#;

/// Activations of the tiny network.
pub(crate) const POSITIONS: usize = 8 * 64 * 3 + 12 * 16 * 2;

/// The experiment with these stages, and overrides.
pub(crate) fn experiment(stages: &str, overrides: &[&str]) -> Config {
    let overrides: Vec<String> = overrides.iter().map(|item| (*item).to_owned()).collect();
    Config::parse(&format!("{HEAD}\n{stages}"), &overrides).expect("the experiment is legal")
}

pub(crate) fn images() -> Images {
    Images {
        dataset: "stripes".to_owned(),
        shape: [CHANNELS, SIDE, SIDE],
        classes: CIFAR10_CLASSES.map(str::to_owned).to_vec(),
        normalisation: Normalisation::cifar10(),
    }
}

pub(crate) fn run(stages: &str) -> Run {
    Run::new(experiment(stages, &[]), images(), Device::flex()).expect("the experiment can begin")
}

pub(crate) fn device_set(set: Dataset) -> DeviceSet {
    DeviceSet::new(set, Normalisation::cifar10(), &Device::flex())
}

pub(crate) fn data(train: usize, holdout: usize, seed: u64) -> Data {
    Data {
        train: device_set(stripes(train, seed)),
        holdout: device_set(stripes(holdout, seed + 1)),
    }
}

/// Trains all stages.
pub(crate) fn finish(run: &mut Run, data: &Data) -> Vec<EpochReport> {
    let mut reports = Vec::new();
    while !run.finished() {
        let report = run.epoch(data, &ProgressBar::hidden());
        reports.push(report.expect("training is stable"));
    }
    reports
}

/// A folder with the checkpoint of a run, as `checkpoint.pit`.
pub(crate) fn saved(run: &Run) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("there is room for temporary files");
    let path = folder.path().join("checkpoint.pit");
    run.checkpoint().save(&path).expect("the folder is there");
    folder
}

/// Stripes whose direction, width and colour tell the class, with noise.
pub(crate) fn stripes(count: usize, seed: u64) -> Dataset {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut set = Dataset::empty([CHANNELS, SIDE, SIDE]);
    for index in 0..count {
        let class = index % 10;
        for channel in 0..3 {
            for y in 0..SIDE {
                for x in 0..SIDE {
                    let along = if class % 2 == 0 { x } else { y };
                    let stripe = (along / (1 + class / 2)) % 2;
                    let base = if stripe == 0 {
                        60
                    } else {
                        120 + 10 * class * usize::from(channel == class % 3)
                    };
                    set.images
                        .push((base + (rng.next_u32() % 32) as usize) as u8);
                }
            }
        }
        set.labels.push(class as u16);
    }
    set
}
