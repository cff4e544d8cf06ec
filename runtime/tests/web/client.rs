//! A server that serves browsers, and clients that stand in for them: HTTP by hand, and
//! WebTransport over the same QUIC, with the client's half of the protocol.

use crate::common::{Model, server_options};
use pi_ir::Artifact;
use pi_protocol::header::{HeaderInputs, PROTOCOL_VERSION};
use pi_protocol::session::{
    self, BundleSink, ClientBatch, ClientBundle, ClientModel, ClientSetup, Inference,
};
use pi_runtime::control::{Hello, Prepare, Request, Stored, Welcome};
use pi_runtime::fingerprint::{Fingerprint, of_certificate};
use pi_runtime::server::{Server, ServerOptions, WebOptions};
use pi_runtime::stream::{MessageStream, Refusal, StreamError};
use pi_runtime::web::identification::WebKey;
use pi_runtime::web::session::{ALPN, Session, SessionError};
use rand_core::{OsRng, TryRngCore};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A server in this process, with a page of a few files.
pub(crate) struct Running {
    /// Of the native protocol.
    pub(crate) address: SocketAddr,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) service: Fingerprint,
    pub(crate) web: SocketAddr,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) reload: Arc<Notify>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    _page: tempfile::TempDir,
}

impl Running {
    pub(crate) fn start(model: &Model, state: &Path) -> Running {
        Running::with(server_options(model, state), |_| {})
    }

    pub(crate) fn with(
        mut options: ServerOptions,
        change: impl FnOnce(&mut WebOptions),
    ) -> Running {
        let page = page();
        let mut web = WebOptions::new(page.path());
        change(&mut web);
        options.web = Some(web);
        let server = Server::start(&options).unwrap();
        let (stop, stopped) = watch::channel(false);
        Running {
            address: server.address().unwrap(),
            fingerprint: server.fingerprint(),
            service: server.service(),
            web: server.web_address().unwrap(),
            http: server.web_http_address(),
            reload: server.reload(),
            stop,
            task: tokio::spawn(server.run(stopped)),
            _page: page,
        }
    }

    pub(crate) fn origin(&self) -> String {
        format!("https://{}", self.web)
    }

    /// What `/server.json` says.
    pub(crate) async fn note(&self) -> Value {
        let answer = self.get("/server.json", &[]).await;
        assert_eq!(answer.status, 200);
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// The hashes of certificates that a page is told.
    pub(crate) async fn hashes(&self) -> Vec<Fingerprint> {
        let note = self.note().await;
        let hashes = note["certificates"].as_array().unwrap().iter();
        hashes
            .map(|hash| hash.as_str().unwrap().parse().unwrap())
            .collect()
    }

    /// Asks for something by HTTPS.
    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> HttpAnswer {
        self.ask("GET", path, headers).await
    }

    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> HttpAnswer {
        let stream = self.https(Pins::Any).await.unwrap();
        let host = self.web.to_string();
        exchange(stream, method, path, &host, headers).await
    }

    /// A connection for HTTP.
    pub(crate) async fn https(
        &self,
        pins: Pins,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tls = client_tls(pins, b"http/1.1");
        let stream = TcpStream::connect(self.web).await?;
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await
    }

    /// A connection for a session.
    pub(crate) async fn quic(
        &self,
        pins: Pins,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let tls = client_tls(pins, ALPN);
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        endpoint
            .connect_with(config, self.web, "localhost")
            .unwrap()
            .await
    }

    /// A session that is asked for under this authority and path, by a page of this origin.
    pub(crate) async fn session(
        &self,
        (authority, path): (&str, &str),
        origin: &str,
    ) -> Result<Session, SessionError> {
        let quic = self.quic(Pins::OneOf(self.hashes().await)).await.unwrap();
        let url = format!("https://{authority}{path}").parse().unwrap();
        Session::connect(quic, url, origin).await
    }

    /// A session as the server's page opens it.
    pub(crate) async fn plain_session(&self) -> Session {
        let (authority, origin) = (self.web.to_string(), self.origin());
        let session = self.session((&authority, "/pianissimo/2"), &origin);
        session.await.unwrap()
    }

    /// A browser that has said who it is.
    pub(crate) async fn browser(&self, key: &WebKey) -> Browser {
        let session = self.plain_session().await;
        let mut first = open(&session).await;
        let authority = self.web.to_string();
        let known = key.identify(&mut first, self.service, &authority);
        known.await.unwrap();
        Browser::new(session)
    }

    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

/// A page with a file of each kind.
pub(crate) fn page() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("index.html", "<!doctype html><title>Pianissimo</title>");
    write("pi.wasm", "the module");
    write("pi.wasm.br", "the module in brotli");
    folder
}

/// An answer of HTTP.
pub(crate) struct HttpAnswer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl HttpAnswer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Asks once and reads to the end.
pub(crate) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    host: &str,
    headers: &[(&str, &str)],
) -> HttpAnswer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // An end without a farewell of TLS is an end.
    let _ = stream.read_to_end(&mut answer).await;
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    });
    HttpAnswer {
        status,
        headers: headers.collect(),
        body: answer[end + 4..].to_vec(),
    }
}

/// Certificates that a client takes.
#[derive(Clone, Debug)]
pub(crate) enum Pins {
    Any,
    /// As a browser with `serverCertificateHashes`.
    OneOf(Vec<Fingerprint>),
}

fn client_tls(pins: Pins, alpn: &[u8]) -> rustls::ClientConfig {
    let provider = Arc::new(CryptoProvider {
        kx_groups: vec![X25519MLKEM768],
        ..aws_lc_rs::default_provider()
    });
    let check = Check {
        pins,
        provider: provider.clone(),
    };
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(check))
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls
}

#[derive(Debug)]
struct Check {
    pins: Pins,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Check {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = of_certificate(end_entity);
        match &self.pins {
            Pins::OneOf(hashes) if !hashes.contains(&shown) => {
                Err(rustls::Error::General("another certificate".into()))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.provider.signature_verification_algorithms;
        known.supported_schemes()
    }
}

/// A stream of a session.
pub(crate) async fn open(session: &Session) -> MessageStream {
    let (outgoing, incoming) = session.open().await.unwrap();
    MessageStream::of_session(outgoing, incoming, 0, SOON)
}

/// The code that ends a stream.
pub(crate) async fn refusal(mut stream: MessageStream) -> Refusal {
    let ended = tokio::time::timeout(SOON, stream.receive_message(1 << 24)).await;
    match ended.expect("the server answers") {
        Err(StreamError::Refused(refusal)) => refusal,
        other => panic!("another end: {other:?}"),
    }
}

/// A greeting for the default model.
pub(crate) fn hello() -> Request {
    Request::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        software: "browser".into(),
        nonce: [7; 32],
        model: None,
        prefer: Vec::new(),
        probes: Vec::new(),
    })
}

/// A client over WebTransport, which keeps its bundles in memory.
pub(crate) struct Browser {
    pub(crate) session: Session,
    welcome: Option<Welcome>,
    next_index: u64,
}

impl Browser {
    fn new(session: Session) -> Browser {
        Browser {
            session,
            welcome: None,
            next_index: 0,
        }
    }

    pub(crate) async fn say(&self, request: &Request) -> MessageStream {
        let mut stream = open(&self.session).await;
        stream.send_control(request).await.unwrap();
        stream
    }

    pub(crate) async fn greet(&mut self) -> Welcome {
        let mut stream = self.say(&hello()).await;
        let welcome: Welcome = stream.receive_control(1 << 14).await.unwrap();
        self.welcome = Some(welcome.clone());
        welcome
    }

    pub(crate) async fn model(&self) -> ClientModel {
        let mut stream = self.say(&Request::Artifact).await;
        let bytes = stream.receive_message(1 << 26).await.unwrap();
        ClientModel::new(Artifact::decode(&bytes).unwrap()).unwrap()
    }

    fn inputs(&self, index: u64) -> HeaderInputs {
        let welcome = self.welcome.as_ref().expect("it has greeted");
        HeaderInputs {
            server_peer: welcome.service.0,
            client_peer: welcome.client.0,
            server_nonce: welcome.nonce,
            client_nonce: [7; 32],
            index,
        }
    }

    pub(crate) async fn setup(&self) -> ClientSetup {
        let mut stream = self.say(&Request::Setup).await;
        let inputs = self.inputs(0);
        let rng = &mut OsRng.unwrap_err();
        let setup = session::client_setup(&mut stream, &inputs, rng);
        let setup = setup.await.unwrap();
        let stored: Stored = stream.receive_control(1 << 14).await.unwrap();
        assert_eq!(stored.id, setup.id());
        setup
    }

    /// Prepares a bundle, and returns the client's half as bytes.
    pub(crate) async fn prepare(&mut self, model: &ClientModel, setup: &ClientSetup) -> Vec<u8> {
        self.try_prepare(model, setup).await.unwrap()
    }

    /// As [`Browser::prepare`]; waits while the server has no room for it.
    pub(crate) async fn try_prepare(
        &mut self,
        model: &ClientModel,
        setup: &ClientSetup,
    ) -> Result<Vec<u8>, Option<StreamError>> {
        loop {
            match self.prepare_once(model, setup).await {
                Err(Some(StreamError::Refused(Refusal::ComeBack(_)))) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                made => return made,
            }
        }
    }

    async fn prepare_once(
        &mut self,
        model: &ClientModel,
        setup: &ClientSetup,
    ) -> Result<Vec<u8>, Option<StreamError>> {
        let index = self.next_index;
        self.next_index += 1;
        let request = Request::Prepare(Prepare {
            count: 1,
            first_index: index,
            held: Vec::new(),
        });
        let mut stream = self.say(&request).await;
        let inputs = self.inputs(index);
        let rng = &mut OsRng.unwrap_err();
        let batch = ClientBatch::start(&mut stream, model, setup, &inputs, 1, rng).await;
        let Ok(batch) = batch else {
            return Err(stream.take_failure());
        };
        let mut half = Half(Vec::new());
        let made = batch.next_bundle(&mut stream, &mut half).await;
        let Ok(Some((id, _))) = made else {
            return Err(stream.take_failure());
        };
        let stored: Stored = stream.receive_control(1 << 14).await.unwrap();
        assert_eq!(stored.id, id.0);
        Ok(half.0)
    }

    /// Spends a bundle.
    pub(crate) async fn infer(
        &self,
        model: &ClientModel,
        half: &[u8],
        input: &[i64],
    ) -> Result<Inference, Option<StreamError>> {
        let mut stream = self.say(&Request::Infer).await;
        let bundle = ClientBundle::decode(half, model).unwrap();
        let answer = session::client_infer(&mut stream, model, bundle, input, true).await;
        answer.map_err(|_| stream.take_failure())
    }
}

/// A bundle in memory, as long as it gets.
struct Half(Vec<u8>);

impl BundleSink for Half {
    fn write(&mut self, bytes: &[u8]) -> Result<(), pi_protocol::Error> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}
