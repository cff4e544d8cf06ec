//! Sweeps: several runs from one experiment file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::Config;

impl Config {
    /// Every run of an experiment file with its name, which is the name of the file followed by one
    /// choice from each axis of its `[sweep]`.
    ///
    /// ```toml
    /// [sweep.clip]
    /// clip = ["stage.*.optimiser.clip=1.0"]
    /// free = []
    /// [sweep.seed]
    /// 1 = ["seed=1"]
    /// 2 = ["seed=2"]
    /// ```
    /// makes four runs, `NAME-clip-1` and so on. A choice is a list of overrides.
    ///
    /// # Errors
    /// As [`Self::load`], and a sweep of another form or with two runs of one name.
    pub fn variants(path: &Path, overrides: &[String]) -> Result<Vec<(String, Self)>> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let stem = path.file_stem().unwrap_or(path.as_os_str());
        sweep(&text, &stem.to_string_lossy(), overrides)
            .with_context(|| format!("in {}", path.display()))
    }
}

fn sweep(text: &str, name: &str, overrides: &[String]) -> Result<Vec<(String, Config)>> {
    let mut root: toml::Table = text.parse()?;
    let sweep: BTreeMap<String, BTreeMap<String, Vec<String>>> = match root.remove("sweep") {
        None => BTreeMap::new(),
        Some(sweep) => sweep
            .try_into()
            .context("[sweep] must hold axes, each of named lists of overrides")?,
    };
    let mut runs = vec![(name.to_owned(), Vec::new())];
    for (axis, choices) in &sweep {
        ensure!(!choices.is_empty(), "[sweep.{axis}] has no choice");
        let with = |(name, own): &(String, Vec<String>)| {
            let choices = choices.iter();
            let extended = choices
                .map(|(choice, more)| (format!("{name}-{choice}"), [&own[..], more].concat()));
            extended.collect::<Vec<_>>()
        };
        runs = runs.iter().flat_map(with).collect();
        let mut seen: BTreeMap<&str, &[String]> = BTreeMap::new();
        for (name, own) in &runs {
            if let Some(other) = seen.insert(name, own) {
                bail!(
                    "[sweep.{axis}]: two runs would be named {name}, that of {other:?} and that \
                     of {own:?}: rename a choice"
                );
            }
        }
    }
    runs.into_iter()
        .map(|(name, mut own)| {
            own.extend_from_slice(overrides);
            let mut config = Config::from_table(root.clone(), &own)
                .with_context(|| format!("in the run {name}"))?;
            if !sweep.is_empty() {
                config.name.clone_from(&name);
            }
            Ok((name, config))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::PLAIN;
    use super::*;

    const SWEEP: &str = r#"
[sweep.clip]
clip = ["stage.*.optimiser.clip=1.0"]
free = []
[sweep.seed]
1 = ["seed=1"]
2 = ["seed=2", "stage.0.epochs=3"]
"#;

    #[test]
    fn a_sweep_makes_every_combination() {
        let swept = [PLAIN, SWEEP].concat();
        let runs = sweep(&swept, "a", &["stage.0.batch=16".to_owned()]).unwrap();
        let seen: Vec<(&str, Option<f32>, u64, usize)> = runs
            .iter()
            .map(|(name, config)| {
                let stage = &config.stages[0];
                assert_eq!((config.name.as_str(), stage.batch), (name.as_str(), 16));
                (
                    name.as_str(),
                    stage.optimiser.clip,
                    config.seed,
                    stage.epochs,
                )
            })
            .collect();
        let expected = [
            ("a-clip-1", Some(1.0), 1, 1),
            ("a-clip-2", Some(1.0), 2, 3),
            ("a-free-1", None, 1, 1),
            ("a-free-2", None, 2, 3),
        ];
        assert_eq!(seen, expected);
        let why = Config::parse(&swept, &[]).unwrap_err().to_string();
        assert!(why.contains("run-all"), "{why}");
        // The choices clip and 1-1, and the choices clip-1 and 1.
        let ambiguous = swept
            .replace("free = []", "clip-1 = []")
            .replace("2 = [\"seed=2\", ", "1-1 = [\"seed=2\", ");
        let why = sweep(&ambiguous, "a", &[]).unwrap_err().to_string();
        assert!(
            why.contains("named a-clip-1-1") && why.contains("seed=1") && why.contains("seed=2"),
            "{why}"
        );
    }
}
