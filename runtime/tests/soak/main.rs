//! Hours of mixed traffic over a bad line, with a server that is killed, whose disk fills up, whose
//! store goes away and whose clock is wrong.
//!
//! A `pi-server` process and clients with a state each meet through a relay that loses, delays,
//! reorders and doubles datagrams. What is claimed: every answer is the exact interpreter's, no
//! bundle is answered twice, operations fail only as faults make them fail and never hang, answers
//! come again after each fault, the two stores agree at the end, and the server's memory does not
//! grow. The short form runs with the other tests. The long one is
//!
//! ```text
//! PI_SOAK_MINUTES=60 PI_SOAK_JSON=docs/results/soak.json \
//!     cargo test -p pi-runtime --test soak -- --ignored --nocapture
//! ```
//!
//! with `PI_SOAK_CLIENTS` (6), `PI_SOAK_PAUSE` (milliseconds between two operations of a client on
//! average, 1200) and `PI_SOAK_SEED` (1) beside it.
#![cfg(unix)]
#![allow(unreachable_pub, reason = "the modules of a test are its own")]

#[path = "../common/mod.rs"]
mod common;
mod house;
mod memory;
mod relay;
mod report;
mod tally;
mod traffic;

use common::Model;
use house::House;
use memory::Memory;
use pi_runtime::error::Error;
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::store::{BundleState, Store};
use relay::{Draw, Relay, STORM, USUAL};
use report::Report;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tally::{Tally, kind_of};
use traffic::{PATIENCE, Scene, Visitor, make_ready, pester, use_up};

/// A soak to be run.
struct Plan {
    seed: u64,
    length: Duration,
    clients: usize,
    pause: Duration,
    /// Pause between two faults.
    calm: Duration,
    /// The server is killed only before this, since memory is that of one process.
    kills_until: Duration,
    /// Memory counts from here on.
    warm: Duration,
}

#[test]
fn a_short_soak_gives_no_wrong_answer_and_uses_no_bundle_twice() {
    let report = run(&Plan {
        seed: 1,
        length: Duration::from_secs(28),
        clients: 3,
        pause: Duration::from_millis(150),
        calm: Duration::from_millis(1500),
        kills_until: Duration::from_secs(28),
        warm: Duration::from_secs(10),
    });
    print!("{report}");
    report.check();
}

#[test]
fn a_server_whose_disk_was_full_answers_again_without_a_restart() {
    let model = Model::random(1);
    let states = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let house = House::open(&model, states.path());
    let (tally, stop) = (Tally::new(1), AtomicBool::new(false));
    let scene = Scene {
        model: &model,
        server: house.server.fingerprint,
        address: house.server.address.parse().unwrap(),
        tally: &tally,
        stop: &stop,
        pause: Duration::ZERO,
        runtime: runtime.handle().clone(),
    };
    let mut visitor = Visitor::new(&scene, 0, &states.path().join("client"), 1);
    make_ready(&mut visitor, 3).unwrap();
    if !house.fill_disk(true) {
        eprintln!("SKIPPED: without prlimit no disk is full");
        return;
    }
    let error = use_up(&mut visitor, 1).unwrap_err();
    assert_eq!(kind_of(&error), "Refused(Storage)");
    let error = make_ready(&mut visitor, 1).unwrap_err();
    assert_eq!(kind_of(&error), "Refused(Storage)");
    assert!(house.fill_disk(false));
    make_ready(&mut visitor, 1).unwrap();
    assert_eq!(use_up(&mut visitor, 3).unwrap(), 3);
    assert_eq!(tally.violations(), Vec::<String>::new());
}

#[test]
#[ignore = "takes as long as PI_SOAK_MINUTES says"]
fn a_long_soak_also_keeps_its_memory() {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    };
    let length = Duration::from_secs(60 * number("PI_SOAK_MINUTES", 60));
    let report = run(&Plan {
        seed: number("PI_SOAK_SEED", 1),
        length,
        clients: number("PI_SOAK_CLIENTS", 6) as usize,
        pause: Duration::from_millis(number("PI_SOAK_PAUSE", 1200)),
        calm: Duration::from_secs(12),
        kills_until: length / 4,
        warm: length * 4 / 10,
    });
    print!("{report}");
    if let Ok(path) = std::env::var("PI_SOAK_JSON") {
        // Tests run in the directory of their crate, and the path is the caller's.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        std::fs::write(root.join(path), report.json()).unwrap();
    }
    report.check();
    report.check_memory();
}

/// A fault to be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Silence,
    Storm,
    NewPorts,
    Kill,
    DiskFull,
    StoreGone,
    ClockStep,
}

const FAULTS: [Fault; 7] = [
    Fault::Kill,
    Fault::DiskFull,
    Fault::NewPorts,
    Fault::StoreGone,
    Fault::Silence,
    Fault::ClockStep,
    Fault::Storm,
];

fn run(plan: &Plan) -> Report {
    println!("soak of seed {}", plan.seed);
    let model = Model::random(1);
    let states = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut house = House::open(&model, states.path());
    let server = house.server.fingerprint;
    let relay = Relay::start(
        house.server.address.parse().unwrap(),
        plan.seed,
        runtime.handle(),
    );
    let (tally, stop) = (Tally::new(plan.clients), AtomicBool::new(false));
    let scene = Scene {
        model: &model,
        server,
        address: relay.address,
        tally: &tally,
        stop: &stop,
        pause: plan.pause,
        runtime: runtime.handle().clone(),
    };
    let state = |number: usize| states.path().join(format!("client{number}"));
    let visitor = |number| {
        let seed = plan.seed << 8 | number as u64;
        Visitor::new(&scene, number, &state(number), seed)
    };
    let mut visitors: Vec<Visitor<'_>> = (0..plan.clients).map(visitor).collect();
    let (faults, memory) = std::thread::scope(|scope| {
        for visitor in &mut visitors {
            scope.spawn(|| visitor.stay());
        }
        let stranger = states.path().join("stranger");
        std::fs::create_dir(&stranger).unwrap();
        let scene = &scene;
        scope.spawn(move || pester(scene, &stranger, plan.seed));
        let mut weather = Weathering {
            plan,
            model: &model,
            house: &mut house,
            relay: &relay,
            tally: &tally,
            started: Instant::now(),
            process_started: Instant::now(),
            memory: Memory::default(),
            faults: BTreeMap::new(),
            draw: Draw(plan.seed),
        };
        weather.run();
        stop.store(true, Ordering::SeqCst);
        (weather.faults, weather.memory)
    });
    // Nothing is in the way any more: what is left works, and what is made now.
    let left = visitors.iter_mut().map(|visitor| {
        make_ready(visitor, 1)?;
        use_up(visitor, 4)
    });
    let left = left.sum::<Result<usize, Error>>();
    let left = left.unwrap_or_else(|error| panic!("the last answers: {error}"));
    let warm = plan.warm.as_secs_f64();
    let open_files = memory::open_files(house.process());
    house.kill();
    let clients: Vec<Fingerprint> = visitors.iter().map(Visitor::fingerprint).collect();
    drop(visitors);
    let stores = (0..plan.clients).map(|number| (clients[number], state(number)));
    let census = census(&tally, server, house.state(), stores.collect());
    Report {
        seed: plan.seed,
        minutes: plan.length.as_secs_f64() / 60.0,
        clients: plan.clients,
        answers: tally.answers(),
        answers_at_the_end: left,
        operations: tally.summaries(),
        faults,
        datagrams: report::Datagrams::of(relay.counts()),
        strangers: tally.strangers(),
        warnings: report::warnings(&house.log.lock().unwrap()),
        memory: memory.fit(warm),
        memory_samples: memory.thinned(120),
        open_files,
        census,
        violations: tally.violations(),
    }
}

/// The faults of a soak, one after the other.
struct Weathering<'a> {
    plan: &'a Plan,
    model: &'a Model,
    house: &'a mut House,
    relay: &'a Relay,
    tally: &'a Tally,
    started: Instant,
    process_started: Instant,
    memory: Memory,
    faults: BTreeMap<String, u64>,
    draw: Draw,
}

impl Weathering<'_> {
    fn run(&mut self) {
        let mut next = 0;
        self.wait(self.plan.calm);
        while self.started.elapsed() < self.plan.length {
            let fault = FAULTS[next % FAULTS.len()];
            next += 1;
            if fault == Fault::Kill && self.started.elapsed() > self.plan.kills_until {
                continue;
            }
            self.inject(fault);
            self.wait(self.plan.calm);
            self.await_answers(fault);
        }
    }

    fn inject(&mut self, fault: Fault) {
        let mut name = format!("{fault:?}");
        let lasting = Duration::from_millis(1500 + self.draw.below(2000));
        match fault {
            Fault::Silence => {
                self.relay.fall_silent(lasting);
                self.wait(lasting);
            }
            Fault::Storm => {
                self.relay.set_weather(STORM);
                self.wait(lasting);
                self.relay.set_weather(USUAL);
            }
            Fault::NewPorts => self.relay.rebind(),
            Fault::Kill => {
                self.house.restart(self.model);
                self.process_started = Instant::now();
                self.memory = Memory::default();
            }
            Fault::DiskFull => match self.house.fill_disk(true) {
                true => {
                    self.wait(lasting);
                    assert!(self.house.fill_disk(false));
                }
                false => {
                    eprintln!("SKIPPED: without prlimit no disk is full");
                    name += " (skipped)";
                }
            },
            Fault::StoreGone => {
                self.house.take_store(true);
                self.wait(lasting);
                self.house.take_store(false);
            }
            Fault::ClockStep => {
                let day = 24 * 3600;
                let steps = [3600, -3600, 400 * day, -400 * day, -80 * 365 * day, 0];
                let step = steps[self.draw.below(steps.len() as u64) as usize];
                self.house.set_clock(step);
            }
        }
        *self.faults.entry(name).or_default() += 1;
    }

    /// Waits, and looks after memory and operations meanwhile.
    fn wait(&mut self, length: Duration) {
        let until = Instant::now() + length;
        loop {
            let at = self.process_started.elapsed().as_secs_f64();
            self.memory.sample(at, self.house.process());
            self.tally.watch();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_secs(1)));
        }
    }

    /// Waits until clients are answered again, which takes them some patience.
    fn await_answers(&mut self, fault: Fault) {
        let began = Instant::now();
        let longest = 2 * (PATIENCE.connect + PATIENCE.silence);
        while self.tally.without_answer() > self.plan.calm.max(4 * self.plan.pause) {
            if began.elapsed() > longest {
                self.tally.require(false, || {
                    format!("no client is answered for {longest:?} after {fault:?}")
                });
                return;
            }
            self.wait(Duration::from_millis(200));
        }
    }
}

/// Counts of bundles in the stores of both parties, which must agree.
fn census(
    tally: &Tally,
    server: Fingerprint,
    at_server: &Path,
    clients: Vec<(Fingerprint, std::path::PathBuf)>,
) -> report::Census {
    let store = Store::open(at_server).unwrap();
    let all = store.bundles().unwrap();
    let here: HashMap<_, _> = all.iter().map(|b| ((b.peer, b.id), b.state)).collect();
    let ready = |states: &HashMap<_, BundleState>| {
        states
            .values()
            .filter(|&&state| state == BundleState::Ready)
            .count()
    };
    let answered = tally.answered_bundles();
    let mut there = HashMap::new();
    for (client, state) in clients {
        let store = Store::open(&state).unwrap();
        for bundle in store.bundles().unwrap() {
            assert_eq!(bundle.peer, server);
            there.insert((client, bundle.id), bundle.state);
        }
    }
    for (key, state) in &there {
        if *state == BundleState::Ready {
            tally.require(here.get(key) == Some(&BundleState::Ready), || {
                "a bundle is ready at its client alone".into()
            });
        }
    }
    for key in &answered {
        for states in [&here, &there] {
            tally.require(states.get(key) == Some(&BundleState::Spent), || {
                "a bundle was answered and is not spent".into()
            });
        }
    }
    report::Census {
        ready_at_server: ready(&here),
        spent_at_server: here.len() - ready(&here),
        ready_at_clients: ready(&there),
        spent_at_clients: there.len() - ready(&there),
        answered: answered.len(),
    }
}
