//! Images for calibration and evaluation, read from record files, folders or archives, or drawn.

pub mod draw;

use anyhow::{Context, Result, bail, ensure};
use pi_ir::{Preprocessing, Shape, jpeg};
use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Images of one shape, as bytes `[c][h][w]`, with their labels where the source has any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Source of the images, for reports.
    pub source: String,
    /// One image each.
    pub pixels: Vec<Vec<u8>>,
    /// One class per image, or empty.
    pub labels: Vec<u32>,
}

/// Most bytes that an archive may unpack to; the 10,000 images of a CIFAR-10 batch are 30 MB.
const MAX_ARCHIVE: usize = 512 << 20;
/// Most bytes of an image file.
const MAX_IMAGE: u64 = 64 << 20;

impl Images {
    /// `count` images drawn by [`draw`], for networks whose training data is not at hand.
    pub fn synthetic(shape: Shape, count: usize, seed: u64) -> Self {
        Images {
            source: format!("synthetic, {count} images, seed {seed}"),
            pixels: (0..count as u64)
                .map(|i| draw::image(shape, seed.wrapping_add(i)))
                .collect(),
            labels: Vec::new(),
        }
    }

    /// Reads at most `limit` images, spread evenly over what `path` holds.
    ///
    /// `path` may be `synthetic`; a `.bin` file of records (label byte, then the planes, as
    /// CIFAR-10 has them); a `.tar.xz` archive of images; an image; or a folder of any of these.
    /// Images of another size are resized. File names that end in `_<label>` give labels.
    ///
    /// # Errors
    /// If nothing can be read, or a file is not what its name says.
    pub fn load(path: &Path, shape: Shape, limit: usize) -> Result<Self> {
        if path.as_os_str() == "synthetic" {
            return Ok(Self::synthetic(shape, limit, 0));
        }
        ensure!(
            shape.c == 3 || shape.c == 1,
            "the network reads {} channels: images have 1 or 3; use a .bin file of records",
            shape.c
        );
        let mut images = Images {
            source: path.file_name().map_or_else(
                || path.display().to_string(),
                |n| n.to_string_lossy().into_owned(),
            ),
            pixels: Vec::new(),
            labels: Vec::new(),
        };
        let files = list(path)?;
        ensure!(
            !files.is_empty(),
            "no images in {}: expected .bin records, .tar.xz archives, .png, .jpg or .webp files, \
             or the word `synthetic`",
            path.display()
        );
        // Archives cost seconds each: do not open more of them than needed.
        let bulky = files.iter().filter(|f| !is_image(f)).count();
        let share = if bulky == files.len() {
            limit.div_ceil(bulky)
        } else {
            limit
        };
        let stride = if bulky == 0 {
            (files.len() / limit.max(1)).max(1)
        } else {
            1
        };
        for file in files.iter().step_by(stride) {
            if images.pixels.len() >= limit {
                break;
            }
            let room = share.min(limit - images.pixels.len());
            images
                .read(file, shape, room)
                .with_context(|| format!("in {}", file.display()))?;
        }
        if images.labels.len() != images.pixels.len() {
            images.labels.clear();
        }
        Ok(images)
    }

    fn read(&mut self, file: &Path, shape: Shape, limit: usize) -> Result<()> {
        if has_suffix(file, ".bin") {
            let bytes = fs::read(file)?;
            let record = 1 + shape.len();
            ensure!(
                !bytes.is_empty() && bytes.len().is_multiple_of(record),
                "{} bytes are not a whole number of records of {record} bytes (a label and {shape} \
                 pixels): the file is cut short or made for another network",
                bytes.len()
            );
            let records: Vec<&[u8]> = bytes.chunks_exact(record).collect();
            for record in spread(&records, limit) {
                self.labels.push(u32::from(record[0]));
                self.pixels.push(record[1..].to_vec());
            }
            return Ok(());
        }
        let images = if has_suffix(file, ".tar.xz") {
            unpack(file)?
        } else {
            let size = fs::metadata(file)?.len();
            ensure!(size <= MAX_IMAGE, "{size} bytes are too many for an image");
            vec![(file.to_path_buf(), fs::read(file)?)]
        };
        for (name, bytes) in spread(&images, limit) {
            let image = decode(bytes, shape).with_context(|| name.display().to_string())?;
            self.pixels.push(image);
            self.labels.extend(label(name));
        }
        Ok(())
    }

    /// Preprocessed single-precision images, as the float interpreter reads them.
    pub fn reals(&self, preprocessing: &Preprocessing) -> Vec<Vec<f32>> {
        let one = |pixels: &Vec<u8>| preprocessing.reals(pixels);
        self.pixels.iter().map(one).collect()
    }
}

fn spread<T>(all: &[T], limit: usize) -> impl Iterator<Item = &T> {
    let step = all.len().div_ceil(limit.max(1)).max(1);
    all.iter().step_by(step)
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase());
    name.is_some_and(|name| name.ends_with(suffix))
}

fn is_image(path: &Path) -> bool {
    [".png", ".jpg", ".jpeg", ".webp"]
        .iter()
        .any(|suffix| has_suffix(path, suffix))
}

/// The readable files of a path, by name; training batches before test batches stay apart by the
/// caller's choice of path.
fn list(path: &Path) -> Result<Vec<PathBuf>> {
    let usable = |p: &Path| is_image(p) || has_suffix(p, ".bin") || has_suffix(p, ".tar.xz");
    if path.is_file() {
        if !usable(path) {
            bail!(
                "{} is not a .bin, .tar.xz, .png, .jpg or .webp file",
                path.display()
            );
        }
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let file = entry?.path();
        if file.is_file() && usable(&file) {
            files.push(file);
        }
    }
    files.sort();
    // A whole data set: calibrate on training images only.
    if files.iter().any(|f| is_training(f)) {
        files.retain(|f| is_training(f));
    }
    Ok(files)
}

fn is_training(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    !is_image(path)
        && (name.contains("data_batch") || name.contains("train"))
        && !name.contains("lossless")
}

/// `.../00012_3.jpg` has label 3.
fn label(name: &Path) -> Option<u32> {
    let stem = name.file_stem()?.to_str()?;
    stem.rsplit_once('_')?.1.parse().ok()
}

fn unpack(path: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut packed = BufReader::new(fs::File::open(path)?);
    let mut bytes = Bounded(Vec::new());
    lzma_rs::xz_decompress(&mut packed, &mut bytes)
        .map_err(|error| anyhow::anyhow!("cut short or corrupt: {error:?}"))?;
    let mut members = Vec::new();
    for entry in tar::Archive::new(&bytes.0[..]).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        if is_image(&name) {
            let mut member = Vec::new();
            entry.read_to_end(&mut member)?;
            members.push((name, member));
        }
    }
    ensure!(
        !members.is_empty(),
        "the archive has no .png, .jpg or .webp members"
    );
    members.sort();
    Ok(members)
}

/// Memory with an end, so that a small file cannot unpack into all of it.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + part.len() > MAX_ARCHIVE {
            return Err(std::io::Error::other(format!(
                "unpacks to more than {MAX_ARCHIVE} bytes"
            )));
        }
        self.0.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn decode(bytes: &[u8], shape: Shape) -> Result<Vec<u8>> {
    ensure!(
        !jpeg::is_cut_short(bytes),
        "the picture is cut short: it ends before its end marker; get the file again"
    );
    let mut reader = image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(1 << 14);
    limits.max_image_height = Some(1 << 14);
    reader.limits(limits);
    let mut image = reader.decode()?;
    if (image.width(), image.height()) != (shape.w, shape.h) {
        image = image.resize_exact(shape.w, shape.h, image::imageops::FilterType::Triangle);
    }
    if shape.c == 1 {
        return Ok(image.into_luma8().into_raw());
    }
    let rgb = image.into_rgb8();
    let channel = |c: usize| rgb.pixels().map(move |pixel| pixel.0[c]);
    Ok((0..3).flat_map(channel).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape::new(3, 4, 4);

    fn save(path: &Path, side: u32, colour: [u8; 3]) {
        image::RgbImage::from_pixel(side, side, image::Rgb(colour))
            .save(path)
            .unwrap();
    }

    #[test]
    fn records_keep_labels_and_planes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("batch.bin");
        let record = |label: u8| [vec![label], vec![label * 3; 48]].concat();
        fs::write(&path, [record(1), record(2), record(7)].concat()).unwrap();
        let images = Images::load(&path, SHAPE, 100).unwrap();
        assert_eq!(images.labels, [1, 2, 7]);
        assert_eq!(images.pixels[2], vec![21; 48]);
        assert_eq!(Images::load(&path, SHAPE, 2).unwrap().labels, [1, 7]);
        fs::write(&path, [1; 50]).unwrap();
        let error = format!("{:#}", Images::load(&path, SHAPE, 2).unwrap_err());
        assert!(error.contains("not a whole number of records"), "{error}");
    }

    #[test]
    fn a_folder_of_images_is_resized_and_labelled_by_name() {
        let directory = tempfile::tempdir().unwrap();
        save(&directory.path().join("a_3.png"), 9, [10, 20, 30]);
        save(&directory.path().join("b_5.png"), 4, [40, 50, 60]);
        fs::write(directory.path().join("notes.txt"), "no image").unwrap();
        let images = Images::load(directory.path(), SHAPE, 10).unwrap();
        assert_eq!(images.labels, [3, 5]);
        let planes = |colour: [u8; 3]| colour.iter().flat_map(|&v| [v; 16]).collect::<Vec<_>>();
        assert_eq!(images.pixels, [planes([10, 20, 30]), planes([40, 50, 60])]);
        let grey = Images::load(&directory.path().join("a_3.png"), Shape::new(1, 2, 2), 1).unwrap();
        assert_eq!(grey.pixels[0].len(), 4);
    }

    #[test]
    fn what_is_no_image_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let empty = format!(
            "{:#}",
            Images::load(directory.path(), SHAPE, 1).unwrap_err()
        );
        assert!(empty.contains("no images in"), "{empty}");
        for name in ["broken.png", "broken.tar.xz"] {
            let path = directory.path().join(name);
            fs::write(&path, "neither").unwrap();
            let error = format!("{:#}", Images::load(&path, SHAPE, 1).unwrap_err());
            assert!(error.contains(name), "{error}");
        }
        assert!(Images::load(&directory.path().join("absent"), SHAPE, 1).is_err());
    }

    #[test]
    fn pictures_that_are_cut_short_are_named_and_webp_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let picture = image::RgbImage::from_fn(143, 97, |x, y| image::Rgb([x as u8, y as u8, 9]));
        for name in ["cut.jpg", "cut.webp", "cut.png"] {
            let path = directory.path().join(name);
            picture.save(&path).unwrap();
            assert!(Images::load(&path, SHAPE, 1).is_ok(), "{name}");
            let bytes = fs::read(&path).unwrap();
            for end in [bytes.len() / 2, bytes.len() * 9 / 10] {
                fs::write(&path, &bytes[..end]).unwrap();
                let error = format!("{:#}", Images::load(&path, SHAPE, 1).unwrap_err());
                assert!(error.contains(name), "{error}");
                assert!(
                    !name.ends_with("jpg") || error.contains("is cut short"),
                    "{error}"
                );
            }
        }
        let path = directory.path().join("flat_4.webp");
        save(&path, 4, [10, 20, 30]);
        let images = Images::load(&path, SHAPE, 1).unwrap();
        assert_eq!(images.pixels[0], [[10; 16], [20; 16], [30; 16]].concat());
        assert_eq!(images.labels, [4]);
    }

    #[test]
    fn drawn_images_repeat_with_their_seed_and_span_the_range() {
        let drawn = Images::synthetic(Shape::new(3, 16, 16), 20, 5);
        assert_eq!(drawn, Images::synthetic(Shape::new(3, 16, 16), 20, 5));
        assert_ne!(
            drawn.pixels,
            Images::synthetic(Shape::new(3, 16, 16), 20, 6).pixels
        );
        let all = drawn.pixels.concat();
        assert!(all.iter().any(|&v| v < 16) && all.iter().any(|&v| v > 240));
    }

    #[test]
    fn archives_of_the_data_set_load_with_labels() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared/data/cifar10/cifar10_jpeg_test_batch.tar.xz");
        if !path.exists() {
            eprintln!("skipped: {} is not here", path.display());
            return;
        }
        let images = Images::load(&path, Shape::new(3, 32, 32), 50).unwrap();
        assert_eq!((images.pixels.len(), images.labels.len()), (50, 50));
        // The first record of the test batch is a cat.
        assert_eq!(images.labels[0], 3);
    }
}
