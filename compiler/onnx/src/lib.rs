//! ONNX models as float graphs that `pi-compile` takes.
//!
//! [`read`] understands networks that are made of convolutions, dense layers, batch norms, pools,
//! sums, concatenations and functions of one element that are ReLUs, quadratics or sums of those.
//! Everything that depends on constants alone is computed, layouts are followed (`NHWC` exports,
//! reshapes, transpositions, channels that are split or shuffled), and what a network does to its
//! input first becomes the graph's preprocessing. Activations may be spelt as exporters spell
//! them: a ReLU mask as `Where(mask, Relu(x), x)` or `m * Relu(x) + (1 - m) * x`, a quadratic as
//! `a * x * x + b * x + c`; or as plain `Relu` nodes, with a file of [`Masks`] beside the model.
//! [`write()`] makes such a model of a graph.
//!
//! A model that cannot be imported is refused with all its faults, each with the node, its operator
//! and a remedy.
//!
//! # Hostile files
//! Nothing here panics, and memory is bounded by the file's size and by `pi_ir::limits`, whatever a
//! file contains. External data is read from the model's own folder only.

#![forbid(unsafe_code)]

mod attributes;
mod convert;
mod field;
mod file;
mod fold;
mod masks;
mod metadata;
mod net;
pub mod proto;
mod tensor;
mod trace;
mod value;
mod write;

pub use masks::Masks;
pub use trace::TensorValue;
pub use write::{input_in_words, write};

use pi_ir::{Graph, Shape};
use std::fmt;
use std::path::{Path, PathBuf};

/// What a file may leave open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Shape of the input.
    pub input: Option<Shape>,
    /// What the input is. By default, it is an image if it has four axes with the batch and one
    /// channel or three, and real values otherwise.
    pub kind: Option<InputKind>,
    /// Largest magnitude of a normalised value, if inputs are real values.
    pub bound: Option<f32>,
    /// The tensor that is the result, if the model has several outputs or an inner one is wanted.
    pub output: Option<String>,
    /// Means of pixels scaled to `[0, 1]`, or of real values, one for all channels or one each.
    /// They precede what the file's metadata says (`mean`).
    pub mean: Option<Vec<f32>>,
    /// Deviations, in the same way (`deviation`).
    pub deviation: Option<Vec<f32>>,
    /// The kinds of elements of Relu nodes, from a file beside the model.
    pub masks: Option<Masks>,
    /// Keeps what [`Import::tensors`] needs: some memory for every tensor of the model.
    pub trace: bool,
}

/// What a network reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Pictures of bytes, which become numbers from 0 to 1.
    Image,
    /// Real values.
    Values,
}

/// An imported model.
#[derive(Clone, Debug)]
pub struct Import {
    /// The network.
    pub graph: Graph,
    /// What was assumed or left out, for the user to read.
    pub notes: Vec<String>,
    trace: Option<trace::Trace>,
}

/// One reason why a model cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name of the node, or of the tensor; empty where the whole model is meant.
    pub node: String,
    /// The operator, as ONNX names it; empty where the whole model is meant.
    pub operator: String,
    /// The problem, and the remedy.
    pub problem: String,
}

impl Fault {
    fn new(node: &str, operator: &str, problem: String) -> Self {
        Fault {
            node: node.to_owned(),
            operator: operator.to_owned(),
            problem,
        }
    }

    fn of_model(problem: String) -> Self {
        Fault::new("", "", problem)
    }
}

/// Prints `node (operator): problem`, without what is empty.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.node[..], &self.operator[..]) {
            ("", "") => f.write_str(&self.problem),
            (node, "") => write!(f, "{node}: {}", self.problem),
            (node, operator) => write!(f, "{node} ({operator}): {}", self.problem),
        }
    }
}

/// Why a model could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is no ONNX model, or is damaged.
    #[error("this is no ONNX model: {0}")]
    Format(String),
    /// The file of masks is no safetensors file, or is damaged.
    #[error("these are no masks in safetensors: {0}")]
    Masks(String),
    /// The model has no private form, or one that is not supported: all reasons.
    #[error("{}", list(.0))]
    Refused(Vec<Fault>),
}

fn list(faults: &[Fault]) -> String {
    match faults {
        [fault] => fault.to_string(),
        faults => {
            let lines: Vec<String> = faults.iter().map(|fault| format!("\n  {fault}")).collect();
            format!("{} faults:{}", faults.len(), lines.concat())
        }
    }
}

/// Reads a model, and its external data from the same folder.
///
/// # Errors
/// [`Error::Refused`] with every fault of the model that can be told apart.
pub fn read(path: &Path, options: &Options) -> Result<Import, Error> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy());
    let name = name.as_deref().unwrap_or("model");
    convert::convert(&file::Model::read(path)?, name, options)
}

/// Reads a model that has no external data.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8], name: &str, options: &Options) -> Result<Import, Error> {
    convert::convert(&file::Model::parse(bytes, None)?, name, options)
}
