//! The settings of `pi-server` from three places: options of the command, variables of the
//! environment, and a file. Every option `--some-name` has the variable `PI_SERVER_SOME_NAME` and
//! the key `some-name` of the file; an option comes before a variable, a variable before the file.

use anyhow::{Context, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The option that names the file; it has no key.
pub(super) const CONFIG: &str = "config";

/// The arguments as they are after all three places were asked.
///
/// # Errors
/// If the file cannot be read, or has something else than the keys of options.
pub(super) fn layered(command: &Command, given: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let matches = lenient(command).ignore_errors(true);
    let Ok(matches) = matches.try_get_matches_from(&given) else {
        // The user asks for help.
        return Ok(given);
    };
    let file = match config_file(&matches) {
        Some(path) => read(&path)?,
        None => Table::new(),
    };
    let mut faults = unknown_keys(command, &file);
    let mut arguments = given;
    for arg in settings(command) {
        let key = key_of(arg);
        if matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            continue;
        }
        if let Some(value) = variable(key) {
            arguments.extend(from_text(arg, key, value)?);
        } else if let Some(value) = file.get(key) {
            match from_value(arg, key, value) {
                Ok(more) => arguments.extend(more),
                Err(fault) => faults.push(fault),
            }
        }
    }
    match faults.is_empty() {
        true => Ok(arguments),
        false => bail!(
            "the configuration cannot be used:\n  {}",
            faults.join("\n  ")
        ),
    }
}

/// The arguments for which a file stands by itself, and all that is wrong with its keys and values,
/// one by one.
///
/// # Errors
/// If it cannot be read.
pub(super) fn check(
    command: &Command,
    path: &Path,
) -> anyhow::Result<(Vec<OsString>, Vec<String>)> {
    let file = read(path)?;
    let mut faults = unknown_keys(command, &file);
    let mut arguments = vec![OsString::from(command.get_name())];
    for arg in settings(command) {
        let key = key_of(arg);
        let Some(value) = file.get(key) else { continue };
        let more = match from_value(arg, key, value) {
            Ok(more) => more,
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        };
        let alone = std::iter::once(OsString::from(command.get_name())).chain(more.clone());
        match alone_is_fine(command, alone) {
            Ok(()) => arguments.extend(more),
            Err(fault) => faults.push(format!("{key}: {fault}")),
        }
    }
    Ok((arguments, faults))
}

/// Parses an argument without regard to what else it needs.
fn alone_is_fine(
    command: &Command,
    arguments: impl Iterator<Item = OsString>,
) -> Result<(), String> {
    use clap::error::ErrorKind;
    match lenient(command).try_get_matches_from(arguments) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => Ok(()),
        Err(error) => Err(first_line(&error)),
    }
}

/// The first line of what is wrong, without its heading.
pub(super) fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

/// The same command, which misses nothing.
fn lenient(command: &Command) -> Command {
    command.clone().mut_args(|arg| arg.required(false))
}

fn config_file(matches: &ArgMatches) -> Option<PathBuf> {
    let given = matches.try_get_one::<PathBuf>(CONFIG).ok().flatten();
    given
        .cloned()
        .or_else(|| variable(CONFIG).map(PathBuf::from))
}

fn read(path: &Path) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read the configuration {}", path.display()))?;
    let table = text.parse::<Table>();
    table.with_context(|| format!("{} is no TOML", path.display()))
}

/// The options that can be set: all but those that print something.
fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let prints = matches!(
            arg.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        );
        !prints && arg.get_long().is_some_and(|long| long != CONFIG)
    })
}

fn key_of(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_default()
}

fn unknown_keys(command: &Command, file: &Table) -> Vec<String> {
    let known: Vec<&str> = settings(command).map(key_of).collect();
    let unknown = file.keys().filter(|key| !known.contains(&key.as_str()));
    let fault = |key: &String| {
        format!(
            "{key:?} is no key; there are {}, as the options of pi-server",
            known.join(", ")
        )
    };
    unknown.map(fault).collect()
}

/// A variable of the environment that is set, and not to nothing.
pub(super) fn variable(key: &str) -> Option<OsString> {
    let name = format!("PI_SERVER_{}", key.to_uppercase().replace('-', "_"));
    std::env::var_os(name).filter(|value| value != OsStr::new(""))
}

fn option(key: &str, value: &OsStr) -> OsString {
    let mut text = OsString::from(format!("--{key}="));
    text.push(value);
    text
}

fn from_text(arg: &Arg, key: &str, value: OsString) -> anyhow::Result<Option<OsString>> {
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        return Ok(Some(option(key, &value)));
    }
    match value.to_str() {
        Some("1" | "true" | "yes") => Ok(Some(format!("--{key}").into())),
        Some("0" | "false" | "no") => Ok(None),
        _ => bail!("the variable for --{key} is {value:?}, and neither true nor false"),
    }
}

fn from_value(arg: &Arg, key: &str, value: &Value) -> Result<Vec<OsString>, String> {
    let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    let one = |value: &Value| match value {
        Value::String(text) => Ok(option(key, OsStr::new(text))),
        Value::Integer(number) => Ok(option(key, OsStr::new(&number.to_string()))),
        Value::Float(number) => Ok(option(key, OsStr::new(&number.to_string()))),
        other => Err(format!("{key}: {} is not what it takes", other.type_str())),
    };
    match value {
        Value::Boolean(on) if is_flag => {
            Ok(on.then(|| format!("--{key}").into()).into_iter().collect())
        }
        _ if is_flag => Err(format!("{key}: it is true or false")),
        Value::Array(values) if is_list => values.iter().map(one).collect(),
        value => one(value).map(|argument| vec![argument]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::value_parser;

    fn command() -> Command {
        Command::new("it")
            .arg(
                Arg::new("config")
                    .long("config")
                    .value_parser(value_parser!(PathBuf)),
            )
            .arg(
                Arg::new("count")
                    .long("a-count")
                    .required(true)
                    .value_parser(value_parser!(u16)),
            )
            .arg(Arg::new("list").long("list").action(ArgAction::Append))
            .arg(Arg::new("flag").long("flag").action(ArgAction::SetTrue))
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn given(file: &tempfile::NamedTempFile, more: &[&str]) -> Vec<OsString> {
        let path = file.path().to_str().unwrap();
        let start = ["it", "--config", path];
        start.iter().chain(more).map(OsString::from).collect()
    }

    #[test]
    fn an_option_comes_before_the_file() {
        let file = file("a-count = 3\nlist = [\"a\", \"b\"]\nflag = true\n");
        let arguments = layered(&command(), given(&file, &["--list", "c"])).unwrap();
        let matches = command().get_matches_from(arguments);
        assert_eq!(matches.get_one::<u16>("count"), Some(&3));
        let list: Vec<&String> = matches.get_many("list").unwrap().collect();
        assert_eq!(list, ["c"]);
        assert!(matches.get_flag("flag"));
    }

    #[test]
    fn all_faults_of_a_file_are_told_at_once() {
        let file = file("a-count = 70000\ncuont = 3\nflag = \"yes\"\nlist = [true]\n");
        let error = layered(&command(), given(&file, &[]))
            .unwrap_err()
            .to_string();
        for fault in [
            "\"cuont\" is no key",
            "flag: it is true or false",
            "list: boolean",
        ] {
            assert!(error.contains(fault), "{error}");
        }
        let (_, faults) = check(&command(), file.path()).unwrap();
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(
            faults
                .iter()
                .any(|fault| fault.starts_with("a-count: invalid value"))
        );
    }

    #[test]
    fn text_that_is_no_toml_is_named_with_its_file() {
        let file = file("a-count = = 3");
        let error = layered(&command(), given(&file, &[])).unwrap_err();
        assert!(format!("{error:#}").contains("is no TOML"), "{error:#}");
    }
}
