//! The threads on which bundles are prepared, at the lowest priority: an inference, whose client
//! waits, computes on threads of its own (see `pinned_pool`) and has the processors whenever it
//! needs them.
//!
//! Preparing runs on the global pool of rayon, and what of a session is not shared out there on a
//! thread of its own for each exchange. Nothing else runs on either, so their priority is that of
//! preparing. Other programs of the machine come first too; where nothing else runs,
//! nothing is lost.

use rayon::ThreadPoolBuilder;
use std::future::Future;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tracing::Span;

/// Lowest priority of a thread, by the scale of `nice`.
const LOWEST: i32 = 19;

/// Makes the threads of the global pool, unless there are some already.
pub(crate) fn start() {
    if let Err(error) = quiet().build_global() {
        tracing::debug!(%error, "preparing has the priority of everything else");
    }
}

/// A pool whose threads have the lowest priority.
fn quiet() -> ThreadPoolBuilder {
    ThreadPoolBuilder::new().start_handler(|_| give_way())
}

/// Gives the calling thread the lowest priority, for good.
fn give_way() {
    // The caller's thread alone, on Linux; where it is the whole process, nothing is changed.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, LOWEST) {
        tracing::debug!(%error, "preparing has the priority of everything else");
    }
}

/// Runs a session as [`crate::party::compute`] does, at the lowest priority.
pub(crate) fn compute<F>(session: F) -> F::Output
where
    F: Future + Send,
    F::Output: Send,
{
    let (reactor, span) = (Handle::current(), Span::current());
    let quietly = || {
        give_way();
        span.in_scope(|| reactor.block_on(session))
    };
    block_in_place(|| {
        std::thread::scope(|scope| match scope.spawn(quietly).join() {
            Ok(result) => result,
            // As if it had panicked here.
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::process::getpriority_process;

    #[test]
    fn preparing_has_the_lowest_priority_and_nothing_else_has() {
        let before = getpriority_process(None).unwrap();
        let pool = quiet().build().unwrap();
        let preparing = pool.broadcast(|_| getpriority_process(None).unwrap());
        assert!(
            preparing.iter().all(|&priority| priority == LOWEST),
            "{preparing:?}"
        );
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_not_shared_out_has_the_lowest_priority_too() {
        let before = getpriority_process(None).unwrap();
        let computing = compute(async {
            tokio::task::yield_now().await;
            getpriority_process(None).unwrap()
        });
        assert_eq!(
            (computing, getpriority_process(None).unwrap()),
            (LOWEST, before)
        );
    }
}
