//! The object store: where contents lie, sealed.

use super::super::StoreError;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt};
use std::collections::HashSet;
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

/// Bytes that are sent at a time. S3 takes no part of less than 5 MiB but the last, and 10 000
/// parts.
const PART: usize = 8 << 20;
/// Time for one call.
const DEADLINE: Duration = Duration::from_secs(60);

/// A folder, or a bucket with a prefix.
pub(super) struct Objects {
    store: Box<dyn ObjectStore>,
    prefix: ObjectPath,
    folder: Option<PathBuf>,
    place: String,
}

impl Objects {
    /// The object store at a URL: `file:///FOLDER`, a folder, or `s3://BUCKET/PREFIX`.
    pub(super) fn open(url: &str) -> Result<Objects, StoreError> {
        let fault = |reason: &dyn Display| StoreError::Objects {
            place: url.into(),
            reason: reason.to_string(),
        };
        if url.starts_with("s3://") {
            return Objects::s3(url);
        }
        let folder = url.strip_prefix("file://").unwrap_or(url);
        if folder.is_empty() || folder.contains("://") {
            return Err(fault(&"neither a folder nor s3://BUCKET/PREFIX"));
        }
        let folder = Path::new(folder);
        crate::files::private_directory(folder).map_err(|e| fault(&e))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|e| fault(&e))?;
        Ok(Objects {
            // A row never promises what is not on the disk.
            store: Box::new(store.with_fsync(true)),
            prefix: ObjectPath::default(),
            folder: Some(folder.to_owned()),
            place: folder.display().to_string(),
        })
    }

    #[cfg(feature = "s3")]
    fn s3(url: &str) -> Result<Objects, StoreError> {
        let fault = |reason: &dyn Display| StoreError::Objects {
            place: url.into(),
            reason: reason.to_string(),
        };
        let prefix = url["s3://".len()..]
            .split_once('/')
            .map_or("", |(_, prefix)| prefix);
        let store = object_store::aws::AmazonS3Builder::from_env()
            .with_url(url)
            .build();
        Ok(Objects {
            store: Box::new(store.map_err(|e| fault(&e))?),
            prefix: ObjectPath::parse(prefix).map_err(|e| fault(&e))?,
            folder: None,
            place: url.into(),
        })
    }

    #[cfg(not(feature = "s3"))]
    fn s3(url: &str) -> Result<Objects, StoreError> {
        Err(StoreError::Objects {
            place: url.into(),
            reason: "this build has no S3; build with --features s3".into(),
        })
    }

    /// Where it is, for messages.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// The error of this object store.
    pub(super) fn error(&self, reason: impl Display) -> StoreError {
        StoreError::Objects {
            place: self.place.clone(),
            reason: reason.to_string(),
        }
    }

    fn path(&self, name: &str) -> ObjectPath {
        let parts = name.split('/');
        parts.fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Runs one call; `None` if there is no such object.
    async fn call<T>(
        &self,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Option<T>, StoreError> {
        match timeout(DEADLINE, call).await {
            Ok(Ok(value)) => Ok(Some(value)),
            Ok(Err(object_store::Error::NotFound { .. })) => Ok(None),
            Ok(Err(error)) => Err(self.error(error)),
            Err(_) => Err(self.error(format!("no answer within {DEADLINE:?}"))),
        }
    }

    /// As [`Self::call`], for calls to which the object's absence is no answer.
    async fn must<T>(
        &self,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        let done = self.call(call).await?;
        done.ok_or_else(|| self.error("it denies what was just written"))
    }

    /// A part of an object; `None` if there is no such object.
    pub(super) async fn read(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, StoreError> {
        self.call(self.store.get_range(&self.path(name), range))
            .await
    }

    /// Length of an object; `None` if there is no such object.
    pub(super) async fn length(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let found = self.call(self.store.head(&self.path(name))).await?;
        Ok(found.map(|found| found.size))
    }

    /// Deletes an object, which may be gone already.
    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.call(self.store.delete(&self.path(name)))
            .await
            .map(drop)
    }

    /// Names of all objects.
    pub(super) async fn names(&self) -> Result<Vec<String>, StoreError> {
        let prefix = Some(&self.prefix).filter(|prefix| !prefix.as_ref().is_empty());
        let listing = self.store.list(prefix).try_collect::<Vec<_>>();
        let listing = self.call(listing).await?.unwrap_or_default();
        let names = listing.iter().filter_map(|object| {
            let parts = object.location.prefix_match(&self.prefix)?;
            let parts: Vec<_> = parts.map(|part| part.as_ref().to_owned()).collect();
            Some(parts.join("/"))
        });
        Ok(names.collect())
    }

    /// Deletes what a process that died left half written in a folder of objects, unless its name
    /// is held. A bucket has a rule of its own for uploads that never ended.
    pub(super) fn delete_halves(&self, held: &HashSet<String>) -> Result<(), StoreError> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        for kind in ["bundles", "setups"] {
            let files = match std::fs::read_dir(folder.join(kind)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                files => files.map_err(|e| self.error(e))?,
            };
            for file in files {
                let file = file.map_err(|e| self.error(e))?;
                let name = file.file_name().to_string_lossy().into_owned();
                // As `LocalFileSystem` names what it has not put in place yet.
                if let Some((name, _)) = name.split_once('#')
                    && !held.contains(&format!("{kind}/{name}"))
                {
                    match std::fs::remove_file(file.path()) {
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        removed => removed.map_err(|e| self.error(e))?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// An object that is being written; there is none before [`Upload::end`].
pub(super) struct Upload {
    name: String,
    /// What was not sent yet.
    pub(super) bytes: Vec<u8>,
    parts: Option<Box<dyn MultipartUpload>>,
}

impl Upload {
    pub(super) fn new(name: String) -> Upload {
        Upload {
            name,
            bytes: Vec::new(),
            parts: None,
        }
    }

    /// Sends what has come together, if that is a part.
    pub(super) async fn flush(&mut self, objects: &Objects) -> Result<(), StoreError> {
        if self.bytes.len() < PART {
            return Ok(());
        }
        let mut parts = match self.parts.take() {
            Some(parts) => parts,
            None => {
                let path = objects.path(&self.name);
                objects.must(objects.store.put_multipart(&path)).await?
            }
        };
        let part = std::mem::take(&mut self.bytes);
        let sent = objects.must(parts.put_part(part.into())).await;
        self.parts = Some(parts);
        sent
    }

    /// Makes the object, durably on return.
    pub(super) async fn end(mut self, objects: &Objects) -> Result<(), StoreError> {
        let rest = std::mem::take(&mut self.bytes);
        match self.parts.take() {
            None => {
                let path = objects.path(&self.name);
                objects.must(objects.store.put(&path, rest.into())).await?;
            }
            Some(mut parts) => {
                objects.must(parts.put_part(rest.into())).await?;
                objects.must(parts.complete()).await?;
            }
        }
        Ok(())
    }

    /// Gives the object up.
    pub(super) async fn abort(&mut self, objects: &Objects) -> Result<(), StoreError> {
        match self.parts.take() {
            Some(mut parts) => objects.call(parts.abort()).await.map(drop),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes an object of so many bytes, each its place modulo 251.
    async fn write(objects: &Objects, name: &str, length: usize) -> Vec<u8> {
        let content: Vec<u8> = (0..length).map(|place| (place % 251) as u8).collect();
        let mut upload = Upload::new(name.into());
        for piece in content.chunks(3 << 20) {
            upload.bytes.extend_from_slice(piece);
            upload.flush(objects).await.unwrap();
        }
        upload.end(objects).await.unwrap();
        content
    }

    async fn check(objects: &Objects) {
        let sizes = [("bundles/a", 5), ("bundles/b", (20 << 20) + 7)];
        for (name, length) in sizes {
            assert_eq!(objects.length(name).await.unwrap(), None);
            assert_eq!(objects.read(name, 0..3).await.unwrap(), None);
            let content = write(objects, name, length).await;
            let length = length as u64;
            assert_eq!(objects.length(name).await.unwrap(), Some(length));
            for range in [0..2, length - 3..length, 0..length] {
                let expected = &content[range.start as usize..range.end as usize];
                let read = objects.read(name, range).await.unwrap().unwrap();
                assert_eq!(read, expected);
            }
        }
        let mut given_up = Upload::new("bundles/c".into());
        given_up.bytes = vec![1; PART];
        given_up.flush(objects).await.unwrap();
        given_up.abort(objects).await.unwrap();

        let mut names = objects.names().await.unwrap();
        names.sort();
        assert_eq!(names, ["bundles/a", "bundles/b"]);
        for (name, _) in sizes {
            objects.delete(name).await.unwrap();
            objects.delete(name).await.unwrap();
            assert_eq!(objects.length(name).await.unwrap(), None);
        }
        assert!(objects.names().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_folder_gives_back_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path().to_str().unwrap()).unwrap();
        check(&objects).await;
    }

    /// Needs a bucket or prefix in `PI_TEST_S3`, the variables of its keys, and feature `s3`.
    #[tokio::test]
    async fn a_bucket_gives_back_what_was_written() {
        let Ok(place) = std::env::var("PI_TEST_S3") else {
            eprintln!("left out: no bucket in PI_TEST_S3");
            return;
        };
        let place = format!("{place}/objects-{}", std::process::id());
        check(&Objects::open(&place).unwrap()).await;
    }
}
