//! What fixed point does to a network's values, layer by layer, on examples that calibration did
//! not see.
//!
//! [`measure`] runs the float layers and the fixed-point ones side by side and compares each
//! result, channel by channel. The *signal* is how much a channel varies between places and
//! examples; a mean that never changes says nothing of an input. The *noise* is the difference of
//! the two. Of the noise, a layer's *own* part is what it adds: the fixed-point layer on rounded
//! float values, against the float layer on the same rounded values. The rest was there before it.
//!
//! Bounds are lifted for this, so that values beyond them are seen and counted rather than an end
//! of the run; the private computation would give a wrong answer from there on.
//!
//! [`culprit`] finds the first layer at which answers go wrong, and [`verdict`] decides whether a
//! network may be written, with reasons.

mod culprit;
pub mod verdict;

pub use culprit::{Culprit, Wrong, culprit};

use crate::compile::Compiled;
use crate::cost::evaluate::{Comparison, compare_leniently};
use crate::cost::report::Table;
use crate::examples::Examples;
use crate::pass::calibrate::FloatWeights;
use crate::real_circuit::RealCircuit;
use anyhow::Result;
use pi_ir::interpret::{self, Interpreter, quantise};
use pi_ir::{Circuit, Graph, InputError, Layer, Step};
use rayon::prelude::*;
use serde::Serialize;
use std::fmt;
use verdict::Outputs;

/// A layer on held-back examples. Numbers of decibels are `None` where there is no noise at all.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerAccuracy {
    /// Name of the layer.
    pub name: String,
    /// Signal to noise of its result, with the noise of the layers before it, in dB.
    pub snr_db: Option<f64>,
    /// Signal to noise that arises in this layer alone.
    pub own_db: Option<f64>,
    /// Channels of its result.
    pub channels: usize,
    /// Channels that vary, but by less than ten times their own noise in power ([`LOST_DB`]).
    pub lost_channels: usize,
    /// Share of its own noise that is the rounding of its result, from 0 to 1; the rest is that of
    /// weights and coefficients.
    pub rounding_share: f64,
    /// True if its result is zero in fixed point, and not in the float network.
    pub vanished: bool,
    /// Bits between the largest sum on these examples and the layer's bound; below 0 if some are
    /// beyond it.
    pub room_bits: f64,
    /// Sums beyond the bound, over all examples.
    pub beyond: u64,
    /// Examples with such a sum, or with a square or polynomial beyond its own bound.
    pub examples_beyond: usize,
    /// Examples measured.
    pub examples: usize,
}

/// A network on examples that calibration did not see.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Its answers, on all of them.
    pub comparison: Comparison,
    /// Its private layers, on at most [`MEASURED`] of them.
    pub layers: Vec<LayerAccuracy>,
}

impl Measured {
    /// Measures a network that was compiled from a graph. Labels are not used if they are of other
    /// classes, as those of photographs that were given for calibration may be.
    ///
    /// # Errors
    /// If there are no examples, or examples, graph and circuit do not fit together.
    pub fn new(graph: &Graph, compiled: &Compiled, held_back: &Examples) -> Result<Self> {
        Ok(Measured {
            comparison: compare_leniently(graph, &compiled.circuit, &compiled.weights, held_back)?,
            layers: measure(compiled, held_back)?,
        })
    }

    /// How near the answers are to the float network's, as a sentence for the artifact's note.
    pub fn in_words(&self, outputs: Outputs) -> String {
        let Comparison {
            agree,
            images,
            relative_error,
            ..
        } = self.comparison;
        match outputs {
            Outputs::Classes => format!(
                "Same answer as the float network on {agree} of {images} examples held back."
            ),
            Outputs::Values => format!(
                "Within {:.2} % of what outputs vary, on {images} examples held back.",
                100.0 * relative_error
            ),
        }
    }
}

/// The layers as a table, then the answers in words.
impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["layer", "snr", "own", "room", "beyond", "examples", "lost"]);
        for layer in &self.layers {
            table.push(vec![
                layer.name.clone(),
                in_decibels(layer.snr_db),
                in_decibels(layer.own_db),
                format!("{:+.1} bits", layer.room_bits),
                layer.beyond.to_string(),
                format!("{} of {}", layer.examples_beyond, layer.examples),
                format!("{} of {}", layer.lost_channels, layer.channels),
            ]);
        }
        write!(f, "{table}")?;
        writeln!(
            f,
            "on examples held back: signal to noise of each layer, and of what it adds itself; \
             room below its bound, values beyond it and examples with such; channels lost in its \
             own noise"
        )?;
        write!(f, "on examples held back, {}", self.comparison)
    }
}

/// A ratio for a table.
pub fn in_decibels(ratio: Option<f64>) -> String {
    ratio.map_or("exact".into(), |ratio| format!("{ratio:.1} dB"))
}

/// Signal to noise below which a channel counts as lost, in dB.
pub const LOST_DB: f64 = 10.0;
/// Most examples that are measured layer by layer.
pub const MEASURED: usize = 32;

/// Measures the private layers of a network on at most [`MEASURED`] of the examples, spread evenly.
///
/// # Errors
/// If examples and circuit do not fit together.
/// # Cost
/// About four evaluations an example, two of them in floating point.
pub fn measure(compiled: &Compiled, examples: &Examples) -> Result<Vec<LayerAccuracy>> {
    let examples = examples.thinned(MEASURED);
    let open = lifted(&compiled.circuit);
    let pair = Pair::new(compiled, &open)?;
    let declared = &compiled.circuit.layers;
    // The same sums again within the declared bounds.
    let bounded = Interpreter::new(&compiled.circuit, &compiled.weights)?;
    let each = pair.over(&examples, |start| pair.compare(start, declared, &bounded))?;
    let mut all: Vec<LayerSums> = declared.iter().map(LayerSums::none).collect();
    for example in each.iter().flatten() {
        all.iter_mut()
            .zip(example)
            .for_each(|(all, one)| all.add(one));
    }
    let layers = all.iter().zip(declared);
    Ok(layers.map(|(sums, layer)| sums.accuracy(layer)).collect())
}

/// The circuit with bounds that nothing leaves.
fn lifted(circuit: &Circuit) -> Circuit {
    let mut open = circuit.clone();
    for layer in &mut open.layers {
        layer.bound_bits = crate::pass::quantise::WIDEST;
        if let Step::Activate(activation) = &mut layer.step {
            let posts = [&mut activation.square, &mut activation.polynomial];
            for post in posts.into_iter().flatten() {
                post.bound_bits = crate::pass::quantise::WIDEST;
            }
        }
    }
    open
}

/// The float network and a circuit of its private layers, to be run side by side.
struct Pair<'a> {
    real: &'a RealCircuit,
    floats: FloatWeights,
    circuit: &'a Circuit,
    fixed: Interpreter<'a>,
    /// Value of one unit in each channel, of each tensor of the circuit and of the logits.
    units: Vec<Vec<f64>>,
}

/// What an example is before the private layers.
struct Start {
    /// Tensors of the float network up to the private layers, which read the last.
    floats: Vec<Vec<f32>>,
    /// The circuit's tensor 0.
    fixed: Vec<i64>,
}

impl<'a> Pair<'a> {
    /// `circuit` is that of `compiled`, perhaps with other bounds.
    fn new(compiled: &'a Compiled, circuit: &'a Circuit) -> Result<Self> {
        let scales = circuit.layers.iter().map(|layer| match &layer.step {
            Step::Activate(activation) => f64::from(activation.frac_bits),
            Step::Output { frac_bits, .. } => f64::from(*frac_bits),
        });
        let scales = [f64::from(circuit.input_frac_bits)]
            .into_iter()
            .chain(scales);
        // The circuit's tensors have gains; the logits have none.
        let gains = &compiled.gains.tensors[compiled.real.public..];
        let outputs = circuit
            .layers
            .last()
            .map_or(0, |layer| layer.shape.c as usize);
        let gains = gains.iter().cloned().chain([vec![1.0; outputs]]);
        let units = scales.zip(gains).map(|(frac_bits, gains)| {
            let unit = (-frac_bits).exp2();
            gains.iter().map(|gain| unit / gain).collect()
        });
        let units = units.collect();
        Ok(Pair {
            real: &compiled.real,
            floats: FloatWeights::new(&compiled.real),
            circuit,
            fixed: Interpreter::new(circuit, &compiled.weights)?,
            units,
        })
    }

    /// Calls `what` on every example whose input is within the network's bound, several at a time
    /// as far as memory goes; `None` for the others.
    fn over<T: Send>(
        &self,
        examples: &Examples,
        what: impl Fn(Start) -> Result<T> + Sync,
    ) -> Result<Vec<Option<T>>> {
        /// Bytes of an element in all the forms that it has at once.
        const ELEMENT: usize = 48;
        const MEMORY: usize = 2 << 30;
        let layers = self.real.layers.iter();
        let elements: usize = layers.map(|layer| layer.shape.len()).sum();
        let at_once = (MEMORY / (ELEMENT * elements.max(1))).clamp(1, rayon::current_num_threads());
        let one = |input| match quantise(self.circuit, input) {
            Ok(fixed) => {
                let reals = self.circuit.preprocessing.reals_of(input)?;
                let mut floats = vec![reals];
                for index in 0..self.real.public {
                    let (_, tensor) = self.floats.layer(self.real, index, &floats);
                    floats.extend(tensor);
                }
                what(Start { floats, fixed }).map(Some)
            }
            Err(interpret::Error::Input(InputError::Beyond { .. })) => Ok(None),
            Err(other) => Err(other.into()),
        };
        let groups = examples.inputs.len().div_ceil(at_once).max(1);
        let groups = examples.inputs.par_chunks(groups);
        let results = groups.map(|group| group.iter().map(one).collect::<Result<Vec<_>>>());
        let results = results.collect::<Result<Vec<Vec<_>>>>()?;
        Ok(results.into_iter().flatten().collect())
    }

    /// The real numbers of a tensor of the circuit, by its index.
    fn reals(&self, tensor: usize, values: &[i64]) -> Vec<f32> {
        let units = self.unit_of_each(tensor, values.len());
        let reals = values.iter().zip(units).map(|(&v, unit)| v as f64 * unit);
        reals.map(|real| real as f32).collect()
    }

    /// The nearest integers that a tensor of the circuit can have.
    fn rounded(&self, tensor: usize, values: &[f32]) -> Vec<i64> {
        let units = self.unit_of_each(tensor, values.len());
        let rounded = values.iter().zip(units);
        rounded
            .map(|(&v, unit)| (f64::from(v) / unit).round() as i64)
            .collect()
    }

    fn unit_of_each(&self, tensor: usize, elements: usize) -> impl Iterator<Item = f64> + '_ {
        let units = &self.units[tensor];
        let plane = elements / units.len();
        units
            .iter()
            .flat_map(move |&unit| std::iter::repeat_n(unit, plane))
    }

    /// A layer's sums and its result, in fixed point.
    fn fixed_layer(
        &self,
        index: usize,
        tensors: &[Vec<i64>],
    ) -> Result<(Vec<i64>, Vec<i64>), interpret::Error> {
        let sums = self.fixed.sums_of(index, tensors)?;
        let tensor = self.fixed.tensor_of(index, &sums)?;
        let result = tensor.unwrap_or_else(|| sums.clone());
        Ok((sums, result))
    }

    /// Every layer on one example, with what leaves the `declared` bounds, which `bounded` keeps.
    fn compare(
        &self,
        start: Start,
        declared: &[Layer],
        bounded: &Interpreter<'_>,
    ) -> Result<Vec<LayerSums>> {
        let public = self.real.public;
        let Start { mut floats, fixed } = start;
        let mut fixed = vec![fixed];
        // The float tensors at the circuit's scales, as integers and as real numbers again.
        let mut rounded = vec![self.rounded(0, floats.last().expect("a tensor for each layer"))];
        let mut rounded_reals = vec![Vec::new(); public];
        rounded_reals.push(self.reals(0, &rounded[0]));
        let mut layers = Vec::with_capacity(declared.len());
        for (index, layer) in declared.iter().enumerate() {
            let result = |tensors: &[Vec<f32>]| {
                let (sum, tensor) = self.floats.layer(self.real, public + index, tensors);
                tensor.unwrap_or(sum)
            };
            let (float, expected) = (result(&floats), result(&rounded_reals));
            let (run_sums, run) = self.fixed_layer(index, &fixed)?;
            let (_, own) = self.fixed_layer(index, &rounded)?;
            let mut sums = LayerSums::none(layer);
            let post_beyond = match bounded.tensor_of(index, &run_sums) {
                Ok(_) => false,
                Err(interpret::Error::OutOfBound { .. }) => true,
                Err(other) => return Err(other.into()),
            };
            sums.see(&run_sums, layer, post_beyond);
            let plane = float.len() / sums.channels.len();
            for (element, (&float, &expected)) in float.iter().zip(&expected).enumerate() {
                let unit = self.units[index + 1][element / plane];
                let (fixed, own) = (run[element] as f64 * unit, own[element] as f64 * unit);
                let (float, expected) = (f64::from(float), f64::from(expected));
                sums.channels[element / plane].add(float, fixed - float, own - expected);
                sums.float_is_zero &= float == 0.0;
                // A result of 0 was rarely rounded: most are those of ReLUs.
                if fixed != 0.0 {
                    sums.fixed_is_zero = false;
                    sums.rounding += sums.rounding_of_one * unit * unit;
                }
            }
            layers.push(sums);
            let next = self.rounded(index + 1, &float);
            rounded_reals.push(self.reals(index + 1, &next));
            rounded.push(next);
            fixed.push(run);
            floats.push(float);
        }
        Ok(layers)
    }
}

/// Sums over the elements of one layer's result.
struct LayerSums {
    channels: Vec<ChannelSums>,
    /// Power of the error that rounding the results makes.
    rounding: f64,
    /// The same of one result, in squares of its unit.
    rounding_of_one: f64,
    float_is_zero: bool,
    fixed_is_zero: bool,
    /// Largest sum.
    largest: u64,
    beyond: u64,
    examples_beyond: usize,
    examples: usize,
}

/// Sums over the elements of one channel.
#[derive(Clone, Copy, Default)]
struct ChannelSums {
    count: f64,
    values: f64,
    squares: f64,
    noise: f64,
    own: f64,
}

impl ChannelSums {
    fn add(&mut self, value: f64, noise: f64, own: f64) {
        self.count += 1.0;
        self.values += value;
        self.squares += value * value;
        self.noise += noise * noise;
        self.own += own * own;
    }

    /// By how much the channel varies, as a sum of squares; all of it where there is one element.
    fn signal(&self) -> f64 {
        match self.count {
            2.0.. => (self.squares - self.values * self.values / self.count).max(0.0),
            _ => self.squares,
        }
    }
}

impl LayerSums {
    fn none(layer: &Layer) -> Self {
        // Uniform between -1/2 and 1/2; logits are not rounded.
        let rounding_of_one = match layer.step {
            Step::Activate(_) => 1.0 / 12.0,
            Step::Output { .. } => 0.0,
        };
        LayerSums {
            channels: vec![ChannelSums::default(); layer.shape.c as usize],
            rounding: 0.0,
            rounding_of_one,
            float_is_zero: true,
            fixed_is_zero: true,
            largest: 0,
            beyond: 0,
            examples_beyond: 0,
            examples: 0,
        }
    }

    /// Notes what leaves the declared bounds.
    fn see(&mut self, sums: &[i64], layer: &Layer, post_beyond: bool) {
        let largest = (1u64 << layer.bound_bits) - (1u64 << layer.truncate());
        let sums = sums.iter().map(|z| z.unsigned_abs());
        self.largest = sums.clone().max().unwrap_or(0);
        self.beyond = sums.filter(|&z| z > largest).count() as u64;
        self.examples = 1;
        self.examples_beyond = usize::from(post_beyond || self.beyond > 0);
    }

    fn add(&mut self, other: &LayerSums) {
        for (all, one) in self.channels.iter_mut().zip(&other.channels) {
            all.count += one.count;
            all.values += one.values;
            all.squares += one.squares;
            all.noise += one.noise;
            all.own += one.own;
        }
        self.rounding += other.rounding;
        self.float_is_zero &= other.float_is_zero;
        self.fixed_is_zero &= other.fixed_is_zero;
        self.largest = self.largest.max(other.largest);
        self.beyond += other.beyond;
        self.examples_beyond += other.examples_beyond;
        self.examples += other.examples;
    }

    fn accuracy(&self, layer: &Layer) -> LayerAccuracy {
        let sum = |of: fn(&ChannelSums) -> f64| self.channels.iter().map(of).sum::<f64>();
        let (signal, noise, own) = (sum(ChannelSums::signal), sum(|c| c.noise), sum(|c| c.own));
        let lost = |c: &&ChannelSums| c.signal() > 0.0 && c.own > c.signal() * LOST_POWER;
        let bound = f64::from(layer.bound_bits);
        LayerAccuracy {
            name: layer.name.clone(),
            snr_db: decibels(signal, noise),
            own_db: decibels(signal, own),
            channels: self.channels.len(),
            lost_channels: self.channels.iter().filter(lost).count(),
            rounding_share: match own > 0.0 {
                true => (self.rounding / own).min(1.0),
                false => 1.0,
            },
            vanished: self.fixed_is_zero && !self.float_is_zero,
            room_bits: bound - (self.largest.max(1) as f64).log2(),
            beyond: self.beyond,
            examples_beyond: self.examples_beyond,
            examples: self.examples,
        }
    }
}

/// Noise by signal, in power, from which on a channel counts as lost: [`LOST_DB`].
const LOST_POWER: f64 = 0.1;
/// Ratios that are stated, in dB: beyond them, the numbers of floating point mean nothing.
const STATED_DB: f64 = 120.0;

/// The ratio of two powers; `None` if there is no noise.
fn decibels(signal: f64, noise: f64) -> Option<f64> {
    let ratio = || 10.0 * (signal / noise).log10();
    (noise > 0.0).then(|| ratio().clamp(-STATED_DB, STATED_DB))
}
