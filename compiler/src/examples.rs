//! Examples for calibration and evaluation: pictures from record files, folders or archives, real
//! values from NumPy arrays and tables, or either drawn.

pub mod draw;
mod files;
mod folders;
mod images;
mod values;

use anyhow::{Context, Result, bail, ensure};
use pi_ir::value_file::Column;
use pi_ir::{Graph, Input, InputError, Op, Preprocessing, Shape};
use std::path::Path;

/// The name that asks for drawn examples where a path is expected.
pub const SYNTHETIC: &str = "synthetic";

/// Examples of one shape, `[c][h][w]`, with their labels where the source has any.
#[derive(Clone, Debug, PartialEq)]
pub struct Examples {
    /// Source of the examples, for reports.
    pub source: String,
    /// One input each.
    pub inputs: Vec<Input>,
    /// One class per example, or empty.
    pub labels: Vec<u32>,
}

/// What a network reads, and the names of its classes.
#[derive(Clone, Copy, Debug)]
pub struct Reads<'a> {
    /// Shape of the input.
    pub shape: Shape,
    /// Bytes of pictures, or real values.
    pub preprocessing: &'a Preprocessing,
    /// Names that labels may have, besides numbers.
    pub classes: &'a [String],
    /// Number of outputs.
    pub outputs: usize,
}

/// Where examples come from.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    /// A file or a folder; see [`Examples::read`].
    pub path: &'a Path,
    /// A file with one label for each example, if they are not in `path`.
    pub labels: Option<&'a Path>,
    /// The column of tables that has labels.
    pub label_column: Option<&'a Column>,
}

/// What was done to get examples, for the user to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Of the inputs: sizes, colours, files that could not be read.
    pub inputs: Vec<String>,
    /// Where the labels come from, and in what order they are, if that was a choice.
    pub labels: Option<String>,
}

impl<'a> Reads<'a> {
    /// What a graph reads.
    ///
    /// # Errors
    /// If its first node is not an input; a verified graph's is.
    pub fn of(graph: &'a Graph) -> Result<Self> {
        let shapes = graph.shapes().map_err(anyhow::Error::msg)?;
        match graph.nodes.first().map(|node| &node.op) {
            Some(Op::Input { shape }) => Ok(Reads {
                shape: *shape,
                preprocessing: &graph.preprocessing,
                classes: &graph.classes,
                outputs: shapes.last().map_or(0, Shape::len),
            }),
            _ => bail!("the graph's first node is not the input"),
        }
    }

    /// The class that a label means: a number from 0, or the name of a class.
    fn class(&self, label: &str) -> Option<u32> {
        // Programs that handle real numbers write a class as `3.0`.
        let number = label.strip_suffix(".0").unwrap_or(label).parse().ok();
        number.or_else(|| Some(self.classes.iter().position(|c| c == label)? as u32))
    }

    fn class_of(&self, label: &str) -> Result<u32> {
        self.class(label).with_context(|| {
            let known = match self.classes {
                [] => "the network's classes have no names".into(),
                names => format!("the network's classes are {}", names.join(", ")),
            };
            format!("{label:?} is no label: it is no whole number from 0, and {known}")
        })
    }
}

impl Examples {
    /// `count` images drawn by [`draw`], for networks whose training data is not at hand.
    pub fn synthetic(shape: Shape, count: usize, seed: u64) -> Self {
        Examples {
            source: format!("{SYNTHETIC}, {count} images, seed {seed}"),
            inputs: (0..count as u64)
                .map(|i| draw::image(shape, seed.wrapping_add(i)).into())
                .collect(),
            labels: Vec::new(),
        }
    }

    /// Reads at most `limit` examples, spread evenly over what there is.
    ///
    /// For a network of pictures as [`Examples::load`], and folders of pictures may stand for
    /// classes. For a network of real values, the path may be `synthetic`; a `.npy` file of one
    /// example or several; a `.csv` file with one example a row; or a folder of either, whose names
    /// may end in `_<label>`.
    ///
    /// # Errors
    /// If nothing can be read, a file is not what its name says, there are not as many labels as
    /// examples, or a label is no class.
    pub fn read(data: &Data<'_>, reads: &Reads<'_>, limit: usize) -> Result<Self> {
        Ok(Self::read_noting(data, reads, limit)?.0)
    }

    /// [`Examples::read`] with what was done to get them.
    ///
    /// # Errors
    /// As [`Examples::read`].
    pub fn read_noting(
        data: &Data<'_>,
        reads: &Reads<'_>,
        limit: usize,
    ) -> Result<(Self, Notices)> {
        let mut notices = Notices::default();
        if reads.preprocessing.is_values() {
            return Ok((values::read(data, reads, limit)?, notices));
        }
        ensure!(
            data.label_column.is_none(),
            "--label-column names a column of a table, and the network reads pictures"
        );
        let Some(labels) = data.labels else {
            let skip = images::Unreadable::Skip;
            let examples = images::read(data.path, reads, limit, (skip, &mut notices))?;
            return Ok((examples, notices));
        };
        // Labels in a list of their own belong to all files in order: none may be left out.
        let refuse = images::Unreadable::Refuse;
        let mut examples = images::read(data.path, reads, usize::MAX, (refuse, &mut notices))?;
        examples.label(&values::labels(labels)?, reads)?;
        examples.thin(limit);
        notices.labels = None;
        Ok((examples, notices))
    }

    /// Reads at most `limit` images, spread evenly over what `path` holds.
    ///
    /// `path` may be `synthetic`; a `.bin` file of records (label byte, then the planes, as
    /// CIFAR-10 has them); a `.npy` file of whole numbers from 0 to 255; a `.tar.xz` archive of
    /// images; an image; or a folder of any of these. Images come to the network's shape as those
    /// of a client do ([`pi_image`]). File names that end in `_<label>` give labels. Up to a tenth
    /// of the images may be unreadable, and are left out.
    ///
    /// # Errors
    /// If nothing can be read, or a file is not what its name says.
    pub fn load(path: &Path, shape: Shape, limit: usize) -> Result<Self> {
        let reads = Reads {
            shape,
            preprocessing: &Preprocessing::unit(shape.c),
            classes: &[],
            outputs: usize::MAX,
        };
        let mut notices = Notices::default();
        let skip = images::Unreadable::Skip;
        images::read(path, &reads, limit, (skip, &mut notices))
    }

    /// The number of examples to read so that `calibrating` of them are left when some were
    /// [held back](Examples::hold_back).
    pub fn with_held_back(calibrating: usize) -> usize {
        calibrating.saturating_add((calibrating / 4).max(LEAST_HELD_BACK))
    }

    /// Splits the examples into those that calibrate and those that are held back, on which the
    /// result is measured: one in five, but 16 where there are twice as many and half where there
    /// are not, spread evenly; none of a single example.
    pub fn hold_back(self) -> (Self, Self) {
        let count = self.inputs.len();
        let held = (count / 5).max(LEAST_HELD_BACK.min(count / 2));
        // One of each block, at a place that differs from block to block: data often has its
        // classes in turn, and a fixed place would hold back the same few of them.
        let blocks =
            (0..held).map(|block| (block, block * count / held, (block + 1) * count / held));
        let place = |block: usize| (block as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let chosen = blocks.map(|(block, from, to)| from + place(block) as usize % (to - from));
        let mut is_held = vec![false; count];
        chosen.for_each(|index| is_held[index] = true);
        let part = |which: bool| {
            let chosen = || (0..count).filter(|&index| is_held[index] == which);
            let labels = chosen().filter_map(|index| self.labels.get(index).copied());
            Examples {
                source: self.source.clone(),
                inputs: chosen().map(|index| self.inputs[index].clone()).collect(),
                labels: labels.collect(),
            }
        };
        (part(false), part(true))
    }

    /// Where the examples come from, and how many they are.
    pub fn in_words(&self) -> String {
        format!("{} ({} examples)", self.source, self.inputs.len())
    }

    /// Returns whether the examples were drawn, not read.
    pub fn is_drawn(&self) -> bool {
        self.source.starts_with(&format!("{SYNTHETIC}, "))
    }

    /// Reverses the order of the channels of every example, `[c][h][w]`.
    pub fn reverse_channels(&mut self, shape: Shape) {
        let plane = shape.h as usize * shape.w as usize;
        for input in &mut self.inputs {
            match input {
                Input::Bytes(bytes) => *bytes = bytes.rchunks(plane).flatten().copied().collect(),
                Input::Values(values) => {
                    *values = values.rchunks(plane).flatten().copied().collect();
                }
            }
        }
    }

    /// At most `limit` of the examples, spread evenly.
    pub fn thinned(&self, limit: usize) -> Self {
        let mut few = Examples {
            source: self.source.clone(),
            inputs: Vec::new(),
            labels: Vec::new(),
        };
        few.inputs = spread(&self.inputs, limit).cloned().collect();
        few.labels = spread(&self.labels, limit).copied().collect();
        few
    }

    /// The labels, if all of them are classes of a network with so many outputs; none otherwise.
    pub fn labels_of(&self, outputs: usize) -> &[u32] {
        let known = |&label: &u32| (label as usize) < outputs;
        match self.labels.iter().all(known) {
            true => &self.labels,
            false => &[],
        }
    }

    /// Gives every example its label.
    fn label(&mut self, words: &[String], reads: &Reads<'_>) -> Result<()> {
        let count = self.inputs.len();
        let words = values::without_name(words, count, reads);
        ensure!(
            words.len() == count,
            "{} labels for {count} examples of {}",
            words.len(),
            self.source
        );
        self.labels = words
            .iter()
            .map(|word| reads.class_of(word))
            .collect::<Result<_>>()?;
        Ok(())
    }

    /// Leaves at most `limit` examples, spread evenly.
    fn thin(&mut self, limit: usize) {
        *self = self.thinned(limit);
    }

    /// No examples yet, of this source.
    fn from(path: &Path) -> Self {
        let name = path.file_name();
        Examples {
            source: name.map_or_else(
                || path.display().to_string(),
                |n| n.to_string_lossy().into_owned(),
            ),
            inputs: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// Preprocessed single-precision inputs, as the float interpreter reads them.
    ///
    /// # Errors
    /// If the network reads pictures and the examples are real values.
    pub fn reals(&self, preprocessing: &Preprocessing) -> Result<Vec<Vec<f32>>, InputError> {
        let one = |input| preprocessing.reals_of(input);
        self.inputs.iter().map(one).collect()
    }
}

/// Fewest examples to hold back where there are twice as many.
const LEAST_HELD_BACK: usize = 16;

fn spread<T>(all: &[T], limit: usize) -> impl Iterator<Item = &T> {
    let step = all.len().div_ceil(limit.max(1)).max(1);
    all.iter().step_by(step)
}
