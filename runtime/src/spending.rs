//! A stream on which nothing is said before the bundle in use is spent.
//!
//! The durable mark of a bundle goes on while the session computes its first message; that message
//! waits for the mark. So the rule holds, no online byte of a party before its mark, and costs the
//! slower of the two instead of their sum.

use crate::control::Request;
use crate::error::Error;
use crate::failpoint;
use crate::fingerprint::Fingerprint;
use crate::store::{BundleId, Store, StoreError};
use crate::stream::{MessageStream, Traffic};
use pi_protocol::Channel;
use std::sync::Arc;
use tokio::task::{JoinHandle, spawn_blocking};

/// A bundle that is being marked as spent.
pub(crate) struct Mark(JoinHandle<Result<(), StoreError>>);

impl Mark {
    /// Starts to mark a bundle; `faults` name the places before and after, where a test can end the
    /// process.
    pub(crate) fn start(
        store: &Arc<Store>,
        peer: Fingerprint,
        id: &BundleId,
        faults: [&'static str; 2],
    ) -> Mark {
        let (store, id) = (store.clone(), *id);
        Mark(spawn_blocking(move || {
            failpoint::reach(faults[0]);
            store.spend(peer, &id)?;
            failpoint::reach(faults[1]);
            Ok(())
        }))
    }

    /// Waits until the mark is durable.
    ///
    /// # Errors
    /// Those of [`Store::spend`].
    pub(crate) async fn done(self) -> Result<(), Error> {
        let marked = self.0.await;
        Ok(marked.map_err(|error| Error::Internal(error.to_string()))??)
    }
}

/// A stream that waits for a mark before it sends.
pub(crate) struct Spending<'a> {
    stream: &'a mut MessageStream,
    mark: Option<Mark>,
    /// Goes before the first message.
    request: Option<Request>,
    failure: Option<Error>,
}

impl<'a> Spending<'a> {
    /// The stream, with a request that opens it where this party does.
    pub(crate) fn new(
        stream: &'a mut MessageStream,
        mark: Mark,
        request: Option<Request>,
    ) -> Spending<'a> {
        Spending {
            stream,
            mark: Some(mark),
            request,
            failure: None,
        }
    }

    /// What crossed the stream until now.
    pub(crate) fn traffic(&self) -> Traffic {
        self.stream.traffic()
    }

    /// Waits for the mark, if the session has not; a session that failed early has spent its bundle
    /// too.
    ///
    /// # Errors
    /// Those of the mark: nothing was sent then.
    pub(crate) async fn end(mut self) -> Result<(), Error> {
        match (self.failure, self.mark.take()) {
            (Some(failure), _) => Err(failure),
            (None, Some(mark)) => mark.done().await,
            (None, None) => Ok(()),
        }
    }
}

impl Channel for Spending<'_> {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), pi_protocol::Error> {
        if let Some(mark) = self.mark.take()
            && let Err(failure) = mark.done().await
        {
            self.failure = Some(failure);
        }
        if self.failure.is_some() {
            return Err(pi_protocol::Error::Channel {
                what: "the bundle is not marked as spent".into(),
            });
        }
        if let Some(request) = self.request.take() {
            let sent = self.stream.send_control(&request).await;
            sent.map_err(|error| self.stream.session_error(error))?;
        }
        self.stream.send(message).await
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, pi_protocol::Error> {
        self.stream.receive(limit).await
    }
}
