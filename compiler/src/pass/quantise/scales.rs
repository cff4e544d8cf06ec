//! The choice of scales: one for each tensor, each sum, and the coefficients of each layer.

use super::{POLYNOMIAL_BOUND_BITS, Precision, WIDEST_WEIGHTS};
use crate::fault::{Fault, Refused};
use crate::pass::calibrate::Magnitudes;
use crate::real_circuit::{Layer, RealCircuit, Step, Term};
use pi_ir::{Conv, group_reads};
use rayon::prelude::*;

/// Fewest bits that a tensor's largest value may be left with.
const FEWEST_BITS: i32 = 4;
/// Bits that a tensor gives up for the sake of a kernel that is finer than the one beside it.
const SPARE_BITS: i32 = 2;
/// Most bits worth cutting off: beyond, finer kernels only widen the bound, and with it the failure
/// probability.
const MOST_TRUNCATED: i32 = 15;
/// Most bits behind the point of a tensor: more only make small tensors expensive.
const MOST_FRAC_BITS: i32 = 24;

/// The scales of a network, as exponents of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scales {
    /// Per tensor, the image first.
    pub tensors: Vec<i32>,
    /// Per layer: of the sum before its pool's divisor.
    pub sums: Vec<i32>,
    /// Per layer: of quadratic coefficients.
    pub coefficients: Vec<i32>,
    /// Per layer: bits of its weights, the sign included.
    pub weight_bits: Vec<u8>,
}

/// Bits by layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits {
    /// Of weights, the sign included.
    pub weights: Vec<u8>,
    /// That the scale of the sum gives up, for the sake of its bound.
    pub sums: Vec<u8>,
    /// That the scale of quadratic coefficients gives up, for the sake of the bound of polynomials.
    pub polynomials: Vec<u8>,
}

impl Bits {
    /// The least of a precision. Weights of a public prefix are as fine as the file holds: the
    /// client multiplies them in the clear, where width costs nothing.
    pub fn least(real: &RealCircuit, precision: &Precision) -> Self {
        let layers = real.layers.len();
        let mut weights = vec![precision.weight_bits.least(); layers];
        weights[..real.public].fill(WIDEST_WEIGHTS);
        Bits {
            weights,
            sums: vec![0; layers],
            polynomials: vec![0; layers],
        }
    }
}

/// Chooses all scales, with the least bits of a precision.
///
/// # Errors
/// If a tensor would be left with too few bits, or a value is not finite: one fault per layer.
pub fn scales(
    real: &RealCircuit,
    seen: &Magnitudes,
    precision: &Precision,
) -> Result<Scales, Refused> {
    scales_with(real, seen, precision, &Bits::least(real, precision))
}

/// Chooses all scales, with these bits.
///
/// # Errors
/// If a tensor would be left with too few bits, or a value is not finite: one fault per layer.
pub fn scales_with(
    real: &RealCircuit,
    seen: &Magnitudes,
    precision: &Precision,
    bits: &Bits,
) -> Result<Scales, Refused> {
    check_finite(real, seen)?;
    let wanted = i32::from(precision.activation_bits);
    let mut tensors = vec![scale_for(seen.input, wanted)];
    let activations = real.layers.len() - 1;
    tensors.extend(
        (0..activations).map(|layer| scale_for(seen.operands[layer], wanted + rare(seen, layer))),
    );
    let kernels = kernel_scales(real, seen, bits);
    let first = tensors.clone();
    // Each round only lowers scales, each of them by what a rule asks for, so rounds end.
    loop {
        let mut round = Round {
            real,
            seen,
            precision,
            bits,
            kernels: &kernels,
            tensors: tensors.clone(),
            sums: Vec::new(),
            coefficients: Vec::new(),
        };
        for index in 0..real.layers.len() {
            round.layer(index);
        }
        if round.tensors == tensors {
            let (sums, coefficients) = (round.sums, round.coefficients);
            check_lowered(real, &first, &tensors, precision)?;
            return Ok(Scales {
                tensors,
                sums,
                coefficients,
                weight_bits: bits.weights.clone(),
            });
        }
        tensors = round.tensors;
        // Tensors that lower each other without end are named before their scales run away.
        if tensors.iter().any(|&scale| scale < -64) {
            check_lowered(real, &first, &tensors, precision)?;
        }
    }
}

fn check_finite(real: &RealCircuit, seen: &Magnitudes) -> Result<(), Refused> {
    let names = real.layers.iter().zip(&seen.sums);
    let faults = names
        .filter(|(_, m)| !m.is_finite())
        .map(|(layer, _)| {
            Fault::new(
                &layer.name,
                "its values are not finite on the calibration data; train it again",
            )
        })
        .collect();
    Refused::unless_empty(faults, ())
}

/// Tensors that had to give up too much, by the layer that makes them.
fn check_lowered(
    real: &RealCircuit,
    first: &[i32],
    last: &[i32],
    precision: &Precision,
) -> Result<(), Refused> {
    let mut faults = Vec::new();
    for (tensor, (&first, &last)) in first.iter().zip(last).enumerate() {
        let bits = i32::from(precision.activation_bits) - (first - last);
        if bits >= FEWEST_BITS && last >= 0 {
            continue;
        }
        let name = match tensor {
            0 => "input",
            layer => &real.layers[layer - 1].name,
        };
        let message = if bits >= FEWEST_BITS {
            format!(
                "its values are too large: {bits} bits of them would lie above the point, at \
                 scale 2^{last}, and scales start at 2^0; normalise the layer, or penalise \
                 large values in training"
            )
        } else {
            format!(
                "scales too far apart: a later addition or polynomial can only take this tensor \
                 with {} of the {FEWEST_BITS} bits that it needs at least; keep weights \
                 smaller in training, or raise --weight-bits",
                bits.max(0)
            )
        };
        faults.push(Fault::new(name, message));
    }
    Refused::unless_empty(faults, ())
}

/// The scale at which `magnitude` uses `bits` bits.
fn scale_for(magnitude: f64, bits: i32) -> i32 {
    if magnitude <= 0.0 {
        return 0;
    }
    let scale = (f64::from(bits).exp2() / magnitude).log2().floor() as i32;
    scale.clamp(0, MOST_FRAC_BITS)
}

/// One pass over the layers with the tensors' scales of the round before.
struct Round<'a> {
    real: &'a RealCircuit,
    seen: &'a Magnitudes,
    precision: &'a Precision,
    bits: &'a Bits,
    /// Per layer: scales of its kernels.
    kernels: &'a [Vec<i32>],
    tensors: Vec<i32>,
    sums: Vec<i32>,
    coefficients: Vec<i32>,
}

impl Round<'_> {
    fn layer(&mut self, index: usize) {
        let layer = &self.real.layers[index];
        let result = match layer.step {
            Step::Activate { .. } => Some(index + 1),
            Step::Output => None,
        };
        let inputs = layer.terms.iter().filter_map(|term| match term {
            Term::Conv { conv, .. } => Some(conv.input.0 as usize),
            Term::Residual { .. } => None,
        });
        let kernels: Vec<(usize, i32)> = inputs.zip(self.kernels[index].iter().copied()).collect();
        let residuals: Vec<(usize, i32)> = (layer.terms.iter())
            .filter_map(|term| match term {
                Term::Conv { .. } => None,
                Term::Residual {
                    input, halvings, ..
                } => Some((input.0 as usize, i32::from(*halvings))),
            })
            .collect();
        let pool_bits = i32::from(layer.pool_bits);
        // All terms of a sum have one scale: that of the coarsest kernel, for weights cannot grow
        // beyond their bits. A sum of residuals alone is as fine as the finest of them, and as the
        // result, because bits can be cut off but not invented.
        let mut scale = match kernels.iter().map(|(t, w)| self.tensors[*t] + w).min() {
            Some(scale) => scale,
            None => {
                let added = residuals
                    .iter()
                    .map(|(t, halvings)| self.tensors[*t] + halvings)
                    .max();
                let added = added.expect("a layer has a term");
                added.max(result.map_or(added, |t| self.tensors[t] - pool_bits))
            }
        };
        // A kernel finer than the sum loses bits of its weights. Where its tensor has bits to
        // spare, the tensor gives them up instead.
        for (tensor, weight_scale) in &kernels {
            let lost = self.tensors[*tensor] + weight_scale - scale;
            let enough = i32::from(self.precision.activation_bits) - SPARE_BITS;
            let to_spare = self.bits(*tensor) - enough;
            self.tensors[*tensor] -= lost.min(to_spare).max(0);
        }
        // Bits beyond `MOST_TRUNCATED` are not worth their bound, nor those that the failure budget
        // does not allow, unless a residual needs them: it can be shifted to the left only.
        let added = residuals
            .iter()
            .map(|(t, halvings)| self.tensors[*t] + halvings);
        let needed = added.max().unwrap_or(i32::MIN);
        scale = (scale - i32::from(self.bits.sums[index])).max(needed.min(scale));
        if let Some(result) = result {
            let finest = self.tensors[result] - pool_bits + MOST_TRUNCATED;
            scale = scale.min(finest.max(needed));
        }
        // Now the tensors follow: residuals may not be finer than the sum, nor may the result.
        for (tensor, halvings) in &residuals {
            self.tensors[*tensor] = self.tensors[*tensor].min(scale - halvings);
        }
        if let Some(result) = result {
            self.tensors[result] = self.tensors[result].min(scale + pool_bits);
        }
        self.sums.push(scale);
        let quadratic = self.quadratic(index);
        self.coefficients.push(quadratic);
    }

    /// Scale of the quadratic coefficients: as fine as `POLYNOMIAL_BOUND_BITS` allows.
    fn quadratic(&mut self, index: usize) -> i32 {
        let largest = self.seen.polynomials[index];
        if largest <= 0.0 {
            return 0;
        }
        // The sum rounds up a bit, and the bound must leave 2^truncate: one bit more than the head
        // room.
        let room = i32::from(POLYNOMIAL_BOUND_BITS) - i32::from(self.precision.head_room) - 1;
        let room = room - largest.log2().ceil() as i32 - i32::from(self.bits.polynomials[index]);
        // Rounding `a` to `2^-u` moves the result by `2^-(u+1) y^2`. Where `|y|` is a quarter of
        // its largest value, that is to stay within half a unit of the result, `2^-(s+1)`: a finer
        // tensor would not be a better one.
        let square = 2.0 * self.seen.sums[index].log2() - 4.0;
        let tensor = &mut self.tensors[index + 1];
        while room - 2 * *tensor < *tensor + square.ceil() as i32 && *tensor > 2 {
            *tensor -= 1;
        }
        (room - 2 * *tensor).clamp(0, 20)
    }

    /// Bits that the largest value of a tensor uses.
    fn bits(&self, tensor: usize) -> i32 {
        let magnitude = match tensor {
            0 => self.seen.input,
            layer => self.seen.operands[layer - 1],
        };
        if magnitude <= 0.0 {
            return 0;
        }
        magnitude.log2().ceil() as i32 + self.tensors[tensor]
    }
}

/// Bits that a tensor gets beyond those of its largest value, because that is rare.
///
/// A largest value of `2^CREST` times the root mean square is what calibration finds of smooth
/// distributions. Where it is further away, most values would have fewer bits than in other
/// layers; the bound covers the largest in any case, so each bit widens the sign circuits.
fn rare(seen: &Magnitudes, layer: usize) -> i32 {
    const CREST: f64 = 5.0;
    const MOST: f64 = 2.0;
    let crest = (seen.operands[layer] / seen.power(layer + 1).sqrt()).log2();
    match seen.polynomials[layer] > 0.0 || !crest.is_finite() {
        true => 0,
        false => (crest - CREST).floor().clamp(0.0, MOST) as i32,
    }
}

/// Per layer, the scales of its kernels.
fn kernel_scales(real: &RealCircuit, seen: &Magnitudes, bits: &Bits) -> Vec<Vec<i32>> {
    let of_layer = |(index, layer): (usize, &Layer)| {
        let kernels = layer.terms.iter().filter_map(|term| match term {
            Term::Conv { conv, weights } => Some((conv, weights)),
            Term::Residual { .. } => None,
        });
        kernels
            .map(|(conv, weights)| {
                let bits = bits.weights[index];
                let exact = weight_scale(weights, bits);
                // Beyond two more bits, a quarter of the largest weight is all that is left of it.
                (exact..exact + 3)
                    .map(|scale| {
                        let squares = &seen.squares[conv.input.0 as usize];
                        (
                            scale,
                            error_of_kernel(conv, weights, squares, (bits, scale)),
                        )
                    })
                    .min_by(|a, b| a.1.total_cmp(&b.1))
                    .map_or(exact, |(scale, _)| scale)
            })
            .collect()
    };
    real.layers.par_iter().enumerate().map(of_layer).collect()
}

/// Mean square error of a kernel's sums that rounding its weights to these bits at this scale
/// makes, for inputs with these mean squares by channel, added up over output channels.
pub(crate) fn error_of_kernel(
    conv: &Conv,
    weights: &[f64],
    squares: &[f64],
    (bits, scale): (u8, i32),
) -> f64 {
    let largest = f64::from(bits - 1).exp2() - 1.0;
    let (unit, inverse) = (f64::from(scale).exp2(), f64::from(-scale).exp2());
    let taps = conv.kernel.0 as usize * conv.kernel.1 as usize;
    let row = weights.len() / conv.out_channels as usize;
    let rows = weights.chunks_exact(row).enumerate();
    rows.map(|(channel, row)| {
        let inputs = (squares.len() as u32, conv.out_channels);
        let read = group_reads(conv.groups, inputs, channel as u32);
        let squares = &squares[read.start as usize..read.end as usize];
        let tap = |(taps, square): (&[f64], &f64)| {
            let lost = taps.iter().map(|w| {
                let rounded = (w * unit).round().clamp(-largest, largest) * inverse;
                (w - rounded).powi(2)
            });
            lost.sum::<f64>() * square
        };
        row.chunks_exact(taps).zip(squares).map(tap).sum::<f64>()
    })
    .sum()
}

/// The largest exponent at which all weights round to `bits` signed bits.
fn weight_scale(weights: &[f64], bits: u8) -> i32 {
    let largest = weights.iter().fold(0.0f64, |max, w| max.max(w.abs()));
    if largest <= 0.0 {
        // Any scale holds zeros; this one is out of the way of the kernels beside it.
        return 12;
    }
    let most = f64::from(bits - 1).exp2() - 1.0;
    // Rounding reaches `most` from just below `most + 1/2`.
    ((most + 0.499) / largest).log2().floor() as i32
}
