//! Faults of a circuit.

use super::{Fault, Faults, Verified, within_limits};
use crate::circuit::{Activation, Circuit, Conv, Kind, Layer, Range, Step, SumPool, Term};
use crate::limits;
use crate::preprocessing::Preprocessing;
use crate::shape::Shape;

/// Largest scale of a tensor or of logits.
const FRAC_BITS: u8 = 48;
/// Largest `log2 B`: values stay far below `p / 2`, about `2^59`.
const BOUND_BITS: u8 = 58;
/// Widest sign circuit.
const SIGN_BITS: u8 = 32;
/// Largest magnitude of the quantised image.
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
    let mut check = Check {
        circuit,
        faults: Faults::default(),
        shapes: vec![Some(circuit.input).filter(|&s| usable(s))],
        read: vec![false],
    };
    check.header();
    for (index, layer) in circuit.layers.iter().enumerate() {
        check.layer(index, layer);
    }
    check.whole();
    check.faults.0
}

fn usable(shape: Shape) -> bool {
    within_limits(shape) && !shape.is_empty()
}

struct Check<'a> {
    circuit: &'a Circuit,
    faults: Faults,
    /// Per tensor made so far: its declared shape, if it is usable at all.
    shapes: Vec<Option<Shape>>,
    /// Per tensor: whether a layer reads it.
    read: Vec<bool>,
}

impl Check<'_> {
    fn header(&mut self) {
        let circuit = self.circuit;
        self.faults.name("circuit", &circuit.name);
        self.faults.shape("input", circuit.input);
        self.faults
            .preprocessing(&circuit.preprocessing, circuit.input.c);
        self.faults
            .require(circuit.input_frac_bits <= FRAC_BITS, "input", || {
                format!("more than {FRAC_BITS} fractional bits")
            });
        self.input_range();
        self.faults
            .require(!circuit.layers.is_empty(), "circuit", || {
                "has no layers".into()
            });
        self.faults
            .require(circuit.layers.len() <= limits::LAYERS, "circuit", || {
                format!(
                    "{} layers, the limit is {}",
                    circuit.layers.len(),
                    limits::LAYERS
                )
            });
        let names = circuit.layers.iter().enumerate();
        self.faults
            .unique(names.map(|(i, layer)| (place(i, layer), layer.name.as_str())));
    }

    /// Largest magnitude that a pixel can become.
    fn input_range(&mut self) {
        let circuit = self.circuit;
        let frac_bits = circuit.input_frac_bits;
        let limit = f64::from(INPUT_BITS).exp2();
        let (mean, std) = match &circuit.preprocessing {
            Preprocessing::Channels { mean, std } => (mean, std),
            image @ Preprocessing::Image { .. } => {
                let largest = image.largest(circuit.input.len(), frac_bits);
                let largest = largest.unwrap_or(0) as f64;
                return self.faults.require(largest <= limit, "input", || {
                    format!("reaches {largest:.3e}, beyond 2^{INPUT_BITS}")
                });
            }
        };
        for (channel, (&mean, &std)) in mean.iter().zip(std).enumerate() {
            let (mean, std) = (f64::from(mean), f64::from(std));
            let largest = mean.abs().max((1.0 - mean).abs()) / std * f64::from(frac_bits).exp2();
            // A fault of mean or deviation was listed above.
            self.faults
                .require(largest <= limit || !largest.is_finite(), "input", || {
                    format!("channel {channel} reaches {largest:.3e}, beyond 2^{INPUT_BITS}")
                });
        }
    }

    fn layer(&mut self, index: usize, layer: &Layer) {
        let place = &place(index, layer);
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
            Term::Residual { pool, shift, .. } => {
                self.faults.require(*shift <= BOUND_BITS, place, || {
                    format!("shifted by {shift} bits; at most {BOUND_BITS} fit the field")
                });
                let input = self.shapes[id]?;
                match pool {
                    Some(pool) => self.pool(place, pool, input),
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
        let last = index + 1 == self.circuit.layers.len();
        self.bound(place, layer.bound_bits, layer.truncate(), layer.range);
        match &layer.step {
            Step::Output { frac_bits } => {
                self.faults.require(last, place, || {
                    "is an output, but not the last layer".into()
                });
                self.faults.require(*frac_bits <= BOUND_BITS, place, || {
                    format!("more than {BOUND_BITS} fractional bits")
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
        if let Some(rest) = layer.bound_bits.checked_sub(activation.truncate) {
            self.faults.require(rest < SIGN_BITS, place, || {
                format!(
                    "a sign circuit of {} bits; 1 to {SIGN_BITS} are garbled",
                    u32::from(rest) + 1
                )
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

    /// `2^f | B`, `B` below the field, and the largest value seen within the bound.
    fn bound(&mut self, place: &str, bound_bits: u8, truncate: u8, range: Range) {
        self.faults.require(bound_bits <= BOUND_BITS, place, || {
            format!("a bound of 2^{bound_bits}; the field has room for 2^{BOUND_BITS}")
        });
        self.faults.require(truncate <= bound_bits, place, || {
            format!("cuts {truncate} bits, more than its bound 2^{bound_bits} has")
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
                pool: None,
                shift,
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
            None => Some(self.circuit.input_frac_bits.into()),
            Some(made_by) => match &self.circuit.layers[made_by].step {
                Step::Activate(a) => Some(a.frac_bits.into()),
                Step::Output { .. } => None,
            },
        }
    }

    fn whole(&mut self) {
        let total: usize = self.shapes.iter().flatten().map(Shape::len).sum();
        self.faults
            .require(total <= limits::TOTAL_ELEMENTS, "circuit", || {
                format!(
                    "{total} elements in all tensors, the limit is {}",
                    limits::TOTAL_ELEMENTS
                )
            });
        let layers = &self.circuit.layers;
        for (id, _) in self.read.iter().enumerate().filter(|(_, read)| !**read) {
            match id.checked_sub(1) {
                None => self.faults.add("input", "no layer reads it"),
                Some(i) if matches!(layers[i].step, Step::Activate(_)) && i + 1 < layers.len() => {
                    self.faults
                        .add(&place(i, &layers[i]), "no layer reads its tensor");
                }
                Some(_) => {}
            }
        }
        let logits = layers.last().map(|l| l.shape);
        self.faults.classes(&self.circuit.classes, logits);
    }
}

fn place(index: usize, layer: &Layer) -> String {
    format!("layer {index} ({})", layer.name.escape_debug())
}
