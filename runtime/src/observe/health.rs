//! Whether the server lives, and whether it is ready to serve.

use super::metrics::{AtRest, MemoryLevels, Metrics};
use crate::store::StoreError;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a server shows of itself. The two that ask the store may block, and are not called on the
/// reactor.
pub trait Observable: Send + Sync + 'static {
    /// The counters.
    fn metrics(&self) -> &Metrics;

    /// Whether it takes connections.
    fn health(&self) -> &Health;

    /// What is taken of the memory.
    fn memory(&self) -> MemoryLevels;

    /// The bundles at rest, of each model served and of all others.
    ///
    /// # Errors
    /// Errors of the store.
    fn bundles_at_rest(&self) -> Result<AtRest, StoreError>;

    /// Ensures that the store can be read and written.
    ///
    /// # Errors
    /// Errors of the store.
    fn probe_store(&self) -> Result<(), StoreError>;
}

/// What a server is doing on the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does not take connections yet.
    Starting,
    /// It takes connections.
    Accepting,
    /// It lets operations under way end, and takes no others.
    ShuttingDown,
}

/// The state of a server, as it changes.
#[derive(Debug, Default)]
pub struct Health(AtomicU8);

impl Health {
    /// Enters a state.
    pub fn enter(&self, state: State) {
        self.0.store(state as u8, Ordering::SeqCst);
    }

    /// The state now.
    pub fn state(&self) -> State {
        let states = [State::Starting, State::Accepting, State::ShuttingDown];
        states[usize::from(self.0.load(Ordering::SeqCst))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_they_were_entered() {
        let health = Health::default();
        assert_eq!(health.state(), State::Starting);
        for state in [State::Accepting, State::ShuttingDown, State::Starting] {
            health.enter(state);
            assert_eq!(health.state(), state);
        }
    }
}
