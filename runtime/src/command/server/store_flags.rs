//! The flags of `pi-server` that choose a store which several servers share.

use crate::error::Error;
use crate::store::{ServerStore, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A store that several servers share, instead of the one in the state directory. Its URL may hold
/// a password, so this is not for messages.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct StoreArguments {
    /// Database of a store that several servers share, as
    /// postgresql://USER@HOST/NAME?sslmode=require. Without it, this server has a store of its own
    /// in its state directory. See docs/shared-store.md.
    #[arg(
        long,
        value_name = "URL",
        requires = "store_objects",
        requires = "store_key",
        conflicts_with = "store_database_file"
    )]
    store_database: Option<String>,
    /// File with that URL, since it may hold a password.
    #[arg(
        long,
        value_name = "FILE",
        requires = "store_objects",
        requires = "store_key"
    )]
    store_database_file: Option<PathBuf>,
    /// PEM file with the certificates of the authorities that certify the database's host.
    #[arg(long, value_name = "FILE")]
    store_database_ca: Option<PathBuf>,
    /// Where the shared store keeps contents, encrypted: a folder that all servers mount, or
    /// s3://BUCKET/PREFIX.
    #[arg(long, value_name = "URL")]
    store_objects: Option<String>,
    /// File with the keys of these contents, 64 hexadecimal digits a line: the first encrypts, all
    /// decrypt. Nobody else may read it.
    #[arg(long, value_name = "FILE")]
    store_key: Option<PathBuf>,
}

impl StoreArguments {
    /// Whether the store is one that several servers share.
    fn is_shared(&self) -> bool {
        let StoreArguments {
            store_database,
            store_database_file,
            store_database_ca,
            store_objects,
            store_key,
        } = self;
        store_database.is_some()
            || store_objects.is_some()
            || [store_database_file, store_database_ca, store_key]
                .iter()
                .any(|p| p.is_some())
    }

    /// Opens the store that the flags name, or the one in the state directory.
    ///
    /// # Errors
    /// Errors of the store, and [`Error::StoreFlags`].
    pub(crate) fn open(&self, state: &Path) -> Result<Arc<dyn ServerStore>, Error> {
        match self.is_shared() {
            true => self.open_shared(state),
            false => Ok(Arc::new(Store::open(state)?)),
        }
    }

    #[cfg(not(feature = "shared-store"))]
    fn open_shared(&self, _: &Path) -> Result<Arc<dyn ServerStore>, Error> {
        let what = "this build has no shared store; build with --features shared-store";
        Err(Error::StoreFlags(what.into()))
    }

    #[cfg(feature = "shared-store")]
    fn open_shared(&self, state: &Path) -> Result<Arc<dyn ServerStore>, Error> {
        use crate::files;
        use crate::store::StoreError;
        use crate::store::shared::{SharedOptions, SharedStore};
        let missing = |flag: &str| Error::StoreFlags(format!("a shared store needs {flag}"));
        let database = match (&self.store_database, &self.store_database_file) {
            (Some(url), _) => url.clone(),
            (None, Some(path)) => {
                let url = std::fs::read_to_string(path);
                let failed = |e| Error::StoreFlags(format!("{}: {e}", path.display()));
                url.map_err(failed)?.trim().to_owned()
            }
            (None, None) => return Err(missing("--store-database or --store-database-file")),
        };
        let objects = self.store_objects.clone();
        let key = self.store_key.clone();
        let store = SharedStore::open(&SharedOptions {
            database,
            authorities: self.store_database_ca.clone(),
            objects: objects.ok_or_else(|| missing("--store-objects"))?,
            key: key.ok_or_else(|| missing("--store-key"))?,
            grace: SharedOptions::GRACE,
        })?;
        // The identity of this server is there still.
        files::private_directory(state).map_err(|error| StoreError::File {
            path: state.to_owned(),
            error,
        })?;
        Ok(Arc::new(store))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        store: StoreArguments,
    }

    fn parse(flags: &[&str]) -> Result<StoreArguments, clap::Error> {
        let flags = ["pi-server"].iter().chain(flags);
        Flags::try_parse_from(flags).map(|flags| flags.store)
    }

    #[test]
    fn a_shared_store_needs_all_three_and_none_is_the_embedded_one() {
        let state = tempfile::tempdir().unwrap();
        let embedded = parse(&[]).unwrap().open(state.path()).unwrap();
        assert_eq!(
            embedded.directory_name(),
            state.path().display().to_string()
        );
        assert!(parse(&["--store-database", "postgresql://db/pi"]).is_err());
        for flags in [
            ["--store-objects", "/srv/pi"],
            ["--store-key", "/etc/pi/key"],
        ] {
            let opened = parse(&flags).unwrap().open(state.path());
            assert!(matches!(opened.err(), Some(Error::StoreFlags(_))));
        }
        let both = ["--store-database", "a", "--store-database-file", "b"];
        assert!(parse(&both).is_err());
    }
}
