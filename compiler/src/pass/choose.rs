//! Chooses what quantisation leaves open, by the error of the network's results on calibration
//! data: the rule of equalisation, the widths of weights, and the bits that the failure budget
//! takes.
//!
//! Each choice is tried on some calibration examples as it would be run: the circuit in integers,
//! its biases corrected ([`mod@crate::pass::correct`]), against the network of real numbers.
//!
//! # Widths of weights
//! A layer's rounding errors over the size of its sums are known from its weights and the mean
//! squares of what it reads. Widths are tried in steps: at each, every layer gets the fewest bits
//! with which it stays below a limit, and the limit falls by a factor of four. Wider weights send
//! no byte more, but
//! - beyond 8 bits, a server with AVX-512 computes the layer with 64-bit floats, at half the speed;
//! - answers tell more of them: the step is narrowed until the flooding distance is accepted
//!   ([`pi_protocol::flooding`]);
//! - products must be exact: `taps * 2^bits <= 2^33` (`pi_ring::conv`, limbs of 20 bits).
//!
//! So weights become wider only if that takes away a share of the error that is worth it
//! (`WORTH`), by the first step that is nearly as good as the last (`NEARLY`), and not at all
//! where the error is below `GOOD` already.
//!
//! # Failure budget
//! The probability that an inference loses a value grows with the bounds of truncations
//! ([`pi_ir::failure`]). Where it is above the limit, layers give up bits of their sum's scale, or
//! of their quadratic coefficients', those first that lower it most for the error that they add.

use crate::compile::Options;
use crate::examples::Examples;
use crate::fault::Refused;
use crate::pass::calibrate::Magnitudes;
use crate::pass::correct::{Difference, correct};
use crate::pass::equalise::{Balance, equalise};
use crate::pass::quantise::{
    Bits, Identity, Scales, WIDEST_WEIGHTS, WeightBits, error_of_kernel, quantise, scales_with,
};
use crate::pass::range;
use crate::real_circuit::{self, Gains, RealCircuit};
use pi_ir::count::multiply_adds;
use pi_ir::failure::{failure_log2, failure_probability};
use pi_ir::interpret;
use pi_ir::{Circuit, Plan, Term, Weights};
use pi_protocol::flooding::{LIMIT_LOG2, flooding};

/// Share of the error that must be left for wider weights to be worth their time.
const WORTH: f64 = 0.8;
/// Error of the results, over their spread, below which weights stay as they are. A judgement, as
/// are the two others: few answers are as close as that.
const GOOD: f64 = 0.004;
/// Error, over that of the widest weights, which is as good.
const NEARLY: f64 = 1.15;
/// Steps of the limit on rounding errors.
const STEPS: i32 = 6;
/// Multiply-adds that a trial may take: some seconds.
const TRIAL: u64 = 1 << 33;
/// Examples of a trial.
const EXAMPLES: std::ops::RangeInclusive<usize> = 4..=48;
/// Times that bits are given up for the failure budget.
const ATTEMPTS: usize = 8;

/// An example of a trial, normalised, and as integers of the circuit.
type TrialInput = (Vec<f32>, Vec<i64>);

/// What all trials have in common.
pub struct Search<'a> {
    /// The network.
    pub real: &'a RealCircuit,
    /// What calibration saw of it.
    pub seen: &'a Magnitudes,
    /// Names and preprocessing.
    pub identity: &'a Identity<'a>,
    /// Calibration data, as it is and normalised.
    pub calibration: &'a Examples,
    /// The normalised inputs.
    pub images: &'a [Vec<f32>],
    /// The user's choices.
    pub options: &'a Options,
}

/// One way to quantise a network.
#[derive(Clone)]
pub struct Candidate {
    /// Factors by which tensors differ from the network's.
    pub gains: Gains,
    /// The network with these gains.
    pub real: RealCircuit,
    /// What calibration saw of that.
    pub seen: Magnitudes,
    /// Bits by layer.
    pub bits: Bits,
    /// The scales.
    pub scales: Scales,
    /// The circuit; its bounds are still at their widest until [`Search::bounded`].
    pub circuit: Circuit,
    /// The server's integers, biases corrected.
    pub weights: Weights,
    /// The results against those of real numbers.
    pub difference: Difference,
}

impl Search<'_> {
    /// The best of the rules of equalisation, with the least weight bits.
    ///
    /// # Errors
    /// If no rule gives a circuit: the faults of the network without gains of channels.
    pub fn equalised(&self) -> Result<Candidate, Refused> {
        let rules = [None, Some(Balance::WEIGHTS), Some(Balance::MAKERS)];
        let bits = Bits::least(self.real, &self.options.precision);
        let candidates = rules.map(|rule| {
            let gains = equalise(self.real, self.seen, rule);
            let real = self.real.with_gains(&gains);
            let seen = self.seen.with_gains(&gains);
            self.candidate((gains, real, seen), bits.clone())
        });
        let mut best: Option<Candidate> = None;
        let mut first_fault = None;
        for candidate in candidates {
            match candidate {
                Err(why) => first_fault = first_fault.or(Some(why)),
                Ok(candidate) => {
                    let better =
                        |best: &Candidate| candidate.difference.error < best.difference.error;
                    if best.as_ref().is_none_or(better) {
                        best = Some(candidate);
                    }
                }
            }
        }
        best.ok_or_else(|| first_fault.expect("each rule gives a candidate or a fault"))
    }

    /// The same with wider weights, where they are left to choice and worth it.
    ///
    /// # Errors
    /// As [`Search::equalised`].
    pub fn widened(&self, best: Candidate, plans: &[&Plan]) -> Result<Candidate, Refused> {
        let WeightBits::AtLeast(least) = self.options.precision.weight_bits else {
            return Ok(best);
        };
        let noise: Vec<Vec<f64>> = (0..best.real.layers.len())
            .map(|layer| {
                let widths = least..=WIDEST_WEIGHTS;
                let of = |bits| best.noise(layer, bits);
                widths.map(of).collect()
            })
            .collect();
        let private = self.real.public..noise.len();
        let worst = private.clone().map(|layer| noise[layer][0]);
        let worst = worst.fold(0.0, f64::max);
        let at = |step: i32| {
            let limit = worst * 0.25f64.powi(step);
            let mut bits = best.bits.clone();
            for layer in private.clone() {
                let enough = noise[layer].iter().position(|&n| n <= limit);
                let wanted = enough.map_or(WIDEST_WEIGHTS, |more| least + more as u8);
                let exact = most_exact(&best.real.layers[layer]);
                bits.weights[layer] = wanted.min(exact).max(least);
            }
            self.narrow(&best, &mut bits, plans);
            let parts = (best.gains.clone(), best.real.clone(), best.seen.clone());
            self.candidate(parts, bits)
        };
        if best.difference.relative() <= GOOD {
            return Ok(best);
        }
        let mut found = at(STEPS)?;
        if found.difference.error > WORTH * best.difference.error {
            return Ok(best);
        }
        // The first step that is nearly as good as the last.
        let enough = (NEARLY * found.difference.error).max(GOOD * found.difference.spread);
        let (mut low, mut high) = (0, STEPS);
        while high - low > 1 {
            let step = (low + high) / 2;
            let tried = at(step)?;
            match tried.difference.error <= enough {
                true => (high, found) = (step, tried),
                false => low = step,
            }
        }
        Ok(found)
    }

    /// Takes bits away from the widest weights until the flooding distance is accepted.
    fn narrow(&self, candidate: &Candidate, bits: &mut Bits, plans: &[&Plan]) {
        let mut circuit = candidate.circuit.clone();
        let public = self.real.public;
        loop {
            for (layer, &bits) in circuit.layers.iter_mut().zip(&bits.weights[public..]) {
                for term in &mut layer.terms {
                    if let Term::Conv(conv) = term {
                        conv.weight_bits = bits - 1;
                    }
                }
            }
            let accepted = flooding(&circuit, plans.iter().copied())
                .is_ok_and(|found| found.total <= LIMIT_LOG2);
            let least = &candidate.bits.weights[public..];
            let widest = (bits.weights[public..].iter().zip(least).enumerate())
                .filter(|(_, (bits, least))| bits > least)
                .max_by_key(|(_, (bits, _))| **bits);
            match widest {
                Some((_, (&most, _))) if !accepted => {
                    for (bits, least) in bits.weights[public..].iter_mut().zip(least) {
                        *bits = (*bits).min(most - 1).max(*least);
                    }
                }
                _ => return,
            }
        }
    }

    /// Bounds the circuit's values, within the failure budget where bits can be given up for it.
    /// Returns what was given up, in words.
    ///
    /// # Errors
    /// If an input does not fit the circuit, or a value leaves the field.
    pub fn bounded(&self, mut candidate: Candidate) -> Result<(Candidate, Vec<String>), Refused> {
        let limit = self.options.failure_limit;
        let public = self.real.public;
        let mut before = None;
        let mut stuck = vec![false; candidate.circuit.layers.len()];
        for attempt in 0.. {
            let unbounded = candidate.circuit.clone();
            let circuit = &mut candidate.circuit;
            range::bound_prefix(circuit)?;
            let inputs = &self.calibration.inputs;
            let precision = &self.options.precision;
            range::bound(circuit, &candidate.weights, inputs, precision)?;
            let revealing = circuit.clone().with_reveal(self.options.reveal);
            let failure = failure_log2(&revealing).total;
            let first = *before.get_or_insert(failure);
            if failure <= limit || attempt == ATTEMPTS {
                let notes = match failure < first {
                    true => vec![candidate.given_up(first, failure, public)],
                    false => Vec::new(),
                };
                return Ok((candidate, notes));
            }
            let mut bits = candidate.bits.clone();
            let lowered = candidate.give_up(&mut bits, revealing, limit, (public, &stuck));
            if lowered.is_empty() {
                return Ok((candidate, Vec::new()));
            }
            let parts = (candidate.gains, candidate.real, candidate.seen);
            let next = self.candidate(parts, bits)?;
            // The scale of a sum follows its residuals where those have all its bits.
            let scale = |circuit: &Circuit, layer: usize| match &circuit.layers[layer].step {
                pi_ir::Step::Activate(a) => {
                    let post = a.polynomial.map_or(0, |post| i32::from(post.truncate));
                    i32::from(a.truncate) + i32::from(a.frac_bits) + post
                }
                pi_ir::Step::Output { frac_bits, .. } => (*frac_bits).into(),
            };
            for layer in lowered {
                stuck[layer] |= scale(&next.circuit, layer) >= scale(&unbounded, layer);
            }
            candidate = next;
        }
        unreachable!("the loop ends after {ATTEMPTS} attempts")
    }

    /// Quantises the network with these gains and bits, and measures it.
    fn candidate(
        &self,
        (gains, real, seen): (Gains, RealCircuit, Magnitudes),
        bits: Bits,
    ) -> Result<Candidate, Refused> {
        let precision = &self.options.precision;
        let scales = scales_with(&real, &seen, precision, &bits)?;
        let (circuit, weights) = quantise(&real, &scales, &seen, self.identity)?;
        let (circuit, mut weights) = match real.public {
            0 => (circuit, weights),
            count => pi_ir::prefix::publish(circuit, weights, count)
                .map_err(|why| Refused::one("", why))?,
        };
        let inputs = self.trial(&circuit)?;
        let difference = correct(&real, &circuit, &mut weights, &inputs)?;
        Ok(Candidate {
            gains,
            real,
            seen,
            bits,
            scales,
            circuit,
            weights,
            difference,
        })
    }

    /// Examples for a trial, spread over the calibration data: as many as time allows.
    fn trial(&self, circuit: &Circuit) -> Result<Vec<TrialInput>, Refused> {
        let each = multiply_adds(circuit.as_layers()).max(1);
        let count = usize::try_from(TRIAL / each).unwrap_or(usize::MAX);
        let all = self.images.len();
        let count = count.clamp(*EXAMPLES.start(), *EXAMPLES.end()).min(all);
        let example = |index: usize| {
            let at = index * all / count;
            let integers = interpret::quantise(circuit, &self.calibration.inputs[at]);
            let integers = integers.map_err(|why| Refused::one("input", why.to_string()))?;
            Ok((self.images[at].clone(), integers))
        };
        (0..count).map(example).collect()
    }
}

/// The widest weights with which products of a layer are exact.
fn most_exact(layer: &real_circuit::Layer) -> u8 {
    let taps: usize = layer.terms.iter().map(taps).max().unwrap_or(0);
    // taps 2^bits <= 2^33, and a sign.
    let bits = 33 - (taps.max(1) as f64).log2().ceil() as u8;
    (bits + 1).min(WIDEST_WEIGHTS)
}

fn taps(term: &real_circuit::Term) -> usize {
    match term {
        real_circuit::Term::Conv { conv, weights } => weights.len() / conv.out_channels as usize,
        real_circuit::Term::Residual { .. } => 0,
    }
}

/// A place where a layer can give up a bit.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Sum,
    Polynomials,
}

impl Candidate {
    /// Mean square of a layer's rounding errors over that of its sums, with weights of these bits.
    fn noise(&self, layer: usize, bits: u8) -> f64 {
        self.noise_of(layer, bits, None)
    }

    /// The same where the sum has this scale, if one is given.
    fn noise_of(&self, layer: usize, bits: u8, sum: Option<i32>) -> f64 {
        let power: f64 = self.seen.channels[layer].iter().map(|c| c.square).sum();
        let found = &self.real.layers[layer];
        let errors = found.terms.iter().map(|term| match term {
            real_circuit::Term::Conv { conv, weights } => {
                let tensor = conv.input.0 as usize;
                let squares = &self.seen.squares[tensor];
                let used = self.scales.sums[layer] - self.scales.tensors[tensor];
                let wider = i32::from(bits) - i32::from(self.bits.weights[layer]);
                let scale = sum.map_or(used + wider, |sum| sum - self.scales.tensors[tensor]);
                error_of_kernel(conv, weights, squares, (bits, scale))
            }
            real_circuit::Term::Residual { .. } => 0.0,
        });
        // A layer's own pool takes errors and sums alike.
        let errors = errors.sum::<f64>();
        if power > 0.0 { errors / power } else { 0.0 }
    }

    /// Lowers bits until the failure probability is within the limit, as far as bounds follow them;
    /// returns the layers of the circuit that give up some.
    fn give_up(
        &self,
        bits: &mut Bits,
        mut circuit: Circuit,
        limit: f64,
        (public, stuck): (usize, &[bool]),
    ) -> Vec<usize> {
        let mut lowered = Vec::new();
        loop {
            let failure = failure_log2(&circuit);
            // Bounds may be rounded up by the next attempt.
            if failure.total <= limit - 0.02 {
                return lowered;
            }
            let places = (0..circuit.layers.len())
                .filter(|&layer| !stuck[layer])
                .flat_map(|layer| [(layer, Place::Sum), (layer, Place::Polynomials)]);
            let worth = places.filter_map(|(layer, place)| {
                let gain = gain(&circuit, layer, place)?;
                let cost = self.cost(layer + public, place, bits)?;
                Some((layer, place, gain / (cost + 1e-12)))
            });
            let Some((layer, place, _)) = worth.max_by(|a, b| a.2.total_cmp(&b.2)) else {
                return lowered;
            };
            match place {
                Place::Sum => bits.sums[layer + public] += 1,
                Place::Polynomials => bits.polynomials[layer + public] += 1,
            }
            lower(&mut circuit.layers[layer], place);
            if !lowered.contains(&layer) {
                lowered.push(layer);
            }
        }
    }

    /// Noise over signal that a layer gains if it gives up one more bit; `None` if it cannot.
    fn cost(&self, layer: usize, place: Place, bits: &Bits) -> Option<f64> {
        let given = |bits: &[u8], own: &[u8]| i32::from(bits[layer]) - i32::from(own[layer]);
        match place {
            Place::Sum => {
                let convolves = self.real.layers[layer]
                    .terms
                    .iter()
                    .any(|term| taps(term) > 0);
                let sum = self.scales.sums[layer] - given(&bits.sums, &self.bits.sums);
                // Below 4 bits of weights there is nothing left of a kernel.
                let most = bits.weights[layer].saturating_sub(4);
                if !convolves || bits.sums[layer] >= most {
                    return None;
                }
                let width = bits.weights[layer];
                let of = |sum| self.noise_of(layer, width, Some(sum));
                Some((of(sum - 1) - of(sum)).max(0.0))
            }
            Place::Polynomials => {
                if self.seen.polynomials[layer] <= 0.0 {
                    return None;
                }
                let given = given(&bits.polynomials, &self.bits.polynomials);
                let scale = self.scales.coefficients[layer] - given;
                if scale < 1 {
                    return None;
                }
                // Rounding `a` to `2^-u` moves the result by `2^-(u+1) y^2` at most: a third of its
                // square on average, and three quarters of that are new.
                let largest = self.seen.operands[layer].powi(2);
                let error = (-f64::from(scale)).exp2() * largest / 16.0;
                Some(error * error / self.seen.polynomials[layer].powi(2))
            }
        }
    }

    /// What was given up for the failure budget.
    fn given_up(&self, from: f64, to: f64, public: usize) -> String {
        let mut parts = Vec::new();
        for layer in public..self.real.layers.len() {
            let (sum, polynomial) = (self.bits.sums[layer], self.bits.polynomials[layer]);
            if sum + polynomial > 0 {
                let what = match (sum, polynomial) {
                    (sum, 0) => format!("{sum} of its sums"),
                    (0, bits) => format!("{bits} of its quadratic coefficients"),
                    (sum, bits) => format!("{sum} of its sums and {bits} of its coefficients"),
                };
                parts.push(format!("{} {what}", self.real.layers[layer].name));
            }
        }
        let shown = parts.len().min(4);
        let more = match parts.len() - shown {
            0 => String::new(),
            more => format!(" and {more} more layers"),
        };
        format!(
            "an inference would lose a value with probability 2^{from:.1}; layers gave up bits for \
             2^{to:.1}: {}{more}",
            parts[..shown].join(", ")
        )
    }
}

/// By how much the failure probability falls if a layer's bound does by a bit; `None` if there is
/// nothing to lower.
fn gain(circuit: &Circuit, layer: usize, place: Place) -> Option<f64> {
    let before = &circuit.layers[layer];
    let mut lowered = before.clone();
    lower(&mut lowered, place);
    let gain = failure_probability(before) - failure_probability(&lowered);
    (gain > 0.0).then_some(gain)
}

/// Lowers a bound by a bit, as fewer bits of a scale will.
fn lower(layer: &mut pi_ir::Layer, place: Place) {
    let (bound, truncate) = match (&mut layer.step, place) {
        (pi_ir::Step::Activate(activation), Place::Polynomials) => {
            match activation.polynomial.as_mut() {
                Some(post) => (&mut post.bound_bits, &mut post.truncate),
                None => return,
            }
        }
        (pi_ir::Step::Activate(activation), Place::Sum) => {
            (&mut layer.bound_bits, &mut activation.truncate)
        }
        (pi_ir::Step::Output { .. }, Place::Sum) => (&mut layer.bound_bits, &mut 0),
        (pi_ir::Step::Output { .. }, Place::Polynomials) => return,
    };
    *bound = bound.saturating_sub(1).max(1);
    *truncate = truncate.saturating_sub(1);
}
