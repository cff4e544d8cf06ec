//! Certificates that browsers accept by their hashes, made and replaced by the server itself.
//!
//! A page may open a session to a server whose certificate nobody signed, if it knows the hash of
//! the certificate, and if that is of ECDSA and valid for less than two weeks in all (W3C,
//! WebTransport, `serverCertificateHashes`). So there is a new one every nine days. The next one is
//! there, and its hash told, from the moment on at which the last one came into use: a page that is
//! open learns nothing new and is right for nine days at least.
//!
//! They lie in the state directory, in files whose names are the seconds since 1970 at which each
//! comes into use, so a restart changes none.

use crate::files;
use crate::identity::{Identity, IdentityError};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, date_time_ymd};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

const DAY: u64 = 86_400;
/// Time that a certificate is in use.
const TERM: u64 = 9 * DAY;
/// Time before it is in use for which it is valid, for clocks of browsers that are slow.
const EARLY: u64 = DAY;
/// Time from its first use to its end: with the early day thirteen in all, of fourteen allowed.
const LIFE: u64 = 12 * DAY;

/// The certificate in use, and the next.
pub(crate) struct Certificates {
    pub(crate) current: Identity,
    pub(crate) next: Identity,
    /// Seconds since 1970 from which the next is in use.
    pub(crate) change: u64,
}

impl Certificates {
    /// The certificates of a time, in seconds since 1970, for these names; missing ones are made
    /// and kept in this directory, and such that have ended are erased.
    ///
    /// # Errors
    /// [`IdentityError`] names the file.
    pub(crate) fn at(
        directory: &Path,
        names: &[String],
        now: u64,
    ) -> Result<Certificates, IdentityError> {
        let failed = |error| IdentityError::File {
            path: directory.into(),
            error,
        };
        files::private_directory(directory).map_err(failed)?;
        let kept = kept(directory).map_err(failed)?;
        let current = kept.iter().rev().find_map(|&start| {
            let in_use = start <= now && now < start + TERM;
            in_use.then(|| read(directory, names, start))?
        });
        let (start, current) = match current {
            Some(found) => found,
            None => make(directory, names, now)?,
        };
        let change = start + TERM;
        let next = read(directory, names, change);
        let (_, next) = match next {
            Some(found) => found,
            None => make(directory, names, change)?,
        };
        let ended = kept.iter().filter(|&&start| start + LIFE <= now);
        for path in ended.map(|&start| file(directory, start)) {
            if let Err(error) = files::erase(&path) {
                tracing::warn!(path = %path.display(), %error, "an old key is not erased");
            }
        }
        Ok(Certificates {
            current,
            next,
            change,
        })
    }
}

fn file(directory: &Path, start: u64) -> PathBuf {
    directory.join(format!("{start}.pem"))
}

/// The times at which the certificates of a directory come into use, in their order.
fn kept(directory: &Path) -> io::Result<Vec<u64>> {
    let mut starts = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let start = name.to_str().and_then(|name| name.strip_suffix(".pem"));
        starts.extend(start.and_then(|start| start.parse::<u64>().ok()));
    }
    starts.sort_unstable();
    Ok(starts)
}

/// The certificate of a time, unless it is for other names or cannot be read.
fn read(directory: &Path, names: &[String], start: u64) -> Option<(u64, Identity)> {
    let path = file(directory, start);
    let text = Zeroizing::new(std::fs::read(&path).ok()?);
    match Identity::from_pem(&path, &text) {
        Ok(identity) if names.iter().all(|name| identity.is_for(name)) => Some((start, identity)),
        Ok(_) => None,
        Err(error) => {
            // Nobody pins it for longer than two weeks: another does as well.
            tracing::warn!(%error, "made anew");
            None
        }
    }
}

fn make(directory: &Path, names: &[String], start: u64) -> Result<(u64, Identity), IdentityError> {
    let text = generate(names, start).map_err(IdentityError::Generate)?;
    let path = file(directory, start);
    let written = files::write_private(&path, text.as_bytes());
    written.map_err(|error| IdentityError::File {
        path: path.clone(),
        error,
    })?;
    Ok((start, Identity::from_pem(&path, text.as_bytes())?))
}

/// Certificate and key as PEM text.
fn generate(names: &[String], start: u64) -> Result<Zeroizing<String>, rcgen::Error> {
    let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "pi-server");
    params.not_before = at(start.saturating_sub(EARLY));
    params.not_after = at(start + LIFE);
    let certificate = params.self_signed(&key)?;
    let key = Zeroizing::new(key.serialize_pem());
    Ok(Zeroizing::new(format!("{}{}", certificate.pem(), *key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A time that is a round number of days.
    const NOW: u64 = 20_000 * DAY;

    fn names() -> Vec<String> {
        vec!["localhost".into(), "127.0.0.1".into()]
    }

    fn hashes(directory: &Path, now: u64) -> [[u8; 32]; 2] {
        let certificates = Certificates::at(directory, &names(), now).unwrap();
        [&certificates.current, &certificates.next].map(|identity| identity.fingerprint().0)
    }

    #[test]
    fn a_page_that_is_open_is_right_for_nine_days() {
        let state = tempfile::tempdir().unwrap();
        let mut told = hashes(state.path(), NOW);
        for hours in 1..24 * 60 {
            let now = NOW + hours * 3600;
            let at_present = hashes(state.path(), now);
            assert!(told.contains(&at_present[0]), "{hours} hours");
            if hours % (24 * 9) == 0 {
                assert_eq!(told[1], at_present[0], "the one announced comes into use");
                assert!(!told.contains(&at_present[1]), "and another is announced");
                told = at_present;
            }
            assert_eq!(told, at_present, "a restart changes nothing");
        }
        let files = std::fs::read_dir(state.path()).unwrap().count();
        assert!(files <= 3, "{files} files are left");
    }

    #[test]
    fn certificates_are_valid_for_thirteen_days_from_one_before_their_use() {
        let text = generate(&names(), NOW).unwrap();
        let identity = Identity::from_pem(Path::new("test"), text.as_bytes()).unwrap();
        let (chain, _) = identity.to_tls();
        // UTCTime of RFC 5280: 2024-10-04 is day 20,000.
        for time in [&b"241003000000Z"[..], b"241016000000Z"] {
            let found = chain[0].windows(time.len()).any(|bytes| bytes == time);
            assert!(found, "{}", String::from_utf8_lossy(time));
        }
    }

    #[test]
    fn a_clock_that_is_set_back_and_other_names_make_new_ones() {
        let state = tempfile::tempdir().unwrap();
        let first = hashes(state.path(), NOW);
        assert_ne!(hashes(state.path(), NOW - 30 * DAY)[0], first[0]);
        assert_eq!(hashes(state.path(), NOW), first);
        let other = ["pi.example".to_string()];
        let renamed = Certificates::at(state.path(), &other, NOW).unwrap();
        assert!(renamed.current.is_for("pi.example") && renamed.next.is_for("pi.example"));
    }

    #[test]
    fn a_broken_file_is_replaced() {
        let state = tempfile::tempdir().unwrap();
        let first = hashes(state.path(), NOW);
        std::fs::write(file(state.path(), NOW), "nothing").unwrap();
        let again = hashes(state.path(), NOW);
        assert_ne!(again[0], first[0]);
        assert_eq!(again[1], first[1]);
    }
}
