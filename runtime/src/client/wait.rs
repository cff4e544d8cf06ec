//! Patience with a server that is not there, or has no room: tries with growing pauses.

use super::{Choice, Client, Connection, TrustOptions};
use crate::error::Error;
use rand_core::{OsRng, TryRngCore};
use std::time::{Duration, Instant};

/// How long to wait for a server that does not take a connection.
#[derive(Clone, Copy, Debug)]
pub struct Wait(Option<Instant>);

impl Wait {
    /// Waits for no longer than this, or for as long as it takes.
    pub fn new(limit: Option<Duration>) -> Wait {
        Wait(limit.and_then(|limit| Instant::now().checked_add(limit)))
    }

    /// Whether a pause of this length ends in time.
    fn allows(&self, pause: Duration) -> bool {
        match self.0 {
            Some(end) => Instant::now() + pause < end,
            None => true,
        }
    }

    /// The pause after another failure, or the error if there is no time left, or if time does not
    /// help.
    ///
    /// # Errors
    /// The error that was given.
    pub fn pause(&self, backoff: &mut Backoff, error: Error) -> Result<(Error, Duration), Error> {
        let pause = backoff.next_pause();
        match error.is_temporary() && self.allows(pause) {
            true => Ok((error, pause)),
            false => Err(error),
        }
    }
}

/// Pauses between tries, each about twice as long as the one before, up to half a minute.
///
/// Each is drawn from the upper half of its length, so that clients that were turned away together
/// do not come back together ("equal jitter": Brooker, Exponential Backoff and Jitter, 2015).
#[derive(Clone, Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff(Backoff::FIRST)
    }
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        let longest = self.0;
        self.0 = (2 * longest).min(Self::LONGEST);
        // Nothing secret: without a generator, everybody waits for the same time.
        let part = OsRng.try_next_u32().unwrap_or(u32::MAX);
        longest / 2 + (longest / 2).mul_f64(f64::from(part) / f64::from(u32::MAX))
    }

    /// Begins anew with short pauses.
    pub fn reset(&mut self) {
        *self = Backoff::default();
    }
}

impl Client {
    /// Connects as [`Client::connect_to`] does, and tries for as long as `wait` allows while the
    /// server is not up or full. `waiting` is called with the reason before each pause.
    ///
    /// # Errors
    /// The error of the last try.
    pub async fn connect_patiently(
        &self,
        address: &str,
        trust: &TrustOptions,
        choice: &Choice,
        wait: Option<Wait>,
        mut waiting: impl FnMut(&Error, Duration),
    ) -> Result<Connection<'_>, Error> {
        let mut backoff = Backoff::default();
        loop {
            match (self.connect_to(address, trust, choice).await, wait) {
                (Err(error), Some(wait)) => {
                    let (error, pause) = wait.pause(&mut backoff, error)?;
                    waiting(&error, pause);
                    tokio::time::sleep(pause).await;
                }
                (result, _) => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_half_a_minute_and_are_never_short() {
        let mut backoff = Backoff::default();
        let mut longest = Backoff::FIRST;
        for _ in 0..12 {
            let pause = backoff.next_pause();
            assert!(pause >= longest / 2 && pause <= longest, "{pause:?}");
            longest = (2 * longest).min(Duration::from_secs(30));
        }
        assert_eq!(longest, Duration::from_secs(30));
        backoff.reset();
        assert!(backoff.next_pause() <= Backoff::FIRST);
    }

    #[test]
    fn only_what_may_pass_is_waited_for_and_only_in_time() {
        let passing = || Error::Lost("it broke".into());
        let for_good = || Error::Version("another".into());
        let mut backoff = Backoff::default();
        let endless = Wait::new(None);
        assert!(endless.pause(&mut backoff, passing()).is_ok());
        assert!(endless.pause(&mut backoff, for_good()).is_err());
        let over = Wait::new(Some(Duration::ZERO));
        assert!(over.pause(&mut backoff, passing()).is_err());
    }
}
