//! The fixed-point circuit in integers, rounding to nearest or with the carries of one private run.

use super::convolve::{Windows, convolve, sum_windows};
use crate::P;
use crate::circuit::{Activation, Circuit, Conv, Kind, Layer, PostTruncation, Step, SumPool, Term};
use crate::shape::Shape;
use crate::trace::{LayerTrace, Trace};
use crate::weights::{LayerWeights, Polynomial, Weights};

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The output layer's sums, at its scale.
    pub logits: Vec<i64>,
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
    /// Of squares.
    pub square: u64,
    /// Of polynomials.
    pub polynomial: u64,
}

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A list has another length than the circuit says.
    #[error("{what}: expected {expected} values, got {got}")]
    Length {
        /// Which list.
        what: String,
        /// What the circuit says.
        expected: usize,
        /// What was given.
        got: usize,
    },
    /// A window does not fit, or terms of a layer differ in shape.
    #[error("layer {layer}: {detail}; verify the circuit before it is interpreted")]
    Circuit {
        /// Name of the layer.
        layer: String,
        /// What is wrong.
        detail: String,
    },
    /// A value exceeds the bound that its layer declares.
    #[error(
        "layer {layer}, element {element}: |{value}| before the {stage} truncation exceeds the bound {bound}: the circuit's range is too small for this input; compile it with more head room"
    )]
    OutOfBound {
        /// Name of the layer.
        layer: String,
        /// Index in the layer's result.
        element: usize,
        /// Which truncation.
        stage: Stage,
        /// The value.
        value: i128,
        /// The largest magnitude allowed.
        bound: i128,
    },
    /// The two-party truncation lost the value, as it does with the circuit's failure probability.
    #[error(
        "layer {layer}, element {element}: the shares wrapped in the {stage} truncation and the value is lost; this happens with the circuit's stated failure probability, ask again with a new bundle"
    )]
    Lost {
        /// Name of the layer.
        layer: String,
        /// Index in the layer's result.
        element: usize,
        /// Which truncation.
        stage: Stage,
    },
    /// A share is no residue.
    #[error(
        "layer {layer}: share {index} of the {stage} truncation is not below p: the trace is damaged"
    )]
    Share {
        /// Name of the layer.
        layer: String,
        /// Index in the list of shares.
        index: usize,
        /// Which truncation.
        stage: Stage,
    },
}

/// The first truncation of a layer, or the second of its squares and polynomials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Of the sum.
    First,
    /// Of a square or polynomial.
    Second,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::First => "first",
            Stage::Second => "second",
        })
    }
}

/// Pixels `[c][h][w]` as the circuit's tensor 0: `round((v / 255 - mean) / std *
/// 2^input_frac_bits)`, in double precision, ties away from zero.
///
/// # Errors
/// If the number of pixels is not that of the circuit's input, or a channel has no mean or
/// deviation.
pub fn quantise_image(circuit: &Circuit, pixels: &[u8]) -> Result<Vec<i64>, Error> {
    length("pixels", circuit.input.len(), pixels.len())?;
    length("means", circuit.input.c as usize, circuit.mean.len())?;
    length("deviations", circuit.input.c as usize, circuit.std.len())?;
    let scale = f64::from(circuit.input_frac_bits).exp2();
    let plane = circuit.input.h as usize * circuit.input.w as usize;
    let statistics = circuit.mean.iter().zip(&circuit.std);
    Ok(pixels
        .chunks_exact(plane.max(1))
        .zip(statistics)
        .flat_map(|(plane, (&mean, &std))| {
            let (mean, std) = (f64::from(mean), f64::from(std));
            plane
                .iter()
                .map(move |&v| ((f64::from(v) / 255.0 - mean) / std * scale).round() as i64)
        })
        .collect())
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
/// If the parts do not fit together, a value exceeds its declared bound, or a truncation lost it.
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
    circuit: &'a Circuit,
    weights: &'a Weights,
    kernels: Vec<Vec<Kernel>>,
    sum_shapes: Vec<Shape>,
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
        length(
            "layers of weights",
            circuit.layers.len(),
            weights.layers.len(),
        )?;
        let mut interpreter = Interpreter {
            circuit,
            weights,
            kernels: Vec::with_capacity(circuit.layers.len()),
            sum_shapes: Vec::with_capacity(circuit.layers.len()),
        };
        for (index, (layer, weights)) in circuit.layers.iter().zip(&weights.layers).enumerate() {
            let sum_shape = check_layer(circuit, index, layer, weights)?;
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
        self.run(input, None)
    }

    /// Takes each carry from the client's shares, as the two parties compute it.
    ///
    /// # Errors
    /// If input or trace have other sizes, a value exceeds its declared bound, or a truncation lost
    /// it.
    pub fn exact(&self, input: &[i64], trace: &Trace) -> Result<Run, Error> {
        let expected = self.circuit.layers.len();
        length("layers of the trace", expected, trace.layers.len())?;
        self.run(input, Some(trace))
    }

    fn run(&self, input: &[i64], trace: Option<&Trace>) -> Result<Run, Error> {
        length("input", self.circuit.input.len(), input.len())?;
        let mut run = Run {
            logits: Vec::new(),
            tensors: vec![input.to_vec()],
            max_abs_before_truncation: Vec::new(),
            max_abs_before_post: Vec::new(),
        };
        for (index, layer) in self.circuit.layers.iter().enumerate() {
            let sums = self.sums(index, &run.tensors)?;
            let largest = sums.iter().map(|z| z.unsigned_abs()).max().unwrap_or(0);
            run.max_abs_before_truncation.push(largest);
            let shares = trace.map(|t| &t.layers[index]);
            if let Some(shares) = shares {
                check_shares(layer, shares)?;
            }
            match &layer.step {
                Step::Activate(activation) => {
                    let (tensor, magnitudes) = ActivationRun {
                        layer,
                        activation,
                        polynomials: &self.weights.layers[index].polynomials,
                        shares,
                    }
                    .run(&sums)?;
                    run.tensors.push(tensor);
                    run.max_abs_before_post.push(magnitudes);
                }
                Step::Output { .. } => {
                    run.logits = sums;
                    run.max_abs_before_post.push(PostMagnitudes::default());
                }
            }
        }
        Ok(run)
    }

    /// Terms, bias and pool of one layer, within the layer's bound.
    fn sums(&self, index: usize, tensors: &[Vec<i64>]) -> Result<Vec<i64>, Error> {
        let layer = &self.circuit.layers[index];
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
            let input = self.circuit.tensor_shape(term.input());
            let values = match term {
                Term::Conv(conv) => {
                    let kernel = kernels.next().expect("one kernel per convolution");
                    convolve_exactly(x, kernel, &windows(conv, input, shape))
                }
                Term::Residual { pool, shift, .. } => {
                    let wide = x.iter().map(|&v| v.into()).collect();
                    let mut values = sum_pool(wide, input, pool.as_ref(), shape);
                    let factor = 1i128 << shift;
                    values
                        .iter_mut()
                        .for_each(|v| *v = v.saturating_mul(factor));
                    values
                }
            };
            // Summands below 2^90, at most 64 of them in windows of at most 2^24: no sum wraps.
            if let Some(element) = values.iter().position(|v| v.unsigned_abs() > 1 << 90) {
                return Err(out_of_bound(layer, element, values[element]));
            }
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
        let sums = sum_pool(sums, shape, layer.pool.as_ref(), layer.shape);
        let bound = bound(layer.bound_bits, layer.truncate());
        match sums.iter().position(|z| z.abs() > bound) {
            Some(element) => Err(out_of_bound(layer, element, sums[element])),
            // The bound is at most 2^58.
            None => Ok(sums.into_iter().map(|z| z as i64).collect()),
        }
    }
}

/// Everything that [`Interpreter::run`] relies on; returns the shape before the layer's pool.
fn check_layer(
    circuit: &Circuit,
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
        .sum_shape(circuit)
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
        let input = circuit.tensor_shape(term.input());
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
    let last = index + 1 == circuit.layers.len();
    match &layer.step {
        Step::Activate(_) if last => return Err(refuse("the last layer is no output".into())),
        Step::Output { .. } if !last => {
            return Err(refuse("an output before the last layer".into()));
        }
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

/// The largest magnitude allowed before a truncation: `2^bound_bits - 2^truncate`.
fn bound(bound_bits: u8, truncate: u8) -> i128 {
    (1i128 << bound_bits) - (1i128 << truncate)
}

fn out_of_bound(layer: &Layer, element: usize, value: i128) -> Error {
    Error::OutOfBound {
        layer: layer.name.clone(),
        element,
        stage: Stage::First,
        value,
        bound: bound(layer.bound_bits, layer.truncate()),
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

/// Sums over the windows of a pool; the values as they are if there is none.
fn sum_pool(x: Vec<i128>, input: Shape, pool: Option<&SumPool>, output: Shape) -> Vec<i128> {
    match pool {
        Some(pool) => sum_windows(&x, input, pool.kernel, pool.stride, output),
        None => x,
    }
}

/// `(x + 2^(f-1)) >> f`.
fn round_to_nearest(x: i128, f: u8) -> i128 {
    if f == 0 { x } else { (x + (1 << (f - 1))) >> f }
}

/// The two parties' truncation of `x` with client's share `c`, as an integer:
/// `((c + B) mod p >> f) - (((p - d) mod p) >> f) - (B >> f)` with `d = (x - c) mod p`.
fn truncate_shares(x: i128, c: u64, f: u8, bound_bits: u8) -> i128 {
    let (p, c, b) = (i128::from(P), i128::from(c), 1i128 << bound_bits);
    let d = (x - c).rem_euclid(p);
    (((c + b) % p) >> f) - (((p - d) % p) >> f) - (b >> f)
}

/// The residue of smallest magnitude.
fn centred(x: i128) -> i128 {
    let p = i128::from(P);
    let r = x.rem_euclid(p);
    if r > p / 2 { r - p } else { r }
}

/// Truncation and activation of one layer's sums.
struct ActivationRun<'a> {
    layer: &'a Layer,
    activation: &'a Activation,
    polynomials: &'a [Polynomial],
    shares: Option<&'a LayerTrace>,
}

impl ActivationRun<'_> {
    fn run(&self, sums: &[i64]) -> Result<(Vec<i64>, PostMagnitudes), Error> {
        let positions = self.layer.shape.h as usize * self.layer.shape.w as usize;
        let mut magnitudes = PostMagnitudes::default();
        let mut quadratic = 0;
        let mut tensor = Vec::with_capacity(sums.len());
        for (element, (&z, &kind)) in sums.iter().zip(&self.activation.kinds).enumerate() {
            let y = self.truncate_sum(element, z, kind)?;
            let value = match kind {
                Kind::Relu => y.max(0),
                Kind::Identity => y,
                Kind::Square => {
                    let v = y * y;
                    self.check_post(element, kind, v)?;
                    magnitudes.square = magnitudes.square.max(v.unsigned_abs() as u64);
                    self.truncate_post(element, &mut quadratic, kind, v)?
                }
                Kind::Polynomial => {
                    let Polynomial { a, b, k } = self.polynomials[element / positions];
                    // |y| <= 2^58 and |a| < 2^63: checked, because a * y^2 may pass 2^127.
                    let v = (i128::from(a) * y)
                        .checked_add(i128::from(b))
                        .and_then(|v| v.checked_mul(y))
                        .and_then(|v| v.checked_add(i128::from(k)))
                        .unwrap_or(i128::MAX);
                    self.check_post(element, kind, v)?;
                    magnitudes.polynomial = magnitudes.polynomial.max(v.unsigned_abs() as u64);
                    self.truncate_post(element, &mut quadratic, kind, v)?
                }
            };
            // All magnitudes are at most 2^58 here: the bounds were checked before the truncations.
            tensor.push(value as i64);
        }
        Ok((tensor, magnitudes))
    }

    fn truncate_sum(&self, element: usize, z: i64, kind: Kind) -> Result<i128, Error> {
        let (f, bound_bits) = (self.activation.truncate, self.layer.bound_bits);
        let Some(shares) = self.shares else {
            return Ok(round_to_nearest(z.into(), f));
        };
        let t = truncate_shares(z.into(), shares.before_truncation[element], f, bound_bits);
        // A garbled sign reads the integer; everything else the field element, which without a
        // truncation is right even where the shares wrapped.
        let t = if kind == Kind::Relu { t } else { centred(t) };
        if t.abs() > 1 << (bound_bits - f) {
            return Err(self.lost(element, Stage::First));
        }
        Ok(t)
    }

    fn truncate_post(
        &self,
        element: usize,
        quadratic: &mut usize,
        kind: Kind,
        v: i128,
    ) -> Result<i128, Error> {
        let post = self.post(kind);
        let Some(shares) = self.shares else {
            return Ok(round_to_nearest(v, post.truncate));
        };
        let c = shares.before_post_truncation[*quadratic];
        *quadratic += 1;
        let t = centred(truncate_shares(v, c, post.truncate, post.bound_bits));
        if t.abs() > 1 << (post.bound_bits - post.truncate) {
            return Err(self.lost(element, Stage::Second));
        }
        Ok(t)
    }

    fn check_post(&self, element: usize, kind: Kind, value: i128) -> Result<(), Error> {
        let post = self.post(kind);
        let bound = bound(post.bound_bits, post.truncate);
        if value.abs() > bound {
            return Err(Error::OutOfBound {
                layer: self.layer.name.clone(),
                element,
                stage: Stage::Second,
                value,
                bound,
            });
        }
        Ok(())
    }

    fn post(&self, kind: Kind) -> &PostTruncation {
        self.activation
            .post(kind)
            .expect("the interpreter was made for layers with all second truncations")
    }

    fn lost(&self, element: usize, stage: Stage) -> Error {
        Error::Lost {
            layer: self.layer.name.clone(),
            element,
            stage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::{Range, TensorId};
    use crate::shape::Padding;

    const F: u8 = 8;
    const BOUND_BITS: u8 = 23;
    /// A share far from both ends of the field, all low bits zero.
    const SHARE: u64 = 1 << 40;

    /// Floor, or one more, for every share that does not wrap; the edges of range and share.
    #[test]
    fn truncation_with_shares_is_floor_or_one_more() {
        let b = 1i128 << BOUND_BITS;
        let step = 1i128 << F;
        let values = [0, 1, -1, 255, -255, -256, -257, 256, b - step, step - b];
        let p = i128::from(P);
        // x + B = (c + B) - (p - d) holds unless c lies within B below p or within |x| above 0.
        let shares = [2 * b, 2 * b + 1, 2 * b + 255, p / 2, p / 3, p - 2 * b];
        for x in values {
            for c in shares {
                let t = truncate_shares(x, c as u64, F, BOUND_BITS);
                assert!(t == x >> F || t == (x >> F) + 1, "x {x}, share {c}: {t}");
                if x % step == 0 {
                    assert_eq!(t, x >> F, "x {x}, share {c}: no fraction, no carry");
                }
            }
        }
        // -1 becomes -1 or 0, by the share's low bits.
        assert_eq!(truncate_shares(-1, SHARE, F, BOUND_BITS), 0);
        assert_eq!(truncate_shares(-1, SHARE + 255, F, BOUND_BITS), -1);
    }

    #[test]
    fn truncation_is_unbiased_over_the_low_bits_of_the_share() {
        for x in [-1000i128, -1, 0, 77, 128, 12_345] {
            let carries = (0..1u64 << F)
                .filter(|c| truncate_shares(x, SHARE + c, F, BOUND_BITS) != x >> F)
                .count() as i128;
            assert_eq!(carries, x.rem_euclid(1 << F), "x {x}");
        }
    }

    #[test]
    fn a_wrapped_share_is_lost_and_said_so() {
        let circuit = one_layer(vec![Kind::Relu], F, BOUND_BITS);
        let weights = weights(vec![vec![1]]);
        let mut trace = Trace {
            layers: vec![
                LayerTrace {
                    before_truncation: vec![P - 1],
                    before_post_truncation: vec![],
                },
                LayerTrace {
                    before_truncation: vec![5],
                    before_post_truncation: vec![],
                },
            ],
        };
        // c + B wraps, p - d does not: x + B is off by p.
        let error = exact(&circuit, &weights, &[300], &trace).unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{error}");
        trace.layers[0].before_truncation[0] = P;
        let error = exact(&circuit, &weights, &[300], &trace).unwrap_err();
        assert!(matches!(error, Error::Share { index: 0, .. }), "{error}");
        trace.layers[0].before_truncation[0] = SHARE + 255;
        assert_eq!(
            exact(&circuit, &weights, &[300], &trace).unwrap().logits,
            [1]
        );
        assert_eq!(plain(&circuit, &weights, &[300]).unwrap().logits, [1]);
        trace.layers.pop();
        assert!(matches!(
            exact(&circuit, &weights, &[300], &trace),
            Err(Error::Length { .. })
        ));
    }

    #[test]
    fn rounding_to_nearest_takes_ties_up() {
        let cases = [
            (0, 0),
            (127, 0),
            (128, 1),
            (-128, 0),
            (-129, -1),
            (384, 2),
            (-384, -1),
        ];
        for (x, expected) in cases {
            assert_eq!(round_to_nearest(x, 8), expected, "{x}");
        }
        assert_eq!(round_to_nearest(-77, 0), -77);
    }

    #[test]
    fn a_value_over_its_bound_names_layer_and_element() {
        let circuit = one_layer(vec![Kind::Identity; 2], F, BOUND_BITS);
        let weights = weights(vec![vec![1]]);
        let edge = (1i64 << BOUND_BITS) - (1 << F);
        let run = plain(&circuit, &weights, &[edge, -edge]).unwrap();
        assert_eq!(run.logits, [edge >> F, -(edge >> F)]);
        assert_eq!(run.max_abs_before_truncation[0], edge as u64);
        let error = plain(&circuit, &weights, &[edge, -edge - 1]).unwrap_err();
        assert_eq!(
            error,
            Error::OutOfBound {
                layer: "act".into(),
                element: 1,
                stage: Stage::First,
                value: i128::from(-edge - 1),
                bound: i128::from(edge),
            }
        );
        // Values whose products pass i64 are found, not wrapped.
        let huge = plain(&circuit, &weights, &[0, i64::MIN]).unwrap_err();
        let value = i128::from(i64::MIN);
        assert!(
            matches!(huge, Error::OutOfBound { element: 1, value: v, .. } if v == value),
            "{huge}"
        );
        let mut shifted = circuit;
        shifted.layers[0].terms.push(Term::Residual {
            input: TensorId(0),
            pool: None,
            shift: 58,
        });
        let huge = plain(&shifted, &weights, &[0, i64::MAX]).unwrap_err();
        assert!(
            matches!(huge, Error::OutOfBound { element: 1, value, .. } if value >> 120 == 1),
            "{huge}"
        );
    }

    #[test]
    fn squares_and_polynomials_follow_their_formulas() {
        let mut circuit = one_layer(
            vec![Kind::Square, Kind::Polynomial, Kind::Relu, Kind::Identity],
            F,
            BOUND_BITS,
        );
        let Step::Activate(activation) = &mut circuit.layers[0].step else {
            panic!("the first layer activates");
        };
        let post = |truncate| PostTruncation {
            truncate,
            bound_bits: 30,
            range: Range::Proved,
        };
        activation.square = Some(post(4));
        activation.polynomial = Some(post(6));
        let mut weights = weights(vec![vec![1]]);
        weights.layers[0].polynomials = vec![Polynomial {
            a: 3,
            b: -50,
            k: 700,
        }];
        let y = |v: i64| (v + 128) >> 8;
        let input = [-25_700, 25_700, -25_700, -25_700];
        let run = plain(&circuit, &weights, &input).unwrap();
        let (n, p) = (y(-25_700), y(25_700));
        let quadratic = 3 * p * p - 50 * p + 700;
        assert_eq!(run.logits, [(n * n + 8) >> 4, (quadratic + 32) >> 6, 0, n]);
        assert_eq!(run.max_abs_before_post[0].square, (n * n) as u64);
        assert_eq!(run.max_abs_before_post[0].polynomial, quadratic as u64);

        let trace = Trace {
            layers: vec![
                LayerTrace {
                    before_truncation: vec![SHARE + 255; 4],
                    before_post_truncation: vec![SHARE + 15, SHARE],
                },
                LayerTrace {
                    before_truncation: vec![0; 4],
                    before_post_truncation: vec![],
                },
            ],
        };
        // All ones in a share's low bits give the floor; zeros carry every fraction.
        let run = exact(&circuit, &weights, &input, &trace).unwrap();
        let (n, p) = (-25_700i64 >> 8, 25_700i64 >> 8);
        let quadratic = 3 * p * p - 50 * p + 700;
        assert_ne!(quadratic % 64, 0);
        assert_eq!(run.logits, [(n * n) >> 4, (quadratic >> 6) + 1, 0, n]);
        activation_bound_is_checked(circuit, weights);
    }

    fn activation_bound_is_checked(mut circuit: Circuit, weights: Weights) {
        let Step::Activate(activation) = &mut circuit.layers[0].step else {
            panic!("the first layer activates");
        };
        activation.square.as_mut().unwrap().bound_bits = 10;
        let error = plain(&circuit, &weights, &[25_700, 0, 0, 0]).unwrap_err();
        assert!(
            matches!(
                error,
                Error::OutOfBound {
                    stage: Stage::Second,
                    element: 0,
                    value: 10_000,
                    bound: 1008,
                    ..
                }
            ),
            "{error}"
        );
    }

    /// A strided, unevenly padded convolution, a shifted and pooled residual and a layer pool,
    /// against loops written out.
    #[test]
    fn sums_match_a_direct_computation() {
        let (c, h, w) = (2usize, 5usize, 4usize);
        let input: Vec<i64> = (0..c * h * w).map(|i| (i as i64 * 37 % 101) - 50).collect();
        let weights: Vec<i16> = (0..2 * 2 * 2 * 3)
            .map(|i| (i * 29 % 61 - 30) as i16)
            .collect();
        let conv = Conv {
            input: TensorId(0),
            out_channels: 2,
            kernel: (2, 3),
            stride: (2, 1),
            padding: Padding {
                top: 1,
                left: 2,
                bottom: 0,
                right: 1,
            },
            weight_bits: 7,
        };
        // Rows: (5 + 1 - 2) / 2 + 1 = 3; columns: (4 + 3 - 3) / 1 + 1 = 5.
        // The three number types: sums below 2^24, below 2^53, and beyond.
        let scales = [1i64, 1 << 20, 1 << 44];
        for scale in scales {
            let x: Vec<i64> = input.iter().map(|v| v * scale).collect();
            let shape = conv.output(Shape::new(2, 5, 4)).unwrap();
            assert_eq!(shape, Shape::new(2, 3, 5));
            let kernel = Kernel {
                weights: weights.iter().map(|&w| w.into()).collect(),
                gain: 12 * 30,
            };
            let got = convolve_exactly(&x, &kernel, &windows(&conv, Shape::new(2, 5, 4), shape));
            for o in 0..2 {
                for i in 0..3 {
                    for j in 0..5 {
                        let mut sum = 0i64;
                        for ch in 0..c {
                            for ki in 0..2 {
                                for kj in 0..3 {
                                    let y = (2 * i + ki) as isize - 1;
                                    let z = (j + kj) as isize - 2;
                                    if (0..h as isize).contains(&y) && (0..w as isize).contains(&z)
                                    {
                                        sum += x[(ch * h + y as usize) * w + z as usize]
                                            * i64::from(weights[((o * c + ch) * 2 + ki) * 3 + kj]);
                                    }
                                }
                            }
                        }
                        assert_eq!(
                            got[(o * 3 + i) * 5 + j],
                            sum.into(),
                            "scale {scale}, {o} {i} {j}"
                        );
                    }
                }
            }
        }
        let pool = SumPool {
            kernel: (2, 3),
            stride: (2, 1),
        };
        let output = pool.output(Shape::new(2, 5, 4)).unwrap();
        assert_eq!(output, Shape::new(2, 2, 2));
        let sums = sum_windows(
            &input,
            Shape::new(2, 5, 4),
            pool.kernel,
            pool.stride,
            output,
        );
        let first: i64 = [0, 1, 2, 4, 5, 6].iter().map(|&i| input[i]).sum();
        let last: i64 = [29, 30, 31, 33, 34, 35].iter().map(|&i| input[i]).sum();
        assert_eq!((sums[0], sums[7]), (first, last));
    }

    #[test]
    fn residuals_shift_and_bias_counts_once_per_position() {
        let mut circuit = one_layer(vec![Kind::Identity; 4], 0, BOUND_BITS);
        let layer = &mut circuit.layers[0];
        layer.terms.push(Term::Residual {
            input: TensorId(0),
            pool: None,
            shift: 3,
        });
        layer.pool = Some(SumPool {
            kernel: (1, 2),
            stride: (1, 2),
        });
        layer.shape = Shape::new(1, 1, 2);
        let Step::Activate(activation) = &mut layer.step else {
            panic!("the first layer activates");
        };
        activation.kinds.truncate(2);
        circuit.layers[1].shape = Shape::new(1, 1, 2);
        let mut weights = weights(vec![vec![-2]]);
        weights.layers[0].bias = vec![100];
        let run = plain(&circuit, &weights, &[1, 2, 3, -4]).unwrap();
        assert_eq!(run.logits, [200 + 6 * 3, 200 - 6]);
    }

    #[test]
    fn pixels_are_normalised_and_rounded() {
        let mut circuit = one_layer(vec![Kind::Relu; 2], F, BOUND_BITS);
        circuit.input = Shape::new(2, 1, 2);
        circuit.mean = vec![0.5, 0.0];
        circuit.std = vec![0.25, 1.0];
        circuit.input_frac_bits = 6;
        // (0 - 0.5) / 0.25 * 64 = -128; 255 -> 128; then 51 / 255 * 64 = 12.8.
        assert_eq!(
            quantise_image(&circuit, &[0, 255, 51, 255]).unwrap(),
            [-128, 128, 13, 64]
        );
        assert!(quantise_image(&circuit, &[0; 3]).is_err());
    }

    /// A 1x1 convolution of one channel with the given kinds, then an identity output.
    fn one_layer(kinds: Vec<Kind>, truncate: u8, bound_bits: u8) -> Circuit {
        let shape = Shape::new(1, 1, kinds.len() as u32);
        let conv = |input| {
            Term::Conv(Conv {
                input: TensorId(input),
                out_channels: 1,
                kernel: (1, 1),
                stride: (1, 1),
                padding: Padding::default(),
                weight_bits: 7,
            })
        };
        Circuit {
            name: "one".into(),
            input: shape,
            input_frac_bits: 0,
            mean: vec![0.0],
            std: vec![1.0],
            classes: vec![],
            layers: vec![
                Layer {
                    name: "act".into(),
                    terms: vec![conv(0)],
                    pool: None,
                    shape,
                    bound_bits,
                    range: Range::Proved,
                    step: Step::Activate(Activation {
                        truncate,
                        frac_bits: 0,
                        kinds,
                        square: None,
                        polynomial: None,
                    }),
                },
                Layer {
                    name: "out".into(),
                    terms: vec![conv(1)],
                    pool: None,
                    shape,
                    bound_bits: 40,
                    range: Range::Proved,
                    step: Step::Output { frac_bits: 0 },
                },
            ],
        }
    }

    fn weights(first: Vec<Vec<i16>>) -> Weights {
        let layer = |kernels| LayerWeights {
            kernels,
            bias: vec![0],
            polynomials: vec![],
        };
        Weights {
            layers: vec![layer(first), layer(vec![vec![1]])],
        }
    }
}
