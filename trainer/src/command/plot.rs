//! `pi-train plot PATH...`: the charts of runs and results.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::log::{self, LOG_NAME};
use crate::plot::curves::{self, History};
use crate::plot::{Chart, tradeoff};
use crate::result;

/// Arguments of `pi-train plot`.
#[derive(Args, Clone, Debug)]
pub struct PlotArguments {
    /// Folders of runs (with a log.jsonl), results (NAME.json), or folders of results.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Folder for the charts, each as SVG and PNG; created if it does not exist.
    #[arg(long, default_value = "plots")]
    pub out: PathBuf,
    /// TOML file of published points to draw beside the results: tables `[[point]]` with method,
    /// relus and accuracy.
    #[arg(long, value_name = "FILE")]
    pub published: Option<PathBuf>,
    /// Network profile of the latency, one of those in the results' NAME.costs.json.
    #[arg(long, default_value = "wan")]
    pub profile: String,
}

/// Draws what the paths hold, and returns the files written.
///
/// Runs give `loss`, `accuracy`, `gradients`, `escape` (over depth) and `outside` together, and
/// `escape-RUN` and `outside-RUN` (over epochs) each; results give `budget` and, with costs beside
/// them, `latency`. Charts that no log has numbers for are left out.
///
/// # Errors
/// A path that is neither; paths that hold nothing to draw; a log or a result that cannot be read;
/// the file system's.
pub fn plot(arguments: &PlotArguments) -> Result<Vec<PathBuf>> {
    let (logs, results): (Vec<_>, Vec<_>) = arguments
        .paths
        .iter()
        .cloned()
        .partition(|path| path.join(LOG_NAME).is_file() || path.ends_with(LOG_NAME));
    let mut charts: Vec<(String, Chart)> = Vec::new();
    let mut add = |name: &str, chart: Option<Chart>| {
        charts.extend(chart.map(|chart| (name.to_owned(), chart)));
    };
    let runs = histories(&logs)?;
    if !runs.is_empty() {
        add("loss", curves::loss(&runs));
        add("accuracy", curves::accuracy(&runs));
        add("gradients", curves::gradients(&runs));
        add("escape", curves::escape_over_depth(&runs));
        add("outside", curves::outside_over_depth(&runs));
        for run in &runs {
            let file = run.name.replace(['/', '\\'], "-");
            add(&format!("escape-{file}"), curves::escape(run));
            add(&format!("outside-{file}"), curves::outside(run));
        }
    }
    ensure!(
        arguments.published.is_none() || !results.is_empty(),
        "--published draws points beside results: name a result or a folder of them"
    );
    if !results.is_empty() {
        let results = result::collect(&results).context(
            "a path is a run's folder (with a log.jsonl), a result, or a folder of results",
        )?;
        let published = match &arguments.published {
            Some(file) => tradeoff::published(file)?,
            None => Vec::new(),
        };
        add("budget", Some(tradeoff::budget(&results, &published)));
        add("latency", tradeoff::latency(&results, &arguments.profile)?);
    }
    ensure!(
        !charts.is_empty(),
        "there is nothing to draw: no log has a number of a finished epoch"
    );
    let mut files = Vec::new();
    for (name, chart) in charts {
        files.extend(chart.write(&arguments.out, &name)?);
    }
    Ok(files)
}

/// The logs with names that tell them apart: of the folder, or of as many folders above it as that
/// takes.
fn histories(paths: &[PathBuf]) -> Result<Vec<History>> {
    let folders: Vec<&Path> = paths
        .iter()
        .map(|path| match path.ends_with(LOG_NAME) && path.is_file() {
            true => path.parent().unwrap_or(Path::new(".")),
            false => path,
        })
        .collect();
    let name = |folder: &Path, parts: usize| {
        let all: Vec<_> = folder.iter().map(|part| part.to_string_lossy()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let longest = folders.iter().map(|f| f.iter().count()).max().unwrap_or(1);
    let unique = |parts: &usize| {
        let mut names: Vec<String> = folders.iter().map(|f| name(f, *parts)).collect();
        names.sort();
        names.windows(2).all(|pair| pair[0] != pair[1])
    };
    let parts = (1..=longest).find(unique);
    let parts = parts.context("the same run is named twice")?;
    folders
        .iter()
        .map(|folder| {
            Ok(History {
                name: name(folder, parts),
                epochs: log::read(&folder.join(LOG_NAME))?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::example;
    use std::fs;

    fn arguments(paths: Vec<PathBuf>, out: PathBuf) -> PlotArguments {
        PlotArguments {
            paths,
            out,
            published: None,
            profile: "wan".to_owned(),
        }
    }

    #[test]
    fn runs_and_results_give_their_charts() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for run in ["amm/run", "mm/run"] {
            fs::create_dir_all(at(run)).unwrap();
            let site = r#""sites": {"stem.act": {"largest": 3.0, "outside": 0.1}}"#;
            let lines: Vec<String> = (1..=3)
                .map(|e| {
                    format!(
                        "{{\"epoch\": {e}, \"loss\": 1.5, \"holdout_accuracy\": 0.5, {site}}}\n"
                    )
                })
                .collect();
            fs::write(at(run).join(LOG_NAME), lines.concat()).unwrap();
        }
        fs::write(at("a.json"), example().to_string()).unwrap();
        let paths = vec![at("amm/run"), at("mm/run"), at("a.json")];
        let files = plot(&arguments(paths, at("plots"))).unwrap();
        let mut names: Vec<String> = files
            .iter()
            .map(|file| file.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        names.retain(|name| name.ends_with(".svg"));
        assert_eq!(
            names,
            [
                "loss.svg",
                "accuracy.svg",
                "escape.svg",
                "outside.svg",
                "escape-amm-run.svg",
                "outside-amm-run.svg",
                "escape-mm-run.svg",
                "outside-mm-run.svg",
                "budget.svg"
            ]
        );
        assert!(files.iter().all(|file| file.is_file()) && files.len() == 2 * names.len());
        let escape = fs::read_to_string(at("plots/escape.svg")).unwrap();
        assert!(escape.contains("amm/run") && escape.contains("mm/run"));
    }

    #[test]
    fn a_run_without_losses_gives_its_other_charts() {
        let folder = tempfile::tempdir().unwrap();
        let (run, out) = (folder.path().join("run"), folder.path().join("plots"));
        fs::create_dir(&run).unwrap();
        let drawn = |line: &str| {
            fs::write(run.join(LOG_NAME), format!("{line}\n")).unwrap();
            plot(&arguments(vec![run.clone()], out.clone()))
        };
        let files = drawn(concat!(
            r#"{"epoch": 0, "loss": null, "holdout_loss": null, "#,
            r#""sites": {"stem.act": {"largest": 3.0}}}"#,
        ));
        let names: Vec<String> = files
            .unwrap()
            .iter()
            .map(|file| file.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            names,
            [
                "escape.svg",
                "escape.png",
                "escape-run.svg",
                "escape-run.png"
            ]
        );
        let error = drawn(r#"{"epoch": 0, "loss": null}"#).unwrap_err();
        assert!(error.to_string().contains("nothing to draw"), "{error}");
    }

    #[test]
    fn what_is_no_run_and_no_result_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let fails = |arguments: &PlotArguments, says: &str| {
            let error = format!("{:#}", plot(arguments).unwrap_err());
            assert!(error.contains(says), "{error}");
        };
        let (empty, out) = (folder.path().join("empty"), folder.path().join("out"));
        fs::create_dir(&empty).unwrap();
        fails(&arguments(vec![empty.clone()], out.clone()), "no result");
        fails(
            &arguments(vec![folder.path().join("absent")], out.clone()),
            "cannot read",
        );
        fs::write(empty.join(LOG_NAME), "{\"epoch\": 1, \"loss\": 1}\n").unwrap();
        fails(
            &arguments(vec![empty.clone(), empty.clone()], out.clone()),
            "twice",
        );
        let published = PlotArguments {
            published: Some(empty.clone()),
            ..arguments(vec![empty], out)
        };
        fails(&published, "--published");
    }
}
