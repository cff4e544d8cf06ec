//! The circuit before quantisation: layers as in the [`Circuit`](pi_ir::Circuit), but real numbers
//! for values.
//!
//! Between lowering and quantisation every pass reads and writes this form. A layer computes
//!
//! `z = pool(sum(conv(W_k, t_k)) + bias + sum(+-2^-halvings_j window_j(t_j))) 2^-pool_bits +
//! element_bias`, then its activation;
//!
//! all pools are sums. A divisor that is no power of two already sits in weights and bias.

use pi_ir::{Conv, Kind, Shape, SumPool, TensorId, Window};
use std::fmt;

/// A circuit of real numbers. Tensor 0 is the normalised image, tensor `i + 1` the result of layer
/// `i`.
#[derive(Clone, Debug, PartialEq)]
pub struct RealCircuit {
    /// Shape of the image.
    pub input: Shape,
    /// Number of layers of the public prefix, which come first.
    pub public: usize,
    /// The layers; only the last one has [`Step::Output`].
    pub layers: Vec<Layer>,
}

/// One linear combination with what follows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Name of the graph's node that makes the sum.
    pub name: String,
    /// Terms of the sum.
    pub terms: Vec<Term>,
    /// One number per channel, added before `pool`.
    pub bias: Vec<f64>,
    /// One more number per element of the result, added last; empty if all are zero.
    pub element_bias: Vec<f64>,
    /// Windows summed after the terms.
    pub pool: Option<SumPool>,
    /// The sum over windows counts `2^-pool_bits`.
    pub pool_bits: u8,
    /// Shape after `pool`.
    pub shape: Shape,
    /// Step after the sum.
    pub step: Step,
}

/// One summand.
#[derive(Clone, Debug, PartialEq)]
pub enum Term {
    /// A convolution.
    Conv {
        /// Shape of the convolution; quantisation sets `weight_bits`.
        conv: Conv,
        /// `[out][in / groups][kernel_h][kernel_w]`.
        weights: Vec<f64>,
    },
    /// An earlier tensor.
    Residual {
        /// The tensor.
        input: TensorId,
        /// Windows summed first.
        window: Option<Window>,
        /// Binary logarithm of the divisor: the tensor counts `2^-halvings`.
        halvings: u8,
        /// Whether it is subtracted.
        negative: bool,
    },
}

/// Positive factors by channel, of which a network's function does not depend: what a tensor's
/// channel holds, over what it stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Gains {
    /// By tensor and channel, the image first.
    pub tensors: Vec<Vec<f64>>,
    /// By layer and channel, of the sum before the activation. It is the tensor's but for squares.
    pub sums: Vec<Vec<f64>>,
}

/// Step after the sum of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A kind per element.
    Activate {
        /// `[c][h][w]`.
        kinds: Vec<Kind>,
        /// `a, b, c` of `a z^2 + b z + c` per channel; empty if no element is a polynomial.
        polynomials: Vec<[f64; 3]>,
    },
    /// Nothing: these are the logits.
    Output,
}

impl RealCircuit {
    /// The convolutions alone, as a circuit that computes nothing: what a packing looks at.
    pub fn shapes(&self) -> pi_ir::Circuit {
        let convs = |layer: &Layer| {
            let convs = layer.terms.iter().filter_map(|term| match term {
                Term::Conv { conv, .. } => Some(pi_ir::Term::Conv(conv.clone())),
                Term::Residual { .. } => None,
            });
            convs.collect()
        };
        let layers = self.layers.iter().map(|layer| pi_ir::Layer {
            name: layer.name.clone(),
            terms: convs(layer),
            pool: None,
            shape: layer.shape,
            bound_bits: 0,
            range: pi_ir::Range::Proved,
            guard_bits: 0,
            step: pi_ir::Step::Output {
                frac_bits: 0,
                reveal: pi_ir::Reveal::Logits,
            },
        });
        pi_ir::Circuit {
            name: String::new(),
            input: self.input,
            input_frac_bits: 0,
            preprocessing: pi_ir::Preprocessing::unit(self.input.c),
            classes: Vec::new(),
            prefix: None,
            layers: layers.collect(),
        }
    }

    /// All gains one: every tensor holds what it stands for.
    pub fn no_gains(&self) -> Gains {
        let ones = |shape: Shape| vec![1.0; shape.c as usize];
        let tensors = (0..self.layers.len() as u32).map(|id| ones(self.tensor_shape(TensorId(id))));
        Gains {
            tensors: tensors.collect(),
            sums: self.layers.iter().map(|layer| ones(layer.shape)).collect(),
        }
    }

    /// The same function with other numbers in its tensors: weights and biases take the gains of
    /// what they make, and the inverse of those of what they read.
    ///
    /// # Preconditions
    /// The gains of the input and of the output's sum are 1; those of a sum are those of its
    /// residuals, and those of the tensor but for channels of squares alone, which have its root.
    pub fn with_gains(&self, gains: &Gains) -> RealCircuit {
        let mut real = self.clone();
        for (index, layer) in real.layers.iter_mut().enumerate() {
            let own = &gains.sums[index];
            for term in &mut layer.terms {
                if let Term::Conv { conv, weights } = term {
                    let read = &gains.tensors[conv.input.0 as usize];
                    let shape = self.tensor_shape(conv.input);
                    let taps = conv.kernel.0 as usize * conv.kernel.1 as usize;
                    let row = conv.channels_read(shape) as usize * taps;
                    for (channel, row) in weights.chunks_exact_mut(row).enumerate() {
                        let channels = conv.reads(shape, channel as u32);
                        for (taps, from) in row.chunks_exact_mut(taps).zip(channels) {
                            let factor = own[channel] / read[from as usize];
                            taps.iter_mut().for_each(|w| *w *= factor);
                        }
                    }
                }
            }
            layer.bias.iter_mut().zip(own).for_each(|(b, g)| *b *= g);
            let plane = layer.shape.h as usize * layer.shape.w as usize;
            for (map, gain) in layer.element_bias.chunks_exact_mut(plane).zip(own) {
                map.iter_mut().for_each(|b| *b *= gain);
            }
            if let Step::Activate { polynomials, .. } = &mut layer.step {
                let made = &gains.tensors[index + 1];
                for ((coefficients, g), h) in polynomials.iter_mut().zip(own).zip(made) {
                    let [a, b, c] = *coefficients;
                    *coefficients = [a * h / (g * g), b * h / g, c * h];
                }
            }
        }
        real
    }

    /// Shape of a tensor.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn tensor_shape(&self, id: TensorId) -> Shape {
        match id.0 {
            0 => self.input,
            layer => self.layers[layer as usize - 1].shape,
        }
    }
}

impl Layer {
    /// Shape of the sum before the layer's own pool.
    pub fn sum_shape(&self, real: &RealCircuit) -> Shape {
        let term = self.terms.first().expect("a layer has a term");
        term.output(real.tensor_shape(term.input()))
            .expect("lowering checked every window")
    }

    /// Returns whether any element is of this kind.
    pub fn has(&self, kind: Kind) -> bool {
        matches!(&self.step, Step::Activate { kinds, .. } if kinds.contains(&kind))
    }
}

impl Term {
    /// The tensor it reads.
    pub fn input(&self) -> TensorId {
        match self {
            Term::Conv { conv, .. } => conv.input,
            Term::Residual { input, .. } => *input,
        }
    }

    /// Shape of the result on a tensor of shape `input`; `None` if no window fits.
    pub fn output(&self, input: Shape) -> Option<Shape> {
        match self {
            Term::Conv { conv, .. } => conv.output(input),
            Term::Residual { window: None, .. } => Some(input),
            Term::Residual {
                window: Some(w), ..
            } => Some(w.output(input)),
        }
    }
}

/// One paragraph per layer; kernels of up to 64 weights are written out. The passes' test files
/// hold this form.
impl fmt::Display for RealCircuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "t0 = input {}", self.input)?;
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 && index == self.public {
                writeln!(f, "private")?;
            }
            layer.print(f, index)?;
        }
        Ok(())
    }
}

impl Layer {
    fn print(&self, f: &mut fmt::Formatter<'_>, index: usize) -> fmt::Result {
        write!(f, "t{} = {} {}", index + 1, self.name, self.shape)?;
        if let Some(pool) = &self.pool {
            write!(f, " sum {}", windows(pool))?;
        }
        if self.pool_bits > 0 {
            write!(f, " / 2^{}", self.pool_bits)?;
        }
        writeln!(f)?;
        for term in &self.terms {
            match term {
                Term::Conv { conv, weights } => {
                    let p = &conv.padding;
                    write!(
                        f,
                        "    conv t{} {}x{}",
                        conv.input.0, conv.kernel.0, conv.kernel.1
                    )?;
                    if conv.groups > 1 {
                        write!(f, " groups {}", conv.groups)?;
                    }
                    write!(f, " stride {}x{}", conv.stride.0, conv.stride.1)?;
                    write!(f, " pad {},{},{},{}", p.top, p.left, p.bottom, p.right)?;
                    writeln!(f, " weights {}", numbers(weights))?;
                }
                Term::Residual {
                    input,
                    window,
                    halvings,
                    negative,
                } => {
                    let sign = if *negative { "minus " } else { "" };
                    write!(f, "    residual {sign}t{}", input.0)?;
                    if let Some(window) = window {
                        write!(f, " sum {window}")?;
                    }
                    if *halvings > 0 {
                        write!(f, " / 2^{halvings}")?;
                    }
                    writeln!(f)?;
                }
            }
        }
        if self.bias.iter().any(|&b| b != 0.0) {
            writeln!(f, "    bias {}", numbers(&self.bias))?;
        }
        if !self.element_bias.is_empty() {
            writeln!(f, "    element bias {}", numbers(&self.element_bias))?;
        }
        match &self.step {
            Step::Output => writeln!(f, "    output"),
            Step::Activate { kinds, polynomials } => {
                let letters: String = kinds.iter().map(|kind| letter(*kind)).collect();
                writeln!(f, "    kinds {letters}")?;
                for (channel, [a, b, c]) in polynomials.iter().enumerate() {
                    writeln!(
                        f,
                        "    channel {channel}: {} z^2 + {} z + {}",
                        short(*a),
                        short(*b),
                        short(*c)
                    )?;
                }
                Ok(())
            }
        }
    }
}

fn windows(pool: &SumPool) -> String {
    let (k, s) = (pool.kernel, pool.stride);
    format!("{}x{} stride {}x{}", k.0, k.1, s.0, s.1)
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::Relu => 'r',
        Kind::Identity => 'i',
        Kind::Square => 's',
        Kind::Polynomial => 'p',
    }
}

fn numbers(values: &[f64]) -> String {
    if values.len() > 64 {
        return format!("({} numbers)", values.len());
    }
    let list: Vec<String> = values.iter().map(|&v| short(v)).collect();
    format!("[{}]", list.join(" "))
}

/// At most six decimals, none that say nothing.
fn short(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".into()
    } else {
        text.into()
    }
}
