//! A compiled model: its two files, and what is known of its costs.

use crate::failure::Failure;
use crate::inputs::Input;
use crate::job::Job;
use pi_compiler::checked::Checked;
use pi_compiler::cost::evaluate::Comparison;
use pi_compiler::cost::report::Report;
use pi_compiler::file::write_whole;
use pi_compiler::page;
use pi_compiler::pass::select::Link;
use pi_ir::artifact::{ARTIFACT_NAME, WEIGHTS_NAME};
use pi_ir::{Artifact, Step, WeightsFile};
use pi_runtime::fingerprint::hex;
use pi_runtime::model_files::{read_artifact, read_weights};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A compiled model.
#[pyclass(frozen, module = "pianissimo._native")]
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) artifact: Arc<Artifact>,
    /// The server's half, where it is at hand.
    pub(crate) weights: Option<Arc<WeightsFile>>,
    report: Arc<Report>,
    evaluated: Option<Comparison>,
    notices: Vec<String>,
}

impl Model {
    /// The model that was just compiled.
    pub(crate) fn of_checked(checked: Checked, notices: Vec<String>) -> Model {
        Model {
            artifact: Arc::new(checked.artifact),
            weights: Some(Arc::new(checked.weights)),
            report: Arc::new(checked.report),
            evaluated: checked.evaluated,
            notices,
        }
    }

    /// The model in a directory, with its weights if they are there.
    ///
    /// # Errors
    /// If there is none, or its two files do not belong together.
    pub(crate) fn read(directory: &Path, link: &Link) -> Result<Model, Failure> {
        let (artifact, _) = read_artifact(directory)?;
        let weights = match directory.join(WEIGHTS_NAME).exists() {
            true => Some(read_weights(directory)?),
            false => None,
        };
        if let Some(weights) = &weights {
            let fits = artifact.check_weights(weights);
            fits.map_err(|e| Failure::new("ModelError", format!("{}: {e}", directory.display())))?;
        }
        let report = Report::new(&artifact, link);
        let report = report.map_err(|e| Failure::new("ModelError", e))?;
        Ok(Model {
            artifact: Arc::new(artifact),
            weights: weights.map(Arc::new),
            report: Arc::new(report),
            evaluated: None,
            notices: Vec::new(),
        })
    }

    /// Both files.
    ///
    /// # Errors
    /// If the weights are not at hand.
    pub(crate) fn both(&self) -> Result<(&Artifact, &WeightsFile), Failure> {
        let weights = self.weights.as_deref().ok_or_else(|| {
            Failure::new("ModelError", format!("{WEIGHTS_NAME} is not there"))
                .with_remedy("the weights are on the server's side; this needs them too")
        })?;
        Ok((&self.artifact, weights))
    }
}

/// Reads a model directory, and predicts its costs on a link and a machine, as a job for a
/// [`Model`].
#[pyfunction]
pub(crate) fn open_model(
    py: Python<'_>,
    directory: PathBuf,
    link: f64,
    machine: String,
) -> PyResult<Job> {
    let work = move |_: &_| {
        let link = crate::compile::link(link, &machine)?.0;
        Model::read(&directory, &link)
    };
    Job::run(work, hand).map_err(|failure| failure.into_error(py))
}

/// A model as Python's object.
pub(crate) fn hand(py: Python<'_>, model: Model) -> PyResult<Py<PyAny>> {
    Ok(Py::new(py, model)?.into_any())
}

#[pymethods]
impl Model {
    /// What it costs, as `pi-compile --json` prints it, with what it reads and answers.
    fn report_json(&self) -> String {
        let circuit = &self.artifact.circuit;
        let shape = circuit.image();
        let (frac_bits, reveal) = circuit.output();
        json!({
            "report": &*self.report,
            "comparison": self.evaluated,
            "notices": self.notices,
            "digest": hex(&self.artifact.digest()),
            "input": [shape.c, shape.h, shape.w],
            "reads_values": circuit.preprocessing.is_values(),
            "classes": circuit.classes,
            "outputs": circuit.layers.last().map_or(0, |layer| layer.shape.len()),
            "output_frac_bits": frac_bits,
            "reveal": reveal.to_string(),
            "has_weights": self.weights.is_some(),
        })
        .to_string()
    }

    /// The table that `pi-compile` prints.
    fn table(&self) -> String {
        let measured = self.report.measured.as_ref();
        let measured = measured.map_or_else(String::new, |m| format!("\n{m}"));
        let compared = self.evaluated.as_ref();
        let compared = compared.map_or_else(String::new, |c| format!("\n{c}"));
        format!("{}{measured}{compared}", self.report)
    }

    /// A page of HTML with charts, as `pi-compile --report` writes it.
    fn page(&self) -> String {
        page::html(&[page::Model {
            name: self.report.name.clone(),
            report: (*self.report).clone(),
        }])
    }

    /// The examples of an input as the circuit reads them.
    fn quantised(&self, py: Python<'_>, input: &Input) -> PyResult<Vec<Vec<i64>>> {
        let quantised = py.detach(|| input.quantised(&self.artifact.circuit));
        let quantised = quantised.map_err(|failure| failure.into_error(py))?;
        Ok(quantised.into_iter().map(|one| one.values).collect())
    }

    /// The kind of every element of every private activation: name of the layer, channels, rows
    /// and columns, and a byte for each element (0 ReLU, 1 identity, 2 square, 3 polynomial).
    fn kinds<'py>(&self, py: Python<'py>) -> Vec<(String, [u32; 3], Bound<'py, PyBytes>)> {
        let layers = self.artifact.circuit.layers.iter();
        let activations = layers.filter_map(|layer| match &layer.step {
            Step::Activate(activation) => {
                let kinds: Vec<u8> = activation.kinds.iter().map(|kind| *kind as u8).collect();
                let shape = [layer.shape.c, layer.shape.h, layer.shape.w];
                Some((layer.name.clone(), shape, PyBytes::new(py, &kinds)))
            }
            Step::Output { .. } => None,
        });
        activations.collect()
    }

    /// Writes both files into a directory, which is made if it is not there.
    fn save(&self, py: Python<'_>, directory: PathBuf) -> PyResult<()> {
        let write = || -> Result<(), Failure> {
            let (artifact, weights) = self.both()?;
            let failed = |error: &dyn std::fmt::Display| {
                let place = directory.display();
                Failure::new("ModelError", format!("cannot write to {place}: {error}"))
            };
            fs::create_dir_all(&directory).map_err(|e| failed(&e))?;
            write_whole(&directory.join(WEIGHTS_NAME), &weights.encode())
                .map_err(|e| failed(&format_args!("{e:#}")))?;
            write_whole(&directory.join(ARTIFACT_NAME), &artifact.encode())
                .map_err(|e| failed(&format_args!("{e:#}")))
        };
        py.detach(write).map_err(|failure| failure.into_error(py))
    }
}
