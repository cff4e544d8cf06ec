//! What a party keeps between runs: setups, artifacts and bundle halves, for one process at a time.
//!
//! [`Store`] is the store of a client, and of a server that has it for itself. A server uses it
//! through [`ServerStore`], as it does a store that it shares with others.
//!
//! A bundle half may be used once. [`Store::spend`] records durably that it is spent, and nothing
//! that follows from its content leaves the process before that. So a crash at any moment loses at
//! most the bundle in hand, and no bundle is ever used twice. The record of a spent bundle stays
//! for good; its content is erased.
//!
//! # Layout
//! `store.redb` is the database: one row per setup, artifact, peer and bundle, and the counts of
//! answers and bytes of each account of a client. The content of a bundle, megabytes of it and
//! more, is a separate file in `bundles/`,
//! written section by section while the bundle is made, and synchronised before its row; the row
//! carries its BLAKE3 digest. So is the content of a setup, in
//! `setups/`: what was in the database would stay in its free pages when the setup is replaced, and
//! a file can be erased. A file to which no row refers, or that of a spent bundle, was left behind
//! by a crash and is erased on opening. Directories have mode 0700, files 0600. Contents are not
//! encrypted: whoever can read the files can read the secrets. Copies and snapshots of a store are
//! outside the guarantee of single use.

mod account;
mod content;
mod database;
mod embedded;
mod error;
mod probe;
mod rows;
mod server;
#[cfg(feature = "shared-store")]
pub mod shared;

pub use content::{BundleWriter, ContentSource, Erasure, Reading};
pub use error::StoreError;
pub use server::{AnswerLimits, BundleContent, BundleWriting, ServerStore, Usage};

use crate::failpoint;
use crate::files;
use crate::fingerprint::{Fingerprint, hex, short};
use database::Reopening;
use error::{Failure, database_error, file_error};
use pi_core::SecretBytes;
use pi_protocol::session::{BundleId, is_current_setup};
use redb::{ReadableDatabase, ReadableTable};
use rows::{
    ACCOUNTS, ANSWERS, ANSWERS_LEFT, ARTIFACTS, BUNDLES, BundleRow, Content, FORMAT, META, PEERS,
    SERVICE, SETUPS, SetupRow, UPGRADED, bundle_key, decode, decode_peer, encode, entry,
};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

pub use pi_wire::control::ModelDigest;

/// Directory of the contents of bundles.
const BUNDLE_FILES: &str = "bundles";
/// Directory of the contents of setups.
const SETUP_FILES: &str = "setups";

/// An open store; the process holds its lock until the value is dropped.
pub struct Store {
    database: Reopening,
    directory: PathBuf,
    /// Keys of the bundles whose contents are being written.
    writing: Mutex<HashSet<[u8; 64]>>,
}

/// State of a bundle in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleState {
    /// The bundle can be used.
    Ready,
    /// The bundle was used or given up.
    Spent,
}

/// One bundle in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleEntry {
    /// The party that holds the other half.
    pub peer: Fingerprint,
    /// Name of the bundle.
    pub id: BundleId,
    /// The model for which it was made.
    pub model: ModelDigest,
    /// Ready or spent.
    pub state: BundleState,
    /// Time at which it was stored, in milliseconds since 1970.
    pub stored_at: u64,
}

/// A client's record of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The addresses at which it was reached, as the user wrote them, the latest first.
    pub addresses: Vec<String>,
    /// The model for which bundles were last prepared.
    pub model: ModelDigest,
    /// Time at which bundles were last prepared with it, in milliseconds since 1970.
    pub prepared_at: u64,
    /// Fingerprints of the certificates that it has shown, the latest first.
    pub certificates: Vec<Fingerprint>,
    /// The models for which bundles were prepared, the latest version of each name.
    pub models: Vec<NamedModel>,
}

/// A model under the name that its server has for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedModel {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The digest of that.
    pub model: ModelDigest,
}

impl PeerRecord {
    /// The address at which it was last reached.
    pub fn address(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }

    /// All addresses, as one that [`crate::client::Client::connect`] takes.
    pub fn all_addresses(&self) -> String {
        self.addresses.join(",")
    }

    /// Whether it is known by this fingerprint.
    pub fn has_shown(&self, certificate: Fingerprint) -> bool {
        self.certificates.contains(&certificate)
    }

    /// The latest version of a model of this name; of the model used last without a name.
    pub fn model_named(&self, name: Option<&str>) -> Option<ModelDigest> {
        let Some(name) = name else {
            return Some(self.model);
        };
        let mut models = self.models.iter();
        models
            .find(|model| model.name == name)
            .map(|model| model.model)
    }
}

impl Store {
    /// Opens the store in a state directory, or makes a new one.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it open; errors of the file system and of the
    /// content.
    pub fn open(state: &Path) -> Result<Store, StoreError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| file_error(path, error)
        };
        files::private_directory(state).map_err(at(state))?;
        for name in [BUNDLE_FILES, SETUP_FILES] {
            let contents = state.join(name);
            files::private_directory(&contents).map_err(at(&contents))?;
        }
        let path = state.join("store.redb");
        files::create_private(&path).map_err(at(&path))?;
        let database = Reopening::open(path).map_err(|e| database_error(state, e))?;
        let store = Store {
            database,
            directory: state.to_owned(),
            writing: Mutex::default(),
        };
        store.check_format()?;
        store.erase_leftovers()?;
        Ok(store)
    }

    /// The state directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The setup with a peer.
    ///
    /// # Errors
    /// Errors of the file system and of the content, as for every method here.
    pub fn setup(&self, peer: Fingerprint) -> Result<Option<SecretBytes>, StoreError> {
        let Some(SetupRow { content, .. }) = self.setup_row(peer)? else {
            return Ok(None);
        };
        let path = self.setup_path(peer, &content);
        Reading::new(&self.directory, path, content).run().map(Some)
    }

    /// Identity of the keys of the setup with a peer, if it is of the present version: reads
    /// nothing of its content.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn setup_id(&self, peer: Fingerprint) -> Result<Option<[u8; 32]>, StoreError> {
        let row = self.setup_row(peer)?;
        let row = row.filter(|row| is_current_setup(&[row.version]));
        Ok(row.map(|row| row.id))
    }

    fn setup_row(&self, peer: Fingerprint) -> Result<Option<SetupRow>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(SETUPS)?;
            let row = table.get(&peer.0)?;
            Ok(row.map(|row| decode(row.value())).transpose()?)
        })
    }

    /// Keeps the setup with a peer, whose keys have this identity, and replaces an earlier one,
    /// which is erased.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn put_setup(
        &self,
        peer: Fingerprint,
        id: &[u8; 32],
        setup: &[u8],
    ) -> Result<(), StoreError> {
        let row = SetupRow {
            content: Content::of(setup),
            id: *id,
            version: setup.first().copied().unwrap_or(0),
        };
        let path = self.setup_path(peer, &row.content);
        // As with bundles: a row never promises what is not on the disk.
        files::write_private(&path, setup).map_err(|e| file_error(path.clone(), e))?;
        let earlier: Option<SetupRow> = self.write(|transaction| {
            let mut table = transaction.open_table(SETUPS)?;
            let row = table.insert(&peer.0, encode(&row).as_slice())?;
            Ok(row.map(|row| decode(row.value())).transpose()?)
        })?;
        match earlier.map(|earlier| self.setup_path(peer, &earlier.content)) {
            Some(earlier) if earlier != path => {
                files::erase(&earlier).map_err(|e| file_error(earlier, e))
            }
            _ => Ok(()),
        }
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

    /// All peers of which a record was kept.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn peers(&self) -> Result<Vec<(Fingerprint, PeerRecord)>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(PEERS)?;
            let mut peers = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let peer = Fingerprint(*key.value());
                peers.push((peer, decode_peer(peer, value.value())?));
            }
            Ok(peers)
        })
    }

    /// Keeps the record of a peer, and replaces an earlier one.
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

    /// The bundles with this peer that are ready for this model, oldest first.
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
        ready.sort_by_key(|entry| (entry.stored_at, entry.id.0));
        Ok(ready.iter().map(|entry| entry.id).collect())
    }

    /// The entry of one bundle, if the store knows it.
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

    /// Keeps a bundle half, durably on return.
    ///
    /// The content is written before the transaction, not inside: the database has one writer at a
    /// time, and whoever marks a bundle as spent must not wait for megabytes.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if the name was ever used with this peer; else as [`Store::setup`].
    pub fn put_bundle(
        &self,
        peer: Fingerprint,
        model: &ModelDigest,
        id: &BundleId,
        content: &[u8],
    ) -> Result<(), StoreError> {
        let mut writer = self.bundle_writer(peer, id)?;
        writer.append(content)?;
        writer.keep(model)
    }

    /// Begins to write a bundle half that [`BundleWriter::keep`] keeps. Until then it is no bundle,
    /// and what a crash leaves of it is erased when the store is opened.
    ///
    /// # Errors
    /// As [`Store::put_bundle`].
    pub fn bundle_writer(
        &self,
        peer: Fingerprint,
        id: &BundleId,
    ) -> Result<BundleWriter<'_>, StoreError> {
        BundleWriter::create(self, peer, id)
    }

    /// The right to write under a name that was never used with this peer.
    fn claim(&self, peer: Fingerprint, id: &BundleId) -> Result<Claim<'_>, StoreError> {
        // Of two writers of one name, the second must not touch the first one's file.
        let claim = Claim::new(&self.writing, bundle_key(peer, id));
        let claim = claim.ok_or(StoreError::Exists(*id))?;
        match self.bundle(peer, id)? {
            Some(_) => Err(StoreError::Exists(*id)),
            None => Ok(claim),
        }
    }

    fn insert_bundle(&self, key: &[u8; 64], row: &BundleRow) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(BUNDLES)?;
            table.insert(key, encode(row).as_slice())?;
            Ok(())
        })
    }

    /// Marks a bundle as spent, durably on return. Of all calls for a bundle one succeeds.
    ///
    /// # Errors
    /// [`StoreError::Spent`] and [`StoreError::Unknown`]; else as [`Store::setup`].
    pub fn spend(&self, peer: Fingerprint, id: &BundleId) -> Result<(), StoreError> {
        self.write(|transaction| mark_spent(transaction, peer, id))
    }

    /// Number of answers that a peer will still give, as it said last; `None` if it sets no limit.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn answers_left(&self, peer: Fingerprint) -> Result<Option<u64>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(ANSWERS_LEFT)?;
            Ok(table.get(&peer.0)?.map(|left| left.value()))
        })
    }

    /// Keeps what a peer said of the answers that it will still give.
    ///
    /// # Errors
    /// As [`Store::setup`].
    pub fn put_answers_left(&self, peer: Fingerprint, left: Option<u64>) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(ANSWERS_LEFT)?;
            match left {
                Some(left) => drop(table.insert(&peer.0, left)?),
                None => drop(table.remove(&peer.0)?),
            }
            Ok(())
        })
    }

    /// The content of a bundle that is not spent, to be read before or after it is.
    ///
    /// Reading ahead only saves time: nothing that follows from the content may leave the process
    /// before [`Store::spend`] has succeeded for the bundle.
    ///
    /// # Errors
    /// [`StoreError::Spent`] and [`StoreError::Unknown`]; else as [`Store::setup`].
    pub fn content(&self, peer: Fingerprint, id: &BundleId) -> Result<Reading, StoreError> {
        let row: Option<BundleRow> = self.read(|transaction| {
            let table = transaction.open_table(BUNDLES)?;
            let row = table.get(&bundle_key(peer, id))?;
            Ok(row.map(|row| decode(row.value())).transpose()?)
        })?;
        let row = row.ok_or(StoreError::Unknown(*id))?;
        let content = row.content.ok_or(StoreError::Spent(*id))?;
        let path = self.content_path(peer, id);
        Ok(Reading::new(&self.directory, path, content))
    }

    /// Erases the content of a spent bundle.
    ///
    /// # Errors
    /// As [`Store::setup`].
    ///
    /// # Panics
    /// If the bundle is not spent, since its owner would lose it.
    pub fn erase(&self, peer: Fingerprint, id: &BundleId) -> Result<(), StoreError> {
        self.erasure(peer, id)?.run()
    }

    /// The erasure of the content of a spent bundle, to be run when nobody waits, with the store
    /// open or not. If the process ends before, the next [`Store::open`] erases the content.
    ///
    /// # Errors
    /// As [`Store::setup`].
    ///
    /// # Panics
    /// If the bundle is not spent, since its owner would lose it.
    pub fn erasure(&self, peer: Fingerprint, id: &BundleId) -> Result<Erasure, StoreError> {
        let state = self.bundle(peer, id)?.map(|entry| entry.state);
        assert_eq!(
            state,
            Some(BundleState::Spent),
            "only spent bundles are erased"
        );
        Ok(Erasure::new(self.content_path(peer, id)))
    }

    /// Gives a bundle up: spent without use, and erased.
    ///
    /// # Errors
    /// As [`Store::spend`].
    pub fn discard(&self, peer: Fingerprint, id: &BundleId) -> Result<(), StoreError> {
        self.spend(peer, id)?;
        self.erase(peer, id)
    }

    fn of_peer(&self, peer: Fingerprint) -> Result<Vec<BundleEntry>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(BUNDLES)?;
            let (first, last) = (
                bundle_key(peer, &BundleId([0; 32])),
                bundle_key(peer, &BundleId([0xff; 32])),
            );
            let mut entries = Vec::new();
            for row in table.range::<&[u8; 64]>(&first..=&last)? {
                let (key, value) = row?;
                entries.push(entry(key.value(), &decode(value.value())?));
            }
            Ok(entries)
        })
    }

    /// Refuses a store of another format, brings one of the format before up to this one.
    fn check_format(&self) -> Result<(), StoreError> {
        self.write(|transaction| {
            // Opening makes the tables of a new store, so that later readers find them.
            transaction.open_table(SETUPS)?;
            transaction.open_table(ARTIFACTS)?;
            transaction.open_table(PEERS)?;
            transaction.open_table(BUNDLES)?;
            transaction.open_table(ANSWERS)?;
            transaction.open_table(ANSWERS_LEFT)?;
            transaction.open_table(ACCOUNTS)?;
            transaction.open_table(SERVICE)?;
            let mut table = transaction.open_table(META)?;
            let found = table.get("format")?.map(|value| value.value());
            match found {
                None | Some(UPGRADED) => drop(table.insert("format", FORMAT)?),
                Some(FORMAT) => {}
                Some(found) => {
                    return Err(StoreError::Format {
                        path: self.directory.clone(),
                        found,
                    }
                    .into());
                }
            }
            Ok(())
        })
    }

    /// Erases every file that belongs to no ready bundle and to no setup.
    fn erase_leftovers(&self) -> Result<(), StoreError> {
        let bundles = self.bundles()?;
        let ready = bundles.iter().filter(|b| b.state == BundleState::Ready);
        let ready = ready.map(|entry| self.content_path(entry.peer, &entry.id));
        self.erase_others(BUNDLE_FILES, &ready.collect())?;
        let setups = self.read(|transaction| {
            let table = transaction.open_table(SETUPS)?;
            let mut paths = HashSet::new();
            for row in table.iter()? {
                let (peer, row) = row?;
                let row: SetupRow = decode(row.value())?;
                paths.insert(self.setup_path(Fingerprint(*peer.value()), &row.content));
            }
            Ok(paths)
        })?;
        self.erase_others(SETUP_FILES, &setups)
    }

    /// Erases every file in one of the store's directories but these.
    fn erase_others(&self, name: &str, owned: &HashSet<PathBuf>) -> Result<(), StoreError> {
        let contents = self.directory.join(name);
        let failed = |error| file_error(contents.clone(), error);
        for file in std::fs::read_dir(&contents).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if !owned.contains(&path) {
                files::erase(&path).map_err(|e| file_error(path, e))?;
            }
        }
        Ok(())
    }

    fn setup_path(&self, peer: Fingerprint, content: &Content) -> PathBuf {
        let name = format!("{}-{}", short(&peer.0), hex(&content.digest));
        self.directory.join(SETUP_FILES).join(name)
    }

    fn content_path(&self, peer: Fingerprint, id: &BundleId) -> PathBuf {
        let name = format!("{}-{}", short(&peer.0), hex(&id.0));
        self.directory.join(BUNDLE_FILES).join(name)
    }

    fn read<T>(
        &self,
        body: impl FnOnce(&redb::ReadTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let run = |database: &redb::Database| body(&database.begin_read()?);
        self.database
            .run(run)
            .map_err(|failure| failure.explain(&self.directory))
    }

    /// Runs one transaction; its changes are durable on return, or it had none.
    fn write<T>(
        &self,
        body: impl FnOnce(&redb::WriteTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let run = |database: &redb::Database| {
            let mut transaction = database.begin_write()?;
            transaction
                .set_durability(redb::Durability::Immediate)
                .map_err(redb::Error::from)?;
            let result = body(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        let ran = self.database.run(run);
        ran.map_err(|failure| failure.explain(&self.directory))
    }
}

/// The one transition of a bundle from ready to spent.
fn mark_spent(
    transaction: &redb::WriteTransaction,
    peer: Fingerprint,
    id: &BundleId,
) -> Result<(), Failure> {
    let key = bundle_key(peer, id);
    let mut table = transaction.open_table(BUNDLES)?;
    let mut row: BundleRow = match table.get(&key)? {
        Some(bytes) => decode(bytes.value())?,
        None => return Err(StoreError::Unknown(*id).into()),
    };
    row.content.take().ok_or(StoreError::Spent(*id))?;
    table.insert(&key, encode(&row).as_slice())?;
    Ok(())
}

/// The right to write the content of one bundle, until it is dropped.
struct Claim<'a> {
    writing: &'a Mutex<HashSet<[u8; 64]>>,
    key: [u8; 64],
}

impl<'a> Claim<'a> {
    /// The claim, unless another holds it.
    fn new(writing: &'a Mutex<HashSet<[u8; 64]>>, key: [u8; 64]) -> Option<Claim<'a>> {
        let mut held = writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Lazily: a claim that is made gives up the key when it is dropped.
        held.insert(key).then(|| Claim { writing, key })
    }

    fn key(&self) -> &[u8; 64] {
        &self.key
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut held = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.key);
    }
}

/// Milliseconds since 1970; 0 if the clock is before.
pub(crate) fn unix_milliseconds() -> u64 {
    failpoint::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Number of the day since 1970 in UTC; 0 if the clock is before.
pub(crate) fn today() -> u64 {
    unix_milliseconds() / 86_400_000
}
