//! Errors of the store.

use super::rows::FORMAT;
use crate::files;
use crate::fingerprint::short;
use pi_protocol::session::BundleId;
use std::io;
use std::path::{Path, PathBuf};

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store in {0} is in use by another process")]
    Locked(PathBuf),
    /// Nothing more can be written.
    #[error("cannot write to {path}: the disk or quota is full ({error})")]
    DiskFull {
        /// The directory.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The system refuses to read or write.
    #[error("cannot read or write {path}: {error}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The content is not what was written.
    #[error("the store in {path} is damaged: {reason}")]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// The fault found.
        reason: String,
    },
    /// Written by another version of this program.
    #[error("the store in {path} has format {found}, this program reads format {FORMAT}")]
    Format {
        /// The directory.
        path: PathBuf,
        /// The format found.
        found: u64,
    },
    /// The database of a shared store cannot be used now.
    #[error("the store's database {place} cannot be used: {reason}")]
    Database {
        /// Name and host.
        place: String,
        /// What it, or the line to it, says.
        reason: String,
    },
    /// The object store of a shared store cannot be used now.
    #[error("the store's objects in {place} cannot be used: {reason}")]
    Objects {
        /// Folder or URL.
        place: String,
        /// What it says.
        reason: String,
    },
    /// The file with the operator's keys of a shared store cannot be used.
    #[error("the store's key file {path} cannot be used: {reason}")]
    Key {
        /// The file.
        path: PathBuf,
        /// The fault found.
        reason: String,
    },
    /// The bundle was used or given up before.
    #[error("bundle {} is spent", name(.0))]
    Spent(BundleId),
    /// No such bundle is stored for this peer.
    #[error("bundle {} is not known", name(.0))]
    Unknown(BundleId),
    /// A peer has had as many answers as it may get.
    #[error("all {0} answers that this peer may get were given")]
    AnswersUsed(u64),
    /// A peer has had as many answers as it may get on one day.
    #[error("all {0} answers that this peer may get today were given")]
    AnswersUsedToday(u64),
    /// A bundle of that name is or was stored for this peer.
    #[error("bundle {} is stored already", name(.0))]
    Exists(BundleId),
}

fn name(id: &BundleId) -> String {
    short(&id.0)
}

/// An error inside a transaction.
pub(super) enum Failure {
    Store(StoreError),
    Database(Box<redb::Error>),
    Row(postcard::Error),
}

impl Failure {
    /// The error as the store in this directory reports it.
    pub(super) fn explain(self, directory: &Path) -> StoreError {
        match self {
            Failure::Store(error) => error,
            Failure::Database(error) => database_error(directory, *error),
            Failure::Row(error) => StoreError::Damaged {
                path: directory.to_owned(),
                reason: format!("a row cannot be read: {error}"),
            },
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

macro_rules! failure_from_database {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::Database(Box::new(error.into()))
            }
        }
    )*};
}
failure_from_database!(
    redb::Error,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError
);

impl From<postcard::Error> for Failure {
    fn from(error: postcard::Error) -> Failure {
        Failure::Row(error)
    }
}

pub(super) fn database_error(directory: &Path, error: redb::Error) -> StoreError {
    let path = directory.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen => StoreError::Locked(path),
        redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            StoreError::Damaged {
                path,
                reason: error.to_string(),
            }
        }
        redb::Error::Io(error) => file_error(path, error),
        redb::Error::PreviousIo => StoreError::File {
            path,
            error: io::Error::other("an earlier write failed, and the database is opened again"),
        },
        error => StoreError::Damaged {
            path,
            reason: error.to_string(),
        },
    }
}

pub(super) fn file_error(path: PathBuf, error: io::Error) -> StoreError {
    if files::is_disk_full(&error) {
        StoreError::DiskFull { path, error }
    } else {
        StoreError::File { path, error }
    }
}
