//! The messages of one operation, between the session that computes and the worker that has the
//! stream: framing as `pi_wire` has it, in memory.
//!
//! A session takes a step whenever it is polled. What it sends is collected until the worker takes
//! it; what arrives is put in by the worker, piece by piece as the stream gives it. The line never
//! holds more than one message and one piece beyond it, because the worker reads on only while the
//! session waits for bytes.

use crate::failure::{Failure, Kind};
use pi_protocol::Channel;
use pi_wire::control;
use pi_wire::framing::LENGTH_BYTES;
use serde::{Serialize, de::DeserializeOwned};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

/// What a session waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// That what it has sent is taken; it computes on as soon as it is polled again.
    #[default]
    Taken,
    /// Bytes of the server.
    Bytes,
    /// The worker's answer to an event.
    Reply,
}

/// One end of the line; clones share it.
#[derive(Clone, Default)]
pub struct Line(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// The server's end of the stream, if it has come.
    ended: bool,
    wait: Wait,
    event: Option<Vec<u8>>,
    reply: Option<Vec<u8>>,
    /// Whether the first message is kept, and the message.
    keeping: bool,
    kept: Option<Vec<u8>>,
}

impl Line {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the session waits for.
    pub fn wait(&self) -> Wait {
        self.content().wait
    }

    /// Takes what was sent since the last call, framed.
    pub fn take_outgoing(&self) -> Vec<u8> {
        std::mem::take(&mut self.content().outgoing)
    }

    /// Puts in bytes that arrived.
    pub fn put(&self, bytes: &[u8]) {
        self.content().incoming.extend_from_slice(bytes);
    }

    /// Says that no more bytes will arrive.
    pub fn end(&self) {
        self.content().ended = true;
    }

    /// Takes the event about which the session waits for a reply.
    pub fn take_event(&self) -> Option<Vec<u8>> {
        self.content().event.take()
    }

    /// Answers an event.
    pub fn reply(&self, reply: Vec<u8>) {
        self.content().reply = Some(reply);
    }

    /// Keeps a copy of the next message sent.
    pub(crate) fn keep_next(&self) {
        self.content().keeping = true;
    }

    pub(crate) fn take_kept(&self) -> Option<Vec<u8>> {
        self.content().kept.take()
    }

    /// Tells the worker something and waits for its answer.
    pub(crate) async fn ask(&self, event: Vec<u8>) -> Vec<u8> {
        self.content().event = Some(event);
        poll_fn(|_| {
            let mut content = self.content();
            match content.reply.take() {
                Some(reply) => Poll::Ready(reply),
                None => {
                    content.wait = Wait::Reply;
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Sends a control message.
    pub(crate) async fn send_control<T: Serialize>(&mut self, message: &T) -> Result<(), Failure> {
        let bytes = postcard::to_stdvec(message);
        let bytes = bytes.map_err(|error| Failure::internal(error.to_string()))?;
        Ok(self.send(bytes).await?)
    }

    /// Receives a control message of at most `limit` bytes.
    pub(crate) async fn receive_control<T: DeserializeOwned>(
        &mut self,
        limit: usize,
    ) -> Result<T, Failure> {
        let bytes = self.receive(limit).await?;
        control::decode(&bytes).map_err(|what| {
            Failure::misbehaved(format!("a control message cannot be read: {what}"))
        })
    }
}

impl Content {
    fn send(&mut self, message: Vec<u8>) -> Result<(), pi_protocol::Error> {
        let length = u32::try_from(message.len()).map_err(|_| pi_protocol::Error::ApiMisuse {
            what: format!("a message of {} bytes", message.len()),
        })?;
        self.outgoing.extend_from_slice(&length.to_le_bytes());
        self.outgoing.extend_from_slice(&message);
        if std::mem::take(&mut self.keeping) {
            self.kept = Some(message);
        }
        Ok(())
    }

    /// The next message, if it is whole.
    fn next(&mut self, limit: usize) -> Result<Option<Vec<u8>>, pi_protocol::Error> {
        let Some(length) = self.incoming.first_chunk::<LENGTH_BYTES>() else {
            return self.none_yet();
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > limit {
            return Err(pi_protocol::Error::PeerMisbehaved {
                what: format!("a message of {length} bytes, at most {limit} are allowed"),
            });
        }
        // Whoever hands in 4 GiB has no such module.
        let end = LENGTH_BYTES.saturating_add(length);
        if self.incoming.len() < end {
            return self.none_yet();
        }
        let rest = self.incoming.split_off(end);
        let mut message = std::mem::replace(&mut self.incoming, rest);
        message.drain(..LENGTH_BYTES);
        Ok(Some(message))
    }

    fn none_yet(&self) -> Result<Option<Vec<u8>>, pi_protocol::Error> {
        match self.ended {
            false => Ok(None),
            true => Err(pi_protocol::Error::Channel {
                what: "the server ended the stream early".into(),
            }),
        }
    }
}

impl Channel for Line {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), pi_protocol::Error> {
        self.content().send(message)?;
        // Once to the worker, so that the bytes travel while the session computes on.
        let mut taken = false;
        poll_fn(|_| match std::mem::replace(&mut taken, true) {
            true => Poll::Ready(()),
            false => {
                self.content().wait = Wait::Taken;
                Poll::Pending
            }
        })
        .await;
        Ok(())
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, pi_protocol::Error> {
        poll_fn(|_| {
            let mut content = self.content();
            match content.next(limit) {
                Ok(Some(message)) => Poll::Ready(Ok(message)),
                Err(error) => Poll::Ready(Err(error)),
                Ok(None) => {
                    content.wait = Wait::Bytes;
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// The failure of a line that was given up.
pub(crate) fn lost(what: &str) -> Failure {
    Failure::new(Kind::Lost, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_message_in_pieces_arrives_whole() {
        let (line, mut end) = (Line::default(), Line::default());
        end.0 = line.0.clone();
        let mut receiving = pin!(end.receive(3));
        for byte in [3, 0, 0, 0, b'a', b'b'] {
            assert!(poll(receiving.as_mut()).is_pending());
            assert_eq!(line.wait(), Wait::Bytes);
            line.put(&[byte]);
        }
        line.put(b"cdef");
        let Poll::Ready(message) = poll(receiving.as_mut()) else {
            panic!("it is whole")
        };
        assert_eq!(message.unwrap(), b"abc");
    }

    #[test]
    fn a_message_above_its_limit_is_refused_before_it_arrives() {
        let mut line = Line::default();
        line.put(&[4, 0, 0, 0]);
        let Poll::Ready(Err(error)) = poll(pin!(line.receive(3))) else {
            panic!("it is refused")
        };
        assert!(matches!(error, pi_protocol::Error::PeerMisbehaved { .. }));
    }

    #[test]
    fn a_stream_that_ends_inside_a_message_is_an_error() {
        let mut line = Line::default();
        line.put(&[4, 0, 0, 0, 1]);
        line.end();
        let Poll::Ready(Err(error)) = poll(pin!(line.receive(4))) else {
            panic!("it is an error")
        };
        assert!(matches!(error, pi_protocol::Error::Channel { .. }));
    }

    #[test]
    fn what_is_sent_is_taken_with_its_length() {
        let (line, mut end) = (Line::default(), Line::default());
        end.0 = line.0.clone();
        let mut sending = pin!(end.send(vec![7, 8]));
        assert!(poll(sending.as_mut()).is_pending());
        assert_eq!(line.wait(), Wait::Taken);
        assert_eq!(line.take_outgoing(), [2, 0, 0, 0, 7, 8]);
        assert!(poll(sending.as_mut()).is_ready());
    }
}
