//! Whether the store can be used, without a change to it.

use super::error::file_error;
use super::rows::META;
use super::{BUNDLE_FILES, Store, StoreError};

/// Bytes that must fit on the disk: a page.
const PAGE: [u8; 4096] = [0; 4096];

impl Store {
    /// Ensures that the database can be read, that it is still the file under its name, and that a
    /// content can be written. Nothing is committed, so nobody who marks a bundle as spent waits.
    ///
    /// # Errors
    /// Errors of the file system and of the content.
    pub fn probe(&self) -> Result<(), StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(META)?;
            Ok(table.get("format")?.map(|value| value.value()))
        })?;
        // An open file can be read and written long after its directory is gone.
        let database = self.directory.join("store.redb");
        std::fs::metadata(&database).map_err(|e| file_error(database, e))?;
        let path = self.directory.join(BUNDLE_FILES).join("probe");
        // Nothing is made durable, which could take seconds on a busy disk. A crash leaves a file
        // without a row, which is erased when the store is opened.
        let written = std::fs::write(&path, PAGE);
        // Also what there is of it on a disk that is full.
        let removed = std::fs::remove_file(&path);
        written.and(removed).map_err(|e| file_error(path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_whose_directory_is_gone_cannot_be_used_until_it_is_back() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let store = Store::open(&at("state")).unwrap();
        store.probe().unwrap();
        let files = || std::fs::read_dir(at("state/bundles")).unwrap().count();
        assert_eq!(files(), 0);
        std::fs::rename(at("state"), at("away")).unwrap();
        assert!(matches!(store.probe(), Err(StoreError::File { .. })));
        // Another store in its place is not this one.
        std::fs::create_dir_all(at("state/bundles")).unwrap();
        assert!(matches!(store.probe(), Err(StoreError::File { .. })));
        std::fs::remove_dir_all(at("state")).unwrap();
        std::fs::rename(at("away"), at("state")).unwrap();
        store.probe().unwrap();
    }
}
