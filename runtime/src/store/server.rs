//! What a server asks of its store, whichever kind it is.
//!
//! Two kinds are there: [`Store`](super::Store), embedded in one process, and with the feature
//! `shared-store` one that several servers share. Every method blocks until what it says is done,
//! and none needs an async runtime.

use super::{BundleEntry, ModelDigest, StoreError};
use crate::fingerprint::Fingerprint;
use pi_core::SecretBytes;
use pi_protocol::session::{BundleId, BundleSink, BundleSource};
use std::collections::{HashMap, HashSet};

/// The store of a server: setups and bundle halves of its clients, and what each client was given.
///
/// A bundle half may be used once. [`ServerStore::spend_on_answer`] records durably that it is
/// spent, and nothing that follows from its content may leave the process before that.
///
/// # Errors
/// Every method fails with the errors of the medium ([`StoreError`] says which and where), beside
/// those that it names.
pub trait ServerStore: Send + Sync {
    /// Where it is, for messages.
    fn directory_name(&self) -> String;

    /// The identity that this store belongs to: the one that was proposed first, which is recorded
    /// for good. Of any number of callers with different proposals, all get the same answer.
    ///
    /// # Errors
    /// As for every method.
    fn service(&self, proposed: Fingerprint) -> Result<Fingerprint, StoreError>;

    /// The setup with a client.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is not what was stored.
    fn setup(&self, client: Fingerprint) -> Result<Option<SecretBytes>, StoreError>;

    /// Identity of the keys of the setup with a client, if it is of the present version: reads
    /// nothing of its content.
    ///
    /// # Errors
    /// As for every method.
    fn setup_id(&self, client: Fingerprint) -> Result<Option<[u8; 32]>, StoreError>;

    /// Keeps the setup with a client, whose keys have this identity, and replaces an earlier one,
    /// which is erased.
    ///
    /// # Errors
    /// As for every method.
    fn put_setup(&self, client: Fingerprint, id: &[u8; 32], setup: &[u8])
    -> Result<(), StoreError>;

    /// Ensures that the store answers.
    ///
    /// # Errors
    /// As for every method.
    fn probe(&self) -> Result<(), StoreError> {
        // An account that nobody has.
        self.usage(Fingerprint([0; 32]), "", 0).map(drop)
    }

    /// All bundles, spent ones included.
    ///
    /// # Errors
    /// As for every method.
    fn bundles(&self) -> Result<Vec<BundleEntry>, StoreError>;

    /// Number of bundles that are ready, by the model that they are for.
    ///
    /// # Errors
    /// As for every method.
    fn at_rest(&self) -> Result<HashMap<ModelDigest, u64>, StoreError>;

    /// Number of bundles that were ever kept, whatever became of them, by the model that they were
    /// for. Goes through all of them.
    ///
    /// # Errors
    /// As for every method.
    fn ever_kept(&self) -> Result<HashMap<ModelDigest, u64>, StoreError>;

    /// The bundles with this client that are ready for this model, oldest first.
    ///
    /// # Errors
    /// As for every method.
    fn ready(&self, client: Fingerprint, model: &ModelDigest) -> Result<Vec<BundleId>, StoreError>;

    /// The entry of one bundle, if the store knows it.
    ///
    /// # Errors
    /// As for every method.
    fn bundle(&self, client: Fingerprint, id: &BundleId)
    -> Result<Option<BundleEntry>, StoreError>;

    /// Begins to write a bundle half. It is no bundle until [`BundleWriting::keep`].
    ///
    /// # Errors
    /// [`StoreError::Exists`] if the name was ever used with this client, or is being written.
    fn bundle_writer(
        &self,
        client: Fingerprint,
        id: &BundleId,
    ) -> Result<Box<dyn BundleWriting + '_>, StoreError>;

    /// The content of a bundle that is not spent, to be read before or after it is.
    ///
    /// # Errors
    /// [`StoreError::Spent`] and [`StoreError::Unknown`].
    fn content(
        &self,
        client: Fingerprint,
        id: &BundleId,
    ) -> Result<Box<dyn BundleContent>, StoreError>;

    /// Marks a bundle as spent and counts the answer for an account of the client (the name of a
    /// model), both or neither, durably on return. Of all calls for a bundle one succeeds. The
    /// count is for good, and includes answers that never arrived.
    ///
    /// `today` is the number of the day since 1970 in UTC. One before the day recorded counts as
    /// that day: a clock that steps back gives nothing.
    ///
    /// # Errors
    /// [`StoreError::Spent`] and [`StoreError::Unknown`]; [`StoreError::AnswersUsed`] and
    /// [`StoreError::AnswersUsedToday`] if the account has reached a limit, and the bundle stays
    /// as it is.
    fn spend_on_answer(
        &self,
        client: Fingerprint,
        id: &BundleId,
        account: &str,
        limits: &AnswerLimits,
        today: u64,
    ) -> Result<(), StoreError>;

    /// What an account of a client has used.
    ///
    /// # Errors
    /// As for every method.
    fn usage(&self, client: Fingerprint, account: &str, today: u64) -> Result<Usage, StoreError>;

    /// Counts bytes that were exchanged for an account of a client.
    ///
    /// # Errors
    /// As for every method.
    fn add_bytes(
        &self,
        client: Fingerprint,
        account: &str,
        today: u64,
        bytes: u64,
    ) -> Result<(), StoreError>;

    /// Erases the content of a spent bundle. What cannot be erased now is erased later.
    ///
    /// # Errors
    /// As for every method.
    ///
    /// # Panics
    /// If the bundle is not spent, since its owner would lose it.
    fn erase(&self, client: Fingerprint, id: &BundleId) -> Result<(), StoreError>;

    /// The bundles with a client that are ready, whatever model they are for.
    ///
    /// # Errors
    /// As for every method.
    fn ready_of(&self, client: Fingerprint) -> Result<HashSet<BundleId>, StoreError>;

    /// Gives up those of these bundles with a client that are ready: spent without use, and erased.
    /// Returns their number.
    ///
    /// # Errors
    /// As for every method.
    fn discard(
        &self,
        client: Fingerprint,
        bundles: &HashSet<BundleId>,
    ) -> Result<usize, StoreError>;

    /// Gives up all ready bundles of a client, and erases its setup. The counts of its answers stay
    /// for good. Returns the number of bundles. What an operation under way keeps meanwhile may
    /// stay: the client is to be turned away first.
    ///
    /// # Errors
    /// As for every method.
    fn forget_client(&self, client: Fingerprint) -> Result<usize, StoreError>;

    /// All clients with a setup or a ready bundle.
    ///
    /// # Errors
    /// As for every method.
    fn clients(&self) -> Result<Vec<Fingerprint>, StoreError>;
}

/// A bundle half that is being written; dropped before it is kept, it is erased.
pub trait BundleWriting: BundleSink {
    /// Appends to the content.
    ///
    /// # Errors
    /// Errors of the medium; the half cannot be kept then.
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Takes the cause of the last error that a session got from this sink.
    fn take_failure(&mut self) -> Option<StoreError>;

    /// Keeps the half, durably on return.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if another half of this name was kept meanwhile; errors of the
    /// medium.
    fn keep(self: Box<Self>, model: &ModelDigest) -> Result<(), StoreError>;
}

/// The content of a bundle half, to be read.
pub trait BundleContent: Send {
    /// Length in bytes.
    fn length(&self) -> u64;

    /// Reads and verifies all of it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is not what was stored; errors of the medium.
    fn run(self: Box<Self>) -> Result<SecretBytes, StoreError>;

    /// The content, to be read from its beginning to its end.
    ///
    /// # Errors
    /// As [`BundleContent::run`].
    fn open(self: Box<Self>) -> Result<Box<dyn BundleSource>, StoreError>;
}

/// Limits on the answers that an account of a client gets; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerLimits {
    /// Answers in all.
    pub ever: Option<u64>,
    /// Answers on one day in UTC.
    pub per_day: Option<u64>,
}

/// What an account of a client has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Answers in all.
    pub answers: u64,
    /// Answers today.
    pub answers_today: u64,
    /// Bytes exchanged today.
    pub bytes_today: u64,
}
