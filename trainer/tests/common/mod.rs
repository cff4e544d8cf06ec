//! A tiny experiment on pictures drawn by code.

use pi_trainer::config::Config;
use pi_trainer::data::{Dataset, SIDE};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

const EXPERIMENT: &str = r#"
name = "tiny"
[data]
path = "nowhere"
holdout = 0
[network]
stem = { channels = 8, kernel = 3, stride = 4 }
stages = [{ channels = 8, stride = 1, blocks = 1 }, { channels = 12, stride = 2, blocks = 1 }]
[train]
seed = 7
epochs = 4
batch = 32
learning_rate = 0.1
warmup = 0.5
decay = 2.0
momentum = 0.9
weight_decay = 5e-4
clip = 1.0
label_smoothing = 0.1
shift = 2
range = { radius = 5.0, weight = 1e-3 }
[budget]
relus = 300
relu_epoch = 1
polynomial_sites = ["stem.act", "stage1.block1.a.act"]
polynomials = 200
polynomial_epoch = 2
batches = 2
"#;

/// The experiment, with overrides.
pub(crate) fn experiment(overrides: &[&str]) -> Config {
    let overrides: Vec<String> = overrides.iter().map(|item| (*item).to_owned()).collect();
    Config::parse(EXPERIMENT, &overrides).expect("the experiment above is legal")
}

/// Stripes whose direction, width and colour tell the class, with noise.
pub(crate) fn pictures(count: usize, seed: u64) -> Dataset {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut set = Dataset::default();
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
        set.labels.push(class as u8);
    }
    set
}
