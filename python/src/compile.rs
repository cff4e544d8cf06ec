//! From a trained network to a model.

use crate::failure::Failure;
use crate::inputs::column;
use crate::job::{Job, Work};
use crate::model::{Model, hand};
use anyhow::{Context, Result, ensure};
use pi_compiler::accuracy::verdict::{MAX_ERROR, Outputs, Tolerance};
use pi_compiler::checked::{Request, checked};
use pi_compiler::examples::{Data, Examples, Notices, Reads};
use pi_compiler::pass::lower::Pools;
use pi_compiler::pass::quantise::{Precision, WeightBits};
use pi_compiler::pass::select::Link;
use pi_compiler::{Options, PublicPrefix, channels, import};
use pi_ir::value_file::Column;
use pi_ir::{Graph, GraphFile, Reveal, Shape};
use pi_onnx::{InputKind, Masks};
use pyo3::prelude::*;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The options of `pianissimo.compile`, which have the names and the meaning of those of
/// `pi-compile`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choices {
    calibration: PathBuf,
    calibration_images: Option<usize>,
    evaluate: Option<PathBuf>,
    evaluate_images: Option<usize>,
    labels: Option<PathBuf>,
    label_column: Option<String>,
    outputs: Option<OutputsChoice>,
    max_error: Option<f64>,
    #[serde(default)]
    allow_disagreement: bool,
    input: Option<Vec<u32>>,
    input_kind: Option<KindChoice>,
    input_bound: Option<f32>,
    output: Option<String>,
    mean: Option<Vec<f32>>,
    deviation: Option<Vec<f32>>,
    white: Option<f32>,
    #[serde(default)]
    channel_order: ChannelOrder,
    masks: Option<PathBuf>,
    weight_bits: Option<u8>,
    activation_bits: Option<u8>,
    head_room: Option<u8>,
    proved_sign_bits: Option<u8>,
    pools: Option<PoolChoice>,
    reveal: Option<RevealChoice>,
    public_prefix: Option<String>,
    #[serde(default)]
    reveal_learned_weights: bool,
    batches: Option<Vec<u32>>,
    range_check: Option<bool>,
    link: f64,
    machine: String,
    note: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OutputsChoice {
    Classes,
    Values,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindChoice {
    Image,
    Values,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ChannelOrder {
    #[default]
    Rgb,
    Bgr,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PoolChoice {
    Cheapest,
    Absorb,
    Separate,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RevealChoice {
    Label,
    Logits,
}

/// Compiles the network in a file, an ONNX model or a graph file, as a job for a [`Model`].
/// `choices` are the options as JSON.
#[pyfunction]
pub(crate) fn compile(py: Python<'_>, network: PathBuf, choices: &str) -> PyResult<Job> {
    let choices: Choices = serde_json::from_str(choices).map_err(|error| {
        let message = format!("an option cannot be used: {error}");
        Failure::new("InvalidArgument", message).into_error(py)
    })?;
    let work = move |work: &Work| model(&network, &choices, work);
    Job::run(work, hand).map_err(|failure| failure.into_error(py))
}

fn model(network: &Path, choices: &Choices, work: &Work) -> Result<Model, Failure> {
    pi_core::Backend::chosen().map_err(Failure::internal)?;
    let mut notices = Vec::new();
    let (link, machine) = link(choices.link, &choices.machine)?;
    notices.extend(machine);
    let checked = compiled(network, choices, link, &mut notices, work);
    let checked = checked.map_err(|error| Failure::of_compiler(&error))?;
    Ok(Model::of_checked(checked, notices))
}

/// A link of so many Mbit/s, with the machine of this name, and what is to be said of it.
///
/// # Errors
/// If there is no such machine or link.
pub(crate) fn link(speed: f64, machine: &str) -> Result<(Link, Vec<String>), Failure> {
    let invalid = |message: String| Failure::new("InvalidArgument", message);
    if !(speed.is_finite() && speed > 0.0) {
        return Err(invalid(format!(
            "link is a positive number of Mbit/s, not {speed}"
        )));
    }
    let found = pi_machine::named(machine).map_err(|e| invalid(format!("machine: {e}")))?;
    let mut notices: Vec<_> = found
        .notes
        .iter()
        .map(|n| format!("machine: {n}"))
        .collect();
    notices.push(format!(
        "machine: plan and costs are for {}",
        found.in_words()
    ));
    let link = Link {
        bits_per_second: speed * 1e6,
        machine: found.profile,
        ..Link::default()
    };
    Ok((link, notices))
}

fn compiled(
    network: &Path,
    choices: &Choices,
    link: Link,
    notices: &mut Vec<String>,
    work: &Work,
) -> Result<pi_compiler::checked::Checked> {
    let graph = graph_of(network, choices, notices)?;
    let reads = Reads::of(&graph)?;
    let options = choices.options(link);
    let tolerance = Tolerance::asked(
        reads.outputs,
        choices.outputs.map(|outputs| match outputs {
            OutputsChoice::Classes => Outputs::Classes,
            OutputsChoice::Values => Outputs::Values,
        }),
        choices.max_error.unwrap_or(MAX_ERROR),
        options.reveal,
    )?;
    let column = choices.label_column.as_deref().map(column);
    let (calibration, held_back) = calibration(choices, column.as_ref(), &reads, notices)?;
    let evaluate = evaluation(choices, column.as_ref(), &reads, notices)?;
    ensure!(!work.is_cancelled(), "cancelled");
    let request = Request {
        graph: &graph,
        calibration: &calibration,
        held_back: &held_back,
        evaluate: evaluate.as_ref(),
        options: &options,
        tolerance,
        allow_disagreement: choices.allow_disagreement,
        note: choices.note.as_deref().unwrap_or_default(),
    };
    checked(&request, &mut |line| notices.push(line.to_owned()))
}

/// The float network in a file.
fn graph_of(network: &Path, choices: &Choices, notices: &mut Vec<String>) -> Result<Graph> {
    if network.extension().is_none_or(|end| end != "onnx") {
        let bytes = std::fs::read(network);
        let bytes = bytes.with_context(|| format!("cannot read {}", network.display()))?;
        let file = GraphFile::decode(&bytes).with_context(|| network.display().to_string())?;
        return Ok(file.graph);
    }
    let white = choices.white.unwrap_or(1.0);
    ensure!(
        white.is_finite() && white > 0.0,
        "white is a positive number, not {white}"
    );
    let (mean, deviation) =
        import::in_unit_pixels(choices.mean.as_deref(), choices.deviation.as_deref(), white);
    let masks = choices.masks.as_deref();
    let masks = masks
        .map(|path| Masks::read(path).with_context(|| format!("cannot use {}", path.display())));
    let options = pi_onnx::Options {
        input: choices.input.as_deref().map(shape).transpose()?,
        kind: choices.input_kind.map(|kind| match kind {
            KindChoice::Image => InputKind::Image,
            KindChoice::Values => InputKind::Values,
        }),
        bound: choices.input_bound,
        output: choices.output.clone(),
        mean,
        deviation,
        masks: masks.transpose()?,
        trace: false,
    };
    let imported = pi_onnx::read(network, &options);
    let imported = imported.with_context(|| format!("cannot import {}", network.display()))?;
    notices.extend(imported.notes.iter().map(|note| format!("note: {note}")));
    let mut graph = imported.graph;
    if choices.channel_order == ChannelOrder::Bgr {
        channels::reverse(&mut graph)?;
    }
    Ok(graph)
}

fn shape(sides: &[u32]) -> Result<Shape> {
    ensure!(!sides.contains(&0), "input: no side is 0");
    match *sides {
        [c, h, w] => Ok(Shape::new(c, h, w)),
        [c, w] => Ok(Shape::new(c, 1, w)),
        [c] => Ok(Shape::new(c, 1, 1)),
        _ => anyhow::bail!("input: channels, rows and columns, such as (3, 32, 32)"),
    }
}

/// The examples that calibrate, and those held back.
fn calibration(
    choices: &Choices,
    column: Option<&Column>,
    reads: &Reads<'_>,
    notices: &mut Vec<String>,
) -> Result<(Examples, Examples)> {
    /// As `pi-compile` has it.
    const IMAGES: usize = 512;
    let count = choices.calibration_images.unwrap_or(IMAGES);
    let data = Data {
        path: &choices.calibration,
        labels: None,
        label_column: column,
    };
    let found = Examples::read_noting(&data, reads, Examples::with_held_back(count));
    let (all, Notices { inputs, .. }) = found.context("calibration data")?;
    let said = inputs.iter().map(|n| format!("note: calibration: {n}"));
    notices.extend(said);
    if all.is_drawn() {
        let drawn = pi_compiler::checked::DRAWN;
        notices.push(format!("warning: calibrated on {drawn}"));
    }
    let (calibration, held_back) = all.clone().hold_back();
    match held_back.inputs.len() {
        0 => {
            notices.push(
                "warning: a single example calibrates, and the result is measured on it, which \
                 says little"
                    .into(),
            );
            Ok((calibration, all))
        }
        kept => {
            let used = calibration.inputs.len();
            notices.push(format!(
                "note: {used} examples calibrate, {kept} others are held back to measure the result"
            ));
            Ok((calibration, held_back))
        }
    }
}

/// The labelled examples to evaluate, if there are some.
fn evaluation(
    choices: &Choices,
    column: Option<&Column>,
    reads: &Reads<'_>,
    notices: &mut Vec<String>,
) -> Result<Option<Examples>> {
    /// As `pi-compile` has it.
    const IMAGES: usize = 10_000;
    let Some(path) = &choices.evaluate else {
        ensure!(
            choices.labels.is_none(),
            "labels are those of the examples to evaluate: give --evaluate too"
        );
        return Ok(None);
    };
    let data = Data {
        path,
        labels: choices.labels.as_deref(),
        label_column: column,
    };
    let count = choices.evaluate_images.unwrap_or(IMAGES);
    let found = Examples::read_noting(&data, reads, count).context("data to evaluate")?;
    let (examples, Notices { inputs, labels }) = found;
    let said = inputs.iter().chain(&labels);
    notices.extend(said.map(|n| format!("note: data to evaluate: {n}")));
    Ok(Some(examples))
}

impl Choices {
    fn options(&self, link: Link) -> Options {
        let usual = Precision::default();
        Options {
            precision: Precision {
                weight_bits: self.weight_bits.map_or(usual.weight_bits, WeightBits::Of),
                activation_bits: self.activation_bits.unwrap_or(usual.activation_bits),
                head_room: self.head_room.unwrap_or(usual.head_room),
                proved_sign_bits: self.proved_sign_bits.unwrap_or(usual.proved_sign_bits),
            },
            pools: match self.pools {
                None | Some(PoolChoice::Cheapest) => Pools::Cheapest,
                Some(PoolChoice::Absorb) => Pools::Absorb,
                Some(PoolChoice::Separate) => Pools::Separate,
            },
            reveal: match self.reveal {
                None | Some(RevealChoice::Label) => Reveal::Label,
                Some(RevealChoice::Logits) => Reveal::Logits,
            },
            public_prefix: self.public_prefix.clone().map(|node| PublicPrefix {
                node,
                reveal_learned: self.reveal_learned_weights,
            }),
            batches: self.batches.clone().unwrap_or_else(|| vec![4, 16]),
            range_check: self.range_check.unwrap_or(true),
            link,
            ..Options::default()
        }
    }
}
