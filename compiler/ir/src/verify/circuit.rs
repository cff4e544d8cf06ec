//! Faults of a circuit.

use super::{Fault, Faults, Verified, within_limits};
use crate::circuit::{
    Activation, Circuit, Conv, Kind, Layer, Layers, Range, Reveal, Step, SumPool, Term, divides,
};
use crate::count::multiply_adds;
use crate::limits;
use crate::prefix::Prefix;
use crate::preprocessing::Preprocessing;
use crate::random::Draw;
use crate::shape::Shape;

/// Largest scale of a tensor.
const FRAC_BITS: u8 = 48;
/// Largest scale of logits, and of their inverse.
const LOGIT_BITS: u8 = 120;
/// Largest `log2 B`: values stay far below `p / 2`, about `2^59`.
const BOUND_BITS: u8 = 58;
/// Widest sign circuit.
const SIGN_BITS: u8 = 32;
/// Widest adder of an arg max.
const LABEL_BITS: u8 = 60;
/// Most bits of a guard: a value that wrapped at random then passes with probability `2^-8`, and
/// with every further element that did not keep its bound, the product.
const GUARD_BITS: u8 = 8;
/// Largest magnitude of tensor 0.
const INPUT_BITS: u8 = 30;

/// Verifies a circuit, which can then be run.
///
/// # Errors
/// Every fault of the circuit.
pub fn circuit(circuit: Circuit) -> Result<Verified<Circuit>, Vec<Fault>> {
    let faults = faults(&circuit);
    match faults.is_empty() {
        true => Ok(Verified(circuit)),
        false => Err(faults),
    }
}

fn faults(circuit: &Circuit) -> Vec<Fault> {
    let mut faults = Faults::default();
    header(&mut faults, circuit);
    let mut elements = 0;
    if let Some(prefix) = &circuit.prefix {
        let part = Part {
            layers: prefix.as_layers(),
            frac_bits: prefix.image_frac_bits,
            public: true,
        };
        elements += part.check(&mut faults);
        prefix_result(&mut faults, circuit, prefix);
        // Weights and work are counted by shapes and tensors, which must be right for that.
        if faults.0.is_empty() {
            super::weights::check(&mut faults, "prefix ", part.layers, &prefix.weights);
            let work = multiply_adds(part.layers);
            faults.require(work <= limits::PREFIX_MULTIPLY_ADDS, "prefix", || {
                format!(
                    "{work} multiply-adds, the limit is {}",
                    limits::PREFIX_MULTIPLY_ADDS
                )
            });
        }
    }
    let part = Part {
        layers: circuit.as_layers(),
        frac_bits: circuit.input_frac_bits,
        public: false,
    };
    elements += part.check(&mut faults);
    faults.require(elements <= limits::TOTAL_ELEMENTS, "circuit", || {
        format!(
            "{elements} elements in all tensors, the limit is {}",
            limits::TOTAL_ELEMENTS
        )
    });
    let logits = circuit.layers.last().map(|l| l.shape);
    faults.classes(&circuit.classes, logits);
    faults.0
}

fn header(faults: &mut Faults, circuit: &Circuit) {
    faults.name("circuit", &circuit.name);
    faults.shape("input", circuit.input);
    faults.preprocessing(&circuit.preprocessing, circuit.image().c);
    input_range(faults, circuit);
    let public = circuit.prefix.iter().flat_map(|prefix| {
        let layers = prefix.layers.iter().enumerate();
        layers.map(|(i, layer)| (place(true, i, layer), layer.name.as_str()))
    });
    let private = (circuit.layers.iter().enumerate())
        .map(|(i, layer)| (place(false, i, layer), layer.name.as_str()));
    faults.unique(public.chain(private));
}

/// Largest magnitude that an element of the input can become.
fn input_range(faults: &mut Faults, circuit: &Circuit) {
    let frac_bits = circuit.image_frac_bits();
    let limit = f64::from(INPUT_BITS).exp2();
    let (mean, std) = match &circuit.preprocessing {
        Preprocessing::Channels { mean, std } => (mean, std),
        Preprocessing::Values { bound: None, .. } => {
            return faults.add("input", "its values have no bound; a circuit states one");
        }
        other => {
            let largest = other.largest(circuit.image().len(), frac_bits);
            let largest = largest.unwrap_or(0) as f64;
            return faults.require(largest <= limit, "input", || {
                format!("reaches {largest:.3e}, beyond 2^{INPUT_BITS}")
            });
        }
    };
    for (channel, (&mean, &std)) in mean.iter().zip(std).enumerate() {
        let (mean, std) = (f64::from(mean), f64::from(std));
        let largest = mean.abs().max((1.0 - mean).abs()) / std * f64::from(frac_bits).exp2();
        // A fault of mean or deviation was listed above.
        faults.require(largest <= limit || !largest.is_finite(), "input", || {
            format!("channel {channel} reaches {largest:.3e}, beyond 2^{INPUT_BITS}")
        });
    }
}

/// The public prefix's result is tensor 0, and no larger than an image may be.
fn prefix_result(faults: &mut Faults, circuit: &Circuit, prefix: &Prefix) {
    faults.shape("image", prefix.image);
    let Some(layer) = prefix.layers.last() else {
        return;
    };
    let place = &place(true, prefix.layers.len() - 1, layer);
    faults.require(layer.shape == circuit.input, place, || {
        format!(
            "makes {}, but the private layers begin with {}",
            layer.shape, circuit.input
        )
    });
    let Step::Activate(activation) = &layer.step else {
        return;
    };
    let frac_bits = activation.frac_bits;
    faults.require(frac_bits == circuit.input_frac_bits, place, || {
        format!(
            "has scale 2^{frac_bits}, but the private layers begin with 2^{}",
            circuit.input_frac_bits
        )
    });
    let first = layer.bound_bits.saturating_sub(activation.truncate);
    let posts = [Kind::Square, Kind::Polynomial].map(|kind| {
        let used = activation.kinds.contains(&kind);
        let post = activation.post(kind).filter(|_| used);
        post.map_or(0, |post| post.bound_bits.saturating_sub(post.truncate))
    });
    let linear = activation.kinds.iter().any(|kind| !kind.is_quadratic());
    let bits = posts.into_iter().max().unwrap_or(0);
    let bits = bits.max(if linear { first } else { 0 });
    faults.require(bits <= INPUT_BITS, place, || {
        format!("reaches 2^{bits}; the private layers begin with at most 2^{INPUT_BITS}")
    });
}

fn usable(shape: Shape) -> bool {
    within_limits(shape) && !shape.is_empty()
}

/// The public or the private layers of a circuit.
#[derive(Clone, Copy)]
struct Part<'a> {
    layers: Layers<'a>,
    /// Scale of tensor 0.
    frac_bits: u8,
    public: bool,
}

impl Part<'_> {
    /// Adds every fault of the layers; returns the number of elements of their tensors.
    fn check(self, faults: &mut Faults) -> usize {
        let name = if self.public { "prefix" } else { "circuit" };
        let count = self.layers.layers.len();
        faults.require(count > 0, name, || "has no layers".into());
        faults.require(count <= limits::LAYERS, name, || {
            format!("{count} layers, the limit is {}", limits::LAYERS)
        });
        let input = if self.public { "image" } else { "input" };
        faults.require(self.frac_bits <= FRAC_BITS, input, || {
            format!("more than {FRAC_BITS} fractional bits")
        });
        let mut check = Check {
            part: self,
            faults,
            shapes: vec![Some(self.layers.input).filter(|&s| usable(s))],
            read: vec![false],
        };
        for (index, layer) in self.layers.layers.iter().enumerate() {
            check.layer(index, layer);
        }
        check.unread();
        check.shapes.iter().flatten().map(Shape::len).sum()
    }
}

struct Check<'a> {
    part: Part<'a>,
    faults: &'a mut Faults,
    /// Per tensor made so far: its declared shape, if it is usable at all.
    shapes: Vec<Option<Shape>>,
    /// Per tensor: whether a layer reads it.
    read: Vec<bool>,
}

impl Check<'_> {
    fn layer(&mut self, index: usize, layer: &Layer) {
        let place = &place(self.part.public, index, layer);
        self.faults.shape(place, layer.shape);
        self.faults.require(!layer.terms.is_empty(), place, || {
            "sums no terms; at least one is needed".into()
        });
        self.faults
            .require(layer.terms.len() <= limits::TERMS, place, || {
                format!(
                    "{} terms, the limit is {}",
                    layer.terms.len(),
                    limits::TERMS
                )
            });
        let mut sum_shape = None;
        for (term_index, term) in layer.terms.iter().enumerate() {
            let place = &format!("{place}, term {term_index}");
            let Some(shape) = self.term(index, place, term) else {
                continue;
            };
            let first = *sum_shape.get_or_insert(shape);
            self.faults.require(first == shape, place, || {
                format!("makes {shape}, the terms before it {first}")
            });
        }
        if let Some(sum) = sum_shape {
            self.result_shape(place, layer, sum);
        }
        // What is left must be sound for that.
        if !self.part.public
            && self.faults.0.is_empty()
            && let Some(element) = unread_element(self.part.layers, layer)
        {
            let problem = format!(
                "element {element} of its sum reads nothing, or what it reads cancels: no mask \
                 hides it, and it would be truncated wrongly"
            );
            self.faults.add(place, problem);
        }
        self.step(index, place, layer);
        let is_tensor = matches!(layer.step, Step::Activate(_)) && usable(layer.shape);
        self.shapes.push(Some(layer.shape).filter(|_| is_tensor));
        self.read.push(false);
    }

    /// Shape of a term's result, if it has one.
    fn term(&mut self, index: usize, place: &str, term: &Term) -> Option<Shape> {
        let id = term.input().0 as usize;
        if id > index {
            self.faults.add(
                place,
                format!("reads tensor {id}; only 0 to {index} exist before this layer"),
            );
            return None;
        }
        self.read[id] = true;
        match term {
            Term::Conv(conv) => self.conv(place, conv, id),
            Term::Residual { window, shift, .. } => {
                self.faults.require(*shift <= BOUND_BITS, place, || {
                    format!("shifted by {shift} bits; at most {BOUND_BITS} fit the field")
                });
                let input = self.shapes[id]?;
                match window {
                    Some(window) => {
                        self.faults.window(place, input, window);
                        self.intermediate(place, window.output(input))
                    }
                    None => Some(input),
                }
            }
        }
    }

    fn conv(&mut self, place: &str, conv: &Conv, id: usize) -> Option<Shape> {
        self.faults
            .require((1..=15).contains(&conv.weight_bits), place, || {
                format!("weights of {} bits; 1 to 15 are stored", conv.weight_bits)
            });
        self.faults.require(conv.out_channels > 0, place, || {
            "has no output channels".into()
        });
        let p = conv.padding;
        let sides = [
            conv.out_channels,
            conv.groups,
            conv.kernel.0,
            conv.kernel.1,
            conv.stride.0,
            conv.stride.1,
            p.top,
            p.left,
            p.bottom,
            p.right,
        ];
        if sides.iter().any(|&side| side > limits::SIDE) {
            let problem = format!("a size, stride or padding exceeds {}", limits::SIDE);
            self.faults.add(place, problem);
            return None;
        }
        let input = self.shapes[id]?;
        let weights = conv.weight_count(input);
        self.faults.require(weights <= limits::KERNEL, place, || {
            format!("{weights} weights, the limit is {}", limits::KERNEL)
        });
        let groups = conv.groups;
        if !divides(groups, input.c) || !divides(groups, conv.out_channels) {
            let (from, to) = (input.c, conv.out_channels);
            let problem = format!("{groups} groups do not divide {from} channels in and {to} out");
            self.faults.add(place, problem);
            return None;
        }
        let output = conv.output(input);
        if output.is_none() {
            let (k, s) = (conv.kernel, conv.stride);
            self.faults.add(
                place,
                format!(
                    "no window of {}x{} at stride {}x{} fits {input} padded by {},{},{},{}",
                    k.0, k.1, s.0, s.1, p.top, p.left, p.bottom, p.right
                ),
            );
        }
        output.and_then(|shape| self.intermediate(place, shape))
    }

    fn pool(&mut self, place: &str, pool: &SumPool, input: Shape) -> Option<Shape> {
        let output = pool.output(input);
        if output.is_none() {
            let (k, s) = (pool.kernel, pool.stride);
            self.faults.add(
                place,
                format!(
                    "no pooling window of {}x{} at stride {}x{} fits {input}",
                    k.0, k.1, s.0, s.1
                ),
            );
        }
        if let Some(output) = output {
            self.faults.window_reads(place, output, pool.kernel);
        }
        output
    }

    /// The shape, unless it is empty (listed elsewhere) or too large.
    fn intermediate(&mut self, place: &str, shape: Shape) -> Option<Shape> {
        self.faults.require(within_limits(shape), place, || {
            format!("its result {shape} exceeds the limits")
        });
        Some(shape).filter(|&s| usable(s))
    }

    fn result_shape(&mut self, place: &str, layer: &Layer, sum: Shape) {
        let result = match &layer.pool {
            Some(pool) => self.pool(place, pool, sum),
            None => Some(sum),
        };
        if let Some(result) = result {
            self.faults.require(result == layer.shape, place, || {
                format!("declares {}, but its terms make {result}", layer.shape)
            });
        }
    }

    fn step(&mut self, index: usize, place: &str, layer: &Layer) {
        let last = !self.part.public && index + 1 == self.part.layers.layers.len();
        self.bound(place, layer.bound_bits, layer.truncate(), layer.range);
        self.guard(place, layer);
        match &layer.step {
            Step::Output { frac_bits, reveal } => {
                self.faults.require(last, place, || {
                    "is an output, but not the last private layer".into()
                });
                self.faults
                    .require(frac_bits.unsigned_abs() <= LOGIT_BITS, place, || {
                        format!(
                            "results that are multiples of 2^{}; at most 2^{LOGIT_BITS} and at \
                             least 2^-{LOGIT_BITS} can be stated",
                            -i32::from(*frac_bits)
                        )
                    });
                let Shape { c, h, w } = layer.shape;
                let classes = 2..=limits::CLASSES as u32;
                let has_label = (h, w) == (1, 1) && classes.contains(&c);
                self.faults
                    .require(has_label || *reveal != Reveal::Label, place, || {
                        format!(
                            "an output of {} has no label: that takes one row, one column and 2 to \
                             {} channels; reveal the logits",
                            layer.shape,
                            limits::CLASSES
                        )
                    });
                self.residual_scales(index, place, layer, i32::from(*frac_bits));
            }
            Step::Activate(activation) => {
                self.faults.require(!last, place, || {
                    "is the last layer, but not an output".into()
                });
                self.activation(place, layer, activation);
                let scale = i32::from(activation.frac_bits) + i32::from(activation.truncate);
                self.residual_scales(index, place, layer, scale);
            }
        }
    }

    fn activation(&mut self, place: &str, layer: &Layer, activation: &Activation) {
        let kinds = &activation.kinds;
        self.faults
            .length(place, "kinds", layer.shape.len(), kinds.len());
        self.faults
            .require(activation.frac_bits <= FRAC_BITS, place, || {
                format!("more than {FRAC_BITS} fractional bits")
            });
        // The client takes the sign of a public value without garbling anything, and nobody takes
        // one where there is no ReLU.
        if let Some(rest) = layer.bound_bits.checked_sub(activation.truncate)
            && !self.part.public
            && kinds.contains(&Kind::Relu)
        {
            let bits = u32::from(rest) + 1 + u32::from(layer.guard_bits);
            self.faults.require(bits <= SIGN_BITS.into(), place, || {
                format!("a sign circuit of {bits} bits; 1 to {SIGN_BITS} are garbled")
            });
        }
        let specs = [
            (Kind::Square, &activation.square, "squares"),
            (Kind::Polynomial, &activation.polynomial, "polynomials"),
        ];
        for (kind, post, name) in specs {
            match post {
                None => self.faults.require(!kinds.contains(&kind), place, || {
                    format!("has {name}, but no second truncation for them")
                }),
                Some(post) => {
                    let place = &format!("{place}, {name}");
                    self.bound(place, post.bound_bits, post.truncate, post.range);
                }
            }
        }
    }

    /// A guard stands where there is a bool circuit, and both have room.
    fn guard(&mut self, place: &str, layer: &Layer) {
        let guard = layer.guard_bits;
        self.faults.require(guard <= GUARD_BITS, place, || {
            format!("a guard of {guard} bits, the limit is {GUARD_BITS}")
        });
        let is_output = matches!(layer.step, Step::Output { .. });
        let garbles = !self.part.public && (is_output || layer.has_relu());
        self.faults.require(guard == 0 || garbles, place, || {
            format!("a guard of {guard} bits, but no garbled circuit that checks them")
        });
        if is_output {
            let bits = u32::from(layer.bound_bits) + 1 + u32::from(guard);
            self.faults.require(bits <= LABEL_BITS.into(), place, || {
                format!("an arg max of {bits} bits with its guard; {LABEL_BITS} are garbled")
            });
        }
    }

    /// `2^f | B`, `B` below the field, and the largest value seen within the bound.
    fn bound(&mut self, place: &str, bound_bits: u8, truncate: u8, range: Range) {
        self.faults.require(bound_bits <= BOUND_BITS, place, || {
            format!("a bound of 2^{bound_bits}; the field has room for 2^{BOUND_BITS}")
        });
        self.faults.require(truncate <= bound_bits, place, || {
            format!("cuts {truncate} bits, more than its bound 2^{bound_bits} has")
        });
        let proved = range == Range::Proved;
        self.faults.require(proved || !self.part.public, place, || {
            "a calibrated bound; those of a public prefix are proved".into()
        });
        if let Range::Calibrated { max_seen } = range
            && truncate <= bound_bits
            && bound_bits <= BOUND_BITS
        {
            let bound = (1u64 << bound_bits) - (1u64 << truncate);
            self.faults.require(max_seen <= bound, place, || {
                format!("{max_seen} was seen, beyond its bound {bound}")
            });
        }
    }

    /// Tensors that are added at their own resolution must arrive at the scale of the sum.
    fn residual_scales(&mut self, index: usize, place: &str, layer: &Layer, scale: i32) {
        if layer.pool.is_some() {
            return; // The divisor of the pool may be part of the truncation.
        }
        for (term_index, term) in layer.terms.iter().enumerate() {
            let Term::Residual {
                input,
                window: None,
                shift,
                ..
            } = term
            else {
                continue;
            };
            let Some(own) = self.scale(input.0 as usize, index) else {
                continue;
            };
            let place = &format!("{place}, term {term_index}");
            let arrives = own + i32::from(*shift);
            self.faults.require(arrives == scale, place, || {
                format!(
                    "adds a tensor at scale 2^{own} shifted to 2^{arrives}; the sum is at 2^{scale}"
                )
            });
        }
    }

    /// Scale of a tensor that exists before layer `index`.
    fn scale(&self, id: usize, index: usize) -> Option<i32> {
        if id > index {
            return None;
        }
        match id.checked_sub(1) {
            None => Some(self.part.frac_bits.into()),
            Some(made_by) => match &self.part.layers.layers[made_by].step {
                Step::Activate(a) => Some(a.frac_bits.into()),
                Step::Output { .. } => None,
            },
        }
    }

    /// Tensors that nothing reads; the last one of a public prefix is read by the private layers.
    fn unread(&mut self) {
        let layers = self.part.layers.layers;
        for (id, _) in self.read.iter().enumerate().filter(|(_, read)| !**read) {
            match id.checked_sub(1) {
                None => self.faults.add("input", "no layer reads it"),
                Some(i) if matches!(layers[i].step, Step::Activate(_)) && i + 1 < layers.len() => {
                    let place = place(self.part.public, i, &layers[i]);
                    self.faults.add(&place, "no layer reads its tensor");
                }
                Some(_) => {}
            }
        }
    }
}

/// The first element of a layer's sum that depends on no element of a tensor, if there is one: its
/// shares would not be random, and two-party truncation relies on that.
///
/// Each answer of a convolution is masked anew, so only layers without one can have such elements:
/// where windows lie beyond the map, or where a subtraction takes away all that is read. The sums
/// are evaluated on numbers that do not cancel by chance (with a probability of `2^-60`).
pub(crate) fn unread_element(layers: Layers<'_>, layer: &Layer) -> Option<usize> {
    let suspicious = |term: &Term| match term {
        Term::Conv(_) => false,
        Term::Residual {
            input,
            window,
            negative,
            ..
        } => {
            let shape = layers.tensor_shape(*input);
            *negative || window.is_some_and(|window| !window.inside(shape))
        }
    };
    let has_conv = layer.terms.iter().any(|term| matches!(term, Term::Conv(_)));
    if has_conv || !layer.terms.iter().any(suspicious) {
        return None;
    }
    let add = |a: i128, b: i128| a.wrapping_add(b);
    let sum_shape = layer.sum_shape(layers)?;
    let mut sums = vec![0; sum_shape.len()];
    for term in &layer.terms {
        let Term::Residual {
            input,
            window,
            shift,
            negative,
        } = term
        else {
            continue;
        };
        let shape = layers.tensor_shape(*input);
        let mut draw = Draw::new(u64::from(input.0));
        let values: Vec<i128> = (0..shape.len()).map(|_| i128::from(draw.u64())).collect();
        let values = match window {
            Some(window) => window.sums(&values, shape, 0, add),
            None => values,
        };
        let scale = if *negative { -1i128 } else { 1 } << shift;
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = add(*sum, value.wrapping_mul(scale));
        }
    }
    if let Some(pool) = &layer.pool {
        sums = pool.window(sum_shape)?.sums(&sums, sum_shape, 0, add);
    }
    sums.iter().position(|&sum| sum == 0)
}

fn place(public: bool, index: usize, layer: &Layer) -> String {
    let part = if public { "prefix " } else { "" };
    format!("{part}layer {index} ({})", layer.name.escape_debug())
}
