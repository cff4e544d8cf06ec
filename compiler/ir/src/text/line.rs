//! Parsing of one line, word by word; errors carry the line's number.

use crate::limits;
use crate::preprocessing::Preprocessing;
use crate::shape::{Padding, Shape, Window};
use std::fmt::Write;

/// Reason why a text was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ParseError {
    /// Number of the line, from 1; one past the end if something is missing there.
    pub line: usize,
    /// The text that was expected, and the one that was found.
    pub problem: String,
}

enum Word {
    Bare(String),
    Quoted(String),
}

impl Word {
    fn show(&self) -> String {
        match self {
            Word::Bare(word) => format!("`{word}`"),
            Word::Quoted(name) => format!("{name:?}"),
        }
    }
}

/// The words of one line.
pub(super) struct Line {
    number: usize,
    words: std::iter::Peekable<std::vec::IntoIter<Word>>,
}

/// All lines that are not empty, and the number one past the last.
pub(super) fn lines(text: &str) -> Result<(Vec<Line>, usize), ParseError> {
    let mut lines = Vec::new();
    let mut count = 0;
    for (index, line) in text.lines().enumerate() {
        count = index + 1;
        let words = split(line).map_err(|problem| ParseError {
            line: count,
            problem,
        })?;
        if !words.is_empty() {
            lines.push(Line {
                number: count,
                words: words.into_iter().peekable(),
            });
        }
    }
    Ok((lines, count + 1))
}

fn split(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        match first {
            '#' => break,
            '"' => {
                let (name, after) = quoted(&rest[1..])?;
                words.push(Word::Quoted(name));
                rest = after;
            }
            _ => {
                let end = rest
                    .find(|c: char| c.is_whitespace() || c == '"' || c == '#')
                    .unwrap_or(rest.len());
                words.push(Word::Bare(rest[..end].to_string()));
                rest = &rest[end..];
            }
        }
        rest = rest.trim_start();
    }
    Ok(words)
}

/// A name up to its closing quote, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((name, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, c @ ('"' | '\\'))) => name.push(c),
                Some((_, 'n')) => name.push('\n'),
                Some((_, 'r')) => name.push('\r'),
                _ => return Err("a backslash is followed by \", \\, n or r".into()),
            },
            c => name.push(c),
        }
    }
    Err("a name without its closing quote".into())
}

/// A name in quotes, as [`quoted`] reads it.
pub(super) fn quote(name: &str) -> String {
    let mut text = String::from("\"");
    for c in name.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

impl Line {
    pub(super) fn error(&self, problem: impl Into<String>) -> ParseError {
        ParseError {
            line: self.number,
            problem: problem.into(),
        }
    }

    fn expected(&self, what: &str, found: Option<Word>) -> ParseError {
        let found = found.map_or("the end of the line".into(), |w| w.show());
        self.error(format!("expected {what}, found {found}"))
    }

    /// The next word, whatever it is, left in place.
    pub(super) fn peek(&mut self) -> Option<&str> {
        match self.words.peek() {
            Some(Word::Bare(word)) => Some(word),
            _ => None,
        }
    }

    pub(super) fn is_empty(&mut self) -> bool {
        self.words.peek().is_none()
    }

    pub(super) fn bare(&mut self, what: &str) -> Result<String, ParseError> {
        match self.words.next() {
            Some(Word::Bare(word)) => Ok(word),
            other => Err(self.expected(what, other)),
        }
    }

    pub(super) fn name(&mut self) -> Result<String, ParseError> {
        match self.words.next() {
            Some(Word::Quoted(name)) => Ok(name),
            other => Err(self.expected("a name in quotes", other)),
        }
    }

    /// Takes `word` if it is next.
    pub(super) fn takes(&mut self, word: &str) -> bool {
        let is_next = self.peek() == Some(word);
        if is_next {
            self.words.next();
        }
        is_next
    }

    pub(super) fn keyword(&mut self, word: &str) -> Result<(), ParseError> {
        match self.words.next() {
            Some(Word::Bare(found)) if found == word => Ok(()),
            other => Err(self.expected(&format!("`{word}`"), other)),
        }
    }

    /// The value of `key`.
    pub(super) fn value<T: std::str::FromStr>(
        &mut self,
        key: &str,
        what: &str,
    ) -> Result<T, ParseError> {
        self.keyword(key)?;
        self.number(what)
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, ParseError> {
        let word = self.bare(what)?;
        let parsed = word.parse();
        parsed.map_err(|_| self.error(format!("expected {what}, found `{word}`")))
    }

    /// An identifier: `prefix` and a number.
    pub(super) fn id(&mut self, prefix: char) -> Result<u32, ParseError> {
        let what = format!("`{prefix}` and a number");
        let word = self.bare(&what)?;
        let id = word.strip_prefix(prefix).and_then(|n| n.parse().ok());
        id.ok_or_else(|| self.error(format!("expected {what}, found `{word}`")))
    }

    fn list<T: std::str::FromStr, const N: usize>(
        &mut self,
        separator: char,
        what: &str,
    ) -> Result<[T; N], ParseError> {
        let word = self.bare(what)?;
        let numbers: Option<Vec<T>> = word.split(separator).map(|n| n.parse().ok()).collect();
        numbers
            .and_then(|n| n.try_into().ok())
            .ok_or_else(|| self.error(format!("expected {what}, found `{word}`")))
    }

    pub(super) fn shape(&mut self) -> Result<Shape, ParseError> {
        let [c, h, w] = self.list('x', "a shape such as 3x32x32")?;
        Ok(Shape { c, h, w })
    }

    pub(super) fn pair(&mut self, key: &str) -> Result<(u32, u32), ParseError> {
        self.keyword(key)?;
        self.rows_and_columns()
    }

    pub(super) fn rows_and_columns(&mut self) -> Result<(u32, u32), ParseError> {
        let [rows, columns] = self.list('x', "rows and columns such as 3x3")?;
        Ok((rows, columns))
    }

    pub(super) fn padding(&mut self) -> Result<Padding, ParseError> {
        self.keyword("pad")?;
        let [top, left, bottom, right] =
            self.list(',', "padding such as 1,1,1,1: top, left, bottom, right")?;
        Ok(Padding {
            top,
            left,
            bottom,
            right,
        })
    }

    /// The groups of a convolution, 1 unless they are written.
    pub(super) fn groups(&mut self) -> Result<u32, ParseError> {
        match self.takes("groups") {
            true => self.number("groups of channels"),
            false => Ok(1),
        }
    }

    /// Windows after their keyword, as [`Window`] prints them.
    pub(super) fn window(&mut self) -> Result<Window, ParseError> {
        let kernel = self.rows_and_columns()?;
        let stride = self.pair("stride")?;
        self.keyword("from")?;
        let [row, column] = self.list(',', "a row and a column such as -1,0")?;
        Ok(Window {
            kernel,
            stride,
            origin: (row, column),
            count: self.pair("count")?,
        })
    }

    /// All remaining words as numbers.
    pub(super) fn numbers<T: std::str::FromStr>(
        &mut self,
        what: &str,
    ) -> Result<Vec<T>, ParseError> {
        let mut values = Vec::new();
        while !self.is_empty() {
            values.push(self.number(what)?);
        }
        Ok(values)
    }

    /// All remaining words as names.
    pub(super) fn names(&mut self) -> Result<Vec<String>, ParseError> {
        let mut names = Vec::new();
        while !self.is_empty() {
            names.push(self.name()?);
        }
        Ok(names)
    }

    /// All remaining words as runs of kinds: `relu*30 identity`.
    pub(super) fn kinds<T: Copy>(&mut self, named: &[(&str, T)]) -> Result<Vec<T>, ParseError> {
        let mut kinds = Vec::new();
        while !self.is_empty() {
            let word = self.bare("a kind")?;
            let (name, count) = match word.split_once('*') {
                None => (word.as_str(), Some(1)),
                Some((name, count)) => (name, count.parse::<usize>().ok()),
            };
            let kind = named
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, kind)| *kind);
            let (Some(kind), Some(count)) = (kind, count) else {
                let names: Vec<&str> = named.iter().map(|(n, _)| *n).collect();
                let names = names.join(", ");
                return Err(self.error(format!(
                    "expected a kind ({names}), perhaps with a count such as relu*30, \
                     found `{word}`"
                )));
            };
            if count > limits::ELEMENTS - kinds.len() {
                return Err(self.error(format!("more than {} kinds", limits::ELEMENTS)));
            }
            kinds.extend(std::iter::repeat_n(kind, count));
        }
        Ok(kinds)
    }

    pub(super) fn end(&mut self) -> Result<(), ParseError> {
        match self.words.next() {
            None => Ok(()),
            extra => Err(self.expected("the end of the line", extra)),
        }
    }
}

/// What [`Line::groups`] reads.
pub(super) fn print_groups(groups: u32) -> String {
    match groups {
        1 => String::new(),
        groups => format!(" groups {groups}"),
    }
}

/// Kinds as runs, as [`Line::kinds`] reads them.
pub(super) fn print_kinds<T: Copy + PartialEq>(kinds: &[T], named: &[(&str, T)]) -> String {
    let mut text = String::new();
    for run in kinds.chunk_by(|a, b| a == b) {
        let (name, _) = named
            .iter()
            .find(|(_, kind)| *kind == run[0])
            .expect("every kind has a name");
        let _ = match run.len() {
            1 => write!(text, " {name}"),
            n => write!(text, " {name}*{n}"),
        };
    }
    text
}

/// All lines of a text, in order.
pub(super) type Lines = std::iter::Peekable<std::vec::IntoIter<Line>>;

/// The next line after its keyword, if it starts with it.
pub(super) fn next_with(lines: &mut Lines, keyword: &str) -> Option<Line> {
    let starts = lines.peek_mut().is_some_and(|line| line.takes(keyword));
    if starts { lines.next() } else { None }
}

/// `mean` and `std` with a number per channel, after `values` or `values bound` and a number if the
/// input is no picture; or `standardise floor` and a number.
pub(super) fn write_preprocessing(
    text: &mut String,
    preprocessing: &Preprocessing,
) -> std::fmt::Result {
    let floats = |values: &[f32]| -> String { values.iter().map(|v| format!(" {v}")).collect() };
    let (mean, std) = match preprocessing {
        Preprocessing::Channels { mean, std } => (mean, std),
        Preprocessing::Image { floor } => return writeln!(text, "standardise floor {floor}"),
        Preprocessing::Values { mean, std, bound } => {
            match bound {
                Some(bound) => writeln!(text, "values bound {bound}")?,
                None => writeln!(text, "values")?,
            }
            (mean, std)
        }
    };
    writeln!(text, "mean{}", floats(mean))?;
    writeln!(text, "std{}", floats(std))
}

/// What [`write_preprocessing`] wrote.
pub(super) fn parse_preprocessing(
    lines: &mut Lines,
    missing: &impl Fn(&str) -> ParseError,
) -> Result<Preprocessing, ParseError> {
    if let Some(mut line) = next_with(lines, "standardise") {
        let floor = line.value("floor", "a number from 1 to 255")?;
        line.end()?;
        return Ok(Preprocessing::Image { floor });
    }
    let values = match next_with(lines, "values") {
        None => None,
        Some(mut line) => {
            let bound = match line.takes("bound") {
                true => Some(line.number("a number")?),
                false => None,
            };
            line.end()?;
            Some(bound)
        }
    };
    let mut statistics = [Vec::new(), Vec::new()];
    for (key, values) in ["mean", "std"].into_iter().zip(&mut statistics) {
        let mut line = lines.next().ok_or_else(|| missing(&format!("`{key}`")))?;
        line.keyword(key)?;
        *values = line.numbers("a number")?;
    }
    let [mean, std] = statistics;
    Ok(match values {
        None => Preprocessing::Channels { mean, std },
        Some(bound) => Preprocessing::Values { mean, std, bound },
    })
}
