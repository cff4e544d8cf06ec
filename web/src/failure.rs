//! Errors, as the worker gets them.

use serde::Serialize;

/// The end of an operation without its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Whose fault it is, by which the page chooses its sentence.
    pub kind: Kind,
    /// What is wrong, with its numbers.
    pub what: String,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The server's bytes break the protocol.
    Misbehaved,
    /// The server speaks another version.
    Incompatible,
    /// The line dropped.
    Lost,
    /// What the browser stored is not what was written.
    Stored,
    /// The model's circuit is not sound, or not the one announced.
    Model,
    /// The file is no input for the model.
    Input,
    /// A fault of the page.
    Internal,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: Kind, what: impl Into<String>) -> Failure {
        let what = what.into();
        Failure { kind, what }
    }

    pub(crate) fn internal(what: impl Into<String>) -> Failure {
        Failure::new(Kind::Internal, what)
    }

    pub(crate) fn misbehaved(what: impl Into<String>) -> Failure {
        Failure::new(Kind::Misbehaved, what)
    }
}

impl From<pi_protocol::Error> for Failure {
    fn from(error: pi_protocol::Error) -> Failure {
        let kind = match error {
            pi_protocol::Error::PeerMisbehaved { .. } => Kind::Misbehaved,
            pi_protocol::Error::PeerIncompatible { .. } => Kind::Incompatible,
            pi_protocol::Error::Channel { .. } => Kind::Lost,
            pi_protocol::Error::Stored { .. } => Kind::Stored,
            _ => Kind::Internal,
        };
        Failure::new(kind, error.to_string())
    }
}
