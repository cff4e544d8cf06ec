//! The offline phase: bundles are made, kept, and given up when the server lost its halves.

use super::connect::check_answers;
use super::connection::{Candidate, await_stored};
use super::{Connection, Spent, from_server};
use crate::control::{Held, MOST_BUNDLES, MOST_PROBES, Prepare, REPLY_LIMIT, Request};
use crate::error::Error;
use crate::failpoint;
use crate::party::{compute, not_written, protocol_error};
use crate::store::{BundleState, BundleWriter, NamedModel, PeerRecord, unix_milliseconds};
use crate::stream::MessageStream;
use pi_protocol::session::{BundleId, ClientBatch, ClientModel, ClientSetup};
use rand_core::{OsRng, TryRngCore};
use std::time::Instant;
use tokio::task::block_in_place;

/// Bundles under way: how many are left to make, and what was spent so far.
struct Making {
    left: u32,
    started: Instant,
    spent: Spent,
}

impl Connection<'_> {
    /// Runs the offline phase for `count` bundles and keeps them.
    ///
    /// Bundles are made in batches as large as the model has plans for. `progress` is called for
    /// each bundle kept with its cost; the first of a batch includes the batch's linear layers.
    /// Waits while the server has no room for the exchange.
    ///
    /// # Errors
    /// Bundles kept before an error stay.
    pub async fn prepare(
        &mut self,
        model: &ClientModel,
        setup: &ClientSetup,
        count: u32,
        mut progress: impl FnMut(&Spent),
    ) -> Result<Spent, Error> {
        let mut making = Making {
            left: count,
            started: Instant::now(),
            spent: Spent::default(),
        };
        let client = self.client;
        let attempt = async || {
            let making = &mut making;
            self.try_prepare(model, setup, making, &mut progress).await
        };
        client.patiently(attempt).await?;
        Ok(making.spent)
    }

    /// Makes the bundles that are left to make, as far as it comes.
    async fn try_prepare(
        &mut self,
        model: &ClientModel,
        setup: &ClientSetup,
        making: &mut Making,
        progress: &mut impl FnMut(&Spent),
    ) -> Result<(), Error> {
        let count = making.left;
        self.probe_rest().await?;
        let useless = self.give_up_unheld()?;
        if useless > 0 {
            tracing::warn!("the server lost its halves of {useless} bundles; they were given up");
        }
        let mut held = self.client.bundles(self.server())?;
        held.retain(|entry| entry.state == BundleState::Ready);
        if held.len() + count as usize > MOST_BUNDLES {
            return Err(Error::TooManyBundles {
                most: MOST_BUNDLES,
                held: held.len(),
                asked: count as usize,
            });
        }
        let sizes = model.batches(count as usize);
        let sound = block_in_place(|| model.check_batches(&sizes));
        sound.map_err(|e| Error::Artifact(e.to_string()))?;
        // Known from here on, so that a broken exchange does not lose the pin.
        block_in_place(|| self.remember_server())?;
        // Used up whatever comes of the request: the server takes them all when it arrives.
        let mut index = self.next_index;
        self.next_index += u64::from(count);
        let request = Request::Prepare(Prepare {
            count,
            first_index: index,
            held: held.iter().map(|entry| entry.id.0).collect(),
        });
        let mut stream = self.open(&request).await?;
        let tracked = self.track(&stream, "prepare");
        let earlier = making.spent.traffic;
        for size in sizes {
            let inputs = self.greeting.header_inputs(index);
            index += size as u64;
            let rng = &mut OsRng.unwrap_err();
            let batch = compute(ClientBatch::start(
                &mut stream,
                model,
                setup,
                &inputs,
                size,
                rng,
            ));
            let mut batch = batch.map_err(|e| protocol_error("server", &mut stream, e))?;
            while let Some(id) = batch.next_id() {
                let (client, server) = (self.client, self.server());
                let mut writer = block_in_place(|| client.store.bundle_writer(server, &id))?;
                let next = compute(batch.next_bundle(&mut stream, &mut writer));
                let next = next.map_err(|error| match error {
                    pi_protocol::Error::Stored { .. } => not_written(&mut writer, error),
                    error => protocol_error("server", &mut stream, error),
                })?;
                let Some((_, rest)) = next else { break };
                batch = rest;
                self.keep(&mut stream, id, writer).await?;
                let now = Spent {
                    wall: making.started.elapsed(),
                    traffic: earlier + stream.traffic(),
                };
                progress(&Spent {
                    wall: now.wall - making.spent.wall,
                    traffic: now.traffic - making.spent.traffic,
                });
                making.spent = now;
                making.left -= 1;
            }
        }
        tracked.done(stream.traffic());
        Ok(())
    }

    /// Keeps a bundle that was written once the server has stored its half, so that the other half
    /// of every bundle kept here exists.
    async fn keep(
        &mut self,
        stream: &mut MessageStream,
        id: BundleId,
        writer: BundleWriter<'_>,
    ) -> Result<(), Error> {
        failpoint::reach("client-prepare-before-stored");
        await_stored(stream, id.0).await?;
        failpoint::reach("client-prepare-before-store");
        block_in_place(|| writer.keep(&self.welcome.model))?;
        failpoint::reach("client-prepare-after-store");
        let held = Some(true);
        self.candidates.push(Candidate { id, held });
        Ok(())
    }

    fn remember_server(&self) -> Result<(), Error> {
        /// Limit on the addresses remembered of one server.
        const MOST_ADDRESSES: usize = 8;
        /// Limits on the certificates and models remembered of one server.
        const MOST_NAMES: usize = 64;
        let store = &self.client.store;
        let mut peers = store.peers()?;
        peers.retain(|(server, _)| *server == self.server());
        let old = peers.pop().map(|(_, record)| record);
        let (mut addresses, mut certificates, mut models) = old
            .map_or_else(Default::default, |r| {
                (r.addresses, r.certificates, r.models)
            });
        // The one that answered comes first.
        for address in self.address.split(',').rev().chain([self.at.as_str()]) {
            put_first(&mut addresses, address.to_owned(), MOST_ADDRESSES);
        }
        put_first(&mut certificates, self.certificate, MOST_NAMES);
        let (name, version) = self.model_name();
        models.retain(|model| model.name != name);
        let model = NamedModel {
            name: name.to_owned(),
            version: version.to_owned(),
            model: self.welcome.model,
        };
        put_first(&mut models, model, MOST_NAMES);
        let record = PeerRecord {
            addresses,
            model: self.welcome.model,
            prepared_at: unix_milliseconds(),
            certificates,
            models,
        };
        Ok(store.put_peer(self.server(), &record)?)
    }

    /// Asks about the bundles for this model that the server was not asked about yet.
    pub(super) async fn probe_rest(&mut self) -> Result<(), Error> {
        let unknown = self.candidates.iter().enumerate();
        let unknown = unknown.filter(|(_, candidate)| candidate.held.is_none());
        let unknown: Vec<usize> = unknown.map(|(index, _)| index).collect();
        for part in unknown.chunks(MOST_PROBES) {
            let ids = part.iter().map(|&index| self.candidates[index].id.0);
            let mut stream = self.open(&Request::Probe(ids.collect())).await?;
            let tracked = self.track(&stream, "probe");
            let answer: Held = stream
                .receive_control(REPLY_LIMIT)
                .await
                .map_err(from_server)?;
            check_answers(&answer.held, part.len())?;
            tracked.done(stream.traffic());
            for (&index, held) in part.iter().zip(answer.held) {
                self.candidates[index].held = Some(held);
            }
        }
        Ok(())
    }

    /// Gives up the bundles for this model whose other halves the server does not hold: nobody can
    /// use them any more. Returns their number.
    pub(super) fn give_up_unheld(&mut self) -> Result<usize, Error> {
        let before = self.candidates.len();
        let (server, store) = (self.server(), &self.client.store);
        let useless = |candidate: &&Candidate| candidate.held == Some(false);
        block_in_place(|| {
            let mut useless = self.candidates.iter().filter(useless);
            useless.try_for_each(|candidate| store.discard(server, &candidate.id))
        })?;
        self.candidates
            .retain(|candidate| candidate.held != Some(false));
        Ok(before - self.candidates.len())
    }
}

/// Puts an element at the front of a list, once, and forgets the last if there are too many.
fn put_first<T: PartialEq>(list: &mut Vec<T>, first: T, most: usize) {
    list.retain(|other| *other != first);
    list.insert(0, first);
    list.truncate(most);
}
