//! In place of `web` in a build without the part for browsers: nothing is served to them.

use super::{ServerOptions, Shared};
use crate::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Nobody has one.
pub(super) enum Web {}

/// What there is of [`Web`] when the server starts.
pub(super) enum Listening {}

pub(super) fn check(options: &ServerOptions) -> Vec<Error> {
    let missing = options.web.iter().map(|_| missing());
    missing.collect()
}

pub(super) fn listen(options: &ServerOptions) -> Result<Option<Listening>, Error> {
    match options.web {
        Some(_) => Err(missing()),
        None => Ok(None),
    }
}

fn missing() -> Error {
    let what = "this build has no part for browsers; build with --features web";
    Error::Web(what.into())
}

impl Listening {
    pub(super) fn start(self, _: &Shared) -> Result<Web, Error> {
        match self {}
    }
}

impl Web {
    pub(super) fn address(&self) -> SocketAddr {
        match *self {}
    }

    pub(super) fn plain_address(&self) -> Option<SocketAddr> {
        match *self {}
    }

    pub(super) async fn accept(&self) -> Option<quinn::Incoming> {
        match *self {}
    }

    pub(super) async fn serve(
        self: Arc<Web>,
        _: Arc<Shared>,
        _: quinn::Incoming,
        _: watch::Receiver<bool>,
    ) {
        match *self {}
    }

    pub(super) fn look(&self, _: &Shared, _: bool) {
        match *self {}
    }

    pub(super) async fn serve_page(self: Arc<Web>) {
        match *self {}
    }

    pub(super) fn refuse_more(&self) {
        match *self {}
    }

    pub(super) async fn close(&self) {
        match *self {}
    }
}
