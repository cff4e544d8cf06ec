//! A PostgreSQL of Debian's packages in a temporary directory, for a test.
#![allow(
    dead_code,
    reason = "every test file compiles this module and uses a part of it"
)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// A database server; it ends with the value.
pub(crate) struct Postgres {
    directory: tempfile::TempDir,
    /// Directory of its programs.
    programs: PathBuf,
    /// The user as which it runs, if this test may not be the one.
    user: Option<(u32, u32)>,
    /// The port at which it listens with TLS.
    port: Option<u16>,
    child: Mutex<Option<Child>>,
    databases: AtomicU32,
}

impl Postgres {
    /// The server that the tests of this process have in common; the last one ends it. `None`, with
    /// a message, if there is no PostgreSQL here.
    pub(crate) fn common() -> Option<Arc<Postgres>> {
        static COMMON: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut common = COMMON.lock().unwrap();
        if let Some(server) = common.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Postgres::start()?);
        *common = Arc::downgrade(&server);
        Some(server)
    }

    /// A server for one test.
    pub(crate) fn start() -> Option<Postgres> {
        let server = Postgres::init()?;
        server.run();
        Some(server)
    }

    /// A server that also listens at a port of `localhost` with this certificate and key.
    pub(crate) fn with_tls(certificate: &str, key: &str) -> Option<(Postgres, u16)> {
        let mut server = Postgres::init()?;
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = server.data().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            if let Some((uid, gid)) = server.user {
                chown(&path, Some(uid), Some(gid)).unwrap();
            }
        }
        server.port = Some(port);
        server.run();
        Some((server, port))
    }

    /// A server that does not run yet.
    fn init() -> Option<Postgres> {
        let Some(programs) = programs() else {
            // Not by a macro, whose text is shown only when a test fails.
            let text = b"skipped: there is no PostgreSQL here (Debian: postgresql)\n";
            std::io::Write::write_all(&mut std::io::stderr(), text).unwrap();
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        let user = root.then(|| account("postgres").expect("the packages make this account"));
        if let Some((uid, gid)) = user {
            chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let server = Postgres {
            directory,
            programs,
            user,
            port: None,
            child: Mutex::default(),
            databases: AtomicU32::new(0),
        };
        let mut made = server.command("initdb");
        made.args([
            "-U",
            "pi",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
            "-D",
        ]);
        let made = made.arg(server.data()).output().unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Some(server)
    }

    /// Starts the server, and waits until it answers.
    pub(crate) fn run(&self) {
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.directory.path());
        command.args(["-c", "max_connections=200"]);
        match self.port {
            Some(port) => command
                .args(["-c", "ssl=on", "-c", "listen_addresses=127.0.0.1", "-p"])
                .arg(port.to_string()),
            None => command.args(["-c", "listen_addresses="]),
        };
        *self.child.lock().unwrap() = Some(command.spawn().unwrap());
        for _ in 0..600 {
            let ready = self
                .command("pg_isready")
                .arg("-h")
                .arg(self.directory.path())
                .status();
            if ready.unwrap().success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the database does not start");
    }

    /// Stops the server as a crash would, without a shutdown.
    pub(crate) fn crash(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let quit = Command::new("kill")
                .args(["-QUIT", &child.id().to_string()])
                .status();
            assert!(quit.unwrap().success());
            child.wait().unwrap();
        }
    }

    /// Makes a database, and returns what connects to it.
    pub(crate) fn database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::SeqCst);
        self.query("postgres", &format!("CREATE DATABASE test{number}"))
            .unwrap();
        format!(
            "host={} user=pi dbname=test{number}",
            self.directory.path().display()
        )
    }

    /// Runs a statement in a database named by what [`Self::database`] returned, or by its name;
    /// its values are separated by `|`, rows by line ends.
    pub(crate) fn query(&self, database: &str, sql: &str) -> Result<String, String> {
        let name = database.rsplit("dbname=").next().unwrap();
        let mut psql = self.command("psql");
        psql.arg("-h").arg(self.directory.path());
        psql.args([
            "-U",
            "pi",
            "-d",
            name,
            "-v",
            "ON_ERROR_STOP=1",
            "-Atqc",
            sql,
        ]);
        let output = psql.stderr(Stdio::piped()).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.directory.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(port) = self.port {
            command.env("PGPORT", port.to_string());
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
    }
}

/// One of Debian's directories of PostgreSQL's programs, or one in `PATH`.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let debian = versions.map(|version| version.unwrap().path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(debian);
    let complete = |place: &PathBuf| {
        let needed = ["initdb", "postgres", "psql", "pg_isready"];
        needed.iter().all(|name| place.join(name).exists())
    };
    places.into_iter().rev().find(complete)
}

/// User and group of an account.
fn account(name: &str) -> Option<(u32, u32)> {
    let accounts = std::fs::read_to_string(Path::new("/etc/passwd")).ok()?;
    let line = accounts
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().ok()?, fields[3].parse().ok()?))
}
