//! Browsers as clients: the page and its headers, and sessions over WebTransport, with clients that
//! stand in for browsers.

mod client;
#[path = "../common/mod.rs"]
mod common;
mod page;
mod sessions;
