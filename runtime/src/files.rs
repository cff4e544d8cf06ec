//! Files that hold secrets: readable by their owner only, written durably or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[cfg(unix)]
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

/// Makes a directory (and its parents) that only its owner can enter.
///
/// A directory that exists keeps its mode, because it may serve others too; the files in it are
/// private anyway.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    builder.mode(0o700);
    builder.create(path)
}

/// Writes a file that only its owner can read. After a crash the file is there in full, or as it
/// was before.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = PrivateFile::create(path)?;
    file.write_all(bytes)?;
    file.keep()
}

/// A file that only its owner can read, while it is written. Under its name it is there in full
/// once it is kept; dropped before, it is erased.
pub(crate) struct PrivateFile {
    file: File,
    path: PathBuf,
    /// Its name until it is kept; none after that.
    temporary: Option<PathBuf>,
    /// Bytes written since they were last made durable.
    unsynchronised: usize,
}

/// Bytes of a large file that are made durable at a time, so that nobody waits for gigabytes at its
/// end, and memory does not fill with what is to be written.
const SYNCHRONISED: usize = 256 << 20;

impl PrivateFile {
    /// Begins a file, which will be at this path.
    pub(crate) fn create(path: &Path) -> io::Result<PrivateFile> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let temporary = path.with_file_name(name);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        options.mode(0o600);
        Ok(PrivateFile {
            file: options.open(&temporary)?,
            path: path.to_owned(),
            temporary: Some(temporary),
            unsynchronised: 0,
        })
    }

    /// Appends bytes.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.unsynchronised += bytes.len();
        if self.unsynchronised >= SYNCHRONISED {
            self.file.sync_data()?;
            self.unsynchronised = 0;
        }
        Ok(())
    }

    /// Gives the file its name, durably on return.
    pub(crate) fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.path)?;
        }
        self.temporary = None;
        sync_directory(self.path.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The remains may be secret, and may be what fills the disk.
            let erased = erase(temporary);
            if erased.is_err() {
                let _ = fs::remove_file(temporary);
            }
        }
    }
}

/// Creates an empty file that only its owner can read, if there is none.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    options.mode(0o600);
    options.open(path)?.sync_all()?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Overwrites a file with zeros and removes it. A file that is gone already, or that another thread
/// erases meanwhile, is no error.
///
/// This erases the content where the file system writes in place. Copying file systems, flash
/// translation layers and snapshots may keep older blocks.
pub(crate) fn erase(path: &Path) -> io::Result<()> {
    let erased = (|| {
        let mut file = OpenOptions::new().write(true).open(path)?;
        let length = file.metadata()?.len();
        io::copy(&mut io::Read::take(io::repeat(0), length), &mut file)?;
        file.sync_all()?;
        drop(file);
        fs::remove_file(path)
    })();
    match erased {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        erased => erased,
    }
}

/// Makes changes of names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// Tells whether an error means that nothing more can be written: a full disk, a quota, or a limit
/// on file size.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn private_files_have_private_modes() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        private_directory(&state).unwrap();
        let path = state.join("secret");
        write_private(&path, b"first").unwrap();
        write_private(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o700);
        assert_eq!(mode(&path), 0o600);
        erase(&path).unwrap();
        assert!(!path.exists());
        erase(&path).unwrap();
    }

    #[test]
    fn a_private_file_that_is_not_kept_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let mut file = PrivateFile::create(&path).unwrap();
        file.write_all(b"half of").unwrap();
        assert!(!path.exists());
        drop(file);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let mut file = PrivateFile::create(&path).unwrap();
        file.write_all(b"all ").unwrap();
        file.write_all(b"of it").unwrap();
        file.keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"all of it");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
