//! The offline phase at the server.

use super::Shared;
use super::connection::{Connection, from_client, misbehaved, refused};
use super::memory::{self, Memory};
use super::models::Served;
use crate::control::{MOST_BUNDLES, Prepare, Stored};
use crate::error::Error;
use crate::failpoint;
use crate::fingerprint::short;
use crate::party::{Greeting, not_written, protocol_error};
use crate::quiet_pool;
use crate::stream::{MessageStream, Refusal};
use pi_protocol::Channel;
use pi_protocol::session::{BundleId, ServerBatch};
use rand_core::{OsRng, TryRngCore};
use std::sync::atomic::Ordering;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::block_in_place;

impl Connection {
    pub(super) async fn prepare(
        &self,
        greeting: Greeting,
        served: &Served,
        prepare: Prepare,
        stream: &mut MessageStream,
    ) -> Result<(), Error> {
        let count = u64::from(prepare.count);
        if prepare.held.len() as u64 + count > MOST_BUNDLES as u64 {
            return Err(misbehaved("more bundles than a client may hold"));
        }
        if !served.is_current() {
            return Err(refused(Refusal::ModelChanged));
        }
        block_in_place(|| self.shared.check_bytes(self.client, served))?;
        // Indices of a connection only grow, so no two of its bundles have one header. A client
        // that was told to come back leaves some out.
        let first = prepare.first_index;
        let claim = |next| (first >= next).then(|| first.saturating_add(count));
        let claimed = (self.next_index).fetch_update(Ordering::SeqCst, Ordering::SeqCst, claim);
        if claimed.is_err() {
            return Err(misbehaved("bundle indices that were used before"));
        }
        let (shared, model) = (&self.shared, &served.model);
        let _exchanging = shared.exchange(self.client).map_err(refused)?;
        // Bundles that were made over a later connection are not in its list, and no orphans.
        self.check_current()?;
        let sizes = model.batches(count as usize);
        // The largest comes first.
        let largest = sizes
            .first()
            .map_or(Ok(0), |&size| model.offline_memory(size));
        let largest = largest.map_err(|e| Error::Internal(e.to_string()))?;
        let memory = shared.memory.take(self.client, largest);
        let _memory = memory.map_err(refused)?;
        let setup = block_in_place(|| {
            self.give_up_orphans(prepare.held)?;
            self.check_allowance(served, count)?;
            self.setup_of_client()
        })?;
        let setup = setup.ok_or(refused(Refusal::NoSetup))?;
        let mut index = first;
        for size in sizes {
            let inputs = greeting.header_inputs(index);
            index += size as u64;
            let rng = &mut OsRng.unwrap_err();
            let mut channel = InTurn::new(stream, shared);
            let exchange = ServerBatch::start(&mut channel, model, &setup, &inputs, size, rng);
            let batch = quiet_pool::compute(exchange);
            let mut batch = channel.finish(batch)?;
            loop {
                let mut channel = InTurn::new(stream, shared);
                let next = quiet_pool::compute(batch.next_bundle(&mut channel));
                let next = channel.finish(next)?;
                let Some((bundle, rest)) = next else { break };
                batch = rest;
                let id = bundle.id();
                failpoint::reach("server-prepare-before-store");
                block_in_place(|| {
                    let mut writer = shared.store.bundle_writer(self.client, &id)?;
                    let written = bundle.write(&mut *writer);
                    written.map_err(|error| not_written(&mut *writer, error))?;
                    failpoint::reach("server-prepare-before-keep");
                    Ok::<_, Error>(writer.keep(&served.digest)?)
                })?;
                shared.metrics.bundle_made(&served.label());
                failpoint::reach("server-prepare-after-store");
                stream
                    .send_control(&Stored { id: id.0 })
                    .await
                    .map_err(from_client)?;
            }
        }
        Ok(())
    }

    /// Refuses more bundles than a client may have at rest, and such for which it would get no
    /// answer.
    fn check_allowance(&self, served: &Served, count: u64) -> Result<(), Error> {
        let shared = &self.shared;
        let ready = shared.store.ready(self.client, &served.digest)?;
        let wanted = ready.len() as u64 + count;
        if wanted > shared.allowance(self.client, served).bundles {
            return Err(refused(Refusal::TooManyBundles));
        }
        match shared.answers_left(self.client, served)? {
            (Some(left), _) if wanted > left => Err(refused(Refusal::AnswersUsed)),
            _ => Ok(()),
        }
    }

    /// Gives up the halves whose other half the client does not have: they are of no use to anyone.
    fn give_up_orphans(&self, held: Vec<[u8; 32]>) -> Result<(), Error> {
        // Not of those that were made since the greeting: the client may have made them over a
        // later connection, with another server even, and this list may be an old one.
        let Some(mut orphans) = self.ready_at_greeting.get().cloned() else {
            return Ok(());
        };
        for id in held {
            orphans.remove(&BundleId(id));
        }
        let orphans = match orphans.is_empty() {
            true => 0,
            false => self.shared.store.discard(self.client, &orphans)?,
        };
        if orphans > 0 {
            self.shared.metrics.bundles_given_up(orphans as u64);
            tracing::info!(client = short(&self.client.0), orphans, "given up");
        }
        Ok(())
    }
}

/// A stream whose session ends when its client keeps it waiting while others need its memory.
pub(super) struct Yielding<'a> {
    stream: &'a mut MessageStream,
    memory: &'a Memory,
    gave_way: bool,
}

impl<'a> Yielding<'a> {
    pub(super) fn new(stream: &'a mut MessageStream, memory: &'a Memory) -> Self {
        Yielding {
            stream,
            memory,
            gave_way: false,
        }
    }

    /// The result of the session: a client that had to give way may come back.
    pub(super) fn finish<T>(self, result: Result<T, pi_protocol::Error>) -> Result<T, Error> {
        result.map_err(|error| match self.gave_way {
            true => refused(memory::come_back()),
            false => protocol_error("client", self.stream, error),
        })
    }

    fn give_way(&mut self) -> pi_protocol::Error {
        self.gave_way = true;
        pi_protocol::Error::Channel {
            what: "the client was slow, and others needed the memory".into(),
        }
    }
}

impl Channel for Yielding<'_> {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), pi_protocol::Error> {
        tokio::select! {
            sent = self.stream.send(message) => sent,
            () = self.memory.must_give_way() => Err(self.give_way()),
        }
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, pi_protocol::Error> {
        tokio::select! {
            message = self.stream.receive(limit) => message,
            () = self.memory.must_give_way() => Err(self.give_way()),
        }
    }
}

/// A stream whose session computes only while it holds one of a few permits. It waits for messages
/// without one.
struct InTurn<'a> {
    stream: Yielding<'a>,
    turns: &'a Semaphore,
    permit: Option<SemaphorePermit<'a>>,
}

impl<'a> InTurn<'a> {
    fn new(stream: &'a mut MessageStream, shared: &'a Shared) -> Self {
        InTurn {
            stream: Yielding::new(stream, &shared.memory),
            turns: &shared.turns,
            permit: None,
        }
    }

    /// As [`Yielding::finish`].
    fn finish<T>(self, result: Result<T, pi_protocol::Error>) -> Result<T, Error> {
        self.stream.finish(result)
    }
}

impl Channel for InTurn<'_> {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), pi_protocol::Error> {
        self.permit = None;
        self.stream.send(message).await?;
        self.permit = self.turns.acquire().await.ok();
        Ok(())
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, pi_protocol::Error> {
        self.permit = None;
        let message = self.stream.receive(limit).await?;
        self.permit = self.turns.acquire().await.ok();
        Ok(message)
    }
}
