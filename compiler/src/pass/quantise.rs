//! Real numbers to integers: scales from calibration, weights, biases, polynomials, and where bits
//! are cut.
//!
//! All scales are powers of two. A tensor gets the scale at which the largest sum seen on
//! calibration data uses [`Precision::activation_bits`] bits; a layer's sum the largest scale at
//! which every kernel of it fits [`Precision::weight_bits`]. The difference is the layer's
//! truncation. Two rules couple layers, and lower a tensor's scale where they must: a residual is
//! shifted left, never right, and the kernels of one layer share the scale of its sum.

use crate::fault::{Fault, Refused};
use crate::pass::calibrate::Magnitudes;
use crate::real_circuit::{self, RealCircuit, Step, Term};
use pi_ir::{
    Activation, Circuit, Conv, Kind, Layer, LayerWeights, Polynomial, PostTruncation, Range,
    SumPool, TensorId, Weights,
};

/// Numbers of bits to spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Bits of a signed weight, 2 to 15: 8 means `-127 ..= 127`.
    pub weight_bits: u8,
    /// Bits of the largest activation seen, without its sign.
    pub activation_bits: u8,
    /// Bits left above the largest value seen, where no proof bounds it; at least 2.
    pub head_room: u8,
    /// Widest sign circuit accepted for the sake of a proof instead of what was seen.
    pub proved_sign_bits: u8,
}

impl Default for Precision {
    fn default() -> Self {
        Precision {
            weight_bits: 8,
            activation_bits: 10,
            head_room: 2,
            proved_sign_bits: 17,
        }
    }
}

/// Largest `log2 B` of polynomials and squares: 2^19 of them then lose a value with probability
/// 2^-12 at most.
pub const POLYNOMIAL_BOUND_BITS: u8 = 28;
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
}

/// Names and statistics that the circuit takes from the graph.
pub struct Identity<'a> {
    /// Name of the network.
    pub name: &'a str,
    /// Per-channel mean.
    pub mean: &'a [f32],
    /// Per-channel deviation.
    pub std: &'a [f32],
    /// Class names.
    pub classes: &'a [String],
}

/// Chooses all scales.
///
/// # Errors
/// If a tensor would be left with too few bits, or a value is not finite: one fault per layer.
pub fn scales(
    real: &RealCircuit,
    seen: &Magnitudes,
    precision: &Precision,
) -> Result<Scales, Refused> {
    check_finite(real, seen)?;
    let wanted = i32::from(precision.activation_bits);
    let mut tensors = vec![scale_for(seen.input, wanted)];
    let activations = real.layers.len() - 1;
    tensors.extend(
        seen.sums[..activations]
            .iter()
            .map(|&m| scale_for(m, wanted)),
    );
    let first = tensors.clone();
    // Each round only lowers scales, each of them by what a rule asks for, so rounds end.
    loop {
        let mut round = Round {
            real,
            seen,
            precision,
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
            });
        }
        tensors = round.tensors;
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
        let kernels: Vec<(usize, i32)> = (layer.terms.iter())
            .filter_map(|term| match term {
                Term::Conv { conv, weights } => Some((
                    conv.input.0 as usize,
                    weight_scale(weights, self.precision.weight_bits),
                )),
                Term::Residual { .. } => None,
            })
            .collect();
        let residuals: Vec<(usize, i32)> = (layer.terms.iter())
            .filter_map(|term| match term {
                Term::Conv { .. } => None,
                Term::Residual {
                    input, halvings, ..
                } => Some((input.0 as usize, i32::from(*halvings))),
            })
            .collect();
        let pool_bits = i32::from(layer.pool_bits);
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
        for (tensor, weight_scale) in &kernels {
            let lost = self.tensors[*tensor] + weight_scale - scale;
            let enough = i32::from(self.precision.activation_bits) - SPARE_BITS;
            let to_spare = self.bits(*tensor) - enough;
            self.tensors[*tensor] -= lost.min(to_spare).max(0);
        }
        if let Some(result) = result {
            let added = residuals
                .iter()
                .map(|(t, halvings)| self.tensors[*t] + halvings);
            let needed = added.max().unwrap_or(i32::MIN);
            let finest = self.tensors[result] - pool_bits + MOST_TRUNCATED;
            scale = scale.min(finest.max(needed));
        }
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
        let room = room - largest.log2().ceil() as i32;
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
            layer => self.seen.sums[layer - 1],
        };
        if magnitude <= 0.0 {
            return 0;
        }
        magnitude.log2().ceil() as i32 + self.tensors[tensor]
    }
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

/// The integer circuit at given scales, with bounds still at their widest (see
/// [`crate::pass::range`]).
///
/// # Errors
/// One fault per layer whose integers do not fit.
pub fn quantise(
    real: &RealCircuit,
    scales: &Scales,
    precision: &Precision,
    identity: &Identity<'_>,
) -> Result<(Circuit, Weights), Refused> {
    let mut faults = Vec::new();
    let mut circuit = Circuit {
        name: identity.name.into(),
        input: real.input,
        input_frac_bits: byte(scales.tensors[0]),
        mean: identity.mean.into(),
        std: identity.std.into(),
        classes: identity.classes.into(),
        layers: Vec::with_capacity(real.layers.len()),
    };
    let mut weights = Weights {
        layers: Vec::with_capacity(real.layers.len()),
    };
    for (index, layer) in real.layers.iter().enumerate() {
        let (public, private) = quantise_layer(index, layer, scales, precision);
        if let Err(message) = check_online_products(&private, layer.shape.c as usize) {
            faults.push(Fault::new(&layer.name, message));
        }
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
    precision: &Precision,
) -> (Layer, LayerWeights) {
    let sum = scales.sums[index];
    let mut kernels = Vec::new();
    let mut terms = Vec::with_capacity(layer.terms.len());
    for term in &layer.terms {
        terms.push(match term {
            Term::Conv { conv, weights } => {
                let scale = f64::from(sum - scales.tensors[conv.input.0 as usize]).exp2();
                kernels.push(weights.iter().map(|w| (w * scale).round() as i16).collect());
                pi_ir::Term::Conv(Conv {
                    weight_bits: precision.weight_bits - 1,
                    ..conv.clone()
                })
            }
            Term::Residual {
                input,
                pool,
                halvings,
            } => residual(*input, *pool, *halvings, sum, scales),
        });
    }
    let scale = f64::from(sum).exp2();
    let bias = layer
        .bias
        .iter()
        .map(|b| (b * scale).round() as i64)
        .collect();
    let sum = sum + i32::from(layer.pool_bits);
    let mut integers = Vec::new();
    let step = match &layer.step {
        Step::Output => pi_ir::Step::Output {
            frac_bits: byte(sum),
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
        step,
    };
    let private = LayerWeights {
        kernels,
        bias,
        polynomials: integers,
    };
    (public, private)
}

fn residual(
    input: TensorId,
    pool: Option<SumPool>,
    halvings: u8,
    sum: i32,
    scales: &Scales,
) -> pi_ir::Term {
    let shift = sum - scales.tensors[input.0 as usize] - i32::from(halvings);
    pi_ir::Term::Residual {
        input,
        pool,
        shift: byte(shift),
    }
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

/// The server multiplies 30-bit limbs in double precision: `30 + log2 sum |w| <= 53` for each
/// output channel.
fn check_online_products(weights: &LayerWeights, channels: usize) -> Result<(), String> {
    let mut sums = vec![0u64; channels];
    for kernel in &weights.kernels {
        let row = kernel.len() / channels;
        for (sum, row) in sums.iter_mut().zip(kernel.chunks_exact(row.max(1))) {
            *sum += row.iter().map(|w| u64::from(w.unsigned_abs())).sum::<u64>();
        }
    }
    let largest = sums.into_iter().max().unwrap_or(0);
    if largest > 1 << 23 {
        return Err(format!(
            "an output channel's weights sum to {largest} in magnitude, above 2^23: \
             online products would not be exact; lower --weight-bits"
        ));
    }
    Ok(())
}

fn byte(value: i32) -> u8 {
    u8::try_from(value).expect("the rounds keep scales and their differences between 0 and 255")
}
