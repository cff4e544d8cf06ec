//! Completions for shells and manual pages, made of the definitions of the arguments.
//!
//! The programs of runtime and compiler have them as subcommands, `completions` and `man`.
#![forbid(unsafe_code)]

use clap::{Args, Command, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use std::io::Write;

// The subcommands that every program has for the sake of its installation. This is no documentation
// comment because clap would show it as the description of a program that adds them.
#[allow(missing_docs, reason = "the comment above")]
#[derive(Subcommand)]
pub enum Manual {
    /// Print completions for a shell, to be put where it looks for them.
    Completions(Completions),
    /// Print the manual page, for the program `man`; of a subcommand if one is named.
    Man {
        /// The subcommand.
        subcommand: Option<String>,
    },
}

/// The arguments of `completions`.
#[derive(Args)]
pub struct Completions {
    /// The shell.
    shell: Shell,
}

/// The arguments of a program without other subcommands, as this process got them; `None` if a
/// manual was asked for instead, and printed. Ends the process if they cannot be understood.
///
/// # Errors
/// As [`print()`].
pub fn arguments<A: Parser>() -> anyhow::Result<Option<A>> {
    let command = with_manuals(A::command());
    let matches = command.clone().get_matches();
    if let Ok(manual) = Manual::from_arg_matches(&matches) {
        print(&manual, command)?;
        return Ok(None);
    }
    match A::from_arg_matches(&matches) {
        Ok(arguments) => Ok(Some(arguments)),
        Err(error) => error.format(&mut A::command()).exit(),
    }
}

/// A program with the subcommands beside its own arguments, which are not needed for them.
fn with_manuals(command: Command) -> Command {
    Manual::augment_subcommands(command)
        .subcommand_required(false)
        .arg_required_else_help(false)
        .subcommand_negates_reqs(true)
        .args_conflicts_with_subcommands(true)
}

/// Prints what was asked for to standard output.
///
/// # Errors
/// If there is no such subcommand, or standard output cannot be written.
pub fn print(manual: &Manual, mut command: Command) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    match manual {
        Manual::Completions(Completions { shell }) => {
            let name = command.get_name().to_owned();
            clap_complete::generate(*shell, &mut command, name, &mut bytes);
        }
        Manual::Man { subcommand } => {
            command.build();
            let command = match subcommand {
                None => command,
                Some(name) => {
                    let found = command.find_subcommand(name).cloned();
                    found.ok_or_else(|| anyhow::anyhow!("there is no subcommand {name:?}"))?
                }
            };
            clap_mangen::Man::new(command).render(&mut bytes)?;
        }
    }
    std::io::stdout().write_all(&bytes)?;
    Ok(())
}
