//! Whenever a process dies, no bundle is used twice and only the operation under way is lost.
//!
//! Failpoints end a process at the moments that matter, between the steps that make a bundle
//! durable or spent; kills after random times cover the rest.

mod common;

use common::{Model, bundles, client, count, kill, prepare, server_command};
use pi_runtime::command::child::ServerProcess;
use pi_runtime::store::BundleState::{Ready, Spent};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// States of one client and one server that outlive their processes.
struct Site {
    model: Model,
    states: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        Site {
            model: Model::random(1),
            states: tempfile::tempdir().unwrap(),
        }
    }

    fn server_state(&self) -> PathBuf {
        self.states.path().join("server")
    }

    fn client_state(&self) -> PathBuf {
        self.states.path().join("client")
    }

    fn server(&self, listen: &str, fault: &str) -> ServerProcess {
        let state = self.server_state();
        let mut command = server_command(self.model.path(), &state);
        command.listen = listen;
        command.program.args(["--timeout", "5"]);
        command.program.env("PI_FAULT", fault);
        ServerProcess::start(command).unwrap()
    }

    /// Runs an inference with the one server known.
    fn infer(&self, fault: &str) -> bool {
        let mut command = client(&self.client_state());
        command
            .env("PI_FAULT", fault)
            .args(["--timeout", "5", "infer"])
            .arg(&self.model.file);
        command.output().unwrap().status.success()
    }

    /// Runs the offline phase.
    fn prepare(&self, server: &ServerProcess, count: u32, fault: &str) -> bool {
        let mut command = prepare(&self.client_state(), server, count);
        command.env("PI_FAULT", fault).args(["--timeout", "5"]);
        command.output().unwrap().status.success()
    }

    /// Bundles ready and spent at the client and at the server, both stopped.
    ///
    /// # Panics
    /// If the client holds one that the server does not: it would be lost, or used twice.
    fn census(&self) -> [(usize, usize); 2] {
        let (at_client, at_server) = (bundles(&self.client_state()), bundles(&self.server_state()));
        for (id, state) in &at_client {
            if *state == Ready {
                assert_eq!(
                    at_server.get(id),
                    Some(&Ready),
                    "the client's half is alone"
                );
            }
        }
        let counts = |b| (count(b, Ready), count(b, Spent));
        assert_no_leftovers(&self.client_state(), counts(&at_client).0);
        assert_no_leftovers(&self.server_state(), counts(&at_server).0);
        [counts(&at_client), counts(&at_server)]
    }
}

/// After opening, only bundles that can be taken have contents on disk.
fn assert_no_leftovers(state: &Path, ready: usize) {
    assert_eq!(
        std::fs::read_dir(state.join("bundles")).unwrap().count(),
        ready
    );
}

#[test]
fn a_client_that_dies_while_it_prepares_keeps_what_was_prepared() {
    for (fault, kept) in [
        ("client-prepare-before-stored:2", 1),
        ("client-prepare-before-store:2", 1),
        ("client-prepare-after-store:2", 2),
    ] {
        let site = Site::new();
        let server = site.server("127.0.0.1:0", "");
        assert!(!site.prepare(&server, 3, fault), "{fault}");
        // The next offline phase tells the server what the client holds; orphans go.
        assert!(site.prepare(&server, 1, ""), "{fault}");
        kill(server);
        let [at_client, at_server] = site.census();
        assert_eq!(at_client.0, kept + 1, "{fault}");
        assert_eq!(at_server.0, kept + 1, "{fault}");
    }
}

#[test]
fn a_server_that_dies_while_it_prepares_keeps_what_was_prepared() {
    for fault in [
        "server-prepare-before-store:2",
        "server-prepare-after-store:2",
    ] {
        let site = Site::new();
        let mut server = site.server("127.0.0.1:0", fault);
        let address = server.address.clone();
        assert!(!site.prepare(&server, 3, ""), "{fault}");
        server.process.child.wait().unwrap();
        assert_eq!(site.census()[0], (1, 0), "{fault}");
        let server = site.server(&address, "");
        assert!(site.infer(""), "{fault}");
        assert!(site.prepare(&server, 1, ""), "{fault}");
        kill(server);
        let [at_client, at_server] = site.census();
        assert_eq!(at_client, (1, 1), "{fault}");
        assert_eq!(at_server.0, 1, "{fault}");
    }
}

#[test]
fn a_client_that_dies_while_it_infers_spends_at_most_that_bundle() {
    for (fault, spent) in [
        ("client-infer-before-spend", 0),
        ("client-infer-after-spend", 1),
    ] {
        let site = Site::new();
        let server = site.server("127.0.0.1:0", "");
        assert!(site.prepare(&server, 2, ""));
        assert!(!site.infer(fault), "{fault}");
        assert!(site.infer(""), "{fault}");
        kill(server);
        let [at_client, at_server] = site.census();
        assert_eq!(at_client, (1 - spent, 1 + spent), "{fault}");
        // The bundle that only the client spent is an orphan at the server.
        assert_eq!(at_server, (1, 1), "{fault}");
    }
}

#[test]
fn a_server_that_dies_while_it_infers_spends_at_most_that_bundle() {
    for (fault, at_server) in [
        ("server-infer-before-spend", (2, 0)),
        ("server-infer-after-spend", (1, 1)),
    ] {
        let site = Site::new();
        let mut server = site.server("127.0.0.1:0", fault);
        let address = server.address.clone();
        assert!(site.prepare(&server, 2, ""));
        assert!(!site.infer(""), "{fault}");
        server.process.child.wait().unwrap();
        assert_eq!(site.census(), [(1, 1), at_server], "{fault}");
        let server = site.server(&address, "");
        assert!(site.infer(""), "{fault}");
        assert!(!site.infer(""), "{fault}: no third bundle was there");
        kill(server);
    }
}

#[test]
fn kills_at_random_times_lose_nothing_else() {
    let site = Site::new();
    let mut server = site.server("127.0.0.1:0", "");
    let address = server.address.clone();
    assert!(site.prepare(&server, 12, ""));
    let (mut answers, mut attempts) = (0, 0);
    // Milliseconds; from before the connection stands to after the answer.
    for (round, delay) in [3, 9, 17, 26, 36, 50, 70, 100].into_iter().enumerate() {
        let mut running = std::process::Command::new(env!("CARGO_BIN_EXE_pi-client"))
            .arg("--state")
            .arg(site.client_state())
            .args(["--timeout", "3", "infer"])
            .arg(&site.model.file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        match round % 2 {
            0 => running.kill().unwrap(),
            _ => server.process.child.kill().unwrap(),
        }
        attempts += 1;
        answers += usize::from(running.wait().unwrap().success());
        kill(server);
        let [at_client, at_server] = site.census();
        assert_eq!(
            at_client.0 + at_client.1,
            12,
            "a bundle is lost without a trace"
        );
        assert!(
            at_client.1 <= attempts,
            "more bundles spent than attempts made"
        );
        assert!(at_client.1 >= answers, "an answer without a bundle");
        assert!(
            at_server.1 <= at_client.1,
            "the server spent more than the client"
        );
        server = site.server(&address, "");
    }
    // What is left works.
    let left = {
        kill(server);
        let left = site.census()[0].0;
        server = site.server(&address, "");
        left
    };
    assert!(left >= 4);
    for _ in 0..left {
        assert!(site.infer(""));
    }
    assert!(!site.infer(""), "a bundle was there twice");
    kill(server);
}

#[test]
fn kills_at_random_times_of_the_offline_phase_leave_no_half_alone() {
    let site = Site::new();
    let mut server = site.server("127.0.0.1:0", "");
    let address = server.address.clone();
    assert!(site.prepare(&server, 1, ""));
    let mut before = 1;
    for (round, delay) in [20, 45, 80, 120, 170, 230].into_iter().enumerate() {
        let mut running = std::process::Command::new(env!("CARGO_BIN_EXE_pi-client"))
            .arg("--state")
            .arg(site.client_state())
            .args(["--timeout", "3", "prepare", "-n", "20"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        match round % 2 {
            0 => running.kill().unwrap(),
            _ => server.process.child.kill().unwrap(),
        }
        running.wait().unwrap();
        kill(server);
        let [at_client, _] = site.census();
        assert!(at_client.0 >= before, "a bundle is lost");
        before = at_client.0;
        server = site.server(&address, "");
    }
    assert!(site.prepare(&server, 1, ""));
    assert!(site.infer(""));
    kill(server);
    let [at_client, at_server] = site.census();
    assert_eq!(at_client, (before, 1));
    // Orphans of the broken exchanges are spent without use.
    assert_eq!(at_server.0, before);
}
