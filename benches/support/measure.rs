//! One benchmark: both parties started, keys exchanged, bundles prepared and spent, the result
//! checked.

use super::circuit::{
    CircuitFigures, LayerFigures, circuit_figures, layer_figures, packed, predicted_server_seconds,
};
use super::line::Line;
use super::link::{Link, Shaped, Shaper};
use super::network::Subject;
use super::party::{ClientProcess, Operation, Site, server_peak_bytes};
use super::predict::{Predicted, predict};
use anyhow::{Context, Result, anyhow, ensure};
use pi_machine::Profile;
use pi_protocol::cost;
use pi_runtime::command::child::ServerProcess;
use pi_runtime::model_files::read_artifact;
use serde::Serialize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The subject of a measurement, and the number of repetitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Model that is measured.
    pub(crate) subject: Subject,
    /// Line between the parties; none for loopback as it is.
    pub(crate) link: Option<Link>,
    /// Means of shaping the line.
    pub(crate) shaper: Shaper,
    /// Bundles prepared by one request.
    pub(crate) bundles: u32,
    /// Inferences timed.
    pub(crate) runs: u32,
    /// Other clients that prepare beside a second series of inferences.
    pub(crate) preparing: u16,
    /// Threads of each party; none means all cores.
    pub(crate) threads: Option<usize>,
}

impl Plan {
    /// Inferences in all; one more than is timed, to be checked.
    fn inferences(&self) -> u32 {
        self.runs * if self.preparing > 0 { 2 } else { 1 } + 1
    }

    /// Cores that work at a time: both parties share the machine, and in the model they take turns.
    fn cores(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        self.threads.unwrap_or(cores).min(cores) as f64
    }
}

/// Cost of a phase.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Phase {
    /// Seconds on the client's clock.
    pub(crate) wall_s: f64,
    /// User CPU seconds of both processes.
    pub(crate) cpu_s: f64,
    /// User CPU seconds of the client.
    pub(crate) client_cpu_s: f64,
    /// User CPU seconds of the server.
    pub(crate) server_cpu_s: f64,
    /// Payload from client to server, in bytes.
    pub(crate) bytes_up: f64,
    /// Payload from server to client, in bytes.
    pub(crate) bytes_down: f64,
    /// One-way messages, requests and confirmations included.
    pub(crate) messages: f64,
}

impl Phase {
    fn new(operation: Operation, server_cpu_s: f64) -> Phase {
        Phase {
            wall_s: operation.wall_s,
            cpu_s: operation.client_cpu_s + server_cpu_s,
            client_cpu_s: operation.client_cpu_s,
            server_cpu_s,
            bytes_up: operation.bytes_up as f64,
            bytes_down: operation.bytes_down as f64,
            messages: operation.messages as f64,
        }
    }

    fn divided(&self, by: f64) -> Phase {
        Phase {
            wall_s: self.wall_s / by,
            cpu_s: self.cpu_s / by,
            client_cpu_s: self.client_cpu_s / by,
            server_cpu_s: self.server_cpu_s / by,
            bytes_up: self.bytes_up / by,
            bytes_down: self.bytes_down / by,
            messages: self.messages / by,
        }
    }

    /// The median of some phases, figure by figure.
    ///
    /// # Panics
    /// If there are none.
    fn median(phases: &[Phase]) -> Phase {
        let of = |field: fn(&Phase) -> f64| median(phases.iter().map(field).collect());
        Phase {
            wall_s: of(|p| p.wall_s),
            cpu_s: of(|p| p.cpu_s),
            client_cpu_s: of(|p| p.client_cpu_s),
            server_cpu_s: of(|p| p.server_cpu_s),
            bytes_up: of(|p| p.bytes_up),
            bytes_down: of(|p| p.bytes_down),
            messages: of(|p| p.messages),
        }
    }
}

/// The middle value, or the mean of the two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

/// Figures of the offline phase.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Offline {
    /// Bundles prepared by one request.
    pub(crate) bundles_at_once: u32,
    /// Bundles that share ciphertexts: the largest batch that the model has a plan for.
    pub(crate) packed_together: u32,
    /// Median over the requests, divided by the bundles of each.
    pub(crate) per_bundle: Phase,
    /// Every request as a whole.
    pub(crate) requests: Vec<Phase>,
    /// Number of times that a party waits for the other in the exchange of a batch, by the
    /// protocol.
    pub(crate) round_trips: u32,
}

/// Figures of the online phase.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Online {
    /// Medians, figure by figure.
    pub(crate) median: Phase,
    /// Every inference that was timed. The first is the first that these processes made.
    pub(crate) runs: Vec<Phase>,
    /// Number of times that a party waits for the other, by the protocol.
    pub(crate) round_trips: u32,
    /// The same beside others that prepare, if that was asked for.
    pub(crate) beside: Option<Beside>,
}

/// Inferences while other clients prepare bundles all the time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Beside {
    /// The other clients.
    pub(crate) preparing: u16,
    /// Bundles that they were given meanwhile.
    pub(crate) bundles: u64,
    /// Seconds that the inferences took in all, with the pauses between them.
    pub(crate) seconds: f64,
    /// Median time of an inference on the client's clock, in seconds.
    pub(crate) wall_s: f64,
    /// Every inference.
    pub(crate) runs_s: Vec<f64>,
    /// `wall_s` as a multiple of that without others.
    pub(crate) times_idle: f64,
}

/// Largest resident memory until certain moments, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    /// Server, when it starts to listen.
    pub(crate) server_loaded: u64,
    /// Server, after the bundles were prepared.
    pub(crate) server_offline: u64,
    /// Server, at the end.
    pub(crate) server_peak: u64,
    /// Client, after the bundles were prepared.
    pub(crate) client_offline: u64,
    /// Client, after the inferences.
    pub(crate) client_peak: u64,
    /// Length of the file with the weights.
    pub(crate) weights_file: u64,
}

/// Comparison of the answers with the interpreter's.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Checked {
    /// Equality of the private logits of an inference with those of the exact interpreter, which
    /// is given the client's shares.
    pub(crate) exact_match: bool,
    /// Largest distance of any logit from the plain interpreter's, in units of the last binary
    /// digit.
    pub(crate) largest_distance_units: u64,
}

/// All figures of one benchmark.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    /// The circuit.
    pub(crate) circuit: CircuitFigures,
    /// The line, if it was shaped, and its behaviour.
    pub(crate) link: Option<Shaped>,
    /// Threads given to each party; none means all cores.
    pub(crate) threads: Option<usize>,
    /// Comparison of the answers with the interpreter's.
    pub(crate) check: Checked,
    /// Cost of fetching the public circuit, once per model.
    pub(crate) model: Phase,
    /// Cost of exchanging keys, once per client and server.
    pub(crate) setup: Phase,
    /// Cost of preparing bundles.
    pub(crate) offline: Offline,
    /// Cost of spending them.
    pub(crate) online: Online,
    /// Memory of both parties.
    pub(crate) memory: Memory,
    /// Predictions of the compiler's model.
    pub(crate) predicted: Predicted,
    /// CPU seconds of the server in the linear layers per bundle, by the cost formulas.
    pub(crate) predicted_linear_server_s: f64,
    /// Figures layer by layer.
    pub(crate) layers: Vec<LayerFigures>,
}

struct Parties {
    server: ServerProcess,
    client: ClientProcess,
}

impl Parties {
    fn phase(&mut self, request: &str) -> Result<Phase> {
        let before = self.server.user_seconds()?;
        let operation = self.client.operate(request)?;
        std::thread::sleep(SETTLE);
        Ok(Phase::new(operation, self.server.user_seconds()? - before))
    }
}

/// Time within which a trailing part of an operation ends, such as erasing a spent bundle.
const SETTLE: Duration = Duration::from_millis(100);

/// Measures a plan; packing and predictions are for the machine of a profile.
///
/// # Errors
/// If a process fails, or the private answer is not the exact interpreter's.
pub(crate) fn measure(plan: &Plan, machine: &Profile) -> Result<Figures> {
    let model = plan.subject.model(machine)?;
    let (artifact, _) = read_artifact(&model)?;
    let predicted = predict(&artifact, machine, plan.link, plan.cores(), plan.bundles)?;
    let states = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut line = Line::new(plan.link, plan.shaper)?;
    let site = Site {
        model: &model,
        states: states.path(),
        threads: plan.threads,
        preparing: plan.preparing,
    };
    let mut server = site.start_server(&line)?;
    let server_loaded = server_peak_bytes(&mut server)?;
    let address = line.lead_to(&server.address)?;
    let client = site.start_client(&line, server.fingerprint, &address)?;

    let mut parties = Parties { server, client };
    let fetched = parties.phase("model")?;
    let setup = parties.phase("setup")?;
    let requests = plan.inferences().div_ceil(plan.bundles);
    let prepare = format!("prepare {}", plan.bundles);
    let mut prepared = Vec::new();
    for index in 1..=requests {
        eprintln!("preparing, request {index} of {requests}");
        prepared.push(parties.phase(&prepare)?);
    }
    let server_offline = server_peak_bytes(&mut parties.server)?;
    let client_offline = parties.client.peak_bytes()?;
    let mut runs = Vec::new();
    for seed in 0..plan.runs {
        runs.push(parties.phase(&format!("infer {seed}"))?);
    }
    let client_peak = parties.client.peak_bytes()?;
    let idle = Phase::median(&runs);
    let beside = match plan.preparing {
        0 => None,
        _ => Some(measure_beside(
            plan,
            &site,
            &address,
            &mut parties,
            idle.wall_s,
        )?),
    };
    parties.phase(&format!("trace {}", plan.inferences() - 1))?;
    let server_peak = server_peak_bytes(&mut parties.server)?;
    let check = parties.client.check()?;
    parties.client.stop()?;
    parties.server.stop()?;
    let link = line.close()?;
    ensure!(
        check.exact,
        "{}: the private logits are not the exact interpreter's",
        plan.subject
    );

    let cost = cost::circuit(&artifact.circuit, artifact.plans())?;
    let packed = packed(&artifact, plan.bundles);
    let batches: Vec<Phase> = prepared
        .iter()
        .map(|phase| phase.divided(f64::from(plan.bundles)))
        .collect();
    let layers = layer_figures(&artifact, &cost, &machine.linear)?;
    Ok(Figures {
        circuit: circuit_figures(&artifact, &cost),
        link,
        threads: plan.threads,
        check: Checked {
            exact_match: check.exact,
            largest_distance_units: check.off_by,
        },
        model: fetched,
        setup,
        offline: Offline {
            bundles_at_once: plan.bundles,
            per_bundle: Phase::median(&batches),
            requests: prepared,
            packed_together: packed.bundles,
            round_trips: cost.offline_round_trips(packed.bundles),
        },
        online: Online {
            median: idle,
            runs,
            round_trips: cost.online_round_trips(),
            beside,
        },
        memory: Memory {
            server_loaded,
            server_offline,
            server_peak,
            client_offline,
            client_peak,
            weights_file: weights_bytes(&model)?,
        },
        predicted,
        predicted_linear_server_s: predicted_server_seconds(&artifact, packed, &machine.linear)?,
        layers,
    })
}

/// Times inferences while other clients prepare, a bundle at a time and without a pause.
fn measure_beside(
    plan: &Plan,
    site: &Site<'_>,
    address: &str,
    parties: &mut Parties,
    idle_s: f64,
) -> Result<Beside> {
    let mut others = Vec::new();
    for number in 0..plan.preparing {
        let mut other = site.start_other(number, parties.server.fingerprint, address)?;
        for request in ["model", "setup", "prepare 1"] {
            other.operate(request)?;
        }
        others.push(other);
    }
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let preparing: Vec<_> = others
            .into_iter()
            .map(|mut other| {
                let ended = &ended;
                scope.spawn(move || -> Result<u64> {
                    let mut bundles = 0;
                    while !ended.load(Ordering::Relaxed) {
                        other.operate("prepare 1")?;
                        bundles += 1;
                    }
                    other.stop()?;
                    Ok(bundles)
                })
            })
            .collect();
        let started = Instant::now();
        let infer = |seed| Ok(parties.phase(&format!("infer {seed}"))?.wall_s);
        let runs: Result<Vec<f64>> = (plan.runs..2 * plan.runs).map(infer).collect();
        let seconds = started.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        let mut bundles = 0;
        for other in preparing {
            let made = other
                .join()
                .map_err(|_| anyhow!("a client's thread panicked"))?;
            bundles += made?;
        }
        let runs_s = runs?;
        let wall_s = median(runs_s.clone());
        Ok(Beside {
            preparing: plan.preparing,
            bundles,
            seconds,
            wall_s,
            runs_s,
            times_idle: wall_s / idle_s,
        })
    })
}

fn weights_bytes(model: &Path) -> Result<u64> {
    Ok(std::fs::metadata(model.join(pi_ir::artifact::WEIGHTS_NAME))?.len())
}
