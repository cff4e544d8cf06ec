//! The content of one bundle, as a file that is read or erased apart from the database.

use super::StoreError;
use super::error::file_error;
use super::rows::Content;
use crate::files;
use pi_core::SecretBytes;
use std::path::{Path, PathBuf};

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
        let path = self.path;
        let failed = |e| file_error(path.clone(), e);
        let file = std::fs::File::open(&path).map_err(failed)?;
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
            return Err(StoreError::Damaged {
                path: self.directory,
                reason: format!(
                    "{} is not what was stored ({found} bytes, {expected} expected)",
                    path.display(),
                ),
            });
        }
        Ok(bytes)
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
