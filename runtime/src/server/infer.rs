//! The online phase at the server, and reading ahead the bundle that it will need next.

use super::connection::{Connection, from_client};
use super::models::Served;
use crate::error::Error;
use crate::fingerprint::short;
use crate::observe::Part;
use crate::party::{self, Stored, protocol_error};
use crate::spending::{Mark, Spending};
use crate::store::{BundleContent, today};
use crate::stream::MessageStream;
use pi_protocol::session::{self, BundleId, OnlineRequest, ServerBundle};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{block_in_place, spawn_blocking};

/// A bundle in memory, not spent yet: nothing that follows from it is sent before it is.
pub(super) struct Loaded {
    bundle: ServerBundle,
    /// The bundle's part of [`super::memory::AHEAD_BYTES`].
    _memory: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) async fn infer(
        &self,
        served: &Served,
        stream: &mut MessageStream,
    ) -> Result<(), Error> {
        let _inferring = self.inferring.lock().await;
        let model = &served.model;
        let limit = OnlineRequest::encoded_len(model);
        let message = stream.receive_message(limit).await.map_err(from_client)?;
        let request = OnlineRequest::decode(&message, model)
            .map_err(|e| protocol_error("client", stream, e))?;
        let id = request.bundle_id();
        let (bundle, mark) = block_in_place(|| self.take_bundle(served, &id))?;
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(error) => {
                mark.done().await?;
                return Err(error);
            }
        };
        let mut spending = Spending::new(stream, mark, None);
        let session = session::server_infer(&mut spending, model, bundle, request);
        let started = Instant::now();
        let answered = self.shared.pools.compute(session);
        let (took, waited) = (started.elapsed(), spending.waited());
        self.part_took(served, Part::Wait, waited);
        self.part_took(served, Part::Compute, took.saturating_sub(waited));
        spending.end().await?;
        // The answer is on its way, or never will be: what is left of the bundle goes in either
        // case.
        if let Err(error) = block_in_place(|| self.shared.store.erase(self.client, &id)) {
            self.shared.metrics.store_failed(&error);
            tracing::warn!(bundle = short(&id.0), %error, "spent, but not erased yet");
        }
        answered.map_err(|e| protocol_error("client", stream, e))
    }

    /// Takes a bundle of this client and starts to mark it as spent, which counts the answer.
    ///
    /// The outer error leaves the bundle as it is. If the inner result is an error, the bundle is
    /// spent all the same, because its mark is under way.
    fn take_bundle(
        &self,
        served: &Served,
        id: &BundleId,
    ) -> Result<(Result<ServerBundle, Error>, Mark), Error> {
        let shared = &self.shared;
        let entry = shared.store.bundle(self.client, id)?;
        if let Some(entry) = entry
            && entry.model != served.digest
        {
            return Err(Error::ModelChanged {
                stale: 1,
                prepared: entry.model,
                served: served.digest,
            });
        }
        let reading = shared.store.content(self.client, id)?;
        let failpoints = ["server-infer-before-spend", "server-infer-after-spend"];
        let limits = shared.answer_limits(self.client, served);
        let (client, id, account) = (self.client, *id, served.name.clone());
        let (observed, label) = (shared.clone(), served.label());
        let mark = Mark::start(&shared.store, failpoints, move |store| {
            let metrics = &observed.metrics;
            let spend = || store.spend_on_answer(client, &id, &account, &limits, today());
            metrics.time(Part::Mark, &label, spend)?;
            metrics.bundle_spent(&label);
            Ok(())
        });
        let loaded = self.loaded.lock().expect("no holder panics").take();
        let bundle = match loaded {
            Some(loaded) if loaded.bundle.id() == id => Ok(loaded.bundle),
            _ => {
                let started = Instant::now();
                let bundle = self.read_bundle(served, &id, reading);
                self.part_took(served, Part::Read, started.elapsed());
                bundle
            }
        };
        Ok((bundle, mark))
    }

    fn part_took(&self, served: &Served, part: Part, took: Duration) {
        self.shared.metrics.part_took(part, &served.label(), took);
    }

    fn read_bundle(
        &self,
        served: &Served,
        id: &BundleId,
        reading: Box<dyn BundleContent>,
    ) -> Result<ServerBundle, Error> {
        let place = self.shared.store.directory_name();
        party::read_bundle(place.as_ref(), id, reading, |stored| {
            let model = &served.model;
            let bundle = match stored {
                Stored::Whole(bytes) => ServerBundle::read(bytes, model)?,
                Stored::Source(source) => ServerBundle::read(source, model)?,
            };
            Ok((bundle.id(), bundle))
        })
    }

    /// Reads ahead, while nobody waits, the bundle that the client will use next, its oldest; see
    /// [`super::memory::AHEAD_BYTES`].
    pub(super) fn read_ahead(self: Arc<Self>) {
        spawn_blocking(move || {
            if let Err(error) = self.load_next() {
                // Whoever asks for the bundle gets the error.
                tracing::debug!(client = short(&self.client.0), %error, "nothing read ahead");
            }
        });
    }

    fn load_next(&self) -> Result<(), Error> {
        let mut loaded = self.loaded.lock().expect("no holder panics");
        let (shared, served) = (&self.shared, self.served()?);
        let next = shared
            .store
            .ready(self.client, &served.digest)?
            .into_iter()
            .next();
        let current = loaded.as_ref().map(|loaded| loaded.bundle.id());
        if next == current {
            return Ok(());
        }
        *loaded = None;
        let Some(id) = next else { return Ok(()) };
        let reading = shared.store.content(self.client, &id)?;
        let kibibytes = u32::try_from(reading.length().div_ceil(1024)).unwrap_or(u32::MAX);
        let Ok(memory) = shared.ahead.clone().try_acquire_many_owned(kibibytes) else {
            return Ok(());
        };
        *loaded = Some(Loaded {
            bundle: self.read_bundle(&served, &id, reading)?,
            _memory: memory,
        });
        Ok(())
    }
}
