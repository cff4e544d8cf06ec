//! Charts of results: accuracy against the number of ReLUs, and against predicted latency.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Axis, Chart, Series, Style};
use crate::result::Reported;

/// A point that others published.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Method, with its source.
    pub method: String,
    /// ReLUs of the network.
    pub relus: usize,
    /// Accuracy, 0 to 1.
    pub accuracy: f64,
}

/// Reads published points from a TOML file: `[[point]]` tables with `method`, `relus` and
/// `accuracy` (0 to 1).
///
/// # Errors
/// A file that cannot be read, an unknown key, an accuracy that is no share.
pub fn published(path: &Path) -> Result<Vec<Published>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        point: Vec<Published>,
    }
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: File = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    for point in &file.point {
        ensure!(
            (0.0..=1.0).contains(&point.accuracy),
            "in {}: the accuracy of {} is {}, must be between 0 and 1",
            path.display(),
            point.method,
            point.accuracy
        );
    }
    Ok(file.point)
}

/// Accuracy against ReLUs: a series for each method and network, and the published points. Networks
/// without a ReLU stand at 1, as a logarithmic axis has no 0.
pub fn budget(results: &[Reported], published: &[Published]) -> Chart {
    let mut series = grouped(
        results,
        |reported| Some(reported.result.relus.max(1) as f64),
    );
    let mut others: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for point in published {
        let at = (point.relus.max(1) as f64, 100.0 * point.accuracy);
        others.entry(&point.method).or_default().push(at);
    }
    series.extend(others.into_iter().map(|(method, points)| Series {
        name: format!("{method}, published"),
        points,
        style: Style::Published,
    }));
    Chart {
        title: "Accuracy against ReLU budget".to_owned(),
        x: Axis::logarithmic("ReLUs (1 stands for none)"),
        y: Axis::linear("test accuracy, %"),
        series,
    }
}

/// Accuracy against predicted latency under a profile; none if no result has costs.
///
/// # Errors
/// A profile that some costs do not know.
pub fn latency(results: &[Reported], profile: &str) -> Result<Option<Chart>> {
    for costs in results
        .iter()
        .filter_map(|reported| reported.costs.as_ref())
    {
        crate::costs::profile(costs, profile)?;
    }
    let series = grouped(results, |reported| {
        let predicted = &reported.costs.as_ref()?.predicted;
        Some(1e3 * predicted.get(profile)?.online_s)
    });
    Ok((!series.is_empty()).then(|| Chart {
        title: format!("Accuracy against predicted latency ({profile})"),
        x: Axis::logarithmic("online latency, ms"),
        y: Axis::linear("test accuracy, %"),
        series,
    }))
}

fn grouped(results: &[Reported], x: impl Fn(&Reported) -> Option<f64>) -> Vec<Series> {
    let mut groups: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for reported in results {
        let result = &reported.result;
        let name = format!("{}, {}", shortened(&result.method), result.network_name());
        if let Some(x) = x(reported) {
            groups
                .entry(name)
                .or_default()
                .push((x, 100.0 * result.test_accuracy));
        }
    }
    groups
        .into_iter()
        .map(|(name, mut points)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
            Series {
                name,
                points,
                style: Style::Dotted,
            }
        })
        .collect()
}

/// Characters of a method that a legend shows.
const METHOD: usize = 32;

fn shortened(method: &str) -> String {
    match method.char_indices().nth(METHOD) {
        None => method.to_owned(),
        Some((end, _)) => format!("{}...", method[..end].trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::example;
    use pi_ir::costs::Costs;

    fn reported(method: &str, relus: usize, accuracy: f64, costs: Option<Costs>) -> Reported {
        let mut value = example();
        value["method"] = method.into();
        value["relus"] = relus.into();
        value["test_accuracy"] = accuracy.into();
        Reported {
            name: "x".to_owned(),
            result: serde_json::from_value(value).unwrap(),
            costs,
        }
    }

    #[test]
    fn methods_are_series_and_published_points_are_crosses() {
        let results = [
            reported("snl", 6000, 0.9, None),
            reported("bcd", 6000, 0.92, None),
            reported("snl", 0, 0.8, None),
        ];
        let others = [Published {
            method: "AutoReP".to_owned(),
            relus: 12_900,
            accuracy: 0.943,
        }];
        let chart = budget(&results, &others);
        let names: Vec<&str> = chart.series.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(
            names,
            ["bcd, resnet20", "snl, resnet20", "AutoReP, published"]
        );
        assert_eq!(chart.series[1].points, [(1.0, 80.0), (6000.0, 90.0)]);
        assert_eq!(chart.series[2].style, Style::Published);
        let folder = tempfile::tempdir().unwrap();
        let [svg, _] = chart.write(folder.path(), "budget").unwrap();
        assert!(
            std::fs::read_to_string(svg)
                .unwrap()
                .contains("AutoReP, published")
        );
    }

    #[test]
    fn latency_is_that_of_the_costs() {
        let costs = crate::costs::parse(include_str!("../../tests/files/costs.json")).unwrap();
        let seconds = costs.predicted["wan"].online_s;
        let results = [
            reported("snl", 6000, 0.9, Some(costs)),
            reported("bcd", 6000, 0.92, None),
        ];
        let chart = latency(&results, "wan").unwrap().unwrap();
        assert_eq!(chart.series.len(), 1);
        assert_eq!(chart.series[0].points, [(1e3 * seconds, 90.0)]);
        assert!(latency(&results[1..], "wan").unwrap().is_none());
        assert!(
            latency(&results, "moon")
                .unwrap_err()
                .to_string()
                .contains("moon")
        );
    }

    #[test]
    fn published_points_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("published.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            published(&path).map_err(|error| format!("{error:#}"))
        };
        let point = "[[point]]\nmethod = \"SNL\"\nrelus = 15000\naccuracy = ";
        assert_eq!(read(&format!("{point}0.9")).unwrap()[0].relus, 15_000);
        assert!(
            read(&format!("{point}90.0"))
                .unwrap_err()
                .contains("between 0 and 1")
        );
        assert!(
            read(&format!("{point}0.9\nyear = 1"))
                .unwrap_err()
                .contains("year")
        );
    }
}
