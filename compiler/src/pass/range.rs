//! Bounds on every value before a truncation, and from them the widths of sign circuits.
//!
//! Interval analysis ([`pi_ir::range`]) gives bounds that hold for every image; they grow with each
//! layer. Where one is too wide to use, the largest value seen on calibration data, with head room
//! above it, replaces it, and the circuit marks the bound as calibrated. A proof for a later layer
//! assumes the bounds of the calibrated layers before it.

use crate::fault::{Fault, Refused};
use crate::pass::quantise::{POLYNOMIAL_BOUND_BITS, Precision, WIDEST};
use pi_ir::interpret::{Interpreter, quantise};
use pi_ir::range::{LayerRange, analyse, bound_bits};
use pi_ir::{Circuit, Input, Layer, PostTruncation, Range, Step, Weights, verify};
use rayon::prelude::*;

/// Largest `log2 B` accepted for the sake of a proof: 2^20 elements then fail with probability
/// 2^-11.
const PROVED_BOUND_BITS: u8 = 28;

/// Sets every bound of a public prefix, if the circuit has one, by interval analysis alone: no sign
/// circuit and no share depends on these bounds, so they may be as wide as a proof needs.
///
/// # Errors
/// If a value may leave the field; by layer.
pub fn bound_prefix(circuit: &mut Circuit) -> Result<(), Refused> {
    let unbounded = |e| format!("in the public prefix, {e}; or end the prefix at an earlier node");
    let ranges = pi_ir::range::prefix(circuit).map_err(|e| Refused::one("", unbounded(e)))?;
    let layers = circuit.prefix.iter_mut().flat_map(|p| &mut p.layers);
    let mut faults = Vec::new();
    for (layer, range) in layers.zip(&ranges) {
        let truncate = layer.truncate();
        let mut bounds = vec![(&mut layer.bound_bits, range.sum, truncate)];
        if let Step::Activate(activation) = &mut layer.step {
            let posts = [
                (&mut activation.square, range.square),
                (&mut activation.polynomial, range.polynomial),
            ];
            bounds.extend(posts.into_iter().filter_map(|(post, largest)| {
                let post = post.as_mut()?;
                Some((&mut post.bound_bits, largest, post.truncate))
            }));
        }
        for (bound, largest, truncate) in bounds {
            *bound = bound_bits(largest, truncate);
            if *bound > WIDEST {
                faults.push(Fault::new(
                    &layer.name,
                    format!(
                        "values of the public prefix may reach 2^{bound}, beyond 2^{WIDEST}: end \
                         the prefix at an earlier node"
                    ),
                ));
            }
        }
    }
    Refused::unless_empty(faults, ())
}

/// Sets every bound of a circuit's private layers from its weights and the calibration data.
///
/// # Errors
/// If an input does not fit the circuit, or a value leaves the field.
pub fn bound(
    circuit: &mut Circuit,
    weights: &Weights,
    inputs: &[Input],
    precision: &Precision,
) -> Result<(), Refused> {
    let seen = largest_seen(circuit, weights, inputs)?;
    for (layer, seen) in circuit.layers.iter_mut().zip(&seen) {
        calibrate(layer, seen, precision);
    }
    // A layer that gets a proof loses the calibrated bound that later layers relied on, so their
    // proofs are made anew; one that fails then goes back to calibration for good. Each round
    // settles at least one layer.
    let mut refused = vec![false; circuit.layers.len()];
    loop {
        // Interval analysis relies on a verified circuit, and this one changes from round to round.
        let verified = verify::circuit(circuit.clone()).ok();
        let Some(ranges) = verified.and_then(|circuit| analyse(&circuit, weights).ok()) else {
            // Some value has no bound below 2^62, or the bounds seen are too wide for a circuit:
            // without proofs, all layers keep what was seen, and [`crate::emit`] has the last word.
            for (layer, seen) in circuit.layers.iter_mut().zip(&seen) {
                calibrate(layer, seen, precision);
            }
            return Ok(());
        };
        let before = circuit.clone();
        for (index, layer) in circuit.layers.iter_mut().enumerate() {
            let was_proved = layer.range == Range::Proved;
            if !refused[index] && !prove(layer, &ranges[index], precision) && was_proved {
                refused[index] = true;
                calibrate(layer, &seen[index], precision);
            }
            prove_posts(layer, &ranges[index], &seen[index], precision);
        }
        if *circuit == before {
            return Ok(());
        }
    }
}

/// Largest magnitudes of one layer on calibration data.
#[derive(Clone, Copy, Default)]
struct Seen {
    sum: u64,
    square: u64,
    polynomial: u64,
}

fn largest_seen(
    circuit: &Circuit,
    weights: &Weights,
    inputs: &[Input],
) -> Result<Vec<Seen>, Refused> {
    let refuse = |error: pi_ir::interpret::Error| Refused::one("", error.to_string());
    let interpreter = Interpreter::new(circuit, weights).map_err(refuse)?;
    let nothing = || vec![Seen::default(); circuit.layers.len()];
    inputs
        .par_iter()
        .map(|input| {
            let input = quantise(circuit, input).map_err(refuse)?;
            let run = interpreter.plain(&input).map_err(refuse)?;
            let sums = run.max_abs_before_truncation.iter();
            Ok((sums.zip(&run.max_abs_before_post))
                .map(|(&sum, post)| Seen {
                    sum,
                    square: post.square,
                    polynomial: post.polynomial,
                })
                .collect())
        })
        .try_reduce(nothing, |mut a: Vec<Seen>, b| {
            for (a, b) in a.iter_mut().zip(b) {
                a.sum = a.sum.max(b.sum);
                a.square = a.square.max(b.square);
                a.polynomial = a.polynomial.max(b.polynomial);
            }
            Ok(a)
        })
}

fn calibrate(layer: &mut Layer, seen: &Seen, precision: &Precision) {
    (layer.bound_bits, layer.range) = by_calibration(seen.sum, layer.truncate(), precision);
    if let Step::Activate(activation) = &mut layer.step {
        for (post, seen) in [
            (&mut activation.square, seen.square),
            (&mut activation.polynomial, seen.polynomial),
        ] {
            if let Some(post) = post {
                (post.bound_bits, post.range) = by_calibration(seen, post.truncate, precision);
            }
        }
    }
}

fn by_calibration(seen: u64, truncate: u8, precision: &Precision) -> (u8, Range) {
    let with_room = seen.saturating_mul(1 << precision.head_room);
    let bits = bound_bits(with_room, truncate).min(WIDEST);
    (bits, Range::Calibrated { max_seen: seen })
}

/// Sets the layer's bound from interval analysis if that is worth using; returns whether it is.
fn prove(layer: &mut Layer, range: &LayerRange, precision: &Precision) -> bool {
    let truncate = layer.truncate();
    let bits = bound_bits(range.sum, truncate);
    let usable = match layer.step {
        Step::Output { .. } => bits <= WIDEST,
        Step::Activate(_) => {
            bits <= PROVED_BOUND_BITS && bits - truncate < precision.proved_sign_bits
        }
    };
    if usable {
        (layer.bound_bits, layer.range) = (bits, Range::Proved);
    }
    usable
}

fn prove_posts(layer: &mut Layer, range: &LayerRange, seen: &Seen, precision: &Precision) {
    let Step::Activate(activation) = &mut layer.step else {
        return;
    };
    let set = |post: &mut PostTruncation, largest: u64, seen: u64| {
        let bits = bound_bits(largest, post.truncate);
        (post.bound_bits, post.range) = if bits <= POLYNOMIAL_BOUND_BITS {
            (bits, Range::Proved)
        } else {
            by_calibration(seen, post.truncate, precision)
        };
    };
    if let Some(post) = &mut activation.square {
        set(post, range.square, seen.square);
    }
    if let Some(post) = &mut activation.polynomial {
        set(post, range.polynomial, seen.polynomial);
    }
}
