//! Real values as examples.

use super::files::{label, list};
use super::{Data, Examples, Reads, SYNTHETIC, draw};
use anyhow::{Context, Result, ensure};
use pi_ir::ValueFile;
use pi_ir::value_file::{Column, read_labels};
use std::fs::File;
use std::path::Path;

/// Ends of the names of files of values.
const FILES: &[&str] = &[".npy", ".csv"];

/// See [`Examples::read`].
pub(super) fn read(data: &Data<'_>, reads: &Reads<'_>, limit: usize) -> Result<Examples> {
    if data.path.as_os_str() == SYNTHETIC {
        return Ok(synthetic(reads, limit, 0));
    }
    let mut examples = Examples::from(data.path);
    let files = list(data.path, FILES)?;
    ensure!(
        !files.is_empty(),
        "no examples in {}: the network reads real values, from .npy or .csv files; for one of \
         pictures, give --input-kind image",
        data.path.display()
    );
    let words = data.labels.map(labels).transpose()?;
    let share = limit.div_ceil(files.len());
    let mut chosen = Vec::new();
    let mut before = 0;
    for file in &files {
        let count = examples
            .read_values(file, data.label_column, reads, share)
            .with_context(|| format!("in {}", file.display()))?;
        chosen.extend(indices(count, share).map(|index| before + index));
        before += count;
    }
    if let Some(words) = words {
        let words = without_name(&words, before, reads);
        ensure!(
            words.len() == before,
            "{} labels for {before} examples of {}",
            words.len(),
            examples.source
        );
        let classes = chosen.iter().map(|&index| reads.class_of(&words[index]));
        examples.labels = classes.collect::<Result<_>>()?;
    }
    if examples.labels.len() != examples.inputs.len() {
        examples.labels.clear();
    }
    examples.thin(limit);
    Ok(examples)
}

impl Examples {
    /// Adds at most `limit` examples of a file, and returns the number that it has.
    fn read_values(
        &mut self,
        path: &Path,
        label_column: Option<&Column>,
        reads: &Reads<'_>,
        limit: usize,
    ) -> Result<usize> {
        let file = open(path, label_column)?;
        let count = file.count(reads.shape)?;
        for index in indices(count, limit) {
            self.inputs.push(file.example(reads.shape, index)?.into());
            match &file {
                ValueFile::Table(table) if !table.labels().is_empty() => {
                    let class = reads.class_of(&table.labels()[index]);
                    self.labels
                        .push(class.with_context(|| format!("in row {index}"))?);
                }
                _ => self.labels.extend(label(path).filter(|_| count == 1)),
            }
        }
        Ok(count)
    }
}

/// At most `limit` of the first `count` numbers, spread evenly.
fn indices(count: usize, limit: usize) -> impl Iterator<Item = usize> {
    (0..count).step_by(count.div_ceil(limit.max(1)).max(1))
}

pub(super) fn open(path: &Path, label_column: Option<&Column>) -> Result<ValueFile> {
    Ok(ValueFile::read(path, File::open(path)?, label_column)?)
}

/// The words of a file of labels.
pub(super) fn labels(path: &Path) -> Result<Vec<String>> {
    let words = File::open(path).map_err(Into::into);
    let words = words.and_then(|file| read_labels(path, file));
    words.with_context(|| format!("labels in {}", path.display()))
}

/// The words without the first, if that is one too many and no label: the name of the column.
pub(super) fn without_name<'w>(
    words: &'w [String],
    count: usize,
    reads: &Reads<'_>,
) -> &'w [String] {
    match words {
        [name, rest @ ..] if rest.len() == count && reads.class(name).is_none() => rest,
        words => words,
    }
}

/// Drawn values, which are good enough for costs and for random weights.
fn synthetic(reads: &Reads<'_>, count: usize, seed: u64) -> Examples {
    Examples {
        source: format!("{SYNTHETIC}, {count} examples, seed {seed}"),
        inputs: (0..count as u64)
            .map(|i| draw::values(reads.shape, reads.preprocessing, seed.wrapping_add(i)).into())
            .collect(),
        labels: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_ir::value_file::Array;
    use pi_ir::{Input, Preprocessing, Shape};
    use std::fs;

    fn reads(preprocessing: &Preprocessing) -> Reads<'_> {
        Reads {
            shape: Shape::new(2, 1, 1),
            preprocessing,
            classes: &[],
            outputs: 2,
        }
    }

    fn data(path: &Path) -> Data<'_> {
        Data {
            path,
            labels: None,
            label_column: None,
        }
    }

    #[test]
    fn labels_stay_with_the_examples_that_are_chosen() {
        let preprocessing = Preprocessing::unit_values(2);
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("rows")).unwrap();
        fs::write(at("rows/a.csv"), "0,0\n1,1\n2,2\n3,3\n").unwrap();
        fs::write(at("rows/b.csv"), "4,4\n5,5\n6,6\n7,7\n").unwrap();
        fs::write(
            at("labels.csv"),
            "class\n10\n11\n12\n13\n14\n15.0\n16\n17\n",
        )
        .unwrap();
        let (rows, labels) = (at("rows"), at("labels.csv"));
        let data = Data {
            labels: Some(&labels),
            ..data(&rows)
        };
        for limit in [1, 3, 4, 5, 8, 100] {
            let examples = Examples::read(&data, &reads(&preprocessing), limit).unwrap();
            let count = examples.inputs.len();
            assert!(count > 0 && count <= limit && examples.labels.len() == count);
            for (input, &label) in examples.inputs.iter().zip(&examples.labels) {
                let value = f64::from(label - 10);
                assert_eq!(input, &Input::Values(vec![value; 2]));
            }
        }
        let all = Examples::read(&data, &reads(&preprocessing), 8).unwrap();
        assert_eq!(all.labels, [10, 11, 12, 13, 14, 15, 16, 17]);
    }

    #[test]
    fn a_folder_of_arrays_is_labelled_by_name() {
        let preprocessing = Preprocessing::unit_values(2);
        let directory = tempfile::tempdir().unwrap();
        for (name, value) in [("x_3.npy", 1.5f32), ("y_0.npy", -2.0)] {
            let elements = value.to_le_bytes().repeat(2);
            let file = Array::file("<f4", &[2], &elements);
            fs::write(directory.path().join(name), file).unwrap();
        }
        let examples = Examples::read(&data(directory.path()), &reads(&preprocessing), 9).unwrap();
        assert_eq!(examples.labels, [3, 0]);
        assert_eq!(examples.inputs[1], Input::Values(vec![-2.0; 2]));
    }

    #[test]
    fn drawn_values_have_the_statistics_that_are_stated() {
        let preprocessing = Preprocessing::Values {
            mean: vec![100.0, -3.0],
            std: vec![5.0, 0.1],
            bound: Some(2.0),
        };
        let reads = reads(&preprocessing);
        let drawn = Examples::read(&data(Path::new("synthetic")), &reads, 400).unwrap();
        let again = Examples::read(&data(Path::new("synthetic")), &reads, 400).unwrap();
        assert_eq!(drawn, again);
        let normalised = drawn.reals(&preprocessing).unwrap();
        for channel in 0..2 {
            let column = normalised.iter().map(|row| f64::from(row[channel]));
            let mean = column.clone().sum::<f64>() / 400.0;
            assert!(mean.abs() < 0.2, "{mean}");
            assert!(column.clone().all(|v| v.abs() < 2.0));
            assert!(column.clone().any(|v| v.abs() > 1.5));
        }
    }
}
