//! Files that appear under their names only when they are whole.

use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Writes a file beside its target and renames it, so that a model directory never holds half a
/// file.
///
/// # Errors
/// That of the file system, with the path; nothing new is left in the directory then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    // The extension is added, not replaced: model.pia and model.piw must not share a part file.
    let part = path.with_added_extension("part");
    let attempt = || -> std::io::Result<()> {
        let mut file = fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    attempt()
        .inspect_err(|_| drop(fs::remove_file(&part)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_no_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.pia");
        // The file itself can be written, but cannot take the name of a directory.
        fs::create_dir(&path).unwrap();
        let error = write_whole(&path, b"whole").unwrap_err().to_string();
        assert!(error.contains("model.pia"), "{error}");
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        fs::remove_dir(&path).unwrap();
        write_whole(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }
}
