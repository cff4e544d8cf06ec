//! One benchmark: both parties started, keys exchanged, bundles prepared and spent, the result
//! checked.

use super::line::{Line, Link, Shaped, Shaper};
use super::network::{Subject, read_model};
use super::party::{ClientProcess, Operation, ServerProcess};
use super::predict::{Predicted, Rates, predict};

use anyhow::{Context, Result, ensure};
use pi_ir::count::circuit_multiply_adds;
use pi_ir::{Artifact, Circuit};
use pi_protocol::cost::{self, Cost};
use pi_protocol::layout::Packing;
use pi_protocol::linear::{self, Operations};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// What to measure, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The model.
    pub(crate) subject: Subject,
    /// The line between the parties; none is loopback as it is.
    pub(crate) link: Option<Link>,
    /// What shapes it.
    pub(crate) shaper: Shaper,
    /// Bundles prepared by one request.
    pub(crate) bundles: u32,
    /// Inferences timed.
    pub(crate) runs: u32,
    /// Threads of each party; all cores if not said.
    pub(crate) threads: Option<usize>,
}

impl Plan {
    /// Cores that work on it: both parties share the machine, and in the model one of them works at
    /// a time.
    fn cores(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        self.threads.unwrap_or(cores).min(cores) as f64
    }
}

/// What a phase took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Phase {
    /// Seconds on the client's clock.
    pub(crate) wall_s: f64,
    /// User CPU seconds of both processes.
    pub(crate) cpu_s: f64,
    /// Of the client.
    pub(crate) client_cpu_s: f64,
    /// Of the server.
    pub(crate) server_cpu_s: f64,
    /// Payload from client to server.
    pub(crate) bytes_up: f64,
    /// Payload from server to client.
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

    /// Figure by figure.
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

/// The preparations.
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
    /// Times that a party waits for the other in the exchange of a batch, by the protocol.
    pub(crate) round_trips: u32,
}

/// The inferences.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Online {
    /// Figure by figure.
    pub(crate) median: Phase,
    /// All that were timed; the first is the first that these processes made.
    pub(crate) runs: Vec<Phase>,
    /// Times that a party waits for the other, by the protocol.
    pub(crate) round_trips: u32,
}

/// Largest resident memory, bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    /// Server, once it listens.
    pub(crate) server_loaded: u64,
    /// Server, bundles prepared.
    pub(crate) server_offline: u64,
    /// Server, at the end.
    pub(crate) server_peak: u64,
    /// Client, bundles prepared.
    pub(crate) client_offline: u64,
    /// Client, inferences made.
    pub(crate) client_peak: u64,
    /// The file with the weights.
    pub(crate) weights_file: u64,
}

/// How the answers compare with the interpreter's.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Checked {
    /// Private logits of an inference with these processes against the exact interpreter's, given
    /// the client's shares.
    pub(crate) exact_match: bool,
    /// Largest distance of any logit from the plain interpreter's, in units of the last binary
    /// digit.
    pub(crate) largest_distance_units: u64,
}

/// One layer, by the cost formulas that tests hold equal to the bytes counted.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LayerFigures {
    name: String,
    relus: usize,
    polynomials: usize,
    squares: usize,
    identities: usize,
    sign_bits: u32,
    offline_bytes_up: u64,
    offline_bytes_down: u64,
    online_bytes_up: u64,
    online_bytes_down: u64,
    online_messages: u32,
    /// Bytes of the uploads that this layer's convolutions read; one that several layers read is
    /// told for each.
    upload_bytes: usize,
    answer_bytes: usize,
    products: u64,
    key_switches: u64,
    output_ciphertexts: u64,
    multiply_adds: u64,
    /// Server's CPU in the linear layers of a bundle alone by the cost formulas.
    predicted_linear_server_s: f64,
}

/// What the circuit is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CircuitFigures {
    /// Its name.
    pub(crate) name: String,
    /// Elements of each kind.
    pub(crate) relus: usize,
    /// Polynomials.
    pub(crate) polynomials: usize,
    /// Identity elements.
    pub(crate) identities: usize,
    /// Of all convolutions.
    pub(crate) multiply_adds: u64,
    /// AND gates of all sign circuits.
    pub(crate) and_gates: u64,
    /// `log2` of the probability that an inference loses a value.
    pub failure_log2: f64,
}

/// Everything about one benchmark.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    /// The circuit.
    pub(crate) circuit: CircuitFigures,
    /// The line, and how it measured before the parties used it.
    pub(crate) link: Option<Shaped>,
    /// Threads that each party was given; none means all cores.
    pub(crate) threads: Option<usize>,
    /// Whether the answers were right.
    pub(crate) check: Checked,
    /// Fetching the public circuit, once per model.
    pub(crate) model: Phase,
    /// Keys, once per client and server.
    pub(crate) setup: Phase,
    /// Preparing bundles.
    pub(crate) offline: Offline,
    /// Spending them.
    pub(crate) online: Online,
    /// Memory.
    pub(crate) memory: Memory,
    /// What the model of the benchmark says.
    pub(crate) predicted: Predicted,
    /// Server's CPU seconds in the linear exchange by the cost formulas, per bundle.
    pub(crate) predicted_linear_server_s: f64,
    /// Layer by layer.
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

/// A trailing part of an operation, such as erasing a spent bundle, ends within this time.
const SETTLE: Duration = Duration::from_millis(100);

/// Measures a plan; `rates` are for the prediction beside it.
///
/// # Errors
/// If a process fails, or the private answer is not the exact interpreter's.
pub(crate) fn measure(plan: &Plan, rates: &Rates) -> Result<Figures> {
    let model = plan.subject.model()?;
    let (artifact, _) = read_model(&model)?;
    let predicted = predict(&artifact, rates, plan.link, plan.cores(), plan.bundles)?;
    let states = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut line = Line::new(plan.link, plan.shaper)?;
    let mut server = ServerProcess::start(&model, states.path(), &line, plan.threads)?;
    let server_loaded = server.peak_bytes()?;
    let address = line.lead_to(&server.address)?;
    let client = ClientProcess::start(
        &server,
        &address,
        &model,
        states.path(),
        &line,
        plan.threads,
    )?;

    let mut parties = Parties { server, client };
    let fetched = parties.phase("model")?;
    let setup = parties.phase("setup")?;
    // One inference more than is timed, to be checked.
    let requests = (plan.runs + 1).div_ceil(plan.bundles);
    let prepare = format!("prepare {}", plan.bundles);
    let mut prepared = Vec::new();
    for index in 1..=requests {
        eprintln!("preparing, request {index} of {requests}");
        prepared.push(parties.phase(&prepare)?);
    }
    let server_offline = parties.server.peak_bytes()?;
    let client_offline = parties.client.peak_bytes()?;
    let mut runs = Vec::new();
    for seed in 0..plan.runs {
        runs.push(parties.phase(&format!("infer {seed}"))?);
    }
    let client_peak = parties.client.peak_bytes()?;
    parties.phase(&format!("trace {}", plan.runs))?;
    let server_peak = parties.server.peak_bytes()?;
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
    let layers = layers(&artifact, &cost)?;
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
            round_trips: Cost::offline_round_trips(packed.bundles),
        },
        online: Online {
            median: Phase::median(&runs),
            runs,
            round_trips: cost.online_round_trips(),
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
        predicted_linear_server_s: predicted_server_seconds(&artifact, packed)?,
        layers,
    })
}

fn weights_bytes(model: &Path) -> Result<u64> {
    Ok(std::fs::metadata(model.join(pi_ir::artifact::WEIGHTS_NAME))?.len())
}

fn faults(faults: Vec<String>) -> anyhow::Error {
    anyhow::anyhow!("the plan does not fit its circuit: {}", faults.join("; "))
}

/// The plan of the largest batch when so many bundles are prepared at once.
pub(crate) fn packed(artifact: &Artifact, bundles: u32) -> &pi_ir::Plan {
    let plans = artifact.plans();
    plans
        .filter(|plan| plan.bundles <= bundles)
        .last()
        .unwrap_or(&artifact.plan)
}

/// Operations of the linear layers of a plan.
pub(crate) fn operations(artifact: &Artifact, plan: &pi_ir::Plan) -> Result<Operations> {
    let packing = Packing::new(&artifact.circuit, plan).map_err(faults)?;
    Ok(linear::cost(&packing).operations())
}

/// The server's CPU seconds in the linear layers of one bundle, by the cost formulas.
pub(crate) fn predicted_server_seconds(artifact: &Artifact, plan: &pi_ir::Plan) -> Result<f64> {
    let micros = operations(artifact, plan)?.server_micros(&linear::Rates::MEASURED);
    Ok(micros * 1e-6 / f64::from(plan.bundles))
}

fn layers(artifact: &Artifact, cost: &Cost) -> Result<Vec<LayerFigures>> {
    let mut figures = Vec::with_capacity(cost.per_layer.len());
    for (index, layer) in cost.per_layer.iter().enumerate() {
        let (circuit, plan) = alone(&artifact.circuit, &artifact.plan, index);
        let packing = Packing::new(&circuit, &plan).map_err(faults)?;
        let linear = linear::cost(&packing);
        let operations = linear.operations();
        figures.push(LayerFigures {
            name: layer.name.clone(),
            relus: layer.relus,
            polynomials: layer.polynomials,
            squares: layer.squares,
            identities: layer.identities,
            sign_bits: layer.sign_bits,
            offline_bytes_up: layer.offline.bytes_up,
            offline_bytes_down: layer.offline.bytes_down,
            online_bytes_up: layer.online.bytes_up,
            online_bytes_down: layer.online.bytes_down,
            online_messages: layer.online.messages,
            upload_bytes: linear.bytes_up(),
            answer_bytes: linear.bytes_down(),
            products: operations.products,
            key_switches: operations.key_switches,
            output_ciphertexts: operations.outputs,
            multiply_adds: circuit_multiply_adds(&circuit),
            predicted_linear_server_s: operations.server_micros(&linear::Rates::MEASURED) * 1e-6,
        });
    }
    Ok(figures)
}

/// The circuit with the terms of one layer only, and its part of the plan.
fn alone(circuit: &Circuit, plan: &pi_ir::Plan, layer: usize) -> (Circuit, pi_ir::Plan) {
    let (mut circuit, mut plan) = (circuit.clone(), plan.clone());
    for (index, other) in circuit.layers.iter_mut().enumerate() {
        if index != layer {
            other.terms.clear();
        }
    }
    plan.answers.retain(|answer| answer.layer as usize == layer);
    let mut uploads = Vec::new();
    let mut places = Vec::new();
    for answer in &mut plan.answers {
        let place = places.iter().position(|place| *place == answer.upload);
        let place = place.unwrap_or_else(|| {
            places.push(answer.upload);
            uploads.push(plan.uploads[answer.upload as usize].clone());
            uploads.len() - 1
        });
        answer.upload = place as u32;
    }
    plan.uploads = uploads;
    (circuit, plan)
}

/// What the circuit is.
pub(crate) fn circuit_figures(artifact: &Artifact, cost: &Cost) -> CircuitFigures {
    let sum = |count: fn(&cost::LayerCost) -> usize| cost.per_layer.iter().map(count).sum();
    let and_gates = |layer: &cost::LayerCost| {
        let width = pi_garble::SignWidth::new(layer.sign_bits);
        width.map_or(0, |width| layer.relus * width.and_gates()) as u64
    };
    CircuitFigures {
        name: artifact.circuit.name.clone(),
        relus: sum(|layer| layer.relus),
        polynomials: sum(|layer| layer.polynomials),
        identities: sum(|layer| layer.identities),
        multiply_adds: circuit_multiply_adds(&artifact.circuit),
        and_gates: cost.per_layer.iter().map(and_gates).sum(),
        failure_log2: artifact.failure_log2,
    }
}
