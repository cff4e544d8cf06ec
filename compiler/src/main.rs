//! `pi-compile` turns a trained graph into a circuit and its weights, prints the table of what that
//! costs, and measures the accuracy that fixed point loses.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use pi_compiler::accuracy::verdict::{Disagreement, MAX_ERROR, Outputs, Tolerance};
use pi_compiler::checked::{DRAWN, Request, Unfaithful, checked, say_range_check};
use pi_compiler::cost::activations::costs;
use pi_compiler::cost::evaluate::{Comparison, compare};
use pi_compiler::cost::report::Report;
use pi_compiler::examples::{Data, Examples, Notices, Reads, SYNTHETIC};
use pi_compiler::file::write_whole;
use pi_compiler::page::{self, Model};
use pi_compiler::pass::guard;
use pi_compiler::pass::lower::Pools;
use pi_compiler::pass::quantise::{Precision, WIDEST_WEIGHTS, WeightBits};
use pi_compiler::pass::select::Link;
use pi_compiler::{Compiled, Options, PublicPrefix, channels, compile, emit, import, trace};
use pi_ir::artifact::{ARTIFACT_NAME, GRAPH_NAME, WEIGHTS_NAME};
use pi_ir::value_file::Column;
use pi_ir::{Artifact, Graph, GraphFile, Reveal, Shape, WeightsFile};
use pi_machine::{HERE, Profile};
use pi_onnx::InputKind;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Compiles a trained graph to a fixed-point circuit (model.pia, public) and its weights
/// (model.piw, for the server only).
#[derive(Parser)]
#[command(name = "pi-compile", version, after_help = EXAMPLES)]
struct Arguments {
    /// The trained network: an ONNX model (.onnx), or a graph file as pi-train exports it. With
    /// --inspect, or with --evaluate and no --out: a model directory.
    #[arg(required_unless_present = "measure_machine")]
    graph: Option<PathBuf>,
    /// With --inspect: more model directories, to be compared with the first.
    #[arg(value_name = "DIRECTORY")]
    others: Vec<PathBuf>,
    #[command(flatten)]
    onnx: OnnxChoices,
    /// Directory for model.pia and model.piw; created if it does not exist.
    #[arg(
        long,
        required_unless_present_any = [
            "inspect", "evaluate", "costs", "export_onnx", "trace", "set_range_check",
            "measure_machine"
        ]
    )]
    out: Option<PathBuf>,
    /// Examples like those that the network will see. Pictures: .bin records, a .tar.xz archive, a
    /// .npy array of bytes, or a folder. Real values: a .npy array of one example or several, a
    /// .csv file with one example a row, or a folder of either. Ranges and scales rest on most of
    /// them; the others are held back, and the result is measured on these. The word `synthetic`
    /// stands for drawn ones, which are good enough for costs and for random weights; on real data,
    /// a network that was calibrated on them fails.
    #[arg(long, value_name = "DATA", conflicts_with = "inspect")]
    calibration: Option<PathBuf>,
    /// Number of examples to calibrate on, if there are as many; a quarter as many, and at least
    /// 16, are held back [default: 512, or 16 with --costs and no --out].
    #[arg(long)]
    calibration_images: Option<usize>,
    /// Writes the cost of each activation of the graph to this file, as JSON. Without --out,
    /// nothing else is written.
    #[arg(long, value_name = "FILE", requires = "calibration")]
    costs: Option<PathBuf>,
    /// Compares float and fixed-point accuracy on these labelled examples too, and records it in
    /// the artifact. They have to agree as the held-back examples have to.
    #[arg(long, value_name = "DATA")]
    evaluate: Option<PathBuf>,
    /// The labels of the --evaluate data, in their order: a .npy list of whole numbers, or a text
    /// with one number or class name a line.
    #[arg(long, value_name = "FILE", requires = "evaluate")]
    labels: Option<PathBuf>,
    /// The column of .csv files that has the label and no value: its name in the first line, or its
    /// place, from 0 or, negative, from the end.
    #[arg(
        long,
        value_name = "COLUMN",
        allow_hyphen_values = true,
        conflicts_with = "labels"
    )]
    label_column: Option<Column>,
    /// Number of examples to evaluate.
    #[arg(long, default_value_t = 10_000)]
    evaluate_images: usize,
    /// What the outputs are: classes, of which the largest is the answer, or values, as of a
    /// regression [default: values if there is one output].
    #[arg(long, value_enum)]
    outputs: Option<OutputsChoice>,
    /// Largest error of fixed point that is accepted of outputs that are values: root mean square,
    /// as a share of how much an output varies from example to example.
    #[arg(long, value_name = "SHARE", default_value_t = MAX_ERROR, value_parser = share)]
    max_error: f64,
    /// Writes the network even if its answers in fixed point are not those of the float network:
    /// on fewer than 95 % of the held-back examples, or values beyond --max-error. The artifact's
    /// note says so.
    #[arg(long)]
    allow_disagreement: bool,
    /// Writes the costs as a page of HTML with charts, to be kept or sent to others: of the model
    /// that --out makes, or of all those that --inspect names.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Sets the range checks of an existing model directory anew, or removes them with
    /// --no-range-check: rewrites its model.pia and nothing else. Bundles that were prepared for it
    /// are those of another model then.
    #[arg(long, conflicts_with_all = ["out", "evaluate", "costs", "calibration", "inspect"])]
    set_range_check: bool,
    /// Prints the tables of existing model directories and exits.
    #[arg(long, conflicts_with_all = ["out", "evaluate", "costs"])]
    inspect: bool,
    /// Writes the float graph to this file as an ONNX model, masks and quadratics included. Without
    /// --out, nothing else is written.
    #[arg(long, value_name = "FILE.onnx", conflicts_with = "inspect")]
    export_onnx: Option<PathBuf>,
    /// Measures this machine anew with the back end of this process, which takes about two seconds,
    /// and keeps the result for --machine here. Prints the profile, or writes it to the file that
    /// --out names, for --machine FILE elsewhere.
    #[arg(long, conflicts_with_all = ["graph", "evaluate", "costs", "calibration", "inspect"])]
    measure_machine: bool,
    #[command(flatten)]
    choices: Choices,
    /// Writes units and bounds of all tensors to this file, as JSON, for quantisation-aware
    /// training.
    #[arg(long, value_name = "FILE.json", requires = "out")]
    export_scales: Option<PathBuf>,
    /// Note for the users of the model; kept in the artifact.
    #[arg(long, default_value = "")]
    note: String,
    /// Prints JSON instead of the table.
    #[arg(long)]
    json: bool,
}

/// What an ONNX model may leave open.
#[derive(Args)]
#[command(next_help_heading = "ONNX models")]
struct OnnxChoices {
    /// Shape of the input, if the model leaves it open: channels, rows and columns of a picture,
    /// channels and samples of a signal (CxL), or features of a row (F).
    #[arg(long, value_name = "CxHxW", value_parser = shape)]
    input: Option<Shape>,
    /// What the input is [default: an image if it has four axes with the batch, and one channel or
    /// three].
    #[arg(long, value_enum)]
    input_kind: Option<KindChoice>,
    /// Largest magnitude of a normalised input that is not an image; a client refuses larger ones
    /// [default: as calibration shows, with head room].
    #[arg(long, value_name = "B", value_parser = positive)]
    input_bound: Option<f32>,
    /// The output to compute, if the model has several; any of its tensors may be one.
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Means that the network was trained with, of pixels from 0 to 1 or of real values: one
    /// number, or one for each channel or feature. Not needed if the model normalises its input
    /// itself, or if its metadata has them.
    #[arg(long, value_delimiter = ',', value_name = "M,M,M")]
    mean: Option<Vec<f32>>,
    /// Deviations, in the same way.
    #[arg(long, value_delimiter = ',', value_name = "D,D,D")]
    deviation: Option<Vec<f32>>,
    /// What the network was trained with for a white pixel; means and deviations are in its units:
    /// 255 for a network that reads bytes, or bytes less a mean.
    #[arg(long, value_name = "WHITE", default_value_t = 1.0, value_parser = positive)]
    white: f32,
    /// Order of the channels that the network was trained with; means and deviations are in this
    /// order. Networks from Caffe, and from OpenCV's reader of images, have bgr.
    #[arg(long, value_enum, default_value_t = ChannelOrder::Rgb)]
    channel_order: ChannelOrder,
    /// Masks of a network whose activations are plain Relu nodes: which elements are ReLUs, which
    /// are left as they are and which are quadratics (docs/onnx.md has the format).
    #[arg(long, value_name = "FILE.safetensors")]
    masks: Option<PathBuf>,
    /// Computes every tensor of the model on this input, an array of float32 as numpy.save writes
    /// it, and nothing else: tools/onnx-check compares them with onnxruntime's. With --calibration,
    /// those in fixed point too.
    #[arg(
        long,
        value_name = "INPUT.npy",
        requires = "trace_out",
        conflicts_with_all = ["out", "evaluate", "costs", "inspect", "public_prefix"]
    )]
    trace: Option<PathBuf>,
    /// Directory for the tensors of --trace and their list, trace.json.
    #[arg(long, value_name = "DIR", requires = "trace")]
    trace_out: Option<PathBuf>,
}

/// Choices left to the compiler.
#[derive(Args)]
struct Choices {
    /// Bits per weight, sign included: a number from 2 to 15 for all layers, or `auto`, which is 8
    /// and as many more, layer by layer, as make the answers better. A network is refused if its
    /// weights would show through the answers' noise; `auto` keeps below that.
    #[arg(long, default_value = "auto", value_parser = weight_bits)]
    weight_bits: WeightBits,
    /// Bits that the largest activation seen on calibration data takes up.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(4..=20))]
    activation_bits: u8,
    /// Spare bits above the largest value seen on calibration data, for values that no proof
    /// bounds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=16))]
    head_room: u8,
    /// Widest sign circuit that is accepted for a proved bound. With 0, all bounds come from
    /// calibration, which is cheaper.
    #[arg(long, default_value_t = 17, value_parser = clap::value_parser!(u8).range(0..=32))]
    proved_sign_bits: u8,
    /// Where to put an average pool that follows an activation.
    #[arg(long, value_enum, default_value_t = PoolChoice::Cheapest)]
    pools: PoolChoice,
    /// What the client learns: the label, which is the class of the largest logit, or all logits.
    /// Logits tell far more about the weights with each answer.
    #[arg(long, value_enum, default_value_t = RevealChoice::Label)]
    reveal: RevealChoice,
    /// Makes everything up to this node public, so that the client computes it itself: its weights
    /// are in model.pia, and it costs no protocol. For layers that hold no secret, such as filters
    /// that whiten patches.
    #[arg(long, value_name = "NODE")]
    public_prefix: Option<String>,
    /// Publishes the public prefix even if its weights were learned, or if the graph does not say.
    #[arg(long, requires = "public_prefix")]
    reveal_learned_weights: bool,
    /// Numbers of bundles, besides one, to choose a packing for: bundles that are prepared together
    /// share ciphertexts.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [4, 16],
        value_parser = clap::value_parser!(u32).range(2..=64)
    )]
    batches: Vec<u32>,
    /// Checks no ranges: where a value inside the network leaves its bound, the client gets a wrong
    /// answer that looks like a right one, instead of none. For measuring what the checks cost.
    #[arg(long)]
    no_range_check: bool,
    /// Speed of the link that the packing is chosen for, in Mbit/s.
    #[arg(long, default_value_t = 100.0, value_parser = speed)]
    link: f64,
    /// The server that the packing is chosen and times are predicted for: `here` for this machine
    /// with the back end of this process (measured once, in about two seconds), `zen4-avx512` or
    /// `zen3-avx2` for the profiles that come with the compiler, or a file that --measure-machine
    /// wrote on the server.
    #[arg(long, value_name = "MACHINE", default_value = HERE)]
    machine: String,
}

/// [`InputKind`] on the command line.
#[derive(Clone, Copy, clap::ValueEnum)]
enum KindChoice {
    /// Pictures of bytes, which become numbers from 0 to 1.
    Image,
    /// Real values as they are.
    Values,
}

/// Order of the channels of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ChannelOrder {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
}

/// [`Outputs`] on the command line.
#[derive(Clone, Copy, clap::ValueEnum)]
enum OutputsChoice {
    /// One output for each class.
    Classes,
    /// Values.
    Values,
}

/// [`Pools`] on the command line.
#[derive(Clone, Copy, clap::ValueEnum)]
enum PoolChoice {
    /// Choose whichever of the two uploads fewer bytes.
    Cheapest,
    /// Merge the pool into the next kernel.
    Absorb,
    /// Make the pool a layer of identities.
    Separate,
}

/// [`Reveal`] on the command line.
#[derive(Clone, Copy, clap::ValueEnum)]
enum RevealChoice {
    /// Reveal the class alone.
    Label,
    /// Reveal all logits.
    Logits,
}

impl From<RevealChoice> for Reveal {
    fn from(choice: RevealChoice) -> Reveal {
        match choice {
            RevealChoice::Label => Reveal::Label,
            RevealChoice::Logits => Reveal::Logits,
        }
    }
}

impl From<OutputsChoice> for Outputs {
    fn from(choice: OutputsChoice) -> Outputs {
        match choice {
            OutputsChoice::Classes => Outputs::Classes,
            OutputsChoice::Values => Outputs::Values,
        }
    }
}

const EXAMPLES: &str = "Examples:
  pi-compile mine.onnx --calibration photographs --out mine
  pi-compile ecg.onnx --calibration train.npy --evaluate test.npy --labels labels.npy --out ecg
  pi-compile table.onnx --calibration train.csv --label-column species --out table
  pi-compile mine/model.graph --calibration ../shared/data/cifar10 --out mine
  pi-compile mine/model.graph --calibration ../shared/data/cifar10 --costs costs.json
  pi-compile mine --inspect
  pi-compile --measure-machine --out server.json
  pi-compile mine.onnx --calibration photographs --machine server.json --out mine
  pi-compile --inspect mine yours --report costs.html
  pi-compile mine --evaluate ../shared/data/cifar10/cifar10_jpeg_test_batch.tar.xz";

fn main() -> ExitCode {
    let asked = pi_manuals::arguments::<Arguments>();
    let done = asked.and_then(|arguments| arguments.as_ref().map_or(Ok(()), run));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pi-compile: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    /// The network, or the model directory.
    fn graph(&self) -> &Path {
        (self.graph.as_deref()).expect("the only use that needs none was served before")
    }

    /// Options for a machine.
    fn options(&self, machine: Profile) -> Options {
        self.choices.options(machine)
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.measure_machine {
        return measure_machine(arguments.out.as_deref());
    }
    if arguments.inspect {
        return inspect(arguments);
    }
    // Not by clap, which waives a requirement that conflicts with another argument.
    if let Some(other) = arguments.others.first() {
        bail!(
            "one model at a time, unless with --inspect: {}",
            other.display()
        );
    }
    if arguments.set_range_check {
        return set_range_check(arguments);
    }
    if arguments.report.is_some() && arguments.out.is_none() {
        bail!("--report works with --out or with --inspect");
    }
    if let (Some(input), Some(out)) = (&arguments.onnx.trace, &arguments.onnx.trace_out) {
        return trace_model(arguments, input, out);
    }
    if let Some(file) = &arguments.export_onnx {
        export_onnx(arguments, file)?;
        if arguments.out.is_none() && arguments.evaluate.is_none() && arguments.costs.is_none() {
            return Ok(());
        }
    }
    match (&arguments.out, &arguments.evaluate, &arguments.costs) {
        (Some(out), ..) => compile_to(arguments, out),
        (None, Some(_), Some(_)) => {
            bail!("--costs works with --out or alone, not with --evaluate alone")
        }
        (None, Some(data), None) => evaluate_model(arguments, data),
        (None, None, Some(file)) => costs_of_graph(arguments, file),
        (None, None, None) => bail!(
            "nothing to do: give --out, --evaluate, --costs, --export-onnx, --trace or --inspect"
        ),
    }
}

/// Measures this machine, and prints its profile or writes it to a file.
fn measure_machine(out: Option<&Path>) -> Result<()> {
    let found = pi_machine::anew()?;
    say("machine", &found.notes);
    match out {
        Some(file) => {
            write_whole(file, found.profile.encode().as_bytes())?;
            eprintln!("{}: {}", file.display(), found.profile.in_words());
        }
        None => print!("{}", found.profile.encode()),
    }
    Ok(())
}

/// The machine that plan and costs are for; says which.
fn machine(choices: &Choices) -> Result<Profile> {
    let found = pi_machine::named(&choices.machine).context("--machine")?;
    say("machine", &found.notes);
    eprintln!("machine: plan and costs are for {}", found.in_words());
    Ok(found.profile)
}

/// Prints what the artifacts of model directories cost, and writes the page on all of them.
fn inspect(arguments: &Arguments) -> Result<()> {
    let link = arguments.options(machine(&arguments.choices)?).link;
    let others = arguments.others.iter().map(PathBuf::as_path);
    let paths = std::iter::once(arguments.graph()).chain(others);
    let models = paths.map(|path| {
        let report = Report::new(&load_artifact(path)?, &link);
        Model::of(path, report.with_context(|| path.display().to_string())?)
    });
    let models = models.collect::<Result<Vec<Model>>>()?;
    write_page(arguments, &models)?;
    match models.as_slice() {
        [model] => print(&model.report, None, arguments.json)?,
        _ if arguments.json => {
            let all = serde_json::json!({ "models": models });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        _ => models.iter().for_each(|model| println!("{}", model.report)),
    }
    Ok(())
}

/// Rewrites the artifact of a model directory with other range checks. The weights stay, and so
/// does everything else that the artifact says.
fn set_range_check(arguments: &Arguments) -> Result<()> {
    let directory = arguments.graph();
    let artifact = load_artifact(directory)?;
    let weights = WeightsFile::decode(&read(&directory.join(WEIGHTS_NAME))?)?;
    artifact.check_weights(&weights)?;
    let mut circuit = artifact.circuit.clone().into_inner();
    let check = !arguments.choices.no_range_check;
    guard::guard(&mut circuit, &weights.weights, check);
    let (circuit, failure_log2) = emit::check(circuit, &weights.weights, emit::FAILURE_LIMIT)?;
    say_range_check(&circuit, &weights.weights, &mut |line| eprintln!("{line}"));
    let artifact = Artifact {
        circuit,
        failure_log2,
        ..artifact
    };
    write_whole(&directory.join(ARTIFACT_NAME), &artifact.encode())
}

fn write_page(arguments: &Arguments, models: &[Model]) -> Result<()> {
    match &arguments.report {
        Some(file) => write_whole(file, page::html(models).as_bytes()),
        None => Ok(()),
    }
}

/// Writes the graph as an ONNX model.
fn export_onnx(arguments: &Arguments, file: &Path) -> Result<()> {
    let (path, graph) = graph_of(arguments)?;
    let model = pi_onnx::write(&graph);
    let model = model.with_context(|| format!("cannot export {}", path.display()))?;
    write_whole(file, &model)?;
    eprintln!(
        "{}: {}",
        file.display(),
        pi_onnx::input_in_words(&graph.preprocessing)
    );
    Ok(())
}

/// Writes every tensor of an ONNX model, of its circuit too if there are calibration images.
fn trace_model(arguments: &Arguments, input: &Path, out: &Path) -> Result<()> {
    let values = trace::read_input(input)?;
    let import = import_onnx(arguments.graph(), &arguments.onnx)?;
    let compiled = match &arguments.calibration {
        Some(_) => {
            let count = arguments.calibration_images.unwrap_or(COSTS_IMAGES);
            let mut calibration = calibration_of(arguments, &import.graph, count)?;
            // The trace has the model's own order, and so the pictures get it, not the weights.
            if arguments.onnx.channel_order == ChannelOrder::Bgr {
                calibration.reverse_channels(Reads::of(&import.graph)?.shape);
            }
            let options = Options {
                batches: Vec::new(),
                // A trace shows no plan.
                ..arguments.options(pi_machine::zen4_avx512())
            };
            Some(compile(&import.graph, &calibration, &options)?)
        }
        None => None,
    };
    trace::write(out, &trace::trace(&import, compiled.as_ref(), &values)?)
}

/// Writes the costs alone: no batch is planned, and a network that would fail too often is not
/// refused.
fn costs_of_graph(arguments: &Arguments, file: &Path) -> Result<()> {
    let (path, graph) = graph_of(arguments)?;
    let count = arguments.calibration_images.unwrap_or(COSTS_IMAGES);
    let calibration = calibration_of(arguments, &graph, count)?;
    let options = Options {
        batches: Vec::new(),
        failure_limit: 0.0,
        ..arguments.options(machine(&arguments.choices)?)
    };
    let compiled = compile(&graph, &calibration, &options)
        .with_context(|| format!("cannot compile {}", path.display()))?;
    write_costs(file, &graph, (&compiled, &options), &calibration)
}

fn write_costs(
    file: &Path,
    graph: &Graph,
    (compiled, options): (&Compiled, &Options),
    calibration: &Examples,
) -> Result<()> {
    let source = calibration.in_words();
    let costs = costs(graph, compiled, &source, &options.link.machine)?;
    let mut text = serde_json::to_string_pretty(&costs)?;
    text.push('\n');
    write_whole(file, text.as_bytes())?;
    let sites = costs.layers.iter().filter(|layer| layer.site.is_some());
    eprintln!("{}: costs of {} activations", file.display(), sites.count());
    Ok(())
}

fn graph_of(arguments: &Arguments) -> Result<(PathBuf, Graph)> {
    let graph = arguments.graph();
    let path = match graph.is_dir() {
        true => graph.join(GRAPH_NAME),
        false => graph.to_path_buf(),
    };
    let graph = match path
        .extension()
        .is_some_and(|extension| extension == "onnx")
    {
        true => {
            let mut graph = import_onnx(&path, &arguments.onnx)?.graph;
            if arguments.onnx.channel_order == ChannelOrder::Bgr {
                channels::reverse(&mut graph)
                    .with_context(|| format!("cannot import {}", path.display()))?;
            }
            graph
        }
        false => {
            arguments.onnx.none_for_graph_files()?;
            load_graph(&path)?
        }
    };
    Ok((path, graph))
}

/// Costs depend on the widths of sign circuits, and a few images tell those to a bit.
const COSTS_IMAGES: usize = 16;
const CALIBRATION_IMAGES: usize = 512;

fn compile_to(arguments: &Arguments, out: &Path) -> Result<()> {
    let (path, graph) = graph_of(arguments)?;
    let tolerance = tolerance(arguments, &graph)?;
    let (calibration, held_back) = calibration_and_held_back(arguments, &graph)?;
    let options = arguments.options(machine(&arguments.choices)?);
    let evaluate = arguments.evaluate.as_ref();
    let evaluate = evaluate.map(|data| evaluated(arguments, data, &graph));
    let evaluate = evaluate.transpose()?;
    let request = Request {
        graph: &graph,
        calibration: &calibration,
        held_back: &held_back,
        evaluate: evaluate.as_ref(),
        options: &options,
        tolerance,
        allow_disagreement: arguments.allow_disagreement,
        note: &arguments.note,
    };
    let made = checked(&request, &mut |line| eprintln!("{line}"));
    let made = made.map_err(|error| match error.downcast_ref::<Unfaithful>() {
        Some(Unfaithful { measured, .. }) => {
            eprint!("{measured}");
            error.context("nothing is written")
        }
        None => error.context(format!("cannot compile {}", path.display())),
    })?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    write_whole(&out.join(WEIGHTS_NAME), &made.weights.encode())?;
    write_whole(&out.join(ARTIFACT_NAME), &made.artifact.encode())?;
    if let Some(file) = &arguments.costs {
        write_costs(file, &graph, (&made.compiled, &options), &calibration)?;
    }
    if let Some(file) = &arguments.export_scales {
        let scales = pi_compiler::export::export(&made.compiled);
        write_whole(file, &serde_json::to_vec_pretty(&scales)?)?;
    }
    let model = Model::of(out, made.report)?;
    write_page(arguments, std::slice::from_ref(&model))?;
    print(&model.report, made.evaluated.as_ref(), arguments.json)
}

/// What is asked of the network in fixed point.
fn tolerance(arguments: &Arguments, graph: &Graph) -> Result<Tolerance> {
    Tolerance::asked(
        Reads::of(graph)?.outputs,
        arguments.outputs.map(Outputs::from),
        arguments.max_error,
        arguments.choices.reveal.into(),
    )
}

/// The examples that `--calibration` names: those that calibrate, and those held back.
fn calibration_and_held_back(arguments: &Arguments, graph: &Graph) -> Result<(Examples, Examples)> {
    let count = arguments.calibration_images.unwrap_or(CALIBRATION_IMAGES);
    let all = calibration_of(arguments, graph, Examples::with_held_back(count))?;
    let (calibration, held_back) = all.clone().hold_back();
    let (used, kept) = (calibration.inputs.len(), held_back.inputs.len());
    if kept == 0 {
        eprintln!(
            "note: with a single example none can be held back: it calibrates, and the result is \
             measured on it, which says little"
        );
        return Ok((calibration, all));
    }
    eprintln!(
        "note: {used} examples of {} calibrate, {kept} others are held back to measure the result",
        calibration.source
    );
    Ok((calibration, held_back))
}

/// The examples that `--calibration` names, `count` unless the user says how many.
fn calibration_of(arguments: &Arguments, graph: &Graph, count: usize) -> Result<Examples> {
    let path = arguments.calibration.as_ref();
    let path = path.context("--calibration <DATA> is missing")?;
    let data = Data {
        path,
        labels: None,
        label_column: arguments.label_column.as_ref(),
    };
    let reads = Reads::of(graph)?;
    let found = Examples::read_noting(&data, &reads, count);
    let (examples, Notices { inputs, .. }) = found.context("calibration data")?;
    say("calibration", &inputs);
    // Photographs of anything may calibrate.
    if let Some(most) = examples.labels.iter().max()
        && examples.labels_of(reads.outputs).is_empty()
    {
        eprintln!(
            "note: calibration: labels go up to {most}, and the network has {} outputs: they are \
             of other classes, and are not used",
            reads.outputs
        );
    }
    if examples.is_drawn() {
        eprintln!("note: `--calibration {SYNTHETIC}` calibrates on {DRAWN}");
    }
    Ok(examples)
}

fn say(of: &str, notices: &[String]) {
    for notice in notices {
        eprintln!("note: {of}: {notice}");
    }
}

/// The examples that `--evaluate` names.
fn evaluated(arguments: &Arguments, path: &Path, graph: &Graph) -> Result<Examples> {
    let data = Data {
        path,
        labels: arguments.labels.as_deref(),
        label_column: arguments.label_column.as_ref(),
    };
    let found = Examples::read_noting(&data, &Reads::of(graph)?, arguments.evaluate_images);
    let (examples, Notices { inputs, labels }) = found.context("data to evaluate")?;
    say("data to evaluate", &inputs);
    say("data to evaluate", labels.as_slice());
    ensure!(
        data.label_column.is_none() || !examples.labels.is_empty(),
        "--label-column names a column of a .csv file: for arrays, give --labels FILE"
    );
    Ok(examples)
}

fn evaluate_model(arguments: &Arguments, data: &Path) -> Result<()> {
    let directory = arguments.graph();
    let artifact = load_artifact(directory)?;
    let weights = WeightsFile::decode(&read(&directory.join(WEIGHTS_NAME))?)?;
    artifact.check_weights(&weights)?;
    let graph = load_graph(&directory.join(GRAPH_NAME))?;
    let mut tolerance = Tolerance::of(Reads::of(&graph)?.outputs);
    tolerance.max_error = arguments.max_error;
    if let Some(OutputsChoice::Values) = arguments.outputs {
        tolerance.outputs = Outputs::Values;
    }
    let examples = evaluated(arguments, data, &graph)?;
    let comparison = compare(&graph, &artifact.circuit, &weights.weights, &examples)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
    } else {
        print!("{comparison}");
    }
    match tolerance.shortfall(&comparison) {
        Some(shortfall) if !arguments.allow_disagreement => {
            let found = Disagreement::unexplained(&comparison, shortfall);
            bail!(
                "{}: compile it on more examples like these",
                found.figures()
            )
        }
        _ => Ok(()),
    }
}

fn print(report: &Report, comparison: Option<&Comparison>, json: bool) -> Result<()> {
    if json {
        let all = serde_json::json!({ "report": report, "comparison": comparison });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    print!("{report}");
    if let Some(comparison) = comparison {
        print!("{comparison}");
    }
    Ok(())
}

impl Choices {
    fn options(&self, machine: Profile) -> Options {
        Options {
            precision: Precision {
                weight_bits: self.weight_bits,
                activation_bits: self.activation_bits,
                head_room: self.head_room,
                proved_sign_bits: self.proved_sign_bits,
            },
            pools: match self.pools {
                PoolChoice::Cheapest => Pools::Cheapest,
                PoolChoice::Absorb => Pools::Absorb,
                PoolChoice::Separate => Pools::Separate,
            },
            reveal: self.reveal.into(),
            public_prefix: self.public_prefix.clone().map(|node| PublicPrefix {
                node,
                reveal_learned: self.reveal_learned_weights,
            }),
            batches: self.batches.clone(),
            range_check: !self.no_range_check,
            link: Link {
                bits_per_second: self.link * 1e6,
                machine,
                ..Link::default()
            },
            ..Options::default()
        }
    }
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(speed),
        _ => Err("a positive number of Mbit/s".into()),
    }
}

fn weight_bits(text: &str) -> Result<WeightBits, String> {
    match text.parse::<u8>() {
        _ if text == "auto" => Ok(Precision::default().weight_bits),
        Ok(bits @ 2..=WIDEST_WEIGHTS) => Ok(WeightBits::Of(bits)),
        _ => Err(format!("a number from 2 to {WIDEST_WEIGHTS}, or `auto`")),
    }
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a positive number".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share.is_finite() && share > 0.0 => Ok(share),
        _ => Err("a positive share, such as 0.05".into()),
    }
}

impl OnnxChoices {
    /// Ensures that nothing was given that only ONNX models leave open.
    fn none_for_graph_files(&self) -> Result<()> {
        let given = [
            ("--input", self.input.is_some()),
            ("--input-kind", self.input_kind.is_some()),
            ("--input-bound", self.input_bound.is_some()),
            ("--output", self.output.is_some()),
            ("--mean", self.mean.is_some()),
            ("--deviation", self.deviation.is_some()),
            ("--white", self.white != 1.0),
            ("--channel-order", self.channel_order != ChannelOrder::Rgb),
            ("--masks", self.masks.is_some()),
        ];
        let given = given.iter().filter(|(_, given)| *given);
        let given: Vec<&str> = given.map(|(name, _)| *name).collect();
        ensure!(
            given.is_empty(),
            "{}: for ONNX models only; a graph file says itself what it reads",
            given.join(", ")
        );
        Ok(())
    }

    /// Means and deviations of pixels from 0 to 1, or of values, as far as they are given.
    fn statistics(&self) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
        import::in_unit_pixels(self.mean.as_deref(), self.deviation.as_deref(), self.white)
    }
}

fn import_onnx(path: &Path, choices: &OnnxChoices) -> Result<pi_onnx::Import> {
    let (mean, deviation) = choices.statistics();
    let options = pi_onnx::Options {
        input: choices.input,
        kind: choices.input_kind.map(|kind| match kind {
            KindChoice::Image => InputKind::Image,
            KindChoice::Values => InputKind::Values,
        }),
        bound: choices.input_bound,
        output: choices.output.clone(),
        mean,
        deviation,
        masks: choices.masks.as_deref().map(masks).transpose()?,
        trace: choices.trace.is_some(),
    };
    let import = pi_onnx::read(path, &options);
    let import = import.with_context(|| format!("cannot import {}", path.display()))?;
    for note in &import.notes {
        eprintln!("note: {note}");
    }
    Ok(import)
}

fn masks(path: &Path) -> Result<pi_onnx::Masks> {
    pi_onnx::Masks::read(path).with_context(|| format!("cannot use {}", path.display()))
}

fn shape(text: &str) -> Result<Shape, String> {
    let sides: Result<Vec<u32>, _> = text.split('x').map(str::parse).collect();
    match sides.as_deref() {
        Ok(sides) if sides.contains(&0) => Err("no side is 0".into()),
        Ok([c, h, w]) => Ok(Shape::new(*c, *h, *w)),
        Ok([c, w]) => Ok(Shape::new(*c, 1, *w)),
        Ok([c]) => Ok(Shape::new(*c, 1, 1)),
        _ => Err("channels, rows and columns, such as 3x32x32".into()),
    }
}

fn load_graph(path: &Path) -> Result<Graph> {
    let file = GraphFile::decode(&read(path)?).with_context(|| path.display().to_string())?;
    Ok(file.graph)
}

fn load_artifact(directory: &Path) -> Result<Artifact> {
    let path = match directory.is_dir() {
        true => directory.join(ARTIFACT_NAME),
        false => directory.to_path_buf(),
    };
    Artifact::decode(&read(&path)?).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("{} does not exist", path.display()),
        _ => anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
    })
}
