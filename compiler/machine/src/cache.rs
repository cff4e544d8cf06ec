//! This machine's profile, measured once and kept in the user's cache directory.
//!
//! A file is named for back end and processor, and holds both and the version of the measurement
//! besides: one that was copied from elsewhere, or that an older program wrote, is measured anew.

use crate::measure::{VERSION, measure};
use crate::processor::processor_name;
use crate::profile::Profile;
use directories::BaseDirs;
use pi_core::{Backend, BackendError};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A machine's profile, and what its user should know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The profile.
    pub profile: Profile,
    /// True if it was measured just now.
    pub measured: bool,
    /// What went otherwise than it should.
    pub notes: Vec<String>,
}

/// The profile of this machine with the back end of this process: from the user's cache, or
/// measured, which takes about two seconds, and kept there.
///
/// An unoptimised build measures, and keeps nothing.
///
/// # Errors
/// If `PI_BACKEND` names a back end that this machine does not have.
pub fn here() -> Result<Found, BackendError> {
    let (backend, directory) = (Backend::chosen()?, directory());
    let (directory, name) = (directory.as_deref(), processor_name());
    Ok(kept_or_measured(
        directory, &name, backend, OPTIMISED, measure,
    ))
}

/// [`here`], but measured in any case: what was kept before is replaced.
///
/// # Errors
/// As [`here`].
pub fn anew() -> Result<Found, BackendError> {
    let (backend, directory) = (Backend::chosen()?, directory());
    let path = directory.map(|directory| path(&directory, &processor_name(), backend));
    Ok(measured(path.as_deref(), Vec::new(), OPTIMISED, measure))
}

/// Whether this build is one whose figures mean anything.
const OPTIMISED: bool = !cfg!(debug_assertions);

/// Where programs keep what they can make again: `$XDG_CACHE_HOME` or `~/.cache` on Linux.
fn directory() -> Option<PathBuf> {
    BaseDirs::new().map(|base| base.cache_dir().join("pianissimo"))
}

/// The profile of a processor and back end that is kept in a directory, or what `measure` returns,
/// kept there if the build is optimised.
pub fn kept_or_measured(
    directory: Option<&Path>,
    processor: &str,
    backend: Backend,
    optimised: bool,
    measure: impl FnOnce() -> Profile,
) -> Found {
    let path = directory.map(|directory| path(directory, processor, backend));
    let mut notes = Vec::new();
    if let Some(path) = &path {
        match kept(path, processor, backend) {
            Ok(Some(profile)) => {
                return Found {
                    profile,
                    measured: false,
                    notes,
                };
            }
            Ok(None) => {}
            Err(why) => notes.push(format!("{why}; measured anew")),
        }
    }
    measured(path.as_deref(), notes, optimised, measure)
}

/// What `measure` returns, kept in a file if the build is optimised.
fn measured(
    path: Option<&Path>,
    mut notes: Vec<String>,
    optimised: bool,
    measure: impl FnOnce() -> Profile,
) -> Found {
    let profile = measure();
    match path {
        _ if !optimised => notes.push(
            "this build is not optimised, and its figures are too slow: they are not kept \
             (build with --release)"
                .into(),
        ),
        None => notes.push("no cache directory: the figures are measured each time".into()),
        Some(path) => {
            if let Err(why) = keep(path, &profile) {
                notes.push(format!(
                    "{}: cannot be written, so the figures are measured each time: {why}",
                    path.display()
                ));
            }
        }
    }
    Found {
        profile,
        measured: true,
        notes,
    }
}

fn path(directory: &Path, processor: &str, backend: Backend) -> PathBuf {
    let digest = blake3::hash(processor.as_bytes()).to_hex();
    directory.join(format!("machine-{}-{}.json", backend.name(), &digest[..16]))
}

/// The profile in a file, if there is one.
fn kept(path: &Path, processor: &str, backend: Backend) -> Result<Option<Profile>, String> {
    if matches!(fs::symlink_metadata(path), Err(why) if why.kind() == ErrorKind::NotFound) {
        return Ok(None);
    }
    let profile = Profile::read(path).map_err(|error| error.to_string())?;
    let of = |what: &str| Err(format!("{}: of {what}", path.display()));
    if profile.version != VERSION {
        return of(&format!(
            "version {} of the measurement, and this is {VERSION}",
            profile.version
        ));
    }
    if profile.processor != processor || profile.backend != backend.name() {
        return of(&format!("another machine ({})", profile.in_words()));
    }
    Ok(Some(profile))
}

/// Writes a file that is whole as soon as it has its name.
fn keep(path: &Path, profile: &Profile) -> std::io::Result<()> {
    let directory = path.parent().expect("a file lies in a directory");
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(profile.encode().as_bytes())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::zen4_avx512;

    const NAME: &str = "a processor";

    fn profile(garbled: f64) -> Profile {
        Profile {
            processor: NAME.into(),
            backend: "avx2".into(),
            garbled,
            ..zen4_avx512()
        }
    }

    fn ask(directory: Option<&Path>, garbled: f64) -> Found {
        let measure = || profile(garbled);
        kept_or_measured(directory, NAME, Backend::Avx2, true, measure)
    }

    #[test]
    fn a_measurement_is_kept_by_processor_and_back_end() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("cache/pianissimo");
        let first = ask(Some(&directory), 1.0);
        assert!(first.measured && first.notes.is_empty(), "{first:?}");
        let second = ask(Some(&directory), 2.0);
        assert_eq!((second.profile.garbled, second.measured), (1.0, false));
        let files: Vec<_> = fs::read_dir(&directory).unwrap().collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let other = kept_or_measured(Some(&directory), "another", Backend::Avx2, true, || {
            profile(3.0)
        });
        assert!(other.measured && other.notes.is_empty());
        let other = kept_or_measured(Some(&directory), NAME, Backend::Scalar, true, || {
            profile(4.0)
        });
        assert!(other.measured && other.notes.is_empty());
        assert_eq!(ask(Some(&directory), 5.0).profile.garbled, 1.0);
    }

    #[test]
    fn what_is_damaged_foreign_or_older_is_measured_anew_with_a_note() {
        let home = tempfile::tempdir().unwrap();
        let path = path(home.path(), NAME, Backend::Avx2);
        let foreign = Profile {
            processor: "another".into(),
            ..profile(7.0)
        };
        let older = Profile {
            version: VERSION - 1,
            ..profile(7.0)
        };
        for (content, says) in [
            ("half a fi".as_bytes(), "no profile of a machine"),
            (b"\xff\xfe", "cannot be read"),
            (
                foreign.encode().as_bytes(),
                "of another machine (another, avx2)",
            ),
            (older.encode().as_bytes(), "of version 0 of the measurement"),
        ] {
            fs::write(&path, content).unwrap();
            let found = ask(Some(home.path()), 1.0);
            assert!(found.measured);
            let [note] = &found.notes[..] else {
                panic!("{found:?}")
            };
            assert!(note.contains(says) && note.contains("anew"), "{note}");
            assert!(note.starts_with(&path.display().to_string()), "{note}");
            assert!(!ask(Some(home.path()), 2.0).measured, "it was not replaced");
        }
    }

    #[test]
    fn where_nothing_can_be_kept_the_user_is_told() {
        let none = ask(None, 1.0);
        assert!(none.measured && none.notes[0].contains("no cache directory"));
        // A file stands where the directory would be.
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let found = ask(Some(&file.join("cache")), 1.0);
        assert!(found.measured && found.profile.garbled == 1.0);
        assert!(
            found
                .notes
                .iter()
                .any(|note| note.contains("cannot be written")),
            "{found:?}"
        );
    }

    #[test]
    fn figures_of_an_unoptimised_build_are_not_kept() {
        let home = tempfile::tempdir().unwrap();
        let measure = || profile(1.0);
        let found = kept_or_measured(Some(home.path()), NAME, Backend::Avx2, false, measure);
        assert!(
            found.measured && found.notes[0].contains("not optimised"),
            "{found:?}"
        );
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
