//! The stored form of a bundle: sections, each with a checksum, written and read one after the
//! other, so that nobody needs to hold them all.
//!
//! A section is bytes of a length that the model determines, and then the hash of these bytes and
//! of the checksum before. So a section is known to be whole, and in its place, as soon as it is
//! read. Checksums detect damage, not tampering, because the store is trusted.

use super::model::PublicModel;
use crate::Error;
use crate::header::BundleHeader;
use crate::wire::Reader;
use pi_core::SecretBytes;
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use zeroize::Zeroizing;

/// A place for the stored form of a bundle half, which is secret: a file, or memory.
pub trait BundleSink: Send {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`Error::Stored`] if they cannot be written. The bundle is not complete then, and what was
    /// written of it is to be erased.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;
}

/// The stored form of a bundle half, as it is read from its beginning to its end, once.
pub trait BundleSource: Send {
    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`Error::Stored`] if there are not so many, or they cannot be read.
    fn read(&mut self, count: usize) -> Result<&[u8], Error>;

    /// Ensures that all was read, and is what was written.
    ///
    /// # Errors
    /// [`Error::Stored`] if not.
    fn end(&mut self) -> Result<(), Error>;
}

/// Memory is a sink up to its capacity.
impl BundleSink for SecretBytes {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match bytes.len() <= self.room() {
            true => self.extend_from_slice(bytes),
            false => {
                let (more, room) = (bytes.len(), self.room());
                return Err(damaged(format!("{more} bytes more, and room for {room}")));
            }
        }
        Ok(())
    }
}

impl<S: BundleSource + ?Sized> BundleSource for Box<S> {
    fn read(&mut self, count: usize) -> Result<&[u8], Error> {
        (**self).read(count)
    }

    fn end(&mut self) -> Result<(), Error> {
        (**self).end()
    }
}

impl BundleSource for &[u8] {
    fn read(&mut self, count: usize) -> Result<&[u8], Error> {
        let left = self.len();
        self.split_off(..count)
            .ok_or_else(|| damaged(format!("expected {count} more bytes, {left} are left")))
    }

    fn end(&mut self) -> Result<(), Error> {
        match self.len() {
            0 => Ok(()),
            left => Err(damaged(format!("{left} bytes follow its end"))),
        }
    }
}

const STORED_VERSION: u8 = 3;
const CHECKSUM_BYTES: usize = 32;

/// Bytes of a section with its checksum.
pub(super) const fn section_bytes(content: usize) -> usize {
    content + CHECKSUM_BYTES
}

/// Bytes of the first section.
pub(super) const HEADER_BYTES: usize = section_bytes(2 + BundleHeader::BYTES);

/// A bundle that is being written.
pub(super) struct SectionWriter<'a> {
    sink: &'a mut dyn BundleSink,
    checksum: Checksum,
}

impl<'a> SectionWriter<'a> {
    /// Writes the first section, which names the half (`tag`) and the bundle.
    pub(super) fn begin(
        sink: &'a mut dyn BundleSink,
        tag: u8,
        header: &BundleHeader,
    ) -> Result<Self, Error> {
        let mut writer = SectionWriter {
            sink,
            checksum: Checksum::default(),
        };
        writer.put(&[STORED_VERSION, tag])?;
        writer.put(&header.to_bytes())?;
        writer.end_section()?;
        Ok(writer)
    }

    /// Appends to the section.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.checksum.hash.update(bytes);
        self.sink.write(bytes)
    }

    /// Ends the section; the next one begins.
    pub(super) fn end_section(&mut self) -> Result<(), Error> {
        let checksum = self.checksum.next();
        self.sink.write(&checksum)
    }
}

/// A bundle that is being read.
pub(super) struct SectionReader<S> {
    source: S,
    checksum: Checksum,
}

impl<S: BundleSource> SectionReader<S> {
    /// Reads the first section: the header, which must be of this half and this model.
    ///
    /// # Errors
    /// [`Error::Stored`] if the bytes are damaged or of another kind, [`Error::ApiMisuse`] if the
    /// bundle is of another model.
    pub(super) fn open(
        source: S,
        tag: u8,
        model: &PublicModel,
    ) -> Result<(Self, BundleHeader), Error> {
        let mut reader = SectionReader {
            source,
            checksum: Checksum::default(),
        };
        let mut content = reader.section(2 + BundleHeader::BYTES)?;
        if content.array()? != [STORED_VERSION, tag] {
            return Err(damaged("another kind or version"));
        }
        let header = BundleHeader::from_bytes(&content.array()?);
        content.end()?;
        model.check_header(&header)?;
        Ok((reader, header))
    }

    /// A reader of the next section, of `content` bytes, which is whole.
    pub(super) fn section(&mut self, content: usize) -> Result<Reader<'_>, Error> {
        let bytes = self.source.read(section_bytes(content))?;
        let (content, found) = bytes.split_at(content);
        self.checksum.hash.update(content);
        match self.checksum.next() == *found {
            true => Ok(Reader::stored(WHAT, content)),
            false => Err(damaged("the checksum does not match")),
        }
    }

    /// Ensures that no section is left.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        self.source.end()
    }
}

/// The hash of the section under way and of all before it.
struct Checksum {
    hash: blake3::Hasher,
}

impl Default for Checksum {
    fn default() -> Self {
        Checksum {
            hash: blake3::Hasher::new_derive_key("pianissimo 1 stored bundle"),
        }
    }
}

impl Checksum {
    /// The checksum of the section that ends here.
    fn next(&mut self) -> [u8; CHECKSUM_BYTES] {
        let checksum = *self.hash.finalize().as_bytes();
        self.hash.reset();
        self.hash.update(&checksum);
        checksum
    }
}

pub(super) const WHAT: &str = "bundle";

pub(super) fn damaged(error: impl std::fmt::Display) -> Error {
    Error::stored(format!("{WHAT}: {error}"))
}

/// The next `count` field elements.
pub(super) fn elements(reader: &mut Reader<'_>, count: usize) -> Result<Elements, Error> {
    let bytes = reader.take(ELEMENT_BYTES * count)?;
    let elements = fp::decode(WHAT, bytes, count).map_err(damaged)?;
    Ok(Zeroizing::new(elements))
}
