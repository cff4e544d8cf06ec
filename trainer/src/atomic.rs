//! Files that appear under their names only when they are whole.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};

/// Writes `bytes` to `path` (see [`write_by`]).
///
/// # Errors
/// The file system's, with the path.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_by(path, |file| file.write_all(bytes))
}

/// Lets `fill` write a temporary file, which takes the name `path` when it is on the disk; makes
/// the folder if there is none.
///
/// The temporary file carries the process's number: two runs that write one file do not write into
/// each other's.
///
/// # Errors
/// That of `fill` or of the file system, with the path; nothing is left then.
pub fn write_by(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let temporary = path.with_added_extension(format!("{}.tmp", std::process::id()));
    let attempt = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = BufWriter::new(fs::File::create(&temporary)?);
        fill(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt()
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/file");
        let broken = write_by(&path, |file| {
            file.write_all(b"half")?;
            Err(std::io::Error::other("the disk is full"))
        });
        let message = format!("{:#}", broken.unwrap_err());
        assert!(message.contains("the disk is full"), "{message}");
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
        write(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }
}
