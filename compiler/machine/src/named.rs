//! The machine that a user names: on the command line of the compiler and of the benchmarks.

use crate::cache::here;
use crate::profile::{Profile, ProfileError, SHIPPED, shipped};
use pi_core::BackendError;
use std::path::Path;

/// The word for this machine.
pub const HERE: &str = "here";

/// A machine's profile, and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// The profile.
    pub profile: Profile,
    /// Its source, for people.
    pub source: String,
    /// What its user should know.
    pub notes: Vec<String>,
}

/// A name that stands for no machine.
#[derive(Debug, thiserror::Error)]
pub enum NamedError {
    /// This machine cannot be measured.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The file holds no profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// It is neither a name nor a file.
    #[error(
        "{name}: there is no such file, and the machines known by name are {HERE}, {}",
        SHIPPED.join(", ")
    )]
    Unknown {
        /// The name.
        name: String,
    },
}

/// The machine of this name: [`HERE`], one of [`SHIPPED`], or a file that holds a profile.
///
/// # Errors
/// If there is none, or it cannot be used.
/// # Cost
/// Two seconds for [`HERE`], unless it was measured before.
pub fn named(name: &str) -> Result<Named, NamedError> {
    if name == HERE {
        let found = here()?;
        let source = match found.measured {
            true => "this machine, just measured",
            false => "this machine, as measured before",
        };
        return Ok(Named {
            profile: found.profile,
            source: source.into(),
            notes: found.notes,
        });
    }
    let (profile, source) = match shipped(name) {
        Some(profile) => (profile, format!("{name}, which comes with the compiler")),
        None if !Path::new(name).exists() => return Err(NamedError::Unknown { name: name.into() }),
        None => (Profile::read(Path::new(name))?, name.into()),
    };
    Ok(Named {
        profile,
        source,
        notes: Vec::new(),
    })
}

impl Named {
    /// The machine and its source: `AMD EPYC (Zen 4), avx512 (this machine, just measured)`.
    pub fn in_words(&self) -> String {
        format!("{} ({})", self.profile.in_words(), self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_by_word_or_file() {
        let found = named("zen3-avx2").unwrap();
        assert_eq!(found.profile, shipped("zen3-avx2").unwrap());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.json");
        let profile = Profile {
            processor: "a server".into(),
            ..found.profile
        };
        std::fs::write(&path, profile.encode()).unwrap();
        let found = named(path.to_str().unwrap()).unwrap();
        assert_eq!(found.profile, profile);
        assert!(found.in_words().starts_with("a server, avx2 ("));
        std::fs::write(&path, "{}").unwrap();
        let error = named(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("server.json") && error.contains("garbled is missing"));
        let error = named("mars").unwrap_err().to_string();
        assert!(error.starts_with("mars: there is no such file") && error.contains("zen4-avx512"));
    }
}
