//! Answers as they are written: as text, as a table, as lines of JSON or as CSV.
//!
//! Every answer is written, and can be read by others, before the next bundle is spent.

use crate::client::{Prediction, class_name};
use crate::command::client::{OUT_OF_RANGE_ADVICE, line, messages};
use crate::error::Error;
use crate::fingerprint::hex;
use anyhow::Context;
use pi_ir::Circuit;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// The form of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One answer with its figures, for people.
    Text,
    /// Aligned columns, for people.
    Table,
    /// One JSON object a line.
    Json,
    /// RFC 4180, with a header.
    Csv,
}

/// What is to be written of each file.
pub(super) struct Answers {
    form: Form,
    probabilities: bool,
    out: Out,
    /// Something was written.
    begun: bool,
    /// Rows of a table that wait for its header; `None` behind it.
    early: Option<String>,
    /// Widths of the first two columns of a table.
    widths: (usize, usize),
}

/// Where answers go.
enum Out {
    Standard(io::Stdout),
    File(File),
}

/// The widest column of names in a table; longer names push their row to the right.
const WIDEST: usize = 60;

impl Answers {
    /// Opens the file, or standard output if there is none. `names` are the names of the files that
    /// will be asked about.
    pub(super) fn open(
        form: Form,
        probabilities: bool,
        path: Option<&Path>,
        names: &[String],
    ) -> anyhow::Result<Answers> {
        let out = match path {
            None => Out::Standard(io::stdout()),
            Some(path) => {
                // What the file holds stays until there is something to replace it.
                let mut options = File::options();
                let file = options.write(true).create(true).truncate(false).open(path);
                Out::File(file.with_context(|| {
                    format!("the answers cannot be written to {}", path.display())
                })?)
            }
        };
        let widest = names.iter().map(|name| shown(name).chars().count()).max();
        Ok(Answers {
            form,
            probabilities,
            out,
            begun: false,
            early: (form == Form::Table).then(String::new),
            widths: (widest.unwrap_or(0).clamp(4, WIDEST), 6),
        })
    }

    fn header(&self) -> String {
        if self.form != Form::Csv {
            return String::new();
        }
        let mut columns = vec!["file", "answer", "class_index", "out_of_range"];
        if self.probabilities {
            columns.push("probability");
        }
        columns.extend(["seconds", "error"]);
        columns.join(",") + "\r\n"
    }

    /// Begins a table, now that the names of the classes are known.
    pub(super) fn begin(&mut self, circuit: &Circuit) -> anyhow::Result<()> {
        if self.form != Form::Table {
            return Ok(());
        }
        let names = circuit
            .classes
            .iter()
            .map(|name| shown(name).chars().count());
        let mut widest = names.max().unwrap_or(0).clamp("out of range".len(), 40);
        if self.probabilities {
            widest += " 100.0 %".len();
        }
        self.widths.1 = widest;
        self.head()
    }

    /// Writes what waits for a table that was never begun.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        match &self.early {
            Some(early) if !early.is_empty() => self.head(),
            _ => Ok(()),
        }
    }

    /// Writes the header of a table, and the rows that came before.
    fn head(&mut self) -> anyhow::Result<()> {
        let early = self.early.take().unwrap_or_default();
        self.row("file", "answer", "time")?;
        match early.is_empty() {
            true => Ok(()),
            false => self.write(early),
        }
    }

    /// Writes an answer.
    pub(super) fn answer(
        &mut self,
        file: &str,
        circuit: &Circuit,
        answer: &Prediction,
        notices: &[String],
    ) -> anyhow::Result<()> {
        let name = answer.class().map(|class| class_name(circuit, class));
        let shares = match self.probabilities {
            true => probabilities(answer),
            false => Vec::new(),
        };
        let share = answer.class().and_then(|class| shares.get(class).copied());
        let seconds = answer.online.wall.as_secs_f64();
        match self.form {
            Form::Text => self.write(text(circuit, answer, &shares)),
            Form::Table => {
                let mut cell = match &name {
                    Some(name) => shown(name),
                    None => "out of range".into(),
                };
                if let Some(share) = share {
                    cell += &format!(" {:.1} %", 100.0 * share);
                }
                self.row(file, &cell, &format!("{seconds:.3} s"))
            }
            Form::Json => {
                let mut json = answer_json(circuit, answer);
                json["file"] = json!(file);
                if !notices.is_empty() {
                    json["notes"] = json!(notices);
                }
                if !shares.is_empty() {
                    json["probabilities"] = json!(shares);
                }
                self.write(format!("{json}\n"))
            }
            Form::Csv => {
                let index = answer.class().map(|class| class.to_string());
                let mut cells = vec![
                    file.to_owned(),
                    name.unwrap_or_default(),
                    index.unwrap_or_default(),
                    answer.class().is_none().to_string(),
                ];
                if self.probabilities {
                    cells.push(share.map_or_else(String::new, |share| format!("{share:.6}")));
                }
                cells.extend([format!("{seconds:.6}"), String::new()]);
                self.csv(&cells)
            }
        }
    }

    /// Writes that a file has no answer, and why. Text goes without: there the error is all that is
    /// said.
    pub(super) fn failure(
        &mut self,
        file: &str,
        error: &str,
        remedy: Option<&str>,
    ) -> anyhow::Result<()> {
        match self.form {
            Form::Text => Ok(()),
            Form::Table => {
                let (width, _) = self.widths;
                let row = format!("{:width$}  error: {}\n", shown(file), shown(error));
                match &mut self.early {
                    Some(early) => {
                        early.push_str(&row);
                        Ok(())
                    }
                    None => self.write(row),
                }
            }
            Form::Json => {
                let json = json!({"file": file, "error": error, "remedy": remedy});
                self.write(format!("{json}\n"))
            }
            Form::Csv => {
                let mut cells = vec![file.to_owned()];
                let empty = if self.probabilities { 5 } else { 4 };
                cells.extend(std::iter::repeat_n(String::new(), empty));
                cells.push(error.to_owned());
                self.csv(&cells)
            }
        }
    }

    /// Writes that a file has no answer because the run ended with an error. A table leaves that to
    /// the summary.
    pub(super) fn not_asked(&mut self, file: &str, error: &Error) -> anyhow::Result<()> {
        match self.form {
            Form::Text | Form::Table => Ok(()),
            Form::Json | Form::Csv => {
                self.failure(file, &format!("no answer: {error}"), error.remedy())
            }
        }
    }

    fn row(&mut self, file: &str, answer: &str, time: &str) -> anyhow::Result<()> {
        let (first, second) = self.widths;
        self.write(format!(
            "{:first$}  {answer:second$}  {time:>9}\n",
            shown(file)
        ))
    }

    fn csv(&mut self, cells: &[String]) -> anyhow::Result<()> {
        let quoted: Vec<String> = cells.iter().map(|cell| quoted(cell)).collect();
        self.write(quoted.join(",") + "\r\n")
    }

    fn write(&mut self, mut text: String) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            text.insert_str(0, &self.header());
            if let Out::File(file) = &self.out {
                // A device has no length.
                let _ = file.set_len(0);
            }
        }
        let written = match &mut self.out {
            Out::Standard(out) => out.write_all(text.as_bytes()).and_then(|()| out.flush()),
            Out::File(file) => file.write_all(text.as_bytes()),
        };
        written.context(
            "an answer could not be written: nothing more is asked, as its bundle would be lost",
        )
    }
}

/// A name as a terminal may see it: one line, and none of the signs that command it.
pub(super) fn shown(name: &str) -> String {
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    name.chars().map(visible).collect()
}

/// A cell of CSV, in quotes if it needs them.
fn quoted(cell: &str) -> String {
    match cell.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.into(),
    }
}

/// The softmax of the logits; empty if they are not revealed.
fn probabilities(answer: &Prediction) -> Vec<f64> {
    let logits = answer.answer.logits().unwrap_or(&[]);
    softmax(logits, f64::from(answer.output_frac_bits).exp2())
}

/// The softmax of integers over a scale.
fn softmax(logits: &[i64], scale: f64) -> Vec<f64> {
    // The largest power is 1, so nothing overflows.
    let largest = logits.iter().max().copied().unwrap_or(0);
    let powers = logits
        .iter()
        .map(|&logit| ((logit as f64 - largest as f64) / scale).exp());
    let powers: Vec<f64> = powers.collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn answer_json(circuit: &Circuit, answer: &Prediction) -> Value {
    let mut json = json!({
        "class": answer.class().map(|class| class_name(circuit, class)),
        "class_index": answer.class(),
        "out_of_range": answer.class().is_none(),
        "bundle": hex(&answer.bundle.0),
        "online": {
            "wall_s": answer.online.wall.as_secs_f64(),
            "bytes_up": answer.online.traffic.bytes_sent,
            "bytes_down": answer.online.traffic.bytes_received,
            "messages": messages(&answer.online),
        },
    });
    if let Some(logits) = answer.answer.logits() {
        json["logits"] = json!(logits);
        json["output_scale"] = json!(f64::from(answer.output_frac_bits).exp2());
    }
    json
}

/// The answer as text: the class, the three largest logits if they are revealed, and the cost; or
/// that there is none.
fn text(circuit: &Circuit, answer: &Prediction, shares: &[f64]) -> String {
    let logits = answer.answer.logits().unwrap_or(&[]);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by_key(|&class| std::cmp::Reverse(logits[class]));
    let mut text = match answer.class() {
        Some(class) => format!("{}\n", class_name(circuit, class)),
        None => OUT_OF_RANGE_ADVICE.to_owned(),
    };
    for &class in order.iter().take(3) {
        let logit = logits[class] as f64 / f64::from(answer.output_frac_bits).exp2();
        let share = shares.get(class);
        let share = share.map(|share| format!("  {:5.1} %", 100.0 * share));
        let share = share.unwrap_or_default();
        text.push_str(&format!(
            "  {logit:9.3}{share}  {}\n",
            class_name(circuit, class)
        ));
    }
    text.push_str(&format!("  online {}\n", line(&answer.online)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_csv_are_quoted_where_they_must_be() {
        assert_eq!(quoted("plain name.png"), "plain name.png");
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("say \"x\"\n"), "\"say \"\"x\"\"\n\"");
    }

    #[test]
    fn names_do_not_command_a_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(shown("häuser.png"), "häuser.png");
    }

    #[test]
    fn softmax_is_right_at_any_size() {
        // e^0, e^ln(3).
        let shares = softmax(&[0, 1_098_612], 1e6);
        assert!((shares[0] - 0.25).abs() < 1e-6 && (shares[1] - 0.75).abs() < 1e-6);
        assert_eq!(softmax(&[i64::MIN, i64::MAX], 1.0), [0.0, 1.0]);
        assert!(softmax(&[], 1.0).is_empty());
    }
}
