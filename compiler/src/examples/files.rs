//! Files of examples: which there are, and what their names and archives hold.

use anyhow::{Context, Result, bail, ensure};
use pi_image::EXTENSIONS;
use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Most bytes that an archive may unpack to; the 10,000 images of a CIFAR-10 batch are 30 MB.
const MAX_ARCHIVE: usize = 512 << 20;

pub(super) fn has_suffix(path: &Path, suffix: &str) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase());
    name.is_some_and(|name| name.ends_with(suffix))
}

pub(super) fn is_image(path: &Path) -> bool {
    let end = path.extension().unwrap_or_default();
    EXTENSIONS
        .iter()
        .any(|known| end.eq_ignore_ascii_case(known))
}

/// Ends of the names of files of pictures.
pub(super) fn pictures() -> Vec<String> {
    let records = [".bin", ".npy", ".tar.xz"].map(str::to_owned);
    let images = EXTENSIONS.iter().map(|end| format!(".{end}"));
    records.into_iter().chain(images).collect()
}

/// The files of a path whose names end so, by name; training batches before test batches stay apart
/// by the caller's choice of path.
pub(super) fn list(path: &Path, suffixes: &[impl AsRef<str>]) -> Result<Vec<PathBuf>> {
    let suffixes: Vec<&str> = suffixes.iter().map(AsRef::as_ref).collect();
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
pub(super) fn label(name: &Path) -> Option<u32> {
    let stem = name.file_stem()?.to_str()?;
    stem.rsplit_once('_')?.1.parse().ok()
}

pub(super) fn unpack(path: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
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
        "the archive has no members that are images ({})",
        EXTENSIONS.join(", ")
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
