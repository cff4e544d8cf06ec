//! Settings of a server's part for browsers.

use crate::store::unix_milliseconds;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Settings of a server's part for browsers.
#[derive(Clone, Debug)]
pub struct WebOptions {
    /// Address to listen at: HTTPS over TCP for the page, and WebTransport over UDP at the same
    /// port. With port 0 the system chooses one.
    pub listen: SocketAddr,
    /// Address of this machine alone at which the page is served over HTTP too.
    pub plain: Option<SocketAddr>,
    /// Folder of the page.
    pub files: PathBuf,
    /// Certificate chain and key that browsers trust, instead of self-signed certificates. They are
    /// read again when they change.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Further names by which browsers call the server, each a host, or host and port.
    pub names: Vec<String>,
    /// Origins of pages from elsewhere that may call the server.
    pub origins: Vec<String>,
    /// The time by which certificates are replaced.
    pub clock: Clock,
}

impl WebOptions {
    /// The page in a folder, at a free port of this machine alone.
    pub fn new(files: impl Into<PathBuf>) -> WebOptions {
        WebOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            plain: None,
            files: files.into(),
            certificate: None,
            names: Vec::new(),
            origins: Vec::new(),
            clock: Clock::default(),
        }
    }
}

/// Where the time comes from.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// A clock of seconds since 1970.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now))
    }

    /// Seconds since 1970.
    #[cfg_attr(not(feature = "web"), expect(dead_code, reason = "nothing is timed"))]
    pub(super) fn now(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    /// The system's.
    fn default() -> Clock {
        Clock::new(|| unix_milliseconds() / 1000)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
