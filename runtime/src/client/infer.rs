//! The online phase: a bundle is chosen, marked as spent, used for one input, and erased.

use super::connection::{Candidate, connection_lost};
use super::{Connection, Spent};
use crate::control::Request;
use crate::error::Error;
use crate::fingerprint::short;
use crate::party::{self, Stored, damaged, protocol_error};
use crate::spending::{Mark, Spending};
use crate::store::Reading;
use crate::stream::{MessageStream, Refusal};
use pi_ir::Trace;
use pi_protocol::session::{self, Answer, BundleId, ClientBundle, ClientModel, READ_AHEAD};
use std::time::Instant;
use tokio::task::{block_in_place, spawn_blocking};

/// The outcome of one inference.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The label, or the logits as integers at scale `2^output_frac_bits`; or that there is none.
    pub answer: Answer,
    /// Fractional bits of a logit.
    pub output_frac_bits: i8,
    /// The client's shares, if they were asked for.
    pub trace: Option<Trace>,
    /// The bundle spent.
    pub bundle: BundleId,
    /// Cost of the online phase.
    pub online: Spent,
}

impl Prediction {
    /// Index of the largest logit, the first of several equal ones; `None` if the input is out of
    /// the network's range.
    pub fn class(&self) -> Option<usize> {
        self.answer.label()
    }
}

impl Connection<'_> {
    /// The bundle to use next, which both parties hold for the model served, and the number of
    /// bundles that had to be given up.
    ///
    /// # Errors
    /// [`Error::NotPrepared`], [`Error::NoBundle`], [`Error::ModelChanged`] or [`Error::NotHeld`];
    /// [`Error::Refused`] if the server gives no further answer; errors of the connection.
    pub async fn next_bundle(&mut self) -> Result<(BundleId, usize), Error> {
        let mut useless = self.give_up_unheld()?;
        // Those that the greeting asked about come first, so mostly no question is left.
        if self
            .candidates
            .iter()
            .all(|candidate| candidate.held.is_none())
        {
            self.probe_rest().await?;
            useless += self.give_up_unheld()?;
        }
        let held = |candidate: &&Candidate| candidate.held == Some(true);
        let next = self.candidates.iter().find(held);
        // Without asking: the bundle would be lost.
        let refusal = match (self.welcome.answers_left, self.welcome.answers_left_today) {
            (Some(0), _) => Some(Refusal::AnswersUsed),
            (_, Some((0, seconds))) => Some(Refusal::AnswersToday(seconds)),
            _ => None,
        };
        if let (Some(_), Some(refusal)) = (&next, refusal) {
            let peer = "server";
            return Err(Error::Refused { peer, refusal });
        }
        match (next, useless, self.stale.first()) {
            (Some(candidate), _, _) => Ok((candidate.id, useless)),
            (None, 1.., _) => Err(Error::NotHeld(useless)),
            (None, 0, Some(other)) => Err(Error::ModelChanged {
                stale: self.stale.len(),
                prepared: other.model,
                served: self.welcome.model,
            }),
            (None, 0, None) => Err(self.client.no_bundle(&self.address, self.server())?),
        }
    }

    /// The number of bundles that both parties hold for the model served, all of them asked about.
    ///
    /// # Errors
    /// Errors of the connection and of the store.
    pub async fn usable(&mut self) -> Result<usize, Error> {
        self.probe_rest().await?;
        self.give_up_unheld()?;
        Ok(self.candidates.len())
    }

    /// Reads a bundle ahead, so that [`Connection::infer`] with it starts at once. Reading does not
    /// spend it. Of a bundle of more than [`READ_AHEAD`] bytes only the shares are read; its tables
    /// and labels are read while it is used.
    ///
    /// # Errors
    /// Errors of the store; the bundle stays as it is.
    pub async fn load(&mut self, model: &ClientModel, id: &BundleId) -> Result<(), Error> {
        // Erasing keeps the disk busy, and the next mark would wait for it.
        self.erased().await;
        // What was read before goes first: two bundles at once may be more than there is memory
        // for.
        self.loaded = None;
        self.loaded = Some(block_in_place(|| {
            self.client.pools.ready();
            let mut bundle = self.read_bundle(model, id, None)?;
            if ClientBundle::encoded_len(model) as u64 <= READ_AHEAD {
                let read = bundle.read_ahead(model);
                read.map_err(|error| self.damaged(id, &error))?;
            }
            Ok::<_, Error>(bundle)
        })?);
        Ok(())
    }

    fn read_bundle(
        &self,
        model: &ClientModel,
        id: &BundleId,
        reading: Option<Reading>,
    ) -> Result<ClientBundle, Error> {
        let store = &self.client.store;
        let reading = match reading {
            Some(reading) => reading,
            None => store.content(self.server(), id)?,
        };
        party::read_bundle(store.directory(), id, Box::new(reading), |stored| {
            let bundle = match stored {
                Stored::Whole(bytes) => ClientBundle::decode(bytes, model)?,
                Stored::Source(source) => ClientBundle::open(source, model)?,
            };
            Ok((bundle.id(), bundle))
        })
    }

    fn damaged(&self, id: &BundleId, error: &pi_protocol::Error) -> Error {
        let reason = format!("bundle {}: {error}", short(&id.0));
        damaged(self.client.store.directory(), reason)
    }

    /// Spends a bundle on one input: the quantised pixels, in the order of the model's input.
    ///
    /// The remains of the bundle are erased in the background, at the latest when the connection is
    /// closed or the store opened again.
    ///
    /// # Errors
    /// The bundle is spent once this was called, whatever the outcome; only if the connection is
    /// known to be closed already, it stays as it is.
    pub async fn infer(
        &mut self,
        model: &ClientModel,
        id: &BundleId,
        input: &[i64],
        trace: bool,
    ) -> Result<Prediction, Error> {
        let started = Instant::now();
        if let Some(error) = self.quic.close_reason() {
            return Err(connection_lost(&error));
        }
        self.candidates.retain(|candidate| candidate.id != *id);
        let loaded = self.loaded.take().filter(|bundle| bundle.id() == *id);
        let reading = match loaded {
            Some(_) => None,
            None => Some(self.client.store.content(self.server(), id)?),
        };
        let failpoints = ["client-infer-before-spend", "client-infer-after-spend"];
        let (server, spent) = (self.server(), *id);
        let mark = Mark::start(&self.client.store, failpoints, move |store| {
            store.spend(server, &spent)
        });
        let bundle = match loaded {
            Some(bundle) => Ok(bundle),
            None => block_in_place(|| self.read_bundle(model, id, reading)),
        };
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(error) => {
                mark.done().await?;
                self.erase(id).await;
                return Err(error);
            }
        };
        let stream = self.quic.open_bi().await;
        let (outgoing, incoming) = match stream {
            Ok(halves) => halves,
            Err(error) => {
                mark.done().await?;
                self.erase(id).await;
                return Err(connection_lost(&error));
            }
        };
        let mut stream = MessageStream::new(outgoing, incoming, self.client.patience.silence);
        let tracked = self.track(&stream, "infer");
        let mut spending = Spending::new(&mut stream, mark, Some(Request::Infer));
        let session = session::client_infer(&mut spending, model, bundle, input, trace);
        let inference = self.client.pools.compute(session);
        if let Some(left) = &mut self.welcome.answers_left {
            // The server counts an answer when it marks the bundle, whatever comes of it.
            *left = left.saturating_sub(1);
        }
        if let Some((left, _)) = &mut self.welcome.answers_left_today {
            *left = left.saturating_sub(1);
        }
        let online = Spent {
            wall: started.elapsed(),
            traffic: spending.traffic(),
        };
        spending.end().await?;
        self.erase(id).await;
        let inference = inference.map_err(|error| match error {
            // A piece that was read while its message came.
            error @ pi_protocol::Error::Stored { .. } => self.damaged(id, &error),
            error => protocol_error("server", &mut stream, error),
        })?;
        tracked.done(online.traffic);
        Ok(Prediction {
            answer: inference.answer,
            output_frac_bits: model.artifact().circuit.output().0,
            trace: inference.trace,
            bundle: *id,
            online,
        })
    }

    /// Erases a spent bundle in the background.
    async fn erase(&mut self, id: &BundleId) {
        self.erased().await;
        let complain = |error| tracing::warn!(%error, "a spent bundle is not erased yet");
        match self.client.store.erasure(self.server(), id) {
            Ok(erasure) => {
                self.erasing = Some(spawn_blocking(move || {
                    erasure.run().unwrap_or_else(complain);
                }));
            }
            Err(error) => complain(error),
        }
    }

    /// Waits until no erasure is under way.
    pub(super) async fn erased(&mut self) {
        if let Some(erasing) = self.erasing.take()
            && let Err(error) = erasing.await
        {
            tracing::warn!(%error, "a spent bundle is not erased yet");
        }
    }
}
