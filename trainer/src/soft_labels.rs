//! Soft labels: a teacher's logits of every training image, computed once and kept in a file.
//!
//! They are the mean over some views of an image (mirrored, shifted by a pixel), so they are better
//! than the teacher's answer to one view, and a stage that learns from them
//! (`distil.teacher = { logits = FILE }`) runs no teacher. A file is: the magic `PILABEL1`, the
//! length of a JSON header (u64, little endian), the header, the logits (f32, little endian), image
//! by image. The header says of which images they are.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::container::{crc32, read_header, write_header};
use crate::data::{DeviceSet, View};
use crate::run::Run;
use crate::tensors::download;

const MAGIC: &[u8; 8] = b"PILABEL1";
/// Far above what a header takes.
const MAX_HEADER: u64 = 1 << 20;
/// Images of a pass.
const BATCH: usize = 500;

/// A teacher's logits of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftLabels {
    header: Header,
    /// `[images, classes]`.
    logits: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    /// Name of the model that gave the logits.
    model: String,
    /// Views of an image that they are the mean of.
    views: usize,
    images: usize,
    classes: usize,
    /// [`DeviceSet::fingerprint`] of the images.
    set: u32,
    /// CRC-32 of the logits.
    crc32: u32,
}

impl SoftLabels {
    /// The logits of a finished run on a set, which must be normalised as the run's own; the mean
    /// over `views`.
    ///
    /// # Cost
    /// A pass over the set for each view.
    /// # Errors
    /// A run that is not finished, no views, or an answer that is not finite, by the image.
    pub fn of(run: &Run, set: &DeviceSet, views: &[View], progress: &ProgressBar) -> Result<Self> {
        ensure!(
            run.finished() && run.state.selection.is_none(),
            "the model is not finished: train it to its end first"
        );
        ensure!(!views.is_empty(), "the logits of no view are none");
        let order: Vec<usize> = (0..set.len()).collect();
        progress.set_length(order.len() as u64);
        let mut logits = Vec::new();
        for indices in order.chunks(BATCH) {
            let answers = views
                .iter()
                .map(|view| run.logits(set.view(indices, *view)));
            let sum = answers.reduce(|a, b| a + b).expect("there is a view");
            logits.extend(download(sum.div_scalar(views.len() as f32)));
            progress.inc(indices.len() as u64);
        }
        let classes = run.meta.images.classes.len();
        for (image, logits) in logits.chunks(classes).enumerate() {
            ensure!(
                logits.iter().all(|logit| logit.is_finite()),
                "the model's answer to image {image} is not finite: it cannot teach"
            );
        }
        let header = Header {
            model: run.meta.config.name.clone(),
            views: views.len(),
            images: set.len(),
            classes,
            set: set.fingerprint(),
            crc32: crc32(&[&bytes(&logits)]),
        };
        Ok(Self { header, logits })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, path: &Path) -> Result<()> {
        atomic::write_by(path, |file| {
            write_header(file, MAGIC, &self.header)?;
            file.write_all(&bytes(&self.logits))
        })
    }

    /// Reads a file of [`Self::save`].
    ///
    /// # Errors
    /// A file that cannot be read, is no such file, or is damaged.
    pub fn load(path: &Path) -> Result<Self> {
        let file = fs::read(path).with_context(|| {
            format!(
                "cannot read the soft labels {}; pi-train labels makes them",
                path.display()
            )
        })?;
        Self::parse(&file)
            .with_context(|| format!("{} is no whole file of soft labels", path.display()))
    }

    fn parse(file: &[u8]) -> Result<Self> {
        let (header, start): (Header, u64) = read_header(&mut &*file, MAGIC, MAX_HEADER)?;
        let body = &file[start as usize..];
        let expected = header
            .images
            .checked_mul(header.classes)
            .and_then(|count| count.checked_mul(4));
        ensure!(
            expected == Some(body.len()),
            "it has {} bytes of logits, not those of {} images in {} classes",
            body.len(),
            header.images,
            header.classes
        );
        ensure!(crc32(&[body]) == header.crc32, "its logits are damaged");
        let (words, _) = body.as_chunks::<4>();
        let logits: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        ensure!(
            logits.iter().all(|logit| logit.is_finite()),
            "a logit is not finite"
        );
        Ok(Self { header, logits })
    }

    /// Checks that the labels are of this set, image by image in its order.
    ///
    /// # Errors
    /// Labels of another set, or of another part of it.
    pub fn check(&self, set: &DeviceSet, classes: usize) -> Result<()> {
        let Header {
            model,
            images,
            classes: own,
            ..
        } = &self.header;
        ensure!(
            *images == set.len() && *own == classes,
            "the soft labels (of {model}) are of {images} images in {own} classes, the training \
             images are {} in {classes}: make them anew with the [data] of this experiment",
            set.len()
        );
        ensure!(
            self.header.set == set.fingerprint(),
            "the soft labels (of {model}) are of other images than these: make them anew with the \
             [data] of this experiment"
        );
        Ok(())
    }

    /// Logits of these images, `[indices, classes]`.
    ///
    /// # Panics
    /// An index beyond the set that [`Self::check`] was given.
    pub fn rows(&self, indices: &[usize]) -> Vec<f32> {
        let classes = self.header.classes;
        let row = |index: &usize| &self.logits[index * classes..(index + 1) * classes];
        indices.iter().flat_map(row).copied().collect()
    }

    /// CRC-32 of the logits, which tells two files apart.
    pub fn fingerprint(&self) -> u32 {
        self.header.crc32
    }
}

fn bytes(logits: &[f32]) -> Vec<u8> {
    logits
        .iter()
        .flat_map(|logit| logit.to_le_bytes())
        .collect()
}
