//! The line between the two parties, as sessions see it, and its in-memory form.
//!
//! A session sends and receives whole messages whose lengths both parties know from public data, so
//! a channel frames messages and nothing else.

#[cfg(test)]
pub(crate) mod tampered;

use crate::Error;
use futures_channel::mpsc;
use futures_util::StreamExt;
use std::future::Future;

/// A line that carries whole messages, in order.
pub trait Channel: Send {
    /// Sends one message.
    ///
    /// # Errors
    /// [`Error::Channel`] if the line is gone.
    fn send(&mut self, message: Vec<u8>) -> impl Future<Output = Result<(), Error>> + Send;

    /// Receives the next message, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::PeerMisbehaved`] for a longer one, before memory is reserved for it;
    /// [`Error::Channel`] if the line is gone.
    fn receive(&mut self, limit: usize) -> impl Future<Output = Result<Vec<u8>, Error>> + Send;
}

/// Receives a message that must have exactly `expected` bytes.
pub(crate) async fn receive_exactly(
    channel: &mut impl Channel,
    what: &str,
    expected: usize,
) -> Result<Vec<u8>, Error> {
    let message = channel.receive(expected).await?;
    Error::check_length(what, expected, message.len())?;
    Ok(message)
}

/// One end of an in-memory line.
pub struct MemoryChannel {
    out: mpsc::UnboundedSender<Vec<u8>>,
    into: mpsc::UnboundedReceiver<Vec<u8>>,
}

/// The two ends of an in-memory line.
pub fn memory() -> (MemoryChannel, MemoryChannel) {
    let (left_out, right_in) = mpsc::unbounded();
    let (right_out, left_in) = mpsc::unbounded();
    let end = |out, into| MemoryChannel { out, into };
    (end(left_out, left_in), end(right_out, right_in))
}

impl MemoryChannel {
    fn push(&self, message: Vec<u8>) -> Result<(), Error> {
        let gone = |_| Error::Channel {
            what: "the other end of the in-memory line is closed".into(),
        };
        self.out.unbounded_send(message).map_err(gone)
    }
}

impl Channel for MemoryChannel {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), Error> {
        self.push(message)
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let message = self.into.next().await.ok_or_else(|| Error::Channel {
            what: "the other end of the in-memory line is closed".into(),
        })?;
        if message.len() > limit {
            return Err(Error::misbehaved(format!(
                "a message of {} bytes where at most {limit} are expected",
                message.len()
            )));
        }
        Ok(message)
    }
}
