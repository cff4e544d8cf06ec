//! What each activation site of a graph costs, for a trainer that chooses which ReLUs stay: a JSON
//! file.
//!
//! Bytes and messages are exact, from the protocol's own formulas; seconds are predictions of a
//! model with measured rates, for [`Profile::ALL`], by the formulas of [`crate::cost::latency`].
//!
//! A layer's share leaves out what layers have in common (digests, set-up of OTs, OLE ciphertexts,
//! the request, round trips offline, marks), so shares sum to less than the whole. What *one
//! element* costs is the layer's cost with all elements of that kind, divided by their number; OLE
//! ciphertexts count there.

use crate::compile::Compiled;
use crate::cost::latency::{HOP_S, Line, MARKS_S, Machine, Work};
use crate::cost::report::{Kinds, Traffic};
use crate::fault::Refused;
use pi_ir::{
    Activation, ActivationKind, Circuit, Graph, Kind, Layer, Op, PostTruncation, Range, Step, Term,
};
use pi_protocol::cost::{self, Cost, LayerCost};
use pi_protocol::layout::Packing;
use pi_protocol::linear::{self, Operations};
use serde::Serialize;
use std::collections::BTreeMap;

/// Form of the file. A reader refuses every other number.
pub const VERSION: u32 = 1;

/// A line between the parties.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// Name by which predictions are kept.
    pub name: &'static str,
    /// Bits a second, each way.
    pub bits_per_second: f64,
    /// Seconds of a round trip.
    pub round_trip_s: f64,
    /// Seconds that one exchange delays an inference: the round trip, and the parties' time to
    /// notice messages.
    pub exchange_s: f64,
}

impl Profile {
    /// The lines of the benchmarks. `loopback` is what QUIC reaches there with both parties on two
    /// cores.
    pub const ALL: [Profile; 3] = [
        Profile {
            name: "loopback",
            bits_per_second: 8.0 * Line::LOOPBACK.bytes_per_second,
            round_trip_s: Line::LOOPBACK.round_trip_s,
            exchange_s: HOP_S,
        },
        Profile {
            name: "lan",
            bits_per_second: 1e9,
            round_trip_s: 0.5e-3,
            exchange_s: 0.5e-3 + HOP_S,
        },
        Profile {
            name: "wan",
            bits_per_second: 100e6,
            round_trip_s: 40e-3,
            exchange_s: 40e-3 + HOP_S,
        },
    ];

    fn line(&self) -> Line {
        Line {
            bytes_per_second: self.bits_per_second / 8.0,
            round_trip_s: self.round_trip_s,
        }
    }
}

/// Costs of a network, for a bundle that is prepared alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Costs {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the network.
    pub network: String,
    /// What the widths of sign circuits come from.
    pub calibration: String,
    /// The lines that predictions are for.
    pub profiles: Vec<Profile>,
    /// Elements by kind.
    pub kinds: Kinds,
    /// Multiplications by weights for one input.
    pub multiply_adds: u64,
    /// Once per client key.
    pub setup: Traffic,
    /// Once per bundle.
    pub offline: Traffic,
    /// Once per input.
    pub online: Traffic,
    /// Round trips of an inference.
    pub round_trips: u32,
    /// Seconds in all, by profile.
    pub predicted: BTreeMap<&'static str, Seconds>,
    /// Layer by layer.
    pub layers: Vec<LayerCosts>,
    /// Activations of the graph that are the identity everywhere: they make no layer, and cost
    /// nothing.
    pub empty_sites: Vec<String>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerCosts {
    /// Its name in the circuit.
    pub name: String,
    /// The activation of the graph that it ends with; none for the output, and for sums that later
    /// layers need.
    pub site: Option<String>,
    /// Channels, rows and columns of its result.
    pub shape: [u32; 3],
    /// Elements by kind.
    pub kinds: Kinds,
    /// Width of the sign circuit that a ReLU takes here.
    pub sign_bits: u8,
    /// Multiplications by weights for one input.
    pub multiply_adds: u64,
    /// Per bundle.
    pub offline: Traffic,
    /// Per input.
    pub online: Traffic,
    /// Online round trips that it needs: none without ReLUs, squares and polynomials.
    pub round_trips: u32,
    /// Its share of the seconds, by profile, round trips included.
    pub predicted: BTreeMap<&'static str, Seconds>,
    /// What one element costs, by kind, without the layer's round trip; empty for the output.
    pub element: BTreeMap<&'static str, ElementCosts>,
}

/// One element of a layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ElementCosts {
    /// Bytes per bundle from client to server.
    pub offline_bytes_up: f64,
    /// Bytes per bundle from server to client.
    pub offline_bytes_down: f64,
    /// Bytes per input from client to server.
    pub online_bytes_up: f64,
    /// Bytes per input from server to client.
    pub online_bytes_down: f64,
    /// Seconds by profile.
    pub predicted: BTreeMap<&'static str, Seconds>,
}

/// Predicted seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// To prepare one bundle.
    pub offline_s: f64,
    /// Of one inference.
    pub online_s: f64,
}

/// Kinds by the name they have in the file.
const KINDS: [(&str, Kind); 4] = [
    ("relu", Kind::Relu),
    ("identity", Kind::Identity),
    ("square", Kind::Square),
    ("polynomial", Kind::Polynomial),
];

impl Costs {
    /// Of a compiled graph; `calibration` says what it was calibrated on.
    ///
    /// # Errors
    /// If its circuit or plan is not sound.
    pub fn new(graph: &Graph, compiled: &Compiled, calibration: &str) -> Result<Self, Refused> {
        let refuse = |why: String| Refused::one("", why);
        let circuit = &compiled.circuit;
        let measure = |circuit: &Circuit| {
            cost::circuit(circuit, [&compiled.plan]).map_err(|e| refuse(e.to_string()))
        };
        let whole = measure(circuit)?;
        let packing = Packing::new(circuit, &compiled.plan).map_err(|f| refuse(f.join("; ")))?;
        let linear = PerLayer::new(circuit, compiled, &packing);
        let sites = sites(graph, circuit)?;
        let variants = (KINDS.iter())
            .map(|&(name, kind)| Ok((name, measure(&uniform(circuit, kind))?)))
            .collect::<Result<Vec<_>, Refused>>()?;
        // What layers share grows with elements of quadratic kinds only: their OLE ciphertexts.
        let each = |variant: &Cost| {
            let (own, none) = (shared(&linear, variant), shared(&linear, &variants[1].1));
            let elements = (linear.elements as f64).max(1.0);
            [(own.0 - none.0) / elements, (own.1 - none.1) / elements]
        };
        let ole: Vec<[f64; 2]> = (variants.iter())
            .map(|(name, variant)| match *name {
                "square" | "polynomial" => each(variant),
                _ => [0.0; 2],
            })
            .collect();
        let layers: Vec<LayerCosts> = (0..circuit.layers.len())
            .map(|index| {
                let layer = &circuit.layers[index];
                let own = &whole.per_layer[index];
                let offline = linear.offline(index, own);
                let work = linear.work(index, own);
                let count = layer.shape.len() as f64;
                let elements = variants.iter().zip(&ole).map(|((name, variant), ole)| {
                    let costs = &variant.per_layer[index];
                    (
                        *name,
                        element(costs, linear.answer_bytes[index], *ole, count),
                    )
                });
                let output = matches!(layer.step, Step::Output { .. });
                LayerCosts {
                    name: layer.name.clone(),
                    site: sites.of_layer[index].clone(),
                    shape: [layer.shape.c, layer.shape.h, layer.shape.w],
                    kinds: Kinds::of(layer),
                    sign_bits: layer.sign_bits().unwrap_or(0),
                    multiply_adds: linear.multiply_adds[index],
                    offline,
                    online: own.online.into(),
                    round_trips: own.online.messages / 2,
                    predicted: predict(
                        &offline,
                        0,
                        &own.online.into(),
                        own.online.messages / 2,
                        &work,
                    ),
                    element: if output {
                        BTreeMap::new()
                    } else {
                        elements.collect()
                    },
                }
            })
            .collect();
        let kinds = layers
            .iter()
            .fold(Kinds::default(), |sum, layer| sum.plus(layer.kinds));
        let mut work = Work::default();
        for (index, layer) in whole.per_layer.iter().enumerate() {
            work += &linear.work(index, layer);
        }
        let (offline, online) = (Traffic::from(whole.offline), Traffic::from(whole.online));
        let mut predicted = predict(
            &offline,
            Cost::offline_round_trips(1),
            &online,
            whole.online_round_trips(),
            &work,
        );
        predicted
            .values_mut()
            .for_each(|seconds| seconds.online_s += MARKS_S);
        Ok(Costs {
            version: VERSION,
            network: circuit.name.clone(),
            calibration: calibration.into(),
            profiles: Profile::ALL.to_vec(),
            kinds,
            multiply_adds: linear.multiply_adds.iter().sum(),
            setup: whole.setup.into(),
            offline,
            online,
            round_trips: whole.online_round_trips(),
            predicted,
            layers,
            empty_sites: sites.empty,
        })
    }
}

/// Linear work and traffic, by layer: an upload counts with the first layer that reads it.
struct PerLayer {
    operations: Vec<Operations>,
    convolutions: Vec<usize>,
    upload_bytes: Vec<u64>,
    answer_bytes: Vec<u64>,
    multiply_adds: Vec<u64>,
    elements: usize,
}

impl PerLayer {
    fn new(circuit: &Circuit, compiled: &Compiled, packing: &Packing) -> Self {
        let (plan, linear, layers) = (&compiled.plan, linear::cost(packing), circuit.layers.len());
        let mut all = PerLayer {
            operations: vec![Operations::default(); layers],
            convolutions: vec![0; layers],
            upload_bytes: vec![0; layers],
            answer_bytes: vec![0; layers],
            multiply_adds: vec![0; layers],
            elements: 0,
        };
        let mut first = vec![true; plan.uploads.len()];
        for (index, answer) in plan.answers.iter().enumerate() {
            let (layer, upload) = (answer.layer as usize, answer.upload as usize);
            all.operations[layer] += linear.answers[index];
            all.convolutions[layer] += 1;
            all.answer_bytes[layer] += linear.answer_bytes[index] as u64;
            if std::mem::take(&mut first[upload]) {
                all.operations[layer] += linear.uploads[upload];
                all.upload_bytes[layer] += linear.upload_bytes[upload] as u64;
            }
        }
        for (index, layer) in circuit.layers.iter().enumerate() {
            all.multiply_adds[index] = multiply_adds(circuit, layer);
            if matches!(layer.step, Step::Activate(_)) {
                all.elements += layer.shape.len();
            }
        }
        all
    }

    /// A layer's work in a bundle prepared alone.
    fn work(&self, index: usize, own: &LayerCost) -> Work {
        let (operations, convolutions) = (&self.operations[index], self.convolutions[index]);
        let activation = Work::of_activation(own);
        let mut work = activation.with_linear(operations, convolutions, 1.0, &Machine::MEASURED);
        work.multiply_adds = self.multiply_adds[index] as f64;
        work
    }

    /// A layer's traffic with its uploads.
    fn offline(&self, index: usize, own: &LayerCost) -> Traffic {
        let mut traffic = Traffic::from(own.offline);
        traffic.bytes_up += self.upload_bytes[index];
        traffic
    }
}

fn multiply_adds(circuit: &Circuit, layer: &Layer) -> u64 {
    let of_term = |term: &Term| match term {
        Term::Conv(conv) => {
            let input = circuit.tensor_shape(conv.input);
            let shape = conv.output(input).expect("the circuit was verified");
            conv.weight_count(input) as u64 * u64::from(shape.h) * u64::from(shape.w)
        }
        Term::Residual { .. } => 0,
    };
    layer.terms.iter().map(of_term).sum()
}

/// Offline bytes that belong to no layer: up, down.
fn shared(linear: &PerLayer, cost: &Cost) -> (f64, f64) {
    let uploads: u64 = linear.upload_bytes.iter().sum();
    let (up, down) = cost
        .per_layer
        .iter()
        .fold((uploads, 0), |(up, down), layer| {
            (up + layer.offline.up, down + layer.offline.down)
        });
    (
        cost.offline.up as f64 - up as f64,
        cost.offline.down as f64 - down as f64,
    )
}

/// The same circuit with all elements of one kind.
fn uniform(circuit: &Circuit, kind: Kind) -> Circuit {
    // Costs depend on neither.
    let post = Some(PostTruncation {
        truncate: 0,
        bound_bits: crate::pass::quantise::POLYNOMIAL_BOUND_BITS,
        range: Range::Proved,
    });
    let mut circuit = circuit.clone();
    for layer in &mut circuit.layers {
        if let Step::Activate(Activation {
            kinds,
            square,
            polynomial,
            ..
        }) = &mut layer.step
        {
            kinds.fill(kind);
            *square = square.or(post);
            *polynomial = polynomial.or(post);
        }
    }
    circuit
}

fn element(costs: &LayerCost, answer_bytes: u64, extra: [f64; 2], count: f64) -> ElementCosts {
    // The layer without linear work: what is left is proportional to its elements.
    let mut alone = costs.clone();
    alone.offline.down -= answer_bytes;
    let work = Work::of_activation(&alone);
    let (offline, online) = (Traffic::from(alone.offline), Traffic::from(alone.online));
    let mut predicted = predict(&offline, 0, &online, 0, &work);
    for profile in Profile::ALL {
        let seconds = predicted.entry(profile.name).or_default();
        let shared = 8.0 * (extra[0] + extra[1]) / profile.bits_per_second;
        seconds.offline_s = seconds.offline_s / count + shared;
        seconds.online_s /= count;
    }
    ElementCosts {
        offline_bytes_up: offline.bytes_up as f64 / count + extra[0],
        offline_bytes_down: offline.bytes_down as f64 / count + extra[1],
        online_bytes_up: online.bytes_up as f64 / count,
        online_bytes_down: online.bytes_down as f64 / count,
        predicted,
    }
}

/// The activation node that each layer ends with.
struct Sites {
    of_layer: Vec<Option<String>>,
    empty: Vec<String>,
}

/// Lowering makes one layer of each activation that is not the identity everywhere, in the graph's
/// order; its other layers are identities.
fn sites(graph: &Graph, circuit: &Circuit) -> Result<Sites, Refused> {
    let activations = graph.nodes.iter().filter_map(|node| match &node.op {
        Op::Activation { kinds, .. } => Some((
            &node.name,
            kinds.iter().all(|k| *k == ActivationKind::Identity),
        )),
        _ => None,
    });
    let (empty, filled): (Vec<_>, Vec<_>) = activations.partition(|(_, empty)| *empty);
    let mut filled = filled.into_iter();
    let active = |step: &Step| matches!(step, Step::Activate(a) if a.kinds.iter().any(|k| *k != Kind::Identity));
    let of_layer: Vec<Option<String>> = (circuit.layers.iter())
        .map(|layer| match active(&layer.step) {
            true => filled.next().map(|(name, _)| name.clone()),
            false => None,
        })
        .collect();
    let layers = circuit
        .layers
        .iter()
        .filter(|layer| active(&layer.step))
        .count();
    if filled.next().is_some() || of_layer.iter().flatten().count() != layers {
        return Err(Refused::one(
            "",
            format!(
                "{layers} layers have an activation, which is not as many as the graph: some of its nodes lead nowhere"
            ),
        ));
    }
    Ok(Sites {
        of_layer,
        empty: empty.into_iter().map(|(name, _)| name.clone()).collect(),
    })
}

fn predict(
    offline: &Traffic,
    offline_trips: u32,
    online: &Traffic,
    online_trips: u32,
    work: &Work,
) -> BTreeMap<&'static str, Seconds> {
    let bytes = |traffic: &Traffic| (traffic.bytes_up + traffic.bytes_down) as f64;
    let on = |profile: &Profile| {
        let (line, machine) = (profile.line(), &Machine::MEASURED);
        Seconds {
            offline_s: work.offline_s(bytes(offline), offline_trips.into(), &line, machine),
            online_s: work.online_s(bytes(online), online_trips.into(), &line, machine),
        }
    };
    Profile::ALL
        .iter()
        .map(|profile| (profile.name, on(profile)))
        .collect()
}
