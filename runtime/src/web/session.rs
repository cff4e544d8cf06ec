//! WebTransport over HTTP/3 on a QUIC connection: the server's end, and a client's.
//!
//! The protocol is that of draft-ietf-webtrans-http3, in the versions that browsers speak: both
//! send SETTINGS, the client sends an extended CONNECT request, and each stream of the session
//! starts with four bytes or so that name it. Frames and headers are of `web_transport_proto`; what
//! is here holds them together over quinn. A connection carries one session and no other request.
//!
//! Streams are handed out as those of quinn, so behind their first bytes nothing is slower than on
//! a native connection.

use crate::stream::{StreamError, describe};
use hyper::header::{HeaderValue, ORIGIN};
use quinn::{Connection, RecvStream, SendStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use web_transport_proto::{
    Capsule, ConnectRequest, ConnectResponse, Frame, Http3CapsuleReader, Settings, StreamUni,
    VarInt, error_to_http3,
};

pub use pi_wire::web::SESSION_PATH as PATH;
pub use web_transport_proto::error_from_http3;

/// Application protocol of the handshake.
pub const ALPN: &[u8] = b"h3";

/// Longest wait for the other end to take note of the session's end.
const FAREWELL: Duration = Duration::from_millis(500);

/// H3_NO_ERROR, H3_STREAM_CREATION_ERROR and H3_REQUEST_REJECTED of RFC 9114.
const NO_ERROR: u32 = 0x100;
const STREAM_CREATION_ERROR: u32 = 0x103;
const REQUEST_REJECTED: u32 = 0x10b;

/// Error of a session that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection broke.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// The other end does not speak WebTransport as it should.
    #[error("no WebTransport: {0}")]
    Protocol(String),
}

impl SessionError {
    fn protocol(error: impl std::error::Error) -> SessionError {
        SessionError::Protocol(describe(&error))
    }

    fn lost(error: impl std::error::Error) -> SessionError {
        SessionError::Lost(describe(&error))
    }
}

/// A browser's request for a session, which waits for its answer.
pub struct SessionRequest {
    quic: Connection,
    control: Control,
    connect: ConnectRequest,
    outgoing: SendStream,
    incoming: RecvStream,
}

impl SessionRequest {
    /// Receives the request on a connection that is new.
    ///
    /// # Errors
    /// [`SessionError`]; bound the time that it may take.
    pub async fn receive(quic: Connection) -> Result<SessionRequest, SessionError> {
        let request = async {
            let (outgoing, mut incoming) = quic.accept_bi().await.map_err(SessionError::lost)?;
            let connect = ConnectRequest::read(&mut incoming).await;
            let connect = connect.map_err(SessionError::protocol)?;
            Ok((outgoing, incoming, connect))
        };
        let (control, request) = tokio::try_join!(Control::exchange(&quic), request)?;
        let (outgoing, incoming, connect) = request;
        Ok(SessionRequest {
            quic,
            control,
            connect,
            outgoing,
            incoming,
        })
    }

    /// The path asked for, without a query.
    pub fn path(&self) -> &str {
        self.connect.url.path()
    }

    /// The address by which the browser calls the server, as `URL.host` of a page has it: the port
    /// is left out if it is 443.
    pub fn authority(&self) -> &str {
        self.connect.url.authority()
    }

    /// The origin of the page that asks; a browser always tells it.
    pub fn origin(&self) -> Option<&str> {
        self.connect.headers.get("origin")?.to_str().ok()
    }

    /// The connection.
    pub fn quic(&self) -> &Connection {
        &self.quic
    }

    /// Grants the session.
    ///
    /// # Errors
    /// [`SessionError::Lost`].
    pub async fn accept(mut self) -> Result<Session, SessionError> {
        let answered = ConnectResponse::OK.write(&mut self.outgoing).await;
        answered.map_err(SessionError::lost)?;
        Ok(Session::new(
            self.quic,
            self.control,
            self.outgoing,
            self.incoming,
        ))
    }

    /// Refuses the session, and closes the connection once the browser knows.
    pub async fn reject(mut self, status: hyper::StatusCode) {
        let answer = async {
            let answer = ConnectResponse::new(status);
            if answer.write(&mut self.outgoing).await.is_ok() {
                let _ = self.outgoing.finish();
                let _ = self.outgoing.stopped().await;
            }
        };
        // One that takes no answer gets none.
        let _ = tokio::time::timeout(FAREWELL, answer).await;
        self.quic.close(quinn::VarInt::from_u32(NO_ERROR), b"");
    }
}

/// The streams that hold the HTTP/3 connection up: closing one of them ends it.
struct Control {
    _outgoing: SendStream,
    _incoming: RecvStream,
}

impl Control {
    /// Sends SETTINGS and receives those of the other end.
    async fn exchange(quic: &Connection) -> Result<Control, SessionError> {
        let send = async {
            let mut outgoing = quic.open_uni().await.map_err(SessionError::lost)?;
            let mut settings = Settings::default();
            settings.enable_webtransport(1);
            let sent = settings.write(&mut outgoing).await;
            sent.map_err(SessionError::protocol)?;
            Ok(outgoing)
        };
        let receive = async {
            // Every implementation opens its control stream first.
            let mut incoming = quic.accept_uni().await.map_err(SessionError::lost)?;
            let settings = Settings::read(&mut incoming).await;
            let settings = settings.map_err(SessionError::protocol)?;
            match settings.supports_webtransport() {
                0 => Err(SessionError::Protocol("it is not offered".into())),
                _ => Ok(incoming),
            }
        };
        let (outgoing, incoming) = tokio::try_join!(send, receive)?;
        Ok(Control {
            _outgoing: outgoing,
            _incoming: incoming,
        })
    }
}

/// A session that is open.
pub struct Session {
    quic: Connection,
    /// The number of the CONNECT stream, by which the session's streams name it.
    id: VarInt,
    /// The outgoing half of the CONNECT stream, until the session is closed from here.
    outgoing: Mutex<Option<SendStream>>,
    /// Becomes true when either end closes the session.
    over: watch::Sender<bool>,
    /// The code with which the other end has closed it.
    closed: Arc<Mutex<Option<u32>>>,
    _control: Control,
}

impl Session {
    /// Opens a session on a new connection, as the page of this origin would.
    ///
    /// # Errors
    /// [`SessionError`]; [`SessionError::Protocol`] also if the server refuses it.
    pub async fn connect(
        quic: Connection,
        url: url::Url,
        origin: &str,
    ) -> Result<Session, SessionError> {
        let origin = HeaderValue::from_str(origin).map_err(SessionError::protocol)?;
        let request = ConnectRequest::new(url).with_header(ORIGIN, origin);
        let control = Control::exchange(&quic).await?;
        let (mut outgoing, mut incoming) = quic.open_bi().await.map_err(SessionError::lost)?;
        let sent = request.write(&mut outgoing).await;
        sent.map_err(SessionError::protocol)?;
        let answer = ConnectResponse::read(&mut incoming).await;
        answer.map_err(SessionError::protocol)?;
        Ok(Session::new(quic, control, outgoing, incoming))
    }

    fn new(
        quic: Connection,
        control: Control,
        outgoing: SendStream,
        incoming: RecvStream,
    ) -> Session {
        let id = quinn::VarInt::from(outgoing.id()).into_inner();
        let session = Session {
            id: VarInt::from_u64(id).expect("the number of a stream is below 2^62"),
            outgoing: Mutex::new(Some(outgoing)),
            over: watch::Sender::new(false),
            closed: Arc::default(),
            _control: control,
            quic: quic.clone(),
        };
        let (over, closed) = (session.over.clone(), session.closed.clone());
        tokio::spawn(async move {
            let code = closing_code(incoming).await;
            *closed.lock().unwrap_or_else(PoisonError::into_inner) = code;
            // The end that said it first closes the connection too, unless it is not there to.
            let here_first = over.send_replace(true);
            if !here_first {
                quic.close(stream_code(code.unwrap_or(0)), b"");
            }
        });
        session
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`StreamError::Lost`].
    pub async fn open(&self) -> Result<(SendStream, RecvStream), StreamError> {
        let lost = |error: &dyn std::error::Error| StreamError::Lost(describe(error));
        let (mut outgoing, incoming) = self.quic.open_bi().await.map_err(|e| lost(&e))?;
        let mut name = Vec::new();
        Frame::WEBTRANSPORT.encode(&mut name);
        self.id.encode(&mut name);
        outgoing.write_all(&name).await.map_err(|e| lost(&e))?;
        Ok((outgoing, incoming))
    }

    /// The next stream that the other end opens, whose name is to be read; `None` once the session
    /// is over.
    pub async fn accept(&self) -> Option<(SendStream, RecvStream)> {
        let mut over = self.over.subscribe();
        tokio::select! {
            biased;
            _ = over.wait_for(|over| *over) => None,
            stream = self.quic.accept_bi() => stream.ok(),
        }
    }

    /// Reads the name with which a stream starts, and refuses it if it is not of this session.
    ///
    /// # Errors
    /// [`StreamError::Malformed`]; bound the time that it may take.
    pub async fn read_name(
        &self,
        outgoing: &mut SendStream,
        incoming: &mut RecvStream,
    ) -> Result<(), StreamError> {
        let frame = VarInt::read(incoming).await;
        let named = match frame.map(Frame) {
            Ok(Frame::WEBTRANSPORT) => match VarInt::read(incoming).await {
                Ok(id) if id == self.id => return Ok(()),
                _ => "of another session",
            },
            Ok(Frame::HEADERS) => "a second request",
            _ => "neither a request nor a stream of the session",
        };
        let code = quinn::VarInt::from_u32(REQUEST_REJECTED);
        // Both fail only where the stream is over already.
        let _ = outgoing.reset(code);
        let _ = incoming.stop(code);
        Err(StreamError::Malformed(format!("a stream that is {named}")))
    }

    /// Refuses the streams in one direction that the other end opens, for as long as it is polled:
    /// the protocol uses none.
    pub async fn refuse_one_way(&self) {
        let mut kept = Vec::new();
        while let Ok(mut stream) = self.quic.accept_uni().await {
            let kind = VarInt::read(&mut stream).await.map(StreamUni);
            match kind {
                // Those of QPACK must stay open; with a table of no bytes they say nothing.
                Ok(StreamUni::QPACK_ENCODER | StreamUni::QPACK_DECODER) if kept.len() < 2 => {
                    kept.push(stream);
                }
                _ => {
                    let code = quinn::VarInt::from_u32(STREAM_CREATION_ERROR);
                    let _ = stream.stop(code);
                }
            }
        }
    }

    /// Ends the session with a code: streams are accepted no more, and the connection is closed as
    /// soon as the other end knows, or a moment later.
    pub fn close(&self, code: u32, reason: &'static str) {
        let outgoing = self
            .outgoing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut outgoing) = outgoing else { return };
        let there_first = self.over.send_replace(true);
        if there_first {
            return;
        }
        let quic = self.quic.clone();
        tokio::spawn(async move {
            let farewell = async {
                let message = closing_message(code, reason);
                if outgoing.write_all(&message).await.is_ok() {
                    let _ = outgoing.finish();
                    quic.closed().await;
                }
            };
            // One that is gone takes no note.
            let _ = tokio::time::timeout(FAREWELL, farewell).await;
            quic.close(stream_code(code), reason.as_bytes());
        });
    }

    /// Waits until the session is over, and returns the code with which the other end has closed
    /// it, if it has.
    pub async fn closed(&self) -> Option<u32> {
        let mut over = self.over.subscribe();
        let _ = over.wait_for(|over| *over).await;
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection.
    pub fn quic(&self) -> &Connection {
        &self.quic
    }
}

/// The code on a stream of a session for an application's code.
pub(crate) fn stream_code(code: u32) -> quinn::VarInt {
    let code = error_to_http3(code);
    quinn::VarInt::from_u64(code).expect("these codes are below 2^47")
}

/// What closes a session: a capsule in a DATA frame on the CONNECT stream.
fn closing_message(code: u32, reason: &str) -> Vec<u8> {
    let capsule = Capsule::CloseWebTransportSession {
        code,
        reason: reason.into(),
    };
    let (mut content, mut message) = (Vec::new(), Vec::new());
    capsule.encode(&mut content);
    Frame::DATA.encode(&mut message);
    let length = u32::try_from(content.len()).expect("reasons are short");
    VarInt::from_u32(length).encode(&mut message);
    message.extend(content);
    message
}

/// Waits until the other end closes the session or the connection, and returns the code.
async fn closing_code(incoming: RecvStream) -> Option<u32> {
    let mut capsules = Http3CapsuleReader::new(incoming);
    loop {
        match capsules.read().await {
            Ok(Some(Capsule::CloseWebTransportSession { code, .. })) => return Some(code),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}
