//! Two servers on one store: either answers every client, and when one is killed in the middle of
//! anything, nothing is used twice and the client carries on with the other.

mod common;
#[path = "store/postgres.rs"]
mod postgres;
#[path = "store/site.rs"]
mod site;

use common::{bundles, client, count, kill, prepare};
use pi_runtime::command::child::ServerProcess;
use pi_runtime::store::BundleState::{Ready, Spent};
use site::Site;

fn prepares(site: &Site, server: &ServerProcess, count: u32) -> bool {
    let mut command = prepare(&site.client(0), server, count);
    command.args(["--timeout", "10"]);
    command.output().unwrap().status.success()
}

fn infers(site: &Site, server: &ServerProcess) -> bool {
    let mut command = client(&site.client(0));
    command.args(["--timeout", "10", "infer", "--server", &server.address]);
    let output = command.arg(&site.model.file).output().unwrap();
    output.status.success()
}

/// Bundles ready and spent at the client and in the store.
///
/// # Panics
/// If the client holds one that the store does not, or one was spent twice.
fn census(site: &Site) -> [(usize, usize); 2] {
    site.assert_nothing_spent_twice();
    let at_client = bundles(&site.client(0));
    let ids = site.query("SELECT encode(id, 'hex') FROM bundles WHERE state = 'ready'");
    for (id, _) in at_client.iter().filter(|(_, state)| **state == Ready) {
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(ids.contains(&id), "the client's half is alone");
    }
    let spent = site.query("SELECT id FROM bundles WHERE state = 'spent'");
    let client = (count(&at_client, Ready), count(&at_client, Spent));
    [client, (ids.len(), spent.len())]
}

#[test]
fn what_one_server_prepared_another_spends() {
    let Some(site) = Site::new() else { return };
    let first = site.server(0, "127.0.0.1:0", "");
    let second = site.server(1, "127.0.0.1:0", "");
    assert_eq!(first.fingerprint, second.fingerprint);
    assert!(prepares(&site, &first, 3));
    assert!(infers(&site, &second));
    assert!(infers(&site, &first));
    kill(first);
    assert!(infers(&site, &second));
    assert!(!infers(&site, &second), "a bundle was there twice");
    assert_eq!(census(&site), [(0, 3), (0, 3)]);
    let servers = "SELECT count(DISTINCT server) FROM journal GROUP BY what ORDER BY what";
    assert_eq!(site.query(servers), ["1", "2"]);
    assert_eq!(site.objects(), 0);
    // The setup that the first made serves the second.
    assert!(prepares(&site, &second, 1));
    assert!(infers(&site, &second));
    assert_eq!(site.query("SELECT count(*) FROM setups"), ["1"]);
}

#[test]
fn a_server_that_is_killed_while_it_infers_loses_at_most_that_bundle() {
    for (fault, in_store) in [
        ("server-infer-before-spend", (2, 0)),
        ("server-infer-after-spend", (1, 1)),
    ] {
        let Some(site) = Site::new() else { return };
        let mut first = site.server(0, "127.0.0.1:0", fault);
        let second = site.server(1, "127.0.0.1:0", "");
        assert!(prepares(&site, &first, 2));
        assert!(!infers(&site, &first), "{fault}");
        first.process.child.wait().unwrap();
        assert_eq!(census(&site), [(1, 1), in_store], "{fault}");
        assert!(infers(&site, &second), "{fault}");
        assert!(
            !infers(&site, &second),
            "{fault}: no third bundle was there"
        );
        assert!(prepares(&site, &second, 1), "{fault}");
        // What only the client had spent is given up.
        assert_eq!(census(&site), [(1, 2), (1, 2)], "{fault}");
        let first = site.server(0, "127.0.0.1:0", "");
        assert!(infers(&site, &first), "{fault}");
    }
}

#[test]
fn a_server_that_is_killed_while_it_prepares_leaves_what_was_prepared() {
    for fault in [
        "server-prepare-before-store:2",
        "server-prepare-before-keep:2",
        "server-prepare-after-store:2",
        "bundle-write:5",
    ] {
        let Some(site) = Site::new() else { return };
        let mut first = site.server(0, "127.0.0.1:0", fault);
        let second = site.server(1, "127.0.0.1:0", "");
        assert!(!prepares(&site, &first, 3), "{fault}");
        first.process.child.wait().unwrap();
        let kept = census(&site)[0].0;
        assert!(kept <= 1, "{fault}");
        // The other server is told what the client holds, and goes on.
        assert!(prepares(&site, &second, 2), "{fault}");
        assert!(infers(&site, &second), "{fault}");
        let [at_client, in_store] = census(&site);
        assert_eq!(at_client, (kept + 1, 1), "{fault}");
        assert_eq!(in_store.0, kept + 1, "{fault}");
        // What was half written goes when its lease is over, whichever server sweeps.
        site.query("UPDATE writes SET lease = clock_timestamp() - interval '1 second'");
        kill(second);
        let _third = site.server(0, "127.0.0.1:0", "");
        assert_eq!(site.objects(), kept + 1, "{fault}");
        assert_eq!(site.query("SELECT count(*) FROM writes"), ["0"], "{fault}");
    }
}

/// A client that knows both servers is answered by the other when one is lost, in the middle of a
/// run over many files and without being asked to wait.
#[test]
fn a_client_carries_on_with_the_other_server() {
    let Some(site) = Site::new() else { return };
    // The second inference of this one ends it.
    let mut first = site.server(0, "127.0.0.1:0", "server-infer-after-spend:2");
    let second = site.server(1, "127.0.0.1:0", "");
    let both = format!("{},{}", first.address, second.address);
    let mut prepare = client(&site.client(0));
    let fingerprint = first.fingerprint.to_string();
    prepare.args([
        "prepare",
        "-n",
        "6",
        "--server",
        &both,
        "--fingerprint",
        &fingerprint,
    ]);
    prepare.assert().success();
    let files: Vec<_> = (0..4)
        .map(|number| {
            let name = format!(
                "{number}.{}",
                site.model.file.extension().unwrap().display()
            );
            let file = site.client(0).with_file_name(name);
            std::fs::copy(&site.model.file, &file).unwrap();
            file
        })
        .collect();
    // The addresses are remembered, and the first that answers is taken.
    let mut infer = client(&site.client(0));
    infer
        .args(["--timeout", "10", "infer", "--json"])
        .args(&files);
    let output = infer.assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(
        text.lines().all(|line| line.contains("class_index")),
        "{text}"
    );
    first.process.child.wait().unwrap();
    assert_eq!(
        census(&site),
        [(1, 5), (1, 5)],
        "one bundle was lost with the first server"
    );
    let mut again = client(&site.client(0));
    again.arg("infer").arg(&files[0]).assert().success();
    kill(second);
    let mut alone = client(&site.client(0));
    alone
        .args(["--connect-timeout", "2", "infer"])
        .arg(&files[0])
        .assert()
        .failure();
}
