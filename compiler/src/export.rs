//! The scales of a compiled network as JSON, for quantisation-aware training: whoever trains on
//! rounds tensors to these units in the forward pass, and the compiler finds the network as it was
//! trained.

use crate::compile::Compiled;
use pi_ir::{Layer, Step};
use serde::Serialize;

/// All scales of a network, of numbers as the float graph has them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportedScales {
    /// Name of the network.
    pub name: String,
    /// Distance of two neighbouring values of the normalised input.
    pub input_unit: f64,
    /// In order, the public prefix left out.
    pub layers: Vec<ExportedLayer>,
}

/// The scales of one layer. Channels have units of their own, because equalisation gives each of
/// them a gain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportedLayer {
    /// Name of the node that makes the sum.
    pub name: String,
    /// Bits of its weights, the sign included.
    pub weight_bits: u8,
    /// By channel: distance of two neighbouring sums, before the activation.
    pub sum_units: Vec<f64>,
    /// By channel: distance of two neighbouring results; of sums at the output.
    pub units: Vec<f64>,
    /// By channel: magnitude that sums must not exceed.
    pub bounds: Vec<f64>,
}

/// The scales of a network.
pub fn export(compiled: &Compiled) -> ExportedScales {
    let circuit = &compiled.circuit;
    let public = compiled.real.public;
    let layer = |(index, layer): (usize, &Layer)| {
        let (sum, result) = match &layer.step {
            Step::Activate(a) => {
                let result = i32::from(a.frac_bits);
                (result + i32::from(a.truncate), result)
            }
            Step::Output { frac_bits, .. } => ((*frac_bits).into(), (*frac_bits).into()),
        };
        let sums = &compiled.gains.sums[public + index];
        let tensors = compiled.gains.tensors.get(public + index + 1);
        let over =
            |unit: i32, gains: &[f64]| gains.iter().map(|g| f64::from(unit).exp2() / g).collect();
        ExportedLayer {
            name: layer.name.clone(),
            weight_bits: compiled.scales.weight_bits[public + index],
            sum_units: over(-sum, sums),
            units: over(-result, tensors.unwrap_or(sums)),
            bounds: over(i32::from(layer.bound_bits) - sum, sums),
        }
    };
    ExportedScales {
        name: circuit.name.clone(),
        input_unit: (-f64::from(circuit.image_frac_bits())).exp2(),
        layers: circuit.layers.iter().enumerate().map(layer).collect(),
    }
}
