//! A client's connection, of either kind: the native protocol's, or a browser's session.

use crate::stream::{MessageStream, Refusal, StreamError, code};
use quinn::{RecvStream, SendStream};
use std::time::Duration;

#[cfg(feature = "web")]
use crate::web::session::Session;
#[cfg(feature = "web")]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A connection on which a client is known.
#[derive(Clone)]
pub(super) enum Link {
    /// Of the native protocol.
    Native(quinn::Connection),
    /// A browser's session, and the number of its next stream.
    #[cfg(feature = "web")]
    Web(Arc<Session>, Arc<AtomicU64>),
}

/// A stream that the client has opened, of which nothing is read yet.
pub(super) struct Opened {
    outgoing: SendStream,
    incoming: RecvStream,
    #[cfg(feature = "web")]
    index: u64,
}

impl Link {
    /// What tells it from all other connections that there are.
    pub(super) fn stable_id(&self) -> usize {
        match self {
            Link::Native(quic) => quic.stable_id(),
            #[cfg(feature = "web")]
            Link::Web(session, _) => session.quic().stable_id(),
        }
    }

    /// Whether the client is a browser.
    pub(super) fn is_web(&self) -> bool {
        !matches!(self, Link::Native(_))
    }

    /// What it is called in the log.
    pub(super) fn kind(&self) -> &'static str {
        match self.is_web() {
            true => "webtransport",
            false => "quic",
        }
    }

    /// The next stream that the client opens; `None` once the connection is over.
    pub(super) async fn accept(&self) -> Option<Opened> {
        match self {
            Link::Native(quic) => {
                let (outgoing, incoming) = quic.accept_bi().await.ok()?;
                Some(Opened {
                    outgoing,
                    incoming,
                    #[cfg(feature = "web")]
                    index: 0,
                })
            }
            #[cfg(feature = "web")]
            Link::Web(session, next) => {
                let (outgoing, incoming) = session.accept().await?;
                Some(Opened {
                    outgoing,
                    incoming,
                    index: next.fetch_add(1, Ordering::Relaxed),
                })
            }
        }
    }

    /// The messages on a stream.
    ///
    /// # Errors
    /// [`StreamError`] if it is none of the session; it is refused then.
    pub(super) async fn messages(
        &self,
        opened: Opened,
        patience: Duration,
    ) -> Result<MessageStream, StreamError> {
        let Opened {
            outgoing, incoming, ..
        } = opened;
        match self {
            Link::Native(_) => Ok(MessageStream::new(outgoing, incoming, patience)),
            #[cfg(feature = "web")]
            Link::Web(session, _) => {
                let (mut outgoing, mut incoming) = (outgoing, incoming);
                let named = session.read_name(&mut outgoing, &mut incoming);
                let named = tokio::time::timeout(patience, named).await;
                named.map_err(|_| StreamError::Silent(patience))??;
                let index = opened.index;
                Ok(MessageStream::of_session(
                    outgoing, incoming, index, patience,
                ))
            }
        }
    }

    /// Ends the connection and tells the client why.
    pub(super) fn close(&self, refusal: Refusal, reason: &'static str) {
        match self {
            Link::Native(quic) => quic.close(code(refusal), reason.as_bytes()),
            #[cfg(feature = "web")]
            Link::Web(session, _) => session.close(refusal.web_code(), reason),
        }
    }
}
