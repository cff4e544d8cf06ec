//! Changes to an experiment file before it is read: `[default]` and the overrides of the command
//! line.

use anyhow::{Context, Result, bail};

/// Copies the keys of `[default]` into every stage that lacks them.
pub(super) fn spread_defaults(root: &mut toml::Table) -> Result<()> {
    let Some(default) = root.remove("default") else {
        return Ok(());
    };
    let toml::Value::Table(default) = default else {
        bail!("[default] must be a table of stage keys");
    };
    let Some(toml::Value::Array(stages)) = root.get_mut("stage") else {
        bail!("[default] stands for keys of [[stage]], and there is no stage");
    };
    for stage in stages {
        let stage = stage.as_table_mut().context("a stage must be a table")?;
        for (key, value) in &default {
            stage.entry(key).or_insert_with(|| value.clone());
        }
    }
    Ok(())
}

/// Applies overrides of the form `section.key=value`, in order.
pub(super) fn apply(root: &mut toml::Value, overrides: &[String]) -> Result<()> {
    for item in overrides {
        let (key, value) = item
            .split_once('=')
            .with_context(|| format!("override `{item}` is not of the form section.key=value"))?;
        let path: Vec<&str> = key.trim().split('.').collect();
        set(root, &path, &parse_value(value.trim()))
            .with_context(|| format!("override of {key}"))?;
    }
    Ok(())
}

/// A TOML value, or the text itself where it is none: strings need no quotes on the command line.
fn parse_value(text: &str) -> toml::Value {
    format!("v = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

fn set(at: &mut toml::Value, path: &[&str], value: &toml::Value) -> Result<()> {
    let [key, rest @ ..] = path else {
        *at = value.clone();
        return Ok(());
    };
    match at {
        toml::Value::Table(table) => {
            let next = table
                .entry(*key)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            set(next, rest, value)
        }
        toml::Value::Array(items) if *key == "*" => {
            items.iter_mut().try_for_each(|item| set(item, rest, value))
        }
        toml::Value::Array(items) => {
            let count = items.len();
            let item = key
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get_mut(index))
                .with_context(|| format!("{key} is none of its {count} entries"))?;
            set(item, rest, value)
        }
        _ => bail!("{key} would be a key of something that is no section"),
    }
}
