//! Random circuits with weights, layer by layer, each layer's bound from the intervals before it.

use super::Draw;
use crate::P;
use crate::artifact::WeightsFile;
use crate::circuit::*;
use crate::input::Input;
use crate::prefix;
use crate::preprocessing::Preprocessing;
use crate::range::{self, Interval};
use crate::shape::{Padding, Shape};
use crate::trace::{LayerTrace, Trace};
use crate::verify::{self, Verified};
use crate::weights::{LayerWeights, Polynomial, Weights};

/// Limits and features of random circuits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Layers before the output, at most; at least one.
    pub layers: u32,
    /// Rows and columns of the image, at most.
    pub side: u32,
    /// Channels of any tensor, at most.
    pub channels: u32,
    /// Rows and columns of a kernel, at most.
    pub kernel: u32,
    /// Elements of a tensor, at most: layers that would be larger are drawn again.
    pub elements: usize,
    /// Squares and polynomials occur.
    pub quadratic: bool,
}

impl Default for Options {
    /// Small: milliseconds in an interpreter.
    fn default() -> Self {
        Options {
            layers: 5,
            side: 9,
            channels: 5,
            kernel: 4,
            elements: 600,
            quadratic: true,
        }
    }
}

/// A legal circuit with its weights; the same for the same seed and options.
pub fn circuit(seed: u64, options: &Options) -> (Verified<Circuit>, Weights) {
    let mut maker = Maker::new(seed, options);
    for index in 0..maker.draw.size(1, options.layers) {
        maker.hidden_layer(index);
    }
    maker.output_layer();
    let (mut circuit, weights) = maker.finish();
    let Shape { c, h, w } = circuit.layers.last().expect("made before").shape;
    // From a stream of its own: what is revealed changes nothing else of a seed.
    if c > 1 && (h, w) == (1, 1) && Draw::new(!seed).one_in(2) {
        circuit = circuit.with_reveal(Reveal::Label);
    }
    guard(&mut circuit, seed);
    let circuit = verify::circuit(circuit).expect("every draw keeps to the rules");
    (circuit, weights)
}

/// Sets guards at random, from a stream of their own.
fn guard(circuit: &mut Circuit, seed: u64) {
    let mut draw = Draw::new(seed ^ GUARDS);
    for layer in &mut circuit.layers {
        let (least, most) = match &layer.step {
            Step::Output { .. } => (0, 60 - layer.bound_bits - 1),
            Step::Activate(_) if !layer.has_relu() => continue,
            // A sign circuit has two bits or more.
            Step::Activate(a) => (
                u8::from(layer.bound_bits == a.truncate),
                32 - (layer.bound_bits - a.truncate + 1),
            ),
        };
        layer.guard_bits = (draw.below(6) as u8).clamp(least, most.min(5));
    }
}

/// Sets guards apart from everything else that a seed draws.
const GUARDS: u64 = 0x6775_6172_6473;

/// The same circuit with narrower bounds here and there, so that legal inputs leave them.
pub fn tightened(circuit: &Circuit, seed: u64) -> Verified<Circuit> {
    let mut draw = Draw::new(seed ^ GUARDS);
    let mut circuit = circuit.clone();
    for layer in &mut circuit.layers {
        let least = layer.truncate() + 1;
        let less = draw.below(12) as u8;
        layer.bound_bits = layer.bound_bits.saturating_sub(less).max(least);
        layer.range = Range::Proved;
    }
    verify::circuit(circuit).expect("narrower bounds keep to the rules")
}

/// Weights as a file, with a salt drawn from the seed.
pub fn weights_file(seed: u64, weights: Weights) -> WeightsFile {
    let mut draw = Draw::new(seed);
    let mut salt = [0; 32];
    salt.iter_mut().for_each(|b| *b = draw.u64() as u8);
    WeightsFile { salt, weights }
}

/// A random input for a circuit: noise, or extreme everywhere.
pub fn input(circuit: &Circuit, seed: u64) -> Input {
    let Preprocessing::Values { mean, std, bound } = &circuit.preprocessing else {
        return pixels(circuit, seed).into();
    };
    let mut draw = Draw::new(seed);
    let mode = draw.below(6);
    // A little less than the bound, which rounding would overstep.
    let reach = 0.999 * f64::from(bound.expect("a legal circuit has one"));
    let plane = circuit.image().len() / mean.len();
    let values = (0..circuit.image().len()).map(|index| {
        let (mean, std) = (mean[index / plane], std[index / plane]);
        let deviations = match mode {
            0 => -reach,
            1 => reach,
            2 => reach * (2.0 * draw.below(2) as f64 - 1.0),
            _ => reach * (2.0 * draw.unit() - 1.0),
        };
        f64::from(mean) + deviations * f64::from(std)
    });
    Input::Values(values.collect())
}

/// Pixels of a random image for a circuit that reads them: noise, or all black, white or extreme.
pub fn pixels(circuit: &Circuit, seed: u64) -> Vec<u8> {
    let mut draw = Draw::new(seed);
    let mode = draw.below(6);
    (0..circuit.image().len())
        .map(|_| match mode {
            0 => 0,
            1 => 255,
            2 => 255 * draw.below(2) as u8,
            _ => draw.below(256) as u8,
        })
        .collect()
}

/// Uniform shares for every truncation of a circuit: what an honest client would hold.
pub fn trace(circuit: &Circuit, seed: u64) -> Trace {
    let mut draw = Draw::new(seed);
    let mut shares = |count: usize| (0..count).map(|_| draw.below(P)).collect();
    let layers = circuit.layers.iter();
    let layers = layers.map(|layer| LayerTrace {
        before_truncation: shares(layer.shape.len()),
        before_post_truncation: match &layer.step {
            Step::Activate(a) => shares(a.kinds.iter().filter(|k| k.is_quadratic()).count()),
            Step::Output { .. } => Vec::new(),
        },
    });
    Trace {
        layers: layers.collect(),
    }
}

/// Largest magnitude that a square or polynomial is taken of, so that its bound stays near `2^28`.
const QUADRATIC_INPUT: u64 = 1 << 12;

struct Maker<'a> {
    draw: Draw,
    /// A second stream, for what random circuits learned later: what else a seed draws stays.
    later: Draw,
    options: &'a Options,
    circuit: Circuit,
    weights: Weights,
    tensors: Vec<Vec<Interval>>,
    /// Tensors that no layer reads yet.
    unread: Vec<u32>,
}

impl<'a> Maker<'a> {
    fn new(seed: u64, options: &'a Options) -> Self {
        let mut draw = Draw::new(seed);
        let mut input = Shape::new(
            draw.size(1, options.channels.min(3)),
            draw.size(1, options.side),
            draw.size(1, options.side),
        );
        while input.len() > options.elements.max(1) {
            input.h = input.h.div_ceil(2);
            input.w = input.w.div_ceil(2);
            input.c = 1;
        }
        let preprocessing = match draw.between(0, 7) {
            0 | 1 => Preprocessing::unit(input.c),
            // Of a single byte, standardising leaves 0 whatever it is.
            2 | 3 if input.len() > 1 => Preprocessing::Image {
                floor: draw.between(1, 255) as u8,
            },
            7 => Preprocessing::Values {
                mean: (0..input.c).map(|_| draw.float(-9.0, 9.0)).collect(),
                std: (0..input.c).map(|_| draw.float(0.2, 40.0)).collect(),
                bound: Some(draw.float(0.5, 6.0)),
            },
            _ => Preprocessing::Channels {
                mean: (0..input.c).map(|_| draw.float(0.0, 1.0)).collect(),
                std: (0..input.c).map(|_| draw.float(0.2, 1.0)).collect(),
            },
        };
        let circuit = Circuit {
            name: format!("random {seed}"),
            input,
            input_frac_bits: draw.between(4, 7) as u8,
            preprocessing,
            classes: Vec::new(),
            prefix: None,
            layers: Vec::new(),
        };
        let intervals = range::input(&circuit).expect("one mean and deviation per channel");
        Maker {
            draw,
            later: Draw::new(seed ^ 0x6c61_7465_7200_0001),
            options,
            circuit,
            weights: Weights { layers: Vec::new() },
            tensors: vec![intervals],
            unread: vec![0],
        }
    }

    /// The circuit, now and then with a public prefix.
    fn finish(mut self) -> (Circuit, Weights) {
        let count = match self.draw.one_in(3) {
            true => self.draw.size(1, self.options.layers) as usize,
            false => 0,
        };
        let mut circuit = self.circuit.clone();
        for layer in circuit.layers.iter_mut().take(count) {
            // The maker's bounds are intervals, whatever it called them.
            layer.range = Range::Proved;
            if let Step::Activate(activation) = &mut layer.step {
                let posts = [&mut activation.square, &mut activation.polynomial];
                posts
                    .into_iter()
                    .flatten()
                    .for_each(|post| post.range = Range::Proved);
            }
        }
        // Not every number of layers ends where all later layers can begin.
        match prefix::publish(circuit, self.weights.clone(), count) {
            Ok(split) => split,
            Err(_) => (self.circuit, self.weights),
        }
    }

    fn shape(&self, id: u32) -> Shape {
        self.circuit.tensor_shape(TensorId(id))
    }

    fn frac_bits(&self, id: u32) -> u8 {
        match id.checked_sub(1) {
            None => self.circuit.input_frac_bits,
            Some(layer) => match &self.circuit.layers[layer as usize].step {
                Step::Activate(a) => a.frac_bits,
                Step::Output { .. } => unreachable!("the output is made last"),
            },
        }
    }

    /// A tensor, preferring those that nothing reads yet.
    fn tensor(&mut self) -> u32 {
        if !self.unread.is_empty() && !self.draw.one_in(4) {
            *self.draw.pick(&self.unread)
        } else {
            self.draw.below(self.tensors.len() as u64) as u32
        }
    }

    fn hidden_layer(&mut self, index: u32) {
        let main = self.tensor();
        let (mut terms, sum_shape) = self.first_term(main);
        for _ in 0..self.draw.below(3) {
            let other = self.tensor();
            if let Some(term) = self.term_of_shape(other, sum_shape) {
                terms.push(term);
            }
        }
        let rotation = self.draw.below(terms.len() as u64) as usize;
        terms.rotate_left(rotation);
        let pool = match self.draw.one_in(4) {
            true => self.window(sum_shape),
            false => None,
        };
        let shape = pool.map_or(Some(sum_shape), |p| p.output(sum_shape));
        let layer = Layer {
            name: format!("layer{index}"),
            terms,
            pool,
            shape: shape.expect("the window was drawn to fit"),
            bound_bits: 0,
            range: Range::Proved,
            guard_bits: 0,
            step: Step::Output {
                frac_bits: 0,
                reveal: Reveal::Logits,
            },
        };
        self.finish_hidden(layer, sum_shape);
    }

    /// Adds all residuals from inside their tensors, if an element of the layer would read nothing.
    fn read_something(&self, layer: &mut Layer) {
        if verify::unread_element(self.circuit.as_layers(), layer).is_none() {
            return;
        }
        for term in &mut layer.terms {
            if let Term::Residual {
                window, negative, ..
            } = term
            {
                *negative = false;
                window.iter_mut().for_each(|window| window.origin = (0, 0));
            }
        }
    }

    /// A term that decides the shape of its layer's sum.
    fn first_term(&mut self, id: u32) -> (Vec<Term>, Shape) {
        let input = self.shape(id);
        if self.draw.one_in(6) {
            // A layer without weights: the tensor as it is, or its windows' sums.
            let pool = match self.draw.one_in(2) {
                true => self.window(input),
                false => None,
            };
            let term = self.residual(id, pool);
            let shape = term.output(input).expect("the window was drawn to fit");
            return (vec![term], shape);
        }
        loop {
            let conv = self.conv(id);
            let output = conv.output(input);
            if let Some(shape) = output.filter(|s| s.len() <= self.options.elements.max(1)) {
                return (vec![Term::Conv(conv)], shape);
            }
        }
    }

    fn conv(&mut self, id: u32) -> Conv {
        let input = self.shape(id);
        let largest = self.options.kernel;
        let dense = self.draw.one_in(8);
        let kernel = match self.draw.below(4) {
            _ if dense => (input.h, input.w),
            0 => (1, 1),
            1 => (3, 3),
            _ => (self.draw.size(1, largest), self.draw.size(1, largest)),
        };
        let padding = match self.draw.below(4) {
            _ if dense => Padding::default(),
            0 => Padding::default(),
            1 => Padding::same(kernel.0.min(kernel.1) / 2),
            _ => {
                // One zero row beyond the kernel's reach is legal and useless; it occurs too.
                let beyond = u32::from(self.draw.one_in(16));
                let (rows, columns) = (kernel.0 - 1 + beyond, kernel.1 - 1 + beyond);
                Padding {
                    top: self.draw.size(0, rows),
                    left: self.draw.size(0, columns),
                    bottom: self.draw.size(0, rows),
                    right: self.draw.size(0, columns),
                }
            }
        };
        let stride = match self.draw.below(3) {
            0 => (1, 1),
            1 => (2, 2),
            _ => (self.draw.size(1, 3), self.draw.size(1, 3)),
        };
        let out_channels = self.draw.size(1, self.options.channels);
        Conv {
            input: TensorId(id),
            out_channels,
            groups: self.groups(input.c, out_channels),
            kernel,
            stride,
            padding,
            weight_bits: self.draw.between(1, 9) as u8,
        }
    }

    /// A term on tensor `id` whose result has this shape, if a few attempts find one.
    fn term_of_shape(&mut self, id: u32, shape: Shape) -> Option<Term> {
        let input = self.shape(id);
        if input.c == shape.c && self.draw.one_in(2) {
            let rows = self.fit_pool(input.h, shape.h);
            let columns = self.fit_pool(input.w, shape.w);
            if let (Some((kh, sh)), Some((kw, sw))) = (rows, columns) {
                let pool = SumPool {
                    kernel: (kh, kw),
                    stride: (sh, sw),
                };
                let plain = input == shape && (kh, kw, sh, sw) == (1, 1, 1, 1);
                return Some(self.residual(id, Some(pool).filter(|_| !plain)));
            }
        }
        let (kh, sh, top, bottom) = self.fit_conv(input.h, shape.h)?;
        let (kw, sw, left, right) = self.fit_conv(input.w, shape.w)?;
        Some(Term::Conv(Conv {
            input: TensorId(id),
            out_channels: shape.c,
            groups: self.groups(input.c, shape.c),
            kernel: (kh, kw),
            stride: (sh, sw),
            padding: Padding {
                top,
                left,
                bottom,
                right,
            },
            weight_bits: self.draw.between(1, 9) as u8,
        }))
    }

    /// Kernel and stride of a pool that makes `to` windows of `from` rows.
    fn fit_pool(&mut self, from: u32, to: u32) -> Option<(u32, u32)> {
        if from == to && !self.draw.one_in(4) {
            return Some((1, 1));
        }
        for _ in 0..8 {
            let (kernel, stride) = (self.draw.size(1, from), self.draw.size(1, 3));
            if (from - kernel) / stride + 1 == to {
                return Some((kernel, stride));
            }
        }
        None
    }

    /// Kernel, stride and two paddings of a convolution that makes `to` windows of `from` rows.
    fn fit_conv(&mut self, from: u32, to: u32) -> Option<(u32, u32, u32, u32)> {
        for _ in 0..16 {
            let stride = self.draw.size(1, 3);
            let kernel = self.draw.size(1, self.options.kernel);
            let slack = self.draw.size(0, stride - 1);
            let padding = ((to - 1) * stride + kernel + slack).checked_sub(from);
            if let Some(padding) = padding.filter(|&p| p <= 2 * (kernel - 1)) {
                let least = padding.saturating_sub(kernel - 1);
                let before = self.draw.size(least, padding.min(kernel - 1));
                return Some((kernel, stride, before, padding - before));
            }
        }
        None
    }

    /// The tensor, or sums over its windows, which may lie a row or a column beside the pool's; now
    /// and then it is subtracted.
    fn residual(&mut self, id: u32, pool: Option<SumPool>) -> Term {
        let window = pool.map(|pool| {
            let window = pool.window(self.shape(id));
            let mut window = window.expect("the window was drawn to fit");
            if self.later.one_in(3) {
                let mut beside = || self.later.between(-1, 1) as i32;
                window.origin = (beside(), beside());
            }
            window
        });
        Term::Residual {
            input: TensorId(id),
            window,
            shift: 0,
            negative: self.later.one_in(3),
        }
    }

    /// A number of groups that divides both numbers of channels.
    fn groups(&mut self, inputs: u32, outputs: u32) -> u32 {
        let divides = |groups: &u32| divides(*groups, inputs) && divides(*groups, outputs);
        let all: Vec<u32> = (1..=inputs).filter(divides).collect();
        match self.later.one_in(2) {
            true => *self.later.pick(&all),
            false => 1,
        }
    }

    fn window(&mut self, shape: Shape) -> Option<SumPool> {
        let kernel = (
            self.draw.size(1, shape.h.min(3)),
            self.draw.size(1, shape.w.min(3)),
        );
        let stride = match self.draw.one_in(2) {
            true => kernel,
            false => (self.draw.size(1, 3), self.draw.size(1, 3)),
        };
        Some(SumPool { kernel, stride })
    }

    /// Weights, shifts, bound, truncation and kinds of a layer that has its shape.
    fn finish_hidden(&mut self, mut layer: Layer, sum_shape: Shape) {
        let scale = self.shift_residuals(&mut layer);
        self.read_something(&mut layer);
        let mut weights = self.layer_weights(&layer, sum_shape);
        let sums = self.read_and_sum(&layer, &weights);
        let magnitude = range::largest(&sums);
        let target = self.draw.between(5, 10) as u32;
        let excess = (u64::BITS - magnitude.leading_zeros()).saturating_sub(target) as u8;
        // With a scale given by residuals, what is cut and what is left add up to it.
        let (truncate, frac_bits) = match scale {
            Some(scale) => (excess.min(scale), scale - excess.min(scale)),
            None => (excess, self.draw.between(3, 9) as u8),
        };
        let room = u8::from(self.draw.one_in(2));
        layer.bound_bits = (range::bound_bits(magnitude, truncate) + room).max(truncate + 1);
        layer.range = self.range(magnitude);
        let small = magnitude >> truncate < QUADRATIC_INPUT;
        let kinds = self.kinds(layer.shape.len(), self.options.quadratic && small);
        if kinds.contains(&Kind::Polynomial) {
            let channels = 0..layer.shape.c;
            weights.polynomials = channels.map(|_| self.polynomial()).collect();
        }
        let mut activation = Activation {
            truncate,
            frac_bits,
            kinds,
            square: None,
            polynomial: None,
        };
        self.second_truncations(&layer, &mut activation, &weights, &sums);
        let (tensor, _) = range::activate(&layer, &activation, &weights, &sums)
            .expect("small values stay below 2^62");
        layer.step = Step::Activate(activation);
        *self.circuit.layers.last_mut().expect("pushed before") = layer;
        self.weights.layers.push(weights);
        self.unread.push(self.tensors.len() as u32);
        self.tensors.push(tensor);
    }

    /// Shifts every residual to one scale; returns it if the layer's truncation must keep to it.
    fn shift_residuals(&mut self, layer: &mut Layer) -> Option<u8> {
        let inputs: Vec<u32> = layer
            .terms
            .iter()
            .filter_map(|term| match term {
                Term::Residual {
                    input,
                    window: None,
                    ..
                } => Some(input.0),
                _ => None,
            })
            .collect();
        let highest = inputs.iter().map(|&id| self.frac_bits(id)).max();
        let scale = highest.map(|frac_bits| frac_bits + self.draw.below(6) as u8);
        for term in &mut layer.terms {
            match (term, scale) {
                (
                    Term::Residual {
                        input,
                        window: None,
                        shift,
                        ..
                    },
                    Some(scale),
                ) => *shift = scale - self.frac_bits(input.0),
                (Term::Residual { shift, .. }, _) => *shift = self.draw.below(6) as u8,
                (Term::Conv(_), _) => {}
            }
        }
        scale.filter(|_| layer.pool.is_none())
    }

    fn layer_weights(&mut self, layer: &Layer, sum_shape: Shape) -> LayerWeights {
        let mut kernels = Vec::new();
        for term in &layer.terms {
            if let Term::Conv(conv) = term {
                let count = conv.weight_count(self.shape(conv.input.0));
                let limit = (1 << conv.weight_bits) - 1;
                // Now and then the extremes only.
                let extreme = self.draw.one_in(8);
                let mut weight = || match extreme {
                    true => limit * self.draw.between(-1, 1),
                    false => self.draw.between(-limit, limit),
                };
                kernels.push((0..count).map(|_| weight() as i16).collect());
            }
        }
        let limit = 1 << self.draw.below(12);
        let mut biases = |count: usize| -> Vec<i64> {
            let biases = (0..count).map(|_| self.draw.between(-limit, limit));
            biases.collect()
        };
        let bias = biases(sum_shape.c as usize);
        let element_bias = biases(layer.shape.len());
        LayerWeights {
            kernels,
            bias,
            element_bias: match self.draw.one_in(2) {
                true => element_bias,
                false => Vec::new(),
            },
            polynomials: Vec::new(),
        }
    }

    /// Adds the layer, marks what it reads, and returns the intervals of its sums.
    fn read_and_sum(&mut self, layer: &Layer, weights: &LayerWeights) -> Vec<Interval> {
        for term in &layer.terms {
            self.unread.retain(|&id| id != term.input().0);
        }
        let index = self.circuit.layers.len();
        self.circuit.layers.push(layer.clone());
        range::sums(self.circuit.as_layers(), index, weights, &self.tensors)
            .expect("small values stay below 2^62")
    }

    fn range(&mut self, magnitude: u64) -> Range {
        match self.draw.one_in(3) {
            true => Range::Calibrated {
                max_seen: magnitude,
            },
            false => Range::Proved,
        }
    }

    fn kinds(&mut self, count: usize, quadratic: bool) -> Vec<Kind> {
        let mut choices = match self.draw.below(5) {
            0 => vec![Kind::Relu],
            1 => vec![Kind::Identity],
            _ => vec![Kind::Relu, Kind::Identity],
        };
        if quadratic {
            match self.draw.below(6) {
                0 => choices.push(Kind::Square),
                1 => choices.push(Kind::Polynomial),
                2 => choices.extend([Kind::Square, Kind::Polynomial]),
                3 => choices = vec![Kind::Polynomial],
                _ => {}
            }
        }
        (0..count).map(|_| *self.draw.pick(&choices)).collect()
    }

    fn polynomial(&mut self) -> Polynomial {
        Polynomial {
            a: self.draw.between(-15, 15),
            b: self.draw.between(-200, 200),
            k: self.draw.between(-5000, 5000),
        }
    }

    /// Cuts squares and polynomials back to about ten bits.
    fn second_truncations(
        &mut self,
        layer: &Layer,
        activation: &mut Activation,
        weights: &LayerWeights,
        sums: &[Interval],
    ) {
        let (_, ranges) = range::activate(layer, activation, weights, sums)
            .expect("small values stay below 2^62");
        let mut post = |magnitude: u64| {
            let bits = u64::BITS - magnitude.leading_zeros();
            let truncate = bits.saturating_sub(self.draw.between(6, 10) as u32) as u8;
            PostTruncation {
                truncate,
                bound_bits: range::bound_bits(magnitude, truncate) + self.draw.below(2) as u8,
                range: self.range(magnitude),
            }
        };
        if activation.kinds.contains(&Kind::Square) {
            activation.square = Some(post(ranges.square));
        }
        if activation.kinds.contains(&Kind::Polynomial) {
            activation.polynomial = Some(post(ranges.polynomial));
        }
    }

    /// Reads every tensor that nothing has read: dense, or now and then a map.
    fn output_layer(&mut self) {
        let classes = self.draw.size(1, self.options.channels.max(2));
        let unread = std::mem::take(&mut self.unread);
        let (terms, shape) = match unread[..] {
            [only] if self.draw.one_in(4) => self.first_term(only),
            _ => {
                let dense = |id: &u32| {
                    let input = self.shape(*id);
                    Term::Conv(Conv {
                        input: TensorId(*id),
                        out_channels: classes,
                        groups: 1,
                        kernel: (input.h, input.w),
                        stride: (1, 1),
                        padding: Padding::default(),
                        weight_bits: 7,
                    })
                };
                let terms = unread.iter().map(dense).collect();
                (terms, Shape::new(classes, 1, 1))
            }
        };
        let mut layer = Layer {
            name: "logits".into(),
            terms,
            pool: None,
            shape,
            bound_bits: 0,
            range: Range::Proved,
            guard_bits: 0,
            step: Step::Output {
                frac_bits: 0,
                reveal: Reveal::Logits,
            },
        };
        let scale = self.shift_residuals(&mut layer);
        self.read_something(&mut layer);
        let frac_bits = scale.unwrap_or_else(|| self.draw.between(8, 16) as u8);
        let frac_bits = i8::try_from(frac_bits).expect("tensors have at most 48 fractional bits");
        let reveal = Reveal::Logits;
        layer.step = Step::Output { frac_bits, reveal };
        let weights = self.layer_weights(&layer, shape);
        let sums = self.read_and_sum(&layer, &weights);
        let magnitude = range::largest(&sums);
        // Sums of constant tensors may be smaller than the bias that is part of them.
        let bias = weights.bias.iter().map(|b| b.unsigned_abs()).max();
        layer.bound_bits = range::bound_bits(magnitude.max(bias.unwrap_or(0)), 0);
        if (shape.h, shape.w) == (1, 1) && self.draw.one_in(2) {
            let names = (0..shape.c).map(|i| format!("class {i}"));
            self.circuit.classes = names.collect();
        }
        *self.circuit.layers.last_mut().expect("pushed before") = layer;
        self.weights.layers.push(weights);
    }
}

#[cfg(test)]
mod tests;
