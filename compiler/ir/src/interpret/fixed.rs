//! The fixed-point circuit in integers, rounding to nearest or with the carries of one private run.

mod activation;
mod error;
mod truncate;

use super::convolve::{Windows, convolve};
use super::label;
use crate::P;
use crate::circuit::{Circuit, Conv, Kind, Layer, Layers, PostTruncation, Reveal, Step, Term};
use crate::input::Input;
use crate::prefix::Prefix;
use crate::preprocessing::Preprocessing;
use crate::shape::Shape;
use crate::trace::{LayerTrace, Trace};
use crate::weights::{LayerWeights, Weights};
use activation::ActivationRun;
use truncate::{bound, centred, low_bits};

pub(crate) use truncate::truncate_shares;

pub use error::{Error, Stage};

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The output layer's sums, at its scale.
    pub logits: Vec<i64>,
    /// The index of the largest logit, the smallest index of several equal ones. In an exact
    /// evaluation of a circuit that reveals it, what the arg max makes of the shares.
    pub label: usize,
    /// Whether the values kept to their ranges. In an exact evaluation, whether the private
    /// inference has an answer: `label`, or `logits` if the circuit reveals those. Otherwise it
    /// says "out of the network's range", and nothing else.
    pub in_range: bool,
    /// Every tensor: the input, then the result of each activated layer.
    pub tensors: Vec<Vec<i64>>,
    /// Per layer: largest `|z|` of the sums.
    pub max_abs_before_truncation: Vec<u64>,
    /// Per layer: largest magnitude before the second truncation, of squares and of polynomials.
    pub max_abs_before_post: Vec<PostMagnitudes>,
}

/// Largest magnitudes before the second truncation of one layer; 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PostMagnitudes {
    /// Largest square.
    pub square: u64,
    /// Largest polynomial.
    pub polynomial: u64,
}

/// The bytes `[c][h][w]` of an image as the circuit's tensor 0; see [`quantise`].
///
/// # Errors
/// As [`quantise`].
pub fn quantise_image(circuit: &Circuit, pixels: &[u8]) -> Result<Vec<i64>, Error> {
    quantise(circuit, &pixels.to_vec().into())
}

/// An input as the circuit's tensor 0, with which the private computation begins: preprocessed, and
/// taken through the public prefix if there is one. The same integers on every machine.
///
/// # Errors
/// [`Error::Input`] if the input is of another kind than the circuit's, or a value is not finite or
/// beyond the circuit's bound. If the number of elements is not that of the circuit's image, a
/// channel has no mean or deviation, the image has more than 48 fractional bits, or the prefix is
/// malformed or exceeds a bound that it declares.
pub fn quantise(circuit: &Circuit, input: &Input) -> Result<Vec<i64>, Error> {
    let image = preprocess(circuit, input)?;
    let Some(prefix) = &circuit.prefix else {
        return Ok(image);
    };
    let result = Interpreter::of_prefix(prefix)?.plain(&image)?.tensors.pop();
    let result = result.expect("a run has at least its input");
    length("results of the prefix", circuit.input.len(), result.len())?;
    Ok(result)
}

/// An input as integers, before any layer.
pub(crate) fn preprocess(circuit: &Circuit, input: &Input) -> Result<Vec<i64>, Error> {
    let image = circuit.image();
    length("input", image.len(), input.len())?;
    if let Preprocessing::Channels { mean, std } | Preprocessing::Values { mean, std, .. } =
        &circuit.preprocessing
    {
        length("means", image.c as usize, mean.len())?;
        length("deviations", image.c as usize, std.len())?;
    }
    let frac_bits = circuit.image_frac_bits();
    if frac_bits > 48 {
        return Err(Error::Circuit {
            layer: "input".into(),
            detail: "more than 48 fractional bits".into(),
        });
    }
    Ok(circuit.preprocessing.integers(input, frac_bits)?)
}

/// Evaluates a circuit, each truncation rounding to nearest (ties up). See [`Interpreter::plain`].
///
/// # Errors
/// If the parts do not fit together, or a value exceeds its declared bound.
pub fn plain(circuit: &Circuit, weights: &Weights, input: &[i64]) -> Result<Run, Error> {
    Interpreter::new(circuit, weights)?.plain(input)
}

/// Evaluates a circuit with the carries of one private run. See [`Interpreter::exact`].
///
/// # Errors
/// If the parts do not fit together.
pub fn exact(
    circuit: &Circuit,
    weights: &Weights,
    input: &[i64],
    trace: &Trace,
) -> Result<Run, Error> {
    Interpreter::new(circuit, weights)?.exact(input, trace)
}

/// A circuit with its weights, prepared for many evaluations. Shared by threads.
pub struct Interpreter<'a> {
    layers: Layers<'a>,
    weights: &'a Weights,
    kernels: Vec<Vec<Kernel>>,
    sum_shapes: Vec<Shape>,
}

/// How an evaluation rounds, and what it does with values beyond their bounds.
#[derive(Clone, Copy)]
enum Mode<'t> {
    /// Rounds to nearest, and refuses them.
    Nearest,
    /// Rounds to nearest, and takes them as they are.
    Unlimited,
    /// Does what the two parties do.
    Exact(&'t Trace),
}

/// What the last layer makes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Output,
    Tensor,
}

/// One kernel; its 16-bit weights are exact in single precision.
struct Kernel {
    weights: Vec<f32>,
    /// Largest sum of absolute weights of an output channel.
    gain: i128,
}

impl<'a> Interpreter<'a> {
    /// Prepares an evaluation. The circuit need not be verified (the compiler evaluates circuits
    /// whose bounds are still open), so everything an evaluation relies on is checked here.
    ///
    /// # Errors
    /// If circuit and weights do not fit together.
    pub fn new(circuit: &'a Circuit, weights: &'a Weights) -> Result<Self, Error> {
        Self::of_layers(circuit.as_layers(), weights, End::Output)
    }

    /// Prepares an evaluation of a public prefix, whose result is the last tensor of a run.
    pub(crate) fn of_prefix(prefix: &'a Prefix) -> Result<Self, Error> {
        Self::of_layers(prefix.as_layers(), &prefix.weights, End::Tensor)
    }

    /// Prepares an evaluation of layers that end in an output or in a tensor.
    fn of_layers(layers: Layers<'a>, weights: &'a Weights, end: End) -> Result<Self, Error> {
        let count = layers.layers.len();
        length("layers of weights", count, weights.layers.len())?;
        let mut interpreter = Interpreter {
            layers,
            weights,
            kernels: Vec::with_capacity(count),
            sum_shapes: Vec::with_capacity(count),
        };
        for (index, (layer, weights)) in layers.layers.iter().zip(&weights.layers).enumerate() {
            let sum_shape = check_layer(layers, index, layer, weights)?;
            let output = end == End::Output && index + 1 == count;
            if output != matches!(layer.step, Step::Output { .. }) {
                return Err(Error::Circuit {
                    layer: layer.name.clone(),
                    detail: match output {
                        true => "the last layer is not an output".into(),
                        false => "an output before the last layer".into(),
                    },
                });
            }
            let widen = |kernel: &Vec<i16>| Kernel {
                weights: kernel.iter().map(|&w| f32::from(w)).collect(),
                gain: kernel
                    .chunks((kernel.len() / sum_shape.c as usize).max(1))
                    .map(|row| row.iter().map(|&w| i128::from(w).abs()).sum())
                    .max()
                    .unwrap_or(0),
            };
            interpreter
                .kernels
                .push(weights.kernels.iter().map(widen).collect());
            interpreter.sum_shapes.push(sum_shape);
        }
        Ok(interpreter)
    }

    /// Rounds to nearest, ties up, in both truncations: `(x + 2^(f-1)) >> f`.
    ///
    /// # Errors
    /// If the input has another size, or a value exceeds its declared bound.
    pub fn plain(&self, input: &[i64]) -> Result<Run, Error> {
        self.run(input, Mode::Nearest)
    }

    /// Does the same with values of any size: what the network answers where nothing wraps.
    /// [`Run::in_range`] tells whether all values kept to their bounds.
    ///
    /// # Errors
    /// If the input has another size, or a value exceeds `2^58`.
    pub fn unlimited(&self, input: &[i64]) -> Result<Run, Error> {
        self.run(input, Mode::Unlimited)
    }

    /// Takes each carry from the client's shares, as the two parties compute it, on any input:
    /// values are residues modulo `p`, of smallest magnitude; a ReLU keeps one by the top bit of
    /// [`Layer::sign_bits`] bits, whose guard is checked, and so is that of a label's arg max.
    ///
    /// # Errors
    /// If input or trace have other sizes, or a share is no residue.
    pub fn exact(&self, input: &[i64], trace: &Trace) -> Result<Run, Error> {
        let expected = self.layers.layers.len();
        length("layers of the trace", expected, trace.layers.len())?;
        self.run(input, Mode::Exact(trace))
    }

    /// The sums of one layer, for whoever compares layers one by one. Tensors that it does not read
    /// may be empty.
    ///
    /// # Errors
    /// If a value exceeds its declared bound.
    /// # Panics
    /// If there is no such layer, or a tensor that it reads is missing or of another size.
    pub fn sums_of(&self, index: usize, tensors: &[Vec<i64>]) -> Result<Vec<i64>, Error> {
        self.sums(index, tensors, Mode::Nearest)
    }

    /// The tensor that a layer makes of its sums, rounding to nearest as [`Interpreter::plain`];
    /// `None` at the output.
    ///
    /// # Errors
    /// If a value exceeds its declared bound.
    /// # Panics
    /// If there is no such layer.
    pub fn tensor_of(&self, index: usize, sums: &[i64]) -> Result<Option<Vec<i64>>, Error> {
        let layer = &self.layers.layers[index];
        let Step::Activate(activation) = &layer.step else {
            return Ok(None);
        };
        let polynomials = &self.weights.layers[index].polynomials;
        let run = ActivationRun {
            layer,
            activation,
            polynomials,
            mode: Mode::Nearest,
            shares: None,
        };
        Ok(Some(run.run(sums)?.0))
    }

    fn run(&self, input: &[i64], mode: Mode<'_>) -> Result<Run, Error> {
        length("input", self.layers.input.len(), input.len())?;
        let mut run = Run {
            logits: Vec::new(),
            label: 0,
            in_range: true,
            tensors: vec![input.to_vec()],
            max_abs_before_truncation: Vec::new(),
            max_abs_before_post: Vec::new(),
        };
        for (index, layer) in self.layers.layers.iter().enumerate() {
            let sums = self.sums(index, &run.tensors, mode)?;
            let largest = sums.iter().map(|z| z.unsigned_abs()).max().unwrap_or(0);
            run.max_abs_before_truncation.push(largest);
            if let Mode::Unlimited = mode {
                run.in_range &= i128::from(largest) <= bound(layer.bound_bits, layer.truncate());
            }
            if let Mode::Exact(trace) = mode {
                check_shares(layer, &trace.layers[index])?;
            }
            match &layer.step {
                Step::Activate(activation) => {
                    let activation = ActivationRun {
                        layer,
                        activation,
                        polynomials: &self.weights.layers[index].polynomials,
                        mode,
                        shares: match mode {
                            Mode::Exact(trace) => Some(&trace.layers[index]),
                            _ => None,
                        },
                    };
                    let (tensor, magnitudes, in_range) = activation.run(&sums)?;
                    run.tensors.push(tensor);
                    run.max_abs_before_post.push(magnitudes);
                    run.in_range &= in_range;
                }
                Step::Output { reveal, .. } => {
                    run.label = label(&sums);
                    if let Mode::Exact(trace) = mode {
                        let kept = match reveal {
                            Reveal::Label => {
                                let shares = &trace.layers[index].before_truncation;
                                let (label, kept) = arg_max(layer, &sums, shares);
                                run.label = label;
                                kept
                            }
                            // The client sees them, and compares them with their bound.
                            Reveal::Logits => i128::from(largest) <= bound(layer.bound_bits, 0),
                        };
                        run.in_range &= kept;
                    }
                    run.logits = sums;
                    run.max_abs_before_post.push(PostMagnitudes::default());
                }
            }
        }
        Ok(run)
    }

    /// Terms, bias and pool of one layer: within the layer's bound, or modulo `p`.
    fn sums(&self, index: usize, tensors: &[Vec<i64>], mode: Mode<'_>) -> Result<Vec<i64>, Error> {
        let is_exact = matches!(mode, Mode::Exact(_));
        let reduce = |values: &mut [i128]| {
            if is_exact {
                values.iter_mut().for_each(|v| *v = centred(*v));
            }
        };
        let layer = &self.layers.layers[index];
        let shape = self.sum_shapes[index];
        let positions = shape.h as usize * shape.w as usize;
        let mut sums: Vec<i128> = self.weights.layers[index]
            .bias
            .iter()
            .flat_map(|&b| std::iter::repeat_n(b.into(), positions))
            .collect();
        let mut kernels = self.kernels[index].iter();
        for term in &layer.terms {
            let x = &tensors[term.input().0 as usize];
            let input = self.layers.tensor_shape(term.input());
            let values = match term {
                Term::Conv(conv) => {
                    let kernel = kernels.next().expect("one kernel per convolution");
                    convolve_exactly(x, kernel, &windows(conv, input, shape))
                }
                Term::Residual {
                    window,
                    shift,
                    negative,
                    ..
                } => {
                    let wide: Vec<i128> = x.iter().map(|&v| v.into()).collect();
                    let mut values = match window {
                        Some(window) => window.sums(&wide, input, 0, |a, b| a + b),
                        None => wide,
                    };
                    // So that no residue times 2^58 saturates.
                    reduce(&mut values);
                    let factor = if *negative { -1i128 } else { 1 } << shift;
                    values
                        .iter_mut()
                        .for_each(|v| *v = v.saturating_mul(factor));
                    values
                }
            };
            let mut values = values;
            reduce(&mut values);
            // Summands below 2^90, at most 64 of them in windows of at most 2^24: no sum wraps.
            if let Some(element) = values.iter().position(|v| v.unsigned_abs() > 1 << 90) {
                let bound = bound(layer.bound_bits, layer.truncate());
                return Err(out_of_bound(layer, element, values[element], bound));
            }
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
        if let Some(pool) = &layer.pool {
            let window = pool.window(shape).expect("the pool was checked to fit");
            sums = window.sums(&sums, shape, 0, |a, b| a + b);
        }
        let element_bias = &self.weights.layers[index].element_bias;
        for (sum, &bias) in sums.iter_mut().zip(element_bias) {
            *sum += i128::from(bias);
        }
        reduce(&mut sums);
        let bound = match mode {
            Mode::Nearest => bound(layer.bound_bits, layer.truncate()),
            Mode::Unlimited => UNLIMITED,
            Mode::Exact(_) => i128::from(P),
        };
        match sums.iter().position(|z| z.abs() > bound) {
            Some(element) => Err(out_of_bound(layer, element, sums[element], bound)),
            // The bound is at most 2^60.
            None => Ok(sums.into_iter().map(|z| z as i64).collect()),
        }
    }
}

/// Largest magnitude of an evaluation without bounds.
const UNLIMITED: i128 = 1 << 58;

/// What the arg max makes of the client's shares of the logits, and whether all guards agree: it
/// compares integers of `bound_bits + 1` bits, and checks those above.
fn arg_max(layer: &Layer, sums: &[i64], shares: &[u64]) -> (usize, bool) {
    let bits = layer.bound_bits + 1;
    let (mut values, mut kept) = (Vec::with_capacity(sums.len()), true);
    for (&z, &c) in sums.iter().zip(shares) {
        let t = truncate_shares(z.into(), c, 0, layer.bound_bits);
        let value = low_bits(t, bits);
        kept &= low_bits(t, bits + layer.guard_bits) == value;
        // At most 59 bits.
        values.push(value as i64);
    }
    (label(&values), kept)
}

/// Everything that [`Interpreter::run`] relies on; returns the shape before the layer's pool.
fn check_layer(
    layers: Layers<'_>,
    index: usize,
    layer: &Layer,
    weights: &LayerWeights,
) -> Result<Shape, Error> {
    let refuse = |detail: String| Error::Circuit {
        layer: layer.name.clone(),
        detail,
    };
    if layer.terms.iter().any(|t| t.input().0 as usize > index) {
        return Err(refuse("reads a later tensor".into()));
    }
    let sum_shape = layer
        .sum_shape(layers)
        .filter(|s| !s.is_empty())
        .ok_or_else(|| refuse("the first term has no result".into()))?;
    let convs = layer.terms.iter().filter(|t| matches!(t, Term::Conv(_)));
    let count = convs.count();
    length("kernels", count, weights.kernels.len())?;
    let mut kernels = weights.kernels.iter();
    if layer.bound_bits > 58 || layer.truncate() > layer.bound_bits {
        return Err(refuse("bound or truncation out of range".into()));
    }
    for term in &layer.terms {
        if matches!(term, Term::Residual { shift, .. } if *shift > 58) {
            return Err(refuse("a residual shifted beyond the field".into()));
        }
        let input = layers.tensor_shape(term.input());
        if term.output(input) != Some(sum_shape) {
            return Err(refuse("terms of different shapes".into()));
        }
        if let Term::Conv(conv) = term {
            let kernel = kernels.next().map_or(0, Vec::len);
            let what = format!("weights of layer {}", layer.name);
            length(&what, conv.weight_count(input), kernel)?;
        }
    }
    let result = match &layer.pool {
        Some(pool) => pool.output(sum_shape),
        None => Some(sum_shape),
    };
    if result != Some(layer.shape) {
        return Err(refuse(format!("its shape is not {}", layer.shape)));
    }
    let channels = layer.shape.c as usize;
    let what = format!("biases of layer {}", layer.name);
    length(&what, channels, weights.bias.len())?;
    if !weights.element_bias.is_empty() {
        let what = format!("biases by element of layer {}", layer.name);
        length(&what, layer.shape.len(), weights.element_bias.len())?;
    }
    match &layer.step {
        Step::Output { .. } => {}
        Step::Activate(activation) => {
            let what = format!("kinds of layer {}", layer.name);
            length(&what, layer.shape.len(), activation.kinds.len())?;
            for kind in [Kind::Square, Kind::Polynomial] {
                if !activation.kinds.contains(&kind) {
                    continue;
                }
                let fits = |p: &PostTruncation| p.truncate <= p.bound_bits && p.bound_bits <= 58;
                if !activation.post(kind).is_some_and(fits) {
                    return Err(refuse(format!("no usable second truncation of {kind:?}")));
                }
            }
            if activation.kinds.contains(&Kind::Polynomial) {
                let what = format!("polynomials of layer {}", layer.name);
                length(&what, channels, weights.polynomials.len())?;
            }
        }
    }
    Ok(sum_shape)
}

fn length(what: &str, expected: usize, got: usize) -> Result<(), Error> {
    if expected != got {
        return Err(Error::Length {
            what: what.into(),
            expected,
            got,
        });
    }
    Ok(())
}

fn out_of_bound(layer: &Layer, element: usize, value: i128, bound: i128) -> Error {
    Error::OutOfBound {
        layer: layer.name.clone(),
        element,
        stage: Stage::First,
        value,
        bound,
    }
}

fn check_shares(layer: &Layer, shares: &LayerTrace) -> Result<(), Error> {
    let quadratic = match &layer.step {
        Step::Activate(a) => a.kinds.iter().filter(|k| k.is_quadratic()).count(),
        Step::Output { .. } => 0,
    };
    let lists = [
        (Stage::First, &shares.before_truncation, layer.shape.len()),
        (Stage::Second, &shares.before_post_truncation, quadratic),
    ];
    for (stage, list, expected) in lists {
        let what = format!("shares of the {stage} truncation of layer {}", layer.name);
        length(&what, expected, list.len())?;
        if let Some(index) = list.iter().position(|&c| c >= P) {
            return Err(Error::Share {
                layer: layer.name.clone(),
                index,
                stage,
            });
        }
    }
    Ok(())
}

fn windows(conv: &Conv, input: Shape, output: Shape) -> Windows {
    Windows {
        input,
        output,
        groups: conv.groups,
        kernel: conv.kernel,
        stride: conv.stride,
        padding: conv.padding,
    }
}

/// The convolution in the narrowest type in which no partial sum is rounded or wraps.
///
/// Integers of magnitude up to `2^24` are exact in single precision, up to `2^53` in double: all
/// products and partial sums, in any order, stay within the limit that is tested here. Vector units
/// multiply floats faster than integers of the same width.
fn convolve_exactly(x: &[i64], kernel: &Kernel, windows: &Windows) -> Vec<i128> {
    let largest = x.iter().map(|v| v.unsigned_abs()).max().unwrap_or(0);
    let limit = i128::from(largest).max(1) * kernel.gain.max(1);
    if limit <= 1 << f32::MANTISSA_DIGITS {
        let x: Vec<f32> = x.iter().map(|&v| v as f32).collect();
        let sums = convolve(&x, &kernel.weights, windows);
        sums.into_iter().map(|z| (z as i64).into()).collect()
    } else if limit <= 1 << f64::MANTISSA_DIGITS {
        let x: Vec<f64> = x.iter().map(|&v| v as f64).collect();
        let weights: Vec<f64> = kernel.weights.iter().map(|&w| w.into()).collect();
        let sums = convolve(&x, &weights, windows);
        sums.into_iter().map(|z| (z as i64).into()).collect()
    } else {
        // |x| <= 2^63, |w| <= 2^15 and fewer than 2^40 taps: far below 2^127.
        let x: Vec<i128> = x.iter().map(|&v| v.into()).collect();
        let weights: Vec<i128> = kernel.weights.iter().map(|&w| w as i128).collect();
        convolve(&x, &weights, windows)
    }
}

#[cfg(test)]
mod tests;
