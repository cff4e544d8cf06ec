//! Messages on one QUIC stream: the [`Channel`] that protocol sessions run over.
//!
//! A message is its length (4 bytes, little endian) and its bytes. The length is checked against
//! the receiver's limit before anything is reserved, and memory grows with what arrives. A party
//! that gives up resets its stream with a code, [`Refusal`]; nothing else of its reasons is sent.
//!
//! Every wait ends: a peer that sends no byte for the configured time, or a message slower than
//! [`SLOWEST_BYTES_PER_SECOND`], is an error.

use crate::control;
use bytes::Bytes;
use pi_protocol::Channel;
pub use pi_wire::framing::SLOWEST_BYTES_PER_SECOND;
use pi_wire::framing::{LENGTH_BYTES, PIECE_BYTES};
pub use pi_wire::refusal::Refusal;
use quinn::{
    ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError,
};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

/// One operation's messages in both directions.
pub struct MessageStream {
    outgoing: SendStream,
    incoming: RecvStream,
    codes: Codes,
    index: u64,
    patience: Duration,
    traffic: StreamTraffic,
    failure: Option<StreamError>,
}

/// Messages and bytes of a stream as one party counts them, without the four bytes of each length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamTraffic {
    /// Bytes of the messages sent.
    pub bytes_sent: u64,
    /// Bytes of the messages received.
    pub bytes_received: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Messages received.
    pub messages_received: u64,
}

impl std::ops::Add for StreamTraffic {
    type Output = StreamTraffic;

    fn add(self, other: StreamTraffic) -> StreamTraffic {
        StreamTraffic {
            bytes_sent: self.bytes_sent + other.bytes_sent,
            bytes_received: self.bytes_received + other.bytes_received,
            messages_sent: self.messages_sent + other.messages_sent,
            messages_received: self.messages_received + other.messages_received,
        }
    }
}

impl std::ops::Sub for StreamTraffic {
    type Output = StreamTraffic;

    fn sub(self, earlier: StreamTraffic) -> StreamTraffic {
        StreamTraffic {
            bytes_sent: self.bytes_sent - earlier.bytes_sent,
            bytes_received: self.bytes_received - earlier.bytes_received,
            messages_sent: self.messages_sent - earlier.messages_sent,
            messages_received: self.messages_received - earlier.messages_received,
        }
    }
}

/// The code of a refusal on a QUIC stream or connection.
pub(crate) fn code(refusal: Refusal) -> VarInt {
    VarInt::from_u64(refusal.code()).expect("codes are below 2^34")
}

/// How refusals are written in the codes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codes {
    /// As codes of QUIC, which have 62 bits.
    Quic,
    /// As codes of WebTransport, which have 32, among those that HTTP/3 leaves to it.
    #[cfg(feature = "web")]
    Web,
}

impl Codes {
    fn code(self, refusal: Refusal) -> VarInt {
        match self {
            Codes::Quic => code(refusal),
            #[cfg(feature = "web")]
            Codes::Web => crate::web::session::stream_code(refusal.web_code()),
        }
    }

    /// The error of a stream that the peer reset or stopped.
    fn refused(self, code: VarInt) -> StreamError {
        match self {
            Codes::Quic => StreamError::Refused(Refusal::from_code(code.into_inner())),
            #[cfg(feature = "web")]
            Codes::Web => match crate::web::session::error_from_http3(code.into_inner()) {
                Some(code) if code != 0 => StreamError::Refused(Refusal::from_web_code(code)),
                // A page that is left says no more than that.
                _ => StreamError::Lost(format!("the stream was given up with code {code}")),
            },
        }
    }

    /// The error of a connection that ended.
    fn connection_lost(self, error: &ConnectionError) -> StreamError {
        match (self, error) {
            (Codes::Quic, error) => connection_lost(error),
            #[cfg(feature = "web")]
            (Codes::Web, ConnectionError::ApplicationClosed(close)) => {
                self.refused(close.error_code)
            }
            #[cfg(feature = "web")]
            (Codes::Web, error) => StreamError::Lost(describe(error)),
        }
    }
}

/// The end of a stream, other than in good order.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer gave up and said why.
    #[error("the peer refused: {0}")]
    Refused(Refusal),
    /// The connection broke.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// The peer sends nothing, or takes nothing.
    #[error("the peer was silent for {0:?}")]
    Silent(Duration),
    /// The peer announced more than this operation allows.
    #[error("the peer announced a message of {announced} bytes, at most {limit} are allowed")]
    TooLong {
        /// Bytes announced.
        announced: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The stream ended inside a message or before one.
    #[error("the peer ended the stream early")]
    Ended,
    /// A control message is not what was expected.
    #[error("the peer sent a malformed control message: {0}")]
    Malformed(String),
}

impl MessageStream {
    /// Messages on a stream; `patience` is the longest silence of the peer.
    pub fn new(outgoing: SendStream, incoming: RecvStream, patience: Duration) -> MessageStream {
        MessageStream {
            index: outgoing.id().index(),
            codes: Codes::Quic,
            outgoing,
            incoming,
            patience,
            traffic: StreamTraffic::default(),
            failure: None,
        }
    }

    /// Messages on a stream of a WebTransport session, behind the name with which it starts.
    /// `index` is its index among those of the session that carry operations.
    #[cfg(feature = "web")]
    pub fn of_session(
        outgoing: SendStream,
        incoming: RecvStream,
        index: u64,
        patience: Duration,
    ) -> MessageStream {
        MessageStream {
            index,
            codes: Codes::Web,
            ..MessageStream::new(outgoing, incoming, patience)
        }
    }

    /// Index of the stream among those of its connection that the client opened, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Traffic of the stream until now.
    pub fn traffic(&self) -> StreamTraffic {
        self.traffic
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn send_control<T: Serialize + Sync>(
        &mut self,
        message: &T,
    ) -> Result<(), StreamError> {
        let bytes =
            postcard::to_stdvec(message).map_err(|e| StreamError::Malformed(e.to_string()))?;
        self.send_message(bytes).await
    }

    /// Receives a control message of at most `limit` bytes.
    ///
    /// # Errors
    /// [`StreamError`]; bytes behind the message are malformed.
    pub async fn receive_control<T: DeserializeOwned>(
        &mut self,
        limit: usize,
    ) -> Result<T, StreamError> {
        let bytes = self.receive_message(limit).await?;
        control::decode(&bytes).map_err(StreamError::Malformed)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn send_message(&mut self, message: impl Into<Bytes>) -> Result<(), StreamError> {
        let mut rest = message.into();
        let length = u32::try_from(rest.len()).map_err(|_| StreamError::TooLong {
            announced: rest.len(),
            limit: u32::MAX as usize,
        })?;
        let deadline = self.deadline(u64::from(length));
        // The length goes with the first piece: alone it would be a packet, and wake the peer for
        // nothing.
        let mut header = Bytes::copy_from_slice(&length.to_le_bytes());
        loop {
            let piece = rest.split_to(rest.len().min(PIECE_BYTES));
            self.write([std::mem::take(&mut header), piece], deadline)
                .await?;
            if rest.is_empty() {
                break;
            }
        }
        self.traffic.bytes_sent += u64::from(length);
        self.traffic.messages_sent += 1;
        Ok(())
    }

    /// Receives one message of at most `limit` bytes.
    ///
    /// # Errors
    /// [`StreamError`]; [`StreamError::TooLong`] before any of a longer message is stored.
    pub async fn receive_message(&mut self, limit: usize) -> Result<Vec<u8>, StreamError> {
        let mut header = [0; LENGTH_BYTES];
        let deadline = self.deadline(0);
        match self.wait(deadline, ReadWhat::Header(&mut header)).await? {
            Some(_) => {}
            None => return Err(StreamError::Ended),
        }
        let announced = u32::from_le_bytes(header) as usize;
        if announced > limit {
            return Err(StreamError::TooLong { announced, limit });
        }
        let deadline = self.deadline(announced as u64);
        // A lying length must not reserve memory: the vector grows with what arrives.
        let mut message = Vec::with_capacity(announced.min(PIECE_BYTES));
        while message.len() < announced {
            let wanted = announced - message.len();
            match self.wait(deadline, ReadWhat::Piece(wanted)).await? {
                Some(piece) => message.extend_from_slice(&piece),
                None => return Err(StreamError::Ended),
            }
        }
        self.traffic.bytes_received += announced as u64;
        self.traffic.messages_received += 1;
        Ok(message)
    }

    /// Closes the sending direction in good order and waits until the peer has everything.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn finish(mut self) -> Result<(), StreamError> {
        // Finishing a stream that was reset before is no news: the cause was reported then.
        let _ = self.outgoing.finish();
        let deadline = self.deadline(0);
        match timeout_at(deadline, self.outgoing.stopped()).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(code))) => Err(self.codes.refused(code)),
            Ok(Err(e)) => Err(StreamError::Lost(e.to_string())),
            Err(_) => Err(StreamError::Silent(self.patience)),
        }
    }

    /// Gives the operation up and tells the peer why.
    pub fn refuse(mut self, refusal: Refusal) {
        // Both fail only where the stream is over already.
        let _ = self.outgoing.reset(self.codes.code(refusal));
        let _ = self.incoming.stop(self.codes.code(refusal));
    }

    /// Takes the cause of the last error that a session got from this channel.
    pub fn take_failure(&mut self) -> Option<StreamError> {
        self.failure.take()
    }

    fn deadline(&self, bytes: u64) -> Instant {
        Instant::now() + self.patience + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)
    }

    async fn write(
        &mut self,
        mut pieces: [Bytes; 2],
        deadline: Instant,
    ) -> Result<(), StreamError> {
        let until = deadline.min(Instant::now() + self.patience);
        match timeout_at(until, self.outgoing.write_all_chunks(&mut pieces)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(WriteError::Stopped(code))) => Err(self.codes.refused(code)),
            Ok(Err(WriteError::ConnectionLost(e))) => Err(self.codes.connection_lost(&e)),
            Ok(Err(e)) => Err(StreamError::Lost(describe(&e))),
            Err(_) => Err(StreamError::Silent(self.patience)),
        }
    }

    /// Waits for bytes until the deadline, but never longer than the patience; `None` at the
    /// stream's end.
    async fn wait(
        &mut self,
        deadline: Instant,
        what: ReadWhat<'_>,
    ) -> Result<Option<Bytes>, StreamError> {
        let until = deadline.min(Instant::now() + self.patience);
        let read = async {
            match what {
                ReadWhat::Header(header) => match self.incoming.read_exact(header).await {
                    Ok(()) => Ok(Some(Bytes::new())),
                    Err(ReadExactError::FinishedEarly(_)) => Ok(None),
                    Err(ReadExactError::ReadError(e)) => Err(e),
                },
                ReadWhat::Piece(wanted) => {
                    let chunk = self.incoming.read_chunk(wanted, true).await?;
                    Ok(chunk.map(|chunk| chunk.bytes))
                }
            }
        };
        match timeout_at(until, read).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(ReadError::Reset(code))) => Err(self.codes.refused(code)),
            Ok(Err(ReadError::ConnectionLost(e))) => Err(self.codes.connection_lost(&e)),
            Ok(Err(e)) => Err(StreamError::Lost(describe(&e))),
            Err(_) => Err(StreamError::Silent(self.patience)),
        }
    }
}

/// The error of a connection that ended. A peer that closes it in good order uses code 0, one that
/// refuses it the code of its reason.
pub(crate) fn connection_lost(error: &ConnectionError) -> StreamError {
    match error {
        ConnectionError::ApplicationClosed(close) if close.error_code.into_inner() != 0 => {
            StreamError::Refused(Refusal::from_code(close.error_code.into_inner()))
        }
        error => StreamError::Lost(describe(error)),
    }
}

enum ReadWhat<'a> {
    Header(&'a mut [u8; LENGTH_BYTES]),
    Piece(usize),
}

/// An error with the errors behind it, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

impl Channel for MessageStream {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), pi_protocol::Error> {
        let span = tracing::debug_span!("send", bytes = message.len());
        let result = self.send_message(message).instrument(span).await;
        result.map_err(|error| self.session_error(error))
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, pi_protocol::Error> {
        let span = tracing::debug_span!("receive");
        let result = self.receive_message(limit).instrument(span).await;
        result.map_err(|error| self.session_error(error))
    }
}

impl MessageStream {
    /// The form in which a session hears of an error; the error itself is kept in `failure`.
    pub(crate) fn session_error(&mut self, error: StreamError) -> pi_protocol::Error {
        let what = error.to_string();
        self.failure = Some(error.clone());
        match error {
            StreamError::TooLong { .. } | StreamError::Malformed(_) => {
                pi_protocol::Error::PeerMisbehaved { what }
            }
            _ => pi_protocol::Error::Channel { what },
        }
    }
}
