//! Browsers as clients: a page over HTTPS, and WebTransport sessions beside the native protocol.
//!
//! A browser opens no QUIC connection of its own kind and proves no certificate. It speaks
//! WebTransport over HTTP/3, and says who it is by a key that its page keeps. Behind that, its
//! streams carry what those of `pi-client` carry, byte for byte.
//!
//! - `session`: WebTransport over a QUIC connection, both ends.
//! - `identification`: how a browser proves who it is.
//! - `names`: by which addresses a server may be called, and from which pages.
//! - `certificates`: certificates that browsers accept by their hashes.
//! - `tls`: the settings of both listeners.
//! - `files`: what the page consists of.
//! - `page`: the server of the page.

pub(crate) mod certificates;
pub(crate) mod files;
pub mod identification;
pub(crate) mod names;
pub(crate) mod page;
pub mod session;
pub(crate) mod tls;
