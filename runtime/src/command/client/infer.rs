//! `pi-client infer`: answers for many files over one connection.
//!
//! A server has memory set aside for one inference of each client, so a client's inferences follow
//! each other. Meanwhile the next file is read, decoded and brought to the model; a bundle is
//! marked as spent while the first message of its own inference is computed. It is not marked any
//! sooner: a run that ends in between would lose it for nothing. So a bundle is taken only for an
//! input that is ready, and each answer is written before the next bundle is taken.

use super::answers::{Answers, Form, shown};
use super::inputs::Inputs;
use super::{ServerArguments, Waiting, bar_style, spinner};
use crate::client::{Client, Connection, Prediction, TrustOptions, Wait};
use crate::command::{InRequest, exit, note, report};
use crate::error::Error;
use crate::input_file::InputFile;
use crate::stream::Refusal;
use clap::Args;
use indicatif::ProgressBar;
use pi_ir::interpret::quantise;
use pi_ir::value_file::Column;
use pi_ir::{Circuit, Verified};
use pi_protocol::session::ClientModel;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{block_in_place, spawn_blocking};

#[derive(Args)]
pub(super) struct InferArguments {
    /// Files, folders, and patterns such as 'photos/**/*.jpg'. An image is a PNG, JPEG, WebP, GIF,
    /// BMP or TIFF file; as the model reads it, a file may also be a .npy file of an array, or a
    /// .csv file with one example a row.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The example to classify, from 0, if a file has several.
    #[arg(long, value_name = "N")]
    row: Option<usize>,
    /// The column of a .csv file that has labels, which are left out: its name in the first line,
    /// or its place, from 0 or, negative, from the end.
    #[arg(long, value_name = "COLUMN", allow_hyphen_values = true)]
    label_column: Option<Column>,
    /// Classify images that are cut short, too, by what there is of them.
    #[arg(long)]
    allow_partial: bool,
    /// Print every answer as one JSON object on a line of its own, errors included.
    #[arg(long)]
    json: bool,
    /// Print the answers as CSV with a header.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Write the answers to this file, as JSON or CSV if its name ends in .json, .jsonl or .csv.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Show the softmax of the logits, if the model reveals them. These are probabilities if the
    /// network was trained as most are, with a softmax at its end; the model does not say.
    #[arg(long)]
    softmax: bool,
    #[command(flatten)]
    server: ServerArguments,
}

impl InferArguments {
    pub(super) fn wait(&self) -> Option<Wait> {
        self.server.wait()
    }

    fn form(&self, one: bool) -> Form {
        let extension = self.out.as_deref().and_then(Path::extension);
        let extension = extension.unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            _ if self.json => Form::Json,
            _ if self.csv => Form::Csv,
            Some("json" | "jsonl") => Form::Json,
            Some("csv") => Form::Csv,
            _ if one => Form::Text,
            _ => Form::Table,
        }
    }
}

/// A run over many files.
struct Run {
    answers: Answers,
    /// The user asked about one file, and wants its error as that of the program.
    one: bool,
    /// Names of the files that were not asked about yet.
    pending: VecDeque<String>,
    answered: usize,
    out_of_range: usize,
    failed: usize,
    /// What was done to get inputs, and to how many; the first few alone.
    notices: Vec<(String, usize)>,
    progress: ProgressBar,
}

/// A file as the model reads it.
struct Input {
    values: Vec<i64>,
    notices: Vec<String>,
}

/// Answers the files that the arguments stand for.
pub(super) async fn infer(client: &Client, arguments: InferArguments) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let mut inputs = Inputs::expand(&arguments.files);
    let names: VecDeque<_> = inputs.files.iter().map(|file| name_of(file)).collect();
    let form = arguments.form(inputs.one);
    let mut run = Run {
        answers: Answers::open(
            form,
            arguments.softmax,
            arguments.out.as_deref(),
            names.as_slices().0,
        )?,
        one: inputs.one,
        pending: names,
        answered: 0,
        out_of_range: 0,
        failed: 0,
        notices: Vec::new(),
        progress: ProgressBar::hidden(),
    };
    if inputs.repeated > 0 {
        let repeated = counted(inputs.repeated, "repeated name");
        note(format_args!(
            "note: {repeated} left out: each file is asked about once"
        ));
    }
    for (argument, reason) in inputs.empty.drain(..) {
        run.fail(&name_of(&argument), &reason, None)?;
    }
    let asked = run.ask_all(client, inputs.files, &arguments).await;
    run.progress.finish_and_clear();
    if let Err(error) = &asked
        && let Some(error) = error.downcast_ref::<Error>()
    {
        for name in std::mem::take(&mut run.pending) {
            // The error that is on its way is worth more than one of writing.
            let _ = run.answers.not_asked(&name, error);
            run.failed += usize::from(!run.one);
        }
    }
    let finished = run.answers.finish();
    let asked = asked.and(finished);
    run.sum_up(started.elapsed());
    let code = match asked {
        Err(error) => return Ok(report(&InRequest::of(client, error))),
        Ok(()) if run.failed > 0 => exit::FILES,
        Ok(()) if run.out_of_range > 0 => exit::OUT_OF_RANGE,
        Ok(()) => return Ok(ExitCode::SUCCESS),
    };
    Ok(ExitCode::from(code))
}

impl Run {
    /// Answers as many files as possible; an error ends the run.
    async fn ask_all(
        &mut self,
        client: &Client,
        files: Vec<PathBuf>,
        arguments: &InferArguments,
    ) -> anyhow::Result<()> {
        let mut files = files.into_iter();
        // Whatever can fail without the server is tried before the server is called.
        let first = loop {
            let Some(path) = files.next() else {
                return Ok(());
            };
            match block_in_place(|| open(&path, arguments)) {
                Ok(file) => break file,
                Err(error) => self.fail_with(error)?,
            }
        };
        let trust = arguments.server.trust();
        let address = arguments.server.address();
        let address = client.prepared_server(address.as_deref(), &trust)?;
        let mut line = Line {
            client,
            address,
            trust,
            server: &arguments.server,
            progress: self.progress.clone(),
        };
        let mut connection = line.connect().await?;
        let rest = (first, files);
        let asked = self.ask_each(&mut line, &mut connection, rest, arguments);
        let asked = asked.await;
        connection.close().await;
        asked
    }

    /// Answers the files over a connection, the first of which is read already.
    async fn ask_each<'a>(
        &mut self,
        line: &mut Line<'a>,
        connection: &mut Connection<'a>,
        (first, files): (InputFile, std::vec::IntoIter<PathBuf>),
        arguments: &InferArguments,
    ) -> anyhow::Result<()> {
        let (_, useless) = connection.next_bundle().await?;
        if useless > 0 {
            note(format_args!(
                "note: the server lost its halves of {useless} bundles; they were given up"
            ));
        }
        if !self.one {
            self.say_what_is_missing(connection, &line.address).await?;
        }
        let (model, _) = connection.model().await?;
        let circuit = model.artifact().circuit.clone();
        self.answers.begin(&circuit)?;
        self.progress = match self.one {
            true => spinner("classifying"),
            false => {
                let bar = ProgressBar::new(self.pending.len() as u64);
                bar.set_style(bar_style());
                bar.set_message("classifying");
                bar.enable_steady_tick(Duration::from_millis(200));
                bar
            }
        };
        line.progress = self.progress.clone();
        let mut ready = read_ahead(first, files, circuit.clone(), arguments);
        while let Some(input) = ready.recv().await {
            match input {
                Err(error) => self.fail_with(error)?,
                Ok(input) => {
                    if self.one {
                        let tell = |notice: &String| note(format_args!("note: {notice}"));
                        self.progress
                            .suspend(|| input.notices.iter().for_each(tell));
                    }
                    let answer = line.ask(connection, &model, &input.values).await?;
                    self.answered(&circuit, &answer, input.notices)?;
                }
            }
        }
        Ok(())
    }

    /// Says before the first bundle is spent if they are fewer than the files.
    async fn say_what_is_missing(
        &self,
        connection: &mut Connection<'_>,
        address: &str,
    ) -> Result<(), Error> {
        let ready = connection.usable().await?;
        let files = self.pending.len();
        let missing = files.saturating_sub(ready);
        if missing > 0 {
            note(format_args!(
                "note: {}, and {} ready: {missing} will stay without an answer\n  \
                 what to do: pi-client prepare --server {address} -n {missing}",
                counted(files, "file"),
                counted(ready, "bundle")
            ));
        }
        if let Some(left) = connection.answers_left()
            && left < files.min(ready) as u64
        {
            let left = counted(left as usize, "more answer");
            note(format_args!("note: the server gives this client {left}"));
        }
        Ok(())
    }

    /// Takes the next file's error; that of a single file is the program's.
    fn fail_with(&mut self, error: Error) -> anyhow::Result<()> {
        let name = self.pending.pop_front().unwrap_or_default();
        self.fail(&name, &error.to_string(), error.remedy())?;
        match self.one {
            true => Err(error.into()),
            false => Ok(()),
        }
    }

    fn fail(&mut self, name: &str, error: &str, remedy: Option<&str>) -> anyhow::Result<()> {
        self.failed += 1;
        self.progress.inc(1);
        let answers = &mut self.answers;
        self.progress
            .suspend(|| answers.failure(name, error, remedy))
    }

    fn answered(
        &mut self,
        circuit: &Circuit,
        answer: &Prediction,
        notices: Vec<String>,
    ) -> anyhow::Result<()> {
        let name = self.pending.pop_front().unwrap_or_default();
        match answer.class() {
            Some(_) => self.answered += 1,
            None => self.out_of_range += 1,
        }
        let answers = &mut self.answers;
        let written = self
            .progress
            .suspend(|| answers.answer(&name, circuit, answer, &notices));
        self.progress.inc(1);
        for notice in notices {
            /// Different notices that are told.
            const MOST: usize = 5;
            let mut known = self.notices.iter_mut();
            if let Some((_, count)) = known.find(|(known, _)| *known == notice) {
                *count += 1;
            } else if self.notices.len() < MOST {
                self.notices.push((notice, 1));
            }
        }
        written
    }

    /// Says what became of many files.
    fn sum_up(&self, took: Duration) {
        if self.one {
            return;
        }
        for (notice, count) in &self.notices {
            note(format_args!(
                "note: of {}: {}",
                counted(*count, "file"),
                shown(notice)
            ));
        }
        let mut text = format!("{} answered", self.answered);
        for (count, what) in [
            (self.out_of_range, "out of the network's range"),
            (self.failed, "without an answer"),
        ] {
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        note(format_args!("{text}; {:.1} s", took.as_secs_f64()));
    }
}

/// The way to the server, which is made anew when it breaks.
struct Line<'a> {
    client: &'a Client,
    address: String,
    trust: TrustOptions,
    server: &'a ServerArguments,
    progress: ProgressBar,
}

impl<'a> Line<'a> {
    async fn connect(&self) -> Result<Connection<'a>, Error> {
        let mut waiting = Waiting::beside(&self.progress);
        // Each time anew: a long run has used up no patience.
        let wait = self.server.wait();
        let (client, address) = (self.client, &self.address);
        let choice = self.server.choice().held();
        let say = |error: &Error, pause| waiting.say(error, pause);
        client
            .connect_patiently(address, &self.trust, &choice, wait, say)
            .await
    }

    /// Spends a bundle on an input.
    ///
    /// A connection that broke since the last answer is made anew, at the cost of nothing. One that
    /// breaks in the middle costs the bundle in use; with `--wait`, or if another server may carry
    /// on, the input is then asked about once more, with another.
    async fn ask(
        &self,
        connection: &mut Connection<'a>,
        model: &ClientModel,
        input: &[i64],
    ) -> Result<Prediction, Error> {
        let mut again = self.server.wait.is_some() || connection.has_others();
        loop {
            if !connection.is_open() {
                let prepared = connection.model_digest();
                *connection = self.connect().await?;
                if connection.model_digest() != prepared {
                    return Err(Error::ModelChanged {
                        stale: self.client.ready_for(connection.server(), &prepared)?,
                        prepared,
                        served: connection.model_digest(),
                    });
                }
            }
            let answer = match connection.next_bundle().await {
                Ok((id, _)) => connection.infer(model, &id, input, false).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if again && error.is_temporary() => {
                    again = false;
                    let text = format!("{error}; asking once more");
                    self.progress.suspend(|| note(format_args!("note: {text}")));
                    connection.abandon();
                }
                Err(Error::Refused {
                    peer,
                    refusal: Refusal::Silent,
                }) => {
                    return Err(Error::Lost(format!("the {peer} ended it after a silence")));
                }
                answer => return answer,
            }
        }
    }
}

/// Reads files in their order, one ahead of what is asked, the first of which is read already.
fn read_ahead(
    first: InputFile,
    files: std::vec::IntoIter<PathBuf>,
    circuit: Verified<Circuit>,
    arguments: &InferArguments,
) -> mpsc::Receiver<Result<Input, Error>> {
    let (send, receive) = mpsc::channel(1);
    let reading = Reading::of(arguments);
    spawn_blocking(move || {
        let rest = files.map(|path| reading.open(&path));
        for file in std::iter::once(Ok(first)).chain(rest) {
            let input = file.and_then(|file| reading.input(&file, &circuit));
            // Nobody waits any more: the run has ended.
            if send.blocking_send(input).is_err() {
                break;
            }
        }
    });
    receive
}

fn open(path: &Path, arguments: &InferArguments) -> Result<InputFile, Error> {
    Reading::of(arguments).open(path)
}

/// How files are read.
#[derive(Clone)]
struct Reading {
    row: Option<usize>,
    label_column: Option<Column>,
    partial: bool,
}

impl Reading {
    fn of(arguments: &InferArguments) -> Reading {
        Reading {
            row: arguments.row,
            label_column: arguments.label_column.clone(),
            partial: arguments.allow_partial,
        }
    }

    fn open(&self, path: &Path) -> Result<InputFile, Error> {
        let label_column = self.label_column.as_ref();
        let file = match self.partial {
            false => InputFile::open(path, label_column),
            true => InputFile::open_partial(path, label_column),
        };
        Ok(file?)
    }

    fn input(&self, file: &InputFile, circuit: &Circuit) -> Result<Input, Error> {
        let prepared = file.for_model(circuit, self.row)?;
        Ok(Input {
            values: quantise(circuit, &prepared.input)?,
            notices: prepared.notices,
        })
    }
}

/// A number of things that form their plural with an s.
fn counted(count: usize, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}
