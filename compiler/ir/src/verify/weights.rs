//! Faults of weights for a circuit: the server's, or those of its public prefix.

use super::{Fault, Faults, Verified};
use crate::circuit::{Circuit, Kind, Layer, Layers, Step, Term};
use crate::weights::{LayerWeights, Weights};

/// Every fault of the weights for this circuit; empty if they fit it.
pub fn weights(circuit: &Verified<Circuit>, weights: &Weights) -> Vec<Fault> {
    let mut faults = Faults::default();
    check(&mut faults, "", circuit.as_layers(), weights);
    faults.0
}

/// Adds every fault of the weights for layers without faults; places start with `part`.
pub(super) fn check(faults: &mut Faults, part: &str, layers: Layers<'_>, weights: &Weights) {
    let place = format!("{part}weights");
    let expected = layers.layers.len();
    faults.length(&place, "layers", expected, weights.layers.len());
    for (index, (layer, weights)) in layers.layers.iter().zip(&weights.layers).enumerate() {
        let place = format!("{part}layer {index} ({})", layer.name);
        check_layer(faults, &place, layers, layer, weights);
    }
}

fn check_layer(
    faults: &mut Faults,
    place: &str,
    layers: Layers<'_>,
    layer: &Layer,
    weights: &LayerWeights,
) {
    let convs: Vec<_> = layer
        .terms
        .iter()
        .filter_map(|term| match term {
            Term::Conv(conv) => Some(conv),
            Term::Residual { .. } => None,
        })
        .collect();
    faults.length(place, "kernels", convs.len(), weights.kernels.len());
    for (index, (conv, kernel)) in convs.iter().zip(&weights.kernels).enumerate() {
        let place = &format!("{place}, kernel {index}");
        let count = conv.weight_count(layers.tensor_shape(conv.input));
        faults.length(place, "weights", count, kernel.len());
        // Magnitudes stay private: the message names the bound only.
        let limit = 1u16 << conv.weight_bits;
        let within = kernel.iter().all(|w| w.unsigned_abs() < limit);
        faults.require(within, place, || {
            format!("a weight reaches 2^{}, its public bound", conv.weight_bits)
        });
    }
    let channels = layer.shape.c as usize;
    faults.length(place, "biases", channels, weights.bias.len());
    if !weights.element_bias.is_empty() {
        let (elements, found) = (layer.shape.len(), weights.element_bias.len());
        faults.length(place, "biases by element", elements, found);
    }
    // One bias may exceed the layer's bound, for another or a term may cancel it.
    let mut biases = weights.bias.iter().chain(&weights.element_bias);
    let within = |v: i64| v.unsigned_abs() <= 1 << 58;
    let all_within = biases.all(|&bias| within(bias));
    faults.require(all_within, place, || "a bias exceeds 2^58".into());
    let polynomial = match &layer.step {
        Step::Activate(a) => a.kinds.contains(&Kind::Polynomial),
        Step::Output { .. } => false,
    };
    let expected = if polynomial { channels } else { 0 };
    faults.length(place, "polynomials", expected, weights.polynomials.len());
    let all_within = weights
        .polynomials
        .iter()
        .all(|p| within(p.a) && within(p.b) && within(p.k));
    faults.require(all_within, place, || {
        "a polynomial coefficient exceeds 2^58".into()
    });
}
