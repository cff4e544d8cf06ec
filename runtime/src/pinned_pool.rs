//! Thread pools that inferences compute on, each thread pinned to a different processor.
//!
//! Online, a layer computes for about a millisecond, then its threads sleep until the peer has
//! answered. A scheduler that wakes two of them within microseconds often puts both on one
//! processor and moves neither before its next tick; half of the layers then take twice as long.
//! So each thread of a pool is bound to a processor. The first thread to be free runs the session
//! itself and takes part in the work. Measured on two cores with both parties on them (ResNet-18,
//! 15,000 ReLUs): 41 ms online unbound, 31 ms bound.
//!
//! A session holds its pool while it waits for its peer, so every inference under way has its own.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rand_core::{OsRng, TryRngCore};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::future::Future;
use std::sync::Mutex;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tracing::Instrument;

/// Upper limit on the threads of a pool: with 16, each still has tens of microseconds of work in a
/// layer.
const MOST_THREADS: usize = 16;
/// Idle pools kept for the next inference.
const MOST_IDLE: usize = 8;

/// The pools for the inferences of a process.
pub(crate) struct PinnedPools {
    bound: bool,
    idle: Mutex<Vec<ThreadPool>>,
}

impl PinnedPools {
    /// Starts without a pool. With `bound`, the threads of the pools made later stay on their
    /// processors where the system allows it.
    pub(crate) fn new(bound: bool) -> PinnedPools {
        PinnedPools {
            bound,
            idle: Mutex::default(),
        }
    }

    /// Runs a session on a separate pool while the reactor goes on elsewhere. Falls back to the
    /// current thread if no pool can be built.
    pub(crate) fn compute<F>(&self, session: F) -> F::Output
    where
        F: Future + Send,
        F::Output: Send,
    {
        let reactor = Handle::current();
        // Made here, where its parent is: a pool's threads know of none.
        let session = session.instrument(tracing::debug_span!("compute"));
        block_in_place(|| match self.take() {
            Some(pool) => {
                let result = pool.install(|| reactor.block_on(session));
                self.give_back(pool);
                result
            }
            None => reactor.block_on(session),
        })
    }

    /// Builds a pool ahead of time, so that the next inference need not.
    pub(crate) fn ready(&self) {
        if let Some(pool) = self.take() {
            self.give_back(pool);
        }
    }

    fn take(&self) -> Option<ThreadPool> {
        let idle = self.idle.lock().expect("no holder panics").pop();
        idle.or_else(|| {
            let pool = self.build();
            pool.inspect_err(|error| tracing::warn!(%error, "no thread pool for an inference"))
                .ok()
        })
    }

    fn give_back(&self, pool: ThreadPool) {
        let mut idle = self.idle.lock().expect("no holder panics");
        if idle.len() < MOST_IDLE {
            idle.push(pool);
        }
    }

    fn build(&self) -> Result<ThreadPool, rayon::ThreadPoolBuildError> {
        let threads = rayon::current_num_threads().min(MOST_THREADS);
        let processors = match self.bound {
            true => processors(),
            false => Vec::new(),
        };
        // The pools of a machine start at random processors, or all would share the first ones.
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

/// The processors that this process may use, or none if it runs under a quota.
///
/// A quota counts time on any processor: there may be many more processors than the quota allows
/// to use, and other processes may be bound to the same few.
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

/// Binds the current thread. Where the system forbids that, computing is slower, not wrong.
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
    fn threads_of_a_pool_are_bound_to_different_processors() {
        let pools = PinnedPools::new(true);
        let processors = processors();
        let pool = pools.take().unwrap();
        let sets = pool.broadcast(|_| {
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
    fn unbound_pools_keep_the_processors_of_the_process() {
        let here = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let pool = PinnedPools::new(false).take().unwrap();
        for set in pool.broadcast(|_| sched_getaffinity(Pid::from_raw(0)).unwrap()) {
            assert_eq!(set, here);
        }
    }

    #[test]
    fn sessions_at_once_have_pools_of_their_own() {
        let pools = PinnedPools::new(true);
        let (one, other) = (pools.take().unwrap(), pools.take().unwrap());
        // A session that waits inside its pool keeps no other from running.
        let answer = one.install(|| other.install(|| 5));
        assert_eq!(answer, 5);
        pools.give_back(one);
        pools.give_back(other);
        assert_eq!(pools.idle.lock().unwrap().len(), 2);
        let result = on_reactor(|| pools.compute(async { rayon::current_thread_index() }));
        assert!(result.is_some(), "the session runs on a thread of the pool");
        assert_eq!(pools.idle.lock().unwrap().len(), 2);
    }
}
