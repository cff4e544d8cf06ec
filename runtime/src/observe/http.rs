//! An HTTP server for the operator's monitoring: `/metrics`, `/healthz` and `/readyz`.
//!
//! It listens on an address of its own, without TLS and without a password: on loopback, or in a
//! network that only the operator reaches. What it tells is how much the server does, and nothing
//! about whom it serves.
//!
//! It must never slow the protocol. An answer is a few kilobytes of text that are put together in
//! well below a millisecond; whatever asks the store runs on a blocking thread, once at a time, and
//! is waited for no longer than `STORE_LIMIT`. Bundles are counted in the whole of the store, so
//! that is done a tenth of the time at most. Each connection carries one request and ends after
//! `CONNECTION_LIMIT`, and there are at most `MOST_CONNECTIONS`.

use super::health::{Observable, State};
use super::metrics::AtRest;
use crate::store::StoreError;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// The format of OpenMetrics 1.0, which Prometheus has read since 2.5.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Longest wait for an answer of the store.
const STORE_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for a count of the bundles, behind which the last one is taken.
const COUNT_LIMIT: Duration = Duration::from_millis(500);
/// Time for which a count is good, in times of what it took; one that took no time is made anew.
const COUNT_REST: u32 = 10;
const NO_TIME: Duration = Duration::from_millis(50);
/// Longest wait for the headers of a request.
const HEADERS_LIMIT: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const CONNECTION_LIMIT: Duration = Duration::from_secs(15);
/// Connections at once; further ones are closed at once.
const MOST_CONNECTIONS: usize = 16;
/// Bytes of a request's head; hyper takes no less for its buffer.
const HEAD_BYTES: usize = 8 * 1024;
/// Headers of a request.
const MOST_HEADERS: usize = 32;

/// An HTTP server that listens.
pub struct HttpServer {
    listener: TcpListener,
}

impl HttpServer {
    /// Starts to listen; port 0 lets the system choose.
    ///
    /// # Errors
    /// Errors of the socket.
    pub async fn bind(address: SocketAddr) -> io::Result<HttpServer> {
        let listener = TcpListener::bind(address).await?;
        Ok(HttpServer { listener })
    }

    /// The address at which it listens.
    ///
    /// # Errors
    /// An error of the system if it does not know the address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers for a server until the future is dropped.
    pub async fn serve(self, server: Arc<dyn Observable>) {
        let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let answers = Arc::new(Answers {
            server,
            asking: Arc::new(Semaphore::new(1)),
            counting: Arc::new(Semaphore::new(1)),
            counted: Mutex::default(),
        });
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of files, most likely: they come back.
                    tracing::warn!(%error, "no connection for metrics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                continue;
            };
            let answers = answers.clone();
            tokio::spawn(async move {
                let served = serve_connection(stream, answers);
                if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_LIMIT, served).await {
                    tracing::debug!(%error, "a connection for metrics broke");
                }
                drop(slot);
            });
        }
    }
}

async fn serve_connection(stream: TcpStream, answers: Arc<Answers>) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(answers.answer(&request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_LIMIT)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// Where the answers come from.
struct Answers {
    server: Arc<dyn Observable>,
    /// One question to the store at a time, so that a store that hangs holds one thread.
    asking: Arc<Semaphore>,
    /// One count of the bundles at a time.
    counting: Arc<Semaphore>,
    counted: Mutex<Option<Counted>>,
}

/// A count of the bundles at rest.
struct Counted {
    /// None if the store gave an error.
    at_rest: Option<AtRest>,
    took: Duration,
    when: Instant,
}

impl Counted {
    fn is_good(&self) -> bool {
        self.took > NO_TIME && self.when.elapsed() < COUNT_REST * self.took
    }
}

impl Answers {
    async fn answer(self: &Arc<Self>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => self.metrics().await,
            (&Method::GET, "/healthz") => text(StatusCode::OK, "alive\n".into()),
            (&Method::GET, "/readyz") => match self.readiness().await {
                Ok(()) => text(StatusCode::OK, "ready\n".into()),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            (_, "/metrics" | "/healthz" | "/readyz") => {
                let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "GET alone\n".into());
                let allowed = HeaderValue::from_static("GET");
                refusal.headers_mut().insert(ALLOW, allowed);
                refusal
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "/metrics, /healthz and /readyz are here\n".into(),
            ),
        }
    }

    async fn metrics(self: &Arc<Self>) -> Response<Full<Bytes>> {
        let store = self.ask_store(|server| server.probe_store()).await;
        if let Err(reason) = &store {
            tracing::warn!(reason, "the store fails");
        }
        let at_rest = self.at_rest().await;
        let metrics = self.server.metrics();
        metrics.store_is(store.is_ok());
        let exposition = metrics.exposition(&self.server.memory(), at_rest.as_ref());
        let mut answer = text(StatusCode::OK, exposition);
        let format = HeaderValue::from_static(OPEN_METRICS);
        answer.headers_mut().insert(CONTENT_TYPE, format);
        answer
    }

    /// The bundles at rest, counted now or, if that takes long, a while ago.
    async fn at_rest(self: &Arc<Self>) -> Option<AtRest> {
        let good = lock(&self.counted).as_ref().is_some_and(Counted::is_good);
        if !good && let Ok(permit) = self.counting.clone().try_acquire_owned() {
            let answers = self.clone();
            let count = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                answers.count();
            });
            // It goes on beyond that, for whoever asks next.
            let _ = tokio::time::timeout(COUNT_LIMIT, count).await;
        }
        lock(&self.counted).as_ref()?.at_rest.clone()
    }

    fn count(&self) {
        let started = Instant::now();
        let at_rest = self.server.bundles_at_rest();
        if let Err(error) = &at_rest {
            tracing::warn!(%error, "the bundles are not counted");
            self.server.metrics().store_failed(error);
        }
        let counted = Counted {
            at_rest: at_rest.ok(),
            took: started.elapsed(),
            when: Instant::now(),
        };
        *lock(&self.counted) = Some(counted);
    }

    /// Whether a client that connects now would be served, or why not.
    async fn readiness(self: &Arc<Self>) -> Result<(), String> {
        match self.server.health().state() {
            State::Starting => return Err("starting".into()),
            State::ShuttingDown => return Err("shutting down".into()),
            State::Accepting => {}
        }
        self.ask_store(|server| server.probe_store()).await
    }

    /// Asks the store on a blocking thread.
    ///
    /// # Errors
    /// The error of the store, or that it does not answer in time.
    async fn ask_store<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&dyn Observable) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, String> {
        let answers = self.clone();
        let asked = async {
            let permit = self.asking.clone().acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                // Held until the question is answered, whoever still waits for it.
                let _permit = permit;
                let answer = ask(&*answers.server);
                answer.inspect_err(|error| answers.server.metrics().store_failed(error))
            })
            .await
        };
        match tokio::time::timeout(STORE_LIMIT, asked).await {
            Ok(Ok(answer)) => answer.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(format!("the store was not asked: {error}")),
            Err(_) => Err(format!("the store did not answer within {STORE_LIMIT:?}")),
        }
    }
}

/// What is under the lock is set in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
