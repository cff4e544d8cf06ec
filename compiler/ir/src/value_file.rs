//! Files of real values: NumPy arrays (`.npy`) and comma-separated rows (`.csv`).
//!
//! Compiler and client read the same files with this one reader. Any bytes are safe: what a header
//! declares is held against the bytes that there are before memory is reserved.

mod csv;
mod npy;

pub use csv::{Column, Table};
pub use npy::Array;

use crate::shape::Shape;
use std::io::Read;
use std::path::Path;

/// Most bytes of a file.
const LARGEST_FILE: u64 = 1 << 30;

/// Why a file gives no values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system cannot read it.
    #[error("cannot read it: {0}")]
    File(#[from] std::io::Error),
    /// It is larger than any file of examples needs to be.
    #[error("more than {} MiB: split it, or take every tenth example", LARGEST_FILE >> 20)]
    TooLarge,
    /// It is not what its name says, or of a kind that is not read; with the remedy.
    #[error("{0}")]
    Format(String),
    /// Its values have another shape than the network's input.
    #[error("{found}, and the network reads {expected}{hint}")]
    Shape {
        /// The shape in the file, in words.
        found: String,
        /// The network's shape.
        expected: Shape,
        /// What may have happened, or nothing.
        hint: &'static str,
    },
}

/// The examples of one file.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueFile {
    /// A NumPy array: one example, or several along its first axis.
    Array(Array),
    /// One example a row, its values in the order `[c][h][w]`.
    Table(Table),
}

impl ValueFile {
    /// Returns whether the file's name is that of a file of values.
    pub fn has_name(path: &Path) -> bool {
        is_array(path) || extension(path).is_some_and(|e| e == "csv")
    }

    /// Reads a file of this name. In a table, one column may hold labels instead of values.
    ///
    /// # Errors
    /// If it is not a file of values.
    pub fn read(name: &Path, file: impl Read, label: Option<&Column>) -> Result<Self, Error> {
        let bytes = read(file)?;
        Ok(match is_array(name) {
            true => ValueFile::Array(Array::parse(bytes)?),
            false => ValueFile::Table(Table::parse(&bytes, label)?),
        })
    }

    /// Number of examples of this shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the values are not examples of this shape.
    pub fn count(&self, shape: Shape) -> Result<usize, Error> {
        match self {
            ValueFile::Array(array) => array.count(shape),
            ValueFile::Table(table) => table.count(shape),
        }
    }

    /// Example `index` of this shape, `[c][h][w]`.
    ///
    /// # Errors
    /// As [`ValueFile::count`].
    ///
    /// # Panics
    /// If there are not so many.
    pub fn example(&self, shape: Shape, index: usize) -> Result<Vec<f64>, Error> {
        let count = self.count(shape)?;
        assert!(index < count, "example {index} of {count}");
        Ok(match self {
            ValueFile::Array(array) => array.example(count, index),
            ValueFile::Table(table) => table.row(index).to_vec(),
        })
    }

    /// Example `index` of this shape as the bytes of a picture. The file's type must be one of
    /// whole numbers: of reals, nobody can tell whether white is 1 or 255.
    ///
    /// # Errors
    /// As [`ValueFile::count`]; [`Error::Format`] if an element is no whole number from 0 to 255.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn bytes(&self, shape: Shape, index: usize) -> Result<Vec<u8>, Error> {
        let whole = matches!(self, ValueFile::Array(array) if array.is_integer());
        let byte = |(place, value): (usize, f64)| match value {
            0.0..=255.0 if whole => Ok(value as u8),
            _ => Err(Error::Format(format!(
                "the network reads pictures of bytes, and element {place} is {value}{}: save \
                 whole numbers from 0 to 255, as array.astype('uint8')",
                if whole { "" } else { ", a real number" }
            ))),
        };
        let values = self.example(shape, index)?;
        values.into_iter().enumerate().map(byte).collect()
    }
}

/// The words of a file of labels: whole numbers of an array, or the lines of a text.
///
/// # Errors
/// If it is neither.
pub fn read_labels(name: &Path, file: impl Read) -> Result<Vec<String>, Error> {
    let bytes = read(file)?;
    match is_array(name) {
        true => Array::parse(bytes)?.labels(),
        false => Table::parse(&bytes, Some(&Column::Number(0)))?.into_only_labels(),
    }
}

/// The array in a file, whatever its shape.
///
/// # Errors
/// If it is no NumPy array.
pub fn read_array(file: impl Read) -> Result<Array, Error> {
    Array::parse(read(file)?)
}

fn read(file: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > LARGEST_FILE {
        true => Err(Error::TooLarge),
        false => Ok(bytes),
    }
}

fn is_array(path: &Path) -> bool {
    extension(path).is_some_and(|e| e == "npy")
}

fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}
