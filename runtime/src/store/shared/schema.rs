//! The tables of the database, and how they come about.

use super::super::StoreError;
use super::database::{Database, Work};

/// The version of the tables that this program uses.
const VERSION: i32 = 1;

/// Statements that bring the tables from one version to the next, from version 0 on, which has
/// none.
const MIGRATIONS: [&str; VERSION as usize] = ["
CREATE TABLE service (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    fingerprint bytea NOT NULL
);
CREATE TABLE setups (
    client bytea PRIMARY KEY,
    id bytea NOT NULL,
    version smallint NOT NULL,
    object text NOT NULL,
    length bigint NOT NULL
);
CREATE TABLE bundles (
    client bytea NOT NULL,
    id bytea NOT NULL,
    model bytea NOT NULL,
    state text NOT NULL CHECK (state IN ('ready', 'spent')),
    object text NOT NULL UNIQUE,
    length bigint NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    spent_at timestamptz,
    PRIMARY KEY (client, id)
);
CREATE INDEX bundles_ready ON bundles (client, model) WHERE state = 'ready';
CREATE TABLE writes (
    object text PRIMARY KEY,
    client bytea NOT NULL,
    bundle bytea,
    server text NOT NULL,
    lease timestamptz NOT NULL,
    UNIQUE (client, bundle)
);
CREATE TABLE accounts (
    client bytea NOT NULL,
    account text NOT NULL,
    answers bigint NOT NULL DEFAULT 0,
    day bigint NOT NULL DEFAULT 0,
    answers_today bigint NOT NULL DEFAULT 0,
    bytes_today bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (client, account)
);
CREATE TABLE journal (
    entry bigserial PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    what text NOT NULL CHECK (what IN ('keep', 'spend', 'discard')),
    client bytea NOT NULL,
    bundle bytea NOT NULL,
    server text NOT NULL
);
CREATE UNIQUE INDEX journal_kept_once ON journal (client, bundle) WHERE what = 'keep';
CREATE UNIQUE INDEX journal_spent_once ON journal (client, bundle) WHERE what <> 'keep';
"];

/// Brings the tables up to this program's version. Of several servers that start at once, one does
/// it while the others wait.
pub(super) async fn migrate(database: &Database) -> Result<(), StoreError> {
    let fault = |reason: String| database.error(reason);
    database
        .transact(async |work: &mut Work<'_>| {
            // A number of this program; it is held until the transaction ends.
            work.batch("SELECT pg_advisory_xact_lock(7246102930481)")
                .await?;
            work.batch(
                "SET LOCAL client_min_messages = warning;
                 CREATE TABLE IF NOT EXISTS schema_version (version integer NOT NULL)",
            )
            .await?;
            let row = work.row("SELECT current_setting('fsync')", &[]).await?;
            if row.is_some_and(|row| row.get::<_, &str>(0) != "on") {
                let reason = "its fsync is off: it can forget that a bundle is spent";
                return Err(fault(reason.into()).into());
            }
            let row = work.row("SELECT version FROM schema_version", &[]).await?;
            let version = row.map_or(0, |row| row.get(0));
            let Some(missing) = MIGRATIONS.get(version as usize..) else {
                return Err(fault(format!(
                    "its tables have version {version}, this program knows {VERSION}"
                ))
                .into());
            };
            for migration in missing {
                work.batch(migration).await?;
            }
            if !missing.is_empty() {
                work.execute("DELETE FROM schema_version", &[]).await?;
                work.execute("INSERT INTO schema_version VALUES ($1)", &[&VERSION])
                    .await?;
            }
            Ok(())
        })
        .await
}
