//! Tiny-ImageNet-200 (Stanford CS231n): 200 classes of ImageNet at 64x64.
//!
//! Three forms are read: the tree as published (`wnids.txt`, `train/<wnid>/images/*.JPEG`,
//! `val/images` with `val/val_annotations.txt`); tar.xz parts of it
//! (`tiny_imagenet_train_part<K>.tar.xz`, `tiny_imagenet_val.tar.xz` and `classes.tsv`); and flat
//! records (`tiny_train_part<K>_<S>.bin`, `tiny_val_<S>.bin`: a label byte, then three planes of
//! `S` times `S` bytes). The published test images have no labels: the validation images are the
//! test set. Training images are dealt out one of each class in turn, in the order of their
//! numbers, whatever the form.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::decode::{Decoder, Fit, ImageFile, Raw, halve};
use super::{DataConfig, Dataset, Part, Reader, cifar, files, interleaved};

const CLASSES: usize = 200;
const SIDE: usize = 64;
/// A part has 25,000 files of about 2 KB, in blocks of 512 bytes after a header of 512 each.
const MAX_ARCHIVE: u64 = 512 << 20;

/// Tiny-ImageNet in a folder.
pub(super) struct TinyImagenet {
    folder: PathBuf,
    form: Form,
    side: usize,
    /// WordNet ids in label order; empty for flat records without a `classes.tsv`.
    ids: Vec<String>,
    names: Vec<String>,
}

enum Form {
    Tree,
    Archives { parts: Vec<String> },
    Flat { parts: Vec<String>, side: usize },
}

impl TinyImagenet {
    pub(super) fn open(config: &DataConfig) -> Result<Self> {
        let folder = files::folder(&config.path, "tiny-imagenet-200");
        let side = config.side();
        let form = find(&folder, side)?;
        let table = match form {
            Form::Tree => Some(tree_classes(&folder)?),
            Form::Archives { .. } => Some(listed_classes(&folder)?),
            Form::Flat { .. } if folder.join("classes.tsv").exists() => {
                Some(listed_classes(&folder)?)
            }
            Form::Flat { .. } => None,
        };
        let (ids, names) = table.unwrap_or_else(|| {
            let numbers = (0..CLASSES).map(|label| format!("class {label}"));
            (Vec::new(), numbers.collect())
        });
        Ok(Self {
            folder,
            form,
            side,
            ids,
            names,
        })
    }

    fn decoder(&self) -> Decoder {
        Decoder {
            side: self.side,
            channels: 3,
            fit: if self.side == SIDE {
                Fit::Exact
            } else {
                Fit::Halve
            },
        }
    }

    fn labels(&self) -> BTreeMap<&str, u16> {
        self.ids.iter().map(String::as_str).zip(0..).collect()
    }

    /// Number, label and file of each image of the published tree.
    fn tree(&self, part: Part) -> Result<Vec<(usize, u16, PathBuf)>> {
        let labels = self.labels();
        let mut found = Vec::new();
        match part {
            Part::Train => {
                for (id, label) in &labels {
                    let folder = self.folder.join("train").join(id).join("images");
                    for name in files::names(&folder, |name| name.ends_with(".JPEG"))? {
                        found.push((number(&name)?, *label, folder.join(name)));
                    }
                }
            }
            Part::Test => {
                let path = self.folder.join("val/val_annotations.txt");
                for (line, text) in files::read_text(&path)?.lines().enumerate() {
                    let mut words = text.split('\t');
                    let (name, id) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
                    let label = labels.get(id).with_context(|| {
                        format!(
                            "{}, line {}: expected a file and one of the ids of wnids.txt, got \
                             {text:?}",
                            path.display(),
                            line + 1
                        )
                    })?;
                    found.push((
                        number(name)?,
                        *label,
                        self.folder.join("val/images").join(name),
                    ));
                }
            }
        }
        Ok(found)
    }

    fn tree_files(&self, part: Part) -> Result<Vec<(usize, ImageFile)>> {
        self.tree(part)?
            .into_par_iter()
            .map(|(number, label, path)| {
                let bytes = files::read(&path)?;
                let name = path.display().to_string();
                Ok((number, ImageFile { name, label, bytes }))
            })
            .collect()
    }

    fn archives(&self, part: Part, parts: &[String]) -> Vec<PathBuf> {
        match part {
            Part::Train => parts.iter().map(|name| self.folder.join(name)).collect(),
            Part::Test => vec![self.folder.join("tiny_imagenet_val.tar.xz")],
        }
    }

    fn archive_files(&self, part: Part, parts: &[String]) -> Result<Vec<(usize, ImageFile)>> {
        let labels = self.labels();
        let top = match part {
            Part::Train => "train/",
            Part::Test => "val/",
        };
        let read = |path: PathBuf| -> Result<Vec<(usize, ImageFile)>> {
            let members = files::untar(&path, MAX_ARCHIVE)?.into_iter();
            members
                .map(|(name, bytes)| {
                    let parsed = name.strip_prefix(top).and_then(|rest| rest.split_once('/'));
                    let found = parsed.and_then(|(id, file)| Some((*labels.get(id)?, file)));
                    let (label, file) = found
                        .with_context(|| format!("{}: unexpected member {name}", path.display()))?;
                    let number = number(file)?;
                    let name = format!("{}: member {name}", path.display());
                    Ok((number, ImageFile { name, label, bytes }))
                })
                .collect()
        };
        let archives = self.archives(part, parts);
        let read: Vec<_> = archives.into_par_iter().map(read).collect::<Result<_>>()?;
        Ok(read.into_iter().flatten().collect())
    }

    fn flat(&self, part: Part, parts: &[String], side: usize) -> Result<Dataset> {
        let paths = match part {
            Part::Train => parts.iter().map(|name| self.folder.join(name)).collect(),
            Part::Test => vec![self.folder.join(format!("tiny_val_{side}.bin"))],
        };
        let mut set = Dataset::empty([3, side, side]);
        for path in paths {
            let bytes = files::read(&path)?;
            let records = cifar::parse_records(&bytes, 1, set.shape, CLASSES)
                .with_context(|| format!("{} is cut short or corrupt", path.display()))?;
            check_balance(&records.labels).with_context(|| path.display().to_string())?;
            set.append(records);
        }
        if side == self.side {
            return Ok(set);
        }
        let mut small = Dataset::empty([3, self.side, self.side]);
        small.images = vec![0; set.images.len() / 4];
        let (large, bytes) = (set.bytes(), small.bytes());
        let pairs = small
            .images
            .par_chunks_mut(bytes)
            .zip(set.images.par_chunks(large));
        pairs.for_each(|(small, large)| halve(large, side, small));
        small.labels = set.labels;
        Ok(small)
    }
}

impl Reader for TinyImagenet {
    fn description(&self) -> String {
        let parts = match &self.form {
            Form::Tree => String::new(),
            Form::Archives { parts } | Form::Flat { parts, .. } => match parts.len() {
                4 => String::new(),
                parts => format!(", {parts} of 4 training parts"),
            },
        };
        format!("Tiny-ImageNet, {0}x{0}{parts}", self.side)
    }

    fn classes(&self) -> Vec<String> {
        self.names.clone()
    }

    fn files(&self, part: Part) -> Result<Option<Vec<PathBuf>>> {
        Ok(match &self.form {
            Form::Tree => Some(
                self.tree(part)?
                    .into_iter()
                    .map(|(.., path)| path)
                    .collect(),
            ),
            Form::Archives { parts } => Some(self.archives(part, parts)),
            Form::Flat { .. } => None,
        })
    }

    fn read(&self, part: Part) -> Result<Raw> {
        let mut found = match &self.form {
            Form::Tree => self.tree_files(part)?,
            Form::Archives { parts } => self.archive_files(part, parts)?,
            Form::Flat { parts, side } => {
                let set = self.flat(part, parts, *side)?;
                let order = interleaved(&set.labels);
                return Ok(Raw::Planes(set.ordered(&order)));
            }
        };
        found.sort_by_key(|(number, file)| (file.label, *number));
        let labels: Vec<u16> = found.iter().map(|(_, file)| file.label).collect();
        check_balance(&labels)
            .with_context(|| format!("the {} images in {}", part.name(), self.folder.display()))?;
        let mut found: Vec<_> = found.into_iter().map(|(_, file)| Some(file)).collect();
        let order = interleaved(&labels).into_iter();
        let files = order.filter_map(|index| found[index].take()).collect();
        Ok(Raw::Files {
            decoder: self.decoder(),
            files,
        })
    }
}

/// Finds the form that is in the folder.
fn find(folder: &Path, side: usize) -> Result<Form> {
    if folder.join("wnids.txt").exists() {
        return Ok(Form::Tree);
    }
    let parts = |prefix: &str, suffix: &str| {
        files::names(folder, |name| {
            name.starts_with(prefix) && name.ends_with(suffix)
        })
    };
    let archives = parts("tiny_imagenet_train_part", ".tar.xz")?;
    if !archives.is_empty() {
        return Ok(Form::Archives { parts: archives });
    }
    for side in [side, SIDE] {
        let records = parts("tiny_train_part", &format!("_{side}.bin"))?;
        if !records.is_empty() {
            return Ok(Form::Flat {
                parts: records,
                side,
            });
        }
    }
    bail!(
        "no Tiny-ImageNet at {side}x{side} in {}: expected wnids.txt and the folders train and \
         val, or tiny_imagenet_train_part1.tar.xz, tiny_imagenet_val.tar.xz and classes.tsv, or \
         tiny_train_part1_{side}.bin and \
         tiny_val_{side}.bin; data.path names the folder",
        folder.display()
    )
}

/// Ids and names of the published tree.
fn tree_classes(folder: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let path = folder.join("wnids.txt");
    let text = files::read_text(&path)?;
    let ids: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    check_ids(&ids, &path)?;
    let words = folder.join("words.txt");
    let text = if words.exists() {
        files::read_text(&words)?
    } else {
        String::new()
    };
    let words: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let names = ids
        .iter()
        .map(|id| first_word(words.get(id.as_str()).unwrap_or(&id.as_str())));
    let names = names.collect();
    Ok((ids, names))
}

/// Ids and names of `classes.tsv`: label, id, words.
fn listed_classes(folder: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let path = folder.join("classes.tsv");
    let text = files::read_text(&path)?;
    let (mut ids, mut names) = (Vec::new(), Vec::new());
    for (line, text) in text.lines().enumerate() {
        let words: Vec<&str> = text.split('\t').collect();
        ensure!(
            words.len() == 3 && words[0] == line.to_string(),
            "{}, line {}: expected the label {line}, a WordNet id and words, by tabs; got {text:?}",
            path.display(),
            line + 1
        );
        ids.push(words[1].to_owned());
        names.push(first_word(words[2]));
    }
    check_ids(&ids, &path)?;
    Ok((ids, names))
}

/// The first of several synonyms.
fn first_word(words: &str) -> String {
    words.split(',').next().unwrap_or(words).trim().to_owned()
}

fn check_ids(ids: &[String], path: &Path) -> Result<()> {
    let distinct: std::collections::BTreeSet<&String> = ids.iter().collect();
    ensure!(
        ids.len() == CLASSES && distinct.len() == CLASSES,
        "{} names {} classes, expected {CLASSES} different ones",
        path.display(),
        distinct.len()
    );
    Ok(())
}

/// The number in `n01443537_12.JPEG` and `val_12.JPEG`.
fn number(name: &str) -> Result<usize> {
    let stem = name.strip_suffix(".JPEG");
    let digits = stem.and_then(|stem| stem.rsplit('_').next());
    digits
        .and_then(|digits| digits.parse().ok())
        .with_context(|| {
            format!("{name} is not called as Tiny-ImageNet's images are, like val_12.JPEG")
        })
}

/// All classes have as many images: whatever is cut off, it shows.
fn check_balance(labels: &[u16]) -> Result<()> {
    let mut counts = [0usize; CLASSES];
    for label in labels {
        counts[usize::from(*label)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0);
    ensure!(most > 0, "there are none");
    if let Some(label) = counts.iter().position(|count| *count != most) {
        bail!(
            "class {label} has {} images and another has {most}: some are missing",
            counts[label]
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
