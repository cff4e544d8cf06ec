//! A model, a shared store, and servers that use it, for a test.
#![allow(
    dead_code,
    reason = "every test file compiles this module and uses a part of it"
)]

use super::common::{Model, server_command};
use super::postgres::Postgres;
use pi_runtime::command::child::ServerProcess;
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::identity::Identity;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Servers of one site.
pub(crate) const SERVERS: usize = 2;

pub(crate) struct Site {
    pub(crate) model: Model,
    pub(crate) fingerprint: Fingerprint,
    postgres: Arc<Postgres>,
    database: String,
    /// A folder, or where `PI_TEST_S3` says.
    objects: String,
    states: tempfile::TempDir,
}

impl Site {
    /// `None`, with a message, if there is no PostgreSQL here.
    pub(crate) fn new() -> Option<Site> {
        let postgres = Postgres::common()?;
        let states = tempfile::tempdir().unwrap();
        let at = |name: &str| states.path().join(name);
        // All servers of a service show one identity.
        let state = |server: usize| at(&format!("server{server}"));
        (0..SERVERS).for_each(|server| std::fs::create_dir(state(server)).unwrap());
        let identity = Identity::load_or_create(&state(0), &["localhost"]).unwrap();
        for server in 1..SERVERS {
            let file = "identity.pem";
            std::fs::copy(state(0).join(file), state(server).join(file)).unwrap();
        }
        let database = postgres.database();
        let folder = || at("objects").display().to_string();
        let objects = std::env::var("PI_TEST_S3").unwrap_or_else(|_| folder());
        std::fs::write(at("database"), format!("{database}\n")).unwrap();
        std::fs::write(at("key"), "5a".repeat(32)).unwrap();
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(at("key"), private).unwrap();
        Some(Site {
            model: Model::random(1),
            fingerprint: identity.fingerprint(),
            postgres,
            database,
            objects,
            states,
        })
    }

    /// Starts a server, which ends at a failpoint.
    pub(crate) fn server(&self, server: usize, listen: &str, fault: &str) -> ServerProcess {
        let state = self.states.path().join(format!("server{server}"));
        let mut command = server_command(self.model.path(), &state);
        command.listen = listen;
        let at = |name: &str| self.states.path().join(name);
        command
            .program
            .args(["--timeout", "10", "--max-clients", "80", "--unbound"]);
        command
            .program
            .arg("--store-database-file")
            .arg(at("database"));
        command.program.arg("--store-objects").arg(&self.objects);
        command.program.arg("--store-key").arg(at("key"));
        command.program.env("PI_FAULT", fault);
        let log = format!("log{server}");
        command.log = Some(at(&log));
        ServerProcess::start(command).unwrap()
    }

    /// State directory of a client.
    pub(crate) fn client(&self, number: usize) -> PathBuf {
        self.states.path().join(format!("client{number}"))
    }

    /// Files of the contents of bundles, if they are in a folder.
    pub(crate) fn objects(&self) -> usize {
        let files = std::fs::read_dir(self.states.path().join("objects/bundles"));
        files.into_iter().flatten().count()
    }

    /// Rows of the database, with `|` between their values.
    pub(crate) fn query(&self, sql: &str) -> Vec<String> {
        let text = self.postgres.query(&self.database, sql).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Ensures by the journal that no bundle ended twice, and that each answer was counted once.
    pub(crate) fn assert_nothing_spent_twice(&self) {
        let ends = self.query(
            "SELECT count(*), count(DISTINCT (client, bundle)) FROM journal WHERE what <> 'keep'",
        );
        let (all, distinct) = ends[0].split_once('|').unwrap();
        assert_eq!(all, distinct);
        let spent = self.query("SELECT count(*) FROM bundles WHERE state = 'spent'");
        assert_eq!(spent, [all]);
        let answers = self.query("SELECT coalesce(sum(answers), 0) FROM accounts");
        assert_eq!(
            answers,
            self.query("SELECT count(*) FROM journal WHERE what = 'spend'")
        );
    }
}
