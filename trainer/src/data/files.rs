//! Files as they are on disk: read whole, unpacked up to a limit, listed in a fixed order.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

/// Most bytes of an image file. The largest JPEG of the sets read here has 30 KB; photographs in a
/// folder have some MB.
pub(super) const MAX_IMAGE: u64 = 64 << 20;

/// The whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A text file.
pub(super) fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The folder itself, or the folder of that name in it: official archives unpack to one.
pub(super) fn folder(path: &Path, unpacked: &str) -> PathBuf {
    let inner = path.join(unpacked);
    if inner.is_dir() {
        inner
    } else {
        path.to_owned()
    }
}

/// Names of the folders in a folder, sorted; hidden ones are left out.
pub(super) fn folders(path: &Path) -> Result<Vec<String>> {
    list(path, |entry| entry.is_dir())
}

/// Names of the files in a folder that `wanted` accepts, sorted; hidden ones are left out.
pub(super) fn names(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut names = list(path, |entry| entry.is_file())?;
    names.retain(|name| wanted(name));
    Ok(names)
}

fn list(path: &Path, kind: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(path).with_context(|| format!("cannot read the folder {}", path.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read the folder {}", path.display()))?;
        let name = entry.file_name();
        let name = name.to_str().with_context(|| {
            format!(
                "{} has a name that is not UTF-8: rename it",
                entry.path().display()
            )
        })?;
        if !name.starts_with('.') && kind(&entry.path()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The contents of a gzipped file, `limit` bytes at most.
pub(super) fn gunzip(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut bytes = Vec::new();
    GzDecoder::new(BufReader::new(file))
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .with_context(|| {
            format!(
                "{} is cut short or no gzip file: fetch it again",
                path.display()
            )
        })?;
    ensure!(
        bytes.len() as u64 <= limit,
        "{} unpacks to more than {limit} bytes: it is not what its name says",
        path.display()
    );
    Ok(bytes)
}

/// The contents of an xz-compressed file, `limit` bytes at most.
pub(super) fn unxz(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut unpacked = Bounded {
        bytes: Vec::new(),
        limit,
    };
    lzma_rs::xz_decompress(&mut BufReader::new(file), &mut unpacked)
        .map_err(|why| anyhow::anyhow!("xz: {why:?}"))
        .with_context(|| corrupt(path))?;
    Ok(unpacked.bytes)
}

fn corrupt(path: &Path) -> String {
    format!("{} is cut short or corrupt: fetch it again", path.display())
}

/// The files in an xz-compressed tar, in its order, that unpacks to `limit` bytes at most.
pub(super) fn untar(path: &Path, limit: u64) -> Result<Vec<(String, Vec<u8>)>> {
    members(&unxz(path, limit)?).with_context(|| corrupt(path))
}

fn members(tar: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut members = Vec::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path()?.to_string_lossy().into_owned();
        ensure!(
            entry.size() <= MAX_IMAGE,
            "its member {name} has {} bytes",
            entry.size()
        );
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        members.push((name, bytes));
    }
    Ok(members)
}

/// Collects what is written up to a limit, so that a small file cannot unpack into all memory.
struct Bounded {
    bytes: Vec<u8>,
    limit: u64,
}

impl Write for Bounded {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if (self.bytes.len() + part.len()) as u64 > self.limit {
            return Err(std::io::Error::other(format!(
                "unpacks to more than {} bytes",
                self.limit
            )));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes an xz-compressed tar of `(name, bytes)`.
    pub(in crate::data) fn archive(path: &Path, members: &[(String, Vec<u8>)]) {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes.as_slice())
                .unwrap();
        }
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut tar.into_inner().unwrap().as_slice(), &mut packed).unwrap();
        fs::write(path, packed).unwrap();
    }

    /// A message of an error with all its causes.
    pub(in crate::data) fn error<T>(result: Result<T>) -> String {
        format!("{:#}", result.err().expect("an error"))
    }

    /// A folder of the shared data, where it is at hand; says so where it is not.
    pub(in crate::data) fn shared(name: &str) -> Option<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared/data")
            .join(name);
        if !folder.exists() {
            eprintln!("skipped: {} is not there", folder.display());
        }
        folder.exists().then_some(folder)
    }

    #[test]
    fn an_archive_that_unpacks_beyond_its_limit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar.xz");
        archive(&path, &[("a".to_owned(), vec![0; 100_000])]);
        assert_eq!(untar(&path, 200_000).unwrap().len(), 1);
        let message = error(untar(&path, 50_000));
        assert!(
            message.contains("a.tar.xz") && message.contains("50000 bytes"),
            "{message}"
        );
        let gz = folder.path().join("a.gz");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&[0; 100_000]).unwrap();
        fs::write(&gz, packed.finish().unwrap()).unwrap();
        assert_eq!(gunzip(&gz, 100_000).unwrap().len(), 100_000);
        assert!(error(gunzip(&gz, 99_999)).contains("more than 99999 bytes"));
    }
}
