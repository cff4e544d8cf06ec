//! Completions for shells and manual pages, made of the definitions of the arguments.

use clap::{Args, Command, Subcommand};
use clap_complete::Shell;
use std::io::Write;

// The subcommands that every program has for the sake of its installation. This is no documentation
// comment because clap would show it as the description of a program that adds them.
#[derive(Subcommand)]
pub(super) enum Manual {
    /// Print completions for a shell, to be put where it looks for them.
    Completions(Completions),
    /// Print the manual page, for the program `man`; of a subcommand if one is named.
    Man {
        /// The subcommand.
        subcommand: Option<String>,
    },
}

#[derive(Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

/// Prints what was asked for to standard output.
pub(super) fn print(manual: &Manual, mut command: Command) -> anyhow::Result<()> {
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
