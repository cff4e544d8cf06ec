//! The threads on which bundles are prepared, at the lowest priority: an inference, whose client
//! waits, computes on threads of its own (see `pinned_pool`) and has the processors whenever it
//! needs them.
//!
//! Preparing runs on the global pool of rayon. Its threads are alone on it, so their priority is
//! that of preparing. Other programs of the machine come first too; where nothing else runs,
//! nothing is lost.

use rayon::ThreadPoolBuilder;

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
    ThreadPoolBuilder::new().start_handler(|_| {
        // The caller's thread alone, on Linux; where it is the whole process, nothing is changed.
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::process::setpriority_process(None, LOWEST) {
            tracing::debug!(%error, "preparing has the priority of everything else");
        }
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
}
