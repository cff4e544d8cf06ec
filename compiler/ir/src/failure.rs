//! The probability that a two-party truncation or the arg max loses a value.
//!
//! A truncation of `x` with `|x| <= B - 2^f` fails for the at most `B + |x|` client's shares, out
//! of `p`, for which `(c + B) - (p - d)` is not `x + B` over the integers. Each element contributes
//! `(B + max|x|) / p`; squares and polynomials contribute that of their second truncation too. The
//! largest `|x|` seen on calibration data proves nothing, so `max|x|` is the bound `B - 2^f` in
//! every case. A value of an arg max is a truncation by no bits, whose result must be right as an
//! integer.

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
    let layers: Vec<f64> = circuit.layers.iter().map(probability).collect();
    Failure {
        total: layers.iter().sum::<f64>().log2(),
        layers: layers.into_iter().map(f64::log2).collect(),
    }
}

fn probability(layer: &Layer) -> f64 {
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
    let first = match activation.truncate {
        0 => count(Kind::Relu),
        _ => activation.kinds.len() as f64,
    };
    let second = [Kind::Square, Kind::Polynomial].map(|kind| match activation.post(kind) {
        Some(post) if post.truncate > 0 => {
            count(kind) * per_element(post.bound_bits, post.truncate)
        }
        _ => 0.0,
    });
    first * per_element(layer.bound_bits, activation.truncate) + second.iter().sum::<f64>()
}

/// `(B + max|x|) / p` with `max|x| = B - 2^f`.
fn per_element(bound_bits: u8, truncate: u8) -> f64 {
    let bound = f64::from(bound_bits).exp2();
    (2.0 * bound - f64::from(truncate).exp2()) / P as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::{Activation, PostTruncation, Range};
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
            probability(&layer(10, kinds.clone())),
            4.0 * first + square + polynomial,
        );
        close(
            probability(&layer(0, kinds)),
            (2f64.powi(25) - 1.0) / p + square + polynomial,
        );
        let output = |reveal| Layer {
            step: Step::Output {
                frac_bits: 0,
                reveal,
            },
            ..layer(0, vec![Kind::Identity; 3])
        };
        assert_eq!(probability(&output(Reveal::Logits)), 0.0);
        close(
            probability(&output(Reveal::Label)),
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
    }
}
