//! A look at a data set before training: counts, statistics, and images as training sees them.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::Device;

use super::{Augmentation, DataConfig, Dataset, DeviceSet, Normalisation, Source};

/// Counts and statistics of a configured set.
#[derive(Clone, Debug)]
pub struct Summary {
    description: String,
    shape: [usize; 3],
    /// Name of each class and its training, held-out and test images.
    classes: Vec<(String, [usize; 3])>,
    normalisation: Normalisation,
    train: Dataset,
}

impl Summary {
    /// Reads a set.
    ///
    /// # Errors
    /// As [`Source::open`], [`Source::sets`] and [`Source::test`].
    pub fn of(config: &DataConfig) -> Result<Self> {
        let source = Source::open(config)?;
        let (sets, test) = (source.sets()?, source.test()?);
        let mut counts = vec![[0; 3]; sets.classes.len()];
        for (part, set) in [&sets.train, &sets.holdout, &test].into_iter().enumerate() {
            for label in &set.labels {
                counts[usize::from(*label)][part] += 1;
            }
        }
        Ok(Self {
            description: sets.description,
            shape: sets.train.shape,
            classes: sets.classes.into_iter().zip(counts).collect(),
            normalisation: sets.normalisation,
            train: sets.train,
        })
    }

    /// Writes a PNG of training images and what the augmentation makes of them; see
    /// [`contact_sheet`].
    ///
    /// # Errors
    /// As [`contact_sheet`].
    pub fn sheet(&self, augmentation: &Augmentation, seed: u64, path: &Path) -> Result<()> {
        contact_sheet(&self.train, augmentation, seed, path)
    }
}

/// Classes that are listed one per line; of more, the numbers of images are summed up.
const LISTED: usize = 20;

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [c, h, w] = self.shape;
        writeln!(f, "{}", self.description)?;
        writeln!(
            f,
            "images of {h}x{w}, {c} channels, {} classes",
            self.classes.len()
        )?;
        match &self.normalisation {
            Normalisation::Channels { mean, std } => {
                writeln!(f, "mean {mean:?}, deviation {std:?}")?;
            }
            Normalisation::Image { floor } => writeln!(
                f,
                "each image less its mean, over its deviation (at least {floor} of 255)"
            )?,
        }
        let width = self
            .classes
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0)
            .max(5);
        writeln!(
            f,
            "{:width$}  {:>8} {:>8} {:>8}",
            "class", "train", "held out", "test"
        )?;
        let mut line = |name: &str, [train, holdout, test]: [usize; 3]| {
            writeln!(f, "{name:width$}  {train:>8} {holdout:>8} {test:>8}")
        };
        let all = |of: fn(usize, usize) -> usize| -> [usize; 3] {
            let counts = self.classes.iter().map(|(_, counts)| *counts);
            counts
                .reduce(|a, b| std::array::from_fn(|part| of(a[part], b[part])))
                .unwrap_or_default()
        };
        if self.classes.len() <= LISTED {
            for (name, counts) in &self.classes {
                line(name, *counts)?;
            }
        } else {
            line("least", all(usize::min))?;
            line("most", all(usize::max))?;
        }
        line("all", all(|a, b| a + b))
    }
}

/// Rows of a contact sheet at most.
const ROWS: usize = 12;
/// Columns: the image itself, then augmented ones.
const COLUMNS: usize = 10;
/// Pixels between tiles.
const GAP: usize = 2;

/// Writes a PNG that shows, a row for each of the first classes, an image and nine draws of its
/// augmentation.
///
/// # Errors
/// A set without images, a shift that is too large for it, the file system's.
pub fn contact_sheet(
    set: &Dataset,
    augmentation: &Augmentation,
    seed: u64,
    path: &Path,
) -> Result<()> {
    augmentation.check(set.shape)?;
    let mut shown: Vec<usize> = Vec::new();
    for (index, label) in set.labels.iter().enumerate() {
        if shown.len() < ROWS && shown.iter().all(|other| set.labels[*other] != *label) {
            shown.push(index);
        }
    }
    shown.sort_by_key(|index| set.labels[*index]);
    anyhow::ensure!(!shown.is_empty(), "no image to show");
    let [channels, height, width] = set.shape;
    // Small images are enlarged to about 64 pixels.
    let zoom = (64 / height.max(width)).max(1);
    let (down, across) = (zoom * height + GAP, zoom * width + GAP);
    let (sheet_width, sheet_height) = (COLUMNS * across + GAP, shown.len() * down + GAP);
    let mut sheet = image::RgbImage::from_pixel(
        sheet_width as u32,
        sheet_height as u32,
        image::Rgb([255; 3]),
    );
    // Any normalisation that can be undone, whatever that of the run: a cutout is shown in grey.
    let (mean, std) = (0.5f32, 0.25f32);
    let normalisation = Normalisation::Channels {
        mean: vec![mean; channels],
        std: vec![std; channels],
    };
    let byte = |value: f32| ((value * std + mean) * 255.0).round().clamp(0.0, 255.0) as u8;
    let few = DeviceSet::new(set.ordered(&shown), normalisation, &Device::flex());
    let rows: Vec<usize> = (0..shown.len()).collect();
    for column in 0..COLUMNS {
        let batch = match column {
            0 => few.plain(&rows),
            _ => few.batch(&rows, augmentation, seed.wrapping_add(column as u64)),
        };
        let pixels: Vec<f32> = batch.into_data().try_into_vec().expect("batches are f32");
        for (row, pixels) in pixels.chunks(set.bytes()).enumerate() {
            for y in 0..zoom * height {
                for x in 0..zoom * width {
                    let at = (y / zoom) * width + x / zoom;
                    let value = |channel: usize| {
                        let channel = channel.min(channels - 1);
                        byte(pixels[channel * height * width + at])
                    };
                    let (x, y) = (GAP + column * across + x, GAP + row * down + y);
                    let pixel = image::Rgb([value(0), value(1), value(2)]);
                    sheet.put_pixel(x as u32, y as u32, pixel);
                }
            }
        }
    }
    sheet
        .save_with_format(path, image::ImageFormat::Png)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::files::tests::error;
    use super::*;

    fn config() -> DataConfig {
        DataConfig {
            kind: Kind::Procedural,
            train_images: Some(60),
            test_images: Some(20),
            holdout: 10,
            ..DataConfig::default()
        }
    }

    #[test]
    fn a_summary_counts_each_part() {
        let text = Summary::of(&config()).unwrap().to_string();
        assert!(
            text.starts_with(
                "drawn shapes, seed 0, 32x32\nimages of 32x32, 3 channels, 10 classes"
            ),
            "{text}"
        );
        let line = |name: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().skip(1).map(str::to_owned).collect()
        };
        assert_eq!(
            (line("star"), line("all")),
            (
                vec!["5".to_owned(), "1".into(), "2".into()],
                vec!["50".to_owned(), "10".into(), "20".into()]
            )
        );
    }

    #[test]
    fn the_sheet_shows_each_class_and_its_augmentations() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sheet.png");
        let summary = Summary::of(&config()).unwrap();
        summary
            .sheet(
                &Augmentation {
                    cutout: 10,
                    ..Augmentation::default()
                },
                3,
                &path,
            )
            .unwrap();
        let sheet = image::open(&path).unwrap().into_rgb8();
        assert_eq!(sheet.dimensions(), (10 * 66 + 2, 10 * 66 + 2));
        // The first tile of row r is the image of class r itself, at twice its size.
        let index = summary
            .train
            .labels
            .iter()
            .position(|label| *label == 4)
            .unwrap();
        let image = summary.train.image(index);
        for (x, y) in [(0, 0), (13, 29), (31, 31)] {
            let pixel = sheet.get_pixel(2 + 2 * x, 2 + 4 * 66 + 2 * y).0;
            let at = (y * 32 + x) as usize;
            assert_eq!(pixel, [image[at], image[1024 + at], image[2048 + at]]);
        }
        // The second is another image.
        let tile = |column: u32| -> Vec<[u8; 3]> {
            (0..1024)
                .map(|i| {
                    sheet
                        .get_pixel(2 + column * 66 + 2 * (i % 32), 2 + 2 * (i / 32))
                        .0
                })
                .collect()
        };
        assert_ne!(tile(0), tile(1));
        let wide = Augmentation {
            shift: 40,
            ..Augmentation::default()
        };
        assert!(error(summary.sheet(&wide, 0, &path)).contains("below the image's side"));
        assert!(
            error(summary.sheet(&Augmentation::default(), 0, &folder.path().join("no/a.png")))
                .contains("cannot write")
        );
    }
}
