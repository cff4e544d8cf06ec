//! The models that a server has: where their files are, which version of each is current, and what
//! becomes of those that are replaced while clients still hold bundles for them.
//!
//! - The *current* version of a model is the one for which bundles are made.
//! - A version that another has replaced goes on answering until the last bundle for it is spent,
//!   even if its files are gone; after a restart it is there only if its files are.
//! - A model whose name is gone is *retired*: it answers no more from that moment.

use super::{Shared, lock};
use crate::control::{LONGEST_NAME, Listing, MOST_MODELS, Wanted};
use crate::error::Error;
use crate::fingerprint::{Fingerprint, short};
use crate::model_files;
use crate::store::{ModelDigest, today};
use crate::stream::Refusal;
use bytes::Bytes;
use pi_ir::Reveal;
use pi_protocol::cost;
use pi_protocol::session::{ClientModel, ServerModel};
use std::cmp::Ordering;
use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{self, AtomicBool};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Where the models of a server are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSources {
    /// Directories of one model each, with the name of it; without one, that of the directory.
    pub single: Vec<(Option<String>, PathBuf)>,
    /// A directory with one directory for each model: that has the two files of the model, or one
    /// directory for each version, of which the last is current, `10` being after `9`.
    pub directory: Option<PathBuf>,
}

impl ModelSources {
    /// One model, under the name of its directory.
    pub fn one(directory: impl Into<PathBuf>) -> ModelSources {
        ModelSources {
            single: vec![(None, directory.into())],
            directory: None,
        }
    }

    /// What is there now: by name, the directories of the versions, the current one last.
    ///
    /// # Errors
    /// All faults found.
    pub fn find(&self) -> Result<BTreeMap<String, Vec<Found>>, Vec<Error>> {
        let mut found = BTreeMap::new();
        let mut faults = Vec::new();
        for (name, directory) in &self.single {
            match name.clone().map_or_else(|| name_of(directory), Ok) {
                Err(error) => faults.push(error),
                Ok(name) => {
                    let version = Found {
                        directory: directory.clone(),
                        version: None,
                    };
                    insert(&mut found, &mut faults, name, vec![version], directory);
                }
            }
        }
        if let Some(parent) = &self.directory {
            match directories(parent) {
                Err(error) => faults.push(error),
                Ok(models) => {
                    for (name, directory) in models {
                        match versions(&directory) {
                            Err(error) => faults.push(error),
                            Ok(versions) => {
                                insert(&mut found, &mut faults, name, versions, &directory);
                            }
                        }
                    }
                }
            }
        }
        if found.is_empty() && faults.is_empty() {
            let nowhere = PathBuf::from("nowhere");
            let directory = self.directory.clone().unwrap_or(nowhere);
            faults.push(model_files::unusable(&directory, "it has no model"));
        }
        if found.values().map(Vec::len).sum::<usize>() > MOST_MODELS {
            let directory = self.directory.clone().unwrap_or_default();
            let reason = format!("more than {MOST_MODELS} models and versions");
            faults.push(model_files::unusable(&directory, reason));
        }
        match faults.is_empty() {
            true => Ok(found),
            false => Err(faults),
        }
    }
}

/// A version of a model on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its directory.
    pub directory: PathBuf,
    /// Its version; without one, the first digits of its digest.
    pub version: Option<String>,
}

fn insert(
    found: &mut BTreeMap<String, Vec<Found>>,
    faults: &mut Vec<Error>,
    name: String,
    versions: Vec<Found>,
    directory: &Path,
) {
    if let Err(reason) = check_name(&name) {
        faults.push(model_files::unusable(directory, reason));
        return;
    }
    match found.entry(name) {
        Entry::Vacant(place) => drop(place.insert(versions)),
        Entry::Occupied(place) => {
            let reason = format!("there is another model named {}", place.key());
            faults.push(model_files::unusable(directory, reason));
        }
    }
}

/// Ensures that a name can be typed, and shown anywhere.
///
/// # Errors
/// What a name looks like.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match !name.is_empty() && name.len() <= LONGEST_NAME && name.chars().all(plain) {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is no name of a model or version: letters, digits, dots, dashes and \
             underscores, at most {LONGEST_NAME}"
        )),
    }
}

fn name_of(directory: &Path) -> Result<String, Error> {
    // `models/x/.` and a link are named as the user would: by what they are called.
    let canonical = || std::fs::canonicalize(directory).ok();
    let name = match directory.file_name() {
        Some(name) => Some(name.to_owned()),
        None => canonical().and_then(|path| path.file_name().map(ToOwned::to_owned)),
    };
    let name = name.unwrap_or_default().to_string_lossy().into_owned();
    match check_name(&name) {
        Ok(()) => Ok(name),
        // A directory may be called anything as long as nothing else is served.
        Err(_) => Ok("model".into()),
    }
}

/// The directories in a directory, by name; those whose name starts with a dot are left out, so
/// that a model can be copied under such a name and then renamed.
fn directories(parent: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let failed = |error: std::io::Error| model_files::unusable(parent, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(parent).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !name.starts_with('.') {
            found.push((name.into_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

/// The versions in the directory of a model, the current one last.
fn versions(directory: &Path) -> Result<Vec<Found>, Error> {
    if directory.join(pi_ir::artifact::ARTIFACT_NAME).exists() {
        return Ok(vec![Found {
            directory: directory.to_owned(),
            version: None,
        }]);
    }
    let mut versions = directories(directory)?;
    for (version, _) in &versions {
        check_name(version).map_err(|reason| model_files::unusable(directory, reason))?;
    }
    if versions.is_empty() {
        let reason = "it has neither the files of a model nor a directory of a version";
        return Err(model_files::unusable(directory, reason));
    }
    versions.sort_by(|(one, _), (other, _)| by_number(one, other));
    let versions = versions.into_iter();
    let found = versions.map(|(version, directory)| Found {
        directory,
        version: Some(version),
    });
    Ok(found.collect())
}

/// Orders texts as people do, numbers inside them by their value.
fn by_number(one: &str, other: &str) -> Ordering {
    let mut one = Pieces(one).map(|piece| (piece.trim_start_matches('0'), piece));
    let mut other = Pieces(other).map(|piece| (piece.trim_start_matches('0'), piece));
    loop {
        let (left, right) = match (one.next(), other.next()) {
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(left), Some(right)) => (left, right),
        };
        let digits = |piece: &str| piece.starts_with(|c: char| c.is_ascii_digit());
        let order = match digits(left.1) && digits(right.1) {
            true => (left.0.len(), left.0).cmp(&(right.0.len(), right.0)),
            false => left.1.cmp(right.1),
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// A text in pieces that are digits or none.
struct Pieces<'a>(&'a str);

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let first = self.0.chars().next()?.is_ascii_digit();
        let end = self.0.find(|c: char| c.is_ascii_digit() != first);
        let (piece, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        Some(piece)
    }
}

/// A version of a model in memory.
pub(super) struct Served {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) digest: ModelDigest,
    pub(super) model: ServerModel,
    pub(super) artifact: Bytes,
    pub(super) reveals: Reveal,
    cost: cost::Cost,
    classes: u32,
    /// Whether bundles are made for it.
    current: AtomicBool,
    /// Whether it is kept for the sake of its bundles alone.
    leaving: AtomicBool,
    /// Whether it answers no more.
    retired: AtomicBool,
}

impl Served {
    /// Loads a version.
    ///
    /// # Errors
    /// [`Error::Model`] with what is wrong.
    fn load(name: &str, found: &Found) -> Result<Served, Error> {
        let directory = &found.directory;
        let (artifact, bytes) = model_files::read_artifact(directory)?;
        let weights = model_files::read_weights(directory)?;
        let unusable = |error: &dyn ToString| model_files::unusable(directory, error.to_string());
        artifact.check_weights(&weights).map_err(|e| unusable(&e))?;
        let public = ClientModel::new(artifact.clone()).map_err(|e| unusable(&e))?;
        let cost = public.cost().map_err(|e| unusable(&e))?;
        let reveals = artifact.circuit.output().1;
        let shape = artifact.circuit.layers.last().map(|layer| layer.shape);
        let classes = shape.map_or(0, |shape| shape.c * shape.h * shape.w);
        let model = ServerModel::new(artifact, weights).map_err(|e| unusable(&e))?;
        let digest = model.digest();
        Ok(Served {
            name: name.to_owned(),
            version: found.version.clone().unwrap_or_else(|| short(&digest)),
            digest,
            model,
            artifact: bytes.into(),
            reveals,
            cost,
            classes,
            current: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            retired: AtomicBool::new(false),
        })
    }

    pub(super) fn is_current(&self) -> bool {
        self.current.load(atomic::Ordering::Relaxed)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(atomic::Ordering::Relaxed)
    }

    /// Name and version, as logs and metrics show them.
    pub(super) fn label(&self) -> String {
        format!("{}:{}", self.name, self.version)
    }
}

/// The models of a server.
pub(super) struct Models {
    sources: ModelSources,
    /// Name of the model for clients that ask for none.
    default: Option<String>,
    served: Mutex<Vec<Arc<Served>>>,
}

/// What a look at the files has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Versions that are served from now on.
    pub(super) added: Vec<String>,
    /// Versions that are gone.
    pub(super) gone: Vec<String>,
    /// What is wrong with what was found; nothing changes for these models.
    pub(super) faults: Vec<String>,
}

impl Changes {
    /// Tells the log.
    pub(super) fn log(&self) {
        for model in &self.added {
            tracing::info!(model, "loaded");
        }
        for model in &self.gone {
            tracing::info!(model, "no longer served");
        }
        for fault in &self.faults {
            tracing::error!(fault, "a model cannot be loaded; what was served stays");
        }
    }
}

impl Models {
    /// Loads all that the sources have.
    ///
    /// # Errors
    /// [`Error::Models`] with every fault.
    pub(super) fn load(sources: ModelSources, default: Option<String>) -> Result<Self, Error> {
        let found = sources.find().map_err(Error::all)?;
        let mut served = Vec::new();
        let mut faults = Vec::new();
        for (name, versions) in &found {
            let last = versions.len() - 1;
            for (place, version) in versions.iter().enumerate() {
                match Served::load(name, version) {
                    Ok(model) => {
                        model
                            .current
                            .store(place == last, atomic::Ordering::Relaxed);
                        served.push(Arc::new(model));
                    }
                    Err(error) => faults.push(error),
                }
            }
        }
        if let Some(name) = &default
            && !found.contains_key(name)
        {
            faults.push(Error::NoSuchModel(name.clone()));
        }
        check_digests(&served).unwrap_or_else(|error| faults.push(error));
        if !faults.is_empty() {
            return Err(Error::all(faults));
        }
        Ok(Models {
            sources,
            default,
            served: Mutex::new(served),
        })
    }

    /// All versions in memory.
    pub(super) fn all(&self) -> Vec<Arc<Served>> {
        lock(&self.served).clone()
    }

    /// The versions that are kept for the sake of their bundles alone.
    pub(super) fn leaving(&self) -> Vec<ModelDigest> {
        let served = lock(&self.served);
        let leaving = served
            .iter()
            .filter(|s| s.leaving.load(atomic::Ordering::Relaxed));
        leaving.map(|served| served.digest).collect()
    }

    /// Looks at the files again. `fits` says whether there is memory to serve a version, `held`
    /// which versions have bundles that are ready.
    pub(super) fn reload(
        &self,
        fits: impl Fn(&ServerModel) -> Result<(), Error>,
        held: &HashSet<ModelDigest>,
    ) -> Changes {
        let mut changes = Changes::default();
        let found = match self.sources.find() {
            Ok(found) => found,
            Err(faults) => {
                changes.faults = faults.iter().map(Error::to_string).collect();
                return changes;
            }
        };
        let before = self.all();
        let known: HashMap<ModelDigest, &Arc<Served>> = before
            .iter()
            .map(|served| (served.digest, served))
            .collect();
        let mut after: Vec<Arc<Served>> = Vec::new();
        let mut current = HashSet::new();
        for (name, versions) in &found {
            let mut newest = None;
            for version in versions {
                let digest = model_files::digest(&version.directory);
                let kept = digest.as_ref().ok().and_then(|digest| known.get(digest));
                let same = |served: &&&Arc<Served>| {
                    let version = version.version.as_ref();
                    served.name == *name && version.is_none_or(|v| *v == served.version)
                };
                let served = match kept.filter(same) {
                    Some(served) => Ok(Arc::clone(served)),
                    None => digest
                        .and_then(|_| Served::load(name, version))
                        .and_then(|served| {
                            fits(&served.model)?;
                            changes.added.push(served.label());
                            Ok(Arc::new(served))
                        }),
                };
                match served {
                    Ok(served) => {
                        newest = Some(served.digest);
                        after.push(served);
                    }
                    Err(error) => changes.faults.push(error.to_string()),
                }
            }
            // A model none of whose versions can be loaded stays as it is.
            let was = before
                .iter()
                .find(|served| served.name == *name && served.is_current());
            current.extend(newest.or(was.map(|served| served.digest)));
        }
        for served in &before {
            let stays = after.iter().any(|other| Arc::ptr_eq(other, served));
            let replaced = after.iter().any(|other| other.digest == served.digest);
            let named = found.contains_key(&served.name);
            let wanted = current.contains(&served.digest) || held.contains(&served.digest);
            if stays {
                served.leaving.store(false, atomic::Ordering::Relaxed);
                continue;
            }
            if named && wanted && !replaced {
                let leaves = !current.contains(&served.digest);
                served.leaving.store(leaves, atomic::Ordering::Relaxed);
                after.push(Arc::clone(served));
            } else {
                served.retired.store(true, atomic::Ordering::Relaxed);
                changes.gone.push(served.label());
            }
        }
        if let Err(error) = check_digests(&after) {
            changes.faults.push(error.to_string());
            return Changes {
                faults: changes.faults,
                ..Changes::default()
            };
        }
        for served in &after {
            let is_current = current.contains(&served.digest);
            served.current.store(is_current, atomic::Ordering::Relaxed);
        }
        *lock(&self.served) = after;
        changes
    }

    /// The version for a client: of those it prefers the first that is there, else the current one
    /// of the name it wants, else of the default.
    ///
    /// # Errors
    /// [`Refusal::UnknownModel`], [`Refusal::WhichModel`] or [`Refusal::ModelNotAllowed`].
    pub(super) fn choose(
        &self,
        wanted: Option<&Wanted>,
        prefer: &[ModelDigest],
        may_use: impl Fn(&str) -> bool,
    ) -> Result<Arc<Served>, Refusal> {
        let served = lock(&self.served);
        if let Some(wanted) = wanted
            && !may_use(&wanted.name)
            && served.iter().any(|s| s.name == wanted.name)
        {
            return Err(Refusal::ModelNotAllowed);
        }
        let usable: Vec<&Arc<Served>> = served.iter().filter(|s| may_use(&s.name)).collect();
        let fits = |served: &Served| {
            wanted.is_none_or(|wanted| {
                let version = wanted.version.as_ref();
                served.name == wanted.name && version.is_none_or(|v| *v == served.version)
            })
        };
        let preferred = prefer.iter().find_map(|digest| {
            let mut usable = usable.iter();
            usable.find(|served| served.digest == *digest && fits(served))
        });
        if let Some(served) = preferred {
            return Ok(Arc::clone(served));
        }
        if let Some(wanted) = wanted {
            let versions = || usable.iter().filter(|served| fits(served));
            let current = versions().find(|served| served.is_current());
            // A version that is asked for by its name need not be the current one.
            let exact = wanted
                .version
                .is_some()
                .then(|| versions().next())
                .flatten();
            return current
                .or(exact)
                .map(|served| Arc::clone(served))
                .ok_or(Refusal::UnknownModel);
        }
        let mut current = usable.iter().filter(|served| served.is_current());
        if let Some(default) = &self.default {
            let default = current.find(|served| served.name == *default);
            return default.map(|s| Arc::clone(s)).ok_or(Refusal::WhichModel);
        }
        match (current.next(), current.next()) {
            (Some(only), None) => Ok(Arc::clone(only)),
            (None, _) if served.is_empty() => Err(Refusal::UnknownModel),
            (None, _) => Err(Refusal::ModelNotAllowed),
            _ => Err(Refusal::WhichModel),
        }
    }

    /// The name of the model for clients that name none, if there is one.
    #[cfg(feature = "web")]
    pub(super) fn default_name(&self) -> Option<String> {
        let served = self.all();
        let default = served.iter().find(|served| self.is_default(served));
        default.map(|served| served.name.clone())
    }

    /// Whether a client that names no model gets this one.
    fn is_default(&self, served: &Served) -> bool {
        let only = || {
            let all = lock(&self.served);
            all.iter().all(|other| other.name == served.name)
        };
        match &self.default {
            Some(name) => served.name == *name,
            None => only(),
        }
    }

    /// A mark of the files as they are, which changes with them: names, sizes and dates.
    pub(super) fn files(&self) -> Vec<(PathBuf, u64, Option<SystemTime>)> {
        let Ok(found) = self.sources.find() else {
            return Vec::new();
        };
        let mut files = Vec::new();
        for version in found.values().flatten() {
            for name in [
                pi_ir::artifact::ARTIFACT_NAME,
                pi_ir::artifact::WEIGHTS_NAME,
            ] {
                let path = version.directory.join(name);
                let data = std::fs::metadata(&path).ok();
                let length = data.as_ref().map_or(0, std::fs::Metadata::len);
                files.push((path, length, data.and_then(|data| data.modified().ok())));
            }
        }
        files
    }
}

/// Bundles are bound to a digest, so two names for one digest could not be told apart.
fn check_digests(served: &[Arc<Served>]) -> Result<(), Error> {
    let mut labels: HashMap<ModelDigest, String> = HashMap::new();
    for model in served {
        if let Some(other) = labels.insert(model.digest, model.label()) {
            return Err(Error::SameModel(other, model.label()));
        }
    }
    Ok(())
}

impl Shared {
    /// The models that a client may use, and what it still may do with each.
    pub(super) fn catalogue(&self, client: Fingerprint) -> Result<Vec<Listing>, Error> {
        let mut models = self.models.all();
        models.retain(|served| self.clients.may_use(client, &served.name));
        models.sort_by_key(|s| (s.name.clone(), !s.is_current(), s.version.clone()));
        models
            .iter()
            .map(|served| self.listing(client, served))
            .collect()
    }

    fn listing(&self, client: Fingerprint, served: &Served) -> Result<Listing, Error> {
        let allowance = self.allowance(client, served);
        let usage = self.store.usage(client, &served.name, today())?;
        let left = |limit: Option<u64>, used| limit.map(|limit: u64| limit.saturating_sub(used));
        let cost = &served.cost;
        Ok(Listing {
            name: served.name.clone(),
            version: served.version.clone(),
            model: served.digest,
            current: served.is_current(),
            default: self.models.is_default(served),
            reveals: served.reveals,
            classes: served.classes,
            artifact_bytes: served.artifact.len() as u64,
            offline_bytes_up: cost.offline.bytes_up,
            offline_bytes_down: cost.offline.bytes_down,
            online_bytes_up: cost.online.bytes_up,
            online_bytes_down: cost.online.bytes_down,
            online_round_trips: cost.online_round_trips(),
            bundle_bytes: cost.stored.client,
            client_memory: cost.client_memory.offline,
            most_bundles: allowance.bundles,
            answers_left: left(allowance.answers, usage.answers),
            answers_left_today: left(allowance.answers_per_day, usage.answers_today),
        })
    }

    /// The versions for which bundles are ready.
    pub(super) fn held_models(&self) -> Result<HashSet<ModelDigest>, Error> {
        Ok(self.store.at_rest()?.into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_the_order_of_their_numbers() {
        let mut versions = ["10", "9", "v2", "1.10", "1.9", "v10", "009", "2024-01"];
        versions.sort_by(|one, other| by_number(one, other));
        assert_eq!(
            versions,
            ["1.9", "1.10", "9", "009", "10", "2024-01", "v2", "v10"]
        );
    }

    #[test]
    fn names_are_plain() {
        for name in ["a", "resnet-18", "x_1.2", &"a".repeat(LONGEST_NAME)] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", "a b", "ä", "a/b", &"a".repeat(LONGEST_NAME + 1), "a\n"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
