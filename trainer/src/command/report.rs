//! `pi-train report PATH...`: the table of results.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::plot::tradeoff;
use crate::{report, result};

/// Arguments of `pi-train report`.
#[derive(Args, Clone, Debug)]
pub struct ReportArguments {
    /// Results (NAME.json), or folders of them. A file NAME.costs.json beside a result, written by
    /// pi-compile --costs, adds bytes, messages and latency.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Print JSON instead of the Markdown table.
    #[arg(long)]
    pub json: bool,
    /// Draw accuracy against latency into this folder, as latency.svg and latency.png.
    #[arg(long, value_name = "FOLDER")]
    pub plot: Option<PathBuf>,
    /// Network profile of the drawn latency.
    #[arg(long, default_value = "wan")]
    pub profile: String,
}

/// The table or the JSON, ready to print; draws the chart if one is asked for.
///
/// # Errors
/// A result or costs that cannot be read; a chart of results of which none has costs; the file
/// system's.
pub fn report(arguments: &ReportArguments) -> Result<String> {
    let results = result::collect(&arguments.paths)?;
    if let Some(folder) = &arguments.plot {
        let chart = tradeoff::latency(&results, &arguments.profile)?;
        let chart = chart.context(
            "no result has costs beside it: write NAME.costs.json with \
             pi-compile GRAPH --calibration DATA --costs",
        )?;
        chart.write(folder, "latency")?;
    }
    let rows = report::rows(&results);
    if arguments.json {
        return Ok(format!("{}\n", serde_json::to_string_pretty(&rows)?));
    }
    Ok(report::markdown(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::costs;
    use crate::result::tests::example;

    #[test]
    fn a_folder_gives_table_json_and_chart() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text = include_str!("../../tests/files/costs.json");
        let mut result = example();
        result["relus"] = costs::parse(text).unwrap().kinds.relu.into();
        std::fs::write(at("small.json"), result.to_string()).unwrap();
        let mut arguments = ReportArguments {
            paths: vec![folder.path().to_owned()],
            json: false,
            plot: Some(at("plots")),
            profile: "wan".to_owned(),
        };
        let error = report(&arguments).unwrap_err().to_string();
        assert!(error.contains("pi-compile"), "{error}");
        std::fs::write(at("small.costs.json"), text).unwrap();
        let table = report(&arguments).unwrap();
        assert!(
            table.contains("| small |") && table.contains("latency, lan"),
            "{table}"
        );
        assert!(at("plots/latency.png").is_file());
        arguments.json = true;
        let rows: serde_json::Value = serde_json::from_str(&report(&arguments).unwrap()).unwrap();
        assert_eq!(rows[0]["relus"], result["relus"]);
        assert!(rows[0]["online"]["bytes_down"].as_u64().unwrap() > 0);
    }
}
