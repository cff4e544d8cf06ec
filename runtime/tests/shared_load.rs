//! Many clients and two servers on one store, of which one after the other is killed and comes
//! back: no answer is wrong, and the journal proves that no bundle was spent twice.
//!
//! The long form takes two minutes and a machine for itself:
//! `PI_LOAD_FIGURES=FILE cargo test -p pi-runtime --release --test shared_load -- --ignored`

mod common;
#[path = "store/postgres.rs"]
mod postgres;
#[path = "store/site.rs"]
mod site;

use common::{BATCH, kill};
use pi_ir::interpret::label;
use pi_protocol::session::Answer;
use pi_runtime::client::{Client, Patience, TrustOptions};
use pi_runtime::command::child::ServerProcess;
use pi_runtime::error::Error;
use pi_runtime::fingerprint::hex;
use pi_runtime::store::BundleState;
use site::{SERVERS, Site};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Time after which a client tries the other server.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of it all.
#[derive(Default)]
struct Tally {
    /// Client and bundle of each answer, with its time.
    answers: Mutex<Vec<(String, Duration)>>,
    wrong: AtomicUsize,
    /// Operations that ended with an error.
    failed: AtomicUsize,
    /// The longest time in which one client got no answer.
    pause: Mutex<Duration>,
    over: AtomicBool,
}

/// One client, which goes from server to server.
struct Visitor {
    site: Arc<Site>,
    client: Client,
    addresses: Vec<String>,
    tally: Arc<Tally>,
    last: Instant,
}

impl Visitor {
    /// Two answers from a server, for which bundles are prepared if there are none.
    async fn visit(&mut self, server: usize) -> Result<(), Error> {
        let trust = TrustOptions {
            fingerprint: Some(self.site.fingerprint),
            ..TrustOptions::default()
        };
        let mut connection = self.client.connect(&self.addresses[server], &trust).await?;
        let (model, _) = connection.model().await?;
        for _ in 0..2 {
            if connection.usable().await? == 0 {
                let (setup, _) = connection.setup().await?;
                connection.prepare(&model, &setup, BATCH, |_| {}).await?;
            }
            let (id, _) = connection.next_bundle().await?;
            let input = self.site.model.input();
            let started = Instant::now();
            let prediction = connection.infer(&model, &id, &input, true).await?;
            let took = started.elapsed();
            let trace = prediction.trace.expect("it was asked for");
            let exact = self.site.model.interpreter().exact(&input, &trace).unwrap();
            let right = match prediction.answer {
                Answer::Label(found) => found == label(&exact.logits),
                Answer::Logits(found) => found == exact.logits,
                Answer::OutOfRange => false,
            };
            let tally = &self.tally;
            tally.wrong.fetch_add(usize::from(!right), Ordering::SeqCst);
            let name = format!("{}|{}", self.client.fingerprint(), hex(&id.0));
            tally.answers.lock().unwrap().push((name, took));
            let mut pause = tally.pause.lock().unwrap();
            *pause = pause.max(self.last.elapsed());
            self.last = Instant::now();
        }
        connection.close().await;
        Ok(())
    }

    /// Visits the servers in turn, until it is over and both have answered once more.
    async fn run(mut self, mut server: usize) -> Visitor {
        let mut after = HashSet::new();
        while after.len() < SERVERS {
            let over = self.tally.over.load(Ordering::SeqCst);
            match self.visit(server).await {
                Ok(()) if over => drop(after.insert(server)),
                Ok(()) => {}
                Err(error) => {
                    self.tally.failed.fetch_add(1, Ordering::SeqCst);
                    assert!(may_happen(&error), "{error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            server = (server + 1) % SERVERS;
        }
        self
    }
}

/// Whether an error is what a server that is killed leaves behind.
fn may_happen(error: &Error) -> bool {
    error.is_temporary() || matches!(error, Error::Refused { .. } | Error::NotHeld(_))
}

/// Kills one server after the other, each after a while, and starts it again.
fn kill_in_turn(
    site: &Site,
    mut servers: Vec<ServerProcess>,
    (end, every): (Instant, Duration),
) -> (Vec<ServerProcess>, usize) {
    let mut kills = 0;
    while Instant::now() + every < end {
        std::thread::sleep(every);
        let number = kills % SERVERS;
        let address = servers[number].address.clone();
        let server = servers.remove(number);
        kill(server);
        servers.insert(number, site.server(number, &address, ""));
        kills += 1;
    }
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
    (servers, kills)
}

fn load(clients: usize, time: Duration, every: Duration) {
    let Some(site) = Site::new() else { return };
    let site = Arc::new(site);
    let start = |server| site.server(server, "127.0.0.1:0", "");
    let servers: Vec<ServerProcess> = (0..SERVERS).map(start).collect();
    let addresses: Vec<String> = servers
        .iter()
        .map(|server| server.address.clone())
        .collect();
    let tally = Arc::new(Tally::default());
    let patience = Patience {
        connect: PATIENCE,
        silence: PATIENCE,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let runtime = runtime.handle();
    let started = Instant::now();
    let (visitors, servers, kills) = std::thread::scope(|scope| {
        let visit = |number| {
            let visitor = Visitor {
                client: Client::open(&site.client(number), patience)
                    .unwrap()
                    .unbound(),
                site: site.clone(),
                addresses: addresses.clone(),
                tally: tally.clone(),
                last: Instant::now(),
            };
            scope.spawn(move || runtime.block_on(visitor.run(number % SERVERS)))
        };
        let visitors: Vec<_> = (0..clients).map(visit).collect();
        let (servers, kills) = kill_in_turn(&site, servers, (started + time, every));
        tally.over.store(true, Ordering::SeqCst);
        let visitors = visitors.into_iter().map(|visitor| visitor.join().unwrap());
        (visitors.collect::<Vec<_>>(), servers, kills)
    });
    let seconds = started.elapsed().as_secs_f64();
    servers.into_iter().for_each(kill);

    check_bundles(&site, &visitors);
    let answers = std::mem::take(&mut *tally.answers.lock().unwrap());
    check_answers(&site, &answers);
    assert_eq!(tally.wrong.load(Ordering::SeqCst), 0);
    let mut times: Vec<Duration> = answers.iter().map(|(_, time)| *time).collect();
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    let journal = |what: &str| {
        let count = format!("SELECT count(*) FROM journal WHERE what = '{what}'");
        site.query(&count)[0].parse::<u64>().unwrap()
    };
    let figures = serde_json::json!({
        "servers": SERVERS,
        "clients": clients,
        "seconds": seconds.round(),
        "kills": kills,
        "answers": answers.len(),
        "wrong_answers": 0,
        "failed_operations": tally.failed.load(Ordering::SeqCst),
        "bundles_kept": journal("keep"),
        "bundles_spent": journal("spend"),
        "bundles_discarded": journal("discard"),
        "bundles_spent_twice": 0,
        "inference_median_ms": at(50).round(),
        "inference_99_percent_ms": at(99).round(),
        "longest_pause_of_a_client_s": tally.pause.lock().unwrap().as_secs_f64().round(),
    });
    println!("{figures:#}");
    if let Some(path) = std::env::var_os("PI_LOAD_FIGURES") {
        std::fs::write(path, format!("{figures:#}\n")).unwrap();
    }
}

/// Every half that a client holds has its other half in the store.
fn check_bundles(site: &Site, visitors: &[Visitor]) {
    let ready =
        "SELECT encode(client, 'hex'), encode(id, 'hex') FROM bundles WHERE state = 'ready'";
    let ready: HashSet<String> = site.query(ready).into_iter().collect();
    for visitor in visitors {
        let client = &visitor.client;
        let held = client.bundles(site.fingerprint).unwrap();
        for bundle in held.iter().filter(|b| b.state == BundleState::Ready) {
            let name = format!("{}|{}", client.fingerprint(), hex(&bundle.id.0));
            assert!(ready.contains(&name), "the half of a client is alone");
        }
    }
}

/// Every answer came of a bundle of its own, which the journal says is spent.
fn check_answers(site: &Site, answers: &[(String, Duration)]) {
    site.assert_nothing_spent_twice();
    let spent =
        "SELECT encode(client, 'hex'), encode(bundle, 'hex') FROM journal WHERE what = 'spend'";
    let spent: HashSet<String> = site.query(spent).into_iter().collect();
    let used: HashSet<&String> = answers.iter().map(|(name, _)| name).collect();
    assert_eq!(used.len(), answers.len(), "a bundle gave two answers");
    assert!(used.iter().all(|name| spent.contains(*name)));
    assert!(!answers.is_empty());
}

#[test]
fn servers_that_are_killed_in_turn_answer_right_and_spend_nothing_twice() {
    load(4, Duration::from_secs(10), Duration::from_secs(3));
}

#[test]
#[ignore = "two minutes on a machine of its own: see the head of this file"]
fn two_minutes_of_64_clients_while_servers_are_killed() {
    load(64, Duration::from_secs(120), Duration::from_secs(10));
}
