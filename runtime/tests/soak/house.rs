//! The server process, and what is done to it: it is killed, its disk fills up, its store goes away
//! and comes back, its clock is set wrong.

use crate::common::{Model, server_command};
use pi_runtime::command::child::ServerProcess;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// A server and the directory that it lives in.
pub struct House {
    pub server: ServerProcess,
    state: PathBuf,
    clock: PathBuf,
    /// What the server logged as warning or error.
    pub log: Arc<Mutex<Vec<String>>>,
}

/// Bytes of a file that a process whose disk is full can still write.
const FULL: &str = "4096";

impl House {
    pub fn open(model: &Model, directory: &Path) -> House {
        let (state, clock) = (directory.join("server"), directory.join("clock"));
        std::fs::write(&clock, "0").unwrap();
        let log = Arc::default();
        let server = start(model, &state, &clock, "127.0.0.1:0", &log);
        House {
            server,
            state,
            clock,
            log,
        }
    }

    pub fn process(&self) -> u32 {
        self.server.process.child.id()
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Kills the server in the middle of whatever it does, and starts it again.
    pub fn restart(&mut self, model: &Model) {
        self.kill();
        let address = self.server.address.clone();
        self.server = start(model, &self.state, &self.clock, &address, &self.log);
    }

    pub fn kill(&mut self) {
        self.server.process.child.kill().unwrap();
        self.server.process.child.wait().unwrap();
    }

    /// Fills the server's disk, or makes room again: beyond a few kilobytes of a file, writes fail
    /// with `EFBIG`, as they do with `ENOSPC` or `EDQUOT` where the disk or a quota is full. False
    /// where that cannot be done.
    pub fn fill_disk(&self, full: bool) -> bool {
        let limit = if full { FULL } else { "unlimited" };
        let done = Command::new("prlimit")
            .args(["--pid", &self.process().to_string()])
            .arg(format!("--fsize={limit}:unlimited"))
            .status();
        done.is_ok_and(|status| status.success())
    }

    /// Takes the store away from under the server, as an unmounted disk is, or brings it back.
    pub fn take_store(&self, away: bool) {
        let aside = self.state.with_extension("away");
        match away {
            true => std::fs::rename(&self.state, aside).unwrap(),
            false => std::fs::rename(aside, &self.state).unwrap(),
        }
    }

    /// Sets the server's clock wrong by so many seconds, for what it keeps and counts by the day.
    /// TLS reads the system's clock, but clients that pin a certificate do not ask for its dates.
    pub fn set_clock(&self, seconds: i64) {
        std::fs::write(&self.clock, seconds.to_string()).unwrap();
    }
}

fn start(
    model: &Model,
    state: &Path,
    clock: &Path,
    listen: &str,
    log: &Arc<Mutex<Vec<String>>>,
) -> ServerProcess {
    let mut command = server_command(model.path(), state);
    // A process that writes beyond a limit gets a signal, and the error only if it ignores that.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(command.program.get_program())
        .args(["--timeout", "10", "--unbound", "--max-answers", "none"])
        .env("PI_CLOCK", clock)
        // As the unit and the image have it: with an arena for each of many threads, the C library
        // keeps what each of them once needed, and grows for hours.
        .env("MALLOC_ARENA_MAX", "2")
        .stderr(Stdio::piped());
    command.program = shell;
    command.listen = listen;
    let mut server = ServerProcess::start(command).unwrap();
    let lines = server.process.child.stderr.take().expect("a pipe");
    let log = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(lines).lines().map_while(Result::ok) {
            if !line.contains("INFO") {
                log.lock().unwrap().push(line);
            }
        }
    });
    server
}
