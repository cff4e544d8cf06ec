//! Decoded images kept in a file, so that the next start takes a second.
//!
//! A file is: the magic `PICACHE1`, the length of a JSON header (u64, little endian), the header,
//! the labels (u16, little endian), the planes. The header says which files it was made of, and
//! how. A cache of other files is rebuilt; a damaged one is an error.

use std::fs;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{DataConfig, Dataset};
use crate::atomic;
use crate::container::{crc32, read_header, write_header};

const MAGIC: &[u8; 8] = b"PICACHE1";
/// Far above what a header takes, even one that names a thousand classes.
const MAX_HEADER: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    key: String,
    shape: [usize; 3],
    images: usize,
    crc: u32,
}

/// Key of a cache, which is made anew when the key changes: names, lengths and times of the files,
/// and what becomes of their images.
pub(super) fn key(paths: &[PathBuf], config: &DataConfig) -> Result<String> {
    let mut listing = String::new();
    let mut bytes = 0;
    for path in paths {
        let about =
            fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let since = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).ok();
        let modified = about.modified().ok().and_then(since).unwrap_or_default();
        bytes += about.len();
        let (name, length, seconds) = (path.display(), about.len(), modified.as_secs());
        listing += &format!("{name}\0{length}\0{seconds}\0");
    }
    let (side, channels) = (config.side(), config.colours());
    let split = (config.seed, config.test_share);
    Ok(format!(
        "{} files, {bytes} bytes, listing {:08x}, {channels} channels, {side} pixels, {split:?}",
        paths.len(),
        crc32(&[listing.as_bytes()])
    ))
}

/// The images of the cache at `path`, or those that `make` gives, which are then kept there.
pub(super) fn read_or_make(
    path: &Path,
    key: &str,
    make: impl FnOnce() -> Result<Dataset>,
) -> Result<Dataset> {
    if path.exists() {
        let kept = read(path, key).with_context(|| {
            format!(
                "the cache {0} is damaged: delete it, and the next start makes a new one",
                path.display()
            )
        })?;
        if let Some(set) = kept {
            return Ok(set);
        }
    }
    let set = make()?;
    write(path, key, &set)?;
    Ok(set)
}

/// The cached images, none if they were made of something else.
fn read(path: &Path, key: &str) -> Result<Option<Dataset>> {
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let (header, start): (Header, u64) = read_header(&mut file, MAGIC, MAX_HEADER)?;
    if header.key != key {
        return Ok(None);
    }
    let image = header
        .shape
        .iter()
        .try_fold(1usize, |n, side| n.checked_mul(*side));
    let record = image.and_then(|bytes| bytes.checked_add(2));
    let expected = record.and_then(|bytes| bytes.checked_mul(header.images));
    ensure!(
        expected.and_then(|bytes| (bytes as u64).checked_add(start)) == Some(length),
        "it has {length} bytes, which is not what its header says"
    );
    let mut labels = vec![0; 2 * header.images];
    file.read_exact(&mut labels)?;
    let mut images = vec![0; length as usize - start as usize - labels.len()];
    file.read_exact(&mut images)?;
    let set = Dataset {
        shape: header.shape,
        images,
        labels: labels
            .as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| u16::from_le_bytes(*bytes))
            .collect(),
    };
    ensure!(checksum(&set) == header.crc, "its checksum does not match");
    Ok(Some(set))
}

fn write(path: &Path, key: &str, set: &Dataset) -> Result<()> {
    let header = Header {
        key: key.to_owned(),
        shape: set.shape,
        images: set.len(),
        crc: checksum(set),
    };
    atomic::write_by(path, |file| {
        write_header(file, MAGIC, &header)?;
        for label in &set.labels {
            file.write_all(&label.to_le_bytes())?;
        }
        file.write_all(&set.images)
    })
}

fn checksum(set: &Dataset) -> u32 {
    let labels: Vec<u8> = set
        .labels
        .iter()
        .flat_map(|label| label.to_le_bytes())
        .collect();
    crc32(&[&labels, &set.images])
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::error;
    use super::*;

    fn set() -> Dataset {
        Dataset {
            shape: [3, 4, 5],
            images: (0..180).collect(),
            labels: vec![0, 999, 7],
        }
    }

    #[test]
    fn images_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/some.images");
        let mut made = 0;
        for key in ["a", "a", "b", "b"] {
            let kept = read_or_make(&path, key, || {
                made += 1;
                Ok(set())
            });
            assert_eq!(kept.unwrap(), set());
        }
        assert_eq!(made, 2, "once for each key");
    }

    #[test]
    fn a_cache_damaged_anywhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.images");
        write(&path, "a", &set()).unwrap();
        let whole = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let message = error(read_or_make(&path, "a", || panic!("nothing is made")));
            assert!(
                message.contains("some.images is damaged: delete it"),
                "{message}"
            );
        };
        for length in [0, 8, 15, 40, whole.len() - 1] {
            refused(&whole[..length]);
        }
        refused(&[&whole[..], &[0]].concat());
        for position in [3, 8, 15, whole.len() - 184, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[position] ^= 0x40;
            refused(&flipped);
        }
    }

    #[test]
    fn the_key_follows_the_files_and_what_becomes_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"one").unwrap();
        let config = DataConfig::default();
        let first = key(std::slice::from_ref(&path), &config).unwrap();
        assert_eq!(key(std::slice::from_ref(&path), &config).unwrap(), first);
        let small = DataConfig {
            size: Some(64),
            ..config.clone()
        };
        assert_ne!(key(std::slice::from_ref(&path), &small).unwrap(), first);
        fs::write(&path, b"other").unwrap();
        assert_ne!(key(std::slice::from_ref(&path), &config).unwrap(), first);
        let gone = [folder.path().join("gone")];
        assert!(error(key(&gone, &config)).contains("gone"));
    }
}
