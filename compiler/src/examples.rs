//! Examples for calibration and evaluation: pictures from record files, folders or archives, real
//! values from NumPy arrays and tables, or either drawn.

pub mod draw;
mod values;

use anyhow::{Context, Result, bail, ensure};
use pi_ir::value_file::Column;
use pi_ir::{Graph, Input, InputError, Op, Preprocessing, Shape, jpeg};
use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

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

/// Most bytes that an archive may unpack to; the 10,000 images of a CIFAR-10 batch are 30 MB.
const MAX_ARCHIVE: usize = 512 << 20;
/// Most bytes of an image file.
const MAX_IMAGE: u64 = 64 << 20;

impl<'a> Reads<'a> {
    /// What a graph reads.
    ///
    /// # Errors
    /// If its first node is not an input; a verified graph's is.
    pub fn of(graph: &'a Graph) -> Result<Self> {
        match graph.nodes.first().map(|node| &node.op) {
            Some(Op::Input { shape }) => Ok(Reads {
                shape: *shape,
                preprocessing: &graph.preprocessing,
                classes: &graph.classes,
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
            source: format!("synthetic, {count} images, seed {seed}"),
            inputs: (0..count as u64)
                .map(|i| draw::image(shape, seed.wrapping_add(i)).into())
                .collect(),
            labels: Vec::new(),
        }
    }

    /// Reads at most `limit` examples, spread evenly over what there is.
    ///
    /// For a network of pictures as [`Examples::load`]. For one of real values, the path may be
    /// `synthetic`; a `.npy` file of one example or several; a `.csv` file with one example a row;
    /// or a folder of either, whose names may end in `_<label>`.
    ///
    /// # Errors
    /// If nothing can be read, a file is not what its name says, there are not as many labels as
    /// examples, or a label is no class.
    pub fn read(data: &Data<'_>, reads: &Reads<'_>, limit: usize) -> Result<Self> {
        if reads.preprocessing.is_values() {
            return values::read(data, reads, limit);
        }
        ensure!(
            data.label_column.is_none(),
            "--label-column names a column of a table, and the network reads pictures"
        );
        match data.labels {
            None => Self::load(data.path, reads.shape, limit),
            Some(labels) => {
                let mut images = Self::load(data.path, reads.shape, usize::MAX)?;
                images.label(&values::labels(labels)?, reads)?;
                images.thin(limit);
                Ok(images)
            }
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
        self.inputs = spread(&self.inputs, limit).cloned().collect();
        self.labels = spread(&self.labels, limit).copied().collect();
    }

    /// Reads at most `limit` images, spread evenly over what `path` holds.
    ///
    /// `path` may be `synthetic`; a `.bin` file of records (label byte, then the planes, as
    /// CIFAR-10 has them); a `.npy` file of whole numbers from 0 to 255; a `.tar.xz` archive of
    /// images; an image; or a folder of any of these. Images of another size are resized. File
    /// names that end in `_<label>` give labels.
    ///
    /// # Errors
    /// If nothing can be read, or a file is not what its name says.
    pub fn load(path: &Path, shape: Shape, limit: usize) -> Result<Self> {
        if path.as_os_str() == "synthetic" {
            return Ok(Self::synthetic(shape, limit, 0));
        }
        let mut images = Examples::from(path);
        let files = list(path, IMAGES)?;
        ensure!(
            !files.is_empty(),
            "no images in {}: expected .bin records, .npy arrays, .tar.xz archives, .png, .jpg or \
             .webp files, or the word `synthetic`",
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
            if images.inputs.len() >= limit {
                break;
            }
            let room = share.min(limit - images.inputs.len());
            images
                .read_images(file, shape, room)
                .with_context(|| format!("in {}", file.display()))?;
        }
        if images.labels.len() != images.inputs.len() {
            images.labels.clear();
        }
        Ok(images)
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

    fn read_images(&mut self, file: &Path, shape: Shape, limit: usize) -> Result<()> {
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
                self.inputs.push(record[1..].to_vec().into());
            }
            return Ok(());
        }
        if has_suffix(file, ".npy") {
            let array = values::open(file, None)?;
            let indices: Vec<usize> = (0..array.count(shape)?).collect();
            for &index in spread(&indices, limit) {
                self.inputs.push(array.bytes(shape, index)?.into());
            }
            self.labels
                .extend(label(file).filter(|_| indices.len() == 1));
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
            self.inputs.push(image.into());
            self.labels.extend(label(name));
        }
        Ok(())
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

/// Ends of the names of files of pictures.
const IMAGES: &[&str] = &[".bin", ".npy", ".tar.xz", ".png", ".jpg", ".jpeg", ".webp"];

/// The files of a path whose names end so, by name; training batches before test batches stay apart
/// by the caller's choice of path.
fn list(path: &Path, suffixes: &[&str]) -> Result<Vec<PathBuf>> {
    let usable = |p: &Path| suffixes.iter().any(|suffix| has_suffix(p, suffix));
    if path.is_file() {
        if !usable(path) {
            bail!(
                "the name of {} ends in none of {}, which are what this network reads",
                path.display(),
                suffixes.join(", ")
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
    ensure!(
        shape.c == 3 || shape.c == 1,
        "the network reads {} channels, and images have 1 or 3: use .npy arrays or .bin records",
        shape.c
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
    use pi_ir::value_file::Array;

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
        let images = Examples::load(&path, SHAPE, 100).unwrap();
        assert_eq!(images.labels, [1, 2, 7]);
        assert_eq!(images.inputs[2], vec![21u8; 48].into());
        assert_eq!(Examples::load(&path, SHAPE, 2).unwrap().labels, [1, 7]);
        fs::write(&path, [1; 50]).unwrap();
        let error = format!("{:#}", Examples::load(&path, SHAPE, 2).unwrap_err());
        assert!(error.contains("not a whole number of records"), "{error}");
    }

    #[test]
    fn a_folder_of_images_is_resized_and_labelled_by_name() {
        let directory = tempfile::tempdir().unwrap();
        save(&directory.path().join("a_3.png"), 9, [10, 20, 30]);
        save(&directory.path().join("b_5.png"), 4, [40, 50, 60]);
        fs::write(directory.path().join("notes.txt"), "no image").unwrap();
        let images = Examples::load(directory.path(), SHAPE, 10).unwrap();
        assert_eq!(images.labels, [3, 5]);
        let planes = |colour: [u8; 3]| colour.iter().flat_map(|&v| [v; 16]).collect::<Vec<_>>();
        assert_eq!(
            images.inputs,
            [planes([10, 20, 30]).into(), planes([40, 50, 60]).into()]
        );
        let grey =
            Examples::load(&directory.path().join("a_3.png"), Shape::new(1, 2, 2), 1).unwrap();
        assert_eq!(grey.inputs[0].len(), 4);
    }

    #[test]
    fn what_is_no_image_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let empty = format!(
            "{:#}",
            Examples::load(directory.path(), SHAPE, 1).unwrap_err()
        );
        assert!(empty.contains("no images in"), "{empty}");
        for name in ["broken.png", "broken.tar.xz"] {
            let path = directory.path().join(name);
            fs::write(&path, "neither").unwrap();
            let error = format!("{:#}", Examples::load(&path, SHAPE, 1).unwrap_err());
            assert!(error.contains(name), "{error}");
        }
        assert!(Examples::load(&directory.path().join("absent"), SHAPE, 1).is_err());
    }

    #[test]
    fn pictures_that_are_cut_short_are_named_and_webp_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let picture = image::RgbImage::from_fn(143, 97, |x, y| image::Rgb([x as u8, y as u8, 9]));
        for name in ["cut.jpg", "cut.webp", "cut.png"] {
            let path = directory.path().join(name);
            picture.save(&path).unwrap();
            assert!(Examples::load(&path, SHAPE, 1).is_ok(), "{name}");
            let bytes = fs::read(&path).unwrap();
            for end in [bytes.len() / 2, bytes.len() * 9 / 10] {
                fs::write(&path, &bytes[..end]).unwrap();
                let error = format!("{:#}", Examples::load(&path, SHAPE, 1).unwrap_err());
                assert!(error.contains(name), "{error}");
                assert!(
                    !name.ends_with("jpg") || error.contains("is cut short"),
                    "{error}"
                );
            }
        }
        let path = directory.path().join("flat_4.webp");
        save(&path, 4, [10, 20, 30]);
        let images = Examples::load(&path, SHAPE, 1).unwrap();
        let expected = [[10; 16], [20; 16], [30; 16]].concat();
        assert_eq!(images.inputs[0], Input::Bytes(expected));
        assert_eq!(images.labels, [4]);
    }

    #[test]
    fn drawn_images_repeat_with_their_seed_and_span_the_range() {
        let drawn = Examples::synthetic(Shape::new(3, 16, 16), 20, 5);
        assert_eq!(drawn, Examples::synthetic(Shape::new(3, 16, 16), 20, 5));
        assert_ne!(
            drawn.inputs,
            Examples::synthetic(Shape::new(3, 16, 16), 20, 6).inputs
        );
        let bytes = |input: &Input| match input {
            Input::Bytes(bytes) => bytes.clone(),
            Input::Values(_) => panic!("an image has bytes"),
        };
        let all: Vec<u8> = drawn.inputs.iter().flat_map(bytes).collect();
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
        let images = Examples::load(&path, Shape::new(3, 32, 32), 50).unwrap();
        assert_eq!((images.inputs.len(), images.labels.len()), (50, 50));
        // The first record of the test batch is a cat.
        assert_eq!(images.labels[0], 3);
    }

    #[test]
    fn arrays_of_bytes_are_pictures_of_any_channels() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bands.npy");
        let bytes: Vec<u8> = (0..3 * 20).collect();
        fs::write(&path, Array::file("|u1", &[3, 5, 2, 2], &bytes)).unwrap();
        let shape = Shape::new(5, 2, 2);
        let images = Examples::load(&path, shape, 10).unwrap();
        let expected = bytes.chunks(20).map(|image| image.to_vec().into());
        assert_eq!(images.inputs, expected.collect::<Vec<Input>>());
        let refused = |path: &Path| format!("{:#}", Examples::load(path, shape, 1).unwrap_err());
        // A whole number that is no byte, and a real one.
        let large = [7, 0, 0, 1].repeat(10);
        fs::write(&path, Array::file("<i2", &[5, 2, 2], &large)).unwrap();
        assert!(refused(&path).contains("element 1 is 256: save whole numbers"));
        fs::write(&path, Array::file("<f4", &[5, 2, 2], &[0; 80])).unwrap();
        assert!(refused(&path).contains("element 0 is 0, a real number"));
        let picture = directory.path().join("picture.png");
        save(&picture, 2, [1, 2, 3]);
        assert!(refused(&picture).contains("reads 5 channels, and images have 1 or 3"));
    }
}
