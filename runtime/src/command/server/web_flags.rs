//! The flags of `pi-server` about browsers.

use super::listen_address;
use crate::error::Error;
use crate::server::{Clock, Server, WebOptions};
use std::path::PathBuf;

/// Browsers as clients.
#[derive(Clone, Default, clap::Args)]
pub(super) struct WebArguments {
    /// Address at which to serve browsers too: a page over HTTPS (TCP), and WebTransport at the
    /// same port (UDP), such as [::]:8443; port 0 chooses a free one. In builds with the feature
    /// `web`.
    #[arg(long, value_name = "ADDR")]
    web: Option<String>,
    /// Address of this machine alone at which the page is served by HTTP as well, for trying it
    /// without a certificate (TCP).
    #[arg(long, value_name = "ADDR", requires = "web")]
    web_http: Option<String>,
    /// Folder of the page, as web/build.sh makes it.
    #[arg(long, value_name = "DIR", default_value = "web/dist")]
    web_files: PathBuf,
    /// PEM file with a certificate chain that browsers trust, instead of self-signed certificates
    /// that the server replaces every nine days. It is read again when it changes.
    #[arg(long, value_name = "FILE", requires = "web", requires = "web_key")]
    web_cert: Option<PathBuf>,
    /// PEM file with the private key of --web-cert.
    #[arg(long, value_name = "FILE", requires = "web_cert")]
    web_key: Option<PathBuf>,
    /// Name by which browsers call the server, HOST or HOST:PORT, beside its addresses and the
    /// names in --web-cert. May be given several times.
    #[arg(long, value_name = "HOST", requires = "web")]
    web_names: Vec<String>,
    /// Origin of a page from elsewhere that may call the server, such as https://pages.example.
    /// May be given several times.
    #[arg(long, value_name = "ORIGIN", requires = "web")]
    web_origins: Vec<String>,
}

impl WebArguments {
    /// The part for browsers, if they are to be served.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub(super) fn options(&self) -> Result<Option<WebOptions>, Error> {
        let Some(listen) = &self.web else {
            return Ok(None);
        };
        let plain = self.web_http.as_deref().map(listen_address);
        Ok(Some(WebOptions {
            listen: listen_address(listen)?,
            plain: plain.transpose()?,
            files: self.web_files.clone(),
            certificate: self.web_cert.clone().zip(self.web_key.clone()),
            names: self.web_names.clone(),
            origins: self.web_origins.clone(),
            clock: Clock::default(),
        }))
    }
}

/// Where browsers find the page.
pub(super) fn announcement(server: &Server) -> Vec<String> {
    let https = server.web_address().map(|at| format!("page https://{at}/"));
    let http = server.web_http_address();
    let http = http.map(|at| format!("page http://{at}/"));
    https.into_iter().chain(http).collect()
}
