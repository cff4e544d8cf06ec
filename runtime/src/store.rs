//! What a party keeps between runs: setups, artifacts and bundle halves, for one process at a time.
//!
//! A bundle half may be used once. [`Store::take`] records that it is spent, durably, *before* it
//! hands the content out, so a crash at any moment loses at most the bundle in hand and never lets
//! one be used twice. The record of a spent bundle stays for good; its content is erased.
//!
//! # Layout
//! `store.redb` is the database: one row per setup, artifact, peer and bundle. The content of a
//! bundle, megabytes of it, is a file of its own in `bundles/`, written and synchronised before its
//! row; the row carries its BLAKE3 digest. A file without a row that says `Ready` is what a crash
//! left behind and is erased on opening. Directories have mode 0700, files 0600. Contents are not
//! encrypted: who reads the files as their owner reads the secrets. Copies and snapshots of a store
//! are outside the guarantee of single use.

use crate::files;
use crate::fingerprint::{Fingerprint, hex, short};
use pi_core::SecretBytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// Content hash of a compiled network; what bundles are bound to.
pub type ModelDigest = [u8; 32];

/// Name of a bundle, the same on both sides.
pub type BundleId = [u8; 32];

/// An open store; the process holds its lock until the value is dropped.
pub struct Store {
    database: Database,
    directory: PathBuf,
}

/// What a store says about a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleState {
    /// It can be taken.
    Ready,
    /// It was taken or given up.
    Spent,
}

/// One bundle in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleEntry {
    /// The party that holds the other half.
    pub peer: Fingerprint,
    /// Its name.
    pub id: BundleId,
    /// The model it was made for.
    pub model: ModelDigest,
    /// Whether it can be taken.
    pub state: BundleState,
    /// When it was stored, in milliseconds since 1970.
    pub stored_at: u64,
}

/// What the client remembers of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The addresses it was reached at, as the user wrote them, the latest first.
    pub addresses: Vec<String>,
    /// The model it last served.
    pub model: ModelDigest,
    /// When bundles were last prepared with it, in milliseconds since 1970.
    pub prepared_at: u64,
}

impl PeerRecord {
    /// The address it was last reached at.
    pub fn address(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }
}

/// Why the store refuses.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the store in {0} is in use by another process")]
    Locked(PathBuf),
    /// Nothing more can be written.
    #[error("cannot write to {path}: the disk or quota is full ({error})")]
    DiskFull {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The system refuses to read or write.
    #[error("cannot read or write {path}: {error}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The content is not what was written.
    #[error("the store in {path} is damaged: {reason}")]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What was found.
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
    /// The bundle was used or given up before.
    #[error("bundle {} is spent", short(.0))]
    Spent(BundleId),
    /// No such bundle is stored for this peer.
    #[error("bundle {} is not known", short(.0))]
    Unknown(BundleId),
    /// A bundle of that name is or was stored for this peer.
    #[error("bundle {} is stored already", short(.0))]
    Exists(BundleId),
}

/// Format of the rows and files; another number is refused.
const FORMAT: u64 = 1;

/// `"format"` to [`FORMAT`].
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Peer to setup; secret.
const SETUPS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("setups");
/// Model digest to artifact.
const ARTIFACTS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("artifacts");
/// Peer to [`PeerRecord`].
const PEERS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("peers");
/// Peer and bundle id to [`BundleRow`].
const BUNDLES: TableDefinition<'_, &[u8; 64], &[u8]> = TableDefinition::new("bundles");

#[derive(Serialize, Deserialize)]
struct BundleRow {
    model: ModelDigest,
    stored_at: u64,
    content: Option<Content>,
}

/// Where a bundle that is not spent has its content; a row without it is a spent bundle's.
#[derive(Serialize, Deserialize)]
struct Content {
    length: u64,
    digest: [u8; 32],
}

impl Store {
    /// Opens the store in a state directory, or makes one.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it open; errors of the file system and of
    /// the content.
    pub fn open(state: &Path) -> Result<Store, StoreError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| file_error(path, error)
        };
        files::private_directory(state).map_err(at(state))?;
        let contents = state.join("bundles");
        files::private_directory(&contents).map_err(at(&contents))?;
        let path = state.join("store.redb");
        files::create_private(&path).map_err(at(&path))?;
        let database = Database::create(&path).map_err(|e| database_error(state, e.into()))?;
        let store = Store {
            database,
            directory: state.to_owned(),
        };
        store.check_format()?;
        store.erase_leftovers()?;
        Ok(store)
    }

    /// The directory it lies in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The setup with a peer.
    ///
    /// # Errors
    /// Those of the file system and of the content, as for every method here.
    pub fn setup(&self, peer: Fingerprint) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(SETUPS)?;
            let row = table.get(&peer.0)?;
            Ok(row.map(|bytes| Zeroizing::new(bytes.value().to_vec())))
        })
    }

    /// Keeps the setup with a peer, in place of an earlier one.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn put_setup(&self, peer: Fingerprint, setup: &[u8]) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .open_table(SETUPS)?
                .insert(&peer.0, setup)
                .map(drop)
                .map_err(Into::into)
        })
    }

    /// The artifact with a digest, as it was stored; the caller verifies it.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn artifact(&self, model: &ModelDigest) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(ARTIFACTS)?;
            let row = table.get(model)?;
            Ok(row.map(|bytes| bytes.value().to_vec()))
        })
    }

    /// Keeps an artifact.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn put_artifact(&self, model: &ModelDigest, bytes: &[u8]) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .open_table(ARTIFACTS)?
                .insert(model, bytes)
                .map(drop)
                .map_err(Into::into)
        })
    }

    /// All peers that a record was kept of.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn peers(&self) -> Result<Vec<(Fingerprint, PeerRecord)>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(PEERS)?;
            let mut peers = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                peers.push((Fingerprint(*key.value()), decode(value.value())?));
            }
            Ok(peers)
        })
    }

    /// Keeps the record of a peer, in place of an earlier one.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn put_peer(&self, peer: Fingerprint, record: &PeerRecord) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .open_table(PEERS)?
                .insert(&peer.0, encode(record).as_slice())
                .map(drop)
                .map_err(Into::into)
        })
    }

    /// All bundles, spent ones included.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn bundles(&self) -> Result<Vec<BundleEntry>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(BUNDLES)?;
            let mut entries = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                entries.push(entry(key.value(), &decode(value.value())?));
            }
            Ok(entries)
        })
    }

    /// The bundles that can be taken with this peer for this model, oldest first.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn ready(
        &self,
        peer: Fingerprint,
        model: &ModelDigest,
    ) -> Result<Vec<BundleId>, StoreError> {
        let mut ready = self.of_peer(peer)?;
        ready.retain(|entry| entry.state == BundleState::Ready && entry.model == *model);
        ready.sort_by_key(|entry| (entry.stored_at, entry.id));
        Ok(ready.iter().map(|entry| entry.id).collect())
    }

    /// What is known of one bundle.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn bundle(
        &self,
        peer: Fingerprint,
        id: &BundleId,
    ) -> Result<Option<BundleEntry>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(BUNDLES)?;
            let key = bundle_key(peer, id);
            let Some(row) = table.get(&key)? else {
                return Ok(None);
            };
            Ok(Some(entry(&key, &decode(row.value())?)))
        })
    }

    /// Keeps a bundle half: on return it is durable.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the name was ever used with this peer; else as [`Store::setup`].
    pub fn put_bundle(
        &self,
        peer: Fingerprint,
        model: &ModelDigest,
        id: &BundleId,
        content: &[u8],
    ) -> Result<(), StoreError> {
        let path = self.content_path(peer, id);
        let key = bundle_key(peer, id);
        let row = BundleRow {
            model: *model,
            stored_at: unix_milliseconds(),
            content: Some(Content {
                length: content.len() as u64,
                digest: *blake3::hash(content).as_bytes(),
            }),
        };
        self.write(|transaction| {
            let mut table = transaction.open_table(BUNDLES)?;
            if table.get(&key)?.is_some() {
                return Err(StoreError::Exists(*id).into());
            }
            // The file comes first: a row must never promise content that a crash kept from the
            // disk.
            files::write_private(&path, content).map_err(|e| file_error(path.clone(), e))?;
            table.insert(&key, encode(&row).as_slice())?;
            Ok(())
        })
    }

    /// Marks a bundle as spent, durably, and then returns its content: [`Store::content`] and
    /// [`Store::spend`] in one.
    ///
    /// The content's file is still there when this returns: [`Store::erasure`] removes it, outside
    /// the time that the other party waits for, and the next [`Store::open`] does if the process
    /// ends before.
    ///
    /// # Errors
    /// [`StoreError::Spent`] and [`StoreError::Unknown`] refuse; [`StoreError::Damaged`] when the
    /// content is not what was stored, and the bundle is spent then too.
    pub fn take(&self, peer: Fingerprint, id: &BundleId) -> Result<SecretBytes, StoreError> {
        let content = self.mark_spent(peer, id)?;
        self.reading(peer, id, content).run()
    }

    /// Marks a bundle as spent, durably on return. Of all calls for a bundle one succeeds.
    ///
    /// # Errors
    /// [`StoreError::Spent`] and [`StoreError::Unknown`] refuse.
    pub fn spend(&self, peer: Fingerprint, id: &BundleId) -> Result<(), StoreError> {
        self.mark_spent(peer, id).map(drop)
    }

    /// The content of a bundle that is not spent, to be read before or after that changes.
    ///
    /// Reading ahead only saves time: nothing that follows from the content may leave the process
    /// before [`Store::spend`] has succeeded for the bundle.
    ///
    /// # Errors
    /// [`StoreError::Spent`] and [`StoreError::Unknown`] refuse.
    pub fn content(&self, peer: Fingerprint, id: &BundleId) -> Result<Reading, StoreError> {
        let row: Option<BundleRow> = self.read(|transaction| {
            let table = transaction.open_table(BUNDLES)?;
            let row = table.get(&bundle_key(peer, id))?;
            Ok(row.map(|row| decode(row.value())).transpose()?)
        })?;
        let row = row.ok_or(StoreError::Unknown(*id))?;
        let content = row.content.ok_or(StoreError::Spent(*id))?;
        Ok(self.reading(peer, id, content))
    }

    fn reading(&self, peer: Fingerprint, id: &BundleId, content: Content) -> Reading {
        Reading {
            directory: self.directory.clone(),
            path: self.content_path(peer, id),
            content,
        }
    }

    /// Erases the content of a bundle that was taken.
    ///
    /// # Errors
    /// As [`Store::setup`].
    ///
    /// # Panics
    /// If the bundle is not spent: its owner would lose it.
    pub fn erase(&self, peer: Fingerprint, id: &BundleId) -> Result<(), StoreError> {
        self.erasure(peer, id)?.run()
    }

    /// The erasure of the content of a bundle that was taken, to be run when nobody waits, with the
    /// store open or not.
    ///
    /// # Errors
    /// As [`Store::setup`].
    ///
    /// # Panics
    /// If the bundle is not spent: its owner would lose it.
    pub fn erasure(&self, peer: Fingerprint, id: &BundleId) -> Result<Erasure, StoreError> {
        let state = self.bundle(peer, id)?.map(|entry| entry.state);
        assert_eq!(
            state,
            Some(BundleState::Spent),
            "only spent bundles are erased"
        );
        Ok(Erasure(self.content_path(peer, id)))
    }

    /// Gives a bundle up: spent without use, and erased.
    ///
    /// # Errors
    /// As [`Store::take`].
    pub fn discard(&self, peer: Fingerprint, id: &BundleId) -> Result<(), StoreError> {
        self.mark_spent(peer, id)?;
        self.erase(peer, id)
    }

    /// Gives up all bundles with a peer that can be taken and are not in `keep`; returns how many.
    ///
    /// # Errors
    /// As [`Store::take`].
    pub fn discard_others(
        &self,
        peer: Fingerprint,
        keep: &HashSet<BundleId>,
    ) -> Result<usize, StoreError> {
        let mut others = self.of_peer(peer)?;
        others.retain(|entry| entry.state == BundleState::Ready && !keep.contains(&entry.id));
        for entry in &others {
            self.discard(peer, &entry.id)?;
        }
        Ok(others.len())
    }

    fn of_peer(&self, peer: Fingerprint) -> Result<Vec<BundleEntry>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(BUNDLES)?;
            let (first, last) = (bundle_key(peer, &[0; 32]), bundle_key(peer, &[0xff; 32]));
            let mut entries = Vec::new();
            for row in table.range::<&[u8; 64]>(&first..=&last)? {
                let (key, value) = row?;
                entries.push(entry(key.value(), &decode(value.value())?));
            }
            Ok(entries)
        })
    }

    /// The one transition from ready to spent; durable on return.
    fn mark_spent(&self, peer: Fingerprint, id: &BundleId) -> Result<Content, StoreError> {
        let key = bundle_key(peer, id);
        self.write(|transaction| {
            let mut table = transaction.open_table(BUNDLES)?;
            let mut row: BundleRow = match table.get(&key)? {
                Some(bytes) => decode(bytes.value())?,
                None => return Err(StoreError::Unknown(*id).into()),
            };
            let content = row.content.take().ok_or(StoreError::Spent(*id))?;
            table.insert(&key, encode(&row).as_slice())?;
            Ok(content)
        })
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let found = self.write(|transaction| {
            // Opening makes the tables of a new store, so that later readers find them.
            transaction.open_table(SETUPS)?;
            transaction.open_table(ARTIFACTS)?;
            transaction.open_table(PEERS)?;
            transaction.open_table(BUNDLES)?;
            let mut table = transaction.open_table(META)?;
            let found = table.get("format")?.map(|value| value.value());
            if found.is_none() {
                table.insert("format", FORMAT)?;
            }
            Ok(found.unwrap_or(FORMAT))
        })?;
        if found != FORMAT {
            return Err(StoreError::Format {
                path: self.directory.clone(),
                found,
            });
        }
        Ok(())
    }

    /// Erases every file in `bundles/` that no bundle which can be taken owns.
    fn erase_leftovers(&self) -> Result<(), StoreError> {
        let owned: HashSet<PathBuf> = self
            .bundles()?
            .iter()
            .filter(|entry| entry.state == BundleState::Ready)
            .map(|entry| self.content_path(entry.peer, &entry.id))
            .collect();
        let contents = self.directory.join("bundles");
        let failed = |error| file_error(contents.clone(), error);
        for file in std::fs::read_dir(&contents).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if !owned.contains(&path) {
                files::erase(&path).map_err(|e| file_error(path, e))?;
            }
        }
        Ok(())
    }

    fn content_path(&self, peer: Fingerprint, id: &BundleId) -> PathBuf {
        let name = format!("{}-{}", short(&peer.0), hex(id));
        self.directory.join("bundles").join(name)
    }

    fn read<T>(
        &self,
        body: impl FnOnce(&redb::ReadTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let run = || -> Result<T, Failure> { body(&self.database.begin_read()?) };
        run().map_err(|failure| self.explain(failure))
    }

    /// Runs one transaction; its changes are durable on return, or it had none.
    fn write<T>(
        &self,
        body: impl FnOnce(&redb::WriteTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let run = || -> Result<T, Failure> {
            let mut transaction = self.database.begin_write()?;
            transaction
                .set_durability(redb::Durability::Immediate)
                .map_err(redb::Error::from)?;
            let result = body(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|failure| self.explain(failure))
    }

    fn explain(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Store(error) => error,
            Failure::Database(error) => database_error(&self.directory, *error),
            Failure::Row(error) => StoreError::Damaged {
                path: self.directory.clone(),
                reason: format!("a row cannot be read: {error}"),
            },
        }
    }
}

/// A content that is to be read; see [`Store::content`].
pub struct Reading {
    directory: PathBuf,
    path: PathBuf,
    content: Content,
}

impl Reading {
    /// Bytes of the content.
    pub fn length(&self) -> u64 {
        self.content.length
    }

    /// Reads and verifies it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is not what was stored; those of the file system.
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

/// A content that is to be erased; see [`Store::erasure`].
pub struct Erasure(PathBuf);

impl Erasure {
    /// Erases it; it may be gone already.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn run(self) -> Result<(), StoreError> {
        files::erase(&self.0).map_err(|e| file_error(self.0, e))
    }
}

/// What can go wrong inside a transaction.
enum Failure {
    Store(StoreError),
    Database(Box<redb::Error>),
    Row(postcard::Error),
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

fn database_error(directory: &Path, error: redb::Error) -> StoreError {
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
            error: io::Error::other("an earlier write failed; start again when its cause is gone"),
        },
        error => StoreError::Damaged {
            path,
            reason: error.to_string(),
        },
    }
}

fn file_error(path: PathBuf, error: io::Error) -> StoreError {
    if files::is_disk_full(&error) {
        StoreError::DiskFull { path, error }
    } else {
        StoreError::File { path, error }
    }
}

fn bundle_key(peer: Fingerprint, id: &BundleId) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(&peer.0);
    key[32..].copy_from_slice(id);
    key
}

fn entry(key: &[u8; 64], row: &BundleRow) -> BundleEntry {
    let (peer, id) = key.split_at(32);
    BundleEntry {
        peer: Fingerprint(peer.try_into().expect("the first half of 64 bytes")),
        id: id.try_into().expect("the second half of 64 bytes"),
        model: row.model,
        state: match row.content {
            Some(_) => BundleState::Ready,
            None => BundleState::Spent,
        },
        stored_at: row.stored_at,
    }
}

fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_stdvec(row).expect("rows hold nothing that postcard cannot write")
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, postcard::Error> {
    postcard::from_bytes(bytes)
}

/// Milliseconds since 1970; 0 when the clock is before.
pub(crate) fn unix_milliseconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_millis() as u64)
}
