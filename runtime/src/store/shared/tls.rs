//! The line to the database: a Unix socket, the machine itself, or TLS with a known authority.

use crate::identity::read_certificates;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, NoTls};

/// Name of a database without user and password.
pub(super) fn place(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        #[cfg(unix)]
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "no host".into(),
    };
    let name = config
        .get_dbname()
        .or(config.get_user())
        .unwrap_or_default();
    format!("{name:?} at {host}")
}

/// Connects. The connection goes on in the background of this runtime.
pub(super) async fn connect(
    config: &Config,
    tls: Option<&Tls>,
) -> Result<Client, tokio_postgres::Error> {
    match tls {
        Some(tls) => {
            let (client, connection) = config.connect(tls.clone()).await?;
            tokio::spawn(watch(connection));
            Ok(client)
        }
        None => {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(watch(connection));
            Ok(client)
        }
    }
}

async fn watch(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::warn!(%error, "a connection to the store's database ended");
    }
}

/// How TLS connections are made.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// What this database is reached with: TLS if there are authorities to check it against. `None`
    /// is a line without TLS, which is refused beyond this machine unless the URL asks for it.
    pub(super) fn new(config: &Config, authorities: Option<&Path>) -> Result<Option<Tls>, String> {
        let remote = config.get_hosts().iter().any(|host| match host {
            Host::Tcp(host) => !matches!(&**host, "localhost" | "127.0.0.1" | "::1"),
            #[cfg(unix)]
            Host::Unix(_) => false,
        });
        match (authorities, config.get_ssl_mode()) {
            (Some(_), SslMode::Disable) => Err("sslmode=disable beside --store-database-ca".into()),
            (Some(_), SslMode::Prefer) => {
                Err("add sslmode=require to the URL, so that TLS is not optional".into())
            }
            (Some(path), _) => Ok(Some(Tls::trusting(path)?)),
            (None, SslMode::Disable) => Ok(None),
            (None, SslMode::Prefer) if !remote => Ok(None),
            (None, _) => Err(
                "give --store-database-ca FILE and sslmode=require in the URL, or \
                              sslmode=disable if the line is private"
                    .into(),
            ),
        }
    }

    fn trusting(path: &Path) -> Result<Tls, String> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(path).map_err(|e| e.to_string())? {
            roots
                .add(certificate)
                .map_err(|e| format!("{}: {e}", path.display()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Tls(Arc::new(config)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Encrypted<S>;
    type TlsConnect = Connecting;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Connecting> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Connecting(self.0.clone(), name))
    }
}

/// A TLS connection to be made to the host of this name.
pub(super) struct Connecting(Arc<ClientConfig>, ServerName<'static>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Connecting {
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connecting = tokio_rustls::TlsConnector::from(self.0).connect(self.1, stream);
        Box::pin(async { Ok(Encrypted(connecting.await?)) })
    }
}

/// A TLS connection.
pub(super) struct Encrypted<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
