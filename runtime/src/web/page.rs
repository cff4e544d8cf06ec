//! The server of the page: HTTP/1.1 behind TLS, or without it on loopback.
//!
//! It sends the files of one folder, and `/server.json`, by which the page finds the rest. Every
//! answer carries headers that keep the page to itself: it runs no script and opens no connection
//! but to this server, sits in no frame, and is isolated from other pages, as threads in
//! WebAssembly demand.
//!
//! A request has no say in what is read: files are in memory, by name. A connection ends after
//! `CONNECTION_LIMIT` however it goes, and there are at most `MOST_CONNECTIONS`, of one address at
//! most `MOST_OF_ONE`.

use super::files::{Files, Found};
use super::names::Names;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CACHE_CONTROL, CONTENT_ENCODING,
    CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_NONE_MATCH, ORIGIN, VARY,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Longest wait for a handshake, and for the headers of a request.
const HEADERS_LIMIT: Duration = Duration::from_secs(10);
/// Longest life of a connection: 2 MB at 20 KB/s.
const CONNECTION_LIMIT: Duration = Duration::from_secs(100);
/// Connections at once; further ones are closed at once.
const MOST_CONNECTIONS: usize = 256;
/// Connections at once from one address; browsers open six.
const MOST_OF_ONE: usize = 32;
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// Headers of a request.
const MOST_HEADERS: usize = 64;

/// What a page needs to know of its server, for `/server.json`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct ServerNote {
    /// Path of the WebTransport session at the origin of the page; over HTTP, its URL.
    pub(crate) session: String,
    /// Name under which bundles with this server are kept, in hexadecimal digits.
    pub(crate) service: String,
    /// SHA-256 hashes of the certificates, in hexadecimal digits; none if browsers trust them
    /// anyway.
    pub(crate) certificates: Vec<String>,
    /// Version of the two-party protocol.
    pub(crate) protocol: u32,
    /// Name of the model for clients that ask for none.
    pub(crate) default_model: Option<String>,
}

/// What is sent, and to whom.
pub(crate) struct Page {
    files: Files,
    names: Names,
    policy: HeaderValue,
    changing: RwLock<Changing>,
    connections: Connections,
}

/// What changes with the certificates.
#[derive(Clone)]
struct Changing {
    /// The text of `/server.json` behind TLS, and without it.
    note: Bytes,
    plain_note: Bytes,
    tls: Arc<rustls::ServerConfig>,
}

impl Page {
    pub(crate) fn new(
        files: Files,
        names: Names,
        note: &ServerNote,
        tls: Arc<rustls::ServerConfig>,
    ) -> Page {
        let (note, plain_note) = texts(note, &names);
        Page {
            policy: content_policy(&names),
            files,
            names,
            changing: RwLock::new(Changing {
                note,
                plain_note,
                tls,
            }),
            connections: Connections::default(),
        }
    }

    /// Answers from now on with this note, and with these certificates if they are others.
    pub(crate) fn renew(&self, note: &ServerNote, tls: Option<Arc<rustls::ServerConfig>>) {
        let mut changing = self
            .changing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        (changing.note, changing.plain_note) = texts(note, &self.names);
        if let Some(tls) = tls {
            changing.tls = tls;
        }
    }

    fn changing(&self) -> Changing {
        let changing = self.changing.read();
        changing.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers whoever connects, with TLS or without, until the future is dropped.
    pub(crate) async fn serve(self: Arc<Page>, listener: TcpListener, secure: bool) {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of files, most likely: they come back.
                    tracing::warn!(%error, "no connection for the page");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(slot) = self.connections.take(from.ip()) else {
                tracing::debug!(%from, "too many connections for the page");
                continue;
            };
            let page = self.clone();
            tokio::spawn(async move {
                let served = page.serve_stream(stream, secure);
                if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_LIMIT, served).await {
                    tracing::debug!(%from, error, "a connection for the page broke");
                }
                drop(slot);
            });
        }
    }

    async fn serve_stream(self: Arc<Page>, stream: TcpStream, secure: bool) -> Result<(), String> {
        // Answers are written in one go; a failure costs time alone.
        let _ = stream.set_nodelay(true);
        if !secure {
            return self.serve_http(stream, false).await;
        }
        let handshake = TlsAcceptor::from(self.changing().tls).accept(stream);
        match tokio::time::timeout(HEADERS_LIMIT, handshake).await {
            Ok(Ok(stream)) => self.serve_http(stream, true).await,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the handshake took too long".into()),
        }
    }

    async fn serve_http(
        self: Arc<Page>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        secure: bool,
    ) -> Result<(), String> {
        let service = service_fn(move |request| {
            let answer = self.answer(&request, secure);
            async move { Ok::<_, Infallible>(answer) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_LIMIT)
            .max_buf_size(HEAD_BYTES)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        served.map_err(|error| error.to_string())
    }

    fn answer(&self, request: &Request<Incoming>, secure: bool) -> Response<Full<Bytes>> {
        let headers = request.headers();
        let mut answer = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/server.json") => self.note(headers, secure),
            (&Method::GET | &Method::HEAD, path) => self.file(path, headers),
            _ => {
                let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD alone\n");
                let allowed = HeaderValue::from_static("GET, HEAD");
                answer.headers_mut().insert(ALLOW, allowed);
                answer
            }
        };
        let headers = answer.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        for (name, value) in FIXED {
            let name = HeaderName::from_static(name);
            headers.insert(name, HeaderValue::from_static(value));
        }
        if request.method() == Method::HEAD {
            let length = hyper::body::Body::size_hint(answer.body()).exact();
            answer
                .headers_mut()
                .insert(CONTENT_LENGTH, length.unwrap_or(0).into());
            *answer.body_mut() = Full::default();
        }
        answer
    }

    fn note(&self, headers: &HeaderMap, secure: bool) -> Response<Full<Bytes>> {
        let changing = self.changing();
        let mut answer = Response::new(Full::new(match secure {
            true => changing.note,
            false => changing.plain_note,
        }));
        let out = answer.headers_mut();
        out.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        out.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        out.insert(VARY, HeaderValue::from_static("Origin"));
        // Pages from elsewhere that the operator lists may read it.
        if let Some(origin) = headers.get(ORIGIN)
            && origin.to_str().is_ok_and(|origin| self.names.lists(origin))
        {
            out.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
        answer
    }

    fn file(&self, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        let accepts = text(ACCEPT_ENCODING).unwrap_or_default();
        let Some(found) = self.files.find(path, accepts) else {
            return plain(StatusCode::NOT_FOUND, "there is no such file\n");
        };
        let known = text(IF_NONE_MATCH).is_some_and(|tags| {
            let mut tags = tags
                .split(',')
                .map(|tag| tag.trim().trim_start_matches("W/"));
            tags.any(|tag| tag == found.content.tag || tag == "*")
        });
        file_answer(&found, known)
    }
}

/// Headers of every answer.
const FIXED: [(&str, &str); 6] = [
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-embedder-policy", "require-corp"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    (
        "permissions-policy",
        "camera=(self), accelerometer=(), autoplay=(), bluetooth=(), display-capture=(), \
         encrypted-media=(), fullscreen=(), geolocation=(), gyroscope=(), hid=(), \
         idle-detection=(), magnetometer=(), microphone=(), midi=(), payment=(), \
         picture-in-picture=(), publickey-credentials-get=(), screen-wake-lock=(), serial=(), \
         usb=(), xr-spatial-tracking=()",
    ),
];

/// What the page may load and connect to.
fn content_policy(names: &Names) -> HeaderValue {
    let sessions = names.plain_target().map(|origin| format!(" {origin}"));
    let sessions = sessions.unwrap_or_default();
    let policy = format!(
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
         img-src 'self' blob: data:; connect-src 'self'{sessions}; worker-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("it is plain text")
}

fn file_answer(found: &Found<'_>, known: bool) -> Response<Full<Bytes>> {
    let mut answer = match known {
        true => Response::new(Full::default()),
        false => Response::new(Full::new(found.content.bytes.clone())),
    };
    if known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let tag = HeaderValue::from_str(&found.content.tag).expect("a tag is of hexadecimal digits");
    let headers = answer.headers_mut();
    headers.insert(ETAG, tag);
    // Asked for each time, and sent once: a new build is seen at once.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if !known {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(found.media_type));
        if let Some(coding) = found.coding.name() {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
    }
    answer
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A note as text for pages behind TLS, and for those without.
fn texts(note: &ServerNote, names: &Names) -> (Bytes, Bytes) {
    let text = |note: &ServerNote| -> Bytes {
        let text = serde_json::to_vec_pretty(note);
        text.expect("a note has no keys but texts").into()
    };
    let mut plain = note.clone();
    if let Some(origin) = names.plain_target() {
        plain.session.insert_str(0, &origin);
    }
    (text(note), text(&plain))
}

/// The connections of each address.
#[derive(Default)]
struct Connections(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Connections {
    fn take(&self, from: IpAddr) -> Option<Slot> {
        let mut open = lock(&self.0);
        let all: usize = open.values().sum();
        let of_one = open.get(&from).copied().unwrap_or(0);
        if all >= MOST_CONNECTIONS || of_one >= MOST_OF_ONE {
            return None;
        }
        open.insert(from, of_one + 1);
        Some(Slot {
            open: self.0.clone(),
            from,
        })
    }
}

/// A connection that is counted, until it is dropped.
struct Slot {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    from: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if let Some(count) = open.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.from);
            }
        }
    }
}

/// What is under the lock is changed in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A listening socket; must be called inside a tokio runtime.
///
/// # Errors
/// Errors of the system.
pub(crate) fn listen(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}
