//! An operation: a session that runs in steps, between which the worker carries its messages.

use crate::failure::Failure;
use crate::line::{Line, Wait};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

type Session<T> = dyn Future<Output = Result<T, Failure>>;

/// A session under way, with the result that it will have.
pub struct Operation<T> {
    line: Line,
    /// None once it is over.
    session: Option<Pin<Box<Session<T>>>>,
}

impl<T> Operation<T> {
    /// Starts a session over a new line; it computes nothing before it is polled.
    pub(crate) fn start<F>(session: impl FnOnce(Line) -> F) -> Self
    where
        F: Future<Output = Result<T, Failure>> + 'static,
    {
        let line = Line::default();
        let session = Box::pin(session(line.clone()));
        Operation {
            line,
            session: Some(session),
        }
    }

    /// The line to the session.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// Computes until the session waits for something or is over.
    pub fn poll(&mut self) -> Poll<Result<T, Failure>> {
        // Nobody is woken: whoever does what the session waits for polls again.
        let mut context = Context::from_waker(Waker::noop());
        let Some(session) = &mut self.session else {
            return Poll::Ready(Err(Failure::internal("the operation is over")));
        };
        let polled = session.as_mut().poll(&mut context);
        if polled.is_ready() {
            self.session = None;
        }
        polled
    }

    /// What the session waits for, after a poll that was pending.
    pub fn wait(&self) -> Wait {
        self.line.wait()
    }
}
