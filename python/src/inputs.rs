//! What a model is asked about: a file, a picture in memory, or an array.

use crate::failure::Failure;
use image::{DynamicImage, GrayAlphaImage, GrayImage, RgbImage, RgbaImage};
use pi_ir::value_file::{self, Column};
use pi_ir::{Circuit, ValueFile};
use pi_runtime::error::Error;
use pi_runtime::input_file::InputFile;
use pyo3::prelude::*;
use std::path::{Path, PathBuf};

/// Something to ask about. Every form is read as `pi-client` reads a file of that form.
#[pyclass(frozen, from_py_object, module = "pianissimo._native")]
#[derive(Clone, Debug)]
pub(crate) struct Input(Form);

#[derive(Clone, Debug)]
enum Form {
    /// A file, which is read when it is asked about, and the row of it if it has several.
    File(PathBuf, Option<usize>, Option<Column>),
    /// In memory.
    Memory(InputFile),
}

/// An input as the circuit reads it.
#[derive(Clone, Debug)]
pub(crate) struct Quantised {
    /// The circuit's tensor 0.
    pub(crate) values: Vec<i64>,
    /// What was done to get it, for the user.
    pub(crate) notices: Vec<String>,
}

#[pymethods]
impl Input {
    /// A file: a picture, a `.npy` array or a `.csv` table.
    #[staticmethod]
    #[pyo3(signature = (path, row=None, label_column=None))]
    fn file(path: PathBuf, row: Option<usize>, label_column: Option<&str>) -> Input {
        let column = label_column.map(column);
        Input(Form::File(path, row, column))
    }

    /// A picture: rows of pixels of 1 (grey), 2 (grey and alpha), 3 (red, green, blue) or 4 bytes.
    #[staticmethod]
    fn picture(py: Python<'_>, width: u32, height: u32, pixels: Vec<u8>) -> PyResult<Input> {
        let area = u64::from(width) * u64::from(height);
        let image = match (pixels.len() as u64).checked_div(area) {
            Some(1) => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
            Some(2) => GrayAlphaImage::from_raw(width, height, pixels).map(DynamicImage::from),
            Some(3) => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
            Some(4) => RgbaImage::from_raw(width, height, pixels).map(DynamicImage::from),
            _ => None,
        };
        let image = image.ok_or_else(|| {
            let message = format!("this is no picture of {width}x{height} pixels");
            Failure::new("InputError", message).into_error(py)
        })?;
        Ok(Input(Form::Memory(InputFile::image("the picture", image))))
    }

    /// An array, as `numpy.save` writes it: one example, or several along the first axis.
    #[staticmethod]
    fn array(py: Python<'_>, file: &[u8]) -> PyResult<Input> {
        let name = Path::new("array.npy");
        let values = ValueFile::read(name, file, None);
        let values = values.map_err(|error| input_error(&error).into_error(py))?;
        let input = InputFile::values("the array", values);
        Ok(Input(Form::Memory(input)))
    }
}

impl Input {
    /// All examples of this input, as a circuit reads them.
    ///
    /// # Errors
    /// If it is none, or the circuit cannot take one of them.
    pub(crate) fn quantised(&self, circuit: &Circuit) -> Result<Vec<Quantised>, Failure> {
        let (file, row) = match &self.0 {
            Form::Memory(file) => (file.clone(), None),
            Form::File(path, row, column) => {
                let file = InputFile::open(path, column.as_ref()).map_err(Error::from)?;
                (file, *row)
            }
        };
        let rows = match row {
            Some(row) => row..row + 1,
            None => 0..file.count(circuit).map_err(Error::from)?,
        };
        // One example needs no row, and a picture has none.
        let of = |index| (row.is_some() || rows.len() > 1).then_some(index);
        let one = |index| {
            let prepared = file.for_model(circuit, of(index)).map_err(Error::from)?;
            let values = pi_ir::interpret::quantise(circuit, &prepared.input);
            Ok(Quantised {
                values: values.map_err(Error::from)?,
                notices: prepared.notices,
            })
        };
        rows.clone().map(one).collect()
    }
}

/// A column of tables, by name or by number.
pub(crate) fn column(text: &str) -> Column {
    match text.parse() {
        Ok(column) => column,
        Err(never) => match never {},
    }
}

fn input_error(error: &value_file::Error) -> Failure {
    Failure::new("InputError", error)
}
