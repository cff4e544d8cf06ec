//! MNIST (LeCun, Cortes, Burges) and Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): idx files, plain
//! or gzipped.
//!
//! The images are 28x28 and grey. They are padded to 32x32 with background (0) unless `data.size =
//! 28`, and stay one channel unless `data.channels = 3` repeats it for a network made for colour.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::decode::Raw;
use super::{DataConfig, Dataset, Kind, Part, Reader, files};

const SIDE: usize = 28;
const CLASSES: usize = 10;
/// The largest file, 60,000 images and 16 bytes of header, unpacks to 47 MB.
const MAX_FILE: u64 = 64 << 20;

const FASHION: [&str; CLASSES] = [
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
];

/// A set of idx files in a folder.
pub(super) struct Idx {
    kind: Kind,
    folder: PathBuf,
    side: usize,
    channels: usize,
}

impl Idx {
    pub(super) fn open(config: &DataConfig) -> Result<Self> {
        let idx = Self {
            kind: config.kind,
            folder: config.path.clone(),
            side: config.side(),
            channels: config.colours(),
        };
        for part in [Part::Train, Part::Test] {
            idx.find(part, "images-idx3")?;
            idx.find(part, "labels-idx1")?;
        }
        Ok(idx)
    }

    /// The file of a part under one of the names it goes by.
    fn find(&self, part: Part, what: &str) -> Result<PathBuf> {
        let stem = match part {
            Part::Train => format!("train-{what}-ubyte"),
            Part::Test => format!("t10k-{what}-ubyte"),
        };
        let dotted = stem.replace("-idx", ".idx");
        let names = [
            stem.clone(),
            format!("{stem}.gz"),
            dotted.clone(),
            format!("{dotted}.gz"),
        ];
        let mut paths = names.iter().map(|name| self.folder.join(name));
        paths.find(|path| path.is_file()).with_context(|| {
            format!(
                "no {stem} and no {stem}.gz in {}: data.path names the folder of the four files",
                self.folder.display()
            )
        })
    }
}

impl Reader for Idx {
    fn description(&self) -> String {
        match self.kind {
            Kind::FashionMnist => "Fashion-MNIST".to_owned(),
            _ => "MNIST".to_owned(),
        }
    }

    fn classes(&self) -> Vec<String> {
        match self.kind {
            Kind::FashionMnist => FASHION.map(str::to_owned).to_vec(),
            _ => (0..CLASSES).map(|digit| digit.to_string()).collect(),
        }
    }

    fn files(&self, _: Part) -> Result<Option<Vec<PathBuf>>> {
        Ok(None)
    }

    fn read(&self, part: Part) -> Result<Raw> {
        let count = match part {
            Part::Train => 60_000,
            Part::Test => 10_000,
        };
        let path = self.find(part, "images-idx3")?;
        let images = contents(&path)?;
        let images =
            parse(&images, &[count, SIDE, SIDE]).with_context(|| path.display().to_string())?;
        let path = self.find(part, "labels-idx1")?;
        let labels = contents(&path)?;
        let labels = parse(&labels, &[count]).with_context(|| path.display().to_string())?;
        if let Some(index) = labels
            .iter()
            .position(|label| usize::from(*label) >= CLASSES)
        {
            anyhow::bail!(
                "{}: label {index} is {}, above 9: the file is corrupt",
                path.display(),
                labels[index]
            );
        }
        Ok(Raw::Planes(Dataset {
            shape: [self.channels, self.side, self.side],
            images: padded(images, self.side, self.channels),
            labels: labels.iter().map(|label| u16::from(*label)).collect(),
        }))
    }
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "gz") {
        files::gunzip(path, MAX_FILE)
    } else {
        files::read(path)
    }
}

/// The values of an idx file of unsigned bytes: `0, 0, 8, dimensions`, each dimension as u32, big
/// endian, the values.
fn parse<'a>(bytes: &'a [u8], expected: &[usize]) -> Result<&'a [u8]> {
    let header = 4 + 4 * expected.len();
    ensure!(
        bytes.len() >= header,
        "it has {} bytes, less than an idx header of {header}: the file is cut short",
        bytes.len()
    );
    let magic = [0, 0, 8, expected.len() as u8];
    ensure!(
        bytes[..4] == magic,
        "it begins with {:?}, not with {magic:?}: it is no idx file of bytes in {} dimensions",
        &bytes[..4],
        expected.len()
    );
    let (words, _) = bytes[4..header].as_chunks::<4>();
    let dimensions: Vec<usize> = words
        .iter()
        .map(|word| u32::from_be_bytes(*word) as usize)
        .collect();
    ensure!(
        dimensions == expected,
        "it says it has {dimensions:?} values, expected {expected:?}: it is not the file \
         its name says"
    );
    let count: usize = expected.iter().product();
    ensure!(
        bytes.len() == header + count,
        "it has {} bytes, expected {}: the file is cut short or corrupt",
        bytes.len(),
        header + count
    );
    Ok(&bytes[header..])
}

/// Images with background around them, each plane `channels` times.
fn padded(images: &[u8], side: usize, channels: usize) -> Vec<u8> {
    let border = (side - SIDE) / 2;
    let mut out = Vec::with_capacity(images.len() / (SIDE * SIDE) * channels * side * side);
    for image in images.chunks_exact(SIDE * SIDE) {
        for _ in 0..channels {
            out.extend(std::iter::repeat_n(0, border * side));
            for row in image.chunks_exact(SIDE) {
                out.extend(std::iter::repeat_n(0, border));
                out.extend_from_slice(row);
                out.extend(std::iter::repeat_n(0, border));
            }
            out.extend(std::iter::repeat_n(0, border * side));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::super::files::tests::{error, shared};
    use super::super::{Normalisation, Source};
    use super::*;

    fn idx(dimensions: &[u32], values: impl Iterator<Item = u8>) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
        for dimension in dimensions {
            bytes.extend(dimension.to_be_bytes());
        }
        bytes.extend(values);
        bytes
    }

    fn write_set(folder: &Path, gzipped: bool) {
        for (stem, count) in [("train", 60_000u32), ("t10k", 10_000)] {
            let images = idx(
                &[count, 28, 28],
                (0..count * 784).map(|i| (i % 784 % 251) as u8),
            );
            let labels = idx(&[count], (0..count).map(|i| (i % 10) as u8));
            for (name, bytes) in [("images-idx3", images), ("labels-idx1", labels)] {
                let path = folder.join(format!("{stem}-{name}-ubyte"));
                if gzipped {
                    let level = flate2::Compression::fast();
                    let mut packed = flate2::write::GzEncoder::new(Vec::new(), level);
                    packed.write_all(&bytes).unwrap();
                    fs::write(path.with_added_extension("gz"), packed.finish().unwrap()).unwrap();
                } else {
                    fs::write(path, bytes).unwrap();
                }
            }
        }
    }

    fn config(folder: &Path) -> DataConfig {
        DataConfig {
            kind: Kind::Mnist,
            path: folder.to_owned(),
            holdout: 100,
            ..DataConfig::default()
        }
    }

    #[test]
    fn plain_and_gzipped_files_give_the_same_padded_images() {
        let (plain, gzipped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_set(plain.path(), false);
        write_set(gzipped.path(), true);
        let test = Source::open(&config(plain.path())).unwrap().test().unwrap();
        assert_eq!(
            Source::open(&config(gzipped.path()))
                .unwrap()
                .test()
                .unwrap(),
            test
        );
        assert_eq!(
            (test.shape, test.len(), test.labels[13]),
            ([1, 32, 32], 10_000, 3)
        );
        let image = test.image(5);
        assert!(image[..64].iter().all(|v| *v == 0) && image[960..].iter().all(|v| *v == 0));
        // Row 1 of the image is row 3 of the padded one; its first value is 28.
        assert_eq!(image[3 * 32..3 * 32 + 5], [0, 0, 28, 29, 30]);
        assert_eq!(image[4 * 32 - 4..4 * 32], [54, 55, 0, 0]);
    }

    #[test]
    fn size_and_channels_can_be_chosen() {
        let images: Vec<u8> = (0..2 * 784u32).map(|i| (i % 251) as u8).collect();
        assert_eq!(padded(&images, 28, 1), images);
        let colour = padded(&images, 28, 3);
        assert_eq!(colour.len(), 3 * images.len());
        assert!(colour[..784] == images[..784] && colour[784..1568] == images[..784]);
        assert_eq!(colour[3 * 784..4 * 784], images[784..]);
    }

    #[test]
    fn broken_files_are_named_with_what_is_wrong() {
        let good = idx(&[2, 3], 0..6);
        assert_eq!(parse(&good, &[2, 3]).unwrap(), [0, 1, 2, 3, 4, 5]);
        for (bytes, expected) in [
            (good[..7].to_vec(), "less than an idx header of 12"),
            (good[..15].to_vec(), "15 bytes, expected 18"),
            ([&good[..], &[0]].concat(), "19 bytes, expected 18"),
            (idx(&[3, 2], 0..6), "[3, 2] values, expected [2, 3]"),
            (idx(&[6], 0..20), "begins with [0, 0, 8, 1]"),
            (b"\x1f\x8b gzip without its name".to_vec(), "no idx file"),
        ] {
            assert!(
                error(parse(&bytes, &[2, 3])).contains(expected),
                "{}",
                error(parse(&bytes, &[2, 3]))
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let message = error(Source::open(&config(folder.path())));
        assert!(
            message.contains("no train-images-idx3-ubyte and no train-images-idx3-ubyte.gz"),
            "{message}"
        );
        write_set(folder.path(), true);
        let labels = folder.path().join("t10k-labels-idx1-ubyte");
        let eleven = idx(&[10_000], (0..10_000).map(|i| if i == 7 { 11 } else { 0 }));
        // The plain file comes before the gzipped one.
        fs::write(&labels, eleven).unwrap();
        let message = error(Source::open(&config(folder.path())).unwrap().test());
        assert!(
            message.contains("t10k-labels-idx1-ubyte: label 7 is 11"),
            "{message}"
        );
        fs::remove_file(labels).unwrap();
        let packed = folder.path().join("t10k-images-idx3-ubyte.gz");
        let whole = fs::read(&packed).unwrap();
        fs::write(&packed, &whole[..whole.len() / 2]).unwrap();
        let message = error(Source::open(&config(folder.path())).unwrap().test());
        assert!(
            message.contains("t10k-images-idx3-ubyte.gz is cut short"),
            "{message}"
        );
    }

    #[test]
    fn the_real_sets_have_their_known_statistics_where_they_are_at_hand() {
        for (name, kind, mean, std) in [
            ("mnist", Kind::Mnist, 0.1307, 0.3081),
            ("fashion-mnist", Kind::FashionMnist, 0.2860, 0.3530),
        ] {
            let Some(folder) = shared(name) else { continue };
            let config = DataConfig {
                kind,
                size: Some(28),
                ..config(&folder)
            };
            let sets = Source::open(&config).unwrap().sets().unwrap();
            assert_eq!(sets.train.len(), 59_900);
            let known = Normalisation::Channels {
                mean: vec![mean],
                std: vec![std],
            };
            assert_eq!(sets.normalisation, known, "{name}");
        }
    }
}
