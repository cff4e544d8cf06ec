//! The memory that clients can make the server use, as one budget.
//!
//! Whoever reaches the port may prepare bundles, and an exchange that waits for its client keeps
//! what it has computed so far. So memory is taken before the first reply, for a whole exchange, or
//! the client is told when to come back:
//!
//! | what | how much | taken |
//! | --- | --- | --- |
//! | bundles read ahead | [`AHEAD_BYTES`] | at the start |
//! | a connection's windows, and one inference | [`transport::SERVER_WINDOWS`], a bundle and its messages | at the start, for as many as there may be clients |
//! | an offline exchange or a setup, one at a time for a client | by formula, for the largest batch | when it is asked for |
//!
//! The models, their plans and kernels are the operator's own, and not in this budget. With several
//! models, as much is set aside as the most demanding one needs.
//!
//! # Whose turn it is
//! Clients that were sent away are served in the order in which they came first: a client for which
//! there would be room waits while one before it is still expected back. So strangers who ask all
//! the time keep nobody out for longer than their own turns take.
//!
//! # Who gives way
//! A client that stalls must not keep others out for the whole of its patience. Once an exchange
//! was refused for want of memory, those that have waited for their client's next message longer
//! than [`GIVE_WAY`] are ended.

use super::lock;
use crate::control::REQUEST_LIMIT;
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::machine;
use crate::observe::MemoryLevels;
use crate::stream::Refusal;
use crate::transport;
use pi_protocol::session::ServerModel;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Memory for bundles that are read before they are asked for; others are read when they are.
pub(super) const AHEAD_BYTES: usize = 128 << 20;
/// Wait for one message of a client after which its exchange makes room for another's.
pub(super) const GIVE_WAY: Duration = Duration::from_secs(10);
/// Time after which a client that was refused may try again.
const COME_BACK: Duration = Duration::from_secs(2);
/// Time after which a client that was sent away is no longer expected.
const EXPECTED: Duration = Duration::from_secs(8);

/// What is left of the budget for exchanges.
pub(super) struct Memory {
    state: Mutex<State>,
    /// Told when an exchange was refused.
    wanted: Notify,
    /// The whole of it, in bytes.
    budget: u64,
    max_clients: usize,
}

struct State {
    /// May be below zero for a while, when more was set aside for a new model.
    left: i64,
    /// What is set aside for connections and inferences.
    aside: u64,
    /// The clients that were sent away, in the order of their turns, and when each came last.
    queue: Vec<(Fingerprint, Instant)>,
    /// Exchanges that were sent away so far.
    sent_away: u64,
}

/// Bytes of the budget that one exchange holds, until it is dropped.
pub(super) struct Share<'a> {
    memory: &'a Memory,
    bytes: u64,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        lock(&self.memory.state).left += self.bytes as i64;
    }
}

impl Memory {
    /// The budget of a server in bytes, less what it sets aside at its start.
    ///
    /// # Errors
    /// [`Error::Memory`] with the least budget with which these models can be served to as many
    /// clients.
    pub(super) fn new<'m>(
        models: impl Iterator<Item = &'m ServerModel>,
        max_clients: usize,
        budget: u64,
    ) -> Result<Self, Error> {
        let left = i64::try_from(budget).unwrap_or(i64::MAX) - AHEAD_BYTES as i64;
        let memory = Memory {
            budget,
            ..Memory::empty(left, max_clients)
        };
        for model in models {
            memory.make_room(model)?;
        }
        Ok(memory)
    }

    /// Sets aside what one inference of each client needs of a model, unless as much is set aside
    /// already. It stays so when the model is gone: exchanges under way count on what is left.
    ///
    /// # Errors
    /// [`Error::Memory`] if the budget is too small; nothing changes then.
    pub(super) fn make_room(&self, model: &ServerModel) -> Result<(), Error> {
        let requests = transport::STREAMS * REQUEST_LIMIT as u64;
        let client = transport::SERVER_WINDOWS + requests + model.online_memory();
        let clients = self.max_clients as u64;
        let mut state = lock(&self.state);
        let aside = state.aside.max(clients * client);
        let largest = model.most_offline_memory().max(ServerModel::SETUP_MEMORY);
        let least = AHEAD_BYTES as u64 + aside + largest;
        if self.budget < least {
            return Err(Error::Memory {
                budget: self.budget,
                least,
                max_clients: self.max_clients,
            });
        }
        // Exchanges under way may hold what is set aside now; they give it back.
        state.left -= (aside - state.aside) as i64;
        state.aside = aside;
        Ok(())
    }

    /// A budget of which nothing is set aside yet but for bundles that are read ahead.
    fn empty(left: i64, max_clients: usize) -> Memory {
        Memory {
            state: Mutex::new(State {
                left,
                aside: 0,
                queue: Vec::new(),
                sent_away: 0,
            }),
            wanted: Notify::new(),
            budget: u64::try_from(left)
                .unwrap_or(0)
                .saturating_add(AHEAD_BYTES as u64),
            max_clients,
        }
    }

    /// What is taken now, and who waits.
    pub(super) fn levels(&self) -> MemoryLevels {
        let now = Instant::now();
        let state = lock(&self.state);
        let expected = |(_, last): &&(_, Instant)| now.duration_since(*last) < EXPECTED;
        MemoryLevels {
            budget: self.budget,
            exchanges: self.budget.saturating_sub(AHEAD_BYTES as u64 + state.aside),
            left: u64::try_from(state.left).unwrap_or(0),
            waiting: state.queue.iter().filter(expected).count(),
            sent_away: state.sent_away,
        }
    }

    /// Takes memory for an exchange of a client.
    ///
    /// # Errors
    /// [`Refusal::ComeBack`] if there is not enough, or others come first.
    pub(super) fn take(&self, client: Fingerprint, bytes: u64) -> Result<Share<'_>, Refusal> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let State {
            left,
            queue,
            sent_away,
            ..
        } = &mut *state;
        queue.retain(|(_, last)| now.duration_since(*last) < EXPECTED);
        let place = queue.iter().position(|(other, _)| *other == client);
        let fits = i64::try_from(bytes).is_ok_and(|bytes| bytes <= *left);
        if place.unwrap_or(queue.len()) == 0 && fits {
            *left -= bytes as i64;
            if place.is_some() {
                queue.remove(0);
            }
            return Ok(Share {
                memory: self,
                bytes,
            });
        }
        *sent_away += 1;
        match place {
            Some(place) => queue[place].1 = now,
            None => queue.push((client, now)),
        }
        drop(state);
        self.wanted.notify_waiters();
        Err(come_back())
    }

    /// Ends when an exchange that waits for its client from now on has to give way.
    pub(super) async fn must_give_way(&self) {
        tokio::time::sleep(GIVE_WAY).await;
        self.wanted.notified().await;
    }
}

/// The refusal of an exchange for which there is no room now.
pub(super) fn come_back() -> Refusal {
    Refusal::ComeBack(COME_BACK.as_secs() as u16)
}

/// Half of the memory of this machine, or of the control group that the process runs in; 4 GiB
/// where neither is known.
pub fn default_budget() -> u64 {
    machine::total_memory().map_or(4 << 30, |bytes| bytes / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(left: i64) -> Memory {
        Memory::empty(left, 1)
    }

    #[test]
    fn clients_that_were_sent_away_come_in_their_order() {
        let [a, b, c] = [1, 2, 3].map(|name| Fingerprint([name; 32]));
        let memory = memory(10);
        let first = memory.take(a, 8).unwrap();
        assert_eq!(memory.take(b, 8).err(), Some(come_back()));
        // There is room for this one, but it is not its turn.
        assert_eq!(memory.take(c, 2).err(), Some(come_back()));
        let levels = memory.levels();
        assert_eq!((levels.exchanges, levels.left), (10, 2));
        assert_eq!((levels.waiting, levels.sent_away), (2, 2));
        drop(first);
        assert_eq!(memory.take(a, 8).err(), Some(come_back()));
        assert_eq!(memory.take(c, 2).err(), Some(come_back()));
        let second = memory.take(b, 8).unwrap();
        let third = memory.take(c, 2).unwrap();
        assert_eq!(memory.take(a, 8).err(), Some(come_back()));
        drop((second, third));
        drop(memory.take(a, 8).unwrap());
        assert_eq!(lock(&memory.state).left, 10);
        assert!(lock(&memory.state).queue.is_empty());
    }

    #[test]
    fn clients_that_do_not_come_back_are_not_waited_for() {
        let [a, b] = [1, 2].map(|name| Fingerprint([name; 32]));
        let memory = memory(10);
        let _held = memory.take(a, 5).unwrap();
        assert!(memory.take(b, 8).is_err());
        lock(&memory.state).queue[0].1 -= EXPECTED;
        drop(memory.take(a, 5).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_gives_way_once_others_are_sent_away() {
        let memory = memory(0);
        let long = tokio::time::timeout(20 * GIVE_WAY, memory.must_give_way());
        assert!(long.await.is_err(), "nobody wants it");
        let sent_away = async {
            tokio::time::sleep(2 * GIVE_WAY).await;
            assert!(memory.take(Fingerprint([1; 32]), 1).is_err());
        };
        tokio::join!(memory.must_give_way(), sent_away);
    }
}
