//! Bias correction: takes the mean error of every channel out of the biases, and measures what is
//! left at the results.
//!
//! Rounded weights, clipped weights and truncations move the sums of a layer by a part that is the
//! same for all inputs. Each layer of the fixed-point circuit is held against the layer of real
//! numbers on some calibration examples, the errors of earlier layers included, and the mean
//! difference of each channel is subtracted from its bias (Nagel et al., "Data-Free Quantization
//! Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, on data). The biases
//! are the server's, so this costs no byte.
//!
//! A mean over few examples is uncertain itself. It is shrunk by the part of its square that its
//! own uncertainty explains, as far as the examples' means tell: a correction that could be chance
//! is left away.

use crate::fault::Refused;
use crate::pass::calibrate::FloatWeights;
use crate::real_circuit::RealCircuit;
use pi_ir::interpret::Interpreter;
use pi_ir::{Circuit, Step, Term, Weights};
use rayon::prelude::*;

/// Corrects the biases of a circuit, whose bounds must still be at their widest; returns the
/// differences of its results from those in real numbers, after correction.
///
/// `real` is the network that `circuit` was made of, with its public prefix; `inputs` has for each
/// example the normalised image, and tensor 0 of the circuit.
///
/// # Errors
/// If a value leaves the field; by layer.
pub fn correct(
    real: &RealCircuit,
    circuit: &Circuit,
    weights: &mut Weights,
    inputs: &[(Vec<f32>, Vec<i64>)],
) -> Result<Difference, Refused> {
    let float = FloatWeights::new(real);
    let mut runs: Vec<Run> = (inputs.par_iter())
        .map(|(image, integers)| Run::begin(real, &float, image, integers))
        .collect();
    let count = circuit.layers.len();
    let mut biases = Vec::with_capacity(count);
    {
        let refuse = |error: pi_ir::interpret::Error| Refused::one("", error.to_string());
        let interpreter = Interpreter::new(circuit, weights).map_err(refuse)?;
        for (index, layer) in circuit.layers.iter().enumerate() {
            let plane = layer.shape.h as usize * layer.shape.w as usize;
            let unit = (-f64::from(scale(layer))).exp2();
            // By example: the mean error of each channel.
            let errors: Vec<Vec<f64>> = (runs.par_iter_mut())
                .map(|run| {
                    let whole = real.public + index;
                    (run.sum, run.next) = float.layer(real, whole, &run.float);
                    run.fixed_sum = interpreter.sums_of(index, &run.fixed)?;
                    let maps = run.sum.chunks_exact(plane);
                    let maps = maps.zip(run.fixed_sum.chunks_exact(plane));
                    let error = |(float, fixed): (&[f32], &[i64])| {
                        let pairs = float.iter().zip(fixed);
                        let errors = pairs.map(|(a, &b)| b as f64 * unit - f64::from(*a));
                        errors.sum::<f64>() / plane as f64
                    };
                    Ok(maps.map(error).collect())
                })
                .collect::<Result<_, pi_ir::interpret::Error>>()
                .map_err(refuse)?;
            let windows = layer.pool.map_or(1, |p| p.kernel.0 * p.kernel.1);
            let steps: Vec<i64> = (0..layer.shape.c as usize)
                .map(|channel| {
                    let mean = mean_beyond_chance(errors.iter().map(|e| e[channel]));
                    (-mean / unit / f64::from(windows)).round() as i64
                })
                .collect();
            runs.par_iter_mut()
                .map(|run| {
                    let maps = run.fixed_sum.chunks_exact_mut(plane);
                    for (map, step) in maps.zip(&steps) {
                        let step = step * i64::from(windows);
                        map.iter_mut().for_each(|z| *z += step);
                    }
                    if let Some(tensor) = interpreter.tensor_of(index, &run.fixed_sum)? {
                        run.fixed.push(tensor);
                        run.float.extend(run.next.take());
                        run.forget(circuit, real, index);
                    }
                    Ok(())
                })
                .collect::<Result<(), pi_ir::interpret::Error>>()
                .map_err(refuse)?;
            biases.push(steps);
        }
    }
    for (layer, steps) in weights.layers.iter_mut().zip(&biases) {
        layer.bias.iter_mut().zip(steps).for_each(|(b, s)| *b += s);
    }
    let unit = (-f64::from(scale(&circuit.layers[count - 1]))).exp2();
    Ok(Difference::of(&runs, unit))
}

/// Fixed-point results against those in real numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Root mean square of the differences.
    pub error: f64,
    /// Root mean square of the results' distance from their mean over examples.
    pub spread: f64,
}

impl Difference {
    fn of(runs: &[Run], unit: f64) -> Self {
        let results = runs.first().map_or(0, |run| run.sum.len());
        let count = (results * runs.len()).max(1) as f64;
        let mut squares = 0.0;
        let mut spread = 0.0;
        for result in 0..results {
            let all = runs.iter().map(|run| f64::from(run.sum[result]));
            let mean = all.clone().sum::<f64>() / runs.len() as f64;
            spread += all.map(|v| (v - mean).powi(2)).sum::<f64>();
            let differences = runs
                .iter()
                .map(|run| run.fixed_sum[result] as f64 * unit - f64::from(run.sum[result]));
            squares += differences.map(|d| d * d).sum::<f64>();
        }
        Difference {
            error: (squares / count).sqrt(),
            spread: (spread / count).sqrt(),
        }
    }

    /// The error over the spread; 0 if there is no error.
    pub fn relative(&self) -> f64 {
        match self.error > 0.0 {
            true => self.error / self.spread,
            false => 0.0,
        }
    }
}

/// The scale of a layer's sum, its pool included.
fn scale(layer: &pi_ir::Layer) -> i32 {
    match &layer.step {
        Step::Activate(a) => i32::from(a.frac_bits) + i32::from(a.truncate),
        Step::Output { frac_bits, .. } => (*frac_bits).into(),
    }
}

/// The mean, less the part of its square that is its own variance: `m max(0, 1 - v / m^2)`.
fn mean_beyond_chance(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    if count < 2.0 || mean == 0.0 {
        return 0.0;
    }
    let squares = values.map(|v| (v - mean).powi(2)).sum::<f64>();
    let variance = squares / (count - 1.0) / count;
    mean * (1.0 - variance / (mean * mean)).max(0.0)
}

/// One example in both forms, as far as it was computed.
struct Run {
    float: Vec<Vec<f32>>,
    fixed: Vec<Vec<i64>>,
    sum: Vec<f32>,
    fixed_sum: Vec<i64>,
    next: Option<Vec<f32>>,
}

impl Run {
    /// Takes the image through the public prefix.
    fn begin(real: &RealCircuit, float: &FloatWeights, image: &[f32], integers: &[i64]) -> Self {
        let mut tensors = vec![image.to_vec()];
        for index in 0..real.public {
            tensors.extend(float.layer(real, index, &tensors).1);
        }
        Run {
            float: tensors,
            fixed: vec![integers.to_vec()],
            sum: Vec::new(),
            fixed_sum: Vec::new(),
            next: None,
        }
    }

    /// Frees the tensors that no layer behind `index` reads: together they are many times what a
    /// layer needs.
    fn forget(&mut self, circuit: &Circuit, real: &RealCircuit, index: usize) {
        let later = &circuit.layers[index + 1..];
        for tensor in 0..self.fixed.len() {
            let reads = |term: &Term| term.input().0 as usize == tensor;
            if !later.iter().any(|layer| layer.terms.iter().any(reads)) {
                self.fixed[tensor] = Vec::new();
                self.float[real.public + tensor] = Vec::new();
            }
        }
    }
}
