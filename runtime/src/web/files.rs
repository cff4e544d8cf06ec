//! What the page consists of: the files of a folder, read when the server starts.
//!
//! A request finds a file only by its exact name, so no path leads out of the folder. Beside
//! `NAME`, `NAME.br` and `NAME.gz` are the same file compressed beforehand.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The file that a folder is read for.
const INDEX: &str = "index.html";
/// Limit on the bytes of all files.
const MOST_BYTES: u64 = 64 << 20;
/// Limit on the files.
const MOST_FILES: usize = 1000;
/// Limit on folders in folders.
const DEEPEST: usize = 8;

/// Error of a folder that is no page.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PageError {
    /// The folder or its first page is missing.
    #[error("there is no page in {0}: {INDEX} is missing")]
    Missing(PathBuf),
    /// Something cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// There is more than a page.
    #[error("{0} holds more than a page: above {MOST_FILES} files or {MOST_BYTES} bytes")]
    Large(PathBuf),
}

/// A form in which a file is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Plain,
    Gzip,
    Brotli,
}

impl Coding {
    /// The best first.
    const ALL: [Coding; 3] = [Coding::Brotli, Coding::Gzip, Coding::Plain];

    /// Its name in HTTP.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Coding::Plain => None,
            Coding::Gzip => Some("gzip"),
            Coding::Brotli => Some("br"),
        }
    }

    /// What the names of such files end in.
    fn ending(self) -> &'static str {
        match self {
            Coding::Plain => "",
            Coding::Gzip => ".gz",
            Coding::Brotli => ".br",
        }
    }
}

/// A file in one form.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    /// A name of these bytes, in quotes.
    pub(crate) tag: String,
}

/// The files of a page.
#[derive(Debug)]
pub(crate) struct Files {
    /// By their names with `/` between folders.
    by_name: BTreeMap<String, Content>,
}

impl Files {
    /// Reads a folder.
    ///
    /// # Errors
    /// [`PageError`].
    pub(crate) fn read(folder: &Path) -> Result<Files, PageError> {
        let mut reading = Reading {
            folder,
            by_name: BTreeMap::new(),
            left: MOST_BYTES,
        };
        reading.read(folder, "", 0)?;
        match reading.by_name.contains_key(INDEX) {
            true => Ok(Files {
                by_name: reading.by_name,
            }),
            false => Err(PageError::Missing(folder.into())),
        }
    }

    /// The file of a path, its media type, and the best form that a client takes.
    pub(crate) fn find(&self, path: &str, accepts: &str) -> Option<Found<'_>> {
        let name = path.strip_prefix('/')?;
        let name = match name {
            "" => INDEX,
            name => name,
        };
        // The compressed forms are no files of their own.
        self.by_name.get(name)?;
        let form = |coding: Coding| {
            let accepted = coding.name().is_none_or(|name| takes(accepts, name));
            let content = self.by_name.get(&format!("{name}{}", coding.ending()));
            content
                .filter(|_| accepted)
                .map(|content| (coding, content))
        };
        let (coding, content) = Coding::ALL.into_iter().find_map(form)?;
        Some(Found {
            content,
            coding,
            media_type: media_type(name),
        })
    }
}

/// A file in the form in which it is sent.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    pub(crate) content: &'a Content,
    pub(crate) coding: Coding,
    pub(crate) media_type: &'static str,
}

struct Reading<'a> {
    folder: &'a Path,
    by_name: BTreeMap<String, Content>,
    left: u64,
}

impl Reading<'_> {
    fn read(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), PageError> {
        let failed = |path: &Path, error: io::Error| match error.kind() {
            io::ErrorKind::NotFound if depth == 0 => PageError::Missing(path.into()),
            _ => PageError::File {
                path: path.into(),
                error,
            },
        };
        if depth > DEEPEST {
            return Err(PageError::Large(self.folder.into()));
        }
        let entries = std::fs::read_dir(folder).map_err(|error| failed(folder, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed(folder, error))?;
            let path = entry.path();
            let name = entry.file_name();
            // What starts with a dot is somebody's own, and names that are no text have no URL.
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
                continue;
            };
            let name = format!("{prefix}{name}");
            let data = std::fs::metadata(&path).map_err(|error| failed(&path, error))?;
            if data.is_dir() {
                self.read(&path, &format!("{name}/"), depth + 1)?;
                continue;
            }
            let content = self.content(&path);
            let content = content.map_err(|error| failed(&path, error))?;
            self.left = match self.left.checked_sub(content.bytes.len() as u64) {
                Some(left) if self.by_name.len() < MOST_FILES => left,
                _ => return Err(PageError::Large(self.folder.into())),
            };
            self.by_name.insert(name, content);
        }
        Ok(())
    }

    /// At most one byte more than there may be.
    fn content(&self, path: &Path) -> io::Result<Content> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(self.left + 1).read_to_end(&mut bytes)?;
        let hash = blake3::hash(&bytes).to_hex();
        Ok(Content {
            tag: format!("\"{}\"", &hash[..32]),
            bytes: bytes.into(),
        })
    }
}

/// Whether the value of `Accept-Encoding` allows a coding.
fn takes(accepts: &str, coding: &str) -> bool {
    accepts.split(',').any(|choice| {
        let (name, weight) = choice.split_once(';').unwrap_or((choice, ""));
        let zero = weight.trim().strip_prefix("q=").is_some_and(|weight| {
            let digits = weight.trim_end_matches('0').trim_end_matches('.');
            digits.is_empty() || digits == "0"
        });
        name.trim().eq_ignore_ascii_case(coding) && !zero
    })
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        Some("wasm") => "application/wasm",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("webp") => "image/webp",
        Some("ico") => "image/x-icon",
        Some("woff2") => "font/woff2",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("index.html", "<!doctype html>");
        write("pi.wasm", "plain");
        write("pi.wasm.br", "brotli");
        write("pi.wasm.gz", "gzip");
        write("parts/worker.js", "1");
        write(".secret", "hidden");
        write("alone.js.br", "no plain form");
        folder
    }

    #[test]
    fn files_are_found_by_their_exact_names_alone() {
        let folder = folder();
        let files = Files::read(folder.path()).unwrap();
        assert_eq!(
            files.find("/", "").unwrap().media_type,
            "text/html; charset=utf-8"
        );
        assert!(files.find("/parts/worker.js", "").is_some());
        for wrong in [
            "",
            "index.html",
            "//index.html",
            "/../index.html",
            "/parts/../index.html",
            "/parts/",
            "/.secret",
            "/%69ndex.html",
            "/alone.js",
        ] {
            assert!(files.find(wrong, "br").is_none(), "{wrong}");
        }
    }

    #[test]
    fn the_best_form_that_a_client_takes_is_sent() {
        let folder = folder();
        let files = Files::read(folder.path()).unwrap();
        let coding = |accepts| {
            let found = files.find("/pi.wasm", accepts).unwrap();
            assert_eq!(found.media_type, "application/wasm");
            found.coding
        };
        assert_eq!(coding(""), Coding::Plain);
        assert_eq!(coding("gzip, deflate, br, zstd"), Coding::Brotli);
        assert_eq!(coding("gzip"), Coding::Gzip);
        assert_eq!(coding("br;q=0, gzip;q=0.5"), Coding::Gzip);
        assert_eq!(coding("br;q=0.0, gzip; q=0.000"), Coding::Plain);
        let tags = ["", "br"].map(|accepts| &files.find("/pi.wasm", accepts).unwrap().content.tag);
        assert_ne!(tags[0], tags[1]);
    }

    #[test]
    fn a_folder_without_a_page_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let missing = empty.path().join("dist");
        for folder in [empty.path(), &missing] {
            let error = Files::read(folder).unwrap_err();
            assert!(matches!(error, PageError::Missing(_)), "{error}");
        }
    }
}
