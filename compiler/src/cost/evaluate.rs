//! Measures the accuracy that fixed point costs: the float graph and the plain interpreter on the
//! same examples.

use crate::examples::Examples;
use anyhow::{Result, bail, ensure};
use pi_ir::interpret::{self, Interpreter, quantise};
use pi_ir::{Circuit, Graph, Input, InputError, Step, Weights};
use rayon::prelude::*;
use serde::Serialize;

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
}

/// Least share of images, in percent, on which a usable circuit gives the float graph's answer. A
/// network that was calibrated on images of another kind falls towards guessing: drawn images left
/// one for photographs with 13.5 % accuracy.
pub const LEAST_AGREEMENT: usize = 90;

impl Comparison {
    /// Ensures that the circuit gives the float graph's answer often enough to be of use.
    ///
    /// # Errors
    /// If it does on fewer than [`LEAST_AGREEMENT`] percent of the images; the message names the
    /// figure, the images and the remedy.
    pub fn check(&self) -> Result<()> {
        if 100 * self.agree >= LEAST_AGREEMENT * self.images {
            return Ok(());
        }
        bail!(
            "fixed point gives the float graph's answer on only {} of {} images of {} ({:.1} %, \
             at least {LEAST_AGREEMENT} % are needed), and on {} of them a value left its bound: \
             calibrate on more images like these (--calibration, --calibration-images), or allow \
             more bits (--head-room, --activation-bits, --weight-bits)",
            self.agree,
            self.images,
            self.source,
            100.0 * self.agree as f64 / self.images as f64,
            self.out_of_bound,
        )
    }
}

/// One image.
struct Outcome {
    float: Vec<f32>,
    fixed: Option<Vec<f64>>,
}

/// Evaluates float graph and circuit on all images.
///
/// # Errors
/// If images, graph and circuit do not fit together.
pub fn compare(
    graph: &Graph,
    circuit: &Circuit,
    weights: &Weights,
    images: &Examples,
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
    let classes = circuit.layers.last().map_or(0, |layer| layer.shape.len());
    if let Some(label) = images
        .labels
        .iter()
        .find(|&&label| label as usize >= classes)
    {
        bail!("the label {label} is no class: the network has {classes} outputs, counted from 0");
    }
    let outcomes: Vec<Outcome> = images.inputs.par_iter().map(one).collect::<Result<_>>()?;
    Ok(summary(&outcomes, images))
}

fn summary(outcomes: &[Outcome], images: &Examples) -> Comparison {
    let labels = &images.labels;
    let mut found = Comparison {
        source: images.source.clone(),
        images: outcomes.len(),
        float_correct: 0,
        fixed_correct: 0,
        agree: 0,
        out_of_bound: 0,
        labelled: labels.len() == outcomes.len(),
        max_difference: 0.0,
        rms_difference: 0.0,
        margins: [0.0; 3],
        largest_flipped_margin: 0.0,
    };
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
            continue;
        };
        found.fixed_correct += usize::from(label == Some(arg_max(fixed)));
        if arg_max(fixed) == answer {
            found.agree += 1;
        } else {
            found.largest_flipped_margin = found.largest_flipped_margin.max(margin);
        }
        for (a, b) in float.iter().zip(fixed) {
            found.max_difference = found.max_difference.max((a - b).abs());
            squares += (a - b).powi(2);
            count += 1;
        }
    }
    found.rms_difference = (squares / count.max(1) as f64).sqrt();
    margins.sort_by(f64::total_cmp);
    found.margins = [0.01, 0.1, 0.5].map(|q| margins[((margins.len() - 1) as f64 * q) as usize]);
    found
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
