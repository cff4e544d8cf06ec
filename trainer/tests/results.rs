//! Every result in `experiments/` has the form that reports read, and belongs to a run of a
//! configuration beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pi_trainer::config::Config;
use pi_trainer::result::{RunResult, collect};

fn experiments() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments")
}

/// The runs of all configurations in a folder, by name.
fn runs(folder: &Path) -> BTreeMap<String, Config> {
    let entries = std::fs::read_dir(folder).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let tomls = files.filter(|file| file.extension().is_some_and(|end| end == "toml"));
    tomls
        .flat_map(|file| Config::variants(&file, &[]).unwrap())
        .collect()
}

#[test]
fn every_reported_result_is_that_of_a_run_beside_it() {
    let mut folders = vec![experiments()];
    let entries = std::fs::read_dir(experiments()).unwrap();
    folders.extend(entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()));
    let mut names = Vec::new();
    for folder in folders {
        let runs = runs(&folder);
        let files = std::fs::read_dir(&folder).unwrap();
        let json = |path: &Path| path.extension().is_some_and(|end| end == "json");
        if !files.into_iter().any(|file| json(&file.unwrap().path())) {
            continue;
        }
        let results = collect(std::slice::from_ref(&folder)).unwrap();
        names.extend(results.iter().map(|reported| reported.name.clone()));
        let mut faults = Vec::new();
        for reported in &results {
            let Some(config) = runs.get(&reported.name) else {
                faults.push(format!("{}: no such run", reported.name));
                continue;
            };
            let result = &reported.result;
            let mut compare = |key: &str, got: String, expected: String| {
                if got != expected {
                    let name = &reported.name;
                    faults.push(format!(
                        "{name}: {key} is {got}, in its configuration {expected}"
                    ));
                }
            };
            compare("seed", result.seed.to_string(), config.seed.to_string());
            if let Some(name) = &result.name {
                compare("name", name.clone(), config.name.clone());
            }
            let network = serde_json::to_value(&config.network).unwrap();
            for key in ["kind", "width"] {
                if let Some(value) = result.network.get(key) {
                    compare(key, value.to_string(), network[key].to_string());
                }
            }
        }
        let folder = folder.display();
        assert!(faults.is_empty(), "{folder}:\n{}", faults.join("\n"));
    }
    for known in ["bundled", "00-teacher"] {
        assert!(names.iter().any(|name| name == known), "{known}");
    }
}

#[test]
fn the_bundled_result_is_read_with_its_numbers() {
    let bundled = RunResult::load(&experiments().join("bundled.json")).unwrap();
    assert!(bundled.dataset.contains("JPEG quality 75"));
    // Those of the public stem included.
    assert!(bundled.relus == 29_044 && bundled.test_accuracy > 0.87);
    assert!(bundled.more.contains_key("holdout_accuracy"));
}
