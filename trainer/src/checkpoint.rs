//! Checkpoint files: everything a run needs to go on, and everything the export needs.
//!
//! Layout: the magic `PITRAIN1`, the length of a JSON header (u64, little endian), the header, the arrays it lists,
//! each as little-endian f32 or bytes. A file appears under its name only when it is complete.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"PITRAIN1";
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

/// State of a run at the end of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The run's configuration and progress, as JSON.
    pub meta: serde_json::Value,
    /// Trained parameters.
    pub parameters: Arrays,
    /// Momentum of each parameter.
    pub momenta: Arrays,
    /// Running statistics.
    pub buffers: Arrays,
    /// Kind of each activation position, by site.
    pub masks: BTreeMap<String, Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    meta: serde_json::Value,
    parameters: Vec<Entry>,
    momenta: Vec<Entry>,
    buffers: Vec<Entry>,
    masks: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    shape: Vec<usize>,
}

impl Checkpoint {
    /// Writes the file, replacing one of the same name only when the new one is on disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, path: &Path) -> Result<()> {
        let list = |arrays: &Arrays| {
            arrays
                .iter()
                .map(|(name, a)| Entry {
                    name: name.clone(),
                    shape: a.shape.clone(),
                })
                .collect()
        };
        let header = Header {
            meta: self.meta.clone(),
            parameters: list(&self.parameters),
            momenta: list(&self.momenta),
            buffers: list(&self.buffers),
            masks: self
                .masks
                .iter()
                .map(|(name, m)| Entry {
                    name: name.clone(),
                    shape: vec![m.len()],
                })
                .collect(),
        };
        let header = serde_json::to_vec(&header)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&header);
        for arrays in [&self.parameters, &self.momenta, &self.buffers] {
            for array in arrays.values() {
                array
                    .values
                    .iter()
                    .for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
            }
        }
        self.masks
            .values()
            .for_each(|mask| bytes.extend_from_slice(mask));
        write_atomically(path, &bytes)
    }

    /// Reads a file written by [`Self::save`].
    ///
    /// # Errors
    /// A file that cannot be read, is no checkpoint, or is cut short.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes =
            fs::read(path).with_context(|| format!("cannot read checkpoint {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is not a whole checkpoint", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let rest = bytes
            .strip_prefix(MAGIC)
            .context("it does not begin with PITRAIN1")?;
        let (length, rest) = rest
            .split_first_chunk::<8>()
            .context("it ends before its header")?;
        let length = u64::from_le_bytes(*length);
        ensure!(
            length <= MAX_HEADER && length <= rest.len() as u64,
            "its header is cut short"
        );
        let (header, mut rest) = rest.split_at(length as usize);
        let header: Header =
            serde_json::from_slice(header).context("its header is no JSON of ours")?;
        let mut take = |bytes: usize| -> Result<&[u8]> {
            ensure!(bytes <= rest.len(), "its arrays are cut short");
            let (part, after) = rest.split_at(bytes);
            rest = after;
            Ok(part)
        };
        let mut arrays = |entries: Vec<Entry>| -> Result<Arrays> {
            entries
                .into_iter()
                .map(|entry| {
                    let part = take(
                        count(&entry.shape)?
                            .checked_mul(4)
                            .context("an array is too large")?,
                    )?;
                    let (words, _) = part.as_chunks::<4>();
                    let values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
                    Ok((
                        entry.name,
                        Array {
                            shape: entry.shape,
                            values,
                        },
                    ))
                })
                .collect()
        };
        let (parameters, momenta, buffers) = (
            arrays(header.parameters)?,
            arrays(header.momenta)?,
            arrays(header.buffers)?,
        );
        let masks = header
            .masks
            .into_iter()
            .map(|entry| Ok((entry.name, take(count(&entry.shape)?)?.to_vec())))
            .collect::<Result<_>>()?;
        ensure!(rest.is_empty(), "it has {} bytes too many", rest.len());
        Ok(Self {
            meta: header.meta,
            parameters,
            momenta,
            buffers,
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

/// Writes `bytes` to `path` by way of a temporary file in the same folder.
///
/// # Errors
/// The file system's, with the path.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
