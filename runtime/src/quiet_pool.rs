//! The threads on which bundles are prepared, which run only when nothing else wants to: an
//! inference, whose client waits, computes on threads of its own (see `pinned_pool`) and has the
//! processors whenever it needs them.
//!
//! Preparing runs on the global pool of rayon, and what of a session is not shared out there on a
//! thread of its own for each exchange. Nothing else runs on either, so their priority is that of
//! preparing. Other programs of the machine come first too; where nothing else runs, nothing is
//! lost.
//!
//! On Linux their policy is `SCHED_IDLE`. The lowest priority (`nice` 19) is not enough: such a
//! thread finishes its slice when another wakes up, and an inference wakes up in each of its round
//! trips. Measured on two cores while two other clients prepare all the time (ResNet-18, 15,000
//! ReLUs): 1.6 times the latency of an idle server by priority, 1.3 times by policy.

use rayon::ThreadPoolBuilder;
use std::future::Future;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tracing::Span;

/// Makes the threads of the global pool, unless there are some already.
pub(crate) fn start() {
    if let Err(error) = quiet().build_global() {
        tracing::debug!(%error, "preparing has the priority of everything else");
    }
}

/// A pool whose threads give way to all others.
fn quiet() -> ThreadPoolBuilder {
    ThreadPoolBuilder::new().start_handler(|_| give_way())
}

/// Has the calling thread give way to all others, for good. Nothing happens where the system has no
/// such policy.
fn give_way() {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{
            NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
            set_thread_priority_and_policy, thread_native_id,
        };
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let set = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle);
        if let Err(error) = set {
            tracing::debug!(%error, "preparing has the priority of everything else");
        }
    }
}

/// Runs a session as [`crate::party::compute`] does, on a thread that gives way.
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
    use thread_priority::{
        NormalThreadSchedulePolicy, ThreadSchedulePolicy, thread_schedule_policy,
    };

    const IDLE: ThreadSchedulePolicy =
        ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);

    #[test]
    fn preparing_gives_way_and_nothing_else_does() {
        let pool = quiet().build().unwrap();
        let preparing = pool.broadcast(|_| thread_schedule_policy().unwrap());
        assert!(
            preparing.iter().all(|policy| *policy == IDLE),
            "{preparing:?}"
        );
        assert_ne!(thread_schedule_policy().unwrap(), IDLE);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_not_shared_out_gives_way_too() {
        let computing = compute(async {
            tokio::task::yield_now().await;
            thread_schedule_policy().unwrap()
        });
        assert_eq!(computing, IDLE);
        assert_ne!(thread_schedule_policy().unwrap(), IDLE);
    }
}
