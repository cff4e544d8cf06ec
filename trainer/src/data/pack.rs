//! A data set in one compressed file, small enough to be carried to a bare machine beside the
//! program.
//!
//! A file is: the magic `PIPACK01`, the length of a JSON header (u64, little endian), the header,
//! and two zlib streams, of the training and of the test images. A set whose files are JPEG keeps
//! them as they are, 32-bit lengths before them: the compression takes away what the files have in
//! common, and decoding gives what the set's own files give, bit for bit. Other sets are kept as
//! planes, or, if a quality is given, as JPEG files made of them, and their name then says so. Mean
//! and deviation, of all training images, travel along.

mod read;

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::decode::{Decoder, Fit, ImageFile, Raw, jpeg};
use super::{DataConfig, Kind, Normalisation, NormalisationConfig, Part, Source, files};
use crate::atomic;
use crate::container::write_header;

pub(super) use read::PackFile;

const MAGIC: &[u8; 8] = b"PIPACK01";
/// Far above what a header takes, even one that names a thousand classes.
const MAX_HEADER: u64 = 1 << 20;

#[derive(Clone, Serialize, Deserialize)]
struct Header {
    kind: Kind,
    description: String,
    classes: Vec<String>,
    normalisation: Normalisation,
    train: Stream,
    test: Stream,
}

/// The training or the test images of the file.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Stream {
    coding: Coding,
    images: usize,
    /// Length of its zlib stream.
    bytes: u64,
}

/// Form of an image in a stream, after its label (u16, little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Coding {
    /// The planes of an image of this shape.
    Planes([usize; 3]),
    /// A length (u32, little endian) and a JPEG or PNG file.
    Files(Decoder),
}

impl Coding {
    fn shape(self) -> [usize; 3] {
        match self {
            Coding::Planes(shape) => shape,
            Coding::Files(Decoder { side, channels, .. }) => [channels, side, side],
        }
    }
}

/// Contents of a file that [`pack`] wrote.
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
    /// Name that reports will give the set.
    pub fn description(&self) -> &str {
        &self.header_description
    }
}

/// Writes the set of a configuration to `path`; `data.path` may name that file afterwards.
///
/// With `data.limit` only that many training images, the first ones, are kept, and the held-out
/// ones, which are the last `data.holdout`. With `quality`, 1 to 100, images that are not JPEG yet,
/// or are of another size than `data.size`, become JPEG of it, which changes them.
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
        "drawn images need no file: data.seed gives the same ones on any machine"
    );
    ensure!(
        quality.is_none_or(|quality| (1..=100).contains(&quality)),
        "the JPEG quality must be in 1..=100"
    );
    ensure!(
        config.limit.is_none() || config.holdout_parts.is_none(),
        "a file of data.limit images keeps the last ones as held out: data.holdout_parts does not \
         go with it"
    );
    // The file is for every normalisation: it holds the statistics of the set.
    let source = Source::open(&DataConfig {
        normalisation: NormalisationConfig::Channels,
        ..config.clone()
    })?;
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

/// True if the files are already of the size that is asked for.
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

#[cfg(test)]
mod tests;
