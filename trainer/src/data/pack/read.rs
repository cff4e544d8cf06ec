//! A packed file as a data set.

use std::fs;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use flate2::read::ZlibDecoder;

use super::{Coding, Header, MAGIC, MAX_HEADER};
use crate::container::read_header;
use crate::data::decode::{ImageFile, Raw};
use crate::data::{DataConfig, Dataset, Normalisation, Part, Reader, files};

/// Far above what sets of small images have.
const MAX_IMAGES: usize = 50_000_000;
/// Far above the shape of any of them.
const MAX_SIDE: usize = 4096;

/// A packed file.
pub(in crate::data) struct PackFile {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    /// Offset of the first stream.
    pub(super) start: u64,
}

impl PackFile {
    /// Reads the header.
    pub(in crate::data) fn open(config: &DataConfig) -> Result<Self> {
        let path = config.path.clone();
        let file =
            fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let length = file.metadata()?.len();
        let (header, start): (Header, u64) =
            read_header(&mut BufReader::new(file), MAGIC, MAX_HEADER).with_context(|| {
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
            "{} holds images of {channels} channels and {side} pixels: pack the set again with the \
             data.size and data.channels you want",
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
            matches!(normalisation, Normalisation::Channels { .. })
                && normalisation.check(shape[0]).is_ok(),
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

    pub(super) fn file(&self, zlib: &mut impl Read, part: Part, index: usize) -> Result<ImageFile> {
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
