//! An operation of the client in its log, under the name that it has in the server's.

use super::{Client, Connection};
use crate::observe::RequestId;
use crate::stream::{MessageStream, StreamTraffic};
use std::sync::{Mutex, PoisonError};

/// The name of the operation that failed last, unless another was begun since.
#[derive(Debug, Default)]
pub(super) struct LastFailed(Mutex<Option<RequestId>>);

impl LastFailed {
    fn set(&self, request: Option<RequestId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = request;
    }

    pub(super) fn forget(&self) {
        self.set(None);
    }
}

/// An operation under way. One that is dropped before it is done has failed.
pub(super) struct Tracked<'a> {
    client: &'a Client,
    request: RequestId,
    operation: &'static str,
    done: bool,
}

impl Client {
    /// The name of the operation that failed last, for whoever runs the server; `None` if another
    /// was begun since, or none has failed.
    pub fn failed_request(&self) -> Option<RequestId> {
        *self.failed.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn track(&self, request: RequestId, operation: &'static str) -> Tracked<'_> {
        self.failed.forget();
        tracing::debug!(%request, operation, "asked");
        Tracked {
            client: self,
            request,
            operation,
            done: false,
        }
    }
}

impl<'a> Connection<'a> {
    /// Begins an operation on its stream.
    pub(super) fn track(&self, stream: &MessageStream, operation: &'static str) -> Tracked<'a> {
        let request = RequestId::after(&self.greeting, stream.index());
        self.client.track(request, operation)
    }
}

impl Tracked<'_> {
    /// Ends the operation well; the stream has carried this.
    pub(super) fn done(mut self, traffic: StreamTraffic) {
        self.done = true;
        tracing::info!(
            request = %self.request,
            operation = self.operation,
            bytes_in = traffic.bytes_received,
            bytes_out = traffic.bytes_sent,
            "done"
        );
    }
}

impl Drop for Tracked<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.client.failed.set(Some(self.request));
            // The error itself is the user's: it may name what was asked about.
            tracing::info!(request = %self.request, operation = self.operation, "failed");
        }
    }
}
