//! A store that several servers share: state in PostgreSQL, contents in an object store.
//!
//! Any of its servers answers any client. A bundle that was prepared with one is spent on another,
//! and none is spent twice: the mark is one conditional update of its row, in one transaction with
//! the count of the answer and an entry of the journal, which commits before the first online byte.
//! Two servers that ask for one bundle at once meet at the lock of its row; the second finds it
//! spent. A unique index of the journal makes a second end of one bundle impossible for the
//! database itself, whatever a program does.
//!
//! # What is where
//! `schema` has the tables. `bundles` and `setups` name an object each; `writes` names the objects
//! that are being written, each under a lease by the database's clock; `accounts` counts answers
//! and bytes; `journal` has an entry for each bundle that was kept, spent or discarded, for good.
//! Objects are sealed with an operator's key (`seal`). The database learns which client keeps,
//! spends and discards how many bundles of which length for which model, and when; it holds no
//! secret of a client or a model.
//!
//! # Objects and rows
//! An object is written under a random name, never to be changed. Its row in `writes` is committed
//! before it begins, and the row that promises it after it is durable. So whatever object exists
//! has a row, unless its writer is gone or it was given up; a sweep lists the objects first and
//! reads the rows after that, and deletes those without one. What is spent is deleted at once by
//! who spent it, and by the sweep of any server a while later.
//!
//! # Time
//! Every transaction has a deadline, and so has every call of the object store. When one of them is
//! gone, calls fail with an error that names it; when it is back, they succeed again. A transaction
//! whose commit was not answered may have happened: a bundle may then be spent of which nothing
//! was sent, which loses the bundle and no more.

mod content;
mod database;
mod objects;
mod schema;
mod seal;
mod tls;

use super::account::Account;
use super::server::{AnswerLimits, BundleContent, BundleWriting, ServerStore, Usage};
use super::{BundleEntry, BundleState, ModelDigest, StoreError};
use crate::fingerprint::{Fingerprint, hex};
use crate::party::random;
use content::{Content, Writer};
use database::{Database, Failure, Work};
use objects::{Objects, Upload};
use pi_core::SecretBytes;
use pi_protocol::session::{BundleId, is_current_setup};
use seal::{Keys, Kind};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::Row;

/// Where a shared store is.
#[derive(Clone)]
pub struct SharedOptions {
    /// URL of the database, as `postgresql://USER:PASSWORD@HOST/NAME?sslmode=require`.
    pub database: String,
    /// PEM file with the authorities that certify the database's host.
    pub authorities: Option<PathBuf>,
    /// The object store: a folder, `file:///FOLDER`, or `s3://BUCKET/PREFIX`.
    pub objects: String,
    /// File with the operator's keys, one of 64 hexadecimal digits a line: the first encrypts, all
    /// decrypt.
    pub key: PathBuf,
    /// Time after which the content of a spent bundle is deleted by whichever server sweeps.
    pub grace: Duration,
}

impl SharedOptions {
    /// A grace that outlasts every inference.
    pub const GRACE: Duration = Duration::from_secs(600);
}

/// A store that several servers share.
pub struct SharedStore {
    inner: Arc<Inner>,
    /// Its end ends the sweeps.
    _sweeping: Sender<()>,
}

/// Time between two sweeps.
const SWEEP: Duration = Duration::from_secs(60);

impl SharedStore {
    /// Connects to a store, and makes its tables if there are none.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Objects`] and [`StoreError::Key`] name what cannot
    /// be used.
    pub fn open(options: &SharedOptions) -> Result<SharedStore, StoreError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store")
            .enable_all()
            .build();
        let database = Database::new(&options.database, options.authorities.as_deref())?;
        let inner = Arc::new(Inner {
            runtime: Some(runtime.map_err(|e| database.error(e))?),
            keys: Keys::read(&options.key)?,
            objects: Objects::open(&options.objects)?,
            server: server_name(),
            grace: options.grace,
            database,
        });
        inner.wait(schema::migrate(&inner.database))?;
        inner.sweep()?;
        let (sweeping, ended) = channel::<()>();
        let weak = Arc::downgrade(&inner);
        let sweeps = move || {
            while ended.recv_timeout(SWEEP) == Err(RecvTimeoutError::Timeout) && sweep(&weak) {}
        };
        let thread = std::thread::Builder::new().name("store-sweep".into());
        thread.spawn(sweeps).map_err(|e| inner.objects.error(e))?;
        Ok(SharedStore {
            inner,
            _sweeping: sweeping,
        })
    }

    /// Deletes what belongs to no setup and no ready bundle, and is not being written.
    ///
    /// # Errors
    /// Errors of database and object store.
    pub fn sweep(&self) -> Result<(), StoreError> {
        self.inner.sweep()
    }
}

/// Sweeps a store, and tells whether it is still there.
fn sweep(store: &Weak<Inner>) -> bool {
    let Some(store) = store.upgrade() else {
        return false;
    };
    if let Err(error) = store.sweep() {
        tracing::warn!(%error, "leftovers were not swept");
    }
    true
}

/// A name for this process in the journal.
fn server_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let run = hex(&random()[..4]);
    format!("{}:{}:{run}", host.trim(), std::process::id())
}

/// What writers and readers keep alive.
struct Inner {
    database: Database,
    objects: Objects,
    keys: Keys,
    server: String,
    grace: Duration,
    /// Drives the connections; there until this is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it is forbidden where this may be dropped.
            runtime.shutdown_background();
        }
    }
}

const LEASE: &str = "INSERT INTO writes (object, client, bundle, server, lease)
     VALUES ($1, $2, $3, $4, clock_timestamp() + interval '10 minutes') ON CONFLICT DO NOTHING";
const RENEW: &str = "UPDATE writes SET lease = clock_timestamp() + interval '10 minutes'
     WHERE object = $1";
const UNLEASE: &str = "DELETE FROM writes WHERE object = $1";
const KNOWN: &str = "SELECT 1 FROM bundles WHERE client = $1 AND id = $2";
const BUNDLE: &str = "SELECT client, id, model, state,
     (extract(epoch FROM stored_at) * 1000)::bigint AS stored_at, object, length FROM bundles
     WHERE client = $1 AND id = $2";
const BUNDLES: &str = "SELECT client, id, model, state,
     (extract(epoch FROM stored_at) * 1000)::bigint AS stored_at FROM bundles";
const AT_REST: &str = "SELECT model, count(*) AS count FROM bundles
     WHERE state = 'ready' GROUP BY model";
const EVER_KEPT: &str = "SELECT model, count(*) AS count FROM bundles GROUP BY model";
const READY: &str = "SELECT id FROM bundles
     WHERE client = $1 AND model = $2 AND state = 'ready' ORDER BY stored_at, id";
const READY_OF: &str = "SELECT id FROM bundles WHERE client = $1 AND state = 'ready'";
const INSERT: &str = "WITH kept AS (
         INSERT INTO bundles (client, id, model, state, object, length)
         VALUES ($1, $2, $3, 'ready', $4, $5) ON CONFLICT DO NOTHING RETURNING client, id)
     INSERT INTO journal (what, client, bundle, server) SELECT 'keep', client, id, $6 FROM kept";
const SPEND: &str = "WITH spent AS (
         UPDATE bundles SET state = 'spent', spent_at = clock_timestamp()
         WHERE client = $1 AND id = $2 AND state = 'ready' RETURNING client, id)
     INSERT INTO journal (what, client, bundle, server) SELECT 'spend', client, id, $3 FROM spent";
const DISCARD: &str = "WITH others AS (
         UPDATE bundles SET state = 'spent', spent_at = clock_timestamp()
         WHERE client = $1 AND state = 'ready' AND id = ANY ($2)
         RETURNING client, id, object),
     noted AS (
         INSERT INTO journal (what, client, bundle, server)
         SELECT 'discard', client, id, $3 FROM others)
     SELECT object FROM others";
/// Locks the row of an account, which it makes if there is none.
const ACCOUNT: &str = "INSERT INTO accounts (client, account) VALUES ($1, $2)
     ON CONFLICT (client, account) DO UPDATE SET answers = accounts.answers
     RETURNING answers, day, answers_today, bytes_today";
const USAGE: &str = "SELECT answers, day, answers_today, bytes_today FROM accounts
     WHERE client = $1 AND account = $2";
const COUNT: &str = "UPDATE accounts
     SET answers = $3, day = $4, answers_today = $5, bytes_today = $6
     WHERE client = $1 AND account = $2";
const SETUP: &str = "SELECT id, version, object, length FROM setups WHERE client = $1";
const OLD_SETUP: &str = "SELECT object FROM setups WHERE client = $1 FOR UPDATE";
const PUT_SETUP: &str = "INSERT INTO setups (client, id, version, object, length)
     VALUES ($1, $2, $3, $4, $5) ON CONFLICT (client) DO UPDATE
     SET id = $2, version = $3, object = $4, length = $5";
const FORGET_SETUP: &str = "DELETE FROM setups WHERE client = $1 RETURNING object";
const CLIENTS: &str = "SELECT client FROM setups
     UNION SELECT client FROM bundles WHERE state = 'ready' ORDER BY client";
const PROPOSE: &str = "INSERT INTO service (fingerprint) VALUES ($1) ON CONFLICT DO NOTHING";
const SERVICE: &str = "SELECT fingerprint FROM service";
const EXPIRE: &str = "DELETE FROM writes WHERE lease < clock_timestamp()";
/// One statement, so that what is kept meanwhile is found in the one table or in the other.
const HELD: &str = "SELECT object FROM writes UNION SELECT object FROM setups
     UNION SELECT object FROM bundles
     WHERE state = 'ready' OR spent_at > clock_timestamp() - $1::float8 * interval '1 second'";

impl Inner {
    /// Waits for what needs the runtime, on whatever thread, one of another runtime included.
    fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        let runtime = self.runtime.as_ref().expect("taken when this is dropped");
        let _entered = runtime.enter();
        futures_executor::block_on(what)
    }

    /// Runs one transaction.
    fn transact<T>(
        &self,
        body: impl AsyncFnOnce(&mut Work<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.wait(self.database.transact(body))
    }

    fn sweep(&self) -> Result<(), StoreError> {
        self.transact(async |work| work.execute(EXPIRE, &[]).await)?;
        // The objects first: whatever is there now had its row before.
        let objects = self.wait(self.objects.names())?;
        let grace = self.grace.as_secs_f64();
        let held = self.transact(async |work| work.query(HELD, &[&grace]).await)?;
        let held: HashSet<String> = held.iter().map(|row| row.get(0)).collect();
        let mut deleted = 0;
        for object in objects.iter().filter(|object| !held.contains(*object)) {
            self.wait(self.objects.delete(object))?;
            deleted += 1;
        }
        if deleted > 0 {
            tracing::info!(deleted, "objects that were left behind");
        }
        self.objects.delete_halves(&held)
    }

    /// Begins to write an object under a lease. Only one is written for a bundle at a time.
    fn writer(
        self: &Arc<Self>,
        kind: Kind,
        client: Fingerprint,
        id: &[u8; 32],
    ) -> Result<Writer, StoreError> {
        let kind_name = match kind {
            Kind::Bundle => "bundles",
            Kind::Setup => "setups",
        };
        let object = format!("{kind_name}/{}", hex(&random()[..16]));
        let bundle = (kind == Kind::Bundle).then_some(&id[..]);
        let client_key = &client.0[..];
        self.transact(async |work| {
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
                [&object, &client_key, &bundle, &self.server];
            let exists = Failure::Store(StoreError::Exists(BundleId(*id)));
            if work.execute(LEASE, &values).await? == 0 {
                return Err(exists);
            }
            match bundle {
                Some(id) if work.row(KNOWN, &[&client_key, &id]).await?.is_some() => Err(exists),
                _ => Ok(()),
            }
        })?;
        Ok(Writer::new(self, kind, client, id, object))
    }

    /// Extends the lease of an object that is being written.
    fn renew(&self, object: &str) -> Result<(), StoreError> {
        self.transact(async |work| match work.execute(RENEW, &[&object]).await? {
            0 => Err(self.lost(object).into()),
            _ => Ok(()),
        })
    }

    fn lost(&self, object: &str) -> StoreError {
        self.objects
            .error(format!("{object} took longer than its lease"))
    }

    /// Removes what was written of an object, and its lease.
    fn give_up(&self, upload: &mut Upload, object: &str) -> Result<(), StoreError> {
        self.wait(async {
            upload.abort(&self.objects).await?;
            self.objects.delete(object).await
        })?;
        self.transact(async |work| work.execute(UNLEASE, &[&object]).await)?;
        Ok(())
    }

    /// Makes a bundle of what was written.
    fn keep(
        &self,
        writer: &Writer,
        client: Fingerprint,
        id: &BundleId,
        model: &ModelDigest,
    ) -> Result<(), StoreError> {
        let (client, key, model) = (&client.0[..], &id.0[..], &model[..]);
        let (object, length) = (&writer.object, signed(writer.length));
        self.transact(async |work| {
            if work.execute(UNLEASE, &[object]).await? == 0 {
                return Err(self.lost(object).into());
            }
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [&client, &key, &model, object, &length, &self.server];
            match work.execute(INSERT, &values).await? {
                0 => Err(StoreError::Exists(*id).into()),
                _ => Ok(()),
            }
        })
    }

    /// Marks those of these bundles of a client that are ready as spent without use.
    fn discard(
        &self,
        client: Fingerprint,
        bundles: &HashSet<BundleId>,
    ) -> Result<usize, StoreError> {
        let bundles: Vec<&[u8]> = bundles.iter().map(|id| &id.0[..]).collect();
        let client = &client.0[..];
        let rows = self.transact(async |work| {
            work.query(DISCARD, &[&client, &bundles, &self.server])
                .await
        })?;
        for row in &rows {
            self.delete_or_leave(row.get(0));
        }
        Ok(rows.len())
    }

    /// Deletes an object that no row promises, or leaves it to the sweep.
    fn delete_or_leave(&self, object: &str) {
        if let Err(error) = self.wait(self.objects.delete(object)) {
            tracing::warn!(%error, "given up, but not deleted yet");
        }
    }

    /// The numbers that a query counts for each model.
    fn numbers_by_model(
        &self,
        query: &'static str,
    ) -> Result<HashMap<ModelDigest, u64>, StoreError> {
        let rows = self.transact(async |work| work.query(query, &[]).await)?;
        let number = |row: &Row| {
            let count = row.get::<_, i64>("count").unsigned_abs();
            Ok((self.digest(row, "model")?, count))
        };
        rows.iter().map(number).collect()
    }

    /// A column of 32 bytes.
    fn digest(&self, row: &Row, column: &str) -> Result<[u8; 32], StoreError> {
        let bytes: &[u8] = row.get(column);
        bytes.try_into().map_err(|_| StoreError::Damaged {
            path: self.database.place().into(),
            reason: format!("{column} has {} bytes, 32 expected", bytes.len()),
        })
    }

    fn entry(&self, row: &Row) -> Result<BundleEntry, StoreError> {
        Ok(BundleEntry {
            peer: Fingerprint(self.digest(row, "client")?),
            id: BundleId(self.digest(row, "id")?),
            model: self.digest(row, "model")?,
            state: match row.get("state") {
                "ready" => BundleState::Ready,
                _ => BundleState::Spent,
            },
            stored_at: row.get::<_, i64>("stored_at").unsigned_abs(),
        })
    }

    fn bundle_row(&self, client: Fingerprint, id: &BundleId) -> Result<Option<Row>, StoreError> {
        let (client, id) = (&client.0[..], &id.0[..]);
        self.transact(async |work| work.row(BUNDLE, &[&client, &id]).await)
    }

    fn setup_row(&self, client: Fingerprint) -> Result<Option<Row>, StoreError> {
        let client = &client.0[..];
        self.transact(async |work| work.row(SETUP, &[&client]).await)
    }
}

/// Changes the record of an account as part of a transaction, which locks it.
async fn change_account(
    work: &mut Work<'_>,
    client: &[u8],
    account: &str,
    change: impl AsyncFnOnce(&mut Work<'_>, &mut Account) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let row = work.row(ACCOUNT, &[&client, &account]).await?;
    let mut record = row.as_ref().map(record).unwrap_or_default();
    change(work, &mut record).await?;
    let Account {
        answers,
        day,
        answers_today,
        bytes_today,
    } = record;
    let [answers, day, answers_today, bytes_today] =
        [answers, day, answers_today, bytes_today].map(signed);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] = [
        &client,
        &account,
        &answers,
        &day,
        &answers_today,
        &bytes_today,
    ];
    work.execute(COUNT, &values).await?;
    Ok(())
}

fn record(row: &Row) -> Account {
    let count = |column| row.get::<_, i64>(column).unsigned_abs();
    Account {
        answers: count("answers"),
        day: count("day"),
        answers_today: count("answers_today"),
        bytes_today: count("bytes_today"),
    }
}

/// A number as the database holds it; one beyond its range is the largest.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl ServerStore for SharedStore {
    fn directory_name(&self) -> String {
        let Inner {
            database, objects, ..
        } = &*self.inner;
        format!(
            "database {} and objects in {}",
            database.place(),
            objects.place()
        )
    }

    fn service(&self, proposed: Fingerprint) -> Result<Fingerprint, StoreError> {
        let proposed = &proposed.0[..];
        // Two transactions, so that the second sees what another server recorded meanwhile.
        let inner = &self.inner;
        inner.transact(async |work| work.execute(PROPOSE, &[&proposed]).await)?;
        let row = inner.transact(async |work| work.row(SERVICE, &[]).await)?;
        let row = row.ok_or_else(|| inner.database.error("no service is recorded"))?;
        Ok(Fingerprint(inner.digest(&row, "fingerprint")?))
    }

    fn setup(&self, client: Fingerprint) -> Result<Option<SecretBytes>, StoreError> {
        let mut tried = None;
        loop {
            let Some(row) = self.inner.setup_row(client)? else {
                return Ok(None);
            };
            let content = Content {
                shared: self.inner.clone(),
                kind: Kind::Setup,
                client,
                id: self.inner.digest(&row, "id")?,
                object: row.get("object"),
                model: [0; 32],
                length: row.get::<_, i64>("length").unsigned_abs(),
            };
            let object = content.object.clone();
            match Box::new(content).run() {
                Ok(setup) => return Ok(Some(setup)),
                // Another server may have replaced it since its row was read.
                Err(_) if tried.as_ref() != Some(&object) => tried = Some(object),
                Err(error) => return Err(error),
            }
        }
    }

    fn setup_id(&self, client: Fingerprint) -> Result<Option<[u8; 32]>, StoreError> {
        let row = self.inner.setup_row(client)?;
        let current = |row: &Row| {
            let version = u8::try_from(row.get::<_, i16>("version"));
            version.is_ok_and(|version| is_current_setup(&[version]))
        };
        let row = row.filter(current);
        row.map(|row| self.inner.digest(&row, "id")).transpose()
    }

    fn put_setup(
        &self,
        client: Fingerprint,
        id: &[u8; 32],
        setup: &[u8],
    ) -> Result<(), StoreError> {
        let mut writer = self.inner.writer(Kind::Setup, client, id)?;
        writer.write_all(setup)?;
        writer.end(&[0; 32])?;
        let (client, id) = (&client.0[..], &id[..]);
        let version = i16::from(setup.first().copied().unwrap_or(0));
        let (object, length) = (&writer.object, signed(writer.length));
        let inner = &self.inner;
        let earlier = inner.transact(async |work| {
            if work.execute(UNLEASE, &[object]).await? == 0 {
                return Err(inner.lost(object).into());
            }
            let earlier = work.row(OLD_SETUP, &[&client]).await?;
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&client, &id, &version, object, &length];
            work.execute(PUT_SETUP, &values).await?;
            Ok(earlier)
        });
        if matches!(earlier, Ok(_) | Err(StoreError::Database { .. })) {
            // As with bundles.
            writer.settle();
        }
        if let Some(earlier) = earlier? {
            inner.delete_or_leave(earlier.get(0));
        }
        Ok(())
    }

    fn bundles(&self) -> Result<Vec<BundleEntry>, StoreError> {
        let rows = self
            .inner
            .transact(async |work| work.query(BUNDLES, &[]).await)?;
        rows.iter().map(|row| self.inner.entry(row)).collect()
    }

    fn at_rest(&self) -> Result<HashMap<ModelDigest, u64>, StoreError> {
        self.inner.numbers_by_model(AT_REST)
    }

    fn ever_kept(&self) -> Result<HashMap<ModelDigest, u64>, StoreError> {
        self.inner.numbers_by_model(EVER_KEPT)
    }

    fn ready(&self, client: Fingerprint, model: &ModelDigest) -> Result<Vec<BundleId>, StoreError> {
        let (client, model) = (&client.0[..], &model[..]);
        let rows = self
            .inner
            .transact(async |work| work.query(READY, &[&client, &model]).await)?;
        let ids = rows
            .iter()
            .map(|row| self.inner.digest(row, "id").map(BundleId));
        ids.collect()
    }

    fn bundle(
        &self,
        client: Fingerprint,
        id: &BundleId,
    ) -> Result<Option<BundleEntry>, StoreError> {
        let row = self.inner.bundle_row(client, id)?;
        row.map(|row| self.inner.entry(&row)).transpose()
    }

    fn bundle_writer(
        &self,
        client: Fingerprint,
        id: &BundleId,
    ) -> Result<Box<dyn BundleWriting + '_>, StoreError> {
        Ok(Box::new(self.inner.writer(Kind::Bundle, client, &id.0)?))
    }

    fn content(
        &self,
        client: Fingerprint,
        id: &BundleId,
    ) -> Result<Box<dyn BundleContent>, StoreError> {
        let row = self.inner.bundle_row(client, id)?;
        let row = row.ok_or(StoreError::Unknown(*id))?;
        let entry = self.inner.entry(&row)?;
        match entry.state {
            BundleState::Spent => Err(StoreError::Spent(*id)),
            BundleState::Ready => Ok(Box::new(Content {
                shared: self.inner.clone(),
                kind: Kind::Bundle,
                client,
                id: id.0,
                object: row.get("object"),
                model: entry.model,
                length: row.get::<_, i64>("length").unsigned_abs(),
            })),
        }
    }

    fn spend_on_answer(
        &self,
        client: Fingerprint,
        id: &BundleId,
        account: &str,
        limits: &AnswerLimits,
        today: u64,
    ) -> Result<(), StoreError> {
        let (client, key) = (&client.0[..], &id.0[..]);
        let server = &self.inner.server;
        self.inner.transact(async |work| {
            change_account(work, client, account, async |work, account| {
                if work.execute(SPEND, &[&client, &key, server]).await? == 0 {
                    let known = work.row(KNOWN, &[&client, &key]).await?;
                    return Err(match known {
                        Some(_) => StoreError::Spent(*id).into(),
                        None => StoreError::Unknown(*id).into(),
                    });
                }
                Ok(account.count_answer(limits, 0, today)?)
            })
            .await
        })
    }

    fn usage(&self, client: Fingerprint, account: &str, today: u64) -> Result<Usage, StoreError> {
        let client = &client.0[..];
        let row = self
            .inner
            .transact(async |work| work.row(USAGE, &[&client, &account]).await)?;
        let record = row.as_ref().map(record).unwrap_or_default();
        Ok(record.usage(0, today))
    }

    fn add_bytes(
        &self,
        client: Fingerprint,
        account: &str,
        today: u64,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let client = &client.0[..];
        self.inner.transact(async |work| {
            change_account(work, client, account, async |_, account| {
                account.count_bytes(today, bytes);
                Ok(())
            })
            .await
        })
    }

    fn erase(&self, client: Fingerprint, id: &BundleId) -> Result<(), StoreError> {
        let row = self.inner.bundle_row(client, id)?;
        let spent = row.filter(|row| row.get::<_, &str>("state") == "spent");
        let row = spent.expect("only spent bundles are erased");
        self.inner
            .wait(self.inner.objects.delete(row.get("object")))
    }

    fn ready_of(&self, client: Fingerprint) -> Result<HashSet<BundleId>, StoreError> {
        let (inner, client) = (&self.inner, &client.0[..]);
        let rows = inner.transact(async |work| work.query(READY_OF, &[&client]).await)?;
        let ids = rows.iter().map(|row| inner.digest(row, "id").map(BundleId));
        ids.collect()
    }

    fn discard(
        &self,
        client: Fingerprint,
        bundles: &HashSet<BundleId>,
    ) -> Result<usize, StoreError> {
        self.inner.discard(client, bundles)
    }

    fn forget_client(&self, client: Fingerprint) -> Result<usize, StoreError> {
        let count = self.inner.discard(client, &self.ready_of(client)?)?;
        let client = &client.0[..];
        let setup = self
            .inner
            .transact(async |work| work.row(FORGET_SETUP, &[&client]).await)?;
        if let Some(setup) = setup {
            self.inner.delete_or_leave(setup.get(0));
        }
        Ok(count)
    }

    fn clients(&self) -> Result<Vec<Fingerprint>, StoreError> {
        let rows = self
            .inner
            .transact(async |work| work.query(CLIENTS, &[]).await)?;
        let clients = rows.iter();
        let clients = clients.map(|row| self.inner.digest(row, "client").map(Fingerprint));
        clients.collect()
    }
}
