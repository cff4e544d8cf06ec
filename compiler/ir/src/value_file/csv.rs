//! Comma-separated values: one example a line, after a line of names or none (RFC 4180, without
//! line ends inside quotes). Semicolons and tabs separate where the first line has no comma.

use super::Error;
use crate::limits;
use crate::shape::Shape;
use std::borrow::Cow;
use std::str::FromStr;

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// By its name in the first line.
    Name(String),
    /// By its place, from 0; negative from the end, -1 being the last.
    Number(i64),
}

impl FromStr for Column {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.parse() {
            Ok(number) => Column::Number(number),
            Err(_) => Column::Name(text.into()),
        })
    }
}

/// Rows of numbers of one length.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    width: usize,
    values: Vec<f64>,
    rows: usize,
    /// One word a row, if a column has labels.
    labels: Vec<String>,
}

impl Table {
    /// The table in a file. Its first line may have names: it has, if nothing in it but the label
    /// is a number.
    ///
    /// # Errors
    /// If it is no text, a row has another length than the first, a value is missing or no finite
    /// number, or there is no such column.
    pub fn parse(bytes: &[u8], label: Option<&Column>) -> Result<Self, Error> {
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Error::Format("this is no table: it is not text in UTF-8".into()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = (1..)
            .zip(text.lines())
            .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
            .peekable();
        let (number, first) = lines.peek().copied().unwrap_or((1, ""));
        let separator = separator(first);
        let names = fields(first, separator).map_err(|why| at(number, &why))?;
        let place = label
            .map(|column| column.place(&names).map_err(Error::Format))
            .transpose()?;
        let is_label = |index: usize| place == Some(index);
        let width = names.len() - usize::from(place.is_some());
        let mut values = names.iter().enumerate().filter(|(i, _)| !is_label(*i));
        let has_names = matches!(label, Some(Column::Name(_)))
            || (width > 0 && values.all(|(_, field)| field.parse::<f64>().is_err()));
        match has_names {
            true => lines.next(),
            false => check_counted(&names).map(|()| None)?,
        };
        let mut table = Table {
            width,
            values: Vec::new(),
            rows: 0,
            labels: Vec::new(),
        };
        for (number, line) in lines {
            let row = fields(line, separator).map_err(|why| at(number, &why))?;
            if row.len() != names.len() {
                let (got, expected) = (row.len(), names.len());
                let why = format!("{got} values, and the first line has {expected}");
                return Err(at(number, &why));
            }
            for (index, field) in row.into_iter().enumerate() {
                match is_label(index) {
                    true => table.labels.push(field.into_owned()),
                    false => table.values.push(value(number, index, &field)?),
                }
            }
            table.rows += 1;
        }
        let taken: String = first.chars().take(40).collect();
        match table.rows {
            0 if first.is_empty() => Err(Error::Format("the table has no rows".into())),
            0 => Err(Error::Format(format!(
                "the table has no rows of values: its only line, {taken:?}, is taken for names of \
                 columns; values are numbers with a point, separated by commas"
            ))),
            _ => Ok(table),
        }
    }

    pub(super) fn count(&self, shape: Shape) -> Result<usize, Error> {
        if self.width == shape.len() {
            return Ok(self.rows);
        }
        let hint = match (self.width == shape.len() + 1, self.labels.is_empty()) {
            (true, true) => ": if one column has labels, say which with --label-column",
            _ if self.width == shape.c as usize || self.rows == shape.w as usize => {
                ": a row is a whole example, channel after channel"
            }
            _ => "",
        };
        Err(Error::Shape {
            found: format!("a row of the table has {} values", self.width),
            expected: shape,
            hint,
        })
    }

    pub(super) fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.width..][..self.width]
    }

    /// The labels, one word a row; none if no column has them.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The words of the only column.
    pub(super) fn into_only_labels(self) -> Result<Vec<String>, Error> {
        match self.width {
            0 => Ok(self.labels),
            others => Err(Error::Format(format!(
                "a file of labels has one column, and this has {}",
                others + 1
            ))),
        }
    }
}

impl Column {
    fn place(&self, names: &[Cow<'_, str>]) -> Result<usize, String> {
        let found = match self {
            Column::Name(name) => names.iter().position(|known| known == name),
            Column::Number(number) => usize::try_from(match number {
                0.. => *number,
                _ => number.saturating_add(names.len() as i64),
            })
            .ok()
            .filter(|&place| place < names.len()),
        };
        found.ok_or_else(|| match self {
            Column::Name(name) => format!(
                "the table has no column {name:?}; its first line is {:?}",
                names.join(", ")
            ),
            Column::Number(number) => format!(
                "the table has no column {number}; it has {}, from 0",
                names.len()
            ),
        })
    }
}

fn at(line: usize, why: &str) -> Error {
    Error::Format(format!("line {line}: {why}"))
}

fn value(line: usize, column: usize, field: &str) -> Result<f64, Error> {
    let wrong = |why: &str| at(line, &format!("column {column} {why}"));
    match field.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(wrong(&format!("is {field}, and values are finite"))),
        Err(_) if field.is_empty() => Err(wrong("is empty: fill in what is missing")),
        Err(_) => Err(wrong(&format!(
            "is {field:?}, and values are numbers with a point, separated by commas"
        ))),
    }
}

/// Programs that have no names for columns write their numbers, which look like an example.
fn check_counted(names: &[Cow<'_, str>]) -> Result<(), Error> {
    let counts = (names.iter().enumerate()).all(|(index, name)| *name == index.to_string());
    match counts && names.len() >= 3 {
        true => Err(Error::Format(
            "the first line counts 0, 1, 2 and so on: if these are names of columns, leave it out \
             (header=False); if it is an example, write 0.0"
                .into(),
        )),
        false => Ok(()),
    }
}

fn separator(line: &str) -> char {
    let found = [',', ';', '\t'].into_iter().find(|&c| line.contains(c));
    found.unwrap_or(',')
}

/// The fields of a line, without their quotes and the space around them.
fn fields(line: &str, separator: char) -> Result<Vec<Cow<'_, str>>, String> {
    let mut fields = Vec::new();
    let mut rest = Some(line);
    while let Some(text) = rest {
        if fields.len() == limits::ELEMENTS {
            return Err(format!("more than {} values", limits::ELEMENTS));
        }
        let text = text.trim_start_matches(' ');
        let (field, after) = match text.strip_prefix('"') {
            None => match text.split_once(separator) {
                Some((field, after)) => (field.trim().into(), Some(after)),
                None => (text.trim().into(), None),
            },
            Some(quoted) => {
                let (field, after) = unquoted(quoted)?;
                let after = after.trim_matches(' ');
                match after.strip_prefix(separator) {
                    Some(after) => (field, Some(after)),
                    None if after.is_empty() => (field, None),
                    None => return Err(format!("{after:?} follows a closing quote")),
                }
            }
        };
        fields.push(field);
        rest = after;
    }
    Ok(fields)
}

/// What stands before the closing quote, with doubled quotes made single, and what follows it.
fn unquoted(text: &str) -> Result<(Cow<'_, str>, &str), String> {
    let mut from = 0;
    while let Some(found) = text[from..].find('"') {
        let quote = from + found;
        if !text[quote + 1..].starts_with('"') {
            let field = &text[..quote];
            let field = match field.contains('"') {
                true => field.replace("\"\"", "\"").into(),
                false => field.into(),
            };
            return Ok((field, &text[quote + 1..]));
        }
        from = quote + 2;
    }
    Err("a quote is not closed".into())
}

#[cfg(test)]
mod tests;
