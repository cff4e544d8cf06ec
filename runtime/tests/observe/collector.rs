//! Traces, as a collector receives them.

use crate::Watched;
use crate::common::{client, prepare};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;

/// Bodies of the requests that a collector got, one after another.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<u8>>>);

impl Collector {
    /// Starts to receive; also returns its URL.
    pub(crate) async fn start() -> (Collector, String) {
        let collector = Collector::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let receiving = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let collector = receiving.clone();
                let service = service_fn(move |request| collector.clone().receive(request));
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(served);
            }
        });
        (collector, url)
    }

    async fn receive(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri().path(), "/v1/traces");
        let format = request.headers().get("content-type").unwrap();
        assert_eq!(format, "application/x-protobuf");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        self.lock().extend_from_slice(&body);
        Ok(Response::new(Full::default()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was received, as text: names and fields stand in it as they are.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_a_span_for_each_operation_and_its_parts() {
    let (collector, url) = Collector::start().await;
    let watched = Watched::start(&["--otlp", &url]);
    let state = watched.at("client");
    prepare(&state, &watched.server, 1).assert().success();
    let mut infer = client(&state);
    infer.arg("infer").arg(&watched.model.file);
    infer.assert().success();
    // It sends what is left when it ends.
    let id = watched.server.process.child.id().to_string();
    let ended = std::process::Command::new("kill").arg(id).status();
    assert!(ended.unwrap().success());
    let all = crate::view::wait_for(|| {
        let text = collector.text();
        text.contains("infer").then_some(text).ok_or("no inference")
    });
    let model = watched.model_name();
    for name in [
        "pi-server",
        "operation",
        "read bundle",
        "mark",
        "compute",
        "receive",
        "send",
        "prepare",
        &model,
    ] {
        assert!(all.contains(name), "{name:?} is not in {all}");
    }
}
