//! The content of one bundle, as a file that is written, read or erased apart from the database.

use super::error::file_error;
use super::rows::{BundleRow, Content};
use super::{Claim, ModelDigest, Store, StoreError, unix_milliseconds};
use crate::failpoint;
use crate::files::{self, PrivateFile};
use crate::fingerprint::Fingerprint;
use pi_core::SecretBytes;
use pi_protocol::session::{BundleId, BundleSink, BundleSource};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A bundle half that is being written; see [`Store::bundle_writer`]. Dropped before it is kept, it
/// is erased.
pub struct BundleWriter<'a> {
    store: &'a Store,
    // Dropped before the claim, so that nobody writes under the name while it is erased.
    file: PrivateFile,
    claim: Claim<'a>,
    path: PathBuf,
    length: u64,
    hash: blake3::Hasher,
    failure: Option<StoreError>,
}

impl<'a> BundleWriter<'a> {
    pub(super) fn create(
        store: &'a Store,
        peer: Fingerprint,
        id: &BundleId,
    ) -> Result<Self, StoreError> {
        let path = store.content_path(peer, id);
        let claim = store.claim(peer, id)?;
        let file = PrivateFile::create(&path).map_err(|e| file_error(path.clone(), e))?;
        Ok(BundleWriter {
            store,
            file,
            claim,
            path,
            length: 0,
            hash: blake3::Hasher::new(),
            failure: None,
        })
    }

    /// Appends to the content.
    ///
    /// # Errors
    /// Errors of the file system; the half cannot be kept then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all(bytes);
        written.map_err(|e| file_error(self.path.clone(), e))?;
        self.length += bytes.len() as u64;
        self.hash.update(bytes);
        Ok(())
    }

    /// Takes the cause of the last error that a session got from this sink.
    pub fn take_failure(&mut self) -> Option<StoreError> {
        self.failure.take()
    }

    /// Keeps the half, durably on return: the file first, since a row must never promise content
    /// that a crash kept from the disk.
    ///
    /// # Errors
    /// As [`Store::put_bundle`].
    pub fn keep(self, model: &ModelDigest) -> Result<(), StoreError> {
        let row = BundleRow {
            model: *model,
            stored_at: unix_milliseconds(),
            content: Some(Content {
                length: self.length,
                digest: *self.hash.finalize().as_bytes(),
            }),
        };
        let kept = self.file.keep();
        kept.map_err(|e| file_error(self.path.clone(), e))?;
        let stored = self.store.insert_bundle(self.claim.key(), &row);
        if stored.is_err() {
            // Without a row nobody can use it, and it may be what fills the disk. What cannot be
            // erased now is erased when the store is opened.
            let _ = files::erase(&self.path);
        }
        stored
    }
}

impl BundleSink for BundleWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), pi_protocol::Error> {
        failpoint::reach("bundle-write");
        self.append(bytes).map_err(|error| {
            let what = error.to_string();
            self.failure = Some(error);
            pi_protocol::Error::Stored { what }
        })
    }
}

/// A content to be read; see [`Store::content`](super::Store::content).
pub struct Reading {
    directory: PathBuf,
    path: PathBuf,
    content: Content,
}

impl Reading {
    pub(super) fn new(directory: &Path, path: PathBuf, content: Content) -> Reading {
        Reading {
            directory: directory.to_owned(),
            path,
            content,
        }
    }

    /// Length of the content in bytes.
    pub fn length(&self) -> u64 {
        self.content.length
    }

    /// Reads and verifies the content.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is not what was stored; errors of the file system.
    pub fn run(self) -> Result<SecretBytes, StoreError> {
        let failed = |e| file_error(self.path.clone(), e);
        let file = File::open(&self.path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?.len();
        let expected = self.content.length;
        // The length first: it decides what memory is reserved.
        let bytes = match usize::try_from(expected) {
            Ok(expected) if found == self.content.length => {
                SecretBytes::read(file, expected).map_err(failed)?
            }
            _ => SecretBytes::with_capacity(0),
        };
        if bytes.len() as u64 != expected || blake3::hash(&bytes).as_bytes() != &self.content.digest
        {
            return Err(self.damaged(found));
        }
        Ok(bytes)
    }
}

impl Reading {
    /// The content of a bundle, to be read from its beginning to its end: its length is what was
    /// stored, and the bundle's own checksums tell whether the bytes are.
    ///
    /// # Errors
    /// As [`Reading::run`].
    pub fn open(self) -> Result<ContentSource, StoreError> {
        let failed = |e| file_error(self.path.clone(), e);
        let file = File::open(&self.path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?.len();
        match found == self.content.length {
            true => Ok(ContentSource {
                file,
                left: found,
                bytes: SecretBytes::with_capacity(0),
            }),
            false => Err(self.damaged(found)),
        }
    }

    fn damaged(&self, found: u64) -> StoreError {
        StoreError::Damaged {
            path: self.directory.clone(),
            reason: format!(
                "{} is not what was stored ({found} bytes, {} expected)",
                self.path.display(),
                self.content.length
            ),
        }
    }
}

/// The content of a bundle, as it is read.
pub struct ContentSource {
    file: File,
    left: u64,
    /// What was read last.
    bytes: SecretBytes,
}

impl BundleSource for ContentSource {
    fn read(&mut self, count: usize) -> Result<&[u8], pi_protocol::Error> {
        let failed = |what: String| pi_protocol::Error::Stored { what };
        // The file has as many, so no more is reserved than is there.
        let left = self.left.checked_sub(count as u64);
        let left = left.ok_or_else(|| ends_early(self.left, count))?;
        // What was read before is erased first.
        self.bytes = SecretBytes::with_capacity(0);
        let bytes = SecretBytes::read(&self.file, count).map_err(|e| failed(e.to_string()))?;
        if bytes.len() != count {
            return Err(failed(format!("{count} bytes expected, {}", bytes.len())));
        }
        (self.left, self.bytes) = (left, bytes);
        Ok(&self.bytes)
    }

    fn end(&mut self) -> Result<(), pi_protocol::Error> {
        all_read(self.left)
    }
}

/// A content of which `left` bytes are left when `count` are asked for.
pub(super) fn ends_early(left: u64, count: usize) -> pi_protocol::Error {
    let what = format!("the content ends with {left} bytes where {count} are expected");
    pi_protocol::Error::Stored { what }
}

/// An error unless nothing is left of a content.
pub(super) fn all_read(left: u64) -> Result<(), pi_protocol::Error> {
    match left {
        0 => Ok(()),
        left => Err(pi_protocol::Error::Stored {
            what: format!("{left} bytes follow the end of the content"),
        }),
    }
}

/// A content to be erased; see [`Store::erasure`](super::Store::erasure).
pub struct Erasure(PathBuf);

impl Erasure {
    pub(super) fn new(path: PathBuf) -> Erasure {
        Erasure(path)
    }

    /// Erases the content, which may be gone already.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn run(self) -> Result<(), StoreError> {
        files::erase(&self.0).map_err(|e| file_error(self.0, e))
    }
}
