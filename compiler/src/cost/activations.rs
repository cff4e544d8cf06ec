//! The price of each activation site of a graph, for a trainer that chooses which ReLUs stay:
//! computes the [`Costs`] of [`pi_ir::costs`].
//!
//! Bytes and messages are exact, from the protocol's own formulas; seconds are predictions of a
//! model with measured rates, for three lines, by the formulas of [`crate::cost::latency`].

use crate::compile::Compiled;
use crate::cost::latency::{Machine, Work};
use crate::cost::per_layer::{LINES, PerLayer, predict, predict_whole, profile, profiles};
use crate::fault::Refused;
use pi_ir::costs::{Costs, ElementCosts, LayerCosts, VERSION};
use pi_ir::count::layer_activations;
use pi_ir::{
    Activation, ActivationKind, Circuit, Graph, Kind, Layer, Op, PostTruncation, Range, Step,
    Verified, verify,
};
use pi_machine::Profile;
use pi_protocol::cost::{self, Cost, LayerCost};
use pi_protocol::layout::Packing;
use std::collections::BTreeMap;

/// Kinds by the name they have in the file.
const KINDS: [(&str, Kind); 4] = [
    ("relu", Kind::Relu),
    ("identity", Kind::Identity),
    ("square", Kind::Square),
    ("polynomial", Kind::Polynomial),
];

/// Costs of a compiled graph on a machine; `calibration` describes the images it was calibrated on.
///
/// # Errors
/// If its circuit or plan is not sound.
pub fn costs(
    graph: &Graph,
    compiled: &Compiled,
    calibration: &str,
    machine: &Profile,
) -> Result<Costs, Refused> {
    let machine = &Machine::of_two_cores(machine);
    let refuse = |why: String| Refused::one("", why);
    let circuit = &compiled.circuit;
    let measure = |circuit: &Verified<Circuit>| {
        cost::circuit(circuit, [&compiled.plan]).map_err(|e| refuse(e.to_string()))
    };
    let whole = measure(circuit)?;
    let packing = Packing::new(circuit, &compiled.plan).map_err(|f| refuse(f.join("; ")))?;
    let linear = PerLayer::new(circuit, &compiled.plan, &packing);
    let sites = sites(graph, circuit)?;
    let variants = (KINDS.iter())
        .map(|&(name, kind)| {
            let variant = verify::circuit(uniform(circuit, kind)).map_err(Refused::from)?;
            Ok((name, measure(&variant)?))
        })
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
    let mut layers = Vec::with_capacity(circuit.layers.len());
    let mut work = Work::default();
    for (index, (layer, site)) in circuit.layers.iter().zip(sites.of_layer).enumerate() {
        let own = &whole.per_layer[index];
        let count = layer.shape.len() as f64;
        let elements = variants.iter().zip(&ole).map(|((name, variant), ole)| {
            let costs = &variant.per_layer[index];
            let costs = element(costs, linear.answer_bytes[index], *ole, count, machine);
            ((*name).to_owned(), costs)
        });
        let element = match layer.step {
            Step::Activate(_) => elements.collect(),
            Step::Output { .. } => BTreeMap::new(),
        };
        layers.push(layer_costs(
            (index, layer),
            own,
            &linear,
            site,
            element,
            machine,
        ));
        work += &linear.work(index, own, machine);
    }
    let (offline, online) = (whole.offline, whole.online);
    let round_trips = whole.online_round_trips();
    Ok(Costs {
        version: VERSION,
        network: circuit.name.clone(),
        calibration: calibration.into(),
        profiles: profiles(),
        kinds: layers.iter().map(|layer| layer.kinds).sum(),
        multiply_adds: linear.multiply_adds.iter().sum(),
        setup: whole.setup,
        offline,
        online,
        round_trips,
        predicted: predict_whole(&whole, &work, machine),
        layers,
        empty_sites: sites.empty,
    })
}

fn layer_costs(
    (index, layer): (usize, &Layer),
    own: &LayerCost,
    linear: &PerLayer,
    site: Option<String>,
    element: BTreeMap<String, ElementCosts>,
    machine: &Machine<'_>,
) -> LayerCosts {
    let (offline, online) = (linear.offline(index, own), own.online);
    let round_trips = own.online_round_trips();
    let work = linear.work(index, own, machine);
    LayerCosts {
        name: layer.name.clone(),
        site,
        shape: [layer.shape.c, layer.shape.h, layer.shape.w],
        kinds: layer_activations(layer),
        sign_bits: layer.sign_bits().unwrap_or(0),
        multiply_adds: linear.multiply_adds[index],
        offline,
        online,
        round_trips,
        // Round trips offline are shared by all layers.
        predicted: predict((&offline, 0), (&online, round_trips), &work, machine),
        element,
    }
}

/// Offline bytes that belong to no layer: up, down.
fn shared(linear: &PerLayer, cost: &Cost) -> (f64, f64) {
    let uploads: u64 = linear.upload_bytes.iter().sum();
    let (up, down) = cost
        .per_layer
        .iter()
        .fold((uploads, 0), |(up, down), layer| {
            (up + layer.offline.bytes_up, down + layer.offline.bytes_down)
        });
    (
        cost.offline.bytes_up as f64 - up as f64,
        cost.offline.bytes_down as f64 - down as f64,
    )
}

/// Returns the same circuit with all elements of one kind.
fn uniform(circuit: &Circuit, kind: Kind) -> Circuit {
    // Costs depend on neither.
    let post = Some(PostTruncation {
        truncate: 0,
        bound_bits: crate::pass::quantise::POLYNOMIAL_BOUND_BITS,
        range: Range::Proved,
    });
    let mut circuit = circuit.clone();
    let sites = circuit.layers.iter().filter(|layer| layer.has_relu());
    let guard_bits = sites.map(|layer| layer.guard_bits).max().unwrap_or(0);
    for layer in &mut circuit.layers {
        let has_relu = layer.has_relu();
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
            layer.guard_bits = match kind {
                Kind::Relu if has_relu => layer.guard_bits,
                // As the first ReLU of the layer would have.
                Kind::Relu => guard_bits,
                _ => 0,
            };
        }
    }
    circuit
}

fn element(
    costs: &LayerCost,
    answer_bytes: u64,
    extra: [f64; 2],
    count: f64,
    machine: &Machine<'_>,
) -> ElementCosts {
    // The layer without linear work: what is left is proportional to its elements.
    let mut alone = costs.clone();
    alone.offline.bytes_down -= answer_bytes;
    let work = Work::of_activation(&alone);
    let (offline, online) = (alone.offline, alone.online);
    let mut predicted = predict((&offline, 0), (&online, 0), &work, machine);
    for (name, line) in LINES {
        let seconds = predicted.entry(name.into()).or_default();
        let shared = 8.0 * (extra[0] + extra[1]) / profile(name, &line).bits_per_second;
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
    let active = |step: &Step| match step {
        Step::Activate(activation) => activation.kinds.iter().any(|k| *k != Kind::Identity),
        Step::Output { .. } => false,
    };
    // What the client computes itself costs nothing either.
    let public = circuit.prefix.iter().flat_map(|prefix| &prefix.layers);
    let public = public.filter(|layer| active(&layer.step)).count();
    let free = filled.by_ref().take(public).map(|(name, _)| name.clone());
    let free: Vec<String> = free.collect();
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
                "{layers} layers have an activation, which is not as many as the graph has: \
                 some of its nodes lead nowhere"
            ),
        ));
    }
    Ok(Sites {
        of_layer,
        empty: (empty.into_iter().map(|(name, _)| name.clone()))
            .chain(free)
            .collect(),
    })
}
