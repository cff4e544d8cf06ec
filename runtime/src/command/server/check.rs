//! `pi-server check`: all that is wrong with a configuration, at once.

use super::{Arguments, config, describe};
use crate::server::{Server, ServerOptions};
use anyhow::bail;
use clap::{Command, FromArgMatches};
use std::path::Path;

/// Checks a file and what it names, and prints what would be served.
pub(super) fn check(command: &Command, path: &Path) -> anyhow::Result<()> {
    let (arguments, mut faults) = config::check(command, path)?;
    match options(command, arguments) {
        Ok(options) => match Server::check(&options) {
            Ok(models) if faults.is_empty() => {
                for model in models {
                    println!("{}", describe(&model));
                }
                println!("nothing is wrong with {}", path.display());
            }
            Ok(_) => {}
            Err(more) => faults.extend(more.iter().map(ToString::to_string)),
        },
        Err(fault) => faults.push(fault),
    }
    match faults.is_empty() {
        true => Ok(()),
        false => bail!(
            "{} of {} to mend:\n  {}",
            faults.len(),
            path.display(),
            faults.join("\n  ")
        ),
    }
}

fn options(command: &Command, arguments: Vec<std::ffi::OsString>) -> Result<ServerOptions, String> {
    let matches = command.clone().try_get_matches_from(arguments);
    let matches = matches.map_err(|error| config::first_line(&error))?;
    let arguments = Arguments::from_arg_matches(&matches);
    let arguments = arguments.map_err(|error| config::first_line(&error))?;
    arguments.options().map_err(|error| error.to_string())
}
