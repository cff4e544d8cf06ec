//! A data set in one compressed file, small enough to be carried to a bare machine beside the
//! program.
//!
//! A file is: the magic `PIPACK01`, the length of a JSON header (u64, little endian), the header,
//! and two zlib streams, of the training and of the test images. A set whose files are JPEG keeps
//! them as they are, 32-bit lengths before them: the compression takes away what the files have in
//! common, and decoding gives what the set's own files give, bit for bit. Other sets are kept as
//! planes, or, if a quality is given, as JPEG files made of them, and their name then says so. Mean
//! and deviation, of all training images, travel along.

use std::fs;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cache::{read_header, write_header};
use super::decode::{Decoder, Fit, ImageFile, Raw, jpeg};
use super::{DataConfig, Dataset, Kind, Normalisation, Part, Reader, Source, files};
use crate::atomic;

const MAGIC: &[u8; 8] = b"PIPACK01";
/// Far above what sets of small images have.
const MAX_IMAGES: usize = 50_000_000;
/// Far above the shape of any of them.
const MAX_SIDE: usize = 4096;

#[derive(Clone, Serialize, Deserialize)]
struct Header {
    kind: Kind,
    description: String,
    classes: Vec<String>,
    normalisation: Normalisation,
    train: Stream,
    test: Stream,
}

/// One part of the file.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Stream {
    coding: Coding,
    images: usize,
    /// Length of its zlib stream.
    bytes: u64,
}

/// What a stream holds after each label (u16, little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Coding {
    /// The planes of an image of this shape.
    Planes([usize; 3]),
    /// A length (u32, little endian) and a JPEG or PNG file.
    Files(Decoder),
}

/// What [`pack`] wrote.
#[derive(Clone, Debug)]
pub struct Packed {
    header_description: String,
    /// Training images, held-out ones included.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// Size of the file.
    pub bytes: u64,
}

impl Packed {
    /// What reports will call the set.
    pub fn description(&self) -> &str {
        &self.header_description
    }
}

/// Writes the set of a configuration to `path`; `data.path` may name that file afterwards.
///
/// With `data.limit` the first so many training images are kept and the held-out ones, the last
/// `data.holdout`. With `quality`, 1 to 100, images that are not JPEG yet, or are of another size
/// than `data.size`, become JPEG of it, which changes them.
///
/// # Errors
/// A set that cannot be read, or drawn images, which need no file; a quality out of range; the file
/// system's.
///
/// # Cost
/// All of the set is in memory; zlib at its best level takes about a minute a GB of planes.
pub fn pack(config: &DataConfig, quality: Option<u8>, path: &Path) -> Result<Packed> {
    ensure!(
        config.kind != Kind::Procedural,
        "drawn images need no file: data.seed gives them anywhere"
    );
    ensure!(
        quality.is_none_or(|quality| (1..=100).contains(&quality)),
        "the JPEG quality must be in 1..=100"
    );
    let source = Source::open(config)?;
    let normalisation = source.sets()?.normalisation;
    let mut description = source.description().to_owned();
    let mut streams = Vec::new();
    for part in [Part::Train, Part::Test] {
        let mut raw = source.raw(part)?;
        if let (Part::Train, Some(limit)) = (part, config.limit) {
            raw.keep_ends(limit, config.holdout);
        }
        if let Some(quality) = quality
            && !is_small(&raw)
        {
            raw = recode(raw, quality)?;
            description = format!("{}, JPEG quality {quality}", source.description());
        }
        streams.push(encode(&raw)?);
    }
    let [(train, train_bytes), (test, test_bytes)] = <[_; 2]>::try_from(streams)
        .map_err(|_| ())
        .expect("two parts");
    let header = Header {
        kind: config.kind,
        description,
        classes: source.classes().to_vec(),
        normalisation,
        train,
        test,
    };
    atomic::write_by(path, |file| {
        write_header(file, MAGIC, &header)?;
        file.write_all(&train_bytes)?;
        file.write_all(&test_bytes)
    })?;
    Ok(Packed {
        header_description: header.description,
        train: train.images,
        test: test.images,
        bytes: fs::metadata(path)?.len(),
    })
}

/// Whether the files are already of the size that is asked for.
fn is_small(raw: &Raw) -> bool {
    matches!(
        raw,
        Raw::Files {
            decoder: Decoder {
                fit: Fit::Exact,
                ..
            },
            ..
        }
    )
}

/// The images as JPEG files of their own size.
fn recode(raw: Raw, quality: u8) -> Result<Raw> {
    let set = raw.decode()?;
    let [channels, side, width] = set.shape;
    ensure!(side == width, "only square images can be packed as JPEG");
    let file = |index: usize| {
        Ok(ImageFile {
            name: format!("image {index}"),
            label: set.labels[index],
            bytes: jpeg(set.image(index), set.shape, quality)?,
        })
    };
    let fit = Fit::Exact;
    Ok(Raw::Files {
        decoder: Decoder {
            side,
            channels,
            fit,
        },
        files: (0..set.len())
            .into_par_iter()
            .map(file)
            .collect::<Result<_>>()?,
    })
}

fn encode(raw: &Raw) -> Result<(Stream, Vec<u8>)> {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    let coding = match raw {
        Raw::Planes(set) => {
            for index in 0..set.len() {
                zlib.write_all(&set.labels[index].to_le_bytes())?;
                zlib.write_all(set.image(index))?;
            }
            Coding::Planes(set.shape)
        }
        Raw::Files { decoder, files } => {
            for file in files {
                let length = u32::try_from(file.bytes.len())
                    .ok()
                    .filter(|length| u64::from(*length) <= files::MAX_IMAGE)
                    .with_context(|| format!("{} is too large", file.name))?;
                zlib.write_all(&file.label.to_le_bytes())?;
                zlib.write_all(&length.to_le_bytes())?;
                zlib.write_all(&file.bytes)?;
            }
            Coding::Files(*decoder)
        }
    };
    let bytes = zlib.finish()?;
    let stream = Stream {
        coding,
        images: raw.len(),
        bytes: bytes.len() as u64,
    };
    Ok((stream, bytes))
}

/// A packed file.
pub(super) struct PackFile {
    path: PathBuf,
    header: Header,
    /// Where the first stream begins.
    start: u64,
}

impl PackFile {
    /// Reads the header.
    pub(super) fn open(config: &DataConfig) -> Result<Self> {
        let path = config.path.clone();
        let file =
            fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let length = file.metadata()?.len();
        let (header, start): (Header, u64) = read_header(&mut BufReader::new(file), MAGIC)
            .with_context(|| {
                format!(
                    "{} is no file of pi-train pack; data.path names such a file or a folder",
                    path.display()
                )
            })?;
        let pack = Self {
            path,
            header,
            start,
        };
        pack.check(length).with_context(|| {
            format!(
                "{} is cut short or corrupt: copy it again",
                pack.path.display()
            )
        })?;
        let header = &pack.header;
        ensure!(
            header.kind == config.kind,
            "{} holds {}: set data.kind = \"{}\"",
            pack.path.display(),
            header.description,
            header.kind.name()
        );
        let [channels, side, _] = header.train.coding.shape();
        ensure!(
            config.size.is_none_or(|size| size == side)
                && config.channels.is_none_or(|wanted| wanted == channels),
            "{} holds images of {channels} channels and {side} pixels: pack the set again with the data.size and \
             data.channels you want",
            pack.path.display()
        );
        Ok(pack)
    }

    fn check(&self, length: u64) -> Result<()> {
        let Header {
            train,
            test,
            normalisation,
            classes,
            ..
        } = &self.header;
        let total = train
            .bytes
            .checked_add(test.bytes)
            .and_then(|sum| sum.checked_add(self.start));
        ensure!(
            total == Some(length),
            "it has {length} bytes, which is not what its header says"
        );
        let shape = train.coding.shape();
        ensure!(
            shape == test.coding.shape()
                && shape.iter().all(|side| (1..=MAX_SIDE).contains(side))
                && shape[0] <= 4,
            "its images are of {shape:?} and {:?}",
            test.coding.shape()
        );
        ensure!(
            normalisation.mean.len() == shape[0]
                && normalisation.std.len() == shape[0]
                && normalisation
                    .std
                    .iter()
                    .all(|std| std.is_finite() && *std > 0.0),
            "its normalisation is not of {} channels",
            shape[0]
        );
        ensure!(
            (1..=usize::from(u16::MAX)).contains(&classes.len()),
            "it has {} classes",
            classes.len()
        );
        ensure!(
            train.images <= MAX_IMAGES && test.images <= MAX_IMAGES,
            "it says it has {} images",
            train.images.max(test.images)
        );
        Ok(())
    }

    fn stream(&self, part: Part) -> Result<Raw> {
        let (stream, before) = match part {
            Part::Train => (self.header.train, 0),
            Part::Test => (self.header.test, self.header.train.bytes),
        };
        let mut file = fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.start + before))?;
        let mut zlib = ZlibDecoder::new(BufReader::new(file.take(stream.bytes)));
        let raw = match stream.coding {
            Coding::Planes(shape) => {
                let mut set = Dataset::empty(shape);
                for _ in 0..stream.images {
                    set.labels.push(read_label(&mut zlib)?);
                    let end = set.images.len();
                    set.images.resize(end + set.bytes(), 0);
                    zlib.read_exact(&mut set.images[end..])?;
                }
                Raw::Planes(set)
            }
            Coding::Files(decoder) => {
                let mut files = Vec::new();
                for index in 0..stream.images {
                    files.push(self.file(&mut zlib, part, index)?);
                }
                Raw::Files { decoder, files }
            }
        };
        // The stream's own checksum is read, and compared, at its end.
        let mut rest = [0];
        ensure!(
            zlib.read(&mut rest)? == 0,
            "it has more images than it says"
        );
        Ok(raw)
    }

    fn file(&self, zlib: &mut impl Read, part: Part, index: usize) -> Result<ImageFile> {
        let label = read_label(zlib)?;
        let mut length = [0; 4];
        zlib.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        ensure!(
            length <= files::MAX_IMAGE,
            "image {index} has {length} bytes"
        );
        let mut bytes = vec![0; length as usize];
        zlib.read_exact(&mut bytes)?;
        let name = format!("{}: {} image {index}", self.path.display(), part.name());
        Ok(ImageFile { name, label, bytes })
    }
}

impl Coding {
    fn shape(self) -> [usize; 3] {
        match self {
            Coding::Planes(shape) => shape,
            Coding::Files(Decoder { side, channels, .. }) => [channels, side, side],
        }
    }
}

fn read_label(zlib: &mut impl Read) -> Result<u16> {
    let mut label = [0; 2];
    zlib.read_exact(&mut label)?;
    Ok(u16::from_le_bytes(label))
}

impl Reader for PackFile {
    fn description(&self) -> String {
        self.header.description.clone()
    }

    fn classes(&self) -> Vec<String> {
        self.header.classes.clone()
    }

    fn files(&self, part: Part) -> Result<Option<Vec<PathBuf>>> {
        let coding = match part {
            Part::Train => self.header.train.coding,
            Part::Test => self.header.test.coding,
        };
        Ok(matches!(coding, Coding::Files(_)).then(|| vec![self.path.clone()]))
    }

    fn read(&self, part: Part) -> Result<Raw> {
        self.stream(part).with_context(|| {
            format!(
                "{} is cut short or corrupt: copy it again",
                self.path.display()
            )
        })
    }

    fn normalisation(&self) -> Option<Normalisation> {
        Some(self.header.normalisation.clone())
    }
}

#[cfg(test)]
mod tests;
