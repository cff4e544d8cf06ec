//! Whether fixed point is near enough to the float network to be served, and if not, why and what
//! to try.

use super::{Culprit, LayerAccuracy, Wrong, culprit, measure};
use crate::compile::Compiled;
use crate::cost::evaluate::Comparison;
use crate::examples::Examples;
use anyhow::{Result, ensure};
use pi_ir::Reveal;
use std::fmt;

/// What a network's outputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// One for each class, of which the largest is the answer.
    Classes,
    /// Values by themselves, as of a regression.
    Values,
}

/// What is asked of fixed point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// What the outputs are.
    pub outputs: Outputs,
    /// Of values: largest root mean square error, as a share of how much an output varies
    /// ([`Comparison::relative_error`]).
    pub max_error: f64,
}

/// Least share of examples on which a circuit of classes gives the float network's answer. Trained
/// networks reach 99 % with the bits that are the default; what has less is spoiled somewhere, and
/// drawn calibration images left one with 13.5 % of right answers.
pub const LEAST_AGREEMENT: f64 = 0.95;

/// Largest error of values unless the user says otherwise. Weights of 8 bits cost about 1 % a layer
/// and the errors of layers add up as squares, so 25 of them stay below it; and an error of 5 % of
/// the deviation is 1/400 of the variance, far below what regressions leave unexplained.
pub const MAX_ERROR: f64 = 0.05;

/// Noise of all logits, as a share of how much they vary, above which even the right labels prove
/// nothing: a circuit that gives the same answer to every image has a share of 1, and agrees with
/// the float network if the examples happen to be of one class.
pub const MOST_NOISE: f64 = 0.5;

impl Tolerance {
    /// What is usually asked of a network with so many outputs: one output is a value.
    pub fn of(outputs: usize) -> Self {
        Tolerance {
            outputs: match outputs {
                0 | 1 => Outputs::Values,
                _ => Outputs::Classes,
            },
            max_error: MAX_ERROR,
        }
    }

    /// What a user asks of a network with `outputs` outputs, taken for `wanted`, of which `reveal`
    /// is what clients learn.
    ///
    /// # Errors
    /// If answers would say nothing: a label of values, or of a single class.
    pub fn asked(
        outputs: usize,
        wanted: Option<Outputs>,
        max_error: f64,
        reveal: Reveal,
    ) -> Result<Self> {
        let tolerance = Tolerance {
            outputs: wanted.unwrap_or(Tolerance::of(outputs).outputs),
            max_error,
        };
        if tolerance.outputs == Outputs::Values {
            ensure!(
                reveal == Reveal::Logits,
                "the network's {} values, and a label says nothing of them: give --reveal logits, \
                 with which clients learn the outputs",
                match outputs {
                    1 => "only output is taken for a value, no class, so that its outputs are",
                    _ => "outputs are",
                }
            );
            return Ok(tolerance);
        }
        ensure!(
            outputs > 1,
            "--outputs classes: the network has one output, and its label would always be 0"
        );
        Ok(tolerance)
    }

    /// What the comparison falls short of, if anything.
    pub fn shortfall(&self, found: &Comparison) -> Option<Shortfall> {
        let enough = |count: usize| count as f64 >= LEAST_AGREEMENT * found.images as f64;
        match self.outputs {
            _ if found.images == 0 => None,
            Outputs::Classes if !enough(found.agree) => Some(Shortfall::Agreement),
            Outputs::Values if !enough(found.images - found.out_of_bound) => {
                Some(Shortfall::OutOfBound)
            }
            // Written so that a noise that is no number falls short, too.
            Outputs::Classes if found.noise <= MOST_NOISE => None,
            Outputs::Classes => Some(Shortfall::Noise),
            Outputs::Values if found.relative_error <= self.max_error => None,
            Outputs::Values => Some(Shortfall::Error {
                most: self.max_error,
            }),
        }
    }
}

/// What a network falls short of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shortfall {
    /// Too few answers are those of the float network.
    Agreement,
    /// On too many examples a value leaves its bound.
    OutOfBound,
    /// The logits are noise, although the labels agree.
    Noise,
    /// Values differ too much.
    Error {
        /// The largest error that is allowed.
        most: f64,
    },
}

/// Why a network is not written.
#[derive(Clone, Debug, PartialEq)]
pub struct Disagreement {
    comparison: Comparison,
    shortfall: Shortfall,
    culprit: Option<Culprit>,
    layer: Option<LayerAccuracy>,
}

impl Disagreement {
    /// Looks for the layer to blame for a shortfall on these examples.
    ///
    /// # Errors
    /// If examples and circuit do not fit together.
    pub fn explain(
        compiled: &Compiled,
        (comparison, shortfall): (&Comparison, Shortfall),
        examples: &Examples,
    ) -> Result<Self> {
        let wrong = match shortfall {
            Shortfall::Agreement | Shortfall::OutOfBound => Wrong::Labels,
            Shortfall::Noise => Wrong::Noise(MOST_NOISE),
            Shortfall::Error { most } => Wrong::Error(most),
        };
        let mut blamed = examples.clone();
        if wrong == Wrong::Labels {
            let at = comparison.wrong.iter();
            blamed.inputs = at.map(|&index| examples.inputs[index].clone()).collect();
            blamed.labels.clear();
        }
        let culprit = culprit(compiled, &blamed, wrong)?;
        let layer = culprit.as_ref().and_then(|culprit| culprit.layer);
        // Measured on the examples to explain: others may show nothing wrong.
        let layer = match layer {
            Some(index) => measure(compiled, &blamed)?.into_iter().nth(index),
            None => None,
        };
        Ok(Disagreement {
            comparison: comparison.clone(),
            shortfall,
            culprit,
            layer,
        })
    }

    /// A shortfall of a network whose float layers are not at hand.
    pub fn unexplained(comparison: &Comparison, shortfall: Shortfall) -> Self {
        Disagreement {
            comparison: comparison.clone(),
            shortfall,
            culprit: None,
            layer: None,
        }
    }

    /// The first layer that goes wrong, if one does.
    pub fn culprit(&self) -> Option<&Culprit> {
        self.culprit.as_ref()
    }

    /// The shortfall alone, in one sentence without its stop: for the artifact's note.
    pub fn figures(&self) -> String {
        let Comparison {
            agree,
            images,
            source,
            interval: [low, high],
            out_of_bound,
            ..
        } = &self.comparison;
        let share = 100.0 * *agree as f64 / *images as f64;
        match self.shortfall {
            Shortfall::Agreement => format!(
                "fixed point gives the float network's answer on only {agree} of {images} examples \
                 of {source} ({share:.1} %, with 95 % confidence {:.1} to {:.1} %; at least \
                 {:.0} % are needed), and on {out_of_bound} of them a value left its bound",
                100.0 * low,
                100.0 * high,
                100.0 * LEAST_AGREEMENT
            ),
            Shortfall::OutOfBound => format!(
                "in fixed point, a value left its bound on {out_of_bound} of {images} examples of \
                 {source} (at most {:.0} % may)",
                100.0 * (1.0 - LEAST_AGREEMENT)
            ),
            Shortfall::Noise => format!(
                "in fixed point, the outputs differ from the float network's by {:.0} % of what \
                 they vary on {images} examples of {source} (root mean square; at most {:.0} % are \
                 allowed), although {agree} labels are the same",
                100.0 * self.comparison.noise,
                100.0 * MOST_NOISE
            ),
            Shortfall::Error { most } => format!(
                "in fixed point, the outputs differ from the float network's by up to {:.1} % of \
                 what they vary on {images} examples of {source} (root mean square; at most \
                 {:.1} % are allowed, see --max-error)",
                100.0 * self.comparison.relative_error,
                100.0 * most
            ),
        }
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.figures())?;
        match (&self.culprit, &self.layer) {
            (None, _) => write!(
                f,
                "; no layer goes wrong by itself: try --weight-bits or --activation-bits with more \
                 bits"
            ),
            (Some(_), None) => write!(
                f,
                "; the input goes wrong already: calibrate on examples like these, or raise \
                 --activation-bits"
            ),
            // No layer is to blame if the outputs would not vary in the float network either.
            (Some(_), Some(layer))
                if self.shortfall == Shortfall::Noise && own(layer) > ALIKE_DB =>
            {
                write!(
                    f,
                    "; no layer adds much noise, but the examples may be too much alike to tell: \
                     take such of several classes"
                )
            }
            (Some(culprit), Some(layer)) => write!(
                f,
                "; the first layer that goes wrong is {}: {}",
                culprit.name,
                cause(layer)
            ),
        }?;
        f.write_str("; or write the network all the same with --allow-disagreement")
    }
}

/// Signal to noise of a layer from which on it is not to blame for outputs of noise, in dB.
const ALIKE_DB: f64 = 20.0;

fn own(layer: &LayerAccuracy) -> f64 {
    layer.own_db.unwrap_or(f64::INFINITY)
}

/// What ails a layer, and what to try.
fn cause(layer: &LayerAccuracy) -> String {
    let LayerAccuracy {
        channels,
        lost_channels,
        examples_beyond,
        examples,
        ..
    } = layer;
    if *examples_beyond > 0 {
        return format!(
            "its values left their bound on {examples_beyond} of {examples} of these examples: \
             calibrate on more examples like these (--calibration, --calibration-images), or leave \
             more room (--head-room)"
        );
    }
    if layer.vanished {
        return "its values are so small that all of them become 0: multiply its weights and \
                biases by a constant, and divide the next layer's weights by it"
            .into();
    }
    let bits = match layer.rounding_share {
        0.5.. => "--activation-bits",
        _ => "--weight-bits",
    };
    if *lost_channels > 0 {
        return format!(
            "{lost_channels} of its {channels} channels are lost in its own rounding, as when \
             channels are of very unequal size: raise {bits}, or train it with a norm that makes \
             channels alike"
        );
    }
    let what = match bits {
        "--activation-bits" => "the rounding of its results",
        _ => "its rounded weights",
    };
    format!(
        "its signal is {:.1} dB above the noise of {what}: raise {bits}",
        own(layer)
    )
}
