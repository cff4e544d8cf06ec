//! The flags by which an operator sees the server from outside.

use crate::command::log_flags::LogArguments;
use crate::observe::http::HttpServer;
use crate::observe::logs::{self, Logs};
use crate::observe::traces::Traces;
use crate::server::Server;
use anyhow::Context;
use std::net::{SocketAddr, ToSocketAddrs};

#[derive(clap::Args)]
pub(super) struct ObserveArguments {
    /// Address (TCP) at which to answer HTTP requests for /metrics, /healthz and /readyz; port 0
    /// chooses a free one. It has no password: use an address that only you reach.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// OpenTelemetry collector to send traces to by OTLP over HTTP, such as http://127.0.0.1:4318
    /// (in builds with the feature `otel`).
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    #[command(flatten)]
    log: LogArguments,
}

impl ObserveArguments {
    /// Starts log and traces.
    pub(super) fn start_logging(&self, default: &str) -> anyhow::Result<Logs> {
        let url = self.otlp.as_deref();
        let traces = url.map(|url| Traces::start("pi-server", url)).transpose()?;
        Ok(logs::start(default, self.log.log_format, traces))
    }

    /// Starts to answer requests about this server, if that is wished for, and returns where.
    pub(super) async fn serve(&self, server: &Server) -> anyhow::Result<Option<SocketAddr>> {
        let Some(address) = &self.metrics else {
            return Ok(None);
        };
        let explain = || format!("cannot answer at {address}, the address of --metrics");
        let resolved = address.to_socket_addrs().with_context(explain)?.next();
        let resolved = resolved.context("the name has no address");
        let http = HttpServer::bind(resolved.with_context(explain)?).await;
        let http = http.with_context(explain)?;
        let address = http.address()?;
        tokio::spawn(http.serve(server.observable()));
        Ok(Some(address))
    }
}
