//! CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
//! 2009).
//!
//! Record files as published (`cifar-10-binary`, `cifar-100-binary`): one label byte (CIFAR-100: a
//! coarse and a fine one), then 1,024 bytes each of red, green and blue. And CIFAR-10 as JPEG
//! archives, `cifar10_jpeg_<batch>.tar.xz`, whose members are `<batch>/<record>_<label>.jpg` in
//! record order: quality 75, so accuracies on it are not those of the published set.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::decode::{Decoder, Fit, ImageFile, Raw};
use super::{DataConfig, Dataset, Kind, Normalisation, Part, Reader, files};

/// Names of the classes of CIFAR-10, in label order.
pub const CLASSES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

const SHAPE: [usize; 3] = [3, 32, 32];
/// Images of one CIFAR-10 batch.
const BATCH: usize = 10_000;
/// A whole batch of JPEG files unpacks to 20 to 30 MB; anything beyond this is not one.
const MAX_ARCHIVE: u64 = 256 << 20;

/// CIFAR-10 in a folder.
pub(super) struct Cifar10 {
    folder: PathBuf,
    /// True if there are JPEG archives only.
    jpeg: bool,
}

impl Cifar10 {
    /// Looks for batches; a record file wins over an archive.
    pub(super) fn open(config: &DataConfig) -> Result<Self> {
        let folder = files::folder(&config.path, "cifar-10-batches-bin");
        let all = || batches(Part::Train).into_iter().chain(batches(Part::Test));
        let records = all().any(|batch| records(&folder, &batch).exists());
        let archives = all().any(|batch| archive(&folder, &batch).exists());
        // Not all need be there: the test batch alone is enough to evaluate a model.
        ensure!(
            records || archives,
            "no CIFAR-10 in {}: expected data_batch_1.bin to data_batch_5.bin and test_batch.bin \
             (of cifar-10-binary.tar.gz), \
             or cifar10_jpeg_data_batch_1.tar.xz and so on; data.path names the folder",
            folder.display()
        );
        Ok(Self {
            folder,
            jpeg: !records,
        })
    }
}

fn batches(part: Part) -> Vec<String> {
    match part {
        Part::Train => (1..=5)
            .map(|number| format!("data_batch_{number}"))
            .collect(),
        Part::Test => vec!["test_batch".to_owned()],
    }
}

fn records(folder: &Path, batch: &str) -> PathBuf {
    folder.join(format!("{batch}.bin"))
}

fn archive(folder: &Path, batch: &str) -> PathBuf {
    folder.join(format!("cifar10_jpeg_{batch}.tar.xz"))
}

impl Reader for Cifar10 {
    fn description(&self) -> String {
        if self.jpeg {
            "CIFAR-10, JPEG quality 75".to_owned()
        } else {
            "CIFAR-10, record files".to_owned()
        }
    }

    fn classes(&self) -> Vec<String> {
        CLASSES.map(str::to_owned).to_vec()
    }

    fn files(&self, part: Part) -> Result<Option<Vec<PathBuf>>> {
        let batches = batches(part).into_iter();
        let archives: Vec<PathBuf> = batches.map(|batch| archive(&self.folder, &batch)).collect();
        // Where one is missing, reading says which.
        Ok((self.jpeg && archives.iter().all(|path| path.exists())).then_some(archives))
    }

    fn normalisation(&self) -> Option<Normalisation> {
        self.jpeg.then(Normalisation::cifar10)
    }

    fn read(&self, part: Part) -> Result<Raw> {
        let mut images = Vec::new();
        let mut set = Dataset::empty(SHAPE);
        for batch in batches(part) {
            let path = records(&self.folder, &batch);
            if path.exists() {
                set.append(read_records(&path, 1, CLASSES.len(), BATCH)?);
                continue;
            }
            let path = archive(&self.folder, &batch);
            ensure!(
                path.exists(),
                "no {batch} of CIFAR-10 in {}: expected {batch}.bin or cifar10_jpeg_{batch}.tar.xz",
                self.folder.display()
            );
            let members = read_archive(&path, &batch)?;
            whole(&path, members.len(), BATCH)?;
            if self.jpeg {
                images.extend(members);
            } else {
                let mixed = Raw::Files {
                    decoder: DECODER,
                    files: members,
                };
                set.append(mixed.decode()?);
            }
        }
        Ok(if self.jpeg {
            Raw::Files {
                decoder: DECODER,
                files: images,
            }
        } else {
            Raw::Planes(set)
        })
    }
}

const DECODER: Decoder = Decoder {
    side: 32,
    channels: 3,
    fit: Fit::Exact,
};

/// CIFAR-100 in a folder.
pub(super) struct Cifar100 {
    folder: PathBuf,
    classes: Vec<String>,
}

impl Cifar100 {
    pub(super) fn open(config: &DataConfig) -> Result<Self> {
        let folder = files::folder(&config.path, "cifar-100-binary");
        for file in ["train.bin", "test.bin"] {
            ensure!(
                folder.join(file).exists(),
                "no {file} of CIFAR-100 in {}: unpack cifar-100-binary.tar.gz and name its folder \
                 by data.path",
                folder.display()
            );
        }
        let names = folder.join("fine_label_names.txt");
        let classes = if names.exists() {
            let text = files::read_text(&names)?;
            let classes: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            ensure!(
                classes.len() == 100,
                "{} names {} classes, not 100",
                names.display(),
                classes.len()
            );
            classes
        } else {
            (0..100).map(|label| format!("class {label}")).collect()
        };
        Ok(Self { folder, classes })
    }
}

impl Reader for Cifar100 {
    fn description(&self) -> String {
        "CIFAR-100".to_owned()
    }

    fn classes(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn files(&self, _: Part) -> Result<Option<Vec<PathBuf>>> {
        Ok(None)
    }

    fn read(&self, part: Part) -> Result<Raw> {
        let (file, count) = match part {
            Part::Train => ("train.bin", 50_000),
            Part::Test => ("test.bin", 10_000),
        };
        read_records(&self.folder.join(file), 2, 100, count).map(Raw::Planes)
    }
}

/// Images at the head of each training batch of CIFAR-10 whose original pixels are kept beside the
/// JPEG archives.
const ORIGINALS: usize = 1017;

/// Checks that a run on these data has trained on none of the images that [`originals`] reads.
///
/// # Errors
/// Another set than CIFAR-10, or other images held out; the message names the keys to set.
pub fn check_originals(config: &DataConfig) -> Result<()> {
    let parts = batches(Part::Train).len();
    ensure!(
        config.kind == Kind::Cifar10,
        "originals are known of CIFAR-10, not of data.kind = \"{}\"",
        config.kind.name()
    );
    ensure!(
        config.holdout == parts * ORIGINALS && config.holdout_parts == Some(parts),
        "data.holdout is {}{}: training saw images whose originals would be measured; the images \
         to hold out are the first {ORIGINALS} of each batch: data.holdout = {}, \
         data.holdout_parts = {parts}",
        config.holdout,
        match config.holdout_parts {
            Some(parts) => format!(" in {parts} parts"),
            None => ", the last images".to_owned(),
        },
        parts * ORIGINALS
    );
    Ok(())
}

/// Reads the first 1,017 images of each training batch of CIFAR-10 with their original pixels:
/// records in `cifar10_lossless_first1017_data_batch_1.bin.xz` and so on.
///
/// # Errors
/// A file that is missing, short or corrupt.
pub fn originals(folder: &Path) -> Result<Dataset> {
    let mut set = Dataset::empty(SHAPE);
    for batch in batches(Part::Train) {
        let path = folder.join(format!("cifar10_lossless_first{ORIGINALS}_{batch}.bin.xz"));
        let bytes = files::unxz(&path, (ORIGINALS * (1 + 3 * 32 * 32)) as u64)?;
        let records = parse_records(&bytes, 1, SHAPE, CLASSES.len())
            .with_context(|| format!("{} is cut short or corrupt", path.display()))?;
        whole(&path, records.len(), ORIGINALS)?;
        set.append(records);
    }
    Ok(set)
}

/// Reads records of `label_bytes` label bytes, the last of which counts, and an image.
fn read_records(path: &Path, label_bytes: usize, classes: usize, count: usize) -> Result<Dataset> {
    let bytes = files::read(path)?;
    let set = parse_records(&bytes, label_bytes, SHAPE, classes)
        .with_context(|| format!("{} is cut short or corrupt", path.display()))?;
    whole(path, set.len(), count)?;
    Ok(set)
}

/// Takes records apart: `label_bytes` label bytes, the last of which counts, then the planes.
pub(super) fn parse_records(
    bytes: &[u8],
    label_bytes: usize,
    shape: [usize; 3],
    classes: usize,
) -> Result<Dataset> {
    let image: usize = shape.iter().product();
    let record = label_bytes + image;
    ensure!(
        !bytes.is_empty() && bytes.len().is_multiple_of(record),
        "it has {} bytes, which is no whole number of {record}-byte records",
        bytes.len()
    );
    let mut set = Dataset::empty(shape);
    set.images.reserve_exact(bytes.len() / record * image);
    for (index, record) in bytes.chunks_exact(record).enumerate() {
        let (labels, planes) = record.split_at(label_bytes);
        let label = labels[label_bytes - 1];
        ensure!(
            usize::from(label) < classes,
            "record {index} has label {label}, above {}",
            classes - 1
        );
        set.labels.push(u16::from(label));
        set.images.extend_from_slice(planes);
    }
    Ok(set)
}

fn whole(path: &Path, count: usize, expected: usize) -> Result<()> {
    ensure!(
        count == expected,
        "{} has {count} images, not {expected}: the file is cut short, or another one of that name",
        path.display()
    );
    Ok(())
}

/// The JPEG files of an archive in record order.
fn read_archive(path: &Path, batch: &str) -> Result<Vec<ImageFile>> {
    let mut found = Vec::new();
    for (name, bytes) in files::untar(path, MAX_ARCHIVE)? {
        let (record, label) = parse_name(&name, batch)
            .with_context(|| format!("{}: unexpected member {name}", path.display()))?;
        let name = format!("{}: member {name}", path.display());
        found.push((record, ImageFile { name, label, bytes }));
    }
    found.sort_by_key(|(record, _)| *record);
    for (position, (record, _)) in found.iter().enumerate() {
        ensure!(
            *record == position,
            "{}: record {position} is missing or there twice",
            path.display()
        );
    }
    Ok(found.into_iter().map(|(_, file)| file).collect())
}

fn parse_name(name: &str, batch: &str) -> Option<(usize, u16)> {
    let stem = name
        .strip_prefix(batch)?
        .strip_prefix('/')?
        .strip_suffix(".jpg")?;
    let (record, label) = stem.split_once('_')?;
    let label = label
        .parse()
        .ok()
        .filter(|label| usize::from(*label) < CLASSES.len())?;
    Some((record.parse().ok()?, label))
}

#[cfg(test)]
mod tests;
