//! From a graph and examples to the two files of a model, if fixed point is near enough to the
//! float network: what `pi-compile --out` does, for any program.

use crate::accuracy::Measured;
use crate::accuracy::verdict::{Disagreement, Tolerance};
use crate::compile::{Compiled, Options, compile};
use crate::cost::evaluate::{Comparison, compare};
use crate::cost::report::Report;
use crate::emit;
use crate::examples::Examples;
use crate::pass::guard;
use anyhow::{Context, Result};
use pi_ir::artifact::Accuracy;
use pi_ir::{Artifact, Circuit, Graph, Weights, WeightsFile};
use rand_core::{OsRng, TryRngCore};
use std::fmt;

/// What is to be compiled, and what is asked of the result.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The network.
    pub graph: &'a Graph,
    /// The examples that calibrate.
    pub calibration: &'a Examples,
    /// Others, on which the result is measured.
    pub held_back: &'a Examples,
    /// Labelled examples, on which float and fixed-point accuracy are compared too.
    pub evaluate: Option<&'a Examples>,
    /// Choices left to the compiler.
    pub options: &'a Options,
    /// How near fixed point has to be.
    pub tolerance: Tolerance,
    /// Whether a network that is not near enough is made all the same, with a note that says so.
    pub allow_disagreement: bool,
    /// The maker's note for the users of the model.
    pub note: &'a str,
}

/// A model, with all that was measured of it.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The compiled network.
    pub compiled: Compiled,
    /// The public file.
    pub artifact: Artifact,
    /// The server's file.
    pub weights: WeightsFile,
    /// What it costs, with what was measured on the examples held back.
    pub report: Report,
    /// What was measured on the labelled examples.
    pub evaluated: Option<Comparison>,
}

/// A network whose answers in fixed point are not those of the float network.
#[derive(Clone, Debug)]
pub struct Unfaithful {
    /// What it falls short of, and why.
    pub found: Disagreement,
    /// Each layer on the examples held back.
    pub measured: Measured,
}

impl fmt::Display for Unfaithful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.found.fmt(f)
    }
}

impl std::error::Error for Unfaithful {}

/// Compiles a network, measures it and makes its files. `say` is given what the user should read,
/// a line each.
///
/// # Errors
/// [`Refused`](crate::Refused) of the compiler; [`Unfaithful`] of a network that may not be made;
/// if examples and network do not fit together.
pub fn checked(request: &Request<'_>, say: &mut dyn FnMut(&str)) -> Result<Checked> {
    let Request { graph, options, .. } = *request;
    let compiled = compile(graph, request.calibration, options)?;
    say_of(&compiled, say);
    let measured = Measured::new(graph, &compiled, request.held_back)?;
    let mut notes = vec![calibrated_on(request.calibration)];
    let compared = (&measured.comparison, request.held_back);
    match disagreement(&compiled, compared, request.tolerance)? {
        None => notes.push(measured.in_words(request.tolerance.outputs)),
        Some(found) => notes.push(allowed(request, &measured, found, say)?),
    }
    let evaluated = match request.evaluate {
        Some(examples) => {
            let comparison = compare(graph, &compiled.circuit, &compiled.weights, examples)?;
            let compared = (&comparison, examples);
            if let Some(found) = disagreement(&compiled, compared, request.tolerance)? {
                notes.push(allowed(request, &measured, found, say)?);
            }
            Some(comparison)
        }
        None => None,
    };
    let note = format!("{} {}", request.note, notes.join(" "));
    let accuracy = evaluated.as_ref().and_then(accuracy_of);
    let (artifact, weights) = emit::files(&compiled, salt()?, accuracy, note.trim());
    let mut report = Report::new(&artifact, &options.link)?;
    report.measured = Some(measured);
    Ok(Checked {
        compiled,
        artifact,
        weights,
        report,
        evaluated,
    })
}

fn say_of(compiled: &Compiled, say: &mut dyn FnMut(&str)) {
    for disclosed in &compiled.disclosed {
        say(&format!("public: {disclosed}"));
    }
    say_range_check(&compiled.circuit, &compiled.weights, say);
    for note in &compiled.notes {
        say(&format!("note: {note}"));
    }
    for (bundles, why) in &compiled.unplanned {
        say(&format!(
            "note: no batches of {bundles} bundles, which are prepared in smaller ones: {why}"
        ));
    }
}

/// Says what the private computation checks of a circuit's ranges, and what is proved.
pub fn say_range_check(circuit: &Circuit, weights: &Weights, say: &mut dyn FnMut(&str)) {
    for line in guard::in_words(circuit, weights) {
        say(&format!("range: {line}"));
    }
}

fn salt() -> Result<[u8; 32]> {
    let mut salt = [0; 32];
    OsRng
        .try_fill_bytes(&mut salt)
        .context("no random numbers from the system")?;
    Ok(salt)
}

/// Held-back examples have labels at times, but accuracy is recorded only of what was meant so.
fn accuracy_of(evaluated: &Comparison) -> Option<Accuracy> {
    evaluated.labelled.then_some(Accuracy {
        images: evaluated.images as u32,
        float_correct: evaluated.float_correct as u32,
        fixed_correct: evaluated.fixed_correct as u32,
    })
}

/// The shortfall of a comparison, explained, if there is one.
fn disagreement(
    compiled: &Compiled,
    (comparison, examples): (&Comparison, &Examples),
    tolerance: Tolerance,
) -> Result<Option<Disagreement>> {
    let Some(shortfall) = tolerance.shortfall(comparison) else {
        return Ok(None);
    };
    Disagreement::explain(compiled, (comparison, shortfall), examples).map(Some)
}

/// The sentence for the artifact's note on a network that is made all the same.
///
/// # Errors
/// [`Unfaithful`] if it may not be.
fn allowed(
    request: &Request<'_>,
    measured: &Measured,
    found: Disagreement,
    say: &mut dyn FnMut(&str),
) -> Result<String> {
    if !request.allow_disagreement {
        let measured = measured.clone();
        return Err(Unfaithful { found, measured }.into());
    }
    say(&format!(
        "warning: written all the same (--allow-disagreement): {found}"
    ));
    let figures = found.figures();
    Ok(format!("Not faithful to the float network: {figures}."))
}

/// The sentence for the artifact's note on its calibration.
fn calibrated_on(calibration: &Examples) -> String {
    let count = calibration.inputs.len();
    match calibration.is_drawn() {
        true => format!("Calibrated on {count} {DRAWN}"),
        false => format!("Calibrated on {}.", calibration.in_words()),
    }
}

/// What drawn calibration means, for the note, the page and the user.
pub const DRAWN: &str = "drawn examples, not on real ones: costs and times hold, but ranges, \
                         scales and agreement say nothing of real data, which may get wrong \
                         answers.";
