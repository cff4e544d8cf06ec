//! The report on a compiled network, layer by layer: what `pi-compile` prints as a table or as
//! JSON, and what [`crate::page`] draws.

mod costs;
mod share;
mod table;

pub use costs::{COSTLIEST, answer_learnt, artifact_learnt, estimates, line_name, shown_profiles};
pub use share::{Measure, Share};
pub(crate) use table::Table;

use crate::accuracy::Measured;
use crate::cost::latency::{Machine, Work};
use crate::cost::per_layer::{PerLayer, predict, predict_whole, profiles};
use crate::cost::processor::{self, Cpu, Effort};
use crate::fault::Refused;
use crate::pass::select::{Alternative, Link, alternatives, conv_terms};
use pi_ir::artifact::Accuracy;
use pi_ir::costs::{Profile, Seconds, Traffic};
use pi_ir::count::{Activations, layer_activations, multiply_adds};
use pi_ir::failure::failure_log2;
use pi_ir::{
    Artifact, Circuit, Conv, Layer, LayerWeights, Layout, Plan, PostTruncation, Prefix, Range,
    Reveal, Step, Term,
};
use pi_machine::{Profile as MachineProfile, SHIPPED, shipped};
use pi_protocol::cost::{self, Cost, Memory, Stored};
use pi_protocol::flooding::{Flooding, flooding};
use pi_protocol::layout::Packing;
use pi_protocol::linear::{self, LinearCost, Operations};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Add;

/// Everything the table shows, also as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the network.
    pub name: String,
    /// The layers that the client computes itself, if any.
    pub prefix: Option<PublicLayers>,
    /// What the client learns.
    pub reveal: Reveal,
    /// AND gates of the label's arg max; none if the logits are revealed.
    pub label_gates: usize,
    /// Accuracy on test images, if the artifact records one.
    pub accuracy: Option<Accuracy>,
    /// Length of the artifact, which each client fetches once.
    pub artifact_bytes: usize,
    /// Per private layer.
    pub layers: Vec<Row>,
    /// What belongs to no layer: digests, set-up of OTs, OLE ciphertexts and the request, and the
    /// work that their bytes take.
    pub shared: Shared,
    /// Elements by kind over all layers.
    pub kinds: Activations,
    /// Multiplications by weights of one private inference.
    pub multiply_adds: u64,
    /// Once per client key.
    pub setup: Traffic,
    /// Once per bundle that is prepared alone: the rows' share, and what layers share.
    pub offline: Traffic,
    /// Bundles prepared together.
    pub batches: Vec<Batch>,
    /// What both parties store of a bundle until it is spent.
    pub stored: Stored,
    /// Memory that the client needs at most, beside the model.
    pub client_memory: Memory,
    /// Memory that the server needs at most for one client, beside the model.
    pub server_memory: Memory,
    /// Once per input: the rows' share, and the request.
    pub online: Traffic,
    /// The processor and back end that the plan is weighed for, and that all times, here and
    /// everywhere, are estimates for.
    pub machine: String,
    /// Estimated processor seconds of a bundle that is prepared alone.
    pub offline_cpu: Cpu,
    /// Estimated processor seconds of an inference.
    pub online_cpu: Cpu,
    /// Estimates of both for other machines, those whose profiles ship with the compiler.
    pub elsewhere: Vec<Elsewhere>,
    /// The lines that `predicted` is for, here and in the rows.
    pub profiles: Vec<Profile>,
    /// Predicted seconds of a bundle prepared alone and of an inference, by line.
    pub predicted: BTreeMap<String, Seconds>,
    /// Round trips of an inference.
    pub round_trips: u32,
    /// Packing of each convolution, for one exchange.
    pub packing: Vec<Packed>,
    /// Bundles prepared in one exchange.
    pub bundles: u32,
    /// The server's processor time for the linear layers of one exchange, as the cost model
    /// predicts, in seconds.
    pub linear_seconds: f64,
    /// The client's processor time for them, likewise.
    pub client_seconds: f64,
    /// Seconds of one exchange of linear layers on the link that the report is for, predicted; see
    /// [`Link::seconds`].
    pub exchange_seconds: f64,
    /// `log2` of the probability that one inference loses a value.
    pub failure_log2: f64,
    /// `log2` of the distance by which the answers of `2^20` bundles tell of the weights, by the
    /// plan that tells most.
    pub flooding_log2: f64,
    /// Note that the artifact's maker wrote into it.
    pub note: String,
    /// The network on examples that calibration did not see, if it was just compiled: an artifact
    /// does not have it.
    pub measured: Option<Measured>,
}

/// The public prefix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PublicLayers {
    /// Its layers.
    pub layers: Vec<PublicLayer>,
    /// Shape of the image, `CxHxW`.
    pub image: String,
    /// Shape of its result, with which the private layers begin.
    pub result: String,
    /// Elements by kind, which cost no protocol.
    pub kinds: Activations,
    /// Multiplications by weights, which the client computes in the clear.
    pub multiply_adds: u64,
    /// Integers in the artifact that would otherwise be the server's secret.
    pub disclosed: usize,
}

impl PublicLayers {
    fn new(circuit: &Circuit, prefix: &Prefix) -> Self {
        let weights = prefix.weights.layers.iter();
        PublicLayers {
            layers: prefix.layers.iter().map(PublicLayer::new).collect(),
            image: prefix.image.to_string(),
            result: circuit.input.to_string(),
            kinds: prefix.layers.iter().map(layer_activations).sum(),
            multiply_adds: multiply_adds(prefix.as_layers()),
            disclosed: weights.map(LayerWeights::count).sum(),
        }
    }
}

/// One layer of the public prefix. All its bounds are proved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PublicLayer {
    /// Name of the layer.
    pub name: String,
    /// Shape of its result, `CxHxW`.
    pub shape: String,
    /// Elements by kind.
    pub kinds: Activations,
    /// `log2 B`.
    pub bound_bits: u8,
}

impl PublicLayer {
    fn new(layer: &Layer) -> Self {
        PublicLayer {
            name: layer.name.clone(),
            shape: layer.shape.to_string(),
            kinds: layer_activations(layer),
            bound_bits: layer.bound_bits,
        }
    }
}

/// Traffic and work that belong to no layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shared {
    /// Per bundle.
    pub offline: Traffic,
    /// Per input.
    pub online: Traffic,
    /// Estimated processor seconds of a bundle.
    pub offline_cpu: Cpu,
    /// Estimated processor seconds of an inference.
    pub online_cpu: Cpu,
}

/// Estimated processor seconds on another machine, with the same plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Elsewhere {
    /// Name of the machine's profile, one of [`SHIPPED`].
    pub profile: String,
    /// Its processor and back end.
    pub machine: String,
    /// Of a bundle that is prepared alone.
    pub offline_cpu: Cpu,
    /// Of an inference.
    pub online_cpu: Cpu,
}

/// Bundles prepared in one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Batch {
    /// Their number.
    pub bundles: usize,
    /// Traffic of all together.
    pub offline: Traffic,
    /// Estimated processor seconds of each.
    pub offline_cpu: Cpu,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the layer.
    pub name: String,
    /// Shape of its result, `CxHxW`.
    pub shape: String,
    /// Terms of the sum: `3x3 t1` is a convolution of tensor 1, `+t2` a residual.
    pub terms: String,
    /// Elements by kind.
    pub kinds: Activations,
    /// Bits of its weights, the sign included, as the circuit declares them: those of its widest
    /// kernel, and none of a layer without.
    pub weight_bits: Option<u8>,
    /// Scale of the result.
    pub frac_bits: i32,
    /// `f`: bits cut off.
    pub truncate: u8,
    /// `log2 B`.
    pub bound_bits: u8,
    /// `m`, where a sign is garbled, the guard included.
    pub sign_bits: Option<u8>,
    /// Bits by which its garbled circuits are wider than the bound asks for, to check it.
    pub guard_bits: u8,
    /// Source of the bound: a proof, or calibration.
    pub range: &'static str,
    /// Head room in bits above the largest value seen, for calibrated bounds.
    pub head_room: Option<f64>,
    /// Bounds before the second truncation of squares and of polynomials.
    pub post: Vec<Post>,
    /// `log2` of the layer's failure probability.
    pub failure_log2: f64,
    /// Per bundle: uploads of the tensors that this layer reads first, answers, corrections,
    /// garbled circuits.
    pub offline: Traffic,
    /// Per input.
    pub online: Traffic,
    /// Round trips online.
    pub round_trips: u32,
    /// Multiplications by weights for one input.
    pub multiply_adds: u64,
    /// Estimated processor seconds of a bundle.
    pub offline_cpu: Cpu,
    /// Estimated processor seconds of an inference.
    pub online_cpu: Cpu,
    /// The layer's share of the predicted seconds, by line, its round trip included.
    pub predicted: BTreeMap<String, Seconds>,
}

/// A bound before the second truncation of squares or polynomials.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Post {
    /// `square` or `polynomial`.
    pub kind: &'static str,
    /// `log2 B`.
    pub bound_bits: u8,
    /// Source of the bound: a proof, or calibration.
    pub range: &'static str,
    /// Head room in bits above the largest value seen, for calibrated bounds.
    pub head_room: Option<f64>,
}

impl Post {
    fn new(kind: &'static str, post: &PostTruncation) -> Self {
        Post {
            kind,
            bound_bits: post.bound_bits,
            range: range(post.range),
            head_room: head_room(post.bound_bits, post.range),
        }
    }
}

/// The packing of one convolution, for one exchange: all bundles together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Packed {
    /// The layer that it is a term of.
    pub layer: String,
    /// Kernel and tensor read, as in [`Row::terms`].
    pub term: String,
    /// Channels in a ciphertext, `G`.
    pub group: u32,
    /// Rows and columns of outputs in a tile.
    pub tile: (u32, u32),
    /// Positions from row to row.
    pub row_stride: u32,
    /// Tiles in a ciphertext.
    pub blocks: u32,
    /// Groups of output channels behind each other.
    pub output_blocks: u32,
    /// Levels of merging.
    pub merge: u32,
    /// Ciphertexts up; with the first convolution that reads an upload.
    pub inputs: u64,
    /// Ciphertexts down.
    pub outputs: u64,
    /// Automorphisms.
    pub key_switches: u64,
    /// Bytes of the inputs.
    pub bytes_up: usize,
    /// Bytes of the outputs.
    pub bytes_down: usize,
    /// The server's processor time, predicted, in milliseconds.
    pub server_millis: f64,
    /// The client's processor time, likewise.
    pub client_millis: f64,
    /// `log2` of this convolution's part in [`Report::flooding_log2`].
    pub flooding_log2: f64,
    /// Reason for the packing; with the first convolution that reads an upload.
    pub why: Option<Why>,
}

/// The costs that decided an upload with its answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    /// Share of bytes in what it costs on the link; work is the rest.
    pub byte_share: f64,
    /// The next best layout, as `group rows x columns / blocks / output blocks`.
    pub next: Option<String>,
    /// Additional cost of the next best, as a factor of the weight: of bytes, of work, in all.
    pub next_costs: Option<[f64; 3]>,
}

impl Report {
    /// Report of an artifact, with predictions for a link and a machine.
    ///
    /// # Errors
    /// If its circuit or plan is not sound.
    /// # Cost
    /// As much as [`select()`](crate::pass::select::select()): the second best packings are
    /// searched.
    pub fn new(artifact: &Artifact, link: &Link) -> Result<Self, Refused> {
        let circuit = &artifact.circuit;
        let refuse = |why: String| Refused::one("", why);
        let cost = cost::circuit(circuit, artifact.plans()).map_err(|e| refuse(e.to_string()))?;
        let packing = Packing::new(circuit, &artifact.plan).map_err(|f| refuse(f.join("; ")))?;
        let linear = linear::cost(&packing);
        let failure = failure_log2(circuit);
        let flooding = flooding(circuit, artifact.plans()).map_err(|e| refuse(e.to_string()))?;
        flooding
            .check(artifact.flooding_log2)
            .map_err(|e| refuse(e.to_string()))?;
        let layers = PerLayer::new(circuit, &artifact.plan, &packing);
        let machine = &Machine::of_two_cores(&link.machine);
        let rows = rows(circuit, &failure.layers, &cost, &layers, machine);
        let whole = Whole::new(&cost, &layers, &rows, machine);
        Ok(Report {
            name: circuit.name.clone(),
            prefix: (circuit.prefix.as_ref()).map(|prefix| PublicLayers::new(circuit, prefix)),
            kinds: rows.iter().map(|row| row.kinds).sum(),
            reveal: circuit.output().1,
            label_gates: match circuit.output().1 {
                Reveal::Label => cost.per_layer.last().map_or(0, |layer| layer.and_gates),
                Reveal::Logits => 0,
            },
            accuracy: artifact.accuracy,
            artifact_bytes: artifact.encode().len(),
            layers: rows,
            shared: whole.shared,
            multiply_adds: layers.multiply_adds.iter().sum(),
            setup: cost.setup,
            offline: cost.offline,
            batches: whole.batches,
            stored: cost.stored,
            client_memory: cost.client_memory,
            server_memory: cost.server_memory,
            online: cost.online,
            machine: link.machine.in_words(),
            offline_cpu: whole.offline_cpu,
            online_cpu: whole.online_cpu,
            elsewhere: elsewhere(&link.machine, &whole.effort),
            profiles: profiles(),
            predicted: predict_whole(&cost, &whole.work, machine),
            round_trips: cost.online_round_trips(),
            packing: packed(artifact, &linear, &flooding, link),
            bundles: artifact.plan.bundles,
            linear_seconds: linear.operations().server_micros(&link.machine.linear) * 1e-6,
            client_seconds: linear.operations().client_micros(&link.machine.linear) * 1e-6,
            exchange_seconds: link.seconds(&linear),
            failure_log2: failure.total,
            flooding_log2: flooding.total,
            note: artifact.note.clone(),
            measured: None,
        })
    }
}

fn packed(artifact: &Artifact, cost: &LinearCost, flooding: &Flooding, link: &Link) -> Vec<Packed> {
    let (circuit, plan) = (&artifact.circuit, &artifact.plan);
    let mut others = alternatives(circuit, plan, link);
    let mut first = vec![true; plan.uploads.len()];
    let row = |(index, (layer, _, conv)): (usize, (u32, u32, &Conv))| {
        let answer = &plan.answers[index];
        let u = answer.upload as usize;
        let layout = &plan.uploads[u].layout;
        let down = cost.answers[index];
        let (up, bytes_up, why) = match std::mem::take(&mut first[u]) {
            true => (
                cost.uploads[u],
                cost.upload_bytes[u],
                Some(why(plan, cost, u, others[u].take(), link)),
            ),
            false => (Operations::default(), 0, None),
        };
        Packed {
            layer: circuit.layers[layer as usize].name.clone(),
            term: conv_term(conv),
            group: layout.group,
            tile: layout.tile,
            row_stride: layout.row_stride,
            blocks: layout.blocks,
            output_blocks: answer.output_blocks,
            merge: answer.merge,
            inputs: up.inputs,
            outputs: down.outputs,
            key_switches: down.key_switches,
            bytes_up,
            bytes_down: cost.answer_bytes[index],
            server_millis: (up + down).server_micros(&link.machine.linear) * 1e-3,
            client_millis: (up + down).client_micros(&link.machine.linear) * 1e-3,
            flooding_log2: flooding.answers[index],
            why,
        }
    };
    conv_terms(circuit).enumerate().map(row).collect()
}

fn why(
    plan: &Plan,
    cost: &LinearCost,
    upload: usize,
    other: Option<Alternative>,
    link: &Link,
) -> Why {
    let readers = || (0..plan.answers.len()).filter(|&a| plan.answers[a].upload as usize == upload);
    let bytes = cost.upload_bytes[upload] + readers().map(|a| cost.answer_bytes[a]).sum::<usize>();
    let operations = cost.uploads[upload] + readers().map(|a| cost.answers[a]).sum();
    let parts = |bytes: usize, operations: &Operations| {
        let none = Operations::default();
        (link.weight(bytes, &none), link.weight(0, operations))
    };
    let (of_bytes, of_work) = parts(bytes, &operations);
    let all = of_bytes + of_work;
    Why {
        byte_share: of_bytes / all,
        next_costs: other.as_ref().map(|other| {
            let (bytes, work) = parts(other.bytes, &other.operations);
            [
                (bytes - of_bytes) / all,
                (work - of_work) / all,
                (bytes + work - all) / all,
            ]
        }),
        next: other.map(|other| {
            let Layout {
                group,
                tile,
                blocks,
                ..
            } = other.layout;
            layout_name(group, tile, blocks, other.output_blocks)
        }),
    }
}

fn layout_name(group: u32, tile: (u32, u32), blocks: u32, output_blocks: u32) -> String {
    format!("{group} {}x{}/{blocks}/{output_blocks}", tile.0, tile.1)
}

fn rows(
    circuit: &Circuit,
    failure: &[f64],
    cost: &Cost,
    layers: &PerLayer,
    machine: &Machine<'_>,
) -> Vec<Row> {
    let all = circuit.layers.iter().zip(failure).zip(&cost.per_layer);
    all.enumerate()
        .map(|(index, ((layer, &failure), cost))| {
            row((index, layer), failure, cost, layers, machine)
        })
        .collect()
}

/// Estimates for the shipped machines, less that which the report is for.
fn elsewhere(here: &MachineProfile, effort: &Effort) -> Vec<Elsewhere> {
    let shipped = SHIPPED
        .iter()
        .filter_map(|name| Some((name, shipped(name)?)));
    let others = shipped.filter(|(_, machine)| machine != here);
    let estimate = |(name, machine): (&&str, MachineProfile)| Elsewhere {
        profile: (*name).into(),
        machine: machine.in_words(),
        offline_cpu: processor::offline(&machine, effort),
        online_cpu: processor::online(&machine, effort),
    };
    others.map(estimate).collect()
}

/// What follows from all layers together.
struct Whole {
    shared: Shared,
    batches: Vec<Batch>,
    offline_cpu: Cpu,
    online_cpu: Cpu,
    effort: Effort,
    work: Work,
}

impl Whole {
    fn new(cost: &Cost, layers: &PerLayer, rows: &[Row], machine: &Machine<'_>) -> Self {
        let each = cost.per_layer.iter().enumerate();
        let efforts = each.clone().map(|(index, own)| layers.effort(index, own));
        let effort = Effort {
            round_trips: cost.online_round_trips(),
            ..efforts.sum::<Effort>()
        }
        .with_traffic(&cost.offline, &cost.online);
        let offline_cpu = processor::offline(machine.profile, &effort);
        let online_cpu = processor::online(machine.profile, &effort);
        let rest = |all: Traffic, of: fn(&Row) -> Traffic| rows.iter().map(of).fold(all, without);
        let sum = |of: fn(&Row) -> Cpu| rows.iter().map(of).fold(Cpu::default(), Cpu::add);
        let mut work = Work::default();
        for (index, own) in each {
            work += &layers.work(index, own, machine);
        }
        Whole {
            shared: Shared {
                offline: rest(cost.offline, |row| row.offline),
                online: rest(cost.online, |row| row.online),
                offline_cpu: offline_cpu - sum(|row| row.offline_cpu),
                online_cpu: online_cpu - sum(|row| row.online_cpu),
            },
            batches: (cost.batches.iter())
                .map(|b| batch(b, &effort, machine.profile))
                .collect(),
            offline_cpu,
            online_cpu,
            effort,
            work,
        }
    }
}

/// Traffic less a part of it.
fn without(all: Traffic, part: Traffic) -> Traffic {
    Traffic {
        bytes_up: all.bytes_up - part.bytes_up,
        bytes_down: all.bytes_down - part.bytes_down,
        messages: all.messages - part.messages,
    }
}

/// `effort` is that of a bundle prepared alone.
fn batch(batch: &cost::BatchCost, effort: &Effort, machine: &MachineProfile) -> Batch {
    let bundles = batch.bundles as f64;
    let linear = processor::linear(machine, &batch.operations, batch.convolutions);
    let own = Effort {
        offline_bytes: (batch.offline.bytes_up + batch.offline.bytes_down) / batch.bundles as u64,
        ..*effort
    };
    Batch {
        bundles: batch.bundles,
        offline: batch.offline,
        offline_cpu: linear * (1.0 / bundles) + processor::transfers(machine, &own),
    }
}

fn row(
    (index, layer): (usize, &Layer),
    failure_log2: f64,
    cost: &cost::LayerCost,
    layers: &PerLayer,
    machine: &Machine<'_>,
) -> Row {
    let effort = layers.effort(index, cost);
    let work = layers.work(index, cost, machine);
    let offline = layers.offline(index, cost);
    let activation = match &layer.step {
        Step::Activate(activation) => Some(activation),
        Step::Output { .. } => None,
    };
    let kinds = layer_activations(layer);
    let posts = activation.into_iter().flat_map(|a| {
        [("square", &a.square), ("polynomial", &a.polynomial)]
            .into_iter()
            .filter_map(|(kind, post)| Some(Post::new(kind, post.as_ref()?)))
    });
    Row {
        name: layer.name.clone(),
        shape: layer.shape.to_string(),
        terms: terms(layer),
        kinds,
        weight_bits: weight_bits(layer),
        frac_bits: match &layer.step {
            Step::Activate(a) => a.frac_bits.into(),
            Step::Output { frac_bits, .. } => (*frac_bits).into(),
        },
        truncate: layer.truncate(),
        bound_bits: layer.bound_bits,
        sign_bits: layer.sign_bits().filter(|_| kinds.relu > 0),
        guard_bits: layer.guard_bits,
        range: range(layer.range),
        head_room: head_room(layer.bound_bits, layer.range),
        post: posts.collect(),
        failure_log2,
        // Round trips offline are shared by all layers.
        predicted: predict(
            (&offline, 0),
            (&cost.online, effort.round_trips),
            &work,
            machine,
        ),
        offline,
        online: cost.online,
        round_trips: effort.round_trips,
        multiply_adds: effort.multiply_adds,
        offline_cpu: processor::offline(machine.profile, &effort),
        online_cpu: processor::online(machine.profile, &effort),
    }
}

fn weight_bits(layer: &Layer) -> Option<u8> {
    let kernels = layer.terms.iter().filter_map(|term| match term {
        Term::Conv(conv) => Some(conv.weight_bits + 1),
        Term::Residual { .. } => None,
    });
    kernels.max()
}

fn head_room(bound_bits: u8, range: Range) -> Option<f64> {
    match range {
        Range::Proved => None,
        Range::Calibrated { max_seen } => {
            Some(f64::from(bound_bits) - (max_seen.max(1) as f64).log2())
        }
    }
}

fn range(range: Range) -> &'static str {
    match range {
        Range::Proved => "proved",
        Range::Calibrated { .. } => "calibrated",
    }
}

fn terms(layer: &Layer) -> String {
    let term = |term: &Term| match term {
        Term::Conv(conv) => conv_term(conv),
        Term::Residual {
            input,
            window,
            negative,
            ..
        } => {
            let sign = if *negative { '-' } else { '+' };
            let tensor = format!("{sign}t{}", input.0);
            match window.map(|window| window.kernel) {
                None => tensor,
                Some((1, 1)) => format!("{tensor} some"),
                Some((rows, columns)) => format!("{tensor} pool {rows}x{columns}"),
            }
        }
    };
    let mut text: Vec<String> = layer.terms.iter().map(term).collect();
    if let Some(pool) = &layer.pool {
        text.push(format!("pool {}x{}", pool.kernel.0, pool.kernel.1));
    }
    text.join(" ")
}

fn conv_term(conv: &Conv) -> String {
    let stride = match conv.stride {
        (1, 1) => String::new(),
        (s, _) => format!("/{s}"),
    };
    let groups = match conv.groups {
        1 => String::new(),
        groups => format!(" in {groups}"),
    };
    format!(
        "{}x{}{stride}{groups} t{}",
        conv.kernel.0, conv.kernel.1, conv.input.0
    )
}
