//! What a model's tensors become in the float graph and in the fixed-point circuit, on one input:
//! `tools/onnx-check` holds it against onnxruntime.

use crate::compile::Compiled;
use crate::file::write_whole;
use crate::pass::calibrate::FloatWeights;
use anyhow::{Context, Result, anyhow};
use pi_ir::value_file::{self, Array};
use pi_ir::{Preprocessing, Step, interpret};
use pi_onnx::{Import, TensorValue};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// The list of the files in a folder of traces.
pub const INDEX: &str = "trace.json";

/// A tensor of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Traced {
    /// Its name, dimensions and values in the float graph.
    pub float: TensorValue,
    /// Its values in the circuit, in the same order; `None` where no layer gives it out.
    pub fixed: Option<Vec<f32>>,
}

/// Every tensor of a model that was imported with its trace.
///
/// A layer of the circuit gives out a tensor if the layer in real numbers, before quantisation, has
/// the tensor's values: the compiler merges and rescales layers, so that names alone say little.
///
/// # Errors
/// If the input has another size, or a value in the circuit leaves its bound.
pub fn trace(import: &Import, compiled: Option<&Compiled>, input: &[f32]) -> Result<Vec<Traced>> {
    let tensors = import.tensors(input).map_err(|why| anyhow!(why))?;
    let layers = match compiled {
        Some(compiled) => {
            let image = import.image(input).map_err(|why| anyhow!(why))?;
            let of_graph = &import.graph.preprocessing;
            layers(
                compiled,
                &rescaled(&image, of_graph, &compiled.circuit.preprocessing),
            )?
        }
        None => Vec::new(),
    };
    let traced = |float: TensorValue| {
        let layer = layers.iter().find(|layer| layer.gives_out(&float));
        let fixed = layer.map(|layer| float.places.iter().map(|&at| layer.fixed[at]).collect());
        Traced { float, fixed }
    };
    Ok(tensors.into_iter().map(traced).collect())
}

/// What the circuit reads where the graph reads these numbers: the compiler scales real values
/// channel by channel, and pixels not at all.
fn rescaled(image: &[f32], graph: &Preprocessing, circuit: &Preprocessing) -> Vec<f32> {
    let (
        Preprocessing::Values { mean, std, .. },
        Preprocessing::Values {
            mean: m, std: d, ..
        },
    ) = (graph, circuit)
    else {
        return image.to_vec();
    };
    let channels = image.chunks_exact((image.len() / mean.len()).max(1));
    let statistics = mean.iter().zip(std).zip(m.iter().zip(d));
    let scaled = channels
        .zip(statistics)
        .flat_map(|(channel, ((mean, std), (m, d)))| {
            let [mean, std, m, d] = [mean, std, m, d].map(|&v| f64::from(v));
            let one = move |&x: &f32| ((f64::from(x) * std + mean - m) / d) as f32;
            channel.iter().map(one)
        });
    scaled.collect()
}

/// A layer's result, channels first.
struct Layer {
    real: Vec<f32>,
    fixed: Vec<f32>,
}

impl Layer {
    fn gives_out(&self, tensor: &TensorValue) -> bool {
        let largest = tensor.values.iter().fold(0f32, |max, v| max.max(v.abs()));
        let near = |(value, &at): (&f32, &usize)| (value - self.real[at]).abs() <= 1e-4 * largest;
        tensor.places.len() == self.real.len() && tensor.values.iter().zip(&tensor.places).all(near)
    }
}

/// The results of all layers, the image first and the logits last.
fn layers(compiled: &Compiled, image: &[f32]) -> Result<Vec<Layer>> {
    let circuit = &compiled.circuit;
    let scale = f64::from(circuit.input_frac_bits).exp2();
    let input: Vec<i64> = (image.iter())
        .map(|&value| (f64::from(value) * scale).round() as i64)
        .collect();
    let run = interpret::plain(circuit, &compiled.weights, &input)
        .context("the circuit cannot take this input: calibrate on inputs like it")?;
    let real = FloatWeights::new(&compiled.real).evaluate(&compiled.real, image);
    let gains = compiled.gains.tensors[compiled.real.public..].iter();
    let of_logits: &[f64] = &[1.0];
    let gains = gains.map(|gains| &gains[..]).chain([of_logits]);
    let mut scales = vec![i32::from(circuit.input_frac_bits)];
    scales.extend(circuit.layers.iter().map(|layer| match &layer.step {
        Step::Activate(activation) => i32::from(activation.frac_bits),
        Step::Output { frac_bits, .. } => i32::from(*frac_bits),
    }));
    let logits = real.sums.into_iter().last();
    let reals = real.tensors.into_iter().chain(logits);
    let fixed = run.tensors.into_iter().chain([run.logits]);
    let layers = reals.zip(fixed).zip(scales.into_iter().zip(gains));
    let layers = layers.map(|((real, fixed), (frac_bits, gains))| {
        let plane = (fixed.len() / gains.len()).max(1);
        let unit = (-f64::from(frac_bits)).exp2();
        let number = |(at, &v): (usize, &i64)| (v as f64 * unit / gains[at / plane]) as f32;
        let fixed = fixed.iter().enumerate().map(number).collect();
        Layer { real, fixed }
    });
    Ok(layers.collect())
}

/// The input of a trace, from a `.npy` file.
///
/// # Errors
/// If the file cannot be read, or is no NumPy array.
pub fn read_input(path: &Path) -> Result<Vec<f32>> {
    let named = || format!("cannot read {}", path.display());
    let file = fs::File::open(path).with_context(named)?;
    let array = value_file::read_array(file).with_context(named)?;
    Ok(array.elements().into_iter().map(|v| v as f32).collect())
}

/// An entry of the list of files.
#[derive(Serialize)]
struct Entry<'t> {
    name: &'t str,
    float: String,
    fixed: Option<String>,
}

/// Writes a trace: an array for each tensor, and the list of them by name, [`INDEX`].
///
/// # Errors
/// The file system's.
pub fn write(folder: &Path, traced: &[Traced]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut entries = Vec::with_capacity(traced.len());
    for (index, Traced { float, fixed }) in traced.iter().enumerate() {
        let array = |kind: &str, values: &[f32]| -> Result<String> {
            let name = format!("{index}.{kind}.npy");
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            write_whole(
                &folder.join(&name),
                &Array::file("<f4", &float.dims, &bytes),
            )?;
            Ok(name)
        };
        let fixed = fixed.as_ref().map(|values| array("fixed", values));
        entries.push(Entry {
            name: &float.name,
            float: array("float", &float.values)?,
            fixed: fixed.transpose()?,
        });
    }
    let list = serde_json::to_vec_pretty(&entries)?;
    write_whole(&folder.join(INDEX), &list)
}
