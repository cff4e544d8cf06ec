//! A file as the input of a model: a picture, or real values.

use image::DynamicImage;
use pi_image::ImageFileError;
use pi_ir::value_file::{self, Column};
use pi_ir::{Circuit, Input, ValueFile};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What a file has, before it is known what the model reads.
#[derive(Clone, Debug)]
pub struct InputFile {
    path: PathBuf,
    content: Content,
    /// A part of the picture is missing.
    cut: bool,
}

#[derive(Clone, Debug)]
enum Content {
    Image(DynamicImage),
    Values(ValueFile),
}

/// An input for a model, and notices of what was done to get it.
#[derive(Clone, Debug)]
pub struct ModelInput {
    /// The input.
    pub input: Input,
    /// Notices to the user, one sentence each.
    pub notices: Vec<String>,
}

/// Error of a file that gives no input.
#[derive(Debug, thiserror::Error)]
pub enum InputFileError {
    /// An error of an image.
    #[error(transparent)]
    Image(#[from] ImageFileError),
    /// An error of a file of values.
    #[error("{path}: {error}")]
    Values {
        /// The file.
        path: PathBuf,
        /// The error.
        error: value_file::Error,
    },
    /// The model reads values, and the file is an image.
    #[error("the model reads real values, and {0} is an image")]
    ImageForValues(PathBuf),
    /// The file has several examples.
    #[error("{path} has {count} rows, and one inference answers one")]
    ManyRows {
        /// The file.
        path: PathBuf,
        /// Number of its rows.
        count: usize,
    },
    /// The file has no such example.
    #[error("{path} has no row {row}: its rows are 0 to {}", count - 1)]
    NoRow {
        /// The file.
        path: PathBuf,
        /// The row asked for.
        row: usize,
        /// Number of rows.
        count: usize,
    },
    /// A row of an image.
    #[error("{0} is an image, which has no rows of examples")]
    RowOfImage(PathBuf),
}

impl InputFile {
    /// Reads a file: values if its name ends in `.npy` or `.csv`, else an image as
    /// [`pi_image::decode`] does. In a table, one column may hold labels, which are left out.
    ///
    /// # Errors
    /// [`InputFileError`] names the file.
    pub fn open(path: &Path, label_column: Option<&Column>) -> Result<Self, InputFileError> {
        Self::read(path, label_column, |path| {
            Ok((pi_image::decode(path)?, false))
        })
    }

    /// Reads a file as [`InputFile::open`] does, and of an image that is cut short as much as there
    /// is, with a notice; see [`pi_image::decode_partial`].
    ///
    /// # Errors
    /// [`InputFileError`] names the file.
    pub fn open_partial(
        path: &Path,
        label_column: Option<&Column>,
    ) -> Result<Self, InputFileError> {
        Self::read(path, label_column, pi_image::decode_partial)
    }

    fn read(
        path: &Path,
        label_column: Option<&Column>,
        image: impl FnOnce(&Path) -> Result<(DynamicImage, bool), ImageFileError>,
    ) -> Result<Self, InputFileError> {
        let (content, cut) = match ValueFile::has_name(path) {
            false => {
                let (image, cut) = image(path)?;
                (Content::Image(image), cut)
            }
            true => {
                let file = File::open(path).map_err(value_file::Error::from);
                let values = file.and_then(|file| ValueFile::read(path, file, label_column));
                let values = values.map_err(|error| InputFileError::Values {
                    path: path.into(),
                    error,
                })?;
                (Content::Values(values), false)
            }
        };
        Ok(InputFile {
            path: path.into(),
            content,
            cut,
        })
    }

    /// An image in memory, which errors call by this name.
    pub fn image(name: &str, image: DynamicImage) -> Self {
        InputFile {
            path: name.into(),
            content: Content::Image(image),
            cut: false,
        }
    }

    /// Values in memory, which errors call by this name.
    pub fn values(name: &str, values: ValueFile) -> Self {
        InputFile {
            path: name.into(),
            content: Content::Values(values),
            cut: false,
        }
    }

    /// Number of examples in the file, as a model reads them: one of an image.
    ///
    /// # Errors
    /// [`InputFileError`] if its values are none of the model's.
    pub fn count(&self, circuit: &Circuit) -> Result<usize, InputFileError> {
        match &self.content {
            Content::Image(_) => Ok(1),
            Content::Values(values) => {
                let count = values.count(circuit.image());
                count.map_err(|error| InputFileError::Values {
                    path: self.path.clone(),
                    error,
                })
            }
        }
    }

    /// The input that a model reads from the file: the image, brought to the model's shape, or the
    /// values of one example. A file of several needs `row`, which counts from 0.
    ///
    /// # Errors
    /// [`InputFileError`] if the file has no such input.
    pub fn for_model(
        &self,
        circuit: &Circuit,
        row: Option<usize>,
    ) -> Result<ModelInput, InputFileError> {
        let path = || self.path.clone();
        let shape = circuit.image();
        let values = match &self.content {
            Content::Image(_) if row.is_some() => return Err(InputFileError::RowOfImage(path())),
            Content::Image(_) if circuit.preprocessing.is_values() => {
                return Err(InputFileError::ImageForValues(path()));
            }
            Content::Image(image) => {
                let image = pi_image::to_shape(image.clone(), shape)?;
                let mut notices: Vec<_> = image.changes.iter().map(ToString::to_string).collect();
                if self.cut {
                    notices.insert(
                        0,
                        "the file is cut short: a part of the image is missing".into(),
                    );
                }
                return Ok(ModelInput {
                    input: image.pixels.into(),
                    notices,
                });
            }
            Content::Values(values) => values,
        };
        let unreadable = |error| InputFileError::Values {
            path: path(),
            error,
        };
        let count = values.count(shape).map_err(unreadable)?;
        let row = match row {
            None if count > 1 => {
                return Err(InputFileError::ManyRows {
                    path: path(),
                    count,
                });
            }
            None => 0,
            Some(row) if row >= count => {
                return Err(InputFileError::NoRow {
                    path: path(),
                    row,
                    count,
                });
            }
            Some(row) => row,
        };
        let input = match circuit.preprocessing.is_values() {
            true => values.example(shape, row).map(Input::Values),
            false => values.bytes(shape, row).map(Input::Bytes),
        };
        Ok(ModelInput {
            input: input.map_err(unreadable)?,
            notices: Vec::new(),
        })
    }
}
