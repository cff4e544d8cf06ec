//! The content of a setup or bundle half: sealed while it is written, opened while it is read.

use super::super::content::{all_read, ends_early};
use super::super::{BundleContent, BundleWriting, ModelDigest, StoreError};
use super::Inner;
use super::objects::Upload;
use super::seal::{
    CHUNK, ChunkKey, HEADER, Kind, Place, Position, TAG, chunk_start, full_chunks, sealed_length,
};
use crate::failpoint;
use crate::fingerprint::Fingerprint;
use crate::party::random;
use pi_core::SecretBytes;
use pi_protocol::session::{BundleId, BundleSink, BundleSource};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Time after which a writer says that it is still there. Its lease is ten times as long.
const RENEWAL: Duration = Duration::from_secs(60);

/// A content that is being written, under the lease of a row.
pub(super) struct Writer {
    shared: Arc<Inner>,
    kind: Kind,
    client: Fingerprint,
    id: [u8; 32],
    pub(super) object: String,
    key: ChunkKey,
    upload: Upload,
    /// The chunk that is not full yet.
    chunk: SecretBytes,
    /// Its index.
    index: u64,
    pub(super) length: u64,
    renewed: Instant,
    failure: Option<StoreError>,
    /// Whether nothing is to be removed when this is dropped.
    settled: bool,
}

impl Writer {
    /// Begins a content; its row is there already.
    pub(super) fn new(
        shared: &Arc<Inner>,
        kind: Kind,
        client: Fingerprint,
        id: &[u8; 32],
        object: String,
    ) -> Writer {
        let (header, key) = shared.keys.seal(random());
        let mut upload = Upload::new(object.clone());
        upload.bytes.extend_from_slice(&header);
        Writer {
            shared: shared.clone(),
            kind,
            client,
            id: *id,
            object,
            key,
            upload,
            chunk: SecretBytes::with_capacity(CHUNK),
            index: 0,
            length: 0,
            renewed: Instant::now(),
            failure: None,
            settled: false,
        }
    }

    pub(super) fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = rest;
            if self.chunk.len() == CHUNK {
                self.seal(None);
                self.index += 1;
                let (shared, upload) = (self.shared.clone(), &mut self.upload);
                shared.wait(upload.flush(&shared.objects))?;
            }
        }
        if self.renewed.elapsed() > RENEWAL {
            self.shared.renew(&self.object)?;
            self.renewed = Instant::now();
        }
        Ok(())
    }

    /// Makes the object, bound to a model; [`Self::settle`] is to follow when a row says so.
    pub(super) fn end(&mut self, model: &[u8; 32]) -> Result<(), StoreError> {
        self.seal(Some(model));
        let upload = std::mem::replace(&mut self.upload, Upload::new(String::new()));
        self.shared.wait(upload.end(&self.shared.objects))
    }

    /// Leaves the object where it is.
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    fn seal(&mut self, model: Option<&[u8; 32]>) {
        let place = Place {
            kind: self.kind,
            client: self.client,
            id: &self.id,
            object: &self.object,
        };
        let at = match model {
            Some(model) => Position::Last(self.index, model),
            None => Position::Middle(self.index),
        };
        // What was in the chunk is erased when it goes.
        let chunk = std::mem::replace(&mut self.chunk, SecretBytes::with_capacity(CHUNK));
        self.key.seal(&place, at, &chunk, &mut self.upload.bytes);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.settled {
            let removed = self.shared.give_up(&mut self.upload, &self.object);
            if let Err(error) = removed {
                tracing::debug!(%error, "what was half written is left to be swept");
            }
        }
    }
}

impl BundleSink for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), pi_protocol::Error> {
        failpoint::reach("bundle-write");
        self.write_all(bytes).map_err(|error| {
            let what = error.to_string();
            self.failure = Some(error);
            pi_protocol::Error::Stored { what }
        })
    }
}

impl BundleWriting for Writer {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_all(bytes)
    }

    fn take_failure(&mut self) -> Option<StoreError> {
        self.failure.take()
    }

    fn keep(mut self: Box<Self>, model: &ModelDigest) -> Result<(), StoreError> {
        self.end(model)?;
        let kept = self
            .shared
            .keep(&self, self.client, &BundleId(self.id), model);
        if matches!(kept, Ok(()) | Err(StoreError::Database { .. })) {
            // Whether a commit happened whose answer was lost, the sweep finds out.
            self.settle();
        }
        kept
    }
}

/// A content to be read.
pub(super) struct Content {
    pub(super) shared: Arc<Inner>,
    pub(super) kind: Kind,
    pub(super) client: Fingerprint,
    pub(super) id: [u8; 32],
    pub(super) object: String,
    pub(super) model: [u8; 32],
    pub(super) length: u64,
}

impl BundleContent for Content {
    fn length(&self) -> u64 {
        self.length
    }

    fn run(self: Box<Self>) -> Result<SecretBytes, StoreError> {
        Source::open(*self)?.rest()
    }

    fn open(self: Box<Self>) -> Result<Box<dyn BundleSource>, StoreError> {
        Ok(Box::new(Source::open(*self)?))
    }
}

impl Content {
    fn damaged(&self, reason: &str) -> StoreError {
        StoreError::Damaged {
            path: self.shared.objects.place().into(),
            reason: format!("{} is not what was stored: {reason}", self.object),
        }
    }

    /// The sealed form of the last chunk, as a part of the object.
    fn last(&self) -> Range<u64> {
        chunk_start(full_chunks(self.length))..sealed_length(self.length)
    }

    /// A part of the object.
    fn fetch(&self, range: Range<u64>) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let objects = &self.shared.objects;
        let expected = range.end - range.start;
        let read = self.shared.wait(async {
            match objects.read(&self.object, range).await {
                Err(error) => match objects.length(&self.object).await? {
                    Some(length) if length != sealed_length(self.length) => Ok(None),
                    _ => Err(error),
                },
                Ok(None) => Err(self.damaged("it is gone")),
                read => read,
            }
        })?;
        match read {
            Some(bytes) if bytes.len() as u64 == expected => Ok(Zeroizing::new(bytes.into())),
            _ => Err(self.damaged("it has another length")),
        }
    }

    /// Opens the chunk of this index in place; returns where in `sealed` its content is.
    fn open_chunk<'b>(
        &self,
        key: &ChunkKey,
        index: u64,
        sealed: &'b mut [u8],
    ) -> Result<&'b mut [u8], StoreError> {
        let place = Place {
            kind: self.kind,
            client: self.client,
            id: &self.id,
            object: &self.object,
        };
        let at = match index < full_chunks(self.length) {
            true => Position::Middle(index),
            false => Position::Last(index, &self.model),
        };
        let opened = key.open(&place, at, sealed);
        opened.ok_or_else(|| self.damaged("a tag does not match"))
    }
}

/// Chunks that are fetched at a time.
const WINDOW: u64 = 64;

/// A content that is read from its beginning to its end. What it gives out was authenticated, and
/// so was the end before it.
struct Source {
    content: Content,
    key: ChunkKey,
    /// Some of the object, opened up to `sealed`.
    window: Zeroizing<Vec<u8>>,
    /// What was opened and not given out, as a part of the window.
    open: Range<usize>,
    /// Where the next sealed chunk begins in the window.
    sealed: usize,
    /// Its index.
    index: u64,
    left: u64,
    /// What was given out last.
    bytes: SecretBytes,
}

impl Source {
    fn open(content: Content) -> Result<Source, StoreError> {
        let all = sealed_length(content.length);
        let window = content.fetch(0..all.min(chunk_start(WINDOW)))?;
        let key = content.shared.keys.open(&window[..HEADER]);
        let key = key.map_err(|reason| content.damaged(&reason))?;
        let last = content.last();
        let mut end = match last.end <= window.len() as u64 {
            true => Zeroizing::new(window[last.start as usize..].to_vec()),
            false => content.fetch(last)?,
        };
        content.open_chunk(&key, full_chunks(content.length), &mut end)?;
        Ok(Source {
            left: content.length,
            content,
            key,
            window,
            open: 0..0,
            sealed: HEADER,
            index: 0,
            bytes: SecretBytes::with_capacity(0),
        })
    }

    /// All that was not read yet.
    fn rest(mut self) -> Result<SecretBytes, StoreError> {
        // The end of the object was authenticated, so it has this length.
        let length = usize::try_from(self.left);
        let length = length.map_err(|_| self.content.damaged("it is beyond this machine"))?;
        self.take(length)
    }

    /// The next `count` bytes, of which there are so many.
    fn take(&mut self, count: usize) -> Result<SecretBytes, StoreError> {
        let mut bytes = SecretBytes::with_capacity(count);
        while bytes.len() < count {
            if self.open.is_empty() {
                self.open_next()?;
            }
            let now = self.open.len().min(count - bytes.len());
            bytes.extend_from_slice(&self.window[self.open.start..][..now]);
            self.open.start += now;
        }
        self.left -= count as u64;
        Ok(bytes)
    }

    fn open_next(&mut self) -> Result<(), StoreError> {
        let content = &self.content;
        if self.sealed == self.window.len() {
            let end = chunk_start(self.index + WINDOW).min(sealed_length(content.length));
            self.window = content.fetch(chunk_start(self.index)..end)?;
            self.sealed = 0;
        }
        let length = match self.index < full_chunks(content.length) {
            true => CHUNK + TAG,
            false => self.window.len() - self.sealed,
        };
        let sealed = &mut self.window[self.sealed..][..length];
        let opened = content.open_chunk(&self.key, self.index, sealed)?.len();
        self.open = self.sealed..self.sealed + opened;
        self.sealed += length;
        self.index += 1;
        Ok(())
    }
}

impl BundleSource for Source {
    fn read(&mut self, count: usize) -> Result<&[u8], pi_protocol::Error> {
        let failed = |what: String| pi_protocol::Error::Stored { what };
        // No more is reserved than is there.
        if count as u64 > self.left {
            return Err(ends_early(self.left, count));
        }
        // What was read before is erased first.
        self.bytes = SecretBytes::with_capacity(0);
        self.bytes = self.take(count).map_err(|e| failed(e.to_string()))?;
        Ok(&self.bytes)
    }

    fn end(&mut self) -> Result<(), pi_protocol::Error> {
        all_read(self.left)
    }
}
