//! The line between the two parties, as sessions see it, and its in-memory form.
//!
//! A session sends and receives whole messages whose lengths both parties know from public data, so
//! a channel frames messages and nothing else. The in-memory pair counts, and can be made to lie.

use crate::Error;
use futures_channel::mpsc;
use futures_util::StreamExt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

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

/// Payload bytes and messages of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Payload bytes.
    pub bytes: u64,
    /// Messages.
    pub messages: u64,
}

#[derive(Debug, Default)]
struct Counter {
    bytes: AtomicU64,
    messages: AtomicU64,
}

impl Counter {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Count {
        Count {
            bytes: self.bytes.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
        }
    }
}

/// A change that the line makes to one message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// The last byte is missing.
    Truncate,
    /// A zero byte is appended.
    Extend,
    /// The lowest bit of the byte at this position (modulo the length) is flipped.
    Flip(usize),
    /// The highest bit of the byte at this position (modulo the length) is flipped.
    FlipHigh(usize),
    /// The message comes twice.
    Repeat,
    /// The message comes after the next one; if there is none, it never comes.
    Reorder,
    /// The message never comes, and the line closes.
    Drop,
    /// The message is replaced by one of 1 GiB length on the wire.
    Oversize,
}

/// One end of an in-memory line.
pub struct MemoryChannel {
    out: mpsc::UnboundedSender<Vec<u8>>,
    into: mpsc::UnboundedReceiver<Vec<u8>>,
    sent: Arc<Counter>,
    received: Arc<Counter>,
    tamper: Option<(u64, Tamper)>,
    held_back: Option<Vec<u8>>,
    record: Option<Arc<Mutex<Vec<Vec<u8>>>>>,
}

/// The two ends of an in-memory line.
pub fn memory() -> (MemoryChannel, MemoryChannel) {
    let (left_out, right_in) = mpsc::unbounded();
    let (right_out, left_in) = mpsc::unbounded();
    let (a, b) = (Arc::new(Counter::default()), Arc::new(Counter::default()));
    let end = |out, into, sent: &Arc<Counter>, received: &Arc<Counter>| MemoryChannel {
        out,
        into,
        sent: sent.clone(),
        received: received.clone(),
        tamper: None,
        held_back: None,
        record: None,
    };
    (
        end(left_out, left_in, &a, &b),
        end(right_out, right_in, &b, &a),
    )
}

impl MemoryChannel {
    /// Count of the messages that this end has sent so far.
    pub fn sent(&self) -> Count {
        self.sent.read()
    }

    /// Count of the messages that the other end has sent so far.
    pub fn received(&self) -> Count {
        self.received.read()
    }

    /// Does `tamper` to the `index`-th message (from 0) that this end sends.
    pub fn tamper(&mut self, index: u64, tamper: Tamper) {
        self.tamper = Some((index, tamper));
    }

    /// Keeps a copy of every message that this end sends from now on.
    pub fn record(&mut self) -> Arc<Mutex<Vec<Vec<u8>>>> {
        self.record.get_or_insert_default().clone()
    }

    fn push(&self, message: Vec<u8>) -> Result<(), Error> {
        let gone = |_| Error::Channel {
            what: "the other end of the in-memory line is closed".into(),
        };
        self.out.unbounded_send(message).map_err(gone)
    }

    fn deliver(&mut self, mut message: Vec<u8>) -> Result<(), Error> {
        let index = self.sent.read().messages;
        self.sent.add(message.len());
        if let Some(record) = &self.record {
            record
                .lock()
                .expect("no holder panics")
                .push(message.clone());
        }
        let tamper = self.tamper.filter(|(at, _)| *at == index).map(|(_, t)| t);
        match tamper {
            None => {}
            Some(Tamper::Truncate) => {
                message.pop();
            }
            Some(Tamper::Extend) => message.push(0),
            Some(Tamper::Flip(at)) => flip(&mut message, at, 1),
            Some(Tamper::FlipHigh(at)) => flip(&mut message, at, 0x80),
            Some(Tamper::Repeat) => self.push(message.clone())?,
            Some(Tamper::Reorder) => {
                self.held_back = Some(message);
                return Ok(());
            }
            Some(Tamper::Drop) => {
                self.out.close_channel();
                return Ok(());
            }
            Some(Tamper::Oversize) => message = vec![0; 1 << 30],
        }
        self.push(message)?;
        match self.held_back.take() {
            Some(late) => self.push(late),
            None => Ok(()),
        }
    }
}

fn flip(message: &mut [u8], at: usize, bit: u8) {
    let length = message.len().max(1);
    if let Some(byte) = message.get_mut(at % length) {
        *byte ^= bit;
    }
}

impl Channel for MemoryChannel {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), Error> {
        self.deliver(message)
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_executor::block_on;

    #[test]
    fn messages_are_counted_and_arrive_in_order() {
        let (mut a, mut b) = memory();
        block_on(async {
            a.send(vec![1, 2, 3]).await.unwrap();
            a.send(vec![4]).await.unwrap();
            assert_eq!(b.receive(3).await.unwrap(), [1, 2, 3]);
            assert_eq!(b.receive(3).await.unwrap(), [4]);
        });
        assert_eq!(
            b.received(),
            Count {
                bytes: 4,
                messages: 2
            }
        );
        assert_eq!(a.received(), Count::default());
    }

    #[test]
    fn a_message_above_the_limit_blames_the_peer() {
        let (mut a, mut b) = memory();
        a.tamper(0, Tamper::Extend);
        block_on(async {
            a.send(vec![7; 4]).await.unwrap();
            let error = b.receive(4).await.unwrap_err();
            assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
        });
    }

    #[test]
    fn a_closed_line_is_an_error_and_not_a_hang() {
        let (mut a, mut b) = memory();
        a.tamper(0, Tamper::Drop);
        block_on(async {
            a.send(vec![1]).await.unwrap();
            assert!(matches!(b.receive(9).await, Err(Error::Channel { .. })));
        });
    }
}
