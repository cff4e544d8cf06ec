//! Cross-layer equalisation: gives every channel of every tensor a gain, so that the channels of a
//! kernel and of a tensor are of one size and share their scale without loss.
//!
//! A kernel has one scale and a tensor has one, both powers of two, while networks have channels
//! that are a hundred times smaller than their neighbours, and keep no bits beside them. A ReLU and
//! an identity commute with a positive factor, so that a channel may be made larger by the weights
//! before it and smaller again by the weights behind it (Nagel et al., "Data-Free Quantization
//! Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1). Everything happens in
//! the server's weights: no byte is sent for it, and nothing public depends on it but the scales.
//!
//! # What is tied together
//! - A residual has no weights: the tensors that it adds, and the tensor that the sum makes, have
//!   the same gains (a *group*). A group that the input, a public prefix or the output's sum
//!   belongs to keeps gains of one.
//! - A square makes `g^2` of a gain `g` before it. A channel of squares alone therefore has the
//!   root of its tensor's gain; one that mixes squares with other kinds keeps one, and so do groups
//!   with squares behind residuals.
//! - A polynomial takes any gain into its coefficients.
//!
//! # Which gains
//! Let `R` be the largest weight that makes a channel, over the largest of its kernel, and `C` the
//! root of the sum of squares of the weights that read it, over the largest of their kernel. The
//! gain that [`Balance`] asks for is `R^-r C^c` with `r + c = 1`, so that it is the same however
//! large the channel was before. With `r = c = 1/2` that is the rule of the paper, but for the norm
//! in place of the largest weight behind the channel; with `r = 1` every output channel of a
//! kernel has its own scale. Rules that look at the size of activations as well (`X^-x`) were
//! tried: on residual networks of random weights with 8 bits they are two to twelve times worse, as
//! kernels have fewer bits than tensors.
//!
//! Then each group gets a power of two that brings its largest value to between 1/2 and 1, so that
//! no tensor has a negative scale however large or small its values are, and one more factor, below
//! two, by which the largest weights of the kernels around it just fit their bits.

use crate::pass::calibrate::Magnitudes;
use crate::real_circuit::{Gains, RealCircuit, Step, Term};
use pi_ir::{Kind, TensorId};

/// Exponents of the gain's rule: of the weights that make a channel, and of those that read it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balance {
    makers: f64,
    readers: f64,
}

impl Balance {
    /// The rule of Nagel et al.: the weights before and behind a channel are equally large.
    pub const WEIGHTS: Balance = Balance {
        makers: 0.5,
        readers: 0.5,
    };
    /// The weights that make the channels of a tensor are equally large.
    pub const MAKERS: Balance = Balance {
        makers: 1.0,
        readers: 0.0,
    };
}

/// Rounds over all groups: the gains of a group depend on those of its neighbours.
const ROUNDS: usize = 12;

/// How much larger than the largest value that a layer's activations let through a negative input
/// of a ReLU may become: each doubling is a bit of the sign circuits.
const NEGATIVE: f64 = 4.0;

/// Largest quotient of two gains of a group: beyond it, one of the channels is all but dead.
const SPREAD: f64 = 65536.0;

/// The gains that equalise a network by a rule; with `None`, those of whole groups alone.
pub fn equalise(real: &RealCircuit, seen: &Magnitudes, rule: Option<Balance>) -> Gains {
    let groups = Groups::of(real);
    let kernels = kernels(real);
    let mut gains = real.no_gains();
    if let Some(rule) = rule {
        for _ in 0..ROUNDS {
            for group in &groups.free {
                let kernels = Sizes {
                    real,
                    seen,
                    kernels: &kernels,
                    gains: &gains,
                };
                let factors = kernels.factors(group, rule);
                groups.multiply(&mut gains, group, &factors);
            }
        }
    }
    for group in &groups.free {
        let largest = (group.members.iter())
            .map(|&tensor| seen_with(seen, &gains, tensor))
            .fold(0.0, f64::max);
        if largest > 0.0 && largest.is_finite() {
            let power = (-(largest.log2().floor() + 1.0)).exp2();
            groups.multiply(&mut gains, group, &vec![power; group.mixed.len()]);
        }
    }
    for _ in 0..3 {
        for group in &groups.free {
            let best = fitting(real, &kernels, &gains, &groups, group);
            groups.multiply(&mut gains, group, &vec![best; group.mixed.len()]);
        }
    }
    gains
}

/// Largest value that the activations of the layer that makes a tensor let through.
fn seen_with(seen: &Magnitudes, gains: &Gains, tensor: usize) -> f64 {
    let channels = seen.channels[tensor - 1].iter();
    let scaled = channels.zip(&gains.sums[tensor - 1]);
    scaled.map(|(c, g)| c.operand * g).fold(0.0, f64::max)
}

/// Tensors that share their gains.
struct Group {
    members: Vec<usize>,
    /// By channel: gains are one, because a square stands beside other kinds.
    mixed: Vec<bool>,
}

struct Groups {
    /// Those that may have gains.
    free: Vec<Group>,
    /// By tensor and channel: the sum has the root of the gain.
    squares: Vec<Vec<bool>>,
}

impl Groups {
    fn of(real: &RealCircuit) -> Self {
        let count = real.layers.len();
        let mut parent: Vec<usize> = (0..count).collect();
        fn root(parent: &[usize], mut tensor: usize) -> usize {
            while parent[tensor] != tensor {
                tensor = parent[tensor];
            }
            tensor
        }
        let mut fixed = vec![false; count];
        fixed[..=real.public.min(count - 1)].fill(true);
        let mut squares = vec![Vec::new(); count];
        let mut mixed = vec![Vec::new(); count];
        for (index, layer) in real.layers.iter().enumerate() {
            let residuals = layer.terms.iter().filter_map(|term| match term {
                Term::Residual { input, .. } => Some(input.0 as usize),
                Term::Conv { .. } => None,
            });
            let residuals: Vec<usize> = residuals.collect();
            let Step::Activate { kinds, .. } = &layer.step else {
                residuals.iter().for_each(|&tensor| fixed[tensor] = true);
                continue;
            };
            let tensor = index + 1;
            let plane = layer.shape.h as usize * layer.shape.w as usize;
            let maps = kinds.chunks_exact(plane);
            let of_squares = |map: &[Kind]| map.iter().all(|kind| *kind == Kind::Square);
            squares[tensor] = maps.clone().map(of_squares).collect();
            mixed[tensor] = maps
                .map(|map| map.contains(&Kind::Square) && !of_squares(map))
                .collect();
            let ties = !layer.has(Kind::Square);
            for &residual in &residuals {
                if ties {
                    let (a, b) = (root(&parent, residual), root(&parent, tensor));
                    parent[a] = b;
                } else {
                    fixed[residual] = true;
                    fixed[tensor] = true;
                }
            }
        }
        let fixed_roots: Vec<usize> = (0..count)
            .filter(|&tensor| fixed[tensor])
            .map(|tensor| root(&parent, tensor))
            .collect();
        let mut free: Vec<Group> = Vec::new();
        let mut place = vec![None; count];
        for (tensor, mixed) in mixed.iter().enumerate().skip(1) {
            let root = root(&parent, tensor);
            if fixed_roots.contains(&root) {
                continue;
            }
            let channels = real.tensor_shape(TensorId(tensor as u32)).c as usize;
            let at = *place[root].get_or_insert_with(|| {
                free.push(Group {
                    members: Vec::new(),
                    mixed: vec![false; channels],
                });
                free.len() - 1
            });
            free[at].members.push(tensor);
            for (all, own) in free[at].mixed.iter_mut().zip(mixed) {
                *all |= own;
            }
        }
        Groups { free, squares }
    }

    fn multiply(&self, gains: &mut Gains, group: &Group, factors: &[f64]) {
        for &tensor in &group.members {
            for (channel, &factor) in factors.iter().enumerate() {
                if group.mixed[channel] {
                    continue;
                }
                let gain = &mut gains.tensors[tensor][channel];
                *gain *= factor;
                gains.sums[tensor - 1][channel] = match self.squares[tensor][channel] {
                    true => gain.sqrt(),
                    false => *gain,
                };
            }
        }
    }
}

/// One convolution: the largest weight and the sum of squares of the taps from each channel that it
/// reads to each that it makes.
struct Kernel {
    layer: usize,
    input: usize,
    /// By output channel: the first channel that it reads, and for each from there on the two
    /// figures.
    rows: Vec<(usize, Vec<(f64, f64)>)>,
}

fn kernels(real: &RealCircuit) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for (layer, found) in real.layers.iter().enumerate() {
        for term in &found.terms {
            let Term::Conv { conv, weights } = term else {
                continue;
            };
            let shape = real.tensor_shape(conv.input);
            let taps = conv.kernel.0 as usize * conv.kernel.1 as usize;
            let row = conv.channels_read(shape) as usize * taps;
            let figures = |taps: &[f64]| {
                let largest = taps.iter().fold(0.0f64, |max, w| max.max(w.abs()));
                (largest, taps.iter().map(|w| w * w).sum::<f64>())
            };
            let rows = weights.chunks_exact(row).enumerate().map(|(out, row)| {
                let first = conv.reads(shape, out as u32).start as usize;
                (first, row.chunks_exact(taps).map(figures).collect())
            });
            kernels.push(Kernel {
                layer,
                input: conv.input.0 as usize,
                rows: rows.collect(),
            });
        }
    }
    kernels
}

impl Kernel {
    /// Calls `f` with output channel, input channel, largest weight and sum of squares.
    fn each(&self, gains: &Gains, mut f: impl FnMut(usize, usize, f64, f64)) {
        for (out, (first, row)) in self.rows.iter().enumerate() {
            let own = gains.sums[self.layer][out];
            for (offset, (largest, squares)) in row.iter().enumerate() {
                let from = first + offset;
                let factor = own / gains.tensors[self.input][from];
                f(out, from, largest * factor, squares * factor * factor);
            }
        }
    }

    fn largest(&self, gains: &Gains) -> f64 {
        let mut all = 0.0f64;
        self.each(gains, |_, _, largest, _| all = all.max(largest));
        all
    }
}

struct Sizes<'a> {
    real: &'a RealCircuit,
    seen: &'a Magnitudes,
    kernels: &'a [Kernel],
    gains: &'a Gains,
}

impl Sizes<'_> {
    /// The factors by which a group's gains come closer to the rule.
    fn factors(&self, group: &Group, rule: Balance) -> Vec<f64> {
        let channels = group.mixed.len();
        let mut makers = vec![0.0f64; channels];
        let mut readers = vec![0.0f64; channels];
        for kernel in self.kernels {
            let makes = group.members.contains(&(kernel.layer + 1));
            let reads = group.members.contains(&kernel.input);
            if !makes && !reads {
                continue;
            }
            let largest = kernel.largest(self.gains);
            if largest <= 0.0 {
                continue;
            }
            let mut squares = vec![0.0f64; channels];
            kernel.each(self.gains, |out, from, weight, square| {
                if makes {
                    makers[out] = makers[out].max(weight / largest);
                }
                if reads {
                    squares[from] += square / (largest * largest);
                }
            });
            let all = readers.iter_mut().zip(squares);
            all.for_each(|(all, square)| *all = all.max(square.sqrt()));
        }
        let parts = [(&makers, -rule.makers), (&readers, rule.readers)];
        let factor = |channel: usize| {
            let known = |(part, power): &(&Vec<f64>, f64)| match part[channel] {
                size if size > 0.0 => size.powf(*power),
                _ => 1.0,
            };
            parts.iter().map(known).product::<f64>()
        };
        let mut factors: Vec<f64> = (0..channels).map(factor).collect();
        self.limit(group, &mut factors);
        factors
    }

    /// Keeps gains within [`SPREAD`] of each other and negative inputs of ReLUs within
    /// [`NEGATIVE`].
    fn limit(&self, group: &Group, factors: &mut [f64]) {
        for &tensor in &group.members {
            let (gains, channels) = (
                &self.gains.sums[tensor - 1],
                &self.seen.channels[tensor - 1],
            );
            let reach = channels.iter().zip(gains).zip(factors.iter());
            let largest = reach
                .map(|((seen, gain), factor)| seen.operand * gain * factor)
                .fold(0.0, f64::max);
            let relu = self.real.layers[tensor - 1].has(Kind::Relu);
            if largest <= 0.0 {
                continue;
            }
            for (channel, factor) in factors.iter_mut().enumerate() {
                let sum = channels[channel].sum * gains[channel];
                if relu && sum * *factor > NEGATIVE * largest {
                    *factor = NEGATIVE * largest / sum;
                }
            }
        }
        let tensor = group.members[0];
        let gains = &self.gains.tensors[tensor];
        let mut sorted: Vec<f64> = gains.iter().zip(&*factors).map(|(g, f)| g * f).collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted[sorted.len() / 2];
        let root = SPREAD.sqrt();
        for (factor, gain) in factors.iter_mut().zip(gains) {
            *factor = (*factor * gain).clamp(middle / root, middle * root) / gain;
        }
    }
}

/// The factor from 1 to 2 with which the kernels that make and read a group lose the fewest bits
/// between their largest weight and the power of two above it.
fn fitting(
    real: &RealCircuit,
    kernels: &[Kernel],
    gains: &Gains,
    groups: &Groups,
    group: &Group,
) -> f64 {
    /// Steps of an octave.
    const STEPS: usize = 16;
    let around = kernels.iter().filter(|kernel| {
        kernel.layer >= real.public
            && (group.members.contains(&(kernel.layer + 1))
                || group.members.contains(&kernel.input))
    });
    let around: Vec<&Kernel> = around.collect();
    let lost = |step: usize| {
        let mut tried = gains.clone();
        let factor = (step as f64 / STEPS as f64).exp2();
        groups.multiply(&mut tried, group, &vec![factor; group.mixed.len()]);
        let lost = around.iter().map(|kernel| {
            // The largest of 8-bit weights is 127, and rounding reaches it from 127.499.
            let bits = (kernel.largest(&tried) * 128.0 / 127.499).log2();
            let lost = if bits.is_finite() {
                bits.ceil() - bits
            } else {
                0.0
            };
            // The squares of the rounding errors.
            (2.0 * lost).exp2()
        });
        lost.sum::<f64>()
    };
    let best = (0..STEPS).min_by(|&a, &b| lost(a).total_cmp(&lost(b)));
    (best.unwrap_or(0) as f64 / STEPS as f64).exp2()
}
