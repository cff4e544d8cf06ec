//! A compiled circuit in figures, by the cost formulas that tests hold equal to counted bytes.

use anyhow::Result;
use pi_ir::count::circuit_multiply_adds;
use pi_ir::{Artifact, Circuit};
use pi_protocol::cost::{self, Cost};
use pi_protocol::layout::Packing;
use pi_protocol::linear::{self, Operations, Rates};
use serde::Serialize;

/// Size of a circuit.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CircuitFigures {
    /// Name of the circuit.
    pub(crate) name: String,
    /// ReLUs.
    pub(crate) relus: usize,
    /// Polynomials.
    pub(crate) polynomials: usize,
    /// Identity elements.
    pub(crate) identities: usize,
    /// Multiply-adds of all convolutions.
    pub(crate) multiply_adds: u64,
    /// AND gates of all sign circuits.
    pub(crate) and_gates: u64,
    /// `log2` of the probability that an inference loses a value.
    pub(crate) failure_log2: f64,
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
    /// reported for each.
    upload_bytes: usize,
    answer_bytes: usize,
    products: u64,
    key_switches: u64,
    output_ciphertexts: u64,
    multiply_adds: u64,
    /// CPU seconds of the server in the linear layers of a single bundle, by the cost formulas.
    predicted_linear_server_s: f64,
}

/// The figures of a circuit.
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

/// The figures of every layer.
///
/// # Errors
/// If the plan does not fit its circuit.
pub(crate) fn layer_figures(
    artifact: &Artifact,
    cost: &Cost,
    rates: &Rates,
) -> Result<Vec<LayerFigures>> {
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
            predicted_linear_server_s: operations.server_micros(rates) * 1e-6,
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

/// The plan of the largest batch that is used when this many bundles are prepared at once.
pub(crate) fn packed(artifact: &Artifact, bundles: u32) -> &pi_ir::Plan {
    let plans = artifact.plans();
    plans
        .filter(|plan| plan.bundles <= bundles)
        .last()
        .unwrap_or(&artifact.plan)
}

/// Operations of the linear layers of a plan.
///
/// # Errors
/// If the plan does not fit its circuit.
pub(crate) fn operations(artifact: &Artifact, plan: &pi_ir::Plan) -> Result<Operations> {
    let packing = Packing::new(&artifact.circuit, plan).map_err(faults)?;
    Ok(linear::cost(&packing).operations())
}

/// The server's CPU seconds in the linear layers of one bundle, by the cost formulas.
///
/// # Errors
/// If the plan does not fit its circuit.
pub(crate) fn predicted_server_seconds(
    artifact: &Artifact,
    plan: &pi_ir::Plan,
    rates: &Rates,
) -> Result<f64> {
    let micros = operations(artifact, plan)?.server_micros(rates);
    Ok(micros * 1e-6 / f64::from(plan.bundles))
}

fn faults(faults: Vec<String>) -> anyhow::Error {
    anyhow::anyhow!("the plan does not fit its circuit: {}", faults.join("; "))
}
