//! The database: a few connections that are made when needed, transactions with a deadline.

use super::super::StoreError;
use super::tls::{self, Tls};
use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Row, Statement, Transaction};

/// Connections at once of one server.
const CONNECTIONS: usize = 8;
/// Time to make a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for one transaction, with the wait for a connection.
const DEADLINE: Duration = Duration::from_secs(20);
/// What every session is set to. A commit that returns is on the disk of the database; nothing
/// waits for ever, be it for a lock or for a server that died inside a transaction.
const SESSION: &str = "-c synchronous_commit=on -c statement_timeout=10000 -c lock_timeout=5000 \
                       -c idle_in_transaction_session_timeout=10000";

/// A database, connected or not.
pub(super) struct Database {
    config: Config,
    tls: Option<Tls>,
    place: String,
    idle: Mutex<Vec<Connection>>,
    slots: Semaphore,
}

/// A connection with the statements that were prepared on it.
struct Connection {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

/// Why a transaction was given up.
pub(super) enum Failure {
    /// The caller has its reason, and the connection is sound.
    Store(StoreError),
    Database(tokio_postgres::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Failure {
        Failure::Database(error)
    }
}

impl Database {
    /// The database at a URL; connects to nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the URL is none, or its line would be neither private nor
    /// encrypted.
    pub(super) fn new(url: &str, authorities: Option<&Path>) -> Result<Database, StoreError> {
        let config: Result<Config, _> = url.parse();
        // Not the text, which may hold a password.
        let mut config = config.map_err(|e| StoreError::Database {
            place: "named by the URL".into(),
            reason: explain(&e),
        })?;
        let place = tls::place(&config);
        let tls = Tls::new(&config, authorities).map_err(|reason| StoreError::Database {
            place: place.clone(),
            reason,
        })?;
        let options = match config.get_options() {
            Some(options) => format!("{options} {SESSION}"),
            None => SESSION.into(),
        };
        config.options(options).connect_timeout(CONNECT);
        config.tcp_user_timeout(DEADLINE);
        if config.get_application_name().is_none() {
            config.application_name("pi-server");
        }
        Ok(Database {
            config,
            tls,
            place,
            idle: Mutex::default(),
            slots: Semaphore::new(CONNECTIONS),
        })
    }

    /// Where it is, for messages.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// The error of this database.
    pub(super) fn error(&self, reason: impl Display) -> StoreError {
        StoreError::Database {
            place: self.place.clone(),
            reason: reason.to_string(),
        }
    }

    /// Runs one transaction; its changes are durable on return. After an error of the database it
    /// may have happened or not, since the line can break while the answer to the commit is on its
    /// way; after any other error it did not.
    pub(super) async fn transact<T>(
        &self,
        body: impl AsyncFnOnce(&mut Work<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let done = timeout(DEADLINE, self.attempt(body)).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Store(error))) => Err(error),
            Ok(Err(Failure::Database(error))) => Err(self.error(explain(&error))),
            Err(_) => Err(self.error(format!("no answer within {DEADLINE:?}"))),
        }
    }

    async fn attempt<T>(
        &self,
        body: impl AsyncFnOnce(&mut Work<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let slot = self.slots.acquire().await;
        let _slot = slot.map_err(|e| self.error(e))?;
        let mut connection = self.connection().await?;
        let result = {
            let Connection { client, statements } = &mut connection;
            let transaction = client.transaction().await?;
            let mut work = Work {
                transaction,
                statements,
            };
            match body(&mut work).await {
                Ok(value) => work
                    .transaction
                    .commit()
                    .await
                    .map(|()| value)
                    .map_err(Into::into),
                Err(failure) => {
                    // One that is broken is not put back.
                    work.transaction.rollback().await?;
                    Err(failure)
                }
            }
        };
        if !connection.client.is_closed() {
            self.idle().push(connection);
        }
        result
    }

    /// A connection that answers: an idle one if the database did not close it meanwhile.
    async fn connection(&self) -> Result<Connection, Failure> {
        loop {
            let idle = self.idle().pop();
            match idle {
                Some(connection) if connection.client.check_connection().await.is_ok() => {
                    return Ok(connection);
                }
                Some(_) => {}
                None => break,
            }
        }
        let client = timeout(CONNECT, tls::connect(&self.config, self.tls.as_ref())).await;
        let client = client.map_err(|_| self.error(format!("no answer within {CONNECT:?}")))??;
        Ok(Connection {
            client,
            statements: HashMap::new(),
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction under way.
pub(super) struct Work<'a> {
    transaction: Transaction<'a>,
    statements: &'a mut HashMap<&'static str, Statement>,
}

impl Work<'_> {
    /// Runs a statement, and returns the number of rows that it changed.
    pub(super) async fn execute(
        &mut self,
        sql: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Failure> {
        let statement = self.prepared(sql).await?;
        Ok(self.transaction.execute(&statement, values).await?)
    }

    /// Runs a statement, and returns its rows.
    pub(super) async fn query(
        &mut self,
        sql: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let statement = self.prepared(sql).await?;
        Ok(self.transaction.query(&statement, values).await?)
    }

    /// Runs a statement, and returns its row if there is one.
    pub(super) async fn row(
        &mut self,
        sql: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Failure> {
        let statement = self.prepared(sql).await?;
        Ok(self.transaction.query_opt(&statement, values).await?)
    }

    /// Runs several statements.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        Ok(self.transaction.batch_execute(sql).await?)
    }

    async fn prepared(&mut self, sql: &'static str) -> Result<Statement, Failure> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.transaction.prepare(sql).await?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }
}

/// What the database says, without the values of a row that its details may hold.
fn explain(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => error.message().to_owned(),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}
