//! Errors in a peer's bytes.

/// The bytes of a peer break the format. Misuse by the caller panics instead, as documented at each
/// function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A message has the wrong length.
    #[error("{what}: expected {expected} bytes, got {got}")]
    Length {
        /// The message.
        what: &'static str,
        /// The length it must have.
        expected: usize,
        /// The length it has.
        got: usize,
    },
    /// A value is outside its range.
    #[error("{what}: a value is out of range")]
    OutOfRange {
        /// The message.
        what: &'static str,
    },
}

impl Error {
    /// An error unless the lengths agree.
    pub(crate) fn check_length(
        what: &'static str,
        expected: usize,
        got: usize,
    ) -> Result<(), Self> {
        if expected == got {
            Ok(())
        } else {
            Err(Self::Length {
                what,
                expected,
                got,
            })
        }
    }
}
