//! What each layer costs of a bundle that is prepared alone: its share of the linear layers'
//! operations and traffic, and the seconds of its work on each line.

use crate::cost::latency::{HOP_S, Line, MARKS_S, Machine, Work};
use crate::cost::processor::Effort;
use pi_ir::costs::{Profile, Seconds, Traffic};
use pi_ir::count::layer_multiply_adds;
use pi_ir::{Circuit, Plan, Step};
use pi_protocol::cost::{Cost, LayerCost};
use pi_protocol::layout::Packing;
use pi_protocol::linear::{self, Operations};
use std::collections::BTreeMap;

/// The lines that predictions are for, those of the benchmarks. On loopback, QUIC reaches this
/// bandwidth with both parties on two cores.
pub(crate) const LINES: [(&str, Line); 3] = [
    ("loopback", Line::LOOPBACK),
    ("lan", Line::LAN),
    ("wan", Line::WAN),
];

/// The lines as they are reported.
pub(crate) fn profiles() -> Vec<Profile> {
    LINES.map(|(name, line)| profile(name, &line)).into()
}

pub(crate) fn profile(name: &str, line: &Line) -> Profile {
    Profile {
        name: name.into(),
        bits_per_second: 8.0 * line.bytes_per_second,
        round_trip_s: line.round_trip_s,
        exchange_s: line.round_trip_s + HOP_S,
    }
}

/// Linear work and traffic, by layer: an upload counts with the first layer that reads it.
pub(crate) struct PerLayer {
    pub(crate) operations: Vec<Operations>,
    pub(crate) convolutions: Vec<usize>,
    pub(crate) upload_bytes: Vec<u64>,
    pub(crate) answer_bytes: Vec<u64>,
    pub(crate) multiply_adds: Vec<u64>,
    /// Elements of all activations.
    pub(crate) elements: usize,
}

impl PerLayer {
    /// The shares of a circuit's layers by the plan for one bundle and its packing.
    pub(crate) fn new(circuit: &Circuit, plan: &Plan, packing: &Packing) -> Self {
        let (linear, layers) = (linear::cost(packing), circuit.layers.len());
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
            all.multiply_adds[index] = layer_multiply_adds(circuit.as_layers(), layer);
            if matches!(layer.step, Step::Activate(_)) {
                all.elements += layer.shape.len();
            }
        }
        all
    }

    /// A layer's work in a bundle prepared alone.
    pub(crate) fn work(&self, index: usize, own: &LayerCost, machine: &Machine<'_>) -> Work {
        let (operations, convolutions) = (&self.operations[index], self.convolutions[index]);
        let activation = Work::of_activation(own);
        let mut work = activation.with_linear(operations, convolutions, 1.0, machine);
        work.multiply_adds = self.multiply_adds[index] as f64;
        work
    }

    /// What the parties do for a layer, in a bundle prepared alone.
    pub(crate) fn effort(&self, index: usize, own: &LayerCost) -> Effort {
        Effort {
            operations: self.operations[index],
            convolutions: self.convolutions[index],
            multiply_adds: self.multiply_adds[index],
            ..Effort::of_layer(own)
        }
        .with_traffic(&self.offline(index, own), &own.online)
    }

    /// A layer's traffic with its uploads.
    pub(crate) fn offline(&self, index: usize, own: &LayerCost) -> Traffic {
        let mut traffic = own.offline;
        traffic.bytes_up += self.upload_bytes[index];
        traffic
    }
}

/// Seconds by profile of a bundle prepared alone and of an inference, durable marks included.
pub(crate) fn predict_whole(
    cost: &Cost,
    work: &Work,
    machine: &Machine<'_>,
) -> BTreeMap<String, Seconds> {
    let mut predicted = predict(
        (&cost.offline, cost.offline_round_trips(1)),
        (&cost.online, cost.online_round_trips()),
        work,
        machine,
    );
    for seconds in predicted.values_mut() {
        seconds.online_s += MARKS_S;
    }
    predicted
}

/// Seconds by profile, from the traffic and the round trips of each phase.
pub(crate) fn predict(
    (offline, offline_trips): (&Traffic, u32),
    (online, online_trips): (&Traffic, u32),
    work: &Work,
    machine: &Machine<'_>,
) -> BTreeMap<String, Seconds> {
    let bytes = |traffic: &Traffic| (traffic.bytes_up + traffic.bytes_down) as f64;
    let on = |line: &Line| Seconds {
        offline_s: work.offline_s(bytes(offline), offline_trips.into(), line, machine),
        online_s: work.online_s(bytes(online), online_trips.into(), line, machine),
    };
    let predictions = LINES.iter().map(|(name, line)| ((*name).into(), on(line)));
    predictions.collect()
}
