//! The list of the clients that a server serves: a text file, read again whenever it is consulted.

use crate::error::Error;
use crate::fingerprint::Fingerprint;
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Largest list, about 15,000 clients.
const MOST_BYTES: u64 = 1 << 20;

/// The clients that a file names: one fingerprint a line; `#` starts a comment.
///
/// The file may change while the server runs. A list that cannot be read or understood then changes
/// nothing: the last good one stays in force, and the log says why.
pub(super) struct AllowList {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    clients: HashSet<Fingerprint>,
    /// What the file was when it was last consulted, good or not.
    seen: Result<Vec<u8>, String>,
}

impl AllowList {
    /// Reads the list.
    ///
    /// # Errors
    /// [`Error::AllowList`] if the file cannot be read, or a line is no fingerprint.
    pub(super) fn open(path: &Path) -> Result<AllowList, Error> {
        let bad = |reason| Error::AllowList {
            path: path.to_owned(),
            reason,
        };
        let text = read(path).map_err(bad)?;
        let state = Mutex::new(State {
            clients: parse(&text).map_err(bad)?,
            seen: Ok(text),
        });
        let path = path.to_owned();
        Ok(AllowList { path, state })
    }

    /// Number of clients on the list.
    pub(super) fn len(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clients.len()
    }

    /// Tells whether the file names this client now.
    pub(super) fn allows(&self, client: Fingerprint) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // The content, not its date: two changes may have one date.
        let found = read(&self.path);
        if found != state.seen {
            let parsed = found.as_ref().map_err(String::clone);
            match parsed.and_then(|text| parse(text)) {
                Ok(clients) => {
                    tracing::info!(clients = clients.len(), "the list of clients has changed");
                    state.clients = clients;
                }
                Err(reason) => tracing::warn!(
                    path = %self.path.display(),
                    reason,
                    "the list of clients is not usable; the last one stays in force"
                ),
            }
            state.seen = found;
        }
        state.clients.contains(&client)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut limited = file.take(MOST_BYTES + 1);
    limited
        .read_to_end(&mut text)
        .map_err(|error| error.to_string())?;
    match text.len() as u64 > MOST_BYTES {
        true => Err(format!("it is longer than {MOST_BYTES} bytes")),
        false => Ok(text),
    }
}

fn parse(text: &[u8]) -> Result<HashSet<Fingerprint>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is no text".to_string())?;
    let lines = text.lines().enumerate().filter_map(|(index, line)| {
        let content = line.split('#').next().unwrap_or_default().trim();
        let fingerprint = || {
            let parsed = content.parse::<Fingerprint>();
            parsed.map_err(|error| format!("line {}: {error}", index + 1))
        };
        (!content.is_empty()).then(fingerprint)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Fingerprint = Fingerprint([0xaa; 32]);
    const B: Fingerprint = Fingerprint([0xbb; 32]);

    #[test]
    fn any_bytes_are_a_list_or_a_complaint() {
        let valid = format!("# ours\n\n  {A}  # the first\r\n{B}\n");
        assert_eq!(parse(valid.as_bytes()), Ok(HashSet::from([A, B])));
        bolero::check!().for_each(|input: &[u8]| {
            let _ = parse(input);
            let mut changed = valid.clone().into_bytes();
            for change in input.chunks_exact(2) {
                changed[usize::from(change[0]) % valid.len()] = change[1];
            }
            if let Ok(clients) = parse(&changed) {
                let again: Vec<String> = clients.iter().map(Fingerprint::to_string).collect();
                assert_eq!(parse(again.join("\n").as_bytes()), Ok(clients));
            }
        });
    }

    #[test]
    fn a_list_has_comments_and_follows_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clients");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(&format!("# ours\n\n  {A}  # the first\r\n"));
        let list = AllowList::open(&path).unwrap();
        assert_eq!(list.len(), 1);
        assert!(list.allows(A) && !list.allows(B));
        write(&format!("{B}"));
        assert!(list.allows(B) && !list.allows(A));
        write("");
        assert!(!list.allows(A) && !list.allows(B));
    }

    #[test]
    fn a_list_that_breaks_leaves_the_last_one_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clients");
        std::fs::write(&path, format!("{A}")).unwrap();
        let list = AllowList::open(&path).unwrap();
        for broken in [format!("{A}\n{B}0"), "\u{0}".repeat(2 << 20), "x".into()] {
            std::fs::write(&path, broken).unwrap();
            assert!(list.allows(A) && !list.allows(B));
        }
        std::fs::write(&path, b"\xff").unwrap();
        assert!(list.allows(A));
        std::fs::remove_file(&path).unwrap();
        assert!(list.allows(A) && !list.allows(B));
        std::fs::write(&path, format!("{B}")).unwrap();
        assert!(list.allows(B) && !list.allows(A));
    }

    #[test]
    fn a_broken_list_is_explained_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clients");
        let complaint = || AllowList::open(&path).err().unwrap().to_string();
        assert!(complaint().contains("clients"), "{}", complaint());
        std::fs::write(&path, format!("# who\n{A}\nabc\n")).unwrap();
        assert!(complaint().contains("line 3: a fingerprint has 64"));
    }
}
