//! The dashboard and the alerts ask for metrics that there are.

use pi_runtime::observe::{AtRest, MemoryLevels, Metrics};
use pi_runtime::stream::StreamTraffic;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const DASHBOARD: &str = include_str!("../../../packaging/grafana-pianissimo.json");
const ALERTS: &str = include_str!("../../../packaging/prometheus-alerts.yml");

/// The names of all samples of a server that has seen an operation.
fn samples() -> BTreeSet<String> {
    let metrics = Metrics::new(&["m"]);
    metrics.begun("infer");
    let traffic = StreamTraffic::default();
    metrics.ended("infer", "m", "ok", Duration::ZERO, traffic);
    let at_rest = AtRest::from([("m".into(), 1)]);
    let text = metrics.exposition(&MemoryLevels::default(), Some(&at_rest));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| line.split(['{', ' ']).next().map(str::to_owned);
    lines.filter_map(name).collect()
}

/// The metrics of ours that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = |word: &&str| word.starts_with("pianissimo_") || word.starts_with("process_");
    words.filter(ours).map(str::to_owned).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).unwrap()
}

#[test]
fn every_query_names_metrics_that_there_are() {
    let samples = samples();
    let dashboard = dashboard();
    let mut texts = vec![ALERTS.to_owned()];
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            assert!(!named(query).is_empty(), "{query} asks for nothing");
            texts.push(query.to_owned());
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        texts.extend(variable["definition"].as_str().map(str::to_owned));
    }
    assert!(texts.len() > 20, "{}", texts.len());
    for text in texts {
        for name in named(&text) {
            assert!(samples.contains(&name), "{name} of {text} is not there");
        }
    }
}

/// What Grafana 10 needs of a dashboard: an identifier and a place for every panel, rows that are
/// not one over another, and a source of data for every query.
#[test]
fn the_dashboard_is_one_that_loads() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36));
    assert!(dashboard["title"].is_string() && dashboard["uid"].is_string());
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    let mut rows = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        let (x, y) = (place("x"), place("y"));
        assert!(x + place("w") <= 24, "{panel}");
        for x in x..x + place("w") {
            for y in y..y + place("h") {
                assert!(taken.insert((x, y)), "{panel}");
            }
        }
        match panel["type"].as_str().unwrap() {
            "row" => rows.push(panel["title"].as_str().unwrap()),
            "timeseries" => {
                assert_eq!(panel["datasource"]["uid"], "${datasource}");
                for target in panel["targets"].as_array().unwrap() {
                    assert_eq!(target["datasource"]["type"], "prometheus");
                    assert!(target["refId"].is_string());
                }
            }
            other => panic!("{other} is no kind of panel that is meant"),
        }
    }
    let expected = [
        "Answers and latency",
        "Bundles",
        "Memory and queue",
        "Bytes",
        "Errors",
        "Process",
    ];
    assert_eq!(rows, expected);
}
