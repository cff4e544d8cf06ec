//! Float evaluation of a lowered network, and how large its values get on sample images.

use crate::real_circuit::{Gains, Layer, RealCircuit, Step, Term};
use pi_ir::{Conv, Kind, Shape, TensorId, Window};
use rayon::prelude::*;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

/// Largest magnitudes on the calibration images, per layer, means and mean squares.
#[derive(Clone, Debug, PartialEq)]
pub struct Magnitudes {
    /// Largest magnitude of the normalised pixels.
    pub input: f64,
    /// Before the activation.
    pub sums: Vec<f64>,
    /// Largest magnitudes that an activation lets through: as `sums`, but without the negative
    /// numbers that ReLUs make zero.
    pub operands: Vec<f64>,
    /// Largest magnitudes of polynomials' results, layer by layer; 0 where there are none.
    pub polynomials: Vec<f64>,
    /// Mean of each channel of each tensor, the image first.
    pub means: Vec<Vec<f64>>,
    /// Mean square, likewise.
    pub squares: Vec<Vec<f64>>,
    /// By layer and channel.
    pub channels: Vec<Vec<Channel>>,
}

/// What one channel of one layer reaches on the calibration images.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Channel {
    /// Largest sum before the activation.
    pub sum: f64,
    /// Largest one that the activation lets through.
    pub operand: f64,
    /// Largest result of a polynomial.
    pub polynomial: f64,
    /// Mean square of the sum.
    pub square: f64,
}

/// One evaluation.
pub struct Values {
    /// Tensors, the image first; the output layer makes none.
    pub tensors: Vec<Vec<f32>>,
    /// Sums before the activation, per layer; the last are the logits.
    pub sums: Vec<Vec<f32>>,
}

/// Largest magnitudes and means over normalised images.
pub fn magnitudes(real: &RealCircuit, images: &[Vec<f32>]) -> Magnitudes {
    let tensors = (0..real.layers.len() as u32).map(|id| real.tensor_shape(TensorId(id)));
    let tensors: Vec<Shape> = tensors.collect();
    let by_channel = || tensors.iter().map(|t| vec![0.0; t.c as usize]).collect();
    let zero = || Magnitudes {
        input: 0.0,
        sums: vec![0.0; real.layers.len()],
        operands: vec![0.0; real.layers.len()],
        polynomials: vec![0.0; real.layers.len()],
        means: by_channel(),
        squares: by_channel(),
        channels: (real.layers.iter())
            .map(|layer| vec![Channel::default(); layer.shape.c as usize])
            .collect(),
    };
    let weights = FloatWeights::new(real);
    let each: Vec<Magnitudes> = images
        .par_iter()
        .map(|image| {
            let values = weights.evaluate(real, image);
            let mut seen = zero();
            seen.input = largest(image.iter());
            let moments = seen.means.iter_mut().zip(&mut seen.squares);
            for ((means, squares), values) in moments.zip(&values.tensors) {
                let plane = values.len() / means.len();
                let share = 1.0 / (plane * images.len()) as f64;
                let maps = values.chunks_exact(plane);
                for ((mean, square), map) in means.iter_mut().zip(squares).zip(maps) {
                    *mean = map.iter().map(|&v| f64::from(v)).sum::<f64>() * share;
                    *square = map.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() * share;
                }
            }
            for (index, layer) in real.layers.iter().enumerate() {
                let sums = &values.sums[index];
                let plane = sums.len() / seen.channels[index].len();
                let share = 1.0 / (plane * images.len()) as f64;
                for (channel, seen) in seen.channels[index].iter_mut().enumerate() {
                    let map = channel * plane..(channel + 1) * plane;
                    let sums = &sums[map.clone()];
                    *seen = channel_of(sums, share);
                    if let Step::Activate { kinds, .. } = &layer.step {
                        let kinds = &kinds[map.clone()];
                        let through = sums.iter().zip(kinds);
                        let through = through.filter(|(z, kind)| **kind != Kind::Relu || **z > 0.0);
                        seen.operand = largest(through.map(|(z, _)| z));
                        let results = kinds.iter().zip(&values.tensors[index + 1][map]);
                        let polynomials = results.filter(|(kind, _)| **kind == Kind::Polynomial);
                        seen.polynomial = largest(polynomials.map(|(_, v)| v));
                    }
                }
            }
            seen
        })
        .collect();
    // In the order of the images: sums of floats depend on it.
    let mut all = each.iter().fold(zero(), |mut a, b| {
        a.input = a.input.max(b.input);
        let moments = a.means.iter_mut().chain(&mut a.squares);
        for (a, b) in moments.zip(b.means.iter().chain(&b.squares)) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
        let channels = a.channels.iter_mut().flatten();
        for (a, b) in channels.zip(b.channels.iter().flatten()) {
            a.add(b);
        }
        a
    });
    all.of_layers();
    all
}

/// All but what depends on the activation. Values that are no numbers, which single precision makes
/// of infinities, count as infinite.
fn channel_of(sums: &[f32], share: f64) -> Channel {
    let sum = match sums.iter().any(|z| z.is_nan()) {
        true => f64::INFINITY,
        false => largest(sums.iter()),
    };
    Channel {
        sum,
        operand: sum,
        polynomial: 0.0,
        square: sums.iter().map(|&z| f64::from(z).powi(2)).sum::<f64>() * share,
    }
}

impl Channel {
    fn add(&mut self, other: &Channel) {
        self.sum = self.sum.max(other.sum);
        self.operand = self.operand.max(other.operand);
        self.polynomial = self.polynomial.max(other.polynomial);
        self.square += other.square;
    }
}

impl Magnitudes {
    /// The magnitudes of the same network with these gains ([`RealCircuit::with_gains`]).
    pub fn with_gains(&self, gains: &Gains) -> Magnitudes {
        let mut scaled = self.clone();
        for (tensor, gains) in gains.tensors.iter().enumerate() {
            for (channel, gain) in gains.iter().enumerate() {
                scaled.means[tensor][channel] *= gain;
                scaled.squares[tensor][channel] *= gain * gain;
                if let Some(layer) = tensor.checked_sub(1) {
                    scaled.channels[layer][channel].polynomial *= gain;
                }
            }
        }
        for (channels, gains) in scaled.channels.iter_mut().zip(&gains.sums) {
            for (channel, gain) in channels.iter_mut().zip(gains) {
                channel.sum *= gain;
                channel.operand *= gain;
                channel.square *= gain * gain;
            }
        }
        scaled.of_layers();
        scaled
    }

    /// Sets the figures of layers from those of their channels.
    fn of_layers(&mut self) {
        let of = |figure: fn(&Channel) -> f64| {
            let layers = self.channels.iter();
            let largest = |layer: &Vec<Channel>| layer.iter().map(figure).fold(0.0, f64::max);
            layers.map(largest).collect()
        };
        (self.sums, self.operands, self.polynomials) =
            (of(|c| c.sum), of(|c| c.operand), of(|c| c.polynomial));
    }

    /// Mean square of a tensor's elements.
    pub(crate) fn power(&self, tensor: usize) -> f64 {
        self.squares[tensor].iter().sum::<f64>() / self.squares[tensor].len() as f64
    }
}

fn largest<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    f64::from(values.fold(0.0f32, |max, v| max.max(v.abs())))
}

/// The kernels in single precision, converted once.
pub struct FloatWeights(Vec<Vec<Vec<f32>>>);

impl FloatWeights {
    /// Prepares the weights of a circuit.
    pub fn new(real: &RealCircuit) -> Self {
        let kernels = |layer: &Layer| {
            (layer.terms.iter())
                .filter_map(|term| match term {
                    Term::Conv { weights, .. } => Some(weights.iter().map(|&w| w as f32).collect()),
                    Term::Residual { .. } => None,
                })
                .collect()
        };
        FloatWeights(real.layers.iter().map(kernels).collect())
    }

    /// Every tensor and every sum on one normalised image.
    pub fn evaluate(&self, real: &RealCircuit, image: &[f32]) -> Values {
        let mut values = Values {
            tensors: vec![image.to_vec()],
            sums: Vec::with_capacity(real.layers.len()),
        };
        for index in 0..real.layers.len() {
            let (sum, tensor) = self.layer(real, index, &values.tensors);
            values.tensors.extend(tensor);
            values.sums.push(sum);
        }
        values
    }

    /// The sums of one layer and the tensor that it makes, if it is not the output. Tensors that it
    /// does not read may be empty.
    pub fn layer(
        &self,
        real: &RealCircuit,
        index: usize,
        tensors: &[Vec<f32>],
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let layer = &real.layers[index];
        let sum = layer_sum(real, layer, &self.0[index], tensors);
        let tensor = match &layer.step {
            Step::Activate { kinds, polynomials } => Some(activate(&sum, kinds, polynomials)),
            Step::Output => None,
        };
        (sum, tensor)
    }
}

fn layer_sum(
    real: &RealCircuit,
    layer: &Layer,
    kernels: &[Vec<f32>],
    tensors: &[Vec<f32>],
) -> Vec<f32> {
    let shape = layer.sum_shape(real);
    let plane = shape.h as usize * shape.w as usize;
    let mut sum: Vec<f32> = (layer.bias.iter())
        .flat_map(|&b| std::iter::repeat_n(b as f32, plane))
        .collect();
    let mut kernels = kernels.iter();
    for term in &layer.terms {
        let x = &tensors[term.input().0 as usize];
        let input = real.tensor_shape(term.input());
        match term {
            Term::Conv { conv, .. } => {
                let kernel = kernels.next().expect("one kernel per convolution");
                add_convolution(&mut sum, x, kernel, conv, input, shape);
            }
            Term::Residual {
                window,
                halvings,
                negative,
                ..
            } => {
                let size = (-f32::from(*halvings)).exp2();
                let factor = if *negative { -size } else { size };
                let sums = window.map(|window| sum_windows(x, input, &window));
                let x = sums.as_ref().unwrap_or(x);
                sum.iter_mut().zip(x).for_each(|(s, v)| *s += factor * v);
            }
        }
    }
    if let Some(pool) = &layer.pool {
        let window = pool.window(shape).expect("lowering checked every window");
        sum = sum_windows(&sum, shape, &window);
    }
    let factor = (-f32::from(layer.pool_bits)).exp2();
    sum.iter_mut().for_each(|s| *s *= factor);
    for (s, &b) in sum.iter_mut().zip(&layer.element_bias) {
        *s += b as f32;
    }
    sum
}

fn activate(sum: &[f32], kinds: &[Kind], polynomials: &[[f64; 3]]) -> Vec<f32> {
    let per_channel = if polynomials.is_empty() {
        1
    } else {
        sum.len() / polynomials.len()
    };
    let element = |(i, (&z, kind)): (usize, (&f32, &Kind))| match kind {
        Kind::Relu => z.max(0.0),
        Kind::Identity => z,
        Kind::Square => z * z,
        Kind::Polynomial => {
            let [a, b, c] = polynomials[i / per_channel].map(|v| v as f32);
            (a * z + b) * z + c
        }
    };
    sum.iter().zip(kinds).enumerate().map(element).collect()
}

/// Single or double precision.
pub(crate) trait Float:
    Copy + Default + PartialEq + Add<Output = Self> + AddAssign + Mul<Output = Self> + Sum
{
}

impl Float for f32 {}
impl Float for f64 {}

/// Adds `conv(x)`, row by row: the inner loop adds a scaled row, which compilers vectorise at
/// stride 1.
pub(crate) fn add_convolution<T: Float>(
    sum: &mut [T],
    x: &[T],
    kernel: &[T],
    conv: &Conv,
    input: Shape,
    output: Shape,
) {
    let (h, w) = (input.h as usize, input.w as usize);
    let (rows, columns) = (output.h as usize, output.w as usize);
    let (kernel_h, kernel_w) = (conv.kernel.0 as usize, conv.kernel.1 as usize);
    let (top, left) = (conv.padding.top as usize, conv.padding.left as usize);
    let (down, across) = (conv.stride.0 as usize, conv.stride.1 as usize);
    let taps = kernel_h * kernel_w;
    for (channel, (row, out)) in kernel
        .chunks_exact(taps * conv.channels_read(input) as usize)
        .zip(sum.chunks_exact_mut(rows * columns))
        .enumerate()
    {
        let read = &x[conv.reads(input, channel as u32).start as usize * h * w..];
        for (tap, plane) in row.chunks_exact(taps).zip(read.chunks_exact(h * w)) {
            for i in 0..kernel_h {
                for j in 0..kernel_w {
                    let weight = tap[i * kernel_w + j];
                    if weight == T::default() {
                        continue;
                    }
                    // Output columns whose tap lies inside the input.
                    let first = left.saturating_sub(j).div_ceil(across);
                    let last = (w + left).saturating_sub(j).div_ceil(across).min(columns);
                    for y in 0..rows {
                        let source = y * down + i;
                        if source < top || source - top >= h || first >= last {
                            continue;
                        }
                        let line = &plane[(source - top) * w..][..w];
                        let out = &mut out[y * columns + first..y * columns + last];
                        let start = first * across + j - left;
                        if across == 1 {
                            out.iter_mut()
                                .zip(&line[start..])
                                .for_each(|(o, &v)| *o += weight * v);
                        } else {
                            let line = line[start..].iter().step_by(across);
                            out.iter_mut()
                                .zip(line)
                                .for_each(|(o, &v)| *o += weight * v);
                        }
                    }
                }
            }
        }
    }
}

/// Sums over the windows of every channel of `x`.
pub(crate) fn sum_windows<T: Float>(x: &[T], input: Shape, window: &Window) -> Vec<T> {
    window.sums(x, input, T::default(), |a, b| a + b)
}
