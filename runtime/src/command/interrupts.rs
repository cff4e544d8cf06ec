//! Interrupts and requests to terminate, as a program waits for them.

/// The user's wish to end the program. Interrupts count from the moment that this is made.
#[cfg(unix)]
pub(super) struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Interrupts {
    pub(super) fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for an interrupt or a request to terminate.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The user's wish to end the program.
#[cfg(not(unix))]
pub(super) struct Interrupts;

#[cfg(not(unix))]
impl Interrupts {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Waits for an interrupt.
    pub(super) async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without signals the process can still be killed, which is safe at any moment.
            std::future::pending().await
        }
    }
}

/// Requests to read files again. They count from the moment that this is made.
#[cfg(unix)]
pub(super) struct Hangups(tokio::signal::unix::Signal);

#[cfg(unix)]
impl Hangups {
    pub(super) fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for the next request; forever once there can be none.
    pub(super) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// Requests to read files again, which this system does not have.
#[cfg(not(unix))]
pub(super) struct Hangups;

#[cfg(not(unix))]
impl Hangups {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Waits forever.
    pub(super) async fn next(&mut self) {
        std::future::pending().await
    }
}
