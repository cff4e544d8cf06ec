//! Reading messages and stored bytes part by part.

use crate::Error;

/// The writer of the bytes, whose fault it is when they are too short.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Peer,
    Ourselves,
}

/// A cursor over bytes.
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
    source: Source,
}

impl<'a> Reader<'a> {
    /// Reads a message of the peer.
    pub(crate) fn message(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader {
            what,
            rest: bytes,
            source: Source::Peer,
        }
    }

    /// Reads what we stored ourselves.
    pub(crate) fn stored(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader {
            what,
            rest: bytes,
            source: Source::Ourselves,
        }
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let Some((part, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.error(format!(
                "{}: expected {count} more bytes, {} are left",
                self.what,
                self.rest.len()
            )));
        };
        self.rest = rest;
        Ok(part)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let part = self.take(N)?;
        Ok(part.try_into().expect("take returns N bytes"))
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Ensures that nothing is left.
    pub(crate) fn end(self) -> Result<(), Error> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(self.error(format!("{}: {left} bytes follow its end", self.what))),
        }
    }

    fn error(&self, what: String) -> Error {
        match self.source {
            Source::Peer => Error::misbehaved(what),
            Source::Ourselves => Error::stored(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_bytes_blame_their_writer() {
        let mut peer = Reader::message("test", &[1, 2, 3]);
        assert_eq!(peer.take(2).unwrap(), [1, 2]);
        assert!(matches!(peer.take(2), Err(Error::PeerMisbehaved { .. })));
        assert!(matches!(peer.end(), Err(Error::PeerMisbehaved { .. })));
        let mut own = Reader::stored("test", &[1, 2, 3]);
        assert_eq!(own.array::<3>().unwrap(), [1, 2, 3]);
        assert!(matches!(own.take(1), Err(Error::Stored { .. })));
        own.end().unwrap();
    }
}
