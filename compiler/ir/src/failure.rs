//! The probability that a two-party truncation or the arg max loses a value, and how far beyond
//! their bounds values may go before that matters.
//!
//! A truncation of `x` with `|x| <= B - 2^f` fails for the at most `B + |x|` client's shares, out
//! of `p`, for which `(c + B) - (p - d)` is not `x + B` over the integers. Each element contributes
//! `(B + max|x|) / p`; squares and polynomials contribute that of their second truncation too. The
//! largest `|x|` seen on calibration data proves nothing, so `max|x|` is the bound `B - 2^f` in
//! every case. A value of an arg max is a truncation by no bits, whose result must be right as an
//! integer.
//!
//! None of this needs `x + B >= 0`: the difference of two residues is `x + B` for all but
//! `|x + B|` of the `p` shares, *whatever* `x` is, and `B` itself, a multiple of `2^f`, cancels. So
//! an element that no bool circuit reads (identity, square, polynomial) is right beyond its bound
//! too, with a failure probability that grows with its magnitude; a wider offset would buy nothing
//! and double that. [`reach_bits`] says how far the budget carries. A bool circuit holds `m` bits
//! and no more: there the guard ([`crate::circuit::Layer::guard_bits`]) finds what leaves them.

use crate::P;
use crate::circuit::{Circuit, Kind, Layer, Reveal, Step};

/// Failure probabilities of a circuit, as `log2`; minus infinity where nothing is lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Per layer.
    pub layers: Vec<f64>,
    /// Probability for one inference: the sum over the layers.
    pub total: f64,
}

/// Bounds the probability that one inference loses a value, per layer and in total.
pub fn failure_log2(circuit: &Circuit) -> Failure {
    let layers: Vec<f64> = circuit.layers.iter().map(failure_probability).collect();
    Failure {
        total: layers.iter().sum::<f64>().log2(),
        layers: layers.into_iter().map(f64::log2).collect(),
    }
}

/// Bits `e` by which values that no bool circuit reads may exceed their bounds, all of them at
/// once, while one inference loses a value with probability `2^limit` at most: sums by `2^e`,
/// squares and polynomials of them by `2^(2 e)`. `None` if the circuit exceeds the limit within its
/// bounds.
pub fn reach_bits(circuit: &Circuit, limit: f64) -> Option<u8> {
    let within = |beyond: u8| {
        let layers = circuit.layers.iter();
        let fits = layers
            .clone()
            .all(|layer| highest(layer) + 2 * beyond <= RESIDUE_BITS);
        let total: f64 = layers.map(|layer| probability_beyond(layer, beyond)).sum();
        (beyond == 0 || fits) && total.log2() <= limit
    };
    (0..RESIDUE_BITS)
        .take_while(|&beyond| within(beyond))
        .last()
}

/// `log2` of magnitudes that are below `p / 2`.
const RESIDUE_BITS: u8 = 58;

/// The largest bound of a layer.
fn highest(layer: &Layer) -> u8 {
    let posts = match &layer.step {
        Step::Activate(a) => [&a.square, &a.polynomial].map(|p| p.as_ref().map(|p| p.bound_bits)),
        Step::Output { .. } => [None; 2],
    };
    posts.into_iter().flatten().fold(layer.bound_bits, u8::max)
}

/// Bounds the probability that one inference loses a value of this layer.
pub fn failure_probability(layer: &Layer) -> f64 {
    probability_beyond(layer, 0)
}

fn probability_beyond(layer: &Layer, beyond: u8) -> f64 {
    let activation = match &layer.step {
        Step::Activate(activation) => activation,
        // The arg max compares integers that were not truncated, and a wrap makes one wrong.
        Step::Output {
            reveal: Reveal::Label,
            ..
        } => return layer.shape.len() as f64 * per_element(layer.bound_bits, 0),
        Step::Output { .. } => return 0.0,
    };
    let count = |kind: Kind| activation.kinds.iter().filter(|&&k| k == kind).count() as f64;
    // Without bits to cut, field elements stay right where the integers wrap; a garbled sign does
    // not.
    let relus = count(Kind::Relu);
    let others = match activation.truncate {
        0 => 0.0,
        _ => activation.kinds.len() as f64 - relus,
    };
    let first = relus * per_element(layer.bound_bits, activation.truncate)
        + others * per_element_beyond(layer.bound_bits, activation.truncate, beyond);
    let second = [Kind::Square, Kind::Polynomial].map(|kind| match activation.post(kind) {
        Some(post) if post.truncate > 0 => {
            count(kind) * per_element_beyond(post.bound_bits, post.truncate, 2 * beyond)
        }
        _ => 0.0,
    });
    first + second.iter().sum::<f64>()
}

/// `(B + max|x|) / p` with `max|x| = B - 2^f`.
fn per_element(bound_bits: u8, truncate: u8) -> f64 {
    per_element_beyond(bound_bits, truncate, 0)
}

/// The same with `max|x| = (B - 2^f) 2^beyond`.
fn per_element_beyond(bound_bits: u8, truncate: u8, beyond: u8) -> f64 {
    let bound = f64::from(bound_bits).exp2();
    let largest = (bound - f64::from(truncate).exp2()) * f64::from(beyond).exp2();
    (bound + largest) / P as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::{Activation, PostTruncation, Range};
    use crate::interpret::fixed::truncate_shares;
    use crate::shape::Shape;

    #[test]
    fn each_truncated_element_counts_once_and_quadratics_twice() {
        let post = |truncate, bound_bits| {
            Some(PostTruncation {
                truncate,
                bound_bits,
                range: Range::Proved,
            })
        };
        let layer = |truncate, kinds: Vec<Kind>| Layer {
            name: "l".into(),
            terms: vec![],
            pool: None,
            shape: Shape::new(1, 1, kinds.len() as u32),
            bound_bits: 24,
            range: Range::Calibrated { max_seen: 3 },
            guard_bits: 0,
            step: Step::Activate(Activation {
                truncate,
                frac_bits: 0,
                kinds,
                square: post(8, 28),
                polynomial: post(9, 30),
            }),
        };
        let p = P as f64;
        let first = (2f64.powi(25) - 2f64.powi(10)) / p;
        let square = (2f64.powi(29) - 2f64.powi(8)) / p;
        let polynomial = (2f64.powi(31) - 2f64.powi(9)) / p;
        let kinds = vec![Kind::Relu, Kind::Identity, Kind::Square, Kind::Polynomial];
        let close = |a: f64, b: f64| assert!((a - b).abs() <= b * 1e-12, "{a} {b}");
        close(
            failure_probability(&layer(10, kinds.clone())),
            4.0 * first + square + polynomial,
        );
        close(
            failure_probability(&layer(0, kinds)),
            (2f64.powi(25) - 1.0) / p + square + polynomial,
        );
        let output = |reveal| Layer {
            step: Step::Output {
                frac_bits: 0,
                reveal,
            },
            ..layer(0, vec![Kind::Identity; 3])
        };
        assert_eq!(failure_probability(&output(Reveal::Logits)), 0.0);
        close(
            failure_probability(&output(Reveal::Label)),
            3.0 * (2f64.powi(25) - 1.0) / p,
        );
        let circuit = Circuit {
            name: "c".into(),
            input: Shape::new(1, 1, 1),
            input_frac_bits: 0,
            preprocessing: crate::Preprocessing::unit(0),
            classes: vec![],
            prefix: None,
            layers: vec![
                layer(10, vec![Kind::Relu; 3]),
                layer(0, vec![Kind::Identity]),
                layer(10, vec![Kind::Identity]),
            ],
        };
        // The figure of docs/parameters.md for one element.
        assert!(per_element(28, 1).log2() <= -31.0);
        let failure = failure_log2(&circuit);
        close(failure.layers[0].exp2(), 3.0 * first);
        assert_eq!(failure.layers[1], f64::NEG_INFINITY);
        close(failure.total.exp2(), 4.0 * first);
        // The identity elements may go as far as the limit allows, and the ReLUs stay.
        let beyond = |e: i32| {
            3.0 * first + (2f64.powi(24) + (2f64.powi(24) - 2f64.powi(10)) * 2f64.powi(e)) / p
        };
        let e = reach_bits(&circuit, -25.0).unwrap();
        assert!(
            beyond(e.into()) <= 2f64.powi(-25) && beyond(i32::from(e) + 1) > 2f64.powi(-25),
            "{e}"
        );
        assert_eq!(reach_bits(&circuit, failure.total - 0.1), None);
        assert_eq!(reach_bits(&circuit, failure.total + 0.1), Some(0));
        // No further than a residue.
        assert_eq!(reach_bits(&circuit, 100.0), Some((58 - 30) / 2));
    }

    /// Shares drawn by an honest client truncate a value that is far beyond the bound as they do
    /// one within it.
    #[test]
    fn a_value_beyond_its_bound_is_lost_no_sooner_than_it_is_large() {
        let mut draw = crate::random::Draw::new(29);
        let (f, bound_bits) = (8, 12);
        for bits in [14, 30, 45] {
            let mut lost = 0;
            for _ in 0..20_000 {
                let x = i128::from(draw.between(-(1 << bits), 1 << bits));
                let c = draw.below(P);
                let t = truncate_shares(x, c, f, bound_bits);
                lost += u32::from(t != x >> f && t != (x >> f) + 1);
            }
            // Half of it on average, with five deviations.
            let stated = 20_000.0 * f64::from(bits).exp2() / P as f64;
            assert!(
                f64::from(lost) <= stated + 5.0 * stated.sqrt(),
                "{lost} of 2^{bits}"
            );
        }
    }
}
