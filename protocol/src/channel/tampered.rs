//! An in-memory line, for tests of sessions, that counts bytes, records messages and can tamper
//! with them.

use super::{Channel, MemoryChannel, memory};
use crate::Error;
use futures_executor::block_on;
use std::sync::{Arc, Mutex};

/// Payload bytes and messages of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Payload bytes.
    pub(crate) bytes: u64,
    /// Messages.
    pub(crate) messages: u64,
}

/// A change that the line makes to one message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tamper {
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
    /// The message never comes, and the line closes.
    Drop,
    /// The message is replaced by one of 1 GiB length on the wire.
    Oversize,
}

/// One end of such a line.
pub(crate) struct TamperedChannel {
    line: MemoryChannel,
    sent: Count,
    tamper: Option<(u64, Tamper)>,
    record: Option<Arc<Mutex<Vec<Vec<u8>>>>>,
}

/// The two ends of a line that is honest until it is told otherwise.
pub(crate) fn line() -> (TamperedChannel, TamperedChannel) {
    let end = |line| TamperedChannel {
        line,
        sent: Count::default(),
        tamper: None,
        record: None,
    };
    let (left, right) = memory();
    (end(left), end(right))
}

impl TamperedChannel {
    /// Count of the messages that this end has sent so far.
    pub(crate) fn sent(&self) -> Count {
        self.sent
    }

    /// Does `tamper` to the `index`-th message (from 0) that this end sends.
    pub(crate) fn tamper(&mut self, index: u64, tamper: Tamper) {
        self.tamper = Some((index, tamper));
    }

    /// Keeps a copy of every message that this end sends from now on.
    pub(crate) fn record(&mut self) -> Arc<Mutex<Vec<Vec<u8>>>> {
        self.record.get_or_insert_default().clone()
    }

    fn deliver(&mut self, mut message: Vec<u8>) -> Result<(), Error> {
        let index = self.sent.messages;
        self.sent.messages += 1;
        self.sent.bytes += message.len() as u64;
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
            Some(Tamper::Repeat) => self.line.push(message.clone())?,
            Some(Tamper::Drop) => {
                self.line.out.close_channel();
                return Ok(());
            }
            Some(Tamper::Oversize) => message = vec![0; 1 << 30],
        }
        self.line.push(message)
    }
}

fn flip(message: &mut [u8], at: usize, bit: u8) {
    let length = message.len().max(1);
    if let Some(byte) = message.get_mut(at % length) {
        *byte ^= bit;
    }
}

impl Channel for TamperedChannel {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), Error> {
        self.deliver(message)
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        self.line.receive(limit).await
    }
}

#[test]
fn messages_are_counted_and_arrive_in_order() {
    let (mut a, mut b) = line();
    block_on(async {
        a.send(vec![1, 2, 3]).await.unwrap();
        a.send(vec![4]).await.unwrap();
        assert_eq!(b.receive(3).await.unwrap(), [1, 2, 3]);
        assert_eq!(b.receive(3).await.unwrap(), [4]);
    });
    assert_eq!(
        a.sent(),
        Count {
            bytes: 4,
            messages: 2
        }
    );
    assert_eq!(b.sent(), Count::default());
}

#[test]
fn a_message_above_the_limit_blames_the_peer() {
    let (mut a, mut b) = line();
    a.tamper(0, Tamper::Extend);
    block_on(async {
        a.send(vec![7; 4]).await.unwrap();
        let error = b.receive(4).await.unwrap_err();
        assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    });
}

#[test]
fn a_closed_line_is_an_error_and_not_a_hang() {
    let (mut a, mut b) = line();
    a.tamper(0, Tamper::Drop);
    block_on(async {
        a.send(vec![1]).await.unwrap();
        assert!(matches!(b.receive(9).await, Err(Error::Channel { .. })));
    });
}
