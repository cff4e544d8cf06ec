//! Measures the accuracy that fixed point costs: the float graph and the plain interpreter on the
//! same examples.

use crate::examples::Examples;
use anyhow::{Result, bail, ensure};
use pi_ir::interpret::{self, Interpreter, quantise};
use pi_ir::{Circuit, Graph, Input, InputError, Step, Weights};
use rayon::prelude::*;
use serde::Serialize;
use std::fmt;

/// Both evaluations compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Source of the images.
    pub source: String,
    /// Images evaluated.
    pub images: usize,
    /// Right answers of the float graph; 0 without labels.
    pub float_correct: usize,
    /// Right answers of the circuit; images that leave a bound count as wrong.
    pub fixed_correct: usize,
    /// Same answer from both.
    pub agree: usize,
    /// Images on which a value left its bound.
    pub out_of_bound: usize,
    /// Number of outputs.
    pub outputs: usize,
    /// True if the images had labels.
    pub labelled: bool,
    /// Largest difference of a logit.
    pub max_difference: f64,
    /// Root mean square difference of a logit.
    pub rms_difference: f64,
    /// 1st, 10th and 50th percentile of the float graph's margin between its two largest logits.
    pub margins: [f64; 3],
    /// Largest margin at which the answers differed.
    pub largest_flipped_margin: f64,
    /// Ends of the 95 % confidence interval of the share of same answers ([`wilson`]).
    pub interval: [f64; 2],
    /// Root mean square difference of all logits, as a share of how much they vary from image to
    /// image: 1 for a circuit that gives the mean to every image, or worse.
    pub noise: f64,
    /// The same of the output for which it is largest: what a network of values is judged by.
    pub relative_error: f64,
    /// Indices of the images whose answers differ, or on which a value left its bound.
    #[serde(skip)]
    pub wrong: Vec<usize>,
}

/// One image.
pub(crate) struct Outcome {
    /// Results of the float graph.
    pub(crate) float: Vec<f32>,
    /// Those of the circuit, unless a value left its bound.
    pub(crate) fixed: Option<Vec<f64>>,
}

/// Evaluates float graph and circuit on all images.
///
/// # Errors
/// If images, graph and circuit do not fit together, or a label is no class.
pub fn compare(
    graph: &Graph,
    circuit: &Circuit,
    weights: &Weights,
    images: &Examples,
) -> Result<Comparison> {
    let classes = outputs(circuit);
    let foreign = |label: &&u32| **label as usize >= classes;
    if let Some(label) = images.labels.iter().find(foreign) {
        bail!("the label {label} is no class: the network has {classes} outputs, counted from 0");
    }
    compare_labelled(graph, (circuit, weights), images, &images.labels)
}

/// [`compare`] for examples whose labels may be of other classes: then it goes without them.
///
/// # Errors
/// If images, graph and circuit do not fit together.
pub(crate) fn compare_leniently(
    graph: &Graph,
    circuit: &Circuit,
    weights: &Weights,
    images: &Examples,
) -> Result<Comparison> {
    let labels = images.labels_of(outputs(circuit));
    compare_labelled(graph, (circuit, weights), images, labels)
}

fn outputs(circuit: &Circuit) -> usize {
    circuit.layers.last().map_or(0, |layer| layer.shape.len())
}

/// The comparison with labels that are known to be classes, or none.
fn compare_labelled(
    graph: &Graph,
    (circuit, weights): (&Circuit, &Weights),
    images: &Examples,
    labels: &[u32],
) -> Result<Comparison> {
    ensure!(!images.inputs.is_empty(), "no examples to evaluate");
    let interpreter = Interpreter::new(circuit, weights)?;
    let scale = match circuit.layers.last().map(|layer| &layer.step) {
        Some(Step::Output { frac_bits, .. }) => f64::from(-i32::from(*frac_bits)).exp2(),
        _ => anyhow::bail!("the circuit's last layer is not an output"),
    };
    let one = |input: &Input| -> Result<Outcome> {
        let image = graph.preprocessing.reals_of(input)?;
        let float = interpret::float(graph, &image).map_err(anyhow::Error::msg)?;
        let run = quantise(circuit, input).and_then(|input| interpreter.plain(&input));
        let fixed = match run {
            Ok(run) => Some(run.logits.iter().map(|&v| v as f64 * scale).collect()),
            Err(
                interpret::Error::OutOfBound { .. }
                | interpret::Error::Input(InputError::Beyond { .. }),
            ) => None,
            Err(other) => return Err(other.into()),
        };
        Ok(Outcome { float, fixed })
    };
    let outcomes: Vec<Outcome> = images.inputs.par_iter().map(one).collect::<Result<_>>()?;
    Ok(summary(&outcomes, &images.source, labels))
}

/// The comparison over all outcomes; `labels` may be empty.
pub(crate) fn summary(outcomes: &[Outcome], source: &str, labels: &[u32]) -> Comparison {
    let mut found = Comparison {
        source: source.into(),
        images: outcomes.len(),
        float_correct: 0,
        fixed_correct: 0,
        agree: 0,
        out_of_bound: 0,
        outputs: outcomes.first().map_or(0, |outcome| outcome.float.len()),
        labelled: labels.len() == outcomes.len() && !labels.is_empty(),
        max_difference: 0.0,
        rms_difference: 0.0,
        margins: [0.0; 3],
        largest_flipped_margin: 0.0,
        interval: [0.0; 2],
        noise: 0.0,
        relative_error: 0.0,
        wrong: Vec::new(),
    };
    if outcomes.is_empty() {
        return found;
    }
    let mut outputs = vec![OutputSums::default(); outcomes[0].float.len()];
    let mut margins = Vec::with_capacity(outcomes.len());
    let (mut squares, mut count) = (0.0, 0usize);
    for (index, outcome) in outcomes.iter().enumerate() {
        let float: Vec<f64> = outcome.float.iter().map(|&v| f64::from(v)).collect();
        let label = labels.get(index).map(|&l| l as usize);
        let answer = arg_max(&float);
        found.float_correct += usize::from(label == Some(answer));
        let margin = margin(&float);
        margins.push(margin);
        let Some(fixed) = &outcome.fixed else {
            found.out_of_bound += 1;
            found.wrong.push(index);
            continue;
        };
        found.fixed_correct += usize::from(label == Some(arg_max(fixed)));
        if arg_max(fixed) == answer {
            found.agree += 1;
        } else {
            found.wrong.push(index);
            found.largest_flipped_margin = found.largest_flipped_margin.max(margin);
        }
        for ((a, b), output) in float.iter().zip(fixed).zip(&mut outputs) {
            output.add(*a, a - b);
            found.max_difference = found.max_difference.max((a - b).abs());
            squares += (a - b).powi(2);
            count += 1;
        }
    }
    found.rms_difference = (squares / count.max(1) as f64).sqrt();
    margins.sort_by(f64::total_cmp);
    found.interval = wilson(found.agree, found.images);
    found.noise = OutputSums::relative(&outputs);
    let each = outputs
        .iter()
        .map(|output| OutputSums::relative(&[*output]));
    found.relative_error = each.fold(0.0, f64::max);
    found.margins = [0.01, 0.1, 0.5].map(|q| margins[((margins.len() - 1) as f64 * q) as usize]);
    found
}

/// The comparison in words, a line for each of its parts.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |n: usize| 100.0 * n as f64 / self.images.max(1) as f64;
        let [low, high] = self.interval.map(|end| 100.0 * end);
        writeln!(
            f,
            "same answer as the float network: {} of {} ({:.2} %; with 95 % confidence {low:.1} to \
             {high:.1} %)",
            self.agree,
            self.images,
            percent(self.agree)
        )?;
        if self.labelled {
            writeln!(
                f,
                "accuracy on {} images: float {:.2} %, fixed point {:.2} %",
                self.images,
                percent(self.float_correct),
                percent(self.fixed_correct)
            )?;
            let outputs = self.outputs;
            if outputs > 1 && self.float_correct * outputs < 2 * self.images {
                writeln!(
                    f,
                    "note: the float network itself is hardly better than guessing: labels may be \
                     in another order than its outputs, or images in another form than it was \
                     trained on (--mean, --deviation, --white, --channel-order)"
                )?;
            }
        }
        writeln!(
            f,
            "logits differ by {:.4} (root mean square), which is {:.2} % of what they vary and \
             {:.2} % for the worst of them, by {:.4} at most; margin percentiles 1, 10, 50: {:.3}, \
             {:.3}, {:.3}; largest margin lost {:.3}",
            self.rms_difference,
            100.0 * self.noise,
            100.0 * self.relative_error,
            self.max_difference,
            self.margins[0],
            self.margins[1],
            self.margins[2],
            self.largest_flipped_margin
        )?;
        if self.out_of_bound > 0 {
            writeln!(
                f,
                "{} images left a calibrated bound: calibrate on more images, or with more \
                 --head-room",
                self.out_of_bound
            )?;
        }
        Ok(())
    }
}

/// Sums over the images for one output.
#[derive(Clone, Copy, Default)]
struct OutputSums {
    count: f64,
    values: f64,
    squares: f64,
    errors: f64,
}

impl OutputSums {
    fn add(&mut self, value: f64, error: f64) {
        self.count += 1.0;
        self.values += value;
        self.squares += value * value;
        self.errors += error * error;
    }

    /// Root mean square error over deviation, of some outputs together. Where they do not vary, as
    /// on a single image, their magnitude takes the place of the deviation.
    fn relative(outputs: &[OutputSums]) -> f64 {
        /// Variance that is no more than the rounding of single precision, by the mean square.
        const CONSTANT: f64 = 1e-10;
        let sum = |of: fn(&OutputSums) -> f64| outputs.iter().map(of).sum::<f64>();
        let (errors, squares) = (sum(|o| o.errors), sum(|o| o.squares));
        let varying = sum(|o| o.squares - o.values * o.values / o.count.max(1.0));
        let signal = if varying > CONSTANT * squares {
            varying
        } else {
            squares
        };
        match errors > 0.0 {
            true => (errors / signal).sqrt(),
            false => 0.0,
        }
    }
}

/// The 95 % confidence interval of a share of which `successes` of `count` were seen (Wilson,
/// 1927): unlike the textbook's, it is right for few examples and for shares near 1.
pub fn wilson(successes: usize, count: usize) -> [f64; 2] {
    /// The 97.5th percentile of the normal distribution.
    const Z: f64 = 1.959_964;
    if count == 0 {
        return [0.0, 1.0];
    }
    let n = count as f64;
    let share = successes as f64 / n;
    let centre = share + Z * Z / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    [centre - spread, centre + spread].map(|end| (end / (1.0 + Z * Z / n)).clamp(0.0, 1.0))
}

/// The index of the largest; of equals the first.
pub fn arg_max(values: &[f64]) -> usize {
    let best = (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best });
    best.min(values.len())
}

fn margin(values: &[f64]) -> f64 {
    let best = arg_max(values);
    let others = values
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != best)
        .map(|(_, v)| *v);
    values[best] - others.fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_intervals_are_those_of_the_tables() {
        // Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        for (successes, count, expected) in [
            (81, 263, [0.2553, 0.3662]),
            (15, 148, [0.0624, 0.1605]),
            (0, 20, [0.0, 0.1611]),
            (1, 29, [0.0061, 0.1718]),
            (29, 29, [0.8830, 1.0]),
        ] {
            let found = wilson(successes, count);
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 6e-5, "{found} {expected}");
            }
        }
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
    }

    fn outcome(float: &[f32], error: f64) -> Outcome {
        let fixed = float.iter().map(|&v| f64::from(v) + error).collect();
        Outcome {
            float: float.to_vec(),
            fixed: Some(fixed),
        }
    }

    #[test]
    fn errors_are_held_against_what_outputs_vary() {
        // Deviation 1 around 100.
        let outcomes = [outcome(&[99.0], 0.1), outcome(&[101.0], -0.1)];
        let found = summary(&outcomes, "", &[]);
        assert!((found.relative_error - 0.1).abs() < 1e-6, "{found:?}");
        assert_eq!((found.agree, found.images), (2, 2));
        // The worst output counts, not their mean: deviations 1 and 0.1.
        let outcomes = [outcome(&[0.0, 0.0], 0.05), outcome(&[2.0, 0.2], 0.05)];
        let found = summary(&outcomes, "", &[]);
        assert!((found.relative_error - 0.5).abs() < 1e-6, "{found:?}");
        assert!(found.noise < 0.08, "{found:?}");
        // A constant in place of what varies.
        let outcomes = [-1.0f32, 1.0].map(|v| Outcome {
            float: vec![v],
            fixed: Some(vec![0.0]),
        });
        assert_eq!(summary(&outcomes, "", &[]).relative_error, 1.0);
        // One image, and outputs of zero.
        assert!((summary(&[outcome(&[4.0], 1.0)], "", &[]).relative_error - 0.25).abs() < 1e-9);
        assert_eq!(
            summary(&[outcome(&[0.0], 0.0)], "", &[]).relative_error,
            0.0
        );
        assert_eq!(
            summary(&[outcome(&[0.0], 1.0)], "", &[]).noise,
            f64::INFINITY
        );
        assert_eq!(summary(&[], "", &[]).images, 0);
    }
}
