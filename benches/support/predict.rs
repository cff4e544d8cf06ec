//! The time that an inference should take by the compiler's model ([`pi_compiler::cost::latency`]),
//! on the machine of a profile.

use super::circuit::{circuit_figures, operations, packed};
use super::link::Link;
use anyhow::Result;
use pi_compiler::cost::latency::{Line, MARKS_S, Machine, Work};
use pi_ir::Artifact;
use pi_machine::Profile;
use pi_protocol::cost::{self, Traffic};
use serde::Serialize;

/// Predictions of the model.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Predicted {
    /// Seconds to prepare one bundle.
    pub(crate) offline_s: f64,
    /// Seconds of one inference.
    pub(crate) online_s: f64,
}

/// Applies the model to a circuit on a line.
///
/// # Errors
/// If the plan does not fit its circuit.
pub(crate) fn predict(
    artifact: &Artifact,
    profile: &Profile,
    link: Option<Link>,
    cores: f64,
    at_once: u32,
) -> Result<Predicted> {
    let cost = cost::circuit(&artifact.circuit, artifact.plans())?;
    let plan = packed(artifact, at_once);
    let operations = operations(artifact, plan)?;
    let bundles = f64::from(plan.bundles);
    let batch = cost
        .batches
        .iter()
        .find(|batch| batch.bundles == plan.bundles as usize);
    let offline = batch.map_or(cost.offline, |batch| batch.offline);
    let line = link.map_or(Line::LOOPBACK, |link| Line {
        bytes_per_second: link.bits_per_second / 8.0,
        round_trip_s: link.round_trip_s,
    });
    let machine = Machine { profile, cores };
    let mut activations = Work::default();
    for layer in &cost.per_layer {
        activations += &Work::of_activation(layer);
    }
    let mut work = activations.with_linear(&operations, plan.answers.len(), bundles, &machine);
    work.multiply_adds = circuit_figures(artifact, &cost).multiply_adds as f64;
    let bytes = |traffic: &Traffic| (traffic.bytes_up + traffic.bytes_down) as f64;
    let trips = f64::from(cost.offline_round_trips(plan.bundles)) / bundles;
    let online_trips = f64::from(cost.online_round_trips());
    Ok(Predicted {
        offline_s: work.offline_s(bytes(&offline) / bundles, trips, &line, &machine),
        online_s: MARKS_S + work.online_s(bytes(&cost.online), online_trips, &line, &machine),
    })
}
