//! Traces to an OpenTelemetry collector: a span for each operation, and in it spans of what it
//! waited for and computed.
//!
//! They are sent by OTLP over HTTP (protocol buffers), in batches, by a thread of their own, so
//! that a collector that is slow or gone costs an operation nothing; what does not fit the queue is
//! dropped. Only `http:` is spoken: a collector runs on the same machine, or is reached through
//! something that encrypts.

#[cfg(feature = "otel")]
pub use sender::Traces;

/// Traces that were started: none, in a build without them.
#[cfg(not(feature = "otel"))]
pub enum Traces {}

#[cfg(not(feature = "otel"))]
impl Traces {
    /// Starts to send traces of the service with this name to a collector.
    ///
    /// # Errors
    /// [`TracesError::NotBuilt`], always.
    pub fn start(_service: &'static str, _url: &str) -> Result<Traces, TracesError> {
        Err(TracesError::NotBuilt)
    }

    /// Passes spans on to the collector.
    pub(super) fn layer<S: tracing::Subscriber>(
        &self,
    ) -> Box<dyn tracing_subscriber::Layer<S> + Send + Sync> {
        match *self {}
    }
}

/// An error of starting traces.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The program was built without them.
    #[error("this build has no OpenTelemetry; build with --features otel")]
    NotBuilt,
    /// The address of the collector cannot be used.
    #[error("{url:?} is not the address of a collector: {reason}")]
    Url {
        /// The address as the user wrote it.
        url: String,
        /// The mistake in it.
        reason: String,
    },
    /// The exporter cannot be made.
    #[error("traces cannot be sent: {0}")]
    Exporter(String),
}

#[cfg(feature = "otel")]
mod sender {
    use super::TracesError;
    use http_body_util::{BodyExt, Full, Limited};
    use hyper::client::conn::http1;
    use hyper::header::{HOST, HeaderValue};
    use hyper::{Uri, body::Incoming};
    use hyper_util::rt::TokioIo;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
    use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use std::future::Future;
    use std::pin::Pin;
    use std::time::Duration;
    use tokio::net::TcpStream;
    use tracing_subscriber::registry::LookupSpan;
    use tracing_subscriber::{EnvFilter, Layer};

    /// Spans to send, and what else the log says inside them.
    const SENT: &str = "pi_runtime=debug";
    /// Longest time for one batch.
    const LIMIT: Duration = Duration::from_secs(10);
    /// Bytes of a collector's reply that are read.
    const REPLY_BYTES: usize = 64 * 1024;

    /// Traces that were started. Those that are not sent yet are sent when this value is dropped.
    pub struct Traces {
        provider: SdkTracerProvider,
    }

    impl Traces {
        /// Starts to send traces of the service with this name to a collector: to `/v1/traces`, if
        /// the address has no path.
        ///
        /// # Errors
        /// [`TracesError`] if the address is none. A collector that is not there is none: it may
        /// come.
        pub fn start(service: &'static str, url: &str) -> Result<Traces, TracesError> {
            let exporter = SpanExporter::builder()
                .with_http()
                .with_http_client(Client)
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(endpoint(url)?)
                .with_timeout(LIMIT)
                .build()
                .map_err(|error| TracesError::Exporter(error.to_string()))?;
            let provider = SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_resource(Resource::builder().with_service_name(service).build())
                .build();
            Ok(Traces { provider })
        }

        /// Passes spans on to the collector.
        pub(crate) fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
        where
            S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
        {
            tracing_opentelemetry::layer()
                .with_location(false)
                .with_threads(false)
                .with_tracer(self.provider.tracer("pianissimo"))
                .with_filter(EnvFilter::new(SENT))
                .boxed()
        }
    }

    impl Drop for Traces {
        fn drop(&mut self) {
            // A collector that is gone is no reason to wait.
            let _ = self.provider.shutdown_with_timeout(Duration::from_secs(2));
        }
    }

    fn endpoint(url: &str) -> Result<String, TracesError> {
        let bad = |reason: &str| TracesError::Url {
            url: url.into(),
            reason: reason.into(),
        };
        let uri: Uri = url.parse().map_err(|_| bad("it is no URL"))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(_)) if uri.path() == "/" => {
                Ok(format!("{}/v1/traces", url.trim_end_matches('/')))
            }
            (Some("http"), Some(_)) => Ok(url.into()),
            _ => Err(bad(
                "write http://HOST:PORT, for example http://127.0.0.1:4318",
            )),
        }
    }

    /// Posts batches, each over a connection of its own.
    #[derive(Debug)]
    struct Client;

    type Reply<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

    impl HttpClient for Client {
        fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Reply<'b>
        where
            'a: 'b,
            Self: 'b,
        {
            // The exporter's thread has no reactor, and may block.
            Box::pin(async move {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async { tokio::time::timeout(LIMIT, post(request)).await? })
            })
        }
    }

    async fn post(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut head, body) = request.into_parts();
        let authority = head.uri.authority().ok_or("a URL without a host")?.clone();
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
        head.headers
            .insert(HOST, HeaderValue::from_str(authority.as_str())?);
        if let Some(path) = head.uri.path_and_query() {
            head.uri = path.as_str().parse()?;
        }
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::from_parts(head, Full::new(body));
        let (head, body): (_, Incoming) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, REPLY_BYTES).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn collectors_are_named_by_http_urls() {
            let with_path = endpoint("http://[::1]:4318/other/v1/traces").unwrap();
            assert_eq!(with_path, "http://[::1]:4318/other/v1/traces");
            for url in ["http://127.0.0.1:4318", "http://127.0.0.1:4318/"] {
                assert_eq!(endpoint(url).unwrap(), "http://127.0.0.1:4318/v1/traces");
            }
            for url in ["https://127.0.0.1:4318", "127.0.0.1:4318", "", "http://"] {
                assert!(endpoint(url).is_err(), "{url}");
            }
        }
    }
}
