//! Turns real numbers into integers: chooses scales from calibration, rounds weights, biases and
//! polynomials, and sets where bits are cut off.
//!
//! All scales are powers of two. A tensor gets the scale at which the largest value that its
//! activations let through on calibration data uses [`Precision::activation_bits`] bits. A kernel
//! gets the scale at which its rounding errors are least, weighted by the mean squares of what it
//! reads; the few weights that have no room there are the largest that there is (clipping by least
//! error, as in Banner et al., NeurIPS 2019). The difference of the two scales of a sum and its
//! result is the layer's truncation. Two rules couple the layers and lower a tensor's scale where
//! necessary: a residual is shifted left, never right, and the kernels of one layer share the scale
//! of its sum.
//!
//! Rounding a kernel changes its sums by a constant part, the rounding errors times the means of
//! the tensor's channels, which the bias takes back (the bias correction of Nagel et al., ICCV
//! 2019, on calibration data). What is left of it behind other layers, [`mod@crate::pass::correct`]
//! measures.

mod scales;

pub(crate) use scales::error_of_kernel;
pub use scales::{Bits, Scales, scales, scales_with};

use crate::fault::{Fault, Refused};
use crate::pass::calibrate::Magnitudes;
use crate::real_circuit::{self, RealCircuit, Step, Term};
use pi_ir::{
    Activation, Circuit, Conv, Kind, Layer, LayerWeights, Polynomial, PostTruncation,
    Preprocessing, Range, Reveal, Weights, group_reads,
};

/// Numbers of bits to spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Bits of signed weights.
    pub weight_bits: WeightBits,
    /// Bits of the largest activation seen, without its sign.
    pub activation_bits: u8,
    /// Bits left above the largest value seen, where no proof bounds it; at least 2.
    pub head_room: u8,
    /// Widest sign circuit accepted for the sake of a proof instead of what was seen.
    pub proved_sign_bits: u8,
}

/// Bits of signed weights, 2 to [`WIDEST_WEIGHTS`]: 8 means `-127 ..= 127`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightBits {
    /// The same in all layers.
    Of(u8),
    /// At least these, and more where the answers become better by it
    /// ([`mod@crate::pass::choose`]).
    AtLeast(u8),
}

impl WeightBits {
    /// The bits that every layer has at least.
    pub fn least(self) -> u8 {
        match self {
            WeightBits::Of(bits) | WeightBits::AtLeast(bits) => bits,
        }
    }
}

/// Most bits of a signed weight: a file holds 15 of magnitude, and products of 15-bit weights with
/// 20-bit activations stay far below the field.
pub const WIDEST_WEIGHTS: u8 = 15;

impl Default for Precision {
    fn default() -> Self {
        Precision {
            weight_bits: WeightBits::AtLeast(8),
            activation_bits: 10,
            head_room: 2,
            proved_sign_bits: 17,
        }
    }
}

/// Largest `log2 B` of polynomials and squares: 2^19 of them then lose a value with probability
/// 2^-12 at most.
pub const POLYNOMIAL_BOUND_BITS: u8 = 28;
/// Names and preprocessing that the circuit takes from the graph.
pub struct Identity<'a> {
    /// Name of the network.
    pub name: &'a str,
    /// What is done to the bytes of an image.
    pub preprocessing: &'a Preprocessing,
    /// Class names.
    pub classes: &'a [String],
}

/// The integer circuit at given scales, with bounds still at their widest (see
/// [`crate::pass::range`]).
///
/// # Errors
/// One fault per layer whose integers do not fit.
pub fn quantise(
    real: &RealCircuit,
    scales: &Scales,
    seen: &Magnitudes,
    identity: &Identity<'_>,
) -> Result<(Circuit, Weights), Refused> {
    let mut faults = Vec::new();
    let mut circuit = Circuit {
        name: identity.name.into(),
        input: real.input,
        input_frac_bits: byte(scales.tensors[0]),
        preprocessing: identity.preprocessing.clone(),
        classes: identity.classes.into(),
        prefix: None,
        layers: Vec::with_capacity(real.layers.len()),
    };
    let mut weights = Weights {
        layers: Vec::with_capacity(real.layers.len()),
    };
    for (index, layer) in real.layers.iter().enumerate() {
        if let Err(message) = check_output(layer, scales.sums[index]) {
            faults.push(Fault::new(&layer.name, message));
            continue;
        }
        let (public, private) = quantise_layer(index, layer, scales, seen);
        circuit.layers.push(public);
        weights.layers.push(private);
    }
    Refused::unless_empty(faults, (circuit, weights))
}

/// Widest bound a circuit may declare; the field holds `2^59`.
pub(crate) const WIDEST: u8 = 58;

fn quantise_layer(
    index: usize,
    layer: &real_circuit::Layer,
    scales: &Scales,
    seen: &Magnitudes,
) -> (Layer, LayerWeights) {
    let sum = scales.sums[index];
    let weight_bits = scales.weight_bits[index];
    let largest = f64::from(weight_bits - 1).exp2() - 1.0;
    let rounded = |w: f64| w.round().clamp(-largest, largest);
    let mut bias: Vec<f64> = layer
        .bias
        .iter()
        .map(|b| b * f64::from(sum).exp2())
        .collect();
    let mut kernels = Vec::new();
    let mut terms = Vec::with_capacity(layer.terms.len());
    for term in &layer.terms {
        terms.push(match term {
            Term::Conv { conv, weights } => {
                let tensor = conv.input.0 as usize;
                let scale = f64::from(sum - scales.tensors[tensor]).exp2();
                let taps = conv.kernel.0 as usize * conv.kernel.1 as usize;
                let unit = f64::from(scales.tensors[tensor]).exp2();
                let row = weights.len() / bias.len();
                let means = &seen.means[tensor];
                let rows = bias.iter_mut().zip(weights.chunks_exact(row));
                for (channel, (bias, row)) in rows.enumerate() {
                    let inputs = (means.len() as u32, conv.out_channels);
                    let read = group_reads(conv.groups, inputs, channel as u32);
                    let means = &means[read.start as usize..read.end as usize];
                    for (taps, mean) in row.chunks_exact(taps).zip(means) {
                        let lost = taps.iter().map(|w| w * scale - rounded(w * scale));
                        *bias += lost.sum::<f64>() * mean * unit;
                    }
                }
                kernels.push(weights.iter().map(|w| rounded(w * scale) as i16).collect());
                pi_ir::Term::Conv(Conv {
                    weight_bits: weight_bits - 1,
                    ..conv.clone()
                })
            }
            Term::Residual {
                input,
                window,
                halvings,
                negative,
            } => {
                let shift = sum - scales.tensors[input.0 as usize] - i32::from(*halvings);
                pi_ir::Term::Residual {
                    input: *input,
                    window: *window,
                    shift: byte(shift),
                    negative: *negative,
                }
            }
        });
    }
    let bias = bias.into_iter().map(|b| b.round() as i64).collect();
    let sum = sum + i32::from(layer.pool_bits);
    let scale = f64::from(sum).exp2();
    let mut element_bias: Vec<i64> = layer
        .element_bias
        .iter()
        .map(|b| (b * scale).round() as i64)
        .collect();
    if element_bias.iter().all(|&b| b == 0) {
        element_bias.clear();
    }
    let mut integers = Vec::new();
    let step = match &layer.step {
        Step::Output => pi_ir::Step::Output {
            frac_bits: i8::try_from(sum).expect("`check_output` let it pass"),
            reveal: Reveal::Logits,
        },
        Step::Activate { kinds, polynomials } => {
            let result = scales.tensors[index + 1];
            let coefficient = scales.coefficients[index];
            integers.extend(
                polynomials
                    .iter()
                    .map(|p| polynomial(p, result, coefficient)),
            );
            let post = |kind, truncate: i32| {
                kinds.contains(&kind).then_some(PostTruncation {
                    truncate: byte(truncate),
                    bound_bits: WIDEST,
                    range: Range::Proved,
                })
            };
            pi_ir::Step::Activate(Activation {
                truncate: byte(sum - result),
                frac_bits: byte(result),
                kinds: kinds.clone(),
                square: post(Kind::Square, result),
                polynomial: post(Kind::Polynomial, result + coefficient),
            })
        }
    };
    let public = Layer {
        name: layer.name.clone(),
        terms,
        pool: layer.pool,
        shape: layer.shape,
        bound_bits: WIDEST,
        range: Range::Proved,
        guard_bits: 0,
        step,
    };
    let private = LayerWeights {
        kernels,
        bias,
        element_bias,
        polynomials: integers,
    };
    (public, private)
}

/// `a` at `2^u`, `b` at `2^(s+u)`, `k` at `2^(2s+u)`.
fn polynomial(&[a, b, k]: &[f64; 3], s: i32, u: i32) -> Polynomial {
    let at = |value: f64, scale: i32| (value * f64::from(scale).exp2()).round() as i64;
    Polynomial {
        a: at(a, u),
        b: at(b, s + u),
        k: at(k, 2 * s + u),
    }
}

/// The scale of results is one that a circuit can state.
fn check_output(layer: &real_circuit::Layer, sum: i32) -> Result<(), String> {
    let sum = sum + i32::from(layer.pool_bits);
    if layer.step == Step::Output && !(-120..=120).contains(&sum) {
        return Err(format!(
            "its weights are of such size that its results would be multiples of 2^{}: multiply \
             the last layer's weights and biases by a constant, which changes no label",
            -sum
        ));
    }
    Ok(())
}

fn byte(value: i32) -> u8 {
    u8::try_from(value).expect("the rounds keep scales and their differences between 0 and 255")
}
