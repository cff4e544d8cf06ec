//! Checkpoint files: everything a run needs to go on, and everything the export needs.
//!
//! A file is: the magic `PITRAIN2`, the length of a JSON header (u64, little endian), the header,
//! the arrays it lists, each as little-endian f32 or bytes. The header has the CRC-32 of the
//! arrays; files that were written before it was kept are read without. A file appears under its
//! name only when it is complete.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::container::{crc32, read_header, write_header};

const MAGIC: &[u8; 8] = b"PITRAIN2";
/// Far above what a header of a few hundred arrays takes.
const MAX_HEADER: u64 = 16 << 20;

/// Named float arrays with their shapes.
pub type Arrays = BTreeMap<String, Array>;

/// A float array.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Array {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

impl Array {
    /// An array of one repeated value.
    pub fn filled(shape: &[usize], value: f32) -> Self {
        Self {
            shape: shape.to_vec(),
            values: vec![value; shape.iter().product()],
        }
    }
}

/// State of a run between two steps: sections of named arrays and masks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// The run's configuration and progress, as JSON.
    pub meta: serde_json::Value,
    /// Float arrays by section, such as `parameters`, `statistics`, `optimiser`,
    /// `teacher.parameters`.
    pub arrays: BTreeMap<String, Arrays>,
    /// Kind of each activation position, by section and site.
    pub masks: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    meta: serde_json::Value,
    arrays: Vec<Section>,
    masks: Vec<Section>,
    /// CRC-32 of all bytes after the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct Section {
    name: String,
    entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    shape: Vec<usize>,
}

impl Checkpoint {
    /// Takes a section out of the checkpoint; empty if it has none.
    pub fn take(&mut self, section: &str) -> Arrays {
        self.arrays.remove(section).unwrap_or_default()
    }

    /// Writes the file, replacing one of the same name only when the new one is on disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, path: &Path) -> Result<()> {
        let arrays = self.arrays.iter().map(|(name, arrays)| Section {
            name: name.clone(),
            entries: arrays
                .iter()
                .map(|(name, a)| Entry {
                    name: name.clone(),
                    shape: a.shape.clone(),
                })
                .collect(),
        });
        let masks = self.masks.iter().map(|(name, masks)| Section {
            name: name.clone(),
            entries: masks
                .iter()
                .map(|(name, m)| Entry {
                    name: name.clone(),
                    shape: vec![m.len()],
                })
                .collect(),
        });
        let mut body = Vec::new();
        for array in self.arrays.values().flat_map(BTreeMap::values) {
            for value in &array.values {
                body.extend_from_slice(&value.to_le_bytes());
            }
        }
        for mask in self.masks.values().flat_map(BTreeMap::values) {
            body.extend_from_slice(mask);
        }
        let header = Header {
            meta: self.meta.clone(),
            arrays: arrays.collect(),
            masks: masks.collect(),
            crc32: Some(crc32(&[&body])),
        };
        atomic::write_by(path, |file| {
            write_header(file, MAGIC, &header)?;
            file.write_all(&body)
        })
    }

    /// Reads a file written by [`Self::save`].
    ///
    /// # Errors
    /// A file that cannot be read, is no checkpoint, is of another version, is cut short, or has
    /// other arrays than were written.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes =
            fs::read(path).with_context(|| format!("cannot read checkpoint {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is not a whole checkpoint", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(
            !bytes.starts_with(b"PITRAIN1"),
            "it is of version 1, which this pi-train does not read: train anew"
        );
        let (header, start): (Header, u64) = read_header(&mut &*bytes, MAGIC, MAX_HEADER)?;
        let body = &bytes[start as usize..];
        let mut rest = body;
        let mut take = |shape: &[usize], size: usize| -> Result<&[u8]> {
            let bytes = count(shape)?
                .checked_mul(size)
                .context("an array is too large")?;
            ensure!(bytes <= rest.len(), "its arrays are cut short");
            let (part, after) = rest.split_at(bytes);
            rest = after;
            Ok(part)
        };
        let mut arrays = BTreeMap::new();
        for section in header.arrays {
            let mut read = Arrays::new();
            for Entry { name, shape } in section.entries {
                let (words, _) = take(&shape, 4)?.as_chunks::<4>();
                let values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
                read.insert(name, Array { shape, values });
            }
            arrays.insert(section.name, read);
        }
        let mut masks = BTreeMap::new();
        for section in header.masks {
            let mut read = BTreeMap::new();
            for Entry { name, shape } in section.entries {
                read.insert(name, take(&shape, 1)?.to_vec());
            }
            masks.insert(section.name, read);
        }
        ensure!(rest.is_empty(), "it has {} bytes too many", rest.len());
        if let Some(written) = header.crc32 {
            let read = crc32(&[body]);
            ensure!(
                read == written,
                "its arrays are damaged: their CRC-32 is {read:08x}, was {written:08x} when they \
                 were written"
            );
        }
        Ok(Self {
            meta: header.meta,
            arrays,
            masks,
        })
    }
}

fn count(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
        .context("an array is too large")
}
