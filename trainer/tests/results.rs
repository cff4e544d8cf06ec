//! Every result in `experiments/` has the form that reports read, and belongs to the configuration beside it.

use std::path::{Path, PathBuf};

use pi_trainer::result::{RunResult, collect};

fn experiments() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments")
}

#[test]
fn every_reported_result_is_whole() {
    let results = collect(&[experiments()]).unwrap();
    assert!(results.iter().any(|reported| reported.name == "bundled"));
    for reported in &results {
        let toml = experiments().join(format!("{}.toml", reported.name));
        assert!(
            toml.is_file(),
            "{} has no configuration {}",
            reported.name,
            toml.display()
        );
    }
}

#[test]
fn the_bundled_result_is_read_with_its_numbers() {
    let bundled = RunResult::load(&experiments().join("bundled.json")).unwrap();
    assert!(bundled.dataset.contains("JPEG quality 75"));
    assert!(bundled.relus <= 4000 && bundled.test_accuracy > 0.8);
    assert!(bundled.more.contains_key("holdout_accuracy"));
}
