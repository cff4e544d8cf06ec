//! The exit codes of the programs, for scripts that act on them.
//!
//! 2 is for arguments that cannot be understood, as `clap` has it.

use crate::error::Error;
use crate::stream::Refusal;

/// An error that has no code of its own.
pub const FAILURE: u8 = 1;
/// An input is out of the network's range, and nothing else went wrong.
pub const OUT_OF_RANGE: u8 = 3;
/// A file could not be used; what could be answered was.
pub const FILES: u8 = 4;
/// No bundle is ready, or fewer than were needed.
pub const NOT_PREPARED: u8 = 5;
/// The server cannot be reached, or was lost.
pub const UNREACHABLE: u8 = 6;
/// The server refused.
pub const REFUSED: u8 = 7;
/// The server is not the right one, or nothing says whether it is.
pub const NOT_TRUSTED: u8 = 8;

/// The table of codes, as the help of `pi-client` shows it.
pub(super) const TABLE: &str = "\
Exit codes:
  0  all is well, and every file was answered
  1  another error
  2  arguments that cannot be understood
  3  an input is out of the network's range, and so without an answer
  4  a file could not be used; all others were answered
  5  nothing is prepared, or fewer bundles than files
  6  the server cannot be reached, or was lost
  7  the server refused: it is full, does not serve this client, or gives no more answers
  8  the server is not the one that it should be, or nothing says which it should be
Of several the highest is given, 1 aside.";

impl Error {
    /// The exit code of a program that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::InputFile(_) | Error::Input(_) => FILES,
            Error::NoServer
            | Error::NotPrepared(_)
            | Error::NoBundle(_)
            | Error::ModelChanged { .. }
            | Error::NotHeld(_) => NOT_PREPARED,
            Error::UnknownHost { .. }
            | Error::Unreachable { .. }
            | Error::NoneAnswers { .. }
            | Error::NobodyListens(_)
            | Error::Lost(_)
            | Error::Silent { .. } => UNREACHABLE,
            Error::ServerFull(_) => REFUSED,
            Error::Refused { refusal, .. } => match refusal {
                Refusal::NoSetup
                | Refusal::ModelChanged
                | Refusal::UnknownBundle
                | Refusal::SpentBundle => NOT_PREPARED,
                Refusal::ShuttingDown | Refusal::Silent => UNREACHABLE,
                _ => REFUSED,
            },
            Error::WrongFingerprint { .. }
            | Error::UnknownServer { .. }
            | Error::Certificate { .. }
            | Error::NoTrust(_) => NOT_TRUSTED,
            _ => FAILURE,
        }
    }
}
