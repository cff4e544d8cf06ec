//! The embedded store as a server uses it.

use super::account::Account;
use super::rows::{ACCOUNTS, ANSWERS, BUNDLES, SERVICE, SETUPS, SetupRow, decode, encode};
use super::server::{AnswerLimits, BundleContent, BundleWriting, ServerStore, Usage};
use super::{
    BundleEntry, BundleState, BundleWriter, Failure, ModelDigest, Reading, Store, StoreError,
    file_error, mark_spent,
};
use crate::files;
use crate::fingerprint::Fingerprint;
use pi_core::SecretBytes;
use pi_protocol::session::{BundleId, BundleSource};
use redb::ReadableTable;
use std::collections::{BTreeSet, HashMap, HashSet};

impl ServerStore for Store {
    fn directory_name(&self) -> String {
        self.directory().display().to_string()
    }

    fn service(&self, proposed: Fingerprint) -> Result<Fingerprint, StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(SERVICE)?;
            let recorded = table.get("fingerprint")?.map(|row| *row.value());
            if recorded.is_none() {
                table.insert("fingerprint", &proposed.0)?;
            }
            Ok(Fingerprint(recorded.unwrap_or(proposed.0)))
        })
    }

    fn setup(&self, client: Fingerprint) -> Result<Option<SecretBytes>, StoreError> {
        Store::setup(self, client)
    }

    fn setup_id(&self, client: Fingerprint) -> Result<Option<[u8; 32]>, StoreError> {
        Store::setup_id(self, client)
    }

    fn put_setup(
        &self,
        client: Fingerprint,
        id: &[u8; 32],
        setup: &[u8],
    ) -> Result<(), StoreError> {
        Store::put_setup(self, client, id, setup)
    }

    fn probe(&self) -> Result<(), StoreError> {
        Store::probe(self)
    }

    fn bundles(&self) -> Result<Vec<BundleEntry>, StoreError> {
        Store::bundles(self)
    }

    fn at_rest(&self) -> Result<HashMap<ModelDigest, u64>, StoreError> {
        let mut bundles = Store::bundles(self)?;
        bundles.retain(|entry| entry.state == BundleState::Ready);
        Ok(by_model(&bundles))
    }

    fn ever_kept(&self) -> Result<HashMap<ModelDigest, u64>, StoreError> {
        Ok(by_model(&Store::bundles(self)?))
    }

    fn ready(&self, client: Fingerprint, model: &ModelDigest) -> Result<Vec<BundleId>, StoreError> {
        Store::ready(self, client, model)
    }

    fn bundle(
        &self,
        client: Fingerprint,
        id: &BundleId,
    ) -> Result<Option<BundleEntry>, StoreError> {
        Store::bundle(self, client, id)
    }

    fn bundle_writer(
        &self,
        client: Fingerprint,
        id: &BundleId,
    ) -> Result<Box<dyn BundleWriting + '_>, StoreError> {
        Ok(Box::new(Store::bundle_writer(self, client, id)?))
    }

    fn content(
        &self,
        client: Fingerprint,
        id: &BundleId,
    ) -> Result<Box<dyn BundleContent>, StoreError> {
        Ok(Box::new(Store::content(self, client, id)?))
    }

    fn spend_on_answer(
        &self,
        client: Fingerprint,
        id: &BundleId,
        account: &str,
        limits: &AnswerLimits,
        today: u64,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            mark_spent(transaction, client, id)?;
            let earlier = transaction.open_table(ANSWERS)?;
            let earlier = earlier.get(&client.0)?.map_or(0, |given| given.value());
            change_account(transaction, client, account, |account| {
                account.count_answer(limits, earlier, today)
            })
        })
    }

    fn usage(&self, client: Fingerprint, account: &str, today: u64) -> Result<Usage, StoreError> {
        self.read(|transaction| {
            let earlier = transaction.open_table(ANSWERS)?;
            let earlier = earlier.get(&client.0)?.map_or(0, |given| given.value());
            let table = transaction.open_table(ACCOUNTS)?;
            let row = table.get((&client.0, account))?;
            let account: Option<Account> = row.map(|row| decode(row.value())).transpose()?;
            Ok(account.unwrap_or_default().usage(earlier, today))
        })
    }

    fn add_bytes(
        &self,
        client: Fingerprint,
        account: &str,
        today: u64,
        bytes: u64,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            change_account(transaction, client, account, |account| {
                account.count_bytes(today, bytes);
                Ok(())
            })
        })
    }

    fn erase(&self, client: Fingerprint, id: &BundleId) -> Result<(), StoreError> {
        Store::erase(self, client, id)
    }

    fn ready_of(&self, client: Fingerprint) -> Result<HashSet<BundleId>, StoreError> {
        let entries = self.of_peer(client)?.into_iter();
        let ready = entries.filter(|entry| entry.state == BundleState::Ready);
        Ok(ready.map(|entry| entry.id).collect())
    }

    fn discard(
        &self,
        client: Fingerprint,
        bundles: &HashSet<BundleId>,
    ) -> Result<usize, StoreError> {
        let mut discarded = 0;
        for id in bundles {
            match Store::discard(self, client, id) {
                Ok(()) => discarded += 1,
                Err(StoreError::Spent(_) | StoreError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(discarded)
    }

    fn forget_client(&self, client: Fingerprint) -> Result<usize, StoreError> {
        let count = ServerStore::discard(self, client, &self.ready_of(client)?)?;
        let setup: Option<SetupRow> = self.write(|transaction| {
            let mut table = transaction.open_table(SETUPS)?;
            let row = table.remove(&client.0)?;
            Ok(row.map(|row| decode(row.value())).transpose()?)
        })?;
        if let Some(setup) = setup {
            let path = self.setup_path(client, &setup.content);
            files::erase(&path).map_err(|e| file_error(path, e))?;
        }
        Ok(count)
    }

    fn clients(&self) -> Result<Vec<Fingerprint>, StoreError> {
        self.read(|transaction| {
            let mut clients = BTreeSet::new();
            for row in transaction.open_table(SETUPS)?.iter()? {
                clients.insert(Fingerprint(*row?.0.value()));
            }
            for row in transaction.open_table(BUNDLES)?.iter()? {
                let (key, row) = row?;
                let entry = super::rows::entry(key.value(), &decode(row.value())?);
                if entry.state == BundleState::Ready {
                    clients.insert(entry.peer);
                }
            }
            Ok(clients.into_iter().collect())
        })
    }
}

/// Changes the record of an account as part of a transaction.
fn change_account(
    transaction: &redb::WriteTransaction,
    client: Fingerprint,
    account: &str,
    change: impl FnOnce(&mut Account) -> Result<(), StoreError>,
) -> Result<(), Failure> {
    let mut table = transaction.open_table(ACCOUNTS)?;
    let key = (&client.0, account);
    let mut row: Account = match table.get(key)? {
        Some(row) => decode(row.value())?,
        None => Account::default(),
    };
    change(&mut row)?;
    table.insert(key, encode(&row).as_slice())?;
    Ok(())
}

impl BundleWriting for BundleWriter<'_> {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        BundleWriter::append(self, bytes)
    }

    fn take_failure(&mut self) -> Option<StoreError> {
        BundleWriter::take_failure(self)
    }

    fn keep(self: Box<Self>, model: &ModelDigest) -> Result<(), StoreError> {
        BundleWriter::keep(*self, model)
    }
}

impl BundleContent for Reading {
    fn length(&self) -> u64 {
        Reading::length(self)
    }

    fn run(self: Box<Self>) -> Result<SecretBytes, StoreError> {
        Reading::run(*self)
    }

    fn open(self: Box<Self>) -> Result<Box<dyn BundleSource>, StoreError> {
        Ok(Box::new(Reading::open(*self)?))
    }
}

fn by_model(bundles: &[BundleEntry]) -> HashMap<ModelDigest, u64> {
    let mut numbers = HashMap::new();
    for entry in bundles {
        *numbers.entry(entry.model).or_default() += 1;
    }
    numbers
}
