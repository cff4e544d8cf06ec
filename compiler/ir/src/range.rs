//! Interval analysis of a circuit: the largest magnitudes any image can reach.
//!
//! Each element of each tensor has a separate interval, so that padding and shape matter as they do
//! in the evaluation. Sums are exact for independent inputs (the image's pixels are); deeper,
//! intervals forget that elements depend on each other and may be wider than the truth, never
//! narrower. Truncation adds what either rounding can: floor up to ceiling.

use crate::circuit::{Activation, Circuit, Kind, Layer, Layers, PostTruncation, Range, Step, Term};
use crate::interpret::convolve::{Windows, convolve};
use crate::interpret::fixed::{Interpreter, preprocess};
use crate::shape::{Shape, Window};
use crate::verify::Verified;
use crate::weights::{LayerWeights, Polynomial, Weights};

/// All integers from `low` to `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Smallest.
    pub low: i64,
    /// Largest.
    pub high: i64,
}

impl Interval {
    /// Largest magnitude.
    pub fn magnitude(&self) -> u64 {
        self.low.unsigned_abs().max(self.high.unsigned_abs())
    }
}

/// Largest magnitudes of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRange {
    /// Largest sum before the first truncation.
    pub sum: u64,
    /// Largest square before the second truncation; 0 if there are none.
    pub square: u64,
    /// Largest polynomial before the second truncation; 0 if there are none.
    pub polynomial: u64,
    /// Largest value of the resulting tensor, or of the logits.
    pub result: u64,
}

/// Reason why a layer has no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Values may leave 62 bits.
    #[error(
        "layer {layer}: values may exceed 2^62: no bound can be proved; \
         calibrate this layer or cut more bits before it"
    )]
    Unbounded {
        /// Name of the layer.
        layer: String,
    },
    /// The weights do not fit the circuit.
    #[error("{0}; verify the weights first")]
    Malformed(String),
}

/// Ranges of all layers. Below a layer whose range is calibrated, its declared bound is taken for
/// true.
///
/// # Errors
/// If the parts do not fit together, or a layer has no range below `2^62`.
pub fn analyse(circuit: &Verified<Circuit>, weights: &Weights) -> Result<Vec<LayerRange>, Error> {
    let faults = crate::verify::weights(circuit, weights);
    if !faults.is_empty() {
        return Err(Error::Malformed(crate::verify::list(&faults)));
    }
    let (ranges, _) = propagate(circuit.as_layers(), weights, input(circuit)?)?;
    Ok(ranges)
}

/// Largest magnitudes of one layer, where only guards are relied upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardedRange {
    /// Largest sum.
    pub sum: u64,
    /// Largest sum that a garbled circuit reads: of the ReLUs, or of all logits; 0 if none does.
    pub garbled: u64,
}

/// Ranges of all layers, if the values at guarded ReLUs keep to their bounds and nothing is assumed
/// of any other calibrated bound: an inference in which one does not has no answer. `None` from the
/// first layer on that has no range below `2^62`.
///
/// # Errors
/// If the parts do not fit together.
pub fn guarded(
    circuit: &Verified<Circuit>,
    weights: &Weights,
) -> Result<Vec<Option<GuardedRange>>, Error> {
    let faults = crate::verify::weights(circuit, weights);
    if !faults.is_empty() {
        return Err(Error::Malformed(crate::verify::list(&faults)));
    }
    let mut tensors = vec![input(circuit)?];
    let mut ranges = vec![None; circuit.layers.len()];
    for (index, layer) in circuit.layers.iter().enumerate() {
        let weights = &weights.layers[index];
        let Ok(mut sums) = sums(circuit.as_layers(), index, weights, &tensors) else {
            break;
        };
        let is_garbled = |element: usize| match &layer.step {
            Step::Activate(activation) => activation.kinds[element] == Kind::Relu,
            Step::Output { .. } => true,
        };
        let mut range = GuardedRange {
            sum: largest(&sums),
            garbled: 0,
        };
        let bound = (1i64 << layer.bound_bits) - (1i64 << layer.truncate());
        for (element, sum) in sums.iter_mut().enumerate() {
            if is_garbled(element) {
                range.garbled = range.garbled.max(sum.magnitude());
                if layer.guard_bits > 0 {
                    clamp(std::slice::from_mut(sum), bound);
                }
            }
        }
        ranges[index] = Some(range);
        let Step::Activate(activation) = &layer.step else {
            break;
        };
        // Second truncations have no guard.
        let mut activation = activation.clone();
        for post in [&mut activation.square, &mut activation.polynomial] {
            post.iter_mut().for_each(|post| post.range = Range::Proved);
        }
        match activate(layer, &activation, weights, &sums) {
            Ok((tensor, _)) => tensors.push(tensor),
            Err(_) => break,
        }
    }
    Ok(ranges)
}

/// Ranges of layers from the intervals of tensor 0, and the intervals of every tensor.
fn propagate(
    layers: Layers<'_>,
    weights: &Weights,
    input: Vec<Interval>,
) -> Result<(Vec<LayerRange>, Vec<Vec<Interval>>), Error> {
    let mut tensors = vec![input];
    let mut ranges = Vec::with_capacity(layers.layers.len());
    for (index, layer) in layers.layers.iter().enumerate() {
        let weights = &weights.layers[index];
        let mut sums = sums(layers, index, weights, &tensors)?;
        let sum = largest(&sums);
        if let Range::Calibrated { .. } = layer.range {
            let bound = (1i64 << layer.bound_bits) - (1i64 << layer.truncate());
            clamp(&mut sums, bound);
        }
        let (tensor, mut range) = match &layer.step {
            Step::Activate(activation) => activate(layer, activation, weights, &sums)?,
            Step::Output { .. } => {
                let range = LayerRange {
                    sum,
                    square: 0,
                    polynomial: 0,
                    result: largest(&sums),
                };
                (Vec::new(), range)
            }
        };
        range.sum = sum;
        ranges.push(range);
        tensors.push(tensor);
    }
    Ok((ranges, tensors))
}

/// Ranges of the layers of a circuit's public prefix, over every image; empty without a prefix. The
/// circuit need not be verified.
///
/// # Errors
/// If the prefix and its weights do not fit together, or a layer has no range below `2^62`.
pub fn prefix(circuit: &Circuit) -> Result<Vec<LayerRange>, Error> {
    let Some(prefix) = &circuit.prefix else {
        return Ok(Vec::new());
    };
    Interpreter::of_prefix(prefix).map_err(|e| Error::Malformed(e.to_string()))?;
    let (ranges, _) = propagate(prefix.as_layers(), &prefix.weights, image(circuit)?)?;
    Ok(ranges)
}

/// Smallest `b` with `magnitude <= 2^b - 2^truncate`.
pub fn bound_bits(magnitude: u64, truncate: u8) -> u8 {
    let needed = u128::from(magnitude) + (1u128 << truncate);
    let bits = u128::BITS - (needed - 1).leading_zeros();
    (bits as u8).max(truncate)
}

pub(crate) fn largest(intervals: &[Interval]) -> u64 {
    intervals.iter().map(Interval::magnitude).max().unwrap_or(0)
}

fn clamp(intervals: &mut [Interval], bound: i64) {
    for i in intervals {
        i.low = i.low.clamp(-bound, bound);
        i.high = i.high.clamp(-bound, bound);
    }
}

/// Intervals of tensor 0: of the image's elements, or of what the public prefix makes of them.
pub(crate) fn input(circuit: &Circuit) -> Result<Vec<Interval>, Error> {
    let image = image(circuit)?;
    match &circuit.prefix {
        None => Ok(image),
        Some(prefix) => {
            let (_, mut tensors) = propagate(prefix.as_layers(), &prefix.weights, image)?;
            Ok(tensors.pop().expect("there is at least the image"))
        }
    }
}

/// Intervals of the image's elements: black to white in every pixel, or what any input can
/// reach.
fn image(circuit: &Circuit) -> Result<Vec<Interval>, Error> {
    let (count, frac_bits) = (circuit.image().len(), circuit.image_frac_bits());
    let preprocessing = &circuit.preprocessing;
    if let Some(largest) = preprocessing.largest(count, frac_bits) {
        let interval = Interval {
            low: -largest,
            high: largest,
        };
        return Ok(vec![interval; count]);
    }
    let quantise = |pixel: u8| {
        preprocess(circuit, &vec![pixel; count].into()).map_err(|e| Error::Malformed(e.to_string()))
    };
    let (black, white) = (quantise(0)?, quantise(255)?);
    let pairs = black.into_iter().zip(white);
    Ok(pairs.map(|(low, high)| Interval { low, high }).collect())
}

/// Intervals of a layer's sums, from those of the tensors before it.
pub(crate) fn sums(
    layers: Layers<'_>,
    index: usize,
    weights: &LayerWeights,
    tensors: &[Vec<Interval>],
) -> Result<Vec<Interval>, Error> {
    let layer = &layers.layers[index];
    let unbounded = || Error::Unbounded {
        layer: layer.name.clone(),
    };
    let shape = layer
        .sum_shape(layers)
        .ok_or_else(|| Error::Malformed(format!("layer {}", layer.name)))?;
    let positions = shape.h as usize * shape.w as usize;
    // Low and high ends, in i128: every summand is below 2^62 and there are fewer than 2^32 of
    // them.
    let bias = weights.bias.iter().map(|&b| i128::from(b));
    let low: Vec<i128> = bias
        .flat_map(|b| std::iter::repeat_n(b, positions))
        .collect();
    let mut ends = (low.clone(), low);
    let mut kernels = weights.kernels.iter();
    for term in &layer.terms {
        let x = &tensors[term.input().0 as usize];
        let input = layers.tensor_shape(term.input());
        let (low, high) = match term {
            Term::Conv(conv) => {
                let kernel = kernels.next().ok_or_else(|| {
                    Error::Malformed(format!("layer {} lacks a kernel", layer.name))
                })?;
                let windows = Windows {
                    input,
                    output: shape,
                    groups: conv.groups,
                    kernel: conv.kernel,
                    stride: conv.stride,
                    padding: conv.padding,
                };
                conv_ends(x, kernel, &windows)
            }
            Term::Residual {
                window,
                shift,
                negative,
                ..
            } => {
                let scaled: Vec<Option<Interval>> =
                    x.iter().map(|i| shift_left(*i, *shift)).collect();
                let scaled: Option<Vec<Interval>> = scaled.into_iter().collect();
                let mut ends = split(&scaled.ok_or_else(unbounded)?);
                if let Some(window) = window {
                    ends = window_ends(&ends, input, window);
                }
                if *negative {
                    let minus = |ends: Vec<i128>| ends.into_iter().map(|end| -end).collect();
                    ends = (minus(ends.1), minus(ends.0));
                }
                ends
            }
        };
        for (sum, value) in ends.0.iter_mut().zip(low) {
            *sum += value;
        }
        for (sum, value) in ends.1.iter_mut().zip(high) {
            *sum += value;
        }
    }
    if let Some(pool) = &layer.pool {
        let window = pool.window(shape);
        let window = window.ok_or_else(|| Error::Malformed(format!("layer {}", layer.name)))?;
        ends = window_ends(&ends, shape, &window);
    }
    for ends in [&mut ends.0, &mut ends.1] {
        for (end, &bias) in ends.iter_mut().zip(&weights.element_bias) {
            *end += i128::from(bias);
        }
    }
    let pairs = ends.0.into_iter().zip(ends.1);
    pairs
        .map(|(low, high)| interval(low, high))
        .collect::<Option<_>>()
        .ok_or_else(unbounded)
}

/// The interval, if it lies within 62 bits.
fn interval(low: i128, high: i128) -> Option<Interval> {
    let limit = 1i128 << 62;
    (low >= -limit && high <= limit).then_some(Interval {
        low: low as i64,
        high: high as i64,
    })
}

/// Low ends and high ends.
type Ends = (Vec<i128>, Vec<i128>);

fn split(x: &[Interval]) -> Ends {
    x.iter()
        .map(|i| (i128::from(i.low), i128::from(i.high)))
        .unzip()
}

fn shift_left(x: Interval, shift: u8) -> Option<Interval> {
    let factor = 1i128 << shift.min(64);
    interval(i128::from(x.low) * factor, i128::from(x.high) * factor)
}

/// With centre and radius doubled, `2 low = W (l + h) - |W| (h - l)` and `2 high` likewise with a
/// plus.
fn conv_ends(x: &[Interval], kernel: &[i16], windows: &Windows) -> Ends {
    let weights: Vec<i64> = kernel.iter().map(|&w| w.into()).collect();
    let magnitudes: Vec<i64> = weights.iter().map(|w| w.abs()).collect();
    // A tap's product is at most 2 * largest * 2^15; within i64 for the sum of a row's taps.
    let taps = (kernel.len() / (windows.output.c as usize).max(1)) as u128;
    if u128::from(largest(x)) * taps < 1 << 46 {
        let centre: Vec<i64> = x.iter().map(|i| i.low + i.high).collect();
        let radius: Vec<i64> = x.iter().map(|i| i.high - i.low).collect();
        let middle = convolve(&centre, &weights, windows);
        let spread = convolve(&radius, &magnitudes, windows);
        let pairs = middle.into_iter().zip(spread);
        return pairs
            .map(|(m, s)| (i128::from((m - s) / 2), i128::from((m + s) / 2)))
            .unzip();
    }
    let wide = |values: Vec<i64>| values.into_iter().map(i128::from).collect::<Vec<_>>();
    let (low, high) = split(x);
    let centre: Vec<i128> = low.iter().zip(&high).map(|(l, h)| l + h).collect();
    let radius: Vec<i128> = low.iter().zip(&high).map(|(l, h)| h - l).collect();
    let middle = convolve(&centre, &wide(weights), windows);
    let spread = convolve(&radius, &wide(magnitudes), windows);
    let pairs = middle.into_iter().zip(spread);
    pairs.map(|(m, s)| ((m - s) / 2, (m + s) / 2)).unzip()
}

/// Low and high ends of the sums over windows.
fn window_ends(ends: &Ends, input: Shape, window: &Window) -> Ends {
    let sums = |ends| window.sums(ends, input, 0, |a, b| a + b);
    (sums(&ends.0), sums(&ends.1))
}

/// Intervals of the tensor a layer makes of these sums, with its magnitudes.
pub(crate) fn activate(
    layer: &Layer,
    activation: &Activation,
    weights: &LayerWeights,
    sums: &[Interval],
) -> Result<(Vec<Interval>, LayerRange), Error> {
    let positions = layer.shape.h as usize * layer.shape.w as usize;
    let unbounded = || Error::Unbounded {
        layer: layer.name.clone(),
    };
    let mut range = LayerRange {
        sum: largest(sums),
        square: 0,
        polynomial: 0,
        result: 0,
    };
    let mut tensor = Vec::with_capacity(sums.len());
    for (element, (z, &kind)) in sums.iter().zip(&activation.kinds).enumerate() {
        let y = truncate(*z, activation.truncate);
        let result = match kind {
            Kind::Identity => y,
            Kind::Relu => Interval {
                low: y.low.max(0),
                high: y.high.max(0),
            },
            Kind::Square | Kind::Polynomial => {
                let (polynomial, seen) = match kind {
                    Kind::Square => (Polynomial { a: 1, b: 0, k: 0 }, &mut range.square),
                    _ => (
                        weights.polynomials[element / positions],
                        &mut range.polynomial,
                    ),
                };
                let v = evaluate(polynomial, y).ok_or_else(unbounded)?;
                *seen = (*seen).max(v.magnitude());
                truncate_post(v, activation.post(kind))
            }
        };
        tensor.push(result);
    }
    range.result = largest(&tensor);
    Ok((tensor, range))
}

/// Floor of the low end, ceiling of the high end.
fn truncate(x: Interval, f: u8) -> Interval {
    let ceiling = -(-i128::from(x.high) >> f);
    Interval {
        low: x.low >> f,
        high: ceiling as i64,
    }
}

/// Values beyond a calibrated bound are taken not to occur; a missing specification cuts nothing.
fn truncate_post(v: Interval, post: Option<&PostTruncation>) -> Interval {
    let Some(post) = post else {
        return v;
    };
    let mut v = [v];
    if let Range::Calibrated { .. } = post.range {
        clamp(&mut v, (1i64 << post.bound_bits) - (1i64 << post.truncate));
    }
    truncate(v[0], post.truncate)
}

/// Exact range of `a y^2 + b y + k` over the integers of an interval.
fn evaluate(p: Polynomial, y: Interval) -> Option<Interval> {
    let (a, b, k) = (i128::from(p.a), i128::from(p.b), i128::from(p.k));
    let at = |y: i64| {
        let y = i128::from(y);
        a.checked_mul(y)?
            .checked_add(b)?
            .checked_mul(y)?
            .checked_add(k)
    };
    // A parabola is extreme at the ends and beside its vertex -b / 2a.
    let mut candidates = vec![y.low, y.high];
    if a != 0 {
        let vertex = (-b).div_euclid(2 * a);
        for near in [vertex - 1, vertex, vertex + 1] {
            if i128::from(y.low) <= near && near <= i128::from(y.high) {
                candidates.push(near as i64);
            }
        }
    }
    let values: Option<Vec<i128>> = candidates.into_iter().map(at).collect();
    let values = values?;
    interval(*values.iter().min()?, *values.iter().max()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_is_the_smallest_that_fits() {
        for truncate in [0u8, 1, 7] {
            for magnitude in [0u64, 1, 2, 127, 128, 129, 255, 256, 1 << 40] {
                let fits = |b: u8| {
                    b >= truncate && magnitude as i128 <= (1i128 << b) - (1i128 << truncate)
                };
                let b = bound_bits(magnitude, truncate);
                assert!(fits(b), "{magnitude} {truncate} {b}");
                assert!(b == 0 || !fits(b - 1), "{magnitude} {truncate} {b}");
            }
        }
    }

    #[test]
    fn parabolas_are_exact() {
        for a in [-3i64, -1, 0, 1, 2] {
            for b in [-9i64, 0, 5] {
                for (low, high) in [(-7i64, 11i64), (-3, -3), (2, 9), (-4, 0)] {
                    let p = Polynomial { a, b, k: 4 };
                    let values: Vec<i64> = (low..=high).map(|y| (a * y + b) * y + 4).collect();
                    let expected = Interval {
                        low: *values.iter().min().unwrap(),
                        high: *values.iter().max().unwrap(),
                    };
                    assert_eq!(
                        evaluate(p, Interval { low, high }),
                        Some(expected),
                        "{a} {b} {low}..{high}"
                    );
                }
            }
        }
    }

    #[test]
    fn truncation_covers_floor_and_ceiling() {
        let cut = |low, high| truncate(Interval { low, high }, 3);
        assert_eq!(cut(-9, 9), Interval { low: -2, high: 2 });
        assert_eq!(cut(-8, 8), Interval { low: -1, high: 1 });
        assert_eq!(cut(-7, -1), Interval { low: -1, high: 0 });
    }

    #[test]
    fn wide_and_narrow_convolutions_agree() {
        let windows = Windows {
            input: Shape::new(1, 2, 2),
            output: Shape::new(1, 1, 1),
            groups: 1,
            kernel: (2, 2),
            stride: (1, 1),
            padding: Default::default(),
        };
        for scale in [1i64, 1 << 46] {
            let x: Vec<Interval> = [(-1, 2), (0, 3), (-5, -4), (9, 9)]
                .iter()
                .map(|&(l, h)| Interval {
                    low: l * scale,
                    high: h * scale,
                })
                .collect();
            let (low, high) = conv_ends(&x, &[2, -3, -1, 1], &windows);
            let scale = i128::from(scale);
            assert_eq!(low, [2 * scale]);
            assert_eq!(high, [18 * scale]);
        }
    }
}
