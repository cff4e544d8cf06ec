//! Threads that an inference computes on, each kept on a processor of its own.
//!
//! Online, a layer computes for about a millisecond, then its threads sleep until the peer has
//! answered. A system that wakes two of them within microseconds often puts both on one processor
//! and moves neither before its next tick: half of the layers then take twice as long. So the
//! threads of a team are bound to processors, one to each; the first of them to be free runs the
//! session itself and takes part in the work. Measured on two cores with both parties on them
//! (ResNet-18, 15,000 ReLUs): 41 ms online unbound, 31 ms bound.
//!
//! A session holds its team while it waits for its peer, so every inference under way has its own.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rand_core::{OsRng, TryRngCore};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::future::Future;
use std::sync::Mutex;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

/// Most threads of a team: a layer has work for tens of microseconds for each of so many.
const MOST_THREADS: usize = 16;
/// Teams kept for the next inference.
const MOST_IDLE: usize = 8;

/// Teams for the inferences of a process.
pub(crate) struct Teams {
    bound: bool,
    idle: Mutex<Vec<ThreadPool>>,
}

impl Teams {
    /// No team yet; with `bound`, their threads stay on their processors where the system allows
    /// it.
    pub(crate) fn new(bound: bool) -> Teams {
        Teams {
            bound,
            idle: Mutex::default(),
        }
    }

    /// Runs a session on a team; the reactor goes on elsewhere. Without threads to be had, it runs
    /// on this one.
    pub(crate) fn compute<F>(&self, session: F) -> F::Output
    where
        F: Future + Send,
        F::Output: Send,
    {
        let reactor = Handle::current();
        block_in_place(|| match self.take() {
            Some(team) => {
                let result = team.install(|| reactor.block_on(session));
                self.give_back(team);
                result
            }
            None => reactor.block_on(session),
        })
    }

    /// Makes a team ahead, so that the next inference need not.
    pub(crate) fn ready(&self) {
        if let Some(team) = self.take() {
            self.give_back(team);
        }
    }

    fn take(&self) -> Option<ThreadPool> {
        let idle = self.idle.lock().expect("no holder panics").pop();
        idle.or_else(|| {
            let team = self.build();
            team.inspect_err(
                |error| tracing::warn!(%error, "no threads for an inference of its own"),
            )
            .ok()
        })
    }

    fn give_back(&self, team: ThreadPool) {
        let mut idle = self.idle.lock().expect("no holder panics");
        if idle.len() < MOST_IDLE {
            idle.push(team);
        }
    }

    fn build(&self) -> Result<ThreadPool, rayon::ThreadPoolBuildError> {
        let threads = rayon::current_num_threads().min(MOST_THREADS);
        let processors = match self.bound {
            true => processors(),
            false => Vec::new(),
        };
        // Teams of one machine begin anywhere, so that they do not all share the first processors.
        let first = OsRng.try_next_u32().unwrap_or(0) as usize;
        ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("inference-{index}"))
            .start_handler(move |index| {
                if !processors.is_empty() {
                    bind(processors[(first + index) % processors.len()]);
                }
            })
            .build()
    }
}

/// The processors that this process may use, if it may use all of each: under a quota, which counts
/// time on any processor, there may be many more of them than the quota allows, and other processes
/// bound to the same few.
fn processors() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    let allowed = |&processor: &usize| set.is_set(processor).unwrap_or(false);
    let all: Vec<usize> = (0..CpuSet::count()).filter(allowed).collect();
    match std::thread::available_parallelism() {
        Ok(usable) if usable.get() == all.len() => all,
        _ => Vec::new(),
    }
}

/// Binds this thread; where that is forbidden, it is slower, not wrong.
fn bind(processor: usize) {
    let mut set = CpuSet::new();
    let bound = set
        .set(processor)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = bound {
        tracing::debug!(%error, processor, "a thread is not bound to its processor");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn on_reactor<R>(work: impl FnOnce() -> R) -> R {
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        runtime.block_on(async { work() })
    }

    #[test]
    fn threads_of_a_team_are_bound_to_different_processors() {
        let teams = Teams::new(true);
        let processors = processors();
        let team = teams.take().unwrap();
        let sets = team.broadcast(|_| {
            let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
            let mine = (0..CpuSet::count()).filter(|&p| set.is_set(p).unwrap());
            mine.collect::<Vec<_>>()
        });
        if processors.is_empty() {
            println!("skipped: this process runs under a quota, nothing is bound");
            return;
        }
        let alone = sets.iter().all(|set| set.len() == 1);
        assert!(alone, "{sets:?}");
        let distinct: HashSet<_> = sets.iter().collect();
        assert_eq!(distinct.len(), sets.len().min(processors.len()), "{sets:?}");
    }

    #[test]
    fn unbound_teams_keep_the_processors_of_the_process() {
        let here = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let team = Teams::new(false).take().unwrap();
        for set in team.broadcast(|_| sched_getaffinity(Pid::from_raw(0)).unwrap()) {
            assert_eq!(set, here);
        }
    }

    #[test]
    fn sessions_at_once_have_teams_of_their_own() {
        let teams = Teams::new(true);
        let (one, other) = (teams.take().unwrap(), teams.take().unwrap());
        // A session that waits inside its team keeps no other from running.
        let answer = one.install(|| other.install(|| 5));
        assert_eq!(answer, 5);
        teams.give_back(one);
        teams.give_back(other);
        assert_eq!(teams.idle.lock().unwrap().len(), 2);
        let result = on_reactor(|| teams.compute(async { rayon::current_thread_index() }));
        assert!(result.is_some(), "the session runs on a thread of the team");
        assert_eq!(teams.idle.lock().unwrap().len(), 2);
    }
}
