//! Who may do what: the clients that a server serves, and the limits of each, from a file that is
//! read again whenever it is consulted.

use super::limits::{Limits, Most};
use super::lock;
use crate::error::Error;
use crate::fingerprint::{Fingerprint, of_certificate_name};
use crate::stream::Refusal;
use pi_ir::Reveal;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Largest file, about 15,000 clients of a plain list.
const MOST_BYTES: u64 = 1 << 20;

/// Answers that a client gets of a model that reveals logits, unless the operator says otherwise.
const MOST_LOGITS: u64 = 1000;

/// A file that says whom to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientList {
    /// One fingerprint a line, `#` starts a comment; nobody else is served.
    Plain(PathBuf),
    /// TOML, with names, models and limits; see `docs/operations.md`.
    Toml(PathBuf),
}

impl ClientList {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            ClientList::Plain(path) | ClientList::Toml(path) => path,
        }
    }

    fn parse(&self, text: &[u8]) -> Result<Rules, String> {
        let text = std::str::from_utf8(text).map_err(|_| "it is no text".to_string())?;
        match self {
            ClientList::Plain(_) => plain(text),
            ClientList::Toml(_) => Rules::from_toml(text),
        }
    }
}

/// One client in a file of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClientEntry {
    /// What the operator calls it.
    pub name: Option<String>,
    /// Fingerprint of its certificate, or
    pub fingerprint: Option<String>,
    /// the name in its certificate that an authority signed, such as `dns:ward3.example` or
    /// `uri:spiffe://example/ward3`.
    pub certificate_name: Option<String>,
    /// Names of the models that it may use; all if absent.
    pub models: Option<Vec<String>>,
    /// Whether it is served no more and its bundles are given up.
    #[serde(default)]
    pub revoked: bool,
    /// Its limits for every model.
    #[serde(default)]
    pub limits: Limits,
    /// Its limits for one model, by name.
    #[serde(default)]
    pub model: BTreeMap<String, Limits>,
}

impl ClientEntry {
    /// The name under which the server knows it.
    ///
    /// # Errors
    /// What is wrong with the entry.
    pub fn account(&self) -> Result<Fingerprint, String> {
        match (&self.fingerprint, &self.certificate_name) {
            (Some(text), None) => text
                .parse()
                .map_err(|error| format!("fingerprint {text:?}: {error}")),
            (None, Some(name)) => match name.split_once(':') {
                Some(("dns" | "uri", rest)) if !rest.is_empty() => Ok(of_certificate_name(name)),
                _ => Err(format!(
                    "certificate-name {name:?} does not start with dns: or uri:"
                )),
            },
            _ => Err("a client has either a fingerprint or a certificate-name".into()),
        }
    }

    fn may_use(&self, model: &str) -> bool {
        let allowed = |models: &Vec<String>| models.iter().any(|name| name == model);
        !self.revoked && self.models.as_ref().is_none_or(allowed)
    }
}

/// What a file of clients says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClientFile {
    /// Whether clients that the file does not name are served too.
    #[serde(default)]
    pub serve_others: bool,
    /// Limits of every client for every model.
    #[serde(default)]
    pub limits: Limits,
    /// Limits of every client for one model, by name.
    #[serde(default)]
    pub model: BTreeMap<String, Limits>,
    /// The clients.
    #[serde(default)]
    pub client: Vec<ClientEntry>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    file: ClientFile,
    /// Places in the file, by account.
    places: HashMap<Fingerprint, usize>,
}

impl Rules {
    fn from_toml(text: &str) -> Result<Rules, String> {
        let file = toml::from_str(text).map_err(|error| error.to_string())?;
        Rules::new(file)
    }

    fn new(file: ClientFile) -> Result<Rules, String> {
        let mut places = HashMap::new();
        for (place, entry) in file.client.iter().enumerate() {
            let name = entry.name.as_deref().unwrap_or("without a name");
            let at = |error| format!("client {} ({name}): {error}", place + 1);
            let account = entry.account().map_err(at)?;
            if places.insert(account, place).is_some() {
                return Err(at("it is named twice".to_string()));
            }
        }
        Ok(Rules { file, places })
    }

    fn entry(&self, client: Fingerprint) -> Option<&ClientEntry> {
        self.places
            .get(&client)
            .map(|&place| &self.file.client[place])
    }

    fn serves(&self, client: Fingerprint) -> bool {
        match self.entry(client) {
            Some(entry) => !entry.revoked,
            None => self.file.serve_others,
        }
    }

    /// The limits of a client for a model, the narrowest rule first.
    fn limits(&self, client: Fingerprint, model: &str) -> Limits {
        let everyone = || {
            let model = self.file.model.get(model).copied();
            model.unwrap_or_default().or(self.file.limits)
        };
        match self.entry(client) {
            Some(entry) => {
                let model = entry.model.get(model).copied().unwrap_or_default();
                model.or(entry.limits).or(everyone())
            }
            None => everyone(),
        }
    }
}

/// Reads a file of clients once.
///
/// # Errors
/// What is wrong with it.
pub fn read_clients(list: &ClientList) -> Result<ClientFile, String> {
    let text = read(list.path())?;
    list.parse(&text).map(|rules| rules.file)
}

/// The limits of a client for a model, all of them decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    pub(super) bundles: u64,
    pub(super) answers: Option<u64>,
    pub(super) answers_per_day: Option<u64>,
    pub(super) bytes_per_day: Option<u64>,
}

/// The clients of a server.
///
/// The file may change while the server runs. One that cannot be read or understood then changes
/// nothing: the last good one stays in force, and the log says why.
pub(super) struct Clients {
    list: Option<ClientList>,
    /// Where no file sets a limit.
    defaults: Limits,
    state: Mutex<State>,
}

struct State {
    rules: Rules,
    /// What the file was when it was last consulted, good or not.
    seen: Result<Vec<u8>, String>,
}

impl Clients {
    /// Reads the file, if there is one; all clients are served otherwise.
    ///
    /// # Errors
    /// [`Error::ClientList`] if the file cannot be read or understood.
    pub(super) fn open(list: Option<&ClientList>, defaults: Limits) -> Result<Clients, Error> {
        let state = match list {
            None => State {
                rules: Rules {
                    file: ClientFile {
                        serve_others: true,
                        ..ClientFile::default()
                    },
                    places: HashMap::new(),
                },
                seen: Ok(Vec::new()),
            },
            Some(list) => {
                let bad = |reason| Error::ClientList {
                    path: list.path().to_owned(),
                    reason,
                };
                let text = read(list.path()).map_err(bad)?;
                State {
                    rules: list.parse(&text).map_err(bad)?,
                    seen: Ok(text),
                }
            }
        };
        Ok(Clients {
            list: list.cloned(),
            defaults,
            state: Mutex::new(state),
        })
    }

    /// Number of clients that the file names and that are served; `None` if all that come are.
    pub(super) fn listed(&self) -> Option<usize> {
        self.consult(|rules| {
            let served = rules.file.client.iter().filter(|entry| !entry.revoked);
            (!rules.file.serve_others).then(|| served.count())
        })
    }

    /// Ensures that a client is to be served.
    pub(super) fn admit(&self, client: Fingerprint) -> Result<(), Refusal> {
        match self.consult(|rules| rules.serves(client)) {
            true => Ok(()),
            false => Err(Refusal::NotAllowed),
        }
    }

    /// Whether the file names a client, and does not revoke it.
    pub(super) fn names(&self, client: Fingerprint) -> bool {
        self.consult(|rules| rules.entry(client).is_some_and(|entry| !entry.revoked))
    }

    /// Tells whether a client may use a model.
    pub(super) fn may_use(&self, client: Fingerprint, model: &str) -> bool {
        self.consult(|rules| {
            let entry = rules.entry(client);
            entry.map_or(rules.file.serve_others, |entry| entry.may_use(model))
        })
    }

    /// Names of models in the file, which need not exist.
    pub(super) fn models_named(&self) -> Vec<String> {
        self.consult(|rules| {
            let file = &rules.file;
            let mut names: Vec<String> = file.model.keys().cloned().collect();
            for entry in &file.client {
                names.extend(entry.model.keys().cloned());
                names.extend(entry.models.iter().flatten().cloned());
            }
            names.sort();
            names.dedup();
            names
        })
    }

    /// The clients that are served no more, for good, in the order of the file.
    pub(super) fn revoked(&self) -> Vec<Fingerprint> {
        self.consult(|rules| {
            let entries = rules.file.client.iter();
            let revoked = entries.filter(|entry| entry.revoked);
            // Every entry of rules that are in force has an account.
            revoked.filter_map(|entry| entry.account().ok()).collect()
        })
    }

    /// The limits of a client for a model that reveals this.
    pub(super) fn allowance(&self, client: Fingerprint, model: &str, reveals: Reveal) -> Allowance {
        let limits = self
            .consult(|rules| rules.limits(client, model))
            .or(self.defaults);
        let unset = match reveals {
            Reveal::Logits => Most::At(MOST_LOGITS),
            Reveal::Label => Most::Unlimited,
        };
        Allowance {
            bundles: limits.bundles.and_then(Most::at).unwrap_or(u64::MAX),
            answers: limits.answers.unwrap_or(unset).at(),
            answers_per_day: limits.answers_per_day.and_then(Most::at),
            bytes_per_day: limits.bytes_per_day.and_then(Most::at),
        }
    }

    /// Asks the rules as the file has them now.
    fn consult<T>(&self, question: impl FnOnce(&Rules) -> T) -> T {
        let mut state = lock(&self.state);
        if let Some(list) = &self.list {
            // The content, not its date: two changes may have one date.
            let found = read(list.path());
            if found != state.seen {
                let parsed = found.as_ref().map_err(String::clone);
                match parsed.and_then(|text| list.parse(text)) {
                    Ok(rules) => {
                        let clients = rules.file.client.len();
                        tracing::info!(clients, "the list of clients has changed");
                        state.rules = rules;
                    }
                    Err(reason) => tracing::warn!(
                        path = %list.path().display(),
                        reason,
                        "the list of clients is not usable; the last one stays in force"
                    ),
                }
                state.seen = found;
            }
        }
        question(&state.rules)
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

/// The rules of a plain list.
fn plain(text: &str) -> Result<Rules, String> {
    let mut file = ClientFile::default();
    let mut known = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let content = line.split('#').next().unwrap_or_default().trim();
        if content.is_empty() {
            continue;
        }
        let parsed = content.parse::<Fingerprint>();
        let client = parsed.map_err(|error| format!("line {}: {error}", index + 1))?;
        if known.insert(client) {
            file.client.push(ClientEntry {
                fingerprint: Some(client.to_string()),
                ..ClientEntry::default()
            });
        }
    }
    Rules::new(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Fingerprint = Fingerprint([0xaa; 32]);
    const B: Fingerprint = Fingerprint([0xbb; 32]);

    /// Clients from a file in a directory that lives as long as it.
    struct Listed {
        _directory: tempfile::TempDir,
        path: PathBuf,
        list: ClientList,
    }

    impl Listed {
        fn plain(text: &str) -> Listed {
            Listed::new(text, ClientList::Plain)
        }

        fn new(text: &str, kind: impl Fn(PathBuf) -> ClientList) -> Listed {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("clients");
            std::fs::write(&path, text).unwrap();
            Listed {
                _directory: directory,
                list: kind(path.clone()),
                path,
            }
        }

        fn write(&self, text: impl AsRef<[u8]>) {
            std::fs::write(&self.path, text).unwrap();
        }

        fn open(&self) -> Result<Clients, Error> {
            Clients::open(Some(&self.list), Limits::default())
        }
    }

    fn serves(clients: &Clients) -> (bool, bool) {
        (clients.admit(A).is_ok(), clients.admit(B).is_ok())
    }

    #[test]
    fn any_bytes_are_a_list_or_a_complaint() {
        let lists = [
            ClientList::Plain(PathBuf::new()),
            ClientList::Toml(PathBuf::new()),
        ];
        let plain = format!("# ours\n\n  {A}  # the first\r\n{B}\n{A}\n");
        let toml = format!(
            "serve-others = true\n[[client]]\nfingerprint = \"{A}\"\nmodels = [\"a\"]\n\
             limits = {{ answers = 3 }}\n[client.model.a]\nbundles = \"1K\"\n"
        );
        let texts = [plain, toml];
        for (list, text) in lists.iter().zip(&texts) {
            assert!(list.parse(text.as_bytes()).unwrap().serves(A));
        }
        bolero::check!().for_each(|input: &[u8]| {
            for (list, text) in lists.iter().zip(&texts) {
                let _ = list.parse(input);
                let mut changed = text.clone().into_bytes();
                for change in input.chunks_exact(2) {
                    changed[usize::from(change[0]) % text.len()] = change[1];
                }
                let _ = list.parse(&changed);
            }
        });
    }

    #[test]
    fn a_list_has_comments_and_follows_its_file() {
        let file = Listed::plain(&format!("# ours\n\n  {A}  # the first\r\n"));
        let clients = file.open().unwrap();
        assert_eq!(clients.listed(), Some(1));
        assert_eq!(serves(&clients), (true, false));
        file.write(format!("{B}"));
        assert_eq!(serves(&clients), (false, true));
        file.write("");
        assert_eq!(serves(&clients), (false, false));
        let everybody = Clients::open(None, Limits::default()).unwrap();
        assert_eq!(serves(&everybody), (true, true));
        assert_eq!(everybody.listed(), None);
    }

    #[test]
    fn a_list_that_breaks_leaves_the_last_one_in_force() {
        let file = Listed::plain(&format!("{A}"));
        let clients = file.open().unwrap();
        for broken in [format!("{A}\n{B}0"), "\u{0}".repeat(2 << 20), "x".into()] {
            file.write(broken);
            assert_eq!(serves(&clients), (true, false));
        }
        file.write(b"\xff");
        assert_eq!(serves(&clients), (true, false));
        std::fs::remove_file(&file.path).unwrap();
        assert_eq!(serves(&clients), (true, false));
        file.write(format!("{B}"));
        assert_eq!(serves(&clients), (false, true));
    }

    #[test]
    fn a_broken_list_is_explained_at_the_start() {
        let complaint = |file: &Listed| file.open().err().unwrap().to_string();
        let file = Listed::plain(&format!("# who\n{A}\nabc\n"));
        assert!(complaint(&file).contains("line 3: a fingerprint has 64"));
        std::fs::remove_file(&file.path).unwrap();
        assert!(complaint(&file).contains("clients"));
        let toml = |text: &str| complaint(&Listed::new(text, ClientList::Toml));
        let twice = format!("[[client]]\nfingerprint = \"{A}\"\n").repeat(2);
        assert!(toml(&twice).contains("client 2 (without a name): it is named twice"));
        assert!(toml("[[client]]\nname = \"ward\"\n").contains("(ward): a client has either"));
        let odd = "[[client]]\ncertificate-name = \"ward\"";
        assert!(toml(odd).contains("dns: or uri:"));
        assert!(toml("[[client]]\nfingerprint = \"ab\"").contains("64 hexadecimal"));
        assert!(toml("[[client]]\nfingerprnt = \"ab\"").contains("fingerprnt"));
    }

    #[test]
    fn limits_come_from_the_narrowest_rule() {
        let file = Listed::new(
            &format!(
                "serve-others = true\n\
                 [limits]\nanswers = 100\nbundles = 9\n\
                 [model.scan]\nanswers = 50\n\
                 [[client]]\nname = \"ward\"\nfingerprint = \"{A}\"\n\
                 models = [\"scan\", \"x-ray\"]\n\
                 limits = {{ answers = \"none\", answers-per-day = 5 }}\n\
                 model.scan = {{ answers = 7 }}\n"
            ),
            ClientList::Toml,
        );
        let defaults = Limits {
            bytes_per_day: Some(Most::At(1 << 20)),
            answers: Some(Most::At(1)),
            ..Limits::default()
        };
        let clients = Clients::open(Some(&file.list), defaults).unwrap();
        let of = |client, model| clients.allowance(client, model, Reveal::Logits);
        assert_eq!(of(A, "scan").answers, Some(7));
        assert_eq!(of(A, "x-ray").answers, None);
        assert_eq!(of(A, "x-ray").answers_per_day, Some(5));
        assert_eq!(of(B, "scan").answers, Some(50));
        assert_eq!(of(B, "x-ray").answers, Some(100));
        assert_eq!(of(B, "x-ray").bundles, 9);
        assert_eq!(of(B, "x-ray").bytes_per_day, Some(1 << 20));
        assert!(clients.may_use(A, "scan") && !clients.may_use(A, "other"));
        assert!(clients.may_use(B, "other"));
        let open = Clients::open(None, Limits::default()).unwrap();
        assert_eq!(
            open.allowance(A, "scan", Reveal::Logits).answers,
            Some(1000)
        );
        assert_eq!(open.allowance(A, "scan", Reveal::Label).answers, None);
    }

    #[test]
    fn a_revoked_client_is_served_no_more_even_where_all_are() {
        let file = Listed::new(
            &format!("serve-others = true\n[[client]]\nfingerprint = \"{A}\"\n"),
            ClientList::Toml,
        );
        let clients = file.open().unwrap();
        assert_eq!(serves(&clients), (true, true));
        assert_eq!(clients.revoked(), []);
        file.write(format!(
            "serve-others = true\n[[client]]\nfingerprint = \"{A}\"\nrevoked = true\n"
        ));
        assert_eq!(serves(&clients), (false, true));
        assert_eq!(clients.revoked(), [A]);
        assert!(!clients.may_use(A, "scan"));
    }

    #[test]
    fn a_client_of_an_authority_is_known_by_the_name_in_its_certificate() {
        let file = Listed::new(
            "[[client]]\ncertificate-name = \"dns:ward3.example\"\n",
            ClientList::Toml,
        );
        let clients = file.open().unwrap();
        let account = of_certificate_name("dns:ward3.example");
        assert!(clients.admit(account).is_ok());
        let other = of_certificate_name("dns:ward4.example");
        assert!(clients.admit(other).is_err());
    }
}
