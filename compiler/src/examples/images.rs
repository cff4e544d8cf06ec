//! Pictures as examples, brought to the network's shape as those of a client are.

use super::files::{has_suffix, is_image, label, list, pictures, unpack};
use super::{Examples, Notices, Reads, SYNTHETIC, folders, spread, values};
use anyhow::{Context, Result, bail, ensure};
use image::DynamicImage;
use pi_image::{Change, ImageFileError};
use pi_ir::Shape;
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// What becomes of images that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// They are left out, if they are few, and named.
    Skip,
    /// All of them are named, and nothing is read.
    Refuse,
}

/// Of so many images, one may be unreadable.
const UNREADABLE_OF: usize = 10;
/// Files that an error or a notice names; of more, it says how many.
const NAMED: usize = 5;

/// See [`Examples::load`].
pub(super) fn read(
    path: &Path,
    reads: &Reads<'_>,
    limit: usize,
    (unreadable, notices): (Unreadable, &mut Notices),
) -> Result<Examples> {
    let shape = reads.shape;
    if path.as_os_str() == SYNTHETIC {
        return Ok(Examples::synthetic(shape, limit, 0));
    }
    let mut reading = Reading {
        shape,
        unreadable,
        examples: Examples::from(path),
        changes: Vec::new(),
        tried: 0,
        failures: Vec::new(),
    };
    let files = list(path, &pictures())?;
    if files.is_empty() && path.is_dir() {
        let folders = folders::list(path)?;
        ensure!(
            !folders.is_empty(),
            "no images in {}: expected .bin records, .npy arrays, .tar.xz archives, images ({}), \
             folders of such files named by class, or the word `{SYNTHETIC}`",
            path.display(),
            pi_image::EXTENSIONS.join(", ")
        );
        let names: Vec<&str> = folders.iter().map(|folder| &folder.name[..]).collect();
        let (classes, order) = folders::classes(&names, reads)?;
        let labelled = folders.iter().zip(&classes);
        let files = labelled.flat_map(|(folder, &class)| {
            let files = folder.files.iter();
            files.map(move |file| (file.clone(), class))
        });
        reading.files(&files.collect::<Vec<_>>(), limit)?;
        notices.labels = Some(order);
    } else if files.iter().all(|file| is_image(file)) {
        let labelled = files.iter().map(|file| (file.clone(), label(file)));
        reading.files(&labelled.collect::<Vec<_>>(), limit)?;
    } else {
        reading.archives(&files, limit)?;
    }
    reading.finish(notices)
}

/// Images read so far.
struct Reading {
    shape: Shape,
    unreadable: Unreadable,
    examples: Examples,
    /// What was done to each image.
    changes: Vec<Vec<Change>>,
    /// Images that were tried.
    tried: usize,
    /// Why images could not be read, with their names.
    failures: Vec<String>,
}

/// An image as it was read, with its label if it has one.
type Read = (Result<DynamicImage, ImageFileError>, Option<u32>);

impl Reading {
    /// Reads at most `limit` of these images, spread evenly.
    fn files(&mut self, files: &[(PathBuf, Option<u32>)], limit: usize) -> Result<()> {
        let count = limit.min(files.len());
        // Not every n-th: of 1,000 files, 640 would be 500, or all of the first 640.
        let chosen = (0..count).map(|index| &files[index * files.len() / count]);
        let chosen: Vec<_> = chosen.collect();
        self.add(&chosen, |(path, label)| (pi_image::decode(path), *label))
    }

    /// Reads archives, arrays and records, and images between them. Archives cost seconds each, so
    /// no more of them are opened than needed.
    fn archives(&mut self, files: &[PathBuf], limit: usize) -> Result<()> {
        let bulky = files.iter().filter(|file| !is_image(file)).count();
        let share = match bulky == files.len() {
            true => limit.div_ceil(bulky),
            false => limit,
        };
        for file in files {
            let room = limit.saturating_sub(self.examples.inputs.len());
            if room == 0 {
                break;
            }
            self.file(file, share.min(room))
                .with_context(|| format!("in {}", file.display()))?;
        }
        Ok(())
    }

    fn file(&mut self, file: &Path, limit: usize) -> Result<()> {
        if has_suffix(file, ".bin") {
            return self.records(&fs::read(file)?, limit);
        }
        if has_suffix(file, ".npy") {
            let array = values::open(file, None)?;
            let indices: Vec<usize> = (0..array.count(self.shape)?).collect();
            for &index in spread(&indices, limit) {
                let bytes = array.bytes(self.shape, index)?;
                self.examples.inputs.push(bytes.into());
            }
            let own = label(file).filter(|_| indices.len() == 1);
            self.examples.labels.extend(own);
            return Ok(());
        }
        if has_suffix(file, ".tar.xz") {
            let members = unpack(file)?;
            let chosen: Vec<_> = spread(&members, limit).collect();
            return self.add(&chosen, |(name, bytes)| {
                (pi_image::decode_bytes(name, bytes.clone()), label(name))
            });
        }
        self.add(&[file], |file| (pi_image::decode(file), label(file)))
    }

    fn records(&mut self, bytes: &[u8], limit: usize) -> Result<()> {
        let record = 1 + self.shape.len();
        ensure!(
            !bytes.is_empty() && bytes.len().is_multiple_of(record),
            "{} bytes are not a whole number of records of {record} bytes (a label and {} pixels): \
             the file is cut short or made for another network",
            bytes.len(),
            self.shape
        );
        let records: Vec<&[u8]> = bytes.chunks_exact(record).collect();
        for record in spread(&records, limit) {
            self.examples.labels.push(u32::from(record[0]));
            self.examples.inputs.push(record[1..].to_vec().into());
        }
        Ok(())
    }

    /// Adds images in their order, and remembers those that cannot be read.
    fn add<T: Sync>(&mut self, sources: &[T], read: impl Fn(&T) -> Read + Sync) -> Result<()> {
        let shape = self.shape;
        let images: Vec<_> = (sources.par_iter())
            .map(|source| {
                let (image, label) = read(source);
                (image.and_then(|i| pi_image::to_shape(i, shape)), label)
            })
            .collect();
        for (image, label) in images {
            self.tried += 1;
            match image {
                Ok(image) => {
                    self.examples.inputs.push(image.pixels.into());
                    self.examples.labels.extend(label);
                    self.changes.push(image.changes);
                }
                // Not a fault of the image: none would do.
                Err(error @ ImageFileError::Channels(_)) => {
                    bail!("{error}: use .npy arrays or .bin records, with the channels first")
                }
                Err(error) => self.failures.push(error.to_string()),
            }
        }
        Ok(())
    }

    fn finish(mut self, notices: &mut Notices) -> Result<Examples> {
        let failed = self.failures.len();
        if failed > 0 {
            let named: Vec<&str> = self.failures.iter().take(NAMED).map(|f| &f[..]).collect();
            let more = match failed - named.len() {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            let named = format!("{}{more}", named.join("; "));
            let few = UNREADABLE_OF * failed <= self.tried;
            ensure!(
                few && self.unreadable == Unreadable::Skip,
                "{failed} of {} images cannot be read: {named}",
                self.tried
            );
            notices.inputs.push(format!(
                "{failed} of {} images cannot be read and are left out: {named}",
                self.tried
            ));
        }
        notices.inputs.extend(summary(&self.changes, self.shape));
        if self.examples.labels.len() != self.examples.inputs.len() {
            self.examples.labels.clear();
        }
        Ok(self.examples)
    }
}

/// What was done to images, a sentence for each kind.
fn summary(changes: &[Vec<Change>], shape: Shape) -> Vec<String> {
    let all = changes.len();
    let count = |is: fn(&Change) -> bool| changes.iter().filter(|c| c.iter().any(is)).count();
    let mut sentences = Vec::new();
    let resized = count(|change| matches!(change, Change::Resized { .. }));
    if resized > 0 {
        let cut =
            count(|change| matches!(change, Change::Resized { from, cut, .. } if from != cut));
        let example = changes.iter().flatten().find_map(|change| match change {
            Change::Resized { from, .. } => Some(format!("{}x{}", from.0, from.1)),
            _ => None,
        });
        let cut = match cut {
            0 => String::new(),
            cut => format!(", {cut} of them after a cut to their middle"),
        };
        sentences.push(format!(
            "{resized} of {all} images have another size than the network, {} for example, and \
             are resized to {}x{}{cut}, as pi-client does; if the network was trained on images \
             that were cut in another way, prepare these likewise",
            example.unwrap_or_default(),
            shape.w,
            shape.h
        ));
    }
    let mut add = |number: usize, what: &str| {
        if number > 0 {
            sentences.push(format!("{number} of {all} images {what}"));
        }
    };
    let grey = count(|change| *change == Change::Grey);
    add(
        grey,
        "are grey, and the network reads colours: their channels are equal",
    );
    let colours = count(|change| *change == Change::ColoursDropped);
    add(
        colours,
        "have colours, which are dropped: the network reads grey",
    );
    let white = count(|change| *change == Change::OnWhite);
    add(white, "are transparent in places, and are laid on white");
    sentences
}

#[cfg(test)]
mod tests;
