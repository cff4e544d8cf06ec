//! The flag for the form of the log, which both programs have.

use crate::observe::logs::LogFormat;

#[derive(clap::Args)]
pub(super) struct LogArguments {
    /// Form of the log on standard error: lines, or one JSON object a line. PI_LOG selects what is
    /// logged, for example PI_LOG=pi_runtime=debug.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub(super) log_format: LogFormat,
}
