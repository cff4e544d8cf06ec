//! CIFAR-10 from JPEG archives or from record files, and batches of it.
//!
//! Two forms are read: `cifar10_jpeg_<batch>.tar.xz` (one JPEG per record, `<batch>/<record>_<label>.jpg`) and the
//! original `<batch>.bin` records. Every file is checked for its count and its labels before an image is used, and
//! errors name the file and what was wrong with it.

use std::fs;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::checkpoint::write_atomically;

/// Side of an image in pixels.
pub const SIDE: usize = 32;
/// Colour channels of an image.
pub const CHANNELS: usize = 3;
/// Bytes of an image: planar red, green, blue.
pub const IMAGE: usize = CHANNELS * SIDE * SIDE;
const RECORD: usize = 1 + IMAGE;
const PLANE: usize = SIDE * SIDE;
/// Records of one CIFAR-10 batch file.
pub const BATCH_RECORDS: usize = 10_000;
/// A whole batch of JPEG files unpacks to 20 to 30 MB; anything beyond this is not one.
const MAX_ARCHIVE: u64 = 256 << 20;
/// A 32x32 JPEG has about 1 KB.
const MAX_JPEG: u64 = 64 << 10;

/// Names of the classes, in label order.
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

/// Labelled images, planar bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Channels, rows and columns of every image.
    pub shape: [usize; 3],
    /// The planes of all images, one image after the other.
    pub images: Vec<u8>,
    /// One label per image.
    pub labels: Vec<u16>,
}

/// Where the images are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder of CIFAR-10: record files or JPEG archives.
    pub path: PathBuf,
    /// Folder for decoded archives.
    pub cache: Option<PathBuf>,
    /// Training images held out for every choice; the last ones.
    #[serde(default = "holdout")]
    pub holdout: usize,
    /// Training images used (all if absent).
    pub limit: Option<usize>,
}

fn holdout() -> usize {
    5000
}

/// What happens to training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Largest shift of the random crop in pixels; reflection at the border.
    #[serde(default)]
    pub shift: usize,
    /// Mirrors half of the images.
    #[serde(default)]
    pub flip: bool,
    /// Side of the square whose pixels become the mean; 0 for none.
    #[serde(default)]
    pub cutout: usize,
}

impl Default for Augmentation {
    /// Shift by 4, flip, no cutout.
    fn default() -> Self {
        Self {
            shift: 4,
            flip: true,
            cutout: 0,
        }
    }
}

/// A set whose batches appear on a device.
pub struct DeviceSet {
    set: Dataset,
    normalisation: Normalisation,
    device: Device,
}

impl DeviceSet {
    /// Takes over a set.
    pub fn new(set: Dataset, normalisation: Normalisation, device: &Device) -> Self {
        Self {
            set,
            normalisation,
            device: device.clone(),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Labels of these images.
    pub fn labels(&self, indices: &[usize]) -> Vec<usize> {
        indices
            .iter()
            .map(|index| usize::from(self.set.labels[*index]))
            .collect()
    }

    /// `[n, c, h, w]` normalised pixels without augmentation.
    pub fn plain(&self, indices: &[usize]) -> Tensor<4> {
        self.upload(plain_batch(&self.set, indices, &self.normalisation))
    }

    /// `[n, c, h, w]` normalised and augmented pixels.
    pub fn batch(&self, indices: &[usize], augmentation: &Augmentation, seed: u64) -> Tensor<4> {
        let pixels = augmented_batch(&self.set, indices, &self.normalisation, augmentation, seed);
        self.upload(pixels)
    }

    fn upload(&self, pixels: Vec<f32>) -> Tensor<4> {
        let [c, h, w] = self.set.shape;
        let n = pixels.len() / (c * h * w);
        Tensor::from_data(TensorData::new(pixels, [n, c, h, w]), &self.device)
    }
}

/// Training, held-out and shape of the images a run works on.
pub struct Data {
    /// What is trained on.
    pub train: DeviceSet,
    /// What choices are made on.
    pub holdout: DeviceSet,
}

impl Dataset {
    /// A set without images.
    pub fn empty(shape: [usize; 3]) -> Self {
        Self {
            shape,
            images: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// Bytes of one image.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Bytes of image `index`.
    pub fn image(&self, index: usize) -> &[u8] {
        &self.images[index * self.bytes()..(index + 1) * self.bytes()]
    }

    /// Removes the last `count` images and returns them.
    pub fn split_off(&mut self, count: usize) -> Dataset {
        let keep = self.len().saturating_sub(count);
        Dataset {
            shape: self.shape,
            images: self.images.split_off(keep * self.bytes()),
            labels: self.labels.split_off(keep),
        }
    }

    fn append(&mut self, mut other: Dataset) {
        self.images.append(&mut other.images);
        self.labels.append(&mut other.labels);
    }

    fn from_records(bytes: &[u8], path: &Path) -> Result<Self> {
        ensure!(
            !bytes.is_empty() && bytes.len().is_multiple_of(RECORD),
            "{} has {} bytes, which is no whole number of {RECORD}-byte records: the file is cut short or not a CIFAR-10 batch",
            path.display(),
            bytes.len()
        );
        let mut set = Dataset::empty([CHANNELS, SIDE, SIDE]);
        for (index, record) in bytes.chunks_exact(RECORD).enumerate() {
            ensure!(
                usize::from(record[0]) < CLASSES.len(),
                "{}: record {index} has label {}, above 9: the file is corrupt",
                path.display(),
                record[0]
            );
            set.labels.push(u16::from(record[0]));
            set.images.extend_from_slice(&record[1..]);
        }
        Ok(set)
    }

    fn to_records(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len() * RECORD);
        for index in 0..self.len() {
            bytes.push(self.labels[index] as u8);
            bytes.extend_from_slice(self.image(index));
        }
        bytes
    }
}

/// Training and test images of CIFAR-10.
pub struct Cifar10 {
    /// 50,000 images.
    pub train: Dataset,
    /// 10,000 images.
    pub test: Dataset,
}

impl Cifar10 {
    /// Loads the five training batches and the test batch from `folder`.
    ///
    /// Record files win over archives. Decoded archives are kept in `cache` if one is given, so that the next start
    /// takes a second.
    ///
    /// # Errors
    /// A file that is missing, short, corrupt, or no CIFAR-10 batch.
    pub fn load(folder: &Path, cache: Option<&Path>) -> Result<Self> {
        let mut train = Dataset::empty([CHANNELS, SIDE, SIDE]);
        for number in 1..=5 {
            train.append(load_batch(folder, &format!("data_batch_{number}"), cache)?);
        }
        Ok(Self {
            train,
            test: load_test(folder, cache)?,
        })
    }
}

/// Loads the test batch alone; see [`Cifar10::load`].
///
/// # Errors
/// As [`Cifar10::load`].
pub fn load_test(folder: &Path, cache: Option<&Path>) -> Result<Dataset> {
    load_batch(folder, "test_batch", cache)
}

fn load_batch(folder: &Path, batch: &str, cache: Option<&Path>) -> Result<Dataset> {
    let records = folder.join(format!("{batch}.bin"));
    if records.exists() {
        return whole(load_records(&records)?, &records);
    }
    let archive = folder.join(format!("cifar10_jpeg_{batch}.tar.xz"));
    ensure!(
        archive.exists(),
        "no {batch} of CIFAR-10 in {}: expected {batch}.bin or cifar10_jpeg_{batch}.tar.xz",
        folder.display()
    );
    let cached = cache.map(|cache| cache.join(format!("jpeg_{batch}.bin")));
    if let Some(cached) = cached.as_ref().filter(|path| path.exists()) {
        return whole(load_records(cached)?, cached).with_context(|| {
            format!(
                "in the cache; delete {} to decode it anew",
                cached.display()
            )
        });
    }
    let set = whole(load_archive(&archive, batch)?, &archive)?;
    if let Some(cached) = cached {
        fs::create_dir_all(cached.parent().expect("joined to a folder above"))?;
        write_atomically(&cached, &set.to_records())?;
    }
    Ok(set)
}

fn whole(set: Dataset, path: &Path) -> Result<Dataset> {
    ensure!(
        set.len() == BATCH_RECORDS,
        "{} has {} images, a CIFAR-10 batch has {BATCH_RECORDS}: the file is cut short",
        path.display(),
        set.len()
    );
    Ok(set)
}

/// Reads a file of 3,073-byte records: a label, then the planes.
///
/// # Errors
/// A file that cannot be read, has no whole number of records, or a label above 9.
pub fn load_records(path: &Path) -> Result<Dataset> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Dataset::from_records(&bytes, path)
}

/// Reads an xz-compressed tar of JPEG files named `<batch>/<record>_<label>.jpg`.
///
/// # Errors
/// A file that cannot be read or unpacked, a member with another name, a record twice or missing, a broken JPEG.
pub fn load_archive(path: &Path, batch: &str) -> Result<Dataset> {
    let members =
        unpack(path).with_context(|| format!("{} is cut short or corrupt", path.display()))?;
    let mut decoded: Vec<(usize, u8, Vec<u8>)> = members
        .par_iter()
        .map(|(name, bytes)| {
            let (record, label) = parse_name(name, batch).with_context(|| {
                format!("{}: unexpected member {}", path.display(), name.display())
            })?;
            let planes = decode(bytes)
                .with_context(|| format!("{}: member {}", path.display(), name.display()))?;
            Ok((record, label, planes))
        })
        .collect::<Result<_>>()?;
    decoded.sort_by_key(|(record, ..)| *record);
    let mut set = Dataset::empty([CHANNELS, SIDE, SIDE]);
    for (position, (record, label, planes)) in decoded.into_iter().enumerate() {
        ensure!(
            record == position,
            "{}: record {position} is missing or there twice",
            path.display()
        );
        set.labels.push(u16::from(label));
        set.images.extend_from_slice(&planes);
    }
    Ok(set)
}

fn unpack(path: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut packed = BufReader::new(fs::File::open(path)?);
    let mut tar = Bounded {
        bytes: Vec::new(),
        left: MAX_ARCHIVE,
    };
    lzma_rs::xz_decompress(&mut packed, &mut tar)
        .map_err(|error| anyhow::anyhow!("xz: {error:?}"))?;
    let mut members = Vec::new();
    for entry in tar::Archive::new(tar.bytes.as_slice()).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path()?.into_owned();
        ensure!(
            entry.size() <= MAX_JPEG,
            "{} has {} bytes",
            name.display(),
            entry.size()
        );
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        members.push((name, bytes));
    }
    Ok(members)
}

/// Collects what is written up to a limit, so that a small file cannot unpack into all memory.
struct Bounded {
    bytes: Vec<u8>,
    left: u64,
}

impl std::io::Write for Bounded {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.left = self.left.checked_sub(part.len() as u64).ok_or_else(|| {
            std::io::Error::other(format!("unpacks to more than {MAX_ARCHIVE} bytes"))
        })?;
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn parse_name(name: &Path, batch: &str) -> Option<(usize, u8)> {
    let stem = name
        .to_str()?
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

fn decode(bytes: &[u8]) -> Result<Vec<u8>> {
    let image = image::load_from_memory_with_format(bytes, image::ImageFormat::Jpeg)?.into_rgb8();
    if image.dimensions() != (SIDE as u32, SIDE as u32) {
        bail!("is {}x{}, not {SIDE}x{SIDE}", image.width(), image.height());
    }
    let mut planes = vec![0; IMAGE];
    for (position, pixel) in image.pixels().enumerate() {
        for channel in 0..CHANNELS {
            planes[channel * PLANE + position] = pixel.0[channel];
        }
    }
    Ok(planes)
}

/// Mean and standard deviation per channel, of pixels scaled to 0..1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Per-channel mean.
    pub mean: Vec<f32>,
    /// Per-channel standard deviation.
    pub std: Vec<f32>,
}

impl Normalisation {
    /// That of the training images of CIFAR-10, JPEG quality 75.
    pub fn cifar10() -> Self {
        Self {
            mean: vec![0.4913, 0.4821, 0.4465],
            std: vec![0.2452, 0.2428, 0.2606],
        }
    }

    /// Writes the normalised image to `out`.
    pub fn apply(&self, image: &[u8], out: &mut [f32]) {
        let plane = image.len() / self.mean.len();
        let planes = out.chunks_mut(plane).zip(image.chunks(plane));
        for ((out, image), (mean, std)) in planes.zip(self.mean.iter().zip(&self.std)) {
            let (scale, shift) = (1.0 / (255.0 * std), -mean / std);
            for (out, byte) in out.iter_mut().zip(image) {
                *out = f32::from(*byte) * scale + shift;
            }
        }
    }
}

/// Normalised pixels of the images named by `indices`, without augmentation.
pub fn plain_batch(set: &Dataset, indices: &[usize], normalisation: &Normalisation) -> Vec<f32> {
    let bytes = set.bytes();
    let mut out = vec![0.0; indices.len() * bytes];
    out.par_chunks_mut(bytes)
        .zip(indices)
        .for_each(|(out, index)| normalisation.apply(set.image(*index), out));
    out
}

/// Normalised pixels, each image flipped by chance, cropped at a random offset, with reflection at the border, and cut
/// out.
///
/// Image `i` draws from its own generator, `(seed, i)`: the batch does not depend on the number of threads.
pub fn augmented_batch(
    set: &Dataset,
    indices: &[usize],
    normalisation: &Normalisation,
    augmentation: &Augmentation,
    seed: u64,
) -> Vec<f32> {
    let ([channels, height, width], bytes) = (set.shape, set.bytes());
    let plane = height * width;
    let shift = augmentation.shift;
    let mut out = vec![0.0; indices.len() * bytes];
    out.par_chunks_mut(bytes)
        .zip(indices)
        .enumerate()
        .for_each(|(position, (out, index))| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(position as u64);
            let mut draw = |bound: usize| (rng.next_u32() as usize) % bound;
            let (dx, dy) = (draw(2 * shift + 1), draw(2 * shift + 1));
            let flip = draw(2) == 1 && augmentation.flip;
            let source = set.image(*index);
            let mut moved = vec![0u8; bytes];
            for y in 0..height {
                let from_y = reflect(y + dy, shift, height);
                for x in 0..width {
                    let column = if flip { width - 1 - x } else { x };
                    let from_x = reflect(column + dx, shift, width);
                    for channel in 0..channels {
                        moved[channel * plane + y * width + x] =
                            source[channel * plane + from_y * width + from_x];
                    }
                }
            }
            normalisation.apply(&moved, out);
            let cut = augmentation.cutout;
            if cut > 0 {
                let (top, left) = (draw(height), draw(width));
                let rows = top.saturating_sub(cut / 2)..(top + cut.div_ceil(2)).min(height);
                for y in rows {
                    let columns = left.saturating_sub(cut / 2)..(left + cut.div_ceil(2)).min(width);
                    for x in columns {
                        for channel in 0..channels {
                            out[channel * plane + y * width + x] = 0.0;
                        }
                    }
                }
            }
        });
    out
}

/// Position `padded - shift`, mirrored into `0..side` at its ends.
fn reflect(padded: usize, shift: usize, side: usize) -> usize {
    let position = padded.abs_diff(shift);
    if position < side {
        position
    } else {
        2 * (side - 1) - position
    }
}

/// A random order of `0..count`.
pub fn permutation(count: usize, rng: &mut impl RngCore) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, (rng.next_u64() % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One image whose red value tells the position and whose other planes are flat.
    fn gradient() -> Dataset {
        let mut images = vec![7; IMAGE];
        for y in 0..SIDE {
            for x in 0..SIDE {
                images[y * SIDE + x] = (4 * y + 3 * x) as u8;
            }
        }
        Dataset {
            shape: [CHANNELS, SIDE, SIDE],
            images,
            labels: vec![0],
        }
    }

    #[test]
    fn reflection_repeats_no_border_pixel() {
        let positions: Vec<usize> = [0, 3, 4, 35, 36, 39]
            .map(|padded| reflect(padded, 4, SIDE))
            .into();
        assert_eq!(positions, [4, 1, 0, 31, 30, 27]);
    }

    #[test]
    fn augmentation_shifts_and_flips_whole_images() {
        let set = gradient();
        let unit = Normalisation {
            mean: vec![0.0; CHANNELS],
            std: vec![1.0 / 255.0; CHANNELS],
        };
        let (mut flipped, mut shifts) = (0, std::collections::BTreeSet::new());
        for seed in 0..64 {
            let moved = augmented_batch(&set, &[0], &unit, &Augmentation::default(), seed);
            // The centre pixels lie in the image for every shift, so their slopes are those of the gradient.
            let at = |y: usize, x: usize| moved[y * SIDE + x].round() as i32;
            let (down, right) = (at(16, 15) - at(15, 15), at(15, 16) - at(15, 15));
            assert_eq!(down, 4, "seed {seed}");
            assert!(right.abs() == 3, "seed {seed}: slope {right}");
            flipped += usize::from(right < 0);
            shifts.insert(at(15, 15));
            assert!(
                moved[PLANE..].iter().all(|v| v.round() == 7.0),
                "seed {seed}"
            );
        }
        assert!((16..48).contains(&flipped), "{flipped} of 64 flipped");
        assert!(shifts.len() > 20, "{} different crops", shifts.len());
    }

    #[test]
    fn without_shift_the_image_comes_back_or_its_mirror() {
        let set = gradient();
        let normalisation = Normalisation::cifar10();
        let still = Augmentation {
            shift: 0,
            ..Augmentation::default()
        };
        let plain = plain_batch(&set, &[0], &normalisation);
        let mirrored: Vec<f32> = plain
            .chunks(SIDE)
            .flat_map(|row| row.iter().rev().copied())
            .collect();
        for seed in 0..8 {
            let moved = augmented_batch(&set, &[0], &normalisation, &still, seed);
            assert!(moved == plain || moved == mirrored, "seed {seed}");
        }
    }

    #[test]
    fn a_permutation_holds_each_index_once() {
        let mut order = permutation(1000, &mut ChaCha8Rng::seed_from_u64(1));
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }
}
