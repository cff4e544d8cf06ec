//! Everything that can go wrong, and whose fault it is.

/// Reason why a session ended without its result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer's bytes break the protocol.
    #[error("the peer misbehaved: {what}")]
    PeerMisbehaved {
        /// Expected and received bytes, in words.
        what: String,
    },
    /// The peer is honest, but the two cannot work together.
    #[error("the peer is incompatible: {what}")]
    PeerIncompatible {
        /// The difference, in words.
        what: String,
    },
    /// Our own caller passed something that cannot be used.
    #[error("api misuse: {what}")]
    ApiMisuse {
        /// The argument that was passed, in words.
        what: String,
    },
    /// Bytes that we stored ourselves are not what we stored.
    #[error("stored bytes are damaged: {what}")]
    Stored {
        /// The thing that was to be read, in words.
        what: String,
    },
    /// The line to the peer dropped.
    #[error("the connection to the peer is lost: {what}")]
    Channel {
        /// The operation that failed, in words.
        what: String,
    },
}

impl Error {
    pub(crate) fn misbehaved(what: impl Into<String>) -> Self {
        Error::PeerMisbehaved { what: what.into() }
    }

    pub(crate) fn misuse(what: impl Into<String>) -> Self {
        Error::ApiMisuse { what: what.into() }
    }

    pub(crate) fn stored(what: impl Into<String>) -> Self {
        Error::Stored { what: what.into() }
    }

    /// Checks the length of a message.
    pub(crate) fn check_length(what: &str, expected: usize, got: usize) -> Result<(), Self> {
        if expected == got {
            Ok(())
        } else {
            Err(Error::misbehaved(format!(
                "{what}: expected {expected} bytes, got {got}"
            )))
        }
    }
}

impl From<pi_core::Error> for Error {
    fn from(error: pi_core::Error) -> Self {
        let what = error.to_string();
        match error {
            pi_core::Error::PeerLength { .. } | pi_core::Error::PeerValue { .. } => {
                Error::PeerMisbehaved { what }
            }
            pi_core::Error::Stored { .. } => Error::Stored { what },
            pi_core::Error::CallerLength { .. } | pi_core::Error::CallerRange { .. } => {
                Error::ApiMisuse { what }
            }
        }
    }
}

/// `pi-rlwe` fails only in its checked constructors, which read what the peer sent.
impl From<pi_rlwe::Error> for Error {
    fn from(error: pi_rlwe::Error) -> Self {
        Error::misbehaved(error.to_string())
    }
}
