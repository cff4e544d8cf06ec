//! Processes that a program starts to play a party: they obey lines on standard input and answer on
//! standard output.

use crate::fingerprint::Fingerprint;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// First argument of a program that executes itself again as a server; it then calls
/// [`serve_child`](super::server::serve_child).
pub const AS_SERVER: &str = "--as-server";

/// A process that obeys lines; it is killed when this value is dropped.
pub struct ChildProcess {
    /// The process, for whoever needs to signal it.
    pub child: Child,
    name: &'static str,
    requests: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    log: Option<PathBuf>,
    patience: Duration,
}

impl ChildProcess {
    /// Starts a command under a name for messages.
    ///
    /// Standard error goes to the file `log`, or stays that of this process. `patience` is the
    /// longest wait for one line.
    ///
    /// # Errors
    /// If the log cannot be written or the command not be started.
    pub fn start(
        name: &'static str,
        mut command: Command,
        log: Option<PathBuf>,
        patience: Duration,
    ) -> Result<ChildProcess> {
        if let Some(log) = &log {
            let errors = File::create(log).with_context(|| format!("cannot log the {name}"))?;
            command.stderr(errors);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let requests = child.stdin.take();
        let output = child.stdout.take().context("the child has no output")?;
        // A thread reads, so that waiting for a line can end.
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(ChildProcess {
            child,
            name,
            requests,
            lines,
            log,
            patience,
        })
    }

    /// The rest of the next line that starts with this text; other lines are skipped.
    ///
    /// # Errors
    /// If the process ends, or writes no such line for too long; its log is in the error.
    pub fn line(&mut self, start: &str) -> Result<String> {
        loop {
            match self.lines.recv_timeout(self.patience) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(start) {
                        return Ok(rest.to_owned());
                    }
                }
                Err(_) => {
                    let log = self.log.as_ref().map(std::fs::read_to_string);
                    let log = log.and_then(Result::ok).unwrap_or_default();
                    bail!(
                        "the {} process ended or hangs; its log:\n{}",
                        self.name,
                        log.trim_end()
                    );
                }
            }
        }
    }

    /// Sends a request and returns the rest of the line that starts with this text.
    ///
    /// # Errors
    /// As [`ChildProcess::line`].
    pub fn request(&mut self, request: &str, start: &str) -> Result<String> {
        let requests = self.requests.as_mut();
        let requests = requests.context("a process that was stopped")?;
        // A process that is gone says why in its log, which `line` shows.
        let _ = writeln!(requests, "{request}");
        self.line(start)
    }

    /// Closes the standard input of the process, its sign to end, and waits for it.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn stop(mut self) -> Result<()> {
        self.requests = None;
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "the {} process ended with {status}",
            self.name
        );
        Ok(())
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // After `stop` there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server to be started as a process.
pub struct ServerCommand<'a> {
    /// The program, with whatever goes before the arguments of `pi-server`.
    pub program: Command,
    /// Directory of the model.
    pub model: &'a Path,
    /// Address to listen at.
    pub listen: &'a str,
    /// Directory of identity and store.
    pub state: &'a Path,
    /// File for the log; without one, the server logs to the standard error of this process.
    pub log: Option<PathBuf>,
    /// Longest wait for one line: loading a large model takes seconds.
    pub patience: Duration,
}

/// A server in a separate process, killed when this value is dropped.
pub struct ServerProcess {
    /// The process.
    pub process: ChildProcess,
    /// The address at which the server listens.
    pub address: String,
    /// The server's fingerprint.
    pub fingerprint: Fingerprint,
}

impl ServerProcess {
    /// Starts a server and waits until it listens.
    ///
    /// # Errors
    /// If it does not come up; its log is in the error.
    pub fn start(command: ServerCommand<'_>) -> Result<ServerProcess> {
        let mut program = command.program;
        program
            .arg("--model")
            .arg(command.model)
            .args(["--listen", command.listen, "--state"])
            .arg(command.state);
        let (log, patience) = (command.log, command.patience);
        let mut process = ChildProcess::start("server", program, log, patience)?;
        Ok(ServerProcess {
            fingerprint: process.line("fingerprint ")?.parse()?,
            address: process.line("listening on ")?,
            process,
        })
    }

    /// User CPU seconds of the server until now, if it was started by [`AS_SERVER`].
    ///
    /// # Errors
    /// If the process is gone.
    pub fn user_seconds(&mut self) -> Result<f64> {
        Ok(self.process.request("usage", "usage ")?.parse()?)
    }

    /// Ends the server in good order, if it was started by [`AS_SERVER`].
    ///
    /// # Errors
    /// If it does not end well.
    pub fn stop(self) -> Result<()> {
        self.process.stop()
    }
}
