//! Errors, each of which says whose fault it is.

/// A refused argument or message; [`Error::blames_peer`] tells which of the two.
///
/// The text leaves out whose fault it is: the error of the session, which wraps it, says that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer sent a message of the wrong length.
    #[error("{what}: expected {expected} bytes, got {got}")]
    PeerLength {
        /// The part of the protocol the message belongs to.
        what: &'static str,
        /// The only length the protocol admits here, in bytes.
        expected: usize,
        /// The length received, in bytes.
        got: usize,
    },
    /// The peer sent a value outside its range.
    #[error("{what}: value {index} is out of range")]
    PeerValue {
        /// The part of the protocol the value belongs to.
        what: &'static str,
        /// Position of the value in the message.
        index: usize,
    },
    /// Bytes that we stored ourselves are not what we stored.
    #[error("cannot read {what}")]
    Stored {
        /// The record that was to be read.
        what: &'static str,
    },
    /// Our caller passed slices that do not fit together.
    #[error("{what}: expected {expected}, got {got}")]
    CallerLength {
        /// The argument.
        what: &'static str,
        /// The length the other arguments imply.
        expected: usize,
        /// The length passed.
        got: usize,
    },
    /// Our caller asked for a parameter outside its range.
    #[error("{what}: expected {min} to {max}, got {got}")]
    CallerRange {
        /// The parameter.
        what: &'static str,
        /// The smallest value supported.
        min: u32,
        /// The largest value supported.
        max: u32,
        /// The value passed.
        got: u32,
    },
}

impl Error {
    /// Returns true if the peer's bytes caused the error, false if our own caller did.
    pub fn blames_peer(&self) -> bool {
        matches!(self, Error::PeerLength { .. } | Error::PeerValue { .. })
    }

    /// Checks the length of a message.
    ///
    /// # Errors
    /// [`Error::PeerLength`] unless the lengths are equal.
    pub fn check_message(what: &'static str, expected: usize, got: usize) -> Result<(), Error> {
        if expected == got {
            Ok(())
        } else {
            Err(Error::PeerLength {
                what,
                expected,
                got,
            })
        }
    }

    /// Checks the length of an argument.
    ///
    /// # Errors
    /// [`Error::CallerLength`] unless the lengths are equal.
    pub fn check_argument(what: &'static str, expected: usize, got: usize) -> Result<(), Error> {
        if expected == got {
            Ok(())
        } else {
            Err(Error::CallerLength {
                what,
                expected,
                got,
            })
        }
    }
}
