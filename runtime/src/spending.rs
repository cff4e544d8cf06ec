//! A stream on which nothing is sent before the bundle in use is marked as spent.
//!
//! A bundle is marked durably while the session computes its first message, and that message waits
//! for the mark. So the rule holds that no online byte of a party precedes its mark, at the cost of
//! the slower of the two instead of their sum.

use crate::control::Request;
use crate::error::Error;
use crate::failpoint;
use crate::store::StoreError;
use crate::stream::{MessageStream, StreamTraffic};
use pi_protocol::Channel;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_blocking};

/// A bundle that is being marked as spent.
pub(crate) struct Mark(JoinHandle<Result<(), StoreError>>);

impl Mark {
    /// Starts to mark a bundle by `spend`, in either kind of store. The two failpoints are reached
    /// before and after.
    pub(crate) fn start<S: Send + Sync + ?Sized + 'static>(
        store: &Arc<S>,
        failpoints: [&'static str; 2],
        spend: impl FnOnce(&S) -> Result<(), StoreError> + Send + 'static,
    ) -> Mark {
        let store = store.clone();
        let span = tracing::debug_span!("mark");
        Mark(spawn_blocking(move || {
            let _span = span.entered();
            failpoint::reach(failpoints[0]);
            spend(&store)?;
            failpoint::reach(failpoints[1]);
            Ok(())
        }))
    }

    /// Waits until the mark is durable.
    ///
    /// # Errors
    /// Those of `spend`.
    pub(crate) async fn done(self) -> Result<(), Error> {
        let marked = self.0.await;
        Ok(marked.map_err(|error| Error::Internal(error.to_string()))??)
    }
}

/// A stream that waits for a mark before it sends.
pub(crate) struct Spending<'a> {
    stream: &'a mut MessageStream,
    mark: Option<Mark>,
    /// Request to send before the first message.
    request: Option<Request>,
    failure: Option<Error>,
    waited: Duration,
}

impl<'a> Spending<'a> {
    /// Wraps a stream. The party that opens the stream passes the request that opens it.
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
            waited: Duration::ZERO,
        }
    }

    /// Traffic of the stream until now.
    pub(crate) fn traffic(&self) -> StreamTraffic {
        self.stream.traffic()
    }

    /// Time that the session has waited for its messages and for the mark, until now.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Waits for the mark, unless the session did. A session that failed early has spent its
    /// bundle, too.
    ///
    /// # Errors
    /// Errors of the mark; nothing was sent then.
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
        let started = Instant::now();
        let sent = self.send_marked(message).await;
        self.waited += started.elapsed();
        sent
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, pi_protocol::Error> {
        let started = Instant::now();
        let message = self.stream.receive(limit).await;
        self.waited += started.elapsed();
        message
    }
}

impl Spending<'_> {
    async fn send_marked(&mut self, message: Vec<u8>) -> Result<(), pi_protocol::Error> {
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
}
