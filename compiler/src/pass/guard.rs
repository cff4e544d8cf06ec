//! Range checks: how many guard bits the garbled circuits get, and what they are proved to find.
//!
//! A bound that was calibrated holds for inputs like those of the calibration, and nothing makes
//! others keep to it. Where a garbled circuit reads such values, it gets guard bits
//! ([`pi_ir::Layer::guard_bits`]): a value that leaves its bound makes the inference end without an
//! answer. Everything else computes on field elements, which are right beyond their bounds too
//! ([`pi_ir::failure::reach_bits`]).
//!
//! `k` guard bits find every value below `2^(k+1) - 1` times the bound; larger ones may look like
//! one that is in range, modulo `2^m`. Interval analysis, given that all guarded values before a
//! layer kept to their bounds (or there was no answer), says where that cannot happen, and where no
//! value can leave its bound at all, so that no guard is needed.

use pi_ir::range::{GuardedRange, guarded};
use pi_ir::{Circuit, Layer, Range, Reveal, Step, Weights, verify};

/// Bits that guard the ReLUs of a layer: one finds whatever is less than three times the bound,
/// and a layer whose values go beyond that has hundreds that do not.
const RELU_BITS: u8 = 1;

/// Bits that guard each logit of a label. There are few logits and nothing behind them, so each
/// must be found by itself: one that is spread over all bits passes with `2^-4`, and all of ten do
/// with `2^-40`.
const LABEL_BITS: u8 = 4;

/// Widest sign circuit and widest adder of an arg max.
const WIDEST: [u8; 2] = [32, 60];

/// What happens where values of a layer leave the bound that its garbled circuit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// No garbled circuit reads them: the layer has no ReLU and no label, and they stay right.
    Harmless,
    /// None can, proved for every input.
    Impossible,
    /// The client is told, proved for every input.
    Announced,
    /// The client is told of values below `2^(k+1) - 1` times the bound; larger ones, of which no
    /// proof says that there are none, may pass.
    Likely,
    /// Nobody is told.
    Silent,
}

/// Sets the guard bits of a circuit, of each layer that needs some; or none at all if no `check` is
/// wanted. A circuit that the verifier refuses is left to it.
pub fn guard(circuit: &mut Circuit, weights: &Weights, check: bool) {
    for layer in &mut circuit.layers {
        layer.guard_bits = if check { most(layer) } else { 0 };
    }
    if !check {
        return;
    }
    // A guard that finds nothing changes no interval, so one analysis serves all layers.
    let escapes = escapes(circuit, weights);
    for (layer, escape) in circuit.layers.iter_mut().zip(escapes) {
        if escape == Escape::Impossible {
            layer.guard_bits = 0;
        }
    }
}

/// As many guard bits as its kind of layer gets, or as there is room for.
fn most(layer: &Layer) -> u8 {
    let own = |wanted: u8, widest: u8| {
        let bits = layer.bound_bits - layer.truncate() + 1;
        wanted.min(widest.saturating_sub(bits))
    };
    match &layer.step {
        Step::Output { .. } => own(LABEL_BITS, WIDEST[1]),
        Step::Activate(_) if layer.has_relu() => own(RELU_BITS, WIDEST[0]),
        Step::Activate(_) => 0,
    }
}

/// What happens where values leave their bounds, layer by layer.
pub fn escapes(circuit: &Circuit, weights: &Weights) -> Vec<Escape> {
    let verified = verify::circuit(circuit.clone()).ok();
    let ranges = verified.and_then(|circuit| guarded(&circuit, weights).ok());
    let unknown = || vec![None; circuit.layers.len()];
    let ranges = ranges.unwrap_or_else(unknown);
    let layers = circuit.layers.iter().zip(ranges);
    layers.map(|(layer, range)| escape(layer, range)).collect()
}

fn escape(layer: &Layer, range: Option<GuardedRange>) -> Escape {
    let reveals_logits = matches!(
        layer.step,
        Step::Output {
            reveal: Reveal::Logits,
            ..
        }
    );
    let is_label = matches!(layer.step, Step::Output { .. }) && !reveals_logits;
    if !layer.has_relu() && !is_label && !reveals_logits {
        return Escape::Harmless;
    }
    let (bound, f) = (1u128 << layer.bound_bits, layer.truncate());
    let largest = range.map(|range| u128::from(range.garbled));
    if largest.is_some_and(|largest| largest <= bound - (1 << f)) {
        return Escape::Impossible;
    }
    // The client sees all logits, and compares them with the bound.
    if reveals_logits {
        return Escape::Announced;
    }
    if layer.guard_bits == 0 {
        return Escape::Silent;
    }
    // Truncated values of 2^m - 2^(w - 1) and more, of which rounding may make one more, look like
    // others.
    let alias = (bound << (layer.guard_bits + 1)) - bound;
    match largest.is_some_and(|largest| largest + (1 << f) < alias) {
        true => Escape::Announced,
        false => Escape::Likely,
    }
}

/// The range checks of a circuit, in words: what is checked, and what is proved of it.
pub fn in_words(circuit: &Circuit, weights: &Weights) -> Vec<String> {
    let escapes = escapes(circuit, weights);
    let count = |wanted: &[Escape]| escapes.iter().filter(|e| wanted.contains(e)).count();
    let garbled = escapes.len() - count(&[Escape::Harmless]);
    let guarded: Vec<String> = (circuit.layers.iter().zip(&escapes))
        .filter(|(_, escape)| matches!(escape, Escape::Announced | Escape::Likely))
        .map(|(layer, _)| match layer.guard_bits {
            0 => format!("{} (by the client)", layer.name),
            bits => format!("{} ({bits} bits)", layer.name),
        })
        .collect();
    let mut lines = Vec::new();
    if count(&[Escape::Silent]) > 0 {
        lines.push(format!(
            "no range check at {} of {garbled} garbled layers: on an input that is unlike the \
             calibration data, the client gets a wrong answer that looks like a right one",
            count(&[Escape::Silent])
        ));
    }
    if !guarded.is_empty() {
        lines.push(format!(
            "out of range, the client gets no answer: checked at {}",
            guarded.join(", ")
        ));
    }
    lines.push(format!(
        "of {garbled} garbled layers, {} are proved never to be out of range, {} to be announced \
         whenever they are; {} are announced below {} times their bounds, and likely beyond",
        count(&[Escape::Impossible]),
        count(&[Escape::Announced]),
        count(&[Escape::Likely]),
        (2u32 << RELU_BITS) - 1,
    ));
    let calibrated = circuit
        .layers
        .iter()
        .zip(&escapes)
        .filter(|(layer, escape)| {
            **escape == Escape::Harmless && matches!(layer.range, Range::Calibrated { .. })
        });
    let others = calibrated.count();
    if let (1.., Some(bits)) = (
        others,
        pi_ir::failure::reach_bits(circuit, crate::emit::FAILURE_LIMIT),
    ) {
        lines.push(format!(
            "{others} layers without ReLUs stay right beyond their bounds: 2^{bits} times, with a \
             failure probability of at most 2^{}",
            crate::emit::FAILURE_LIMIT
        ));
    }
    lines
}
