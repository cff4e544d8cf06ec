//! The database of a store, which survives the errors of its disk.
//!
//! After a failed read or write redb answers nothing more, since it cannot know what the file
//! holds; opened again, it finds the last state that was committed. A server must not need a person
//! for that when its disk was full for a minute, so the database is opened again by whoever comes
//! after the error. Opening fails for as long as the cause is there.

use super::error::Failure;
use redb::{Builder, Database};
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

/// Pages kept in memory. What is looked up again and again fits; redb would keep up to 1 GiB of
/// the rows that spent bundles leave.
const CACHE_BYTES: usize = 16 << 20;

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// A database that is opened again after an error of the disk.
pub(super) struct Reopening {
    path: PathBuf,
    /// None after an error.
    database: RwLock<Option<Database>>,
}

impl Reopening {
    /// Opens the database in a file, or makes it.
    pub(super) fn open(path: PathBuf) -> Result<Reopening, redb::Error> {
        let database = builder().create(&path)?;
        Ok(Reopening {
            path,
            database: RwLock::new(Some(database)),
        })
    }

    /// Runs one transaction.
    ///
    /// # Errors
    /// Those of the transaction. After an error of the disk, whether its changes were made is known
    /// once the next one succeeds.
    pub(super) fn run<T>(
        &self,
        transaction: impl FnOnce(&Database) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        loop {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(open) = &*database {
                let result = transaction(open);
                drop(database);
                if let Err(Failure::Database(error)) = &result
                    && let redb::Error::Io(_) | redb::Error::PreviousIo = **error
                {
                    self.close();
                }
                return result;
            }
            drop(database);
            self.open_again()?;
        }
    }

    /// Closes the file once no transaction uses it.
    fn close(&self) {
        let mut database = self.database.write();
        let database = database.as_mut().map(|database| database.take());
        drop(database);
    }

    fn open_again(&self) -> Result<(), Failure> {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            // Not `create`: a database that is gone must not be replaced by an empty one.
            let opened = builder().open(&self.path);
            *database = Some(opened.map_err(|error| Failure::Database(Box::new(error.into())))?);
            tracing::info!(path = %self.path.display(), "opened again after an error of the disk");
        }
        Ok(())
    }
}
